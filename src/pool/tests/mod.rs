//! Tests of the pool. Each is named after what a user would lose if it failed.

mod latches;
mod space;

use std::sync::Mutex as StdMutex;

use super::*;
use crate::page::bitmap::Bitmap;
use crate::page::node::{Node, NodeBuilder, NodeSpec};
use crate::page::op::{self, Op};
use crate::storage::{FaultStorage, MemStorage, OpKind};

const SIZE: u64 = 64 << 20;

fn formatted() -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(SIZE));
    let options = FormatOptions {
        size: SIZE,
        log_size: Some(1 << 20),
        doublewrite_pages: Some(8),
        ..FormatOptions::default()
    };
    Pool::format(&*storage, &options).unwrap();
    storage
}

fn open(storage: Arc<dyn Storage>, pages: usize) -> Pool {
    let cache_size = pages * (PAGE_SIZE + FRAME_OVERHEAD);
    let options = PoolOptions { cache_size, background: false, ..PoolOptions::default() };
    Pool::open(storage, &options).unwrap().0
}

fn section(body: &mut Vec<u8>, page: PageId, op: Op<'_>) {
    let begun = op::begin_section(body, page);
    op.encode(body);
    op::end_section(body, begun);
}

/// Makes a leaf with one record; its number and the record's end.
fn born(pool: &Pool, value: &[u8]) -> (PageId, Lsn) {
    let log = Log::record_size(PAGE_SIZE + 100);
    let mut reservation = pool.reserve(Need { frames: 0, pages: 1, log }).unwrap();
    let (id, mut page) = reservation.new_page().unwrap().unwrap();
    let image = pool.geometry().image();
    let mut built: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let spec = NodeSpec { id, image, level: 0, flags: 0, low: &[], high: None, right: PageId::NONE };
    let mut builder = NodeBuilder::new(&mut built, spec);
    assert!(builder.push(b"key", value));
    builder.finish();
    let mut packed = Vec::new();
    Node(&built).pack(&mut packed);
    let mut body = Vec::new();
    section(&mut body, id, Op::Image(&packed));
    let mut bitmap = reservation.latch_bitmap_of(id).unwrap();
    let start = pool.within_group(id.run());
    section(&mut body, bitmap.header().page(), Op::Allocate { start, len: 4, pages: true });
    (id, reservation.commit(&mut [&mut page, &mut bitmap], &body))
}

fn change(pool: &Pool, id: PageId, op: Op<'_>) -> Lsn {
    let mut reservation = pool.reserve(Need { frames: 2, pages: 0, log: Log::record_size(9000) }).unwrap();
    let pin = pool.read(id).unwrap().pin();
    let mut page = pool.latch(&pin);
    let mut body = Vec::new();
    section(&mut body, id, op);
    reservation.commit(&mut [&mut page], &body)
}

/// Marks the page as dead and its blocks as free, in one record.
fn kill(pool: &Pool, id: PageId) -> Lsn {
    let mut reservation = pool.reserve(Need { frames: 2, pages: 0, log: Log::record_size(200) }).unwrap();
    let pins = pool.pin_bitmaps(std::iter::once(id.run())).unwrap();
    let pin = pool.read(id).unwrap().pin();
    let mut page = pool.latch(&pin);
    let mut bitmap = pool.latch(&pins[0]);
    let mut body = Vec::new();
    section(&mut body, id, Op::Kill);
    let start = pool.within_group(id.run());
    section(&mut body, bitmap.header().page(), Op::Free { start, len: 4 });
    let lsn = reservation.commit(&mut [&mut page, &mut bitmap], &body);
    drop((page, bitmap, pin, pins));
    pool.page_freed(lsn, id);
    lsn
}

fn value(pool: &Pool, id: PageId) -> Vec<u8> {
    let page = pool.read(id).unwrap();
    Node(&page).get(b"key").unwrap().to_vec()
}

fn leaves(pool: &Pool, count: u32) -> Vec<PageId> {
    let pages = (0..count).map(|n| born(pool, &n.to_be_bytes()).0).collect();
    pool.checkpoint().unwrap();
    pages
}

fn pages_read(pool: &Pool) -> u64 {
    pool.stats.pages_read.load(Ordering::SeqCst)
}

fn free_frames(pool: &Pool) -> usize {
    let free: Vec<FrameNo> = std::iter::from_fn(|| pool.free_frames.pop()).collect();
    pool.free_frames.extend(free.iter().copied());
    free.len()
}

