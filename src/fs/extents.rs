//! The extents of a file: finding them, reading through them, and replacing a part of them.
//!
//! - **E1** The extents of a file do not overlap and, but for the inline one, begin at a multiple of the block size.
//! - **E2** A block with live contents is never written again: contents go to new blocks, or to blocks that were
//!   allocated but never written, and the record follows (data before metadata).
//! - **E3** Every stored block that is read is verified against its CRC-32 before a byte of it is returned.

use std::ops::ControlFlow;

use super::Fs;
use super::error::{FsError, Result};
use super::format::*;
use crate::page::{BLOCK_SIZE, BlockNo, Run};
use crate::tree::Batch;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// An extent with its place in the file, in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mapped {
    pub begin: u64,
    pub end: u64,
    pub extent: Extent,
}

impl Mapped {
    fn new(begin: u64, extent: Extent) -> Self {
        Mapped { begin, end: begin + extent.length(), extent }
    }

    /// Where the next extent can begin: the end of the extent's last block.
    pub fn block_end(&self) -> u64 {
        self.end.next_multiple_of(BLOCK)
    }

    pub fn is_data(&self) -> bool {
        !matches!(&self.extent, Extent::Blocks { crcs, .. } if crcs.is_empty())
    }

    /// The part of the extent between two multiples of the block size (or its own ends).
    fn part(&self, from: u64, to: u64) -> Option<Mapped> {
        let (from, to) = (from.max(self.begin), to.min(self.end));
        if from >= to {
            return None;
        }
        let extent = match &self.extent {
            Extent::Inline(bytes) => Extent::Inline(bytes[..(to - self.begin) as usize].to_vec()),
            Extent::Blocks { start, crcs, .. } => {
                let skip = (from - self.begin) / BLOCK;
                let len = (to - from) as u32;
                let blocks = len.div_ceil(BLOCK_SIZE as u32) as usize;
                let crcs = crcs.get(skip as usize..skip as usize + blocks).unwrap_or(&[]).to_vec();
                Extent::Blocks { len, start: BlockNo(start.0 + skip), crcs }
            }
        };
        Some(Mapped::new(from, extent))
    }

    /// This extent and the next one as one, if they are neighbours in the file and on disk.
    fn join(&self, next: &Mapped) -> Option<Mapped> {
        let (Extent::Blocks { start, crcs, len }, Extent::Blocks { start: s, crcs: c, len: l }) =
            (&self.extent, &next.extent)
        else {
            return None;
        };
        let blocks = len / BLOCK_SIZE as u32;
        let adjacent = self.end == next.begin && start.0 + blocks as u64 == s.0;
        let total = blocks + l.div_ceil(BLOCK_SIZE as u32);
        if !adjacent || crcs.is_empty() != c.is_empty() || total > EXTENT_BLOCKS_MAX {
            return None;
        }
        let extent = Extent::Blocks { len: len + l, start: *start, crcs: [&crcs[..], c].concat() };
        Some(Mapped::new(self.begin, extent))
    }
}

/// A change of a file's extents that is being collected in a batch.
#[derive(Default)]
pub(super) struct Remap {
    /// Blocks that the file gains.
    pub gained: u64,
    /// Blocks that it loses.
    pub lost: u64,
}

impl Fs {
    /// The first extents, at most `max`, that have bytes between `from` and `to`.
    pub(super) fn extents_in(&self, ino: Ino, from: u64, to: u64, max: usize) -> Result<Vec<Mapped>> {
        let mut found = Vec::new();
        let (first, last) = (extent_key(ino, from.saturating_add(1)), extent_key(ino, u64::MAX));
        let failed = self.tree.scan(&first, &last, |key, record| {
            let Some(end) = extent_end(ino, key) else { return ControlFlow::Break(Ok(())) };
            let extent = match Extent::decode(ino, end, record) {
                Ok(extent) => extent,
                Err(error) => return ControlFlow::Break(Err(error)),
            };
            let begin = end - extent.length();
            if begin >= to {
                return ControlFlow::Break(Ok(()));
            }
            found.push(Mapped { begin, end, extent });
            if found.len() >= max { ControlFlow::Break(Ok(())) } else { ControlFlow::Continue(()) }
        })?;
        failed.unwrap_or(Ok(()))?;
        if found.windows(2).any(|w| w[0].end > w[1].begin) {
            return Err(FsError::damaged(ino, "its extents overlap"));
        }
        Ok(found)
    }

