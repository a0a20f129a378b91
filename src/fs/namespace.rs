//! Names: create, link, unlink, rmdir, rename. Each is one batch of at most nine records and, if a file goes with its last name, those
//! of its contents as far as one batch may go, whatever the directory's size.

use std::ops::ControlFlow;

use super::dir::{Found, check_name};
use super::error::{FsError, Result};
use super::extents::Remap;
use super::file::EXTENTS_PER_BATCH;
use super::format::*;
use super::table::{Node, State};
use super::{Attributes, Caller, Fs, attributes, put_inode};
use crate::defects::Defect;
use crate::sync::RwLockWriteGuard;
use crate::tree::Batch;

/// Targets up to so many bytes lie in the inode's record, longer ones like a file's contents.
const TARGET_INLINE_MAX: usize = 1024;

/// What is to be created.
#[derive(Clone, Copy, Debug)]
pub enum New<'a> {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(&'a [u8]),
    /// A device, fifo or socket, with its device number.
    Special(Kind, u32),
}

/// What a rename does about a name that is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Refuse.
    NoReplace,
    /// Exchange both.
    Exchange,
    /// Replace it or refuse, and leave a whiteout under the old name: a character device with the number 0, which hides what a lower
    /// layer of an overlay has under that name (`RENAME_WHITEOUT`).
    Whiteout {
        /// Whether to replace.
        replace: bool,
    },
}

/// A new inode of the caller's.
pub(super) fn new_inode(kind: Kind, mode: u16, caller: &Caller) -> Inode {
    Inode::new(kind, mode, (caller.uid, caller.gid), caller.now)
}

/// What is left of an inode that has lost a name.
enum Left {
    /// Its record.
    Inode(Inode),
    /// Its record and contents in memory: it was the last name, but it is in use.
    Detached(Inode, Vec<u8>),
    /// Nothing: it was the last name, nobody uses it, and one batch is enough to delete all that belongs to it.
    Nothing,
}

/// A locked directory that a name is looked up in.
struct Parent<'n> {
    node: &'n Node,
    state: RwLockWriteGuard<'n, State>,
}

impl Parent<'_> {
    fn inode(&self) -> Result<&Inode> {
        self.state.get().ok_or(FsError::NotFound)
    }
    fn dir(&self) -> Result<DirInfo> {
        self.inode()?.dir.ok_or(FsError::NotDirectory)
    }
    /// The record with the times of a change of entries.
    fn touched(&self, now: Time) -> Result<Inode> {
        let mut inode = self.inode()?.clone();
        (inode.mtime, inode.ctime) = (now, now);
        Ok(inode)
    }
}

fn dir_mut(inode: &mut Inode) -> Result<&mut DirInfo> {
    inode.dir.as_mut().ok_or(FsError::NotDirectory)
}

/// Counts an entry that comes or goes. A count that was wrong before does not go beyond its ends, and is the checker's to find.
fn count_entry(dir: &mut Inode, comes: bool) -> Result<()> {
    let count = &mut dir_mut(dir)?.count;
    *count = if comes { count.saturating_add(1) } else { count.saturating_sub(1) };
    Ok(())
}

