//! Disks that fail or are full: the Nth operation of the storage fails, for every N, while files and directories change. Each
//! call returns Ok or an error and never panics; what was synced is there after the next opening, and the image is sound.

use super::snapshot::{Snapshot, difference, is_between, snapshot};
use super::support::*;
use super::*;
use crate::fs::{Fallocate, Fs, FsError, Ino, New, ROOT, RenameMode, SetAttributes, SetXattr};
use crate::storage::{Fault, FaultStorage, Image as Bytes, MemStorage, OpKind};

type Faulty = Arc<FaultStorage<MemStorage>>;
type Outcome = std::result::Result<(), FsError>;

/// Steps of the workload.
const STEPS: u64 = 66;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    crate::storage::Rng::new(seed).fill(&mut bytes);
    bytes
}

/// An image with some hundred names in it that was not closed, so that opening recovers.
fn prepared() -> Bytes {
    let storage = Arc::new(MemStorage::new(SIZE));
    Fs::format(storage.clone(), &format_options(SIZE), &ME).unwrap();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    for d in 0..4 {
        let dir = fs.create(ROOT, format!("d{d}").as_bytes(), New::Directory, 0o755, 0, &ME).unwrap().ino;
        for f in 0..25 {
            let name = format!("f{f}, with a name that is not so short");
            let ino = fs.create(dir, name.as_bytes(), New::File, 0o644, 0, &ME).unwrap().ino;
            let len = [300, 1900, 9000, 40_000][f % 4];
            fs.write(ino, 0, &bytes((d * 100 + f) as u64, len), &ME).unwrap();
            fs.set_xattr(ino, b"user.some", &vec![f as u8; 1500], SetXattr::Any, &ME).unwrap();
            fs.release(ino, 1).unwrap();
        }
        fs.release(dir, 1).unwrap();
    }
    fs.sync().unwrap();
    drop(fs);
    storage.image()
}

/// A write that is cut short has met an error; the next one gives it.
fn write_all(fs: &Fs, ino: Ino, at: u64, data: &[u8]) -> Outcome {
    let mut done = 0;
    while done < data.len() {
        done += fs.write(ino, at + done as u64, &data[done..], &ME)?;
    }
    Ok(())
}

/// One step of the workload; the same numbers do the same.
fn step(fs: &Fs, n: u64) -> Outcome {
    let dir = |d: u64| fs.lookup(ROOT, format!("d{}", d % 4).as_bytes());
    let name = |f: u64| format!("f{}, with a name that is not so short", f % 25).into_bytes();
    let (here, there) = (dir(n)?, dir(n * 3 + 1)?);
    let file = || fs.lookup(here, &name(n * 7));
    match n % 11 {
        0 => {
            let ino = fs.create(here, format!("new{n}").as_bytes(), New::File, 0o600, 0, &ME)?.ino;
            let written = write_all(fs, ino, 0, &bytes(n, 30_000));
            fs.release(ino, 1).and(written)
        }
        1 => write_all(fs, file()?, 5_000, &bytes(n, 150_000)),
        2 => {
            let change = SetAttributes { size: Some(n * 100), mode: Some(0o600), ..SetAttributes::default() };
            fs.set_attributes(file()?, &change, &ME).map(drop)
        }
        3 => fs.unlink(here, &name(n * 5 + 2), &ME),
        4 => fs.rename(here, &name(n * 11), there, format!("moved{n}").as_bytes(), RenameMode::Replace, &ME),
        5 => write_all(fs, file()?, 100, &bytes(n, 700)),
        6 => {
            let ino = fs.create(here, format!("dir{n}").as_bytes(), New::Directory, 0o755, 0, &ME)?.ino;
            fs.release(ino, 1)?;
            // Some 20 pages of the tree.
            (0..80).try_for_each(|i| {
                let target = vec![b't'; 3500];
                let made =
                    fs.create(ino, format!("link{i}").as_bytes(), New::Symlink(&target), 0o777, 0, &ME)?;
                fs.release(made.ino, 1)
            })
        }
        7 => fs.set_xattr(file()?, b"user.big", &bytes(n, 12_000), SetXattr::Any, &ME),
        8 => {
            let (from, to) = (file()?, fs.lookup(here, &name(n * 7 + 1))?);
            // An error costs the rest of a copy; the next call gives it.
            let mut done = 0;
            while done < 40_000 {
                match fs.copy_range(from, done, to, 8192 + done, 40_000 - done, &ME)? {
                    0 => break,
                    more => done += more,
                }
            }
            Ok(())
        }
        9 => fs.fallocate(file()?, 4096, 20_000, Fallocate::PunchHole, &ME),
        _ if n < 30 => fs.fallocate(file()?, 0, 300_000, Fallocate::Allocate, &ME),
        _ => {
            // Large enough to be punched when it is gone.
            let name = b"large";
            match fs.unlink(ROOT, name, &ME) {
                Err(FsError::NotFound) => {}
                result => return result,
            }
            let ino = fs.create(ROOT, name, New::File, 0o600, 0, &ME)?.ino;
            let written = write_all(fs, ino, 0, &vec![n as u8; 3 << 20]);
            fs.release(ino, 1).and(written)
        }
    }
}

