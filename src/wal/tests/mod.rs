//! Tests of the log. Each is named after what a user would lose if it failed.

mod callbacks;
mod contents;

use std::sync::atomic::AtomicUsize;

use super::format::RECORD_SIZE_MAX;
use super::*;
use crate::storage::{Fault, FaultStorage, MemStorage, OpKind, Rng};

const PLACE: Place = Place { image: 9, offset: 4096, size: 256 << 10 };
const START: Lsn = Lsn(256 << 10);

fn storage() -> Arc<MemStorage> {
    Arc::new(MemStorage::new(1 << 20))
}

fn log(storage: &Arc<impl Storage + 'static>, incarnation: u32, end: Lsn) -> Log {
    Log::new(storage.clone(), PLACE, incarnation, end, Defects::default())
}

/// Reserves and appends a record; its end.
fn append(log: &Log, body: &[u8]) -> Lsn {
    let mut reserved = Log::record_size(body.len());
    log.try_reserve(reserved).unwrap();
    let end = log.append(body, &mut reserved);
    log.unreserve(reserved);
    end
}

fn body(rng: &mut Rng, max: u64) -> Vec<u8> {
    let mut body = vec![0; rng.below(max) as usize];
    rng.fill(&mut body);
    body
}

/// Transactions by their ends.
type Found = Vec<(Lsn, Vec<u8>)>;

fn scan_from(storage: &dyn Storage, from: Lsn, incarnation: u32, floor: Lsn) -> Result<(Scan, Found)> {
    let mut found = Vec::new();
    let scan = scan(storage, PLACE, from, incarnation, floor, |_, end, body| {
        found.push((end, body.to_vec()));
        Ok(())
    })?;
    Ok((scan, found))
}

fn overwrite(storage: &dyn Storage, at: Lsn, bytes: &[u8]) {
    storage.write_at(PLACE.offset + at.0 % PLACE.size, bytes).unwrap();
}

#[test]
fn every_committed_record_is_found_again_also_around_the_end_of_the_area() {
    let mut rng = Rng::new(1);
    let storage = storage();
    let log = log(&storage, 7, START);
    let mut all: Found = Vec::new();
    let mut tail = START;
    for n in 0..600 {
        let body = body(&mut rng, 6000);
        if log.try_reserve(Log::record_size(body.len())).is_err() {
            // A checkpoint: everything so far is durable and home.
            log.commit(log.end()).unwrap();
            tail = log.end();
            log.set_tail(tail);
            all.clear();
        } else {
            log.unreserve(Log::record_size(body.len()));
        }
        all.push((append(&log, &body), body));
        if n % 17 == 0 {
            log.commit(log.end()).unwrap();
            let (scan, found) = scan_from(&*storage, tail, 7, log.durable()).unwrap();
            assert_eq!((scan.end, found.len() as u64), (log.end(), scan.records));
            assert_eq!(found, all);
        }
    }
    assert!(log.end().0 > START.0 + 5 * PLACE.size, "the log has been around several times");
}

#[test]
fn a_group_that_was_cut_off_ends_the_log_before_it() {
    let mut rng = Rng::new(2);
    for cut in 0..40 {
        let storage = storage();
        let log = log(&storage, 1, START);
        let kept: Vec<Lsn> = (0..5).map(|_| append(&log, &body(&mut rng, 400))).collect();
        log.commit(log.end()).unwrap();
        let lost = append(&log, &body(&mut rng, 3000));
        append(&log, &body(&mut rng, 300));
        log.commit(log.end()).unwrap();
        // The mark in front of the first record of the second group may survive it.
        let from = kept[4].0 + MARK_SIZE as u64;
        let at = from + (lost.0 - from) * cut / 40;
        overwrite(&*storage, Lsn(at), &[0x5a; 1]);
        let byte_was_there = scan_from(&*storage, START, 1, START).unwrap().0.end == log.end();
        if byte_was_there {
            continue;
        }
        let (scan, found) = scan_from(&*storage, START, 1, kept[4]).unwrap();
        assert_eq!(found.len(), 5);
        assert!(scan.end.0 >= kept[4].0 && scan.end < lost && scan.discarded > 0, "{scan:?}");
    }
}

