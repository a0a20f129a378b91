//! Inodes and directory entries.

use super::{FILE_SIZE_MAX, GROUP_MAX, Ino, Writer};
use crate::fs::error::{FsError, Result};
use crate::page::format::{RECORD_MAX, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// The most links to one inode.
pub const LINK_MAX: u32 = 1 << 30;

/// A time: seconds since 1970, and nanoseconds below 10^9 that always count forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: u32,
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Regular file.
    File = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Character device.
    CharDevice = 4,
    /// Block device.
    BlockDevice = 5,
    /// Fifo.
    Fifo = 6,
    /// Socket.
    Socket = 7,
}

impl Kind {
    fn decode(b: u8) -> Option<Kind> {
        use Kind::*;
        [File, Directory, Symlink, CharDevice, BlockDevice, Fifo, Socket].into_iter().find(|k| *k as u8 == b)
    }
}

/// What only directories have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirInfo {
    /// The group of its entries, fixed for life.
    pub entries: u64,
    /// The group in which inodes are born in it.
    pub births: u64,
    /// The sequence of the next birth.
    pub next: u32,
    /// The directory that it lies in; the root's is itself.
    pub parent: Ino,
    /// How many entries it has, `.` and `..` not counted.
    pub count: u64,
}

/// An inode's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// What it has: [`INODE_ACCESS_ACL`], [`INODE_DEFAULT_ACL`], [`INODE_CAPABILITY`].
    pub flags: u8,
    /// Permission bits, suid, sgid and sticky: 12 bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links; a directory has 2 and one for each subdirectory.
    pub links: u32,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 4 KiB in use, for contents and large extended attributes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
    /// Device number.
    pub rdev: u32,
    /// How many extended attributes it has.
    pub xattrs: u32,
    /// What only directories have.
    pub dir: Option<DirInfo>,
    /// The target, if it is a symbolic link.
    pub target: Vec<u8>,
}

/// The inode has an access ACL, among its extended attributes.
pub const INODE_ACCESS_ACL: u8 = 1;
/// The directory has a default ACL, among its extended attributes.
pub const INODE_DEFAULT_ACL: u8 = 2;
/// The inode has `security.capability`, which goes when it is changed.
pub const INODE_CAPABILITY: u8 = 4;
const INODE_FLAGS: u8 = INODE_ACCESS_ACL | INODE_DEFAULT_ACL | INODE_CAPABILITY;

/// Bytes of an inode's record, in front of what directories and symbolic links have.
const INODE_SIZE: usize = 96;
/// Where its zeros begin, which nothing uses yet.
const INODE_ZERO: usize = 88;
/// Bytes of what directories have.
const DIR_SIZE: usize = 36;
const _: () = assert!(INODE_SIZE + SYMLINK_MAX > RECORD_MAX, "long targets need a place of their own");

fn time(b: &[u8], at: usize) -> Option<Time> {
    let (seconds, nanos) = (get_u64(b, at) as i64, get_u32(b, at + 8));
    (nanos < 1_000_000_000).then_some(Time { seconds, nanos })
}

impl Inode {
    /// A new inode without contents, with one link.
    pub fn new(kind: Kind, mode: u16, (uid, gid): (u32, u32), now: Time) -> Inode {
        Inode {
            kind,
            flags: 0,
            mode: mode & 0o7777,
            uid,
            gid,
            links: 1,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            rdev: 0,
            xattrs: 0,
            dir: None,
            target: Vec::new(),
        }
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut record = Vec::with_capacity(INODE_SIZE + DIR_SIZE + self.target.len());
        self.encode_into(&mut record);
        record
    }

    /// Adds the record's bytes to `record`.
    pub fn encode_into(&self, record: &mut Vec<u8>) {
        let mut b = [0; INODE_SIZE];
        (b[0], b[1]) = (self.kind as u8, self.flags);
        put_u16(&mut b, 2, self.mode);
        put_u32(&mut b, 4, self.uid);
        put_u32(&mut b, 8, self.gid);
        put_u32(&mut b, 12, self.links);
        put_u64(&mut b, 16, self.size);
        put_u64(&mut b, 24, self.blocks);
        for (at, time) in [(32, self.atime), (44, self.mtime), (56, self.ctime), (68, self.btime)] {
            put_u64(&mut b, at, time.seconds as u64);
            put_u32(&mut b, at + 8, time.nanos);
        }
        put_u32(&mut b, 80, self.rdev);
        put_u32(&mut b, 84, self.xattrs);
        record.extend_from_slice(&b);
        if let Some(dir) = &self.dir {
            let mut b = [0; DIR_SIZE];
            put_u64(&mut b, 0, dir.entries);
            put_u64(&mut b, 8, dir.births);
            put_u32(&mut b, 16, dir.next);
            put_u64(&mut b, 20, dir.parent.0);
            put_u64(&mut b, 28, dir.count);
            record.extend_from_slice(&b);
        }
        record.extend_from_slice(&self.target);
    }

