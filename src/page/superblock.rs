//! The superblock: what the image is, where its parts lie, and where recovery begins. Two copies, written
//! one after the other; the valid one with the greater sequence number counts.

use std::io;

use super::bitmap::Bitmap;
use super::format::*;
use super::ids::{BlockNo, Lsn, PageId, Run};
use super::node::Node;

/// Bytes of a superblock; its contents lie in the first sector.
pub const SUPERBLOCK_SIZE: usize = 4096;
/// Byte offsets of the two copies.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, PAGE_SIZE as u64];
/// Where the log begins, in bytes.
pub const LOG_OFFSET: u64 = 64 << 10;
/// The format version that this code writes and reads.
pub const VERSION: u32 = 2;
/// The longest label, in bytes.
pub const LABEL_MAX: usize = 64;

const MAGIC: [u8; 8] = *b"btfs\r\n\x1a\n";

const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_PAGE_SIZE: usize = 12;
const AT_COMPAT: usize = 16;
const AT_RO_COMPAT: usize = 24;
const AT_INCOMPAT: usize = 32;
const AT_UUID: usize = 40;
const AT_HASH_SEED: usize = 56;
const AT_LABEL: usize = 72;
const AT_SEQUENCE: usize = 136;
const AT_SIZE: usize = 144;
const AT_LOG_OFFSET: usize = 152;
const AT_LOG_SIZE: usize = 160;
const AT_DW_OFFSET: usize = 168;
const AT_DW_PAGES: usize = 176;
const AT_GROUPS: usize = 180;
const AT_DATA_OFFSET: usize = 184;
const AT_ROOT: usize = 192;
const AT_CHECKPOINT: usize = 200;
const AT_FLOOR: usize = 208;
const AT_INCARNATION: usize = 216;
const AT_CLEAN: usize = 220;
const AT_CRC: usize = 508;

const _: () = {
    assert!(AT_LABEL + LABEL_MAX == AT_SEQUENCE);
    assert!(AT_CLEAN < AT_CRC && AT_CRC + 4 == 512);
    assert!(SUPERBLOCK_OFFSETS[1] + SUPERBLOCK_SIZE as u64 <= LOG_OFFSET);
    assert!(LOG_OFFSET.is_multiple_of(PAGE_SIZE as u64));
};

/// A compatible feature that says no more than that damage of the tree has been met. Only a repair that finds none any more takes it back.
pub const COMPAT_DAMAGED: u64 = 1;

/// Features that an image needs while a repair of it is under way: whoever does not know of them refuses the image.
///
/// The bitmaps are not to be believed.
pub const INCOMPAT_BITMAPS: u64 = 1 << 63;
/// What was lost is not marked as lost yet, and would be read as zeros.
pub const INCOMPAT_RECORDS: u64 = 1 << 62;
const INCOMPAT_KNOWN: u64 = INCOMPAT_BITMAPS | INCOMPAT_RECORDS;

/// Bytes of a superblock of which bitmap pages hold a copy: all but the state of log and checkpoint.
pub const BACKUP_SIZE: usize = AT_CHECKPOINT;

/// The size of the log in bytes and the pages of a doublewrite half of an image of `size` bytes, if nobody says otherwise.
pub fn default_areas(size: u64) -> (u64, u32) {
    let log = whole_pages((size / 128).clamp(4 << 20, 256 << 20).min((size / 8).max(LOG_SIZE_MIN)));
    (log, default_halves(log))
}

/// The pages of a doublewrite half beside a log of so many bytes, if nobody says otherwise.
pub fn default_halves(log_size: u64) -> u32 {
    (log_size / 16 / PAGE_SIZE as u64).clamp(8, 128) as u32
}

/// A superblock's contents. Sizes and offsets in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Features that any implementation may ignore.
    pub compat: u64,
    /// Features without which an implementation may only read.
    pub ro_compat: u64,
    /// Features without which an implementation must refuse.
    pub incompat: u64,
    /// The image's UUID; its first eight bytes stand in every page.
    pub uuid: [u8; 16],
    /// Seed of the hash of directory entries.
    pub hash_seed: [u8; 16],
    /// Label, at most [`LABEL_MAX`] bytes of UTF-8.
    pub label: String,
    /// Counts the writes of superblocks.
    pub sequence: u64,
    /// Declared size of the image.
    pub size: u64,
    /// Size of the log.
    pub log_size: u64,
    /// Pages of one doublewrite half, without its header page.
    pub doublewrite_pages: u32,
    /// How many groups had a bitmap page when the checkpoint was taken.
    pub groups: u32,
    /// The tree's root page; only a repair changes it.
    pub root: PageId,
    /// Redo begins here.
    pub checkpoint: Lsn,
    /// The log was durable at least up to here.
    pub floor: Lsn,
    /// Records of this incarnation only are valid behind the checkpoint.
    pub incarnation: u32,
    /// Whether the image was closed in order: nothing to redo.
    pub clean: bool,
}

