//! The first pass over the records: inodes, each with its extended attributes and extents, which lie in the same order.
//!
//! Three positions move through the tree side by side, so that an inode, its attributes and its extents are seen together, and nothing
//! of them needs to be kept. What later passes need is kept: 20 bytes for each inode, and 100 more for each directory.

use std::collections::BTreeMap;

use super::blocks::Claims;
use super::fix::{Fix, Remade};
use super::image::Image;
use super::records::Records;
use super::report::{Findings, Place, ProblemKind as Problem, Report, counted};
use super::shared::SharedRuns;
use super::structure::{Gap, Structure};
use super::{Options, Result, Stage, TELL_RECORDS};
use crate::fs::acl::{ACL_ACCESS, ACL_DEFAULT, Acl, CAPABILITY};
use crate::fs::format::*;
use crate::page::{BLOCK_SIZE, BlockNo, Run};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// What is known of an inode. 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub ino: Ino,
    /// What its record says.
    pub links: u32,
    pub kind: Kind,
    /// It is marked as an orphan that is unlinked.
    pub unlinked: bool,
}

/// What is known of a directory beyond that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dir {
    pub ino: Ino,
    pub info: DirInfo,
}

/// What the pass found.
#[derive(Default)]
pub(super) struct Inodes {
    /// Ascending by number.
    pub slots: Vec<Slot>,
    /// Names found, one for each slot. For a directory: entries that name it.
    pub names: Vec<u32>,
    /// Ascending by number.
    pub dirs: Vec<Dir>,
    /// The greatest group number in use.
    pub group_max: u64,
    /// The state's record.
    pub state: Option<u64>,
    /// Sizes of files that are made again.
    remade: BTreeMap<Ino, u64>,
    /// Their blocks, which may belong to others by now.
    pub late: Vec<LateClaim>,
}

/// Claims the blocks of files that are made again, after all others.
pub(super) fn claim_late(late: Vec<LateClaim>, claims: &mut Claims, findings: &mut Findings) {
    for LateClaim(ino, run, key, what) in late {
        claim(ino, run, key, &what, claims, findings);
    }
}

fn claim(ino: Ino, run: Run, key: Vec<u8>, what: &str, claims: &mut Claims, findings: &mut Findings) {
    let twice = claims.claim(run);
    if twice > 0 {
        let place = Place { blocks: Some(run), ..Place::ino(ino.0) };
        let what = format!("{what}: {twice} of its blocks are in use elsewhere, too");
        findings.add(Problem::BlocksTwice, place, what, vec![Fix::Unshare(key)]);
    }
}

impl Inodes {
    /// The position of an inode.
    pub fn find(&self, ino: Ino) -> Option<usize> {
        self.slots.binary_search_by_key(&ino, |s| s.ino).ok()
    }
    /// The position of a directory among the directories.
    pub fn find_dir(&self, ino: Ino) -> Option<usize> {
        self.dirs.binary_search_by_key(&ino, |d| d.ino).ok()
    }
}

struct Pass<'a> {
    image: &'a Image,
    structure: &'a Structure,
    claims: &'a mut Claims,
    shared: &'a mut SharedRuns,
    findings: &'a mut Findings,
    report: &'a mut Report,
    attributes: Stream<'a>,
    extents: Stream<'a>,
    found: Inodes,
    scrub_xattrs: bool,
    /// A file is being made again: others claim their blocks before it.
    is_remaking: bool,
}

/// Blocks of a file that was made again, with the key of their record and what it is.
pub(super) struct LateClaim(Ino, Run, Vec<u8>, String);

/// Records of one tag, for one inode after the other.
struct Stream<'a> {
    records: Records<'a>,
    /// The inode of the record ahead, and the rest of its key; `None` at the end.
    ahead: Option<(Ino, u64)>,
    parse: fn(AnyKey) -> Option<(Ino, u64)>,
}

impl<'a> Stream<'a> {
    fn new(
        image: &'a Image,
        structure: &'a Structure,
        tag: u8,
        parse: fn(AnyKey) -> Option<(Ino, u64)>,
    ) -> Result<Self> {
        let mut stream = Stream { records: structure.records(image, tag)?, ahead: None, parse };
        stream.step()?;
        Ok(stream)
    }

