//! Whether what recovery made of an image is what it must be.

use std::sync::Arc;

use btfs::page::{BLOCK_SIZE, BLOCKS_PER_PAGE};
use btfs::storage::SimStorage;
use btfs::tree::{CheckReport, Options, Tree};
use btfs::{BlockNo, Run};

use crate::contents::{Contents, DataRecord};
use crate::log_tail::superblock;
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

/// Opens an image, checks the tree's structure, reads all records, and all data that they name; if `both_ways`, the
/// records also backwards and one by one.
///
/// # Errors
/// What is wrong.
pub fn open(sim: &Arc<SimStorage>, options: &Options, both_ways: bool) -> Result<Opened, String> {
    let tree = Tree::open(sim.clone(), options).map_err(|e| format!("opening: {e}"))?;
    let contents = read(&tree)?;
    let report = check_structure(&tree, sim, &contents)?;
    for data in contents.data_records() {
        check_data(&tree, data)?;
    }
    if both_ways {
        read_backwards(&tree, &contents)?;
    }
    Ok(Opened { tree, contents, report })
}

/// Checks an open tree, of which no blocks are reserved, against what it must contain.
///
/// # Errors
/// What is wrong.
pub fn check(tree: &Tree, sim: &SimStorage, contents: &Contents) -> Result<(), String> {
    check_structure(tree, sim, contents)?;
    let found = read(tree)?;
    if found.hash() != contents.hash() {
        return Err(format!("{} records are not the {} that were put", found.len(), contents.len()));
    }
    contents.data_records().try_for_each(|data| check_data(tree, data))
}

fn check_structure(tree: &Tree, sim: &SimStorage, contents: &Contents) -> Result<CheckReport, String> {
    let report = tree.check().map_err(|e| format!("structure check: {e}"))?;
    if contents.len() as u64 != report.records {
        return Err(format!("{} records counted, {} found by a scan", report.records, contents.len()));
    }
    let runs = contents.runs().ok_or("two records name the same blocks")?;
    if runs != joined(&report.data) {
        return Err(format!("blocks in use: {:?}, blocks that records name: {runs:?}", report.data));
    }
    let superblock = superblock(&sim.image()).ok_or("no superblock is whole")?;
    let groups = superblock.group_count();
    let total: u64 = (0..groups).map(|g| u64::from(superblock.group_blocks(g))).sum();
    let pages = report.leaves + report.inner_pages + u64::from(groups);
    let data: u64 = runs.iter().map(|r| u64::from(r.len)).sum();
    let free = total - pages * u64::from(BLOCKS_PER_PAGE) - data;
    if tree.free_blocks() != free {
        return Err(format!("{} blocks are free, {} can be allocated", free, tree.free_blocks()));
    }
    Ok(report)
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

fn read_backwards(tree: &Tree, contents: &Contents) -> Result<(), String> {
    let mut backwards = Contents::default();
    let mut cursor = tree.cursor();
    cursor.seek_end().map_err(|e| format!("seek to the end: {e}"))?;
    while cursor.prev().map_err(|e| format!("backward scan: {e}"))? {
        backwards.put(cursor.key(), cursor.value());
        let got = tree.get_with(cursor.key(), |v| v == cursor.value()).map_err(|e| format!("get: {e}"))?;
        if got != Some(true) {
            return Err(format!("get of key {:?} does not find what a scan finds", cursor.key()));
        }
    }
    if backwards.hash() != contents.hash() || backwards.len() != contents.len() {
        return Err(format!("{} records backwards, {} forwards", backwards.len(), contents.len()));
    }
    Ok(())
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
