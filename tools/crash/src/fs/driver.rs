//! The workload: a filesystem, the model beside it, and the states that it goes through.

use std::sync::Arc;

use btfs::fs::{Fs, FsError, Ino, Time};
use btfs::page::BLOCK_SIZE;
use btfs::storage::sim::site_scope;
use btfs::storage::{Rng, SimStorage};
use btfs::tree::Options;

use super::content::stamped;
use super::model::Model;
use super::operation::{Chooser, Operation};
use super::request::{Answer, Moment, Request, copied};
use super::verify::{self, Look};
use crate::workload::Allowed;

/// Blocks beside those of a request: with fewer there may be no room for it.
const SPARE_BLOCKS: u64 = 64;

/// What happened in a run.
#[derive(Default)]
pub struct Done {
    /// The states that it went through.
    pub history: Vec<Model>,
    /// What made each of them.
    pub labels: Vec<String>,
    /// The number of the first of the storage's operations during each operation, and that one's kind.
    pub spans: Vec<(u64, &'static str)>,
    /// States inside a request that is a row of batches.
    pub between: Vec<usize>,
    /// How many requests were done, and how many there was no room for.
    pub requests: u64,
    /// Requests that there was no room for.
    pub refused: u64,
}

/// A running workload.
pub struct Driver {
    sim: Arc<SimStorage>,
    options: Options,
    /// Absent only while it is being opened again.
    fs: Option<Fs>,
    model: Model,
    done: Done,
    acknowledged: usize,
    open_files: Vec<Ino>,
    clock: u64,
    rng: Rng,
}

impl Driver {
    /// Goes on with a filesystem that durably contains what the model says. `before` are states that count before that one. What is
    /// done from now on carries numbers from `clock` on.
    pub fn resume(
        sim: Arc<SimStorage>,
        options: Options,
        fs: Fs,
        model: Model,
        before: Vec<Model>,
        clock: u64,
        seed: u64,
    ) -> Driver {
        let mut done = Done { history: before, ..Done::default() };
        done.labels = vec!["before".into(); done.history.len()];
        done.history.push(model.clone());
        done.labels.push("found".into());
        let acknowledged = done.history.len() - 1;
        let (open_files, rng) = (Vec::new(), Rng::new(seed));
        let driver = Driver { sim, options, fs: Some(fs), model, done, acknowledged, open_files, clock, rng };
        driver.note(0);
        driver
    }

    /// Ends the workload; the process dies, unless the run ended with closing.
    pub fn finish(self) -> Done {
        self.done
    }

    /// What the filesystem contains.
    pub fn model(&self) -> &Model {
        &self.model
    }

    fn applied(&self) -> usize {
        self.done.history.len() - 1
    }

    fn note(&self, begun: usize) {
        self.sim.note(Allowed { first: self.acknowledged, last: self.applied() + begun }.pack());
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.applied();
        self.note(0);
    }

    fn fs(&self) -> Result<&Fs, String> {
        self.fs.as_ref().ok_or_else(|| "the filesystem is not open".into())
    }

    fn push(&mut self, state: Model, label: String) {
        self.model = state.clone();
        self.done.history.push(state);
        self.done.labels.push(label);
    }

    /// Runs operations.
    ///
    /// # Errors
    /// What the filesystem said, or how it differs from the model.
    pub fn run(&mut self, operations: &[Operation]) -> Result<(), String> {
        operations.iter().try_for_each(|o| self.perform(o).map_err(|e| format!("{o:?}: {e}")))
    }