    /// Moves to the next record with a whole key; others are reported by the main pass.
    fn step(&mut self) -> Result<()> {
        self.ahead = None;
        while self.records.next()? {
            self.ahead = AnyKey::parse(self.records.key()).and_then(self.parse);
            if self.ahead.is_some() {
                break;
            }
        }
        Ok(())
    }
}

/// The attributes of one inode as its records tell.
#[derive(Default)]
struct Attributes {
    count: u32,
    blocks: u64,
    flags: u8,
    /// The key of `security.capability`.
    capability: Option<Vec<u8>>,
}

/// The contents of one inode as its records tell.
#[derive(Default)]
struct Contents {
    blocks: u64,
    /// The end of the last extent's blocks.
    block_end: u64,
    /// Blocks that extents cover.
    mapped: u64,
    /// One of them begins at byte 0.
    from_start: bool,
    /// Bytes of pieces of a link's target.
    target: u64,
    /// What lies between two extents of a file, in bytes, where leaves are missing that may have held others.
    gaps: Vec<(u64, u64)>,
}

/// Runs the pass.
pub(super) fn check_inodes<'a>(
    image: &'a Image,
    structure: &'a Structure,
    claims: &'a mut Claims,
    shared: &'a mut SharedRuns,
    findings: &'a mut Findings,
    report: &'a mut Report,
    options: &Options<'_>,
) -> Result<Inodes> {
    let xattr = |key| if let AnyKey::Xattr(ino, place) = key { Some((ino, place)) } else { None };
    let extent = |key| if let AnyKey::Extent(ino, end) = key { Some((ino, end)) } else { None };
    let mut pass = Pass {
        image,
        structure,
        claims,
        shared,
        findings,
        report,
        attributes: Stream::new(image, structure, TAG_XATTR, xattr)?,
        extents: Stream::new(image, structure, TAG_EXTENT, extent)?,
        found: Inodes::default(),
        scrub_xattrs: options.scrub,
        is_remaking: false,
    };
    let mut records = Records::new(image, &structure.leaves, &[])?;
    let mut n = 0u64;
    while records.next()? {
        pass.record(records.key(), records.value())?;
        n += 1;
        if n.is_multiple_of(TELL_RECORDS) {
            options.tell(Stage::Inodes, pass.found.slots.len() as u64, 0);
        }
    }
    if records.skipped > 0 {
        let what = match records.skipped {
            1 => "a record lies behind greater keys".to_string(),
            n => format!("{n} records lie behind greater keys"),
        };
        pass.findings.add(Problem::KeyOrder, Place::image(), what, vec![Fix::Tree]);
    }
    pass.strays(Ino(u64::MAX), true)?;
    let mut found = pass.found;
    found.names = vec![0; found.slots.len()];
    Ok(found)
}

