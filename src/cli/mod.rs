//! The command `btfs`, and the helpers `mount.fuse.btfs`, `mkfs.btfs` and `fsck.btfs`, which it is when called by those names.
//!
//! Messages say what happened, to what, and what to do. Exit statuses are those of mount(8), mkfs(8) and fsck(8).

mod daemon;
mod fsck;
mod image;
mod mkfs;
mod mount;
mod watch;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::fs::FsError;
use crate::fsck::bytes;
use crate::storage::OpenError;

/// A filesystem in one file.
#[derive(Parser)]
#[command(name = "btfs", version, propagate_version = true)]
struct Btfs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an image with an empty filesystem
    Mkfs(mkfs::Args),
    /// Mount an image
    Mount(mount::Args),
    /// Unmount, and wait until everything is on disk
    Umount(mount::UmountArgs),
    /// Make everything on a mount durable
    Sync(watch::SyncArgs),
    /// Show what a live mount has done: requests, latencies, cache, log
    Stats(watch::StatsArgs),
    /// Verify everything on a live mount, in the background
    Scrub(watch::ScrubArgs),
    /// Show what an image is
    Info(image::InfoArgs),
    /// Make an image larger, also while it is mounted
    Resize(image::ResizeArgs),
    /// Check an image, and repair it
    Fsck(fsck::Args),
}

/// A message for the user, and the exit status.
#[derive(Debug)]
struct Failure {
    status: u8,
    message: String,
}

type CliResult = Result<u8, Failure>;

impl Failure {
    fn new(status: u8, message: impl fmt::Display) -> Self {
        Failure { status, message: message.to_string() }
    }

    /// A failure that has to do with a file or directory.
    fn at(status: u8, path: &Path, what: impl fmt::Display) -> Self {
        Failure::new(status, format_args!("{}: {what}", path.display()))
    }

    /// A failure of opening an image, with what to do about it.
    fn open(status: u8, error: &OpenError) -> Self {
        let hint = match error {
            OpenError::NotFound { .. } => "; make it with `btfs mkfs`, or mount with --create",
            OpenError::InUse { .. } => "; unmount it there, or wait until that process has ended",
            _ => "",
        };
        Failure::new(status, format_args!("{error}{hint}"))
    }

    /// The same with something added to its message.
    fn and(self, more: &str) -> Self {
        Failure { message: self.message + more, ..self }
    }

    /// A failure of the filesystem in an image, with what to do about it.
    fn fs(status: u8, image: &Path, error: &FsError) -> Self {
        let hint = match error {
            FsError::Engine(e) if e.is_corrupt() => {
                format!("; check it with `btfs fsck -n {}`", image.display())
            }
            FsError::Engine(crate::Error::Unusable(_)) => image::hint(image),
            FsError::NoSpace => "; free space there or on the disk that the image lies on".to_owned(),
            _ => String::new(),
        };
        Failure::at(status, image, format_args!("{error}{hint}"))
    }
}

impl<T: fmt::Display> From<(u8, T)> for Failure {
    fn from((status, message): (u8, T)) -> Self {
        Failure::new(status, message)
    }
}

/// Exit statuses of mount(8), which the other commands use as well.
mod status {
    /// Wrong arguments.
    pub const USAGE: u8 = 1;
    /// The system refused something.
    pub const SYSTEM: u8 = 2;
    /// Mounting failed.
    pub const MOUNT: u8 = 32;
}

