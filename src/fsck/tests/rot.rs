//! Contents that fail their checksums are given up by a repair that reads them, and nothing else is.

use std::collections::BTreeMap;

use super::ProblemKind as P;
use super::support::*;
use super::*;
use crate::fs::format::*;
use crate::fs::{Fs, FsError, New, ROOT, SetXattr};
use crate::page::BLOCK_SIZE;
use crate::storage::sim::Policy;
use crate::storage::{MemStorage, Rng, SimStorage};

const ALL: Options<'static> = Options { repair: Repair::All, scrub: true, force: true, progress: None };
const BLOCK: u64 = BLOCK_SIZE as u64;

/// A filesystem with files, and what they hold.
struct Files {
    storage: Arc<MemStorage>,
    contents: BTreeMap<Ino, Vec<u8>>,
}

impl Files {
    /// Files of these lengths.
    fn new(lengths: &[usize]) -> Files {
        let storage = Arc::new(MemStorage::new(SIZE));
        Fs::format(storage.clone(), &format_options(SIZE), &ME).unwrap();
        let mut files = Files { storage, contents: BTreeMap::new() };
        let fs = files.open();
        for (i, len) in lengths.iter().enumerate() {
            let ino = fs.create(ROOT, format!("file{i}").as_bytes(), New::File, 0o644, 0, &ME).unwrap().ino;
            let mut bytes = vec![0; *len];
            Rng::new(i as u64).fill(&mut bytes);
            fs.write(ino, 0, &bytes, &ME).unwrap();
            fs.release(ino, 1).unwrap();
            files.contents.insert(ino, bytes);
        }
        fs.close().unwrap();
        files
    }

    fn open(&self) -> Fs {
        Fs::open(self.storage.clone(), &options()).unwrap()
    }

    /// A file by its number in the row.
    fn ino(&self, i: usize) -> Ino {
        *self.contents.keys().nth(i).unwrap()
    }

    /// Where a block of a file lies.
    fn place(&self, ino: Ino, block: u64) -> u64 {
        let mut found = None;
        forge(&Arc::new(MemStorage::from_image(self.storage.image())), |tree, _| {
            for (key, value) in records(tree, &extent_key(ino, 0)[..9]) {
                let end = extent_end(ino, &key).unwrap();
                let extent = Extent::decode(ino, end, &value).unwrap();
                let begin = end - extent.length();
                if let Some(run) = extent.run().filter(|_| begin <= block * BLOCK && block * BLOCK < end) {
                    found = Some(run.start.offset() + block * BLOCK - begin);
                }
            }
        });
        found.unwrap()
    }

    fn rot(&self, ino: Ino, block: u64) {
        let at = self.place(ino, block);
        let mut byte = [0];
        self.storage.read_at(at + 100, &mut byte).unwrap();
        self.storage.write_at(at + 100, &[!byte[0]]).unwrap();
    }

    /// These blocks cannot be read, and everything else is as it was.
    fn only_lost(&self, lost: &[(Ino, u64)], about: &str) {
        let fs = self.open();
        for (ino, bytes) in &self.contents {
            for (block, bytes) in bytes.chunks(BLOCK_SIZE).enumerate() {
                let read = fs.read(*ino, block as u64 * BLOCK, BLOCK_SIZE);
                if lost.contains(&(*ino, block as u64)) {
                    assert!(
                        matches!(read, Err(FsError::Contents(ref e) | FsError::Engine(ref e)) if e.is_corrupt()),
                        "{about}: block {block} is read: {read:?}"
                    );
                } else {
                    assert!(read.unwrap() == bytes, "{about}: block {block} of {ino:?}");
                }
            }
        }
        fs.close().unwrap();
    }

