//! Cursors: in key order, in both directions, under concurrent splits and merges.
//!
//! A cursor copies what it needs of one leaf under its latch and goes on from the *high key* of the copy, so it holds nothing
//! between calls. It returns every key that was there throughout, once, in order; it is not a snapshot of a moment.

use std::ops::Range;

use super::Tree;
use super::descend::{Target, as_node};
use super::scan::LONG_SCAN;
use crate::error::Result;
use crate::page::format::{KEY_MAX, TYPE_TREE, page_type};
use crate::page::node::Node;
use crate::page::{PAGE_SIZE, PageBytes, PageId};
use crate::pool::{Ahead, Counter, PageRead};

/// A position between two records of the tree.
pub struct Cursor<'t> {
    tree: &'t Tree,
    leaf: Box<PageBytes>,
    /// Whether `leaf` holds a leaf.
    loaded: bool,
    /// The records of the leaf that were copied; `None`: all.
    copied: Option<Range<usize>>,
    /// The key that was sought last; where a seek failed, the next step begins with it again.
    sought: Vec<u8>,
    /// The epoch in which the leaf was copied.
    epoch: u64,
    /// The position: in front of record `gap` of the leaf.
    gap: usize,
    /// The record that was returned last.
    record: usize,
    key: Vec<u8>,
    /// Leaves read since the last seek: a long scan does not displace what others use.
    leaves: usize,
    /// Of the leaves to come, how many are being read ahead.
    ahead: usize,
}

/// Records that a seek copies: a short scan needs no more.
const FIRST_COPY: usize = 16;

impl Tree {
    /// A cursor in front of the first record.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor {
            tree: self,
            leaf: Box::new([0; PAGE_SIZE]),
            loaded: false,
            copied: None,
            sought: Vec::new(),
            epoch: 0,
            gap: 0,
            record: 0,
            key: Vec::new(),
            leaves: 0,
            ahead: 0,
        }
    }
}

