//! Random operations on the filesystem and on a plain model of one.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;

use super::*;
use crate::storage::Rng;

type Id = usize;

#[derive(Clone, Debug)]
enum Body {
    File(Vec<u8>),
    Dir { entries: BTreeMap<Vec<u8>, Id>, parent: Id },
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Clone, Debug)]
struct Item {
    body: Body,
    links: u32,
    mode: u16,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    ino: Ino,
    held: bool,
}

struct Run {
    seed: u64,
    rng: Rng,
    storage: Arc<MemStorage>,
    fs: Option<Fs>,
    items: BTreeMap<Id, Item>,
    next: Id,
}

type Outcome<T> = std::result::Result<T, FsError>;

impl Run {
    fn new(seed: u64) -> Run {
        let storage = image(96 << 20);
        let root = Item {
            body: Body::Dir { entries: BTreeMap::new(), parent: 0 },
            links: 2,
            mode: 0o755,
            xattrs: BTreeMap::new(),
            ino: ROOT,
            held: true,
        };
        let fs = Some(open(&storage));
        Run { seed, rng: Rng::new(seed), storage, fs, items: BTreeMap::from([(0, root)]), next: 1 }
    }

    fn fs(&self) -> &Fs {
        self.fs.as_ref().unwrap()
    }

    fn same<T: PartialEq + std::fmt::Debug>(&self, what: &str, real: &Outcome<T>, model: &Outcome<T>) {
        match (real, model) {
            (Ok(a), Ok(b)) if a == b => {}
            (Err(a), Err(b)) if discriminant(a) == discriminant(b) => {}
            _ => panic!("seed {}: {what}: filesystem {real:?}, model {model:?}", self.seed),
        }
    }

    fn name(&mut self) -> Vec<u8> {
        let n = self.rng.below(12);
        if n == 0 { vec![b'x'; 255] } else { format!("name{n}").into_bytes() }
    }

    fn pick(&mut self, want: impl Fn(&Item) -> bool) -> Id {
        let ids: Vec<Id> = self.items.iter().filter(|(_, i)| want(i)).map(|(id, _)| *id).collect();
        if ids.is_empty() || self.rng.chance(1, 20) {
            let all: Vec<Id> = self.items.keys().copied().collect();
            return all[self.rng.index(all.len())];
        }
        ids[self.rng.index(ids.len())]
    }

    fn dir(&mut self) -> Id {
        self.pick(|i| matches!(i.body, Body::Dir { .. }))
    }

    fn entries(&self, dir: Id) -> Outcome<&BTreeMap<Vec<u8>, Id>> {
        match &self.items[&dir].body {
            Body::Dir { entries, .. } => Ok(entries),
            _ => Err(FsError::NotDirectory),
        }
    }

    /// The entries of a directory that can be changed.
    fn live(&self, dir: Id) -> Outcome<&BTreeMap<Vec<u8>, Id>> {
        let entries = self.entries(dir)?;
        if self.items[&dir].links == 0 { Err(FsError::NotFound) } else { Ok(entries) }
    }

    fn entries_mut(&mut self, dir: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.items.get_mut(&dir).unwrap().body {
            Body::Dir { entries, .. } => entries,
            _ => panic!("not a directory"),
        }
    }

    fn is_dir(&self, id: Id) -> bool {
        matches!(self.items[&id].body, Body::Dir { .. })
    }

    fn drop_link(&mut self, id: Id) {
        let item = self.items.get_mut(&id).unwrap();
        item.links = if matches!(item.body, Body::Dir { .. }) { 0 } else { item.links - 1 };
        if item.links == 0 && !item.held {
            self.items.remove(&id);
        }
    }

