//! File contents: read, write, truncate, fallocate, seek, copy.

use super::error::{FsError, Result};
use super::extents::{Mapped, Remap};
use super::format::*;
use super::table::{Node, State};
use super::{Caller, Fs, clear_suid};
use crate::page::{BLOCK_SIZE, Run};
use crate::tree::Batch;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// A longer write is a row of writes, each atomic.
const WRITE_MAX: usize = 1 << 20;
/// Extents that one batch of a truncate or a deletion touches.
const EXTENTS_PER_BATCH: usize = 64;

/// What `fallocate` does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallocate {
    /// Allocate; the file grows if need be.
    Allocate,
    /// Allocate, also behind the file's end; its size stays.
    KeepSize,
    /// Make a hole; the size stays.
    PunchHole,
    /// Make zeros, allocated; the file grows if need be.
    ZeroRange,
    /// Make zeros, allocated; the size stays.
    ZeroKeepSize,
}

fn checked_end(offset: u64, len: u64) -> Result<u64> {
    offset.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or(FsError::FileTooLarge)
}

fn file_of(state: &State) -> Result<&Inode> {
    let inode = state.get().ok_or(FsError::NotFound)?;
    match inode.kind {
        Kind::File => Ok(inode),
        Kind::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid),
    }
}

impl Fs {
    /// Reads up to `len` bytes; fewer only at the file's end. The lock is held through the read, so that blocks cannot be reused
    /// under it.
    pub fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        let inode = file_of(&state)?;
        let len = inode.size.saturating_sub(offset).min(len as u64) as usize;
        let mut out = vec![0; len];
        if len > 0 {
            self.read_extents(ino, offset, &mut out)?;
        }
        Ok(out)
    }

    /// Writes. Clears suid and sgid unless the caller is privileged.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], caller: &Caller) -> Result<()> {
        checked_end(offset, data.len() as u64)?;
        let node = self.node(ino);
        let mut state = node.state.write();
        state.load(&self.tree, ino)?;
        for (i, piece) in data.chunks(WRITE_MAX).enumerate() {
            self.write_piece(&node, &mut state, offset + (i * WRITE_MAX) as u64, piece, caller)?;
        }
        Ok(())
    }

    /// One atomic write. On entry and exit the inode is locked for changes.
    fn write_piece(
        &self,
        node: &Node,
        state: &mut State,
        offset: u64,
        data: &[u8],
        caller: &Caller,
    ) -> Result<()> {
        file_of(state)?;
        self.strip_capability(node, state)?;
        let mut inode = file_of(state)?.clone();
        let end = offset + data.len() as u64;
        let size = inode.size.max(end);
        (inode.mtime, inode.ctime) = (caller.now, caller.now);
        if !caller.privileged {
            clear_suid(&mut inode);
        }
        let mut batch = Batch::new();
        if size <= INLINE_MAX as u64 && self.is_inline(node.ino)? {
            let mut bytes = vec![0; size as usize];
            self.read_extents(node.ino, 0, &mut bytes)?;
            bytes[offset as usize..end as usize].copy_from_slice(data);
            let new = vec![Mapped { begin: 0, end: size, extent: Extent::Inline(bytes) }];
            self.replace(node.ino, 0, BLOCK, new, &[], &mut batch)?;
            inode.size = size;
            return self.update(&mut batch, node, state, inode);
        }
        let (from, to) = (offset / BLOCK * BLOCK, end.next_multiple_of(BLOCK));
        let mut bytes = vec![0; (to - from) as usize];
        if offset > from {
            self.read_extents(node.ino, from, &mut bytes[..BLOCK_SIZE])?;
        }
        if end < to && (to - from > BLOCK || offset == from) {
            let last = bytes.len() - BLOCK_SIZE;
            self.read_extents(node.ino, to - BLOCK, &mut bytes[last..])?;
        }
        bytes[(offset - from) as usize..(end - from) as usize].copy_from_slice(data);
        let unwritten = self.unwritten_at(node.ino, from, to)?;
        let mut taken = Vec::new();
        let written = self
            .write_new(from, to.min(size), &bytes, unwritten, &mut taken)
            .and_then(|new| self.replace(node.ino, from, to, new, &taken, &mut batch))
            .and_then(|remap| {
                count_blocks(&mut inode, &remap);
                inode.size = size;
                self.update(&mut batch, node, state, inode)
            });
        if written.is_err() {
            taken.into_iter().for_each(|run| self.tree.unreserve_blocks(run));
        }
        written
    }

    /// Whether the file has no blocks within the reach of inline contents.
    fn is_inline(&self, ino: Ino) -> Result<bool> {
        let extents = self.extents_in(ino, 0, INLINE_MAX as u64, 1)?;
        Ok(extents.iter().all(|m| matches!(m.extent, Extent::Inline(_))))
    }

    /// The first block of the allocated but unwritten extent that covers the whole range, if one does: it is written in place, so
    /// that what was allocated can be written also when the image is full.
    fn unwritten_at(&self, ino: Ino, from: u64, to: u64) -> Result<Option<crate::page::BlockNo>> {
        Ok(match self.extents_in(ino, from, to, 1)?.first() {
            Some(Mapped { begin, end, extent: Extent::Blocks { start, crcs, .. } })
                if crcs.is_empty() && *begin <= from && *end >= to =>
            {
                Some(crate::page::BlockNo(start.0 + (from - begin) / BLOCK))
            }
            _ => None,
        })
    }

    /// Sets the size. What lies behind a smaller size is gone, and reads as zeros if the file grows again.
    pub(super) fn resize(&self, node: &Node, state: &mut State, size: u64, caller: &Caller) -> Result<()> {
        file_of(state)?;
        if size > FILE_SIZE_MAX {
            return Err(FsError::FileTooLarge);
        }
        self.strip_capability(node, state)?;
        let mut inode = file_of(state)?.clone();
        if size != inode.size {
            inode.mtime = caller.now;
        }
        if !caller.privileged {
            clear_suid(&mut inode);
        }
        inode.ctime = caller.now;
        let shrinks = size < inode.size;
        inode.size = size;
        if shrinks {
            self.cut(node, state, inode)
        } else {
            self.update(&mut Batch::new(), node, state, inode)
        }
    }

    /// Frees what lies behind the size that `inode` has, in bounded batches. The first one sets the size, and leaves a mark for
    /// recovery if others must follow.
    pub(super) fn cut(&self, node: &Node, state: &mut State, mut inode: Inode) -> Result<()> {
        let size = inode.size;
        let mut marked = false;
        loop {
            let extents = self.extents_in(node.ino, size, u64::MAX, EXTENTS_PER_BATCH)?;
            let last = extents.len() < EXTENTS_PER_BATCH;
            let mut batch = Batch::new();
            for m in &extents {
                batch.delete(&extent_key(node.ino, m.end));
                let mut freed = m.extent.run();
                if m.begin < size {
                    let kept = shortened(m, size);
                    if let (Some(run), Some(kept)) = (&mut freed, kept.run()) {
                        run.start.0 += kept.len as u64;
                        run.len -= kept.len;
                    }
                    batch.put(&extent_key(node.ino, size), &kept.encode());
                }
                if let Some(run) = freed.filter(|r| r.len > 0) {
                    inode.blocks = inode.blocks.saturating_sub(run.len as u64);
                    batch.free(run);
                }
            }
            match (last, marked) {
                (false, false) => batch.put(&orphan_key(node.ino), &Orphan::Truncated.encode()),
                (true, true) if inode.links > 0 => batch.delete(&orphan_key(node.ino)),
                _ => {}
            }
            marked = true;
            self.update(&mut batch, node, state, inode.clone())?;
            if last {
                return Ok(());
            }
        }
    }

    /// Allocates, punches or zeroes a range.
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate, caller: &Caller) -> Result<()> {
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let end = checked_end(offset, len)?;
        let node = self.node(ino);
        let mut state = node.state.write();
        state.load(&self.tree, ino)?;
        if file_of(&state)?.kind != Kind::File {
            return Err(FsError::Invalid);
        }
        self.strip_capability(&node, &mut state)?;
        let zero = matches!(mode, Fallocate::PunchHole | Fallocate::ZeroRange | Fallocate::ZeroKeepSize);
        if zero {
            self.make_hole(&node, &mut state, offset, end, caller)?;
        }
        if mode != Fallocate::PunchHole {
            self.allocate(&node, &mut state, offset, end)?;
        }
        let mut inode = file_of(&state)?.clone();
        if matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange) && inode.size < end {
            inode.size = end;
            inode.mtime = caller.now;
        }
        if zero {
            inode.mtime = caller.now;
        }
        if !caller.privileged {
            clear_suid(&mut inode);
        }
        inode.ctime = caller.now;
        self.update(&mut Batch::new(), &node, &mut state, inode)
    }

    /// Whole blocks of the range become holes, parts of blocks zeros.
    fn make_hole(
        &self,
        node: &Node,
        state: &mut State,
        offset: u64,
        end: u64,
        caller: &Caller,
    ) -> Result<()> {
        let size = file_of(state)?.size;
        let (first, last) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        // The edges, as far as there is something to make zero.
        let edges = if first > last { [(offset, end), (end, end)] } else { [(offset, first), (last, end)] };
        for (from, to) in edges {
            let to = to.min(size);
            if from < to && !self.extents_in(node.ino, from, to, 1)?.is_empty() {
                self.write_piece(node, state, from, &vec![0; (to - from) as usize], caller)?;
            }
        }
        let mut at = first;
        while at < last {
            let extents = self.extents_in(node.ino, at, last, EXTENTS_PER_BATCH)?;
            let until = match extents.last() {
                Some(m) if extents.len() == EXTENTS_PER_BATCH => m.block_end().min(last),
                _ => last,
            };
            let mut batch = Batch::new();
            let remap = self.replace(node.ino, at, until, Vec::new(), &[], &mut batch)?;
            let mut inode = file_of(state)?.clone();
            count_blocks(&mut inode, &remap);
            self.update(&mut batch, node, state, inode)?;
            at = until;
        }
        Ok(())
    }

    /// Holes of the range become unwritten extents. What was allocated before an error stays.
    fn allocate(&self, node: &Node, state: &mut State, offset: u64, end: u64) -> Result<()> {
        let (mut at, to) = (offset / BLOCK * BLOCK, end.next_multiple_of(BLOCK));
        while at < to {
            let next = self.extents_in(node.ino, at, to, 1)?.into_iter().next();
            let hole_end = next.as_ref().map_or(to, |m| m.begin.max(at));
            if hole_end > at {
                let want = ((hole_end - at) / BLOCK).min(EXTENT_BLOCKS_MAX as u64) as u32;
                let run = self.tree.reserve_blocks(want)?;
                let result = self.map_unwritten(node, state, at, run);
                if result.is_err() {
                    self.tree.unreserve_blocks(run);
                }
                result?;
                at += run.len as u64 * BLOCK;
            } else if let Some(m) = next {
                at = m.block_end();
            }
        }
        Ok(())
    }

    fn map_unwritten(&self, node: &Node, state: &mut State, at: u64, run: Run) -> Result<()> {
        let len = run.len * BLOCK_SIZE as u32;
        let extent = Extent::Blocks { len, start: run.start, crcs: Vec::new() };
        let end = at + len as u64;
        let mut batch = Batch::new();
        let new = vec![Mapped { begin: at, end, extent }];
        let remap = self.replace(node.ino, at, end, new, &[run], &mut batch)?;
        let mut inode = file_of(state)?.clone();
        count_blocks(&mut inode, &remap);
        self.update(&mut batch, node, state, inode)
    }

    /// The first byte from `offset` on that is data (or in a hole); the file's end is a hole. `None`: there is none.
    pub fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<Option<u64>> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        let size = file_of(&state)?.size;
        if offset >= size {
            return Ok(None);
        }
        let mut at = offset;
        loop {
            let extents = self.extents_in(ino, at, size, EXTENTS_PER_BATCH)?;
            for m in extents.iter().filter(|m| m.is_data()) {
                if data {
                    return Ok(Some(at.max(m.begin)));
                }
                if m.begin > at {
                    return Ok(Some(at));
                }
                at = m.block_end();
            }
            if extents.len() < EXTENTS_PER_BATCH || at >= size {
                return Ok(if data { None } else { Some(at.min(size)) });
            }
            at = at.max(extents.last().map_or(size, |m| m.end));
        }
    }
}

fn count_blocks(inode: &mut Inode, remap: &Remap) {
    inode.blocks = (inode.blocks + remap.gained).saturating_sub(remap.lost);
}

/// The extent without what lies behind `size`, which lies inside it.
fn shortened(m: &Mapped, size: u64) -> Extent {
    let len = (size - m.begin) as u32;
    match &m.extent {
        Extent::Inline(bytes) => Extent::Inline(bytes[..len as usize].to_vec()),
        Extent::Blocks { start, crcs, .. } => {
            let blocks = len.div_ceil(BLOCK_SIZE as u32) as usize;
            let crcs = crcs.get(..blocks).unwrap_or(&[]).to_vec();
            Extent::Blocks { len, start: *start, crcs }
        }
    }
}
