//! An image as the checks read it: verified page by page, through the storage alone, so that images can be read that the upper
//! layers refuse.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::blocks::Claims;
use super::fix::Fix;
use super::report::{Findings, Place, ProblemKind};
use super::salvage::{self, Salvaged};
use super::short::Extended;
use super::size;
use super::{FsckError, Options, Result, replay, replay_options};
use crate::error::Error;
use crate::page::format::*;
use crate::page::node::Node;
use crate::page::superblock::{self, *};
use crate::page::{BlockNo, Lsn, PAGE_SIZE, PageBytes, PageId, Run};
use crate::pool::{Pool, PoolOptions, RecoveryReport};
use crate::storage::{OverlayStorage, Storage, spare_memory};

/// An image that is being checked. What replaying the log changes is kept in memory, above the storage.
pub(super) struct Image {
    storage: Arc<dyn Storage>,
    /// The same without what replaying the log changes.
    below: Arc<dyn Storage>,
    /// The superblock that counts, after the log was replayed.
    pub superblock: Superblock,
    /// No page was changed by a record that ends behind this.
    pub end: Lsn,
    /// What replaying the log did.
    pub replay: Option<RecoveryReport>,
    /// The log could be replayed, or there was none.
    pub log_whole: bool,
    /// The storage itself has a log that is to be replayed.
    pub needs_replay: bool,
    /// A repair was interrupted: the bitmaps are not to be believed.
    pub repair_unfinished: bool,
    /// An earlier repair was interrupted when it knew of lost contents that no record says.
    pub half_repaired: bool,
    /// Bytes of the file, if it is shorter than the image.
    pub short: Option<u64>,
    /// There was no superblock.
    pub salvaged: bool,
    /// Hash seeds that may be the right one instead of the superblock's.
    pub seeds: Vec<[u8; 16]>,
    /// The superblock's seed is a new one, which names do not know.
    pub seed_lost: bool,
    /// Records of the log that were durable are lost.
    pub log_cut: bool,
    /// Blocks of contents that replaying the log has changed. Only if it was not replayed as opening would replay it.
    pub contents: BTreeSet<BlockNo>,
}

/// What is wrong with an image that was being repaired.
pub(super) const INTERRUPTED: &str =
    "a repair was interrupted, and the image cannot be mounted until it is finished";

/// Why a page cannot be used.
pub(super) enum PageError {
    /// It fails its checks.
    Damaged(String),
    /// It is whole, but a record beyond the log's end has changed it.
    Beyond,
}

impl PageError {
    /// What is reported. If the page fails its checks: a problem of kind `damaged`, with `about` in front of the reason.
    pub fn problem(self, damaged: ProblemKind, about: &str) -> (ProblemKind, String) {
        match self {
            PageError::Damaged(reason) => (damaged, format!("{about}{reason}")),
            PageError::Beyond => {
                (ProblemKind::PageLsn, "it was changed by a record beyond the log's end".to_string())
            }
        }
    }
}

/// Reads many pages at once. Where that fails, page by page: those that cannot be read are zeros. `false`: none can.
pub(super) fn read_pages(storage: &dyn Storage, offset: u64, bytes: &mut [u8]) -> bool {
    if storage.read_at(offset, bytes).is_ok() {
        return true;
    }
    let mut any = false;
    for (i, page) in bytes.chunks_mut(PAGE_SIZE).enumerate() {
        match storage.read_at(offset + (i * PAGE_SIZE) as u64, page) {
            Ok(()) => any = true,
            Err(_) => page.fill(0),
        }
    }
    any
}

/// The two superblocks, as they are. The image may be longer than the file. One whose counters are spent is not believed.
pub(super) fn read_superblocks(storage: &dyn Storage) -> Result<Copies> {
    let len = storage.len().map_err(|e| Error::io("reading the image's size", e))?;
    let copies = read_copies(len, |at, bytes| storage.read_at(at, bytes));
    let spent = "sequence number, LSNs or incarnation are greater than any use makes them";
    Ok(copies.map(|copy| match copy {
        Ok(superblock) if superblock.is_spent() => Err(SuperblockError::Damaged(spent).into()),
        copy => copy,
    }))
}

/// The superblock that counts, whether or not a repair is under way, and whatever the file's length.
pub(super) fn newest(copies: &Copies) -> Option<&Superblock> {
    superblock::newest(copies, u64::MAX)
}

