//! Fault injection: the Nth operation of the storage fails, for every N, over a fixed workload. Each call returns Ok or an error,
//! and never panics; what was acknowledged is there after the next opening.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::storage::{Fault, FaultStorage, Image, OpKind, Storage};

/// Values are shared: a run keeps many states.
type Model = BTreeMap<Vec<u8>, Arc<Vec<u8>>>;
type Faulty = Arc<FaultStorage<MemStorage>>;

const PAGES: usize = 32;

fn key(n: u64) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

fn background() -> Options {
    Options { background: true, ..quiet(PAGES) }
}

/// An image with some 70 leaves that was not closed, so that opening recovers.
fn prepared() -> (Image, Model) {
    let storage = image(16 << 20, 512 << 10);
    let tree = Tree::open(storage.clone(), &quiet(PAGES)).unwrap();
    let mut model = Model::new();
    for n in 0..500 {
        let mut batch = Batch::new();
        batch.put(&key(n * 10), &[n as u8; 1500]);
        model.insert(key(n * 10), Arc::new(vec![n as u8; 1500]));
        tree.apply(&batch).unwrap();
    }
    tree.commit_all().unwrap();
    drop(tree);
    (storage.image(), model)
}

/// What a run of the workload has done, and what it must find again.
struct Run {
    storage: Faulty,
    tree: Tree,
    /// The contents after each batch that was applied; the first is what was there at the beginning.
    history: Vec<Model>,
    /// The newest state that a commit has acknowledged.
    acknowledged: usize,
    runs: Vec<BlockRun>,
    errors: Vec<Error>,
}
type BlockRun = crate::page::Run;

fn is_expected(error: &Error) -> bool {
    matches!(error, Error::Io { .. } | Error::NoSpace)
}

