//! Images made by random operations, and forging them.

use super::*;
use crate::fs::format::*;
use crate::fs::{Caller, Cookie, Fallocate, Fs, Ino, New, ROOT, RenameMode, SetAttributes, SetXattr, Time};
use crate::storage::{MemStorage, Rng};
use crate::tree::{Batch, FormatOptions, Options as TreeOptions, Tree};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

pub const ME: Caller = Caller::new(1000, 1000, Time { seconds: 1_700_000_000, nanos: 5 });

pub fn options() -> TreeOptions {
    TreeOptions { cache_size: 2 << 20, background: false, ..TreeOptions::default() }
}

pub fn format_options(size: u64) -> FormatOptions {
    FormatOptions {
        size,
        log_size: Some(512 << 10),
        doublewrite_pages: Some(8),
        uuid: *b"0123456789abcdef",
        hash_seed: *b"fedcba9876543210",
        ..FormatOptions::default()
    }
}

/// A filesystem to which random things happen.
pub struct World {
    pub fs: Fs,
    pub rng: Rng,
    held: Vec<Ino>,
}

impl World {
    pub fn new(storage: Arc<dyn Storage>, size: u64, seed: u64) -> World {
        Fs::format(storage.clone(), &format_options(size), &ME).unwrap();
        World { fs: Fs::open(storage, &options()).unwrap(), rng: Rng::new(seed), held: Vec::new() }
    }

    fn name(&mut self) -> Vec<u8> {
        let n = self.rng.below(30);
        if n == 0 { vec![b'x'; 255] } else { format!("name{n}").into_bytes() }
    }

    /// A directory, by a random walk from the root.
    fn dir(&mut self) -> Ino {
        let mut at = ROOT;
        for _ in 0..self.rng.below(4) {
            let mut dirs = Vec::new();
            self.fs
                .read_dir(at, Cookie(2), |_, ino, kind, _| {
                    if kind == Kind::Directory {
                        dirs.push(ino);
                    }
                    true
                })
                .unwrap();
            if dirs.is_empty() {
                break;
            }
            at = dirs[self.rng.index(dirs.len())];
        }
        at
    }

    /// Some inode that is not a directory.
    fn file(&mut self) -> Option<Ino> {
        let dir = self.dir();
        let mut files = Vec::new();
        self.fs
            .read_dir(dir, Cookie(2), |_, ino, kind, _| {
                if kind != Kind::Directory {
                    files.push(ino);
                }
                true
            })
            .unwrap();
        (!files.is_empty()).then(|| files[self.rng.index(files.len())])
    }

    fn create(&mut self) {
        let (dir, name) = (self.dir(), self.name());
        let target = vec![b't'; 1 + self.rng.below(4000) as usize];
        let new = match self.rng.below(8) {
            0 | 1 => New::Directory,
            2 => New::Symlink(&target),
            3 => New::Special(Kind::Fifo, 0),
            _ => New::File,
        };
        if let Ok(a) = self.fs.create(dir, &name, new, 0o644, 0, &ME) {
            if self.rng.chance(1, 10) { self.held.push(a.ino) } else { self.fs.release(a.ino, 1).unwrap() }
        }
    }