fn frame_of(pool: &Pool, id: PageId) -> Option<FrameNo> {
    pool.table.find(&pool.frames, id)
}

#[test]
fn memory_stays_within_the_budget() {
    for pages in [32, 100, 1000] {
        let storage = formatted();
        let pool = open(storage, pages);
        assert!(pool.frame_count() * (PAGE_SIZE + FRAME_OVERHEAD) <= pages * (PAGE_SIZE + FRAME_OVERHEAD));
        let ids = leaves(&pool, 300);
        for round in 0..3 {
            for (n, id) in ids.iter().enumerate() {
                assert_eq!(value(&pool, *id), (n as u32).to_be_bytes(), "round {round}");
            }
        }
        // Every page is in one frame at the most, and every frame is somewhere.
        let mut resident: Vec<PageId> = pool.frames.headers().iter().map(|f| f.page()).collect();
        let free = free_frames(&pool);
        resident.retain(|id| id.is_some());
        assert!(resident.len() + free <= pool.frame_count(), "{} resident, {free} free", resident.len());
        resident.sort_unstable();
        assert!(resident.windows(2).all(|w| w[0] != w[1]), "a page is in two frames");
    }
}

#[test]
fn a_changed_page_is_not_dropped_before_it_is_written() {
    let storage = formatted();
    let pool = open(storage.clone(), 40);
    let ids = leaves(&pool, 200);
    for id in &ids[..20] {
        change(&pool, *id, Op::Put { key: b"key", value: b"new" });
    }
    let written = pool.stats.pages_written.load(Ordering::SeqCst);
    let (before, dirty) = (pages_read(&pool), pool.dirty_frames());
    for id in ids[20..].iter().chain(&ids[20..]) {
        value(&pool, *id);
    }
    assert!(pages_read(&pool) > before + 200);
    assert_eq!(pool.dirty_frames(), dirty);
    assert_eq!(pool.stats.pages_written.load(Ordering::SeqCst), written, "a reader wrote a page");
    let before = pages_read(&pool);
    for id in &ids[..20] {
        assert_eq!(value(&pool, *id), b"new");
    }
    assert_eq!(pages_read(&pool), before);
    pool.log.commit(pool.log.end()).unwrap();
    drop(pool);
    let pool = open(storage, 40);
    for id in &ids[..20] {
        assert_eq!(value(&pool, *id), b"new");
    }
}

#[test]
fn one_long_scan_does_not_displace_what_is_in_use() {
    let pool = open(formatted(), 80);
    let ids = leaves(&pool, 400);
    let (hot, cold) = ids.split_at(30);
    for _ in 0..4 {
        hot.iter().for_each(|id| _ = value(&pool, *id));
    }
    for id in cold.iter().chain(cold) {
        drop(pool.read_hinted(*id, false).unwrap());
    }
    let before = pages_read(&pool);
    hot.iter().for_each(|id| _ = value(&pool, *id));
    assert_eq!(pages_read(&pool), before, "hot pages had to be read again");
}

#[test]
fn a_freed_page_waits_for_a_checkpoint_and_for_older_operations() {
    let pool = open(formatted(), 60);
    let ids = leaves(&pool, 3);
    let available = |pool: &Pool| {
        pool.reclaim();
        pool.space.lock().pages_contain(ids[1])
    };
    let old = pool.enter();
    kill(&pool, ids[1]);
    assert!(!available(&pool), "a crash now would bring the page back");
    pool.log.commit(pool.log.end()).unwrap();
    assert!(!available(&pool), "recovery may still change the page");
    pool.checkpoint().unwrap();
    assert!(!available(&pool), "an operation that may have seen the page is alive");
    assert!(frame_of(&pool, ids[1]).is_some());
    drop(old);
    assert!(available(&pool));
    assert!(frame_of(&pool, ids[1]).is_none(), "the dead page is still in the pool");
}

#[test]
fn freed_blocks_wait_until_the_deletion_is_durable() {
    let pool = open(formatted(), 60);
    let run = pool.reserve_blocks(500).unwrap();
    let free = pool.free_blocks();
    let lsn = change(&pool, pool.geometry().root, Op::Put { key: b"gone", value: b"" });
    let old = pool.enter();
    pool.run_freed(lsn, run);
    let waits = |pool: &Pool| {
        pool.reclaim();
        pool.space.lock().has_more_soon()
    };
    assert!(waits(&pool), "a crash now would bring the owner back");
    assert_eq!(pool.free_blocks(), free + run.len as u64, "what waits is counted as free");
    pool.log.commit(lsn).unwrap();
    assert!(waits(&pool), "a reader may still read the blocks");
    drop(old);
    assert!(!waits(&pool));
    assert_eq!(pool.reserve_blocks(500).unwrap().len, 500);
}

