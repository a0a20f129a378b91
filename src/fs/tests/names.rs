//! Names, hashes and cookies.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

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
    let Found::Free(Some(cookie)) = fs.find_entry(&fs.node(ROOT), 0, b"wanted").unwrap() else {
        panic!("no place")
    };
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
fn a_name_that_was_looked_for_in_vain_is_found_once_it_is_there() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let file = create(&fs, ROOT, b"file", New::File, 0o644, &ME).unwrap();
    let gives: [(&[u8], &dyn Fn()); 4] = [
        (b"created", &|| _ = create(&fs, ROOT, b"created", New::File, 0o644, &ME).unwrap()),
        (b"linked", &|| _ = fs.link(file, ROOT, b"linked", &ME).unwrap()),
        (b"moved", &|| fs.rename(ROOT, b"linked", ROOT, b"moved", RenameMode::NoReplace, &ME).unwrap()),
        (b"linked", &|| fs.rename(ROOT, b"moved", ROOT, b"linked", RenameMode::Replace, &ME).unwrap()),
    ];
    for (name, give) in gives {
        assert!(matches!(fs.lookup(ROOT, name), Err(FsError::NotFound)));
        give();
        let found = fs.lookup(ROOT, name);
        assert!(found.is_ok(), "{}: {found:?}", name.escape_ascii());
        assert!(matches!(create(&fs, ROOT, name, New::File, 0o644, &ME), Err(FsError::Exists)));
    }
    // Of two names with the same hash one is there: that the other was looked for says nothing of it.
    let node = fs.node(ROOT);
    fs.lookup(ROOT, b"none").unwrap_err();
    assert!(node.is_absent(fs.hash(b"none")));
    let mut batch = Batch::new();
    let cookie = Cookie(fs.hash(b"wanted") << 8);
    let entry = format::Entry { ino: file, kind: Kind::File, name: b"other".to_vec() };
    fs.put_entry(&node, 0, cookie, &entry, &mut batch);
    fs.tree().apply(&batch).unwrap();
    fs.lookup(ROOT, b"wanted").unwrap_err();
    assert!(!node.is_absent(fs.hash(b"wanted")));
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

/// Reads a directory from a cookie on, a piece at a time, until `count` names were seen; the cookie to go on with, if any.
fn read_some(
    fs: &Fs,
    dir: Ino,
    mut after: Cookie,
    count: usize,
    plus: bool,
    seen: &mut BTreeMap<Vec<u8>, Ino>,
) -> Option<Cookie> {
    let enough = seen.len().saturating_add(count);
    while seen.len() < enough {
        let before = after;
        let mut left = 700;
        let mut each = |cookie: Cookie, ino: Ino, name: &[u8]| {
            assert!(cookie > after, "cookies go backwards");
            after = cookie;
            assert!(seen.insert(name.to_vec(), ino).is_none(), "an entry is seen twice");
            left -= 1;
            left > 0
        };
        if plus {
            let mut taken = Vec::new();
            fs.read_dir_plus(dir, before.max(Cookie(2)), 300, |cookie, attributes, name| {
                taken.push(attributes.ino);
                each(cookie, attributes.ino, name);
                true
            })
            .unwrap();
            taken.into_iter().for_each(|ino| fs.release(ino, 1).unwrap());
        } else {
            fs.read_dir(dir, before.max(Cookie(2)), |cookie, ino, _, name| each(cookie, ino, name)).unwrap();
        }
        if after == before {
            return None;
        }
    }
    Some(after)
}

