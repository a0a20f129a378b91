//! The steps of a repair that write past the log: superblocks, bitmaps, and the change to another tree.
//!
//! The order makes them safe against a crash at any point:
//!
//! 1. Pages of a new tree lie in free space and are synced: nothing refers to them.
//! 2. Both superblocks are written, one after the other and synced, with the root, an empty log of a new incarnation, and the mark
//!    that a repair is under way. From the first one on the new tree counts, and nobody opens the image.
//! 3. The log is emptied if it could not be replayed or incarnations begin again, the bitmap pages are written in place, and the
//!    doublewrite headers emptied. A torn page does not matter: while the mark stands, nobody believes any, and the next run writes
//!    them again.
//! 4. Both superblocks are written again without the mark. If the tree has lost something, another mark stays until records
//!    say what: only the filesystem is kept from using the image then. And it is still marked as damaged.

use super::blocks::Claims;
use super::image::{self, Image, read_superblocks};
use super::{FsckError, Result, size};
use crate::error::Error;
use crate::page::bitmap::BitmapMut;
use crate::page::format::*;
use crate::page::superblock::*;
use crate::page::{Lsn, PAGE_SIZE, PageBytes, PageId};
use crate::pool::give_space;
use crate::storage::Storage;

/// Greater ones begin again, so that what has been repaired is not spent soon.
const LAST_SEQUENCE: u64 = COUNTER_SPENT - (1 << 32);
const LAST_INCARNATION: u32 = INCARNATION_SPENT - (1 << 15);

pub(super) fn failed(e: std::io::Error) -> FsckError {
    FsckError::Engine(Error::io("writing the repaired image", e))
}

/// Writes a superblock to the place of its sequence number, durably.
fn write_superblock(storage: &dyn Storage, superblock: &Superblock) -> Result<()> {
    let at = SUPERBLOCK_OFFSETS[superblock.sequence as usize % 2];
    storage.write_at(at, &superblock.encode()).map_err(failed)?;
    storage.sync().map_err(failed)
}

/// Writes both, each with a greater sequence number; the older place first.
fn write_both(storage: &dyn Storage, superblock: &mut Superblock) -> Result<()> {
    if superblock.sequence > LAST_SEQUENCE {
        superblock.sequence = renumber(storage)?;
    }
    for _ in 0..2 {
        superblock.sequence += 1;
        write_superblock(storage, superblock)?;
    }
    Ok(())
}

/// Writes the superblock that counts to both places, with small sequence numbers; returns the greater one. The other place comes
/// first, and both say the same: it does not matter which of them counts in between.
fn renumber(storage: &dyn Storage) -> Result<u64> {
    let mut superblock = newest(storage)?;
    superblock.sequence = 2 + (superblock.sequence + 1) % 2;
    write_superblock(storage, &superblock)?;
    superblock.sequence += 1;
    write_superblock(storage, &superblock)?;
    Ok(superblock.sequence)
}

/// Writes superblock `which` again from the other one, which counts.
pub(super) fn restore_superblock(storage: &dyn Storage, which: usize) -> Result<()> {
    let both = read_superblocks(storage)?;
    let [first, second] = &both;
    let (Ok(whole), 0 | 1) = (if which == 0 { second } else { first }, which) else { return Ok(()) };
    let mut twin = whole.clone();
    // It must not count before the other one, nor lie at the wrong place.
    twin.sequence = whole.sequence.saturating_sub(1);
    let at = SUPERBLOCK_OFFSETS[which];
    storage.write_at(at, &twin.encode()).map_err(failed)?;
    storage.sync().map_err(failed)
}

/// Writes both superblocks again with another size of the image. Each write leaves an image of the old size or the new one.
pub(super) fn set_size(storage: &dyn Storage, size: u64) -> Result<()> {
    let mut superblock = size::resized(&newest(storage)?, size).ok_or(FsckError::Changed)?;
    write_both(storage, &mut superblock)
}

/// Changes marks in both superblocks. Everything else in them stays: a check may have to find out yet which of them is right.
/// If only one is whole nothing is written, since that would leave none while it is: who looks finds this, marked or not.
pub(super) fn mark(storage: &dyn Storage, change: impl Fn(&mut Superblock)) -> Result<()> {
    let [Ok(first), Ok(second)] = read_superblocks(storage)? else { return Ok(()) };
    for (before, at) in [first, second].into_iter().zip(SUPERBLOCK_OFFSETS) {
        let mut superblock = before.clone();
        change(&mut superblock);
        if superblock != before {
            storage.write_at(at, &superblock.encode()).map_err(failed)?;
            storage.sync().map_err(failed)?;
        }
    }
    Ok(())
}

/// Empties a doublewrite half, of which nothing is needed.
pub(super) fn empty_half(storage: &dyn Storage, superblock: &Superblock, half: usize) -> Result<()> {
    storage.write_at(superblock.doublewrite_offset(half), &[0; PAGE_SIZE]).map_err(failed)?;
    storage.sync().map_err(failed)
}

