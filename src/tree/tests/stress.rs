//! Stress: many more threads than cores, a pool of a few dozen pages, a small log, and everything at once.
//!
//! What each thread checks is valid although nothing stands still: its own keys, which nobody else changes, exactly; keys that
//! all write, by values that describe themselves; pairs that are written in one batch by one owner with a rising count, by
//! reading one after the other: what is read later is not older.
//!
//! `BTFS_STRESS_SECONDS` runs it longer, `BTFS_SEED` with other random numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;
/// Keys and their new values; `None`: deleted.
type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

const THREADS: u64 = 12;
const SHARED: u64 = 40;
const STALL: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

fn number_from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap())
}

fn seconds() -> Duration {
    Duration::from_secs(number_from_environment("BTFS_STRESS_SECONDS", 3))
}

fn options(pages: usize) -> Options {
    Options { background: true, commit_interval: Duration::from_millis(30), ..quiet(pages) }
}

fn shared_key(n: u64) -> Vec<u8> {
    [b"s".as_slice(), &n.to_be_bytes()].concat()
}

/// Bytes that can be recognised: the key they belong to, and a count.
fn described(key: &[u8], count: u64, len: usize) -> Vec<u8> {
    let check = crc32fast::hash(&[key, &count.to_be_bytes()].concat());
    let mut value = count.to_be_bytes().to_vec();
    value.extend(check.to_be_bytes().iter().cycle().take(len));
    value
}

fn check_described(key: &[u8], value: &[u8]) -> u64 {
    let count = u64::from_be_bytes(value[..8].try_into().unwrap());
    assert_eq!(value, described(key, count, value.len() - 8), "a value under another key, or torn");
    count
}

/// The two keys of a pair lie far apart.
fn pair(owner: u64) -> [Vec<u8>; 2] {
    [format!("a pair {owner}").into_bytes(), format!("z pair {owner}").into_bytes()]
}

fn run_key(run: Run) -> Vec<u8> {
    let mut key = b"x".to_vec();
    key.extend_from_slice(&run.start.0.to_be_bytes());
    key.extend_from_slice(&run.len.to_be_bytes());
    key
}

fn run_of_key(key: &[u8]) -> Run {
    Run {
        start: BlockNo(u64::from_be_bytes(key[1..9].try_into().unwrap())),
        len: u32::from_be_bytes(key[9..].try_into().unwrap()),
    }
}

/// What all threads have in common.
struct Shared<'t> {
    tree: &'t Tree,
    progress: AtomicU64,
    done: AtomicBool,
}

struct Worker<'t> {
    shared: &'t Shared<'t>,
    number: u64,
    rng: Rng,
    /// This thread's own records: its key range, its pair, and its runs of blocks.
    model: Model,
    /// The same as of the last commit, and what was applied since.
    committed: Model,
    since: Vec<Changes>,
    runs: Vec<(Run, u64)>,
    count: u64,
}

impl<'t> Worker<'t> {
    fn new(shared: &'t Shared<'t>, number: u64, seed: u64) -> Self {
        Worker {
            shared,
            number,
            rng: Rng::new(seed * 1000 + number),
            model: Model::new(),
            committed: Model::new(),
            since: Vec::new(),
            runs: Vec::new(),
            count: 0,
        }
    }

