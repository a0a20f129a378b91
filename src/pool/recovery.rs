//! Opening an image, and recovery.
//!
//! Recovery: superblock → scan of the log → repair of torn pages from doublewrite copies → redo of what each page's LSN
//! lacks → a full checkpoint with a new incarnation, durable before any write is accepted. It logs nothing and is
//! idempotent: a crash at any point of it leaves an image that recovers to the same state.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::epoch::Epochs;
use super::flush::Flusher;
use super::frames::{FrameNo, Frames, FreeFrames, PageWrite};
use super::grow::Geometry;
use super::prefetch::Prefetcher;
use super::space::Space;
use super::table::PageTable;
use super::{FRAME_OVERHEAD, Pool, PoolOptions, PoolStats, Progress};
use crate::defects::{Defect, Defects};
use crate::error::{Error, Result};
use crate::page::bitmap::Bitmap;
use crate::page::format::*;
use crate::page::op::{self, Op};
use crate::page::superblock::*;
use crate::page::{BlockNo, Lsn, PageId, Run};
use crate::storage::sim::site_scope;
use crate::storage::{OverlayStorage, Storage, spare_memory};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex};
use crate::wal::format::RECORD_HEADER_SIZE;
use crate::wal::{self, Log, Place, Scan};

/// The number of the next pool of this process.
static NEXT_ID: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// What opening an image had to do.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// Whether the image had been closed in order.
    pub clean: bool,
    /// Bytes of log between the checkpoint and the log's end.
    pub log_bytes: u64,
    /// Transactions among them.
    pub records: u64,
    /// Changes of pages that had not reached the disk.
    pub redone: u64,
    /// Torn pages restored from the doublewrite area.
    pub repaired: u64,
    /// Bytes behind the log's end that belonged to writes cut off.
    pub discarded: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.clean {
            return write!(f, "image was closed cleanly");
        }
        write!(
            f,
            "recovered in {:.3} s: {} bytes of log scanned, {} records, {} page changes redone, {} pages repaired, \
             {} bytes discarded at the end",
            self.elapsed.as_secs_f64(),
            self.log_bytes,
            self.records,
            self.redone,
            self.repaired,
            self.discarded
        )
    }
}

/// Reads the newer of the two superblocks that are whole.
pub fn read_superblock(storage: &dyn Storage) -> Result<Superblock> {
    let len = storage.len().map_err(|e| Error::io("reading the image's size", e))?;
    let copies = read_copies(len, |at, bytes| storage.read_at(at, bytes));
    if newest(&copies, len).is_some() {
        for reason in copies.iter().filter_map(|copy| copy.as_ref().err()) {
            log::warn!(
                "one of the two superblocks is of no use ({reason}): the other one counts. btfs fsck -p repairs it"
            );
        }
    }
    let superblock = choose(copies, len).map_err(|missing| match missing {
        Missing::Unreadable(e) => Error::io("reading the superblock", e),
        Missing::Unusable(SuperblockError::Damaged(reason)) => Error::corrupt("both superblocks", reason),
        Missing::Unusable(SuperblockError::NotAnImage) => Error::Unusable("not a btfs image".into()),
        Missing::Unusable(other) => Error::Unusable(format!("the image cannot be used: {other}")),
    })?;
    if superblock.size > len {
        let reason = format!("it has {len} bytes, and the image says that it has {}", superblock.size);
        return Err(Error::corrupt("the file was cut short", reason));
    }
    if superblock.lacks_bitmaps() {
        return Err(Error::half_repaired());
    }
    Ok(superblock)
}

/// Has the host allocate again what log, doublewrite area and pages were given when the image was made or grew: a copy of the image may
/// have holes there, where zeros were or nothing was written yet. Otherwise a full disk of the host would meet the log, or pages on their
/// way home. That may come to pass all the same where it is full already, or allocates nothing in advance, with pages that lie between
/// data, and with a copy that shares its blocks with what was copied.
///
/// The host is asked for holes first, since an allocation of what is allocated is not free everywhere. `runs` ascend.
fn allocate_again(storage: &dyn Storage, runs: impl Iterator<Item = Run>) {
    let mut hole = 0;
    for run in runs {
        let (offset, end) = (run.start.offset(), run.end().offset());
        if hole < offset {
            hole = storage.next_hole(offset).unwrap_or(offset);
        }
        if hole >= end {
            continue;
        }
        // Each of them has something that was written: a forged image, which has not, is not to fill the disk.
        if storage.skip_hole(offset).is_some_and(|data| data >= end) {
            continue;
        }
        match storage.allocate(offset, end - offset) {
            Ok(true) => {}
            Ok(false) => return,
            Err(e) => {
                log::warn!("allocating space on the host for log and pages: {e}");
                return;
            }
        }
    }
}

