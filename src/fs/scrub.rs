//! Reading and verifying everything in a filesystem that is in use.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::error::{FsError, Result};
use super::extents::BLOCK;
use super::format::*;
use super::{Fs, Kind};
use crate::escape::escaped;
use crate::storage::AlignedBuf;

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;
/// What is wrong with contents that a repair has given up.
const LOST: &str = "were lost";
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
    /// Ranges of contents, and places of the tree, that could not be read or are damaged.
    pub damaged: AtomicU64,
    /// The first [`Scrub::LISTED_MAX`] of them.
    pub findings: Mutex<Vec<Finding>>,
}

impl Scrub {
    /// The least rate, in bytes of contents a second: with less a scrub hardly ends.
    pub const LEAST_RATE: u64 = 64 << 10;
    /// Findings that are listed; the others are logged and counted.
    pub const LISTED_MAX: usize = 100;

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
    pub fn to_json(&self) -> Value {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        json!({
            "run": self.run,
            "state": self.state(),
            "running": self.running.load(Ordering::SeqCst),
            "records": of(&self.records),
            "inodes": of(&self.inodes),
            "bytes": of(&self.bytes),
            "damaged": of(&self.damaged),
        })
    }
}

/// A place that is damaged, or cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The file; `None`: it is the tree.
    pub ino: Option<Ino>,
    /// A path of the file, as far as it is known.
    pub path: String,
    /// The first byte of its contents and the one behind the last; `None`: not known.
    pub range: Option<(u64, u64)>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ino) = self.ino {
            write!(f, "{} (inode {}): ", self.path, ino.0)?;
        }
        if let Some((from, to)) = self.range {
            write!(f, "bytes {from} to {to}: ")?;
        }
        f.write_str(&self.reason)
    }
}

/// A scrub under way.
struct Walk<'p> {
    progress: &'p Scrub,
    pace: Pace,
    /// Findings whose names are to be looked for, and which are logged then.
    nameless: Vec<usize>,
    /// Not before this: a search reads all names.
    search_at: Instant,
}

impl Walk<'_> {
    fn is_stopped(&self) -> bool {
        self.progress.stop.load(Ordering::Relaxed)
    }

    fn verified(&mut self, bytes: usize) {
        self.progress.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.pace.keep(bytes, &self.progress.stop);
    }
}

/// An inode, and what it has beside its record.
struct Sought {
    ino: Ino,
    contents: bool,
    xattrs: bool,
}

/// Blocks of a file side by side, none of which can be read.
struct Bad {
    from: u64,
    to: u64,
    reason: String,
}

impl Fs {
    /// Reads all records of the tree and the contents of all files, and verifies their checksums. Others go on meanwhile. Damage is
    /// logged with path and position, and counted; only what keeps the tree itself from being read ends the scrub.
    /// `rate`: bytes of contents a second, at the most; not less than [`Scrub::LEAST_RATE`].
    pub fn scrub(&self, rate: u64, progress: &Scrub) {
        let started = Instant::now();
        let pace = Pace { started, rate: rate.max(Scrub::LEAST_RATE), bytes: 0 };
        let mut walk = Walk { progress, pace, nameless: Vec::new(), search_at: started };
        let mut from = Vec::new();
        while !walk.is_stopped() {
            match self.next_inodes(&from, progress) {
                Ok((inodes, next)) => {
                    for Sought { ino, contents, xattrs } in inodes {
                        if xattrs {
                            self.scrub_xattrs(ino, &mut walk);
                        }
                        if contents {
                            self.scrub_file(ino, &mut walk);
                        }
                    }
                    match next {
                        Some(next) => from = next,
                        None => {
                            self.name_findings(&mut walk);
                            progress.finished.store(!walk.is_stopped(), Ordering::SeqCst);
                            return;
                        }
                    }
                }
                Err(e) => {
                    self.note_damage(&e);
                    self.found(&mut walk, None, None, format!("the tree cannot be read on from here: {e}"));
                    break;
                }
            }
        }
        self.name_findings(&mut walk);
    }

    /// The inodes among the next records that have anything beside their record, and the key behind these.
    fn next_inodes(&self, from: &[u8], progress: &Scrub) -> Result<(Vec<Sought>, Option<Vec<u8>>)> {
        let (mut inodes, mut seen) = (Vec::new(), 0);
        let next = self.tree.scan(from, &[0xff], |key, record| {
            if seen >= KEYS {
                return ControlFlow::Break(key.to_vec());
            }
            seen += 1;
            if let Some(ino) = inode_of_key(key)
                && let Ok(inode) = Inode::decode(ino, record)
            {
                let contents = inode.kind == Kind::File && inode.size > 0;
                inodes.push(Sought { ino, contents, xattrs: inode.xattrs > 0 });
            }
            ControlFlow::Continue(())
        })?;
        progress.records.fetch_add(seen as u64, Ordering::Relaxed);
        Ok((inodes, next))
    }

    /// Large values lie in blocks of their own.
    fn scrub_xattrs(&self, ino: Ino, walk: &mut Walk<'_>) {
        let is_gone = |e: &FsError| matches!(e, FsError::NotFound | FsError::NoAttribute);
        let names = match self.list_xattrs(ino) {
            Ok(names) => names,
            Err(e) if is_gone(&e) => return,
            Err(e) => {
                self.note_damage(&e);
                return self.found(walk, Some(ino), None, format!("its extended attributes: {e}"));
            }
        };
        for name in names {
            match self.get_xattr(ino, &name) {
                Ok(value) => walk.verified(value.len()),
                Err(e) if is_gone(&e) => {}
                Err(e) => {
                    self.note_damage(&e);
                    let name = escaped(&name);
                    self.found(walk, Some(ino), None, format!("extended attribute {name:?}: {e}"));
                }
            }
        }
    }

