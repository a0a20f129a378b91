//! Replaying a log that recovery refuses, as far as it goes: page by page, leaving out what does not apply.
//!
//! Recovery refuses an image when a page that the log changes is damaged, or a record that was durable. Here the changes of all
//! other pages, and the records before the damaged one, are applied all the same. It works on an overlay in memory; the result is
//! something to check and to save files from, not something to go on with.
//!
//! The log of an image without superblocks is replayed in the same way, from wherever its oldest record lies.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::Result;
use super::lostlog::LostLog;
use crate::error::Error;
use crate::page::format::*;
use crate::page::op::{self, Op};
use crate::page::superblock::Superblock;
use crate::page::{BLOCK_SIZE, BlockNo, Lsn, PAGE_SIZE, PageBytes, PageId};
use crate::storage::Storage;
use crate::wal::{self, Place};

/// What a replay found.
pub(super) struct Replayed {
    /// The end of the last record that was applied.
    pub end: Lsn,
    /// Records behind that were durable, and are lost.
    pub cut: bool,
    /// Groups with a bitmap page.
    pub groups: u32,
    /// Something was changed.
    pub changed: bool,
    /// Blocks of contents that were changed.
    pub contents: BTreeSet<BlockNo>,
}

/// A record to be replayed: its end, and its body.
type Each<'a> = dyn FnMut(Lsn, &[u8]) -> crate::error::Result<()> + 'a;

/// Whether a log that could not be replayed is damaged. What the host cannot read is as good as that; where memory is short, nobody
/// knows.
pub(super) fn is_damage(error: &Error) -> bool {
    error.is_corrupt() || matches!(error, Error::Io { .. }) && !error.is_out_of_memory()
}

/// Applies what can be applied of the log to the storage, which is an overlay.
pub(super) fn replay(storage: &dyn Storage, superblock: &Superblock) -> Result<Replayed> {
    let place = Place::of(superblock);
    let (from, incarnation) = (superblock.checkpoint, superblock.incarnation);
    let cut = std::cell::Cell::new(false);
    let records = |each: &mut Each<'_>| {
        let mut end = from;
        let scanned =
            wal::scan(storage, place, from, incarnation, superblock.floor, |_, record_end, body| {
                end = record_end;
                each(record_end, body)
            });
        match scanned {
            Ok(scan) => Ok(scan.end),
            Err(e) if is_damage(&e) => {
                cut.set(true);
                Ok(end)
            }
            Err(e) => Err(e),
        }
    };
    let mut replayed = run(storage, superblock, false, records)?;
    // Pages may have gone home with changes by records that are damaged.
    replayed.cut = cut.get();
    replayed.end = replayed.end.max(superblock.floor);
    Ok(replayed)
}

/// The same with what is left of a log whose superblocks are lost.
pub(super) fn replay_lost(storage: &dyn Storage, superblock: &Superblock, log: &LostLog) -> Result<Replayed> {
    let place = Place::of(superblock);
    let records = |each: &mut Each<'_>| {
        for piece in &log.pieces {
            let take =
                |_: Lsn, end: Lsn, body: &[u8]| if end <= piece.end { each(end, body) } else { Ok(()) };
            match wal::scan(storage, place, piece.start, log.incarnation, Lsn(0), take) {
                // Marks of later pieces lie behind the gap.
                Err(e) if !is_damage(&e) => return Err(e),
                _ => {}
            }
        }
        Ok(log.end)
    };
    run(storage, superblock, true, records)
}

/// `lost`: the log begins before the last checkpoint, so the places of pages may belong to something else by now.
fn run(
    storage: &dyn Storage,
    superblock: &Superblock,
    lost: bool,
    records: impl Fn(&mut Each<'_>) -> crate::error::Result<Lsn>,
) -> Result<Replayed> {
    let mut freed = Freed::default();
    records(&mut |end, body| {
        for (id, ops) in op::sections(body).map_while(|section| section.ok()) {
            if superblock.is_bitmap_page(id) {
                freed.note(id, ops, end);
            }
        }
        Ok(())
    })?;
    let mut replay = Replay {
        storage,
        superblock,
        freed,
        lost,
        groups: superblock.groups,
        given_up: HashSet::new(),
        page: Box::new([0; PAGE_SIZE]),
        changed: false,
        contents: BTreeSet::new(),
    };
    replay.restore_copies()?;
    let end = records(&mut |end, body| {
        for section in op::sections(body) {
            match section {
                Ok((op::DATA_SECTION, ops)) => replay.contents(ops, end)?,
                Ok((id, ops)) => replay.section(id, ops, end)?,
                Err(_) => break,
            }
        }
        Ok(())
    })?;
    Ok(Replayed {
        end,
        cut: false,
        groups: replay.groups,
        changed: replay.changed,
        contents: replay.contents,
    })
}

/// Which blocks records free, and the last of them for each: first block → (end, end of the record).
#[derive(Default)]
struct Freed(BTreeMap<u64, (u64, Lsn)>);

impl Freed {
    fn note(&mut self, bitmap: PageId, ops: op::Ops<'_>, lsn: Lsn) {
        let group = bitmap.offset() / BLOCK_SIZE as u64;
        for op in ops.map_while(|op| op.ok()) {
            if let Op::Free { start, len } = op {
                self.insert(group + start as u64, group + start as u64 + len as u64, lsn);
            }
        }
    }

    fn insert(&mut self, from: u64, to: u64, lsn: Lsn) {
        let before = self.0.range(..to).next_back().map(|(k, v)| (*k, *v));
        if let Some((k, (end, old))) = before
            && end > to
        {
            self.0.insert(to, (end, old));
            self.0.insert(k, (to, old));
        }
        if let Some((k, (end, old))) = self.0.range(..from).next_back().map(|(k, v)| (*k, *v))
            && end > from
        {
            self.0.insert(k, (from, old));
        }
        let inside: Vec<u64> = self.0.range(from..to).map(|(k, _)| *k).collect();
        for k in inside {
            self.0.remove(&k);
        }
        self.0.insert(from, (to, lsn));
    }

    /// Whether a record behind `lsn` frees a block.
    fn behind(&self, block: u64, lsn: Lsn) -> bool {
        let found = self.0.range(..=block).next_back();
        found.is_some_and(|(_, (end, freed))| *end > block && *freed > lsn)
    }
}

struct Replay<'a> {
    storage: &'a dyn Storage,
    superblock: &'a Superblock,
    freed: Freed,
    lost: bool,
    groups: u32,
    /// Pages to which a change could not be applied: later ones would build on what is not there.
    given_up: HashSet<PageId>,
    page: Box<PageBytes>,
    changed: bool,
    contents: BTreeSet<BlockNo>,
}

