//! Frames: the memory that holds pages, with a latch, a pin count and the dirty mark for each.
//!
//! All `unsafe` of the pool is here. Its argument, **F1**: a frame's bytes are read only under its latch (shared or
//! exclusive) and written only under the exclusive latch; the guards below are the only way to the bytes, and each
//! gives its latch up exactly once, when it is dropped. A shared latch is the frame's ordinary one, or an announcement (R1).
//!
//! - **F2** A frame's page number changes only under its exclusive latch and the page table's stripe mutex.
//! - **F3** Pins are taken only under a latch. Whoever holds the exclusive latch and sees no pin can evict.
//! - **F4** `rec_lsn` is 0 in a clean frame, otherwise at most the LSN of the first record that changed the page since its
//!   last copy to disk. It is set under the exclusive latch, *before* the record is appended, and taken by the
//!   flusher under a latch.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::order;
use super::readers::{Announcement, Readers};
use crate::page::{Lsn, PAGE_SIZE, PageBytes, PageId};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, RawLatch};

/// The index of a frame.
pub type FrameNo = u32;

/// How often the clock passes over a page that is used all the time.
const USAGE_MAX: u32 = 3;

/// Cache lines of a page that a search is likely to touch: header, fences, and the slots of about 80 records.
const PREFETCH_LINES: usize = 12;

/// What is known of a frame apart from its bytes. One cache line.
#[repr(align(64))]
pub struct Frame {
    /// Guards the bytes, together with `closed` (F1).
    pub latch: RawLatch,
    /// Whether readers must use `latch`: it is held exclusively.
    closed: AtomicBool,
    /// The page in the frame, or 0.
    pub page: AtomicU64,
    /// F4.
    pub rec_lsn: AtomicU64,
    /// The next frame of the page table's chain, plus 1.
    pub next: AtomicU32,
    /// Who keeps the page here without holding its latch (F3).
    pub pins: AtomicU32,
    /// How many more times the clock passes over the page.
    pub usage: AtomicU32,
    /// A copy of the page is on its way to the disk.
    pub writing: AtomicBool,
    /// The page was born since it was last written: its first write needs no doublewrite copy.
    pub newborn: AtomicBool,
    /// The page was read ahead; a scan that comes to it is to have more read ahead.
    pub milestone: AtomicBool,
}

impl Frame {
    fn new() -> Self {
        Frame {
            latch: RawLatch::new(),
            closed: AtomicBool::new(false),
            page: AtomicU64::new(0),
            rec_lsn: AtomicU64::new(0),
            next: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            usage: AtomicU32::new(0),
            writing: AtomicBool::new(false),
            newborn: AtomicBool::new(false),
            milestone: AtomicBool::new(false),
        }
    }

    /// Gives the exclusive latch up.
    ///
    /// # Safety
    /// The caller holds it.
    unsafe fn open(&self) {
        self.closed.store(false, Ordering::Release);
        // SAFETY: passed on to the caller.
        unsafe { self.latch.unlock_exclusive() }
    }

    /// The page in the frame, or [`PageId::NONE`].
    pub fn page(&self) -> PageId {
        PageId(self.page.load(Ordering::Acquire))
    }

    /// Whether the page has changes that no copy on its way to disk has.
    pub fn is_dirty(&self) -> bool {
        self.rec_lsn.load(Ordering::SeqCst) != 0
    }

    /// Notes that the page was used; written only while it changes something.
    pub fn touch(&self) {
        let usage = self.usage.load(Ordering::Relaxed);
        if usage < USAGE_MAX {
            self.usage.store(usage + 1, Ordering::Relaxed);
        }
    }

    /// Whether the frame's page could be dropped: clean, not on its way to disk, pinned by nobody.
    pub fn is_evictable(&self) -> bool {
        !self.is_dirty() && !self.writing.load(Ordering::SeqCst) && self.pins.load(Ordering::SeqCst) == 0
    }
}

