//! Paths of inodes, for messages about damage. They are found by looking, and may have changed when they are read.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Fs;
use super::format::*;
use crate::escape::escaped;

/// Components of a path that is printed.
const DEPTH_SHOWN: usize = 64;

impl Fs {
    /// A path of the inode from the root on, as far as it can be found: `…` stands for what cannot.
    pub fn path_of(&self, ino: Ino) -> String {
        let mut components = Vec::new();
        let mut at = ino;
        while at != ROOT && components.len() < DEPTH_SHOWN {
            let parent = self.parent(at).ok().or_else(|| self.node(at).seen_in());
            let Some((parent, name)) = parent.and_then(|p| Some((p, self.name_in(p, at)?))) else {
                components.push("…".to_owned());
                break;
            };
            components.push(name);
            at = parent;
        }
        if at != ROOT && components.len() == DEPTH_SHOWN {
            components.push("…".to_owned());
        }
        components.reverse();
        let path = components.join("/");
        if path.starts_with('…') { path } else { format!("/{path}") }
    }

    /// Paths of these inodes, by a name of each. Two scans of all names and inodes: other files do not know where they lie. What
    /// cannot be read, or is not reached before `stop` is set, is missing.
    pub(super) fn search_paths(&self, inos: &[Ino], stop: &AtomicBool) -> HashMap<Ino, String> {
        let end = xattr_key(Ino(0), 0);
        let mut names: HashMap<Ino, Option<(u64, Vec<u8>)>> = inos.iter().map(|ino| (*ino, None)).collect();
        let mut left = names.len();
        let scanned = self.tree.scan(&[], &end, |key, record| {
            if let Some(AnyKey::Entry(group, _)) = AnyKey::parse(key)
                && let Some(ino) = record.first_chunk().map(|ino| Ino(u64::from_be_bytes(*ino)))
                && let Some(name @ None) = names.get_mut(&ino)
            {
                *name = record.get(ENTRY_HEAD..).map(|name| (group, name.to_vec()));
                left -= usize::from(name.is_some());
            }
            if left == 0 || stop.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        if let Err(e) = scanned {
            log::debug!("looking for names: {e}");
        }
        // Whose entries these are.
        let mut directories: HashMap<u64, Option<Ino>> =
            names.values().flatten().map(|(group, _)| (*group, None)).collect();
        let mut left = directories.len();
        let scanned = self.tree.scan(&[], &end, |key, record| {
            if let Some(ino) = inode_of_key(key)
                && record.first() == Some(&(Kind::Directory as u8))
                && let Ok(Inode { dir: Some(dir), .. }) = Inode::decode(ino, record)
                && let Some(directory @ None) = directories.get_mut(&dir.entries)
            {
                *directory = Some(ino);
                left -= 1;
            }
            if left == 0 || stop.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        if let Err(e) = scanned {
            log::debug!("looking for directories: {e}");
        }
        let path = |(ino, found): (Ino, Option<(u64, Vec<u8>)>)| {
            let (group, name) = found?;
            let directory = match directories.get(&group) {
                Some(Some(ino)) => self.path_of(*ino),
                _ => "…".to_owned(),
            };
            Some((ino, format!("{}/{}", directory.trim_end_matches('/'), escaped(&name))))
        };
        names.into_iter().filter_map(path).collect()
    }

    /// The name that a directory has for an inode.
    fn name_in(&self, parent: Ino, ino: Ino) -> Option<String> {
        let mut found = None;
        let looked = self.read_dir(parent, Cookie(2), |_, entry, _, name| {
            if entry == ino {
                found = Some(escaped(name));
            }
            found.is_none()
        });
        looked.ok().and(found)
    }
}
