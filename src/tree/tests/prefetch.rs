//! Reading ahead: cold leaves come from the disk side by side, and nothing else changes.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::page::PAGE_SIZE;
use crate::page::format::page_number;

/// A storage that takes its time to read a page, and counts how many are being read.
struct SlowDisk {
    below: Arc<MemStorage>,
    reading: AtomicUsize,
    most: AtomicUsize,
}

impl SlowDisk {
    fn new(below: Arc<MemStorage>) -> Arc<Self> {
        Arc::new(SlowDisk { below, reading: AtomicUsize::new(0), most: AtomicUsize::new(0) })
    }
    fn take_most(&self) -> usize {
        self.most.swap(0, Ordering::SeqCst)
    }
}

impl Storage for SlowDisk {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if buf.len() == PAGE_SIZE {
            let now = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            self.reading.fetch_sub(1, Ordering::SeqCst);
        }
        self.below.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.below.write_at(offset, buf)
    }
    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.below.write_durable_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.below.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.below.set_len(len)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.below.allocate(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.below.punch(offset, len)
    }
}

fn key(n: u32) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

const RECORDS: u32 = 4000;

/// An image of some hundred leaves, opened with nothing in the pool.
fn cold() -> (Arc<SlowDisk>, Tree) {
    let storage = image(64 << 20, 1 << 20);
    let tree = Tree::open(storage.clone(), &quiet(200)).unwrap();
    for n in 0..RECORDS {
        let mut batch = Batch::new();
        batch.put(&key(n), &[n as u8; 500]);
        tree.apply(&batch).unwrap();
    }
    tree.close().unwrap();
    let disk = SlowDisk::new(storage);
    let tree = Tree::open(disk.clone(), &Options { background: true, ..quiet(400) }).unwrap();
    disk.take_most();
    (disk, tree)
}

#[test]
fn a_scan_reads_several_leaves_at_a_time() {
    let (disk, tree) = cold();
    let mut cursor = tree.cursor();
    for n in 0..RECORDS {
        assert!(cursor.next().unwrap());
        assert_eq!((cursor.key(), cursor.value()), (&*key(n), &[n as u8; 500][..]));
    }
    assert!(!cursor.next().unwrap());
    assert!(disk.take_most() > 2, "the disk served one read after the other");
    let read = tree.stats().pages_read;
    assert!(read < RECORDS as u64 / 10, "{read} pages: leaves were read more than once");
}

#[test]
fn records_that_were_announced_are_read_side_by_side() {
    let (disk, tree) = cold();
    let keys: Vec<_> = (0..RECORDS).step_by(200).map(key).collect();
    tree.will_get(&keys).unwrap();
    for key in &keys {
        assert_eq!(tree.get(key).unwrap().unwrap().len(), 500);
    }
    assert!(disk.take_most() > 2, "the disk served one read after the other");
    let read = tree.stats().pages_read;
    assert!(read <= 30, "{read} pages for 20 keys");
}

#[test]
fn an_error_of_reading_ahead_is_told_to_who_needs_the_page() {
    let (disk, tree) = cold();
    drop(tree);
    // Any one leaf in the middle: damaged, wherever it lies.
    let tree = Tree::open(disk.below.clone(), &quiet(400)).unwrap();
    let leaf = {
        let alive = tree.pool.enter();
        let found = tree.find(&alive, Target::Covering(&key(RECORDS / 2)), 0, true).unwrap().unwrap();
        page_number(&found.page)
    };
    tree.close().unwrap();
    disk.below.write_at(leaf.offset() + 9000, &[0x55; 100]).unwrap();
    let tree = Tree::open(disk, &Options { background: true, ..quiet(400) }).unwrap();
    let mut cursor = tree.cursor();
    let mut seen = 0;
    let error = loop {
        match cursor.next() {
            Ok(more) => assert!(more, "the damage was passed over"),
            Err(error) => break error,
        }
        seen += 1;
    };
    assert!(error.is_corrupt() && seen > RECORDS / 3 && seen <= RECORDS / 2, "{error}, {seen}");
}
