//! Growth of an image that is open.

use super::*;
use crate::page::format::{CHUNK_SIZE, GROUP_SIZE};
use crate::storage::sim::Policy;
use crate::storage::{Fault, FaultStorage, FileStorage, OpKind, SimStorage};

const SMALL: u64 = 16 << 20;

fn key(n: u32) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

fn put(tree: &Tree, keys: impl IntoIterator<Item = u32>) {
    for n in keys {
        let mut batch = Batch::new();
        batch.put(&key(n), &[n as u8; 1000]);
        tree.apply(&batch).unwrap();
    }
}

fn has(tree: &Tree, keys: impl IntoIterator<Item = u32>) {
    for n in keys {
        assert_eq!(tree.get(&key(n)).unwrap().as_deref(), Some(&[n as u8; 1000][..]), "key {n}");
    }
}

/// Takes all blocks that data may take; how many.
fn fill(tree: &Tree) -> u64 {
    let mut taken = 0;
    loop {
        let run = match tree.reserve_blocks(8192) {
            Ok(run) => run,
            Err(Error::NoSpace) => return taken,
            Err(error) => panic!("{error}"),
        };
        tree.write_blocks(BlockNo(run.end().0 - 1), &[7; BLOCK_SIZE]).unwrap();
        let mut batch = Batch::new();
        batch.allocate(run);
        tree.apply(&batch).unwrap();
        taken += run.len as u64;
    }
}

/// Sizes to grow to: inside the first group, exactly to its end, a rest that is no group, and several groups.
fn sizes() -> [u64; 5] {
    let storage = image(SMALL, 512 << 10);
    let tree = Tree::open(storage, &quiet(40)).unwrap();
    let group = tree.pool.geometry().data_offset() + GROUP_SIZE;
    [SMALL + 16384, 40 << 20, group, group + CHUNK_SIZE as u64 / 2, group * 3]
}

#[test]
fn a_full_image_has_room_again_after_it_has_grown() {
    for size in sizes() {
        let storage = image(SMALL, 512 << 10);
        let tree = Tree::open(storage.clone(), &quiet(40)).unwrap();
        put(&tree, 0..200);
        fill(&tree);
        let free = tree.free_blocks();
        tree.grow(size).unwrap();
        assert_eq!(tree.size(), size);
        let gained = tree.free_blocks() - free;
        let most = (size - SMALL) / BLOCK_SIZE as u64;
        assert!(gained <= most && gained + 512 >= most, "{gained} of {most}");
        put(&tree, 200..210);
        if size <= 40 << 20 {
            fill(&tree);
        }
        tree.check().unwrap();
        let expected = tree.free_blocks();
        tree.close().unwrap();
        let tree = Tree::open(storage, &quiet(40)).unwrap();
        assert_eq!((tree.size(), tree.free_blocks()), (size, expected));
        has(&tree, 0..210);
        tree.check().unwrap();
    }
}

/// The power goes at any write of a growth: the image has one of the two sizes, no block is lost or in use twice, and it can
/// be worked on and grown again.
#[test]
fn a_crash_while_the_image_grows_leaves_the_old_size_or_the_new_one() {
    for (seed, size) in sizes().into_iter().enumerate() {
        let mut rng = Rng::new(seed as u64);
        let storage = Arc::new(SimStorage::from_image(image(SMALL, 512 << 10).image()));
        let tree = Tree::open(storage.clone(), &quiet(40)).unwrap();
        put(&tree, 0..100);
        tree.commit_all().unwrap();
        let old_free = tree.free_blocks();
        storage.start_recording();
        tree.grow(size).unwrap();
        let grown = storage.operations();
        let new_free = tree.free_blocks();
        put(&tree, 100..130);
        tree.checkpoint().unwrap();
        let recording = storage.finish_recording().unwrap();
        let mut seen = [0; 2];
        let mut cursor = recording.cursor();
        while cursor.advance() {
            for policy in [Policy::Lost, Policy::Kept, Policy::Sectors, Policy::Any] {
                let crashed = Arc::new(MemStorage::from_image(cursor.crash(&mut rng, policy)));
                let tree = Tree::open(crashed.clone(), &quiet(40)).unwrap();
                let is_new = tree.size() == size;
                assert!(is_new || tree.size() == SMALL);
                assert!(is_new || cursor.index() < grown, "a growth that was acknowledged is lost");
                seen[is_new as usize] += 1;
                assert!(tree.check().unwrap().data.is_empty(), "blocks that belong to nobody");
                has(&tree, 0..100);
                if cursor.index() < grown {
                    assert_eq!(tree.free_blocks(), if is_new { new_free } else { old_free });
                }
                tree.grow(size).unwrap();
                put(&tree, 0..130);
                drop(tree);
                let tree = Tree::open(crashed, &quiet(40)).unwrap();
                assert_eq!(tree.size(), size);
                assert!(tree.check().unwrap().data.is_empty());
            }
        }
        assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    }
}

#[test]
fn an_image_grows_under_those_who_work_on_it() {
    let storage = image(SMALL, 512 << 10);
    let tree = Tree::open(storage, &Options { background: true, ..quiet(60) }).unwrap();
    std::thread::scope(|scope| {
        for t in 0..3 {
            let tree = &tree;
            scope.spawn(move || put(tree, t * 1000..t * 1000 + 300));
        }
        for n in 1..60 {
            tree.grow(SMALL + n * (12 << 20)).unwrap();
        }
    });
    (0..3).for_each(|t| has(&tree, t * 1000..t * 1000 + 300));
    tree.check().unwrap();
}

#[test]
fn a_growth_that_is_refused_changes_nothing() {
    let tree = Tree::open(image(SMALL, 512 << 10), &quiet(40)).unwrap();
    let free = tree.free_blocks();
    for size in [0, SMALL - 16384, SMALL - 1, u64::MAX, 1 << 61] {
        assert!(matches!(tree.grow(size), Err(Error::Unusable(_))), "{size}");
    }
    tree.grow(SMALL).unwrap();
    tree.grow(SMALL + 16383).unwrap();
    tree.set_read_only(true).unwrap();
    assert!(matches!(tree.grow(SMALL * 2), Err(Error::ReadOnly)));
    tree.set_read_only(false).unwrap();
    assert_eq!((tree.size(), tree.free_blocks()), (SMALL, free));
    let storage = Arc::new(FaultStorage::new(MemStorage::from_image(image(SMALL, 512 << 10).image())));
    let tree = Tree::open(storage.clone(), &quiet(40)).unwrap();
    storage.arm(Fault::nth(&[OpKind::SetLen], 0).errno(libc::EFBIG));
    assert!(matches!(tree.grow(SMALL * 2), Err(Error::Unusable(_))));
    put(&tree, 0..10);
    tree.grow(SMALL * 2).unwrap();
    assert_eq!(tree.size(), SMALL * 2);
}

#[test]
fn a_file_grows_and_stays_sparse() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let bytes = image(SMALL, 512 << 10).image().to_vec().unwrap();
    std::fs::write(&path, bytes).unwrap();
    let open = || Arc::new(FileStorage::open(&path, crate::storage::OpenMode::ReadWrite).unwrap());
    let tree = Tree::open(open(), &quiet(40)).unwrap();
    tree.grow(8 << 30).unwrap();
    put(&tree, 0..50);
    tree.close().unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 8 << 30);
    assert!(metadata.blocks() * 512 < 2 * SMALL);
    let tree = Tree::open(open(), &quiet(40)).unwrap();
    assert_eq!(tree.size(), 8 << 30);
    has(&tree, 0..50);
}
