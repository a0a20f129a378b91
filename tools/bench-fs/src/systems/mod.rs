//! The filesystems that are compared, and how each is made, mounted and taken away.

mod daemon;
mod passthrough;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use btfs_bench_common::cleanup;
use serde::Serialize;

use crate::floor;
use daemon::Daemon;

/// A column of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemId {
    Btfs,
    Floor,
    Ext4,
    Fuse2fs,
    Passthrough,
    Host,
}

impl SystemId {
    pub const ALL: [SystemId; 6] = {
        use SystemId::{Btfs, Ext4, Floor, Fuse2fs, Host, Passthrough};
        [Btfs, Floor, Ext4, Fuse2fs, Passthrough, Host]
    };

    pub fn name(self) -> &'static str {
        match self {
            SystemId::Btfs => "btfs",
            SystemId::Floor => "floor",
            SystemId::Ext4 => "ext4",
            SystemId::Fuse2fs => "fuse2fs",
            SystemId::Passthrough => "passthrough",
            SystemId::Host => "host",
        }
    }

    /// How it is set up.
    pub fn title(self) -> &'static str {
        match self {
            SystemId::Btfs => "an image mounted with default options",
            SystemId::Floor => {
                "btfs's own adapter over a volume in memory that stores nothing; files above 16 MiB are discarded and read as zeros"
            }
            SystemId::Ext4 => "the kernel's ext4 in an equal image on a loop device",
            SystemId::Fuse2fs => "ext4 in an equal image, served through FUSE by e2fsprogs' fuse2fs",
            SystemId::Passthrough => {
                "libfuse's passthrough_ll (cache=always, writeback) over a folder of the host; keeps its inodes in a linear list"
            }
            SystemId::Host => "a folder of the host's filesystem, which also holds all images",
        }
    }

    /// Whether it counts requests and tells them.
    pub fn has_stats(self) -> bool {
        matches!(self, SystemId::Btfs | SystemId::Floor)
    }
}

/// Where things are.
#[derive(Clone, Debug)]
pub struct Setup {
    /// For images, mount points and whatever else a run makes.
    pub dir: PathBuf,
    /// For what is built once.
    pub cache: PathBuf,
    /// The command.
    pub btfs: PathBuf,
    /// Options of the btfs mount.
    pub mount_options: String,
    /// Of the images, in bytes.
    pub image_size: u64,
}

/// A filesystem that can be mounted and taken away.
pub struct System {
    pub id: SystemId,
    setup: Setup,
    /// The mount point.
    root: PathBuf,
    /// The image, or the folder that is passed through.
    store: PathBuf,
    device: Option<String>,
    daemon: Option<Daemon>,
    /// The program that serves, where it is not known from the start.
    program: PathBuf,
    is_mounted: bool,
}

/// How long a daemon may take to mount, and to end.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_micros(200);

impl System {
    /// Makes an empty one. `label` tells several apart.
    pub fn create(id: SystemId, setup: &Setup, label: &str) -> Result<System> {
        cleanup::stay_if_ending();
        let root = setup.dir.join(format!("{}-{label}", id.name()));
        let store = setup.dir.join(format!("{}-{label}.store", id.name()));
        fs::create_dir(&root)?;
        let mut system = System {
            id,
            setup: setup.clone(),
            root,
            store,
            device: None,
            daemon: None,
            program: PathBuf::new(),
            is_mounted: false,
        };
        system.format()?;
        Ok(system)
    }

