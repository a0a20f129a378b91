//! What the tests of the page layer share: random numbers, random keys and pages, and a second opinion on pages.

use std::collections::BTreeMap;

use super::super::format::*;
use super::super::ids::PageId;
use super::super::node::{Node, NodeBuilder, NodeSpec, common_prefix};

/// The identity of the tests' image.
pub const IMAGE: u64 = 0x0123_4567_89ab_cdef;

/// Random numbers that depend on the seed alone (splitmix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// A number from `low` to `high`, both included.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }
    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}; BTFS_SEED={} runs it alone", self.0, self.0);
        }
    }
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// Whether one seed is run alone; how often something happened says nothing then.
pub fn one_seed_only() -> bool {
    number_from_environment("BTFS_SEED").is_some()
}

/// Runs a test with the seeds 0..count, with `BTFS_ROUNDS` times as many, or with the one in `BTFS_SEED`.
pub fn seeds(count: u64, mut test: impl FnMut(&mut Rng)) {
    let count = count * number_from_environment("BTFS_ROUNDS").unwrap_or(1);
    for seed in number_from_environment("BTFS_SEED").map_or(0..count, |seed| seed..seed + 1) {
        let _print = Seed(seed);
        test(&mut Rng::new(seed));
    }
}

pub type Page = Box<PageBytes>;

/// A page that no one has made anything of; its bytes are not zeros, so that nothing relies on that.
pub fn raw_page() -> Page {
    Box::new([0xa5; PAGE_SIZE])
}

/// The fences of a page under test.
#[derive(Clone, Debug)]
pub struct Fences {
    pub low: Vec<u8>,
    pub high: Option<Vec<u8>>,
}

impl Fences {
    pub fn kinds() -> Vec<Fences> {
        let long: Vec<u8> = (0..700).map(|i| i as u8).collect();
        let fences =
            |low: &[u8], high: Option<&[u8]>| Fences { low: low.to_vec(), high: high.map(<[u8]>::to_vec) };
        vec![
            fences(b"", None),
            fences(b"m", None),
            fences(b"", Some(b"zz")),
            fences(b"dir/", Some(b"dir0")),
            // The low fence is itself the common prefix.
            fences(&long, Some(&[&long[..], &[0xc0]].concat())),
            fences(&[&long[..], &[1; 20]].concat(), Some(&[&long[..], &[1, 3]].concat())),
            // Fences as long as they can be; no key between them is shorter than the prefix.
            fences(&[7; KEY_MAX], Some(&[&[7; KEY_MAX - 1][..], &[9]].concat())),
        ]
    }

    pub fn prefix(&self) -> &[u8] {
        &self.low[..self.high.as_ref().map_or(0, |high| common_prefix(&self.low, high))]
    }

    /// What the contract says; `Node::covers` must agree.
    pub fn contain(&self, key: &[u8]) -> bool {
        self.low.as_slice() <= key && self.high.as_ref().is_none_or(|high| key < high.as_slice())
    }

    pub fn spec(&self, level: u8) -> NodeSpec<'_> {
        let right = PageId(if self.high.is_some() { 78 } else { 0 });
        NodeSpec {
            id: PageId(77),
            image: IMAGE,
            level,
            flags: 0,
            low: &self.low,
            high: self.high.as_deref(),
            right,
        }
    }

    pub fn empty_leaf(&self) -> Page {
        let mut page = raw_page();
        NodeBuilder::new(&mut page, self.spec(0)).finish();
        Node(&page).validate().unwrap();
        page
    }

    /// A key between the fences, out of bytes that make neighbours and common prefixes likely.
    pub fn key(&self, keys: Keys, step: usize, rng: &mut Rng) -> Vec<u8> {
        for _ in 0..20 {
            let mut key = self.prefix().to_vec();
            if rng.once_in(2) || !self.contain(&key) {
                key.extend_from_slice(&self.low[key.len().min(self.low.len())..]);
            }
            key.extend_from_slice(&keys.suffix(step, rng));
            key.truncate(KEY_MAX);
            if self.contain(&key) {
                return key;
            }
            key = self.prefix().to_vec();
            let low = self.low.get(key.len()).copied().unwrap_or(0) as usize;
            let high = self.high.as_ref().map_or(255, |high| high[key.len()] as usize);
            key.push(rng.range(low, high) as u8);
            key.extend_from_slice(&keys.suffix(step, rng));
            key.truncate(KEY_MAX);
            if self.contain(&key) {
                return key;
            }
        }
        self.low.clone()
    }
}

/// How a test's keys look.
#[derive(Clone, Copy, Debug)]
pub enum Keys {
    /// 0 to 6 bytes, many of them zero: the search heads' padding must not confuse them.
    Short,
    /// Up to the limit.
    Long,
    /// A few long prefixes.
    Shared,
    Ascending,
    Descending,
    /// A few dozen keys, again and again.
    Hot,
}

pub const ALL_KEYS: [Keys; 6] =
    [Keys::Short, Keys::Long, Keys::Shared, Keys::Ascending, Keys::Descending, Keys::Hot];

