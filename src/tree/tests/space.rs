//! Space: full images, freed pages that cursors still point to, space that goes back to the host, and keys that are as long
//! as they can be.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::page::PAGE_SIZE;
use crate::page::format::BLOCKS_PER_GROUP;
use crate::storage::fault::slow_disk;
use crate::storage::{Fault, FaultStorage, FileStorage, OpKind, OpenMode};

fn small() -> (Arc<MemStorage>, Tree) {
    let storage = image(10 << 20, 256 << 10);
    let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
    (storage, tree)
}

fn key(n: u32) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

/// Puts records until the image is full; how many.
fn fill(tree: &Tree) -> u32 {
    for n in 0.. {
        let mut batch = Batch::new();
        batch.put(&key(n), &[n as u8; 3000]);
        match tree.apply(&batch) {
            Ok(_) => {}
            Err(Error::NoSpace) => return n,
            Err(e) => panic!("{e}"),
        }
    }
    unreachable!()
}

fn empty(tree: &Tree, records: u32) {
    for n in (0..records).step_by(3) {
        let mut batch = Batch::new();
        (n..n + 3).for_each(|n| batch.delete(&key(n)));
        tree.apply(&batch).unwrap();
    }
}

/// Lets quarantines end.
fn settle(tree: &Tree) {
    for _ in 0..3 {
        tree.checkpoint().unwrap();
    }
}

#[test]
fn a_full_tree_can_be_read_and_emptied_and_filled_again() {
    let (storage, tree) = small();
    let free = tree.free_blocks();
    let first = fill(&tree);
    assert!(first > 1500, "only {first} records of 3,000 bytes fit into 9 MiB");
    for round in 0..3 {
        let there = if round == 0 { first } else { first - first / 50 };
        for n in 0..there {
            assert_eq!(tree.get(&key(n)).unwrap(), Some(vec![n as u8; 3000]), "round {round}");
        }
        assert!(tree.get(&key(first)).unwrap().is_none(), "a refused batch was applied");
        tree.check().unwrap();
        tree.commit_all().unwrap();
        empty(&tree, first);
        settle(&tree);
        let report = tree.check().unwrap();
        assert_eq!((report.records, report.data), (0, vec![]));
        let kept = (report.leaves + report.inner_pages - 1) * 4;
        assert_eq!(tree.free_blocks() + kept, free, "space is leaked in round {round}");
        // Leaves do not split in the same places every time.
        let fewer = first - first / 50;
        assert!(fill(&tree) >= fewer);
        (first..first + first / 50).for_each(|n| {
            let mut batch = Batch::new();
            batch.delete(&key(n));
            tree.apply(&batch).unwrap();
        });
        empty(&tree, first);
        assert_eq!(tree.check().unwrap().records, 0);
        settle(&tree);
        for n in 0..fewer {
            let mut batch = Batch::new();
            batch.put(&key(n), &[n as u8; 3000]);
            tree.apply(&batch).unwrap();
        }
    }
    tree.close().unwrap();
    Tree::open(storage, &quiet(64)).unwrap().check().unwrap();
}

#[test]
fn records_are_replaced_where_no_page_is_left() {
    let tree = Tree::open(image(10 << 20, 1 << 20), &quiet(100)).unwrap();
    assert!(fill(&tree) > 40);
    let mut batch = Batch::new();
    (0..40).for_each(|n| batch.put(&key(n), &[!n as u8; 3000]));
    tree.apply(&batch).unwrap();
    (0..40).for_each(|n| assert_eq!(tree.get(&key(n)).unwrap(), Some(vec![!n as u8; 3000])));
    tree.check().unwrap();
}

