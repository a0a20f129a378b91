//! A new tree from the leaves that are whole.
//!
//! All leaves that the walk has reached count. Where some are missing, the image is searched for others: pages that are marked as in
//! use, belong to this image, and are reached from nowhere; where several cover the same keys, the newest counts. The new tree is
//! written to space that is free by the bitmaps *and* by what is in use, so nothing that a later run might still want is overwritten.
//!
//! If the hash seed is a new one, names get new places on the way (`rehash`). That is done only to a tree that is whole: of one with
//! missing leaves an interrupted run might leave pages with new places, which would be found beside the old ones.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use super::blocks::Claims;
use super::image::{Image, read_pages};
use super::logged;
use super::records::Records;
use super::rehash::Rehash;
use super::structure::{Gap, Row, Structure};
use super::switch::{self, Target, failed};
use super::{FsckError, Looked, Options, Result, Stage};
use crate::error::Error;
use crate::fs::format::*;
use crate::page::bitmap::Bitmap;
use crate::page::format::*;
use crate::page::node::Node;
use crate::page::pack::{PackedPage, Packer, PageSink};
use crate::page::superblock::INCOMPAT_RECORDS;
use crate::page::{BLOCK_SIZE, BlockNo, Lsn, PAGE_SIZE, PageBytes, PageId, Run};
use crate::storage::Storage;

/// Builds a new tree and makes it the image's. Returns the ranges of keys that are lost.
pub(super) fn rebuild(storage: &dyn Storage, looked: &Looked, options: &Options<'_>) -> Result<Vec<Gap>> {
    let (image, structure) = (&looked.image, &looked.structure);
    let maps = Maps { image, believed: !image.repair_unfinished };
    let (leaves, lost) = sources(image, structure, &maps, options)?;
    let mut claims = looked.pages.clone().unwrap_or_else(|| Claims::new(image));
    for id in leaves.ids() {
        claims.claim(id.run());
    }
    let mut home = BTreeSet::new();
    let mut records = Records::new(image, &leaves, &[])?;
    while records.next()? {
        claim_blocks(image, &records, &mut claims);
        logged::settle(image, records.key(), records.value(), &mut home)?;
    }
    let end = image.end.max(Lsn(image.superblock.log_size));
    let mut build = Build {
        storage,
        image,
        places: Places { maps: &maps, taken: &claims, group: 0, page: 0, bitmap: None, careful: true },
        pages: Claims::new(image),
        groups: image.superblock.groups,
        end,
        unmarked: !lost.is_empty(),
    };
    let mut packer = Packer::default();
    // Without superblocks these come first, and names when they are there.
    let unfinished = image.seed_lost && image.salvaged;
    if image.seed_lost && !unfinished {
        Rehash::new(image, &leaves)?.run(|key, value| packer.add(&mut build, key, value))?;
    } else {
        let mut records = Records::new(image, &leaves, &[])?;
        while records.next()? {
            packer.add(&mut build, records.key(), records.value())?;
        }
    }
    let root = packer.finish(&mut build)?;
    build.put(&root)?;
    write_contents(storage, image, &home)?;
    storage.sync().map_err(failed)?;
    let (pages, groups) = (build.pages, build.groups);
    let mut used = pages.clone();
    let mut records = Records::new(image, &leaves, &[])?;
    while records.next()? {
        claim_blocks(image, &records, &mut used);
    }
    let groups = if image.salvaged { used.groups() } else { groups };
    let lossy = !lost.is_empty();
    switch::switch(
        storage,
        image,
        &Target { root: root.id, end, groups, claims: &used, pages: &pages, lossy },
    )?;
    Ok(lost)
}

/// Makes of a structure with gaps what a new tree would be made of: with the leaves that a search finds, and the gaps that are left
/// then. Nothing is written. Returns how many leaves were found.
pub(super) fn foresee(image: &Image, structure: &mut Structure, options: &Options<'_>) -> Result<u64> {
    let maps = Maps { image, believed: !image.repair_unfinished };
    let (leaves, lost) = sources(image, structure, &maps, options)?;
    let reached: HashSet<PageId> = structure.leaves.ids().collect();
    let found: HashSet<PageId> = leaves.ids().filter(|id| !reached.contains(id)).collect();
    (structure.leaves, structure.gaps) = (leaves, lost);
    Ok(found.len() as u64)
}

