//! Records in the order of other hashes.
//!
//! Entries of a directory and attributes of an inode lie in the order of their names' hashes. Under another seed that is another order:
//! each such row is read, sorted and passed on. A row that is larger than memory may be is read several times, each time for the
//! next smaller hashes.

use super::image::Image;
use super::rebuild::{Source, is_leaf};
use super::{FsckError, Result};
use crate::fs::format::*;
use crate::fs::name_hash;
use crate::page::node::Node;
use crate::page::{PAGE_SIZE, PageBytes};

/// Bytes of records that are held at the most.
const HELD_MAX: usize = if cfg!(test) { 4 << 10 } else { 64 << 20 };
/// What a record takes beside its key and value.
const OVERHEAD: usize = 64;

/// A position in front of a record.
#[derive(Clone, Copy)]
struct At {
    source: usize,
    slot: usize,
}

/// The row that a record belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    Entries(u64),
    Attributes(Ino),
}

/// The records of the sources, with names at the places of the image's hash seed.
pub(super) struct Rehash<'a> {
    image: &'a Image,
    sources: &'a [Source],
    page: Box<PageBytes>,
    /// The source whose page is held.
    held: Option<usize>,
    next: At,
    key: Vec<u8>,
}

impl<'a> Rehash<'a> {
    pub fn new(image: &'a Image, sources: &'a [Source]) -> Self {
        let next = At { source: 0, slot: 0 };
        Rehash { image, sources, page: Box::new([0; PAGE_SIZE]), held: None, next, key: Vec::new() }
    }

    /// Moves to the next record; its value is that of slot `next.slot - 1`.
    fn step(&mut self) -> Result<bool> {
        while let Some(source) = self.sources.get(self.next.source) {
            if self.held != Some(self.next.source) {
                let read = self.image.storage().read_at(source.id.offset(), &mut self.page[..]);
                read.map_err(|_| FsckError::Changed)?;
                if !is_leaf(self.image, source.id, &self.page) {
                    return Err(FsckError::Changed);
                }
                self.held = Some(self.next.source);
            }
            let node = Node(&self.page);
            while self.next.slot < node.count() {
                node.key_into(self.next.slot, &mut self.key);
                self.next.slot += 1;
                let low = self.key >= source.low;
                if low && source.high.as_ref().is_none_or(|high| self.key < *high) {
                    return Ok(true);
                }
            }
            self.next = At { source: self.next.source + 1, slot: 0 };
        }
        Ok(false)
    }

    fn value(&self) -> &[u8] {
        Node(&self.page).value(self.next.slot - 1)
    }

    /// Calls `f` with all records in the order of their new keys.
    pub fn run(&mut self, mut f: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut more = self.step()?;
        while more {
            match row_of(&self.key) {
                Some(row) => more = self.row(row, &mut f)?,
                None => {
                    f(&self.key, self.value())?;
                    more = self.step()?;
                }
            }
        }
        Ok(())
    }

    /// Passes a row on, from the record at hand to its last one. Returns whether a record follows.
    fn row(&mut self, row: Row, f: &mut impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<bool> {
        let begin = At { slot: self.next.slot - 1, ..self.next };
        let mut from = 0;
        loop {
            let (mut held, mut bytes, mut until) = (Vec::<(u64, Vec<u8>)>::new(), 0, u64::MAX);
            let mut more = true;
            while more && row_of(&self.key) == Some(row) {
                let value = self.value();
                // What has no name keeps to the beginning, where it is reported.
                let hash = self.hash(row, value).unwrap_or(0);
                if hash >= from && hash < until {
                    bytes += value.len() + OVERHEAD;
                    held.push((hash, value.to_vec()));
                }
                if bytes > HELD_MAX {
                    (until, bytes) = shorten(&mut held, until);
                }
                more = self.step()?;
            }
            held.sort_by_key(|(hash, _)| *hash);
            let (mut last, mut slot) = (None, 0);
            for (hash, value) in &held {
                slot = if last == Some(*hash) { slot + 1 } else { 0 };
                last = Some(*hash);
                // More names of one hash than there are places for: nobody could have made them.
                if slot < SLOTS {
                    let place = *hash << 8 | slot;
                    match row {
                        Row::Entries(group) => f(&entry_key(group, Cookie(place)), value)?,
                        Row::Attributes(ino) => f(&xattr_key(ino, place), value)?,
                    }
                }
            }
            if until == u64::MAX {
                return Ok(more);
            }
            (from, self.next) = (until, begin);
            self.step()?;
        }
    }

    fn hash(&self, row: Row, value: &[u8]) -> Option<u64> {
        let name = match row {
            Row::Entries(_) => Entry::decode(ROOT, value).ok()?.name,
            Row::Attributes(ino) => Xattr::decode(ino, value).ok()?.name,
        };
        Some(name_hash(&self.image.superblock.hash_seed, &name))
    }
}

fn row_of(key: &[u8]) -> Option<Row> {
    match AnyKey::parse(key)? {
        AnyKey::Entry(group, _) => Some(Row::Entries(group)),
        AnyKey::Xattr(ino, _) => Some(Row::Attributes(ino)),
        _ => None,
    }
}

/// Lets go of the greater hashes. Returns the first one that is gone, and the bytes that are left.
fn shorten(held: &mut Vec<(u64, Vec<u8>)>, until: u64) -> (u64, usize) {
    held.sort_by_key(|(hash, _)| *hash);
    let middle = held[held.len() / 2].0;
    // All of one hash stay together: if half of them are the least one, only that one stays.
    let cut = if middle > held[0].0 { middle } else { held[0].0 + 1 };
    held.retain(|(hash, _)| *hash < cut);
    let bytes = held.iter().map(|(_, value)| value.len() + OVERHEAD).sum();
    (cut.min(until), bytes)
}
