//! Contents that a repair has given up are an error when they are read, until they are written again.

use super::support::*;
use super::*;
use crate::fs::format::*;
use crate::fs::{Fallocate, Fs, FsError, New, ROOT, SetAttributes, SetXattr};
use crate::page::{BlockNo, Run};
use crate::storage::MemStorage;
use crate::tree::Tree;

const ALL: Options<'static> = Options { repair: Repair::All, scrub: true, force: true, progress: None };

/// An image whose file of three blocks has lost all but the first one, because the file that holds it was cut.
fn cut() -> Known {
    let k = known();
    let mut first = None;
    forge(&k.storage, |tree, _| {
        let (key, record) = records(tree, &extent_key(k.file, 0)[..9]).remove(0);
        let Some(AnyKey::Extent(_, end)) = AnyKey::parse(&key) else { panic!("no extent") };
        first = Extent::decode(k.file, end, &record).unwrap().run();
    });
    k.storage.set_len(first.unwrap().start.offset() + 4096).unwrap();
    let report = check(k.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(ProblemKind::Lost) > 0), (0, true), "{report}");
    let report = look_at(&k.storage);
    assert!(report.is_clean() && report.lost_ranges >= 2 && report.lost_bytes >= 12_000 - 4096, "{report}");
    assert!(report.to_string().contains("note: /dir/inner/other"), "{report}");
    k
}

fn is_lost(result: crate::fs::Result<Vec<u8>>) -> bool {
    matches!(result, Err(FsError::Contents(e) | FsError::Engine(e)) if e.is_corrupt())
}

fn open(storage: &Arc<MemStorage>) -> Fs {
    Fs::open(storage.clone(), &options()).unwrap()
}

#[test]
fn lost_contents_are_an_error_until_they_are_written_again() {
    let k = cut();
    let fs = open(&k.storage);
    assert_eq!(fs.read(k.file, 0, 4096).unwrap(), [7; 4096]);
    assert!(is_lost(fs.read(k.file, 0, 4097)) && is_lost(fs.read(k.file, 11_999, 1)));
    assert_eq!(fs.seek(k.file, 4096, true).unwrap(), Some(4096));
    assert_eq!(fs.seek(k.file, 0, false).unwrap(), Some(12_000));
    // Part of a block cannot be written: the rest of it is not known.
    assert!(is_lost(fs.write(k.file, 5000, &[1; 10], &ME).map(|_| Vec::new())));
    assert!(fs.copy_range(k.file, 4096, k.other, 0, 4096, &ME).is_err());
    fs.write(k.file, 4096, &[2; 4096], &ME).unwrap();
    assert_eq!(fs.read(k.file, 4096, 4096).unwrap(), [2; 4096]);
    assert!(is_lost(fs.read(k.file, 8192, 1)));
    // The last block up to the end of the file.
    fs.write(k.file, 8192, &[3; 12_000 - 8192], &ME).unwrap();
    assert_eq!(fs.read(k.file, 8192, 9999).unwrap(), [3; 12_000 - 8192]);
    assert!(is_lost(fs.read(k.other, 0, 1)));
    fs.close().unwrap();
    assert!(look_at(&k.storage).is_clean());
}

#[test]
fn lost_contents_can_be_cut_off_and_punched_out() {
    let k = cut();
    let fs = open(&k.storage);
    let size = |n| SetAttributes { size: Some(n), ..SetAttributes::default() };
    fs.set_attributes(k.file, &size(9000), &ME).unwrap();
    assert!(is_lost(fs.read(k.file, 8999, 1)));
    fs.fallocate(k.file, 4096, 4096, Fallocate::PunchHole, &ME).unwrap();
    assert_eq!(fs.read(k.file, 4096, 4096).unwrap(), [0; 4096]);
    assert!(is_lost(fs.read(k.file, 8192, 1)));
    fs.set_attributes(k.file, &size(8192), &ME).unwrap();
    fs.set_attributes(k.file, &size(12_000), &ME).unwrap();
    assert_eq!(fs.read(k.file, 4096, 12_000).unwrap(), [0; 12_000 - 4096]);
    fs.fallocate(k.other, 0, 4096, Fallocate::ZeroRange, &ME).unwrap();
    assert_eq!(fs.read(k.other, 0, 4096).unwrap(), [0; 4096]);
    fs.close().unwrap();
    let report = look_at(&k.storage);
    assert!(report.is_clean() && report.lost_ranges == 0, "{report}");
}

