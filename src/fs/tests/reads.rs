//! Reading contents: what is fetched ahead.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::*;
use crate::fs::read_around::{SMALL, STRETCH};
use crate::page::{BLOCK_SIZE, BlockNo};
use crate::storage::{Fault, FaultStorage, OpKind};

/// Ranges of bytes that a disk was told will be read.
type Told = Arc<Mutex<Vec<(u64, u64)>>>;

/// The filesystem, opened with nothing in memory on a disk that notes what it is told.
fn cold(storage: &Arc<MemStorage>) -> (Fs, Told) {
    let told = Told::default();
    let noted = told.clone();
    let observer = move |kind, offset, len| {
        if kind == OpKind::ReadAhead {
            noted.lock().unwrap().push((offset, len));
        }
    };
    let disk = Arc::new(FaultStorage::observed(storage.clone(), observer));
    (Fs::open(disk, &options()).unwrap(), told)
}

fn write_file(fs: &Fs, name: &str, contents: &[u8]) -> Ino {
    let ino = create(fs, ROOT, name.as_bytes(), New::File, 0o644, &ME).unwrap();
    fs.write(ino, 0, contents, &ME).unwrap();
    ino
}

fn blocks_of(fs: &Fs, ino: Ino) -> Vec<BlockNo> {
    let runs =
        fs.extents_in(ino, 0, u64::MAX, usize::MAX).unwrap().into_iter().filter_map(|m| m.extent.run());
    runs.flat_map(|run| (run.start.0..run.end().0).map(BlockNo)).collect()
}

#[test]
fn neighbours_of_a_small_file_are_fetched_with_it() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let contents = |n: usize| vec![n as u8; 3 * BLOCK_SIZE - n];
    let files: Vec<Ino> = (0..200).map(|n| write_file(&fs, &format!("f{n}"), &contents(n))).collect();
    fs.close().unwrap();

    let (fs, told) = cold(&storage);
    let (mut met, mut alone) = (BTreeSet::new(), 0);
    for n in (0..200).map(|i| i * 77 % 200) {
        assert_eq!(fs.read(files[n], 0, SMALL as usize).unwrap(), contents(n));
        // The first file that is read of a stretch comes alone. What reaches into the next one counts for the one that it begins in.
        let blocks = blocks_of(&fs, files[n]);
        alone += met.insert(blocks[0].0 / u64::from(STRETCH)) as usize;
    }
    let told = told.lock().unwrap();
    let stretches: BTreeSet<u64> = told.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(stretches.len(), told.len(), "a stretch was fetched twice");
    assert!(stretches.len() >= 4, "600 blocks lie in at least 4 stretches with several files");
    assert!(alone <= stretches.len() + 1, "{alone} stretches were met, {} fetched", stretches.len());
    for (offset, len) in &*told {
        assert_eq!((offset % len, *len), (0, u64::from(STRETCH) * BLOCK_SIZE as u64));
        assert!(met.contains(&(offset / len)), "a stretch was fetched of which nothing was read");
    }
}

#[test]
fn reading_a_large_file_here_and_there_fetches_nothing_else() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let large = write_file(&fs, "large", &vec![7; 16 << 20]);
    let inline = write_file(&fs, "inline", &[8; 100]);
    fs.close().unwrap();

    let (fs, told) = cold(&storage);
    for n in 0..1000 {
        let block = n * 7919 % 4096;
        assert_eq!(fs.read(large, block * BLOCK_SIZE as u64, BLOCK_SIZE).unwrap(), [7; BLOCK_SIZE]);
        assert_eq!(fs.read(inline, 0, BLOCK_SIZE).unwrap(), [8; 100]);
    }
    assert_eq!(*told.lock().unwrap(), []);
}