    fn create(&mut self) {
        let (dir, name) = (self.dir(), self.name());
        let (body, new_kind) = match self.rng.below(6) {
            0 | 1 => (Body::Dir { entries: BTreeMap::new(), parent: dir }, 0),
            2 => (Body::Symlink(vec![b't'; self.rng.below(4097) as usize]), 1),
            3 => (Body::Fifo, 2),
            _ => (Body::File(Vec::new()), 3),
        };
        let mode = self.rng.below(0o1000) as u16;
        let expected =
            self.live(dir).and_then(|e| if e.contains_key(&name) { Err(FsError::Exists) } else { Ok(()) });
        let expected = expected.and(match &body {
            Body::Symlink(t) if t.is_empty() => Err(FsError::Invalid),
            Body::Symlink(t) if t.len() > 4095 => Err(FsError::NameTooLong),
            _ => Ok(()),
        });
        let new = match (&body, new_kind) {
            (_, 0) => New::Directory,
            (Body::Symlink(t), _) => New::Symlink(t),
            (_, 2) => New::Special(Kind::Fifo, 0),
            _ => New::File,
        };
        let parent = self.items[&dir].ino;
        let umask = [0, 0o022, 0o077][self.rng.index(3)];
        let real = self.fs().create(parent, &name, new, mode, umask, &ME);
        self.same("create", &real.clone().map(|_| ()), &expected);
        let Ok(Attributes { ino, .. }) = real else { return };
        let is_dir = new_kind == 0;
        let mode = if new_kind == 1 { 0o777 } else { mode & !umask };
        let item = Item { body, links: 1 + is_dir as u32, mode, xattrs: BTreeMap::new(), ino, held: true };
        let id = self.next;
        self.next += 1;
        self.items.insert(id, item);
        self.entries_mut(dir).insert(name, id);
        self.items.get_mut(&dir).unwrap().links += is_dir as u32;
    }

    fn link(&mut self) {
        let (dir, name) = (self.dir(), self.name());
        let id = self.pick(|i| !matches!(i.body, Body::Dir { .. }));
        let expected = self.live(dir).and_then(|e| {
            if id == dir {
                Err(FsError::IsDirectory)
            } else if e.contains_key(&name) {
                Err(FsError::Exists)
            } else if self.is_dir(id) {
                Err(FsError::IsDirectory)
            } else if self.items[&id].links == 0 {
                Err(FsError::NotFound)
            } else {
                Ok(())
            }
        });
        let real = self.fs().link(self.items[&id].ino, self.items[&dir].ino, &name, &ME);
        self.same("link", &real.clone().map(|_| ()), &expected);
        if let Ok(attributes) = real {
            self.fs().release(attributes.ino, 1).unwrap();
            self.entries_mut(dir).insert(name, id);
            self.items.get_mut(&id).unwrap().links += 1;
        }
    }

    fn remove(&mut self) {
        let (dir, name) = (self.dir(), self.name());
        let rmdir = self.rng.chance(1, 3);
        let expected = self.live(dir).and_then(|e| match e.get(&name) {
            None => Err(FsError::NotFound),
            Some(id) if self.is_dir(*id) && !rmdir => Err(FsError::IsDirectory),
            Some(id) if !self.is_dir(*id) && rmdir => Err(FsError::NotDirectory),
            Some(id) if rmdir && !self.entries(*id)?.is_empty() => Err(FsError::NotEmpty),
            Some(id) => Ok(*id),
        });
        let parent = self.items[&dir].ino;
        let real =
            if rmdir { self.fs().rmdir(parent, &name, &ME) } else { self.fs().unlink(parent, &name, &ME) };
        self.same("remove", &real, &expected.clone().map(|_| ()));
        if let Ok(id) = expected {
            self.entries_mut(dir).remove(&name);
            self.items.get_mut(&dir).unwrap().links -= rmdir as u32;
            self.drop_link(id);
        }
    }

    fn below(&self, above: Id, mut id: Id) -> bool {
        loop {
            if id == above {
                return true;
            }
            match &self.items[&id].body {
                Body::Dir { parent, .. } if id != 0 => id = *parent,
                _ => return false,
            }
        }
    }

