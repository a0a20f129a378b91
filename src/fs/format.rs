//! Keys and records: how inodes, directories, extended attributes and file contents lie in the tree.
//!
//! All keys are big-endian and compare as bytes, so what belongs together lies together: a directory's entries, the inodes
//! born in it and their contents are neighbours. `docs/format.md` is the same in prose.
//!
//! | key | record |
//! |---|---|
//! | `10 group:40 01 sequence:24` | [`Inode`] |
//! | `10 group:40 02 hash:55 slot:8` | [`Entry`] |
//! | `20 ino:64 hash:55 slot:8` | [`Xattr`] |
//! | `30 ino:64 end:64` | [`Extent`] |
//! | `40 end-block:64` | [`Shared`] |
//! | `50 ino:64` | [`Orphan`] |
//! | `60` | the number of the next group |

use std::ops::Deref;

use super::error::{FsError, Result};
use crate::page::format::{BLOCK_SIZE, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use crate::page::{BlockNo, Run};

/// An inode's number: `group:40 ‖ sequence:24`. Never reused; 0 is never used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ino(pub u64);

/// A place in a directory: `hash:55 ‖ slot:8` of the entry before which reading goes on behind. 63 bits, stable for the life of
/// the entry. 0 is the beginning, 1 and 2 stand for `.` and `..`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Cookie(pub u64);

/// The root directory.
pub const ROOT: Ino = Ino(1);
/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// The largest file, in bytes: 2^63 - 1 rounded down to a block.
pub const FILE_SIZE_MAX: u64 = (i64::MAX as u64) & !(BLOCK_SIZE as u64 - 1);
/// Contents up to so many bytes lie in the tree itself.
pub const INLINE_MAX: usize = 2048;
/// The most blocks of one extent.
pub const EXTENT_BLOCKS_MAX: u32 = 256;
/// The most links to one inode.
pub const LINK_MAX: u32 = 1 << 30;
/// Births in one group.
pub const BIRTHS_MAX: u32 = if cfg!(test) { 40 } else { 1 << 24 };
/// Group numbers are less than this: the counter of them ends here.
pub const GROUP_MAX: u64 = (1 << 40) - 1;
/// Entries whose names have the same hash.
pub const SLOTS: u64 = 256;

pub(crate) const TAG_GROUP: u8 = 0x10;
pub(crate) const TAG_XATTR: u8 = 0x20;
pub(crate) const TAG_EXTENT: u8 = 0x30;
const TAG_SHARED: u8 = 0x40;
const TAG_ORPHAN: u8 = 0x50;
const TAG_STATE: u8 = 0x60;
const IN_GROUP_INODE: u8 = 1;
const IN_GROUP_ENTRY: u8 = 2;

impl Ino {
    /// The inode with this place in its group.
    pub fn new(group: u64, sequence: u32) -> Ino {
        Ino(group << 24 | sequence as u64)
    }
    /// The group that the inode was born in.
    pub fn group(self) -> u64 {
        self.0 >> 24
    }
}

/// A key of the tree. Keys are short, and made all the time: they need no memory from the heap.
#[derive(Clone, Copy)]
pub struct Key {
    bytes: [u8; KEY_CAPACITY],
    len: u8,
}

/// Bytes of the longest key.
pub const KEY_CAPACITY: usize = 17;

impl Key {
    fn new(tag: u8) -> Key {
        let mut bytes = [0; KEY_CAPACITY];
        bytes[0] = tag;
        Key { bytes, len: 1 }
    }

    fn with(mut self, more: &[u8]) -> Key {
        let at = self.len as usize;
        self.bytes[at..at + more.len()].copy_from_slice(more);
        self.len += more.len() as u8;
        self
    }
}

impl Deref for Key {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        **self == **other
    }
}

impl Eq for Key {}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&**self, f)
    }
}

fn group_key(group: u64, kind: u8) -> Key {
    Key::new(TAG_GROUP).with(&group.to_be_bytes()[3..]).with(&[kind])
}

/// The key of an inode.
pub fn inode_key(ino: Ino) -> Key {
    group_key(ino.group(), IN_GROUP_INODE).with(&ino.0.to_be_bytes()[5..])
}

