//! A group's bitmap page: which of its blocks are in use, and which of its chunks hold tree pages.

use super::format::*;
use super::ids::PageId;
use super::superblock::{BACKUP_SIZE, Superblock};

/// A bitmap page, read only.
#[derive(Clone, Copy)]
pub struct Bitmap<'a>(pub &'a PageBytes);

/// A bitmap page that is being changed. The caller holds its exclusive latch.
pub struct BitmapMut<'a>(pub &'a mut PageBytes);

impl<'a> Bitmap<'a> {
    /// Whether block `i` of the group is in use; `i` < [`BLOCKS_PER_GROUP`].
    pub fn in_use(self, i: u32) -> bool {
        self.0[BITMAP_BITS + i as usize / 8] & (1 << (i % 8)) != 0
    }
    /// Whether chunk `c` of the group holds tree pages; `c` < [`CHUNKS_PER_GROUP`].
    pub fn holds_pages(self, c: u32) -> bool {
        self.0[BITMAP_CHUNKS + c as usize / 8] & (1 << (c % 8)) != 0
    }
    /// The blocks' bits, lowest bit first.
    pub fn bits(self) -> &'a [u8] {
        &self.0[BITMAP_BITS..]
    }
    /// Whether all blocks of the range are in use (`true`) or free (`false`); `None` if mixed.
    pub fn state(self, start: u32, len: u32) -> Option<bool> {
        let first = self.in_use(start);
        (start..start + len).all(|i| self.in_use(i) == first).then_some(first)
    }
    /// What the image is by the copy of its superblock in this page. `None`: there is none, or one that makes no sense.
    pub fn backup(self) -> Option<Superblock> {
        let copy: &[u8; BACKUP_SIZE] = self.0[BITMAP_BACKUP..].first_chunk()?;
        let superblock = Superblock::from_backup(copy).ok()?;
        (copy.iter().any(|b| *b != 0) && superblock.image() == page_image(self.0)).then_some(superblock)
    }
    /// Checks what can be checked without the tree.
    pub fn validate(self) -> Result<(), &'static str> {
        if page_type(self.0) != TYPE_BITMAP {
            return Err("not a bitmap page");
        }
        if self.state(0, BLOCKS_PER_PAGE) != Some(true) {
            return Err("bitmap page does not count itself");
        }
        Ok(())
    }
}

/// The words of 64 bits in which a row of a group's blocks has its bits: the number of each, and which bits these are.
pub fn words_of(start: u32, len: u32) -> impl Iterator<Item = (usize, u64)> {
    let (mut at, end) = (start as usize, start as usize + len as usize);
    std::iter::from_fn(move || {
        let (word, from) = (at / 64, at % 64);
        let bits = (end - at).min(64 - from);
        at += bits;
        (bits > 0).then(|| (word, (!0 >> (64 - bits)) << from))
    })
}

/// Whether a range of blocks lies inside a group.
pub fn in_group(start: u32, len: u32) -> bool {
    len > 0 && start.checked_add(len).is_some_and(|end| end <= BLOCKS_PER_GROUP)
}

impl BitmapMut<'_> {
    /// Makes an empty bitmap whose first `used` blocks are in use and whose blocks from `end` on do not exist.
    pub fn init(&mut self, id: PageId, image: u64, used: u32, end: u32) {
        init_header(self.0, TYPE_BITMAP, id, image);
        self.0[HEADER_SIZE..].fill(0);
        self.set(0, used, true);
        self.set(end, BLOCKS_PER_GROUP - end, true);
    }

    /// Puts in a copy of the superblock.
    pub fn set_backup(&mut self, superblock: &Superblock) {
        self.0[BITMAP_BACKUP..BITMAP_BACKUP + BACKUP_SIZE].copy_from_slice(&superblock.backup());
    }

    /// Marks blocks as in use, or as free.
    pub fn set(&mut self, start: u32, len: u32, used: bool) {
        let mut i = start;
        while i < start + len {
            let byte = &mut self.0[BITMAP_BITS + i as usize / 8];
            if i.is_multiple_of(8) && i + 8 <= start + len {
                *byte = if used { 0xff } else { 0 };
                i += 8;
            } else {
                *byte = if used { *byte | 1 << (i % 8) } else { *byte & !(1 << (i % 8)) };
                i += 1;
            }
        }
    }

    /// Marks the chunks that the blocks lie in as holding tree pages, or not.
    pub fn set_chunks(&mut self, start: u32, len: u32, pages: bool) {
        for c in start / BLOCKS_PER_CHUNK..=(start + len - 1) / BLOCKS_PER_CHUNK {
            let byte = &mut self.0[BITMAP_CHUNKS + c as usize / 8];
            *byte = if pages { *byte | 1 << (c % 8) } else { *byte & !(1 << (c % 8)) };
        }
    }
}
