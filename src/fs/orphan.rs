//! Inodes without a name, and truncates that a crash interrupted.

use super::Fs;
use super::error::{FsError, Result};
use super::format::*;
use super::table::Node;
use crate::tree::Batch;

/// Extended attributes that one batch deletes.
const XATTRS_PER_BATCH: usize = 16;

impl Fs {
    /// Deletes an inode for good if it has no name left and nobody uses it. Held on entry: no lock.
    pub(super) fn reclaim_if_unlinked(&self, node: &Node) -> Result<()> {
        let mut state = match self.lock(node) {
            Ok(state) => state,
            Err(FsError::NotFound) => return Ok(()),
            Err(e) => return Err(e),
        };
        let Some(inode) = state.get() else { return Ok(()) };
        if inode.links > 0 || self.table.is_referenced(node) {
            return Ok(());
        }
        let inode = inode.clone();
        if inode.kind == Kind::File && (inode.size > 0 || inode.blocks > 0) {
            let empty = Inode { size: 0, ..inode.clone() };
            self.cut(node, &mut state, empty)?;
        }
        if inode.xattrs > 0 {
            self.delete_xattrs(node.ino)?;
        }
        let mut batch = Batch::new();
        // Pieces of a symbolic link's target.
        if inode.kind == Kind::Symlink && inode.size > inode.target.len() as u64 {
            let mut cursor = self.tree.cursor();
            cursor.seek(&extent_key(node.ino, 0))?;
            while cursor.next()? && extent_end(node.ino, cursor.key()).is_some() {
                batch.delete(cursor.key());
            }
        }
        batch.delete(&inode_key(node.ino));
        batch.delete(&orphan_key(node.ino));
        self.tree.apply(&batch)?;
        state.set_gone();
        Ok(())
    }

    fn delete_xattrs(&self, ino: Ino) -> Result<()> {
        loop {
            let mut batch = Batch::new();
            let mut cursor = self.tree.cursor();
            cursor.seek(&xattr_key(ino, 0))?;
            while batch.len() < XATTRS_PER_BATCH && cursor.next()? {
                if xattr_place(ino, cursor.key()).is_none() {
                    break;
                }
                if let Some(run) = Xattr::decode(ino, cursor.value())?.run() {
                    batch.free(run);
                }
                batch.delete(cursor.key());
            }
            if batch.is_empty() {
                return Ok(());
            }
            self.tree.apply(&batch)?;
        }
    }

    /// Finishes what the orphan records tell of.
    pub(super) fn finish_orphans(&self) -> Result<()> {
        let mut after = Ino(0);
        loop {
            let mut cursor = self.tree.cursor();
            cursor.seek(&orphan_key(Ino(after.0 + 1)))?;
            if !cursor.next()? {
                return Ok(());
            }
            let Some(ino) = orphan_ino(cursor.key()) else { return Ok(()) };
            let orphan = Orphan::decode(ino, cursor.value())?;
            after = ino;
            let node = self.node(ino);
            if orphan == Orphan::Truncated {
                let mut state = self.lock(&node)?;
                let inode = state.get().ok_or(FsError::NotFound)?.clone();
                self.cut(&node, &mut state, inode)?;
                let mut batch = Batch::new();
                batch.delete(&orphan_key(ino));
                self.tree.apply(&batch)?;
            } else {
                self.reclaim_if_unlinked(&node)?;
            }
        }
    }
}
