//! What the figures were measured on.

use std::fs;
use std::path::Path;

/// The machine, and the filesystem in which `what` lies; one fact a line.
pub fn describe(what: &str, dir: &Path) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory_kib = field("/proc/meminfo", "MemTotal")
        .and_then(|memory| memory.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        format!("{cores} cores, {processor}, {} GiB of memory, Linux {}", memory_kib >> 20, kernel.trim()),
        format!("{what} on {}", file_system(dir).unwrap_or_else(|| "an unknown file system".to_owned())),
    ]
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Type and device of the mount that `dir` lies in.
fn file_system(dir: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        dir.starts_with(point).then(|| (point.len(), format!("{kind} on {device}")))
    });
    // Of mounts at the same point the last one is seen.
    mounts.max_by_key(|mount| mount.0).map(|mount| mount.1)
}
