//! Structure modifications: split, root growth, posting of separators, merge, root shrink. Each is one log record that leaves
//! a legal tree, so a crash between any two of them is harmless; what is unfinished, later writers finish.

use super::Tree;
use super::apply::split_log;
use super::descend::{Target, as_node};
use crate::defects::Defect;
use crate::error::{Error, Result};
use crate::page::format::*;
use crate::page::node::{Covers, Node, NodeBuilder, NodeSpec, separator};
use crate::page::op::{self, OP_HEAD, Op, SECTION_HEAD};
use crate::page::{Lsn, PAGE_SIZE, PageBytes, PageId};
use crate::pool::{Need, PageWrite, Pin, Reservation};
use crate::sync::atomic::Ordering;
use crate::wal::Log;

/// A record that is about to be put into a page that is being split.
#[derive(Clone, Copy)]
pub(super) struct Pending<'b> {
    pub key: &'b [u8],
    /// The value's length.
    pub value: usize,
}

/// Work on the tree's shape that is done with nothing held.
#[derive(Debug)]
pub(super) enum Repair {
    /// The page of `level` that covers `low` has an incomplete split.
    Post { level: u8, low: Vec<u8> },
    /// The page of `level` that covers `key` is nearly empty.
    Merge { level: u8, key: Vec<u8> },
}

/// What is to be done about the right half of a split that has inherited the mark of an earlier one: the repair that was due to that
/// finds the left half.
pub(super) fn inherited(right: Node<'_>) -> Option<Repair> {
    right.is_incomplete().then(|| Repair::Post { level: right.level(), low: right.low().to_vec() })
}

/// Merging is worth it below 35 % fill.
pub(super) fn is_underfull(node: Node<'_>) -> bool {
    node.used() * 100 < node.capacity() * 35
}
/// A merged page must leave room, or the next inserts would split it again.
const MERGED_MAX: usize = PAGE_SIZE / 100 * 85;
/// After so many inserts in a row behind the last record, a page is split at its end.
const APPENDS_MIN: u16 = 4;
/// Pages that what is to go into a page fills at the most before a split of it: whatever comes then, the left half is full.
pub(super) const PENDING_MAX: usize = 2;
/// Attempts at one repair before it is left to later writers.
const ATTEMPTS: usize = 16;

/// Where to split a page into which `pending` is to go, in the order of the keys: the new right page's low fence. What comes after
/// the first [`PENDING_MAX`] pages' worth makes no difference.
///
/// Pages that are filled in key order are split at their end, others by bytes. In an inner page the separator is an existing
/// key, because its right half must begin with its low fence (N4). A new fence may be long, and the longest keys of a full page
/// often are: both halves must have room for it.
fn choose_separator(node: Node<'_>, pending: &[Pending<'_>]) -> Option<Vec<u8>> {
    /// A record that the page has or is to get, and what lies left of it.
    struct Item<'a> {
        suffix: &'a [u8],
        is_there: bool,
        /// Bytes left of it once all are there.
        left: usize,
        /// Bytes and records left of it by now.
        there: usize,
        count: usize,
    }
    let prefix = node.prefix().len();
    let inner = node.level() > 0;
    let mut items: Vec<Item<'_>> = Vec::with_capacity(node.count() + pending.len());
    let (mut left, mut there, mut count) = (0, 0, 0);
    let mut add = |suffix, size, size_there: Option<usize>| {
        items.push(Item { suffix, is_there: size_there.is_some(), left, there, count });
        left += size;
        there += size_there.unwrap_or(0);
        count += size_there.is_some() as usize;
    };
    let size_of = |p: &Pending<'_>| node.size_of(p.key.len(), p.value);
    let mut new = pending.iter().peekable();
    let mut appending = node.appends() >= APPENDS_MIN;
    for i in 0..node.count() {
        let suffix = node.suffix(i);
        while let Some(p) = new.next_if(|p| &p.key[prefix..] < suffix) {
            add(&p.key[prefix..], size_of(p), None);
            appending = false;
        }
        let size = node.record_size(i);
        let replaced = new.next_if(|p| &p.key[prefix..] == suffix).map_or(0, size_of);
        add(suffix, size.max(replaced), Some(size));
    }
    new.for_each(|p| add(&p.key[prefix..], size_of(p), None));
    let limit = node.capacity() / 100 * 95;
    let half = left * (100 + jitter(node.id())) / 256;
    let target = if appending { limit } else { half.min(node.capacity() / 3 * 2) };
    // From the target outwards, until both halves fit.
    let may_begin = |i: &usize| *i > 0 && (items[*i].is_there || !inner);
    let middle = items.partition_point(|item| item.left < target);
    let mut below = (0..middle).rev().filter(may_begin).peekable();
    let mut above = (middle..items.len()).filter(may_begin).peekable();
    loop {
        let i = match (below.peek(), above.peek()) {
            (Some(b), Some(a)) if target - items[*b].left > items[*a].left - target => above.next(),
            (None, _) => above.next(),
            _ => below.next(),
        }?;
        let right = items[i].suffix;
        let suffix = if inner { right } else { separator(items[i - 1].suffix, right) };
        let key = [node.prefix(), suffix].concat();
        if halves_fit(node, &key, items[i].there, items[i].count) {
            return Some(key);
        }
    }
}

