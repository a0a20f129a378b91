//! Mounting and unmounting: mount(2) for those who may, fusermount3 for all others, and what `/proc` says about mounts.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::escape::escaped;
use crate::fs::Atime;

/// The type of a mount, in `/proc/mounts` and for mount(8).
pub const FS_TYPE: &str = "fuse.btfs";
const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// Why a volume could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel has no FUSE.
    #[error("{DEVICE} does not exist: load the kernel's module with `modprobe fuse`")]
    NoDevice,
    /// The device may not be opened, and the helper that could do it is missing.
    #[error(
        "{DEVICE} cannot be opened by this user and `{HELPER}` is not installed: install it (package fuse3), or mount as root"
    )]
    NoHelper,
    /// fusermount3 could not do it.
    #[error("{}: fusermount3: {reason}", dir.display())]
    Helper {
        /// The mount point.
        dir: PathBuf,
        /// What it says, or how it ended.
        reason: String,
    },
    /// Something is in use.
    #[error("{}: is busy{users}", dir.display())]
    Busy {
        /// The mount point.
        dir: PathBuf,
        /// Who uses it, as far as known: empty, or beginning with a colon.
        users: String,
    },
    /// Another user's mount.
    #[error("{}: another user has mounted this, who or root may unmount it", dir.display())]
    NotYours {
        /// The mount point.
        dir: PathBuf,
    },
    /// Not a mount of btfs.
    #[error("{}: no btfs image is mounted here", dir.display())]
    NotMounted {
        /// The directory.
        dir: PathBuf,
    },
    /// Anything else.
    #[error("{}: {source}", dir.display())]
    Io {
        /// The mount point.
        dir: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// What mount(2) is told.
#[derive(Clone, Debug, Default)]
pub struct MountFlags {
    /// No changes.
    pub read_only: bool,
    /// Ignore suid and sgid of programs.
    pub no_suid: bool,
    /// Ignore device nodes.
    pub no_dev: bool,
    /// Run no programs.
    pub no_exec: bool,
    /// Keep access times as they are.
    pub no_atime: bool,
    /// Let users in other than the one who mounts.
    pub allow_other: bool,
}

/// Mounts a FUSE filesystem that the returned descriptor will serve. `dir` is an absolute path.
pub fn mount(image: &Path, dir: &Path, flags: &MountFlags) -> Result<OwnedFd, MountError> {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => match mount_directly(&device, image, dir, flags) {
            Ok(()) => Ok(device.into()),
            Err(Errno::EPERM) => mount_by_helper(image, dir, flags),
            Err(Errno::EBUSY) => Err(MountError::Busy { dir: dir.into(), users: String::new() }),
            Err(e) => Err(MountError::Io { dir: dir.into(), source: e.into() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(MountError::NoDevice),
        Err(_) => mount_by_helper(image, dir, flags),
    }
}

/// Whether further descriptors of the device can be opened, one for each worker.
pub fn can_clone_device() -> bool {
    OpenOptions::new().read(true).write(true).open(DEVICE).is_ok()
}

fn mount_directly(device: &File, image: &Path, dir: &Path, flags: &MountFlags) -> Result<(), Errno> {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    if flags.allow_other {
        data.push_str(",allow_other");
    }
    let mut ms = MsFlags::empty();
    ms.set(MsFlags::MS_RDONLY, flags.read_only);
    ms.set(MsFlags::MS_NOSUID, flags.no_suid);
    ms.set(MsFlags::MS_NODEV, flags.no_dev);
    ms.set(MsFlags::MS_NOEXEC, flags.no_exec);
    ms.set(MsFlags::MS_NOATIME, flags.no_atime);
    nix::mount::mount(Some(image), dir, Some(FS_TYPE), ms, Some(data.as_str()))
}

/// fusermount3 opens the device and mounts, and passes the descriptor over a socket that an environment variable names.
fn mount_by_helper(image: &Path, dir: &Path, flags: &MountFlags) -> Result<OwnedFd, MountError> {
    let fail = |source| MountError::Io { dir: dir.into(), source };
    let mut options = OsString::from("default_permissions,subtype=btfs,fsname=");
    options.push(quoted(image.as_os_str()));
    let with = [
        (flags.read_only, ",ro"),
        (flags.no_suid, ",nosuid"),
        (flags.no_dev, ",nodev"),
        (flags.no_exec, ",noexec"),
        (flags.no_atime, ",noatime"),
        (flags.allow_other, ",allow_other"),
    ];
    for (_, option) in with.iter().filter(|(set, _)| *set) {
        options.push(option);
    }
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    let mut command = Command::new(HELPER);
    command.arg("-o").arg(options).arg("--").arg(dir);
    command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string()).stderr(Stdio::piped()).stdin(Stdio::null());
    let fd = theirs.as_raw_fd();
    // SAFETY: only fcntl runs between fork and exec, which is async-signal-safe; `theirs` is open until after the spawn.
    unsafe {
        command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let child = command.spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => MountError::NoHelper,
        _ => fail(e),
    })?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(fail)?;
    match received {
        Ok(Some(fd)) if output.status.success() => Ok(fd),
        _ => Err(MountError::Helper { dir: dir.into(), reason: reason_of(&output) }),
    }
}

/// What a command that failed says about it, or how it ended.
fn reason_of(output: &Output) -> String {
    match String::from_utf8_lossy(&output.stderr).trim() {
        "" => output.status.to_string(),
        said => said.to_owned(),
    }
}

/// An option's value for fusermount3: commas end it, a backslash protects.
fn quoted(value: &OsStr) -> OsString {
    let mut bytes = Vec::with_capacity(value.len());
    for b in value.as_bytes() {
        if matches!(b, b',' | b'\\') {
            bytes.push(b'\\');
        }
        bytes.push(*b);
    }
    OsString::from_vec(bytes)
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(None)
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mounted {
    /// `major:minor`, which no other filesystem has at the same time.
    pub device: String,
    /// Where.
    pub dir: PathBuf,
    /// The type.
    pub fs_type: String,
    /// What: the path of the image.
    pub source: PathBuf,
    /// Whether nothing can be changed there.
    pub read_only: bool,
    /// Which accesses change access times there.
    pub atime: Atime,
}

impl Mounted {
    /// Whether both are the same filesystem. The number of a device is not enough: another mount may have got it meanwhile.
    pub fn is_of(&self, other: &Mounted) -> bool {
        self.fs_type == FS_TYPE && self.device == other.device && self.source == other.source
    }

    /// Names are bytes: those of other filesystems, too, which anybody may have mounted.
    fn parse(line: &[u8]) -> Option<Mounted> {
        let words = |part: &[u8]| part.split(|b| *b == b' ').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        let has = |options: &Vec<u8>, name: &[u8]| options.split(|b| *b == b',').any(|o| o == name);
        let end = line.windows(3).position(|w| w == b" - ")?;
        let (left, right) = (words(&line[..end]), words(&line[end + 3..]));
        Some(Mounted {
            device: text(left.get(2)?),
            dir: unescaped(left.get(4)?),
            fs_type: text(right.first()?),
            source: unescaped(right.get(1)?),
            read_only: has(left.get(5)?, b"ro") || right.get(2).is_some_and(|options| has(options, b"ro")),
            atime: match left.get(5)? {
                flags if has(flags, b"ro") || has(flags, b"noatime") => Atime::None,
                flags if has(flags, b"relatime") => Atime::Relatime,
                _ => Atime::Strict,
            },
        })
    }
}

/// Undoes the octal escapes for blanks and backslashes.
fn unescaped(bytes: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        out.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(out))
}

/// The mount of btfs at a directory, also if its daemon is dead. With several on top of each other, the upper one. A mount that is
/// called by its own name is not asked: its daemon may be stopped.
pub fn find(dir: &Path) -> Option<Mounted> {
    unasked(dir).and_then(|dir| at(&dir)).or_else(|| at(&absolute(dir).ok()?))
}

/// The absolute path, without looking at its last part, which may be a link.
fn unasked(dir: &Path) -> Option<PathBuf> {
    let dir = std::path::absolute(dir).ok()?;
    Some(dir.parent()?.canonicalize().ok()?.join(dir.file_name()?))
}

/// The same for a path that [`absolute`] has made. Asks no filesystem.
pub fn at(dir: &Path) -> Option<Mounted> {
    let found = table(Path::new("/proc/self")).into_iter().rfind(|m| m.dir == dir);
    found.filter(|m| m.fs_type == FS_TYPE)
}

/// The mount of this image, if it is mounted; the newest, for others may be left of daemons that died.
pub fn find_source(image: &Path) -> Option<Mounted> {
    table(Path::new("/proc/self")).into_iter().rfind(|m| m.fs_type == FS_TYPE && m.source == image)
}

/// Where this filesystem is mounted, those above others behind them.
pub fn places(mounted: &Mounted) -> Vec<Mounted> {
    let mut mounts = table(Path::new("/proc/self"));
    mounts.retain(|m| m.is_of(mounted));
    mounts
}

/// Where else the filesystem of a mount that was taken away is mounted: here, or where another process lives.
pub fn elsewhere(gone: &Mounted) -> Option<String> {
    let at = |process: &Path| table(process).into_iter().find(|m| m.is_of(gone)).map(|m| m.dir);
    if let Some(dir) = at(Path::new("/proc/self")) {
        return Some(format!("at {}", escaped(dir.as_os_str().as_bytes())));
    }
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    processes.filter(|path| path.join("mountinfo").exists()).find_map(|path| {
        let dir = at(&path)?;
        let pid = path.file_name()?.to_string_lossy().into_owned();
        let dir = escaped(dir.as_os_str().as_bytes());
        Some(format!("at {dir} in the mount namespace of process {pid} ({})", name_of(&path)))
    })
}

/// The mounts that a process sees, those above others behind them.
fn table(process: &Path) -> Vec<Mounted> {
    let table = fs::read(process.join("mountinfo")).unwrap_or_default();
    table.split(|b| *b == b'\n').filter_map(Mounted::parse).collect()
}

/// The name of a process with this directory in `/proc`.
fn name_of(process: &Path) -> String {
    escaped(fs::read(process.join("comm")).unwrap_or_default().trim_ascii_end())
}

/// The absolute path, without following what the last component may be a dead mount of.
pub fn absolute(dir: &Path) -> io::Result<PathBuf> {
    match dir.canonicalize() {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => unasked(dir).ok_or(e),
        other => other,
    }
}

/// Whether the daemon of a mount is gone. The attributes of its root may still be in the kernel's cache; the space never is.
pub fn is_dead(dir: &Path) -> bool {
    // The second is what a request gets that was on its way when the daemon died.
    let dead = [Errno::ENOTCONN, Errno::ECONNABORTED];
    nix::sys::statvfs::statvfs(dir).is_err_and(|e| dead.contains(&e))
}

/// Takes a mount away; with `lazy` at once from the tree of names, and entirely when nobody uses it any more.
pub fn unmount(dir: &Path, lazy: bool) -> Result<(), MountError> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() } | MntFlags::UMOUNT_NOFOLLOW;
    match nix::mount::umount2(dir, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => unmount_by_helper(dir, lazy),
        Err(Errno::EBUSY) => Err(MountError::Busy { dir: dir.into(), users: users(dir) }),
        Err(e) => Err(MountError::Io { dir: dir.into(), source: e.into() }),
    }
}

