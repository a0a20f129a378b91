//! The table itself, and what goes with it: settings, floors, files, memory.

use btfs_bench_common::grid::{Grid, mebibytes, microseconds, number, percent, rate};

use crate::data::{Distribution, KEY_LEN, RECORD_LEN, VALUE_LEN};
use crate::driver::{FloorKind, Results};
use crate::engines::EngineId;
use crate::protocol::{Measurement, Memory};
use crate::rows::Row;

pub fn header(results: &Results) -> String {
    let plan = &results.plan;
    let mut text = String::new();
    for line in &results.machine {
        text += &format!("{line}\n");
    }
    let limit = match plan.memory_limit {
        Some(limit) => format!("; each process limited to {} MiB, page cache included", limit >> 20),
        None => String::new(),
    };
    text += &format!(
        "{} records of {KEY_LEN} + {VALUE_LEN} bytes, {} round(s), {:.0} s{limit}\n\n",
        plan.records, plan.rounds, results.seconds
    );
    for (engine, settings) in &results.settings {
        text += &format!("  {engine:14} {settings}\n");
    }
    text + "\n\
        Medians of the rounds; «spread» is (highest − lowest) / median of the first figure. Rates of rows with\n\
        several threads are of all threads together. Rows of batches end with everything durable; that is part\n\
        of the time. «settle» is the time until everything lay in its place afterwards. Engines with read\n\
        transactions renew them every 1000 gets.\n\
        Write amplification is bytes that the device is given for each byte of keys and values (blocks of 4 KiB\n\
        that became dirty between two syncs; not the journal of the file system): «written» during\n\
        the row, «settled» with a checkpoint forced after it, «steady» with that checkpoint shared among as many\n\
        records as fit in the log between two checkpoints (the same as settled where nothing is put off).\n\n"
}

pub fn rows(results: &Results) -> String {
    results.rows().into_iter().map(|row| one_row(results, row)).collect()
}

fn one_row(results: &Results, row: Row) -> String {
    let unit = row.unit();
    let plural = if unit == "batch" { "batches".to_owned() } else { format!("{unit}s") };
    let (time, rate_name) = (format!("µs/{unit}"), format!("{plural}/s"));
    let (p50, p99) = match row.timed() {
        "" => (String::new(), String::new()),
        timed => (format!("p50 µs/{timed}"), format!("p99 µs/{timed}")),
    };
    let mut header = vec!["", &time, "spread", &rate_name, &p50, &p99];
    if row.writes() {
        header.extend(["written", "settled", "steady", "settle s"]);
    }
    let mut grid = Grid::new(&header);
    for engine in results.engines_of(row) {
        let of = |what: &dyn Fn(&Measurement) -> Option<f64>| results.median(row, engine, what);
        let ns = results.median_ns(row, engine);
        let mut cells = vec![
            engine.name().to_owned(),
            microseconds(ns),
            percent(results.spread(row, engine, |measurement| Some(measurement.ns_per_unit(row)))),
            rate(ns.map(|ns| 1e9 / ns)),
            microseconds(of(&|measurement| measurement.p50_ns.map(|ns| ns as f64))),
            microseconds(of(&|measurement| measurement.p99_ns.map(|ns| ns as f64))),
        ];
        if row.writes() {
            cells.push(number(of(&Measurement::write_amplification)));
            cells.push(number(of(&Measurement::settled_write_amplification)));
            cells.push(number(results.steady_write_amplification(row, engine)));
            cells.push(number(of(&|measurement| Some(measurement.settle_seconds))));
        }
        cells.extend(note(results, row, engine));
        grid.add(cells);
    }
    for (_, engine, reason) in results.skipped.iter().filter(|skipped| skipped.0 == row) {
        grid.add_text(format!("  {}: {reason}", engine.name()));
    }
    grid.render(&format!("{} — {}{}", row.name(), row.title(), distribution(row)))
}

fn distribution(row: Row) -> &'static str {
    match row {
        Row::Get(Distribution::Uniform, _) => ", uniform",
        Row::Get(Distribution::Skewed, _) => ", skewed (Zipf 0.99)",
        Row::Get(Distribution::HotSpot, _) => ", hot spot (1 % of the keys, adjacent)",
        _ => "",
    }
}