/// What is written to it stays in memory.
fn overlay(below: &Arc<dyn Storage>) -> Result<Arc<dyn Storage>> {
    let overlay = OverlayStorage::new(below.clone(), spare_memory());
    Ok(Arc::new(overlay.map_err(|e| Error::io("reading the image's size", e))?))
}

/// The storage in the length that the image says, and the one that it has, if that is less. `size`: what the image is believed
/// to have instead, if the superblock says something else.
fn whole_length(
    below: &Arc<dyn Storage>,
    superblock: &mut Superblock,
    size: Option<u64>,
    findings: &mut Findings,
) -> Result<(Arc<dyn Storage>, Option<u64>)> {
    let held = below.len().map_err(|e| Error::io("reading the image's size", e))?;
    if let Some(resized) = size.and_then(|size| size::resized(superblock, size)) {
        if resized.size != superblock.size {
            let what = format!(
                "the superblock says {} bytes; the file has {held}, and the image {}",
                superblock.size, resized.size
            );
            findings.add(ProblemKind::ImageSize, Place::image(), what, vec![Fix::ImageSize(resized.size)]);
        }
        *superblock = resized;
    }
    if held >= superblock.size {
        return Ok((below.clone(), None));
    }
    let what =
        format!("the image says that it has {} bytes, the file has only {held}: it was cut", superblock.size);
    findings.add(ProblemKind::FileShort, Place::image(), what, vec![Fix::Extend(superblock.size)]);
    Ok((Arc::new(Extended::new(below.clone(), held, superblock.size)), Some(held)))
}

impl Image {
    /// Reads superblocks, doublewrite area and log. Nothing is written to the storage. `size`: what the image is believed to have,
    /// whatever the superblock says.
    ///
    /// # Errors
    /// Not an image, or one of another version; or too little memory.
    pub fn open(
        below: &Arc<dyn Storage>,
        size: Option<u64>,
        findings: &mut Findings,
        options: &Options<'_>,
    ) -> Result<Image> {
        let both = read_superblocks(&**below)?;
        let Some(mut superblock) = newest(&both).cloned() else {
            return Image::salvage(below, &both, size, findings, options);
        };
        if superblock.ro_compat != 0 {
            let features = superblock.ro_compat;
            return Err(FsckError::Engine(Error::Unusable(format!(
                "the image has features that this program lacks: {features:#x}"
            ))));
        }
        check_superblocks(&both, size, findings)?;
        let said = superblock.size;
        let (below, short) = whole_length(below, &mut superblock, size, findings)?;
        check_doublewrite(&*below, &superblock, findings)?;
        let repair_unfinished = superblock.lacks_bitmaps();
        if repair_unfinished {
            findings.add(ProblemKind::RepairUnfinished, Place::image(), INTERRUPTED, vec![Fix::Bitmaps]);
        }
        let mut image = Image::new(below.clone(), superblock);
        (image.short, image.repair_unfinished) = (short, repair_unfinished);
        if !image.superblock.clean && !repair_unfinished {
            image.needs_replay = true;
            let resized = image.superblock.size != said;
            image.replay_log(&below, resized, findings)?;
        }
        Ok(image)
    }

    fn new(storage: Arc<dyn Storage>, superblock: Superblock) -> Image {
        Image {
            below: storage.clone(),
            storage,
            end: if superblock.clean { superblock.checkpoint } else { superblock.floor },
            superblock,
            replay: None,
            log_whole: true,
            needs_replay: false,
            repair_unfinished: false,
            half_repaired: false,
            short: None,
            salvaged: false,
            seeds: Vec::new(),
            seed_lost: false,
            log_cut: false,
            contents: BTreeSet::new(),
        }
    }

