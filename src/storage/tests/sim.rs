//! The crash simulator, cut live.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::read;
use crate::storage::sim::{Policy, site_scope};
use crate::storage::{Image, OpKind, Rng, SimStorage, Storage};

const EVERY: [Policy; 10] = [
    Policy::Lost,
    Policy::Kept,
    Policy::Operations,
    Policy::Sectors,
    Policy::First,
    Policy::Last,
    Policy::AllButOne,
    Policy::Prefix,
    Policy::Suffix,
    Policy::Any,
];

/// Every image that some thousand cuts leave.
fn crashes(sim: &SimStorage) -> Vec<Image> {
    let mut rng = Rng::new(1);
    let policies = EVERY.iter().cycle().take(2000);
    policies.map(|&policy| sim.crash(&mut rng, policy)).collect()
}

/// What the cuts leave of a range, without repetitions.
fn leftovers(sim: &SimStorage, offset: u64, len: usize) -> HashSet<Vec<u8>> {
    let images = crashes(sim).into_iter();
    images.map(|image| read(&SimStorage::from_image(image), offset, len)).collect()
}

/// One byte for each sector, or for each block, of a range.
fn every(unit: usize, bytes: &[u8]) -> Vec<u8> {
    for unit in bytes.chunks(unit) {
        assert!(unit.iter().all(|byte| byte == &unit[0]), "torn within a unit");
    }
    bytes.iter().step_by(unit).copied().collect()
}

#[test]
fn an_unsynced_write_is_seen_by_reads_and_may_be_lost_in_a_crash() {
    let sim = SimStorage::new(65536, None);
    sim.write_at(100, b"unsynced").unwrap();
    assert_eq!(read(&sim, 100, 8), b"unsynced");
    assert_eq!(sim.pending(), 1);
    let left = leftovers(&sim, 100, 8);
    assert_eq!(left, HashSet::from([vec![0; 8], b"unsynced".to_vec()]));
}

#[test]
fn a_synced_write_survives_every_policy() {
    let sim = SimStorage::new(65536, None);
    sim.write_at(100, b"synced").unwrap();
    sim.sync().unwrap();
    assert_eq!(sim.pending(), 0);
    sim.write_at(200, b"not synced").unwrap();
    assert_eq!(leftovers(&sim, 100, 6), HashSet::from([b"synced".to_vec()]));
}

#[test]
fn a_durable_write_survives_every_policy_and_saves_no_other() {
    let sim = SimStorage::new(65536, None);
    sim.write_at(5000, b"other").unwrap();
    sim.write_durable_at(100, &[7; 3000]).unwrap();
    sim.write_at(9000, b"other").unwrap();
    assert_eq!(leftovers(&sim, 100, 3000), HashSet::from([vec![7; 3000]]));
    for offset in [5000, 9000] {
        assert_eq!(leftovers(&sim, offset, 5), HashSet::from([vec![0; 5], b"other".to_vec()]));
    }
}

#[test]
fn a_write_is_torn_between_sectors_and_never_within_one() {
    let sim = SimStorage::from_image(Image::from_bytes(&[1; 65536]));
    // Neither its beginning nor its end lies between sectors.
    sim.write_at(4096 + 200, &[2; 16384]).unwrap();
    let image_of = |left: Vec<u8>| {
        assert!(
            left[..200].iter().all(|&byte| byte == 1) && left[200 + 16384..].iter().all(|&byte| byte == 1)
        );
        assert_eq!(left[200..512].iter().collect::<HashSet<_>>().len(), 1);
        assert_eq!(left[16384..16384 + 200].iter().collect::<HashSet<_>>().len(), 1);
        let mut sectors = vec![left[200]];
        sectors.extend(every(512, &left[512..16384]));
        sectors.push(left[16384]);
        sectors
    };
    let left: HashSet<_> = leftovers(&sim, 4096, 17408).into_iter().map(image_of).collect();
    assert!(left.len() > 300, "only {} different tears", left.len());
    assert!(left.contains(&vec![1; 33]) && left.contains(&vec![2; 33]));
    // The tears that break pages: only the head is new, only the head is old.
    assert!(left.iter().any(|sectors| sectors[0] == 2 && sectors[1..].iter().all(|&sector| sector == 1)));
    assert!(left.iter().any(|sectors| sectors[0] == 1 && sectors[1..].iter().all(|&sector| sector == 2)));
}

