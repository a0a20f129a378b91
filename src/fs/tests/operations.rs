//! Single operations, where the model says too little.

use super::*;
use crate::fs::format::FILE_SIZE_MAX;

#[test]
fn old_bytes_do_not_come_back_after_truncate_and_extend() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"f");
    fs.write(ino, 0, &[7; 10_000], &ME).unwrap();
    resize(&fs, ino, 5_000);
    resize(&fs, ino, 10_000);
    let data = fs.read(ino, 0, 10_000).unwrap();
    assert!(data[..5_000].iter().all(|b| *b == 7) && data[5_000..].iter().all(|b| *b == 0));
    fs.write(ino, 6_000, &[8], &ME).unwrap();
    let data = fs.read(ino, 5_000, 1_000).unwrap();
    assert!(data.iter().all(|b| *b == 0), "a write into the block brings old bytes back");
}

#[test]
fn a_file_with_contents_has_blocks_wherever_they_lie() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"f");
    assert_eq!(fs.attributes(ino).unwrap().blocks, 0);
    fs.write(ino, 0, b"in the tree", &ME).unwrap();
    assert!(fs.attributes(ino).unwrap().blocks > 0, "tar -S takes it for a hole");
    resize(&fs, ino, 1 << 30);
    assert!(fs.attributes(ino).unwrap().blocks > 0);
}

#[test]
fn a_truncate_to_the_same_size_is_a_change() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"stamp");
    for size in [0, 5_000] {
        fs.write(ino, 0, &vec![1; size], &ME).unwrap();
        let later = Caller { now: Time { seconds: ME.now.seconds + 100, nanos: 7 }, ..ME };
        let change = SetAttributes { size: Some(size as u64), ..SetAttributes::default() };
        let now = fs.set_attributes(ino, &change, &later).unwrap();
        assert_eq!((now.mtime, now.ctime), (later.now, later.now), "{size}");
    }
}

#[test]
fn what_was_allocated_and_never_written_is_a_hole() {
    let storage = image(128 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"f");
    fs.write(ino, 0, &[1; BLOCK_SIZE], &ME).unwrap();
    fs.fallocate(ino, 0, 40 << 20, Fallocate::Allocate, &ME).unwrap();
    for n in 0..100 {
        // In many extents.
        fs.write(ino, (1 << 20) + n * 8192, &[2; BLOCK_SIZE], &ME).unwrap();
    }
    assert_eq!(fs.seek(ino, 0, false).unwrap(), Some(4096));
    assert_eq!(fs.seek(ino, 4096, false).unwrap(), Some(4096));
    assert_eq!(fs.seek(ino, 4096, true).unwrap(), Some(1 << 20));
    assert_eq!(fs.seek(ino, 1 << 20, false).unwrap(), Some((1 << 20) + 4096));
    assert_eq!(fs.seek(ino, 2 << 20, true).unwrap(), None);
    assert_eq!(fs.seek(ino, 2 << 20, false).unwrap(), Some(2 << 20));
}

#[test]
fn sparse_files_reach_sixteen_tebibytes() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"f");
    fs.write(ino, 16 << 40, b"end", &ME).unwrap();
    assert_eq!(fs.attributes(ino).unwrap().size, (16 << 40) + 3);
    assert_eq!(fs.attributes(ino).unwrap().blocks, 8);
    assert_eq!(fs.seek(ino, 0, true).unwrap(), Some(16 << 40));
    assert_eq!(fs.read(ino, 16 << 40, 100).unwrap(), b"end");
    assert!(matches!(fs.write(ino, u64::MAX - 1, b"xyz", &ME), Err(FsError::FileTooLarge)));
    // At the longest size a write ends, and none begins.
    assert_eq!(fs.write(ino, FILE_SIZE_MAX - 4096, &[7; 8192], &ME).unwrap(), 4096);
    assert_eq!(fs.attributes(ino).unwrap().size, FILE_SIZE_MAX);
    assert!(matches!(fs.write(ino, FILE_SIZE_MAX, b"x", &ME), Err(FsError::FileTooLarge)));
    assert_eq!(fs.write(ino, FILE_SIZE_MAX, b"", &ME).unwrap(), 0);
}

#[test]
fn damaged_blocks_are_reported_and_not_returned() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"f");
    fs.write(ino, 0, &[7; 20_000], &ME).unwrap();
    let run = fs.extents_in(ino, 0, 1, 1).unwrap()[0].extent.run().unwrap();
    fs.tree().write_blocks(crate::page::BlockNo(run.start.0 + 1), &[9; 4096]).unwrap();
    assert!(matches!(fs.read(ino, 0, 20_000), Err(FsError::Contents(e)) if e.is_corrupt()));
    assert_eq!(fs.read(ino, 0, 4096).unwrap(), [7; 4096], "other blocks can still be read");
    assert!(fs.write(ino, 5_000, b"x", &ME).is_err(), "a partial overwrite would make damage look right");
    fs.write(ino, 4096, &[8; 4096], &ME).unwrap();
    assert_eq!(fs.read(ino, 4096, 4096).unwrap(), [8; 4096]);
}

