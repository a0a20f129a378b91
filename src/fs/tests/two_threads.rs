//! Two threads on one filesystem: each in a subtree of its own, compared with a model to the last byte, and both in directories
//! and files that they share.
//!
//! What they share is compared exactly as well. Each name of the shared directories has a lock of the *test*, so the outcome of
//! an operation on it is known, while operations on other names of the same directories go on; and of a shared file each
//! thread has stripes of its own, which meet those of the other within blocks.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::blocks::compare_blocks;
use super::model::Run;
use super::*;
use crate::storage::Rng;

const NAMES: usize = 12;
const FILES: usize = 3;
const MOVED: usize = 8;
const STRIPE: usize = 3_000;
const STRIPED: usize = 90_000;
const STEPS: usize = 4_000;

/// What is under a shared name.
#[derive(Clone, Copy, Debug)]
struct Item {
    ino: Ino,
    is_dir: bool,
}

/// What both threads share.
struct Shared {
    dirs: [Ino; 2],
    names: Vec<Mutex<Option<Item>>>,
    files: Vec<Ino>,
    /// Directories that are moved into one another, and the one that all are in at the beginning.
    moved: Vec<Ino>,
    top: Ino,
}

/// What one thread has written to its stripes of a file, and how far.
#[derive(Clone)]
struct Stripes {
    data: Vec<u8>,
    end: usize,
}

fn name_of(slot: usize) -> Vec<u8> {
    format!("shared{}", slot % NAMES).into_bytes()
}

impl Shared {
    fn new(fs: &Fs, round: usize) -> Shared {
        let dir =
            |parent, name: String| create(fs, parent, name.as_bytes(), New::Directory, 0o755, &ME).unwrap();
        let file = |i: usize| {
            create(fs, ROOT, format!("{round}.file{i}").as_bytes(), New::File, 0o644, &ME).unwrap()
        };
        let top = dir(ROOT, format!("{round}.top"));
        Shared {
            dirs: [dir(ROOT, format!("{round}.a")), dir(ROOT, format!("{round}.b"))],
            names: (0..2 * NAMES).map(|_| Mutex::new(None)).collect(),
            files: (0..FILES).map(file).collect(),
            moved: (0..MOVED).map(|i| dir(top, format!("moved{i}"))).collect(),
            top,
        }
    }

    fn dir(&self, slot: usize) -> Ino {
        self.dirs[slot / NAMES]
    }

    /// One operation on one shared name.
    fn single(&self, fs: &Fs, rng: &mut Rng) {
        let slot = rng.index(2 * NAMES);
        let (dir, name) = (self.dir(slot), name_of(slot));
        let mut item = self.names[slot].lock().unwrap();
        match rng.below(6) {
            0 | 1 => {
                let is_dir = rng.chance(1, 3);
                let new = if is_dir { New::Directory } else { New::File };
                match (fs.create(dir, &name, new, 0o755, 0, &ME), &*item) {
                    (Ok(made), None) => {
                        *item = Some(Item { ino: made.ino, is_dir });
                        fs.release(made.ino, 1).unwrap();
                    }
                    (Err(FsError::Exists), Some(_)) => {}
                    other => panic!("create: {other:?}"),
                }
            }
            2 => {
                let rmdir = rng.chance(1, 2);
                let done = if rmdir { fs.rmdir(dir, &name, &ME) } else { fs.unlink(dir, &name, &ME) };
                match (done, &*item) {
                    (Ok(()), Some(old)) if old.is_dir == rmdir => *item = None,
                    (Err(FsError::NotFound), None) => {}
                    (Err(FsError::NotDirectory), Some(old)) if rmdir && !old.is_dir => {}
                    (Err(FsError::IsDirectory), Some(old)) if !rmdir && old.is_dir => {}
                    other => panic!("remove: {other:?}"),
                }
            }
            3 => {
                let mut seen = BTreeSet::new();
                let mut found = None;
                fs.read_dir(dir, Cookie(2), |_, ino, _, other| {
                    assert!(seen.insert(other.to_vec()), "a name is seen twice");
                    found = found.or((other == name).then_some(ino));
                    true
                })
                .unwrap();
                assert_eq!(found, item.map(|i| i.ino), "a name that nobody touches in a listing");
            }
            4 => {
                let mut found = None;
                let mut taken = Vec::new();
                fs.read_dir_plus(dir, Cookie(2), 100, |_, attributes, other| {
                    found = found.or((other == name).then_some(attributes.ino));
                    taken.push(attributes.ino);
                    taken.len() < 6
                })
                .unwrap();
                if taken.len() == 6 {
                    taken.pop();
                    found = found.or(item.map(|i| i.ino));
                }
                taken.into_iter().for_each(|ino| fs.release(ino, 1).unwrap());
                assert_eq!(found, item.map(|i| i.ino), "a name that nobody touches in a listing");
            }
            _ => match (fs.lookup_attributes(dir, &name), &*item) {
                (Ok(found), Some(old)) => {
                    assert_eq!((found.ino, found.kind == Kind::Directory), (old.ino, old.is_dir));
                    fs.release(found.ino, 1).unwrap();
                }
                (Err(FsError::NotFound), None) => {}
                other => panic!("lookup: {other:?}"),
            },
        }
    }

