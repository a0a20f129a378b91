//! The model: what a filesystem contains, and a number that stands for it.
//!
//! Items are known by their inode numbers, which the filesystem chooses. The number of a state is the sum of the numbers of all
//! inodes that have a name.

use std::collections::BTreeMap;
use std::sync::Arc;

use btfs::fs::{Ino, Kind, ROOT, Time};

use super::content::Content;
use crate::contents::hash_bytes;
use crate::path::mix;

/// An inode.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it contains.
    pub body: Body,
    /// Permission bits.
    pub mode: u16,
    /// Links.
    pub links: u32,
    /// Times: of access, of the contents, of the inode, of birth.
    pub times: Times,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// It may have blocks that are allocated and not written. Not part of the state.
    pub fallocated: bool,
}

/// The times of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Of the last access.
    pub access: Time,
    /// Of the last change of the contents.
    pub contents: Time,
    /// Of the last change of the inode.
    pub inode: Time,
    /// Of birth.
    pub birth: Time,
}

/// What an inode contains.
#[derive(Clone, Debug)]
pub enum Body {
    /// Bytes.
    File(Content),
    /// Names, and the directory that it lies in.
    Directory(BTreeMap<Vec<u8>, Ino>, Ino),
    /// A target.
    Symlink(Vec<u8>),
    /// Nothing: what a rename has left.
    Whiteout,
}

impl Item {
    /// An inode with one name, or an empty directory.
    pub fn new(body: Body, mode: u16, now: Time) -> Item {
        let links = if matches!(body, Body::Directory(..)) { 2 } else { 1 };
        let times = Times { access: now, contents: now, inode: now, birth: now };
        Item { body, mode, links, times, xattrs: BTreeMap::new(), fallocated: false }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        match self.body {
            Body::File(_) => Kind::File,
            Body::Directory(..) => Kind::Directory,
            Body::Symlink(_) => Kind::Symlink,
            Body::Whiteout => Kind::CharDevice,
        }
    }

    /// The size that it says.
    pub fn size(&self) -> u64 {
        match &self.body {
            Body::File(content) => content.size(),
            Body::Directory(..) | Body::Whiteout => 0,
            Body::Symlink(target) => target.len() as u64,
        }
    }

    /// The contents, if it is a file.
    pub fn content(&self) -> Option<&Content> {
        match &self.body {
            Body::File(content) => Some(content),
            _ => None,
        }
    }

    /// The names, if it is a directory.
    pub fn entries(&self) -> Option<&BTreeMap<Vec<u8>, Ino>> {
        match &self.body {
            Body::Directory(entries, _) => Some(entries),
            _ => None,
        }
    }

    fn entries_mut(&mut self) -> Option<&mut BTreeMap<Vec<u8>, Ino>> {
        match &mut self.body {
            Body::Directory(entries, _) => Some(entries),
            _ => None,
        }
    }

    /// The contents and the inode change.
    pub fn touch(&mut self, now: Time) {
        (self.times.contents, self.times.inode) = (now, now);
    }

    fn hash(&self, ino: Ino) -> u64 {
        let mut bytes = Vec::with_capacity(256);
        let Times { access, contents, inode, birth } = self.times;
        bytes.extend_from_slice(&ino.0.to_le_bytes());
        bytes.extend_from_slice(&[self.kind() as u8]);
        bytes.extend_from_slice(&self.mode.to_le_bytes());
        bytes.extend_from_slice(&self.links.to_le_bytes());
        for time in [access, contents, inode, birth] {
            bytes.extend_from_slice(&time.seconds.to_le_bytes());
            bytes.extend_from_slice(&time.nanos.to_le_bytes());
        }
        let mut text = |part: &[u8]| {
            bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
            bytes.extend_from_slice(part);
        };
        match &self.body {
            Body::File(content) => text(&content.hash().to_le_bytes()),
            Body::Symlink(target) => text(target),
            Body::Whiteout => {}
            Body::Directory(entries, parent) => {
                text(&parent.0.to_le_bytes());
                for (name, child) in entries {
                    text(name);
                    text(&child.0.to_le_bytes());
                }
            }
        }
        for (name, value) in &self.xattrs {
            text(name);
            text(value);
        }
        mix(hash_bytes(&bytes, 5))
    }
}

#[derive(Clone, Debug)]
struct Sealed {
    item: Arc<Item>,
    hash: u64,
}

/// What a filesystem contains.
#[derive(Clone, Debug, Default)]
pub struct Model {
    items: BTreeMap<Ino, Sealed>,
    hash: u64,
}

