//! The exploration of one seed.

use std::sync::Arc;

use btfs::defects::set_timer;
use btfs::storage::sim::{CutCursor, Recording};
use btfs::storage::{OpKind, Rng, SimStorage};

use super::driver::{Done, Driver};
use super::model::Model;
use super::operation::Chooser;
use super::plan::{Plan, Work};
use super::verify::{self, Look, Opened};
use crate::coverage::Coverage;
use crate::cuts::{self, Blocks};
use crate::explore::{Observer, Past, Violation, free_blocks, guarded};
use crate::log_tail::log_tail;
use crate::path::{Failure, Path, Step};
use crate::workload::Allowed;

/// What becomes of a state that was found to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Nothing more.
    Stop,
    /// Its recovery is cut again.
    CutRecovery,
    /// It is worked on for so many operations, and all this is cut again.
    WorkOn(u64),
}

impl Then {
    fn choose(rng: &mut Rng, depth: usize) -> Then {
        if !cuts::goes_deeper(depth) || !rng.chance(1, 8) {
            return Then::Stop;
        }
        match rng.below(5) {
            0 => Then::CutRecovery,
            1 | 2 => Then::WorkOn(1 + rng.below(3)),
            _ => Then::WorkOn(1 + rng.below(15)),
        }
    }
}

/// A recorded run and what is known of it.
struct Recorded {
    path: Path,
    recording: Recording,
    done: Done,
    /// Operations before this one belong to the recovery at the beginning.
    recovery_end: u64,
    /// Blocks that were written before this run began.
    written: Blocks,
    /// Those of them that were free when it began to change anything.
    reusable: Blocks,
}

impl Recorded {
    /// The kind of the operation that was under way at a cut.
    fn kind(&self, cut: u64) -> Option<&'static str> {
        let spans = &self.done.spans;
        let next = spans.partition_point(|(first, _)| *first <= cut);
        next.checked_sub(1).map(|at| spans[at].1)
    }
}

/// Explores the states of one seed.
pub struct Explorer<'a> {
    plan: &'a Plan,
    observer: &'a dyn Observer,
    /// The only path to follow, in a replay.
    only: Option<&'a [Step]>,
    /// Where the cuts were.
    pub coverage: Coverage,
}

impl<'a> Explorer<'a> {
    /// An explorer of all states of a plan.
    pub fn new(plan: &'a Plan, observer: &'a dyn Observer) -> Self {
        Explorer { plan, observer, only: None, coverage: Coverage::default() }
    }

    /// An explorer that follows one path and tells what it sees on standard output.
    pub fn replay(plan: &'a Plan, observer: &'a dyn Observer, steps: &'a [Step]) -> Self {
        println!("{plan:#?}");
        Explorer { plan, observer, only: Some(steps), coverage: Coverage::default() }
    }

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
            let prepared = plan.base.prepared()?;
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
            let (written, reusable) = (Blocks::none(), Blocks::none());
            Ok(Recorded { path: path.clone(), recording, done, recovery_end, written, reusable })
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
        let depth = recorded.path.steps.len();
        let mut rng = Rng::new(recorded.path.hash());
        let steps = match (self.only, &self.plan.work) {
            (Some(only), _) => only.get(depth).copied().into_iter().collect(),
            (None, Work::Sequence(_)) if depth == 0 => {
                cuts::every(&recorded.recording, recorded.recovery_end, &mut rng)
            }
            _ => cuts::choose(&recorded.recording, recorded.recovery_end, depth, &mut rng),
        };
        let mut cursor = recorded.recording.cursor();
        let mut past = Past::new(recorded.written.clone());
        let mut at_cut = false;
        for step in steps {
            while !at_cut || cursor.index() < step.cut {
                if let (true, Some(operation)) = (at_cut, cursor.operation()) {
                    past.note(operation, &recorded.reusable);
                }
                at_cut = cursor.advance();
                if !at_cut {
                    return Ok(());
                }
            }
            let mut past = past.clone();
            if let Some(operation) = cursor.operation() {
                past.note(operation, &recorded.reusable);
            }
            self.visit(recorded, &cursor, step, past)?;
        }
        Ok(())
    }

    /// Looks at one state, and perhaps at what comes after it.
    fn visit(
        &mut self,
        recorded: &Recorded,
        cursor: &CutCursor<'_>,
        step: Step,
        past: Past,
    ) -> Result<(), Violation> {
        let path = recorded.path.then(step);
        if !self.observer.begin(&path) {
            return Ok(());
        }
        let mut rng = Rng::new(path.hash());
        let sim = Arc::new(match step.failure {
            Failure::Power(policy) => SimStorage::from_image(cursor.crash(&mut rng, policy)),
            Failure::Process => cursor.process_death(),
        });
        let depth = path.steps.len();
        let allowed = Allowed::unpack(cursor.mark());
        self.count_cut(recorded, cursor, step, &past);
        if self.only.is_some() {
            tell_cut(recorded, cursor, &path, allowed);
        }
        // Until the recovery after a process's death is done, a power cut may still lose what it has found.
        let history = &recorded.done.history;
        let before = match step.failure {
            Failure::Power(_) => Vec::new(),
            Failure::Process => history[allowed.first..=allowed.last.min(history.len() - 1)].to_vec(),
        };
        let then = Then::choose(&mut rng, depth);
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
        let reusable = free_blocks(&image, &written);
        self.explore(&Recorded { path, recording, done, recovery_end, written, reusable })
    }

    fn count_cut(&mut self, recorded: &Recorded, cursor: &CutCursor<'_>, step: Step, past: &Past) {
        let coverage = &mut self.coverage;
        let in_recovery = step.cut < recorded.recovery_end;
        if step.failure == Failure::Process {
            coverage.count("death of the process");
        }
        match cursor.operation() {
            Some(operation) => coverage.count_operation(operation, in_recovery),
            None => coverage.count("after the last operation"),
        }
        if !in_recovery && let Some(kind) = recorded.kind(step.cut) {
            coverage.count(kind);
        }
        coverage.count(match recorded.path.steps.len() {
            0 => "first cut",
            1 => "second cut",
            _ => "third cut",
        });
        if past.block_reused {
            coverage.count("block reused after recovery");
        }
        if past.page_reused {
            coverage.count("page reused after recovery");
        }
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
    let before = recorded.recording.operations().filter(|o| o.index <= cursor.index());
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