impl Pool {
    /// Opens an image, with recovery if it was not closed in order. Nothing else uses the storage.
    ///
    /// If it is opened read-only, nothing but reads reaches the storage: recovery works on an overlay in memory, which then
    /// stays in front of the storage, and an image that was closed in order needs none. [`Error::is_out_of_memory`] where that is too
    /// little.
    pub fn open(storage: Arc<dyn Storage>, options: &PoolOptions) -> Result<(Pool, RecoveryReport)> {
        let started = Instant::now();
        let mut superblock = read_superblock(&*storage)?;
        if superblock.ro_compat != 0 && !options.read_only {
            return Err(Error::Unusable(format!(
                "the image needs features to be written that this program lacks: {:#x}",
                superblock.ro_compat
            )));
        }
        if superblock.is_spent() && !options.read_only {
            return Err(Error::Unusable(
                "the superblock counts further than any use leads: let btfs fsck -y repair it".into(),
            ));
        }
        let storage: Arc<dyn Storage> = if options.read_only && !superblock.clean {
            let overlay = OverlayStorage::new(storage, spare_memory());
            Arc::new(overlay.map_err(|e| Error::io("reading the image's size", e))?)
        } else {
            storage
        };
        let place = Place::of(&superblock);
        let _site = site_scope("recovery");
        // If only the process died, the host still shows writes that are not durable, the superblock just read perhaps among
        // them. Everything from here on builds on what was read.
        if !options.read_only && !options.defects.has(Defect::RecoverUnsynced) {
            storage.sync().map_err(|e| Error::io("syncing the image", e))?;
        }
        if !superblock.clean {
            // Where the host has told an error, it may still show what it could not write.
            storage.forget_cached();
            superblock = read_superblock(&*storage)?;
        }
        if !options.read_only {
            let len = (superblock.data_offset() / BLOCK_SIZE as u64).try_into().unwrap_or(u32::MAX);
            allocate_again(&*storage, std::iter::once(Run { start: BlockNo(0), len }));
        }
        let mut report = RecoveryReport { clean: superblock.clean, ..Default::default() };
        let mut scan = Scan { end: superblock.checkpoint, ..Default::default() };
        let mut sequence = 0;
        if !superblock.clean {
            let halves = read_doublewrite(&*storage, &superblock)?;
            let floor = halves.iter().map(|(_, h)| h.floor).max().unwrap_or_default().max(superblock.floor);
            sequence = halves.iter().map(|(_, h)| h.sequence).max().unwrap_or(0);
            let (from, incarnation) = (superblock.checkpoint, superblock.incarnation);
            scan = wal::scan(&*storage, place, from, incarnation, floor, |_, _, _| Ok(()))?;
            report.log_bytes = scan.end.0 - from.0;
            report.records = scan.records;
            report.discarded = scan.discarded;
            report.repaired = repair(&*storage, &superblock, &halves, scan.end, options.defects)?;
        }
        let pool = Pool::new(storage, superblock.clone(), sequence, place, scan.end, options)?;
        if !superblock.clean {
            pool.redo(place, &superblock, &scan, &mut report)?;
        }
        pool.load_groups(superblock.groups)?;
        if !options.read_only {
            pool.allocate_pages_again();
        }
        if !options.read_only || !superblock.clean {
            pool.begin_incarnation(&superblock)?;
        }
        pool.forget_dead_pages();
        report.elapsed = started.elapsed();
        if !report.clean {
            log::debug!("{report}");
        }
        Ok((pool, report))
    }

