//! What an image is, found out without its superblocks.
//!
//! - **Bitmap pages** carry a copy of what does not change (`docs/format.md`). That of group 0 lies where a new image of the file's
//!   length would have it, or where what is left of the superblocks says; otherwise the whole image is searched.
//! - **Pages** carry their own number and the image's identity, so one that lies where it says is one of an image that begins here. Of
//!   several identities that of the first bitmap page of a group 0 counts: a new filesystem writes over everything in front of its
//!   own. Without one, that of most pages counts.
//! - **Doublewrite headers** lie where the log ends.
//! - **Damaged superblocks** are believed where pages confirm them.
//!
//! What cannot be found out otherwise is taken as a new image would have it: the second half of the UUID and the label are lost
//! then. The hash seed is found or replaced (`seed`), the state of the log is found by searching it (`lostlog`).

use std::collections::BTreeMap;

use super::image::read_pages;
use super::lostlog::{self, LostLog};
use super::{Options, Result, Stage, seed};
use crate::error::Error;
use crate::page::bitmap::Bitmap;
use crate::page::format::*;
use crate::page::node::Node;
use crate::page::superblock::*;
use crate::page::{Lsn, PAGE_SIZE, PageBytes, PageId};
use crate::storage::Storage;
use crate::wal::Place;

/// Identities that are counted; others are those of scattered remains.
const IDENTITIES_MAX: usize = 64;
/// Offsets of one kind that are kept of each.
const OFFSETS_MAX: usize = 4;

/// What was found out.
pub(super) struct Salvaged {
    /// As if the image had been closed in order at the log's end. All groups that there is room for count.
    pub superblock: Superblock,
    /// Hash seeds that may be the right one, the likelier first. The superblock has a new one.
    pub seeds: Vec<[u8; 16]>,
    pub log: LostLog,
}

/// Looks for an image. `None`: there is none.
pub(super) fn find(storage: &dyn Storage, options: &Options<'_>) -> Result<Option<Salvaged>> {
    let len = storage.len().map_err(|e| Error::io("reading the image's size", e))?;
    let remains = remains(storage, len);
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let mut first = None;
    for guess in remains.iter().chain(&plain(len, 0)) {
        if let Some((image, copy)) = bitmap_at(storage, guess.bitmap_page(0), &mut page) {
            let at = guess.data_offset();
            // A newer filesystem with a smaller log may begin in front of it.
            if image != guess.image() && survey(storage, at, options)?.has_bitmaps() {
                break;
            }
            let copy = copy.filter(|copy| copy.data_offset() == at);
            first = Some((image, copy.unwrap_or_else(|| guess.clone()), page_lsn(&page)));
            break;
        }
    }
    let (image, base, mut durable, root) = match first {
        Some((image, base, lsn)) => (image, base, lsn, None),
        None => match survey(storage, len, options)?.choose(&remains, len) {
            Some(found) => found,
            None => return Ok(None),
        },
    };
    let mut superblock = describe(&base, image, &remains, len);
    if superblock.ro_compat != 0 {
        return Ok(None);
    }
    superblock.root = root_of(storage, &superblock, &base, &remains, root);
    if read(storage, superblock.root.offset(), &mut page)
        && verify_seal(&page, superblock.root, image).is_ok()
    {
        durable = durable.max(page_lsn(&page));
    }
    for half in 0..2 {
        let at = superblock.doublewrite_offset(half);
        let id = PageId(at / PAGE_SIZE as u64);
        if read(storage, at, &mut page)
            && let Some(header) = DoublewriteHeader::decode(&page, id, image)
        {
            durable = durable.max(header.floor);
        }
    }
    let durable = Lsn(durable.0.min(lostlog::LSN_MAX).max(superblock.log_size));
    let place = Place::of(&superblock);
    let log = lostlog::find(storage, place, durable);
    superblock.incarnation = log.incarnation + 1;
    (superblock.checkpoint, superblock.floor) = (log.end, log.end);
    let mut seeds: Vec<[u8; 16]> = Vec::new();
    for known in std::iter::once(&base).chain(&remains).filter(|known| known.image() == image) {
        if !seeds.contains(&known.hash_seed) && known.hash_seed != [0; 16] {
            seeds.push(known.hash_seed);
        }
    }
    superblock.hash_seed = seed::fresh();
    Ok(Some(Salvaged { superblock, seeds, log }))
}

fn read(storage: &dyn Storage, at: u64, page: &mut PageBytes) -> bool {
    storage.read_at(at, page).is_ok()
}

/// What is left of the superblocks.
fn remains(storage: &dyn Storage, len: u64) -> Vec<Superblock> {
    let mut found = Vec::new();
    for at in SUPERBLOCK_OFFSETS {
        let mut copy = [0; BACKUP_SIZE];
        if at + BACKUP_SIZE as u64 <= len && storage.read_at(at, &mut copy).is_ok() {
            found.extend(Superblock::from_backup(&copy));
        }
    }
    found
}

