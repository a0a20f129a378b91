//! After a repair a second run finds nothing, the filesystem opens, and what was not damaged is still there.

use super::support::*;
use super::*;
use crate::fs::{Fs, ROOT};
use crate::page::format::*;
use crate::page::superblock::Superblock;
use crate::page::{PAGE_SIZE, PageBytes, PageId};
use crate::storage::sim::Policy;
use crate::storage::{MemStorage, Rng, SimStorage};
use crate::tree::{Batch, Tree};

const ALL: Options<'static> = Options { repair: Repair::All, scrub: false, force: true, progress: None };

fn superblock(storage: &dyn Storage) -> Superblock {
    crate::pool::read_superblock(storage).unwrap()
}

/// Pages that carry this image's mark and are whole.
fn pages(storage: &dyn Storage) -> Vec<PageId> {
    let s = superblock(storage);
    let mut bytes: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let mut found = Vec::new();
    for n in s.data_offset() / PAGE_SIZE as u64..s.size / PAGE_SIZE as u64 {
        storage.read_at(n * PAGE_SIZE as u64, &mut bytes[..]).unwrap();
        if verify_seal(&bytes, PageId(n), s.image()).is_ok() {
            found.push(PageId(n));
        }
    }
    found
}

/// Damages an image in one random way.
fn damage(storage: &dyn Storage, s: &Superblock, pages: &[PageId], rng: &mut Rng) -> String {
    let id = pages[rng.index(pages.len())];
    let mut bytes: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    storage.read_at(id.offset(), &mut bytes[..]).unwrap();
    match rng.below(7) {
        0 => {
            bytes[rng.index(PAGE_SIZE)] ^= 1 << rng.below(8);
            storage.write_at(id.offset(), &bytes[..]).unwrap();
            format!("a bit of {id}")
        }
        1 => {
            storage.write_at(id.offset(), &[0; PAGE_SIZE]).unwrap();
            format!("{id} is zeros")
        }
        2 => {
            for _ in 0..1 + rng.below(4) {
                let limit = [64, 200, PAGE_SIZE][rng.index(3)];
                bytes[rng.index(limit)] = rng.next_u64() as u8;
            }
            seal(&mut bytes);
            storage.write_at(id.offset(), &bytes[..]).unwrap();
            format!("bytes of {id}, with a right checksum")
        }
        3 => {
            let other = pages[rng.index(pages.len())];
            let mut second: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
            storage.read_at(other.offset(), &mut second[..]).unwrap();
            storage.write_at(id.offset(), &second[..]).unwrap();
            storage.write_at(other.offset(), &bytes[..]).unwrap();
            format!("{id} and {other} are exchanged")
        }
        4 => {
            storage.write_at(s.root.offset() + 3000, b"rot").unwrap();
            "the root".into()
        }
        5 => {
            let id = s.bitmap_page(0);
            storage.write_at(id.offset() + rng.below(9000), &[rng.next_u64() as u8; 9]).unwrap();
            "the bitmap".into()
        }
        _ => {
            let at = [0, PAGE_SIZE as u64][rng.index(2)];
            storage.write_at(at + rng.below(512), &[rng.next_u64() as u8]).unwrap();
            "a superblock".into()
        }
    }
}

/// `BTFS_IMAGES` damaged images.
#[test]
fn whatever_is_damaged_the_rest_is_still_there() {
    let images: u64 = std::env::var("BTFS_IMAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let only: Option<u64> = std::env::var("BTFS_SEED").ok().and_then(|n| n.parse().ok());
    let bases: Vec<_> = (0..3).map(|seed| sample(200 + seed, 1200)).collect();
    let models: Vec<Model> = bases.iter().map(model).collect();
    let marked: Vec<_> = bases.iter().map(|b| pages(&**b)).collect();
    for seed in only.map_or(0..images, |s| s..s + 1) {
        let mut rng = Rng::new(seed);
        let n = rng.index(bases.len());
        let storage = Arc::new(MemStorage::from_image(bases[n].image()));
        let mut what = Vec::new();
        for _ in 0..1 + rng.below(3) {
            what.push(damage(&*storage, &superblock(&*bases[n]), &marked[n], &mut rng));
        }
        let before = check(storage.clone(), &Options::default()).unwrap();
        let report = check(storage.clone(), &ALL).unwrap();
        assert_eq!(report.left, 0, "seed {seed}, {what:?}: {report}");
        assert_eq!(report.is_clean(), before.is_clean(), "seed {seed}, {what:?}: {before} {report}");
        // Nobody can tell that a record with a right checksum was changed, if it still means something.
        let forged = what.iter().any(|w| w.ends_with("right checksum"));
        let second = check(storage.clone(), &Options { scrub: !forged, ..Options::default() }).unwrap();
        assert!(second.is_clean(), "seed {seed}, {what:?}: {report}\nsecond: {second}");
        if !forged {
            compare(&models[n], &storage, &report, &format!("seed {seed}, {what:?}"));
        }
    }
}

#[test]
fn a_lost_root_loses_nothing() {
    let storage = sample(11, 1500);
    let model = model(&storage);
    storage.write_at(superblock(&*storage).root.offset(), &[0; PAGE_SIZE]).unwrap();
    let report = check(storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.repaired > 0, report.exit_code()), (0, true, 1), "{report}");
    assert!(look_at(&storage).is_clean());
    let (lost, _) = difference(&model, &storage);
    assert!(lost.is_empty(), "{lost:?}: {report}");
}

