//! LMDB by way of heed: a copy-on-write B+-tree in a memory map; one writer at a time.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, FlagSetMode, PutFlags, RoTxn, WithTls};

use super::{Durability, Engine, FileSizes, Reader, Setup, allocated};
use crate::data::{Change, Key, Value};

/// More than the threads of any row.
const READERS_MAX: u32 = 64;
/// Records in one transaction of the bulk load: its dirty pages stay in memory.
const BULK_TRANSACTION: usize = 100_000;

pub struct Lmdb {
    env: Env,
    database: Database<'static, Bytes, Bytes>,
    path: PathBuf,
    /// Whether MDB_NORDAHEAD is set, as LMDB's manual advises for what has no room in memory.
    no_read_ahead: bool,
    /// Whether MDB_NOSYNC is set. A row writes either durably or not, so this rarely changes.
    no_sync: AtomicBool,
    flags: Mutex<()>,
}

impl Lmdb {
    pub fn create(setup: &Setup) -> Result<Self> {
        let Setup { dir, payload, memory_limit, .. } = *setup;
        let no_read_ahead = memory_limit.is_some_and(|limit| limit < payload);
        let map_size = (payload * 16).max(4 << 30).next_multiple_of(1 << 20);
        let mut options = EnvOpenOptions::new();
        options.map_size(usize::try_from(map_size)?).max_readers(READERS_MAX);
        if no_read_ahead {
            // SAFETY: it is about speed alone.
            unsafe { options.flags(EnvFlags::NO_READ_AHEAD) };
        }
        // SAFETY: the folder is new and belongs to this process alone; nothing else changes the file.
        let env = unsafe { options.open(dir)? };
        let transaction = env.write_txn()?;
        let created = env.create_databases_and_commit(transaction, |creator, transaction| {
            let database = creator.create_database(transaction, None)?;
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(database))
        })?;
        let database = created.commit().context("the database was not made")?;
        let path = dir.join("data.mdb");
        Ok(Lmdb {
            env,
            database,
            path,
            no_read_ahead,
            no_sync: AtomicBool::new(false),
            flags: Mutex::new(()),
        })
    }

    fn set_durability(&self, durability: Durability) -> Result<()> {
        let no_sync = durability == Durability::Visible;
        if self.no_sync.load(Ordering::Acquire) == no_sync {
            return Ok(());
        }
        let _guard = self.flags.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mode = if no_sync { FlagSetMode::Enable } else { FlagSetMode::Disable };
        // SAFETY: only one thread is here, by the mutex; what a power cut does to a database without sync does
        // not matter, as it is deleted after the run.
        unsafe { self.env.set_flags(EnvFlags::NO_SYNC, mode)? };
        self.no_sync.store(no_sync, Ordering::Release);
        Ok(())
    }
}

impl Engine for Lmdb {
    fn settings(&self) -> String {
        format!(
            "no cache of its own: memory map{}, as much page cache as the kernel gives; \
             durable: default sync; not durable: MDB_NOSYNC",
            if self.no_read_ahead { " with MDB_NORDAHEAD" } else { "" }
        )
    }

    fn write(&self, batch: &[Change], durability: Durability) -> Result<()> {
        self.set_durability(durability)?;
        let mut transaction = self.env.write_txn()?;
        for change in batch {
            match change {
                Change::Put(key, value) => self.database.put(&mut transaction, key, value)?,
                Change::Delete(key) => drop(self.database.delete(&mut transaction, key)?),
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn bulk_load(&self, records: &mut dyn Iterator<Item = (Key, Value)>) -> Result<()> {
        self.set_durability(Durability::Visible)?;
        let mut records = records.peekable();
        while records.peek().is_some() {
            let mut transaction = self.env.write_txn()?;
            for (key, value) in records.by_ref().take(BULK_TRANSACTION) {
                self.database.put_with_flags(&mut transaction, PutFlags::APPEND, &key, &value)?;
            }
            transaction.commit()?;
        }
        self.make_durable()
    }

    fn with_reader(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        let transaction = Some(self.env.read_txn()?);
        work(&mut LmdbReader { lmdb: self, transaction })
    }

    fn make_durable(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn settle(&self) -> Result<()> {
        self.make_durable()
    }

    fn file_sizes(&self) -> Result<FileSizes> {
        Ok(FileSizes { data: allocated(&self.path)?, ..FileSizes::default() })
    }
}

struct LmdbReader<'a> {
    lmdb: &'a Lmdb,
    /// Always present, except within `refresh`: a thread may have only one at a time.
    transaction: Option<RoTxn<'a, WithTls>>,
}

impl LmdbReader<'_> {
    fn transaction(&self) -> Result<&RoTxn<'_, WithTls>> {
        self.transaction.as_ref().context("the read transaction was not renewed")
    }
}

impl Reader for LmdbReader<'_> {
    fn refresh(&mut self) -> Result<()> {
        self.transaction = None;
        self.transaction = Some(self.lmdb.env.read_txn()?);
        Ok(())
    }

    fn get(&mut self, key: &Key, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.lmdb.database.get(self.transaction()?, key)?;
        Ok(value.map(see).is_some())
    }

    fn scan(&mut self, from: &Key, limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let from = (std::ops::Bound::Included(from.as_slice()), std::ops::Bound::Unbounded);
        let mut seen = 0;
        for record in self.lmdb.database.range(self.transaction()?, &from)?.take(limit) {
            let (key, value) = record?;
            see(key, value);
            seen += 1;
        }
        Ok(seen)
    }
}