    /// One operation on two shared names.
    fn double(&self, fs: &Fs, rng: &mut Rng) {
        let (from, to) = (rng.index(2 * NAMES), rng.index(2 * NAMES));
        if from == to {
            return;
        }
        let mut low = self.names[from.min(to)].lock().unwrap();
        let mut high = self.names[from.max(to)].lock().unwrap();
        let (old, new) = if from < to { (&mut *low, &mut *high) } else { (&mut *high, &mut *low) };
        let (name, new_name) = (name_of(from), name_of(to));
        if rng.chance(1, 5) {
            let Some(item) = *old else { return };
            match fs.link(item.ino, self.dir(to), &new_name, &ME) {
                Ok(made) if new.is_none() && !item.is_dir => {
                    *new = Some(item);
                    fs.release(made.ino, 1).unwrap();
                }
                Err(FsError::Exists) if new.is_some() => {}
                Err(FsError::IsDirectory) if item.is_dir => {}
                other => panic!("link: {other:?}, {old:?} to {new:?}"),
            }
            return;
        }
        let whiteout = RenameMode::Whiteout { replace: true };
        let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange, whiteout][rng.index(4)];
        let same = old.is_some_and(|o| new.is_some_and(|n| o.ino == n.ino));
        let kinds =
            |a: bool, b: bool| old.is_some_and(|o| o.is_dir == a) && new.is_some_and(|n| n.is_dir == b);
        let fits = old.is_some() && new.is_none() || kinds(true, true) || kinds(false, false);
        let replaces = matches!(mode, RenameMode::Replace | RenameMode::Whiteout { .. });
        match (fs.rename(self.dir(from), &name, self.dir(to), &new_name, mode, &ME), mode) {
            (Ok(()), RenameMode::Exchange) if old.is_some() && new.is_some() => std::mem::swap(old, new),
            (Ok(()), RenameMode::Replace | RenameMode::Whiteout { .. }) if same => {}
            (Ok(()), RenameMode::Replace) if fits => *new = old.take(),
            (Ok(()), RenameMode::Whiteout { .. }) if fits => {
                *new = old.take();
                let left = fs.lookup_attributes(self.dir(from), &name).unwrap();
                assert_eq!((left.kind, left.rdev, left.mode), (Kind::CharDevice, 0, 0));
                *old = Some(Item { ino: left.ino, is_dir: false });
                fs.release(left.ino, 1).unwrap();
            }
            (Ok(()), RenameMode::NoReplace) if new.is_none() => *new = old.take(),
            (Err(FsError::NotFound), RenameMode::Exchange) if old.is_none() || new.is_none() => {}
            (Err(FsError::NotFound), _) if old.is_none() => {}
            (Err(FsError::Exists), RenameMode::NoReplace) if new.is_some() => {}
            (Err(FsError::NotDirectory), _) if replaces && kinds(true, false) => {}
            (Err(FsError::IsDirectory), _) if replaces && kinds(false, true) => {}
            other => panic!("rename: {other:?}, {old:?} to {new:?}"),
        }
    }

    /// Moves a directory into another one, wherever both may be by then.
    fn move_dir(&self, fs: &Fs, rng: &mut Rng) {
        let (a, b) = (rng.index(MOVED), rng.index(MOVED + 1));
        let to = self.moved.get(b).copied().unwrap_or(self.top);
        let from = fs.parent(self.moved[a]).unwrap();
        let name = format!("moved{a}").into_bytes();
        let moved = fs.rename(from, &name, to, &name, RenameMode::Replace, &ME);
        // The other thread may have moved it in between; into itself it cannot go.
        assert!(matches!(moved, Ok(()) | Err(FsError::NotFound | FsError::Invalid)), "{moved:?}");
    }

    /// A write, a hole or a read in stripes of thread `who`.
    fn stripe(&self, fs: &Fs, rng: &mut Rng, who: usize, mine: &mut [Stripes]) {
        let i = rng.index(FILES);
        let (ino, mine) = (self.files[i], &mut mine[i]);
        let stripe = 2 * rng.index(STRIPED / STRIPE / 2) + who;
        let from = stripe * STRIPE + rng.index(STRIPE);
        let to = (from + 1 + rng.index(STRIPE)).min((stripe + 1) * STRIPE);
        match rng.below(5) {
            0 => {
                let len = (to - from) as u64;
                fs.fallocate(ino, from as u64, len, Fallocate::PunchHole, &ME).unwrap();
                mine.data[from..to].fill(0);
            }
            1 => mine.compare(fs, ino, who),
            _ => {
                mine.data[from..to].fill(rng.below(255) as u8 + 1);
                mine.end = mine.end.max(to);
                fs.write(ino, from as u64, &mine.data[from..to], &ME).unwrap();
            }
        }
    }

    /// With nobody else at work: everything is as the names say, and no directory has been lost.
    fn compare(&self, fs: &Fs) {
        for dir in 0..2 {
            let mut seen = BTreeSet::new();
            fs.read_dir(self.dirs[dir], Cookie(2), |_, ino, _, name| seen.insert((name.to_vec(), ino)))
                .unwrap();
            let slots = (dir * NAMES)..(dir + 1) * NAMES;
            let item = |slot: usize| self.names[slot].lock().unwrap().map(|item| (name_of(slot), item.ino));
            assert_eq!(seen, slots.clone().filter_map(item).collect::<BTreeSet<_>>());
            let dirs = slots.filter(|s| self.names[*s].lock().unwrap().is_some_and(|i| i.is_dir)).count();
            assert_eq!(fs.attributes(self.dirs[dir]).unwrap().links as usize, 2 + dirs);
        }
        let (mut found, mut todo) = (BTreeSet::new(), vec![self.top]);
        while let Some(dir) = todo.pop() {
            let before = todo.len();
            fs.read_dir(dir, Cookie(2), |_, ino, _, _| {
                assert!(found.insert(ino), "a directory is in two places");
                todo.push(ino);
                true
            })
            .unwrap();
            assert_eq!(fs.attributes(dir).unwrap().links as usize, 2 + todo.len() - before);
            todo[before..].iter().for_each(|inner| assert_eq!(fs.parent(*inner).unwrap(), dir));
        }
        assert_eq!(found, self.moved.iter().copied().collect(), "a directory was lost by moves");
    }
}

