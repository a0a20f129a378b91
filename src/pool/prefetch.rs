//! Reading pages before they are needed, by threads of its own: a scan of cold pages would otherwise wait for the disk page by
//! page, though the disk could serve several at once, and neighbours in one piece.

use std::collections::VecDeque;

use super::frames::{FrameNo, POPULATE};
use super::{PageWrite, Pool};
use crate::page::{PAGE_SIZE, PageId};
use crate::storage::AlignedBuf;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Condvar, Mutex, unlocked};

/// Threads that read ahead.
pub const PREFETCHERS: usize = 4;
/// Pages that wait at the most; what comes then is not read ahead.
const QUEUE_MAX: usize = 256;
/// With fewer frames, pages read ahead would displace each other. (Tests shall see them do so.)
const FRAMES_MIN: usize = if cfg!(test) { 32 } else { 256 };
/// A stretch of the image that is read in one piece: pages, first to last.
const STRETCH_MAX: u64 = 16;
/// Pages between two that are wanted which are read and thrown away, at the most: that costs less than another request.
const GAP_MAX: u64 = 4;
/// A thread latches one of so many frames at the most while it reads a stretch.
const FRAMES_PER_STRETCH: usize = if cfg!(test) { 8 } else { 64 };

/// So many frames ahead their memory is taken from the system.
const POPULATE_AHEAD: FrameNo = 4 * POPULATE;

/// Pages that are to be read, in the order of their places.
struct Stretch {
    ids: Vec<PageId>,
    /// The page at which a scan is to have more read ahead.
    milestone: Option<PageId>,
    /// The epoch in which a page of the tree led to them.
    epoch: u64,
    keep: bool,
}

/// Pages that wait to be read ahead.
#[derive(Default)]
pub struct Prefetcher {
    queue: Mutex<VecDeque<Job>>,
    added: Condvar,
    /// The memory of the frames before this one has been taken from the system, or will be.
    populated: AtomicU32,
}

enum Job {
    Read(Stretch),
    /// The memory of frames that have never been used.
    Populate(FrameNo),
}

/// What a scan that goes on to a page should know about reading ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ahead {
    /// The page is not in the pool.
    Missing,
    /// The page was read ahead, and those behind it should be as well by now. Told once.
    Milestone,
    /// Nothing.
    Cached,
}

impl Pool {
    /// Has those pages read soon that are not in the pool, those first that come first; waits for nothing. A page of the tree led to
    /// them in `epoch`, in which the caller is alive. `keep` as for [`Pool::read_hinted`]. In the middle of them is a milestone: see
    /// [`Pool::ahead_of`]. Without background threads nothing happens.
    pub fn prefetch(&self, ids: impl Iterator<Item = PageId>, epoch: u64, keep: bool) {
        if !self.reads_ahead || self.frames.count() < FRAMES_MIN {
            return;
        }
        let mut missing: Vec<PageId> = ids.filter(|id| !self.is_cached(*id)).take(QUEUE_MAX).collect();
        if missing.is_empty() {
            return;
        }
        let milestone = missing[missing.len() / 2];
        let first = missing[0];
        missing.sort_unstable();
        let pages_max = (self.frames.count() / FRAMES_PER_STRETCH).clamp(1, STRETCH_MAX as usize);
        let together = |a: &PageId, b: &PageId| b.0 - a.0 <= 1 + GAP_MAX;
        let mut stretches: Vec<Stretch> = Vec::new();
        for near in missing.chunk_by(together) {
            let mut rest = near;
            while let Some(start) = rest.first() {
                let fits = rest.iter().take(pages_max).take_while(|id| id.0 - start.0 < STRETCH_MAX).count();
                let (ids, others) = rest.split_at(fits);
                let milestone = Some(milestone).filter(|id| ids.contains(id));
                stretches.push(Stretch { ids: ids.to_vec(), milestone, epoch, keep });
                rest = others;
            }
        }
        // Who scans waits for this one next.
        if let Some(at) = stretches.iter().position(|stretch| stretch.ids.contains(&first)) {
            stretches.swap(0, at);
        }
        let mut queue = self.prefetcher.queue.lock();
        let pages = |job: &Job| match job {
            Job::Read(stretch) => stretch.ids.len(),
            Job::Populate(_) => 0,
        };
        if queue.iter().map(pages).sum::<usize>() + missing.len() <= QUEUE_MAX {
            queue.extend(stretches.into_iter().map(Job::Read));
            self.prefetcher.added.notify_all();
        }
    }

