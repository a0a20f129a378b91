//! Rows that read.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Outcome, Task, threads};
use crate::data::{DataSet, Distribution, KEY_LEN, Lane, belongs, consume};
use crate::engines::{Engine, Reader};
use btfs_bench_common::random::{Random, mix};

/// Gets within one read transaction.
pub const REFRESH_EVERY: usize = 1000;
/// Of this many gets one is timed by itself: reading the clock takes a part of the time of a get.
const SAMPLE_EVERY: usize = 16;
const GETS: u64 = 400_000;
const SCANS_OF_TEN: u64 = 40_000;
const SCANS_OF_THOUSAND: u64 = 2_000;
/// Before each row, untimed: this share of its reads, elsewhere.
const WARM_UP_SHARE: usize = 4;

/// Reads all records once.
pub fn warm_up(engine: &dyn Engine, data: &DataSet) -> Result<()> {
    engine.with_reader(&mut |reader| {
        let first = [0; KEY_LEN];
        let count = reader.scan(&first, usize::MAX >> 1, &mut |key, value| {
            black_box(consume(key) ^ consume(value));
        })?;
        ensure!(count as u64 >= data.records(), "there are only {count} records");
        Ok(())
    })
}

pub fn get(task: &Task, distribution: Distribution, thread_count: usize) -> Result<Outcome> {
    let count = task.scaled(GETS, 40_000) as usize / thread_count;
    let (threads, elapsed) = threads::run(thread_count, |thread, start| {
        let mut random = Random::new(mix(task.seed) ^ mix(thread as u64) ^ distribution as u64);
        let warm_up = task.data.choose(distribution, count / WARM_UP_SHARE, &mut random);
        let chosen = task.data.choose(distribution, count, &mut random);
        let mut samples = Vec::with_capacity(count / SAMPLE_EVERY + 1);
        let mut done = 0;
        task.engine.with_reader(&mut |reader| {
            let warm_up_began = Instant::now();
            for chunk in warm_up.chunks(REFRESH_EVERY) {
                if warm_up_began.elapsed() > task.time_max {
                    break;
                }
                chunk.iter().try_for_each(|&index| get_one(task, reader, index))?;
            }
            let began = start.wait();
            for chunk in chosen.chunks(REFRESH_EVERY) {
                if began.elapsed() > task.time_max {
                    break;
                }
                reader.refresh()?;
                get_chunk(task, reader, chunk, &mut samples)?;
                done += chunk.len() as u64;
            }
            Ok(())
        })?;
        Ok((done, samples))
    })?;
    let operations = threads.iter().map(|thread| thread.0).sum();
    let samples_ns = threads.into_iter().flat_map(|thread| thread.1).collect();
    Ok(Outcome { operations, records: operations, elapsed, samples_ns, ..Outcome::default() })
}

fn get_chunk(task: &Task, reader: &mut dyn Reader, chunk: &[u32], samples: &mut Vec<u64>) -> Result<()> {
    for group in chunk.chunks(SAMPLE_EVERY) {
        let began = Instant::now();
        get_one(task, reader, group[0])?;
        samples.push(began.elapsed().as_nanos() as u64);
        group[1..].iter().try_for_each(|&index| get_one(task, reader, index))?;
    }
    Ok(())
}

pub fn get_one(task: &Task, reader: &mut dyn Reader, index: u32) -> Result<()> {
    let key = task.data.key(u64::from(index), Lane::Base);
    let mut is_right = false;
    let found = reader.get(&key, &mut |value| {
        is_right = belongs(&key, value);
        black_box(consume(value));
    })?;
    ensure!(found && is_right, "record {index} is missing or wrong");
    Ok(())
}

pub fn scan(task: &Task, len: usize) -> Result<Outcome> {
    let full = if len == 10 { SCANS_OF_TEN } else { SCANS_OF_THOUSAND };
    let count = task.scaled(full, 1000);
    let starts = task.data.records().saturating_sub(len as u64).max(1);
    let mut random = Random::new(mix(task.seed) ^ len as u64);
    let mut outcome = Outcome::default();
    task.engine.with_reader(&mut |reader| {
        for _ in 0..count / WARM_UP_SHARE as u64 {
            scan_one(task, reader, random.below(starts), len)?;
        }
        let began = Instant::now();
        for n in 0..count {
            if n % 100 == 0 {
                if began.elapsed() > task.time_max {
                    break;
                }
                reader.refresh()?;
            }
            let start = random.below(starts);
            let scan_began = Instant::now();
            outcome.records += scan_one(task, reader, start, len)?;
            outcome.samples_ns.push(scan_began.elapsed().as_nanos() as u64);
            outcome.operations += 1;
        }
        outcome.elapsed = began.elapsed();
        Ok(())
    })?;
    Ok(outcome)
}

fn scan_one(task: &Task, reader: &mut dyn Reader, start: u64, len: usize) -> Result<u64> {
    let from = task.data.key(start, Lane::Base);
    let mut are_right = true;
    let seen = reader.scan(&from, len, &mut |key, value| {
        are_right &= belongs(key, value) && *key >= from[..];
        black_box(consume(key) ^ consume(value));
    })?;
    let expected = len.min((task.data.records() - start) as usize);
    ensure!(seen >= expected && are_right, "a scan from record {start} found {seen} of {expected} records");
    Ok(seen as u64)
}
