//! A worker process: it has one engine to itself and measures the rows that the driver asks for.

mod concurrent;
mod durable;
mod floor;
mod process;
mod read;
mod threads;
mod write;
mod written;

use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::data::{DataSet, RECORD_LEN};
use crate::engines::{self, CheckpointStyle, Counters, Durability, Engine, Figures, Setup};
use crate::protocol::{Measurement, Request, Response, Role, WorkerConfig};
use crate::rows::Row;

/// Longest wait for background work to end after a row.
const IDLE_WAIT_MAX: Duration = Duration::from_secs(20);

/// Answers the driver until it closes the pipe.
pub fn run() -> Result<()> {
    process::die_with_parent();
    let mut lines = std::io::stdin().lock().lines();
    let first = lines.next().context("no configuration came")??;
    let config: WorkerConfig = serde_json::from_str(&first)?;
    if let Some(cgroup) = &config.cgroup {
        process::join_cgroup(cgroup)?;
    }
    let mut worker = match Worker::new(&config) {
        Ok(worker) => worker,
        Err(error) => return answer(&Response::Failed(format!("{error:#}"))),
    };
    answer(&Response::Ready(worker.settings()))?;
    for line in lines {
        let request = serde_json::from_str(&line?)?;
        answer(&worker.serve(&request).unwrap_or_else(|error| Response::Failed(format!("{error:#}"))))?;
    }
    Ok(())
}

fn answer(response: &Response) -> Result<()> {
    let mut line = serde_json::to_string(response)?;
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    Ok(stdout.flush()?)
}

enum Worker {
    Engine(Box<EngineWorker>),
    Floor(floor::Floor),
}

impl Worker {
    fn new(config: &WorkerConfig) -> Result<Self> {
        Ok(match config.role {
            Role::Floor => Worker::Floor(floor::Floor::create(&config.dir)?),
            Role::Engine(id) => {
                let setup = Setup {
                    dir: &config.dir,
                    cache_size: config.cache_size,
                    memory_limit: config.memory_limit,
                    payload: config.records * RECORD_LEN,
                    log_size: config.log_size,
                };
                let engine = engines::create(id, &setup)?;
                let data = DataSet::new(config.records);
                Worker::Engine(Box::new(EngineWorker {
                    engine,
                    data,
                    config: config.clone(),
                    is_warm: false,
                }))
            }
        })
    }

    fn settings(&self) -> String {
        match self {
            Worker::Engine(worker) => worker.engine.settings(),
            Worker::Floor(_) => floor::SETTINGS.to_owned(),
        }
    }

    fn serve(&mut self, request: &Request) -> Result<Response> {
        match (self, request) {
            (Worker::Engine(worker), &Request::Row { row, slice, slices }) => {
                worker.measure(row, slice, slices)
            }
            (Worker::Floor(floor), &Request::Floor { len, count }) => {
                Ok(Response::Measured(Box::new(floor.measure(len, count)?)))
            }
            _ => bail!("this worker has another task"),
        }
    }
}

struct EngineWorker {
    engine: Box<dyn Engine>,
    data: DataSet,
    config: WorkerConfig,
    /// Whether all records were read once since they were written.
    is_warm: bool,
}

impl EngineWorker {
    fn measure(&mut self, row: Row, slice: u64, slices: u64) -> Result<Response> {
        if !row.writes() && !self.is_warm {
            read::warm_up(&*self.engine, &self.data)?;
            self.is_warm = true;
        }
        let task = Task {
            engine: &*self.engine,
            data: &self.data,
            slice,
            slices,
            seed: self.config.seed,
            time_max: Duration::from_secs_f64(self.config.row_seconds),
        };
        if row == Row::DurableWhileCheckpoint && self.engine.checkpoint_style() == CheckpointStyle::None {
            return Ok(Response::Skipped("no checkpoints".to_owned()));
        }
        if row == Row::InsertRandom {
            write::preload(&task)?;
        }
        let device_before = written::device_bytes();
        let calls_before = (process::bytes_by_calls()?, written::call_bytes());
        let counters_before = self.engine.counters();
        let outcome = task.perform(row)?;
        let counters = grown(&counters_before, self.engine.counters());

        let device_between = written::device_bytes();

        let mut settle_seconds = 0.0;
        if row.writes() && slice + 1 == slices {
            let start = Instant::now();
            self.engine.settle()?;
            process::wait_until_idle(IDLE_WAIT_MAX);
            settle_seconds = start.elapsed().as_secs_f64();
        }
        check_calls(calls_before)?;
        let mut measurement = Measurement {
            operations: outcome.operations,
            records: outcome.records,
            seconds: outcome.elapsed.as_secs_f64(),
            samples_ns: outcome.samples_ns,
            payload: outcome.payload,
            device_bytes: row.writes().then_some(device_between - device_before),
            settle_bytes: written::device_bytes() - device_between,
            log_between_checkpoints: self.engine.log_between_checkpoints(),
            settle_seconds,
            counters,
            figures: outcome.figures,
            memory: process::memory()?,
            ..Measurement::default()
        };
        if tells_files(row) {
            measurement.figures.extend(self.files()?);
        }
        if slices == 1 {
            measurement.condense();
        }
        Ok(Response::Measured(Box::new(measurement)))
    }