    fn rename(&mut self) {
        let (from, to) = (self.dir(), self.dir());
        let (name, new_name) = (self.name(), self.name());
        if !self.is_dir(from) || !self.is_dir(to) {
            return;
        }
        let mode = [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]
            [self.rng.index(4)];
        let expected = self.check_rename(from, &name, to, &new_name, mode);
        let (from_ino, to_ino) = (self.items[&from].ino, self.items[&to].ino);
        let real = self.fs().rename(from_ino, &name, to_ino, &new_name, mode, &ME);
        self.same("rename", &real, &expected.clone().map(|_| ()));
        if let Ok((id, other)) = expected {
            self.do_rename(from, name, to, new_name, mode, id, other);
        }
    }

    fn check_rename(
        &self,
        from: Id,
        name: &[u8],
        to: Id,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Outcome<(Id, Option<Id>)> {
        let (old, new) = (self.live(from)?, self.live(to)?);
        let id = *old.get(name).ok_or(FsError::NotFound)?;
        let other = new.get(new_name).copied();
        match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
            (RenameMode::Exchange, None) => return Err(FsError::NotFound),
            _ => {}
        }
        if self.is_dir(id) && self.below(id, to) {
            return Err(FsError::Invalid);
        }
        let Some(o) = other.filter(|o| *o != id) else { return Ok((id, other)) };
        let above = self.is_dir(o) && self.below(o, from);
        if mode == RenameMode::Exchange {
            return if above { Err(FsError::Invalid) } else { Ok((id, other)) };
        }
        if above {
            return Err(FsError::NotEmpty);
        }
        match (self.is_dir(id), self.is_dir(o)) {
            (true, false) => Err(FsError::NotDirectory),
            (false, true) => Err(FsError::IsDirectory),
            (true, true) if !self.entries(o)?.is_empty() => Err(FsError::NotEmpty),
            _ => Ok((id, other)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what the check before has found")]
    fn do_rename(
        &mut self,
        from: Id,
        name: Vec<u8>,
        to: Id,
        new_name: Vec<u8>,
        mode: RenameMode,
        id: Id,
        other: Option<Id>,
    ) {
        if other == Some(id) {
            return;
        }
        let place = |run: &mut Run, id: Id, from: Id, to: Id| {
            if run.is_dir(id) {
                run.items.get_mut(&from).unwrap().links -= 1;
                run.items.get_mut(&to).unwrap().links += 1;
                if let Body::Dir { parent, .. } = &mut run.items.get_mut(&id).unwrap().body {
                    *parent = to;
                }
            }
        };
        place(self, id, from, to);
        self.entries_mut(from).remove(&name);
        if let Some(other) = other {
            if mode == RenameMode::Exchange {
                place(self, other, to, from);
                self.entries_mut(from).insert(name, other);
            } else {
                let is_dir = self.is_dir(other);
                self.items.get_mut(&to).unwrap().links -= is_dir as u32;
                self.drop_link(other);
            }
        }
        self.entries_mut(to).insert(new_name, id);
    }

    fn offset(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.below(3000),
            1 => self.rng.below(30) * 4096,
            _ => self.rng.below(120_000),
        }
    }

    fn file(&mut self) -> Id {
        self.pick(|i| matches!(i.body, Body::File(_)))
    }

    fn contents(&mut self, id: Id) -> Outcome<&mut Vec<u8>> {
        match &mut self.items.get_mut(&id).unwrap().body {
            Body::File(data) => Ok(data),
            Body::Dir { .. } => Err(FsError::IsDirectory),
            _ => Err(FsError::Invalid),
        }
    }

    fn change_contents(&mut self) {
        let (id, offset) = (self.file(), self.offset());
        let len = match self.rng.below(3) {
            0 => self.rng.below(200),
            1 => self.rng.below(9000),
            _ => self.rng.below(60_000),
        } + 1;
        let ino = self.items[&id].ino;
        let end = (offset + len) as usize;
        let choice = self.rng.below(8);
        let byte = self.rng.below(255) as u8 + 1;
        let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8 % 7)).collect();
        let real = match choice {
            0..4 => self.fs().write(ino, offset, &data, &ME),
            4 => {
                let change = SetAttributes { size: Some(offset), ..SetAttributes::default() };
                self.fs().set_attributes(ino, &change, &ME).map(|_| ())
            }
            5 => self.fs().fallocate(ino, offset, len, Fallocate::PunchHole, &ME),
            6 => self.fs().fallocate(ino, offset, len, Fallocate::ZeroRange, &ME),
            _ => self.fs().fallocate(
                ino,
                offset,
                len,
                if byte.is_multiple_of(2) { Fallocate::Allocate } else { Fallocate::KeepSize },
                &ME,
            ),
        };
        let expected = self.contents(id).map(|file| {
            let grow = |file: &mut Vec<u8>, n: usize| file.resize(file.len().max(n), 0);
            match choice {
                0..4 => {
                    grow(file, end);
                    file[offset as usize..end].copy_from_slice(&data);
                }
                4 => file.resize(offset as usize, 0),
                5 | 6 => {
                    if choice == 6 {
                        grow(file, end);
                    }
                    let to = end.min(file.len());
                    if (offset as usize) < to {
                        file[offset as usize..to].fill(0);
                    }
                }
                _ if byte.is_multiple_of(2) => grow(file, end),
                _ => {}
            }
        });
        self.same("change of contents", &real, &expected);
    }