/// What only some rows have to say.
fn note(results: &Results, row: Row, engine: EngineId) -> Option<String> {
    let figure = |name: &str| results.median(row, engine, |measurement| measurement.figure(name));
    match row {
        Row::Mixed => {
            let written = rate(figure("records_written_per_second"));
            Some(format!("{written} records/s written"))
        }
        Row::DurableWhileCheckpoint => {
            let (checkpoints, others) = (figure("checkpoints"), figure("other_records_written"));
            Some(format!("{} checkpoints, {} other records", number(checkpoints), number(others)))
        }
        Row::Scan(len) => {
            let ns = results.median_ns(row, engine).map(|ns| ns / f64::from(len));
            Some(format!("{} ns/record", number(ns)))
        }
        _ => None,
    }
}

pub fn floors(results: &Results) -> String {
    let mut grid = Grid::new(&["", "bytes", "p50 µs", "p99 µs"]);
    for kind in FloorKind::ALL {
        let Some(len) = results.floor_median(kind, |measurement| {
            Some(measurement.payload as f64 / measurement.operations as f64)
        }) else {
            continue;
        };
        grid.add(vec![
            kind.name().to_owned(),
            format!("{len:.0}"),
            microseconds(results.floor_median(kind, |measurement| measurement.p50_ns.map(|ns| ns as f64))),
            microseconds(results.floor_median(kind, |measurement| measurement.p99_ns.map(|ns| ns as f64))),
        ]);
    }
    grid.render(
        "floors — bare durable writes into a prewritten file, between the slices of durable.1 \
         (4 KiB; as many bytes as btfs logs for one of its writes)",
    )
}

/// The rows after which the files are looked at, and the records that are there then.
fn rows_with_files(results: &Results) -> Vec<Row> {
    let rows = [Row::LoadBulk, Row::LoadSorted, Row::InsertRandom, Row::Delete];
    rows.into_iter().filter(|row| results.rows().contains(row)).collect()
}

pub fn files(results: &Results) -> String {
    let payload = (results.plan.records * RECORD_LEN) as f64;
    let mut grid = Grid::new(&["", "data MiB", "log MiB", "doublewrite MiB", "data / keys and values"]);
    for row in rows_with_files(results) {
        grid.add_text(format!("  after {}", row.name()));
        for engine in results.engines_of(row) {
            let figure = |name: &str| results.median(row, engine, |measurement| measurement.figure(name));
            let data = figure("data_bytes");
            let ratio = (row != Row::Delete).then(|| data.map(|data| data / payload)).flatten();
            grid.add(vec![
                engine.name().to_owned(),
                mebibytes(data),
                mebibytes(figure("log_bytes")),
                mebibytes(figure("doublewrite_bytes")),
                number(ratio),
            ]);
        }
    }
    grid.render("files — bytes allocated on the disk")
}

/// The last row that reads and was measured, or else the inserts.
fn row_of_memory(results: &Results) -> Option<Row> {
    let rows = results.rows();
    let last_get = rows.iter().rev().find(|row| matches!(row, Row::Get(..)));
    last_get.or_else(|| rows.iter().find(|row| **row == Row::InsertRandom)).or(rows.first()).copied()
}

pub fn memory(results: &Results) -> String {
    let Some(row) = row_of_memory(results) else { return String::new() };
    let mut grid = Grid::new(&["", "resident MiB", "anonymous MiB", "mapped files MiB", "peak MiB"]);
    for engine in results.engines_of(row) {
        let of = |what: fn(&Memory) -> u64| {
            mebibytes(results.median(row, engine, |measurement| Some(what(&measurement.memory) as f64)))
        };
        grid.add(vec![
            engine.name().to_owned(),
            of(|memory| memory.resident),
            of(|memory| memory.anonymous),
            of(|memory| memory.file),
            of(|memory| memory.peak),
        ]);
    }
    let title = format!(
        "memory — resident in each engine's process after {}; a mapping counts once for each connection that has it",
        row.name()
    );
    grid.render(&title)
}

pub fn failures(results: &Results) -> String {
    results.failures.iter().map(|failure| format!("FAILED {failure}\n")).collect()
}
