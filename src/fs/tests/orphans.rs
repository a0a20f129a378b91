//! Files that lost their names while they were in use, and what they leave behind.

use super::*;
use crate::storage::{Fault, FaultStorage, OpKind};

/// Files that are in use, each with so many bytes.
fn held(fs: &Fs, count: usize, len: usize) -> Vec<Ino> {
    let data = vec![3; len];
    (0..count)
        .map(|i| {
            let ino = fs.create(ROOT, format!("f{i}").as_bytes(), New::File, 0o644, 0, &ME).unwrap().ino;
            fs.write(ino, 0, &data, &ME).unwrap();
            ino
        })
        .collect()
}

fn unlink_all(fs: &Fs, count: usize) {
    (0..count).for_each(|i| fs.unlink(ROOT, format!("f{i}").as_bytes(), &ME).unwrap());
}

fn orphans(fs: &Fs) -> usize {
    let mut cursor = fs.tree().cursor();
    cursor.seek(&format::orphan_key(Ino(0))).unwrap();
    let mut count = 0;
    while cursor.next().unwrap() && format::orphan_ino(cursor.key()).is_some() {
        count += 1;
    }
    count
}

fn is_gone(fs: &Fs, ino: Ino) -> bool {
    matches!(fs.attributes(ino), Err(FsError::NotFound))
}

#[test]
fn a_file_is_gone_with_its_last_use_although_it_waits_to_be_deleted() {
    for len in [0, 1000, 9000] {
        let storage = image(64 << 20);
        let fs = open_in_background(&storage);
        let free = fs.usage().free;
        let files = held(&fs, 100, len);
        unlink_all(&fs, 100);
        for ino in files {
            assert_eq!(fs.attributes(ino).unwrap().links, 0, "it is in use");
            fs.release(ino, 1).unwrap();
            assert!(is_gone(&fs, ino));
            fs.retain(ino);
            assert!(fs.read(ino, 0, 10).is_err() && fs.link(ino, ROOT, b"again", &ME).is_err());
            fs.release(ino, 1).unwrap();
        }
        assert!(fs.usage().free + 20 >= free, "statfs knows what waits");
        assert_eq!(orphans(&fs), 0);
        fs.close().unwrap();
    }
}

#[test]
fn statfs_knows_what_is_free_once_a_long_file_is_deleted() {
    let fs = open_in_background(&image(256 << 20));
    let free = fs.usage().free;
    let ino = file(&fs, b"f");
    // Each block is an extent.
    for block in 0..10_000u64 {
        fs.write(ino, block * 8192, &[1; 4096], &ME).unwrap();
    }
    fs.retain(ino);
    fs.unlink(ROOT, b"f", &ME).unwrap();
    fs.release(ino, 1).unwrap();
    fs.release(ino, 1).unwrap();
    let told = fs.usage().free;
    assert!(told + 500 >= free, "{told} of {free} blocks");
}

#[test]
fn what_waits_to_be_deleted_goes_when_the_image_is_closed_or_opened_next() {
    for close in [true, false] {
        let storage = image(64 << 20);
        let fs = open_in_background(&storage);
        let files = held(&fs, 200, 9000);
        unlink_all(&fs, 200);
        fs.release_all(files.iter().map(|ino| (*ino, 1))).unwrap();
        end(fs, close);
        let fs = open(&storage);
        assert!(files.iter().all(|ino| is_gone(&fs, *ino)));
        assert_eq!(orphans(&fs), 0);
        assert!(fs.tree().check().unwrap().data.is_empty(), "their blocks are free");
        let next = create(&fs, ROOT, b"next", New::File, 0o644, &ME).unwrap();
        assert!(!files.contains(&next), "a number comes back");
    }
}

#[test]
fn space_of_files_that_wait_to_be_deleted_is_there_for_the_next_write() {
    let storage = image(64 << 20);
    let fs = open_in_background(&storage);
    let filler = create(&fs, ROOT, b"filler", New::File, 0o644, &ME).unwrap();
    let files = held(&fs, 500, 50_000);
    let room = fs.usage().available - 100;
    fs.fallocate(filler, 0, room * 4096, Fallocate::Allocate, &ME).unwrap();
    unlink_all(&fs, 500);
    // The last use ends just before somebody needs the space.
    fs.release_all(files.iter().map(|ino| (*ino, 1))).unwrap();
    let next = create(&fs, ROOT, b"next", New::File, 0o644, &ME).unwrap();
    let data = vec![5; 1 << 20];
    for at in (0..20 << 20).step_by(data.len()) {
        fs.write(next, at, &data, &ME).unwrap();
    }
    fs.close().unwrap();
}

