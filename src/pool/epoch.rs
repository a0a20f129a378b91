//! Epochs: a freed page is reused only when no operation is alive that started before it was freed.
//!
//! The scheme is that of Linux' sleepable RCU: an operation counts itself in and out under the current parity; the
//! epoch advances when nobody counts under the other parity. What was freed in epoch *e* is safe in epoch *e* + 2.
//! The counters are spread over cache lines by thread. The same lines carry the counters of the hot path.

use super::thread_slot::{SLOTS, thread_slot};
use crate::sync::atomic::{AtomicU64, Ordering};

/// What the operations of some threads count, on cache lines of their own.
#[repr(align(128))]
#[derive(Default)]
struct Slot {
    alive: [AtomicU64; 2],
    counters: [AtomicU64; COUNTERS],
}

/// A counter of the hot path.
#[derive(Clone, Copy, Debug)]
pub enum Counter {
    /// Point lookups.
    Gets,
    /// Pages latched by point lookups.
    GetPages,
    /// Cursor positionings (a scan is one, then moves along the leaves).
    Seeks,
    /// Pages latched by cursors.
    ScanPages,
    /// Latches that had to be waited for.
    LatchWaits,
    /// Moves to a right sibling during a descent.
    MoveRights,
    /// Descents begun again at the root.
    Restarts,
}
const COUNTERS: usize = 7;

/// The epochs of a pool.
pub struct Epochs {
    epoch: AtomicU64,
    slots: Box<[Slot]>,
}

/// An operation that is alive: pages that it may have seen are not reused.
pub struct Alive<'e> {
    epochs: &'e Epochs,
    slot: usize,
    epoch: u64,
}

impl Default for Epochs {
    fn default() -> Self {
        Epochs { epoch: AtomicU64::new(2), slots: (0..SLOTS).map(|_| Slot::default()).collect() }
    }
}

fn parity(epoch: u64) -> usize {
    (epoch & 1) as usize
}

impl Epochs {
    /// Begins an operation. Ends when the result is dropped.
    #[inline]
    pub fn enter(&self) -> Alive<'_> {
        let slot = thread_slot();
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let parity = parity(epoch);
            self.slots[slot].alive[parity].fetch_add(1, Ordering::SeqCst);
            // If the epoch has not moved since, whoever moves it next will see the count.
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return Alive { epochs: self, slot, epoch };
            }
            self.slots[slot].alive[parity].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The current epoch.
    pub fn current(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Moves to the next epoch if nobody is alive in the one before the current. Never waits.
    /// One thread at a time calls this (the space manager's mutex is held).
    pub fn advance(&self) {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let before = (epoch as usize + 1) & 1;
        if self.slots.iter().all(|s| s.alive[before].load(Ordering::SeqCst) == 0) {
            self.epoch.store(epoch + 1, Ordering::SeqCst);
        }
    }

    /// The sum of a counter over all threads.
    pub fn count(&self, counter: Counter) -> u64 {
        self.slots.iter().map(|s| s.counters[counter as usize].load(Ordering::Relaxed)).sum()
    }

    /// Adds to a counter from outside of an operation.
    pub fn add(&self, counter: Counter, n: u64) {
        self.slots[thread_slot()].counters[counter as usize].fetch_add(n, Ordering::Relaxed);
    }
}

impl Alive<'_> {
    /// The epoch in which the operation began. While it is alive, at most one more begins.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Adds to a counter. Not one atomic step: of threads beyond the 64th, which share a line, a count may be lost.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        let counter = &self.epochs.slots[self.slot].counters[counter as usize];
        counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }
}

impl Drop for Alive<'_> {
    #[inline]
    fn drop(&mut self) {
        self.epochs.slots[self.slot].alive[parity(self.epoch)].fetch_sub(1, Ordering::SeqCst);
    }
}
