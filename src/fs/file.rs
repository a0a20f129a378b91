//! File contents: read, write, truncate, fallocate, seek.

use std::cell::RefCell;

use super::error::{FsError, Result};
use super::extents::{BLOCK, Mapped, Source};
use super::format::*;
use super::read_around::SMALL;
use super::table::{Node, State};
use super::{Caller, Fs, Inner, changed_by};
use crate::defects::Defect;
use crate::page::{BLOCK_SIZE, Run};
use crate::storage::AlignedBuf;
use crate::tree::Batch;

/// A longer write is a row of writes, each atomic.
const WRITE_MAX: u64 = 1 << 20;
/// A longer copy of bytes is a row of writes.
pub(super) const COPY_MAX: u64 = WRITE_MAX;
/// Stretches of a file in which an overwrite goes when only the reserve of the image is left: what each one frees serves the next.
const URGENT_MAX: u64 = 64 << 10;
/// Extents that one batch of a truncate or a deletion touches.
pub(super) const EXTENTS_PER_BATCH: usize = 64;

thread_local! {
    /// Where writes are put together that do not begin and end with a block.
    static BUFFER: RefCell<AlignedBuf> = const { RefCell::new(AlignedBuf::new()) };
}

/// Does something with up to [`EXTENTS_PER_BATCH`] extents or, where that is more than the cache has room for, with fewer: what one of
/// them shares with others may need a record for each block.
pub(super) fn in_smaller_batches<T>(mut apply: impl FnMut(usize) -> Result<T>) -> Result<T> {
    let mut extents = EXTENTS_PER_BATCH;
    loop {
        match apply(extents) {
            Err(e) if extents > 1 && is_too_large(&e) => extents /= 2,
            result => return result,
        }
    }
}

/// Whether the cache has no room for a change.
pub(super) fn is_too_large(error: &FsError) -> bool {
    matches!(error, FsError::Engine(crate::Error::TooLarge { .. }))
}

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

pub(super) fn checked_end(offset: u64, len: u64) -> Result<u64> {
    offset.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or(FsError::FileTooLarge)
}

pub(super) fn file_of(state: &State) -> Result<&Inode> {
    let inode = state.get().ok_or(FsError::NotFound)?;
    match inode.kind {
        Kind::File => Ok(inode),
        Kind::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid),
    }
}

impl Fs {
    /// Reads up to `len` bytes; fewer only at the file's end.
    pub fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>> {
        let size = self.attributes(ino)?.size;
        let len = size.saturating_sub(offset).min(len as u64) as usize;
        let mut out = vec![0; len];
        let n = self.read_into(ino, offset, &mut out)?;
        out.truncate(n);
        Ok(out)
    }

    /// Reads into `out`, and returns how many bytes: fewer than its length only at the file's end. What `out` holds behind them is
    /// unspecified.
    ///
    /// Whole blocks go straight to `out`, where they are verified, and past the page cache if `out` begins at a multiple of 4096
    /// (an [`AlignedBuf`]) like `offset`; parts of blocks are copied. The lock is held through the read, so that blocks cannot
    /// be reused under it.
    pub fn read_into(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        let size = file_of(&state)?.size;
        let len = size.saturating_sub(offset).min(out.len() as u64) as usize;
        if len > 0 {
            let found = self.extents_of(ino, &state, offset, offset + len as u64, usize::MAX)?;
            if size < SMALL {
                self.read_around(&found);
            }
            self.read_mapped(ino, &found, offset, out, len)?;
        }
        Ok(len)
    }

    /// Writes, and returns how many bytes: fewer than there are if an error came behind them, which whoever writes the rest is told, or
    /// if the longest possible file ends there.
    /// Clears suid and sgid unless the caller is privileged. What touches no more than 1 MiB of blocks, or 64 KiB in a full image
    /// or a file in many small pieces, is written as a whole or not at all.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], caller: &Caller) -> Result<usize> {
        let room = FILE_SIZE_MAX.saturating_sub(offset);
        if room == 0 && !data.is_empty() {
            return Err(FsError::FileTooLarge);
        }
        let data = &data[..data.len().min(room.try_into().unwrap_or(usize::MAX))];
        let node = self.node(ino);
        let mut state = self.lock(&node)?;
        let mut done = 0;
        match self.write_locked(&node, &mut state, offset, data, caller, &mut done) {
            Err(e) if done == 0 => Err(e),
            _ => Ok(done),
        }
    }
}

