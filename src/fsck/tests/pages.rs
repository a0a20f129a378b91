//! Each check of a page has an image on which exactly it fires. Checksums are made right again.

use super::ProblemKind as P;
use super::support::*;
use super::*;
use crate::page::format::*;
use crate::page::node::{Node, NodeBuilder, NodeSpec};
use crate::page::superblock::{DoublewriteHeader, SUPERBLOCK_OFFSETS, Superblock};
use crate::page::{Lsn, PAGE_SIZE, PageBytes, PageId};
use crate::storage::MemStorage;

pub fn superblock(storage: &Arc<MemStorage>) -> Superblock {
    crate::pool::read_superblock(&**storage).unwrap()
}

pub fn page(storage: &Arc<MemStorage>, id: PageId) -> Box<PageBytes> {
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    storage.read_at(id.offset(), &mut page[..]).unwrap();
    page
}

fn write(storage: &Arc<MemStorage>, id: PageId, mut page: Box<PageBytes>) {
    seal(&mut page);
    storage.write_at(id.offset(), &page[..]).unwrap();
}

fn write_superblock(storage: &Arc<MemStorage>, superblock: &Superblock) {
    let at = SUPERBLOCK_OFFSETS[superblock.sequence as usize % 2];
    storage.write_at(at, &superblock.encode()).unwrap();
}

/// An image whose tree has two levels, and its leaves.
pub fn two_levels() -> (Arc<MemStorage>, PageId, Vec<PageId>) {
    let storage = sample(11, 1500);
    let root = superblock(&storage).root;
    let bytes = page(&storage, root);
    let node = Node(&bytes);
    assert_eq!(node.level(), 1);
    let leaves = (0..node.count()).map(|i| node.child(i)).collect();
    (storage, root, leaves)
}

