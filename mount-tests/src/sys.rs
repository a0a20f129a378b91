//! The system calls that the standard library does not offer. All `unsafe` code of the tests is here.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no zero byte in a path")
}

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn done(result: i32) -> io::Result<()> {
    checked(result.into()).map(|_| ())
}

/// The number of the error, 0 where there is none.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().map_or(0, |e| e.raw_os_error().expect("an error of the system"))
}

/// See fallocate(2).
pub fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: no pointers.
    done(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) })
}

/// See lseek(2); for SEEK_HOLE and SEEK_DATA.
pub fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    // SAFETY: no pointers.
    checked(unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) }).map(|at| at as u64)
}

/// See copy_file_range(2).
pub fn copy_file_range(from: &File, from_at: u64, to: &File, to_at: u64, length: usize) -> io::Result<usize> {
    let (mut from_at, mut to_at) = (from_at as i64, to_at as i64);
    // SAFETY: both offsets live through the call.
    let copied = unsafe {
        libc::copy_file_range(from.as_raw_fd(), &mut from_at, to.as_raw_fd(), &mut to_at, length, 0)
    };
    checked(copied as i64).map(|copied| copied as usize)
}

/// See mknod(2).
pub fn mknod(path: &Path, mode: u32, major: u32, minor: u32) -> io::Result<()> {
    // SAFETY: the path ends in zero and lives through the call.
    done(unsafe { libc::mknod(c(path).as_ptr(), mode, libc::makedev(major, minor)) })
}

/// See chmod(2); the standard library's does the same, this one takes bits.
pub fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    // SAFETY: the path ends in zero and lives through the call.
    done(unsafe { libc::chmod(c(path).as_ptr(), mode) })
}

/// See truncate(2): by name, without opening.
pub fn truncate(path: &Path, size: u64) -> io::Result<()> {
    // SAFETY: the path ends in zero and lives through the call.
    done(unsafe { libc::truncate(c(path).as_ptr(), size as i64) })
}

/// See close(2). Dropping a file hides what it says.
pub fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is the file's own, and given up by it.
    done(unsafe { libc::close(file.into_raw_fd()) })
}

/// See access(2).
pub fn access(path: &Path) -> io::Result<()> {
    // SAFETY: the path ends in zero and lives through the call.
    done(unsafe { libc::access(c(path).as_ptr(), libc::F_OK) })
}

/// See renameat2(2).
pub fn rename(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    // SAFETY: both paths end in zero and live through the call.
    done(unsafe { libc::renameat2(libc::AT_FDCWD, c(from).as_ptr(), libc::AT_FDCWD, c(to).as_ptr(), flags) })
}

/// See setxattr(2).
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let name = CString::new(name).expect("no zero byte");
    // SAFETY: pointers and length describe buffers that live through the call.
    done(unsafe { libc::lsetxattr(c(path).as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

/// See getxattr(2).
pub fn get_xattr(path: &Path, name: &OsStr) -> io::Result<Vec<u8>> {
    let name = CString::new(name.as_bytes()).expect("no zero byte");
    let mut value = vec![0; 65536];
    // SAFETY: pointers and length describe buffers that live through the call.
    let length =
        unsafe { libc::lgetxattr(c(path).as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(checked(length as i64)? as usize);
    Ok(value)
}

/// The names of all extended attributes, sorted. See listxattr(2).
pub fn list_xattrs(path: &Path) -> io::Result<Vec<OsString>> {
    let mut names = vec![0u8; 65536];
    // SAFETY: pointer and length describe a buffer that lives through the call.
    let length = unsafe { libc::llistxattr(c(path).as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(checked(length as i64)? as usize);
    let mut names: Vec<_> =
        names.split(|b| *b == 0).filter(|n| !n.is_empty()).map(|n| OsString::from_vec(n.to_vec())).collect();
    names.sort();
    Ok(names)
}

/// See removexattr(2).
pub fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let name = CString::new(name).expect("no zero byte");
    // SAFETY: both strings end in zero and live through the call.
    done(unsafe { libc::lremovexattr(c(path).as_ptr(), name.as_ptr()) })
}

/// See utimensat(2): sets access and modification time, without following a link.
pub fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<()> {
    let times = [atime, mtime].map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });
    // SAFETY: the path and both times live through the call.
    done(unsafe {
        libc::utimensat(libc::AT_FDCWD, c(path).as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    })
}

/// Has the command started with a signal ignored, as by nohup(1).
pub fn ignore(command: &mut Command, signal: i32) {
    let ignore = move || {
        // SAFETY: no handler is installed.
        match unsafe { libc::signal(signal, libc::SIG_IGN) } {
            libc::SIG_ERR => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: only signal runs between fork and exec, which is async-signal-safe.
    unsafe { command.pre_exec(ignore) };
}

/// See flock(2).
pub fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    done(unsafe { libc::flock(file.as_raw_fd(), operation) })
}

/// A POSIX lock (`F_SETLK`) of a kind (`F_RDLCK`, `F_WRLCK`, `F_UNLCK`) on a range.
pub fn lock_range(file: &File, kind: i32, start: i64, length: i64) -> io::Result<()> {
    // SAFETY: all zero is a value of this plain structure.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = start;
    lock.l_len = length;
    // SAFETY: the structure lives through the call.
    done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) })
}

/// A file handle as name_to_handle_at(2) gives it, as NFS servers use.
#[repr(C)]
#[derive(Clone)]
pub struct Handle {
    length: u32,
    kind: i32,
    bytes: [u8; 128],
}

/// See name_to_handle_at(2).
pub fn handle_of(path: &Path) -> io::Result<Handle> {
    let mut handle = Handle { length: 128, kind: 0, bytes: [0; 128] };
    let mut mount = 0i32;
    // SAFETY: the handle has room for the length that it states; all pointers live through the call.
    done(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            c(path).as_ptr(),
            &mut handle as *mut Handle,
            &mut mount as *mut i32,
            0,
        ) as i32
    })?;
    Ok(handle)
}

/// See open_by_handle_at(2); `mount` is any open file of the filesystem.
pub fn open_by_handle(mount: &File, handle: &Handle, flags: i32) -> io::Result<File> {
    // SAFETY: the handle lives through the call and has the length that it states.
    let fd = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), handle as *const Handle, flags)
    };
    // SAFETY: a descriptor that was just opened and that nobody else owns.
    checked(fd).map(|fd| unsafe { File::from_raw_fd(fd as i32) })
}