impl Model {
    /// A filesystem that was made now.
    pub fn new(now: Time) -> Model {
        let mut model = Model::default();
        model.put(ROOT, Item::new(Body::Directory(BTreeMap::new(), ROOT), 0o755, now));
        model
    }

    /// The number that stands for this state.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many inodes there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// All inodes.
    pub fn items(&self) -> impl Iterator<Item = (Ino, &Item)> {
        self.items.iter().map(|(ino, sealed)| (*ino, &*sealed.item))
    }

    /// An inode.
    pub fn get(&self, ino: Ino) -> Option<&Item> {
        self.items.get(&ino).map(|sealed| &*sealed.item)
    }

    /// Puts an inode.
    pub fn put(&mut self, ino: Ino, item: Item) {
        let hash = item.hash(ino);
        self.hash = self.hash.wrapping_add(hash);
        self.forget(ino);
        self.items.insert(ino, Sealed { item: Arc::new(item), hash });
    }

    fn forget(&mut self, ino: Ino) {
        if let Some(old) = self.items.remove(&ino) {
            self.hash = self.hash.wrapping_sub(old.hash);
        }
    }

    /// Changes an inode, if there is one.
    pub fn change(&mut self, ino: Ino, change: impl FnOnce(&mut Item)) {
        if let Some(item) = self.get(ino) {
            let mut item = item.clone();
            change(&mut item);
            self.put(ino, item);
        }
    }

    /// The inode under a name.
    pub fn entry(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        self.get(parent)?.entries()?.get(name).copied()
    }

    /// The inode under a path, and the directory that its last name lies in, whether it is there or not.
    pub fn resolve<'p>(&self, path: &'p str) -> Option<(Ino, &'p [u8], Option<Ino>)> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let names = above.split('/').filter(|n| !n.is_empty());
        let parent = names.into_iter().try_fold(ROOT, |at, name| self.entry(at, name.as_bytes()))?;
        self.get(parent)?.entries()?;
        Some((parent, name.as_bytes(), self.entry(parent, name.as_bytes())))
    }

    fn is_directory(&self, ino: Ino) -> bool {
        self.get(ino).is_some_and(|item| item.entries().is_some())
    }

    fn is_above(&self, above: Ino, mut ino: Ino) -> bool {
        loop {
            match self.get(ino).map(|i| &i.body) {
                _ if ino == above => return true,
                Some(Body::Directory(_, parent)) if ino != ROOT => ino = *parent,
                _ => return false,
            }
        }
    }

    // -- names ----------------------------------------------------------------------------------------------------

    fn change_names(&mut self, dir: Ino, now: Time, change: impl FnOnce(&mut BTreeMap<Vec<u8>, Ino>)) {
        self.change(dir, |item| {
            item.touch(now);
            if let Some(entries) = item.entries_mut() {
                change(entries);
            }
        });
    }

    fn add_links(&mut self, ino: Ino, by: i32) {
        self.change(ino, |item| item.links = item.links.saturating_add_signed(by));
    }

    /// An inode is born.
    pub fn create(&mut self, parent: Ino, name: &[u8], ino: Ino, item: Item, now: Time) {
        if item.entries().is_some() {
            self.add_links(parent, 1);
        }
        self.put(ino, item);
        self.change_names(parent, now, |entries| _ = entries.insert(name.to_vec(), ino));
    }

    /// An inode gets another name; `None`: that must be refused.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Time) -> Option<Model> {
        if self.entry(parent, name).is_some() || self.is_directory(ino) {
            return None;
        }
        let mut after = self.clone();
        after.change(ino, |item| {
            item.links += 1;
            item.times.inode = now;
        });
        after.change_names(parent, now, |entries| _ = entries.insert(name.to_vec(), ino));
        Some(after)
    }

    /// One of an inode's names has gone.
    fn drop_link(&mut self, ino: Ino, now: Time) {
        let Some(item) = self.get(ino) else { return };
        if item.entries().is_some() || item.links == 1 {
            self.forget(ino);
        } else {
            self.change(ino, |item| {
                item.links -= 1;
                item.times.inode = now;
            });
        }
    }

    /// A name goes; `None`: that must be refused.
    pub fn remove(&self, parent: Ino, name: &[u8], directory: bool, now: Time) -> Option<Model> {
        let ino = self.entry(parent, name)?;
        let entries = self.get(ino)?.entries();
        if entries.is_some() != directory || entries.is_some_and(|e| !e.is_empty()) {
            return None;
        }
        let mut after = self.clone();
        if directory {
            after.add_links(parent, -1);
        }
        after.change_names(parent, now, |entries| _ = entries.remove(name));
        after.drop_link(ino, now);
        Some(after)
    }

    /// A name moves; `None`: that must be refused.
    pub fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), exchange: bool, now: Time) -> Option<Model> {
        let ino = self.entry(from.0, from.1)?;
        let other = self.entry(to.0, to.1);
        if exchange && other.is_none() || self.is_directory(ino) && self.is_above(ino, to.0) {
            return None;
        }
        if other == Some(ino) {
            return Some(self.clone());
        }
        if let Some(other) = other {
            if self.is_directory(other) && self.is_above(other, from.0) {
                return None;
            }
            let full = self.get(other)?.entries().is_some_and(|e| !e.is_empty());
            if !exchange && (self.is_directory(ino) != self.is_directory(other) || full) {
                return None;
            }
        }
        let mut after = self.clone();
        after.change_names(from.0, now, |entries| _ = entries.remove(from.1));
        after.change_names(to.0, now, |entries| _ = entries.insert(to.1.to_vec(), ino));
        after.arrive(ino, from.0, to.0, now);
        match other {
            Some(other) if exchange => {
                after.change_names(from.0, now, |entries| _ = entries.insert(from.1.to_vec(), other));
                after.arrive(other, to.0, from.0, now);
            }
            Some(other) => {
                if self.is_directory(other) {
                    after.add_links(to.0, -1);
                }
                after.drop_link(other, now);
            }
            None => {}
        }
        Some(after)
    }

    /// What has moved lies in another directory.
    fn arrive(&mut self, ino: Ino, from: Ino, to: Ino, now: Time) {
        if self.is_directory(ino) {
            self.add_links(from, -1);
            self.add_links(to, 1);
        }
        self.change(ino, |item| {
            item.times.inode = now;
            if let Body::Directory(_, parent) = &mut item.body {
                *parent = to;
            }
        });
    }

    // -- differences ----------------------------------------------------------------------------------------------

    /// How this state differs from the one that is expected.
    pub fn differences(&self, expected: &Model) -> Vec<String> {
        let mut found = Vec::new();
        for (ino, item) in self.items() {
            match expected.get(ino) {
                None => found.push(format!("inode {} should not be there: {:?}", label(ino), item.kind())),
                Some(other) => item.differences(other, &label(ino), &mut found),
            }
        }
        for (ino, item) in expected.items().filter(|(ino, _)| self.get(*ino).is_none()) {
            found.push(format!("inode {} is missing: {:?}", label(ino), item.kind()));
        }
        found
    }
}

