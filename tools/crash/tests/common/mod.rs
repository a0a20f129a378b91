//! Explorations as the tests run them: one at a time, from fixed seeds, so that a run can be repeated. `BTFS_SEED` gives another
//! first seed, `BTFS_STATES` another number of states.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use btfs::defects::Defect;
use btfs_crash::runner::{self, Job, Outcome, Subject};

/// Each exploration uses all cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn number_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Explores, for ten minutes at the most.
pub fn explore(subject: Subject, states: u64, threads: usize, defect: Option<Defect>) -> Outcome {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = number_from("BTFS_SEED", 1);
    println!("{subject:?}, seed {seed}, up to {states} states, defect {defect:?}");
    let time = Some(Duration::from_secs(600));
    let outcome = runner::run(&Job { subject, seed, states, time, threads, defect, ..Job::default() });
    println!(
        "{} states of {} seeds in {:.1} s, {:.0} states/s",
        outcome.states,
        outcome.seeds,
        outcome.elapsed.as_secs_f64(),
        outcome.rate()
    );
    outcome
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// All states are right, and every site was reached.
pub fn finds_nothing(subject: Subject, states: u64) {
    let outcome = explore(subject, number_from("BTFS_STATES", states), cores(), None);
    println!("{}", outcome.coverage.table(subject.required()));
    for violation in &outcome.violations {
        println!(
            "VIOLATION {violation}\n  replay: tools/crash-explore {}--replay {}",
            subject.options(),
            violation.path
        );
    }
    assert!(outcome.violations.is_empty(), "{} states are wrong", outcome.violations.len());
    assert_eq!(outcome.coverage.missing(subject.required()), [""; 0], "these sites were never reached");
}

/// The exploration finds the defect, and says with how many states.
pub fn finds(subject: Subject, states: u64, defect: Defect) {
    let outcome = explore(subject, states, cores(), Some(defect));
    let Some(violation) = outcome.violations.first() else {
        panic!("{defect:?} was not found in {} states", outcome.states);
    };
    println!("found: {violation}");
}