/// Contents that the log holds are written home, as recovery would write them.
fn write_contents(storage: &dyn Storage, image: &Image, home: &BTreeSet<BlockNo>) -> Result<()> {
    let mut bytes = [0; BLOCK_SIZE];
    for block in home {
        image.read_blocks(Run { start: *block, len: 1 }, &mut bytes).map_err(|_| FsckError::Changed)?;
        storage.write_at(block.offset(), &bytes).map_err(failed)?;
    }
    Ok(())
}

/// The blocks that a record names.
fn run_of(key: &[u8], value: &[u8]) -> Option<Run> {
    match AnyKey::parse(key)? {
        AnyKey::Extent(ino, end) => Extent::decode(ino, end, value).ok()?.run(),
        AnyKey::Xattr(ino, _) => Xattr::decode(ino, value).ok()?.run(),
        _ => None,
    }
}

/// Claims the blocks that a record names.
fn claim_blocks(image: &Image, record: &Records<'_>, claims: &mut Claims) {
    if let Some(run) = run_of(record.key(), record.value()).filter(|run| image.is_valid_run(*run)) {
        claims.claim(run);
    }
}

/// The bitmaps as they are on the image.
struct Maps<'a> {
    image: &'a Image,
    /// Whether they are to be believed at all.
    believed: bool,
}

impl Maps<'_> {
    /// The bitmap of a group, if it is whole.
    fn read(&self, group: u32) -> Option<Box<PageBytes>> {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let id = self.image.superblock.bitmap_page(group);
        let whole = self.believed && self.image.read_page(id, &mut page).is_ok();
        whole.then_some(page)
    }
}

/// The leaves that the new tree is made of, or the parts of them that count, and the ranges of keys for which nothing was found.
fn sources(
    image: &Image,
    structure: &Structure,
    maps: &Maps<'_>,
    options: &Options<'_>,
) -> Result<(Row, Vec<Gap>)> {
    let mut leaves = structure.leaves.clone();
    leaves.bounded = true;
    if structure.gaps.is_empty() {
        return Ok((leaves, Vec::new()));
    }
    let mut found: BTreeMap<Vec<u8>, PageId> =
        (0..leaves.len()).map(|i| (leaves.low(i).to_vec(), leaves.id(i))).collect();
    let mut candidates = search(image, structure, maps, options)?;
    // Newest first: each takes what no newer one has.
    candidates.sort_unstable_by_key(|(lsn, id)| (std::cmp::Reverse(*lsn), *id));
    let mut open: BTreeMap<Vec<u8>, Option<Vec<u8>>> =
        structure.gaps.iter().map(|gap| (gap.low.clone(), gap.high.clone())).collect();
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    for (_, id) in candidates {
        image.storage().read_at(id.offset(), &mut page[..]).map_err(|_| FsckError::Changed)?;
        if !image.is_leaf(id, &page) {
            return Err(FsckError::Changed);
        }
        let (low, high) = (Node(&page).low(), Node(&page).high());
        found.extend(take(&mut open, low, high).into_iter().map(|(from, _)| (from, id)));
    }
    let mut leaves = Row::default();
    leaves.bounded = true;
    found.iter().for_each(|(low, id)| leaves.push(*id, low));
    let lost = open.into_iter().map(|(low, high)| Gap { low, high }).collect();
    Ok((leaves, lost))
}

