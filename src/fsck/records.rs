//! Records in key order, from the leaves that the walk has found.

use super::image::Image;
use super::structure::Row;
use super::{FsckError, Result};
use crate::page::node::Node;
use crate::page::{PAGE_SIZE, PageBytes};

/// A position in front of a record.
pub(super) struct Records<'a> {
    image: &'a Image,
    leaves: &'a Row,
    /// The leaf to be read when the present one is at its end.
    next: usize,
    page: Box<PageBytes>,
    /// The records of the present leaf, and the next one of them.
    count: usize,
    at: usize,
    key: Vec<u8>,
    /// Keys at or below the last one are left out: leaves that overlap are damage, which the walk has reported.
    started: bool,
    last: Vec<u8>,
    /// The records end where keys begin with another byte.
    tag: Option<u8>,
    /// Records that were left out.
    pub skipped: u64,
}

/// Where a record lies.
#[derive(Clone, Copy)]
pub(super) struct Position {
    leaf: usize,
    slot: usize,
}

impl<'a> Records<'a> {
    /// In front of the first record whose key is not less than `from`.
    pub fn new(image: &'a Image, leaves: &'a Row, from: &[u8]) -> Result<Records<'a>> {
        let mut records = Records {
            image,
            leaves,
            next: leaves.position(from),
            page: Box::new([0; PAGE_SIZE]),
            count: 0,
            at: 0,
            key: Vec::new(),
            started: false,
            last: Vec::new(),
            tag: None,
            skipped: 0,
        };
        records.fill()?;
        while records.at < records.count {
            Node(&records.page).key_into(records.at, &mut records.key);
            if records.key.as_slice() >= from {
                break;
            }
            records.at += 1;
            if records.at == records.count {
                records.fill()?;
            }
        }
        Ok(records)
    }

    /// All records whose keys begin with `tag`.
    pub fn of_tag(image: &'a Image, leaves: &'a Row, tag: u8) -> Result<Records<'a>> {
        Ok(Records { tag: Some(tag), ..Records::new(image, leaves, &[tag])? })
    }

    /// Reads leaves until one has records.
    fn fill(&mut self) -> Result<()> {
        (self.at, self.count) = (0, 0);
        while self.count == 0 && self.next < self.leaves.len() {
            let id = self.leaves.id(self.next);
            self.next += 1;
            // It was whole when the walk came by; it is checked again, for who knows what is written meanwhile.
            let whole = if self.leaves.bounded {
                let read = self.image.storage().read_at(id.offset(), &mut self.page[..]);
                read.is_ok() && self.image.is_leaf(id, &self.page)
            } else {
                self.image.read_page(id, &mut self.page).is_ok() && Node(&self.page).level() == 0
            };
            if !whole {
                return Err(FsckError::Changed);
            }
            self.count = Node(&self.page).count();
        }
        Ok(())
    }

    /// Moves on. `false`: there are no more records.
    pub fn next(&mut self) -> Result<bool> {
        loop {
            if self.at == self.count {
                self.fill()?;
                if self.count == 0 {
                    return Ok(false);
                }
            }
            std::mem::swap(&mut self.last, &mut self.key);
            Node(&self.page).key_into(self.at, &mut self.key);
            self.at += 1;
            if !self.is_inside() {
                std::mem::swap(&mut self.last, &mut self.key);
                continue;
            }
            if !self.started || self.key > self.last {
                self.started = true;
                return Ok(self.tag.is_none_or(|tag| self.key.first() == Some(&tag)));
            }
            self.skipped += 1;
            std::mem::swap(&mut self.last, &mut self.key);
        }
    }

    /// Whether the present key counts in the present leaf.
    fn is_inside(&self) -> bool {
        let (leaves, key) = (self.leaves, self.key.as_slice());
        !leaves.bounded
            || key >= leaves.low(self.next - 1) && (self.next == leaves.len() || key < leaves.low(self.next))
    }

    /// Where the record lies that [`Records::next`] moved to.
    pub fn position(&self) -> Position {
        Position { leaf: self.next - 1, slot: self.at - 1 }
    }

    /// Moves back, in front of a record. It need not be behind the last one.
    pub fn back_to(&mut self, position: Position) -> Result<()> {
        self.next = position.leaf;
        self.fill()?;
        if self.next != position.leaf + 1 || position.slot >= self.count {
            return Err(FsckError::Changed);
        }
        (self.at, self.started) = (position.slot, false);
        Ok(())
    }

    /// The key of the record that [`Records::next`] moved to.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Its value.
    pub fn value(&self) -> &[u8] {
        Node(&self.page).value(self.at - 1)
    }
}