    /// Gives up what has rotted; a second run finds nothing.
    fn repair(&self, lost: &[(Ino, u64)], ranges: u64, about: &str) -> Report {
        let found = look_at(&self.storage);
        assert_eq!((found.count(P::Data), found.exit_code()), (ranges, 4), "{about}: {found}");
        // Without reading contents nothing is known of them, and what is safe leaves them alone.
        let safe = Options { repair: Repair::Safe, ..ALL };
        let before = self.storage.image().to_vec().unwrap();
        assert_eq!(check(self.storage.clone(), &safe).unwrap().exit_code(), 4, "{about}");
        assert_eq!(check(self.storage.clone(), &Options { scrub: false, ..ALL }).unwrap().exit_code(), 0);
        assert!(before == self.storage.image().to_vec().unwrap(), "{about}: something was written");
        let report = check(self.storage.clone(), &ALL).unwrap();
        assert_eq!((report.left, report.exit_code(), report.count(P::Data)), (0, 1, ranges), "{report}");
        let text = report.to_string();
        assert!(text.contains("- repaired: mark it as lost"), "{about}: {text}");
        let second = check(self.storage.clone(), &ALL).unwrap();
        assert_eq!((second.exit_code(), second.lost_ranges > 0), (0, true), "{about}: {report}\n{second}");
        self.only_lost(lost, about);
        report
    }

    /// What was given up can be written again, and all is as before.
    fn write_again(&self, lost: &[(Ino, u64)]) {
        let fs = self.open();
        for (ino, block) in lost {
            let bytes = self.contents[ino].chunks(BLOCK_SIZE).nth(*block as usize).unwrap();
            fs.write(*ino, block * BLOCK, bytes, &ME).unwrap();
        }
        fs.close().unwrap();
        self.only_lost(&[], "written again");
        let report = look_at(&self.storage);
        assert!(report.is_clean() && report.lost_ranges == 0, "{report}");
    }
}

#[test]
fn rotten_blocks_are_given_up_and_no_others() {
    for blocks in
        [vec![3], vec![0], vec![10], vec![0, 10], vec![2, 3, 7, 9], vec![1, 3, 5, 7, 9], (0..11).collect()]
    {
        let files = Files::new(&[50_000, 42_000, 50_000]);
        let ino = files.ino(1);
        let lost: Vec<_> = blocks.iter().map(|b| (ino, *b)).collect();
        lost.iter().for_each(|(ino, block)| files.rot(*ino, *block));
        let ranges = 1 + blocks.windows(2).filter(|w| w[1] != w[0] + 1).count() as u64;
        let report = files.repair(&lost, ranges, &format!("{blocks:?}"));
        assert_eq!(report.counts, [(P::Data, ranges)], "{report}");
        assert!(report.to_string().contains("/file1 (inode"), "{report}");
        files.write_again(&lost);
    }
}

#[test]
fn of_many_files_only_what_has_rotted_is_given_up() {
    let files = Files::new(&vec![4096; 700]);
    let lost: Vec<_> = (0..700).step_by(3).map(|i| (files.ino(i), 0)).collect();
    lost.iter().for_each(|(ino, block)| files.rot(*ino, *block));
    files.repair(&lost, lost.len() as u64, "many");
    files.write_again(&lost);
}

/// Holes of a file that has lost something are still holes.
#[test]
fn holes_beside_rotten_blocks_stay() {
    let mut files = Files::new(&[4096]);
    let ino = files.ino(0);
    let fs = files.open();
    fs.write(ino, 100 * BLOCK, &[5; 3 * BLOCK_SIZE], &ME).unwrap();
    fs.close().unwrap();
    let bytes = files.contents.get_mut(&ino).unwrap();
    bytes.resize(100 * BLOCK_SIZE, 0);
    bytes.extend([5; 3 * BLOCK_SIZE]);
    files.rot(ino, 101);
    let report = files.repair(&[(ino, 101)], 1, "sparse");
    assert_eq!(report.counts, [(P::Data, 1)], "{report}");
}

#[test]
fn shared_blocks_are_given_up_by_all_who_share_them() {
    let mut files = Files::new(&[40_000, 40_960, 10]);
    let (a, b) = (files.ino(0), files.ino(1));
    let fs = files.open();
    assert_eq!(fs.copy_range(a, 0, b, 4096, 8 * BLOCK, &ME).unwrap(), 8 * BLOCK);
    fs.close().unwrap();
    let copied = files.contents[&a][..8 * BLOCK_SIZE].to_vec();
    files.contents.get_mut(&b).unwrap()[BLOCK_SIZE..9 * BLOCK_SIZE].copy_from_slice(&copied);
    [2, 5].into_iter().for_each(|block| files.rot(a, block));
    let lost = [(a, 2), (a, 5), (b, 3), (b, 6)];
    files.repair(&lost, 4, "shared");
    files.write_again(&lost);
}

