//! A process in the background: the parent waits until it is ready, or prints why it failed.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{ForkResult, fork, pipe, setsid};

use super::{Failure, status};

/// Tells the waiting parent how it went.
pub struct Parent(Option<OwnedFd>);

impl Parent {
    /// No parent waits: the process stays in the foreground.
    pub fn none() -> Parent {
        Parent(None)
    }

    /// Everything works: the parent may end, and the terminal is let go.
    ///
    /// # Errors
    /// `BrokenPipe` if the parent is there no more; the terminal could not be let go.
    pub fn ready(self) -> io::Result<()> {
        notify_systemd();
        let Some(pipe) = self.0 else { return Ok(()) };
        let let_go = let_go_of_terminal();
        File::from(pipe).write_all(&[0])?;
        let_go
    }

    /// It failed: the parent prints the message and ends with the status. In the foreground the caller does so.
    pub fn failed(self, failure: Failure) -> Failure {
        if let Some(pipe) = self.0 {
            let mut message = vec![failure.status];
            message.extend_from_slice(failure.message.as_bytes());
            if File::from(pipe).write_all(&message).is_ok() {
                log::logger().flush();
                exit(failure.status.into());
            }
        }
        failure
    }
}

fn let_go_of_terminal() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for fd in 0..3 {
        // SAFETY: dup2 onto the standard descriptors, which nothing in this process owns as a value.
        if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Splits off a process that goes on in the background. Returns there; the parent ends inside, with the status that the child
/// reports. To be called before any thread exists.
pub fn split() -> Result<Parent, Failure> {
    let fail = |e: nix::Error| Failure::new(status::SYSTEM, format_args!("starting the daemon: {e}"));
    let (reader, writer) = pipe().map_err(fail)?;
    // SAFETY: no other thread exists yet, so the child may do whatever the parent could.
    match unsafe { fork() }.map_err(fail)? {
        ForkResult::Child => {
            drop(reader);
            setsid().map_err(fail)?;
            Ok(Parent(Some(writer)))
        }
        ForkResult::Parent { .. } => {
            drop(writer);
            let mut report = Vec::new();
            let read = File::from(reader).read_to_end(&mut report);
            match (read, report.split_first()) {
                (Ok(_), Some((0, _))) => exit(0),
                (Ok(_), Some((status, message))) => {
                    Err(Failure::new(*status, String::from_utf8_lossy(message)))
                }
                _ => Err(Failure::new(status::MOUNT, "the daemon died before the mount was ready")),
            }
        }
    }
}

/// Tells systemd that a service of type `notify` is ready, if it runs as one.
fn notify_systemd() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let path = path.to_string_lossy();
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&*path),
    };
    let sent = address.and_then(|a| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &a));
    if let Err(e) = sent {
        log::warn!("telling systemd: {e}");
    }
}

/// Messages that wait for the system's log at the most; what comes then is counted, and lost.
const MESSAGES_MAX: usize = 4096;
/// How long the end of the process waits for the system's log, at the most.
const FLUSH: Duration = Duration::from_secs(2);

/// Something for the thread that writes to the system's log.
enum Entry {
    Message {
        priority: libc::c_int,
        text: String,
    },
    /// Everything before this has been written.
    Flush(SyncSender<()>),
}

/// Messages of a daemon, which has no terminal: to the system's log, by a thread of its own. syslog(3) waits for whoever reads there; he may
/// be stopped, or wait for this very mount.
struct Syslog {
    entries: SyncSender<Entry>,
    /// Messages for which there was no room, and of which the log has not been told yet.
    lost: Arc<AtomicU64>,
}

impl Syslog {
    /// Starts the thread. It hands messages to `write`.
    fn start(write: impl Fn(libc::c_int, &str) + Send + 'static) -> io::Result<Syslog> {
        let (entries, receiver) = mpsc::sync_channel(MESSAGES_MAX);
        let lost = Arc::<AtomicU64>::default();
        let untold = lost.clone();
        // Signals are for the thread that waits for them.
        let signals = SigSet::all();
        let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let thread = thread::Builder::new().name("btfs-syslog".into()).spawn(move || {
            for entry in receiver {
                match entry {
                    Entry::Message { priority, text } => {
                        write(priority, &text);
                        match untold.swap(0, Ordering::Relaxed) {
                            0 => {}
                            lost => write(
                                libc::LOG_WARNING,
                                &format!("{lost} messages are lost: the log took none"),
                            ),
                        }
                    }
                    // Whoever waited may have given up.
                    Entry::Flush(done) => drop(done.try_send(())),
                }
            }
        });
        before.thread_set_mask()?;
        thread?;
        Ok(Syslog { entries, lost })
    }

    fn send(&self, priority: libc::c_int, text: String) {
        if self.entries.try_send(Entry::Message { priority, text }).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl log::Log for Syslog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn || metadata.target().starts_with("btfs")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let priority = match record.level() {
            log::Level::Error => libc::LOG_ERR,
            log::Level::Warn => libc::LOG_WARNING,
            log::Level::Info => libc::LOG_INFO,
            log::Level::Debug | log::Level::Trace => libc::LOG_DEBUG,
        };
        self.send(priority, record.args().to_string());
    }

    /// Waits until everything has been written, but not for ever.
    fn flush(&self) {
        let until = Instant::now() + FLUSH;
        let (done, written) = mpsc::sync_channel(1);
        let mut flush = Entry::Flush(done);
        while let Err(TrySendError::Full(back)) = self.entries.try_send(flush) {
            if Instant::now() > until {
                return;
            }
            flush = back;
            thread::sleep(Duration::from_millis(1));
        }
        // An error: the time is up, or the thread is gone.
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn write_to_syslog(priority: libc::c_int, text: &str) {
    let Ok(text) = CString::new(text.replace('\0', " ")) else { return };
    // SAFETY: both strings end with a zero byte, and the format takes exactly one string.
    unsafe { libc::syslog(libc::LOG_DAEMON | priority, c"%s".as_ptr(), text.as_ptr()) };
}

/// Sends messages to the system's log from here on. Whoever ends the process flushes them.
pub fn log_to_syslog() -> io::Result<()> {
    // SAFETY: the name is a static string, which syslog keeps a pointer to.
    unsafe { libc::openlog(c"btfs".as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
    if log::set_boxed_logger(Box::new(Syslog::start(write_to_syslog)?)).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use log::Log;

    use super::*;

    #[test]
    fn nobody_waits_for_a_system_log_that_takes_nothing() {
        let (taken, gate) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<()>>::default());
        let closed = gate.lock().unwrap();
        let (into, way) = (taken.clone(), gate.clone());
        let write = move |_, text: &str| {
            drop(way.lock());
            into.lock().unwrap().push(text.to_owned());
        };
        let syslog = Syslog::start(write).unwrap();
        let many = MESSAGES_MAX + 100;
        for n in 0..many {
            syslog.send(libc::LOG_INFO, n.to_string());
        }
        let begun = Instant::now();
        syslog.flush();
        assert!(begun.elapsed() >= FLUSH);
        drop(closed);
        syslog.flush();
        let taken = taken.lock().unwrap();
        // The thread may have had one in its hands.
        let kept = taken.len() - 1;
        assert!((MESSAGES_MAX..=MESSAGES_MAX + 1).contains(&kept), "{kept}");
        let mut expected: Vec<String> = (0..kept).map(|n| n.to_string()).collect();
        expected.insert(1, format!("{} messages are lost: the log took none", many - kept));
        assert_eq!(*taken, expected);
    }
}