#[test]
fn safe_repairs_take_nothing_away() {
    let safe = Options { repair: Repair::Safe, force: true, ..Options::default() };
    // The bitmap.
    let k = known();
    let id = superblock(&*k.storage).bitmap_page(0);
    k.storage.write_at(id.offset() + 700, b"rot").unwrap();
    let report = check(k.storage.clone(), &safe).unwrap();
    assert_eq!((report.left, report.repaired), (0, 1), "{report}");
    assert!(look_at(&k.storage).is_clean());
    // Counts.
    let k = known();
    forge_inode(&k.storage, k.file, |i| (i.links, i.blocks) = (9, 9));
    let report = check(k.storage.clone(), &safe).unwrap();
    assert_eq!((report.left, report.repaired), (0, 2), "{report}");
    assert!(look_at(&k.storage).is_clean());
    // A damaged leaf is left to the user. That there is something is all that is written, and the next boot looks again.
    let k = known();
    k.storage.write_at(superblock(&*k.storage).root.offset() + 3000, b"rot").unwrap();
    let before = but_for_the_mark(&k.storage);
    let report = check(k.storage.clone(), &safe).unwrap();
    assert_eq!(report.exit_code(), 4, "{report}");
    assert!(before == but_for_the_mark(&k.storage));
    let report = check(k.storage.clone(), &Options { force: false, ..safe }).unwrap();
    assert_eq!((report.marked, report.exit_code()), (true, 4), "{report}");
    // Closed in order and not forced: only the superblocks are looked at.
    let k = known();
    let report = check(k.storage, &Options { force: false, ..safe }).unwrap();
    assert_eq!((report.exit_code(), report.inodes), (0, 0));
}

/// What belongs to a file that only a user can decide about stays its own.
#[test]
fn safe_repairs_free_no_blocks_of_what_they_leave() {
    use crate::fs::format::{extent_key, inode_key};
    let safe = Options { repair: Repair::Safe, force: true, ..Options::default() };
    for whole in [true, false] {
        let k = known();
        let mut old = Vec::new();
        forge(&k.storage, |tree, batch| {
            old = tree.get(&inode_key(k.file)).unwrap().unwrap();
            let mut new = old.clone();
            new[1] = 0x80;
            batch.put(&inode_key(k.file), &new);
        });
        // Blocks that are in use and marked as free are still marked, and a bitmap that is lost is made again.
        let id = superblock(&*k.storage).bitmap_page(0);
        if whole {
            forge(&k.storage, |tree, batch| {
                let (key, record) = records(tree, &extent_key(k.other, 0)[..9]).remove(0);
                let end = crate::fs::format::extent_end(k.other, &key).unwrap();
                let extent = crate::fs::format::Extent::decode(k.other, end, &record).unwrap();
                batch.free(extent.run().unwrap());
            });
        } else {
            k.storage.write_at(id.offset() + 700, b"rot").unwrap();
        }
        for run in 0..2 {
            let report = check(k.storage.clone(), &safe).unwrap();
            assert_eq!((report.left > 0, report.repaired > 0), (true, run == 0), "{report}");
            assert_eq!(report.count(ProblemKind::BlocksFree) > 0, run == 0 && whole, "{report}");
        }
        forge(&k.storage, |_, batch| batch.put(&inode_key(k.file), &old));
        let report = look_at(&k.storage);
        // All of a group whose bitmap is lost counts as in use, until all is known that is.
        let leaked = report.count(ProblemKind::BlocksLeaked);
        assert_eq!((report.left, leaked), (!whole as u64, !whole as u64), "{report}");
        repaired(&k.storage, &report);
    }
}

