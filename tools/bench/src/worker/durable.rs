//! Rows of single writes that are durable when they return.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Outcome, Task, threads};
use crate::data::{Lane, RECORD_LEN};
use crate::engines::{CheckpointStyle, Durability, Figures};
use btfs_bench_common::random::{Random, mix};

const WRITES: u64 = 4_000;
const WRITERS: usize = 8;
const WRITES_BY_EIGHT: u64 = 8_000;

/// Before checkpoints run, so many random records are overwritten, so that the first one has much to do.
const DIRTY_BATCHES: u64 = 100;
const DIRTY_BATCH: u64 = 1000;
/// While they run, another thread overwrites so many random records at a time, in such intervals.
const TRICKLE_BATCH: u64 = 50;
const TRICKLE_INTERVAL: Duration = Duration::from_millis(10);
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(1);

/// One thread inserts new records, one at a time.
pub fn alone(task: &Task) -> Result<Outcome> {
    let count = task.scaled(WRITES, 1600) / task.slices;
    insert_single(task, Lane::Single, task.slice * count, count)
}

/// Eight threads insert new records, each one at a time.
pub fn by_eight(task: &Task) -> Result<Outcome> {
    let per_thread = task.scaled(WRITES_BY_EIGHT, 1600) / WRITERS as u64;
    let (outcomes, elapsed) = threads::run(WRITERS, |thread, start| {
        start.wait();
        insert_single(task, Lane::SingleByEight, thread as u64 * per_thread, per_thread)
    })?;
    let samples_ns: Vec<u64> = outcomes.into_iter().flat_map(|outcome| outcome.samples_ns).collect();
    Ok(Outcome { elapsed, ..of_samples(samples_ns) })
}

fn insert_single(task: &Task, lane: Lane, first: u64, count: u64) -> Result<Outcome> {
    let mut samples_ns = Vec::with_capacity(count as usize);
    let all_began = Instant::now();
    for n in first..first + count {
        let batch = [task.data.put(task.data.shuffled(n), lane, 0)];
        let began = Instant::now();
        task.engine.write(&batch, Durability::Durable)?;
        samples_ns.push(began.elapsed().as_nanos() as u64);
        if all_began.elapsed() > task.time_max {
            break;
        }
    }
    Ok(of_samples(samples_ns))
}

fn of_samples(samples_ns: Vec<u64>) -> Outcome {
    let operations = samples_ns.len() as u64;
    Outcome {
        operations,
        records: operations,
        elapsed: Duration::from_nanos(samples_ns.iter().sum()),
        samples_ns,
        payload: operations * RECORD_LEN,
        ..Outcome::default()
    }
}

fn overwrite_random(task: &Task, random: &mut Random, count: u64) -> Result<()> {
    let mut index = || random.below(task.data.records());
    let batch: Vec<_> = (0..count).map(|n| task.data.put(index(), Lane::Base, n)).collect();
    task.engine.write(&batch, Durability::Visible)
}

/// One thread inserts new records, one at a time, while another one makes one checkpoint after the other.
/// Before, untimed, many pages are dirtied.
pub fn while_checkpoints_run(task: &Task) -> Result<Outcome> {
    let mut random = Random::new(mix(task.seed) ^ 3);
    let dirty_batches = task.scaled(DIRTY_BATCHES, 10);
    for _ in 0..dirty_batches {
        overwrite_random(task, &mut random, DIRTY_BATCH)?;
    }
    let stop = AtomicBool::new(false);
    let checkpoints = AtomicU64::new(0);
    let trickled = AtomicU64::new(0);
    let mut outcome = std::thread::scope(|scope| {
        let checkpointer = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                task.engine.checkpoint()?;
                checkpoints.fetch_add(1, Ordering::Relaxed);
                // A checkpoint that finds nothing to do must not become a busy loop.
                std::thread::sleep(CHECKPOINT_PAUSE);
            }
            Ok(())
        });
        let trickle = scope.spawn(|| -> Result<()> {
            let mut random = Random::new(mix(task.seed) ^ 4);
            if task.engine.checkpoint_style() != CheckpointStyle::OfOtherWriters {
                return Ok(());
            }
            while !stop.load(Ordering::Relaxed) {
                overwrite_random(task, &mut random, TRICKLE_BATCH)?;
                trickled.fetch_add(TRICKLE_BATCH, Ordering::Relaxed);
                std::thread::sleep(TRICKLE_INTERVAL);
            }
            Ok(())
        });
        let count = task.scaled(WRITES, 1000);
        let outcome = insert_single(task, Lane::SingleWhileCheckpoint, 0, count);
        stop.store(true, Ordering::Relaxed);
        for (thread, name) in [(checkpointer, "the checkpointer"), (trickle, "the other writer")] {
            thread.join().map_err(|_| anyhow!("{name} panicked"))?.context(name)?;
        }
        outcome
    })?;
    let trickled = trickled.load(Ordering::Relaxed);
    outcome.figures = Figures::from([
        ("checkpoints".to_owned(), checkpoints.load(Ordering::Relaxed) as f64),
        ("other_records_written".to_owned(), trickled as f64),
    ]);
    outcome.payload += (trickled + dirty_batches * DIRTY_BATCH) * RECORD_LEN;
    Ok(outcome)
}