#[test]
fn an_image_full_of_data_can_be_emptied_and_filled_again() {
    let (storage, tree) = small();
    let free = tree.free_blocks();
    let mut taken = 0;
    for round in 0..3 {
        let mut runs = Vec::new();
        let error = loop {
            match tree.reserve_blocks(100) {
                Ok(run) => runs.push(run),
                Err(e) => break e,
            }
            let mut batch = Batch::new();
            batch.allocate(runs[runs.len() - 1]);
            batch.put(&key(runs.len() as u32), b"a file");
            tree.apply(&batch).unwrap();
        };
        assert!(matches!(error, Error::NoSpace), "{error}");
        let blocks: u64 = runs.iter().map(|r| r.len as u64).sum();
        assert!(round == 0 || blocks == taken, "{taken} blocks, then {blocks}");
        // All but the tree's reserve and a chunk of which the tree has a part.
        assert!(blocks > free / 10 * 8, "{blocks} of {free} blocks");
        taken = blocks;
        // The tree has kept enough for itself to make room again.
        for (i, run) in runs.iter().enumerate() {
            let mut batch = Batch::new();
            batch.put(format!("a note about {i}").as_bytes(), &[0; 1000]);
            tree.apply(&batch).unwrap();
            let mut batch = Batch::new();
            batch.free(*run);
            batch.delete(&key(i as u32 + 1));
            batch.delete(format!("a note about {i}").as_bytes());
            tree.apply(&batch).unwrap();
        }
        settle(&tree);
        let report = tree.check().unwrap();
        assert_eq!(report.data, vec![]);
        assert_eq!(tree.free_blocks() + (report.leaves + report.inner_pages - 1) * 4, free);
    }
    tree.close().unwrap();
    assert_eq!(Tree::open(storage, &quiet(64)).unwrap().free_blocks(), free);
}

#[test]
fn a_batch_cannot_free_or_allocate_blocks_twice() {
    let (_storage, tree) = small();
    let run = tree.reserve_blocks(8).unwrap();
    let mut twice = Batch::new();
    twice.allocate(run);
    twice.allocate(Run { start: BlockNo(run.start.0 + 7), len: 1 });
    assert!(tree.apply(&twice).unwrap_err().is_corrupt());
    let mut once = Batch::new();
    once.allocate(run);
    tree.apply(&once).unwrap();
    assert!(tree.apply(&once).unwrap_err().is_corrupt());
    let mut twice = Batch::new();
    twice.free(run);
    twice.free(run);
    assert!(tree.apply(&twice).unwrap_err().is_corrupt());
    for wild in [
        Run { start: BlockNo(u64::MAX), len: u32::MAX },
        Run { start: BlockNo(run.start.0 + (1 << 32) * BLOCKS_PER_GROUP as u64), len: 8 },
        Run { start: BlockNo(0), len: 1 },
        Run { start: run.start, len: u32::MAX },
        Run { start: run.start, len: 0 },
    ] {
        let mut batch = Batch::new();
        batch.free(wild);
        assert!(tree.apply(&batch).unwrap_err().is_corrupt(), "{wild:?}");
        assert!(tree.read_blocks(BlockNo(u64::MAX), &mut [0; BLOCK_SIZE]).is_err());
    }
    assert_eq!(tree.check().unwrap().data, vec![run]);
}

/// A cursor stands at the end of a leaf, and points to the next. That one is merged away, its place is freed for good, the
/// cursor goes on, by what is left there or around it; then the place becomes another page, and must not be in the pool still.
#[test]
fn a_cursor_that_points_to_a_freed_page_harms_nobody() {
    let (_storage, tree) = small();
    for n in 0..16 {
        let mut batch = Batch::new();
        batch.put(&key(n), &[n as u8; 3900]);
        tree.apply(&batch).unwrap();
    }
    let mut cursor = tree.cursor();
    // The second leaf; when it is emptied it takes over the third, to which the cursor's copy points.
    for n in 0..8 {
        assert!(cursor.next().unwrap());
        assert_eq!(cursor.key(), key(n));
    }
    for n in 4..8 {
        let mut batch = Batch::new();
        batch.delete(&key(n));
        tree.apply(&batch).unwrap();
    }
    assert!(tree.stats().merges > 0);
    settle(&tree);
    for n in 8..16 {
        assert!(cursor.next().unwrap());
        assert_eq!(cursor.key(), key(n));
    }
    for n in 100..140 {
        let mut batch = Batch::new();
        batch.put(&key(n), &[n as u8; 3900]);
        tree.apply(&batch).unwrap();
    }
    assert_eq!(tree.check().unwrap().records, 52);
}

