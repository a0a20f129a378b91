//! `apply`: the only way to change the tree.
//!
//! 1. Reserve frames, pages and log space, with nothing held.
//! 2. Find and pin the leaves; all reading from disk happens here.
//! 3. Latch them exclusively from left to right; split those in which the changes do not fit.
//! 4. Latch the bitmap pages, append one record, change the pages.
//! 5. With nothing held: post separators and merge, each a transaction of its own (`smo.rs`).
//!
//! If a leaf has moved on between 2 and 3, or more splits are needed than were reserved, everything is given up and done again:
//! splits made so far are legal states, and nothing else has been changed.

use super::Tree;
use super::batch::{Batch, Change};
use super::descend::Target;
use super::smo::{PENDING_MAX, Pending, Repair, inherited};
use crate::error::{Error, Result};
use crate::page::node::{Covers, Node};
use crate::page::op::{self, OP_HEAD, Op, SECTION_HEAD};
use crate::page::{Lsn, PAGE_SIZE, Run};
use crate::pool::{Alive, Need, PageWrite, Pin, Reservation};
use crate::wal::Log;

/// Log space that one split takes at the most: the right page's image, the new high key, a bitmap change.
pub(super) fn split_log() -> u64 {
    Log::record_size(PAGE_SIZE + crate::page::format::KEY_MAX + 3 * (SECTION_HEAD + OP_HEAD))
}

/// A batch that has to begin again so often does so because of damage.
const ATTEMPTS_MAX: usize = 10_000;

/// A pinned leaf and the changes that fall into it.
struct PinnedLeaf<'p> {
    pin: Pin<'p>,
    from: usize,
    to: usize,
}

/// A latched leaf and the changes that go into it; they fit.
struct Latched<'p> {
    page: PageWrite<'p>,
    from: usize,
    to: usize,
    /// How full it was before, in steps.
    fill: usize,
}

/// How full a leaf is, in twentieths.
fn fill(node: Node<'_>) -> usize {
    node.used() * 20 / node.capacity()
}

/// Whether a leaf's changes fit.
enum Room {
    Made,
    /// The leaf no longer covers them, or the tree has grown: find them again.
    Moved,
    /// More splits are needed than were reserved.
    TooFewPages,
}

enum Attempt {
    Done(Lsn),
    /// Again, with so many pages reserved for splits.
    Again(usize),
}

impl Tree {
    /// Applies a batch: all of it or, on error, nothing. It is visible to others when this returns, and durable after
    /// [`Tree::commit`] of the LSN.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a batch, a record or a key over the limits; [`Error::NoSpace`]; the latched error after a failed
    /// write; damage found on the way.
    pub fn apply(&self, batch: &Batch) -> Result<Lsn> {
        let changes = batch.changes()?;
        self.check_runs(batch)?;
        let mut index = self.index.optimistic_writer();
        let mut repairs = Vec::new();
        // A few changes seldom split a leaf, and to set pages aside costs as much as a search: they begin without. Deletions
        // alone need none at all, so that they work in a full image.
        let puts = changes.iter().filter(|c| c.value.is_some()).count();
        let mut first = (puts / 16).min(self.splits_beside(batch, &changes));
        let mut splits = if index.may_restructure() { first } else { 0 };
        let mut attempts = 0;
        let result = loop {
            attempts += 1;
            if attempts > ATTEMPTS_MAX {
                break Err(Error::corrupt("tree", "a change finds no leaf: fences contradict each other"));
            }
            match self.try_apply(&changes, batch, splits, &mut repairs) {
                Ok(Attempt::Done(lsn)) => break Ok(lsn),
                Ok(Attempt::Again(_)) if !index.may_restructure() => {
                    drop(index);
                    index = self.index.writer();
                    splits = first;
                }
                Ok(Attempt::Again(more)) => {
                    splits = more;
                    self.repair(&mut repairs);
                }
                // It may need no page at all, as where records are only replaced.
                Err(Error::NoSpace) if splits > 0 && splits == first => (first, splits) = (0, 0),
                Err(e) => break Err(e),
            }
        };
        if !repairs.is_empty() {
            if !index.may_restructure() {
                drop(index);
                index = self.index.writer();
            }
            self.repair(&mut repairs);
        }
        drop(index);
        self.pool.nudge();
        #[cfg(feature = "defects")]
        if let Ok(lsn) = &result
            && crate::defects::timer_fires()
        {
            self.commit(*lsn)?;
        }
        result
    }

