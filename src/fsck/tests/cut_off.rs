//! Repairs that are cut off, or not to do everything: what is known to be damaged does not pass for sound, and is not forgotten.

use super::support::*;
use super::*;
use crate::fs::format::*;
use crate::fs::{Fs, New, ROOT};
use crate::page::format::*;
use crate::page::node::{Node, NodeBuilder, NodeSpec};
use crate::page::superblock::SUPERBLOCK_OFFSETS;
use crate::page::{PAGE_SIZE, PageBytes, PageId};
use crate::storage::{Fault, FaultStorage, Image as Bytes, MemStorage, OpKind};
use crate::tree::{Batch, Options as TreeOptions};

const ALL: Options<'static> = Options { repair: Repair::All, scrub: true, force: true, progress: None };
const SAFE: Options<'static> = Options { repair: Repair::Safe, scrub: false, force: false, progress: None };

fn make(fs: &Fs, name: &str) -> Ino {
    let ino = fs.create(ROOT, name.as_bytes(), New::File, 0o644, 0, &ME).unwrap().ino;
    fs.release(ino, 1).unwrap();
    ino
}

fn files(count: u64) -> (Arc<MemStorage>, Fs, Vec<Ino>) {
    let storage = Arc::new(MemStorage::new(SIZE));
    Fs::format(storage.clone(), &format_options(SIZE), &ME).unwrap();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    let inos = (0..count).map(|i| make(&fs, &format!("f{i}"))).collect();
    (storage, fs, inos)
}

/// Leaves that hold nothing but extents.
pub fn leaves_of_extents(storage: &Arc<MemStorage>) -> Vec<PageId> {
    let s = crate::pool::read_superblock(&**storage).unwrap();
    let tag = extent_key(ROOT, 0)[0];
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let mut found = Vec::new();
    for n in s.data_offset() / PAGE_SIZE as u64..SIZE / PAGE_SIZE as u64 {
        let id = PageId(n);
        storage.read_at(id.offset(), &mut page[..]).unwrap();
        if verify_seal(&page, id, s.image()).is_ok() && page_type(&page) == TYPE_TREE {
            let node = Node(&page);
            let only = node.low() >= &[tag] && node.high().is_some_and(|high| high <= &[tag + 1]);
            if node.level() == 0 && !node.is_dead() && only {
                found.push(id);
            }
        }
    }
    found
}

pub fn rot(storage: &Arc<MemStorage>, leaves: &[PageId]) {
    for id in leaves {
        storage.write_at(id.offset() + 200, &[0x55; 64]).unwrap();
    }
}

/// So many files with so many bytes: a block, or so few that they lie in the tree; and the leaves that hold nothing but extents.
pub fn with_extents(count: u64, len: usize) -> (Arc<MemStorage>, Vec<Ino>, Vec<PageId>) {
    let (storage, fs, inos) = files(count);
    inos.iter().for_each(|ino| assert!(fs.write(*ino, 0, &[7; 4096][..len], &ME).is_ok()));
    fs.close().unwrap();
    let leaves = leaves_of_extents(&storage);
    (storage, inos, leaves)
}

/// Files whose extents are lost: more of them than one round repairs.
fn without_extents(len: usize) -> (Arc<MemStorage>, Vec<Ino>) {
    let (storage, inos, leaves) = with_extents(1500, len);
    assert!(leaves.len() > 2, "{leaves:?}");
    rot(&storage, &leaves);
    (storage, inos)
}

/// Files that read as zeros; they never held any.
fn zeros(storage: &Arc<MemStorage>, inos: &[Ino]) -> usize {
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    inos.iter()
        .filter(|ino| matches!(fs.read(**ino, 0, 4096), Ok(bytes) if bytes.iter().all(|b| *b == 0)))
        .count()
}

/// Cuts a repair off at every write; calls `f` with what is left and where it was cut.
fn cut_everywhere(image: &Bytes, mut f: impl FnMut(Bytes, &str)) {
    for nth in 0.. {
        let faulty = Arc::new(FaultStorage::new(MemStorage::from_image(image.clone())));
        faulty.arm(Fault::nth(&[OpKind::Write, OpKind::WriteDurable], nth).forever());
        let result = check(faulty.clone(), &ALL);
        let done = faulty.disarm() == 0;
        f(faulty.inner().image(), &format!("cut at write {nth}"));
        if done {
            assert_eq!(result.unwrap().left, 0);
            assert!(nth > 10, "{nth} writes");
            return;
        }
    }
}

