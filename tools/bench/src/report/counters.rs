//! The tree's own counters, and what the latch protocols make of the rows with several threads.

use btfs_bench_common::grid::{Grid, number, percent, rate};

use crate::driver::Results;
use crate::engines::{EngineId, counter, figure};
use crate::rows::Row;

/// What btfs counted while it worked.
pub fn of_btfs(results: &Results) -> String {
    let engines: Vec<_> = results.plan.engines.iter().copied().filter(|engine| engine.is_btfs()).collect();
    engines.into_iter().map(|engine| of_one(results, engine) + &shape(results, engine)).collect()
}

fn of_one(results: &Results, engine: EngineId) -> String {
    let mut grid = Grid::new(&[
        "",
        "pages/call",
        "pages read/call",
        "log bytes/call",
        "log bytes/record",
        "calls/log sync",
        "splits",
        "merges",
        "latch waits",
        "latch waits/call",
    ]);
    for row in results.rows() {
        if !results.engines_of(row).contains(&engine) {
            continue;
        }
        let per_call = |name| results.median(row, engine, |measurement| measurement.per_operation(name));
        let total = |name| results.median_counter(row, engine, name);
        let log_bytes_per_record =
            results.median(row, engine, |measurement| measurement.per_record(counter::LOG_BYTES));
        if total(counter::PAGES_VISITED).is_none() && total(counter::LOG_BYTES).is_none() {
            continue;
        }
        let reads = total(counter::READ_CALLS).filter(|n| *n > 0.0);
        let pages_per_read = total(counter::PAGES_VISITED).zip(reads).map(|(pages, reads)| pages / reads);
        let calls_per_sync = calls_per_log_sync(results, row, engine);
        grid.add(vec![
            row.name().to_owned(),
            number(pages_per_read),
            number(per_call(counter::PAGES_READ)),
            number(per_call(counter::LOG_BYTES).filter(|_| row.writes())),
            number(log_bytes_per_record.filter(|_| row.writes())),
            number(calls_per_sync.filter(|_| row.writes())),
            number(total(counter::SPLITS).filter(|_| row.writes())),
            number(total(counter::MERGES).filter(|_| row.writes())),
            rate(total(counter::LATCH_WAITS)),
            number(per_call(counter::LATCH_WAITS)),
        ]);
    }
    grid.render(&format!(
        "counters of {} — a call is a get, a scan, or a batch; a get visits as many pages as the tree is high, \
         a scan its height and the leaves it reads",
        engine.name()
    ))
}

/// How many calls one sync of the log served.
pub fn calls_per_log_sync(results: &Results, row: Row, engine: EngineId) -> Option<f64> {
    results.median(row, engine, |measurement| {
        let syncs = *measurement.counters.get(counter::LOG_SYNCS)?;
        (syncs > 0).then(|| measurement.operations as f64 / syncs as f64)
    })
}

fn shape(results: &Results, engine: EngineId) -> String {
    let mut grid = Grid::new(&["", "height", "leaves", "leaf fill", "adjacent leaves"]);
    for row in results.rows() {
        let of = |name: &str| results.median(row, engine, |measurement| measurement.figure(name));
        if of(figure::HEIGHT).is_none() {
            continue;
        }
        grid.add(vec![
            row.name().to_owned(),
            number(of(figure::HEIGHT)),
            rate(of(figure::LEAVES)),
            percent(of(figure::FILL)),
            percent(of(figure::ADJACENCY)),
        ]);
    }
    grid.render(&format!(
        "shape of {} — adjacent leaves: those whose right neighbour lies right behind them in the file",
        engine.name()
    ))
}

/// The rates of the latch protocols side by side, if there are several.
pub fn latch_protocols(results: &Results) -> String {
    let engines: Vec<_> = results.plan.engines.iter().copied().filter(|engine| engine.is_btfs()).collect();
    if engines.len() < 2 {
        return String::new();
    }
    let mut header = vec![""];
    header.extend(engines.iter().map(|engine| engine.name()));
    header.push("first / best other");
    let mut grid = Grid::new(&header);
    let mut add = |name: &str, rates: Vec<Option<f64>>| {
        let best_other = rates[1..].iter().flatten().copied().reduce(f64::max);
        let gain = rates[0].zip(best_other).map(|(first, other)| first / other);
        let cells = rates.into_iter().map(rate).chain([number(gain)]);
        grid.add(std::iter::once(name.to_owned()).chain(cells).collect());
    };
    for row in results.rows().into_iter().filter(|row| row.is_concurrent()) {
        let rate_of = |&engine: &EngineId| results.median_ns(row, engine).map(|ns| 1e9 / ns);
        add(row.name(), engines.iter().map(rate_of).collect());
        if row == Row::Mixed {
            let written = |&engine: &EngineId| {
                results.median(row, engine, |measurement| measurement.figure("records_written_per_second"))
            };
            add("mixed: records written", engines.iter().map(written).collect());
        }
    }
    grid.render("latch protocols — calls or records a second, all threads together")
}
