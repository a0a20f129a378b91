//! What the medium holds for certain, and what it may hold.
//!
//! Invariants:
//! - I1. `pending` is in the order of issue.
//! - I2. Of a pending operation, `parts` are the bytes that may still change the medium: those that no later
//!   operation, durable already, has written.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::policy::{Fate, Tear};
use super::{Operation, Policy};
use crate::storage::{Image, OpKind, Rng};

const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;

/// A medium with a volatile cache.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    durable: Image,
    pending: Vec<Pending>,
    /// Counts issues and completions, so as to tell what came first.
    clock: u64,
}

/// An operation that is in flight, or completed and not yet durable.
#[derive(Clone, Debug)]
struct Pending {
    operation: Arc<Operation>,
    issued: u64,
    completed: Option<u64>,
    parts: Vec<Range<u64>>,
    /// For `set_len`: later operations, durable already, have made the image this long.
    len_min: u64,
}

impl Disk {
    pub(super) fn new(durable: Image) -> Self {
        Disk { durable, pending: Vec::new(), clock: 0 }
    }

    pub(super) fn issue(&mut self, operation: Arc<Operation>) {
        self.clock += 1;
        let range = match operation.kind {
            OpKind::Write | OpKind::WriteDurable | OpKind::Punch => {
                operation.offset..operation.offset.saturating_add(operation.len)
            }
            OpKind::SetLen => operation.offset..u64::MAX,
            OpKind::Read | OpKind::ReadAhead | OpKind::Sync | OpKind::Allocate => 0..0,
        };
        let parts = if range.is_empty() { Vec::new() } else { vec![range] };
        self.pending.push(Pending { operation, issued: self.clock, completed: None, parts, len_min: 0 });
    }

    pub(super) fn complete(&mut self, index: u64) {
        self.clock += 1;
        let Some(at) = self.pending.iter().rposition(|pending| pending.operation.index == index) else {
            return;
        };
        match self.pending[at].operation.kind {
            OpKind::Sync => {
                let sync = self.pending.remove(at);
                self.make_durable(|pending| pending.completed.is_some_and(|time| time < sync.issued));
            }
            OpKind::WriteDurable => self.make_durable(|pending| pending.operation.index == index),
            OpKind::Write | OpKind::Punch | OpKind::SetLen => self.pending[at].completed = Some(self.clock),
            OpKind::Read | OpKind::ReadAhead | OpKind::Allocate => drop(self.pending.remove(at)),
        }
    }

    /// All operations in flight go to their end, as a host does when the process that asked for them dies, but nobody waits for
    /// them: they make nothing durable.
    pub(super) fn abandon(&mut self) {
        self.clock += 1;
        self.pending.retain(Pending::has_effect);
        for pending in &mut self.pending {
            pending.completed.get_or_insert(self.clock);
        }
    }

    /// How many operations a power cut could lose.
    pub(super) fn pending(&self) -> usize {
        self.pending.iter().filter(|pending| pending.has_effect()).count()
    }

    /// An image that a power cut could leave.
    pub(super) fn crash(&self, rng: &mut Rng, policy: Policy) -> Image {
        let mut image = self.durable.clone();
        let pending: Vec<_> = self.pending.iter().filter(|pending| pending.has_effect()).collect();
        let fates = policy.fates(rng, pending.len());
        for (pending, fate) in pending.into_iter().zip(fates) {
            match fate {
                Fate::Lost => {}
                Fate::Kept => pending.apply(&mut image, 0..u64::MAX),
                Fate::Torn => pending.tear(&mut image, rng),
            }
        }
        image
    }

    /// Applies the operations that are chosen to the durable image, and takes away from the earlier ones
    /// that remain what they may no longer change.
    fn make_durable(&mut self, is_chosen: impl Fn(&Pending) -> bool) {
        let mut remaining: Vec<Pending> = Vec::new();
        for pending in self.pending.drain(..) {
            if !is_chosen(&pending) {
                remaining.push(pending);
                continue;
            }
            pending.apply(&mut self.durable, 0..u64::MAX);
            for earlier in &mut remaining {
                earlier.supersede(&pending);
            }
        }
        self.pending = remaining;
    }
}

impl Pending {
    fn has_effect(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Does as much of the operation as lies in `within`.
    fn apply(&self, image: &mut Image, within: Range<u64>) {
        let operation = &*self.operation;
        for part in &self.parts {
            let part = part.start.max(within.start)..part.end.min(within.end);
            if part.is_empty() {
                continue;
            }
            match operation.kind {
                OpKind::Write | OpKind::WriteDurable => {
                    let data =
                        (part.start - operation.offset) as usize..(part.end - operation.offset) as usize;
                    expect_done(image.write(part.start, &operation.data[data]));
                }
                OpKind::SetLen => image.forget(part),
                _ => image.zero(part),
            }
        }
        if operation.kind == OpKind::SetLen && self.has_effect() {
            expect_done(image.set_len(operation.offset.max(self.len_min)));
        }
    }

    /// Does a random part of the operation.
    fn tear(&self, image: &mut Image, rng: &mut Rng) {
        let operation = &*self.operation;
        let unit = match operation.kind {
            OpKind::Punch => BLOCK,
            OpKind::SetLen if rng.chance(1, 2) => return self.apply(image, 0..u64::MAX),
            OpKind::SetLen => return,
            _ => SECTOR,
        };
        let end = (operation.offset.saturating_add(operation.len)).min(match operation.kind {
            OpKind::Punch => image.len().max(operation.offset),
            _ => u64::MAX,
        });
        let units = operation.offset / unit..end.div_ceil(unit);
        let tear = Tear::random(rng, units.end - units.start);
        for number in units.clone() {
            if tear.keeps(rng, number - units.start) {
                self.apply(image, number * unit..(number + 1) * unit);
            }
        }
    }

    /// Takes away what `later`, which has become durable, has written over.
    fn supersede(&mut self, later: &Pending) {
        for gone in &later.parts {
            if self.parts.iter().all(|part| part.end <= gone.start || gone.end <= part.start) {
                continue;
            }
            let cut = |part: &Range<u64>| {
                [part.start..part.end.min(gone.start), part.start.max(gone.end)..part.end]
            };
            self.parts = self.parts.iter().flat_map(cut).filter(|part| !part.is_empty()).collect();
        }
        let len = match later.operation.kind {
            OpKind::Write | OpKind::WriteDurable => later.operation.offset + later.operation.len,
            OpKind::SetLen => later.operation.offset,
            _ => 0,
        };
        self.len_min = self.len_min.max(len);
    }
}

/// The live image, or a copy of it, has done this operation already.
fn expect_done(result: io::Result<()>) {
    debug_assert!(result.is_ok(), "an operation that succeeded cannot be repeated: {result:?}");
}
