//! Disks that fail to read now and then.

use super::*;
use crate::storage::{Fault, FaultStorage, Image, OpKind};

const PIECES: u64 = 4_000;

/// An image with a file whose extents take many pages of the tree, and another file.
fn prepared() -> Image {
    let storage = image(64 << 20);
    let fs = open(&storage);
    file_in_pieces(&fs, b"large", PIECES);
    fs.write(file(&fs, b"other"), 0, &[1; 40_000], &ME).unwrap();
    fs.close().unwrap();
    storage.image()
}

/// Opens the image again for each read that `change` of the large file needs, and has it fail, and all behind it.
fn each_read_fails<T>(change: impl Fn(&Fs, Ino) -> Result<T>, then: impl Fn(&Fs, Ino, Result<T>)) {
    let image = prepared();
    for nth in 0.. {
        let disk = Arc::new(FaultStorage::new(MemStorage::from_image(image.clone())));
        let fs = Fs::open(disk.clone(), &options()).unwrap();
        let ino = fs.lookup(ROOT, b"large").unwrap();
        disk.arm(Fault::nth(&[OpKind::Read], nth).forever());
        let result = change(&fs, ino);
        if disk.disarm() == 0 {
            assert!(result.is_ok() && nth > 10, "{nth} reads");
            return;
        }
        // Perhaps it was reading ahead, of what was not needed.
        if result.is_err() || has_extents(&fs, ino) {
            then(&fs, ino, result);
        }
    }
}

fn has_extents(fs: &Fs, ino: Ino) -> bool {
    !fs.extents_in(ino, 0, u64::MAX, 1).unwrap().is_empty()
}

fn has_mark(fs: &Fs, ino: Ino) -> bool {
    fs.tree().get(&format::orphan_key(ino)).unwrap().is_some()
}

#[test]
fn a_deletion_that_cannot_read_goes_on_later() {
    let late = std::cell::Cell::new(0);
    let unlink = |fs: &Fs, _: Ino| fs.unlink(ROOT, b"large", &ME);
    each_read_fails(unlink, |fs, ino, unlinked| {
        if unlinked.is_err() {
            return fs.unlink(ROOT, b"large", &ME).expect("told as an error, and done");
        }
        assert!(has_extents(fs, ino) && has_mark(fs, ino));
        assert!(fs.tree().is_damaged());
        // With the next one that waits to be deleted.
        let other = fs.lookup(ROOT, b"other").unwrap();
        fs.retain(other);
        fs.unlink(ROOT, b"other", &ME).unwrap();
        fs.release(other, 1).unwrap();
        assert!(!has_extents(fs, ino) && !has_mark(fs, ino), "its space is lost until the next opening");
        late.set(late.get() + 1);
    });
    assert!(late.get() > 10, "only {} reads failed in the midst of the deletion", late.get());
}

#[test]
fn a_truncate_that_cannot_read_goes_on_later() {
    let late = std::cell::Cell::new(0);
    let empty = SetAttributes { size: Some(0), ..SetAttributes::default() };
    let truncate = |fs: &Fs, ino: Ino| fs.set_attributes(ino, &empty, &ME);
    each_read_fails(truncate, |fs, ino, truncated| {
        if truncated.is_err() {
            assert_eq!(
                fs.attributes(ino).unwrap().size,
                (2 * PIECES - 1) * BLOCK,
                "told as an error, and done"
            );
            return;
        }
        assert_eq!(fs.attributes(ino).unwrap().size, 0);
        assert!(has_extents(fs, ino) && has_mark(fs, ino));
        while fs.retry_cuts(1) {}
        assert!(!has_extents(fs, ino) && !has_mark(fs, ino), "its space is lost until the file grows");
        late.set(late.get() + 1);
    });
    assert!(late.get() > 10, "only {} reads failed in the midst of the cut", late.get());
}

