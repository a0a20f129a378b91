//! What the driver and its worker processes say to one another: JSON, one message a line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engines::{Counters, EngineId, Figures};
use crate::rows::Row;

/// The first line that a worker reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerConfig {
    pub role: Role,
    /// An empty folder that is the worker's own.
    pub dir: PathBuf,
    /// The control group to join before anything is allocated.
    pub cgroup: Option<PathBuf>,
    pub records: u64,
    pub cache_size: u64,
    /// The memory that an engine's process may use, in bytes, if that is limited.
    pub memory_limit: Option<u64>,
    /// The size of btfs's log in bytes, if not its default.
    pub log_size: Option<u64>,
    /// Rows that can end early do so after this long, in seconds.
    pub row_seconds: f64,
    /// Differs for each round and is the same for all engines.
    pub seed: u64,
}

/// What a worker is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    Engine(EngineId),
    /// Measures the bare writes that durable writes are compared with.
    Floor,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// One slice of a row. Rows are cut into slices where what is compared should lie close together in time.
    Row { row: Row, slice: u64, slices: u64 },
    /// `count` writes of `len` bytes each, durable on return, one behind the other in a prewritten file.
    Floor { len: u64, count: u64 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    /// The worker is ready; its engine's settings.
    Ready(String),
    Measured(Box<Measurement>),
    /// The row does not apply to this engine, because of this.
    Skipped(String),
    Failed(String),
}

/// What one row, or slice of a row, took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measurement {
    /// Calls: gets, scans, batches.
    pub operations: u64,
    /// Records that they read or wrote.
    pub records: u64,
    /// Time of the work, in seconds; not of preparing keys or settling.
    pub seconds: f64,
    /// Times of single operations, in ns. Reads are sampled. Empty where no single operations are timed.
    pub samples_ns: Vec<u64>,
    /// Of all samples.
    pub p50_ns: Option<u64>,
    pub p99_ns: Option<u64>,
    /// Bytes of the keys and values written. For deletes, of the records deleted.
    pub payload: u64,
    /// Bytes that the process gave to the device during the row. Only of rows that write.
    pub device_bytes: Option<u64>,
    /// Bytes that settling gave to the device afterwards.
    pub settle_bytes: u64,
    /// Bytes of log between two checkpoints, if the engine puts off writing pages until then.
    pub log_between_checkpoints: Option<u64>,
    /// Time until everything lay in its place and background work had ended, in seconds.
    pub settle_seconds: f64,
    /// What the engine's counters grew by during the work.
    pub counters: Counters,
    pub figures: Figures,
    pub memory: Memory,
}

/// Resident memory of a worker, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    pub resident: u64,
    pub anonymous: u64,
    /// Of mapped files.
    pub file: u64,
    /// The highest so far.
    pub peak: u64,
}

impl Measurement {
    /// Adds the next slice of the same row.
    pub fn append(&mut self, next: Measurement) {
        self.operations += next.operations;
        self.records += next.records;
        self.seconds += next.seconds;
        self.samples_ns.extend(next.samples_ns);
        self.payload += next.payload;
        self.device_bytes = match (self.device_bytes, next.device_bytes) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0) + b.unwrap_or(0)),
        };
        self.settle_bytes += next.settle_bytes;
        self.log_between_checkpoints = next.log_between_checkpoints;
        self.settle_seconds += next.settle_seconds;
        for (name, value) in next.counters {
            *self.counters.entry(name).or_default() += value;
        }
        self.figures.extend(next.figures);
        self.memory = next.memory;
    }

    /// Replaces the samples by their percentiles.
    pub fn condense(&mut self) {
        let mut samples = std::mem::take(&mut self.samples_ns);
        samples.sort_unstable();
        self.p50_ns = percentile(&samples, 0.50);
        self.p99_ns = percentile(&samples, 0.99);
    }
}

/// The smallest sample that is ≥ this share of all.
fn percentile(sorted: &[u64], share: f64) -> Option<u64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let sorted: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&sorted, 0.50), Some(50));
        assert_eq!(percentile(&sorted, 0.99), Some(99));
        assert_eq!(percentile(&[7], 0.99), Some(7));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
