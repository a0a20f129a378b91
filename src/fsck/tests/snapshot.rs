//! All that a user can see of a filesystem, to be compared.

use std::collections::BTreeMap;

use crate::fs::{Attributes, Cookie, Fs, FsError, Ino, Kind, ROOT};
use std::sync::Arc;

/// What stands under one name.
#[derive(Clone, PartialEq, Debug)]
pub struct Seen {
    pub attributes: Attributes,
    /// A file's contents, a symlink's target, a directory's parent.
    pub contents: Arc<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Everything, by path.
pub type Snapshot = BTreeMap<Vec<u8>, Arc<Seen>>;

/// Reads everything. What is as in `before` takes no memory again.
pub fn snapshot(fs: &Fs, before: Option<&Snapshot>) -> Result<Snapshot, FsError> {
    let mut found = Snapshot::new();
    // Hostile images may have cycles: nothing here is deeper.
    walk(fs, ROOT, Vec::new(), 8, before, &mut found)?;
    Ok(found)
}

fn walk(
    fs: &Fs,
    ino: Ino,
    path: Vec<u8>,
    depth: u32,
    before: Option<&Snapshot>,
    found: &mut Snapshot,
) -> Result<(), FsError> {
    let seen = see(fs, ino)?;
    let is_dir = seen.attributes.kind == Kind::Directory;
    let old = before.and_then(|before| before.get(&path)).filter(|old| ***old == seen);
    found.insert(path.clone(), old.cloned().unwrap_or_else(|| Arc::new(seen)));
    if !is_dir || depth == 0 {
        return Ok(());
    }
    let mut entries = Vec::new();
    fs.read_dir(ino, Cookie(2), |_, ino, kind, name| {
        entries.push((ino, kind, name.to_vec()));
        entries.len() < 10_000
    })?;
    for (inner, kind, name) in entries {
        let looked_up = fs.lookup(ino, &name)?;
        let path = [&path[..], b"/", &name].concat();
        walk(fs, inner, path.clone(), depth - 1, before, found)?;
        if looked_up != inner || found[&path].attributes.kind != kind {
            // Differs from what any sound image gives.
            found.insert([&path[..], b" is another one when looked up"].concat(), found[&path].clone());
        }
    }
    Ok(())
}

fn see(fs: &Fs, ino: Ino) -> Result<Seen, FsError> {
    let attributes = fs.attributes(ino)?;
    let contents = match attributes.kind {
        Kind::File => fs.read(ino, 0, attributes.size.min(4 << 20) as usize)?,
        Kind::Symlink => fs.read_link(ino)?,
        Kind::Directory => fs.parent(ino)?.0.to_be_bytes().to_vec(),
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    for name in fs.list_xattrs(ino)? {
        let value = fs.get_xattr(ino, &name)?;
        xattrs.insert(name, value);
    }
    Ok(Seen { attributes, contents: Arc::new(contents), xattrs })
}

/// Whether `found` is what a change from `a` to `b` that ended half-way may leave: other names are as they were, each byte of
/// a file is one of either side, and a new file may be empty.
pub fn is_between(a: &Snapshot, b: &Snapshot, found: &Snapshot) -> bool {
    let paths = a.keys().chain(b.keys()).chain(found.keys());
    paths.into_iter().all(|path| {
        let (a, b, found) = (a.get(path), b.get(path), found.get(path));
        if found == a || found == b {
            return true;
        }
        let (Some(b), Some(found)) = (b, found) else { return false };
        let nothing = Arc::new(Vec::new());
        let (x, y) = (a.map_or(&nothing, |a| &a.contents), &b.contents);
        let possible =
            |(at, byte): (usize, &u8)| [x, y].iter().any(|c| c.get(at).copied().unwrap_or(0) == *byte);
        match found.attributes.kind {
            _ if a == Some(b) => false,
            Kind::Directory => found.contents == b.contents,
            Kind::File => {
                (x.len().min(y.len())..=x.len().max(y.len())).contains(&found.contents.len())
                    && found.contents.iter().enumerate().all(possible)
            }
            _ => false,
        }
    })
}

/// Where two differ, for messages.
pub fn difference(a: &Snapshot, b: &Snapshot) -> String {
    let paths: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differ = paths.into_iter().filter(|path| a.get(*path) != b.get(*path));
    let say = |seen: Option<&Arc<Seen>>| {
        seen.map_or("absent".to_owned(), |s| {
            let sum = crc32fast::hash(&s.contents);
            format!(
                "{:?}, {} bytes with CRC {sum:08x}, {} attributes",
                s.attributes,
                s.contents.len(),
                s.xattrs.len()
            )
        })
    };
    let lines = differ
        .take(5)
        .map(|p| format!("{}: {} <> {}\n", String::from_utf8_lossy(p), say(a.get(p)), say(b.get(p))));
    lines.collect()
}