    /// Reads an image without superblocks.
    fn salvage(
        below: &Arc<dyn Storage>,
        both: &Copies,
        size: Option<u64>,
        findings: &mut Findings,
        options: &Options<'_>,
    ) -> Result<Image> {
        let newer = |copy: &std::result::Result<Superblock, Missing>| {
            let Err(Missing::Unusable(reason)) = copy else { return false };
            matches!(reason, SuperblockError::Version(_) | SuperblockError::Features(_))
        };
        let found = if both.iter().any(newer) { None } else { salvage::find(&**below, options)? };
        let Some(Salvaged { mut superblock, seeds, log }) = found else {
            return Err(FsckError::Engine(match crate::pool::read_superblock(&**below) {
                Err(e) => e,
                Ok(_) => Error::corrupt(
                    "both superblocks",
                    "they cannot be used, and no image is found by its pages",
                ),
            }));
        };
        let what = format!(
            "both superblocks are lost; pages of an image of {} bytes with an identity of {:016x} are there",
            superblock.size,
            superblock.image()
        );
        findings.add(ProblemKind::SuperblocksLost, Place::image(), what, vec![Fix::Superblocks]);
        let (below, short) = whole_length(below, &mut superblock, size, findings)?;
        check_doublewrite(&*below, &superblock, findings)?;
        let mut image = Image::new(below.clone(), superblock);
        (image.short, image.salvaged, image.seeds) = (short, true, seeds);
        let storage = overlay(&below)?;
        let mut before = image.superblock.clone();
        before.checkpoint = log.pieces.first().map_or(log.end, |piece| piece.start);
        let replayed = replay::replay_lost(&*storage, &before, &log)?;
        if log.torn && replayed.changed {
            let what = "records of the log are missing that were durable";
            findings.add(ProblemKind::Log, Place::image(), what, vec![Fix::Tree]);
        }
        if replayed.changed {
            (image.storage, image.log_whole, image.contents) = (storage, false, replayed.contents);
            image.log_cut = log.torn;
        }
        Ok(image)
    }

