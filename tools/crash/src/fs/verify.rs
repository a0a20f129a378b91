//! Opening a state, reading all of it, and comparing it with the model.

use std::collections::BTreeMap;
use std::sync::Arc;

use btfs::fs::{Cookie, Fs, Ino, Kind, ROOT};
use btfs::fsck;
use btfs::page::BLOCKS_PER_PAGE;
use btfs::storage::SimStorage;
use btfs::tree::{CheckReport, Options};

use super::content::Content;
use super::model::{Body, Item, Model, Times};
use crate::log_tail::superblock;
use crate::workload::Allowed;

/// A filesystem that was opened, and what it contains.
pub struct Opened {
    /// The filesystem.
    pub fs: Fs,
    /// What it contains.
    pub model: Model,
    /// What the structure checker counted, if it was asked.
    pub report: Option<CheckReport>,
}

/// How thoroughly a state is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Checks the image with fsck as it was left, the log replayed in memory.
    pub fsck: bool,
    /// Has fsck verify all contents as well, also of what has no name.
    pub scrub: bool,
    /// Checks the tree, and the free space, after opening.
    pub structure: bool,
    /// Opens it read-only before: not a byte is written, and the same is to be seen.
    pub read_only: bool,
}

/// Checks an image, opens it, and reads everything in it.
///
/// # Errors
/// What is wrong.
pub fn open(sim: &Arc<SimStorage>, options: &Options, look: Look) -> Result<Opened, String> {
    if look.fsck {
        check_image(sim, look.scrub)?;
    }
    let before = if look.read_only { Some(read_only(sim, options)?) } else { None };
    let fs = Fs::open(sim.clone(), options).map_err(|e| format!("opening: {e}"))?;
    let model = read(&fs)?;
    if let Some(before) = before.filter(|before| before.hash() != model.hash()) {
        return Err(format!(
            "opened read-only it is another state: {}",
            before.differences(&model).join("; ")
        ));
    }
    let report = if look.structure { Some(check_structure(&fs, sim)?) } else { None };
    Ok(Opened { fs, model, report })
}

/// Reads everything in an image that is opened read-only.
fn read_only(sim: &Arc<SimStorage>, options: &Options) -> Result<Model, String> {
    let operations = sim.operations();
    let options = Options { read_only: true, ..options.clone() };
    let fs = Fs::open(sim.clone(), &options).map_err(|e| format!("opening read-only: {e}"))?;
    let model = read(&fs).map_err(|e| format!("opened read-only: {e}"))?;
    drop(fs);
    if sim.operations() == operations { Ok(model) } else { Err("opened read-only, and written to".into()) }
}

/// Closes a filesystem in order, checks the image with fsck, and reads all of it again.
///
/// # Errors
/// What is wrong.
pub fn close(sim: &Arc<SimStorage>, options: &Options, opened: Opened) -> Result<(), String> {
    opened.fs.close().map_err(|e| format!("closing: {e}"))?;
    check_image(sim, true)?;
    let look = Look { structure: true, ..Look::default() };
    let again = open(sim, options, look)?;
    match again.model.hash() == opened.model.hash() && again.fs.tree().recovery().clean {
        true => Ok(()),
        false => Err(format!("closed and opened: {}", again.model.differences(&opened.model).join("; "))),
    }
}

/// Checks an image with fsck, which writes nothing.
///
/// # Errors
/// What fsck found.
pub fn check_image(sim: &Arc<SimStorage>, scrub: bool) -> Result<(), String> {
    let options = fsck::Options { scrub, ..fsck::Options::default() };
    let report = fsck::check(sim.clone(), &options).map_err(|e| format!("fsck: {e}"))?;
    if report.is_clean() {
        return Ok(());
    }
    let problems: Vec<String> = report.problems.iter().take(5).map(ToString::to_string).collect();
    Err(format!("fsck: {} problems: {}", report.left, problems.join("; ")))
}

/// Checks the tree of an open filesystem, and that all other blocks can be allocated.
fn check_structure(fs: &Fs, sim: &SimStorage) -> Result<CheckReport, String> {
    let report = fs.tree().check().map_err(|e| format!("structure check: {e}"))?;
    let superblock = superblock(&sim.image()).ok_or("no superblock is whole")?;
    let groups = superblock.group_count();
    let total: u64 = (0..groups).map(|g| u64::from(superblock.group_blocks(g))).sum();
    let pages = report.leaves + report.inner_pages + u64::from(groups);
    let data: u64 = report.data.iter().map(|r| u64::from(r.len)).sum();
    let free = total - pages * u64::from(BLOCKS_PER_PAGE) - data;
    if fs.tree().free_blocks() != free {
        return Err(format!("{free} blocks are free, {} can be allocated", fs.tree().free_blocks()));
    }
    Ok(report)
}