#[test]
fn one_damaged_file_does_not_keep_others_from_being_deleted() {
    for background in [false, true] {
        let storage = image(64 << 20);
        let fs = if background { open_in_background(&storage) } else { open(&storage) };
        let files = held(&fs, 40, 9000);
        unlink_all(&fs, 40);
        let mut batch = Batch::new();
        batch.put(&format::extent_key(files[20], 9000), &[9; 30]);
        fs.tree().apply(&batch).unwrap();
        let released = fs.release_all(files.iter().map(|ino| (*ino, 1)));
        fs.drain();
        // In the background the next one who adds to the queue is told.
        let told = fs.failed_deletion();
        assert!(matches!(released.and(told), Err(FsError::Engine(e)) if e.is_corrupt()), "nobody is told");
        assert_eq!(orphans(&fs), 1);
        assert!(files.iter().all(|ino| is_gone(&fs, *ino)));
        fs.close().unwrap();
    }
}

#[test]
fn files_that_are_deleted_together_give_up_blocks_that_they_share() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let first = create(&fs, ROOT, b"first", New::File, 0o644, &ME).unwrap();
    fs.write(first, 0, &[7; 40_960], &ME).unwrap();
    let files = held(&fs, 30, 0);
    for (i, ino) in files.iter().enumerate() {
        assert_eq!(fs.copy_range(first, 4096 * (i as u64 % 3), *ino, 0, 8192, &ME).unwrap(), 8192);
    }
    unlink_all(&fs, 30);
    fs.release_all(files.iter().map(|ino| (*ino, 1))).unwrap();
    assert_eq!(orphans(&fs), 0);
    blocks::compare_blocks(&fs, [first].into_iter());
    assert_eq!(fs.read(first, 0, 40_960).unwrap(), [7; 40_960]);
    fs.unlink(ROOT, b"first", &ME).unwrap();
    assert!(fs.tree().check().unwrap().data.is_empty());
}

#[test]
fn more_files_than_the_queue_holds_are_deleted_beside_long_ones() {
    let storage = image(256 << 20);
    let fs = open_in_background(&storage);
    let long: Vec<Ino> = (0..3)
        .map(|i| {
            let ino = fs.create(ROOT, format!("l{i}").as_bytes(), New::File, 0o644, 0, &ME).unwrap().ino;
            (0..1000).for_each(|at| assert!(fs.write(ino, at * 8192, &[3; 4096], &ME).is_ok()));
            fs.unlink(ROOT, format!("l{i}").as_bytes(), &ME).unwrap();
            ino
        })
        .collect();
    let files = held(&fs, 3000, 100);
    unlink_all(&fs, 3000);
    long.into_iter().chain(files).for_each(|ino| fs.release(ino, 1).unwrap());
    fs.drain();
    assert_eq!(orphans(&fs), 0);
    assert!(fs.tree().check().unwrap().data.is_empty());
    fs.close().unwrap();
}

/// It is damage, but none that keeps anybody from the rest.
#[test]
fn an_orphan_that_does_not_exist_does_not_keep_an_image_from_being_opened() {
    for orphan in [format::Orphan::Truncated { size: 5 }, format::Orphan::Unlinked] {
        let storage = image(64 << 20);
        let fs = open(&storage);
        held(&fs, 1, 100);
        let mut batch = crate::tree::Batch::new();
        batch.put(&format::orphan_key(Ino(4000)), &orphan.encode());
        fs.tree().apply(&batch).unwrap();
        fs.close().unwrap();
        let fs = open(&storage);
        assert!(fs.lookup(ROOT, b"f0").is_ok());
        fs.close().unwrap();
    }
}

/// Whether the tree has anything of an inode.
fn is_in_tree(fs: &Fs, ino: Ino) -> bool {
    let mut cursor = fs.tree().cursor();
    cursor.seek(&format::extent_key(ino, 0)).unwrap();
    let has_contents = cursor.next().unwrap() && format::extent_end(ino, cursor.key()).is_some();
    has_contents
        || fs.tree().get(&format::inode_key(ino)).unwrap().is_some()
        || fs.tree().get(&format::orphan_key(ino)).unwrap().is_some()
}

/// What `fsck` would call damage: records of inodes that have neither a name nor an orphan record.
fn inodes(fs: &Fs) -> Vec<Ino> {
    fs.tree().check().unwrap();
    (1..100).map(|n| Ino::new(0, n)).filter(|ino| is_in_tree(fs, *ino)).collect()
}

