//! Short scans.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn collect(tree: &Tree, from: &[u8], to: &[u8], max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    let stopped = tree.scan(from, to, |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        if found.len() >= max { ControlFlow::Break(key.to_vec()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(stopped.unwrap(), found.last().filter(|_| found.len() >= max).map(|(key, _)| key.clone()));
    found
}

#[test]
fn a_scan_returns_what_lies_in_its_range_whatever_the_keys() {
    for kind in 0..7 {
        let mut rng = Rng::new(kind);
        let mut keys = Keys::new(kind, 700);
        let tree = Tree::open(image(32 << 20, 1 << 20), &quiet(200)).unwrap();
        let mut model = BTreeMap::new();
        for _ in 0..1000 {
            let key = keys.next(&mut rng);
            let value = value(&mut rng, &key);
            let mut batch = Batch::new();
            batch.put(&key, &value);
            tree.apply(&batch).unwrap();
            model.insert(key, value);
        }
        for _ in 0..300 {
            let (from, to) = (keys.next(&mut rng), keys.next(&mut rng));
            let max = if rng.chance(1, 2) { usize::MAX } else { 1 + rng.index(5) };
            let expected: Vec<_> = match from < to {
                true => model.range(from.clone()..to.clone()).take(max).collect(),
                false => Vec::new(),
            };
            let found = collect(&tree, &from, &to, max);
            assert!(found.iter().map(|(key, value)| (key, value)).eq(expected), "kind {kind}");
        }
        assert_eq!(collect(&tree, &[], &[0xff; 1024], usize::MAX).len(), model.len());
    }
}

/// Leaves split and merge under the scan; what is there throughout is returned once, in order.
#[test]
fn a_scan_misses_nothing_while_the_tree_changes() {
    let tree = Tree::open(image(32 << 20, 1 << 20), &Options { background: true, ..quiet(100) }).unwrap();
    let key = |n: u32| n.to_be_bytes();
    let change = |keys: &mut dyn Iterator<Item = u32>, put: bool| {
        for n in keys {
            let mut batch = Batch::new();
            if put {
                batch.put(&key(n), &[n as u8; 700])
            } else {
                batch.delete(&key(n))
            }
            tree.apply(&batch).unwrap();
        }
    };
    change(&mut (0..1000).step_by(10), true);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for first in [3, 7] {
            let (change, done) = (&change, &done);
            scope.spawn(move || {
                for _ in 0..6 {
                    change(&mut (first..1000).step_by(10), true);
                    change(&mut (first..1000).step_by(10), false);
                }
                done.store(true, Ordering::SeqCst);
            });
        }
        while !done.load(Ordering::SeqCst) {
            let found = collect(&tree, &key(50), &key(950), usize::MAX);
            assert!(found.windows(2).all(|w| w[0].0 < w[1].0));
            let tens =
                found.iter().filter(|(key, _)| u32::from_be_bytes(key[..].try_into().unwrap()) % 10 == 0);
            assert_eq!(tens.count(), 90);
        }
    });
    tree.check().unwrap();
}
