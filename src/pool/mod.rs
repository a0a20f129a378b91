//! The buffer pool: pages in a fixed amount of memory, transactions over them, checkpoints, space, and recovery.
//!
//! The pool promises: a page read from the image was verified before anybody saw it; a transaction's changes are
//! in the log before they are on disk, and on disk whole or repairable; memory stays within the budget whatever the load.
//! It fails by returning errors of reads to whoever reads, and by ending all writing after the first failed write.
//!
//! - **P1** (the master rule) Holding a page latch or an epoch, a thread never waits for log space, free pages, dirty
//!   budget, a mutex that is held across I/O, or a sync. Foreground threads never write dirty pages.
//! - **P2** At most three quarters of the frames are dirty, pinned by transactions or set aside for them; so a reader always
//!   finds a frame, also after writing has ended.

mod create;
pub mod epoch;
mod fetch;
mod flush;
pub mod frames;
mod grow;
mod order;
mod prefetch;
mod readers;
mod recovery;
mod space;
mod table;
mod thread_slot;
pub mod transaction;

pub use create::{FormatOptions, give_space, zero};
pub use epoch::{Alive, Counter, Epochs};
pub use frames::{PageRead, PageWrite, Pin};
pub use prefetch::{Ahead, PREFETCHERS};
pub use recovery::{RecoveryReport, read_superblock};
pub use transaction::{Need, Reservation};

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::defects::{Defect, Defects};
use crate::error::{Error, Result};
use crate::page::format::*;
use crate::page::superblock::Superblock;
use crate::page::{Lsn, PageId, Run};
use crate::storage::Storage;
use crate::storage::sim::site_scope;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, spin_wait};
use crate::wal::Log;
use flush::Flusher;
use frames::{FrameNo, Frames, FreeFrames};
use grow::Geometry;
use prefetch::Prefetcher;
use space::{Reach, Space};
use table::PageTable;

/// How a pool is run.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Memory for pages and what belongs to them, in bytes; at least [`PoolOptions::CACHE_MIN`].
    pub cache_size: usize,
    /// The log is made durable at least this often.
    pub commit_interval: Duration,
    /// Whether the caller runs [`Pool::run_flusher`] and [`Log::run_writer`] in threads. If not, checkpoints and log writes run
    /// inside the calls that need them.
    pub background: bool,
    /// Whether not a byte of the image is to be written. What recovery changes is kept in memory.
    pub read_only: bool,
    /// Planted defects.
    pub defects: Defects,
}

impl PoolOptions {
    /// The smallest cache: 32 pages, and fewer under the model checker, so that a few operations fill it.
    pub const CACHE_MIN: usize = if cfg!(shuttle) { 14 } else { 32 } * (PAGE_SIZE + FRAME_OVERHEAD);
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions {
            cache_size: 256 << 20,
            commit_interval: Duration::from_secs(5),
            background: true,
            read_only: false,
            defects: Defects::default(),
        }
    }
}

/// What those who need room and the flusher tell each other.
#[derive(Default)]
struct Progress {
    /// Checkpoints and flushed batches so far.
    done: u64,
    /// Somebody waits for the next one.
    asked: bool,
    /// The number of the newest checkpoint that has begun.
    begun: u64,
    /// The number of the newest one that has ended.
    finished: u64,
}

/// Who waits for operations to end gives way so often, and then sleeps between looks: by then one of them waits for the disk.
const OPERATION_SPINS: u32 = 100;
const OPERATION_PAUSE: Duration = Duration::from_millis(1);
/// No operation that is alive waits this long for a disk. Who still waits then has an operation of his own open, which P1 forbids.
const OPERATION_MAX: Duration = Duration::from_secs(60);
/// So often blocks for data are looked for, the look at what is free at once not counted: then a commit and three checkpoints have been
/// waited for. One may do, but others take what it sets free.
const BLOCK_ATTEMPTS: usize = 5;
/// So many of these, up to the first wait for a checkpoint, leave pieces alone as long as more is to come: it may come in one piece.
const WHOLE_ATTEMPTS: usize = 2;
/// Others may take what comes out of quarantine, too. So many times somebody waits for a commit and, where that was not enough, for a
/// checkpoint.
const QUARANTINE_ROUNDS: usize = 3;
/// Frames that long scans use in turn.
const RING: usize = 16;
/// Free chunks that are given back to the host at a time.
const PUNCHES: usize = 16;
/// So long closing gives free chunks back to the host; what is left is found when the image is opened next.
const CLOSING_PUNCHES: Duration = Duration::from_secs(1);

