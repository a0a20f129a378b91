//! Transactions: what a change of pages needs is reserved with nothing held; then it is one log record.
//!
//! - **X1** A reservation is acquired all at once: whoever does not get every part gives the others back and waits with
//!   nothing held. So no two reservations wait for each other.
//! - **X2** From the first latch to the last, nothing waits but for latches, in their order.
//! - **X3** The same sections that are appended to the log are applied to the pages, by the same code as in redo.

use std::io;
use std::sync::atomic::Ordering;

use super::Pool;
use super::create::give_space;
use super::frames::{FrameNo, PageWrite, Pin};
use crate::defects::Defect;
use crate::error::{Error, Result};
use crate::page::bitmap::Bitmap;
use crate::page::format::{BLOCK_SIZE, init_header, set_page_lsn};
use crate::page::op::{self, Op};
use crate::page::{Lsn, PageId, Run};
use crate::sync::spin_wait;
use crate::wal::{Log, Shortage};

/// Places for pages that one reservation of data sets aside at the most.
const PAGES_SET_ASIDE: usize = 16;
/// So many checkpoints somebody who needs pages waits for before he takes places between data: one brings back all that was freed before
/// it, but others may be faster.
const CHECKPOINTS_FOR_PAGES: u32 = 3;
/// So often somebody who needs pages may find others to have been faster, these waits among them; then there is no space.
const PAGE_ATTEMPTS: u32 = 6;

/// What a transaction needs at the most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Need {
    /// Frames that may become dirty or stay pinned, those of new pages not counted.
    pub frames: usize,
    /// New pages.
    pub pages: usize,
    /// Bytes of log: the sum of [`Log::record_size`] over the records.
    pub log: u64,
}

/// What a transaction may use. The rest is given back when it is dropped.
pub struct Reservation<'p> {
    pool: &'p Pool,
    frames: usize,
    /// Bytes of log left.
    pub log: u64,
    pages: Vec<PageId>,
    spare: Vec<FrameNo>,
    /// The bitmap pages of `pages`, ascending.
    bitmaps: Vec<Pin<'p>>,
}

enum Lacking {
    Frames,
    Log(Shortage),
    Pages,
}

