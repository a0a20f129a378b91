//! The blocks in use, counted in several ways that must agree.

use std::collections::BTreeMap;

use super::*;

/// What the tree's bitmaps, the inodes, the extents and the counts of shared blocks say of blocks agrees. `inodes` are all that
/// have any, and nobody changes them meanwhile.
pub(super) fn compare_blocks(fs: &Fs, inodes: impl Iterator<Item = Ino>) {
    let inodes: Vec<Ino> = inodes.collect();
    let data: u64 = fs.tree().check().unwrap().data.iter().map(|r| r.len as u64).sum();
    let counted: u64 = inodes.iter().map(|ino| fs.attributes(*ino).unwrap().blocks / 8).sum();
    let counts = counts(fs);
    let saved: u64 = counts.values().map(|count| count - 1).sum();
    assert_eq!(data + saved, counted, "blocks in use, with those saved by sharing, and blocks of inodes");
    compare_counts(fs, &inodes, counts);
}

/// How many own each block of which there is a count.
fn counts(fs: &Fs) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    let mut cursor = fs.tree().cursor();
    cursor.seek(&format::shared_key(0)).unwrap();
    while cursor.next().unwrap() {
        let Some(end) = format::shared_end(cursor.key()) else { break };
        let shared = format::Shared::decode(end, cursor.value()).unwrap();
        assert!(shared.count >= 2, "a count that says nothing");
        for block in end - shared.len as u64..end {
            assert!(counts.insert(block, shared.count as u64).is_none(), "block {block} has two counts");
        }
    }
    counts
}

/// E4, H1, H2: each block belongs to as many extents as its record says, all of which know that it may be more than one.
fn compare_counts(fs: &Fs, inodes: &[Ino], mut counts: BTreeMap<u64, u64>) {
    let mut owners: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
    for ino in inodes {
        if fs.attributes(*ino).unwrap().kind != Kind::File {
            continue;
        }
        for m in fs.extents_in(*ino, 0, u64::MAX, usize::MAX).unwrap() {
            let Some(run) = m.extent.run() else { continue };
            for block in run.start.0..run.end().0 {
                let owner = owners.entry(block).or_insert((0, true));
                *owner = (owner.0 + 1, owner.1 && m.is_shared());
            }
        }
    }
    for (block, (n, all_know)) in &owners {
        assert_eq!(counts.remove(block).unwrap_or(1), *n, "owners of block {block}");
        assert!(*n == 1 || *all_know, "an extent does not know that block {block} is shared");
    }
    assert!(counts.is_empty(), "counts of blocks that nobody has: {counts:?}");
}

/// There is no end to what could be claimed of one range.
#[test]
fn reading_stops_at_the_first_extent_that_overlaps_another() {
    let fs = open(&image(64 << 20));
    let f = file(&fs, b"f");
    resize(&fs, f, 1 << 40);
    let mut batch = Batch::new();
    for n in 1..100u64 {
        batch.put(&format::extent_key(f, n * BLOCK), &format::Extent::Lost { len: n * BLOCK }.encode());
    }
    fs.tree().apply(&batch).unwrap();
    let found = fs.extents_in(f, 0, BLOCK, usize::MAX);
    assert!(matches!(found, Err(FsError::Engine(e)) if e.is_corrupt()));
}