#[test]
fn a_durable_record_that_is_damaged_is_an_error_and_not_the_end() {
    let storage = storage();
    let log = log(&storage, 1, START);
    let first = append(&log, &[1; 500]);
    log.commit(first).unwrap();
    let damage = |storage: &MemStorage| overwrite(storage, Lsn(START.0 + 100), &[9]);
    // The superblock or a doublewrite header says how far the log was durable.
    let copy = MemStorage::from_image(storage.image());
    damage(&copy);
    assert!(scan_from(&copy, START, 1, first).unwrap_err().is_corrupt());
    assert_eq!(scan_from(&copy, START, 1, START).unwrap().0.end, START);
    // A later record's mark says it.
    let second = append(&log, &[2; 500]);
    log.commit(second).unwrap();
    assert_eq!(scan_from(&*storage, START, 1, START).unwrap().0.floor, first);
    damage(&storage);
    assert!(scan_from(&*storage, START, 1, START).unwrap_err().is_corrupt());
}

#[test]
fn records_of_an_older_incarnation_do_not_come_back_to_life() {
    let storage = storage();
    let old = log(&storage, 1, START);
    // Four to a page, so that no zeros are written behind the last one.
    let body = |n: u8| vec![n; 1024 - RECORD_HEADER_SIZE];
    let ends: Vec<Lsn> = (0..20).map(|n| append(&old, &body(n))).collect();
    old.commit(old.end()).unwrap();
    // A recovery ended the log behind the third record; what is written next ends where one begins that was cut off.
    let new = log(&storage, 2, ends[2]);
    for _ in 0..5 {
        append(&new, &body(77));
    }
    new.commit(new.end()).unwrap();
    assert_eq!(new.end(), ends[7]);
    let (scan, found) = scan_from(&*storage, ends[2], 2, ends[2]).unwrap();
    assert_eq!((scan.end, scan.discarded), (new.end(), 0));
    assert_eq!(found.iter().map(|(_, b)| b[0]).collect::<Vec<_>>(), [77; 5]);
}

#[test]
fn records_of_an_earlier_lap_do_not_come_back_to_life() {
    let storage = storage();
    let log = log(&storage, 1, START);
    let mut count = 0;
    while log.end().0 + 2000 < START.0 + PLACE.size {
        count += 1;
        append(&log, &[count as u8; 1000]);
    }
    log.commit(log.end()).unwrap();
    let tail = log.end();
    log.set_tail(tail);
    for _ in 0..3 {
        append(&log, &[200; 1000]);
    }
    log.commit(log.end()).unwrap();
    let (scan, found) = scan_from(&*storage, tail, 1, tail).unwrap();
    assert_eq!((scan.end, scan.discarded, found.len()), (log.end(), 0, 3));
}

#[test]
fn impossible_headers_end_the_log() {
    for (at, bytes) in [
        (0, 23u32.to_be_bytes()),
        (0, (RECORD_SIZE_MAX as u32 + 1).to_be_bytes()),
        (0, u32::MAX.to_be_bytes()),
        (0, 0u32.to_be_bytes()),
        (8, [0xff; 4]),
        (16, 9u32.to_be_bytes()),
        (20, [9; 4]),
    ] {
        let storage = storage();
        let log = log(&storage, 1, START);
        let first = append(&log, &[1; 100]);
        append(&log, &[2; 100]);
        log.commit(log.end()).unwrap();
        overwrite(&*storage, Lsn(first.0 + at), &bytes);
        let (scan, found) = scan_from(&*storage, START, 1, START).unwrap();
        assert_eq!((scan.end, found.len()), (first, 1));
    }
}

#[test]
fn a_record_never_overwrites_one_that_recovery_needs() {
    let mut rng = Rng::new(3);
    let storage = storage();
    let log = log(&storage, 1, START);
    let mut held: Vec<u64> = Vec::new();
    for _ in 0..20_000 {
        match rng.below(10) {
            0..4 => {
                let bytes = Log::record_size(rng.below(9000) as usize);
                match log.try_reserve(bytes) {
                    Ok(()) => held.push(bytes),
                    Err(shortage) => assert_eq!(shortage, Shortage::Space),
                }
            }
            4..8 if !held.is_empty() => {
                let at = rng.index(held.len());
                let mut reserved = held.swap_remove(at);
                let body = vec![1; rng.below(reserved - Log::record_size(0) + 1) as usize];
                log.append(&body, &mut reserved);
                log.unreserve(reserved);
            }
            8 => log.commit(log.end()).unwrap(),
            _ => {
                log.commit(log.end()).unwrap();
                log.set_tail(log.durable());
            }
        }
        let state = log.state.lock();
        assert_eq!(state.reserved, held.iter().sum::<u64>());
        assert!(state.end + state.reserved <= state.tail + PLACE.size, "L1");
        assert!(state.tail <= log.durable().0 && log.durable().0 <= state.end, "L1");
    }
    let free = {
        let state = log.state.lock();
        state.tail + PLACE.size - state.end - state.reserved
    };
    assert_eq!(log.try_reserve(free + 1), Err(Shortage::Space));
    assert_eq!(log.try_reserve(free), Ok(()));
}