/// Reads everything that has a name.
///
/// # Errors
/// What cannot be read, or contradicts itself.
pub fn read(fs: &Fs) -> Result<Model, String> {
    let mut model = Model::default();
    let mut waiting = vec![(ROOT, Kind::Directory)];
    while let Some((ino, kind)) = waiting.pop() {
        if let Some(item) = model.get(ino) {
            if item.entries().is_some() {
                return Err(format!("directory {} has two names", ino.0));
            }
            continue;
        }
        let item = read_item(fs, ino, kind, &mut waiting).map_err(|e| format!("inode {}: {e}", ino.0))?;
        model.put(ino, item);
    }
    Ok(model)
}

fn read_item(fs: &Fs, ino: Ino, kind: Kind, waiting: &mut Vec<(Ino, Kind)>) -> Result<Item, String> {
    let attributes = fs.attributes(ino).map_err(|e| format!("attributes: {e}"))?;
    if (attributes.ino, attributes.kind) != (ino, kind) {
        return Err(format!("its name says {kind:?}, it says {:?}", attributes.kind));
    }
    let body = match kind {
        Kind::File => {
            let bytes = fs.read(ino, 0, attributes.size as usize).map_err(|e| format!("reading: {e}"))?;
            Body::File(Content::from_bytes(&bytes))
        }
        Kind::Symlink => Body::Symlink(fs.read_link(ino).map_err(|e| format!("target: {e}"))?),
        Kind::CharDevice if attributes.rdev == 0 => Body::Whiteout,
        _ => {
            let mut entries = BTreeMap::new();
            let mut twice = None;
            let each = |_, child, kind, name: &[u8]| {
                if name != b"." && name != b".." {
                    waiting.push((child, kind));
                    if entries.insert(name.to_vec(), child).is_some() {
                        twice = Some(name.to_vec());
                    }
                }
                true
            };
            fs.read_dir(ino, Cookie(0), each).map_err(|e| format!("names: {e}"))?;
            if let Some(name) = twice {
                return Err(format!("{:?} is there twice", String::from_utf8_lossy(&name)));
            }
            for (name, child) in &entries {
                if fs.lookup(ino, name).ok() != Some(*child) {
                    return Err(format!("{:?} is listed, and not found", String::from_utf8_lossy(name)));
                }
            }
            Body::Directory(entries, fs.parent(ino).map_err(|e| format!("parent: {e}"))?)
        }
    };
    let mut xattrs = BTreeMap::new();
    for name in fs.list_xattrs(ino).map_err(|e| format!("attribute names: {e}"))? {
        let value = fs.get_xattr(ino, &name).map_err(|e| format!("attribute: {e}"))?;
        xattrs.insert(name, value);
    }
    let times = Times {
        access: attributes.atime,
        contents: attributes.mtime,
        inode: attributes.ctime,
        birth: attributes.btime,
    };
    let item =
        Item { body, mode: attributes.mode, links: attributes.links, times, xattrs, fallocated: false };
    if item.size() != attributes.size {
        return Err(format!("{} bytes where it says {}", item.size(), attributes.size));
    }
    Ok(item)
}

/// The number of the state that is found, among those allowed.
///
/// # Errors
/// There is none; says which other state it is, or how it differs from the nearest.
pub fn find(found: &Model, history: &[Model], allowed: Allowed) -> Result<usize, String> {
    let last = allowed.last.min(history.len() - 1);
    // The latest one: what follows from it in the history is then the same whichever it was.
    if let Some(state) = (allowed.first..=last).rev().find(|&i| history[i].hash() == found.hash()) {
        return Ok(state);
    }
    let range = format!("allowed were states {} to {last}", allowed.first);
    if let Some(state) = history.iter().rposition(|m| m.hash() == found.hash()) {
        return Err(match state < allowed.first {
            true => format!("what was synced is lost: it is state {state}, {range}"),
            false => format!("it is state {state}, of a request that was not begun: {range}"),
        });
    }
    let differences = |i: usize| found.differences(&history[i]);
    let nearest = (allowed.first..=last).map(|i| (differences(i), i)).min_by_key(|(d, _)| d.len());
    let (differences, nearest) = nearest.unwrap_or_default();
    Err(format!(
        "it is the state after no request; {range}; unlike state {nearest}: {}",
        differences.join("; ")
    ))
}