/// What is done between the steps.
fn between(fs: &Fs, n: u64) -> Outcome {
    match n % 8 {
        1 | 4 => fs.sync(),
        6 => Ok(fs.tree().checkpoint()?),
        7 => Ok(fs.tree().checkpoint().and_then(|()| fs.tree().trim(4).map(drop))?),
        _ => Ok(()),
    }
}

struct Base {
    image: Bytes,
    /// What is there before the first step, and after each where nothing fails.
    states: Vec<Arc<Snapshot>>,
}

fn base() -> Base {
    let image = prepared();
    let fs = Fs::open(Arc::new(MemStorage::from_image(image.clone())), &options()).unwrap();
    let mut states = vec![Arc::new(snapshot(&fs, None).unwrap())];
    let mut worked = 0;
    for n in 0..STEPS {
        match step(&fs, n) {
            Ok(()) => worked += 1,
            Err(FsError::NotFound) => {}
            Err(error) => panic!("step {n}: {error}"),
        }
        between(&fs, n).unwrap();
        states.push(Arc::new(snapshot(&fs, states.last().map(|s| &**s)).unwrap()));
    }
    assert!(worked > STEPS / 4 * 3, "only {worked} steps find something to change");
    Base { image, states }
}

fn is_expected(error: &FsError) -> bool {
    let io = |e: &crate::Error| matches!(e, crate::Error::Io { .. });
    matches!(error, FsError::NoSpace) || matches!(error, FsError::Engine(e) | FsError::Contents(e) if io(e))
}

/// A snapshot under faults: a read that fails costs itself, and is done again.
fn live(fs: &Fs, before: &Snapshot) -> Snapshot {
    for _ in 0..3 {
        match snapshot(fs, Some(before)) {
            Ok(found) => return found,
            Err(error) => assert!(is_expected(&error), "{error}"),
        }
    }
    panic!("reading fails again and again");
}

/// What a run with a fault has come to.
struct Ran {
    fired: u64,
    /// Errors that steps, syncs and checkpoints returned.
    errors: Vec<FsError>,
    /// Whether everything was acknowledged in the end, after the fault had gone.
    acknowledged: bool,
}

