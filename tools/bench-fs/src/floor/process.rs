//! The process of the floor: mounts one volume as often as it is told to.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use btfs::mount::{Mount, MountOptions, block_signals};

use super::volume::{Contents, Floor};

/// The line that asks for the next mount of the same contents.
pub const MOUNT: &str = "mount";
/// The line that says that the mount has been taken away and everything closed.
pub const CLOSED: &str = "closed";

/// Serves a volume at the directory that the arguments name; over again for each line on standard input, until that ends.
pub fn run(arguments: &[String]) -> Result<()> {
    let dir: PathBuf = arguments.first().context("no directory to mount at")?.into();
    block_signals()?;
    let contents = Contents::new();
    let mut line = String::new();
    loop {
        line.clear();
        if io::stdin().read_line(&mut line)? == 0 {
            return Ok(());
        }
        ensure!(line.trim() == MOUNT, "unknown request {line:?}");
        let volume = Floor::new(contents.clone());
        Mount::new(volume, Path::new("floor"), &dir, &MountOptions::default())?.serve()?;
        let mut out = io::stdout().lock();
        writeln!(out, "{CLOSED}")?;
        out.flush()?;
    }
}