#[test]
fn what_is_not_yet_written_stays_bounded() {
    let storage = Arc::new(MemStorage::new(80 << 20));
    let place = Place { image: 9, offset: 0, size: 64 << 20 };
    let log = Log::new(storage, place, 1, Lsn(place.size), Defects::default());
    assert_eq!(log.try_reserve(BUFFER_MAX), Ok(()));
    assert_eq!(log.try_reserve(1), Err(Shortage::Buffer));
    log.unreserve(BUFFER_MAX);
    let end = append(&log, &vec![0; 3 << 20]);
    assert_eq!(log.try_reserve(BUFFER_MAX), Err(Shortage::Buffer));
    log.commit(end).unwrap();
    assert_eq!(log.try_reserve(BUFFER_MAX), Ok(()));
}

/// A storage on which a durable write takes its time, and the order of writes and syncs.
fn slow() -> (Arc<impl Storage + 'static>, Arc<std::sync::Mutex<Vec<OpKind>>>) {
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (noted, writing) = (order.clone(), AtomicUsize::new(0));
    let observer = move |kind, _, _| {
        if kind == OpKind::WriteDurable {
            assert_eq!(writing.fetch_add(1, Ordering::SeqCst), 0, "L3: one leader at a time");
            std::thread::sleep(Duration::from_millis(2));
            writing.fetch_sub(1, Ordering::SeqCst);
        }
        noted.lock().unwrap().push(kind);
    };
    (Arc::new(FaultStorage::observed(MemStorage::new(1 << 20), observer)), order)
}

#[test]
fn committers_at_the_same_time_share_a_write() {
    let (storage, _) = slow();
    let log = log(&storage, 1, START);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let end = append(&log, &[1; 100]);
                    log.commit(end).unwrap();
                    assert!(log.durable() >= end);
                }
            });
        }
    });
    let groups = log.stats.groups.load(Ordering::Relaxed);
    assert!(groups * 2 <= 200, "{groups} writes for 200 commits");
    assert_eq!(scan_from(&*storage, START, 1, log.durable()).unwrap().1.len(), 200);
}

#[test]
fn a_single_committer_does_not_wait_for_the_flusher_to_come_back() {
    let log = log(&storage(), 1, START);
    // Somebody waits for a group, which the flusher then writes.
    log.state.lock().committers = 1;
    log.commit_aside(append(&log, &[2; 100])).unwrap();
    assert_eq!(log.state.lock().expected, 1);
}

#[test]
fn file_data_is_durable_before_the_record_that_names_it() {
    let (storage, order) = slow();
    let log = log(&storage, 1, START);
    for _ in 0..3 {
        storage.write_at(900_000, b"data").unwrap();
        log.data_written();
        let end = append(&log, b"names it");
        log.commit(end).unwrap();
        let end = append(&log, b"names nothing");
        log.commit(end).unwrap();
    }
    use OpKind::*;
    let expected = [Write, Sync, WriteDurable, WriteDurable].repeat(3);
    assert_eq!(*order.lock().unwrap(), expected);
}

#[test]
fn after_a_failed_write_every_commit_returns_the_same_error() {
    for kind in [OpKind::WriteDurable, OpKind::Sync] {
        let storage = Arc::new(FaultStorage::new(MemStorage::new(1 << 20)));
        let log = log(&storage, 1, START);
        let first = append(&log, b"one");
        log.commit(first).unwrap();
        storage.arm(Fault::nth(&[kind], 0));
        log.data_written();
        let lost = append(&log, b"two");
        let errors: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..6).map(|_| scope.spawn(|| log.commit(lost).unwrap_err().to_string())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(errors.iter().all(|e| *e == errors[0]), "{errors:?}");
        assert_eq!(log.durable(), first);
        // Also for what was durable before, and after the disk has become well again.
        storage.disarm();
        assert_eq!(log.commit(first).unwrap_err().to_string(), errors[0]);
        assert_eq!(log.commit(log.end()).unwrap_err().to_string(), errors[0]);
        assert_eq!(log.fail(Error::NoSpace).to_string(), errors[0]);
    }
}

#[test]
fn what_nobody_commits_is_durable_after_the_interval() {
    let storage = storage();
    let log = log(&storage, 1, START);
    std::thread::scope(|scope| {
        scope.spawn(|| log.run_writer(Duration::from_millis(5)));
        let end = append(&log, b"somebody's work");
        let began = std::time::Instant::now();
        while log.durable() < end {
            assert!(began.elapsed() < Duration::from_secs(20), "the writer sleeps");
            std::thread::sleep(Duration::from_millis(1));
        }
        log.stop();
    });
}

