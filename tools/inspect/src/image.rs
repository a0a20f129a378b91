//! An image that may be damaged.

use std::io;

use btfs::PageId;
use btfs::page::superblock::{Missing, SUPERBLOCK_OFFSETS, SUPERBLOCK_SIZE, Superblock, newest, read_copies};
use btfs::page::{PAGE_SIZE, PageBytes};
use btfs::storage::Storage;

/// A superblock as it lies in the image.
pub struct Copy {
    /// Byte offset.
    pub offset: u64,
    /// Its bytes, or why they cannot be read.
    pub bytes: io::Result<[u8; SUPERBLOCK_SIZE]>,
    /// What they mean.
    pub decoded: Result<Superblock, Missing>,
}

/// An image, read only.
pub struct Image {
    storage: Box<dyn Storage>,
    /// Length of the file or device in bytes.
    pub len: u64,
    /// Both superblocks.
    pub copies: Vec<Copy>,
    /// The one that counts: valid, and the newer one.
    pub superblock: Option<Superblock>,
}

impl Image {
    /// Reads the superblocks. Fails only if the length cannot be found out.
    pub fn new(storage: Box<dyn Storage>) -> io::Result<Image> {
        let len = storage.len()?;
        let both = read_copies(len, |at, bytes| storage.read_at(at, bytes));
        let superblock = newest(&both, len).cloned();
        let copies = SUPERBLOCK_OFFSETS.into_iter().zip(both).map(|(offset, decoded)| {
            let mut bytes = [0; SUPERBLOCK_SIZE];
            let bytes = storage.read_at(offset, &mut bytes).map(|()| bytes);
            Copy { offset, bytes, decoded }
        });
        let copies = copies.collect();
        Ok(Image { storage, len, copies, superblock })
    }

    /// The storage.
    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// `len` bytes at `offset`, or why they cannot be read.
    pub fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len];
        self.storage.read_at(offset, &mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
        Ok(bytes)
    }

    /// A page, or why it cannot be read.
    pub fn page(&self, id: PageId) -> Result<Box<PageBytes>, String> {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let offset = id.0.checked_mul(PAGE_SIZE as u64).ok_or("lies beyond any file")?;
        self.storage.read_at(offset, &mut page[..]).map_err(|e| format!("cannot be read: {e}"))?;
        Ok(page)
    }
}
