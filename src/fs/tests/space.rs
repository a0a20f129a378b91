//! Full images.

use super::*;
use crate::page::Run;
use crate::storage::Rng;
use crate::storage::fault::slow_disk;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Writes until there is no space; returns the file's size.
pub(super) fn fill(fs: &Fs, ino: Ino, piece: usize) -> u64 {
    let data = vec![7; piece];
    let mut at = fs.attributes(ino).unwrap().size;
    loop {
        match fs.write(ino, at, &data, &ME) {
            Ok(done) => at += done as u64,
            Err(FsError::NoSpace) => return fs.attributes(ino).unwrap().size,
            Err(e) => panic!("{e}"),
        }
    }
}

/// What must work on a full image.
fn use_full_image(size: u64, piece: usize, background: bool) {
    let storage = image(size);
    let fs = if background { open_in_background(&storage) } else { open(&storage) };
    let allocated = file(&fs, b"allocated");
    fs.fallocate(allocated, 0, 2 << 20, Fallocate::Allocate, &ME).unwrap();
    let dir = create(&fs, ROOT, b"dir", New::Directory, 0o755, &ME).unwrap();
    for i in 0..100 {
        create(&fs, dir, format!("f{i}").as_bytes(), New::File, 0o644, &ME).unwrap();
    }
    let filler = file(&fs, b"filler");
    let available = fs.usage().available * 4096;
    let filled = fill(&fs, filler, piece);
    assert!(
        filled >= available / 100 * 98,
        "{filled} bytes of {available} available ones, pieces of {piece}"
    );
    assert!(fs.usage().available * 4096 <= available / 50, "much is said to be available in a full image");
    // Nothing of what was written is lost, also by a crash after a sync.
    fs.sync().unwrap();
    fs.write(allocated, 100, &vec![5; (2 << 20) - 200], &ME).unwrap();
    fs.write(allocated, 4096, &vec![6; 1 << 20], &ME).unwrap();
    fs.write(filler, 10_000, &vec![8; 1 << 20], &ME).unwrap();
    for i in 0..100 {
        let (name, new) = (format!("f{i}"), format!("a longer name, {i}"));
        fs.rename(dir, name.as_bytes(), ROOT, new.as_bytes(), RenameMode::Replace, &ME).unwrap();
        fs.unlink(ROOT, new.as_bytes(), &ME).unwrap();
    }
    resize(&fs, filler, filled - filled / 10);
    let regained = fill(&fs, filler, piece);
    assert!(regained >= filled / 100 * 98, "{regained} of {filled}");
    fs.unlink(ROOT, b"filler", &ME).unwrap();
    let again = file(&fs, b"again");
    let data = vec![9; 1 << 20];
    for at in (0..filled / 100 * 95).step_by(data.len()) {
        fs.write(again, at, &data, &ME).unwrap();
    }
    let bytes = fs.read(allocated, 0, 2 << 20).unwrap();
    assert!(bytes[4096..1 << 20].iter().all(|b| *b == 6) && bytes[..100].iter().all(|b| *b == 0));
    fs.close().unwrap();
    let fs = open(&storage);
    fs.tree().check().unwrap();
    assert!(fs.read(again, 0, 4096).unwrap() == data[..4096]);
}

#[test]
fn a_full_small_image_takes_what_needs_no_space_small_writes() {
    use_full_image(64 << 20, 4096, false);
}

#[test]
fn a_full_small_image_takes_what_needs_no_space_medium_writes() {
    use_full_image(64 << 20, 64 << 10, true);
}

#[test]
fn a_full_small_image_takes_what_needs_no_space_large_writes() {
    use_full_image(64 << 20, 1 << 20, true);
}

#[test]
fn a_full_large_image_takes_what_needs_no_space() {
    use_full_image(1 << 30, 1 << 20, true);
}

/// Allocates until there is no space; returns the file's size.
fn fill_unwritten(fs: &Fs, ino: Ino) -> u64 {
    for at in (0..).step_by(64 << 10) {
        match fs.fallocate(ino, at, 64 << 10, Fallocate::Allocate, &ME) {
            Ok(()) => {}
            Err(FsError::NoSpace) => break,
            Err(e) => panic!("{e}"),
        }
    }
    fs.attributes(ino).unwrap().size
}