/// A mapping of a file, or, without one, of zeros; it begins on a page boundary.
pub struct Map {
    start: *mut u8,
    length: usize,
}

impl Map {
    /// `MAP_SHARED`: stores go to the file.
    pub fn shared(file: &File, length: usize) -> io::Result<Map> {
        Map::new(file.as_raw_fd(), length, libc::MAP_SHARED)
    }

    /// `MAP_PRIVATE`: stores stay here.
    pub fn private(file: &File, length: usize) -> io::Result<Map> {
        Map::new(file.as_raw_fd(), length, libc::MAP_PRIVATE)
    }

    /// Memory without a file, aligned for `O_DIRECT`.
    pub fn memory(length: usize) -> io::Result<Map> {
        Map::new(-1, length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
    }

    fn new(fd: i32, length: usize, flags: i32) -> io::Result<Map> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Map { start: start.cast(), length })
    }

    /// What is there now.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is of this length; the tests do not change it while they hold the slice.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }

    /// For stores.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the mapping is writable.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }

    /// See msync(2), `MS_SYNC`.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping.
        done(unsafe { libc::msync(self.start.cast(), self.length, libc::MS_SYNC) })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and no slice of it outlives it.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

/// A directory stream of libc, with positions.
pub struct Directory(*mut libc::DIR);

impl Directory {
    /// See opendir(3).
    pub fn open(path: &Path) -> io::Result<Directory> {
        // SAFETY: the path lives through the call.
        let stream = unsafe { libc::opendir(c(path).as_ptr()) };
        if stream.is_null() { Err(io::Error::last_os_error()) } else { Ok(Directory(stream)) }
    }

    /// The next name, without `.` and `..`. See readdir(3).
    pub fn next_name(&mut self) -> io::Result<Option<OsString>> {
        loop {
            // SAFETY: the stream is open; errno is this thread's.
            let entry = unsafe {
                *libc::__errno_location() = 0;
                libc::readdir(self.0)
            };
            if entry.is_null() {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(0) { Ok(None) } else { Err(error) };
            }
            // SAFETY: the name ends in zero and is valid until the next call on this stream.
            let name = unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) }.to_bytes().to_vec();
            if name != b"." && name != b".." {
                return Ok(Some(OsString::from_vec(name)));
            }
        }
    }

    /// See telldir(3).
    pub fn position(&self) -> i64 {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    /// See seekdir(3).
    pub fn seek(&mut self, position: i64) {
        // SAFETY: the stream is open.
        unsafe { libc::seekdir(self.0, position) }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // SAFETY: the stream is open and nobody uses it afterwards.
        unsafe { libc::closedir(self.0) };
    }
}

