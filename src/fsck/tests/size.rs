//! Superblocks that say a size which the image does not have.

use super::support::*;
use super::*;
use crate::fs::{Fs, New, ROOT};
use crate::page::superblock::{SUPERBLOCK_OFFSETS, SUPERBLOCK_SIZE, Superblock};
use crate::storage::MemStorage;

/// More than any file has.
pub const HUGE: u64 = 1 << 50;

/// The superblocks: which of them counts, and both.
pub fn superblocks(storage: &Arc<MemStorage>) -> (usize, [Superblock; 2]) {
    let both = SUPERBLOCK_OFFSETS.map(|at| {
        let mut bytes = [0; SUPERBLOCK_SIZE];
        storage.read_at(at, &mut bytes).unwrap();
        Superblock::decode(&bytes).unwrap()
    });
    ((both[1].sequence > both[0].sequence) as usize, both)
}

/// Sets the sizes that the superblock that counts and the other one say; all else stays.
pub fn forge_sizes(storage: &Arc<MemStorage>, newer: Option<u64>, older: Option<u64>) {
    let (counts, both) = superblocks(storage);
    for (which, size) in [(counts, newer), (1 - counts, older)] {
        if let Some(size) = size {
            let forged = Superblock { size, ..both[which].clone() };
            storage.write_at(SUPERBLOCK_OFFSETS[which], &forged.encode()).unwrap();
        }
    }
}

/// Repairs it; nothing of the model is missing, a second run finds nothing, and the superblock says this size.
fn mended(storage: &Arc<MemStorage>, before: &Model, size: u64) -> Report {
    let all = Options { repair: Repair::All, scrub: true, force: true, progress: None };
    let report = check(storage.clone(), &all).unwrap();
    assert_eq!(report.left, 0, "{report}");
    let second = check(storage.clone(), &Options { scrub: true, ..Options::default() }).unwrap();
    assert!(second.is_clean(), "{report}\n{second}");
    let (lost, _) = difference(before, storage);
    assert!(lost.is_empty(), "{lost:?}\n{report}");
    let (counts, both) = superblocks(storage);
    assert_eq!(both[counts].size, size, "{report}");
    report
}

/// An image whose log is to be replayed, besides the one that was closed.
pub fn samples() -> [Arc<MemStorage>; 2] {
    let crashed = sample(400, 120);
    let fs = Fs::open(crashed.clone(), &options()).unwrap();
    for n in 0..20 {
        let name = format!("in the log {n}");
        let ino = fs.create(ROOT, name.as_bytes(), New::File, 0o644, 0, &ME).unwrap().ino;
        fs.write(ino, 0, &vec![n; 9000], &ME).unwrap();
        fs.release(ino, 1).unwrap();
    }
    fs.sync().unwrap();
    drop(fs);
    [sample(400, 120), crashed]
}

#[test]
fn a_forged_size_does_not_keep_an_image_from_being_repaired() {
    for storage in samples() {
        let (before, size) = (model(&storage), superblocks(&storage).1[0].size);
        forge_sizes(&storage, Some(HUGE), None);
        let looked = look_at(&storage);
        assert_eq!(looked.counts, [(ProblemKind::ImageSize, 1)], "{looked}");
        // That is not for the repair at boot.
        let bytes = but_for_the_mark(&storage);
        let safe = Options { repair: Repair::Safe, force: true, ..Options::default() };
        assert!(check(storage.clone(), &safe).unwrap().left > 0);
        assert!(but_for_the_mark(&storage) == bytes);
        let report = mended(&storage, &before, size);
        assert_eq!(report.count(ProblemKind::FileShort), 0, "{report}");
    }
}

#[test]
fn a_size_that_only_the_first_bitmap_page_still_knows_is_found() {
    for storage in samples() {
        let (before, size) = (model(&storage), superblocks(&storage).1[0].size);
        forge_sizes(&storage, Some(HUGE), Some(HUGE / 2));
        let report = mended(&storage, &before, size);
        assert_eq!(report.count(ProblemKind::ImageSize), 1, "{report}");
    }
}

