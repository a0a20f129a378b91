//! A regular file or a block device as a storage.
//!
//! Invariants:
//! - I1. The image is locked by flock as long as it is open: exclusively for writing, shared for reading. The
//!   lock is taken once, on the buffered descriptor, before anything is read or changed.
//! - I2. All descriptors are of the same inode.
//! - I3. Direct I/O is an optimisation: whatever refuses it is done by the buffered descriptor instead.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{Statfs, fstatfs};
use parking_lot::Mutex;

use super::buffer::{DIRECT_ALIGN, DIRECT_LEN_MIN};
use super::lock::find_holder;
use super::{OpenError, Storage, sys};

/// Bytes that one call reads ahead. Linux reads no more for each than the device's read-ahead, which is rarely less.
const READ_AHEAD: u64 = 128 << 10;
/// How long to try to get the lock. A holder that has closed the image or was killed can still have it for a
/// moment: a child that it forked has a copy of the descriptor until it calls exec.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);
/// How long to wait before the next try.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// How long to try if nobody can be found who has it: the kernel is still taking apart a process that was killed.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// How often to look who has it: that reads what every process has open.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Whether an image is opened to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading and writing; nobody else may have it open.
    ReadWrite,
    /// Reading only; others may read a file as well, but nobody may write. Writes fail with
    /// [`io::ErrorKind::PermissionDenied`].
    ReadOnly,
}

/// An image in a regular file or on a block device, locked while this exists.
///
/// Calls of at least 16 KiB, and durable writes of any length, whose offset, length and memory are multiples of 4096 bypass the page
/// cache (`O_DIRECT`), if offset and length are multiples of its pages as well, which may be larger; all others are buffered.
/// [`super::AlignedBuf`] is such memory.
#[derive(Debug)]
pub struct FileStorage {
    direct: Option<File>,
    /// Like `buffered`, for a sync beside another.
    second: Option<File>,
    /// It holds the lock, and is closed last: who waits for the lock finds the file in nobody's hands.
    buffered: File,
    /// Held while a sync, or a durable write, by `buffered` or by `second` is under way.
    syncing: [Mutex<()>; 2],
    /// A sync or a durable write has failed: nothing is durable any more.
    sync_failed: AtomicBool,
    mode: OpenMode,
    is_device: bool,
    /// Bytes of a page of the page cache.
    cache_page: u64,
    /// What the host turned out not to support, or is not known to keep.
    no_direct: AtomicBool,
    no_dsync: AtomicBool,
    no_allocate: AtomicBool,
    no_punch: AtomicBool,
}

