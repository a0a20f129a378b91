//! Tests of what is free: nothing is handed out twice, and nothing is refused that is there.

use super::*;
use crate::page::bitmap::BitmapMut;
use crate::page::superblock::Superblock;
use crate::storage::Rng;

/// Two groups and a part of a third, all free.
fn new_space() -> (Space, Superblock) {
    let geometry = Superblock::of_new_image([7; 16], 1200 << 20, 1 << 20, 8);
    let mut space = Space::new(geometry.clone(), Defects::default());
    for group in 0..geometry.group_count() {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let end = geometry.group_blocks(group);
        BitmapMut(&mut page).init(geometry.bitmap_page(group), geometry.image(), BLOCKS_PER_PAGE, end);
        space.add_group(Bitmap(&page), Lsn(0));
    }
    (space, geometry)
}

/// What is available, block by block.
struct Model {
    first: u64,
    free: Vec<bool>,
}

impl Model {
    fn of(space: &Space, geometry: &Superblock) -> Self {
        let first = geometry.data_offset() / BLOCK_SIZE as u64;
        let blocks = geometry.size / BLOCK_SIZE as u64 - first;
        let mut free: Vec<bool> = (0..blocks).map(|n| !n.is_multiple_of(BLOCKS_PER_GROUP as u64)).collect();
        (0..geometry.group_count()).for_each(|group| {
            let bitmap = geometry.bitmap_page(group).block().0 - first;
            free[bitmap as usize..][..BLOCKS_PER_PAGE as usize].fill(false);
        });
        assert_eq!(space.groups(), geometry.group_count());
        Model { first, free }
    }

    fn set(&mut self, run: Run, free: bool) {
        let range = &mut self.free[(run.start.0 - self.first) as usize..][..run.len as usize];
        assert!(range.iter().all(|block| *block != free), "{run:?} is handed out twice, or was not");
        range.fill(free);
    }

    /// How many pages fit.
    fn places(&self) -> u64 {
        self.free.chunks(BLOCKS_PER_PAGE as usize).filter(|four| four.iter().all(|free| *free)).count() as u64
    }

    fn longest(&self) -> u32 {
        let groups = self.free.chunks(BLOCKS_PER_GROUP as usize);
        let runs = groups.flat_map(|group| group.split(|free| !free).map(<[bool]>::len));
        runs.max().unwrap_or(0) as u32
    }
}

#[test]
fn a_run_is_as_long_as_was_asked_for_wherever_there_is_such_a_one() {
    let (mut space, geometry) = new_space();
    let (mut model, mut rng) = (Model::of(&space, &geometry), Rng::new(1));
    let mut taken: Vec<Run> = Vec::new();
    let mut shortest = u32::MAX;
    for round in 0..300 {
        // Filled, then emptied in small pieces all over, and so on: there are ever fewer long runs.
        let want = [1, 7, 64, 256, 5000][rng.below(5) as usize];
        for _ in 0..rng.below(2000) {
            let Some(run) = space.take_blocks(1..=want, Reach::Free) else { break };
            model.set(run, false);
            taken.push(run);
        }
        for _ in 0..rng.below(3000).min(taken.len() as u64) {
            let at = rng.below(taken.len() as u64) as usize;
            let whole = taken.swap_remove(at);
            let len = 1 + rng.below(whole.len.min(12) as u64) as u32;
            let run = Run { len, ..whole };
            space.give(run);
            model.set(run, true);
            if len < whole.len {
                taken.push(Run { start: run.end(), len: whole.len - len });
            }
        }
        if rng.below(4) == 0 {
            space.restart_search();
        }
        let longest = model.longest();
        let want = 1 + rng.below(300) as u32;
        assert_eq!(space.free_blocks(), model.free.iter().filter(|free| **free).count() as u64);
        // The last places for pages are not for data.
        let enough = model.places() * BLOCKS_PER_PAGE as u64 > 2 * space.reserve() + 300;
        if let Some(run) = space.take_blocks(1..=want, Reach::Free) {
            assert!(
                !enough || run.len == want || longest < want && run.len >= longest.div_ceil(2),
                "round {round}: {run:?} for {want} where there are {longest}"
            );
            model.set(run, false);
            taken.push(run);
            shortest = shortest.min(if enough { longest } else { u32::MAX });
        }
        if let Some(run) = space.take_blocks(want..=want, Reach::Reserve) {
            assert_eq!(run.len, want);
            model.set(run, false);
            taken.push(run);
        }
    }
    assert!(shortest < 100, "it was never in small pieces");
}

