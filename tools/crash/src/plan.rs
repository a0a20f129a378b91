//! What a seed stands for.

use std::sync::Arc;

use btfs::defects::Defects;
use btfs::page::format::GROUP_SIZE;
use btfs::storage::{Rng, SimStorage};
use btfs::tree::{FormatOptions, Options, Tree};

use crate::keys::{KeyKind, ValueKind};
use crate::path::mix;
use crate::workload::Driver;

/// Bytes of memory that a page costs the pool, generously.
const FRAME: usize = 16_600;

/// Pages of the smallest pool.
pub const POOL_PAGES_MIN: usize = 32;

/// What the image holds before it is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was ever written.
    Zeros,
    /// Garbage, as on a used disk.
    Garbage,
    /// An older image of the same geometry, with another UUID.
    OtherImage,
    /// An older image of the same geometry and the same UUID: its pages look like ours.
    SameImage,
}

/// What a run is like as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Batches of all kinds; the tree grows and shrinks.
    Churn,
    /// Begins with a bulk load of more pages than a chunk holds, then deletes them all, and needs the place for data.
    LoadAndWipe,
    /// Mostly data blocks, in an image that is nearly full.
    Blocks,
    /// Batches of one length and no others: after a recovery that cut the log's end off, new records end where old
    /// ones begin.
    Uniform,
    /// An image of two groups, the first of which is full.
    TwoGroups,
}

/// How often something happens: once in so many batches, on average. 0: never.
#[derive(Clone, Copy, Debug)]
pub struct Frequencies {
    /// Commits.
    pub commit: u64,
    /// Checkpoints.
    pub checkpoint: u64,
    /// Giving space back to the host, or only ending the quarantine of freed blocks.
    pub trim: u64,
    /// Closing and opening in order.
    pub reopen: u64,
    /// Killing the process, and opening.
    pub kill: u64,
    /// Batches with data blocks.
    pub data: u64,
    /// Deleting all data, and giving its space back to the host.
    pub wipe: u64,
}

/// A geometry, a pool, and a workload.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// The image's size, the places of its parts.
    pub format: FormatOptions,
    /// What the image held before.
    pub origin: Origin,
    /// Whether the host allocates space in advance, and takes space back.
    pub allocates: bool,
    /// What the run is like.
    pub scenario: Scenario,
    /// Keys.
    pub keys: KeyKind,
    /// About how many different ones.
    pub key_space: u64,
    /// Values.
    pub values: ValueKind,
    /// The most records that one batch changes.
    pub batch_max: u64,
    /// How many steps the first run has.
    pub steps: u64,
    /// At so many bytes of records, the tree is made to shrink.
    pub size_max: usize,
    /// The most blocks in one data record.
    pub data_blocks_max: u64,
    /// How often things happen.
    pub frequencies: Frequencies,
    /// Planted defects.
    pub defects: Defects,
}

/// Whether the host of a seed allocates space in advance, and takes space back: most do.
pub(crate) fn allocates(seed: u64) -> bool {
    !mix(seed ^ 0x5ace).is_multiple_of(5)
}