    fn new(
        storage: Arc<dyn Storage>,
        superblock: Superblock,
        sequence: u64,
        place: Place,
        end: Lsn,
        options: &PoolOptions,
    ) -> Result<Pool> {
        let no_memory = |e| Error::io("allocating the cache", e);
        let count = options.cache_size.max(PoolOptions::CACHE_MIN) / (PAGE_SIZE + FRAME_OVERHEAD);
        let frames = Frames::new(count).map_err(no_memory)?;
        let incarnation = superblock.incarnation + !options.defects.has(Defect::SameIncarnation) as u32;
        Ok(Pool {
            id: NEXT_ID.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            root_version: AtomicU64::new(0),
            frames,
            table: PageTable::new(count),
            free_frames: FreeFrames::all(count),
            ring: Mutex::new(VecDeque::new()),
            prefetcher: Prefetcher::default(),
            hand: AtomicUsize::new(0),
            looked_at: AtomicU64::new(0),
            budget: AtomicUsize::new(0),
            dirty_max: count / 4 * 3,
            log: Log::new(storage.clone(), place, incarnation, end, options.defects),
            epochs: Epochs::default(),
            space: Mutex::new(Space::new(superblock.clone(), options.defects)),
            growing: Mutex::new(()),
            checkpointed: AtomicU64::new(superblock.checkpoint.0),
            flusher: Mutex::new(Flusher::new(superblock.clone(), sequence).map_err(no_memory)?),
            unsynced: Mutex::default(),
            damaged: AtomicBool::new(superblock.is_damaged()),
            geometry: Geometry::new(superblock),
            storage,
            progress: Mutex::new(Progress::default()),
            progressed: Condvar::new(),
            wanted: Condvar::new(),
            stopping: AtomicBool::new(false),
            background: options.background && !options.read_only,
            reads_ahead: options.background,
            read_only: AtomicBool::new(options.read_only),
            opened_read_only: options.read_only,
            switching: Mutex::new(()),
            defects: options.defects,
            stats: PoolStats::default(),
        })
    }

    /// Applies the log to the pages that lack it.
    fn redo(
        &self,
        place: Place,
        superblock: &Superblock,
        scan: &Scan,
        report: &mut RecoveryReport,
    ) -> Result<()> {
        let mut groups = superblock.groups;
        let mut redone = 0;
        let mut contents = LoggedContents::default();
        let again = wal::scan(
            &*self.storage,
            place,
            superblock.checkpoint,
            superblock.incarnation,
            scan.floor,
            |start, end, body| {
                for section in op::sections(body) {
                    let damaged = |reason| Error::corrupt(format_args!("log record at {start}"), reason);
                    let (page, ops) = section.map_err(damaged)?;
                    if page == op::DATA_SECTION {
                        contents.add(superblock, start, body, ops).map_err(damaged)?;
                        continue;
                    }
                    if superblock.is_bitmap_page(page) && !self.defects.has(Defect::ReplayFreedData) {
                        contents.forget_freed(page, ops.clone());
                    }
                    redone += self.redo_section(page, ops, start, end).map_err(|e| match e {
                        Redo::Record(reason) => damaged(reason),
                        Redo::Page(e) => e,
                    })? as u64;
                    if page == superblock.bitmap_page(groups) {
                        groups += 1;
                    }
                }
                Ok(())
            },
        )?;
        if again.end != scan.end {
            return Err(Error::corrupt("log", "it reads differently the second time"));
        }
        report.redone = redone;
        contents.write(&*self.storage, place)?;
        self.load_groups(groups)
    }

    /// Redoes the changes of one page by one record; whether it lacked them.
    fn redo_section(
        &self,
        id: PageId,
        ops: op::Ops<'_>,
        start: Lsn,
        end: Lsn,
    ) -> std::result::Result<bool, Redo> {
        if !self.geometry().is_data_page(id) && !self.geometry().is_bitmap_page(id) {
            return Err(Redo::Record("it changes a page that the image does not have"));
        }
        if self.budget.load(Ordering::SeqCst) >= self.dirty_max {
            let mut flusher = self.flusher.lock();
            self.flush_older(&mut flusher, Lsn(u64::MAX)).map_err(Redo::Page)?;
        }
        let bitmap = self.geometry().is_bitmap_page(id);
        // A birth need not be the first operation.
        if ops.clone().flatten().any(|op| !op.fits(bitmap)) {
            return Err(Redo::Record("it makes a page of a type that does not belong there"));
        }
        let mut ops = ops.peekable();
        let birth = matches!(ops.peek(), Some(Ok(op)) if op.is_birth());
        let mut page = self.page_for_redo(id, birth).map_err(Redo::Page)?;
        if !birth && page_lsn(&page) >= end {
            return Ok(false);
        }
        if page.mark_dirty(start) {
            self.budget.fetch_add(1, Ordering::SeqCst);
        }
        for op in ops {
            op::apply(&mut page, id, self.geometry().image(), &op.map_err(Redo::Record)?)
                .map_err(Redo::Record)?;
        }
        set_page_lsn(&mut page, end);
        Ok(true)
    }

