//! An image and its mount, for one case.

use crate::runner::not_run;
use crate::shell::{Shell, must};
use crate::sys;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The filesystem under test. `BTFS_TEST_PEER=ext4` runs the cases on ext4, where they must pass too: that shows
/// that a case asks for nothing unusual.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Peer {
    /// The command `btfs`.
    Btfs,
    /// The kernel's ext4 on a loop device.
    Ext4,
}

impl Peer {
    /// The one chosen in the environment.
    pub fn chosen() -> Peer {
        match std::env::var("BTFS_TEST_PEER").as_deref() {
            Err(_) | Ok("" | "btfs") => Peer::Btfs,
            Ok("ext4") => Peer::Ext4,
            Ok(other) => panic!("BTFS_TEST_PEER={other}: only btfs and ext4 are known"),
        }
    }
}

/// The binary: `BTFS` in the environment, or the one built beside the tests.
pub fn binary() -> PathBuf {
    let path = match std::env::var_os("BTFS") {
        Some(path) => PathBuf::from(path),
        None => {
            let here = std::env::current_exe().expect("the path of this program");
            here.ancestors().nth(2).expect("target/PROFILE/deps/program").join("btfs")
        }
    };
    assert!(path.is_file(), "no {path:?}: build it with the same profile, or say BTFS=/path/to/btfs");
    fs::canonicalize(&path).expect("the path of btfs")
}

/// An image, its mount point and a scratch directory beside it, all in one temporary directory.
pub struct Mount {
    /// Which filesystem.
    pub peer: Peer,
    /// Holds all of the following.
    pub base: PathBuf,
    /// The image.
    pub image: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// A directory on the machine's own filesystem.
    pub scratch: PathBuf,
    options: String,
    by_user: bool,
    mounted: bool,
}

impl Mount {
    /// The places, with nothing made or mounted yet.
    pub fn plan(base: &Path, options: &str, by_user: bool) -> Mount {
        let mut all = vec![];
        if sys::is_root() && !by_user {
            all.push("allow_other".to_owned());
        }
        all.extend(std::env::var("BTFS_TEST_OPTIONS").ok().filter(|o| !o.is_empty()));
        all.extend(Some(options.to_owned()).filter(|o| !o.is_empty()));
        let mount = Mount {
            peer: Peer::chosen(),
            base: base.to_owned(),
            image: base.join("image.db"),
            point: base.join("mnt"),
            scratch: base.join("scratch"),
            options: all.join(","),
            by_user,
            mounted: false,
        };
        for directory in [&mount.base, &mount.point, &mount.scratch] {
            fs::create_dir_all(directory).expect("a directory for the case");
            // Whoever may write into the scratch directory of a case is root or the ordinary user.
            sys::chmod(directory, 0o755).expect("chmod");
            if by_user {
                let (uid, gid) = sys::ordinary_user();
                std::os::unix::fs::chown(directory, Some(uid), Some(gid)).expect("chown");
            }
        }
        mount
    }

    /// Whether an ordinary user has mounted.
    pub fn by_user(&self) -> bool {
        self.by_user
    }