/// A count of blocks that is too high tells that extents are gone, also if nobody knows which.
#[test]
fn holes_of_a_file_with_missing_blocks_are_not_taken_for_zeros() {
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (key, record) = records(tree, &extent_key(k.file, 0)[..9]).remove(0);
        let Some(AnyKey::Extent(_, end)) = AnyKey::parse(&key) else { panic!("no extent") };
        let run = Extent::decode(k.file, end, &record).unwrap().run().unwrap();
        batch.delete(&key);
        batch.free(run);
    });
    let found = look_at(&k.storage);
    assert_eq!(found.counts, [(ProblemKind::Blocks, 1), (ProblemKind::Lost, 1)], "{found}");
    repaired(&k.storage, &found);
    check(k.storage.clone(), &ALL).unwrap();
    assert!(is_lost(open(&k.storage).read(k.file, 0, 1)));
}

#[test]
fn records_of_lost_contents_are_what_the_format_says() {
    let lost = Extent::Lost { len: 1 << 40 };
    let bytes = lost.encode();
    assert_eq!(bytes, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(Extent::decode(crate::fs::ROOT, 1 << 40, &bytes).unwrap(), lost);
    for (end, at, byte) in [((1 << 40) + 1, 0, 2), (1 << 39, 0, 2), (1 << 40, 5, 1), (1 << 40, 10, 0)] {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        assert!(Extent::decode(crate::fs::ROOT, end, &bytes).is_err());
    }
}

/// Files without contents.
fn files<const N: usize>() -> (Arc<MemStorage>, Fs, [Ino; N]) {
    let storage = Arc::new(MemStorage::new(SIZE));
    Fs::format(storage.clone(), &format_options(SIZE), &ME).unwrap();
    let fs = open(&storage);
    let inos = std::array::from_fn(|i| {
        let ino = fs.create(ROOT, format!("f{i}").as_bytes(), New::File, 0o644, 0, &ME).unwrap().ino;
        fs.release(ino, 1).unwrap();
        ino
    });
    (storage, fs, inos)
}

/// The first extent of a file, with its key and record.
fn first_extent(tree: &Tree, ino: Ino) -> (Vec<u8>, Vec<u8>, Extent) {
    let (key, record) = records(tree, &extent_key(ino, 0)[..9]).remove(0);
    let extent = Extent::decode(ino, extent_end(ino, &key).unwrap(), &record).unwrap();
    (key, record, extent)
}

/// After one repair a second one finds nothing, and no attribute, hole or other extent was lost with what was.
fn only_that_is_lost(storage: &Arc<MemStorage>, about: &str) -> Fs {
    let report = check(storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(ProblemKind::Lost)), (0, 0), "{about}: {report}");
    let second = look_at(storage);
    assert!(second.is_clean(), "{about}: {report}\n{second}");
    open(storage)
}

/// With its blocks still counted, all holes of the file would be taken for lost.
#[test]
fn an_attribute_that_is_given_up_costs_no_holes() {
    let (storage, fs, [file]) = files();
    fs.write(file, 10 << 20, &[7; 4096], &ME).unwrap();
    fs.set_xattr(file, b"user.big", &[9; 9000], SetXattr::Any, &ME).unwrap();
    fs.close().unwrap();
    let mut run = None;
    forge(&storage, |tree, _| {
        let (_, record) = records(tree, &xattr_key(file, 0)[..9]).remove(0);
        run = Xattr::decode(file, &record).unwrap().run();
    });
    storage.write_at(run.unwrap().start.offset(), &[1; 100]).unwrap();
    // A count of blocks that is wrong as well is still put right.
    for wrong in [false, true] {
        let storage = Arc::new(MemStorage::from_image(storage.image()));
        if wrong {
            forge_inode(&storage, file, |inode| inode.blocks -= 1);
        }
        let fs = only_that_is_lost(&storage, &format!("wrong count: {wrong}"));
        assert!(fs.get_xattr(file, b"user.big").is_err());
        assert_eq!(fs.read(file, 0, 4096).unwrap(), [0; 4096]);
        assert_eq!(fs.read(file, 10 << 20, 4096).unwrap(), [7; 4096]);
    }
}

