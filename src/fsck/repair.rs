//! Repairing: rounds of looking and doing, until a look finds nothing that can be done.
//!
//! Each round does what it can rely on, in this order: a tree that is damaged is built again, and nothing else; otherwise the log is
//! replayed, superblocks and bitmaps are written again, and then records are repaired through the tree. The last look is
//! what the report says of the image as it is now.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use super::apply;
use super::fix::Fix;
use super::image::read_superblocks;
use super::rebuild;
use super::records::Records;
use super::report::{LISTED_MAX, Outcome, Problem, ProblemKind, Report};
use super::structure::Gap;
use super::switch::{self, Target};
use super::{Earlier, FsckError, Looked, Options, Repair, Result, look, mark_damaged, replay_options, size};
use crate::error::Error;
use crate::fs::format::*;
use crate::page::Run;
use crate::page::format::whole_pages;
use crate::page::superblock::INCOMPAT_RECORDS;
use crate::pool::RecoveryReport;
use crate::storage::Storage;
use crate::tree::Tree;

/// Rounds after which a repair gives up: damage that comes back with each. Those with more to do
/// than one can, and less than any before, are not counted.
const ROUNDS_MAX: usize = 20;

/// What a round has done.
enum Done {
    /// Nothing: there is nothing to do, or it is not to be done.
    Nothing,
    /// Something: another look is needed.
    Something,
    /// The tree is a new one, without these ranges of keys.
    Rebuilt(Vec<Gap>),
    /// The file cannot be as long as the image: the image has this size from now on.
    Refused(u64),
}

/// Everything that was found in all rounds.
#[derive(Default)]
struct History {
    problems: Vec<Problem>,
    counts: BTreeMap<ProblemKind, u64>,
    /// What only a look at all contents finds and this repair leaves alone, as the last such look has found it.
    carried: Vec<Problem>,
    carried_count: u64,
    /// The last look of all did not read contents.
    stale: bool,
    report: Option<Report>,
    /// What replaying the log did in the first look; the log of a later one is the repair's own.
    replay: Option<RecoveryReport>,
    /// The image was marked as damaged before.
    marked: bool,
    lost_names: u64,
    reconnected: u64,
    did: bool,
    /// What the log said is in the image.
    replayed: bool,
}

/// Repairs what the options say.
pub(super) fn repair(storage: &Arc<dyn Storage>, options: &Options<'_>) -> Result<Report> {
    let mut history = History::default();
    let mut options = *options;
    let mut known = Earlier::default();
    let (mut rounds, mut least) = (0, u64::MAX);
    let mut looked = history.first_look(storage, &mut options)?;
    loop {
        history.note(&looked, &options);
        let found = &looked.findings;
        if (found.more || found.more_rotten) && found.total() < least {
            least = found.total();
        } else {
            rounds += 1;
        }
        // Until a look finds nothing more, whoever cuts this off, and whatever it leaves.
        if looked.findings.in_metadata() > 0 {
            let marked = mark_damaged(&**storage);
            // A disk that takes nothing does not keep anybody from being told.
            if options.repair == Repair::All {
                marked?;
            }
        }
        let last = rounds == ROUNDS_MAX;
        // What was lost is dealt with once, when records can be; not in a round that only writes a superblock again or makes a root
        // directory, or has too much to do.
        let comes_first = |fix: &Fix| matches!(fix, Fix::Superblock(_) | Fix::Root);
        let unfinished = looked.findings.more || looked.findings.fixes.iter().any(comes_first);
        let dealt_with = looked.complete && looked.is_sound() && !looked.image.salvaged && !unfinished;
        let done = match last {
            true => Done::Nothing,
            false => history.act(storage, &options, &mut looked, dealt_with)?,
        };
        options.force = true;
        // Contents are read until what was found in them has been dealt with; a round that follows looks at everything else.
        options.scrub &= !dealt_with || rotten_waits(&options, &looked);
        if dealt_with {
            known.lost.clear();
        }
        known.short = looked.image.short.filter(|_| !dealt_with);
        // A repair that leaves what takes something away has not finished an earlier one.
        let finishes = dealt_with && looked.findings.allowed(&options);
        known.half_repaired = looked.image.half_repaired && !finishes;
        known.begun |= finishes || matches!(done, Done::Rebuilt(_));
        match done {
            Done::Nothing => {
                let unmarked = looked.findings.in_metadata() == 0;
                if unmarked {
                    switch::mark(&**storage, |superblock| {
                        superblock.set_damaged(false);
                        superblock.incompat &= !INCOMPAT_RECORDS;
                    })?;
                }
                return Ok(Report { unmarked, ..history.finish(looked) });
            }
            Done::Something => {}
            Done::Rebuilt(gaps) => known.lost = gaps,
            Done::Refused(size) => known.size = Some(size),
        }
        // Two at once might take twice the memory.
        drop(looked);
        looked = look(storage, &options, &known)?;
    }
}

