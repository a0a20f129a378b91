//! What the rows do. Everything hot is done by system calls from here, so that no process start is measured, but for rows that
//! name a tool.

pub mod directory;
pub mod durable;
pub mod growth;
pub mod parallel;
pub mod stream;
mod sys;
pub mod tree;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::options::Plan;
use crate::systems::System;
use tree::SourceTree;

/// One run of a row on one system.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    pub seconds: f64,
    /// Files, calls, or bytes: what the row counts.
    pub operations: u64,
    /// Of single operations, where the row times each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
    /// What the daemon counted, by kind; only from those that count.
    pub requests: Option<BTreeMap<String, u64>>,
    /// Processor time of the daemon.
    pub daemon_cpu_seconds: Option<f64>,
}

impl Measurement {
    /// Microseconds for an operation: the median where each was timed.
    pub fn us_per_operation(&self) -> f64 {
        self.p50_us.unwrap_or(self.seconds * 1e6 / self.operations.max(1) as f64)
    }

    pub fn request_count(&self) -> Option<u64> {
        self.requests.as_ref().map(|requests| requests.values().sum())
    }
}

/// A system on which a row is to run, and what the row needs.
pub struct Bench<'a> {
    pub system: &'a mut System,
    pub plan: &'a Plan,
    pub source: &'a SourceTree,
}

/// The daemon's counters at one moment.
struct Snapshot {
    daemon: Option<u32>,
    requests: Option<BTreeMap<String, u64>>,
    cpu_seconds: Option<f64>,
}

impl Bench<'_> {
    pub fn root(&self) -> &Path {
        self.system.root()
    }

    /// Times `work`, and what the daemon does meanwhile.
    pub fn measure(
        &mut self,
        operations: u64,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Measurement> {
        let requests = self.requests()?;
        let before =
            Snapshot { daemon: self.system.daemon_id(), requests, cpu_seconds: self.daemon_cpu_seconds() };
        let begin = Instant::now();
        work(self)?;
        let seconds = begin.elapsed().as_secs_f64();
        let cpu_seconds = self.daemon_cpu_seconds();
        let mut measurement = Measurement {
            seconds,
            operations,
            p50_us: None,
            p99_us: None,
            requests: None,
            daemon_cpu_seconds: None,
        };
        // Another daemon has counters of its own.
        if before.daemon == self.system.daemon_id() {
            measurement.requests = before.requests.zip(self.requests()?).map(difference);
            measurement.daemon_cpu_seconds = before.cpu_seconds.zip(cpu_seconds).map(|(a, b)| b - a);
        }
        Ok(measurement)
    }

    /// Like [`Bench::measure`], and times each of the operations.
    pub fn measure_each(
        &mut self,
        operations: u64,
        mut operation: impl FnMut(u64) -> Result<()>,
    ) -> Result<Measurement> {
        let mut times = Vec::with_capacity(operations as usize);
        let mut measurement = self.measure(operations, |_| {
            for n in 0..operations {
                let begin = Instant::now();
                operation(n)?;
                times.push(begin.elapsed().as_secs_f64() * 1e6);
            }
            Ok(())
        })?;
        times.sort_unstable_by(f64::total_cmp);
        let quantile = |part: f64| times.get((times.len() as f64 * part) as usize).copied();
        (measurement.p50_us, measurement.p99_us) = (quantile(0.5), quantile(0.99));
        Ok(measurement)
    }

    fn requests(&self) -> Result<Option<BTreeMap<String, u64>>> {
        if !self.system.id.has_stats() {
            return Ok(None);
        }
        let text = btfs::mount::control::stats(self.root()).context("the daemon's counters")?;
        let report: serde_json::Value = serde_json::from_str(&text).context("the daemon's counters")?;
        let kinds = report["requests"].as_object().context("no counts of requests")?;
        let counts = kinds.iter().map(|(kind, of)| (kind.clone(), of["count"].as_u64().unwrap_or(0)));
        Ok(Some(counts.filter(|(kind, _)| kind != "ioctl").collect()))
    }

    fn daemon_cpu_seconds(&self) -> Option<f64> {
        let mut clock = 0;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let process = self.system.daemon_id()?.cast_signed();
        // SAFETY: both calls write to what they are given, which outlives them.
        let failed = unsafe {
            libc::clock_getcpuclockid(process, &mut clock) != 0 || libc::clock_gettime(clock, &mut time) != 0
        };
        (!failed).then_some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
    }
}

fn difference((before, after): (BTreeMap<String, u64>, BTreeMap<String, u64>)) -> BTreeMap<String, u64> {
    let since = |kind: &String, n: u64| n - before.get(kind).copied().unwrap_or(0).min(n);
    after.iter().map(|(kind, n)| (kind.clone(), since(kind, *n))).filter(|(_, n)| *n > 0).collect()
}
