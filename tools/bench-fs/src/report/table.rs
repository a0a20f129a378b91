//! The table.

use std::io::Write;

use anyhow::Result;
use btfs_bench_common::grid::{Grid, number, percent};

use crate::driver::Results;
use crate::rows::{GROWTHS, ROWS, Row, Unit};
use crate::systems::SystemId;

/// Prints it to standard output.
pub fn print_table(results: &Results) -> Result<()> {
    let mut text = results.machine.iter().map(|line| format!("{line}\n")).collect::<String>();
    let (rounds, scale) = (results.plan.rounds, results.plan.scale);
    text += &format!("{rounds} rounds; medians");
    if scale != 1.0 {
        text += &format!("; all numbers of files, calls and bytes times {scale}");
    }
    text += "\n\n";
    text += &times(results);
    text += &durable(results);
    text += &growth(results);
    text += &daemons(results);
    text += &requests(results);
    text += &notes(results);
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn rows(results: &Results) -> impl Iterator<Item = &'static Row> + '_ {
    results.plan.rows.iter().copied()
}

fn systems(results: &Results) -> Vec<SystemId> {
    results.plan.systems.clone()
}

/// A row's figure in its unit.
fn figure(row: &Row, us: Option<f64>) -> String {
    match row.unit {
        Unit::Microseconds(_) | Unit::Median(_) => number(us),
        Unit::Milliseconds(_) => number(us.map(|us| us / 1e3)),
        // The operations are bytes.
        Unit::Rate => number(us.map(|us| 1e6 / us / f64::from(1 << 20))),
    }
}

fn unit(row: &Row) -> String {
    match row.unit {
        Unit::Microseconds(of) => format!("µs/{of}"),
        Unit::Median(of) => format!("µs/{of} p50"),
        Unit::Milliseconds(of) => format!("ms/{of}"),
        Unit::Rate => "MiB/s".to_owned(),
    }
}

fn cell(results: &Results, row: &Row, id: SystemId) -> String {
    if results.is_missing(id) {
        "missing".to_owned()
    } else if results.has_failed(row, id) {
        "FAILED".to_owned()
    } else {
        figure(row, results.us(row.name, id))
    }
}

fn times(results: &Results) -> String {
    let systems = systems(results);
    let peers: Vec<SystemId> = systems.iter().copied().filter(|id| *id != SystemId::Btfs).collect();
    let mut header = vec!["".to_owned(), "unit".to_owned()];
    header.extend(systems.iter().map(|id| id.name().to_owned()));
    let has_btfs = peers.len() < systems.len();
    if has_btfs {
        header.push("±".to_owned());
        header.extend(peers.iter().map(|id| format!("÷{}", id.name())));
    }
    let mut grid = Grid::with_text(&header.iter().map(String::as_str).collect::<Vec<_>>(), &[1]);
    for row in rows(results) {
        let mut cells = vec![row.name.to_owned(), unit(row)];
        cells.extend(systems.iter().map(|id| cell(results, row, *id)));
        if has_btfs {
            cells.push(percent(results.spread(row.name, SystemId::Btfs)));
            let ours = results.us(row.name, SystemId::Btfs);
            cells.extend(
                peers.iter().map(|id| number(ours.zip(results.us(row.name, *id)).map(|(a, b)| a / b))),
            );
        }
        grid.add(cells);
    }
    let text = grid.render("fs-bench");
    text + "  ± is the spread of btfs over the rounds. ÷ is the time of btfs by the time of the other: below 1, btfs is faster.\n\n"
}

/// What a durable write is made of.
fn durable(results: &Results) -> String {
    let us = |row: &str, id| results.us(row, id);
    let figures = us("durable.fsync", SystemId::Btfs)
        .zip(us("durable.fsync", SystemId::Host))
        .zip(us("durable.trip", SystemId::Btfs));
    let Some(((ours, host), trip)) = figures else { return String::new() };
    format!(
        "write + fsync of 4 KiB: {} µs = the host's own {} + two round trips {} + {} µs\n\n",
        number(Some(ours)),
        number(Some(host)),
        number(Some(2.0 * trip)),
        number(Some(ours - host - 2.0 * trip)),
    )
}

fn growth(results: &Results) -> String {
    let systems = systems(results);
    let mut header = vec![""];
    header.extend(systems.iter().map(|id| id.name()));
    let mut grid = Grid::new(&header);
    for (small, large) in GROWTHS {
        let ratio = |id: &SystemId| results.us(large, *id).zip(results.us(small, *id)).map(|(a, b)| a / b);
        if systems.iter().any(|id| ratio(id).is_some()) {
            let mut cells = vec![format!("{large} ÷ small")];
            cells.extend(systems.iter().map(|id| number(ratio(id))));
            grid.add(cells);
        }
    }
    let (small, large) = (results.plan.growth_small, results.plan.growth_large);
    grid.render(&format!("growth — the cost beside {large} files, by the cost beside {small}"))
}

/// Processor time of those that have a process.
fn daemons(results: &Results) -> String {
    let mut systems = systems(results);
    systems.retain(|id| {
        rows(results).any(|row| results.median(row.name, *id, |m| m.daemon_cpu_seconds).is_some())
    });
    let mut header = vec!["".to_owned(), "of one".to_owned()];
    header.extend(systems.iter().map(|id| format!("{} µs", id.name())));
    let counting: Vec<SystemId> = systems.iter().copied().filter(|id| id.has_stats()).collect();
    header.extend(counting.iter().map(|id| format!("{} µs/request", id.name())));
    let mut grid = Grid::with_text(&header.iter().map(String::as_str).collect::<Vec<_>>(), &[1]);
    for row in rows(results) {
        let mut cells = vec![row.name.to_owned(), operation(row).to_owned()];
        let per_operation = |id: &SystemId| {
            results.median(row.name, *id, |m| {
                Some(m.daemon_cpu_seconds? * 1e6 / m.operations as f64 * scale(row))
            })
        };
        let per_request = |id: &SystemId| {
            results.median(row.name, *id, |m| {
                let count = m.request_count().filter(|count| *count > 0)?;
                Some(m.daemon_cpu_seconds? * 1e6 / count as f64)
            })
        };
        cells.extend(systems.iter().map(|id| number(per_operation(id))));
        cells.extend(counting.iter().map(|id| number(per_request(id))));
        grid.add(cells);
    }
    grid.render("daemons — processor time, user and system, all threads")
}

fn operation(row: &Row) -> &'static str {
    match row.unit {
        Unit::Microseconds(of) | Unit::Median(of) | Unit::Milliseconds(of) => of,
        Unit::Rate => "MiB",
    }
}