/// Why a sector is not a superblock that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Not a btfs image, or none any more.
    #[error("the magic number is missing")]
    NotAnImage,
    /// The contents do not hold together.
    #[error("{0}")]
    Damaged(&'static str),
    /// Written by another version.
    #[error("its format has version {0}, this program knows version {VERSION}")]
    Version(u32),
    /// Needs features that this version does not have.
    #[error("it needs features that this program lacks ({0:#x})")]
    Features(u64),
}

/// Why there is no superblock to be had at one of its two places.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The medium does not give it.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// It is none that can be used.
    #[error(transparent)]
    Unusable(#[from] SuperblockError),
}

/// What is found at the two places of superblocks, in their order.
pub type Copies = [Result<Superblock, Missing>; 2];

/// Reads both superblocks of a file or device of `len` bytes; `read` fills a buffer with what lies at an offset.
pub fn read_copies(len: u64, read: impl Fn(u64, &mut [u8]) -> io::Result<()>) -> Copies {
    SUPERBLOCK_OFFSETS.map(|at| {
        let mut bytes = [0; SUPERBLOCK_SIZE];
        if at + SUPERBLOCK_SIZE as u64 > len {
            return Err(SuperblockError::NotAnImage.into());
        }
        read(at, &mut bytes).map_err(Missing::Unreadable)?;
        Ok(Superblock::decode(&bytes)?)
    })
}

/// The superblock that counts: of those that fit into `len` bytes the newest, of two with the same number the first. If none fits it may
/// be one that says more.
pub fn newest(copies: &Copies, len: u64) -> Option<&Superblock> {
    let whole = copies.iter().rev().flatten();
    whole.max_by_key(|superblock| (superblock.size <= len, superblock.sequence))
}

/// The superblock that counts, or why there is none: of two reasons the one that says more.
pub fn choose(copies: Copies, len: u64) -> Result<Superblock, Missing> {
    if let Some(superblock) = newest(&copies, len) {
        return Ok(superblock.clone());
    }
    let says = |reason: &Missing| match reason {
        Missing::Unreadable(_) => 2,
        Missing::Unusable(SuperblockError::NotAnImage) => 0,
        Missing::Unusable(_) => 1,
    };
    let reasons = copies.into_iter().rev().filter_map(Result::err);
    Err(reasons.max_by_key(says).unwrap_or(SuperblockError::NotAnImage.into()))
}