/// The inode in the key of an inode; `None` if it is another key.
pub fn inode_of_key(key: &[u8]) -> Option<Ino> {
    let place = key.strip_prefix(&[TAG_GROUP])?;
    let (group, rest) = place.split_first_chunk::<5>()?;
    let sequence = rest.strip_prefix(&[IN_GROUP_INODE])?.first_chunk::<3>()?;
    let group = group.iter().fold(0, |n, b| n << 8 | u64::from(*b));
    (rest.len() == 4).then(|| Ino::new(group, u32::from_be_bytes([0, sequence[0], sequence[1], sequence[2]])))
}

/// The key of a directory entry.
pub fn entry_key(group: u64, cookie: Cookie) -> Key {
    group_key(group, IN_GROUP_ENTRY).with(&cookie.0.to_be_bytes())
}

/// The cookie in the key of an entry of this group; `None` if it is another key.
pub fn entry_cookie(group: u64, key: &[u8]) -> Option<Cookie> {
    let rest = key.strip_prefix(&*group_key(group, IN_GROUP_ENTRY))?;
    (rest.len() == 8).then(|| Cookie(get_u64(rest, 0)))
}

/// The key of an extended attribute.
pub fn xattr_key(ino: Ino, place: u64) -> Key {
    tagged(TAG_XATTR, ino, Some(place))
}

/// The hash and slot in the key of an extended attribute of this inode.
pub fn xattr_place(ino: Ino, key: &[u8]) -> Option<u64> {
    second(TAG_XATTR, ino, key)
}

/// The key of the extent that ends at byte `end`.
pub fn extent_key(ino: Ino, end: u64) -> Key {
    tagged(TAG_EXTENT, ino, Some(end))
}

/// The end in the key of an extent of this inode.
pub fn extent_end(ino: Ino, key: &[u8]) -> Option<u64> {
    second(TAG_EXTENT, ino, key)
}

/// The key of the count of a run of blocks that ends in front of block `end`.
pub fn shared_key(end: u64) -> Key {
    tagged(TAG_SHARED, Ino(end), None)
}

/// The end of the run in the key of a count.
pub fn shared_end(key: &[u8]) -> Option<u64> {
    match key.split_first() {
        Some((&TAG_SHARED, rest)) if rest.len() == 8 => Some(get_u64(rest, 0)),
        _ => None,
    }
}

/// The key of an orphan.
pub fn orphan_key(ino: Ino) -> Key {
    tagged(TAG_ORPHAN, ino, None)
}

/// The inode in the key of an orphan.
pub fn orphan_ino(key: &[u8]) -> Option<Ino> {
    match key.split_first() {
        Some((&TAG_ORPHAN, rest)) if rest.len() == 8 => Some(Ino(get_u64(rest, 0))),
        _ => None,
    }
}

/// The key of the record of the filesystem itself.
pub fn state_key() -> Key {
    Key::new(TAG_STATE)
}

fn tagged(tag: u8, ino: Ino, more: Option<u64>) -> Key {
    let key = Key::new(tag).with(&ino.0.to_be_bytes());
    more.map_or(key, |more| key.with(&more.to_be_bytes()))
}

fn second(tag: u8, ino: Ino, key: &[u8]) -> Option<u64> {
    let rest = key.strip_prefix(&*tagged(tag, ino, None))?;
    (rest.len() == 8).then(|| get_u64(rest, 0))
}

/// Any key of the filesystem, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AnyKey {
    /// An inode.
    Inode(Ino),
    /// An entry of the directory that has this entries group.
    Entry(u64, Cookie),
    /// An extended attribute, by hash and slot.
    Xattr(Ino, u64),
    /// The extent that ends at this byte, or a piece of a symbolic link's target.
    Extent(Ino, u64),
    /// The count of the shared blocks that end in front of this block.
    Shared(u64),
    /// An orphan.
    Orphan(Ino),
    /// The record of the filesystem itself.
    State,
}

