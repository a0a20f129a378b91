//! Fuzzing of whole images whose checksums are right.
//!
//! A *case* is a row of bytes. The first says which of a few small images is meant ([`base`]), the second how it is looked at, and the rest
//! is a program of changes ([`mutate`], [`forge`]): bytes and fields of superblocks, pages, log records and doublewrite headers, records
//! under any key, new log records. All checksums are set right then, so that the changes get past them. Any bytes are a case.
//!
//! There are two targets:
//!
//! - [`Target::Mount`] opens the image, walks over everything in it, works on it, and opens it again. Whatever the image holds, calls may
//!   fail; none may panic, hang, or take much memory, and what was written and synced is not read back as anything else.
//! - [`Target::Fsck`] repairs the image. Then a second check finds nothing, the image opens, nothing that a walk or work on it meets is
//!   damaged, and a third check finds nothing either.
//!
//! `tools/fuzz-images` runs either under libFuzzer, which looks for cases that reach new code; `engine` is the program for that. The tests of this
//! crate run the cases that found something (`cases/`), and random ones from fixed seeds.

pub mod base;
pub mod forge;
pub mod fsck;
pub mod input;
pub mod make;
pub mod memory;
pub mod mount;
pub mod mutate;
pub mod walk;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use input::Input;

/// What is done with a damaged image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// It is opened and worked on.
    Mount,
    /// It is repaired.
    Fsck,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Target, String> {
        match name {
            "mount" => Ok(Target::Mount),
            "fsck" => Ok(Target::Fsck),
            _ => Err(format!("there is no target {name:?}")),
        }
    }
}

/// What became of a case in which nothing is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The image is not taken: why.
    Refused(String),
    /// Damage was met and reported.
    Damaged,
    /// It passes for a sound one.
    Sound,
}

/// What a case is about.
pub struct Case<'a> {
    /// The image that is damaged.
    pub base: &'static base::Base,
    /// How it is looked at.
    pub mode: u8,
    program: &'a [u8],
}

/// Takes a case apart.
pub fn parse(bytes: &[u8]) -> Case<'_> {
    let bases = base::bases();
    let (head, program) = bytes.split_at(bytes.len().min(2));
    let byte = |i: usize| head.get(i).copied().unwrap_or(0);
    Case { base: &bases[byte(0) as usize % bases.len()], mode: byte(1), program }
}

impl Case<'_> {
    /// The damaged image, and what was done to it.
    pub fn image(&self) -> (std::sync::Arc<btfs::storage::MemStorage>, Vec<String>) {
        mutate::damaged(self.base, &mut Input::new(self.program))
    }
}

/// Runs a case. An error is a bug of the filesystem or of its checker; so is a panic, which this does not catch.
///
/// # Errors
/// What is wrong.
pub fn run(target: Target, bytes: &[u8]) -> Result<Verdict, String> {
    let case = parse(bytes);
    let (storage, _) = case.image();
    match target {
        Target::Mount => mount::run(storage, case.mode),
        Target::Fsck => fsck::run(storage, case.mode),
    }
}

/// Runs a case; a panic is an error as well.
///
/// # Errors
/// What is wrong.
pub fn run_caught(target: Target, bytes: &[u8]) -> Result<Verdict, String> {
    catch_unwind(AssertUnwindSafe(|| run(target, bytes))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// The changes of a case, one a line.
pub fn story(bytes: &[u8]) -> String {
    let case = parse(bytes);
    let (_, story) = case.image();
    let lines = story.iter().map(|line| format!("  {line}\n"));
    format!("image {:?}, mode {:#04x}\n{}", case.base.name, case.mode, lines.collect::<String>())
}

/// A random case: a few changes, most of them as long as they need to be.
pub fn random_case(rng: &mut btfs::storage::Rng) -> Vec<u8> {
    let mut bytes = vec![0; 4 + rng.index(60)];
    rng.fill(&mut bytes);
    bytes
}
