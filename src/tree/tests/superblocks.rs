//! One of the two superblocks is damaged: what was committed is found by the other, or it is said that something is wrong.

use super::*;
use crate::page::superblock::SUPERBLOCK_OFFSETS;

fn put(tree: &Tree, n: u64) {
    let mut batch = Batch::new();
    batch.put(&n.to_be_bytes(), &[n as u8; 700]);
    tree.apply(&batch).unwrap();
    tree.commit_all().unwrap();
}

/// Opens the image with each superblock damaged in turn. Everything below `count` was committed, and must be there; an error is
/// only right where `may_refuse`.
fn look(storage: &MemStorage, count: u64, may_refuse: bool, what: &str) {
    for at in SUPERBLOCK_OFFSETS {
        let damaged = Arc::new(MemStorage::from_image(storage.image()));
        let mut byte = [0];
        damaged.read_at(at + 60, &mut byte).unwrap();
        damaged.write_at(at + 60, &[byte[0] ^ 4]).unwrap();
        let tree = match Tree::open(damaged, &quiet(64)) {
            Ok(tree) => tree,
            Err(error) => {
                assert!(may_refuse, "{what}, superblock at {at}: {error}");
                continue;
            }
        };
        for n in 0..count {
            let found = tree.get(&n.to_be_bytes()).unwrap();
            assert!(found.is_some(), "{what}, superblock at {at}: {n} of {count} is lost without a word");
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
    look(&storage, count, false, "a new image");
    work(&tree, &mut count, 5);
    look(&storage, count, false, "first use");
    drop(tree);
    let tree = open();
    work(&tree, &mut count, 5);
    look(&storage, count, false, "after a recovery");
    tree.close().unwrap();
    look(&storage, count, false, "closed in order");
    let tree = open();
    work(&tree, &mut count, 5);
    look(&storage, count, false, "after an orderly close");
    tree.set_read_only(true).unwrap();
    look(&storage, count, false, "made read-only");
    tree.set_read_only(false).unwrap();
    work(&tree, &mut count, 5);
    look(&storage, count, false, "made writable again");
    let size = tree.size() + (4 << 20);
    tree.grow(size).unwrap();
    for at in SUPERBLOCK_OFFSETS {
        let damaged = Arc::new(MemStorage::from_image(storage.image()));
        damaged.write_at(at + 60, b"xxxx").unwrap();
        assert_eq!(Tree::open(damaged, &quiet(64)).unwrap().size(), size, "grown, superblock at {at}");
    }
    // From the second checkpoint on the older superblock leads to a place in the log that is overwritten later.
    for round in 0..12 {
        work(&tree, &mut count, 90);
        look(&storage, count, true, &format!("round {round}"));
        tree.checkpoint().unwrap();
        look(&storage, count, true, &format!("checkpoint of round {round}"));
    }
}