#[test]
fn single_places_between_data_are_enough_for_several_pages() {
    let pool = open(formatted(), 40);
    born(&pool, b"first");
    {
        let mut space = pool.space.lock();
        while space.take_chunk().is_some() {}
        let places: Vec<Run> = std::iter::from_fn(|| space.take_odd_page(false)).collect();
        let ready = (0..).find(|n| !space.has_pages(*n)).unwrap() - 1;
        drop(space.take_pages(ready - 1));
        space.give(places[0]);
    }
    // One is ready and one is a place; the rest is taken.
    let reserve = |pages| pool.reserve(Need { frames: 0, pages, log: 0 });
    assert_eq!(reserve(2).unwrap().pages_left(), 2);
    assert!(matches!(reserve(3), Err(Error::NoSpace)));
}

#[test]
fn chunks_whose_pages_are_all_free_go_back_to_data_but_for_one() {
    let pool = open(formatted(), 400);
    let ids = leaves(&pool, 300);
    let blocks = pool.space.lock().blocks_for_data_with(0);
    ids.iter().for_each(|id| _ = kill(&pool, *id));
    pool.checkpoint().unwrap();
    pool.reclaim();
    let space = pool.space.lock();
    // 300 pages are 4.7 chunks of 64.
    assert!(space.blocks_for_data_with(0) >= blocks + 3 * BLOCKS_PER_CHUNK as u64);
    assert!(space.has_pages(64));
}

/// A chunk is marked as one of pages only if the host has allocated all of it: when the image is opened, its free places are pages.
#[test]
fn a_page_between_data_never_marks_its_chunk() {
    let (mut space, geometry) = new_space();
    let chunk = space.take_chunk().unwrap();
    space.carve(chunk);
    let page = chunk.start.page().unwrap();
    assert!(space.marks_chunk(page), "the host has allocated it");
    // What follows is known of an image that has just been opened: the page is in use, between data.
    let (mut reopened, _) = new_space();
    while reopened.take_blocks(1..=256, Reach::Free).is_some() {}
    let between = reopened.take_odd_page(false).unwrap();
    let between = between.start.page().unwrap();
    reopened.page_freed(Lsn(1), 0, between);
    reopened.reclaim(Lsn(2), Lsn(2), 10, 0, |_| true);
    assert_eq!(reopened.take_pages(1).unwrap(), [between]);
    assert!(!reopened.marks_chunk(between));
    // Data in a chunk of pages, or a chunk that was given back to the host, end it.
    space.take_pages(PAGES_IN_CHUNK).unwrap();
    space.give(chunk);
    let punched = space.take_punchable().unwrap();
    assert_eq!(punched, chunk);
    assert!(!space.marks_chunk(page));
    space.give_punched(punched);
    assert_eq!(geometry.group_count(), space.groups());
}

/// The same for data: what places for pages data is given back.
#[test]
fn data_in_a_chunk_of_pages_ends_its_mark() {
    let (mut space, _) = new_space();
    let chunk = space.take_chunk().unwrap();
    space.carve(chunk);
    let page = chunk.start.page().unwrap();
    space.take_pages(PAGES_IN_CHUNK).unwrap();
    space.give(chunk);
    assert!(space.marks_chunk(page));
    space.restart_search();
    // The chunk of the bitmap page comes first.
    while space.take_blocks(1..=1, Reach::Free).unwrap().start < chunk.start {}
    assert!(!space.marks_chunk(page));
}

const PAGES_IN_CHUNK: usize = (BLOCKS_PER_CHUNK / BLOCKS_PER_PAGE) as usize;