/// A block of its own within a large extent makes three of one; the records of all of them would be more than the reserve.
#[test]
fn all_of_a_full_image_can_be_overwritten_in_small_pieces_at_random() {
    for (size, written) in [(16 << 20, true), (128 << 20, true), (128 << 20, false)] {
        let storage = image(size);
        // A large write to single blocks is one batch, which the least cache of a mount has room for.
        let options = Options { background: true, cache_size: 16 << 20, ..Options::default() };
        let fs = Fs::open(storage.clone(), &options).unwrap();
        let filler = file(&fs, b"filler");
        let filled = if written { fill(&fs, filler, 1 << 20) } else { fill_unwritten(&fs, filler) };
        let mut rng = Rng::new(size);
        let mut order: Vec<u64> = (0..filled / 4096).collect();
        (1..order.len()).rev().for_each(|i| order.swap(i, rng.index(i + 1)));
        let content = |block: u64| [block.to_be_bytes(); 512].concat();
        for (i, block) in order.iter().enumerate() {
            fs.write(filler, block * 4096, &content(*block), &ME)
                .unwrap_or_else(|e| panic!("{e} after {i} of {} blocks, image of {size} bytes", order.len()));
        }
        fs.sync().unwrap();
        assert_eq!(fs.attributes(filler).unwrap().size, filled);
        for block in &order {
            assert!(fs.read(filler, block * 4096, 4096).unwrap() == content(*block), "block {block}");
        }
        fs.unlink(ROOT, b"filler", &ME).unwrap();
        let again = fill(&fs, file(&fs, b"again"), 1 << 20);
        assert!(again >= filled / 100 * 98, "{again} of {filled}");
        fs.close().unwrap();
        open(&storage).tree().check().unwrap();
    }
}

/// Fills an image of 16 MiB with some files, then a filler, then names.
fn full_of_contents_and_names(storage: &Arc<MemStorage>, count: u64) -> (Fs, Vec<Ino>) {
    let fs = open_in_background(storage);
    let files: Vec<Ino> = (0..count).map(|i| file(&fs, format!("f{i}").as_bytes())).collect();
    files.iter().for_each(|ino| assert!(fs.write(*ino, 0, &[1; 1536 << 10], &ME).is_ok()));
    fill(&fs, file(&fs, b"filler"), 4096);
    for i in 0.. {
        match create(&fs, ROOT, format!("name {i}").as_bytes(), New::File, 0o644, &ME) {
            Ok(_) => {}
            Err(FsError::NoSpace) => break,
            Err(e) => panic!("{e}"),
        }
    }
    fs.sync().unwrap();
    fs.tree().checkpoint().unwrap();
    (fs, files)
}

/// What an overwrite frees waits for every operation that may have seen it, and the next one waits for that.
#[test]
fn a_full_image_can_be_overwritten_while_somebody_reads_slowly() {
    let (fs, files) = full_of_contents_and_names(&image(16 << 20), 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let slow = fs.tree().scan(&[], &[0xff], |_, _| {
                    std::thread::sleep(Duration::from_millis(20));
                    ControlFlow::<()>::Break(())
                });
                slow.unwrap();
            }
        });
        let result =
            (0..300).try_for_each(|n| fs.write(files[0], (n * 41 % 384) * 4096, &[2; 4096], &ME).map(drop));
        done.store(true, Ordering::SeqCst);
        result.unwrap();
    });
}

/// After names have taken what they may of the reserve, there is no room for a stretch, and less for each of several writers.
#[test]
fn several_overwrite_an_image_that_is_full_of_contents_and_names() {
    const WRITERS: u64 = 8;
    const STRETCHES: u64 = 24;
    let storage = image(16 << 20);
    let (fs, files) = full_of_contents_and_names(&storage, WRITERS);
    std::thread::scope(|scope| {
        for ino in &files {
            let fs = &fs;
            scope.spawn(move || {
                for n in 0..STRETCHES {
                    fs.write(*ino, (n * 16 + 7) * 4096, &[2; 4096], &ME)
                        .unwrap_or_else(|e| panic!("{e}, {n}"));
                }
            });
        }
    });
    fs.close().unwrap();
    let fs = open(&storage);
    for ino in files {
        let bytes = fs.read(ino, 0, 1536 << 10).unwrap();
        let expected = |block: u64| if block % 16 == 7 { 2 } else { 1 };
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == expected(i as u64 / 4096)));
    }
    fs.tree().check().unwrap();
}

