//! What the kernel tells of this process: memory, processor time, bytes written.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::written;
use crate::protocol::Memory;

const IDLE_WINDOW: Duration = Duration::from_millis(50);
/// A process that uses less of one core than this is idle.
const IDLE_SHARE: f64 = 0.03;

/// Has the kernel kill this process when its parent ends.
pub fn die_with_parent() {
    // SAFETY: prctl with these arguments touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

pub fn join_cgroup(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("cannot join the control group {}", cgroup.display()))
}

/// Bytes that this process has written by any call, to whatever file.
pub fn bytes_by_calls() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/io")?;
    number_after(&text, "wchar:").context("no wchar in /proc/self/io")
}

pub fn memory() -> Result<Memory> {
    let text = fs::read_to_string("/proc/self/status")?;
    let field = |name| number_after(&text, name).unwrap_or(0) * 1024;
    Ok(Memory {
        resident: field("VmRSS:"),
        anonymous: field("RssAnon:"),
        file: field("RssFile:"),
        peak: field("VmHWM:"),
    })
}

/// Waits until no thread of this process computes or writes, but no longer than `limit`.
pub fn wait_until_idle(limit: Duration) {
    let start = Instant::now();
    let mut before = (cpu_time(), written::call_bytes());
    while start.elapsed() < limit {
        std::thread::sleep(IDLE_WINDOW);
        let now = (cpu_time(), written::call_bytes());
        if (now.0 - before.0).as_secs_f64() < IDLE_SHARE * IDLE_WINDOW.as_secs_f64() && now.1 == before.1 {
            break;
        }
        before = now;
    }
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The number behind the line's name `name`.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
