//! Damage on a live mount: what has been met, and the search for more.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use fuser::Errno;
use parking_lot::Mutex;

use super::adapter::OnError;
use super::convert::errno;
use super::counters::Request;
use super::volume::{Access, Volume};
use crate::fs::{FsError, Ino, Scrub};

/// Different messages that are remembered.
const KNOWN_MAX: usize = 1000;

/// What has been met so far, and what to do about it. Each place is logged once.
#[derive(Default)]
pub struct Damage {
    on_error: OnError,
    count: AtomicU64,
    known: Mutex<HashSet<String>>,
    /// The error that ended changes.
    failure: OnceLock<String>,
}

impl Damage {
    /// Nothing met yet.
    pub fn new(on_error: OnError) -> Self {
        Damage { on_error, ..Damage::default() }
    }

    /// The errno of a failed request, after [`Damage::meet`].
    pub fn refuse<V: Volume>(&self, volume: &V, error: &FsError, what: Request, n: Ino) -> Errno {
        self.meet(volume, error, what, n);
        errno(error)
    }

    /// Does what a failed request calls for. What the image or the disk below is to blame for is counted and logged once. Unless only
    /// contents cannot be read, it is noted in the image, and ends all changes if it was met by one ([`OnError`]). What was merely
    /// refused is the caller's business.
    pub fn meet<V: Volume>(&self, volume: &V, error: &FsError, what: Request, n: Ino) {
        let (FsError::Engine(engine) | FsError::Contents(engine)) = error else { return };
        // For now, and not the image's fault; unless it has ended all writing.
        let short = engine.is_out_of_memory() && !matches!(volume.access(), Access::Failed(_));
        if short && !self.is_unknown(error) {
            return;
        }
        if short || !matches!(engine, crate::Error::Corrupt { .. } | crate::Error::Io { .. }) {
            // The caller gets a number only, so the reason stands here.
            log::warn!("{what:?} of {} (inode {}) was refused: {error}", volume.path_of(n), n.0);
            return;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        if self.is_unknown(error) {
            log::error!("{what:?} of {} (inode {}): {error}", volume.path_of(n), n.0);
        }
        let changes = !matches!(
            what,
            Request::Lookup
                | Request::Getattr
                | Request::Readlink
                | Request::Read
                | Request::Getxattr
                | Request::Listxattr
                | Request::Readdir
                | Request::Readdirplus
                | Request::Lseek
        );
        // Contents that cannot be read concern only who needs them.
        if matches!(error, FsError::Contents(_)) {
            return;
        }
        volume.note_damage();
        // A failed write has made the image read-only by itself.
        if changes {
            // Nothing ends that was not possible before.
            if volume.access() != Access::ReadOnly {
                self.failure.get_or_init(|| error.to_string());
            }
            volume.fail(error);
            if self.on_error == OnError::Abort {
                log::error!("ending, as errors=abort asks");
                log::logger().flush();
                std::process::abort();
            }
        }
    }

    /// Whether a failure has not been met before.
    fn is_unknown(&self, error: &FsError) -> bool {
        let mut known = self.known.lock();
        known.len() < KNOWN_MAX && known.insert(error.to_string())
    }

    /// The error since which changes are refused, if a request met one.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// How many requests met damage, or failed to read or write the image.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// Verifies a volume in a thread of its own, one at a time.
#[derive(Default)]
pub struct Scrubber {
    current: Mutex<(Arc<Scrub>, Option<JoinHandle<()>>)>,
}

impl Scrubber {
    /// Starts it. EBUSY if one is under way.
    pub fn start<V: Volume>(&self, volume: &Arc<V>, rate: u64) -> io::Result<()> {
        let mut current = self.current.lock();
        if current.0.running.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let progress = Arc::new(Scrub { run: current.0.run + 1, ..Scrub::default() });
        progress.running.store(true, Ordering::SeqCst);
        let (volume, seen) = (volume.clone(), progress.clone());
        let thread = thread::Builder::new().name("btfs-scrub".into()).spawn(move || {
            volume.scrub(rate, &seen);
            drop(volume);
            seen.running.store(false, Ordering::SeqCst);
        })?;
        *current = (progress, Some(thread));
        Ok(())
    }

    /// Ends it, and waits until it has ended.
    pub fn stop(&self) {
        let thread = {
            let mut current = self.current.lock();
            current.0.stop.store(true, Ordering::SeqCst);
            current.1.take()
        };
        if let Some(thread) = thread {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }

    /// How far the last one is.
    pub fn progress(&self) -> Arc<Scrub> {
        self.current.lock().0.clone()
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::fs::{Caller, Fs, New, ROOT, Time};
    use crate::storage::MemStorage;
    use crate::tree::{FormatOptions, Options};

    fn volume() -> Fs {
        let storage = Arc::new(MemStorage::new(8 << 20));
        let now = Time { seconds: 1, nanos: 0 };
        let me = Caller { privileged: true, ..Caller::new(0, 0, now) };
        let options = FormatOptions { size: 8 << 20, ..FormatOptions::default() };
        Fs::format(storage.clone(), &options, &me).unwrap();
        let options = Options { cache_size: 4 << 20, background: false, ..Options::default() };
        Fs::open(storage, &options).unwrap()
    }

    #[test]
    fn what_was_refused_is_no_damage() {
        let (fs, damage) = (volume(), Damage::default());
        let meet = |error: &FsError, what| damage.meet(&fs, error, what, ROOT);
        // A smaller size than the image has.
        let refused = Volume::grow(&fs, 4 << 20).unwrap_err();
        assert!(matches!(refused, FsError::Engine(_)));
        // Nor is the image to blame where memory is short.
        let short = crate::Error::io("reading page 7", io::Error::from_raw_os_error(libc::ENOMEM));
        let short = FsError::Engine(short);
        for error in [refused, short, FsError::NotFound, FsError::NoSpace, FsError::ReadOnly] {
            meet(&error, Request::Ioctl);
        }
        assert_eq!(damage.count(), 0);
        assert!(!fs.tree().is_read_only());
        // Damage that only keeps from reading, and damage that a change meets.
        let damaged = FsError::damaged(ROOT, "a checksum does not match");
        meet(&damaged, Request::Read);
        assert_eq!(damage.count(), 1);
        assert!(!fs.tree().is_read_only() && damage.failure().is_none());
        // A disk that cannot read contents, though somebody changes them.
        let unread = crate::Error::io("reading inode 7", io::Error::from_raw_os_error(libc::EIO));
        meet(&FsError::Contents(unread), Request::Write);
        assert!(!fs.tree().is_read_only());
        assert_eq!(damage.count(), 2);
        meet(&damaged, Request::Write);
        assert_eq!(damage.count(), 3);
        assert_eq!(Volume::access(&fs), Access::ReadOnly);
        assert!(damage.failure().is_some_and(|e| e.contains("checksum")));
    }

    #[test]
    fn a_scrub_that_was_stopped_does_not_look_like_one_that_ended() {
        let (fs, scrubber) = (Arc::new(volume()), Scrubber::default());
        let me = Caller { privileged: true, ..Caller::new(0, 0, Time { seconds: 1, nanos: 0 }) };
        let file = fs.create(ROOT, b"file", New::File, 0o600, 0, &me).unwrap().ino;
        fs.write(file, 0, &[7; 1 << 20], &me).unwrap();
        let until = |state: &str| {
            let begun = Instant::now();
            while scrubber.progress().state() != state {
                assert!(begun.elapsed() < Duration::from_secs(60), "{}", scrubber.progress().state());
                thread::sleep(Duration::from_millis(1));
            }
        };
        assert_eq!(scrubber.progress().state(), "none");
        scrubber.start(&fs, 1 << 30).unwrap();
        until("finished");
        // A stop that comes too late changes nothing.
        scrubber.stop();
        until("finished");
        // This one is due to take 16 seconds.
        scrubber.start(&fs, Scrub::LEAST_RATE).unwrap();
        let error = scrubber.start(&fs, Scrub::LEAST_RATE).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        scrubber.stop();
        until("stopped");
        let progress = scrubber.progress();
        assert_eq!(progress.run, 2);
        assert_eq!(progress.to_json()["state"], "stopped");
    }
}
