//! Directory entries: hashed names, and reading in the order of their cookies.

use std::hash::Hasher;
use std::ops::ControlFlow;
use std::sync::Arc;

use siphasher::sip::SipHasher24;

use super::error::{FsError, Result};
use super::format::*;
use super::namespace::if_named;
use super::table::Node;
use super::{Attributes, Fs, Inner, attributes};
use crate::tree::{Batch, Cursor};

/// The greatest hash; 0 and this + 1 are left free for marks.
const HASH_MAX: u64 = (1 << 55) - 2;

/// The hash of a name: SipHash-2-4 with the image's own seed, so that nobody can aim collisions.
pub fn name_hash(seed: &[u8; 16], name: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(seed);
    hasher.write(name);
    (hasher.finish() >> 9).clamp(1, HASH_MAX)
}

/// The entry that a cursor is at, if it is one of this group; `dir` is the group's directory.
fn entry_at(cursor: &Cursor<'_>, dir: Ino, group: u64) -> Result<Option<(Cookie, Entry)>> {
    let Some(cookie) = entry_cookie(group, cursor.key()) else { return Ok(None) };
    // Who reads on behind it would not come any further, or the kernel would not take it.
    if place_hash(cookie.0) > HASH_MAX {
        return Err(FsError::damaged(dir, "an entry lies where the hash of no name leads"));
    }
    Ok(Some((cookie, Entry::decode(dir, cursor.value())?)))
}

impl Inner {
    pub(super) fn hash(&self, name: &[u8]) -> u64 {
        name_hash(&self.hash_seed, name)
    }

    /// Looks through all slots of a hash, never stopping at a gap, for the record in which `matches` finds what is sought; or
    /// else finds the lowest free slot. `matches` runs under a leaf's latch.
    pub(super) fn find_slot<T>(
        &self,
        hash: u64,
        key: impl Fn(u64) -> Key,
        place: impl Fn(&[u8]) -> Option<u64>,
        mut matches: impl FnMut(&[u8]) -> Result<Option<T>>,
    ) -> Result<Slot<T>> {
        let (mut free, mut expected) = (None, name_place(hash, 0));
        let taken = self.tree.scan(&key(expected), &key(name_place(hash + 1, 0)), |key, record| {
            let Some(place) = place(key) else { return ControlFlow::Continue(()) };
            match matches(record) {
                Ok(Some(found)) => return ControlFlow::Break(Ok(Slot::Taken(place, found))),
                Ok(None) => {}
                Err(error) => return ControlFlow::Break(Err(error)),
            }
            if place > expected {
                free = free.or(Some(expected));
            }
            expected = place + 1;
            ControlFlow::Continue(())
        })?;
        if let Some(taken) = taken {
            return taken;
        }
        if place_hash(expected) == hash {
            free = free.or(Some(expected));
        }
        Ok(Slot::Free(free))
    }

    /// The entry of a name in a directory that is locked, and its cookie; or else the first free cookie of its hash.
    pub(super) fn find_entry(&self, dir: &Node, group: u64, name: &[u8]) -> Result<Found> {
        let hash = self.hash(name);
        if dir.is_absent(hash) {
            return Ok(Found::Free(Some(Cookie(name_place(hash, 0)))));
        }
        let key = |place| entry_key(group, Cookie(place));
        let place = |key: &[u8]| entry_cookie(group, key).map(|c| c.0);
        let mut absent = true;
        let matches = |record: &[u8]| {
            absent = false;
            let entry = (record.get(ENTRY_HEAD..) == Some(name)).then(|| Entry::decode(dir.ino, record));
            entry.transpose()
        };
        Ok(match self.find_slot(hash, key, place, matches)? {
            Slot::Taken(place, entry) => Found::Entry(Cookie(place), entry),
            Slot::Free(place) => {
                if absent {
                    dir.set_absent(hash);
                }
                Found::Free(place.map(Cookie))
            }
        })
    }

    /// Puts an entry into a directory that is locked for changes.
    pub(super) fn put_entry(&self, dir: &Node, group: u64, cookie: Cookie, entry: &Entry, batch: &mut Batch) {
        dir.forget_absent();
        batch.put_with(&entry_key(group, cookie), |record| entry.encode_into(record));
    }
}

