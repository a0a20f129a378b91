//! What a check found: problems with their places, counts, and how both are shown.

use std::fmt;

use serde_json::{Map, Value, json};

use super::fix::Fix;
use super::toll::Toll;
use crate::page::{PageId, Run};
use crate::pool::RecoveryReport;

/// Problems that a report lists of each kind; beyond that they are only counted.
pub const LISTED_MAX: usize = 200;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What is wrong. The names are stable: scripts may rely on them.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum ProblemKind { $($(#[$doc])* $kind,)* }

        impl ProblemKind {
            /// All kinds.
            pub const ALL: &[ProblemKind] = &[$(ProblemKind::$kind,)*];

            /// The stable name.
            pub fn name(self) -> &'static str {
                match self { $(ProblemKind::$kind => $name,)* }
            }
        }
    };
}

kinds! {
    /// One of the two superblocks cannot be used.
    Superblock = "superblock",
    /// Neither superblock can be used.
    SuperblocksLost = "superblocks-lost",
    /// The file is shorter than the image.
    FileShort = "file-short",
    /// The superblock that counts says a size that the image does not have.
    ImageSize = "image-size",
    /// Names do not lie where the superblock's hash seed puts them.
    HashSeed = "hash-seed",
    /// The two superblocks describe different images.
    SuperblockTwin = "superblock-twin",
    /// A repair was begun and not finished.
    RepairUnfinished = "repair-unfinished",
    /// A doublewrite half with a right checksum says what cannot be.
    Doublewrite = "doublewrite",
    /// The log cannot be replayed.
    Log = "log",
    /// A page fails its checks: checksum, number, identity, contents.
    Page = "page",
    /// A page was changed by a record beyond the log's end.
    PageLsn = "page-lsn",
    /// A page is reached from two places.
    PageTwice = "page-twice",
    /// A page has another level than its parent says.
    PageLevel = "page-level",
    /// A page that was merged away is in the tree.
    PageDead = "page-dead",
    /// Fences of neighbours, or a fence and the parent's separator, do not fit.
    PageFence = "page-fence",
    /// A link leads outside the image, or not to the sibling that the parent names.
    PageLink = "page-link",
    /// A split is marked incomplete and is not, or the other way round.
    PageSplit = "page-split",
    /// A bitmap page fails its checks.
    Bitmap = "bitmap",
    /// Blocks are marked as in use, and nothing uses them.
    BlocksLeaked = "blocks-leaked",
    /// Blocks are in use and marked as free.
    BlocksFree = "blocks-free",
    /// Blocks belong to more than one thing, and are not marked as shared.
    BlocksTwice = "blocks-twice",
    /// Blocks outside the groups, or on a bitmap page.
    BlocksOutside = "blocks-outside",
    /// A reference count is not the number of extents that share the blocks.
    SharedCount = "shared-count",
    /// Keys of neighbouring leaves are out of order.
    KeyOrder = "key-order",
    /// A range of keys whose records are lost.
    KeysLost = "keys-lost",
    /// A record with a key that the filesystem does not have.
    Key = "key",
    /// A record that cannot be decoded.
    Record = "record",
    /// The record of the filesystem's state is missing.
    State = "state",
    /// The root directory is missing, or is none.
    Root = "root",
    /// The counter of groups does not lie beyond all groups in use.
    GroupCounter = "group-counter",
    /// A directory's next number does not lie beyond all that were born.
    BirthCounter = "birth-counter",
    /// Two directories have the same group.
    DirectoryGroup = "directory-group",
    /// A directory's number of entries is wrong.
    DirectoryCount = "directory-count",
    /// A directory's parent is not the directory that its name lies in.
    DirectoryParent = "directory-parent",
    /// A directory has more than one name.
    DirectoryNames = "directory-names",
    /// A directory cannot be reached from the root.
    Disconnected = "disconnected",
    /// An entry lies at another place than its name's hash.
    EntryHash = "entry-hash",
    /// A name twice in a directory.
    EntryTwice = "entry-twice",
    /// An entry in a group that belongs to no directory.
    EntryStray = "entry-stray",
    /// An entry leads to an inode that does not exist.
    EntryDangling = "entry-dangling",
    /// An entry says another kind than its inode.
    EntryKind = "entry-kind",
    /// An inode's number of links is wrong.
    Links = "links",
    /// An inode without a name, and not marked as an orphan.
    Unnamed = "unnamed",
    /// A mark of an orphan on what is none.
    Orphan = "orphan",
    /// Contents or attributes of an inode that does not exist.
    Stray = "stray",
    /// The record of an inode is lost, and its contents are there.
    InodeLost = "inode-lost",
    /// Extents of a file overlap, or a kind of inode has extents that can have none.
    Extent = "extent",
    /// Contents behind the file's end.
    Size = "size",
    /// An inode's number of blocks is wrong.
    Blocks = "blocks",
    /// The target of a symbolic link has another length than it says.
    Target = "target",
    /// Contents that are no longer there.
    Lost = "lost",
    /// An inode's number of extended attributes is wrong.
    XattrCount = "xattr-count",
    /// An extended attribute lies at another place than its name's hash.
    XattrHash = "xattr-hash",
    /// The name of an extended attribute twice.
    XattrTwice = "xattr-twice",
    /// The value of an extended attribute fails its checksum, or that of an ACL is none.
    XattrValue = "xattr-value",
    /// Flags of an inode contradict its attributes.
    Flags = "flags",
    /// Contents of a file fail their checksum.
    Data = "data",
    /// Contents of a file, or the value of an extended attribute, cannot be read. They may come back, and stay as they are.
    Unreadable = "unreadable",
}

