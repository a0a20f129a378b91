//! Repairing a damaged image.

use std::sync::Arc;

use btfs::Error;
use btfs::fs::Fs;
use btfs::fsck::{FsckError, Options, Repair, Report, check};
use btfs::storage::{Image, MemStorage};

use crate::Verdict;
use crate::make::options;
use crate::walk::{Met, walk, work};

const ALL: Options<'static> = Options { repair: Repair::All, scrub: true, force: true, progress: None };
const LOOK: Options<'static> = Options { repair: Repair::No, scrub: false, force: true, progress: None };

/// Repairs, and looks whether that was all.
///
/// # Errors
/// What no image may lead to.
pub fn run(storage: Arc<MemStorage>, mode: u8) -> Result<Verdict, String> {
    let image = storage.image();
    let mut sound = true;
    if mode & 1 != 0 {
        // What the safe repair leaves is the other's.
        let safe = check(storage.clone(), &Options { repair: Repair::Safe, ..ALL });
        sound &= safe.is_ok_and(|report| report.is_clean());
    }
    if mode & 2 != 0 {
        let before = storage.image();
        let looked = check(storage.clone(), &LOOK);
        sound &= looked.is_ok_and(|report| report.is_clean());
        if storage.image() != before {
            return Err("a check without repair has written".into());
        }
    }
    let report = match check(storage.clone(), &ALL) {
        Ok(report) => report,
        Err(e) if may_fail(image, &e) => return Ok(Verdict::Refused(e.to_string())),
        Err(e) => return Err(format!("the repair fails: {e}")),
    };
    if report.left > 0 {
        return Err(format!("the repair leaves something:\n{report}"));
    }
    sound &= report.is_clean();
    clean(&storage, &report, "a second check after the repair")?;
    let fs = Fs::open(storage.clone(), &options())
        .map_err(|e| format!("cannot be opened after the repair: {e}\n{report}"))?;
    let mut met = Met::default();
    let found = walk(&fs, &mut met);
    let says = |met: &Met, when: &str| match &met.damage {
        Some(damage) => Err(format!("{when} the repair: {damage}\n{report}")),
        None if met.rotten => Err(format!("contents are rotten {when} the repair\n{report}")),
        None => Ok(()),
    };
    says(&met, "a walk after")?;
    fs.tree().check().map_err(|e| format!("the tree after the repair: {e}\n{report}"))?;
    work(&fs, &found, &mut met);
    says(&met, "work after")?;
    fs.close().map_err(|e| format!("closing after the repair: {e}\n{report}"))?;
    clean(&storage, &report, "a check after work on the repaired image")?;
    Ok(if sound { Verdict::Sound } else { Verdict::Damaged })
}

fn clean(storage: &Arc<MemStorage>, first: &Report, when: &str) -> Result<(), String> {
    match check(storage.clone(), &Options { scrub: true, ..LOOK }) {
        Ok(report) if report.is_clean() => Ok(()),
        Ok(report) => Err(format!("{when} finds\n{report}\nafter\n{first}")),
        Err(e) => Err(format!("{when} fails: {e}\nafter\n{first}")),
    }
}

/// Whether a repair may give up: where nothing can be looked at, and where there is no space for what it has to write.
fn may_fail(before: Image, e: &FsckError) -> bool {
    matches!(e, FsckError::Engine(Error::NoSpace))
        || check(Arc::new(MemStorage::from_image(before)), &LOOK).is_err()
}
