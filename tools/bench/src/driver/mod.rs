//! The driver: starts the workers, has them take turns, and collects what they measured.

mod cgroup;
mod child;
mod results;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use btfs_bench_common::cleanup::{self, RunDir};

pub use results::{FloorKind, FloorSample, Results, Sample};

use crate::driver::cgroup::Cgroups;
use crate::driver::child::Child;
use crate::engines::{EngineId, Latch, counter};
use crate::options::{Options, Plan};
use crate::protocol::{Measurement, Request, Response, Role, WorkerConfig};
use crate::rows::{Phase, Row};

/// Writes of each floor in one slice of the row of single durable writes.
const FLOOR_WRITES: u64 = 500;
const FLOOR_LEN: u64 = 4096;

/// Runs the whole plan. Fails only where nothing can be measured; a row that fails is one of the failures.
pub fn run(options: &Options, plan: Plan) -> Result<Results> {
    cleanup::install()?;
    let dir = RunDir::create(&options.dir)?;
    let cgroups = plan.memory_limit.map(Cgroups::find).transpose()?;
    let mut machine = btfs_bench_common::machine::describe("databases", dir.path());
    machine.push(env!("ENGINE_VERSIONS").to_owned());
    let mut driver = Driver {
        dir: dir.path().to_owned(),
        cgroups,
        row_seconds: options.row_seconds,
        results: Results::new(plan, machine),
    };
    let began = Instant::now();
    for round in 0..driver.results.plan.rounds {
        for phase in Phase::ALL {
            driver.run_phase(round, phase)?;
        }
    }
    for floor in &mut driver.results.floors {
        floor.measurement.condense();
    }
    driver.results.seconds = began.elapsed().as_secs_f64();
    Ok(driver.results)
}

struct Driver {
    /// The folder of this run.
    dir: PathBuf,
    cgroups: Option<Cgroups>,
    row_seconds: f64,
    results: Results,
}

/// The workers of a phase. A worker that died is no longer there.
struct Workers {
    engines: Vec<(EngineId, Child)>,
    floor: Option<Child>,
}

/// What came of asking a worker.
enum Answer {
    Measured(Box<Measurement>),
    Nothing,
    /// The worker can take no further part in the phase.
    Lost,
}

impl Driver {
    fn run_phase(&mut self, round: u32, phase: Phase) -> Result<()> {
        let rows = self.rows_of(phase);
        if rows.is_empty() {
            return Ok(());
        }
        let dir = self.dir.join(format!("round-{round}-{phase:?}"));
        let mut workers = self.start_workers(round, &rows, &dir)?;
        for row in rows {
            self.run_row(round, row, &mut workers);
        }
        drop(workers);
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot delete {}", dir.display()))
    }

    /// The chosen rows of a phase, and those that they build on.
    fn rows_of(&self, phase: Phase) -> Vec<Row> {
        let chosen = &self.results.plan.rows;
        let of_phase = |row: &Row| row.phase() == phase;
        if !chosen.iter().any(of_phase) {
            return Vec::new();
        }
        let is_base = |row: Row| phase == Phase::Main && row == Row::InsertRandom;
        let rows = Row::ALL.into_iter().filter(of_phase);
        rows.filter(|&row| is_base(row) || chosen.contains(&row)).collect()
    }

    fn start_workers(&mut self, round: u32, rows: &[Row], dir: &Path) -> Result<Workers> {
        let mut workers = Workers { engines: Vec::new(), floor: None };
        for engine in self.results.plan.engines.clone() {
            let serves = |row: &Row| self.is_run_by(*row, engine);
            if !rows.iter().any(|row| serves(row) && (*row != Row::InsertRandom || rows.len() == 1)) {
                continue;
            }
            match self.start(round, Role::Engine(engine), &dir.join(engine.name())) {
                Ok((child, settings)) => {
                    self.results.settings.insert(engine.name().to_owned(), settings);
                    workers.engines.push((engine, child));
                }
                Err(error) => self.fail(format!("{} cannot start: {error:#}", engine.name())),
            }
        }
        if rows.contains(&Row::Durable) {
            let (child, settings) = self.start(round, Role::Floor, &dir.join("floor"))?;
            self.results.settings.insert("floor".to_owned(), settings);
            workers.floor = Some(child);
        }
        // In each round another one begins.
        let first = (round as usize).checked_rem(workers.engines.len()).unwrap_or(0);
        workers.engines.rotate_left(first);
        Ok(workers)
    }

