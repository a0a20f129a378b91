//! Verifying everything in a filesystem that is in use: what is damaged is named, and all of the rest is verified.

use std::sync::atomic::Ordering;

use super::*;
use crate::storage::Storage;
use crate::tree::Batch;

const MIB: u64 = 1 << 20;

/// Blocks of which each says which one it is.
fn contents(seed: u64, blocks: u64) -> Vec<u8> {
    (0..blocks)
        .flat_map(|block| (0..512).flat_map(move |i| (seed << 32 | block << 10 | i).to_le_bytes()))
        .collect()
}

/// Flips a byte of the image where these contents' block lies.
fn damage(storage: &MemStorage, contents: &[u8], block: u64) {
    let bytes = storage.image().to_vec().unwrap();
    let sought = &contents[(block * 4096) as usize..][..4096];
    let at = bytes.chunks(4096).rposition(|b| b == sought).unwrap() * 4096 + 100;
    storage.write_at(at as u64, &[bytes[at] ^ 1]).unwrap();
}

fn scrub(fs: &Fs) -> Scrub {
    let scrub = Scrub { run: 1, ..Scrub::default() };
    fs.scrub(1 << 40, &scrub);
    assert_eq!(scrub.state(), "finished");
    scrub
}

#[test]
fn bad_blocks_are_named_and_the_others_verified() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let dir = create(&fs, ROOT, b"dir", New::Directory, 0o700, &ME).unwrap();
    let file = create(&fs, dir, b"born here", New::File, 0o600, &ME).unwrap();
    let other = create(&fs, ROOT, b"other", New::File, 0o600, &ME).unwrap();
    let (bytes, beside) = (contents(1, 1000), contents(2, 10));
    fs.write(file, 0, &bytes, &ME).unwrap();
    fs.write(other, 0, &beside[..40_000], &ME).unwrap();
    // The name is looked for where the file is, not where it was born.
    let elsewhere = create(&fs, ROOT, b"elsewhere", New::Directory, 0o700, &ME).unwrap();
    fs.rename(dir, b"born here", elsewhere, b"file", RenameMode::Replace, &ME).unwrap();
    fs.close().unwrap();
    let whole = scrub(&open(&storage));
    assert_eq!(whole.bytes.load(Ordering::Relaxed), 4_096_000 + 40_000);
    assert_eq!(whole.damaged.load(Ordering::Relaxed), 0);
    // Both sides of the border of a MiB, and the last block of a file, of which not all is in use.
    for block in [3, 255, 256, 999] {
        damage(&storage, &bytes, block);
    }
    let mut last = beside[..40_000].to_vec();
    last.resize(40_960, 0);
    damage(&storage, &last, 9);
    let found = scrub(&open(&storage));
    let listed: Vec<_> =
        found.findings.lock().iter().map(|f| (f.path.clone(), f.ino, f.range.unwrap())).collect();
    let named = |path: &str, ino, from, to| (path.to_owned(), Some(ino), (from, to));
    let mut expected = vec![
        named("/elsewhere/file", file, 3 * 4096, 4 * 4096),
        named("/elsewhere/file", file, MIB - 4096, MIB + 4096),
        named("/elsewhere/file", file, 999 * 4096, 1000 * 4096),
        named("/other", other, 9 * 4096, 40_000),
    ];
    expected.sort_by_key(|f| (f.1.map(Ino::group), f.1, f.2));
    assert_eq!(listed, expected);
    assert!(found.findings.lock().iter().all(|f| f.reason.contains("checksum")), "{found:?}");
    assert_eq!(found.damaged.load(Ordering::Relaxed), 4);
    let bad = 4 * 4096 + (40_000 - 9 * 4096);
    assert_eq!(found.bytes.load(Ordering::Relaxed), 4_096_000 + 40_000 - bad);
}

#[test]
fn lost_contents_are_named_once() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let file = create(&fs, ROOT, b"file", New::File, 0o600, &ME).unwrap();
    let bytes = contents(1, 20);
    // Contents, lost contents across a border, and contents again.
    for at in [0, 3 * MIB] {
        fs.write(file, at, &bytes, &ME).unwrap();
    }
    let (from, to) = (MIB / 2, 2 * MIB + 8192);
    let mut batch = Batch::new();
    batch.put(&format::extent_key(file, to), &format::Extent::Lost { len: to - from }.encode());
    fs.tree().apply(&batch).unwrap();
    let found = scrub(&fs);
    let ranges: Vec<_> = found.findings.lock().iter().map(|f| (f.path.clone(), f.range)).collect();
    assert_eq!(ranges, [("/file".to_owned(), Some((from, to)))]);
    assert_eq!(found.findings.lock()[0].reason, "were lost");
    assert!(found.bytes.load(Ordering::Relaxed) >= 2 * bytes.len() as u64);
}

#[test]
fn of_much_damage_a_part_is_listed_and_all_counted() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let bytes = contents(1, 2 * Scrub::LISTED_MAX as u64 + 40);
    let file = create(&fs, ROOT, b"file", New::File, 0o600, &ME).unwrap();
    fs.write(file, 0, &bytes, &ME).unwrap();
    fs.close().unwrap();
    let image = storage.image().to_vec().unwrap();
    let first = image.chunks(4096).position(|b| b == &bytes[..4096]).unwrap() as u64;
    for block in (0..240).step_by(2) {
        storage.write_at((first + block) * 4096, b"DAMAGE").unwrap();
    }
    let found = scrub(&open(&storage));
    assert_eq!(found.damaged.load(Ordering::Relaxed), 120);
    assert_eq!(found.findings.lock().len(), Scrub::LISTED_MAX);
}

#[test]
fn values_of_attributes_are_verified_as_well() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let dir = create(&fs, ROOT, b"dir", New::Directory, 0o700, &ME).unwrap();
    let value = contents(3, 5);
    fs.set_xattr(dir, b"user.large", &value, SetXattr::Any, &ME).unwrap();
    fs.set_xattr(dir, b"user.small", b"in the record", SetXattr::Any, &ME).unwrap();
    fs.close().unwrap();
    let whole = scrub(&open(&storage));
    assert_eq!((whole.damaged.load(Ordering::Relaxed), whole.bytes.load(Ordering::Relaxed)), (0, 20_493));
    damage(&storage, &value, 4);
    let found = scrub(&open(&storage)).findings.lock().clone();
    assert_eq!((found.len(), &*found[0].path, found[0].ino), (1, "/dir", Some(dir)));
    assert!(found[0].reason.contains("extended attribute \"user.large\""), "{}", found[0].reason);
}