#[test]
fn a_durable_write_cut_off_may_be_torn() {
    let sim = SimStorage::new(65536, None);
    sim.set_limit(Some(1));
    sim.write_at(40_000, b"before").unwrap();
    assert!(!sim.is_cut());
    assert_eq!(sim.write_durable_at(0, &[1; 8192]).unwrap_err().to_string(), "simulated power cut");
    assert!(sim.is_cut());
    assert!(sim.sync().is_err() && sim.write_at(0, &[3]).is_err() && sim.punch(0, 1).is_err());
    // It never happened for those who read, but its sectors may be there after the crash.
    assert_eq!(read(&sim, 0, 8192), [0; 8192]);
    let left: HashSet<_> = leftovers(&sim, 0, 8192).iter().map(|bytes| every(512, bytes)).collect();
    assert!(left.len() > 100 && left.contains(&vec![0; 16]) && left.contains(&vec![1; 16]));
    assert_eq!(sim.operations(), 2);
}

/// A page is written to the cache; then a part of it is written durably. The old bytes must not come back.
#[test]
fn a_durable_write_is_not_undone_by_an_earlier_one_that_reaches_the_medium_late() {
    let sim = SimStorage::new(65536, None);
    sim.write_at(0, &[1; 4096]).unwrap();
    sim.write_durable_at(1000, &[2; 600]).unwrap();
    assert_eq!(leftovers(&sim, 1000, 600), HashSet::from([vec![2; 600]]));
    assert!(leftovers(&sim, 0, 512).len() == 2 && leftovers(&sim, 1600, 64).len() == 2);
    // The same for a punch, and for a change of the length.
    sim.punch(0, 8192).unwrap();
    sim.write_durable_at(4096, &[3; 100]).unwrap();
    sim.set_len(2000).unwrap();
    sim.write_durable_at(10_000, &[4; 100]).unwrap();
    assert_eq!(leftovers(&sim, 10_000, 100), HashSet::from([vec![4; 100]]));
    let lens: HashSet<_> = crashes(&sim).iter().map(Image::len).collect();
    assert_eq!(lens, HashSet::from([65536, 10_100]));
    for image in crashes(&sim) {
        let left = read(&SimStorage::from_image(image), 4096, 100);
        assert!(left == [3; 100] || left == [0; 100], "what was cut off by set_len reads as zeros");
    }
}

#[test]
fn a_sync_does_not_cover_a_write_that_was_in_flight_when_it_began() {
    let sim = Arc::new(SimStorage::new(65536, None));
    let nested = Arc::new(AtomicBool::new(false));
    let (inner, guard) = (Arc::clone(&sim), Arc::clone(&nested));
    sim.write_at(0, b"completed").unwrap();
    // During every write, somebody else syncs; during every sync, somebody else writes.
    sim.set_hook(Some(Arc::new(move |operation| {
        if guard.swap(true, Ordering::Relaxed) {
            return;
        }
        match operation.kind {
            OpKind::Write => inner.sync().unwrap(),
            OpKind::Sync => inner.write_at(8192, b"too late").unwrap(),
            _ => {}
        }
        guard.store(false, Ordering::Relaxed);
    })));
    sim.write_at(4096, b"in flight").unwrap();
    assert_eq!(leftovers(&sim, 0, 9).len(), 1);
    assert_eq!(leftovers(&sim, 4096, 9).len(), 2);
    sim.sync().unwrap();
    assert_eq!(leftovers(&sim, 4096, 9).len(), 1);
    assert_eq!(leftovers(&sim, 8192, 8).len(), 2);
}

#[test]
fn a_sync_cut_off_promises_nothing() {
    let sim = SimStorage::new(65536, None);
    sim.set_limit(Some(1));
    sim.write_at(0, b"written").unwrap();
    sim.sync().unwrap_err();
    assert_eq!(leftovers(&sim, 0, 7).len(), 2);
}

