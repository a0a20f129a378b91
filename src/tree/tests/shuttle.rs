//! Interleavings: small scenarios over a small tree, run under the model checker with random and PCT schedules.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --lib shuttle`. `BTFS_ITERATIONS` multiplies the number of schedules (4 by default); `BTFS_SEED`
//! takes other ones. Four records fill a leaf, and the pool has 14 frames, so that a few operations split, merge and evict.
//! The latch-order checker is on. Timed waits never time out (`sync.rs`), so a lost notification is a deadlock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use ::shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use ::shuttle::thread;

use super::*;
use crate::storage::{Fault, FaultStorage, Image, OpKind};
use crate::sync::atomic::Ordering;

type Model = BTreeMap<u32, u8>;

fn config() -> ::shuttle::Config {
    let mut config = ::shuttle::Config::default();
    // Pages are copied on the stack.
    config.stack_size = 1 << 20;
    // A schedule that takes so many steps does not end.
    // The seed says enough: a schedule is as long as the execution.
    config.failure_persistence = ::shuttle::FailurePersistence::None;
    config.max_steps = ::shuttle::MaxSteps::FailAfter(5_000_000);
    config
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap())
}

/// Runs a scenario under so many schedules, half of them random, half by PCT.
fn explore(iterations: usize, scenario: impl Fn() + Clone + Send + Sync + 'static) {
    let iterations = iterations * from_environment("BTFS_ITERATIONS", 4) as usize;
    let seed = from_environment("BTFS_SEED", 42);
    run(RandomScheduler::new_from_seed(seed, iterations / 2), scenario.clone());
    run(PctScheduler::new_from_seed(seed, 3, iterations / 2), scenario);
}

fn run(scheduler: impl Scheduler + 'static, scenario: impl Fn() + Send + Sync + 'static) {
    ::shuttle::Runner::new(scheduler, config()).run(scenario);
}

fn key(n: u32) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

fn value(byte: u8) -> Vec<u8> {
    vec![byte; 3900]
}

fn put(tree: &Tree, keys: impl IntoIterator<Item = u32>, byte: u8) -> Lsn {
    let mut batch = Batch::new();
    for n in keys {
        batch.put(&key(n), &value(byte));
    }
    tree.apply(&batch).unwrap()
}

fn delete(tree: &Tree, keys: impl IntoIterator<Item = u32>) -> Lsn {
    let mut batch = Batch::new();
    for n in keys {
        batch.delete(&key(n));
    }
    tree.apply(&batch).unwrap()
}

fn options() -> Options {
    Options { cache_size: 0, background: false, ..Options::default() }
}

/// An image with these records, closed in order.
fn prepared(keys: impl IntoIterator<Item = u32>) -> Image {
    prepared_without(keys, [])
}

/// The same, with some of the records deleted again.
fn prepared_without(keys: impl IntoIterator<Item = u32>, gone: impl IntoIterator<Item = u32>) -> Image {
    let (keys, gone): (Vec<u32>, Vec<u32>) = (keys.into_iter().collect(), gone.into_iter().collect());
    let made = Arc::new(OnceLock::new());
    let cell = made.clone();
    run(RandomScheduler::new_from_seed(1, 1), move || {
        let storage = image(8 << 20, 256 << 10);
        let tree = Tree::open(storage.clone(), &options()).unwrap();
        for n in &keys {
            put(&tree, [*n], 1);
        }
        for n in &gone {
            delete(&tree, [*n]);
        }
        tree.close().unwrap();
        let _ = cell.set(storage.image());
    });
    made.get().unwrap().clone()
}

fn open(image: &Image, options: &Options) -> Arc<Tree> {
    let storage = Arc::new(MemStorage::from_image(image.clone()));
    Arc::new(Tree::open(storage, options).unwrap())
}

