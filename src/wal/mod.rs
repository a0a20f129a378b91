//! The log: redo records in a circular area of the image, appended in memory and made durable in groups.
//!
//! The log promises: when [`Log::commit`] returns, every record up to that LSN is durable and will be found by
//! [`scan`]; records become durable in the order of their LSNs, none is skipped. It assumes that a durable write is
//! durable when it returns. It fails for good: after the first failed write or sync every commit returns the same
//! error, and nothing is retried that the kernel may have dropped.
//!
//! Invariants:
//!
//! - **L1** `tail ≤ durable ≤ begin ≤ end`, and `end + reserved ≤ tail + size`: a record never overwrites
//!   one that recovery may need. The tail moves only after both superblocks with that checkpoint are durable.
//! - **L2** Appends are covered by reservations that were made with nothing held; an append never waits for I/O.
//! - **L3** The mutex is never held across I/O. One leader at a time writes; it takes the buffer and leaves one for the next group.
//! - **L4** File data that was written before a record was appended, or taken to be written behind (`contents.rs`), is synced before that
//!   record is written.
//! - **L5** The first record after each group is preceded by a mark that tells how far the log is durable.
//! - **L6** Who waits for a group is never forgotten: a callback that no group has served is waited for by the background writer,
//!   which does not end before it has called all of them; where it does not run, there are none.

mod contents;
pub mod format;
mod scan;

pub use scan::{Scan, scan};

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::defects::{Defect, Defects};
use crate::error::{Error, Result};
use crate::page::Lsn;
use crate::page::superblock::{LOG_OFFSET, Superblock};
use crate::storage::sim::site_scope;
use crate::storage::{AlignedBuf, DIRECT_ALIGN, Storage};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, unlocked};
use contents::Contents;
use format::{Kind, MARK_SIZE, RECORD_HEADER_SIZE, RECORD_SIZE_MAX};

/// The most bytes that are appended or reserved but not yet written.
pub const BUFFER_MAX: u64 = 16 << 20;
/// From so many buffered bytes on, the background writer is woken.
const BUFFER_WRITE: u64 = 1 << 20;
/// How long a leader waits for others that committed a moment ago, at the most.
const GATHER: Duration = Duration::from_micros(100);

/// Groups are written in whole pages of this size, in bytes, past the host's page cache. The circular area begins and ends with one.
const LOG_PAGE: u64 = DIRECT_ALIGN as u64;

/// How long the flusher gives way to a commit, at the most.
const PASS: Duration = Duration::from_micros(500);

/// What is called when everything up to an LSN is durable, or with the error that ended writing.
///
/// It runs in the thread that wrote the group, which may be in the middle of an operation of its own and hold locks of a layer above,
/// or in the caller's: so it must be short, take no lock that is held during a commit, and not use the log.
pub type Callback = Box<dyn FnOnce(Result<()>) + Send>;

struct Waiting {
    lsn: u64,
    call: Callback,
}

/// Where the log lies, and in which image.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The image's identity.
    pub image: u64,
    /// Offset of the circular area, in bytes.
    pub offset: u64,
    /// Its size, in bytes.
    pub size: u64,
}

impl Place {
    /// The log of an image with this superblock.
    pub fn of(superblock: &Superblock) -> Place {
        Place { image: superblock.image(), offset: LOG_OFFSET, size: superblock.log_size }
    }

    /// Splits a row of bytes at `at` into the one or two pieces in which it lies in the file.
    fn split(self, at: Lsn, len: usize) -> (u64, usize) {
        let within = at.0 % self.size;
        (self.offset + within, len.min((self.size - within) as usize))
    }

    /// Reads log bytes.
    pub fn read(self, storage: &dyn Storage, at: Lsn, bytes: &mut [u8]) -> Result<()> {
        let (offset, first) = self.split(at, bytes.len());
        let (a, b) = bytes.split_at_mut(first);
        let read = storage
            .read_at(offset, a)
            .and_then(|()| if b.is_empty() { Ok(()) } else { storage.read_at(self.offset, b) });
        read.map_err(|e| Error::io("reading the log", e))
    }

