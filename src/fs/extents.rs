//! The extents of a file: finding them, reading through them, and replacing a part of them.
//!
//! - **E1** The extents of a file do not overlap and, but for the inline one, begin at a multiple of the block size.
//! - **E2** A block with live contents is never written again: contents go to new blocks, or to blocks that were
//!   allocated but never written, and the record follows (data before metadata).
//! - **E3** Every stored block that is read is verified against its CRC-32 before a byte of it is returned.
//! - **E4** A block belongs to one extent, unless all extents that it belongs to say that it may be shared (`shared.rs`).

use std::ops::{ControlFlow, Range};

use super::Inner;
use super::error::{FsError, Result};
use super::format::*;
use super::table::{Node, State};
use crate::error::Error;
use crate::page::{BLOCK_SIZE, BlockNo, Run};
use crate::storage::DIRECT_LEN_MIN;
use crate::tree::Batch;

pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;
/// Neighbours become one extent if they have at most so many blocks together, or the second has at least as many as the first.
/// So a file that grows block by block has large extents in the end, but each checksum is logged a few times only: were each
/// block joined to the one extent before it, an append of 4 KiB would log 760 bytes instead of 300.
const JOIN_FREELY: u32 = 16;

/// An extent with its place in the file, in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mapped {
    pub begin: u64,
    pub end: u64,
    pub extent: Extent,
}

impl Mapped {
    pub fn new(begin: u64, extent: Extent) -> Self {
        Mapped { begin, end: begin + extent.length(), extent }
    }

    /// Where the next extent can begin: the end of the extent's last block.
    pub fn block_end(&self) -> u64 {
        self.end.next_multiple_of(BLOCK)
    }

    /// Allocated, but never written.
    pub fn is_unwritten(&self) -> bool {
        self.extent.is_unwritten()
    }

    pub fn is_inline(&self) -> bool {
        matches!(&self.extent, Extent::Inline(_))
    }

    pub fn is_shared(&self) -> bool {
        self.extent.is_shared()
    }

    /// Given up by a repair.
    pub fn is_lost(&self) -> bool {
        matches!(&self.extent, Extent::Lost { .. })
    }

    /// The block that holds the byte at `at`, a multiple of the block size that is not behind the extent; none in front of it.
    pub fn block_at(&self, at: u64) -> Option<BlockNo> {
        let within = at.checked_sub(self.begin)?;
        self.extent.run().map(|run| BlockNo(run.start.0 + within / BLOCK))
    }

    /// Whether this extent has that block at the byte at `at`.
    fn has_at(&self, at: u64, block: Option<BlockNo>) -> bool {
        self.begin <= at && at < self.end && self.block_at(at) == block
    }

    /// The part of the extent between two multiples of the block size (or its own ends).
    pub fn part(&self, from: u64, to: u64) -> Option<Mapped> {
        let (from, to) = (from.max(self.begin), to.min(self.end));
        if from >= to {
            return None;
        }
        let extent = match &self.extent {
            Extent::Inline(bytes) => Extent::Inline(bytes[..(to - self.begin) as usize].to_vec()),
            Extent::Blocks { start, crcs, shared, .. } => {
                let skip = (from - self.begin) / BLOCK;
                let len = (to - from) as u32;
                let blocks = len.div_ceil(BLOCK_SIZE as u32) as usize;
                let crcs = crcs.get(skip as usize..skip as usize + blocks).unwrap_or(&[]).to_vec();
                Extent::Blocks { len, start: BlockNo(start.0 + skip), shared: *shared, crcs }
            }
            Extent::Lost { .. } => Extent::Lost { len: to - from },
        };
        Some(Mapped::new(from, extent))
    }

    /// This extent and the next one as one, if they are neighbours in the file and on disk.
    fn join(&self, next: &Mapped) -> Option<Mapped> {
        let (
            Extent::Blocks { start, crcs, len, shared },
            Extent::Blocks { start: s, crcs: c, len: l, shared: h },
        ) = (&self.extent, &next.extent)
        else {
            return None;
        };
        let (blocks, more) = (len / BLOCK_SIZE as u32, l.div_ceil(BLOCK_SIZE as u32));
        let adjacent = self.end == next.begin && start.0 + blocks as u64 == s.0;
        let alike = crcs.is_empty() == c.is_empty() && shared == h;
        let cheap = crcs.is_empty() || blocks + more <= JOIN_FREELY || blocks <= more;
        if !adjacent || !alike || !cheap || blocks + more > EXTENT_BLOCKS_MAX {
            return None;
        }
        let crcs = [&crcs[..], c].concat();
        let extent = Extent::Blocks { len: len + l, start: *start, shared: *shared, crcs };
        Some(Mapped::new(self.begin, extent))
    }
}

