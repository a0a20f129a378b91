//! A first run by several threads, with the engine's own threads beside them: checkpoints, group commits and the reuse
//! of space then fall between any two steps of an `apply`.
//!
//! The batches' order is that of their LSNs, so the states are known when the run is over. Which batches are
//! acknowledged at a cut is noted as an LSN. Such a run is not the same twice: a failure cannot be replayed, so its
//! story is told at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use btfs::page::BLOCK_SIZE;
use btfs::storage::sim::{Recording, site_scope};
use btfs::storage::{Rng, SimStorage};
use btfs::tree::{Batch, Options, Tree};
use btfs::{BlockNo, Error, Lsn, Run};

use crate::contents::{Contents, DataRecord};
use crate::keys::{DATA_PREFIX, Keys, value};
use crate::plan::Plan;

const THREADS: u64 = 4;

/// What a concurrent run leaves behind.
pub struct Done {
    /// Its operations; their marks are LSNs up to which batches were acknowledged.
    pub recording: Recording,
    /// The states in the order of the LSNs; the first is the empty one.
    pub history: Vec<u64>,
    /// The batches' LSNs, ascending.
    pub lsns: Vec<u64>,
}

/// The record changes of a batch.
type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

struct Writer<'a> {
    plan: &'a Plan,
    tree: &'a Tree,
    sim: &'a SimStorage,
    acknowledged: &'a Mutex<Lsn>,
    number: u64,
    rng: Rng,
    keys: Keys,
    data: BTreeMap<u64, Run>,
    done: Vec<(Lsn, Changes)>,
}

/// Runs the threads of a plan.
///
/// # Errors
/// What the engine said.
pub fn run(plan: &Plan, seed: u64) -> Result<Done, String> {
    let sim = plan.image()?;
    sim.start_recording();
    let options =
        Options { background: true, commit_interval: Duration::from_millis(5), ..plan.options(seed) };
    let tree = Tree::open(sim.clone(), &options).map_err(|e| format!("opening a new image: {e}"))?;
    let batches = work(plan, &tree, &sim, seed)?;
    if seed.is_multiple_of(2) {
        tree.close().map_err(|e| format!("close: {e}"))?;
    } else {
        drop(tree);
    }
    let recording = sim.finish_recording().ok_or("nothing was recorded")?;
    let mut contents = Contents::default();
    let mut history = vec![contents.hash()];
    for (_, changes) in &batches {
        for (key, value) in changes {
            match value {
                Some(value) => contents.put(key, value),
                None => contents.delete(key),
            }
        }
        history.push(contents.hash());
    }
    Ok(Done { recording, history, lsns: batches.iter().map(|(lsn, _)| lsn.0).collect() })
}

/// The batches that were applied, in the order of their LSNs.
fn work(plan: &Plan, tree: &Tree, sim: &Arc<SimStorage>, seed: u64) -> Result<Vec<(Lsn, Changes)>, String> {
    let acknowledged = Mutex::new(Lsn(0));
    let results: Vec<Result<_, String>> = std::thread::scope(|scope| {
        let start = |number: u64| {
            let writer = Writer {
                plan,
                tree,
                sim,
                acknowledged: &acknowledged,
                number,
                rng: Rng::new(seed ^ number << 56),
                keys: Keys::new(plan.keys, plan.key_space, number * 1000),
                data: BTreeMap::new(),
                done: Vec::new(),
            };
            scope.spawn(move || writer.run())
        };
        let threads: Vec<_> = (0..THREADS).map(start).collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
            t.join().unwrap_or_else(|_| Err("a thread panicked".to_string()))
        };
        threads.into_iter().map(join).collect()
    });
    let mut batches = Vec::new();
    for result in results {
        batches.append(&mut result?);
    }
    batches.sort_by_key(|(lsn, _)| *lsn);
    Ok(batches)
}