/// Where a problem lies. What is not known is `None`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The inode's number.
    pub ino: Option<u64>,
    /// A path to the inode, from the root.
    pub path: Option<String>,
    /// The page.
    pub page: Option<PageId>,
    /// The blocks.
    pub blocks: Option<Run>,
    /// The range in the file, in bytes.
    pub range: Option<(u64, u64)>,
}

impl Place {
    /// Nowhere in particular.
    pub fn image() -> Place {
        Place::default()
    }
    /// An inode.
    pub fn ino(ino: u64) -> Place {
        Place { ino: Some(ino), ..Place::default() }
    }
    /// A page.
    pub fn page(page: PageId) -> Place {
        Place { page: Some(page), ..Place::default() }
    }
    /// Blocks.
    pub fn blocks(run: Run) -> Place {
        Place { blocks: Some(run), ..Place::default() }
    }
    /// A range of a file.
    pub fn range(ino: u64, from: u64, to: u64) -> Place {
        Place { range: Some((from, to)), ..Place::ino(ino) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        match (&self.path, self.ino) {
            (Some(path), Some(ino)) => parts.push(format!("{path} (inode {ino})")),
            (None, Some(ino)) => parts.push(format!("inode {ino}")),
            (Some(path), None) => parts.push(path.clone()),
            (None, None) => {}
        }
        if let Some((from, to)) = self.range {
            parts.push(format!("bytes {from} to {to}"));
        }
        parts.extend(self.page.map(|p| p.to_string()));
        parts.extend(self.blocks.map(|b| b.to_string()));
        if parts.is_empty() {
            parts.push("image".into());
        }
        f.write_str(&parts.join(", "))
    }
}

/// What became of a problem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is as it was: nothing was to be repaired, or this cannot be.
    Left,
    /// It was repaired.
    Repaired,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What is wrong.
    pub kind: ProblemKind,
    /// Where.
    pub place: Place,
    /// What was found there.
    pub what: String,
    /// What a repair does about it; `None`: nothing can be done.
    pub repair: Option<String>,
    /// Whether `-p` repairs it, or only `-y`.
    pub safe: bool,
    /// What became of it.
    pub outcome: Outcome,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.place, self.what, self.kind.name())?;
        match (&self.repair, self.outcome) {
            (Some(repair), Outcome::Repaired) => write!(f, " - repaired: {repair}"),
            (Some(repair), Outcome::Left) if self.safe => write!(f, " - repair: {repair}"),
            (Some(repair), Outcome::Left) => write!(f, " - repair with -y: {repair}"),
            (None, _) => Ok(()),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything was looked at. If not, the image was closed in order, and that was all that was asked for: what the report
    /// counts is 0 then.
    pub checked: bool,
    /// Problems, at most [`LISTED_MAX`] of each kind.
    pub problems: Vec<Problem>,
    /// How many problems there are of each kind.
    pub counts: Vec<(ProblemKind, u64)>,
    /// Problems that are left after the repair, or all without one.
    pub left: u64,
    /// Problems that were repaired.
    pub repaired: u64,
    /// What replaying the log did, if the image was not closed in order.
    pub replay: Option<RecoveryReport>,
    /// The image was marked as damaged before.
    pub marked: bool,
    /// The mark has been taken back: nothing is wrong any more.
    pub unmarked: bool,
    /// What it did is in the image now. If not, it was done in memory only.
    pub replay_written: bool,
    /// Inodes.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Names.
    pub names: u64,
    /// Extents.
    pub extents: u64,
    /// Extended attributes.
    pub xattrs: u64,
    /// Bytes of blocks that files and attributes take.
    pub data_bytes: u64,
    /// Bytes of pages of the tree.
    pub tree_bytes: u64,
    /// Levels of the tree.
    pub height: u32,
    /// Bytes of contents that were read and verified.
    pub scrubbed_bytes: u64,
    /// Ranges of files that repairs have given up, at most [`LISTED_MAX`]: no problem, but reading them is an error.
    pub lost: Vec<Place>,
    /// All such ranges.
    pub lost_ranges: u64,
    /// Bytes of them.
    pub lost_bytes: u64,
    /// What a repair would give up, if there is something to be repaired and nothing was.
    pub toll: Option<Toll>,
    /// Names that were lost, as far as they are known: what the repair took away.
    pub lost_names: u64,
    /// Inodes that got a new name in `lost+found`.
    pub reconnected: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Report {
    /// A range that a repair has given up.
    pub(super) fn note_lost(&mut self, place: Place, len: u64) {
        self.lost_ranges += 1;
        self.lost_bytes = self.lost_bytes.saturating_add(len);
        if self.lost.len() < LISTED_MAX {
            self.lost.push(place);
        }
    }

    /// Whether nothing is wrong (a log that was replayed is nothing wrong).
    pub fn is_clean(&self) -> bool {
        self.left == 0 && self.repaired == 0
    }

    /// The exit status of fsck(8): 0 clean, 1 errors corrected, 4 errors left uncorrected (5 both). A log that was replayed does not
    /// count. Operational errors (8) are [`super::FsckError`]s.
    pub fn exit_code(&self) -> u8 {
        (self.repaired > 0) as u8 + 4 * (self.left > 0) as u8
    }

    /// How many problems of a kind were found.
    pub fn count(&self, kind: ProblemKind) -> u64 {
        self.counts.iter().find(|(k, _)| *k == kind).map_or(0, |(_, n)| *n)
    }

    /// Everything as one JSON object.
    pub fn to_json(&self) -> Value {
        let state = if self.left > 0 {
            "damaged"
        } else if self.repaired > 0 {
            "repaired"
        } else {
            "clean"
        };
        let replay = |r: &RecoveryReport| {
            json!({
                "log_bytes": r.log_bytes,
                "records": r.records,
                "page_changes": r.redone,
                "pages_restored": r.repaired,
                "discarded_bytes": r.discarded,
                "written": self.replay_written,
            })
        };
        let counts = self.counts.iter().map(|(kind, n)| (kind.name().to_owned(), Value::from(*n)));
        json!({
            "state": state,
            "exit_code": self.exit_code(),
            "checked": self.checked,
            "marked_as_damaged": self.marked,
            "replay": self.replay.as_ref().map(replay),
            "inodes": self.inodes,
            "directories": self.directories,
            "names": self.names,
            "extents": self.extents,
            "xattrs": self.xattrs,
            "data_bytes": self.data_bytes,
            "tree_bytes": self.tree_bytes,
            "height": self.height,
            "scrubbed_bytes": self.scrubbed_bytes,
            "lost_ranges": self.lost_ranges,
            "lost_bytes": self.lost_bytes,
            "lost_names": self.lost_names,
            "reconnected": self.reconnected,
            "problems_left": self.left,
            "problems_repaired": self.repaired,
            "lost": self.lost.iter().map(place_json).collect::<Vec<_>>(),
            "repair_would_lose": self.toll.map(Toll::to_json),
            "seconds": (self.seconds * 1e3).round() / 1e3,
            "counts": counts.collect::<Map<_, _>>(),
            "problems": self.problems.iter().map(problem_json).collect::<Vec<_>>(),
        })
    }
}

/// What is known of a place.
fn place_json(place: &Place) -> Map<String, Value> {
    let fields: [(&str, Option<Value>); 7] = [
        ("inode", place.ino.map(Value::from)),
        ("path", place.path.as_deref().map(Value::from)),
        ("page", place.page.map(|page| page.0.into())),
        ("block", place.blocks.map(|run| run.start.0.into())),
        ("blocks", place.blocks.map(|run| run.len.into())),
        ("from", place.range.map(|range| range.0.into())),
        ("to", place.range.map(|range| range.1.into())),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn problem_json(p: &Problem) -> Map<String, Value> {
    let mut fields = Map::from_iter([("kind".to_owned(), p.kind.name().into())]);
    fields.extend(place_json(&p.place));
    fields.extend([
        ("what".to_owned(), p.what.as_str().into()),
        ("repair".to_owned(), p.repair.as_deref().into()),
        ("safe".to_owned(), p.safe.into()),
        ("repaired".to_owned(), (p.outcome == Outcome::Repaired).into()),
    ]);
    fields
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.checked {
            return writeln!(f, "closed in order, not checked; -f checks it all the same");
        }
        if self.marked {
            let stays =
                if self.unmarked { "" } else { ": the mark stays until -p or -y finds nothing wrong" };
            writeln!(f, "the image was marked as damaged{stays}")?;
        }
        if let Some(replay) = &self.replay {
            if self.replay_written {
                writeln!(f, "log: {replay}")?;
            } else {
                writeln!(
                    f,
                    "log: would be replayed by the next mount, here it was in memory only: {} of log, {}, {}",
                    bytes(replay.log_bytes),
                    counted(replay.records, "record", "records"),
                    counted(replay.redone + replay.repaired, "change of a page", "changes of pages"),
                )?;
            }
        }
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        for (kind, n) in &self.counts {
            let listed = self.problems.iter().filter(|p| p.kind == *kind).count() as u64;
            if *n > listed {
                writeln!(f, "... and {} more of kind {}", n - listed, kind.name())?;
            }
        }
        for place in &self.lost {
            writeln!(f, "note: {place}: contents were lost, reading them is an error")?;
        }
        if self.lost_ranges > self.lost.len() as u64 {
            writeln!(f, "... and {} more", self.lost_ranges - self.lost.len() as u64)?;
        }
        writeln!(
            f,
            "{} ({}), {}, {}, {}; {} of data, {} of tree in {}",
            counted(self.inodes, "inode", "inodes"),
            counted(self.directories, "directory", "directories"),
            counted(self.names, "name", "names"),
            counted(self.extents, "extent", "extents"),
            counted(self.xattrs, "attribute", "attributes"),
            bytes(self.data_bytes),
            bytes(self.tree_bytes),
            counted(self.height.into(), "level", "levels"),
        )?;
        if self.scrubbed_bytes > 0 {
            writeln!(f, "{} of contents verified", bytes(self.scrubbed_bytes))?;
        }
        if let Some(toll) = &self.toll {
            writeln!(f, "{toll}")?;
        }
        if self.lost_names > 0 {
            writeln!(f, "{} given up", counted(self.lost_names, "name", "names"))?;
        }
        if self.reconnected > 0 {
            writeln!(f, "{} named in lost+found", counted(self.reconnected, "inode", "inodes"))?;
        }
        let problems = |n| counted(n, "problem", "problems");
        match (self.left, self.repaired) {
            (0, 0) => writeln!(f, "clean, {:.1} s", self.seconds),
            (0, n) => writeln!(f, "{} repaired, {:.1} s", problems(n), self.seconds),
            (n, 0) => writeln!(f, "{} found, {:.1} s", problems(n), self.seconds),
            (n, r) => writeln!(f, "{} repaired, {n} left, {:.1} s", problems(r), self.seconds),
        }
    }
}

/// A number of things.
pub(super) fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A number of bytes for people.
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Collects problems and what would repair them, within bounds.
#[derive(Default)]
pub(super) struct Findings {
    pub problems: Vec<Problem>,
    pub counts: std::collections::BTreeMap<ProblemKind, u64>,
    pub fixes: Vec<Fix>,
    /// Fixes were left out: another round is needed.
    pub more: bool,
    /// What gives up contents with a wrong checksum. It waits until nothing else is left that takes something away: which blocks are
    /// whose is certain only then.
    pub rotten: Vec<Fix>,
    /// Some of that was left out.
    pub more_rotten: bool,
    /// What only `-y` repairs.
    pub unsafe_fixes: u64,
    /// Names that a later round will have to delete.
    pub names_later: u64,
    /// Those of `fixes` that are for the whole image.
    whole: Vec<Fix>,
}

/// Fixes that one round collects; others wait for the next. (Tests shall have several rounds.)
const FIXES_MAX: usize = if cfg!(test) { 500 } else { 200_000 };
/// The same of contents with a wrong checksum, 32 bytes each. Each round reads all contents again. (Tests shall have several.)
const ROTTEN_MAX: usize = if cfg!(test) { 100 } else { 1_000_000 };

impl Findings {
    /// Adds a problem, and what repairs it.
    pub fn add(&mut self, kind: ProblemKind, place: Place, what: impl fmt::Display, fixes: Vec<Fix>) {
        let safe = !fixes.is_empty() && fixes.iter().all(Fix::is_safe);
        self.unsafe_fixes += (!fixes.is_empty() && !safe) as u64;
        self.list(kind, place, what, &fixes, safe);
        // What is for the whole image is found last, and what is for records relies on it: it always has room, once.
        let one = match &fixes[..] {
            [fix] if fix.is_for_all() => Some(fix),
            _ => None,
        };
        let new = one.filter(|fix| !self.whole.contains(fix)).cloned();
        // Once something found no room nothing that follows from it is done before it.
        if self.fixes.len() + fixes.len() <= FIXES_MAX && !self.more || new.is_some() {
            self.fixes.extend(fixes);
            self.whole.extend(new);
        } else {
            self.more = true;
        }
    }

    /// Replaces a fix that was added last when there were so many before it, and that had room.
    pub fn amend(&mut self, before: usize, fix: Fix) {
        if let Some(noted) = self.fixes.get_mut(before) {
            *noted = fix;
        }
    }

    /// Adds contents that were read and fail their checksum. They keep nothing else from being repaired.
    pub fn add_rotten(&mut self, place: Place, fix: Fix) {
        self.list(
            ProblemKind::Data,
            place,
            "contents fail their checksum",
            std::slice::from_ref(&fix),
            false,
        );
        if self.rotten.len() < ROTTEN_MAX {
            self.rotten.push(fix);
        } else {
            self.more_rotten = true;
        }
    }

    fn list(&mut self, kind: ProblemKind, place: Place, what: impl fmt::Display, fixes: &[Fix], safe: bool) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= LISTED_MAX as u64 {
            let actions: Vec<String> = fixes.iter().map(Fix::to_string).collect();
            let repair = (!fixes.is_empty()).then(|| actions.join("; "));
            let what = what.to_string();
            self.problems.push(Problem { kind, place, what, repair, safe, outcome: Outcome::Left });
        }
    }

    /// Problems so far.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Those of them that a look finds that does not read contents.
    pub fn in_metadata(&self) -> u64 {
        let in_contents = |kind: &ProblemKind| matches!(kind, ProblemKind::Data | ProblemKind::Unreadable);
        self.counts.iter().filter(|(kind, _)| !in_contents(kind)).map(|(_, n)| n).sum()
    }

    /// Whether a repair with these options may do all that there is to do.
    pub fn allowed(&self, options: &super::Options<'_>) -> bool {
        options.repair == super::Repair::All || self.unsafe_fixes == 0
    }
}
