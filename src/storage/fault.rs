//! A storage that counts what another one is asked to do, tells of it, and fails a chosen operation.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Counts, OpKind, Storage, total_len};

/// Which operation is to fail, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    kinds: Vec<OpKind>,
    nth: u64,
    forever: bool,
    partial: bool,
    errno: i32,
}

impl Fault {
    /// The `nth` operation of these kinds, counted from 0 since the fault was armed, fails with EIO and
    /// without effect. Those after it succeed.
    pub fn nth(kinds: &[OpKind], nth: u64) -> Self {
        Fault { kinds: kinds.to_vec(), nth, forever: false, partial: false, errno: libc::EIO }
    }

    /// From the `nth` on, all operations of these kinds fail.
    pub fn forever(self) -> Self {
        Fault { forever: true, ..self }
    }

    /// A write that fails has already written the first half of its bytes.
    pub fn partial(self) -> Self {
        Fault { partial: true, ..self }
    }

    /// The error to return, instead of EIO.
    pub fn errno(self, errno: i32) -> Self {
        Fault { errno, ..self }
    }
}

struct Armed {
    fault: Fault,
    seen: u64,
    fired: u64,
}

/// Told of each operation before it is done, by the thread that does it: kind, offset (of `set_len`: the new
/// length) and bytes.
type Observer = Box<dyn Fn(OpKind, u64, u64) + Send + Sync>;

/// Counts the operations of `S`, tells an observer, and fails one of them if a [`Fault`] is armed.
pub struct FaultStorage<S> {
    inner: S,
    observer: Option<Observer>,
    calls: [AtomicU64; OpKind::ALL.len()],
    bytes: [AtomicU64; OpKind::ALL.len()],
    /// Whether to look at `armed` at all, so that counting alone takes no lock.
    is_armed: AtomicBool,
    armed: Mutex<Option<Armed>>,
}

/// What to do about an operation that is to fail.
struct Failure {
    partial: bool,
    error: io::Error,
}

impl<S: Storage> FaultStorage<S> {
    /// Passes everything on to `inner` until a fault is armed.
    pub fn new(inner: S) -> Self {
        FaultStorage {
            inner,
            observer: None,
            calls: Default::default(),
            bytes: Default::default(),
            is_armed: AtomicBool::new(false),
            armed: Mutex::new(None),
        }
    }

    /// Like [`FaultStorage::new`]; `observer` is told the kind, offset and bytes of each operation before it is done, by the
    /// thread that does it. It may take its time.
    pub fn observed(inner: S, observer: impl Fn(OpKind, u64, u64) + Send + Sync + 'static) -> Self {
        FaultStorage { observer: Some(Box::new(observer)), ..FaultStorage::new(inner) }
    }

    /// The storage that does the work.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// What was asked for since the beginning; take the difference of two with [`Counts::since`].
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for kind in OpKind::ALL {
            let [calls, bytes] =
                [&self.calls, &self.bytes].map(|of| of[kind as usize].load(Ordering::Relaxed));
            counts.add(kind, calls, bytes);
        }
        counts
    }

    /// Arms this fault in place of any other, and counts its operations from here.
    pub fn arm(&self, fault: Fault) {
        *self.armed.lock() = Some(Armed { fault, seen: 0, fired: 0 });
        self.is_armed.store(true, Ordering::Release);
    }

    /// Lets everything succeed again. Returns how many operations the fault has failed.
    pub fn disarm(&self) -> u64 {
        self.is_armed.store(false, Ordering::Release);
        self.armed.lock().take().map_or(0, |armed| armed.fired)
    }

    /// How many operations the armed fault has failed so far.
    pub fn fired(&self) -> u64 {
        self.armed.lock().as_ref().map_or(0, |armed| armed.fired)
    }

    /// Counts an operation.
    fn count(&self, kind: OpKind, offset: u64, bytes: u64) {
        if let Some(observer) = &self.observer {
            observer(kind, offset, bytes);
        }
        self.calls[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.bytes[kind as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts an operation, and decides whether it fails.
    fn begin(&self, kind: OpKind, offset: u64, bytes: u64) -> Result<(), Failure> {
        self.count(kind, offset, bytes);
        if !self.is_armed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut armed = self.armed.lock();
        let Some(armed) = armed.as_mut().filter(|armed| armed.fault.kinds.contains(&kind)) else {
            return Ok(());
        };
        let number = armed.seen;
        armed.seen += 1;
        if number < armed.fault.nth || (number > armed.fault.nth && !armed.fault.forever) {
            return Ok(());
        }
        armed.fired += 1;
        let error = io::Error::from_raw_os_error(armed.fault.errno);
        Err(Failure { partial: armed.fault.partial, error })
    }

    /// [`FaultStorage::begin`] for an operation that has no partial effect.
    fn begin_whole(&self, kind: OpKind, offset: u64, bytes: u64) -> io::Result<()> {
        self.begin(kind, offset, bytes).map_err(|failure| failure.error)
    }

    /// Fails a write, with its first half written if the fault wants that.
    fn fail_write(&self, failure: Failure, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if failure.partial {
            self.inner.write_at(offset, &bytes[..bytes.len() / 2])?;
        }
        Err(failure.error)
    }
}

impl<S: Storage> Storage for FaultStorage<S> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.begin_whole(OpKind::Read, offset, buf.len() as u64)?;
        self.inner.read_at(offset, buf)
    }

    fn will_read(&self, offset: u64, len: u64) {
        self.count(OpKind::ReadAhead, offset, len);
        self.inner.will_read(offset, len);
    }

    fn skip_hole(&self, offset: u64) -> Option<u64> {
        self.inner.skip_hole(offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        match self.begin(OpKind::Write, offset, buf.len() as u64) {
            Ok(()) => self.inner.write_at(offset, buf),
            Err(failure) => self.fail_write(failure, offset, buf),
        }
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        match self.begin(OpKind::Write, offset, total_len(bufs)) {
            Ok(()) => self.inner.write_vectored_at(offset, bufs),
            Err(failure) => self.fail_write(failure, offset, &bufs.concat()),
        }
    }

    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        match self.begin(OpKind::WriteDurable, offset, buf.len() as u64) {
            Ok(()) => self.inner.write_durable_at(offset, buf),
            Err(failure) => self.fail_write(failure, offset, buf),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.begin_whole(OpKind::Sync, 0, 0)?;
        self.inner.sync()
    }

    fn forget_cached(&self) {
        self.inner.forget_cached();
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.begin_whole(OpKind::SetLen, len, 0)?;
        self.inner.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.begin_whole(OpKind::Allocate, offset, len)?;
        self.inner.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.begin_whole(OpKind::Punch, offset, len)?;
        self.inner.punch(offset, len)
    }
}

/// A disk whose syncs take as long as those of real ones.
#[cfg(test)]
pub(crate) fn slow_disk<S: Storage>(inner: S) -> FaultStorage<S> {
    use std::time::Duration;
    FaultStorage::observed(inner, |kind, _, _| match kind {
        OpKind::Sync => std::thread::sleep(Duration::from_millis(1)),
        OpKind::WriteDurable => std::thread::sleep(Duration::from_micros(200)),
        _ => {}
    })
}