    /// Runs so many operations that are chosen at random, and looks whether all is as the model says, or closes.
    ///
    /// # Errors
    /// What the filesystem said, or how it differs from the model.
    pub fn run_random(&mut self, chooser: &Chooser, count: u64) -> Result<(), String> {
        for _ in 0..count {
            let operation = chooser.choose(&mut self.rng, &self.model);
            self.run(&[operation])?;
        }
        match self.rng.below(4) {
            0 => self.close(),
            1 => self.run(&[Operation::Sync]),
            2 => self.check(),
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), String> {
        let found = verify::read(self.fs()?)?;
        let allowed = Allowed { first: self.applied(), last: self.applied() };
        verify::find(&found, &self.done.history, allowed).map(drop)
    }

    fn perform(&mut self, operation: &Operation) -> Result<(), String> {
        self.done.spans.push((self.sim.operations(), operation.kind()));
        let said = |e: FsError| e.to_string();
        match *operation {
            Operation::Sync => self.sync()?,
            Operation::Commit => self.fs()?.tree().commit_all().map_err(|e| e.to_string())?,
            Operation::Checkpoint => {
                self.fs()?.tree().checkpoint().map_err(|e| e.to_string())?;
                self.acknowledge();
            }
            Operation::Trim => {
                let chunks = self.rng.index(3);
                self.fs()?.tree().trim(chunks).map_err(|e| e.to_string())?;
            }
            Operation::Grow(bytes) => {
                let tree = self.fs()?.tree();
                tree.grow(tree.size() + bytes).map_err(|e| e.to_string())?;
            }
            Operation::Reopen => {
                self.close()?;
                self.reopen()?;
            }
            Operation::Kill => {
                drop(self.fs.take());
                self.reopen()?;
            }
            Operation::Open(path) => {
                if let Some((_, _, Some(ino))) = self.model.resolve(path) {
                    self.fs()?.retain(ino);
                    self.open_files.push(ino);
                }
            }
            Operation::WriteUnnamed => self.write_unnamed()?,
            Operation::CloseFiles => {
                let open = std::mem::take(&mut self.open_files);
                self.fs()?.release_all(open.into_iter().map(|ino| (ino, 1))).map_err(said)?;
            }
            Operation::Replace(path, len) => self.replace(path, len)?,
            Operation::Reuse(path, other, len) => self.reuse(path, other, len)?,
            _ => {
                if let Some(request) = Request::new(operation, &self.model) {
                    self.request(&request, format!("{operation:?}"))?;
                }
            }
        }
        Ok(())
    }

    /// Writes the new contents to a new file, and renames it over the old one.
    fn replace(&mut self, path: &'static str, len: u64) -> Result<(), String> {
        const NEW: &str = "new";
        for operation in [
            Operation::Create(NEW),
            Operation::Write(NEW, 0, len),
            Operation::Rename(NEW, path, btfs::fs::RenameMode::Replace),
            Operation::Unlink(NEW),
        ] {
            if let Some(request) = Request::new(&operation, &self.model) {
                self.request(&request, format!("replace {path}: {operation:?}"))?;
            }
        }
        Ok(())
    }

    /// Small contents, gone again, and long ones in their place.
    fn reuse(&mut self, path: &'static str, other: &'static str, len: u64) -> Result<(), String> {
        for operation in [
            Operation::Create(path),
            Operation::Write(path, 0, 12_000),
            Operation::Sync,
            Operation::Unlink(path),
            Operation::Sync,
            Operation::Truncate(other, 0),
            Operation::Write(other, 0, len),
            Operation::Sync,
        ] {
            match Request::new(&operation, &self.model) {
                Some(request) => self.request(&request, format!("reuse of {path}: {operation:?}"))?,
                None if operation == Operation::Sync => self.sync()?,
                None => {}
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), String> {
        self.fs()?.sync().map_err(|e| e.to_string())?;
        self.acknowledge();
        Ok(())
    }

    fn write_unnamed(&mut self) -> Result<(), String> {
        let unnamed = |ino: &&Ino| self.model.get(**ino).is_none();
        let Some(&ino) = self.open_files.iter().find(unnamed) else { return Ok(()) };
        let moment = self.tick();
        let _site = site_scope("data");
        match self.fs()?.write(ino, 3000, &stamped(ino, moment.write, 3000, 9000), &moment.caller()) {
            Ok(_) | Err(FsError::NoSpace | FsError::Invalid | FsError::IsDirectory) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn tick(&mut self) -> Moment {
        self.clock += 1;
        let now = Time { seconds: 1_700_000_000 + self.clock as i64, nanos: self.clock as u32 };
        Moment { now, write: self.clock }
    }

    /// Does a request, on the filesystem and on the model.
    fn request(&mut self, request: &Request, label: String) -> Result<(), String> {
        let moment = self.tick();
        let tight = self.fs()?.usage().available < request.blocks() + SPARE_BLOCKS;
        let states = request.states(&self.model, moment, tight, Ino(u64::MAX));
        self.note(states.as_ref().map_or(0, Vec::len));
        let answer = {
            let _site = site_scope("data");
            request.call(self.fs()?, moment)
        };
        self.done.requests += 1;
        match (answer, states) {
            (Ok(Answer::Made(ino)), Some(_)) => {
                if self.model.get(ino).is_some() {
                    return Err(format!("inode number {} is in use already", ino.0));
                }
                let states = request.states(&self.model, moment, tight, ino).unwrap_or_default();
                self.went_through(states, &label);
                self.fs()?.release(ino, 1).map_err(|e| e.to_string())?;
            }
            (Ok(Answer::Copied(n)), Some(states)) if !is_all(request, &self.model, n) => {
                self.stopped_at(states, &label)?;
            }
            (Ok(_), Some(states)) => self.went_through(states, &label),
            (Ok(_), None) => return Err("it was done, and must be refused".into()),
            (Err(FsError::NoSpace), Some(states)) => {
                self.done.refused += 1;
                self.stopped_at(states, &label)?;
            }
            (Err(FsError::Engine(e) | FsError::Contents(e)), _) => return Err(e.to_string()),
            (Err(_), None) => {}
            (Err(e), Some(_)) => return Err(e.to_string()),
        }
        self.note(0);
        Ok(())
    }

    fn went_through(&mut self, states: Vec<Model>, label: &str) {
        let count = states.len();
        for (n, state) in states.into_iter().enumerate() {
            if n + 1 < count {
                self.done.between.push(self.done.history.len());
            }
            self.push(state, format!("{label} {}/{count}", n + 1));
        }
    }

    /// A request ended before it was done: finds out after which of its batches.
    fn stopped_at(&mut self, states: Vec<Model>, label: &str) -> Result<(), String> {
        let found = verify::read(self.fs()?)?;
        if found.hash() == self.model.hash() {
            return Ok(());
        }
        match states.iter().rposition(|m| m.hash() == found.hash()) {
            Some(at) => {
                self.went_through(states.into_iter().take(at + 1).collect(), label);
                Ok(())
            }
            None => Err(format!(
                "there was no room, and what is left is the state after no batch: {}",
                found.differences(&self.model).join("; ")
            )),
        }
    }

    /// Writes a file that leaves so many blocks free for data.
    ///
    /// # Errors
    /// What the filesystem said.
    pub fn fill(&mut self, left: u64) -> Result<(), String> {
        const BALLAST: &str = "ballast";
        self.run(&[Operation::Create(BALLAST)])?;
        let blocks = self.fs()?.usage().available.saturating_sub(left);
        self.run(&[Operation::Write(BALLAST, 0, blocks * BLOCK_SIZE as u64)])
    }

    /// Closes in order.
    ///
    /// # Errors
    /// What the filesystem said.
    pub fn close(&mut self) -> Result<(), String> {
        self.open_files.clear();
        if let Some(fs) = self.fs.take() {
            fs.close().map_err(|e| format!("close: {e}"))?;
            self.acknowledge();
        }
        Ok(())
    }

    /// Opens again, after an orderly close or the death of the process, and finds out which requests are there.
    fn reopen(&mut self) -> Result<(), String> {
        self.open_files.clear();
        let allowed = Allowed { first: self.acknowledged, last: self.applied() };
        let look = Look { fsck: true, structure: true, ..Look::default() };
        let found = verify::open(&self.sim, &self.options, look)?;
        let state = verify::find(&found.model, &self.done.history, allowed)?;
        let model = self.done.history[state].clone();
        self.push(model, format!("opened as state {state}"));
        self.fs = Some(found.fs);
        self.acknowledge();
        Ok(())
    }
}

fn is_all(request: &Request, model: &Model, n: u64) -> bool {
    match request {
        Request::Copy(from, offset, _, _, len) => copied(model, *from, *offset, *len) == n,
        _ => true,
    }
}
