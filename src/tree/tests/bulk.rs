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
