//! Inodes without a name, and truncates that were interrupted.
//!
//! - **O1** An inode without a name has an orphan record, from the batch that took its last name to the one that deletes its record;
//!   unless it is detached.
//! - **O2** It is deleted when nobody uses it: with its last name if a batch is enough, otherwise by the reclaimer, in batches of
//!   several small ones or batch by batch.
//! - **O3** What waits for the reclaimer is gone for everybody else, and only the reclaimer's queue knows its record. So it takes no
//!   inode's lock, and whoever holds one can wait for it.
//! - **O4** While extents of a file may lie behind its size although it was cut there, its orphan record says so, and it does not
//!   grow before they are gone.
//! - **O5** An inode that loses its last name while it is in use, and that memory can hold with all that belongs to it, is detached: the
//!   batch deletes it from the tree, and its node has it alone. That is the common case, since the kernel forgets an inode only after
//!   it has been unlinked. Who changes it attaches it before: a batch puts it back, with an orphan record.

use super::error::{FsError, Result};
use super::extents::Remap;
use super::format::*;
use super::reclaimer::WAITING_MAX;
use super::table::{Node, State};
use super::{Inner, put_inode};
use crate::tree::Batch;

/// Extended attributes, or pieces of a target, that one batch deletes.
const PIECES_PER_BATCH: usize = 16;

impl Inner {
    /// Adds to a change what deletes an inode with all that belongs to it, but no more than so many extents; whether that is all.
    pub(super) fn collect_deletion(
        &self,
        ino: Ino,
        inode: &Inode,
        extents: usize,
        remap: &mut Remap,
    ) -> Result<bool> {
        match inode.kind {
            Kind::File if !inode.is_empty() || self.unfinished.contains(ino) => {
                let found = self.extents_in(ino, 0, u64::MAX, extents)?;
                for m in &found {
                    remap.batch.delete(&extent_key(ino, m.end));
                    if let Some(run) = m.extent.run() {
                        remap.lose(run, m.is_shared());
                    }
                }
                if found.len() == extents {
                    return Ok(false);
                }
            }
            Kind::Symlink
                if inode.size as usize > inode.target.len()
                    && !self.delete_target(ino, &mut remap.batch)? =>
            {
                return Ok(false);
            }
            _ => {}
        }
        if inode.xattrs > 0 && !self.delete_xattrs(ino, &mut remap.batch)? {
            return Ok(false);
        }
        remap.batch.delete(&inode_key(ino));
        Ok(true)
    }

    /// Adds to a change what deletes an inode that is in use, and returns the contents, if memory can hold all that belongs to it (O5).
    pub(super) fn collect_detachment(
        &self,
        ino: Ino,
        inode: &Inode,
        change: &mut Remap,
    ) -> Result<Option<Vec<u8>>> {
        let is_small = match inode.kind {
            Kind::File => inode.blocks == 0 && !self.unfinished.contains(ino),
            Kind::Symlink => inode.size as usize == inode.target.len(),
            _ => true,
        };
        if !is_small || inode.xattrs > 0 {
            return Ok(None);
        }
        let mut contents = Vec::new();
        if inode.kind == Kind::File && !inode.is_empty() {
            let mut found = self.extents_in(ino, 0, u64::MAX, 2)?;
            match (found.pop().map(|m| m.extent), found.is_empty()) {
                (None, _) => {}
                (Some(Extent::Inline(bytes)), true) => {
                    change.batch.delete(&extent_key(ino, bytes.len() as u64));
                    contents = bytes;
                }
                _ => return Ok(None),
            }
        }
        change.batch.delete(&inode_key(ino));
        Ok(Some(contents))
    }

