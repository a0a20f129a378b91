//! Log records: what recovery does again must be, byte for byte, what the running tree had done.

use std::collections::BTreeMap;

use super::super::bitmap::Bitmap;
use super::super::format::*;
use super::super::ids::{Lsn, PageId};
use super::super::node::{Covers, Node, NodeBuilder, NodeSpec, separator};
use super::super::op::*;
use super::support::*;

/// An operation that owns its bytes.
#[derive(Debug, Clone, PartialEq)]
pub enum Owned {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Image(Vec<u8>),
    Truncate(Vec<u8>, PageId),
    Absorb(Vec<u8>),
    SplitDone,
    Kill,
    InitBitmap(u32, u32),
    Allocate(u32, u32, bool),
    Free(u32, u32),
}

impl Owned {
    pub fn op(&self) -> Op<'_> {
        match self {
            Owned::Put(key, value) => Op::Put { key, value },
            Owned::Delete(key) => Op::Delete { key },
            Owned::Image(packed) => Op::Image(packed),
            Owned::Truncate(high, right) => Op::Truncate { high, right: *right },
            Owned::Absorb(packed) => Op::Absorb(packed),
            Owned::SplitDone => Op::SplitDone,
            Owned::Kill => Op::Kill,
            &Owned::InitBitmap(used, end) => Op::InitBitmap { used, end },
            &Owned::Allocate(start, len, pages) => Op::Allocate { start, len, pages },
            &Owned::Free(start, len) => Op::Free { start, len },
        }
    }

    /// Bytes of the key, value or image.
    fn payload(&self) -> usize {
        match self {
            Owned::Put(key, value) => key.len() + value.len(),
            Owned::Delete(b) | Owned::Image(b) | Owned::Truncate(b, _) | Owned::Absorb(b) => b.len(),
            _ => 0,
        }
    }

    /// Any operation, whether it makes sense or not.
    pub fn random(rng: &mut Rng) -> Owned {
        let longest = rng.pick(&[0, 3, 40, KEY_MAX, RECORD_MAX, PAGE_SIZE, 65535]);
        let len = rng.below(longest + 1);
        let bytes = rng.bytes(len);
        let mut number = || rng.pick(&[0, 4, 255, BLOCKS_PER_GROUP - 1, u32::MAX, 1 << 31]);
        let (a, b) = (number(), number());
        match rng.below(11) {
            0 => {
                let key_len = rng.below(40);
                Owned::Put(rng.bytes(key_len), bytes)
            }
            1 => Owned::Put(bytes, vec![]),
            2 => Owned::Delete(bytes),
            3 => Owned::Image(bytes),
            4 => Owned::Truncate(bytes, PageId(rng.next())),
            5 => Owned::Absorb(bytes),
            6 => Owned::SplitDone,
            7 => Owned::Kill,
            8 => Owned::InitBitmap(a, b),
            9 => Owned::Allocate(a, b, rng.once_in(2)),
            _ => Owned::Free(a, b),
        }
    }
}

/// A record's body of these sections.
pub fn body(parts: &[(PageId, Vec<Owned>)]) -> Vec<u8> {
    let mut out = vec![];
    for (page, ops) in parts {
        let begun = begin_section(&mut out, *page);
        ops.iter().for_each(|op| op.op().encode(&mut out));
        end_section(&mut out, begun);
    }
    out
}

#[test]
fn every_operation_comes_back_from_the_log_as_it_was_written() {
    seeds(300, |rng| {
        let parts: Vec<_> = (0..rng.below(6))
            .map(|_| (PageId(rng.next()), (0..rng.below(5)).map(|_| Owned::random(rng)).collect::<Vec<_>>()))
            .collect();
        let body = body(&parts);
        let limit: usize = parts
            .iter()
            .map(|(_, ops)| SECTION_HEAD + ops.iter().map(|op| OP_HEAD + op.payload()).sum::<usize>())
            .sum();
        assert!(body.len() <= limit, "a record is longer than was reserved for it");
        let mut read = sections(&body);
        for (page, ops) in &parts {
            let (id, mut found) = read.next().unwrap().unwrap();
            assert_eq!(id, *page);
            for op in ops {
                assert_eq!(found.next(), Some(Ok(op.op())));
                assert_eq!(op.op().is_birth(), matches!(op, Owned::Image(_) | Owned::InitBitmap(..)));
            }
            assert_eq!(found.next(), None);
        }
        assert!(read.next().is_none());
    });
}

const BITMAP: PageId = PageId(3);

/// A row of tree pages and a bitmap: as they are in memory, as they are on disk, and the log.
struct World {
    level: u8,
    memory: BTreeMap<PageId, Page>,
    disk: BTreeMap<PageId, Page>,
    log: Vec<(Lsn, Vec<u8>)>,
    next: u64,
}