impl AnyKey {
    /// Takes a key apart, which may be hostile; `None` if no record has such a key.
    pub fn parse(key: &[u8]) -> Option<AnyKey> {
        let (&tag, rest) = key.split_first()?;
        Some(match (tag, rest.len()) {
            (TAG_GROUP, 9) if rest[5] == IN_GROUP_INODE => {
                let (group, sequence) = (get_u64(key, 1) >> 24, get_u32(rest, 5) & 0xff_ffff);
                AnyKey::Inode(Ino::new(group, sequence))
            }
            (TAG_GROUP, 14) if rest[5] == IN_GROUP_ENTRY => {
                AnyKey::Entry(get_u64(key, 1) >> 24, Cookie(get_u64(rest, 6)))
            }
            (TAG_XATTR, 16) => AnyKey::Xattr(Ino(get_u64(rest, 0)), get_u64(rest, 8)),
            (TAG_EXTENT, 16) => AnyKey::Extent(Ino(get_u64(rest, 0)), get_u64(rest, 8)),
            (TAG_SHARED, 8) => AnyKey::Shared(get_u64(rest, 0)),
            (TAG_ORPHAN, 8) => AnyKey::Orphan(Ino(get_u64(rest, 0))),
            (TAG_STATE, 0) => AnyKey::State,
            _ => return None,
        })
    }
}

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

const INODE_SIZE: usize = 96;
const DIR_SIZE: usize = 36;

struct Writer<'r>(&'r mut Vec<u8>);

impl Writer<'_> {
    fn bytes(&mut self, b: &[u8]) -> &mut Self {
        self.0.extend_from_slice(b);
        self
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.bytes(&v.to_be_bytes())
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_be_bytes())
    }
}

fn time(b: &[u8], at: usize) -> Option<Time> {
    let (seconds, nanos) = (get_u64(b, at) as i64, get_u32(b, at + 8));
    (nanos < 1_000_000_000).then_some(Time { seconds, nanos })
}

impl Inode {
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
        (flags && inode.mode <= 0o7777 && inode.size <= size_max).then_some(inode)
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

/// Where a part of a file lies. Its key tells where it ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Extent {
    /// The bytes themselves.
    Inline(Vec<u8>),
    /// Blocks. The extent begins at a multiple of the block size; what is stored behind its length reads as zeros.
    Blocks {
        /// Length in bytes, more than all blocks but the last.
        len: u32,
        /// The first block.
        start: BlockNo,
        /// The blocks may belong to other extents, too: whoever gives them up looks at their [`Shared`] records. Once set it
        /// stays. Never set for blocks that are not written.
        shared: bool,
        /// CRC-32 of each stored block. Empty: the blocks are allocated but not written, and read as zeros.
        crcs: Vec<u32>,
    },
    /// Contents that a repair has had to give up: reading them is an error. Begins at a multiple of the block size.
    Lost {
        /// Length in bytes, at least 1.
        len: u64,
    },
}

const EXTENT_INLINE: u8 = 0;
const EXTENT_BLOCKS: u8 = 1;
const EXTENT_LOST: u8 = 2;
const FLAG_UNWRITTEN: u8 = 1;
const FLAG_SHARED: u8 = 2;
/// Behind the length and the first block come 8 bytes for a birth LSN, written as zeros and not looked at.
const EXTENT_HEAD: usize = 24;
/// The stored blocks are the contents. Other encodings are for versions to come.
const ENCODING_PLAIN: u8 = 0;