#[test]
fn nothing_is_acknowledged_after_the_power_is_gone() {
    let sim = Arc::new(SimStorage::new(65536, None));
    sim.set_limit(Some(1));
    let inner = Arc::clone(&sim);
    sim.set_hook(Some(Arc::new(move |_| drop(inner.write_at(0, b"hits the limit").unwrap_err()))));
    // It was issued before the cut, but must not return as if it were durable.
    sim.write_durable_at(4096, b"in flight").unwrap_err();
    assert_eq!(leftovers(&sim, 4096, 9).len(), 2);
}

#[test]
fn a_punch_may_be_undone_block_by_block_by_a_crash() {
    let sim = SimStorage::from_image(Image::from_bytes(&[1; 65536]));
    assert!(sim.punch(4096, 32768).unwrap());
    assert_eq!(read(&sim, 4096, 32768), vec![0; 32768]);
    let left: HashSet<_> = leftovers(&sim, 0, 65536).iter().map(|bytes| every(4096, bytes)).collect();
    assert!(left.len() > 50);
    assert!(left.iter().all(|blocks| blocks[0] == 1 && blocks[9..] == [1; 7]));
    sim.sync().unwrap();
    assert_eq!(leftovers(&sim, 4096, 32768), HashSet::from([vec![0; 32768]]));
}

#[test]
fn a_host_without_allocation_says_so_before_and_after_a_crash_and_takes_nothing_back() {
    let sim = SimStorage::from_image(Image::from_bytes(&[1; 8192]).without_allocation());
    let after = SimStorage::from_image(sim.crash(&mut Rng::new(1), Policy::Any));
    for sim in [sim, after] {
        assert!(!sim.allocate(0, 8192).unwrap() && !sim.punch(4096, 4096).unwrap());
        assert_eq!(read(&sim, 0, 8192), [1; 8192]);
        assert_eq!(sim.operations(), 0);
    }
}

#[test]
fn a_change_of_the_length_may_be_undone_by_a_crash() {
    let sim = SimStorage::from_image(Image::from_bytes(&[1; 20_000]));
    sim.set_len(10_000).unwrap();
    sim.set_len(30_000).unwrap();
    for image in crashes(&sim) {
        let bytes = image.to_vec().unwrap();
        assert!([10_000, 20_000, 30_000].contains(&bytes.len()));
        assert!(bytes[..10_000].iter().all(|&byte| byte == 1));
        assert_eq!(
            bytes[10_000..].iter().take(10_000).collect::<HashSet<_>>().len(),
            usize::from(bytes.len() > 10_000)
        );
    }
    let lens: HashSet<_> = crashes(&sim).iter().map(Image::len).collect();
    assert_eq!(lens.len(), 3);
    sim.sync().unwrap();
    assert!(crashes(&sim).iter().all(|image| image == &sim.image()));
}

#[test]
fn space_never_written_holds_stale_bytes_and_punched_space_does_not() {
    let sim = SimStorage::new(65536, Some(9));
    let stale = read(&sim, 0, 65536);
    assert!(stale.chunks(512).all(|sector| sector.iter().any(|&byte| byte != 0)));
    sim.write_at(512, &[1; 512]).unwrap();
    sim.allocate(0, 8192).unwrap();
    sim.punch(4096, 4096).unwrap();
    assert!(read(&sim, 0, 512) == stale[..512] && read(&sim, 1024, 3072) == stale[1024..4096]);
    assert_eq!(read(&sim, 4096, 4096), [0; 4096]);
    let left = leftovers(&sim, 0, 8192);
    assert!(left.iter().all(|bytes| bytes[1024..4096] == stale[1024..4096]));
    assert_eq!(left.len(), 4);
}

