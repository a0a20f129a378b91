//! What [`super::Tree::apply`] applies: changes of records and of space that take effect together.

use crate::error::{Error, Result};
use crate::page::format::{KEY_MAX, RECORD_MAX};
use crate::page::{BlockNo, Run};

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: (u32, u32),
    /// `None`: the key is deleted.
    value: Option<(u32, u32)>,
}

/// An atomic set of changes. Of several changes of one key the last one counts.
#[derive(Clone, Default, Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    allocated: Vec<Run>,
    freed: Vec<Run>,
    data: Vec<(BlockNo, (u32, u32))>,
}

/// Room for the few records of most batches, so that they grow only once.
const FIRST_BYTES: usize = 768;

/// One change of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change<'b> {
    /// The key.
    pub key: &'b [u8],
    /// The new value, or `None` to delete the key.
    pub value: Option<&'b [u8]>,
}

impl Batch {
    /// The most bytes of keys and values in one batch.
    pub const SIZE_MAX: usize = 1 << 20;

    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    fn store(&mut self, bytes: &[u8]) -> (u32, u32) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(FIRST_BYTES.max(bytes.len()));
        }
        let at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        (at, self.bytes.len() as u32)
    }

    fn bytes(&self, (from, to): (u32, u32)) -> &[u8] {
        &self.bytes[from as usize..to as usize]
    }

    /// Inserts or replaces a record.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.put_with(key, |record| record.extend_from_slice(value));
    }

    /// Inserts or replaces a record whose value is what `encode` adds to a buffer.
    pub fn put_with(&mut self, key: &[u8], encode: impl FnOnce(&mut Vec<u8>)) {
        let key = self.store(key);
        let at = self.bytes.len() as u32;
        encode(&mut self.bytes);
        let value = Some((at, self.bytes.len() as u32));
        self.entries.push(Entry { key, value });
    }

    /// Deletes a record, if it is there.
    pub fn delete(&mut self, key: &[u8]) {
        let key = self.store(key);
        self.entries.push(Entry { key, value: None });
    }

    /// Blocks from [`super::Tree::reserve_blocks`] are in use from now on.
    pub fn allocate(&mut self, run: Run) {
        self.allocated.push(run);
    }

    /// Blocks are free from now on; they are reused only when this is durable.
    pub fn free(&mut self, run: Run) {
        self.freed.push(run);
    }

    /// The contents of whole blocks become durable together with the batch. See [`super::Tree::write_blocks_logged`].
    pub(super) fn log_data(&mut self, start: BlockNo, data: &[u8]) {
        let data = self.store(data);
        self.data.push((start, data));
    }

    /// The contents of blocks that the batch carries.
    pub(super) fn data(&self) -> impl ExactSizeIterator<Item = (BlockNo, &[u8])> {
        self.data.iter().map(|(start, data)| (*start, self.bytes(*data)))
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.allocated.clear();
        self.freed.clear();
        self.data.clear();
    }

    /// The number of record changes.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to apply.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.allocated.is_empty() && self.freed.is_empty()
    }

    /// Runs that the batch allocates.
    pub fn allocated(&self) -> &[Run] {
        &self.allocated
    }

    /// Runs that the batch frees.
    pub fn freed(&self) -> &[Run] {
        &self.freed
    }

    /// Bytes of keys, values and logged contents.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The changes in key order, each key once.
    pub(super) fn changes(&self) -> Result<Vec<Change<'_>>> {
        if self.bytes.len() > Self::SIZE_MAX {
            return Err(Error::TooLarge {
                what: "bytes in a batch",
                size: self.bytes.len(),
                limit: Self::SIZE_MAX,
            });
        }
        let mut changes: Vec<Change<'_>> = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let (key, value) = (self.bytes(entry.key), entry.value.map(|v| self.bytes(v)));
            if key.len() > KEY_MAX {
                return Err(Error::TooLarge { what: "key", size: key.len(), limit: KEY_MAX });
            }
            let size = key.len() + value.map_or(0, <[u8]>::len);
            if size > RECORD_MAX {
                return Err(Error::TooLarge { what: "record", size, limit: RECORD_MAX });
            }
            changes.push(Change { key, value });
        }
        if !changes.is_sorted_by(|a, b| a.key < b.key) {
            // Stable, so the last change of a key stays last.
            changes.sort_by(|a, b| a.key.cmp(b.key));
            let mut kept = 0;
            for i in 0..changes.len() {
                if i + 1 == changes.len() || changes[i].key != changes[i + 1].key {
                    changes[kept] = changes[i];
                    kept += 1;
                }
            }
            changes.truncate(kept);
        }
        Ok(changes)
    }
}
