//! Rows in which one thread writes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Outcome, Task};
use crate::data::{Change, Lane, RECORD_LEN};
use crate::engines::Durability;
use btfs_bench_common::random::{Random, mix};

const BATCH: u64 = 1000;
const OVERWRITES: u64 = 300_000;
const DELETES: u64 = 300_000;
const WARM_BATCHES: u64 = 50_000;
const WARM_BATCH: u64 = 3;
/// The warm batches stay within so many neighbouring records.
const WARM_SPAN: u64 = 1000;

pub fn load_bulk(task: &Task) -> Result<Outcome> {
    let records = task.data.records();
    let mut sorted = (0..records).map(|index| {
        let key = task.data.key(index, Lane::Base);
        (key, task.data.value(&key, 0))
    });
    let began = Instant::now();
    task.engine.bulk_load(&mut sorted)?;
    task.engine.make_durable()?;
    let elapsed = began.elapsed();
    let payload = records * RECORD_LEN;
    Ok(Outcome { operations: records, records, elapsed, payload, ..Outcome::default() })
}

pub fn load_sorted(task: &Task) -> Result<Outcome> {
    write_batches(task, None, (0..task.data.records()).map(|index| task.data.put(index, Lane::Base, 0)))
}

/// Loads what is not inserted in random order.
pub fn preload(task: &Task) -> Result<()> {
    if task.data.preloaded() == 0 {
        return Ok(());
    }
    let chosen = (0..task.data.records()).filter(|&index| task.data.is_preloaded(index));
    write_batches(task, None, chosen.map(|index| task.data.put(index, Lane::Base, 0)))?;
    task.engine.settle()
}

pub fn insert_random(task: &Task) -> Result<Outcome> {
    let order = task.data.preloaded()..task.data.records();
    let chosen = order.map(|n| task.data.put(task.data.shuffled(n), Lane::Base, 0));
    write_batches(task, None, chosen)
}

pub fn overwrite(task: &Task) -> Result<Outcome> {
    let mut random = Random::new(mix(task.seed) ^ 1);
    let count = task.scaled(OVERWRITES, BATCH);
    let chosen = (0..count).map(|_| task.data.put(random.below(task.data.records()), Lane::Base, task.seed));
    write_batches(task, Some(task.time_max), chosen)
}

pub fn delete(task: &Task) -> Result<Outcome> {
    let count = task.scaled(DELETES, BATCH);
    let chosen = (0..count).map(|n| Change::Delete(task.data.key(task.data.shuffled(n), Lane::Base)));
    let outcome = write_batches(task, Some(task.time_max), chosen)?;
    task.engine.with_reader(&mut |reader| {
        for n in 0..100 {
            let key = task.data.key(task.data.shuffled(n), Lane::Base);
            ensure!(!reader.get(&key, &mut |_| ())?, "a deleted record is still there");
        }
        Ok(())
    })?;
    Ok(outcome)
}

/// Writes changes in batches of 1000, and at the end makes them durable; that is part of the time, as it is
/// what the rows promise. Making the keys and values is not.
fn write_batches(
    task: &Task,
    time_max: Option<Duration>,
    mut changes: impl Iterator<Item = Change>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut batch = Vec::with_capacity(BATCH as usize);
    loop {
        batch.clear();
        batch.extend(changes.by_ref().take(BATCH as usize));
        if batch.is_empty() || time_max.is_some_and(|time_max| outcome.elapsed > time_max) {
            break;
        }
        write_visible(task, &batch, &mut outcome)?;
        outcome.records += batch.len() as u64;
    }
    outcome.payload = outcome.records * RECORD_LEN;
    let began = Instant::now();
    task.engine.make_durable()?;
    outcome.elapsed += began.elapsed();
    Ok(outcome)
}

/// Writes a batch, and counts the time of this alone.
fn write_visible(task: &Task, batch: &[Change], outcome: &mut Outcome) -> Result<()> {
    let began = Instant::now();
    task.engine.write(batch, Durability::Visible)?;
    let elapsed = began.elapsed();
    outcome.elapsed += elapsed;
    outcome.samples_ns.push(elapsed.as_nanos() as u64);
    outcome.operations += 1;
    Ok(())
}

/// Overwrites of three neighbours at a time, in pages that are in the cache.
pub fn warm_apply(task: &Task) -> Result<Outcome> {
    let span_start = task.data.records() / 2;
    let mut random = Random::new(mix(task.seed) ^ 2);
    let mut batch = Vec::new();
    let mut outcome = Outcome::default();
    for n in 0..task.scaled(WARM_BATCHES, 5000) {
        let first = span_start + random.below(WARM_SPAN);
        batch.clear();
        batch.extend((first..first + WARM_BATCH).map(|index| task.data.put(index, Lane::Base, n)));
        write_visible(task, &batch, &mut outcome)?;
        if outcome.elapsed > task.time_max {
            break;
        }
    }
    outcome.records = outcome.operations * WARM_BATCH;
    outcome.payload = outcome.records * RECORD_LEN;
    Ok(outcome)
}
