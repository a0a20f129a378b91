//! Hostile images: a small valid image is changed, checksums made right again or not, and used. Every call returns, with a result
//! or an error: no panic, no endless loop, no access out of bounds.
//!
//! `BTFS_IMAGES` changes that many images; `BTFS_SEED` runs one of them alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::page::PageBytes;
use crate::page::format::*;
use crate::page::node::{NodeBuilder, NodeSpec};
use crate::page::op::{self, Op};
use crate::page::superblock::{
    DoublewriteHeader, LOG_OFFSET, SUPERBLOCK_OFFSETS, SUPERBLOCK_SIZE, Superblock,
};
use crate::storage::Image;

const SIZE: u64 = 8 << 20;
const LOG: u64 = 384 << 10;
/// No call on an image of this size takes so long.
const CALL_MAX: Duration = Duration::from_secs(20);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// A scan of such an image returns fewer records.
const RECORDS_MAX: usize = 5_000;

fn key(n: u64) -> Vec<u8> {
    let mut key = vec![b'k'; 900];
    key.extend_from_slice(&n.to_be_bytes());
    key
}

/// What the mutations start from.
struct Base {
    image: Image,
    superblock: Superblock,
    /// Tree and bitmap pages.
    pages: Vec<PageId>,
    /// Where log records begin that recovery would read.
    records: Vec<u64>,
    /// Blocks in use for data.
    data: Vec<Run>,
}

/// Three levels, free pages between used ones, data blocks; every kind of log record.
fn base(clean: bool, checkpointed: bool) -> Base {
    let storage = image(SIZE, LOG);
    let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
    let put = |n: u64, len: usize| {
        let mut batch = Batch::new();
        batch.put(&key(n), &vec![n as u8; len]);
        tree.apply(&batch).unwrap();
    };
    (0..130).for_each(|n| put(n * 4, 1400));
    let mut data = Vec::new();
    for len in [10, 300, 5] {
        let run = tree.reserve_blocks(len).unwrap();
        let mut batch = Batch::new();
        batch.allocate(run);
        tree.apply(&batch).unwrap();
        data.push(run);
    }
    if checkpointed {
        tree.checkpoint().unwrap();
    }
    let mut batch = Batch::new();
    batch.free(data.remove(1));
    (20..60).for_each(|n| batch.delete(&key(n * 4)));
    tree.apply(&batch).unwrap();
    (70..90).for_each(|n| put(n * 4 + 1, 1000));
    assert_eq!(tree.check().unwrap().height, 3);
    if clean {
        tree.close().unwrap();
    } else {
        tree.commit_all().unwrap();
        drop(tree);
    }
    let image = storage.image();
    let superblock = newest_superblock(&image);
    let first = superblock.data_offset() / PAGE_SIZE as u64;
    let pages = (first..SIZE / PAGE_SIZE as u64).map(PageId);
    let pages =
        pages.filter(|id| verify_seal(&read_page(&image, *id), *id, superblock.image()).is_ok()).collect();
    let records = if clean { Vec::new() } else { records(&image, &superblock) };
    Base { pages, records, superblock, image, data }
}

fn newest_superblock(image: &Image) -> Superblock {
    let decode = |at| {
        let mut bytes = [0; SUPERBLOCK_SIZE];
        image.read(at, &mut bytes).unwrap();
        Superblock::decode(&bytes).unwrap()
    };
    SUPERBLOCK_OFFSETS.map(decode).into_iter().max_by_key(|s| s.sequence).unwrap()
}

fn read_page(image: &Image, id: PageId) -> Box<PageBytes> {
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    image.read(id.offset(), &mut page[..]).unwrap();
    page
}

fn log_offset(superblock: &Superblock, lsn: u64) -> u64 {
    LOG_OFFSET + lsn % superblock.log_size
}