#[test]
fn a_small_file_that_is_in_use_leaves_the_tree_with_its_name_and_stays_whole() {
    for len in [0, 1, 1500, 2048] {
        let storage = image(64 << 20);
        let fs = open_in_background(&storage);
        let ino = held(&fs, 1, len)[0];
        let before = fs.attributes(ino).unwrap();
        unlink_all(&fs, 1);
        assert!(!is_in_tree(&fs, ino), "it is deleted twice");
        let after = fs.attributes(ino).unwrap();
        assert_eq!(after, Attributes { links: 0, ctime: after.ctime, ..before });
        assert_eq!(fs.read(ino, 0, 4096).unwrap(), vec![3; len]);
        assert_eq!(fs.read(ino, 1000, 4096).unwrap(), vec![3; len.saturating_sub(1000)]);
        assert_eq!(fs.seek(ino, 0, true).unwrap(), (len > 0).then_some(0));
        assert_eq!(fs.seek(ino, 0, false).unwrap(), (len > 0).then_some(len as u64));
        assert!(fs.list_xattrs(ino).unwrap().is_empty());
        assert!(matches!(fs.link(ino, ROOT, b"again", &ME), Err(FsError::NotFound)));
        // A time of access in memory must not bring back a part of it.
        fs.set_atime_mode(Atime::Strict);
        fs.touch_atime(ino, Time { seconds: 1_800_000_000, nanos: 0 }).unwrap();
        fs.sync().unwrap();
        assert_eq!(fs.attributes(ino).unwrap().atime.seconds, 1_800_000_000);
        fs.release(ino, 1).unwrap();
        assert!(is_gone(&fs, ino));
        fs.close().unwrap();
        let fs = open(&storage);
        assert_eq!(inodes(&fs), [ROOT]);
    }
}

#[test]
fn a_small_file_that_is_changed_after_it_lost_its_name_is_an_orphan_again() {
    let changes: [fn(&Fs, Ino) -> Result<()>; 6] = [
        |fs, ino| fs.write(ino, 50, b"more", &ME).map(drop),
        |fs, ino| fs.write(ino, 5000, b"more", &ME).map(drop),
        |fs, ino| {
            fs.set_attributes(ino, &SetAttributes { size: Some(10), ..Default::default() }, &ME).map(drop)
        },
        |fs, ino| {
            fs.set_attributes(ino, &SetAttributes { mode: Some(0o600), ..Default::default() }, &ME).map(drop)
        },
        |fs, ino| fs.fallocate(ino, 0, 10_000, Fallocate::Allocate, &ME),
        |fs, ino| fs.set_xattr(ino, b"user.a", b"b", SetXattr::Any, &ME),
    ];
    for (i, change) in changes.iter().enumerate() {
        for close in [false, true] {
            let storage = image(64 << 20);
            let fs = open_in_background(&storage);
            // One keeps its name: both must be the same afterwards.
            let files = held(&fs, 2, 100);
            fs.unlink(ROOT, b"f0", &ME).unwrap();
            for ino in &files {
                change(&fs, *ino).unwrap();
            }
            assert_eq!(orphans(&fs), 1, "change {i}");
            let [unlinked, named] = [files[0], files[1]].map(|ino| fs.attributes(ino).unwrap());
            assert_eq!(unlinked, Attributes { ino: files[0], links: 0, ..named }, "change {i}");
            let [unlinked, named] = [files[0], files[1]].map(|ino| fs.read(ino, 0, 20_000).unwrap());
            assert_eq!(unlinked, named, "change {i}");
            end(fs, close);
            let fs = open(&storage);
            assert_eq!(inodes(&fs), [ROOT, files[1]], "change {i}");
            assert_eq!(orphans(&fs), 0);
        }
    }
}

#[test]
fn what_was_replaced_and_directories_and_links_in_use_leave_the_tree_with_their_names() {
    let storage = image(64 << 20);
    let fs = open_in_background(&storage);
    let old = held(&fs, 1, 100)[0];
    let new = create(&fs, ROOT, b"new", New::File, 0o644, &ME).unwrap();
    fs.rename(ROOT, b"new", ROOT, b"f0", RenameMode::Replace, &ME).unwrap();
    assert_eq!(fs.read(old, 0, 200).unwrap(), [3; 100], "who reads it reads on");
    let dir = fs.create(ROOT, b"dir", New::Directory, 0o755, 0, &ME).unwrap().ino;
    fs.rmdir(ROOT, b"dir", &ME).unwrap();
    assert!(matches!(fs.create(dir, b"a", New::File, 0o644, 0, &ME), Err(FsError::NotFound)));
    let link = fs.create(ROOT, b"link", New::Symlink(b"target"), 0o777, 0, &ME).unwrap().ino;
    fs.unlink(ROOT, b"link", &ME).unwrap();
    assert_eq!(fs.read_link(link).unwrap(), b"target");
    assert_eq!((fs.attributes(dir).unwrap().links, fs.attributes(link).unwrap().links), (0, 0));
    // A crash leaves nothing of them, whether or not they were attached again.
    fs.set_attributes(link, &SetAttributes { uid: Some(7), ..Default::default() }, &ME).unwrap();
    end(fs, false);
    let fs = open(&storage);
    assert_eq!(inodes(&fs), [ROOT, new]);
}

