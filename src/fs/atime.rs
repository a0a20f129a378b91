//! Access times: kept in memory, and written with the inode's next update or many at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::{FsError, Result};
use super::format::{Ino, Inode, Time};
use super::{Fs, put_inode};
use crate::tree::Batch;

/// Which accesses change an access time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Atime {
    /// The first one after a change, and the first one of a day.
    #[default]
    Relatime = 0,
    /// None.
    None = 1,
    /// All.
    Strict = 2,
}

const DAY: i64 = 24 * 60 * 60;
/// Access times that wait to be written; with more, an access writes a few.
const UNSAVED_MAX: usize = 4096;
/// Access times in one batch.
const PER_BATCH: usize = 64;

impl Atime {
    /// The one with this number.
    pub fn numbered(number: u8) -> Option<Atime> {
        [Atime::Relatime, Atime::None, Atime::Strict].into_iter().find(|mode| *mode as u8 == number)
    }

    fn is_due(self, inode: &Inode, now: Time) -> bool {
        let atime = inode.atime;
        match self {
            Atime::None => false,
            _ if atime == now => false,
            Atime::Strict => true,
            Atime::Relatime => {
                atime <= inode.mtime
                    || atime <= inode.ctime
                    || now.seconds.saturating_sub(atime.seconds) >= DAY
            }
        }
    }
}

impl Fs {
    /// Which accesses change an access time, from now on.
    pub fn set_atime_mode(&self, mode: Atime) {
        self.atime.store(mode as u8, Ordering::Relaxed);
    }

    fn atime_mode(&self) -> Atime {
        Atime::numbered(self.atime.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// Notes that an inode has been read. In memory only: it is written with the inode's next update, by [`Fs::sync`] or
    /// [`Fs::close`], or when too many wait.
    pub fn touch_atime(&self, ino: Ino, now: Time) -> Result<()> {
        let mode = self.atime_mode();
        if mode == Atime::None {
            return Ok(());
        }
        let node = self.node(ino);
        if !mode.is_due(self.lock_shared(&node)?.get().ok_or(FsError::NotFound)?, now) {
            return Ok(());
        }
        let outdated = {
            let mut state = self.lock_in_memory(&node)?;
            if !mode.is_due(state.get().ok_or(FsError::NotFound)?, now) {
                return Ok(());
            }
            state.touch(now)
        };
        if outdated && self.table.queue_unsaved(node) > UNSAVED_MAX {
            self.save_atimes(PER_BATCH);
        }
        Ok(())
    }

    /// Writes up to `count` of the access times that wait. Those of inodes that are locked go on waiting. A failure is no error
    /// of who reads: the times go on waiting, unless they were written because too many do.
    pub(super) fn save_atimes(&self, count: usize) {
        let nodes = self.table.take_unsaved(count);
        for nodes in nodes.chunks(PER_BATCH) {
            let (mut batch, mut states) = (Batch::new(), Vec::new());
            for node in nodes {
                // Several locks at once, against all order (I2): so never wait for one.
                match node.state.try_write() {
                    Some(state) => {
                        if let Some(inode) = state.get().filter(|_| state.is_unsaved()) {
                            put_inode(&mut batch, node.ino, inode);
                            states.push((node, state));
                        }
                    }
                    None => {
                        self.table.queue_unsaved(Arc::clone(node));
                    }
                }
            }
            if batch.is_empty() {
                continue;
            }
            let applied = self.tree.apply(&batch);
            if let Err(e) = &applied {
                log::debug!("access times cannot be written: {e}");
            }
            for (node, mut state) in states {
                if applied.is_ok() || count <= PER_BATCH {
                    state.set_saved();
                } else {
                    self.table.queue_unsaved(Arc::clone(node));
                }
            }
        }
    }
}
