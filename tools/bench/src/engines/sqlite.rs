//! SQLite by way of rusqlite, bundled: a B+-tree in one file with a write-ahead log; one writer at a time.
//!
//! All writes go through one connection behind a mutex: several connections would sleep and retry whenever
//! another one writes, which is slower. Each reading thread has a connection of its own, kept for later rows.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use anyhow::{Result, ensure};
use rusqlite::{Connection, Statement};

use super::{CheckpointStyle, Durability, Engine, FileSizes, Reader, Setup, allocated};
use crate::data::{Change, Key, Value};

/// How much of the file a connection may map, if it has room in memory: all of it. If not, nothing, as is SQLite's default: the kernel would
/// read ahead at every fault.
const MMAP_SIZE: u64 = 1 << 38;
/// If the data have no room in memory, the caches of reading connections have this part of the writing one's: together they have a limit.
const READERS_PART: u64 = 16;
const PUT: &str = "INSERT INTO records (key, value) VALUES (?1, ?2) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
const DELETE: &str = "DELETE FROM records WHERE key = ?1";

pub struct Sqlite {
    writer: Mutex<Writer>,
    /// The connections of readers that are not reading now.
    readers: Mutex<Vec<Connection>>,
    checkpointer: Mutex<Connection>,
    path: PathBuf,
    cache_size: u64,
    /// The data have no room in memory.
    scarce: bool,
}

struct Writer {
    connection: Connection,
    durability: Durability,
}

impl Sqlite {
    pub fn create(setup: &Setup) -> Result<Self> {
        let Setup { dir, cache_size, payload, memory_limit, .. } = *setup;
        let scarce = memory_limit.is_some_and(|limit| limit < payload);
        let path = dir.join("data.sqlite");
        let connection = connect(&path, cache_size, scarce)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.execute_batch(
            "CREATE TABLE records (key BLOB PRIMARY KEY NOT NULL, value BLOB NOT NULL) WITHOUT ROWID",
        )?;
        let checkpointer = connect(&path, readers_cache(cache_size, scarce), scarce)?;
        Ok(Sqlite {
            writer: Mutex::new(Writer { connection, durability: Durability::Durable }),
            readers: Mutex::new(Vec::new()),
            checkpointer: Mutex::new(checkpointer),
            path,
            cache_size,
            scarce,
        })
    }

    fn connect_reader(&self) -> Result<Connection> {
        connect(&self.path, readers_cache(self.cache_size, self.scarce), self.scarce)
    }

    fn wal_path(&self) -> PathBuf {
        self.path.with_extension("sqlite-wal")
    }
}

impl Writer {
    fn set_durability(&mut self, durability: Durability) -> Result<()> {
        if self.durability != durability {
            let level = match durability {
                Durability::Visible => "off",
                Durability::Durable => "full",
            };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.durability = durability;
        }
        Ok(())
    }
}

impl Engine for Sqlite {
    fn settings(&self) -> String {
        format!(
            "SQLite {}; cache {} MiB for the writing connection, behind a mutex, and {} for that of each reading thread; {}; \
             WITHOUT ROWID; WAL; durable: synchronous=full; not durable: synchronous=off; sorted bulk load: journal_mode=off",
            rusqlite::version(),
            self.cache_size >> 20,
            readers_cache(self.cache_size, self.scarce) >> 20,
            if self.scarce { "mmap_size=0" } else { "memory-mapped reads" }
        )
    }

