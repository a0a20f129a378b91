//! The filesystem: inodes, directories, file contents and extended attributes as records of the tree.
//!
//! A plain Rust API that knows nothing of FUSE. Every call is one batch of the tree, or a bounded row of them where its
//! size has no bound, so a crash leaves each request applied or not. Permissions are the caller's business.

pub mod acl;
mod atime;
mod cut;
mod dir;
pub mod error;
mod extents;
mod file;
pub mod format;
mod namespace;
mod orphan;
mod paths;
mod read_around;
mod reclaimer;
mod scrub;
mod shared;
mod space;
mod table;
mod xattr;

pub use atime::Atime;
pub use dir::name_hash;
pub use error::{FsError, Result};
pub use file::Fallocate;
pub use format::{Cookie, Ino, Kind, ROOT, Time};
pub use namespace::{New, RenameMode};
pub use scrub::{Finding, Scrub};
pub use space::Usage;
pub use xattr::SetXattr;

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use crate::defects::Defect;
use crate::page::BLOCK_SIZE;
use crate::pool::read_superblock;
use crate::storage::Storage;
use crate::sync::{Mutex, RwLockReadGuard, RwLockWriteGuard, thread};
use crate::tree::{Batch, FormatOptions, Options, Tree};
use format::{DirInfo, GROUP_MAX, Inode, decode_state, encode_state, inode_key, state_key};
use table::{Node, State, Table};

/// Who calls, and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The time of the call.
    pub now: Time,
    /// What the call changes keeps suid and sgid: the caller has CAP_FSETID or, where a mode or an ACL is given, belongs to the
    /// file's group; or a layer above has taken them away already where that is due.
    pub privileged: bool,
    /// Somebody above keeps the times of what is written, and will set them: a write leaves them as they are.
    pub keeps_times: bool,
}

impl Caller {
    /// An ordinary user.
    pub const fn new(uid: u32, gid: u32, now: Time) -> Self {
        Caller { uid, gid, now, privileged: false, keeps_times: false }
    }
}

/// What `stat` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, suid, sgid, sticky.
    pub mode: u16,
    /// Links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes in use.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
    /// Whether there are extended attributes.
    pub has_xattrs: bool,
}

/// Changes of an inode by `chmod`, `chown`, `utimens` and `truncate`. What is `None` stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttributes {
    /// Permission bits, suid, sgid, sticky.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<Time>,
    /// Modification time.
    pub mtime: Option<Time>,
    /// Change time, from a kernel that keeps the times of files that it writes back; otherwise it is the time of the call.
    pub ctime: Option<Time>,
}

/// An open filesystem.
pub struct Fs {
    inner: Arc<Inner>,
    /// The reclaimer.
    thread: Option<thread::JoinHandle<()>>,
}

/// The parts of a filesystem, which its thread uses as well.
pub struct Inner {
    tree: Tree,
    table: Table,
    /// Held while counts of shared blocks are read and changed.
    sharing: Mutex<()>,
    windows: space::Windows,
    read_around: read_around::ReadAround,
    /// Overwrites that take from the image's reserve, one at a time: what one frees is for the next. After an inode's lock.
    overwriting: Mutex<()>,
    reclaimer: reclaimer::Reclaimer,
    /// Files that are still being cut.
    unfinished: cut::Unfinished,
    /// Renames of directories to other parents, one at a time (cycles).
    renames: Mutex<()>,
    groups: Mutex<Groups>,
    hash_seed: [u8; 16],
    /// The [`Atime`].
    atime: AtomicU8,
}