/// Frames whose memory is taken from the system in one call: a huge page.
pub const POPULATE: FrameNo = (2 << 20) / PAGE_SIZE as FrameNo;

/// Memory for pages, aligned for direct I/O, in huge pages where the system gives them.
pub struct PageMemory {
    start: NonNull<u8>,
    pages: usize,
}

// SAFETY: the memory belongs to this value alone; access is governed by F1 (or by `&mut` in `pages_mut`).
unsafe impl Send for PageMemory {}
// SAFETY: as above.
unsafe impl Sync for PageMemory {}

impl PageMemory {
    /// Zeroed memory, taken from the system when it is first touched.
    pub fn new(pages: usize) -> std::io::Result<Self> {
        let len = pages * PAGE_SIZE;
        // SAFETY: an anonymous private mapping at an address that the kernel chooses touches no memory of ours.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        if len >= 4 << 20 {
            // SAFETY: advice about the mapping just made; a failure changes nothing.
            unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(PageMemory { start, pages }),
            None => Err(std::io::Error::other("mapping at address 0")),
        }
    }

    fn at(&self, i: usize) -> *mut PageBytes {
        assert!(i < self.pages);
        // SAFETY: the offset lies inside the mapping.
        unsafe { self.start.as_ptr().add(i * PAGE_SIZE).cast() }
    }

    /// Takes the memory of some pages from the system before it is touched. A hint; waits for the system.
    fn populate(&self, first: usize, pages: usize) {
        let pages = pages.min(self.pages.saturating_sub(first));
        if pages > 0 {
            // SAFETY: the range lies inside the mapping, and what it holds stays as it is; a failure changes nothing.
            unsafe { libc::madvise(self.at(first).cast(), pages * PAGE_SIZE, libc::MADV_POPULATE_WRITE) };
        }
    }

    /// All pages, for an owner who shares the memory with nobody.
    pub fn pages_mut(&mut self) -> &mut [PageBytes] {
        // SAFETY: `&mut self` excludes every other access; the mapping is that long and initialised (zeros).
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.pages) }
    }
}

impl Drop for PageMemory {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no reference outlives the value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.pages * PAGE_SIZE) };
    }
}

/// All frames of a pool.
pub struct Frames {
    memory: PageMemory,
    headers: Box<[Frame]>,
    readers: Readers,
}

