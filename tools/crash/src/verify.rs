//! Whether what recovery made of an image is what it must be.

use std::sync::Arc;

use btfs::page::BLOCK_SIZE;
use btfs::storage::SimStorage;
use btfs::tree::{CheckReport, Options, Tree};
use btfs::{BlockNo, Run};

use crate::contents::{Contents, DataRecord};
use crate::workload::Allowed;

/// A tree that was opened, and what it contains.
pub struct Opened {
    /// The tree.
    pub tree: Tree,
    /// Its records.
    pub contents: Contents,
    /// What the structure checker counted.
    pub report: CheckReport,
}

/// Opens an image, checks the tree's structure, reads all records, and all data that they name.
///
/// # Errors
/// What is wrong.
pub fn open(sim: &Arc<SimStorage>, options: &Options) -> Result<Opened, String> {
    let tree = Tree::open(sim.clone(), options).map_err(|e| format!("opening: {e}"))?;
    let report = tree.check().map_err(|e| format!("structure check: {e}"))?;
    let contents = read(&tree)?;
    if contents.len() as u64 != report.records {
        return Err(format!("{} records counted, {} found by a scan", report.records, contents.len()));
    }
    let runs = contents.runs().ok_or("two records name the same blocks")?;
    if runs != joined(&report.data) {
        return Err(format!("blocks in use: {:?}, blocks that records name: {runs:?}", report.data));
    }
    for data in contents.data_records() {
        check_data(&tree, data)?;
    }
    Ok(Opened { tree, contents, report })
}

/// Runs with neighbours joined.
fn joined(runs: &[Run]) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for &run in runs {
        match joined.last_mut() {
            Some(last) if last.end() == run.start => last.len += run.len,
            _ => joined.push(run),
        }
    }
    joined
}

fn read(tree: &Tree) -> Result<Contents, String> {
    let mut contents = Contents::default();
    let mut cursor = tree.cursor();
    let mut last: Option<Vec<u8>> = None;
    while cursor.next().map_err(|e| format!("scan: {e}"))? {
        if last.as_deref().is_some_and(|last| last >= cursor.key()) {
            return Err(format!("scan: key {:?} does not ascend", cursor.key()));
        }
        contents.put(cursor.key(), cursor.value());
        let last = last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(cursor.key());
    }
    Ok(contents)
}

fn check_data(tree: &Tree, data: &DataRecord) -> Result<(), String> {
    let mut bytes = vec![0; data.sums.len() * BLOCK_SIZE];
    tree.read_blocks(data.run.start, &mut bytes).map_err(|e| format!("reading data: {e}"))?;
    let found = DataRecord::sums(&bytes);
    match found.iter().zip(&data.sums).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => {
            let block = BlockNo(data.run.start.0 + at as u64);
            Err(format!("block {} of {} does not hold what was written to it", block.0, data.run))
        }
    }
}

/// The number of the state that has this hash, among those allowed.
///
/// # Errors
/// There is none; says which other state it is, if any.
pub fn find(hash: u64, history: &[u64], allowed: Allowed) -> Result<usize, String> {
    let last = allowed.last.min(history.len() - 1);
    let within = allowed.first..=last;
    // The latest one: what follows from it in the history is then the same whichever it was.
    if let Some(state) = within.clone().rev().find(|&i| history[i] == hash) {
        return Ok(state);
    }
    Err(match history.iter().rposition(|&h| h == hash) {
        Some(state) if state < allowed.first => format!(
            "acknowledged batches are lost: state {state} of {} (batches {} to {} are acknowledged)",
            history.len() - 1,
            state + 1,
            allowed.first
        ),
        Some(state) => format!("state {state} is found, but only {last} batches were begun"),
        None => {
            format!("the records are those of no prefix; allowed were states {} to {last}", allowed.first)
        }
    })
}