    fn files(&self) -> Result<Figures> {
        let sizes = self.engine.file_sizes()?;
        let mut figures = self.engine.shape()?;
        figures.insert("data_bytes".to_owned(), sizes.data as f64);
        figures.insert("log_bytes".to_owned(), sizes.log as f64);
        figures.insert("doublewrite_bytes".to_owned(), sizes.doublewrite as f64);
        Ok(figures)
    }
}

/// Fails if files were written by other calls than those that are counted. `before` is the count of the kernel
/// and our own before the row.
fn check_calls(before: (u64, u64)) -> Result<()> {
    let by_kernel = process::bytes_by_calls()?.saturating_sub(before.0);
    let by_us = written::call_bytes() - before.1;
    let slack = by_kernel / 100 + (1 << 20);
    ensure!(
        by_kernel <= by_us + slack,
        "only {by_us} of {by_kernel} bytes were written by calls that are counted"
    );
    Ok(())
}

/// Whether the files are looked at after this row.
fn tells_files(row: Row) -> bool {
    matches!(row, Row::LoadBulk | Row::LoadSorted | Row::InsertRandom | Row::Delete)
}

fn grown(before: &Counters, after: Counters) -> Counters {
    let growth = |(name, value): (String, u64)| {
        let start = before.get(&name).copied().unwrap_or(0);
        (name, value.saturating_sub(start))
    };
    after.into_iter().map(growth).collect()
}

/// One slice of a row, as the modules of this folder perform it.
struct Task<'a> {
    engine: &'a dyn Engine,
    data: &'a DataSet,
    slice: u64,
    slices: u64,
    seed: u64,
    time_max: Duration,
}

/// What a row did.
#[derive(Default)]
struct Outcome {
    operations: u64,
    records: u64,
    elapsed: Duration,
    samples_ns: Vec<u64>,
    payload: u64,
    figures: Figures,
}

impl Task<'_> {
    fn perform(&self, row: Row) -> Result<Outcome> {
        let outcome = match row {
            Row::LoadBulk => write::load_bulk(self),
            Row::LoadSorted => write::load_sorted(self),
            Row::InsertRandom => write::insert_random(self),
            Row::Get(distribution, threads) => read::get(self, distribution, threads as usize),
            Row::Scan(len) => read::scan(self, len as usize),
            Row::Mixed => concurrent::mixed(self),
            Row::WarmApply => write::warm_apply(self),
            Row::BatchOfTen => concurrent::batches_of_ten(self, Durability::Visible),
            Row::BatchOfTenDurable => concurrent::batches_of_ten(self, Durability::Durable),
            Row::Durable => durable::alone(self),
            Row::DurableByEight => durable::by_eight(self),
            Row::DurableWhileCheckpoint => durable::while_checkpoints_run(self),
            Row::Overwrite => write::overwrite(self),
            Row::Delete => write::delete(self),
        }?;
        ensure!(outcome.operations > 0, "the row did nothing");
        Ok(outcome)
    }

    /// A count that goes with the number of records: `full` for a million and more.
    fn scaled(&self, full: u64, min: u64) -> u64 {
        (full * self.data.records().min(1_000_000) / 1_000_000).max(min).min(full)
    }
}