    fn scrub_file(&self, ino: Ino, walk: &mut Walk<'_>) {
        let mut buffer = AlignedBuf::new();
        let (mut at, mut bad) = (0, None);
        while !walk.is_stopped() {
            if Instant::now() >= walk.search_at {
                self.name_findings(walk);
            }
            // Holes cost nothing.
            let data = match self.seek(ino, at, true) {
                Ok(Some(data)) => data,
                Ok(None) | Err(FsError::NotFound) => break,
                Err(e) => {
                    self.note_damage(&e);
                    self.found(walk, Some(ino), None, format!("from byte {at} on: {e}"));
                    break;
                }
            };
            if let Ok(Some(end)) = self.lost_until(ino, data) {
                self.found(walk, Some(ino), Some((data, end)), LOST.into());
                at = end;
                continue;
            }
            at = data / BLOCK * BLOCK;
            let end = (at / PIECE + 1) * PIECE;
            buffer.reset((end - at) as usize);
            match self.read_into(ino, at, &mut buffer) {
                Ok(n) => {
                    self.found_bad(walk, ino, &mut bad);
                    walk.verified(n);
                    at = end;
                }
                Err(FsError::NotFound) => break,
                Err(e) => {
                    self.note_damage(&e);
                    at = self.scrub_blocks(ino, (at, end), &e, &mut bad, walk);
                }
            }
        }
        self.found_bad(walk, ino, &mut bad);
        walk.progress.inodes.fetch_add(u64::from(!walk.is_stopped()), Ordering::Relaxed);
    }

    /// Reads each block of a piece that cannot be read in one, to know which are bad, and to verify the others. Returns where to go
    /// on. `bad`: what is bad up to here; it may go on behind the piece.
    fn scrub_blocks(
        &self,
        ino: Ino,
        (from, end): (u64, u64),
        error: &FsError,
        bad: &mut Option<Bad>,
        walk: &mut Walk<'_>,
    ) -> u64 {
        let mut buffer = AlignedBuf::new();
        let (mut at, mut any) = (from, false);
        while at < end && !walk.is_stopped() {
            buffer.reset(BLOCK as usize);
            match self.read_into(ino, at, &mut buffer) {
                Ok(0) | Err(FsError::NotFound) => break,
                Ok(n) => {
                    self.found_bad(walk, ino, bad);
                    walk.verified(n);
                    at += BLOCK;
                }
                Err(e) => {
                    any = true;
                    if let Ok(Some(end)) = self.lost_until(ino, at) {
                        self.found_bad(walk, ino, bad);
                        self.found(walk, Some(ino), Some((at, end)), LOST.into());
                        at = end.next_multiple_of(BLOCK);
                        continue;
                    }
                    if bad.as_ref().is_some_and(|bad| bad.to != at) {
                        self.found_bad(walk, ino, bad);
                    }
                    let reason = || e.to_string();
                    bad.get_or_insert_with(|| Bad { from: at, to: at, reason: reason() }).to = at + BLOCK;
                    at += BLOCK;
                }
            }
        }
        // Long reads bypass the host's cache, short ones may be served from there: what is on the disk counts.
        if !any && !walk.is_stopped() {
            self.found(walk, Some(ino), Some((from, end)), error.to_string());
        }
        at.max(end)
    }

    /// Notes the bad blocks of a file, behind which one is whole.
    fn found_bad(&self, walk: &mut Walk<'_>, ino: Ino, bad: &mut Option<Bad>) {
        if let Some(Bad { from, to, reason }) = bad.take() {
            let size = self.attributes(ino).map_or(to, |a| a.size);
            self.found(walk, Some(ino), Some((from, to.min(size.max(from)))), reason);
        }
    }

    /// Counts a finding, lists it unless there are many, and logs it, at once if the path is known or will not be looked for.
    fn found(&self, walk: &mut Walk<'_>, ino: Option<Ino>, range: Option<(u64, u64)>, reason: String) {
        walk.progress.damaged.fetch_add(1, Ordering::Relaxed);
        // To find a path may mean to read a large directory; places of one file follow each other.
        let last = walk.progress.findings.lock().last().filter(|f| f.ino == ino).map(|f| f.path.clone());
        let path = last
            .filter(|path| !path.starts_with('…'))
            .unwrap_or_else(|| ino.map_or_else(String::new, |ino| self.path_of(ino)));
        let is_named = !path.starts_with('…');
        let finding = Finding { ino, path, range, reason };
        let mut listed = walk.progress.findings.lock();
        let is_listed = listed.len() < Scrub::LISTED_MAX;
        if is_named || !is_listed {
            log::error!("scrub: {finding}");
        } else {
            walk.nameless.push(listed.len());
        }
        if is_listed {
            listed.push(finding);
        }
    }

    /// Looks for the paths of findings that have none, and logs them. As this reads all names, it takes a tenth of the time at most.
    fn name_findings(&self, walk: &mut Walk<'_>) {
        if walk.nameless.is_empty() {
            return;
        }
        let begun = Instant::now();
        let nameless = std::mem::take(&mut walk.nameless);
        let inos: Vec<Ino> = {
            let listed = walk.progress.findings.lock();
            nameless.iter().filter_map(|i| listed.get(*i)?.ino).collect()
        };
        let paths = self.search_paths(&inos, &walk.progress.stop);
        let mut listed = walk.progress.findings.lock();
        for i in nameless {
            let Some(finding) = listed.get_mut(i) else { continue };
            if let Some(path) = finding.ino.and_then(|ino| paths.get(&ino)) {
                finding.path.clone_from(path);
            }
            log::error!("scrub: {finding}");
        }
        walk.search_at = Instant::now() + begun.elapsed() * 10;
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
