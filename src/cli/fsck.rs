//! `btfs fsck`, `fsck.btfs`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;

use super::{CliResult, Failure, image, log_to_stderr};
use crate::fsck::{self, Options, Progress, Repair, Stage};
use crate::storage::OpenMode;

/// Exit status for wrong arguments.
pub const USAGE: u8 = 16;
/// Exit status for an error of the operation itself.
const OPERATIONAL: u8 = 8;

/// Check an image, and repair it.
#[derive(Parser)]
#[command(name = "fsck.btfs", version)]
pub struct Args {
    /// Change nothing [default]
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
    /// Show progress; fsck(8) gives the number of a descriptor
    #[arg(short = 'C', value_name = "FD", num_args = 0..=1, default_missing_value = "1")]
    progress: Option<i32>,
    /// Do not print a title; for fsck(8)
    #[arg(short = 'T', hide = true)]
    no_title: bool,
    /// The image
    image: PathBuf,
}

pub fn run(args: &Args) -> CliResult {
    log_to_stderr(args.verbose);
    let repair = match (args.preen, args.yes) {
        (true, _) => Repair::Safe,
        (_, true) => Repair::All,
        _ => Repair::No,
    };
    let mode = if repair == Repair::No { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let storage = image::open_released(&args.image, mode, image::FINISHING)
        .map_err(|e| Failure::open(OPERATIONAL, &e))?;
    let terminal = std::io::stderr().is_terminal() && !args.json;
    let show = |progress: Progress| {
        // Nobody is told if the terminal has gone.
        let stage = match progress.stage {
            Stage::Search => "searching",
            Stage::Tree => "tree",
            Stage::Inodes => "inodes",
            Stage::Names => "names",
            Stage::Scrub => "contents",
            Stage::Repair => "repairing",
        };
        let _ = match progress.total {
            0 => write!(std::io::stderr(), "\r{stage}: {}\x1b[K", progress.done),
            total => write!(std::io::stderr(), "\r{stage}: {} %\x1b[K", progress.done * 100 / total),
        };
    };
    let shown = args.progress.is_some() || terminal;
    let options = Options {
        repair,
        scrub: args.scrub,
        force: args.force,
        progress: if shown { Some(&show) } else { None },
    };
    let report = fsck::check(Arc::new(storage), &options);
    if shown {
        eprint!("\r\x1b[K");
    }
    let report =
        report.map_err(|e| Failure::new(OPERATIONAL, format_args!("{}: {e}", args.image.display())))?;
    if args.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(report.exit_code())
}
