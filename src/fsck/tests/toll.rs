//! What a repair costs is said before there is one, and is what it costs then.

use super::ProblemKind as P;
use super::pages::{damage_the_log, page, superblock, two_levels, with_a_log};
use super::support::*;
use super::*;
use crate::page::node::Node;
use crate::storage::MemStorage;

const ALL: Options<'static> = Options { repair: Repair::All, scrub: false, force: true, progress: None };

fn rot(storage: &Arc<MemStorage>, id: crate::PageId) {
    storage.write_at(id.offset() + 5000, b"rot").unwrap();
}

fn listed(report: &Report, kind: P) -> Vec<String> {
    report.problems.iter().filter(|p| p.kind == kind).map(|p| p.what.clone()).collect()
}

/// What a check without repair says, and a repair of a copy.
fn both(storage: &Arc<MemStorage>) -> (Report, Toll, Report) {
    let looked = look_at(storage);
    let copy = Arc::new(MemStorage::from_image(storage.image()));
    let report = check(copy, &ALL).unwrap();
    assert_eq!(report.left, 0, "{report}");
    assert_eq!(report.toll, None);
    let toll = looked.toll.expect("something is wrong");
    (looked, toll, report)
}

#[test]
fn an_image_in_order_has_nothing_to_lose() {
    let report = look_at(&known().storage);
    assert!(report.toll.is_none() && report.to_json()["repair_would_lose"].is_null(), "{report}");
}

#[test]
fn the_only_leaf_takes_everything_with_it() {
    let storage = known().storage;
    rot(&storage, superblock(&storage).root);
    let (looked, toll, report) = both(&storage);
    assert_eq!(looked.counts, [(P::Page, 1), (P::KeysLost, 1)], "{looked}");
    assert!(toll.everything, "{looked}");
    let said = looked.to_string();
    assert!(said.contains("all records, and with them all files and names, are lost"), "{said}");
    assert!(said.contains("a repair with -y would give up everything that the tree held"), "{said}");
    assert_eq!(looked.to_json()["repair_would_lose"]["everything"], true);
    assert_eq!(listed(&looked, P::KeysLost), listed(&report, P::KeysLost), "{report}");
}

#[test]
fn a_lost_inner_page_costs_nothing_and_says_so() {
    let (storage, root, leaves) = two_levels();
    let before = look_at(&storage);
    rot(&storage, root);
    let (looked, toll, _) = both(&storage);
    let expected = Toll { leaves_found: leaves.len() as u64, ..Toll::default() };
    assert_eq!((looked.counts.as_slice(), toll), ([(P::Page, 1)].as_slice(), expected), "{looked}");
    assert_eq!((looked.inodes, looked.names), (before.inodes, before.names), "{looked}");
    let said = looked.to_string();
    assert!(said.contains("would give up nothing that is known of; it would find"), "{said}");
}

#[test]
fn a_lost_leaf_costs_what_was_said() {
    let (storage, _, leaves) = two_levels();
    let base = storage.image();
    let mut names = 0;
    for leaf in leaves {
        let storage = Arc::new(MemStorage::from_image(base.clone()));
        let low = Node(&page(&storage, leaf)).low().to_vec();
        rot(&storage, leaf);
        let (looked, toll, report) = both(&storage);
        assert_eq!((toll.everything, toll.key_ranges, toll.more), (false, 1, false), "{low:02x?}: {looked}");
        assert_eq!(listed(&looked, P::KeysLost), listed(&report, P::KeysLost), "{looked}\n{report}");
        if toll.records == 0 {
            let found = (toll.names, toll.reconnected);
            let expected = (report.lost_names, report.reconnected);
            assert_eq!(found, expected, "{low:02x?}: {looked}\n{report}");
        } else {
            assert!(toll.names <= report.lost_names, "{low:02x?}: {looked}\n{report}");
        }
        assert_eq!(listed(&looked, P::Lost), listed(&report, P::Lost), "{looked}\n{report}");
        names += toll.names;
    }
    assert!(names > 0);
}

/// A log with a damaged record: what comes behind it is lost, and is said to be.
#[test]
fn a_log_that_was_durable_is_part_of_the_loss() {
    let (storage, _) = with_a_log();
    damage_the_log(&storage);
    let (looked, toll, _) = both(&storage);
    let said = looked.to_string();
    assert!(toll.log && said.contains("give up what the log holds behind its damage"), "{said}");
}
