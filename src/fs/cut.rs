//! Cutting files to a smaller size: the first batch sets the size, the others free what lies behind it. A mark remembers that they are
//! still to come (O4, `orphan.rs`).

use std::collections::HashSet;

use super::error::{FsError, Result};
use super::extents::{Mapped, Remap};
use super::file::{file_of, in_smaller_batches};
use super::format::*;
use super::table::{Node, State};
use super::{Fs, Inner};
use crate::defects::Defect;
use crate::page::BLOCK_SIZE;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::tree::Batch;

/// Cuts that find no space again before the others are left for the next time.
const RETRIES: u32 = 4;

/// Files whose cut has not been finished: extents may lie behind their size (O4).
#[derive(Default)]
pub(super) struct Unfinished {
    files: Mutex<HashSet<Ino>>,
    /// How many these are.
    count: AtomicUsize,
}

impl Unfinished {
    /// Remembers whether a file is one of them.
    pub fn set(&self, ino: Ino, unfinished: bool) {
        if unfinished || self.count.load(Ordering::SeqCst) > 0 {
            let mut files = self.files.lock();
            if unfinished {
                files.insert(ino);
            } else {
                files.remove(&ino);
            }
            self.count.store(files.len(), Ordering::SeqCst);
        }
    }

    /// Whether a file is one of them.
    pub fn contains(&self, ino: Ino) -> bool {
        self.count.load(Ordering::SeqCst) > 0 && self.files.lock().contains(&ino)
    }
}

impl Fs {
    /// Before a file gets another size: whether something of it goes. What lies behind a smaller size is gone, and reads as zeros if
    /// the file grows again.
    pub(super) fn begin_resize(&self, node: &Node, state: &mut State, size: u64) -> Result<bool> {
        let inode = file_of(state)?;
        if size > FILE_SIZE_MAX {
            return Err(FsError::FileTooLarge);
        }
        // Blocks that were allocated behind the end go, too.
        let shrinks = size < inode.size || (size == inode.size && inode.blocks > 0);
        if !shrinks {
            self.finish_cut(node, state)?;
        }
        Ok(shrinks)
    }
}

impl Inner {
    /// Sets the size of `inode` with a batch that includes `batch`, and frees as much of what lies behind it as one batch may. If there
    /// is more it leaves a mark: before [`Inner::finish_cut`] the file must not grow, or what lies behind its size would come back.
    pub(super) fn cut(&self, node: &Node, state: &mut State, inode: &Inode, batch: &Batch) -> Result<()> {
        self.drop_window(node.ino);
        in_smaller_batches(|extents| self.cut_some(node, state, inode, batch, extents))
    }

    /// The batch of [`Inner::cut`], with up to so many extents.
    fn cut_some(
        &self,
        node: &Node,
        state: &mut State,
        inode: &Inode,
        batch: &Batch,
        extents: usize,
    ) -> Result<()> {
        let size = inode.size;
        let marked = self.unfinished.contains(node.ino);
        let found = self.extents_in(node.ino, size, u64::MAX, extents)?;
        let last = found.len() < extents;
        let mut remap = Remap { batch: batch.clone(), ..Remap::default() };
        for m in &found {
            remap.batch.delete(&extent_key(node.ino, m.end));
            let mut freed = m.extent.run();
            if m.begin < size {
                let kept = shortened(m, size);
                if let (Some(run), Some(kept)) = (&mut freed, kept.run()) {
                    run.start.0 += kept.len as u64;
                    run.len -= kept.len;
                }
                remap.batch.put(&extent_key(node.ino, size), &kept.encode());
            }
            if let Some(run) = freed.filter(|r| r.len > 0) {
                remap.lose(run, m.is_shared());
            }
        }
        // An inode without a name has another mark, and is deleted as a whole.
        match (last, marked) {
            _ if inode.links == 0 => {}
            (false, _) if self.tree.defects().has(Defect::CutWithoutMark) => {}
            (false, _) => remap.batch.put(&orphan_key(node.ino), &Orphan::Truncated { size }.encode()),
            (true, true) => remap.batch.delete(&orphan_key(node.ino)),
            (true, false) => {}
        }
        let blocks = inode.blocks.saturating_sub(std::mem::take(&mut remap.lost));
        self.apply_remap(remap, node, state, Inode { blocks, ..inode.clone() })?;
        self.unfinished.set(node.ino, !last);
        Ok(())
    }

    /// Before a file grows: finishes a cut (O4).
    pub(super) fn finish_cut(&self, node: &Node, state: &mut State) -> Result<()> {
        while self.unfinished.contains(node.ino) {
            self.or_after_cleaning(|| self.cut_on(node, state))?;
        }
        Ok(())
    }

    /// One batch of a cut that has begun, if it has not ended.
    fn cut_on(&self, node: &Node, state: &mut State) -> Result<()> {
        if !self.unfinished.contains(node.ino) {
            return Ok(());
        }
        let inode = state.get().ok_or(FsError::NotFound)?.clone();
        self.cut(node, state, &inode, &Batch::new())
    }

    /// After the first batch of a cut: the others. The size is what was asked for already, so it is no error of the call if they find no
    /// space for what has to be noted about shared blocks, or the disk cannot read now: they are tried again.
    pub(super) fn cut_rest(&self, node: &Node, state: &mut State) -> Result<()> {
        match self.finish_cut(node, state) {
            Err(e) if self.may_succeed_later(&e) => {
                self.note_damage(&e);
                log::warn!(
                    "inode {} still has blocks behind its end, they go when they can: {e}",
                    node.ino.0
                );
                self.reclaimer.add_stuck_cut(node.ino);
                Ok(())
            }
            result => result,
        }
    }

    /// Tries again what found no space, up to so many batches, but of inodes that are locked. Whether any came further. The caller may
    /// hold inode locks (O3).
    pub(super) fn retry_cuts(&self, batches: u64) -> bool {
        let (mut done, mut failed, mut later) = (0, 0, Vec::new());
        while done < batches && failed < RETRIES {
            let Some(ino) = self.reclaimer.take_stuck_cut() else { break };
            let node = self.node(ino);
            let Some(mut state) = node.state.try_write() else {
                later.push(ino);
                continue;
            };
            match state.load(&self.tree, ino).map(drop).and_then(|()| self.cut_on(&node, &mut state)) {
                Ok(()) => {
                    done += 1;
                    if self.unfinished.contains(ino) {
                        self.reclaimer.add_stuck_cut(ino);
                    }
                    self.reclaimer.has_deleted();
                }
                Err(e) if self.may_succeed_later(&e) => {
                    failed += 1;
                    later.push(ino);
                }
                Err(FsError::NotFound) => {}
                Err(e) => {
                    log::warn!("inode {} keeps blocks behind its end: {e}", ino.0);
                    self.note_damage(&e);
                }
            }
        }
        later.into_iter().for_each(|ino| self.reclaimer.add_stuck_cut(ino));
        done > 0
    }
}

/// The extent without what lies behind `size`, which lies inside it.
fn shortened(m: &Mapped, size: u64) -> Extent {
    let len = (size - m.begin) as u32;
    match &m.extent {
        Extent::Inline(bytes) => Extent::Inline(bytes[..len as usize].to_vec()),
        Extent::Blocks { start, crcs, shared, .. } => {
            let blocks = len.div_ceil(BLOCK_SIZE as u32) as usize;
            let crcs = crcs.get(..blocks).unwrap_or(&[]).to_vec();
            Extent::Blocks { len, start: *start, shared: *shared, crcs }
        }
        Extent::Lost { .. } => Extent::Lost { len: size - m.begin },
    }
}