/// One write that is being done.
#[derive(Clone, Copy)]
struct Piece<'d> {
    offset: u64,
    data: &'d [u8],
    /// Only the reserve of the image is left.
    urgent: bool,
}

impl Piece<'_> {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
    /// The range of whole blocks around it.
    fn blocks(&self) -> (u64, u64) {
        (self.offset / BLOCK * BLOCK, self.end().next_multiple_of(BLOCK))
    }
    fn first(&self, len: u64) -> Self {
        Piece { data: &self.data[..(len as usize).min(self.data.len())], ..*self }
    }
}

impl Inner {
    /// Writes to a file that is locked for changes, in pieces that end at multiples of the block size, and counts in `done` the bytes
    /// that are written, also before an error.
    pub(super) fn write_locked(
        &self,
        node: &Node,
        state: &mut State,
        offset: u64,
        data: &[u8],
        caller: &Caller,
        done: &mut usize,
    ) -> Result<()> {
        if offset + data.len() as u64 > file_of(state)?.size {
            self.finish_cut(node, state)?;
        }
        self.strip_capability(node, state)?;
        let mut limit = WRITE_MAX;
        while *done < data.len() {
            let rest = Piece { offset: offset + *done as u64, data: &data[*done..], urgent: false };
            let piece = rest.first(limit - rest.offset % BLOCK);
            *done += match self.write_piece(node, state, piece, caller) {
                // There may be room for a part.
                Err(FsError::NoSpace) if piece.data.len() as u64 > URGENT_MAX - piece.offset % BLOCK => {
                    limit = URGENT_MAX;
                    continue;
                }
                Err(FsError::NoSpace) => self.write_urgently(node, state, rest, caller)?,
                // The free blocks lie in so many pieces that a small cache has no room for all their records at once.
                Err(e) if limit > BLOCK && is_too_large(&e) => {
                    limit = (limit / 2).next_multiple_of(BLOCK);
                    continue;
                }
                written => written?,
            };
        }
        Ok(())
    }

    /// Overwrites the first part of `rest` from the image's reserve, and with it what lies around it in the same stretches, if there
    /// is room for that. A block of its own in the middle of an extent would make three of one: for a file that is overwritten all
    /// over that is more records than the reserve has room for. Returns how many bytes of `rest`.
    fn write_urgently(
        &self,
        node: &Node,
        state: &mut State,
        rest: Piece<'_>,
        caller: &Caller,
    ) -> Result<usize> {
        let _alone = self.overwriting.lock();
        let piece = Piece { urgent: true, ..rest.first(URGENT_MAX - rest.offset % BLOCK) };
        let size = file_of(state)?.size;
        let (mut from, mut to) = piece.blocks();
        let (least, most) = (from / URGENT_MAX * URGENT_MAX, to.next_multiple_of(URGENT_MAX));
        let old = self.extents_in(node.ino, least, most, usize::MAX)?;
        while from > least && self.is_allocated(&old, (from - BLOCK, from))? {
            from -= BLOCK;
        }
        while to < most && to < size && self.is_allocated(&old, (to, to + BLOCK))? {
            to += BLOCK;
        }
        let mut bytes = vec![0; (to - from) as usize];
        let len = bytes.len();
        // Damage beside it does not concern who writes here.
        if self.is_allocated(&old, (from, to))?
            && self.read_mapped(node.ino, &old, from, &mut bytes, len).is_ok()
        {
            bytes.truncate((to.min(size.max(piece.end())) - from) as usize);
            bytes[(piece.offset - from) as usize..][..piece.data.len()].copy_from_slice(piece.data);
            match self.write_piece(node, state, Piece { offset: from, data: &bytes, urgent: true }, caller) {
                Err(FsError::NoSpace) => {}
                written => return written.map(|_| piece.data.len()),
            }
        }
        self.write_piece(node, state, piece, caller)
    }

