//! What `btfs stats`, `btfs scrub` and `btfs resize` ask a live mount: ioctls on its root directory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::fs::Atime;

/// Bytes of a report, padded with zeros. An ioctl's number holds 14 bits of size, and 13 on some architectures.
pub const REPORT_SIZE: usize = if HAS_13_BITS { 8_000 } else { 16_000 };
const HAS_13_BITS: bool = cfg!(any(
    target_arch = "mips",
    target_arch = "mips32r6",
    target_arch = "mips64",
    target_arch = "mips64r6",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc",
    target_arch = "sparc64",
));
const LETTER: u32 = b'b' as u32;

// FUSE passes 32 bits; the type of what is passed to ioctl(2) differs from one C library to the next.
const STATS: u32 = libc::_IOR::<[u8; REPORT_SIZE]>(LETTER, 1) as u32;
const GROW: u32 = libc::_IOW::<u64>(LETTER, 2) as u32;
const SCRUB: u32 = libc::_IOW::<u64>(LETTER, 3) as u32;
const SCRUB_STOP: u32 = libc::_IOW::<u64>(LETTER, 4) as u32;
const ACCESS_TIMES: u32 = libc::_IOW::<u64>(LETTER, 6) as u32;
const FINDINGS: u32 = libc::_IOWR::<[u8; REPORT_SIZE]>(LETTER, 5) as u32;

/// A request to a live mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// Counters, as JSON.
    Stats,
    /// Make the image this large, in bytes.
    Grow(u64),
    /// Begin to verify everything, at this many bytes a second at the most.
    Scrub(u64),
    /// End that.
    StopScrub,
    /// Which accesses change access times.
    AccessTimes(Atime),
    /// What it has found, from this number on, as many as there is room for.
    Findings(u64),
}

impl Control {
    /// The request with this number and input.
    pub fn decode(command: u32, input: &[u8]) -> Option<Control> {
        match command {
            STATS => Some(Control::Stats),
            GROW => Some(Control::Grow(u64::from_ne_bytes(input.try_into().ok()?))),
            SCRUB => Some(Control::Scrub(u64::from_ne_bytes(input.try_into().ok()?))),
            SCRUB_STOP => Some(Control::StopScrub),
            ACCESS_TIMES => {
                let number = u64::from_ne_bytes(input.try_into().ok()?);
                Some(Control::AccessTimes(Atime::numbered(number.try_into().ok()?)?))
            }
            FINDINGS => Some(Control::Findings(u64::from_ne_bytes(*input.first_chunk()?))),
            _ => None,
        }
    }

    /// A report as it is sent: cut off or padded to the size that was asked for.
    pub fn pad(report: String, size: usize) -> Vec<u8> {
        let mut bytes = report.into_bytes();
        bytes.resize(size, 0);
        bytes
    }
}

/// Asks the mount that `dir` lies in for its counters, as JSON.
pub fn stats(dir: &Path) -> io::Result<String> {
    ask(dir, STATS, 0)
}

/// Asks the mount that `dir` lies in for what its last scrub has found: objects with path, inode, from, to and reason.
pub fn findings(dir: &Path) -> io::Result<Vec<serde_json::Value>> {
    let mut findings = Vec::new();
    loop {
        let next: Vec<serde_json::Value> = serde_json::from_str(&ask(dir, FINDINGS, findings.len() as u64)?)?;
        if next.is_empty() {
            return Ok(findings);
        }
        findings.extend(next);
    }
}

/// The report that answers a command.
fn ask(dir: &Path, command: u32, number: u64) -> io::Result<String> {
    let mut report = vec![0u8; REPORT_SIZE];
    report[..size_of::<u64>()].copy_from_slice(&number.to_ne_bytes());
    ioctl(dir, command, report.as_mut_ptr().cast())?;
    report.truncate(report.iter().position(|b| *b == 0).unwrap_or(REPORT_SIZE));
    String::from_utf8(report).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Asks the mount that `dir` lies in to make its image `size` bytes large.
pub fn grow(dir: &Path, size: u64) -> io::Result<()> {
    send(dir, GROW, size)
}

/// Asks the mount that `dir` lies in to verify everything in the background, contents at `rate` bytes a second at the most. How far
/// it is stands in its counters. EBUSY: one is under way.
pub fn scrub(dir: &Path, rate: u64) -> io::Result<()> {
    send(dir, SCRUB, rate)
}

/// Ends a scrub.
pub fn stop_scrub(dir: &Path) -> io::Result<()> {
    send(dir, SCRUB_STOP, 0)
}

/// Tells the mount that `dir` lies in which accesses change access times: the flags of a mount are the kernel's, which does not tell that
/// they have changed.
pub fn set_atime_mode(dir: &Path, mode: Atime) -> io::Result<()> {
    send(dir, ACCESS_TIMES, mode as u64)
}

fn send(dir: &Path, command: u32, number: u64) -> io::Result<()> {
    let mut number = number.to_ne_bytes();
    ioctl(dir, command, number.as_mut_ptr().cast())
}

/// `argument` points to as many bytes as the command's number says.
fn ioctl(dir: &Path, command: u32, argument: *mut libc::c_void) -> io::Result<()> {
    let dir = File::open(dir)?;
    // SAFETY: the kernel reads or writes as many bytes at `argument` as are encoded in the command, which both callers provide.
    let result = unsafe { libc::ioctl(dir.as_raw_fd(), command as libc::Ioctl, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount is asked by the command of another version as well.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_numbers_of_requests_stay_as_they_are() {
        let numbers = [STATS, GROW, SCRUB, SCRUB_STOP, FINDINGS, ACCESS_TIMES];
        assert_eq!(numbers, [0xbe80_6201, 0x4008_6202, 0x4008_6203, 0x4008_6204, 0xfe80_6205, 0x4008_6206]);
    }
}
