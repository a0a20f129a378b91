//! Each check of a record has an image on which exactly it fires. The records are forged through the tree, so all checksums are
//! right.

use super::ProblemKind as P;
use super::support::*;
use crate::fs::format::*;
use crate::page::{BlockNo, Run};

#[test]
fn known_image_is_clean() {
    let report = expect(&known().storage, &[]);
    assert_eq!((report.inodes, report.directories, report.names, report.xattrs), (6, 3, 6, 2));
    assert_eq!(report.data_bytes, 4096 * (3 + 3 + 1));
}

#[test]
fn counts_that_are_wrong() {
    let k = known();
    forge_inode(&k.storage, k.file, |i| i.links = 3);
    forge_inode(&k.storage, k.dir, |i| i.links = 9);
    let report = expect(&k.storage, &[(P::Links, 2)]);
    let path = report.problems[1].place.path.clone().unwrap();
    assert!(path == "/dir/file" || path == "/second", "{path}");
    assert_eq!(report.problems[0].place.path.as_deref(), Some("/dir"));

    let k = known();
    forge_inode(&k.storage, k.file, |i| i.blocks += 1);
    expect(&k.storage, &[(P::Blocks, 1)]);
    let k = known();
    forge_inode(&k.storage, k.file, |i| i.xattrs = 1);
    expect(&k.storage, &[(P::XattrCount, 1)]);
    let k = known();
    forge_inode(&k.storage, k.dir, |i| i.dir.as_mut().unwrap().count = 7);
    expect(&k.storage, &[(P::DirectoryCount, 1)]);
    let k = known();
    forge_inode(&k.storage, k.dir, |i| i.dir.as_mut().unwrap().next = 1);
    expect(&k.storage, &[(P::BirthCounter, 1)]);
    let k = known();
    forge(&k.storage, |_, batch| batch.put(&state_key(), &1u64.to_be_bytes()));
    expect(&k.storage, &[(P::GroupCounter, 1)]);
    let k = known();
    forge(&k.storage, |_, batch| batch.delete(&state_key()));
    expect(&k.storage, &[(P::State, 1)]);
}

#[test]
fn flags_without_attributes() {
    let k = known();
    forge_inode(&k.storage, k.file, |i| i.flags = INODE_ACCESS_ACL);
    expect(&k.storage, &[(P::Flags, 1)]);
}

#[test]
fn acls_that_are_none() {
    let acl = |k: &Known, ino: Ino, name: &[u8], value: &[u8], flags: u8| {
        let place = crate::fs::name_hash(b"fedcba9876543210", name) << 8;
        let xattr = Xattr { name: name.to_vec(), value: XattrValue::Inline(value.to_vec()) };
        forge(&k.storage, |_, batch| batch.put(&xattr_key(ino, place), &xattr.encode()));
        forge_inode(&k.storage, ino, |i| (i.xattrs, i.flags) = (i.xattrs + 1, flags));
    };
    let k = known();
    acl(&k, k.file, b"system.posix_acl_access", b"no ACL", INODE_ACCESS_ACL);
    expect(&k.storage, &[(P::XattrValue, 1)]);
    let k = known();
    acl(&k, k.file, b"system.posix_acl_access", &2u32.to_le_bytes(), INODE_ACCESS_ACL);
    expect(&k.storage, &[(P::XattrValue, 1)]);
    let k = known();
    let entry = |tag: u8| [tag, 0, 7, 0, 0xff, 0xff, 0xff, 0xff];
    let value = [&2u32.to_le_bytes()[..], &entry(1), &entry(4), &entry(32)].concat();
    acl(&k, k.dir, b"system.posix_acl_default", &value, INODE_DEFAULT_ACL);
    expect(&k.storage, &[]);
    acl(&k, k.file, b"system.posix_acl_default", &value, 0);
    expect(&k.storage, &[(P::XattrValue, 1)]);
}

/// The counter of groups ends below the greatest number that fits, so that there is one for what comes next.
#[test]
fn groups_beyond_the_counter() {
    let group = GROUP_MAX;
    let k = known();
    let entry = Entry { ino: k.other, kind: Kind::File, name: b"stray".to_vec() };
    forge(&k.storage, |_, batch| batch.put(&entry_key(group, Cookie(7 << 8)), &entry.encode()));
    expect(&k.storage, &[(P::EntryStray, 1)]);
    for sequence in [1, 0xff_ffff] {
        let k = known();
        forge(&k.storage, |tree, batch| {
            let file = tree.get(&inode_key(k.other)).unwrap().unwrap();
            batch.put(&inode_key(Ino::new(group, sequence)), &file);
        });
        expect(&k.storage, &[(P::Key, 1)]);
    }
    let k = known();
    forge_inode(&k.storage, k.inner, |i| i.dir.as_mut().unwrap().births = group);
    let report = look_at(&k.storage);
    assert_eq!(report.count(P::Record), 1, "{report}");
    repaired(&k.storage, &report);
}

