//! `fs-bench`: compares mounted btfs images with other filesystems.
//!
//! [`rows`] lists what is measured, [`work`] does it, [`systems`] are the filesystems and how they are set up, [`floor`] is one of
//! them, [`driver`] lets them take turns, and [`report`] prints the table.

mod driver;
mod floor;
mod options;
mod report;
mod rows;
mod systems;
mod work;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use btfs_bench_common::cleanup;
use clap::Parser;

use crate::options::Options;

/// The argument with which the program starts itself to serve the floor.
const FLOOR_ARGUMENT: &str = "floor-of-fs-bench";
/// The argument with which the program starts itself to create files beside others.
const CREATOR_ARGUMENT: &str = "creator-of-fs-bench";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, rest)) if first == FLOOR_ARGUMENT => floor::run(rest).map(|()| true),
        Some((first, rest)) if first == CREATOR_ARGUMENT => work::parallel::run_creator(rest).map(|()| true),
        _ => run(&Options::parse()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            cleanup::stay_if_ending();
            eprintln!("fs-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports. False if a row failed.
fn run(options: &Options) -> Result<bool> {
    let plan = options.plan().map_err(anyhow::Error::msg)?;
    // SAFETY: geteuid has no preconditions.
    ensure!(unsafe { libc::geteuid() } == 0, "mounting and dropping caches need root");
    let results = driver::run(options, plan)?;
    if options.json {
        report::print_json(&results)?;
    } else {
        report::print_table(&results)?;
    }
    Ok(results.failures.is_empty())
}
