//! Space: which pages and blocks can be allocated now.
//!
//! The bitmap pages are the truth on disk; this is the volatile side: what is free there and neither reserved
//! nor in quarantine.
//!
//! - **S1** A block is in exactly one of: in use (bitmap), quarantined, reserved by a caller, held as a carved page, available.
//! - **S2** A freed run leaves quarantine only when the record that freed it is durable and two epochs have passed; a
//!   freed page only when a checkpoint has passed it, two epochs have passed, and its frame has been discarded.
//!   Otherwise a crash could bring the old owner back, and find new contents under its name.
//! - **S3** A page's place was allocated on the host, with the chunk around it, before the page is handed out.
//! - **S4** What is being punched belongs to the puncher alone: it was available, and is again afterwards.
//! - **S5** A chunk is marked as holding tree pages only if the host has allocated all of it. Pages that were squeezed in between
//!   data, when no whole chunk was left, do not mark theirs.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::RangeInclusive;

use crate::defects::{Defect, Defects};
use crate::page::bitmap::{Bitmap, words_of};
use crate::page::format::*;
use crate::page::superblock::Superblock;
use crate::page::{BlockNo, Lsn, PageId, Run};

/// A chunk, counted over all groups.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Chunk(pub u64);

const WORDS: usize = BLOCKS_PER_GROUP as usize / 64;
const WORDS_PER_CHUNK: usize = BLOCKS_PER_CHUNK as usize / 64;
const PAGES_PER_CHUNK: u32 = BLOCKS_PER_CHUNK / BLOCKS_PER_PAGE;

/// Data goes on, as long as pages fit in so many sixteenths of half of what is kept for the tree.
const DATA_LINE: u64 = 14;
/// The same for overwriting.
const URGENT_LINE: u64 = 8;

/// The first bit of each four that a page fits in.
fn first_of_places(bits: u64) -> u64 {
    bits & bits >> 1 & bits >> 2 & bits >> 3 & 0x1111_1111_1111_1111
}

fn places_in(bits: u64) -> u64 {
    first_of_places(bits).count_ones() as u64
}

/// Longer runs are not told apart by [`Group::longest`].
const LONG: u32 = 4096;

/// What data may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Free blocks.
    Free,
    /// Where nothing else is left, free places for pages as well, of which scattered deletions leave many, down to what is kept for
    /// the tree.
    Places,
    /// The same, down to half of what is kept for the tree.
    Reserve,
}

struct Group {
    /// One bit a block: it can be allocated.
    available: Box<[u64; WORDS]>,
    count: u32,
    /// No run of available blocks is longer, unless this is [`LONG`]. It falls when a search has found none.
    longest: u32,
    /// One bit a chunk: the host has allocated all of it, and it holds no data.
    allocated: [u64; (CHUNKS_PER_GROUP as usize).div_ceil(64)],
    /// When the bitmap page was born; 0 if a checkpoint has passed it since.
    born: Lsn,
}

impl Group {
    fn new(available: Box<[u64; WORDS]>, born: Lsn) -> Self {
        let count = available.iter().map(|w| w.count_ones()).sum();
        Group { available, count, longest: LONG, allocated: Default::default(), born }
    }

    /// A run has become available, and with it perhaps a longer one.
    fn note_available(&mut self, start: u32, len: u32) {
        if self.longest < LONG {
            let run = self.available_before(start) + len + self.available_from(start + len, LONG);
            self.longest = self.longest.max(run).min(LONG);
        }
    }

    /// How many blocks from `start` on are available, up to `max` and those behind it in the same word.
    fn available_from(&self, start: u32, max: u32) -> u32 {
        let mut at = start;
        while at < BLOCKS_PER_GROUP && at - start < max {
            let (word, bit) = (self.available[at as usize / 64], at % 64);
            let ones = (word >> bit).trailing_ones().min(64 - bit);
            at += ones;
            if ones < 64 - bit {
                break;
            }
        }
        at - start
    }

