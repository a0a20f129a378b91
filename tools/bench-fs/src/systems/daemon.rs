//! A process that serves a mount, as a child of this one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use btfs_bench_common::cleanup;

/// A running daemon. Dropping it does not end it: that is what unmounting does, or the cleaning up.
pub struct Daemon {
    child: Child,
    output: BufReader<ChildStdout>,
    messages: File,
}

impl Daemon {
    /// Starts it in a process group of its own, so that the terminal's signals do not reach it before we have unmounted.
    pub fn start(command: &mut Command) -> Result<Daemon> {
        let name = command.get_program().to_string_lossy().into_owned();
        let messages = unnamed_file()?;
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(messages.try_clone()?);
        // SAFETY: only system calls run between fork and exec, and they touch no memory but their arguments.
        unsafe {
            command.pre_exec(|| {
                // passthrough_ll holds a descriptor for each inode.
                let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
                limit.rlim_cur = limit.rlim_max;
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let mut child = command.spawn().with_context(|| format!("{name} cannot be run"))?;
        cleanup::add_process(child.id());
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Daemon { child, output, messages })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("the daemon hears nothing more")?;
        writeln!(input, "{line}").context("the daemon does not listen")
    }

    /// Waits for a line.
    pub fn expect(&mut self, line: &str) -> Result<()> {
        let mut found = String::new();
        self.output.read_line(&mut found)?;
        ensure!(found.trim() == line, "the daemon said {found:?} instead of {line:?}: {}", self.message());
        Ok(())
    }

    /// Says that nothing more will be asked.
    pub fn hang_up(&mut self) {
        self.child.stdin = None;
    }

    /// An error with its message if it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        // Not waited for here: its number stays its own until it is taken from the list of those to clean up.
        let Some(status) = ended(&self.child) else { return Ok(()) };
        bail!("the daemon has ended ({status}): {}", self.message())
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        while ended(&self.child).is_none() {
            ensure!(begin.elapsed() < limit, "the daemon does not end");
            sleep(Duration::from_micros(200));
        }
        cleanup::remove_process(self.child.id());
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon ended with {status}: {}", self.message());
        Ok(())
    }

    /// The last line that it wrote to its standard error.
    fn message(&mut self) -> String {
        let mut text = Vec::new();
        let result = io::Seek::rewind(&mut self.messages).and_then(|()| self.messages.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text).into_owned();
        match result {
            Ok(_) => text.trim().lines().last().unwrap_or("no message").to_owned(),
            Err(e) => e.to_string(),
        }
    }
}

/// How a child ended, without taking it from the table of processes.
fn ended(child: &Child) -> Option<ExitStatus> {
    // SAFETY: a siginfo_t of zeros is valid, and waitid fills it in.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` outlives the call, which may write to it.
    let result = unsafe { libc::waitid(libc::P_PID, child.id(), &mut info, flags) };
    // SAFETY: after success the fields of a child's end are there; a pid of zero says that none has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if result != 0 || pid == 0 {
        return None;
    }
    let is_exit = info.si_code == libc::CLD_EXITED;
    Some(ExitStatus::from_raw(if is_exit { status << 8 } else { status }))
}

/// A file without a name, for what a daemon says.
fn unnamed_file() -> Result<File> {
    // SAFETY: the name ends with zero.
    let fd = unsafe { libc::memfd_create(c"messages".as_ptr(), libc::MFD_CLOEXEC) };
    ensure!(fd >= 0, "memfd_create: {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nobody else has it.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}
