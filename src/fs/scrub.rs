//! Reading and verifying everything in a filesystem that is in use.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::error::{FsError, Result};
use super::format::*;
use super::{Fs, Kind};
use crate::storage::AlignedBuf;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Keys that are looked at under one latch, about.
const KEYS: usize = 64;

/// How long a scrub that keeps to its rate sleeps at the most before it looks whether it is to stop.
const NAP: Duration = Duration::from_millis(50);

/// How far a scrub is. Read it at any time.
#[derive(Default, Debug)]
pub struct Scrub {
    /// Which one it is on this mount, from 1 on; 0: there was none yet.
    pub run: u64,
    /// Whether one is under way.
    pub running: AtomicBool,
    /// It is to end.
    pub stop: AtomicBool,
    /// It has come to the end.
    pub finished: AtomicBool,
    /// Records of the tree that have been read.
    pub records: AtomicU64,
    /// Inodes whose contents have been verified.
    pub inodes: AtomicU64,
    /// Bytes of contents that have been verified.
    pub bytes: AtomicU64,
    /// Pieces of contents, and places of the tree, that could not be read or are damaged.
    pub damaged: AtomicU64,
}

impl Scrub {
    /// The least rate, in bytes of contents a second: with less a scrub hardly ends.
    pub const LEAST_RATE: u64 = 64 << 10;

    /// `none`, `running`, `finished`, `stopped` before the end, or `failed`: the tree could not be read on.
    pub fn state(&self) -> &'static str {
        let is = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        match () {
            () if is(&self.running) => "running",
            () if self.run == 0 => "none",
            () if is(&self.finished) => "finished",
            () if is(&self.stop) => "stopped",
            () => "failed",
        }
    }

    /// A JSON object with all of it.
    pub fn json(&self) -> String {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        format!(
            "{{\"run\":{},\"state\":\"{}\",\"running\":{},\"records\":{},\"inodes\":{},\"bytes\":{},\"damaged\":{}}}",
            self.run,
            self.state(),
            self.running.load(Ordering::SeqCst),
            of(&self.records),
            of(&self.inodes),
            of(&self.bytes),
            of(&self.damaged)
        )
    }
}

impl Fs {
    /// Reads all records of the tree and the contents of all files, and verifies their checksums. Others go on meanwhile. Damage is
    /// logged with path and position, and counted; only what keeps the tree itself from being read ends the scrub.
    /// `rate`: bytes of contents a second, at the most; not less than [`Scrub::LEAST_RATE`].
    pub fn scrub(&self, rate: u64, progress: &Scrub) {
        let mut from = Vec::new();
        let mut pace = Pace { started: Instant::now(), rate: rate.max(Scrub::LEAST_RATE), bytes: 0 };
        while !progress.stop.load(Ordering::Relaxed) {
            match self.next_files(&from, progress) {
                Ok((files, Some(next))) => {
                    files.into_iter().for_each(|ino| self.scrub_file(ino, progress, &mut pace));
                    from = next;
                }
                Ok((files, None)) => {
                    files.into_iter().for_each(|ino| self.scrub_file(ino, progress, &mut pace));
                    progress.finished.store(!progress.stop.load(Ordering::SeqCst), Ordering::SeqCst);
                    return;
                }
                Err(e) => {
                    progress.damaged.fetch_add(1, Ordering::Relaxed);
                    log::error!("scrub: the tree cannot be read on from here: {e}");
                    return;
                }
            }
        }
    }

    /// The files among the next records, and the key behind these.
    fn next_files(&self, from: &[u8], progress: &Scrub) -> Result<(Vec<Ino>, Option<Vec<u8>>)> {
        let (mut files, mut seen) = (Vec::new(), 0);
        let next = self.tree.scan(from, &[0xff], |key, record| {
            if seen >= KEYS {
                return ControlFlow::Break(key.to_vec());
            }
            seen += 1;
            if let Some(ino) = inode_of_key(key)
                && Inode::decode(ino, record).is_ok_and(|inode| inode.kind == Kind::File && inode.size > 0)
            {
                files.push(ino);
            }
            ControlFlow::Continue(())
        })?;
        progress.records.fetch_add(seen as u64, Ordering::Relaxed);
        Ok((files, next))
    }

    fn scrub_file(&self, ino: Ino, progress: &Scrub, pace: &mut Pace) {
        let mut buffer = AlignedBuf::new();
        let mut at = 0;
        while !progress.stop.load(Ordering::Relaxed) {
            // Holes cost nothing.
            match self.seek(ino, at, true) {
                Ok(Some(data)) => match self.lost_until(ino, data) {
                    Ok(Some(end)) => {
                        progress.damaged.fetch_add(1, Ordering::Relaxed);
                        let path = self.path_of(ino);
                        log::error!("scrub: {path} (inode {}): bytes {data} to {end} were lost", ino.0);
                        at = end;
                        continue;
                    }
                    _ => at = data / PIECE as u64 * PIECE as u64,
                },
                Ok(None) | Err(FsError::NotFound) => break,
                Err(e) => {
                    progress.damaged.fetch_add(1, Ordering::Relaxed);
                    log::error!("scrub: {} (inode {}): {e}", self.path_of(ino), ino.0);
                    break;
                }
            }
            buffer.reset(PIECE);
            match self.read_into(ino, at, &mut buffer) {
                Ok(n) => {
                    progress.bytes.fetch_add(n as u64, Ordering::Relaxed);
                    pace.keep(n, &progress.stop);
                }
                Err(FsError::NotFound) => break,
                Err(e) => {
                    progress.damaged.fetch_add(1, Ordering::Relaxed);
                    log::error!("scrub: {} (inode {}) behind byte {at}: {e}", self.path_of(ino), ino.0);
                }
            }
            at += PIECE as u64;
        }
        progress.inodes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Keeps to a rate.
struct Pace {
    started: Instant,
    rate: u64,
    bytes: u64,
}

impl Pace {
    /// Counts what has been read, and waits until so much may have been; not if it is to stop.
    fn keep(&mut self, bytes: usize, stop: &AtomicBool) {
        self.bytes += bytes as u64;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.rate as f64);
        while !stop.load(Ordering::Relaxed) {
            let left = due.saturating_sub(self.started.elapsed());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_a_stop_is_not_kept_waiting() {
        let started = Instant::now();
        let mut pace = Pace { started, rate: 1 << 20, bytes: 0 };
        let stop = AtomicBool::new(false);
        for _ in 0..4 {
            pace.keep(64 << 10, &stop);
        }
        assert!(started.elapsed() >= Duration::from_millis(250));
        stop.store(true, Ordering::Relaxed);
        pace.keep(1 << 40, &stop);
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