    pub(super) fn page_for_redo(&self, id: PageId, birth: bool) -> Result<PageWrite<'_>> {
        if birth && self.table.find(&self.frames, id).is_none() {
            let mut page = self.empty_frame();
            self.adopt(&mut page, id)?;
            // Of the root alone the log may hold records from before it got all new contents, and they need it whole.
            page.header().newborn.store(id != self.geometry().root, Ordering::SeqCst);
            return Ok(page);
        }
        let pin = self.read(id)?.pin();
        Ok(self.latch(&pin))
    }

    fn load_groups(&self, groups: u32) -> Result<()> {
        let known = self.space.lock().groups();
        for group in known..groups {
            let page = self.read(self.geometry().bitmap_page(group))?;
            self.space.lock().add_group(Bitmap(&page), Lsn(0));
        }
        Ok(())
    }

    /// Bitmap pages, and the chunks that tree pages were carved from.
    fn allocate_pages_again(&self) {
        let (groups, mut runs) = {
            let space = self.space.lock();
            (space.groups(), space.allocated_chunks())
        };
        runs.extend((0..groups).map(|group| self.geometry().bitmap_page(group).run()));
        runs.sort_unstable_by_key(|run| run.start);
        allocate_again(&*self.storage, runs.into_iter());
    }

    /// Redo may have left pages in the pool that the log's end finds freed: their places can be allocated now.
    fn forget_dead_pages(&self) {
        for frame in 0..self.frames.count() as FrameNo {
            let id = self.frames.header(frame).page();
            let dead = id.is_some() && page_flags(&self.frames.latch_shared(frame).0) & FLAG_DEAD != 0;
            if dead {
                self.discard(id);
            }
        }
    }

    /// A full checkpoint, whose superblock begins a new incarnation of the log (`Log::new` writes records of it already).
    fn begin_incarnation(&self, superblock: &Superblock) -> Result<()> {
        let mut flusher = self.flusher.lock();
        if !self.defects.has(Defect::SameIncarnation) {
            flusher.superblock.incarnation = superblock.incarnation + 1;
        }
        self.checkpoint_with(&mut flusher, false)?;
        // As `Log::new` wants it. Every page that was redone is older than the end.
        if flusher.superblock.checkpoint != self.log.end() {
            return Err(self
                .log
                .fail(Error::corrupt("log", "recovery left something that must be redone again")));
        }
        Ok(())
    }
}

/// Where the log holds contents of file blocks that it must write again: those that no later record frees. A block that was freed
/// may have been written since, without the log.
#[derive(Default)]
struct LoggedContents {
    /// The position of each block's contents in the log.
    blocks: BTreeMap<BlockNo, Lsn>,
}

/// Bytes that recovery writes again at once.
const CONTENTS_WRITE: usize = 1 << 20;

