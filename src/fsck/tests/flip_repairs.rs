//! What is repaired after a bit has flipped: nothing wrong is ever taken for right.

use super::support::*;
use super::*;
use crate::storage::{MemStorage, Rng};

/// `BTFS_FLIPS` bits (300) of the sectors that hold something; with `BTFS_ALL_FLIPS=1` all of them.
#[test]
fn no_flipped_bit_passes_for_right() {
    let base = sample(400, 120);
    let model = model(&base);
    let bytes = base.image().to_vec().unwrap();
    let mut rng = Rng::new(7);
    let used: Vec<u64> = (0..bytes.len() as u64).step_by(512).filter(|at| holds(&bytes, *at)).collect();
    let chosen: Vec<u64> = if number("BTFS_ALL_FLIPS").is_some() {
        used.iter().flat_map(|at| (at * 8)..(at + 512) * 8).collect()
    } else {
        let bit = |rng: &mut Rng| used[rng.index(used.len())] * 8 + rng.below(512 * 8);
        (0..number("BTFS_FLIPS").unwrap_or(300)).map(|_| bit(&mut rng)).collect()
    };
    println!("{} of {} bits", chosen.len(), used.len() * 512 * 8);
    let image = base.image();
    spread(&chosen, |bit| {
        let storage = Arc::new(MemStorage::from_image(image.clone()));
        let byte = bytes[(bit / 8) as usize] ^ 1 << (bit % 8);
        storage.write_at(bit / 8, &[byte]).unwrap();
        let about = format!("bit {bit}");
        let scrub = Options { scrub: true, ..Options::default() };
        let found = check(storage.clone(), &scrub).unwrap();
        if found.is_clean() {
            let (lost, _) = difference(&model, &storage);
            assert!(lost.is_empty(), "{about} is not reported: {lost:?}");
            return;
        }
        let all = Options { repair: Repair::All, force: true, ..scrub };
        let report = check(storage.clone(), &all).unwrap();
        assert_eq!(report.left, 0, "{about}: {report}");
        let second = check(storage.clone(), &scrub).unwrap();
        assert!(second.is_clean(), "{about}: {report}\n{second}");
        compare(&model, &storage, &report, &about);
    });
}

/// Whether a sector holds anything.
fn holds(bytes: &[u8], at: u64) -> bool {
    bytes[at as usize..at as usize + 512].iter().any(|b| *b != 0)
}
