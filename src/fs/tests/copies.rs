//! Copies that share blocks.

use super::*;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed) * 31 % 251) as u8).collect()
}

fn blocks_in_use(fs: &Fs) -> u64 {
    fs.tree().check().unwrap().data.iter().map(|r| r.len as u64).sum()
}

#[test]
fn a_copy_takes_no_space_and_neither_file_changes_with_the_other() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let (a, b) = (file(&fs, b"a"), file(&fs, b"b"));
    let data = pattern(5_000_000, 0);
    fs.write(a, 0, &data, &ME).unwrap();
    let before = blocks_in_use(&fs);
    assert_eq!(fs.copy_range(a, 0, b, 0, u64::MAX >> 1, &ME).unwrap(), 5_000_000);
    assert!(blocks_in_use(&fs) <= before + 1, "only the tail is copied");
    assert_eq!(fs.attributes(a).unwrap().blocks, fs.attributes(b).unwrap().blocks, "counted in both");
    fs.write(a, 1_000_000, &[1; 10_000], &ME).unwrap();
    assert!(fs.read(b, 0, 6_000_000).unwrap() == data);
    fs.write(b, 3_000_000, &[2; 10_000], &ME).unwrap();
    assert!(fs.read(a, 3_000_000, 10_000).unwrap() == data[3_000_000..3_010_000]);
    fs.unlink(ROOT, b"a", &ME).unwrap();
    fs.close().unwrap();
    let fs = open(&storage);
    let mut expected = data;
    expected[3_000_000..3_010_000].fill(2);
    assert!(fs.read(b, 0, 6_000_000).unwrap() == expected, "the copy outlives the original");
    fs.unlink(ROOT, b"b", &ME).unwrap();
    assert_eq!(blocks_in_use(&fs), 0);
    let mut cursor = fs.tree().cursor();
    cursor.seek(&format::shared_key(0)).unwrap();
    while cursor.next().unwrap() {
        assert!(format::shared_end(cursor.key()).is_none(), "a count is left of blocks that nobody has");
    }
}

/// Each block that has an owner less may need a record of its own, more of them than a small cache has room for at once.
#[test]
fn what_was_copied_and_overwritten_all_over_is_deleted_cut_and_copied_over_with_a_small_cache() {
    let storage = image(256 << 20);
    let fs = open(&storage);
    const LEN: u64 = 16 << 20;
    let data = pattern(LEN as usize, 1);
    let mut originals = Vec::new();
    for n in 0..4 {
        let (original, copy) =
            (file(&fs, format!("original{n}").as_bytes()), file(&fs, format!("copy{n}").as_bytes()));
        fs.write(original, 0, &data, &ME).unwrap();
        assert_eq!(fs.copy_range(original, 0, copy, 0, LEN, &ME).unwrap(), LEN);
        (0..LEN).step_by(64 << 10).for_each(|at| assert!(fs.write(copy, at, &[0; 4096], &ME).is_ok()));
        originals.push((original, copy));
    }
    fs.unlink(ROOT, b"original0", &ME).unwrap();
    let change = SetAttributes { size: Some(5000), ..SetAttributes::default() };
    assert_eq!(fs.set_attributes(originals[1].0, &change, &ME).unwrap().size, 5000);
    fs.fallocate(originals[2].0, 0, LEN, Fallocate::PunchHole, &ME).unwrap();
    let other = file(&fs, b"other");
    fs.write(other, 0, &data, &ME).unwrap();
    assert_eq!(fs.copy_range(other, 0, originals[3].0, 0, LEN, &ME).unwrap(), LEN);
    assert!(fs.read(originals[3].0, 0, LEN as usize).unwrap() == data);
    let mut expected = data.clone();
    expected.chunks_mut(64 << 10).for_each(|chunk| chunk[..4096].fill(0));
    for (_, copy) in originals {
        assert!(fs.read(copy, 0, LEN as usize).unwrap() == expected);
    }
    for n in 0..4 {
        fs.unlink(ROOT, format!("copy{n}").as_bytes(), &ME).unwrap();
    }
    assert_eq!(blocks_in_use(&fs), LEN / 4096 + 2, "that of the last copy and its source, and what was cut");
    fs.close().unwrap();
}

