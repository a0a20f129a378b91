use std::sync::Arc;

use crate::storage::overlay::{kib, spare_of_group};
use crate::storage::{Fault, FaultStorage, MemStorage, OpKind, OverlayStorage, Rng, Storage};

/// What the overlay shows is what a copy of the image would, and the image below keeps its bytes.
#[test]
fn writes_are_seen_and_the_image_below_is_not_changed() {
    const LEN: usize = 50_001;
    let mut rng = Rng::new(3);
    let mut original = vec![0; LEN];
    rng.fill(&mut original);
    let below = Arc::new(MemStorage::new(LEN as u64));
    below.write_at(0, &original).unwrap();
    let overlay = OverlayStorage::new(below.clone(), u64::MAX).unwrap();
    assert_eq!(overlay.held(), 0);
    let mut expected = original.clone();
    for _ in 0..500 {
        let at = rng.index(LEN + 1);
        let len = rng.index((LEN - at).min(10_000) + 1);
        if rng.chance(1, 3) {
            let mut bytes = vec![0; len];
            rng.fill(&mut bytes);
            overlay.write_at(at as u64, &bytes).unwrap();
            expected[at..at + len].copy_from_slice(&bytes);
        } else {
            let mut bytes = vec![0; len];
            overlay.read_at(at as u64, &mut bytes).unwrap();
            assert_eq!(bytes, expected[at..at + len]);
        }
    }
    assert!(!overlay.punch(0, 4096).unwrap());
    let mut bytes = vec![0; LEN];
    overlay.read_at(0, &mut bytes).unwrap();
    assert!(bytes == expected);
    below.read_at(0, &mut bytes).unwrap();
    assert!(bytes == original, "a write reached the image below");
}

#[test]
fn an_overlay_takes_memory_only_for_what_was_written() {
    let overlay = OverlayStorage::new(MemStorage::new(1 << 40), u64::MAX).unwrap();
    overlay.write_at((1 << 39) + 4000, &[1; 200]).unwrap();
    assert_eq!(overlay.held(), 2 * 4096);
}

#[test]
fn nothing_is_written_past_the_end_of_an_overlay() {
    let overlay = OverlayStorage::new(MemStorage::new(10_000), u64::MAX).unwrap();
    overlay.write_at(9_999, b"a").unwrap();
    overlay.write_at(10_000, b"").unwrap();
    overlay.set_len(10_000).unwrap();
    for (offset, len) in [(9_999, 2), (10_000, 1), (u64::MAX, 1), (u64::MAX - 1, 8)] {
        assert!(overlay.write_at(offset, &vec![0; len]).is_err());
    }
    assert!(overlay.set_len(9_999).is_err() && overlay.set_len(20_000).is_err());
    assert!(overlay.read_at(9_999, &mut [0; 2]).is_err());
    assert_eq!(overlay.len().unwrap(), 10_000);
}

#[test]
fn what_was_written_can_be_read_although_the_storage_below_cannot() {
    let below = FaultStorage::new(MemStorage::new(20_000));
    below.arm(Fault::nth(&[OpKind::Read], 0).forever());
    let overlay = OverlayStorage::new(below, u64::MAX).unwrap();
    overlay.write_at(4096, &[7; 8192]).unwrap();
    let mut bytes = [0; 6000];
    overlay.read_at(5000, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 6000]);
    assert!(overlay.read_at(0, &mut bytes).is_err(), "in front of it");
    assert!(overlay.read_at(8000, &mut bytes).is_err(), "behind it");
    assert!(overlay.write_at(0, &[7; 10]).is_err(), "the rest of a block is needed");
}

#[test]
fn a_write_that_needs_more_memory_than_there_is_changes_nothing() {
    const MIB: u64 = 1 << 20;
    let overlay = OverlayStorage::new(MemStorage::new(1 << 40), MIB + 4095).unwrap();
    overlay.write_at(0, &[1; MIB as usize - 4096]).unwrap();
    for (offset, len) in [(MIB - 1, 2), (MIB - 4097, 4098), (1 << 30, 4097), (0, 2 * MIB as usize)] {
        let error = overlay.write_at(offset, &vec![2; len]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("needs more than 1 MiB of memory"), "{error}");
    }
    let mut bytes = vec![0; 2 * MIB as usize];
    overlay.read_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().position(|b| *b != 1) == Some(MIB as usize - 4096) && !bytes.contains(&2));
    // What is held already, and what there is room for, can be written.
    overlay.write_at(MIB - 4097, &[3; 4097]).unwrap();
    assert_eq!(overlay.held(), MIB);
    overlay.write_at(100, &[4; MIB as usize - 100]).unwrap();
    overlay.write_at(1 << 30, b"").unwrap();
    assert!(overlay.write_at(1 << 30, b"5").is_err());
}

#[test]
fn the_memory_that_is_available_is_read() {
    let available = |told| kib(told, "MemAvailable:");
    let told = "MemTotal:       16316412 kB\nMemFree: 1 kB\nMemAvailable:   12001234 kB\nBuffers: 2 kB\n";
    assert_eq!(available(told), Some(12_001_234 << 10));
    let strange = ["", "MemTotal: 5 kB\n", "MemAvailable:\n", "MemAvailable: 5\n", "MemAvailable: -5 kB\n"];
    assert!(strange.iter().all(|told| available(told).is_none()));
    assert!(available("MemAvailable: 18446744073709551615 kB").is_none());
}

#[test]
fn a_container_may_take_what_its_limit_leaves_and_the_files_that_it_has_cached() {
    let stat = "anon 40\nfile 31\nshmem 1\ninactive_file 20\nactive_file 10\nfile_mapped 5\n";
    let spare = |max, current| spare_of_group(max, current, stat);
    assert_eq!(spare("100\n", "75\n"), Some(55));
    assert_eq!(spare("100\n", "20\n"), Some(100));
    assert_eq!(spare("100\n", "131\n"), Some(0));
    assert_eq!(spare("max\n", "75\n"), None);
    assert_eq!(spare("100\n", ""), None);
    assert_eq!(spare_of_group("100\n", "75\n", ""), Some(25));
}