/// A change of a file's extents that is being collected.
#[derive(Default)]
pub(super) struct Remap {
    /// The records, and the blocks that belong to nobody else.
    pub batch: Batch,
    /// Blocks that the file gains.
    pub gained: u64,
    /// Blocks that it loses.
    pub lost: u64,
    /// Runs that may be shared, and by how much the number of extents that they belong to changes.
    pub shares: Vec<(Run, i64)>,
}

impl Remap {
    /// The file gives up blocks.
    pub fn lose(&mut self, run: Run, shared: bool) {
        self.lost += run.len as u64;
        if shared {
            self.shares.push((run, -1));
        } else {
            self.batch.free(run);
        }
    }
}

/// Where the blocks of new extents come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'r> {
    /// These are to be allocated; what else the new extents use are the blocks of unwritten extents in the same place.
    Reserved(&'r [Run]),
    /// They belong to other extents, too.
    Shared,
}

/// Bytes of dead blocks that are read along rather than read around.
const GAP_MAX: usize = 16 * BLOCK_SIZE;

/// Whole blocks of one extent and their place in a buffer.
struct Part<'e> {
    /// Bytes from the buffer's beginning.
    at: usize,
    first: BlockNo,
    crcs: &'e [u32],
}

impl Part<'_> {
    /// The parts of extents that a buffer takes whole, which begins at byte `offset` of the file and wants `len` bytes.
    fn of(found: &[Mapped], offset: u64, len: usize, room: usize) -> Vec<Part<'_>> {
        let mut parts = Vec::new();
        if !offset.is_multiple_of(BLOCK) || found.len() < 2 {
            return parts;
        }
        for mapped in found {
            let (from, to) = (offset.max(mapped.begin), (offset + len as u64).min(mapped.end));
            let Extent::Blocks { start, crcs, .. } = &mapped.extent else { continue };
            if from >= to || crcs.is_empty() {
                continue;
            }
            let skip = ((from - mapped.begin) / BLOCK) as usize;
            let blocks = (to - from).div_ceil(BLOCK) as usize;
            let at = (from - offset) as usize;
            if let Some(crcs) = crcs.get(skip..skip + blocks)
                && at + blocks * BLOCK_SIZE <= room
            {
                parts.push(Part { at, first: BlockNo(start.0 + skip as u64), crcs });
            }
        }
        parts
    }

    fn end(&self) -> usize {
        self.at + self.crcs.len() * BLOCK_SIZE
    }

    /// The same for parts that lie in the image as far from one another as in the file.
    fn distance(&self) -> i128 {
        i128::from(self.first.0) - (self.at / BLOCK_SIZE) as i128
    }
}

/// Verifies blocks against their checksums (E3).
fn verify(ino: Ino, first: BlockNo, crcs: &[u32], blocks: &[u8]) -> Result<()> {
    for (i, block) in blocks.chunks(BLOCK_SIZE).enumerate() {
        if crcs.get(i) != Some(&crc32fast::hash(block)) {
            let at = first.0 + i as u64;
            return Err(FsError::unreadable(ino, format_args!("checksum of its block {at} does not match")));
        }
    }
    Ok(())
}

impl Inner {
    /// Reads whole blocks of contents. If the disk cannot, that concerns only who needs them.
    pub(super) fn read_contents(&self, ino: Ino, start: BlockNo, data: &mut [u8]) -> Result<()> {
        self.tree.read_blocks(start, data).map_err(|error| match error {
            Error::Io { source, .. } => {
                let run = Run { start, len: (data.len() / BLOCK_SIZE) as u32 };
                FsError::Contents(Error::Io {
                    context: format!("reading inode {}, {run}", ino.0).into(),
                    source,
                })
            }
            error => error.into(),
        })
    }

