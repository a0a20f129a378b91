//! redb: a copy-on-write B+-tree in one file; one writer at a time.

use std::path::PathBuf;

use anyhow::Result;
use redb::{Database, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::{Durability, Engine, FileSizes, Reader, Setup, allocated};
use crate::data::{Change, Key, Value};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");

pub struct Redb {
    database: Database,
    path: PathBuf,
    cache_size: u64,
}

impl Redb {
    pub fn create(setup: &Setup) -> Result<Self> {
        let Setup { dir, cache_size, .. } = *setup;
        let path = dir.join("data.redb");
        let database = Database::builder().set_cache_size(usize::try_from(cache_size)?).create(&path)?;
        let redb = Redb { database, path, cache_size };
        redb.write(&[], Durability::Durable)?;
        Ok(redb)
    }
}

impl Engine for Redb {
    fn settings(&self) -> String {
        let cache = self.cache_size >> 20;
        format!("cache {cache} MiB; durable: Durability::Immediate; not durable: Durability::None")
    }

    fn write(&self, batch: &[Change], durability: Durability) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(match durability {
            Durability::Visible => redb::Durability::None,
            Durability::Durable => redb::Durability::Immediate,
        })?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for change in batch {
                match change {
                    Change::Put(key, value) => table.insert(key.as_slice(), value.as_slice())?,
                    Change::Delete(key) => table.remove(key.as_slice())?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn bulk_load(&self, records: &mut dyn Iterator<Item = (Key, Value)>) -> Result<()> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in records {
                table.insert(key.as_slice(), value.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn with_reader(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        work(&mut RedbReader { database: &self.database, table })
    }

    fn make_durable(&self) -> Result<()> {
        self.write(&[], Durability::Durable)
    }

    fn settle(&self) -> Result<()> {
        self.make_durable()
    }

    fn file_sizes(&self) -> Result<FileSizes> {
        Ok(FileSizes { data: allocated(&self.path)?, ..FileSizes::default() })
    }
}

struct RedbReader<'a> {
    database: &'a Database,
    /// Keeps its read transaction alive.
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Reader for RedbReader<'_> {
    fn refresh(&mut self) -> Result<()> {
        self.table = self.database.begin_read()?.open_table(TABLE)?;
        Ok(())
    }

    fn get(&mut self, key: &Key, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.table.get(key.as_slice())?;
        Ok(value.map(|value| see(value.value())).is_some())
    }

    fn scan(&mut self, from: &Key, limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut seen = 0;
        for record in self.table.range(from.as_slice()..)?.take(limit) {
            let (key, value) = record?;
            see(key.value(), value.value());
            seen += 1;
        }
        Ok(seen)
    }
}