    /// Replays the log in memory: as opening the image would, or, if that refuses, as far as it goes.
    fn replay_log(&mut self, below: &Arc<dyn Storage>, resized: bool, findings: &mut Findings) -> Result<()> {
        let storage = overlay(below)?;
        let kept = |e| Error::io("keeping what replaying the log changes", e);
        // Opening might believe what is not believed here.
        for (found, at) in read_superblocks(&**below)?.iter().zip(SUPERBLOCK_OFFSETS) {
            if found.is_err() {
                storage.write_at(at, &[0; SUPERBLOCK_SIZE]).map_err(kept)?;
            }
        }
        if resized {
            let at = SUPERBLOCK_OFFSETS[self.superblock.sequence as usize % 2];
            storage.write_at(at, &self.superblock.encode()).map_err(kept)?;
        }
        let cache_size = replay_options(&**below).cache_size;
        let options = PoolOptions { cache_size, background: false, ..PoolOptions::default() };
        match Pool::open(storage.clone(), &options) {
            Ok((pool, report)) => {
                drop(pool);
                self.superblock = crate::pool::read_superblock(&*storage)?;
                self.end = self.superblock.checkpoint.max(self.superblock.floor);
                self.replay = Some(report);
                self.storage = storage;
            }
            Err(error) if replay::is_damage(&error) => {
                findings.add(ProblemKind::Log, Place::image(), &error, vec![Fix::Tree]);
                drop(storage);
                let storage = overlay(below)?;
                let replayed = replay::replay(&*storage, &self.superblock)?;
                self.superblock.groups = replayed.groups;
                self.end = replayed.end;
                self.storage = storage;
                self.log_whole = false;
                self.log_cut = replayed.cut;
                self.contents = replayed.contents;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The image, with what replaying the log changed.
    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// Reads a page and checks what can be checked of it alone.
    pub fn read_page(&self, id: PageId, page: &mut PageBytes) -> std::result::Result<(), PageError> {
        if let Err(e) = self.storage.read_at(id.offset(), page) {
            return Err(PageError::Damaged(format!("it cannot be read: {e}")));
        }
        self.verify_page(id, page)
    }

    /// Checks a page that has been read.
    pub fn verify_page(&self, id: PageId, page: &PageBytes) -> std::result::Result<(), PageError> {
        self.superblock.verify_page(id, page).map_err(|r| PageError::Damaged(r.into()))?;
        if page_lsn(page) > self.end { Err(PageError::Beyond) } else { Ok(()) }
    }

    /// Whether a page is a whole leaf of this image, whatever its LSN.
    pub fn is_leaf(&self, id: PageId, page: &PageBytes) -> bool {
        verify_seal(page, id, self.superblock.image()).is_ok()
            && self.superblock.is_data_page(id)
            && Node(page).validate().is_ok()
            && Node(page).level() == 0
            && !Node(page).is_dead()
    }

    /// Whether a run of blocks lies in one group, behind its bitmap page.
    pub fn is_valid_run(&self, run: Run) -> bool {
        self.superblock.is_valid_run(run, self.superblock.groups)
    }

    /// Groups that need a bitmap page if these blocks are in use. What a superblock says of them may be forged: where nothing was ever
    /// written, there is none.
    pub fn groups_of(&self, claims: &Claims) -> u32 {
        let written = if self.salvaged { 0 } else { self.written_groups().last().map_or(0, |last| last + 1) };
        written.max(claims.groups())
    }

    /// The groups in which something was written, as far as the host can tell.
    pub fn written_groups(&self) -> impl Iterator<Item = u32> {
        let mut next = 0;
        std::iter::from_fn(move || {
            while next < self.superblock.groups {
                let group = next;
                let first = self.superblock.bitmap_page(group).offset();
                next += 1;
                match self.storage.skip_hole(first) {
                    Some(written) if written >= self.superblock.size => break,
                    Some(written) if written >= first + GROUP_SIZE => {
                        next = self.superblock.locate(BlockNo(written / BLOCK_SIZE as u64)).0;
                    }
                    _ => return Some(group),
                }
            }
            next = self.superblock.groups;
            None
        })
    }

    /// Reads blocks.
    pub fn read_blocks(&self, run: Run, bytes: &mut [u8]) -> std::io::Result<()> {
        self.storage.read_at(run.start.offset(), bytes)
    }

    /// Reads a block as it was before the log was replayed.
    pub fn read_block_below(&self, block: BlockNo, bytes: &mut [u8; BLOCK_SIZE]) -> std::io::Result<()> {
        self.below.read_at(block.offset(), bytes)
    }

    /// Takes back what replaying the log has made of a block.
    pub fn take_back(&self, block: BlockNo, bytes: &[u8; BLOCK_SIZE]) -> Result<()> {
        Ok(self
            .storage
            .write_at(block.offset(), bytes)
            .map_err(|e| Error::io("keeping a block in memory", e))?)
    }
}

fn check_superblocks(both: &Copies, size: Option<u64>, findings: &mut Findings) -> Result<()> {
    let name = ["superblock A", "superblock B"];
    for (i, found) in both.iter().enumerate() {
        let Err(reason) = found else { continue };
        findings.add(
            ProblemKind::Superblock,
            Place::image(),
            format!("{}: {reason}", name[i]),
            vec![Fix::Superblock(i)],
        );
    }
    if let [Ok(a), Ok(b)] = both {
        let older = (a.sequence >= b.sequence) as usize;
        let (old, new) = if older == 0 { (a, b) } else { (b, a) };
        // Images do not shrink.
        let same = old.size <= size.unwrap_or(new.size).max(new.size)
            && a.uuid == b.uuid
            && a.hash_seed == b.hash_seed
            && a.log_size == b.log_size
            && a.doublewrite_pages == b.doublewrite_pages
            && (a.root == b.root || a.lacks_bitmaps() || b.lacks_bitmaps());
        if !same {
            let what = format!("{} describes another image than the newer one", name[older]);
            findings.add(ProblemKind::SuperblockTwin, Place::image(), what, vec![Fix::Superblock(older)]);
        }
    }
    Ok(())
}

/// A half whose header does not verify was never written, or is torn: nothing is wrong with that. One that verifies and says what
/// cannot be would be believed.
fn check_doublewrite(storage: &dyn Storage, superblock: &Superblock, findings: &mut Findings) -> Result<()> {
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    for half in 0..2 {
        let at = superblock.doublewrite_offset(half);
        let id = PageId(at / PAGE_SIZE as u64);
        if storage.read_at(at, &mut page[..]).is_err() || verify_seal(&page, id, superblock.image()).is_err()
        {
            continue;
        }
        let problem = match DoublewriteHeader::decode(&page, id, superblock.image()) {
            None => Some("its header has a right checksum and impossible contents".to_string()),
            Some(h) if h.pages.len() > superblock.doublewrite_pages as usize => {
                Some(format!("its header names {} pages, more than it holds", h.pages.len()))
            }
            Some(h) => h
                .pages
                .iter()
                .find(|(p, _)| !superblock.is_data_page(*p) && !superblock.is_bitmap_page(*p))
                .map(|(p, _)| format!("its header names {p}, which the image does not have")),
        };
        if let Some(what) = problem {
            let what = format!("doublewrite half {}: {what}", ["A", "B"][half]);
            findings.add(ProblemKind::Doublewrite, Place::page(id), what, vec![Fix::Doublewrite(half)]);
        }
    }
    Ok(())
}
