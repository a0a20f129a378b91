//! Tests of the pool. Each is named after what a user would lose if it failed.

mod latches;
mod space;

use std::sync::Mutex as StdMutex;

use super::*;
use crate::page::bitmap::Bitmap;
use crate::page::node::{Node, NodeBuilder, NodeSpec};
use crate::page::op::{self, Op};
use crate::page::superblock::SUPERBLOCK_OFFSETS;
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

/// The same as [`a_freed_page_waits_for_a_checkpoint_and_for_older_operations`] where nobody is alive: that the free is durable is not
/// enough.
#[test]
fn a_freed_page_waits_for_a_checkpoint_though_nobody_can_see_it() {
    let pool = open(formatted(), 60);
    let ids = leaves(&pool, 3);
    // Its frame is clean, so it alone would not keep the page.
    kill(&pool, ids[1]);
    pool.flush_older(&mut pool.flusher.lock(), Lsn(u64::MAX)).unwrap();
    assert_eq!(pool.dirty_frames(), 0);
    for _ in 0..3 {
        pool.reclaim();
        assert!(!pool.space.lock().pages_contain(ids[1]), "recovery may still change the page");
    }
    pool.checkpoint().unwrap();
    pool.reclaim();
    assert!(pool.space.lock().pages_contain(ids[1]));
}

/// Flips a byte of the log's newest record.
fn damage_the_newest_record(storage: &dyn Storage, end: Lsn) {
    let place = crate::wal::Place::of(&read_superblock(storage).unwrap());
    let at = place.offset + (end.0 - 3) % place.size;
    storage.write_at(at, &[0x55]).unwrap();
}

/// A storage that calls what is put there, once, at its next sync.
type Hook = Arc<StdMutex<Option<Box<dyn FnOnce() + Send>>>>;
fn hooked() -> (Arc<FaultStorage<Arc<MemStorage>>>, Hook) {
    let at_sync = Hook::default();
    let hook = at_sync.clone();
    let observer = move |kind, _, _| {
        let hook = if kind == OpKind::Sync { hook.lock().unwrap().take() } else { None };
        if let Some(hook) = hook {
            hook();
        }
    };
    (Arc::new(FaultStorage::observed(formatted(), observer)), at_sync)
}

/// What was committed while a checkpoint was under way is not lost without a word, although no mark follows it in the log.
#[test]
fn a_checkpoint_tells_how_far_the_log_was_durable_behind_it() {
    let (storage, at_sync) = hooked();
    let pool = Arc::new(open(storage.clone(), 40));
    let ids = leaves(&pool, 2);
    change(&pool, ids[0], Op::Put { key: b"key", value: b"one" });
    let (late, id) = (pool.clone(), ids[1]);
    let hook = move || {
        let lsn = change(&late, id, Op::Put { key: b"key", value: b"two" });
        late.log.commit(lsn).unwrap();
    };
    *at_sync.lock().unwrap() = Some(Box::new(hook));
    pool.checkpoint().unwrap();
    let end = pool.log.end();
    assert!(pool.checkpoint_lsn() < end && pool.log.durable() == end);
    drop(pool);
    damage_the_newest_record(&**storage.inner(), end);
    let options = PoolOptions { background: false, ..PoolOptions::default() };
    let opened = Pool::open(storage.inner().clone(), &options).map(|_| ());
    assert!(opened.is_err_and(|e| e.is_corrupt()), "what was committed is lost without a word");
}

/// The same where pages went home, and no checkpoint followed.
#[test]
fn a_doublewrite_tells_how_far_the_log_was_durable() {
    let storage = formatted();
    let pool = open(storage.clone(), 40);
    let ids = leaves(&pool, 2);
    change(&pool, ids[0], Op::Put { key: b"key", value: b"one" });
    let end = change(&pool, pool.geometry().root, Op::Put { key: b"key", value: b"" });
    pool.log.commit(end).unwrap();
    pool.flush_older(&mut pool.flusher.lock(), Lsn(u64::MAX)).unwrap();
    drop(pool);
    damage_the_newest_record(&*storage, end);
    let options = PoolOptions { background: false, ..PoolOptions::default() };
    let opened = Pool::open(storage, &options).map(|_| ());
    assert!(opened.is_err_and(|e| e.is_corrupt()), "what was committed is lost without a word");
}

