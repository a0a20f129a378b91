//! The kernel holds contents: with `writeback=on` such as the filesystem has not seen, and always such as may be read without asking it.
//! Some requests must not be answered before the kernel has handed over the first, or dropped the second. Asking for that waits for
//! the workers, so a thread of its own does it.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use fuser::{INodeNo, Notifier};

type Then = Box<dyn FnOnce() + Send>;

/// Asks the kernel to give up what it holds of an inode's contents.
pub struct Flusher {
    queue: Sender<(INodeNo, Then)>,
    notifier: Arc<OnceLock<Notifier>>,
    thread: JoinHandle<()>,
}

impl Flusher {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Flusher> {
        let (queue, requests) = channel();
        let notifier = Arc::new(OnceLock::new());
        let asked = notifier.clone();
        let thread = thread::Builder::new().name("btfs-flush".into());
        let thread = thread.spawn(move || run(&requests, &asked))?;
        Ok(Flusher { queue, notifier, thread })
    }

    /// Sets whom to ask, once the session exists.
    pub fn set_notifier(&self, notifier: Notifier) {
        // A second session for one flusher does not occur.
        let _ = self.notifier.set(notifier);
    }

    /// Calls `then` from the thread once the kernel has written back the inode's contents, and dropped them.
    pub fn flush_then(&self, ino: INodeNo, then: Then) {
        if let Err(unsent) = self.queue.send((ino, then)) {
            unsent.0.1();
        }
    }

    /// Ends the thread, after what has been asked so far.
    pub fn stop(self) {
        drop(self.queue);
        // A panic there has been reported by the panic hook.
        let _ = self.thread.join();
    }
}

fn run(requests: &Receiver<(INodeNo, Then)>, notifier: &OnceLock<Notifier>) {
    while let Ok((ino, then)) = requests.recv() {
        if let Some(notifier) = notifier.get()
            && let Err(e) = notifier.inval_inode(ino, 0, 0)
            // Not in the kernel's cache at all: nothing is held.
            && e.raw_os_error() != Some(libc::ENOENT)
        {
            log::warn!("asking the kernel for the contents of inode {ino}: {e}");
        }
        then();
    }
}
