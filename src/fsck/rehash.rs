//! Records in the order of other hashes.
//!
//! Entries of a directory and attributes of an inode lie in the order of their names' hashes. Under another seed that is another order:
//! each such row is read, sorted and passed on. A row that is larger than memory may be is read several times, each time for the
//! next smaller hashes.

use super::image::Image;
use super::records::Records;
use super::{Result, structure};
use crate::fs::format::*;
use crate::fs::name_hash;

/// Bytes of records that are held at the most.
const HELD_MAX: usize = if cfg!(test) { 4 << 10 } else { 64 << 20 };
/// What a record takes beside its key and value.
const OVERHEAD: usize = 64;

/// The row that a record belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    Entries(u64),
    Attributes(Ino),
}

/// The records of some leaves, with names at the places of the image's hash seed.
pub(super) struct Rehash<'a> {
    records: Records<'a>,
    hash_seed: [u8; 16],
}

impl<'a> Rehash<'a> {
    pub fn new(image: &'a Image, leaves: &'a structure::Row) -> Result<Self> {
        let records = Records::new(image, leaves, &[])?;
        Ok(Rehash { records, hash_seed: image.superblock.hash_seed })
    }

    /// Calls `f` with all records in the order of their new keys.
    pub fn run(&mut self, mut f: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut more = self.records.next()?;
        while more {
            match row_of(self.records.key()) {
                Some(row) => more = self.row(row, &mut f)?,
                None => {
                    f(self.records.key(), self.records.value())?;
                    more = self.records.next()?;
                }
            }
        }
        Ok(())
    }

    /// Passes a row on, from the record at hand to its last one. Returns whether a record follows.
    fn row(&mut self, row: Row, f: &mut impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<bool> {
        let begin = self.records.position();
        let mut from = 0;
        loop {
            let (mut held, mut bytes, mut until) = (Vec::<(u64, Vec<u8>)>::new(), 0, u64::MAX);
            let mut more = true;
            while more && row_of(self.records.key()) == Some(row) {
                let value = self.records.value();
                // What has no name keeps to the beginning, where it is reported.
                let hash = self.hash(row, value).unwrap_or(0);
                if hash >= from && hash < until {
                    bytes += value.len() + OVERHEAD;
                    held.push((hash, value.to_vec()));
                }
                if bytes > HELD_MAX {
                    (until, bytes) = shorten(&mut held, until);
                }
                more = self.records.next()?;
            }
            held.sort_by_key(|(hash, _)| *hash);
            let (mut last, mut slot) = (None, 0);
            for (hash, value) in &held {
                slot = if last == Some(*hash) { slot + 1 } else { 0 };
                last = Some(*hash);
                // More names of one hash than there are places for: nobody could have made them.
                if slot < SLOTS {
                    let place = name_place(*hash, slot);
                    match row {
                        Row::Entries(group) => f(&entry_key(group, Cookie(place)), value)?,
                        Row::Attributes(ino) => f(&xattr_key(ino, place), value)?,
                    }
                }
            }
            if until == u64::MAX {
                return Ok(more);
            }
            from = until;
            self.records.back_to(begin)?;
            self.records.next()?;
        }
    }

    fn hash(&self, row: Row, value: &[u8]) -> Option<u64> {
        let name = match row {
            Row::Entries(_) => Entry::decode(ROOT, value).ok()?.name,
            Row::Attributes(ino) => Xattr::decode(ino, value).ok()?.name,
        };
        Some(name_hash(&self.hash_seed, &name))
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
