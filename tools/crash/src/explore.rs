//! The exploration of one seed.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use btfs::page::bitmap::Bitmap;
use btfs::page::{BLOCK_SIZE, PAGE_SIZE};
use btfs::storage::sim::{CutCursor, Operation, Recording};
use btfs::storage::{Image, OpKind, Rng, SimStorage};

use crate::concurrent;
use crate::coverage::Coverage;
use crate::cuts::{self, Blocks};
use crate::log_tail::{log_tail, superblock};
use crate::path::{Failure, Path, Step};
use crate::plan::{POOL_PAGES_MIN, Plan};
use crate::verify::{self, Opened};
use crate::workload::{Allowed, Done, Driver};

/// A state that is not what it must be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// How the state is reached.
    pub path: Path,
    /// What was going on.
    pub phase: &'static str,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.path, self.phase, self.reason)
    }
}

/// What an explorer reports to, and asks whether to go on.
pub trait Observer {
    /// A state is about to be looked at; `false` ends the exploration.
    fn begin(&self, path: &Path) -> bool;
}

/// What becomes of a state that was found to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Nothing more.
    Stop,
    /// Its recovery is cut again.
    CutRecovery,
    /// It is worked on for so many steps, and all this is cut again.
    WorkOn(u64),
}

impl Then {
    /// Chooses; a state in which recovery found something torn is worth more.
    fn choose(rng: &mut Rng, depth: usize, torn: bool) -> Then {
        let chance = if torn { 3 } else { 1 };
        if !cuts::goes_deeper(depth) || !rng.chance(chance, 5) {
            return Then::Stop;
        }
        match rng.below(5) {
            0 => Then::CutRecovery,
            1 | 2 => Then::WorkOn(1 + rng.below(3)),
            _ => Then::WorkOn(1 + rng.below(25)),
        }
    }
}

/// A recorded run and what is known of it.
struct Recorded {
    path: Path,
    recording: Recording,
    /// The states after each batch.
    history: Vec<u64>,
    /// In a concurrent run, the batches' LSNs, and the marks are LSNs.
    lsns: Option<Vec<u64>>,
    /// Operations before this one belong to the recovery at the beginning.
    recovery_end: u64,
    /// Blocks that were written before this run began.
    written: Blocks,
    /// Those of them that were free when it began to change anything.
    reusable: Blocks,
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

/// What the operations before a cut have done.
#[derive(Clone)]
pub(crate) struct Past {
    /// All blocks that were written.
    pub written: Blocks,
    /// A block that had been free after a recovery became a page.
    pub page_reused: bool,
    /// One became data.
    pub block_reused: bool,
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
        let (recorded, refused) = guarded(&path, "first run", || {
            let sim = plan.image()?;
            sim.start_recording();
            let mut driver = Driver::open(plan, sim.clone(), path.hash())?;
            driver.run(plan.steps)?;
            let Done { history, refused } = driver.finish();
            let recording = sim.finish_recording().ok_or("nothing was recorded")?;
            let (written, reusable) = (Blocks::none(), Blocks::none());
            let path = path.clone();
            let recorded =
                Recorded { path, recording, history, lsns: None, recovery_end: 0, written, reusable };
            Ok((recorded, refused))
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
            path,
            recording: done.recording,
            history: done.history,
            lsns: Some(done.lsns),
            recovery_end: 0,
            written: Blocks::none(),
            reusable: Blocks::none(),
        })
    }