/// Whether opening the image believes both superblocks, which say the same of its size: it writes both again.
fn superblocks_agree(storage: &Arc<dyn Storage>) -> Result<bool> {
    let both = read_superblocks(&**storage)?;
    Ok(matches!(both, [Ok(a), Ok(b)] if a.size == b.size))
}

/// Replays the log into the image.
fn replay_home(storage: &Arc<dyn Storage>) -> crate::Result<RecoveryReport> {
    let tree = Tree::open(storage.clone(), &replay_options(&**storage))?;
    let report = tree.recovery().clone();
    tree.close()?;
    Ok(report)
}

impl History {
    /// The first look. Where there is no memory for what the log changes, it is replayed into the image: what is to be repaired may be
    /// written.
    fn first_look(&mut self, storage: &Arc<dyn Storage>, options: &mut Options<'_>) -> Result<Looked> {
        let looked = match look(storage, options, &Earlier::default()) {
            Err(FsckError::Engine(e)) if e.is_out_of_memory() && superblocks_agree(storage)? => {
                self.replay = Some(match replay_home(storage) {
                    // Then it has to be replayed as far as it goes, and nothing but memory helps.
                    Err(damage) if damage.is_corrupt() => return Err(e.into()),
                    replayed => replayed?,
                });
                self.replayed = true;
                options.force = true;
                look(storage, options, &Earlier::default())?
            }
            looked => looked?,
        };
        self.replay = self.replay.take().or_else(|| looked.report.replay.clone());
        self.marked = looked.image.superblock.is_damaged();
        Ok(looked)
    }

    /// Remembers what a round has found.
    fn note(&mut self, looked: &Looked, options: &Options<'_>) {
        for problem in &looked.findings.problems {
            let seen =
                |p: &Problem| p.kind == problem.kind && p.place == problem.place && p.what == problem.what;
            let listed = self.problems.iter().filter(|p| p.kind == problem.kind).count();
            if listed < LISTED_MAX && !self.problems.iter().any(seen) {
                self.problems.push(problem.clone());
            }
        }
        for (kind, n) in &looked.findings.counts {
            let count = self.counts.entry(*kind).or_default();
            *count = (*count).max(*n);
        }
        let scrubbed = options.scrub && looked.complete;
        if scrubbed {
            let stays = |kind: ProblemKind| {
                kind == ProblemKind::Unreadable || kind == ProblemKind::Data && options.repair != Repair::All
            };
            let found = &looked.findings;
            self.carried = found.problems.iter().filter(|p| stays(p.kind)).cloned().collect();
            self.carried_count = found.counts.iter().filter(|(kind, _)| stays(**kind)).map(|(_, n)| n).sum();
        }
        self.stale = !scrubbed;
        if looked.complete && (self.report.is_none() || scrubbed) {
            self.report = Some(looked.report.clone());
        }
    }

    /// Does what can be done.
    fn act(
        &mut self,
        storage: &Arc<dyn Storage>,
        options: &Options<'_>,
        looked: &mut Looked,
        deals_with_lost: bool,
    ) -> Result<Done> {
        let mut fixes = std::mem::take(&mut looked.findings.fixes);
        if let Some(done) = self.size_and_superblocks(storage, options, looked, &fixes)? {
            return Ok(done);
        }
        if !looked.is_sound() {
            if options.repair != Repair::All {
                return Ok(Done::Nothing);
            }
            self.did = true;
            let lost = rebuild::rebuild(&**storage, looked, options)?;
            self.replayed = true;
            return Ok(Done::Rebuilt(lost));
        }
        if looked.image.needs_replay {
            replay_home(storage)?;
            self.replayed = true;
        }
        let mut did = fixes.contains(&Fix::Finish) && looked.findings.allowed(options);
        for fix in &fixes {
            if let Fix::Doublewrite(half) = fix {
                switch::empty_half(&**storage, &looked.image.superblock, *half)?;
                did = true;
            }
        }
        if fixes.contains(&Fix::Bitmaps) {
            did |= self.bitmaps_of_records(storage, options, looked)?;
        }
        if options.repair == Repair::All && looked.findings.unsafe_fixes == 0 {
            fixes.append(&mut looked.findings.rotten);
        }
        if options.repair == Repair::All && deals_with_lost && looked.image.superblock.lacks_records() {
            let is_lost = |fix: &mut Fix| matches!(fix, Fix::LoseRange(..) | Fix::Remake(..));
            let lost = fixes.extract_if(.., is_lost).collect();
            did |= self.records(storage, options, looked, lost)?;
            // Whatever becomes of the rest: nobody reads zeros for contents any more.
            switch::mark(&**storage, |superblock| superblock.incompat &= !INCOMPAT_RECORDS)?;
        }
        did |= self.records(storage, options, looked, fixes)?;
        self.did |= did;
        Ok(if did { Done::Something } else { Done::Nothing })
    }

