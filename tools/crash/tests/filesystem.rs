//! What a user would lose if the filesystem or these tests were wrong. Run with `--release`: a debug build takes minutes.
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

fn explore(states: u64, defect: Option<Defect>) -> Outcome {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let seed = number_from("BTFS_SEED", 1);
    println!("seed {seed}, up to {states} states, defect {defect:?}");
    let time = Some(Duration::from_secs(600));
    let subject = Subject::Filesystem;
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

#[test]
fn no_power_cut_loses_what_was_synced_or_shows_what_never_was() {
    let _alone = alone();
    let outcome = explore(number_from("BTFS_STATES", 8_000), None);
    println!("{}", outcome.coverage.table(coverage::FILESYSTEM));
    for violation in &outcome.violations {
        println!("VIOLATION {violation}\n  replay: tools/crash-explore --fs --replay {}", violation.path);
    }
    assert!(outcome.violations.is_empty(), "{} states are wrong", outcome.violations.len());
    assert_eq!(outcome.coverage.missing(coverage::FILESYSTEM), [""; 0], "these sites were never reached");
}

/// The exploration finds the defect, and says with how many states.
fn finds(defect: Defect) {
    let _alone = alone();
    let outcome = explore(8_000, Some(defect));
    let Some(violation) = outcome.violations.first() else {
        panic!("{defect:?} was not found in {} states", outcome.states);
    };
    println!("found: {violation}");
}

#[test]
fn a_sync_that_does_not_wait_is_found() {
    finds(Defect::AcknowledgeBeforeSync);
}

#[test]
fn blocks_of_another_file_in_freed_space_are_found() {
    finds(Defect::ReuseBlockAtOnce);
}

#[test]
fn logged_contents_that_come_back_over_another_file_are_found() {
    finds(Defect::ReplayFreedData);
}

#[test]
fn a_file_that_shows_old_garbage_is_found() {
    finds(Defect::MetadataBeforeData);
}

#[test]
fn a_record_that_overtakes_its_contents_is_found() {
    finds(Defect::GroupBeforeContents);
}

#[test]
fn a_file_that_a_rename_loses_is_found() {
    finds(Defect::RenameInTwoBatches);
}

#[test]
fn a_truncate_that_stops_halfway_is_found() {
    finds(Defect::CutWithoutMark);
}

#[test]
fn space_that_an_open_file_takes_for_ever_is_found() {
    finds(Defect::UnlinkWithoutMark);
}

#[test]
fn two_directories_with_the_same_numbers_are_found() {
    finds(Defect::GroupsUnreserved);
}

#[test]
fn a_link_that_is_not_counted_is_found() {
    finds(Defect::LinkCountLater);
}

#[test]
fn a_file_with_a_size_and_no_contents_is_found() {
    finds(Defect::SizeBeforeContents);
}

#[test]
fn shared_blocks_that_are_not_counted_are_found() {
    finds(Defect::CountSharedLater);
}

#[test]
fn every_defect_has_a_test() {
    let source = include_str!("filesystem.rs");
    for defect in Defect::FILESYSTEM {
        assert!(source.contains(&format!("finds(Defect::{defect:?})")), "{defect:?} has no test");
    }
}
