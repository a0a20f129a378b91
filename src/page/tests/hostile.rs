//! Damaged and forged tree pages: refused, or safe to use in every way.

use super::super::format::*;
use super::super::ids::PageId;
use super::super::node::{Covers, Node, NodeMut, NodeSpec, unpack};
use super::super::op::{Op, apply};
use super::support::*;

/// Uses a page that passed `validate` in every way that the engine does.
pub fn exercise(page: &PageBytes, rng: &mut Rng) {
    let node = Node(page);
    check(node);
    let mut packed = vec![];
    node.pack(&mut packed);
    let mut copy = raw_page();
    unpack(&packed, &mut copy).unwrap();
    let mut keys = vec![node.low().to_vec()];
    for _ in 0..4 {
        let len = rng.pick(&[0, 1, 4, 5, 30]);
        keys.push([node.prefix(), &rng.bytes(len)].concat());
        if node.count() > 0 {
            keys.push(node.key(rng.below(node.count())));
        }
    }
    let _ = node.merged_size(node);
    for key in &keys {
        node.growth(key, 100);
        if node.covers(key) == Covers::Inside {
            assert_eq!(node.search(key).is_ok(), node.get(key).is_some());
            assert!(node.level() == 0 || node.child(node.child_index(key)).is_some());
        }
    }
    change(&mut copy, &keys, rng);
    merge(page, rng);
}

/// Changes the page by operations as a log record may carry them; it must stay valid.
fn change(page: &mut PageBytes, keys: &[Vec<u8>], rng: &mut Rng) {
    let id = page_number(page);
    let image = get_u64(page, OFF_IMAGE);
    for _ in 0..8 {
        let key = &keys[rng.below(keys.len())];
        let old = Node(page).get(key).map_or(0, <[u8]>::len);
        let len = rng.pick(&[
            8,
            old,
            old,
            old + 1,
            old.saturating_sub(1),
            300,
            RECORD_MAX.saturating_sub(key.len()),
        ]);
        // 0xff: whoever takes these bytes for a length runs out of the page.
        let value = vec![0xff; len];
        let op = match rng.below(5) {
            0..3 => Op::Put { key, value: &value },
            3 => Op::Delete { key },
            _ => Op::SplitDone,
        };
        // A refused operation may leave the page as it was, or unusable; the engine gives up on it then.
        let before = *page;
        if apply(page, id, image, &op).is_err() {
            *page = before;
        }
        Node(page).validate().unwrap();
    }
    let key = &keys[rng.below(keys.len())];
    if apply(page, id, image, &Op::Truncate { high: key, right: PageId(7) }).is_ok() {
        check(Node(page));
    }
}

/// Merges a neighbour into the page.
fn merge(page: &PageBytes, rng: &mut Rng) {
    let node = Node(page);
    let Some(high) = node.high().filter(|_| !node.is_dead()) else { return };
    let mut right = raw_page();
    let spec =
        NodeSpec { low: high, high: None, right: PageId::NONE, id: PageId(9), flags: 0, ..node.spec() };
    let mut builder = super::super::node::NodeBuilder::new(&mut right, spec);
    let len = if node.level() > 0 { 8 } else { rng.below(2000) };
    assert!(builder.push(high, &vec![1; len]));
    builder.finish();
    let mut left = Box::new(*page);
    let size = node.merged_size(Node(&right));
    let result = NodeMut(&mut left).absorb(Node(&right));
    assert_eq!(size.is_some(), result.is_ok());
    if size.is_some() {
        check(Node(&left));
    }
}

fn slot_of(page: &PageBytes, i: usize) -> usize {
    let high = match get_u16(page, OFF_HIGH) {
        NO_HIGH_KEY => 0,
        n => n as usize,
    };
    let fences = get_u16(page, OFF_LOW) as usize + high;
    ((HEADER_SIZE + fences).next_multiple_of(SLOT_SIZE) + i * SLOT_SIZE).min(PAGE_SIZE - SLOT_SIZE)
}

