//! The command line of the crash exploration.

use std::process::ExitCode;
use std::time::Duration;

use btfs::defects::Defect;
use btfs_crash::path::Path;
use btfs_crash::runner::{self, Job, Subject};

const USAGE: &str = "\
usage: crash-explore [--fs | --concurrent] [--states N] [--seed S] [--time SECONDS] [--threads T] [--defect NAME]
       crash-explore [--fs] --replay SEED[:CUT.POLICY.SALT]... [--defect NAME]
       crash-explore --list-defects

Explores the states that power cuts leave of the storage engine, or of the whole filesystem. Exit status: 0 if all are
right, 1 if one is wrong, 2 for wrong usage, 3 if one hangs. To go on where an exploration has ended, begin with the
seed that it prints as the next one.
  --fs            the filesystem
  --states N      how many states (default 100000)
  --seed S        the first seed (default 1)
  --time SECONDS  ends earlier
  --threads T     default: one for each core
  --concurrent    first runs by several threads (failures cannot be replayed)
  --defect NAME   plants a defect; ends when it has been found (then exit status 1)
  --replay PATH   follows one path, and tells the story";

enum Command {
    Explore(Job),
    Replay(Subject, Path, Option<Defect>),
    ListDefects,
    Help,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut job = Job { seed: 1, states: 100_000, time: None, threads, ..Job::default() };
    job.progress = true;
    let mut path = None;
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{option} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text:?} is not a number"));
        match option.as_str() {
            "--states" => job.states = number(value()?)?,
            "--seed" => job.seed = number(value()?)?,
            "--time" => job.time = Some(Duration::from_secs(number(value()?)?)),
            "--threads" => job.threads = number(value()?)? as usize,
            "--concurrent" => job.subject = Subject::ConcurrentEngine,
            "--fs" => job.subject = Subject::Filesystem,
            "--defect" => job.defect = Some(defect(&value()?)?),
            "--replay" => path = Some(value()?.parse()?),
            "--list-defects" => return Ok(Command::ListDefects),
            "--help" | "-h" => return Ok(Command::Help),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    Ok(match path {
        Some(path) => Command::Replay(job.subject, path, job.defect),
        None => Command::Explore(job),
    })
}

fn defect(name: &str) -> Result<Defect, String> {
    let named = |d: &&Defect| format!("{d:?}").eq_ignore_ascii_case(name);
    Defect::ALL.iter().find(named).copied().ok_or_else(|| format!("there is no defect {name:?}"))
}

fn explore(job: &Job) -> ExitCode {
    println!("seed {}, {} threads", job.seed, job.threads);
    let outcome = runner::run(job);
    println!("{}", outcome.coverage.table(job.subject.required()));
    for violation in &outcome.violations {
        println!("VIOLATION {violation}");
    }
    println!(
        "{} states of {} seeds (the next one is {}) in {:.1} s, {:.0} states/s, {} violations",
        outcome.states,
        outcome.seeds,
        job.seed + outcome.seeds,
        outcome.elapsed.as_secs_f64(),
        outcome.rate(),
        outcome.violations.len()
    );
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn replay(subject: Subject, path: &Path, defect: Option<Defect>) -> ExitCode {
    match subject.replay(path, runner::defects(defect)) {
        Ok(()) => {
            println!("\nnothing is wrong here");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("\nVIOLATION {violation}");
            ExitCode::from(1)
        }
    }
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Command::Explore(job)) => explore(&job),
        Ok(Command::Replay(subject, path, defect)) => replay(subject, &path, defect),
        Ok(Command::ListDefects) => {
            Defect::ALL.iter().for_each(|d| println!("{d:?}"));
            ExitCode::SUCCESS
        }
        Ok(Command::Help) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