impl Pool {
    /// Reserves, waiting for checkpoints and log writes where need be. The caller holds no latch and no epoch.
    pub fn reserve(&self, need: Need) -> Result<Reservation<'_>> {
        let frames = need.frames + 2 * need.pages;
        if frames > self.dirty_max {
            return Err(Error::TooLarge { what: "pages of a batch", size: frames, limit: self.dirty_max });
        }
        if need.log > self.log.reservation_max() {
            let (size, limit) = (need.log as usize, self.log.reservation_max() as usize);
            return Err(Error::TooLarge { what: "log record of a batch", size, limit });
        }
        let mut full = 0;
        loop {
            self.writable()?;
            match self.try_reserve(frames, need)? {
                Ok(reservation) => return Ok(reservation),
                Err(Lacking::Pages) => {
                    self.find_pages(need.pages, &mut full)?;
                }
                Err(Lacking::Log(Shortage::Buffer)) => {
                    // It may be reservations that fill it; their owners need the processor.
                    spin_wait();
                    self.log.commit(self.log.end())?;
                }
                Err(Lacking::Frames | Lacking::Log(Shortage::Space)) => self.wait_for_checkpoint(false)?,
            }
        }
    }

    fn try_reserve(
        &self,
        frames: usize,
        need: Need,
    ) -> Result<std::result::Result<Reservation<'_>, Lacking>> {
        let grown = self.budget.fetch_add(frames, Ordering::SeqCst) + frames;
        let mut reservation = Reservation {
            pool: self,
            frames,
            log: 0,
            pages: Vec::new(),
            spare: Vec::new(),
            bitmaps: Vec::new(),
        };
        // Behind the addition to the budget: `set_read_only` waits until nothing is left of that.
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        if grown > self.dirty_max {
            return Ok(Err(Lacking::Frames));
        }
        if let Err(shortage) = self.log.try_reserve(need.log) {
            return Ok(Err(Lacking::Log(shortage)));
        }
        reservation.log = need.log;
        if need.pages > 0 {
            match self.space.lock().take_pages(need.pages) {
                Some(pages) => reservation.pages = pages,
                None => return Ok(Err(Lacking::Pages)),
            }
            for _ in 0..need.pages {
                reservation.spare.push(self.empty_frame().frame());
            }
            reservation.bitmaps = self.pin_bitmaps(reservation.pages.iter().map(|p| p.run()))?;
        }
        Ok(Ok(reservation))
    }

    /// Pins the bitmap pages of some runs, ascending, each once.
    pub fn pin_bitmaps(&self, runs: impl Iterator<Item = Run>) -> Result<Vec<Pin<'_>>> {
        let mut groups: Vec<u32> = runs.map(|run| self.geometry().locate(run.start).0).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.iter().map(|g| Ok(self.read(self.geometry().bitmap_page(*g))?.pin())).collect()
    }

    /// Makes pages available: from a free chunk, a new group, or what is in quarantine.
    fn find_pages(&self, pages: usize, full: &mut u32) -> Result<()> {
        self.reclaim_for(pages);
        let chunk = self.space.lock().take_chunk();
        let refused = match chunk.map(|run| self.carve(run)) {
            None => false,
            Some(Err(Error::NoSpace)) => true,
            Some(result) => return result,
        };
        if self.add_group()? {
            return Ok(());
        }
        *full += 1;
        if *full <= CHECKPOINTS_FOR_PAGES && self.space.lock().has_more_soon() {
            self.wait_for_quarantine(true)?;
            return Ok(());
        }
        loop {
            let run = {
                let mut space = self.space.lock();
                if space.has_pages(pages) {
                    break;
                }
                space.take_odd_page(refused)
            };
            self.carve(run.ok_or(Error::NoSpace)?)?;
        }
        if *full > PAGE_ATTEMPTS { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// Before data takes the last places in which a page fits: some of them are kept for pages.
    pub(super) fn set_pages_aside(&self) {
        for _ in 0..PAGES_SET_ASIDE {
            let place = {
                let mut space = self.space.lock();
                if space.is_short_of_pages() { space.take_odd_page(false) } else { None }
            };
            // An error is met again by whoever needs a page.
            if place.is_none_or(|run| self.carve(run).is_err()) {
                return;
            }
        }
    }

    /// Takes `n` pages for a bulk load; they go into a later transaction, or back by [`Pool::give_pages`].
    pub fn take_pages(&self, n: usize) -> Result<Vec<PageId>> {
        let mut full = 0;
        loop {
            self.writable()?;
            if let Some(pages) = self.space.lock().take_pages(n) {
                return Ok(pages);
            }
            self.find_pages(n, &mut full)?;
        }
    }

    /// Takes back pages that were not used.
    pub fn give_pages(&self, pages: &[PageId]) {
        self.space.lock().give_pages(pages);
    }

    fn carve(&self, run: Run) -> Result<()> {
        let allocated = self.with_host_space("allocating space for pages", || self.allocate(run));
        let mut space = self.space.lock();
        match allocated {
            Ok(()) => {
                space.carve(run);
                Ok(())
            }
            Err(e) => {
                space.give(run);
                Err(e)
            }
        }
    }

    fn allocate(&self, run: Run) -> io::Result<()> {
        give_space(&*self.storage, run.start.offset(), run.len as u64 * BLOCK_SIZE as u64)
    }

    /// Gives the next group its bitmap page; `false` when the image has no more groups, or the host no space for one: what is in
    /// quarantine may do.
    pub(super) fn add_group(&self) -> Result<bool> {
        let _growing = self.growing.lock();
        let Some(group) = self.space.lock().next_group() else { return Ok(false) };
        let page = self.geometry().bitmap_page(group);
        match self.with_host_space("allocating space for a bitmap", || self.allocate(page.run())) {
            Err(Error::NoSpace) => return Ok(false),
            allocated => allocated?,
        }
        let need = Need { frames: 1, pages: 0, log: Log::record_size(64) };
        let mut reservation = self.reserve(need)?;
        let mut body = Vec::new();
        let section = op::begin_section(&mut body, page);
        let end = self.geometry().group_blocks(group);
        Op::InitBitmap { used: crate::page::BLOCKS_PER_PAGE.min(end), end }.encode(&mut body);
        op::end_section(&mut body, section);
        let mut frame = self.empty_frame();
        if let Err(error) = self.adopt(&mut frame, page) {
            self.free_frames.push(frame.frame());
            return Err(error);
        }
        let lsn = reservation.commit(&mut [&mut frame], &body);
        self.space.lock().add_group(Bitmap(&frame), lsn);
        // It may have been there before a crash, and have been written to.
        self.looked_at.fetch_min(page.offset(), Ordering::SeqCst);
        Ok(true)
    }
}

impl<'p> Reservation<'p> {
    /// How many new pages are left.
    pub fn pages_left(&self) -> usize {
        self.pages.len()
    }

    /// Takes a new page, latched exclusively: nobody else knows of it yet. `None` if no page is left.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the page is in use, though its bitmap page says that it is free.
    pub fn new_page(&mut self) -> Result<Option<(PageId, PageWrite<'p>)>> {
        let (Some(&id), Some(&frame)) = (self.pages.last(), self.spare.last()) else { return Ok(None) };
        let mut latched = self.pool.latch_unused(frame);
        self.pool.adopt(&mut latched, id)?;
        self.pages.pop();
        self.spare.pop();
        Ok(Some((id, latched)))
    }

    /// The bitmap pages of some runs, latched exclusively in their order. They must be last among all latches.
    pub fn latch_bitmaps(&self, pins: &[Pin<'p>]) -> Vec<PageWrite<'p>> {
        pins.iter().map(|p| self.pool.latch(p)).collect()
    }

    /// The pinned bitmap page that covers a page of this reservation.
    pub fn latch_bitmap_of(&self, page: PageId) -> Result<PageWrite<'p>> {
        let id = self.pool.bitmap_of(page.run());
        let pin = self.bitmaps.iter().find(|p| p.page() == id);
        let pin = pin.ok_or_else(|| Error::corrupt(page, "bitmap page is not pinned"))?;
        Ok(self.pool.latch(pin))
    }

    /// Makes the sections of `body` one log record and applies them to `guards`, which are latched exclusively and stand in
    /// the order of the sections (guards without a section may stand between). Returns the record's end LSN.
    ///
    /// # Panics
    /// If a section cannot be applied. The caller has checked that it can, so this is a bug, and to go on would
    /// damage the image: a crash and redo of the log is safe.
    pub fn commit(&mut self, guards: &mut [&mut PageWrite<'p>], body: &[u8]) -> Lsn {
        let pool = self.pool;
        let late = pool.defects.has(Defect::DirtyAfterAppend);
        if !late {
            self.mark_dirty(guards, body);
        }
        let start = pool.log.end();
        let end = pool.log.append(body, &mut self.log);
        if late {
            self.mark_dirty(guards, body);
        }
        let stamp = if pool.defects.has(Defect::StampStartLsn) { start } else { end };
        let mut at = 0;
        for section in op::sections(body) {
            let applied = section.and_then(|(page, ops)| {
                if page == op::DATA_SECTION {
                    return Ok(());
                }
                while guards.get(at).is_some_and(|g| g.header().page() != page) {
                    at += 1;
                }
                let guard = guards.get_mut(at).ok_or("no latch is held for a section")?;
                for op in ops {
                    op::apply(guard, page, pool.geometry().image(), &op?)?;
                }
                set_page_lsn(guard, stamp);
                guard.note_change();
                if page == pool.geometry().root {
                    pool.root_version.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            });
            if let Err(reason) = applied {
                // Where a panic does not end the process, the record must not become durable.
                pool.log.fail(Error::corrupt(format_args!("log record before {end}"), reason));
                panic!("a logged change does not apply to its page: {reason}");
            }
        }
        end
    }

    fn mark_dirty(&mut self, guards: &mut [&mut PageWrite<'p>], body: &[u8]) {
        let log_end = self.pool.log.end();
        let mut at = 0;
        for (page, _) in op::sections(body).flatten().filter(|(page, _)| *page != op::DATA_SECTION) {
            while guards.get(at).is_some_and(|g| g.header().page() != page) {
                at += 1;
            }
            let Some(guard) = guards.get_mut(at) else { return };
            if guard.mark_dirty(log_end) {
                assert!(self.frames > 0, "a transaction changes more pages than it reserved");
                self.frames -= 1;
            }
        }
        if self.pool.defects.has(Defect::PostWithoutSplit) {
            // Also the page that the record lacks.
            self.frames -= guards.iter_mut().filter_map(|g| g.mark_dirty(log_end).then_some(())).count();
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.bitmaps.clear();
        let pool = self.pool;
        if self.log > 0 {
            pool.log.unreserve(self.log);
        }
        if self.frames > 0 {
            pool.budget.fetch_sub(self.frames, Ordering::SeqCst);
        }
        if !self.pages.is_empty() {
            pool.space.lock().give_pages(&self.pages);
        }
        if !self.spare.is_empty() {
            pool.free_frames.extend(self.spare.drain(..));
        }
    }
}

impl Pool {
    /// Puts a page without contents into an empty frame: it will be born by the next record.
    ///
    /// A frame that still holds what lay in the place before is emptied: nobody needs that any more.
    pub(super) fn adopt(&self, frame: &mut PageWrite<'_>, id: PageId) -> Result<()> {
        init_header(frame, 0, id, self.geometry().image());
        frame.note_change();
        let header = frame.header();
        header.newborn.store(true, Ordering::SeqCst);
        header.usage.store(1, Ordering::Relaxed);
        loop {
            let stripe = self.table.lock(id);
            let Some(stale) = stripe.find(&self.frames, id) else {
                stripe.insert(&self.frames, frame.frame(), id);
                return Ok(());
            };
            drop(stripe);
            if !self.drop_stale(id, stale)? {
                spin_wait();
            }
        }
    }

    /// Empties a frame that holds what was at a free page's place; `false` if somebody looks at it just now.
    fn drop_stale(&self, id: PageId, stale: FrameNo) -> Result<bool> {
        let in_use = || Error::corrupt(id, "it is in use, but its bitmap page says that it is free");
        let Some(page) = self.frames.try_latch_exclusive(stale) else {
            let header = self.frames.header(stale);
            let pinned = header.pins.load(Ordering::SeqCst) > 0 && header.page() == id;
            return if pinned { Err(in_use()) } else { Ok(false) };
        };
        if page.header().page() != id {
            return Ok(true);
        }
        if !page.header().is_evictable() {
            return Err(in_use());
        }
        self.table.lock(id).remove(&self.frames, stale);
        self.free_frames.push(stale);
        Ok(true)
    }

    /// Whether the blocks of `run` are all in use (or all free), as a transaction that frees (or allocates) them expects.
    pub fn expect_state(&self, bitmap: &PageWrite<'_>, run: Run, in_use: bool) -> Result<()> {
        if Bitmap(bitmap).state(self.within_group(run), run.len) == Some(in_use) {
            return Ok(());
        }
        let reason = if in_use {
            "blocks that are to be freed are not in use"
        } else {
            "blocks that are to be allocated are in use"
        };
        Err(Error::corrupt(run, reason))
    }
}
