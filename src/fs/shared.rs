//! Blocks that several extents share: their counts, and copying without copying.
//!
//! - **H1** The number of extents that a block in use belongs to is that of the [`Shared`] record that covers it; without one
//!   it is one. Records do not overlap.
//! - **H2** A block that belongs to more than one extent belongs only to extents that say *shared*. The reverse need not be: an
//!   extent keeps saying so when the others are gone.
//! - **H3** Counts change in the batch that changes the extents, and are read and changed under one lock. Inode locks come
//!   before it, latches after it.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{FsError, Result};
use super::extents::{BLOCK, Mapped, Remap, Source};
use super::file::{COPY_MAX, EXTENTS_PER_BATCH, checked_end, file_of, is_too_large};
use super::format::*;
use super::table::{Node, State};
use super::{Caller, Fs, Inner, changed_by};
use crate::defects::Defect;
use crate::page::{BlockNo, Run};
use crate::tree::Batch;

/// Extents that one batch of a copy shares.
const SHARES_PER_BATCH: usize = 8;
/// The bytes that one call copies at the most where blocks can be shared.
const SHARED_AT_ONCE: u64 = 256 << 20;
/// The same where they cannot.
const COPIED_AT_ONCE: u64 = 4 << 20;

impl Inner {
    /// Adds to a change what it means for the counts of shared blocks, and applies it (H3).
    pub(super) fn with_counts(
        &self,
        mut remap: Remap,
        apply: impl FnOnce(&mut Batch) -> Result<()>,
    ) -> Result<()> {
        if remap.shares.is_empty() {
            return apply(&mut remap.batch);
        }
        let _counts = self.sharing.lock();
        if self.tree.defects().has(Defect::CountSharedLater) {
            apply(&mut remap.batch)?;
            let mut counts = Batch::new();
            self.recount(&remap.shares, &mut counts)?;
            return Ok(self.tree.apply(&counts).map(drop)?);
        }
        self.recount(&remap.shares, &mut remap.batch)?;
        apply(&mut remap.batch)
    }