fn one_of<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.index(choices.len())]
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, defects: Defects) -> Plan {
        let mut rng = Rng::new(mix(seed));
        let rng = &mut rng;
        // By turns, so that a few dozen seeds in a row contain them all.
        let scenario = match seed % 20 {
            4 | 9 | 14 | 19 => Scenario::LoadAndWipe,
            2 | 7 | 12 => Scenario::Blocks,
            1 | 11 => Scenario::Uniform,
            6 => Scenario::TwoGroups,
            _ => Scenario::Churn,
        };
        let values = one_of(
            rng,
            &[
                ValueKind::Fixed(120),
                ValueKind::Fixed(2000),
                ValueKind::Small,
                ValueKind::Mixed,
                ValueKind::Large,
            ],
        );
        let values = if scenario == Scenario::Uniform { ValueKind::Fixed(2000) } else { values };
        let size = match scenario {
            Scenario::Uniform | Scenario::Churn => one_of(rng, &[2u64, 3, 4]) << 20,
            Scenario::LoadAndWipe => one_of(rng, &[4u64, 5]) << 20,
            Scenario::Blocks => one_of(rng, &[2u64, 3, 4]) << 20,
            Scenario::TwoGroups => GROUP_SIZE + (one_of(rng, &[3u64, 5]) << 20),
        };
        let mut uuid = [0; 16];
        rng.fill(&mut uuid);
        Plan {
            seed,
            format: FormatOptions {
                size,
                log_size: Some(one_of(rng, &[256, 256, 256, 320]) << 10),
                doublewrite_pages: Some(4 + rng.below(5) as u32),
                uuid,
                ..FormatOptions::default()
            },
            origin: one_of(
                rng,
                &[Origin::Zeros, Origin::Garbage, Origin::OtherImage, Origin::SameImage, Origin::SameImage],
            ),
            allocates: allocates(seed),
            scenario,
            keys: match scenario {
                Scenario::Uniform => one_of(rng, &[KeyKind::Short, KeyKind::Ascending, KeyKind::HotSpot]),
                _ => one_of(rng, &KeyKind::ALL),
            },
            key_space: one_of(rng, &[30, 150, 600, 3000]),
            values,
            batch_max: if scenario == Scenario::Uniform { 1 } else { 1 + rng.below(6) },
            steps: 20 + rng.below(80),
            size_max: one_of(rng, &[60, 150, 350, 600]) << 10,
            data_blocks_max: match scenario {
                Scenario::Blocks => one_of(rng, &[16, 60, 100]),
                _ => one_of(rng, &[2, 8, 16, 40]),
            },
            frequencies: Frequencies::new(rng, scenario),
            defects,
        }
    }

    /// How the engine is run: with a pool of 32 to 60 pages, which `number` decides.
    pub fn options(&self, number: u64) -> Options {
        Options {
            cache_size: (POOL_PAGES_MIN + mix(number) as usize % 29) * FRAME,
            background: false,
            defects: self.defects,
            ..Options::default()
        }
    }

    /// The image that the first run begins with: formatted, closed in order, holding no records.
    ///
    /// # Errors
    /// What the engine said.
    pub fn image(&self) -> Result<Arc<SimStorage>, String> {
        let sim = match self.origin {
            Origin::Zeros => SimStorage::new(0, None),
            Origin::Garbage => SimStorage::new(0, Some(mix(self.seed ^ 0xbad))),
            Origin::OtherImage | Origin::SameImage => self.aged()?,
        };
        Tree::format(&sim, &self.format).map_err(|e| format!("format: {e}"))?;
        // All of it durable: power cuts during the making of an image are not explored.
        let image = if self.allocates { sim.image() } else { sim.image().without_allocation() };
        Ok(Arc::new(SimStorage::from_image(image)))
    }

    /// A storage with an older image of the same geometry.
    fn aged(&self) -> Result<SimStorage, String> {
        let mut older = Plan { origin: Origin::Zeros, ..self.clone() };
        if self.origin == Origin::OtherImage {
            older.format.uuid[0] ^= 0xff;
        }
        let sim = older.image()?;
        let mut driver = Driver::open(&older, sim.clone(), mix(self.seed ^ 0xa9ed))?;
        driver.run(self.steps)?;
        Ok(SimStorage::from_image(sim.image()))
    }
}

impl Frequencies {
    fn new(rng: &mut Rng, scenario: Scenario) -> Self {
        let data = match scenario {
            Scenario::Churn => one_of(rng, &[0, 0, 3, 8]),
            Scenario::Uniform => 0,
            Scenario::LoadAndWipe => 4,
            Scenario::Blocks => one_of(rng, &[1, 2]),
            Scenario::TwoGroups => 3,
        };
        Frequencies {
            commit: if scenario == Scenario::Uniform { 6 } else { one_of(rng, &[1, 2, 5, 12]) },
            checkpoint: one_of(rng, &[0, 5, 15, 40]),
            trim: one_of(rng, &[0, 4, 10]),
            reopen: one_of(rng, &[0, 20, 50]),
            kill: one_of(rng, &[0, 20, 50]),
            data,
            wipe: one_of(rng, &[0, 15, 40]) * if scenario == Scenario::Blocks { 2 } else { 1 },
        }
    }
}
