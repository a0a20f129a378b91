//! Commits that call back.

use std::sync::mpsc;
use std::thread;

use super::*;

/// Stops the writer also if the test fails.
struct Stop<'a>(&'a Log);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs `f` with a background writer, which is stopped at the end.
fn with_writer(log: &Log, f: impl FnOnce()) {
    thread::scope(|scope| {
        scope.spawn(|| log.run_writer(Duration::from_secs(3600)));
        let _stop = Stop(log);
        while !log.state.lock().has_writer {
            thread::yield_now();
        }
        f();
    });
}

/// A callback that sends its result.
fn send(to: &mpsc::Sender<Result<()>>) -> Callback {
    let to = to.clone();
    Box::new(move |result| to.send(result).unwrap())
}

#[test]
fn a_callback_comes_when_its_record_is_durable_and_many_share_a_write() {
    let (storage, _) = slow();
    let log = Arc::new(log(&storage, 1, START));
    let (sender, receiver) = mpsc::channel();
    with_writer(&log, || {
        for _ in 0..200 {
            let end = append(&log, &[1; 100]);
            let (sender, durable) = (sender.clone(), log.clone());
            let call = move |result: Result<()>| {
                result.unwrap();
                assert!(durable.durable() >= end);
                sender.send(()).unwrap();
            };
            log.commit_then(end, false, Box::new(call));
        }
        (0..200).for_each(|_| receiver.recv_timeout(Duration::from_secs(20)).unwrap());
    });
    let groups = log.stats.groups.load(Ordering::Relaxed);
    assert!(groups <= 100, "{groups} writes for 200 commits");
}

#[test]
fn who_commits_alone_and_may_lead_writes_himself_and_never_for_many() {
    let storage = storage();
    let log = log(&storage, 1, START);
    let (sender, receiver) = mpsc::channel();
    let commit = |record: &[u8]| {
        let sender = sender.clone();
        let call = move |result: Result<()>| {
            result.unwrap();
            sender.send(thread::current().id()).unwrap();
        };
        log.commit_then(append(&log, record), true, Box::new(call));
        receiver.recv_timeout(Duration::from_secs(20)).unwrap()
    };
    with_writer(&log, || {
        for _ in 0..20 {
            assert_eq!(commit(b"alone"), thread::current().id());
        }
        // Two at once: from then on somebody else writes, until there is one again.
        log.state.lock().expected = 2;
        assert_ne!(commit(b"one of two"), thread::current().id());
    });
}

/// Each round waits for the callback before the next one begins, so a lost wake-up would be a standstill; others commit in the
/// ordinary way, and lead groups in which callbacks are served.
#[test]
fn no_callback_is_forgotten_beside_threads_that_commit() {
    let storage = storage();
    let log = log(&storage, 1, START);
    with_writer(&log, || {
        thread::scope(|scope| {
            for t in 0..6 {
                let log = &log;
                scope.spawn(move || {
                    let (sender, receiver) = mpsc::channel();
                    for n in 0..300 {
                        let end = append(log, &[1; 30]);
                        if (n + t) % 3 == 0 {
                            log.commit(end).unwrap();
                            continue;
                        }
                        log.commit_then(end, false, send(&sender));
                        receiver.recv_timeout(Duration::from_secs(20)).expect("forgotten").unwrap();
                        assert!(log.durable() >= end);
                    }
                });
            }
        });
    });
    assert!(log.state.lock().waiting.is_empty());
}

#[test]
fn what_is_durable_already_calls_back_at_once() {
    let storage = storage();
    let log = log(&storage, 1, START);
    let end = append(&log, b"record");
    let (sender, receiver) = mpsc::channel();
    // Without a writer the commit runs inside the call.
    log.commit_then(end, false, send(&sender));
    receiver.try_recv().unwrap().unwrap();
    assert_eq!(log.durable(), end);
    with_writer(&log, || {
        log.commit_then(end, false, send(&sender));
        receiver.try_recv().unwrap().unwrap();
        // As for any commit, what lies behind the end stands for all there is.
        log.commit_then(Lsn(u64::MAX), false, send(&sender));
        receiver.try_recv().unwrap().unwrap();
    });
}

#[test]
fn whoever_waits_when_the_log_is_closed_is_called() {
    let (storage, _) = slow();
    let log = log(&storage, 1, START);
    let (sender, receiver) = mpsc::channel();
    with_writer(&log, || {
        for _ in 0..20 {
            log.commit_then(append(&log, b"record"), false, send(&sender));
        }
    });
    assert_eq!(receiver.try_iter().filter(|result| result.is_ok()).count(), 20);
    assert_eq!(log.durable(), log.end());
    log.commit_then(append(&log, b"late"), false, send(&sender));
    receiver.try_recv().unwrap().unwrap();
}

#[test]
fn after_a_failed_write_every_callback_gets_the_error() {
    for by_another in [false, true] {
        let storage = Arc::new(FaultStorage::new(MemStorage::new(1 << 20)));
        let log = log(&storage, 1, START);
        let (sender, receiver) = mpsc::channel();
        with_writer(&log, || {
            if !by_another {
                storage.arm(Fault::nth(&[OpKind::WriteDurable], 0));
            }
            // As if somebody were writing a group just now: these have to wait.
            log.state.lock().leading = true;
            for _ in 0..10 {
                log.commit_then(append(&log, b"lost"), false, send(&sender));
            }
            if by_another {
                log.fail(Error::NoSpace);
            }
            {
                let mut state = log.state.lock();
                state.leading = false;
                log.moved.notify_all();
                log.serve(&mut state);
            }
            for _ in 0..10 {
                receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap_err();
            }
            log.commit_then(log.durable(), false, send(&sender));
            log.commit_then(log.end(), false, send(&sender));
            assert_eq!(receiver.try_iter().filter(|result| result.is_err()).count(), 2);
        });
        assert!(receiver.try_recv().is_err(), "a callback was called twice");
    }
}
