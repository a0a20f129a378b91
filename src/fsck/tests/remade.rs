//! Inodes whose records are lost, and whose contents are there.

use super::support::*;
use crate::fs::format::*;
use crate::fs::{Fs, FsError, New, SetXattr};
use crate::fsck::{Options, ProblemKind as P, Repair, check};

const ALL: Options<'static> = Options { repair: Repair::All, scrub: false, force: true, progress: None };

/// Every path that is made again reads as before, up to the end of its contents.
#[test]
fn a_file_whose_inode_is_lost_keeps_contents_attributes_and_names() {
    for impossible in [false, true] {
        let k = known();
        forge(&k.storage, |_, batch| match impossible {
            true => batch.put(&inode_key(k.file), b"no inode"),
            false => batch.delete(&inode_key(k.file)),
        });
        let looked = look_at(&k.storage);
        assert_eq!((looked.count(P::InodeLost), looked.count(P::Stray)), (1, 0), "{looked}");
        let report = check(k.storage.clone(), &ALL).unwrap();
        assert_eq!((report.left, report.reconnected), (0, 0), "{report}");
        assert!(look_at(&k.storage).is_clean());
        let fs = Fs::open(k.storage, &options()).unwrap();
        assert_eq!(fs.lookup(ROOT, b"second").unwrap(), k.file);
        assert_eq!(fs.lookup(k.dir, b"file").unwrap(), k.file);
        let a = fs.attributes(k.file).unwrap();
        assert_eq!((a.kind, a.mode, a.uid, a.gid, a.links), (Kind::File, 0o600, ME.uid, ME.gid, 2));
        // What lies behind them, up to the end of their last block, was zeros or nothing; then nobody knows.
        assert_eq!(fs.read(k.file, 0, 12_288).unwrap(), [vec![7; 12_000], vec![0; 288]].concat());
        assert!(matches!(fs.read(k.file, 12_288, 1), Err(FsError::Contents(_))));
        assert_eq!(fs.get_xattr(k.file, b"user.big").unwrap(), [9; 9000]);
        assert_eq!(fs.get_xattr(k.file, b"user.small").unwrap(), b"value");
        fs.close().unwrap();
    }
}

#[test]
fn what_has_lost_its_names_too_is_found_in_lost_and_found() {
    let k = known();
    let fs = Fs::open(k.storage.clone(), &options()).unwrap();
    let small = fs.create(k.inner, b"small", New::File, 0o644, 0, &ME).unwrap().ino;
    fs.write(small, 0, b"a few words", &ME).unwrap();
    fs.release(small, 1).unwrap();
    fs.close().unwrap();
    forge(&k.storage, |tree, batch| {
        let group =
            Inode::decode(k.inner, &tree.get(&inode_key(k.inner)).unwrap().unwrap()).unwrap().dir.unwrap();
        records(tree, &entry_key(group.entries, Cookie(0))[..7])
            .iter()
            .for_each(|(key, _)| batch.delete(key));
        [small, k.other].iter().for_each(|ino| batch.delete(&inode_key(*ino)));
    });
    forge_inode(&k.storage, k.inner, |i| i.dir.as_mut().unwrap().count = 0);
    let report = check(k.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(P::InodeLost), report.reconnected), (0, 2, 2), "{report}");
    assert!(look_at(&k.storage).is_clean());
    let fs = Fs::open(k.storage, &options()).unwrap();
    let home = fs.lookup(ROOT, b"lost+found").unwrap();
    let a = fs.attributes(home).unwrap();
    assert_eq!((a.mode, a.uid), (0o700, ME.uid), "who owns the root can look into it");
    let found = |ino: Ino| fs.lookup(home, format!("#{}", ino.0).as_bytes()).unwrap();
    assert_eq!(fs.read(found(small), 0, 11).unwrap(), b"a few words");
    assert_eq!(fs.read(found(k.other), 0, 4096).unwrap(), [8; 4096]);
    fs.close().unwrap();
}