/// Groups are written up to the end of a page. In a full log that page holds the beginning of the oldest record.
#[test]
fn a_full_log_keeps_its_oldest_record() {
    for first in [100, 1000, 3000] {
        let storage = storage();
        let log = log(&storage, 1, START);
        // The tail, and so the end of a full log, lies within a page.
        let tail = append(&log, &vec![7; first]);
        log.commit(tail).unwrap();
        log.set_tail(tail);
        let mut count = 0;
        for len in [2000, 300, 20, 1] {
            while log.try_reserve(Log::record_size(len)).is_ok() {
                let mut reserved = Log::record_size(len);
                let end = log.append(&vec![7; len], &mut reserved);
                log.unreserve(reserved);
                log.commit(end).unwrap();
                count += 1;
            }
        }
        assert!(PLACE.size - log.used() < 100, "the log is not full");
        let (scan, found) = scan_from(&*storage, tail, 1, START).unwrap();
        assert_eq!((found.len(), scan.end), (count, log.end()));
    }
}

/// A log that has been closed in order, or whose volume is read-only now, is not written to.
#[test]
fn an_idle_log_needs_no_mark_behind_a_checkpoint() {
    let log = log(&storage(), 1, START);
    let end = append(&log, &[1; 200]);
    log.commit(end).unwrap();
    log.set_tail(end);
    assert!(!log.mark_end(&mut log.state.lock()));
    log.commit(append(&log, &[2; 200])).unwrap();
    assert!(log.mark_end(&mut log.state.lock()));
}

#[test]
fn damage_to_what_was_committed_last_is_found_when_the_log_has_been_idle() {
    let storage = storage();
    let log = log(&storage, 1, START);
    std::thread::scope(|scope| {
        scope.spawn(|| log.run_writer(Duration::from_millis(5)));
        let end = append(&log, b"somebody's last work");
        log.commit(end).unwrap();
        let began = std::time::Instant::now();
        while log.durable() <= end {
            assert!(began.elapsed() < Duration::from_secs(20), "no mark follows");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!log.mark_end(&mut log.state.lock()), "a mark is followed by others for ever");
        log.stop();
    });
    scan_from(&*storage, START, 1, START).unwrap();
    overwrite(&*storage, Lsn(START.0 + 30), &[0x55]);
    scan_from(&*storage, START, 1, START).unwrap_err();
}

/// Contents of files lie in the log. Who writes them knows where in it they come to lie, but not the image's identity.
#[test]
fn what_users_write_is_never_taken_for_a_record() {
    let storage = storage();
    let log = log(&storage, 1, START);
    let forged = |kind: Kind, at: Lsn, body: &[u8]| {
        let header = format::encode_header(format::hash_body(body), body.len(), at, (0, 1), kind);
        [&header, body].concat()
    };
    // A mark may come before the first record, and none before the others.
    append(&log, b"first");
    // Nearly once around: what they have written lies behind the end when that is passed.
    while log.end().0 < START.0 + PLACE.size - 20_000 {
        let first = log.end().0 + RECORD_HEADER_SIZE as u64;
        let mut body = Vec::new();
        while body.len() < 4000 {
            // Where this is now, and where the log will be one lap later.
            for lap in [0, PLACE.size] {
                let at = Lsn(first + lap + body.len() as u64);
                body.extend(forged(Kind::Mark, at, &at.0.to_be_bytes()));
                let at = Lsn(first + lap + body.len() as u64);
                body.extend(forged(Kind::Transaction, at, b"all is mine"));
            }
        }
        append(&log, &body);
    }
    let tail = log.end();
    log.commit(tail).unwrap();
    log.set_tail(tail);
    while log.end().0 < START.0 + PLACE.size + 20_000 {
        append(&log, &[7; 100]);
    }
    log.commit(log.end()).unwrap();
    let (scan, found) = scan_from(&*storage, tail, 1, tail).unwrap();
    assert_eq!(scan.end, log.end());
    assert!(scan.floor <= scan.end && scan.discarded == 0, "{scan:?}");
    assert!(found.len() > 200 && found.iter().all(|(_, body)| *body == [7; 100]));
    // A crash may have cut off all that.
    overwrite(&*storage, tail, &[0xff; 300]);
    let (scan, found) = scan_from(&*storage, tail, 1, tail).unwrap();
    assert_eq!((scan.end, scan.floor, found.len()), (tail, tail, 0));
}

