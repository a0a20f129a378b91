//! The volume in memory.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use btfs::fs::{
    Attributes, Caller, Cookie, Fallocate, FsError, Ino, Kind, New, ROOT, RenameMode, Result, SetAttributes,
    SetXattr, Time, Usage,
};
use btfs::mount::{Callback, EachEntry, EachName, Volume};
use parking_lot::RwLock;

/// Files larger than this keep no contents.
pub const CONTENT_MAX: u64 = 16 << 20;
const SHARDS: usize = 64;
const BLOCK: u64 = 4096;
/// Blocks that the volume pretends to have: 1 TiB.
const BLOCKS: u64 = 1 << 28;
/// The cookie of `..`; entries come behind it.
const LAST_DOT: u64 = 2;
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// All inodes; shared by the mounts of one process.
pub struct Contents {
    shards: [RwLock<HashMap<Ino, Arc<Node>>>; SHARDS],
    next: AtomicU64,
}

/// One mount of the contents.
pub struct Floor(Arc<Contents>);

struct Node {
    ino: Ino,
    state: RwLock<State>,
}

struct State {
    attributes: Attributes,
    references: u64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    body: Body,
}

enum Body {
    File(Vec<u8>),
    /// Too large to be kept.
    Discarded,
    Directory(Box<Directory>),
    Symlink(Vec<u8>),
    Special,
}

struct Directory {
    parent: Ino,
    next: u64,
    names: HashMap<Arc<[u8]>, u64>,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Clone)]
struct Entry {
    name: Arc<[u8]>,
    ino: Ino,
    kind: Kind,
}

impl Directory {
    fn new(parent: Ino) -> Directory {
        Directory { parent, next: LAST_DOT + 1, names: HashMap::new(), entries: BTreeMap::new() }
    }

    fn find(&self, name: &[u8]) -> Option<&Entry> {
        self.entries.get(self.names.get(name)?)
    }

    fn add(&mut self, name: &[u8], ino: Ino, kind: Kind) {
        let name: Arc<[u8]> = name.into();
        self.names.insert(name.clone(), self.next);
        self.entries.insert(self.next, Entry { name, ino, kind });
        self.next += 1;
    }

    fn remove(&mut self, name: &[u8]) -> Option<Entry> {
        self.entries.remove(&self.names.remove(name)?)
    }

    /// The entries behind a cookie, with `.` and `..` in front.
    fn behind(&self, ino: Ino, after: Cookie) -> impl Iterator<Item = (u64, Entry)> + '_ {
        let dots = [(1, b".".as_slice(), ino), (LAST_DOT, b"..".as_slice(), self.parent)];
        let dots = dots.into_iter().filter(move |dot| dot.0 > after.0);
        let dots =
            dots.map(|(cookie, name, ino)| (cookie, Entry { name: name.into(), ino, kind: Kind::Directory }));
        let range = (Bound::Excluded(after.0), Bound::Unbounded);
        dots.chain(self.entries.range(range).map(|(cookie, entry)| (*cookie, entry.clone())))
    }
}

impl State {
    fn directory(&self) -> Result<&Directory> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(FsError::NotDirectory),
        }
    }

    fn directory_mut(&mut self) -> Result<&mut Directory> {
        match &mut self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(FsError::NotDirectory),
        }
    }

    fn resize(&mut self, size: u64) -> Result<()> {
        match &mut self.body {
            Body::File(_) if size > CONTENT_MAX => self.body = Body::Discarded,
            Body::File(bytes) => bytes.resize(size as usize, 0),
            Body::Discarded if size == 0 => self.body = Body::File(Vec::new()),
            Body::Discarded => {}
            Body::Directory(_) => return Err(FsError::IsDirectory),
            _ => return Err(FsError::Invalid),
        }
        self.attributes.size = size;
        self.attributes.blocks = size.div_ceil(BLOCK) * (BLOCK / 512);
        Ok(())
    }

    fn touch(&mut self, now: Time) {
        (self.attributes.mtime, self.attributes.ctime) = (now, now);
    }
}

impl Contents {
    /// An empty root directory.
    pub fn new() -> Arc<Contents> {
        let shards = std::array::from_fn(|_| RwLock::new(HashMap::new()));
        let contents = Contents { shards, next: AtomicU64::new(ROOT.0 + 1) };
        let body = Body::Directory(Box::new(Directory::new(ROOT)));
        let attributes =
            Attributes { links: 2, ..new_attributes(ROOT, Kind::Directory, 0o755, &Caller::default()) };
        contents.insert(ROOT, State { attributes, references: 0, xattrs: Vec::new(), body });
        Arc::new(contents)
    }