/// What was overwritten is read in one piece with the dead block in its middle, which the disk may not be able to read.
#[test]
fn a_dead_block_that_cannot_be_read_is_no_loss() {
    let disk = Arc::new(FaultStorage::new(image(64 << 20)));
    let fs = Fs::open(disk.clone(), &options()).unwrap();
    let ino = write_file(&fs, "f", &vec![1; 1 << 20]);
    fs.write(ino, 100 * 4096, &[2; 4096], &ME).unwrap();
    disk.arm(Fault::nth(&[OpKind::Read], 1));
    let bytes = fs.read(ino, 0, 1 << 20).unwrap();
    assert_eq!(disk.fired(), 1);
    let expected = |at: usize| if at / 4096 == 100 { 2 } else { 1 };
    assert!(bytes.iter().enumerate().all(|(at, b)| *b == expected(at)));
}

#[test]
fn pieces_that_overwrites_have_moved_are_fetched_together_where_all_of_a_file_is_read() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = write_file(&fs, "f", &vec![7; 16 << 20]);
    // The new blocks lie in the order of the overwrites, all over the file.
    let overwritten: Vec<u64> = (0..400).map(|n| n * 7919 % 4096).collect();
    overwritten.iter().for_each(|block| assert!(fs.write(ino, block * 4096, &[8; BLOCK_SIZE], &ME).is_ok()));
    fs.close().unwrap();

    for (len, is_long) in [(1 << 20, true), (16 << 10, false)] {
        let (fs, told) = cold(&storage);
        for at in (0..16 << 20).step_by(len) {
            let bytes = fs.read(ino, at as u64, len).unwrap();
            let blocks = bytes.as_chunks::<BLOCK_SIZE>().0.iter().enumerate();
            for (i, block) in blocks {
                let expected = if overwritten.contains(&(at as u64 / 4096 + i as u64)) { 8 } else { 7 };
                assert!(block.iter().all(|b| *b == expected));
            }
        }
        let told = told.lock().unwrap();
        let stretch = u64::from(STRETCH) * BLOCK_SIZE as u64;
        let fetched = told.iter().filter(|(_, len)| *len == stretch).count();
        // 400 blocks lie in four or five stretches.
        assert_eq!(fetched, if is_long { fetched.clamp(4, 5) } else { 0 }, "reads of {len} bytes");
        assert!(told.iter().all(|(offset, len)| *len < stretch || offset % stretch == 0));
    }
}

/// Whichever way a block comes to be read: alone, with others, in part at its beginning or its end.
#[test]
fn no_byte_of_a_damaged_block_is_returned() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = write_file(&fs, "f", &vec![1; 64 * BLOCK_SIZE]);
    // In several extents.
    [10, 20, 21, 40].iter().for_each(|n| assert!(fs.write(ino, n * 4096, &[2; BLOCK_SIZE], &ME).is_ok()));
    fs.close().unwrap();
    for damaged in [5u64, 10, 20, 30, 63] {
        let copy = Arc::new(MemStorage::from_image(storage.image()));
        let fs = open(&copy);
        let at = damaged * BLOCK;
        let block = fs.extents_in(ino, at, at + 1, 1).unwrap()[0].block_at(at).unwrap();
        copy.write_at(block.offset() + 2000, &[0x55]).unwrap();
        let (begin, end) = (damaged * BLOCK, (damaged + 1) * BLOCK);
        for (from, to) in [
            (0, 64 * BLOCK),
            (begin, end),
            (begin + 1, end),
            (begin, end - 1),
            (begin + 5, begin + 10),
            (begin + 5, 64 * BLOCK),
            (0, begin + 5),
            (100, end + 100),
        ] {
            let read = fs.read(ino, from, (to - from) as usize);
            assert!(matches!(read, Err(FsError::Contents(_))), "block {damaged}, bytes {from} to {to}");
        }
        for (from, to) in [(0, begin), (end, 64 * BLOCK), (1, begin), (end, 64 * BLOCK - 1)] {
            fs.read(ino, from, to.saturating_sub(from) as usize).unwrap();
        }
    }
}