/// What became of a page that was not in the pool.
enum Loaded<'p> {
    /// It was read.
    Page(PageRead<'p>),
    /// It is in this frame by now.
    Elsewhere(FrameNo),
}

const FRAME_OVERHEAD: usize = size_of::<frames::Frame>() + PageTable::BYTES_PER_FRAME;

/// Counters of events that are rare enough for one cache line.
#[derive(Default, Debug)]
pub struct PoolStats {
    /// Pages read from the image.
    pub pages_read: AtomicU64,
    /// Pages written home.
    pub pages_written: AtomicU64,
    /// Bytes written to the doublewrite area.
    pub doublewrite_bytes: AtomicU64,
    /// Checkpoints taken.
    pub checkpoints: AtomicU64,
    /// Time spent in them, in microseconds.
    pub checkpoint_micros: AtomicU64,
    /// Chunks given back to the host.
    pub punches: AtomicU64,
}

/// An open image's pages.
pub struct Pool {
    storage: Arc<dyn Storage>,
    /// The parts of the superblock that never change while the image is open, but for growth.
    geometry: Geometry,
    /// Tells this pool from others of the process.
    id: u64,
    /// Counts the changes of the tree's root page; it moves under the page's exclusive latch.
    root_version: AtomicU64,
    frames: Frames,
    table: PageTable,
    free_frames: FreeFrames,
    /// Frames that long scans have used, oldest first: they use them again instead of displacing others' pages.
    ring: Mutex<VecDeque<FrameNo>>,
    prefetcher: Prefetcher,
    hand: AtomicUsize,
    /// Before this byte the image has been looked through for free chunks that the host has space for.
    looked_at: AtomicU64,
    /// Frames that are dirty or set aside for transactions (P2).
    budget: AtomicUsize,
    dirty_max: usize,
    /// The log.
    pub log: Log,
    epochs: Epochs,
    space: Mutex<Space>,
    growing: Mutex<()>,
    flusher: Mutex<Flusher>,
    /// What the flusher has written home since it has last synced (D6).
    unsynced: Mutex<HashMap<PageId, Lsn>>,
    checkpointed: AtomicU64,
    /// Checkpoints and flushed batches so far, for those who wait for one.
    progress: Mutex<Progress>,
    progressed: Condvar,
    wanted: Condvar,
    stopping: AtomicBool,
    background: bool,
    /// Threads read ahead, also where nothing is written.
    reads_ahead: bool,
    /// No transaction begins and no data is written.
    read_only: AtomicBool,
    /// Damage has been met, now or before the image was opened: each superblock that is written says so.
    damaged: AtomicBool,
    /// The image was opened so, and `storage` is never written (but for an overlay in memory).
    opened_read_only: bool,
    /// Held by whoever changes `read_only`.
    switching: Mutex<()>,
    defects: Defects,
    /// Counters.
    pub stats: PoolStats,
}