/// Of a group that is full, the next number is not one of the next group.
#[test]
fn something_lost_is_named_when_the_roots_group_is_full() {
    let k = known();
    forge(&k.storage, |tree, batch| {
        let file = tree.get(&inode_key(k.other)).unwrap().unwrap();
        batch.put(&inode_key(Ino::new(0, 0xff_ffff)), &file);
    });
    let report = look_at(&k.storage);
    assert_eq!((report.count(P::Unnamed), report.count(P::BirthCounter)), (1, 1), "{report}");
    repaired(&k.storage, &report);
}

#[test]
fn contents_behind_the_end() {
    let k = known();
    forge_inode(&k.storage, k.file, |i| i.size = 5000);
    expect(&k.storage, &[(P::Size, 1)]);
    // A mark says that they are being cut.
    forge(&k.storage, |_, batch| batch.put(&orphan_key(k.file), &Orphan::Truncated { size: 5000 }.encode()));
    expect(&k.storage, &[]);
}

#[test]
fn names_that_lead_nowhere_or_are_gone() {
    let k = known();
    forge(&k.storage, |_, batch| batch.delete(&inode_key(k.link)));
    expect(&k.storage, &[(P::EntryDangling, 1), (P::DirectoryCount, 1), (P::Stray, 1)].map(|x| x).sorted());
    let k = known();
    forge(&k.storage, |tree, batch| {
        let entries = records(tree, &entry_key(group_of(tree, k.inner), Cookie(0))[..7]);
        batch.delete(&entries[0].0);
    });
    forge_inode(&k.storage, k.inner, |i| i.dir.as_mut().unwrap().count = 0);
    let report = expect(&k.storage, &[(P::Unnamed, 1)]);
    assert_eq!(report.problems[0].place.ino, Some(k.other.0));
}

trait Sorted {
    fn sorted(self) -> Self;
}

impl<const N: usize> Sorted for [(P, u64); N] {
    fn sorted(mut self) -> Self {
        self.sort();
        self
    }
}

fn group_of(tree: &crate::tree::Tree, dir: Ino) -> u64 {
    let record = tree.get(&inode_key(dir)).unwrap().unwrap();
    Inode::decode(dir, &record).unwrap().dir.unwrap().entries
}

/// The one entry with this name in a directory.
fn entry_of(tree: &crate::tree::Tree, dir: Ino, name: &[u8]) -> (Vec<u8>, Entry) {
    let entries = records(tree, &entry_key(group_of(tree, dir), Cookie(0))[..7]);
    let mut decoded = entries.into_iter().map(|(key, value)| (key, Entry::decode(dir, &value).unwrap()));
    decoded.find(|(_, e)| e.name == name).unwrap()
}

#[test]
fn names_at_wrong_places() {
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (key, entry) = entry_of(tree, k.dir, b"file");
        batch.delete(&key);
        batch.put(&entry_key(group_of(tree, k.dir), Cookie(77 << 8)), &entry.encode());
    });
    expect(&k.storage, &[(P::EntryHash, 1)]);
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (mut key, entry) = entry_of(tree, k.dir, b"file");
        *key.last_mut().unwrap() += 3;
        batch.put(&key, &entry.encode());
    });
    expect(&k.storage, &[(P::EntryTwice, 1)]);
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (key, entry) = entry_of(tree, k.dir, b"file");
        batch.put(&key, &Entry { kind: Kind::Fifo, ..entry }.encode());
    });
    expect(&k.storage, &[(P::EntryKind, 1)]);
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (_, entry) = entry_of(tree, k.dir, b"file");
        batch.put(&entry_key(700, Cookie(77 << 8)), &entry.encode());
    });
    expect(&k.storage, &[(P::EntryStray, 1)]);
}

