//! `btfs sync` and `btfs stats`: what is done to a live mount.

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use super::{CliResult, Failure, status};
use crate::fs::Scrub;
use crate::mount::{control, mounts};

#[derive(Parser)]
pub struct SyncArgs {
    /// A directory on the mount
    dir: PathBuf,
}

#[derive(Parser)]
pub struct ScrubArgs {
    /// Bytes of contents a second, at the most; not less than 64K
    #[arg(long, value_parser = rate, default_value = "100M")]
    rate: u64,
    /// End the scrub that is under way
    #[arg(long)]
    stop: bool,
    /// Return at once; `btfs stats` shows how far it is
    #[arg(long, conflicts_with = "stop")]
    background: bool,
    /// A directory on the mount
    dir: PathBuf,
}

/// A rate on the command line.
fn rate(text: &str) -> Result<u64, String> {
    match super::size(text)? {
        rate if rate < Scrub::LEAST_RATE => Err(format!(
            "the least rate is {}K a second: with less a scrub hardly ends",
            Scrub::LEAST_RATE >> 10
        )),
        rate => Ok(rate),
    }
}

#[derive(Parser)]
pub struct StatsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// A directory on the mount
    dir: PathBuf,
}

pub(super) fn fail(dir: &Path, e: &std::io::Error) -> Failure {
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

/// Exit status if damage was found, as of fsck(8).
const DAMAGED: u8 = 4;

pub fn scrub(args: &ScrubArgs) -> CliResult {
    let dir = &args.dir;
    if args.stop {
        control::stop_scrub(dir).map_err(|e| fail(dir, &e))?;
        return Ok(0);
    }
    control::scrub(dir, args.rate).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            Failure::new(status::SYSTEM, format_args!("{}: a scrub is under way", dir.display()))
        }
        _ => fail(dir, &e),
    })?;
    if args.background {
        return Ok(0);
    }
    let terminal = std::io::stderr().is_terminal();
    loop {
        let report = control::stats(dir).map_err(|e| fail(dir, &e))?;
        let json: serde_json::Value = serde_json::from_str(&report)
            .map_err(|e| Failure::new(status::SYSTEM, format_args!("{}: its report: {e}", dir.display())))?;
        let scrub = &json["scrub"];
        let line = progress(scrub);
        if scrub["running"] != true {
            if terminal {
                eprint!("\r\x1b[K");
            }
            println!("{}: {line}", dir.display());
            return Ok(if scrub["damaged"] == 0 { 0 } else { DAMAGED });
        }
        if terminal {
            eprint!("\r{line}\x1b[K");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What `state` in a report means.
fn describe_state(state: &str) -> String {
    match state {
        "rw" => "changes are taken (rw)".into(),
        "ro" => "read-only (ro)".into(),
        state => match state.strip_prefix("failed: ") {
            Some(error) => format!("changes are refused since an error: {error}"),
            None => state.into(),
        },
    }
}

/// How far a scrub is, or how it ended.
fn describe_scrub(scrub: &serde_json::Value) -> String {
    if scrub["running"] == true {
        format!("under way: {}", progress(scrub))
    } else if scrub["records"] == 0 && scrub["damaged"] == 0 {
        "none since the mount".into()
    } else {
        format!("ended: {}", progress(scrub))
    }
}

/// How much a scrub has verified.
fn progress(scrub: &serde_json::Value) -> String {
    let number = |key: &str| scrub[key].as_u64().unwrap_or(0);
    format!(
        "{} records, {} files with {} of contents verified, {} damaged",
        number("records"),
        number("inodes"),
        super::bytes(number("bytes")),
        number("damaged")
    )
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
    println!();
    println!("{:<20} {}", "state", describe_state(json["state"].as_str().unwrap_or("unknown")));
    println!("{:<20} {}", "damage met", json["damage"]);
    println!("{:<20} {}", "scrub", describe_scrub(&json["scrub"]));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rate_with_which_a_scrub_does_not_end_is_refused() {
        let parse = |rate| ScrubArgs::try_parse_from(["scrub", "--rate", rate, "/mnt"]);
        assert_eq!(parse("64K").unwrap().rate, Scrub::LEAST_RATE);
        for refused in ["0", "1", "65535"] {
            let said = parse(refused).err().unwrap().to_string();
            assert!(said.contains("the least rate is 64K"), "{said}");
        }
    }

    #[test]
    fn stats_say_whether_changes_are_refused_and_how_far_a_scrub_is() {
        assert_eq!(describe_state("rw"), "changes are taken (rw)");
        assert_eq!(describe_state("failed: disk"), "changes are refused since an error: disk");
        let mut scrub = json!({"running": false, "records": 0, "inodes": 0, "bytes": 0, "damaged": 0});
        assert_eq!(describe_scrub(&scrub), "none since the mount");
        scrub["running"] = true.into();
        scrub["records"] = 7.into();
        assert!(describe_scrub(&scrub).starts_with("under way: 7 records, "));
    }
}