    fn copy_range(&mut self) {
        let (from, to) = (self.file(), self.file());
        let (offset, len) = (self.offset(), self.rng.below(80_000));
        // Mostly in the same place of a block, so that blocks are shared.
        let to_offset = match self.rng.below(4) {
            0 => self.offset(),
            _ => self.offset() / 4096 * 4096 + offset % 4096,
        };
        let (from_ino, to_ino) = (self.items[&from].ino, self.items[&to].ino);
        let real = self.fs().copy_range(from_ino, offset, to_ino, to_offset, len, &ME);
        let source = self.contents(from).cloned();
        let expected = source.and_then(|source| {
            let file = self.contents(to)?;
            let begin = (offset as usize).min(source.len());
            let bytes = source[begin..(begin + len as usize).min(source.len())].to_vec();
            if from == to && offset.abs_diff(to_offset) < bytes.len() as u64 {
                return Err(FsError::Invalid);
            }
            if !bytes.is_empty() {
                let end = to_offset as usize + bytes.len();
                file.resize(file.len().max(end), 0);
                file[to_offset as usize..end].copy_from_slice(&bytes);
            }
            Ok(bytes.len() as u64)
        });
        self.same("copy_range", &real, &expected);
    }

    /// Blocks that the counts of shared runs add to those in use.
    fn blocks_saved(&self) -> u64 {
        let mut saved = 0;
        let mut cursor = self.fs().tree().cursor();
        cursor.seek(&format::shared_key(0)).unwrap();
        while cursor.next().unwrap() {
            let Some(end) = format::shared_end(cursor.key()) else { break };
            let shared = format::Shared::decode(end, cursor.value()).unwrap();
            saved += (shared.count as u64 - 1) * shared.len as u64;
        }
        saved
    }

    /// E4, H1, H2: each block belongs to as many extents as its record says, all of which know that it may be more than one.
    fn compare_counts(&self) {
        let mut owners: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
        for item in self.items.values().filter(|i| matches!(i.body, Body::File(_))) {
            for m in self.fs().extents_in(item.ino, 0, u64::MAX, usize::MAX).unwrap() {
                let Some(run) = m.extent.run() else { continue };
                for block in run.start.0..run.end().0 {
                    let owner = owners.entry(block).or_insert((0, true));
                    *owner = (owner.0 + 1, owner.1 && m.is_shared());
                }
            }
        }
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        let mut cursor = self.fs().tree().cursor();
        cursor.seek(&format::shared_key(0)).unwrap();
        while cursor.next().unwrap() {
            let Some(end) = format::shared_end(cursor.key()) else { break };
            let shared = format::Shared::decode(end, cursor.value()).unwrap();
            counts.extend((end - shared.len as u64..end).map(|block| (block, shared.count as u64)));
        }
        for (block, (n, all_know)) in &owners {
            assert_eq!(counts.remove(block).unwrap_or(1), *n, "seed {}: owners of block {block}", self.seed);
            assert!(*n == 1 || *all_know, "seed {}: an extent does not know that it is shared", self.seed);
        }
        assert!(counts.is_empty(), "seed {}: counts of blocks that nobody has: {counts:?}", self.seed);
    }

