//! Splits and merges: no record may be lost on the way, and what fits must be known beforehand.

use std::collections::BTreeMap;

use super::super::format::*;
use super::super::ids::{Lsn, PageId};
use super::super::node::{Covers, Node, NodeBuilder, NodeMut, NodeSpec, separator, unpack};
use super::support::*;

const RIGHT: PageId = PageId(501);

/// The right half of a split at `at`, the way the tree builds it: `None` if it does not fit.
fn right_half(node: Node<'_>, at: &[u8]) -> Option<Page> {
    let mut page = raw_page();
    let mut builder = NodeBuilder::new(&mut page, NodeSpec { id: RIGHT, low: at, ..node.spec() });
    let from = node.search(at).unwrap_or_else(|i| i);
    let fits = (from..node.count()).all(|i| builder.push_from(node, i));
    builder.finish();
    fits.then_some(page)
}

fn split(page: &PageBytes, at: &[u8]) -> (Page, Page) {
    let right = right_half(Node(page), at).expect("right half does not fit");
    let mut left = Box::new(*page);
    NodeMut(&mut left).truncate(at, RIGHT).unwrap();
    (left, right)
}

fn check_halves(whole: Node<'_>, left: Node<'_>, right: Node<'_>, at: &[u8]) {
    check(left);
    check(right);
    assert_eq!(
        (left.low(), left.high(), right.low(), right.high()),
        (whole.low(), Some(at), at, whole.high())
    );
    assert_eq!((left.right(), right.right()), (RIGHT, whole.right()));
    assert_eq!((left.level(), left.id()), (whole.level(), whole.id()));
    assert!(left.is_incomplete());
    assert_eq!(page_lsn(left.0), page_lsn(whole.0), "a split must not touch the LSN");
    let mut records = contents(left);
    records.extend(contents(right));
    assert!(records == contents(whole), "a split lost or changed a record");
    assert_eq!(left.count() + right.count(), whole.count());
    check_sizes(whole, left, right);
}

/// What the tree reckons with before it decides on a separator.
fn check_sizes(whole: Node<'_>, left: Node<'_>, right: Node<'_>) {
    let bytes: usize = (0..left.count()).map(|i| whole.record_size(i)).sum();
    let size = whole.size_between(left.low(), left.high(), bytes, left.count());
    assert_eq!(size, PAGE_SIZE - left.free(), "size of the left half");
    let size = whole.size_between(right.low(), right.high(), whole.used() - bytes, right.count());
    assert_eq!(size, PAGE_SIZE - right.free(), "size of the right half");
}

fn check_merge(whole: Node<'_>, mut left: Page, right: Node<'_>) {
    let size = Node(&left).merged_size(right);
    assert_eq!(size, Some(PAGE_SIZE - whole.free()), "merged_size of what was one page");
    NodeMut(&mut left).absorb(right).unwrap();
    let merged = Node(&left);
    check(merged);
    assert!(contents(merged) == contents(whole), "a merge lost or changed a record");
    assert_eq!(merged.free(), whole.free());
    assert_eq!((merged.low(), merged.high(), merged.right()), (whole.low(), whole.high(), whole.right()));
    assert_eq!((merged.flags(), merged.id()), (whole.flags(), whole.id()));
}

/// A page like those that a tree has after a while: with garbage, and with an LSN.
fn worn_page(fences: &Fences, level: u8, rng: &mut Rng) -> Page {
    let fill = rng.pick(&[600, 5000, PAGE_SIZE, PAGE_SIZE]);
    let mut page = random_page(fences, level, fill, rng);
    set_page_lsn(&mut page, Lsn(rng.next()));
    if level == 0 {
        for _ in 0..rng.below(10) {
            if Node(&page).count() > 0 {
                let key = Node(&page).key(rng.below(Node(&page).count()));
                if rng.once_in(2) {
                    NodeMut(&mut page).delete(&key);
                } else {
                    let len = rng.below(100);
                    NodeMut(&mut page).put(&key, &vec![7; len]);
                }
            }
        }
    }
    if Node(&page).right().is_some() && rng.once_in(2) {
        NodeMut(&mut page).change_flags(FLAG_INCOMPLETE, 0);
    }
    page
}

#[test]
fn split_between_any_two_records_keeps_every_record_and_can_be_undone() {
    seeds(6, |rng| {
        for (fences, level) in Fences::kinds().iter().flat_map(|fences| [(fences, 0), (fences, 1)]) {
            let page = worn_page(fences, level, rng);
            let whole = Node(&page);
            let stride = 1 + whole.count() / 40;
            for i in (1..whole.count()).step_by(stride) {
                let (before, key) = (whole.key(i - 1), whole.key(i));
                // The shortest separator, the key itself, and one in between.
                let shortest = separator(&before, &key);
                let lens = [key.len(), shortest.len(), rng.range(shortest.len(), key.len())];
                // An inner page's keys are separators already, and the right half begins with one.
                for len in lens.into_iter().take(if level > 0 { 1 } else { 3 }) {
                    let at = &key[..len];
                    if right_half(whole, at).is_none() {
                        // A long separator in place of a short fence may not fit; the shortest one always does.
                        assert!(len > shortest.len() || level > 0, "{len} {i}");
                        let bytes: usize = (i..whole.count()).map(|i| whole.record_size(i)).sum();
                        let size = whole.size_between(at, whole.high(), bytes, whole.count() - i);
                        assert!(
                            size > PAGE_SIZE,
                            "size_between does not see that the right half is too large"
                        );
                        continue;
                    }
                    let (left, right) = split(&page, at);
                    check_halves(whole, Node(&left), Node(&right), at);
                    assert_eq!(Node(&left).count(), i);
                    check_merge(whole, left, Node(&right));
                }
            }
        }
    });
}