fn run(base: &Base, fault: Fault, what: &str) -> Ran {
    let storage: Faulty = Arc::new(FaultStorage::new(MemStorage::from_image(base.image.clone())));
    storage.arm(fault);
    let fs = match Fs::open(storage.clone(), &options()) {
        Ok(fs) => fs,
        Err(error) => {
            assert!(is_expected(&error), "{what}: {error}");
            let fired = storage.disarm();
            reopen(&storage, &base.states[..1], what);
            return Ran { fired, errors: vec![error], acknowledged: true };
        }
    };
    let (mut history, mut acknowledged, mut errors) = (vec![base.states[0].clone()], 0, Vec::new());
    let mut left = 12;
    for n in 0..STEPS {
        let before = history.last().unwrap().clone();
        let result = step(&fs, n);
        if errors.is_empty() && !matches!(&result, Err(error) if is_expected(error)) {
            // As without a fault, whether the step finds what it wants to change or not.
            history.push(base.states[n as usize + 1].clone());
        } else {
            let found = live(&fs, &before);
            match result {
                Err(error) if is_expected(&error) => {
                    if errors.is_empty() {
                        let after = &base.states[n as usize + 1];
                        assert!(
                            is_between(&before, after, &found),
                            "{what}, step {n}: {error} has changed what it should not: {}",
                            difference(&before, &found)
                        );
                    }
                    errors.push(error);
                }
                Err(FsError::NotFound | FsError::Exists) | Ok(()) => {}
                Err(error) => panic!("{what}, step {n}: {error}"),
            }
            history.push(Arc::new(found));
        }
        match between(&fs, n) {
            Ok(()) if matches!(n % 8, 1 | 4) => acknowledged = history.len() - 1,
            Ok(()) => {}
            Err(error) => {
                assert!(is_expected(&error), "{what}, after step {n}: {error}");
                errors.push(error);
            }
        }
        if !errors.is_empty() {
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    let last = history.last().unwrap().clone();
    let now = live(&fs, &last);
    assert!(now == *last, "{what}: {}", difference(&last, &now));
    let fired = storage.disarm();
    let all = fs.sync().is_ok();
    if all {
        acknowledged = history.len() - 1;
    }
    drop(fs);
    reopen(&storage, &history[acknowledged..], what);
    Ran { fired, errors, acknowledged: all }
}

/// What is there after the next opening is one of these states, or on the way from one to the next; the image is sound, and
/// can be worked on.
fn reopen(storage: &Faulty, states: &[Arc<Snapshot>], what: &str) {
    let scrub = Options { scrub: true, ..Options::default() };
    let report = check(storage.clone(), &scrub).unwrap();
    assert!(report.is_clean(), "{what}: {report}");
    let fs = Fs::open(storage.clone(), &options()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let found = snapshot(&fs, states.first().map(|s| &**s)).unwrap();
    assert!(
        states.iter().any(|state| **state == found)
            || states.windows(2).any(|pair| is_between(&pair[0], &pair[1], &found)),
        "{what}: what is there was never there; from what was acknowledged it differs in: {}",
        difference(&states[0], &found)
    );
    for n in 0..4 {
        let ino = fs.create(ROOT, format!("later{n}").as_bytes(), New::File, 0o644, 0, &ME).unwrap().ino;
        fs.write(ino, 0, &bytes(n, 50_000), &ME).unwrap();
        fs.release(ino, 1).unwrap();
    }
    fs.close().unwrap();
    let report = check(storage.clone(), &scrub).unwrap();
    assert!(report.is_clean(), "{what}, closed: {report}");
}

/// Every N, `step` apart, until the workload has fewer such operations; how many runs met the fault.
fn every(
    kinds: &[OpKind],
    step: u64,
    make: impl Fn(Fault) -> Fault,
    mut each: impl FnMut(&Ran, &str),
) -> u64 {
    let base = base();
    for nth in (0..).step_by(step as usize) {
        let fault = make(Fault::nth(kinds, nth));
        let what = format!("{fault:?}");
        let ran = run(&base, fault, &what);
        if ran.fired == 0 {
            assert!(ran.errors.is_empty() && ran.acknowledged, "{what}: {:?}", ran.errors);
            return nth / step;
        }
        each(&ran, &what);
    }
    unreachable!("a workload without end")
}

#[test]
fn a_failed_write_loses_nothing_synced() {
    let runs = every(&[OpKind::Write], 1, |f| f.partial(), |_, _| {});
    assert!(runs > 60, "{runs}");
    every(&[OpKind::Write], 7, |f| f.forever(), |_, _| {});
}

#[test]
fn a_failed_log_write_loses_nothing_synced() {
    let each = |ran: &Ran, what: &str| {
        assert!(!ran.errors.is_empty(), "{what}: a failed write of the log was passed over");
    };
    let runs = every(&[OpKind::WriteDurable], 1, |f| f.partial(), each);
    assert!(runs > 20, "{runs}");
}

#[test]
fn a_failed_sync_of_the_disk_loses_nothing_synced() {
    let runs = every(&[OpKind::Sync], 1, |f| f, |_, _| {});
    assert!(runs > 20, "{runs}");
    every(&[OpKind::Sync], 3, |f| f.forever(), |_, _| {});
}

#[test]
fn a_failed_read_costs_that_call_alone() {
    let each =
        |ran: &Ran, what: &str| assert!(ran.acknowledged, "{what}: writing has ended: {:?}", ran.errors);
    let runs = every(&[OpKind::Read], 3, |f| f, each);
    assert!(runs > 60, "{runs}");
}

#[test]
fn a_failed_punch_or_allocation_loses_nothing_synced() {
    let runs = every(&[OpKind::Punch], 1, |f| f, |_, _| {});
    assert!(runs > 0, "nothing is ever punched");
    every(&[OpKind::Allocate], 1, |f| f, |_, _| {});
}

/// ENOSPC of an allocation is no failure of the disk: once the host has space again, all goes on.
#[test]
fn a_host_without_space_to_allocate_costs_only_what_needs_it() {
    let each = |ran: &Ran, what: &str| {
        assert!(ran.errors.iter().all(|e| matches!(e, FsError::NoSpace)), "{what}: {:?}", ran.errors);
        assert!(ran.acknowledged, "{what}: it does not go on when there is space again");
    };
    for forever in [false, true] {
        let make = |f: Fault| if forever { f.forever() } else { f }.errno(libc::ENOSPC);
        let runs = every(&[OpKind::Allocate], 1, make, each);
        assert!(runs > 0, "nothing is ever allocated");
    }
}

/// A host that cannot allocate in advance says ENOSPC when it is written to.
#[test]
fn a_host_that_is_full_at_a_write_loses_nothing_synced() {
    let mut data = 0;
    let each = |ran: &Ran, _: &str| data += u64::from(ran.acknowledged && !ran.errors.is_empty());
    let runs = every(&[OpKind::Write], 2, |f| f.partial().errno(libc::ENOSPC), each);
    assert!(runs > 20, "{runs}");
    assert!(data > 5, "only {data} of {runs} runs went on after ENOSPC for data");
    let all = [OpKind::Write, OpKind::WriteDurable, OpKind::Allocate];
    every(&all, 11, |f| f.forever().errno(libc::ENOSPC), |_, _| {});
}