impl Fs {
    /// The inode under a name, and its attributes; adds a reference to it, before anybody can take the name away.
    pub fn lookup_attributes(&self, parent: Ino, name: &[u8]) -> Result<Attributes> {
        check_name(name)?;
        let node = self.node(parent);
        let child = {
            let state = self.lock_shared(&node)?;
            let dir = state.get().ok_or(FsError::NotFound)?.dir.ok_or(FsError::NotDirectory)?;
            match self.find_entry(&node, dir.entries, name)? {
                Found::Entry(_, entry) => self.retained(entry.ino, parent),
                Found::Free(_) => return Err(FsError::NotFound),
            }
        };
        let found = self.node_attributes(&child);
        if found.is_err() {
            self.release_aside(child.ino);
        }
        found
    }

    fn retained(&self, ino: Ino, parent: Ino) -> Arc<Node> {
        let node = self.node(ino);
        node.set_seen_in(parent);
        self.table.retain(&node);
        node
    }

    /// The attributes of an inode that had a name when it was retained.
    fn node_attributes(&self, node: &Node) -> Result<Attributes> {
        let state = self.lock_shared(node).map_err(|e| if_named(node.ino, e))?;
        state.get().map(|inode| attributes(node.ino, inode)).ok_or(FsError::NotFound)
    }