    /// Fills `out` with the file's bytes from `offset` on; holes, and what lies behind extents, are zeros.
    pub(super) fn read_extents(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        let end = offset + out.len() as u64;
        for mapped in self.extents_in(ino, offset, end, usize::MAX)? {
            let (from, to) = (offset.max(mapped.begin), end.min(mapped.end));
            let out = &mut out[(from - offset) as usize..(to - offset) as usize];
            match &mapped.extent {
                Extent::Inline(bytes) => out.copy_from_slice(&bytes[from as usize..to as usize]),
                Extent::Blocks { crcs, .. } if crcs.is_empty() => {}
                Extent::Blocks { start, crcs, .. } => {
                    self.read_verified(ino, *start, crcs, from - mapped.begin, out)?;
                }
            }
        }
        Ok(())
    }

    /// Reads bytes of an extent, `skip` bytes behind its beginning (E3).
    fn read_verified(&self, ino: Ino, start: BlockNo, crcs: &[u32], skip: u64, out: &mut [u8]) -> Result<()> {
        let first = (skip / BLOCK) as usize;
        let last = (skip + out.len() as u64).div_ceil(BLOCK) as usize;
        let mut blocks = vec![0; (last - first) * BLOCK_SIZE];
        self.tree.read_blocks(BlockNo(start.0 + first as u64), &mut blocks)?;
        for (i, block) in blocks.chunks(BLOCK_SIZE).enumerate() {
            if crcs.get(first + i) != Some(&crc32fast::hash(block)) {
                let at = start.0 + (first + i) as u64;
                return Err(FsError::damaged(ino, format_args!("checksum of its block {at} does not match")));
            }
        }
        let within = (skip % BLOCK) as usize;
        out.copy_from_slice(&blocks[within..within + out.len()]);
        Ok(())
    }

    /// Writes whole blocks and returns their extents, which begin at `offset` and end at `end`. All blocks are new, or those of
    /// `unwritten`, which no one has written yet (E2). `taken` gets the new ones, for the batch or to be given back.
    pub(super) fn write_new(
        &self,
        offset: u64,
        end: u64,
        data: &[u8],
        unwritten: Option<BlockNo>,
        taken: &mut Vec<Run>,
    ) -> Result<Vec<Mapped>> {
        let mut extents = Vec::new();
        let mut done = 0;
        while done < data.len() {
            let left = ((data.len() - done) / BLOCK_SIZE).min(EXTENT_BLOCKS_MAX as usize) as u32;
            let run = match unwritten {
                Some(start) => Run { start: BlockNo(start.0 + (done / BLOCK_SIZE) as u64), len: left },
                None => {
                    let run = self.tree.reserve_blocks(left)?;
                    taken.push(run);
                    run
                }
            };
            let piece = &data[done..done + run.len as usize * BLOCK_SIZE];
            self.tree.write_blocks(run.start, piece)?;
            let begin = offset + done as u64;
            let len = (piece.len() as u64).min(end - begin) as u32;
            let crcs = piece.chunks(BLOCK_SIZE).map(crc32fast::hash).collect();
            extents.push(Mapped::new(begin, Extent::Blocks { len, start: run.start, crcs }));
            done += piece.len();
        }
        Ok(extents)
    }

    /// Collects in `batch`: between `from` and `to`, multiples of the block size, the file consists of `new` and of holes.
    /// Blocks of old extents there are freed, but for those that `new` uses.
    pub(super) fn replace(
        &self,
        ino: Ino,
        from: u64,
        to: u64,
        new: Vec<Mapped>,
        taken: &[Run],
        batch: &mut Batch,
    ) -> Result<Remap> {
        // With the neighbours on both sides, which may be joined.
        let old = self.extents_in(ino, from.saturating_sub(1), to.saturating_add(1), usize::MAX)?;
        let mut remap = Remap::default();
        let mut list: Vec<Mapped> = Vec::with_capacity(old.len() + new.len() + 1);
        list.extend(old.iter().filter_map(|m| m.part(0, from)));
        let reused: Vec<BlockNo> = new
            .iter()
            .filter_map(|m| m.extent.run())
            .filter(|r| !taken.contains(r))
            .map(|r| r.start)
            .collect();
        list.extend(new);
        list.extend(old.iter().filter_map(|m| m.part(to, u64::MAX)));
        for gone in old.iter().filter_map(|m| m.part(from, to)) {
            if let Some(run) = gone.extent.run()
                && !reused.contains(&run.start)
            {
                remap.lost += run.len as u64;
                batch.free(run);
            }
        }
        for run in taken {
            remap.gained += run.len as u64;
            batch.allocate(*run);
        }
        let mut joined: Vec<Mapped> = Vec::with_capacity(list.len());
        for next in list {
            match joined.last().and_then(|last| last.join(&next)) {
                Some(both) => {
                    joined.pop();
                    joined.push(both);
                }
                None => joined.push(next),
            }
        }
        for m in old.iter().filter(|m| !joined.contains(m)) {
            batch.delete(&extent_key(ino, m.end));
        }
        for m in joined.iter().filter(|m| !old.contains(m)) {
            batch.put(&extent_key(ino, m.end), &m.extent.encode());
        }
        Ok(remap)
    }
}