    /// How many blocks before `end` are available, up to about [`LONG`].
    fn available_before(&self, end: u32) -> u32 {
        let mut at = end;
        while at > 0 && end - at < LONG {
            let (word, bits) = (self.available[(at as usize - 1) / 64], (at - 1) % 64 + 1);
            let ones = (word << (64 - bits)).leading_ones().min(bits);
            at -= ones;
            if ones < bits {
                break;
            }
        }
        end - at
    }

    /// The first run of at least `enough` blocks from `from` on, cut to `want`, as its start and length; or else the length of the
    /// longest one there.
    fn find(&self, from: u32, enough: u32, want: u32) -> Result<(u32, u32), u32> {
        let (mut at, mut longest) = (from, 0);
        while at < BLOCKS_PER_GROUP {
            let word = self.available[at as usize / 64] >> (at % 64);
            if word == 0 {
                at = (at / 64 + 1) * 64;
                continue;
            }
            at += word.trailing_zeros();
            let len = self.available_from(at, want);
            if len >= enough {
                return Ok((at, len.min(want)));
            }
            longest = longest.max(len);
            at += len;
        }
        Err(longest)
    }
}

/// The volatile side of space allocation. The pool keeps it under a mutex that is never held across I/O.
pub struct Space {
    geometry: Superblock,
    groups: Vec<Group>,
    /// Blocks that are available, in all groups.
    available: u64,
    /// Places among the available blocks in which a page fits.
    places: u64,
    /// Pages that are carved and can be handed out; the last one goes first.
    pages: Vec<PageId>,
    /// How many of `pages` lie in each chunk.
    carved: HashMap<Chunk, u32>,
    freed_pages: VecDeque<(Lsn, u64, PageId)>,
    freed_runs: VecDeque<(Lsn, u64, Run)>,
    quarantined: u64,
    /// Chunks that became available as a whole and have not been punched.
    punchable: BTreeSet<Chunk>,
    /// Blocks of chunks that are being punched just now.
    punching: u64,
    /// Where the next search for data blocks begins.
    cursor: u64,
    defects: Defects,
}

impl Space {
    /// Space of an image of which no group is known yet.
    pub fn new(geometry: Superblock, defects: Defects) -> Self {
        Space {
            geometry,
            groups: Vec::new(),
            available: 0,
            places: 0,
            pages: Vec::new(),
            carved: HashMap::new(),
            freed_pages: VecDeque::new(),
            freed_runs: VecDeque::new(),
            quarantined: 0,
            punchable: BTreeSet::new(),
            punching: 0,
            cursor: 0,
            defects,
        }
    }

    /// The number of groups with a bitmap page.
    pub fn groups(&self) -> u32 {
        self.groups.len() as u32
    }

    /// The number of groups whose bitmap page was born before `checkpoint`.
    pub fn groups_before(&self, checkpoint: Lsn) -> u32 {
        self.groups.iter().take_while(|g| g.born <= checkpoint).count() as u32
    }

    /// The next group without a bitmap page, if the image has one.
    pub fn next_group(&self) -> Option<u32> {
        (self.groups() < self.geometry.group_count()).then_some(self.groups())
    }

    /// The image has grown: what the last group gains can be allocated. It was never written, so there is nothing to punch.
    pub fn grow(&mut self, geometry: Superblock) {
        let last = self.geometry.group_count() - 1;
        let from = self.geometry.group_blocks(last);
        self.geometry = geometry;
        let to = self.geometry.group_blocks(last);
        if last < self.groups() && from < to {
            let run = Run { start: self.block(last as usize, from), len: to - from };
            self.each_word(run, |w, mask| *w |= mask);
            self.note_available(run);
        }
    }

