//! The numbers that name places in an image. All are newtypes, so that one cannot stand for another.

use std::fmt;

use super::format::{BLOCK_SIZE, BLOCKS_PER_PAGE, PAGE_SIZE};

/// A page: its offset in the image divided by [`PAGE_SIZE`]. 0 (the first superblock) stands for "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageId(pub u64);

/// A 4 KiB block: its offset in the image divided by [`BLOCK_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockNo(pub u64);

/// A position in the log in bytes, counted from the making of the image; never wraps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

/// A row of adjacent blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Run {
    /// The first block.
    pub start: BlockNo,
    /// How many blocks, at least 1 in a run that is used.
    pub len: u32,
}

impl PageId {
    /// No page: the end of a chain.
    pub const NONE: PageId = PageId(0);

    /// Byte offset in the image.
    pub fn offset(self) -> u64 {
        self.0 * PAGE_SIZE as u64
    }
    /// The first of the page's four blocks.
    pub fn block(self) -> BlockNo {
        BlockNo(self.0 * BLOCKS_PER_PAGE as u64)
    }
    /// The page's four blocks.
    pub fn run(self) -> Run {
        Run { start: self.block(), len: BLOCKS_PER_PAGE }
    }
    /// Whether this is a page and not [`PageId::NONE`].
    pub fn is_some(self) -> bool {
        self.0 != 0
    }
}

impl BlockNo {
    /// Byte offset in the image.
    pub fn offset(self) -> u64 {
        self.0 * BLOCK_SIZE as u64
    }
    /// The page that begins at this block, if one can.
    pub fn page(self) -> Option<PageId> {
        self.0.is_multiple_of(BLOCKS_PER_PAGE as u64).then(|| PageId(self.0 / BLOCKS_PER_PAGE as u64))
    }
}

impl Run {
    /// The block behind the run.
    pub fn end(self) -> BlockNo {
        BlockNo(self.start.0 + self.len as u64)
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LSN {}", self.0)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}+{}", self.start.0, self.len)
    }
}
