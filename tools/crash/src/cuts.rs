//! Which cuts of a recording are looked at.

use std::collections::BTreeMap;

use btfs::storage::sim::{Policy, Recording};
use btfs::storage::{OpKind, Rng};

use crate::path::{Failure, Step};

/// How many cuts of a recording are looked at, by how many cuts there were before. Behind the last number, none.
const CUTS: [usize; 3] = [60, 8, 5];

/// A log write of more bytes than this is a site of its own.
const LONG: u64 = 6000;

/// Whether recordings after so many cuts are explored at all.
pub fn goes_deeper(depth: usize) -> bool {
    depth < CUTS.len()
}

/// Chooses cuts, ascending: half of them evenly over the operations, half evenly over the sites, so that rare sites
/// get their share. Operations before `recovery_end` belong to one site, recovery.
pub fn choose(recording: &Recording, recovery_end: u64, depth: usize, rng: &mut Rng) -> Vec<Step> {
    let mut all: Vec<(u64, u64)> = vec![(*recording.cuts().end(), 0)];
    let mut sites: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for operation in recording.operations().filter(|o| o.kind != OpKind::Allocate) {
        all.push((operation.index, operation.len));
        let site = match operation.site {
            _ if operation.index < recovery_end => "recovery",
            // Splits, merges and root growth: the image of a page is in it.
            "log" if operation.len > LONG => "long log write",
            site => site,
        };
        sites.entry(site).or_default().push((operation.index, operation.len));
    }
    let sites: Vec<&Vec<(u64, u64)>> = sites.values().collect();
    let mut steps = Vec::new();
    for i in 0..CUTS.get(depth).copied().unwrap_or(0) {
        let (cut, _) = if i % 2 == 0 || sites.is_empty() {
            all[rng.index(all.len())]
        } else {
            // Of several the longest: it can be torn in more ways.
            let of = sites[rng.index(sites.len())];
            let some = [of[rng.index(of.len())], of[rng.index(of.len())], of[rng.index(of.len())]];
            some.into_iter().max_by_key(|(_, len)| *len).unwrap_or(some[0])
        };
        let failure = match rng.index(Policy::ALL.len() + 1) {
            0 => Failure::Process,
            n => Failure::Power(Policy::ALL[n - 1]),
        };
        steps.push(Step { cut, failure, salt: rng.below(1000) as u32 });
    }
    steps.sort_by_key(|s| s.cut);
    steps
}

/// Every cut from operation `first` on, ascending, each in two ways; of a long recording, some.
pub fn every(recording: &Recording, first: u64, rng: &mut Rng) -> Vec<Step> {
    const CUTS_MAX: usize = 40;
    let operations = recording.operations().filter(|o| o.index >= first && o.kind != OpKind::Allocate);
    let mut cuts: Vec<u64> = operations.map(|o| o.index).chain([*recording.cuts().end()]).collect();
    while cuts.len() > CUTS_MAX {
        cuts.remove(rng.index(cuts.len()));
    }
    let mut steps = Vec::new();
    for cut in cuts {
        let last = if rng.chance(1, 6) { Failure::Process } else { Failure::Power(Policy::Any) };
        let policy = Policy::ALL[rng.index(Policy::ALL.len())];
        for failure in [Failure::Power(policy), last] {
            steps.push(Step { cut, failure, salt: rng.below(1000) as u32 });
        }
    }
    steps
}

/// A set of blocks of an image, as far as they lie in its first 16 MiB.
#[derive(Clone, Debug)]
pub struct Blocks([u64; 64]);

impl Blocks {
    /// No blocks.
    pub fn none() -> Self {
        Blocks([0; 64])
    }

    fn numbers(from: u64, to: u64) -> impl Iterator<Item = u64> {
        from.min(4096)..to.min(4096)
    }

    /// Adds the blocks from number `from` to before number `to`.
    pub fn add(&mut self, from: u64, to: u64) {
        Self::numbers(from, to).for_each(|b| self.0[b as usize / 64] |= 1 << (b % 64));
    }

    /// Whether one of the blocks from number `from` to before number `to` is in the set.
    pub fn contains_any(&self, from: u64, to: u64) -> bool {
        Self::numbers(from, to).any(|b| self.0[b as usize / 64] >> (b % 64) & 1 == 1)
    }

    /// The blocks of this set for which `keep` is true.
    pub fn filter(&self, keep: impl Fn(u64) -> bool) -> Self {
        let mut kept = Self::none();
        for block in 0..4096 {
            if self.contains_any(block, block + 1) && keep(block) {
                kept.add(block, block + 1);
            }
        }
        kept
    }
}
