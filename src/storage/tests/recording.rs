//! The crash simulator, recorded and cut afterwards.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use parking_lot::Mutex;

use super::read;
use crate::storage::sim::{Policy, site_scope};
use crate::storage::{Image, OpKind, Rng, SimStorage, Storage};

/// Random operations until one fails.
fn work(sim: &SimStorage, seed: u64, operations: u64) -> std::io::Result<()> {
    let mut rng = Rng::new(seed);
    for number in 0..operations {
        let offset = rng.below(200_000);
        let bytes = vec![number as u8; 1 + rng.index(20_000)];
        sim.note(number);
        let _site = site_scope(["one", "other"][number as usize % 2]);
        match rng.below(12) {
            0..=5 => sim.write_at(offset, &bytes)?,
            6 | 7 => sim.write_durable_at(offset, &bytes)?,
            8 => drop(sim.punch(offset, bytes.len() as u64)?),
            9 => sim.sync()?,
            10 => drop(sim.allocate(offset, bytes.len() as u64)?),
            _ => sim.set_len(150_000 + offset / 2)?,
        }
    }
    Ok(())
}

#[test]
fn a_recorded_cut_leaves_what_a_live_cut_would() {
    let base = Image::new(200_000, Some(4));
    for seed in 0..5 {
        let recorded = SimStorage::from_image(base.clone());
        // The recording begins in the middle, when some writes are pending.
        work(&recorded, 99, 20).unwrap();
        recorded.start_recording();
        work(&recorded, seed, 40).unwrap();
        recorded.note(777);
        let recording = recorded.finish_recording().unwrap();
        assert!(recorded.finish_recording().is_none());
        assert_eq!(recording.cuts(), 20..=60);
        assert_eq!(recording.operations().count(), 40);
        let mut cursor = recording.cursor();
        for cut in recording.cuts() {
            assert!(cursor.advance());
            let mark = if cut == 60 { 777 } else { cut - 20 };
            assert_eq!((cursor.index(), cursor.mark()), (cut, mark));
            let site = cursor.operation().map(|operation| operation.site);
            assert_eq!(site, (cut < 60).then_some(["one", "other"][(cut as usize) % 2]));
            let live = SimStorage::from_image(base.clone());
            live.set_limit(Some(cut));
            let result = work(&live, 99, 20).and_then(|()| work(&live, seed, 40));
            assert_eq!(result.is_err(), cut < 60);
            assert_eq!(live.pending(), cursor.pending());
            for policy in [Policy::Lost, Policy::Kept, Policy::Sectors, Policy::Any, Policy::Any] {
                let image = cursor.crash(&mut Rng::new(cut), policy);
                assert!(image == live.crash(&mut Rng::new(cut), policy));
                assert!(image == recording.image_at(cut, &mut Rng::new(cut), policy).unwrap());
            }
        }
        assert!(!cursor.advance() && !cursor.advance());
        assert!(cursor.crash(&mut Rng::new(1), Policy::Kept) == recorded.image());
        assert!(recording.image_at(61, &mut Rng::new(1), Policy::Kept).is_none());
        assert!(recording.image_at(19, &mut Rng::new(1), Policy::Kept).is_none());
    }
}

#[test]
fn a_recording_that_was_cut_ends_with_the_operation_that_failed() {
    let sim = SimStorage::new(65536, None);
    sim.start_recording();
    sim.set_limit(Some(2));
    sim.write_at(0, &[1; 4096]).unwrap();
    sim.sync().unwrap();
    sim.write_at(0, &[2; 4096]).unwrap_err();
    sim.write_at(0, &[3; 4096]).unwrap_err();
    let recording = sim.finish_recording().unwrap();
    assert_eq!(recording.operations().map(|operation| operation.kind).last(), Some(OpKind::Write));
    assert_eq!(recording.cuts(), 0..=3);
    let kept = recording.image_at(3, &mut Rng::new(1), Policy::Kept).unwrap();
    assert_eq!(read(&SimStorage::from_image(kept), 0, 1), [2]);
}