#[test]
fn what_a_cut_off_repair_knew_to_be_lost_is_lost_after_the_next_one() {
    for (len, bitmap) in [(4096, true), (100, true), (4096, false), (100, false)] {
        let (storage, inos) = without_extents(len);
        if !bitmap {
            // Nothing tells a page of the new tree from one of the old.
            let id = crate::pool::read_superblock(&*storage).unwrap().bitmap_page(0);
            storage.write_at(id.offset() + 700, b"rot").unwrap();
        }
        cut_everywhere(&storage.image(), |left, about| {
            let storage = Arc::new(MemStorage::from_image(left));
            let report = check(storage.clone(), &ALL).unwrap();
            let about = format!("{len} bytes, bitmap {bitmap}, {about}");
            assert_eq!(report.left, 0, "{about}: {report}");
            assert_eq!(zeros(&storage, &inos), 0, "{about}: {report}");
        });
    }
}

/// An inner page that a lost write has left as it was leads to leaves behind its own range, and not to the newer ones there.
#[test]
fn leaves_that_a_stale_page_leads_to_are_kept() {
    let (storage, inos, leaves) = with_extents(1500, 100);
    let mut superblock = crate::pool::read_superblock(&*storage).unwrap();
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    storage.read_at(superblock.root.offset(), &mut page[..]).unwrap();
    let old = page.clone();
    let (old, lsn) = (Node(&old), page_lsn(&page));
    let at = (0..old.count()).find(|i| old.child(*i) == leaves[0]).unwrap();
    assert!(old.level() == 1 && at + 3 < old.count());
    let low = old.key(at).to_vec();
    let mut write = |id: PageId, level, low: &[u8], high: Option<&[u8]>, children: &[(Vec<u8>, PageId)]| {
        let image = superblock.image();
        let spec = NodeSpec { id, image, level, flags: 0, low, high, right: PageId::NONE };
        let mut builder = NodeBuilder::new(&mut page, spec);
        children.iter().for_each(|(key, id)| assert!(builder.push(key, &id.0.to_be_bytes())));
        builder.finish();
        set_page_lsn(&mut page, lsn);
        seal(&mut page);
        storage.write_at(id.offset(), &page[..]).unwrap();
    };
    let children: Vec<_> = (0..old.count()).map(|i| (old.key(i).to_vec(), old.child(i))).collect();
    let last =
        PageId(superblock.bitmap_page(0).0 + (superblock.group_blocks(0) / BLOCKS_PER_PAGE) as u64 - 1);
    let (right, root) = (last, PageId(last.0 - 1));
    // The stale page does not know the leaf behind the one that is damaged.
    let stale: Vec<_> =
        children.iter().enumerate().filter(|(i, _)| *i != at + 1).map(|(_, c)| c.clone()).collect();
    write(superblock.root, 1, &[], None, &stale);
    write(right, 1, &low, None, &children[at..]);
    write(root, 2, &[], None, &[(Vec::new(), superblock.root), (low.clone(), right)]);
    let mut leaf: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    storage.read_at(leaves[0].offset(), &mut leaf[..]).unwrap();
    let gone: Vec<Ino> = (0..Node(&leaf).count())
        .filter_map(|i| match AnyKey::parse(&Node(&leaf).key(i)) {
            Some(AnyKey::Extent(ino, _)) => Some(ino),
            _ => None,
        })
        .collect();
    rot(&storage, &leaves[..1]);
    superblock.root = root;
    for at in SUPERBLOCK_OFFSETS {
        storage.write_at(at, &superblock.encode()).unwrap();
        superblock.sequence += 1;
    }
    let found = look_at(&storage);
    let report = check(storage.clone(), &ALL).unwrap();
    for report in [&found, &report] {
        assert_eq!(
            (report.count(ProblemKind::KeysLost), report.count(ProblemKind::State)),
            (1, 0),
            "{report}"
        );
    }
    assert_eq!(report.left, 0, "{report}");
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    for ino in inos {
        let read = fs.read(ino, 0, 100);
        assert!(
            read.is_err() == gone.contains(&ino) && read.is_ok_and(|b| b == [7; 100]) != gone.contains(&ino)
        );
    }
    fs.close().unwrap();
    assert!(look_at(&storage).is_clean());
}

