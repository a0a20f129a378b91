//! The workload: a tree, the model beside it, and the states after every batch.

use std::sync::Arc;

use btfs::page::BLOCK_SIZE;
use btfs::storage::sim::site_scope;
use btfs::storage::{Rng, SimStorage};
use btfs::tree::{Batch, Tree};
use btfs::{Error, Lsn, Run};

use crate::contents::{Contents, DataRecord};
use crate::keys::{DATA_PREFIX, Keys, value};
use crate::plan::{Plan, Scenario};
use crate::verify;

/// The states that a cut may leave, first and last, as numbers in the history; fits in a recording's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Allowed {
    /// The state after the last acknowledged batch.
    pub first: usize,
    /// The state after the last batch that was begun.
    pub last: usize,
}

impl Allowed {
    /// As one number.
    pub fn pack(self) -> u64 {
        (self.first as u64) << 32 | self.last as u64
    }

    /// The hashes of these states.
    pub fn states(self, history: &[u64]) -> &[u64] {
        &history[self.first..=self.last.min(history.len() - 1)]
    }

    /// From one number.
    pub fn unpack(mark: u64) -> Self {
        Allowed { first: (mark >> 32) as usize, last: mark as u32 as usize }
    }
}

/// A running workload.
pub struct Driver<'a> {
    plan: &'a Plan,
    sim: Arc<SimStorage>,
    /// Absent only while it is being reopened.
    tree: Option<Tree>,
    rng: Rng,
    keys: Keys,
    contents: Contents,
    /// The states' hashes.
    history: Vec<u64>,
    acknowledged: usize,
    lsn: Lsn,
    shrinking: bool,
    refused: u64,
}

/// What a workload has done.
pub struct Done {
    /// The states.
    pub history: Vec<u64>,
    /// How many batches there was no room for.
    pub refused: u64,
}

/// A batch, and the model as it will be.
struct Change {
    batch: Batch,
    after: Contents,
}

impl<'a> Driver<'a> {
    /// Opens an image that holds no records.
    ///
    /// # Errors
    /// What the engine said.
    pub fn open(plan: &'a Plan, sim: Arc<SimStorage>, seed: u64) -> Result<Self, String> {
        let tree =
            Tree::open(sim.clone(), &plan.options(seed)).map_err(|e| format!("opening a new image: {e}"))?;
        Ok(Self::resume(plan, sim, tree, Contents::default(), Vec::new(), seed))
    }