#[test]
fn an_overwrite_for_which_nearly_all_of_the_reserve_is_used_takes_nothing_with_it() {
    let storage = image(16 << 20);
    let fs = open(&storage);
    let filler = file(&fs, b"filler");
    fill(&fs, filler, 1 << 20);
    fs.sync().unwrap();
    fs.tree().checkpoint().unwrap();
    let mut held: Vec<Run> = std::iter::from_fn(|| fs.tree().reserve_blocks_urgently(1).ok()).collect();
    held.drain(..3).for_each(|run| fs.tree().unreserve_blocks(run));
    fs.write(filler, 7 * 4096, &[2; 4096], &ME).unwrap();
    assert!(matches!(fs.write(filler, 24 * 4096, &[2; 5 * 4096], &ME), Err(FsError::NoSpace)));
    let bytes = fs.read(filler, 0, 64 * 4096).unwrap();
    assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == if i / 4096 == 7 { 2 } else { 7 }));
}

#[test]
fn an_overwrite_of_64_kib_of_a_full_image_is_one_record_wherever_it_begins() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let filler = file(&fs, b"filler");
    fill(&fs, filler, 4096);
    // Until only the reserve is left.
    (0..4000).for_each(|i| assert!(fs.write(filler, i * 3 % 4000 * 8192, &[1; 4096], &ME).is_ok()));
    for offset in [0, 4096, 61_440, 65_536 + 30_000] {
        fs.sync().unwrap();
        let before = fs.tree().stats().log_records;
        fs.write(filler, (8 << 20) + offset, &[2; (64 << 10) - 4096], &ME).unwrap();
        assert_eq!(fs.tree().stats().log_records, before + 1, "at {offset}");
    }
}

/// What is written again with it, because it lies beside it, may be damaged, and stays as it is.
#[test]
fn in_a_full_image_damage_beside_a_write_does_not_hinder_it() {
    let storage = image(16 << 20);
    let fs = open(&storage);
    let (before, filler) = (file(&fs, b"before"), file(&fs, b"filler"));
    fs.write(before, 0, &[b"the damaged block".as_slice(), &[1; 4079], &vec![2; 60 << 10]].concat(), &ME)
        .unwrap();
    fill(&fs, filler, 4096);
    fs.close().unwrap();
    let bytes = storage.image().to_vec().unwrap();
    let at = bytes.windows(17).position(|w| w == b"the damaged block").unwrap() as u64;
    storage.write_at(at, b"DAMAGE").unwrap();
    let fs = open(&storage);
    fs.write(before, 40_000, &[3; 5000], &ME).unwrap();
    assert!(fs.read(before, 0, 100).is_err());
    let rest = fs.read(before, 4096, 60 << 10).unwrap();
    let expected = |at: usize| if (40_000..45_000).contains(&at) { 3 } else { 2 };
    assert!(rest.iter().enumerate().all(|(i, byte)| *byte == expected(i + 4096)));
}

#[test]
fn many_small_files_fill_the_image_and_all_can_be_deleted() {
    for (size, len) in [(16 << 20, 0), (16 << 20, 1500), (64 << 20, 5000)] {
        let storage = image(size);
        let fs = open_in_background(&storage);
        fs.sync().unwrap();
        fs.tree().checkpoint().unwrap();
        let before = fs.usage().free;
        let mut rng = Rng::new(1);
        let mut names = Vec::new();
        let data = vec![3; len];
        for i in 0.. {
            let name = format!("file {i} {}", rng.below(1 << 40));
            match create(&fs, ROOT, name.as_bytes(), New::File, 0o644, &ME) {
                Ok(_) => names.push(name),
                Err(FsError::NoSpace) => break,
                Err(e) => panic!("{e}"),
            }
            let ino = fs.lookup(ROOT, names[i].as_bytes()).unwrap();
            match fs.write(ino, 0, &data, &ME) {
                Ok(_) => {}
                Err(FsError::NoSpace) => break,
                Err(e) => panic!("{e}"),
            }
        }
        assert!(names.len() as u64 * (len as u64 + 400) > size / 4, "{} files of {len} bytes", names.len());
        for name in &names {
            fs.unlink(ROOT, name.as_bytes(), &ME).unwrap_or_else(|e| panic!("unlink in a full image: {e}"));
        }
        fs.sync().unwrap();
        fs.tree().checkpoint().unwrap();
        fs.tree().checkpoint().unwrap();
        let after = fs.usage().free;
        assert!(after + 100 >= before, "{after} of {before} blocks are back");
        assert!(fs.tree().check().unwrap().data.is_empty());
        fs.close().unwrap();
    }
}

