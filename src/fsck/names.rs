//! The second pass over the records: names, and what must agree with them. Then parents, links, orphans and counters.

use super::fix::Fix;
use super::image::Image;
use super::inodes::{Inodes, Slot};
use super::report::{Findings, Place, ProblemKind as Problem, Report, counted};
use super::structure::Structure;
use super::{Options, Result, Stage, TELL_RECORDS};
use crate::fs::format::*;
use crate::fs::name_hash;

/// What the names say of one directory. One for each of [`Inodes::dirs`].
#[derive(Clone, Copy, Default)]
struct Seen {
    entries: u64,
    /// Entries that name directories.
    subdirs: u32,
    /// The directory in which its own name lies, 0 for none, and where there.
    parent: u64,
    cookie: u64,
    /// Whether it is reached from the root: 0 not known, 1 on the way, 2 yes, 3 no.
    reached: u8,
}

struct Names<'a> {
    image: &'a Image,
    inodes: &'a mut Inodes,
    findings: &'a mut Findings,
    report: &'a mut Report,
    /// Positions in `inodes.dirs`, ascending by entries group.
    by_group: Vec<u32>,
    seen: Vec<Seen>,
    /// The group of the entries at hand, and the directory that it belongs to.
    group: Option<(u64, Option<usize>)>,
    /// The last group that belongs to no directory.
    stray: Option<u64>,
    /// Names with the same hash.
    hash: u64,
    same_hash: Vec<Vec<u8>>,
}

/// In place of the number of names: the inode is given a new one.
const RECONNECTED: u32 = u32::MAX;
/// Added to the number of names: there is one that lies in no directory.
const STRAY: u32 = 1 << 31;

/// Runs the pass.
pub(super) fn check_names(
    image: &Image,
    structure: &Structure,
    inodes: &mut Inodes,
    findings: &mut Findings,
    report: &mut Report,
    options: &Options<'_>,
) -> Result<()> {
    let seen = vec![Seen::default(); inodes.dirs.len()];
    let by_group = groups(inodes, findings);
    let mut names = Names {
        image,
        inodes,
        findings,
        report,
        by_group,
        seen,
        group: None,
        stray: None,
        hash: 0,
        same_hash: Vec::new(),
    };
    let mut records = structure.records(image, TAG_GROUP)?;
    let mut n = 0u64;
    while records.next()? {
        if let Some(AnyKey::Entry(group, cookie)) = AnyKey::parse(records.key()) {
            names.entry(group, cookie, records.key(), records.value());
            n += 1;
            if n.is_multiple_of(TELL_RECORDS) {
                options.tell(Stage::Names, n, 0);
            }
        }
    }
    names.root();
    names.connections();
    names.directories();
    names.links();
    names.counters();
    Ok(())
}

/// Directories by their entries' group; two must not have the same.
fn groups(inodes: &Inodes, findings: &mut Findings) -> Vec<u32> {
    let dirs = &inodes.dirs;
    let mut by_births: Vec<u32> = (0..dirs.len() as u32).collect();
    // Of two with the same group the first one keeps it, in every run.
    by_births.sort_unstable_by_key(|i| (dirs[*i as usize].info.births, *i));
    for pair in by_births.windows(2) {
        let (a, b) = (&dirs[pair[0] as usize], &dirs[pair[1] as usize]);
        if a.info.births == b.info.births {
            let what = format!("inodes are born in group {} by inode {}, too", a.info.births, a.ino.0);
            findings.add(Problem::DirectoryGroup, Place::ino(b.ino.0), what, vec![Fix::NewBirths(b.ino)]);
        }
    }
    let mut by_group = by_births;
    by_group.sort_unstable_by_key(|i| (dirs[*i as usize].info.entries, *i));
    for pair in by_group.windows(2) {
        let (a, b) = (&dirs[pair[0] as usize], &dirs[pair[1] as usize]);
        if a.info.entries == b.info.entries {
            let what =
                format!("its entries lie in group {}, like those of inode {}", a.info.entries, a.ino.0);
            findings.add(Problem::DirectoryGroup, Place::ino(b.ino.0), what, vec![Fix::NewEntries(b.ino)]);
        }
    }
    by_group
}