fn records(image: &Image, superblock: &Superblock) -> Vec<u64> {
    let mut at = superblock.checkpoint.0;
    let mut found = Vec::new();
    loop {
        let mut header = [0; 24];
        image.read(log_offset(superblock, at), &mut header).unwrap();
        if get_u64(&header, 8) != at || get_u32(&header, 16) != superblock.incarnation {
            return found;
        }
        found.push(at);
        at += get_u32(&header, 0) as u64;
    }
}

/// An image that is being forged.
struct Forger<'b> {
    base: &'b Base,
    image: Image,
    rng: Rng,
}

impl Forger<'_> {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.rng.index(from.len())].clone()
    }

    /// A page number that a forger would choose.
    fn page_number(&mut self) -> u64 {
        let first = self.base.superblock.data_offset() / PAGE_SIZE as u64;
        match self.rng.below(10) {
            0 => 0,
            1 => first,
            2 => self.base.superblock.root.0,
            3 => SIZE / PAGE_SIZE as u64 + self.rng.below(3),
            4 => u64::MAX >> self.rng.below(20),
            5 => self.rng.below(SIZE / PAGE_SIZE as u64),
            _ => self.pick(&self.base.pages).0,
        }
    }

    fn length(&mut self) -> u64 {
        match self.rng.below(6) {
            0 => 0,
            1 => self.rng.below(8),
            2 => PAGE_SIZE as u64 - self.rng.below(80),
            3 => u64::MAX >> self.rng.below(64),
            _ => self.rng.below(PAGE_SIZE as u64),
        }
    }

    fn tree_page(&mut self) -> PageId {
        loop {
            let id = self.pick(&self.base.pages);
            if page_type(&read_page(&self.image, id)) == TYPE_TREE {
                return id;
            }
        }
    }

    /// A tree page that can be taken apart: no earlier forgery of this image has broken it.
    fn whole_tree_page(&mut self) -> Option<(PageId, Box<PageBytes>)> {
        let id = self.tree_page();
        let page = read_page(&self.image, id);
        Node(&page).validate().is_ok().then_some((id, page))
    }

    fn write_page(&mut self, id: PageId, mut page: Box<PageBytes>) {
        if !self.rng.chance(1, 20) {
            seal(&mut page);
        }
        self.image.write(id.offset(), &page[..]).unwrap();
    }

    fn flip(&mut self) {
        let areas =
            [0, LOG_OFFSET, self.base.superblock.doublewrite_offset(0), self.base.superblock.data_offset()];
        let at = self.pick(&areas) + self.rng.below(400_000);
        let mut byte = [0];
        self.image.read(at, &mut byte).unwrap();
        byte[0] ^= 1 << self.rng.below(8);
        self.image.write(at, &byte).unwrap();
    }

    /// Any byte of a page, or a few, under a right checksum.
    fn page_bytes(&mut self) {
        let id = self.pick(&self.base.pages);
        let mut page = read_page(&self.image, id);
        for _ in 0..1 + self.rng.below(4) {
            let limit = [64, 200, 3000, PAGE_SIZE][self.rng.index(4)];
            page[self.rng.index(limit)] = self.rng.next_u64() as u8;
        }
        self.write_page(id, page);
    }

    /// One field of a tree page.
    fn node(&mut self) {
        let Some((id, mut page)) = self.whole_tree_page() else { return };
        let count = Node(&page).count();
        match self.rng.below(12) {
            0 | 1 => put_u64(&mut page[..], OFF_RIGHT, self.page_number()),
            2 => page[OFF_LEVEL] = self.pick(&[0, 1, 2, 3, 255]),
            3 => put_u16(&mut page[..], OFF_FLAGS, self.rng.below(5) as u16),
            4 => {
                let at = self.pick(&[
                    OFF_SLOTS,
                    OFF_HEAP,
                    OFF_GARBAGE,
                    OFF_PREFIX,
                    OFF_LOW,
                    OFF_HIGH,
                    OFF_APPENDS,
                ]);
                put_u16(&mut page[..], at, self.length() as u16);
            }
            5 => {
                let lsn = self.length().wrapping_add(self.base.superblock.checkpoint.0);
                put_u64(&mut page[..], OFF_LSN, lsn);
            }
            6 => {
                let other = self.tree_page();
                page = read_page(&self.image, other);
                put_u64(&mut page[..], OFF_PAGE, id.0);
            }
            7 | 8 => self.refence(&mut page),
            _ if count > 0 && Node(&page).level() > 0 => {
                let i = self.rng.index(count);
                let value = Node(&page).value(i).as_ptr() as usize - page.as_ptr() as usize;
                put_u64(&mut page[..], value, self.page_number());
            }
            _ if count > 0 => {
                let slots =
                    (HEADER_SIZE + Node(&page).low().len() + Node(&page).high().map_or(0, <[u8]>::len))
                        .next_multiple_of(SLOT_SIZE);
                let at = slots + self.rng.index(count) * SLOT_SIZE + self.rng.index(8);
                page[at] = self.rng.next_u64() as u8;
            }
            _ => {}
        }
        self.write_page(id, page);
    }

    /// Other fences around as many of the records as lie between them: a page that is valid by itself.
    fn refence(&mut self, page: &mut PageBytes) {
        let old = *page;
        let node = Node(&old);
        let mut bounds =
            vec![Vec::new(), key(0), key(self.rng.below(600)), key(self.rng.below(600)), vec![b'l']];
        bounds.push(node.low().to_vec());
        bounds.extend(node.high().map(<[u8]>::to_vec));
        let (mut low, mut high) = (self.pick(&bounds), self.pick(&bounds));
        if low > high {
            std::mem::swap(&mut low, &mut high);
        }
        let open = self.rng.chance(1, 6) || low == high;
        let keys: Vec<usize> =
            (0..node.count()).filter(|i| node.key(*i) >= low && (open || node.key(*i) < high)).collect();
        let right = if open { PageId::NONE } else { PageId(self.page_number().max(1)) };
        let spec = NodeSpec { low: &low, high: (!open).then_some(&high[..]), right, ..node.spec() };
        let mut builder = NodeBuilder::new(page, spec);
        for (n, i) in keys.into_iter().enumerate() {
            if node.level() > 0 && n == 0 {
                builder.push(&low, node.value(i));
            } else {
                builder.push(&node.key(i), node.value(i));
            }
        }
        builder.finish();
        set_page_lsn(page, page_lsn(&old));
    }

    fn bitmap(&mut self) {
        let id = self.base.superblock.bitmap_page(0);
        let mut page = read_page(&self.image, id);
        match self.rng.below(6) {
            0 => page[BITMAP_BITS..].fill(0),
            1 => page[BITMAP_BITS..].fill(0xff),
            2 => page[BITMAP_CHUNKS..BITMAP_BITS].fill(self.rng.next_u64() as u8),
            3 => {
                let victim = self.tree_page();
                let bit = (victim.0 - id.0) as usize * 4;
                page[BITMAP_BITS + bit / 8] &= !(0xf << (bit % 8));
            }
            _ => {
                for _ in 0..1 + self.rng.below(20) {
                    page[BITMAP_BITS + self.rng.index(SIZE as usize / BLOCK_SIZE / 8)] =
                        self.rng.next_u64() as u8;
                }
            }
        }
        page[BITMAP_BITS] |= self.pick(&[0xff, 0xf, 0]);
        self.write_page(id, page);
    }

    /// A record of the log, with a right checksum most of the time.
    fn log(&mut self) {
        let Some(i) = self.base.records.len().checked_sub(1).map(|n| self.rng.index(n + 1)) else { return };
        let (lsn, superblock) = (self.base.records[i], &self.base.superblock);
        let at = log_offset(superblock, lsn);
        let mut header = [0; 24];
        self.image.read(at, &mut header).unwrap();
        let mut bytes = vec![0; get_u32(&header, 0) as usize];
        if self.image.read(at, &mut bytes).is_err() || bytes.len() < 40 {
            return;
        }
        match self.rng.below(9) {
            8 => self.birth(&mut bytes),
            0 => put_u64(&mut bytes, 24, self.page_number()),
            1 => put_u32(&mut bytes, 32, self.length() as u32),
            2 => bytes[36] = self.rng.below(14) as u8,
            3 => put_u32(&mut bytes, 0, self.length() as u32),
            4 => bytes[20] = self.rng.below(4) as u8,
            5 => bytes.truncate(24 + self.rng.index(bytes.len() - 24)),
            6 => {
                // An operation on another page, or another operation on this one: what a record of elsewhere says.
                let other = self.pick(&self.base.records);
                let mut body = vec![0; bytes.len() - 24];
                self.image.read(log_offset(superblock, other) + 24, &mut body).unwrap();
                bytes[24..].copy_from_slice(&body);
            }
            _ => {
                for _ in 0..1 + self.rng.below(4) {
                    let limit = bytes.len().min([60, 400, 1 << 20][self.rng.index(3)]);
                    bytes[24 + self.rng.index(limit - 24)] = self.rng.next_u64() as u8;
                }
            }
        }
        let mut crc = crc32fast::Hasher::new();
        [&bytes[24..], &bytes[0..4], &bytes[8..24]].iter().for_each(|part| crc.update(part));
        put_u32(&mut bytes, 4, crc.finalize());
        self.image.write(at, &bytes).unwrap();
    }

    /// A birth in one section of a record, behind what belongs there.
    fn birth(&mut self, record: &mut Vec<u8>) {
        let Some((_, page)) = self.whole_tree_page() else { return };
        let body = record.split_off(24);
        let sections: Vec<_> = op::sections(&body).flatten().collect();
        let chosen = self.rng.index(sections.len().max(1));
        for (i, (id, ops)) in sections.into_iter().enumerate() {
            let begun = op::begin_section(record, id);
            ops.flatten().for_each(|op| op.encode(record));
            if i == chosen && self.rng.chance(3, 4) {
                let mut page = page.clone();
                put_u64(&mut page[..], OFF_PAGE, id.0);
                let mut packed = Vec::new();
                Node(&page).pack(&mut packed);
                Op::Image(&packed).encode(record);
            } else if i == chosen {
                Op::InitBitmap { used: 100, end: 1000 }.encode(record);
            }
            op::end_section(record, begun);
        }
        let len = record.len() as u32;
        put_u32(record, 0, len);
    }

    fn doublewrite(&mut self) {
        let superblock = &self.base.superblock;
        let half = superblock.doublewrite_offset(self.rng.index(2));
        let id = PageId(half / PAGE_SIZE as u64);
        let pages: Vec<(PageId, Lsn)> = (0..self.rng.below(10))
            .map(|_| (PageId(self.page_number()), Lsn(superblock.checkpoint.0 + 1 + self.rng.below(LOG))))
            .collect();
        for (i, (page, lsn)) in pages.iter().enumerate().take(superblock.doublewrite_pages as usize) {
            let source = self.tree_page();
            let mut copy = read_page(&self.image, source);
            put_u64(&mut copy[..], OFF_PAGE, page.0);
            set_page_lsn(&mut copy, *lsn);
            self.write_page(PageId(id.0 + 1 + i as u64), copy);
            // So that there is something to repair.
            let inside = page.0.checked_mul(PAGE_SIZE as u64).filter(|at| at + 100 < SIZE);
            if let Some(inside) = inside.filter(|_| self.rng.chance(1, 2)) {
                self.image.write(inside + 90, b"torn").unwrap();
            }
        }
        let floor = self.pick(&[0, superblock.checkpoint.0, superblock.checkpoint.0 + 5000, u64::MAX]);
        let header = DoublewriteHeader {
            sequence: self.rng.next_u64() >> self.rng.below(60),
            floor: Lsn(floor),
            pages,
        };
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        header.encode(&mut page, id, superblock.image());
        self.write_page(id, page);
    }

    fn superblock(&mut self) {
        let mut forged = self.base.superblock.clone();
        let number = self.length();
        let near = forged.checkpoint.0 + self.rng.below(LOG);
        match self.rng.below(11) {
            0 => forged.size = number.wrapping_mul(1024),
            1 => forged.size = self.rng.below(SIZE),
            2 => forged.log_size = number.wrapping_mul(1024) >> 8,
            3 => forged.doublewrite_pages = number as u32,
            4 => forged.groups = number as u32,
            5 => forged.root = PageId(self.page_number()),
            6 => forged.checkpoint = Lsn(self.pick(&[number, near])),
            7 => forged.floor = Lsn(self.pick(&[number, near])),
            8 => forged.incarnation = number as u32,
            9 => forged.clean = !forged.clean,
            _ => forged.sequence = number,
        }
        let mut bytes = forged.encode();
        if self.rng.chance(1, 4) {
            bytes[self.rng.index(508)] = self.rng.next_u64() as u8;
            let crc = crc32fast::hash(&bytes[..508]);
            put_u32(&mut bytes, 508, crc);
        }
        for at in SUPERBLOCK_OFFSETS {
            self.image.write(at, &bytes).unwrap();
        }
    }

    fn forge(&mut self) {
        for _ in 0..[1, 1, 1, 2, 3, 6][self.rng.index(6)] {
            match self.rng.below(16) {
                0 => self.flip(),
                1 | 2 => self.page_bytes(),
                3..=8 => self.node(),
                9 => self.bitmap(),
                10..=12 if !self.base.records.is_empty() => self.log(),
                13 => self.doublewrite(),
                14 => self.superblock(),
                _ => self.node(),
            }
        }
    }
}

