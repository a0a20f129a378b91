//! The flusher: dirty pages go home through the doublewrite area, and checkpoints free the log.
//!
//! One flusher at a time works, under the flusher's mutex; it holds nothing else while it waits for a latch.
//!
//! - **D1** A page is written only when the log is durable up to its LSN.
//! - **D2** A page that was on disk before is copied to a doublewrite half, durably, before it is overwritten. A page born
//!   since its last write needs no copy: until that write is synced, the checkpoint stays before its birth, and redo makes it anew.
//! - **D3** A half is reused only after a sync that began after its pages' in-place writes completed.
//! - **D4** The checkpoint is at most the log's end as it was *before* the dirty table was read, and at most every
//!   page's recLSN; everything older was synced before the superblock is written, and log space is freed after.
//! - **D5** Both superblocks tell of a checkpoint before anything relies on it: the first record of an incarnation, records that
//!   overwrite the log behind it, blocks that leave quarantine by it, what lies in space that was gained. So damage to either of them
//!   loses nothing: the other leads to the same state.
//! - **D6** Until a page that was written home is synced, the host may fail to write it and drop it, and the version before it passes every
//!   check. So it is remembered which version was written: an older one is not believed. Recovery makes the page anew (D4).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::frames::{FrameNo, PageMemory};
use super::{Pool, Progress};
use crate::defects::Defect;
use crate::error::{Error, Result};
use crate::page::format::{page_lsn, seal};
use crate::page::superblock::{DoublewriteHeader, SUPERBLOCK_OFFSETS, Superblock};
use crate::page::{Lsn, PAGE_SIZE, PageBytes, PageId};
use crate::storage::sim::site_scope;
use crate::sync::spin_wait;

/// What the flusher alone uses.
pub struct Flusher {
    /// The superblock as it was written last.
    pub superblock: Superblock,
    /// Room for a header page and a batch of copies; absent while a batch is on its way.
    memory: Option<PageMemory>,
    /// The doublewrite batch written last.
    pub sequence: u64,
    half: usize,
    /// D3: whether the in-place writes of each half's batch have been synced.
    synced: [bool; 2],
}

/// Pages that are written in one call, at the most.
const PIECE: usize = 16;
/// The same while somebody commits: the next commit's flush of the disk includes this piece.
const PIECE_BESIDE_COMMITS: usize = 4;
/// Free chunks of which the host is asked at a time whether it has space for them.
const LOOKS: usize = 256;
/// Who waits for the flusher looks so often whether writing has ended, or the image has become read-only: nobody may tell him of these.
const PROGRESS_PAUSE: Duration = Duration::from_millis(20);
/// A flusher whom nobody asks for anything rests so long before it looks again for what can leave quarantine or go back to the host. Who needs
/// space does not wait for that.
const IDLE_PAUSE: Duration = Duration::from_millis(100);

/// A copy of a page that is on its way home.
struct Copy {
    page: PageId,
    lsn: Lsn,
    frame: FrameNo,
    rec_lsn: u64,
    newborn: bool,
}

impl Flusher {
    /// A flusher for an image with this superblock. Both halves may be overwritten.
    pub fn new(superblock: Superblock, sequence: u64) -> std::io::Result<Self> {
        let memory = Some(PageMemory::new(superblock.doublewrite_pages as usize + 1)?);
        Ok(Flusher { superblock, memory, sequence, half: 0, synced: [true, true] })
    }
}

impl Pool {
    /// Writes all pages home that are dirty from before now, and frees the log behind the oldest that is left.
    pub fn checkpoint(&self) -> Result<()> {
        let mut flusher = self.flusher.lock();
        // Set only while nothing can be changed.
        let clean = flusher.superblock.clean;
        let noted = flusher.superblock.is_damaged() || !self.damaged.load(Ordering::SeqCst);
        if self.opened_read_only || clean && noted {
            self.announce_progress();
            return Ok(());
        }
        self.checkpoint_with(&mut flusher, clean)
    }