#[test]
fn split_at_a_key_that_is_not_there_keeps_every_record_or_says_that_it_does_not_fit() {
    let mut refused = 0;
    seeds(30, |rng| {
        for fences in Fences::kinds() {
            let page = worn_page(&fences, 0, rng);
            let whole = Node(&page);
            for step in 0..8 {
                let at = fences.key(rng.pick(&[Keys::Long, Keys::Shared, Keys::Short]), step, rng);
                if at == fences.low {
                    continue;
                }
                let mut left = page.clone();
                let result = NodeMut(&mut left).truncate(&at, RIGHT);
                let keep: BTreeMap<_, _> = contents(whole).into_iter().filter(|(key, _)| *key < at).collect();
                let prefix = super::super::node::common_prefix(whole.low(), &at);
                let size = front(whole.low(), Some(&at)) + size_of_all(&keep, prefix);
                assert_eq!(result.is_ok(), size <= PAGE_SIZE);
                match (result, right_half(whole, &at)) {
                    (Ok(()), Some(right)) => check_halves(whole, Node(&left), Node(&right), &at),
                    _ => refused += 1,
                }
            }
        }
    });
    assert!(refused > 0 || one_seed_only(), "no split was ever too tight");
}

#[test]
fn split_outside_the_page_is_refused() {
    for fences in Fences::kinds() {
        let page = random_page(&fences, 0, 4000, &mut Rng::new(1));
        let mut outside = vec![fences.low.clone()];
        if !fences.low.is_empty() {
            outside.extend([vec![], fences.low[..fences.low.len() - 1].to_vec()]);
        }
        if let Some(high) = &fences.high {
            outside.extend([high.clone(), [&high[..], &[0]].concat(), vec![0xff; 3]]);
        }
        for at in outside {
            assert!(NodeMut(&mut page.clone()).truncate(&at, RIGHT).is_err(), "{at:?} in {fences:?}");
        }
    }
}

#[test]
fn split_that_would_make_an_invalid_page_is_refused() {
    let fences = &Fences::kinds()[0];
    let page = random_page(fences, 0, 4000, &mut Rng::new(1));
    for len in [KEY_MAX + 1, 5000, PAGE_SIZE, 65535] {
        assert!(
            NodeMut(&mut page.clone()).truncate(&vec![1; len], RIGHT).is_err(),
            "separator of {len} bytes"
        );
    }
    assert!(NodeMut(&mut page.clone()).truncate(b"m", PageId::NONE).is_err(), "no right sibling");
}

/// Two neighbours: the left one ends where the right one begins.
fn neighbours(rng: &mut Rng) -> (Page, Page) {
    let kinds = Fences::kinds();
    loop {
        let fences = kinds[rng.below(kinds.len())].clone();
        let at = fences.key(rng.pick(&ALL_KEYS), rng.below(100), rng);
        if at == fences.low {
            continue;
        }
        let level = rng.pick(&[0, 0, 1]);
        let left = Fences { low: fences.low, high: Some(at.clone()) };
        let right = Fences { low: at, high: fences.high };
        // Around the point where both together fill a page.
        let share = rng.range(0, PAGE_SIZE);
        let left = random_page(&left, level, share, rng);
        let fill = (PAGE_SIZE - share).saturating_sub(rng.below(3000)) + rng.below(3000);
        return (left, random_page(&right, level, fill, rng));
    }
}

#[test]
fn merge_happens_exactly_when_both_pages_fit_into_one() {
    let (mut fits, mut refused) = (0, 0);
    seeds(400, |rng| {
        let (mut left, right) = neighbours(rng);
        let mut records = contents(Node(&left));
        records.extend(contents(Node(&right)));
        let size = Node(&left).merged_size(Node(&right));
        let result = NodeMut(&mut left).absorb(Node(&right));
        assert_eq!(size.is_some(), result.is_ok());
        if let Some(size) = size {
            check(Node(&left));
            assert_eq!(size, PAGE_SIZE - Node(&left).free());
            assert!(contents(Node(&left)) == records);
            assert_eq!(Node(&left).high(), Node(&right).high());
            assert_eq!(Node(&left).right(), Node(&right).right());
            fits += 1;
        } else {
            refused += 1;
        }
    });
    assert!(one_seed_only() || (fits > 20 && refused > 20), "{fits} merges, {refused} refused");
}