impl Frames {
    /// `count` empty frames.
    pub fn new(count: usize) -> std::io::Result<Self> {
        let headers = (0..count).map(|_| Frame::new()).collect();
        Ok(Frames { memory: PageMemory::new(count)?, headers, readers: Readers::default() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.headers.len()
    }

    /// What is known of a frame.
    #[inline]
    pub fn header(&self, frame: FrameNo) -> &Frame {
        &self.headers[frame as usize]
    }

    /// All frames.
    pub fn headers(&self) -> &[Frame] {
        &self.headers
    }

    /// Takes the memory of a row of frames from the system, before one of them is used for the first time. A hint.
    pub fn populate(&self, first: FrameNo) {
        self.memory.populate(first as usize, POPULATE as usize);
    }

    /// Whether a frame has memory of its own.
    #[cfg(test)]
    pub fn has_memory(&self, frame: FrameNo) -> bool {
        let mut present = [0u8; PAGE_SIZE / 4096];
        // SAFETY: the frame lies inside the mapping, and `present` has a byte for each of its pages, of 4 KiB or more.
        let asked = unsafe { libc::mincore(self.bytes(frame).cast(), PAGE_SIZE, present.as_mut_ptr()) };
        asked == 0 && present.iter().all(|page| page & 1 == 1)
    }

    fn bytes(&self, frame: FrameNo) -> *mut PageBytes {
        self.memory.at(frame as usize)
    }

    /// Asks the processor for a page's header and first slots, so that the misses of a search overlap. A hint.
    #[inline]
    pub fn prefetch(&self, frame: FrameNo) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let page = self.bytes(frame).cast::<i8>();
            for line in 0..PREFETCH_LINES {
                // SAFETY: a prefetch reads nothing that the program can see, and the address lies inside the page.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(page.add(line * 64)) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = frame;
    }

    /// Latches a frame shared, waiting if need be; returns whether it had to wait.
    #[inline]
    pub fn latch_shared(&self, frame: FrameNo) -> (PageRead<'_>, bool) {
        let header = self.header(frame);
        if let Some(announced) = self.readers.announce(frame) {
            if !header.closed.load(Ordering::SeqCst) {
                return (self.granted_shared(frame, Some(announced)), false);
            }
            announced.withdraw();
        }
        let waited = !header.latch.try_lock_shared();
        if waited {
            header.latch.lock_shared();
        }
        (self.granted_shared(frame, None), waited)
    }

    #[inline]
    fn granted_shared<'p>(&'p self, frame: FrameNo, announced: Option<&'p Announcement>) -> PageRead<'p> {
        let guard = PageRead { frames: self, frame, announced };
        order::acquired(self.bytes(frame) as usize, &guard, true);
        guard
    }

    /// Latches a frame exclusively, waiting if need be; returns whether it had to wait.
    pub fn latch_exclusive(&self, frame: FrameNo) -> (PageWrite<'_>, bool) {
        let header = self.header(frame);
        let mut waited = !header.latch.try_lock_exclusive();
        if waited {
            header.latch.lock_exclusive();
        }
        header.closed.store(true, Ordering::SeqCst);
        waited |= self.readers.wait(frame);
        let guard = PageWrite { frames: self, frame };
        order::acquired(self.bytes(frame) as usize, &guard, true);
        (guard, waited)
    }

    /// Latches a frame exclusively if nobody holds it.
    pub fn try_latch_exclusive(&self, frame: FrameNo) -> Option<PageWrite<'_>> {
        let header = self.header(frame);
        if !header.latch.try_lock_exclusive() {
            return None;
        }
        header.closed.store(true, Ordering::SeqCst);
        if self.readers.has(frame) {
            // SAFETY: taken above, and no guard was made.
            unsafe { header.open() };
            return None;
        }
        let guard = PageWrite { frames: self, frame };
        order::acquired(self.bytes(frame) as usize, &guard, false);
        Some(guard)
    }
}

/// Frames that hold no page. Once all have been used, asking for one is a single load: misses do not meet at a mutex.
pub struct FreeFrames {
    list: Mutex<Vec<FrameNo>>,
    count: AtomicUsize,
}

impl FreeFrames {
    /// All frames of a new pool.
    pub fn all(count: usize) -> Self {
        FreeFrames { list: Mutex::new((0..count as FrameNo).rev().collect()), count: AtomicUsize::new(count) }
    }

    /// Takes one.
    pub fn pop(&self) -> Option<FrameNo> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut list = self.list.lock();
        let frame = list.pop();
        self.count.store(list.len(), Ordering::Release);
        frame
    }

    /// Gives some back.
    pub fn extend(&self, frames: impl IntoIterator<Item = FrameNo>) {
        let mut list = self.list.lock();
        list.extend(frames);
        self.count.store(list.len(), Ordering::Release);
    }

    /// Gives one back.
    pub fn push(&self, frame: FrameNo) {
        self.extend([frame]);
    }
}

/// A page under its shared latch.
pub struct PageRead<'p> {
    frames: &'p Frames,
    frame: FrameNo,
    /// Where the reader is announced, if it does not hold the frame's ordinary latch.
    announced: Option<&'p Announcement>,
}

/// A page under its exclusive latch.
pub struct PageWrite<'p> {
    frames: &'p Frames,
    frame: FrameNo,
}

/// A page that stays in its frame. Does not give access to it.
pub struct Pin<'p> {
    frames: &'p Frames,
    frame: FrameNo,
}