#[test]
fn the_space_of_a_huge_file_is_there_for_the_next_write() {
    let storage = image(256 << 20);
    let fs = open_in_background(&storage);
    let ino = file(&fs, b"huge");
    let filled = fill(&fs, ino, 1 << 20);
    fs.unlink(ROOT, b"huge", &ME).unwrap();
    let next = file(&fs, b"next");
    let again = fill(&fs, next, 1 << 20);
    assert!(again >= filled / 100 * 95, "{again} of {filled}");
    fs.close().unwrap();
}

#[test]
fn space_that_others_gain_while_it_is_looked_for_is_found() {
    let fs = open_in_background(&image(16 << 20));
    let ino = file(&fs, b"f");
    fs.write(ino, 0, &[1; 100_000], &ME).unwrap();
    fs.retain(ino);
    fs.unlink(ROOT, b"f", &ME).unwrap();
    let mut attempts = 0;
    let found = fs.or_after_cleaning(|| {
        attempts += 1;
        if attempts > 1 {
            return Ok(());
        }
        // As if another thread did it between this failure and the search for what could be deleted.
        fs.release(ino, 1).unwrap();
        fs.drain();
        Err(FsError::NoSpace)
    });
    assert!(found.is_ok());
    assert!(matches!(fs.or_after_cleaning(|| Err::<(), _>(FsError::NoSpace)), Err(FsError::NoSpace)));
}

/// The same with what files keep to grow.
#[test]
fn windows_that_others_give_up_while_space_is_looked_for_are_found() {
    let fs = open_in_background(&image(64 << 20));
    let ino = file(&fs, b"f");
    for at in 0..100 {
        fs.write(ino, at * 4096, &[1; 4096], &ME).unwrap();
    }
    let mut attempts = 0;
    let found = fs.or_after_cleaning(|| {
        attempts += 1;
        if attempts > 1 {
            return Ok(());
        }
        assert!(matches!(fs.or_after_cleaning(|| Err::<(), _>(FsError::NoSpace)), Err(FsError::NoSpace)));
        Err(FsError::NoSpace)
    });
    assert!(found.is_ok());
}

/// An image whose last group is smaller than what is kept for the tree.
#[test]
fn the_reserve_is_kept_also_if_the_last_group_is_small() {
    use crate::page::format::GROUP_SIZE;
    use crate::page::superblock::{Superblock, default_areas};
    let tail = |size: &u64| {
        let (log, doublewrite) = default_areas(*size);
        let s = Superblock::of_new_image([1; 16], *size, log, doublewrite);
        if s.group_count() == 2 { s.group_blocks(1) as u64 * BLOCK } else { 0 }
    };
    let size = (GROUP_SIZE..).step_by(1 << 18).find(|size| (1 << 20..3 << 19).contains(&tail(size))).unwrap();
    let storage = image(size);
    let fs = open_in_background(&storage);
    let (written, filler) = (file(&fs, b"written"), file(&fs, b"filler"));
    fs.write(written, 0, &[1; 1 << 20], &ME).unwrap();
    fill_unwritten(&fs, filler);
    assert!(fs.tree().free_blocks() * BLOCK >= size / 128, "{} of {size}", fs.tree().free_blocks() * BLOCK);
    for n in 0..64 {
        fs.write(written, n * 37 % 256 * BLOCK, &[2; BLOCK_SIZE], &ME).unwrap();
        create(&fs, ROOT, format!("name {n}").as_bytes(), New::File, 0o644, &ME).unwrap();
    }
    fs.unlink(ROOT, b"filler", &ME).unwrap();
    fs.write(written, 1 << 20, &[3; 1 << 20], &ME).unwrap();
    fs.close().unwrap();
    open(&storage).tree().check().unwrap();
}