/// Marks so many inodes that there are not as orphans.
fn forge_orphans(count: u64, tree: &Tree, batch: &mut Batch) {
    use crate::fs::format::{Orphan, orphan_key};
    for i in 0..count {
        batch.put(&orphan_key(crate::fs::Ino(100_000 + i)), &Orphan::Unlinked.encode());
        if batch.len() == 50 {
            tree.apply(batch).unwrap();
            batch.clear();
        }
    }
}

/// Each round does as much as one can.
#[test]
fn a_repair_has_as_many_rounds_as_there_is_to_do() {
    let k = known();
    forge(&k.storage, |tree, batch| forge_orphans(12_000, tree, batch));
    let report = check(k.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.repaired), (0, 12_000), "{report}");
    assert!(look_at(&k.storage).is_clean());
}

/// What repairs records needs bitmaps that are right, however many records there are.
#[test]
fn bitmaps_come_first_however_much_there_is_to_do() {
    use crate::fs::format::{Extent, extent_end, extent_key};
    for whole in [false, true] {
        let k = known();
        let before = model(&k.storage);
        forge(&k.storage, |tree, batch| {
            forge_orphans(700, tree, batch);
            if whole {
                let (key, record) = records(tree, &extent_key(k.file, 0)[..9]).remove(0);
                let end = extent_end(k.file, &key).unwrap();
                batch.free(Extent::decode(k.file, end, &record).unwrap().run().unwrap());
            }
        });
        if !whole {
            let id = superblock(&*k.storage).bitmap_page(0);
            k.storage.write_at(id.offset() + 700, b"rot").unwrap();
        }
        let report = check(k.storage.clone(), &ALL).unwrap();
        assert_eq!((report.left, report.count(ProblemKind::Orphan)), (0, 700), "{report}");
        assert!(look_at(&k.storage).is_clean());
        assert!(difference(&before, &k.storage).0.is_empty());
    }
}

#[test]
fn a_log_is_replayed_for_good() {
    let storage = Arc::new(MemStorage::new(SIZE));
    let mut world = World::new(storage.clone(), SIZE, 9);
    (0..300).for_each(|_| world.step());
    world.fs.sync().unwrap();
    drop(world);
    let report = check(storage.clone(), &Options { repair: Repair::Safe, ..Options::default() }).unwrap();
    assert_eq!((report.exit_code(), report.replay.is_some()), (0, true), "{report}");
    assert!(superblock(&*storage).clean);
}

/// Whatever a power cut leaves of a repair, the next one ends it. `BTFS_CUTS` cuts an image.
#[test]
fn a_repair_that_is_interrupted_can_be_done_again() {
    let wanted: u64 = std::env::var("BTFS_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let base = sample(300, 1200);
    let model = model(&base);
    let marked = pages(&*base);
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let damaged = Arc::new(MemStorage::from_image(base.image()));
        let what = match seed {
            0 => {
                damaged.write_at(superblock(&*damaged).root.offset(), &[0; PAGE_SIZE]).unwrap();
                "root".to_string()
            }
            1 => {
                let id = superblock(&*damaged).bitmap_page(0);
                damaged.write_at(id.offset() + 600, &[0x55; 999]).unwrap();
                "bitmap".to_string()
            }
            6 => {
                damaged.write_at(0, &[0; 65536]).unwrap();
                "superblocks".to_string()
            }
            7 => {
                super::salvage::forget_copies(&damaged);
                damaged.write_at(0, &[0; 65536]).unwrap();
                "superblocks and seed".to_string()
            }
            8 => {
                super::salvage::forget_copies(&damaged);
                damaged.write_at(superblock(&*damaged).root.offset(), &[0; PAGE_SIZE]).unwrap();
                damaged.write_at(0, &[0; 65536]).unwrap();
                "superblocks, seed and root".to_string()
            }
            9 => {
                damaged.set_len(SIZE / 8).unwrap();
                "short file".to_string()
            }
            10 => {
                super::size::forge_sizes(&damaged, Some(super::size::HUGE), None);
                "size of the image".to_string()
            }
            11 => {
                super::salvage::forget_copies(&damaged);
                super::size::forge_sizes(&damaged, Some(super::size::HUGE), Some(super::size::HUGE));
                "size of the image in both superblocks".to_string()
            }
            _ => damage(&*damaged, &superblock(&*base), &marked, &mut rng),
        };
        let comparable = !what.ends_with("right checksum") && what != "short file";
        let sim = Arc::new(SimStorage::from_image(damaged.image()));
        sim.start_recording();
        let whole = check(sim.clone(), &ALL).unwrap();
        let recording = sim.finish_recording().unwrap();
        let cuts = recording.cuts().end() - recording.cuts().start();
        let every = (cuts / wanted).max(1);
        let mut cursor = recording.cursor();
        while cursor.advance() {
            let near_end = cursor.index() + 12 >= *recording.cuts().end();
            if !cursor.index().is_multiple_of(every) && !near_end {
                continue;
            }
            let storage = Arc::new(MemStorage::from_image(cursor.crash(&mut rng, Policy::Any)));
            let about = format!("seed {seed}, {what}, cut {} of {cuts}", cursor.index());
            let again = check(storage.clone(), &ALL).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_eq!(again.left, 0, "{about}: {again}");
            let scrub = Options { scrub: comparable, ..Options::default() };
            let second = check(storage.clone(), &scrub).unwrap();
            assert!(second.is_clean(), "{about}: {whole}\n{again}\nsecond: {second}");
            let mut both = whole.clone();
            both.problems.extend(again.problems);
            if comparable {
                compare(&model, &storage, &both, &about);
            }
        }
    }
}

