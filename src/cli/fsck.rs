//! `btfs fsck`, `fsck.btfs`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;

use super::{CliResult, Failure, log_to_stderr};
use crate::fs::Fs;
use crate::storage::{FileStorage, OpenMode};
use crate::tree::Options;

/// Exit status for wrong arguments.
pub const USAGE: u8 = 16;
/// Exit status for an error of the operation itself.
const OPERATIONAL: u8 = 8;
/// Exit status for errors that were left uncorrected.
const UNCORRECTED: u8 = 4;

/// Check an image.
#[derive(Parser)]
#[command(name = "fsck.btfs", version)]
pub struct Args {
    /// Change nothing
    #[arg(short = 'n')]
    no: bool,
    /// Check also if it was closed in order
    #[arg(short = 'f', long)]
    force: bool,
    /// Print more
    #[arg(short = 'v', long)]
    verbose: bool,
    /// The image
    image: PathBuf,
}

pub fn run(args: &Args) -> CliResult {
    log_to_stderr(args.verbose);
    let storage =
        FileStorage::open(&args.image, OpenMode::ReadOnly).map_err(|e| Failure::open(OPERATIONAL, &e))?;
    let options = Options { read_only: true, ..Options::default() };
    let fs = match Fs::open(Arc::new(storage), &options) {
        Ok(fs) => fs,
        Err(e) => return Err(Failure::new(UNCORRECTED, format_args!("{}: {e}", args.image.display()))),
    };
    match fs.tree().check() {
        Ok(_) => Ok(0),
        Err(e) => Err(Failure::new(UNCORRECTED, format_args!("{}: {e}", args.image.display()))),
    }
}