impl FileStorage {
    /// Opens and locks an image that is there.
    pub fn open(path: impl AsRef<Path>, mode: OpenMode) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let is_device = check_type(path, &fs::metadata(path).map_err(|error| OpenError::new(path, error))?)?;
        let mut options = OpenOptions::new();
        options.read(true).write(mode == OpenMode::ReadWrite);
        Self::open_with(path, &mut options, mode, is_device)
    }

    /// Creates an empty image that only its owner may read or write, and locks it.
    ///
    /// If there is one already, this fails with [`OpenError::Exists`], or, if `overwrite` is set, empties it
    /// after locking it. Devices exist always, and keep their content.
    pub fn create(path: impl AsRef<Path>, overwrite: bool) -> Result<Self, OpenError> {
        Self::create_sized(path, overwrite, 0)
    }

    /// Like [`FileStorage::create`], with `size` bytes of zeros that take no space. If the host cannot have such a file, what was there is
    /// as before, also if it was nothing. Of a device only the lock is taken.
    pub fn create_sized(path: impl AsRef<Path>, overwrite: bool, size: u64) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let mut was_missing = false;
        let is_device = match fs::metadata(path) {
            Ok(_) if !overwrite => return Err(OpenError::Exists { path: path.into() }),
            Ok(metadata) => check_type(path, &metadata)?,
            Err(error) => {
                was_missing = error.kind() == io::ErrorKind::NotFound;
                false
            }
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        // Not truncated before it is locked: somebody may have it open.
        options.create(overwrite && !is_device).truncate(false).create_new(!overwrite);
        let storage = Self::open_with(path, &mut options, OpenMode::ReadWrite, is_device)?;
        if !is_device {
            let emptied = storage.try_len(size).and_then(|()| storage.buffered.set_len(0));
            if emptied.is_err() && was_missing {
                // The error that is told is the one that matters.
                let _ = fs::remove_file(path);
            }
            emptied
                .and_then(|()| storage.buffered.set_len(size))
                .and_then(|()| sync_parent(path))
                .map_err(|error| OpenError::new(path, error))?;
        }
        Ok(storage)
    }

    /// Whether the host can have so long a file; the length is as before.
    fn try_len(&self, size: u64) -> io::Result<()> {
        let before = self.buffered.metadata()?.len();
        if size > before {
            self.buffered.set_len(size)?;
            self.buffered.set_len(before)?;
        }
        Ok(())
    }

    fn open_with(
        path: &Path,
        options: &mut OpenOptions,
        mode: OpenMode,
        is_device: bool,
    ) -> Result<Self, OpenError> {
        let begun = Instant::now();
        let mut looked: Option<Instant> = None;
        loop {
            match Self::try_open(path, options, mode, is_device) {
                Err(OpenError::InUse { .. }) if begun.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_PAUSE),
                Err(OpenError::InUse { path, .. }) => {
                    let is_over = is_device || begun.elapsed() > EXIT_PATIENCE;
                    if is_over || looked.is_none_or(|looked| looked.elapsed() >= LOOK_PAUSE) {
                        let holder = find_holder(&path);
                        if is_over || holder.is_some() {
                            return Err(OpenError::InUse { path, holder });
                        }
                        looked = Some(Instant::now());
                    }
                    thread::sleep(LOCK_PAUSE * 5);
                }
                result => return result,
            }
        }
    }

    /// Opens and locks; does not look for the holder if somebody has it open.
    fn try_open(
        path: &Path,
        options: &mut OpenOptions,
        mode: OpenMode,
        is_device: bool,
    ) -> Result<Self, OpenError> {
        let fail = |error| OpenError::new(path, error);
        let in_use = || OpenError::InUse { path: path.into(), holder: None };
        // On a device, O_EXCL keeps out mounts, and those who use another node of the same device.
        let opened = options.custom_flags(if is_device { libc::O_EXCL } else { 0 }).open(path);
        let buffered = opened.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy if is_device => in_use(),
            _ => fail(error),
        })?;
        let metadata = buffered.metadata().map_err(fail)?;
        if check_type(path, &metadata)? != is_device {
            return Err(OpenError::NotAFile { path: path.into() });
        }
        let locked = match mode {
            OpenMode::ReadWrite => buffered.try_lock(),
            OpenMode::ReadOnly => buffered.try_lock_shared(),
        };
        locked.map_err(|error| match error {
            fs::TryLockError::WouldBlock => in_use(),
            fs::TryLockError::Error(error) => fail(error),
        })?;
        let believes_dsync = is_device || fstatfs(&buffered).is_ok_and(|host| keeps_dsync(magic(&host)));
        Ok(FileStorage {
            direct: open_again(path, mode, libc::O_DIRECT, &metadata),
            second: open_again(path, mode, 0, &metadata),
            buffered,
            syncing: Default::default(),
            sync_failed: AtomicBool::new(false),
            mode,
            is_device,
            cache_page: sys::page_size(),
            no_direct: AtomicBool::new(false),
            no_dsync: AtomicBool::new(!believes_dsync),
            no_allocate: AtomicBool::new(false),
            no_punch: AtomicBool::new(false),
        })
    }

    /// Whether this is a block device.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// Whether large aligned calls bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some() && !self.no_direct.load(Ordering::Relaxed)
    }

    /// The direct descriptor, if it can be used for a call with this offset, these buffers, and is worth it from `len_min` bytes on.
    fn direct_for<'b>(
        &self,
        offset: u64,
        bufs: impl Iterator<Item = &'b [u8]>,
        len_min: u64,
    ) -> Option<&File> {
        let direct = self.direct.as_ref().filter(|_| self.is_direct())?;
        (direct_len(offset, bufs, self.cache_page)? >= len_min).then_some(direct)
    }

    fn give_up_direct(&self) {
        if !self.no_direct.swap(true, Ordering::Relaxed) {
            log::debug!("direct I/O was refused, all I/O is buffered from now on");
        }
    }

    /// Writes all buffers, each part of them by the descriptor that suits it.
    fn write_all(&self, mut offset: u64, mut bufs: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.check_writable()?;
        IoSlice::advance_slices(&mut bufs, 0);
        while !bufs.is_empty() {
            let direct = self.direct_for(offset, bufs.iter().map(|buf| &**buf), DIRECT_LEN_MIN);
            let file = direct.unwrap_or(&self.buffered);
            match sys::pwritev2(file, bufs, offset, 0) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut bufs, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if direct.is_some() && is_errno(&error, libc::EINVAL) => self.give_up_direct(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.mode {
            OpenMode::ReadWrite => Ok(()),
            OpenMode::ReadOnly => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, "the image is open read-only"))
            }
        }
    }

    fn check_synced(&self) -> io::Result<()> {
        match self.sync_failed.load(Ordering::SeqCst) {
            true => Err(io::Error::other("a sync has failed before, and what it was to write may be lost")),
            false => Ok(()),
        }
    }

    /// `fallocate` in this mode; false where the host does not support it, which is remembered.
    fn fallocate(&self, mode: i32, offset: u64, len: u64, unsupported: &AtomicBool) -> io::Result<bool> {
        self.check_writable()?;
        if len == 0 {
            return Ok(true);
        }
        if unsupported.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            match sys::fallocate(&self.buffered, mode, offset, len) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_unsupported(&error) => {
                    unsupported.store(true, Ordering::Relaxed);
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Storage for FileStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (mut offset, mut buf) = (offset, buf);
        while !buf.is_empty() {
            let direct = self.direct_for(offset, std::iter::once(&*buf), DIRECT_LEN_MIN);
            match direct.unwrap_or(&self.buffered).read_at(buf, offset) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "read past the end of the image",
                    ));
                }
                Ok(read) => {
                    offset += read as u64;
                    buf = &mut buf[read..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if direct.is_some() && is_errno(&error, libc::EINVAL) => self.give_up_direct(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn will_read(&self, offset: u64, len: u64) {
        for begin in (0..len).step_by(READ_AHEAD as usize) {
            sys::will_need(&self.buffered, offset + begin, READ_AHEAD.min(len - begin));
        }
    }

    fn skip_hole(&self, offset: u64) -> Option<u64> {
        // A device's position is used by `len`, and a hole in it is not told.
        if self.is_device {
            return None;
        }
        let data = sys::seek(&self.buffered, offset, libc::SEEK_DATA).ok()?;
        Some(data.or_else(|| self.len().ok())?.max(offset))
    }

    fn next_hole(&self, offset: u64) -> Option<u64> {
        if self.is_device {
            return None;
        }
        sys::seek(&self.buffered, offset, libc::SEEK_HOLE).ok()?
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_all(offset, &mut [IoSlice::new(buf)])
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        let mut bufs: Vec<_> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        self.write_all(offset, &mut bufs)
    }

    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        let (mut offset, mut buf) = (offset, buf);
        while !buf.is_empty() {
            if self.no_dsync.load(Ordering::Relaxed) {
                self.write_at(offset, buf)?;
                return self.sync();
            }
            // The disk is waited for in any case, so the page cache would only cost a copy.
            let direct = self.direct_for(offset, std::iter::once(buf), 0);
            let file = direct.unwrap_or(&self.buffered);
            // It would be told the error of a sync by the same file.
            let _turn = direct.is_none().then(|| self.syncing[0].lock());
            self.check_synced()?;
            match sys::pwritev2(file, &[IoSlice::new(buf)], offset, libc::RWF_DSYNC) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    buf = &buf[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if direct.is_some() && is_errno(&error, libc::EINVAL) => self.give_up_direct(),
                Err(error) if is_unsupported(&error) => self.no_dsync.store(true, Ordering::Relaxed),
                Err(error) => {
                    self.sync_failed.store(true, Ordering::SeqCst);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // Errors of writes by any descriptor are the inode's, and each open file tells them once: to one call. So each call that is
        // under way has a file of its own, and whoever comes after one that failed fails as well.
        let [first, second] = &self.syncing;
        let (file, _turn) = match (first.try_lock(), &self.second) {
            (Some(turn), _) => (&self.buffered, turn),
            (None, Some(file)) => match second.try_lock() {
                Some(turn) => (file, turn),
                None => (&self.buffered, first.lock()),
            },
            (None, None) => (&self.buffered, first.lock()),
        };
        self.check_synced()?;
        // The standard library calls again if it is interrupted.
        file.sync_data().inspect_err(|_| self.sync_failed.store(true, Ordering::SeqCst))
    }

    fn forget_cached(&self) {
        sys::drop_cache(&self.buffered);
    }

    fn len(&self) -> io::Result<u64> {
        match self.is_device {
            // A device's size in its inode is 0. Nothing else uses the position that this moves.
            true => (&self.buffered).seek(SeekFrom::End(0)),
            false => Ok(self.buffered.metadata()?.len()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        if !self.is_device {
            return self.buffered.set_len(len);
        }
        if len != self.len()? {
            let message = "a block device cannot change its size";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<bool> {
        // A device has its space. To ask it may drop what is cached of the range, before it refuses (Linux before 6.7).
        if self.is_device {
            return self.check_writable().map(|()| true);
        }
        self.fallocate(libc::FALLOC_FL_KEEP_SIZE, offset, len, &self.no_allocate)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.fallocate(mode, offset, len, &self.no_punch)
    }
}

/// How many bytes the buffers have, if a call with them may bypass a page cache whose pages have `cache_page` bytes: it touches whole
/// pages only, for a page that others read or write in the cache meanwhile would bring back what was there before.
pub(super) fn direct_len<'b>(
    offset: u64,
    bufs: impl Iterator<Item = &'b [u8]>,
    cache_page: u64,
) -> Option<u64> {
    let (mut total, mut misaligned) = (0, 0);
    for buf in bufs {
        total += buf.len() as u64;
        misaligned |= buf.as_ptr().addr() | buf.len();
    }
    let page = cache_page.max(DIRECT_ALIGN as u64);
    (misaligned.is_multiple_of(DIRECT_ALIGN) && (offset | total).is_multiple_of(page)).then_some(total)
}

/// Refuses what cannot hold an image. Returns whether it is a block device.
fn check_type(path: &Path, metadata: &fs::Metadata) -> Result<bool, OpenError> {
    let file_type = metadata.file_type();
    if file_type.is_dir() {
        return Err(OpenError::IsDirectory { path: path.into() });
    }
    if !file_type.is_file() && !file_type.is_block_device() {
        return Err(OpenError::NotAFile { path: path.into() });
    }
    Ok(file_type.is_block_device())
}

/// What kind of filesystem it is. The type of the number differs from one architecture to the next, and its sign with it.
fn magic(host: &Statfs) -> u32 {
    host.filesystem_type().0 as u32
}

/// Whether files of this kind of filesystem are known to be durable after a write with `RWF_DSYNC`. There are others that take the flag,
/// and sync nothing: FUSE with direct I/O, 9p, CIFS, ZFS before 0.8, which cannot be told from later ones. They are synced by a call of
/// its own.
fn keeps_dsync(magic: u32) -> bool {
    const EXT: u32 = 0xef53;
    const XFS: u32 = 0x5846_5342;
    const BTRFS: u32 = 0x9123_683e;
    const F2FS: u32 = 0xf2f5_2010;
    const BCACHEFS: u32 = 0xca45_1a4e;
    const FAT: u32 = 0x4d44;
    const NFS: u32 = 0x6969;
    const TMPFS: u32 = 0x0102_1994;
    matches!(magic, EXT | XFS | BTRFS | F2FS | BCACHEFS | FAT | NFS | TMPFS)
}

/// Another descriptor with these flags, if the host lets us and `path` still names the same inode (I2, I3).
fn open_again(path: &Path, mode: OpenMode, flags: i32, locked: &fs::Metadata) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(mode == OpenMode::ReadWrite).custom_flags(flags);
    let refused = |error: &io::Error| log::debug!("no other descriptor with the flags {flags:#x}: {error}");
    let file = options.open(path).inspect_err(refused).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.dev() == locked.dev() && metadata.ino() == locked.ino()).then_some(file)
}

/// Makes the name of a new file durable, as far as the host lets us.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    match File::open(parent).and_then(|parent| parent.sync_all()) {
        // A folder in which we may create but not read, or a host that syncs no folders.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied || is_unsupported(&error) => Ok(()),
        Err(error) if is_errno(&error, libc::EINVAL) => Ok(()),
        result => result,
    }
}

fn is_errno(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

/// EOPNOTSUPP (on Linux also ENOTSUP) or ENOSYS.
fn is_unsupported(error: &io::Error) -> bool {
    is_errno(error, libc::EOPNOTSUPP) || is_errno(error, libc::ENOSYS)
}
