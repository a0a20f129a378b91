//! The command `btfs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    btfs::cli::run(std::env::args_os())
}
