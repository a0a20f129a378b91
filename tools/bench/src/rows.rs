//! The rows of the table: what there is to measure, and in which order.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::data::Distribution;

/// One row of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Row {
    LoadBulk,
    LoadSorted,
    InsertRandom,
    Get(Distribution, u32),
    /// Of this many records.
    Scan(u32),
    Mixed,
    WarmApply,
    BatchOfTen,
    BatchOfTenDurable,
    Durable,
    DurableByEight,
    DurableWhileCheckpoint,
    Overwrite,
    Delete,
}

/// Each phase starts with new, empty databases in new processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    LoadBulk,
    LoadSorted,
    /// Random inserts, and all that is done with the tree that they leave.
    Main,
}

impl Phase {
    pub const ALL: [Phase; 3] = [Phase::LoadBulk, Phase::LoadSorted, Phase::Main];
}

impl Row {
    /// All rows, in the order in which they run. Small writes come before the rows that change much: the long
    /// free lists that those leave in LMDB make its small writes many times slower.
    pub const ALL: [Row; 23] = {
        use Distribution::{HotSpot, Skewed, Uniform};
        [
            Row::LoadBulk,
            Row::LoadSorted,
            Row::InsertRandom,
            Row::Get(Uniform, 1),
            Row::Get(Uniform, 2),
            Row::Get(Uniform, 8),
            Row::Get(Skewed, 1),
            Row::Get(Skewed, 2),
            Row::Get(Skewed, 8),
            Row::Get(HotSpot, 1),
            Row::Get(HotSpot, 2),
            Row::Get(HotSpot, 8),
            Row::Scan(10),
            Row::Scan(1000),
            Row::WarmApply,
            Row::Durable,
            Row::DurableByEight,
            Row::DurableWhileCheckpoint,
            Row::BatchOfTenDurable,
            Row::BatchOfTen,
            Row::Mixed,
            Row::Overwrite,
            Row::Delete,
        ]
    };

    pub fn phase(self) -> Phase {
        match self {
            Row::LoadBulk => Phase::LoadBulk,
            Row::LoadSorted => Phase::LoadSorted,
            _ => Phase::Main,
        }
    }

    /// The name by which a row is chosen.
    pub fn name(self) -> &'static str {
        use Distribution::{HotSpot, Skewed, Uniform};
        match self {
            Row::LoadBulk => "load.bulk",
            Row::LoadSorted => "load.sorted",
            Row::InsertRandom => "insert.random",
            Row::Get(Uniform, 1) => "get.uniform.1",
            Row::Get(Uniform, 2) => "get.uniform.2",
            Row::Get(Uniform, _) => "get.uniform.8",
            Row::Get(Skewed, 1) => "get.skewed.1",
            Row::Get(Skewed, 2) => "get.skewed.2",
            Row::Get(Skewed, _) => "get.skewed.8",
            Row::Get(HotSpot, 1) => "get.hotspot.1",
            Row::Get(HotSpot, 2) => "get.hotspot.2",
            Row::Get(HotSpot, _) => "get.hotspot.8",
            Row::Scan(10) => "scan.10",
            Row::Scan(_) => "scan.1000",
            Row::Mixed => "mixed",
            Row::WarmApply => "apply.warm",
            Row::BatchOfTen => "batch10.8",
            Row::BatchOfTenDurable => "batch10.durable.8",
            Row::Durable => "durable.1",
            Row::DurableByEight => "durable.8",
            Row::DurableWhileCheckpoint => "durable.checkpoint",
            Row::Overwrite => "overwrite",
            Row::Delete => "delete",
        }
    }

    /// What the row measures, for readers of the table.
    pub fn title(self) -> &'static str {
        match self {
            Row::LoadBulk => "load sorted, the engine's best way",
            Row::LoadSorted => "load sorted, batches of 1000",
            Row::InsertRandom => "insert random keys, batches of 1000",
            Row::Get(_, 1) => "get, 1 thread",
            Row::Get(_, 2) => "get, 2 threads",
            Row::Get(..) => "get, 8 threads",
            Row::Scan(10) => "scan of 10 from a random start",
            Row::Scan(_) => "scan of 1000 from a random start",
            Row::Mixed => "gets of 4 readers beside 4 writers",
            Row::WarmApply => "apply of 3 neighbours in a cached page",
            Row::BatchOfTen => "batches of 10 new keys by 8 threads",
            Row::BatchOfTenDurable => "durable batches of 10 new keys by 8 threads",
            Row::Durable => "single durable write, alone",
            Row::DurableByEight => "single durable writes by 8 threads",
            Row::DurableWhileCheckpoint => "single durable write, alone, while checkpoints run",
            Row::Overwrite => "overwrite random keys, batches of 1000",
            Row::Delete => "delete random keys, batches of 1000",
        }
    }

    /// Whether the row writes, so that it has a write amplification.
    pub fn writes(self) -> bool {
        !matches!(self, Row::Get(..) | Row::Scan(_))
    }

    /// Whether several threads work at the same time, so that the latch protocol matters.
    pub fn is_concurrent(self) -> bool {
        match self {
            Row::Get(_, threads) => threads > 1,
            Row::Mixed | Row::BatchOfTen | Row::BatchOfTenDurable | Row::DurableByEight => true,
            _ => false,
        }
    }

    /// Whether the rate is that of records, not of calls.
    pub fn counts_records(self) -> bool {
        matches!(
            self,
            Row::LoadBulk
                | Row::LoadSorted
                | Row::InsertRandom
                | Row::BatchOfTen
                | Row::BatchOfTenDurable
                | Row::Overwrite
                | Row::Delete
        )
    }

    /// What one operation of the rate is called.
    pub fn unit(self) -> &'static str {
        match self {
            Row::Get(..) | Row::Mixed => "get",
            Row::Scan(_) => "scan",
            Row::WarmApply => "batch",
            Row::Durable | Row::DurableByEight | Row::DurableWhileCheckpoint => "write",
            _ => "record",
        }
    }

    /// What p50 and p99 are times of.
    pub fn timed(self) -> &'static str {
        match self {
            Row::LoadBulk => "",
            Row::LoadSorted
            | Row::InsertRandom
            | Row::BatchOfTen
            | Row::BatchOfTenDurable
            | Row::Overwrite
            | Row::Delete => "batch",
            _ => self.unit(),
        }
    }

    /// Whether a checkpoint after the row, however long it is, is part of its cost once and for all.
    pub fn is_load(self) -> bool {
        matches!(self, Row::LoadBulk | Row::LoadSorted | Row::InsertRandom)
    }

    /// Into how many slices the row is cut; the engines take turns for each.
    pub fn slices(self) -> u64 {
        if self == Row::Durable { 8 } else { 1 }
    }

    /// Whether this row is chosen by `filter`: its name, or whole words from its start ("get", "get.skewed").
    pub fn is_chosen_by(self, filter: &str) -> bool {
        self.name().strip_prefix(filter).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Row::ALL.into_iter().find(|row| row.name() == name).ok_or_else(|| format!("no row {name:?}"))
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_name() {
        for row in Row::ALL {
            assert_eq!(row.name().parse(), Ok(row));
        }
    }

    #[test]
    fn a_filter_takes_whole_words() {
        assert!(Row::Scan(10).is_chosen_by("scan"));
        assert!(!Row::Scan(1000).is_chosen_by("scan.10"));
        assert!(!Row::DurableByEight.is_chosen_by("durable.1"));
    }
}