impl Stripes {
    fn compare(&self, fs: &Fs, ino: Ino, who: usize) {
        let data = fs.read(ino, 0, STRIPED).unwrap();
        assert!(data.len() >= self.end, "a file is shorter than what was written to it");
        for (n, (real, mine)) in data.chunks(STRIPE).zip(self.data.chunks(STRIPE)).enumerate() {
            assert!(n % 2 != who || *real == mine[..real.len()], "stripe {n} of {ino:?}");
        }
    }
}

/// One thread's work in one round.
fn work(fs: &Fs, shared: &Shared, who: usize, seed: u64, run: &mut Run, mine: &mut [Stripes]) {
    let mut rng = Rng::new(seed);
    for _ in 0..STEPS {
        match rng.below(10) {
            0..2 => shared.single(fs, &mut rng),
            2..4 => shared.double(fs, &mut rng),
            4 => shared.stripe(fs, &mut rng, who, mine),
            5 => shared.move_dir(fs, &mut rng),
            _ => run.step(),
        }
    }
}

fn compare(fs: &Fs, shared: &Shared, runs: &mut [Run], stripes: &[Vec<Stripes>]) {
    shared.compare(fs);
    for (who, (run, mine)) in runs.iter_mut().zip(stripes).enumerate() {
        run.compare_all();
        shared.files.iter().zip(mine).for_each(|(ino, mine)| mine.compare(fs, *ino, who));
    }
    fs.drain();
    compare_blocks(fs, runs.iter().flat_map(Run::inodes).chain(shared.files.iter().copied()));
}

