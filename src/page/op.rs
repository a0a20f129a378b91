//! The changes that log records carry: what the running tree does to a page and what recovery does again.
//!
//! A record's body is a row of *sections*, one a page: page number, length, operations. [`apply`] is the only
//! code that changes a tree or bitmap page, at run time and in redo alike, so the two cannot differ. It uses only the
//! operation and that page (physiological logging, Gray & Reuter).

use super::bitmap::{self, Bitmap, BitmapMut};
use super::format::*;
use super::ids::{BlockNo, PageId};
use super::node::{self, Covers, Node, NodeMut};

/// One change of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Insert or replace a record.
    Put {
        /// The whole key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// Delete a record.
    Delete {
        /// The whole key.
        key: &'a [u8],
    },
    /// The page is born, or gets all new contents (root growth): its packed image.
    Image(&'a [u8]),
    /// The left half of a split.
    Truncate {
        /// The new high key.
        high: &'a [u8],
        /// The new right sibling.
        right: PageId,
    },
    /// The left half of a merge: the packed image of the right page that it takes over.
    Absorb(&'a [u8]),
    /// The right sibling's separator has been posted.
    SplitDone,
    /// The page has been merged away.
    Kill,
    /// A group's bitmap page is born.
    InitBitmap {
        /// How many blocks at its beginning are in use.
        used: u32,
        /// The first block that does not exist (the last group may be short).
        end: u32,
    },
    /// Blocks of the group are in use from now on.
    Allocate {
        /// First block, counted in the group.
        start: u32,
        /// How many.
        len: u32,
        /// Whether they become tree pages.
        pages: bool,
    },
    /// Blocks of the group are free from now on.
    Free {
        /// First block, counted in the group.
        start: u32,
        /// How many.
        len: u32,
    },
    /// Contents of file blocks, in a section of [`DATA_SECTION`]: they were written home before this was logged, and redo writes
    /// them again unless a later record frees the blocks.
    Data {
        /// First block, counted in the image.
        start: BlockNo,
        /// Whole blocks.
        bytes: &'a [u8],
    },
}

/// The page number of the section that holds [`Op::Data`] and changes no page. The superblock lies there.
pub const DATA_SECTION: PageId = PageId(0);

const PUT: u8 = 1;
const DELETE: u8 = 2;
const IMAGE: u8 = 3;
const TRUNCATE: u8 = 4;
const ABSORB: u8 = 5;
const SPLIT_DONE: u8 = 6;
const KILL: u8 = 7;
const INIT_BITMAP: u8 = 8;
const ALLOCATE: u8 = 9;
const ALLOCATE_PAGES: u8 = 10;
const FREE: u8 = 11;
const DATA: u8 = 12;

/// Bytes of a section's head: page number (8), length of its operations (4).
pub const SECTION_HEAD: usize = 12;
/// The most bytes that one operation takes beyond its key, value or image.
pub const OP_HEAD: usize = 13;

impl<'a> Op<'a> {
    /// Whether the operation gives the page all its contents, whatever was there before.
    pub fn is_birth(&self) -> bool {
        matches!(self, Op::Image(_) | Op::InitBitmap { .. })
    }

    /// Whether the operation leaves a page of the type that belongs to its place, which is that of a bitmap or of another page. Only
    /// births can make one of the other type.
    pub fn fits(&self, bitmap: bool) -> bool {
        !self.is_birth() || matches!(self, Op::InitBitmap { .. }) == bitmap
    }

    /// Appends the operation to a section.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Op::Put { key, value } => {
                out.push(PUT);
                out.extend_from_slice(&(key.len() as u16).to_be_bytes());
                out.extend_from_slice(&(value.len() as u16).to_be_bytes());
                out.extend_from_slice(key);
                out.extend_from_slice(value);
            }
            Op::Delete { key } => with_bytes(out, DELETE, key),
            Op::Image(image) => with_bytes(out, IMAGE, image),
            Op::Truncate { high, right } => {
                with_bytes(out, TRUNCATE, high);
                out.extend_from_slice(&right.0.to_be_bytes());
            }
            Op::Absorb(image) => with_bytes(out, ABSORB, image),
            Op::SplitDone => out.push(SPLIT_DONE),
            Op::Kill => out.push(KILL),
            Op::InitBitmap { used, end } => with_range(out, INIT_BITMAP, used, end),
            Op::Allocate { start, len, pages: false } => with_range(out, ALLOCATE, start, len),
            Op::Allocate { start, len, pages: true } => with_range(out, ALLOCATE_PAGES, start, len),
            Op::Free { start, len } => with_range(out, FREE, start, len),
            Op::Data { start, bytes } => {
                out.push(DATA);
                out.extend_from_slice(&start.0.to_be_bytes());
                out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                out.extend_from_slice(bytes);
            }
        }
    }
}