impl Superblock {
    /// The superblock of an image just made, which has one group and an empty log. The size, in bytes, is rounded down to pages.
    pub fn of_new_image(uuid: [u8; 16], size: u64, log_size: u64, doublewrite_pages: u32) -> Self {
        let mut superblock = Superblock {
            compat: 0,
            ro_compat: 0,
            incompat: 0,
            uuid,
            hash_seed: [0; 16],
            label: String::new(),
            sequence: 0,
            size: whole_pages(size),
            log_size,
            doublewrite_pages,
            groups: 1,
            root: PageId::NONE,
            // LSN 0 would stand for "clean" in a frame.
            checkpoint: Lsn(log_size),
            floor: Lsn(log_size),
            incarnation: 1,
            clean: true,
        };
        superblock.root = PageId(superblock.bitmap_page(0).0 + 1);
        superblock
    }
    /// The identity that every page of the image carries.
    pub fn image(&self) -> u64 {
        get_u64(&self.uuid, 0)
    }
    /// Whether a repair was begun and has not ended: only the checker may use the filesystem.
    pub fn under_repair(&self) -> bool {
        self.lacks_bitmaps() || self.lacks_records()
    }
    /// Whether a repair has not written the bitmaps yet: only the checker can read the image.
    pub fn lacks_bitmaps(&self) -> bool {
        self.incompat & INCOMPAT_BITMAPS != 0
    }
    /// Whether a repair has not marked yet what was lost: the tree is whole, but only the checker may open a filesystem in it.
    pub fn lacks_records(&self) -> bool {
        self.incompat & INCOMPAT_RECORDS != 0
    }
    /// Whether damage has been met that no repair has found to be gone.
    pub fn is_damaged(&self) -> bool {
        self.compat & COMPAT_DAMAGED != 0
    }
    /// Notes that damage has been met, or that a repair has found none any more.
    pub fn set_damaged(&mut self, damaged: bool) {
        self.compat = if damaged { self.compat | COMPAT_DAMAGED } else { self.compat & !COMPAT_DAMAGED };
    }
    /// Whether sequence number, LSNs or incarnation have come near their ends. Only a forger brings them there: the image is not written
    /// to any more, and the checker takes such a superblock as damaged. What is left of the ranges is more than one opening uses.
    pub fn is_spent(&self) -> bool {
        self.sequence > COUNTER_SPENT || self.floor.0 > COUNTER_SPENT || self.incarnation > INCARNATION_SPENT
    }
    /// Byte offset of doublewrite half `half` (0 or 1).
    pub fn doublewrite_offset(&self, half: usize) -> u64 {
        LOG_OFFSET + self.log_size + half as u64 * self.doublewrite_half_size()
    }
    /// Bytes of a doublewrite half, its header page included.
    pub fn doublewrite_half_size(&self) -> u64 {
        (self.doublewrite_pages as u64 + 1) * PAGE_SIZE as u64
    }
    /// Byte offset of the copy of a page in half `half`, in the order in which its header names them.
    pub fn copy_offset(&self, half: usize, number: usize) -> u64 {
        self.doublewrite_offset(half) + (number as u64 + 1) * PAGE_SIZE as u64
    }
    /// Reads the header of doublewrite half `half` (0 or 1), which may name more pages than there is room for; `None` if it is not a whole
    /// one. `read` fills a buffer with what lies at an offset.
    pub fn read_half(
        &self,
        half: usize,
        read: impl FnOnce(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Option<DoublewriteHeader>> {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let at = self.doublewrite_offset(half);
        read(at, &mut page[..])?;
        Ok(DoublewriteHeader::decode(&page, PageId(at / PAGE_SIZE as u64), self.image()))
    }
    /// Where group 0 begins.
    pub fn data_offset(&self) -> u64 {
        self.doublewrite_offset(2)
    }
    /// How many groups the image has, the last one perhaps short. A rest that is smaller than a chunk is not a
    /// group: there might not even be room for its bitmap page.
    pub fn group_count(&self) -> u32 {
        ((self.size - self.data_offset() + GROUP_SIZE - CHUNK_SIZE as u64) / GROUP_SIZE) as u32
    }
    /// How many blocks group `group` has; 0 if there is no such group.
    pub fn group_blocks(&self, group: u32) -> u32 {
        if group >= self.group_count() {
            return 0;
        }
        let begin = self.data_offset() + group as u64 * GROUP_SIZE;
        ((self.size.saturating_sub(begin)).min(GROUP_SIZE) / BLOCK_SIZE as u64) as u32
    }
    /// The first block of group 0.
    pub fn first_block(&self) -> BlockNo {
        BlockNo(self.data_offset() / BLOCK_SIZE as u64)
    }
    /// Whether the image has so many blocks from this one on, its bitmap pages and a rest that is not a group among them.
    pub fn has_blocks(&self, start: BlockNo, count: u64) -> bool {
        let end = self.size / BLOCK_SIZE as u64;
        start >= self.first_block() && start.0 <= end && count <= end - start.0
    }
    /// The group of a block that the image has, and the block's number within it.
    pub fn locate(&self, block: BlockNo) -> (u32, u32) {
        let (number, per_group) = (block.0 - self.first_block().0, BLOCKS_PER_GROUP as u64);
        ((number / per_group) as u32, (number % per_group) as u32)
    }
    /// Whether a run lies in one of the first `groups` groups, behind its bitmap page.
    pub fn is_valid_run(&self, run: Run, groups: u32) -> bool {
        if run.len == 0 || !self.has_blocks(run.start, 1) {
            return false;
        }
        let (group, start) = self.locate(run.start);
        group < groups
            && start >= BLOCKS_PER_PAGE
            && start as u64 + run.len as u64 <= self.group_blocks(group) as u64
    }
    /// The bitmap page of group `group`, which is the group's first page.
    pub fn bitmap_page(&self, group: u32) -> PageId {
        PageId((self.data_offset() + group as u64 * GROUP_SIZE) / PAGE_SIZE as u64)
    }

    /// The superblock's bytes as they are written.
    pub fn encode(&self) -> [u8; SUPERBLOCK_SIZE] {
        let mut b = [0; SUPERBLOCK_SIZE];
        b[AT_MAGIC..AT_MAGIC + 8].copy_from_slice(&MAGIC);
        put_u32(&mut b, AT_VERSION, VERSION);
        put_u32(&mut b, AT_PAGE_SIZE, PAGE_SIZE as u32);
        put_u64(&mut b, AT_COMPAT, self.compat);
        put_u64(&mut b, AT_RO_COMPAT, self.ro_compat);
        put_u64(&mut b, AT_INCOMPAT, self.incompat);
        b[AT_UUID..AT_UUID + 16].copy_from_slice(&self.uuid);
        b[AT_HASH_SEED..AT_HASH_SEED + 16].copy_from_slice(&self.hash_seed);
        let label = self.label.as_bytes();
        let len = label.len().min(LABEL_MAX);
        b[AT_LABEL..AT_LABEL + len].copy_from_slice(&label[..len]);
        put_u64(&mut b, AT_SEQUENCE, self.sequence);
        put_u64(&mut b, AT_SIZE, self.size);
        put_u64(&mut b, AT_LOG_OFFSET, LOG_OFFSET);
        put_u64(&mut b, AT_LOG_SIZE, self.log_size);
        put_u64(&mut b, AT_DW_OFFSET, self.doublewrite_offset(0));
        put_u32(&mut b, AT_DW_PAGES, self.doublewrite_pages);
        put_u32(&mut b, AT_GROUPS, self.groups);
        put_u64(&mut b, AT_DATA_OFFSET, self.data_offset());
        put_u64(&mut b, AT_ROOT, self.root.0);
        put_u64(&mut b, AT_CHECKPOINT, self.checkpoint.0);
        put_u64(&mut b, AT_FLOOR, self.floor.0);
        put_u32(&mut b, AT_INCARNATION, self.incarnation);
        b[AT_CLEAN] = self.clean as u8;
        let crc = crc32fast::hash(&b[..AT_CRC]);
        put_u32(&mut b, AT_CRC, crc);
        b
    }

    /// The copy for bitmap pages.
    pub fn backup(&self) -> [u8; BACKUP_SIZE] {
        let mut copy = [0; BACKUP_SIZE];
        copy.copy_from_slice(&self.encode()[..BACKUP_SIZE]);
        copy
    }

    /// Reads such a copy, or the first bytes of a damaged superblock, and checks what can be checked. The magic number is not looked
    /// at; log and checkpoint are those of a new image, and so is the number of groups.
    pub fn from_backup(copy: &[u8; BACKUP_SIZE]) -> Result<Superblock, SuperblockError> {
        let mut b = [0; SUPERBLOCK_SIZE];
        b[..BACKUP_SIZE].copy_from_slice(copy);
        b[..AT_VERSION].copy_from_slice(&MAGIC);
        let log_size = get_u64(&b, AT_LOG_SIZE);
        put_u64(&mut b, AT_SEQUENCE, 0);
        put_u32(&mut b, AT_GROUPS, 1);
        put_u64(&mut b, AT_CHECKPOINT, log_size);
        put_u64(&mut b, AT_FLOOR, log_size);
        put_u32(&mut b, AT_INCARNATION, 1);
        b[AT_CLEAN] = 1;
        for (at, passing) in [(AT_COMPAT, COMPAT_DAMAGED), (AT_INCOMPAT, INCOMPAT_KNOWN)] {
            let lasting = get_u64(&b, at) & !passing;
            put_u64(&mut b, at, lasting);
        }
        let crc = crc32fast::hash(&b[..AT_CRC]);
        put_u32(&mut b, AT_CRC, crc);
        Superblock::decode(&b)
    }

    /// Reads and checks a superblock. Whether the file or device has the size that it says is not looked at.
    pub fn decode(b: &[u8; SUPERBLOCK_SIZE]) -> Result<Superblock, SuperblockError> {
        use SuperblockError::*;
        if b[AT_MAGIC..AT_MAGIC + 8] != MAGIC {
            return Err(NotAnImage);
        }
        if get_u32(b, AT_CRC) != crc32fast::hash(&b[..AT_CRC]) {
            return Err(Damaged("checksum does not match"));
        }
        match get_u32(b, AT_VERSION) {
            VERSION => {}
            v => return Err(Version(v)),
        }
        let incompat = get_u64(b, AT_INCOMPAT);
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(Features(incompat));
        }
        let label = &b[AT_LABEL..AT_LABEL + LABEL_MAX];
        let label = &label[..label.iter().position(|c| *c == 0).unwrap_or(LABEL_MAX)];
        let array = |at: usize| {
            let mut a = [0; 16];
            a.copy_from_slice(&b[at..at + 16]);
            a
        };
        let superblock = Superblock {
            compat: get_u64(b, AT_COMPAT),
            ro_compat: get_u64(b, AT_RO_COMPAT),
            incompat,
            uuid: array(AT_UUID),
            hash_seed: array(AT_HASH_SEED),
            label: String::from_utf8_lossy(label).into_owned(),
            sequence: get_u64(b, AT_SEQUENCE),
            size: get_u64(b, AT_SIZE),
            log_size: get_u64(b, AT_LOG_SIZE),
            doublewrite_pages: get_u32(b, AT_DW_PAGES),
            groups: get_u32(b, AT_GROUPS),
            root: PageId(get_u64(b, AT_ROOT)),
            checkpoint: Lsn(get_u64(b, AT_CHECKPOINT)),
            floor: Lsn(get_u64(b, AT_FLOOR)),
            incarnation: get_u32(b, AT_INCARNATION),
            clean: b[AT_CLEAN] != 0,
        };
        superblock.validate(b).map_err(Damaged)?;
        Ok(superblock)
    }

    fn validate(&self, b: &[u8]) -> Result<(), &'static str> {
        let page = PAGE_SIZE as u64;
        if get_u32(b, AT_PAGE_SIZE) as usize != PAGE_SIZE {
            return Err("page size is not 16384");
        }
        if !(LOG_SIZE_MIN..=LOG_SIZE_MAX).contains(&self.log_size) || !self.log_size.is_multiple_of(page) {
            return Err("impossible log size");
        }
        if !(DOUBLEWRITE_PAGES_MIN..=DOUBLEWRITE_PAGES_MAX).contains(&self.doublewrite_pages) {
            return Err("impossible size of the doublewrite area");
        }
        if self.size > IMAGE_SIZE_MAX
            || !self.size.is_multiple_of(page)
            || self.size < self.data_offset() + CHUNK_SIZE as u64
        {
            return Err("impossible image size");
        }
        if get_u64(b, AT_LOG_OFFSET) != LOG_OFFSET
            || get_u64(b, AT_DW_OFFSET) != self.doublewrite_offset(0)
            || get_u64(b, AT_DATA_OFFSET) != self.data_offset()
        {
            return Err("parts of the image do not lie one behind the other");
        }
        if self.groups == 0 || self.groups > self.group_count() {
            return Err("impossible number of groups");
        }
        if !self.is_data_page(self.root) {
            return Err("root page outside the image");
        }
        if self.sequence > COUNTER_MAX || self.floor.0 > COUNTER_MAX || self.incarnation == u32::MAX {
            return Err("impossible sequence number, LSN or incarnation");
        }
        if self.checkpoint.0 < self.log_size {
            return Err("checkpoint before the log's beginning");
        }
        if self.floor < self.checkpoint || self.floor.0 - self.checkpoint.0 > self.log_size {
            return Err("checkpoint and durable floor do not fit");
        }
        Ok(())
    }

