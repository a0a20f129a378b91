//! Repairs of records: ordinary batches through the tree, so each is done or not, whenever power fails.
//!
//! Steps that set fields of one inode are put together. A step that meets something else than it expects is left out: the next
//! round looks again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::fix::{Fix, Remade};
use super::shared::SharedRuns;
use super::{Result, replay_options};
use crate::fs::format::*;
use crate::fs::name_hash;
use crate::page::{BLOCK_SIZE, BlockNo, Run};
use crate::storage::Storage;
use crate::tree::{Batch, Tree};

/// Records that one batch changes at the most.
const BATCH_MAX: usize = 64;
/// The directory for what has lost its name.
const LOST_FOUND: &[u8] = b"lost+found";
/// Names that are tried where one is taken.
const NAMES_MAX: u32 = 1000;

/// What became of it.
#[derive(Default)]
pub(super) struct Applied {
    pub lost_names: u64,
    pub reconnected: u64,
}

struct Apply<'a> {
    tree: &'a Tree,
    batch: Batch,
    applied: Applied,
    seed: [u8; 16],
    /// Numbers of groups that are taken: only if the counter has come to its end.
    taken: Option<BTreeSet<u64>>,
    /// No number below this is free.
    free: u64,
    /// The greatest number born in a group, where it was asked for.
    last_born: BTreeMap<u64, u32>,
    /// Blocks may have two owners.
    contested: bool,
}

/// Does the steps that change records.
pub(super) fn apply(storage: &Arc<dyn Storage>, fixes: &[Fix], shared: &mut SharedRuns) -> Result<Applied> {
    let tree = Tree::open(storage.clone(), &replay_options(&**storage))?;
    let seed = tree.hash_seed();
    let contested = fixes.iter().any(|fix| matches!(fix, Fix::Unshare(_) | Fix::Contested));
    let (batch, applied) = (Batch::new(), Applied::default());
    let (taken, free, last_born) = (None, 1, BTreeMap::new());
    let mut apply = Apply { tree: &tree, batch, applied, seed, taken, free, last_born, contested };
    let root_first = fixes.contains(&Fix::Root);
    if root_first {
        // Names in it mean something again only now.
        apply.root()?;
    } else {
        for fix in fixes {
            apply.simple(fix)?;
        }
        apply.flush()?;
        // Until this is done, counts of blocks that are too high, also of files that have been made again, tell the next run that something is
        // lost.
        for fix in fixes.iter().filter(|fix| matches!(fix, Fix::LoseRange(..))) {
            apply.moves(fix)?;
        }
        apply.fields(fixes)?;
        for fix in fixes.iter().filter(|fix| matches!(fix, Fix::Delete(_))) {
            apply.moves(fix)?;
        }
        for fix in fixes.iter().filter(|fix| !matches!(fix, Fix::LoseRange(..) | Fix::Delete(_))) {
            apply.moves(fix)?;
        }
        if fixes.contains(&Fix::SharedCounts) {
            apply.shared_counts(shared)?;
        }
        // While they are there, nobody makes what was being deleted again.
        let marks = fixes.iter().filter_map(|fix| if let Fix::Delete(key) = fix { Some(key) } else { None });
        for key in marks.filter(|key| orphan_ino(key).is_some()) {
            apply.batch.delete(key);
            apply.flush_if_full()?;
        }
    }
    apply.flush()?;
    let applied = apply.applied;
    tree.close()?;
    Ok(applied)
}

