//! What the engine is to reach, and whether it does. Ratios compare figures of the same run.

use btfs_bench_common::grid::{Grid, number};
use serde::Serialize;

use super::counters::calls_per_log_sync;
use crate::data::RECORD_LEN;
use crate::driver::{FloorKind, Results};
use crate::engines::EngineId;
use crate::protocol::Measurement;
use crate::rows::Row;

use EngineId::{Fjall, Lmdb, Redb, Sqlite};

const BTFS: EngineId = EngineId::BTFS;
/// The peers that have one writer at a time and update pages in a tree.
const TREES: [EngineId; 3] = [Redb, Lmdb, Sqlite];

/// One line of the table of targets.
#[derive(Debug, Serialize)]
pub struct Target {
    pub name: String,
    /// Where the figure comes from: of several rows, the one that does worst.
    pub from: String,
    pub figure: Option<f64>,
    pub bound: f64,
    pub sense: Sense,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Sense {
    AtMost,
    LessThan,
    AtLeast,
}

impl Target {
    /// Nothing if it was not measured.
    pub fn is_reached(&self) -> Option<bool> {
        let figure = self.figure?;
        Some(match self.sense {
            Sense::AtMost => figure <= self.bound,
            Sense::LessThan => figure < self.bound,
            Sense::AtLeast => figure >= self.bound,
        })
    }
}

/// A figure and where it comes from.
type Found = Option<(f64, String)>;

pub fn evaluate(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |name: String, found: Found, sense: Sense, bound: f64| {
        let (figure, from) = found.map_or((None, String::new()), |(figure, from)| (Some(figure), from));
        targets.push(Target { name, from, figure, bound, sense });
    };
    for (what, rows) in [("get", rows_of("get")), ("scan", rows_of("scan"))] {
        for peer in [Redb, Sqlite, Fjall] {
            let worst = worst_time_ratio(results, &rows, peer);
            add(format!("{what}: time / {}", peer.name()), worst, Sense::LessThan, 1.0);
        }
        let bound = if what == "get" { 1.25 } else { 2.0 };
        add(format!("{what}: time / lmdb"), worst_time_ratio(results, &rows, Lmdb), Sense::AtMost, bound);
    }
    for row in [Row::LoadBulk, Row::LoadSorted, Row::InsertRandom, Row::Overwrite, Row::Delete] {
        for peer in TREES {
            let ratio = worst_time_ratio(results, &[row], peer);
            add(format!("{}: time / {}", row.name(), peer.name()), ratio, Sense::LessThan, 1.0);
        }
    }
    add("insert.random: µs a record".to_owned(), insert_time(results), Sense::AtMost, 4.0);
    add("apply.warm: p50 in µs".to_owned(), warm_apply(results), Sense::AtMost, 5.0);
    add("durable.1: p50 / same bytes, bare".to_owned(), durable_to_floor(results), Sense::AtMost, 1.2);
    add(
        "durable.checkpoint: p99 / p50 of durable.1".to_owned(),
        checkpoint_tail(results),
        Sense::AtMost,
        3.0,
    );
    add("durable.8: commits a sync".to_owned(), commits_a_sync(results), Sense::AtLeast, 7.0);
    add("durable.8: rate / durable.1".to_owned(), eight_to_one(results), Sense::AtLeast, 3.5);
    add(
        "batch10.durable.8: rate / best single-writer engine".to_owned(),
        durable_batches(results),
        Sense::AtLeast,
        2.0,
    );
    add("insert.random: data / keys and values".to_owned(), space(results), Sense::AtMost, 1.6);
    for row in [Row::LoadBulk, Row::LoadSorted] {
        add(format!("{}: write amplification", row.name()), written(results, row), Sense::AtMost, 2.5);
    }
    // Where checkpoints are forced all the time, what is written says nothing about the engine.
    let has_no_bound = |row| matches!(row, Row::LoadBulk | Row::LoadSorted | Row::DurableWhileCheckpoint);
    for row in Row::ALL {
        if row.writes() && !has_no_bound(row) {
            let name = format!("{}: steady write amplification / best of redb, lmdb, sqlite", row.name());
            add(name, written_to_best(results, row), Sense::AtMost, 0.5);
        }
    }
    targets
}

fn rows_of(filter: &str) -> Vec<Row> {
    Row::ALL.into_iter().filter(|row| row.is_chosen_by(filter)).collect()
}

fn p50(measurement: &Measurement) -> Option<f64> {
    measurement.p50_ns.map(|ns| ns as f64)
}

fn p99(measurement: &Measurement) -> Option<f64> {
    measurement.p99_ns.map(|ns| ns as f64)
}

/// The highest ratio of btfs's time to the peer's in these rows.
fn worst_time_ratio(results: &Results, rows: &[Row], peer: EngineId) -> Found {
    let ratio = |row: &Row| {
        let ours = results.median_ns(*row, BTFS)?;
        let theirs = results.median_ns(*row, peer)?;
        let from =
            format!("{}: {} / {} µs", row.name(), number(Some(ours / 1e3)), number(Some(theirs / 1e3)));
        Some((ours / theirs, from))
    };
    rows.iter().filter_map(ratio).max_by(|a, b| a.0.total_cmp(&b.0))
}

fn insert_time(results: &Results) -> Found {
    Some((results.median_ns(Row::InsertRandom, BTFS)? / 1e3, String::new()))
}

fn warm_apply(results: &Results) -> Found {
    Some((results.median(Row::WarmApply, BTFS, p50)? / 1e3, String::new()))
}

fn durable_to_floor(results: &Results) -> Found {
    let ours = results.median(Row::Durable, BTFS, p50)?;
    let floor = results.floor_median(FloorKind::SameBytes, p50)?;
    Some((ours / floor, format!("{} / {} µs", number(Some(ours / 1e3)), number(Some(floor / 1e3)))))
}

fn checkpoint_tail(results: &Results) -> Found {
    let tail = results.median(Row::DurableWhileCheckpoint, BTFS, p99)?;
    let alone = results.median(Row::Durable, BTFS, p50)?;
    let own = results.median(Row::DurableWhileCheckpoint, BTFS, p50)?;
    let us = |ns: f64| number(Some(ns / 1e3));
    Some((tail / alone, format!("{} / {} µs; its own p50 is {} µs", us(tail), us(alone), us(own))))
}

fn commits_a_sync(results: &Results) -> Found {
    Some((calls_per_log_sync(results, Row::DurableByEight, BTFS)?, String::new()))
}

fn eight_to_one(results: &Results) -> Found {
    let one = results.median_ns(Row::Durable, BTFS)?;
    let eight = results.median_ns(Row::DurableByEight, BTFS)?;
    Some((one / eight, format!("{:.0} / {:.0} writes/s", 1e9 / eight, 1e9 / one)))
}

fn durable_batches(results: &Results) -> Found {
    let row = Row::BatchOfTenDurable;
    let ours = results.median_ns(row, BTFS)?;
    let (best, peer) = best_tree(|peer| results.median_ns(row, peer))?;
    Some((best / ours, format!("{:.0} / {:.0} records/s of {}", 1e9 / ours, 1e9 / best, peer.name())))
}

fn space(results: &Results) -> Found {
    let data = results.median(Row::InsertRandom, BTFS, |measurement| measurement.figure("data_bytes"))?;
    Some((data / (results.plan.records * RECORD_LEN) as f64, String::new()))
}

fn written(results: &Results, row: Row) -> Found {
    Some((results.median(row, BTFS, Measurement::settled_write_amplification)?, String::new()))
}

fn written_to_best(results: &Results, row: Row) -> Found {
    let ours = results.steady_write_amplification(row, BTFS)?;
    let settled = results.median(row, BTFS, Measurement::settled_write_amplification);
    let (best, peer) = best_tree(|peer| results.steady_write_amplification(row, peer))?;
    let from = format!(
        "{} / {} of {}; settled {}",
        number(Some(ours)),
        number(Some(best)),
        peer.name(),
        number(settled)
    );
    Some((ours / best, from))
}

/// The lowest of the figures of redb, LMDB and SQLite.
fn best_tree(figure: impl Fn(EngineId) -> Option<f64>) -> Option<(f64, EngineId)> {
    let figures = TREES.into_iter().filter_map(|peer| Some((figure(peer)?, peer)));
    figures.min_by(|a, b| a.0.total_cmp(&b.0))
}

/// The table of targets; empty if btfs did not take part.
pub fn table(targets: &[Target]) -> String {
    if targets.iter().all(|target| target.figure.is_none()) {
        return String::new();
    }
    let mut grid = Grid::new(&["", "figure", "bound", "reached", "from"]);
    for target in targets {
        let sign = match target.sense {
            Sense::AtMost => '≤',
            Sense::LessThan => '<',
            Sense::AtLeast => '≥',
        };
        let reached = match target.is_reached() {
            None => "not measured",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        grid.add(vec![
            target.name.clone(),
            number(target.figure),
            format!("{sign} {}", target.bound),
            reached.to_owned(),
            target.from.clone(),
        ]);
    }
    grid.render("targets — of several rows or peers, the one that does worst")
}
