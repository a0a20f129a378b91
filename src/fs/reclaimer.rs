//! The reclaimer: deletes inodes that have no name left when nobody uses them any more (O2, O3 of `orphan.rs`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{FsError, Result};
use super::extents::Remap;
use super::file::{EXTENTS_PER_BATCH, in_smaller_batches, is_too_large};
use super::format::*;
use super::table::{Node, State};
use super::{Fs, Inner};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, thread};

/// Inodes that one batch deletes.
const GROUP: usize = 32;
/// With so many changes a batch takes up no further inode.
const GROUP_CHANGES: usize = 2 * EXTENTS_PER_BATCH;
/// With so many inodes waiting, whoever adds one deletes some himself.
pub(super) const WAITING_MAX: usize = 1024;
/// So long the reclaimer waits for a group to become full, or for changes to be admitted again.
const GATHER: Duration = Duration::from_millis(5);
/// So long the reclaimer waits before it tries again what has failed.
const STUCK_PAUSE: Duration = Duration::from_secs(10);
/// So long after an inode's last name went it is likely that its user is about to give it up: the kernel forgets an inode
/// that it has closed a moment after the unlink has been answered. (Tests shall not depend on how fast a thread is.)
const RELEASE_PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 20_000 } else { 100 });
/// How long who asks for the free space waits for what is being deleted. (As above.)
const DELETION_PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 20_000 } else { 100 });

/// What waits to be deleted, and who does it.
pub(super) struct Reclaimer {
    queue: Mutex<Queue>,
    moved: Condvar,
    /// Deletions go on in the background.
    background: bool,
    stopping: AtomicBool,
    /// References count no longer, and everything is deleted at once.
    closing: AtomicBool,
    /// Held by whoever waits for long deletions to tell of the free space.
    awaiting: Mutex<()>,
    /// How often something has been deleted.
    deletions: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// Most of these are small.
    waiting: VecDeque<Doomed>,
    /// These take several batches.
    long: VecDeque<Doomed>,
    /// These found no space for what has to be noted about shared blocks, or could not be read: they are tried again when others have
    /// been deleted, and after a while.
    stuck: Vec<Doomed>,
    /// Files whose cuts were not finished for the same reasons; all have their turn.
    stuck_cuts: VecDeque<Ino>,
    /// Groups whose deletion is under way, and long deletions.
    busy: [usize; 2],
    /// The inode that has lost its last name last, if it is still in use, and until when its user is likely to give it up.
    release_expected: Option<(Ino, Instant)>,
    /// Why something could not be deleted, until somebody has been told.
    failed: Option<FsError>,
}

impl Queue {
    fn len(&self) -> usize {
        self.waiting.len() + self.long.len()
    }

    /// Remembers why something could not be deleted. That there is no space is said only if it is all there is to say.
    fn note_failure(&mut self, error: FsError) {
        if matches!(self.failed, None | Some(FsError::NoSpace)) {
            self.failed = Some(error);
        }
    }

    fn retry_stuck(&mut self) {
        self.waiting.extend(self.stuck.drain(..));
    }
}

/// An inode that is to be deleted (O3).
struct Doomed {
    /// Its node says that it is gone, and stays in memory for that.
    node: Arc<Node>,
    inode: Inode,
    /// It has failed before.
    is_stuck: bool,
}

/// How far a deletion came.
#[derive(Clone, Copy, PartialEq)]
enum Deleted {
    Done,
    /// There is more for further batches.
    Partly,
    /// It has not begun.
    NotYet,
}

fn is_unlinked(state: &State) -> bool {
    state.get().is_some_and(|inode| inode.links == 0)
}

impl Reclaimer {
    pub fn new(background: bool) -> Self {
        Reclaimer {
            queue: Mutex::default(),
            moved: Condvar::new(),
            background,
            stopping: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            awaiting: Mutex::new(()),
            deletions: AtomicU64::new(0),
        }
    }