fn spawn(tree: &Arc<Tree>, f: impl FnOnce(&Tree) + Send + 'static) -> thread::JoinHandle<()> {
    let tree = tree.clone();
    thread::spawn(move || f(&tree))
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// All records in the order in which a scan returns them.
fn scan(tree: &Tree, forward: bool) -> Vec<(u32, u8)> {
    let mut cursor = tree.cursor();
    let mut found = Vec::new();
    if !forward {
        cursor.seek_end().unwrap();
    }
    while if forward { cursor.next().unwrap() } else { cursor.prev().unwrap() } {
        let bytes = cursor.value();
        assert!(bytes.len() == 3900 && bytes.iter().all(|b| *b == bytes[0]), "a value is torn");
        found.push((u32::from_be_bytes(cursor.key().try_into().unwrap()), bytes[0]));
    }
    found
}

/// What a scan promises while others change the tree: every key that is there throughout, once, in order, and none that never was.
fn check_scan(tree: &Tree, forward: bool, always: &BTreeSet<u32>, sometimes: &BTreeSet<u32>) {
    let found: Vec<u32> = scan(tree, forward).into_iter().map(|(n, _)| n).collect();
    let ascends = found.is_sorted_by(|a, b| if forward { a < b } else { a > b });
    assert!(ascends, "a scan repeats a key or leaves the order: {found:?}");
    let seen: BTreeSet<u32> = found.iter().copied().collect();
    assert!(seen.is_superset(always), "a scan misses a key: {found:?}");
    assert!(seen.iter().all(|n| always.contains(n) || sometimes.contains(n)), "{found:?}");
}

fn set(keys: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    keys.into_iter().collect()
}

/// The end of a scenario: the structure is in order, and exactly these records are there, also after a reopening.
fn check(tree: Arc<Tree>, expected: &Model) {
    let report = tree.check().unwrap();
    assert_eq!(report.records, expected.len() as u64);
    assert!(report.data.is_empty(), "pages are leaked: {:?}", report.data);
    let expected: Vec<(u32, u8)> = expected.iter().map(|(n, b)| (*n, *b)).collect();
    assert_eq!(scan(&tree, true), expected);
    let Ok(tree) = Arc::try_unwrap(tree) else { panic!("the tree is still in use") };
    let storage = tree.pool.storage().clone();
    tree.close().unwrap();
    let again = Tree::open(storage, &options()).unwrap();
    again.check().unwrap();
    assert_eq!(scan(&again, true), expected, "after a reopening");
}

fn model(keys: impl IntoIterator<Item = u32>, byte: u8) -> Model {
    keys.into_iter().map(|n| (n, byte)).collect()
}

#[test]
fn a_scan_misses_nothing_while_leaves_split() {
    let image = prepared((0..80).step_by(10));
    explore(300, move || {
        let tree = open(&image, &options());
        let always = set((0..80).step_by(10));
        let new = set([31, 32, 33, 51, 52]);
        let mut threads = vec![
            spawn(&tree, |t| [31, 32, 33].into_iter().for_each(|n| _ = put(t, [n], 2))),
            spawn(&tree, |t| _ = put(t, [51, 52], 2)),
        ];
        for forward in [true, false] {
            let (always, new) = (always.clone(), new.clone());
            threads.push(spawn(&tree, move |t| check_scan(t, forward, &always, &new)));
        }
        join(threads);
        let mut expected = model(always, 1);
        expected.extend(model(new, 2));
        check(tree, &expected);
    });
}

#[test]
fn readers_find_their_keys_while_leaves_merge() {
    let image = prepared(0..16);
    explore(300, move || {
        let tree = open(&image, &options());
        let gone = set(3..12);
        let always = set((0..16).filter(|n| !gone.contains(n)));
        let mut threads = vec![
            spawn(&tree, |t| (3..8).for_each(|n| _ = delete(t, [n]))),
            spawn(&tree, |t| _ = (delete(t, [8, 9]), delete(t, [10, 11]))),
            spawn(&tree, |t| {
                for n in [2, 12, 0, 15] {
                    assert_eq!(t.get(&key(n)).unwrap(), Some(value(1)), "key {n}");
                }
            }),
        ];
        for forward in [true, false] {
            let (always, gone) = (always.clone(), gone.clone());
            threads.push(spawn(&tree, move |t| check_scan(t, forward, &always, &gone)));
        }
        join(threads);
        check(tree, &model(always, 1));
    });
}

#[test]
fn a_batch_over_several_leaves_is_applied_while_they_merge_and_split() {
    let image = prepared(0..20);
    explore(300, move || {
        let tree = open(&image, &options());
        let threads = [
            spawn(&tree, |t| _ = put(t, [2, 6, 10, 14], 2)),
            spawn(&tree, |t| [4, 5, 7, 8, 9, 11].into_iter().for_each(|n| _ = delete(t, [n]))),
            spawn(&tree, |t| _ = (delete(t, [12, 13]), put(t, [15, 16], 3))),
        ];
        join(threads);
        let mut expected = model([0, 1, 3, 17, 18, 19], 1);
        expected.extend(model([2, 6, 10, 14], 2));
        expected.extend(model([15, 16], 3));
        check(tree, &expected);
    });
}

#[test]
fn a_batch_does_not_wait_for_a_leaf_that_it_holds() {
    // Two leaves of two records each; one deletion merges them.
    let image = prepared_without(0..8, [2, 3, 6, 7]);
    explore(2000, move || {
        let tree = open(&image, &options());
        let threads = [spawn(&tree, |t| _ = put(t, [1, 4], 2)), spawn(&tree, |t| _ = delete(t, [5]))];
        join(threads);
        assert_eq!(tree.stats().merges, 1);
        let mut expected = model([0], 1);
        expected.extend(model([1, 4], 2));
        check(tree, &expected);
    });
}

#[test]
fn overlapping_batches_do_not_mix() {
    let image = prepared(0..16);
    explore(300, move || {
        let tree = open(&image, &options());
        let keys = [1, 6, 11, 15];
        let threads = [
            spawn(&tree, move |t| _ = put(t, keys, 2)),
            spawn(&tree, move |t| _ = put(t, keys, 3)),
            spawn(&tree, move |t| {
                // What was seen of a batch in a left leaf is there in every leaf that is read later.
                let seen: Vec<u8> = keys.iter().map(|n| t.get(&key(*n)).unwrap().unwrap()[0]).collect();
                assert!(seen[0] == 1 || seen.iter().all(|b| *b != 1), "a batch was seen in part: {seen:?}");
            }),
        ];
        join(threads);
        let winner = tree.get(&key(1)).unwrap().unwrap()[0];
        let mut expected = model(0..16, 1);
        expected.extend(model(keys, winner));
        check(tree, &expected);
    });
}

#[test]
fn nothing_is_lost_when_the_root_grows() {
    let image = prepared([10, 50]);
    explore(300, move || {
        let tree = open(&image, &options());
        let always = set([10, 50]);
        let new = set([20, 21, 22, 40, 41, 60]);
        let (a, s) = (always.clone(), new.clone());
        let threads = [
            spawn(&tree, |t| [20, 21, 22].into_iter().for_each(|n| _ = put(t, [n], 2))),
            spawn(&tree, |t| _ = put(t, [40, 41, 60], 2)),
            spawn(&tree, move |t| check_scan(t, true, &a, &s)),
            spawn(&tree, |t| [10, 50].into_iter().for_each(|n| assert!(t.get(&key(n)).unwrap().is_some()))),
        ];
        join(threads);
        let mut expected = model(always, 1);
        expected.extend(model(new, 2));
        check(tree, &expected);
    });
}

#[test]
fn nothing_is_lost_when_the_root_shrinks() {
    let image = prepared(0..9);
    explore(300, move || {
        let tree = open(&image, &options());
        let always = set([4, 8]);
        let sometimes = set((0..9).chain([30, 31]));
        let (a, s) = (always.clone(), sometimes.clone());
        let threads = [
            spawn(&tree, |t| _ = (delete(t, [0, 1, 2, 3]), delete(t, [5, 6, 7]))),
            spawn(&tree, |t| _ = put(t, [30, 31], 2)),
            spawn(&tree, move |t| check_scan(t, false, &a, &s)),
            spawn(&tree, |t| [4, 8].into_iter().for_each(|n| assert!(t.get(&key(n)).unwrap().is_some()))),
        ];
        join(threads);
        let mut expected = model(always, 1);
        expected.extend(model([30, 31], 2));
        check(tree, &expected);
    });
}

#[test]
fn separators_are_posted_while_neighbours_merge() {
    let image = prepared(0..16);
    explore(300, move || {
        let tree = open(&image, &options());
        let threads = [
            // Splits in the middle of what the others merge.
            spawn(&tree, |t| [100, 101, 102].into_iter().for_each(|n| _ = put(t, [n], 2))),
            spawn(&tree, |t| (9..16).for_each(|n| _ = delete(t, [n]))),
            spawn(&tree, |t| _ = (delete(t, 1..8), put(t, [1], 3))),
        ];
        join(threads);
        let mut expected = model([0, 8], 1);
        expected.extend(model([100, 101, 102], 2));
        expected.insert(1, 3);
        check(tree, &expected);
    });
}

#[test]
fn pages_are_evicted_under_readers_and_writers() {
    let image = prepared(0..72);
    explore(100, move || {
        let tree = open(&image, &options());
        let mut threads = vec![
            spawn(&tree, |t| [3, 40, 70].into_iter().for_each(|n| _ = put(t, [n], 2))),
            spawn(&tree, |t| t.checkpoint().unwrap()),
        ];
        for first in [0, 5] {
            threads.push(spawn(&tree, move |t| {
                for n in (first..72).step_by(9) {
                    let found = t.get(&key(n)).unwrap().unwrap();
                    assert!(found == value(1) || found == value(2), "key {n}");
                }
            }));
        }
        threads.push(spawn(&tree, |t| check_scan(t, true, &set(0..72), &set([]))));
        join(threads);
        let mut expected = model(0..72, 1);
        expected.extend(model([3, 40, 70], 2));
        check(tree, &expected);
    });
}

#[test]
fn a_freed_page_is_not_reused_under_a_reader() {
    let image = prepared(0..16);
    explore(300, move || {
        let tree = open(&image, &options());
        let always = set([0, 1, 15]);
        let sometimes = set((0..16).chain(100..106));
        let mut threads = vec![spawn(&tree, |t| {
            (2..15).for_each(|n| _ = delete(t, [n]));
            t.checkpoint().unwrap();
            t.checkpoint().unwrap();
            put(t, 100..103, 2);
            put(t, 103..106, 2);
        })];
        for forward in [true, false] {
            let (always, sometimes) = (always.clone(), sometimes.clone());
            threads.push(spawn(&tree, move |t| check_scan(t, forward, &always, &sometimes)));
        }
        threads.push(spawn(&tree, |t| {
            for n in [1, 15, 0] {
                assert_eq!(t.get(&key(n)).unwrap(), Some(value(1)), "key {n}");
            }
        }));
        join(threads);
        let mut expected = model(always, 1);
        expected.extend(model(100..106, 2));
        check(tree, &expected);
    });
}

#[test]
fn the_flusher_and_writers_do_not_wait_for_each_other() {
    let image = prepared(0..24);
    explore(100, move || {
        let tree = open(&image, &Options { background: true, ..options() });
        let threads = [
            spawn(&tree, |t| (0..24).step_by(5).for_each(|n| _ = put(t, [n], 2))),
            spawn(&tree, |t| (2..24).step_by(5).for_each(|n| _ = delete(t, [n]))),
            spawn(&tree, |t| {
                let lsn = put(t, [50, 51, 52], 2);
                t.commit(lsn).unwrap();
            }),
        ];
        join(threads);
        let mut expected = model((0..24).filter(|n| n % 5 != 2), 1);
        expected.extend(model((0..24).step_by(5).chain([50, 51, 52]), 2));
        check(tree, &expected);
    });
}

#[test]
fn a_checkpoint_keeps_what_writers_change_meanwhile() {
    let image = prepared(0..8);
    explore(300, move || {
        let storage = Arc::new(MemStorage::from_image(image.clone()));
        let tree = Arc::new(Tree::open(storage.clone(), &options()).unwrap());
        let threads = [
            spawn(&tree, |t| _ = (put(t, [1], 2), put(t, [1, 5], 3))),
            spawn(&tree, |t| _ = (put(t, [2], 2), put(t, [20, 21], 3))),
            spawn(&tree, |t| (0..3).for_each(|_| t.checkpoint().unwrap())),
        ];
        join(threads);
        tree.commit_all().unwrap();
        drop(tree);
        let mut expected = model(0..8, 1);
        expected.extend(model([1, 5, 20, 21], 3));
        expected.insert(2, 2);
        check(Arc::new(Tree::open(storage, &options()).unwrap()), &expected);
    });
}

fn commit_and_look(tree: &Tree, n: u32) {
    let lsn = put(tree, [n], 2);
    assert!(tree.commit(lsn).is_ok());
    assert!(tree.pool.log.durable() >= lsn, "a commit returned before its record was durable");
}

#[test]
fn every_committer_of_a_group_is_served() {
    let image = prepared(0..8);
    explore(400, move || {
        let tree = open(&image, &options());
        let mut threads: Vec<_> = (0..3).map(|n| spawn(&tree, move |t| commit_and_look(t, n))).collect();
        threads.push(spawn(&tree, |t| _ = (commit_and_look(t, 6), commit_and_look(t, 7))));
        join(threads);
        let mut expected = model(0..8, 1);
        expected.extend(model([0, 1, 2, 6, 7], 2));
        check(tree, &expected);
    });
}

#[test]
fn after_a_failed_write_no_commit_is_acknowledged() {
    let image = prepared(0..8);
    explore(400, move || {
        let storage = Arc::new(FaultStorage::new(MemStorage::from_image(image.clone())));
        let tree = Arc::new(Tree::open(storage.clone(), &options()).unwrap());
        let nth = ::shuttle::rand::Rng::gen_range(&mut ::shuttle::rand::thread_rng(), 0..3);
        storage.arm(Fault::nth(&[OpKind::WriteDurable], nth));
        let commit = |n| {
            spawn(&tree, move |t| {
                let mut batch = Batch::new();
                batch.put(&key(n), &value(2));
                for _ in 0..2 {
                    let result = t.apply(&batch).and_then(|lsn| t.commit(lsn).map(|()| lsn));
                    match result {
                        Ok(lsn) => assert!(t.pool.log.durable() >= lsn),
                        Err(e) => assert!(matches!(e, Error::Io { .. }), "{e}"),
                    }
                }
                if t.pool.log.failure().is_some() {
                    t.commit_all().unwrap_err();
                }
            })
        };
        let mut threads: Vec<_> = (0..3).map(commit).collect();
        threads.push(spawn(&tree, |t| _ = t.checkpoint()));
        join(threads);
        if storage.fired() > 0 {
            tree.commit_all().unwrap_err();
        }
        for n in 0..8 {
            assert!(tree.get(&key(n)).unwrap().is_some());
        }
    });
}

/// A tree with background threads, closed while callbacks are outstanding: each is called once, and with success only if its record
/// is durable.
#[test]
fn every_callback_is_called_also_while_the_tree_is_closed() {
    let image = prepared(0..8);
    explore(200, move || {
        let tree = open(&image, &Options { background: true, ..options() });
        let called = Arc::new(::shuttle::sync::atomic::AtomicU32::new(0));
        let commit = |n: u32| {
            let called = called.clone();
            spawn(&tree, move |t| {
                put(t, [n], 2);
                let call = move |result: Result<()>| {
                    result.unwrap();
                    let before = called.fetch_add(1 << (8 * n), Ordering::SeqCst);
                    assert_eq!(before >> (8 * n) & 0xff, 0, "called twice");
                };
                t.commit_then(false, Box::new(call));
            })
        };
        let mut threads: Vec<_> = (0..3).map(commit).collect();
        threads.push(spawn(&tree, |t| commit_and_look(t, 7)));
        join(threads);
        let Ok(tree) = Arc::try_unwrap(tree) else { panic!("somebody has the tree") };
        tree.close().unwrap();
        assert_eq!(called.load(Ordering::SeqCst), 0x01_01_01);
    });
}

/// The same while writing fails: nobody is told that lost records are durable, and nobody waits for ever.
#[test]
fn every_callback_is_called_after_a_failed_write() {
    let image = prepared(0..8);
    explore(200, move || {
        let storage = Arc::new(FaultStorage::new(MemStorage::from_image(image.clone())));
        let tree = Tree::open(storage.clone(), &Options { background: true, ..options() }).unwrap();
        let tree = Arc::new(tree);
        let nth = ::shuttle::rand::Rng::gen_range(&mut ::shuttle::rand::thread_rng(), 0..3);
        storage.arm(Fault::nth(&[OpKind::WriteDurable], nth));
        let called = Arc::new(::shuttle::sync::atomic::AtomicU32::new(0));
        let promised = Arc::new(::shuttle::sync::Mutex::new(Vec::new()));
        let commit = |n| {
            let (called, promised) = (called.clone(), promised.clone());
            spawn(&tree, move |t| {
                for byte in 2..4 {
                    let mut batch = Batch::new();
                    batch.put(&key(n), &value(byte));
                    let applied = t.apply(&batch).is_ok();
                    let (called, promised) = (called.clone(), promised.clone());
                    t.commit_then(
                        false,
                        Box::new(move |result| {
                            called.fetch_add(1, Ordering::SeqCst);
                            if applied && result.is_ok() {
                                promised.lock().unwrap().push((n, byte));
                            }
                        }),
                    );
                }
            })
        };
        let mut threads: Vec<_> = (0..3).map(commit).collect();
        threads.push(spawn(&tree, |t| _ = t.checkpoint()));
        join(threads);
        drop(tree);
        assert_eq!(called.load(Ordering::SeqCst), 6);
        storage.disarm();
        let found: Model = scan(&Tree::open(storage, &options()).unwrap(), true).into_iter().collect();
        for (n, byte) in promised.lock().unwrap().iter() {
            assert!(found[n] >= *byte, "key {n} was to have {byte} at least: {found:?}");
        }
    });
}

/// Remounts and growth wait for transactions under way, and these for the flusher; short scans see what is there throughout.
#[test]
fn remounts_growth_and_writers_do_not_wait_for_each_other() {
    let image = prepared(0..12);
    explore(100, move || {
        let tree = open(&image, &Options { background: true, ..options() });
        let attempt = |change: fn(&mut Batch)| {
            spawn(&tree, move |t| {
                let mut batch = Batch::new();
                change(&mut batch);
                let result = t.apply(&batch);
                assert!(matches!(result, Ok(_) | Err(Error::ReadOnly)), "{result:?}");
            })
        };
        let threads = [
            attempt(|batch| (20..23).for_each(|n| batch.put(&key(n), &value(2)))),
            attempt(|batch| (2..8).for_each(|n| batch.delete(&key(n)))),
            spawn(&tree, |t| {
                t.set_read_only(true).unwrap();
                assert_eq!(t.pool.dirty_frames(), 0);
                t.set_read_only(false).unwrap();
            }),
            spawn(&tree, |t| match t.grow(16 << 20) {
                Ok(()) => assert_eq!(t.size(), 16 << 20),
                Err(error) => assert!(matches!(error, Error::ReadOnly), "{error}"),
            }),
            spawn(&tree, |t| {
                let mut found = Vec::new();
                let ended = t.scan(&key(1), &key(10), |key, _| {
                    found.push(u32::from_be_bytes(key.try_into().unwrap()));
                    std::ops::ControlFlow::<()>::Continue(())
                });
                assert!(ended.unwrap().is_none());
                assert!(found.windows(2).all(|w| w[0] < w[1]));
                found.retain(|n| !(2..8).contains(n));
                assert_eq!(found, [1, 8, 9]);
            }),
        ];
        join(threads);
        tree.check().unwrap();
        let Ok(tree) = Arc::try_unwrap(tree) else { panic!("somebody has the tree") };
        tree.close().unwrap();
    });
}