impl Run {
    fn new(storage: Faulty, tree: Tree, model: Model) -> Run {
        Run { storage, tree, history: vec![model], acknowledged: 0, runs: Vec::new(), errors: Vec::new() }
    }

    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                assert!(is_expected(&error), "{error}");
                self.errors.push(error);
                None
            }
        }
    }

    fn now(&self) -> &Model {
        self.history.last().unwrap()
    }

    fn apply(&mut self, changes: &[(Vec<u8>, Option<Vec<u8>>)], batch: Batch) -> bool {
        let mut batch = batch;
        let mut next = self.now().clone();
        for (key, value) in changes {
            match value {
                Some(value) => {
                    batch.put(key, value);
                    next.insert(key.clone(), Arc::new(value.clone()));
                }
                None => {
                    batch.delete(key);
                    next.remove(key);
                }
            }
        }
        let result = self.tree.apply(&batch);
        let applied = self.note(result).is_some();
        if applied {
            self.history.push(next);
        }
        applied
    }

    fn commit(&mut self) {
        let newest = self.history.len() - 1;
        let failed = self.tree.pool.log.failure().map(ToString::to_string);
        match self.tree.commit_all() {
            Ok(()) => {
                assert!(failed.is_none(), "a commit after a failed write was acknowledged");
                self.acknowledged = newest;
            }
            Err(error) => {
                assert!(failed.is_none_or(|f| f == error.to_string()), "the latched error changes");
                self.note::<()>(Err(error));
            }
        }
    }

    fn blocks(&mut self, n: u64) {
        let result = self.tree.reserve_blocks(if n % 9 == 4 { 600 } else { 20 });
        let Some(run) = self.note(result) else { return };
        let data = vec![n as u8; run.len as usize * BLOCK_SIZE];
        let result = self.tree.write_blocks(run.start, &data);
        if self.note(result).is_none() {
            return self.tree.unreserve_blocks(run);
        }
        let mut batch = Batch::new();
        batch.allocate(run);
        let record = (run_key(run), Some(vec![n as u8]));
        if self.apply(&[record], batch) {
            self.runs.push(run);
        } else {
            self.tree.unreserve_blocks(run);
        }
    }

    fn free(&mut self) {
        let Some(run) = self.runs.pop() else { return };
        let mut batch = Batch::new();
        batch.free(run);
        if !self.apply(&[(run_key(run), None)], batch) {
            self.runs.push(run);
        }
    }

    /// Reads everything; with no read error armed, all of it must be there.
    fn compare(&mut self, reads_may_fail: bool) {
        let model = self.now().clone();
        for (key, value) in model.iter().step_by(3) {
            match self.tree.get(key) {
                Ok(found) => assert_eq!(found.as_ref(), Some(&**value)),
                Err(error) => assert!(reads_may_fail && is_expected(&error), "{error}"),
            }
        }
        let mut cursor = self.tree.cursor();
        let mut expected = model.iter();
        loop {
            match cursor.next() {
                Ok(true) => {
                    let record = (cursor.key().to_vec(), Arc::new(cursor.value().to_vec()));
                    assert_eq!(Some((&record.0, &record.1)), expected.next());
                }
                Ok(false) => break assert_eq!(expected.next(), None),
                // The call is repeated: an error loses nothing but itself.
                Err(error) => assert!(reads_may_fail && is_expected(&error), "{error}"),
            }
        }
    }

    fn work(&mut self, reads_may_fail: bool) {
        for n in 0..45u64 {
            let spread = |i: u64| (n * 7 + i * 61) % 500 * 10;
            let changes: Vec<_> = match n % 3 {
                0 => (0..3).map(|i| (key(spread(i) + 1 + n), Some(vec![n as u8; 1400]))).collect(),
                1 => (0..6).map(|i| (key((n * 8 + i) % 500 * 10), None)).collect(),
                _ => (0..4).map(|i| (key(spread(0) + i + 2), Some(vec![n as u8; 2500]))).collect(),
            };
            self.apply(&changes, Batch::new());
            match n % 9 {
                1 | 4 => self.blocks(n),
                2 | 7 => self.commit(),
                5 => {
                    let result = self.tree.checkpoint();
                    self.note(result);
                }
                6 => self.free(),
                8 => {
                    let result = self.tree.trim(2);
                    self.note(result);
                }
                _ => {}
            }
            if n % 15 == 14 {
                self.compare(reads_may_fail);
            }
        }
    }

    /// The next opening finds one of the states since the last acknowledged one.
    fn reopen(self) {
        let Run { storage, tree, history, acknowledged, .. } = self;
        drop(tree);
        storage.disarm();
        let tree = Tree::open(storage, &quiet(PAGES)).unwrap();
        let found = contents(&tree);
        let at = history.iter().rposition(|state| *state == found);
        let at = at.expect("what is there after recovery is no state that was ever there");
        assert!(at >= acknowledged, "acknowledged batches are lost: state {at}, acknowledged {acknowledged}");
        tree.close().unwrap();
    }
}

fn run_key(run: BlockRun) -> Vec<u8> {
    [b"\xffrun".as_slice(), &run.start.0.to_be_bytes(), &run.len.to_be_bytes()].concat()
}

/// All records; blocks in use are those that records name.
fn contents(tree: &Tree) -> Model {
    let report = tree.check().unwrap();
    let mut found = Model::new();
    let mut cursor = tree.cursor();
    while cursor.next().unwrap() {
        found.insert(cursor.key().to_vec(), Arc::new(cursor.value().to_vec()));
    }
    let used: BTreeSet<u64> = report.data.iter().flat_map(|r| r.start.0..r.end().0).collect();
    let mut named = BTreeSet::new();
    for key in found.keys().filter(|k| k.starts_with(b"\xffrun")) {
        let start = u64::from_be_bytes(key[4..12].try_into().unwrap());
        named.extend(start..start + u32::from_be_bytes(key[12..].try_into().unwrap()) as u64);
    }
    assert_eq!(used, named, "blocks are leaked or lost");
    found
}

