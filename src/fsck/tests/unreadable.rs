//! Sectors that the host cannot read: they cost what lies in them, and no more.

use super::ProblemKind as P;
use super::pages::with_a_log;
use super::salvage::forget_copies;
use super::snapshot::{Snapshot, difference as changes, snapshot};
use super::support::*;
use super::*;
use crate::fs::{Fs, FsError};
use crate::page::format::*;
use crate::page::superblock::{DoublewriteHeader, LOG_OFFSET, SUPERBLOCK_OFFSETS, Superblock};
use crate::page::{PAGE_SIZE, PageBytes, PageId};
use crate::storage::MemStorage;
use std::sync::atomic::Ordering;

const ALL: Options<'static> = Options { repair: Repair::All, scrub: true, force: true, progress: None };

fn superblock(storage: &Arc<MemStorage>) -> Superblock {
    crate::pool::read_superblock(&**storage).unwrap()
}

fn copy_of(storage: &Arc<MemStorage>) -> Arc<MemStorage> {
    Arc::new(MemStorage::from_image(storage.image()))
}

fn seen(storage: &Arc<MemStorage>) -> Snapshot {
    snapshot(&Fs::open(copy_of(storage), &options()).unwrap(), None).unwrap()
}

/// A repair finds damage and repairs it all; a second run finds nothing.
fn mended(sick: &Arc<Disk>, about: &str) -> Report {
    let found = check(sick.clone(), &Options::default()).unwrap_or_else(|e| panic!("{about}: {e}"));
    assert_eq!(found.exit_code(), 4, "{about}: {found}");
    let report = check(sick.clone(), &ALL).unwrap_or_else(|e| panic!("{about}: {e}"));
    assert_eq!(report.exit_code(), 1, "{about}: {found}\n{report}");
    let second = check(sick.clone(), &Options { scrub: true, ..Options::default() }).unwrap();
    assert!(second.is_clean(), "{about}: {report}\n{second}");
    Fs::open(sick.clone(), &options()).unwrap().close().unwrap();
    report
}

#[test]
fn an_inner_page_that_cannot_be_read_loses_nothing() {
    let storage = sample(3, 3000);
    let before = seen(&storage);
    let root = superblock(&storage).root;
    let report = mended(&disk(&storage, &[root.offset()]), "root");
    let after = seen(&storage);
    assert!(before == after, "{}\n{report}", changes(&before, &after));
}

#[test]
fn a_superblock_that_cannot_be_read_is_one_of_two() {
    let base = known().storage;
    for at in SUPERBLOCK_OFFSETS {
        let storage = copy_of(&base);
        Fs::open(disk(&storage, &[at]), &options()).unwrap().close().unwrap();
        let storage = copy_of(&base);
        let sick = disk(&storage, &[at]);
        let report = check(sick.clone(), &Options::default()).unwrap();
        assert_eq!(report.counts, [(P::Superblock, 1)], "{report}");
        let safe = Options { repair: Repair::Safe, force: true, ..Options::default() };
        assert_eq!(check(sick.clone(), &safe).unwrap().exit_code(), 1);
        assert!(sick.bad.lock().is_empty() && look_at(&storage).is_clean());
    }
    let sick = disk(&base, &SUPERBLOCK_OFFSETS);
    assert!(matches!(Fs::open(sick, &options()).map(drop), Err(FsError::Engine(crate::Error::Io { .. }))));
}

/// Opening refuses an image whose log it cannot read, and changes nothing: the error may pass.
#[test]
fn a_log_that_cannot_be_read_is_an_error_when_opening_and_damage_to_the_checker() {
    let (base, _) = with_a_log();
    let (s, before) = (superblock(&base), seen(&base));
    let places = [
        ("the log's first sector", LOG_OFFSET + s.checkpoint.0 % s.log_size / SECTOR * SECTOR, false),
        ("the log further on", LOG_OFFSET + (s.checkpoint.0 + 20_000) % s.log_size / SECTOR * SECTOR, false),
        ("a doublewrite header", s.doublewrite_offset(0), true),
    ];
    for (about, at, nothing_lost) in places {
        let storage = copy_of(&base);
        let sick = disk(&storage, &[at]);
        let opened = Fs::open(sick.clone(), &options()).map(drop);
        assert!(matches!(opened, Err(FsError::Engine(crate::Error::Io { .. }))), "{about}: {opened:?}");
        let now = seen(&storage);
        assert!(before == now, "{about}: {}", changes(&before, &now));
        let report = mended(&sick, about);
        if nothing_lost {
            let after = seen(&storage);
            assert!(before == after, "{about}: {}\n{report}", changes(&before, &after));
        }
    }
}