fn unmount_by_helper(dir: &Path, lazy: bool) -> Result<(), MountError> {
    let output = Command::new(HELPER).arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(dir).output();
    let output = output.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => MountError::NoHelper,
        _ => MountError::Io { dir: dir.into(), source: e },
    })?;
    if output.status.success() {
        return Ok(());
    }
    let reason = reason_of(&output);
    if reason.contains("busy") {
        return Err(MountError::Busy { dir: dir.into(), users: users(dir) });
    }
    // It looks for what this user has mounted.
    if reason.contains("not found in") && at(dir).is_some() {
        return Err(MountError::NotYours { dir: dir.into() });
    }
    Err(MountError::Helper { dir: dir.into(), reason })
}

/// The processes that use a mount, as far as this user can see: ": process 12 (bash), …".
fn users(dir: &Path) -> String {
    let Ok(processes) = fs::read_dir("/proc") else { return String::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        // The one who asks may have been called in there; then so has the shell that called it.
        if pid == std::process::id() {
            continue;
        }
        let path = process.path();
        let links = [path.join("cwd"), path.join("root"), path.join("exe")];
        let descriptors = fs::read_dir(path.join("fd")).into_iter().flatten().flatten().map(|d| d.path());
        let uses = links
            .into_iter()
            .chain(descriptors)
            .any(|link| fs::read_link(link).is_ok_and(|target| target.starts_with(dir)));
        let maps = || fs::read(path.join("maps")).unwrap_or_default();
        if uses || contains(&maps(), dir.as_os_str().as_bytes()) {
            found.push(format!("process {pid} ({})", name_of(&path)));
        }
    }
    if found.is_empty() { String::new() } else { format!(": used by {}", found.join(", ")) }
}