/// A new tree that lacks extents reads as zeros where they were, until records say what is lost: nobody is to read it before.
#[test]
fn what_a_cut_off_repair_leaves_reads_as_no_zeros() {
    for (count, len) in [(1500, 4096), (1500, 100), (300, 100)] {
        let (storage, inos, leaves) = with_extents(count, len);
        assert!(!leaves.is_empty());
        rot(&storage, &leaves);
        let (mut mounted, mut refused) = (0, 0);
        cut_everywhere(&storage.image(), |left, about| {
            let about = format!("{count} files of {len} bytes, {about}");
            let storage = Arc::new(MemStorage::from_image(left));
            match Fs::open(storage.clone(), &options()) {
                Err(_) => {
                    refused += 1;
                    assert_eq!(look_at(&storage).exit_code(), 4, "{about}");
                    // A repair that is not allowed to finish leaves it so, or there was nothing left to do.
                    for _ in 0..2 {
                        let report = check(storage.clone(), &SAFE).unwrap();
                        match Fs::open(storage.clone(), &options()) {
                            Ok(fs) => drop(fs),
                            Err(_) => assert_eq!(report.exit_code() & 4, 4, "{about}: {report}"),
                        }
                    }
                }
                Ok(_) => mounted += 1,
            }
            if Fs::open(storage.clone(), &options()).is_ok() {
                assert_eq!(zeros(&storage, &inos), 0, "{about}");
            }
            // Another leaf goes before the repair is finished.
            if let Some(leaf) = leaves_of_extents(&storage).first() {
                rot(&storage, &[*leaf]);
            }
            let report = check(storage.clone(), &ALL).unwrap();
            assert_eq!(report.left, 0, "{about}: {report}");
            assert_eq!(zeros(&storage, &inos), 0, "{about}: {report}");
        });
        assert!(mounted > 1 && refused > 1, "{mounted}, {refused}");
    }
}

#[test]
fn what_a_cut_off_repair_leaves_is_not_clean_at_boot() {
    let (storage, inos) = without_extents(4096);
    cut_everywhere(&storage.image(), |left, about| {
        // The damage itself is found by nobody who does not look.
        let begun = crate::pool::read_superblock(&MemStorage::from_image(left.clone()))
            .is_ok_and(|s| s.sequence > crate::pool::read_superblock(&*storage).unwrap().sequence);
        let storage = Arc::new(MemStorage::from_image(left));
        let report = check(storage.clone(), &SAFE).unwrap();
        if begun && report.is_clean() {
            assert_eq!(zeros(&storage, &inos), 0, "{about}: {report}");
        }
    });
}

/// The bitmaps are written once; what else there is to do waits for a user, and keeps nothing busy at boot.
#[test]
fn a_safe_repair_of_what_was_cut_off_writes_the_bitmaps_once() {
    let sequence = |storage: &Arc<MemStorage>| {
        super::super::image::newest(&super::super::image::read_superblocks(&**storage).unwrap())
            .unwrap()
            .sequence
    };
    let (storage, _) = without_extents(4096);
    let mut switched = 0;
    cut_everywhere(&storage.image(), |left, about| {
        let storage = Arc::new(MemStorage::from_image(left));
        let (before, mut report) = (sequence(&storage), check(storage.clone(), &SAFE).unwrap());
        if report.left == 0 || report.count(ProblemKind::RepairUnfinished) == 0 {
            return;
        }
        let after = sequence(&storage);
        assert!(after - before <= 4, "{about}: {before}, {after}: {report}");
        switched += (after > before) as u64;
        report = check(storage.clone(), &SAFE).unwrap();
        assert!(report.left > 0 && sequence(&storage) == after, "{about}: {report}");
    });
    assert!(switched > 0);
}