    fn write_durable(self, storage: &dyn Storage, at: Lsn, bytes: &[u8]) -> std::io::Result<()> {
        let (offset, first) = self.split(at, bytes.len());
        let (a, b) = bytes.split_at(first);
        storage.write_durable_at(offset, a)?;
        if b.is_empty() { Ok(()) } else { storage.write_durable_at(self.offset, b) }
    }
}

/// Bytes of file data that may be logged between two commits that somebody asked for. Who commits small writes one by one waits
/// for one write of the log each; who streams them without commits does not have them written twice.
const DATA_ALLOWANCE: u64 = 512 << 10;

/// Why a reservation was not granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// The circular area is full: a checkpoint is needed.
    Space,
    /// Too much is buffered: a write of the log is needed.
    Buffer,
}

struct State {
    /// The bytes up to `end` that have not been handed to a leader, and before them those of the page in which the last group ended.
    buffer: AlignedBuf,
    /// A buffer with capacity, for the next leader to leave behind.
    spare: AlignedBuf,
    /// Where the next group begins.
    begin: u64,
    end: u64,
    reserved: u64,
    tail: u64,
    /// What the newest mark says.
    marked: u64,
    /// A leader is at work.
    leading: bool,
    /// Threads and callbacks that wait for a group that has not begun.
    committers: usize,
    /// How many committers the leader waits for before it writes.
    expected: usize,
    /// Callbacks for groups that are not durable yet (L6).
    waiting: Vec<Waiting>,
    /// The background writer runs.
    has_writer: bool,
}

impl State {
    /// Bytes for the next group.
    fn pending(&self) -> u64 {
        self.end - self.begin
    }
}

/// Counters of the log.
#[derive(Default, Debug)]
pub struct LogStats {
    /// Durable writes of groups.
    pub groups: AtomicU64,
    /// Calls of commit that had to wait for a group.
    pub commits: AtomicU64,
    /// Transactions appended.
    pub records: AtomicU64,
}

/// The log of an open image.
pub struct Log {
    storage: Arc<dyn Storage>,
    place: Place,
    incarnation: u32,
    state: Mutex<State>,
    end: AtomicU64,
    durable: AtomicU64,
    tail: AtomicU64,
    /// Durable moved, the leader left, or the log failed.
    moved: Condvar,
    /// Enough committers have come for the leader.
    gathered: Condvar,
    /// The background writer has work.
    kick: Condvar,
    stopping: AtomicBool,
    /// File data that was written behind, or not synced yet.
    contents: Contents,
    /// Bytes of file data logged since the last commit that somebody asked for.
    data_logged: AtomicU64,
    failed: OnceLock<Error>,
    defects: Defects,
    /// Counters.
    pub stats: LogStats,
}

impl Log {
    /// A log that continues at `end`. What lies before it, in the same page, is overwritten by the first group: both superblocks must tell
    /// of a checkpoint at `end` by then.
    pub fn new(
        storage: Arc<dyn Storage>,
        place: Place,
        incarnation: u32,
        end: Lsn,
        defects: Defects,
    ) -> Self {
        let state = State {
            buffer: AlignedBuf::zeroed((end.0 % LOG_PAGE) as usize),
            spare: AlignedBuf::new(),
            begin: end.0,
            end: end.0,
            reserved: 0,
            tail: end.0,
            marked: end.0,
            leading: false,
            committers: 0,
            expected: 1,
            waiting: Vec::new(),
            has_writer: false,
        };
        Log {
            storage,
            place,
            incarnation,
            state: Mutex::new(state),
            end: AtomicU64::new(end.0),
            durable: AtomicU64::new(end.0),
            tail: AtomicU64::new(end.0),
            moved: Condvar::new(),
            gathered: Condvar::new(),
            kick: Condvar::new(),
            stopping: AtomicBool::new(false),
            contents: Contents::default(),
            data_logged: AtomicU64::new(0),
            failed: OnceLock::new(),
            defects,
            stats: LogStats::default(),
        }
    }

