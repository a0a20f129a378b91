//! The C library's functions that write and sync files, defined once more so that they count. Each makes the
//! system call that the library's makes. The linker takes these for the whole program.

use std::ffi::{c_int, c_void};

use libc::{iovec, off_t, size_t, ssize_t};

use super::{closes, syncs, wrote};

/// The offset behind the last byte that `write` wrote.
fn position(fd: c_int) -> u64 {
    // SAFETY: lseek touches no memory.
    unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }.max(0).unsigned_abs()
}

/// Counts the result of a call that wrote at the descriptor's position.
fn count_at_position(fd: c_int, result: ssize_t) -> ssize_t {
    if result > 0 {
        let len = result as u64;
        wrote(fd, len, false, || position(fd).saturating_sub(len));
    }
    result
}

fn count_at(fd: c_int, result: ssize_t, offset: off_t, is_durable: bool) -> ssize_t {
    if result > 0 {
        wrote(fd, result as u64, is_durable, || offset.max(0).unsigned_abs());
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: as the caller promises for write(2).
    let result = unsafe { libc::syscall(libc::SYS_write, fd, buffer, len) };
    count_at_position(fd, result as ssize_t)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: as the caller promises for writev(2).
    let result = unsafe { libc::syscall(libc::SYS_writev, fd, vectors, count) };
    count_at_position(fd, result as ssize_t)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, buffer: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    // SAFETY: as the caller promises for pwrite(2).
    let result = unsafe { libc::syscall(libc::SYS_pwrite64, fd, buffer, len, offset) };
    count_at(fd, result as ssize_t, offset, false)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, buffer: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    // SAFETY: as the caller promises for pwrite(2).
    unsafe { pwrite(fd, buffer, len, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    // SAFETY: as the caller promises for pwritev(2).
    unsafe { pwritev2(fd, vectors, count, offset, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev64(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    // SAFETY: as the caller promises for pwritev(2).
    unsafe { pwritev2(fd, vectors, count, offset, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev2(
    fd: c_int,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    // The second half of the offset is for machines of 32 bits.
    // SAFETY: as the caller promises for pwritev2(2).
    let result = unsafe { libc::syscall(libc::SYS_pwritev2, fd, vectors, count, offset, 0, flags) };
    count_at(fd, result as ssize_t, offset, flags & (libc::RWF_DSYNC | libc::RWF_SYNC) != 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    syncs(fd);
    // SAFETY: fsync touches no memory.
    unsafe { libc::syscall(libc::SYS_fsync, fd) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    syncs(fd);
    // SAFETY: fdatasync touches no memory.
    unsafe { libc::syscall(libc::SYS_fdatasync, fd) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    closes(fd);
    // SAFETY: the caller owns the descriptor.
    unsafe { libc::syscall(libc::SYS_close, fd) as c_int }
}