#[test]
fn an_extent_that_is_given_up_costs_its_own_range() {
    let (base, fs, [file]) = files();
    fs.write(file, 10 << 20, &[7; 4096], &ME).unwrap();
    fs.write(file, 20 << 20, &[8; 4096], &ME).unwrap();
    fs.close().unwrap();
    // Outside the groups.
    let storage = Arc::new(MemStorage::from_image(base.image()));
    forge(&storage, |tree, batch| {
        let (key, _, extent) = first_extent(tree, file);
        let Extent::Blocks { len, start, shared, crcs } = extent else { panic!("inline") };
        batch.free(Run { start, len: 1 });
        batch.put(&key, &Extent::Blocks { len, start: BlockNo(1), shared, crcs }.encode());
    });
    let found = look_at(&storage);
    assert!(found.toll.is_some_and(|toll| toll.contested == 1), "{found}");
    assert!(found.to_string().contains("it would copy 1 extent or attribute to other blocks"), "{found}");
    let fs = only_that_is_lost(&storage, "outside");
    assert!(is_lost(fs.read(file, 10 << 20, 4096)));
    assert_eq!(fs.read(file, 0, 4096).unwrap(), [0; 4096]);
    assert_eq!(fs.read(file, 20 << 20, 4096).unwrap(), [8; 4096]);
    drop(fs);
    // Over the end of another one: what is not that one's is lost.
    let storage = Arc::new(MemStorage::from_image(base.image()));
    forge(&storage, |tree, batch| {
        let run = tree.reserve_blocks(2).unwrap();
        tree.write_blocks(run.start, &[5; 8192]).unwrap();
        batch.allocate(run);
        let crcs = vec![crc32fast::hash(&[5; 4096]); 2];
        let extent = Extent::Blocks { len: 8192, start: run.start, shared: false, crcs };
        batch.put(&extent_key(file, (10 << 20) + 8192), &extent.encode());
        let record = tree.get(&inode_key(file)).unwrap().unwrap();
        let mut inode = Inode::decode(file, &record).unwrap();
        inode.blocks += 2;
        batch.put(&inode_key(file), &inode.encode());
    });
    let fs = only_that_is_lost(&storage, "overlapping");
    assert_eq!(fs.read(file, 10 << 20, 4096).unwrap(), [7; 4096]);
    assert!(is_lost(fs.read(file, (10 << 20) + 4096, 4096)));
    assert_eq!(fs.read(file, (10 << 20) + 8192, 4096).unwrap(), [0; 4096]);
    assert_eq!(fs.read(file, 20 << 20, 4096).unwrap(), [8; 4096]);
}

/// Two files with the same 64 blocks, and a file that fills the rest of the image but for `holes` blocks, none beside another.
fn contested(holes: u64) -> (Arc<MemStorage>, [Ino; 2], Vec<u8>) {
    let (storage, fs, [a, b, rest]) = files();
    let data: Vec<u8> = (0..64 * 4096).map(|i| (i / 4096) as u8 + 1).collect();
    fs.write(a, 0, &data, &ME).unwrap();
    fs.write(b, 0, &data, &ME).unwrap();
    fs.close().unwrap();
    forge(&storage, |tree, batch| {
        let ((_, record, _), (key, _, extent)) = (first_extent(tree, a), first_extent(tree, b));
        batch.put(&key, &record);
        batch.free(extent.run().unwrap());
    });
    let fs = open(&storage);
    let blocks = (0u64..).take_while(|n| fs.write(rest, n * 4096, &[*n as u8; 4096], &ME).is_ok()).count();
    for i in (0..blocks as u64).step_by(2).take(holes as usize) {
        fs.fallocate(rest, i * 4096, 4096, Fallocate::PunchHole, &ME).unwrap();
    }
    fs.close().unwrap();
    (storage, [a, b], data)
}

#[test]
fn contents_that_can_be_read_are_copied_in_pieces() {
    let (storage, inos, data) = contested(600);
    let report = check(storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(ProblemKind::BlocksTwice)), (0, 1), "{report}");
    let fs = open(&storage);
    for ino in inos {
        assert!(fs.read(ino, 0, data.len()).unwrap() == data, "{report}");
    }
    fs.close().unwrap();
    assert!(look_at(&storage).is_clean());
}

