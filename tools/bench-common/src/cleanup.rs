//! Leaves nothing behind: mounts, processes, loop devices, control groups and the folder of the run go at the end, after an
//! error, and when the user or the system ends the program. Only what the program made itself is touched.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers {
    dir: None,
    mounts: Vec::new(),
    processes: Vec::new(),
    devices: Vec::new(),
    cgroups: Vec::new(),
});

/// Whether a signal is ending the program.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

struct Leftovers {
    dir: Option<PathBuf>,
    mounts: Vec<PathBuf>,
    processes: Vec<u32>,
    devices: Vec<String>,
    cgroups: Vec<PathBuf>,
}

/// The exit status after a signal, as shells give it for an interrupt.
const INTERRUPTED: i32 = 130;
const PREFIX: &str = "run-";
/// How long a daemon may take to end after its mount has been taken away.
const PATIENCE: Duration = Duration::from_secs(2);
/// Attempts at deleting the folder of a run.
const REMOVALS_MAX: u32 = 10;

/// Cleans up on signals and panics, too.
///
/// # Errors
/// Signals cannot be handled.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        IS_ENDING.store(true, Ordering::SeqCst);
        clean_up();
        std::process::exit(INTERRUPTED);
    })
    .context("cannot handle signals")?;
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        clean_up();
    }));
    Ok(())
}

/// Does not return if a signal is ending the program: what fails now is not worth telling.
pub fn stay_if_ending() {
    while IS_ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// To be called before the mount is made.
pub fn add_mount(dir: &Path) {
    leftovers().mounts.push(dir.to_owned());
}

/// To be called when the mount is gone.
pub fn remove_mount(dir: &Path) {
    leftovers().mounts.retain(|mount| mount != dir);
}

/// A child, which is killed if it is still there at the end.
pub fn add_process(id: u32) {
    leftovers().processes.push(id);
}

/// To be called before the process is waited for: its number may belong to another one afterwards.
pub fn remove_process(id: u32) {
    leftovers().processes.retain(|&process| process != id);
}

/// Ends a child that hangs, if it was not waited for yet.
pub fn kill_process(id: u32) {
    if leftovers().processes.contains(&id) {
        // SAFETY: kill touches no memory. The id is that of a child that was not waited for yet.
        unsafe { libc::kill(id.cast_signed(), libc::SIGKILL) };
    }
}

/// A loop device.
pub fn add_device(name: &str) {
    leftovers().devices.push(name.to_owned());
}

/// To be called when the device has been given back.
pub fn remove_device(name: &str) {
    leftovers().devices.retain(|device| device != name);
}

/// A control group; it may be removed before.
pub fn add_cgroup(path: &Path) {
    leftovers().cgroups.push(path.to_owned());
}

/// Takes a mount away, also one that is in use or whose daemon is dead.
fn detach(dir: &Path) {
    if let Ok(dir) = CString::new(dir.as_os_str().as_bytes()) {
        // SAFETY: `dir` is a string that ends with zero.
        unsafe { libc::umount2(dir.as_ptr(), libc::MNT_DETACH) };
    }
}

fn is_alive(process: u32) -> bool {
    // A child that has ended and was not waited for is a zombie.
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn clean_up() {
    let mut leftovers = leftovers();
    let patience = if leftovers.mounts.is_empty() { Duration::ZERO } else { PATIENCE };
    for mount in leftovers.mounts.drain(..).rev() {
        detach(&mount);
    }
    let mut waited = Duration::ZERO;
    while waited < patience && leftovers.processes.iter().any(|&process| is_alive(process)) {
        sleep(Duration::from_millis(20));
        waited += Duration::from_millis(20);
    }
    for process in leftovers.processes.drain(..) {
        // SAFETY: kill touches no memory. The id is that of a child that was not waited for yet.
        unsafe { libc::kill(process.cast_signed(), libc::SIGKILL) };
    }
    for device in leftovers.devices.drain(..) {
        detach_device(&device);
    }
    if let Some(dir) = leftovers.dir.take() {
        remove_dir(&dir);
        let _ = dir.parent().map(std::fs::remove_dir);
    }
    for cgroup in leftovers.cgroups.drain(..) {
        remove_cgroup(&cgroup);
    }
}

/// Removes a control group. Its processes have been killed, but may need a moment to go.
pub fn remove_cgroup(group: &Path) {
    for _ in 0..50 {
        if !group.exists() || std::fs::remove_dir(group).is_ok() {
            return;
        }
        sleep(Duration::from_millis(20));
    }
    eprintln!("engine-bench: could not remove {}", group.display());
}

fn detach_device(device: &str) {
    let _ = Command::new("losetup").arg("-d").arg(device).stderr(Stdio::null()).status();
}

/// Deletes what a run left, but never through a mount that is still there.
fn remove_dir(dir: &Path) {
    // A process may make a file while it ends.
    for _ in 0..REMOVALS_MAX {
        for mount in mounts_below(dir).into_iter().rev() {
            detach(&mount);
        }
        if mounts_below(dir).is_empty() && std::fs::remove_dir_all(dir).is_ok() {
            return;
        }
        sleep(Duration::from_millis(200));
    }
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The folder of this run. Dropping it ends and deletes all that is left.
pub struct RunDir(PathBuf);

impl RunDir {
    /// Makes a new folder in `parent`, and deletes those of runs that were killed.
    ///
    /// # Errors
    /// The folder cannot be made, or what is in `parent` not be read.
    pub fn create(parent: &Path) -> Result<Self> {
        let context = || format!("cannot make a folder in {}", parent.display());
        std::fs::create_dir_all(parent).with_context(context)?;
        let parent = parent.canonicalize().with_context(context)?;
        delete_abandoned(&parent)?;
        let dir = parent.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(context)?;
        leftovers().dir = Some(dir.clone());
        Ok(RunDir(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        clean_up();
    }
}

fn delete_abandoned(parent: &Path) -> Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists()) {
            let dir = entry.path();
            for mount in mounts_below(&dir).into_iter().rev() {
                detach(&mount);
            }
            for device in devices_in(&dir) {
                detach_device(&device);
            }
            remove_dir(&dir);
        }
    }
    Ok(())
}

/// The loop devices whose images lie below a folder.
fn devices_in(dir: &Path) -> Vec<String> {
    let output =
        Command::new("losetup").args(["--list", "--noheadings", "--output", "NAME,BACK-FILE"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let ours = lines.filter(|(_, file)| Path::new(file.trim()).starts_with(dir));
    ours.map(|(name, _)| name.to_owned()).collect()
}