/// Runs the workload with the fault; how many operations it failed.
fn run_with(fault: Fault, base: &(Image, Model), options: &Options, kinds: &[OpKind]) -> u64 {
    let reads_may_fail = kinds.contains(&OpKind::Read);
    let storage = Arc::new(FaultStorage::new(MemStorage::from_image(base.0.clone())));
    storage.arm(fault);
    let tree = match Tree::open(storage.clone(), options) {
        Ok(tree) => tree,
        Err(error) => {
            assert!(is_expected(&error), "{error}");
            let fired = storage.disarm();
            let tree = Tree::open(storage, options).unwrap();
            assert_eq!(contents(&tree), base.1, "a failed opening lost something");
            return fired;
        }
    };
    let mut run = Run::new(storage, tree, base.1.clone());
    run.work(reads_may_fail);
    run.compare(reads_may_fail);
    run.commit();
    let fired = run.storage.fired();
    if fired == 0 {
        assert!(run.errors.is_empty(), "{:?}", run.errors);
        assert_eq!(run.acknowledged, run.history.len() - 1);
    }
    run.reopen();
    fired
}

/// Every N, `step` apart, until the workload has fewer such operations.
fn every(kinds: &[OpKind], step: u64, options: &Options, make: impl Fn(Fault) -> Fault) -> u64 {
    let base = prepared();
    let mut nth = 0;
    loop {
        if run_with(make(Fault::nth(kinds, nth)), &base, options, kinds) == 0 {
            return nth;
        }
        nth += step;
    }
}

#[test]
fn a_failed_write_loses_nothing_acknowledged() {
    assert!(every(&[OpKind::Write], 1, &quiet(PAGES), |f| f) > 40);
    every(&[OpKind::Write], 1, &quiet(PAGES), |f| f.partial().forever());
}

#[test]
fn a_failed_log_or_superblock_write_loses_nothing_acknowledged() {
    assert!(every(&[OpKind::WriteDurable], 1, &quiet(PAGES), |f| f) > 20);
    every(&[OpKind::WriteDurable], 1, &quiet(PAGES), |f| f.partial());
}

#[test]
fn a_failed_sync_loses_nothing_acknowledged() {
    assert!(every(&[OpKind::Sync], 1, &quiet(PAGES), |f| f) > 20);
    every(&[OpKind::Sync], 1, &quiet(PAGES), Fault::forever);
}

#[test]
fn a_failed_read_costs_that_call_alone() {
    assert!(every(&[OpKind::Read], 7, &quiet(PAGES), |f| f) > 300);
}

#[test]
fn a_failed_punch_or_allocation_loses_nothing() {
    assert!(every(&[OpKind::Punch], 1, &quiet(PAGES), |f| f) > 0);
    assert!(every(&[OpKind::Allocate], 1, &quiet(PAGES), |f| f) > 0);
}

#[test]
fn faults_under_background_threads_lose_nothing_acknowledged() {
    for kinds in [&[OpKind::Write][..], &[OpKind::WriteDurable], &[OpKind::Sync], &[OpKind::Read]] {
        let base = prepared();
        let mut hit = 0;
        for nth in (0..300).step_by(if kinds == [OpKind::Read] { 41 } else { 13 }) {
            hit += run_with(Fault::nth(kinds, nth).partial(), &base, &background(), kinds);
        }
        assert!(hit > 0, "{kinds:?}: no fault was met");
    }
}