    /// Puts a locked inode back into the tree if it is detached (O5).
    pub(super) fn attach(&self, node: &Node, state: &mut State) -> Result<()> {
        let (Some(contents), Some(inode)) = (state.detached(), state.get()) else { return Ok(()) };
        self.admit_change()?;
        let mut batch = Batch::new();
        batch.put(&orphan_key(node.ino), &Orphan::Unlinked.encode());
        if !contents.is_empty() {
            let extent = Extent::Inline(contents.to_vec());
            batch.put_with(&extent_key(node.ino, contents.len() as u64), |record| extent.encode_into(record));
        }
        put_inode(&mut batch, node.ino, inode);
        self.tree.apply(&batch)?;
        state.set_attached();
        Ok(())
    }

    /// A detached inode is gone when nobody uses it.
    pub(super) fn drop_if_unused(&self, node: &Node, state: &mut State) {
        if !self.table.is_referenced(node) {
            let _ = state.set_gone();
        }
    }

    /// The batch that deletes a locked inode has been applied.
    pub(super) fn set_deleted(&self, node: &Node, state: &mut State) {
        self.drop_window(node.ino);
        self.unfinished.set(node.ino, false);
        let _ = state.set_gone();
    }

    /// As many pieces of a long symbolic link's target as a batch may delete; whether these are all.
    fn delete_target(&self, ino: Ino, batch: &mut Batch) -> Result<bool> {
        let mut cursor = self.tree.cursor();
        cursor.seek(&extent_key(ino, 0))?;
        for _ in 0..PIECES_PER_BATCH {
            if !cursor.next()? || extent_end(ino, cursor.key()).is_none() {
                return Ok(true);
            }
            batch.delete(cursor.key());
        }
        Ok(false)
    }

    /// As many attributes as a batch may delete; whether these are all.
    fn delete_xattrs(&self, ino: Ino, batch: &mut Batch) -> Result<bool> {
        let mut cursor = self.tree.cursor();
        cursor.seek(&xattr_key(ino, 0))?;
        for _ in 0..PIECES_PER_BATCH {
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

    /// Takes up what the orphan records tell of. What cannot be done because of damage is reported and left as it is.
    pub(super) fn take_up_orphans(&self) -> Result<()> {
        let mut next = Ino(0);
        loop {
            let mut cursor = self.tree.cursor();
            cursor.seek(&orphan_key(next))?;
            if !cursor.next()? {
                break;
            }
            let Some(ino) = orphan_ino(cursor.key()) else { break };
            let taken_up = Orphan::decode(ino, cursor.value()).and_then(|o| self.take_up_orphan(ino, o));
            match taken_up {
                Ok(()) => {}
                Err(FsError::NotFound) => log::warn!("inode {} is to be cut, and does not exist", ino.0),
                Err(e) if self.tree.failure().is_some() => return Err(e),
                // The others are not to suffer from it.
                Err(e) => {
                    log::warn!("inode {} cannot be deleted or cut to its size: {e}", ino.0);
                    self.note_damage(&e);
                }
            }
            let Some(after) = ino.0.checked_add(1) else { break };
            next = Ino(after);
        }
        self.reclaim_waiting();
        // What has failed has been reported, and is tried again when the filesystem is opened next.
        let result = self.failed_deletion();
        if self.tree.failure().is_some() { result } else { Ok(()) }
    }

    fn take_up_orphan(&self, ino: Ino, orphan: Orphan) -> Result<()> {
        let node = self.node(ino);
        let Orphan::Truncated { size } = orphan else {
            if self.doom_if_unlinked(&node)? && self.reclaimer.waiting() > WAITING_MAX {
                self.drain();
            }
            return Ok(());
        };
        // Also if it cannot be read now: it must not grow later.
        self.unfinished.set(ino, true);
        let mut state = self.lock(&node).inspect_err(|e| {
            if matches!(e, FsError::NotFound) {
                self.unfinished.set(ino, false);
            } else if self.may_succeed_later(e) {
                self.reclaimer.add_stuck_cut(ino);
            }
        })?;
        if state.get().ok_or(FsError::NotFound)?.size != size {
            return Err(FsError::damaged(ino, "it is being cut to another size than it has"));
        }
        self.cut_rest(&node, &mut state)
    }
}
