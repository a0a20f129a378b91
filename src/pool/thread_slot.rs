//! A small number for each thread that is alive, to give it a cache line of its own in arrays that all threads share.

#[cfg(not(shuttle))]
mod real {
    use std::sync::atomic::{AtomicU64, Ordering};

    /// So many threads have a number of their own. Others share one with some thread.
    pub const SLOTS: usize = 64;

    /// The numbers that are taken, one bit each.
    static TAKEN: AtomicU64 = AtomicU64::new(0);

    /// A thread's number, free again when the thread ends: so numbers stay small, however many threads come and go.
    struct Slot {
        number: usize,
        own: bool,
    }

    impl Slot {
        fn take() -> Slot {
            let lowest = |taken: u64| (taken != u64::MAX).then_some(taken | (taken + 1));
            match TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lowest) {
                Ok(before) => Slot { number: before.trailing_ones() as usize, own: true },
                Err(_) => Slot { number: SLOTS - 1, own: false },
            }
        }
    }

    impl Drop for Slot {
        fn drop(&mut self) {
            if self.own {
                TAKEN.fetch_and(!(1 << self.number), Ordering::Relaxed);
            }
        }
    }

    thread_local! { static SLOT: Slot = Slot::take() }

    /// This thread's number, below [`SLOTS`]. Never relied on to be its own.
    #[inline]
    pub fn thread_slot() -> usize {
        SLOT.try_with(|slot| slot.number).unwrap_or(SLOTS - 1)
    }
}

/// The model checker looks at every access as a place to switch threads, so all threads share one slot.
#[cfg(shuttle)]
mod model {
    pub const SLOTS: usize = 1;

    pub fn thread_slot() -> usize {
        0
    }
}

#[cfg(shuttle)]
pub use model::*;
#[cfg(not(shuttle))]
pub use real::*;
