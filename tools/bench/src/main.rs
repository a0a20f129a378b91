//! `engine-bench`: compares the btfs storage engine with redb, LMDB, SQLite and fjall.
//!
//! The *driver* starts one *worker* process for each engine, so that memory, threads and caches are apart, and
//! lets the workers take turns row by row. [`rows`] lists what is measured, [`data`] the records, [`engines`]
//! the engines and how they are set up, [`report`] the table and the targets.

mod data;
mod driver;
mod engines;
mod options;
mod protocol;
mod report;
mod rows;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::options::Options;

/// The argument with which the driver starts a worker.
const WORKER_ARGUMENT: &str = "worker-of-engine-bench";

fn main() -> ExitCode {
    let result = if std::env::args().nth(1).as_deref() == Some(WORKER_ARGUMENT) {
        worker::run().map(|()| true)
    } else {
        run(&Options::parse())
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("engine-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports. False if a row failed.
fn run(options: &Options) -> anyhow::Result<bool> {
    let plan = options.plan().map_err(anyhow::Error::msg)?;
    let results = driver::run(options, plan)?;
    if options.json {
        report::print_json(&results)?;
    } else {
        report::print_table(&results)?;
    }
    Ok(results.failures.is_empty())
}