#[test]
fn merge_of_pages_that_are_no_neighbours_is_refused() {
    let fences = |low: &[u8], high: &[u8]| Fences { low: low.to_vec(), high: Some(high.to_vec()) };
    let rng = &mut Rng::new(1);
    let mut left = random_page(&fences(b"a", b"c"), 0, 1000, rng);
    for (right, level) in [(fences(b"d", b"e"), 0), (fences(b"b", b"e"), 0), (fences(b"c", b"e"), 1)] {
        let right = random_page(&right, level, 1000, rng);
        assert!(NodeMut(&mut left.clone()).absorb(Node(&right)).is_err());
    }
    let mut right = random_page(&fences(b"c", b"e"), 0, 1000, rng);
    NodeMut(&mut right).change_flags(FLAG_DEAD, 0);
    assert!(NodeMut(&mut left.clone()).absorb(Node(&right)).is_err(), "a dead page would kill the left one");
    NodeMut(&mut right).change_flags(0, FLAG_DEAD);
    NodeMut(&mut left).absorb(Node(&right)).unwrap();
}

#[test]
fn packed_page_is_the_page() {
    seeds(150, |rng| {
        let fences = &Fences::kinds()[rng.below(7)];
        let level = rng.pick(&[0, 1]);
        let page = worn_page(fences, level, rng);
        let mut packed = vec![];
        Node(&page).pack(&mut packed);
        assert!(packed.len() <= PAGE_SIZE);
        let mut other = Box::new([rng.next() as u8; PAGE_SIZE]);
        unpack(&packed, &mut other).unwrap();
        check(Node(&other));
        assert_eq!(other[..HEADER_SIZE], page[..HEADER_SIZE]);
        assert!(contents(Node(&other)) == contents(Node(&page)));
        let mut again = vec![];
        Node(&other).pack(&mut again);
        assert_eq!(packed, again);
        for cut in [0, 1, HEADER_SIZE - 1, HEADER_SIZE, packed.len() / 2, packed.len() - 1] {
            assert!(cut == packed.len() || unpack(&packed[..cut], &mut other).is_err(), "cut off at {cut}");
        }
        packed.push(0);
        assert!(unpack(&packed, &mut other).is_err(), "a byte too many");
    });
}

#[test]
fn copy_that_a_reader_takes_away_reads_like_the_page() {
    seeds(100, |rng| {
        let fences = &Fences::kinds()[rng.below(7)];
        let page = worn_page(fences, 0, rng);
        let node = Node(&page);
        let mut copy = raw_page();
        node.copy_to(&mut copy);
        check(Node(&copy));
        assert!(contents(Node(&copy)) == contents(node));
        let from = rng.below(node.count() + 1);
        let to = rng.range(from, node.count());
        let mut part = raw_page();
        node.copy_records_to(&mut part, from..to);
        let part = Node(&part);
        assert_eq!((part.low(), part.high(), part.right()), (node.low(), node.high(), node.right()));
        for i in from..to {
            assert_eq!((part.key(i), part.value(i)), (node.key(i), node.value(i)));
        }
    });
}

#[test]
fn a_tree_level_of_pages_split_and_merged_at_random_loses_nothing() {
    seeds(6, |rng| {
        let mut pages = vec![Fences::kinds()[0].empty_leaf()];
        let mut model = BTreeMap::new();
        let covering =
            |pages: &[Page], key: &[u8]| pages.iter().position(|p| Node(p).covers(key) == Covers::Inside);
        for step in 0..3000 {
            let key = Fences::kinds()[0].key(rng.pick(&ALL_KEYS), step, rng);
            let at = covering(&pages, &key).unwrap();
            if rng.below(100) < if step < 1500 { 65 } else { 25 } {
                let value = vec![2; rng.pick(&[0, 30, 900])];
                model.insert(key.clone(), value.clone());
                loop {
                    let at = covering(&pages, &key).unwrap();
                    if NodeMut(&mut pages[at]).put(&key, &value) {
                        break;
                    }
                    let node = Node(&pages[at]);
                    let i = rng.range(1, node.count() - 1);
                    let high = separator(&node.key(i - 1), &node.key(i)).to_vec();
                    let (left, right) = split(&pages[at], &high);
                    pages[at] = left;
                    pages.insert(at + 1, right);
                }
            } else {
                let key = model.range(key..).next().map(|(key, _)| key.clone()).unwrap_or_default();
                let at = covering(&pages, &key).unwrap();
                assert_eq!(NodeMut(&mut pages[at]).delete(&key), model.remove(&key).is_some());
            }
            if at + 1 < pages.len()
                && Node(&pages[at]).merged_size(Node(&pages[at + 1])).is_some_and(|n| n < 9000)
            {
                let right = pages.remove(at + 1);
                NodeMut(&mut pages[at]).absorb(Node(&right)).unwrap();
            }
            if step % 50 == 0 {
                let all: BTreeMap<_, _> = pages.iter().flat_map(|page| contents(Node(page))).collect();
                assert!(all == model);
                pages.iter().for_each(|page| check(Node(page)));
            }
        }
    });
}