#[test]
fn what_lost_its_name_is_found_in_lost_and_found() {
    let k = known();
    forge(&k.storage, |_, batch| batch.delete(&crate::fs::format::inode_key(k.inner)));
    let report = check(k.storage.clone(), &ALL).unwrap();
    assert_eq!(report.left, 0, "{report}");
    assert!(look_at(&k.storage).is_clean());
    let fs = Fs::open(k.storage, &options()).unwrap();
    let home = fs.lookup(ROOT, b"lost+found").unwrap();
    let mut found = Vec::new();
    let mut below = Vec::new();
    fs.read_dir(home, crate::fs::Cookie(2), |_, ino, _, name| {
        below.push((ino, String::from_utf8_lossy(name).into_owned()));
        true
    })
    .unwrap();
    assert_eq!(below.len(), 1, "{below:?}");
    assert!(below[0].1.starts_with("#group-"), "{below:?}");
    fs.read_dir(below[0].0, crate::fs::Cookie(2), |_, ino, _, name| {
        found.push((ino, name.to_vec()));
        true
    })
    .unwrap();
    assert_eq!(found, [(k.other, b"other".to_vec())], "names below a lost directory are kept");
    assert_eq!(fs.read(k.other, 0, 5000).unwrap(), [8; 4096]);
}

/// What a user has named so keeps its name, and so does a directory that others can look into.
#[test]
fn what_lost_its_name_gets_another_one_where_that_is_taken() {
    use crate::fs::format::{Cookie, Entry, Inode, entry_key, inode_key};
    use crate::fs::{New, name_hash};
    for (new, mode, is_home) in
        [(New::File, 0o700, false), (New::Directory, 0o755, false), (New::Directory, 0o700, true)]
    {
        let k = known();
        let fs = Fs::open(k.storage.clone(), &options()).unwrap();
        let home = fs.create(ROOT, b"lost+found", new, mode, 0, &ME).unwrap().ino;
        fs.release(home, 1).unwrap();
        if is_home {
            for name in [format!("#{}", k.other.0), format!("#{}.1", k.other.0)] {
                let ino = fs.create(home, name.as_bytes(), New::File, 0o755, 0, &ME).unwrap().ino;
                fs.release(ino, 1).unwrap();
            }
        }
        fs.close().unwrap();
        forge(&k.storage, |tree, batch| {
            let inner = Inode::decode(k.inner, &tree.get(&inode_key(k.inner)).unwrap().unwrap()).unwrap();
            let group = inner.dir.unwrap().entries;
            let hash = name_hash(&tree.hash_seed(), b"other") << 8;
            let key = entry_key(group, Cookie(hash));
            assert_eq!(Entry::decode(ROOT, &tree.get(&key).unwrap().unwrap()).unwrap().ino, k.other);
            batch.delete(&key);
        });
        forge_inode(&k.storage, k.inner, |i| i.dir.as_mut().unwrap().count = 0);
        let report = check(k.storage.clone(), &ALL).unwrap();
        assert_eq!((report.left, report.reconnected), (0, 1), "{report}");
        assert!(look_at(&k.storage).is_clean());
        let fs = Fs::open(k.storage, &options()).unwrap();
        assert_eq!(fs.lookup(ROOT, b"lost+found").unwrap(), home);
        let (dir, name) = match is_home {
            false => (fs.lookup(ROOT, b"lost+found.1").unwrap(), format!("#{}", k.other.0)),
            true => (home, format!("#{}.2", k.other.0)),
        };
        assert_eq!(fs.lookup(dir, name.as_bytes()).unwrap(), k.other);
    }
}