    /// Ends all changes of the image, or admits them again. When this returns after `read_only`, everything applied before is
    /// durable and home, the image is marked as closed in order, and nothing writes to it any more but data writes that had begun,
    /// and the mark of damage. Holds no latch and no epoch; waits for transactions under way.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the image's file was cut short meanwhile: everything that there is is durable, and the image not marked as
    /// closed. [`Error::ReadOnly`] if changes are to be admitted to an image that was opened read-only; the latched error, in which case
    /// changes stay refused.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        if self.opened_read_only {
            return if read_only { Ok(()) } else { Err(Error::ReadOnly) };
        }
        let _switching = self.switching.lock();
        if read_only == self.is_read_only() {
            return self.log.check();
        }
        if !read_only {
            // No longer closed in order, durably, before the first record.
            self.checkpoint_with(&mut self.flusher.lock(), false)?;
            self.read_only.store(false, Ordering::SeqCst);
            return Ok(());
        }
        self.read_only.store(true, Ordering::SeqCst);
        loop {
            self.log.check()?;
            let mut flusher = self.flusher.lock();
            self.flush_older(&mut flusher, Lsn(u64::MAX))?;
            // No frame is dirty, and none is set aside for a transaction; nor will be (P2).
            if self.dirty_frames() == 0 {
                return self.checkpoint_with(&mut flusher, true);
            }
            drop(flusher);
            spin_wait();
        }
    }

    pub(super) fn checkpoint_with(&self, flusher: &mut Flusher, clean: bool) -> Result<()> {
        self.log.check()?;
        let started = std::time::Instant::now();
        let number = {
            let mut progress = self.progress.lock();
            progress.begun += 1;
            progress.begun
        };
        self.flush_older(flusher, self.log.end())?;
        {
            let _site = site_scope("checkpoint");
            self.sync_data(flusher)?;
        }
        let end = self.log.end();
        let mut checkpoint = end;
        for frame in self.frames.headers() {
            match frame.rec_lsn.load(Ordering::SeqCst) {
                0 => {}
                lsn => checkpoint = checkpoint.min(Lsn(lsn)),
            }
        }
        self.log.commit_aside(checkpoint)?;
        let whole = if clean { self.check_len(flusher.superblock.size) } else { Ok(()) };
        let superblock = &mut flusher.superblock;
        // A writer may have read the log's end long before it entered its page with it; its record is younger than
        // the last checkpoint, which did not find the page in the table.
        checkpoint = checkpoint.max(superblock.checkpoint);
        superblock.checkpoint = checkpoint;
        superblock.floor = self.log.durable().max(checkpoint);
        superblock.groups = self.space.lock().groups_before(checkpoint);
        // Whatever its caller believes: what is called clean is not recovered.
        superblock.clean = clean && whole.is_ok() && checkpoint == end;
        superblock.set_damaged(self.damaged.load(Ordering::SeqCst));
        self.write_superblocks(flusher)?;
        self.log.set_tail(checkpoint);
        self.checkpointed.store(checkpoint.0, Ordering::SeqCst);
        self.reclaim();
        self.stats.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.stats.checkpoint_micros.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.progress.lock().finished = number;
        self.announce_progress();
        whole
    }

    /// Checks that the image has all its bytes, and marks it if not. Somebody may have cut its file, of which no read need have told.
    fn check_len(&self, size: u64) -> Result<()> {
        let len = self.storage.len().map_err(|e| Error::io("reading the image's size", e))?;
        if len >= size {
            return Ok(());
        }
        self.note_damage();
        Err(Error::corrupt("the image was cut short", format_args!("it has {len} bytes left of {size}")))
    }

    /// Writes both superblocks (D5), one after the other: a torn one leaves the other.
    pub(super) fn write_superblocks(&self, flusher: &mut Flusher) -> Result<()> {
        // Only where log space is at stake: the superblocks with which recovery ends are durable.
        let opened = self.stats.checkpoints.load(Ordering::Relaxed) > 0;
        let free_early = opened && self.defects.has(Defect::FreeLogEarly);
        let _site = site_scope("superblock");
        for _ in SUPERBLOCK_OFFSETS {
            flusher.superblock.sequence += 1;
            // The one that is not the newest.
            let at = SUPERBLOCK_OFFSETS[flusher.superblock.sequence as usize % 2];
            let encoded = flusher.superblock.encode();
            let written = match free_early {
                true => self.storage.write_at(at, &encoded),
                false => self.storage.write_durable_at(at, &encoded),
            };
            written.map_err(|e| self.log.fail(Error::io("writing the superblock", e)))?;
        }
        Ok(())
    }

    fn sync_data(&self, flusher: &mut Flusher) -> Result<()> {
        self.storage.sync().map_err(|e| self.log.fail(Error::io("syncing the image", e)))?;
        flusher.synced = [true, true];
        self.unsynced.lock().clear();
        Ok(())
    }

    /// Writes home every page that was dirty before `limit`, in the order of their places.
    pub(super) fn flush_older(&self, flusher: &mut Flusher, limit: Lsn) -> Result<()> {
        let mut dirty: Vec<(PageId, FrameNo)> = Vec::new();
        for (i, frame) in self.frames.headers().iter().enumerate() {
            let rec_lsn = frame.rec_lsn.load(Ordering::SeqCst);
            if rec_lsn != 0 && rec_lsn < limit.0 {
                dirty.push((frame.page(), i as FrameNo));
            }
        }
        dirty.sort_unstable();
        for batch in dirty.chunks(flusher.superblock.doublewrite_pages as usize) {
            self.flush_batch(flusher, batch)?;
            self.announce_progress();
        }
        Ok(())
    }

    fn flush_batch(&self, flusher: &mut Flusher, batch: &[(PageId, FrameNo)]) -> Result<()> {
        let Some(mut memory) = flusher.memory.take() else { return Ok(()) };
        let copies = self.copy_pages(memory.pages_mut(), batch);
        let (header, pages) = memory.pages_mut().split_at_mut(1);
        let written = self.write_copies(flusher, &mut header[0], &pages[..copies.len()], &copies);
        flusher.memory = Some(memory);
        for copy in &copies {
            let frame = self.frames.header(copy.frame);
            if written.is_err() {
                // The page is not on disk: it stays dirty, so that it is not evicted and reads go on.
                let latched = self.frames.latch_shared(copy.frame);
                frame.rec_lsn.store(copy.rec_lsn, Ordering::SeqCst);
                drop(latched);
            } else {
                self.budget.fetch_sub(1, Ordering::SeqCst);
            }
            frame.writing.store(false, Ordering::SeqCst);
        }
        self.stats.pages_written.fetch_add(copies.len() as u64, Ordering::Relaxed);
        written
    }

    /// Copies the pages that are still dirty, each under its latch, behind the first page of `memory`.
    fn copy_pages(&self, memory: &mut [PageBytes], batch: &[(PageId, FrameNo)]) -> Vec<Copy> {
        let mut copies = Vec::with_capacity(batch.len());
        for &(page, frame) in batch {
            let (latched, _) = self.frames.latch_shared(frame);
            let header = self.frames.header(frame);
            if header.page() != page || !header.is_dirty() {
                continue;
            }
            let to = &mut memory[1 + copies.len()];
            *to = *latched;
            header.writing.store(true, Ordering::SeqCst);
            let newborn = header.newborn.swap(false, Ordering::SeqCst);
            let rec_lsn = header.rec_lsn.swap(0, Ordering::SeqCst);
            drop(latched);
            seal(to);
            copies.push(Copy { page, lsn: page_lsn(to), frame, rec_lsn, newborn });
        }
        copies
    }

    fn write_copies(
        &self,
        flusher: &mut Flusher,
        header: &mut PageBytes,
        pages: &[PageBytes],
        copies: &[Copy],
    ) -> Result<()> {
        let Some(newest) = copies.iter().map(|c| c.lsn).max() else { return Ok(()) };
        self.log.commit_aside(newest)?;
        if copies.iter().any(|c| !c.newborn) && !self.defects.has(Defect::SkipDoublewrite) {
            self.write_doublewrite(flusher, header, pages, copies)?;
        }
        let _site = site_scope(if flusher.half == 0 { "home A" } else { "home B" });
        self.unsynced.lock().extend(copies.iter().map(|c| (c.page, c.lsn)));
        let written = self.write_home(pages, copies);
        flusher.synced[flusher.half] = false;
        written.map_err(|e| self.log.fail(Error::io("writing pages", e)))
    }

    fn write_doublewrite(
        &self,
        flusher: &mut Flusher,
        header: &mut PageBytes,
        pages: &[PageBytes],
        copies: &[Copy],
    ) -> Result<()> {
        let early = self.defects.has(Defect::ReuseDoublewriteEarly);
        if !early {
            flusher.half ^= 1;
        }
        let half = flusher.half;
        assert!(flusher.synced[half] || early, "D3: a doublewrite half is reused before it was synced");
        let _site = site_scope(if half == 0 { "doublewrite A" } else { "doublewrite B" });
        flusher.sequence += 1;
        let superblock = &flusher.superblock;
        let at = superblock.doublewrite_offset(half);
        let rewritten = copies.iter().zip(pages).filter(|(c, _)| !c.newborn);
        DoublewriteHeader {
            sequence: flusher.sequence,
            floor: self.log.durable(),
            pages: rewritten.clone().map(|(c, _)| (c.page, c.lsn)).collect(),
        }
        .encode(header, PageId(at / PAGE_SIZE as u64), superblock.image());
        let mut bufs: Vec<&[u8]> = vec![header];
        bufs.extend(rewritten.map(|(_, p)| p.as_slice()));
        let written = self.write_row(at, &bufs);
        let bytes = bufs.len() * PAGE_SIZE;
        self.stats.doublewrite_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        written.map_err(|e| self.log.fail(Error::io("writing the doublewrite area", e)))?;
        // This sync makes the copies durable, and covers the in-place writes of the other half.
        self.sync_data(flusher)
    }

    /// Writes pages that lie one behind the other, a piece at a time: a commit that comes meanwhile waits for one piece at
    /// the most, and the next piece waits for the commit.
    fn write_row(&self, at: u64, pages: &[&[u8]]) -> std::io::Result<()> {
        let (mut at, mut rest) = (at, pages);
        while !rest.is_empty() {
            let len = if self.log.let_commit_pass() { PIECE_BESIDE_COMMITS } else { PIECE };
            let (piece, behind) = rest.split_at(len.min(rest.len()));
            self.storage.write_vectored_at(at, piece)?;
            at += (piece.len() * PAGE_SIZE) as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Writes the pages to their places, neighbours in one call.
    fn write_home(&self, pages: &[PageBytes], copies: &[Copy]) -> std::io::Result<()> {
        let mut i = 0;
        while i < copies.len() {
            let mut n = 1;
            while i + n < copies.len() && copies[i + n].page.0 == copies[i].page.0 + n as u64 {
                n += 1;
            }
            let bufs: Vec<&[u8]> = pages[i..i + n].iter().map(|p| p.as_slice()).collect();
            self.write_row(copies[i].page.offset(), &bufs)?;
            i += n;
        }
        Ok(())
    }

    // -- the flusher's thread, and who waits for it ----------------------------------------------------------------

    /// Waits until the flusher has done something or, with `whole`, until a checkpoint has ended that began after this call; or takes
    /// one.
    pub(super) fn wait_for_checkpoint(&self, whole: bool) -> Result<()> {
        // What is lacking may be set aside for another transaction, which needs the processor to go on.
        spin_wait();
        if !self.background {
            return self.checkpoint();
        }
        let mut progress = self.progress.lock();
        let (done, begun) = (progress.done, progress.begun);
        let has_come = |progress: &Progress| match whole {
            true => progress.finished > begun || self.is_read_only(),
            false => progress.done != done,
        };
        while !has_come(&progress) && self.log.failure().is_none() && !self.stopping.load(Ordering::SeqCst) {
            progress.asked = true;
            self.wanted.notify_one();
            self.progressed.wait_for(&mut progress, PROGRESS_PAUSE);
        }
        drop(progress);
        self.log.check()
    }

    pub(super) fn announce_progress(&self) {
        let mut progress = self.progress.lock();
        progress.done += 1;
        progress.asked = false;
        self.progressed.notify_all();
    }

    /// Whether a checkpoint should run: the log or the dirty budget is three quarters used.
    pub fn wants_checkpoint(&self) -> bool {
        self.log.used() >= self.log.size() / 4 * 3
            || self.budget.load(Ordering::SeqCst) >= self.dirty_max / 4 * 3
    }

    /// Whether damage has been met, and no superblock says so yet.
    fn is_to_be_marked(&self) -> bool {
        self.is_damaged() && !self.flusher.lock().superblock.is_damaged()
    }

    /// The background flusher. Returns after [`Pool::stop`] or when writing has ended.
    pub fn run_flusher(&self) {
        while !self.stopping.load(Ordering::SeqCst) && self.log.failure().is_none() {
            if self.wants_checkpoint() || self.is_to_be_marked() {
                // An error is latched in the log, and ends the loop.
                let _ = self.checkpoint();
                // In a tiny pool it may be reservations that fill the budget; their owners need the processor.
                spin_wait();
                continue;
            }
            self.reclaim();
            self.look_for_free_chunks(LOOKS);
            let _ = self.punch(super::PUNCHES);
            let mut progress = self.progress.lock();
            if !progress.asked && !self.stopping.load(Ordering::SeqCst) {
                self.wanted.wait_for(&mut progress, IDLE_PAUSE);
            }
            let asked = progress.asked;
            drop(progress);
            if asked {
                let _ = self.checkpoint();
            }
        }
        self.announce_progress();
    }

    /// Wakes the flusher if there is enough to do.
    #[inline]
    pub fn nudge(&self) {
        if self.background && self.wants_checkpoint() {
            self.wanted.notify_one();
        }
    }
}