    fn start(&mut self, round: u32, role: Role, dir: &Path) -> Result<(Child, String)> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let cgroup = match (&mut self.cgroups, role) {
            (Some(cgroups), Role::Engine(_)) => Some(cgroups.create()?),
            _ => None,
        };
        let config = WorkerConfig {
            role,
            dir: dir.to_owned(),
            cgroup,
            records: self.results.plan.records,
            cache_size: match role {
                Role::Engine(engine) => self.results.plan.cache_of(engine),
                Role::Floor => 0,
            },
            memory_limit: self.results.plan.memory_limit,
            log_size: self.results.plan.log_size,
            row_seconds: self.row_seconds,
            seed: u64::from(round) + 1,
        };
        Child::start(&config)
    }

    /// With several latch protocols in one run, the others than B-link take part where threads compete.
    fn is_run_by(&self, row: Row, engine: EngineId) -> bool {
        let is_variant = matches!(engine, EngineId::Btfs(latch) if latch != Latch::Blink)
            && self.results.plan.engines.contains(&EngineId::BTFS);
        !is_variant || row.is_concurrent() || row == Row::InsertRandom
    }

    fn run_row(&mut self, round: u32, row: Row, workers: &mut Workers) {
        let mut totals: Vec<(EngineId, Measurement)> = Vec::new();
        for slice in 0..row.slices() {
            let mut lost = Vec::new();
            for (engine, child) in &mut workers.engines {
                if !self.is_run_by(row, *engine) {
                    continue;
                }
                match self.ask(row, slice, *engine, child) {
                    Answer::Measured(measurement) => {
                        let log_len = log_bytes_per_operation(&measurement);
                        add(&mut totals, *engine, *measurement);
                        if *engine == EngineId::BTFS && row == Row::Durable {
                            self.run_floor(round, FloorKind::SameBytes, log_len, workers.floor.as_mut());
                        }
                    }
                    Answer::Nothing => (),
                    Answer::Lost => lost.push(*engine),
                }
            }
            workers.engines.retain(|(engine, _)| !lost.contains(engine));
            // Next time another one begins.
            let first = 1.min(workers.engines.len());
            workers.engines.rotate_left(first);
            if row == Row::Durable {
                self.run_floor(round, FloorKind::FourKib, Some(FLOOR_LEN), workers.floor.as_mut());
            }
        }
        for (engine, mut measurement) in totals {
            if row.slices() > 1 {
                measurement.condense();
            }
            let us = measurement.ns_per_unit(row) / 1000.0;
            eprintln!("round {} {row:20} {:14} {us:12.3} µs/{}", round + 1, engine.name(), row.unit());
            self.results.add(round, row, engine, measurement);
        }
    }

    /// Has one worker perform one slice of a row.
    fn ask(&mut self, row: Row, slice: u64, engine: EngineId, child: &mut Child) -> Answer {
        let failure = match child.ask(&Request::Row { row, slice, slices: row.slices() }) {
            Ok(Response::Measured(measurement)) => return Answer::Measured(measurement),
            Ok(Response::Skipped(reason)) => {
                self.results.skip(row, engine, reason);
                return Answer::Nothing;
            }
            Ok(Response::Failed(reason)) => reason,
            Ok(Response::Ready(_)) => "odd answer".to_owned(),
            Err(error) => {
                self.fail(format!("{row} of {}: {error:#}", engine.name()));
                return Answer::Lost;
            }
        };
        self.fail(format!("{row} of {}: {failure}", engine.name()));
        // The other rows of the phase would work on a tree that is not there.
        if row == Row::InsertRandom { Answer::Lost } else { Answer::Nothing }
    }

    fn run_floor(&mut self, round: u32, kind: FloorKind, len: Option<u64>, floor: Option<&mut Child>) {
        let (Some(len), Some(floor)) = (len, floor) else { return };
        match floor.ask(&Request::Floor { len, count: FLOOR_WRITES }) {
            Ok(Response::Measured(measurement)) => self.results.add_floor(round, kind, *measurement),
            Ok(other) => self.fail(format!("floor: {other:?}")),
            Err(error) => self.fail(format!("floor: {error:#}")),
        }
    }

    fn fail(&mut self, failure: String) {
        cleanup::stay_if_ending();
        eprintln!("FAILED {failure}");
        self.results.failures.push(failure);
    }
}

fn add(totals: &mut Vec<(EngineId, Measurement)>, engine: EngineId, measurement: Measurement) {
    match totals.iter_mut().find(|total| total.0 == engine) {
        Some(total) => total.1.append(measurement),
        None => totals.push((engine, measurement)),
    }
}

fn log_bytes_per_operation(measurement: &Measurement) -> Option<u64> {
    let log_bytes = *measurement.counters.get(counter::LOG_BYTES)?;
    Some(log_bytes.checked_div(measurement.operations)?.max(1))
}