#[test]
fn a_file_that_was_zeroed_in_part_does_not_look_unchanged() {
    let part = std::cell::Cell::new(0);
    let later = Caller { now: Time { seconds: ME.now.seconds + 100, nanos: 0 }, ..ME };
    let punch = |fs: &Fs, ino: Ino| fs.fallocate(ino, 0, u64::MAX >> 2, Fallocate::PunchHole, &later);
    each_read_fails(punch, |fs, ino, punched| {
        punched.unwrap_err();
        let is_changed = fs.read(ino, 0, 1).unwrap() == [0];
        let found = fs.attributes(ino).unwrap();
        assert_eq!([found.mtime == later.now, found.ctime == later.now], [is_changed; 2]);
        part.set(part.get() + is_changed as u32);
    });
    assert!(part.get() > 10, "only {} reads failed in the midst", part.get());
}

#[test]
fn a_deletion_that_failed_is_told_with_its_inode_and_not_to_who_looks_something_up() {
    let storage = image(64 << 20);
    let fs = open_in_background(&storage);
    let large = file_in_pieces(&fs, b"large", 300);
    let mut batch = Batch::new();
    batch.put(&format::extent_key(large, 200 * 8192 + 4096), &[9; 30]);
    fs.tree().apply(&batch).unwrap();
    let give_up = |name: &[u8]| {
        let ino = create(&fs, ROOT, name, New::File, 0o600, &ME).unwrap();
        fs.write(ino, 0, &[1; 40_000], &ME).unwrap();
        fs.retain(ino);
        fs.unlink(ROOT, name, &ME).unwrap();
        ino
    };
    fs.unlink(ROOT, b"large", &ME).unwrap();
    while !fs.tree().is_damaged() {
        std::thread::yield_now();
    }
    fs.release_aside(give_up(b"aside"));
    let error = fs.release(give_up(b"other"), 1).unwrap_err().to_string();
    assert!(error.contains(&format!("deleting inode {}: ", large.0)), "{error}");
    fs.release(give_up(b"third"), 1).unwrap();
}

/// What is looked up and cannot be read has no reference more than before: nobody would give it up.
#[test]
fn an_inode_that_could_not_be_looked_up_goes_with_its_last_name() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let dir = create(&fs, ROOT, b"dir", New::Directory, 0o755, &ME).unwrap();
    // Entries and inodes of several leaves each.
    for n in 0..1000 {
        create(&fs, dir, format!("{n:0200}").as_bytes(), New::File, 0o644, &ME).unwrap();
    }
    let mut entries = Vec::new();
    fs.read_dir(dir, Cookie(2), |cookie, ino, _, name| {
        entries.push((ino, Cookie(cookie.0 - 1), name.to_vec()));
        true
    })
    .unwrap();
    fs.close().unwrap();
    let mut most = [0; 2];
    for (ino, before, name) in entries.iter().step_by(90) {
        let look_up = |fs: &Fs| fs.lookup_attributes(dir, name).and_then(|found| fs.release(found.ino, 1));
        let list = |fs: &Fs| fs.read_dir_plus(dir, *before, 20, |_, _, _| false);
        let looks = [&look_up as &dyn Fn(&Fs) -> Result<()>, &list];
        for (look, most) in looks.into_iter().zip(&mut most) {
            for nth in 0.. {
                let disk = Arc::new(FaultStorage::new(MemStorage::from_image(storage.image())));
                let fs = Fs::open(disk.clone(), &options()).unwrap();
                disk.arm(Fault::nth(&[OpKind::Read], nth).forever());
                let result = look(&fs);
                let is_reached = disk.disarm() > 0;
                fs.unlink(dir, name, &ME).unwrap();
                assert!(fs.attributes(*ino).is_err(), "after {nth} reads: {result:?}");
                if !is_reached {
                    *most = nth.max(*most);
                    break;
                }
            }
        }
    }
    // The directory, the entry, and the inode.
    assert!(most[0] == 3 && most[1] >= 3, "{most:?} reads failed");
}