/// What the image is to become.
pub(super) struct Target<'a> {
    /// The tree's root.
    pub root: PageId,
    /// The end of the empty log.
    pub end: Lsn,
    /// Groups with a bitmap page.
    pub groups: u32,
    /// All blocks that are in use.
    pub claims: &'a Claims,
    /// Those of them that are pages of the tree.
    pub pages: &'a Claims,
    /// Something is lost that is not marked as lost in this tree yet.
    pub lossy: bool,
}

/// Steps 2 to 4. Whatever the log holds is dropped: what counts of it is in the tree.
pub(super) fn switch(storage: &dyn Storage, image: &Image, target: &Target<'_>) -> Result<()> {
    let mut superblock = if image.salvaged { image.superblock.clone() } else { newest(storage)? };
    superblock.hash_seed = image.superblock.hash_seed;
    superblock.root = target.root;
    superblock.groups = target.groups;
    let mut end = target.end;
    superblock.incarnation += 1;
    let restart = superblock.incarnation > LAST_INCARNATION;
    if restart {
        // Incarnations begin again, behind all that the log may hold of an earlier one of that number.
        superblock.incarnation = 1;
        end.0 += superblock.log_size;
    }
    (superblock.checkpoint, superblock.floor) = (end, end);
    superblock.clean = true;
    // What follows from it is still to be repaired.
    superblock.set_damaged(true);
    superblock.incompat |= INCOMPAT_BITMAPS;
    if target.lossy {
        superblock.incompat |= INCOMPAT_RECORDS;
    }
    write_both(storage, &mut superblock)?;
    // The search for a log without superblocks believes the greatest incarnation. And what the host cannot read of the log may be
    // read again when it has been written.
    if restart || !image.log_whole {
        clear_log(storage, &superblock)?;
    }
    write_bitmaps(storage, &superblock, target)?;
    for half in 0..2 {
        empty_half(storage, &superblock, half)?;
    }
    // Names that cannot be looked up are no filesystem: the mark stays until they have new places.
    if image.salvaged && image.seed_lost {
        return Ok(());
    }
    superblock.incompat &= !INCOMPAT_BITMAPS;
    write_both(storage, &mut superblock)
}

fn clear_log(storage: &dyn Storage, superblock: &Superblock) -> Result<()> {
    crate::pool::zero(storage, LOG_OFFSET, LOG_OFFSET + superblock.log_size).map_err(failed)?;
    storage.sync().map_err(failed)
}

fn newest(storage: &dyn Storage) -> Result<Superblock> {
    image::newest(&read_superblocks(storage)?).cloned().ok_or(FsckError::Changed)
}

fn write_bitmaps(storage: &dyn Storage, superblock: &Superblock, target: &Target<'_>) -> Result<()> {
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    for group in 0..target.groups {
        let id = superblock.bitmap_page(group);
        let mut bitmap = BitmapMut(&mut page);
        bitmap.init(id, superblock.image(), BLOCKS_PER_PAGE, superblock.group_blocks(group));
        bitmap.set_backup(superblock);
        for (chunk, bits) in target.claims.group(group) {
            for (i, word) in bits.iter().enumerate() {
                let mut left = *word;
                while left != 0 {
                    let (from, len) =
                        (left.trailing_zeros(), (left >> left.trailing_zeros()).trailing_ones());
                    bitmap.set(chunk * BLOCKS_PER_CHUNK + i as u32 * 64 + from, len, true);
                    left &= !((!0u64 >> (64 - len)) << from);
                }
            }
        }
        // The last one of a short group is none.
        for chunk in 0..superblock.group_blocks(group) / BLOCKS_PER_CHUNK {
            if holds_pages_only(target, group, chunk) {
                // The host may refuse: then the chunk is not set aside for pages.
                let at = id.offset() + chunk as u64 * CHUNK_SIZE as u64;
                if give_space(storage, at, CHUNK_SIZE as u64).is_ok() {
                    bitmap.set_chunks(chunk * BLOCKS_PER_CHUNK, 1, true);
                }
            }
        }
        set_page_lsn(&mut page, target.end);
        seal(&mut page);
        storage.write_at(id.offset(), &page[..]).map_err(failed)?;
    }
    storage.sync().map_err(failed)
}

/// Whether a chunk holds pages of the tree and nothing else.
fn holds_pages_only(target: &Target<'_>, group: u32, chunk: u32) -> bool {
    let (all, pages) = (target.claims.chunk(group, chunk), target.pages.chunk(group, chunk));
    pages.iter().any(|w| *w != 0) && all == pages
}

/// The end of the log of an image that was closed in order.
pub(super) fn end_of(storage: &dyn Storage) -> Result<Lsn> {
    let superblock = newest(storage)?;
    Ok(superblock.checkpoint.max(superblock.floor))
}
