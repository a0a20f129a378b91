//! Bitmap pages against a `Vec<bool>`: a block counted twice or lost is somebody's data overwritten.

use super::super::bitmap::{Bitmap, in_group, words_of};
use super::super::format::*;
use super::super::ids::PageId;
use super::super::op::{Op, apply};
use super::support::*;

const ID: PageId = PageId(40);
const BLOCKS: usize = BLOCKS_PER_GROUP as usize;

struct Model {
    page: Page,
    used: Vec<bool>,
    chunks: Vec<bool>,
}

impl Model {
    fn new(used: u32, end: u32) -> Self {
        let mut page = raw_page();
        apply(&mut page, ID, IMAGE, &Op::InitBitmap { used, end }).unwrap();
        let used = (0..BLOCKS_PER_GROUP).map(|i| i < used || i >= end).collect();
        Model { page, used, chunks: vec![false; CHUNKS_PER_GROUP as usize] }
    }

    fn compare(&self) {
        let bitmap = Bitmap(&self.page);
        bitmap.validate().unwrap();
        for (i, used) in self.used.iter().enumerate() {
            assert_eq!(bitmap.in_use(i as u32), *used, "block {i}");
            assert_eq!(bitmap.bits()[i / 8] >> (i % 8) & 1 == 1, *used);
        }
        for (c, pages) in self.chunks.iter().enumerate() {
            assert_eq!(bitmap.holds_pages(c as u32), *pages, "chunk {c}");
        }
        assert_eq!(bitmap.bits().len() * 8, BLOCKS);
        assert_eq!((page_number(&self.page), page_type(&self.page)), (ID, TYPE_BITMAP));
    }

    fn state(&self, start: usize, len: usize) -> Option<bool> {
        let range = &self.used[start..start + len];
        range.iter().all(|used| *used == range[0]).then_some(range[0])
    }

    fn allocate(&mut self, start: usize, len: usize, pages: bool) -> bool {
        let expected = self.state(start, len) == Some(false);
        let before = self.page.clone();
        let op = Op::Allocate { start: start as u32, len: len as u32, pages };
        assert_eq!(apply(&mut self.page, ID, IMAGE, &op).is_ok(), expected);
        if expected {
            self.used[start..start + len].fill(true);
            let per_chunk = BLOCKS_PER_CHUNK as usize;
            self.chunks[start / per_chunk..=(start + len - 1) / per_chunk].fill(pages);
        } else {
            assert!(self.page == before, "a refused allocation changed the bitmap");
        }
        expected
    }

    fn free(&mut self, start: usize, len: usize) -> bool {
        let expected = self.state(start, len) == Some(true) && start >= BLOCKS_PER_PAGE as usize;
        let before = self.page.clone();
        let op = Op::Free { start: start as u32, len: len as u32 };
        assert_eq!(apply(&mut self.page, ID, IMAGE, &op).is_ok(), expected);
        if expected {
            self.used[start..start + len].fill(false);
        } else {
            assert!(self.page == before, "a refused free changed the bitmap");
        }
        expected
    }
}

/// A range of blocks: anywhere, or where an off-by-one would show.
fn range(rng: &mut Rng) -> (usize, usize) {
    let longest = rng.pick(&[1, 4, 9, 64, 256, 300, 5000]);
    let len = rng.range(1, longest);
    let start = match rng.below(6) {
        0 => rng.below(40),
        1 => BLOCKS - len - rng.below(20),
        2 => rng.below(BLOCKS / 256 - 21) * 256,
        3 => (rng.below(BLOCKS / 8 - 700)) * 8,
        // A crowded corner, so that frees meet allocations.
        _ => rng.below(2000),
    };
    (start, len)
}

