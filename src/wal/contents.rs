//! File contents on their way to the image: long writes are taken into buffers, and written while who wrote them goes on.
//!
//! One after the other, a write and the next request's way through the kernel leave the disk idle half of the time. Nothing but the
//! moment changes: the record that refers to the contents is appended at once, and waits for them before it goes to disk (L4).
//!
//! - **C1** Contents that were taken are written before a group of the log that was begun afterwards, and before anybody reads their
//!   place, writes there again, or gives it up.
//! - **C2** The host has space for them: a full disk is still told to who writes. Any other failure ends all writing, like that of
//!   the log, and is latched before anybody finds that the contents are no longer under way. They are kept: reads go on.
//! - **C3** The mutex is not held across I/O. Who waits writes himself what nobody else is writing, so nothing depends on a thread.

use std::collections::VecDeque;
use std::ops::Range;

use super::Log;
use crate::defects::Defect;
use crate::error::Error;
use crate::storage::sim::site_scope;
use crate::storage::{AlignedBuf, Storage};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, unlocked};

/// Shorter contents are written at once: through the page cache, which takes no longer than a copy.
const BEHIND_MIN: usize = 64 << 10;
/// Longer ones are not taken: buffers have a bound.
const BEHIND_MAX: usize = 1 << 20;
/// Writes that are under way at the most.
const UNDER_WAY_MAX: usize = 4;

/// A write that has been taken.
struct Taken {
    number: u64,
    offset: u64,
    bytes: AlignedBuf,
}

#[derive(Default)]
struct State {
    /// What nobody is writing yet, oldest first.
    waiting: VecDeque<Taken>,
    /// What is being written: numbers and places.
    writing: Vec<(u64, Range<u64>)>,
    /// What could not be written.
    failed: Vec<Taken>,
    /// The number of the next one.
    next: u64,
    /// Buffers to be used again.
    spare: Vec<AlignedBuf>,
}

/// Contents that are under way.
#[derive(Default)]
pub(super) struct Contents {
    state: Mutex<State>,
    /// How many writes are under way or have failed, for those who need not look further.
    count: AtomicUsize,
    /// Something was taken.
    taken: Condvar,
    /// Something was written.
    written: Condvar,
    /// Contents were written that no sync has covered yet.
    unsynced: AtomicBool,
}

impl Log {
    /// Takes contents, which are durable before any record that is appended afterwards; waits while too much is under way. Returns
    /// whether they were taken; otherwise the caller writes them. The caller holds no latch and no epoch.
    pub fn write_behind(&self, offset: u64, data: &[u8]) -> bool {
        // Where the host refuses, or cannot tell, the caller's own write shows whether there is room.
        if !(BEHIND_MIN..=BEHIND_MAX).contains(&data.len())
            || !self.storage.allocate(offset, data.len() as u64).unwrap_or(false)
        {
            return false;
        }
        let contents = &self.contents;
        let mut bytes = contents.state.lock().spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(data);
        let mut state = contents.state.lock();
        while state.waiting.len() + state.writing.len() >= UNDER_WAY_MAX {
            self.write_one(&mut state, |_| true);
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(Taken { number, offset, bytes });
        contents.count.fetch_add(1, Ordering::SeqCst);
        contents.taken.notify_one();
        true
    }

    /// File data was written; the next group syncs it before its records (L4).
    pub fn data_written(&self) {
        self.contents.unsynced.store(true, Ordering::SeqCst);
    }

    /// Waits until nothing that overlaps a range of the image is under way. The caller holds no latch and no epoch.
    pub fn wait_for_contents(&self, range: Range<u64>) {
        self.wait_while(|_, place| place.start < range.end && range.start < place.end);
    }

    /// Puts contents that could not be written over what was read at `offset`; returns how many bytes.
    pub fn overlay_contents(&self, offset: u64, data: &mut [u8]) -> usize {
        let mut held_bytes = 0;
        if self.contents.count.load(Ordering::SeqCst) == 0 {
            return held_bytes;
        }
        let end = offset + data.len() as u64;
        for taken in &self.contents.state.lock().failed {
            let place = taken.place();
            let (from, to) = (place.start.max(offset), place.end.min(end));
            if from < to {
                let held = &taken.bytes[(from - place.start) as usize..(to - place.start) as usize];
                data[(from - offset) as usize..(to - offset) as usize].copy_from_slice(held);
                held_bytes += held.len();
            }
        }
        held_bytes
    }

    /// Waits for all contents that were taken before this call, and syncs what was written since the last sync. Fails if writing has
    /// ended.
    pub(super) fn sync_contents(&self) -> std::io::Result<()> {
        if !self.defects.has(Defect::GroupBeforeContents) {
            let next = self.contents.state.lock().next;
            self.wait_while(|number, _| number < next);
        }
        if let Some(error) = self.failed.get() {
            return Err(std::io::Error::other(error.clone()));
        }
        if self.contents.unsynced.swap(false, Ordering::SeqCst) {
            self.storage.sync()?;
        }
        Ok(())
    }

    /// Waits while something is under way for which `what` holds, by number and place.
    fn wait_while(&self, what: impl Fn(u64, &Range<u64>) -> bool) {
        let contents = &self.contents;
        if contents.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut state = contents.state.lock();
        let concerns = |taken: &Taken| what(taken.number, &taken.place());
        while state.waiting.iter().any(concerns) || state.writing.iter().any(|(n, place)| what(*n, place)) {
            self.write_one(&mut state, concerns);
        }
    }

    /// Writes the oldest contents for which `which` holds and that nobody else is writing; if there are none, waits until
    /// something has been written. On entry and exit the state is locked; not in between.
    fn write_one<'a>(&'a self, state: &mut MutexGuard<'a, State>, which: impl Fn(&Taken) -> bool) {
        let contents = &self.contents;
        let at = state.waiting.iter().position(which);
        let Some(taken) = at.and_then(|at| state.waiting.remove(at)) else {
            contents.written.wait(state);
            return;
        };
        let place = taken.place();
        state.writing.push((taken.number, place.clone()));
        let done = unlocked(state, &contents.state, || {
            let _site = site_scope("data");
            let written = self.storage.write_at(taken.offset, &taken.bytes);
            self.data_written();
            written.map_err(|error| self.fail(Error::io("writing data", error))).is_ok()
        });
        state.writing.retain(|(number, _)| *number != taken.number);
        if done {
            contents.count.fetch_sub(1, Ordering::SeqCst);
            if state.spare.len() < UNDER_WAY_MAX {
                state.spare.push(taken.bytes);
            }
        } else {
            state.failed.push(taken);
        }
        contents.written.notify_all();
    }

    /// A thread that writes contents, until [`Log::stop`]. What is under way then is lost, as in a crash.
    pub fn run_contents_writer(&self) {
        let mut state = self.contents.state.lock();
        while !self.stopping.load(Ordering::SeqCst) {
            if state.waiting.is_empty() {
                self.contents.taken.wait(&mut state);
            } else {
                self.write_one(&mut state, |_| true);
            }
        }
    }

    /// Wakes the thread that writes contents, so that it sees that the log has stopped.
    pub(super) fn stop_contents_writer(&self) {
        let _state = self.contents.state.lock();
        self.contents.taken.notify_all();
    }
}

#[cfg(test)]
impl Contents {
    /// How many writes are under way.
    pub(super) fn under_way(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Taken {
    fn place(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes.len() as u64
    }
}