/// Which blocks are whose is settled first.
#[test]
fn rotten_blocks_of_two_owners_cost_no_third() {
    let files = Files::new(&[40_000, 40_000, 40_000]);
    let (a, b) = (files.ino(0), files.ino(1));
    forge(&files.storage, |tree, batch| {
        let stolen = records(tree, &extent_key(a, 0)[..9]).remove(0).1;
        let (key, value) = records(tree, &extent_key(b, 0)[..9]).remove(0);
        let end = extent_end(b, &key).unwrap();
        batch.free(Extent::decode(b, end, &value).unwrap().run().unwrap());
        batch.put(&key, &stolen);
    });
    files.rot(a, 4);
    files.rot(files.ino(2), 4);
    let report = check(files.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.exit_code()), (0, 1), "{report}");
    let second = check(files.storage.clone(), &ALL).unwrap();
    assert_eq!(second.exit_code(), 0, "{report}\n{second}");
    let all: Vec<_> = (0..10).map(|block| (b, block)).collect();
    files.only_lost(&[&[(a, 4), (files.ino(2), 4)], &all[..]].concat(), "two owners");
}

/// What nobody can reach any more, or is being cut off, does not keep a repair from its end.
#[test]
fn rotten_orphans_are_no_obstacle() {
    let files = Files::new(&[40_000, 40_000]);
    let fs = files.open();
    let held = fs.create(ROOT, b"held", New::File, 0o644, 0, &ME).unwrap().ino;
    fs.write(held, 0, &[3; 40_000], &ME).unwrap();
    fs.unlink(ROOT, b"held", &ME).unwrap();
    fs.sync().unwrap();
    drop(fs);
    let (mut start, copy) = (0, Arc::new(MemStorage::from_image(files.storage.image())));
    forge(&copy, |tree, _| {
        if let Some((key, value)) = records(tree, &extent_key(held, 0)[..9]).pop() {
            let end = extent_end(held, &key).unwrap();
            start = Extent::decode(held, end, &value).unwrap().run().unwrap().start.offset();
        }
    });
    assert!(start > 0, "it is gone already");
    files.storage.write_at(start + 5000, b"rot").unwrap();
    let report = check(files.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(P::Data)), (0, 1), "{report}");
    assert_eq!(check(files.storage.clone(), &ALL).unwrap().exit_code(), 0);
    let fs = files.open();
    assert!(fs.attributes(held).is_err());
    fs.close().unwrap();
    assert!(look_at(&files.storage).is_clean());
    // Contents that are being cut off.
    let cut = files.ino(1);
    files.rot(cut, 1);
    files.rot(cut, 6);
    forge_inode(&files.storage, cut, |i| i.size = 10_000);
    let mark = Orphan::Truncated { size: 10_000 };
    forge(&files.storage, |_, batch| batch.put(&orphan_key(cut), &mark.encode()));
    let report = check(files.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(P::Data)), (0, 2), "{report}");
    assert_eq!(check(files.storage.clone(), &ALL).unwrap().exit_code(), 0);
    files.open().close().unwrap();
    let report = look_at(&files.storage);
    assert!(report.is_clean() && report.lost_ranges == 1 && report.lost_bytes == 4096, "{report}");
}

