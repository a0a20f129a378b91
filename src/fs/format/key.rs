//! Keys, and the numbers that they are made of.

use std::ops::Deref;

use crate::page::format::{get_u32, get_u64};

/// An inode's number: `group:40 ‖ sequence:24`. Never reused; 0 is never used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ino(pub u64);

/// A place in a directory: `hash:55 ‖ slot:8` of an entry, behind which reading goes on. 63 bits, stable for the life of the
/// entry. 0 is the beginning, 1 and 2 stand for `.` and `..`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Cookie(pub u64);

/// The root directory.
pub const ROOT: Ino = Ino(1);
/// The greatest sequence in an inode's number.
pub const SEQUENCE_MAX: u32 = (1 << 24) - 1;
/// Births in one group.
pub const BIRTHS_MAX: u32 = if cfg!(test) { 40 } else { SEQUENCE_MAX + 1 };
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

    /// Its place in that group, at most [`SEQUENCE_MAX`].
    pub fn sequence(self) -> u32 {
        self.0 as u32 & SEQUENCE_MAX
    }
}

/// The place of a name among the entries of a directory or the attributes of an inode: `hash:55 ‖ slot:8`.
pub fn name_place(hash: u64, slot: u64) -> u64 {
    hash << 8 | slot
}

/// The hash in a place.
pub fn place_hash(place: u64) -> u64 {
    place >> 8
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

fn number_key(tag: u8, number: u64) -> Key {
    Key::new(tag).with(&number.to_be_bytes())
}

/// The key of an inode.
pub fn inode_key(ino: Ino) -> Key {
    group_key(ino.group(), IN_GROUP_INODE).with(&ino.0.to_be_bytes()[5..])
}

/// The inode in the key of an inode; `None` if it is another key.
pub fn inode_of_key(key: &[u8]) -> Option<Ino> {
    match AnyKey::parse(key)? {
        AnyKey::Inode(ino) => Some(ino),
        _ => None,
    }
}

/// The key of a directory entry.
pub fn entry_key(group: u64, cookie: Cookie) -> Key {
    group_key(group, IN_GROUP_ENTRY).with(&cookie.0.to_be_bytes())
}

/// The cookie in the key of an entry of this group; `None` if it is another key.
pub fn entry_cookie(group: u64, key: &[u8]) -> Option<Cookie> {
    match AnyKey::parse(key)? {
        AnyKey::Entry(of, cookie) if of == group => Some(cookie),
        _ => None,
    }
}

/// The key of an extended attribute.
pub fn xattr_key(ino: Ino, place: u64) -> Key {
    number_key(TAG_XATTR, ino.0).with(&place.to_be_bytes())
}

/// The hash and slot in the key of an extended attribute of this inode.
pub fn xattr_place(ino: Ino, key: &[u8]) -> Option<u64> {
    match AnyKey::parse(key)? {
        AnyKey::Xattr(of, place) if of == ino => Some(place),
        _ => None,
    }
}

/// The key of the extent that ends at byte `end`.
pub fn extent_key(ino: Ino, end: u64) -> Key {
    number_key(TAG_EXTENT, ino.0).with(&end.to_be_bytes())
}

/// The end in the key of an extent of this inode.
pub fn extent_end(ino: Ino, key: &[u8]) -> Option<u64> {
    match AnyKey::parse(key)? {
        AnyKey::Extent(of, end) if of == ino => Some(end),
        _ => None,
    }
}

/// The key of the count of a run of blocks that ends in front of block `end`.
pub fn shared_key(end: u64) -> Key {
    number_key(TAG_SHARED, end)
}

/// The end of the run in the key of a count.
pub fn shared_end(key: &[u8]) -> Option<u64> {
    match AnyKey::parse(key)? {
        AnyKey::Shared(end) => Some(end),
        _ => None,
    }
}

/// The key of an orphan.
pub fn orphan_key(ino: Ino) -> Key {
    number_key(TAG_ORPHAN, ino.0)
}

/// The inode in the key of an orphan.
pub fn orphan_ino(key: &[u8]) -> Option<Ino> {
    match AnyKey::parse(key)? {
        AnyKey::Orphan(ino) => Some(ino),
        _ => None,
    }
}

/// The key of the record of the filesystem itself.
pub fn state_key() -> Key {
    Key::new(TAG_STATE)
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
                let (group, sequence) = (get_u64(key, 1) >> 24, get_u32(rest, 5) & SEQUENCE_MAX);
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
