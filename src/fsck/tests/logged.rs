//! Contents in a log of which records are lost: they do not take the place of what lies in their blocks by now.

use super::ProblemKind as P;
use super::pages::superblock;
use super::support::*;
use super::*;
use crate::fs::{Fallocate, Fs, New, ROOT};
use crate::page::BLOCK_SIZE;
use crate::page::superblock::LOG_OFFSET;
use crate::storage::MemStorage;
use crate::tree::FormatOptions;

const ALL: Options<'static> = Options { repair: Repair::All, scrub: true, force: true, progress: None };

/// A block that says what it is.
fn block(n: u32) -> Vec<u8> {
    format!("the contents of block {n:9};").into_bytes().repeat(BLOCK_SIZE)[..BLOCK_SIZE].to_vec()
}

/// The bytes of a part of the image.
fn bytes(storage: &MemStorage, from: u64, to: u64) -> Vec<u8> {
    let mut bytes = vec![0; (to - from) as usize];
    storage.read_at(from, &mut bytes).unwrap();
    bytes
}

/// Where a block lies in a part of the image.
fn find(storage: &MemStorage, from: u64, to: u64, n: u32) -> u64 {
    let (bytes, block) = (bytes(storage, from, to), block(n));
    from + bytes.windows(BLOCK_SIZE).position(|w| w == block).expect("it is nowhere") as u64
}

/// A block is logged, given up, and used for another file; then the record that gave it up is damaged. Everything else has gone home.
#[test]
fn logged_contents_do_not_overwrite_what_came_after_lost_records() {
    const SIZE: u64 = 24 << 20;
    let storage = Arc::new(MemStorage::new(SIZE));
    let format = FormatOptions { log_size: Some(8 << 20), ..format_options(SIZE) };
    Fs::format(storage.clone(), &format, &ME).unwrap();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    let file = |name: &[u8]| fs.create(ROOT, name, New::File, 0o644, 0, &ME).unwrap().ino;
    let (first, second, ballast) = (file(b"first"), file(b"second"), file(b"ballast"));
    let len = (fs.usage().available - 80) * BLOCK_SIZE as u64;
    fs.fallocate(ballast, 0, len, Fallocate::Allocate, &ME).unwrap();
    let write = |ino, n| {
        fs.write(ino, 0, &block(n), &ME).unwrap();
        fs.sync().unwrap();
    };
    write(first, 1);
    let data = superblock(&storage).data_offset();
    let at = find(&storage, data, SIZE, 1);
    write(first, 2);
    let again = (3..1000).find(|n| {
        write(second, *n);
        bytes(&storage, at, at + BLOCK_SIZE as u64) == block(*n)
    });
    let n = again.expect("the block is not used again");
    let before = bytes(&storage, 0, data);
    fs.close().unwrap();

    // As a power cut leaves it after the last page has gone home, and before the superblock says so.
    storage.write_at(0, &before).unwrap();
    let given_up = find(&storage, LOG_OFFSET, data, 2);
    assert!(find(&storage, LOG_OFFSET, data, 1) < given_up);
    storage.write_at(given_up, &[0xff; 64]).unwrap();

    let scrub = Options { scrub: true, ..Options::default() };
    let report = check(storage.clone(), &scrub).unwrap();
    assert_eq!((report.count(P::Log), report.count(P::Data)), (1, 0), "{report}");
    let report = check(storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(P::Data)), (0, 0), "{report}");
    let fs = Fs::open(storage, &options()).unwrap();
    assert!(fs.read(second, 0, BLOCK_SIZE).unwrap() == block(n), "{report}");
    assert!(fs.read(first, 0, BLOCK_SIZE).unwrap() == block(2), "{report}");
    fs.close().unwrap();
}
