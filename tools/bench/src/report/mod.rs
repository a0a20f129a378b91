//! What the program prints.

mod counters;
mod json;
mod table;
mod targets;

use anyhow::Result;

use crate::driver::Results;

/// Prints the table, and below it files, memory, floors, counters, and the targets.
pub fn print_table(results: &Results) -> Result<()> {
    let text = [
        table::header(results),
        table::rows(results),
        table::floors(results),
        table::files(results),
        table::memory(results),
        counters::of_btfs(results),
        counters::latch_protocols(results),
        targets::table(&targets::evaluate(results)),
        table::failures(results),
    ];
    print(&text.concat())
}

/// Prints one JSON document.
pub fn print_json(results: &Results) -> Result<()> {
    let document = json::document(results, &targets::evaluate(results));
    print(&format!("{}\n", serde_json::to_string_pretty(&document)?))
}

/// A closed pipe is not an error worth a panic.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
