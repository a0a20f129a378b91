//! The structure checker: everything that the design promises of the tree. Nothing else changes the tree meanwhile.

use std::collections::HashSet;

use super::Tree;
use super::descend::as_node;
use crate::error::{Error, Result};
use crate::page::bitmap::Bitmap;
use crate::page::format::{BLOCKS_PER_PAGE, PAGE_SIZE};
use crate::page::node::Node;
use crate::page::{BlockNo, PageBytes, PageId, Run};

/// What a check found in a tree that is in order.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Levels of the tree; 1 is a single leaf.
    pub height: usize,
    /// Records.
    pub records: u64,
    /// Bytes of keys and values.
    pub record_bytes: u64,
    /// Leaves.
    pub leaves: u64,
    /// Pages above the leaves.
    pub inner_pages: u64,
    /// Bytes used in leaves, of what they could hold.
    pub leaf_fill: f64,
    /// Splits whose separator is not posted: legal.
    pub incomplete_splits: u64,
    /// Leaves whose right sibling follows them in the file, of all that have one.
    pub adjacency: f64,
    /// Blocks in use that are neither tree nor bitmap pages: what the owner of the tree has allocated. Ascending.
    pub data: Vec<Run>,
}

/// A page as its parent knows it.
struct Expected {
    id: PageId,
    low: Vec<u8>,
}

struct Checker<'t> {
    tree: &'t Tree,
    seen: HashSet<PageId>,
    report: CheckReport,
    used: usize,
    capacity: usize,
    adjacent: u64,
}

impl Tree {
    /// Checks order, fences, links, levels, separators, and reachability against the bitmaps.
    ///
    /// # Errors
    /// The first contradiction, as [`Error::Corrupt`].
    pub fn check(&self) -> Result<CheckReport> {
        let mut checker = Checker {
            tree: self,
            seen: HashSet::new(),
            report: CheckReport::default(),
            used: 0,
            capacity: 0,
            adjacent: 0,
        };
        let mut level = vec![Expected { id: self.root(), low: Vec::new() }];
        let root = checker.copy(self.root())?;
        let mut number = Node(&root).level();
        if Node(&root).high().is_some() {
            return Err(Error::corrupt(self.root(), "the root has a right sibling"));
        }
        checker.report.height = number as usize + 1;
        loop {
            level = checker.level(&level, number)?;
            if number == 0 {
                break;
            }
            number -= 1;
        }
        checker.bitmaps()?;
        let links = checker.report.leaves.saturating_sub(1).max(1);
        checker.report.adjacency = checker.adjacent as f64 / links as f64;
        checker.report.leaf_fill = checker.used as f64 / checker.capacity.max(1) as f64;
        Ok(checker.report)
    }
}

impl Checker<'_> {
    fn copy(&self, id: PageId) -> Result<Box<PageBytes>> {
        let _alive = self.tree.pool.enter();
        let page = self.tree.pool.read_hinted(id, false)?;
        Node(&page).validate().map_err(|reason| Error::corrupt(id, reason))?;
        let mut copy: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        *copy = *page;
        Ok(copy)
    }

    /// Walks one level by its right links beside what the level above expects; returns what it expects of the level below.
    fn level(&mut self, expected: &[Expected], number: u8) -> Result<Vec<Expected>> {
        let mut below = Vec::new();
        let mut posted = expected.iter().peekable();
        let mut id = expected[0].id;
        let mut low: Vec<u8> = Vec::new();
        let mut after_incomplete = false;
        loop {
            if !self.tree.pool.geometry().is_data_page(id) {
                return Err(Error::corrupt(id, "a link leads outside the image"));
            }
            if !self.seen.insert(id) {
                return Err(Error::corrupt(id, "page is reached twice"));
            }
            let page = self.copy(id)?;
            let node = as_node(id, &page, number)?;
            if node.is_dead() {
                return Err(Error::corrupt(id, "a dead page is in the tree"));
            }
            if node.low() != low {
                return Err(Error::corrupt(id, "low fence is not the left sibling's high key"));
            }
            match posted.next_if(|e| e.id == id) {
                Some(e) if e.low != low => {
                    return Err(Error::corrupt(id, "separator in the parent is not the page's low fence"));
                }
                Some(_) if after_incomplete => {
                    return Err(Error::corrupt(
                        id,
                        "left sibling's split is marked incomplete, but the separator is there",
                    ));
                }
                None if !after_incomplete => {
                    return Err(Error::corrupt(id, "page has no separator in a parent"));
                }
                _ => {}
            }
            self.count(node, &mut below);
            after_incomplete = node.is_incomplete();
            let Some(high) = node.high() else { break };
            low = high.to_vec();
            self.adjacent += (number == 0 && node.right().0 == id.0 + 1) as u64;
            id = node.right();
        }
        match posted.next() {
            Some(e) => {
                Err(Error::corrupt(e.id, "a parent points to a page that is not in its level's chain"))
            }
            None => Ok(below),
        }
    }

    fn count(&mut self, node: Node<'_>, below: &mut Vec<Expected>) {
        let report = &mut self.report;
        report.incomplete_splits += node.is_incomplete() as u64;
        if node.level() > 0 {
            report.inner_pages += 1;
            below.extend((0..node.count()).map(|i| Expected { id: node.child(i), low: node.key(i) }));
            return;
        }
        report.leaves += 1;
        report.records += node.count() as u64;
        self.used += node.used();
        self.capacity += node.capacity();
        let prefix = node.prefix().len();
        for i in 0..node.count() {
            report.record_bytes += (prefix + node.suffix(i).len() + node.value(i).len()) as u64;
        }
    }

    /// Every reachable page is in use; what else is in use is data.
    fn bitmaps(&mut self) -> Result<()> {
        let pool = &self.tree.pool;
        let mut found = 0;
        for group in 0..pool.groups() {
            let id = pool.geometry().bitmap_page(group);
            let _alive = pool.enter();
            let page = pool.read_hinted(id, false)?;
            let bitmap = Bitmap(&page);
            bitmap.validate().map_err(|reason| Error::corrupt(id, reason))?;
            let first = id.block().0;
            let mut i = BLOCKS_PER_PAGE;
            while i < pool.geometry().group_blocks(group) {
                let block = BlockNo(first + i as u64);
                match block.page().filter(|p| self.seen.contains(p)) {
                    Some(page) => {
                        if bitmap.state(i, BLOCKS_PER_PAGE) != Some(true) {
                            return Err(Error::corrupt(page, "page of the tree is not marked as in use"));
                        }
                        found += 1;
                        i += BLOCKS_PER_PAGE;
                        continue;
                    }
                    None if bitmap.in_use(i) => match self.report.data.last_mut() {
                        Some(run) if run.end() == block => run.len += 1,
                        _ => self.report.data.push(Run { start: block, len: 1 }),
                    },
                    None => {}
                }
                i += 1;
            }
        }
        if found != self.seen.len() {
            return Err(Error::corrupt("tree", "it reaches pages in groups that have no bitmap"));
        }
        Ok(())
    }
}
