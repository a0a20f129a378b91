//! `btfs sync` and `btfs stats`: what is done to a live mount.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::{CliResult, Failure, status};
use crate::mount::{control, mounts};

#[derive(Parser)]
pub struct SyncArgs {
    /// A directory on the mount
    dir: PathBuf,
}

#[derive(Parser)]
pub struct StatsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// A directory on the mount
    dir: PathBuf,
}

fn fail(dir: &Path, e: &std::io::Error) -> Failure {
    match e.raw_os_error() {
        Some(libc::ENOTTY) => {
            Failure::new(status::SYSTEM, format_args!("{}: no btfs image is mounted here", dir.display()))
        }
        Some(libc::ENOTCONN) => Failure::new(
            status::SYSTEM,
            format_args!("{}: the daemon of this mount is gone; mount the image again", dir.display()),
        ),
        _ => Failure::new(status::SYSTEM, format_args!("{}: {e}", dir.display())),
    }
}

pub fn sync(args: &SyncArgs) -> CliResult {
    let dir = &args.dir;
    // On another filesystem it would sync one directory and promise nothing of the rest.
    control::stats(dir).map_err(|e| fail(dir, &e))?;
    File::open(dir).and_then(|f| f.sync_all()).map_err(|e| fail(dir, &e))?;
    Ok(0)
}

pub fn stats(args: &StatsArgs) -> CliResult {
    let dir = &args.dir;
    let report = control::stats(dir).map_err(|e| fail(dir, &e))?;
    let json: serde_json::Value = serde_json::from_str(&report)
        .map_err(|e| Failure::new(status::SYSTEM, format_args!("{}: its report: {e}", dir.display())))?;
    if args.json {
        println!("{json:#}");
        return Ok(0);
    }
    if let Some(mounted) = mounts::find(dir) {
        println!("{} at {}", mounted.source.display(), mounted.dir.display());
    }
    println!(
        "{:<16} {:>10} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "request", "count", "errors", "mean µs", "p50 ≤", "p99 ≤", "max ≤"
    );
    for (name, of) in json["requests"].as_object().into_iter().flatten() {
        let number = |key: &str| of[key].as_f64().unwrap_or(0.0);
        println!(
            "{name:<16} {:>10} {:>8} {:>10.1} {:>10.0} {:>10.0} {:>10.0}",
            number("count"),
            number("errors"),
            number("mean_us"),
            number("p50_us"),
            number("p99_us"),
            number("max_us")
        );
    }
    println!();
    for (name, value) in json["volume"].as_object().into_iter().flatten() {
        println!("{:<20} {value}", name.replace('_', " "));
    }
    Ok(0)
}