    /// The first extents, at most `max`, that have bytes between `from` and `to`.
    pub(super) fn extents_in(&self, ino: Ino, from: u64, to: u64, max: usize) -> Result<Vec<Mapped>> {
        let mut found: Vec<Mapped> = Vec::new();
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
            // At once: there is no end to what a forged image could claim of one range.
            if found.last().is_some_and(|before| before.end > begin) {
                return ControlFlow::Break(Err(FsError::damaged(ino, "its extents overlap")));
            }
            found.push(Mapped { begin, end, extent });
            if found.len() >= max { ControlFlow::Break(Ok(())) } else { ControlFlow::Continue(()) }
        })?;
        failed.unwrap_or(Ok(()))?;
        Ok(found)
    }

    /// The same of a locked inode that may be detached (O5).
    pub(super) fn extents_of(
        &self,
        ino: Ino,
        state: &State,
        from: u64,
        to: u64,
        max: usize,
    ) -> Result<Vec<Mapped>> {
        match state.detached() {
            Some(contents) if from < contents.len() as u64 => {
                Ok(vec![Mapped::new(0, Extent::Inline(contents.to_vec()))])
            }
            Some(_) => Ok(Vec::new()),
            None => self.extents_in(ino, from, to, max),
        }
    }

    /// The extent that ends exactly at `end`.
    fn extent_before(&self, ino: Ino, end: u64) -> Result<Option<Mapped>> {
        let Some(record) = self.tree.get(&extent_key(ino, end))? else { return Ok(None) };
        let extent = Extent::decode(ino, end, &record)?;
        Ok(Some(Mapped::new(end - extent.length(), extent)))
    }

    /// Fills the first `len` bytes of `out` with the file's bytes from `offset` on; holes, and what lies behind extents, are
    /// zeros. The rest of `out` may be used, too, so that a last block need not be copied.
    pub(super) fn read_extents(&self, ino: Ino, offset: u64, out: &mut [u8], len: usize) -> Result<()> {
        let found = self.extents_in(ino, offset, offset + len as u64, usize::MAX)?;
        self.read_mapped(ino, &found, offset, out, len)
    }

    /// Like [`Inner::read_extents`], from extents that have been looked up.
    pub(super) fn read_mapped(
        &self,
        ino: Ino,
        found: &[Mapped],
        offset: u64,
        out: &mut [u8],
        len: usize,
    ) -> Result<()> {
        let (mut at, end) = (offset, offset + len as u64);
        let parts = Part::of(found, offset, len, out.len());
        if parts.len() > 1 {
            self.read_parts(ino, &parts, out)?;
        }
        let is_read = |place: u64| parts.len() > 1 && parts.iter().any(|p| p.at as u64 == place - offset);
        for mapped in found {
            let (from, to) = (at.max(mapped.begin), end.min(mapped.end));
            if from >= to {
                continue;
            }
            out[(at - offset) as usize..(from - offset) as usize].fill(0);
            let (out, want) = (&mut out[(from - offset) as usize..], (to - from) as usize);
            match &mapped.extent {
                Extent::Inline(bytes) => out[..want].copy_from_slice(&bytes[from as usize..to as usize]),
                Extent::Blocks { crcs, .. } if crcs.is_empty() => out[..want].fill(0),
                Extent::Blocks { .. } if is_read(from) => {}
                Extent::Blocks { start, crcs, .. } => {
                    self.read_verified(ino, *start, crcs, from - mapped.begin, out, want)?;
                }
                Extent::Lost { .. } => {
                    let reason = format_args!("its bytes {} to {} were lost", mapped.begin, mapped.end);
                    return Err(FsError::unreadable(ino, reason));
                }
            }
            at = to;
        }
        out[(at - offset) as usize..len].fill(0);
        Ok(())
    }

    /// Reads whole blocks of several extents to their places in `out`. Where overwrites have moved some blocks elsewhere, what they
    /// left is read in one piece, together with the dead blocks in the gaps, which the moved ones then replace: one long read and
    /// some short ones instead of many of both. The short ones are announced, so that the disk serves them side by side.
    fn read_parts(&self, ino: Ino, parts: &[Part<'_>], out: &mut [u8]) -> Result<()> {
        let mut done = vec![false; parts.len()];
        let mut reads: Vec<(BlockNo, Range<usize>)> = Vec::new();
        for i in 0..parts.len() {
            if done[i] {
                continue;
            }
            let mut end = parts[i].end();
            for j in i + 1..parts.len() {
                // What has been read already must not be read over.
                if done[j] || parts[j].at > end + GAP_MAX {
                    break;
                }
                if parts[j].distance() == parts[i].distance() {
                    done[j] = true;
                    end = parts[j].end();
                }
            }
            reads.push((parts[i].first, parts[i].at..end));
        }
        for (first, range) in reads[1..].iter().filter(|(_, range)| (range.len() as u64) < DIRECT_LEN_MIN) {
            self.announce_piece(Run { start: *first, len: (range.len() / BLOCK_SIZE) as u32 }, out.len());
        }
        for (first, range) in reads {
            if self.read_contents(ino, first, &mut out[range.clone()]).is_err() {
                // The gaps are not this file's, and nobody may be able to read them.
                let distance = Part { first, at: range.start, ..parts[0] }.distance();
                for part in parts.iter().filter(|p| range.contains(&p.at) && p.distance() == distance) {
                    self.read_contents(ino, part.first, &mut out[part.at..part.end()])?;
                }
            }
        }
        parts.iter().try_for_each(|p| verify(ino, p.first, p.crcs, &out[p.at..p.end()]))
    }

    /// Reads `len` bytes of an extent, `skip` bytes behind its beginning (E3). Whole blocks go straight to `out`.
    fn read_verified(
        &self,
        ino: Ino,
        start: BlockNo,
        crcs: &[u32],
        skip: u64,
        out: &mut [u8],
        len: usize,
    ) -> Result<()> {
        let read = |first: usize, blocks: &mut [u8]| {
            let at = BlockNo(start.0 + first as u64);
            self.read_contents(ino, at, blocks)?;
            verify(ino, at, crcs.get(first..).unwrap_or(&[]), blocks)
        };
        let mut bounce = [0; BLOCK_SIZE];
        let (mut block, within, mut done) = ((skip / BLOCK) as usize, (skip % BLOCK) as usize, 0);
        if within > 0 {
            done = len.min(BLOCK_SIZE - within);
            read(block, &mut bounce)?;
            out[..done].copy_from_slice(&bounce[within..within + done]);
            block += 1;
        }
        let room = (out.len() - done) / BLOCK_SIZE;
        let whole = (len - done).div_ceil(BLOCK_SIZE).min(room) * BLOCK_SIZE;
        if whole > 0 {
            read(block, &mut out[done..done + whole])?;
            block += whole / BLOCK_SIZE;
            done += whole;
        }
        if done < len {
            read(block, &mut bounce)?;
            out[done..len].copy_from_slice(&bounce[..len - done]);
        }
        Ok(())
    }

    /// Collects in `batch`: between `from` and `to`, multiples of the block size, the file consists of `new` and of holes. Blocks of old
    /// extents there are given up, but for those that `new` uses. `old` are the extents from a byte before `from` to a byte
    /// behind `to`: neighbours are joined.
    pub(super) fn replace(
        &self,
        ino: Ino,
        (from, to): (u64, u64),
        old: &[Mapped],
        new: Vec<Mapped>,
        source: Source<'_>,
        batch: Batch,
    ) -> Result<Remap> {
        let mut remap = Remap { batch, ..Remap::default() };
        match source {
            Source::Reserved(runs) => {
                for run in runs {
                    remap.gained += run.len as u64;
                    remap.batch.allocate(*run);
                }
            }
            Source::Shared => {
                for run in new.iter().filter_map(|m| m.extent.run()) {
                    remap.gained += run.len as u64;
                    remap.shares.push((run, 1));
                }
            }
        }
        for gone in old.iter().filter_map(|m| m.part(from, to)) {
            let stays =
                gone.is_unwritten() && new.iter().any(|m| m.has_at(gone.begin, gone.block_at(gone.begin)));
            if let Some(run) = gone.extent.run()
                && !stays
            {
                remap.lose(run, gone.is_shared());
            }
        }
        let before = old.iter().filter_map(|m| m.part(0, from));
        let behind = old.iter().filter_map(|m| m.part(to, u64::MAX));
        let mut joined: Vec<Mapped> = Vec::with_capacity(old.len() + new.len() + 1);
        for next in before.chain(new).chain(behind) {
            match joined.last().and_then(|last| last.join(&next)) {
                Some(both) => {
                    joined.pop();
                    joined.push(both);
                }
                None => joined.push(next),
            }
        }
        // What has just grown as large as the extent before it is joined to that one as well.
        while let Some(first) = joined.first_mut()
            && first.begin > 0
            && first.begin < from
            && first.extent.run().is_some_and(|r| r.len >= JOIN_FREELY)
            && !old.contains(first)
            && let Some(before) = self.extent_before(ino, first.begin)?
            && let Some(both) = before.join(first)
        {
            remap.batch.delete(&extent_key(ino, before.end));
            *first = both;
        }
        for m in old.iter().filter(|m| !joined.contains(m)) {
            remap.batch.delete(&extent_key(ino, m.end));
        }
        for m in joined.iter().filter(|m| !old.contains(m)) {
            remap.batch.put_with(&extent_key(ino, m.end), |record| m.extent.encode_into(record));
        }
        Ok(remap)
    }

    /// Applies a change of extents together with the record of the locked inode, whose blocks it counts.
    pub(super) fn apply_remap(
        &self,
        remap: Remap,
        node: &Node,
        state: &mut State,
        mut inode: Inode,
    ) -> Result<()> {
        inode.blocks = inode.blocks.saturating_add(remap.gained).saturating_sub(remap.lost);
        self.with_counts(remap, |batch| self.update(batch, node, state, inode))
    }
}
