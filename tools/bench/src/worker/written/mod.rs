//! How many bytes this process gives to the device.
//!
//! Linux has a counter for this, `write_bytes` in `/proc/PID/io`, but it counts a whole folio of the page cache
//! when a part of it becomes dirty: a write of 400 bytes into a file that was written in pieces of 1 MiB counts
//! as 1 MiB (measured on Linux 6.18, ext4). The counters of the device count what others write, too. So the
//! calls that write and sync are counted here, and the page cache is modelled: a block of 4 KiB counts when a
//! buffered write makes it dirty, and again only if that happens after a sync of its file; direct writes and
//! writes that are durable on return count each time. That is what the device must at least be given if the
//! kernel writes nothing back before it is asked to. The journal of the file system is left out.
//!
//! [`calls`] defines the C library's functions that write; all engines are linked against them. The kernel's
//! count of bytes written by calls tells whether all went through them.

mod calls;

use std::ffi::c_int;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

const BLOCK: u64 = 4096;
/// Files up to 1 TiB.
const CHUNKS: usize = 256;
const CHUNK_BLOCKS: u64 = 1 << 20;
const DESCRIPTORS: usize = 4096;

/// Bytes for the device.
static DEVICE_BYTES: AtomicU64 = AtomicU64::new(0);
/// Bytes that calls said they wrote, to whatever file.
static CALL_BYTES: AtomicU64 = AtomicU64::new(0);

static FILES: Mutex<Vec<&'static File>> = Mutex::new(Vec::new());
static OPEN: [Descriptor; DESCRIPTORS] = [const { Descriptor::new() }; DESCRIPTORS];

/// A regular file that was written.
struct File {
    device: u64,
    inode: u64,
    /// Goes up with each sync.
    epoch: AtomicU32,
    /// For each block the epoch in which it became dirty; 0 if it is clean.
    dirty: [AtomicPtr<Chunk>; CHUNKS],
}

type Chunk = [AtomicU32; CHUNK_BLOCKS as usize];

/// What is known of an open file descriptor.
struct Descriptor {
    kind: AtomicU8,
    file: AtomicPtr<File>,
}

const UNKNOWN: u8 = 0;
/// A pipe, a terminal: nothing for a device.
const OTHER: u8 = 1;
const BUFFERED: u8 = 2;
/// Opened with `O_DSYNC` or `O_SYNC`.
const DURABLE: u8 = 3;
/// Opened with `O_DIRECT`.
const DIRECT: u8 = 4;

/// Bytes that this process has given, or owes, to the device.
pub fn device_bytes() -> u64 {
    DEVICE_BYTES.load(Ordering::Relaxed)
}

/// Bytes that were written by calls that are counted. To compare with the kernel's count.
pub fn call_bytes() -> u64 {
    CALL_BYTES.load(Ordering::Relaxed)
}

impl Descriptor {
    const fn new() -> Self {
        Descriptor { kind: AtomicU8::new(UNKNOWN), file: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Finds out what the descriptor is, once.
    fn kind(&self, fd: c_int) -> u8 {
        match self.kind.load(Ordering::Acquire) {
            UNKNOWN => self.learn(fd),
            kind => kind,
        }
    }

    fn learn(&self, fd: c_int) -> u8 {
        // SAFETY: `libc::stat` is a plain structure, for which zeros are valid.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is a valid place for the result; a wrong descriptor is an error.
        let is_known = unsafe { libc::fstat(fd, &raw mut stat) } == 0;
        let mut kind = OTHER;
        if is_known && stat.st_mode & libc::S_IFMT == libc::S_IFREG {
            // SAFETY: F_GETFL takes no argument and touches no memory.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
            kind = match flags {
                _ if flags & libc::O_DIRECT != 0 => DIRECT,
                _ if flags & libc::O_DSYNC != 0 => DURABLE,
                _ => BUFFERED,
            };
            self.file.store(std::ptr::from_ref(file_of(&stat)).cast_mut(), Ordering::Release);
        }
        self.kind.store(kind, Ordering::Release);
        kind
    }

    fn file(&self) -> Option<&'static File> {
        // SAFETY: the pointer is null or comes from a reference that lives for ever (`file_of`).
        unsafe { self.file.load(Ordering::Acquire).as_ref() }
    }
}

/// The file with this inode. A file that is opened again counts as clean: the inode may be that of a new file.
fn file_of(stat: &libc::stat) -> &'static File {
    let mut files = FILES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let known = files.iter().find(|file| (file.device, file.inode) == (stat.st_dev, stat.st_ino));
    if let Some(file) = known {
        file.epoch.fetch_add(1, Ordering::Relaxed);
        return file;
    }
    let file = Box::leak(Box::new(File {
        device: stat.st_dev,
        inode: stat.st_ino,
        epoch: AtomicU32::new(1),
        dirty: [const { AtomicPtr::new(std::ptr::null_mut()) }; CHUNKS],
    }));
    files.push(file);
    file
}

