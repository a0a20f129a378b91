//! fsck: checks an image, and repairs it.
//!
//! [`check`] reads the image page by page through the storage alone, so that it works on images that the upper layers refuse. A
//! log that has not been replayed is replayed in memory, above the storage. Then, in this order:
//!
//! 1. superblocks, doublewrite area, log;
//! 2. the tree: every page that can be reached, its fences, links and levels;
//! 3. inodes with their attributes and extents, side by side in key order;
//! 4. names, and with them links, parents, orphans and counters;
//! 5. blocks that are in use against the bitmaps and the counts of shared ones;
//! 6. on request all contents against their checksums.
//!
//! | module | what it does |
//! |---|---|
//! | `image` | reads an image: superblocks, doublewrite area, log, pages with their checks |
//! | `salvage` | finds out what an image is whose superblocks are lost |
//! | `size` | finds out the size of an image whose superblock cannot be believed |
//! | `short` | shows a file that was cut in the length of its image |
//! | `replay` | replays a log that recovery refuses, as far as it goes |
//! | `lostlog` | finds the log of an image without superblocks |
//! | `structure` | walks the tree: 2 |
//! | `records` | reads the records of the leaves that the walk has found |
//! | `logged` | decides which contents count that were in a log that is damaged |
//! | `seed` | chooses the seed of the names' hash |
//! | `inodes` | compares inodes with what belongs to them: 3 |
//! | `names` | compares names with inodes: 4 |
//! | `blocks`, `shared` | count blocks, and compare them with what is noted of them: 5 |
//! | `scrub` | reads contents: 6 |
//! | `report` | what was found, and how it is shown |
//! | `paths` | finds the paths of what is shown |
//! | `toll` | counts what a repair would give up |
//! | `fix` | the steps of a repair, as checks note them down |
//! | `repair` | the rounds of a repair: what is done first, and when it ends |
//! | `rebuild` | makes a new tree from the leaves that are whole |
//! | `rehash` | gives names new places meanwhile |
//! | `switch` | writes superblocks and bitmaps, and makes a new tree the image's |
//! | `apply` | repairs records by batches of the tree |
//!
//! **What it promises:** whatever the image holds, it does not panic, loop, or read out of bounds. Memory: one bit a block of the
//! chunks with a block in use (some 60 MiB a TiB), 16 bytes and the fence for each leaf, 20 bytes for each inode, 100 more for each directory,
//! 12 for each shared extent, what replaying the log changed (at most half of what is available), and 128 MiB meanwhile.
//!
//! **How it fails:** [`FsckError`] if the image cannot be checked at all; everything else is a [`Problem`] of the [`Report`].

mod apply;
mod blocks;
mod fix;
mod image;
mod inodes;
mod logged;
mod lostlog;
mod names;
mod paths;
mod rebuild;
mod records;
mod rehash;
mod repair;
mod replay;
mod report;
mod salvage;
mod scrub;
mod seed;
mod shared;
mod short;
mod size;
mod structure;
mod switch;
mod toll;

use std::sync::Arc;
use std::time::Instant;

use crate::page::BLOCK_SIZE;
use crate::storage::Storage;
use blocks::Claims;
use fix::Fix;
use image::{INTERRUPTED, Image};
use report::Findings;
pub(crate) use report::bytes;
pub use report::{LISTED_MAX, Outcome, Place, Problem, ProblemKind, Report};
use shared::SharedRuns;
use structure::{Gap, Structure};
pub use toll::Toll;

/// The result of a check.
pub type Result<T> = std::result::Result<T, FsckError>;

/// Why an image could not be checked. fsck(8) calls this an operational error: exit status 8.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsckError {
    /// It is not an image and nothing of one is left, or it is one of another version; reading or writing failed; there is too little
    /// memory for what replaying the log changes.
    #[error("{0}")]
    Engine(#[from] crate::Error),
    /// What was read before reads differently now.
    #[error("the image changes while it is checked")]
    Changed,
}

/// What is repaired.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Repair {
    /// Nothing: not a byte is written (`-n`).
    #[default]
    No,
    /// What takes nothing away: log, superblock, bitmaps, counts, orphans (`-p`).
    Safe,
    /// Everything (`-y`).
    All,
}

/// What a check is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Searching for an image whose superblocks are lost, or for leaves of a damaged tree, in bytes.
    Search,
    /// Pages of the tree.
    Tree,
    /// Inodes.
    Inodes,
    /// Names.
    Names,
    /// Contents, in bytes.
    Scrub,
}

