//! Contents that a repair has given up are an error when they are read, until they are written again.

use super::support::*;
use super::*;
use crate::fs::format::*;
use crate::fs::{Fallocate, Fs, FsError, SetAttributes};
use crate::storage::MemStorage;

const ALL: Options<'static> = Options { repair: Repair::All, scrub: true, force: true, progress: None };

/// An image whose file of three blocks has lost all but the first one, because the file that holds it was cut.
fn cut() -> Known {
    let k = known();
    let mut first = None;
    forge(&k.storage, |tree, _| {
        let (key, record) = records(tree, &extent_key(k.file, 0)[..9]).remove(0);
        let Some(AnyKey::Extent(_, end)) = AnyKey::parse(&key) else { panic!("no extent") };
        first = Extent::decode(k.file, end, &record).unwrap().run();
    });
    k.storage.set_len(first.unwrap().start.offset() + 4096).unwrap();
    let report = check(k.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(ProblemKind::Lost) > 0), (0, true), "{report}");
    let report = look_at(&k.storage);
    assert!(report.is_clean() && report.lost_ranges >= 2 && report.lost_bytes >= 12_000 - 4096, "{report}");
    assert!(report.to_string().contains("note: /dir/inner/other"), "{report}");
    k
}

fn is_lost(result: crate::fs::Result<Vec<u8>>) -> bool {
    matches!(result, Err(FsError::Contents(e) | FsError::Engine(e)) if e.is_corrupt())
}

fn open(storage: &Arc<MemStorage>) -> Fs {
    Fs::open(storage.clone(), &options()).unwrap()
}

#[test]
fn lost_contents_are_an_error_until_they_are_written_again() {
    let k = cut();
    let fs = open(&k.storage);
    assert_eq!(fs.read(k.file, 0, 4096).unwrap(), [7; 4096]);
    assert!(is_lost(fs.read(k.file, 0, 4097)) && is_lost(fs.read(k.file, 11_999, 1)));
    assert_eq!(fs.seek(k.file, 4096, true).unwrap(), Some(4096));
    assert_eq!(fs.seek(k.file, 0, false).unwrap(), Some(12_000));
    // Part of a block cannot be written: the rest of it is not known.
    assert!(is_lost(fs.write(k.file, 5000, &[1; 10], &ME).map(|_| Vec::new())));
    assert!(fs.copy_range(k.file, 4096, k.other, 0, 4096, &ME).is_err());
    fs.write(k.file, 4096, &[2; 4096], &ME).unwrap();
    assert_eq!(fs.read(k.file, 4096, 4096).unwrap(), [2; 4096]);
    assert!(is_lost(fs.read(k.file, 8192, 1)));
    // The last block up to the end of the file.
    fs.write(k.file, 8192, &[3; 12_000 - 8192], &ME).unwrap();
    assert_eq!(fs.read(k.file, 8192, 9999).unwrap(), [3; 12_000 - 8192]);
    assert!(is_lost(fs.read(k.other, 0, 1)));
    fs.close().unwrap();
    assert!(look_at(&k.storage).is_clean());
}

#[test]
fn lost_contents_can_be_cut_off_and_punched_out() {
    let k = cut();
    let fs = open(&k.storage);
    let size = |n| SetAttributes { size: Some(n), ..SetAttributes::default() };
    fs.set_attributes(k.file, &size(9000), &ME).unwrap();
    assert!(is_lost(fs.read(k.file, 8999, 1)));
    fs.fallocate(k.file, 4096, 4096, Fallocate::PunchHole, &ME).unwrap();
    assert_eq!(fs.read(k.file, 4096, 4096).unwrap(), [0; 4096]);
    assert!(is_lost(fs.read(k.file, 8192, 1)));
    fs.set_attributes(k.file, &size(8192), &ME).unwrap();
    fs.set_attributes(k.file, &size(12_000), &ME).unwrap();
    assert_eq!(fs.read(k.file, 4096, 12_000).unwrap(), [0; 12_000 - 4096]);
    fs.fallocate(k.other, 0, 4096, Fallocate::ZeroRange, &ME).unwrap();
    assert_eq!(fs.read(k.other, 0, 4096).unwrap(), [0; 4096]);
    fs.close().unwrap();
    let report = look_at(&k.storage);
    assert!(report.is_clean() && report.lost_ranges == 0, "{report}");
}

/// A count of blocks that is too high tells that extents are gone, also if nobody knows which.
#[test]
fn holes_of_a_file_with_missing_blocks_are_not_taken_for_zeros() {
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (key, record) = records(tree, &extent_key(k.file, 0)[..9]).remove(0);
        let Some(AnyKey::Extent(_, end)) = AnyKey::parse(&key) else { panic!("no extent") };
        let run = Extent::decode(k.file, end, &record).unwrap().run().unwrap();
        batch.delete(&key);
        batch.free(run);
    });
    let found = look_at(&k.storage);
    assert_eq!(found.counts, [(ProblemKind::Blocks, 1), (ProblemKind::Lost, 1)], "{found}");
    repaired(&k.storage, &found);
    check(k.storage.clone(), &ALL).unwrap();
    assert!(is_lost(open(&k.storage).read(k.file, 0, 1)));
}

#[test]
fn records_of_lost_contents_are_what_the_format_says() {
    let lost = Extent::Lost { len: 1 << 40 };
    let bytes = lost.encode();
    assert_eq!(bytes, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(Extent::decode(crate::fs::ROOT, 1 << 40, &bytes).unwrap(), lost);
    for (end, at, byte) in [((1 << 40) + 1, 0, 2), (1 << 39, 0, 2), (1 << 40, 5, 1), (1 << 40, 10, 0)] {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        assert!(Extent::decode(crate::fs::ROOT, end, &bytes).is_err());
    }
}