/// Other fences, flags or links around the same records.
fn rebuild(storage: &Arc<MemStorage>, id: PageId, change: impl FnOnce(&mut NodeSpec<'_>)) {
    let old = page(storage, id);
    let mut spec = Node(&old).spec();
    change(&mut spec);
    let mut new = old.clone();
    let mut builder = NodeBuilder::new(&mut new, spec);
    for i in 0..Node(&old).count() {
        assert!(builder.push_from(Node(&old), i));
    }
    builder.finish();
    set_page_lsn(&mut new, page_lsn(&old));
    write(storage, id, new);
}

#[test]
fn superblocks_that_are_damaged() {
    for at in SUPERBLOCK_OFFSETS {
        let k = known();
        k.storage.write_at(at + 50, b"xxxx").unwrap();
        let report = look_at(&k.storage);
        repaired(&k.storage, &report);
        // The older one closes nothing in order, so the log is replayed.
        assert_eq!(report.counts, [(P::Superblock, 1)], "{report}");
    }
    let k = known();
    for at in SUPERBLOCK_OFFSETS {
        k.storage.write_at(at + 50, b"xxxx").unwrap();
    }
    expect(&k.storage, &[(P::SuperblocksLost, 1)]);
    let k = known();
    let mut twin = superblock(&k.storage);
    twin.sequence -= 1;
    twin.hash_seed[0] += 1;
    write_superblock(&k.storage, &twin);
    expect(&k.storage, &[(P::SuperblockTwin, 1)]);
    let k = known();
    let mut newer = superblock(&k.storage);
    newer.sequence += 1;
    newer.incompat = crate::page::superblock::INCOMPAT_BITMAPS;
    write_superblock(&k.storage, &newer);
    expect(&k.storage, &[(P::RepairUnfinished, 1)]);
    assert!(crate::fs::Fs::open(k.storage, &options()).is_err());
}

#[test]
fn a_doublewrite_header_that_would_be_believed() {
    let k = known();
    let s = superblock(&k.storage);
    let id = PageId(s.doublewrite_offset(1) / PAGE_SIZE as u64);
    let mut bytes: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let header = DoublewriteHeader { sequence: 9, floor: Lsn(0), pages: vec![(PageId(1), Lsn(1))] };
    header.encode(&mut bytes, id, s.image());
    write(&k.storage, id, bytes);
    expect(&k.storage, &[(P::Doublewrite, 1)]);
}

#[test]
fn pages_that_are_damaged() {
    let (storage, _, leaves) = two_levels();
    storage.write_at(leaves[1].offset() + 5000, b"rot").unwrap();
    let report = look_at(&storage);
    repaired(&storage, &report);
    assert_eq!((report.count(P::Page), report.exit_code()), (1, 4), "{report}");
    // A bitmap does not become wrong by it: what the page held is not called leaked.
    assert_eq!(report.count(P::BlocksLeaked), 0);
    let (storage, root, _) = two_levels();
    storage.write_at(root.offset() + 5000, b"rot").unwrap();
    expect(&storage, &[(P::Page, 1)]);
    let (storage, root, _) = two_levels();
    let bitmap = superblock(&storage).bitmap_page(0);
    storage.write_at(bitmap.offset() + 5000, b"rot").unwrap();
    expect(&storage, &[(P::Bitmap, 1)]);
    let _ = root;
}

#[test]
fn pages_that_know_too_much() {
    let (storage, root, _) = two_levels();
    let mut bytes = page(&storage, root);
    let lsn = Lsn(page_lsn(&bytes).0 + (1 << 30));
    set_page_lsn(&mut bytes, lsn);
    write(&storage, root, bytes);
    expect(&storage, &[(P::PageLsn, 1)]);
}

/// Of an image that was closed in order, the log ends at the checkpoint, whatever the floor is: opening takes it so.
#[test]
fn a_checkpoint_before_what_the_pages_know() {
    let (storage, _, _) = two_levels();
    let mut superblock = superblock(&storage);
    assert!(superblock.clean && superblock.checkpoint == superblock.floor);
    superblock.checkpoint.0 -= 100;
    write_superblock(&storage, &superblock);
    assert!(crate::fs::Fs::open(storage.clone(), &options()).is_err());
    let report = look_at(&storage);
    assert!(report.count(P::PageLsn) > 0, "{report}");
    repaired(&storage, &report);
}

#[test]
fn links_and_fences_that_do_not_fit() {
    let (storage, _, leaves) = two_levels();
    rebuild(&storage, leaves[0], |spec| spec.right = leaves[2]);
    expect(&storage, &[(P::PageLink, 1)]);
    let (storage, _, leaves) = two_levels();
    rebuild(&storage, leaves[0], |spec| spec.flags = FLAG_INCOMPLETE);
    expect(&storage, &[(P::PageSplit, 1)]);
    let (storage, _, leaves) = two_levels();
    rebuild(&storage, leaves[1], |spec| spec.low = &[0x10]);
    expect(&storage, &[(P::PageFence, 1)]);
    let (storage, _, leaves) = two_levels();
    rebuild(&storage, leaves[1], |spec| spec.level = 0);
    expect(&storage, &[]);
}

/// An inner page whose keys begin with the same thousand bytes names hundreds of children in 16 KiB, and each key would be kept whole.
#[test]
fn keys_with_an_impossible_prefix_are_not_kept() {
    let (storage, root, leaves) = two_levels();
    let sound = superblock(&storage);
    let far = PageId(sound.size / PAGE_SIZE as u64 - 1);
    static LOW: [u8; 1000] = [0xf0; 1000];
    let (low, high) = (&LOW[..], [&LOW[..], &[0xff]].concat());
    let mut bytes: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let spec =
        NodeSpec { id: far, image: sound.image(), level: 1, flags: 0, low, high: Some(&high), right: root };
    let mut builder = NodeBuilder::new(&mut bytes, spec);
    assert!(builder.push(low, &leaves[0].0.to_be_bytes()));
    for n in 0..500u16 {
        let key = [low, &n.to_be_bytes()].concat();
        assert!(builder.push(&key, &leaves[0].0.to_be_bytes()));
    }
    builder.finish();
    set_page_lsn(&mut bytes, sound.checkpoint);
    write(&storage, far, bytes);
    rebuild(&storage, root, |spec| (spec.high, spec.right) = (Some(low), far));
    let report = look_at(&storage);
    assert_eq!((report.count(P::PageFence), report.count(P::PageTwice)), (1, 0), "{report}");
    repaired(&storage, &report);
}

/// A leaf whose low fence is too low, and which has a record that belongs to the leaf before it.
#[test]
fn keys_that_lie_behind_greater_ones() {
    let (storage, _, leaves) = two_levels();
    let (first, old) = (page(&storage, leaves[0]), page(&storage, leaves[1]));
    let spec = NodeSpec { low: &[0x10], ..Node(&old).spec() };
    let mut new = old.clone();
    let mut builder = NodeBuilder::new(&mut new, spec);
    assert!(builder.push(&Node(&first).key(0), Node(&first).value(0)));
    for i in 0..Node(&old).count() {
        assert!(builder.push_from(Node(&old), i));
    }
    builder.finish();
    set_page_lsn(&mut new, page_lsn(&old));
    write(&storage, leaves[1], new);
    expect(&storage, &[(P::PageFence, 1), (P::KeyOrder, 1)]);
}

#[test]
fn children_at_wrong_places() {
    // The root names a leaf twice: the second time it is not what the separator says, and another one is not reached.
    let (storage, root, leaves) = two_levels();
    let mut bytes = page(&storage, root);
    let at = Node(&bytes).value(2).as_ptr() as usize - bytes.as_ptr() as usize;
    put_u64(&mut bytes[..], at, leaves[0].0);
    write(&storage, root, bytes);
    let report = look_at(&storage);
    repaired(&storage, &report);
    assert_eq!(report.count(P::PageTwice), 1, "{report}");
    let (storage, root, _) = two_levels();
    let mut bytes = page(&storage, root);
    put_u64(&mut bytes[..], at, 1 << 40);
    write(&storage, root, bytes);
    let report = look_at(&storage);
    repaired(&storage, &report);
    assert_eq!((report.count(P::PageLink), report.count(P::PageTwice)), (2, 0), "{report}");
    // A leaf that says it is none.
    let (storage, _, leaves) = two_levels();
    let mut bytes = page(&storage, leaves[1]);
    let (low, right) = (Node(&bytes).low().to_vec(), Node(&bytes).right());
    let high = Node(&bytes).high().unwrap().to_vec();
    let (id, image, lsn) = (leaves[1], superblock(&storage).image(), page_lsn(&bytes));
    let spec = NodeSpec { id, image, level: 3, flags: 0, low: &low, high: Some(&high), right };
    let mut builder = NodeBuilder::new(&mut bytes, spec);
    assert!(builder.push(&low, &7u64.to_be_bytes()));
    builder.finish();
    set_page_lsn(&mut bytes, lsn);
    write(&storage, id, bytes);
    let report = look_at(&storage);
    repaired(&storage, &report);
    assert_eq!(report.count(P::PageLevel), 1, "{report}");
    let (storage, _, leaves) = two_levels();
    rebuild(&storage, leaves[1], |spec| spec.flags = FLAG_DEAD);
    let report = look_at(&storage);
    repaired(&storage, &report);
    assert_eq!(report.count(P::PageDead), 1, "{report}");
}

#[test]
fn bitmaps_that_are_wrong() {
    let change = |f: &dyn Fn(&mut PageBytes)| {
        let k = known();
        let id = superblock(&k.storage).bitmap_page(0);
        let mut bytes = page(&k.storage, id);
        f(&mut bytes);
        write(&k.storage, id, bytes);
        k.storage
    };
    let report = expect(&change(&|b| b[BITMAP_BITS + 500] |= 0x18), &[(P::BlocksLeaked, 1)]);
    assert_eq!(report.problems[0].place.blocks.unwrap().len, 2);
    expect(&change(&|b| b[BITMAP_BITS] = 0x0f), &[(P::BlocksFree, 1)]);
}

/// The same image with 300 more names, all of them in the log only; the leaves that it had.
pub fn with_a_log() -> (Arc<MemStorage>, Vec<PageId>) {
    let (storage, _, leaves) = two_levels();
    let fs = crate::fs::Fs::open(storage.clone(), &options()).unwrap();
    for i in 0..300 {
        let name = format!("new{i}");
        fs.create(crate::fs::ROOT, name.as_bytes(), crate::fs::New::File, 0o644, 0, &ME).unwrap();
        fs.sync().unwrap();
    }
    drop(fs);
    (storage, leaves)
}

/// Damages a record of that log which was durable.
pub fn damage_the_log(storage: &Arc<MemStorage>) {
    let s = superblock(storage);
    let at = crate::page::superblock::LOG_OFFSET + (s.checkpoint.0 + 20_000) % s.log_size;
    storage.write_at(at, &[0xff; 64]).unwrap();
}

#[test]
fn a_log_that_cannot_be_replayed() {
    let (storage, leaves) = with_a_log();
    expect(&storage, &[]);
    // A page that the log changes.
    let base = storage.image();
    let whole = look_at(&storage).inodes;
    let damaged = Arc::new(MemStorage::from_image(base.clone()));
    damaged.write_at(leaves[0].offset() + 5000, b"rot").unwrap();
    let report = look_at(&damaged);
    repaired(&damaged, &report);
    assert_eq!((report.count(P::Log), report.count(P::Page)), (1, 1), "{report}");
    // A record of the log that was durable: what comes behind it is lost.
    let damaged = Arc::new(MemStorage::from_image(base));
    damage_the_log(&damaged);
    let report = look_at(&damaged);
    repaired(&damaged, &report);
    assert_eq!(report.count(P::Log), 1, "{report}");
    assert!(report.inodes < whole && report.inodes + 300 >= whole, "{report}");
}
