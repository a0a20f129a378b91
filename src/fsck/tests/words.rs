//! What a report says to people: neither more nor less than what was found.

use super::support::*;
use super::*;
use crate::fs::{Fs, New, ROOT};
use crate::storage::MemStorage;

fn empty() -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(SIZE));
    Fs::format(storage.clone(), &format_options(SIZE), &ME).unwrap();
    storage
}

#[test]
fn numbers_and_sizes_are_those_of_people() {
    let said = look_at(&empty()).to_string();
    let expected =
        "1 inode (1 directory), 0 names, 0 extents, 0 attributes; 0 B of data, 16.0 KiB of tree in 1 level";
    assert!(said.contains(expected), "{said}");
    let known = known();
    let said = look_at(&known.storage).to_string();
    for part in [
        "6 inodes (3 directories), 6 names, 2 extents, 2 attributes; 28.0 KiB of data",
        "28.0 KiB of contents",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    forge_inode(&known.storage, known.dir, |inode| inode.links += 1);
    let said = look_at(&known.storage).to_string();
    assert!(said.contains("1 problem found"), "{said}");
}

#[test]
fn what_was_not_checked_is_not_called_clean() {
    let storage = known().storage;
    let safe = Options { repair: Repair::Safe, ..Options::default() };
    let report = check(storage.clone(), &safe).unwrap();
    assert_eq!((report.checked, report.exit_code(), report.inodes), (false, 0, 0));
    assert_eq!(report.to_string(), "closed in order, not checked; -f checks it all the same\n");
    assert_eq!(report.to_json()["checked"], false);
    let all = Options { repair: Repair::All, ..Options::default() };
    for options in [Options { force: true, ..safe }, Options { scrub: true, ..safe }, Options::default(), all]
    {
        let report = check(storage.clone(), &options).unwrap();
        assert_eq!((report.checked, report.exit_code(), report.inodes), (true, 0, 6), "{report}");
        assert_eq!(report.scrubbed_bytes > 0, options.scrub, "{report}");
        assert!(report.to_json()["checked"] == true && report.to_string().contains("clean, "));
    }
    // What is wrong with it is looked for, whether it was closed in order or not.
    forge_inode(&storage, ROOT, |inode| inode.links += 1);
    assert!(check(storage.clone(), &safe).unwrap().is_clean());
    let scrub = Options { scrub: true, ..safe };
    assert_eq!(check(storage.clone(), &scrub).unwrap().exit_code(), 1);
}

#[test]
fn an_image_that_was_not_closed_is_checked_at_boot() {
    let storage = empty();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    fs.create(ROOT, b"file", New::File, 0o644, 0, &ME).unwrap();
    fs.sync().unwrap();
    drop(fs);
    let safe = Options { repair: Repair::Safe, ..Options::default() };
    // Looking does not recover anything.
    let report = look_at(&storage);
    assert!(report.to_string().contains("log: would be replayed"), "{report}");
    assert_eq!(report.to_json()["replay"]["written"], false);
    let report = check(storage.clone(), &safe).unwrap();
    assert_eq!((report.checked, report.exit_code(), report.inodes), (true, 0, 2), "{report}");
    assert!(report.to_string().contains("log: recovered in"), "{report}");
    assert_eq!(report.to_json()["replay"]["written"], true);
    assert!(!check(storage, &safe).unwrap().checked);
}

/// Whether something is lost is known only if all is known that was in use.
#[test]
fn a_cut_file_says_what_it_cost() {
    let base = known().storage;
    let said = |len: u64| {
        let storage = Arc::new(MemStorage::from_image(base.image()));
        storage.set_len(len).unwrap();
        let report = look_at(&storage);
        assert_eq!(report.count(ProblemKind::FileShort), 1, "{report}");
        report.to_string()
    };
    let tail = said(SIZE - 1);
    let expected = format!("says that it has {SIZE} bytes, the file has only {}: it was cut", SIZE - 1);
    assert!(tail.contains(&expected) && tail.contains("nothing behind that was in use"), "{tail}");
    let superblock = crate::pool::read_superblock(&*base).unwrap();
    let contents = said(superblock.root.offset() + 16_384);
    assert!(contents.contains("some of what was behind that is in use, and lost"), "{contents}");
    let everything = said(superblock.root.offset());
    assert!(
        everything.contains("it was cut [file-short]") && everything.contains("all records"),
        "{everything}"
    );
}