/// Headers without records at every so many bytes of a large log, each claiming so much.
fn forged_headers(every: usize, claims: usize) -> Result<Scan> {
    let storage = Arc::new(MemStorage::new(48 << 20));
    let place = Place { image: 9, offset: 0, size: 40 << 20 };
    let start = Lsn(place.size);
    let mut bytes = vec![0; 40 << 20];
    for at in (24..bytes.len() - 24).step_by(every) {
        let len = (bytes.len() - at).min(claims);
        let lsn = Lsn(start.0 + at as u64);
        // Of other bytes than those that are there.
        let hasher = format::hash_body(b"x");
        let header = format::encode_header(hasher, len - RECORD_HEADER_SIZE, lsn, (9, 1), Kind::Transaction);
        bytes[at..at + 24].copy_from_slice(&header);
    }
    storage.write_at(0, &bytes).unwrap();
    scan(&*storage, place, start, 1, start, |_, _, _| Ok(()))
}

#[test]
fn a_log_of_forged_headers_does_not_keep_the_opening_busy() {
    assert!(forged_headers(24, RECORD_SIZE_MAX).unwrap_err().is_corrupt());
    assert!(forged_headers(24, RECORD_HEADER_SIZE).unwrap_err().is_corrupt());
    // As many as a crash may leave, and more, are no damage.
    forged_headers(512, 512).unwrap();
    forged_headers(256, 256).unwrap();
}

/// A crash may lose the first sector of all that was in flight, and keep the rest.
#[test]
fn what_a_crash_left_behind_the_end_is_read_once() {
    const LOG: u64 = 4 << 20;
    let place = Place { image: 9, offset: 0, size: LOG };
    for len in [0, 60, 5000, 300_000] {
        let storage = Arc::new(FaultStorage::new(MemStorage::new(LOG)));
        let log = Log::new(storage.clone(), place, 1, Lsn(LOG), Defects::default());
        let body = vec![1; len];
        while log.end().0 + Log::record_size(len) < 2 * LOG {
            append(&log, &body);
        }
        log.commit(log.end()).unwrap();
        storage.write_at(0, &[0; 512]).unwrap();
        let before = storage.counts();
        let scan = scan(&*storage, place, Lsn(LOG), 1, Lsn(LOG), |_, _, _| Ok(())).unwrap();
        assert_eq!((scan.end, scan.discarded), (Lsn(LOG), log.end().0 - LOG));
        let read = storage.counts().since(&before).bytes(OpKind::Read);
        assert!(read < 3 * LOG, "records of {len}: {read} bytes");
    }
}

/// Records that came while a group was written are not durable yet when the next mark is appended. If it said so, a crash that loses
/// them would pass for damage, and the image could not be opened.
#[test]
fn a_mark_tells_of_no_record_that_is_still_to_be_written() {
    let storage = storage();
    let log = log(&storage, 1, START);
    let first = append(&log, b"written");
    let second = append(&log, b"came meanwhile");
    // As when the group that ends with the first record has just become durable.
    log.durable.store(first.0, Ordering::SeqCst);
    append(&log, b"behind a mark");
    log.commit(log.end()).unwrap();
    overwrite(&*storage, Lsn(second.0 - 3), &[0x55]);
    let (scan, found) = scan_from(&*storage, START, 1, START).unwrap();
    assert_eq!((scan.end, scan.floor, found.len()), (first, first, 1));
}

/// The mark of an idle log is paid by no reservation. In a full log it would lie where the oldest record does, or take what others
/// have set aside.
#[test]
fn an_idle_log_that_is_full_gets_no_mark() {
    let log = log(&storage(), 1, START);
    log.commit(append(&log, &[1; 200])).unwrap();
    let rest = PLACE.size - log.used();
    log.try_reserve(rest - MARK_SIZE as u64 + 1).unwrap();
    assert!(!log.mark_end(&mut log.state.lock()));
    log.unreserve(1);
    assert!(log.mark_end(&mut log.state.lock()));
}

/// An fsync of a mount is a commit by callback. Who makes one after each small write waits for one write of the log each.
#[test]
fn after_every_commit_small_contents_may_ride_in_the_log_again() {
    let log = log(&storage(), 1, START);
    // Otherwise a callback is a commit.
    log.state.lock().has_writer = true;
    let commits: [&dyn Fn(Lsn); 2] = [&|end| log.commit(end).unwrap(), &|end| {
        log.commit_then(end, true, Box::new(|result| result.unwrap()))
    }];
    for commit in commits {
        while log.take_data_allowance(8192) {}
        commit(append(&log, b"names them"));
        assert!(log.take_data_allowance(8192));
    }
}
