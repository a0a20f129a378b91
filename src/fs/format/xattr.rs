//! Extended attributes.

use super::extent::BLOCKS_MAX;
use super::{Ino, KEY_CAPACITY, Writer};
use crate::fs::error::{FsError, Result};
use crate::page::format::{BLOCK_SIZE, RECORD_MAX, get_u32, get_u64};
use crate::page::{BlockNo, Run};

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
const _: () = assert!(KEY_CAPACITY + 2 + u8::MAX as usize + XATTR_INLINE_MAX <= RECORD_MAX);

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
                    if len == 0 || len as usize > XATTR_SIZE_MAX || start.0 >= BLOCKS_MAX {
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