/// Uses an image, in one or two of many ways. What that returns does not matter. Whether the image could be opened.
fn exercise(storage: Arc<MemStorage>, base: &Base, rng: &mut Rng) -> bool {
    let options = quiet(40);
    let Ok(tree) = Tree::open(storage.clone(), &options) else { return false };
    for _ in 0..3 {
        let _ = tree.get(&random_key(rng));
    }
    for _ in 0..1 + rng.below(2) {
        match rng.below(6) {
            0 => scan(&tree, rng),
            1 => change(&tree, rng),
            2 => empty_leaves(&tree, rng),
            3 => fill_leaves(&tree, rng),
            4 => blocks(&tree, base, rng),
            _ => _ = (tree.check().is_ok(), tree.checkpoint().is_ok(), tree.trim(2).is_ok()),
        }
    }
    assert!(tree.stats().cache_size <= options.cache_size as u64);
    if rng.chance(3, 4) {
        return true;
    }
    if rng.chance(1, 2) {
        let _ = tree.commit_all();
        drop(tree);
    } else {
        let _ = tree.close();
    }
    // What was made of it is again an image that can be opened or refused.
    if let Ok(tree) = Tree::open(storage, &options) {
        scan(&tree, rng);
    }
    true
}

fn random_key(rng: &mut Rng) -> Vec<u8> {
    if rng.chance(1, 10) { vec![rng.next_u64() as u8] } else { key(rng.below(520)) }
}