impl std::ops::Deref for Fs {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

/// Numbers for new groups.
struct Groups {
    next: u64,
    /// Numbers below this are taken by the record in the tree.
    reserved: u64,
}

/// Group numbers that one record reserves.
const GROUPS_RESERVED: u64 = 1024;

impl Fs {
    /// Makes an empty filesystem; what the storage held is gone. The root belongs to the caller.
    pub fn format(storage: Arc<dyn Storage>, options: &FormatOptions, caller: &Caller) -> Result<()> {
        Tree::format(&*storage, options)?;
        let tree = Tree::open(storage, &Options { background: false, ..Options::default() })?;
        let dir = DirInfo { entries: 0, births: 0, next: 2, parent: ROOT, count: 0 };
        let root = Inode { dir: Some(dir), links: 2, ..namespace::new_inode(Kind::Directory, 0o755, caller) };
        let mut batch = Batch::new();
        put_inode(&mut batch, ROOT, &root);
        batch.put(&state_key(), &encode_state(1));
        tree.apply(&batch)?;
        Ok(tree.close()?)
    }

    /// Opens a filesystem, with recovery if it was not closed in order, and finishes deletions that a crash interrupted.
    pub fn open(storage: Arc<dyn Storage>, options: &Options) -> Result<Fs> {
        if read_superblock(&*storage)?.lacks_records() {
            return Err(FsError::Engine(crate::Error::half_repaired()));
        }
        let tree = Tree::open(storage, options)?;
        let damaged = || {
            FsError::Engine(crate::Error::corrupt("filesystem", "its state record is missing or impossible"))
        };
        let record = tree.get(&state_key())?.ok_or_else(damaged)?;
        let next = decode_state(&record).ok_or_else(damaged)?;
        let inner = Arc::new(Inner {
            hash_seed: tree.hash_seed(),
            tree,
            table: Table::default(),
            sharing: Mutex::new(()),
            windows: space::Windows::default(),
            read_around: read_around::ReadAround::default(),
            overwriting: Mutex::new(()),
            reclaimer: reclaimer::Reclaimer::new(options.background),
            unfinished: cut::Unfinished::default(),
            renames: Mutex::new(()),
            groups: Mutex::new(Groups { next, reserved: next }),
            atime: AtomicU8::default(),
        });
        if !inner.tree.is_read_only() {
            inner.take_up_orphans()?;
        }
        let thread = Fs::start_reclaimer(&inner)?;
        Ok(Fs { inner, thread })
    }

    /// The engine below.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Makes everything done so far durable.
    pub fn sync(&self) -> Result<()> {
        self.save_atimes(usize::MAX);
        Ok(self.tree.commit_all()?)
    }

    /// Finishes deletions, makes everything durable and marks the image as closed in order.
    pub fn close(mut self) -> Result<()> {
        self.stop_reclaimer();
        if !self.tree.is_read_only() {
            if let Err(e) = self.finish_deletions() {
                log::warn!("deletions are left to the next opening: {e}");
            }
            self.save_atimes(usize::MAX);
        }
        let inner = self.inner.clone();
        drop(self);
        match Arc::into_inner(inner) {
            Some(inner) => Ok(inner.tree.close()?),
            None => Err(FsError::Engine(crate::Error::Unusable("the filesystem is still in use".into()))),
        }
    }

    /// A number for a new group.
    fn new_group(&self) -> Result<u64> {
        let mut groups = self.groups.lock();
        if groups.next >= GROUP_MAX - GROUPS_RESERVED {
            return Err(FsError::NoSpace);
        }
        if groups.next == groups.reserved {
            let reserved = groups.reserved + GROUPS_RESERVED;
            if !self.tree.defects().has(Defect::GroupsUnreserved) {
                let mut batch = Batch::new();
                batch.put(&state_key(), &encode_state(reserved));
                self.tree.apply(&batch)?;
            }
            groups.reserved = reserved;
        }
        groups.next += 1;
        Ok(groups.next - 1)
    }
}

/// Puts an inode's record.
fn put_inode(batch: &mut Batch, ino: Ino, inode: &Inode) {
    batch.put_with(&inode_key(ino), |record| inode.encode_into(record));
}

impl Inner {
    /// Marks the image as damaged if this error says that it is.
    fn note_damage(&self, error: &FsError) {
        if let FsError::Engine(error) = error
            && error.is_damage()
        {
            self.tree.note_damage();
        }
    }

