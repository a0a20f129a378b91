//! Pages at their limits: full to the last byte, all garbage, keys that differ in their last byte only.

use std::collections::BTreeMap;

use super::super::format::*;
use super::super::ids::PageId;
use super::super::node::{Covers, Node, NodeBuilder, NodeMut, NodeSpec, separator};
use super::support::*;

fn leaf() -> Page {
    Fences::kinds()[0].empty_leaf()
}

#[test]
fn garbage_between_records_can_be_used_again_to_the_last_byte() {
    let mut page = leaf();
    let mut node = NodeMut(&mut page);
    let mut records = BTreeMap::new();
    for i in 0u32.. {
        let (key, value) = (i.to_be_bytes().to_vec(), vec![i as u8; 90]);
        if !node.put(&key, &value) {
            break;
        }
        records.insert(key, value);
    }
    for i in (0..records.len() as u32).step_by(2) {
        assert!(node.delete(&i.to_be_bytes()));
        records.remove(&i.to_be_bytes()[..]);
    }
    // Now no hole is larger than one record; only compaction makes room for longer ones.
    while node.node().free() > 1000 {
        let key = [&b"long "[..], &(records.len() as u32).to_be_bytes()].concat();
        let value = vec![1; (node.node().free() - node.node().size_of(key.len(), 0)).min(2000)];
        assert!(node.put(&key, &value), "{} bytes free, but no room for {}", node.node().free(), value.len());
        records.insert(key, value);
    }
    let room = node.node().free() - node.node().size_of(4, 0);
    assert!(!node.put(b"last", &vec![9; room + 1]));
    assert!(node.put(b"last", &vec![9; room]));
    records.insert(b"last".to_vec(), vec![9; room]);
    assert_eq!(node.node().free(), 0);
    check(node.node());
    assert!(contents(node.node()) == records);
    // A full page still takes replacements that are no longer than what they replace.
    assert!(node.put(b"last", &vec![8; room]));
    assert!(!node.put(b"last", &vec![8; room + 1]));
    assert!(node.put(b"last", &vec![8; room - 1]));
    assert!(node.put(b"last", &vec![8; room]));
    assert_eq!(node.node().free(), 0);
    check(node.node());
}

#[test]
fn a_record_can_grow_over_the_whole_page_when_only_its_own_bytes_are_garbage() {
    let mut page = leaf();
    let mut node = NodeMut(&mut page);
    let limit = RECORD_MAX - 3;
    // What is left is exactly the room of the largest record.
    for i in 0..3u8 {
        let rest = node.node().free() - node.node().size_of(3, limit) - node.node().size_of(1, 0);
        assert!(node.put(&[i], &vec![i; rest.min(4090)]));
    }
    assert_eq!(node.node().free(), node.node().size_of(3, limit));
    for len in [0, 1, 3000, 3, limit / 2 + 10, limit / 2 + 20, 0, limit, limit - 1, limit] {
        assert!(node.put(b"key", &vec![len as u8; len]), "{len}");
        assert_eq!(node.node().get(b"key"), Some(&vec![len as u8; len][..]));
        check(node.node());
    }
    assert!(!node.put(b"key", &vec![1; limit + 1]));
    assert!(node.delete(b"key") && node.delete(&[1]) && node.delete(&[0]) && node.delete(&[2]));
    assert_eq!(node.node().free(), node.node().capacity());
}

#[test]
fn keys_that_differ_only_in_zero_bytes_stay_apart() {
    let mut page = leaf();
    let keys: Vec<Vec<u8>> =
        (0..12).map(|n| vec![0; n]).chain((1..12).map(|n| [vec![0; n], vec![1]].concat())).collect();
    for (i, key) in keys.iter().enumerate().rev() {
        assert!(NodeMut(&mut page).put(key, &[i as u8]));
    }
    check(Node(&page));
    assert_eq!(Node(&page).count(), keys.len());
    for (i, key) in keys.iter().enumerate() {
        assert_eq!(Node(&page).get(key), Some(&[i as u8][..]));
    }
}

