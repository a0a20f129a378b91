//! Space as files see it: blocks for contents, room for names, and what `statfs` says.
//!
//! - **B1** What is reserved here and not yet part of a file is counted as free, and given up before anybody is told that there
//!   is no space.
//! - **B2** Nobody is told that there is no space while deletions are under way, or an inode whose last name has just gone is
//!   about to be given up by its last user.
//! - **B3** What only adds records ends when a quarter of the image's reserve is used, renames when three eighths of it are, overwriting
//!   when half of it is. The rest is left to what gives space back.

use super::error::{FsError, Result};
use super::format::*;
use super::{Fs, Inner};
use crate::page::{BLOCK_SIZE, Run};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Files that have a window at a time.
const WINDOWS_MAX: usize = 32;
/// What adds something new ends when no more than so many sixteenths of the image's reserve are free.
const NEW_LINE: u64 = 12;
/// The same for what changes something that is there, and may need a record more for it.
const CHANGE_LINE: u64 = 10;
/// Batches of deletions after which space is looked for again, at the most.
const BATCHES_MAX: u64 = 1024;
/// Inodes for each free block in what `statfs` says: an estimate, an inode with its name takes about 300 bytes.
const INODES_PER_BLOCK: u64 = 8;

/// What `statfs` tells; in blocks of 4096 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Blocks of the image.
    pub blocks: u64,
    /// Free blocks, those among them that become free when what deletes them is durable.
    pub free: u64,
    /// Of the free ones those that file contents can take; the others are kept for what the tree needs.
    pub available: u64,
    /// Inodes that the image can hold, about.
    pub files: u64,
    /// Of these those that can still be made, about.
    pub files_free: u64,
}

/// Blocks that are reserved behind the last ones of files that grow, so that their extents stay adjacent although others grow at
/// the same time. Volatile: a crash gives them back.
#[derive(Default)]
pub(super) struct Windows {
    /// The one used last stands last.
    list: Mutex<Vec<(Ino, Run)>>,
    /// How often all have been given up.
    given_up: AtomicU64,
    /// Held while they are.
    giving_up: Mutex<()>,
}

impl Windows {
    /// Takes up to `want` blocks from the file's window.
    fn take(&self, ino: Ino, want: u32) -> Option<Run> {
        let mut list = self.list.lock();
        let at = list.iter().position(|(i, _)| *i == ino)?;
        let (_, run) = list.remove(at);
        let taken = Run { len: want.min(run.len), ..run };
        if taken.len < run.len {
            list.push((ino, Run { start: taken.end(), len: run.len - taken.len }));
        }
        Some(taken)
    }

    /// Gives the file a window. Returns those that are to be given up for it.
    fn put(&self, ino: Ino, window: Run) -> Vec<Run> {
        let mut list = self.list.lock();
        let mut given_up = Self::remove(&mut list, |i| i == ino);
        if list.len() >= WINDOWS_MAX {
            given_up.push(list.remove(0).1);
        }
        list.push((ino, window));
        given_up
    }

    fn remove(list: &mut Vec<(Ino, Run)>, which: impl Fn(Ino) -> bool) -> Vec<Run> {
        let mut removed = Vec::new();
        list.retain(|(ino, run)| {
            let goes = which(*ino);
            removed.extend(goes.then_some(*run));
            !goes
        });
        removed
    }

    fn blocks(&self) -> u64 {
        self.list.lock().iter().map(|(_, run)| run.len as u64).sum()
    }
}

impl Inner {
    /// Takes up to `want` adjacent blocks for a file. One that grows gets them from its window, which becomes as large as the file
    /// is: `grown` is how many blocks it has.
    pub(super) fn take_blocks(&self, ino: Ino, grown: Option<u64>, want: u32) -> Result<Run> {
        let Some(grown) = grown.filter(|_| want < EXTENT_BLOCKS_MAX) else {
            return self.reserve_blocks(want);
        };
        if let Some(run) = self.windows.take(ino, want) {
            return Ok(run);
        }
        // Of the last blocks nobody keeps more than he needs.
        let kept =
            (WINDOWS_MAX as u64 * EXTENT_BLOCKS_MAX as u64).min(self.tree.size() / BLOCK_SIZE as u64 / 64);
        if self.tree.blocks_for_data_with(0) < kept {
            return self.reserve_blocks(want);
        }
        let run = self.reserve_blocks(want + grown.min(EXTENT_BLOCKS_MAX as u64) as u32)?;
        if run.len <= want {
            return Ok(run);
        }
        let taken = Run { len: want, ..run };
        let window = Run { start: taken.end(), len: run.len - want };
        self.give_back(self.windows.put(ino, window));
        Ok(taken)
    }