/// A separator that is longer than the space a full page has left: once the left half "did not fit", and the process died.
#[test]
fn long_keys_are_accepted_in_every_order() {
    let mut rng = Rng::new(5);
    for round in 0..60 {
        let storage = image(32 << 20, 2 << 20);
        let tree = Tree::open(storage, &quiet(300)).unwrap();
        let shared = [1000, 1016, 900, 600, 0][round % 5];
        let key = |n: u64| {
            let mut key = vec![b'k'; shared];
            key.extend_from_slice(&n.to_be_bytes());
            key
        };
        let mut model = BTreeMap::new();
        let per_batch = [1, 1, 1, 30][rng.index(4)];
        let (mut up, mut down) = (1_000u64, 1_000u64);
        let fixed = 60 + rng.below(200);
        for _ in 0..120 / per_batch {
            let mut batch = Batch::new();
            for _ in 0..per_batch {
                let n = match round / 5 % 4 {
                    0 => up + 1,
                    1 => down - 1,
                    2 => rng.below(2000),
                    _ if rng.chance(1, 2) => up + 1,
                    _ => down - 1,
                };
                (up, down) = (up.max(n), down.min(n));
                let len = if round % 2 == 0 { fixed } else { rng.below(3000) };
                batch.put(&key(n), &vec![n as u8; len as usize]);
                model.insert(key(n), vec![n as u8; len as usize]);
            }
            tree.apply(&batch).unwrap_or_else(|e| panic!("round {round}: {e}"));
        }
        assert_eq!(tree.check().unwrap().incomplete_splits, 0, "round {round}: a split was forgotten");
        let mut cursor = tree.cursor();
        for (key, value) in &model {
            assert!(cursor.next().unwrap());
            assert_eq!((cursor.key(), cursor.value()), (&key[..], &value[..]), "round {round}");
        }
        assert!(!cursor.next().unwrap());
    }
}

/// An image of 64 MiB in a sparse file.
fn image_file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let size = 64u64 << 20;
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    let options = FormatOptions { size, log_size: Some(1 << 20), ..FormatOptions::default() };
    Tree::format(&*open_file(&path), &options).unwrap();
    (folder, path)
}

fn open_file(path: &Path) -> Arc<FileStorage> {
    Arc::new(FileStorage::open(path, OpenMode::ReadWrite).unwrap())
}

/// Bytes that the host has allocated for a file.
fn on_host(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
}

#[test]
fn freed_space_goes_back_to_the_host() {
    let (_folder, path) = image_file();
    let tree = Tree::open(open_file(&path), &quiet(100)).unwrap();
    let taken = || on_host(&path);
    let before = taken();
    let mut runs = Vec::new();
    for n in 0..40 {
        let run = tree.reserve_blocks(256).unwrap();
        tree.write_blocks(run.start, &vec![7; run.len as usize * BLOCK_SIZE]).unwrap();
        let mut batch = Batch::new();
        batch.allocate(run);
        batch.put(&key(n), &run.start.0.to_be_bytes());
        tree.apply(&batch).unwrap();
        runs.push(run);
    }
    tree.commit_all().unwrap();
    let full = taken();
    assert!(full >= before + (40 << 20), "{before} to {full} bytes for 40 MiB of data");
    let mut batch = Batch::new();
    runs.iter().for_each(|run| batch.free(*run));
    tree.apply(&batch).unwrap();
    // Not durable yet: a crash now would want the data.
    tree.trim(1000).unwrap();
    assert!(taken() >= full - (1 << 20), "data was given away before its deletion was durable");
    tree.commit_all().unwrap();
    tree.trim(1000).unwrap();
    let after = taken();
    assert!(after <= before + (4 << 20), "{before} to {full} to {after} bytes");
    tree.check().unwrap();
}