/// The image has lost some of its reserve to the tree, so what is given back does not count in full.
#[test]
fn zeros_that_do_not_fit_destroy_nothing() {
    let fs = open(&image(64 << 20));
    let kept = file(&fs, b"kept");
    fs.write(kept, 0, &vec![7; 8 << 20], &ME).unwrap();
    for n in 0.. {
        let create = |name: &str| fs.create(ROOT, name.as_bytes(), New::File, 0o644, 0, &ME);
        let Ok(filler) = create(&n.to_string()).and_then(|_| create("filler")) else { break };
        fill(&fs, filler.ino, 64 << 10);
        fs.rename(ROOT, b"filler", ROOT, format!("filler{n}").as_bytes(), RenameMode::Replace, &ME).unwrap();
    }
    let zeros = fs.fallocate(kept, 0, 8 << 20, Fallocate::ZeroRange, &ME);
    let expected = if zeros.is_ok() { 0 } else { 7 };
    assert!(fs.read(kept, 0, 8 << 20).unwrap().iter().all(|b| *b == expected), "{zeros:?}");
    fs.write(kept, 0, &vec![5; 8 << 20], &ME).unwrap();
    for mode in [Fallocate::ZeroRange, Fallocate::ZeroKeepSize] {
        let zeros = fs.fallocate(kept, 0, 32 << 20, mode, &ME);
        assert!(matches!(zeros, Err(FsError::NoSpace)), "{zeros:?}");
        assert!(fs.read(kept, 0, 32 << 20).unwrap() == vec![5; 8 << 20]);
    }
}

/// What cannot be there as a whole is not begun, whatever the file has elsewhere.
#[test]
fn a_preallocation_that_does_not_fit_takes_nothing() {
    let fs = open(&image(64 << 20));
    let ino = file(&fs, b"f");
    fs.fallocate(ino, 0, 32 << 20, Fallocate::Allocate, &ME).unwrap();
    let available = fs.usage().available;
    let more = fs.fallocate(ino, 32 << 20, 32 << 20, Fallocate::KeepSize, &ME);
    assert!(matches!(more, Err(FsError::NoSpace)));
    assert_eq!(fs.usage().available, available);
    // Of what is there already nothing is needed.
    fs.fallocate(ino, 0, (32 << 20) + (available / 2 * BLOCK), Fallocate::Allocate, &ME).unwrap();
}

#[test]
fn a_copy_that_finds_no_space_tells_how_far_it_came() {
    let fs = open(&image(64 << 20));
    let (from, to, filler) = (file(&fs, b"from"), file(&fs, b"to"), file(&fs, b"filler"));
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i / 4096) as u8).collect();
    fs.write(from, 0, &data, &ME).unwrap();
    // So much of it can be overwritten in a full image.
    const BEGIN: usize = 256 << 10;
    fs.write(to, 0, &[9; BEGIN], &ME).unwrap();
    fill(&fs, filler, 64 << 10);
    fill(&fs, filler, 4096);
    // Not of whole blocks, so nothing is shared.
    let done = fs.copy_range(from, 1, to, 0, (1 << 20) - 1, &ME).unwrap() as usize;
    // Behind that, what the overwrites have left over.
    assert!((BEGIN..=2 * BEGIN).contains(&done), "{done} bytes");
    assert_eq!(fs.attributes(to).unwrap().size, done as u64);
    assert!(fs.read(to, 0, 1 << 20).unwrap() == data[1..][..done]);
}

#[test]
fn what_was_shared_once_can_be_changed_in_a_full_image() {
    let fs = open(&image(64 << 20));
    let (once, copy) = (file(&fs, b"once"), file(&fs, b"copy"));
    fs.write(once, 0, &vec![1; 4 << 20], &ME).unwrap();
    assert_eq!(fs.copy_range(once, 0, copy, 0, 4 << 20, &ME).unwrap(), 4 << 20);
    fs.unlink(ROOT, b"copy", &ME).unwrap();
    let filler = file(&fs, b"filler");
    fill(&fs, filler, 64 << 10);
    fill(&fs, filler, 4096);
    for at in (0..2 << 20).step_by(64 << 10) {
        assert_eq!(fs.write(once, at, &[2; 64 << 10], &ME).unwrap(), 64 << 10);
    }
    for at in (2 << 20..4 << 20).step_by(256 << 10) {
        fs.fallocate(once, at, 128 << 10, Fallocate::PunchHole, &ME).unwrap();
    }
    let data = fs.read(once, 0, 4 << 20).unwrap();
    let expected = |at: usize| match at >> 17 {
        ..16 => 2,
        n => (n % 2) as u8,
    };
    assert!(data.iter().enumerate().all(|(at, b)| *b == expected(at)));
}

