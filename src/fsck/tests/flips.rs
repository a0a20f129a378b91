//! Single bits of an image that flip. Each is harmless or is reported: opening fails, a call gives an error, or fsck finds it. No flip
//! gives wrong contents, names or attributes without a word, and none a panic or a hang.
//!
//! There is one exception, and it is counted apart. What was synced last before a crash has no mark in the log yet that tells how far the log
//! was durable (L5), so that damage there looks like a write that a power cut has torn: it is taken for the log's end.
//!
//! A sample of `BTFS_FLIPS` flips of each image (2,000), from `BTFS_FLIPS_SEED`; with `BTFS_ALL_FLIPS=1` all of them.
//! All 1.7 million take about 20 minutes of one core: `BTFS_ALL_FLIPS=1 cargo test --release --package btfs --lib fsck::tests::flips::`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::snapshot::{Snapshot, difference, snapshot};
use super::support::*;
use super::*;
use crate::fs::{Fs, FsError, Ino, Kind, New, ROOT, SetXattr};
use crate::storage::{Image as Bytes, MemStorage, Rng, Storage};
use crate::tree::FormatOptions;

const SECTOR: u64 = 512;
/// No look at a damaged image takes more processor time: one that is stopped meanwhile takes none.
const LONGEST: Duration = Duration::from_secs(20);

/// Notes what is read: a flip anywhere else changes nothing.
struct Noting {
    below: MemStorage,
    sectors: Mutex<Vec<bool>>,
}

