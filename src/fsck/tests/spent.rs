//! Superblocks whose counters have been forged to their ends.

use super::size::{samples, superblocks};
use super::support::*;
use super::*;
use crate::error::Error;
use crate::fs::Fs;
use crate::page::Lsn;
use crate::page::superblock::*;
use crate::storage::sim::Policy;
use crate::storage::{MemStorage, Rng, SimStorage};

const ALL: Options<'static> = Options { repair: Repair::All, scrub: true, force: true, progress: None };

type Forge = fn(&mut Superblock);

/// Values that no use leads to.
const SPENT: [(&str, Forge); 7] = [
    ("sequence at its end", |s| s.sequence = COUNTER_MAX - s.sequence % 2),
    ("sequence", |s| s.sequence = COUNTER_SPENT + 2 - s.sequence % 2),
    ("incarnation at its end", |s| s.incarnation = u32::MAX - 1),
    ("incarnation", |s| s.incarnation = INCARNATION_SPENT + 1),
    ("LSNs at their end", |s| (s.checkpoint, s.floor) = (Lsn(COUNTER_MAX), Lsn(COUNTER_MAX))),
    ("LSNs", |s| (s.checkpoint, s.floor) = (Lsn(COUNTER_SPENT), Lsn(COUNTER_SPENT + 1))),
    ("all", |s| (s.sequence, s.incarnation) = (COUNTER_MAX - s.sequence % 2, u32::MAX - 1)),
];

/// The last values that are believed.
const NEARLY: [(&str, Forge); 5] = [
    ("last sequence", |s| s.sequence = COUNTER_SPENT - s.sequence % 2),
    ("sequence before", |s| s.sequence = COUNTER_SPENT - 2 - s.sequence % 2),
    ("last incarnation", |s| s.incarnation = INCARNATION_SPENT),
    ("incarnation before", |s| s.incarnation = INCARNATION_SPENT - 1),
    ("both", |s| (s.sequence, s.incarnation) = (COUNTER_SPENT - s.sequence % 2, INCARNATION_SPENT)),
];

/// Forges the superblock that counts, the other one, or both.
fn forge(storage: &Arc<MemStorage>, newer: bool, older: bool, change: Forge) {
    let (counts, both) = superblocks(storage);
    for (which, chosen) in [(counts, newer), (1 - counts, older)] {
        if chosen {
            let mut forged = both[which].clone();
            change(&mut forged);
            storage.write_at(SUPERBLOCK_OFFSETS[which], &forged.encode()).unwrap();
        }
    }
}

fn damage_bitmap(storage: &Arc<MemStorage>) {
    let at = superblocks(storage).1[0].bitmap_page(0).offset();
    storage.write_at(at + 700, b"rot").unwrap();
}

/// Repairs it; nothing of the model is missing, and a second run finds nothing.
fn mended(storage: &Arc<MemStorage>, before: &Model, about: &str) -> Report {
    let report = check(storage.clone(), &ALL).unwrap_or_else(|e| panic!("{about}: {e}"));
    assert_eq!((report.left, report.exit_code()), (0, 1), "{about}: {report}");
    let second = look_at(storage);
    assert!(second.is_clean(), "{about}: {report}\n{second}");
    let (lost, _) = difference(before, storage);
    assert!(lost.is_empty(), "{about}: {} lost\n{report}", lost.len());
    Fs::open(storage.clone(), &options()).unwrap().close().unwrap();
    assert!(look_at(storage).is_clean(), "{about}");
    report
}

/// Using it leads beyond what is believed; that can be repaired as well.
fn used_and_mended(storage: &Arc<MemStorage>, before: &Model, about: &str) {
    Fs::open(storage.clone(), &options()).unwrap().close().unwrap();
    let report = check(storage.clone(), &ALL).unwrap();
    assert_eq!(report.left, 0, "{about}: {report}");
    assert!(look_at(storage).is_clean(), "{about}: {report}");
    let (lost, _) = difference(before, storage);
    assert!(lost.is_empty(), "{about}: {} lost\n{report}", lost.len());
}

fn copy_of(storage: &Arc<MemStorage>) -> Arc<MemStorage> {
    Arc::new(MemStorage::from_image(storage.image()))
}