    /// What everything else relies on. `None`: nothing is to be done about it.
    fn size_and_superblocks(
        &mut self,
        storage: &Arc<dyn Storage>,
        options: &Options<'_>,
        looked: &Looked,
        fixes: &[Fix],
    ) -> Result<Option<Done>> {
        let salvaged = looked.image.salvaged;
        let extend = fixes.iter().find_map(|f| if let Fix::Extend(len) = f { Some(*len) } else { None });
        let resize = fixes.iter().find_map(|f| if let Fix::ImageSize(size) = f { Some(*size) } else { None });
        if (extend.is_some() || resize.is_some() || salvaged) && options.repair != Repair::All {
            return Ok(Some(Done::Nothing));
        }
        if let Some(len) = extend {
            return self.extend(storage, looked, len).map(Some);
        }
        let mut did = false;
        if salvaged && looked.is_whole() {
            // The size is written with the rest of them. Names are given new places, if they need any, when they are there.
            self.bitmaps(storage, looked)?;
            did = true;
        } else if let Some(size) = resize.filter(|_| !salvaged) {
            switch::set_size(&**storage, size)?;
            did = true;
        } else {
            // From then on both can be marked.
            for fix in fixes {
                if let Fix::Superblock(which) = fix {
                    switch::restore_superblock(&**storage, *which)?;
                    did = true;
                }
            }
        }
        self.did |= did;
        Ok(did.then_some(Done::Something))
    }

    /// Makes the file as long as the image. If it cannot be so long, the image is to be as long as the file: nothing lies behind
    /// that either way. What may be possible another day, as on a full disk, is an error.
    fn extend(&mut self, storage: &Arc<dyn Storage>, looked: &Looked, len: u64) -> Result<Done> {
        let Err(error) = storage.set_len(len).and_then(|()| storage.sync()) else {
            self.did = true;
            return Ok(Done::Something);
        };
        let held = whole_pages(looked.image.short.unwrap_or(len));
        let held = held.max(size::least(&looked.image.superblock));
        let impossible = matches!(
            error.kind(),
            ErrorKind::FileTooLarge | ErrorKind::InvalidInput | ErrorKind::Unsupported
        );
        if !impossible || size::resized(&looked.image.superblock, held).is_none() {
            return Err(Error::io("making the image's file longer", error).into());
        }
        for problem in self.problems.iter_mut().filter(|p| p.kind == ProblemKind::FileShort) {
            problem.repair = Some(format!("it cannot be longer ({error}): the image shrinks"));
        }
        Ok(Done::Refused(held))
    }

    /// Writes the bitmaps again. The tree stays, so the switch is to the same root.
    fn bitmaps(&mut self, storage: &Arc<dyn Storage>, looked: &Looked) -> Result<()> {
        let image = &looked.image;
        let pages = looked.pages.as_ref().unwrap_or(&looked.claims);
        let end = if image.salvaged { image.end } else { switch::end_of(&**storage)?.max(image.end) };
        let groups = image.groups_of(&looked.claims);
        let root = image.superblock.root;
        // What a new tree has lost was said when that became the image's.
        let target = Target { root, end, groups, claims: &looked.claims, pages, lossy: false };
        switch::switch(&**storage, image, &target)
    }