impl Extent {
    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Extent::Inline(bytes) => bytes.len() as u64,
            Extent::Blocks { len, .. } => *len as u64,
            Extent::Lost { len } => *len,
        }
    }

    /// Its blocks are allocated, but never written.
    pub fn is_unwritten(&self) -> bool {
        matches!(self, Extent::Blocks { crcs, .. } if crcs.is_empty())
    }

    /// Its blocks may belong to other extents, too.
    pub fn is_shared(&self) -> bool {
        matches!(self, Extent::Blocks { shared: true, .. })
    }

    /// The blocks it lies in.
    pub fn run(&self) -> Option<Run> {
        let Extent::Blocks { len, start, .. } = self else { return None };
        Some(Run { start: *start, len: len.div_ceil(BLOCK_SIZE as u32) })
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut record = Vec::new();
        self.encode_into(&mut record);
        record
    }

    /// Adds the record's bytes to `record`.
    pub fn encode_into(&self, record: &mut Vec<u8>) {
        let mut w = Writer(record);
        match self {
            Extent::Inline(bytes) => {
                w.bytes(&[EXTENT_INLINE]).bytes(bytes);
            }
            Extent::Blocks { len, start, shared, crcs } => {
                debug_assert!(!(crcs.is_empty() && *shared), "blocks that are not written are not shared");
                let unwritten = if crcs.is_empty() { FLAG_UNWRITTEN } else { 0 };
                let flags = unwritten | if *shared { FLAG_SHARED } else { 0 };
                w.bytes(&[EXTENT_BLOCKS, flags, ENCODING_PLAIN, 0]).u32(*len).u64(start.0).u64(0);
                for crc in crcs {
                    w.u32(*crc);
                }
            }
            Extent::Lost { len } => {
                w.bytes(&[EXTENT_LOST, 0, 0, 0]).u32(0).u64(*len);
            }
        }
    }

    /// Reads the record of the extent of `ino` that ends at `end`.
    pub fn decode(ino: Ino, end: u64, b: &[u8]) -> Result<Extent> {
        Self::try_decode(end, b).ok_or_else(|| FsError::damaged(ino, "an extent record is impossible"))
    }

    fn try_decode(end: u64, b: &[u8]) -> Option<Extent> {
        match *b.first()? {
            EXTENT_INLINE => {
                let bytes = &b[1..];
                let fits = !bytes.is_empty() && bytes.len() <= INLINE_MAX && bytes.len() as u64 == end;
                fits.then(|| Extent::Inline(bytes.to_vec()))
            }
            EXTENT_BLOCKS
                if b.len() >= EXTENT_HEAD
                    && b[2..4] == [ENCODING_PLAIN, 0]
                    && matches!(b[1], 0 | FLAG_UNWRITTEN | FLAG_SHARED) =>
            {
                let (len, start) = (get_u32(b, 4), BlockNo(get_u64(b, 8)));
                let blocks = len.div_ceil(BLOCK_SIZE as u32);
                let crcs: Vec<u32> =
                    b[EXTENT_HEAD..].as_chunks().0.iter().map(|c| u32::from_be_bytes(*c)).collect();
                let expected = if b[1] == FLAG_UNWRITTEN { 0 } else { blocks as usize };
                let begin = end.checked_sub(len as u64)?;
                let fits = (1..=EXTENT_BLOCKS_MAX).contains(&blocks)
                    && b.len() == EXTENT_HEAD + 4 * expected
                    && begin.is_multiple_of(BLOCK_SIZE as u64)
                    && end <= FILE_SIZE_MAX
                    && start.0 < 1 << 50;
                fits.then_some(Extent::Blocks { len, start, shared: b[1] == FLAG_SHARED, crcs })
            }
            EXTENT_LOST if b.len() == 16 && b[1..8] == [0; 7] => {
                let len = get_u64(b, 8);
                let begin = end.checked_sub(len)?;
                let fits = len > 0 && begin.is_multiple_of(BLOCK_SIZE as u64) && end <= FILE_SIZE_MAX;
                fits.then_some(Extent::Lost { len })
            }
            _ => None,
        }
    }
}

/// An extended attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Xattr {
    /// The whole name, its namespace included.
    pub name: Vec<u8>,
    /// The value, or where it lies.
    pub value: XattrValue,
}

/// The value of an extended attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum XattrValue {
    /// The value itself.
    Inline(Vec<u8>),
    /// A value too large for the tree.
    Blocks {
        /// Length in bytes.
        len: u32,
        /// The first of its adjacent blocks.
        start: BlockNo,
        /// CRC-32 of all its bytes.
        crc: u32,
    },
}

/// The largest value of an extended attribute, in bytes.
pub const XATTR_SIZE_MAX: usize = 65536;
/// Attributes of an inode. The kernel passes on no longer list of their names than 64 KiB.
pub const XATTRS_MAX: u32 = 32768;
/// Values up to so many bytes lie in the tree.
pub const XATTR_INLINE_MAX: usize = 3072;