/// Changes a byte, a field, a slot or a record's length.
fn mutate(page: &mut PageBytes, rng: &mut Rng) {
    let count = get_u16(page, OFF_SLOTS) as usize;
    let i = rng.below(count.max(1));
    let slot = slot_of(page, i);
    let delta = rng.pick(&[1, 2, 7, 8, 9, 0x100]) as u16;
    let nudge = |v: u16, rng: &mut Rng| match rng.below(8) {
        0..3 => v.wrapping_add(delta),
        3..6 => v.wrapping_sub(delta),
        6 => rng.pick(&[0, 1, 8, 0x3fff, 0x4000, 0x4001, 0x7fff, 0xffff]),
        _ => rng.next() as u16,
    };
    let field = match rng.below(10) {
        0 => return page[rng.below(PAGE_SIZE)] = rng.next() as u8,
        1 => return page[rng.below(HEADER_SIZE)] = rng.next() as u8,
        2 => return page[rng.below(PAGE_SIZE)] ^= 1 << rng.below(8),
        3 | 4 => rng.pick(&[
            OFF_FLAGS,
            OFF_SLOTS,
            OFF_HEAP,
            OFF_GARBAGE,
            OFF_PREFIX,
            OFF_LOW,
            OFF_HIGH,
            OFF_APPENDS,
        ]),
        // The slot's offset and key length.
        5 => slot + 4,
        6 => slot + 6,
        // The value's length.
        7 | 8 => (get_u16(page, slot + 4) as usize).min(PAGE_SIZE - 2),
        // Another slot's place.
        _ => {
            let other = slot_of(page, rng.below(count.max(1)));
            let place = get_u16(page, other + 4);
            return put_u16(page, slot + 4, place);
        }
    };
    let value = nudge(get_u16(page, field), rng);
    put_u16(page, field, value);
}

/// Makes search heads and garbage agree with the rest again, as a careful forger does.
fn forge(page: &mut PageBytes) {
    let count = get_u16(page, OFF_SLOTS) as usize;
    let mut live = 0;
    for i in 0..count.min(2000) {
        let slot = slot_of(page, i);
        let (at, len) = (get_u16(page, slot + 4) as usize, get_u16(page, slot + 6) as usize);
        if at + RECORD_HEADER + len > PAGE_SIZE {
            return;
        }
        let mut head = [0; 4];
        let n = len.min(4);
        head[..n].copy_from_slice(&page[at + RECORD_HEADER..at + RECORD_HEADER + n]);
        page[slot..slot + 4].copy_from_slice(&head);
        live += RECORD_HEADER + len + get_u16(page, at) as usize;
    }
    let heap = PAGE_SIZE.saturating_sub(get_u16(page, OFF_HEAP) as usize);
    if live <= heap {
        put_u16(page, OFF_GARBAGE, (heap - live) as u16);
    }
}

/// A second slot for a record's bytes, with a key that is one byte longer: in order, and in the sums, but overlapping.
fn overlap(page: &mut PageBytes, rng: &mut Rng) {
    let count = get_u16(page, OFF_SLOTS) as usize;
    if count < 2 {
        return;
    }
    let i = rng.below(count - 1);
    let (slot, next) = (slot_of(page, i), slot_of(page, i + 1));
    let (at, len) = (get_u16(page, slot + 4), get_u16(page, slot + 6));
    put_u16(page, next + 4, at);
    put_u16(page, next + 6, len.wrapping_add(1));
}

/// A page of a few records: quick to check, with little space in which a mutation has no effect.
fn small_page(rng: &mut Rng) -> Page {
    let kinds = Fences::kinds();
    let fences = &kinds[rng.below(kinds.len())];
    let (level, fill) = (rng.pick(&[0, 0, 0, 1]), rng.range(0, 1200));
    let mut page = random_page(fences, level, fill, rng);
    if level == 0 {
        // Garbage, so that forged sums have something to hide in.
        for len in [400, 300, 20] {
            let key = fences.key(Keys::Short, 0, rng);
            NodeMut(&mut page).put(&key, &vec![2; len]);
        }
        let key = fences.low.clone();
        NodeMut(&mut page).put(&key, b"");
    }
    page
}

fn storm(rounds: u64, mutations: u64, make: fn(&mut Rng) -> Page) {
    let (mut accepted, mut refused) = (0u64, 0);
    seeds(rounds, |rng| {
        let good = make(rng);
        let mut page = good.clone();
        for _ in 0..mutations {
            *page = *good;
            for _ in 0..rng.pick(&[1, 1, 1, 2, 4]) {
                mutate(&mut page, rng);
            }
            if rng.once_in(16) {
                overlap(&mut page, rng);
            }
            if rng.once_in(2) {
                forge(&mut page);
            }
            if Node(&page).validate().is_ok() {
                accepted += 1;
                exercise(&page, rng);
            } else {
                refused += 1;
            }
        }
    });
    let enough = rounds * mutations / 10;
    assert!(one_seed_only() || accepted.min(refused) > enough, "{accepted} accepted, {refused} refused");
}

#[test]
fn damaged_small_page_is_refused_or_safe() {
    storm(600, 200, small_page);
}

#[test]
fn damaged_full_page_is_refused_or_safe() {
    storm(20, 200, any_page);
}

#[test]
fn damage_with_a_checksum_that_matches_is_left_to_validate() {
    // The checksum is no defence against a forger: what passes it must still be validated.
    seeds(500, |rng| {
        let mut page = small_page(rng);
        mutate(&mut page, rng);
        let (id, image) = (page_number(&page), get_u64(&page[..], OFF_IMAGE));
        seal(&mut page);
        verify_seal(&page, id, image).unwrap();
        if Node(&page).validate().is_ok() {
            exercise(&page, rng);
        }
    });
}

