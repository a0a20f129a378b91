//! The size of an image whose superblock may not be believed.
//!
//! An image only grows, and the file grows first. So a superblock that says more than the file has, or less than the older one, is wrong, or
//! the file was cut. Another size is believed only where that loses nothing: nothing in use lies behind it.
//!
//! - What **the other superblock**, or the copy in the first bitmap page, says is right if the file has it, if everything that is in use is
//!   known and lies within it, and if the bitmaps know of no more blocks: a growth clears the bits of those that a group gains (G1 of
//!   `pool/grow.rs`).
//! - A larger size that the older superblock says is right if something in use lies in what the newer one leaves out.

use std::sync::Arc;

use super::blocks::Claims;
use super::image::{Image, newest, read_superblocks};
use super::report::{Findings, Report};
use super::shared::SharedRuns;
use super::{Options, Result, inodes, structure};
use crate::page::bitmap::Bitmap;
use crate::page::format::*;
use crate::page::superblock::*;
use crate::page::{PAGE_SIZE, PageBytes, PageId};
use crate::storage::Storage;

/// The least size of an image with these areas.
pub(super) fn least(superblock: &Superblock) -> u64 {
    superblock.data_offset() + CHUNK_SIZE as u64
}

/// The superblock of an image of another size. What lies behind it does not count any more: groups, and the root, which is then looked for
/// where a new image has it. `None`: nothing would be left.
pub(super) fn resized(superblock: &Superblock, size: u64) -> Option<Superblock> {
    if size < least(superblock) {
        return None;
    }
    let mut resized = Superblock { size, ..superblock.clone() };
    resized.groups = resized.groups.min(resized.group_count());
    if !resized.is_data_page(resized.root) {
        resized.root = PageId(resized.bitmap_page(0).0 + 1);
    }
    Superblock::decode(&resized.encode()).ok()
}

/// The size that counts instead of the one that the superblock says, if there is such a one.
pub(super) fn believed(
    storage: &Arc<dyn Storage>,
    image: &Image,
    options: &Options<'_>,
) -> Result<Option<u64>> {
    if image.salvaged {
        return Ok(None);
    }
    let said = read_superblocks(&**storage)?;
    let size = newest(&said).map_or(image.superblock.size, |s| s.size);
    let like = |s: &Superblock| {
        let (a, b) = (s, &image.superblock);
        (a.uuid, a.log_size, a.doublewrite_pages) == (b.uuid, b.log_size, b.doublewrite_pages)
    };
    let mut others: Vec<u64> = said.iter().flatten().filter(|s| like(s)).map(|s| s.size).collect();
    if let Some(held) = image.short {
        others.extend(copy(image).filter(like).map(|s| s.size));
        others.retain(|other| *other < size && *other <= held);
        others.sort_unstable();
        if others.is_empty() {
            return Ok(None);
        }
        let used = Used::find(image, options)?;
        let fits = |other: &u64| used.whole && !used.reaches(image, *other) && !gained(image, *other, size);
        return Ok(others.into_iter().rev().find(fits));
    }
    let held = storage.len().map_err(|e| crate::Error::io("reading the image's size", e))?;
    let Some(larger) = others.into_iter().find(|other| *other > size && *other <= held) else {
        return Ok(None);
    };
    let image = Image::open(storage, Some(larger), &mut Findings::default(), options)?;
    let right = gained(&image, size, larger) || Used::find(&image, options)?.reaches(&image, size);
    Ok(right.then_some(larger))
}

/// The copy in the bitmap page of group 0.
fn copy(image: &Image) -> Option<Superblock> {
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    image.read_page(image.superblock.bitmap_page(0), &mut page).ok()?;
    Bitmap(&page).backup()
}

/// Whether a bitmap knows blocks between two sizes, or cannot be asked.
fn gained(image: &Image, small: u64, large: u64) -> bool {
    let sized = |size| Superblock { size, ..image.superblock.clone() };
    let (small, large) = (sized(small), sized(large));
    if small.group_count() < image.superblock.groups {
        return true;
    }
    let last = image.superblock.groups - 1;
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let (from, to) = (small.group_blocks(last), large.group_blocks(last));
    from < to
        && (image.read_page(image.superblock.bitmap_page(last), &mut page).is_err()
            || (from..to).any(|block| !Bitmap(&page).in_use(block)))
}

/// The blocks in use.
struct Used {
    claims: Claims,
    /// All of them are known.
    whole: bool,
}

impl Used {
    fn find(image: &Image, options: &Options<'_>) -> Result<Used> {
        let (mut findings, mut report) = (Findings::default(), Report::default());
        let (mut claims, mut shared) = (Claims::new(image), SharedRuns::default());
        let structure = structure::walk(image, &mut claims, &mut findings, &mut report, options);
        let whole = structure.sound && image.log_whole;
        if structure.leaves.len() > 0 {
            let options = Options { scrub: false, ..*options };
            inodes::check_inodes(
                image,
                &structure,
                &mut claims,
                &mut shared,
                &mut findings,
                &mut report,
                &options,
            )?;
            shared.check(image, &mut claims, &mut findings);
        }
        Ok(Used { claims, whole })
    }

    /// Whether something that is in use lies behind a size.
    fn reaches(&self, image: &Image, size: u64) -> bool {
        let small = Superblock { size, ..image.superblock.clone() };
        let last = small.group_count() - 1;
        let end = small.bitmap_page(last).block().0 + small.group_blocks(last) as u64;
        self.claims.reaches(end)
    }
}
