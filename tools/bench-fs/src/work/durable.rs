//! Rows that wait for the disk: fsync, and SQLite with a transaction for each insert.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use rusqlite::Connection;

use super::sys::Dir;
use super::{Bench, Measurement};
use btfs_bench_common::random::Random;

const BLOCK: u64 = 4096;
/// Small enough for the floor to keep.
const FILE_BLOCKS: u64 = 2048;

/// A request that always reaches a FUSE daemon, and costs it next to nothing.
pub fn round_trip(bench: &mut Bench<'_>) -> Result<Measurement> {
    let dir = Dir::open(bench.root())?;
    bench.measure_each(bench.plan.round_trips, |_| Ok(dir.statfs()?))
}

/// Overwrites blocks of a file that is there.
pub fn fsync(bench: &mut Bench<'_>) -> Result<Measurement> {
    let file = File::create_new(bench.root().join("durable"))?;
    file.write_all_at(&vec![1; (FILE_BLOCKS * BLOCK) as usize], 0)?;
    file.sync_all()?;
    let mut random = Random::new(19);
    let data = [2; BLOCK as usize];
    bench.measure_each(bench.plan.fsyncs, |_| {
        file.write_all_at(&data, random.below(FILE_BLOCKS) * BLOCK)?;
        Ok(file.sync_all()?)
    })
}

fn sqlite(bench: &mut Bench<'_>, mode: &str) -> Result<Measurement> {
    let connection = Connection::open(bench.root().join(format!("{mode}.sqlite")))?;
    connection.pragma_update(None, "journal_mode", mode)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute("CREATE TABLE records (key INTEGER PRIMARY KEY, value BLOB)", [])?;
    let measurement = {
        let mut insert = connection.prepare("INSERT INTO records (value) VALUES (?1)")?;
        let inserts = bench.plan.sqlite_inserts;
        bench.measure_each(inserts, |n| {
            insert.execute([[n as u8; 100]])?;
            Ok(())
        })?
    };
    connection.close().map_err(|(_, e)| e)?;
    Ok(measurement)
}

pub fn sqlite_wal(bench: &mut Bench<'_>) -> Result<Measurement> {
    sqlite(bench, "WAL")
}

pub fn sqlite_rollback(bench: &mut Bench<'_>) -> Result<Measurement> {
    sqlite(bench, "DELETE")
}
