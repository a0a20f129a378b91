//! Small overwrites in a file: out of place, as btfs does them, beside logged and homed in place, and what each costs later readers.
//!
//! ```text
//! cargo run --release -p btfs-bench --example overwrites -- DIRECTORY [ROUNDS, 5]
//! ```
//!
//! *Out of place* is the filesystem's library with everything that belongs to it. *In place* is as little as such a filesystem could do: a
//! log record of 4 KiB and 400 bytes for each overwrite, kept in memory until a checkpoint has written it to its place, in the order of
//! places, neighbours together; no tree, no allocation, no checksums. Both use the same calls of the same storage, a log of the same size,
//! and take turns. Prints medians: microseconds for each overwrite, and MiB/s of a sequential read in pieces of 1 MiB from a cold cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use btfs::fs::{Caller, Fs, Ino, New, ROOT, Time};
use btfs::storage::{AlignedBuf, FileStorage, Rng, Storage};
use btfs::tree::{FormatOptions, Options};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
/// The file, in bytes.
const FILE: usize = 100 * MIB;
/// Overwrites that nobody syncs until the end: as many as the file has blocks.
const STREAMED: u64 = (FILE / BLOCK) as u64;
/// Overwrites of which each is synced.
const SYNCED: u64 = 1000;
const LOG: u64 = 16 << 20;
/// What a record needs beside its contents: that of btfs for such an overwrite.
const RECORD: usize = 400;
const ME: Caller = Caller::new(1, 1, Time { seconds: 1, nanos: 1 });

/// A file of 100 MiB whose blocks are overwritten.
trait Target {
    fn overwrite(&mut self, block: u64, bytes: &[u8]) -> Result<()>;
    /// What was written is durable.
    fn sync(&mut self) -> Result<()>;
    /// Everything is where it will stay.
    fn settle(&mut self) -> Result<()>;
    fn read(&mut self, offset: usize, out: &mut [u8]) -> Result<()>;
}

struct OutOfPlace(Fs, Ino);

impl OutOfPlace {
    fn new(path: &Path) -> Result<Self> {
        let storage = Arc::new(FileStorage::create(path, true)?);
        Fs::format(
            storage.clone(),
            &FormatOptions { size: 1 << 30, log_size: Some(LOG), ..Default::default() },
            &ME,
        )?;
        let fs = Fs::open(storage, &Options::default())?;
        let ino = fs.create(ROOT, b"file", New::File, 0o644, 0, &ME)?.ino;
        let bytes = noise(MIB);
        for at in (0..FILE).step_by(MIB) {
            fs.write(ino, at as u64, &bytes, &ME)?;
        }
        fs.tree().checkpoint()?;
        Ok(OutOfPlace(fs, ino))
    }
}

impl Target for OutOfPlace {
    fn overwrite(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write(self.1, block * BLOCK as u64, bytes, &ME).map(drop)?)
    }
    fn sync(&mut self) -> Result<()> {
        Ok(self.0.sync()?)
    }
    fn settle(&mut self) -> Result<()> {
        Ok(self.0.tree().checkpoint()?)
    }
    fn read(&mut self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.0.read_into(self.1, offset as u64, out)?;
        Ok(())
    }
}

/// The log lies in front of the file.
struct InPlace {
    storage: FileStorage,
    buffer: Vec<u8>,
    /// Bytes that have been logged since the last checkpoint.
    logged: u64,
    /// What is not home yet.
    pending: BTreeMap<u64, Vec<u8>>,
}

impl InPlace {
    fn new(path: &Path) -> Result<Self> {
        let storage = FileStorage::create(path, true)?;
        storage.set_len(LOG + FILE as u64)?;
        let mut bytes = AlignedBuf::new();
        bytes.extend_from_slice(&noise(MIB));
        for at in (0..LOG + FILE as u64).step_by(MIB) {
            storage.write_at(at, &bytes)?;
        }
        storage.sync()?;
        Ok(InPlace { storage, buffer: Vec::new(), logged: 0, pending: BTreeMap::new() })
    }