/// The first run replays the log, and so the image could be closed in order.
#[test]
fn damage_that_a_safe_repair_leaves_is_found_again_at_the_next_boot() {
    let (storage, fs, inos) = files(3);
    fs.sync().unwrap();
    let mut batch = Batch::new();
    batch.delete(&inode_key(inos[1]));
    fs.tree().apply(&batch).unwrap();
    fs.sync().unwrap();
    drop(fs);
    for run in 0..3 {
        let report = check(storage.clone(), &SAFE).unwrap();
        assert_eq!((report.checked, report.exit_code()), (true, 4), "run {run}: {report}");
        assert_eq!(report.replay.as_ref().is_some_and(|r| r.records > 0), run == 0, "run {run}: {report}");
    }
    // It can be mounted all the same, and is not forgotten by who meets nothing of it, whether he closes it or not.
    for close in [true, false] {
        let fs = Fs::open(storage.clone(), &options()).unwrap();
        assert!(fs.tree().is_damaged());
        assert_eq!(fs.lookup(ROOT, b"f2").unwrap(), inos[2]);
        make(&fs, if close { "closed" } else { "not closed" });
        fs.sync().unwrap();
        if close {
            fs.close().unwrap();
        }
        let report = check(storage.clone(), &SAFE).unwrap();
        assert_eq!((report.marked, report.checked, report.exit_code()), (true, true, 4), "{report}");
    }
    // A check alone takes nothing back.
    let report = look_at(&storage);
    assert!(report.marked && look_at(&storage).marked, "{report}");
    let report = check(storage.clone(), &ALL).unwrap();
    assert_eq!((report.marked, report.exit_code()), (true, 1), "{report}");
    let report = check(storage.clone(), &SAFE).unwrap();
    assert!(!report.marked && !report.checked, "closed in order when nothing is left: {report}");
    assert!(!Fs::open(storage, &options()).unwrap().tree().is_damaged());
}

/// A superblock is written again without more ado, and something else is left to the user.
#[test]
fn an_image_that_was_closed_in_order_is_looked_at_after_half_a_repair() {
    let k = known();
    forge_inode(&k.storage, k.file, |inode| inode.size = 5);
    k.storage.write_at(50, b"xxxx").unwrap();
    for run in 0..2 {
        let report = check(k.storage.clone(), &SAFE).unwrap();
        assert_eq!(report.left, 1, "run {run}: {report}");
    }
    let fs = Fs::open(k.storage.clone(), &options()).unwrap();
    assert!(fs.read(k.other, 0, 10).is_ok());
}

/// Damage that the filesystem has met. It is looked for at boot, and forgotten if there is none.
#[test]
fn an_image_on_which_damage_was_met_is_looked_at_until_there_is_none() {
    let (storage, fs, _) = files(3);
    fs.tree().note_damage();
    fs.close().unwrap();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    assert!(fs.tree().recovery().clean && fs.tree().is_damaged());
    fs.close().unwrap();
    assert!(look_at(&storage).marked);
    for marked in [true, false] {
        let report = check(storage.clone(), &SAFE).unwrap();
        assert_eq!((report.marked, report.checked, report.exit_code()), (marked, marked, 0), "{report}");
    }
}

/// Who opens an image for reading only writes nothing; who makes it so again does.
#[test]
fn damage_is_noted_while_nothing_can_be_changed() {
    let (storage, fs, _) = files(3);
    fs.tree().set_read_only(true).unwrap();
    fs.tree().note_damage();
    fs.sync().unwrap();
    fs.tree().checkpoint().unwrap();
    drop(fs);
    let superblock = crate::pool::read_superblock(&*storage).unwrap();
    assert!(superblock.is_damaged() && superblock.clean);
    let (storage, fs, _) = files(3);
    fs.close().unwrap();
    let before = storage.image().to_vec().unwrap();
    let read_only = TreeOptions { read_only: true, ..options() };
    let fs = Fs::open(storage.clone(), &read_only).unwrap();
    fs.tree().note_damage();
    fs.close().unwrap();
    assert!(before == storage.image().to_vec().unwrap());
}

/// Few names tell little of a seed, but a repair that is not finished tells that it may be a new one.
#[test]
fn an_image_with_few_names_is_not_mounted_before_they_have_new_places() {
    let (storage, fs, inos) = files(3);
    fs.close().unwrap();
    super::salvage::forget_copies(&storage);
    storage.write_at(0, &[0; 65536]).unwrap();
    let all_there = |storage: &Arc<MemStorage>, about: &str| {
        let Ok(fs) = Fs::open(storage.clone(), &options()) else { return false };
        for (i, ino) in inos.iter().enumerate() {
            let found = fs.lookup(ROOT, format!("f{i}").as_bytes());
            assert!(matches!(found, Ok(found) if found == *ino), "{about}: {found:?}");
        }
        true
    };
    cut_everywhere(&storage.image(), |left, about| {
        let storage = Arc::new(MemStorage::from_image(left));
        all_there(&Arc::new(MemStorage::from_image(storage.image())), about);
        let report = check(storage.clone(), &ALL).unwrap();
        assert_eq!(report.left, 0, "{about}: {report}");
        assert!(look_at(&storage).is_clean() && all_there(&storage, about), "{about}: {report}");
    });
}