    /// A frame is used, perhaps for the first time: has memory for those behind it taken from the system before they are.
    pub(super) fn populate_ahead(&self, frame: FrameNo) {
        let populated = &self.prefetcher.populated;
        let end = populated.load(Ordering::Relaxed);
        if !self.reads_ahead || frame + POPULATE_AHEAD < end || end as usize >= self.frames.count() {
            return;
        }
        let next = end.max(frame - frame % POPULATE) + POPULATE;
        if populated.compare_exchange(end, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.prefetcher.queue.lock().push_back(Job::Populate(next - POPULATE));
            self.prefetcher.added.notify_one();
        }
    }

    /// Whether a page was in the pool, or on its way there, a moment ago.
    pub fn is_cached(&self, id: PageId) -> bool {
        self.table.find(&self.frames, id).is_some()
    }

    /// Whether a scan that is about to read this page should have more read ahead.
    pub fn ahead_of(&self, id: PageId) -> Ahead {
        let Some(frame) = self.table.find(&self.frames, id) else { return Ahead::Missing };
        let milestone = &self.frames.header(frame).milestone;
        match milestone.load(Ordering::Relaxed) && milestone.swap(false, Ordering::Relaxed) {
            true => Ahead::Milestone,
            false => Ahead::Cached,
        }
    }

    /// A thread that reads ahead, until [`Pool::stop`].
    pub fn run_prefetcher(&self) {
        let Prefetcher { queue, added, .. } = &self.prefetcher;
        let mut memory = AlignedBuf::new();
        loop {
            let mut stretch = {
                let lock = queue;
                let mut queue = lock.lock();
                loop {
                    if self.stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    match queue.pop_front() {
                        Some(Job::Read(stretch)) => break stretch,
                        Some(Job::Populate(first)) => {
                            unlocked(&mut queue, lock, || self.frames.populate(first))
                        }
                        None => added.wait(&mut queue),
                    }
                }
            };
            // In a later epoch the page's place may have been given to something else already, and a stale page must not come
            // into the pool. Who needs it reads it then.
            let alive = self.enter();
            if alive.epoch() == stretch.epoch {
                let geometry = self.geometry();
                stretch.ids.retain(|id| geometry.is_data_page(*id));
                self.read_stretch(&stretch, &mut memory);
            }
        }
    }

    /// Reads those pages of a stretch that are not in the pool, in one piece. All are claimed before: otherwise one could be loaded,
    /// changed, written and evicted meanwhile, and come back as it was. Who holds their latches waits for nothing but the disk.
    fn read_stretch(&self, stretch: &Stretch, memory: &mut AlignedBuf) {
        let mut claimed: Vec<(PageId, PageWrite<'_>)> = Vec::with_capacity(stretch.ids.len());
        for id in stretch.ids.iter().copied().filter(|id| !self.is_cached(*id)) {
            // The first is waited for as by anybody, the others would be waited for with latches held.
            let page = match claimed.is_empty() {
                true => self.frame_for(stretch.keep),
                false => match self.try_frame_for(stretch.keep) {
                    Some(page) => page,
                    None => break,
                },
            };
            if let Ok(page) = self.claim(id, page, stretch.keep) {
                page.header().milestone.store(stretch.milestone == Some(id), Ordering::Relaxed);
                claimed.push((id, page));
            }
        }
        let (Some((first, _)), Some((last, _))) = (claimed.first(), claimed.last()) else { return };
        let first = *first;
        memory.reset((last.0 - first.0 + 1) as usize * PAGE_SIZE);
        let whole = claimed.len() > 1 && self.storage.read_at(first.offset(), memory).is_ok();
        for (id, mut page) in claimed {
            let read = if whole {
                let at = (id.0 - first.0) as usize * PAGE_SIZE;
                page.copy_from_slice(&memory[at..at + PAGE_SIZE]);
                self.stats.pages_read.fetch_add(1, Ordering::Relaxed);
                self.check_read(id, &page)
            } else {
                self.fetch(id, &mut page)
            };
            // An error is for who needs the page.
            let _ = self.settle(id, page, read);
        }
    }

    /// Wakes the threads that read ahead, so that they see that the pool has stopped.
    pub(super) fn stop_prefetchers(&self) {
        let _queue = self.prefetcher.queue.lock();
        self.prefetcher.added.notify_all();
    }
}
