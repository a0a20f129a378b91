//! Contents that are written behind.

use std::thread;

use super::*;

const LONG: usize = 64 << 10;

/// Where contents lie: behind the log.
fn place(n: usize) -> u64 {
    (512 << 10) + (n * LONG) as u64
}

fn contents(n: usize) -> Vec<u8> {
    vec![n as u8 + 1; LONG]
}

fn read(storage: &dyn Storage, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; LONG];
    storage.read_at(place(n), &mut bytes).unwrap();
    bytes
}

#[test]
fn contents_are_written_and_synced_before_the_record_that_names_them() {
    let (storage, order) = slow();
    let log = log(&storage, 1, START);
    for _ in 0..2 {
        assert!(log.write_behind(place(0), &contents(0)));
        assert!(log.write_behind(place(1), &contents(1)));
        let end = append(&log, b"names them");
        log.commit(end).unwrap();
        assert_eq!((read(&*storage, 0), read(&*storage, 1)), (contents(0), contents(1)));
        let end = append(&log, b"names nothing");
        log.commit(end).unwrap();
    }
    use OpKind::*;
    let mut order = order.lock().unwrap().clone();
    order.retain(|kind| !matches!(kind, Allocate | Read));
    assert_eq!(order, [Write, Write, Sync, WriteDurable, WriteDurable].repeat(2));
}

#[test]
fn who_waits_for_a_place_finds_there_what_was_written_behind() {
    let storage = storage();
    let log = log(&storage, 1, START);
    for n in 0..3 {
        assert!(log.write_behind(place(n), &contents(n)));
    }
    let middle = place(1) + 4096;
    log.wait_for_contents(middle..middle + 4096);
    assert_eq!(read(&*storage, 1), contents(1));
    assert_eq!(read(&*storage, 2), vec![0; LONG], "nobody has waited for this");
}

#[test]
fn no_more_is_taken_than_has_room() {
    let storage = storage();
    let log = log(&storage, 1, START);
    for n in 0..7 {
        assert!(log.write_behind(place(n), &contents(n)));
        assert!(log.contents.under_way() <= 4);
    }
    log.wait_for_contents(0..u64::MAX);
    assert!((0..7).all(|n| read(&*storage, n) == contents(n)));
    assert!(!log.write_behind(place(0), &contents(0)[..LONG - 4096]), "short ones are not worth it");
    assert!(!log.write_behind(place(0), &vec![0; (1 << 20) + 4096]), "long ones have no buffer");
}

#[test]
fn a_full_host_is_told_to_who_writes() {
    let storage = Arc::new(FaultStorage::new(MemStorage::new(1 << 20)));
    let log = log(&storage, 1, START);
    storage.arm(Fault::nth(&[OpKind::Allocate], 0).errno(libc::ENOSPC));
    assert!(
        !log.write_behind(place(0), &contents(0)),
        "it must be written at once, to see whether there is room"
    );
    log.check().unwrap();
    assert!(log.write_behind(place(0), &contents(0)));
}

#[test]
fn contents_that_cannot_be_written_end_writing_and_are_still_read() {
    let storage = Arc::new(FaultStorage::new(MemStorage::new(1 << 20)));
    let log = log(&storage, 1, START);
    storage.arm(Fault::nth(&[OpKind::Write], 0));
    assert!(log.write_behind(place(0), &contents(0)));
    let end = append(&log, b"names them");
    let error = log.commit(end).unwrap_err().to_string();
    storage.disarm();
    assert!(error.contains("writing data"), "{error}");
    assert_eq!(log.commit(end).unwrap_err().to_string(), error);
    assert_eq!(log.durable(), START, "the record must not become durable");
    let (from, len) = (place(0) - 4096, LONG + 8192);
    let mut bytes = vec![0; len];
    log.wait_for_contents(from..from + len as u64);
    log.overlay_contents(from, &mut bytes);
    assert_eq!(bytes[4096..4096 + LONG], contents(0));
    assert!(bytes[..4096].iter().chain(&bytes[4096 + LONG..]).all(|b| *b == 0));
    let mut part = [0; 4096];
    log.overlay_contents(place(0) + 8192, &mut part);
    assert_eq!(part, [1; 4096]);
}

#[test]
fn threads_that_write_behind_commit_and_read_back_see_their_own_contents() {
    let storage = Arc::new(MemStorage::new(4 << 20));
    let log = log(&storage, 1, START);
    thread::scope(|scope| {
        scope.spawn(|| log.run_contents_writer());
        let threads: Vec<_> = (0..6)
            .map(|t| {
                let (log, storage) = (&log, &storage);
                scope.spawn(move || {
                    for round in 0..200_usize {
                        let (at, bytes) = (place(t * 4 + round % 4), vec![(round + t) as u8; LONG]);
                        // Who writes a place again has waited for it: freed blocks are not reused while they are under way.
                        log.wait_for_contents(at..at + LONG as u64);
                        assert!(log.write_behind(at, &bytes));
                        let end = append(log, b"names them");
                        if round % 3 == 0 {
                            log.commit(end).unwrap();
                        } else {
                            log.wait_for_contents(at + 4096..at + 8192);
                        }
                        let mut read = vec![0; LONG];
                        storage.read_at(at, &mut read).unwrap();
                        assert_eq!(read, bytes);
                    }
                })
            })
            .collect();
        let done: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
        log.stop();
        done.into_iter().for_each(|result| result.unwrap());
    });
    assert_eq!(log.contents.under_way(), 0);
}
