//! Random operations on the filesystem and on a plain model of one.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;

use super::blocks::compare_blocks;
use super::*;
use crate::fs::acl::{ACL_ACCESS, ACL_DEFAULT};
use crate::storage::Rng;

type Id = usize;

#[derive(Clone, Debug)]
enum Body {
    File(Vec<u8>),
    Dir { entries: BTreeMap<Vec<u8>, Id>, parent: Id },
    Symlink(Vec<u8>),
    Special(Kind),
}

#[derive(Clone, Debug)]
struct Item {
    body: Body,
    links: u32,
    mode: u16,
    access: Option<Acl>,
    default: Option<Acl>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    ino: Ino,
    held: bool,
}

/// An ACL as `setfacl` would have it: the classes, and those who are named.
#[derive(Clone, Debug)]
struct Acl {
    owner: u16,
    group: u16,
    other: u16,
    /// A mask, and users from number 0 on.
    more: Option<(u16, Vec<u16>)>,
}

impl Acl {
    fn random(rng: &mut Rng) -> Acl {
        let mut bits = || rng.below(8) as u16;
        let (owner, group, other, mask, users) = (bits(), bits(), bits(), bits(), vec![bits(); 2]);
        let more = rng.chance(2, 3).then_some((mask, users));
        Acl { owner, group, other, more }
    }

    fn encode(&self) -> Vec<u8> {
        let nobody = u32::MAX;
        let mut entries = vec![(1, self.owner, nobody)];
        if let Some((_, users)) = &self.more {
            entries.extend(users.iter().enumerate().map(|(id, user)| (2, *user, id as u32)));
        }
        entries.push((4, self.group, nobody));
        if let Some((mask, _)) = &self.more {
            entries.push((0x10, *mask, nobody));
        }
        entries.push((0x20, self.other, nobody));
        super::acl::encoded(&entries)
    }

    fn middle(&mut self) -> &mut u16 {
        self.more.as_mut().map_or(&mut self.group, |(mask, _)| mask)
    }

    fn mode(&mut self) -> u16 {
        self.owner << 6 | *self.middle() << 3 | self.other
    }

    fn limit(&mut self, mode: u16) {
        self.owner &= mode >> 6;
        *self.middle() &= mode >> 3;
        self.other &= mode;
    }

    fn chmod(&mut self, mode: u16) {
        self.owner = mode >> 6 & 7;
        *self.middle() = mode >> 3 & 7;
        self.other = mode & 7;
    }
}

/// A directory and all below it, and the model of them.
pub(super) struct Run {
    seed: u64,
    rng: Rng,
    fs: Option<Arc<Fs>>,
    items: BTreeMap<Id, Item>,
    next: Id,
}

type Outcome<T> = std::result::Result<T, FsError>;

impl Run {
    /// Begins in the empty directory `root`.
    pub(super) fn new(seed: u64, fs: Arc<Fs>, root: Ino) -> Run {
        let root = Item {
            body: Body::Dir { entries: BTreeMap::new(), parent: 0 },
            links: 2,
            mode: 0o755,
            access: None,
            default: None,
            xattrs: BTreeMap::new(),
            ino: root,
            held: true,
        };
        Run { seed, rng: Rng::new(seed), fs: Some(fs), items: BTreeMap::from([(0, root)]), next: 1 }
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
            3 => (Body::Special(Kind::Fifo), 2),
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
        self.born(dir, name, body, mode & !umask, mode, ino);
    }

