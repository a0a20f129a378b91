//! A storage in memory, in which everything is durable at once: for tests that need no crash.

use std::io;

use parking_lot::RwLock;

use super::{Image, Storage};

/// A sparse storage in memory. Everything is durable at once, and lost with the process.
pub struct MemStorage {
    image: RwLock<Image>,
}

impl MemStorage {
    /// A storage of `len` zero bytes.
    pub fn new(len: u64) -> Self {
        Self::from_image(Image::new(len, None))
    }

    /// A storage with this content.
    pub fn from_image(image: Image) -> Self {
        MemStorage { image: RwLock::new(image) }
    }

    /// The content as it is now.
    pub fn image(&self) -> Image {
        self.image.read().clone()
    }
}

impl Storage for MemStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.image.read().read(offset, buf)
    }

    fn skip_hole(&self, offset: u64) -> Option<u64> {
        self.image.read().skip_hole(offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.image.write().write(offset, buf)
    }

    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_at(offset, buf)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.image.read().len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.image.write().set_len(len)
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.image.write().zero(offset..offset.saturating_add(len));
        Ok(true)
    }
}
