//! Explores many seeds with several threads, up to a number of states or a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use btfs::defects::{Defect, Defects};

use crate::coverage::{self, Coverage, Required};
use crate::fs;
use crate::path::{Path, Step};
use crate::plan::Plan;
use crate::walk::{Explorer, Observer, Violation};

/// A state that takes longer than this hangs. Counted in looks of the watchdog, so that a process that was stopped and
/// goes on is not taken for one that hangs.
const HANG: Duration = Duration::from_secs(60);
/// Between two looks of the watchdog.
const LOOK: Duration = Duration::from_millis(20);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);
/// After so many violations an exploration ends.
const VIOLATIONS_MAX: usize = 8;

/// What is explored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subject {
    /// The storage engine.
    #[default]
    Engine,
    /// The storage engine, at first with several threads.
    ConcurrentEngine,
    /// The whole filesystem.
    Filesystem,
}

impl Subject {
    /// The sites that an exploration must have reached.
    pub fn required(self) -> Required {
        match self {
            Subject::Engine | Subject::ConcurrentEngine => coverage::ENGINE,
            Subject::Filesystem => coverage::FILESYSTEM,
        }
    }

    /// Options of the command that stand for it.
    pub fn options(self) -> &'static str {
        match self {
            Subject::Engine => "",
            Subject::ConcurrentEngine => "--concurrent ",
            Subject::Filesystem => "--fs ",
        }
    }

    /// Explores one seed.
    fn explore(
        self,
        seed: u64,
        defects: Defects,
        observer: &dyn Observer,
    ) -> (Coverage, Result<(), Violation>) {
        if self == Subject::Filesystem {
            let plan = fs::plan::Plan::new(seed, defects);
            let mut explorer = Explorer::new(&plan, observer);
            let result = explorer.run();
            return (explorer.coverage, result);
        }
        let plan = Plan::new(seed, defects);
        let mut explorer = Explorer::new(&plan, observer);
        let concurrent = self == Subject::ConcurrentEngine;
        let result = if concurrent { explorer.run_concurrent() } else { explorer.run() };
        (explorer.coverage, result)
    }

    /// Follows one path, and tells on standard output what it sees.
    ///
    /// # Errors
    /// The first state that is wrong.
    pub fn replay(self, path: &Path, defects: Defects) -> Result<(), Violation> {
        let steps: &[Step] = &path.steps;
        match self {
            Subject::Filesystem => {
                let plan = fs::plan::Plan::new(path.seed, defects);
                Explorer::replay(&plan, &Always, steps).run()
            }
            _ => Explorer::replay(&Plan::new(path.seed, defects), &Always, steps).run(),
        }
    }
}

/// Goes on and on.
struct Always;

impl Observer for Always {
    fn begin(&self, _: &Path) -> bool {
        true
    }
}

/// What to explore.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// What.
    pub subject: Subject,
    /// The first seed; the others follow it.
    pub seed: u64,
    /// How many states.
    pub states: u64,
    /// How long at the most.
    pub time: Option<Duration>,
    /// How many threads.
    pub threads: usize,
    /// The defect that is planted. The exploration then ends when it has been found.
    pub defect: Option<Defect>,
    /// Whether to print progress to standard error.
    pub progress: bool,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// States looked at.
    pub states: u64,
    /// Seeds begun.
    pub seeds: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Where the cuts were.
    pub coverage: Coverage,
    /// What is wrong.
    pub violations: Vec<Violation>,
}