impl<'p> PageRead<'p> {
    /// The latch-order checker forgets that this latch is held: for descents that couple latches downwards.
    pub fn leave_order(&self) {
        order::released(self.frames.bytes(self.frame) as usize);
    }
    /// Keeps the page in its frame beyond this guard.
    pub fn pin(&self) -> Pin<'p> {
        Pin::new(self.frames, self.frame)
    }
    /// What is known of the frame.
    pub fn header(&self) -> &'p Frame {
        self.frames.header(self.frame)
    }
}

impl<'p> PageWrite<'p> {
    /// Keeps the page in its frame beyond this guard.
    pub fn pin(&self) -> Pin<'p> {
        Pin::new(self.frames, self.frame)
    }
    /// What is known of the frame.
    pub fn header(&self) -> &'p Frame {
        self.frames.header(self.frame)
    }
    /// The frame's index.
    pub fn frame(&self) -> FrameNo {
        self.frame
    }
    /// The page got new contents: for the latch-order checker.
    pub fn note_change(&self) {
        order::changed(self.frames.bytes(self.frame) as usize, self);
    }
    /// Keeps the page latched, but shared.
    pub fn downgrade(self) -> PageRead<'p> {
        let (frames, frame) = (self.frames, self.frame);
        std::mem::forget(self);
        let header = frames.header(frame);
        header.closed.store(false, Ordering::Release);
        // SAFETY: the guard held the exclusive latch and was forgotten; the new guard holds the shared one.
        unsafe { header.latch.downgrade() };
        PageRead { frames, frame, announced: None }
    }
    /// Enters the frame in the dirty table (F4); whether it was clean.
    pub fn mark_dirty(&mut self, log_end: Lsn) -> bool {
        let rec_lsn = &self.header().rec_lsn;
        let clean = rec_lsn.load(Ordering::SeqCst) == 0;
        if clean {
            rec_lsn.store(log_end.0, Ordering::SeqCst);
        }
        clean
    }
}

impl<'p> Pin<'p> {
    fn new(frames: &'p Frames, frame: FrameNo) -> Self {
        frames.header(frame).pins.fetch_add(1, Ordering::SeqCst);
        Pin { frames, frame }
    }
    /// Latches the page exclusively; returns whether it had to wait.
    pub fn latch_exclusive(&self) -> (PageWrite<'p>, bool) {
        self.frames.latch_exclusive(self.frame)
    }
    /// Latches the page shared.
    pub fn latch_shared(&self) -> PageRead<'p> {
        self.frames.latch_shared(self.frame).0
    }
    /// The pinned page's number, which cannot change.
    pub fn page(&self) -> PageId {
        self.frames.header(self.frame).page()
    }
}

impl Drop for PageRead<'_> {
    #[inline]
    fn drop(&mut self) {
        order::released(self.frames.bytes(self.frame) as usize);
        match self.announced {
            Some(announced) => announced.withdraw(),
            // SAFETY: the guard holds the frame's ordinary latch, shared (F1).
            None => unsafe { self.frames.header(self.frame).latch.unlock_shared() },
        }
    }
}

impl Drop for PageWrite<'_> {
    fn drop(&mut self) {
        order::released(self.frames.bytes(self.frame) as usize);
        // SAFETY: the guard holds the exclusive latch (F1).
        unsafe { self.frames.header(self.frame).open() }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.frames.header(self.frame).pins.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Deref for PageRead<'_> {
    type Target = PageBytes;
    #[inline]
    fn deref(&self) -> &PageBytes {
        // SAFETY: the shared latch is held, so nobody writes (F1).
        unsafe { &*self.frames.bytes(self.frame) }
    }
}

impl Deref for PageWrite<'_> {
    type Target = PageBytes;
    fn deref(&self) -> &PageBytes {
        // SAFETY: the exclusive latch is held; `&self` excludes `deref_mut` (F1).
        unsafe { &*self.frames.bytes(self.frame) }
    }
}

impl DerefMut for PageWrite<'_> {
    fn deref_mut(&mut self) -> &mut PageBytes {
        // SAFETY: the exclusive latch is held, and `&mut self` makes this the only reference (F1).
        unsafe { &mut *self.frames.bytes(self.frame) }
    }
}
