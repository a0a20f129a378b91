//! One of the two superblocks is damaged: what was committed is found by the other.

use std::ops::Range;

use super::*;
use crate::page::superblock::SUPERBLOCK_OFFSETS;

fn put(tree: &Tree, n: u64) {
    let mut batch = Batch::new();
    batch.put(&n.to_be_bytes(), &[n as u8; 700]);
    tree.apply(&batch).unwrap();
    tree.commit_all().unwrap();
}

/// Opens the image with each superblock damaged in turn. Exactly the keys in `kept` were committed, and must be there.
fn look(storage: &MemStorage, kept: Range<u64>, what: &str) {
    for at in SUPERBLOCK_OFFSETS {
        let damaged = Arc::new(MemStorage::from_image(storage.image()));
        let mut byte = [0];
        damaged.read_at(at + 60, &mut byte).unwrap();
        damaged.write_at(at + 60, &[byte[0] ^ 4]).unwrap();
        let what = format!("{what}, superblock at {at}");
        let tree = Tree::open(damaged, &quiet(64)).unwrap_or_else(|error| panic!("{what}: {error}"));
        tree.check().unwrap_or_else(|error| panic!("{what}: {error}"));
        for n in 0..kept.end {
            let value = tree.get(&n.to_be_bytes()).unwrap_or_else(|error| panic!("{what}: {error}"));
            let right = kept.contains(&n).then(|| vec![n as u8; 700]);
            assert!(value == right, "{what}: record {n} of {kept:?} is not as it was committed");
        }
    }
}

#[test]
fn what_was_committed_is_not_lost_with_one_of_the_superblocks() {
    let storage = image(16 << 20, 512 << 10);
    let mut count = 0;
    let work = |tree: &Tree, count: &mut u64, n| {
        (0..n).for_each(|i| put(tree, *count + i));
        *count += n;
    };
    let open = || Tree::open(storage.clone(), &quiet(64)).unwrap();
    let tree = open();
    look(&storage, 0..count, "a new image");
    work(&tree, &mut count, 5);
    look(&storage, 0..count, "first use");
    drop(tree);
    let tree = open();
    work(&tree, &mut count, 5);
    look(&storage, 0..count, "after a recovery");
    tree.close().unwrap();
    look(&storage, 0..count, "closed in order");
    let tree = open();
    work(&tree, &mut count, 5);
    look(&storage, 0..count, "after an orderly close");
    tree.set_read_only(true).unwrap();
    look(&storage, 0..count, "made read-only");
    tree.set_read_only(false).unwrap();
    work(&tree, &mut count, 5);
    look(&storage, 0..count, "made writable again");
    let size = tree.size() + (4 << 20);
    tree.grow(size).unwrap();
    for at in SUPERBLOCK_OFFSETS {
        let damaged = Arc::new(MemStorage::from_image(storage.image()));
        damaged.write_at(at + 60, b"xxxx").unwrap();
        assert_eq!(Tree::open(damaged, &quiet(64)).unwrap().size(), size, "grown, superblock at {at}");
    }
    // What checkpoints give free is used again: the log goes round, and pages are emptied.
    let mut first = 0;
    for round in 0..12 {
        work(&tree, &mut count, 150);
        for n in first..count - 120 {
            let mut batch = Batch::new();
            batch.delete(&n.to_be_bytes());
            tree.apply(&batch).unwrap();
        }
        first = count - 120;
        tree.commit_all().unwrap();
        look(&storage, first..count, &format!("round {round}"));
        tree.checkpoint().unwrap();
        look(&storage, first..count, &format!("checkpoint of round {round}"));
    }
}
