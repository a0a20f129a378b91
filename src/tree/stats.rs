//! The engine's counters.

use super::Tree;
use crate::page::PAGE_SIZE;
use crate::pool::Counter;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Counters of structure modifications.
#[derive(Default)]
pub(super) struct TreeStats {
    pub splits: AtomicU64,
    pub posts: AtomicU64,
    pub merges: AtomicU64,
    pub root_growths: AtomicU64,
    pub root_shrinks: AtomicU64,
}

/// What the engine has counted since it was opened.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Point lookups.
    pub gets: u64,
    /// Pages visited by point lookups.
    pub get_pages: u64,
    /// Cursor positionings.
    pub seeks: u64,
    /// Pages visited by cursors.
    pub scan_pages: u64,
    /// Latches that had to be waited for.
    pub latch_waits: u64,
    /// Moves to a right sibling.
    pub move_rights: u64,
    /// Descents begun again.
    pub restarts: u64,
    /// Page splits.
    pub splits: u64,
    /// Separators posted.
    pub posts: u64,
    /// Page merges.
    pub merges: u64,
    /// Levels added.
    pub root_growths: u64,
    /// Levels removed.
    pub root_shrinks: u64,
    /// Pages read from the image.
    pub pages_read: u64,
    /// Pages written home.
    pub pages_written: u64,
    /// Bytes written to the doublewrite area.
    pub doublewrite_bytes: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Microseconds spent in checkpoints.
    pub checkpoint_micros: u64,
    /// Chunks given back to the host.
    pub punches: u64,
    /// The log's end: the bytes logged since the image was made, plus a constant.
    pub log_end: u64,
    /// Durable writes of the log.
    pub log_groups: u64,
    /// Commits that had to wait for a durable write.
    pub log_commits: u64,
    /// Log records.
    pub log_records: u64,
    /// Bytes of the image that the log takes.
    pub log_size: u64,
    /// Bytes of the image that the doublewrite area takes.
    pub doublewrite_size: u64,
    /// Bytes of memory for pages.
    pub cache_size: u64,
    /// Free blocks of 4 KiB.
    pub free_blocks: u64,
}

impl Tree {
    /// The engine's counters.
    pub fn stats(&self) -> Stats {
        let pool = &self.pool;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let count = |counter| pool.epochs().count(counter);
        let geometry = pool.geometry();
        Stats {
            gets: count(Counter::Gets),
            get_pages: count(Counter::GetPages),
            seeks: count(Counter::Seeks),
            scan_pages: count(Counter::ScanPages),
            latch_waits: count(Counter::LatchWaits),
            move_rights: count(Counter::MoveRights),
            restarts: count(Counter::Restarts),
            splits: load(&self.stats.splits),
            posts: load(&self.stats.posts),
            merges: load(&self.stats.merges),
            root_growths: load(&self.stats.root_growths),
            root_shrinks: load(&self.stats.root_shrinks),
            pages_read: load(&pool.stats.pages_read),
            pages_written: load(&pool.stats.pages_written),
            doublewrite_bytes: load(&pool.stats.doublewrite_bytes),
            checkpoints: load(&pool.stats.checkpoints),
            checkpoint_micros: load(&pool.stats.checkpoint_micros),
            punches: load(&pool.stats.punches),
            log_end: pool.log.end().0,
            log_groups: load(&pool.log.stats.groups),
            log_commits: load(&pool.log.stats.commits),
            log_records: load(&pool.log.stats.records),
            log_size: geometry.log_size,
            doublewrite_size: 2 * geometry.doublewrite_half_size(),
            cache_size: (pool.frame_count() * PAGE_SIZE) as u64,
            free_blocks: pool.free_blocks(),
        }
    }
}