#[test]
fn the_largest_records_fit_three_in_a_page_whatever_its_fences() {
    // Between the last kind of fences there is room for two keys only.
    for fences in Fences::kinds().split_last().unwrap().1 {
        seeds(20, |rng| {
            let mut page = fences.empty_leaf();
            while Node(&page).count() < 3 {
                let mut key = fences.key(Keys::Long, 0, rng);
                if rng.once_in(2) {
                    key.resize(KEY_MAX, 1);
                }
                if fences.contain(&key) {
                    assert!(NodeMut(&mut page).put(&key, &vec![1; RECORD_MAX - key.len()]));
                }
            }
            check(Node(&page));
        });
    }
}

#[test]
fn row_of_appends_is_noticed_and_ends_with_an_insert_elsewhere() {
    let mut page = leaf();
    let mut node = NodeMut(&mut page);
    for i in 10..20u8 {
        assert!(node.put(&[i], &[0; 100]));
    }
    assert_eq!(node.node().appends(), 10);
    assert!(node.put(&[19], &[1; 100]) && node.put(&[12], &[1; 100]) && node.put(&[13], &[1; 300]));
    assert_eq!(node.node().appends(), 10, "a replacement is no insert");
    // Until a replacement needs compaction.
    let mut len = 400;
    while node.node().free() > 400 {
        assert!(node.put(&[13], &vec![2; len]) && node.put(&[19], &vec![2; len]));
        assert_eq!(node.node().appends(), 10, "a replacement is no insert, though it compacts the page");
        len += 50;
    }
    assert!(node.put(&[5], &[]));
    assert_eq!(node.node().appends(), 0);
}

#[test]
fn builder_refuses_exactly_what_does_not_fit() {
    seeds(60, |rng| {
        for fences in Fences::kinds() {
            let mut page = raw_page();
            let mut builder = NodeBuilder::new(&mut page, fences.spec(0));
            let mut keys: Vec<_> = (0..60).map(|i| fences.key(Keys::Long, i, rng)).collect();
            keys.sort();
            keys.dedup();
            let mut records = BTreeMap::new();
            for key in keys {
                let value = vec![3; value_len(&key, rng)];
                let (free, size) = (builder.free(), builder.size_of(key.len(), value.len()));
                assert_eq!(builder.push(&key, &value), size <= free);
                if size <= free {
                    assert_eq!(builder.free(), free - size);
                    records.insert(key, value);
                }
            }
            let free = builder.free();
            builder.finish();
            check(Node(&page));
            assert_eq!(Node(&page).free(), free);
            assert!(contents(Node(&page)) == records);
        }
    });
}

#[test]
fn separator_is_the_shortest_key_that_parts_its_neighbours() {
    // All strings of up to 4 letters out of 3.
    let mut all: Vec<Vec<u8>> = vec![vec![]];
    for len in 1..=4 {
        let shorter: Vec<_> = all.iter().filter(|s| s.len() == len - 1).cloned().collect();
        all.extend(shorter.iter().flat_map(|s| [0, 1, 255].map(|c| [&s[..], &[c]].concat())));
    }
    for left in &all {
        for right in all.iter().filter(|right| left < right) {
            let found = separator(left, right);
            assert!(found > &left[..] && found <= &right[..]);
            let shortest = all.iter().filter(|s| *s > left && *s <= right).map(Vec::len).min().unwrap();
            assert_eq!(found.len(), shortest, "{left:?} {right:?}");
        }
    }
}