#[test]
fn a_small_file_without_a_name_can_be_read_when_nothing_can_be_written_any_more() {
    let storage = image(64 << 20);
    let faults = Arc::new(FaultStorage::new(storage));
    let fs = Fs::open(faults.clone(), &options()).unwrap();
    let ino = held(&fs, 1, 100)[0];
    unlink_all(&fs, 1);
    faults.arm(Fault::nth(&[OpKind::Write, OpKind::WriteDurable, OpKind::Sync], 0).forever());
    assert!(fs.sync().is_err());
    assert_eq!(fs.read(ino, 0, 200).unwrap(), [3; 100]);
    assert!(fs.write(ino, 0, b"x", &ME).is_err());
    assert_eq!(fs.read(ino, 0, 200).unwrap(), [3; 100], "a change that failed changes nothing");
}

#[test]
fn what_is_changed_without_a_name_does_not_use_up_what_is_kept_for_deletions() {
    let storage = image(128 << 20);
    let fs = open_in_background(&storage);
    let victim = fs.create(ROOT, b"victim", New::File, 0o644, 0, &ME).unwrap().ino;
    fs.write(victim, 0, &[1; 40_000], &ME).unwrap();
    let files = held(&fs, 2000, 2048);
    unlink_all(&fs, 2000);
    // The space of those files is used by others.
    let filler = create(&fs, ROOT, b"filler", New::File, 0o644, &ME).unwrap();
    let mut at = 0;
    for len in [1 << 20, 4096] {
        while fs.write(filler, at, &vec![2; len], &ME).is_ok() {
            at += len as u64;
        }
    }
    let mut names = 0;
    while create(&fs, ROOT, format!("n{names}").as_bytes(), New::File, 0o644, &ME).is_ok() {
        names += 1;
    }
    let change = SetAttributes { mode: Some(0o600), ..Default::default() };
    let attached = files.iter().filter(|ino| fs.set_attributes(**ino, &change, &ME).is_ok()).count();
    assert!(attached < 150, "{attached} files came back into a full image");
    assert!(matches!(fs.set_attributes(files[1999], &change, &ME), Err(FsError::NoSpace)));
    assert_eq!(fs.read(files[1999], 0, 4096).unwrap(), [3; 2048]);
    fs.unlink(ROOT, b"victim", &ME).unwrap();
    fs.release(victim, 1).unwrap();
    files.iter().for_each(|ino| fs.release(*ino, 1).unwrap());
    fs.close().unwrap();
}

#[test]
fn what_changes_nothing_of_a_file_without_a_name_writes_nothing() {
    let storage = image(64 << 20);
    let fs = open_in_background(&storage);
    let ino = held(&fs, 1, 100)[0];
    let dir = fs.create(ROOT, b"dir", New::Directory, 0o755, 0, &ME).unwrap().ino;
    unlink_all(&fs, 1);
    fs.rmdir(ROOT, b"dir", &ME).unwrap();
    let end = fs.tree().stats().log_end;
    assert_eq!(fs.copy_range(ino, 100, ino, 0, 50, &ME).unwrap(), 0);
    assert!(matches!(fs.remove_xattr(ino, b"user.a", &ME), Err(FsError::NoAttribute)));
    fs.remove_xattr(ino, b"system.posix_acl_access", &ME).unwrap();
    assert!(matches!(fs.link(ino, ROOT, b"again", &ME), Err(FsError::NotFound)));
    assert!(matches!(fs.create(dir, b"a", New::File, 0o644, 0, &ME), Err(FsError::NotFound)));
    let other = Caller::new(7, 7, ME.now);
    assert_eq!(fs.set_attributes(ino, &SetAttributes::default(), &other).unwrap().uid, 1000);
    assert_eq!(fs.tree().stats().log_end, end);
    // And a copy of its contents does.
    assert_eq!(fs.copy_range(ino, 0, ino, 200, 50, &ME).unwrap(), 50);
    assert_eq!(fs.read(ino, 200, 100).unwrap(), [3; 50]);
    assert_eq!(orphans(&fs), 1);
}
