//! Nothing is reported of images that are in order.

use super::support::*;
use super::*;
use crate::storage::sim::Policy;
use crate::storage::{MemStorage, Rng, SimStorage};

#[test]
fn no_false_alarm_after_random_operations() {
    for seed in 0..6 {
        let storage = sample(seed, 1500);
        let report = look_at(&storage);
        assert!(report.is_clean(), "seed {seed}: {report}");
        assert!(report.inodes > 100 && report.names > 100 && report.scrubbed_bytes > 1 << 20, "{report}");
        assert!(report.replay.is_none());
        assert_eq!(report.to_json()["state"], "clean");
    }
}

/// `BTFS_CUTS` states of crashes.
#[test]
fn no_false_alarm_after_a_crash_at_any_moment() {
    let wanted: u64 = std::env::var("BTFS_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    for seed in 0..3 {
        let sim = Arc::new(SimStorage::new(SIZE, None));
        let mut world = World::new(sim.clone(), SIZE, 100 + seed);
        (0..200).for_each(|_| world.step());
        sim.start_recording();
        (0..400).for_each(|_| world.step());
        let recording = sim.finish_recording().unwrap();
        let cuts = recording.cuts().end() - recording.cuts().start();
        let every = (cuts * 3 / wanted).max(1);
        let (mut cursor, mut rng) = (recording.cursor(), Rng::new(seed));
        while cursor.advance() {
            if !cursor.index().is_multiple_of(every) {
                continue;
            }
            let image = cursor.crash(&mut rng, Policy::Any);
            let storage = Arc::new(MemStorage::from_image(image));
            let report = check(storage, &Options { scrub: true, ..Options::default() }).unwrap();
            assert!(report.is_clean(), "seed {seed}, cut {}: {report}", cursor.index());
            assert!(report.replay.is_some_and(|r| !r.clean));
        }
    }
}
