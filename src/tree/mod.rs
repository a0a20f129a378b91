//! The tree: an ordered map of byte strings in one image, concurrent and crash-safe. The top of the storage engine.
//!
//! A B-link tree: Lehman & Yao, *Efficient Locking for Concurrent Operations on B-Trees* (1981), with what PostgreSQL's nbtree
//! README adds. It promises: a batch is applied as a whole or not at all, also across crashes; a get or a cursor sees
//! every batch that was applied before it began; nothing damaged is returned as data.
//!
//! - **T1** Readers latch one page at a time and hold nothing between levels.
//! - **T2** Writers latch leaves from left to right, then pages above, then bitmap pages.
//! - **T3** A half-split (the separator is not posted yet) is a legal state that survives crashes.
//! - **T4** The root page's number never changes.

mod apply;
mod batch;
mod bulk;
mod check;
mod cursor;
mod descend;
mod index;
mod prefetch;
mod root;
mod scan;
mod smo;
mod stats;

pub use crate::pool::{FormatOptions, RecoveryReport};
pub use crate::wal::Callback;
pub use batch::Batch;
pub use check::CheckReport;
pub use cursor::Cursor;
pub use index::LatchMode;
pub use stats::Stats;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::defects::{Defect, Defects};
use crate::error::{Error, Result};
use crate::page::node::Node;
use crate::page::{BLOCK_SIZE, BlockNo, Lsn, PageId, Run};
use crate::pool::{Counter, PREFETCHERS, Pool, PoolOptions};
use crate::storage::Storage;
use crate::sync::thread;
use descend::Target;
use index::Index;
use stats::TreeStats;

/// How a tree is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for the buffer pool in bytes; it holds under any load.
    pub cache_size: usize,
    /// What was applied is durable at the latest after this time.
    pub commit_interval: Duration,
    /// Whether to run background threads: flusher, log writer, and those that read ahead. Without them checkpoints and log writes run inside the calls
    /// that need them, and everything is deterministic.
    pub background: bool,
    /// Whether not a byte of the image is to be written: every change fails with [`Error::ReadOnly`]. If the image was not closed
    /// in order, recovery works on a copy in memory of what it changes. The storage may refuse writes.
    pub read_only: bool,
    /// The latch protocol; others than the default are for comparison.
    pub latch_mode: LatchMode,
    /// Planted defects.
    pub defects: Defects,
}

impl Default for Options {
    fn default() -> Self {
        let pool = PoolOptions::default();
        Options {
            cache_size: pool.cache_size,
            commit_interval: pool.commit_interval,
            background: pool.background,
            read_only: pool.read_only,
            latch_mode: LatchMode::default(),
            defects: pool.defects,
        }
    }
}

/// Blocks fewer than this many bytes may ride in the log. Longer ones bypass the page cache on their way home.
const LOGGED_MAX: usize = 16 << 10;

/// An open tree.
pub struct Tree {
    pool: Arc<Pool>,
    index: Index,
    recovery: RecoveryReport,
    stats: TreeStats,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Tree {
    /// Makes an empty image; what the storage held is gone.
    pub fn format(storage: &dyn Storage, options: &FormatOptions) -> Result<()> {
        Pool::format(storage, options)
    }

    /// How many bytes a new image with these options takes on the host at once; it may grow to its size.
    ///
    /// # Errors
    /// Those of [`Tree::format`] for options that are not possible: nothing has been changed yet.
    pub fn format_cost(options: &FormatOptions) -> Result<u64> {
        Pool::format_cost(options)
    }

    /// Opens an image, with recovery if it was not closed in order.
    ///
    /// # Errors
    /// [`Error::Unusable`] if this is not an image; [`Error::Corrupt`] if it is damaged where recovery needs it.
    pub fn open(storage: Arc<dyn Storage>, options: &Options) -> Result<Tree> {
        let pool_options = PoolOptions {
            cache_size: options.cache_size,
            commit_interval: options.commit_interval,
            background: options.background,
            read_only: options.read_only,
            defects: options.defects,
        };
        let (pool, recovery) = Pool::open(storage, &pool_options)?;
        let pool = Arc::new(pool);
        let index = Index::new(options.latch_mode);
        let mut tree = Tree { pool, index, recovery, stats: TreeStats::default(), threads: Vec::new() };
        // If that fails, the drop ends those that were started.
        tree.start(options).map_err(|e| Error::io("starting a thread", e))?;
        Ok(tree)
    }

    /// Starts the threads that work in the background.
    fn start(&mut self, options: &Options) -> io::Result<()> {
        if options.background && !options.read_only {
            let interval = options.commit_interval;
            self.start_one("btfs-pages", Pool::run_flusher)?;
            self.start_one("btfs-log", move |pool| pool.log.run_writer(interval))?;
            self.start_one("btfs-contents", |pool| pool.log.run_contents_writer())?;
        }
        if options.background {
            for _ in 0..PREFETCHERS {
                self.start_one("btfs-read", Pool::run_prefetcher)?;
            }
        }
        Ok(())
    }

    fn start_one(&mut self, name: &str, run: impl FnOnce(&Pool) + Send + 'static) -> io::Result<()> {
        let pool = self.pool.clone();
        self.threads.push(thread::Builder::new().name(name.into()).spawn(move || run(&pool))?);
        Ok(())
    }

    /// What opening had to do.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// Planted defects.
    pub fn defects(&self) -> Defects {
        self.pool.defects()
    }

    /// The image's random seed for hashes.
    pub fn hash_seed(&self) -> [u8; 16] {
        self.pool.geometry().hash_seed
    }

    /// Makes the image `size` bytes large (rounded down to 16 KiB), while it is in use. Durable when it returns; after a crash before that it
    /// has the old size or the new one. The file is made longer if it is shorter, and stays sparse.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a size that is smaller, or too large for an image, or that the file or device cannot have;
    /// [`Error::ReadOnly`]. Nothing has changed then. Or the latched error.
    pub fn grow(&self, size: u64) -> Result<()> {
        self.pool.grow(size)
    }

    /// The declared size of the image, in bytes. It changes only by [`Tree::grow`].
    pub fn size(&self) -> u64 {
        self.pool.geometry().size
    }

    /// Refuses all changes with [`Error::ReadOnly`] from now on, or admits them again. When this returns after `true`, every batch
    /// that was applied is durable, and the image is one that was closed in order. Waits for batches under way and for
    /// their writes; the caller holds no lock that one of them needs.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] if the image was opened read-only and is to be writable. The latched error after a failed write; changes
    /// stay refused then.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        self.pool.set_read_only(read_only)
    }