#[test]
fn records_that_share_bytes_are_refused() {
    // Replacing one such value in place would overwrite the other record's length.
    let mut found = 0;
    seeds(3000, |rng| {
        let mut page = small_page(rng);
        overlap(&mut page, rng);
        forge(&mut page);
        let node = Node(&page);
        let places: Vec<_> = (0..get_u16(&page[..], OFF_SLOTS) as usize)
            .map(|i| get_u16(&page[..], slot_of(&page, i) + 4))
            .collect();
        if places.windows(2).any(|pair| pair[0] == pair[1]) {
            found += 1;
            assert!(node.validate().is_err(), "two records at the same place");
        }
    });
    assert!(found > 0 || one_seed_only());
}

#[test]
fn random_bytes_behind_a_plausible_header_are_refused_or_safe() {
    let mut accepted = 0;
    seeds(20_000, |rng| {
        let mut page = Fences::kinds()[rng.below(3)].empty_leaf();
        let count = rng.range(1, 6);
        // Small numbers, so that lengths are often possible ones.
        let heap = PAGE_SIZE - rng.range(20, 120);
        (heap..PAGE_SIZE).for_each(|at| page[at] = rng.pick(&[0, 0, 0, 1, 2, 3, b'p', b'q']));
        put_u16(&mut page[..], OFF_SLOTS, count as u16);
        put_u16(&mut page[..], OFF_HEAP, heap as u16);
        let mut slots: Vec<(usize, usize)> =
            (0..count).map(|_| (rng.range(heap, PAGE_SIZE - 3), rng.below(6))).collect();
        slots.sort_by_key(|(at, len)| page[(at + 2).min(PAGE_SIZE)..(at + 2 + len).min(PAGE_SIZE)].to_vec());
        for (i, (at, len)) in slots.into_iter().enumerate() {
            let slot = slot_of(&page, i);
            put_u16(&mut page[..], slot + 4, at as u16);
            put_u16(&mut page[..], slot + 6, len as u16);
        }
        forge(&mut page);
        if rng.once_in(10) {
            page[rng.below(HEADER_SIZE)] = rng.next() as u8;
        }
        if Node(&page).validate().is_ok() {
            accepted += 1;
            exercise(&page, rng);
        }
    });
    assert!(accepted > 100 || one_seed_only(), "only {accepted} were looked at");
}

#[test]
fn pages_of_noise_are_refused() {
    seeds(2000, |rng| {
        let mut page = raw_page();
        page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.next().to_be_bytes()));
        page[OFF_TYPE] = TYPE_TREE;
        if rng.once_in(2) {
            put_u16(&mut page[..], OFF_LOW, rng.below(KEY_MAX + 1) as u16);
            put_u16(&mut page[..], OFF_HIGH, rng.below(KEY_MAX + 1) as u16);
            put_u16(&mut page[..], OFF_SLOTS, rng.below(40) as u16);
            put_u16(&mut page[..], OFF_HEAP, rng.range(4000, PAGE_SIZE) as u16);
            put_u16(&mut page[..], OFF_PREFIX, 0);
        }
        assert!(Node(&page).validate().is_err());
    });
    for byte in [0, 0xff] {
        assert!(Node(&[byte; PAGE_SIZE]).validate().is_err());
    }
}

#[test]
fn damaged_packed_page_is_refused_or_safe() {
    let mut accepted = 0;
    seeds(200, |rng| {
        let good = small_page(rng);
        for _ in 0..40 {
            let mut bytes = good.clone();
            mutate(&mut bytes, rng);
            let mut packed = vec![];
            Node(&good).pack(&mut packed);
            // Damage in the page and damage in the packed bytes.
            if rng.once_in(2) {
                let n = packed.len();
                packed[rng.below(n)] = rng.next() as u8;
            } else {
                let n = HEADER_SIZE.min(packed.len());
                packed[..n].copy_from_slice(&bytes[..n]);
            }
            if rng.once_in(8) {
                packed.truncate(rng.below(packed.len() + 1));
            }
            let mut page = raw_page();
            if unpack(&packed, &mut page).is_ok() {
                accepted += 1;
                exercise(&page, rng);
            }
        }
    });
    assert!(accepted > 100 || one_seed_only());
}

#[test]
fn a_level_that_no_tree_has_is_refused() {
    let validated = |level| {
        let mut page = raw_page();
        let id = PageId(9);
        let spec = NodeSpec { id, image: 0, level, flags: 0, low: &[], high: None, right: PageId::NONE };
        let mut builder = super::super::node::NodeBuilder::new(&mut page, spec);
        assert!(builder.push(b"", &7u64.to_be_bytes()));
        builder.finish();
        Node(&page).validate().is_ok()
    };
    assert!(validated(LEVEL_MAX) && !validated(LEVEL_MAX + 1));
}