/// Free chunks are not known to anybody who opens the image, but the host knows what it has.
#[test]
fn what_was_freed_or_given_up_before_the_image_was_opened_goes_back_to_the_host() {
    let (_folder, path) = image_file();
    let taken = || on_host(&path);
    let write = |tree: &Tree, kept: bool| -> Vec<Run> {
        let fill = |n| {
            let run = tree.reserve_blocks(256).unwrap();
            tree.write_blocks(run.start, &vec![7; run.len as usize * BLOCK_SIZE]).unwrap();
            let mut batch = Batch::new();
            batch.allocate(run);
            batch.put(&key(n), &run.start.0.to_be_bytes());
            if kept {
                tree.apply(&batch).unwrap();
            }
            run
        };
        (0..20).map(fill).collect()
    };
    let tree = Tree::open(open_file(&path), &quiet(100)).unwrap();
    let kept = write(&tree, true);
    tree.commit_all().unwrap();
    let with_data = taken();
    // Written, and then the process died.
    write(&tree, false);
    assert!(taken() >= with_data + (20 << 20));
    drop(tree);
    // Who repairs an image opens it without threads, and where there is damage the bitmaps may be wrong.
    Tree::open(open_file(&path), &quiet(100)).unwrap().close().unwrap();
    let tree = Tree::open(open_file(&path), &quiet(100)).unwrap();
    tree.note_damage();
    tree.trim(1000).unwrap();
    drop(tree);
    assert!(taken() >= with_data + (19 << 20));
    let tree = Tree::open(open_file(&path), &quiet(100)).unwrap();
    tree.trim(1000).unwrap();
    // The host does not tell of what was allocated ahead and never written.
    assert!(taken() <= with_data + (5 << 20), "{with_data} bytes and then {}", taken());
    let mut block = vec![0; BLOCK_SIZE];
    for run in &kept {
        tree.read_blocks(run.start, &mut block).unwrap();
        assert!(block.iter().all(|b| *b == 7), "data was given away");
    }
    // Freed just before it is closed: by a repair, which does not know yet what else is free, and by somebody else.
    let free = |tree: Tree, runs: &[Run]| {
        let mut batch = Batch::new();
        runs.iter().for_each(|run| batch.free(*run));
        tree.apply(&batch).unwrap();
        tree.close().unwrap();
    };
    free(tree, &kept[..10]);
    assert!(taken() >= with_data - (1 << 20), "{with_data} bytes and then {}", taken());
    let tree = Tree::open(open_file(&path), &Options { background: true, ..quiet(100) }).unwrap();
    free(tree, &kept[10..]);
    assert!(taken() <= with_data - (5 << 20), "{with_data} bytes and then {}", taken());
    Tree::open(open_file(&path), &quiet(100)).unwrap().check().unwrap();
}

/// The birth of a group is a record like others: a crash can take it back, though the group has been written to.
#[test]
fn what_was_written_to_a_group_that_a_crash_took_back_goes_back_to_the_host() {
    let storage = Arc::new(MemStorage::new(0));
    let size = 1u64 << 30;
    let options = FormatOptions { size, log_size: Some(1 << 20), ..FormatOptions::default() };
    Tree::format(&*storage, &options).unwrap();
    let kept = || storage.image().allocated();
    // All of the first group, and then 8 MiB of the second.
    let fill = |tree: &Tree| {
        let mut runs = Vec::new();
        let second = loop {
            let run = tree.reserve_blocks(2048).unwrap();
            if run.start.offset() > 600 << 20 {
                break run;
            }
            runs.push(run);
        };
        (runs, second)
    };
    let tree = Tree::open(storage.clone(), &quiet(100)).unwrap();
    let (_, second) = fill(&tree);
    let before = kept();
    let third = tree.reserve_blocks(2048).unwrap();
    for run in [second, third] {
        tree.write_blocks(run.start, &vec![7; run.len as usize * BLOCK_SIZE]).unwrap();
    }
    assert!(second.len == 2048 && kept() >= before + (16 << 20));
    drop(tree);
    let tree = Tree::open(storage.clone(), &quiet(100)).unwrap();
    tree.trim(1000).unwrap();
    // It is born again, and the second run belongs to somebody.
    fill(&tree);
    tree.trim(1000).unwrap();
    assert!(kept() <= before + (10 << 20), "{before} bytes and then {}", kept());
}

