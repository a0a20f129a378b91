//! Deletions that take long, or find no space, beside those who wait for their space.

use super::space::fill;
use super::*;
use crate::page::Run;

/// The kernel forgets an inode that it has closed a moment after its unlink has been answered.
#[test]
fn a_writer_waits_for_a_file_that_is_given_up_just_after_its_last_name() {
    let fs = open_in_background(&image(16 << 20));
    let (filler, next) = (file(&fs, b"filler"), file(&fs, b"next"));
    let filled = fill(&fs, filler, 64 << 10);
    fs.retain(filler);
    fs.unlink(ROOT, b"filler", &ME).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            fs.release(filler, 1).unwrap();
        });
        for at in (0..filled / 100 * 95).step_by(64 << 10) {
            fs.write(next, at, &[1; 64 << 10], &ME).unwrap();
        }
    });
}

#[test]
fn who_finds_no_space_waits_for_some_deletions_and_not_for_all() {
    let fs = open_in_background(&image(64 << 20));
    let (huge, next) = (file(&fs, b"huge"), file(&fs, b"next"));
    for at in 0..6_000 {
        fs.write(huge, at * 8192, &[3; 4096], &ME).unwrap();
    }
    fill(&fs, file(&fs, b"filler"), 64 << 10);
    // The thread that deletes is gone, so only who writes gets on with it.
    fs.reclaimer.stop();
    while !fs.thread.as_ref().unwrap().is_finished() {
        std::thread::yield_now();
    }
    fs.unlink(ROOT, b"huge", &ME).unwrap();
    let free = || fs.tree().free_blocks();
    let before = free();
    fs.write(next, 0, &[1; 64 << 10], &ME).unwrap();
    assert!(free() > before && free() < before + 3_000, "{before} blocks, {} afterwards", free());
    for at in 1..300 {
        fs.write(next, at * (64 << 10), &[1; 64 << 10], &ME).unwrap();
    }
}

/// Copies are made and deleted until the page of the counts is full: then a deletion takes space, and there is none. Returns the number
/// of that one, the copy, and the places that were taken.
fn deletion_without_space(fs: &Fs) -> (u64, Ino, Vec<Run>) {
    const BLOCKS: u64 = 100;
    for round in 0..100 {
        let [_, even, _] = copied_by_turns(fs, round, BLOCKS);
        // Also what was freed before.
        fs.tree().checkpoint().unwrap();
        let places = fs.tree().take_places();
        let deleted = fs.unlink(ROOT, format!("even{round}").as_bytes(), &ME);
        assert!(matches!(fs.attributes(even), Err(FsError::NotFound)), "its name has gone");
        match deleted {
            Err(FsError::NoSpace) => return (round, even, places),
            deleted => deleted.unwrap(),
        }
        places.into_iter().for_each(|run| fs.tree().unreserve_blocks(run));
    }
    panic!("no deletion takes space");
}

#[test]
fn a_deletion_that_finds_no_space_does_not_keep_the_rest_from_being_closed() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let (_, even, _) = deletion_without_space(&fs);
    let whole = fs.lookup(ROOT, b"whole0").unwrap();
    let not_synced = SetAttributes { mode: Some(0o600), ..SetAttributes::default() };
    fs.set_attributes(whole, &not_synced, &ME).unwrap();
    fs.close().unwrap();
    let fs = open(&storage);
    assert_eq!(fs.attributes(whole).unwrap().mode, 0o600);
    assert!(fs.extents_in(even, 0, u64::MAX, 1).unwrap().is_empty(), "the next opening has space for it");
}

#[test]
fn a_deletion_that_finds_no_space_is_done_when_there_is_some() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let (round, even, places) = deletion_without_space(&fs);
    places.into_iter().for_each(|run| fs.tree().unreserve_blocks(run));
    fs.sync().unwrap();
    let is_there = || !fs.extents_in(even, 0, u64::MAX, 1).unwrap().is_empty();
    assert!(is_there(), "it was deleted without space");
    fs.unlink(ROOT, b"odd0", &ME).unwrap();
    assert!(!is_there(), "nobody tried again");
    fs.unlink(ROOT, b"whole0", &ME).unwrap();
    for n in 1..=round {
        fs.unlink(ROOT, format!("odd{n}").as_bytes(), &ME).unwrap();
        fs.unlink(ROOT, format!("whole{n}").as_bytes(), &ME).unwrap();
    }
    assert!(fs.tree().check().unwrap().data.is_empty(), "its blocks are free");
}

#[test]
fn long_deletions_are_finished_by_closing_or_by_the_next_opening() {
    for close in [true, false] {
        let storage = image(256 << 20);
        let fs = open_in_background(&storage);
        let ino = file(&fs, b"f");
        for i in 0..5_000 {
            fs.write(ino, i * 8192, &[3; 4096], &ME).unwrap();
        }
        fs.unlink(ROOT, b"f", &ME).unwrap();
        end(fs, close);
        let fs = open(&storage);
        assert!(matches!(fs.attributes(ino), Err(FsError::NotFound)));
        assert!(fs.tree().check().unwrap().data.is_empty(), "its blocks are free");
    }
}

/// What adds records ends while enough is left for what gives space back (B3).
#[test]
fn nothing_that_adds_uses_up_what_deletions_need() {
    type Step = fn(&Fs, &[Ino], u32) -> Result<()>;
    let name = |n: u32| format!("{n:0200}").into_bytes();
    let steps: [(&str, u64, Step); 4] = [
        ("link", 11, |fs, files, n| {
            fs.link(files[0], ROOT, format!("{n:0200}").as_bytes(), &ME)?;
            fs.release(files[0], 1)
        }),
        ("set_xattr", 11, |fs, files, n| {
            fs.set_xattr(files[0], format!("user.{n}").as_bytes(), &[1; 3000], SetXattr::Any, &ME)
        }),
        ("write", 11, |fs, files, n| fs.write(files[n as usize], 0, &[1; 2000], &ME).map(drop)),
        ("rename", 9, |fs, _, n| {
            let (old, new) = (format!("{n}"), format!("{n:0250}"));
            fs.rename(ROOT, old.as_bytes(), ROOT, new.as_bytes(), RenameMode::Replace, &ME)
        }),
    ];
    for (what, line, step) in steps {
        let fs = open(&image(16 << 20));
        let files: Vec<Ino> = (0..4_000).map(|n| file(&fs, format!("{n}").as_bytes())).collect();
        fill(&fs, file(&fs, b"filler"), 4096);
        let refused = (0..4_000).find_map(|n| step(&fs, &files, n).err());
        assert!(matches!(refused, Some(FsError::NoSpace)), "{what}: {refused:?}");
        assert!(fs.tree().has_room_above(line, 0).unwrap(), "{what} went on");
        let made = create(&fs, ROOT, &name(0), New::File, 0o600, &ME);
        assert!(matches!(made, Err(FsError::NoSpace | FsError::Exists)) || line < 11, "{what}: {made:?}");
    }
}