#[test]
fn counters_at_their_ends_lose_nothing() {
    for (base, state) in samples().iter().zip(["closed", "crashed"]) {
        let model = model(base);
        for (name, change) in SPENT {
            for (newer, older) in [(true, false), (false, true), (true, true)] {
                // The other one knows nothing of a log that was begun with the last one.
                if state == "crashed" && newer && !older {
                    continue;
                }
                for damaged in [false, true].into_iter().take(1 + (newer && older) as usize) {
                    let about = format!("{state}, {name}, {newer} {older} {damaged}");
                    let storage = copy_of(base);
                    forge(&storage, newer, older, change);
                    if damaged {
                        damage_bitmap(&storage);
                    }
                    let found = look_at(&storage);
                    let kind =
                        if newer && older { ProblemKind::SuperblocksLost } else { ProblemKind::Superblock };
                    assert_eq!((found.count(kind), found.exit_code()), (1, 4), "{about}: {found}");
                    mended(&storage, &model, &about);
                }
            }
        }
    }
}

/// What is just believed can be repaired, too, without a value that is not.
#[test]
fn counters_near_their_ends_begin_again() {
    let base = sample(400, 120);
    let model = model(&base);
    for (name, change) in NEARLY {
        for older in [false, true] {
            // The other one would count.
            if older && (name.contains("sequence") || name == "both") {
                continue;
            }
            let storage = copy_of(&base);
            forge(&storage, true, older, change);
            assert!(look_at(&storage).is_clean(), "{name}");
            used_and_mended(&copy_of(&storage), &model, name);
            damage_bitmap(&storage);
            let report = mended(&storage, &model, name);
            assert_eq!(report.counts.len(), 1, "{name}: {report}");
            let (counts, both) = superblocks(&storage);
            let (sequence, incarnation) = (both[counts].sequence, both[counts].incarnation);
            assert!(!name.contains("sequence") || sequence < 100, "{name}: {sequence}");
            assert!(!name.contains("incarnation") || incarnation < 100, "{name}: {incarnation}");
            // The log before is not taken for a newer one.
            storage.write_at(0, &[0; LOG_OFFSET as usize]).unwrap();
            mended(&storage, &model, name);
        }
    }
}

#[test]
fn an_image_with_counters_at_their_ends_is_only_read() {
    for (name, change) in SPENT {
        let k = known();
        forge(&k.storage, true, false, change);
        let before = k.storage.image().to_vec().unwrap();
        let Err(error) = Fs::open(k.storage.clone(), &options()) else { panic!("{name}: it is opened") };
        let crate::fs::FsError::Engine(Error::Unusable(text)) = &error else { panic!("{name}: {error}") };
        assert!(text.contains("btfs fsck -y"), "{name}: {text}");
        let fs = Fs::open(k.storage.clone(), &crate::tree::Options { read_only: true, ..options() }).unwrap();
        assert_eq!(fs.read(k.other, 0, 4096).unwrap(), [8; 4096], "{name}");
        drop(fs);
        assert!(before == k.storage.image().to_vec().unwrap(), "{name}: something was written");
    }
}

#[test]
fn beginning_again_can_be_interrupted() {
    let base = sample(400, 120);
    let model = model(&base);
    let (spent, nearly) = (SPENT[6].1, NEARLY[4].1);
    let cases: [(&str, bool, Forge); 3] =
        [("one spent", false, spent), ("both spent", true, spent), ("one nearly", false, nearly)];
    for (name, older, change) in cases {
        let damaged = copy_of(&base);
        forge(&damaged, true, older, change);
        damage_bitmap(&damaged);
        let sim = Arc::new(SimStorage::from_image(damaged.image()));
        sim.start_recording();
        check(sim.clone(), &ALL).unwrap();
        let recording = sim.finish_recording().unwrap();
        let (mut cursor, mut rng) = (recording.cursor(), Rng::new(5));
        while cursor.advance() {
            if !cursor.index().is_multiple_of(3) && cursor.index() > 30 {
                continue;
            }
            let storage = Arc::new(MemStorage::from_image(cursor.crash(&mut rng, Policy::Any)));
            let about = format!("{name}, cut {}", cursor.index());
            let again = check(storage.clone(), &ALL).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_eq!(again.left, 0, "{about}: {again}");
            let second = look_at(&storage);
            assert!(second.is_clean(), "{about}: {again}\n{second}");
            let (lost, _) = difference(&model, &storage);
            assert!(lost.is_empty(), "{about}: {} lost\n{again}", lost.len());
        }
    }
}