    /// Collects the changes of counts: each run by its number. What belongs to nobody then is freed. The lock of counts is held.
    fn recount(&self, changes: &[(Run, i64)], batch: &mut Batch) -> Result<()> {
        let mut steps: BTreeMap<u64, i64> = BTreeMap::new();
        for (run, change) in changes {
            *steps.entry(run.start.0).or_default() += change;
            *steps.entry(run.end().0).or_default() -= change;
        }
        // Where the sum is not zero, as begin -> (end, change); and the records there and beside them, as end -> (begin, count).
        let mut segments: BTreeMap<u64, (u64, i64)> = BTreeMap::new();
        let mut records: BTreeMap<u64, (u64, i64)> = BTreeMap::new();
        let (mut begin, mut sum) = (0, 0);
        for (at, step) in steps {
            if sum != 0 && at > begin {
                segments.insert(begin, (at, sum));
                self.counts_in(begin.saturating_sub(1), at + 1, &mut records)?;
            }
            (begin, sum) = (at, sum + step);
        }
        let mut points: BTreeSet<u64> = BTreeSet::new();
        points.extend(segments.iter().flat_map(|(begin, (end, _))| [*begin, *end]));
        points.extend(records.iter().flat_map(|(end, (begin, _))| [*begin, *end]));
        let points: Vec<u64> = points.into_iter().collect();
        let mut counted: Vec<(u64, u64, i64)> = Vec::new();
        for pair in points.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let record = records.range(to..).next().filter(|(_, (begin, _))| *begin <= from);
            let segment = segments.range(..=from).next_back().filter(|(_, (end, _))| *end >= to);
            let change = segment.map_or(0, |(_, (_, change))| *change);
            if record.is_none() && change == 0 {
                continue;
            }
            let count = record.map_or(1, |(_, (_, count))| *count) + change;
            match counted.last_mut() {
                Some(last) if last.1 == from && last.2 == count => last.1 = to,
                _ => counted.push((from, to, count)),
            }
        }
        let mut kept: BTreeMap<u64, (u64, i64)> = BTreeMap::new();
        for (from, to, count) in counted {
            let run = Run { start: BlockNo(from), len: (to - from) as u32 };
            match count {
                2.. => drop(kept.insert(to, (from, count))),
                1 => {}
                0 => batch.free(run),
                _ => {
                    let reason = "it belongs to more extents than are counted";
                    return Err(FsError::Engine(crate::Error::corrupt(run, reason)));
                }
            }
        }
        for end in records.keys().filter(|end| !kept.contains_key(end)) {
            batch.delete(&shared_key(*end));
        }
        for (end, (from, count)) in kept.iter().filter(|(end, k)| records.get(end) != Some(k)) {
            let count = u32::try_from(*count).map_err(|_| FsError::TooManyLinks)?;
            batch.put(&shared_key(*end), &Shared { len: (end - from) as u32, count }.encode());
        }
        Ok(())
    }

    /// Adds the records that cover blocks from `from` up to `to`, as end → (begin, count).
    fn counts_in(&self, from: u64, to: u64, found: &mut BTreeMap<u64, (u64, i64)>) -> Result<()> {
        let mut cursor = self.tree.cursor();
        cursor.seek(&shared_key(from + 1))?;
        let mut last = 0;
        while cursor.next()? {
            let Some(end) = shared_end(cursor.key()) else { break };
            let shared = Shared::decode(end, cursor.value())?;
            let begin = end - shared.len as u64;
            if begin >= to {
                break;
            }
            if begin < last {
                let place = format_args!("shared blocks before block {end}");
                return Err(FsError::Engine(crate::Error::corrupt(place, "they are counted twice")));
            }
            last = end;
            found.insert(end, (begin, shared.count as i64));
        }
        Ok(())
    }

    /// How many blocks of a run belong to more than one extent. The caller does not hold `sharing`.
    pub(super) fn shared_blocks(&self, run: Run) -> Result<u64> {
        // A count that is split meanwhile may be found in none of two pages (H3).
        let _counts = self.sharing.lock();
        let (from, to) = (run.start.0, run.end().0);
        let mut records = BTreeMap::new();
        self.counts_in(from, to, &mut records)?;
        let inside =
            |(end, (begin, _)): (&u64, &(u64, i64))| (*end).min(to).saturating_sub((*begin).max(from));
        Ok(records.iter().map(inside).sum())
    }

    /// Makes the blocks of a range of one file the contents of another range, in bounded batches, each of which sets the size.
    /// All numbers are multiples of the block size, and the ranges do not overlap. Both inodes are locked for changes; `from` has
    /// no inline contents in the range. Returns how far it came, and the error that ended it.
    fn share_range(
        &self,
        from: Ino,
        begin: u64,
        (to, state): (&Node, &mut State),
        to_begin: u64,
        len: u64,
        caller: &Caller,
    ) -> (u64, Result<()>) {
        let (mut done, mut limit) = (0, len);
        while done < len {
            let end = begin + len.min(done + limit);
            match self.share_some(from, (begin + done, end), to, state, to_begin + done, caller) {
                Ok(n) => done += n,
                // What the target shares in turn may need more records than the cache has room for.
                Err(e) if limit > BLOCK && is_too_large(&e) => {
                    limit = (limit / 2).next_multiple_of(BLOCK);
                }
                Err(e) => return (done, Err(e)),
            }
        }
        (done, Ok(()))
    }

    /// One batch of [`Inner::share_range`]. Returns how many bytes of the file it has dealt with.
    fn share_some(
        &self,
        from: Ino,
        (begin, end): (u64, u64),
        to: &Node,
        state: &mut State,
        to_begin: u64,
        caller: &Caller,
    ) -> Result<u64> {
        self.admit()?;
        let mut found = self.extents_in(from, begin, end, SHARES_PER_BATCH)?;
        let until = match found.last() {
            Some(last) if found.len() == SHARES_PER_BATCH => last.block_end().min(end),
            _ => end,
        };
        if let Some(lost) = found.iter().find(|m| m.is_lost() && m.begin < until) {
            let reason = format_args!("its bytes {} to {} were lost", lost.begin, lost.end);
            return Err(FsError::unreadable(from, reason));
        }
        found.retain(|m| !m.is_unwritten());
        // First, in a batch of its own, the extents say that they may be shared: true in any case, and when the same file is
        // copied to, the second batch can change the same records.
        let mut flags = Batch::new();
        for m in &mut found {
            if let Extent::Blocks { shared, .. } = &mut m.extent
                && !*shared
            {
                *shared = true;
                flags.put(&extent_key(from, m.end), &m.extent.encode());
            }
        }
        if !flags.is_empty() {
            self.tree.apply(&flags)?;
        }
        // A batch is bounded, also where the target is in small pieces.
        let to_end = to_begin + (until - begin);
        let old = self.extents_in(to.ino, to_begin.saturating_sub(1), to_end + 1, EXTENTS_PER_BATCH + 2)?;
        let until = match old.last() {
            Some(last) if old.len() == EXTENTS_PER_BATCH + 2 => until.min(last.begin - to_begin + begin),
            _ => until,
        };
        let moved = |m: Mapped| Mapped::new(m.begin - begin + to_begin, m.extent);
        let new = found.iter().filter_map(|m| m.part(begin, until)).map(moved).collect();
        let range = (to_begin, to_begin + (until - begin));
        let remap = self.replace(to.ino, range, &old, new, Source::Shared, Batch::new())?;
        let mut inode = file_of(state)?.clone();
        inode.size = inode.size.max(range.1);
        changed_by(&mut inode, caller);
        self.apply_remap(remap, to, state, inode)?;
        Ok(until - begin)
    }

    /// Copies bytes of one file to another; both inodes are locked for changes. Returns how far it came.
    fn copy_bytes(
        &self,
        from: Ino,
        offset: u64,
        (to, state): (&Node, &mut State),
        to_offset: u64,
        len: u64,
        caller: &Caller,
    ) -> (u64, Result<()>) {
        let mut bytes = vec![0; len.min(COPY_MAX) as usize];
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(COPY_MAX) as usize;
            let mut written = 0;
            let copied = self.read_extents(from, offset + done, &mut bytes[..piece], piece).and_then(|()| {
                self.write_locked(to, state, to_offset + done, &bytes[..piece], caller, &mut written)
            });
            done += written as u64;
            if copied.is_err() {
                return (done, copied);
            }
        }
        (done, Ok(()))
    }
}

