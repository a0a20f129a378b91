//! Inodes without a name, and truncates that were interrupted.
//!
//! - **O1** An inode without a name has an orphan record, from the batch that took its last name to the one that deletes its record.
//! - **O2** It is deleted when nobody uses it: at once if a batch is enough, otherwise by the reclaimer, batch by batch.
//! - **O3** The reclaimer waits for no inode's lock, so whoever holds one can wait for the reclaimer.
//! - **O4** While extents of a file may lie behind its size although it was cut there, its orphan record says so, and it does not
//!   grow before they are gone.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::error::{FsError, Result};
use super::extents::Remap;
use super::file::EXTENTS_PER_BATCH;
use super::format::*;
use super::table::{Node, State};
use super::{Fs, Inner};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, thread};
use crate::tree::Batch;

/// Extended attributes that one batch deletes.
const XATTRS_PER_BATCH: usize = 16;
/// After this the reclaimer looks again at what somebody had locked.
const RETRY: Duration = Duration::from_millis(10);

/// What waits to be deleted, and who does it.
pub(super) struct Reclaimer {
    queue: Mutex<Queue>,
    moved: Condvar,
    /// Deletions go on in the background.
    background: bool,
    stopping: AtomicBool,
    /// References count no longer, and everything is deleted at once.
    closing: AtomicBool,
    /// Files whose cut has not been finished (O4).
    unfinished: Mutex<HashSet<Ino>>,
    unfinished_count: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Ino>,
    /// Deletions under way.
    busy: usize,
}

impl Reclaimer {
    pub fn new(background: bool) -> Self {
        Reclaimer {
            queue: Mutex::default(),
            moved: Condvar::new(),
            background,
            stopping: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            unfinished: Mutex::default(),
            unfinished_count: AtomicUsize::new(0),
        }
    }

    fn add(&self, ino: Ino) {
        self.queue.lock().waiting.push_back(ino);
        self.moved.notify_all();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Ends the thread after its batch.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _queue = self.queue.lock();
        self.moved.notify_all();
    }
}

/// How a deletion ended.
#[derive(PartialEq)]
enum Deleted {
    Done,
    /// It takes several batches.
    TooLong,
    /// The filesystem is being closed.
    Stopped,
}

