//! Building a tree bottom-up, from records that come in key order: every page is nearly full.

use super::format::*;
use super::ids::PageId;
use super::node::{NodeBuilder, NodeSpec, separator};

/// Free bytes left in a packed page, so that the first insert does not split it.
const SLACK: usize = PAGE_SIZE / 16;

/// Where the pages of a new tree go.
pub trait PageSink {
    /// Why a page cannot go there.
    type Error;

    /// A place for one more page, right of all before it.
    fn place(&mut self) -> Result<PageId, Self::Error>;

    /// Takes a page whose records are all there. Children come before the page above them.
    fn put(&mut self, page: &PackedPage) -> Result<(), Self::Error>;
}

/// A page of the new tree.
pub struct PackedPage {
    /// Its number.
    pub id: PageId,
    level: u8,
    low: Vec<u8>,
    high: Option<Vec<u8>>,
    right: PageId,
    records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of slots and records.
    bytes: usize,
}

impl PackedPage {
    fn new(id: PageId, level: usize, low: &[u8]) -> Self {
        let (low, level) = (low.to_vec(), level as u8);
        PackedPage { id, level, low, high: None, right: PageId::NONE, records: Vec::new(), bytes: 0 }
    }

    fn has_room(&self, key: &[u8], size: usize) -> bool {
        let fences = 2 * KEY_MAX.min(key.len() + self.low.len() + 8);
        self.bytes + size + HEADER_SIZE + fences <= PAGE_SIZE - SLACK || self.records.is_empty()
    }

    /// Writes the page's bytes. LSN and checksum are for the caller to add.
    ///
    /// # Errors
    /// If the records do not fit, which is a bug of this file.
    pub fn build(&self, page: &mut PageBytes, image: u64) -> Result<(), &'static str> {
        page[HEADER_SIZE..].fill(0);
        let (id, level, high, right) = (self.id, self.level, self.high.as_deref(), self.right);
        let spec = NodeSpec { id, image, level, flags: 0, low: &self.low, high, right };
        let mut builder = NodeBuilder::new(page, spec);
        for (key, value) in &self.records {
            if !builder.push(key, value) {
                return Err("records do not fit into their new page");
            }
        }
        builder.finish();
        Ok(())
    }
}

/// Packs records into leaves, and the leaves' numbers into pages above them.
#[derive(Default)]
pub struct Packer {
    /// The last page of each level, leaves first.
    levels: Vec<PackedPage>,
}

impl Packer {
    /// Adds a record. Its key is greater than all before it, and within the limits, as the value is.
    pub fn add<S: PageSink>(&mut self, sink: &mut S, key: &[u8], value: &[u8]) -> Result<(), S::Error> {
        self.add_at(sink, 0, key, value)
    }

    fn add_at<S: PageSink>(
        &mut self,
        sink: &mut S,
        level: usize,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), S::Error> {
        if level == self.levels.len() {
            self.levels.push(PackedPage::new(sink.place()?, level, &[]));
        }
        let size = SLOT_SIZE + RECORD_HEADER + key.len() + value.len();
        let page = &self.levels[level];
        if !page.has_room(key, size) {
            let boundary = match page.records.last() {
                Some((last, _)) if level == 0 => separator(last, key),
                _ => key,
            };
            let next = PackedPage::new(sink.place()?, level, boundary);
            let mut full = std::mem::replace(&mut self.levels[level], next);
            (full.high, full.right) = (Some(boundary.to_vec()), self.levels[level].id);
            sink.put(&full)?;
            self.add_at(sink, level + 1, &full.low, &full.id.0.to_be_bytes())?;
        }
        let page = &mut self.levels[level];
        page.bytes += size;
        page.records.push((key.to_vec(), value.to_vec()));
        Ok(())
    }

    /// Ends all levels, and returns the root, which the sink gave a place and has not been given.
    pub fn finish<S: PageSink>(mut self, sink: &mut S) -> Result<PackedPage, S::Error> {
        let mut level = 0;
        while level + 1 < self.levels.len() {
            let last = &mut self.levels[level];
            sink.put(last)?;
            let (low, id) = (std::mem::take(&mut last.low), last.id);
            level += 1;
            self.add_at(sink, level, &low, &id.0.to_be_bytes())?;
        }
        match self.levels.pop() {
            Some(root) => Ok(root),
            None => Ok(PackedPage::new(sink.place()?, 0, &[])),
        }
    }
}
