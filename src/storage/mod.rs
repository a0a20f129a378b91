//! The storage layer: the one way in which this crate reads and writes an image.
//!
//! # What it promises
//! [`Storage`] is a row of bytes that can be read, written, made durable, and given back to the host. A write
//! is seen by every read that begins after it returned. It is *durable*, that is, it survives a power cut,
//! 1. after a [`Storage::sync`] that began when the write had returned, or
//! 2. at once, if it was a [`Storage::write_durable_at`], which promises nothing about any other write.
//!
//! Until then a power cut may keep or lose it, whole or in part, and later writes may survive earlier ones.
//! Where writes overlap, the later one wins on the bytes that both cover. Punches and changes of the length
//! are writes in this sense.
//!
//! # What it assumes of the medium
//! 1. A sector of 512 bytes is written entirely or not at all; nothing larger is.
//! 2. A write changes no byte outside its range.
//! 3. What a sync or a durable write reported as done survives. A medium that lies about this loses data.
//! 4. Space never written may hold anything (a block device's former content; on a file, zeros).
//!
//! # How it fails
//! Every call returns the operating system's error unchanged, retries nothing but interrupted calls, and
//! never panics. A read past the end is [`io::ErrorKind::UnexpectedEof`]. After a failed write or sync nobody
//! can tell what the medium holds, and syncing again may report success for data that the kernel has dropped:
//! the layers above must stop writing. Opening fails with [`OpenError`].
//!
//! # What there is
//! - [`FileStorage`]: a file or a block device, locked while it is open.
//! - [`MemStorage`]: memory, for tests that need no crash.
//! - [`OverlayStorage`]: keeps all writes in memory, up to a limit, above a storage that is only read.
//! - [`SimStorage`]: the crash simulator. It makes the images that a power cut at any point could leave.
//! - [`FaultStorage`]: counts the operations of another storage, and fails a chosen one of them.
//! - [`AlignedBuf`]: memory whose contents a [`FileStorage`] reads and writes past the page cache.
//! - [`Image`], [`Rng`]: what the simulator and the tests are made of.

pub mod buffer;
mod counts;
pub(crate) mod fault;
mod file;
mod image;
mod lock;
mod mem;
pub(crate) mod overlay;
pub mod rng;
pub mod sim;
mod sys;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

pub use buffer::{AlignedBuf, DIRECT_ALIGN, DIRECT_LEN_MIN};
pub use counts::{Counts, OpKind};
pub use fault::{Fault, FaultStorage};
pub use file::{FileStorage, OpenMode};
pub use image::Image;
pub use lock::{Holder, OpenError};
pub use mem::MemStorage;
pub use overlay::{OverlayStorage, spare_memory};
pub use rng::Rng;
pub use sim::SimStorage;

/// A row of bytes that survives power cuts as far as the module's documentation says.
///
/// All offsets and lengths are in bytes. Calls may come from any number of threads; calls that overlap in
/// range and in time, one of them a write, have no defined result.
#[allow(clippy::len_without_is_empty, reason = "an image is never asked whether it is empty")]
pub trait Storage: Send + Sync {
    /// Fills `buf` from `offset` on. Fails with [`io::ErrorKind::UnexpectedEof`] if the range goes past the
    /// end; what `buf` then holds is undefined.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// A range will be read soon, in calls that do not bypass the host's page cache: its bytes may be fetched to there meanwhile.
    /// Waits for nothing, and promises nothing.
    fn will_read(&self, _offset: u64, _len: u64) {}

    /// An offset, at least `offset` and at most the greater of it and the length, before which from `offset` on there are only zeros
    /// that take no space. `None` where the host cannot tell.
    fn skip_hole(&self, _offset: u64) -> Option<u64> {
        None
    }

    /// The first offset from `offset` on, the end included, where the host may not have allocated space yet. `None` where it cannot tell.
    fn next_hole(&self, _offset: u64) -> Option<u64> {
        None
    }

    /// Writes all of `buf`. Durable after a [`Storage::sync`] that begins after this returns. A write past
    /// the end of a file extends it; a block device refuses it.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Writes a row of buffers that lie one behind the other from `offset` on, otherwise like
    /// [`Storage::write_at`].
    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        let mut offset = offset;
        for buf in bufs {
            self.write_at(offset, buf)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes all of `buf` and makes exactly these bytes durable. Promises nothing about other writes.
    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes everything durable that was completed before this call began.
    fn sync(&self) -> io::Result<()>;

    /// Has what is durable read from the medium from now on. After a write has failed the host's cache may go on showing what was to
    /// be written, as if it were durable [*Can Applications Recover from fsync Failures?*, USENIX ATC 2020].
    fn forget_cached(&self) {}

    /// The length.
    fn len(&self) -> io::Result<u64>;

    /// Changes the length. New space reads as zeros; what lay behind a shorter length is lost.
    /// A block device accepts only the length that it has.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes sure that the host has space for this range, so that writing to it cannot fail for want of it.
    /// The content and the length do not change. Returns false where the host has no such service, and nothing is sure.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<bool>;

    /// Gives the space of a range back to the host. Returns true if the range reads as zeros from now on, and
    /// false where the host cannot do this and the range reads as before.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool>;
}

impl<T: Storage + ?Sized> Storage for Arc<T> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn will_read(&self, offset: u64, len: u64) {
        (**self).will_read(offset, len);
    }

    fn skip_hole(&self, offset: u64) -> Option<u64> {
        (**self).skip_hole(offset)
    }

    fn next_hole(&self, offset: u64) -> Option<u64> {
        (**self).next_hole(offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, buf)
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        (**self).write_vectored_at(offset, bufs)
    }

    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        (**self).write_durable_at(offset, buf)
    }

    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }

    fn forget_cached(&self) {
        (**self).forget_cached();
    }

    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<bool> {
        (**self).allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        (**self).punch(offset, len)
    }
}

/// The total length of a row of buffers, in bytes.
fn total_len(bufs: &[&[u8]]) -> u64 {
    bufs.iter().map(|buf| buf.len() as u64).sum()
}