    /// Whether a file has neither contents nor blocks allocated: there are no extents then.
    pub fn is_empty(&self) -> bool {
        self.size == 0 && self.blocks == 0
    }

    /// Reads a record, which may be hostile.
    pub fn decode(ino: Ino, b: &[u8]) -> Result<Inode> {
        Self::try_decode(b).ok_or_else(|| FsError::damaged(ino, "its inode record is impossible"))
    }

    fn try_decode(b: &[u8]) -> Option<Inode> {
        if b.len() < INODE_SIZE {
            return None;
        }
        let kind = Kind::decode(b[0])?;
        let rest = &b[INODE_SIZE..];
        let (dir, target) = match kind {
            Kind::Directory if rest.len() == DIR_SIZE => {
                let dir = DirInfo {
                    entries: get_u64(rest, 0),
                    births: get_u64(rest, 8),
                    next: get_u32(rest, 16),
                    parent: Ino(get_u64(rest, 20)),
                    count: get_u64(rest, 28),
                };
                let groups = dir.entries < GROUP_MAX && dir.births < GROUP_MAX;
                (Some(dir).filter(|d| groups && d.parent.0 != 0), Vec::new())
            }
            Kind::Symlink if !rest.is_empty() && rest.len() <= SYMLINK_MAX => (None, rest.to_vec()),
            Kind::Directory | Kind::Symlink => return None,
            _ if rest.is_empty() => (None, Vec::new()),
            _ => return None,
        };
        if (kind == Kind::Directory) != dir.is_some() {
            return None;
        }
        let inode = Inode {
            kind,
            flags: b[1],
            mode: get_u16(b, 2),
            uid: get_u32(b, 4),
            gid: get_u32(b, 8),
            links: get_u32(b, 12),
            size: get_u64(b, 16),
            blocks: get_u64(b, 24),
            atime: time(b, 32)?,
            mtime: time(b, 44)?,
            ctime: time(b, 56)?,
            btime: time(b, 68)?,
            rdev: get_u32(b, 80),
            xattrs: get_u32(b, 84),
            dir,
            target,
        };
        let flags = inode.flags & !INODE_FLAGS == 0
            && (inode.flags & INODE_DEFAULT_ACL == 0 || kind == Kind::Directory)
            && inode.flags.count_ones() <= inode.xattrs;
        let size_max = if kind == Kind::Symlink { SYMLINK_MAX as u64 } else { FILE_SIZE_MAX };
        let zero = b[INODE_ZERO..INODE_SIZE].iter().all(|byte| *byte == 0);
        (flags && zero && inode.mode <= 0o7777 && inode.size <= size_max).then_some(inode)
    }
}

/// A directory entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The inode.
    pub ino: Ino,
    /// What the inode is.
    pub kind: Kind,
    /// The name, 1 to [`NAME_MAX`] bytes without `/` and NUL.
    pub name: Vec<u8>,
}

/// Bytes of an entry's record in front of its name.
pub const ENTRY_HEAD: usize = 9;

impl Entry {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut record = Vec::with_capacity(ENTRY_HEAD + self.name.len());
        self.encode_into(&mut record);
        record
    }

    /// Adds the record's bytes to `record`.
    pub fn encode_into(&self, record: &mut Vec<u8>) {
        Writer(record).u64(self.ino.0).bytes(&[self.kind as u8]).bytes(&self.name);
    }

    /// Reads a record of directory `dir`.
    pub fn decode(dir: Ino, b: &[u8]) -> Result<Entry> {
        let entry = || {
            let (kind, name) = (Kind::decode(*b.get(8)?)?, b.get(ENTRY_HEAD..)?);
            let ino = Ino(get_u64(b, 0));
            (ino.0 != 0 && is_name(name)).then(|| Entry { ino, kind, name: name.to_vec() })
        };
        entry().ok_or_else(|| FsError::damaged(dir, "a directory entry is impossible"))
    }
}

/// Whether an entry can have this name.
pub fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= NAME_MAX
        && !name.iter().any(|c| matches!(c, b'/' | 0))
}
