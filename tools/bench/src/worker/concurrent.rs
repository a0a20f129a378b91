//! Rows in which several threads write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Outcome, Task, read, threads};
use crate::data::{Lane, RECORD_LEN};
use crate::engines::{Durability, Figures};
use btfs_bench_common::random::{Random, mix};

const WRITERS: usize = 8;
const BATCH: u64 = 10;
const BATCHES: u64 = 20_000;
const DURABLE_BATCHES: u64 = 6_000;
const MIXED_THREADS: usize = 8;
const MIXED_WRITERS: usize = 4;
const MIXED_TIME: Duration = Duration::from_millis(1500);

/// Eight threads insert batches of ten new records each.
pub fn batches_of_ten(task: &Task, durability: Durability) -> Result<Outcome> {
    let (full, lane) = match durability {
        Durability::Visible => (BATCHES, Lane::BatchOfTen),
        Durability::Durable => (DURABLE_BATCHES, Lane::BatchOfTenDurable),
    };
    let per_thread = task.scaled(full, 1000) / WRITERS as u64;
    let (samples, mut elapsed) = threads::run(WRITERS, |thread, start| {
        let mut samples = Vec::with_capacity(per_thread as usize);
        let mut batch = Vec::with_capacity(BATCH as usize);
        let began = start.wait();
        for n in 0..per_thread {
            let first = (thread as u64 * per_thread + n) * BATCH;
            batch.clear();
            batch.extend((first..first + BATCH).map(|n| task.data.put(task.data.shuffled(n), lane, 0)));
            let write_began = Instant::now();
            task.engine.write(&batch, durability)?;
            samples.push(write_began.elapsed().as_nanos() as u64);
            if began.elapsed() > task.time_max {
                break;
            }
        }
        Ok(samples)
    })?;
    let samples_ns: Vec<u64> = samples.into_iter().flatten().collect();
    if durability == Durability::Visible {
        let began = Instant::now();
        task.engine.make_durable()?;
        elapsed += began.elapsed();
    }
    let operations = samples_ns.len() as u64;
    let records = operations * BATCH;
    let payload = records * RECORD_LEN;
    Ok(Outcome { operations, records, elapsed, samples_ns, payload, ..Outcome::default() })
}

/// Four threads read single records, four others overwrite batches of ten; for a fixed time.
pub fn mixed(task: &Task) -> Result<Outcome> {
    let stop = AtomicBool::new(false);
    let (threads, elapsed) = threads::run(MIXED_THREADS, |thread, start| {
        let mut random = Random::new(mix(task.seed) ^ mix(thread as u64));
        if thread < MIXED_WRITERS {
            start.wait();
            Ok((mixed_writer(task, &mut random, &stop)?, Vec::new()))
        } else {
            let mut samples = Vec::new();
            task.engine
                .with_reader(&mut |reader| {
                    let began = start.wait();
                    while began.elapsed() < MIXED_TIME {
                        reader.refresh()?;
                        for _ in 0..read::REFRESH_EVERY / 10 {
                            let index = random.below(task.data.records()) as u32;
                            let get_began = Instant::now();
                            read::get_one(task, reader, index)?;
                            samples.push(get_began.elapsed().as_nanos() as u64);
                        }
                    }
                    stop.store(true, Ordering::Relaxed);
                    Ok(())
                })
                .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            Ok((0, samples))
        }
    })?;
    let records: u64 = threads.iter().map(|thread| thread.0).sum();
    let samples_ns: Vec<u64> = threads.into_iter().flat_map(|thread| thread.1).collect();
    let seconds = elapsed.as_secs_f64();
    let figures = Figures::from([
        ("gets_per_second".to_owned(), samples_ns.len() as f64 / seconds),
        ("records_written_per_second".to_owned(), records as f64 / seconds),
    ]);
    Ok(Outcome {
        operations: samples_ns.len() as u64,
        records,
        elapsed,
        samples_ns,
        payload: records * RECORD_LEN,
        figures,
    })
}

fn mixed_writer(task: &Task, random: &mut Random, stop: &AtomicBool) -> Result<u64> {
    let mut batch = Vec::with_capacity(BATCH as usize);
    let mut records = 0;
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) && began.elapsed() < MIXED_TIME * 2 {
        batch.clear();
        let mut index = || random.below(task.data.records());
        batch.extend((0..BATCH).map(|n| task.data.put(index(), Lane::Base, n)));
        task.engine.write(&batch, Durability::Visible)?;
        records += BATCH;
    }
    Ok(records)
}