    /// Learns of the next group; `born` is the end of its birth's record, 0 for one read from the image.
    pub fn add_group(&mut self, bitmap: Bitmap<'_>, born: Lsn) {
        let mut available = Box::new([0; WORDS]);
        for (word, bytes) in available.iter_mut().zip(bitmap.bits().as_chunks::<8>().0) {
            *word = !u64::from_le_bytes(*bytes);
        }
        let number = self.groups.len() as u64;
        // Whatever the bitmap says: blocks behind the group's end do not exist.
        let end = self.geometry.group_blocks(number as u32);
        for (i, word) in available.iter_mut().enumerate() {
            let exist = end.saturating_sub(i as u32 * 64);
            if exist < 64 {
                *word &= (1 << exist) - 1;
            }
        }
        self.places += available.iter().map(|w| places_in(*w)).sum::<u64>();
        let group = Group::new(available, born);
        self.available += group.count as u64;
        self.groups.push(group);
        for c in 0..CHUNKS_PER_GROUP {
            // The last group may be short.
            if bitmap.holds_pages(c) && (c + 1) * BLOCKS_PER_CHUNK <= end {
                self.adopt_page_chunk(Chunk(number * CHUNKS_PER_GROUP as u64 + c as u64));
            }
        }
    }

    /// The chunks that the host has allocated for tree pages.
    pub fn allocated_chunks(&self) -> Vec<Run> {
        let is_allocated = |chunk: &Chunk| {
            let (group, chunk) = Self::in_group(*chunk);
            self.groups[group].allocated[chunk / 64] >> (chunk % 64) & 1 == 1
        };
        let chunks = (0..self.groups.len() as u64 * CHUNKS_PER_GROUP as u64).map(Chunk);
        chunks.filter(is_allocated).map(|chunk| self.chunk_run(chunk)).collect()
    }

    /// The free pages of a chunk that holds tree pages stay reserved for tree pages.
    fn adopt_page_chunk(&mut self, chunk: Chunk) {
        if self.is_available(chunk) {
            return;
        }
        self.set_allocated(chunk, true);
        let first = self.chunk_run(chunk).start;
        for i in (0..PAGES_PER_CHUNK as u64).rev() {
            let run = Run { start: BlockNo(first.0 + i * BLOCKS_PER_PAGE as u64), len: BLOCKS_PER_PAGE };
            if self.all_available(run) {
                self.take(run);
                self.push_page(run);
            }
        }
    }

    fn push_page(&mut self, run: Run) {
        if let Some(page) = run.start.page() {
            self.pages.push(page);
            *self.carved.entry(self.chunk_of(run.start)).or_default() += 1;
        }
    }

    // -- bits ---------------------------------------------------------------------------------------------------

    fn first_block(&self) -> u64 {
        self.geometry.first_block().0
    }

    /// The group, as an index, and the block within it.
    fn locate(&self, block: BlockNo) -> (usize, u32) {
        let (group, within) = self.geometry.locate(block);
        (group as usize, within)
    }

    /// Whether a run lies inside one group that exists, behind the bitmap page.
    pub fn is_valid(&self, run: Run) -> bool {
        self.geometry.is_valid_run(run, self.groups())
    }

    fn block(&self, group: usize, within: u32) -> BlockNo {
        BlockNo(self.first_block() + group as u64 * BLOCKS_PER_GROUP as u64 + within as u64)
    }

    fn chunk_of(&self, block: BlockNo) -> Chunk {
        Chunk((block.0 - self.first_block()) / BLOCKS_PER_CHUNK as u64)
    }

    /// The blocks of a chunk.
    pub fn chunk_run(&self, chunk: Chunk) -> Run {
        let start = BlockNo(self.first_block() + chunk.0 * BLOCKS_PER_CHUNK as u64);
        Run { start, len: BLOCKS_PER_CHUNK }
    }

    fn each_word(&mut self, run: Run, mut f: impl FnMut(&mut u64, u64)) {
        let (group, start) = self.locate(run.start);
        for (word, mask) in words_of(start, run.len) {
            let word = &mut self.groups[group].available[word];
            let before = places_in(*word);
            f(word, mask);
            self.places = self.places + places_in(*word) - before;
        }
    }

