//! An image in memory that is cheap to copy: copies share every block that neither has changed.
//!
//! Invariants:
//! - I1. A block that is absent was never written: it reads as zeros, or as stale bytes if the image has any.
//! - I2. Behind the length there is no present block, and in the last one nothing that was ever written.

use std::io;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use super::Rng;

/// The unit of sharing, in bytes.
const BLOCK: usize = 4096;
/// Blocks in a chunk. An image is copied by copying its list of chunks.
const CHUNK_BLOCKS: usize = 64;
/// The longest image that memory storages accept, so that a wild offset is an error and not an allocation.
const LEN_MAX: u64 = 1 << 42;

type Block = [u8; BLOCK];
type Chunk = [Option<Arc<Block>>; CHUNK_BLOCKS];

static ZEROS: LazyLock<Arc<Block>> = LazyLock::new(|| Arc::new([0; BLOCK]));

/// The bytes of an image at one moment. Cloning costs a few nanoseconds per 256 KiB, not a copy of the bytes.
#[derive(Clone, Debug)]
pub struct Image {
    len: u64,
    /// Only as long as the last chunk that was written.
    chunks: Vec<Option<Arc<Chunk>>>,
    stale: Option<u64>,
    allocates: bool,
}

impl Image {
    /// An image of `len` bytes in which nothing was ever written. That reads as zeros, or, if `stale` gives a
    /// seed, as random bytes that depend on the seed and the place alone: a block device's former content.
    /// Space that a greater length adds was never written either. (For old but *valid* content, make a new filesystem over the image of an earlier run.)
    pub fn new(len: u64, stale: Option<u64>) -> Self {
        Image { len, chunks: Vec::new(), stale, allocates: true }
    }

    /// The same on a host that neither allocates space in advance nor takes any back.
    pub fn without_allocation(self) -> Self {
        Image { allocates: false, ..self }
    }

    /// Whether the host allocates space in advance, and takes space back.
    pub(super) fn allocates(&self) -> bool {
        self.allocates
    }

