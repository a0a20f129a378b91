//! A recorded run, and the images that a power cut at any of its operations could leave.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::disk::Disk;
use super::{Operation, Policy, SimStorage};
use crate::storage::{Image, Rng};

/// What happened, in order.
#[derive(Debug)]
pub(super) enum Event {
    Issued(Arc<Operation>),
    Completed(u64),
}

/// The operations of a run. Threads may share it, and each walk over it with a cursor of its own.
#[derive(Debug)]
pub struct Recording {
    /// The medium before the first event.
    base: Disk,
    events: Vec<Event>,
    first: u64,
    end: u64,
    end_mark: u64,
}

impl Recording {
    pub(super) fn new(base: Disk, first: u64, mark: u64) -> Self {
        Recording { base, events: Vec::new(), first, end: first, end_mark: mark }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    pub(super) fn finish(&mut self, end: u64, mark: u64) {
        (self.end, self.end_mark) = (end, mark);
    }

    /// The cuts: one at each operation, and one after the last.
    pub fn cuts(&self) -> RangeInclusive<u64> {
        self.first..=self.end
    }

    /// The operations in order.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.events.iter().filter_map(|event| match event {
            Event::Issued(operation) => Some(&**operation),
            Event::Completed(_) => None,
        })
    }

    /// A cursor before the first cut.
    pub fn cursor(&self) -> CutCursor<'_> {
        CutCursor { recording: self, disk: self.base.clone(), rest: &self.events, cut: None }
    }

    /// An image that a power cut at operation `cut` could have left; `None` if there is no such cut. Costs a
    /// walk from the beginning: to explore many cuts, use a cursor.
    pub fn image_at(&self, cut: u64, rng: &mut Rng, policy: Policy) -> Option<Image> {
        let mut cursor = self.cursor();
        while cursor.advance() {
            if cursor.index() == cut {
                return Some(cursor.crash(rng, policy));
            }
        }
        None
    }
}

/// Walks over the cuts of a recording, at the cost of doing each operation once.
///
/// ```
/// # use btfs::storage::{Rng, SimStorage, Storage, sim::Policy};
/// # let sim = SimStorage::new(4096, None);
/// sim.start_recording();
/// sim.write_at(0, b"a")?;
/// sim.sync()?;
/// sim.note(1);
/// let recording = sim.finish_recording().unwrap();
/// let mut cursor = recording.cursor();
/// let mut rng = Rng::new(1);
/// while cursor.advance() {
///     let image = cursor.crash(&mut rng, Policy::Any);
///     let mut byte = [0];
///     image.read(0, &mut byte)?;
///     assert!(byte == *b"a" || cursor.mark() == 0);
/// }
/// # std::io::Result::Ok(())
/// ```
pub struct CutCursor<'a> {
    recording: &'a Recording,
    disk: Disk,
    rest: &'a [Event],
    /// The operation in flight, `None` at the cut after the last. `None` outside: not at a cut yet.
    cut: Option<Option<&'a Operation>>,
}

impl<'a> CutCursor<'a> {
    /// Moves to the next cut. False if there is none; the cursor then stays at the last.
    pub fn advance(&mut self) -> bool {
        if matches!(self.cut, Some(None)) {
            return false;
        }
        while let Some((event, rest)) = self.rest.split_first() {
            self.rest = rest;
            match event {
                Event::Issued(operation) => {
                    self.disk.issue(Arc::clone(operation));
                    self.cut = Some(Some(operation));
                    return true;
                }
                Event::Completed(index) => self.disk.complete(*index),
            }
        }
        self.cut = Some(None);
        true
    }

    /// The operation that was in flight at this cut; `None` at the cut after the last.
    pub fn operation(&self) -> Option<&'a Operation> {
        self.cut.flatten()
    }

    /// The number of this cut.
    pub fn index(&self) -> u64 {
        self.operation().map_or(self.recording.end, |operation| operation.index)
    }

    /// What the workload had last noted before this cut.
    pub fn mark(&self) -> u64 {
        self.operation().map_or(self.recording.end_mark, |operation| operation.mark)
    }

    /// How many operations are not durable at this cut. If 0, all its images are the same.
    pub fn pending(&self) -> usize {
        self.disk.pending()
    }

    /// An image that a power cut here could have left.
    pub fn crash(&self, rng: &mut Rng, policy: Policy) -> Image {
        self.disk.crash(rng, policy)
    }

    /// The storage after the death of the process alone at this cut: reads see every operation, those in flight
    /// included, and what was not durable is not durable yet, but will be with the next sync. So a power cut may follow.
    pub fn process_death(&self) -> SimStorage {
        let mut disk = self.disk.clone();
        disk.abandon();
        SimStorage::from_disk(disk, self.index() + 1)
    }
}