/// Removes everything below a directory.
fn remove_all(fs: &Fs, dir: Ino) {
    let mut entries = Vec::new();
    fs.read_dir(dir, Cookie(2), |_, ino, kind, name| {
        entries.push((ino, kind, name.to_vec()));
        true
    })
    .unwrap();
    for (ino, kind, name) in entries {
        if kind == Kind::Directory {
            remove_all(fs, ino);
            fs.rmdir(dir, &name, &ME).unwrap();
        } else {
            fs.unlink(dir, &name, &ME).unwrap();
        }
    }
}

#[test]
fn two_threads_lose_nothing_of_each_other() {
    let operations: usize =
        std::env::var("BTFS_OPERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(104_000);
    let storage = image(512 << 20);
    for round in 0..operations.div_ceil(2 * STEPS) {
        let options = Options { background: round % 2 == 1, ..options() };
        let open = || Arc::new(Fs::open(storage.clone(), &options).unwrap());
        let fs = open();
        let shared = Shared::new(&fs, round);
        let mut runs: Vec<Run> = (0..2)
            .map(|who| {
                let name = format!("{round}.own{who}");
                let root = create(&fs, ROOT, name.as_bytes(), New::Directory, 0o755, &ME).unwrap();
                Run::new((100 + 2 * round + who) as u64, fs.clone(), root)
            })
            .collect();
        let mut stripes = vec![vec![Stripes { data: vec![0; STRIPED], end: 0 }; FILES]; 2];
        std::thread::scope(|scope| {
            for (who, (run, mine)) in runs.iter_mut().zip(&mut stripes).enumerate() {
                let (fs, shared) = (&fs, &shared);
                scope.spawn(move || work(fs, shared, who, (round * 2 + who) as u64, run, mine));
            }
        });
        // Inodes that a run still holds have blocks, too.
        compare(&fs, &shared, &mut runs, &stripes);
        runs.iter_mut().for_each(|run| drop(run.leave()));
        Arc::into_inner(fs).unwrap().close().unwrap();
        let fs = open();
        runs.iter_mut().for_each(|run| run.enter(fs.clone()));
        compare(&fs, &shared, &mut runs, &stripes);
        drop(runs);
        remove_all(&fs, ROOT);
        fs.drain();
        assert!(fs.tree().check().unwrap().data.is_empty(), "deleted files leave blocks behind");
        Arc::into_inner(fs).unwrap().close().unwrap();
    }
}

/// A file has a lower number than a directory, and another name in it.
#[test]
fn a_file_and_the_directory_that_has_it_are_exchanged_beside_changes_in_it() {
    let fs = Arc::new(open(&image(64 << 20)));
    let file = create(&fs, ROOT, b"file", New::File, 0o644, &ME).unwrap();
    let dir = create(&fs, ROOT, b"dir", New::Directory, 0o755, &ME).unwrap();
    assert!(file < dir);
    const ROUNDS: usize = 3_000;
    let (done, ended) = std::sync::mpsc::channel();
    let run = |work: fn(&Fs, Ino, Ino)| {
        let (fs, done) = (fs.clone(), done.clone());
        std::thread::spawn(move || {
            (0..ROUNDS).for_each(|_| work(&fs, file, dir));
            done.send(()).unwrap();
        });
    };
    run(|fs, _, _| fs.rename(ROOT, b"file", ROOT, b"dir", RenameMode::Exchange, &ME).unwrap());
    run(|fs, file, dir| {
        fs.link(file, dir, b"link", &ME).unwrap();
        fs.unlink(dir, b"link", &ME).unwrap();
    });
    // Each of these is refused, and locks both until it knows.
    run(|fs, file, dir| {
        assert!(fs.copy_range(file, 0, dir, 0, 1, &ME).is_err() && fs.link(dir, dir, b"l", &ME).is_err());
    });
    for _ in 0..3 {
        ended.recv_timeout(std::time::Duration::from_secs(60)).expect("they wait for each other");
    }
    assert_eq!(fs.attributes(file).unwrap().links, 1);
}