#[test]
fn an_image_that_says_more_than_a_file_can_have_keeps_what_the_file_has() {
    for storage in samples() {
        let before = model(&storage);
        // No copy says the old size.
        let (_, both) = superblocks(&storage);
        super::salvage::forget_copies(&storage);
        forge_sizes(&storage, Some(HUGE), Some(HUGE));
        let report = mended(&storage, &before, both[0].size);
        assert_eq!(report.count(ProblemKind::FileShort), 1, "{report}");
        assert!(report.to_string().contains("the image shrinks"), "{report}");
    }
}

#[test]
fn a_file_that_was_cut_and_cannot_grow_again_keeps_the_rest() {
    let storage = sample(400, 120);
    let before = model(&storage);
    let (_, both) = superblocks(&storage);
    // What is left ends in the middle of what is in use, and within a page.
    let cut = both[0].data_offset() + (3 << 20) + 5000;
    storage.set_len(cut).unwrap();
    forge_sizes(&storage, Some(HUGE), Some(HUGE));
    let all = Options { repair: Repair::All, scrub: true, force: true, progress: None };
    let report = check(storage.clone(), &all).unwrap();
    assert_eq!(report.left, 0, "{report}");
    let second = check(storage.clone(), &Options { scrub: true, ..Options::default() }).unwrap();
    assert!(second.is_clean(), "{report}\n{second}");
    compare(&before, &storage, &report, "cut");
    let size = superblocks(&storage).1[0].size;
    assert!(size <= cut && size + 16_384 > cut, "{size}");
}

#[test]
fn an_image_that_grew_keeps_its_size_when_its_file_was_cut() {
    let storage = sample(400, 120);
    let (before, old) = (model(&storage), superblocks(&storage).1[0].size);
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    fs.tree().grow(2 * old).unwrap();
    fs.close().unwrap();
    let (_, both) = superblocks(&storage);
    storage.set_len(old + (1 << 20)).unwrap();
    assert!(both.iter().any(|s| s.size == 2 * old), "{both:?}");
    // As if it had been cut right after it grew.
    forge_sizes(&storage, None, Some(old));
    let report = mended(&storage, &before, 2 * old);
    assert_eq!(report.counts, [(ProblemKind::FileShort, 1)], "{report}");
}

#[test]
fn a_size_that_leaves_out_what_is_in_use_is_not_believed() {
    for storage in samples() {
        let (before, both) = (model(&storage), superblocks(&storage).1);
        forge_sizes(&storage, Some(both[0].data_offset() + (2 << 20)), None);
        let report = mended(&storage, &before, both[0].size);
        assert_eq!(report.count(ProblemKind::ImageSize), 1, "{report}");
    }
}

#[test]
fn the_older_superblock_may_not_say_more_than_the_newer_one() {
    let storage = sample(50, 10);
    let (before, size) = (model(&storage), superblocks(&storage).1[0].size);
    forge_sizes(&storage, None, Some(HUGE));
    let report = mended(&storage, &before, size);
    assert_eq!(report.counts, [(ProblemKind::SuperblockTwin, 1)], "{report}");
}

/// The file is as long as it says, but sparse: a bitmap for each group that it claims would fill the host's disk.
#[test]
fn groups_in_which_nothing_was_written_are_not_believed() {
    const SAID: u64 = 1 << 41;
    let storage = sample(401, 120);
    let before = model(&storage);
    storage.set_len(SAID).unwrap();
    let (_, both) = superblocks(&storage);
    for (at, superblock) in SUPERBLOCK_OFFSETS.into_iter().zip(both) {
        let mut forged = Superblock { size: SAID, ..superblock };
        forged.groups = forged.group_count();
        storage.write_at(at, &forged.encode()).unwrap();
    }
    let held = storage.image().allocated();
    let safe = Options { repair: Repair::Safe, force: true, ..Options::default() };
    let report = check(storage.clone(), &safe).unwrap();
    assert!(report.left == 0 && report.count(ProblemKind::Bitmap) > 1000, "{report}");
    assert!(
        storage.image().allocated() < held + (2 << 20),
        "{} bytes were {held}",
        storage.image().allocated()
    );
    assert!(check(storage.clone(), &Options::default()).unwrap().is_clean());
    let (counts, both) = superblocks(&storage);
    assert_eq!((both[counts].groups, both[counts].size), (1, SAID));
    assert!(difference(&before, &storage).0.is_empty());
}
