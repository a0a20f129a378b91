//! Between the filesystem's types and the kernel's: attributes, times, errors, openings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, INodeNo, InitFlags, RenameFlags, ReplyOpen, TimeOrNow,
};

use crate::fs::{Attributes, Fallocate, FsError, Ino, Kind, RenameMode, Time};
use crate::page::BLOCK_SIZE;

/// The number that the kernel knows an inode by.
pub fn inode_no(ino: Ino) -> INodeNo {
    INodeNo(ino.0)
}

/// Opening needs nothing, so the kernel need not ask. One before 5.1 takes that for an error of opendir: it gets handles instead.
pub fn reply_open(kernel: InitFlags, not_asking: InitFlags, reply: ReplyOpen) {
    match kernel.contains(not_asking) {
        true => reply.error(Errno::ENOSYS),
        // As if it did not ask.
        false => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
    }
}

/// What the kernel calls a kind of inode.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// The kind of inode that the format bits of a `mode_t` stand for.
pub fn kind_of_mode(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        // mknod(2): no format bits mean a regular file.
        libc::S_IFREG | 0 => Some(Kind::File),
        libc::S_IFDIR => Some(Kind::Directory),
        libc::S_IFLNK => Some(Kind::Symlink),
        libc::S_IFCHR => Some(Kind::CharDevice),
        libc::S_IFBLK => Some(Kind::BlockDevice),
        libc::S_IFIFO => Some(Kind::Fifo),
        libc::S_IFSOCK => Some(Kind::Socket),
        _ => None,
    }
}

/// How `renameat2` is to rename, by its flags.
pub fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    const NO_REPLACE: RenameFlags = RenameFlags::RENAME_NOREPLACE;
    const WHITEOUT: RenameFlags = RenameFlags::RENAME_WHITEOUT;
    match flags {
        f if f.is_empty() => Some(RenameMode::Replace),
        NO_REPLACE => Some(RenameMode::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Some(RenameMode::Exchange),
        WHITEOUT => Some(RenameMode::Whiteout { replace: true }),
        f if f == WHITEOUT | NO_REPLACE => Some(RenameMode::Whiteout { replace: false }),
        _ => None,
    }
}

/// What `fallocate` is to do, by its mode.
pub fn fallocate_mode(mode: i32) -> Option<Fallocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 => Some(Fallocate::Allocate),
        KEEP => Some(Fallocate::KeepSize),
        PUNCH => Some(Fallocate::PunchHole),
        ZERO => Some(Fallocate::ZeroRange),
        ZERO_KEEP => Some(Fallocate::ZeroKeepSize),
        _ => None,
    }
}

/// What `stat` gets.
pub fn file_attr(a: &Attributes) -> FileAttr {
    FileAttr {
        ino: inode_no(a.ino),
        size: a.size,
        blocks: a.blocks,
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: system_time(a.btime),
        kind: file_type(a.kind),
        perm: a.mode,
        nlink: a.links,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: BLOCK_SIZE as u32,
        flags: 0,
    }
}

/// The attributes of no inode: a reply with them tells the kernel that a name does not exist, and to remember that.
pub fn no_inode() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(time.nanos.into());
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    };
    whole.and_then(|t| t.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A time from a request. fuser makes one before 1970 from the kernel's negative seconds and nanoseconds that count forward by
/// subtracting both, so the same is undone here.
pub fn time(time: SystemTime) -> Time {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(d) => Time { seconds: d.as_secs() as i64, nanos: d.subsec_nanos() },
        Err(before) => {
            let d = before.duration();
            Time { seconds: (d.as_secs() as i64).wrapping_neg(), nanos: d.subsec_nanos() }
        }
    }
}

/// A time to be set.
pub fn time_or_now(t: TimeOrNow, now: Time) -> Time {
    match t {
        TimeOrNow::SpecificTime(t) => time(t),
        TimeOrNow::Now => now,
    }
}

/// The time, from the clock that the kernel stamps its own changes with (one tick of resolution): two clocks side by side could
/// make what was written later look older.
pub fn now() -> Time {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a timespec for the call to fill in; this clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut t) };
    Time { seconds: t.tv_sec, nanos: t.tv_nsec as u32 }
}

/// Refuses names of extended attributes that cannot be; the kernel passes on all. As elsewhere, there must be such a namespace
/// (EOPNOTSUPP), and a name in it (EINVAL).
pub fn check_xattr_name(name: &OsStr) -> Result<(), Errno> {
    let name = name.as_bytes();
    if matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default") {
        return Ok(());
    }
    match [&b"user."[..], b"trusted.", b"security."].into_iter().find_map(|n| name.strip_prefix(n)) {
        Some([]) => Err(Errno::EINVAL),
        Some(_) => Ok(()),
        None => Err(Errno::EOPNOTSUPP),
    }
}

/// What a failed call returns to its caller.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid => Errno::EINVAL,
        FsError::FileTooLarge => Errno::EFBIG,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::NoAttribute => Errno::NO_XATTR,
        FsError::AttributeTooLarge => Errno::E2BIG,
        FsError::NotPermitted => Errno::EACCES,
        FsError::ReadOnly => Errno::EROFS,
        // What is asked of the image is not possible for it; nothing is wrong with it.
        FsError::Engine(crate::Error::Unusable(_)) => Errno::EINVAL,
        FsError::Contents(_) | FsError::Engine(_) => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_needs_a_namespace_and_a_name() {
        let check = |name: &str| check_xattr_name(OsStr::new(name)).map_err(|e| e.code());
        for name in ["user.a", "trusted.a", "security.a", "user..", "system.posix_acl_access"] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for name in ["user.", "trusted.", "security."] {
            assert_eq!(check(name), Err(libc::EINVAL), "{name}");
        }
        for name in ["", "user", "other.a", "system.", "system.a"] {
            assert_eq!(check(name), Err(libc::EOPNOTSUPP), "{name}");
        }
    }

    #[test]
    fn times_before_1970_survive_the_way_in_and_out() {
        for (seconds, nanos) in [(0, 0), (5, 999_999_999), (-1, 1), (-86_400, 500_000_000), (-(1 << 40), 0)] {
            // What fuser makes of the kernel's two numbers.
            let request = if seconds >= 0 {
                SystemTime::UNIX_EPOCH + Duration::new(seconds as u64, nanos)
            } else {
                SystemTime::UNIX_EPOCH - Duration::new(-seconds as u64, nanos)
            };
            let stored = time(request);
            assert_eq!(stored, Time { seconds, nanos });
            let reply = system_time(stored);
            // What fuser makes of it for the kernel.
            let (s, n) = match reply.duration_since(SystemTime::UNIX_EPOCH) {
                Ok(d) => (d.as_secs() as i64, d.subsec_nanos()),
                Err(e) if e.duration().subsec_nanos() == 0 => (-(e.duration().as_secs() as i64), 0),
                Err(e) => (-(e.duration().as_secs() as i64) - 1, 1_000_000_000 - e.duration().subsec_nanos()),
            };
            assert_eq!((s, n), (seconds, nanos));
        }
    }
}
