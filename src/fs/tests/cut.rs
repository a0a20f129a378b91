//! Files that are cut to a smaller size in many batches.

use super::*;

#[test]
fn old_bytes_do_not_come_back_when_a_truncate_was_killed_half_way() {
    let storage = image(256 << 20);
    let fs = open(&storage);
    let ino = file(&fs, b"f");
    for i in 0..300 {
        fs.write(ino, i * 8192, &[3; 4096], &ME).unwrap();
    }
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
    let ino = file(&fs, b"f");
    for i in 0..300 {
        fs.write(ino, i * 8192, &[3; 4096], &ME).unwrap();
    }
    // One extent record is damaged, so the truncate ends there.
    let key = format::extent_key(ino, 200 * 8192 + 4096);
    let good = fs.tree().get(&key).unwrap().unwrap();
    let put = |record: &[u8]| {
        let mut batch = Batch::new();
        batch.put(&key, record);
        fs.tree().apply(&batch).unwrap();
    };
    put(&[9; 30]);
    resize(&fs, ino, 0);
    let left = fs.attributes(ino).unwrap();
    assert!(left.size == 0 && left.blocks > 0, "{left:?}");
    assert!(fs.write(ino, 1 << 20, b"x", &ME).is_err(), "old bytes would come back");
    for mode in [Fallocate::Allocate, Fallocate::ZeroRange] {
        assert!(fs.fallocate(ino, 0, 1 << 20, mode, &ME).is_err(), "old bytes would come back");
    }
    put(&good);
    fs.write(ino, 300 * 8192, b"x", &ME).unwrap();
    let data = fs.read(ino, 0, 300 * 8192).unwrap();
    assert!(data.iter().all(|b| *b == 0));
    assert!(fs.tree().get(&format::orphan_key(ino)).unwrap().is_none());
}