/// The host's disk is full, and what was deleted in the image has not been given back to it yet.
#[test]
fn what_was_freed_is_given_to_a_full_host_before_a_write_fails() {
    let storage = Arc::new(FaultStorage::new(image(64 << 20, 1 << 20)));
    let tree = Tree::open(storage.clone(), &quiet(200)).unwrap();
    let apply = |change: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        change(&mut batch);
        tree.apply(&batch).unwrap();
    };
    while tree.pool.punch(100).unwrap() > 0 {}
    for round in 0..2 {
        let old = tree.reserve_blocks(1024).unwrap();
        apply(&|batch| batch.allocate(old));
        apply(&|batch| batch.free(old));
        let punched = storage.counts().calls(OpKind::Punch);
        if round == 0 {
            let new = tree.reserve_blocks(4).unwrap();
            storage.arm(Fault::nth(&[OpKind::Write], 0).errno(libc::ENOSPC));
            tree.write_blocks(new.start, &[1; 4 * BLOCK_SIZE]).unwrap();
        } else {
            // The same for pages of the tree.
            storage.arm(Fault::nth(&[OpKind::Allocate], 0).errno(libc::ENOSPC));
            (0..2000).for_each(|n| apply(&|batch| batch.put(&key(n), &[1; 3000])));
        }
        assert_eq!(storage.disarm(), 1, "nothing has failed");
        assert!(storage.counts().calls(OpKind::Punch) > punched, "nothing was given back");
    }
}

/// The host takes its time with each chunk, and the chunk is nobody's meanwhile.
#[test]
fn what_is_being_given_back_to_the_host_is_free_and_waited_for() {
    let (punching, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (begun, may_go_on) = (punching.clone(), go.clone());
    let disk = FaultStorage::observed(image(10 << 20, 256 << 10), move |kind, _, _| {
        if kind == OpKind::Punch {
            begun.store(true, Ordering::SeqCst);
            while !may_go_on.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let tree = Tree::open(Arc::new(disk), &Options { background: true, ..quiet(64) }).unwrap();
    let mut runs = Vec::new();
    let all: u64 = loop {
        match tree.reserve_blocks(256) {
            Ok(run) => runs.push(run),
            Err(Error::NoSpace) => break runs.iter().map(|run| run.len as u64).sum(),
            Err(e) => panic!("{e}"),
        }
    };
    let mut batch = Batch::new();
    runs.iter().for_each(|run| batch.allocate(*run));
    tree.apply(&batch).unwrap();
    let full = tree.free_blocks();
    let mut batch = Batch::new();
    runs.iter().for_each(|run| batch.free(*run));
    tree.apply(&batch).unwrap();
    tree.commit_all().unwrap();
    while !punching.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(tree.free_blocks(), full + all);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            go.store(true, Ordering::SeqCst);
        });
        let mut again = 0;
        while again < all {
            again += tree.reserve_blocks(256).expect("a chunk is with the host").len as u64;
        }
    });
}

/// The first contents are those of a batch that failed, on their way to blocks of an unwritten extent.
#[test]
fn of_contents_that_are_written_twice_the_later_ones_stay() {
    let storage = image(16 << 20, 512 << 10);
    let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
    let run = tree.reserve_blocks(32).unwrap();
    let (first, second) = (vec![1; 32 * BLOCK_SIZE], vec![2; BLOCK_SIZE]);
    let mut batch = Batch::new();
    tree.write_blocks(run.start, &first).unwrap();
    tree.write_blocks_logged(run.start, &second, &mut batch).unwrap();
    batch.allocate(run);
    tree.apply(&batch).unwrap();
    tree.commit_all().unwrap();
    let mut found = vec![0; 32 * BLOCK_SIZE];
    tree.read_blocks(run.start, &mut found).unwrap();
    assert!(found[..BLOCK_SIZE] == second && found[BLOCK_SIZE..] == first[BLOCK_SIZE..]);
}