impl Storage for Noting {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if !buf.is_empty() {
            let mut sectors = self.sectors.lock().unwrap();
            let end = (offset + buf.len() as u64).div_ceil(SECTOR);
            let range = offset / SECTOR..end.min(sectors.len() as u64);
            range.for_each(|sector| sectors[sector as usize] = true);
        }
        self.below.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.below.write_at(offset, buf)
    }

    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.below.write_durable_at(offset, buf)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.below.sync()
    }

    fn len(&self) -> std::io::Result<u64> {
        self.below.len()
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.below.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> std::io::Result<bool> {
        self.below.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> std::io::Result<bool> {
        self.below.punch(offset, len)
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

fn make(fs: &Fs, parent: Ino, name: &str, new: New<'_>) -> std::result::Result<Ino, FsError> {
    let ino = fs.create(parent, name.as_bytes(), new, 0o755, 0, &ME)?.ino;
    fs.release(ino, 1)?;
    Ok(ino)
}

/// An image, and what was synced last: the bytes of it in the log, and the filesystem without it.
struct Made {
    image: Bytes,
    last: Option<(Range<u64>, Snapshot)>,
}

/// A small image with something of every kind, closed in order or not.
fn made(clean: bool) -> Made {
    let storage = Arc::new(MemStorage::new(16 << 20));
    let options_of_it =
        FormatOptions { log_size: Some(256 << 10), doublewrite_pages: Some(4), ..format_options(16 << 20) };
    Fs::format(storage.clone(), &options_of_it, &ME).unwrap();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    let dir = make(&fs, ROOT, "a directory", New::Directory).unwrap();
    let inner = make(&fs, dir, "inner", New::Directory).unwrap();
    make(&fs, inner, "link", New::Symlink(b"../to somewhere")).unwrap();
    make(&fs, inner, "long link", New::Symlink(&[b't'; 2500])).unwrap();
    make(&fs, inner, "pipe", New::Special(Kind::Fifo, 0)).unwrap();
    let small = make(&fs, dir, "small", New::File).unwrap();
    fs.write(small, 0, &bytes(1, 700), &ME).unwrap();
    let large = make(&fs, dir, "large", New::File).unwrap();
    fs.write(large, 0, &bytes(2, 21_000), &ME).unwrap();
    fs.set_xattr(large, b"user.small", b"value", SetXattr::Any, &ME).unwrap();
    fs.set_xattr(large, b"user.large", &bytes(3, 5000), SetXattr::Any, &ME).unwrap();
    fs.link(large, ROOT, b"second name", &ME).unwrap();
    fs.release(large, 1).unwrap();
    let copy = make(&fs, ROOT, "copy", New::File).unwrap();
    fs.copy_range(large, 0, copy, 0, 16_384, &ME).unwrap();
    let sparse = make(&fs, ROOT, "sparse", New::File).unwrap();
    fs.write(sparse, 500_000, &bytes(4, 5000), &ME).unwrap();
    fs.sync().unwrap();
    fs.tree().checkpoint().unwrap();
    fs.write(small, 100, &bytes(5, 300), &ME).unwrap();
    fs.write(large, 9000, &bytes(6, 3000), &ME).unwrap();
    fs.unlink(ROOT, b"sparse", &ME).unwrap();
    if clean {
        fs.close().unwrap();
        return Made { image: storage.image(), last: None };
    }
    // A second checkpoint writes pages through the other half, and what comes then is in the log alone.
    fs.tree().checkpoint().unwrap();
    for n in 0..6 {
        let file = make(&fs, inner, &format!("logged {n}"), New::File).unwrap();
        fs.write(file, 0, &bytes(10 + n, 900 * n as usize), &ME).unwrap();
        if n % 2 == 1 {
            fs.sync().unwrap();
        }
    }
    fs.sync().unwrap();
    let (before, shown) = (storage.image().to_vec().unwrap(), snapshot(&fs, None).unwrap());
    make(&fs, inner, "last", New::File).unwrap();
    fs.sync().unwrap();
    drop(fs);
    let after = storage.image().to_vec().unwrap();
    let differs = |at: &usize| before[*at] != after[*at];
    let (first, last) = ((0..after.len()).find(differs).unwrap(), (0..after.len()).rfind(differs).unwrap());
    // The head of the record, too, where bytes are as they were.
    let range = first as u64 - 24..last as u64 + 1;
    assert!(range.end - range.start < 2000, "more than one record: {range:?}");
    Made { image: storage.image(), last: Some((range, shown)) }
}

/// What became of a flip.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// Nothing is different.
    Harmless,
    /// fsck reports it; all that was there is there, also after further work.
    Fsck,
    /// The image is not opened.
    Refused,
    /// A call gives an error.
    Error,
    /// What was synced last is taken for a torn write, and is not there: the exception.
    End,
    /// Something is wrong, and nobody says so.
    Silent(String),
}

/// What a sound image shows: at once, and after further work.
struct Expected {
    before: Snapshot,
    after: Snapshot,
}

/// Work on an image: takes space, frees some, changes and makes names.
fn work(fs: &Fs) -> std::result::Result<(), FsError> {
    let dir = fs.lookup(ROOT, b"a directory")?;
    let file = make(fs, ROOT, "a new file", New::File)?;
    fs.write(file, 0, &bytes(50, 30_000), &ME)?;
    fs.write(fs.lookup(dir, b"large")?, 2000, &bytes(51, 9000), &ME)?;
    fs.unlink(ROOT, b"copy", &ME)?;
    fs.sync()
}

/// Looks at the image in all ways.
fn look(storage: &Arc<dyn Storage>) -> std::result::Result<Expected, FsError> {
    let fs = Fs::open(storage.clone(), &options())?;
    let before = snapshot(&fs, None)?;
    work(&fs)?;
    fs.close()?;
    let fs = Fs::open(storage.clone(), &options())?;
    let after = snapshot(&fs, None)?;
    Ok(Expected { before, after })
}

/// `end`: what may be shown as well.
fn judge(storage: &Arc<dyn Storage>, expected: &Expected, end: Option<&Snapshot>) -> Verdict {
    let scrub = Options { scrub: true, ..Options::default() };
    let reported = !check(storage.clone(), &scrub).is_ok_and(|report| report.is_clean());
    let Ok(fs) = Fs::open(storage.clone(), &options()) else {
        return if reported {
            Verdict::Refused
        } else {
            Verdict::Silent("cannot be opened, but fsck finds nothing".into())
        };
    };
    let Ok(before) = snapshot(&fs, Some(&expected.before)) else { return Verdict::Error };
    if end == Some(&before) {
        return Verdict::End;
    }
    if before != expected.before {
        let what = difference(&expected.before, &before);
        return Verdict::Silent(format!("fsck reports: {reported}; {what}"));
    }
    if work(&fs).and_then(|()| fs.close()).is_err() {
        return Verdict::Error;
    }
    let after = Fs::open(storage.clone(), &options()).and_then(|fs| snapshot(&fs, Some(&expected.after)));
    match after {
        Err(_) => Verdict::Error,
        Ok(after) if after != expected.after => {
            let what = difference(&expected.after, &after);
            Verdict::Silent(format!("after work; fsck reports: {reported}; {what}"))
        }
        Ok(_) if reported => Verdict::Fsck,
        Ok(_) => match check(storage.clone(), &scrub) {
            Ok(report) if report.is_clean() => Verdict::Harmless,
            Ok(report) => Verdict::Silent(format!("work on it has made this: {report}")),
            Err(error) => Verdict::Silent(format!("work on it has made this: {error}")),
        },
    }
}

/// The bits that may matter: all of the sectors that are read, if they hold anything; of the zeros that are read, one in each
/// eight bytes.
fn bits(image: &Bytes, expected: &Expected) -> Vec<u64> {
    let sectors = vec![false; (image.len() / SECTOR) as usize];
    let noting = Arc::new(Noting { below: MemStorage::from_image(image.clone()), sectors: sectors.into() });
    let storage: Arc<dyn Storage> = noting.clone();
    assert_eq!(judge(&storage, expected, None), Verdict::Harmless, "without a flip");
    let sectors = noting.sectors.lock().unwrap();
    let mut bits = Vec::new();
    let mut sector = [0; SECTOR as usize];
    let mut rng = Rng::new(9);
    for at in (0..sectors.len() as u64).filter(|at| sectors[*at as usize]) {
        image.read(at * SECTOR, &mut sector).unwrap();
        let first = at * SECTOR * 8;
        if sector.iter().any(|byte| *byte != 0) {
            bits.extend(first..first + SECTOR * 8);
        } else {
            bits.extend((0..SECTOR / 8).map(|word| first + word * 64 + rng.below(64)));
        }
    }
    bits
}

fn flip(image: &Bytes, bit: u64) -> Bytes {
    let mut image = image.clone();
    let mut byte = [0];
    image.read(bit / 8, &mut byte).unwrap();
    image.write(bit / 8, &[byte[0] ^ 1 << (bit % 8)]).unwrap();
    image
}

/// What this thread has had so far.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// Tries the flips; how many had which outcome.
fn flip_all(clean: bool) -> BTreeMap<Verdict, u64> {
    let Made { image, last } = made(clean);
    let expected = look(&(Arc::new(MemStorage::from_image(image.clone())) as _)).unwrap();
    let mut bits = bits(&image, &expected);
    let all = bits.len();
    let seed = number("BTFS_FLIPS_SEED").unwrap_or(1);
    if number("BTFS_ALL_FLIPS").is_none() {
        let mut rng = Rng::new(seed);
        let wanted = number("BTFS_FLIPS").unwrap_or(2000);
        bits = (0..wanted).map(|_| bits[rng.index(bits.len())]).collect();
    }
    let (counts, silent) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    spread(&bits, |bit| {
        let began = processor_time();
        let storage: Arc<dyn Storage> = Arc::new(MemStorage::from_image(flip(&image, bit)));
        let end = last.as_ref().filter(|(range, _)| range.contains(&(bit / 8)));
        let end = end.map(|(_, shown)| shown);
        let verdict = catch_unwind(AssertUnwindSafe(|| judge(&storage, &expected, end)))
            .unwrap_or_else(|_| Verdict::Silent("a panic".into()));
        let took = processor_time() - began;
        assert!(took < LONGEST, "bit {bit} takes {took:?}");
        let verdict = match verdict {
            Verdict::Silent(what) => {
                silent.lock().unwrap().push((bit, what));
                Verdict::Silent(String::new())
            }
            other => other,
        };
        *counts.lock().unwrap().entry(verdict).or_insert(0) += 1;
    });
    let (counts, mut silent) = (counts.into_inner().unwrap(), silent.into_inner().unwrap());
    println!("closed in order: {clean}, seed {seed}: {} of {all} bits: {counts:?}", bits.len());
    silent.sort();
    for (bit, what) in silent.iter().take(8) {
        println!("byte {:#x}, bit {}: {what}", bit / 8, bit % 8);
    }
    assert!(silent.is_empty(), "{} flips are passed over in silence", silent.len());
    counts
}

#[test]
fn no_flipped_bit_of_a_closed_image_gives_wrong_answers() {
    let counts = flip_all(true);
    assert!(counts[&Verdict::Refused] + counts[&Verdict::Error] + counts[&Verdict::Fsck] > 100, "{counts:?}");
    assert!(counts[&Verdict::Harmless] > 100, "{counts:?}");
}

#[test]
fn no_flipped_bit_of_an_image_that_needs_recovery_gives_wrong_answers() {
    let counts = flip_all(false);
    assert!(counts[&Verdict::Refused] + counts[&Verdict::Error] + counts[&Verdict::Fsck] > 100, "{counts:?}");
    assert!(counts[&Verdict::Harmless] > 100, "{counts:?}");
}