impl File {
    /// Where the block's epoch is kept. Nothing beyond 1 TiB.
    fn stamp(&self, block: u64) -> Option<&'static AtomicU32> {
        let slot = self.dirty.get((block / CHUNK_BLOCKS) as usize)?;
        let mut chunk = slot.load(Ordering::Acquire);
        if chunk.is_null() {
            // SAFETY: the layout is not empty, and zeros are valid atomics.
            let made: *mut Chunk =
                unsafe { std::alloc::alloc_zeroed(std::alloc::Layout::new::<Chunk>()) }.cast();
            if made.is_null() {
                return None;
            }
            match slot.compare_exchange(chunk, made, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => chunk = made,
                Err(others) => {
                    // SAFETY: allocated above with this layout, and nobody else has seen it.
                    unsafe { std::alloc::dealloc(made.cast(), std::alloc::Layout::new::<Chunk>()) };
                    chunk = others;
                }
            }
        }
        // SAFETY: the chunk is not null, was zeroed, and is never freed once it is in its slot.
        let chunk: &'static Chunk = unsafe { &*chunk };
        chunk.get((block % CHUNK_BLOCKS) as usize)
    }

    /// Counts the blocks of a write that were clean.
    fn count(&self, offset: u64, len: u64, is_durable: bool) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        let after = if is_durable { 0 } else { epoch };
        let mut blocks = 0;
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            let before = self.stamp(block).map_or(0, |stamp| stamp.swap(after, Ordering::Relaxed));
            blocks += u64::from(before != epoch);
        }
        DEVICE_BYTES.fetch_add(blocks * BLOCK, Ordering::Relaxed);
    }
}

/// A call wrote `len` bytes. `offset` is only asked for regular files.
fn wrote(fd: c_int, len: u64, is_durable: bool, offset: impl FnOnce() -> u64) {
    CALL_BYTES.fetch_add(len, Ordering::Relaxed);
    let Some(descriptor) = usize::try_from(fd).ok().and_then(|fd| OPEN.get(fd)) else { return };
    let kind = descriptor.kind(fd);
    let Some(file) = descriptor.file() else { return };
    match kind {
        DIRECT => drop(DEVICE_BYTES.fetch_add(len, Ordering::Relaxed)),
        BUFFERED | DURABLE => file.count(offset(), len, is_durable || kind == DURABLE),
        _ => (),
    }
}

/// A sync begins: what becomes dirty from now on is to be written again.
fn syncs(fd: c_int) {
    let Some(descriptor) = usize::try_from(fd).ok().and_then(|fd| OPEN.get(fd)) else { return };
    descriptor.kind(fd);
    if let Some(file) = descriptor.file() {
        file.epoch.fetch_add(1, Ordering::Relaxed);
    }
}

/// The descriptor may mean another file from now on.
fn closes(fd: c_int) {
    if let Some(descriptor) = usize::try_from(fd).ok().and_then(|fd| OPEN.get(fd)) {
        descriptor.file.store(std::ptr::null_mut(), Ordering::Release);
        descriptor.kind.store(UNKNOWN, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// What `work` gives to the device. Tests of this process that write at the same time would disturb it, so
    /// there is only this one.
    fn bytes(work: impl FnOnce()) -> u64 {
        let before = device_bytes();
        work();
        device_bytes() - before
    }

    #[test]
    fn blocks_count_once_between_syncs() {
        let path = std::env::temp_dir().join(format!("engine-bench-{}", std::process::id()));
        let mut file = std::fs::File::create(&path).unwrap();
        assert_eq!(bytes(|| file.write_all(&[1; 10_000]).unwrap()), 3 * BLOCK);
        assert_eq!(bytes(|| file.write_at(&[1; 100], 4000).map(drop).unwrap()), 0);
        file.sync_all().unwrap();
        assert_eq!(bytes(|| file.write_at(&[1; 100], 4000).map(drop).unwrap()), 2 * BLOCK);
        drop(file);
        std::fs::remove_file(&path).unwrap();
    }
}