    fn shard(&self, ino: Ino) -> &RwLock<HashMap<Ino, Arc<Node>>> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    fn insert(&self, ino: Ino, state: State) {
        self.shard(ino).write().insert(ino, Arc::new(Node { ino, state: RwLock::new(state) }));
    }

    fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        self.shard(ino).read().get(&ino).cloned().ok_or(FsError::NotFound)
    }

    /// Forgets an inode that has neither names nor references. The caller holds no lock.
    fn reap(&self, node: &Node) {
        let is_gone = {
            let state = node.state.read();
            state.attributes.links == 0 && state.references == 0 && node.ino != ROOT
        };
        if is_gone {
            self.shard(node.ino).write().remove(&node.ino);
        }
    }
}

fn new_attributes(ino: Ino, kind: Kind, mode: u16, caller: &Caller) -> Attributes {
    Attributes {
        ino,
        kind,
        mode,
        links: 1,
        uid: caller.uid,
        gid: caller.gid,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: caller.now,
        mtime: caller.now,
        ctime: caller.now,
        btime: caller.now,
        has_xattrs: false,
    }
}

impl Floor {
    pub fn new(contents: Arc<Contents>) -> Floor {
        Floor(contents)
    }

    fn retained(&self, ino: Ino) -> Result<Attributes> {
        let node = self.0.node(ino)?;
        let mut state = node.state.write();
        state.references += 1;
        Ok(state.attributes.clone())
    }

    /// Takes an entry away. The inode stays if it has other names or references.
    fn remove(&self, parent: Ino, name: &[u8], is_dir: bool, caller: &Caller) -> Result<()> {
        let parent = self.0.node(parent)?;
        let mut dir = parent.state.write();
        let entry = dir.directory()?.find(name).ok_or(FsError::NotFound)?.clone();
        match (is_dir, entry.kind == Kind::Directory) {
            (true, false) => return Err(FsError::NotDirectory),
            (false, true) => return Err(FsError::IsDirectory),
            _ => {}
        }
        let node = self.0.node(entry.ino)?;
        {
            let mut state = node.state.write();
            if is_dir {
                if !state.directory()?.names.is_empty() {
                    return Err(FsError::NotEmpty);
                }
                state.attributes.links = 0;
                dir.attributes.links -= 1;
            } else {
                state.attributes.links -= 1;
            }
            state.attributes.ctime = caller.now;
        }
        dir.directory_mut()?.remove(name);
        dir.touch(caller.now);
        drop(dir);
        self.0.reap(&node);
        Ok(())
    }
}

impl Volume for Floor {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes> {
        let parent = self.0.node(parent)?;
        let dir = parent.state.read();
        let ino = dir.directory()?.find(name).ok_or(FsError::NotFound)?.ino;
        self.retained(ino)
    }

    fn retain(&self, ino: Ino) -> Result<Attributes> {
        self.retained(ino)
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        Ok(self.0.node(ino)?.state.read().directory()?.parent)
    }

