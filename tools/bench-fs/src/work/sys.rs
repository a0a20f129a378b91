//! System calls of the hot loops, relative to an open directory, with names that are made without allocating.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

/// The name of the file with a number: `prefix` and nine digits.
pub struct Name([u8; 32]);

impl Name {
    pub fn new(prefix: &str, n: u64) -> Name {
        let mut bytes = [0; 32];
        // Prefixes are short; what does not fit would be cut off before the zero at the end.
        let _ = write!(&mut bytes[..31], "{prefix}{n:09}");
        Name(bytes)
    }

    fn as_c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// An open directory.
pub struct Dir(File);

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Dir {
    pub fn open(path: &Path) -> io::Result<Dir> {
        File::open(path).map(Dir)
    }

    fn open_at(&self, name: &Name, flags: i32) -> io::Result<File> {
        // SAFETY: the directory is open, and the name ends with zero.
        let fd = check(unsafe {
            libc::openat(self.0.as_raw_fd(), name.as_c().as_ptr(), flags | libc::O_CLOEXEC, 0o644)
        })?;
        // SAFETY: the descriptor is new, and nobody else has it.
        Ok(unsafe { File::from_raw_fd(fd) })
    }

    /// Creates an empty file.
    pub fn create(&self, name: &Name) -> io::Result<()> {
        self.open_at(name, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL).map(drop)
    }

    /// Opens a file, writes, and closes it.
    pub fn write(&self, name: &Name, data: &[u8]) -> io::Result<()> {
        self.open_at(name, libc::O_WRONLY)?.write_all(data)
    }

    pub fn stat(&self, name: &Name) -> io::Result<()> {
        // SAFETY: a stat of zeros is valid.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        let (dir, name, flags) = (self.0.as_raw_fd(), name.as_c().as_ptr(), libc::AT_SYMLINK_NOFOLLOW);
        // SAFETY: the directory is open, the name ends with zero, and `stat` outlives the call that fills it in.
        check(unsafe { libc::fstatat(dir, name, &mut stat, flags) }).map(drop)
    }

    pub fn unlink(&self, name: &Name) -> io::Result<()> {
        // SAFETY: the directory is open, and the name ends with zero.
        check(unsafe { libc::unlinkat(self.0.as_raw_fd(), name.as_c().as_ptr(), 0) }).map(drop)
    }

    /// Asks for the filesystem's free space; through FUSE this always reaches the daemon.
    pub fn statfs(&self) -> io::Result<()> {
        // SAFETY: a statfs of zeros is valid.
        let mut statfs: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the directory is open, and `statfs` outlives the call that fills it in.
        check(unsafe { libc::fstatfs(self.0.as_raw_fd(), &mut statfs) }).map(drop)
    }
}