/// A name is there once if another directory has it, too.
#[test]
fn names_at_wrong_places_in_two_directories() {
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (_, entry) = entry_of(tree, k.dir, b"file");
        let (first, second) = (group_of(tree, k.dir), group_of(tree, k.inner));
        assert!(first < second);
        for (key, entry) in [
            (entry_key(first, Cookie(u64::MAX << 8 >> 1)), entry.clone()),
            (entry_key(second, Cookie(0)), entry.clone()),
        ] {
            batch.put(&key, &entry.encode());
        }
        batch.delete(&entry_of(tree, k.dir, b"file").0);
    });
    forge_inode(&k.storage, k.inner, |i| i.dir.as_mut().unwrap().count += 1);
    forge_inode(&k.storage, k.file, |i| i.links += 1);
    expect(&k.storage, &[(P::EntryHash, 2)]);
}

#[test]
fn an_unlinked_directory_that_is_not_empty() {
    for marked in [true, false] {
        let k = known();
        forge(&k.storage, |tree, batch| {
            batch.delete(&entry_of(tree, k.dir, b"inner").0);
            if marked {
                batch.put(&orphan_key(k.inner), &Orphan::Unlinked.encode());
            }
        });
        forge_inode(&k.storage, k.inner, |i| i.links = 0);
        forge_inode(&k.storage, k.dir, |i| {
            i.links -= 1;
            i.dir.as_mut().unwrap().count -= 1;
        });
        expect(&k.storage, &[(P::Orphan, 1)]);
        let all = super::Options { repair: super::Repair::All, force: true, ..Default::default() };
        super::check(k.storage.clone(), &all).unwrap();
        let path = format!("/lost+found/#{}/other", k.inner.0);
        assert!(model(&k.storage).contains_key(&path), "{path}");
    }
}

#[test]
fn the_path_of_what_lies_deep_is_cut_short() {
    let k = known();
    let fs = crate::fs::Fs::open(k.storage.clone(), &options()).unwrap();
    let mut at = k.dir;
    for _ in 0..20 {
        at = fs.create(at, &[b'd'; 250], crate::fs::New::Directory, 0o755, 0, &ME).unwrap().ino;
        fs.release(at, 1).unwrap();
    }
    fs.close().unwrap();
    forge_inode(&k.storage, at, |i| i.links = 5);
    let report = expect(&k.storage, &[(P::Links, 1)]);
    let path = report.problems[0].place.path.clone().unwrap();
    assert!(path.starts_with("…/d") && path.len() > 3000 && path.len() < 4100, "{path}");
}

#[test]
fn directories_in_the_wrong_place() {
    let k = known();
    forge_inode(&k.storage, k.inner, |i| i.dir.as_mut().unwrap().parent = ROOT);
    expect(&k.storage, &[(P::DirectoryParent, 1)]);
    // A second name.
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (_, entry) = entry_of(tree, k.dir, b"inner");
        let hash = crate::fs::name_hash(&tree.hash_seed(), b"again");
        let entry = Entry { name: b"again".to_vec(), ..entry };
        batch.put(&entry_key(group_of(tree, k.inner), Cookie(hash << 8)), &entry.encode());
    });
    expect(&k.storage, &[(P::DirectoryNames, 1)]);
    // The same groups.
    let k = known();
    forge(&k.storage, |tree, batch| {
        let mut inode = Inode::decode(k.inner, &tree.get(&inode_key(k.inner)).unwrap().unwrap()).unwrap();
        inode.dir.as_mut().unwrap().births = group_of(tree, k.dir);
        inode.dir.as_mut().unwrap().next = 50;
        batch.put(&inode_key(k.inner), &inode.encode());
    });
    expect(&k.storage, &[(P::DirectoryGroup, 1)]);
    let k = known();
    forge(&k.storage, |_, batch| batch.delete(&inode_key(ROOT)));
    let report = look_at(&k.storage);
    repaired(&k.storage, &report);
    assert_eq!((report.count(P::Root), report.exit_code()), (1, 4), "{report}");
}

#[test]
fn a_circle_of_directories() {
    let k = known();
    forge(&k.storage, |tree, batch| {
        // dir moves below inner, which lies in it.
        let (key, entry) = entry_of(tree, ROOT, b"dir");
        batch.delete(&key);
        let place = Cookie(u64::from_be_bytes(key[7..].try_into().unwrap()));
        batch.put(&entry_key(group_of(tree, k.inner), place), &entry.encode());
        for (ino, parent, links, count) in
            [(k.dir, k.inner, 3, 3), (k.inner, k.dir, 3, 2), (ROOT, ROOT, 2, 1)]
        {
            let mut inode = Inode::decode(ino, &tree.get(&inode_key(ino)).unwrap().unwrap()).unwrap();
            inode.links = links;
            let dir = inode.dir.as_mut().unwrap();
            (dir.parent, dir.count) = (parent, count);
            batch.put(&inode_key(ino), &inode.encode());
        }
    });
    expect(&k.storage, &[(P::Disconnected, 1)]);
}