impl Outcome {
    /// States a second.
    pub fn rate(&self) -> f64 {
        self.states as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// The set with this defect, or the empty one.
pub fn defects(defect: Option<Defect>) -> Defects {
    defect.map_or_else(Defects::default, Defects::only)
}

/// A worker thread as the others see it.
#[derive(Default)]
struct Worker {
    /// The state that it is at, and for how many looks of the watchdog it has been there.
    at: Mutex<Option<(u32, Path)>>,
}

/// What the threads share.
struct Shared<'j> {
    job: &'j Job,
    deadline: Option<Instant>,
    next_seed: AtomicU64,
    states: AtomicU64,
    stop: AtomicBool,
    outcome: Mutex<Outcome>,
    workers: Vec<Worker>,
}

/// One worker's observer.
struct Watch<'s> {
    shared: &'s Shared<'s>,
    worker: &'s Worker,
}

impl Observer for Watch<'_> {
    fn begin(&self, path: &Path) -> bool {
        let shared = self.shared;
        let late = shared.deadline.is_some_and(|d| Instant::now() >= d);
        if late || shared.stop.load(Ordering::Relaxed) {
            return false;
        }
        // The first run of a seed is not a state.
        if !path.steps.is_empty() && shared.states.fetch_add(1, Ordering::Relaxed) >= shared.job.states {
            shared.states.fetch_sub(1, Ordering::Relaxed);
            shared.stop.store(true, Ordering::Relaxed);
            return false;
        }
        *lock(&self.worker.at) = Some((0, path.clone()));
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Explores.
pub fn run(job: &Job) -> Outcome {
    let started = Instant::now();
    let shared = Shared {
        job,
        deadline: job.time.map(|t| started + t),
        next_seed: AtomicU64::new(job.seed),
        states: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        outcome: Mutex::new(Outcome::default()),
        workers: (0..job.threads.max(1)).map(|_| Worker::default()).collect(),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            shared.workers.iter().map(|worker| scope.spawn(|| work(&shared, worker))).collect();
        let mut printed = Instant::now();
        while workers.iter().any(|w| !w.is_finished()) {
            std::thread::sleep(LOOK);
            watch(&shared);
            if job.progress && printed.elapsed() >= PROGRESS {
                printed = Instant::now();
                progress(&shared, started);
            }
        }
    });
    let mut outcome = shared.outcome.into_inner().unwrap_or_else(|e| e.into_inner());
    outcome.states = shared.states.into_inner();
    outcome.seeds = shared.next_seed.into_inner() - job.seed;
    outcome.elapsed = started.elapsed();
    outcome
}

fn work(shared: &Shared<'_>, worker: &Worker) {
    let watch = Watch { shared, worker };
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.deadline.is_some_and(|d| Instant::now() >= d) {
            break;
        }
        let seed = shared.next_seed.fetch_add(1, Ordering::Relaxed);
        let subject = shared.job.subject;
        let (coverage, result) = subject.explore(seed, defects(shared.job.defect), &watch);
        let mut outcome = lock(&shared.outcome);
        outcome.coverage.add(&coverage);
        if let Err(violation) = result {
            if shared.job.defect.is_none() {
                let options = subject.options();
                eprintln!(
                    "VIOLATION {violation}\n  replay: tools/crash-explore {options}--replay {}",
                    violation.path
                );
            }
            outcome.violations.push(violation);
            if shared.job.defect.is_some() || outcome.violations.len() >= VIOLATIONS_MAX {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
    }
    *lock(&worker.at) = None;
}

/// Ends the program if a state hangs: there is no other way to end the thread.
fn watch(shared: &Shared<'_>) {
    for worker in &shared.workers {
        if let Some((looks, path)) = &mut *lock(&worker.at) {
            *looks += 1;
            if LOOK * *looks > HANG {
                eprintln!("HANG {path}: no end after {} s", HANG.as_secs());
                std::process::exit(3);
            }
        }
    }
}

fn progress(shared: &Shared<'_>, started: Instant) {
    let states = shared.states.load(Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    let violations = lock(&shared.outcome).violations.len();
    let seed = shared.next_seed.load(Ordering::Relaxed);
    eprintln!(
        "{seconds:>6.0} s  {states:>9} states  {:>6.0} states/s  seed {seed}  {violations} violations",
        states as f64 / seconds
    );
}
