//! The page table: which frame holds a page. A fixed array of chains through the frame headers; looking up takes no lock.
//!
//! A lookup may follow a chain while it changes and miss its page or find a frame whose page changes the next moment.
//! So a hit is checked again under the frame's latch (F2), and a miss is repeated under the stripe mutex before a page is loaded.

use super::frames::{FrameNo, Frames};
use crate::page::PageId;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

const STRIPES: usize = 64;
/// No chain is longer in practice; a lookup that was led astray gives up here.
const CHAIN_MAX: usize = 64;

/// A chain's head: frame number plus 1 (or 0) in the lower half, the lower half of the frame's page number in the upper. So a
/// lookup knows before it touches the frame's header that this is probably the frame, and can fetch all of it at once.
fn head(link: u32, page: PageId) -> u64 {
    page.0 << 32 | link as u64
}

/// The page table of a pool.
pub struct PageTable {
    /// Heads of the chains: see [`head`].
    buckets: Box<[AtomicU64]>,
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
            buckets: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
            stripes: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// Bytes of memory a frame costs here.
    pub const BYTES_PER_FRAME: usize = 32;

    fn bucket(&self, id: PageId) -> usize {
        // Fibonacci hashing: neighbouring pages fall into different buckets.
        let hash = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        hash as usize & (self.buckets.len() - 1)
    }

    /// The frame that held the page a moment ago.
    #[inline]
    pub fn find(&self, frames: &Frames, id: PageId) -> Option<FrameNo> {
        let bucket = self.bucket(id);
        let first = self.buckets[bucket].load(Ordering::Acquire);
        if first >> 32 == id.0 & 0xffff_ffff && first as u32 != 0 {
            frames.prefetch(first as u32 - 1);
        }
        self.find_in(frames, first as u32, id, CHAIN_MAX)
    }

    #[inline]
    fn find_in(&self, frames: &Frames, mut link: u32, id: PageId, steps: usize) -> Option<FrameNo> {
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
        let first = self.table.buckets[self.bucket].load(Ordering::Acquire);
        self.table.find_in(frames, first as u32, id, usize::MAX)
    }

    /// Enters a page. The caller holds the frame's exclusive latch.
    pub fn insert(&self, frames: &Frames, frame: FrameNo, id: PageId) {
        let header = frames.header(frame);
        let first = &self.table.buckets[self.bucket];
        header.next.store(first.load(Ordering::Acquire) as u32, Ordering::Release);
        header.page.store(id.0, Ordering::Release);
        first.store(head(frame + 1, id), Ordering::Release);
    }

    /// Removes a page. The caller holds the frame's exclusive latch.
    pub fn remove(&self, frames: &Frames, frame: FrameNo) {
        let header = frames.header(frame);
        let next = header.next.load(Ordering::Acquire);
        let first = &self.table.buckets[self.bucket];
        let mut at = first.load(Ordering::Acquire) as u32;
        if at == frame + 1 {
            let page = next.checked_sub(1).map_or(PageId::NONE, |frame| frames.header(frame).page());
            first.store(head(next, page), Ordering::Release);
        } else {
            loop {
                assert!(at != 0, "a frame is missing in its chain of the page table");
                let link = &frames.header(at - 1).next;
                at = link.load(Ordering::Acquire);
                if at == frame + 1 {
                    link.store(next, Ordering::Release);
                    break;
                }
            }
        }
        header.page.store(0, Ordering::Release);
    }
}