    fn compare_file(&mut self, id: Id) {
        let ino = self.items[&id].ino;
        let (offset, len) = (self.offset(), self.rng.below(70_000) as usize);
        let real = self.fs().read(ino, offset, len);
        let expected = self.contents(id).map(|file| {
            let from = (offset as usize).min(file.len());
            file[from..(from + len).min(file.len())].to_vec()
        });
        self.same("read", &real, &expected);
        if let Ok(file) = self.contents(id).cloned()
            && let Ok(at) = self.fs().seek(ino, offset, true)
        {
            let skipped = &file[(offset as usize).min(file.len())
                ..at.map_or(file.len(), |a| a as usize).max(offset as usize).min(file.len())];
            assert!(skipped.iter().all(|b| *b == 0), "seed {}: SEEK_DATA skips data", self.seed);
        }
    }

    fn xattr(&mut self) {
        let id = self.pick(|_| true);
        let name = format!("user.a{}", self.rng.below(4)).into_bytes();
        let ino = self.items[&id].ino;
        let has = self.items[&id].xattrs.contains_key(&name);
        match self.rng.below(4) {
            0 => {
                let real = self.fs().remove_xattr(ino, &name, &ME);
                let expected = if has { Ok(()) } else { Err(FsError::NoAttribute) };
                self.same("removexattr", &real, &expected);
                self.items.get_mut(&id).unwrap().xattrs.remove(&name);
            }
            1 => {
                let real = self.fs().get_xattr(ino, &name);
                let expected = self.items[&id].xattrs.get(&name).cloned().ok_or(FsError::NoAttribute);
                self.same("getxattr", &real, &expected);
            }
            _ => {
                let len = [10, 500, 4000, 65536][self.rng.index(4)];
                let value = vec![self.rng.below(256) as u8; self.rng.below(len) as usize + 1];
                let how = [SetXattr::Any, SetXattr::Create, SetXattr::Replace][self.rng.index(3)];
                let real = self.fs().set_xattr(ino, &name, &value, how, &ME);
                let expected = match how {
                    SetXattr::Create if has => Err(FsError::Exists),
                    SetXattr::Replace if !has => Err(FsError::NoAttribute),
                    _ => Ok(()),
                };
                self.same("setxattr", &real, &expected);
                if real.is_ok() {
                    self.items.get_mut(&id).unwrap().xattrs.insert(name, value);
                }
            }
        }
    }

    fn hold(&mut self) {
        let id = self.pick(|_| true);
        if id == 0 {
            return;
        }
        let ino = self.items[&id].ino;
        if self.items[&id].held {
            self.fs().release(ino, 1).unwrap();
            let item = self.items.get_mut(&id).unwrap();
            item.held = false;
            if item.links == 0 {
                self.items.remove(&id);
                assert!(
                    self.fs().attributes(ino).is_err(),
                    "seed {}: inode outlives its last use",
                    self.seed
                );
            }
        } else {
            self.fs().retain(ino);
            self.items.get_mut(&id).unwrap().held = true;
        }
    }