/// Takes what lies between two keys out of the open ranges.
fn take(
    open: &mut BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    low: &[u8],
    high: Option<&[u8]>,
) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    // The ranges do not overlap: only the last one that begins at `low` or before can reach behind it.
    let before = open.range::<[u8], _>((Unbounded, Included(low))).next_back();
    let before = before.filter(|(_, end)| end.as_ref().is_none_or(|end| end.as_slice() > low));
    let behind = open.range::<[u8], _>((Excluded(low), Unbounded));
    let behind = behind.take_while(|(begin, _)| high.is_none_or(|high| begin.as_slice() < high));
    let hit: Vec<Vec<u8>> = before.into_iter().chain(behind).map(|(begin, _)| begin.clone()).collect();
    let mut taken = Vec::new();
    for begin in hit {
        let Some(end) = open.remove(&begin) else { continue };
        let from = if begin.as_slice() < low { low.to_vec() } else { begin.clone() };
        let to = match (&end, high) {
            (Some(end), Some(high)) => Some(end.as_slice().min(high).to_vec()),
            (Some(end), None) => Some(end.clone()),
            (None, high) => high.map(<[u8]>::to_vec),
        };
        if begin < from {
            open.insert(begin, Some(from.clone()));
        }
        if let Some(to) = to.clone()
            && end.as_ref().is_none_or(|end| to < *end)
        {
            open.insert(to, end);
        }
        taken.push((from, to));
    }
    taken
}

/// Leaves of this image that are marked as in use and not reached, and those that were reached at a wrong place.
fn search(
    image: &Image,
    structure: &Structure,
    maps: &Maps<'_>,
    options: &Options<'_>,
) -> Result<Vec<(Lsn, PageId)>> {
    let reached: HashSet<PageId> = structure.leaves.ids().collect();
    let mut candidates = Vec::new();
    let mut chunk = vec![0; CHUNK_SIZE];
    let mut hole = 0;
    for group in 0..image.superblock.groups {
        let bitmap = maps.read(group);
        let first = image.superblock.bitmap_page(group);
        let exist = image.superblock.group_blocks(group);
        let mut at = 0;
        while at + BLOCKS_PER_PAGE <= exist {
            let n = BLOCKS_PER_CHUNK.min(exist - at);
            let free = bitmap.as_ref().is_some_and(|map| Bitmap(map).state(at, n) == Some(false));
            let bytes = &mut chunk[..n as usize * BLOCK_SIZE];
            let offset = first.offset() + at as u64 * BLOCK_SIZE as u64;
            // What lies behind the end of the file has never been there.
            let there = image.short.is_none_or(|held| offset < held);
            if !free && there && hole < offset + bytes.len() as u64 {
                hole = image.storage().skip_hole(offset).unwrap_or(offset);
            }
            // What was never written holds no pages.
            let written = hole < offset + bytes.len() as u64;
            if !free && there && written && read_pages(image.storage(), offset, bytes) {
                for (i, page) in bytes.as_chunks::<PAGE_SIZE>().0.iter().enumerate() {
                    let within = at + i as u32 * BLOCKS_PER_PAGE;
                    let id = PageId(first.0 + (within / BLOCKS_PER_PAGE) as u64);
                    let used = bitmap
                        .as_ref()
                        .is_none_or(|map| Bitmap(map).state(within, BLOCKS_PER_PAGE) == Some(true));
                    if used && !reached.contains(&id) && image.is_leaf(id, page) {
                        candidates.push((page_lsn(page), id));
                    }
                }
            }
            at += n;
        }
        let total = image.superblock.groups as u64 * GROUP_SIZE;
        options.tell(Stage::Search, (group as u64 + 1) * GROUP_SIZE, total);
    }
    Ok(candidates)
}

/// Hands out pages that are free by the bitmaps and by what is in use.
struct Places<'a> {
    maps: &'a Maps<'a>,
    taken: &'a Claims,
    group: u32,
    page: u32,
    bitmap: Option<Box<PageBytes>>,
    /// First only where the bitmap is whole; then anywhere that nothing known is in use.
    careful: bool,
}

impl Places<'_> {
    fn next(&mut self, groups: u32) -> Option<PageId> {
        loop {
            if self.group >= groups {
                if !self.careful {
                    return None;
                }
                (self.careful, self.group, self.page, self.bitmap) = (false, 0, 0, None);
            }
            let image = self.maps.image;
            let exist = image.superblock.group_blocks(self.group) / BLOCKS_PER_PAGE;
            if self.page == 0 {
                self.bitmap = self.maps.read(self.group);
            }
            // What was handed out in the first round lies in groups with a whole bitmap.
            let skip = self.bitmap.is_some() != self.careful;
            while !skip && self.page + 1 < exist {
                self.page += 1;
                let within = self.page * BLOCKS_PER_PAGE;
                let id = PageId(image.superblock.bitmap_page(self.group).0 + self.page as u64);
                let free = self
                    .bitmap
                    .as_ref()
                    .is_none_or(|map| Bitmap(map).state(within, BLOCKS_PER_PAGE) == Some(false));
                if free && self.taken.is_free(id.run()) {
                    return Some(id);
                }
            }
            (self.group, self.page, self.bitmap) = (self.group + 1, 0, None);
        }
    }
}

