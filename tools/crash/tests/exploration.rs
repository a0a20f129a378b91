//! What a user would lose if the engine or these tests were wrong. Run with `--release`: a debug build takes minutes.
//!
//! Seeds are fixed, so that a run can be repeated; `BTFS_SEED` gives another first seed, `BTFS_STATES` another number of
//! states.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use btfs::defects::Defect;
use btfs_crash::coverage;
use btfs_crash::runner::{self, Job, Outcome, Subject};

/// Each exploration uses all cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner())
}

fn number_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn explore(seed: u64, states: u64, defect: Option<Defect>) -> Outcome {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let seed = number_from("BTFS_SEED", seed);
    println!("seed {seed}, up to {states} states, defect {defect:?}");
    run(Job { seed, states, threads, defect, ..Job::default() })
}

fn run(job: Job) -> Outcome {
    let outcome = runner::run(&Job { time: Some(Duration::from_secs(600)), ..job });
    println!(
        "{} states of {} seeds in {:.1} s, {:.0} states/s",
        outcome.states,
        outcome.seeds,
        outcome.elapsed.as_secs_f64(),
        outcome.rate()
    );
    outcome
}

#[test]
fn no_power_cut_loses_an_acknowledged_batch_or_damages_the_tree() {
    let _alone = alone();
    let states = number_from("BTFS_STATES", 10_000);
    let outcome = explore(1, states, None);
    println!("{}", outcome.coverage.table(coverage::ENGINE));
    for violation in &outcome.violations {
        println!("VIOLATION {violation}\n  replay: tools/crash-explore --replay {}", violation.path);
    }
    assert!(outcome.violations.is_empty(), "{} states are wrong", outcome.violations.len());
    assert_eq!(outcome.coverage.missing(coverage::ENGINE), [""; 0], "these sites were never reached");
}

/// Not the same twice, whatever the seed; so a failure tells its story at once.
#[test]
fn no_power_cut_while_threads_write_loses_an_acknowledged_batch() {
    let _alone = alone();
    let seed = number_from("BTFS_SEED", 1);
    println!("seed {seed}, concurrent");
    let outcome =
        run(Job { seed, states: 2_000, threads: 2, subject: Subject::ConcurrentEngine, ..Job::default() });
    assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
}

/// The exploration finds the defect, and says with how many states.
fn finds(defect: Defect) {
    let _alone = alone();
    let outcome = explore(1, 60_000, Some(defect));
    let Some(violation) = outcome.violations.first() else {
        panic!("{defect:?} was not found in {} states", outcome.states);
    };
    println!("found: {violation}");
}

#[test]
fn acknowledging_before_the_sync_is_found() {
    finds(Defect::AcknowledgeBeforeSync);
}

#[test]
fn pages_written_without_a_doublewrite_are_found() {
    finds(Defect::SkipDoublewrite);
}

#[test]
fn a_doublewrite_half_reused_too_early_is_found() {
    finds(Defect::ReuseDoublewriteEarly);
}

#[test]
fn a_freed_page_reused_at_once_is_found() {
    finds(Defect::ReusePageAtOnce);
}

#[test]
fn a_freed_block_reused_at_once_is_found() {
    finds(Defect::ReuseBlockAtOnce);
}

#[test]
fn space_punched_before_the_free_is_durable_is_found() {
    finds(Defect::PunchEarly);
}

#[test]
fn a_recovery_that_builds_on_unsynced_writes_is_found() {
    finds(Defect::RecoverUnsynced);
}

#[test]
fn records_that_come_back_to_life_in_the_same_incarnation_are_found() {
    finds(Defect::SameIncarnation);
}

#[test]
fn a_page_entered_in_the_dirty_table_too_late_is_found() {
    finds(Defect::DirtyAfterAppend);
}

#[test]
fn log_space_freed_before_the_superblock_is_durable_is_found() {
    finds(Defect::FreeLogEarly);
}

#[test]
fn a_doublewrite_copy_restored_over_newer_contents_is_found() {
    finds(Defect::RestoreAnyCopy);
}

#[test]
fn pages_stamped_with_the_start_of_their_record_are_found() {
    finds(Defect::StampStartLsn);
}

#[test]
fn a_separator_posted_without_its_split_is_found() {
    finds(Defect::PostWithoutSplit);
}

#[test]
fn logged_contents_written_over_freed_blocks_are_found() {
    finds(Defect::ReplayFreedData);
}

#[test]
fn every_defect_has_a_test() {
    let source = include_str!("exploration.rs");
    for defect in Defect::ALL {
        assert!(source.contains(&format!("finds(Defect::{defect:?})")), "{defect:?} has no test");
    }
}