    // -- nodes and their locks ------------------------------------------------------------------------------------

    fn node(&self, ino: Ino) -> Arc<Node> {
        self.table.node(ino)
    }

    /// The node, locked for changes, its record read, and in the tree.
    fn lock<'n>(&self, node: &'n Node) -> Result<RwLockWriteGuard<'n, State>> {
        let mut state = self.lock_in_memory(node)?;
        self.attach(node, &mut state)?;
        Ok(state)
    }

    /// The node, locked for changes, its record read. It may be detached: who changes it in the tree attaches it before. What has a
    /// name, or attributes, is not.
    fn lock_in_memory<'n>(&self, node: &'n Node) -> Result<RwLockWriteGuard<'n, State>> {
        let mut state = node.state.write();
        state.load(&self.tree, node.ino)?;
        Ok(state)
    }

    /// The node, locked for reading, its record read. It may be detached.
    fn lock_shared<'n>(&self, node: &'n Node) -> Result<RwLockReadGuard<'n, State>> {
        let state = node.state.read();
        if state.get().is_some() {
            return Ok(state);
        }
        drop(state);
        let state = self.lock_in_memory(node)?;
        Ok(RwLockWriteGuard::downgrade(state))
    }

    /// Applies a batch that changes the record of a locked inode, and then the record in memory: I1 holds also if it fails.
    fn update(&self, batch: &mut Batch, node: &Node, state: &mut State, inode: Inode) -> Result<()> {
        put_inode(batch, node.ino, &inode);
        self.tree.apply(batch)?;
        state.set(inode);
        Ok(())
    }
}

impl Fs {
    // -- attributes -----------------------------------------------------------------------------------------------