fn change(tree: &Tree, rng: &mut Rng) {
    for _ in 0..4 {
        let mut batch = Batch::new();
        for _ in 0..1 + rng.below(8) {
            match rng.below(3) {
                0 => batch.put(&random_key(rng), &vec![1; rng.below(3000) as usize]),
                _ => batch.delete(&random_key(rng)),
            }
        }
        let _ = tree.apply(&batch);
    }
}

/// So that they merge.
fn empty_leaves(tree: &Tree, rng: &mut Rng) {
    let from = rng.below(500);
    for n in (from..from + 100).step_by(10) {
        let mut batch = Batch::new();
        (n..n + 10).for_each(|n| batch.delete(&key(n)));
        let _ = tree.apply(&batch);
    }
}

/// So that they split.
fn fill_leaves(tree: &Tree, rng: &mut Rng) {
    let from = rng.below(500);
    for n in 0..8 {
        let mut batch = Batch::new();
        batch.put(&key(from + n * 3), &[2; 3000]);
        let _ = tree.apply(&batch);
    }
}

fn scan(tree: &Tree, rng: &mut Rng) {
    let mut cursor = tree.cursor();
    if rng.chance(1, 2) {
        let _ = cursor.seek(&key(rng.below(600)));
    }
    for forward in [true, false] {
        let mut steps = 0;
        while matches!(if forward { cursor.next() } else { cursor.prev() }, Ok(true)) {
            let _ = (cursor.key().len(), cursor.value().len());
            steps += 1;
            assert!(steps < RECORDS_MAX, "a scan does not end");
        }
        if !forward || cursor.seek_end().is_err() {
            break;
        }
    }
}