impl Names<'_> {
    fn dir_of_group(&mut self, group: u64) -> Option<usize> {
        if let Some((known, dir)) = self.group
            && known == group
        {
            return dir;
        }
        let dirs = &self.inodes.dirs;
        let at = self.by_group.partition_point(|i| dirs[*i as usize].info.entries < group);
        let found = self.by_group.get(at).map(|i| *i as usize).filter(|i| dirs[*i].info.entries == group);
        self.group = Some((group, found));
        self.hash = 0;
        self.same_hash.clear();
        found
    }

    fn entry(&mut self, group: u64, cookie: Cookie, key: &[u8], value: &[u8]) {
        self.report.names += 1;
        let delete = || vec![Fix::DeleteName(key.to_vec())];
        let owner = self.dir_of_group(group);
        let dir_ino = owner.map_or(Ino(0), |d| self.inodes.dirs[d].ino);
        let place = |ino: Ino| if ino.0 == 0 { Place::image() } else { Place::ino(ino.0) };
        let entry = match Entry::decode(dir_ino, value) {
            Ok(entry) => entry,
            Err(e) => return self.findings.add(Problem::Record, place(dir_ino), e, delete()),
        };
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let Some(dir) = owner else {
            let what =
                format!("name {name:?} of inode {} lies in group {group} of no directory", entry.ino.0);
            let fixes = match self.stray {
                // No directory can have it.
                _ if group >= GROUP_MAX => delete(),
                Some(stray) if stray == group => vec![Fix::Accept],
                _ => vec![Fix::Adopt(group)],
            };
            if group < GROUP_MAX {
                self.stray = Some(group);
                self.count_stray(entry.ino);
            }
            return self.findings.add(Problem::EntryStray, Place::ino(entry.ino.0), what, fixes);
        };
        if place_hash(cookie.0) != self.hash {
            self.hash = place_hash(cookie.0);
            self.same_hash.clear();
        }
        if self.same_hash.contains(&entry.name) {
            let what = format!("name {name:?} twice");
            return self.findings.add(Problem::EntryTwice, place(dir_ino), what, delete());
        }
        let Some(slot) = self.inodes.find(entry.ino) else {
            let what = format!("name {name:?} leads to inode {}, which does not exist", entry.ino.0);
            return self.findings.add(Problem::EntryDangling, place(dir_ino), what, delete());
        };
        if !self.image.seed_lost
            && name_hash(&self.image.superblock.hash_seed, &entry.name) != place_hash(cookie.0)
        {
            let what = format!("name {name:?} is not at the place of its hash");
            self.findings.add(Problem::EntryHash, place(dir_ino), what, vec![Fix::MoveEntry(key.to_vec())]);
        }
        let kind = self.inodes.slots[slot].kind;
        if kind != entry.kind {
            let what = format!("name {name:?} says {:?}, its inode {:?}", entry.kind, kind);
            let fixes = vec![Fix::EntryKind(key.to_vec(), kind)];
            self.findings.add(Problem::EntryKind, Place::ino(entry.ino.0), what, fixes);
        }
        self.count(dir, slot, cookie, &entry, &name, key);
    }

    /// A name that lies in no directory will lie in one when its group has been adopted: its inode needs no other.
    fn count_stray(&mut self, ino: Ino) {
        match self.inodes.find(ino) {
            Some(slot) => self.inodes.names[slot] |= STRAY,
            // Then it leads nowhere, and goes.
            None => self.findings.names_later += 1,
        }
    }

    /// Counts an entry that leads somewhere.
    fn count(&mut self, dir: usize, slot: usize, cookie: Cookie, entry: &Entry, name: &str, key: &[u8]) {
        if self.inodes.slots[slot].kind == Kind::Directory {
            let Some(child) = self.inodes.find_dir(entry.ino) else { return };
            if self.is_another_name(dir, slot, child, entry, name, key) {
                return;
            }
            (self.seen[child].parent, self.seen[child].cookie) = (self.inodes.dirs[dir].ino.0, cookie.0);
            self.seen[dir].subdirs += 1;
        }
        self.same_hash.push(entry.name.clone());
        let names = &mut self.inodes.names[slot];
        *names = *names & STRAY | ((*names & !STRAY) + 1).min(STRAY - 2);
        self.seen[dir].entries += 1;
    }

    /// A directory has one name. Of several the one in the directory that it says it lies in counts, or else the first one.
    fn is_another_name(
        &mut self,
        dir: usize,
        slot: usize,
        child: usize,
        entry: &Entry,
        name: &str,
        key: &[u8],
    ) -> bool {
        let place = Place::ino(entry.ino.0);
        if entry.ino == ROOT {
            let what = format!("name {name:?} leads to the root directory");
            self.findings.add(Problem::DirectoryNames, place, what, vec![Fix::DeleteName(key.to_vec())]);
            return true;
        }
        if self.inodes.names[slot] & !STRAY == 0 {
            return false;
        }
        let what = format!("name {name:?} is another one of a directory");
        let (declared, first) = (self.inodes.dirs[child].info.parent, self.seen[child].parent);
        let this = self.inodes.dirs[dir].ino;
        if declared != this || declared.0 == first {
            self.findings.add(Problem::DirectoryNames, place, what, vec![Fix::DeleteName(key.to_vec())]);
            return true;
        }
        if let Some(other) = self.forget_name(slot, child) {
            self.findings.add(Problem::DirectoryNames, place, what, vec![Fix::DeleteName(other)]);
        }
        false
    }

    /// Takes back that the name of a directory was counted; returns its key.
    fn forget_name(&mut self, slot: usize, child: usize) -> Option<Vec<u8>> {
        let above = self.inodes.find_dir(Ino(self.seen[child].parent))?;
        self.seen[above].entries -= 1;
        self.seen[above].subdirs -= 1;
        self.inodes.names[slot] &= STRAY;
        self.seen[child].parent = 0;
        Some(entry_key(self.inodes.dirs[above].info.entries, Cookie(self.seen[child].cookie)).to_vec())
    }

    fn root(&mut self) {
        let Some(root) = self.inodes.find_dir(ROOT) else {
            let what = match self.inodes.find(ROOT) {
                Some(_) => "the root inode is not a directory",
                None => "the root directory is missing",
            };
            return self.findings.add(Problem::Root, Place::ino(ROOT.0), what, vec![Fix::Root]);
        };
        let info = self.inodes.dirs[root].info;
        if info.parent != ROOT {
            let what = "the root directory's parent is another one";
            let fixes = vec![Fix::Parent(ROOT, ROOT)];
            self.findings.add(Problem::DirectoryParent, Place::ino(ROOT.0), what, fixes);
        }
        self.seen[root].parent = ROOT.0;
        self.seen[root].reached = 2;
    }

    /// Counts of entries, and parents.
    fn directories(&mut self) {
        for (dir, seen) in self.inodes.dirs.iter().zip(&self.seen) {
            let place = || Place::ino(dir.ino.0);
            if dir.info.count != seen.entries {
                let has = counted(seen.entries, "entry", "entries");
                let what = format!("it has {has}, and says {}", dir.info.count);
                let fixes = vec![Fix::Count(dir.ino, seen.entries)];
                self.findings.add(Problem::DirectoryCount, place(), what, fixes);
            }
            if seen.parent != 0 && Ino(seen.parent) != dir.info.parent && dir.ino != ROOT {
                let what = format!(
                    "its name lies in inode {}, its parent is inode {}",
                    seen.parent, dir.info.parent.0
                );
                let fixes = vec![Fix::Parent(dir.ino, Ino(seen.parent))];
                self.findings.add(Problem::DirectoryParent, place(), what, fixes);
            }
        }
    }

    /// Directories that have names but cannot be reached from the root lie in circles, or below what does.
    fn connections(&mut self) {
        for i in 0..self.seen.len() {
            let mut path = Vec::new();
            let mut at = i;
            let reached = loop {
                match self.seen[at].reached {
                    0 => {}
                    // On the way already: a circle.
                    1 => break 3,
                    known => break known,
                }
                self.seen[at].reached = 1;
                path.push(at);
                match self.inodes.find_dir(Ino(self.seen[at].parent)) {
                    Some(above) => at = above,
                    // No name: it is the end of what is reported below, as unnamed.
                    None => break 2,
                }
            };
            if reached == 3 && self.seen[at].reached == 1 {
                self.cut_circle(at);
            }
            for dir in path {
                self.seen[dir].reached = reached;
            }
        }
    }

    /// A directory of a circle gets a name elsewhere, and with it all the others.
    fn cut_circle(&mut self, dir: usize) {
        let ino = self.inodes.dirs[dir].ino;
        let Some(slot) = self.inodes.find(ino) else { return };
        let mut fixes = Vec::new();
        if let Some(above) = self.inodes.find_dir(Ino(self.seen[dir].parent)) {
            // The counts of the directory that it leaves are right as long as it is there.
            let (parent, seen) = (self.inodes.dirs[above], self.seen[above]);
            let key = entry_key(parent.info.entries, Cookie(self.seen[dir].cookie));
            fixes.push(Fix::Delete(key.to_vec()));
            fixes.push(Fix::Count(parent.ino, seen.entries.saturating_sub(1)));
            fixes.push(Fix::Links(parent.ino, 1 + seen.subdirs));
        }
        fixes.push(Fix::Reconnect(ino, 2 + self.seen[dir].subdirs));
        let what = "a directory lies below itself, and not below the root";
        self.findings.add(Problem::Disconnected, Place::ino(ino.0), what, fixes);
        self.inodes.names[slot] = RECONNECTED;
    }

    fn links(&mut self) {
        for i in 0..self.inodes.slots.len() {
            let slot = self.inodes.slots[i];
            let names = self.inodes.names[i];
            if names == RECONNECTED || names == STRAY {
                continue;
            }
            let names = names & !STRAY;
            let place = || Place::ino(slot.ino.0);
            let links = match slot.kind {
                Kind::Directory if slot.ino == ROOT || names > 0 => {
                    let dir = self.inodes.find_dir(slot.ino);
                    2 + dir.map_or(0, |d| self.seen[d].subdirs)
                }
                Kind::Directory => 0,
                _ => names,
            };
            if links == 0 {
                self.unnamed(slot);
                continue;
            }
            if slot.links != links {
                let has = counted(links.into(), "link", "links");
                let what = format!("it has {has}, and says {}", slot.links);
                let fixes = vec![Fix::Links(slot.ino, links)];
                self.findings.add(Problem::Links, place(), what, fixes);
            }
            if slot.unlinked {
                let what = "it is marked as an orphan, and has a name";
                let fixes = vec![Fix::Delete(orphan_key(slot.ino).to_vec())];
                self.findings.add(Problem::Orphan, place(), what, fixes);
            }
        }
    }

    fn unnamed(&mut self, slot: Slot) {
        let place = || Place::ino(slot.ino.0);
        let seen = self.inodes.find_dir(slot.ino).map(|dir| self.seen[dir]);
        let links = seen.map_or(1, |seen| 2 + seen.subdirs);
        if slot.links > 0 {
            let what = "it has no name";
            self.findings.add(Problem::Unnamed, place(), what, vec![Fix::Reconnect(slot.ino, links)]);
        } else if seen.is_some_and(|seen| seen.entries > 0) {
            // A directory is unlinked when it is empty.
            let what = "it has neither name nor links, but entries";
            let mut fixes = vec![Fix::Reconnect(slot.ino, links)];
            if slot.unlinked {
                fixes.insert(0, Fix::Delete(orphan_key(slot.ino).to_vec()));
            }
            self.findings.add(Problem::Orphan, place(), what, fixes);
        } else if !slot.unlinked {
            let what = "it has neither name nor links, and is not marked as an orphan";
            self.findings.add(Problem::Orphan, place(), what, vec![Fix::Orphan(slot.ino)]);
        }
    }

    /// Numbers of groups and inodes must not come back.
    fn counters(&mut self) {
        let least = self.inodes.group_max.max(self.stray.unwrap_or(0)) + 1;
        match self.inodes.state {
            None => {
                let what = "the record of the filesystem's state is missing";
                self.findings.add(Problem::State, Place::image(), what, vec![Fix::State(least)]);
            }
            Some(next) if next < least || next > GROUP_MAX => {
                let what = format!("the group counter is {next}, and group {} is in use", least - 1);
                self.findings.add(Problem::GroupCounter, Place::image(), what, vec![Fix::State(least)]);
            }
            Some(_) => {}
        }
        for dir in &self.inodes.dirs {
            let info = dir.info;
            let greatest = Ino::new(info.births, SEQUENCE_MAX);
            let behind = self.inodes.slots.partition_point(|s| s.ino <= greatest);
            let last = behind.checked_sub(1).map(|i| self.inodes.slots[i].ino);
            let Some(last) = last.filter(|ino| ino.group() == info.births) else { continue };
            let sequence = last.sequence();
            if info.next <= sequence {
                let what = format!("its next birth is number {}, and {sequence} was born", info.next);
                let fix = if sequence == SEQUENCE_MAX {
                    Fix::NewBirths(dir.ino)
                } else {
                    Fix::Next(dir.ino, sequence + 1)
                };
                self.findings.add(Problem::BirthCounter, Place::ino(dir.ino.0), what, vec![fix]);
            }
        }
    }
}
