//! `btfs fsck`, `fsck.btfs`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;

use super::{CliResult, Failure, image, log_to_stderr, print};
use crate::fsck::{self, Options, Progress, Repair, Stage};
use crate::storage::OpenMode;

/// Exit status for wrong arguments.
pub const USAGE: u8 = 16;
/// Exit status for an error of the operation itself.
const OPERATIONAL: u8 = 8;

const STATUSES: &str = "\
Exit status:
  0   nothing is wrong; or, with -p, the image was closed in order and not checked
  1   problems were found, and all of them repaired
  4   problems are left (5: others were repaired)
  8   the image could not be checked: it is none, is in use, or cannot be read or written
  16  wrong arguments";

/// Check an image, and repair it
#[derive(Parser)]
#[command(name = "fsck.btfs", version, after_help = STATUSES)]
pub struct Args {
    /// Change nothing, and say what -y would give up [default]
    #[arg(short = 'n', conflicts_with_all = ["preen", "yes"])]
    no: bool,
    /// Repair what is safe to repair, without asking
    #[arg(short = 'p', short_alias = 'a', conflicts_with = "yes")]
    preen: bool,
    /// Repair everything, without asking
    #[arg(short = 'y')]
    yes: bool,
    /// With -p: check also what was closed in order; -n, -y and --scrub always check
    #[arg(short = 'f', long)]
    force: bool,
    /// Read and verify all file contents as well; with -y, mark as lost what fails its checksum
    #[arg(long)]
    scrub: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Print more
    #[arg(short = 'v', long)]
    verbose: bool,
    /// Show progress on standard error; with a number attached that is not 0, as -C5, write it to that descriptor: lines of pass,
    /// done, of how much, and image, as those of e2fsck
    #[arg(short = 'C', value_name = "FD", num_args = 0..=1, require_equals = true, default_missing_value = "0",
          value_parser = clap::value_parser!(i32).range(0..))]
    progress: Option<i32>,
    /// Do not print a title; for fsck(8)
    #[arg(short = 'T', hide = true)]
    no_title: bool,
    /// The image
    image: PathBuf,
}

/// Arguments in which the number behind `-C` is attached as clap wants it: e2fsck's `-C5` becomes `-C=5`. No other option with one
/// letter has a value, so what follows it in the same argument is that number.
pub fn attach(arguments: &[OsString]) -> Vec<OsString> {
    let options = arguments.iter().position(|a| a == "--").unwrap_or(arguments.len());
    let attach = |(i, argument): (usize, &OsString)| {
        let bytes = argument.as_bytes();
        let letters = i < options && bytes.len() > 1 && bytes[0] == b'-' && bytes[1] != b'-';
        let at = bytes.iter().position(|b| *b == b'C').filter(|_| letters);
        match at.map(|at| bytes.split_at(at + 1)) {
            Some((letters, number)) if !number.is_empty() && number[0] != b'=' => {
                OsString::from_vec([letters, b"=", number].concat())
            }
            _ => argument.clone(),
        }
    };
    arguments.iter().enumerate().map(attach).collect()
}

/// Where progress is shown.
enum Shown {
    Nowhere,
    /// To people, on standard error.
    Terminal,
    /// To a program.
    Descriptor(File),
}

impl Shown {
    fn choose(args: &Args) -> Result<Shown, Failure> {
        match args.progress {
            None if args.json || !io::stderr().is_terminal() => Ok(Shown::Nowhere),
            None | Some(0) => Ok(Shown::Terminal),
            Some(fd) => {
                // SAFETY: it takes any number, and fails if nothing is open there.
                let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
                if copy < 0 {
                    let error = io::Error::last_os_error();
                    return Err(Failure::new(USAGE, format_args!("-C{fd}: {error}")));
                }
                // SAFETY: it has just been made, and nobody else knows it.
                Ok(Shown::Descriptor(File::from(unsafe { OwnedFd::from_raw_fd(copy) })))
            }
        }
    }

    /// Whoever was to be told may have gone: the check goes on.
    fn show(&self, progress: Progress, image: &Path) {
        let _ = match self {
            Shown::Nowhere => Ok(()),
            Shown::Terminal => match progress.total {
                0 => write!(io::stderr(), "\r{}: {}\x1b[K", name(progress.stage), progress.done),
                total => {
                    let percent = progress.done.saturating_mul(100) / total;
                    write!(io::stderr(), "\r{}: {percent} %\x1b[K", name(progress.stage))
                }
            },
            Shown::Descriptor(file) => {
                let mut file: &File = file;
                file.write_all(&line(progress, image.as_os_str()))
            }
        };
    }