    fn contents(&mut self) {
        let Some(ino) = self.file() else { return };
        let offset = match self.rng.below(3) {
            0 => self.rng.below(3000),
            1 => self.rng.below(30) * 4096,
            _ => self.rng.below(200_000),
        };
        let len = 1 + match self.rng.below(4) {
            0 => self.rng.below(200),
            1 => self.rng.below(9000),
            2 => 900_000,
            _ => self.rng.below(60_000),
        };
        let byte = self.rng.below(255) as u8 + 1;
        let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i % 7) as u8)).collect();
        let size = SetAttributes { size: Some(offset), ..SetAttributes::default() };
        let _ = match self.rng.below(10) {
            0..5 => self.fs.write(ino, offset, &data, &ME).map(drop),
            5 => self.fs.set_attributes(ino, &size, &ME).map(|_| ()),
            6 => self.fs.fallocate(ino, offset, len, Fallocate::PunchHole, &ME),
            7 => self.fs.fallocate(ino, offset, len, Fallocate::ZeroRange, &ME),
            8 => self.fs.fallocate(ino, offset, len, Fallocate::Allocate, &ME),
            _ => self.fs.fallocate(ino, offset, len, Fallocate::KeepSize, &ME),
        };
    }

    fn xattr(&mut self) {
        let Some(ino) = self.file() else { return };
        let name = format!("user.{}", self.rng.below(6));
        let len = [10, 300, 3073, 20_000][self.rng.index(4)];
        let _ = if self.rng.chance(1, 4) {
            self.fs.remove_xattr(ino, name.as_bytes(), &ME)
        } else {
            self.fs.set_xattr(ino, name.as_bytes(), &vec![7; len], SetXattr::Any, &ME)
        };
    }

    /// One random operation; what it returns does not matter.
    pub fn step(&mut self) {
        match self.rng.below(100) {
            0..35 => self.create(),
            35..40 => {
                let (dir, name) = (self.dir(), self.name());
                if let Some(ino) = self.file()
                    && let Ok(a) = self.fs.link(ino, dir, &name, &ME)
                {
                    self.fs.release(a.ino, 1).unwrap();
                }
            }
            40..50 => {
                let (dir, name) = (self.dir(), self.name());
                let _ = self.fs.unlink(dir, &name, &ME);
                let _ = self.fs.rmdir(dir, &name, &ME);
            }
            50..60 => {
                let (from, to, name, new) = (self.dir(), self.dir(), self.name(), self.name());
                let mode =
                    [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][self.rng.index(3)];
                let _ = self.fs.rename(from, &name, to, &new, mode, &ME);
            }
            60..85 => self.contents(),
            85..94 => self.xattr(),
            94 => {
                if let (Some(from), Some(to)) = (self.file(), self.file()) {
                    let (a, b) = (self.rng.below(20) * 4096, self.rng.below(20) * 4096);
                    let len = self.rng.below(100_000);
                    let _ = self.fs.copy_range(from, a, to, b, len, &ME);
                }
            }
            95 if !self.held.is_empty() => {
                let at = self.rng.index(self.held.len());
                let ino = self.held.swap_remove(at);
                self.fs.release(ino, 1).unwrap();
            }
            96 => self.fs.sync().unwrap(),
            97 if self.rng.chance(1, 5) => self.fs.tree().checkpoint().unwrap(),
            _ => {}
        }
    }
}

pub const SIZE: u64 = 64 << 20;

/// An image of a few hundred inodes that was closed in order.
pub fn sample(seed: u64, steps: usize) -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(SIZE));
    let mut world = World::new(storage.clone(), SIZE, seed);
    for _ in 0..steps {
        world.step();
    }
    world.fs.close().unwrap();
    storage
}

/// A small image with known things in it.
pub struct Known {
    pub storage: Arc<MemStorage>,
    pub dir: Ino,
    pub inner: Ino,
    /// A file of three blocks in one extent, with a large and a small attribute, and a second name.
    pub file: Ino,
    /// A file of one block.
    pub other: Ino,
    pub link: Ino,
}

pub fn known() -> Known {
    let storage = Arc::new(MemStorage::new(SIZE));
    Fs::format(storage.clone(), &format_options(SIZE), &ME).unwrap();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    let make = |parent, name: &str, new| {
        let ino = fs.create(parent, name.as_bytes(), new, 0o755, 0, &ME).unwrap().ino;
        fs.release(ino, 1).unwrap();
        ino
    };
    let dir = make(ROOT, "dir", New::Directory);
    let inner = make(dir, "inner", New::Directory);
    let file = make(dir, "file", New::File);
    fs.write(file, 0, &[7; 12_000], &ME).unwrap();
    fs.set_xattr(file, b"user.big", &[9; 9000], SetXattr::Any, &ME).unwrap();
    fs.set_xattr(file, b"user.small", b"value", SetXattr::Any, &ME).unwrap();
    fs.link(file, ROOT, b"second", &ME).unwrap();
    fs.release(file, 1).unwrap();
    let other = make(inner, "other", New::File);
    fs.write(other, 0, &[8; 4096], &ME).unwrap();
    let link = make(dir, "link", New::Symlink(&[b't'; 3000]));
    fs.close().unwrap();
    Known { storage, dir, inner, file, other, link }
}

/// Changes records behind the filesystem's back.
pub fn forge(storage: &Arc<MemStorage>, change: impl FnOnce(&Tree, &mut Batch)) {
    let tree = Tree::open(storage.clone(), &options()).unwrap();
    let mut batch = Batch::new();
    change(&tree, &mut batch);
    tree.apply(&batch).unwrap();
    tree.close().unwrap();
}

