//! btfs: the storage engine that this program is about.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use btfs::storage::{FileStorage, Storage};
use btfs::tree::{Batch, Cursor, FormatOptions, LatchMode, Options, Stats, Tree};

use super::{
    CheckpointStyle, Counters, Durability, Engine, Figures, FileSizes, Latch, Reader, Setup, allocated,
    counter, figure,
};
use crate::data::{Change, Key, Value};

thread_local! {
    /// Keeps its memory from one write to the next.
    static BATCH: RefCell<Batch> = RefCell::new(Batch::new());
}

pub struct Btfs {
    tree: Tree,
    path: PathBuf,
    cache_size: u64,
    latch: Latch,
}

impl Btfs {
    pub fn create(setup: &Setup, latch: Latch) -> Result<Self> {
        let Setup { dir, cache_size, payload, log_size, .. } = *setup;
        let path = dir.join("image.db");
        let storage: Arc<dyn Storage> = Arc::new(FileStorage::create(&path, false)?);
        // The size of the log follows from that of the image, which is only declared: the file is sparse.
        let default = FormatOptions::default();
        let size = default.size.max((payload * 8).next_multiple_of(1 << 20));
        Tree::format(&*storage, &FormatOptions { size, log_size, ..default })?;
        let options = Options {
            cache_size: usize::try_from(cache_size)?,
            latch_mode: match latch {
                Latch::Blink => LatchMode::BLink,
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
        let lsn = BATCH.with_borrow_mut(|changes| {
            changes.clear();
            for change in batch {
                match change {
                    Change::Put(key, value) => changes.put(key, value),
                    Change::Delete(key) => changes.delete(key),
                }
            }
            self.tree.apply(changes)
        })?;
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

    fn log_between_checkpoints(&self) -> Option<u64> {
        Some(self.tree.stats().log_size / 4 * 3)
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
                (counter::PAGES_VISITED, stats.get_pages + stats.scan_pages),
                (counter::READ_CALLS, stats.gets + stats.seeks),
                (counter::PAGES_READ, stats.pages_read),
                (counter::PAGES_WRITTEN, stats.pages_written),
                (counter::LOG_BYTES, stats.log_end),
                (counter::LOG_SYNCS, stats.log_groups),
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
                (figure::HEIGHT, report.height as f64),
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
