//! How fast an image is checked: makes one of many files, and prints inodes and bytes a second.
//!
//! `cargo run --release --example fsck_speed -- FILE [FILES]`; the file is made anew, with 200,000 files of 5 KB on average by
//! default, and one of 1 GiB.

use std::sync::Arc;
use std::time::Instant;

use btfs::fs::{Caller, Fs, New, ROOT};
use btfs::fsck::{Options, Repair, check};
use btfs::storage::{FileStorage, OpenMode, Storage};
use btfs::tree::FormatOptions;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which file?")?;
    let files: u64 = arguments.next().map_or(Ok(200_000), |n| n.parse())?;
    std::fs::write(&path, b"")?;
    let options = FormatOptions { size: 16 << 30, ..FormatOptions::default() };
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(path.as_str(), OpenMode::ReadWrite)?);
    make(&storage, &options, files)?;
    for (name, options) in [
        ("check", Options::default()),
        ("check and scrub", Options { scrub: true, ..Options::default() }),
        ("rebuild", Options { repair: Repair::All, force: true, ..Options::default() }),
    ] {
        if name == "rebuild" {
            let root = btfs::pool::read_superblock(&*storage)?.root;
            storage.write_at(root.offset() + 5000, b"rot")?;
        }
        let started = Instant::now();
        let report = check(storage.clone(), &options)?;
        let seconds = started.elapsed().as_secs_f64();
        print!("{name}: {report}");
        println!(
            "  {:.2} s, {:.0} inodes/s, {:.2} GiB of tree/s, {:.2} GiB of contents/s",
            seconds,
            report.inodes as f64 / seconds,
            report.tree_bytes as f64 / seconds / (1u64 << 30) as f64,
            report.scrubbed_bytes as f64 / seconds / (1u64 << 30) as f64,
        );
        let status = std::fs::read_to_string("/proc/self/status")?;
        println!("  {}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default());
    }
    Ok(())
}

fn make(storage: &Arc<dyn Storage>, options: &FormatOptions, files: u64) -> Outcome<()> {
    let me = Caller::default();
    Fs::format(storage.clone(), options, &me)?;
    let fs = Fs::open(storage.clone(), &btfs::tree::Options::default())?;
    let mut dir = ROOT;
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    for i in 0..files {
        if i % 1000 == 0 {
            dir = fs.create(ROOT, format!("dir{i}").as_bytes(), New::Directory, 0o755, 0, &me)?.ino;
            fs.release(dir, 1)?;
        }
        let ino = fs.create(dir, format!("some-file-{i}").as_bytes(), New::File, 0o644, 0, &me)?.ino;
        fs.write(ino, 0, &data[..(i * 7919 % 10_000) as usize], &me)?;
        fs.release(ino, 1)?;
    }
    let big = fs.create(ROOT, b"big", New::File, 0o644, 0, &me)?.ino;
    for i in 0..1024u64 {
        fs.write(big, i << 20, &data, &me)?;
    }
    fs.release(big, 1)?;
    fs.close()?;
    Ok(())
}