    /// Checks a page as it was read: that it is this page of this image, of a type that belongs there, and sound in itself. Whether its
    /// LSN can be right is for the caller to say.
    pub fn verify_page(&self, id: PageId, page: &PageBytes) -> Result<(), &'static str> {
        verify_seal(page, id, self.image())?;
        match page_type(page) {
            TYPE_TREE if self.is_data_page(id) => Node(page).validate(),
            TYPE_BITMAP if self.is_bitmap_page(id) => Bitmap(page).validate(),
            _ => Err("unknown page type, or one that does not belong here"),
        }
    }

    /// Whether a page number is that of a group's bitmap page.
    pub fn is_bitmap_page(&self, id: PageId) -> bool {
        let first = self.data_offset() / PAGE_SIZE as u64;
        let per_group = (BLOCKS_PER_GROUP / BLOCKS_PER_PAGE) as u64;
        id.0 >= first
            && (id.0 - first).is_multiple_of(per_group)
            && (id.0 - first) / per_group < self.group_count() as u64
    }

    /// Whether a page number can be a tree page of this image: inside a group, and not its bitmap.
    pub fn is_data_page(&self, id: PageId) -> bool {
        let first = self.data_offset() / PAGE_SIZE as u64;
        let per_group = (BLOCKS_PER_GROUP / BLOCKS_PER_PAGE) as u64;
        let end = (self.size / PAGE_SIZE as u64).min(first + self.group_count() as u64 * per_group);
        id.0 > first && id.0 < end && !(id.0 - first).is_multiple_of(per_group)
    }
}

