//! Reading ahead: cold leaves come from the disk side by side, and nothing else changes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::page::PAGE_SIZE;
use crate::page::format::page_number;
use crate::storage::{FaultStorage, OpKind};

/// Reads that are to be under way side by side.
const SIDE_BY_SIDE: usize = 3;
/// A failure is not mistaken for a machine under load.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a disk saw of the threads that read ahead.
#[derive(Default)]
struct Seen {
    /// Whether their reads wait until several are under way.
    together: AtomicBool,
    reading: AtomicUsize,
    /// The most reads that were under way side by side.
    most: AtomicUsize,
    /// The most bytes that were read in one piece.
    longest: AtomicUsize,
    /// All their reads, and the bytes.
    reads: AtomicUsize,
    bytes: AtomicUsize,
    /// Whether reads take long for the thread that is not watched.
    slow: AtomicBool,
}

impl Seen {
    fn side_by_side(&self) -> bool {
        self.most.load(Ordering::SeqCst) >= SIDE_BY_SIDE
    }
}

fn wait_until(what: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !what() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    what()
}

type Disk = FaultStorage<Arc<MemStorage>>;

/// A disk that watches the reads of other threads than this one.
fn watched_disk(below: Arc<MemStorage>) -> (Arc<Disk>, Arc<Seen>) {
    let (seen, scanning) = (Arc::<Seen>::default(), std::thread::current().id());
    let noted = seen.clone();
    let observer = move |kind, _, bytes: u64| {
        if kind != OpKind::Read {
            return;
        }
        if std::thread::current().id() == scanning {
            if noted.slow.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
        } else {
            let together = noted.together.load(Ordering::SeqCst);
            noted.longest.fetch_max(bytes as usize, Ordering::SeqCst);
            noted.reads.fetch_add(1, Ordering::SeqCst);
            noted.bytes.fetch_add(bytes as usize, Ordering::SeqCst);
            noted.most.fetch_max(noted.reading.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            wait_until(|| !together || noted.side_by_side());
            noted.reading.fetch_sub(1, Ordering::SeqCst);
        }
    };
    (Arc::new(FaultStorage::observed(below, observer)), seen)
}

fn key(n: u32) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

const RECORDS: u32 = 4000;
/// Records of a leaf, nearly.
const PER_LEAF: u32 = 30;
/// After so many a scan is in its second leaf, and the next ones have been asked for.
const ASKED: u32 = PER_LEAF * 3 / 2;

/// An image of some hundred leaves, opened with nothing in the pool.
fn cold() -> (Arc<Disk>, Arc<Seen>, Tree) {
    let storage = image(64 << 20, 1 << 20);
    let tree = Tree::open(storage.clone(), &quiet(200)).unwrap();
    for n in 0..RECORDS {
        let mut batch = Batch::new();
        batch.put(&key(n), &[n as u8; 500]);
        tree.apply(&batch).unwrap();
    }
    tree.close().unwrap();
    let (disk, seen) = watched_disk(storage);
    let tree = Tree::open(disk.clone(), &Options { background: true, ..quiet(1600) }).unwrap();
    (disk, seen, tree)
}

#[test]
fn a_scan_has_several_stretches_of_leaves_read_ahead_at_a_time() {
    const ASKED_FURTHER: u32 = PER_LEAF * 19 / 2;
    let (_, seen, tree) = cold();
    let mut cursor = tree.cursor();
    for n in 0..RECORDS {
        assert!(cursor.next().unwrap());
        assert_eq!((cursor.key(), cursor.value()), (&*key(n), &[n as u8; 500][..]));
        match n {
            ASKED => {
                let neighbours = wait_until(|| seen.longest.load(Ordering::SeqCst) >= 8 * PAGE_SIZE);
                assert!(neighbours, "neighbours were read one by one");
                seen.together.store(true, Ordering::SeqCst);
            }
            // In the tenth; in the middle of those, many more were asked for.
            ASKED_FURTHER => {
                assert!(wait_until(|| seen.side_by_side()), "the disk served one read after the other");
                let many = wait_until(|| seen.bytes.load(Ordering::SeqCst) >= 80 * PAGE_SIZE);
                let (reads, bytes) = (seen.reads.load(Ordering::SeqCst), seen.bytes.load(Ordering::SeqCst));
                assert!(many && reads * 8 <= bytes / PAGE_SIZE, "{reads} reads for {bytes} bytes");
            }
            _ => {}
        }
    }
    assert!(!cursor.next().unwrap());
    let read = tree.stats().pages_read;
    assert!(read < RECORDS as u64 / 10, "{read} pages: leaves were read more than once");
}

/// Otherwise one could be loaded, changed, written home and evicted between the read and its entry, and come back as it was.
#[test]
fn the_pages_of_a_stretch_are_in_the_table_before_it_is_read() {
    let (storage, _, tree) = cold();
    tree.close().unwrap();
    let pool: Arc<OnceLock<Arc<Pool>>> = Arc::default();
    let (seen, stretches) = (pool.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = stretches.clone();
    let observer = move |kind, offset: u64, bytes: u64| {
        if let (OpKind::Read, true, Some(pool)) = (kind, bytes > PAGE_SIZE as u64, seen.get()) {
            let (first, end) = (offset / PAGE_SIZE as u64, (offset + bytes) / PAGE_SIZE as u64);
            if [first, end - 1].iter().all(|id| pool.is_cached(PageId(*id))) {
                counted.fetch_add(1, Ordering::SeqCst);
            } else {
                counted.store(usize::MAX / 2, Ordering::SeqCst);
            }
        }
    };
    let disk = Arc::new(FaultStorage::observed(storage.inner().clone(), observer));
    let tree = Tree::open(disk, &Options { background: true, ..quiet(400) }).unwrap();
    assert!(pool.set(tree.pool.clone()).is_ok());
    let mut cursor = tree.cursor();
    (0..ASKED).for_each(|_| assert!(cursor.next().unwrap()));
    assert!(wait_until(|| stretches.load(Ordering::SeqCst) > 0), "nothing was read in one piece");
    while cursor.next().unwrap() {}
    let count = stretches.load(Ordering::SeqCst);
    assert!(count < usize::MAX / 2, "a stretch was read while somebody else could load its pages");
}

/// Pages that are read ahead are changed, evicted and freed at the same time: nobody is left waiting.
#[test]
fn reading_ahead_stops_nobody_who_writes() {
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
                    while !done.load(Ordering::SeqCst) || scans < 4 {
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
    let (_, seen, tree) = cold();
    seen.together.store(true, Ordering::SeqCst);
    let keys: Vec<_> = (0..RECORDS).step_by(200).map(key).collect();
    tree.will_get(&keys).unwrap();
    assert!(wait_until(|| seen.side_by_side()), "the disk served one read after the other");
    for key in &keys {
        assert_eq!(tree.get(key).unwrap().unwrap().len(), 500);
    }
    let read = tree.stats().pages_read;
    assert!(read <= 30, "{read} pages for 20 keys");
}

#[test]
fn a_batch_that_meets_one_cold_leaf_has_the_others_read_side_by_side() {
    let (_, seen, tree) = cold();
    seen.slow.store(true, Ordering::SeqCst);
    seen.together.store(true, Ordering::SeqCst);
    let mut batch = Batch::new();
    (0..RECORDS).step_by(200).for_each(|n| batch.put(&key(n), b"new"));
    tree.apply(&batch).unwrap();
    assert!(wait_until(|| seen.side_by_side()), "the disk served one read after the other");
    let read = tree.stats().pages_read;
    assert!(read <= 30, "{read} pages for 20 keys");
    for n in (0..RECORDS).step_by(100) {
        let expected = if n % 200 == 0 { b"new".to_vec() } else { vec![n as u8; 500] };
        assert_eq!(tree.get(&key(n)).unwrap(), Some(expected));
    }
    tree.check().unwrap();
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

/// The damage mark is for the next check at boot, also if the system crashes: it does not wait for the next change.
#[test]
fn damage_is_marked_in_the_image_soon_also_if_nothing_is_written() {
    let storage = image(16 << 20, 512 << 10);
    let tree = Tree::open(storage.clone(), &Options { background: true, ..quiet(64) }).unwrap();
    tree.note_damage();
    assert!(wait_until(|| crate::pool::read_superblock(&*storage).unwrap().is_damaged()));
}

/// A copy of the root that is never made again would lead searches through ever more leaves.
#[test]
fn a_thread_that_has_seen_the_root_sees_it_change() {
    let storage = image(64 << 20, 1 << 20);
    let put = |tree: &Tree, n: u32| {
        let mut batch = Batch::new();
        batch.put(&key(n), &[n as u8; 500]);
        tree.apply(&batch).unwrap();
    };
    let tree = Tree::open(storage.clone(), &quiet(400)).unwrap();
    (0..300).for_each(|n| put(&tree, n));
    tree.close().unwrap();
    // The first copy is of a root above leaves.
    let tree = Tree::open(storage, &quiet(400)).unwrap();
    for n in 300..RECORDS {
        put(&tree, n);
        let rights = tree.stats().move_rights;
        assert!(tree.get(&key(n)).unwrap().is_some());
        assert_eq!(tree.stats().move_rights, rights, "record {n}");
    }
}
