//! Rows that work on many files in one directory.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::sys::{Dir, Name};
use super::{Bench, Measurement, tree};
use btfs_bench_common::random::Permutation;

const PREFIX: &str = "file-";
/// What each file gets.
const CONTENTS: [u8; 100] = [b'x'; 100];
const SEED: u64 = 3;

fn path(bench: &Bench<'_>) -> PathBuf {
    bench.root().join("many")
}

pub fn create(bench: &mut Bench<'_>) -> Result<Measurement> {
    fs::create_dir(path(bench))?;
    let dir = Dir::open(&path(bench))?;
    let files = bench.plan.dir_files;
    bench.measure(files, |_| Ok((0..files).try_for_each(|n| dir.create(&Name::new(PREFIX, n)))?))
}

/// In a random order, with what the kernel remembers from creating them.
pub fn stat_warm(bench: &mut Bench<'_>) -> Result<Measurement> {
    let (dir, files) = (Dir::open(&path(bench))?, bench.plan.dir_files);
    let order = Permutation::new(files, SEED);
    bench.measure(files, |_| Ok((0..files).try_for_each(|n| dir.stat(&Name::new(PREFIX, order.forward(n))))?))
}

pub fn write(bench: &mut Bench<'_>) -> Result<Measurement> {
    let (dir, files) = (Dir::open(&path(bench))?, bench.plan.dir_files);
    bench.measure(files, |_| Ok((0..files).try_for_each(|n| dir.write(&Name::new(PREFIX, n), &CONTENTS))?))
}

/// Names only, as `ls` without options.
pub fn list_cold(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    let files = bench.plan.dir_files;
    bench.measure(files, |bench| {
        let mut count = 0;
        for entry in fs::read_dir(path(bench))? {
            entry?;
            count += 1;
        }
        ensure!(count == files, "{count} entries instead of {files}");
        Ok(())
    })
}

pub fn stat_cold(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    let (dir, files) = (Dir::open(&path(bench))?, bench.plan.dir_files);
    let order = Permutation::new(files, SEED);
    bench.measure(files, |_| Ok((0..files).try_for_each(|n| dir.stat(&Name::new(PREFIX, order.forward(n))))?))
}

pub fn tar_cold(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    bench.measure(bench.plan.dir_files, |bench| tree::tar_to_nothing(&path(bench)))
}

/// In the order of their creation, with names that the kernel knows, as after listing them.
pub fn unlink(bench: &mut Bench<'_>) -> Result<Measurement> {
    let (dir, files) = (Dir::open(&path(bench))?, bench.plan.dir_files);
    (0..files).try_for_each(|n| dir.stat(&Name::new(PREFIX, n)))?;
    bench.measure(files, |_| Ok((0..files).try_for_each(|n| dir.unlink(&Name::new(PREFIX, n)))?))
}
