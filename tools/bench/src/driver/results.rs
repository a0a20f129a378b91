//! All that was measured, and medians of it.

use std::collections::BTreeMap;

use btfs_bench_common::median;

use crate::data::RECORD_LEN;
use crate::engines::{EngineId, counter};
use crate::options::Plan;
use crate::protocol::Measurement;
use crate::rows::Row;

/// So many pages written home during a row mean that a checkpoint ran in it.
const PAGES_OF_CHECKPOINT: f64 = 100.0;

/// The results of a run.
pub struct Results {
    pub plan: Plan,
    pub machine: Vec<String>,
    /// Of each engine, and of the floor.
    pub settings: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
    pub floors: Vec<FloorSample>,
    pub failures: Vec<String>,
    /// Rows that do not apply to an engine, and why.
    pub skipped: Vec<(Row, EngineId, String)>,
    /// How long the run took.
    pub seconds: f64,
}

pub struct Sample {
    pub round: u32,
    pub row: Row,
    pub engine: EngineId,
    pub measurement: Measurement,
}

/// A bare write that durable writes are compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FloorKind {
    FourKib,
    /// As many bytes as btfs writes to its log for one durable write.
    SameBytes,
}

impl FloorKind {
    pub const ALL: [FloorKind; 2] = [FloorKind::FourKib, FloorKind::SameBytes];

    pub fn name(self) -> &'static str {
        match self {
            FloorKind::FourKib => "floor.4k",
            FloorKind::SameBytes => "floor.same-bytes",
        }
    }
}

/// All slices of one round.
pub struct FloorSample {
    pub round: u32,
    pub kind: FloorKind,
    pub measurement: Measurement,
}

impl Results {
    pub fn new(plan: Plan, machine: Vec<String>) -> Self {
        Results {
            plan,
            machine,
            settings: BTreeMap::new(),
            samples: Vec::new(),
            floors: Vec::new(),
            failures: Vec::new(),
            skipped: Vec::new(),
            seconds: 0.0,
        }
    }

    pub fn add(&mut self, round: u32, row: Row, engine: EngineId, measurement: Measurement) {
        self.samples.push(Sample { round, row, engine, measurement });
    }

    /// Adds a slice. Percentiles are over all slices of a round.
    pub fn add_floor(&mut self, round: u32, kind: FloorKind, measurement: Measurement) {
        let same = |sample: &&mut FloorSample| sample.round == round && sample.kind == kind;
        match self.floors.iter_mut().find(same) {
            Some(sample) => sample.measurement.append(measurement),
            None => self.floors.push(FloorSample { round, kind, measurement }),
        }
    }

    pub fn skip(&mut self, row: Row, engine: EngineId, reason: String) {
        if !self.skipped.iter().any(|skipped| (skipped.0, skipped.1) == (row, engine)) {
            self.skipped.push((row, engine, reason));
        }
    }

    /// The rows that were measured, in order.
    pub fn rows(&self) -> Vec<Row> {
        Row::ALL.into_iter().filter(|&row| self.samples.iter().any(|sample| sample.row == row)).collect()
    }

    /// The engines that a row was measured for, in the order of the plan.
    pub fn engines_of(&self, row: Row) -> Vec<EngineId> {
        let has = |engine| self.samples.iter().any(|sample| sample.row == row && sample.engine == engine);
        self.plan.engines.iter().copied().filter(|&engine| has(engine)).collect()
    }

    /// The median over the rounds of something that a measurement says.
    pub fn median(
        &self,
        row: Row,
        engine: EngineId,
        what: impl Fn(&Measurement) -> Option<f64>,
    ) -> Option<f64> {
        median(self.values(row, engine, what))
    }

    /// How far the rounds lie apart: (highest − lowest) / median.
    pub fn spread(
        &self,
        row: Row,
        engine: EngineId,
        what: impl Fn(&Measurement) -> Option<f64>,
    ) -> Option<f64> {
        let values = self.values(row, engine, what);
        let lowest = values.iter().copied().reduce(f64::min)?;
        let highest = values.iter().copied().reduce(f64::max)?;
        Some((highest - lowest) / median(values)?)
    }

    fn values(&self, row: Row, engine: EngineId, what: impl Fn(&Measurement) -> Option<f64>) -> Vec<f64> {
        let samples = self.samples.iter().filter(|sample| sample.row == row && sample.engine == engine);
        samples.filter_map(|sample| what(&sample.measurement)).collect()
    }