    /// The blocks of a run have become available.
    fn note_available(&mut self, run: Run) {
        let (group, start) = self.locate(run.start);
        let group = &mut self.groups[group];
        group.count += run.len;
        group.note_available(start, run.len);
        self.available += run.len as u64;
    }

    fn all_available(&self, run: Run) -> bool {
        let (group, start) = self.locate(run.start);
        words_of(start, run.len).all(|(word, mask)| self.groups[group].available[word] & mask == mask)
    }

    fn take(&mut self, run: Run) {
        self.each_word(run, |w, mask| {
            debug_assert!(*w & mask == mask, "S1: blocks taken twice");
            *w &= !mask;
        });
        let (group, _) = self.locate(run.start);
        self.groups[group].count -= run.len;
        self.available -= run.len as u64;
    }

    /// Makes blocks available that were handed out and not used, or that have been freed.
    pub fn give(&mut self, run: Run) {
        self.each_word(run, |w, mask| {
            debug_assert!(*w & mask == 0, "S1: blocks given back twice");
            *w |= mask;
        });
        self.note_available(run);
        for chunk in self.chunks_of(run) {
            if self.is_available(chunk) {
                self.punchable.insert(chunk);
            }
        }
    }

    fn is_available(&self, chunk: Chunk) -> bool {
        let (group, start) = self.locate(self.chunk_run(chunk).start);
        let first = start as usize / 64;
        let words = &self.groups[group].available[first..first + WORDS_PER_CHUNK];
        words.iter().all(|w| *w == !0)
    }

    /// Blocks that can be allocated now or soon: available, quarantined, being punched, and free places for pages.
    pub fn free_blocks(&self) -> u64 {
        self.available + self.quarantined + self.punching + self.unborn() + self.carved_blocks()
    }

    /// Blocks in free places for pages.
    fn carved_blocks(&self) -> u64 {
        self.pages.len() as u64 * BLOCKS_PER_PAGE as u64
    }

    /// Blocks of groups that have no bitmap page yet.
    fn unborn(&self) -> u64 {
        let Some(next) = self.next_group() else { return 0 };
        let last = self.geometry.group_count() - 1;
        let blocks = |g| (self.geometry.group_blocks(g) as u64).saturating_sub(BLOCKS_PER_PAGE as u64);
        // All but the last one are equally large.
        (last - next) as u64 * blocks(next) + blocks(last)
    }

    // -- pages --------------------------------------------------------------------------------------------------

    /// Hands out `n` pages, or none. The last one is to be used first: pages that are used one after the other then ascend.
    pub fn take_pages(&mut self, n: usize) -> Option<Vec<PageId>> {
        let keep = self.pages.len().checked_sub(n)?;
        let taken = self.pages.split_off(keep);
        for page in &taken {
            self.uncarve(*page);
        }
        Some(taken)
    }

    /// Whether so many pages can be handed out.
    pub fn has_pages(&self, n: usize) -> bool {
        self.pages.len() >= n
    }

    fn uncarve(&mut self, page: PageId) {
        let chunk = self.chunk_of(page.block());
        if let Some(n) = self.carved.get_mut(&chunk) {
            *n -= 1;
            if *n == 0 {
                self.carved.remove(&chunk);
            }
        }
    }

    /// Whether the page can be handed out.
    #[cfg(test)]
    pub fn pages_contain(&self, page: PageId) -> bool {
        self.pages.contains(&page)
    }

    /// Takes back pages that were handed out and not used, in the order in which they were.
    pub fn give_pages(&mut self, pages: &[PageId]) {
        for page in pages {
            self.push_page(page.run());
        }
    }

