//! Making an image.

use super::Pool;
use crate::error::{Error, Result};
use crate::page::bitmap::BitmapMut;
use crate::page::format::*;
use crate::page::node::{NodeBuilder, NodeSpec};
use crate::page::superblock::*;
use crate::page::{Lsn, PageId};
use crate::storage::Storage;
use crate::storage::sim::site_scope;

/// What an image is made with.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Declared size of the image in bytes; the file is sparse.
    pub size: u64,
    /// Size of the log in bytes; by default it follows the image's size.
    pub log_size: Option<u64>,
    /// Pages of each doublewrite half; by default it follows the log's size.
    pub doublewrite_pages: Option<u32>,
    /// Label.
    pub label: String,
    /// UUID. The default is all zeros: a caller who makes real images gives a random one.
    pub uuid: [u8; 16],
    /// Seed of the directory hash, to be random as well.
    pub hash_seed: [u8; 16],
}

impl Default for FormatOptions {
    fn default() -> Self {
        FormatOptions {
            size: 64 << 30,
            log_size: None,
            doublewrite_pages: None,
            label: String::new(),
            uuid: [0; 16],
            hash_seed: [0; 16],
        }
    }
}

impl Pool {
    /// Makes an empty image: what the storage held is gone.
    pub fn format(storage: &dyn Storage, options: &FormatOptions) -> Result<()> {
        let superblock = layout(options)?;
        let failed = |e| Error::io("making the image", e);
        if storage.len().map_err(failed)? < superblock.size {
            storage.set_len(superblock.size).map_err(failed)?;
        }
        for at in SUPERBLOCK_OFFSETS {
            storage.write_at(at, &[0; SUPERBLOCK_SIZE]).map_err(failed)?;
        }
        storage.sync().map_err(failed)?;
        zero(storage, LOG_OFFSET, superblock.data_offset()).map_err(failed)?;
        give_space(storage, superblock.data_offset(), CHUNK_SIZE as u64).map_err(failed)?;
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let id = superblock.bitmap_page(0);
        let mut bitmap = BitmapMut(&mut page);
        bitmap.init(id, superblock.image(), 2 * BLOCKS_PER_PAGE, superblock.group_blocks(0));
        bitmap.set_chunks(0, 2 * BLOCKS_PER_PAGE, true);
        bitmap.set_backup(&superblock);
        write_page(storage, &mut page, id, superblock.checkpoint).map_err(failed)?;
        let spec = NodeSpec {
            id: superblock.root,
            image: superblock.image(),
            level: 0,
            flags: 0,
            low: &[],
            high: None,
            right: PageId::NONE,
        };
        NodeBuilder::new(&mut page, spec).finish();
        page[HEADER_SIZE..].fill(0);
        write_page(storage, &mut page, superblock.root, superblock.checkpoint).map_err(failed)?;
        storage.sync().map_err(failed)?;
        let encoded = superblock.encode();
        for at in SUPERBLOCK_OFFSETS {
            storage.write_at(at, &encoded).map_err(failed)?;
        }
        storage.sync().map_err(failed)
    }

    /// The bytes that [`Pool::format`] writes or allocates, if it accepts the options.
    pub fn format_cost(options: &FormatOptions) -> Result<u64> {
        Ok(layout(options)?.data_offset() + CHUNK_SIZE as u64)
    }
}

fn write_page(storage: &dyn Storage, page: &mut PageBytes, id: PageId, lsn: Lsn) -> std::io::Result<()> {
    set_page_lsn(page, lsn);
    seal(page);
    storage.write_at(id.offset(), page)
}

/// Writes zeros between two bytes. Log and doublewrite area are written, not only allocated: an overwrite of written blocks syncs twice
/// as fast.
pub fn zero(storage: &dyn Storage, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = vec![0; CHUNK_SIZE];
    let mut at = from;
    while at < to {
        let n = zeros.len().min((to - at) as usize);
        storage.write_at(at, &zeros[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Has the host allocate a range that holds nothing, so that what comes to lie there does not find its disk full. Where it allocates
/// nothing in advance, zeros are written over zeros: whatever else lies there has space, and is not this one's to destroy. Where that
/// cannot be read, nothing is sure.
pub fn give_space(storage: &dyn Storage, offset: u64, len: u64) -> std::io::Result<()> {
    const UNIT: usize = 512;
    let _site = site_scope("space");
    if storage.allocate(offset, len)? {
        return Ok(());
    }
    let mut bytes = vec![0; len as usize];
    if storage.read_at(offset, &mut bytes).is_err() {
        return Ok(());
    }
    let is_zero = |unit: &&[u8]| unit.iter().all(|b| *b == 0);
    let mut at = offset;
    for stretch in bytes.chunks(UNIT).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let end = at + stretch.iter().map(|unit| unit.len() as u64).sum::<u64>();
        if is_zero(&stretch[0]) {
            zero(storage, at, end)?;
        }
        at = end;
    }
    Ok(())
}

fn layout(options: &FormatOptions) -> Result<Superblock> {
    let size = whole_pages(options.size);
    let log_size = options.log_size.unwrap_or(default_areas(size).0);
    let doublewrite_pages = options.doublewrite_pages.unwrap_or(default_halves(log_size));
    let superblock = Superblock {
        hash_seed: options.hash_seed,
        label: options.label.clone(),
        ..Superblock::of_new_image(options.uuid, size, log_size, doublewrite_pages)
    };
    if superblock.label.len() > LABEL_MAX {
        return Err(Error::TooLarge { what: "label", size: superblock.label.len(), limit: LABEL_MAX });
    }
    let least = superblock.data_offset() + CHUNK_SIZE as u64;
    if size < least || size > IMAGE_SIZE_MAX {
        return Err(Error::Unusable(format!(
            "an image cannot have {} bytes, only {least} (with a log of {log_size}) to {IMAGE_SIZE_MAX}",
            options.size
        )));
    }
    Superblock::decode(&superblock.encode())
        .map_err(|e| Error::Unusable(format!("cannot make such an image: {e}")))
}
