//! Damage on a live mount: what has been met, and the search for more.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::volume::Volume;
use crate::fs::{FsError, Scrub};

/// Different messages that are remembered.
const KNOWN_MAX: usize = 1000;

/// What has been met so far. Each place is logged once.
#[derive(Default)]
pub struct Damage {
    count: AtomicU64,
    known: Mutex<HashSet<String>>,
}

impl Damage {
    /// Counts a failure; whether it has not been met before.
    pub fn is_new(&self, error: &FsError) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut known = self.known.lock();
        known.len() < KNOWN_MAX && known.insert(error.to_string())
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
        let progress = Arc::new(Scrub::default());
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