    /// Whether the file has blocks of its own for the whole range, so that to replace them gives as many back. Blocks that were shared
    /// once may be nobody else's any more, and nobody gets at them while this inode is locked.
    fn is_allocated(&self, old: &[Mapped], (from, to): (u64, u64)) -> Result<bool> {
        let mut at = from;
        for m in old.iter().filter(|m| m.extent.run().is_some()) {
            if m.begin <= at && m.block_end() > at {
                if self.is_anybody_elses(m, (at, to))? {
                    return Ok(false);
                }
                at = m.block_end();
            }
        }
        Ok(at >= to)
    }

    /// Whether another extent has a block of this one in the range.
    fn is_anybody_elses(&self, m: &Mapped, (from, to): (u64, u64)) -> Result<bool> {
        let part = if m.is_shared() { m.part(from, to) } else { None };
        let run = part.and_then(|part| part.extent.run());
        run.map_or(Ok(false), |run| Ok(self.shared_blocks(run)? > 0))
    }

    /// One atomic write of the piece or, where the file is in very small pieces, of its first part. Returns how many bytes. What was
    /// allocated and not written is written in place, so that it can be written also when the image is full. On entry and exit
    /// the inode is locked for changes.
    fn write_piece(
        &self,
        node: &Node,
        state: &mut State,
        piece: Piece<'_>,
        caller: &Caller,
    ) -> Result<usize> {
        let mut inode = file_of(state)?.clone();
        changed_by(&mut inode, caller);
        let (from, to) = piece.blocks();
        let old = match inode.is_empty() {
            true => Vec::new(),
            false => self.extents_in(node.ino, from.saturating_sub(1), to + 1, EXTENTS_PER_BATCH + 2)?,
        };
        let size = inode.size.max(piece.end());
        if size <= INLINE_MAX as u64 && old.iter().all(|m| m.is_inline() || m.begin >= to) {
            self.write_inline(node, state, piece, &old, inode)?;
            return Ok(piece.data.len());
        }
        // A batch is bounded, also where a file is in small pieces.
        let piece = match old.last() {
            Some(last) if old.len() == EXTENTS_PER_BATCH + 2 && last.begin > piece.offset => {
                piece.first(last.begin - piece.offset)
            }
            _ => piece,
        };
        if piece.urgent && !self.is_allocated(&old, piece.blocks())? {
            return Err(FsError::NoSpace);
        }
        let grown = (piece.end() > inode.size && piece.offset > 0).then_some(inode.blocks);
        inode.size = inode.size.max(piece.end());
        if self.tree.defects().has(Defect::SizeBeforeContents) {
            self.update(&mut Batch::new(), node, state, inode.clone())?;
        }
        let place = Place { ino: node.ino, old: &old, grown, urgent: piece.urgent };
        let (mut taken, mut batch) = (Vec::new(), Batch::new());
        let written = self
            .write_blocks_of(piece, place, inode.size, &mut taken, &mut batch)
            .and_then(|new| {
                self.replace(node.ino, piece.blocks(), &old, new, Source::Reserved(&taken), batch)
            })
            .and_then(|remap| self.apply_remap(remap, node, state, inode));
        match written {
            Ok(()) => Ok(piece.data.len()),
            Err(e) => {
                taken.into_iter().for_each(|run| self.tree.unreserve_blocks(run));
                Err(e)
            }
        }
    }

    /// A write to a file that is small enough to lie in the tree.
    fn write_inline(
        &self,
        node: &Node,
        state: &mut State,
        piece: Piece<'_>,
        old: &[Mapped],
        mut inode: Inode,
    ) -> Result<()> {
        let size = inode.size.max(piece.end());
        if size > inode.size {
            self.admit()?;
        }
        let mut bytes = vec![0; size as usize];
        if let Some(Mapped { extent: Extent::Inline(before), .. }) = old.first() {
            let kept = before.len().min(bytes.len());
            bytes[..kept].copy_from_slice(&before[..kept]);
        }
        bytes[piece.offset as usize..piece.end() as usize].copy_from_slice(piece.data);
        let mut batch = Batch::new();
        for m in old.iter().filter(|m| m.is_inline() && m.end != size) {
            batch.delete(&extent_key(node.ino, m.end));
        }
        let contents = Extent::Inline(bytes);
        batch.put_with(&extent_key(node.ino, size), |record| contents.encode_into(record));
        inode.size = size;
        self.update(&mut batch, node, state, inode)
    }