/// See kill(2). A negative number means a process group.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    assert!(pid.abs() > 1, "only what the tests have started");
    // SAFETY: no pointers.
    done(unsafe { libc::kill(pid, signal) })
}

/// Takes a mount away without asking its filesystem anything, which may not answer.
pub fn detach(point: &Path) -> io::Result<()> {
    // SAFETY: the path ends with a zero byte.
    done(unsafe { libc::umount2(c(point).as_ptr(), libc::MNT_DETACH) })
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// User and group id of the ordinary user `tests`, which `mount-tests/setup` makes, or of
/// whoever runs the tests if that is not root.
pub fn ordinary_user() -> (u32, u32) {
    if !is_root() {
        // SAFETY: no pointers, cannot fail.
        return unsafe { (libc::getuid(), libc::getgid()) };
    }
    // SAFETY: the name ends in zero; the record is read before any other call replaces it.
    unsafe {
        let user = libc::getpwnam(c"tests".as_ptr());
        assert!(!user.is_null(), "there is no user `tests`: run mount-tests/setup");
        ((*user).pw_uid, (*user).pw_gid)
    }
}

/// A child process: starts `work` in it and gives its id. The child exits 0 when `work` returns.
/// To be called only while this process has a single thread.
pub fn fork(work: impl FnOnce()) -> i32 {
    // SAFETY: with a single thread no lock can be held by another one at this moment.
    match unsafe { libc::fork() } {
        0 => {
            work();
            std::process::exit(0)
        }
        pid => checked(pid.into()).expect("fork") as i32,
    }
}

/// How a child ended: the exit code, or minus the signal.
fn ending(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// Waits for a child and tells its exit code, or minus the signal that ended it.
pub fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the status lives through the call.
    checked(unsafe { libc::waitpid(pid, &mut status, 0) }.into()).expect("waitpid of a child");
    ending(status)
}

/// As [`wait`], but `None` while it runs.
pub fn ended(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: the status lives through the call.
    let found = checked(unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) }.into()).expect("waitpid");
    (found != 0).then(|| ending(status))
}

/// From now on this process is the ordinary user's.
pub fn become_user() {
    if !is_root() {
        return;
    }
    let (uid, gid) = ordinary_user();
    // SAFETY: no pointers; this process has a single thread.
    let changed = unsafe { libc::setgroups(0, std::ptr::null()) | libc::setgid(gid) | libc::setuid(uid) };
    assert_eq!(changed, 0, "becoming the user `tests`");
}

/// Does `work` in a child process as the ordinary user; it must not fail.
pub fn as_user(work: impl FnOnce()) {
    let child = fork(|| {
        become_user();
        work();
    });
    assert_eq!(wait(child), 0, "what was done as an ordinary user failed");
}

/// Does `work` in a child process; it must not fail.
pub fn in_child(work: impl FnOnce()) {
    assert_eq!(wait(fork(work)), 0, "what was done in another process failed");
}

/// A process group of its own, with both outputs going to a file.
pub fn detach_into(log: &File) {
    // SAFETY: the descriptors are open.
    let failed = unsafe {
        libc::setpgid(0, 0) < 0 || libc::dup2(log.as_raw_fd(), 1) < 0 || libc::dup2(log.as_raw_fd(), 2) < 0
    };
    assert!(!failed, "{}", io::Error::last_os_error());
}

/// A mount namespace of its own: what is mounted from now on is seen by this process and its children only.
pub fn private_mounts() -> io::Result<()> {
    // SAFETY: strings that end in zero, or null where mount(2) allows it.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS))?;
        let none = std::ptr::null();
        done(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))
    }
}

/// Has INT, TERM and HUP end this process, and what it starts, also where whoever has started it ignores them, as nohup(1) and scripts
/// do for what they start in the background.
pub fn heed_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// See umask(2).
pub fn umask(mask: u32) {
    // SAFETY: cannot fail.
    unsafe { libc::umask(mask) };
}

/// Ends an ext4 as a power cut does: nothing more is written, the journal is not flushed.
pub fn shut_down_ext4(directory: &File) -> io::Result<()> {
    const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
    let without_log_flush: u32 = 2;
    // SAFETY: the flag lives through the call.
    done(unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_SHUTDOWN, &without_log_flush) })
}

/// See statvfs(3).
pub fn statvfs(path: &Path) -> io::Result<libc::statvfs> {
    // SAFETY: all zero is a value of this plain structure; path and structure live through the call.
    unsafe {
        let mut result: libc::statvfs = std::mem::zeroed();
        done(libc::statvfs(c(path).as_ptr(), &mut result))?;
        Ok(result)
    }
}
