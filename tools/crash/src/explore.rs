//! The exploration of one seed of the engine.

use std::sync::Arc;

use btfs::storage::sim::{CutCursor, Operation};
use btfs::storage::{Image, Rng, SimStorage};

use crate::concurrent;
use crate::cuts::{self, Blocks};
use crate::log_tail::{log_tail, superblock};
use crate::path::{Failure, Path, Step};
use crate::plan::{POOL_PAGES_MIN, Plan};
use crate::verify::{self, Opened};
use crate::walk::{Explorer, Past, Run, Then, Violation, guarded, left_by};
use crate::workload::{Allowed, Done, Driver};

/// A recorded run and what is known of it.
struct Recorded {
    run: Run,
    /// The states after each batch.
    history: Vec<u64>,
    /// In a concurrent run, the batches' LSNs, and the marks are LSNs.
    lsns: Option<Vec<u64>>,
}

impl Recorded {
    /// The states that a cut with this mark may leave.
    fn allowed(&self, mark: u64) -> Allowed {
        match &self.lsns {
            None => Allowed::unpack(mark),
            Some(lsns) => Allowed { first: lsns.partition_point(|&l| l <= mark), last: lsns.len() },
        }
    }
}

impl Explorer<'_, Plan> {
    /// Explores.
    ///
    /// # Errors
    /// The first state that is wrong.
    pub fn run(&mut self) -> Result<(), Violation> {
        let path = Path { seed: self.plan.seed, steps: Vec::new() };
        if !self.observer.begin(&path) {
            return Ok(());
        }
        let plan = self.plan;
        let (recorded, refused) = guarded(&path, "first run", || {
            let sim = plan.image()?;
            sim.start_recording();
            let mut driver = Driver::open(plan, sim.clone(), path.hash())?;
            driver.run(plan.steps)?;
            let Done { history, refused } = driver.finish();
            let recording = sim.finish_recording().ok_or("nothing was recorded")?;
            Ok((Recorded { run: Run::first(path.clone(), recording, 0), history, lsns: None }, refused))
        })?;
        self.coverage.count_many("batches of first runs", recorded.history.len() as u64 - 1);
        self.coverage.count_many("batches and reservations refused for lack of room", refused);
        self.explore(&recorded)
    }

    /// Explores a first run by several threads. It is not the same twice.
    ///
    /// # Errors
    /// The first state that is wrong.
    pub fn run_concurrent(&mut self) -> Result<(), Violation> {
        let path = Path { seed: self.plan.seed, steps: Vec::new() };
        if !self.observer.begin(&path) {
            return Ok(());
        }
        let done = guarded(&path, "concurrent run", || concurrent::run(self.plan, path.hash()))?;
        self.coverage.count_many("batches of concurrent runs", done.history.len() as u64 - 1);
        self.explore(&Recorded {
            run: Run::first(path, done.recording, 0),
            history: done.history,
            lsns: Some(done.lsns),
        })
    }

    /// Looks at states after cuts of a recorded run.
    fn explore(&mut self, recorded: &Recorded) -> Result<(), Violation> {
        let run = &recorded.run;
        let steps = self.only_step(run).unwrap_or_else(|| {
            let mut rng = Rng::new(run.path.hash());
            cuts::choose(&run.recording, run.recovery_end, run.path.steps.len(), &mut rng)
        });
        run.each_cut(steps, |cursor, step, past| self.visit(recorded, cursor, step, past))
    }

    /// Looks at one state, and perhaps at what comes after it.
    fn visit(
        &mut self,
        recorded: &Recorded,
        cursor: &CutCursor<'_>,
        step: Step,
        past: Past,
    ) -> Result<(), Violation> {
        let path = recorded.run.path.then(step);
        if !self.observer.begin(&path) {
            return Ok(());
        }
        let mut rng = Rng::new(path.hash());
        let sim = left_by(step.failure, cursor, &mut rng);
        let image = sim.image();
        let depth = path.steps.len();
        let allowed = recorded.allowed(cursor.mark());
        self.count_cut(&recorded.run, cursor, step, &past);
        self.count_log_tail(&image);
        if self.only.is_some() {
            tell_cut(recorded, cursor, &path, allowed, &image);
        }
        // Until the recovery after a process's death is done, a power cut may still lose what it has found.
        let before = match step.failure {
            Failure::Power(_) => Vec::new(),
            Failure::Process => allowed.states(&recorded.history).to_vec(),
        };
        if cuts::goes_deeper(depth) {
            sim.note(Allowed { first: 0, last: before.len() }.pack());
            sim.start_recording();
        }
        let opened = guarded(&path, "recovery", || {
            let opened = verify::open(&sim, &self.plan.options(path.hash()), path.hash().is_multiple_of(8))?;
            let state = verify::find(opened.contents.hash(), &recorded.history, allowed)?;
            Ok((opened, state))
        });
        if self.only.is_some() {
            tell_opened(&opened);
        } else if opened.is_err() && recorded.lsns.is_some() {
            tell_cut(recorded, cursor, &path, allowed, &image);
            tell_opened(&opened);
        }
        let (opened, _) = opened?;
        let recovery = opened.tree.recovery();
        // A state in which recovery found something torn is worth more.
        let chance = if recovery.discarded > 0 || recovery.repaired > 0 { 3 } else { 1 };
        let then = Then::choose(&mut rng, depth, (chance, 5), 25);
        self.count_found(&opened);
        self.go_on(path, &sim, opened, then, before, past.written)
    }

    fn go_on(
        &mut self,
        path: Path,
        sim: &Arc<SimStorage>,
        opened: Opened,
        then: Then,
        mut before: Vec<u64>,
        written: Blocks,
    ) -> Result<(), Violation> {
        let recovery_end = sim.operations();
        let image = sim.image();
        let history = match then {
            Then::Stop => return Ok(()),
            Then::CutRecovery => {
                before.push(opened.contents.hash());
                // What is left is acknowledged.
                sim.note(Allowed { first: before.len() - 1, last: before.len() - 1 }.pack());
                before
            }
            Then::WorkOn(steps) => guarded(&path, "work after recovery", || {
                let seed = path.hash() ^ 1;
                let Opened { tree, contents, .. } = opened;
                let mut driver = Driver::resume(self.plan, sim.clone(), tree, contents, before, seed);
                driver.run(steps)?;
                Ok(driver.finish().history)
            })?,
        };
        let Some(recording) = sim.finish_recording() else { return Ok(()) };
        let run = Run::later(path, recording, recovery_end, written, &image);
        self.explore(&Recorded { run, history, lsns: None })
    }

    fn count_log_tail(&mut self, image: &Image) {
        match log_tail(image) {
            None => self.coverage.count("closed in order"),
            Some(tail) => {
                self.coverage.count(tail.last);
                if let Some(torn) = tail.torn {
                    self.coverage.count(torn);
                }
                if tail.group_birth && tail.last != "group birth" {
                    self.coverage.count("group birth");
                }
                if tail.wrapped {
                    self.coverage.count("log wrapped");
                }
            }
        }
    }

    fn count_found(&mut self, opened: &Opened) {
        let recovery = opened.tree.recovery();
        let found = [
            ("half-split tree", opened.report.incomplete_splits > 0),
            ("torn page repaired", recovery.repaired > 0),
            ("log record torn", recovery.discarded > 0),
            ("nothing to redo", !recovery.clean && recovery.redone == 0),
            ("tree larger than the pool", opened.report.leaves > POOL_PAGES_MIN as u64 + 28),
            ("tree of three or more levels", opened.report.height > 2),
        ];
        for (site, _) in found.iter().filter(|(_, is)| *is) {
            self.coverage.count(site);
        }
    }
}

fn tell_cut(recorded: &Recorded, cursor: &CutCursor<'_>, path: &Path, allowed: Allowed, image: &Image) {
    println!("\n{path}: allowed are states {} to {}", allowed.first, allowed.last);
    println!("  {} operations are not durable; the last before the cut:", cursor.pending());
    let before = recorded.run.recording.operations().filter(|o| o.index <= cursor.index());
    let before: Vec<&Operation> = before.collect();
    for o in &before[before.len().saturating_sub(20)..] {
        println!(
            "    {:>6} {:<12} {:>9}+{:<7} {}",
            o.index,
            format!("{:?}", o.kind),
            o.offset,
            o.len,
            o.site
        );
    }
    println!("  superblock: {:?}", superblock(image));
    println!("  log: {:?}", log_tail(image));
}

fn tell_opened(opened: &Result<(Opened, usize), Violation>) {
    match opened {
        Ok((opened, state)) => {
            println!("  {}", opened.tree.recovery());
            println!("  it is state {state}; {:?}", opened.report);
        }
        Err(violation) => println!("  {violation}"),
    }
}
