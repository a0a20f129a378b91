//! Short scans under a leaf's latch, without a copy of the leaf.

use std::ops::ControlFlow;

use super::Tree;
use super::descend::Target;
use crate::error::Result;
use crate::page::node::Node;
use crate::pool::Counter;

/// Keys up to this length need no memory from the heap.
const SHORT_KEY: usize = 64;

/// A scan of more leaves than this, here or by a cursor, leaves no trace in the cache.
pub(super) const LONG_SCAN: usize = 8;

impl Tree {
    /// Calls `each` with the records whose keys lie in `from..to`, in their order, until it breaks; returns what it breaks with.
    ///
    /// A scan that is expected to find few records is cheaper by this than by a [`Tree::cursor`]: nothing is copied. `each` runs
    /// under the latch of the records' leaf, so it must be short, must not wait for anything and must not use the tree. Between
    /// leaves no latch is held; what such a scan sees is what a cursor would.
    pub fn scan<B>(
        &self,
        from: &[u8],
        to: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> ControlFlow<B>,
    ) -> Result<Option<B>> {
        if from >= to {
            return Ok(None);
        }
        let (mut resume, mut leaves) = (None, 0);
        loop {
            let from = resume.as_deref().unwrap_or(from);
            match self.scan_leaf(from, to, leaves, &mut each)? {
                ControlFlow::Break(end) => return Ok(end),
                ControlFlow::Continue(high) => resume = Some(high),
            }
            leaves += 1;
        }
    }

    /// Scans the one leaf that covers `from`. Breaks at the scan's end, and otherwise tells the leaf's high key, with which to go
    /// on. Latches held on entry and exit: none.
    fn scan_leaf<B>(
        &self,
        from: &[u8],
        to: &[u8],
        leaves: usize,
        each: &mut impl FnMut(&[u8], &[u8]) -> ControlFlow<B>,
    ) -> Result<ControlFlow<Option<B>, Vec<u8>>> {
        let _index = self.index.reader();
        let alive = self.pool.enter();
        let found = self.find_leaf(&alive, Target::Covering(from), leaves <= LONG_SCAN)?;
        alive.add(Counter::Seeks, (leaves == 0) as u64);
        alive.add(Counter::ScanPages, found.visits as u64);
        let node = Node(&found.page);
        let (mut short, mut long) = ([0; SHORT_KEY], Vec::new());
        let prefix = node.prefix();
        for i in node.search(from).unwrap_or_else(|i| i)..node.count() {
            let suffix = node.suffix(i);
            let len = prefix.len() + suffix.len();
            let key = match short.get_mut(..len) {
                Some(key) => {
                    key[..prefix.len()].copy_from_slice(prefix);
                    key[prefix.len()..].copy_from_slice(suffix);
                    &*key
                }
                None => {
                    node.key_into(i, &mut long);
                    &long
                }
            };
            if key >= to {
                return Ok(ControlFlow::Break(None));
            }
            if let ControlFlow::Break(end) = each(key, node.value(i)) {
                return Ok(ControlFlow::Break(Some(end)));
            }
        }
        Ok(match node.high() {
            Some(high) if high < to => ControlFlow::Continue(high.to_vec()),
            _ => ControlFlow::Break(None),
        })
    }
}