    /// Looks at states after cuts of a recorded run.
    fn explore(&mut self, recorded: &Recorded) -> Result<(), Violation> {
        let depth = recorded.path.steps.len();
        let steps = match self.only {
            Some(only) => only.get(depth).copied().into_iter().collect(),
            None => {
                let mut rng = Rng::new(recorded.path.hash());
                cuts::choose(&recorded.recording, recorded.recovery_end, depth, &mut rng)
            }
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
            if let Some(operation) = cursor.operation() {
                let mut past = past.clone();
                past.note(operation, &recorded.reusable);
                self.visit(recorded, &cursor, step, past)?;
            } else {
                self.visit(recorded, &cursor, step, past.clone())?;
            }
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
        let image = sim.image();
        let depth = path.steps.len();
        let allowed = recorded.allowed(cursor.mark());
        let in_recovery = step.cut < recorded.recovery_end;
        self.count_cut(cursor, step, depth, in_recovery, &past);
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
        let then = Then::choose(&mut rng, depth, recovery.discarded > 0 || recovery.repaired > 0);
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
        let reusable = free_blocks(&image, &written);
        self.explore(&Recorded { path, recording, history, lsns: None, recovery_end, written, reusable })
    }

    fn count_cut(
        &mut self,
        cursor: &CutCursor<'_>,
        step: Step,
        depth: usize,
        in_recovery: bool,
        past: &Past,
    ) {
        let coverage = &mut self.coverage;
        if step.failure == Failure::Process {
            coverage.count("death of the process");
        }
        match cursor.operation() {
            Some(operation) => coverage.count_operation(operation, in_recovery),
            None => coverage.count("after the last operation"),
        }
        match depth {
            1 => coverage.count("first cut"),
            2 => coverage.count("second cut"),
            _ => coverage.count("third cut"),
        }
        if past.page_reused {
            coverage.count("page reused after recovery");
        }
        if past.block_reused {
            coverage.count("block reused after recovery");
        }
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

impl Past {
    pub(crate) fn new(written: Blocks) -> Past {
        Past { written, page_reused: false, block_reused: false }
    }

    pub(crate) fn note(&mut self, operation: &Operation, reusable: &Blocks) {
        if !matches!(operation.kind, OpKind::Write | OpKind::WriteDurable) {
            return;
        }
        let block = BLOCK_SIZE as u64;
        let (from, to) = (operation.offset / block, (operation.offset + operation.len).div_ceil(block));
        self.written.add(from, to);
        match operation.site {
            "home A" | "home B" => self.page_reused |= reusable.contains_any(from, to),
            "data" => self.block_reused |= reusable.contains_any(from, to),
            _ => {}
        }
    }
}

/// Those of the blocks that the first group's bitmap, as it is in the image, says are free.
pub(crate) fn free_blocks(image: &Image, of: &Blocks) -> Blocks {
    let Some(superblock) = superblock(image) else { return Blocks::none() };
    let mut page = [0; PAGE_SIZE];
    let id = superblock.bitmap_page(0);
    if image.read(id.offset(), &mut page).is_err() {
        return Blocks::none();
    }
    let (first, count) = (id.block().0, u64::from(superblock.group_blocks(0)));
    of.filter(|b| b >= first && b < first + count && !Bitmap(&page).in_use((b - first) as u32))
}

fn tell_cut(recorded: &Recorded, cursor: &CutCursor<'_>, path: &Path, allowed: Allowed, image: &Image) {
    println!("\n{path}: allowed are states {} to {}", allowed.first, allowed.last);
    println!("  {} operations are not durable; the last before the cut:", cursor.pending());
    let before = recorded.recording.operations().filter(|o| o.index <= cursor.index());
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

thread_local! {
    /// Where and why this thread panicked last.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    /// The state that this thread is looking at.
    static AT: RefCell<Option<Path>> = const { RefCell::new(None) };
}

/// Does something with the engine; a panic is a violation like any other.
pub(crate) fn guarded<T>(
    path: &Path,
    phase: &'static str,
    f: impl FnOnce() -> Result<T, String>,
) -> Result<T, Violation> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let outer = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match AT.with_borrow(Clone::clone) {
            Some(path) => {
                // Where panics abort, this is the last that is seen of it.
                if cfg!(panic = "abort") {
                    eprintln!("{path}: panic: {info}");
                }
                PANIC.set(Some(info.to_string()));
            }
            None => outer(info),
        }));
    });
    AT.set(Some(path.clone()));
    let result = catch_unwind(AssertUnwindSafe(f));
    AT.set(None);
    let result = result.unwrap_or_else(|_| Err(format!("panic: {}", PANIC.take().unwrap_or_default())));
    result.map_err(|reason| Violation { path: path.clone(), phase, reason })
}