    /// Takes a whole chunk out of what is available, for the pool to allocate on the host and give to [`Space::carve`].
    pub fn take_chunk(&mut self) -> Option<Run> {
        for group in 0..self.groups.len() {
            if self.groups[group].count.min(self.groups[group].longest) < BLOCKS_PER_CHUNK {
                continue;
            }
            let words = self.groups[group].available.as_chunks::<WORDS_PER_CHUNK>().0;
            if let Some(c) = words.iter().position(|w| w.iter().all(|w| *w == !0)) {
                let run = self.chunk_run(Chunk(group as u64 * CHUNKS_PER_GROUP as u64 + c as u64));
                self.take(run);
                return Some(run);
            }
        }
        None
    }

    /// Where no whole chunk is left: any aligned place for one page. If the host has refused one, only in chunks that are used, where it
    /// is likely to have space.
    pub fn take_odd_page(&mut self, refused: bool) -> Option<Run> {
        for group in 0..self.groups.len() {
            if self.groups[group].count.min(self.groups[group].longest) < BLOCKS_PER_PAGE {
                continue;
            }
            for word in 0..WORDS {
                let chunk = word / WORDS_PER_CHUNK * WORDS_PER_CHUNK;
                let available = &self.groups[group].available;
                let four = first_of_places(available[word]);
                let is_used = || available[chunk..chunk + WORDS_PER_CHUNK].iter().any(|word| *word != !0);
                if four != 0 && (!refused || is_used()) {
                    let start = self.block(group, word as u32 * 64 + four.trailing_zeros());
                    let run = Run { start, len: BLOCKS_PER_PAGE };
                    self.take(run);
                    return Some(run);
                }
            }
        }
        None
    }

    /// Whether the image is nearly full, or in such small pieces that few pages fit between them, and fewer free places for pages are set
    /// aside than half of what is kept for the tree. Later there might be free blocks, but no four together.
    pub fn is_short_of_pages(&self) -> bool {
        let ends = self.available < 4 * self.reserve() || self.has_few_places();
        self.unborn() < self.reserve() && ends && self.carved_blocks() < self.reserve() / 2
    }

    /// Whether data is to leave alone what places for pages there are.
    fn has_few_places(&self) -> bool {
        self.unborn() < self.reserve() && self.places * (BLOCKS_PER_PAGE as u64) < 2 * self.reserve()
    }

    /// Blocks that pages of the tree can take, now or after a checkpoint.
    fn page_room(&self) -> u64 {
        let pages = self.places + self.pages.len() as u64 + self.freed_pages.len() as u64;
        pages * BLOCKS_PER_PAGE as u64 + self.unborn()
    }

    /// Whether more blocks are free than so many sixteenths of what is kept for the tree, with `more` that somebody can give back.
    pub fn has_blocks_above(&self, sixteenths: u64, more: u64) -> bool {
        self.free_blocks() + more > self.reserve() * sixteenths / 16
    }

    /// Whether pages fit in more than so many sixteenths of half of what is kept for the tree: that half is set aside for them.
    pub fn has_places_above(&self, sixteenths: u64) -> bool {
        self.page_room() > self.reserve() * sixteenths / 32
    }

    /// Whether the page lies in a chunk of tree pages, which its allocation is to mark (S5).
    pub fn marks_chunk(&self, page: PageId) -> bool {
        let (group, chunk) = Self::in_group(self.chunk_of(page.block()));
        self.groups[group].allocated[chunk / 64] & (1 << (chunk % 64)) != 0
    }

    /// Whether the host has allocated all of a chunk, and it holds no data (S5).
    fn set_allocated(&mut self, chunk: Chunk, allocated: bool) {
        let (group, chunk) = Self::in_group(chunk);
        let word = &mut self.groups[group].allocated[chunk / 64];
        *word = if allocated { *word | 1 << (chunk % 64) } else { *word & !(1 << (chunk % 64)) };
    }

    fn in_group(chunk: Chunk) -> (usize, usize) {
        let chunks = CHUNKS_PER_GROUP as u64;
        ((chunk.0 / chunks) as usize, (chunk.0 % chunks) as usize)
    }

    fn chunks_of(&self, run: Run) -> impl Iterator<Item = Chunk> + use<> {
        let (first, last) = (self.chunk_of(run.start), self.chunk_of(BlockNo(run.end().0 - 1)));
        (first.0..=last.0).map(Chunk)
    }