    /// The frames and the log that a batch itself needs at the most: every change in a leaf of its own.
    fn need_of(batch: &Batch, changes: &[Change<'_>]) -> Need {
        let runs = batch.allocated().len() + batch.freed().len();
        let body = batch.size() + (changes.len() + runs + batch.data().len()) * (SECTION_HEAD + OP_HEAD);
        Need { frames: changes.len() + runs, pages: 0, log: Log::record_size(body) }
    }

    /// How many splits can be reserved together with a batch.
    fn splits_beside(&self, batch: &Batch, changes: &[Change<'_>]) -> usize {
        let need = Self::need_of(batch, changes);
        let frames = self.pool.dirty_max().saturating_sub(need.frames) / 2;
        let log = self.pool.log.reservation_max().saturating_sub(need.log) / split_log();
        frames.min(log as usize)
    }

    fn check_runs(&self, batch: &Batch) -> Result<()> {
        for run in batch.allocated().iter().chain(batch.freed()) {
            if !self.pool.is_valid_run(*run) {
                return Err(Error::corrupt(run, "a batch names blocks that the image does not have"));
            }
        }
        for runs in [batch.allocated(), batch.freed()] {
            let mut runs = runs.to_vec();
            runs.sort_unstable();
            if let Some(twice) = runs.windows(2).find(|w| w[0].end() > w[1].start) {
                return Err(Error::corrupt(twice[1], "a batch names blocks twice"));
            }
        }
        Ok(())
    }

    fn try_apply(
        &self,
        changes: &[Change<'_>],
        batch: &Batch,
        splits: usize,
        repairs: &mut Vec<Repair>,
    ) -> Result<Attempt> {
        let runs = batch.allocated().len() + batch.freed().len();
        let own = Self::need_of(batch, changes);
        let need = Need { pages: splits, log: own.log + splits as u64 * split_log(), ..own };
        let mut reservation = self.pool.reserve(need)?;
        let bitmaps = if runs > 0 {
            self.pool.pin_bitmaps(batch.allocated().iter().chain(batch.freed()).copied())?
        } else {
            Vec::new()
        };
        let alive = self.pool.enter();
        let Some(targets) = self.find_leaves(&alive, changes, repairs)? else {
            return Ok(Attempt::Again(splits));
        };
        let mut latched = Vec::with_capacity(targets.len() + splits.min(8));
        match self.latch_leaves(&mut reservation, changes, &targets, &mut latched, repairs)? {
            Room::Made => {}
            Room::Moved => return Ok(Attempt::Again(splits)),
            Room::TooFewPages => {
                // A root's growth takes two. If it takes more than there can be, splits of an attempt that was given up stay, so each
                // attempt gets further.
                let more = (splits * 2).clamp(1, self.splits_beside(batch, changes).max(2));
                return Ok(Attempt::Again(more));
            }
        }
        let lsn = self.log_and_change(&mut reservation, changes, batch, &mut latched, &bitmaps)?;
        for leaf in &latched {
            let node = Node(&leaf.page);
            // Where its neighbours are too full for a merge, not every deletion is to try one.
            let emptied = fill(node) < leaf.fill || node.count() == 0;
            if emptied && super::smo::is_underfull(node) {
                repairs.push(Repair::Merge { level: 0, key: node.low().to_vec() });
            }
        }
        drop(latched);
        drop(targets);
        drop(alive);
        for run in batch.freed() {
            self.pool.run_freed(lsn, *run);
        }
        Ok(Attempt::Done(lsn))
    }

    /// Step 2. The leaves of all changes, from left to right; `None` if they change meanwhile, so that they must be found again. Latches
    /// held on entry and exit: none.
    fn find_leaves<'p>(
        &'p self,
        alive: &Alive<'p>,
        changes: &[Change<'_>],
        repairs: &mut Vec<Repair>,
    ) -> Result<Option<Vec<PinnedLeaf<'p>>>> {
        let mut targets: Vec<PinnedLeaf<'_>> = Vec::with_capacity(changes.len().min(64));
        let (mut at, mut high) = (0, Vec::new());
        let (mut pages_read, mut announced) = (self.pool.pages_read(), 0);
        while at < changes.len() {
            // One leaf was not in the pool, so others may not be either: those are read side by side.
            if at >= announced && self.pool.pages_read() != pages_read {
                let rest = changes[at..].iter().map(|c| c.key);
                announced = at + self.read_leaves_ahead(alive, rest)?;
                pages_read = self.pool.pages_read();
            }
            let found = self.find_leaf(alive, Target::Covering(changes[at].key), true)?;
            let node = Node(&found.page);
            let to = match node.high() {
                Some(high) => at + changes[at..].partition_point(|c| c.key < high),
                None => changes.len(),
            };
            match targets.last_mut() {
                // It has taken over its right sibling since it was found before. To latch it twice would be to wait for ever.
                Some(last) if last.pin.page() == node.id() => last.to = to,
                // It took over the leaf that was found before, or a part of it; what is latched must ascend.
                Some(_) if node.low() < high.as_slice() => return Ok(None),
                _ => targets.push(PinnedLeaf { pin: found.page.pin(), from: at, to }),
            }
            if let Some(end) = node.high().filter(|_| to < changes.len()) {
                high.clear();
                high.extend_from_slice(end);
            }
            if let Some((level, low)) = found.incomplete {
                repairs.push(Repair::Post { level, low });
            }
            at = to;
        }
        Ok(Some(targets))
    }

    /// Step 3. On entry no latch is held, on exit all in `latched`, exclusively: leaves that have room for their changes, if that was
    /// [`Room::Made`].
    fn latch_leaves<'p>(
        &'p self,
        reservation: &mut Reservation<'p>,
        changes: &[Change<'_>],
        targets: &[PinnedLeaf<'p>],
        latched: &mut Vec<Latched<'p>>,
        repairs: &mut Vec<Repair>,
    ) -> Result<Room> {
        for target in targets {
            let page = self.pool.latch(&target.pin);
            let fill = fill(Node(&page));
            let leaf = Latched { page, from: target.from, to: target.to, fill };
            match self.make_room(reservation, changes, leaf, latched, repairs)? {
                Room::Made => {}
                other => return Ok(other),
            }
        }
        Ok(Room::Made)
    }

    /// Makes sure that the leaf's changes fit, by splits if need be, and adds the leaves that result to `latched`.
    /// On entry the leaf is latched exclusively, and those in `latched`, all left of it.
    fn make_room<'p>(
        &'p self,
        reservation: &mut Reservation<'p>,
        changes: &[Change<'_>],
        leaf: Latched<'p>,
        latched: &mut Vec<Latched<'p>>,
        repairs: &mut Vec<Repair>,
    ) -> Result<Room> {
        let mut leaf = leaf;
        loop {
            let mine = &changes[leaf.from..leaf.to];
            let node = Node(&leaf.page);
            let (first, last) = (mine[0].key, mine[mine.len() - 1].key);
            if node.is_dead()
                || node.level() != 0
                || node.covers(first) != Covers::Inside
                || node.covers(last) != Covers::Inside
            {
                return Ok(Room::Moved);
            }
            let puts = || mine.iter().filter_map(|c| c.value.map(|v| Pending { key: c.key, value: v.len() }));
            // Mostly they would fit if they replaced nothing, and that can be told without a search.
            let enough = |cost: &dyn Fn(&Pending<'_>) -> usize| {
                puts().try_fold(node.free(), |free, p| free.checked_sub(cost(&p))).is_some()
            };
            if enough(&|p| node.size_of(p.key.len(), p.value)) || enough(&|p| node.growth(p.key, p.value)) {
                latched.push(leaf);
                return Ok(Room::Made);
            }
            let mut bytes = 0;
            let pending: Vec<_> = puts()
                .take_while(|p| {
                    let more = bytes < PENDING_MAX * node.capacity();
                    bytes += node.size_of(p.key.len(), p.value);
                    more
                })
                .collect();
            if node.id() == self.root() {
                if reservation.pages_left() < 2 {
                    return Ok(Room::TooFewPages);
                }
                self.grow_root(reservation, &mut leaf.page, &pending)?;
                return Ok(Room::Moved);
            }
            let low = node.low().to_vec();
            let Some(right) = self.split(reservation, &mut leaf.page, &pending)? else {
                return Ok(Room::TooFewPages);
            };
            repairs.push(Repair::Post { level: 0, low });
            repairs.extend(inherited(Node(&right)));
            let high = Node(&right).low();
            let middle = leaf.from + mine.partition_point(|c| c.key < high);
            let fill = fill(Node(&right));
            let right = Latched { page: right, from: middle, to: leaf.to, fill };
            leaf.to = middle;
            // The left part of the changes goes first, so that `latched` stays in order.
            if leaf.from < leaf.to {
                match self.make_room(reservation, changes, leaf, latched, repairs)? {
                    Room::Made => {}
                    other => return Ok(other),
                }
            }
            if right.from == right.to {
                return Ok(Room::Made);
            }
            leaf = right;
        }
    }

    /// Step 4. On entry and exit the leaves are latched exclusively.
    fn log_and_change<'p>(
        &'p self,
        reservation: &mut Reservation<'p>,
        changes: &[Change<'_>],
        batch: &Batch,
        latched: &mut [Latched<'p>],
        bitmaps: &[Pin<'p>],
    ) -> Result<Lsn> {
        let mut body = Vec::with_capacity(batch.size() + 32 * batch.len() + 64);
        for leaf in latched.iter() {
            let section = op::begin_section(&mut body, leaf.page.header().page());
            for change in &changes[leaf.from..leaf.to] {
                match change.value {
                    Some(value) => Op::Put { key: change.key, value }.encode(&mut body),
                    None => Op::Delete { key: change.key }.encode(&mut body),
                }
            }
            op::end_section(&mut body, section);
        }
        let mut maps = reservation.latch_bitmaps(bitmaps);
        for map in &maps {
            let id = map.header().page();
            let section = op::begin_section(&mut body, id);
            let here = |run: &&Run| self.pool.bitmap_of(**run) == id;
            for run in batch.freed().iter().filter(here) {
                let start = self.pool.within_group(*run);
                self.pool.expect_state(map, *run, true)?;
                Op::Free { start, len: run.len }.encode(&mut body);
            }
            for run in batch.allocated().iter().filter(here) {
                let start = self.pool.within_group(*run);
                self.pool.expect_state(map, *run, false)?;
                Op::Allocate { start, len: run.len, pages: false }.encode(&mut body);
            }
            op::end_section(&mut body, section);
        }
        if batch.data().len() > 0 {
            let section = op::begin_section(&mut body, op::DATA_SECTION);
            for (start, bytes) in batch.data() {
                Op::Data { start, bytes }.encode(&mut body);
            }
            op::end_section(&mut body, section);
        }
        let mut guards: Vec<&mut PageWrite<'p>> = latched.iter_mut().map(|l| &mut l.page).collect();
        guards.extend(maps.iter_mut());
        Ok(reservation.commit(&mut guards, &body))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::tree::tests::{image, quiet};

    /// Its right half has the batch's last changes; they would lie where no search comes.
    #[test]
    fn changes_do_not_go_into_a_leaf_that_has_been_split_since_it_was_found() {
        let tree = Tree::open(image(16 << 20, 512 << 10), &quiet(64)).unwrap();
        let mut batch = Batch::new();
        (0..20u8).for_each(|n| batch.put(&[n], &[n; 1500]));
        tree.apply(&batch).unwrap();
        let last = {
            let found = tree.find_leaf(&tree.pool.enter(), Target::Covering(&[0]), true).unwrap();
            let node = Node(&found.page);
            node.key(node.count() - 1)
        };
        let mut batch = Batch::new();
        batch.put(&[0], b"first");
        batch.put(&last, b"last");
        let changes = batch.changes().unwrap();
        for split_meanwhile in [false, true] {
            let log = 2 * split_log();
            let mut reservation = tree.pool.reserve(Need { frames: 4, pages: 1, log }).unwrap();
            let alive = tree.pool.enter();
            let targets = tree.find_leaves(&alive, &changes, &mut Vec::new()).unwrap().unwrap();
            assert_eq!(targets.len(), 1);
            if split_meanwhile {
                let mut left = tree.pool.latch(&targets[0].pin);
                let right = tree.split(&mut reservation, &mut left, &[]).unwrap().unwrap();
                assert_eq!(Node(&right).covers(&last), Covers::Inside);
            }
            let mut latched = Vec::new();
            let room = tree
                .latch_leaves(&mut reservation, &changes, &targets, &mut latched, &mut Vec::new())
                .unwrap();
            assert_eq!(matches!(room, Room::Moved), split_meanwhile);
        }
        tree.apply(&batch).unwrap();
        assert_eq!(tree.get(&last).unwrap().as_deref(), Some(&b"last"[..]));
        tree.check().unwrap();
    }
}
