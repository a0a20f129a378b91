//! What a directory tree holds, written down so that two trees can be compared.

use crate::sys;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt::Write;
use std::fs::{self, File, Metadata};
use std::hash::Hasher;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A line per file: type, mode, owner, size, time, links, extended attributes, contents.
#[derive(Clone)]
pub struct Manifest {
    lines: BTreeMap<PathBuf, String>,
}

/// What is compared: a copy has other inode numbers and change times, a remounted filesystem has the same.
#[derive(Clone, Copy, PartialEq)]
enum Detail {
    Copy,
    Same,
}

impl Manifest {
    /// Of a tree whose copies shall be equal to it.
    pub fn of_copy(root: impl AsRef<Path>) -> Manifest {
        Manifest::read(root.as_ref(), Detail::Copy)
    }

    /// Of a tree that shall not change at all: inode numbers and change times too.
    pub fn of(root: impl AsRef<Path>) -> Manifest {
        Manifest::read(root.as_ref(), Detail::Same)
    }

    /// How many files there are, the root among them.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is nothing, not even a root.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The line of one file.
    pub fn line(&self, path: &str) -> &str {
        self.lines.get(Path::new(path)).unwrap_or_else(|| panic!("{path} is missing"))
    }

    /// Ends the case with all differences if there are any.
    pub fn must_equal(&self, other: &Manifest, what: &str) {
        let mut text = String::new();
        for (path, line) in &self.lines {
            match other.lines.get(path) {
                Some(found) if found == line => {}
                Some(found) => writeln!(text, "{path:?}\n  was {line}\n  is  {found}").expect("a string"),
                None => writeln!(text, "{path:?} is missing").expect("a string"),
            }
        }
        for path in other.lines.keys().filter(|path| !self.lines.contains_key(*path)) {
            writeln!(text, "{path:?} is new").expect("a string");
        }
        assert!(text.is_empty(), "{what}:\n{text}");
    }

    fn read(root: &Path, detail: Detail) -> Manifest {
        let mut manifest = Manifest { lines: BTreeMap::new() };
        let mut first_names = HashMap::new();
        let mut rest = vec![PathBuf::new()];
        while let Some(name) = rest.pop() {
            let path = root.join(&name);
            let facts = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            if facts.is_dir() {
                let mut names: Vec<OsString> = fs::read_dir(&path)
                    .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect())
                    .unwrap_or_else(|e| panic!("{path:?}: {e}"));
                // So that of several names of one file always the same one comes first.
                names.sort_by(|a, b| b.cmp(a));
                rest.extend(names.iter().map(|child| name.join(child)));
            }
            let mut line = describe(&path, &facts, detail);
            if !facts.is_dir() && facts.nlink() > 1 {
                let first = first_names.entry(facts.ino()).or_insert_with(|| name.clone());
                write!(line, " same-as={first:?}").expect("a string");
            }
            manifest.lines.insert(name, line);
        }
        manifest
    }
}

fn describe(path: &Path, facts: &Metadata, detail: Detail) -> String {
    let kind = facts.file_type();
    let mut line = format!(
        "{:o} {}:{} links={} mtime={}.{:09}",
        facts.mode(),
        facts.uid(),
        facts.gid(),
        facts.nlink(),
        facts.mtime(),
        facts.mtime_nsec()
    );
    if kind.is_file() {
        write!(line, " size={} contents={}", facts.len(), digest(path)).expect("a string");
    } else if kind.is_symlink() {
        write!(line, " to={:?}", fs::read_link(path).expect("readlink")).expect("a string");
    } else if kind.is_char_device() || kind.is_block_device() {
        write!(line, " device={:#x}", facts.rdev()).expect("a string");
    }
    for name in sys::list_xattrs(path).unwrap_or_else(|e| panic!("listxattr {path:?}: {e}")) {
        let value = sys::get_xattr(path, &name).unwrap_or_else(|e| panic!("getxattr {path:?} {name:?}: {e}"));
        write!(line, " {}={}", name.to_string_lossy(), value.escape_ascii()).expect("a string");
    }
    if detail == Detail::Same {
        write!(line, " inode={} ctime={}.{:09}", facts.ino(), facts.ctime(), facts.ctime_nsec())
            .expect("a string");
    }
    line
}

/// A digest of a file's contents, of the blocks that are not all zero: the same whether or not zeros are stored as holes.
pub fn digest(path: &Path) -> String {
    const BLOCK: u64 = 4096;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return format!("({error})"),
    };
    let mut hash = SipHasher13::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        at = match sys::seek(&file, at, libc::SEEK_DATA) {
            // To whole blocks, so that it does not matter where exactly a hole ends.
            Ok(data) => (data / BLOCK * BLOCK).max(at),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => break,
            Err(error) => panic!("SEEK_DATA {path:?}: {error}"),
        };
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) => panic!("reading {path:?} at {at}: {error}"),
            }
        }
        for (number, block) in buffer[..filled].chunks(BLOCK as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                hash.write_u64(at + number as u64 * BLOCK);
                hash.write(block);
            }
        }
        if filled < buffer.len() {
            break;
        }
        at += filled as u64;
    }
    format!("{:032x}", hash.finish128().as_u128())
}