/// Whoever closes an image believes that nothing is dirty. If he is wrong, the log is needed.
#[test]
fn an_image_with_changes_in_its_log_is_never_called_clean() {
    let (storage, at_sync) = hooked();
    let pool = Arc::new(open(storage.clone(), 40));
    let ids = leaves(&pool, 1);
    let (late, id) = (pool.clone(), ids[0]);
    let hook = move || _ = change(&late, id, Op::Put { key: b"key", value: b"late" });
    *at_sync.lock().unwrap() = Some(Box::new(hook));
    pool.checkpoint_with(&mut pool.flusher.lock(), true).unwrap();
    pool.log.commit(pool.log.end()).unwrap();
    drop(pool);
    assert!(!read_superblock(&*storage).unwrap().clean);
    let pool = open(storage.inner().clone(), 40);
    assert_eq!(value(&pool, ids[0]), b"late");
}

/// A page that a record behind the log's end has changed belongs to another life of the image.
#[test]
fn a_page_that_is_newer_than_the_log_is_not_read() {
    let storage = formatted();
    let pool = open(storage.clone(), 40);
    let id = leaves(&pool, 1)[0];
    pool.close().unwrap();
    drop(pool);
    let pool = open(storage.clone(), 40);
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    storage.read_at(id.offset(), &mut page[..]).unwrap();
    for (lsn, is_right) in [(pool.log.end(), true), (Lsn(pool.log.end().0 + 1), false)] {
        set_page_lsn(&mut page, lsn);
        seal(&mut page);
        storage.write_at(id.offset(), &page[..]).unwrap();
        let pool = open(storage.clone(), 40);
        assert_eq!(pool.read(id).is_ok(), is_right);
        assert_eq!(pool.is_damaged(), !is_right);
    }
}

/// Whether the clock has seen a use of the page does not matter: who uses it holds it.
#[test]
fn a_page_that_somebody_holds_or_has_changed_is_not_dropped() {
    let pool = open(formatted(), 40);
    let id = leaves(&pool, 1)[0];
    let evicts = || {
        let frame = frame_of(&pool, id).unwrap();
        pool.frames.header(frame).usage.store(0, Ordering::SeqCst);
        pool.evict(frame).is_some()
    };
    let pin = pool.read(id).unwrap().pin();
    assert!(!evicts(), "it is pinned");
    drop(pin);
    change(&pool, id, Op::Put { key: b"key", value: b"new" });
    assert!(!evicts(), "it is dirty");
    assert_eq!(value(&pool, id), b"new");
    pool.checkpoint().unwrap();
    assert!(evicts());
}

/// What the host has no space for is not lost to the image.
#[test]
fn places_for_pages_that_the_host_refuses_stay_free() {
    let storage = Arc::new(FaultStorage::new(formatted()));
    let pool = open(storage.clone(), 40);
    let free = pool.free_blocks();
    storage.arm(crate::storage::Fault::nth(&[OpKind::Allocate], 0).errno(libc::ENOSPC).forever());
    assert!(matches!(pool.take_pages(100), Err(Error::NoSpace)));
    assert!(storage.disarm() > 0);
    assert_eq!(pool.free_blocks(), free);
    pool.give_pages(&pool.take_pages(100).unwrap());
    assert_eq!(pool.free_blocks(), free);
}

