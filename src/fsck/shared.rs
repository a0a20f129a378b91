//! Blocks that several extents share, and the records that count them.
//!
//! All extents marked as shared are kept, 12 bytes each, sorted, and compared with the counts.

use super::blocks::Claims;
use super::fix::Fix;
use super::image::Image;
use super::report::{Findings, Place, ProblemKind, counted};
use crate::fs::format::Shared;
use crate::page::{BlockNo, Run};

/// Shared runs, as extents and counts tell.
#[derive(Default)]
pub(super) struct SharedRuns {
    extents: Vec<Run>,
    /// Runs with their counts, ascending.
    counts: Vec<(Run, u32)>,
    /// Shared runs with blocks that are in use elsewhere, and not as shared ones.
    pub contested: Vec<Run>,
}

/// Contested runs that are kept; others wait for the next round.
const CONTESTED_MAX: usize = 10_000;

impl SharedRuns {
    /// An extent marked as shared.
    pub fn extent(&mut self, run: Run) {
        self.extents.push(run);
    }

    /// The record of the run that ends in front of block `end`.
    pub fn record(&mut self, end: u64, shared: Shared) {
        let start = BlockNo(end.saturating_sub(shared.len as u64));
        self.counts.push((Run { start, len: shared.len }, shared.count));
    }

    /// The records as they should be, by the ends of their runs.
    pub fn true_records(&mut self) -> Vec<(u64, Shared)> {
        let counts = self.true_counts();
        counts.into_iter().map(|(run, count)| (run.end().0, Shared { len: run.len, count })).collect()
    }

    /// The true counts: runs of blocks in two extents or more.
    fn true_counts(&mut self) -> Vec<(Run, u32)> {
        let mut found: Vec<(Run, u32)> = Vec::new();
        self.sweep(|run, count| {
            if count > 1 {
                match found.last_mut() {
                    Some((last, n)) if last.end() == run.start && *n == count => last.len += run.len,
                    _ => found.push((run, count)),
                }
            }
        });
        found
    }

    /// Calls `each` with the pieces that the extents cover, ascending, and how many extents each lies in.
    fn sweep(&mut self, mut each: impl FnMut(Run, u32)) {
        self.extents.sort_unstable();
        let mut ends: std::collections::BinaryHeap<std::cmp::Reverse<u64>> = Default::default();
        let (mut at, mut i) = (0, 0);
        while i < self.extents.len() || !ends.is_empty() {
            let next_start = self.extents.get(i).map_or(u64::MAX, |r| r.start.0);
            let next_end = ends.peek().map_or(u64::MAX, |e| e.0);
            let next = next_start.min(next_end);
            if !ends.is_empty() && next > at {
                each(Run { start: BlockNo(at), len: (next - at) as u32 }, ends.len() as u32);
            }
            at = next;
            if next_start <= next_end {
                ends.push(std::cmp::Reverse(self.extents[i].end().0));
                i += 1;
            } else {
                ends.pop();
            }
        }
    }

    /// Claims the blocks of all shared extents, and compares the counts.
    pub fn check(&mut self, image: &Image, claims: &mut Claims, findings: &mut Findings) {
        let mut merged: Vec<Run> = Vec::new();
        self.sweep(|run, _| match merged.last_mut() {
            Some(last) if last.end() == run.start && last.len < 1 << 16 => last.len += run.len,
            _ => merged.push(run),
        });
        for run in merged.into_iter().filter(|r| image.is_valid_run(*r)) {
            let twice = claims.claim(run);
            if twice > 0 {
                let what = format!("{twice} shared blocks are in use elsewhere, and not as shared ones");
                findings.add(ProblemKind::BlocksTwice, Place::blocks(run), what, vec![Fix::Contested]);
                if self.contested.len() < CONTESTED_MAX {
                    self.contested.push(run);
                }
            }
        }
        let expected = self.true_counts();
        let recorded = normal(&self.counts);
        if expected == recorded {
            return;
        }
        let wrong = expected.iter().filter(|e| recorded.binary_search(e).is_err());
        let left = recorded.iter().filter(|r| expected.binary_search(r).is_err());
        for (run, count) in wrong {
            let what = format!("{count} extents share these blocks, and the records say otherwise");
            findings.add(ProblemKind::SharedCount, Place::blocks(*run), what, vec![Fix::SharedCounts]);
        }
        for (run, count) in left {
            let share = counted((*count).into(), "extent shares", "extents share");
            let what = format!("a record says that {share} these blocks");
            findings.add(ProblemKind::SharedCount, Place::blocks(*run), what, vec![Fix::SharedCounts]);
        }
    }
}

/// Neighbours with the same count as one.
fn normal(counts: &[(Run, u32)]) -> Vec<(Run, u32)> {
    let mut merged: Vec<(Run, u32)> = Vec::new();
    for &(run, count) in counts {
        match merged.last_mut() {
            // Forged ones may be longer than any run.
            Some((last, n)) if last.end() == run.start && *n == count && run.len <= u32::MAX - last.len => {
                last.len += run.len
            }
            _ => merged.push((run, count)),
        }
    }
    merged
}