impl LoggedContents {
    /// Notes the contents in one section of the record at `start`.
    fn add(
        &mut self,
        geometry: &Superblock,
        start: Lsn,
        body: &[u8],
        ops: op::Ops<'_>,
    ) -> std::result::Result<(), &'static str> {
        for op in ops {
            let Op::Data { start: first, bytes } = op? else {
                return Err("it has a section without a page");
            };
            let blocks = (bytes.len() / BLOCK_SIZE) as u64;
            if !bytes.len().is_multiple_of(BLOCK_SIZE) || !geometry.has_blocks(first, blocks) {
                return Err("it holds contents of blocks that the image does not have");
            }
            let at = start.0 + (RECORD_HEADER_SIZE + (bytes.as_ptr().addr() - body.as_ptr().addr())) as u64;
            for i in 0..blocks {
                self.blocks.insert(BlockNo(first.0 + i), Lsn(at + i * BLOCK_SIZE as u64));
            }
        }
        Ok(())
    }

    /// Takes out the blocks that a section of a bitmap page frees. What else is wrong with it is found when it is redone.
    fn forget_freed(&mut self, bitmap: PageId, ops: op::Ops<'_>) {
        if self.blocks.is_empty() {
            return;
        }
        for op in ops.flatten() {
            if let Op::Free { start, len } = op {
                let first = BlockNo(bitmap.block().0 + start as u64);
                let freed: Vec<BlockNo> = self
                    .blocks
                    .range(first..BlockNo(first.0 + len as u64))
                    .map(|(block, _)| *block)
                    .collect();
                freed.iter().for_each(|block| {
                    self.blocks.remove(block);
                });
            }
        }
    }

    /// Writes the contents home. The checkpoint that ends recovery syncs them.
    fn write(self, storage: &dyn Storage, place: Place) -> Result<()> {
        let mut blocks = self.blocks.into_iter().peekable();
        let mut bytes = Vec::new();
        while let Some((first, at)) = blocks.next() {
            let mut len = BLOCK_SIZE;
            // As long as both the blocks and their contents in the log go on without a gap.
            let follows = |len: usize, next: &(BlockNo, Lsn)| {
                next.0.0 == first.0 + (len / BLOCK_SIZE) as u64 && next.1.0 == at.0 + len as u64
            };
            while len < CONTENTS_WRITE && blocks.next_if(|next| follows(len, next)).is_some() {
                len += BLOCK_SIZE;
            }
            bytes.resize(len, 0);
            place.read(storage, at, &mut bytes)?;
            storage.write_at(first.offset(), &bytes).map_err(|e| Error::io("writing logged contents", e))?;
        }
        Ok(())
    }
}

/// Why a section could not be redone.
enum Redo {
    /// The record is damaged.
    Record(&'static str),
    /// The page is, or cannot be read or written.
    Page(Error),
}

/// The headers of the doublewrite halves that are whole, each with its half's number, newest first.
fn read_doublewrite(
    storage: &dyn Storage,
    superblock: &Superblock,
) -> Result<Vec<(usize, DoublewriteHeader)>> {
    let mut halves = Vec::new();
    for half in 0..2 {
        let header = superblock
            .read_half(half, |at, bytes| storage.read_at(at, bytes))
            .map_err(|e| Error::io("reading the doublewrite area", e))?;
        let fits = |h: &DoublewriteHeader| h.pages.len() <= superblock.doublewrite_pages as usize;
        halves.extend(header.filter(fits).map(|header| (half, header)));
    }
    halves.sort_by_key(|(_, header)| std::cmp::Reverse(header.sequence));
    Ok(halves)
}

/// Restores torn pages from their copies, newest first, and syncs. Only copies between checkpoint and log's end
/// count: of an older one the place may belong to something else by now.
fn repair(
    storage: &dyn Storage,
    superblock: &Superblock,
    halves: &[(usize, DoublewriteHeader)],
    end: Lsn,
    defects: Defects,
) -> Result<u64> {
    let mut repaired = 0;
    let mut copy: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let mut home: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    for (half, header) in halves {
        for (i, &(id, lsn)) in header.pages.iter().enumerate() {
            let bounded = lsn > superblock.checkpoint && lsn <= end;
            let wanted = bounded || defects.has(Defect::RestoreAnyCopy);
            if !wanted || !superblock.is_data_page(id) && !superblock.is_bitmap_page(id) {
                continue;
            }
            storage
                .read_at(superblock.copy_offset(*half, i), &mut copy[..])
                .map_err(|e| Error::io("reading the doublewrite area", e))?;
            let image = superblock.image();
            if verify_seal(&copy, id, image).is_err() || page_lsn(&copy) != lsn {
                continue;
            }
            // A disk may be unable to read what it was writing when power failed.
            let readable = storage.read_at(id.offset(), &mut home[..]).is_ok();
            if readable && verify_seal(&home, id, image).is_ok() {
                continue;
            }
            storage
                .write_at(id.offset(), &copy[..])
                .map_err(|e| Error::io("restoring a page from the doublewrite area", e))?;
            repaired += 1;
        }
    }
    if repaired > 0 {
        storage.sync().map_err(|e| Error::io("syncing restored pages", e))?;
    }
    Ok(repaired)
}
