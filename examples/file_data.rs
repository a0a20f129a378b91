//! How fast file contents go in and out, without FUSE: `cargo run --release --example file_data -- IMAGE [MIB]`.
//!
//! Prints a table: throughput, processor time, and what was logged for each byte written. `IMAGE` is made anew and left behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use btfs::fs::{Caller, Fs, Ino, New, ROOT};
use btfs::storage::{AlignedBuf, FileStorage, Rng};
use btfs::tree::{FormatOptions, Options};

type Failure = Box<dyn std::error::Error>;

/// A row of the table: what was done since `begin`.
fn row(
    fs: &Fs,
    name: &str,
    bytes: u64,
    requests: u64,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (log, cpu, begin) = (fs.tree().stats().log_end, processor_time(), Instant::now());
    work()?;
    let (elapsed, cpu) = (begin.elapsed(), processor_time() - cpu);
    let logged = fs.tree().stats().log_end - log;
    println!(
        "{name:38} {:7.0} MiB/s {:8.1} us {:8.1} us {:9.3}",
        bytes as f64 / elapsed.as_secs_f64() / (1 << 20) as f64,
        elapsed.as_secs_f64() * 1e6 / requests as f64,
        cpu.as_secs_f64() * 1e6 / requests as f64,
        logged as f64 / bytes as f64,
    );
    Ok(())
}

/// User and system time of this process.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|f| f.parse().ok()).collect();
    // Without the name in brackets and the state, fields 14 and 15 stand at 11 and 12; in hundredths of a second.
    Duration::from_millis(10 * (fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0)))
}

fn create(fs: &Fs, name: &str, caller: &Caller) -> Result<Ino, Failure> {
    fs.create(ROOT, name.as_bytes(), New::File, 0o644, caller)?;
    Ok(fs.lookup(ROOT, name.as_bytes())?)
}

fn write_all(fs: &Fs, ino: Ino, total: u64, piece: &[u8], caller: &Caller) -> Result<(), Failure> {
    for at in (0..total).step_by(piece.len()) {
        fs.write(ino, at, piece, caller)?;
    }
    Ok(fs.sync()?)
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: file_data IMAGE [MIB]")?;
    let total = arguments.next().map_or(Ok(1024), |m| m.parse::<u64>())? << 20;
    let storage = Arc::new(FileStorage::create(&path, true)?);
    let caller = Caller::default();
    Fs::format(storage.clone(), &FormatOptions { size: 64 << 30, ..FormatOptions::default() }, &caller)?;
    let fs = Fs::open(storage, &Options::default())?;
    // Not at the beginning of a page, like what comes from the kernel.
    let source: Vec<u8> =
        (0..(1 << 20) + 40u32).map(|i| (i * 2_654_435_761) as u8 ^ (i >> 12) as u8).collect();
    let piece = |len: usize| &source[40..40 + len];
    let begin = Instant::now();
    for _ in 0..256 {
        std::hint::black_box(crc32fast::hash(piece(1 << 20)));
    }
    println!("CRC-32: {:.1} GiB/s", 0.25 / begin.elapsed().as_secs_f64());
    println!("{:38} {:>13} {:>11} {:>11} {:>9}", "", "", "each", "processor", "log/byte");
    let big = create(&fs, "big", &caller)?;
    row(&fs, "write 1 MiB, new", total, total >> 20, || write_all(&fs, big, total, piece(1 << 20), &caller))?;
    row(&fs, "write 1 MiB, over it", total, total >> 20, || {
        write_all(&fs, big, total, piece(1 << 20), &caller)
    })?;
    let medium = create(&fs, "medium", &caller)?;
    row(&fs, "write 128 KiB, new", total, total >> 17, || {
        write_all(&fs, medium, total, piece(1 << 17), &caller)
    })?;
    read_rows(&fs, big, total)?;
    let small = create(&fs, "small", &caller)?;
    row(&fs, "append 4 KiB", total, total >> 12, || write_all(&fs, small, total, piece(1 << 12), &caller))?;
    let (one, two) = (create(&fs, "one", &caller)?, create(&fs, "two", &caller)?);
    row(&fs, "append 4 KiB, two files in turn", total / 2, total >> 13, || {
        for at in (0..total / 4).step_by(4096) {
            fs.write(one, at, piece(4096), &caller)?;
            fs.write(two, at, piece(4096), &caller)?;
        }
        Ok(fs.sync()?)
    })?;
    for (name, ino) in [("appended file", small), ("one of two", one)] {
        row(
            &fs,
            &format!("read 128 KiB, {name}"),
            fs.attributes(ino)?.size,
            fs.attributes(ino)?.size >> 17,
            || read_all(&fs, ino, fs.attributes(ino)?.size),
        )?;
    }
    let mut rng = Rng::new(1);
    let count = (total >> 12).min(100_000);
    row(&fs, "random 4 KiB writes", count << 12, count, || {
        for _ in 0..count {
            fs.write(big, rng.below(total >> 12) << 12, piece(4096), &caller)?;
        }
        Ok(fs.sync()?)
    })?;
    let lines = (total >> 12).min(1 << 16);
    let text = create(&fs, "text", &caller)?;
    row(&fs, "append 64 bytes", lines << 6, lines, || {
        for line in 0..lines {
            fs.write(text, line << 6, piece(64), &caller)?;
        }
        Ok(fs.sync()?)
    })?;
    let copy = create(&fs, "copy", &caller)?;
    row(&fs, "copy_range, all of it", total, 1, || {
        fs.copy_range(medium, 0, copy, 0, total, &caller)?;
        Ok(fs.sync()?)
    })?;
    row(&fs, "delete", total, 1, || {
        fs.unlink(ROOT, b"medium", &caller)?;
        Ok(fs.sync()?)
    })?;
    fs.close()?;
    Ok(())
}

fn read_all(fs: &Fs, ino: Ino, total: u64) -> Result<(), Failure> {
    let mut buffer = AlignedBuf::zeroed(1 << 17);
    for at in (0..total).step_by(1 << 17) {
        fs.read_into(ino, at, &mut buffer)?;
    }
    Ok(())
}

fn read_rows(fs: &Fs, ino: Ino, total: u64) -> Result<(), Failure> {
    row(fs, "read 128 KiB", total, total >> 17, || read_all(fs, ino, total))?;
    let mut rng = Rng::new(2);
    let count = (total >> 12).min(50_000);
    let mut buffer = AlignedBuf::zeroed(4096);
    row(fs, "random 4 KiB reads", count << 12, count, || {
        for _ in 0..count {
            fs.read_into(ino, rng.below(total >> 12) << 12, &mut buffer)?;
        }
        Ok(())
    })
}
