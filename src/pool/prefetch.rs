//! Reading pages before they are needed, by threads of its own: a scan of cold pages would otherwise wait for the disk page by
//! page, though the disk could serve several at once.

use std::collections::VecDeque;

use super::Pool;
use crate::page::PageId;
use crate::sync::atomic::Ordering;
use crate::sync::{Condvar, Mutex};

/// Threads that read ahead.
pub const PREFETCHERS: usize = 4;
/// Pages that wait at the most; what comes then is not read ahead.
const QUEUE_MAX: usize = 64;
/// With fewer frames, pages read ahead would displace each other. (Tests shall see them do so.)
const FRAMES_MIN: usize = if cfg!(test) { 32 } else { 256 };

/// A page that is to be read.
struct Wanted {
    id: PageId,
    /// The epoch in which a page of the tree led to it.
    epoch: u64,
    keep: bool,
}

/// Pages that wait to be read ahead.
#[derive(Default)]
pub struct Prefetcher {
    queue: Mutex<VecDeque<Wanted>>,
    added: Condvar,
}

impl Pool {
    /// Has those pages read soon that are not in the pool; waits for nothing. A page of the tree led to them in `epoch`, in which the
    /// caller is alive. `keep` as for [`Pool::read_hinted`]. Without background threads nothing happens.
    pub fn prefetch(&self, ids: impl Iterator<Item = PageId>, epoch: u64, keep: bool) {
        if !self.background || self.frames.count() < FRAMES_MIN {
            return;
        }
        let mut missing = ids.filter(|id| !self.is_cached(*id)).peekable();
        if missing.peek().is_none() {
            return;
        }
        let mut queue = self.prefetcher.queue.lock();
        let room = QUEUE_MAX.saturating_sub(queue.len());
        queue.extend(missing.take(room).map(|id| Wanted { id, epoch, keep }));
        self.prefetcher.added.notify_all();
    }

    /// Whether a page was in the pool, or on its way there, a moment ago.
    pub fn is_cached(&self, id: PageId) -> bool {
        self.table.find(&self.frames, id).is_some()
    }

    /// A thread that reads ahead, until [`Pool::stop`].
    pub fn run_prefetcher(&self) {
        let Prefetcher { queue, added } = &self.prefetcher;
        loop {
            let wanted = {
                let mut queue = queue.lock();
                loop {
                    if self.stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    match queue.pop_front() {
                        Some(wanted) => break wanted,
                        None => added.wait(&mut queue),
                    }
                }
            };
            // In a later epoch the page's place may have been given to something else already, and a stale page must not come
            // into the pool. Who needs it reads it then.
            let alive = self.enter();
            if alive.epoch() == wanted.epoch && self.geometry().is_data_page(wanted.id) {
                // An error is for who needs the page.
                drop(self.read_hinted(wanted.id, wanted.keep));
            }
        }
    }

    /// Wakes the threads that read ahead, so that they see that the pool has stopped.
    pub(super) fn stop_prefetchers(&self) {
        let _queue = self.prefetcher.queue.lock();
        self.prefetcher.added.notify_all();
    }
}