    fn release(&self, ino: Ino, n: u64) -> Result<()> {
        let node = self.0.node(ino)?;
        {
            let mut state = node.state.write();
            state.references = state.references.saturating_sub(n);
        }
        self.0.reap(&node);
        Ok(())
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes> {
        Ok(self.0.node(ino)?.state.read().attributes.clone())
    }

    fn set_attributes(&self, ino: Ino, change: &SetAttributes, caller: &Caller) -> Result<Attributes> {
        let node = self.0.node(ino)?;
        let mut state = node.state.write();
        if let Some(size) = change.size {
            state.resize(size)?;
            state.attributes.mtime = caller.now;
        }
        let a = &mut state.attributes;
        a.mode = change.mode.unwrap_or(a.mode);
        a.uid = change.uid.unwrap_or(a.uid);
        a.gid = change.gid.unwrap_or(a.gid);
        a.atime = change.atime.unwrap_or(a.atime);
        a.mtime = change.mtime.unwrap_or(a.mtime);
        a.ctime = caller.now;
        Ok(a.clone())
    }

    fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        match &self.0.node(ino)?.state.read().body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(FsError::Invalid),
        }
    }

    fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: New<'_>,
        mode: u16,
        umask: u16,
        caller: &Caller,
    ) -> Result<Attributes> {
        let node = self.0.node(parent)?;
        let mut dir = node.state.write();
        if dir.directory()?.find(name).is_some() {
            return Err(FsError::Exists);
        }
        let ino = Ino(self.0.next.fetch_add(1, Ordering::Relaxed));
        let (kind, body, rdev) = match new {
            New::File => (Kind::File, Body::File(Vec::new()), 0),
            New::Directory => (Kind::Directory, Body::Directory(Box::new(Directory::new(parent))), 0),
            New::Symlink(target) => (Kind::Symlink, Body::Symlink(target.to_owned()), 0),
            New::Special(kind, rdev) => (kind, Body::Special, rdev),
        };
        let mode = if kind == Kind::Symlink { mode } else { mode & !umask };
        let mut attributes = Attributes { rdev, ..new_attributes(ino, kind, mode, caller) };
        match &body {
            Body::Symlink(target) => attributes.size = target.len() as u64,
            Body::Directory(_) => (attributes.links, dir.attributes.links) = (2, dir.attributes.links + 1),
            _ => {}
        }
        self.0.insert(ino, State { attributes: attributes.clone(), references: 1, xattrs: Vec::new(), body });
        dir.directory_mut()?.add(name, ino, kind);
        dir.touch(caller.now);
        Ok(attributes)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8], caller: &Caller) -> Result<Attributes> {
        let node = self.0.node(parent)?;
        let mut dir = node.state.write();
        if dir.directory()?.find(name).is_some() {
            return Err(FsError::Exists);
        }
        let target = self.0.node(ino)?;
        let mut state = target.state.write();
        state.attributes.links += 1;
        state.attributes.ctime = caller.now;
        state.references += 1;
        dir.directory_mut()?.add(name, ino, state.attributes.kind);
        dir.touch(caller.now);
        Ok(state.attributes.clone())
    }

    fn unlink(&self, parent: Ino, name: &[u8], caller: &Caller) -> Result<()> {
        self.remove(parent, name, false, caller)
    }

    fn rmdir(&self, parent: Ino, name: &[u8], caller: &Caller) -> Result<()> {
        self.remove(parent, name, true, caller)
    }

    /// Not atomic, unlike a filesystem's: nothing here renames in two threads at once.
    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
        caller: &Caller,
    ) -> Result<()> {
        let find = |parent: Ino, name: &[u8]| -> Result<Option<Entry>> {
            Ok(self.0.node(parent)?.state.read().directory()?.find(name).cloned())
        };
        let source = find(parent, name)?.ok_or(FsError::NotFound)?;
        match (mode, find(new_parent, new_name)?) {
            (RenameMode::Exchange | RenameMode::Whiteout { .. }, _) => return Err(FsError::Invalid),
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
            (_, Some(target)) if target.ino == source.ino => return Ok(()),
            (_, Some(target)) => {
                self.remove(new_parent, new_name, target.kind == Kind::Directory, caller)?;
            }
            (_, None) => {}
        }
        let is_dir = source.kind == Kind::Directory;
        let change = |parent: Ino, links: i32, change: &dyn Fn(&mut Directory)| -> Result<()> {
            let node = self.0.node(parent)?;
            let mut state = node.state.write();
            change(state.directory_mut()?);
            if is_dir {
                state.attributes.links = state.attributes.links.saturating_add_signed(links);
            }
            state.touch(caller.now);
            Ok(())
        };
        change(parent, -1, &|dir| {
            dir.remove(name);
        })?;
        change(new_parent, 1, &|dir| dir.add(new_name, source.ino, source.kind))?;
        let node = self.0.node(source.ino)?;
        let mut state = node.state.write();
        state.attributes.ctime = caller.now;
        if is_dir {
            state.directory_mut()?.parent = new_parent;
        }
        Ok(())
    }

    fn read_dir(&self, ino: Ino, after: Cookie, each: &mut EachName<'_>) -> Result<()> {
        let node = self.0.node(ino)?;
        let state = node.state.read();
        for (cookie, entry) in state.directory()?.behind(ino, after) {
            if !each(Cookie(cookie), entry.ino, entry.kind, &entry.name) {
                break;
            }
        }
        Ok(())
    }

    fn read_dir_plus(&self, ino: Ino, after: Cookie, limit: usize, each: &mut EachEntry<'_>) -> Result<()> {
        let entries: Vec<_> = {
            let node = self.0.node(ino)?;
            let state = node.state.read();
            state.directory()?.behind(ino, after).take(limit).collect()
        };
        for (cookie, entry) in entries {
            let node = match self.0.node(entry.ino) {
                Ok(node) => node,
                // Removed meanwhile.
                Err(FsError::NotFound) => continue,
                Err(e) => return Err(e),
            };
            let mut state = node.state.write();
            if !each(Cookie(cookie), &state.attributes, &entry.name) {
                break;
            }
            if cookie > LAST_DOT {
                state.references += 1;
            }
        }
        Ok(())
    }

    fn read<R>(&self, ino: Ino, offset: u64, len: usize, reply: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let node = self.0.node(ino)?;
        let state = node.state.read();
        let begin = offset.min(state.attributes.size);
        let end = offset.saturating_add(len as u64).min(state.attributes.size);
        match &state.body {
            Body::File(bytes) => Ok(reply(&bytes[begin as usize..end as usize])),
            Body::Discarded => Ok(reply(&ZEROS[..((end - begin) as usize).min(ZEROS.len())])),
            Body::Directory(_) => Err(FsError::IsDirectory),
            _ => Err(FsError::Invalid),
        }
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], caller: &Caller) -> Result<usize> {
        let node = self.0.node(ino)?;
        let mut state = node.state.write();
        let end = offset.checked_add(data.len() as u64).ok_or(FsError::FileTooLarge)?;
        if end > state.attributes.size {
            state.resize(end)?;
        }
        match &mut state.body {
            Body::File(bytes) => bytes[offset as usize..end as usize].copy_from_slice(data),
            Body::Discarded => {}
            _ => return Err(FsError::Invalid),
        }
        state.touch(caller.now);
        Ok(data.len())
    }

    fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate, _: &Caller) -> Result<()> {
        let node = self.0.node(ino)?;
        let mut state = node.state.write();
        let end = offset.checked_add(len).ok_or(FsError::FileTooLarge)?;
        if matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange) && end > state.attributes.size {
            state.resize(end)?;
        }
        let punches = matches!(mode, Fallocate::PunchHole | Fallocate::ZeroRange | Fallocate::ZeroKeepSize);
        if let (Body::File(bytes), true) = (&mut state.body, punches) {
            let size = bytes.len() as u64;
            bytes[offset.min(size) as usize..end.min(size) as usize].fill(0);
        }
        Ok(())
    }

    fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<Option<u64>> {
        let size = self.attributes(ino)?.size;
        Ok((offset < size).then_some(if data { offset } else { size }))
    }

    fn copy_range(&self, _: Ino, _: u64, _: Ino, _: u64, _: u64, _: &Caller) -> Result<u64> {
        // The caller copies by reading and writing.
        Err(FsError::Invalid)
    }

    fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.0.node(ino)?;
        let state = node.state.read();
        let found = state.xattrs.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.clone()).ok_or(FsError::NoAttribute)
    }

    fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        Ok(self.0.node(ino)?.state.read().xattrs.iter().map(|(name, _)| name.clone()).collect())
    }

    fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], _: SetXattr, _: &Caller) -> Result<()> {
        let node = self.0.node(ino)?;
        let mut state = node.state.write();
        state.xattrs.retain(|(other, _)| other != name);
        state.xattrs.push((name.to_owned(), value.to_owned()));
        state.attributes.has_xattrs = true;
        Ok(())
    }

    fn remove_xattr(&self, ino: Ino, name: &[u8], _: &Caller) -> Result<()> {
        let node = self.0.node(ino)?;
        let mut state = node.state.write();
        let before = state.xattrs.len();
        state.xattrs.retain(|(other, _)| other != name);
        state.attributes.has_xattrs = !state.xattrs.is_empty();
        if state.xattrs.len() == before { Err(FsError::NoAttribute) } else { Ok(()) }
    }

    fn usage(&self) -> Usage {
        Usage { blocks: BLOCKS, free: BLOCKS, available: BLOCKS, files: BLOCKS, files_free: BLOCKS }
    }

    fn sync_then(&self, _may_wait: bool, callback: Callback) {
        callback(Ok(()));
    }

    fn report(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    fn grow(&self, _: u64) -> Result<()> {
        Err(FsError::Invalid)
    }

    fn note_damage(&self) {}
    fn fail(&self, _: &FsError) {}

    /// The kernel forgets nothing at an unmount: what only it knew of goes now.
    fn close(self) -> Result<()> {
        for shard in &self.0.shards {
            shard.write().retain(|ino, node| {
                let mut state = node.state.write();
                state.references = 0;
                state.attributes.links > 0 || *ino == ROOT
            });
        }
        Ok(())
    }
}