#[test]
fn files_that_grow_at_the_same_time_have_large_extents() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let files = [file(&fs, b"a"), file(&fs, b"b"), file(&fs, b"c")];
    for i in 0..2048 {
        for ino in files {
            fs.write(ino, i * 4096, &[i as u8; 4096], &ME).unwrap();
        }
    }
    for ino in files {
        let extents = fs.extents_in(ino, 0, u64::MAX, usize::MAX).unwrap();
        assert!(extents.len() <= 32, "{} extents for 2048 blocks", extents.len());
        for i in 0..2048 {
            assert_eq!(fs.read(ino, i * 4096, 4096).unwrap(), [i as u8; 4096]);
        }
    }
}

#[test]
fn a_file_in_small_pieces_is_overwritten_copied_and_cut_with_a_small_cache() {
    let storage = image(64 << 20);
    let fs = Fs::open(storage, &Options { cache_size: 3 << 20, ..options() }).unwrap();
    let (a, b) = (file(&fs, b"a"), file(&fs, b"b"));
    for ino in [a, b] {
        for i in (0..1024).rev() {
            fs.write(ino, i * 4096, &[i as u8; 4096], &ME).unwrap();
        }
    }
    assert!(fs.extents_in(a, 0, u64::MAX, usize::MAX).unwrap().len() > 500);
    assert_eq!(fs.copy_range(a, 0, b, 0, 4 << 20, &ME).unwrap(), 4 << 20);
    let data: Vec<u8> = (0..4u32 << 20).map(|i| i as u8).collect();
    fs.write(a, 0, &data, &ME).unwrap();
    assert!(fs.read(a, 0, 4 << 20).unwrap() == data);
    for i in 0..1024 {
        assert_eq!(fs.read(b, i * 4096, 4096).unwrap(), [i as u8; 4096]);
    }
    fs.unlink(ROOT, b"a", &ME).unwrap();
    resize(&fs, b, 5000);
    assert_eq!(fs.attributes(b).unwrap().blocks, 16);
    fs.unlink(ROOT, b"b", &ME).unwrap();
    assert!(fs.tree().check().unwrap().data.is_empty());
}

/// A checkpoint takes a while, in pieces; the space that it will give back is worth waiting for.
#[test]
fn small_files_that_were_deleted_make_room_for_a_large_one() {
    for deleted in [300, 900, 1800] {
        let size = 64 << 20;
        let storage = Arc::new(slow_disk(Arc::new(MemStorage::new(size))));
        // Log and doublewrite area as mkfs makes them for this size.
        let format = FormatOptions { size, ..FormatOptions::default() };
        Fs::format(storage.clone(), &format, &ME).unwrap();
        let fs =
            Fs::open(storage, &Options { background: true, cache_size: 256 << 20, ..options() }).unwrap();
        let write = |name: &str, len: usize| {
            let ino = create(&fs, ROOT, name.as_bytes(), New::File, 0o644, &ME)?;
            fs.write(ino, 0, &vec![7; len], &ME)
        };
        let count = (0..).find(|n| write(&format!("f{n}"), 2000).is_err()).unwrap();
        fs.unlink(ROOT, format!("f{count}").as_bytes(), &ME).ok();
        (0..3).for_each(|_| fs.tree().checkpoint().unwrap());
        for n in (count - deleted..count).rev() {
            fs.unlink(ROOT, format!("f{n}").as_bytes(), &ME).unwrap();
        }
        write("large", 64 << 10).unwrap_or_else(|e| panic!("{e} after {deleted} files were deleted"));
    }
}