/// All records in front of a sector that cannot be read count.
#[test]
fn an_unreadable_sector_of_the_log_loses_what_comes_behind_it() {
    let (storage, _) = with_a_log();
    let s = superblock(&storage);
    let whole = look_at(&storage).inodes;
    let at = LOG_OFFSET + (s.checkpoint.0 + 20_000) % s.log_size / SECTOR * SECTOR;
    let none = disk(&copy_of(&storage), &[LOG_OFFSET + s.checkpoint.0 % s.log_size / SECTOR * SECTOR]);
    let without = check(none, &Options::default()).unwrap().inodes;
    let report = check(disk(&storage, &[at]), &Options::default()).unwrap();
    assert!(without < report.inodes && report.inodes < whole, "{without}, {}, {whole}", report.inodes);
}

/// Without superblocks all of the log is searched.
#[test]
fn a_search_of_the_log_passes_over_what_cannot_be_read() {
    let storage = sample(17, 600);
    let (before, s) = (seen(&storage), superblock(&storage));
    // Nothing behind the end of the log counts.
    let at = LOG_OFFSET + (s.checkpoint.0 + 3000) % s.log_size / SECTOR * SECTOR;
    for copies in [true, false] {
        let storage = copy_of(&storage);
        if !copies {
            forget_copies(&storage);
        }
        storage.write_at(0, &[0; LOG_OFFSET as usize]).unwrap();
        let report = check(disk(&storage, &[at]), &ALL).unwrap();
        assert_eq!(report.left, 0, "{report}");
        let after = seen(&storage);
        assert!(before == after, "{}\n{report}", changes(&before, &after));
    }
}

/// A disk may be unable to read what it was writing when power failed. That is what copies are for.
#[test]
fn a_page_that_cannot_be_read_comes_back_from_its_copy() {
    let (storage, _) = with_a_log();
    let (s, before) = (superblock(&storage), seen(&storage));
    // The root as the log leaves it, as the flusher would have copied it.
    let replayed = copy_of(&storage);
    Fs::open(replayed.clone(), &options()).unwrap().close().unwrap();
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    replayed.read_at(s.root.offset(), &mut page[..]).unwrap();
    let lsn = page_lsn(&page);
    assert!(lsn > s.checkpoint);
    let at = s.doublewrite_offset(0);
    storage.write_at(at + PAGE_SIZE as u64, &page[..]).unwrap();
    let header = DoublewriteHeader { sequence: 99, floor: s.floor, pages: vec![(s.root, lsn)] };
    header.encode(&mut page, PageId(at / PAGE_SIZE as u64), s.image());
    seal(&mut page);
    storage.write_at(at, &page[..]).unwrap();
    let sick = disk(&storage, &[s.root.offset()]);
    // In memory as well as for good.
    let report = check(sick.clone(), &Options { scrub: true, ..Options::default() }).unwrap();
    assert!(report.is_clean() && report.replay.as_ref().is_some_and(|r| r.repaired == 1), "{report}");
    Fs::open(sick.clone(), &options()).unwrap().close().unwrap();
    let after = seen(&storage);
    assert!(before == after, "{}", changes(&before, &after));
}

/// What was never written holds no pages.
#[test]
fn a_search_for_leaves_reads_no_holes() {
    let k = known();
    let s = superblock(&k.storage);
    k.storage.write_at(s.root.offset() + 3000, b"rot").unwrap();
    k.storage.write_at(s.bitmap_page(0).offset() + 700, b"rot").unwrap();
    let counted = disk(&k.storage, &[]);
    let report = check(counted.clone(), &Options::default()).unwrap();
    assert_eq!(report.count(P::KeysLost), 1, "{report}");
    let read = counted.read.load(Ordering::Relaxed);
    assert!(read < SIZE / 4, "{read} bytes of {SIZE} were read");
}
