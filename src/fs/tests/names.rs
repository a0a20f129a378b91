//! Names, hashes and cookies.

use super::*;
use crate::fs::dir::Found;

#[test]
fn every_inode_gets_a_number_of_its_own_when_birth_groups_run_full() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..200 {
        let ino = create(&fs, ROOT, format!("f{i}").as_bytes(), New::File, 0o644, &ME).unwrap();
        assert!(seen.insert(ino), "an inode number is given twice");
        if i % 2 == 0 {
            fs.unlink(ROOT, format!("f{i}").as_bytes(), &ME).unwrap();
        }
    }
    fs.close().unwrap();
    let fs = open(&storage);
    for i in 200..300 {
        let ino = create(&fs, ROOT, format!("f{i}").as_bytes(), New::File, 0o644, &ME).unwrap();
        assert!(seen.insert(ino), "an inode number is given twice after a remount");
    }
    for i in (1..200).step_by(2) {
        fs.lookup(ROOT, format!("f{i}").as_bytes()).unwrap();
    }
}

#[test]
fn names_of_the_same_hash_live_together() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    // Entries are put directly, under the hash of another name: as if names collided.
    let hash = fs.hash(b"wanted");
    let mut batch = Batch::new();
    for slot in [0u64, 1, 3, 255] {
        let name = format!("other{slot}").into_bytes();
        let entry = format::Entry { ino: Ino(77), kind: Kind::File, name };
        batch.put(&format::entry_key(0, Cookie(hash << 8 | slot)), &entry.encode());
    }
    fs.tree().apply(&batch).unwrap();
    let Found::Free(Some(cookie)) = fs.find_entry(ROOT, 0, b"wanted").unwrap() else { panic!("no place") };
    assert_eq!(cookie, Cookie(hash << 8 | 2), "the lowest free slot");
    create(&fs, ROOT, b"wanted", New::File, 0o644, &ME).unwrap();
    fs.lookup(ROOT, b"wanted").unwrap();
    for slot in 0..256u64 {
        let entry = format::Entry { ino: Ino(77), kind: Kind::File, name: format!("o{slot}").into_bytes() };
        let mut batch = Batch::new();
        batch.put(&format::entry_key(0, Cookie(fs.hash(b"none") << 8 | slot)), &entry.encode());
        fs.tree().apply(&batch).unwrap();
    }
    let full = create(&fs, ROOT, b"none", New::File, 0o644, &ME);
    assert!(matches!(full, Err(FsError::NoSpace)), "256 collisions: {full:?}");
}

#[test]
fn bad_names_are_refused() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert!(matches!(create(&fs, ROOT, name, New::File, 0o644, &ME), Err(FsError::Invalid)));
    }
    assert!(matches!(create(&fs, ROOT, &[b'n'; 256], New::File, 0o644, &ME), Err(FsError::NameTooLong)));
    create(&fs, ROOT, &[0xff; 255], New::File, 0o644, &ME).unwrap();
    fs.lookup(ROOT, &[0xff; 255]).unwrap();
}
