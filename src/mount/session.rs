//! A mounted volume: from the mount to the last byte on disk after the unmount.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use fuser::{Session, SessionACL};
use nix::sys::signal::{SigSet, Signal};

use super::adapter::{Adapter, AdapterOptions};
use super::counters::Counters;
use super::flusher::Flusher;
use super::mounts::{self, MountError, Mounted};
use super::options::MountOptions;
use super::volume::Volume;
use crate::fs::FsError;

/// The kernel's read-ahead where it may be set, in KiB: one whole request.
const READ_AHEAD_KIB: u32 = 1024;

/// Why serving a mount ended badly.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Mounting failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// There may be no more threads.
    #[error("starting a thread: {0}")]
    Thread(std::io::Error),
    /// The connection to the kernel failed.
    #[error("FUSE session: {0}")]
    Fuse(std::io::Error),
    /// What was written could not be made durable.
    #[error("closing the image: {0}")]
    Close(FsError),
}

/// A volume that is mounted and not served yet.
pub struct Mount<V: Volume> {
    session: Session<Adapter<V>>,
    volume: Arc<V>,
    flusher: Arc<Flusher>,
    mounted: Option<Mounted>,
    dir: PathBuf,
}

/// Signals that end a mount in order, and a scrub: INT, TERM and HUP. Those that are ignored stay so, as of a process that nohup(1) or
/// a script has started in the background.
pub fn ending_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().filter(|s| !is_ignored(*s)).collect()
}

