//! Rows in which several processes create files at the same time.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::sys::{Dir, Name};
use super::{Bench, Measurement};

const PROCESSES: u64 = 4;

/// The process that creates: directory, prefix of the names and number of files are the arguments. It begins when it is told to.
pub fn run_creator(arguments: &[String]) -> Result<()> {
    let [dir, prefix, files] = arguments else { anyhow::bail!("three arguments are needed") };
    let (dir, files) = (Dir::open(Path::new(dir))?, files.parse()?);
    println!("ready");
    std::io::stdin().read_exact(&mut [0])?;
    Ok((0..files).try_for_each(|n| dir.create(&Name::new(prefix, n)))?)
}

fn start(dir: &Path, process: u64, files: u64) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(crate::CREATOR_ARGUMENT).arg(dir).arg(format!("p{process}-")).arg(files.to_string());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("no output")?).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "a creating process failed");
    Ok(child)
}

fn create(bench: &mut Bench<'_>, dir_of: impl Fn(u64) -> String) -> Result<Measurement> {
    let files = bench.plan.parallel_files;
    let mut children = Vec::new();
    for process in 0..PROCESSES {
        let dir = bench.root().join(dir_of(process));
        fs::create_dir_all(&dir)?;
        children.push(start(&dir, process, files)?);
    }
    bench.measure(files * PROCESSES, |_| {
        for child in &mut children {
            child.stdin.as_mut().context("no input")?.write_all(b"\n")?;
        }
        for child in &mut children {
            ensure!(child.wait()?.success(), "a creating process failed");
        }
        Ok(())
    })
}

pub fn own(bench: &mut Bench<'_>) -> Result<Measurement> {
    create(bench, |process| format!("own-{process}"))
}

pub fn shared(bench: &mut Bench<'_>) -> Result<Measurement> {
    create(bench, |_| "shared".to_owned())
}