    fn format(&mut self) -> Result<()> {
        match self.id {
            SystemId::Btfs => {
                let size = self.setup.image_size.to_string();
                run(Command::new(&self.setup.btfs).args(["mkfs", "--size", &size]).arg(&self.store))?;
            }
            SystemId::Ext4 | SystemId::Fuse2fs => {
                File::create_new(&self.store)?.set_len(self.setup.image_size)?;
                run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&self.store))?;
            }
            SystemId::Passthrough => {
                self.program = passthrough::program(&self.setup.cache)?;
                fs::create_dir(&self.store)?;
            }
            SystemId::Floor => self.program = std::env::current_exe()?,
            SystemId::Host => {}
        }
        if self.id == SystemId::Ext4 {
            let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&self.store))?;
            let device = device.trim().to_owned();
            cleanup::add_device(&device);
            self.device = Some(device);
        }
        Ok(())
    }

    /// The directory that rows work in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The process that serves, if there is one.
    pub fn daemon_id(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::id)
    }

    /// Mounts; returns when the root directory can be used.
    pub fn mount(&mut self) -> Result<()> {
        cleanup::stay_if_ending();
        if self.id == SystemId::Host {
            return Ok(());
        }
        ensure!(!self.is_mounted, "{} is mounted already", self.id.name());
        let before = device_of(&self.root)?;
        cleanup::add_mount(&self.root);
        self.is_mounted = true;
        if let Some(device) = &self.device {
            run(Command::new("mount")
                .args(["-t", "ext4", "-o", "noinit_itable"])
                .arg(device)
                .arg(&self.root))?;
            return Ok(());
        }
        if self.id == SystemId::Floor {
            let daemon = match &mut self.daemon {
                Some(daemon) => daemon,
                none => none.insert(Daemon::start(&mut self_command(&self.program, &self.root))?),
            };
            daemon.tell(floor::MOUNT)?;
        } else {
            self.daemon = Some(Daemon::start(&mut self.serve_command())?);
        }
        let daemon = self.daemon.as_mut().context("no daemon")?;
        let begin = Instant::now();
        while device_of(&self.root)? == before {
            daemon.check_alive()?;
            ensure!(begin.elapsed() < MOUNT_LIMIT, "{} did not mount", self.id.name());
            sleep(POLL);
        }
        Ok(())
    }

    fn serve_command(&self) -> Command {
        let (root, store) = (&self.root, &self.store);
        let mut command;
        match self.id {
            SystemId::Btfs => {
                command = Command::new(&self.setup.btfs);
                command.args(["mount", "-f"]);
                if !self.setup.mount_options.is_empty() {
                    command.args(["-o", &self.setup.mount_options]);
                }
                command.arg(store).arg(root);
            }
            SystemId::Fuse2fs => {
                command = Command::new("fuse2fs");
                command.arg(store).arg(root).arg("-f");
            }
            _ => {
                command = Command::new(&self.program);
                let source = format!("source={}", store.display());
                command.args(["-f", "-o", "cache=always,writeback,clone_fd", "-o", &source]).arg(root);
            }
        }
        command
    }

    /// Takes the mount away; returns when everything is on disk and the daemon has ended.
    pub fn unmount(&mut self) -> Result<()> {
        if !self.is_mounted {
            return Ok(());
        }
        let begin = Instant::now();
        while let Err(e) = unmount(&self.root) {
            // Somebody else may look at all mounts for a moment.
            if e.raw_os_error() != Some(libc::EBUSY) || begin.elapsed() > Duration::from_secs(5) {
                return Err(e).with_context(|| format!("cannot unmount {}", self.root.display()));
            }
            sleep(Duration::from_millis(1));
        }
        cleanup::remove_mount(&self.root);
        self.is_mounted = false;
        match &mut self.daemon {
            Some(daemon) if self.id == SystemId::Floor => daemon.expect(floor::CLOSED)?,
            daemon => {
                if let Some(mut daemon) = daemon.take() {
                    daemon.wait(END_LIMIT).with_context(|| self.id.name())?;
                }
            }
        }
        Ok(())
    }

    /// Makes everything durable, here and on the host, so that it does not disturb what is measured next.
    pub fn settle(&self) -> Result<()> {
        // SAFETY: the descriptor is open; a FUSE daemon hears only of fsync.
        let result = unsafe { libc::syncfs(std::os::fd::AsRawFd::as_raw_fd(&File::open(&self.root)?)) };
        ensure!(result == 0, "syncfs of {}", self.root.display());
        // fuse2fs knows no fsync of directories.
        let _ = File::open(&self.root)?.sync_all();
        // The turn before may have left something to be written on the host.
        // SAFETY: no memory is involved.
        unsafe { libc::sync() };
        Ok(())
    }

    /// Mounts anew with nothing in the page cache, neither of files nor of images.
    pub fn make_cold(&mut self) -> Result<()> {
        self.settle()?;
        self.unmount()?;
        drop_caches("3")?;
        self.mount()
    }

    /// Makes the kernel forget names and inodes. What a daemon has cached of its image stays.
    pub fn forget_names(&mut self) -> Result<()> {
        self.settle()?;
        drop_caches("2")
    }

    /// Takes it away with all that it holds.
    pub fn destroy(&mut self) -> Result<()> {
        self.unmount()?;
        if let Some(mut daemon) = self.daemon.take() {
            daemon.hang_up();
            daemon.wait(END_LIMIT)?;
        }
        if let Some(device) = self.device.take() {
            run(Command::new("losetup").arg("-d").arg(&device))?;
            cleanup::remove_device(&device);
        }
        let _ = fs::remove_file(&self.store);
        for dir in [&self.store, &self.root] {
            if dir.exists() {
                fs::remove_dir_all(dir).with_context(|| format!("deleting {}", dir.display()))?;
            }
        }
        Ok(())
    }
}

fn self_command(program: &Path, root: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg(crate::FLOOR_ARGUMENT).arg(root);
    command
}

/// The number of the filesystem that a directory is in.
fn device_of(dir: &Path) -> Result<u64> {
    Ok(fs::metadata(dir).with_context(|| format!("{}", dir.display()))?.dev())
}

fn unmount(dir: &Path) -> std::io::Result<()> {
    let name = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(dir.as_os_str()))?;
    // SAFETY: `name` is a string that ends with zero.
    let result = unsafe { libc::umount2(name.as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Forgets what the kernel has cached, after writing back what is dirty: 2 names and inodes, 3 also contents.
fn drop_caches(what: &str) -> Result<()> {
    // SAFETY: no memory is involved.
    unsafe { libc::sync() };
    fs::write("/proc/sys/vm/drop_caches", what).context("cannot drop the kernel's caches")
}

/// Runs a command to its end and returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| anyhow::anyhow!("{name} cannot be run: {e}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}: {}", output.status, message.trim().lines().last().unwrap_or("no message"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
