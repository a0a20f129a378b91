//! One JSON document with everything that was measured.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};

use crate::driver::Results;
use crate::rows::{ROWS, Row, Unit};

/// Prints it to standard output.
pub fn print_json(results: &Results) -> Result<()> {
    let rows: Vec<Value> = ROWS.iter().filter_map(|row| row_of(results, row)).collect();
    let missing: serde_json::Map<String, Value> =
        results.missing.iter().map(|(id, reason)| (id.name().to_owned(), json!(reason))).collect();
    let document = json!({
        "machine": results.machine,
        "plan": results.plan,
        "rows": rows,
        "missing": missing,
        "failures": results.failures,
    });
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &document)?;
    Ok(writeln!(out)?)
}

fn row_of(results: &Results, row: &Row) -> Option<Value> {
    let measured = results.measurements.iter().filter(|((name, _), _)| *name == row.name);
    let rounds: serde_json::Map<String, Value> =
        measured.map(|((_, id), rounds)| (id.name().to_owned(), json!(rounds))).collect();
    let operation = match row.unit {
        Unit::Microseconds(of) | Unit::Median(of) | Unit::Milliseconds(of) => of,
        Unit::Rate => "byte",
    };
    (!rounds.is_empty())
        .then(|| json!({"name": row.name, "title": row.title, "operation": operation, "rounds": rounds}))
}