    fn end(&self) {
        if let Shown::Terminal = self {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Search => "searching",
        Stage::Tree => "tree",
        Stage::Inodes => "inodes",
        Stage::Names => "names",
        Stage::Scrub => "contents",
    }
}

/// Progress as e2fsck writes it, whose passes are numbered from 1 to 5. Of what is not known in advance, 0 of 1 is done.
fn line(progress: Progress, image: &OsStr) -> Vec<u8> {
    let pass = match progress.stage {
        Stage::Search | Stage::Tree => 1,
        Stage::Inodes => 2,
        Stage::Names => 3,
        Stage::Scrub => 4,
    };
    let (done, total) = if progress.total == 0 { (0, 1) } else { (progress.done, progress.total) };
    let mut line = format!("{pass} {} {total} ", done.min(total)).into_bytes();
    line.extend_from_slice(image.as_bytes());
    line.push(b'\n');
    line
}

pub fn run(args: &Args) -> CliResult {
    // Before anything else is opened, which would get the number of a descriptor that is not there.
    let shown = Shown::choose(args)?;
    log_to_stderr(args.verbose);
    let repair = match (args.preen, args.yes) {
        (true, _) => Repair::Safe,
        (_, true) => Repair::All,
        _ => Repair::No,
    };
    let mode = if repair == Repair::No { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let storage = image::open_released(&args.image, mode, image::FINISHING, None)
        .map_err(|e| Failure::open(OPERATIONAL, &e))?;
    let show = |progress: Progress| shown.show(progress, &args.image);
    let options = Options {
        repair,
        scrub: args.scrub,
        force: args.force,
        progress: if let Shown::Nowhere = shown { None } else { Some(&show) },
    };
    let report = fsck::check(Arc::new(storage), &options);
    shown.end();
    let report = report.map_err(|e| Failure::at(OPERATIONAL, &args.image, e))?;
    if args.json {
        print(OPERATIONAL, format_args!("{:#}", report.to_json()))?;
    } else {
        print(OPERATIONAL, report.to_string().trim_end())?;
    }
    Ok(report.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::mkfs;

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Args::try_parse_from(attach(&arguments))
    }

    #[test]
    fn the_number_of_a_descriptor_is_attached_and_the_image_is_none() {
        for (arguments, progress) in [
            (&["fsck.btfs", "image"][..], None),
            (&["fsck.btfs", "-C", "image"], Some(0)),
            (&["fsck.btfs", "image", "-C"], Some(0)),
            (&["fsck.btfs", "-C0", "image"], Some(0)),
            (&["fsck.btfs", "-nC5", "image"], Some(5)),
            (&["fsck.btfs", "-fC", "-y", "image"], Some(0)),
            (&["fsck.btfs", "-a", "-T", "-C12", "image"], Some(12)),
        ] {
            let args = parse(arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
            assert_eq!((args.progress, args.image.to_str()), (progress, Some("image")), "{arguments:?}");
        }
        assert_eq!(parse(&["fsck.btfs", "--", "-C5"]).unwrap().image.to_str(), Some("-C5"));
        for wrong in ["-C-5", "-Cx", "-C99999999999"] {
            assert!(parse(&["fsck.btfs", wrong, "image"]).is_err(), "{wrong}");
        }
        assert!(parse(&["fsck.btfs", "-C", "5", "image"]).is_err());
    }

    #[test]
    fn progress_is_written_as_e2fsck_writes_it() {
        let said = |stage, done, total| {
            String::from_utf8(line(Progress { stage, done, total }, OsStr::new("a.db"))).unwrap()
        };
        assert_eq!(said(Stage::Scrub, 3, 7), "4 3 7 a.db\n");
        assert_eq!(said(Stage::Inodes, 3, 0), "2 0 1 a.db\n");
    }

    #[test]
    fn progress_goes_to_the_descriptor_that_was_asked_for() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.db");
        mkfs::create(&image, &mkfs::default_options(Some(64 << 20)).unwrap(), false).unwrap();
        let path = dir.path().join("progress");
        let file = File::create(&path).unwrap();
        let number = format!("-C{}", file.as_raw_fd());
        let args = parse(&["fsck.btfs", &number, "--scrub", image.to_str().unwrap()]).unwrap();
        assert_eq!(run(&args).unwrap(), 0);
        let said = std::fs::read_to_string(&path).unwrap();
        let end = format!(" {}", image.display());
        assert!(!said.is_empty() && said.lines().all(|line| line.ends_with(&end)), "{said:?}");
        let args = parse(&["fsck.btfs", "-C1000000", image.to_str().unwrap()]).unwrap();
        let failure = run(&args).unwrap_err();
        assert!(failure.status == USAGE && failure.message.starts_with("-C1000000: "), "{failure:?}");
    }
}
