//! Files that are cut to a smaller size in many batches.

use super::*;

#[test]
fn old_bytes_do_not_come_back_when_a_truncate_was_killed_half_way() {
    let storage = image(256 << 20);
    let fs = open(&storage);
    let ino = file_in_pieces(&fs, b"f", 300);
    // As the first batch leaves it: the size is set, a mark tells of it, and most extents are still there.
    let node = fs.node(ino);
    let mut inode = fs.lock(&node).unwrap().get().unwrap().clone();
    inode.size = 5_000;
    let mut batch = Batch::new();
    batch.put(&format::inode_key(ino), &inode.encode());
    batch.put(&format::orphan_key(ino), &format::Orphan::Truncated { size: 5_000 }.encode());
    fs.tree().apply(&batch).unwrap();
    fs.sync().unwrap();
    drop((node, fs));
    let fs = open(&storage);
    assert_eq!(fs.attributes(ino).unwrap().size, 5_000);
    assert!(fs.tree().get(&format::orphan_key(ino)).unwrap().is_none());
    resize(&fs, ino, 300 * 8192);
    let data = fs.read(ino, 0, 300 * 8192).unwrap();
    assert!(data[..4096].iter().all(|b| *b == 3) && data[4096..].iter().all(|b| *b == 0));
    assert_eq!(fs.attributes(ino).unwrap().blocks, 8);
}

#[test]
fn a_file_does_not_grow_over_what_a_failed_truncate_left() {
    let storage = image(256 << 20);
    let fs = open(&storage);
    let ino = file_in_pieces(&fs, b"f", 300);
    // One extent record is damaged, so the truncate ends there.
    let key = format::extent_key(ino, 200 * 8192 + 4096);
    let good = fs.tree().get(&key).unwrap().unwrap();
    let put = |record: &[u8]| {
        let mut batch = Batch::new();
        batch.put(&key, record);
        fs.tree().apply(&batch).unwrap();
    };
    put(&[9; 30]);
    let change = SetAttributes { size: Some(0), ..SetAttributes::default() };
    assert!(fs.set_attributes(ino, &change, &ME).is_err());
    let left = fs.attributes(ino).unwrap();
    assert!(left.size == 0 && left.blocks > 0, "{left:?}");
    assert!(fs.write(ino, 1 << 20, b"x", &ME).is_err(), "old bytes would come back");
    for mode in [Fallocate::Allocate, Fallocate::ZeroRange] {
        assert!(fs.fallocate(ino, 0, 1 << 20, mode, &ME).is_err(), "old bytes would come back");
    }
    let other = file(&fs, b"other");
    fs.write(other, 0, &[7; 8192], &ME).unwrap();
    assert!(fs.copy_range(other, 0, ino, 1 << 20, 8192, &ME).is_err(), "old bytes would come back");
    put(&good);
    fs.write(ino, 300 * 8192, b"x", &ME).unwrap();
    let data = fs.read(ino, 0, 300 * 8192).unwrap();
    assert!(data.iter().all(|b| *b == 0));
    assert!(fs.tree().get(&format::orphan_key(ino)).unwrap().is_none());
}

/// A copy that has been cut, where there was no space for all of it.
fn cut_without_space(fs: &Fs) -> Ino {
    const BLOCKS: u64 = 400;
    let change = SetAttributes { size: Some(0), ..SetAttributes::default() };
    // The page of the counts becomes full at some time, perhaps in the middle of a truncate.
    let unfinished = (0..100).find_map(|round| {
        let files @ [_, even, _] = copied_by_turns(fs, round, BLOCKS);
        // Also what was freed before, and what is kept for files that grow.
        files.iter().for_each(|ino| fs.drop_window(*ino));
        fs.tree().checkpoint().unwrap();
        let places = fs.tree().take_places();
        let cut = fs.set_attributes(even, &change, &ME);
        assert!(matches!(cut, Ok(_) | Err(FsError::NoSpace)), "{cut:?}");
        let left = fs.attributes(even).unwrap();
        let is_unfinished = cut.is_ok() && left.blocks > 0;
        assert!(left.size == 0 || cut.is_err());
        assert!(!is_unfinished || !fs.retry_cuts(1), "it goes on without space");
        places.into_iter().for_each(|run| fs.tree().unreserve_blocks(run));
        is_unfinished.then_some(even)
    });
    let even = unfinished.expect("no truncate finds no space for its rest");
    assert!(fs.tree().get(&format::orphan_key(even)).unwrap().is_some());
    even
}

#[test]
fn a_truncate_that_finds_no_space_for_its_rest_is_finished_by_who_needs_space() {
    let fs = open(&image(64 << 20));
    let even = cut_without_space(&fs);
    // Another one is in use just now.
    let other = fs.node(ROOT);
    let _locked = fs.lock(&other).unwrap();
    fs.reclaimer.add_stuck_cut(ROOT);
    let gain = || fs.gain_space(fs.reclaimer.deletions(), 1);
    assert!(gain() && fs.attributes(even).unwrap().blocks > 0, "more than one batch");
    while gain() {}
    assert_eq!(fs.attributes(even).unwrap().blocks, 0);
    assert!(fs.tree().get(&format::orphan_key(even)).unwrap().is_none());
}

#[test]
fn a_truncate_that_finds_no_space_for_its_rest_is_finished_after_deletions() {
    let fs = open_in_background(&image(64 << 20));
    let even = cut_without_space(&fs);
    for n in 0..200 {
        let name = format!("deleted{n}");
        let ino = file(&fs, name.as_bytes());
        // More than the unlink itself deletes.
        for i in 0..100 {
            fs.write(ino, i * 8192, &[1; 4096], &ME).unwrap();
        }
        fs.unlink(ROOT, name.as_bytes(), &ME).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        if fs.attributes(even).unwrap().blocks == 0 {
            return;
        }
    }
    panic!("nobody goes on with it");
}
