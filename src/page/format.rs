//! Sizes and offsets of everything that lies in a page, and the checksum over it. `docs/format.md` is the same
//! in prose; the assertions below fail the build when the two halves of a structure no longer fit.

use super::ids::{Lsn, PageId};

/// Bytes of a page: the unit of the buffer pool and of tree and bitmap pages.
pub const PAGE_SIZE: usize = 16384;
/// Bytes of a block: the unit in which space is counted.
pub const BLOCK_SIZE: usize = 4096;
/// Blocks of a page.
pub const BLOCKS_PER_PAGE: u32 = (PAGE_SIZE / BLOCK_SIZE) as u32;
/// Bytes of a chunk: tree pages are carved from chunks that the host has allocated as a whole.
pub const CHUNK_SIZE: usize = 1 << 20;
/// Blocks of a chunk.
pub const BLOCKS_PER_CHUNK: u32 = (CHUNK_SIZE / BLOCK_SIZE) as u32;

/// The longest key, in bytes.
pub const KEY_MAX: usize = PAGE_SIZE / 16;
/// The greatest level of a page. With two children a page, which is the least, that many levels have more pages than an image can.
pub const LEVEL_MAX: u8 = 63;
/// The longest key and value together, in bytes.
pub const RECORD_MAX: usize = PAGE_SIZE / 4;

/// So many bytes, rounded down to whole pages.
pub fn whole_pages(bytes: u64) -> u64 {
    bytes / PAGE_SIZE as u64 * PAGE_SIZE as u64
}

/// A page's bytes.
pub type PageBytes = [u8; PAGE_SIZE];

// The header that every page has.
pub(crate) const OFF_CRC: usize = 0;
pub(crate) const OFF_TYPE: usize = 4;
pub(crate) const OFF_LEVEL: usize = 5;
pub(crate) const OFF_FLAGS: usize = 6;
pub(crate) const OFF_PAGE: usize = 8;
pub(crate) const OFF_LSN: usize = 16;
pub(crate) const OFF_IMAGE: usize = 24;

// The rest of the header in tree pages.
pub(crate) const OFF_RIGHT: usize = 32;
pub(crate) const OFF_SLOTS: usize = 40;
pub(crate) const OFF_HEAP: usize = 42;
pub(crate) const OFF_GARBAGE: usize = 44;
pub(crate) const OFF_PREFIX: usize = 46;
pub(crate) const OFF_LOW: usize = 48;
pub(crate) const OFF_HIGH: usize = 50;
pub(crate) const OFF_APPENDS: usize = 52;
pub(crate) const OFF_RESERVED: usize = 54;
/// Bytes of a page's header; a tree page's slots begin here.
pub const HEADER_SIZE: usize = 64;
/// Bytes of a slot: search head (4), offset (2), length of the key's suffix (2).
pub const SLOT_SIZE: usize = 8;
/// Bytes of a record in the heap before its key: the value's length.
pub(crate) const RECORD_HEADER: usize = 2;
/// The high key's length in a page without one (the rightmost of its level).
pub(crate) const NO_HIGH_KEY: u16 = u16::MAX;

/// Page type: a node of the tree.
pub const TYPE_TREE: u8 = 1;
/// Page type: a group's bitmap.
pub const TYPE_BITMAP: u8 = 2;
/// Page type: the header of a doublewrite half.
pub const TYPE_DOUBLEWRITE: u8 = 3;

/// Flag: the right sibling's separator is not yet in the parent.
pub const FLAG_INCOMPLETE: u16 = 1;
/// Flag: merged away; whoever comes here goes back to the root.
pub const FLAG_DEAD: u16 = 2;