/// The superblock of a new image of so many bytes; `None` if that is too short.
fn plain(len: u64, image: u64) -> Option<Superblock> {
    let (log_size, doublewrite_pages) = default_areas(whole_pages(len));
    shaped(log_size, doublewrite_pages, len, image)
}

/// The superblock of an image with such areas, and of so many bytes or a little more.
fn shaped(log_size: u64, doublewrite_pages: u32, len: u64, image: u64) -> Option<Superblock> {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&image.to_be_bytes());
    let mut superblock = Superblock::of_new_image(uuid, len, log_size, doublewrite_pages);
    superblock.size = superblock.size.max(superblock.data_offset() + CHUNK_SIZE as u64);
    Superblock::decode(&superblock.encode()).ok()
}

/// The identity in a whole bitmap page at its place, and the superblock's copy in it.
fn bitmap_at(storage: &dyn Storage, id: PageId, page: &mut PageBytes) -> Option<(u64, Option<Superblock>)> {
    let there = read(storage, id.offset(), page) && verify_seal(page, id, page_image(page)).is_ok();
    let whole = there && Bitmap(page).validate().is_ok();
    whole.then(|| (page_image(page), Bitmap(page).backup()))
}

/// The superblock for an image with this identity and the areas of `base`.
fn describe(base: &Superblock, image: u64, remains: &[Superblock], len: u64) -> Superblock {
    let named = std::iter::once(base).chain(remains).find(|s| s.image() == image && s.uuid[8..] != [0; 8]);
    let mut superblock = base.clone();
    superblock.uuid = [0; 16];
    superblock.uuid[..8].copy_from_slice(&image.to_be_bytes());
    superblock.label = String::new();
    if let Some(named) = named {
        (superblock.uuid, superblock.label) = (named.uuid, named.label.clone());
    }
    // An image is never larger than it says, and the file as large unless somebody has cut it.
    superblock.size = base.size.max(whole_pages(len)).min(IMAGE_SIZE_MAX);
    superblock.groups = superblock.group_count();
    superblock.sequence = 1;
    superblock.clean = true;
    superblock
}

/// The tree's root: where the copy says, or where a new image has it, if that can be one.
fn root_of(
    storage: &dyn Storage,
    superblock: &Superblock,
    base: &Superblock,
    remains: &[Superblock],
    surveyed: Option<PageId>,
) -> PageId {
    let usual = PageId(superblock.bitmap_page(0).0 + 1);
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let mut is_root = |id: &PageId| {
        superblock.is_data_page(*id)
            && read(storage, id.offset(), &mut page)
            && verify_seal(&page, *id, superblock.image()).is_ok()
            && is_top(&page)
    };
    let told =
        std::iter::once(base).chain(remains).filter(|s| s.image() == superblock.image()).map(|s| s.root);
    surveyed.into_iter().chain(told).chain([usual]).find(|id| is_root(id)).unwrap_or(usual)
}

/// Whether a whole page can be a root: it covers all keys.
fn is_top(page: &PageBytes) -> bool {
    page_type(page) == TYPE_TREE && Node(page).validate().is_ok() && {
        let node = Node(page);
        !node.is_dead() && node.low().is_empty() && node.high().is_none()
    }
}

/// The pages of one identity.
#[derive(Default)]
struct Pages {
    count: u64,
    /// The first one that lies in a group.
    lowest: Option<u64>,
    bitmaps: Vec<u64>,
    doublewrite: Vec<u64>,
    durable: Lsn,
    /// The bitmap page of group 0, by the copy in it.
    first: Option<u64>,
    /// Level and LSN of what can be a root.
    root: Option<(u8, Lsn, PageId)>,
    copy: Option<Superblock>,
}

/// All pages that lie where they say, by their identities.
struct Survey(BTreeMap<u64, Pages>);

/// Reads the whole image, but for holes.
fn survey(storage: &dyn Storage, len: u64, options: &Options<'_>) -> Result<Survey> {
    let mut found: BTreeMap<u64, Pages> = BTreeMap::new();
    let mut chunk = vec![0; CHUNK_SIZE];
    let mut at = LOG_OFFSET;
    loop {
        at = whole_pages(storage.skip_hole(at).unwrap_or(at));
        if at + PAGE_SIZE as u64 > len {
            return Ok(Survey(found));
        }
        let n = (CHUNK_SIZE as u64).min(whole_pages(len - at)) as usize;
        read_pages(storage, at, &mut chunk[..n]);
        for (i, bytes) in chunk[..n].as_chunks::<PAGE_SIZE>().0.iter().enumerate() {
            let offset = at + (i * PAGE_SIZE) as u64;
            let id = PageId(offset / PAGE_SIZE as u64);
            if page_number(bytes) == id && verify_seal(bytes, id, page_image(bytes)).is_ok() {
                let image = page_image(bytes);
                if found.len() < IDENTITIES_MAX || found.contains_key(&image) {
                    found.entry(image).or_default().note(offset, bytes);
                }
            }
        }
        at += n as u64;
        options.tell(Stage::Search, at, len);
    }
}