    fn reserve_blocks(&self, want: u32) -> Result<Run> {
        self.or_after_cleaning(|| Ok(self.tree.reserve_blocks(want)?))
    }

    /// Takes blocks from the image's reserve, for a write that frees as many.
    pub(super) fn take_blocks_urgently(&self, want: u32) -> Result<Run> {
        self.or_after_cleaning(|| Ok(self.tree.reserve_blocks_urgently(want)?))
    }

    /// Does something that takes space; if there is none, again when something has been given up or deleted, until there is nothing more
    /// of that kind (B1, B2).
    pub(super) fn or_after_cleaning<T>(&self, mut take: impl FnMut() -> Result<T>) -> Result<T> {
        let given_up = || self.windows.given_up.load(Ordering::SeqCst);
        let mut batches = 1;
        loop {
            let (deletions, windows) = (self.reclaimer.deletions(), given_up());
            let result = take();
            if !matches!(result, Err(FsError::NoSpace)) {
                return result;
            }
            self.give_up_windows();
            if given_up() == windows && !self.gain_space(deletions, batches) {
                return result;
            }
            // To try costs a commit or a checkpoint: not for each batch of a long deletion.
            batches = (batches * 2).min(BATCHES_MAX);
        }
    }

    /// Gives up all windows, or waits until somebody else has.
    fn give_up_windows(&self) {
        let _one_at_a_time = self.windows.giving_up.lock();
        let windows = Windows::remove(&mut self.windows.list.lock(), |_| true);
        if !windows.is_empty() {
            self.give_back(windows);
            self.windows.given_up.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn give_back(&self, runs: Vec<Run>) {
        runs.into_iter().for_each(|run| self.tree.unreserve_blocks(run));
    }

    /// The file will not grow for now.
    pub(super) fn drop_window(&self, ino: Ino) {
        let runs = Windows::remove(&mut self.windows.list.lock(), |i| i == ino);
        self.give_back(runs);
    }

    /// Blocks that contents can take, now or soon.
    pub(super) fn blocks_for_data(&self) -> u64 {
        self.blocks_for_data_with(0)
    }

    /// The same once `more` have been given back.
    pub(super) fn blocks_for_data_with(&self, more: u64) -> u64 {
        self.tree.blocks_for_data_with(more) + self.windows.blocks()
    }

    /// Whether records may be added for something new (B3).
    pub(super) fn admit(&self) -> Result<()> {
        self.admit_above(NEW_LINE)
    }

    /// Whether records may be added for something that changes (B3).
    pub(super) fn admit_change(&self) -> Result<()> {
        self.admit_above(CHANGE_LINE)
    }

    fn admit_above(&self, sixteenths: u64) -> Result<()> {
        self.or_after_cleaning(|| match self.tree.has_room_above(sixteenths, self.windows.blocks())? {
            true => Ok(()),
            false => Err(FsError::NoSpace),
        })
    }
}

impl Fs {
    /// How much space there is. What waits to be deleted is deleted first; but for files so long that this takes more than a tenth of a
    /// second.
    pub fn usage(&self) -> Usage {
        self.drain_small();
        self.await_long_deletions();
        let windows = self.windows.blocks();
        let blocks = self.tree.size() / BLOCK_SIZE as u64;
        let available = self.blocks_for_data();
        Usage {
            blocks,
            free: self.tree.free_blocks() + windows,
            available,
            files: blocks * INODES_PER_BLOCK,
            files_free: available * INODES_PER_BLOCK,
        }
    }
}
