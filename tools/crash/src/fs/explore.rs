//! The exploration of one seed of the filesystem.

use std::sync::Arc;

use btfs::defects::set_timer;
use btfs::storage::sim::CutCursor;
use btfs::storage::{OpKind, Rng, SimStorage};

use super::driver::{Done, Driver};
use super::model::Model;
use super::operation::Chooser;
use super::plan::{Plan, Work};
use super::verify::{self, Look, Opened};
use crate::cuts::{self, Blocks};
use crate::log_tail::log_tail;
use crate::path::{Failure, Path, Step};
use crate::walk::{Explorer, Past, Run, Then, Violation, guarded, left_by};
use crate::workload::Allowed;

/// A recorded run and what is known of it.
struct Recorded {
    run: Run,
    done: Done,
}

impl Recorded {
    /// The kind of the operation that was under way at a cut.
    fn kind(&self, cut: u64) -> Option<&'static str> {
        let spans = &self.done.spans;
        let next = spans.partition_point(|(first, _)| *first <= cut);
        next.checked_sub(1).map(|at| spans[at].1)
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
        let recorded = guarded(&path, "first run", || {
            let prepared = plan.prepared()?;
            let sim = Arc::new(SimStorage::from_image(prepared.image));
            let options = plan.options(path.hash());
            set_timer(plan.timer);
            sim.start_recording();
            let fs = verify::open(&sim, &options, Look::default())?.fs;
            let recovery_end = sim.operations();
            let (model, seed) = (prepared.model, path.hash());
            let mut driver = Driver::resume(sim.clone(), options, fs, model, Vec::new(), FIRST_CLOCK, seed);
            match &plan.work {
                Work::Sequence(operations) => driver.run(operations)?,
                Work::Random(count, longest) => {
                    let chooser = Chooser::new(&mut Rng::new(path.hash()), *longest);
                    driver.run_random(&chooser, *count)?;
                }
            }
            let done = driver.finish();
            let recording = sim.finish_recording().ok_or("nothing was recorded")?;
            Ok(Recorded { run: Run::first(path.clone(), recording, recovery_end), done })
        })?;
        self.coverage.count(match plan.work {
            Work::Sequence(_) => "sequences",
            Work::Random(..) => "long runs",
        });
        self.coverage.count_many("requests of first runs", recorded.done.requests);
        self.coverage.count_many("requests there was no room for", recorded.done.refused);
        self.explore(&recorded)
    }

    /// Looks at states after cuts of a recorded run.
    fn explore(&mut self, recorded: &Recorded) -> Result<(), Violation> {
        let run = &recorded.run;
        let steps = self.only_step(run).unwrap_or_else(|| {
            let (depth, mut rng) = (run.path.steps.len(), Rng::new(run.path.hash()));
            match &self.plan.work {
                Work::Sequence(_) if depth == 0 => cuts::every(&run.recording, run.recovery_end, &mut rng),
                _ => cuts::choose(&run.recording, run.recovery_end, depth, &mut rng),
            }
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
        let allowed = Allowed::unpack(cursor.mark());
        self.count_cut(&recorded.run, cursor, step, &past);
        if step.cut >= recorded.run.recovery_end
            && let Some(kind) = recorded.kind(step.cut)
        {
            self.coverage.count(kind);
        }
        if self.only.is_some() {
            tell_cut(recorded, cursor, &path, allowed);
        }
        // Until the recovery after a process's death is done, a power cut may still lose what it has found.
        let history = &recorded.done.history;
        let before = match step.failure {
            Failure::Power(_) => Vec::new(),
            Failure::Process => history[allowed.first..=allowed.last.min(history.len() - 1)].to_vec(),
        };
        let then = Then::choose(&mut rng, path.steps.len(), (1, 8), 15);
        if then != Then::Stop || self.only.is_some() {
            sim.note(Allowed { first: 0, last: before.len() }.pack());
            sim.start_recording();
        }
        let (scrub, structure, read_only) = (rng.chance(1, 4), rng.chance(1, 4), rng.chance(1, 8));
        let look = Look { fsck: true, scrub, structure, read_only };
        let closes = then == Then::Stop && rng.chance(1, 8);
        let opened = guarded(&path, "recovery", || {
            set_timer(self.plan.timer);
            let opened = verify::open(&sim, &self.plan.options(path.hash()), look)?;
            let state = verify::find(&opened.model, history, allowed)?;
            Ok((opened, state))
        });
        if self.only.is_some() {
            match &opened {
                Ok((opened, state)) => {
                    println!("  {}\n  it is state {state}", opened.fs.tree().recovery());
                }
                Err(violation) => println!("  {violation}"),
            }
        }
        let (mut opened, state) = opened?;
        self.count_found(recorded, &opened, state);
        // The model also knows what cannot be read.
        opened.model = history[state].clone();
        if closes {
            self.coverage.count("closed after recovery");
            let options = self.plan.options(path.hash());
            return guarded(&path, "closing after recovery", || verify::close(&sim, &options, opened));
        }
        self.go_on(path, &sim, opened, then, before, past.written)
    }

    fn go_on(
        &mut self,
        path: Path,
        sim: &Arc<SimStorage>,
        opened: Opened,
        then: Then,
        mut before: Vec<Model>,
        written: Blocks,
    ) -> Result<(), Violation> {
        let recovery_end = sim.operations();
        let image = sim.image();
        let done = match then {
            Then::Stop => return Ok(()),
            Then::CutRecovery => {
                before.push(opened.model);
                // What is left is acknowledged.
                sim.note(Allowed { first: before.len() - 1, last: before.len() - 1 }.pack());
                Done { labels: vec!["found".into(); before.len()], history: before, ..Done::default() }
            }
            Then::WorkOn(count) => guarded(&path, "work after recovery", || {
                let seed = path.hash() ^ 1;
                let options = self.plan.options(path.hash());
                let clock = (path.steps.len() as u64 + 1) << 16;
                let Opened { fs, model, .. } = opened;
                let mut driver = Driver::resume(sim.clone(), options, fs, model, before, clock, seed);
                driver.run_random(&Chooser::new(&mut Rng::new(seed), 100_000), count)?;
                Ok(driver.finish())
            })?,
        };
        let Some(recording) = sim.finish_recording() else { return Ok(()) };
        let run = Run::later(path, recording, recovery_end, written, &image);
        self.explore(&Recorded { run, done })
    }

    fn count_found(&mut self, recorded: &Recorded, opened: &Opened, state: usize) {
        let recovery = opened.fs.tree().recovery();
        let found = [
            ("half-split tree", opened.report.as_ref().is_some_and(|r| r.incomplete_splits > 0)),
            ("torn page repaired", recovery.repaired > 0),
            ("log record torn", recovery.discarded > 0),
            ("closed in order", recovery.clean),
            ("between two batches of a request", recorded.done.between.contains(&state)),
        ];
        for (site, _) in found.iter().filter(|(_, is)| *is) {
            self.coverage.count(site);
        }
    }
}

/// The number of the first write of a first run.
const FIRST_CLOCK: u64 = 1 << 16;

fn tell_cut(recorded: &Recorded, cursor: &CutCursor<'_>, path: &Path, allowed: Allowed) {
    println!("\n{path}: allowed are states {} to {}", allowed.first, allowed.last);
    let labels = &recorded.done.labels;
    let last = allowed.last.min(labels.len() - 1);
    for (n, label) in labels.iter().enumerate().take(last + 1).skip(allowed.first.saturating_sub(20)) {
        println!("    state {n:>4}: {label}");
    }
    let spans: Vec<String> =
        recorded.done.spans.iter().map(|(first, kind)| format!("{first}: {kind}")).collect();
    println!("  operations begun at: {}", spans.join(", "));
    println!("  {} writes are not durable; the last before the cut:", cursor.pending());
    let before = recorded.run.recording.operations().filter(|o| o.index <= cursor.index());
    let before: Vec<_> = before.filter(|o| o.kind != OpKind::Allocate).collect();
    for o in &before[before.len().saturating_sub(20)..] {
        let kind = format!("{:?}", o.kind);
        println!("    {:>6} {kind:<12} {:>9}+{:<7} {}", o.index, o.offset, o.len, o.site);
    }
    println!(
        "  log: {:?}",
        log_tail(&cursor.crash(&mut Rng::new(path.hash()), btfs::storage::sim::Policy::Kept))
    );
}