fn with_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn with_range(out: &mut Vec<u8>, tag: u8, a: u32, b: u32) {
    out.push(tag);
    out.extend_from_slice(&a.to_be_bytes());
    out.extend_from_slice(&b.to_be_bytes());
}

/// Begins a section; give the result to [`end_section`].
pub fn begin_section(out: &mut Vec<u8>, page: PageId) -> usize {
    out.extend_from_slice(&page.0.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.len()
}

/// Writes the length of a section whose operations are complete.
pub fn end_section(out: &mut [u8], begun: usize) {
    let len = (out.len() - begun) as u32;
    put_u32(out, begun - 4, len);
}

/// A reader over bytes that may be damaged or hostile.
#[derive(Clone)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], &'static str> {
        let (a, b) = self.0.split_at_checked(n).ok_or("log record is cut off inside an operation")?;
        self.0 = b;
        Ok(a)
    }
    fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(self.take(1)?[0])
    }
    fn u16(&mut self) -> Result<usize, &'static str> {
        Ok(get_u16(self.take(2)?, 0) as usize)
    }
    fn u32(&mut self) -> Result<u32, &'static str> {
        Ok(get_u32(self.take(4)?, 0))
    }
    fn u64(&mut self) -> Result<u64, &'static str> {
        Ok(get_u64(self.take(8)?, 0))
    }
    fn bytes(&mut self) -> Result<&'a [u8], &'static str> {
        let n = self.u16()?;
        self.take(n)
    }
}

/// The sections of a record's body.
pub struct Sections<'a>(Reader<'a>);

/// Splits a record's body into its sections.
pub fn sections(body: &[u8]) -> Sections<'_> {
    Sections(Reader(body))
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<(PageId, Ops<'a>), &'static str>;
    fn next(&mut self) -> Option<Self::Item> {
        let r = &mut self.0;
        if r.0.is_empty() {
            return None;
        }
        let mut section = || -> Result<_, &'static str> {
            let page = PageId(r.u64()?);
            let len = r.u32()? as usize;
            Ok((page, Ops(Reader(r.take(len)?))))
        };
        let result = section();
        if result.is_err() {
            self.0.0 = &[];
        }
        Some(result)
    }
}

/// The operations of a section.
#[derive(Clone)]
pub struct Ops<'a>(Reader<'a>);

impl<'a> Ops<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Op<'a>, &'static str> {
        Ok(match r.u8()? {
            PUT => {
                let (key, value) = (r.u16()?, r.u16()?);
                Op::Put { key: r.take(key)?, value: r.take(value)? }
            }
            DELETE => Op::Delete { key: r.bytes()? },
            IMAGE => Op::Image(r.bytes()?),
            TRUNCATE => Op::Truncate { high: r.bytes()?, right: PageId(r.u64()?) },
            ABSORB => Op::Absorb(r.bytes()?),
            SPLIT_DONE => Op::SplitDone,
            KILL => Op::Kill,
            INIT_BITMAP => Op::InitBitmap { used: r.u32()?, end: r.u32()? },
            ALLOCATE => Op::Allocate { start: r.u32()?, len: r.u32()?, pages: false },
            ALLOCATE_PAGES => Op::Allocate { start: r.u32()?, len: r.u32()?, pages: true },
            FREE => Op::Free { start: r.u32()?, len: r.u32()? },
            DATA => {
                let (start, len) = (BlockNo(r.u64()?), r.u32()? as usize);
                Op::Data { start, bytes: r.take(len)? }
            }
            _ => return Err("unknown operation in a log record"),
        })
    }
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<Op<'a>, &'static str>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.0.is_empty() {
            return None;
        }
        let result = Ops::decode(&mut self.0);
        if result.is_err() {
            self.0.0 = &[];
        }
        Some(result)
    }
}