    fn tree(&self) -> &'t Tree {
        self.shared.tree
    }

    fn own_key(&mut self) -> Vec<u8> {
        let n = self.rng.below(150);
        let mut key = format!("m{:03}/", self.number).into_bytes();
        key.extend(n.to_be_bytes().repeat(1 + (n % 40) as usize));
        key
    }

    fn apply(&mut self, mut batch: Batch, changes: Changes) -> Lsn {
        for (key, value) in &changes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        let lsn = self.tree().apply(&batch).unwrap();
        for (key, value) in &changes {
            match value {
                Some(value) => self.model.insert(key.clone(), value.clone()),
                None => self.model.remove(key),
            };
        }
        self.since.push(changes);
        lsn
    }

    fn commit(&mut self, lsn: Lsn) {
        self.tree().commit(lsn).unwrap();
        self.committed = self.model.clone();
        self.since.clear();
    }

    fn write(&mut self) {
        let growing = (self.count / 400).is_multiple_of(2);
        let mut changes = BTreeMap::new();
        for _ in 0..1 + self.rng.below(6) {
            let key = self.own_key();
            let value = if self.rng.chance(if growing { 8 } else { 2 }, 10) {
                let len = [10, 200, 1000, 2500][self.rng.index(4)];
                Some(described(&key, self.count, len))
            } else {
                None
            };
            changes.insert(key, value);
        }
        let mut batch = Batch::new();
        if self.rng.chance(1, 3) {
            let key = shared_key(self.rng.below(SHARED));
            let len = self.rng.below(800) as usize;
            batch.put(&key, &described(&key, self.count, len));
        }
        if self.rng.chance(1, 3) {
            for key in pair(self.number) {
                let value = described(&key, self.count, 300);
                changes.insert(key, Some(value));
            }
        }
        let lsn = self.apply(batch, changes.into_iter().collect());
        if self.rng.chance(1, 8) {
            self.commit(lsn);
        }
    }

    fn check_own(&mut self) {
        let key = self.own_key();
        assert_eq!(self.tree().get(&key).unwrap().as_ref(), self.model.get(&key));
        if !self.rng.chance(1, 10) {
            return;
        }
        let (from, to) = (format!("m{:03}/", self.number), format!("m{:03}0", self.number));
        let mine = || self.model.range(from.clone().into_bytes()..to.clone().into_bytes());
        let mut cursor = self.tree().cursor();
        cursor.seek(from.as_bytes()).unwrap();
        for (key, value) in mine() {
            assert!(cursor.next().unwrap(), "a scan ends early");
            assert_eq!((cursor.key(), cursor.value()), (&key[..], &value[..]));
        }
        cursor.seek(to.as_bytes()).unwrap();
        for (key, value) in mine().rev() {
            assert!(cursor.prev().unwrap(), "a scan backwards ends early");
            assert_eq!((cursor.key(), cursor.value()), (&key[..], &value[..]));
        }
    }

    fn check_shared(&mut self) {
        let key = shared_key(self.rng.below(SHARED));
        if let Some(value) = self.tree().get(&key).unwrap() {
            check_described(&key, &value);
        }
        let [a, z] = pair(self.rng.below(THREADS));
        let (first, second) = if self.rng.chance(1, 2) { (&a, &z) } else { (&z, &a) };
        let count = |key: &[u8]| self.tree().get(key).unwrap().map(|v| check_described(key, &v));
        let (one, two) = (count(first), count(second));
        assert!(one <= two, "half of a batch was seen: {one:?}, then {two:?}");
    }

    /// Everything in order, no key twice, every value its key's own.
    fn check_scan(&mut self) {
        let mut cursor = self.tree().cursor();
        let mut last: Option<Vec<u8>> = None;
        while cursor.next().unwrap() {
            assert!(last.as_deref().is_none_or(|l| l < cursor.key()), "a scan repeats itself");
            check_described(cursor.key(), cursor.value());
            last = Some(cursor.key().to_vec());
        }
    }

    fn blocks(&mut self) {
        if self.runs.len() > 8 || self.rng.chance(1, 3) {
            let Some(i) = self.runs.len().checked_sub(1).map(|n| self.rng.index(n + 1)) else { return };
            let (run, stamp) = self.runs.swap_remove(i);
            let mut data = vec![0; run.len as usize * BLOCK_SIZE];
            self.tree().read_blocks(run.start, &mut data).unwrap();
            assert!(data.as_chunks::<8>().0.iter().all(|w| u64::from_be_bytes(*w) == stamp), "data is lost");
            let mut batch = Batch::new();
            batch.free(run);
            self.apply(batch, vec![(run_key(run), None)]);
            return;
        }
        let want = 1 + self.rng.below(40) as u32;
        let run = self.tree().reserve_blocks(want).unwrap();
        assert!(run.len >= 1 && run.len <= want);
        if self.rng.chance(1, 5) {
            return self.tree().unreserve_blocks(run);
        }
        let stamp = self.number << 32 | self.count;
        self.tree().write_blocks(run.start, &stamp.to_be_bytes().repeat(run.len as usize * 512)).unwrap();
        let mut batch = Batch::new();
        batch.allocate(run);
        let key = run_key(run);
        let value = described(&key, stamp, 10);
        self.apply(batch, vec![(key, Some(value))]);
        self.runs.push((run, stamp));
    }

    fn work(&mut self) {
        while !self.shared.done.load(Ordering::Relaxed) {
            self.count += 1;
            match self.rng.below(100) {
                0..45 => self.write(),
                45..70 => self.check_own(),
                70..85 => self.check_shared(),
                85..95 => self.blocks(),
                95 => self.tree().checkpoint().unwrap(),
                96 => _ = self.tree().trim(4).unwrap(),
                97 => self.check_scan(),
                98 => {
                    self.tree().commit_all().unwrap();
                    self.committed = self.model.clone();
                    self.since.clear();
                }
                _ => std::thread::yield_now(),
            }
            self.shared.progress.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether a run has had what it is for.
fn has_met_all(stats: &Stats) -> bool {
    stats.merges > 0 && stats.checkpoints > 1 && stats.latch_waits > 0
}

/// Says what stands still, and ends the process: a deadlock must fail, not hang.
fn watch(shared: &Shared<'_>, until: Instant, finished: &AtomicU64) {
    // Time in which this thread runs: where all of the process stands still nothing is hanging.
    let (mut last, mut waited) = (0, Duration::ZERO);
    while finished.load(Ordering::Relaxed) < THREADS {
        std::thread::sleep(LOOK);
        waited += LOOK;
        let late = Instant::now().saturating_duration_since(until);
        if late > STALL * 4 || late > Duration::ZERO && has_met_all(&shared.tree.stats()) {
            shared.done.store(true, Ordering::Relaxed);
        }
        let now = shared.progress.load(Ordering::Relaxed) + finished.load(Ordering::Relaxed);
        if now != last {
            (last, waited) = (now, Duration::ZERO);
        }
        if waited > STALL {
            eprintln!("no operation has ended for {STALL:?} after {last}: {:#?}", shared.tree.stats());
            std::process::abort();
        }
    }
}

/// Counts a thread as finished also when it panics.
struct Finish<'f>(&'f AtomicU64);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Outcome {
    model: Model,
    committed: Model,
    since: Vec<Changes>,
}

fn run(tree: &Tree, seed: u64) -> Vec<Outcome> {
    let shared = Shared { tree, progress: AtomicU64::new(0), done: AtomicBool::new(false) };
    let finished = AtomicU64::new(0);
    let until = Instant::now() + seconds();
    std::thread::scope(|scope| {
        let work = |number| {
            let (shared, finished) = (&shared, &finished);
            scope.spawn(move || {
                let _finish = Finish(finished);
                let mut worker = Worker::new(shared, number, seed);
                worker.work();
                Outcome { model: worker.model, committed: worker.committed, since: worker.since }
            })
        };
        let threads: Vec<_> = (0..THREADS).map(work).collect();
        watch(&shared, until, &finished);
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// All records but the shared ones, and that blocks in use are exactly those that records name.
fn contents(tree: &Tree) -> Model {
    let report = tree.check().unwrap();
    let blocks = |runs: &mut dyn Iterator<Item = Run>| -> BTreeSet<u64> {
        runs.flat_map(|r| r.start.0..r.end().0).collect()
    };
    let mut found = Model::new();
    let mut cursor = tree.cursor();
    while cursor.next().unwrap() {
        check_described(cursor.key(), cursor.value());
        found.insert(cursor.key().to_vec(), cursor.value().to_vec());
    }
    let named = blocks(&mut found.keys().filter(|k| k[0] == b'x').map(|k| run_of_key(k)));
    assert_eq!(blocks(&mut report.data.into_iter()), named, "blocks are leaked, or in use and free at once");
    found.retain(|key, _| key[0] != b's');
    found
}

fn image_for(seed: u64) -> (Arc<MemStorage>, usize) {
    let mut rng = Rng::new(seed);
    let pages = 60 + rng.below(40) as usize;
    (image(64 << 20, [512 << 10, 1 << 20][rng.index(2)]), pages)
}

#[test]
fn nothing_is_lost_or_mixed_up_under_load() {
    let seed = number_from_environment("BTFS_SEED", 1);
    let (storage, pages) = image_for(seed);
    let tree = Tree::open(storage.clone(), &options(pages)).unwrap();
    let outcomes = run(&tree, seed);
    let stats = tree.stats();
    assert!(has_met_all(&stats), "{stats:#?}");
    let expected: Model = outcomes.into_iter().flat_map(|o| o.model).collect();
    assert_eq!(contents(&tree), expected);
    tree.close().unwrap();
    let tree = Tree::open(storage, &options(pages)).unwrap();
    assert!(tree.recovery().clean);
    assert_eq!(contents(&tree), expected);
}

#[test]
fn what_was_committed_under_load_survives_a_kill() {
    let seed = number_from_environment("BTFS_SEED", 2);
    let (storage, pages) = image_for(seed);
    let tree = Tree::open(storage.clone(), &options(pages)).unwrap();
    let outcomes = run(&tree, seed);
    drop(tree);
    let tree = Tree::open(storage, &options(pages)).unwrap();
    assert!(!tree.recovery().clean);
    let found = contents(&tree);
    let mut known = 0;
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let mine: Model = found.iter().filter(|(k, _)| owner(k) == Some(number)).map(copy).collect();
        let mut state = outcome.committed;
        state.retain(|k, _| k[0] != b'x');
        let mut later = outcome.since.into_iter();
        while state != mine {
            let batch =
                later.next().unwrap_or_else(|| panic!("thread {number}: no prefix of its batches is there"));
            for (key, value) in batch.into_iter().filter(|(k, _)| k[0] != b'x') {
                match value {
                    Some(value) => state.insert(key, value),
                    None => state.remove(&key),
                };
            }
        }
        known += mine.len();
    }
    assert_eq!(known, found.keys().filter(|k| k[0] != b'x').count());
}

fn copy((key, value): (&Vec<u8>, &Vec<u8>)) -> (Vec<u8>, Vec<u8>) {
    (key.clone(), value.clone())
}

/// Which thread writes a key.
fn owner(key: &[u8]) -> Option<usize> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().parse().ok();
    match key[0] {
        b'm' => text(&key[1..4]),
        b'a' | b'z' => text(&key[7..]),
        _ => None,
    }
}