#[test]
fn an_attribute_with_a_rotten_value_goes() {
    let files = Files::new(&[4096]);
    let (ino, fs) = (files.ino(0), files.open());
    fs.set_xattr(ino, b"user.big", &[9; 9000], SetXattr::Any, &ME).unwrap();
    fs.set_xattr(ino, b"user.other", &[8; 9000], SetXattr::Any, &ME).unwrap();
    fs.close().unwrap();
    forge(&files.storage, |tree, _| {
        for (_, value) in records(tree, &xattr_key(ino, 0)[..9]) {
            let xattr = Xattr::decode(ino, &value).unwrap();
            if xattr.name == b"user.big" {
                tree.write_blocks(xattr.run().unwrap().start, &[1; 4096]).unwrap();
            }
        }
    });
    let report = check(files.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(P::XattrValue)), (0, 1), "{report}");
    let second = check(files.storage.clone(), &ALL).unwrap();
    assert_eq!(second.exit_code(), 0, "{report}\n{second}");
    let fs = files.open();
    assert!(fs.get_xattr(ino, b"user.big").is_err());
    assert_eq!(fs.get_xattr(ino, b"user.other").unwrap(), [8; 9000]);
    fs.close().unwrap();
}

#[test]
fn giving_up_contents_can_be_interrupted() {
    let mut files = Files::new(&[40_000, 30_000, 50_000]);
    let (a, b, c) = (files.ino(0), files.ino(1), files.ino(2));
    let fs = files.open();
    assert_eq!(fs.copy_range(a, 0, b, 0, 4 * BLOCK, &ME).unwrap(), 4 * BLOCK);
    fs.close().unwrap();
    let copied = files.contents[&a][..4 * BLOCK_SIZE].to_vec();
    files.contents.get_mut(&b).unwrap()[..4 * BLOCK_SIZE].copy_from_slice(&copied);
    files.rot(a, 2);
    [1, 2, 6, 12].into_iter().for_each(|block| files.rot(c, block));
    let lost = [(a, 2), (b, 2), (c, 1), (c, 2), (c, 6), (c, 12)];
    let sim = Arc::new(SimStorage::from_image(files.storage.image()));
    sim.start_recording();
    check(sim.clone(), &ALL).unwrap();
    let recording = sim.finish_recording().unwrap();
    let (mut cursor, mut rng) = (recording.cursor(), Rng::new(5));
    while cursor.advance() {
        files.storage = Arc::new(MemStorage::from_image(cursor.crash(&mut rng, Policy::Any)));
        let about = format!("cut {}", cursor.index());
        let report = check(files.storage.clone(), &ALL).unwrap_or_else(|e| panic!("{about}: {e}"));
        assert_eq!(report.left, 0, "{about}: {report}");
        let second = check(files.storage.clone(), &ALL).unwrap();
        assert_eq!(second.exit_code(), 0, "{about}: {report}\n{second}");
        files.only_lost(&lost, &about);
    }
}

/// What cannot be read may come back: it stays, and is reported each time.
#[test]
fn unreadable_blocks_stay_as_they_are() {
    let files = Files::new(&[40_000, 40_000]);
    let (a, b) = (files.ino(0), files.ino(1));
    let fs = files.open();
    fs.set_xattr(a, b"user.big", &[9; 9000], SetXattr::Any, &ME).unwrap();
    fs.close().unwrap();
    files.rot(a, 1);
    let mut bad = vec![files.place(a, 2) + 5, files.place(b, 4), files.place(b, 5) + 9];
    forge(&files.storage, |tree, _| {
        let value = records(tree, &xattr_key(a, 0)[..9]).remove(0).1;
        bad.push(Xattr::decode(a, &value).unwrap().run().unwrap().start.offset() + 7);
    });
    let disk = disk(&files.storage, &bad);
    for (round, code) in [5, 4, 4].into_iter().enumerate() {
        let report = check(disk.clone(), &ALL).unwrap();
        assert_eq!((report.left, report.exit_code()), (3, code), "{report}");
        assert_eq!(
            (report.count(P::Unreadable), report.count(P::Data)),
            (3, (round == 0) as u64),
            "{report}"
        );
        for problem in &report.problems {
            assert_eq!(problem.repair.is_some(), problem.kind == P::Data, "{report}");
            assert_eq!(problem.what.contains("cannot be read"), problem.kind == P::Unreadable, "{report}");
        }
    }
    // It has come back.
    assert!(look_at(&files.storage).is_clean());
    files.only_lost(&[(a, 1)], "read again");
    assert_eq!(files.open().get_xattr(a, b"user.big").unwrap(), [9; 9000]);
}