    /// The inode under a name, without a new reference.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Ino> {
        check_name(name)?;
        let node = self.node(parent);
        let state = self.lock_shared(&node)?;
        let inode = state.get().ok_or(FsError::NotFound)?;
        let dir = inode.dir.ok_or(FsError::NotDirectory)?;
        match self.find_entry(&node, dir.entries, name)? {
            Found::Entry(_, entry) => Ok(entry.ino),
            Found::Free(_) => Err(FsError::NotFound),
        }
    }

    /// The directory that a directory lies in.
    pub fn parent(&self, ino: Ino) -> Result<Ino> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        Ok(state.get().and_then(|i| i.dir).ok_or(FsError::NotDirectory)?.parent)
    }

    /// Calls `each` with the entries behind `after`, in the order of their cookies, until it returns `false`. `.` and `..` come
    /// first. What is created or deleted meanwhile may be seen or not; what is there throughout is seen once.
    pub fn read_dir(
        &self,
        ino: Ino,
        after: Cookie,
        mut each: impl FnMut(Cookie, Ino, Kind, &[u8]) -> bool,
    ) -> Result<()> {
        let node = self.node(ino);
        let dir = {
            let state = self.lock_shared(&node)?;
            state.get().and_then(|i| i.dir).ok_or(FsError::NotDirectory)?
        };
        let dots: [(Cookie, Ino, &[u8]); 2] = [(Cookie(1), ino, b"."), (Cookie(2), dir.parent, b"..")];
        for (cookie, ino, name) in dots {
            if after < cookie && !each(cookie, ino, Kind::Directory, name) {
                return Ok(());
            }
        }
        let mut cursor = self.tree.cursor();
        cursor.seek(&entry_key(dir.entries, Cookie(after.0.max(2).saturating_add(1))))?;
        while cursor.next()? {
            let Some((cookie, entry)) = entry_at(&cursor, ino, dir.entries)? else { break };
            if !each(cookie, entry.ino, entry.kind, &entry.name) {
                break;
            }
        }
        Ok(())
    }

    /// Like [`Fs::read_dir`], with the attributes of each inode, for at most `limit` entries. Each inode that `each` takes by
    /// returning `true` has one reference more; `.` and `..` have not.
    ///
    /// The inodes are read in the order of their numbers, which is how they lie in the tree. From the beginning of a large
    /// directory only `.` and `..` are reported: its first entries by hash belong to inodes all over its birth group, so that
    /// their attributes may cost as many reads as there are entries, and nobody has shown yet that he wants them. The kernel
    /// goes on with [`Fs::read_dir`] then, or comes back here once it has looked up one of the names.
    pub fn read_dir_plus(
        &self,
        ino: Ino,
        after: Cookie,
        limit: usize,
        mut each: impl FnMut(Cookie, &Attributes, &[u8]) -> bool,
    ) -> Result<()> {
        let node = self.node(ino);
        let dir = {
            let state = self.lock_shared(&node)?;
            state.get().and_then(|i| i.dir).ok_or(FsError::NotDirectory)?
        };
        let dots: [(Cookie, Ino, &[u8]); 2] = [(Cookie(1), ino, b"."), (Cookie(2), dir.parent, b"..")];
        for (cookie, ino, name) in dots {
            if after < cookie && !each(cookie, &self.attributes(ino)?, name) {
                return Ok(());
            }
        }
        if after < DOTS && dir.count > PLUS_AT_ONCE_MAX {
            return Ok(());
        }
        let entries = self.retained_entries(&node, dir.entries, after, limit.min(PLUS_MAX))?;
        let mut result = self.load_nodes(&entries);
        let mut going = result.is_ok();
        for (cookie, node, name) in entries {
            let mut taken = false;
            if going {
                match self.node_attributes(&node) {
                    Ok(attributes) => {
                        taken = each(cookie, &attributes, &name);
                        going = taken;
                    }
                    // Its entry has no inode: the image is damaged.
                    Err(e) => (result, going) = (Err(e), false),
                }
            }
            if !taken {
                self.release_aside(node.ino);
            }
        }
        result
    }

    /// The entries behind a cookie, each with a reference to its inode that was taken while the entry was there.
    fn retained_entries(
        &self,
        node: &Node,
        group: u64,
        after: Cookie,
        limit: usize,
    ) -> Result<Vec<Retained>> {
        let _unchanged = self.lock_shared(node)?;
        let mut found = Vec::new();
        let mut cursor = self.tree.cursor();
        cursor.seek(&entry_key(group, Cookie(after.0.max(2).saturating_add(1))))?;
        while found.len() < limit && cursor.next()? {
            let Some((cookie, entry)) = entry_at(&cursor, node.ino, group)? else { break };
            found.push((cookie, entry.ino, entry.name));
        }
        Ok(found
            .into_iter()
            .map(|(cookie, ino, name)| (cookie, self.retained(ino, node.ino), name))
            .collect())
    }

    /// Reads the records of nodes that have none yet, with one cursor, in the order of their numbers. What is not found is left to
    /// who asks for it.
    fn load_nodes(&self, entries: &[Retained]) -> Result<()> {
        let unread = |node: &&Node| node.state.try_read().is_none_or(|state| state.get().is_none());
        let mut nodes: Vec<&Node> = entries.iter().map(|(_, node, _)| &**node).filter(unread).collect();
        nodes.sort_unstable_by_key(|node| node.ino);
        nodes.dedup_by_key(|node| node.ino);
        let keys: Vec<_> = nodes.iter().map(|node| inode_key(node.ino)).collect();
        self.tree.will_get(&keys)?;
        let mut cursor = self.tree.cursor();
        let mut before: Option<Ino> = None;
        for (node, key) in nodes.into_iter().zip(keys) {
            // To a neighbour it is a few steps, elsewhere a descent.
            if before.is_none_or(|at| at.group() != node.ino.group() || node.ino.0 - at.0 > NEAR) {
                cursor.seek(&key)?;
            }
            before = None;
            while cursor.next()? {
                if cursor.key() >= &*key {
                    if cursor.key() == &*key {
                        node.state.write().fill(Inode::decode(node.ino, cursor.value())?);
                        before = Some(node.ino);
                    }
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Entries that one call of [`Fs::read_dir_plus`] reports at the most.
const PLUS_MAX: usize = 1024;
/// The cookie of `..`: the entries follow.
const DOTS: Cookie = Cookie(2);
/// The entries of a directory whose attributes are read along from the first call on.
const PLUS_AT_ONCE_MAX: u64 = 2048;
/// Inode numbers between two neighbours to which a cursor walks.
const NEAR: u64 = 16;

/// An entry, and the node of its inode with a reference.
type Retained = (Cookie, Arc<Node>, Vec<u8>);

/// What a search through the slots of a hash found.
pub(super) enum Slot<T> {
    /// The record, at this hash and slot.
    Taken(u64, T),
    /// A place for it; `None` if all slots of its hash are taken.
    Free(Option<u64>),
}

/// What a search for a name found.
pub(super) enum Found {
    /// The entry.
    Entry(Cookie, Entry),
    /// A place for it; `None` if all slots of its hash are taken.
    Free(Option<Cookie>),
}

/// Refuses what cannot be a name of an entry.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(FsError::NameTooLong);
    }
    if is_name(name) { Ok(()) } else { Err(FsError::Invalid) }
}