#[test]
fn a_full_host_costs_only_what_needs_space() {
    let base = prepared();
    let storage = Arc::new(FaultStorage::new(MemStorage::from_image(base.0)));
    let tree = Tree::open(storage.clone(), &quiet(PAGES)).unwrap();
    let mut run = Run::new(storage.clone(), tree, base.1);
    storage.arm(Fault::nth(&[OpKind::Allocate], 0).forever().errno(libc::ENOSPC));
    let mut n = 0;
    while run.errors.is_empty() {
        let grown: Vec<_> = (0..5).map(|i| (key(1_000_000 + n * 5 + i), Some(vec![1; 3000]))).collect();
        run.apply(&grown, Batch::new());
        n += 1;
    }
    assert!(n > 10, "there is room in chunks that the host has given already");
    assert!(matches!(run.errors[..], [Error::NoSpace]), "{:?}", run.errors);
    // What needs no new page goes on, and is durable.
    run.compare(false);
    run.commit();
    assert_eq!(run.acknowledged, run.history.len() - 1);
    for n in 0..20 {
        assert!(run.apply(&[(key(n * 10), None)], Batch::new()));
    }
    storage.disarm();
    for n in 0..100 {
        assert!(run.apply(&[(key(2_000_000 + n), Some(vec![2; 3000]))], Batch::new()));
    }
    // The same for file data that meets a full disk.
    let blocks = run.tree.reserve_blocks(4).unwrap();
    storage.arm(Fault::nth(&[OpKind::Write], 0).forever().errno(libc::ENOSPC));
    let result = run.tree.write_blocks(blocks.start, &[0; 4 * BLOCK_SIZE]);
    assert!(matches!(result, Err(Error::NoSpace)), "{result:?}");
    storage.disarm();
    run.tree.unreserve_blocks(blocks);
    run.commit();
    assert_eq!(run.acknowledged, run.history.len() - 1);
    run.compare(false);
    run.reopen();
}

#[test]
fn everything_can_be_read_after_writing_has_ended() {
    let (image, model) = prepared();
    let storage = Arc::new(FaultStorage::new(MemStorage::from_image(image)));
    let tree = Tree::open(storage.clone(), &quiet(PAGES)).unwrap();
    let mut run = Run::new(storage.clone(), tree, model);
    storage.arm(Fault::nth(&[OpKind::Write], 0).forever());
    let mut n = 0;
    while run.errors.is_empty() {
        run.apply(&[(key(n * 250 % 5000), Some(vec![7; 1500]))], Batch::new());
        n += 1;
    }
    let dirty = run.tree.pool.dirty_frames();
    assert!(dirty >= PAGES / 2, "only {dirty} frames are dirty");
    assert!(n > 8);
    run.compare(false);
    let tree = &run.tree;
    let now = run.history.last().unwrap();
    std::thread::scope(|scope| {
        for first in 0..8 {
            scope.spawn(move || {
                for (key, value) in now.iter().skip(first).step_by(5) {
                    assert_eq!(tree.get(key).unwrap().as_ref(), Some(&**value));
                }
            });
        }
    });
    let latched = run.errors[0].to_string();
    for _ in 0..3 {
        assert_eq!(run.tree.commit_all().unwrap_err().to_string(), latched);
        assert_eq!(run.tree.checkpoint().unwrap_err().to_string(), latched);
        let mut batch = Batch::new();
        batch.put(b"x", b"y");
        assert_eq!(run.tree.apply(&batch).unwrap_err().to_string(), latched);
    }
    assert!(run.tree.pool.dirty_frames() <= run.tree.pool.dirty_max());
    run.reopen();
}

/// A host that drops what it cannot write, tells so once, and goes on showing it, as Linux does, until [`Storage::forget_cached`].
struct Forgetful {
    disk: MemStorage,
    cache: MemStorage,
    pending: Mutex<Vec<(u64, Vec<u8>)>>,
    good_syncs: AtomicUsize,
}

impl Forgetful {
    fn new(image: Image) -> Arc<Self> {
        Arc::new(Forgetful {
            disk: MemStorage::from_image(image.clone()),
            cache: MemStorage::from_image(image),
            pending: Mutex::default(),
            good_syncs: AtomicUsize::new(usize::MAX),
        })
    }
}

impl Storage for Forgetful {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.cache.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.pending.lock().push((offset, buf.to_vec()));
        self.cache.write_at(offset, buf)
    }
    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.cache.write_at(offset, buf)?;
        self.disk.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        let pending = std::mem::take(&mut *self.pending.lock());
        let syncs = self.good_syncs.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if syncs.is_err() && !pending.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        pending.iter().try_for_each(|(offset, bytes)| self.disk.write_at(*offset, bytes))
    }
    fn forget_cached(&self) {
        assert!(self.pending.lock().is_empty(), "only what is written is forgotten");
        let disk = self.disk.image().to_vec().unwrap();
        self.cache.write_at(0, &disk).unwrap();
    }
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.cache.set_len(len)?;
        self.disk.set_len(len)
    }
    fn allocate(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(true)
    }
    fn punch(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }
}

