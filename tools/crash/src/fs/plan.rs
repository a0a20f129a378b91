//! What a seed stands for: a base, and operations.

use std::sync::{Arc, Mutex, PoisonError};

use btfs::defects::{Defects, set_timer};
use btfs::fs::{Caller, Fallocate, Fs, Time};
use btfs::storage::{Image, Rng, SimStorage};
use btfs::tree::{FormatOptions, Options};

use super::driver::Driver;
use super::model::Model;
use super::operation::Operation::{self, *};
use super::operation::{sequence, sequences};
use super::verify::{self, Look};
use crate::path::mix;
use crate::plan::allocates;

/// Bytes of memory that a page costs the pool, generously.
const FRAME: usize = 16_600;
/// Pages of the smallest pool: a batch of the filesystem takes about 150.
const POOL_PAGES_MIN: usize = 240;
/// Coprime to the number of sequences: so any row of seeds has sequences of all kinds.
const STRIDE: u64 = 7919;

/// What a run does.
#[derive(Clone, Debug)]
pub enum Work {
    /// One or two operations.
    Sequence(Vec<Operation>),
    /// So many operations at random; the longest write, in bytes.
    Random(u64, u64),
}

/// The image that a run begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// 6 MiB, most of it free.
    Roomy,
    /// 3 MiB, in which hardly anything is free: what is freed is used again soon.
    Tight,
}

/// A base and operations.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// The image.
    pub base: Base,
    /// Whether the host allocates space in advance, and takes space back.
    pub allocates: bool,
    /// What is done.
    pub work: Work,
    /// After how many batches the timer commits; 0: never.
    pub timer: u64,
    /// Planted defects.
    pub defects: Defects,
}

impl Plan {
    /// The plan of a seed: one of four is long, the others are the sequences in some order.
    pub fn new(seed: u64, defects: Defects) -> Plan {
        let mut rng = Rng::new(mix(seed ^ 0xf5));
        let timer = [0, 0, 1, 1, 2, 5][rng.index(6)];
        let allocates = allocates(seed);
        if seed.is_multiple_of(4) {
            let base = [Base::Roomy, Base::Tight, Base::Tight][rng.index(3)];
            let longest = if base == Base::Roomy && rng.chance(1, 3) { 1_500_000 } else { 100_000 };
            let work = Work::Random(10 + rng.below(51), longest);
            return Plan { seed, base, allocates, work, timer, defects };
        }
        let number = (seed / 4 * 3 + seed % 4 - 1) % sequences();
        let number = (u128::from(number) * u128::from(STRIDE) % u128::from(sequences())) as u64;
        let work = Work::Sequence(sequence(number));
        Plan { seed, base: Base::Roomy, allocates, work, timer, defects }
    }

    /// After so many seeds in a row every sequence has had its turn.
    pub fn seeds_of_all_sequences() -> u64 {
        sequences().div_ceil(3) * 4
    }

    /// What the run begins with.
    ///
    /// # Errors
    /// What the filesystem said when the image was made.
    pub fn prepared(&self) -> Result<Prepared, String> {
        let prepared = self.base.prepared()?;
        let image = if self.allocates { prepared.image } else { prepared.image.without_allocation() };
        Ok(Prepared { image, ..prepared })
    }

    /// How the filesystem is run: with a pool of 240 to 268 pages, which `number` decides.
    pub fn options(&self, number: u64) -> Options {
        Options {
            cache_size: (POOL_PAGES_MIN + mix(number) as usize % 29) * FRAME,
            background: false,
            defects: self.defects,
            ..Options::default()
        }
    }
}

/// An image, and what it contains.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The image, closed in order.
    pub image: Image,
    /// What it contains.
    pub model: Model,
}

const MADE: Time = Time { seconds: 1_600_000_000, nanos: 0 };

impl Base {
    /// The image. It is made once, and has no defects.
    ///
    /// # Errors
    /// What the filesystem said.
    pub fn prepared(self) -> Result<Prepared, String> {
        static MADE_ALREADY: Mutex<Vec<(Base, Prepared)>> = Mutex::new(Vec::new());
        let mut made = MADE_ALREADY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, prepared)) = made.iter().find(|(base, _)| *base == self) {
            return Ok(prepared.clone());
        }
        set_timer(0);
        let prepared = self.prepare()?;
        made.push((self, prepared.clone()));
        Ok(prepared)
    }

    fn prepare(self) -> Result<Prepared, String> {
        let caller = Caller::new(1000, 1000, MADE);
        let format = FormatOptions {
            size: if self == Base::Roomy { 6 << 20 } else { 3 << 20 },
            log_size: Some(256 << 10),
            doublewrite_pages: Some(4),
            uuid: *b"crash exploratio",
            hash_seed: *b"of a filesystem.",
            ..FormatOptions::default()
        };
        // Where there are stale bytes, the host does not tell of holes.
        let stale = (self != Base::Roomy).then_some(7);
        let sim = Arc::new(SimStorage::new(0, stale));
        Fs::format(sim.clone(), &format, &caller).map_err(|e| format!("format: {e}"))?;
        let options = Options { background: false, ..Options::default() };
        let fs = Fs::open(sim.clone(), &options).map_err(|e| format!("opening a new image: {e}"))?;
        let empty = Model::new(MADE);
        let mut driver = Driver::resume(sim.clone(), options.clone(), fs, empty, Vec::new(), 0, 1);
        driver.run(&self.contents())?;
        driver.run(&[Operation::Reopen])?;
        if self == Base::Tight {
            driver.fill(LEFT_FREE)?;
        }
        driver.run(&[Operation::Sync])?;
        let model = driver.model().clone();
        driver.close()?;
        let sim = Arc::new(SimStorage::from_image(sim.image()));
        verify::check_image(&sim, true)?;
        let look = Look { structure: true, ..Look::default() };
        let found = verify::open(&Arc::new(SimStorage::from_image(sim.image())), &options, look)?;
        match found.model.hash() == model.hash() {
            true => Ok(Prepared { image: sim.image(), model }),
            false => Err(format!("the base is not what it must be: {:?}", found.model.differences(&model))),
        }
    }

    fn contents(self) -> Vec<Operation> {
        let mut contents = vec![
            Mkdir("d"),
            Mkdir("e"),
            Mkdir("d/g"),
            Create("a"),
            Write("a", 0, 300),
            Link("a", "h"),
            Create("b"),
            Write("b", 0, 13_000),
            SetXattr("b", 0, 100),
            Create("f"),
            Fallocate("f", 0, 65_536, Fallocate::Allocate),
            Write("f", 0, 5000),
            Create("d/a"),
            Write("d/a", 0, 9000),
            SetXattr("d/a", 1, 5000),
            Create("d/b"),
            Write("d/b", 0, 300),
            Symlink("l", 12),
            Create("s"),
        ];
        contents.extend((0..if self == Base::Roomy { 70 } else { 10 }).map(|n| Write("s", n * 8192, 4096)));
        contents
    }
}

/// Blocks that are left for data in a tight image.
const LEFT_FREE: u64 = 90;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_seeds_has_every_sequence() {
        let plans = (1..=Plan::seeds_of_all_sequences()).map(|seed| Plan::new(seed, Defects::default()));
        let sequences_of = |work| match work {
            Work::Sequence(operations) => Some(format!("{operations:?}")),
            Work::Random(..) => None,
        };
        let found: std::collections::BTreeSet<String> = plans.filter_map(|p| sequences_of(p.work)).collect();
        let all: std::collections::BTreeSet<String> =
            (0..sequences()).map(|n| format!("{:?}", sequence(n))).collect();
        assert_eq!(found, all);
    }
}
