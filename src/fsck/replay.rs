//! Replaying a log that recovery refuses, as far as it goes: page by page, leaving out what does not apply.
//!
//! Recovery refuses an image when a page that the log changes is damaged, or a record that was durable. Here the changes of all
//! other pages, and the records before the damaged one, are applied all the same. It works on an overlay in memory; the result is
//! something to check and to save files from, not something to go on with.

use std::collections::HashSet;

use super::Result;
use crate::error::Error;
use crate::page::format::*;
use crate::page::op::{self, Op};
use crate::page::superblock::{DoublewriteHeader, LOG_OFFSET, Superblock};
use crate::page::{Lsn, PAGE_SIZE, PageBytes, PageId};
use crate::storage::Storage;
use crate::wal::{self, Place};

/// What a replay found.
pub(super) struct Replayed {
    /// The end of the last record that was applied.
    pub end: Lsn,
    /// Groups with a bitmap page.
    pub groups: u32,
}

/// Applies what can be applied of the log to the storage, which is an overlay.
pub(super) fn replay(storage: &dyn Storage, superblock: &Superblock) -> Result<Replayed> {
    restore_copies(storage, superblock);
    let place = Place { offset: LOG_OFFSET, size: superblock.log_size };
    let mut replay = Replay {
        storage,
        superblock,
        groups: superblock.groups,
        given_up: HashSet::new(),
        page: Box::new([0; PAGE_SIZE]),
    };
    let mut end = superblock.checkpoint;
    let (from, incarnation) = (superblock.checkpoint, superblock.incarnation);
    let scanned = wal::scan(storage, place, from, incarnation, superblock.floor, |_, record_end, body| {
        end = record_end;
        for section in op::sections(body) {
            match section {
                Ok((id, ops)) => replay.section(id, ops, record_end)?,
                Err(_) => break,
            }
        }
        Ok(())
    });
    let end = match scanned {
        Ok(scan) => scan.end,
        Err(e) if e.is_corrupt() => end,
        Err(e) => return Err(e.into()),
    };
    // Pages may have gone home with changes by records that are damaged.
    Ok(Replayed { end: end.max(superblock.floor), groups: replay.groups })
}

struct Replay<'a> {
    storage: &'a dyn Storage,
    superblock: &'a Superblock,
    groups: u32,
    /// Pages to which a change could not be applied: later ones would build on what is not there.
    given_up: HashSet<PageId>,
    page: Box<PageBytes>,
}

impl Replay<'_> {
    fn section(&mut self, id: PageId, ops: op::Ops<'_>, end: Lsn) -> crate::error::Result<()> {
        let superblock = self.superblock;
        if !superblock.is_data_page(id) && !superblock.is_bitmap_page(id) {
            return Ok(());
        }
        let mut ops = ops.peekable();
        let birth = matches!(ops.peek(), Some(Ok(op)) if op.is_birth());
        let bitmap = matches!(ops.peek(), Some(Ok(Op::InitBitmap { .. })));
        if birth && bitmap != superblock.is_bitmap_page(id) || !birth && self.given_up.contains(&id) {
            return Ok(());
        }
        let page = &mut self.page;
        let read = self.storage.read_at(id.offset(), &mut page[..]);
        let whole = read.is_ok() && verify_page(page, id, superblock);
        if whole && page_lsn(page) >= end {
            return Ok(());
        }
        let mut applied = whole || birth;
        for op in ops {
            applied = applied && op.is_ok_and(|op| op::apply(page, id, superblock.image(), &op).is_ok());
        }
        if !applied {
            self.given_up.insert(id);
            return Ok(());
        }
        if birth {
            self.given_up.remove(&id);
            if id == superblock.bitmap_page(self.groups) {
                self.groups += 1;
            }
        }
        set_page_lsn(page, end);
        seal(page);
        self.storage.write_at(id.offset(), &page[..]).map_err(|e| Error::io("keeping a page in memory", e))
    }
}

fn verify_page(page: &PageBytes, id: PageId, superblock: &Superblock) -> bool {
    verify_seal(page, id, superblock.image()).is_ok()
        && match page_type(page) {
            TYPE_TREE => superblock.is_data_page(id) && crate::page::node::Node(page).validate().is_ok(),
            TYPE_BITMAP => {
                superblock.is_bitmap_page(id) && crate::page::bitmap::Bitmap(page).validate().is_ok()
            }
            _ => false,
        }
}

/// Pages that are torn at their places come back from whole copies, newest first.
fn restore_copies(storage: &dyn Storage, superblock: &Superblock) {
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let mut halves = Vec::new();
    for half in 0..2 {
        let at = superblock.doublewrite_offset(half);
        let id = PageId(at / PAGE_SIZE as u64);
        if storage.read_at(at, &mut page[..]).is_ok()
            && let Some(header) = DoublewriteHeader::decode(&page, id, superblock.image())
        {
            halves.push((at, header));
        }
    }
    halves.sort_by_key(|(_, h)| std::cmp::Reverse(h.sequence));
    for (at, header) in halves {
        let held = header.pages.iter().take(superblock.doublewrite_pages as usize);
        for (i, &(id, lsn)) in held.enumerate() {
            if lsn <= superblock.checkpoint || !superblock.is_data_page(id) && !superblock.is_bitmap_page(id)
            {
                continue;
            }
            let torn = storage.read_at(id.offset(), &mut page[..]).is_err()
                || verify_seal(&page, id, superblock.image()).is_err();
            let copy = at + (i as u64 + 1) * PAGE_SIZE as u64;
            if torn
                && storage.read_at(copy, &mut page[..]).is_ok()
                && page_lsn(&page) == lsn
                && verify_page(&page, id, superblock)
            {
                // An overlay refuses no write inside the image; if it did, the page stays torn, and is reported.
                let _ = storage.write_at(id.offset(), &page[..]);
            }
        }
    }
}