/// Whether a mapping's path lies below the directory.
fn contains(maps: &[u8], dir: &[u8]) -> bool {
    maps.split(|b| *b == b'\n')
        .any(|line| line.windows(dir.len() + 1).any(|w| &w[..dir.len()] == dir && w[dir.len()] == b'/'))
}

/// Raises the kernel's read-ahead on a mount; only root may, and nothing depends on it.
pub fn set_read_ahead(mounted: &Mounted, kib: u32) {
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", mounted.device);
    if let Err(e) = fs::write(&path, kib.to_string()) {
        log::debug!("{path}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_with_blanks_in_its_names_is_recognised() {
        let line = br"45 28 0:41 / /mnt/a\040b rw,relatime shared:1 - fuse.btfs /home/x/im\134age\040one.db rw,user_id=0";
        let mounted = Mounted::parse(line).unwrap();
        assert_eq!(mounted.device, "0:41");
        assert_eq!(mounted.dir, Path::new("/mnt/a b"));
        assert_eq!(mounted.fs_type, FS_TYPE);
        assert_eq!(mounted.source, Path::new("/home/x/im\\age one.db"));
    }

    #[test]
    fn names_that_are_no_text_are_names_as_well() {
        let line = b"45 28 0:41 / /mnt/\xff rw - fuse.btfs /home/\xfe.db ro,user_id=0";
        let mounted = Mounted::parse(line).unwrap();
        assert_eq!(mounted.dir.as_os_str().as_bytes(), b"/mnt/\xff");
        assert_eq!(mounted.source.as_os_str().as_bytes(), b"/home/\xfe.db");
        assert!(mounted.read_only);
        assert_eq!(Mounted::parse(b"45 28 0:41 / /mnt"), None);
    }

    #[test]
    fn a_comma_in_the_image_name_injects_no_option() {
        assert_eq!(quoted(OsStr::new("a,suid\\b")), OsStr::new("a\\,suid\\\\b"));
    }
}