    /// A path in the mount.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.point.join(name)
    }

    /// A shell in the root of the mount; `$SCRATCH` is the directory beside it.
    pub fn shell(&self) -> Shell {
        Shell::new(&self.point)
            .set("SCRATCH", &self.scratch)
            .set("IMAGE", &self.image)
            .set("MNT", &self.point)
    }

    /// Leaves the case where it asks for something only btfs has.
    pub fn only_btfs(&self) {
        if self.peer != Peer::Btfs {
            not_run("about btfs itself");
        }
    }

    /// `btfs` with arguments, as the user who mounts.
    pub fn btfs<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).stdin(Stdio::null());
        if self.by_user {
            let (uid, gid) = sys::ordinary_user();
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Makes an empty filesystem.
    pub fn format(&self) {
        self.format_with_size("64G");
    }

    /// Makes an empty filesystem with a limit to its size.
    pub fn format_with_size(&self, size: &str) {
        match self.peer {
            Peer::Btfs => must(self.btfs(["mkfs", "--size", size]).arg(&self.image)),
            Peer::Ext4 => {
                must(Command::new("truncate").args(["-s", size]).arg(&self.image));
                let inodes = if size == "64G" { ["-N", "400000"] } else { ["-N", "4000"] };
                must(Command::new("mkfs.ext4").args(["-q", "-F"]).args(inodes).arg(&self.image))
            }
        };
    }

    /// Unmounts, and makes an empty filesystem with a limit to its size in the image's place.
    pub fn replace_image(&mut self, size: &str) {
        self.unmount();
        fs::remove_file(&self.image).expect("unlink");
        self.format_with_size(size);
    }

    /// Mounts, with what the case asked for.
    pub fn mount(&mut self) {
        let options = self.options.clone();
        let (status, said) = self.try_mount(&options);
        assert!(status.success(), "mounting: {status}\n{said}");
        assert!(self.is_mounted(), "mount succeeded but nothing is mounted");
        self.mounted = true;
        if self.by_user && self.peer == Peer::Ext4 {
            // The kernel mounts an image for root only; a user's btfs belongs to its user.
            let (uid, gid) = sys::ordinary_user();
            if fs::metadata(&self.point).expect("the root").uid() != uid {
                std::os::unix::fs::chown(&self.point, Some(uid), Some(gid)).expect("chown");
            }
        }
    }

    /// Tries to mount with these options only, and gives the status and what was said.
    pub fn try_mount(&self, options: &str) -> (ExitStatus, String) {
        let mut command = match self.peer {
            Peer::Btfs => self.btfs(["mount"]),
            Peer::Ext4 => Command::new("mount"),
        };
        let options: Vec<_> = match self.peer {
            Peer::Btfs => options.split(',').filter(|o| !o.is_empty()).collect(),
            Peer::Ext4 => {
                [&["loop"], &options.split(',').filter(|o| *o == "ro").collect::<Vec<_>>()[..]].concat()
            }
        };
        if !options.is_empty() {
            command.args(["-o", &options.join(",")]);
        }
        command.arg(&self.image).arg(&self.point);
        self.said_by(&mut command)
    }

    /// Runs a command that may leave a daemon behind: its outputs go to a file, so that nobody waits for their end.
    pub fn said_by(&self, command: &mut Command) -> (ExitStatus, String) {
        let path = self.base.join("said");
        let file = File::create(&path).expect("a file for outputs");
        let copy = file.try_clone().expect("dup");
        let status = command.stdin(Stdio::null()).stdout(copy).stderr(file).status();
        let status = status.unwrap_or_else(|e| panic!("{command:?}: {e}"));
        (status, String::from_utf8_lossy(&fs::read(&path).expect("what was said")).into_owned())
    }

    /// Whether anything is mounted there, be it alive or dead.
    pub fn is_mounted(&self) -> bool {
        let mounts = fs::read("/proc/self/mounts").expect("/proc/self/mounts");
        let mounts = String::from_utf8_lossy(&mounts);
        let point = self.point.to_str().expect("a path in UTF-8");
        mounts.lines().any(|line| line.split(' ').nth(1) == Some(point))
    }

    /// Whether the mounted filesystem answers.
    pub fn is_alive(&self) -> bool {
        fs::metadata(&self.point).is_ok() && self.find_daemon().is_some()
    }

    /// Unmounts and waits until everything is in the image.
    pub fn unmount(&mut self) {
        match self.peer {
            Peer::Btfs => must(self.btfs(["umount"]).arg(&self.point)),
            Peer::Ext4 => must(Command::new("umount").arg(&self.point)),
        };
        assert!(!self.is_mounted(), "umount succeeded but something is mounted");
        self.mounted = false;
    }

    /// Unmounts and mounts again: nothing is served from any cache.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// The daemon that serves the image.
    pub fn daemon(&self) -> i32 {
        self.find_daemon().expect("a daemon serves the image")
    }

    fn find_daemon(&self) -> Option<i32> {
        let own = std::process::id() as i32;
        processes_at(&self.base).into_iter().find(|pid| {
            let name = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            *pid != own && name.to_string_lossy().trim_end_matches(" (deleted)") == binary().to_string_lossy()
        })
    }

    /// Ends the daemon without warning. What it had not yet made durable is lost; the mount is dead.
    pub fn kill(&mut self) {
        match self.peer {
            Peer::Btfs => {
                let daemon = self.daemon();
                sys::kill(daemon, libc::SIGKILL).expect("kill");
                // Its last thread may be waiting for the disk, and has the image open until then.
                let unlocked = || File::open(&self.image).is_ok_and(|image| image.try_lock_shared().is_ok());
                wait_until("the killed daemon is gone", || self.find_daemon().is_none() && unlocked());
            }
            Peer::Ext4 => {
                let root = File::open(&self.point).expect("the root");
                sys::shut_down_ext4(&root).expect("shutdown of ext4");
            }
        }
    }

    /// Mounts again after [`Mount::kill`]; btfs must cope with the dead mount that it finds there.
    pub fn recover(&mut self) {
        if self.peer == Peer::Ext4 {
            self.unmount();
        }
        self.mount();
    }

    /// The image must be sound. It is not mounted.
    pub fn check(&self) {
        match self.peer {
            Peer::Btfs => must(self.btfs(["fsck", "-n"]).arg(&self.image)),
            Peer::Ext4 => must(Command::new("e2fsck").args(["-f", "-n"]).arg(&self.image)),
        };
    }

    /// Unmounts if need be; the image must be sound.
    pub fn finish(&mut self) {
        if self.mounted {
            self.unmount();
        }
        if self.image.exists() {
            self.check();
        }
    }

    /// For a case that has unmounted or mounted by other means.
    pub fn set_mounted(&mut self, mounted: bool) {
        assert_eq!(self.is_mounted(), mounted);
        self.mounted = mounted;
    }
}

/// Names under which mount(8), mkfs(8) and fsck(8) find btfs.
pub const HELPERS: [&str; 3] = ["mount.fuse.btfs", "mkfs.btfs", "fsck.btfs"];

/// Leaves the case where mount(8) could not find btfs.
pub fn need_helpers(mount: &Mount) {
    let installed = HELPERS
        .iter()
        .all(|name| fs::canonicalize(Path::new("/sbin").join(name)).is_ok_and(|path| path == binary()));
    if mount.peer == Peer::Btfs && !installed {
        not_run("/sbin/mount.fuse.btfs cannot be put in place without root and overlayfs");
    }
}

/// Waits for up to two minutes.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(120), "in vain: until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All processes that a case has started: their command line, environment or working directory name its place.
pub fn processes_at(base: &Path) -> Vec<i32> {
    // With the final slash, since `/tmp/1` is also the beginning of `/tmp/12`.
    let place = format!("{}/", base.to_str().expect("a path in UTF-8"));
    let entries = fs::read_dir("/proc").expect("/proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let directory = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let names = |file: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            bytes.windows(place.len()).any(|part| part == place.as_bytes())
        };
        directory.starts_with(base) || names("cmdline") || names("environ")
    })
    .collect()
}
