//! A storage that keeps all writes in memory, above one that is only read.
//!
//! Invariants:
//! - I1. Nothing is ever written to the storage below, and its length does not change.
//! - I2. A block in the map is the whole block as it is seen; a block that is not there is that of the storage below.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use parking_lot::RwLock;

use super::Storage;

/// The unit in which writes are kept, in bytes.
const BLOCK: u64 = 4096;

/// What [`spare_memory`] is where the host does not tell of its memory.
const SPARE_UNKNOWN: u64 = 1 << 30;

/// What is seen through this is the storage below with all writes on it; they are kept in memory, in blocks of 4096
/// bytes, and lost with it. For recovery of an image that must not be written: it writes all pages that the log changes, and
/// a log may be forged so that they are many times as large as itself. A write that takes more than the limit is
/// [`io::ErrorKind::OutOfMemory`], and changes nothing.
///
/// Syncs are free and promise nothing. The length is that of the storage below when this was made, and is fixed: writes
/// past it are [`io::ErrorKind::InvalidInput`], like another length.
pub struct OverlayStorage<S> {
    below: S,
    len: u64,
    /// Bytes that the blocks may take.
    limit: u64,
    blocks: RwLock<BTreeMap<u64, Box<[u8; BLOCK as usize]>>>,
}

impl<S: Storage> OverlayStorage<S> {
    /// An overlay without any write, whose writes may take `limit` bytes of memory. Fails if the length of the storage below cannot
    /// be read.
    pub fn new(below: S, limit: u64) -> io::Result<Self> {
        Ok(OverlayStorage { len: below.len()?, below, limit, blocks: RwLock::new(BTreeMap::new()) })
    }

    /// The bytes of memory that the writes so far take.
    pub fn held(&self) -> u64 {
        self.blocks.read().len() as u64 * BLOCK
    }

    /// The block as the storage below has it; zeros behind its end.
    fn read_block(&self, block: u64) -> io::Result<Box<[u8; BLOCK as usize]>> {
        let mut bytes = Box::new([0; BLOCK as usize]);
        let len = (self.len - block * BLOCK).min(BLOCK) as usize;
        self.below.read_at(block * BLOCK, &mut bytes[..len])?;
        Ok(bytes)
    }
}

/// The blocks that a range touches: number, the part of the block, and the part of the range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let end = offset + len as u64;
    (offset / BLOCK..end.div_ceil(BLOCK)).map(move |block| {
        let begin = block * BLOCK;
        let (from, to) = (offset.max(begin), end.min(begin + BLOCK));
        let within = |base: u64| (from - base) as usize..(to - base) as usize;
        (block, within(begin), within(offset))
    })
}

#[cfg(test)]
thread_local! {
    /// What [`spare_memory`] is in a test.
    pub static SPARE: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// Half of the memory that this process can have now, in bytes: what an overlay may take.
pub fn spare_memory() -> u64 {
    #[cfg(test)]
    if let Some(spare) = SPARE.get() {
        return spare;
    }
    let told = fs::read_to_string("/proc/meminfo").ok();
    let available = told.and_then(|told| kib(&told, "MemAvailable:"));
    let least = available.into_iter().chain(spare_in_group()).chain(spare_in_limit()).min();
    least.map_or(SPARE_UNKNOWN, |least| least / 2)
}

/// The bytes that a line of `/proc/meminfo`, or of a process's status, tells in KiB.
pub(super) fn kib(told: &str, name: &str) -> Option<u64> {
    let line = told.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the control groups that this process is in, and those around them, leave of their limits, as that of a container.
fn spare_in_group() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let spare = |group: &Path| {
        let read = |name| fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join(name)).ok();
        spare_of_group(&read("memory.max")?, &read("memory.current")?, &read("memory.stat")?)
    };
    Path::new(group).ancestors().filter_map(spare).min()
}

/// What a control group may take beyond what it has: the files that it has in the page cache are no loss. `None` if it has no limit.
pub(super) fn spare_of_group(max: &str, current: &str, stat: &str) -> Option<u64> {
    let cached = stat.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        if matches!(name, "active_file" | "inactive_file") { bytes.parse::<u64>().ok() } else { None }
    });
    let current: u64 = current.trim().parse().ok()?;
    let taken = current.saturating_sub(cached.fold(0, u64::saturating_add));
    Some(max.trim().parse::<u64>().ok()?.saturating_sub(taken))
}

/// What the limit of the address space (`ulimit -v`) leaves.
fn spare_in_limit() -> Option<u64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    let told = fs::read_to_string("/proc/self/status").ok()?;
    Some(limit.saturating_sub(kib(&told, "VmSize:")?))
}

fn full(limit: u64) -> io::Error {
    let what = format!(
        "replaying the log without writing to the image needs more than {} MiB of memory; opening the image for \
         writing needs none",
        limit >> 20
    );
    io::Error::new(io::ErrorKind::OutOfMemory, what)
}

fn behind_the_end() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the length of an overlay is fixed")
}

impl<S: Storage> Storage for OverlayStorage<S> {
    fn will_read(&self, offset: u64, len: u64) {
        self.below.will_read(offset, len);
    }

    fn forget_cached(&self) {
        self.below.forget_cached();
    }

    fn skip_hole(&self, offset: u64) -> Option<u64> {
        let below = self.below.skip_hole(offset)?;
        Some(match self.blocks.read().range(offset / BLOCK..).next() {
            Some((block, _)) => below.min(block * BLOCK).max(offset),
            None => below,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let behind = offset.saturating_add(buf.len() as u64);
        let (first, end) = (offset / BLOCK, behind.div_ceil(BLOCK));
        let held = self.blocks.read().range(first..end).count() as u64;
        // The storage below may be unable to read what was written here.
        if held == 0 || held < end - first || behind > self.len {
            self.below.read_at(offset, buf)?;
        }
        if held == 0 {
            return Ok(());
        }
        let blocks = self.blocks.read();
        for (block, within, part) in parts(offset, buf.len()) {
            if let Some(bytes) = blocks.get(&block) {
                buf[part].copy_from_slice(&bytes[within]);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(behind_the_end());
        }
        let mut blocks = self.blocks.write();
        let (first, end) = (offset / BLOCK, (offset + buf.len() as u64).div_ceil(BLOCK));
        let new = end.saturating_sub(first) - blocks.range(first..end.max(first)).count() as u64;
        if new > 0 && (blocks.len() as u64 + new).saturating_mul(BLOCK) > self.limit {
            return Err(full(self.limit));
        }
        for (block, within, part) in parts(offset, buf.len()) {
            let bytes = match blocks.get_mut(&block) {
                Some(bytes) => bytes,
                None => {
                    let whole = within.len() as u64 == BLOCK;
                    let bytes = if whole { Box::new([0; BLOCK as usize]) } else { self.read_block(block)? };
                    blocks.entry(block).or_insert(bytes)
                }
            };
            bytes[within].copy_from_slice(&buf[part]);
        }
        Ok(())
    }

    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_at(offset, buf)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len == self.len { Ok(()) } else { Err(behind_the_end()) }
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn punch(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }
}
