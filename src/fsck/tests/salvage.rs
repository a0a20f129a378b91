//! Images without superblocks, and files that are too short.

use super::ProblemKind as P;
use super::snapshot::{Snapshot, difference as changes, snapshot};
use super::support::*;
use super::*;
use crate::fs::{Fs, New, ROOT};
use crate::page::format::*;
use crate::page::superblock::{LOG_OFFSET, SUPERBLOCK_OFFSETS, Superblock};
use crate::page::{PAGE_SIZE, PageBytes};
use crate::storage::{MemStorage, Rng};

const ALL: Options<'static> = Options { repair: Repair::All, scrub: false, force: true, progress: None };

fn superblock(storage: &Arc<MemStorage>) -> Superblock {
    crate::pool::read_superblock(&**storage).unwrap()
}

/// Takes the copies of the superblock out of the bitmap pages, as in images that were made without.
pub fn forget_copies(storage: &Arc<MemStorage>) {
    let s = superblock(storage);
    for group in 0..s.groups {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let at = s.bitmap_page(group).offset();
        storage.read_at(at, &mut page[..]).unwrap();
        page[BITMAP_BACKUP..BITMAP_BITS].fill(0);
        seal(&mut page);
        storage.write_at(at, &page[..]).unwrap();
    }
}

fn lose_superblocks(storage: &Arc<MemStorage>) {
    storage.write_at(0, &[0; LOG_OFFSET as usize]).unwrap();
}

fn seen(storage: &Arc<MemStorage>) -> Snapshot {
    let copy = Arc::new(MemStorage::from_image(storage.image()));
    snapshot(&Fs::open(copy, &options()).unwrap(), None).unwrap()
}

fn copy_of(storage: &Arc<MemStorage>) -> Arc<MemStorage> {
    Arc::new(MemStorage::from_image(storage.image()))
}

/// Looking and safe repairs say that something is wrong, and change nothing else.
fn refused_without_yes(storage: &Arc<MemStorage>) -> Report {
    let before = but_for_the_mark(storage);
    for repair in [Repair::Safe, Repair::No] {
        for force in [false, true] {
            let report = check(storage.clone(), &Options { repair, force, ..Options::default() }).unwrap();
            assert_eq!(report.exit_code(), 4, "{repair:?}: {report}");
        }
    }
    let report = check(storage.clone(), &Options { scrub: true, ..Options::default() }).unwrap();
    assert!(before == but_for_the_mark(storage), "something was written");
    report
}

/// After a repair all is there, and a second run finds nothing.
fn nothing_is_lost(storage: &Arc<MemStorage>, before: &Snapshot, about: &str) -> Report {
    let found = refused_without_yes(storage);
    let report = check(storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.exit_code()), (0, 1), "{about}: {found}\n{report}");
    let second = look_at(storage);
    assert!(second.is_clean(), "{about}: {report}\n{second}");
    let after = seen(storage);
    assert!(*before == after, "{about}: {}\n{report}", changes(before, &after));
    report
}

#[test]
fn lost_superblocks_lose_nothing() {
    let storage = sample(11, 1500);
    let (before, old) = (seen(&storage), superblock(&storage));
    lose_superblocks(&storage);
    let report = nothing_is_lost(&storage, &before, "with copies");
    assert_eq!(report.counts, [(P::SuperblocksLost, 1)], "{report}");
    let new = superblock(&storage);
    assert_eq!((new.uuid, new.hash_seed, new.size, new.root), (old.uuid, old.hash_seed, old.size, old.root));
    // Twice, and with another tree in between.
    storage.write_at(new.root.offset(), &[0; PAGE_SIZE]).unwrap();
    check(storage.clone(), &ALL).unwrap();
    lose_superblocks(&storage);
    nothing_is_lost(&storage, &before, "after another repair");
}

#[test]
fn lost_superblocks_and_their_copies_lose_the_seed_alone() {
    let storage = sample(12, 1500);
    let before = seen(&storage);
    forget_copies(&storage);
    let old = superblock(&storage);
    lose_superblocks(&storage);
    let report = nothing_is_lost(&storage, &before, "without copies");
    assert_eq!((report.count(P::SuperblocksLost), report.count(P::HashSeed)), (1, 1), "{report}");
    let new = superblock(&storage);
    assert!(new.image() == old.image() && new.hash_seed != old.hash_seed && new.log_size == old.log_size);
}

#[test]
fn what_is_left_of_a_superblock_is_used() {
    let storage = sample(13, 600);
    let before = seen(&storage);
    forget_copies(&storage);
    let old = superblock(&storage);
    for (at, byte) in SUPERBLOCK_OFFSETS.into_iter().zip([3, 140]) {
        storage.write_at(at + byte, b"rot").unwrap();
    }
    let report = nothing_is_lost(&storage, &before, "a few bytes are wrong");
    assert_eq!(report.counts, [(P::SuperblocksLost, 1)], "{report}");
    assert_eq!(superblock(&storage).hash_seed, old.hash_seed);
}

