//! Runs single cases, and random ones.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use btfs::storage::Rng;
use btfs_fuzz::{Target, memory, run_caught, story};

#[global_allocator]
static HEAP: memory::Counting = memory::Counting;

const USAGE: &str = "\
usage: fuzz-case mount|fsck FILE...
       fuzz-case mount|fsck --random SEED --seconds N
Runs cases, and says what they do to which image and what became of it. Exit status: 0 if nothing is wrong, 1 if something is,
2 for wrong usage; a case that takes too long or too much memory ends the process.";

fn one(target: Target, bytes: &[u8], about: &str) -> bool {
    memory::case_begins();
    let result = run_caught(target, bytes);
    memory::case_ends();
    match result {
        Ok(verdict) => {
            println!("{about}: {verdict:?}\n{}", story(bytes));
            true
        }
        Err(e) => {
            println!("{about}: WRONG: {e}\n{}", story(bytes));
            false
        }
    }
}

fn random(target: Target, seed: u64, seconds: u64) -> bool {
    let (began, mut rng, mut n) = (Instant::now(), Rng::new(seed), 0);
    let mut right = true;
    while began.elapsed() < Duration::from_secs(seconds) {
        let bytes = btfs_fuzz::random_case(&mut rng);
        memory::case_begins();
        if run_caught(target, &bytes).is_err() {
            right &= one(target, &bytes, &format!("case {n} of seed {seed}, {bytes:02x?}"));
        }
        memory::case_ends();
        n += 1;
    }
    println!("{n} cases, {:.0} a second", n as f64 / began.elapsed().as_secs_f64());
    right
}

fn main() -> ExitCode {
    memory::watch();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let right = match words[..] {
        [target, "--random", seed, "--seconds", seconds] => {
            match (target.parse(), seed.parse(), seconds.parse()) {
                (Ok(target), Ok(seed), Ok(seconds)) => Some(random(target, seed, seconds)),
                _ => None,
            }
        }
        [target, ref files @ ..] if !files.is_empty() => target.parse().ok().map(|target| {
            files.iter().fold(true, |right, file| match std::fs::read(file) {
                Ok(bytes) => one(target, &bytes, file) && right,
                Err(e) => {
                    println!("{file}: {e}");
                    false
                }
            })
        }),
        _ => None,
    };
    match right {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::from(1),
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
