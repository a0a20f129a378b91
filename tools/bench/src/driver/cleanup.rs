//! Leaves nothing behind: the folder of the run, the workers and the control groups go at the end, after an
//! error, and when the user or the system ends the program.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result};

use super::cgroup;

static LEFTOVERS: Mutex<Leftovers> =
    Mutex::new(Leftovers { dir: None, processes: Vec::new(), cgroups: Vec::new() });

/// Whether a signal is ending the program.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

struct Leftovers {
    dir: Option<PathBuf>,
    processes: Vec<u32>,
    cgroups: Vec<PathBuf>,
}

/// The exit status after a signal, as shells give it for an interrupt.
const INTERRUPTED: i32 = 130;
const PREFIX: &str = "run-";

/// Cleans up on signals and panics, too.
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

/// Does not return if a signal is ending the program: workers that die now are no failures to be told of.
pub fn stay_if_ending() {
    while IS_ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

pub fn add_process(id: u32) {
    leftovers().processes.push(id);
}

pub fn remove_process(id: u32) {
    leftovers().processes.retain(|&process| process != id);
}

pub fn add_cgroup(path: &Path) {
    leftovers().cgroups.push(path.to_owned());
}

fn clean_up() {
    let mut leftovers = leftovers();
    for &process in &leftovers.processes {
        // SAFETY: kill touches no memory. The id is that of a child that was not waited for yet.
        unsafe { libc::kill(process.cast_signed(), libc::SIGKILL) };
    }
    if let Some(dir) = leftovers.dir.take() {
        // A worker may make a file while it dies.
        if std::fs::remove_dir_all(&dir).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(200));
            let _ = std::fs::remove_dir_all(&dir);
        }
        let _ = dir.parent().map(std::fs::remove_dir);
    }
    for cgroup in &leftovers.cgroups {
        cgroup::remove(cgroup);
    }
}

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The folder of this run. Dropping it deletes it with all that is in it.
pub struct RunDir(PathBuf);

impl RunDir {
    /// Makes a new folder in `parent`, and deletes those of runs that were killed.
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
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