impl Fs {
    fn parent_for_change<'n>(&self, node: &'n Node) -> Result<Parent<'n>> {
        let parent = Parent { node, state: self.lock_in_memory(node)? };
        parent.dir()?;
        // A directory that has been removed but is still in use takes no new entries.
        if parent.inode()?.links == 0 { Err(FsError::NotFound) } else { Ok(parent) }
    }

    fn find(&self, parent: &Parent<'_>, name: &[u8]) -> Result<Found> {
        let dir = parent.node.ino;
        match self.find_entry(parent.node, parent.dir()?.entries, name)? {
            // Whoever takes it for a child waits for his own lock.
            Found::Entry(_, entry) if entry.ino == dir => {
                Err(FsError::damaged(dir, "it has an entry for itself"))
            }
            found => Ok(found),
        }
    }

    /// Creates an inode under a name, with one reference ([`Fs::release`] gives it back). Its mode has no bits of `umask`; but a
    /// directory with a default ACL passes that on instead. A directory with sgid passes on its group, and sgid itself to directories;
    /// a file that is executable by such a group has sgid only from a privileged caller.
    pub fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: New<'_>,
        mode: u16,
        umask: u16,
        caller: &Caller,
    ) -> Result<Attributes> {
        check_name(name)?;
        self.admit()?;
        let node = self.node(parent);
        let mut parent = self.parent_for_change(&node)?;
        let cookie = match self.find(&parent, name)? {
            Found::Entry(..) => return Err(FsError::Exists),
            Found::Free(cookie) => cookie.ok_or(FsError::NoSpace)?,
        };
        let mut above = parent.touched(caller.now)?;
        let mut batch = Batch::new();
        let (ino, inode) = self.bear(&parent, &mut above, (new, mode, umask), caller, &mut batch)?;
        count_entry(&mut above, true)?;
        let entry = Entry { ino, kind: inode.kind, name: name.to_vec() };
        self.put_entry(&node, parent.dir()?.entries, cookie, &entry, &mut batch);
        let child = self.node(ino);
        let mut state = child.state.write();
        self.update(&mut batch, &node, &mut parent.state, above)?;
        parent.state.births_are_free = true;
        let attributes = attributes(ino, &inode);
        state.set(inode);
        self.table.retain(&child);
        child.set_seen_in(node.ino);
        Ok(attributes)
    }

    /// An inode is born in a directory that is locked for changes, and whose record is going to be `above`. Its own records are put
    /// into the batch; its name is left to the caller, who also notes, once the batch is applied, that further births are free.
    fn bear(
        &self,
        parent: &Parent<'_>,
        above: &mut Inode,
        (new, mode, umask): (New<'_>, u16, u16),
        caller: &Caller,
        batch: &mut Batch,
    ) -> Result<(Ino, Inode)> {
        let dir = dir_mut(above)?;
        let group = dir.births;
        let ino = self.birth(dir)?;
        if group != dir.births || !parent.state.births_are_free {
            self.check_births(parent.node.ino, ino)?;
        }
        let mut inode = match new {
            New::File => new_inode(Kind::File, mode, caller),
            New::Directory => new_inode(Kind::Directory, mode, caller),
            New::Symlink(_) => new_inode(Kind::Symlink, 0o777, caller),
            New::Special(kind, rdev) => Inode { rdev, ..new_inode(kind, mode, caller) },
        };
        match inode.kind {
            Kind::Symlink => {}
            _ if above.flags & INODE_DEFAULT_ACL != 0 => {
                self.inherit_acl(parent.node.ino, ino, &mut inode, batch)?;
            }
            _ => inode.mode &= !(umask & 0o777),
        }
        if above.mode & 0o2000 != 0 {
            inode.gid = above.gid;
            if inode.kind == Kind::Directory {
                inode.mode |= 0o2000;
            } else if mode & 0o2010 == 0o2010 && !caller.privileged {
                inode.mode &= !0o2000;
            }
        }
        match new {
            New::Directory => {
                let group = self.new_group()?;
                inode.links = 2;
                inode.dir = Some(DirInfo {
                    entries: group,
                    births: group,
                    next: 1,
                    parent: parent.node.ino,
                    count: 0,
                });
                if above.links >= LINK_MAX {
                    return Err(FsError::TooManyLinks);
                }
                above.links += 1;
            }
            New::Symlink(target) => self.set_target(ino, &mut inode, target, batch)?,
            New::File | New::Special(..) => {}
        }
        put_inode(batch, ino, &inode);
        Ok((ino, inode))
    }

    /// No inode has the number of a directory's next birth, or a later one of its group: a counter that is damaged would give away
    /// numbers again, the directory's own perhaps. Looked at once for each directory in memory.
    fn check_births(&self, dir: Ino, next: Ino) -> Result<()> {
        let end = entry_key(next.group(), Cookie(0));
        match self.tree.scan(&inode_key(next), &end, |_, _| ControlFlow::Break(()))? {
            Some(()) => Err(FsError::damaged(dir, "numbers of its next births are in use")),
            None => Ok(()),
        }
    }

    /// The number of the next inode born in a directory. A full birth group is followed by a new one.
    fn birth(&self, dir: &mut DirInfo) -> Result<Ino> {
        if dir.next >= BIRTHS_MAX {
            (dir.births, dir.next) = (self.new_group()?, 0);
        }
        // Number 0 is never used; group 0 begins behind the root.
        dir.next = dir.next.max(1);
        let ino = Ino::new(dir.births, dir.next);
        dir.next += 1;
        Ok(ino)
    }

    fn set_target(&self, ino: Ino, inode: &mut Inode, target: &[u8], batch: &mut Batch) -> Result<()> {
        if target.len() > SYMLINK_MAX {
            return Err(FsError::NameTooLong);
        }
        if target.is_empty() {
            return Err(FsError::Invalid);
        }
        inode.size = target.len() as u64;
        // Behind the record's own bytes there is room for two pieces of a long target.
        let (head, tail) = target.split_at(target.len().min(TARGET_INLINE_MAX));
        inode.target = head.to_vec();
        for (i, piece) in tail.chunks(INLINE_MAX).enumerate() {
            let end = TARGET_INLINE_MAX + i * INLINE_MAX + piece.len();
            batch.put(&extent_key(ino, end as u64), piece);
        }
        Ok(())
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        let inode = state.get().ok_or(FsError::NotFound)?;
        if inode.kind != Kind::Symlink {
            return Err(FsError::Invalid);
        }
        let mut target = inode.target.clone();
        let mut cursor = self.tree.cursor();
        cursor.seek(&extent_key(ino, 0))?;
        while target.len() as u64 <= inode.size && cursor.next()? && extent_end(ino, cursor.key()).is_some() {
            target.extend_from_slice(cursor.value());
        }
        if target.len() as u64 != inode.size {
            return Err(FsError::damaged(ino, "its target has another length than it says"));
        }
        Ok(target)
    }

    /// Gives an inode another name, and adds a reference to it.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8], caller: &Caller) -> Result<Attributes> {
        check_name(name)?;
        self.admit()?;
        let (node, child) = (self.node(parent), self.node(ino));
        // Before anything is locked for changes: a directory may lie above the other one (I2).
        let is_directory = self.lock_shared(&child)?.get().is_some_and(|i| i.kind == Kind::Directory);
        let mut parent = self.parent_for_change(&node)?;
        let cookie = match self.find(&parent, name)? {
            Found::Entry(..) => return Err(FsError::Exists),
            Found::Free(_) if is_directory => return Err(FsError::IsDirectory),
            Found::Free(cookie) => cookie.ok_or(FsError::NoSpace)?,
        };
        let mut state = self.lock_in_memory(&child)?;
        let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
        match inode.links {
            0 => return Err(FsError::NotFound),
            LINK_MAX.. => return Err(FsError::TooManyLinks),
            _ => inode.links += 1,
        }
        inode.ctime = caller.now;
        let mut above = parent.touched(caller.now)?;
        count_entry(&mut above, true)?;
        let mut batch = Batch::new();
        let entry = Entry { ino, kind: inode.kind, name: name.to_vec() };
        self.put_entry(&node, parent.dir()?.entries, cookie, &entry, &mut batch);
        let late = self.tree.defects().has(Defect::LinkCountLater);
        if !late {
            put_inode(&mut batch, ino, &inode);
        }
        self.update(&mut batch, &node, &mut parent.state, above)?;
        if late {
            let mut count = Batch::new();
            put_inode(&mut count, ino, &inode);
            self.tree.apply(&count)?;
        }
        let attributes = attributes(ino, &inode);
        state.set(inode);
        self.table.retain(&child);
        child.set_seen_in(node.ino);
        Ok(attributes)
    }

    /// Takes a name away. The inode goes with its last name, once nobody uses it.
    pub fn unlink(&self, parent: Ino, name: &[u8], caller: &Caller) -> Result<()> {
        self.remove(parent, name, false, caller)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8], caller: &Caller) -> Result<()> {
        self.remove(parent, name, true, caller)
    }

    fn remove(&self, parent: Ino, name: &[u8], directory: bool, caller: &Caller) -> Result<()> {
        check_name(name)?;
        let node = self.node(parent);
        let mut parent = self.parent_for_change(&node)?;
        let Found::Entry(cookie, entry) = self.find(&parent, name)? else {
            return Err(FsError::NotFound);
        };
        match (entry.kind == Kind::Directory, directory) {
            (true, false) => return Err(FsError::IsDirectory),
            (false, true) => return Err(FsError::NotDirectory),
            _ => {}
        }
        let child = self.node(entry.ino);
        let mut state = self.lock_named(&child)?;
        let mut above = parent.touched(caller.now)?;
        let (left, mut change) = self.unlinked(&child, &state, &mut above, caller)?;
        change.batch.delete(&entry_key(parent.dir()?.entries, cookie));
        self.update(&mut change.batch, &node, &mut parent.state, above)?;
        if self.set_unlinked(&child, &mut state, left) {
            drop((state, parent));
            self.reclaim_if_unlinked(&child)?;
        }
        Ok(())
    }

    /// Begins a change that takes one of its names from an inode, and takes it off the parent's counts. Returns what is left of it.
    fn unlinked(
        &self,
        node: &Node,
        state: &State,
        above: &mut Inode,
        caller: &Caller,
    ) -> Result<(Left, Remap)> {
        let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
        if let Some(dir) = inode.dir {
            if dir.count > 0 {
                return Err(FsError::NotEmpty);
            }
            inode.links = 0;
            above.links = above.links.saturating_sub(1);
        } else {
            let links = inode.links.checked_sub(1);
            inode.links = links.ok_or_else(|| FsError::damaged(node.ino, "it has a name, but no links"))?;
        }
        inode.ctime = caller.now;
        count_entry(above, false)?;
        // What cannot be read here does not keep a name from going.
        let mut change = Remap::default();
        if inode.links == 0 && self.table.is_referenced(node) {
            if let Ok(Some(contents)) = self.collect_detachment(node.ino, &inode, &mut change) {
                return Ok((Left::Detached(inode, contents), change));
            }
        } else if inode.links == 0
            && let Ok(true) = self.collect_deletion(node.ino, &inode, EXTENTS_PER_BATCH, &mut change)
            // Counts of shared blocks may need space to change.
            && change.shares.is_empty()
        {
            if self.unfinished.contains(node.ino) {
                change.batch.delete(&orphan_key(node.ino));
            }
            return Ok((Left::Nothing, change));
        }
        let mut change = Remap::default();
        if inode.links == 0 && !self.tree.defects().has(Defect::UnlinkWithoutMark) {
            change.batch.put(&orphan_key(node.ino), &Orphan::Unlinked.encode());
        }
        put_inode(&mut change.batch, node.ino, &inode);
        Ok((Left::Inode(inode), change))
    }

    /// What [`Fs::unlinked`] began has been done; whether the inode may be still in the tree, without a name.
    fn set_unlinked(&self, node: &Node, state: &mut State, left: Left) -> bool {
        match left {
            Left::Inode(inode) => {
                let orphan = inode.links == 0;
                state.set(inode);
                return orphan;
            }
            Left::Detached(inode, contents) => {
                state.set_detached(inode, contents);
                self.drop_if_unused(node, state);
            }
            Left::Nothing => self.set_deleted(node, state),
        }
        false
    }

    /// Moves a name, atomically.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
        caller: &Caller,
    ) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        match mode {
            RenameMode::Whiteout { .. } => self.admit()?,
            _ => self.admit_change()?,
        }
        // One lock for all moves between directories: ancestry stands still while it is held.
        let _moves = (parent != new_parent).then(|| self.renames.lock());
        let (node, new_node) = (self.node(parent), self.node(new_parent));
        let old_is_above = parent == new_parent || self.is_ancestor(parent, new_parent)?;
        let new_is_above = parent != new_parent && self.is_ancestor(new_parent, parent)?;
        let (mut from, mut to);
        if parent == new_parent {
            (from, to) = (self.parent_for_change(&node)?, None);
        } else if old_is_above || !new_is_above && parent < new_parent {
            from = self.parent_for_change(&node)?;
            to = Some(self.parent_for_change(&new_node)?);
        } else {
            to = Some(self.parent_for_change(&new_node)?);
            from = self.parent_for_change(&node)?;
        }
        let Found::Entry(cookie, entry) = self.find(&from, name)? else {
            return Err(FsError::NotFound);
        };
        let found = self.find(to.as_ref().unwrap_or(&from), new_name)?;
        let target = match (found, mode) {
            (Found::Entry(..), RenameMode::NoReplace | RenameMode::Whiteout { replace: false }) => {
                return Err(FsError::Exists);
            }
            (Found::Free(_), RenameMode::Exchange) => return Err(FsError::NotFound),
            (found, _) => found,
        };
        // A directory cannot move below itself, nor take the place of one that it lies in.
        if entry.kind == Kind::Directory && parent != new_parent && self.is_ancestor(entry.ino, new_parent)? {
            return Err(FsError::Invalid);
        }
        if let Found::Entry(_, other) = &target {
            if other.ino == entry.ino {
                return Ok(());
            }
            let above = other.kind == Kind::Directory
                && parent != new_parent
                && self.is_ancestor(other.ino, parent)?;
            match mode {
                RenameMode::Exchange if above => return Err(FsError::Invalid),
                RenameMode::Exchange => {}
                _ if above => return Err(FsError::NotEmpty),
                _ if entry.kind == Kind::Directory && other.kind != Kind::Directory => {
                    return Err(FsError::NotDirectory);
                }
                _ if entry.kind != Kind::Directory && other.kind == Kind::Directory => {
                    return Err(FsError::IsDirectory);
                }
                _ => {}
            }
        }
        // Both parents are locked, and no sound entry leads to one of them from here on.
        let other = if let Found::Entry(_, other) = &target { other.ino } else { entry.ino };
        if let Some(ino) = [entry.ino, other].into_iter().find(|ino| [parent, new_parent].contains(ino)) {
            return Err(FsError::damaged(ino, "a name of a file leads to this directory"));
        }
        let moved = Moved { cookie, entry, target, name, new_name, mode };
        let victim = self.move_entry(&mut from, &mut to, moved, caller)?;
        drop((from, to));
        victim.map_or(Ok(()), |ino| self.reclaim_if_unlinked(&self.node(ino)))
    }

    /// The last part of [`Fs::rename`]: both parents are locked. Returns the inode whose name was replaced.
    fn move_entry(
        &self,
        from: &mut Parent<'_>,
        to: &mut Option<Parent<'_>>,
        moved: Moved<'_>,
        caller: &Caller,
    ) -> Result<Option<Ino>> {
        let Moved { cookie, entry, target, name, new_name, mode } = moved;
        let now = caller.now;
        let from_ino = from.node.ino;
        let to_ino = to.as_ref().map_or(from_ino, |t| t.node.ino);
        let (from_group, to_group) =
            (from.dir()?.entries, to.as_ref().map_or_else(|| from.dir(), Parent::dir)?.entries);
        let mut old_above = from.touched(now)?;
        let mut new_above = to.as_ref().map(|t| t.touched(now)).transpose()?;
        let mut change = Remap::default();
        let (source, other) = (
            self.node(entry.ino),
            match &target {
                Found::Entry(_, other) => Some(self.node(other.ino)),
                Found::Free(_) => None,
            },
        );
        let other_child = match (&target, &other) {
            (Found::Entry(_, entry), Some(node)) => Some((&**node, entry.kind)),
            _ => None,
        };
        let (mut source_state, mut other_state) = self.lock_two((&source, entry.kind), other_child)?;
        let mut source_inode = source_state.get().ok_or(FsError::NotFound)?.clone();
        source_inode.ctime = now;
        let mut other_left = None;
        let mut victim = false;
        let new_cookie = match (&target, &other, other_state.as_ref()) {
            (Found::Entry(place, other_entry), Some(node), Some(state)) => {
                if mode == RenameMode::Exchange {
                    let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
                    inode.ctime = now;
                    if let Some(dir) = &mut inode.dir {
                        dir.parent = from_ino;
                        old_above.links = old_above.links.saturating_add((to_ino != from_ino) as u32);
                        if let Some(above) = &mut new_above {
                            above.links = above.links.saturating_sub(1);
                        }
                    }
                    let back = Entry { name: name.to_vec(), ..other_entry.clone() };
                    self.put_entry(from.node, from_group, cookie, &back, &mut change.batch);
                    put_inode(&mut change.batch, node.ino, &inode);
                    other_left = Some(Left::Inode(inode));
                } else {
                    let above = new_above.as_mut().unwrap_or(&mut old_above);
                    let (left, begun) = self.unlinked(node, state, above, caller)?;
                    (other_left, change) = (Some(left), begun);
                    victim = true;
                }
                *place
            }
            (Found::Free(place), _, _) => place.ok_or(FsError::NoSpace)?,
            _ => return Err(FsError::NotFound),
        };
        let batch = &mut change.batch;
        let leaves_whiteout = matches!(mode, RenameMode::Whiteout { .. });
        if leaves_whiteout {
            let new = (New::Special(Kind::CharDevice, 0), 0, 0);
            let (ino, inode) = self.bear(from, &mut old_above, new, caller, batch)?;
            let whiteout = Entry { ino, kind: inode.kind, name: name.to_vec() };
            self.put_entry(from.node, from_group, cookie, &whiteout, batch);
        } else if mode != RenameMode::Exchange {
            batch.delete(&entry_key(from_group, cookie));
            count_entry(&mut old_above, false)?;
        }
        if mode != RenameMode::Exchange {
            if self.tree.defects().has(Defect::RenameInTwoBatches) {
                self.tree.apply(batch)?;
            }
            count_entry(new_above.as_mut().unwrap_or(&mut old_above), true)?;
        }
        if let Some(dir) = &mut source_inode.dir {
            dir.parent = to_ino;
            if let Some(above) = &mut new_above {
                if above.links >= LINK_MAX {
                    return Err(FsError::TooManyLinks);
                }
                old_above.links = old_above.links.saturating_sub(1);
                above.links += 1;
            }
        }
        let entry = Entry { name: new_name.to_vec(), ..entry };
        let to_node = to.as_ref().map_or(from.node, |t| t.node);
        self.put_entry(to_node, to_group, new_cookie, &entry, batch);
        put_inode(batch, source.ino, &source_inode);
        if let Some(above) = &new_above {
            put_inode(batch, to_ino, above);
        }
        self.update(batch, from.node, &mut from.state, old_above)?;
        from.state.births_are_free |= leaves_whiteout;
        if let (Some(to), Some(above)) = (to, new_above) {
            to.state.set(above);
        }
        source_state.set(source_inode);
        source.set_seen_in(to_ino);
        if let (Some(node), Some(state), Some(left)) = (&other, &mut other_state, other_left)
            && (self.set_unlinked(node, state, left) && victim)
        {
            return Ok(Some(node.ino));
        }
        Ok(None)
    }

    /// Locks an inode that an entry leads to, whose directory is locked.
    fn lock_named<'n>(&self, node: &'n Node) -> Result<RwLockWriteGuard<'n, State>> {
        self.lock(node).map_err(|e| if_named(node.ino, e))
    }

    /// Locks one or two children: directories first, since a file may have another name in one of them, and by their numbers (I2).
    fn lock_two<'n>(
        &self,
        a: (&'n Node, Kind),
        b: Option<(&'n Node, Kind)>,
    ) -> Result<(RwLockWriteGuard<'n, State>, Option<RwLockWriteGuard<'n, State>>)> {
        let order = |(node, kind): (&Node, Kind)| (kind != Kind::Directory, node.ino);
        match b {
            Some(b) if order(b) < order(a) => {
                let second = self.lock_named(b.0)?;
                Ok((self.lock_named(a.0)?, Some(second)))
            }
            b => {
                let first = self.lock_named(a.0)?;
                Ok((first, b.map(|b| self.lock_named(b.0)).transpose()?))
            }
        }
    }

    /// Whether `above` is `ino` or lies on its way to the root. Between directories nothing moves (`renames` is held, or both are
    /// the same), and each step locks one inode for a moment.
    fn is_ancestor(&self, above: Ino, ino: Ino) -> Result<bool> {
        let mut at = ino;
        // Brent's algorithm: a stop that is moved up to where the way has come, less and less often; who passes it again goes in a circle.
        let (mut stop, mut steps, mut limit) = (ino, 0u64, 16);
        loop {
            if at == above {
                return Ok(true);
            }
            if at == ROOT {
                return Ok(false);
            }
            let node = self.node(at);
            // The inode may be locked by this very thread as a parent: its record in the tree says the same.
            let parent = match node.state.try_read().and_then(|s| s.get().and_then(|i| i.dir)) {
                Some(dir) => dir.parent,
                None => {
                    let record = self.tree.get(&inode_key(at))?.ok_or(FsError::NotFound)?;
                    Inode::decode(at, &record)?.dir.ok_or(FsError::NotDirectory)?.parent
                }
            };
            at = parent;
            if at == stop {
                return Err(FsError::damaged(ino, "its parents lead in a circle"));
            }
            steps += 1;
            if steps == limit {
                (stop, steps, limit) = (at, 0, limit * 2);
            }
        }
    }
}

/// The error of reading an inode that has a name: it must be there.
pub(super) fn if_named(ino: Ino, error: FsError) -> FsError {
    match error {
        FsError::NotFound => FsError::damaged(ino, "it has a name, but no record"),
        error => error,
    }
}

/// A rename whose names have been looked up.
struct Moved<'a> {
    cookie: Cookie,
    entry: Entry,
    target: Found,
    name: &'a [u8],
    new_name: &'a [u8],
    mode: RenameMode,
}
