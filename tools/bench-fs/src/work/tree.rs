//! Rows that work on a tree of source files.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Bench, Measurement};
use crate::systems::run;
use btfs_bench_common::random::Random;

const FILES_PER_DIR: f64 = 12.5;
const SIZE_MEDIAN: f64 = 4096.0;
const SIZE_DEVIATION: f64 = 1.4;
const SIZE_MAX: f64 = (2 << 20) as f64;
/// Of directories that lie in a directory.
const FANOUT: usize = 6;
const NAME: &str = "source";
const COPY: &str = "copy";

/// A tar file with a source tree that is the same in every run.
pub struct SourceTree {
    archive: PathBuf,
    pub files: u64,
    pub dirs: u64,
    pub bytes: u64,
}

impl SourceTree {
    pub fn create(dir: &Path, files: u64) -> Result<SourceTree> {
        let root = dir.join(NAME);
        let mut random = Random::new(1);
        let mut dirs = vec![root.clone()];
        fs::create_dir(&root)?;
        while dirs.len() < ((files as f64 / FILES_PER_DIR) as usize).max(3) {
            let path = dirs[(dirs.len() - 1) / FANOUT].join(format!("module_{}", dirs.len()));
            fs::create_dir(&path)?;
            dirs.push(path);
        }
        let mut bytes = 0;
        for n in 0..files {
            let size = random.log_normal(SIZE_MEDIAN, SIZE_DEVIATION).min(SIZE_MAX) as usize;
            let parent = &dirs[random.below(dirs.len() as u64) as usize];
            fs::write(parent.join(format!("file_{n}.rs")), text(&mut random, size))?;
            bytes += size as u64;
        }
        let archive = dir.join("source.tar");
        let dirs = dirs.len() as u64;
        run(Command::new("tar").arg("cf").arg(&archive).arg("-C").arg(dir).arg(NAME))?;
        fs::remove_dir_all(&root)?;
        Ok(SourceTree { archive, files, dirs, bytes })
    }

    fn entries(&self) -> u64 {
        self.files + self.dirs
    }
}

/// Lines of words, compressible like source text.
fn text(random: &mut Random, size: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "let ", "fn ", "self", "pub ", "(", ")", " {\n", "}\n", "return ", "if ", "0x", ";\n", "    ", " = ",
        "struct ", "u64",
    ];
    let mut text = Vec::with_capacity(size + 16);
    while text.len() < size {
        let n = random.draw();
        text.extend_from_slice(WORDS[n as usize % WORDS.len()].as_bytes());
        if n >> 60 < 5 {
            text.extend_from_slice(format!("{:x}", (n >> 8) as u16).as_bytes());
        }
    }
    text.truncate(size);
    text
}

/// Visits everything below a directory as `find` does: lists each directory, and calls `each` with what is in it.
fn walk(dir: &Path, each: &mut impl FnMut(&Path, bool) -> Result<()>) -> Result<()> {
    let mut dirs = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        let (path, is_dir) = (entry.path(), entry.file_type()?.is_dir());
        each(&path, is_dir)?;
        if is_dir {
            dirs.push(path);
        }
    }
    dirs.iter().try_for_each(|dir| walk(dir, each))
}

/// The total size of the files.
fn stat_all(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    walk(dir, &mut |path, is_dir| {
        let size = fs::symlink_metadata(path)?.size();
        bytes += if is_dir { 0 } else { size };
        Ok(())
    })?;
    Ok(bytes)
}

fn read_all(dir: &Path) -> Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let mut bytes = 0;
    walk(dir, &mut |path, is_dir| {
        if !is_dir {
            let mut file = File::open(path)?;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    n => bytes += n as u64,
                }
            }
        }
        Ok(())
    })?;
    Ok(bytes)
}

pub fn untar(bench: &mut Bench<'_>) -> Result<Measurement> {
    // The archive's own reading is not to be measured.
    drop(fs::read(&bench.source.archive)?);
    bench.measure(bench.source.files, |bench| {
        run(Command::new("tar").arg("xf").arg(&bench.source.archive).arg("-C").arg(bench.root())).map(drop)
    })
}

fn visit(bench: &mut Bench<'_>, visit: impl Fn(&Path) -> Result<u64>, files: u64) -> Result<Measurement> {
    let (dir, expected) = (bench.root().join(NAME), bench.source.bytes);
    bench.measure(files, |_| {
        let bytes = visit(&dir)?;
        ensure!(bytes == expected, "{bytes} bytes instead of {expected}");
        Ok(())
    })
}

pub fn stat_warm(bench: &mut Bench<'_>) -> Result<Measurement> {
    stat_all(&bench.root().join(NAME))?;
    let entries = bench.source.entries() - 1;
    visit(bench, stat_all, entries)
}

pub fn read_warm(bench: &mut Bench<'_>) -> Result<Measurement> {
    read_all(&bench.root().join(NAME))?;
    let files = bench.source.files;
    visit(bench, read_all, files)
}

pub fn stat_cold(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    let entries = bench.source.entries() - 1;
    visit(bench, stat_all, entries)
}

pub fn read_cold(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.system.make_cold()?;
    let files = bench.source.files;
    visit(bench, read_all, files)
}

pub fn copy(bench: &mut Bench<'_>) -> Result<Measurement> {
    // The caches were dropped for other systems' cold rows meanwhile, or were not, depending on whose turn it was.
    read_all(&bench.root().join(NAME))?;
    bench.measure(bench.source.files, |bench| {
        run(Command::new("cp").args(["-a", NAME, COPY]).current_dir(bench.root())).map(drop)
    })
}

pub fn remove(bench: &mut Bench<'_>) -> Result<Measurement> {
    bench.measure(bench.source.entries(), |bench| {
        run(Command::new("rm").args(["-rf", COPY]).current_dir(bench.root())).map(drop)
    })
}

fn git(bench: &Bench<'_>, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    for (name, value) in [("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null")] {
        command.env(name, value);
    }
    command.args(["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"]);
    run(command.args(arguments).current_dir(bench.root().join(NAME)))
}

pub fn git_add(bench: &mut Bench<'_>) -> Result<Measurement> {
    git(bench, &["init", "-q"])?;
    bench.measure(bench.source.files, |bench| {
        git(bench, &["add", "-A"])?;
        git(bench, &["commit", "-q", "-m", "all"]).map(drop)
    })
}

pub fn git_status(bench: &mut Bench<'_>) -> Result<Measurement> {
    git(bench, &["status", "--porcelain"])?;
    bench.measure(bench.source.files, |bench| {
        let changed = git(bench, &["status", "--porcelain"])?;
        ensure!(changed.is_empty(), "git sees changes: {}", changed.lines().next().unwrap_or_default());
        Ok(())
    })
}

/// Reads a directory with tar and throws the archive away.
pub fn tar_to_nothing(dir: &Path) -> Result<()> {
    // tar reads no contents if it can see that nobody wants them: it writes into a pipe.
    let mut tar = Command::new("tar");
    tar.args(["cf", "-", "-C"]).arg(dir).arg(".").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = tar.spawn().context("tar cannot be run")?;
    if let Some(mut output) = child.stdout.take() {
        std::io::copy(&mut output, &mut std::io::sink())?;
    }
    ensure!(child.wait()?.success(), "tar failed");
    Ok(())
}
