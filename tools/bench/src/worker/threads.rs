//! Threads that start their work at the same moment.

use std::cell::Cell;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// A thread's view of the common start.
pub struct Start<'a> {
    barrier: &'a Barrier,
    began: Cell<Option<Instant>>,
}

impl Start<'_> {
    /// Waits until all threads are ready, and returns the time.
    pub fn wait(&self) -> Instant {
        if let Some(began) = self.began.get() {
            return began;
        }
        self.barrier.wait();
        let now = Instant::now();
        self.began.set(Some(now));
        now
    }
}

/// Runs `work(thread, start)` on `count` threads. Each prepares itself and then calls `start.wait()`. Returns
/// what they returned, and the time from the first start to the last end.
pub fn run<T: Send>(
    count: usize,
    work: impl Fn(usize, &Start) -> Result<T> + Sync,
) -> Result<(Vec<T>, Duration)> {
    let barrier = Barrier::new(count);
    let one = |thread| {
        let start = Start { barrier: &barrier, began: Cell::new(None) };
        let result = work(thread, &start);
        // A thread that failed early still comes to the barrier, or the others would wait for ever.
        let began = start.wait();
        result.map(|value| (value, began, Instant::now()))
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let one = &one;
        let handles: Vec<_> = (0..count).map(|thread| scope.spawn(move || one(thread))).collect();
        handles.into_iter().map(|handle| handle.join().map_err(|_| anyhow!("a thread panicked"))).collect()
    });
    let mut values = Vec::new();
    let mut spans = Vec::new();
    for result in results {
        let (value, began, ended) = result??;
        values.push(value);
        spans.push((began, ended));
    }
    let began = spans.iter().map(|span| span.0).min();
    let ended = spans.iter().map(|span| span.1).max();
    let elapsed = began.zip(ended).map_or(Duration::ZERO, |(began, ended)| ended - began);
    Ok((values, elapsed))
}