impl Apply<'_> {
    fn flush(&mut self) -> Result<()> {
        if !self.batch.is_empty() {
            self.tree.apply(&self.batch)?;
            self.batch.clear();
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.batch.len() >= BATCH_MAX { self.flush() } else { Ok(()) }
    }

    fn inode(&self, ino: Ino) -> Result<Option<Inode>> {
        let record = self.tree.get(&inode_key(ino))?;
        Ok(record.and_then(|record| Inode::decode(ino, &record).ok()))
    }

    /// Steps that need to know nothing else.
    fn simple(&mut self, fix: &Fix) -> Result<()> {
        match fix {
            Fix::Delete(key) if !names_blocks(key) && orphan_ino(key).is_none() => self.batch.delete(key),
            Fix::DeleteName(key) => {
                self.batch.delete(key);
                self.applied.lost_names += 1;
            }
            Fix::EntryKind(key, kind) => {
                if let Some(entry) = self.tree.get(key)?.and_then(|r| Entry::decode(ROOT, &r).ok()) {
                    self.batch.put(key, &Entry { kind: *kind, ..entry }.encode());
                }
            }
            Fix::State(next) => self.batch.put(&state_key(), &encode_state(*next)),
            Fix::Remake(ino, remade) => {
                let Remade { size, lost, blocks, xattrs, flags } = *remade;
                // One block more than there are, until all that is lost is marked: that tells the next run.
                let new = self.new_inode(Kind::File, 0o600)?;
                let inode = Inode { size, blocks: blocks + 1, xattrs, flags, ..new };
                self.batch.put(&inode_key(*ino), &inode.encode());
                if lost < size {
                    self.batch.put(&extent_key(*ino, size), &Extent::Lost { len: size - lost }.encode());
                }
            }
            Fix::Orphan(ino) => self.batch.put(&orphan_key(*ino), &Orphan::Unlinked.encode()),
            _ => {}
        }
        self.flush_if_full()
    }

    /// Fields of inodes, those of one inode together.
    fn fields(&mut self, fixes: &[Fix]) -> Result<()> {
        let mut by_inode: BTreeMap<Ino, Vec<&Fix>> = BTreeMap::new();
        for fix in fixes {
            match fix {
                Fix::Next(ino, _)
                | Fix::Count(ino, _)
                | Fix::Parent(ino, _)
                | Fix::Links(ino, _)
                | Fix::Size(ino, _)
                | Fix::Blocks(ino, _)
                | Fix::Xattrs(ino, _)
                | Fix::Flags(ino, _)
                | Fix::Remake(ino, _) => by_inode.entry(*ino).or_default().push(fix),
                _ => {}
            }
        }
        for (ino, fixes) in by_inode {
            let Some(mut inode) = self.inode(ino)? else { continue };
            for fix in fixes {
                match (fix, &mut inode.dir) {
                    (Fix::Next(_, next), Some(dir)) => dir.next = *next,
                    (Fix::Count(_, n), Some(dir)) => dir.count = *n,
                    (Fix::Parent(_, parent), Some(dir)) => dir.parent = *parent,
                    (Fix::Links(_, n), _) => inode.links = *n,
                    (Fix::Size(_, n), _) => inode.size = *n,
                    (Fix::Blocks(_, n), _) => inode.blocks = *n,
                    (Fix::Xattrs(_, n), _) => inode.xattrs = *n,
                    (Fix::Flags(_, n), _) => inode.flags = *n,
                    // All that is lost is marked.
                    (Fix::Remake(_, remade), _) => inode.blocks = remade.blocks,
                    _ => {}
                }
            }
            self.batch.put(&inode_key(ino), &inode.encode());
            self.flush_if_full()?;
        }
        self.flush()
    }

    /// Steps that look for places, numbers or blocks. Each is a batch.
    fn moves(&mut self, fix: &Fix) -> Result<()> {
        match fix {
            Fix::MoveEntry(key) => self.move_entry(key)?,
            Fix::NewBirths(ino) => self.new_group(*ino, |dir, group| (dir.births, dir.next) = (group, 1))?,
            Fix::NewEntries(ino) => {
                self.new_group(*ino, |dir, group| (dir.entries, dir.count) = (group, 0))?
            }
            Fix::Reconnect(ino, links) => self.reconnect(*ino, *links)?,
            Fix::Adopt(group) => self.adopt(*group)?,
            Fix::Unshare(key) => self.unshare(key)?,
            // After the counts of blocks, which know it still.
            Fix::Delete(key) if names_blocks(key) => self.give_up(key)?,
            Fix::Lose(ino, from, run) => self.lose(*ino, *from, *run)?,
            Fix::LoseRange(ino, from, to) => self.lose_range(*ino, *from, *to)?,
            _ => {}
        }
        self.flush()
    }

    /// The root again, as of a new image; counts follow in the next round.
    fn root(&mut self) -> Result<()> {
        let next = self.last_in_group(0)?.map_or(2, |last| last.saturating_add(1).max(2));
        let info = DirInfo { entries: 0, births: 0, next, parent: ROOT, count: 0 };
        let root = Inode { dir: Some(info), links: 2, ..self.new_inode(Kind::Directory, 0o755)? };
        self.batch.put(&inode_key(ROOT), &root.encode());
        Ok(())
    }

    /// The greatest number born in a group.
    fn last_in_group(&self, group: u64) -> Result<Option<u32>> {
        let mut cursor = self.tree.cursor();
        cursor.seek(&inode_key(Ino::new(group, 0)))?;
        let mut last = None;
        while cursor.next()? {
            match AnyKey::parse(cursor.key()) {
                Some(AnyKey::Inode(ino)) if ino.group() == group => last = Some(ino.sequence()),
                _ => break,
            }
        }
        Ok(last)
    }

    /// Takes a group's number.
    fn group(&mut self) -> Result<u64> {
        let record = self.tree.get(&state_key())?;
        let next = record.and_then(|r| decode_state(&r)).unwrap_or(GROUP_MAX);
        if next >= GROUP_MAX {
            return self.free_group();
        }
        let mut batch = Batch::new();
        batch.put(&state_key(), &encode_state(next + 1));
        self.tree.apply(&batch)?;
        Ok(next)
    }

    /// Takes the least number of a group that nothing has. The counter comes to its end only by a forged number: no filesystem lives so long.
    fn free_group(&mut self) -> Result<u64> {
        let taken = match &self.taken {
            Some(taken) => taken,
            None => &*self.taken.insert(taken_groups(self.tree)?),
        };
        let free =
            (self.free..GROUP_MAX).find(|group| !taken.contains(group)).ok_or(crate::Error::NoSpace)?;
        self.free = free + 1;
        Ok(free)
    }

    fn new_group(&mut self, ino: Ino, change: impl FnOnce(&mut DirInfo, u64)) -> Result<()> {
        let group = self.group()?;
        if let Some(mut inode) = self.inode(ino)?
            && let Some(dir) = &mut inode.dir
        {
            change(dir, group);
            self.batch.put(&inode_key(ino), &inode.encode());
        }
        Ok(())
    }

    /// A free place among the records of a name's hash; `Err` if the name is there already.
    fn place(
        &self,
        name: &[u8],
        key: impl Fn(u64) -> Key,
        is: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Key>> {
        let hash = name_hash(&self.seed, name);
        for slot in 0..SLOTS {
            let key = key(name_place(hash, slot));
            match self.tree.get(&key)? {
                None => return Ok(Some(key)),
                Some(record) if is(&record) => return Ok(None),
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// Moves an entry or attribute to the place of its hash. If its name is there already, or no place is free, it goes.
    fn move_entry(&mut self, key: &[u8]) -> Result<()> {
        let Some(record) = self.tree.get(key)? else { return Ok(()) };
        let place = match AnyKey::parse(key) {
            Some(AnyKey::Entry(group, _)) => {
                let Ok(entry) = Entry::decode(ROOT, &record) else { return Ok(()) };
                let same = |r: &[u8]| Entry::decode(ROOT, r).is_ok_and(|e| e.name == entry.name);
                self.place(&entry.name, |place| entry_key(group, Cookie(place)), same)?
            }
            Some(AnyKey::Xattr(ino, _)) => {
                let Ok(xattr) = Xattr::decode(ino, &record) else { return Ok(()) };
                let same = |r: &[u8]| Xattr::decode(ino, r).is_ok_and(|x| x.name == xattr.name);
                self.place(&xattr.name, |place| xattr_key(ino, place), same)?
            }
            _ => return Ok(()),
        };
        self.batch.delete(key);
        match place {
            Some(place) => self.batch.put(&place, &record),
            None => self.applied.lost_names += 1,
        }
        Ok(())
    }

    /// A new inode. It belongs to whom the root belongs to: a user may have an image of his own.
    fn new_inode(&self, kind: Kind, mode: u16) -> Result<Inode> {
        let owner = self.inode(ROOT)?.map_or((0, 0), |root| (root.uid, root.gid));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = Time { seconds: now.as_secs() as i64, nanos: now.subsec_nanos() };
        Ok(Inode::new(kind, mode, owner, now))
    }

    /// A new directory, which nobody else can look into.
    fn new_directory(&self, info: DirInfo) -> Result<Inode> {
        Ok(Inode { dir: Some(info), links: 2, ..self.new_inode(Kind::Directory, 0o700)? })
    }

    /// The number and record of `lost+found`, which is made if need be.
    fn lost_found(&mut self) -> Result<Option<(Ino, Inode)>> {
        let Some(root) = self.inode(ROOT)? else { return Ok(None) };
        let Some(info) = root.dir else { return Ok(None) };
        // What is no directory keeps its name, and so does one that others can look into or change: what was found may have lain where
        // they could not.
        let is_private = |inode: &Inode| [0, root.uid].contains(&inode.uid) && inode.mode & 0o077 == 0;
        for name in names(LOST_FOUND) {
            match self.named(info.entries, &name)? {
                Some(there) => {
                    if let Some(inode) =
                        self.inode(there)?.filter(|inode| inode.dir.is_some() && is_private(inode))
                    {
                        return Ok(Some((there, inode)));
                    }
                }
                None => {
                    let group = self.group()?;
                    let info = DirInfo { entries: group, births: group, next: 1, parent: ROOT, count: 0 };
                    let new = self.new_directory(info)?;
                    let ino = self.birth(ROOT, root, &name, new.clone())?;
                    return Ok(ino.map(|ino| (ino, new)));
                }
            }
        }
        Ok(None)
    }

    /// What a name in a group leads to.
    fn named(&self, group: u64, name: &[u8]) -> Result<Option<Ino>> {
        let hash = name_hash(&self.seed, name);
        for slot in 0..SLOTS {
            let record = self.tree.get(&entry_key(group, Cookie(name_place(hash, slot))))?;
            if let Some(entry) = record.and_then(|r| Entry::decode(ROOT, &r).ok())
                && entry.name == name
            {
                return Ok(Some(entry.ino));
            }
        }
        Ok(None)
    }

    /// A name that is free in a group, this one or one made of it, and a place for it.
    fn free_name(&self, group: u64, name: &[u8]) -> Result<Option<(Vec<u8>, Key)>> {
        for name in names(name) {
            let same = |r: &[u8]| Entry::decode(ROOT, r).is_ok_and(|e| e.name == name);
            if let Some(key) = self.place(&name, |place| entry_key(group, Cookie(place)), same)? {
                return Ok(Some((name, key)));
            }
        }
        Ok(None)
    }

    /// Makes a directory in another one, with this name or one made of it.
    fn birth(&mut self, parent: Ino, mut above: Inode, name: &[u8], new: Inode) -> Result<Option<Ino>> {
        let Some(dir) = &mut above.dir else { return Ok(None) };
        let Some((name, key)) = self.free_name(dir.entries, name)? else { return Ok(None) };
        // One look for many births.
        let last = match self.last_born.get(&dir.births) {
            Some(last) => Some(*last),
            None => self.last_in_group(dir.births)?,
        };
        dir.next = dir.next.max(last.map_or(1, |last| last + 1)).max(1);
        if dir.next >= BIRTHS_MAX {
            (dir.births, dir.next) = (self.group()?, 1);
        }
        let ino = Ino::new(dir.births, dir.next);
        self.last_born.insert(dir.births, dir.next);
        dir.next += 1;
        dir.count += 1;
        above.links += 1;
        self.batch.put(&key, &Entry { ino, kind: Kind::Directory, name }.encode());
        self.batch.put(&inode_key(parent), &above.encode());
        self.batch.put(&inode_key(ino), &new.encode());
        self.flush()?;
        Ok(Some(ino))
    }

    /// Gives an inode the name `#number` in `lost+found`, or one made of it.
    fn reconnect(&mut self, ino: Ino, links: u32) -> Result<()> {
        let Some((home, mut above)) = self.lost_found()? else { return Ok(()) };
        let Some(mut inode) = self.inode(ino)?.filter(|_| ino != home) else { return Ok(()) };
        let Some(dir) = &mut above.dir else { return Ok(()) };
        let name = format!("#{}", ino.0).into_bytes();
        let Some((name, key)) = self.free_name(dir.entries, &name)? else { return Ok(()) };
        dir.count += 1;
        inode.links = links;
        if let Some(dir) = &mut inode.dir {
            dir.parent = home;
            above.links += 1;
        }
        self.batch.put(&key, &Entry { ino, kind: inode.kind, name }.encode());
        self.batch.put(&inode_key(home), &above.encode());
        self.batch.put(&inode_key(ino), &inode.encode());
        self.applied.reconnected += 1;
        self.flush()
    }

    /// Makes a directory in `lost+found` whose entries are those of a group without a directory. Its counts follow in the
    /// next round.
    fn adopt(&mut self, group: u64) -> Result<()> {
        let Some((home, above)) = self.lost_found()? else { return Ok(()) };
        let births = self.group()?;
        let info = DirInfo { entries: group, births, next: 1, parent: home, count: 0 };
        let new = self.new_directory(info)?;
        let name = format!("#group-{group}").into_bytes();
        if self.birth(home, above, &name, new)?.is_some() {
            self.applied.reconnected += 1;
        }
        Ok(())
    }

    /// Gives contents whose blocks are in use elsewhere, too, blocks of their own, if the checksums are right. If not, the blocks
    /// hold something else by now, and the contents are given up.
    fn unshare(&mut self, key: &[u8]) -> Result<()> {
        let Some(record) = self.tree.get(key)? else { return Ok(()) };
        match AnyKey::parse(key) {
            Some(AnyKey::Extent(ino, end)) => {
                let Ok(Extent::Blocks { len, start, shared, crcs }) = Extent::decode(ino, end, &record)
                else {
                    return Ok(());
                };
                let mut bytes = vec![0; crcs.len() * BLOCK_SIZE];
                let right = self.tree.read_blocks(start, &mut bytes).is_ok()
                    && bytes.chunks(BLOCK_SIZE).zip(&crcs).all(|(b, crc)| crc32fast::hash(b) == *crc);
                if !right || crcs.is_empty() {
                    return self.give_up(key);
                }
                let begin = end - len as u64;
                // Piece by piece, from the front: the record keeps what is not copied yet.
                let mut at = 0;
                while at < crcs.len() {
                    let run = self.copy(&bytes[at * BLOCK_SIZE..])?;
                    let to = at + run.len as usize;
                    if to < crcs.len() {
                        let start = BlockNo(start.0 + to as u64);
                        let rest = piece(len, &crcs, to..crcs.len(), start, shared);
                        self.batch.put(key, &rest.encode());
                    }
                    let copied = piece(len, &crcs, at..to, run.start, false);
                    let until = end.min(begin + (to * BLOCK_SIZE) as u64);
                    self.batch.put(&extent_key(ino, until), &copied.encode());
                    self.flush()?;
                    at = to;
                }
            }
            Some(AnyKey::Xattr(ino, _)) => {
                let Ok(xattr) = Xattr::decode(ino, &record) else { return Ok(()) };
                let XattrValue::Blocks { len, start, crc } = xattr.value else { return Ok(()) };
                let mut bytes = vec![0; (len as usize).next_multiple_of(BLOCK_SIZE)];
                let right = self.tree.read_blocks(start, &mut bytes).is_ok()
                    && crc32fast::hash(&bytes[..len as usize]) == crc;
                if !right {
                    return self.give_up(key);
                }
                let run = self.copy(&bytes)?;
                if (run.len as usize) < bytes.len() / BLOCK_SIZE {
                    return Err(crate::Error::NoSpace.into());
                }
                let value = XattrValue::Blocks { len, start: run.start, crc };
                self.batch.put(key, &Xattr { value, ..xattr }.encode());
            }
            _ => {}
        }
        Ok(())
    }

    /// Gives up blocks of a file that lie at byte `from` of it, if they still do. Shared ones are freed when the counts are written again.
    fn lose(&mut self, ino: Ino, from: u64, run: Run) -> Result<()> {
        let tree = self.tree;
        let mut cursor = tree.cursor();
        cursor.seek(&extent_key(ino, from.saturating_add(1)))?;
        if !cursor.next()? {
            return Ok(());
        }
        let key = cursor.key();
        let Some(AnyKey::Extent(owner, end)) = AnyKey::parse(key) else { return Ok(()) };
        let Ok(Extent::Blocks { len, start, shared, crcs }) = Extent::decode(ino, end, cursor.value()) else {
            return Ok(());
        };
        let begin = end - len as u64;
        let first = from.saturating_sub(begin) / BLOCK_SIZE as u64;
        let there = owner == ino && from >= begin && start.0 + first == run.start.0;
        if !there || run.len == 0 || first + run.len as u64 > crcs.len() as u64 {
            return Ok(());
        }
        let (from, to) = (first as usize, first as usize + run.len as usize);
        let (lost, behind) = (begin + (from * BLOCK_SIZE) as u64, end.min(begin + (to * BLOCK_SIZE) as u64));
        self.batch.delete(key);
        if from > 0 {
            let before = piece(len, &crcs, 0..from, start, shared);
            self.batch.put(&extent_key(ino, lost), &before.encode());
        }
        self.batch.put(&extent_key(ino, behind), &Extent::Lost { len: behind - lost }.encode());
        if to < crcs.len() {
            let rest = piece(len, &crcs, to..crcs.len(), BlockNo(start.0 + to as u64), shared);
            self.batch.put(key, &rest.encode());
        }
        // What another one may own is found free by the next round, when the bitmaps are compared.
        if !shared && !self.contested {
            self.batch.free(run);
        }
        // With a count of blocks that is too high, all holes of the file would be taken for lost.
        if let Some(mut inode) = self.inode(ino)? {
            inode.blocks = inode.blocks.saturating_sub(run.len as u64);
            self.batch.put(&inode_key(ino), &inode.encode());
        }
        Ok(())
    }

    /// Gives up what is not mapped of a file between two bytes.
    fn lose_range(&mut self, ino: Ino, from: u64, to: u64) -> Result<()> {
        self.lose_holes(ino, from, to, &[])
    }

    /// The same, as if there were no record `gone`.
    fn lose_holes(&mut self, ino: Ino, from: u64, to: u64, gone: &[u8]) -> Result<()> {
        const BLOCK: u64 = BLOCK_SIZE as u64;
        let Some(inode) = self.inode(ino)?.filter(|inode| inode.kind == Kind::File) else { return Ok(()) };
        // `to` may come from a key, and be anything.
        let until = to.min(inode.size).next_multiple_of(BLOCK).min(inode.size);
        let mut at = from / BLOCK * BLOCK;
        let tree = self.tree;
        let mut cursor = tree.cursor();
        cursor.seek(&extent_key(ino, at + 1))?;
        while at < until {
            // What cannot be read is not there.
            let (begin, end) = loop {
                match if cursor.next()? { AnyKey::parse(cursor.key()) } else { None } {
                    Some(AnyKey::Extent(owner, end)) if owner == ino => {
                        if cursor.key() != gone
                            && let Ok(extent) = Extent::decode(ino, end, cursor.value())
                        {
                            break (end.saturating_sub(extent.length()), end);
                        }
                    }
                    _ => break (u64::MAX, u64::MAX),
                }
            };
            let hole = begin.min(until);
            if hole > at {
                self.batch.put(&extent_key(ino, hole), &Extent::Lost { len: hole - at }.encode());
            }
            at = at.max(end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX));
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Writes contents to new blocks, as many of them as find room side by side. What is right is not given up because there is no
    /// room for it: that is an error.
    fn copy(&mut self, bytes: &[u8]) -> Result<Run> {
        let run = self.tree.reserve_blocks((bytes.len() / BLOCK_SIZE) as u32)?;
        self.tree.write_blocks(run.start, &bytes[..run.len as usize * BLOCK_SIZE])?;
        self.batch.allocate(run);
        Ok(run)
    }

    /// Deletes an extent or an attribute, and takes its blocks out of the inode's count: with one that is too high, all holes of the
    /// file would be taken for lost. Contents that were written are marked as lost, where no other extent has them.
    fn give_up(&mut self, key: &[u8]) -> Result<()> {
        self.flush()?;
        let Some(record) = self.tree.get(key)? else { return Ok(()) };
        self.batch.delete(key);
        let (ino, run) = match AnyKey::parse(key) {
            Some(AnyKey::Xattr(ino, _)) => {
                (ino, Xattr::decode(ino, &record).ok().and_then(|xattr| xattr.run()))
            }
            Some(AnyKey::Extent(ino, end)) => {
                // What it may have held has been marked as lost by a step before this one.
                let Ok(extent) = Extent::decode(ino, end, &record) else { return Ok(()) };
                if self.inode(ino)?.is_none_or(|inode| inode.kind != Kind::File) {
                    return Ok(());
                }
                if !extent.is_unwritten() {
                    self.lose_holes(ino, end.saturating_sub(extent.length()), end, key)?;
                }
                (ino, extent.run())
            }
            _ => return Ok(()),
        };
        if let Some(run) = run
            && let Some(mut inode) = self.inode(ino)?
        {
            inode.blocks = inode.blocks.saturating_sub(run.len as u64);
            self.batch.put(&inode_key(ino), &inode.encode());
        }
        Ok(())
    }

    /// Writes the counts of shared blocks as they are, in the order of their places. What stands there and is right stays.
    fn shared_counts(&mut self, shared: &mut SharedRuns) -> Result<()> {
        let mut changes: BTreeMap<u64, Option<Shared>> =
            shared.true_records().into_iter().map(|(end, count)| (end, Some(count))).collect();
        let mut cursor = self.tree.cursor();
        cursor.seek(&shared_key(0))?;
        while cursor.next()? {
            let Some(end) = shared_end(cursor.key()) else { break };
            let found = Shared::decode(end, cursor.value()).ok();
            match changes.get(&end) {
                Some(right) if *right == found => drop(changes.remove(&end)),
                Some(_) => {}
                None => drop(changes.insert(end, None)),
            }
        }
        drop(cursor);
        for (end, count) in changes {
            match count {
                Some(count) => self.batch.put(&shared_key(end), &count.encode()),
                None => self.batch.delete(&shared_key(end)),
            }
            self.flush_if_full()?;
        }
        Ok(())
    }
}

/// Some of the blocks of an extent of `len` bytes, as an extent that lies at `start`.
fn piece(len: u32, crcs: &[u32], blocks: Range<usize>, start: BlockNo, shared: bool) -> Extent {
    let end = (blocks.end * BLOCK_SIZE).min(len as usize);
    let len = (end - blocks.start * BLOCK_SIZE) as u32;
    Extent::Blocks { len, start, shared, crcs: crcs[blocks].to_vec() }
}

/// A name, and those that stand for it where it is taken: `name.1` and so on.
fn names(name: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..NAMES_MAX).map(move |n| match n {
        0 => name.to_vec(),
        n => [name, format!(".{n}").as_bytes()].concat(),
    })
}

/// Whether a record of this key may name blocks, which its inode counts.
fn names_blocks(key: &[u8]) -> bool {
    matches!(AnyKey::parse(key), Some(AnyKey::Xattr(..) | AnyKey::Extent(..)))
}

/// The groups of all inodes and names, and those that directories give.
fn taken_groups(tree: &Tree) -> Result<BTreeSet<u64>> {
    let mut taken = BTreeSet::new();
    let mut cursor = tree.cursor();
    cursor.seek(&inode_key(Ino(0)))?;
    while cursor.next()? {
        match AnyKey::parse(cursor.key()) {
            Some(AnyKey::Inode(ino)) => {
                taken.insert(ino.group());
                if let Some(dir) = Inode::decode(ino, cursor.value()).ok().and_then(|inode| inode.dir) {
                    taken.extend([dir.entries, dir.births]);
                }
            }
            Some(AnyKey::Entry(group, _)) => {
                taken.insert(group);
            }
            None => {}
            _ => break,
        }
    }
    Ok(taken)
}
