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

fn put(tree: &Tree, n: u32) {
    let mut batch = Batch::new();
    batch.put(&n.to_be_bytes(), &[n as u8; 3900]);
    tree.apply(&batch).unwrap();
}

fn delete(tree: &Tree, n: u32) {
    let mut batch = Batch::new();
    batch.delete(&n.to_be_bytes());
    tree.apply(&batch).unwrap();
}

/// The first keys of the leaves.
fn leaves(tree: &Tree) -> Vec<u32> {
    let (mut lows, mut key) = (Vec::new(), Vec::new());
    loop {
        let alive = tree.pool.enter();
        let found = tree.find_leaf(&alive, crate::tree::descend::Target::Covering(&key), true).unwrap();
        let node = crate::page::node::Node(&found.page);
        lows.extend(node.key(0).first_chunk().map(|first| u32::from_be_bytes(*first)));
        match node.high() {
            Some(high) => key = high.to_vec(),
            None => return lows,
        }
    }
}

/// The leaf that a cursor comes to next has been merged into the one that it stands in, or the other way round: what it has returned
/// does not come again, in either direction.
#[test]
fn a_cursor_between_leaves_that_are_merged_returns_nothing_twice() {
    for is_forward in [true, false] {
        let tree = Tree::open(image(16 << 20, 512 << 10), &quiet(64)).unwrap();
        (0..24).for_each(|n| put(&tree, n * 2));
        let lows = leaves(&tree);
        assert!(lows.len() >= 5, "{lows:?}");
        // Between the third leaf and the fourth.
        let boundary = lows[3];
        let mut cursor = tree.cursor();
        if is_forward {
            cursor.seek(&lows[2].to_be_bytes()).unwrap();
            while cursor.next().unwrap() && cursor.key() != (boundary - 2).to_be_bytes() {}
        } else {
            // It has all of the leaf, and stands at its beginning.
            cursor.seek(&(lows[2] + 2).to_be_bytes()).unwrap();
            while cursor.next().unwrap() && cursor.key() != boundary.to_be_bytes() {}
            while cursor.prev().unwrap() && cursor.key() != boundary.to_be_bytes() {}
        }
        // All but one of each of the two leaves, those next to the boundary.
        let merges = tree.stats().merges;
        (lows[2]..boundary - 2).step_by(2).for_each(|n| delete(&tree, n));
        (boundary + 2..lows[4]).step_by(2).for_each(|n| delete(&tree, n));
        assert!(tree.stats().merges > merges && !leaves(&tree).contains(&boundary));
        let mut expected: Vec<u32> = (0..24).map(|n| n * 2).collect();
        expected.retain(|n| match is_forward {
            true => *n == boundary || *n >= lows[4],
            false => *n == boundary - 2 || *n < lows[2],
        });
        let mut found = Vec::new();
        while if is_forward { cursor.next() } else { cursor.prev() }.unwrap() {
            found.push(u32::from_be_bytes(*cursor.key().first_chunk().unwrap()));
        }
        if !is_forward {
            found.reverse();
        }
        assert_eq!(found, expected);
    }
}

/// The place of a leaf that was merged away is something else's now. A cursor that still knows it does not take that for damage.
#[test]
fn a_cursor_does_not_look_at_the_place_of_a_leaf_that_is_gone() {
    let storage = image(16 << 20, 512 << 10);
    let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
    (0..24).for_each(|n| put(&tree, n));
    let lows = leaves(&tree);
    let mut cursor = tree.cursor();
    while cursor.next().unwrap() && cursor.key() != (lows[3] - 1).to_be_bytes() {}
    let gone = {
        let alive = tree.pool.enter();
        let key = lows[3].to_be_bytes();
        let found = tree.find_leaf(&alive, crate::tree::descend::Target::Covering(&key), true).unwrap();
        crate::page::node::Node(&found.page).id()
    };
    (lows[2]..lows[3]).for_each(|n| delete(&tree, n));
    (0..3).for_each(|_| tree.checkpoint().unwrap());
    // The leaf before it, now empty, has taken it over.
    assert!(tree.stats().merges == 1 && !tree.pool.is_cached(gone));
    storage.write_at(gone.offset(), &[0x55; 16384]).unwrap();
    for n in lows[3]..24 {
        assert!(cursor.next().unwrap());
        assert_eq!(cursor.key(), n.to_be_bytes());
    }
    assert!(!tree.is_damaged());
}

