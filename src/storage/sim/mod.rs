//! The crash simulator: a storage that knows which writes a power cut could lose, and makes the images that
//! it could leave.
//!
//! Every operation that changes something gets a number, from 0. A *cut at* `k` is a power cut after
//! operation `k` was issued and before it returned: of `k` itself nothing, all, or any part may have happened.
//!
//! There are two ways to cut:
//! - *Live*: [`SimStorage::set_limit`], run the workload until its calls fail, then [`SimStorage::crash`].
//! - *Recorded*, far cheaper for many cuts: [`SimStorage::start_recording`], run the workload once, then walk
//!   over all cuts with [`Recording::cursor`].
//!
//! Both give an [`Image`], from which [`SimStorage::from_image`] makes a storage to recover.
//!
//! What an image contains is decided by a [`Policy`] and a random number generator:
//! 1. Everything durable is there (see the [storage](crate::storage) layer for what that is).
//! 2. Of what is not durable, any part may be there: whole operations, or some of a write's 512-byte sectors,
//!    some of a punch's 4 KiB blocks. What is there was applied in the order of issue.
//! 3. Where a write became durable, no earlier one shows, however late that one might have reached the medium.
//!
//! Threads may call at the same time. An operation in flight at the cut is like any other that is not
//! durable. A sync makes durable what had *completed* when it began. After the cut, calls that were in flight
//! fail too, so nothing is acknowledged after it.

mod disk;
mod policy;
mod recording;

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{Counts, Image, OpKind, Rng, Storage};
use disk::Disk;
pub use policy::Policy;
use recording::Event;
pub use recording::{CutCursor, Recording};

thread_local! {
    static SITE: Cell<&'static str> = const { Cell::new("") };
}

/// Labels the operations that this thread issues with what it is doing ("split", "recovery") until the guard is dropped, then
/// restores the label that was.
#[must_use]
pub fn site_scope(site: &'static str) -> SiteScope {
    SiteScope { outer: SITE.replace(site) }
}

/// The guard of [`site_scope`].
pub struct SiteScope {
    outer: &'static str,
}

impl Drop for SiteScope {
    fn drop(&mut self) {
        SITE.set(self.outer);
    }
}

/// An operation of a simulated storage that changed something or synced. Reads are not among them.
#[derive(Debug)]
pub struct Operation {
    /// Its number.
    pub index: u64,
    /// What was asked for.
    pub kind: OpKind,
    /// Where, in bytes; the new length of a `set_len`.
    pub offset: u64,
    /// How many bytes; 0 for `sync` and `set_len`.
    pub len: u64,
    /// What the thread was doing, as it said with [`site_scope`].
    pub site: &'static str,
    /// What the workload had last said with [`SimStorage::note`] when this was issued.
    pub mark: u64,
    /// What was written.
    data: Arc<[u8]>,
}

/// Called for every operation while it is in flight.
pub type Hook = Arc<dyn Fn(&Operation) + Send + Sync>;

/// A storage in memory that can lose power.
pub struct SimStorage {
    state: Mutex<State>,
    hook: RwLock<Option<Hook>>,
}

struct State {
    /// What reads see.
    live: Image,
    /// What the medium holds, or may hold.
    disk: Disk,
    next_index: u64,
    mark: u64,
    limit: Option<u64>,
    is_cut: bool,
    counts: Counts,
    recording: Option<Recording>,
}

impl SimStorage {
    /// A storage of `len` bytes to which nothing was ever written. `stale` is the seed of the bytes that it
    /// holds nevertheless, as does space added by `set_len`; without one it holds zeros.
    pub fn new(len: u64, stale: Option<u64>) -> Self {
        Self::from_image(Image::new(len, stale))
    }

    /// A storage that holds this image, all of it durable.
    pub fn from_image(image: Image) -> Self {
        Self::from_disk(Disk::new(image), 0)
    }

    /// A storage with this medium, whose next operation has the number `next_index`.
    fn from_disk(disk: Disk, next_index: u64) -> Self {
        let state = State {
            live: disk.crash(&mut Rng::new(0), Policy::Kept),
            disk,
            next_index,
            mark: 0,
            limit: None,
            is_cut: false,
            counts: Counts::default(),
            recording: None,
        };
        SimStorage { state: Mutex::new(state), hook: RwLock::new(None) }
    }

    /// What reads see now: the image that an orderly shutdown would leave.
    pub fn image(&self) -> Image {
        self.state.lock().live.clone()
    }

    /// An image that a power cut could leave now, or could have left when the limit was reached.
    pub fn crash(&self, rng: &mut Rng, policy: Policy) -> Image {
        self.state.lock().disk.crash(rng, policy)
    }

    /// Cuts the power at operation `limit`: it and all later ones fail, and so do those in flight then. Reads
    /// go on. Set it before operation `limit` is issued; `None` sets no limit, but does not undo a cut.
    pub fn set_limit(&self, limit: Option<u64>) {
        self.state.lock().limit = limit;
    }