#[test]
fn orphans_that_are_none() {
    let k = known();
    forge(&k.storage, |_, batch| {
        batch.put(&orphan_key(k.file), &[1]);
        batch.put(&orphan_key(Ino(999)), &[1]);
        batch.put(&orphan_key(k.link), &Orphan::Truncated { size: 3000 }.encode());
        batch.put(&orphan_key(k.other), &Orphan::Truncated { size: 4000 }.encode());
    });
    expect(&k.storage, &[(P::Orphan, 4)]);
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (key, _) = entry_of(tree, k.inner, b"other");
        batch.delete(&key);
    });
    forge_inode(&k.storage, k.inner, |i| i.dir.as_mut().unwrap().count = 0);
    forge_inode(&k.storage, k.other, |i| i.links = 0);
    expect(&k.storage, &[(P::Orphan, 1)]);
    // With the mark nothing is wrong: it was unlinked while it was open.
    forge(&k.storage, |_, batch| batch.put(&orphan_key(k.other), &[1]));
    expect(&k.storage, &[]);
}

#[test]
fn records_that_mean_nothing() {
    let k = known();
    forge(&k.storage, |_, batch| {
        batch.put(&[0x70, 1, 2], b"what");
        batch.put(&[0x10; 3], b"what");
    });
    expect(&k.storage, &[(P::Key, 2)]);
    let k = known();
    forge(&k.storage, |_, batch| {
        batch.put(&inode_key(Ino::new(5, 5)), b"no inode");
        batch.put(&orphan_key(k.file), b"no orphan");
        batch.put(&xattr_key(k.file, 5), b"");
        batch.put(&extent_key(k.file, 1 << 20), &[9; 30]);
    });
    expect(&k.storage, &[(P::Record, 4)]);
    let k = known();
    forge(&k.storage, |_, batch| {
        batch.put(&xattr_key(Ino(12345), 5), b"");
        batch.put(&extent_key(Ino(u64::MAX), 1 << 20), &[9; 30]);
        batch.put(&extent_key(Ino(77), 1 << 20), &[9; 30]);
    });
    expect(&k.storage, &[(P::Stray, 3)]);
}

/// The extent of the known file, and its key.
fn extent_of(tree: &crate::tree::Tree, ino: Ino) -> (Vec<u8>, u64, Extent) {
    let (key, value) = records(tree, &extent_key(ino, 0)[..9]).remove(0);
    let end = extent_end(ino, &key).unwrap();
    let extent = Extent::decode(ino, end, &value).unwrap();
    (key, end, extent)
}

#[test]
fn blocks_of_two_owners() {
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (_, _, stolen) = extent_of(tree, k.file);
        let run = stolen.run().unwrap();
        let (key, _, mut extent) = extent_of(tree, k.other);
        let own = extent.run().unwrap();
        if let Extent::Blocks { start, .. } = &mut extent {
            *start = run.start;
        }
        batch.put(&key, &extent.encode());
        batch.free(own);
    });
    let report = look_at(&k.storage);
    repaired(&k.storage, &report);
    assert_eq!(report.counts, [(P::BlocksTwice, 1), (P::Data, 1)], "{report}");
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (key, _, mut extent) = extent_of(tree, k.other);
        let own = extent.run().unwrap();
        if let Extent::Blocks { start, .. } = &mut extent {
            *start = BlockNo(3);
        }
        batch.put(&key, &extent.encode());
        batch.free(own);
    });
    expect(&k.storage, &[(P::BlocksOutside, 1)]);
}

#[test]
fn extents_that_overlap() {
    let k = known();
    forge(&k.storage, |tree, batch| {
        let run = tree.reserve_blocks(1).unwrap();
        assert_eq!(run.len, 1);
        batch.allocate(run);
        let extent = Extent::Blocks { len: 4096, start: run.start, crcs: Vec::new(), shared: false };
        batch.put(&extent_key(k.file, 8192), &extent.encode());
    });
    forge_inode(&k.storage, k.file, |i| i.blocks += 1);
    expect(&k.storage, &[(P::Extent, 1)]);
    let k = known();
    forge(&k.storage, |_, batch| batch.put(&extent_key(k.dir, 3), &Extent::Inline(b"abc".to_vec()).encode()));
    expect(&k.storage, &[(P::Extent, 1)]);
}