/// A crash may come between the batches of a deletion; damage may then have taken its inode.
#[test]
fn what_was_being_deleted_does_not_come_back() {
    let k = known();
    forge(&k.storage, |_, batch| {
        batch.delete(&inode_key(k.file));
        batch.put(&orphan_key(k.file), &Orphan::Unlinked.encode());
    });
    let report = check(k.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(P::InodeLost)), (0, 0), "{report}");
    assert!(report.count(P::Stray) > 0, "{report}");
    assert!(look_at(&k.storage).is_clean());
    let fs = Fs::open(k.storage, &options()).unwrap();
    assert!(matches!(fs.attributes(k.file), Err(FsError::NotFound)));
    assert!(matches!(fs.lookup(ROOT, b"second"), Err(FsError::NotFound)));
    fs.close().unwrap();
}

/// By a later write its blocks may have become another's, if the lost record was of a file that was deleted since.
#[test]
fn blocks_that_belong_to_another_by_now_are_not_taken_from_it() {
    let k = known();
    let forged = Ino::new(k.file.group(), 0);
    forge(&k.storage, |tree, batch| {
        let prefix = &extent_key(k.file, 0)[..9];
        let (key, record) = records(tree, prefix).remove(0);
        let end = extent_end(k.file, &key).unwrap();
        let Ok(Extent::Blocks { len, start, shared, mut crcs }) = Extent::decode(k.file, end, &record) else {
            panic!("no blocks")
        };
        // What they held then.
        crcs[1] ^= 1;
        batch.put(&extent_key(forged, end), &Extent::Blocks { len, start, shared, crcs }.encode());
    });
    let report = check(k.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(P::InodeLost)), (0, 1), "{report}");
    assert!(check(k.storage.clone(), &Options { scrub: true, ..Options::default() }).unwrap().is_clean());
    let fs = Fs::open(k.storage, &options()).unwrap();
    assert_eq!(fs.read(k.file, 0, 12_000).unwrap(), [7; 12_000]);
    assert!(matches!(fs.read(forged, 0, 12_000), Err(FsError::Contents(_))), "it is not known to be right");
    fs.close().unwrap();
}

/// The mark of a truncate tells the size, and what lies behind it is cut by the next opening.
#[test]
fn a_file_that_was_being_cut_has_the_size_it_was_cut_to() {
    let k = known();
    forge(&k.storage, |_, batch| {
        batch.delete(&inode_key(k.file));
        batch.put(&orphan_key(k.file), &Orphan::Truncated { size: 5000 }.encode());
    });
    let report = check(k.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(P::InodeLost), report.count(P::Stray)), (0, 1, 0), "{report}");
    let fs = Fs::open(k.storage.clone(), &options()).unwrap();
    assert_eq!(fs.attributes(k.file).unwrap().size, 5000);
    assert_eq!(fs.read(k.file, 0, 8192).unwrap(), [7; 5000]);
    fs.close().unwrap();
    assert!(look_at(&k.storage).is_clean());
}

#[test]
fn one_bad_extent_does_not_take_the_others_with_it_and_capabilities_do_not_change_hands() {
    let k = known();
    let fs = Fs::open(k.storage.clone(), &options()).unwrap();
    fs.write(k.file, 1 << 20, &[6; 8192], &ME).unwrap();
    fs.set_xattr(k.file, b"security.capability", &[1; 20], SetXattr::Any, &ME).unwrap();
    fs.close().unwrap();
    forge(&k.storage, |tree, batch| {
        let (key, _) = records(tree, &extent_key(k.file, 0)[..9]).remove(0);
        batch.put(&key, b"no extent");
        batch.delete(&inode_key(k.file));
    });
    let report = check(k.storage.clone(), &ALL).unwrap();
    assert_eq!((report.left, report.count(P::InodeLost)), (0, 1), "{report}");
    assert!(look_at(&k.storage).is_clean());
    let fs = Fs::open(k.storage, &options()).unwrap();
    assert!(matches!(fs.read(k.file, 0, 4096), Err(FsError::Contents(_))));
    assert_eq!(fs.read(k.file, 1 << 20, 8192).unwrap(), [6; 8192]);
    assert_eq!(fs.list_xattrs(k.file).unwrap().len(), 2);
    fs.close().unwrap();
}