/// By then the place may be something else's, and what lies there no page of the tree, or an old one.
#[test]
fn what_was_to_be_read_ahead_in_an_earlier_epoch_is_not() {
    let storage = formatted();
    let ids = leaves(&open(storage.clone(), 40), 12);
    let options = PoolOptions { cache_size: 1 << 20, ..PoolOptions::default() };
    let pool = Pool::open(storage, &options).unwrap().0;
    let early = pool.enter().epoch();
    pool.prefetch([ids[1]].into_iter(), early, true);
    (0..4).for_each(|_| pool.epochs().advance());
    assert!(pool.epochs().current() >= early + 2);
    pool.prefetch([ids[10]].into_iter(), pool.epochs().current(), true);
    std::thread::scope(|scope| {
        scope.spawn(|| pool.run_prefetcher());
        let begun = Instant::now();
        while !pool.is_cached(ids[10]) && begun.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        pool.stop();
    });
    assert!(pool.is_cached(ids[10]) && !pool.is_cached(ids[1]));
}

/// Leaves that are read ahead in one piece are checked one by one; also whether they are what was written last (D6).
#[test]
fn a_damaged_page_does_not_come_into_the_pool_with_its_neighbours() {
    let storage = formatted();
    let ids = leaves(&open(storage.clone(), 40), 12);
    storage.write_at(ids[5].offset() + 9000, &[0x55; 100]).unwrap();
    let options = PoolOptions { cache_size: 1 << 20, ..PoolOptions::default() };
    let pool = Pool::open(storage, &options).unwrap().0;
    assert!(ids.windows(2).all(|w| w[1].0 == w[0].0 + 1));
    pool.unsynced.lock().insert(ids[8], pool.log.end());
    pool.prefetch(ids.iter().copied(), pool.enter().epoch(), true);
    std::thread::scope(|scope| {
        scope.spawn(|| pool.run_prefetcher());
        let begun = Instant::now();
        while !pool.is_cached(ids[11]) && begun.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        pool.stop();
    });
    for (n, id) in ids.iter().enumerate() {
        match pool.read(*id) {
            Ok(page) => {
                assert_eq!(
                    (n != 5 && n != 8, Node(&page).get(b"key")),
                    (true, Some(&(n as u32).to_be_bytes()[..]))
                )
            }
            Err(error) => assert!((n == 5 || n == 8) && error.is_corrupt(), "{error}"),
        }
    }
}

/// A batch that was under way when the volume became read-only is in the image that is called clean.
#[test]
fn what_is_under_way_when_an_image_becomes_read_only_is_home_when_it_is() {
    let storage = formatted();
    let pool = open(storage.clone(), 40);
    let id = leaves(&pool, 1)[0];
    let mut reservation = pool.reserve(Need { frames: 2, pages: 0, log: Log::record_size(100) }).unwrap();
    std::thread::scope(|scope| {
        let switched = scope.spawn(|| pool.set_read_only(true));
        while !pool.is_read_only() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(!switched.is_finished() && !read_superblock(&*storage).unwrap().clean);
        let pin = pool.read(id).unwrap().pin();
        let mut page = pool.latch(&pin);
        let mut body = Vec::new();
        section(&mut body, id, Op::Put { key: b"key", value: b"late" });
        reservation.commit(&mut [&mut page], &body);
        drop((page, pin, reservation));
        switched.join().unwrap().unwrap();
    });
    drop(pool);
    assert!(read_superblock(&*storage).unwrap().clean);
    assert_eq!(value(&open(storage, 40), id), b"late");
}

/// Between a look into the page table and the latch, a frame may get another page.
#[test]
fn who_waits_for_a_frame_that_gets_another_page_does_not_read_that_one() {
    let pool = open(formatted(), 40);
    let ids = leaves(&pool, 2);
    let frame = frame_of(&pool, ids[0]).unwrap();
    let other = frame_of(&pool, ids[1]).unwrap();
    pool.frames.header(other).usage.store(0, Ordering::SeqCst);
    pool.free_frames.push(pool.evict(other).unwrap().frame());
    std::thread::scope(|scope| {
        let page = pool.frames.try_latch_exclusive(frame).unwrap();
        let reader = scope.spawn(|| value(&pool, ids[0]));
        std::thread::sleep(Duration::from_millis(20));
        pool.table.lock(ids[0]).remove(&pool.frames, frame);
        let mut page = pool.claim(ids[1], page, true).unwrap_or_else(|_| panic!("it is elsewhere"));
        let read = pool.fetch(ids[1], &mut page);
        drop(pool.settle(ids[1], page, read).unwrap());
        assert_eq!(reader.join().unwrap(), 0u32.to_be_bytes());
    });
}

