//! What a user would lose if the engine or these tests were wrong. Run with `--release`: a debug build takes minutes.

mod common;

use btfs::defects::Defect;
use btfs_crash::runner::Subject;

#[test]
fn no_power_cut_loses_an_acknowledged_batch_or_damages_the_tree() {
    common::finds_nothing(Subject::Engine, 10_000);
}

/// Not the same twice, whatever the seed; so a failure tells its story at once.
#[test]
fn no_power_cut_while_threads_write_loses_an_acknowledged_batch() {
    let outcome = common::explore(Subject::ConcurrentEngine, 2_000, 2, None);
    assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
}

fn finds(defect: Defect) {
    common::finds(Subject::Engine, 60_000, defect);
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
    for defect in Defect::ENGINE {
        assert!(source.contains(&format!("finds(Defect::{defect:?})")), "{defect:?} has no test");
    }
}