impl World {
    fn new(level: u8) -> Self {
        let mut world =
            World { level, memory: BTreeMap::new(), disk: BTreeMap::new(), log: vec![], next: 11 };
        let mut page = raw_page();
        let fences = &Fences::kinds()[0];
        let mut builder = NodeBuilder::new(&mut page, NodeSpec { id: PageId(10), ..fences.spec(level) });
        assert!(level == 0 || builder.push(b"", &[1; 8]));
        builder.finish();
        world.run(vec![
            (PageId(10), vec![Owned::Image(pack(Node(&page)))]),
            (BITMAP, vec![Owned::InitBitmap(4, 9000)]),
        ]);
        world
    }

    /// One record: appended to the log, applied to the pages in memory.
    fn run(&mut self, parts: Vec<(PageId, Vec<Owned>)>) {
        let body = body(&parts);
        let end = Lsn(self.log.last().map_or(0, |(end, _)| end.0) + body.len() as u64);
        for (id, ops) in &parts {
            // A newborn's frame held something else before.
            let page = self.memory.entry(*id).or_insert_with(raw_page);
            for op in ops {
                apply(page, *id, IMAGE, &op.op()).unwrap();
            }
            set_page_lsn(page, end);
            check_any(page);
        }
        self.log.push((end, body));
    }

    fn live(&self, rng: &mut Rng) -> PageId {
        let live: Vec<_> =
            self.memory.iter().filter(|(id, page)| **id != BITMAP && !Node(page).is_dead()).collect();
        *live[rng.below(live.len())].0
    }

    fn node(&self, id: PageId) -> Node<'_> {
        Node(&self.memory[&id])
    }

    fn write_records(&mut self, rng: &mut Rng) {
        let id = self.live(rng);
        let node = self.node(id);
        let fences = Fences { low: node.low().to_vec(), high: node.high().map(<[u8]>::to_vec) };
        let (mut ops, mut growth) = (vec![], 0);
        for step in 0..rng.below(6) {
            let key = match rng.below(2) {
                0 if node.count() > 0 => node.key(rng.below(node.count())),
                _ => fences.key(rng.pick(&ALL_KEYS), step, rng),
            };
            if rng.once_in(4) && (self.level == 0 || key != node.low()) {
                ops.push(Owned::Delete(key));
                continue;
            }
            let len = if self.level == 0 { value_len(&key, rng).min(900) } else { 8 };
            // The sum is what the tree compares with the free space before it logs anything.
            growth += node.growth(&key, len);
            ops.push(Owned::Put(key, vec![step as u8 + 1; len]));
        }
        if growth <= node.free() {
            self.run(vec![(id, ops)]);
        } else {
            self.split(id, rng);
        }
    }

    fn split(&mut self, id: PageId, rng: &mut Rng) {
        let node = self.node(id);
        if node.count() < 2 {
            return;
        }
        let i = rng.range(1, node.count() - 1);
        let high = separator(&node.key(i - 1), &node.key(i)).to_vec();
        let right = PageId(self.next);
        let mut page = raw_page();
        let mut builder = NodeBuilder::new(&mut page, NodeSpec { id: right, low: &high, ..node.spec() });
        if self.level > 0 && node.key(i) != high {
            // Inner pages are split at a key of theirs.
            return;
        }
        assert!((i..node.count()).all(|i| builder.push_from(node, i)));
        builder.finish();
        self.next += 1;
        let image = Owned::Image(pack(Node(&page)));
        self.run(vec![(id, vec![Owned::Truncate(high, right)]), (right, vec![image])]);
    }

    fn merge(&mut self, rng: &mut Rng) {
        let left = self.live(rng);
        let right = self.node(left).right();
        if right.is_some() && self.node(left).merged_size(self.node(right)).is_some() {
            let absorb = Owned::Absorb(pack(self.node(right)));
            self.run(vec![(left, vec![absorb]), (right, vec![Owned::Kill])]);
        }
    }

    fn change_bitmap(&mut self, rng: &mut Rng) {
        let (start, len) = (rng.range(4, 8900) as u32, rng.range(1, 90) as u32);
        let op = match Bitmap(&self.memory[&BITMAP]).state(start, len) {
            Some(false) => Owned::Allocate(start, len, rng.once_in(2)),
            Some(true) => Owned::Free(start, len),
            None => return,
        };
        self.run(vec![(BITMAP, vec![op])]);
    }

    fn flush(&mut self, rng: &mut Rng) {
        let at = rng.below(self.memory.len());
        let (id, page) = self.memory.iter().nth(at).unwrap();
        let mut page = page.clone();
        seal(&mut page);
        self.disk.insert(*id, page);
    }

    fn redo(&mut self) {
        for (end, body) in &self.log {
            for section in sections(body) {
                let (id, ops) = section.unwrap();
                let known = self.disk.get(&id).map(|page| page_lsn(page));
                if known.is_some_and(|lsn| lsn >= *end) {
                    continue;
                }
                let page = self.disk.entry(id).or_insert_with(|| Box::new([0x3c; PAGE_SIZE]));
                for (i, op) in ops.enumerate() {
                    let op = op.unwrap();
                    assert!(known.is_some() || i > 0 || op.is_birth());
                    apply(page, id, IMAGE, &op).unwrap();
                }
                set_page_lsn(page, *end);
                check_any(page);
            }
        }
    }
}