    /// Writes the blocks around a piece: what is not of the piece is read before. Returns the extents.
    fn write_blocks_of(
        &self,
        piece: Piece<'_>,
        place: Place<'_>,
        size: u64,
        taken: &mut Vec<Run>,
        batch: &mut Batch,
    ) -> Result<Vec<Mapped>> {
        let (from, to) = piece.blocks();
        // Lost contents need not be read where all of them are written again.
        let replaced = |m: &Mapped| m.is_lost() && m.begin >= piece.offset && m.end <= piece.end();
        let rest: Vec<Mapped>;
        let mut place = place;
        if place.old.iter().any(replaced) {
            rest = place.old.iter().filter(|m| !replaced(m)).cloned().collect();
            place.old = &rest;
        }
        let whole = piece.offset == from && piece.end() == to;
        let mut write = |bytes: &[u8]| self.write_new(place, (from, to.min(size)), bytes, taken, batch);
        if whole {
            return write(piece.data);
        }
        let assemble = |bytes: &mut [u8]| {
            if piece.offset > from {
                self.read_mapped(place.ino, place.old, from, &mut bytes[..BLOCK_SIZE], BLOCK_SIZE)?;
            }
            if piece.end() < to && (to - from > BLOCK || piece.offset == from) {
                let last = bytes.len() - BLOCK_SIZE;
                self.read_mapped(place.ino, place.old, to - BLOCK, &mut bytes[last..], BLOCK_SIZE)?;
            }
            let begin = (piece.offset - from) as usize;
            bytes[begin..begin + piece.data.len()].copy_from_slice(piece.data);
            Ok::<_, FsError>(())
        };
        let len = (to - from) as usize;
        BUFFER.with_borrow_mut(|buffer| {
            buffer.reset(len);
            assemble(buffer)?;
            write(buffer)
        })
    }

    /// Writes whole blocks and returns their extents, which lie between the two bytes of the file. All blocks are new, or those of
    /// an unwritten extent (E2). `taken` gets the new ones, for the batch or to be given back; `batch` may get the contents as well.
    fn write_new(
        &self,
        place: Place<'_>,
        (begin, end): (u64, u64),
        data: &[u8],
        taken: &mut Vec<Run>,
        batch: &mut Batch,
    ) -> Result<Vec<Mapped>> {
        let mut extents = Vec::new();
        let mut done = 0;
        while done < data.len() {
            let from = begin + done as u64;
            let left = begin + data.len() as u64 - from;
            let mut write = |run: Run| {
                let piece = &data[done..done + run.len as usize * BLOCK_SIZE];
                // Blocks are there, but the host may have no space for them before others are given back.
                self.or_after_cleaning(|| Ok(self.tree.write_blocks_logged(run.start, piece, batch)?))
            };
            let run = match place.unwritten(from) {
                Unwritten::Here(run) => {
                    let run = Run { len: run.len.min((left / BLOCK) as u32), ..run };
                    write(run)?;
                    run
                }
                Unwritten::Next(at) => {
                    let want = (left.min(at - from) / BLOCK).min(EXTENT_BLOCKS_MAX as u64) as u32;
                    let take = || match place.urgent {
                        true => self.take_blocks_urgently(want),
                        false => self.take_blocks(place.ino, place.grown, want),
                    };
                    let mut run = take()?;
                    let mut written = write(run);
                    if matches!(written, Err(FsError::NoSpace)) {
                        // Other blocks may be such as the host has given already.
                        self.tree.unreserve_blocks(run);
                        self.drop_window(place.ino);
                        self.tree.prefer_used_blocks();
                        run = take()?;
                        written = write(run);
                    }
                    taken.push(run);
                    written?;
                    run
                }
            };
            let piece = &data[done..done + run.len as usize * BLOCK_SIZE];
            let len = (piece.len() as u64).min(end - from) as u32;
            let crcs = piece.chunks(BLOCK_SIZE).map(crc32fast::hash).collect();
            extents.push(Mapped::new(from, Extent::Blocks { len, start: run.start, shared: false, crcs }));
            done += piece.len();
        }
        Ok(extents)
    }
}

