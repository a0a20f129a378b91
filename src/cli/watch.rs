//! `btfs sync`, `btfs stats` and `btfs scrub`: what is done to a live mount.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{CliResult, Failure, print, status};
use crate::escape::escaped;
use crate::fs::Scrub;
use crate::mount::{control, ending_signals, mounts};

/// A line of results.
macro_rules! say {
    ($($line:tt)*) => { print(status::SYSTEM, format_args!($($line)*))? };
}

#[derive(Parser)]
pub struct SyncArgs {
    /// A directory on the mount
    dir: PathBuf,
}

/// What the command ends with, and what ends the scrub.
const SCRUB_HELP: &str = "\
What is damaged is listed at the end, the first 100 places; the system's log has all of them. \
The scrub runs in the daemon of the mount. A signal (INT, TERM or HUP, as by Ctrl-C) to this command ends it; \
if the command is killed without one, or the daemon does not answer for 5 seconds, the scrub goes on until it ends or \
is stopped with --stop.

Exit status: 0 if everything was verified and is whole; 4 if damage was found; 32 if it was stopped before the end \
(36: and damage was found until then); 130, 143 or 129 if INT, TERM or HUP stopped it; 1 for wrong arguments; \
2 if the system refused something.";

#[derive(Parser)]
#[command(after_help = SCRUB_HELP)]
pub struct ScrubArgs {
    /// Bytes of contents a second, at the most; not less than 64K
    #[arg(long, value_parser = rate, default_value = "100M")]
    rate: u64,
    /// End the scrub that is under way; whoever waits for it is told that it was stopped
    #[arg(long)]
    stop: bool,
    /// Return at once; `btfs stats` shows how far it is
    #[arg(long, conflicts_with = "stop")]
    background: bool,
    /// Print JSON, at the end
    #[arg(long, conflicts_with_all = ["stop", "background"])]
    json: bool,
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
        Some(libc::ENOTTY) => Failure::at(status::SYSTEM, dir, "no btfs image is mounted here"),
        Some(libc::ENOTCONN) => {
            Failure::at(status::SYSTEM, dir, "the daemon of this mount is gone; mount the image again")
        }
        _ => Failure::at(status::SYSTEM, dir, e),
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
/// Exit status if somebody stopped it, as of fsck(8).
const STOPPED: u8 = 32;

/// What a live mount tells about itself.
pub(super) fn report(dir: &Path) -> Result<Value, Failure> {
    let report = control::stats(dir).map_err(|e| fail(dir, &e))?;
    serde_json::from_str(&report)
        .map_err(|e| Failure::at(status::SYSTEM, dir, format_args!("its report: {e}")))
}

pub fn scrub(args: &ScrubArgs) -> CliResult {
    let dir = &args.dir;
    if args.stop {
        control::stop_scrub(dir).map_err(|e| fail(dir, &e))?;
        return Ok(0);
    }
    let start = || {
        control::scrub(dir, args.rate).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => Failure::at(status::SYSTEM, dir, "a scrub is under way"),
            _ => fail(dir, &e),
        })
    };
    if args.background {
        return start().map(|()| 0);
    }
    // From here on nobody ends with a scrub left behind, unless the daemon does not answer.
    let (signals, ended) = catch_signals()
        .map_err(|e| Failure::new(status::SYSTEM, format_args!("waiting for signals: {e}")))?;
    start()?;
    let terminal = io::stderr().is_terminal();
    let mut scrub = report(dir)?["scrub"].take();
    let mut by_signal = None;
    while scrub["running"] == true {
        if terminal {
            let _ = write!(io::stderr(), "\r{}\x1b[K", progress(&scrub));
        }
        if let Ok(signal) = signals.recv_timeout(POLL) {
            by_signal = Some(128 + signal as u8);
            control::stop_scrub(dir).map_err(|e| fail(dir, &e))?;
        }
        let next = report(dir)?["scrub"].take();
        if next["run"] != scrub["run"] {
            // Somebody stopped this one and began another.
            (scrub["running"], scrub["state"]) = (false.into(), "stopped".into());
            break;
        }
        scrub = next;
    }
    ended.store(true, Ordering::SeqCst);
    if terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    let (line, status) = outcome(&scrub);
    let findings = match scrub["damaged"].as_u64() {
        Some(0) | None => Vec::new(),
        Some(_) => control::findings(dir).map_err(|e| fail(dir, &e))?,
    };
    if args.json {
        scrub["findings"] = findings.into();
        say!("{scrub:#}");
    } else {
        say!("{}: {line}", dir.display());
        for finding in &findings {
            say!("{}", describe_finding(finding));
        }
        match scrub["damaged"].as_u64().unwrap_or(0).saturating_sub(findings.len() as u64) {
            0 => {}
            more => say!("and {more} more, which the system's log names"),
        }
    }
    Ok(by_signal.filter(|_| scrub["state"] == "stopped").unwrap_or(status))
}

/// How often to ask how far a scrub is.
const POLL: Duration = Duration::from_millis(200);

/// How a scrub ended, in a line and as the exit status.
fn outcome(scrub: &Value) -> (String, u8) {
    let damaged = if scrub["damaged"] == 0 { 0 } else { DAMAGED };
    let line = progress(scrub);
    match scrub["state"].as_str() {
        Some("stopped") => (format!("stopped before the end: {line}"), STOPPED | damaged),
        Some("failed") => (format!("ended early, since the tree cannot be read on: {line}"), DAMAGED),
        _ => (line, damaged),
    }
}

