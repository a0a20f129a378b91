//! Rows that read and write one large file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::{Bench, Measurement};
use btfs_bench_common::random::{Permutation, Random};

const BUFFER: usize = 1 << 20;
const BLOCK: u64 = 4096;

fn path(bench: &Bench<'_>) -> PathBuf {
    bench.root().join("stream")
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len / 8).flat_map(|_| random.draw().to_le_bytes()).collect()
}

/// With the fsync at the end.
pub fn write(bench: &mut Bench<'_>) -> Result<Measurement> {
    let (len, data) = (bench.plan.stream_bytes, noise(BUFFER, 5));
    bench.measure(len, |bench| {
        let mut file = File::create_new(path(bench))?;
        for _ in 0..len / BUFFER as u64 {
            file.write_all(&data)?;
        }
        Ok(file.sync_all()?)
    })
}

/// Also after random overwrites.
pub fn read_cold(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    let len = bench.plan.stream_bytes;
    let mut buffer = vec![0; BUFFER];
    bench.measure(len, |bench| {
        let mut file = File::open(path(bench))?;
        let mut total = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => total += n as u64,
            }
        }
        ensure!(total == len, "{total} bytes instead of {len}");
        Ok(())
    })
}

/// Different blocks in a random order, without reading ahead.
pub fn read_random_cold(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    let blocks = bench.plan.stream_bytes / BLOCK;
    let count = bench.plan.random_reads.min(blocks);
    let order = Permutation::new(blocks, 11);
    let file = File::open(path(bench))?;
    // SAFETY: the descriptor is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
    let mut buffer = [0; BLOCK as usize];
    bench.measure(count, |_| {
        Ok((0..count).try_for_each(|n| file.read_exact_at(&mut buffer, order.forward(n) * BLOCK))?)
    })
}

/// With the fsync at the end. Nothing of the file is in the caches at the beginning.
pub fn write_random(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    let blocks = bench.plan.stream_bytes / BLOCK;
    let count = bench.plan.random_writes.min(blocks);
    let order = Permutation::new(blocks, 13);
    let file = OpenOptions::new().write(true).open(path(bench))?;
    let data = noise(BLOCK as usize, 17);
    bench.measure(count, |_| {
        (0..count).try_for_each(|n| file.write_all_at(&data, order.forward(n) * BLOCK))?;
        Ok(file.sync_all()?)
    })
}