fn blocks(tree: &Tree, base: &Base, rng: &mut Rng) {
    let mut batch = Batch::new();
    for run in &base.data {
        batch.free(*run);
    }
    if rng.chance(1, 3) {
        // What a forged record of a layer above might name.
        let page = PageId(base.pages[rng.index(base.pages.len())].0);
        let wild = Run { start: BlockNo(rng.next_u64() >> rng.below(64)), len: rng.next_u64() as u32 };
        batch.free([page.run(), wild, base.data[0]][rng.index(3)]);
    }
    let _ = tree.apply(&batch);
    let mut batch = Batch::new();
    for _ in 0..3 {
        let Ok(run) = tree.reserve_blocks(1 + rng.below(200) as u32) else { break };
        let _ = tree.write_blocks(run.start, &vec![3; run.len as usize * BLOCK_SIZE]);
        batch.allocate(run);
    }
    let _ = tree.apply(&batch);
    let _ = tree.read_blocks(BlockNo(rng.next_u64() >> rng.below(64)), &mut [0; BLOCK_SIZE]);
}

/// Prints the seed of a panic, and ends the process when an image takes too long.
struct Watch {
    seed: AtomicU64,
    done: AtomicBool,
}

impl Watch {
    fn run(&self) {
        // Time in which this thread runs: where all of the process stands still nothing is hanging.
        let (mut last, mut waited) = (u64::MAX, Duration::ZERO);
        while !self.done.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
            waited += LOOK;
            let seed = self.seed.load(Ordering::Relaxed);
            if seed != last {
                (last, waited) = (seed, Duration::ZERO);
            }
            if waited > CALL_MAX {
                eprintln!("the image of BTFS_SEED={seed} takes longer than {CALL_MAX:?}");
                std::process::abort();
            }
        }
    }
}

