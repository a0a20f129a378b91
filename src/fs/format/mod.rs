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

mod extent;
mod inode;
mod key;
mod xattr;

pub use extent::{EXTENT_BLOCKS_MAX, Extent, FILE_SIZE_MAX, INLINE_MAX, Shared};
pub use inode::{
    DirInfo, ENTRY_HEAD, Entry, INODE_ACCESS_ACL, INODE_CAPABILITY, INODE_DEFAULT_ACL, Inode, Kind, LINK_MAX,
    NAME_MAX, SYMLINK_MAX, Time, is_name,
};
pub use key::*;
pub use xattr::{XATTR_INLINE_MAX, XATTR_SIZE_MAX, XATTRS_MAX, Xattr, XattrValue};

use super::error::{FsError, Result};
use crate::page::format::get_u64;

/// Adds numbers and bytes to a record.
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

/// The record of the filesystem itself: groups from `next_group` on have never been used.
pub fn encode_state(next_group: u64) -> [u8; 8] {
    next_group.to_be_bytes()
}

/// Reads the record of the filesystem itself; `None` if it is impossible.
pub fn decode_state(b: &[u8]) -> Option<u64> {
    b.try_into().ok().map(u64::from_be_bytes)
}