/// A writer reads the log's end to enter its page in the dirty table with, and then gets no processor while a whole checkpoint
/// passes; it enters the page in the middle of the next one, with an LSN from before the first. Once the checkpoint went
/// back to it, to log space that was free already and might have been written over.
#[test]
fn a_checkpoint_never_goes_back() {
    type Hook = Box<dyn FnOnce() + Send>;
    let at_sync = Arc::new(StdMutex::new(None::<Hook>));
    let hook = at_sync.clone();
    let observer = move |kind, _, _| {
        let hook = if kind == OpKind::Sync { hook.lock().unwrap().take() } else { None };
        if let Some(hook) = hook {
            hook();
        }
    };
    let storage = Arc::new(FaultStorage::observed(formatted(), observer));
    let pool = Arc::new(open(storage.clone(), 40));
    let ids = leaves(&pool, 3);
    let stale = pool.log.end();
    change(&pool, ids[0], Op::Put { key: b"key", value: b"one" });
    pool.checkpoint().unwrap();
    let first = pool.checkpoint_lsn();
    assert!(first > stale);
    change(&pool, ids[0], Op::Put { key: b"key", value: b"two" });
    let (late, id) = (pool.clone(), ids[1]);
    let hook = move || {
        let pin = late.read(id).unwrap().pin();
        assert!(late.latch(&pin).mark_dirty(stale));
        late.budget.fetch_add(1, Ordering::SeqCst);
    };
    *at_sync.lock().unwrap() = Some(Box::new(hook));
    pool.checkpoint().unwrap();
    assert!(pool.checkpoint_lsn() >= first);
    change(&pool, ids[1], Op::Put { key: b"key", value: b"three" });
    pool.log.commit(pool.log.end()).unwrap();
    drop(pool);
    let pool = open(storage.inner().clone(), 40);
    assert_eq!((value(&pool, ids[0]), value(&pool, ids[1])), (b"two".to_vec(), b"three".to_vec()));
}

#[test]
fn a_page_that_is_in_use_is_not_made_a_new_one() {
    let pool = open(formatted(), 40);
    let ids = leaves(&pool, 2);
    // What a forged bitmap page would do.
    pool.space.lock().give_pages(&[ids[0]]);
    let pin = pool.read(ids[0]).unwrap().pin();
    let need = Need { frames: 0, pages: 1, log: Log::record_size(PAGE_SIZE) };
    assert!(pool.reserve(need).unwrap().new_page().is_err());
    drop(pin);
    change(&pool, ids[0], Op::Put { key: b"key", value: b"dirty" });
    assert!(pool.reserve(need).unwrap().new_page().is_err());
    assert_eq!(value(&pool, ids[0]), b"dirty");
}

#[test]
fn pages_outside_the_image_are_not_read() {
    let pool = open(formatted(), 40);
    for id in [0, 1, SIZE / PAGE_SIZE as u64, u64::MAX, u64::MAX / PAGE_SIZE as u64, 1 << 52] {
        assert!(pool.read(PageId(id)).is_err_and(|e| e.is_corrupt()), "page {id}");
        assert!(frame_of(&pool, PageId(id)).is_none());
    }
    let free = free_frames(&pool);
    let resident = pool.frames.headers().iter().filter(|f| f.page().is_some()).count();
    assert_eq!(free + resident, pool.frame_count(), "a failed read loses its frame");
}

/// The first touch of a huge page can take milliseconds in a virtual machine.
#[test]
fn frames_have_memory_before_they_are_used_for_the_first_time() {
    let options = PoolOptions { cache_size: 32 << 20, background: true, ..PoolOptions::default() };
    let pool = Pool::open(formatted(), &options).unwrap().0;
    let ahead = 3 * frames::POPULATE;
    assert!(!pool.frames.has_memory(ahead));
    std::thread::scope(|scope| {
        scope.spawn(|| pool.run_prefetcher());
        for _ in 0..8 {
            assert!(pool.empty_frame().frame() < ahead);
        }
        let start = std::time::Instant::now();
        while !pool.frames.has_memory(ahead) && start.elapsed().as_secs() < 60 {
            std::thread::yield_now();
        }
        let present = pool.frames.has_memory(ahead);
        pool.stop();
        assert!(present);
    });
}
