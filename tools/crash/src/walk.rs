//! What the explorations of the engine and of the filesystem have in common: the walk over the cuts of a recording, and what
//! becomes of the states.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use btfs::page::bitmap::Bitmap;
use btfs::page::{BLOCK_SIZE, PAGE_SIZE};
use btfs::storage::sim::{CutCursor, Operation, Recording};
use btfs::storage::{Image, OpKind, Rng, SimStorage};

use crate::coverage::Coverage;
use crate::cuts::{self, Blocks};
use crate::log_tail::superblock;
use crate::path::{Failure, Path, Step};

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
pub(crate) enum Then {
    /// Nothing more.
    Stop,
    /// Its recovery is cut again.
    CutRecovery,
    /// It is worked on for so many steps, and all this is cut again.
    WorkOn(u64),
}

impl Then {
    /// Chooses. Something becomes of so many states of so many; they are worked on for `longest` steps at the most.
    pub fn choose(rng: &mut Rng, depth: usize, (chance, of): (u64, u64), longest: u64) -> Then {
        if !cuts::goes_deeper(depth) || !rng.chance(chance, of) {
            return Then::Stop;
        }
        match rng.below(5) {
            0 => Then::CutRecovery,
            1 | 2 => Then::WorkOn(1 + rng.below(3)),
            _ => Then::WorkOn(1 + rng.below(longest)),
        }
    }
}

/// A recorded run, whatever it was that ran.
pub(crate) struct Run {
    /// How the state is reached that it began with.
    pub path: Path,
    pub recording: Recording,
    /// Operations before this one belong to the recovery at the beginning.
    pub recovery_end: u64,
    /// Blocks that were written before this run began.
    written: Blocks,
    /// Those of them that were free when it began to change anything.
    reusable: Blocks,
}

impl Run {
    /// One that began with a sound image.
    pub fn first(path: Path, recording: Recording, recovery_end: u64) -> Run {
        Run { path, recording, recovery_end, written: Blocks::none(), reusable: Blocks::none() }
    }

    /// One that began with what a cut had left; `image` is what its recovery had made of that.
    pub fn later(path: Path, recording: Recording, recovery_end: u64, written: Blocks, image: &Image) -> Run {
        let reusable = free_blocks(image, &written);
        Run { path, recording, recovery_end, written, reusable }
    }

    /// Goes to each of the cuts, which ascend, as far as the recording has them.
    pub fn each_cut(
        &self,
        steps: Vec<Step>,
        mut visit: impl FnMut(&CutCursor<'_>, Step, Past) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let mut cursor = self.recording.cursor();
        let mut past = Past::new(self.written.clone());
        let mut at_cut = false;
        for step in steps {
            while !at_cut || cursor.index() < step.cut {
                if let (true, Some(operation)) = (at_cut, cursor.operation()) {
                    past.note(operation, &self.reusable);
                }
                at_cut = cursor.advance();
                if !at_cut {
                    return Ok(());
                }
            }
            let mut past = past.clone();
            if let Some(operation) = cursor.operation() {
                past.note(operation, &self.reusable);
            }
            visit(&cursor, step, past)?;
        }
        Ok(())
    }
}

/// What a failure at a cut leaves.
pub(crate) fn left_by(failure: Failure, cursor: &CutCursor<'_>, rng: &mut Rng) -> Arc<SimStorage> {
    Arc::new(match failure {
        Failure::Power(policy) => SimStorage::from_image(cursor.crash(rng, policy)),
        Failure::Process => cursor.process_death(),
    })
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

impl Past {
    fn new(written: Blocks) -> Past {
        Past { written, page_reused: false, block_reused: false }
    }

    fn note(&mut self, operation: &Operation, reusable: &Blocks) {
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
fn free_blocks(image: &Image, of: &Blocks) -> Blocks {
    let Some(superblock) = superblock(image) else { return Blocks::none() };
    let mut page = [0; PAGE_SIZE];
    let id = superblock.bitmap_page(0);
    if image.read(id.offset(), &mut page).is_err() {
        return Blocks::none();
    }
    let (first, count) = (id.block().0, u64::from(superblock.group_blocks(0)));
    of.filter(|b| b >= first && b < first + count && !Bitmap(&page).in_use((b - first) as u32))
}

/// Explores the states of one seed.
pub struct Explorer<'a, Plan> {
    pub(crate) plan: &'a Plan,
    pub(crate) observer: &'a dyn Observer,
    /// The only path to follow, in a replay.
    pub(crate) only: Option<&'a [Step]>,
    /// Where the cuts were.
    pub coverage: Coverage,
}

impl<'a, Plan: fmt::Debug> Explorer<'a, Plan> {
    /// An explorer of all states of a plan.
    pub fn new(plan: &'a Plan, observer: &'a dyn Observer) -> Self {
        Explorer { plan, observer, only: None, coverage: Coverage::default() }
    }

    /// An explorer that follows one path and tells what it sees on standard output.
    pub fn replay(plan: &'a Plan, observer: &'a dyn Observer, steps: &'a [Step]) -> Self {
        println!("{plan:#?}");
        Explorer { plan, observer, only: Some(steps), coverage: Coverage::default() }
    }

    /// In a replay, the cut of a run that is next on the path, if there is one.
    pub(crate) fn only_step(&self, run: &Run) -> Option<Vec<Step>> {
        self.only.map(|only| only.get(run.path.steps.len()).copied().into_iter().collect())
    }

    pub(crate) fn count_cut(&mut self, run: &Run, cursor: &CutCursor<'_>, step: Step, past: &Past) {
        let coverage = &mut self.coverage;
        if step.failure == Failure::Process {
            coverage.count("death of the process");
        }
        match cursor.operation() {
            Some(operation) => coverage.count_operation(operation, step.cut < run.recovery_end),
            None => coverage.count("after the last operation"),
        }
        coverage.count(match run.path.steps.len() {
            0 => "first cut",
            1 => "second cut",
            _ => "third cut",
        });
        if past.page_reused {
            coverage.count("page reused after recovery");
        }
        if past.block_reused {
            coverage.count("block reused after recovery");
        }
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