impl Writer<'_> {
    fn run(mut self) -> Result<Vec<(Lsn, Changes)>, String> {
        let commit = self.plan.frequencies.commit;
        for _ in 0..self.plan.steps {
            let lsn = if self.rng.chance(1, 3) { self.data_batch()? } else { self.record_batch()? };
            if let Some(lsn) = lsn.filter(|_| self.rng.chance(1, commit)) {
                self.tree.commit(lsn).map_err(|e| format!("commit: {e}"))?;
                self.acknowledge(lsn);
            }
            if self.rng.chance(1, 20) {
                self.tree.checkpoint().map_err(|e| format!("checkpoint: {e}"))?;
            }
            if self.rng.chance(1, 20) {
                match self.tree.trim(1) {
                    Ok(_) | Err(Error::ReadOnly) => {}
                    Err(e) => return Err(format!("trim: {e}")),
                }
            }
            if self.number == 0 && self.rng.chance(1, 25) {
                self.tree.set_read_only(true).map_err(|e| format!("read-only: {e}"))?;
                if let Some((lsn, _)) = self.done.last() {
                    self.acknowledge(*lsn);
                }
                if self.rng.chance(1, 2) {
                    std::thread::yield_now();
                }
                self.tree.set_read_only(false).map_err(|e| format!("read-write: {e}"))?;
            }
            if self.number == 1 && self.rng.chance(1, 25) {
                let size = self.tree.size() + self.rng.below(90) * 16384;
                match self.tree.grow(size) {
                    Ok(()) | Err(Error::ReadOnly) => {}
                    Err(e) => return Err(format!("grow: {e}")),
                }
            }
        }
        Ok(self.done)
    }

    fn acknowledge(&self, lsn: Lsn) {
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(|e| e.into_inner());
        *acknowledged = lsn.max(*acknowledged);
        self.sim.note(acknowledged.0);
    }

    /// Applies a batch that has the changes' records; `None` if there was no room.
    fn apply(&mut self, mut batch: Batch, changes: Changes) -> Result<Option<Lsn>, String> {
        for (key, value) in &changes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        match self.tree.apply(&batch) {
            Ok(lsn) => {
                self.done.push((lsn, changes));
                Ok(Some(lsn))
            }
            Err(Error::NoSpace | Error::TooLarge { .. } | Error::ReadOnly) => Ok(None),
            Err(e) => Err(format!("apply: {e}")),
        }
    }

    fn record_batch(&mut self) -> Result<Option<Lsn>, String> {
        let deletes = if self.number == 0 { 6 } else { 3 };
        let mut changes = Changes::new();
        for _ in 0..1 + self.rng.below(self.plan.batch_max) {
            let key = self.keys.next(&mut self.rng);
            let delete = self.rng.chance(deletes, 8);
            let value = (!delete).then(|| value(self.plan.values, &mut self.rng, &key));
            changes.push((key, value));
        }
        self.apply(Batch::new(), changes)
    }

    /// A batch that writes, replaces or deletes a data record of this thread.
    fn data_batch(&mut self) -> Result<Option<Lsn>, String> {
        let slot = self.number * 1000 + self.rng.below(8);
        let mut key = vec![DATA_PREFIX];
        key.extend_from_slice(&slot.to_be_bytes());
        let old = self.data.get(&slot).copied();
        let mut batch = Batch::new();
        if let Some(old) = old {
            batch.free(old);
        }
        if old.is_some() && self.rng.chance(1, 2) {
            let lsn = self.apply(batch, vec![(key, None)])?;
            if lsn.is_some() {
                self.data.remove(&slot);
            }
            return Ok(lsn);
        }
        let Some(new) = self.write_data(&mut batch)? else { return Ok(None) };
        batch.allocate(new.run);
        let lsn = self.apply(batch, vec![(key, Some(new.encode()))])?;
        match lsn {
            Some(_) => drop(self.data.insert(slot, new.run)),
            None => self.tree.unreserve_blocks(new.run),
        }
        Ok(lsn)
    }

    fn write_data(&mut self, batch: &mut Batch) -> Result<Option<DataRecord>, String> {
        let want = 1 + self.rng.below(self.plan.data_blocks_max) as u32;
        let run = match self.tree.reserve_blocks(want) {
            Ok(run) => run,
            Err(Error::NoSpace | Error::ReadOnly) => return Ok(None),
            Err(e) => return Err(format!("reserving blocks: {e}")),
        };
        let mut data = vec![self.rng.below(256) as u8; run.len as usize * BLOCK_SIZE];
        for block in data.chunks_exact_mut(BLOCK_SIZE) {
            self.rng.fill(&mut block[..16]);
        }
        let _site = site_scope("data");
        let start = BlockNo(run.start.0);
        match self.tree.write_blocks_logged(start, &data, batch) {
            Ok(()) => {}
            Err(Error::ReadOnly) => {
                self.tree.unreserve_blocks(run);
                return Ok(None);
            }
            Err(e) => return Err(format!("writing data: {e}")),
        }
        Ok(Some(DataRecord { run, sums: DataRecord::sums(&data) }))
    }
}