#[test]
fn what_no_log_can_hold_is_refused_and_not_waited_for() {
    let pool = open(formatted(), 40);
    let most = pool.log.reservation_max();
    drop(pool.reserve(Need { frames: pool.dirty_max, pages: 0, log: most }).unwrap());
    for (frames, log) in [(0, most + 1), (pool.dirty_max + 1, 100)] {
        let refused = pool.reserve(Need { frames, pages: 0, log }).err();
        assert!(matches!(refused, Some(Error::TooLarge { .. })), "{refused:?}");
    }
}

/// Somebody must be told at the next mount, and let fsck look.
#[test]
fn a_page_that_cannot_be_read_marks_the_image() {
    let inner = formatted();
    let id = leaves(&open(inner.clone(), 40), 1)[0];
    let storage = Arc::new(FaultStorage::new(inner));
    let pool = open(storage.clone(), 40);
    storage.arm(crate::storage::Fault::nth(&[OpKind::Read], 0));
    assert!(pool.read(id).is_err() && storage.disarm() == 1);
    assert!(pool.is_damaged());
    assert_eq!(value(&pool, id), 0u32.to_be_bytes());
    pool.checkpoint().unwrap();
    assert!(read_superblock(&*storage).unwrap().is_damaged());
}

#[test]
fn an_image_that_needs_features_to_be_written_is_only_read() {
    let storage = formatted();
    let mut superblock = read_superblock(&*storage).unwrap();
    superblock.ro_compat = 1;
    for offset in SUPERBLOCK_OFFSETS {
        storage.write_at(offset, &superblock.encode()).unwrap();
    }
    let before = storage.image();
    for read_only in [false, true] {
        let options = PoolOptions { background: false, read_only, ..PoolOptions::default() };
        let opened = Pool::open(storage.clone(), &options).map(drop);
        match read_only {
            true => opened.unwrap(),
            false => assert!(matches!(opened, Err(Error::Unusable(_))), "{opened:?}"),
        }
        assert!(storage.image() == before);
    }
}

/// Redo may have to begin with an older record of the root: it is copied before it is written over, also if a record gives it all new
/// contents. Of other pages nothing older is needed.
#[test]
fn a_root_that_is_made_anew_by_redo_is_not_torn_by_the_next_crash() {
    let storage = formatted();
    let other = leaves(&open(storage.clone(), 40), 1)[0];
    let pool = open(storage, 40);
    for (id, needs_copy) in [(pool.geometry().root, true), (other, false)] {
        if let Some(frame) = frame_of(&pool, id) {
            pool.frames.header(frame).usage.store(0, Ordering::SeqCst);
            pool.free_frames.push(pool.evict(frame).unwrap().frame());
        }
        let page = pool.page_for_redo(id, true).unwrap();
        assert_eq!(page.header().newborn.load(Ordering::SeqCst), !needs_copy);
    }
}

/// Whoever unmounts is told, and not whoever needs the file a year later.
#[test]
fn an_image_that_was_cut_while_it_was_open_is_not_closed_in_order() {
    for cut in [false, true] {
        let storage = formatted();
        let pool = open(storage.clone(), 40);
        leaves(&pool, 3);
        if cut {
            storage.set_len(SIZE / 2).unwrap();
        }
        let closed = pool.close();
        assert_eq!(closed.is_err_and(|e| e.is_corrupt()), cut);
        storage.set_len(SIZE).unwrap();
        let superblock = read_superblock(&*storage).unwrap();
        assert_eq!((superblock.clean, superblock.is_damaged()), (!cut, cut));
    }
}