impl Pool {
    /// What the image is: sizes, places, identity. Only the sizes change, by growth.
    #[inline]
    pub fn geometry(&self) -> &Superblock {
        self.geometry.current()
    }
    /// Tells this pool from others of the process.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }
    /// Counts the changes of the tree's root page.
    #[inline]
    pub fn root_version(&self) -> u64 {
        self.root_version.load(Ordering::SeqCst)
    }
    /// The underlying storage, for file data.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }
    /// The number of frames.
    pub fn frame_count(&self) -> usize {
        self.frames.count()
    }
    /// Frames that are dirty or set aside for transactions (P2).
    pub fn dirty_frames(&self) -> usize {
        self.budget.load(Ordering::SeqCst)
    }
    /// The most frames that transactions may have at once.
    pub fn dirty_max(&self) -> usize {
        self.dirty_max
    }
    /// Begins an operation; pages that it can see are not reused while it is alive.
    #[inline]
    pub fn enter(&self) -> Alive<'_> {
        self.epochs.enter()
    }
    /// The operations' epochs and counters.
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }
    /// Planted defects.
    pub fn defects(&self) -> Defects {
        self.defects
    }
    /// The newest durable checkpoint.
    pub fn checkpoint_lsn(&self) -> Lsn {
        Lsn(self.checkpointed.load(Ordering::SeqCst))
    }
    /// `Err` if nothing can be written, or not any more: the latched error, or [`Error::ReadOnly`].
    pub fn writable(&self) -> Result<()> {
        self.log.check()?;
        if self.is_read_only() { Err(Error::ReadOnly) } else { Ok(()) }
    }
    /// Whether damage has been met since the last check that found none.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::SeqCst)
    }
    /// Marks the image as damaged, with the next checkpoint; the flusher's thread takes it at once.
    pub fn note_damage(&self) {
        if !self.damaged.swap(true, Ordering::SeqCst) && self.background {
            self.wanted.notify_one();
        }
    }
    /// Whether no transaction can begin, for now or at all.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::SeqCst)
    }

    // -- reading ------------------------------------------------------------------------------------------------

    /// The page, under its shared latch.
    #[inline]
    pub fn read(&self, id: PageId) -> Result<PageRead<'_>> {
        self.read_hinted(id, true)
    }

    /// Like [`Pool::read`]; `keep` false: the page is not worth keeping for this use (a long scan).
    #[inline]
    pub fn read_hinted(&self, id: PageId, keep: bool) -> Result<PageRead<'_>> {
        loop {
            let frame = match self.table.find(&self.frames, id) {
                Some(frame) => frame,
                None => match self.load(id, keep)? {
                    Loaded::Page(page) => return Ok(page),
                    Loaded::Elsewhere(frame) => frame,
                },
            };
            let (page, waited) = self.frames.latch_shared(frame);
            if waited {
                self.epochs.add(Counter::LatchWaits, 1);
            }
            let header = page.header();
            if header.page() == id {
                if keep {
                    header.touch();
                }
                return Ok(page);
            }
        }
    }

    /// Latches a pinned page exclusively.
    pub fn latch<'p>(&self, pin: &Pin<'p>) -> PageWrite<'p> {
        let (page, waited) = pin.latch_exclusive();
        if waited {
            self.epochs.add(Counter::LatchWaits, 1);
        }
        page
    }

    /// Reads a page from the image into a frame, unless somebody else has done so meanwhile.
    #[cold]
    fn load(&self, id: PageId, keep: bool) -> Result<Loaded<'_>> {
        match self.claim(id, self.frame_for(keep), keep) {
            Ok(mut page) => {
                let read = self.fetch(id, &mut page);
                self.settle(id, page, read).map(Loaded::Page)
            }
            Err(frame) => Ok(Loaded::Elsewhere(frame)),
        }
    }

    /// Enters a page that is to be read in the page table, with an empty frame: from now on everybody else waits for the frame's latch.
    /// `Err`: somebody else has done so, in this frame.
    fn claim<'p>(
        &'p self,
        id: PageId,
        page: PageWrite<'p>,
        keep: bool,
    ) -> std::result::Result<PageWrite<'p>, FrameNo> {
        {
            let stripe = self.table.lock(id);
            if let Some(frame) = stripe.find(&self.frames, id) {
                drop(stripe);
                self.free_frames.push(page.frame());
                return Err(frame);
            }
            stripe.insert(&self.frames, page.frame(), id);
        }
        page.header().usage.store(keep as u32, Ordering::Relaxed);
        page.header().newborn.store(false, Ordering::SeqCst);
        page.header().milestone.store(false, Ordering::Relaxed);
        Ok(page)
    }

    /// Ends what [`Pool::claim`] began: the page has been read, or is given up.
    fn settle<'p>(&'p self, id: PageId, mut page: PageWrite<'p>, read: Result<()>) -> Result<PageRead<'p>> {
        match read {
            Ok(()) => {
                page.note_change();
                Ok(page.downgrade())
            }
            Err(error) => {
                // Nobody must take what was not verified for a page, the latch-order checker included.
                page[OFF_TYPE] = 0;
                self.table.lock(id).remove(&self.frames, page.frame());
                self.free_frames.push(page.frame());
                Err(error)
            }
        }
    }

    /// Pages read from the image so far, by whomever.
    pub fn pages_read(&self) -> u64 {
        self.stats.pages_read.load(Ordering::Relaxed)
    }

    /// An empty frame, latched exclusively. Evicts a clean page by the clock if need be (P2: there is one).
    fn empty_frame(&self) -> PageWrite<'_> {
        self.frame_for(true)
    }

    /// An empty frame for a page that is worth keeping or not. The caller holds no latch that a thread which could clean a frame might be
    /// waiting for.
    fn frame_for(&self, keep: bool) -> PageWrite<'_> {
        loop {
            if let Some(page) = self.try_frame_for(keep) {
                return page;
            }
            spin_wait();
        }
    }

    /// The same, if one is found by two rounds of the clock. Pages that are not worth keeping use few frames in turn (PostgreSQL calls
    /// this a buffer ring).
    fn try_frame_for(&self, keep: bool) -> Option<PageWrite<'_>> {
        let by_the_clock = || match self.free_frames.pop() {
            Some(frame) => {
                self.populate_ahead(frame);
                Some(self.latch_unused(frame))
            }
            None => (0..2 * self.frames.count()).find_map(|_| self.evict_next()),
        };
        if keep {
            return by_the_clock();
        }
        let oldest = {
            let mut ring = self.ring.lock();
            if ring.len() < RING { None } else { ring.pop_front() }
        };
        let page = oldest.and_then(|frame| self.evict(frame)).or_else(by_the_clock)?;
        self.ring.lock().push_back(page.frame());
        Some(page)
    }

    /// Latches a frame without a page. A thread that followed a stale link may hold the latch for a moment; it waits for
    /// nothing meanwhile.
    fn latch_unused(&self, frame: FrameNo) -> PageWrite<'_> {
        loop {
            if let Some(page) = self.frames.try_latch_exclusive(frame) {
                return page;
            }
            spin_wait();
        }
    }

    fn evict_next(&self) -> Option<PageWrite<'_>> {
        let frame = (self.hand.fetch_add(1, Ordering::Relaxed) % self.frames.count()) as FrameNo;
        let header = self.frames.header(frame);
        let usage = header.usage.load(Ordering::Relaxed);
        if !header.page().is_some() || !header.is_evictable() {
            return None;
        }
        if usage > 0 {
            header.usage.store(usage - 1, Ordering::Relaxed);
            return None;
        }
        self.evict(frame)
    }

    /// Empties a frame whose page nobody has used lately; `None` if it is in use, dirty or already empty.
    fn evict(&self, frame: FrameNo) -> Option<PageWrite<'_>> {
        let page = self.frames.try_latch_exclusive(frame)?;
        let header = page.header();
        let id = header.page();
        if !id.is_some() || !header.is_evictable() || header.usage.load(Ordering::Relaxed) > 0 {
            return None;
        }
        self.table.lock(id).remove(&self.frames, frame);
        Some(page)
    }

    // -- space --------------------------------------------------------------------------------------------------

    /// The bitmap page that covers a run.
    pub fn bitmap_of(&self, run: Run) -> PageId {
        let geometry = self.geometry();
        geometry.bitmap_page(geometry.locate(run.start).0)
    }

    /// Where a run begins within its group.
    pub fn within_group(&self, run: Run) -> u32 {
        self.geometry().locate(run.start).1
    }

    /// Whether a run lies in one group of the image that exists, behind its bitmap page.
    pub fn is_valid_run(&self, run: Run) -> bool {
        self.space.lock().is_valid(run)
    }

    /// Whether a new page lies in a chunk of tree pages, which its allocation is to mark.
    pub fn marks_chunk(&self, page: PageId) -> bool {
        self.space.lock().marks_chunk(page)
    }

    /// Blocks that are free, or will be soon.
    pub fn free_blocks(&self) -> u64 {
        self.space.lock().free_blocks()
    }

    /// Of these, blocks that data may take, once `more` have been given back.
    pub fn blocks_for_data_with(&self, more: u64) -> u64 {
        self.space.lock().blocks_for_data_with(more)
    }

    /// The number of groups with a bitmap page.
    pub fn groups(&self) -> u32 {
        self.space.lock().groups()
    }

    /// Takes up to `want` adjacent blocks for data. They are the caller's until a transaction allocates them, or
    /// [`Pool::unreserve_blocks`]. Holds no latch; may wait for a checkpoint before it gives up.
    pub fn reserve_blocks(&self, want: u32) -> Result<Run> {
        self.reserve_blocks_from(want, false)
    }

    /// Like [`Pool::reserve_blocks`]; if it is urgent, also from what is kept for the tree. Then what is in quarantine is waited for
    /// before fewer blocks are taken: the last ones must not end in ever smaller pieces.
    pub fn reserve_blocks_from(&self, want: u32, urgent: bool) -> Result<Run> {
        let want = want.clamp(1, BLOCKS_PER_GROUP / 2);
        self.writable()?;
        self.set_pages_aside();
        let whole = if urgent { want } else { 1 };
        let mut reach = if urgent { Reach::Reserve } else { Reach::Free };
        if let Some(run) = self.space.lock().take_blocks(whole..=want, reach) {
            return Ok(run);
        }
        for attempt in 0..BLOCK_ATTEMPTS {
            self.writable()?;
            self.reclaim();
            let waits = attempt < WHOLE_ATTEMPTS && self.space.lock().has_more_soon();
            let least = if waits { whole } else { 1 };
            if let Some(run) = self.space.lock().take_blocks(least..=want, reach) {
                return Ok(run);
            }
            if self.add_group()? {
                continue;
            }
            if reach == Reach::Free {
                reach = Reach::Places;
                continue;
            }
            if attempt + 1 == BLOCK_ATTEMPTS || !self.space.lock().has_more_soon() {
                break;
            }
            // Data needs no more than a commit. Pages, and chunks that are being punched, come free with a checkpoint.
            self.wait_for_quarantine(attempt > 0)?;
        }
        // The search for a group may have ended quarantines.
        self.space.lock().take_blocks(1..=want, reach).ok_or(Error::NoSpace)
    }

    /// The next search for data blocks begins at the image's beginning.
    pub fn restart_search(&self) {
        self.space.lock().restart_search();
    }

    /// Whether something may be added that takes no data blocks: whether more is free than so many sixteenths of what is kept for the
    /// tree, and pages fit in. May wait for a checkpoint; holds no latch.
    pub fn has_room_above(&self, sixteenths: u64, more: u64) -> Result<bool> {
        for _ in 0..QUARANTINE_ROUNDS {
            {
                let space = self.space.lock();
                // What is in quarantine counts as blocks already, but may become places only when it comes out.
                let blocks = space.has_blocks_above(sixteenths, more);
                if !blocks || space.has_places_above(sixteenths) || !space.has_more_soon() {
                    return Ok(blocks && space.has_places_above(sixteenths));
                }
            }
            self.wait_for_quarantine(false)?;
            self.reclaim();
            if self.space.lock().has_places_above(sixteenths) {
                return Ok(true);
            }
            self.wait_for_quarantine(true)?;
            self.reclaim();
        }
        let space = self.space.lock();
        Ok(space.has_blocks_above(sixteenths, more) && space.has_places_above(sixteenths))
    }

    /// Gives back blocks that were reserved and not used. Waits for contents that are on their way there.
    pub fn unreserve_blocks(&self, run: Run) {
        self.log.wait_for_contents(run.start.offset()..run.end().offset());
        self.space.lock().give(run);
    }

    /// A record that ends at `lsn` freed a tree page.
    pub fn page_freed(&self, lsn: Lsn, page: PageId) {
        if self.defects.has(Defect::ReusePageAtOnce) {
            self.discard(page);
        }
        self.space.lock().page_freed(lsn, self.epochs.current(), page);
    }

    /// A record that ends at `lsn` freed blocks.
    pub fn run_freed(&self, lsn: Lsn, run: Run) {
        if self.defects.has(Defect::PunchEarly) {
            let _ = self.storage.punch(run.start.offset(), run.len as u64 * BLOCK_SIZE as u64);
        }
        self.space.lock().run_freed(lsn, self.epochs.current(), run);
    }

    /// Ends the quarantine of what is safe now. Waits for nothing.
    pub fn reclaim(&self) {
        self.reclaim_for(0);
    }

    /// The same for somebody who gathers so many pages: chunks of free places for pages are not given back as long as there are no more.
    fn reclaim_for(&self, pages: usize) {
        let mut space = self.space.lock();
        if !space.has_more_soon() {
            return;
        }
        self.epochs.advance();
        self.epochs.advance();
        space.reclaim(self.log.durable(), self.checkpoint_lsn(), self.epochs.current(), pages, |page| {
            self.discard(page)
        });
    }

    /// Takes all places for pages of the tree, until they are given back by [`Pool::unreserve_blocks`].
    #[cfg(test)]
    pub(crate) fn take_places(&self) -> Vec<Run> {
        let mut space = self.space.lock();
        let all = (0..).take_while(|n| space.has_pages(*n)).count() - 1;
        let pages = space.take_pages(all).unwrap_or_default();
        let chunks = std::iter::from_fn(|| space.take_chunk()).collect::<Vec<_>>();
        let places = std::iter::from_fn(|| space.take_odd_page(false)).collect::<Vec<_>>();
        pages.iter().map(|page| page.run()).chain(chunks).chain(places).collect()
    }

    /// Drops a dead page's frame; `false` if it cannot be dropped yet.
    fn discard(&self, id: PageId) -> bool {
        let Some(frame) = self.table.lock(id).find(&self.frames, id) else { return true };
        let Some(page) = self.frames.try_latch_exclusive(frame) else { return false };
        let header = page.header();
        if header.page() != id {
            return true;
        }
        let early = self.defects.has(Defect::ReusePageAtOnce);
        if !header.is_evictable() && !early {
            return false;
        }
        if early && header.rec_lsn.swap(0, Ordering::SeqCst) != 0 {
            self.budget.fetch_sub(1, Ordering::SeqCst);
        }
        self.table.lock(id).remove(&self.frames, frame);
        self.free_frames.push(frame);
        true
    }

    /// Asks the host about the next free chunks, at most so many: it may have space for some since before the image was opened. What was
    /// freed just before it was closed or a crash came, and what was written and never committed, nobody else would give back.
    /// Where damage has been met the bitmaps may be wrong, too: then only what is freed from now on goes back.
    pub fn look_for_free_chunks(&self, chunks: usize) {
        for _ in 0..chunks {
            let from = self.looked_at.load(Ordering::SeqCst);
            if from == u64::MAX || self.is_damaged() {
                return;
            }
            let free = self.space.lock().available_chunk_from(from);
            let on_host = free.and_then(|chunk| Some((chunk, self.storage.skip_hole(chunk.start.offset())?)));
            let next = match on_host {
                None => u64::MAX,
                Some((chunk, data)) if data >= chunk.end().offset() => data,
                Some((chunk, _)) => {
                    self.space.lock().note_on_host(chunk);
                    chunk.end().offset()
                }
            };
            // A new group may have brought it back.
            let _ = self.looked_at.compare_exchange(from, next, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// Gives free chunks back to the host, at most `max` of them; returns how many.
    pub fn punch(&self, max: usize) -> Result<usize> {
        self.writable()?;
        for done in 0..max {
            let taken = self.space.lock().take_punchable();
            let Some(run) = taken else { return Ok(done) };
            let punched = {
                let _site = site_scope("punch");
                self.storage.punch(run.start.offset(), run.len as u64 * BLOCK_SIZE as u64)
            };
            self.space.lock().give_punched(run);
            match punched {
                Ok(given) => self.stats.punches.fetch_add(given as u64, Ordering::Relaxed),
                Err(e) => {
                    // Nothing is lost: the space is free, and stays free in the image.
                    log::warn!("giving space back to the host failed: {e}");
                    return Ok(done);
                }
            };
        }
        Ok(max)
    }

    /// Does something that takes space of the host; if its disk is full, again when all that is free in the image has been given back to
    /// it. The caller holds no latch and no epoch.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if it is still full; otherwise that of the operation, with its `context`.
    pub fn with_host_space<T>(
        &self,
        context: &'static str,
        mut take: impl FnMut() -> std::io::Result<T>,
    ) -> Result<T> {
        let is_full = |e: &std::io::Error| matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let given = || self.stats.punches.load(Ordering::SeqCst);
        let before = given();
        let result = match take() {
            // Or others have given something since.
            Err(e) if is_full(&e) && (self.give_back_to_host() || given() != before) => take(),
            result => result,
        };
        result.map_err(|e| if is_full(&e) { Error::NoSpace } else { Error::io(context, e) })
    }

    /// Ends the quarantine of what has been freed, and gives whole chunks back to the host; whether there was anything.
    fn give_back_to_host(&self) -> bool {
        for _ in 0..QUARANTINE_ROUNDS {
            if self.wait_for_quarantine(false).is_err() {
                return false;
            }
            self.reclaim();
            self.look_for_free_chunks(usize::MAX);
            match self.punch(usize::MAX) {
                Ok(0) => {}
                given => return given.is_ok(),
            }
            let has_more_soon = self.space.lock().has_more_soon();
            if !has_more_soon || self.wait_for_quarantine(true).is_err() {
                return false;
            }
        }
        false
    }

    /// Waits until what has been freed up to now can come out of quarantine (S2): what needs no more than to be durable or, with
    /// `checkpoint`, all of it. Holds no latch and no epoch.
    fn wait_for_quarantine(&self, checkpoint: bool) -> Result<()> {
        self.log.commit(self.log.end())?;
        if checkpoint {
            self.wait_for_checkpoint(true)?;
        }
        // An operation waits for pages to be read at the most, and for nothing that the caller holds (P1).
        let safe = self.epochs.current() + 2;
        let limit = Instant::now() + OPERATION_MAX;
        let mut spins = 0;
        while self.log.failure().is_none() && !self.stopping.load(Ordering::SeqCst) {
            {
                let _one_at_a_time = self.space.lock();
                self.epochs.advance();
                self.epochs.advance();
            }
            let now = Instant::now();
            if self.epochs.current() >= safe || now >= limit {
                break;
            }
            spins += 1;
            match spins {
                ..OPERATION_SPINS => spin_wait(),
                _ => _ = self.progressed.wait_until(&mut self.progress.lock(), now + OPERATION_PAUSE),
            }
        }
        self.log.check()
    }

    /// Ends the background threads.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.log.stop();
        self.stop_prefetchers();
        let _progress = self.progress.lock();
        self.wanted.notify_all();
        self.progressed.notify_all();
    }

    /// Writes everything home and marks the image as closed in order. Nothing else runs any more. An image that was opened
    /// read-only stays as it was.
    pub fn close(&self) -> Result<()> {
        if self.opened_read_only {
            return Ok(());
        }
        let mut flusher = self.flusher.lock();
        self.log.commit(self.log.end())?;
        // A repair, which has no threads, does not know yet which bitmaps are right.
        if self.background {
            self.reclaim();
            let begun = Instant::now();
            while begun.elapsed() < CLOSING_PUNCHES && self.punch(PUNCHES).unwrap_or(0) > 0 {}
        }
        self.checkpoint_with(&mut flusher, true)
    }
}

#[cfg(test)]
mod tests;
