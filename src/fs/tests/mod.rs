//! Tests of the filesystem without FUSE. Each is named after what a user would lose if it failed.

mod acl;
mod blocks;
mod copies;
mod cut;
mod deletions;
mod faults;
mod memory;
mod model;
mod names;
mod operations;
mod orphans;
mod reads;
mod scrub;
mod space;
mod two_threads;

use std::sync::Arc;

use super::extents::BLOCK;
use super::*;
use crate::storage::MemStorage;

pub(super) const ME: Caller = Caller::new(1000, 1000, Time { seconds: 1_700_000_000, nanos: 5 });

pub(super) fn options() -> Options {
    Options { cache_size: 4 << 20, background: false, ..Options::default() }
}

/// An empty filesystem in memory.
pub(super) fn image(size: u64) -> Arc<MemStorage> {
    image_with_log(size, 1 << 20)
}

pub(super) fn image_with_log(size: u64, log_size: u64) -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(size));
    let options = FormatOptions {
        size,
        log_size: Some(log_size),
        doublewrite_pages: Some(8),
        uuid: *b"0123456789abcdef",
        hash_seed: *b"fedcba9876543210",
        ..FormatOptions::default()
    };
    Fs::format(storage.clone(), &options, &ME).unwrap();
    storage
}

pub(super) fn open(storage: &Arc<MemStorage>) -> Fs {
    Fs::open(storage.clone(), &options()).unwrap()
}

/// With the threads that a mount has.
fn open_in_background(storage: &Arc<MemStorage>) -> Fs {
    Fs::open(storage.clone(), &Options { background: true, ..options() }).unwrap()
}

/// Closes it in order, or leaves it as a crash after a sync does.
fn end(fs: Fs, close: bool) {
    if close {
        fs.close().unwrap();
    } else {
        fs.sync().unwrap();
    }
}

/// Creates an inode that nobody holds.
pub(super) fn create(
    fs: &Fs,
    parent: Ino,
    name: &[u8],
    new: New<'_>,
    mode: u16,
    caller: &Caller,
) -> Result<Ino> {
    let ino = fs.create(parent, name, new, mode, 0, caller)?.ino;
    fs.release(ino, 1)?;
    Ok(ino)
}

fn file(fs: &Fs, name: &[u8]) -> Ino {
    create(fs, ROOT, name, New::File, 0o644, &ME).unwrap()
}

fn resize(fs: &Fs, ino: Ino, size: u64) {
    let change = SetAttributes { size: Some(size), ..SetAttributes::default() };
    fs.set_attributes(ino, &change, &ME).unwrap();
}

/// A file with so many extents of one block, and holes between them.
fn file_in_pieces(fs: &Fs, name: &[u8], pieces: u64) -> Ino {
    let ino = file(fs, name);
    for i in 0..pieces {
        fs.write(ino, i * 8192, &[3; 4096], &ME).unwrap();
    }
    ino
}

/// A file, and two copies of blocks of it by turns: all are counted as one run, and without one of the copies as many.
fn copied_by_turns(fs: &Fs, round: u64, blocks: u64) -> [Ino; 3] {
    let files = ["whole", "even", "odd"].map(|name| file(fs, format!("{name}{round}").as_bytes()));
    let [whole, even, odd] = files;
    fs.write(whole, 0, &vec![5; (blocks * BLOCK) as usize], &ME).unwrap();
    for n in 0..blocks {
        let copy = if n % 2 == 0 { even } else { odd };
        fs.copy_range(whole, n * BLOCK, copy, n * BLOCK, BLOCK, &ME).unwrap();
    }
    files
}
