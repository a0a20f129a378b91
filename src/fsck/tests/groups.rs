//! Numbers of groups that come to their end, or that two directories have.

use std::collections::BTreeSet;

use super::support::*;
use super::*;
use crate::fs::format::*;
use crate::fs::{Cookie, Fs, FsError, Ino, New, ROOT};
use crate::storage::MemStorage;
use ProblemKind as P;

/// The last group that there can be.
const LAST: u64 = GROUP_MAX - 1;

/// All names below a directory, with their inodes.
fn names(fs: &Fs, dir: Ino) -> Vec<(Ino, String)> {
    let mut found = Vec::new();
    fs.read_dir(dir, Cookie(2), |_, ino, _, name| {
        found.push((ino, String::from_utf8_lossy(name).into_owned()));
        true
    })
    .unwrap();
    found
}

fn make(fs: &Fs, dir: Ino, name: &str, new: New<'_>) -> std::result::Result<Ino, FsError> {
    let ino = fs.create(dir, name.as_bytes(), new, 0o755, 0, &ME)?.ino;
    fs.release(ino, 1)?;
    Ok(ino)
}

fn repair(storage: &Arc<MemStorage>) -> Report {
    let all = Options { repair: Repair::All, scrub: true, force: true, progress: None };
    let report = check(storage.clone(), &all).unwrap();
    assert_eq!(report.left, 0, "{report}");
    let second = check(storage.clone(), &all).unwrap();
    assert!(second.is_clean(), "{report}\n{second}");
    report
}

/// A directory gives the last group, so that the counter is at its end, and repairs need more groups.
#[test]
fn names_are_kept_when_the_numbers_of_groups_have_come_to_their_end() {
    let k = known();
    forge(&k.storage, |tree, batch| {
        let mut dir = Inode::decode(k.dir, &tree.get(&inode_key(k.dir)).unwrap().unwrap()).unwrap();
        dir.dir.as_mut().unwrap().births = LAST;
        batch.put(&inode_key(k.dir), &dir.encode());
        // Its names lose their directory, and `other` its directory and its name.
        batch.delete(&inode_key(k.inner));
        let stray = Entry { ino: k.file, kind: Kind::File, name: b"stray".to_vec() };
        let hash = crate::fs::name_hash(&tree.hash_seed(), b"stray");
        batch.put(&entry_key(LAST, Cookie(hash << 8)), &stray.encode());
    });
    let report = repair(&k.storage);
    assert!(report.count(P::GroupCounter) > 0 && report.count(P::EntryStray) > 0, "{report}");
    let fs = Fs::open(k.storage.clone(), &options()).unwrap();
    let home = fs.lookup(ROOT, b"lost+found").unwrap();
    let found = names(&fs, home);
    assert_eq!(found.len(), 2, "{found:?}");
    let below: BTreeSet<String> =
        found.iter().flat_map(|(dir, _)| names(&fs, *dir)).map(|(_, name)| name).collect();
    assert_eq!(below.into_iter().collect::<Vec<_>>(), ["other", "stray"]);
    // There are no numbers for new directories, and that is said; all else goes on.
    assert!(matches!(make(&fs, ROOT, "new", New::Directory), Err(FsError::NoSpace)));
    make(&fs, ROOT, "new", New::File).unwrap();
    make(&fs, k.dir, "new", New::File).unwrap();
    make(&fs, home, "new", New::File).unwrap();
    fs.close().unwrap();
    assert!(look_at(&k.storage).is_clean());
}

/// A number that a repair gives to `lost+found` is not that of the names that are to be adopted.
#[test]
fn names_without_a_directory_are_not_mixed_with_what_is_found() {
    let k = known();
    let mut group = 0;
    forge(&k.storage, |tree, batch| {
        let next = tree.get(&state_key()).unwrap().unwrap();
        group = u64::from_be_bytes(next[..].try_into().unwrap());
        let stray = Entry { ino: k.file, kind: Kind::File, name: b"stray".to_vec() };
        let hash = crate::fs::name_hash(&tree.hash_seed(), b"stray");
        batch.put(&entry_key(group, Cookie(hash << 8)), &stray.encode());
    });
    let report = repair(&k.storage);
    assert!(report.count(P::GroupCounter) > 0 && report.count(P::EntryStray) > 0, "{report}");
    let fs = Fs::open(k.storage.clone(), &options()).unwrap();
    let found = names(&fs, fs.lookup(ROOT, b"lost+found").unwrap());
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].1, format!("#group-{group}"));
    assert_eq!(names(&fs, found[0].0), [(k.file, "stray".to_string())]);
}

/// Three directories give numbers of one group, with counters that would give them again.
#[test]
fn directories_with_one_birth_group_do_not_give_a_number_twice() {
    let k = known();
    let mut third = Ino(0);
    {
        let fs = Fs::open(k.storage.clone(), &options()).unwrap();
        third = make(&fs, k.dir, "third", New::Directory).unwrap_or(third);
        fs.close().unwrap();
    }
    forge(&k.storage, |tree, batch| {
        let read = |ino| Inode::decode(ino, &tree.get(&inode_key(ino)).unwrap().unwrap()).unwrap();
        let births = read(k.dir).dir.unwrap().births;
        for (ino, next) in [(k.inner, 1), (third, 40)] {
            let mut inode = read(ino);
            let dir = inode.dir.as_mut().unwrap();
            (dir.births, dir.next) = (births, next);
            batch.put(&inode_key(ino), &inode.encode());
        }
    });
    let report = repair(&k.storage);
    assert_eq!(report.count(P::DirectoryGroup), 2, "{report}");
    let fs = Fs::open(k.storage.clone(), &options()).unwrap();
    let mut born = BTreeSet::new();
    for n in 0..30 {
        for dir in [k.dir, k.inner, third] {
            let name = format!("new {n}");
            assert!(
                born.insert(make(&fs, dir, &name, New::File).unwrap()),
                "{name} has another one's number"
            );
        }
    }
    assert!([k.dir, k.inner, k.file, k.other, k.link, third].iter().all(|old| !born.contains(old)));
    fs.close().unwrap();
    assert!(look_at(&k.storage).is_clean());
}