impl Inner {
    /// Blocks of a file that are allocated in a range, or only those that are nobody else's.
    fn blocks_in(&self, ino: Ino, (from, to): (u64, u64), own: bool) -> Result<u64> {
        let (from, to) = (from / BLOCK * BLOCK, to.next_multiple_of(BLOCK));
        let (mut at, mut blocks) = (from, 0);
        loop {
            let found = self.extents_in(ino, at, to, EXTENTS_PER_BATCH)?;
            for m in found.iter().filter_map(|m| m.part(from, to)) {
                let Some(run) = m.extent.run() else { continue };
                let others = if own && m.is_shared() { self.shared_blocks(run)? } else { 0 };
                blocks += (run.len as u64).saturating_sub(others);
            }
            match found.last() {
                Some(last) if found.len() == EXTENTS_PER_BATCH && last.end < to => at = last.end,
                _ => return Ok(blocks),
            }
        }
    }
}

impl Fs {
    /// Allocates, punches or zeroes a range.
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate, caller: &Caller) -> Result<()> {
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let end = checked_end(offset, len)?;
        let node = self.node(ino);
        let mut state = self.lock(&node)?;
        if end > file_of(&state)?.size {
            self.finish_cut(&node, &mut state)?;
        }
        self.strip_capability(&node, &mut state)?;
        let zero = matches!(mode, Fallocate::PunchHole | Fallocate::ZeroRange | Fallocate::ZeroKeepSize);
        // What cannot be there as a whole is not begun, as far as numbers of blocks can tell.
        let whole = (end - offset) / BLOCK;
        if mode != Fallocate::PunchHole && self.blocks_for_data() < whole {
            // What is there stays, or is given back first.
            let there = self.blocks_in(ino, (offset, end), zero)?;
            let (missing, given_back) = if zero { (whole, there) } else { (whole.saturating_sub(there), 0) };
            self.or_after_cleaning(|| match self.blocks_for_data_with(given_back) >= missing {
                true => Ok(()),
                false => Err(FsError::NoSpace),
            })?;
        }
        if zero {
            self.make_hole(&node, &mut state, offset, end, caller)?;
        }
        if mode != Fallocate::PunchHole {
            self.allocate(&node, &mut state, offset, end)?;
        }
        let mut inode = file_of(&state)?.clone();
        if matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange) && inode.size < end {
            inode.size = end;
        }
        changed_by(&mut inode, caller);
        self.update(&mut Batch::new(), &node, &mut state, inode)
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
            let extents = self.extents_of(ino, &state, at, size, EXTENTS_PER_BATCH)?;
            for m in &extents {
                match (data, m.is_unwritten()) {
                    (true, true) => {}
                    (true, false) => return Ok(Some(at.max(m.begin))),
                    (false, true) => return Ok(Some(at)),
                    (false, false) if m.begin > at => return Ok(Some(at)),
                    (false, false) => at = m.block_end(),
                }
            }
            if extents.len() < EXTENTS_PER_BATCH || at >= size {
                return Ok(if data { None } else { Some(at.min(size)) });
            }
            at = at.max(extents.last().map_or(size, |m| m.end));
        }
    }
}

impl Fs {
    /// The rest of the contents at `at` that a repair has given up, if they are such: where they end.
    pub(super) fn lost_until(&self, ino: Ino, at: u64) -> Result<Option<u64>> {
        let found = self.extents_in(ino, at, at.saturating_add(1), 1)?;
        Ok(found.first().filter(|m| m.is_lost()).map(|m| m.end))
    }
}

