//! An image whose file is shorter than it says: what is missing reads as zeros, as it will when the file has been made longer.

use std::io;
use std::sync::Arc;

use crate::storage::Storage;

/// A storage that reads as zeros from its end up to a greater length.
pub(super) struct Extended {
    below: Arc<dyn Storage>,
    /// Bytes that are there.
    held: u64,
    len: u64,
}

impl Extended {
    /// `held`: the length of the storage below; `len`: the length that is shown.
    pub fn new(below: Arc<dyn Storage>, held: u64, len: u64) -> Self {
        Extended { below, held, len: len.max(held) }
    }
}

impl Storage for Extended {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let held = self.held.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (there, missing) = buf.split_at_mut(held);
        missing.fill(0);
        if there.is_empty() { Ok(()) } else { self.below.read_at(offset, there) }
    }

    fn skip_hole(&self, offset: u64) -> Option<u64> {
        let next = if offset < self.held { self.below.skip_hole(offset)? } else { offset };
        Some(if next < self.held { next } else { self.len.max(offset) })
    }

    fn forget_cached(&self) {
        self.below.forget_cached();
    }

    fn write_at(&self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn write_durable_at(&self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn punch(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }
}
