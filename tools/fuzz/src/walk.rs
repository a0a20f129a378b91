//! Looking at everything in a filesystem, and working on it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use btfs::fs::{
    Cookie, Fallocate, Fs, FsError, Ino, Kind, New, ROOT, RenameMode, Scrub, SetAttributes, SetXattr,
};

use crate::make::{ME, acl, noise};

/// Names that a walk looks at.
const NAMES_MAX: usize = 3000;
/// Bytes of contents that a walk reads.
const BYTES_MAX: usize = 4 << 20;

/// What was met.
#[derive(Default)]
pub struct Met {
    /// Damage of what the checker is to repair: the first.
    pub damage: Option<String>,
    /// Contents of files with a wrong checksum: only a repair that reads them gives them up.
    pub rotten: bool,
}

impl Met {
    /// Notes an error that says that something is damaged, and gives back what there is.
    fn note<T>(&mut self, what: &str, result: Result<T, FsError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(FsError::Engine(e)) => {
                self.damage.get_or_insert(format!("{what}: {e}"));
                None
            }
            Err(_) => None,
        }
    }

    /// The same for what reads contents of files that were there before.
    fn note_contents<T>(&mut self, result: Result<T, FsError>) -> Option<T> {
        match result {
            Err(FsError::Contents(e)) if e.to_string().contains("checksum") => {
                self.rotten = true;
                None
            }
            // What a repair has given up says so for ever.
            Err(FsError::Contents(e)) if e.to_string().contains("were lost") => None,
            other => self.note("contents", other),
        }
    }

    /// Notes what no sound image gives.
    fn wrong(&mut self, what: String) {
        self.damage.get_or_insert(what);
    }
}

/// What a walk found.
#[derive(Default)]
pub struct Found {
    /// Names: directory, name, inode, kind.
    pub names: Vec<(Ino, Vec<u8>, Ino, Kind)>,
}