    /// Goes on with a tree that holds these records durably. `before` are states that count before that one.
    pub fn resume(
        plan: &'a Plan,
        sim: Arc<SimStorage>,
        tree: Tree,
        contents: Contents,
        before: Vec<u64>,
        seed: u64,
    ) -> Driver<'a> {
        let mut history = before;
        history.push(contents.hash());
        let driver = Driver {
            plan,
            sim,
            tree: Some(tree),
            rng: Rng::new(seed),
            keys: Keys::new(plan.keys, plan.key_space, seed % 1000),
            acknowledged: history.len() - 1,
            history,
            contents,
            lsn: Lsn(0),
            shrinking: seed.is_multiple_of(3),
            refused: 0,
        };
        driver.note(0);
        driver
    }

    /// Ends the workload; the process dies, unless the run ended with closing.
    pub fn finish(self) -> Done {
        Done { history: self.history, refused: self.refused }
    }

    fn applied(&self) -> usize {
        self.history.len() - 1
    }

    fn note(&self, begun: usize) {
        let allowed = Allowed { first: self.acknowledged, last: self.applied() + begun };
        self.sim.note(allowed.pack());
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.applied();
        self.note(0);
    }

    fn tree(&self) -> Result<&Tree, String> {
        self.tree.as_ref().ok_or_else(|| "the tree is not open".into())
    }

    /// Runs so many steps.
    ///
    /// # Errors
    /// What the engine said, or how it differs from the model.
    pub fn run(&mut self, steps: u64) -> Result<(), String> {
        self.prepare()?;
        for step in 0..steps {
            self.step()?;
            if step == 0 && self.rng.chance(1, 3) {
                self.commit()?;
            }
        }
        match self.rng.below(4) {
            0 => self.close(),
            1 => self.commit(),
            2 => verify::check(self.tree()?, &self.sim, &self.contents),
            _ => Ok(()),
        }
    }

    /// What some scenarios begin with.
    fn prepare(&mut self) -> Result<(), String> {
        if !self.contents.is_empty() {
            return Ok(());
        }
        match self.plan.scenario {
            Scenario::LoadAndWipe => self.bulk_load(),
            Scenario::TwoGroups => {
                // A call gives half a group at the most.
                (0..4).try_for_each(|_| self.data_batch(1 << 20))
            }
            _ => Ok(()),
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let often = self.plan.frequencies;
        let mut happens = |n: u64| n > 0 && self.rng.chance(1, n);
        let (commit, checkpoint) = (happens(often.commit), happens(often.checkpoint));
        let (trim, reopen, kill) = (happens(often.trim), happens(often.reopen), happens(often.kill));
        let (data, wipe) = (happens(often.data), happens(often.wipe));
        match self.plan.scenario {
            Scenario::Uniform => self.uniform_batch()?,
            _ if data => self.data_batch(self.plan.data_blocks_max)?,
            _ => self.record_batch()?,
        }
        if wipe {
            self.wipe_data()?;
        }
        if commit {
            self.commit()?;
        }
        if checkpoint {
            self.tree()?.checkpoint().map_err(|e| format!("checkpoint: {e}"))?;
            self.acknowledge();
        }
        if trim {
            let chunks = self.rng.index(3);
            self.tree()?.trim(chunks).map_err(|e| format!("trim: {e}"))?;
        }
        if reopen {
            self.close()?;
            self.reopen(true)?;
        }
        if kill {
            drop(self.tree.take());
            self.reopen(false)?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), String> {
        let tree = self.tree()?;
        let result = if self.lsn.0.is_multiple_of(2) { tree.commit(self.lsn) } else { tree.commit_all() };
        result.map_err(|e| format!("commit: {e}"))?;
        self.acknowledge();
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        if let Some(tree) = self.tree.take() {
            tree.close().map_err(|e| format!("close: {e}"))?;
            self.acknowledge();
        }
        Ok(())
    }

    /// Opens again, after an orderly close or the death of the process, and finds out which batches are there.
    fn reopen(&mut self, clean: bool) -> Result<(), String> {
        let allowed = Allowed { first: self.acknowledged, last: self.applied() };
        let options = self.plan.options(self.rng.next_u64());
        let found = verify::open(&self.sim, &options, true)?;
        if clean != found.tree.recovery().clean {
            return Err(format!("clean flag {}, but closed in order: {clean}", !clean));
        }
        let state = verify::find(found.contents.hash(), &self.history, allowed)?;
        self.history.push(self.history[state]);
        // What an LSN of the last life meant, nobody knows.
        self.lsn = Lsn(0);
        self.tree = Some(found.tree);
        self.contents = found.contents;
        self.acknowledge();
        Ok(())
    }

    /// Applies a batch; whether there was room for it.
    fn apply(&mut self, change: Change) -> Result<bool, String> {
        self.note(1);
        match self.tree()?.apply(&change.batch) {
            Ok(lsn) => {
                self.lsn = lsn;
                self.contents = change.after;
                self.history.push(self.contents.hash());
                Ok(true)
            }
            Err(Error::NoSpace | Error::TooLarge { .. }) => {
                self.refused += 1;
                self.note(0);
                Ok(false)
            }
            Err(e) => Err(format!("apply: {e}")),
        }
    }

    fn change(&self) -> Change {
        Change { batch: Batch::new(), after: self.contents.clone() }
    }

    fn record_batch(&mut self) -> Result<(), String> {
        if self.contents.size() > self.plan.size_max {
            self.shrinking = true;
        } else if self.contents.len() < 3 || self.rng.chance(1, 25) {
            self.shrinking = self.rng.chance(1, 3);
        }
        let mut change = self.change();
        if self.shrinking && self.rng.chance(2, 3) {
            self.delete_range(&mut change);
        } else {
            let deletes = if self.shrinking { 7 } else { 1 };
            for _ in 0..1 + self.rng.below(self.plan.batch_max) {
                let mut key = self.keys.next(&mut self.rng);
                let delete = self.rng.chance(deletes, 8);
                if delete || self.rng.chance(1, 4) {
                    key = self.existing(key);
                }
                if delete {
                    change.delete(&key);
                } else {
                    let value = value(self.plan.values, &mut self.rng, &key);
                    change.put(&key, &value);
                }
            }
        }
        self.apply(change)?;
        Ok(())
    }

    /// One record is put; its log record is as long as all others.
    fn uniform_batch(&mut self) -> Result<(), String> {
        if self.contents.size() > self.plan.size_max {
            return self.record_batch();
        }
        let mut change = self.change();
        let key = self.keys.next(&mut self.rng);
        let value = value(self.plan.values, &mut self.rng, &key);
        change.put(&key, &value);
        self.apply(change)?;
        Ok(())
    }

    /// Deletes the data records, a few in a batch, and gives the space back to the host.
    fn wipe_data(&mut self) -> Result<(), String> {
        let mut records: Vec<(Vec<u8>, Run)> = Vec::new();
        for (key, entry) in self.contents.from(&[DATA_PREFIX]) {
            records.extend(entry.data.as_ref().map(|d| (key.clone(), d.run)));
        }
        for some in records.chunks(7) {
            let mut change = self.change();
            for (key, run) in some {
                change.delete(key);
                change.batch.free(*run);
            }
            self.apply(change)?;
        }
        if self.rng.chance(1, 2) {
            self.commit()?;
        }
        self.tree()?.trim(3).map_err(|e| format!("trim: {e}"))?;
        Ok(())
    }

    /// The key of a record at or behind this one that is not a data record; this one if there is none.
    fn existing(&self, key: Vec<u8>) -> Vec<u8> {
        let plain = |(k, e): (&Vec<u8>, &crate::contents::Entry)| e.data.is_none().then(|| k.clone());
        let behind = self.contents.from(&key).find_map(plain);
        behind.or_else(|| self.contents.from(&[]).find_map(plain)).unwrap_or(key)
    }

    fn delete_range(&mut self, change: &mut Change) {
        let at = self.keys.next(&mut self.rng);
        let at = if self.rng.chance(1, 3) { Vec::new() } else { self.existing(at) };
        let count = 1 + self.rng.index(14);
        let keys: Vec<Vec<u8>> = self
            .contents
            .from(&at)
            .filter(|(_, e)| e.data.is_none())
            .take(count)
            .map(|(k, _)| k.clone())
            .collect();
        for key in keys {
            change.delete(&key);
        }
    }

    /// A batch that writes, replaces, shortens or deletes a data record.
    fn data_batch(&mut self, blocks_max: u64) -> Result<(), String> {
        let mut key = vec![DATA_PREFIX];
        key.extend_from_slice(&self.rng.below(40).to_be_bytes());
        let mut change = self.change();
        let old = self.contents.data(&key).cloned();
        let mut reserved = None;
        match &old {
            Some(old) if self.rng.chance(1, 4) || (self.shrinking && self.rng.chance(1, 2)) => {
                self.shorten(&mut change, &key, old);
            }
            _ => {
                let Some(new) = self.write_data(blocks_max, &mut change.batch)? else { return Ok(()) };
                reserved = Some(new.run);
                if self.rng.chance(1, 12) {
                    // The caller changed its mind.
                    self.tree()?.unreserve_blocks(new.run);
                    return Ok(());
                }
                change.batch.allocate(new.run);
                if let Some(old) = &old {
                    change.batch.free(old.run);
                }
                change.put(&key, &new.encode());
            }
        }
        if self.rng.chance(1, 2) {
            let key = self.keys.next(&mut self.rng);
            let value = value(self.plan.values, &mut self.rng, &key);
            change.put(&key, &value);
        }
        let applied = self.apply(change)?;
        if let (false, Some(run)) = (applied, reserved) {
            self.tree()?.unreserve_blocks(run);
        }
        Ok(())
    }

    /// Frees a data record's blocks, or those at its end.
    fn shorten(&mut self, change: &mut Change, key: &[u8], old: &DataRecord) {
        let keep = if self.rng.chance(1, 2) { 0 } else { self.rng.below(u64::from(old.run.len)) as u32 };
        let start = btfs::BlockNo(old.run.start.0 + u64::from(keep));
        change.batch.free(Run { start, len: old.run.len - keep });
        if keep == 0 {
            change.delete(key);
        } else {
            let mut rest = old.clone();
            rest.run.len = keep;
            rest.sums.truncate(keep as usize);
            change.put(key, &rest.encode());
        }
    }

    /// Writes data to new blocks, in one or two calls; `None` if there is no room.
    fn write_data(&mut self, blocks_max: u64, batch: &mut Batch) -> Result<Option<DataRecord>, String> {
        const WRITTEN_MAX: u32 = 40;
        let want = if blocks_max > 100 { blocks_max } else { 1 + self.rng.below(blocks_max) };
        let run = match self.tree()?.reserve_blocks(want as u32) {
            Ok(run) => run,
            Err(Error::NoSpace) => {
                self.refused += 1;
                return Ok(None);
            }
            Err(e) => return Err(format!("reserving blocks: {e}")),
        };
        let written = run.len.min(WRITTEN_MAX);
        let mut data = vec![0; written as usize * BLOCK_SIZE];
        for block in data.chunks_exact_mut(BLOCK_SIZE) {
            block.fill(self.rng.below(256) as u8);
            self.rng.fill(&mut block[..32]);
            self.rng.fill(&mut block[BLOCK_SIZE - 16..]);
        }
        let first = self.rng.index(written as usize + 1) * BLOCK_SIZE;
        let _site = site_scope("data");
        for (at, part) in [(0, &data[..first]), (first, &data[first..])] {
            if !part.is_empty() {
                let start = btfs::BlockNo(run.start.0 + (at / BLOCK_SIZE) as u64);
                let written = match self.rng.chance(2, 3) {
                    true => self.tree()?.write_blocks_logged(start, part, batch),
                    false => self.tree()?.write_blocks(start, part),
                };
                written.map_err(|e| format!("writing data: {e}"))?;
            }
        }
        Ok(Some(DataRecord { run, sums: DataRecord::sums(&data) }))
    }

    /// Loads an empty tree with more pages than a chunk has.
    fn bulk_load(&mut self) -> Result<(), String> {
        let pages = 50 + self.rng.index(50);
        let mut records = Vec::new();
        let mut change = self.change();
        for n in 0..pages as u64 * 3 {
            let key = (n * 7).to_be_bytes();
            let mut value = vec![n as u8; 3900];
            self.rng.fill(&mut value[..8]);
            change.after.put(&key, &value);
            records.push((key, value));
        }
        self.note(1);
        match self.tree()?.bulk_load(records) {
            Ok(()) => {
                self.contents = change.after;
                self.history.push(self.contents.hash());
                self.acknowledge();
                self.shrinking = true;
                Ok(())
            }
            // A tree whose last records were deleted just before the cut may have empty leaves that are not merged yet.
            Err(Error::NoSpace | Error::Unusable(_)) => {
                self.refused += 1;
                self.note(0);
                Ok(())
            }
            Err(e) => Err(format!("bulk load: {e}")),
        }
    }
}

impl Change {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put(key, value);
        self.after.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.batch.delete(key);
        self.after.delete(key);
    }
}
