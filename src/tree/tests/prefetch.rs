//! Reading ahead: cold leaves come from the disk side by side, and nothing else changes.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::page::PAGE_SIZE;
use crate::page::format::page_number;
use crate::storage::{FaultStorage, OpKind};

/// A storage that takes its time to read a page, and the most reads that were under way side by side.
fn slow_disk(below: Arc<MemStorage>) -> (Arc<FaultStorage<Arc<MemStorage>>>, Arc<AtomicUsize>) {
    let most = Arc::new(AtomicUsize::new(0));
    let (noted, reading) = (most.clone(), AtomicUsize::new(0));
    let observer = move |kind, _, bytes| {
        if kind == OpKind::Read && bytes >= PAGE_SIZE as u64 {
            noted.fetch_max(reading.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            reading.fetch_sub(1, Ordering::SeqCst);
        }
    };
    (Arc::new(FaultStorage::observed(below, observer)), most)
}

fn key(n: u32) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

const RECORDS: u32 = 4000;

/// An image of some hundred leaves, opened with nothing in the pool.
fn cold() -> (Arc<FaultStorage<Arc<MemStorage>>>, Arc<AtomicUsize>, Tree) {
    let storage = image(64 << 20, 1 << 20);
    let tree = Tree::open(storage.clone(), &quiet(200)).unwrap();
    for n in 0..RECORDS {
        let mut batch = Batch::new();
        batch.put(&key(n), &[n as u8; 500]);
        tree.apply(&batch).unwrap();
    }
    tree.close().unwrap();
    let (disk, most) = slow_disk(storage);
    let tree = Tree::open(disk.clone(), &Options { background: true, ..quiet(400) }).unwrap();
    most.store(0, Ordering::SeqCst);
    (disk, most, tree)
}

#[test]
fn a_scan_reads_several_leaves_at_a_time() {
    let (_, most, tree) = cold();
    let mut cursor = tree.cursor();
    for n in 0..RECORDS {
        assert!(cursor.next().unwrap());
        assert_eq!((cursor.key(), cursor.value()), (&*key(n), &[n as u8; 500][..]));
    }
    assert!(!cursor.next().unwrap());
    assert!(most.load(Ordering::SeqCst) > 2, "the disk served one read after the other");
    let read = tree.stats().pages_read;
    assert!(read < RECORDS as u64 / 10, "{read} pages: leaves were read more than once");
}

#[test]
fn leaves_that_lie_together_are_read_in_one_piece() {
    let (disk, _, tree) = cold();
    let before = disk.counts();
    let mut cursor = tree.cursor();
    while cursor.next().unwrap() {}
    let (calls, pages) = (disk.counts().since(&before).calls(OpKind::Read), tree.stats().pages_read);
    assert!(calls < pages / 2, "{calls} calls to read {pages} pages");
}

/// Pages that are read ahead are changed, evicted and freed at the same time; nobody is left waiting, and what is seen is never older than it may be.
#[test]
fn nothing_stale_is_read_ahead_while_others_write() {
    const KEYS: u32 = 6000;
    let storage = image(64 << 20, 1 << 20);
    let tree = Tree::open(storage, &Options { background: true, ..quiet(72) }).unwrap();
    let put = |n: u32, round: u32| {
        let mut batch = Batch::new();
        match round % 5 {
            4 => batch.delete(&key(n)),
            _ => batch.put(&key(n), &[round.to_be_bytes(); 80].concat()),
        }
        tree.apply(&batch).unwrap();
    };
    (0..KEYS).for_each(|n| put(n, 0));
    let (written, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let scans: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut scans = 0;
                    while !done.load(Ordering::SeqCst) {
                        let begun = written.load(Ordering::SeqCst);
                        let mut cursor = tree.cursor();
                        while cursor.next().unwrap() {
                            // Every key is written once a round, in an order of its own.
                            let round = u32::from_be_bytes(cursor.value()[..4].try_into().unwrap());
                            assert!(
                                round + 1 >= begun,
                                "{:?} is of round {round}, not {begun}",
                                cursor.key()
                            );
                        }
                        scans += 1;
                    }
                    assert!(scans > 3);
                })
            })
            .collect();
        for round in 1..16 {
            for i in 0..KEYS {
                put((i * 1409 + round) % KEYS, round);
            }
            written.store(round, Ordering::SeqCst);
        }
        done.store(true, Ordering::SeqCst);
        scans.into_iter().for_each(|scan| scan.join().unwrap());
    });
    tree.check().unwrap();
}

#[test]
fn records_that_were_announced_are_read_side_by_side() {
    let (_, most, tree) = cold();
    let keys: Vec<_> = (0..RECORDS).step_by(200).map(key).collect();
    tree.will_get(&keys).unwrap();
    for key in &keys {
        assert_eq!(tree.get(key).unwrap().unwrap().len(), 500);
    }
    assert!(most.load(Ordering::SeqCst) > 2, "the disk served one read after the other");
    let read = tree.stats().pages_read;
    assert!(read <= 30, "{read} pages for 20 keys");
}

#[test]
fn an_error_of_reading_ahead_is_told_to_who_needs_the_page() {
    let (disk, _, tree) = cold();
    drop(tree);
    // Any one leaf in the middle: damaged, wherever it lies.
    let tree = Tree::open(disk.inner().clone(), &quiet(400)).unwrap();
    let leaf = {
        let alive = tree.pool.enter();
        let found = tree.find(&alive, Target::Covering(&key(RECORDS / 2)), 0, true).unwrap().unwrap();
        page_number(&found.page)
    };
    tree.close().unwrap();
    disk.inner().write_at(leaf.offset() + 9000, &[0x55; 100]).unwrap();
    let tree = Tree::open(disk, &Options { background: true, ..quiet(400) }).unwrap();
    let mut cursor = tree.cursor();
    let mut seen = 0;
    let error = loop {
        match cursor.next() {
            Ok(more) => assert!(more, "the damage was passed over"),
            Err(error) => break error,
        }
        seen += 1;
    };
    assert!(error.is_corrupt() && seen > RECORDS / 3 && seen <= RECORDS / 2, "{error}, {seen}");
}