impl Fs {
    /// Copies up to `len` bytes from one file, or one part of a file, to another, as copy_file_range(2) does. Returns how many:
    /// fewer at the source's end, where an error came when something had been copied already, and of a long range: both inodes are locked
    /// to the end, and a kernel lets nobody kill who waits.
    ///
    /// Where both offsets lie equally within a block, whole blocks are not copied but shared. A long copy is a row of batches.
    ///
    /// # Errors
    /// [`FsError::Invalid`] if both ranges lie in the same file and overlap.
    pub fn copy_range(
        &self,
        from: Ino,
        offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        caller: &Caller,
    ) -> Result<u64> {
        let (from_node, to_node) = (self.node(from), self.node(to));
        // Before both are locked: directories are locked in another order (I2).
        for node in [&from_node, &to_node] {
            file_of(&*self.lock_shared(node)?)?;
        }
        // By number (I2). Also the source is changed: its extents are marked as shared.
        let mut first = if from < to { Some(self.lock_in_memory(&from_node)?) } else { None };
        let mut state = self.lock_in_memory(&to_node)?;
        let mut second = if from > to { Some(self.lock_in_memory(&from_node)?) } else { None };
        let source = first.as_ref().or(second.as_ref());
        let size = file_of(source.map_or(&*state, |s| s))?.size;
        file_of(&state)?;
        let len = len.min(size.saturating_sub(offset));
        checked_end(to_offset, len)?;
        if from == to && offset.abs_diff(to_offset) < len {
            return Err(FsError::Invalid);
        }
        if len == 0 {
            return Ok(0);
        }
        self.attach(&to_node, &mut state)?;
        if let Some(source) = first.as_mut().or(second.as_mut()) {
            self.attach(&from_node, source)?;
        }
        let shares = offset % BLOCK == to_offset % BLOCK;
        let len = len.min(if shares { SHARED_AT_ONCE } else { COPIED_AT_ONCE });
        self.finish_cut(&to_node, &mut state)?;
        self.strip_capability(&to_node, &mut state)?;
        let mut pieces = Vec::with_capacity(3);
        let end = offset + len;
        let (whole, whole_end) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        let inline = self.extents_in(from, 0, 1, 1)?.iter().any(Mapped::is_inline);
        let whole = if inline { whole.max(BLOCK) } else { whole };
        if shares && whole < whole_end {
            pieces.extend([(offset, whole, false), (whole, whole_end, true), (whole_end, end, false)]);
        } else {
            pieces.push((offset, end, false));
        }
        let mut copied = 0;
        for (at, until, share) in pieces {
            let (place, n) = (to_offset + copied, until - at);
            let (done, result) = if share {
                self.share_range(from, at, (&to_node, &mut state), place, n, caller)
            } else {
                self.copy_bytes(from, at, (&to_node, &mut state), place, n, caller)
            };
            copied += done;
            match result {
                Err(e) if copied == 0 => return Err(e),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        Ok(copied)
    }
}