impl Pages {
    fn note(&mut self, offset: u64, page: &PageBytes) {
        let kept = |list: &mut Vec<u64>| {
            if list.len() < OFFSETS_MAX {
                list.push(offset);
            }
        };
        match page_type(page) {
            TYPE_DOUBLEWRITE => return kept(&mut self.doublewrite),
            TYPE_BITMAP => {
                kept(&mut self.bitmaps);
                let copy = Bitmap(page).backup();
                if copy.as_ref().is_some_and(|copy| copy.data_offset() == offset) {
                    self.first.get_or_insert(offset);
                }
                self.copy = self.copy.take().or(copy);
            }
            TYPE_TREE if is_top(page) => {
                let root = (Node(page).level(), page_lsn(page), page_number(page));
                self.root = self.root.max(Some(root));
            }
            TYPE_TREE => {}
            _ => return,
        }
        self.count += 1;
        self.lowest.get_or_insert(offset);
        if page_lsn(page).0 <= lostlog::LSN_MAX {
            self.durable = self.durable.max(page_lsn(page));
        }
    }

    /// The areas in front of group 0.
    fn areas(&self, image: u64, remains: &[Superblock], len: u64) -> Option<Superblock> {
        let lowest = self.lowest?;
        let first = self.bitmaps.first().copied();
        let fits = |s: &Superblock| {
            let at = s.data_offset();
            at <= lowest && first.is_none_or(|b| (b - at).is_multiple_of(GROUP_SIZE))
        };
        if let Some(known) = self.copy.iter().chain(remains).chain(&plain(len, image)).find(|s| fits(s)) {
            return Some(known.clone());
        }
        let page = PAGE_SIZE as u64;
        let halves = |log: u64, half: u64| {
            let pages = u32::try_from((half / page).checked_sub(1)?).ok()?;
            shaped(log, pages, len, image).filter(|s| fits(s))
        };
        if let [a, b, ..] = self.doublewrite[..]
            && let Some(found) = halves(a - LOG_OFFSET, b - a)
        {
            return Some(found);
        }
        // Group 0 begins in front of its lowest page; with a bitmap page of another group, a number of groups in front of that.
        let groups = |bitmap: u64| bitmap.checked_sub((bitmap - lowest).div_ceil(GROUP_SIZE) * GROUP_SIZE);
        let data = first.and_then(groups).unwrap_or(lowest - page);
        if let [one, ..] = self.doublewrite[..]
            && let Some(rest) = data.checked_sub(one)
        {
            let second = (one - LOG_OFFSET).checked_sub(rest).and_then(|log| halves(log, rest));
            if let Some(found) = halves(one - LOG_OFFSET, rest / 2).or(second) {
                return Some(found);
            }
        }
        let area = data.checked_sub(LOG_OFFSET)?;
        let split = |pages: u32| {
            let half = (pages as u64 + 1) * page;
            halves(area.checked_sub(2 * half)?, half).filter(|s| s.data_offset() == data)
        };
        let usual = (DOUBLEWRITE_PAGES_MIN..=DOUBLEWRITE_PAGES_MAX)
            .filter_map(split)
            .find(|s| s.doublewrite_pages == default_halves(s.log_size));
        usual.or_else(|| (DOUBLEWRITE_PAGES_MIN..=DOUBLEWRITE_PAGES_MAX).find_map(split))
    }
}

impl Survey {
    fn has_bitmaps(&self) -> bool {
        self.0.values().any(|pages| !pages.bitmaps.is_empty())
    }

    /// The identity, what the image is, how far its log was durable, and the root.
    fn choose(self, remains: &[Superblock], len: u64) -> Option<(u64, Superblock, Lsn, Option<PageId>)> {
        let pages = self.0.into_iter().filter(|(_, pages)| pages.count > 0);
        let known = |image: u64| remains.iter().any(|s| s.image() == image);
        let first = |pages: &Pages| std::cmp::Reverse(pages.first.unwrap_or(u64::MAX));
        let (image, pages) = pages.max_by_key(|(image, pages)| (known(*image), first(pages), pages.count))?;
        let base = pages.areas(image, remains, len)?;
        Some((image, base, pages.durable, pages.root.map(|(_, _, id)| id)))
    }
}
