//! Where the contents of files lie.

use super::{Ino, KEY_CAPACITY, Writer};
use crate::fs::error::{FsError, Result};
use crate::page::format::{BLOCK_SIZE, RECORD_MAX, get_u32, get_u64};
use crate::page::{BlockNo, Run};

/// The largest file, in bytes: 2^63 - 1 rounded down to a block.
pub const FILE_SIZE_MAX: u64 = (i64::MAX as u64) & !(BLOCK_SIZE as u64 - 1);
/// Contents up to so many bytes lie in the tree itself.
pub const INLINE_MAX: usize = 2048;
/// Numbers of blocks are less than this: 4 EiB.
pub(super) const BLOCKS_MAX: u64 = 1 << 50;
/// The most blocks of one extent.
pub const EXTENT_BLOCKS_MAX: u32 = 256;

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
const _: () = assert!(KEY_CAPACITY + EXTENT_HEAD + 4 * EXTENT_BLOCKS_MAX as usize <= RECORD_MAX);
const _: () = assert!(KEY_CAPACITY + 1 + INLINE_MAX <= RECORD_MAX);
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
                    && start.0 < BLOCKS_MAX;
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
        let possible = |s: &Shared| s.len > 0 && s.count > 1 && s.len as u64 <= end && end <= BLOCKS_MAX;
        shared.filter(possible).ok_or_else(|| {
            let place = format_args!("shared blocks before block {end}");
            FsError::Engine(crate::Error::corrupt(place, "their record is impossible"))
        })
    }
}