impl Inner {
    /// Deletes an inode for good if it has no name left and nobody uses it, or has it deleted (O2). Held on entry: no lock.
    pub(super) fn reclaim_if_unlinked(&self, node: &Node) -> Result<()> {
        let mut state = match self.lock(node) {
            Ok(state) => state,
            Err(FsError::NotFound) => return Ok(()),
            Err(e) => return Err(e),
        };
        if !self.is_reclaimable(node, &state) {
            return Ok(());
        }
        let at_once = !self.reclaimer.background || self.is_closing();
        match self.delete(node, &mut state, at_once, || false) {
            // The last use ends, but nothing can be changed now.
            Ok(Deleted::TooLong) | Err(FsError::ReadOnly) => self.reclaimer.add(node.ino),
            Ok(Deleted::Done | Deleted::Stopped) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn is_reclaimable(&self, node: &Node, state: &State) -> bool {
        let unlinked = state.get().is_some_and(|inode| inode.links == 0);
        unlinked && (self.is_closing() || !self.table.is_referenced(node))
    }

    fn is_closing(&self) -> bool {
        self.reclaimer.closing.load(Ordering::SeqCst)
    }

    /// Deletes an inode, with all that belongs to it, in bounded batches. Only batches that split a count of shared blocks need
    /// space. If `long` is false it does nothing unless one batch is enough.
    fn delete(&self, node: &Node, state: &mut State, long: bool, stop: impl Fn() -> bool) -> Result<Deleted> {
        let Some(inode) = state.get().cloned() else { return Ok(Deleted::Done) };
        self.drop_window(node.ino);
        loop {
            let mut remap = Remap::default();
            let mut more = false;
            match inode.kind {
                Kind::File if inode.size > 0 || inode.blocks > 0 => {
                    let extents = self.extents_in(node.ino, 0, u64::MAX, EXTENTS_PER_BATCH)?;
                    more = extents.len() == EXTENTS_PER_BATCH;
                    for m in &extents {
                        remap.batch.delete(&extent_key(node.ino, m.end));
                        if let Some(run) = m.extent.run() {
                            remap.lose(run, m.is_shared());
                        }
                    }
                }
                Kind::Symlink if inode.size as usize > inode.target.len() => {
                    self.delete_target(node.ino, &mut remap.batch)?;
                }
                _ => {}
            }
            if !more && inode.xattrs > 0 {
                more = !self.delete_xattrs(node.ino, &mut remap.batch)?;
            }
            if more && !long {
                return Ok(Deleted::TooLong);
            }
            if !more {
                remap.batch.delete(&inode_key(node.ino));
                remap.batch.delete(&orphan_key(node.ino));
            }
            self.with_counts(remap, |batch| Ok(self.tree.apply(batch).map(drop)?))?;
            if !more {
                self.set_unfinished(node.ino, false);
                state.set_gone();
                return Ok(Deleted::Done);
            }
            if stop() {
                return Ok(Deleted::Stopped);
            }
        }
    }

    /// The pieces of a long symbolic link's target.
    fn delete_target(&self, ino: Ino, batch: &mut Batch) -> Result<()> {
        let mut cursor = self.tree.cursor();
        cursor.seek(&extent_key(ino, 0))?;
        while cursor.next()? && extent_end(ino, cursor.key()).is_some() {
            batch.delete(cursor.key());
        }
        Ok(())
    }

    /// As many attributes as a batch may delete; whether these are all.
    fn delete_xattrs(&self, ino: Ino, batch: &mut Batch) -> Result<bool> {
        let mut cursor = self.tree.cursor();
        cursor.seek(&xattr_key(ino, 0))?;
        for _ in 0..XATTRS_PER_BATCH {
            if !cursor.next()? || xattr_place(ino, cursor.key()).is_none() {
                return Ok(true);
            }
            if let Some(run) = Xattr::decode(ino, cursor.value())?.run() {
                batch.free(run);
            }
            batch.delete(cursor.key());
        }
        Ok(false)
    }

    // -- what waits -----------------------------------------------------------------------------------------------

    /// Deletes one inode that waits; `None` if none does. The caller may hold inode locks (O3).
    fn reclaim_one(&self) -> Option<bool> {
        let ino = {
            let mut queue = self.reclaimer.queue.lock();
            let ino = queue.waiting.pop_front()?;
            queue.busy += 1;
            ino
        };
        let deleted = self.reclaim_unless_locked(ino);
        let again = match &deleted {
            Ok(Some(Deleted::Done | Deleted::TooLong)) => false,
            // Changes may be admitted again.
            Ok(Some(Deleted::Stopped) | None) | Err(FsError::ReadOnly) => true,
            Err(e) => {
                log::warn!("deleting inode {} failed, the next opening tries again: {e}", ino.0);
                false
            }
        };
        let mut queue = self.reclaimer.queue.lock();
        queue.busy -= 1;
        if again {
            queue.waiting.push_back(ino);
        }
        self.reclaimer.moved.notify_all();
        Some(!again)
    }

    fn reclaim_unless_locked(&self, ino: Ino) -> Result<Option<Deleted>> {
        let node = self.node(ino);
        let Some(mut state) = node.state.try_write() else { return Ok(None) };
        match state.load(&self.tree, ino) {
            Ok(_) => {}
            Err(FsError::NotFound) => return Ok(Some(Deleted::Done)),
            Err(e) => return Err(e),
        }
        if !self.is_reclaimable(&node, &state) {
            return Ok(Some(Deleted::Done));
        }
        self.delete(&node, &mut state, true, || self.reclaimer.is_stopping()).map(Some)
    }

    /// Deletes what waits, and waits for what others delete; whether there was anything. The caller may hold inode locks:
    /// what somebody has locked is passed over.
    pub(super) fn drain(&self) -> bool {
        let mut any = false;
        let waiting = self.reclaimer.queue.lock().waiting.len();
        for _ in 0..waiting {
            any |= self.reclaim_one().is_some_and(|done| done);
        }
        let mut queue = self.reclaimer.queue.lock();
        while queue.busy > 0 {
            any = true;
            self.reclaimer.moved.wait(&mut queue);
        }
        any
    }

    /// The reclaimer's thread.
    pub(super) fn run_reclaimer(&self) {
        let reclaimer = &self.reclaimer;
        while !reclaimer.is_stopping() {
            if self.reclaim_one() == Some(true) {
                continue;
            }
            let mut queue = reclaimer.queue.lock();
            if reclaimer.is_stopping() {
                return;
            }
            if queue.waiting.is_empty() {
                reclaimer.moved.wait(&mut queue);
            } else {
                reclaimer.moved.wait_for(&mut queue, RETRY);
            }
        }
    }

    // -- truncates ------------------------------------------------------------------------------------------------

    /// Remembers whether extents may lie behind the size of a file that was cut (O4).
    pub(super) fn set_unfinished(&self, ino: Ino, unfinished: bool) {
        let reclaimer = &self.reclaimer;
        if unfinished || reclaimer.unfinished_count.load(Ordering::SeqCst) > 0 {
            let mut set = reclaimer.unfinished.lock();
            if unfinished {
                set.insert(ino);
            } else {
                set.remove(&ino);
            }
            reclaimer.unfinished_count.store(set.len(), Ordering::SeqCst);
        }
    }

    pub(super) fn is_unfinished(&self, ino: Ino) -> bool {
        self.reclaimer.unfinished_count.load(Ordering::SeqCst) > 0
            && self.reclaimer.unfinished.lock().contains(&ino)
    }

    /// Before a file grows: finishes a cut that failed (O4).
    pub(super) fn finish_cut(&self, node: &Node, state: &mut State) -> Result<()> {
        if !self.is_unfinished(node.ino) {
            return Ok(());
        }
        let inode = state.get().ok_or(FsError::NotFound)?.clone();
        self.cut(node, state, inode)
    }

    // -- opening and closing --------------------------------------------------------------------------------------

    /// Takes up what the orphan records tell of. What cannot be done because of damage is reported and left as it is.
    pub(super) fn take_up_orphans(&self) -> Result<()> {
        let mut next = Ino(0);
        loop {
            let mut cursor = self.tree.cursor();
            cursor.seek(&orphan_key(next))?;
            if !cursor.next()? {
                return Ok(());
            }
            let Some(ino) = orphan_ino(cursor.key()) else { return Ok(()) };
            let taken_up = Orphan::decode(ino, cursor.value()).and_then(|o| self.take_up_orphan(ino, o));
            match taken_up {
                Ok(()) => {}
                Err(FsError::Engine(e)) if e.is_corrupt() => {
                    log::warn!("inode {} cannot be deleted or cut to its size: {e}", ino.0);
                }
                Err(e) => return Err(e),
            }
            let Some(after) = ino.0.checked_add(1) else { return Ok(()) };
            next = Ino(after);
        }
    }

    fn take_up_orphan(&self, ino: Ino, orphan: Orphan) -> Result<()> {
        let node = self.node(ino);
        let Orphan::Truncated { size } = orphan else { return self.reclaim_if_unlinked(&node) };
        let mut state = self.lock(&node)?;
        let inode = state.get().ok_or(FsError::NotFound)?.clone();
        self.set_unfinished(ino, true);
        if inode.size != size {
            return Err(FsError::damaged(ino, "it is being cut to another size than it has"));
        }
        self.cut(&node, &mut state, inode)
    }
}

impl Fs {
    /// Starts the thread that deletes what is long.
    pub(super) fn start_reclaimer(inner: &Arc<Inner>) -> Option<thread::JoinHandle<()>> {
        let shared = inner.clone();
        inner.reclaimer.background.then(|| thread::spawn(move || shared.run_reclaimer()))
    }

    /// Deletes what waits, and what nobody but the user of the filesystem, who closes it now, has kept. The thread has ended.
    pub(super) fn finish_deletions(&self) -> Result<()> {
        self.reclaimer.closing.store(true, Ordering::SeqCst);
        if self.tree.is_read_only() { Ok(()) } else { self.take_up_orphans() }
    }

    /// Ends it after its batch.
    pub(super) fn stop_reclaimer(&mut self) {
        self.inner.reclaimer.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook, and aborts in release builds.
            let _ = thread.join();
        }
    }
}