#[test]
fn contents_that_a_bad_disk_does_not_take_are_read_although_it_gives_nothing() {
    let storage = Arc::new(FaultStorage::new(MemStorage::from_image(image(16 << 20, 512 << 10).image())));
    let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
    let run = tree.reserve_blocks(32).unwrap();
    let bytes: Vec<u8> = (0..32 * BLOCK_SIZE).map(|i| (i / 7) as u8).collect();
    storage.arm(Fault::nth(&[OpKind::Write, OpKind::Read], 0).forever());
    tree.write_blocks(run.start, &bytes).unwrap();
    let mut batch = Batch::new();
    batch.allocate(run);
    tree.apply(&batch).unwrap();
    tree.commit_all().unwrap_err();
    let mut found = vec![0; 3 * BLOCK_SIZE];
    tree.read_blocks(BlockNo(run.start.0 + 2), &mut found).unwrap();
    assert_eq!(found, bytes[2 * BLOCK_SIZE..5 * BLOCK_SIZE]);
}

/// A batch that needs more pages for splits than two chunks hold, while a freed page waits for a checkpoint.
#[test]
fn a_large_batch_gets_its_pages_while_something_is_in_quarantine() {
    for background in [false, true] {
        let options = Options { background, ..quiet(8192) };
        let tree = Tree::open(image(256 << 20, 64 << 20), &options).unwrap();
        let apply = |change: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::new();
            change(&mut batch);
            tree.apply(&batch).unwrap();
        };
        (0..40).for_each(|n| apply(&|batch| batch.put(&key(n), &[n as u8; 3000])));
        (0..40).for_each(|n| apply(&|batch| batch.delete(&key(n))));
        assert!(tree.stats().merges > 0, "no page is in quarantine");
        // It would go round and round.
        apply(&|batch| (0..3600).for_each(|n| batch.put(&key(1000 + n), &[n as u8; 250])));
    }
}

/// A checkpoint takes a while, in pieces; the space that it will give back is worth waiting for.
#[test]
fn what_is_deleted_makes_room_for_data_before_anybody_is_told_that_there_is_none() {
    let storage = slow_disk(MemStorage::new(64 << 20));
    // Log and doublewrite area as mkfs makes them for this size.
    let options = FormatOptions { size: 64 << 20, ..FormatOptions::default() };
    Tree::format(&storage, &options).unwrap();
    let tree = Tree::open(Arc::new(storage), &Options { background: true, ..quiet(8192) }).unwrap();
    let records = fill(&tree);
    settle(&tree);
    for n in (records - 3000..records).rev() {
        let mut batch = Batch::new();
        batch.delete(&key(n));
        tree.apply(&batch).unwrap();
    }
    tree.reserve_blocks(100).unwrap();
}

/// The host's disk is full, and the image has a group that was never used. What was deleted is room enough.
#[test]
fn what_is_deleted_can_be_used_again_though_the_host_is_full() {
    let storage = Arc::new(FaultStorage::new(image(1 << 30, 1 << 20)));
    let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
    storage.arm(Fault::nth(&[OpKind::Allocate], 0).forever().errno(libc::ENOSPC));
    let mut runs = Vec::new();
    while let Ok(run) = tree.reserve_blocks(4096) {
        let mut batch = Batch::new();
        batch.allocate(run);
        tree.apply(&batch).unwrap();
        runs.push(run);
    }
    assert!(runs.len() > 20);
    let mut batch = Batch::new();
    batch.free(runs[0]);
    tree.apply(&batch).unwrap();
    tree.reserve_blocks(100).unwrap();
}

/// A host that has no space but for single pages.
struct Scattered(Arc<MemStorage>);

impl Storage for Scattered {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.0.write_at(offset, buf)
    }
    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.0.write_durable_at(offset, buf)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.0.sync()
    }
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn allocate(&self, offset: u64, len: u64) -> std::io::Result<bool> {
        match len > PAGE_SIZE as u64 {
            true => Err(std::io::Error::from_raw_os_error(libc::ENOSPC)),
            false => self.0.allocate(offset, len),
        }
    }
    fn punch(&self, offset: u64, len: u64) -> std::io::Result<bool> {
        self.0.punch(offset, len)
    }
}

