//! Memory that calls of a [`super::FileStorage`] can bypass the page cache with.
//!
//! - I1. The memory is that of whole blocks, all initialised; the first `len` bytes of it are the buffer's content.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// The alignment of the memory, of offset and of length that direct I/O needs, in bytes. Larger than what most devices
/// need. Where a page of the page cache is larger, offset and length are multiples of that, so that direct and buffered calls never
/// share one.
pub const DIRECT_ALIGN: usize = 4096;

/// Shorter calls go through the page cache, in bytes; but for durable writes.
pub const DIRECT_LEN_MIN: u64 = 16384;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Block([u8; DIRECT_ALIGN]);

const _: () = assert!(size_of::<Block>() == DIRECT_ALIGN && align_of::<Block>() == DIRECT_ALIGN);

/// A row of bytes at an address that is a multiple of [`DIRECT_ALIGN`], to be used again and again.
///
/// A [`super::FileStorage`] goes past the page cache if offset, address and length of a call are multiples of
/// [`DIRECT_ALIGN`] and the length is at least 16 KiB or the write durable; otherwise it reads and writes through the page cache, which
/// costs a copy. So a user rounds the range that it reads or writes out to blocks, and takes a buffer for all of it:
/// a slice of this buffer that begins and ends at multiples of [`DIRECT_ALIGN`] goes directly as well.
///
/// Memory grows and is never given back before the drop. Running out of it aborts the process, as with a `Vec`.
#[derive(Default)]
pub struct AlignedBuf {
    blocks: Vec<Block>,
    len: usize,
}

impl AlignedBuf {
    /// An empty buffer, without memory.
    pub const fn new() -> Self {
        AlignedBuf { blocks: Vec::new(), len: 0 }
    }

    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::new();
        buf.reset(len);
        buf
    }

    /// The bytes that the buffer can hold without taking more memory.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * DIRECT_ALIGN
    }

    /// Makes the length `len`, with unspecified contents (zeros, or what the buffer held earlier): for a read that
    /// fills all of it. Costs nothing if the buffer has been that long before.
    pub fn reset(&mut self, len: usize) {
        if len > self.capacity() {
            // The old contents need not be moved.
            self.blocks.clear();
            self.grow(len);
        }
        self.len = len;
    }

    /// Makes the length `len`, keeps what there is, and fills the rest with zeros.
    pub fn resize(&mut self, len: usize) {
        let old = self.len;
        if len > self.capacity() {
            self.grow(len.max(self.capacity() * 2));
        }
        self.len = len;
        if old < len {
            self[old..].fill(0);
        }
    }

    /// Makes the length 0. The memory stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends a copy of `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let (old, len) = (self.len, self.len + bytes.len());
        if len > self.capacity() {
            self.grow(len.max(self.capacity() * 2));
        }
        self.len = len;
        self[old..].copy_from_slice(bytes);
    }

    fn grow(&mut self, capacity: usize) {
        let more = capacity.div_ceil(DIRECT_ALIGN).saturating_sub(self.blocks.len());
        self.blocks.reserve_exact(more);
        // No `Block` by value: rustc 1.95 makes functions without a prologue of some that have so aligned a thing on their stack and
        // return early, and they crash.
        // SAFETY: there is room for `more` blocks behind those that there are, and zeros are a block.
        unsafe {
            self.blocks.as_mut_ptr().add(self.blocks.len()).write_bytes(0, more);
            self.blocks.set_len(self.blocks.len() + more);
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        debug_assert!(self.len <= self.capacity());
        // SAFETY: the blocks are initialised bytes without padding, one behind the other, `len` of them at least
        // (I1), and stay borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts(self.blocks.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        debug_assert!(self.len <= self.capacity());
        // SAFETY: as in `deref`; `&mut self` makes this the only reference, and every value is valid for a byte.
        unsafe { std::slice::from_raw_parts_mut(self.blocks.as_mut_ptr().cast(), self.len) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity())
    }
}