fn pack(node: Node<'_>) -> Vec<u8> {
    let mut out = vec![];
    node.pack(&mut out);
    out
}

/// Checks a page of any type.
pub fn check_any(page: &PageBytes) {
    match page_type(page) {
        TYPE_BITMAP => Bitmap(page).validate().unwrap(),
        _ => Node(page).validate().unwrap(),
    }
}

#[test]
fn redo_from_any_mix_of_flushed_pages_gives_the_pages_that_were_lost() {
    let (mut splits, mut merges) = (0, 0);
    seeds(12, |rng| {
        let mut world = World::new(rng.pick(&[0, 0, 1]));
        for _ in 0..400 {
            match rng.below(20) {
                0..12 => world.write_records(rng),
                12 => {
                    let id = world.live(rng);
                    world.split(id, rng);
                }
                13..15 => world.merge(rng),
                15 => {
                    let id = world.live(rng);
                    world.run(vec![(id, vec![Owned::SplitDone])]);
                }
                16 => world.change_bitmap(rng),
                _ => world.flush(rng),
            }
        }
        splits += world.next - 11;
        merges +=
            world.memory.values().filter(|page| page_type(page) == TYPE_TREE && Node(page).is_dead()).count();
        world.redo();
        for (id, page) in &world.memory {
            // The checksum belongs to the write, not to the page's state.
            assert!(world.disk[id][4..] == page[4..], "{id} is not what it was");
            if page_type(page) == TYPE_TREE {
                check(Node(page));
            }
        }
        // Redo a second time changes nothing.
        let disk = world.disk.clone();
        world.redo();
        assert!(disk == world.disk);
    });
    assert!(one_seed_only() || (splits > 50 && merges > 20), "{splits} splits, {merges} merges");
}

#[test]
fn operation_on_the_wrong_page_is_refused() {
    let rng = &mut Rng::new(1);
    let fences = Fences { low: b"b".to_vec(), high: Some(b"d".to_vec()) };
    let (leaf, inner) = (random_page(&fences, 0, 4000, rng), random_page(&fences, 1, 4000, rng));
    let mut dead = leaf.clone();
    apply(&mut dead, PageId(77), IMAGE, &Op::Kill).unwrap();
    assert!(Node(&dead).is_dead());
    let refused = |page: &Page, op: Owned| {
        assert!(apply(&mut page.clone(), PageId(77), IMAGE, &op.op()).is_err(), "{op:?}");
    };
    for key in [&b""[..], b"a", b"d", b"e"] {
        refused(&leaf, Owned::Put(key.to_vec(), vec![]));
        refused(&leaf, Owned::Delete(key.to_vec()));
    }
    refused(&leaf, Owned::Put(vec![b'c'; KEY_MAX + 1], vec![]));
    refused(&leaf, Owned::Put(b"c".to_vec(), vec![0; RECORD_MAX]));
    refused(&leaf, Owned::Allocate(8, 1, false));
    refused(&leaf, Owned::Free(8, 1));
    // An inner page keeps a child for its low fence, and only children.
    refused(&inner, Owned::Delete(b"b".to_vec()));
    refused(&inner, Owned::Put(b"c".to_vec(), vec![0; 8]));
    refused(&inner, Owned::Put(b"c".to_vec(), vec![1; 7]));
    refused(&inner, Owned::Put(b"c".to_vec(), vec![1; 9]));
    refused(&inner, Owned::Absorb(pack(Node(&leaf))));
    for op in [Owned::Put(b"c".to_vec(), vec![]), Owned::Delete(b"c".to_vec()), Owned::SplitDone, Owned::Kill]
    {
        refused(&dead, op);
    }
    refused(&dead, Owned::Truncate(b"c".to_vec(), PageId(5)));
    let image = Owned::Image(pack(Node(&leaf)));
    assert!(apply(&mut raw_page(), PageId(78), IMAGE, &image.op()).is_err(), "another page's image");
    assert!(apply(&mut raw_page(), PageId(77), IMAGE + 1, &image.op()).is_err(), "another image's page");
    let mut page = raw_page();
    apply(&mut page, PageId(77), IMAGE, &image.op()).unwrap();
    assert_eq!(Node(&page).covers(b"c"), Covers::Inside);
}