fn label(ino: Ino) -> String {
    format!("{}.{}", ino.group(), ino.0 & 0xff_ffff)
}

impl Item {
    fn differences(&self, other: &Item, label: &str, found: &mut Vec<String>) {
        let mut differ = |what: &str, a: String, b: String| {
            if a != b {
                found.push(format!("inode {label}: {what} {a} instead of {b}"));
            }
        };
        differ("mode", format!("{:o}", self.mode), format!("{:o}", other.mode));
        differ("links", self.links.to_string(), other.links.to_string());
        differ("times", format!("{:?}", self.times), format!("{:?}", other.times));
        let xattrs = |item: &Item| {
            let show = |(name, value): (&Vec<u8>, &Vec<u8>)| {
                format!("{}={}+{:x}", String::from_utf8_lossy(name), value.len(), hash_bytes(value, 6))
            };
            item.xattrs.iter().map(show).collect::<Vec<_>>().join(" ")
        };
        differ("attributes", xattrs(self), xattrs(other));
        match (&self.body, &other.body) {
            (Body::File(a), Body::File(b)) => {
                let difference = a.difference(b);
                found.extend(difference.map(|d| format!("inode {label}: contents {d}")));
            }
            (Body::Directory(a, up), Body::Directory(b, other_up)) => {
                differ("parent", up.0.to_string(), other_up.0.to_string());
                let names = |entries: &BTreeMap<Vec<u8>, Ino>| {
                    let show = |(name, ino): (&Vec<u8>, &Ino)| {
                        format!("{}={}", String::from_utf8_lossy(name), self::label(*ino))
                    };
                    entries.iter().map(show).collect::<Vec<_>>().join(" ")
                };
                differ("names", names(a), names(b));
            }
            (Body::Symlink(a), Body::Symlink(b)) => {
                differ("target", format!("{a:?}"), format!("{b:?}"));
            }
            (Body::Whiteout, Body::Whiteout) => {}
            _ => differ("kind", format!("{:?}", self.kind()), format!("{:?}", other.kind())),
        }
    }
}