#[test]
fn what_was_allocated_can_be_written_when_the_image_is_full() {
    let storage = image(24 << 20);
    let fs = open(&storage);
    let (kept, begun) = (file(&fs, b"kept"), file(&fs, b"begun"));
    fs.fallocate(kept, 0, 1 << 20, Fallocate::Allocate, &ME).unwrap();
    // A file whose first bytes lie in the tree.
    fs.write(begun, 0, b"head", &ME).unwrap();
    fs.fallocate(begun, 0, 1 << 20, Fallocate::KeepSize, &ME).unwrap();
    assert_eq!(fs.read(begun, 0, 10).unwrap(), b"head");
    let filler = file(&fs, b"filler");
    let mut at = 0;
    let full = loop {
        match fs.write(filler, at, &[1; 65_536], &ME) {
            Ok(done) => at += done as u64,
            Err(e) => break e,
        }
    };
    assert!(matches!(full, FsError::NoSpace), "{full:?}");
    fs.write(kept, 0, &[5; 1 << 20], &ME).unwrap();
    assert!(fs.read(kept, 0, 1 << 20).unwrap().iter().all(|b| *b == 5));
    fs.write(begun, 4, &[6; 3000], &ME).unwrap();
    fs.write(begun, 0, b"HEAD", &ME).unwrap();
    fs.write(begun, 3004, &[6; (1 << 20) - 3004], &ME).unwrap();
    let bytes = fs.read(begun, 0, 1 << 20).unwrap();
    assert!(
        &bytes[..4] == b"HEAD" && bytes[4..].len() == (1 << 20) - 4 && bytes[4..].iter().all(|b| *b == 6)
    );
    fs.unlink(ROOT, b"filler", &ME).unwrap();
    let again = file(&fs, b"again");
    fs.write(again, 0, &vec![2; (at / 100 * 95) as usize], &ME).unwrap();
}

/// A crash between two records would show a part of the write.
#[test]
fn a_write_over_what_is_allocated_a_hole_and_contents_is_one_record() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"f");
    fs.write(ino, 0, &[1; 20_000], &ME).unwrap();
    for at in [32 << 10, 64 << 10] {
        fs.fallocate(ino, at, 16 << 10, Fallocate::KeepSize, &ME).unwrap();
    }
    let blocks = fs.attributes(ino).unwrap().blocks;
    let before = fs.tree().stats().log_records;
    fs.write(ino, 10_000, &[2; 90_000], &ME).unwrap();
    assert_eq!(fs.tree().stats().log_records, before + 1);
    let more = fs.attributes(ino).unwrap().blocks - blocks;
    assert_eq!(more / 8, 25 - 5 - 8, "what was allocated is used");
    let contents = fs.read(ino, 0, 100_000).unwrap();
    assert!(contents[..10_000].iter().all(|b| *b == 1) && contents[10_000..].iter().all(|b| *b == 2));
    assert_eq!(fs.read(ino, 0, 1 << 20).unwrap().len(), 100_000);
    assert_eq!(fs.tree().check().unwrap().data.iter().map(|r| r.len as u64).sum::<u64>(), 25);
}

#[test]
fn a_large_file_is_gone_as_a_whole_after_a_restart_in_the_middle() {
    let storage = image(256 << 20);
    let fs = open(&storage);
    let ino = file_in_pieces(&fs, b"f", 300);
    fs.retain(ino);
    fs.unlink(ROOT, b"f", &ME).unwrap();
    assert!(fs.read(ino, 0, 10).is_ok(), "an open file can still be read");
    fs.sync().unwrap();
    drop(fs);
    let fs = open(&storage);
    assert!(matches!(fs.attributes(ino), Err(FsError::NotFound)));
    assert!(fs.tree().check().unwrap().data.is_empty(), "its blocks are free");
}

#[test]
fn suid_goes_when_others_write() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = create(&fs, ROOT, b"f", New::File, 0o6755, &ME).unwrap();
    let root = Caller { privileged: true, ..ME };
    fs.write(ino, 0, b"x", &root).unwrap();
    assert_eq!(fs.attributes(ino).unwrap().mode, 0o6755);
    fs.write(ino, 0, b"x", &ME).unwrap();
    assert_eq!(fs.attributes(ino).unwrap().mode, 0o755);
}