/// How far a check is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What it is at.
    pub stage: Stage,
    /// How much is done.
    pub done: u64,
    /// Of how much; 0: not known.
    pub total: u64,
}

/// How an image is checked.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// What is repaired.
    pub repair: Repair,
    /// Whether to read and verify all contents. With [`Repair::All`] what fails its checksum is marked as lost.
    pub scrub: bool,
    /// With [`Repair::Safe`]: whether to look beyond the superblocks of an image that was closed in order and is not marked as
    /// damaged. Without it such an image is taken as clean, as at boot, unless contents are to be verified. Other checks always
    /// look at everything.
    pub force: bool,
    /// Called now and then.
    pub progress: Option<&'a dyn Fn(Progress)>,
}

impl Options<'_> {
    /// Says how far the check is.
    fn tell(&self, stage: Stage, done: u64, total: u64) {
        if let Some(progress) = self.progress {
            progress(Progress { stage, done, total });
        }
    }
}

/// Records of one kind after which it is told again how far the check is.
const TELL_RECORDS: u64 = 1 << 16;

/// Checks an image, and repairs what the options say.
///
/// # Errors
/// If it cannot be checked at all, or a repair fails. What is wrong with it is in the report.
pub fn check(storage: Arc<dyn Storage>, options: &Options<'_>) -> Result<Report> {
    let started = Instant::now();
    let mut report = match options.repair {
        Repair::No => {
            let mut looked = look(&storage, options, &Earlier::default())?;
            looked.report.left = looked.findings.total();
            looked.report.toll = Toll::of(&looked);
            looked.report.counts = looked.findings.counts.into_iter().collect();
            looked.report.problems = looked.findings.problems;
            looked.report
        }
        _ => repair::repair(&storage, options)?,
    };
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Notes in the superblocks that damage was met, so that the next check looks at everything. Nothing is written unless both of them are
/// whole: whoever checks finds that anyway.
///
/// # Errors
/// The storage cannot be read or written.
pub fn mark_damaged(storage: &dyn Storage) -> Result<()> {
    switch::mark(storage, |superblock| superblock.set_damaged(true))
}

/// How a log is replayed, and a tree is opened to be repaired.
fn replay_options(storage: &dyn Storage) -> crate::tree::Options {
    // More than the image has is never needed, and a small cache takes no time to be set up.
    let all = storage.len().unwrap_or(u64::MAX);
    let cache_size = all.clamp(REPLAY_CACHE_MIN, REPLAY_CACHE_MAX) as usize;
    crate::tree::Options { cache_size, background: false, ..crate::tree::Options::default() }
}

/// Memory that replaying the log may take for pages: the least, the most, and in between as much as the image has.
const REPLAY_CACHE_MIN: u64 = 4 << 20;
const REPLAY_CACHE_MAX: u64 = 128 << 20;

/// What one check without repair has found.
struct Looked {
    image: Image,
    structure: Structure,
    findings: Findings,
    report: Report,
    claims: Claims,
    /// The pages of the tree among them; only if a repair may follow.
    pages: Option<Claims>,
    shared: SharedRuns,
    /// Leaves of a damaged tree that are reached from nowhere, and that a repair would find.
    found: u64,
    /// Everything was looked at.
    complete: bool,
}

impl Looked {
    /// Everything that the tree holds is known.
    fn is_whole(&self) -> bool {
        self.structure.sound && self.image.log_whole
    }

    /// It is, and names are at their places: the tree need not be built again.
    fn is_sound(&self) -> bool {
        self.is_whole() && !self.image.seed_lost
    }
}

/// What a repair knows from the rounds before, for what is to be said of it.
#[derive(Clone, Default)]
struct Earlier {
    /// If a repair has not ended, it is this one.
    begun: bool,
    /// See [`Image::half_repaired`].
    half_repaired: bool,
    /// Ranges of keys that it has had to give up.
    lost: Vec<Gap>,
    /// The bytes that the file had before it was made longer.
    short: Option<u64>,
    /// The bytes that the image has, whatever the superblock says.
    size: Option<u64>,
}

/// One check without repair.
fn look(storage: &Arc<dyn Storage>, options: &Options<'_>, known: &Earlier) -> Result<Looked> {
    let (mut findings, mut report) = (Findings::default(), Report { checked: true, ..Report::default() });
    let mut image = Image::open(storage, known.size, &mut findings, options)?;
    if known.size.is_none()
        && let Some(size) = size::believed(storage, &image, options)?
    {
        return look(storage, options, &Earlier { size: Some(size), ..known.clone() });
    }
    let resize = findings.fixes.iter().any(|f| matches!(f, Fix::Extend(_) | Fix::ImageSize(_)))
        && options.repair == Repair::All;
    image.short = image.short.or(known.short);
    let interrupted = !known.begun && image.superblock.lacks_records();
    if interrupted && !image.repair_unfinished {
        findings.add(ProblemKind::RepairUnfinished, Place::image(), INTERRUPTED, vec![Fix::Finish]);
    }
    image.half_repaired = interrupted || known.half_repaired;
    report.replay = image.replay.clone();
    report.marked = image.superblock.is_damaged();
    let at_boot = options.repair == Repair::Safe && !options.force && !options.scrub;
    let mut looked = Looked {
        claims: Claims::new(&image),
        image,
        structure: Structure::default(),
        findings,
        report,
        pages: None,
        shared: SharedRuns::default(),
        found: 0,
        complete: true,
    };
    let superblock = &looked.image.superblock;
    let in_order = superblock.clean && !superblock.is_damaged();
    if at_boot && in_order && looked.findings.total() == 0 && !looked.image.needs_replay {
        looked.structure.sound = true;
        looked.report.checked = false;
        return Ok(looked);
    }
    // The rest is looked at when file and image are as long as they should be.
    if resize {
        looked.complete = false;
        return Ok(looked);
    }
    looked.walk(options, known.lost.clone())?;
    // A tree that will be built again is not looked at further. Without superblocks, these and the bitmaps are written first.
    let first = looked.image.salvaged && looked.is_whole();
    if options.repair == Repair::All && !looked.is_sound() && !first {
        looked.complete = false;
        return Ok(looked);
    }
    looked.records(options)?;
    Ok(looked)
}

impl Looked {
    fn walk(&mut self, options: &Options<'_>, lost: Vec<Gap>) -> Result<()> {
        let Looked { image, claims, findings, report, .. } = self;
        self.structure = structure::walk(image, claims, findings, report, options);
        let mut lost = lost;
        if options.repair == Repair::No && !self.structure.gaps.is_empty() {
            // What a repair would find, and what not, is to be known before there is one.
            self.found = rebuild::foresee(image, &mut self.structure, options)?;
            lost.append(&mut self.structure.gaps);
        }
        logged::settle_all(image, &self.structure)?;
        seed::choose(image, &self.structure, findings)?;
        for gap in &lost {
            let what = format!("{gap} are lost");
            findings.add(ProblemKind::KeysLost, Place::image(), what, vec![Fix::Accept]);
        }
        self.structure.gaps.extend(lost);
        self.pages = (options.repair != Repair::No).then(|| claims.clone());
        Ok(())
    }

    fn records(&mut self, options: &Options<'_>) -> Result<()> {
        let whole = self.is_whole();
        let Looked { image, structure, findings, report, claims, shared, .. } = self;
        let mut found = None;
        if structure.leaves.len() > 0 {
            let mut inodes =
                inodes::check_inodes(image, structure, claims, shared, findings, report, options)?;
            names::check_names(image, structure, &mut inodes, findings, report, options)?;
            found = Some(inodes);
        }
        shared.check(image, claims, findings);
        if let Some(inodes) = &mut found {
            inodes::claim_late(std::mem::take(&mut inodes.late), claims, findings);
        }
        if let Some(held) = image.short {
            let used = claims.reaches(held / BLOCK_SIZE as u64);
            let what = match (used, whole) {
                (true, _) => "; some of what was behind that is in use, and lost",
                (false, true) => "; nothing behind that was in use",
                (false, false) => "",
            };
            let cut = findings.problems.iter_mut().filter(|p| p.kind == ProblemKind::FileShort);
            cut.for_each(|p| p.what.push_str(what));
        }
        if !image.repair_unfinished && !image.salvaged {
            blocks::check_bitmaps(image, claims, whole, findings);
        }
        if options.scrub {
            scrub::scrub(image, structure, findings, report, options)?;
        }
        if let Some(inodes) = &found {
            let places = findings.problems.iter_mut().map(|p| &mut p.place).chain(&mut report.lost);
            paths::name(image, structure, inodes, places)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