impl Xattr {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut record = Vec::new();
        let mut w = Writer(&mut record);
        match &self.value {
            XattrValue::Inline(value) => {
                w.bytes(&[0, self.name.len() as u8]).bytes(&self.name).bytes(value);
            }
            XattrValue::Blocks { len, start, crc } => {
                w.bytes(&[1, self.name.len() as u8]).bytes(&self.name).u32(*len).u64(start.0).u32(*crc);
            }
        }
        record
    }

    /// Reads a record of inode `ino`.
    pub fn decode(ino: Ino, b: &[u8]) -> Result<Xattr> {
        let xattr = || {
            let name_len = *b.get(1)? as usize;
            let name = b.get(2..2 + name_len)?.to_vec();
            let rest = &b[2 + name_len..];
            let value = match b[0] {
                0 if rest.len() <= XATTR_INLINE_MAX => XattrValue::Inline(rest.to_vec()),
                1 if rest.len() == 16 => {
                    let len = get_u32(rest, 0);
                    let start = BlockNo(get_u64(rest, 4));
                    if len == 0 || len as usize > XATTR_SIZE_MAX || start.0 >= 1 << 50 {
                        return None;
                    }
                    XattrValue::Blocks { len, start, crc: get_u32(rest, 12) }
                }
                _ => return None,
            };
            (!name.is_empty()).then_some(Xattr { name, value })
        };
        xattr().ok_or_else(|| FsError::damaged(ino, "an extended attribute is impossible"))
    }

    /// The blocks that the value lies in.
    pub fn run(&self) -> Option<Run> {
        match &self.value {
            XattrValue::Inline(_) => None,
            XattrValue::Blocks { len, start, .. } => {
                Some(Run { start: *start, len: len.div_ceil(BLOCK_SIZE as u32) })
            }
        }
    }
}

/// How many extents a run of blocks belongs to. Its key tells where the run ends. Present only for two and more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shared {
    /// Blocks of the run.
    pub len: u32,
    /// Extents that it belongs to.
    pub count: u32,
}

impl Shared {
    /// The record's bytes.
    pub fn encode(self) -> Vec<u8> {
        let mut record = Vec::with_capacity(8);
        Writer(&mut record).u32(self.len).u32(self.count);
        record
    }

    /// Reads the record of the run that ends in front of block `end`.
    pub fn decode(end: u64, b: &[u8]) -> Result<Shared> {
        let shared = (b.len() == 8).then(|| Shared { len: get_u32(b, 0), count: get_u32(b, 4) });
        let possible = |s: &Shared| s.len > 0 && s.count > 1 && s.len as u64 <= end && end <= 1 << 50;
        shared.filter(possible).ok_or_else(|| {
            let place = format_args!("shared blocks before block {end}");
            FsError::Engine(crate::Error::corrupt(place, "their record is impossible"))
        })
    }
}

/// What is still to be done for an inode after a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Orphan {
    /// It has no link any more, and goes when nobody uses it.
    Unlinked,
    /// It is being cut to this size: extents behind it are to be freed.
    Truncated {
        /// In bytes.
        size: u64,
    },
}

const ORPHAN_UNLINKED: u8 = 1;
const ORPHAN_TRUNCATED: u8 = 2;

impl Orphan {
    /// The record's bytes.
    pub fn encode(self) -> Vec<u8> {
        let mut record = Vec::with_capacity(9);
        let mut w = Writer(&mut record);
        match self {
            Orphan::Unlinked => w.bytes(&[ORPHAN_UNLINKED]),
            Orphan::Truncated { size } => w.bytes(&[ORPHAN_TRUNCATED]).u64(size),
        };
        record
    }

    /// Reads a record.
    pub fn decode(ino: Ino, b: &[u8]) -> Result<Orphan> {
        match b {
            [ORPHAN_UNLINKED] => Ok(Orphan::Unlinked),
            [ORPHAN_TRUNCATED, rest @ ..] if rest.len() == 8 && get_u64(rest, 0) <= FILE_SIZE_MAX => {
                Ok(Orphan::Truncated { size: get_u64(rest, 0) })
            }
            _ => Err(FsError::damaged(ino, "its orphan record is impossible")),
        }
    }
}

const _: () = {
    assert!(
        INODE_SIZE + SYMLINK_MAX + 17 > crate::page::format::RECORD_MAX,
        "long targets need a place of their own"
    );
    assert!(EXTENT_HEAD + 4 * EXTENT_BLOCKS_MAX as usize + 17 <= crate::page::format::RECORD_MAX);
    assert!(INLINE_MAX + 1 + 17 <= crate::page::format::RECORD_MAX);
    assert!(XATTR_INLINE_MAX + 255 + 2 + 17 <= crate::page::format::RECORD_MAX);
};
