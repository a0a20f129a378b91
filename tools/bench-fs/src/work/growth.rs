//! Rows that ask whether costs grow with the number of files: the same in a small directory and in a large one.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::sys::{Dir, Name};
use super::{Bench, Measurement};
use btfs_bench_common::random::Permutation;

/// Files that are there.
const OLD: &str = "old-";
/// Files that the row creates.
const NEW: &str = "new-";
const MOUNTS: u64 = 10;

/// The files that are in the directory beforehand.
#[derive(Clone, Copy)]
enum Size {
    Small,
    Large,
}

impl Size {
    fn files(self, bench: &Bench<'_>) -> u64 {
        match self {
            Size::Small => bench.plan.growth_small,
            Size::Large => bench.plan.growth_large,
        }
    }

    fn path(self, bench: &Bench<'_>) -> PathBuf {
        bench.root().join(match self {
            Size::Small => "small",
            Size::Large => "large",
        })
    }
}

fn create(bench: &mut Bench<'_>, size: Size) -> Result<Measurement> {
    fs::create_dir(size.path(bench))?;
    let dir = Dir::open(&size.path(bench))?;
    (0..size.files(bench)).try_for_each(|n| dir.create(&Name::new(OLD, n)))?;
    bench.system.settle()?;
    let files = bench.plan.growth_small;
    bench.measure(files, |_| Ok((0..files).try_for_each(|n| dir.create(&Name::new(NEW, n)))?))
}

/// Of files all over the directory.
fn stat(bench: &mut Bench<'_>, size: Size) -> Result<Measurement> {
    let dir = Dir::open(&size.path(bench))?;
    let order = Permutation::new(size.files(bench), 23);
    let files = bench.plan.growth_small;
    bench.measure(files, |_| Ok((0..files).try_for_each(|n| dir.stat(&Name::new(OLD, order.forward(n))))?))
}

/// With names that the kernel knows.
fn unlink(bench: &mut Bench<'_>, size: Size) -> Result<Measurement> {
    let dir = Dir::open(&size.path(bench))?;
    let order = Permutation::new(size.files(bench), 23);
    let files = bench.plan.growth_small;
    (0..files).try_for_each(|n| dir.stat(&Name::new(OLD, order.forward(n))))?;
    bench.measure(files, |_| Ok((0..files).try_for_each(|n| dir.unlink(&Name::new(OLD, order.forward(n))))?))
}

pub fn create_small(bench: &mut Bench<'_>) -> Result<Measurement> {
    create(bench, Size::Small)
}

pub fn create_large(bench: &mut Bench<'_>) -> Result<Measurement> {
    create(bench, Size::Large)
}

/// After the caches were dropped.
pub fn stat_small(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    stat(bench, Size::Small)
}

pub fn stat_large(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    stat(bench, Size::Large)
}

/// Of the same files as in the row before, as long as the daemon has them in its cache.
pub fn lookup_small(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.forget_names()?;
    stat(bench, Size::Small)
}

pub fn lookup_large(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.forget_names()?;
    stat(bench, Size::Large)
}

pub fn unlink_small(bench: &mut Bench<'_>) -> Result<Measurement> {
    unlink(bench, Size::Small)
}

pub fn unlink_large(bench: &mut Bench<'_>) -> Result<Measurement> {
    unlink(bench, Size::Large)
}

/// Taking a clean image away and mounting it again, start and end of the daemon included.
pub fn mount(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.settle()?;
    bench.measure(MOUNTS, |bench| {
        for _ in 0..MOUNTS {
            bench.system.unmount()?;
            bench.system.mount()?;
            ensure!(fs::metadata(bench.root())?.is_dir(), "the root is not a directory");
        }
        Ok(())
    })
}

pub fn list_large(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    let (path, files) = (Size::Large.path(bench), Size::Large.files(bench));
    bench.measure(files, |_| {
        let mut count = 0;
        for entry in fs::read_dir(path)? {
            entry?;
            count += 1;
        }
        // As many have been created as unlinked, unless there were fewer.
        ensure!(count >= files, "{count} entries instead of {files}");
        Ok(())
    })
}
