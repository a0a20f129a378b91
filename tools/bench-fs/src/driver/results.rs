//! What was measured.

use std::collections::BTreeMap;

use btfs_bench_common::median;

use super::place;
use crate::options::Plan;
use crate::rows::Row;
use crate::systems::SystemId;
use crate::work::Measurement;

/// All measurements of a run, and what went wrong.
pub struct Results {
    pub plan: Plan,
    /// What they were measured on; one fact a line.
    pub machine: Vec<String>,
    /// In the order of the rounds.
    pub measurements: BTreeMap<(&'static str, SystemId), Vec<Measurement>>,
    /// Systems that could not be set up, with the reason.
    pub missing: BTreeMap<SystemId, String>,
    pub failures: Vec<String>,
    failed: Vec<(&'static str, SystemId)>,
}

impl Results {
    pub fn new(plan: Plan, machine: Vec<String>) -> Results {
        let (measurements, missing) = (BTreeMap::new(), BTreeMap::new());
        Results { plan, machine, measurements, missing, failures: Vec::new(), failed: Vec::new() }
    }

    pub fn add(&mut self, row: &'static Row, id: SystemId, measurement: Measurement) {
        self.measurements.entry((row.name, id)).or_default().push(measurement);
    }

    pub fn add_missing(&mut self, id: SystemId, reason: String) {
        self.missing.insert(id, reason);
    }

    pub fn add_failure(&mut self, row: &'static Row, id: SystemId, reason: String) {
        self.failures.push(format!("{}: {reason}", place(row, id)));
        self.failed.push((row.name, id));
    }

    pub fn is_missing(&self, id: SystemId) -> bool {
        self.missing.contains_key(&id)
    }

    pub fn has_failed(&self, row: &Row, id: SystemId) -> bool {
        self.failed.contains(&(row.name, id))
    }

    /// The median over the rounds of a figure of each measurement.
    pub fn median(
        &self,
        row: &str,
        id: SystemId,
        figure: impl Fn(&Measurement) -> Option<f64>,
    ) -> Option<f64> {
        let (_, measurements) = self.measurements.iter().find(|((name, of), _)| *name == row && *of == id)?;
        median(measurements.iter().filter_map(figure).collect())
    }

    pub fn us(&self, row: &str, id: SystemId) -> Option<f64> {
        self.median(row, id, |measurement| Some(measurement.us_per_operation()))
    }

    /// The difference between the slowest and the fastest round, as a part of the median.
    pub fn spread(&self, row: &str, id: SystemId) -> Option<f64> {
        let (_, measurements) = self.measurements.iter().find(|((name, of), _)| *name == row && *of == id)?;
        let times: Vec<f64> = measurements.iter().map(Measurement::us_per_operation).collect();
        let (min, max) = (times.iter().copied().reduce(f64::min)?, times.iter().copied().reduce(f64::max)?);
        (times.len() > 1).then(|| median(times)).flatten().map(|middle| (max - min) / middle)
    }
}