    /// The end of the last record appended.
    pub fn end(&self) -> Lsn {
        Lsn(self.end.load(Ordering::SeqCst))
    }
    /// Everything before this is durable.
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::SeqCst))
    }
    /// The size of the circular area, in bytes.
    pub fn size(&self) -> u64 {
        self.place.size
    }
    /// Bytes between the tail and the end: what recovery would have to read.
    pub fn used(&self) -> u64 {
        let tail = self.tail.load(Ordering::Relaxed);
        self.end.load(Ordering::Relaxed).saturating_sub(tail)
    }
    /// The largest reservation that can ever be granted, in bytes: no record is longer than a scan takes.
    pub fn reservation_max(&self) -> u64 {
        (self.place.size / 4).min(BUFFER_MAX / 2).min(RECORD_SIZE_MAX as u64)
    }

    /// The error that ended writing, if one did.
    pub fn failure(&self) -> Option<&Error> {
        self.failed.get()
    }
    /// `Err` once writing has ended.
    pub fn check(&self) -> Result<()> {
        self.failed.get().map_or(Ok(()), |e| Err(e.clone()))
    }
    /// Ends all writing: every later commit returns this error, or the one that came first.
    pub fn fail(&self, error: Error) -> Error {
        let first = self.failed.get_or_init(|| {
            log::error!("writing to the image failed, it is read-only from now on: {error}");
            error
        });
        let _state = self.state.lock();
        self.moved.notify_all();
        self.gathered.notify_all();
        // It calls those who wait.
        self.kick.notify_all();
        first.clone()
    }

    /// Sets bytes of the circular area and of the buffer aside. The caller holds no latch and no epoch.
    /// Every record needs its body, a header, and room for a mark: [`Log::record_size`].
    pub fn try_reserve(&self, bytes: u64) -> std::result::Result<(), Shortage> {
        let mut state = self.state.lock();
        if state.end + state.reserved + bytes > state.tail + self.place.size {
            return Err(Shortage::Space);
        }
        if state.end - self.durable.load(Ordering::SeqCst) + state.reserved + bytes > BUFFER_MAX {
            return Err(Shortage::Buffer);
        }
        state.reserved += bytes;
        Ok(())
    }

    /// Gives back what was reserved and not used.
    pub fn unreserve(&self, bytes: u64) {
        self.state.lock().reserved -= bytes;
    }

    /// What a record with such a body may take of a reservation.
    pub fn record_size(body: usize) -> u64 {
        (RECORD_HEADER_SIZE + body + MARK_SIZE) as u64
    }

    /// Appends a transaction and returns its end LSN. `reserved` is the caller's reservation, which pays for it.
    /// Latches may be held: this never waits for I/O.
    pub fn append(&self, body: &[u8], reserved: &mut u64) -> Lsn {
        let hasher = format::hash_body(body);
        let mut state = self.state.lock();
        let before = state.end;
        let durable = self.durable.load(Ordering::SeqCst);
        if durable > state.marked {
            state.marked = durable;
            let mark = durable.to_be_bytes();
            self.push(&mut state, format::hash_body(&mark), &mark, Kind::Mark);
        }
        self.push(&mut state, hasher, body, Kind::Transaction);
        let used = state.end - before;
        assert!(used <= *reserved, "log record of {used} bytes exceeds its reservation of {reserved}");
        *reserved -= used;
        state.reserved -= used;
        let end = state.end;
        self.end.store(end, Ordering::SeqCst);
        self.stats.records.fetch_add(1, Ordering::Relaxed);
        if state.pending() >= BUFFER_WRITE && !state.leading {
            self.kick.notify_one();
        }
        Lsn(end)
    }

    fn push(&self, state: &mut State, hasher: crc32fast::Hasher, body: &[u8], kind: Kind) {
        let owner = (self.place.image, self.incarnation);
        let header = format::encode_header(hasher, body.len(), Lsn(state.end), owner, kind);
        state.buffer.extend_from_slice(&header);
        state.buffer.extend_from_slice(body);
        state.end += (RECORD_HEADER_SIZE + body.len()) as u64;
    }

    /// Whether so many bytes of file data may be logged: not more than `DATA_ALLOWANCE` between two commits that were asked for.
    pub fn take_data_allowance(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        self.data_logged.fetch_add(bytes, Ordering::Relaxed) + bytes <= DATA_ALLOWANCE
    }

    /// Waits until everything before `lsn` is durable. The caller holds no latch and no epoch.
    pub fn commit(&self, lsn: Lsn) -> Result<()> {
        self.data_logged.store(0, Ordering::Relaxed);
        self.make_durable(lsn, true)
    }

    /// The same for the flusher, which is no committer that comes back at once: it neither waits for others to join its group, nor
    /// do later leaders wait for it.
    pub fn commit_aside(&self, lsn: Lsn) -> Result<()> {
        self.make_durable(lsn, false)
    }

    fn make_durable(&self, lsn: Lsn, counted: bool) -> Result<()> {
        if self.durable() >= lsn {
            return self.check();
        }
        if self.defects.has(Defect::AcknowledgeBeforeSync) {
            return Ok(());
        }
        // An LSN beyond the end, perhaps of an earlier life of the image, stands for all there is.
        let lsn = lsn.min(self.end());
        let mut state = self.state.lock();
        if counted {
            self.stats.commits.fetch_add(1, Ordering::Relaxed);
            self.count_in(&mut state);
        }
        loop {
            if let Some(error) = self.failed.get() {
                return Err(error.clone());
            }
            if self.durable() >= lsn {
                return Ok(());
            }
            if state.leading {
                self.moved.wait(&mut state);
            } else if counted {
                self.lead(&mut state);
            } else {
                self.lead_aside(&mut state);
            }
        }
    }

    /// Calls back once everything before `lsn` is durable, or has failed to become so; at once and in this thread if it is
    /// already, or if no background writer runs (which then waits for the disk). Otherwise the caller waits for nothing:
    /// whoever writes the group calls. Except that a caller who `may_lead` writes the group himself if he commits alone, as the
    /// one before him did: this spares waking another thread. The caller holds no latch and no epoch.
    pub fn commit_then(&self, lsn: Lsn, may_lead: bool, call: Callback) {
        self.data_logged.store(0, Ordering::Relaxed);
        let lsn = lsn.min(self.end());
        if self.durable() < lsn && !self.defects.has(Defect::AcknowledgeBeforeSync) {
            let mut state = self.state.lock();
            if state.has_writer && self.durable() < lsn && self.failed.get().is_none() {
                self.stats.commits.fetch_add(1, Ordering::Relaxed);
                state.waiting.push(Waiting { lsn: lsn.0, call });
                self.count_in(&mut state);
                let alone = state.committers == 1 && state.expected <= 1;
                match state.leading {
                    true => {}
                    false if may_lead && alone => self.lead(&mut state),
                    false => _ = self.kick.notify_one(),
                }
                return;
            }
        }
        call(self.commit(lsn));
    }

    /// One more waits for the next group.
    fn count_in(&self, state: &mut State) {
        state.committers += 1;
        if state.committers >= state.expected {
            self.gathered.notify_one();
        }
    }

    /// Calls those back whose records are durable, or all if writing has ended; the writer is to see to the others.
    /// On entry and exit the state is locked; not in between.
    fn serve<'a>(&'a self, state: &mut MutexGuard<'a, State>) {
        let (result, durable) = (self.check(), self.durable().0);
        let served = |w: &mut Waiting| result.is_err() || w.lsn <= durable;
        let served: Vec<Waiting> = state.waiting.extract_if(.., served).collect();
        if !state.waiting.is_empty() {
            self.kick.notify_one();
        }
        if !served.is_empty() {
            unlocked(state, &self.state, || served.into_iter().for_each(|w| (w.call)(result.clone())));
        }
    }

    /// Writes everything appended so far as one group, and calls back who waits for it. On entry and exit the state is locked; not in between.
    fn lead<'a>(&'a self, state: &mut MutexGuard<'a, State>) {
        state.leading = true;
        if state.committers < state.expected {
            let deadline = std::time::Instant::now() + GATHER;
            while state.committers < state.expected && self.failed.get().is_none() {
                if self.gathered.wait_until(state, deadline).timed_out() {
                    break;
                }
            }
        }
        let (end, start) = (state.end, state.begin - state.begin % LOG_PAGE);
        // The next group begins with the page in which this one ends.
        let mut next = std::mem::take(&mut state.spare);
        next.clear();
        next.extend_from_slice(&state.buffer[(end - end % LOG_PAGE - start) as usize..]);
        let mut bytes = std::mem::replace(&mut state.buffer, next);
        state.begin = end;
        // Whole pages go past the page cache; where they do not, they need not be read from the disk before they are written. Nothing
        // is needed of what zeros are written over: it is free (L1), and the log's next bytes.
        let filled = end.next_multiple_of(LOG_PAGE);
        // (A defect that is planted goes without: zeros hide it nearly always.)
        if filled <= state.tail + self.place.size && !self.defects.has(Defect::SameIncarnation) {
            bytes.resize((filled - start) as usize);
        }
        let served = std::mem::take(&mut state.committers);
        let written = unlocked(state, &self.state, || self.write_group(Lsn(start), &bytes));
        match written {
            Ok(()) => {
                self.durable.store(end, Ordering::SeqCst);
                // Those served now will be back in a moment if they commit in a loop; the others wait already.
                state.expected = served + state.committers;
                state.spare = bytes;
            }
            Err(error) => {
                self.failed.get_or_init(|| {
                    log::error!("writing the log failed, the image is read-only from now on: {error}");
                    Error::io("writing the log", error)
                });
            }
        }
        state.leading = false;
        self.moved.notify_all();
        self.serve(state);
    }

    /// Leads for somebody who is not a committer: neither waits for others nor is waited for.
    fn lead_aside<'a>(&'a self, state: &mut MutexGuard<'a, State>) {
        let expected = std::mem::replace(&mut state.expected, 0);
        self.lead(state);
        state.expected = state.expected.max(expected);
    }

    fn write_group(&self, start: Lsn, bytes: &[u8]) -> std::io::Result<()> {
        self.sync_contents()?;
        self.stats.groups.fetch_add(1, Ordering::Relaxed);
        let _site = site_scope("log");
        self.place.write_durable(&*self.storage, start, bytes)
    }

    /// Waits until the group that is being written, if there is one, is durable, but not for long: for the flusher, whose
    /// writes would compete with it for the disk. Returns whether there was one.
    pub fn let_commit_pass(&self) -> bool {
        let mut state = self.state.lock();
        let passes = state.leading;
        if passes {
            self.moved.wait_for(&mut state, PASS);
        }
        passes
    }

    /// The oldest record that recovery needs is now the one at `tail`; the superblock that says so is durable.
    pub fn set_tail(&self, tail: Lsn) {
        let mut state = self.state.lock();
        debug_assert!(tail.0 >= state.tail && tail.0 <= state.end);
        state.tail = tail.0;
        self.tail.store(tail.0, Ordering::Relaxed);
    }

    /// The background writer: writes the log for callbacks, when much is buffered, and every `interval`. Returns after
    /// [`Log::stop`], or when writing has ended, and when all callbacks have been called (L6).
    pub fn run_writer(&self, interval: Duration) {
        let mut state = self.state.lock();
        state.has_writer = true;
        while self.failed.get().is_none() {
            if state.waiting.is_empty() {
                if self.stopping.load(Ordering::SeqCst) {
                    break;
                }
                if state.pending() < BUFFER_WRITE {
                    let timed_out = self.kick.wait_for(&mut state, interval).timed_out();
                    if !timed_out && state.pending() < BUFFER_WRITE {
                        continue;
                    }
                }
            }
            if state.leading {
                self.moved.wait(&mut state);
            } else if !state.waiting.is_empty() {
                self.lead(&mut state);
            } else if state.pending() > 0 {
                self.lead_aside(&mut state);
            } else if self.mark_end(&mut state) {
                self.lead(&mut state);
            }
        }
        state.has_writer = false;
        self.serve(&mut state);
    }

    /// Appends a mark behind the last group if nobody has appended anything behind it: without one, damage to that group would be
    /// taken for the log's end. A mark needs none itself, nor does what a checkpoint has passed.
    fn mark_end(&self, state: &mut State) -> bool {
        let durable = self.durable.load(Ordering::SeqCst);
        let room = state.end + state.reserved + MARK_SIZE as u64 <= state.tail + self.place.size;
        if durable <= state.marked + MARK_SIZE as u64 || durable <= state.tail || !room {
            return false;
        }
        state.marked = durable;
        let mark = durable.to_be_bytes();
        self.push(state, format::hash_body(&mark), &mark, Kind::Mark);
        self.end.store(state.end, Ordering::SeqCst);
        true
    }

    /// Ends the background writer.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let state = self.state.lock();
        self.kick.notify_all();
        self.moved.notify_all();
        drop(state);
        self.stop_contents_writer();
    }
}

#[cfg(test)]
mod tests;