/// Smallest and largest log, in bytes.
pub const LOG_SIZE_MIN: u64 = 256 << 10;
/// Largest log, in bytes.
pub const LOG_SIZE_MAX: u64 = 16 << 30;
/// Fewest pages of a doublewrite half.
pub const DOUBLEWRITE_PAGES_MIN: u32 = 4;
/// Most pages of a doublewrite half: as many as its header page can name.
pub const DOUBLEWRITE_PAGES_MAX: u32 = 512;
/// The largest image, in bytes (8 EiB would be the file offset's limit; this leaves room for sums).
pub const IMAGE_SIZE_MAX: u64 = 1 << 60;

/// The greatest LSN and sequence number of an image that is opened. No image reaches it by use; a forged one could, and
/// sums would wrap.
pub const COUNTER_MAX: u64 = 1 << 62;
/// The greatest LSN and sequence number of an image that is written to.
pub const COUNTER_SPENT: u64 = COUNTER_MAX / 4 * 3;
/// The greatest incarnation of an image that is written to.
pub const INCARNATION_SPENT: u32 = u32::MAX - (1 << 16);

/// The header page of a doublewrite half: which pages follow, and their LSNs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoublewriteHeader {
    /// Counts the batches; the greater one is the newer.
    pub sequence: u64,
    /// The log was durable at least up to here when the half was written.
    pub floor: Lsn,
    /// The pages' numbers and LSNs in the order in which they follow.
    pub pages: Vec<(PageId, Lsn)>,
}