#[test]
fn recovery_does_not_believe_what_the_host_only_shows() {
    let (before, _) = prepared();
    let host = Forgetful::new(before);
    let tree = Tree::open(host.clone(), &quiet(PAGES)).unwrap();
    let mut batch = Batch::new();
    batch.put(&key(10), b"acknowledged");
    tree.commit(tree.apply(&batch).unwrap()).unwrap();
    host.good_syncs.store(0, Ordering::SeqCst);
    assert!(tree.checkpoint().is_err());
    drop(tree);
    host.good_syncs.store(usize::MAX, Ordering::SeqCst);
    // Opened again at once; then what the host showed goes.
    let read_only = Tree::open(host.clone(), &Options { read_only: true, ..quiet(PAGES) }).unwrap();
    host.forget_cached();
    assert_eq!(read_only.get(&key(10)).unwrap().as_deref(), Some(&b"acknowledged"[..]));
    drop(read_only);
    let tree = Tree::open(host.clone(), &quiet(PAGES)).unwrap();
    tree.close().unwrap();
    host.forget_cached();
    let tree = Tree::open(host.clone(), &quiet(PAGES)).unwrap();
    assert_eq!(tree.get(&key(10)).unwrap().as_deref(), Some(&b"acknowledged"[..]));
    tree.check().unwrap();
}

#[test]
fn a_page_whose_last_write_the_host_has_lost_is_not_believed() {
    let (before, mut model) = prepared();
    let host = Forgetful::new(before);
    let tree = Tree::open(host.clone(), &quiet(PAGES)).unwrap();
    tree.checkpoint().unwrap();
    for n in 0..20 {
        let mut batch = Batch::new();
        batch.put(&key(n * 250), b"acknowledged");
        model.insert(key(n * 250), Arc::new(b"acknowledged".to_vec()));
        tree.apply(&batch).unwrap();
    }
    tree.commit_all().unwrap();
    // Copied to the doublewrite area and written home; what says so fails.
    host.good_syncs.store(1, Ordering::SeqCst);
    assert!(tree.checkpoint().is_err());
    let mut lost = 0;
    for cached in [true, false] {
        if !cached {
            host.forget_cached();
        }
        for (key, value) in &model {
            match tree.get(key) {
                Ok(found) => assert_eq!(found.as_ref(), Some(&**value), "an old version is returned"),
                Err(error) => {
                    assert!(!cached && error.to_string().contains("last write is lost"), "{error}");
                    lost += 1;
                }
            }
        }
    }
    assert!((1..model.len()).contains(&lost), "{lost} of {} records cannot be read", model.len());
    drop(tree);
    host.good_syncs.store(usize::MAX, Ordering::SeqCst);
    let tree = Tree::open(host, &quiet(PAGES)).unwrap();
    assert_eq!(contents(&tree), model);
}

/// What could not be written is not known to be anywhere. Where the host is full instead, space that is freed helps.
#[test]
fn a_write_of_data_that_fails_ends_writing_unless_the_host_is_full() {
    for (errno, ends) in [(libc::EIO, true), (libc::ENOSPC, false), (libc::EDQUOT, false)] {
        let storage = Arc::new(FaultStorage::new(image(16 << 20, 512 << 10)));
        let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
        let run = tree.reserve_blocks(4).unwrap();
        storage.arm(Fault::nth(&[OpKind::Write], 0).errno(errno).forever());
        let error = tree.write_blocks(run.start, &[7; 4096]).unwrap_err();
        assert!(storage.disarm() > 0);
        assert_eq!(matches!(error, Error::NoSpace), !ends, "{error}");
        assert_eq!(tree.failure().is_some(), ends, "{error}");
        assert_eq!(tree.write_blocks(run.start, &[8; 4096]).is_err(), ends, "{error}");
        assert_eq!(tree.commit_all().is_err(), ends, "{error}");
    }
}