/// The host refuses a chunk for pages; between data there are places for some.
#[test]
fn pages_are_found_where_the_host_has_space_for_them() {
    let tree = Tree::open(Arc::new(Scattered(image(64 << 20, 1 << 20))), &quiet(200)).unwrap();
    let run = tree.reserve_blocks(20).unwrap();
    let mut batch = Batch::new();
    batch.allocate(run);
    tree.apply(&batch).unwrap();
    for n in 0..450 {
        let mut batch = Batch::new();
        batch.put(&key(n), &[1; 3000]);
        tree.apply(&batch).unwrap_or_else(|e| panic!("{e}, {n}"));
    }
    tree.check().unwrap();
}

/// A host that allocates nothing ahead, and remembers what has been written at all.
struct NoAllocation {
    inner: MemStorage,
    written: Mutex<BTreeSet<u64>>,
}

impl NoAllocation {
    fn note(&self, offset: u64, buf: &[u8]) {
        let sectors = offset / 512..(offset + buf.len() as u64).div_ceil(512);
        let mut written = self.written.lock();
        // What has contents may not meet a full disk any more.
        if buf.iter().any(|b| *b != 0) {
            sectors.clone().for_each(|sector| assert!(written.contains(&sector), "{sector} has no space"));
        }
        written.extend(sectors);
    }
}

impl Storage for NoAllocation {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.note(offset, buf);
        self.inner.write_at(offset, buf)
    }
    fn write_durable_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.inner.write_durable_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn allocate(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }
    fn punch(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }
}

#[test]
fn no_page_meets_a_full_disk_on_its_way_home_where_the_host_allocates_nothing() {
    let size = 256 << 20;
    let storage = Arc::new(NoAllocation { inner: MemStorage::new(size), written: Mutex::default() });
    let options = FormatOptions { size, log_size: Some(256 << 10), ..FormatOptions::default() };
    Tree::format(&*storage, &options).unwrap();
    let tree = Tree::open(storage, &quiet(64)).unwrap();
    for n in 0..40_000 {
        let mut batch = Batch::new();
        batch.put(&key(n), &[n as u8 | 1; 3000]);
        tree.apply(&batch).unwrap();
    }
    tree.checkpoint().unwrap();
    tree.check().unwrap();
    tree.close().unwrap();
}

#[test]
fn what_lies_where_space_is_wanted_is_not_written_over() {
    let storage = NoAllocation { inner: MemStorage::new(1 << 20), written: Mutex::default() };
    // The first sector and the last one, single bytes, and a row; all but the last of these lie in a range that begins at 4096.
    let mut bytes = vec![0; 1 << 20];
    for at in [0, 4095, 4096, 9000, 50_000, 100_351, (64 << 10) + 4095] {
        bytes[at] = 1;
    }
    bytes[20_000..30_000].fill(2);
    storage.inner.write_at(0, &bytes).unwrap();
    crate::pool::give_space(&storage, 4096, 64 << 10).unwrap();
    let mut now = vec![0; 1 << 20];
    storage.inner.read_at(0, &mut now).unwrap();
    assert!(now == bytes);
    let written = storage.written.lock();
    for sector in 0..(1 << 20) / 512 {
        let wanted = (8..8 + 128).contains(&sector) && bytes[sector * 512..][..512].iter().all(|b| *b == 0);
        assert_eq!(written.contains(&(sector as u64)), wanted, "{sector}");
    }
}

/// A batch has failed, and what was written for it is still on its way. Its place may be given back to the host or become a page now.
#[test]
fn nothing_is_on_its_way_to_blocks_that_were_given_up() {
    let storage = image(16 << 20, 512 << 10);
    let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
    let run = tree.reserve_blocks(32).unwrap();
    let bytes = vec![3; 32 * BLOCK_SIZE];
    let mut found = vec![0; 32 * BLOCK_SIZE];
    tree.write_blocks(run.start, &bytes).unwrap();
    storage.read_at(run.start.offset(), &mut found).unwrap();
    assert!(found != bytes, "it was to be written behind");
    tree.unreserve_blocks(run);
    storage.read_at(run.start.offset(), &mut found).unwrap();
    assert!(found == bytes);
}
