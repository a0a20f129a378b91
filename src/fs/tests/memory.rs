//! What is kept in memory: nodes, references, access times.

use super::*;
use crate::storage::{Fault, FaultStorage, OpKind};

/// Where each new one went through all that are in use, this would not end.
#[test]
fn a_million_inodes_in_use_go_when_they_are_given_up() {
    let table = Table::default();
    for i in 0..1_100_000 {
        let node = table.node(Ino(1 << 30 | i));
        table.retain(&node);
    }
    assert_eq!(table.len(), 1_100_000);
    for i in 0..1_100_000 {
        let node = table.node(Ino(1 << 30 | i));
        assert!(table.release(&node, 1));
        table.forget(&node);
    }
    assert!(table.len() <= 64 * 1024, "what is out of use goes: {}", table.len());
}

#[test]
fn nodes_that_nobody_uses_do_not_pile_up() {
    let table = Table::default();
    let held: Vec<_> = (0..10_000).map(|i| table.node(Ino(5 << 24 | i))).collect();
    for i in 0..1_000_000 {
        table.node(Ino(6 << 24 | i));
    }
    assert!(table.len() < 100_000, "{}", table.len());
    for node in held {
        assert!(Arc::ptr_eq(&node, &table.node(node.ino)), "an inode in use has two nodes");
    }
}

#[test]
fn access_times_follow_relatime_and_reach_the_image() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let at = |seconds| Time { seconds: ME.now.seconds + seconds, nanos: 0 };
    let atime = |fs: &Fs, ino| fs.attributes(ino).unwrap().atime;
    let files: Vec<Ino> = (0..300)
        .map(|i| create(&fs, ROOT, format!("f{i}").as_bytes(), New::File, 0o644, &ME).unwrap())
        .collect();
    for ino in &files {
        fs.touch_atime(*ino, at(10)).unwrap();
        fs.touch_atime(*ino, at(20)).unwrap();
        assert_eq!(atime(&fs, *ino), at(10), "the first access after a change only");
    }
    fs.touch_atime(files[0], at(10 + 24 * 60 * 60)).unwrap();
    fs.write(files[1], 0, b"x", &Caller { now: at(30), ..ME }).unwrap();
    fs.touch_atime(files[1], at(40)).unwrap();
    fs.set_atime_mode(Atime::None);
    fs.write(files[2], 0, b"x", &Caller { now: at(30), ..ME }).unwrap();
    fs.touch_atime(files[2], at(50)).unwrap();
    fs.set_atime_mode(Atime::Strict);
    fs.touch_atime(files[3], at(60)).unwrap();
    // Read in the moment in which it was changed, as far as the clock can tell, and again.
    fs.set_atime_mode(Atime::Relatime);
    let [same, changed] = [files[4], files[5]];
    for (ino, change) in [
        (same, SetAttributes { mtime: Some(at(10)), ctime: Some(at(5)), ..SetAttributes::default() }),
        (changed, SetAttributes { mtime: Some(at(5)), ctime: Some(at(10)), ..SetAttributes::default() }),
    ] {
        fs.set_attributes(ino, &change, &ME).unwrap();
        fs.touch_atime(ino, at(70)).unwrap();
    }
    let expected = |i| match i {
        4 | 5 => at(70),
        0 => at(10 + 24 * 60 * 60),
        1 => at(40),
        3 => at(60),
        _ => at(10),
    };
    fs.sync().unwrap();
    drop(fs);
    let fs = open(&storage);
    for (i, ino) in files.iter().enumerate() {
        assert_eq!(atime(&fs, *ino), expected(i), "file {i}");
    }
    fs.touch_atime(files[9], at(100_000)).unwrap();
    fs.close().unwrap();
    assert_eq!(atime(&open(&storage), files[9]), at(100_000));
}

#[test]
fn access_times_that_could_not_be_written_go_on_waiting() {
    let storage = Arc::new(FaultStorage::new(MemStorage::from_image(image(64 << 20).image())));
    let fs = Fs::open(storage.clone(), &Options { cache_size: 3 << 20, ..options() }).unwrap();
    let read = Time { seconds: ME.now.seconds + 5, nanos: 0 };
    let names = |n| format!("{n}").into_bytes();
    let all: Vec<Ino> =
        (0..564).map(|n| create(&fs, ROOT, &names(n), New::File, 0o644, &ME).unwrap()).collect();
    // Not in the page of the directory's own record.
    let files = &all[500..];
    files.iter().for_each(|ino| fs.touch_atime(*ino, read).unwrap());
    // The pages with their records go from the cache, and cannot be read again.
    for n in 564..2_500 {
        create(&fs, ROOT, &names(n), New::Symlink(&[b'x'; 4000]), 0o777, &ME).unwrap();
    }
    let records = fs.tree().stats().log_records;
    storage.arm(Fault::nth(&[OpKind::Read], 0).forever());
    fs.sync().unwrap();
    assert!(storage.disarm() > 0);
    assert_eq!(fs.tree().stats().log_records, records, "they were written without their pages");
    fs.sync().unwrap();
    drop(fs);
    let fs = Fs::open(storage, &options()).unwrap();
    assert!(files.iter().all(|ino| fs.attributes(*ino).unwrap().atime == read));
}