    /// The host has allocated the run: its pages can be handed out, lowest first.
    pub fn carve(&mut self, run: Run) {
        if run.len == BLOCKS_PER_CHUNK {
            self.set_allocated(self.chunk_of(run.start), true);
        }
        for i in (0..run.len / BLOCKS_PER_PAGE).rev() {
            let start = BlockNo(run.start.0 + (i * BLOCKS_PER_PAGE) as u64);
            self.push_page(Run { start, len: BLOCKS_PER_PAGE });
        }
    }

    // -- data blocks --------------------------------------------------------------------------------------------

    /// Blocks that data may not take: the tree needs them to free anything at all.
    pub fn reserve(&self) -> u64 {
        let total = self.geometry.size / BLOCK_SIZE as u64;
        (total / 128).clamp(BLOCKS_PER_CHUNK as u64 / 4, 64 * BLOCKS_PER_CHUNK as u64)
    }

    /// Of [`Space::free_blocks`] those that data may take, once `more` have been given back.
    pub fn blocks_for_data_with(&self, more: u64) -> u64 {
        if more == 0 && !self.has_more_soon() && !self.has_places_above(DATA_LINE) {
            return 0;
        }
        (self.free_blocks() + more).saturating_sub(self.reserve())
    }

    /// Takes so many adjacent blocks for data, as near behind the last ones as can be, and as many as can be.
    pub fn take_blocks(&mut self, wanted: RangeInclusive<u32>, reach: Reach) -> Option<Run> {
        let (least, want) = wanted.into_inner();
        let keep = if reach == Reach::Reserve { self.reserve() / 2 } else { self.reserve() };
        let room = (self.available + self.carved_blocks() + self.unborn()).saturating_sub(keep);
        let want = want.min(room.min(u32::MAX as u64) as u32);
        if self.available < want as u64 && reach != Reach::Free {
            self.uncarve_for_data(want as u64 - self.available, keep);
        }
        let line = if reach == Reach::Reserve { URGENT_LINE } else { DATA_LINE };
        if want < least || !self.has_places_above(line) {
            return None;
        }
        if least < BLOCKS_PER_PAGE
            && self.has_few_places()
            && let Some(run) = self.find_fragment(least, want)
        {
            self.take_for_data(run);
            return Some(run);
        }
        let run = loop {
            match self.find_run(least.max(1), want) {
                Some(run) => break run,
                None if reach != Reach::Free && self.uncarve_for_data(want as u64, keep) => {}
                None => return None,
            }
        };
        self.take_for_data(run);
        self.cursor = run.end().0 - self.first_block();
        Some(run)
    }

    fn take_for_data(&mut self, run: Run) {
        self.take(run);
        self.chunks_of(run).for_each(|chunk| self.set_allocated(chunk, false));
    }

    /// The next run of `want` blocks. Where there is none, the next one that is at least half as long as the longest one there may be:
    /// among many small ones it is near, though the longest one is not.
    fn find_run(&mut self, least: u32, want: u32) -> Option<Run> {
        let mut enough = want;
        loop {
            if let Some(run) = self.next_run(enough, want) {
                return Some(run);
            }
            // All groups are known to have no run of `enough` blocks now, so this ends.
            let longest = self.groups.iter().map(|g| g.longest).max().unwrap_or(0).min(enough - 1);
            if longest < least {
                return None;
            }
            enough = longest.div_ceil(2).max(least);
        }
    }