    /// The inode's attributes.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        state.get().map(|inode| attributes(ino, inode)).ok_or(FsError::NotFound)
    }

    /// Changes attributes, and returns them all.
    ///
    /// A new owner clears suid, sgid and capabilities, and so does a change of the size by somebody unprivileged. So does a change of
    /// nothing by the owner or somebody privileged, for that is what arrives of a chown(2) that leaves both owner and group; from
    /// others it is ignored. A mode that is set by somebody unprivileged comes without sgid.
    pub fn set_attributes(&self, ino: Ino, change: &SetAttributes, caller: &Caller) -> Result<Attributes> {
        let node = self.node(ino);
        let mut state = self.lock_in_memory(&node)?;
        let of_nothing = SetAttributes { ctime: None, ..*change } == SetAttributes::default();
        if let Some(inode) = state.get()
            && (of_nothing && !caller.privileged && caller.uid != inode.uid)
        {
            // A kernel does not see to it that this comes from the owner, and also asks for it before it writes, which is no error.
            return Ok(attributes(ino, inode));
        }
        self.attach(&node, &mut state)?;
        let shrinks = change.size.map(|size| self.begin_resize(&node, &mut state, size)).transpose()?;
        let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
        let mut batch = Batch::new();
        if let Some(size) = change.size {
            // Also if it stays the same, as everywhere: make(1) waits for what `> stamp` does to an empty file.
            changed_by(&mut inode, caller);
            inode.size = size;
        }
        if let Some(mode) = change.mode {
            inode.mode = mode & if caller.privileged { 0o7777 } else { 0o5777 };
            self.chmod_acl(ino, &inode, &mut batch)?;
        }
        let chowned = change.uid.is_some() || change.gid.is_some() || of_nothing;
        if chowned {
            inode.uid = change.uid.unwrap_or(inode.uid);
            inode.gid = change.gid.unwrap_or(inode.gid);
            if inode.kind != Kind::Directory && change.mode.is_none() {
                clear_suid(&mut inode);
            }
        }
        if inode.kind != Kind::Directory && (chowned || change.size.is_some()) {
            self.drop_capability(ino, &mut inode, &mut batch)?;
        }
        inode.atime = change.atime.unwrap_or(inode.atime);
        inode.mtime = change.mtime.unwrap_or(inode.mtime);
        inode.ctime = change.ctime.unwrap_or(caller.now);
        if shrinks == Some(true) {
            self.or_after_cleaning(|| self.cut(&node, &mut state, &inode, &batch))?;
            self.cut_rest(&node, &mut state)?;
        } else {
            self.update(&mut batch, &node, &mut state, inode)?;
        }
        state.get().map(|inode| attributes(ino, inode)).ok_or(FsError::NotFound)
    }

    // -- references -----------------------------------------------------------------------------------------------

    /// Keeps an inode in use, also when its last name goes. [`Fs::lookup_attributes`], [`Fs::create`], [`Fs::link`] and
    /// [`Fs::read_dir_plus`] do so themselves, for each inode that they return.
    pub fn retain(&self, ino: Ino) {
        self.table.retain(&self.node(ino));
    }

    /// Gives up `n` references. An inode without a name goes with the last one.
    pub fn release(&self, ino: Ino, n: u64) -> Result<()> {
        self.release_all([(ino, n)])
    }

    /// Gives up references of several inodes. Those that are to be deleted are deleted together, as far as one batch may go. An
    /// error may be that of a deletion that was left to the background before.
    pub fn release_all(&self, references: impl IntoIterator<Item = (Ino, u64)>) -> Result<()> {
        let (mut result, mut any) = (Ok(()), false);
        for (ino, n) in references {
            match self.give_up(ino, n) {
                Ok(doomed) => any |= doomed,
                Err(e) => result = Err(e),
            }
        }
        if any {
            self.reclaim_waiting();
            result = result.and_then(|()| self.failed_deletion());
        }
        result
    }

    /// Gives up one reference, where it is not that which the caller has to tell of.
    pub fn release_aside(&self, ino: Ino) {
        match self.give_up(ino, 1) {
            Ok(true) => self.reclaim_waiting(),
            Ok(false) => {}
            // Mostly what the caller has met itself.
            Err(e) => log::debug!("giving up inode {}: {e}", ino.0),
        }
    }

    /// Takes references away; whether the inode waits to be deleted now.
    fn give_up(&self, ino: Ino, n: u64) -> Result<bool> {
        let node = self.node(ino);
        if !self.table.release(&node, n) {
            return Ok(false);
        }
        self.drop_window(ino);
        let doomed = self.doom_if_unlinked(&node);
        self.table.forget(&node);
        doomed
    }
}

/// Dropping without [`Fs::close`] is like a crash of the process.
impl Drop for Fs {
    fn drop(&mut self) {
        self.stop_reclaimer();
    }
}

/// Clears what must not survive a change by somebody else: suid, and sgid where it means a group to run as.
fn clear_suid(inode: &mut Inode) {
    inode.mode &= !0o4000;
    if inode.mode & 0o010 != 0 {
        inode.mode &= !0o2000;
    }
}

/// What a change of the contents does to their inode.
fn changed_by(inode: &mut Inode, caller: &Caller) {
    if !caller.keeps_times {
        (inode.mtime, inode.ctime) = (caller.now, caller.now);
    }
    if !caller.privileged {
        clear_suid(inode);
    }
}

fn attributes(ino: Ino, inode: &Inode) -> Attributes {
    // Programs take a file without blocks for one that is all holes, and do not read it (tar -S); contents may lie in the tree.
    let has_contents = inode.kind == Kind::File && inode.size > 0;
    Attributes {
        ino,
        kind: inode.kind,
        mode: inode.mode,
        links: inode.links,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size: inode.size,
        blocks: inode.blocks.saturating_mul(BLOCK_SIZE as u64 / 512).max(has_contents as u64),
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        btime: inode.btime,
        has_xattrs: inode.xattrs > 0,
    }
}

#[cfg(test)]
mod tests;