/// A damaged place: whose, where, and what is wrong.
fn describe_finding(finding: &Value) -> String {
    let mut line = String::new();
    if let (Some(path), Some(inode)) = (finding["path"].as_str(), finding["inode"].as_u64()) {
        line += &format!("{path} (inode {inode}): ");
    }
    if let (Some(from), Some(to)) = (finding["from"].as_u64(), finding["to"].as_u64()) {
        line += &format!("bytes {from} to {to}: ");
    }
    // A name may hold what a terminal takes for a command.
    let line = line + finding["reason"].as_str().unwrap_or("damaged");
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// How long a daemon that is asked to end a scrub may take, before this process ends without it.
const ANSWER: Duration = Duration::from_secs(5);

/// Has the first of the signals that end a scrub sent to the receiver. A second one ends the process, and so does a daemon that does not
/// answer, until the flag says that the scrub has ended. To be called before any other thread exists.
fn catch_signals() -> std::io::Result<(Receiver<Signal>, Arc<AtomicBool>)> {
    let caught = ending_signals();
    caught.thread_block()?;
    let ended = Arc::<AtomicBool>::default();
    let has_ended = ended.clone();
    let (sender, receiver) = mpsc::channel();
    let end = |signal: Signal| std::process::exit(128 + signal as i32);
    std::thread::Builder::new().name("btfs-signals".into()).spawn(move || {
        let Ok(signal) = caught.wait() else { return };
        if sender.send(signal).is_err() {
            end(signal);
        }
        let asked = std::thread::Builder::new().name("btfs-answer".into()).spawn(move || {
            std::thread::sleep(ANSWER);
            if has_ended.load(Ordering::SeqCst) {
                return;
            }
            super::remark(format_args!("the daemon does not answer; the scrub may go on when it does"));
            end(signal);
        });
        if asked.is_err() {
            end(signal);
        }
        end(caught.wait().unwrap_or(signal));
    })?;
    Ok((receiver, ended))
}

/// What `state` in a report means.
fn describe_state(state: &str) -> String {
    match state {
        "rw" => "changes are taken (rw)".into(),
        "ro" => "read-only (ro)".into(),
        state => match state.strip_prefix("failed: ") {
            Some(error) => format!("changes are refused since an error: {}", escaped(error.as_bytes())),
            None => escaped(state.as_bytes()),
        },
    }
}

/// How far a scrub is, or how it ended.
fn describe_scrub(scrub: &Value) -> String {
    match scrub["state"].as_str() {
        Some("none") => "none since the mount".into(),
        Some("running") => format!("under way: {}", progress(scrub)),
        Some("finished") => format!("finished: {}", progress(scrub)),
        _ => outcome(scrub).0,
    }
}

/// How much a scrub has verified.
fn progress(scrub: &Value) -> String {
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
    let json = report(dir)?;
    if args.json {
        say!("{json:#}");
        return Ok(0);
    }
    if let Some(mounted) = mounts::find(dir) {
        say!("{} at {}", mounted.source.display(), mounted.dir.display());
    }
    say!(
        "{:<16} {:>10} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "request",
        "count",
        "errors",
        "mean µs",
        "p50 ≤",
        "p99 ≤",
        "max ≤"
    );
    for (name, of) in json["requests"].as_object().into_iter().flatten() {
        let number = |key: &str| of[key].as_f64().unwrap_or(0.0);
        say!(
            "{name:<16} {:>10} {:>8} {:>10.1} {:>10.0} {:>10.0} {:>10.0}",
            number("count"),
            number("errors"),
            number("mean_us"),
            number("p50_us"),
            number("p99_us"),
            number("max_us")
        );
    }
    say!("");
    for (name, value) in json["volume"].as_object().into_iter().flatten() {
        say!("{:<20} {value}", name.replace('_', " "));
    }
    say!("");
    say!("{:<20} {}", "state", describe_state(json["state"].as_str().unwrap_or("unknown")));
    say!("{:<20} {}", "damage met", json["damage"]);
    say!("{:<20} {}", "scrub", describe_scrub(&json["scrub"]));
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
        let mut scrub = json!({"state": "none", "records": 7, "inodes": 0, "bytes": 0, "damaged": 0});
        assert_eq!(describe_scrub(&scrub), "none since the mount");
        scrub["state"] = "running".into();
        assert!(describe_scrub(&scrub).starts_with("under way: 7 records, "));
    }

    #[test]
    fn a_finding_names_file_and_bytes() {
        let of = |finding: Value| describe_finding(&finding);
        let file = json!({"path": "/a\nb", "inode": 7, "from": 0, "to": 4096, "reason": "is bad"});
        assert_eq!(of(file), "/a?b (inode 7): bytes 0 to 4096: is bad");
        assert_eq!(of(json!({"path": null, "inode": null, "reason": "the tree"})), "the tree");
    }

    #[test]
    fn a_scrub_that_did_not_come_to_the_end_is_no_success() {
        let of = |state: &str, damaged: u64| {
            outcome(&json!({"state": state, "records": 7, "inodes": 0, "bytes": 0, "damaged": damaged}))
        };
        assert_eq!((of("finished", 0).1, of("finished", 1).1), (0, DAMAGED));
        assert_eq!((of("stopped", 0).1, of("stopped", 1).1), (STOPPED, STOPPED | DAMAGED));
        assert_eq!(of("failed", 1).1, DAMAGED);
        assert!(of("stopped", 0).0.starts_with("stopped before the end: 7 records"));
    }
}
