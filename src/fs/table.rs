//! The inodes in memory: one [`Node`] for each that is in use, with its lock and its record.
//!
//! - **I1** There is at most one node of an inode at a time; its record is the truth, and the tree has the same but for an atime
//!   that is yet to be written. Of a detached inode the tree has nothing (O5).
//! - **I2** Locks are taken from the top of the directory tree downwards: a parent before its child; two parents of a rename
//!   in the order of ancestry, otherwise by number; two children by number, directories first. Locks come before latches.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{FsError, Result};
use super::format::{Ino, Inode, Time, inode_key};
use crate::sync::{Mutex, RwLock};
use crate::tree::Tree;

const SHARDS: usize = 64;
/// Nodes that a shard keeps though nobody uses them.
const SHARD_NODES: usize = 1024;

/// An inode in memory.
pub struct Node {
    /// Its number.
    pub ino: Ino,
    /// Its record; `None`: not read yet, or gone.
    pub state: RwLock<State>,
    /// References of the user: the kernel's lookups, or open files.
    references: AtomicU64,
    /// A directory in which it was seen last; 0: none. For messages: it may have been moved since.
    seen_in: AtomicU64,
    /// Of a directory: a hash that none of its entries has; 0: none is known. Noted by whoever holds its lock.
    absent: AtomicU64,
}

/// What is known of an inode.
#[derive(Default)]
pub struct State {
    /// The record.
    inode: Option<Inode>,
    /// The inode has been deleted from the tree, or waits for that and belongs to the reclaimer: its number will never come back.
    gone: bool,
    /// The tree has an older atime. Then the node waits in [`Table::take_unsaved`], which keeps it in memory.
    unsaved: bool,
    /// The inode is detached: the tree has nothing of it any more, and a file's contents are these.
    detached: Option<Vec<u8>>,
    /// Of a directory: it has been seen that numbers of its next births are not in use.
    pub births_are_free: bool,
}

impl State {
    /// The record, read from the tree if need be.
    pub fn load(&mut self, tree: &Tree, ino: Ino) -> Result<&mut Inode> {
        if self.gone {
            return Err(FsError::NotFound);
        }
        if self.inode.is_none() {
            let decoded = tree.get_with(&inode_key(ino), |record| Inode::decode(ino, record))?;
            self.inode = Some(decoded.ok_or(FsError::NotFound)??);
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
        self.unsaved = false;
    }

    /// Sets the atime in memory only; whether the tree has an older one from now on, and had not before.
    pub fn touch(&mut self, now: Time) -> bool {
        if let Some(inode) = &mut self.inode {
            inode.atime = now;
        }
        self.detached.is_none() && !std::mem::replace(&mut self.unsaved, true)
    }

    /// Whether the tree has an older atime.
    pub fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// The atime has been written.
    pub fn set_saved(&mut self) {
        self.unsaved = false;
    }

    /// The batch that deletes the inode has been applied, and from now on it is here alone.
    pub fn set_detached(&mut self, inode: Inode, contents: Vec<u8>) {
        self.set(inode);
        self.detached = Some(contents);
    }

    /// The contents of a detached inode.
    pub fn detached(&self) -> Option<&[u8]> {
        self.detached.as_deref()
    }

    /// The tree has the inode again.
    pub fn set_attached(&mut self) {
        self.detached = None;
        self.unsaved = false;
    }

    /// The inode has been deleted, or will be; returns its record.
    pub fn set_gone(&mut self) -> Option<Inode> {
        self.gone = true;
        self.detached = None;
        self.inode.take()
    }
}

/// All nodes. Those that are in use stay; of others, each shard keeps some, and at most as many again as it has in use.
pub struct Table {
    shards: [Mutex<Shard>; SHARDS],
    /// Nodes whose atime is yet to be written, the oldest first.
    unsaved: Mutex<VecDeque<Arc<Node>>>,
}

impl Default for Table {
    fn default() -> Self {
        Table { shards: std::array::from_fn(|_| Mutex::default()), unsaved: Mutex::default() }
    }
}

/// Hashes inode numbers by a multiplication. They are given out one after the other, and nobody can choose them but who makes an
/// image, who would make his own mount slow.
#[derive(Default)]
struct InoHasher(u64);

impl Hasher for InoHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(*b as u64));
    }
    fn write_u64(&mut self, n: u64) {
        let product = (self.0 ^ n) as u128 * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

struct Shard {
    nodes: HashMap<Ino, Arc<Node>, BuildHasherDefault<InoHasher>>,
    /// With so many nodes, those that nobody uses are dropped. Set to twice what is in use, so that each new node pays for looking
    /// at two old ones.
    sweep_at: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { nodes: HashMap::default(), sweep_at: SHARD_NODES }
    }
}

