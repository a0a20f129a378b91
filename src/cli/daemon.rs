//! A process in the background: the parent waits until it is ready, or prints why it failed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::exit;

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

/// Messages of a daemon, which has no terminal: to the system's log.
pub struct Syslog;

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
        let Ok(message) = std::ffi::CString::new(format!("{}", record.args()).replace('\0', " ")) else {
            return;
        };
        // SAFETY: both strings end with a zero byte, and the format takes exactly one string.
        unsafe { libc::syslog(libc::LOG_DAEMON | priority, c"%s".as_ptr(), message.as_ptr()) };
    }

    fn flush(&self) {}
}

/// Sends messages to the system's log from here on.
pub fn log_to_syslog() {
    // SAFETY: the name is a static string, which syslog keeps a pointer to.
    unsafe { libc::openlog(c"btfs".as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
    static SYSLOG: Syslog = Syslog;
    if log::set_logger(&SYSLOG).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
