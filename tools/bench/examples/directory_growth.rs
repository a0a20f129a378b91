//! What create, lookup and unlink cost in directories of growing size, in memory and without FUSE.
//!
//! ```text
//! cargo run --release -p btfs-bench --example directory_growth -- [SIZES, 10000,1000000] [CACHE MiB, 512]
//! ```
//!
//! Prints a row for each size: microseconds of the calling thread's processor time per call, the least of twenty slices, so that
//! other work on the machine does not count.

use std::sync::Arc;

use anyhow::Result;
use btfs::fs::{Caller, Cookie, Fs, Ino, New, ROOT, Time};
use btfs::storage::MemStorage;
use btfs::tree::{FormatOptions, Options};

const IMAGE: u64 = 8 << 30;
const SLICES: u64 = 20;
const LOOKUPS: u64 = 200_000;
/// Creates and unlinks that are measured, at the directory's full size.
const CHANGES: u64 = 10_000;
const ME: Caller = Caller::new(1, 1, Time { seconds: 1, nanos: 1 });

/// Processor time of this thread, in microseconds.
fn now() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the structure it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 * 1e6 + t.tv_nsec as f64 / 1e3
}

/// Microseconds per call: the least of all slices.
fn measured(calls: u64, mut call: impl FnMut(u64) -> Result<()>) -> Result<f64> {
    let (slice, mut least) = (calls / SLICES, f64::MAX);
    for first in (0..SLICES).map(|s| s * slice) {
        let begin = now();
        for i in first..first + slice {
            call(i)?;
        }
        least = least.min((now() - begin) / slice as f64);
    }
    Ok(least)
}

fn name(i: u64) -> Vec<u8> {
    format!("file{i}").into_bytes()
}

/// Spreads the numbers below `n` so that neighbours lie far apart.
fn scattered(i: u64, n: u64) -> u64 {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % n
}

fn create(fs: &Fs, dir: Ino, name: &[u8], contents: &[u8]) -> Result<()> {
    let ino = fs.create(dir, name, New::File, 0o644, 0o022, &ME)?.ino;
    if !contents.is_empty() {
        fs.write(ino, 0, contents, &ME)?;
    }
    Ok(fs.release(ino, 1)?)
}

fn row(n: u64, cache_size: usize) -> Result<()> {
    let storage = Arc::new(MemStorage::new(IMAGE));
    Fs::format(storage.clone(), &FormatOptions { size: IMAGE, ..FormatOptions::default() }, &ME)?;
    let fs = Fs::open(storage, &Options { cache_size, ..Options::default() })?;
    let dir = fs.create(ROOT, b"dir", New::Directory, 0o755, 0, &ME)?.ino;
    let changes = CHANGES.min(n);
    for i in 0..n - changes {
        create(&fs, dir, &name(i), b"")?;
    }
    let creates = measured(changes, |i| create(&fs, dir, &name(n - changes + i), b""))?;
    let lookups = measured(LOOKUPS, |i| {
        let found = fs.lookup_attributes(dir, &name(scattered(i, n)))?;
        Ok(fs.release(found.ino, 1)?)
    })?;
    let mut after = Cookie(2);
    let plus = measured(n, |i| {
        // 256 entries a call, as replies to the kernel have.
        if i % 256 > 0 {
            return Ok(());
        }
        let mut seen = Vec::with_capacity(256);
        fs.read_dir_plus(dir, after, 256, |cookie, attributes, _| {
            (after, _) = (cookie, seen.push(attributes.ino));
            true
        })?;
        Ok(seen.into_iter().try_for_each(|ino| fs.release(ino, 1))?)
    })?;
    let full = |i: u64| format!("full{i}").into_bytes();
    let creates_full = measured(changes, |i| create(&fs, dir, &full(i), &[7; 1024]))?;
    let unlinks_full = measured(changes, |i| Ok(fs.unlink(dir, &full(i), &ME)?))?;
    let unlinks = measured(changes, |i| Ok(fs.unlink(dir, &name(i * (n / changes)), &ME)?))?;
    println!(
        "{n:>9} {creates:>8.2} {lookups:>8.2} {plus:>13.2} {unlinks:>8.2} {creates_full:>13.2} {unlinks_full:>12.2}"
    );
    Ok(fs.close()?)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let sizes = arguments.next().unwrap_or_else(|| "10000,1000000".into());
    let cache: usize = arguments.next().map_or(Ok(512), |mib| mib.parse())?;
    println!("    files   create   lookup  readdir+entry   unlink  create+1 KiB  unlink 1 KiB   (µs)");
    sizes.split(',').try_for_each(|n| row(n.parse()?, cache << 20))
}
