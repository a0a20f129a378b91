//! Who reads which frame: shared latches that cost no write to a cache line of the page's.
//!
//! Readers of one page would fight over the line of its latch, though they do not exclude each other. So a reader announces
//! the frame in its thread's slot, and a writer, who excludes them anyway, looks into all slots. The idea is that of Linux' big-reader
//! locks, and of BRAVO (Dice & Kogan, *Biased Locking for Reader-Writer Locks*, USENIX ATC 2019), with one table for all latches.
//!
//! - **R1** A reader announces itself, *then* looks whether the frame is closed; a writer closes the frame, *then* looks for
//!   readers. All four accesses are sequentially consistent, so that one of the two sees the other (Dekker): a reader that finds the
//!   frame closed withdraws, a writer that finds a reader waits for it.
//! - **R2** A slot has room for one frame. Who finds his taken (he holds another latch, or shares the slot) uses the frame's
//!   ordinary latch.

use super::frames::FrameNo;
use super::thread_slot::{SLOTS, thread_slot};
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use crate::sync::spin_wait;

/// So often a writer looks again before it lets others run: as long as a reader takes for a search.
const SPINS: u32 = if cfg!(shuttle) { 0 } else { 200 };

/// The frame that a thread reads, plus 1, or 0. On cache lines of its own.
#[repr(align(128))]
#[derive(Default)]
pub struct Announcement(AtomicU32);

/// The readers of all frames of a pool.
pub struct Readers {
    slots: Box<[Announcement]>,
    /// Slots from here on were never used.
    used: AtomicUsize,
}

impl Default for Readers {
    fn default() -> Self {
        Readers { slots: (0..SLOTS).map(|_| Announcement::default()).collect(), used: AtomicUsize::new(0) }
    }
}

impl Readers {
    /// Announces that the frame is read, unless the slot is taken (R2). The caller now looks whether the frame is closed (R1).
    #[inline]
    pub fn announce(&self, frame: FrameNo) -> Option<&Announcement> {
        let slot = thread_slot();
        if slot >= self.used.load(Ordering::SeqCst) {
            self.used.fetch_max(slot + 1, Ordering::SeqCst);
        }
        let slot = &self.slots[slot];
        slot.0.compare_exchange(0, frame + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok().then_some(slot)
    }

    /// Whether somebody has announced the frame. The caller has closed it (R1).
    pub fn has(&self, frame: FrameNo) -> bool {
        let used = self.used.load(Ordering::SeqCst);
        self.slots[..used].iter().any(|slot| slot.0.load(Ordering::SeqCst) == frame + 1)
    }

    /// Waits until nobody reads the frame; returns whether it had to wait. The caller has closed it (R1), so no new readers come.
    pub fn wait(&self, frame: FrameNo) -> bool {
        let mut waited = false;
        for slot in &self.slots[..self.used.load(Ordering::SeqCst)] {
            let mut spins = 0;
            while slot.0.load(Ordering::SeqCst) == frame + 1 {
                waited = true;
                if spins < SPINS {
                    spins += 1;
                    std::hint::spin_loop();
                } else {
                    spin_wait();
                }
            }
        }
        waited
    }
}

impl Announcement {
    /// The frame is not read any more. Only by whoever announced it, once.
    #[inline]
    pub fn withdraw(&self) {
        self.0.store(0, Ordering::Release);
    }
}
