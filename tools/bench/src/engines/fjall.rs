//! fjall: a log-structured merge tree; writers share one journal.

use std::path::PathBuf;

use anyhow::Result;
use fjall::config::CompressionPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::{CheckpointStyle, Durability, Engine, FileSizes, Reader, Setup, allocated};
use crate::data::{Change, Key, Value};

pub struct Fjall {
    database: Database,
    keyspace: Keyspace,
    dir: PathBuf,
    cache_size: u64,
}

impl Fjall {
    pub fn create(setup: &Setup) -> Result<Self> {
        let Setup { dir, cache_size, .. } = *setup;
        let database = Database::builder(dir)
            .cache_size(cache_size)
            .journal_compression(fjall::CompressionType::None)
            .open()?;
        let keyspace = database.keyspace("records", || {
            KeyspaceCreateOptions::default().data_block_compression_policy(CompressionPolicy::disabled())
        })?;
        Ok(Fjall { database, keyspace, dir: dir.to_owned(), cache_size })
    }
}

impl Engine for Fjall {
    fn settings(&self) -> String {
        let cache = self.cache_size >> 20;
        format!(
            "block cache {cache} MiB, memtables besides; no compression; \
             durable: PersistMode::SyncAll; not durable: PersistMode::Buffer"
        )
    }

    fn write(&self, batch: &[Change], durability: Durability) -> Result<()> {
        let mode = match durability {
            Durability::Visible => PersistMode::Buffer,
            Durability::Durable => PersistMode::SyncAll,
        };
        let mut write = self.database.batch().durability(Some(mode));
        for change in batch {
            match change {
                Change::Put(key, value) => write.insert(&self.keyspace, key.as_slice(), value.as_slice()),
                Change::Delete(key) => write.remove(&self.keyspace, key.as_slice()),
            }
        }
        write.commit()?;
        Ok(())
    }

    fn bulk_load(&self, records: &mut dyn Iterator<Item = (Key, Value)>) -> Result<()> {
        let mut ingestion = self.keyspace.start_ingestion()?;
        for (key, value) in records {
            ingestion.write(key.as_slice(), value.as_slice())?;
        }
        ingestion.finish()?;
        self.make_durable()
    }

    fn with_reader(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        work(&mut FjallReader { fjall: self, snapshot: self.database.snapshot() })
    }

    fn make_durable(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    fn settle(&self) -> Result<()> {
        self.make_durable()?;
        self.checkpoint()
    }

    fn checkpoint_style(&self) -> CheckpointStyle {
        CheckpointStyle::OfOtherWriters
    }

    /// Writes the memtable out as a table, which is what lets the journal go.
    fn checkpoint(&self) -> Result<()> {
        Ok(self.keyspace.rotate_memtable_and_wait()?)
    }

    fn file_sizes(&self) -> Result<FileSizes> {
        let all = allocated(&self.dir)?;
        let mut log = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "jnl") {
                log += allocated(&path)?;
            }
        }
        Ok(FileSizes { data: all - log, log, ..FileSizes::default() })
    }
}

struct FjallReader<'a> {
    fjall: &'a Fjall,
    snapshot: Snapshot,
}

impl Reader for FjallReader<'_> {
    fn refresh(&mut self) -> Result<()> {
        self.snapshot = self.fjall.database.snapshot();
        Ok(())
    }

    fn get(&mut self, key: &Key, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.snapshot.get(&self.fjall.keyspace, key)?;
        Ok(value.map(|value| see(&value)).is_some())
    }

    fn scan(&mut self, from: &Key, limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut seen = 0;
        for guard in self.snapshot.range(&self.fjall.keyspace, from.as_slice()..).take(limit) {
            let (key, value) = guard.into_inner()?;
            see(&key, &value);
            seen += 1;
        }
        Ok(seen)
    }
}