#[test]
fn a_listing_has_every_entry_once_while_others_change_the_directory() {
    const CHANGING: usize = 5_000;
    let stable_count: usize =
        std::env::var("BTFS_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let storage = image_with_log(512 << 20, 32 << 20);
    let options = Options { cache_size: 64 << 20, ..Options::default() };
    let open = || Fs::open(storage.clone(), &options).unwrap();
    let fs = open();
    let dir = create(&fs, ROOT, b"dir", New::Directory, 0o755, &ME).unwrap();
    let mut stable = BTreeMap::new();
    for i in 0..stable_count {
        let name = format!("stable{i}").into_bytes();
        stable.insert(name.clone(), create(&fs, dir, &name, New::File, 0o644, &ME).unwrap());
    }
    for i in 0..2 * CHANGING {
        create(&fs, dir, format!("changing{}.{}", i % 2, i / 2).as_bytes(), New::File, 0o644, &ME).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for who in 0..2u64 {
            let (fs, done) = (&fs, &done);
            scope.spawn(move || {
                let mut rng = crate::storage::Rng::new(who);
                while !done.load(Ordering::Relaxed) {
                    let mut name = || format!("changing{who}.{}", rng.index(2 * CHANGING)).into_bytes();
                    let (a, b) = (name(), name());
                    match rng.below(3) {
                        0 => drop(create(fs, dir, &a, New::File, 0o644, &ME)),
                        1 => drop(fs.unlink(dir, &a, &ME)),
                        _ => drop(fs.rename(dir, &a, dir, &b, RenameMode::Replace, &ME)),
                    }
                }
            });
        }
        for round in 0..4 {
            let mut seen = BTreeMap::new();
            assert!(read_some(&fs, dir, Cookie(0), usize::MAX, round % 2 == 1, &mut seen).is_none());
            seen.retain(|name, _| name.starts_with(b"stable"));
            assert_eq!(seen.len(), stable_count, "entries are missing");
            assert!(seen == stable);
        }
        done.store(true, Ordering::Relaxed);
    });
    let mut seen = BTreeMap::new();
    let after = read_some(&fs, dir, Cookie(0), stable_count / 2, false, &mut seen).unwrap();
    fs.close().unwrap();
    let fs = open();
    assert!(read_some(&fs, dir, after, usize::MAX, true, &mut seen).is_none());
    seen.retain(|name, _| name.starts_with(b"stable"));
    assert!(seen == stable, "cookies do not survive a remount");
}

/// It must not look like a name that does not exist.
#[test]
fn a_name_without_an_inode_is_damage() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = create(&fs, ROOT, b"f", New::File, 0o644, &ME).unwrap();
    let mut batch = crate::tree::Batch::new();
    batch.delete(&format::inode_key(ino));
    fs.tree().apply(&batch).unwrap();
    fs.close().unwrap();
    let fs = open(&storage);
    let is_damage = |result: Result<()>| matches!(result, Err(FsError::Engine(e)) if e.is_corrupt());
    assert!(is_damage(fs.lookup_attributes(ROOT, b"f").map(drop)));
    assert!(is_damage(fs.read_dir_plus(ROOT, Cookie(2), 10, |_, _, _| true)));
    assert!(is_damage(fs.rename(ROOT, b"f", ROOT, b"g", RenameMode::Replace, &ME)));
    assert!(is_damage(fs.unlink(ROOT, b"f", &ME)));
    assert!(matches!(fs.create(ROOT, b"f", New::File, 0o644, 0, &ME), Err(FsError::Exists)));
}

/// Who reads on behind such an entry would get it again and again.
#[test]
fn a_forged_entry_beyond_all_hashes_ends_a_listing_with_an_error() {
    for cookie in [u64::MAX, 1 << 63] {
        let fs = open(&image(64 << 20));
        create(&fs, ROOT, b"first", New::File, 0o644, &ME).unwrap();
        let entry = format::Entry { ino: Ino(2), kind: Kind::File, name: b"forged".to_vec() };
        let mut batch = Batch::new();
        batch.put(&format::entry_key(0, Cookie(cookie)), &entry.encode());
        fs.tree().apply(&batch).unwrap();
        let mut names = Vec::new();
        let listed = fs.read_dir(ROOT, Cookie(2), |_, _, _, name| {
            names.push(name.to_vec());
            names.len() < 10
        });
        assert!(matches!(listed, Err(FsError::Engine(e)) if e.is_corrupt()));
        assert_eq!(names, [b"first"]);
        assert!(fs.read_dir_plus(ROOT, Cookie(2), 10, |_, _, _| true).is_err());
    }
}