    /// The next run of at least `enough` blocks behind the one that was found last, cut to `want`.
    fn next_run(&mut self, enough: u32, want: u32) -> Option<Run> {
        let groups = self.groups.len();
        let begin = ((self.cursor / BLOCKS_PER_GROUP as u64) as usize).min(groups);
        let within = (self.cursor % BLOCKS_PER_GROUP as u64) as u32;
        let rest = (begin < groups && within > 0).then_some((begin, within));
        let whole = (begin..groups).chain(0..begin).map(|group| (group, 0));
        for (group, from) in rest.into_iter().chain(whole) {
            if self.groups[group].longest < enough.min(LONG) {
                continue;
            }
            match self.groups[group].find(from, enough, want) {
                Ok((start, len)) => return Some(Run { start: self.block(group, start), len }),
                Err(longest) if from == 0 => self.groups[group].longest = longest.min(LONG),
                Err(_) => {}
            }
        }
        None
    }

    /// Free blocks between others, where no page fits.
    fn find_fragment(&self, least: u32, want: u32) -> Option<Run> {
        let groups = self.groups.iter().enumerate().filter(|(_, g)| g.count > 0 && g.longest >= least);
        let found = groups.into_iter().find_map(|(group, g)| {
            let words = g.available.iter().enumerate().filter(|(_, bits)| **bits != 0);
            let mut fragments = words.map(|(at, bits)| (at, bits & !(first_of_places(*bits) * 0xf)));
            fragments.find_map(|(at, bits)| {
                let mut bits = bits;
                while bits != 0 {
                    let start = bits.trailing_zeros();
                    let len = (!(bits >> start)).trailing_zeros();
                    if len >= least {
                        return Some((group, at as u32 * 64 + start, len.min(want)));
                    }
                    bits &= !(((1 << len) - 1) << start);
                }
                None
            })
        });
        found.map(|(group, within, len)| Run { start: self.block(group, within), len })
    }

    /// The next search for data blocks begins at the beginning, where blocks that have been used before are likely to be.
    pub fn restart_search(&mut self) {
        self.cursor = 0;
    }

    /// Makes so many blocks in places for pages available to data again, or a few more, while `keep` blocks are left in others: those
    /// of the emptiest chunks, where they make the longest runs. Whether there were any.
    fn uncarve_for_data(&mut self, blocks: u64, keep: u64) -> bool {
        let spare = self.carved_blocks().saturating_sub(keep) / BLOCKS_PER_PAGE as u64;
        // Not a few at a time: each time looks at all of them.
        let mut lacking = blocks.div_ceil(BLOCKS_PER_PAGE as u64).max(spare / 8).min(spare);
        if lacking == 0 {
            return false;
        }
        let mut chunks: Vec<(Chunk, u32)> = self.carved.iter().map(|(chunk, n)| (*chunk, *n)).collect();
        chunks.sort_unstable_by_key(|(chunk, n)| (PAGES_PER_CHUNK - n, *chunk));
        let mut chosen = HashMap::new();
        for (chunk, n) in chunks {
            let n = lacking.min(n as u64);
            lacking -= n;
            chosen.insert(chunk, n);
            if lacking == 0 {
                break;
            }
        }
        let (mut pages, mut uncarved) = (std::mem::take(&mut self.pages), Vec::new());
        pages.retain(|page| match chosen.get_mut(&self.chunk_of(page.block())) {
            Some(n) if *n > 0 => {
                *n -= 1;
                uncarved.push(*page);
                false
            }
            _ => true,
        });
        self.pages = pages;
        for page in uncarved {
            self.uncarve(page);
            self.give(page.run());
        }
        true
    }

    // -- quarantine ---------------------------------------------------------------------------------------------

    /// A record that ends at `lsn` freed the page.
    pub fn page_freed(&mut self, lsn: Lsn, epoch: u64, page: PageId) {
        if self.defects.has(Defect::ReusePageAtOnce) {
            return self.push_page(page.run());
        }
        self.quarantined += BLOCKS_PER_PAGE as u64;
        self.freed_pages.push_back((lsn, epoch, page));
    }

    /// A record that ends at `lsn` freed the run.
    pub fn run_freed(&mut self, lsn: Lsn, epoch: u64, run: Run) {
        if self.defects.has(Defect::ReuseBlockAtOnce) {
            return self.give(run);
        }
        self.quarantined += run.len as u64;
        self.freed_runs.push_back((lsn, epoch, run));
    }