    /// Whether the limit was reached.
    pub fn is_cut(&self) -> bool {
        self.state.lock().is_cut
    }

    /// The number of operations issued so far, the one at the limit included; also the number of the next.
    pub fn operations(&self) -> u64 {
        self.state.lock().next_index
    }

    /// How many operations are not durable: what a power cut now could lose.
    pub fn pending(&self) -> usize {
        self.state.lock().disk.pending()
    }

    /// Calls and bytes so far, reads included.
    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// Gives the operations from here on this [`Operation::mark`], for example the number of batches that have
    /// been acknowledged: after a cut at operation `k`, all that its mark names must be there.
    pub fn note(&self, mark: u64) {
        self.state.lock().mark = mark;
    }

    /// Calls `hook` for every operation after it was issued and before it completes, with no lock held: to
    /// let other threads run there, or to do something else to this storage meanwhile.
    pub fn set_hook(&self, hook: Option<Hook>) {
        *self.hook.write() = hook;
    }

    /// Records the operations from here on. An unfinished recording is dropped.
    pub fn start_recording(&self) {
        let mut state = self.state.lock();
        state.recording = Some(Recording::new(state.disk.clone(), state.next_index, state.mark));
    }

    /// Ends the recording, if one was started.
    pub fn finish_recording(&self) -> Option<Recording> {
        let mut state = self.state.lock();
        let mut recording = state.recording.take()?;
        recording.finish(state.next_index, state.mark);
        Some(recording)
    }

    /// Does one operation: issue, hook, completion.
    fn operate(&self, kind: OpKind, offset: u64, len: u64, data: Arc<[u8]>) -> io::Result<()> {
        let operation = self.state.lock().issue(kind, offset, len, data)?;
        let hook = self.hook.read().clone();
        if let Some(hook) = hook {
            hook(&operation);
        }
        self.state.lock().complete(operation.index)
    }

    /// Does one operation that not every host can do; whether this one can.
    fn if_allocating(&self, kind: OpKind, offset: u64, len: u64) -> io::Result<bool> {
        if !self.state.lock().live.allocates() {
            return Ok(false);
        }
        self.operate(kind, offset, len, Arc::default()).map(|()| true)
    }
}

impl State {
    fn issue(&mut self, kind: OpKind, offset: u64, len: u64, data: Arc<[u8]>) -> io::Result<Arc<Operation>> {
        if self.is_cut {
            return Err(power_cut());
        }
        self.is_cut = self.limit.is_some_and(|limit| self.next_index >= limit);
        let (index, mark) = (self.next_index, self.mark);
        let operation = Arc::new(Operation { index, kind, offset, len, site: SITE.get(), mark, data });
        // At the cut it is tried on a copy, so that what reaches `disk` can always be done.
        let mut copy = self.is_cut.then(|| self.live.clone());
        let live = copy.as_mut().unwrap_or(&mut self.live);
        match kind {
            OpKind::Write | OpKind::WriteDurable => live.write(offset, &operation.data)?,
            OpKind::SetLen => live.set_len(offset)?,
            OpKind::Punch => live.zero(offset..offset.saturating_add(len)),
            OpKind::Read | OpKind::ReadAhead | OpKind::Sync | OpKind::Allocate => {}
        }
        self.next_index += 1;
        self.counts.add(kind, 1, len);
        self.disk.issue(Arc::clone(&operation));
        self.record(Event::Issued(Arc::clone(&operation)));
        if self.is_cut { Err(power_cut()) } else { Ok(operation) }
    }

    fn complete(&mut self, index: u64) -> io::Result<()> {
        if self.is_cut {
            return Err(power_cut());
        }
        self.disk.complete(index);
        self.record(Event::Completed(index));
        Ok(())
    }

    fn record(&mut self, event: Event) {
        if let Some(recording) = &mut self.recording {
            recording.push(event);
        }
    }
}

impl Storage for SimStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.counts.add(OpKind::Read, 1, buf.len() as u64);
        state.live.read(offset, buf)
    }

    fn skip_hole(&self, offset: u64) -> Option<u64> {
        self.state.lock().live.skip_hole(offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.operate(OpKind::Write, offset, buf.len() as u64, buf.into())
    }

    /// One operation, as it is one system call.
    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        self.write_at(offset, &bufs.concat())
    }

    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.operate(OpKind::WriteDurable, offset, buf.len() as u64, buf.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.operate(OpKind::Sync, 0, 0, Arc::default())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().live.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(OpKind::SetLen, len, 0, Arc::default())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.if_allocating(OpKind::Allocate, offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.if_allocating(OpKind::Punch, offset, len)
    }
}

fn power_cut() -> io::Error {
    io::Error::other("simulated power cut")
}