/// This is what arrives of a chown(2) that leaves both owner and group; a kernel does not see to it that it comes from the owner.
#[test]
fn a_change_of_nothing_takes_suid_where_it_comes_from_the_owner() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let (other, root) = (Caller { uid: ME.uid + 1, ..ME }, Caller { uid: 0, privileged: true, ..ME });
    let nothing = SetAttributes::default();
    for (number, caller, kept) in [(0, &other, true), (1, &ME, false), (2, &root, false)] {
        let name = [b'a' + number];
        let file = create(&fs, ROOT, &name, New::File, 0o6755, &ME).unwrap();
        let mode = fs.set_attributes(file, &nothing, caller).unwrap().mode;
        assert_eq!((mode, fs.attributes(file).unwrap().mode), (if kept { 0o6755 } else { 0o755 }, mode));
    }
    let dir = create(&fs, ROOT, b"dir", New::Directory, 0o2755, &ME).unwrap();
    assert_eq!(fs.set_attributes(dir, &nothing, &ME).unwrap().mode, 0o2755, "there it says whose files are");
}

/// So a crash shows either all of the change or nothing.
#[test]
fn a_change_of_size_and_other_attributes_is_one_record() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = create(&fs, ROOT, b"f", New::File, 0o4755, &ME).unwrap();
    fs.write(ino, 0, &[1; 100_000], &ME).unwrap();
    let root = Caller { privileged: true, ..ME };
    for size in [50_000, 200_000, 0] {
        let change =
            SetAttributes { size: Some(size), mode: Some(0o4711), uid: Some(7), ..SetAttributes::default() };
        let records = fs.tree().stats().log_records;
        let changed = fs.set_attributes(ino, &change, &root).unwrap();
        assert_eq!(fs.tree().stats().log_records, records + 1, "to {size} bytes");
        assert_eq!((changed.size, changed.mode, changed.uid), (size, 0o4711, 7));
        assert_eq!(changed, fs.attributes(ino).unwrap());
    }
}

#[test]
fn directories_with_sgid_pass_on_their_group() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let dir = create(&fs, ROOT, b"d", New::Directory, 0o2775, &Caller { gid: 55, ..ME }).unwrap();
    let inner = create(&fs, dir, b"inner", New::Directory, 0o755, &ME).unwrap();
    let file = create(&fs, dir, b"file", New::File, 0o644, &ME).unwrap();
    assert_eq!((fs.attributes(inner).unwrap().gid, fs.attributes(inner).unwrap().mode), (55, 0o2755));
    assert_eq!(fs.attributes(file).unwrap().gid, 55);
}

#[test]
fn attributes_in_a_large_directory_wait_until_somebody_wants_them() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let plus = |after| {
        let mut seen = Vec::new();
        let each = |_, a: &Attributes, name: &[u8]| {
            seen.push((a.ino, name.to_vec()));
            true
        };
        fs.read_dir_plus(ROOT, Cookie(after), 100, each).unwrap();
        let dots = seen.iter().take_while(|(_, name)| name.starts_with(b".")).count();
        seen[dots..].iter().for_each(|(ino, _)| fs.release(*ino, 1).unwrap());
        (dots, seen.len() - dots)
    };
    for n in 0..=2048 {
        if n == 2048 {
            assert_eq!(plus(0), (2, 100), "in a small one they come at once");
        }
        create(&fs, ROOT, format!("{n}").as_bytes(), New::File, 0o644, &ME).unwrap();
    }
    assert_eq!((plus(0), plus(1), plus(2)), ((2, 0), (1, 0), (0, 100)));
}

#[test]
fn references_of_lookup_create_and_link_keep_an_inode() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let made = fs.create(ROOT, b"f", New::File, 0o666, 0o027, &ME).unwrap();
    assert_eq!((made.mode, made.links), (0o640, 1));
    let linked = fs.link(made.ino, ROOT, b"g", &ME).unwrap();
    assert_eq!(linked.links, 2);
    assert_eq!(fs.lookup_attributes(ROOT, b"f").unwrap(), linked);
    assert!(matches!(fs.lookup_attributes(ROOT, b"h"), Err(FsError::NotFound)));
    let mut seen = 0;
    fs.read_dir_plus(ROOT, Cookie(0), 10, |_, attributes, name| {
        seen += 1;
        assert!(name.starts_with(b".") || *attributes == linked);
        seen < 4
    })
    .unwrap();
    assert_eq!(seen, 4);
    fs.unlink(ROOT, b"f", &ME).unwrap();
    fs.unlink(ROOT, b"g", &ME).unwrap();
    // One each by create, link, lookup and the first of the two names that were listed.
    fs.release(made.ino, 3).unwrap();
    assert_eq!(fs.attributes(made.ino).unwrap().links, 0);
    fs.release(made.ino, 1).unwrap();
    assert!(matches!(fs.attributes(made.ino), Err(FsError::NotFound)));
}

#[test]
fn what_no_inode_has_yet_is_refused() {
    let storage = image(16 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"file");
    let good = fs.tree().get(&format::inode_key(ino)).unwrap().unwrap();
    assert!(Inode::decode(ino, &good).is_ok());
    // Other flags, a mode of more bits, what is zero.
    for at in [1, 2, 88, 91, 95] {
        let mut record = good.clone();
        record[at] |= 0x80;
        assert!(Inode::decode(ino, &record).is_err(), "byte {at}");
    }
}