    pub(super) fn add_stuck_cut(&self, ino: Ino) {
        let mut queue = self.queue.lock();
        if !queue.stuck_cuts.contains(&ino) {
            queue.stuck_cuts.push_back(ino);
            self.moved.notify_all();
        }
    }

    /// How many inodes wait to be deleted.
    pub(super) fn waiting(&self) -> usize {
        self.queue.lock().len()
    }

    pub(super) fn take_stuck_cut(&self) -> Option<Ino> {
        self.queue.lock().stuck_cuts.pop_front()
    }

    /// Tells those who wait for space that something has been deleted.
    pub(super) fn has_deleted(&self) {
        let _queue = self.queue.lock();
        self.deletions.fetch_add(1, Ordering::SeqCst);
        self.moved.notify_all();
    }

    fn add(&self, doomed: Doomed) {
        let mut queue = self.queue.lock();
        if queue.release_expected.is_some_and(|(ino, _)| ino == doomed.node.ino) {
            queue.release_expected = None;
        }
        queue.waiting.push_back(doomed);
        // With more than one, the thread has been woken already, and waits for a group to become full.
        if queue.len() == 1 {
            self.moved.notify_all();
        }
    }

    /// Changes whenever something has been deleted, before the queue says that nothing waits.
    pub fn deletions(&self) -> u64 {
        self.deletions.load(Ordering::SeqCst)
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

impl Inner {
    /// Deletes an inode for good if it has no name left and nobody uses it, or has it deleted (O2). Held on entry: no lock.
    pub(super) fn reclaim_if_unlinked(&self, node: &Arc<Node>) -> Result<()> {
        if !self.doom_if_unlinked(node)? {
            return Ok(());
        }
        self.reclaim_waiting();
        // In the background it may be another's that failed, and here a name has been taken away, as was asked for.
        if self.deletes_at_once() { self.failed_deletion() } else { Ok(()) }
    }

    /// If an inode has no name left and nobody uses it, it is gone from now on, and waits to be deleted. Held on entry: no lock.
    pub(super) fn doom_if_unlinked(&self, node: &Arc<Node>) -> Result<bool> {
        let inode = {
            let mut state = match self.lock_in_memory(node) {
                Ok(state) => state,
                Err(FsError::NotFound) => return Ok(false),
                Err(e) => return Err(e),
            };
            if state.detached().is_some() {
                self.drop_if_unused(node, &mut state);
                return Ok(false);
            }
            if !self.is_reclaimable(node, &state) {
                if is_unlinked(&state) {
                    self.reclaimer.queue.lock().release_expected =
                        Some((node.ino, Instant::now() + RELEASE_PATIENCE));
                }
                return Ok(false);
            }
            state.set_gone()
        };
        let Some(inode) = inode else { return Ok(false) };
        self.drop_window(node.ino);
        self.reclaimer.add(Doomed { node: node.clone(), inode, is_stuck: false });
        Ok(true)
    }

    fn is_reclaimable(&self, node: &Node, state: &State) -> bool {
        is_unlinked(state) && (self.is_closing() || !self.table.is_referenced(node))
    }

    fn is_closing(&self) -> bool {
        self.reclaimer.closing.load(Ordering::SeqCst)
    }

    /// Leaves what waits to the reclaimer; without one it is deleted here, and some of it if too much waits. Held on entry: no lock.
    pub(super) fn reclaim_waiting(&self) {
        if self.deletes_at_once() {
            self.drain();
        }
        let waits_too_much = || self.reclaimer.waiting() > WAITING_MAX;
        if waits_too_much() {
            self.reclaim_group();
            if waits_too_much() {
                self.reclaim_long(|| false);
            }
        }
    }

    fn deletes_at_once(&self) -> bool {
        !self.reclaimer.background || self.is_closing()
    }

    /// Why an inode could not be deleted, if nobody has been told yet.
    pub(super) fn failed_deletion(&self) -> Result<()> {
        self.reclaimer.queue.lock().failed.take().map_or(Ok(()), Err)
    }

    /// Deletes inodes, with all that belongs to them, as far as one batch may go, up to so many extents of each. Only batches that
    /// split a count of shared blocks need space.
    fn delete_together(&self, group: &[Doomed], extents: usize) -> Result<Vec<Deleted>> {
        let mut remap = Remap::default();
        let mut deleted = vec![Deleted::NotYet; group.len()];
        for (doomed, deleted) in group.iter().zip(&mut deleted) {
            let ino = doomed.node.ino;
            if !self.collect_deletion(ino, &doomed.inode, extents, &mut remap)? {
                *deleted = Deleted::Partly;
                break;
            }
            remap.batch.delete(&orphan_key(ino));
            *deleted = Deleted::Done;
            if remap.batch.len() + remap.batch.freed().len() + remap.shares.len() >= GROUP_CHANGES {
                break;
            }
        }
        self.with_counts(remap, |batch| Ok(self.tree.apply(batch).map(drop)?))?;
        for (doomed, _) in group.iter().zip(&deleted).filter(|(_, deleted)| **deleted == Deleted::Done) {
            self.unfinished.set(doomed.node.ino, false);
        }
        Ok(deleted)
    }

    /// Deletes a group of those that wait; `None` if none does, otherwise whether it came any further. The caller may hold inode
    /// locks (O3).
    fn reclaim_group(&self) -> Option<bool> {
        let group: Vec<Doomed> = {
            let mut queue = self.reclaimer.queue.lock();
            let count = queue.waiting.len().min(GROUP);
            if count == 0 {
                return None;
            }
            queue.busy[0] += 1;
            queue.waiting.drain(..count).collect()
        };
        let results: Vec<_> = match self.delete_together(&group, EXTENTS_PER_BATCH) {
            Ok(deleted) => deleted.into_iter().map(Ok).collect(),
            // Changes may be admitted again.
            Err(FsError::ReadOnly) => group.iter().map(|_| Ok(Deleted::NotYet)).collect(),
            Err(e) if group.len() == 1 && !is_too_large(&e) => vec![Err(e)],
            // Because of one of them, perhaps.
            Err(_) => group.chunks(1).map(|one| self.delete_alone(one)).collect(),
        };
        Some(self.reclaimed(group.into_iter().zip(results), 0))
    }

    fn delete_alone(&self, one: &[Doomed]) -> Result<Deleted> {
        in_smaller_batches(|extents| {
            let deleted = self.delete_together(one, extents)?;
            Ok(deleted.first().copied().unwrap_or(Deleted::Done))
        })
    }

    /// Deletes one of those that take several batches, until `stop`; `None` if none waits. The caller may hold inode locks (O3).
    fn reclaim_long(&self, stop: impl Fn() -> bool) -> Option<bool> {
        let doomed = {
            let mut queue = self.reclaimer.queue.lock();
            let doomed = queue.long.pop_front()?;
            queue.busy[1] += 1;
            doomed
        };
        let one = [doomed];
        let result = loop {
            match self.delete_alone(&one) {
                Ok(Deleted::Partly) if !stop() => {
                    // Who needs space need not wait for all of it.
                    self.reclaimer.has_deleted();
                }
                Err(FsError::ReadOnly) => break Ok(Deleted::NotYet),
                result => break result,
            }
        };
        Some(self.reclaimed(one.into_iter().zip([result]), 1))
    }

    /// Whether what failed so is tried again while the image is open: there was no space, or the disk could not read.
    pub(super) fn may_succeed_later(&self, error: &FsError) -> bool {
        match error {
            FsError::NoSpace | FsError::ReadOnly => true,
            FsError::Engine(crate::Error::Io { .. }) => self.tree.failure().is_none(),
            _ => false,
        }
    }

    /// Puts back into the queue what is not deleted yet; whether anything is no longer as it was.
    fn reclaimed(
        &self,
        results: impl DoubleEndedIterator<Item = (Doomed, Result<Deleted>)> + ExactSizeIterator,
        busy: usize,
    ) -> bool {
        let (mut any, mut gone) = (false, Vec::with_capacity(results.len()));
        let mut queue = self.reclaimer.queue.lock();
        queue.busy[busy] -= 1;
        for (doomed, result) in results.rev() {
            let stuck = |error: &FsError| self.may_succeed_later(error);
            any |= match &result {
                Ok(deleted) => *deleted != Deleted::NotYet,
                Err(error) => !stuck(error),
            };
            match result {
                Ok(Deleted::Done) => gone.push(doomed.node),
                Ok(Deleted::Partly) => queue.long.push_back(doomed),
                Ok(Deleted::NotYet) | Err(FsError::ReadOnly) if busy == 1 => queue.long.push_back(doomed),
                Ok(Deleted::NotYet) | Err(FsError::ReadOnly) => queue.waiting.push_front(doomed),
                Err(e) => {
                    let is_stuck = stuck(&e);
                    if !doomed.is_stuck || !is_stuck {
                        let e = e.during(format_args!("deleting inode {}", doomed.node.ino.0));
                        let later =
                            if is_stuck { "it goes on later" } else { "the next opening tries again" };
                        log::warn!("inode {} is not deleted, {later}: {e}", doomed.node.ino.0);
                        self.note_damage(&e);
                        // What goes on later has not failed; but somebody may count on the space.
                        if !is_stuck || matches!(e, FsError::NoSpace) {
                            queue.note_failure(e);
                        }
                    }
                    if is_stuck {
                        queue.stuck.push(Doomed { is_stuck, ..doomed });
                    }
                }
            }
        }
        if any {
            queue.retry_stuck();
        }
        self.reclaimer.deletions.fetch_add(any as u64, Ordering::SeqCst);
        self.reclaimer.moved.notify_all();
        drop(queue);
        gone.iter().for_each(|node| self.table.forget(node));
        any
    }

    /// Deletes what waits and is small, and waits for what others delete of that. The caller may hold inode locks.
    pub(super) fn drain_small(&self) -> bool {
        let mut any = false;
        loop {
            match self.reclaim_group() {
                Some(further) => any |= further,
                None if self.others_delete(0, |queue| &queue.waiting) => any = true,
                None => return any,
            }
            if self.tree.is_read_only() {
                return any;
            }
        }
    }

    /// Gains space: deletes up to so many batches of what waits or, if nothing does, waits until others have deleted as many since the
    /// count was `deletions`. `false` if nobody is deleting, nor likely to give up an inode without a name now. The caller may hold
    /// inode locks, though not of such an inode.
    pub(super) fn gain_space(&self, deletions: u64, batches: u64) -> bool {
        let mut any = false;
        for _ in 0..batches {
            match self.reclaim_group().or_else(|| self.reclaim_long(|| true)) {
                Some(further) => any |= further,
                None => break,
            }
            // What waits is not deleted then.
            if self.tree.is_read_only() {
                return any;
            }
        }
        any || self.await_deletions(deletions, batches) || self.delete_stuck() || self.retry_cuts(batches)
    }

    /// Tries again what has found no space; whether it came any further.
    fn delete_stuck(&self) -> bool {
        {
            let mut queue = self.reclaimer.queue.lock();
            if queue.stuck.is_empty() {
                return false;
            }
            queue.retry_stuck();
        }
        self.reclaim_group() == Some(true)
    }

    /// The waiting part of [`Inner::gain_space`].
    fn await_deletions(&self, deletions: u64, batches: u64) -> bool {
        let mut queue = self.reclaimer.queue.lock();
        loop {
            let deleted = self.reclaimer.deletions() - deletions;
            if deleted >= batches || queue.len() > 0 {
                return !self.tree.is_read_only();
            }
            if queue.busy != [0, 0] {
                self.reclaimer.moved.wait(&mut queue);
                continue;
            }
            let expected =
                queue.release_expected.filter(|(_, until)| deleted == 0 && *until > Instant::now());
            let Some((_, until)) = expected else { return deleted > 0 };
            self.reclaimer.moved.wait_until(&mut queue, until);
        }
    }

    /// Waits a moment for the long deletions that are under way in the background. One at a time: others need not be kept from their
    /// work as well.
    pub(super) fn await_long_deletions(&self) {
        let Some(_alone) = self.reclaimer.awaiting.try_lock() else { return };
        let until = Instant::now() + DELETION_PATIENCE;
        let mut queue = self.reclaimer.queue.lock();
        while self.reclaimer.background
            && (queue.busy[1] > 0 || !queue.long.is_empty())
            && !self.tree.is_read_only()
            && !self.reclaimer.moved.wait_until(&mut queue, until).timed_out()
        {}
    }

    /// Deletes what waits, and waits for what others delete; whether there was anything. The caller may hold inode locks.
    pub(super) fn drain(&self) -> bool {
        let mut any = self.drain_small();
        loop {
            match self.reclaim_long(|| false) {
                Some(further) => any |= further,
                None if self.others_delete(1, |queue| &queue.long) => any = true,
                None => return any,
            }
            // With a long one gone, what found no space waits again.
            any |= self.drain_small();
            if self.tree.is_read_only() {
                return any;
            }
        }
    }

    /// Waits until nobody is deleting; `false` if nobody was, and nothing waits. Who was may have put back a part of what he took.
    fn others_delete(&self, busy: usize, list: impl Fn(&Queue) -> &VecDeque<Doomed>) -> bool {
        let mut queue = self.reclaimer.queue.lock();
        if queue.busy[busy] == 0 && list(&queue).is_empty() {
            return false;
        }
        while queue.busy[busy] > 0 {
            self.reclaimer.moved.wait(&mut queue);
        }
        true
    }

    /// The reclaimer's thread.
    pub(super) fn run_reclaimer(&self) {
        let reclaimer = &self.reclaimer;
        let mut further = true;
        while !reclaimer.is_stopping() {
            {
                let mut queue = reclaimer.queue.lock();
                while queue.len() == 0 && !reclaimer.is_stopping() {
                    if queue.stuck.is_empty() && queue.stuck_cuts.is_empty() {
                        reclaimer.moved.wait(&mut queue);
                    } else if reclaimer.moved.wait_for(&mut queue, STUCK_PAUSE).timed_out() {
                        queue.retry_stuck();
                        drop(queue);
                        while self.retry_cuts(1) && !reclaimer.is_stopping() && reclaimer.waiting() == 0 {}
                        queue = reclaimer.queue.lock();
                    }
                }
                let gathers = queue.long.is_empty() && queue.waiting.len() < GROUP;
                if (gathers || !further) && !reclaimer.is_stopping() {
                    // Whether changes are admitted again only time tells; where an error has ended them, never.
                    let pause = if self.tree.is_read_only() { STUCK_PAUSE } else { GATHER };
                    reclaimer.moved.wait_for(&mut queue, pause);
                }
            }
            if reclaimer.is_stopping() {
                return;
            }
            // Small ones go first, also when others are long.
            let interrupted = || reclaimer.is_stopping() || reclaimer.queue.lock().waiting.len() >= GROUP;
            let any = self.reclaim_group().or_else(|| self.reclaim_long(interrupted));
            further = any.unwrap_or(true);
            if any == Some(true) {
                self.retry_cuts(1);
            }
        }
    }
}

impl Fs {
    /// Starts the thread that deletes what waits.
    pub(super) fn start_reclaimer(inner: &Arc<Inner>) -> Result<Option<thread::JoinHandle<()>>> {
        if !inner.reclaimer.background {
            return Ok(None);
        }
        let shared = inner.clone();
        let thread = thread::Builder::new().name("btfs-delete".into()).spawn(move || shared.run_reclaimer());
        Ok(Some(thread.map_err(|e| crate::Error::io("starting a thread", e))?))
    }

    /// Deletes what waits, and what nobody but the user of the filesystem, who closes it now, has kept. The thread has ended. What cannot
    /// be deleted is left to the next opening.
    pub(super) fn finish_deletions(&self) -> Result<()> {
        self.reclaimer.closing.store(true, Ordering::SeqCst);
        self.reclaimer.queue.lock().retry_stuck();
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