    /// Whether anything becomes available by a checkpoint: out of quarantine, or because the flusher, who makes it, has punched it.
    pub fn has_more_soon(&self) -> bool {
        self.quarantined + self.punching > 0
    }

    /// Ends the quarantine of what is safe now (S2). `discard` drops a page's frame, if it can.
    pub fn reclaim(
        &mut self,
        durable: Lsn,
        checkpoint: Lsn,
        epoch: u64,
        gathering: usize,
        mut discard: impl FnMut(PageId) -> bool,
    ) {
        while let Some(&(lsn, freed, run)) = self.freed_runs.front() {
            if lsn > durable || freed + 2 > epoch {
                break;
            }
            self.freed_runs.pop_front();
            self.quarantined -= run.len as u64;
            self.give(run);
        }
        while let Some(&(lsn, freed, page)) = self.freed_pages.front() {
            if lsn > checkpoint || freed + 2 > epoch || !discard(page) {
                break;
            }
            self.freed_pages.pop_front();
            self.quarantined -= BLOCKS_PER_PAGE as u64;
            self.push_page(page.run());
        }
        for group in &mut self.groups {
            if group.born <= checkpoint {
                group.born = Lsn(0);
            }
        }
        self.release_empty_chunks(gathering);
    }

    /// Chunks all of whose pages are free become available to data, but for one that is kept for the next pages.
    fn release_empty_chunks(&mut self, gathering: usize) {
        let mut empty: Vec<Chunk> =
            self.carved.iter().filter(|(_, n)| **n == PAGES_PER_CHUNK).map(|(c, _)| *c).collect();
        empty.sort_unstable();
        let keep = gathering.max(PAGES_PER_CHUNK as usize);
        let spare = self.pages.len().saturating_sub(keep) / PAGES_PER_CHUNK as usize;
        let released: HashSet<Chunk> = empty.into_iter().skip(1).take(spare).collect();
        if released.is_empty() {
            return;
        }
        let mut pages = std::mem::take(&mut self.pages);
        pages.retain(|page| !released.contains(&self.chunk_of(page.block())));
        self.pages = pages;
        for chunk in released {
            self.carved.remove(&chunk);
            self.give(self.chunk_run(chunk));
        }
    }

    /// The first chunk that is available as a whole, from the one on that holds this byte.
    pub fn available_chunk_from(&self, offset: u64) -> Option<Run> {
        let first = self.chunk_of(BlockNo((offset / BLOCK_SIZE as u64).max(self.first_block())));
        let chunks = CHUNKS_PER_GROUP as u64;
        let groups = first.0 / chunks..self.groups() as u64;
        let roomy = groups.filter(|group| self.groups[*group as usize].count >= BLOCKS_PER_CHUNK);
        let mut all = roomy.flat_map(|group| (group * chunks..(group + 1) * chunks).map(Chunk));
        all.find(|chunk| *chunk >= first && self.is_available(*chunk)).map(|chunk| self.chunk_run(chunk))
    }

    /// The host has space for this chunk: if it is still available, the host may take that back.
    pub fn note_on_host(&mut self, run: Run) {
        let chunk = self.chunk_of(run.start);
        if self.is_available(chunk) {
            self.punchable.insert(chunk);
        }
    }

    /// Takes a chunk that is available as a whole and that the host may take back; give it back when it is punched (S4).
    pub fn take_punchable(&mut self) -> Option<Run> {
        loop {
            let chunk = self.punchable.pop_first()?;
            if self.is_available(chunk) {
                let run = self.chunk_run(chunk);
                self.take(run);
                self.set_allocated(chunk, false);
                self.punching += run.len as u64;
                return Some(run);
            }
        }
    }

    /// The chunk has been punched.
    pub fn give_punched(&mut self, run: Run) {
        self.punching -= run.len as u64;
        self.give(run);
        self.punchable.remove(&self.chunk_of(run.start));
    }
}