    /// Marks the image as damaged, until a repair finds nothing wrong any more: ext4's error state. Durable soon, at the latest when the image is
    /// closed. Holds no latch; an image that was opened read-only stays as it is.
    pub fn note_damage(&self) {
        self.pool.note_damage();
    }

    /// Whether the image is marked as damaged.
    pub fn is_damaged(&self) -> bool {
        self.pool.is_damaged()
    }

    /// Whether every change fails with [`Error::ReadOnly`].
    pub fn is_read_only(&self) -> bool {
        self.pool.is_read_only()
    }

    /// The error that ended all writing, if one did.
    pub fn failure(&self) -> Option<Error> {
        self.pool.log.failure().cloned()
    }

    /// The root page, whose number never changes (T4).
    fn root(&self) -> PageId {
        self.pool.geometry().root
    }

    /// The value under a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get_with(key, <[u8]>::to_vec)
    }

    /// Calls `f` with the value under a key, without copying it. `f` runs under the leaf's latch: it must be short and must not use
    /// the tree.
    #[inline]
    pub fn get_with<R>(&self, key: &[u8], f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let _index = self.index.reader();
        let alive = self.pool.enter();
        let found = self.find_leaf(&alive, Target::Covering(key), true)?;
        alive.add(Counter::Gets, 1);
        alive.add(Counter::GetPages, found.visits as u64);
        Ok(Node(&found.page).get(key).map(f))
    }

    /// Waits until everything up to `lsn` is durable. Callers at the same time share one write of the log.
    pub fn commit(&self, lsn: Lsn) -> Result<()> {
        self.pool.log.commit(lsn)
    }

    /// Waits until everything applied so far is durable.
    pub fn commit_all(&self) -> Result<()> {
        self.commit(self.pool.log.end())
    }

    /// Calls back once everything applied so far is durable, with the same result as [`Tree::commit_all`]. The caller waits for
    /// nothing, unless there are no background threads ([`Options::background`]), or it is alone and `may_lead`: then the commit runs
    /// inside this call. If everything is durable already, the callback runs inside this call, too. Every callback is called, once,
    /// also when the tree is closed or dropped or writing has failed. What it may do is told at [`Callback`].
    pub fn commit_then(&self, may_lead: bool, callback: Callback) {
        self.pool.log.commit_then(self.pool.log.end(), may_lead, callback);
    }

    /// Takes up to `count` adjacent blocks (at least one) for data. Write them, then [`Batch::allocate`] the run, or give it back
    /// with [`Tree::unreserve_blocks`]. A crash before the batch is durable gives them back, too.
    pub fn reserve_blocks(&self, count: u32) -> Result<Run> {
        self.pool.reserve_blocks(count)
    }

    /// Takes all places for pages, until they are given back by [`Tree::unreserve_blocks`].
    #[cfg(test)]
    pub(crate) fn take_places(&self) -> Vec<Run> {
        self.pool.take_places()
    }

    /// Like [`Tree::reserve_blocks`], but also from what is kept for the tree: for what frees as many blocks, when the image is full.
    pub fn reserve_blocks_urgently(&self, count: u32) -> Result<Run> {
        self.pool.reserve_blocks_from(count, true)
    }

    /// Whether records may be added: whether more is free than so many sixteenths of what is kept for the tree, with `more` blocks that the
    /// caller can give back, and pages fit between it. May wait for a checkpoint. The caller holds no lock that a batch under way needs.
    pub fn has_room_above(&self, sixteenths: u64, more: u64) -> Result<bool> {
        self.pool.has_room_above(sixteenths, more)
    }

    /// The host's disk is full: the next blocks are to be such as it has given already, if there are any.
    pub fn prefer_used_blocks(&self) {
        self.pool.restart_search();
    }

    /// Gives back blocks that were reserved and not allocated.
    pub fn unreserve_blocks(&self, run: Run) {
        self.pool.unreserve_blocks(run);
    }

    /// Writes whole blocks like [`Tree::write_blocks`], for a batch that makes them part of a file. If they are few, and little has
    /// been written so since the last commit that somebody asked for, the batch's log record carries them: its commit needs no
    /// other sync then. In a stream of writes nobody waits for each, and they are not written twice.
    pub fn write_blocks_logged(&self, start: BlockNo, data: &[u8], batch: &mut Batch) -> Result<()> {
        let fits = data.len() < LOGGED_MAX
            && (batch.size() + data.len()) as u64 <= self.pool.log.reservation_max() / 4;
        if !fits || !self.pool.log.take_data_allowance(data.len()) {
            return self.write_blocks(start, data);
        }
        self.check_write(start, data)?;
        self.write_home(start, data)?;
        batch.log_data(start, data);
        Ok(())
    }

    /// Writes whole blocks that the caller has reserved. They are durable before any batch that is applied afterwards. Many of them are
    /// only taken, and written meanwhile: then no error but that of a full disk is told here, and a later commit fails.
    pub fn write_blocks(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        self.check_write(start, data)?;
        if !self.defects().has(Defect::MetadataBeforeData) && self.pool.log.write_behind(start.offset(), data)
        {
            return Ok(());
        }
        let written = self.write_home(start, data);
        if !self.defects().has(Defect::MetadataBeforeData) {
            self.pool.log.data_written();
        }
        written
    }

    fn check_write(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        debug_assert!(data.len().is_multiple_of(BLOCK_SIZE));
        self.check_blocks(start, data.len())?;
        // Of a batch that failed something may still be on its way to blocks of an unwritten extent, which are written again now.
        self.pool.log.wait_for_contents(start.offset()..start.offset() + data.len() as u64);
        self.pool.writable()
    }

    fn write_home(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        let write = || self.pool.storage().write_at(start.offset(), data);
        self.pool.with_host_space("writing data", write).map_err(|e| match e {
            // The host's disk is full: nothing but this write is lost.
            Error::NoSpace => e,
            e => self.pool.log.fail(e),
        })
    }

    /// Reads whole blocks. What they contain is for the caller to verify.
    pub fn read_blocks(&self, start: BlockNo, data: &mut [u8]) -> Result<()> {
        self.check_blocks(start, data.len())?;
        self.pool.log.wait_for_contents(start.offset()..start.offset() + data.len() as u64);
        let read = self.pool.storage().read_at(start.offset(), data);
        // What is in memory, because it could not be written, need not be read.
        match self.pool.log.overlay_contents(start.offset(), data) {
            held if held == data.len() => Ok(()),
            _ => read.map_err(|e| Error::io("reading data", e)),
        }
    }

    /// Whole blocks will be read soon, in pieces of less than [`crate::storage::DIRECT_LEN_MIN`]: they may be fetched meanwhile.
    pub fn will_read_blocks(&self, start: BlockNo, count: u32) {
        self.pool.storage().will_read(start.offset(), count as u64 * BLOCK_SIZE as u64);
    }

    fn check_blocks(&self, start: BlockNo, len: usize) -> Result<()> {
        if !self.pool.geometry().has_blocks(start, (len / BLOCK_SIZE) as u64) {
            return Err(Error::corrupt(format_args!("block {}", start.0), "it lies outside the image"));
        }
        Ok(())
    }

    /// Blocks that are free, or will be when deletions are durable.
    pub fn free_blocks(&self) -> u64 {
        self.pool.free_blocks()
    }

    /// Of the free blocks those that data may take, once `more` have been given back. The others are kept for the tree, which needs pages
    /// also to delete.
    pub fn blocks_for_data_with(&self, more: u64) -> u64 {
        self.pool.blocks_for_data_with(more)
    }

    /// Writes all pages home that are dirty, and frees the log behind them. Others go on meanwhile.
    pub fn checkpoint(&self) -> Result<()> {
        self.pool.checkpoint()
    }

    /// Gives free space back to the host, at most `chunks` chunks of 1 MiB; the background does the same when idle.
    pub fn trim(&self, chunks: usize) -> Result<usize> {
        self.pool.reclaim();
        self.pool.look_for_free_chunks(chunks);
        self.pool.punch(chunks)
    }

    fn stop(&mut self) {
        self.pool.stop();
        for thread in self.threads.drain(..) {
            // A panic there has been reported by the panic hook, and aborts in release builds.
            let _ = thread.join();
        }
    }

    /// Makes everything durable, writes all pages home and marks the image as closed in order. What was opened read-only stays as
    /// it was.
    pub fn close(mut self) -> Result<()> {
        self.stop();
        self.pool.close()
    }
}

/// Dropping without [`Tree::close`] is like a crash of the process: what was committed is there at the next open.
impl Drop for Tree {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
