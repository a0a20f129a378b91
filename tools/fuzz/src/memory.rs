//! Limits of memory and time of a case.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The heap may not become larger, in bytes: half of what a process may take, since the caches lie outside of it.
pub const HEAP_MAX: usize = 512 << 20;
/// Processor time that a case may take.
pub const CPU_MAX: Duration = Duration::from_secs(8);

/// The system's allocator, which counts, and ends the process when the heap is larger than [`HEAP_MAX`].
pub struct Counting;

static HEAP: AtomicUsize = AtomicUsize::new(0);

fn grown(by: usize) {
    if HEAP.fetch_add(by, Ordering::Relaxed) + by > HEAP_MAX {
        // What follows allocates as well.
        HEAP.store(0, Ordering::Relaxed);
        eprintln!("the heap is larger than {} MiB: {by} bytes more are asked for", HEAP_MAX >> 20);
        std::process::abort();
    }
}

fn shrunk(by: usize) {
    HEAP.fetch_sub(by, Ordering::Relaxed);
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrunk(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        shrunk(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Processor time of this process.
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and the time is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The processor time at the beginning of the case that runs, in milliseconds plus 1; 0 between cases.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Says that a case begins. One at a time in a process.
pub fn case_begins() {
    BEGUN.store(cpu_time().as_millis() as u64 + 1, Ordering::SeqCst);
}

/// Says that it has ended.
pub fn case_ends() {
    BEGUN.store(0, Ordering::SeqCst);
}

/// Starts a thread that ends the process when a case takes more than [`CPU_MAX`]. Time in which the process does not run does not count.
pub fn watch() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let begun = BEGUN.load(Ordering::SeqCst);
            if begun > 0 && cpu_time() > Duration::from_millis(begun) + CPU_MAX {
                eprintln!("a case takes more than {} s of processor time", CPU_MAX.as_secs());
                std::process::abort();
            }
        }
    });
}