/// Whatever the log says counts, as if the image had been opened.
#[test]
fn without_superblocks_the_log_is_replayed() {
    for seed in 0..6 {
        let storage = Arc::new(MemStorage::new(SIZE));
        let mut world = World::new(storage.clone(), SIZE, 20 + seed);
        (0..300 + seed * 200).for_each(|_| world.step());
        if seed % 2 == 0 {
            world.fs.tree().checkpoint().unwrap();
            (0..50).for_each(|_| world.step());
        }
        world.fs.sync().unwrap();
        drop(world);
        let before = seen(&storage);
        for copies in [true, false] {
            let storage = copy_of(&storage);
            if !copies {
                forget_copies(&storage);
            }
            lose_superblocks(&storage);
            nothing_is_lost(&storage, &before, &format!("seed {seed}, copies: {copies}"));
        }
    }
}

#[test]
fn everything_in_front_of_the_tree_can_be_lost() {
    let storage = sample(14, 1200);
    let (before, s) = (seen(&storage), superblock(&storage));
    let until = s.bitmap_page(0).offset() as usize + PAGE_SIZE;
    for root in [false, true] {
        let storage = copy_of(&storage);
        storage.write_at(0, &vec![0; until + if root { PAGE_SIZE } else { 0 }]).unwrap();
        nothing_is_lost(&storage, &before, &format!("root: {root}"));
    }
}

#[test]
fn many_names_get_new_places() {
    let storage = Arc::new(MemStorage::new(SIZE));
    Fs::format(storage.clone(), &format_options(SIZE), &ME).unwrap();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    for i in 0..700 {
        let ino = fs.create(ROOT, format!("{i}").as_bytes(), New::File, 0o644, 0, &ME).unwrap().ino;
        fs.release(ino, 1).unwrap();
    }
    fs.close().unwrap();
    let before = seen(&storage);
    forget_copies(&storage);
    lose_superblocks(&storage);
    nothing_is_lost(&storage, &before, "700 names");
}

#[test]
fn an_older_filesystem_on_the_same_disk_is_not_taken_for_the_newer_one() {
    let storage = sample(15, 800);
    let of_new = crate::tree::FormatOptions { uuid: *b"another identity", ..format_options(SIZE) };
    Fs::format(storage.clone(), &of_new, &ME).unwrap();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    fs.create(ROOT, b"new", New::File, 0o644, 0, &ME).unwrap();
    fs.close().unwrap();
    let before = seen(&storage);
    lose_superblocks(&storage);
    nothing_is_lost(&storage, &before, "over an older one");
}

#[test]
fn what_is_no_image_is_refused() {
    let mut noise = vec![0; 2 << 20];
    for fill in [false, true] {
        if fill {
            Rng::new(1).fill(&mut noise);
        }
        let storage = Arc::new(MemStorage::from_image(crate::storage::Image::from_bytes(&noise)));
        for repair in [Repair::No, Repair::Safe, Repair::All] {
            let result = check(storage.clone(), &Options { repair, ..Options::default() });
            assert!(result.is_err());
        }
        assert!(storage.image().to_vec().unwrap() == noise);
    }
    let nothing = Arc::new(MemStorage::new(0));
    assert!(check(nothing, &ALL).is_err());
    // A version of its own is no damage.
    let storage = known().storage;
    for at in SUPERBLOCK_OFFSETS {
        let mut sector = [0; 512];
        storage.read_at(at, &mut sector).unwrap();
        sector[11] += 1;
        let crc = crc32fast::hash(&sector[..508]);
        sector[508..].copy_from_slice(&crc.to_be_bytes());
        storage.write_at(at, &sector).unwrap();
    }
    assert!(check(storage, &ALL).is_err());
}

#[test]
fn a_file_that_was_cut_keeps_what_is_in_front_of_the_cut() {
    let base = sample(16, 1500);
    let (model, s) = (model(&base), superblock(&base));
    let used = 12 << 20;
    let mut rng = Rng::new(3);
    for i in 0..12 {
        let storage = copy_of(&base);
        let len = match i {
            0 => 5000,
            1 => LOG_OFFSET + 1000,
            2 => s.data_offset(),
            3 => s.data_offset() + 3 * PAGE_SIZE as u64 + 5,
            _ => s.data_offset() + rng.below(used),
        };
        storage.set_len(len).unwrap();
        let lost_too = i % 3 == 2;
        if lost_too {
            lose_superblocks_of_short(&storage, len);
        }
        let about = format!("{len} bytes, superblocks lost: {lost_too}");
        if check(storage.clone(), &Options::default()).is_err() {
            assert!(lost_too && len <= s.data_offset(), "{about}");
            continue;
        }
        let found = refused_without_yes(&storage);
        assert_eq!(found.count(P::FileShort), 1, "{about}: {found}");
        let report = check(storage.clone(), &ALL).unwrap_or_else(|e| panic!("{about}: {e}"));
        assert_eq!(report.left, 0, "{about}: {report}");
        assert_eq!(storage.len().unwrap(), SIZE);
        let second = look_at(&storage);
        assert!(second.is_clean(), "{about}: {report}\n{second}");
        compare(&model, &storage, &report, &about);
    }
}

fn lose_superblocks_of_short(storage: &Arc<MemStorage>, len: u64) {
    storage.write_at(0, &vec![0; LOG_OFFSET.min(len) as usize]).unwrap();
}