    /// Writes the bitmaps again from the records; whether that was done. If a user has to decide about records first, no block that is
    /// marked as in use becomes free: it may belong to what one of them has led to.
    fn bitmaps_of_records(
        &mut self,
        storage: &Arc<dyn Storage>,
        options: &Options<'_>,
        looked: &mut Looked,
    ) -> Result<bool> {
        if !looked.findings.allowed(options) {
            use ProblemKind::*;
            let wrong = |kind| looked.findings.counts.contains_key(kind);
            if !looked.image.repair_unfinished && ![BlocksFree, Bitmap, PageLsn].iter().any(wrong) {
                return Ok(false);
            }
            looked.claims.keep(&looked.image);
        }
        self.bitmaps(storage, looked)?;
        Ok(true)
    }

    /// Repairs records; whether any was changed.
    fn records(
        &mut self,
        storage: &Arc<dyn Storage>,
        options: &Options<'_>,
        looked: &mut Looked,
        fixes: Vec<Fix>,
    ) -> Result<bool> {
        // A user has to decide about the rest first: counts follow from it.
        if !looked.findings.allowed(options) {
            return Ok(false);
        }
        let mut fixes: Vec<Fix> = fixes.into_iter().filter(|fix| !fix.is_past_the_log()).collect();
        if fixes.contains(&Fix::Contested) {
            contested(looked, &mut fixes)?;
        }
        if fixes.is_empty() {
            return Ok(false);
        }
        let applied = apply::apply(storage, &fixes, &mut looked.shared)?;
        self.lost_names += applied.lost_names;
        self.reconnected += applied.reconnected;
        Ok(true)
    }

    /// The report: what was found in all rounds, and what of it the last one still found.
    fn finish(self, looked: Looked) -> Report {
        let mut report = match &self.report {
            Some(first) if !self.did => first.clone(),
            _ => looked.report.clone(),
        };
        if let Some(first) = &self.report {
            report.scrubbed_bytes = first.scrubbed_bytes;
        }
        report.replay = self.replay;
        report.marked = self.marked;
        let left: u64 = looked.findings.total();
        let (carried, carried_count) =
            if self.stale { (self.carried, self.carried_count) } else { (Vec::new(), 0) };
        let still = |p: &Problem| {
            let same = |q: &Problem| p.kind == q.kind && p.place == q.place && p.what == q.what;
            looked.findings.problems.iter().chain(&carried).any(same)
        };
        let found: u64 = self.counts.values().sum();
        report.problems = self.problems.clone();
        for problem in &mut report.problems {
            problem.outcome = if still(problem) { Outcome::Left } else { Outcome::Repaired };
        }
        report.counts = self.counts.iter().map(|(k, n)| (*k, *n)).collect();
        report.left = left + carried_count;
        report.repaired = found.saturating_sub(report.left).max((self.did && found > 0) as u64);
        report.replay_written = self.replayed;
        report.lost_names = self.lost_names;
        report.reconnected = self.reconnected;
        report
    }
}

/// Whether contents with a wrong checksum are still to be given up after a round.
fn rotten_waits(options: &Options<'_>, looked: &Looked) -> bool {
    let found = &looked.findings;
    options.repair == Repair::All && (!found.rotten.is_empty() || found.more_rotten)
}

/// Contents that are not marked as shared, and lie in blocks that others share: they get blocks of their own. If there are none,
/// the tree itself lies there, and the shared ones move.
fn contested(looked: &Looked, fixes: &mut Vec<Fix>) -> Result<()> {
    let runs = &looked.shared.contested;
    // Ascending, and none overlaps another.
    let overlaps = |run: Run| {
        let next = runs.partition_point(|r| r.end() <= run.start);
        runs.get(next).is_some_and(|r| r.start < run.end())
    };
    let (mut own, mut shared) = (Vec::new(), Vec::new());
    let mut records = Records::new(&looked.image, &looked.structure.leaves, &[TAG_XATTR])?;
    while records.next()? {
        match AnyKey::parse(records.key()) {
            Some(AnyKey::Extent(ino, end)) => {
                let Ok(extent) = Extent::decode(ino, end, records.value()) else { continue };
                if extent.run().is_some_and(overlaps) {
                    let list = if extent.is_shared() { &mut shared } else { &mut own };
                    list.push(Fix::Unshare(records.key().to_vec()));
                }
            }
            Some(AnyKey::Xattr(ino, _)) => {
                let Ok(xattr) = Xattr::decode(ino, records.value()) else { continue };
                if xattr.run().is_some_and(overlaps) {
                    own.push(Fix::Unshare(records.key().to_vec()));
                }
            }
            Some(AnyKey::Shared(_) | AnyKey::Orphan(_) | AnyKey::State) => break,
            _ => {}
        }
    }
    fixes.extend(if own.is_empty() { shared } else { own });
    Ok(())
}
