//! Loading of sorted records.

use super::*;

fn records(n: u64) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    (0..n).map(|n| {
        let mut key = format!("a prefix that many share {:04}/", n / 100).into_bytes();
        key.extend_from_slice(&n.to_be_bytes());
        (key, vec![n as u8; (n % 400) as usize])
    })
}

fn found(tree: &Tree) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut cursor, mut found) = (tree.cursor(), Vec::new());
    cursor.seek(b"").unwrap();
    while cursor.next().unwrap() {
        found.push((cursor.key().to_vec(), cursor.value().to_vec()));
    }
    found
}

#[test]
fn what_was_loaded_is_there_and_can_be_changed() {
    for n in [0, 1, 70, 5_000, 60_000] {
        let storage = image(64 << 20, 256 << 10);
        let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
        tree.bulk_load(records(n)).unwrap();
        tree.check().unwrap();
        assert!(found(&tree).into_iter().eq(records(n)), "{n} records");
        // It is durable without a commit.
        drop(tree);
        let tree = Tree::open(storage, &quiet(64)).unwrap();
        for (key, _) in records(n).step_by(7) {
            let mut batch = Batch::new();
            batch.put(&[&key[..], b"+"].concat(), b"between");
            batch.delete(&key);
            tree.apply(&batch).unwrap();
        }
        tree.check().unwrap();
        assert_eq!(found(&tree).len() as u64, n, "as many records were put as deleted");
    }
}

#[test]
fn what_does_not_come_in_order_is_not_loaded() {
    let tree = Tree::open(image(64 << 20, 256 << 10), &quiet(64)).unwrap();
    let free = tree.free_blocks();
    let twice = records(20_000).chain(records(1));
    assert!(matches!(tree.bulk_load(twice), Err(Error::Unusable(_))));
    assert!(found(&tree).is_empty() && tree.free_blocks() == free);
    tree.bulk_load(records(20_000)).unwrap();
    assert!(matches!(tree.bulk_load(records(1)), Err(Error::Unusable(_))), "the tree is not empty");
    tree.check().unwrap();
}

#[test]
fn no_key_is_loaded_twice() {
    for at in [1, 19_999] {
        let tree = Tree::open(image(64 << 20, 256 << 10), &quiet(64)).unwrap();
        let twice = records(at).chain(records(at).skip(at as usize - 1));
        assert!(matches!(tree.bulk_load(twice), Err(Error::Unusable(_))));
        tree.bulk_load(records(at)).unwrap();
        tree.check().unwrap();
    }
}

/// The record that makes loaded pages the tree is not durable before they are.
#[test]
fn a_crash_while_records_are_loaded_leaves_all_of_them_or_none() {
    use crate::storage::SimStorage;
    use crate::storage::sim::Policy;
    let mut rng = Rng::new(3);
    let storage = Arc::new(SimStorage::from_image(image(16 << 20, 512 << 10).image()));
    let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
    storage.start_recording();
    tree.bulk_load(records(1500)).unwrap();
    let loaded = storage.operations();
    let recording = storage.finish_recording().unwrap();
    let (mut cursor, mut seen) = (recording.cursor(), [0; 2]);
    while cursor.advance() {
        for policy in [Policy::Lost, Policy::Kept, Policy::Sectors, Policy::Any] {
            let crashed = Arc::new(MemStorage::from_image(cursor.crash(&mut rng, policy)));
            let tree = Tree::open(crashed, &quiet(64)).unwrap();
            tree.check().unwrap();
            let is_there = !found(&tree).is_empty();
            assert!(!is_there || found(&tree).into_iter().eq(records(1500)));
            assert!(is_there || cursor.index() < loaded, "what was loaded is lost");
            seen[is_there as usize] += 1;
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}