/// Changes one inode's record behind the filesystem's back.
pub fn forge_inode(storage: &Arc<MemStorage>, ino: Ino, change: impl FnOnce(&mut Inode)) {
    forge(storage, |tree, batch| {
        let record = tree.get(&inode_key(ino)).unwrap().unwrap();
        let mut inode = Inode::decode(ino, &record).unwrap();
        change(&mut inode);
        batch.put(&inode_key(ino), &inode.encode());
    });
}

/// All records whose keys begin with a prefix.
pub fn records(tree: &Tree, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut cursor = tree.cursor();
    cursor.seek(prefix).unwrap();
    let mut found = Vec::new();
    while cursor.next().unwrap() && cursor.key().starts_with(prefix) {
        found.push((cursor.key().to_vec(), cursor.value().to_vec()));
    }
    found
}

/// The read-only check, with contents.
pub fn look_at(storage: &Arc<MemStorage>) -> Report {
    let before = storage.image();
    let report = check(storage.clone(), &Options { scrub: true, ..Options::default() }).unwrap();
    assert!(same(&before, &storage.image()), "a read-only check has written");
    report
}

/// A copy of the image can be repaired, and is clean then.
pub fn repaired(storage: &Arc<MemStorage>, before: &Report) {
    let copy = Arc::new(MemStorage::from_image(storage.image()));
    let all = Options { repair: Repair::All, scrub: true, force: true, progress: None };
    let report = check(copy.clone(), &all).unwrap();
    assert_eq!(report.is_clean(), before.is_clean(), "{before}\n{report}");
    assert_eq!(report.left, 0, "{report}");
    let second = check(copy.clone(), &Options { scrub: true, ..Options::default() }).unwrap();
    assert!(second.is_clean(), "{before}\n{report}\n{second}");
    Fs::open(copy, &options()).unwrap().close().unwrap();
}

fn same(a: &crate::storage::Image, b: &crate::storage::Image) -> bool {
    a.to_vec().unwrap() == b.to_vec().unwrap()
}

/// Exactly these kinds of problems are found.
pub fn expect(storage: &Arc<MemStorage>, kinds: &[(ProblemKind, u64)]) -> Report {
    let report = look_at(storage);
    assert_eq!(report.counts, kinds, "{report}");
    assert_eq!(report.exit_code(), if kinds.is_empty() { 0 } else { 4 });
    repaired(storage, &report);
    report
}

/// Calls `f` with each number, on all processors. Whoever is free takes the next ones, so that all end at the same time.
pub fn spread(numbers: &[u64], f: impl Fn(u64) + Sync) {
    const AT_ONCE: usize = 16;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let from = next.fetch_add(AT_ONCE, std::sync::atomic::Ordering::Relaxed);
                    let Some(rest) = numbers.get(from..).filter(|rest| !rest.is_empty()) else { break };
                    rest.iter().take(AT_ONCE).for_each(|n| f(*n));
                }
            });
        }
    });
}

/// A number in the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// What a filesystem holds, by path: kind, contents or target, attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    pub ino: Ino,
    pub kind: Kind,
    pub body: Bytes,
    pub xattrs: Vec<(Vec<u8>, Bytes)>,
}

impl Item {
    fn brief(&self) -> (Kind, std::result::Result<(usize, u32), String>, Vec<usize>) {
        let body = self.body.clone().map(|b| (b.len(), crc32fast::hash(&b)));
        let xattrs = self.xattrs.iter().map(|(_, v)| v.as_ref().map_or(0, Vec::len));
        (self.kind, body, xattrs.collect())
    }
}

/// What reading gave, or why nothing.
pub type Bytes = std::result::Result<Vec<u8>, String>;

pub type Model = std::collections::BTreeMap<String, Item>;

/// Everything in an image.
pub fn model(storage: &Arc<MemStorage>) -> Model {
    let copy = Arc::new(MemStorage::from_image(storage.image()));
    let fs = Fs::open(copy, &options()).unwrap();
    let mut model = Model::new();
    let mut waiting = vec![(ROOT, String::new())];
    while let Some((dir, path)) = waiting.pop() {
        let mut entries = Vec::new();
        fs.read_dir(dir, Cookie(2), |_, ino, kind, name| {
            entries.push((ino, kind, String::from_utf8_lossy(name).into_owned()));
            true
        })
        .unwrap();
        for (ino, kind, name) in entries {
            let path = format!("{path}/{name}");
            let text = |e: crate::fs::FsError| e.to_string();
            let body = match kind {
                Kind::File => fs.attributes(ino).and_then(|a| fs.read(ino, 0, a.size as usize)).map_err(text),
                Kind::Symlink => fs.read_link(ino).map_err(text),
                _ => Ok(Vec::new()),
            };
            let mut xattrs: Vec<_> = fs
                .list_xattrs(ino)
                .unwrap_or_default()
                .into_iter()
                .map(|name| (name.clone(), fs.get_xattr(ino, &name).map_err(text)))
                .collect();
            xattrs.sort();
            if kind == Kind::Directory {
                waiting.push((ino, path.clone()));
            }
            model.insert(path, Item { ino, kind, body, xattrs });
        }
    }
    model
}