    /// An inode is there under a new name; what its ACL leaves of its mode counts where a default ACL is handed down.
    fn born(&mut self, dir: Id, name: Vec<u8>, body: Body, masked: u16, mode: u16, ino: Ino) {
        let is_dir = matches!(body, Body::Dir { .. });
        let default = self.items[&dir].default.clone();
        let (mode, access, default) = match default {
            _ if matches!(body, Body::Symlink(_)) => (0o777, None, None),
            None => (masked, None, None),
            Some(default) => {
                let mut access = default.clone();
                access.limit(mode);
                (access.mode(), Some(access).filter(|a| a.more.is_some()), Some(default).filter(|_| is_dir))
            }
        };
        let (links, xattrs) = (1 + is_dir as u32, BTreeMap::new());
        let item = Item { body, links, mode, access, default, xattrs, ino, held: true };
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
            if e.contains_key(&name) {
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
        let mode = [
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
            RenameMode::Whiteout { replace: true },
            RenameMode::Whiteout { replace: false },
        ][self.rng.index(6)];
        let expected = self.check_rename(from, &name, to, &new_name, mode);
        let (from_ino, to_ino) = (self.items[&from].ino, self.items[&to].ino);
        let real = self.fs().rename(from_ino, &name, to_ino, &new_name, mode, &ME);
        self.same("rename", &real, &expected.clone().map(|_| ()));
        if let Ok((id, other)) = expected {
            self.do_rename(from, name.clone(), to, new_name, mode, id, other);
            if matches!(mode, RenameMode::Whiteout { .. }) && other != Some(id) {
                let ino = self.fs().lookup_attributes(from_ino, &name).unwrap().ino;
                self.born(from, name, Body::Special(Kind::CharDevice), 0, 0, ino);
            }
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
            (RenameMode::NoReplace | RenameMode::Whiteout { replace: false }, Some(_)) => {
                return Err(FsError::Exists);
            }
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
            0..4 => self.fs().write(ino, offset, &data, &ME).map(|done| assert_eq!(done, data.len())),
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

    fn permissions(&mut self) {
        let id = self.pick(|i| !matches!(i.body, Body::Symlink(_)));
        let (fs, mut acl) = (self.fs.clone().unwrap(), Acl::random(&mut self.rng));
        let (ino, choice) = (self.items[&id].ino, self.rng.below(6));
        let is_dir = self.is_dir(id);
        let set = |name| fs.set_xattr(ino, name, &acl.encode(), SetXattr::Any, &ME);
        let refused = matches!(self.items[&id].body, Body::Symlink(_)) || choice == 1 && !is_dir;
        match choice {
            0 | 1 => {
                let real = set(if choice == 0 { ACL_ACCESS } else { ACL_DEFAULT });
                self.same("set ACL", &real, &if refused { Err(FsError::NotPermitted) } else { Ok(()) });
            }
            2 => fs.remove_xattr(ino, ACL_ACCESS, &ME).unwrap(),
            3 => fs.remove_xattr(ino, ACL_DEFAULT, &ME).unwrap(),
            _ => {
                let change = SetAttributes { mode: Some(acl.mode()), ..SetAttributes::default() };
                fs.set_attributes(ino, &change, &ME).unwrap();
            }
        }
        let item = self.items.get_mut(&id).unwrap();
        match choice {
            0 | 1 if refused => {}
            0 => {
                item.mode = acl.mode();
                item.access = Some(acl).filter(|a| a.more.is_some());
            }
            1 => item.default = Some(acl),
            2 => item.access = None,
            3 => item.default = None,
            _ => {
                item.mode = acl.mode();
                if let Some(access) = &mut item.access {
                    access.chmod(acl.mode());
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
        let mut xattrs = item.xattrs.clone();
        xattrs.extend(item.access.as_ref().map(|acl| (ACL_ACCESS.to_vec(), acl.encode())));
        xattrs.extend(item.default.as_ref().map(|acl| (ACL_DEFAULT.to_vec(), acl.encode())));
        assert!(names.iter().eq(xattrs.keys()), "seed {}: names of attributes", self.seed);
        for (name, value) in &xattrs {
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
            Body::Special(kind) => assert_eq!((attributes.kind, attributes.rdev), (*kind, 0)),
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

    /// Lets go of the filesystem, to be opened again: nobody holds anything then, and what had no name is gone.
    pub(super) fn leave(&mut self) -> Arc<Fs> {
        self.items.retain(|_, item| item.links > 0);
        for item in self.items.values_mut().skip(1) {
            item.held = false;
        }
        self.fs.take().unwrap()
    }

    pub(super) fn enter(&mut self, fs: Arc<Fs>) {
        self.fs = Some(fs);
    }

    pub(super) fn compare_all(&mut self) {
        for id in self.items.keys().copied().collect::<Vec<_>>() {
            self.compare_item(id);
        }
    }

    /// All inodes, of whatever kind.
    pub(super) fn inodes(&self) -> impl Iterator<Item = Ino> {
        self.items.values().map(|i| i.ino)
    }

    pub(super) fn step(&mut self) {
        match self.rng.below(100) {
            0..18 => self.create(),
            18..22 => self.link(),
            22..32 => self.remove(),
            32..42 => self.rename(),
            42..58 => self.change_contents(),
            58..65 => self.copy_range(),
            65..76 => {
                let id = self.file();
                self.compare_file(id);
            }
            76..86 => self.xattr(),
            86..92 => self.permissions(),
            92..98 => self.hold(),
            _ => {
                let id = self.pick(|_| true);
                self.compare_item(id);
            }
        }
    }

    fn remount(&mut self, storage: &Arc<MemStorage>) {
        let fs = Arc::into_inner(self.leave()).unwrap();
        if self.rng.chance(1, 2) {
            fs.close().unwrap();
        } else {
            fs.sync().unwrap();
            drop(fs);
        }
        self.enter(Arc::new(open(storage)));
    }
}

/// Steps from one empty filesystem: with more, what the model keeps would outgrow the image.
const STEPS: usize = 8_000;

#[test]
fn files_and_directories_are_as_they_were_left() {
    let operations: usize =
        std::env::var("BTFS_OPERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(32_000);
    for seed in 0..operations.div_ceil(STEPS) {
        let storage = image(96 << 20);
        let mut run = Run::new(seed as u64, Arc::new(open(&storage)), ROOT);
        for _ in 0..STEPS {
            run.step();
            if run.rng.chance(1, 2_000) {
                run.remount(&storage);
            }
            if run.rng.chance(1, 1_000) {
                run.compare_all();
                compare_blocks(run.fs(), run.inodes());
            }
        }
        run.compare_all();
        run.remount(&storage);
        run.compare_all();
        compare_blocks(run.fs(), run.inodes());
    }
}