/// Runs the command that the arguments ask for; the first one is the name that the program was called by.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    set_signals();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let program = arguments.first().map(PathBuf::from).unwrap_or_default();
    let name = program.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let (status, result) = match name.as_str() {
        "mount.fuse.btfs" | "mount.btfs" => (status::USAGE, parse(&arguments).map(mount::run_helper)),
        "mkfs.btfs" | "mkfs.fuse.btfs" => {
            (status::USAGE, parse(&arguments).map(|a: mkfs::Args| mkfs::run(&a)))
        }
        "fsck.btfs" | "fsck.fuse.btfs" => {
            (fsck::USAGE, parse(&fsck::attach(&arguments)).map(|a: fsck::Args| fsck::run(&a)))
        }
        _ => {
            if arguments.get(1).is_some_and(|a| a == "fsck") {
                (fsck::USAGE, parse(&fsck::attach(&arguments)).map(dispatch))
            } else {
                (status::USAGE, parse(&arguments).map(dispatch))
            }
        }
    };
    let result = match result {
        Ok(result) => result,
        Err(usage) => {
            // Help and version are not errors. There is nobody to tell if printing fails.
            let _ = usage.print();
            return if usage.use_stderr() { ExitCode::from(status) } else { ExitCode::SUCCESS };
        }
    };
    // A daemon's messages are on their way to the system's log.
    log::logger().flush();
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            let name = if name.is_empty() { "btfs" } else { &name };
            let _ = writeln!(io::stderr(), "{name}: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// Prints results on standard output. A reader that has gone has seen enough; any other failure is one of the command, with this
/// status.
fn print(status: u8, text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(status, format_args!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Tells the user something that is no failure. If nobody listens, so be it.
fn remark(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "btfs: {message}");
}

fn parse<A: Parser>(arguments: &[OsString]) -> Result<A, clap::Error> {
    A::try_parse_from(arguments)
}

fn dispatch(btfs: Btfs) -> CliResult {
    match btfs.command {
        Command::Mkfs(args) => mkfs::run(&args),
        Command::Mount(args) => mount::run(args),
        Command::Umount(args) => mount::umount(&args),
        Command::Sync(args) => watch::sync(&args),
        Command::Stats(args) => watch::stats(&args),
        Command::Scrub(args) => watch::scrub(&args),
        Command::Info(args) => image::info(&args),
        Command::Resize(args) => image::resize(&args),
        Command::Fsck(args) => fsck::run(&args),
    }
}

/// A write beyond `ulimit -f` is to fail, and not to end the program: a daemon would die in the middle of its work. And who calls us
/// may ignore the end of his children, which exec does not undo; then nobody could wait for fusermount3.
fn set_signals() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for (name, handler) in [(Signal::SIGXFSZ, SigHandler::SigIgn), (Signal::SIGCHLD, SigHandler::SigDfl)] {
        // SAFETY: no handler is installed, and no other thread exists yet.
        if let Err(e) = unsafe { signal(name, handler) } {
            log::debug!("{name}: {e}");
        }
    }
}

/// Messages of the library on standard error; `RUST_LOG` chooses, warnings and errors by default.
fn log_to_stderr(debug: bool) {
    let filter = if debug { "debug" } else { "warn" };
    // A second call, in tests, changes nothing.
    let _ = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter)).try_init();
}

/// A size on the command line.
fn size(text: &str) -> Result<u64, String> {
    crate::mount::parse_size(text).ok_or_else(|| {
        "a size is a whole number of bytes, or of K, M, G, T, P or E (powers of 1024), and below 16E".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Btfs::command().debug_assert();
        mount::HelperArgs::command().debug_assert();
        mkfs::Args::command().debug_assert();
        fsck::Args::command().debug_assert();
    }

    #[test]
    fn a_command_says_the_same_of_itself_by_each_of_its_names() {
        let btfs = Btfs::command();
        let fsck = btfs.find_subcommand("fsck").unwrap();
        let helper = fsck::Args::command();
        let about = |c: &clap::Command| c.get_about().map(|about| about.to_string());
        assert_eq!(about(fsck), about(&helper));
        for command in [fsck, &helper] {
            let statuses = command.get_after_help().unwrap().to_string();
            for status in ["0 ", "1 ", "4 ", "8 ", "16 "] {
                assert!(statuses.lines().any(|line| line.trim_start().starts_with(status)), "{statuses}");
            }
        }
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(64 << 30), "64.0 GiB");
    }
}