impl Cursor<'_> {
    /// Moves in front of the first record whose key is not less than `key`.
    pub fn seek(&mut self, key: &[u8]) -> Result<()> {
        (self.leaves, self.ahead) = (0, 0);
        self.loaded = false;
        self.sought.clear();
        self.sought.extend_from_slice(key);
        self.load(Target::Covering(key), Some(key))
    }

    /// A cursor that has no leaf yet, or whose last seek failed, seeks.
    #[inline]
    fn settle(&mut self) -> Result<()> {
        if self.loaded {
            return Ok(());
        }
        let sought = self.sought.clone();
        self.seek(&sought)
    }

    /// Moves behind the next record; `false` at the end.
    #[inline]
    #[expect(
        clippy::should_implement_trait,
        reason = "a cursor moves both ways, may fail, and lends its records"
    )]
    pub fn next(&mut self) -> Result<bool> {
        self.settle()?;
        loop {
            let copied = self.copied.as_ref().map_or(self.node().count(), |c| c.end);
            if self.gap < copied {
                break;
            }
            if copied < self.node().count() {
                self.load_rest()?;
            } else if !self.next_leaf()? {
                return Ok(false);
            }
        }
        self.record = self.gap;
        self.gap += 1;
        self.take_key();
        Ok(true)
    }

    /// Moves in front of the record before; `false` at the beginning.
    pub fn prev(&mut self) -> Result<bool> {
        self.settle()?;
        if self.copied.as_ref().is_some_and(|c| self.gap == c.start) {
            let sought = self.sought.clone();
            self.load(Target::Covering(&sought), None)?;
            self.gap = self.node().search(&sought).unwrap_or_else(|i| i);
        }
        while self.gap == 0 {
            let low = self.node().low().to_vec();
            if low.is_empty() {
                return Ok(false);
            }
            self.load(Target::Below(&low), None)?;
            // The leaf may have grown beyond the old low fence by a merge.
            let node = self.node();
            self.gap = match node.high() {
                Some(high) if high <= low.as_slice() => node.count(),
                _ => node.search(&low).unwrap_or_else(|i| i),
            };
        }
        self.gap -= 1;
        self.record = self.gap;
        self.take_key();
        Ok(true)
    }

    /// Moves behind the last record.
    pub fn seek_end(&mut self) -> Result<()> {
        // No key is greater.
        self.seek(&[0xff; KEY_MAX])?;
        while self.next()? {}
        Ok(())
    }

    /// The key of the record that `next` or `prev` returned.
    #[inline]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The value of the record that `next` or `prev` returned.
    #[inline]
    pub fn value(&self) -> &[u8] {
        self.node().value(self.record)
    }

    #[inline]
    fn node(&self) -> Node<'_> {
        Node(&self.leaf)
    }

    #[inline]
    fn take_key(&mut self) {
        Node(&self.leaf).key_into(self.record, &mut self.key);
    }

    /// Copies the leaf that the target names: all of it, or, to begin a scan at `from`, a few records.
    fn load(&mut self, target: Target<'_>, from: Option<&[u8]>) -> Result<()> {
        let tree = self.tree;
        let _index = tree.index.reader();
        let alive = tree.pool.enter();
        let found = tree.find_leaf(&alive, target, self.leaves <= LONG_SCAN)?;
        let node = Node(&found.page);
        self.epoch = alive.epoch();
        self.copied = None;
        if let Some(key) = from {
            self.gap = node.search(key).unwrap_or_else(|i| i);
            let range = self.gap..node.count().min(self.gap + FIRST_COPY);
            node.copy_records_to(&mut self.leaf, range.clone());
            self.copied = Some(range);
        } else {
            node.copy_to(&mut self.leaf);
        }
        alive.add(Counter::Seeks, from.is_some() as u64);
        alive.add(Counter::ScanPages, found.visits as u64);
        self.loaded = true;
        Ok(())
    }

    /// A scan that began with a few records of a leaf goes on behind the last of them.
    fn load_rest(&mut self) -> Result<()> {
        let key = self.key.clone();
        self.load(Target::Covering(&key), None)?;
        self.gap = self.node().search(&key).map_or_else(|i| i, |i| i + 1);
        Ok(())
    }

    /// Goes on behind the high key of the copy; `false` if there is none.
    fn next_leaf(&mut self) -> Result<bool> {
        let Some(high) = self.node().high().map(<[u8]>::to_vec) else { return Ok(false) };
        self.leaves += 1;
        let right = self.node().right();
        let keep = self.leaves <= LONG_SCAN;
        self.ahead = match self.tree.pool.ahead_of(right) {
            Ahead::Milestone => self.tree.read_ahead(&high, true, keep)?,
            Ahead::Missing if self.ahead == 0 => self.tree.read_ahead(&high, false, keep)?,
            _ => self.ahead.saturating_sub(1),
        };
        if !self.follow(right, &high) {
            self.load(Target::Covering(&high), None)?;
        }
        self.gap = self.node().search(&high).unwrap_or_else(|i| i);
        Ok(true)
    }

    /// Takes the right sibling if it still is what the copy's link says. Since the copy was made it may have been merged away. Its
    /// place is not reused before two epochs have passed, so in the copy's own epoch the link leads to a page of the tree; in
    /// a later one only a descent is safe.
    fn follow(&mut self, right: PageId, high: &[u8]) -> bool {
        let tree = self.tree;
        let _index = tree.index.reader();
        let alive = tree.pool.enter();
        if alive.epoch() != self.epoch {
            return false;
        }
        let page: PageRead<'_> = match tree.pool.read_hinted(right, self.leaves <= LONG_SCAN) {
            Ok(page) if page_type(&page) == TYPE_TREE => page,
            _ => return false,
        };
        match as_node(right, &page, 0) {
            Ok(node) if !node.is_dead() && node.low() == high => {}
            _ => return false,
        }
        Node(&page).copy_to(&mut self.leaf);
        self.copied = None;
        alive.add(Counter::ScanPages, 1);
        true
    }
}
