//! The system calls that the standard library does not offer, each with a safe signature.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;

/// The most buffers that one call takes.
const IOV_MAX: usize = libc::UIO_MAXIOV as usize;

/// `pwritev2(2)`: writes what it can of the first buffers at `offset`, and returns the number of bytes.
pub(super) fn pwritev2(
    file: &File,
    bufs: &[IoSlice<'_>],
    offset: u64,
    flags: libc::c_int,
) -> io::Result<usize> {
    let offset = signed(offset)?;
    let count = bufs.len().min(IOV_MAX) as libc::c_int;
    let iovecs = bufs.as_ptr().cast::<libc::iovec>();
    // SAFETY: `IoSlice` has the layout of `iovec` (std promises it), the first `count` of them lie in `bufs`,
    // each names memory that stays borrowed during the call, and the call only reads that memory.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), iovecs, count, offset, flags) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// `fallocate(2)`.
pub(super) fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (signed(offset)?, signed(len)?);
    // SAFETY: the call takes no memory, and the descriptor is open as long as `file` is borrowed.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `posix_fadvise(2)` with `POSIX_FADV_WILLNEED`: begins to read into the page cache. A hint, so errors do not matter.
pub(super) fn will_need(file: &File, offset: u64, len: u64) {
    if let (Ok(offset), Ok(len)) = (signed(offset), signed(len)) {
        // SAFETY: the call takes no memory, and the descriptor is open as long as `file` is borrowed.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_WILLNEED) };
    }
}

/// `posix_fadvise(2)` with `POSIX_FADV_DONTNEED`: drops what the page cache holds, as far as it is written. A hint, as above.
pub(super) fn drop_cache(file: &File) {
    // SAFETY: the call takes no memory, and the descriptor is open as long as `file` is borrowed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`: where the next are, if there are any. Moves the descriptor's position.
pub(super) fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    // SAFETY: the call takes no memory, and the descriptor is open as long as `file` is borrowed.
    let found = unsafe { libc::lseek(file.as_raw_fd(), signed(offset)?, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Bytes of a page of memory, and of the page cache.
pub(super) fn page_size() -> u64 {
    // SAFETY: the call takes no memory.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
