//! Images in memory, the generator that fills them, and the counts.

use crate::storage::{Counts, Image, MemStorage, OpKind, Rng, Storage};

#[test]
fn an_image_holds_what_a_plain_vector_would() {
    for stale in [None, Some(5)] {
        let mut rng = Rng::new(11);
        let mut image = Image::new(700_001, stale);
        let mut model = image.to_vec().unwrap();
        assert_eq!(model.iter().any(|&byte| byte != 0), stale.is_some());
        let mut copies = Vec::new();
        for step in 0..1500 {
            let unit = [1, 512, 4096][rng.index(3)];
            let offset = rng.below(model.len() as u64 / unit + 1) * unit;
            let len = rng.below(20_000 / unit + 1) * unit;
            let (start, end) = (offset as usize, (offset + len) as usize);
            match rng.below(8) {
                0..=3 if end < 900_000 => {
                    let mut bytes = vec![0; len as usize];
                    rng.fill(&mut bytes);
                    image.write(offset, &bytes).unwrap();
                    if end > model.len() && len > 0 {
                        let from = model.len();
                        model.resize(end, 0);
                        image.read(from as u64, &mut model[from..]).unwrap();
                    }
                    if len > 0 {
                        model[start..end].copy_from_slice(&bytes);
                    }
                }
                4 | 5 => {
                    image.zero(offset..offset + len);
                    let end = end.min(model.len());
                    model[start.min(end)..end].fill(0);
                }
                6 if rng.chance(1, 8) => {
                    image.set_len(offset).unwrap();
                    model.truncate(start);
                }
                _ => copies.push((image.clone(), model.clone())),
            }
            if copies.len() > 10 {
                copies.swap_remove(rng.index(10));
            }
            assert_eq!(image.len(), model.len() as u64);
            if step % 50 == 0 {
                assert!(image.to_vec().unwrap() == model, "step {step}");
                assert!(stale.is_some() || image == Image::from_bytes(&model));
            }
        }
        // A copy does not see what happened to the original since.
        for (copy, model) in copies {
            assert!(copy.to_vec().unwrap() == model);
        }
    }
}

#[test]
fn images_that_differ_in_one_byte_are_not_taken_for_equal() {
    let mut rng = Rng::new(1);
    let image = Image::new(1_000_000, Some(1));
    assert!(image == Image::from_bytes(&image.to_vec().unwrap()));
    for offset in [0, 4095, 262_144, 999_999, rng.below(1_000_000)] {
        let mut other = image.clone();
        assert!(other == image);
        let mut byte = [0];
        other.read(offset, &mut byte).unwrap();
        other.write(offset, &byte).unwrap();
        assert!(other == image);
        other.write(offset, &[!byte[0]]).unwrap();
        assert!(other != image);
    }
    assert!(Image::new(10, None) != Image::new(11, None));
    assert!(Image::new(9000, None) != Image::new(9000, Some(0)));
    assert!(Image::new(9000, Some(0)) != Image::new(9000, Some(1)));
}

#[test]
fn a_sparse_image_takes_memory_only_for_what_was_written() {
    let storage = MemStorage::new(64 << 30);
    storage.write_at((64 << 30) - 10, b"at the end").unwrap();
    storage.write_at(8190, &[1; 4]).unwrap();
    assert_eq!(storage.image().allocated(), 3 * 4096);
    assert!(storage.punch(0, 1 << 20).unwrap());
    assert_eq!(storage.image().allocated(), 4096);
    storage.set_len(1 << 30).unwrap();
    assert_eq!(storage.image().allocated(), 0);
}

#[test]
fn a_wild_offset_is_an_error_and_no_memory() {
    let storage = MemStorage::new(4096);
    for offset in [u64::MAX, u64::MAX - 1, 1 << 62, 1 << 43] {
        assert_eq!(storage.write_at(offset, &[1]).unwrap_err().raw_os_error(), Some(libc::EFBIG));
        assert_eq!(storage.set_len(offset).unwrap_err().raw_os_error(), Some(libc::EFBIG));
        assert!(storage.read_at(offset, &mut [0]).is_err());
        assert!(storage.punch(offset, u64::MAX).unwrap());
    }
    assert_eq!(storage.len().unwrap(), 4096);
}

#[test]
fn a_seed_replays_the_same_numbers() {
    let numbers = |seed| {
        let mut rng = Rng::new(seed);
        [(); 100].map(|()| rng.next_u64())
    };
    assert_eq!(numbers(1), numbers(1));
    assert_ne!(numbers(1), numbers(2));
    // The reference implementation's first number for the state that splitmix64 makes of 0.
    assert_eq!(numbers(0)[0], 5987356902031041503);
    let mut rng = Rng::new(3);
    let mut seen = [0; 10];
    (0..10_000).for_each(|_| seen[rng.index(10)] += 1);
    assert!(seen.iter().all(|&count| (900..1100).contains(&count)), "{seen:?}");
    assert_eq!((0..8000).filter(|_| rng.chance(1, 4)).count() / 100, 20);
    assert!(!rng.chance(0, 5) && rng.chance(5, 5));
}

#[test]
fn counts_tell_what_was_added_since() {
    let mut counts = Counts::default();
    counts.add(OpKind::Write, 2, 100);
    let earlier = counts;
    counts.add(OpKind::WriteDurable, 1, 50);
    counts.add(OpKind::Sync, 1, 0);
    let since = counts.since(&earlier);
    assert_eq!((since.calls(OpKind::Write), since.calls(OpKind::WriteDurable)), (0, 1));
    assert_eq!((since.bytes_written(), counts.bytes_written()), (50, 150));
}
