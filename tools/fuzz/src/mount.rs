//! Opening a damaged image and using it.

use std::sync::Arc;

use btfs::fs::Fs;
use btfs::storage::{MemStorage, Storage};
use btfs::tree::Options;

use crate::Verdict;
use crate::make::options;
use crate::walk::{Met, read_back, walk, work};

/// Opens, walks, works, and opens again.
///
/// # Errors
/// What no image may lead to.
pub fn run(storage: Arc<MemStorage>, mode: u8) -> Result<Verdict, String> {
    let mut met = Met::default();
    if mode & 1 != 0 {
        let before = storage.image();
        let read_only = Options { read_only: true, ..options() };
        if let Ok(fs) = Fs::open(storage.clone(), &read_only) {
            let found = walk(&fs, &mut met);
            work(&fs, &found, &mut met);
            let _ = fs.close();
        }
        if storage.image() != before {
            return Err("something was written through a read-only filesystem".into());
        }
    }
    let fs = match Fs::open(storage.clone(), &options()) {
        Ok(fs) => fs,
        Err(e) => return Ok(Verdict::Refused(e.to_string())),
    };
    let found = walk(&fs, &mut met);
    // In a forged tree keys may lie where nobody looks for them (docs/design.md, section 12): what is written may not be found.
    let is_tree = fs.tree().check().is_ok();
    let mut written = work(&fs, &found, &mut met);
    if !is_tree {
        written.clear();
    }
    read_back(&fs, &written, &mut met)?;
    if mode & 2 != 0 && fs.tree().set_read_only(true).is_ok() {
        let _ = fs.tree().set_read_only(false);
    }
    if mode & 4 != 0 {
        let size = storage.len().unwrap_or(0);
        let _ = fs.tree().grow(size + (3 << 20));
    }
    if mode & 8 != 0 {
        // As if the process had died.
        drop(fs);
    } else {
        let _ = fs.close();
    }
    if let Ok(fs) = Fs::open(storage, &options()) {
        read_back(&fs, &written, &mut met)?;
        walk(&fs, &mut met);
        let _ = fs.close();
    } else {
        met.damage.get_or_insert("cannot be opened again".into());
    }
    Ok(if met.damage.is_some() || met.rotten { Verdict::Damaged } else { Verdict::Sound })
}