#[test]
fn a_long_copy_takes_several_calls() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let (a, b) = (file(&fs, b"a"), file(&fs, b"b"));
    let data = pattern(10 << 20, 3);
    fs.write(a, 0, &data, &ME).unwrap();
    let (mut done, mut calls) = (0, 0);
    loop {
        // No block can be shared.
        match fs.copy_range(a, done + 1, b, done, u64::MAX >> 1, &ME).unwrap() {
            0 => break,
            copied => (done, calls) = (done + copied, calls + 1),
        }
    }
    assert_eq!((done, calls), ((10 << 20) - 1, 3), "others wait for 4 MiB at the most");
    assert!(fs.read(b, 0, 11 << 20).unwrap() == data[1..]);
}

#[test]
fn copies_within_a_file_are_refused_where_they_overlap_and_done_elsewhere() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let a = file(&fs, b"a");
    let data = pattern(300_000, 7);
    fs.write(a, 0, &data, &ME).unwrap();
    assert!(matches!(fs.copy_range(a, 0, a, 4096, 8192, &ME), Err(FsError::Invalid)));
    assert_eq!(fs.copy_range(a, 300_000, a, 0, 10, &ME).unwrap(), 0, "nothing behind the end");
    for to in [65_536, 1 << 20, 131_073] {
        let mut expected = fs.read(a, 0, 2 << 20).unwrap();
        assert_eq!(fs.copy_range(a, 0, a, to, 65_536, &ME).unwrap(), 65_536);
        let to = to as usize;
        expected.resize(expected.len().max(to + 65_536), 0);
        expected.copy_within(..65_536, to);
        assert!(fs.read(a, 0, 2 << 20).unwrap() == expected);
    }
    fs.unlink(ROOT, b"a", &ME).unwrap();
    assert_eq!(blocks_in_use(&fs), 0);
}

#[test]
fn a_crash_leaves_counts_right() {
    // What the last sync comes after.
    for synced in ["writing", "copying", "deleting", "writing again"] {
        let storage = image(64 << 20);
        let fs = open(&storage);
        let (a, b) = (file(&fs, b"a"), file(&fs, b"b"));
        let sync_after = |step| {
            if step == synced {
                fs.sync().unwrap();
            }
        };
        let mut data = vec![0; 39 * 8192 + 4096];
        for i in 0..40 {
            // Extents of one block each.
            let block = pattern(4096, i);
            fs.write(a, i as u64 * 8192, &block, &ME).unwrap();
            data[i * 8192..][..4096].copy_from_slice(&block);
        }
        sync_after("writing");
        fs.copy_range(a, 0, b, 0, 1 << 20, &ME).unwrap();
        sync_after("copying");
        fs.unlink(ROOT, b"a", &ME).unwrap();
        sync_after("deleting");
        fs.write(b, 0, &[1; 8192], &ME).unwrap();
        sync_after("writing again");
        drop(fs);
        let fs = open(&storage);
        let blocks_of = |ino| fs.attributes(ino).unwrap().blocks / 8;
        let whole = fs.lookup(ROOT, b"a").map_or(0, blocks_of);
        assert!(blocks_in_use(&fs) == whole.max(blocks_of(b)), "{synced}: {whole}, {}", blocks_of(b));
        match synced {
            "writing" => assert!(fs.read(a, 0, 1 << 20).unwrap() == data),
            "writing again" => assert!(fs.read(b, 0, 1 << 20).unwrap()[8192..] == data[8192..]),
            _ => assert!(fs.read(b, 8192, 1 << 20).unwrap() == data[8192..]),
        }
        if whole > 0 {
            fs.unlink(ROOT, b"a", &ME).unwrap();
        }
        fs.unlink(ROOT, b"b", &ME).unwrap();
        assert_eq!(blocks_in_use(&fs), 0, "{synced}");
    }
}

#[test]
fn copies_from_damaged_counts_are_refused() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let (a, b) = (file(&fs, b"a"), file(&fs, b"b"));
    fs.write(a, 0, &pattern(40_960, 1), &ME).unwrap();
    fs.copy_range(a, 0, b, 0, 40_960, &ME).unwrap();
    let end = fs.extents_in(a, 0, 1, 1).unwrap()[0].extent.run().unwrap().end();
    for record in [&[0; 8][..], &[0, 0, 0, 10, 0, 0, 0, 1], &[0xff; 8], &[1; 9]] {
        let mut batch = Batch::new();
        batch.put(&format::shared_key(end.0), record);
        fs.tree().apply(&batch).unwrap();
        let refused = fs.copy_range(a, 0, b, 1 << 20, 40_960, &ME);
        assert!(matches!(refused, Err(FsError::Engine(e)) if e.is_corrupt()), "{record:?}");
    }
}
