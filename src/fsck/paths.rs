//! Paths for the inodes of a report: found through names and parents, for those that are listed only.

use std::collections::BTreeMap;

use super::Result;
use super::image::Image;
use super::inodes::Inodes;
use super::report::Place;
use super::structure::Structure;
use crate::escape::escaped;
use crate::fs::format::*;

/// Directories on the way to the root, at the most.
const DEPTH_MAX: usize = 1000;
/// Bytes of a path that are shown: those at its end.
const SHOWN_MAX: usize = 4096;

/// Fills in the paths of the places' inodes, as far as they have any. Two passes over the names.
pub(super) fn name<'p>(
    image: &Image,
    structure: &Structure,
    inodes: &Inodes,
    places: impl Iterator<Item = &'p mut Place>,
) -> Result<()> {
    let places: Vec<&mut Place> = places.collect();
    let mut wanted: BTreeMap<u64, Option<(u64, Vec<u8>)>> =
        places.iter().filter_map(|p| p.ino).map(|ino| (ino, None)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    find(image, structure, inodes, &mut wanted)?;
    let mut above: BTreeMap<u64, Option<(u64, Vec<u8>)>> = BTreeMap::new();
    for (parent, _) in wanted.values().flatten() {
        let mut at = *parent;
        for _ in 0..DEPTH_MAX {
            if at == ROOT.0 || wanted.contains_key(&at) || above.insert(at, None).is_some() {
                break;
            }
            match inodes.find_dir(Ino(at)) {
                Some(dir) => at = inodes.dirs[dir].info.parent.0,
                None => break,
            }
        }
    }
    if !above.is_empty() {
        find(image, structure, inodes, &mut above)?;
    }
    wanted.append(&mut above);
    for place in places {
        place.path = place.ino.and_then(|ino| path(&wanted, ino));
    }
    Ok(())
}

/// One pass: a name for each of the inodes.
fn find(
    image: &Image,
    structure: &Structure,
    inodes: &Inodes,
    wanted: &mut BTreeMap<u64, Option<(u64, Vec<u8>)>>,
) -> Result<()> {
    let owners: BTreeMap<u64, u64> = inodes.dirs.iter().map(|d| (d.info.entries, d.ino.0)).collect();
    let mut records = structure.records(image, TAG_GROUP)?;
    while records.next()? {
        let Some(AnyKey::Entry(group, _)) = AnyKey::parse(records.key()) else { continue };
        let Ok(entry) = Entry::decode(Ino(0), records.value()) else { continue };
        if let (Some(place @ None), Some(owner)) = (wanted.get_mut(&entry.ino.0), owners.get(&group)) {
            *place = Some((*owner, entry.name));
        }
    }
    Ok(())
}

fn path(names: &BTreeMap<u64, Option<(u64, Vec<u8>)>>, ino: u64) -> Option<String> {
    if ino == ROOT.0 {
        return Some("/".into());
    }
    let mut parts = Vec::new();
    let (mut at, mut depth, mut len) = (ino, 0, 0);
    while at != ROOT.0 {
        let (parent, name) = names.get(&at)?.as_ref()?;
        if len <= SHOWN_MAX {
            let name = escaped(name);
            len += 1 + name.len();
            parts.push(name);
        }
        at = *parent;
        depth += 1;
        if depth > DEPTH_MAX {
            return None;
        }
    }
    let cut = len > SHOWN_MAX;
    if cut {
        parts.pop();
    }
    parts.reverse();
    Some(format!("{}/{}", if cut { "…" } else { "" }, parts.join("/")))
}
