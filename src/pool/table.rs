//! The page table: which frame holds a page. A fixed array of chains through the frame headers; looking up takes no lock.
//!
//! A lookup may follow a chain while it changes and miss its page or find a frame whose page changes the next moment.
//! So a hit is checked again under the frame's latch (F2), and a miss is repeated under the stripe mutex before a page is loaded.

use super::frames::{FrameNo, Frames};
use crate::page::PageId;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard};

const STRIPES: usize = 64;
/// No chain is longer in practice; a lookup that was led astray gives up here.
const CHAIN_MAX: usize = 64;

/// The page table of a pool.
pub struct PageTable {
    /// Heads of the chains: frame number plus 1, or 0.
    buckets: Box<[AtomicU32]>,
    stripes: [Mutex<()>; STRIPES],
}

/// A locked part of the table.
pub struct Stripe<'t> {
    table: &'t PageTable,
    bucket: usize,
    _lock: MutexGuard<'t, ()>,
}

impl PageTable {
    /// A table for so many frames.
    pub fn new(frames: usize) -> Self {
        let buckets = (frames * 2).next_power_of_two();
        PageTable {
            buckets: (0..buckets).map(|_| AtomicU32::new(0)).collect(),
            stripes: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// Bytes of memory a frame costs here.
    pub const BYTES_PER_FRAME: usize = 16;

    fn bucket(&self, id: PageId) -> usize {
        // Fibonacci hashing: neighbouring pages fall into different buckets.
        let hash = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        hash as usize & (self.buckets.len() - 1)
    }

    /// The frame that held the page a moment ago.
    #[inline]
    pub fn find(&self, frames: &Frames, id: PageId) -> Option<FrameNo> {
        self.find_in(frames, self.bucket(id), id, CHAIN_MAX)
    }

    fn find_in(&self, frames: &Frames, bucket: usize, id: PageId, steps: usize) -> Option<FrameNo> {
        let mut link = self.buckets[bucket].load(Ordering::Acquire);
        for _ in 0..steps {
            let frame = link.checked_sub(1)?;
            let header = frames.header(frame);
            if header.page() == id {
                return Some(frame);
            }
            link = header.next.load(Ordering::Acquire);
        }
        None
    }

    /// Locks the part of the table where the page would be. No latch is waited for, and no I/O done, under it.
    pub fn lock(&self, id: PageId) -> Stripe<'_> {
        let bucket = self.bucket(id);
        Stripe { table: self, bucket, _lock: self.stripes[bucket % STRIPES].lock() }
    }
}

impl Stripe<'_> {
    /// The frame that holds the page.
    pub fn find(&self, frames: &Frames, id: PageId) -> Option<FrameNo> {
        self.table.find_in(frames, self.bucket, id, usize::MAX)
    }

    /// Enters a page. The caller holds the frame's exclusive latch.
    pub fn insert(&self, frames: &Frames, frame: FrameNo, id: PageId) {
        let header = frames.header(frame);
        let head = &self.table.buckets[self.bucket];
        header.next.store(head.load(Ordering::Acquire), Ordering::Release);
        header.page.store(id.0, Ordering::Release);
        head.store(frame + 1, Ordering::Release);
    }

    /// Removes a page. The caller holds the frame's exclusive latch.
    pub fn remove(&self, frames: &Frames, frame: FrameNo) {
        let header = frames.header(frame);
        let mut link = &self.table.buckets[self.bucket];
        loop {
            let at = link.load(Ordering::Acquire);
            if at == frame + 1 {
                link.store(header.next.load(Ordering::Acquire), Ordering::Release);
                break;
            }
            assert!(at != 0, "a frame is missing in its chain of the page table");
            link = &frames.header(at - 1).next;
        }
        header.page.store(0, Ordering::Release);
    }
}