/// Operations in what [`operation`] names.
fn scale(row: &Row) -> f64 {
    if row.unit == Unit::Rate { f64::from(1 << 20) } else { 1.0 }
}

fn requests(results: &Results) -> String {
    let mut grid = Grid::with_text(&["", "of one", "", "requests", "of which"], &[1, 2, 4]);
    for row in rows(results) {
        for id in systems(results).into_iter().filter(|id| id.has_stats()) {
            let all = results
                .median(row.name, id, |m| Some(m.request_count()? as f64 / m.operations as f64 * scale(row)));
            if all.is_none() {
                continue;
            }
            let name = if id == SystemId::Btfs { row.name } else { "" };
            let cells = vec![name.to_owned(), operation(row).to_owned(), id.name().to_owned(), number(all)];
            grid.add([cells, vec![kinds(results, row, id)]].concat());
        }
    }
    grid.render("requests — from the kernel, counted by the daemon")
}

/// Kinds that make up at least this part of the requests are named.
const NAMED_MIN: f64 = 0.005;

fn kinds(results: &Results, row: &Row, id: SystemId) -> String {
    let Some(measurement) = results.measurements.get(&(row.name, id)).and_then(|all| all.last()) else {
        return String::new();
    };
    let total = measurement.request_count().unwrap_or(0) as f64;
    let mut kinds: Vec<_> = measurement.requests.iter().flatten().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let named = kinds.into_iter().filter(|(_, count)| **count as f64 >= total * NAMED_MIN);
    let each = |count: u64| number(Some(count as f64 / measurement.operations as f64 * scale(row)));
    named.map(|(kind, count)| format!("{} {kind}", each(*count))).collect::<Vec<_>>().join(", ")
}

fn notes(results: &Results) -> String {
    let mut text = String::from("systems\n");
    for id in systems(results) {
        text += &format!("  {:12} {}\n", id.name(), id.title());
        if let Some(reason) = results.missing.get(&id) {
            text += &format!("  {:12} missing: {reason}\n", "");
        }
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, reason) in rows(results).filter_map(|row| Some((row.name, row.skipped_on(id)?))) {
            match reasons.iter_mut().find(|(other, _)| *other == reason) {
                Some((_, names)) => names.push(name),
                None => reasons.push((reason, vec![name])),
            }
        }
        for (reason, names) in reasons {
            text += &format!("  {:12} – in {}: {reason}\n", "", names.join(", "));
        }
    }
    text += "\nrows\n";
    let described = ROWS.iter().filter(|row| rows(results).any(|chosen| chosen.name == row.name));
    text += &described.map(|row| format!("  {:20} {}\n", row.name, row.title)).collect::<String>();
    text += "  cold: mounted anew, with nothing in the page cache, neither of the files nor of the images\n";
    for failure in &results.failures {
        text += &format!("FAILED {failure}\n");
    }
    text
}