    fn write(&self, batch: &[Change], durability: Durability) -> Result<()> {
        let mut writer = lock(&self.writer);
        writer.set_durability(durability)?;
        let transaction =
            writer.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        {
            let mut put = transaction.prepare_cached(PUT)?;
            let mut delete = transaction.prepare_cached(DELETE)?;
            for change in batch {
                match change {
                    Change::Put(key, value) => put.execute((key.as_slice(), value.as_slice()))?,
                    Change::Delete(key) => delete.execute((key.as_slice(),))?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn bulk_load(&self, records: &mut dyn Iterator<Item = (Key, Value)>) -> Result<()> {
        // A connection of its own is needed to leave WAL mode.
        lock(&self.readers).clear();
        let mut checkpointer = lock(&self.checkpointer);
        *checkpointer = Connection::open_in_memory()?;
        let mut writer = lock(&self.writer);
        writer.connection.pragma_update(None, "journal_mode", "off")?;
        writer.set_durability(Durability::Visible)?;
        let transaction = writer.connection.transaction()?;
        {
            let mut put = transaction.prepare_cached(PUT)?;
            for (key, value) in records {
                put.execute((key.as_slice(), value.as_slice()))?;
            }
        }
        transaction.commit()?;
        writer.set_durability(Durability::Durable)?;
        writer.connection.pragma_update(None, "journal_mode", "wal")?;
        *checkpointer = self.connect_reader()?;
        File::open(&self.path)?.sync_all()?;
        Ok(())
    }

    fn with_reader(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        let idle = lock(&self.readers).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect_reader()?,
        };
        let result = read(&connection, work);
        lock(&self.readers).push(connection);
        result
    }

    fn make_durable(&self) -> Result<()> {
        // With synchronous=off neither the log nor checkpoints into the file were synced.
        File::open(self.wal_path())?.sync_all()?;
        File::open(&self.path)?.sync_all()?;
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        let mut writer = lock(&self.writer);
        writer.set_durability(Durability::Durable)?;
        let busy: i64 =
            writer.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))?;
        ensure!(busy == 0, "the checkpoint met a busy database");
        File::open(&self.path)?.sync_all()?;
        Ok(())
    }

    fn checkpoint_style(&self) -> CheckpointStyle {
        CheckpointStyle::OfTheWriter
    }

    fn checkpoint(&self) -> Result<()> {
        lock(&self.checkpointer).query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))?;
        Ok(())
    }

    fn file_sizes(&self) -> Result<FileSizes> {
        let log = allocated(&self.wal_path()).unwrap_or(0);
        Ok(FileSizes { data: allocated(&self.path)?, log, ..FileSizes::default() })
    }
}

fn read(connection: &Connection, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
    let get = connection.prepare("SELECT value FROM records WHERE key = ?1")?;
    let scan = connection.prepare("SELECT key, value FROM records WHERE key >= ?1 ORDER BY key LIMIT ?2")?;
    connection.execute_batch("BEGIN")?;
    let result = work(&mut SqliteReader { connection, get, scan });
    connection.execute_batch("COMMIT")?;
    result
}

struct SqliteReader<'a> {
    connection: &'a Connection,
    get: Statement<'a>,
    scan: Statement<'a>,
}

impl Reader for SqliteReader<'_> {
    fn refresh(&mut self) -> Result<()> {
        self.connection.execute_batch("COMMIT; BEGIN")?;
        Ok(())
    }

    fn get(&mut self, key: &Key, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let mut rows = self.get.query((key.as_slice(),))?;
        let Some(row) = rows.next()? else { return Ok(false) };
        see(row.get_ref(0)?.as_blob()?);
        Ok(true)
    }

    fn scan(&mut self, from: &Key, limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let limit = i64::try_from(limit)?;
        let mut rows = self.scan.query((from.as_slice(), limit))?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            see(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
            seen += 1;
        }
        Ok(seen)
    }
}

fn readers_cache(cache_size: u64, scarce: bool) -> u64 {
    if scarce { cache_size / READERS_PART } else { cache_size }
}

fn connect(path: &Path, cache_size: u64, scarce: bool) -> Result<Connection> {
    let connection = Connection::open(path)?;
    // A negative cache_size is in KiB.
    connection.pragma_update(None, "cache_size", -i64::try_from(cache_size >> 10)?)?;
    let mmap_size = if scarce { 0 } else { i64::try_from(MMAP_SIZE)? };
    connection.pragma_update(None, "mmap_size", mmap_size)?;
    connection.pragma_update(None, "synchronous", "full")?;
    Ok(connection)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