#[test]
fn covers_says_on_which_side_of_the_page_a_key_lies() {
    seeds(200, |rng| {
        for fences in Fences::kinds() {
            let page = fences.empty_leaf();
            let mut key = fences.key(rng.pick(&ALL_KEYS), rng.below(1000), rng);
            match rng.below(6) {
                0 => key = fences.low.clone(),
                1 => key = fences.high.clone().unwrap_or_default(),
                2 => key.truncate(rng.below(key.len() + 1)),
                3 => key = rng.bytes(3),
                4 if !key.is_empty() => *key.last_mut().unwrap() ^= 1 << rng.below(8),
                _ => {}
            }
            let expected = match key.as_slice() {
                k if k < &fences.low[..] => Covers::Left,
                k if fences.high.as_ref().is_some_and(|high| k >= &high[..]) => Covers::Right,
                _ => Covers::Inside,
            };
            assert_eq!(Node(&page).covers(&key), expected, "{key:?} in {fences:?}");
            assert_eq!(fences.contain(&key), expected == Covers::Inside);
        }
    });
}

#[test]
fn descent_takes_the_child_whose_range_holds_the_key() {
    seeds(40, |rng| {
        for fences in Fences::kinds() {
            let fill = rng.range(0, PAGE_SIZE);
            let page = random_page(&fences, 1, fill, rng);
            let node = Node(&page);
            for step in 0..50 {
                let key = match rng.below(3) {
                    0 => node.key(rng.below(node.count())),
                    _ => fences.key(rng.pick(&ALL_KEYS), step, rng),
                };
                let i = node.child_index(&key);
                assert!(node.key(i) <= key);
                assert!(i + 1 == node.count() || key < node.key(i + 1));
                assert_eq!(node.child(i), PageId(u64::from_be_bytes(node.value(i).try_into().unwrap())));
            }
        }
    });
}

#[test]
fn page_states_that_the_invariants_forbid_are_refused() {
    let fences = Fences { low: b"b".to_vec(), high: Some(b"d".to_vec()) };
    let good = fences.spec(0);
    let refused = |spec: NodeSpec<'_>, records: &[(&[u8], &[u8])], why: &str| {
        let mut page = raw_page();
        let mut builder = NodeBuilder::new(&mut page, spec);
        for (key, value) in records {
            assert!(builder.push(key, value));
        }
        builder.finish();
        assert!(Node(&page).validate().is_err(), "accepted: {why}");
    };
    let child = &1u64.to_be_bytes()[..];
    refused(NodeSpec { right: PageId::NONE, ..good }, &[], "high key without a right link");
    refused(NodeSpec { high: None, ..good }, &[], "right link without a high key");
    refused(NodeSpec { high: Some(b"b"), ..good }, &[], "high key equal to the low fence");
    refused(NodeSpec { high: Some(b"a"), ..good }, &[], "high key below the low fence");
    refused(NodeSpec { high: Some(b""), ..good }, &[], "empty high key");
    let end = NodeSpec { high: None, right: PageId::NONE, ..good };
    refused(NodeSpec { flags: FLAG_INCOMPLETE, ..end }, &[], "incomplete split without a right sibling");
    let dead = NodeSpec { flags: FLAG_INCOMPLETE | FLAG_DEAD, right: PageId::NONE, ..good };
    refused(dead, &[], "dead incomplete split without a right sibling");
    refused(NodeSpec { high: Some(&[b'd'; KEY_MAX + 1]), ..good }, &[], "high key over the limit");
    refused(NodeSpec { low: &[b'b'; KEY_MAX + 1], ..good }, &[], "low fence over the limit");
    refused(NodeSpec { flags: 4, ..good }, &[], "unknown flag");
    refused(good, &[(b"a", b"")], "key below the low fence");
    refused(good, &[(b"d", b"")], "key at the high key");
    refused(good, &[(b"c", b""), (b"c", b"")], "key twice");
    refused(good, &[(b"c2", b""), (b"c1", b"")], "keys out of order");
    refused(good, &[(b"c", &[0; RECORD_MAX])], "record over the limit");
    refused(good, &[(&[b'c'; KEY_MAX + 1], b"")], "key over the limit");
    let inner = fences.spec(1);
    refused(inner, &[], "inner page without children");
    refused(inner, &[(b"c", child)], "inner page without a child for its low fence");
    refused(inner, &[(b"b", &child[..7])], "short child");
    refused(inner, &[(b"b", &[0; 8])], "child 0");
}
