//! Paths of inodes, for messages about damage. They are found by looking, and may have changed when they are read.

use super::Fs;
use super::format::*;

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

    /// The name that a directory has for an inode.
    fn name_in(&self, parent: Ino, ino: Ino) -> Option<String> {
        let mut found = None;
        let looked = self.read_dir(parent, Cookie(2), |_, entry, _, name| {
            if entry == ino {
                found = Some(String::from_utf8_lossy(name).into_owned());
            }
            found.is_none()
        });
        looked.ok().and(found)
    }
}
