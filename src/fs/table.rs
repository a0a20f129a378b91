//! The inodes in memory: one [`Node`] for each that is in use, with its lock and its record.
//!
//! - **I1** There is at most one node of an inode at a time; its record is the truth, and the tree has the same but for an atime
//!   that is yet to be written.
//! - **I2** Locks are taken from the top of the directory tree downwards: a parent before its child; two parents of a rename
//!   in the order of ancestry, otherwise by number; two children by number. Locks come before latches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{FsError, Result};
use super::format::{Ino, Inode, inode_key};
use crate::sync::{Mutex, RwLock};
use crate::tree::Tree;

const SHARDS: usize = 64;
/// Nodes of a shard beyond which those that nobody uses are dropped.
const SHARD_NODES: usize = 1024;

/// An inode in memory.
pub struct Node {
    /// Its number.
    pub ino: Ino,
    /// Its record; `None`: not read yet, or gone.
    pub state: RwLock<State>,
    /// References of the user: the kernel's lookups, or open files.
    references: AtomicU64,
}

/// What is known of an inode.
#[derive(Default)]
pub struct State {
    /// The record.
    inode: Option<Inode>,
    /// The inode has been deleted from the tree: its number will never come back.
    gone: bool,
}

impl State {
    /// The record, read from the tree if need be.
    pub fn load(&mut self, tree: &Tree, ino: Ino) -> Result<&mut Inode> {
        if self.gone {
            return Err(FsError::NotFound);
        }
        if self.inode.is_none() {
            let record = tree.get(&inode_key(ino))?.ok_or(FsError::NotFound)?;
            self.inode = Some(Inode::decode(ino, &record)?);
        }
        self.inode.as_mut().ok_or(FsError::NotFound)
    }

    /// The record, if it has been read.
    pub fn get(&self) -> Option<&Inode> {
        self.inode.as_ref()
    }

    /// Sets the record as it was read while the node was in use, unless somebody was faster.
    pub fn fill(&mut self, inode: Inode) {
        if !self.gone && self.inode.is_none() {
            self.inode = Some(inode);
        }
    }

    /// Sets the record of an inode that has been born or changed.
    pub fn set(&mut self, inode: Inode) {
        self.inode = Some(inode);
    }

    /// The inode has been deleted.
    pub fn set_gone(&mut self) {
        self.inode = None;
        self.gone = true;
    }
}

/// All nodes.
pub struct Table {
    shards: [Mutex<HashMap<Ino, Arc<Node>>>; SHARDS],
}

impl Default for Table {
    fn default() -> Self {
        Table { shards: std::array::from_fn(|_| Mutex::new(HashMap::new())) }
    }
}

impl Table {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Arc<Node>>> {
        &self.shards[(ino.0 ^ ino.0 >> 24) as usize % SHARDS]
    }

    /// The inode's node; its record may not have been read yet.
    pub fn node(&self, ino: Ino) -> Arc<Node> {
        let mut shard = self.shard(ino).lock();
        if shard.len() > SHARD_NODES && !shard.contains_key(&ino) {
            shard.retain(|_, n| Arc::strong_count(n) > 1 || n.references.load(Ordering::SeqCst) > 0);
        }
        let new = || Arc::new(Node { ino, state: RwLock::default(), references: AtomicU64::new(0) });
        shard.entry(ino).or_insert_with(new).clone()
    }

    /// Adds references.
    pub fn retain(&self, node: &Node) {
        node.references.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes references away; whether it was the last one.
    pub fn release(&self, node: &Node, n: u64) -> bool {
        let taken =
            node.references.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |r| Some(r.saturating_sub(n)));
        taken.is_ok_and(|before| before > 0 && before <= n)
    }

    /// Whether the user holds references.
    pub fn is_referenced(&self, node: &Node) -> bool {
        node.references.load(Ordering::SeqCst) > 0
    }
}