// A group's bitmap page.
/// Where the map of chunks that hold tree pages begins: one bit a chunk, lowest bit first.
pub const BITMAP_CHUNKS: usize = HEADER_SIZE;
/// Where the copy of the superblock's first bytes begins.
pub const BITMAP_BACKUP: usize = 128;
/// Where the map of blocks begins: one bit a block, lowest bit first, 1 = in use.
pub const BITMAP_BITS: usize = 512;
/// Blocks of a group, its bitmap page among them.
pub const BLOCKS_PER_GROUP: u32 = ((PAGE_SIZE - BITMAP_BITS) * 8) as u32;
/// Chunks of a group.
pub const CHUNKS_PER_GROUP: u32 = BLOCKS_PER_GROUP / BLOCKS_PER_CHUNK;
/// Bytes of a group.
pub const GROUP_SIZE: u64 = BLOCKS_PER_GROUP as u64 * BLOCK_SIZE as u64;

const _: () = {
    assert!(OFF_RESERVED <= HEADER_SIZE);
    assert!(HEADER_SIZE.is_multiple_of(SLOT_SIZE));
    assert!(BLOCKS_PER_GROUP.is_multiple_of(BLOCKS_PER_CHUNK));
    assert!(BITMAP_CHUNKS + CHUNKS_PER_GROUP.div_ceil(8) as usize <= BITMAP_BACKUP);
    assert!(BITMAP_BACKUP + super::superblock::BACKUP_SIZE <= BITMAP_BITS);
    assert!(PAGE_SIZE <= u16::MAX as usize, "offsets in a page are 16 bits");
    // Two fences and three largest records fit in a page: every split ends with pages in which all fits.
    assert!(HEADER_SIZE + 2 * KEY_MAX + 3 * (RECORD_MAX + SLOT_SIZE + RECORD_HEADER) <= PAGE_SIZE);
};

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    let mut b = [0; 2];
    b.copy_from_slice(&bytes[at..at + 2]);
    u16::from_be_bytes(b)
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(b)
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(b)
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, v: u16) {
    bytes[at..at + 2].copy_from_slice(&v.to_be_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, v: u32) {
    bytes[at..at + 4].copy_from_slice(&v.to_be_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, v: u64) {
    bytes[at..at + 8].copy_from_slice(&v.to_be_bytes());
}

/// The LSN stamped on a page: the end of the last record that changed it.
pub fn page_lsn(page: &PageBytes) -> Lsn {
    Lsn(get_u64(page, OFF_LSN))
}

/// Stamps a page with the end LSN of the record that changed it.
pub fn set_page_lsn(page: &mut PageBytes, lsn: Lsn) {
    put_u64(page, OFF_LSN, lsn.0);
}

/// The page's type byte.
pub fn page_type(page: &PageBytes) -> u8 {
    page[OFF_TYPE]
}

/// The number that the page says it has.
pub fn page_number(page: &PageBytes) -> PageId {
    PageId(get_u64(page, OFF_PAGE))
}

/// The image that the page says it belongs to.
pub fn page_image(page: &PageBytes) -> u64 {
    get_u64(page, OFF_IMAGE)
}

/// The page's flags.
pub fn page_flags(page: &PageBytes) -> u16 {
    get_u16(page, OFF_FLAGS)
}

/// Writes what every page begins with; the checksum comes with [`seal`].
pub fn init_header(page: &mut PageBytes, kind: u8, id: PageId, image: u64) {
    page[..HEADER_SIZE].fill(0);
    page[OFF_TYPE] = kind;
    put_u64(page, OFF_PAGE, id.0);
    put_u64(page, OFF_IMAGE, image);
}

/// Computes the checksum of a page that is about to be written, and stores it.
pub fn seal(page: &mut PageBytes) {
    let crc = crc32fast::hash(&page[4..]);
    put_u32(page, OFF_CRC, crc);
}

/// Checks a page as it was read: checksum, number, and the image that it belongs to.
pub fn verify_seal(page: &PageBytes, id: PageId, image: u64) -> Result<(), &'static str> {
    if get_u32(page, OFF_CRC) != crc32fast::hash(&page[4..]) {
        return Err("checksum does not match");
    }
    if page_number(page) != id {
        return Err("page carries another page's number");
    }
    if get_u64(page, OFF_IMAGE) != image {
        return Err("page belongs to another image");
    }
    Ok(())
}
