//! What a user would lose if the filesystem or these tests were wrong. Run with `--release`: a debug build takes minutes.

mod common;

use btfs::defects::Defect;
use btfs_crash::runner::Subject;

#[test]
fn no_power_cut_loses_what_was_synced_or_shows_what_never_was() {
    common::finds_nothing(Subject::Filesystem, 8_000);
}

fn finds(defect: Defect) {
    common::finds(Subject::Filesystem, 8_000, defect);
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
