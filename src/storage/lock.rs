//! Why an image could not be opened, and who holds it.
//!
//! The lock is flock(2)'s. It belongs to the open file description: it is inherited by a forked child, and it
//! is gone when the last descriptor is closed, also by kill -9. `/proc/locks` names the process that *took*
//! the lock; if that one has since handed it to a child and ended, `/proc/PID/fdinfo` tells who has it now.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::escape::escaped;

/// Why an image could not be opened or created.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file, or no such folder to create it in.
    #[error("{}: no such file or directory", path.display())]
    NotFound {
        /// What was to be opened.
        path: PathBuf,
    },
    /// The file may not be read, or not be written in [`super::OpenMode::ReadWrite`].
    #[error("{}: permission denied", path.display())]
    PermissionDenied {
        /// What was to be opened.
        path: PathBuf,
    },
    /// It is a directory.
    #[error("{}: is a directory", path.display())]
    IsDirectory {
        /// What was to be opened.
        path: PathBuf,
    },
    /// It is a pipe, a terminal, or the like.
    #[error("{}: is neither a regular file nor a block device", path.display())]
    NotAFile {
        /// What was to be opened.
        path: PathBuf,
    },
    /// It was to be created, and is already there.
    #[error("{}: already exists", path.display())]
    Exists {
        /// What was to be created.
        path: PathBuf,
    },
    /// Somebody has it open.
    #[error("{}: image is in use by {}", path.display(), Named(holder))]
    InUse {
        /// What was to be opened.
        path: PathBuf,
        /// Who has it open, as far as that could be found out.
        holder: Option<Holder>,
    },
    /// Any other error of the operating system.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was to be opened.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

impl OpenError {
    /// The error of an operation on a path.
    pub fn new(path: &Path, source: io::Error) -> OpenError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => OpenError::NotFound { path },
            io::ErrorKind::PermissionDenied => OpenError::PermissionDenied { path },
            io::ErrorKind::IsADirectory => OpenError::IsDirectory { path },
            io::ErrorKind::AlreadyExists => OpenError::Exists { path },
            _ => OpenError::Io { path, source },
        }
    }

    /// Whether the image could not be opened because it may not be changed; then perhaps it may be read.
    pub fn may_be_readable(&self) -> bool {
        match self {
            OpenError::PermissionDenied { .. } => true,
            OpenError::Io { source, .. } => source.kind() == io::ErrorKind::ReadOnlyFilesystem,
            _ => false,
        }
    }
}

/// The process that has an image open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process number.
    pub pid: u32,
    /// Its name, at most 15 bytes of it.
    pub name: String,
}

struct Named<'a>(&'a Option<Holder>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => write!(f, "process {} ({})", holder.pid, holder.name),
            None => f.write_str("another process"),
        }
    }
}

/// Finds the process that holds a flock on this file. `None` if it ended meanwhile, is not visible from here,
/// or `/proc` is missing.
pub(super) fn find_holder(path: &Path) -> Option<Holder> {
    // It need not be readable, and a device may be in exclusive use.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let (major, minor) = superblock_device(&file)
        .unwrap_or_else(|| (libc::major(metadata.dev()), libc::minor(metadata.dev())));
    let id = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let taker = locks.lines().find_map(|line| flock_taker(line, &id));
    taker.and_then(process).or_else(|| find_heir(&id))
}

/// The device of the filesystem that a file lies on, as locks are listed with it: on btrfs, stat tells another one, that of the
/// subvolume.
fn superblock_device(file: &File) -> Option<(u32, u32)> {
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    // It holds names of other filesystems, which need not be text.
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    device_of_mount(&fdinfo, &String::from_utf8_lossy(&mounts))
}

/// The device, as `/proc/self/mountinfo` tells it, of the mount that a descriptor's `fdinfo` names.
///
/// ```text
/// mnt_id:\t29
/// 29 1 0:25 /@home /home rw,relatime shared:1 - btrfs /dev/sda2 rw,subvol=/@home
/// ```
pub(super) fn device_of_mount(fdinfo: &str, mounts: &str) -> Option<(u32, u32)> {
    let id = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let mut mounts = mounts.lines().map(str::split_ascii_whitespace);
    let device = mounts.find_map(|mut words| (words.next()? == id).then(|| words.nth(1))?)?;
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The process that took the lock which a line of `/proc/locks` describes, if it is a flock on the file `id`
/// (`major:minor:inode`) and not just somebody waiting for one (`->`).
///
/// ```text
/// 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
/// ```
pub(super) fn flock_taker(line: &str, id: &str) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let is_flock = words.next() == Some("FLOCK");
    let pid = words.nth(2)?;
    (is_flock && words.next() == Some(id)).then(|| pid.parse().ok()).flatten()
}

/// Looks for a process that has the locked descriptor itself.
fn find_heir(id: &str) -> Option<Holder> {
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
        descriptors.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok()).any(|info| {
            let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
            locks.any(|line| flock_taker(line, id).is_some())
        })
    };
    pids.find(holds).and_then(process)
}

fn process(pid: u32) -> Option<Holder> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(Holder { pid, name: escaped(name.trim_ascii_end()) })
}