/// A page of the tree is left here and there: their chunks are never free as a whole.
#[test]
fn what_scattered_small_files_took_is_room_for_large_ones() {
    let size = 64 << 20;
    let storage = image(size);
    let fs = open(&storage);
    let free = fs.usage().available;
    let name = |n: usize| format!("f{n}").into_bytes();
    let write = |fs: &Fs, name: &[u8], len: usize| {
        let ino = create(fs, ROOT, name, New::File, 0o644, &ME)?;
        fs.write(ino, 0, &vec![7; len], &ME)
    };
    let count = (0..).find(|n| write(&fs, &name(*n), 2000).is_err()).unwrap();
    fs.unlink(ROOT, &name(count), &ME).ok();
    (0..count).filter(|n| n % 50 != 0).for_each(|n| fs.unlink(ROOT, &name(n), &ME).unwrap());
    (0..3).for_each(|_| fs.tree().checkpoint().unwrap());
    // Also what a remount makes of it.
    fs.close().unwrap();
    let fs = open(&storage);
    let usage = fs.usage();
    assert!(usage.available > free * 8 / 10, "of {free} blocks: {usage:?}");
    let extent = vec![3; 1 << 20];
    let large = file(&fs, b"large");
    let written = (0..).find(|n| fs.write(large, n << 20, &extent, &ME).ok() != Some(1 << 20)).unwrap();
    assert!(written * 256 > usage.available * 95 / 100, "{written} MiB of {usage:?}");
    // The tree still has what it needs to free all that.
    fs.unlink(ROOT, b"large", &ME).unwrap();
    (0..count).filter(|n| n % 50 == 0).for_each(|n| fs.unlink(ROOT, &name(n), &ME).unwrap());
    fs.close().unwrap();
}

#[test]
fn the_smallest_image_has_room_for_data() {
    let storage = image_with_log(1632 << 10, 256 << 10);
    let fs = open(&storage);
    let available = fs.usage().available;
    let f = file(&fs, b"f");
    let written = (0..).find(|n| fs.write(f, n * BLOCK, &[1; BLOCK_SIZE], &ME).is_err()).unwrap();
    assert!(written > 100 && written * 100 >= available * 98, "{written} of {available} blocks");
    fs.close().unwrap();
}

/// The blocks that are free lie one by one between others, so that no page of the tree fits between them.
#[test]
fn a_full_image_in_small_pieces_can_be_emptied() {
    for size in [64 << 20, 128 << 20] {
        let storage = image(size);
        let fs = open(&storage);
        let (vm, other) = (file(&fs, b"vm"), file(&fs, b"other"));
        let blocks = size / BLOCK_SIZE as u64 / 4 * 3;
        (0..blocks / 256).for_each(|n| assert!(fs.write(vm, n << 20, &vec![1; 1 << 20], &ME).is_ok()));
        let mut rng = Rng::new(1);
        for _ in 0..blocks / 5 {
            fs.write(vm, rng.below(blocks / 256 * 256) * BLOCK, &[2; BLOCK_SIZE], &ME).unwrap();
        }
        let written = (0..).find(|n| fs.write(other, n * BLOCK, &[3; BLOCK_SIZE], &ME).is_err()).unwrap();
        assert!(written > size / BLOCK / 20, "only {written} blocks could be written");
        let usage = fs.usage();
        assert!(usage.available < usage.blocks / 50, "no space, but {usage:?}");
        // Free blocks in quarantine, and still nothing in which a page fits.
        for _ in 0..1000 {
            let hole = rng.below(blocks / 256 * 256) * BLOCK;
            fs.fallocate(vm, hole, BLOCK, Fallocate::PunchHole, &ME).unwrap();
        }
        let names = (0..5000).find(|n| {
            let made = create(&fs, ROOT, format!("name {n}").as_bytes(), New::File, 0o644, &ME);
            assert!(matches!(made, Ok(_) | Err(FsError::NoSpace)), "{made:?}");
            made.is_err()
        });
        println!("{names:?} names");
        let vm_again = fs.lookup(ROOT, b"vm").unwrap();
        assert_eq!(vm_again, vm);
        fs.close().unwrap();
        let fs = open(&storage);
        let cut = SetAttributes { size: Some(0), ..SetAttributes::default() };
        fs.set_attributes(other, &cut, &ME).unwrap();
        fs.unlink(ROOT, b"vm", &ME).unwrap();
        fs.write(other, 0, &vec![4; 16 << 20], &ME).unwrap();
        fs.unlink(ROOT, b"other", &ME).unwrap();
        assert!(fs.tree().check().unwrap().data.is_empty());
        fs.close().unwrap();
    }
}

