//! btfs: the storage engine that this program is about.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use btfs::storage::{FileStorage, Storage};
use btfs::tree::{Batch, Cursor, FormatOptions, LatchMode, Options, Stats, Tree};

use super::{
    CheckpointStyle, Counters, Durability, Engine, Figures, FileSizes, Latch, Reader, allocated, counter,
    figure,
};
use crate::data::{Change, Key, Value};

/// The declared size of the image is at least this, in bytes. The size of the log follows from it.
const IMAGE_SIZE_MIN: u64 = 16 << 30;

pub struct Btfs {
    tree: Tree,
    path: PathBuf,
    cache_size: u64,
    latch: Latch,
}

impl Btfs {
    pub fn create(dir: &Path, cache_size: u64, payload: u64, latch: Latch) -> Result<Self> {
        let path = dir.join("image.db");
        let storage: Arc<dyn Storage> = Arc::new(FileStorage::create(&path, false)?);
        let size = (payload * 8).max(IMAGE_SIZE_MIN).next_multiple_of(1 << 20);
        Tree::format(&*storage, &FormatOptions { size, ..FormatOptions::default() })?;
        let options = Options {
            cache_size: usize::try_from(cache_size)?,
            latch_mode: match latch {
                Latch::Blink => LatchMode::Blink,
                Latch::Crabbing => LatchMode::Crabbing,
                Latch::OneLock => LatchMode::OneLock,
            },
            ..Options::default()
        };
        let tree = Tree::open(storage, &options)?;
        Ok(Btfs { tree, path, cache_size, latch })
    }
}

impl Engine for Btfs {
    fn settings(&self) -> String {
        let stats = self.tree.stats();
        format!(
            "cache {} MiB, log {} MiB, doublewrite area {} MiB; {:?} latches; durable: apply and commit; \
             not durable: apply alone",
            self.cache_size >> 20,
            stats.log_size >> 20,
            stats.doublewrite_size >> 20,
            self.latch
        )
    }

    fn write(&self, batch: &[Change], durability: Durability) -> Result<()> {
        let mut changes = Batch::new();
        for change in batch {
            match change {
                Change::Put(key, value) => changes.put(key, value),
                Change::Delete(key) => changes.delete(key),
            };
        }
        let lsn = self.tree.apply(&changes)?;
        if durability == Durability::Durable {
            self.tree.commit(lsn)?;
        }
        Ok(())
    }

    fn bulk_load(&self, records: &mut dyn Iterator<Item = (Key, Value)>) -> Result<()> {
        self.tree.bulk_load(records)?;
        self.make_durable()
    }

    fn with_reader(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        work(&mut BtfsReader { tree: &self.tree, cursor: self.tree.cursor() })
    }

    fn make_durable(&self) -> Result<()> {
        Ok(self.tree.commit_all()?)
    }

    fn settle(&self) -> Result<()> {
        Ok(self.tree.checkpoint()?)
    }

    fn checkpoint_style(&self) -> CheckpointStyle {
        CheckpointStyle::OfOtherWriters
    }

    fn checkpoint(&self) -> Result<()> {
        Ok(self.tree.checkpoint()?)
    }

    fn file_sizes(&self) -> Result<FileSizes> {
        // Log and doublewrite area are written with zeros when the image is made, so all of them is allocated.
        let Stats { log_size: log, doublewrite_size: doublewrite, .. } = self.tree.stats();
        let data = allocated(&self.path)?.saturating_sub(log + doublewrite);
        Ok(FileSizes { data, log, doublewrite })
    }

    fn counters(&self) -> Counters {
        let stats = self.tree.stats();
        Counters::from(
            [
                (counter::PAGES_VISITED, stats.pages_visited),
                (counter::PAGES_READ, stats.pages_read),
                (counter::PAGES_WRITTEN, stats.pages_written),
                (counter::LOG_BYTES, stats.log_bytes),
                (counter::LOG_SYNCS, stats.log_syncs),
                (counter::SPLITS, stats.splits),
                (counter::MERGES, stats.merges),
                (counter::LATCH_WAITS, stats.latch_waits),
                (counter::CHECKPOINTS, stats.checkpoints),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        )
    }

    fn shape(&self) -> Result<Figures> {
        let report = self.tree.check()?;
        Ok(Figures::from(
            [
                (figure::HEIGHT, f64::from(report.height)),
                (figure::LEAVES, report.leaves as f64),
                (figure::FILL, report.leaf_fill),
                (figure::ADJACENCY, report.adjacency),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        ))
    }
}

struct BtfsReader<'a> {
    tree: &'a Tree,
    cursor: Cursor<'a>,
}

impl Reader for BtfsReader<'_> {
    /// Every get sees the latest writes anyway.
    fn refresh(&mut self) -> Result<()> {
        Ok(())
    }

    fn get(&mut self, key: &Key, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.tree.get_with(key, see)?.is_some())
    }

    fn scan(&mut self, from: &Key, limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        self.cursor.seek(from)?;
        let mut seen = 0;
        while seen < limit && self.cursor.next()? {
            see(self.cursor.key(), self.cursor.value());
            seen += 1;
        }
        Ok(seen)
    }
}