impl Inner {
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
                self.write_locked(node, state, from, &vec![0; (to - from) as usize], caller, &mut 0)?;
            }
        }
        let mut at = first;
        while at < last {
            at = in_smaller_batches(|extents| self.punch_some(node, state, (at, last), extents, caller))?;
        }
        Ok(())
    }

    /// Makes a hole of the first part of a range, with up to so many extents; returns where the part ends.
    fn punch_some(
        &self,
        node: &Node,
        state: &mut State,
        (from, to): (u64, u64),
        extents: usize,
        caller: &Caller,
    ) -> Result<u64> {
        let found = self.extents_in(node.ino, from, to, extents)?;
        let until = match found.last() {
            Some(m) if found.len() == extents => m.block_end().min(to),
            _ => to,
        };
        let old = self.extents_in(node.ino, from.saturating_sub(1), until + 1, usize::MAX)?;
        for m in &old {
            if self.is_anybody_elses(m, (from, until))? {
                // It gives nothing back, and its counts may need records.
                self.admit_change()?;
                break;
            }
        }
        let remap =
            self.replace(node.ino, (from, until), &old, Vec::new(), Source::Reserved(&[]), Batch::new())?;
        let mut inode = file_of(state)?.clone();
        changed_by(&mut inode, caller);
        self.apply_remap(remap, node, state, inode)?;
        Ok(until)
    }

    /// Gives contents that lie in the tree a block, so that it takes what is written behind them.
    fn give_block(&self, node: &Node, state: &mut State, bytes: &[u8]) -> Result<()> {
        let mut block = vec![0; BLOCK_SIZE];
        block[..bytes.len()].copy_from_slice(bytes);
        let (mut taken, mut batch) = (Vec::new(), Batch::new());
        let place = Place { ino: node.ino, old: &[], grown: None, urgent: false };
        let old = self.extents_in(node.ino, 0, BLOCK + 1, usize::MAX)?;
        let given = self
            .write_new(place, (0, bytes.len() as u64), &block, &mut taken, &mut batch)
            .and_then(|new| self.replace(node.ino, (0, BLOCK), &old, new, Source::Reserved(&taken), batch))
            .and_then(|remap| {
                let inode = file_of(state)?.clone();
                self.apply_remap(remap, node, state, inode)
            });
        if given.is_err() {
            taken.into_iter().for_each(|run| self.tree.unreserve_blocks(run));
        }
        given
    }

    /// Holes of the range become unwritten extents. What was allocated before an error stays.
    fn allocate(&self, node: &Node, state: &mut State, offset: u64, end: u64) -> Result<()> {
        if let [Mapped { end: size, extent: Extent::Inline(bytes), .. }] =
            &self.extents_in(node.ino, offset / BLOCK * BLOCK, end, 1)?[..]
            && end > *size
        {
            self.give_block(node, state, bytes)?;
        }
        let (mut at, to) = (offset / BLOCK * BLOCK, end.next_multiple_of(BLOCK));
        while at < to {
            let next = self.extents_in(node.ino, at, to, 1)?.into_iter().next();
            let hole_end = next.as_ref().map_or(to, |m| m.begin.max(at));
            if hole_end > at {
                let want = ((hole_end - at) / BLOCK).min(EXTENT_BLOCKS_MAX as u64) as u32;
                let run = self.take_blocks(node.ino, None, want)?;
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
        let extent = Extent::Blocks { len, start: run.start, shared: false, crcs: Vec::new() };
        let new = vec![Mapped::new(at, extent)];
        let end = at + len as u64;
        let old = self.extents_in(node.ino, at.saturating_sub(1), end + 1, usize::MAX)?;
        let remap = self.replace(node.ino, (at, end), &old, new, Source::Reserved(&[run]), Batch::new())?;
        let inode = file_of(state)?.clone();
        self.apply_remap(remap, node, state, inode)
    }
}

/// How the blocks of a write are found.
#[derive(Clone, Copy)]
struct Place<'o> {
    ino: Ino,
    /// What the write replaces.
    old: &'o [Mapped],
    /// The blocks that the file has, if this makes it grow.
    grown: Option<u64>,
    /// From the image's reserve.
    urgent: bool,
}

/// Blocks of a file that are allocated and were never written.
enum Unwritten {
    /// These stand where it was asked for.
    Here(Run),
    /// The next ones begin at this byte of the file.
    Next(u64),
}

impl Place<'_> {
    /// The unwritten blocks at a byte of the file or behind it.
    fn unwritten(&self, at: u64) -> Unwritten {
        let Some(next) = self.old.iter().find(|m| m.is_unwritten() && m.block_end() > at) else {
            return Unwritten::Next(u64::MAX);
        };
        match next.block_at(at) {
            Some(start) if next.begin <= at => {
                Unwritten::Here(Run { start, len: ((next.block_end() - at) / BLOCK) as u32 })
            }
            _ => Unwritten::Next(next.begin),
        }
    }
}