struct Done<'w>(&'w Watch);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
        if std::thread::panicking() {
            eprintln!("BTFS_SEED={} runs the image that failed alone", self.0.seed.load(Ordering::Relaxed));
        }
    }
}

fn run(bases: &[Base], images: u64) {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().unwrap());
    let images = number("BTFS_IMAGES").unwrap_or(images);
    let seeds = number("BTFS_SEED").map_or(0..images, |seed| seed..seed + 1);
    let mut opened = 0;
    let watch = Watch { seed: AtomicU64::new(0), done: AtomicBool::new(false) };
    std::thread::scope(|scope| {
        scope.spawn(|| watch.run());
        let _done = Done(&watch);
        for seed in seeds {
            watch.seed.store(seed, Ordering::Relaxed);
            let base = &bases[seed as usize % bases.len()];
            let mut forger = Forger { base, image: base.image.clone(), rng: Rng::new(seed) };
            forger.forge();
            let mut rng = forger.rng;
            opened += u64::from(exercise(Arc::new(MemStorage::from_image(forger.image)), base, &mut rng));
        }
    });
    assert!(opened > images / 4 || images < 100, "only {opened} of {images} images were used");
}

#[test]
fn a_forged_image_is_an_error_and_no_crash() {
    run(&[base(true, true)], 10_000);
}

#[test]
fn a_forged_image_that_was_not_closed_is_an_error_and_no_crash() {
    run(&[base(false, false), base(false, true)], 10_000);
}