/// Looks at everything that can be reached by names.
pub fn walk(fs: &Fs, met: &mut Met) -> Found {
    let mut found = Found::default();
    let mut seen = HashSet::from([ROOT]);
    let mut waiting = VecDeque::from([ROOT]);
    let mut budget = BYTES_MAX;
    while let Some(ino) = waiting.pop_front() {
        let Some(attributes) = met.note("attributes", fs.attributes(ino)) else {
            met.wrong(format!("inode {} is not there", ino.0));
            continue;
        };
        xattrs(fs, ino, met);
        match attributes.kind {
            Kind::File => read(fs, ino, attributes.size, &mut budget, met),
            Kind::Symlink => drop(met.note("target", fs.read_link(ino))),
            Kind::Directory => {
                let from = found.names.len();
                directory(fs, ino, &mut found, met);
                for (_, _, inner, kind) in &found.names[from..] {
                    // A second name of a directory is wrong, and could make the walk endless.
                    if seen.insert(*inner) {
                        waiting.push_back(*inner);
                    } else if *kind == Kind::Directory {
                        met.wrong(format!("directory {} has two names", inner.0));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

fn directory(fs: &Fs, ino: Ino, found: &mut Found, met: &mut Met) {
    met.note("parent", fs.parent(ino));
    let mut entries = Vec::new();
    let read = fs.read_dir(ino, Cookie(2), |_, inner, kind, name| {
        entries.push((ino, name.to_vec(), inner, kind));
        found.names.len() + entries.len() < NAMES_MAX
    });
    met.note("entries", read);
    let mut plus = Vec::new();
    let read = fs.read_dir_plus(ino, Cookie(2), 64, |_, attributes, _| {
        plus.push(attributes.ino);
        true
    });
    met.note("entries with attributes", read);
    for inner in plus {
        met.note("release", fs.release(inner, 1));
    }
    for (_, name, inner, kind) in &entries {
        match met.note("lookup", fs.lookup(ino, name)) {
            Some(other) if other != *inner => met.wrong(format!("name {:?} leads to two inodes", name)),
            Some(_) => {}
            None => met.wrong(format!("name {:?} is listed and not found", name)),
        }
        if let Some(attributes) = met.note("attributes", fs.attributes(*inner))
            && attributes.kind != *kind
        {
            met.wrong(format!("name {:?} says another kind", name));
        }
    }
    found.names.append(&mut entries);
}

fn xattrs(fs: &Fs, ino: Ino, met: &mut Met) {
    for name in met.note("attributes' names", fs.list_xattrs(ino)).unwrap_or_default() {
        met.note("an attribute", fs.get_xattr(ino, &name));
    }
}

fn read(fs: &Fs, ino: Ino, size: u64, budget: &mut usize, met: &mut Met) {
    let end = size.saturating_sub(40_000);
    for offset in [0, end] {
        if *budget >= 80_000 {
            let bytes = met.note_contents(fs.read(ino, offset, 80_000)).unwrap_or_default();
            *budget -= bytes.len();
        }
    }
    let mut at = 0;
    for _ in 0..40 {
        let Some(Some(data)) = met.note("seek", fs.seek(ino, at, true)) else { break };
        if *budget >= 5000 {
            met.note_contents(fs.read(ino, data, 5000));
            *budget -= 5000;
        }
        let Some(Some(hole)) = met.note("seek", fs.seek(ino, data, false)) else { break };
        if hole <= at {
            break;
        }
        at = hole;
    }
}

/// A file that was written and synced: its name, and what it is to hold.
type Written = (Vec<u8>, Arc<Vec<u8>>);

/// Works on a filesystem: makes, changes, and deletes. What was synced at the end, if that worked.
pub fn work(fs: &Fs, found: &Found, met: &mut Met) -> Vec<Written> {
    let mut written = Vec::new();
    for (i, len) in [100, 5000, 70_000].into_iter().enumerate() {
        let name = format!("new {i}").into_bytes();
        let bytes = noise(i as u64 + 50, len);
        let Some(ino) = create(fs, ROOT, &name, New::File, met) else { continue };
        // A forged name may have led to a number that nobody had yet: what is done by that name is done to the new file.
        let named = found.names.iter().any(|(_, _, inner, _)| *inner == ino);
        if met.note("a write", fs.write(ino, 0, &bytes, &ME)).is_some() && !named {
            written.push((name, Arc::new(bytes)));
        }
    }
    if let Some(dir) = create(fs, ROOT, b"new directory", New::Directory, met) {
        for n in 0..3 {
            create(fs, dir, format!("{n}").as_bytes(), New::Symlink(&[b's'; 2000]), met);
        }
        let moved = fs.rename(ROOT, b"new 1", dir, b"moved", RenameMode::NoReplace, &ME);
        if met.note("a rename", moved).is_some() {
            written.retain(|(name, _)| name != b"new 1");
        }
    }
    some_of(found, Kind::File).for_each(|(dir, name, ino)| change_file(fs, dir, name, ino, met));
    some_of(found, Kind::Directory).for_each(|(dir, name, ino)| change_directory(fs, dir, name, ino, met));
    for kind in [Kind::Symlink, Kind::Fifo, Kind::File] {
        for (dir, name, _) in some_of(found, kind) {
            met.note_contents(fs.unlink(dir, name, &ME));
        }
    }
    fs.scrub(u64::MAX, &Scrub::default());
    fs.usage();
    // In an engine that could not write everything nothing is sure.
    let synced = met.note("a sync", fs.sync()).is_some();
    let checkpoint = fs.tree().checkpoint().map_err(FsError::from);
    if !synced || met.note("a checkpoint", checkpoint).is_none() {
        written.clear();
    }
    written
}

/// Up to five inodes of a kind, by their names.
fn some_of(found: &Found, kind: Kind) -> impl Iterator<Item = (Ino, &[u8], Ino)> {
    let of_kind = found.names.iter().filter(move |name| name.3 == kind);
    of_kind.map(|(dir, name, ino, _)| (*dir, name.as_slice(), *ino)).take(5)
}

fn create(fs: &Fs, dir: Ino, name: &[u8], new: New<'_>, met: &mut Met) -> Option<Ino> {
    let ino = met.note("a create", fs.create(dir, name, new, 0o755, 0, &ME))?.ino;
    met.note("a release", fs.release(ino, 1));
    Some(ino)
}

fn change_file(fs: &Fs, dir: Ino, name: &[u8], ino: Ino, met: &mut Met) {
    let Some(attributes) = met.note("attributes", fs.attributes(ino)) else { return };
    let size = attributes.size;
    met.note_contents(fs.write(ino, size / 2, &noise(7, 6000), &ME));
    met.note_contents(fs.write(ino, size, &noise(8, 300), &ME));
    met.note_contents(fs.fallocate(ino, 4096, 10_000, Fallocate::PunchHole, &ME));
    met.note_contents(fs.fallocate(ino, 9000, 20_000, Fallocate::ZeroRange, &ME));
    met.note_contents(fs.fallocate(ino, 0, 50_000, Fallocate::KeepSize, &ME));
    if let Some(to) = create(fs, dir, b"a copy", New::File, met) {
        met.note_contents(fs.copy_range(ino, 0, to, 4096, 30_000, &ME));
        met.note_contents(fs.copy_range(to, 4096, ino, 65_536, 8192, &ME));
    }
    let cut = SetAttributes { size: Some(size / 3), mode: Some(0o640), ..SetAttributes::default() };
    met.note_contents(fs.set_attributes(ino, &cut, &ME));
    change_xattrs(fs, ino, met);
    if met.note("a link", fs.link(ino, ROOT, b"one more name", &ME)).is_some() {
        met.note("a release", fs.release(ino, 1));
    }
    met.note("a rename", fs.rename(dir, name, ROOT, b"another name", RenameMode::Exchange, &ME));
    met.note_contents(fs.rename(ROOT, b"one more name", dir, b"another name", RenameMode::Replace, &ME));
    fs.retain(ino);
    met.note_contents(fs.unlink(dir, b"a copy", &ME));
    met.note_contents(fs.release(ino, 1));
}

fn change_directory(fs: &Fs, dir: Ino, name: &[u8], ino: Ino, met: &mut Met) {
    create(fs, ino, b"inner file", New::File, met);
    create(fs, ino, b"inner directory", New::Directory, met);
    change_xattrs(fs, ino, met);
    met.note("an ACL", fs.set_xattr(ino, b"system.posix_acl_default", &acl(), SetXattr::Any, &ME));
    create(fs, ino, b"heir", New::File, met);
    met.note("a rename", fs.rename(dir, name, ROOT, b"a directory", RenameMode::NoReplace, &ME));
    met.note("a rename", fs.rename(ROOT, b"new directory", ino, b"below", RenameMode::Replace, &ME));
    met.note("a removal", fs.rmdir(ino, b"inner directory", &ME));
    met.note("a removal", fs.rmdir(ROOT, b"a directory", &ME));
}

fn change_xattrs(fs: &Fs, ino: Ino, met: &mut Met) {
    met.note("an attribute", fs.set_xattr(ino, b"user.small", b"x", SetXattr::Any, &ME));
    met.note("an attribute", fs.set_xattr(ino, b"user.new", &noise(9, 9000), SetXattr::Any, &ME));
    met.note("an attribute", fs.set_xattr(ino, b"system.posix_acl_access", &acl(), SetXattr::Any, &ME));
    met.note("an attribute", fs.remove_xattr(ino, b"user.large", &ME));
    let change = SetAttributes { mode: Some(0o4711), uid: Some(3), ..SetAttributes::default() };
    met.note("attributes", fs.set_attributes(ino, &change, &ME));
}

/// What was written is read back as it was, or not at all, which counts as damage: the name may have been taken away by what was done
/// to forged directories.
///
/// # Errors
/// Something else was read.
pub fn read_back(fs: &Fs, written: &[Written], met: &mut Met) -> Result<(), String> {
    for (name, bytes) in written {
        let read = fs.lookup(ROOT, name).and_then(|ino| Ok((ino, fs.read(ino, 0, bytes.len() + 1)?)));
        let Ok((ino, read)) = read else {
            met.damage.get_or_insert_with(|| format!("{} is gone", name.escape_ascii()));
            continue;
        };
        if read != **bytes {
            let same = read.iter().zip(bytes.iter()).take_while(|(a, b)| a == b).count();
            return Err(format!(
                "{} (inode {}) has {} bytes, of which the first {same} are what was written",
                name.escape_ascii(),
                ino.0,
                read.len()
            ));
        }
    }
    Ok(())
}