    /// An image with this content.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Image::new(bytes.len() as u64, None);
        image.copy_in(0, bytes);
        image
    }

    /// The whole content, copied: to keep the image of a failure in a file, or to change it byte by byte.
    /// Fails where [`Image::read`] does.
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let mut bytes = vec![0; len];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// The length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an image is never asked whether it is empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The bytes of memory that hold content: 4096 for each block that was written and not punched since.
    pub fn allocated(&self) -> u64 {
        let blocks = self.chunks.iter().flatten().flat_map(|chunk| chunk.iter().flatten());
        blocks.filter(|block| !Arc::ptr_eq(block, &ZEROS)).count() as u64 * BLOCK as u64
    }

    /// Fills `buf` from `offset` on; [`io::ErrorKind::UnexpectedEof`] if the range goes past the end.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read past the end of the image"));
        }
        let mut rest = buf;
        for (block, part) in blocks_of(offset..offset + rest.len() as u64) {
            let (head, tail) = rest.split_at_mut(part.len());
            match self.block(block) {
                Some(bytes) => head.copy_from_slice(&bytes[part]),
                None if self.stale.is_none() => head.fill(0),
                None => head.copy_from_slice(&self.never_written(block)[part]),
            }
            rest = tail;
        }
        Ok(())
    }

    /// Where the next block lies that was ever written; `None` if what was never written is not zero.
    pub(super) fn skip_hole(&self, offset: u64) -> Option<u64> {
        if self.stale.is_some() {
            return None;
        }
        if offset >= self.len {
            return Some(offset);
        }
        let first = offset / BLOCK as u64;
        let chunk = first as usize / CHUNK_BLOCKS;
        let written =
            self.chunks.iter().enumerate().skip(chunk).filter_map(|(i, blocks)| Some((i, blocks.as_ref()?)));
        let mut blocks = written.flat_map(|(i, blocks)| {
            let present = blocks.iter().enumerate().filter(|(_, block)| block.is_some());
            present.map(move |(k, _)| (i * CHUNK_BLOCKS + k) as u64)
        });
        let next = blocks.find(|block| *block >= first);
        Some(next.map_or(self.len, |block| (block * BLOCK as u64).max(offset)))
    }

    /// Writes `bytes` at `offset`, and makes the image longer where needed. Fails with EFBIG beyond 4 TiB.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        check_len(offset, bytes.len() as u64)?;
        self.copy_in(offset, bytes);
        Ok(())
    }

    /// Changes the length; new space was never written. Fails with EFBIG beyond 4 TiB.
    pub fn set_len(&mut self, len: u64) -> io::Result<()> {
        check_len(len, 0)?;
        if len < self.len {
            self.forget(len..self.len);
            self.chunks.truncate(len.div_ceil((CHUNK_BLOCKS * BLOCK) as u64) as usize);
        }
        self.len = len;
        Ok(())
    }

    /// Makes a range read as zeros, as far as it lies within the length, and frees its memory.
    pub fn zero(&mut self, range: Range<u64>) {
        for (block, part) in blocks_of(range.start..range.end.min(self.len)) {
            if self.stale.is_none() {
                self.forget_part(block, part);
            } else if part.len() == BLOCK {
                *self.slot_mut(block) = Some(Arc::clone(&ZEROS));
            } else {
                self.block_mut(block)[part].fill(0);
            }
        }
    }

    /// Makes a range, as far as it lies within the length, read as if it had never been written.
    pub(super) fn forget(&mut self, range: Range<u64>) {
        let written = (self.chunks.len() * CHUNK_BLOCKS * BLOCK) as u64;
        for (block, part) in blocks_of(range.start..range.end.min(self.len).min(written)) {
            self.forget_part(block, part);
        }
    }

    fn forget_part(&mut self, block: u64, part: Range<usize>) {
        let to_end = block * BLOCK as u64 + part.end as u64 >= self.len;
        if self.block(block).is_none() {
            // It is forgotten already.
        } else if part.start == 0 && (part.end == BLOCK || to_end) {
            *self.slot_mut(block) = None;
        } else {
            let never_written = self.never_written(block);
            self.block_mut(block)[part.clone()].copy_from_slice(&never_written[part]);
        }
    }

    /// [`Image::write`] for a range that is known to be allowed.
    fn copy_in(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        let mut rest = bytes;
        for (block, part) in blocks_of(offset..end) {
            let (head, tail) = rest.split_at(part.len());
            match <&Block>::try_from(head) {
                Ok(whole) => self.put_block(block, whole),
                Err(_) => self.block_mut(block)[part].copy_from_slice(head),
            }
            rest = tail;
        }
        self.len = self.len.max(end);
    }

    fn block(&self, block: u64) -> Option<&Arc<Block>> {
        let block = block as usize;
        self.chunks.get(block / CHUNK_BLOCKS)?.as_ref()?[block % CHUNK_BLOCKS].as_ref()
    }

    /// The place of a block in this image's own chunk.
    fn slot_mut(&mut self, block: u64) -> &mut Option<Arc<Block>> {
        let block = block as usize;
        let chunk = block / CHUNK_BLOCKS;
        if chunk >= self.chunks.len() {
            self.chunks.resize(chunk + 1, None);
        }
        let chunk = self.chunks[chunk].get_or_insert_with(|| Arc::new([const { None }; CHUNK_BLOCKS]));
        &mut Arc::make_mut(chunk)[block % CHUNK_BLOCKS]
    }

    /// Replaces a block without looking at what it was.
    fn put_block(&mut self, block: u64, bytes: &Block) {
        let slot = self.slot_mut(block);
        match slot.as_mut().and_then(Arc::get_mut) {
            Some(own) => own.copy_from_slice(bytes),
            None => *slot = Some(Arc::new(*bytes)),
        }
    }

    /// A block's bytes, this image's own, made present if it was never written.
    fn block_mut(&mut self, block: u64) -> &mut Block {
        if self.block(block).is_none() {
            *self.slot_mut(block) = Some(Arc::new(self.never_written(block)));
        }
        Arc::make_mut(self.slot_mut(block).get_or_insert_with(|| Arc::clone(&ZEROS)))
    }

    fn content(&self, block: u64) -> Block {
        self.block(block).map_or_else(|| self.never_written(block), |bytes| **bytes)
    }

    /// What an absent block reads as.
    fn never_written(&self, block: u64) -> Block {
        let mut bytes = [0; BLOCK];
        if let Some(seed) = self.stale {
            Rng::new(seed ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15)).fill(&mut bytes);
        }
        bytes
    }
}

/// Images are equal if their lengths and bytes are.
impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        let same = |(block, part): (u64, Range<usize>)| match (self.block(block), other.block(block)) {
            (Some(ours), Some(theirs)) if Arc::ptr_eq(ours, theirs) => true,
            (None, None) if self.stale == other.stale => true,
            _ => self.content(block)[part.clone()] == other.content(block)[part],
        };
        self.len == other.len && blocks_of(0..self.len).all(same)
    }
}

impl Eq for Image {}

/// The blocks that a range touches, each with the part of it that lies in the range.
fn blocks_of(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let size = BLOCK as u64;
    let end = if range.is_empty() { 0 } else { range.end.div_ceil(size) };
    (range.start / size..end).map(move |block| {
        let start = range.start.max(block * size) - block * size;
        let end = range.end.min((block + 1) * size) - block * size;
        (block, start as usize..end as usize)
    })
}

fn check_len(offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= LEN_MAX => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFBIG)),
    }
}
