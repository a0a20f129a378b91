//! Whether names lie where the superblock's hash seed puts them.
//!
//! The seed cannot be told from the hashes. But whether one is right can be told from a few names: so one that was found in a damaged
//! place is taken only if it fits, and names are given new places only if none does.

use super::Result;
use super::fix::Fix;
use super::image::Image;
use super::report::{Findings, Place, ProblemKind};
use super::structure::Structure;
use crate::fs::format::*;
use crate::fs::name_hash;

/// Names that are looked at.
const NAMES_MAX: usize = 2000;
/// Records that are looked at for them.
const RECORDS_MAX: usize = 200_000;
/// Names without which a superblock that is whole is believed.
const NAMES_MIN: usize = 8;

/// Chooses the seed under which most names are at their places, and reports if there is none.
pub(super) fn choose(image: &mut Image, structure: &Structure, findings: &mut Findings) -> Result<()> {
    if structure.leaves.len() == 0 {
        return Ok(());
    }
    let mut seeds = image.seeds.clone();
    seeds.push(image.superblock.hash_seed);
    let mut right = vec![0usize; seeds.len()];
    let mut names = 0;
    let mut records = structure.records(image, TAG_GROUP)?;
    for _ in 0..RECORDS_MAX {
        if names == NAMES_MAX || !records.next()? {
            break;
        }
        let (name, hash) = match AnyKey::parse(records.key()) {
            Some(AnyKey::Entry(_, cookie)) => match Entry::decode(ROOT, records.value()) {
                Ok(entry) => (entry.name, place_hash(cookie.0)),
                Err(_) => continue,
            },
            Some(AnyKey::Inode(_)) => continue,
            _ => break,
        };
        names += 1;
        for (seed, right) in seeds.iter().zip(&mut right) {
            *right += (name_hash(seed, &name) == hash) as usize;
        }
    }
    let best = (0..seeds.len()).rev().max_by_key(|i| right[*i]).unwrap_or(0);
    // While a repair is unfinished, the seed may be a new one that no name knows yet.
    let enough = if image.salvaged || image.repair_unfinished { 1 } else { NAMES_MIN };
    if names < enough || right[best] * 2 >= names {
        image.superblock.hash_seed = seeds[best];
        return Ok(());
    }
    image.seed_lost = true;
    let what = "the seed of the names' hash is lost: no name can be looked up";
    findings.add(ProblemKind::HashSeed, Place::image(), what, vec![Fix::Rehash]);
    Ok(())
}

/// A seed that nobody can guess.
pub(super) fn fresh() -> [u8; 16] {
    use std::hash::{BuildHasher, Hasher};
    // The keys of the standard library's hash tables come from the system's random numbers.
    let half = || std::collections::hash_map::RandomState::new().build_hasher().finish().to_be_bytes();
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&half());
    seed[8..].copy_from_slice(&half());
    seed
}
