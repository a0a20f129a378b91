//! The kernel holds contents: such as the filesystem has not seen, of mappings (and with `writeback=on` of all writes), and such as may
//! be read without asking it. Some requests must not be answered before the kernel has handed over the first, or dropped the second.
//! Asking for that waits for the workers, so a thread of its own does it.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use fuser::{INodeNo, Notifier};

type Job = Box<dyn FnOnce(&Kernel) + Send>;

/// A range of bytes: from where to where.
pub type Range = (u64, u64);

/// All contents.
pub const WHOLE: Range = (0, u64::MAX);

/// The kernel, as who answers a request from the thread sees it.
#[derive(Clone, Default)]
pub struct Kernel(Arc<OnceLock<Notifier>>);

impl Kernel {
    /// Has the kernel write back what it holds of an inode's contents in a range of bytes, and drop it; `to` may lie behind the end.
    pub fn give_up(&self, ino: INodeNo, (from, to): Range) {
        // Zero is the whole rest.
        let length = i64::try_from(to - from).unwrap_or(0);
        if let (Some(notifier), Ok(from)) = (self.0.get(), i64::try_from(from))
            && let Err(e) = notifier.inval_inode(ino, from, length)
            // Not in the kernel's cache at all: nothing is held.
            && e.raw_os_error() != Some(libc::ENOENT)
        {
            log::warn!("asking the kernel for the contents of inode {ino}: {e}");
        }
    }
}

/// Answers requests for which the kernel has to give up contents.
pub struct Flusher {
    queue: Sender<Job>,
    kernel: Kernel,
    thread: JoinHandle<()>,
}

impl Flusher {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Flusher> {
        let (queue, jobs) = channel::<Job>();
        let kernel = Kernel::default();
        let asked = kernel.clone();
        let thread = thread::Builder::new().name("btfs-flush".into());
        let thread = thread.spawn(move || jobs.iter().for_each(|job| job(&asked)))?;
        Ok(Flusher { queue, kernel, thread })
    }

    /// Sets whom to ask, once the session exists.
    pub fn set_notifier(&self, notifier: Notifier) {
        // A second session for one flusher does not occur.
        let _ = self.kernel.0.set(notifier);
    }

    /// Calls `job` from the thread.
    pub fn run(&self, job: impl FnOnce(&Kernel) + Send + 'static) {
        if let Err(unsent) = self.queue.send(Box::new(job)) {
            unsent.0(&self.kernel);
        }
    }

    /// Ends the thread, after what has been asked so far.
    pub fn stop(self) {
        drop(self.queue);
        // A panic there has been reported by the panic hook.
        let _ = self.thread.join();
    }
}