    pub fn median_ns(&self, row: Row, engine: EngineId) -> Option<f64> {
        self.median(row, engine, |measurement| Some(measurement.ns_per_unit(row)))
    }

    /// Bytes written to the device for each byte of keys and values, in the long run.
    ///
    /// An engine with checkpoints writes a page home once for all its changes since the checkpoint before. Most
    /// rows are shorter than that, and a checkpoint forced after them counts as if there had been no others to
    /// share it. So what settling wrote is shared among as many records as fit in the log between two
    /// checkpoints. How much it would write by then: what it wrote after the row, or after the row that
    /// overwrites all over the tree, whichever is more. (Checked with 12 million overwrites: 4.2 measured, 4.0
    /// estimated after 300,000.) Loads, and rows in which pages were written home, because the log or the cache
    /// was full, are taken as they are, the forced checkpoint included: that is more than the truth.
    pub fn steady_write_amplification(&self, row: Row, engine: EngineId) -> Option<f64> {
        let settled = self.median(row, engine, Measurement::settled_write_amplification);
        let written_home = self.median_counter(row, engine, counter::PAGES_WRITTEN);
        let log = self.median(row, engine, |m| m.log_between_checkpoints.map(|bytes| bytes as f64));
        let is_whole = row.is_load() || written_home.is_some_and(|pages| pages >= PAGES_OF_CHECKPOINT);
        let (Some(log), false) = (log, is_whole) else { return settled };
        let settle_bytes = |row| {
            let pages = |m: &Measurement| Some(m.settle_bytes.saturating_sub(m.unwritten_log()) as f64);
            self.median(row, engine, pages).unwrap_or(0.0)
        };
        let mut dirty = settle_bytes(row);
        if row != Row::WarmApply {
            dirty = dirty.max(settle_bytes(Row::Overwrite));
        }
        let log_per_record = self.median(row, engine, |m| m.per_record(counter::LOG_BYTES))?;
        let records = self.median(row, engine, |m| Some(m.records as f64))?.max(log / log_per_record);
        let written = self.median(row, engine, |m| {
            Some(m.write_amplification()? + m.unwritten_log() as f64 / m.payload as f64)
        })?;
        Some(written + dirty / (records * RECORD_LEN as f64))
    }

    pub fn median_counter(&self, row: Row, engine: EngineId, name: &str) -> Option<f64> {
        self.median(row, engine, |measurement| Some(*measurement.counters.get(name)? as f64))
    }

    pub fn floor_median(&self, kind: FloorKind, what: impl Fn(&Measurement) -> Option<f64>) -> Option<f64> {
        let samples = self.floors.iter().filter(|sample| sample.kind == kind);
        median(samples.filter_map(|sample| what(&sample.measurement)).collect())
    }
}

impl Measurement {
    /// Time per call or record, whichever the row counts, over all threads together; in ns.
    pub fn ns_per_unit(&self, row: Row) -> f64 {
        let count = if row.counts_records() { self.records } else { self.operations };
        self.seconds * 1e9 / count as f64
    }

    /// Bytes written to the device during the row, for each byte of keys and values.
    pub fn write_amplification(&self) -> Option<f64> {
        (self.payload > 0).then_some(self.device_bytes? as f64 / self.payload as f64)
    }

    /// Bytes of the row's log that were not yet written at its end: what the device was given can only cover so much.
    fn unwritten_log(&self) -> u64 {
        let logged = self.counters.get(counter::LOG_BYTES).copied().unwrap_or(0);
        logged.saturating_sub(self.device_bytes.unwrap_or(0))
    }

    /// The same with what settling wrote.
    pub fn settled_write_amplification(&self) -> Option<f64> {
        Some(self.write_amplification()? + self.settle_bytes as f64 / self.payload as f64)
    }

    /// A counter's growth per call.
    pub fn per_operation(&self, counter: &str) -> Option<f64> {
        Some(*self.counters.get(counter)? as f64 / self.operations as f64)
    }

    /// A counter's growth per record.
    pub fn per_record(&self, counter: &str) -> Option<f64> {
        Some(*self.counters.get(counter)? as f64 / self.records as f64)
    }

    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }
}