/// Applies one operation to page `id` of `image`. The caller holds the exclusive latch and stamps the LSN.
///
/// An error means that record and page do not belong together: at run time a bug, in redo damage. A page that
/// met an error must not be used.
pub fn apply(page: &mut PageBytes, id: PageId, image: u64, op: &Op<'_>) -> Result<(), &'static str> {
    match *op {
        Op::Image(packed) => {
            node::unpack(packed, page)?;
            return verify_identity(page, id, image);
        }
        Op::InitBitmap { used, end } => {
            if !in_bitmap(used, end) {
                return Err("bitmap with impossible bounds");
            }
            BitmapMut(page).init(id, image, used, end);
            return Ok(());
        }
        Op::Allocate { start, len, pages } => return allocate(page, start, len, pages),
        Op::Free { start, len } => return free(page, start, len),
        Op::Data { .. } => return Err("contents of a file among the changes of a page"),
        _ => {}
    }
    if page_type(page) != TYPE_TREE || Node(page).is_dead() {
        return Err("tree operation on a page that is not in the tree");
    }
    let mut node = NodeMut(page);
    match *op {
        Op::Put { key, value } => {
            if node.node().covers(key) != Covers::Inside {
                return Err("record put outside its page's fences");
            }
            if key.len() > KEY_MAX || key.len() + value.len() > RECORD_MAX {
                return Err("record longer than the limit");
            }
            if node.node().level() > 0 && (value.len() != 8 || get_u64(value, 0) == 0) {
                return Err("child is not a page number");
            }
            node.put(key, value).then_some(()).ok_or("record does not fit in its page")
        }
        Op::Delete { key } => {
            if node.node().covers(key) != Covers::Inside {
                return Err("record deleted outside its page's fences");
            }
            if node.node().level() > 0 && key == node.node().low() {
                return Err("first child of an inner page deleted");
            }
            node.delete(key);
            Ok(())
        }
        Op::Truncate { high, right } => node.truncate(high, right),
        Op::Absorb(packed) => {
            let mut right = [0; PAGE_SIZE];
            node::unpack(packed, &mut right)?;
            node.absorb(Node(&right))
        }
        Op::SplitDone => {
            node.change_flags(0, FLAG_INCOMPLETE);
            Ok(())
        }
        Op::Kill => {
            node.change_flags(FLAG_DEAD, 0);
            Ok(())
        }
        Op::Image(_) | Op::InitBitmap { .. } | Op::Allocate { .. } | Op::Free { .. } | Op::Data { .. } => {
            Ok(())
        }
    }
}

fn verify_identity(page: &PageBytes, id: PageId, image: u64) -> Result<(), &'static str> {
    if page_number(page) != id || get_u64(page, OFF_IMAGE) != image {
        return Err("page image carries another page's number");
    }
    Ok(())
}

fn in_bitmap(used: u32, end: u32) -> bool {
    used >= BLOCKS_PER_PAGE && used <= end && end <= BLOCKS_PER_GROUP
}

fn allocate(page: &mut PageBytes, start: u32, len: u32, pages: bool) -> Result<(), &'static str> {
    if page_type(page) != TYPE_BITMAP || !bitmap::in_group(start, len) {
        return Err("allocation outside a bitmap");
    }
    if Bitmap(page).state(start, len) != Some(false) {
        return Err("allocation of blocks that are in use");
    }
    BitmapMut(page).set(start, len, true);
    BitmapMut(page).set_chunks(start, len, pages);
    Ok(())
}

fn free(page: &mut PageBytes, start: u32, len: u32) -> Result<(), &'static str> {
    if page_type(page) != TYPE_BITMAP || !bitmap::in_group(start, len) || start < BLOCKS_PER_PAGE {
        return Err("free outside a bitmap");
    }
    if Bitmap(page).state(start, len) != Some(true) {
        return Err("free of blocks that are not in use");
    }
    BitmapMut(page).set(start, len, false);
    Ok(())
}