/// The process died between a split and the posting of its separator; then the left half is split again.
#[test]
fn the_right_part_of_a_split_that_is_split_again_can_still_be_found_from_above() {
    use crate::page::node::Node;
    let tree = Tree::open(image(16 << 20, 512 << 10), &quiet(64)).unwrap();
    (0..24).for_each(|n| put(&tree, n * 100));
    let low = leaves(&tree)[1];
    {
        let log = crate::wal::Log::record_size(3 * 16384);
        let mut reservation = tree.pool.reserve(crate::pool::Need { frames: 2, pages: 1, log }).unwrap();
        let alive = tree.pool.enter();
        let key = low.to_be_bytes();
        let found = tree.find_leaf(&alive, crate::tree::descend::Target::Covering(&key), true).unwrap();
        let pin = found.page.pin();
        drop(found);
        let mut page = tree.pool.latch(&pin);
        assert!(tree.split(&mut reservation, &mut page, &[]).unwrap().is_some());
        assert!(Node(&page).is_incomplete());
    }
    assert_eq!(tree.check().unwrap().incomplete_splits, 1);
    // All of it goes into the left half, so nobody comes by the mark.
    let splits = tree.stats().splits;
    (1..8).for_each(|n| put(&tree, low + n));
    assert!(tree.stats().splits > splits);
    tree.check().unwrap();
    (0..24).for_each(|n| assert!(tree.get(&(n * 100u32).to_be_bytes()).unwrap().is_some()));
    assert_eq!(tree.check().unwrap().incomplete_splits, 0);
}

/// Who looks through everything once does not cost the others what they use again and again.
#[test]
fn a_long_scan_displaces_nothing_that_is_in_use() {
    let tree = Tree::open(image(64 << 20, 1 << 20), &quiet(100)).unwrap();
    (0..1600).for_each(|n| put(&tree, n));
    tree.checkpoint().unwrap();
    let use_hot = || {
        for n in 0..30u32 {
            assert!(tree.get(&(n * 4).to_be_bytes()).unwrap().is_some());
        }
    };
    (0..4).for_each(|_| use_hot());
    for by_cursor in [true, false] {
        for _ in 0..3 {
            let before = tree.stats().pages_read;
            let mut found = 0;
            if by_cursor {
                let mut cursor = tree.cursor();
                while cursor.next().unwrap() {
                    found += 1;
                }
            } else {
                let each = |_: &[u8], _: &[u8]| {
                    found += 1;
                    ControlFlow::<()>::Continue(())
                };
                tree.scan(&[], &[0xff; 8], each).unwrap();
            }
            assert_eq!(found, 1600);
            let after = tree.stats().pages_read;
            assert!(after - before > 200, "{} pages read", after - before);
            use_hot();
            assert_eq!(tree.stats().pages_read, after, "by cursor: {by_cursor}");
        }
    }
}

/// A batch that would take much of a small log with its contents does without them.
#[test]
fn contents_ride_in_the_log_only_beside_a_small_batch() {
    let tree = Tree::open(image(16 << 20, 512 << 10), &quiet(64)).unwrap();
    for (records, rides) in [(1u32, 1), (9, 0)] {
        let run = tree.reserve_blocks(3).unwrap();
        let mut batch = Batch::new();
        (0..records).for_each(|n| batch.put(&n.to_be_bytes(), &[1; 3000]));
        tree.write_blocks_logged(run.start, &[7; 3 * 4096], &mut batch).unwrap();
        assert_eq!(batch.data().len(), rides);
        let mut found = vec![0; 3 * 4096];
        batch.allocate(run);
        tree.apply(&batch).unwrap();
        tree.read_blocks(run.start, &mut found).unwrap();
        assert!(found == [7; 3 * 4096]);
    }
}