impl Keys {
    fn suffix(self, step: usize, rng: &mut Rng) -> Vec<u8> {
        match self {
            Keys::Short => (0..rng.below(7)).map(|_| rng.pick(&[0, 0, 1, 0x7f, 0xff])).collect(),
            Keys::Long => {
                let len = rng.pick(&[1, 40, 300, KEY_MAX - 1, KEY_MAX]);
                rng.bytes(len)
            }
            Keys::Shared => {
                let prefix = rng.pick(&[
                    &b"inode"[..],
                    b"entry of a directory with a rather long name ",
                    b"\0\0\0\0\0",
                ]);
                let tail = rng.below(4);
                [prefix, &rng.bytes(tail)].concat()
            }
            Keys::Ascending => (step as u32).to_be_bytes().to_vec(),
            Keys::Descending => (u32::MAX - step as u32).to_be_bytes().to_vec(),
            Keys::Hot => format!("hot {}", rng.below(40)).into_bytes(),
        }
    }
}

/// A value's length: mostly short, at times the longest that the record may have.
pub fn value_len(key: &[u8], rng: &mut Rng) -> usize {
    let limit = RECORD_MAX - key.len();
    match rng.below(10) {
        0 => 0,
        1 => limit,
        2 => rng.below(limit + 1),
        3..=5 => rng.below(600),
        _ => rng.below(60),
    }
}

/// All records of a page.
pub fn contents(node: Node<'_>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    (0..node.count()).map(|i| (node.key(i), node.value(i).to_vec())).collect()
}

/// Bytes that these records take in a page with this prefix, slots included.
pub fn size_of_all(records: &BTreeMap<Vec<u8>, Vec<u8>>, prefix: usize) -> usize {
    records.iter().map(|(k, v)| SLOT_SIZE + RECORD_HEADER + k.len() - prefix + v.len()).sum()
}

/// Bytes before the slots of a page with these fences.
pub fn front(low: &[u8], high: Option<&[u8]>) -> usize {
    (HEADER_SIZE + low.len() + high.map_or(0, <[u8]>::len)).div_ceil(SLOT_SIZE) * SLOT_SIZE
}

/// The invariants N1–N5, written down a second time and without thought for speed.
pub fn check(node: Node<'_>) {
    node.validate().unwrap();
    let page = node.0;
    let records = contents(node);
    assert_eq!(records.len(), node.count(), "N2: a key occurs twice");
    let keys: Vec<_> = (0..node.count()).map(|i| node.key(i)).collect();
    assert!(keys.is_sorted(), "N2: keys out of order");
    for key in &keys {
        assert!(
            key.as_slice() >= node.low() && node.high().is_none_or(|high| key.as_slice() < high),
            "N2: fences"
        );
    }
    let prefix = node.high().map_or(0, |high| common_prefix(node.low(), high));
    assert_eq!(node.prefix(), &node.low()[..prefix], "N3: prefix");
    let begin = front(node.low(), node.high());
    assert_eq!(node.capacity(), PAGE_SIZE - begin, "N1: capacity");
    assert_eq!(node.used(), size_of_all(&records, prefix), "N1: used");
    assert_eq!(node.free() + node.used(), node.capacity(), "N1: free");
    let mut places: Vec<_> = (0..node.count())
        .map(|i| {
            let key = node.suffix(i);
            let start = key.as_ptr() as usize - page.as_ptr() as usize - RECORD_HEADER;
            (start, start + RECORD_HEADER + key.len() + node.value(i).len())
        })
        .collect();
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "N1: records overlap");
    if let (Some(first), Some(last)) = (places.first(), places.last()) {
        assert!(first.0 >= begin + node.count() * SLOT_SIZE && last.1 <= PAGE_SIZE, "N1: bounds");
    }
    if node.level() > 0 {
        assert_eq!(node.key(0), node.low(), "N4: first key");
        assert!(
            (0..node.count()).all(|i| node.value(i).len() == 8 && node.child(i).is_some()),
            "N4: children"
        );
    }
    assert!(!node.is_incomplete() || node.right().is_some(), "N5: incomplete split");
    assert!(node.high().is_some() || !node.right().is_some(), "N5: high key");
}

/// A page of random records, about `fill` bytes of them; an inner page if `level` > 0.
pub fn random_page(fences: &Fences, level: u8, fill: usize, rng: &mut Rng) -> Page {
    let mut records = BTreeMap::new();
    if level > 0 {
        records.insert(fences.low.clone(), 1u64.to_be_bytes().to_vec());
    }
    let prefix = fences.prefix().len();
    let room = PAGE_SIZE - front(&fences.low, fences.high.as_deref());
    let mut size = size_of_all(&records, prefix);
    let keys = rng.pick(&ALL_KEYS);
    let (mut step, mut misses) = (0, 0);
    while misses < 25 {
        step += 1;
        let key = fences.key(keys, step, rng);
        let len = if level > 0 { 8 } else { value_len(&key, rng) };
        let record = SLOT_SIZE + RECORD_HEADER + key.len() - prefix + len;
        if size + record > fill.min(room) || records.contains_key(&key) {
            misses += 1;
            continue;
        }
        size += record;
        // No child is page 0.
        records.insert(key, vec![step as u8 | 1; len]);
    }
    build(fences.spec(level), &records)
}

/// A page of these records, which fit.
pub fn build(spec: NodeSpec<'_>, records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Page {
    let mut page = raw_page();
    let mut builder = NodeBuilder::new(&mut page, spec);
    for (key, value) in records {
        assert!(builder.push(key, value));
    }
    builder.finish();
    check(Node(&page));
    page
}

/// A random page of any kind.
pub fn any_page(rng: &mut Rng) -> Page {
    let kinds = Fences::kinds();
    let fences = &kinds[rng.below(kinds.len())];
    let (level, fill) = (rng.pick(&[0, 0, 1, 2]), rng.range(0, PAGE_SIZE));
    random_page(fences, level, fill, rng)
}