const DW_SEQUENCE: usize = 32;
const DW_FLOOR: usize = 40;
const DW_COUNT: usize = 48;
const DW_ENTRIES: usize = 64;
const DW_ENTRY_SIZE: usize = 16;

const _: () = assert!(DW_ENTRIES + DOUBLEWRITE_PAGES_MAX as usize * DW_ENTRY_SIZE <= PAGE_SIZE);

impl DoublewriteHeader {
    /// Writes the header page, sealed, for the half that lies at page `id`.
    pub fn encode(&self, page: &mut PageBytes, id: PageId, image: u64) {
        init_header(page, TYPE_DOUBLEWRITE, id, image);
        page[HEADER_SIZE..].fill(0);
        put_u64(page, DW_SEQUENCE, self.sequence);
        put_u64(page, DW_FLOOR, self.floor.0);
        put_u32(page, DW_COUNT, self.pages.len() as u32);
        for (i, (id, lsn)) in self.pages.iter().enumerate() {
            put_u64(page, DW_ENTRIES + i * DW_ENTRY_SIZE, id.0);
            put_u64(page, DW_ENTRIES + i * DW_ENTRY_SIZE + 8, lsn.0);
        }
        seal(page);
    }

    /// Reads a header page; `None` if it is not a whole one (never written, or torn).
    pub fn decode(page: &PageBytes, id: PageId, image: u64) -> Option<DoublewriteHeader> {
        verify_seal(page, id, image).ok()?;
        let count = get_u32(page, DW_COUNT);
        if page_type(page) != TYPE_DOUBLEWRITE || count > DOUBLEWRITE_PAGES_MAX {
            return None;
        }
        let (sequence, floor) = (get_u64(page, DW_SEQUENCE), get_u64(page, DW_FLOOR));
        if sequence > COUNTER_MAX || floor > COUNTER_MAX {
            return None;
        }
        let entry = |i: usize| {
            let at = DW_ENTRIES + i * DW_ENTRY_SIZE;
            (PageId(get_u64(page, at)), Lsn(get_u64(page, at + 8)))
        };
        Some(DoublewriteHeader {
            sequence,
            floor: Lsn(floor),
            pages: (0..count as usize).map(entry).collect(),
        })
    }
}