fn is_ignored(signal: Signal) -> bool {
    // SAFETY: all zeros are a sigaction, which the call fills in; without a new action it changes nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal as i32, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Keeps signals away from all threads that are started from here on, so that only the one that waits for them gets them. To be
/// called before any thread exists.
pub fn block_signals() -> nix::Result<()> {
    let mut set = ending_signals();
    // A reader of our output that has gone is noticed by the write that fails.
    set.add(Signal::SIGPIPE);
    set.thread_block()
}

impl<V: Volume> Mount<V> {
    /// Mounts a volume at `dir`, an absolute path, in place of a mount there whose daemon has died, and agrees with the kernel on how they
    /// talk. `image` is what the table of mounts shows.
    pub fn new(
        volume: V,
        image: &Path,
        dir: &Path,
        options: &MountOptions,
    ) -> Result<Mount<V>, SessionError> {
        let volume = Arc::new(volume);
        // While nobody answers yet: older C libraries ask the filesystem about the last part of a path whose links they resolve.
        let dir = &mounts::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let mut flags = options.flags.clone();
        flags.allow_other |= options.allow_root;
        let workers = options.workers();
        // The workers, and the thread that waits for signals.
        let flusher = match Flusher::start().and_then(|flusher| try_threads(workers + 1).map(|()| flusher)) {
            Ok(flusher) => Arc::new(flusher),
            Err(e) => return Err(close(volume).err().unwrap_or(SessionError::Thread(e))),
        };
        let cleared = if mounts::is_dead(dir) { mounts::unmount(dir, true) } else { Ok(()) };
        let fd = match cleared.and_then(|()| mounts::mount(image, dir, &flags)) {
            Ok(fd) => fd,
            Err(e) => return Err(close(volume).err().unwrap_or(e.into())),
        };
        let only_some = options.allow_root && !options.flags.allow_other;
        let adapter_options = AdapterOptions {
            writeback: options.writeback,
            on_error: options.on_error,
            spare_worker: workers > 1,
            only_some,
            owner: nix::unistd::getuid().as_raw(),
        };
        let adapter =
            Adapter::new(volume.clone(), Arc::new(Counters::default()), adapter_options, flusher.clone());
        let mut config = fuser::Config::default();
        config.n_threads = Some(workers);
        config.clone_fd = mounts::can_clone_device();
        let acl = if only_some { SessionACL::RootAndOwner } else { SessionACL::All };
        let session = match Session::from_fd(adapter, fd, acl, config) {
            Ok(session) => session,
            Err(e) => {
                let _ = mounts::unmount(dir, true);
                return Err(close(volume).err().unwrap_or(SessionError::Fuse(e)));
            }
        };
        let mounted = mounts::at(dir);
        if let Some(mounted) = &mounted {
            mounts::set_read_ahead(mounted, READ_AHEAD_KIB);
        }
        flusher.set_notifier(session.notifier());
        Ok(Mount { session, volume, flusher, mounted, dir: dir.to_owned() })
    }

    /// Serves the mount until it is taken away, by whomever, and then makes everything durable. With signals blocked before
    /// ([`block_signals`]), INT, TERM and HUP unmount, but for those that are ignored.
    pub fn serve(self) -> Result<(), SessionError> {
        let (mounted, dir) = (self.mounted.clone(), self.dir.clone());
        let signals = thread::Builder::new()
            .name("btfs-signals".into())
            .spawn(move || wait_for_signals(mounted.as_ref(), &dir));
        let served = match signals {
            Ok(_) => self.session.run(),
            Err(e) => {
                if self.mounted.is_none() {
                    // Nothing else can be there yet.
                    let _ = mounts::unmount(&self.dir, true);
                }
                drop(self.session);
                Err(e)
            }
        };
        if let Err(e) = &served
            && let Some(mounted) = &self.mounted
        {
            // Not all workers were started, or one has ended early: those that there are serve who uses it now, and it ends with them.
            for place in places(Some(mounted), &self.dir).iter().rev() {
                log::error!("FUSE session: {e}; detaching {}", place.display());
                if let Err(e) = mounts::unmount(place, true) {
                    log::error!("{e}");
                }
            }
        }
        if let Some(flusher) = Arc::into_inner(self.flusher) {
            flusher.stop();
        }
        served.map_err(SessionError::Fuse).and(close(self.volume))
    }
}

/// Closes a volume that nobody uses any more.
fn close<V: Volume>(volume: Arc<V>) -> Result<(), SessionError> {
    // Replies that are still on their way hold it for a moment.
    let mut volume = volume;
    loop {
        match Arc::try_unwrap(volume) {
            Ok(volume) => return volume.close().map_err(SessionError::Close),
            Err(shared) => volume = shared,
        }
        thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Where it is mounted. There may be several places, and none of them need be the first one any more. Where the system does not
/// tell, it is sought at `dir`.
fn places(mounted: Option<&Mounted>, dir: &Path) -> Vec<PathBuf> {
    mounted.map_or_else(
        || vec![dir.to_owned()],
        |m| mounts::places(m).into_iter().map(|place| place.dir).collect(),
    )
}

/// Starts so many threads, and ends them: who waits for the mount is to be told that they cannot be started.
fn try_threads(count: usize) -> std::io::Result<()> {
    let mut threads = Vec::new();
    let mut result = Ok(());
    while threads.len() < count && result.is_ok() {
        match thread::Builder::new().spawn(thread::park) {
            Ok(thread) => threads.push(thread),
            Err(e) => result = Err(e),
        }
    }
    for thread in threads {
        thread.thread().unpark();
        // It does nothing that could panic.
        let _ = thread.join();
    }
    result
}

/// Unmounts on a signal, while the workers still serve: the kernel may have contents to write back. A mount that is busy is left
/// alone at the first signal, and detached at the second.
fn wait_for_signals(mounted: Option<&Mounted>, dir: &Path) {
    let mut asked = false;
    // All of them may be ignored; then this waits for nothing, as long as the process lives.
    let ending = ending_signals();
    while let Ok(signal) = ending.wait() {
        let places = places(mounted, dir);
        if places.is_empty() {
            log::info!("{signal}: no longer mounted here; this ends when nobody uses it any more");
        }
        for place in places.iter().rev() {
            log::info!("{signal}: unmounting {}", place.display());
            if let Err(e) = mounts::unmount(place, asked) {
                log::error!("{e}; once more detaches it");
            }
        }
        asked = true;
    }
}