/// As write(2) counts: what comes before an error is done, and said to be.
#[test]
fn a_write_that_fills_the_image_says_how_far_it_came() {
    let storage = image(48 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"own");
    fs.write(ino, 0, &[1; 512 << 10], &ME).unwrap();
    let fill = file(&fs, b"fill");
    while fs.write(fill, fs.attributes(fill).unwrap().size, &[2; BLOCK_SIZE], &ME).is_ok() {}
    let done = fs.write(ino, 0, &[3; 1 << 20], &ME).unwrap();
    assert!((512 << 10..1 << 20).contains(&done), "{done} bytes");
    assert_eq!(fs.attributes(ino).unwrap().size, done as u64);
    assert!(fs.read(ino, 0, 1 << 20).unwrap() == vec![3; done]);
    fs.close().unwrap();
}

/// Copies and renames take no blocks for contents, but records.
#[test]
fn copies_and_renames_leave_room_for_deleting() {
    let storage = image(48 << 20);
    let fs = open(&storage);
    let base = file(&fs, b"base");
    let blocks = 4000;
    (0..blocks)
        .step_by(250)
        .for_each(|n| assert!(fs.write(base, n * BLOCK, &vec![1; 250 * BLOCK_SIZE], &ME).is_ok()));
    let fill = file(&fs, b"fill");
    let eat = file(&fs, b"eat");
    while fs.write(fill, fs.attributes(fill).unwrap().size, &[2; BLOCK_SIZE], &ME).is_ok() {}
    let mut rng = Rng::new(2);
    let (mut copies, mut renames) = (0, 0);
    let mut refused = false;
    for n in 0..200_000 {
        let copied = fs.copy_range(base, rng.below(blocks) * BLOCK, eat, n * 2 * BLOCK, BLOCK, &ME);
        match copied {
            Ok(_) => copies += 1,
            Err(FsError::NoSpace) => {
                refused = true;
                break;
            }
            Err(e) => panic!("{e}"),
        }
    }
    let long = [b'n'; 250];
    for n in 0..20_000u32 {
        let name = [&n.to_be_bytes().map(|b| b | 0x80), &long[..]].concat();
        let from = if n == 0 {
            b"base".to_vec()
        } else {
            [&(n - 1).to_be_bytes().map(|b| b | 0x80), &long[..]].concat()
        };
        match fs.rename(ROOT, &from, ROOT, &name, RenameMode::Replace, &ME) {
            Ok(_) => renames += 1,
            Err(FsError::NoSpace) => break,
            Err(e) => panic!("{e}"),
        }
    }
    println!("{copies} copies, {renames} renames, {:?}", fs.usage());
    assert!(refused && copies > 0 && renames > 0, "{copies} copies, {renames} renames, refused: {refused}");
    fs.unlink(ROOT, b"fill", &ME).unwrap();
    fs.unlink(ROOT, b"eat", &ME).unwrap();
    create(&fs, ROOT, b"new", New::File, 0o644, &ME).unwrap();
    fs.close().unwrap();
}

#[test]
fn blocks_behind_the_end_go_with_a_truncate_to_the_same_size() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"f");
    let free = fs.usage().free;
    fs.write(ino, 0, &[1; 100_000], &ME).unwrap();
    let with_contents = fs.attributes(ino).unwrap().blocks;
    fs.fallocate(ino, 0, 8 << 20, Fallocate::KeepSize, &ME).unwrap();
    assert!(fs.attributes(ino).unwrap().blocks > 10_000);
    resize(&fs, ino, 100_000);
    assert_eq!(fs.attributes(ino).unwrap().blocks, with_contents);
    // What does not fit as a whole takes nothing.
    let empty = file(&fs, b"empty");
    let refused = fs.fallocate(empty, 0, 1 << 30, Fallocate::Allocate, &ME);
    assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
    assert_eq!(fs.attributes(empty).unwrap().blocks, 0);
    fs.unlink(ROOT, b"f", &ME).unwrap();
    assert!(fs.usage().free + 64 > free);
}

#[test]
fn a_write_that_has_room_for_its_beginning_is_a_short_one() {
    let fs = open(&image(64 << 20));
    let ino = file(&fs, b"f");
    let full = fill(&fs, ino, 1 << 20);
    resize(&fs, ino, full - (600 << 10));
    let other = file(&fs, b"other");
    let done = fs.write(other, 0, &[1; 1 << 20], &ME).unwrap();
    assert!(((256 << 10)..1 << 20).contains(&done), "{done} bytes, with room for 600 KiB");
    assert_eq!(fs.attributes(other).unwrap().size, done as u64);
}