struct Build<'a> {
    storage: &'a dyn Storage,
    image: &'a Image,
    places: Places<'a>,
    /// The pages of the new tree.
    pages: Claims,
    groups: u32,
    end: Lsn,
    /// Something is lost, and no mark says so yet.
    unmarked: bool,
}

impl PageSink for Build<'_> {
    type Error = FsckError;

    fn place(&mut self) -> Result<PageId> {
        loop {
            if let Some(id) = self.places.next(self.groups) {
                // Where no bitmap says that this page was free, the next run takes it for a leaf of the old tree if this one is cut
                // off. Then it does not miss what is lost: the mark tells that something is.
                if !self.places.careful && std::mem::take(&mut self.unmarked) {
                    switch::mark(self.storage, |superblock| superblock.incompat |= INCOMPAT_RECORDS)?;
                }
                self.pages.claim(id.run());
                return Ok(id);
            }
            // A group that was never used: it gets its bitmap with the others.
            if self.groups >= self.image.superblock.group_count() {
                return Err(Error::NoSpace.into());
            }
            (self.places.group, self.places.page) = (self.groups, 0);
            self.groups += 1;
        }
    }

    fn put(&mut self, packed: &PackedPage) -> Result<()> {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let built = packed.build(&mut page, self.image.superblock.image());
        built.map_err(|reason| Error::corrupt(packed.id, reason))?;
        set_page_lsn(&mut page, self.end);
        seal(&mut page);
        self.storage.write_at(packed.id.offset(), &page[..]).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Rng;

    fn holds(low: &[u8], high: Option<&Vec<u8>>, key: u8) -> bool {
        low <= &[key][..] && high.is_none_or(|high| high.as_slice() > &[key][..])
    }

    /// What `take` leaves and takes is what a bit for each key would tell; keys are single bytes.
    #[test]
    fn each_key_is_taken_once() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut open = BTreeMap::from([(vec![], Some(vec![40])), (vec![60], None)]);
            let mut free: Vec<bool> = (0..100).map(|key| !(40..60).contains(&key)).collect();
            for _ in 0..20 {
                let low = rng.below(99) as u8;
                let high = low + 1 + rng.below(30) as u8;
                let high = (high < 100).then_some([high]);
                let taken = take(&mut open, &[low], high.as_ref().map(|high| high.as_slice()));
                for key in 0..100 {
                    let wanted = key >= low && high.is_none_or(|high| key < high[0]);
                    let got = taken.iter().filter(|(low, high)| holds(low, high.as_ref(), key)).count();
                    assert_eq!(got, (wanted && free[key as usize]) as usize, "seed {seed}, key {key}");
                    free[key as usize] &= !wanted;
                    let left = open.iter().filter(|(low, high)| holds(low, high.as_ref(), key)).count();
                    assert_eq!(left, free[key as usize] as usize, "seed {seed}, key {key}");
                }
            }
        }
    }

    /// Leaves come in the order of their age: with a search of all open ranges for each this does not end.
    #[test]
    fn many_leaves_are_taken_in_any_order() {
        let (n, mut rng) = (200_000u64, Rng::new(1));
        let mut order: Vec<u64> = (0..n).collect();
        for i in (1..n as usize).rev() {
            order.swap(i, rng.index(i + 1));
        }
        let mut open = BTreeMap::from([(Vec::new(), None)]);
        for i in order {
            let taken = take(&mut open, &i.to_be_bytes(), Some(&(i + 1).to_be_bytes()));
            assert_eq!(taken.len(), 1);
        }
    }
}