/// Whether both halves of a split at `key` fit into their pages, if the left one gets `count` records of `bytes`.
fn halves_fit(node: Node<'_>, key: &[u8], bytes: usize, count: usize) -> bool {
    node.size_between(node.low(), Some(key), bytes, count) <= PAGE_SIZE
        && node.size_between(key, node.high(), node.used() - bytes, node.count() - count) <= PAGE_SIZE
}

/// 0 to 56, different from page to page. Pages that all split in the middle fill up and split in step with one another, and
/// the tree's fill swings between 50 and 100 %; splitting at 39 to 61 % keeps it near the mean, ln 2.
fn jitter(id: PageId) -> usize {
    (id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % 57
}

/// Builds a page from the records of `from` that lie in `range`.
fn build(
    page: &mut PageBytes,
    spec: NodeSpec<'_>,
    from: Node<'_>,
    range: std::ops::Range<usize>,
) -> Result<()> {
    let mut builder = NodeBuilder::new(page, spec);
    for i in range {
        if !builder.push_from(from, i) {
            return Err(Error::corrupt(from.id(), "records of one page do not fit into another"));
        }
    }
    builder.finish();
    Ok(())
}

fn section(body: &mut Vec<u8>, page: PageId, op: Op<'_>) {
    let begun = op::begin_section(body, page);
    op.encode(body);
    op::end_section(body, begun);
}

impl Tree {
    fn allocation(&self, page: PageId) -> Op<'static> {
        let start = self.pool.within_group(page.run());
        Op::Allocate { start, len: BLOCKS_PER_PAGE, pages: self.pool.marks_chunk(page) }
    }

    /// Splits a page that is not the root, and returns the new right page, latched; `None` if no page is reserved.
    /// On entry and exit `left` is latched exclusively. The separator is still to be posted.
    pub(super) fn split<'p>(
        &'p self,
        reservation: &mut Reservation<'p>,
        left: &mut PageWrite<'p>,
        pending: &[Pending<'_>],
    ) -> Result<Option<PageWrite<'p>>> {
        let node = Node(left);
        let Some(key) = choose_separator(node, pending) else {
            return Err(Error::corrupt(node.id(), "a page is full and has nothing to split"));
        };
        let Some((id, mut right)) = reservation.new_page()? else { return Ok(None) };
        let at = node.search(&key).unwrap_or_else(|i| i);
        let spec = NodeSpec { id, flags: node.flags() & FLAG_INCOMPLETE, low: &key, ..node.spec() };
        let mut image: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        build(&mut image, spec, node, at..node.count())?;
        // Whoever appends goes on in the right page.
        put_u16(&mut image[..], OFF_APPENDS, node.appends());
        let mut packed = Vec::with_capacity(PAGE_SIZE);
        Node(&image).pack(&mut packed);
        let mut body = Vec::with_capacity(packed.len() + 128);
        section(&mut body, node.id(), Op::Truncate { high: &key, right: id });
        if self.pool.defects().has(Defect::PostWithoutSplit) {
            *right = *image;
        } else {
            section(&mut body, id, Op::Image(&packed));
        }
        let mut bitmap = reservation.latch_bitmap_of(id)?;
        self.pool.expect_state(&bitmap, id.run(), false)?;
        section(&mut body, bitmap.header().page(), self.allocation(id));
        reservation.commit(&mut [left, &mut right, &mut bitmap], &body);
        self.stats.splits.fetch_add(1, Ordering::Relaxed);
        Ok(Some(right))
    }

    /// Moves the root's records into two new children: the tree grows by a level. On entry and exit the root is latched exclusively;
    /// two pages are reserved.
    pub(super) fn grow_root<'p>(
        &'p self,
        reservation: &mut Reservation<'p>,
        root: &mut PageWrite<'p>,
        pending: &[Pending<'_>],
    ) -> Result<()> {
        let node = Node(root);
        let Some(key) = choose_separator(node, pending) else {
            return Err(Error::corrupt(node.id(), "the root is full and has nothing to split"));
        };
        let (Some((a, mut left)), Some((b, mut right))) = (reservation.new_page()?, reservation.new_page()?)
        else {
            return Ok(());
        };
        let at = node.search(&key).unwrap_or_else(|i| i);
        let mut image: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let mut body = Vec::with_capacity(2 * PAGE_SIZE);
        let mut packed = Vec::with_capacity(PAGE_SIZE);
        let spec = NodeSpec { id: a, high: Some(&key), right: b, ..node.spec() };
        build(&mut image, spec, node, 0..at)?;
        Node(&image).pack(&mut packed);
        section(&mut body, a, Op::Image(&packed));
        let spec = NodeSpec { id: b, low: &key, ..node.spec() };
        build(&mut image, spec, node, at..node.count())?;
        packed.clear();
        Node(&image).pack(&mut packed);
        section(&mut body, b, Op::Image(&packed));
        let level = node.level() + 1;
        if level > LEVEL_MAX {
            return Err(Error::corrupt(node.id(), "tree too high"));
        }
        let mut builder = NodeBuilder::new(&mut image, NodeSpec { level, ..node.spec() });
        let fits = builder.push(node.low(), &a.0.to_be_bytes()) && builder.push(&key, &b.0.to_be_bytes());
        builder.finish();
        debug_assert!(fits, "two children fit into a root");
        packed.clear();
        Node(&image).pack(&mut packed);
        section(&mut body, node.id(), Op::Image(&packed));
        let (low, high) = (a.min(b), a.max(b));
        let mut bitmap = reservation.latch_bitmap_of(low)?;
        self.pool.expect_state(&bitmap, low.run(), false)?;
        let begun = op::begin_section(&mut body, bitmap.header().page());
        self.allocation(low).encode(&mut body);
        if self.pool.bitmap_of(low.run()) == self.pool.bitmap_of(high.run()) {
            self.pool.expect_state(&bitmap, high.run(), false)?;
            self.allocation(high).encode(&mut body);
            op::end_section(&mut body, begun);
            reservation.commit(&mut [&mut left, &mut right, root, &mut bitmap], &body);
        } else {
            op::end_section(&mut body, begun);
            let mut second = reservation.latch_bitmap_of(high)?;
            self.pool.expect_state(&second, high.run(), false)?;
            section(&mut body, second.header().page(), self.allocation(high));
            reservation.commit(&mut [&mut left, &mut right, root, &mut bitmap, &mut second], &body);
        }
        self.stats.root_growths.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Does what is due, as far as it can be done now. Held on entry: nothing. What fails is left to later writers:
    /// every state is legal.
    pub(super) fn repair(&self, repairs: &mut Vec<Repair>) {
        while let Some(repair) = repairs.pop() {
            let done = match &repair {
                Repair::Post { level, low } => self.post(*level, low, repairs),
                Repair::Merge { level, key } => self.merge(*level, key, repairs),
            };
            if let Err(error) = done {
                log::debug!("{repair:?} is left to later writers: {error}");
                if error.is_corrupt() {
                    log::error!("{error}");
                }
            }
        }
    }

    /// Posts the separator of an incomplete split to the parent, and clears the flag, in one record.
    fn post(&self, level: u8, low: &[u8], repairs: &mut Vec<Repair>) -> Result<()> {
        for attempt in 0..ATTEMPTS {
            // The parent nearly always has room. Where pages are scarce, waiting for two would keep the halves from merging.
            let pages = if attempt == 0 { 0 } else { 2 };
            let own = Log::record_size(KEY_MAX + 2 * (SECTION_HEAD + OP_HEAD) + 8);
            let need = Need { frames: 2, pages, log: own + pages as u64 * split_log() };
            let mut reservation = self.pool.reserve(need)?;
            let alive = self.pool.enter();
            let Some(found) = self.find(&alive, Target::Covering(low), level, true)? else { return Ok(()) };
            let node = Node(&found.page);
            let (true, Some(key)) = (node.is_incomplete(), node.high().map(<[u8]>::to_vec)) else {
                return Ok(());
            };
            let left = found.page.pin();
            drop(found);
            let Some(found) = self.find(&alive, Target::Covering(&key), level + 1, true)? else {
                return Ok(());
            };
            let parent = found.page.pin();
            drop(found);
            if self.try_post(&mut reservation, &left, &parent, &key, level, repairs)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One attempt at [`Tree::post`]; `false`: the pages have moved on. Latches left page, then parent, then bitmap.
    fn try_post<'p>(
        &'p self,
        reservation: &mut Reservation<'p>,
        left: &Pin<'p>,
        parent: &Pin<'p>,
        key: &[u8],
        level: u8,
        repairs: &mut Vec<Repair>,
    ) -> Result<bool> {
        let mut left = self.pool.latch(left);
        let node = Node(&left);
        if node.is_dead() || !node.is_incomplete() || node.high() != Some(key) {
            return Ok(false);
        }
        let right = node.right();
        let mut parent = self.pool.latch(parent);
        let above = Node(&parent);
        if above.is_dead() || above.level() != level + 1 || above.covers(key) != Covers::Inside {
            return Ok(false);
        }
        let mut sibling = None;
        if above.growth(key, 8) > above.free() {
            let pending = [Pending { key, value: 8 }];
            if above.id() == self.root() {
                self.grow_root(reservation, &mut parent, &pending)?;
                return Ok(false);
            }
            let low = above.low().to_vec();
            let Some(new) = self.split(reservation, &mut parent, &pending)? else { return Ok(false) };
            repairs.push(Repair::Post { level: level + 1, low });
            repairs.extend(inherited(Node(&new)));
            sibling = Some(new);
        }
        let above = match &mut sibling {
            Some(new) if Node(new).covers(key) == Covers::Inside => new,
            _ => &mut parent,
        };
        let mut body = Vec::new();
        section(&mut body, node.id(), Op::SplitDone);
        section(&mut body, Node(above).id(), Op::Put { key, value: &right.0.to_be_bytes() });
        reservation.commit(&mut [&mut left, above], &body);
        self.stats.posts.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Pins the page of `level` that a parent names, together with its low fence. Neither changes while an operation is
    /// alive, so the pages of a merge are different ones, and are latched in the order of the contract, whatever the image holds.
    fn pin_child(&self, id: PageId, level: u8, low: &[u8]) -> Result<Pin<'_>> {
        if !self.pool.geometry().is_data_page(id) || !self.pool.is_valid_run(id.run()) {
            return Err(Error::corrupt(id, "a parent names it, but the image has no such page"));
        }
        let page = self.pool.read(id)?;
        if as_node(id, &page, level)?.low() != low {
            return Err(Error::corrupt(id, "its low fence is not the separator in its parent"));
        }
        Ok(page.pin())
    }

    /// Merges the page of `level` that covers `key` with its right sibling under the same parent, or else with its left one, if
    /// both fit into one page. Without the left one a row of pages that are emptied from left to right would stay.
    fn merge(&self, level: u8, key: &[u8], repairs: &mut Vec<Repair>) -> Result<()> {
        for with_right in [true, false] {
            for _ in 0..ATTEMPTS {
                match self.merge_once(level, key, with_right, repairs)? {
                    Merged::Done => return Ok(()),
                    Merged::Useless => break,
                    Merged::Moved => {}
                }
            }
        }
        Ok(())
    }

    fn merge_once(
        &self,
        level: u8,
        key: &[u8],
        with_right: bool,
        repairs: &mut Vec<Repair>,
    ) -> Result<Merged> {
        let need = Need {
            frames: 4,
            pages: 0,
            log: Log::record_size(PAGE_SIZE + KEY_MAX + 4 * (SECTION_HEAD + OP_HEAD)),
        };
        let mut reservation = self.pool.reserve(need)?;
        let alive = self.pool.enter();
        let Some(found) = self.find(&alive, Target::Covering(key), level + 1, true)? else {
            return Ok(Merged::Done);
        };
        let parent = Node(&found.page);
        if parent.count() == 1 {
            let is_root = parent.id() == self.root();
            drop(found);
            if is_root {
                self.shrink_root(&mut reservation)?;
            }
            return Ok(Merged::Done);
        }
        let at = parent.child_index(key);
        let at = match with_right {
            true if at + 1 < parent.count() => at,
            false if at > 0 => at - 1,
            _ => return Ok(Merged::Useless),
        };
        let (left, right) = (parent.child(at), parent.child(at + 1));
        let (low, boundary) = (parent.key(at), parent.key(at + 1));
        let parent = found.page.pin();
        drop(found);
        let pages = Siblings {
            left: self.pin_child(left, level, &low)?,
            right: self.pin_child(right, level, &boundary)?,
            bitmap: self.pool.pin_bitmaps(std::iter::once(right.run()))?,
            parent,
        };
        let merged = self.try_merge(&mut reservation, &pages, &boundary, level, repairs)?;
        drop((pages, alive));
        Ok(match merged {
            None => Merged::Moved,
            Some(None) => Merged::Useless,
            Some(Some(lsn)) => {
                self.pool.page_freed(lsn, right);
                Merged::Done
            }
        })
    }

    /// One attempt at a merge. `None`: the pages have moved on; `Some(None)`: there is nothing to merge.
    /// Latches left, right, parent, bitmap, in this order.
    fn try_merge<'p>(
        &'p self,
        reservation: &mut Reservation<'p>,
        pages: &Siblings<'p>,
        boundary: &[u8],
        level: u8,
        repairs: &mut Vec<Repair>,
    ) -> Result<Option<Option<Lsn>>> {
        let mut left = self.pool.latch(&pages.left);
        let (l, right_id) = (Node(&left), pages.right.page());
        if l.is_dead() || l.level() != level || l.high() != Some(boundary) || l.right() != right_id {
            return Ok(if l.is_incomplete() { Some(None) } else { None });
        }
        let mut right = self.pool.latch(&pages.right);
        let mut parent = self.pool.latch(&pages.parent);
        let (r, p) = (Node(&right), Node(&parent));
        if r.is_dead() || p.is_dead() || p.level() != level + 1 || p.covers(boundary) != Covers::Inside {
            return Ok(None);
        }
        match p.search(boundary) {
            Ok(i) if i > 0 && p.child(i) == right_id => {}
            _ => return Ok(None),
        }
        // An empty page costs its neighbour nothing, however full that is.
        let limit = if l.count() == 0 || r.count() == 0 { PAGE_SIZE } else { MERGED_MAX };
        let fits = l.merged_size(r).is_some_and(|size| size <= limit);
        if l.is_incomplete() || r.is_incomplete() || !fits || !(is_underfull(l) || is_underfull(r)) {
            return Ok(Some(None));
        }
        let mut packed = Vec::with_capacity(PAGE_SIZE);
        r.pack(&mut packed);
        let mut body = Vec::with_capacity(packed.len() + 128);
        section(&mut body, l.id(), Op::Absorb(&packed));
        section(&mut body, right_id, Op::Kill);
        section(&mut body, p.id(), Op::Delete { key: boundary });
        let mut bitmap = self.pool.latch(&pages.bitmap[0]);
        self.pool.expect_state(&bitmap, right_id.run(), true)?;
        let start = self.pool.within_group(right_id.run());
        section(&mut body, bitmap.header().page(), Op::Free { start, len: BLOCKS_PER_PAGE });
        let lsn = reservation.commit(&mut [&mut left, &mut right, &mut parent, &mut bitmap], &body);
        self.stats.merges.fetch_add(1, Ordering::Relaxed);
        let l = Node(&left);
        if is_underfull(l) {
            repairs.push(Repair::Merge { level, key: l.low().to_vec() });
        }
        let p = Node(&parent);
        if is_underfull(p) || p.count() == 1 {
            repairs.push(Repair::Merge { level: level + 1, key: p.low().to_vec() });
        }
        if p.id() == self.root() && p.count() == 1 {
            repairs.push(Repair::Merge { level, key: Vec::new() });
        }
        Ok(Some(Some(lsn)))
    }

    /// The root takes over its only child's records, if that child has no right sibling: the tree shrinks by a level.
    fn shrink_root<'p>(&'p self, reservation: &mut Reservation<'p>) -> Result<()> {
        let root = self.pool.read(self.root())?;
        let node = Node(&root);
        if node.level() == 0 || node.count() != 1 {
            return Ok(());
        }
        let (id, level, low) = (node.child(0), node.level() - 1, node.low().to_vec());
        let root_pin = root.pin();
        drop(root);
        let child_pin = self.pin_child(id, level, &low)?;
        let bitmap = self.pool.pin_bitmaps(std::iter::once(id.run()))?;
        let mut child = self.pool.latch(&child_pin);
        let mut root = self.pool.latch(&root_pin);
        let (c, node) = (Node(&child), Node(&root));
        if c.is_dead() || c.right().is_some() || node.count() != 1 || node.child(0) != id {
            return Ok(());
        }
        let mut image: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        build(&mut image, NodeSpec { id: node.id(), ..c.spec() }, c, 0..c.count())?;
        let mut packed = Vec::with_capacity(PAGE_SIZE);
        Node(&image).pack(&mut packed);
        let mut body = Vec::with_capacity(packed.len() + 128);
        section(&mut body, id, Op::Kill);
        section(&mut body, node.id(), Op::Image(&packed));
        let mut bitmap = self.pool.latch(&bitmap[0]);
        self.pool.expect_state(&bitmap, id.run(), true)?;
        let start = self.pool.within_group(id.run());
        section(&mut body, bitmap.header().page(), Op::Free { start, len: BLOCKS_PER_PAGE });
        let lsn = reservation.commit(&mut [&mut child, &mut root, &mut bitmap], &body);
        drop((child, root, bitmap));
        drop((child_pin, root_pin));
        self.pool.page_freed(lsn, id);
        self.stats.root_shrinks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// How an attempt at a merge ended.
enum Merged {
    Done,
    /// The two pages do not fit into one, or there is no sibling on that side.
    Useless,
    /// The pages have moved on.
    Moved,
}

/// The pages of a merge, pinned.
struct Siblings<'p> {
    left: Pin<'p>,
    right: Pin<'p>,
    parent: Pin<'p>,
    bitmap: Vec<Pin<'p>>,
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    //! What another thread may have done between a search and the latches: the pages of an earlier look are given to the attempt.

    use super::*;
    use crate::page::format::KEY_MAX;
    use crate::tree::Batch;
    use crate::tree::tests::{image, quiet};

    fn key(n: u32) -> [u8; 4] {
        n.to_be_bytes()
    }

    fn tree_of(records: u32) -> Tree {
        let tree = Tree::open(image(64 << 20, 1 << 20), &quiet(600)).unwrap();
        for n in 0..records {
            let mut batch = Batch::new();
            batch.put(&key(n), &[n as u8; 3900]);
            tree.apply(&batch).unwrap();
        }
        tree
    }

    fn expect_records(tree: &Tree, records: std::ops::Range<u32>) {
        for n in records {
            assert!(tree.get(&key(n)).unwrap().is_some_and(|value| value[0] == n as u8), "{n}");
        }
        tree.check().unwrap();
    }

    fn pin<'p>(tree: &'p Tree, key: &[u8], level: u8) -> Pin<'p> {
        let alive = tree.pool.enter();
        tree.find(&alive, Target::Covering(key), level, true).unwrap().unwrap().page.pin()
    }

    fn reserve(tree: &Tree) -> Reservation<'_> {
        let log = Log::record_size(PAGE_SIZE + 4 * (KEY_MAX + SECTION_HEAD + OP_HEAD)) + split_log();
        tree.pool.reserve(Need { frames: 4, pages: 1, log }).unwrap()
    }

    /// Splits the leaf that covers a key, and leaves the separator to others: the left half, and the separator.
    fn half_split<'p>(tree: &'p Tree, covered: &[u8]) -> (Pin<'p>, Vec<u8>) {
        let leaf = pin(tree, covered, 0);
        let mut reservation = reserve(tree);
        let mut left = tree.pool.latch(&leaf);
        let right = tree.split(&mut reservation, &mut left, &[]).unwrap().unwrap();
        let separator = Node(&right).low().to_vec();
        drop((left, right));
        (leaf, separator)
    }

    /// Its separator in the wrong parent would lead searches there, and none to the right half.
    #[test]
    fn a_separator_is_posted_to_no_parent_that_has_been_split_meanwhile() {
        let tree = tree_of(8000);
        let last = pin(&tree, &key(7999), 1);
        let (left, separator) = half_split(&tree, &key(40));
        let parent = pin(&tree, &separator, 1);
        assert!(parent.page() != last.page(), "there is one parent only");
        let mut repairs = Vec::new();
        for (parent, expected) in [(&last, false), (&parent, true), (&parent, false)] {
            let mut reservation = reserve(&tree);
            let posted = tree.try_post(&mut reservation, &left, parent, &separator, 0, &mut repairs).unwrap();
            assert_eq!(posted, expected);
        }
        assert!(repairs.is_empty());
        drop((last, left, parent));
        expect_records(&tree, 0..8000);
        assert_eq!(tree.check().unwrap().incomplete_splits, 0);
    }

    /// The root would have the left half's records alone.
    #[test]
    fn a_root_does_not_take_over_an_only_child_that_has_been_split_meanwhile() {
        let tree = tree_of(5);
        assert_eq!(tree.check().unwrap().leaves, 2);
        // The left leaf is half full then, and the right one has one record.
        for n in 0..2 {
            let mut batch = Batch::new();
            batch.delete(&key(n));
            tree.apply(&batch).unwrap();
        }
        let mut repairs = Vec::new();
        tree.merge_once(0, &key(0), true, &mut repairs).unwrap();
        let shrinks = || tree.stats.root_shrinks.load(Ordering::Relaxed);
        assert_eq!((tree.stats.merges.load(Ordering::Relaxed), shrinks()), (1, 0));
        // Here another thread comes in.
        half_split(&tree, &key(0));
        tree.merge_once(0, &key(0), true, &mut repairs).unwrap();
        assert_eq!(shrinks(), 0);
        expect_records(&tree, 2..5);
    }
}