impl Shard {
    fn sweep(&mut self) {
        self.nodes.retain(|_, node| Arc::strong_count(node) > 1 || node.is_referenced());
        self.sweep_at = SHARD_NODES.max(2 * self.nodes.len());
        self.nodes.shrink_to(self.sweep_at);
    }
}

impl Node {
    /// Notes a directory that has an entry for it.
    pub fn set_seen_in(&self, parent: Ino) {
        self.seen_in.store(parent.0, Ordering::Relaxed);
    }

    /// A directory that had an entry for it.
    pub fn seen_in(&self) -> Option<Ino> {
        Some(Ino(self.seen_in.load(Ordering::Relaxed))).filter(|parent| parent.0 != 0)
    }

    /// Of a locked directory: whether it is known that none of its entries has this hash. A name is nearly always looked for just
    /// before it is created.
    pub fn is_absent(&self, hash: u64) -> bool {
        self.absent.load(Ordering::Relaxed) == hash
    }

    /// Notes that no entry of a locked directory has this hash.
    pub fn set_absent(&self, hash: u64) {
        self.absent.store(hash, Ordering::Relaxed);
    }

    /// A directory that is locked for changes is about to have another entry.
    pub fn forget_absent(&self) {
        self.absent.store(0, Ordering::Relaxed);
    }

    fn is_referenced(&self) -> bool {
        self.references.load(Ordering::SeqCst) > 0
    }
}

impl Table {
    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[(ino.0 ^ ino.0 >> 24) as usize % SHARDS]
    }

    /// The inode's node; its record may not have been read yet.
    pub fn node(&self, ino: Ino) -> Arc<Node> {
        let mut shard = self.shard(ino).lock();
        if let Some(node) = shard.nodes.get(&ino) {
            return node.clone();
        }
        if shard.nodes.len() >= shard.sweep_at {
            shard.sweep();
        }
        let node = Arc::new(Node {
            ino,
            state: RwLock::default(),
            references: AtomicU64::new(0),
            seen_in: AtomicU64::new(0),
            absent: AtomicU64::new(0),
        });
        shard.nodes.insert(ino, node.clone());
        node
    }

    /// Drops a node from memory that nobody else uses, if its shard has enough of them.
    pub fn forget(&self, node: &Arc<Node>) {
        let mut shard = self.shard(node.ino).lock();
        // One is the caller's and one the shard's; a third could only come from either, or wait for the reclaimer.
        if shard.nodes.len() > SHARD_NODES && Arc::strong_count(node) == 2 && !node.is_referenced() {
            shard.nodes.remove(&node.ino);
        }
    }

    /// A node's atime is to be written later; how many wait.
    pub fn queue_unsaved(&self, node: Arc<Node>) -> usize {
        let mut unsaved = self.unsaved.lock();
        unsaved.push_back(node);
        unsaved.len()
    }

    /// Takes up to `count` nodes whose atime is to be written, by number. It may have been written meanwhile.
    pub fn take_unsaved(&self, count: usize) -> Vec<Arc<Node>> {
        let mut unsaved = self.unsaved.lock();
        let count = count.min(unsaved.len());
        let mut nodes: Vec<_> = unsaved.drain(..count).collect();
        drop(unsaved);
        nodes.sort_unstable_by_key(|node| node.ino);
        nodes
    }

    /// How many nodes there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().nodes.len()).sum()
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
        node.is_referenced()
    }
}
