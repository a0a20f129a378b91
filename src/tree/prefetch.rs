//! Which leaves to read ahead: the children of the page above, which is nearly always in the pool.

use std::ops::Deref;

use super::Tree;
use super::descend::Target;
use crate::error::Result;
use crate::page::PageId;
use crate::page::node::{Covers, Node};
use crate::pool::Alive;

/// Leaves that a scan has read ahead when it meets one that is not in the pool. Fewer than the frames that long scans share.
const AHEAD: usize = 12;
/// The same when it comes to the middle of those, so that it is likely to go on; not for long scans.
const FURTHER: usize = 96;
/// Leaves that are read ahead at a time for records that are scattered.
const GETS_AHEAD: usize = 48;

impl Tree {
    /// Has the leaves read ahead that follow the one that covers `key`, `further` or not; returns how many. Latches held on entry and
    /// exit: none.
    pub(super) fn read_ahead(&self, key: &[u8], further: bool, keep: bool) -> Result<usize> {
        let ahead =
            if further && keep { (self.pool.frame_count() / 16).clamp(AHEAD, FURTHER) } else { AHEAD };
        let _index = self.index.reader();
        let alive = self.pool.enter();
        let Some(found) = self.find(&alive, Target::Covering(key), 1, true)? else { return Ok(0) };
        let node = Node(&found.page);
        let next = node.child_index(key) + 1;
        let children: Vec<_> = (next..node.count().min(next + ahead)).map(|i| node.child(i)).collect();
        drop(found);
        let count = children.len();
        self.pool.prefetch(children.into_iter(), alive.epoch(), keep);
        Ok(count)
    }

    /// Records of these keys, which ascend, will be read soon: their leaves may be read from the image meanwhile, side by side.
    /// Waits at most for pages above leaves, and promises nothing.
    ///
    /// # Errors
    /// Those of reading a page above the leaves.
    pub fn will_get<K: Deref<Target = [u8]>>(&self, keys: &[K]) -> Result<()> {
        let _index = self.index.reader();
        let alive = self.pool.enter();
        self.read_leaves_ahead(&alive, keys.iter().map(Deref::deref))?;
        Ok(())
    }

    /// The same inside an operation; returns for how many of the keys it was done. Latches held on entry and exit: none.
    pub(super) fn read_leaves_ahead<'k>(
        &self,
        alive: &Alive<'_>,
        keys: impl Iterator<Item = &'k [u8]>,
    ) -> Result<usize> {
        let mut leaves: Vec<PageId> = Vec::new();
        let mut count = 0;
        let mut rest = keys.peekable();
        while let Some(first) = rest.peek()
            && leaves.len() < GETS_AHEAD
        {
            let Some(found) = self.find(alive, Target::Covering(first), 1, true)? else { break };
            let node = Node(&found.page);
            while let Some(key) = rest.next_if(|key| node.covers(key) == Covers::Inside) {
                count += 1;
                let leaf = node.child(node.child_index(key));
                if leaves.last() != Some(&leaf) && !self.pool.is_cached(leaf) {
                    leaves.push(leaf);
                }
            }
        }
        self.pool.prefetch(leaves.into_iter(), alive.epoch(), true);
        Ok(count)
    }
}