/// Threads write records and acknowledge them; whatever was acknowledged must be there after every cut.
#[test]
fn what_concurrent_threads_acknowledged_is_there_after_every_cut() {
    const THREADS: u64 = 4;
    const RECORDS: u64 = 60;
    let sim = SimStorage::new(1 << 20, Some(1));
    sim.set_hook(Some(Arc::new(|_| std::thread::yield_now())));
    sim.start_recording();
    // The acknowledged records of each thread, 16 bits each, noted as one mark.
    let acknowledged = Mutex::new(0u64);
    let in_flight = AtomicU64::new(0);
    let overlaps = AtomicU64::new(0);
    let all_began = Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (sim, acknowledged, in_flight, overlaps) = (&sim, &acknowledged, &in_flight, &overlaps);
            let all_began = &all_began;
            scope.spawn(move || {
                all_began.wait();
                for record in 0..RECORDS {
                    overlaps.fetch_add(in_flight.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
                    let offset = (thread * RECORDS + record) * 700;
                    match record % 3 {
                        0 => sim.write_durable_at(offset, &[1; 700]).unwrap(),
                        _ => {
                            sim.write_at(offset, &[1; 700]).unwrap();
                            sim.sync().unwrap();
                        }
                    }
                    in_flight.fetch_sub(1, Ordering::Relaxed);
                    let mut acknowledged = acknowledged.lock();
                    *acknowledged += 1 << (16 * thread);
                    sim.note(*acknowledged);
                }
            });
        }
    });
    assert!(overlaps.load(Ordering::Relaxed) > 0, "nothing was concurrent");
    let recording = sim.finish_recording().unwrap();
    let mut cursor = recording.cursor();
    let mut rng = Rng::new(1);
    while cursor.advance() {
        let image = cursor.crash(&mut rng, Policy::Any);
        for thread in 0..THREADS {
            let count = cursor.mark() >> (16 * thread) & 0xffff;
            let mut bytes = vec![0; count as usize * 700];
            image.read(thread * RECORDS * 700, &mut bytes).unwrap();
            assert!(
                bytes.iter().all(|&byte| byte == 1),
                "cut {} lost an acknowledged record",
                cursor.index()
            );
        }
    }
    assert_eq!(cursor.mark(), (0..THREADS).map(|thread| RECORDS << (16 * thread)).sum::<u64>());
}

#[test]
fn what_a_dead_process_wrote_is_seen_but_not_durable() {
    let sim = SimStorage::new(8192, None);
    sim.start_recording();
    sim.write_at(0, b"a").unwrap();
    sim.sync().unwrap();
    sim.write_at(1, b"b").unwrap();
    sim.write_durable_at(2, b"c").unwrap();
    sim.sync().unwrap();
    let recording = sim.finish_recording().unwrap();
    let mut cursor = recording.cursor();
    let mut rng = Rng::new(1);
    let read = |image: Image| {
        let mut bytes = [0; 3];
        image.read(0, &mut bytes).unwrap();
        bytes
    };
    for (cut, kept) in [b"a\0\0", b"a\0\0", b"ab\0", b"abc", b"abc", b"abc"].into_iter().enumerate() {
        assert!(cursor.advance());
        let survivor = cursor.process_death();
        assert_eq!(&read(survivor.image()), kept, "cut {cut}");
        let lost = read(survivor.crash(&mut rng, Policy::Lost));
        // The operation in flight made nothing durable, nor did a sync.
        let durable: &[u8] = [b"\0\0\0", b"\0\0\0", b"a\0\0", b"a\0\0", b"a\0c", b"abc"][cut];
        assert_eq!(lost, durable, "cut {cut}");
        survivor.sync().unwrap();
        assert_eq!(&read(survivor.crash(&mut rng, Policy::Lost)), kept, "cut {cut}");
    }
}

/// Of several threads all operations in flight go to their end, whichever of them the cut is at.
#[test]
fn what_other_threads_of_a_dead_process_had_in_flight_is_durable_after_a_sync() {
    let sim = Arc::new(SimStorage::new(8192, None));
    sim.start_recording();
    // Each is issued while the one before it is in flight.
    let inner = Arc::downgrade(&sim);
    sim.set_hook(Some(Arc::new(move |operation| {
        let sim = inner.upgrade().unwrap();
        match operation.index {
            0 => sim.write_durable_at(1, b"b").unwrap(),
            1 => sim.sync().unwrap(),
            2 => sim.write_at(2, b"c").unwrap(),
            _ => {}
        }
    })));
    sim.write_at(0, b"a").unwrap();
    let recording = sim.finish_recording().unwrap();
    let mut cursor = recording.cursor();
    let mut rng = Rng::new(1);
    let read = |image: Image| {
        let mut bytes = [0; 3];
        image.read(0, &mut bytes).unwrap();
        bytes
    };
    for (cut, kept) in [b"a\0\0", b"ab\0", b"ab\0", b"abc"].into_iter().enumerate() {
        assert!(cursor.advance());
        let survivor = cursor.process_death();
        assert_eq!(&read(survivor.image()), kept, "cut {cut}");
        assert_eq!(&read(survivor.crash(&mut rng, Policy::Lost)), b"\0\0\0", "cut {cut}");
        survivor.sync().unwrap();
        assert_eq!(&read(survivor.crash(&mut rng, Policy::Lost)), kept, "cut {cut}");
        assert_eq!(survivor.pending(), 0, "cut {cut}");
    }
}