#[test]
fn contents_that_can_be_read_are_not_given_up_for_want_of_space() {
    let (storage, inos, data) = contested(0);
    let full = check(storage.clone(), &ALL).map(|report| report.to_string());
    assert!(matches!(full, Err(FsckError::Engine(crate::Error::NoSpace))), "{full:?}");
    let fs = open(&storage);
    for ino in inos {
        assert!(fs.read(ino, 0, data.len()).unwrap() == data);
    }
}

/// What a record held that means nothing any more is not known; it is not taken for a hole.
#[test]
fn an_extent_that_cannot_be_read_costs_what_lies_in_front_of_it() {
    let (storage, fs, [small, large]) = files();
    fs.write(small, 0, &[7; 100], &ME).unwrap();
    fs.write(large, 0, &[7; 4096], &ME).unwrap();
    fs.set_attributes(large, &SetAttributes { size: Some(10 << 20), ..SetAttributes::default() }, &ME)
        .unwrap();
    fs.close().unwrap();
    forge(&storage, |tree, batch| {
        let (key, _, _) = first_extent(tree, small);
        batch.put(&key, &[9; 30]);
        batch.put(&extent_key(large, 8 << 20), &[9; 30]);
    });
    let found = look_at(&storage);
    assert_eq!(found.counts, [(ProblemKind::Record, 2)], "{found}");
    repaired(&storage, &found);
    check(storage.clone(), &ALL).unwrap();
    let fs = open(&storage);
    assert!(is_lost(fs.read(small, 0, 1)) && is_lost(fs.read(small, 99, 1)));
    assert_eq!(fs.read(large, 0, 4096).unwrap(), [7; 4096]);
    assert!(is_lost(fs.read(large, 4096, 1)) && is_lost(fs.read(large, (8 << 20) - 1, 1)));
    assert_eq!(fs.read(large, 8 << 20, 4096).unwrap(), [0; 4096]);
}

/// The number in its key may be anything.
#[test]
fn an_extent_that_ends_nowhere_costs_what_no_other_one_has() {
    let (storage, fs, [_, file]) = files();
    fs.write(file, 0, &[7; 4096], &ME).unwrap();
    fs.set_attributes(file, &SetAttributes { size: Some((10 << 20) - 1), ..SetAttributes::default() }, &ME)
        .unwrap();
    fs.close().unwrap();
    forge(&storage, |_, batch| batch.put(&extent_key(file, u64::MAX), &[9; 30]));
    let found = look_at(&storage);
    assert_eq!(found.counts, [(ProblemKind::Record, 1)], "{found}");
    repaired(&storage, &found);
    check(storage.clone(), &ALL).unwrap();
    let fs = open(&storage);
    assert_eq!(fs.read(file, 0, 4096).unwrap(), [7; 4096]);
    assert!(is_lost(fs.read(file, 4096, 1)) && is_lost(fs.read(file, (10 << 20) - 2, 1)));
    fs.close().unwrap();
    assert!(look_at(&storage).is_clean());
}

/// What an earlier repair has given up has no blocks that would be missed.
#[test]
fn what_was_lost_before_is_lost_when_its_record_is() {
    const MIB: u64 = 1 << 20;
    for blocks in [false, true] {
        let (storage, inos, _) = super::cut_off::with_extents(1500, 100);
        let file = inos[700];
        let fs = open(&storage);
        fs.set_attributes(file, &SetAttributes { size: Some(20 * MIB), ..SetAttributes::default() }, &ME)
            .unwrap();
        if blocks {
            fs.write(file, 10 * MIB, &[7; 4096], &ME).unwrap();
        }
        fs.close().unwrap();
        forge(&storage, |_, batch| {
            batch.put(&extent_key(file, 8 * MIB), &Extent::Lost { len: 4 * MIB }.encode());
        });
        super::cut_off::rot(&storage, &super::cut_off::leaves_of_extents(&storage));
        let report = check(storage.clone(), &ALL).unwrap();
        assert_eq!(report.left, 0, "{report}");
        let fs = open(&storage);
        for at in [0, 4 * MIB, 6 * MIB, 8 * MIB - 1] {
            assert!(is_lost(fs.read(file, at, 1)), "{at}: {report}");
        }
        fs.close().unwrap();
        assert!(look_at(&storage).is_clean());
    }
}