    fn write_log(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            let len = self.buffer.len();
            // Like the log of btfs: a page of the page cache that is written whole need not be read.
            self.buffer
                .resize((self.logged as usize + len).next_multiple_of(BLOCK) - self.logged as usize, 0);
            self.storage.write_durable_at(self.logged, &self.buffer)?;
            self.logged += len as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}

impl Target for InPlace {
    fn overwrite(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        if self.logged + (self.buffer.len() + BLOCK + RECORD) as u64 > LOG / 4 * 3 {
            self.settle()?;
        }
        self.buffer.extend_from_slice(bytes);
        self.buffer.extend_from_slice(&[1; RECORD]);
        self.pending.insert(block, bytes.to_vec());
        if self.buffer.len() >= MIB {
            self.write_log()?;
        }
        Ok(())
    }
    fn sync(&mut self) -> Result<()> {
        self.write_log()
    }
    fn settle(&mut self) -> Result<()> {
        self.write_log()?;
        let pending: Vec<_> = std::mem::take(&mut self.pending).into_iter().collect();
        for row in pending.chunk_by(|a, b| a.0 + 1 == b.0) {
            let bytes: Vec<&[u8]> = row.iter().map(|(_, bytes)| bytes.as_slice()).collect();
            self.storage.write_vectored_at(LOG + row[0].0 * BLOCK as u64, &bytes)?;
        }
        self.storage.sync()?;
        self.logged = 0;
        Ok(())
    }
    fn read(&mut self, offset: usize, out: &mut [u8]) -> Result<()> {
        Ok(self.storage.read_at(LOG + offset as u64, out)?)
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::new(1).fill(&mut bytes);
    bytes
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Microseconds for each overwrite in a stream, and the median of those that are synced; MiB/s of reading before and after.
fn measure(target: &mut dyn Target, path: &Path, round: u64) -> Result<[f64; 4]> {
    let (bytes, mut rng) = (noise(BLOCK), Rng::new(round));
    let mut buffer = AlignedBuf::zeroed(MIB);
    let mut read = |target: &mut dyn Target| -> Result<f64> {
        let file = File::open(path)?;
        file.sync_all()?;
        // SAFETY: the descriptor is open.
        unsafe {
            libc::posix_fadvise(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, libc::POSIX_FADV_DONTNEED)
        };
        let begun = Instant::now();
        for at in (0..FILE).step_by(MIB) {
            target.read(at, &mut buffer)?;
        }
        Ok((FILE / MIB) as f64 / begun.elapsed().as_secs_f64())
    };
    let before = read(target)?;
    let begun = Instant::now();
    for _ in 0..STREAMED {
        target.overwrite(rng.below(STREAMED), &bytes)?;
    }
    target.sync()?;
    target.settle()?;
    let streamed = begun.elapsed().as_secs_f64() * 1e6 / STREAMED as f64;
    let mut synced = Vec::new();
    for _ in 0..SYNCED {
        let begun = Instant::now();
        target.overwrite(rng.below(STREAMED), &bytes)?;
        target.sync()?;
        synced.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let synced = median(&mut synced);
    target.settle()?;
    Ok([streamed, synced, before, read(target)?])
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().context("which directory?")?;
    let rounds: u64 = arguments.next().map_or(Ok(5), |n| n.parse())?;
    let path = Path::new(&directory).join("overwrites.tmp");
    let mut results: [Vec<[f64; 4]>; 2] = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for (which, results) in results.iter_mut().enumerate() {
            let _ = std::fs::remove_file(&path);
            let mut target: Box<dyn Target> = match which {
                0 => Box::new(OutOfPlace::new(&path)?),
                _ => Box::new(InPlace::new(&path)?),
            };
            results.push(measure(&mut *target, &path, round)?);
        }
    }
    std::fs::remove_file(&path)?;
    println!("                us streamed  us synced  MiB/s read before  after");
    for (name, rounds) in ["out of place", "in place    "].into_iter().zip(results) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| median(&mut rounds.iter().map(|r| r[i]).collect::<Vec<_>>()));
        println!("{name}    {a:>11.1}  {b:>9.1}  {c:>17.0}  {d:>5.0}");
    }
    Ok(())
}