    fn compare_item(&mut self, id: Id) {
        let item = self.items[&id].clone();
        let attributes = self.fs().attributes(item.ino).unwrap_or_else(|e| panic!("seed {}: {e}", self.seed));
        assert_eq!(
            (attributes.links, attributes.mode),
            (item.links, item.mode),
            "seed {}: {item:?}",
            self.seed
        );
        let names: BTreeSet<_> = self.fs().list_xattrs(item.ino).unwrap().into_iter().collect();
        assert!(names.iter().eq(item.xattrs.keys()), "seed {}: names of attributes", self.seed);
        for (name, value) in &item.xattrs {
            assert_eq!(&self.fs().get_xattr(item.ino, name).unwrap(), value, "seed {}", self.seed);
        }
        match &item.body {
            Body::File(data) => {
                assert_eq!(attributes.size, data.len() as u64, "seed {}", self.seed);
                assert!(
                    self.fs().read(item.ino, 0, data.len() + 10).unwrap() == *data,
                    "seed {}: contents",
                    self.seed
                );
            }
            Body::Symlink(target) => assert_eq!(&self.fs().read_link(item.ino).unwrap(), target),
            Body::Fifo => assert_eq!(attributes.kind, Kind::Fifo),
            Body::Dir { entries, .. } => {
                let mut seen = BTreeMap::new();
                let mut after = Cookie(0);
                loop {
                    let before = after;
                    // A few entries a call, as a small buffer would have it.
                    let mut n = 0;
                    let each = |cookie: Cookie, ino, _, name: &[u8]| {
                        after = cookie;
                        assert!(seen.insert(name.to_vec(), ino).is_none(), "entry is seen twice");
                        n += 1;
                        n < 3
                    };
                    self.fs().read_dir(item.ino, before, each).unwrap();
                    if after == before {
                        break;
                    }
                }
                seen.remove(&b"."[..]).unwrap();
                seen.remove(&b".."[..]).unwrap();
                let expected: BTreeMap<_, _> =
                    entries.iter().map(|(n, id)| (n.clone(), self.items[id].ino)).collect();
                assert_eq!(seen, expected, "seed {}: entries", self.seed);
            }
        }
    }

    fn remount(&mut self) {
        let fs = self.fs.take().unwrap();
        if self.rng.chance(1, 2) {
            fs.close().unwrap();
        } else {
            fs.sync().unwrap();
            drop(fs);
        }
        self.fs = Some(open(&self.storage));
        // Nobody holds anything any more: what had no name is gone.
        self.items.retain(|_, item| item.links > 0);
        for item in self.items.values_mut().skip(1) {
            item.held = false;
        }
    }

    fn compare_all(&mut self) {
        for id in self.items.keys().copied().collect::<Vec<_>>() {
            self.compare_item(id);
        }
        let report = self.fs().tree().check().unwrap_or_else(|e| panic!("seed {}: {e}", self.seed));
        let data: u64 = report.data.iter().map(|r| r.len as u64).sum();
        let blocks = |i: &Item| self.fs().attributes(i.ino).unwrap().blocks / 8;
        let counted: u64 = self.items.values().map(blocks).sum();
        let saved = self.blocks_saved();
        assert_eq!(data + saved, counted, "seed {}: blocks in use and blocks of inodes", self.seed);
        self.compare_counts();
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..18 => self.create(),
            18..22 => self.link(),
            22..32 => self.remove(),
            32..42 => self.rename(),
            42..58 => self.change_contents(),
            58..66 => self.copy_range(),
            66..80 => {
                let id = self.file();
                self.compare_file(id);
            }
            80..90 => self.xattr(),
            90..97 => self.hold(),
            97 => {
                let id = self.pick(|_| true);
                self.compare_item(id);
            }
            98 if self.rng.chance(1, 10) => self.compare_all(),
            _ if self.rng.chance(1, 20) => self.remount(),
            _ => {}
        }
    }
}

#[test]
fn files_and_directories_are_as_they_were_left() {
    let operations: usize =
        std::env::var("BTFS_OPERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(4_000);
    for seed in 0..8 {
        let mut run = Run::new(seed);
        for _ in 0..operations {
            run.step();
        }
        run.compare_all();
        run.remount();
        run.compare_all();
    }
}