impl Pass<'_> {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match AnyKey::parse(key) {
            None => self.bad(Problem::Key, Place::image(), key, "a record with a key that means nothing"),
            Some(AnyKey::Inode(ino)) => self.inode(ino, key, value)?,
            Some(AnyKey::Orphan(ino)) => match Orphan::decode(ino, value) {
                Ok(orphan) => self.orphan(ino, orphan, key)?,
                Err(e) => self.bad(Problem::Record, Place::ino(ino.0), key, e),
            },
            Some(AnyKey::State) => match decode_state(value) {
                Some(next_group) => self.found.state = Some(next_group),
                // Its absence is reported at the end.
                None => self.findings.add(
                    Problem::Record,
                    Place::image(),
                    "the record of the filesystem's state is impossible",
                    vec![Fix::Delete(key.to_vec())],
                ),
            },
            Some(AnyKey::Shared(end)) => match Shared::decode(end, value) {
                Ok(shared) => self.shared.record(end, shared),
                Err(e) => self.bad(Problem::Record, Place::image(), key, e),
            },
            // Entries have a pass of their own; attributes and extents come with their inodes.
            Some(AnyKey::Entry(..) | AnyKey::Xattr(..) | AnyKey::Extent(..)) => {}
        }
        Ok(())
    }

    fn bad(&mut self, kind: Problem, place: Place, key: &[u8], what: impl std::fmt::Display) {
        let what = format!("{what} (key {})", hex(key));
        self.findings.add(kind, place, what, vec![Fix::Delete(key.to_vec())]);
    }

    fn orphan(&mut self, ino: Ino, orphan: Orphan, key: &[u8]) -> Result<()> {
        // There are no inodes behind orphans.
        self.strays(Ino(u64::MAX), true)?;
        let Some(i) = self.found.find(ino) else {
            let what = "an inode that does not exist is marked as an orphan";
            let fixes = vec![Fix::Delete(key.to_vec())];
            self.findings.add(Problem::Orphan, Place::ino(ino.0), what, fixes);
            return Ok(());
        };
        let slot = self.found.slots[i];
        match orphan {
            Orphan::Unlinked => self.found.slots[i].unlinked = true,
            Orphan::Truncated { size } => {
                let said = match self.found.remade.get(&ino) {
                    Some(size) => Some(*size),
                    None => self.size_of(ino)?,
                };
                if slot.kind != Kind::File || said != Some(size) {
                    let what = "it is marked as being cut, but is not a file of that size";
                    let fixes = vec![Fix::Delete(key.to_vec())];
                    self.findings.add(Problem::Orphan, Place::ino(ino.0), what, fixes);
                }
            }
        }
        Ok(())
    }

    /// An inode's size. Looked up, where it is rarely asked for.
    fn size_of(&self, ino: Ino) -> Result<Option<u64>> {
        let key = inode_key(ino);
        let mut records = Records::new(self.image, &self.structure.leaves, &key)?;
        let found = records.next()? && *records.key() == *key;
        Ok(found.then(|| Inode::decode(ino, records.value()).ok()).flatten().map(|inode| inode.size))
    }

    fn inode(&mut self, ino: Ino, key: &[u8], value: &[u8]) -> Result<()> {
        self.strays(ino, false)?;
        let inode = match Inode::decode(ino, value) {
            Ok(inode) if ino.0 != 0 && ino.group() < GROUP_MAX => inode,
            Ok(_) => {
                self.bad(Problem::Key, Place::ino(ino.0), key, "no inode has this number");
                return self.strays(Ino(ino.0.saturating_add(1)), false);
            }
            Err(_) if self.remake(ino)? => return Ok(()),
            Err(e) => {
                self.bad(Problem::Record, Place::ino(ino.0), key, e);
                return self.strays(Ino(ino.0.saturating_add(1)), false);
            }
        };
        self.report.inodes += 1;
        let mut groups = ino.group();
        if let Some(info) = inode.dir {
            self.report.directories += 1;
            groups = groups.max(info.entries).max(info.births);
            self.found.dirs.push(Dir { ino, info });
        }
        self.found.group_max = self.found.group_max.max(groups);
        let slot = Slot { ino, links: inode.links, kind: inode.kind, unlinked: false };
        self.found.slots.push(slot);
        let xattrs = self.xattrs(ino, inode.kind)?;
        let contents = self.contents(ino, &inode)?;
        // What has no links is being deleted, batch by batch, and its record stays as it was until the last one.
        if inode.links > 0 {
            self.judge_xattrs(ino, &inode, &xattrs);
            self.judge(ino, &inode, &contents, contents.blocks + xattrs.blocks);
        }
        Ok(())
    }

    /// Compares an inode with its attributes.
    fn judge_xattrs(&mut self, ino: Ino, inode: &Inode, xattrs: &Attributes) {
        if xattrs.count != inode.xattrs {
            let has = counted(xattrs.count.into(), "attribute", "attributes");
            let what = format!("it has {has}, and says {}", inode.xattrs);
            let fixes = vec![Fix::Xattrs(ino, xattrs.count)];
            self.findings.add(Problem::XattrCount, Place::ino(ino.0), what, fixes);
        }
        let mut flags = xattrs.flags;
        if inode.kind != Kind::Directory {
            flags &= !INODE_DEFAULT_ACL;
        }
        if flags != inode.flags {
            let what = format!("its flags are {:#x}, its attributes say {flags:#x}", inode.flags);
            self.findings.add(Problem::Flags, Place::ino(ino.0), what, vec![Fix::Flags(ino, flags)]);
        }
    }

    /// Compares an inode with what belongs to it.
    fn judge(&mut self, ino: Ino, inode: &Inode, contents: &Contents, blocks: u64) {
        let place = || Place::ino(ino.0);
        // First: if a round has no room for more fixes behind it, the count of blocks tells the next one.
        if inode.kind == Kind::File && inode.size > 0 {
            self.lost_ranges(ino, inode, contents, blocks);
        }
        if blocks != inode.blocks {
            let what = format!("it has {}, and says {}", counted(blocks, "block", "blocks"), inode.blocks);
            self.findings.add(Problem::Blocks, place(), what, vec![Fix::Blocks(ino, blocks)]);
        }
        if inode.kind == Kind::Symlink && inode.target.len() as u64 + contents.target != inode.size {
            let what = format!(
                "its target has {} bytes, and should have {}",
                inode.target.len() as u64 + contents.target,
                inode.size
            );
            self.findings.add(Problem::Target, place(), what, vec![Fix::Delete(inode_key(ino).to_vec())]);
        }
    }

    /// Where leaves are missing, contents may be. What is not there must not pass for a hole, which reads as zeros.
    fn lost_ranges(&mut self, ino: Ino, inode: &Inode, contents: &Contents, blocks: u64) {
        let missing = blocks < inode.blocks;
        let what = "contents may be lost where there are holes now";
        if contents.gaps.is_empty() || self.image.half_repaired {
            // An earlier run, which was cut off, may have known where. If all blocks are there, it was in the tree itself.
            let to = match missing {
                true if contents.mapped < inode.size.div_ceil(BLOCK) => inode.size,
                false if self.image.half_repaired && !contents.from_start => {
                    inode.size.min(INLINE_MAX as u64)
                }
                _ => 0,
            };
            if to > 0 {
                let fixes = vec![Fix::LoseRange(ino, 0, to)];
                self.findings.add(Problem::Lost, Place::range(ino.0, 0, to), what, fixes);
            }
        }
        // Even if the number of blocks is right: a range that was lost before has no blocks, and its record may have been in the missing
        // leaf. How far in front of the gap such a record began is not known.
        for (from, to) in &contents.gaps {
            let (from, to) = (*from, inode.size.min(*to));
            if from < to {
                let place = Place::range(ino.0, from, to);
                self.findings.add(Problem::Lost, place, what, vec![Fix::LoseRange(ino, from, to)]);
            }
        }
    }

    /// Attributes and extents in front of those of inode `ino` belong to one whose record is lost, or to nobody.
    fn strays(&mut self, ino: Ino, all: bool) -> Result<()> {
        loop {
            let ahead = [&self.attributes, &self.extents].map(|stream| stream.ahead.map(|(owner, _)| owner));
            let Some(owner) = ahead.into_iter().flatten().min().filter(|owner| all || *owner < ino) else {
                return Ok(());
            };
            if !self.remake(owner)? {
                let streams = [(&mut self.attributes, "an attribute"), (&mut self.extents, "contents")];
                for (stream, kind) in streams {
                    while stream.ahead.is_some_and(|(of, _)| of == owner) {
                        let what = format!("{kind} of an inode that does not exist");
                        let fixes = vec![Fix::Delete(stream.records.key().to_vec())];
                        self.findings.add(Problem::Stray, Place::ino(owner.0), what, fixes);
                        stream.step()?;
                    }
                }
            }
        }
    }

    /// A file whose record is lost, or impossible, is made again from its contents; whether there are any. What was being deleted stays
    /// so. Nothing in front of what belongs to the inode is ahead any more.
    fn remake(&mut self, ino: Ino) -> Result<bool> {
        let mark = self.orphan_of(ino)?;
        let is_deleted = mark == Some(Orphan::Unlinked);
        if ino.0 == 0 || ino.group() >= GROUP_MAX || is_deleted || !self.has_extents(ino)? {
            return Ok(false);
        }
        let key = inode_key(ino).to_vec();
        let what = format!("the record of a file is lost, and its contents are there (key {})", hex(&key));
        // In front of what else there is to do for it.
        let at = self.findings.fixes.len();
        let fixes = vec![Fix::Remake(ino, Remade::default())];
        self.findings.add(Problem::InodeLost, Place::ino(ino.0), what, fixes);
        let has_room = self.findings.fixes.len() > at;
        self.is_remaking = true;
        let mut xattrs = self.xattrs(ino, Kind::File)?;
        let new = Inode::new(Kind::File, 0, (0, 0), Time::default());
        let contents = self.contents(ino, &Inode { size: FILE_SIZE_MAX, ..new.clone() })?;
        self.is_remaking = false;
        let (lost, size) = match mark {
            // What is behind it will be cut.
            Some(Orphan::Truncated { size }) => (size, size),
            // Nobody knows how long it was: who reads on behind its contents is to meet that.
            _ => (contents.block_end, (contents.block_end + BLOCK).min(FILE_SIZE_MAX)),
        };
        let blocks = contents.blocks + xattrs.blocks;
        let flags = xattrs.flags & !INODE_DEFAULT_ACL;
        if has_room {
            let remade = Remade { size, lost, blocks, xattrs: xattrs.count, flags };
            self.findings.amend(at, Fix::Remake(ino, remade));
        }
        // Like the owner, who may be another now.
        if let Some(key) = xattrs.capability.take() {
            let what = "its capabilities were given to a file of another owner";
            let fixes = vec![Fix::Xattrs(ino, xattrs.count - 1), Fix::Flags(ino, flags & !INODE_CAPABILITY)];
            self.findings.add(
                Problem::XattrCount,
                Place::ino(ino.0),
                what,
                [fixes, vec![Fix::Delete(key)]].concat(),
            );
        }
        // If an earlier run was cut off, nobody knows any more where something is missing.
        let said = blocks + u64::from(self.image.half_repaired);
        self.judge(ino, &Inode { size, blocks: said, ..new }, &contents, blocks);
        self.found.group_max = self.found.group_max.max(ino.group());
        self.found.slots.push(Slot { ino, links: 1, kind: Kind::File, unlinked: false });
        self.found.remade.insert(ino, size);
        Ok(true)
    }

    /// Whether an inode has an extent that can be read. Rare, so it is looked up.
    fn has_extents(&self, ino: Ino) -> Result<bool> {
        let mut records = Records::new(self.image, &self.structure.leaves, &extent_key(ino, 0))?;
        while records.next()?
            && let Some(end) = extent_end(ino, records.key())
        {
            if Extent::decode(ino, end, records.value()).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The attributes of one inode.
    fn xattrs(&mut self, ino: Ino, kind: Kind) -> Result<Attributes> {
        let mut found = Attributes::default();
        // Names with the same hash.
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut hash = 0;
        while let Some((owner, place)) = self.attributes.ahead
            && owner == ino
        {
            let key = self.attributes.records.key().to_vec();
            match Xattr::decode(ino, self.attributes.records.value()) {
                Ok(xattr) => {
                    if place_hash(place) != hash {
                        hash = place_hash(place);
                        names.clear();
                    }
                    self.xattr(ino, place, &key, &xattr, &names);
                    self.acl(ino, kind, &key, &xattr);
                    found.count += 1;
                    found.blocks += xattr.run().map_or(0, |r| r.len as u64);
                    found.flags |= match xattr.name.as_slice() {
                        ACL_ACCESS => INODE_ACCESS_ACL,
                        ACL_DEFAULT => INODE_DEFAULT_ACL,
                        CAPABILITY => {
                            found.capability = Some(key.clone());
                            INODE_CAPABILITY
                        }
                        _ => 0,
                    };
                    names.push(xattr.name);
                }
                Err(e) => self.bad(Problem::Record, Place::ino(ino.0), &key, e),
            }
            self.attributes.step()?;
        }
        Ok(found)
    }

    /// Checks one attribute.
    fn xattr(&mut self, ino: Ino, place: u64, key: &[u8], xattr: &Xattr, names: &[Vec<u8>]) {
        self.report.xattrs += 1;
        let name = String::from_utf8_lossy(&xattr.name).into_owned();
        let delete = || vec![Fix::Delete(key.to_vec())];
        if !self.image.seed_lost
            && crate::fs::name_hash(&self.image.superblock.hash_seed, &xattr.name) != place_hash(place)
        {
            let what = format!("attribute {name:?} is not at the place of its name");
            self.findings.add(
                Problem::XattrHash,
                Place::ino(ino.0),
                what,
                vec![Fix::MoveEntry(key.to_vec())],
            );
        } else if names.contains(&xattr.name) {
            let what = format!("attribute {name:?} twice");
            self.findings.add(Problem::XattrTwice, Place::ino(ino.0), what, delete());
        }
        let Some(run) = xattr.run() else { return };
        let XattrValue::Blocks { len, crc, .. } = xattr.value else { return };
        let behind = self.image.short.is_some_and(|held| run.end().0 * BLOCK > held);
        if self.claim(ino, run, key, &format!("attribute {name:?}")) && (self.scrub_xattrs || behind) {
            let mut value = vec![0; run.len as usize * BLOCK_SIZE];
            let read = self.image.read_blocks(run, &mut value);
            self.report.scrubbed_bytes += value.len() as u64;
            value.truncate(len as usize);
            let place = Place { blocks: Some(run), ..Place::ino(ino.0) };
            match read {
                Ok(()) if crc32fast::hash(&value) == crc => {}
                Ok(()) => {
                    let what = format!("value of attribute {name:?} fails its checksum");
                    self.findings.add(Problem::XattrValue, place, what, delete());
                }
                Err(e) => {
                    let what = format!("value of attribute {name:?} cannot be read: {e}");
                    self.findings.add(Problem::Unreadable, place, what, Vec::new());
                }
            }
        }
    }

    /// Checks an ACL: the filesystem needs it whenever the mode changes or something is created.
    fn acl(&mut self, ino: Ino, kind: Kind, key: &[u8], xattr: &Xattr) {
        let what = match xattr.name.as_slice() {
            ACL_ACCESS => "access ACL",
            ACL_DEFAULT => "default ACL",
            _ => return,
        };
        let possible = match &xattr.value {
            XattrValue::Inline(value) => Acl::decode(value).is_ok_and(|acl| !acl.is_empty()),
            XattrValue::Blocks { .. } => false,
        };
        let problem = if !possible {
            "is impossible"
        } else if xattr.name == ACL_DEFAULT && kind != Kind::Directory {
            "belongs to what is no directory"
        } else {
            return;
        };
        let fixes = vec![Fix::Delete(key.to_vec())];
        self.findings.add(Problem::XattrValue, Place::ino(ino.0), format!("its {what} {problem}"), fixes);
    }

    /// Claims blocks for an inode. `false`: they lie outside.
    fn claim(&mut self, ino: Ino, run: Run, key: &[u8], what: &str) -> bool {
        let place = Place { blocks: Some(run), ..Place::ino(ino.0) };
        if !self.image.is_valid_run(run) {
            let what = format!("{what} lies outside the groups of the image");
            self.findings.add(Problem::BlocksOutside, place, what, vec![Fix::Unshare(key.to_vec())]);
            return false;
        }
        self.report.data_bytes += run.len as u64 * BLOCK;
        if self.is_remaking {
            self.found.late.push(LateClaim(ino, run, key.to_vec(), what.to_owned()));
        } else {
            claim(ino, run, key.to_vec(), what, self.claims, self.findings);
        }
        true
    }

    /// The extents of one inode, or the pieces of a link's target.
    fn contents(&mut self, ino: Ino, inode: &Inode) -> Result<Contents> {
        let mut contents = Contents::default();
        let mut behind: Option<u64> = None;
        // They lie in key order.
        let gaps = &self.structure.gaps;
        let (first, last) = (extent_key(ino, 0), extent_key(ino, u64::MAX));
        let begin = gaps.partition_point(|gap| gap.high.as_ref().is_some_and(|high| **high <= *first));
        let mut gaps = gaps[begin..].iter().take_while(|gap| *gap.low <= *last).peekable();
        while let Some((owner, end)) = self.extents.ahead
            && owner == ino
        {
            let key = self.extents.records.key().to_vec();
            while let Some(gap) = gaps.next_if(|gap| gap.high.as_ref().is_some_and(|high| *high <= key)) {
                contents.gaps.push((contents.block_end, end_of(gap, ino)));
            }
            match inode.kind {
                Kind::File => match Extent::decode(ino, end, self.extents.records.value()) {
                    Ok(extent) => {
                        self.extent(ino, end, &key, &extent, &mut contents);
                        if end > inode.size && !extent.is_unwritten() {
                            behind = Some(end);
                        }
                    }
                    Err(e) => {
                        // Nobody knows how much of what is in front of its end it held.
                        let what = format!("{e} (key {})", hex(&key));
                        let lost = Fix::LoseRange(ino, contents.block_end, end);
                        let fixes = vec![lost, Fix::Delete(key.clone())];
                        self.findings.add(Problem::Record, Place::ino(ino.0), what, fixes);
                    }
                },
                Kind::Symlink => {
                    let len = self.extents.records.value().len() as u64;
                    if inode.target.len() as u64 + contents.target + len == end {
                        contents.target += len;
                    } else {
                        let what = "a piece of a link's target that does not follow the others";
                        self.bad(Problem::Extent, Place::ino(ino.0), &key, what);
                    }
                }
                _ => self.bad(Problem::Extent, Place::ino(ino.0), &key, "contents of what can have none"),
            }
            self.extents.step()?;
        }
        contents.gaps.extend(gaps.map(|gap| (contents.block_end, end_of(gap, ino))));
        if let Some(end) = behind
            && inode.links > 0
            && self.orphan_of(ino)?.is_none()
        {
            let what = format!("contents up to byte {end} behind its size of {}", inode.size);
            self.findings.add(Problem::Size, Place::ino(ino.0), what, vec![Fix::Size(ino, end)]);
        }
        Ok(contents)
    }

    /// What a mark says is still to be done for an inode. Rare, so it is looked up.
    fn orphan_of(&self, ino: Ino) -> Result<Option<Orphan>> {
        let key = orphan_key(ino);
        let mut records = Records::new(self.image, &self.structure.leaves, &key)?;
        let found = records.next()? && *records.key() == *key;
        Ok(found.then(|| Orphan::decode(ino, records.value()).ok()).flatten())
    }

    fn extent(&mut self, ino: Ino, end: u64, key: &[u8], extent: &Extent, contents: &mut Contents) {
        self.report.extents += 1;
        let begin = end - extent.length().min(end);
        if begin < contents.block_end {
            let place = Place::range(ino.0, begin, end);
            let what = "an extent begins before the one in front of it ends";
            self.findings.add(Problem::Extent, place, what, vec![Fix::Delete(key.to_vec())]);
        }
        contents.from_start |= begin == 0;
        contents.mapped = contents.mapped.saturating_add((end - begin).div_ceil(BLOCK));
        contents.block_end = contents.block_end.max(end.next_multiple_of(BLOCK));
        if let Extent::Lost { len } = extent {
            self.report.note_lost(Place::range(ino.0, begin, end), *len);
        }
        let Some(run) = extent.run() else { return };
        contents.blocks += run.len as u64;
        self.behind_the_end(ino, begin, run, extent);
        if extent.is_shared() && self.image.is_valid_run(run) {
            self.shared.extent(run);
            self.report.data_bytes += run.len as u64 * BLOCK;
            return;
        }
        self.claim(ino, run, key, &format!("the extent of bytes {begin} to {end}"));
    }
}

impl Pass<'_> {
    /// Reports what of an extent lay behind the end of a file that is too short. Blocks that only hold zeros are as they were.
    fn behind_the_end(&mut self, ino: Ino, begin: u64, run: Run, extent: &Extent) {
        let (Some(held), Extent::Blocks { crcs, .. }) = (self.image.short, extent) else { return };
        if run.end().0 * BLOCK <= held || !self.image.is_valid_run(run) {
            return;
        }
        let mut block = [0; BLOCK_SIZE];
        let mut lost: Option<(u64, u64)> = None;
        for (i, crc) in crcs.iter().enumerate() {
            let at = BlockNo(run.start.0 + i as u64);
            let gone = at.offset() + BLOCK > held && {
                let read = self.image.read_blocks(Run { start: at, len: 1 }, &mut block);
                read.is_err() || crc32fast::hash(&block) != *crc
            };
            if gone {
                let first = lost.map_or(i as u64, |(first, _)| first);
                lost = Some((first, i as u64 + 1));
            }
        }
        if let Some((from, to)) = lost {
            let mut place = Place::range(ino.0, begin + from * BLOCK, begin + to * BLOCK);
            let blocks = Run { start: BlockNo(run.start.0 + from), len: (to - from) as u32 };
            place.blocks = Some(blocks);
            let what = "contents lay behind the end of the file";
            let fixes = vec![Fix::Lose(ino, begin + from * BLOCK, blocks)];
            self.findings.add(Problem::Lost, place, what, fixes);
        }
    }
}

/// The end of what extents of a file may have held that lay in a gap between leaves.
fn end_of(gap: &Gap, ino: Ino) -> u64 {
    let Some(high) = &gap.high else { return u64::MAX };
    // A fence is often cut short: zeros behind it make it whole.
    let mut key = high.clone();
    key.resize(17, 0);
    match AnyKey::parse(&key) {
        Some(AnyKey::Extent(owner, end)) if owner == ino => end,
        _ => u64::MAX,
    }
}

/// The beginning of a key as it is shown.
fn hex(key: &[u8]) -> String {
    key.iter().take(32).map(|b| format!("{b:02x}")).collect()
}
