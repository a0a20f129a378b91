//! A leaf against a `BTreeMap`: every put, replacement and deletion, the accounting of space, and compaction.

use std::collections::BTreeMap;

use super::super::format::*;
use super::super::node::{Node, NodeMut};
use super::support::*;

struct Model {
    fences: Fences,
    keys: Keys,
    page: Page,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    refused: usize,
}

impl Model {
    fn new(fences: Fences, keys: Keys) -> Self {
        let page = fences.empty_leaf();
        Model { fences, keys, page, records: BTreeMap::new(), refused: 0 }
    }

    fn node(&self) -> Node<'_> {
        Node(&self.page)
    }

    /// A key that is there, if one is and chance wants it, otherwise a new one.
    fn key(&self, step: usize, rng: &mut Rng) -> Vec<u8> {
        if rng.once_in(2) && !self.records.is_empty() {
            let at = rng.below(self.records.len());
            return self.records.keys().nth(at).unwrap().clone();
        }
        self.fences.key(self.keys, step, rng)
    }

    /// A length for the key's value; around the old one for a replacement.
    fn value_len(&self, key: &[u8], rng: &mut Rng) -> usize {
        let limit = RECORD_MAX - key.len();
        match (self.records.get(key).map(Vec::len), rng.below(4)) {
            (Some(old), 0) => old,
            (Some(old), 1) => old.saturating_sub(rng.range(1, 9)),
            (Some(old), 2) => (old + rng.range(1, 9)).min(limit),
            // As much as there is room for, or a byte more: the limit itself must be exact.
            (None, 0) => {
                let room = self.node().free() + rng.below(2);
                room.saturating_sub(self.node().size_of(key.len(), 0)).min(limit)
            }
            _ => value_len(key, rng),
        }
    }

    fn put(&mut self, key: Vec<u8>, len: usize, rng: &mut Rng) {
        let value = rng.bytes(len);
        let before = self.page.clone();
        let prefix = self.fences.prefix().len();
        let free = self.node().free();
        let growth = self.node().growth(&key, len);
        let mut after = self.records.clone();
        after.insert(key.clone(), value.clone());
        let fits = size_of_all(&after, prefix) <= self.node().capacity();
        assert_eq!(growth <= free, fits, "growth() does not say whether the record fits");
        assert_eq!(NodeMut(&mut self.page).put(&key, &value), fits, "put of {} bytes", len);
        if fits {
            assert!(free.saturating_sub(self.node().free()) <= growth, "growth() is no upper bound");
            self.records = after;
        } else {
            assert!(self.page == before, "a refused put changed the page");
            self.refused += 1;
        }
    }

    fn delete(&mut self, key: &[u8]) {
        let before = self.page.clone();
        let there = self.records.remove(key).is_some();
        assert_eq!(NodeMut(&mut self.page).delete(key), there);
        assert!(there || self.page == before, "deleting nothing changed the page");
    }

    fn look_up(&self, key: &[u8]) {
        let node = self.node();
        assert_eq!(node.get(key), self.records.get(key).map(Vec::as_slice));
        let rank = self.records.range(..key.to_vec()).count();
        let expected = if self.records.contains_key(key) { Ok(rank) } else { Err(rank) };
        assert_eq!(node.search(key), expected);
    }

    fn compare(&self) {
        check(self.node());
        assert!(contents(self.node()) == self.records, "the page does not hold what was put");
    }

    fn step(&mut self, step: usize, rng: &mut Rng) {
        let key = self.key(step, rng);
        match rng.below(10) {
            // Fill, and drain from time to time.
            0..6 if step % 300 < 200 => {
                let len = self.value_len(&key, rng);
                self.put(key, len, rng);
            }
            0..8 => self.delete(&key),
            _ => self.look_up(&key),
        }
        self.node().validate().unwrap();
    }
}

fn run(keys: Keys) {
    seeds(3, |rng| {
        let mut refused = 0;
        for fences in Fences::kinds() {
            let mut model = Model::new(fences, keys);
            for step in 0..600 {
                model.step(step, rng);
                if step % 8 == 0 {
                    model.compare();
                }
            }
            model.compare();
            refused += model.refused;
        }
        assert!(refused > 0, "no page was ever full");
    });
}

#[test]
fn short_keys_are_kept() {
    run(Keys::Short);
}

#[test]
fn long_keys_are_kept() {
    run(Keys::Long);
}

#[test]
fn keys_with_long_common_prefixes_are_kept() {
    run(Keys::Shared);
}

#[test]
fn keys_in_ascending_order_are_kept() {
    run(Keys::Ascending);
}

#[test]
fn keys_in_descending_order_are_kept() {
    run(Keys::Descending);
}

#[test]
fn keys_that_are_rewritten_again_and_again_are_kept() {
    run(Keys::Hot);
}

#[test]
fn accounting_of_free_space_survives_a_million_bytes_of_rewrites() {
    seeds(4, |rng| {
        let mut model = Model::new(Fences::kinds()[3].clone(), Keys::Hot);
        let mut written = 0;
        while written < 1 << 20 {
            let key = model.fences.key(Keys::Hot, 0, rng);
            let len = rng.below(700);
            model.put(key, len, rng);
            written += len;
        }
        model.compare();
    });
}