#[test]
fn targets_that_are_cut_off() {
    let k = known();
    forge_inode(&k.storage, k.link, |i| i.size = 2999);
    expect(&k.storage, &[(P::Target, 1)]);
}

#[test]
fn attributes_at_wrong_places() {
    let find = |tree: &crate::tree::Tree, k: &Known, name: &[u8]| {
        let all = records(tree, &xattr_key(k.file, 0)[..9]);
        let mut decoded = all.into_iter().map(|(key, value)| (key, Xattr::decode(k.file, &value).unwrap()));
        decoded.find(|(_, x)| x.name == name).unwrap()
    };
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (key, xattr) = find(tree, &k, b"user.small");
        batch.delete(&key);
        batch.put(&xattr_key(k.file, 5 << 8), &xattr.encode());
    });
    expect(&k.storage, &[(P::XattrHash, 1)]);
    let k = known();
    forge(&k.storage, |tree, batch| {
        let (mut key, xattr) = find(tree, &k, b"user.small");
        *key.last_mut().unwrap() += 1;
        batch.put(&key, &xattr.encode());
    });
    forge_inode(&k.storage, k.file, |i| i.xattrs += 1);
    expect(&k.storage, &[(P::XattrTwice, 1)]);
    let k = known();
    forge(&k.storage, |tree, _| {
        let (_, xattr) = find(tree, &k, b"user.big");
        tree.write_blocks(xattr.run().unwrap().start, &[1; 4096]).unwrap();
    });
    expect(&k.storage, &[(P::XattrValue, 1)]);
}

#[test]
fn contents_that_have_rotted() {
    let k = known();
    forge(&k.storage, |tree, _| {
        let start = extent_of(tree, k.file).2.run().unwrap().start;
        tree.write_blocks(BlockNo(start.0 + 1), &[1; 4096]).unwrap();
    });
    let report = expect(&k.storage, &[(P::Data, 1)]);
    assert_eq!(report.problems[0].place.range, Some((4096, 8192)));
    assert!(!report.problems[0].safe && report.to_string().contains("with -y: mark it as lost"), "{report}");
    let told = &report.to_json()["problems"][0];
    assert_eq!((&told["from"], &told["to"]), (&4096.into(), &8192.into()));
}

#[test]
fn counts_of_shared_blocks() {
    let k = known();
    let fs = crate::fs::Fs::open(k.storage.clone(), &options()).unwrap();
    assert_eq!(fs.copy_range(k.file, 0, k.other, 0, 12_000, &ME).unwrap(), 12_000);
    fs.close().unwrap();
    expect(&k.storage, &[]);
    forge(&k.storage, |tree, batch| {
        let (key, value) = records(tree, &shared_key(0)[..1]).remove(0);
        let shared = Shared::decode(shared_end(&key).unwrap(), &value).unwrap();
        batch.put(&key, &Shared { count: 3, ..shared }.encode());
    });
    expect(&k.storage, &[(P::SharedCount, 2)]);
    // One of the two says that the blocks are its own.
    forge(&k.storage, |tree, batch| {
        let (key, _, extent) = extent_of(tree, k.file);
        let Extent::Blocks { len, start, crcs, .. } = extent else { panic!("inline") };
        batch.put(&key, &Extent::Blocks { len, start, crcs, shared: false }.encode());
        batch.delete(&records(tree, &shared_key(0)[..1]).remove(0).0);
    });
    expect(&k.storage, &[(P::BlocksTwice, 1)]);
    let k = known();
    forge(&k.storage, |tree, batch| {
        let run: Run = extent_of(tree, k.file).2.run().unwrap();
        batch.put(&shared_key(run.end().0), &Shared { len: 1, count: 2 }.encode());
    });
    expect(&k.storage, &[(P::SharedCount, 1)]);
    // Two that are one, and longer than any.
    let k = known();
    forge(&k.storage, |_, batch| {
        for n in 1..3 {
            let shared = Shared { len: u32::MAX, count: 2 };
            batch.put(&shared_key(n * u32::MAX as u64), &shared.encode());
        }
    });
    expect(&k.storage, &[(P::SharedCount, 2)]);
}