/// Paths of the model that are gone or different in the image, and what is there now.
pub fn difference(before: &Model, storage: &Arc<MemStorage>) -> (Vec<(String, Item)>, Model) {
    let after = model(storage);
    let lost = before.iter().filter(|(path, item)| after.get(*path) != Some(item));
    (lost.map(|(path, item)| (path.clone(), item.clone())).collect(), after)
}

/// What is not as it was has been reported: its inode, its name, or a directory above it.
pub fn compare(before: &Model, storage: &Arc<MemStorage>, report: &Report, about: &str) {
    let (lost, after) = difference(before, storage);
    let moved: std::collections::BTreeMap<u64, &Item> = after.values().map(|i| (i.ino.0, i)).collect();
    for (path, item) in lost {
        // Elsewhere, and whole.
        if moved.get(&item.ino.0) == Some(&&item) {
            continue;
        }
        let listed = report
            .problems
            .iter()
            .any(|p| p.place.ino == Some(item.ino.0) || p.what.contains(&format!("inode {}", item.ino.0)));
        // What can be read is right, whatever was reported.
        if let Some(Item { body: Ok(now), .. }) = moved.get(&item.ino.0)
            && let Ok(then) = &item.body
            && item.kind == Kind::File
        {
            let brief = |b: &Vec<u8>| (b.len(), b.iter().rposition(|b| *b != 0));
            assert!(
                now == then,
                "{about}: {path}, inode {}, reads as something else now: length and last byte {:?}, were {:?}\n{report}",
                item.ino.0,
                brief(now),
                brief(then)
            );
        }
        // A name and the inode it leads to lost together, with the leaf that both lay in: the key range says so.
        let dropped =
            report.problems.iter().any(|p| matches!(p.kind, ProblemKind::Page | ProblemKind::KeysLost));
        // A directory that the repair has made may have the number.
        let gone = moved.get(&item.ino.0).is_none_or(|now| now.kind != item.kind);
        assert!(
            listed || gone && dropped,
            "{about}: {path} is not what it was, but
{:?}
instead of
{:?}
{report}",
            moved.get(&item.ino.0).map(|i| i.brief()),
            item.brief()
        );
    }
}

/// Bytes that a disk cannot read if it cannot read one of them.
pub const SECTOR: u64 = 512;

/// A disk with sectors that cannot be read until they are written.
pub struct Disk {
    below: Arc<MemStorage>,
    pub bad: parking_lot::Mutex<Vec<u64>>,
    /// Bytes that were read.
    pub read: AtomicU64,
}

pub fn disk(below: &Arc<MemStorage>, bad: &[u64]) -> Arc<Disk> {
    let bad = parking_lot::Mutex::new(bad.to_vec());
    Arc::new(Disk { below: below.clone(), bad, read: AtomicU64::new(0) })
}

impl Storage for Disk {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if self.bad.lock().iter().any(|at| *at < end && offset < at + SECTOR) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.below.read_at(offset, buf)
    }

    fn skip_hole(&self, offset: u64) -> Option<u64> {
        self.below.skip_hole(offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        self.bad.lock().retain(|at| *at < offset || at + SECTOR > end);
        self.below.write_at(offset, buf)
    }

    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_at(offset, buf)
    }

    fn sync(&self) -> io::Result<()> {
        self.below.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.below.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.below.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.below.punch(offset, len)
    }
}

/// All bytes of an image but for the mark that it is damaged, which says that a check has found something.
pub fn but_for_the_mark(storage: &Arc<MemStorage>) -> Vec<u8> {
    let copy = MemStorage::from_image(storage.image());
    switch::mark(&copy, |superblock| superblock.set_damaged(false)).unwrap();
    copy.image().to_vec().unwrap()
}