#[test]
fn each_policy_keeps_what_it_says() {
    let sim = SimStorage::new(65536, None);
    (0..6).for_each(|index| sim.write_at(index * 512, &[1; 512]).unwrap());
    let mut rng = Rng::new(5);
    let mut left = |policy| -> HashSet<String> {
        let kept = |image: Image| {
            let bytes = image.to_vec().unwrap();
            every(512, &bytes[..6 * 512]).iter().map(|byte| if *byte == 1 { '1' } else { '0' }).collect()
        };
        (0..1000).map(|_| kept(sim.crash(&mut rng, policy))).collect()
    };
    let set = |of: &[&str]| of.iter().map(|kept| kept.to_string()).collect::<HashSet<_>>();
    assert_eq!(left(Policy::Lost), set(&["000000"]));
    assert_eq!(left(Policy::Kept), set(&["111111"]));
    assert_eq!(left(Policy::First), set(&["100000"]));
    assert_eq!(left(Policy::Last), set(&["000001"]));
    let but_one = ["011111", "101111", "110111", "111011", "111101", "111110"];
    assert_eq!(left(Policy::AllButOne), set(&but_one));
    let prefixes = ["000000", "100000", "110000", "111000", "111100", "111110", "111111"];
    assert_eq!(left(Policy::Prefix), set(&prefixes));
    let suffixes = ["111111", "011111", "001111", "000111", "000011", "000001", "000000"];
    assert_eq!(left(Policy::Suffix), set(&suffixes));
    assert_eq!(left(Policy::Operations).len(), 64, "every subset");
    assert_eq!(left(Policy::Sectors).len(), 64, "every subset");
}

#[test]
fn the_same_seed_leaves_the_same_image() {
    let sim = SimStorage::new(65536, Some(1));
    (0..20).for_each(|index| sim.write_at(index * 1000, &[index as u8; 5000]).unwrap());
    for policy in EVERY {
        let [a, b] = [Rng::new(8), Rng::new(8)].map(|mut rng| sim.crash(&mut rng, policy));
        assert!(a == b);
    }
}

/// Random operations against a model that knows, for each byte, the values that it may have after a crash.
#[test]
fn no_crash_leaves_a_byte_that_could_not_be_there() {
    const LEN: usize = 12_000;
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let sim = SimStorage::from_image(Image::from_bytes(&[0; LEN]));
        // The first is durable; the others came later and are not.
        let mut possible = vec![vec![0u8]; LEN];
        for value in 1..=60u8 {
            let start = rng.index(LEN - 1);
            let len = 1 + rng.index((LEN - start).min(6000));
            let range = start..start + len;
            match rng.below(10) {
                0..=4 => {
                    sim.write_at(start as u64, &vec![value; len]).unwrap();
                    possible[range].iter_mut().for_each(|values| values.push(value));
                }
                5 | 6 => {
                    sim.write_durable_at(start as u64, &vec![value; len]).unwrap();
                    possible[range].fill(vec![value]);
                }
                7 | 8 => {
                    sim.punch(start as u64, len as u64).unwrap();
                    possible[range].iter_mut().for_each(|values| values.push(0));
                }
                _ => {
                    sim.sync().unwrap();
                    possible.iter_mut().for_each(|values| drop(values.drain(..values.len() - 1)));
                }
            }
            let live = sim.image().to_vec().unwrap();
            assert!(live.iter().zip(&possible).all(|(byte, values)| values.last() == Some(byte)));
            for policy in EVERY {
                let left = sim.crash(&mut rng, policy).to_vec().unwrap();
                let wrong = left.iter().zip(&possible).position(|(byte, values)| !values.contains(byte));
                assert_eq!(wrong, None, "seed {seed}, {policy:?}, operation {value}");
            }
        }
    }
}

#[test]
fn operations_tell_where_in_the_engine_they_were_issued() {
    let sim = SimStorage::new(65536, None);
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    sim.set_hook(Some(Arc::new(move |operation| {
        let expected = ["", "checkpoint", "split", "checkpoint", ""][operation.index as usize];
        assert_eq!((operation.site, operation.mark), (expected, operation.index / 2));
        count.fetch_add(1, Ordering::Relaxed);
    })));
    sim.sync().unwrap();
    {
        let _checkpoint = site_scope("checkpoint");
        sim.sync().unwrap();
        sim.note(1);
        {
            let _split = site_scope("split");
            sim.write_at(0, &[1]).unwrap();
        }
        sim.allocate(0, 4096).unwrap();
    }
    sim.note(2);
    sim.set_len(65536).unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 5);
    assert_eq!((sim.operations(), sim.counts().calls(OpKind::Sync)), (5, 2));
}