#[test]
fn no_block_is_given_out_twice_or_lost() {
    let (mut allocated, mut freed, mut refused) = (0, 0, 0);
    seeds(6, |rng| {
        let mut model = Model::new(BLOCKS_PER_PAGE, BLOCKS_PER_GROUP);
        let mut live: Vec<(usize, usize)> = vec![];
        for step in 0..1500 {
            let (start, len) = range(rng);
            let bitmap = Bitmap(&model.page);
            assert_eq!(bitmap.state(start as u32, len as u32), model.state(start, len));
            let done = match rng.below(5) {
                0..=2 => {
                    let done = model.allocate(start, len, rng.once_in(2));
                    if done {
                        live.push((start, len));
                    }
                    allocated += done as usize;
                    done
                }
                3 if !live.is_empty() => {
                    let (start, len) = live.swap_remove(rng.below(live.len()));
                    // In two pieces, as punching and truncating do.
                    let cut = rng.below(len);
                    let done = (cut == 0 || model.free(start, cut)) && model.free(start + cut, len - cut);
                    assert!(done, "a live run could not be freed");
                    freed += 1;
                    done
                }
                _ => {
                    let done = model.free(start, len);
                    if done {
                        live.retain(|run| model.state(run.0, run.1) == Some(true));
                    }
                    done
                }
            };
            refused += !done as usize;
            if step % 100 == 0 {
                model.compare();
            }
        }
        model.compare();
    });
    assert!(allocated > 100 && freed > 100 && refused > 100);
}

#[test]
fn blocks_past_the_end_of_a_short_group_are_never_given_out() {
    for (used, end) in [(4, 4), (4, 5), (4, 256), (4, 261), (8, 1023), (300, 70_000), (4, BLOCKS_PER_GROUP)] {
        let mut model = Model::new(used, end);
        model.compare();
        if end < BLOCKS_PER_GROUP {
            assert!(!model.allocate(end as usize, 1, false));
            assert!(!model.allocate(end as usize - 1, 2, false));
        }
        assert_eq!(model.allocate(used as usize, (end - used).max(1) as usize, true), end > used);
        model.compare();
        assert_eq!(Bitmap(&model.page).state(0, BLOCKS_PER_GROUP), Some(true));
    }
}

#[test]
fn impossible_ranges_are_refused() {
    let page = Model::new(4, BLOCKS_PER_GROUP).page;
    let refused = |op: Op<'_>| {
        let mut copy = page.clone();
        assert!(apply(&mut copy, ID, IMAGE, &op).is_err(), "{op:?}");
        assert!(copy == page, "{op:?}");
    };
    let outside =
        [(8, 0), (BLOCKS_PER_GROUP, 1), (BLOCKS_PER_GROUP - 1, 2), (u32::MAX, 1), (u32::MAX, u32::MAX)];
    for (start, len) in
        outside.into_iter().chain([(8, u32::MAX - 7), (8, u32::MAX), (0, BLOCKS_PER_GROUP + 1)])
    {
        assert!(!in_group(start, len));
        refused(Op::Allocate { start, len, pages: false });
        refused(Op::Allocate { start, len, pages: true });
        refused(Op::Free { start, len });
    }
    assert!(in_group(0, BLOCKS_PER_GROUP) && in_group(BLOCKS_PER_GROUP - 1, 1));
    for start in 0..4 {
        refused(Op::Free { start, len: 1 });
        refused(Op::Free { start, len: 4 });
    }
    for (used, end) in [(0, 100), (3, 100), (5, 4), (4, BLOCKS_PER_GROUP + 1), (u32::MAX, u32::MAX), (4, 0)] {
        refused(Op::InitBitmap { used, end });
    }
}

#[test]
fn bitmap_that_does_not_count_itself_is_refused() {
    let page = Model::new(4, BLOCKS_PER_GROUP).page;
    for bit in 0..4 {
        let mut copy = page.clone();
        copy[BITMAP_BITS] &= !(1 << bit);
        assert!(Bitmap(&copy).validate().is_err());
    }
    let mut copy = page.clone();
    copy[OFF_TYPE] = TYPE_TREE;
    assert!(Bitmap(&copy).validate().is_err());
    assert!(apply(&mut copy, ID, IMAGE, &Op::Allocate { start: 8, len: 1, pages: false }).is_err());
    assert!(apply(&mut copy, ID, IMAGE, &Op::Free { start: 4, len: 1 }).is_err());
}

#[test]
fn words_hold_each_block_of_a_row_once() {
    seeds(100, |rng| {
        let (start, len) = (rng.below(300) as u32, rng.below(300) as u32);
        let mut blocks = Vec::new();
        for (word, mask) in words_of(start, len) {
            blocks.extend((0..64).filter(|bit| mask >> bit & 1 == 1).map(|bit| word as u32 * 64 + bit));
        }
        assert!(blocks.into_iter().eq(start..start + len), "{len} blocks from {start} on");
    });
}