fn kept(e: std::io::Error) -> Error {
    Error::io("keeping a page in memory", e)
}

impl Replay<'_> {
    fn section(&mut self, id: PageId, ops: op::Ops<'_>, end: Lsn) -> crate::error::Result<()> {
        let superblock = self.superblock;
        let data = superblock.is_data_page(id);
        if !data && !superblock.is_bitmap_page(id) {
            return Ok(());
        }
        if self.lost && data && self.freed.behind(id.offset() / BLOCK_SIZE as u64, end) {
            return Ok(());
        }
        let mut ops = ops.peekable();
        let birth = matches!(ops.peek(), Some(Ok(op)) if op.is_birth());
        if !birth && self.given_up.contains(&id) {
            return Ok(());
        }
        let page = &mut self.page;
        let read = self.storage.read_at(id.offset(), &mut page[..]);
        let whole = read.is_ok() && superblock.verify_page(id, page).is_ok();
        if whole && page_lsn(page) >= end {
            return Ok(());
        }
        let mut applied = whole || birth;
        for op in ops {
            applied = applied
                && op.is_ok_and(|op| op.fits(!data) && op::apply(page, id, superblock.image(), &op).is_ok());
        }
        if !applied {
            self.given_up.insert(id);
            return Ok(());
        }
        if birth {
            self.given_up.remove(&id);
            if self.groups < superblock.group_count() && id == superblock.bitmap_page(self.groups) {
                self.groups += 1;
            }
        }
        self.changed = true;
        set_page_lsn(page, end);
        seal(page);
        self.storage.write_at(id.offset(), &page[..]).map_err(kept)
    }

    /// Contents that were logged are written again, unless a later record frees their blocks, or a page lies there that one has
    /// changed which may be lost. What else may lie there by now is for the records of extents to say (`logged`).
    fn contents(&mut self, ops: op::Ops<'_>, end: Lsn) -> crate::error::Result<()> {
        let mut old = [0; BLOCK_SIZE];
        for op in ops.map_while(|op| op.ok()) {
            let Op::Data { start, bytes } = op else { continue };
            for (i, block) in bytes.as_chunks::<BLOCK_SIZE>().0.iter().enumerate() {
                let at = BlockNo(start.0.saturating_add(i as u64));
                if !self.superblock.has_blocks(at, 1) || self.freed.behind(at.0, end) {
                    continue;
                }
                let there = self.storage.read_at(at.offset(), &mut old).is_ok() && old == *block;
                if there || self.is_in_a_page_behind(at, end) {
                    continue;
                }
                self.storage.write_at(at.offset(), block).map_err(kept)?;
                self.changed = true;
                self.contents.insert(at);
            }
        }
        Ok(())
    }

    /// Whether a block belongs to a page that was changed behind `end`.
    fn is_in_a_page_behind(&mut self, block: BlockNo, end: Lsn) -> bool {
        let id = PageId(block.offset() / PAGE_SIZE as u64);
        self.storage.read_at(id.offset(), &mut self.page[..]).is_ok()
            && self.superblock.verify_page(id, &self.page).is_ok()
            && page_lsn(&self.page) > end
    }

    /// Pages that are torn at their places come back from whole copies, newest first.
    fn restore_copies(&mut self) -> crate::error::Result<()> {
        let (storage, superblock) = (self.storage, self.superblock);
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let mut halves = Vec::new();
        for half in 0..2 {
            if let Ok(Some(header)) = superblock.read_half(half, |at, bytes| storage.read_at(at, bytes)) {
                halves.push((half, header));
            }
        }
        halves.sort_by_key(|(_, h)| std::cmp::Reverse(h.sequence));
        for (half, header) in halves {
            let held = header.pages.iter().take(superblock.doublewrite_pages as usize);
            for (i, &(id, lsn)) in held.enumerate() {
                let placed = superblock.is_data_page(id) || superblock.is_bitmap_page(id);
                if lsn <= superblock.checkpoint || !placed {
                    continue;
                }
                if self.lost && self.freed.behind(id.offset() / BLOCK_SIZE as u64, lsn) {
                    continue;
                }
                let torn = storage.read_at(id.offset(), &mut page[..]).is_err()
                    || verify_seal(&page, id, superblock.image()).is_err();
                if torn
                    && storage.read_at(superblock.copy_offset(half, i), &mut page[..]).is_ok()
                    && page_lsn(&page) == lsn
                    && superblock.verify_page(id, &page).is_ok()
                {
                    self.changed = true;
                    storage.write_at(id.offset(), &page[..]).map_err(kept)?;
                }
            }
        }
        Ok(())
    }
}
