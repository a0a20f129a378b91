//! Images that must not be written.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::storage::{Fault, FaultStorage, FileStorage, Image, OpKind, OpenMode};

fn read_only() -> Options {
    Options { read_only: true, ..Options::default() }
}

fn key(n: u32) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

/// Splits, merges, freed blocks, and a log that has gone round; half of it before a checkpoint.
fn work(tree: &Tree) {
    for n in 0..600u32 {
        let mut batch = Batch::new();
        batch.put(&key(n * 7 % 500), &[n as u8; 1200]);
        if n > 300 {
            batch.delete(&key(n % 250));
        }
        tree.apply(&batch).unwrap();
        if n == 300 {
            tree.checkpoint().unwrap();
        }
    }
    tree.commit_all().unwrap();
}

fn contents(tree: &Tree) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut records = Vec::new();
    let mut cursor = tree.cursor();
    while cursor.next().unwrap() {
        records.push((cursor.key().to_vec(), cursor.value().to_vec()));
    }
    records
}

fn is_refused<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::ReadOnly))
}

fn refuses_changes(tree: &Tree) {
    let mut batch = Batch::new();
    batch.put(b"new", b"");
    assert!(is_refused(tree.apply(&batch)));
    let mut batch = Batch::new();
    batch.delete(&key(499));
    assert!(is_refused(tree.apply(&batch)));
    assert!(is_refused(tree.reserve_blocks(1)));
    let first = tree.size() / BLOCK_SIZE as u64 - 1;
    assert!(is_refused(tree.write_blocks(BlockNo(first), &[0; BLOCK_SIZE])));
    assert!(is_refused(tree.bulk_load([(b"a", b"b")])));
    assert!(is_refused(tree.trim(1)));
    assert!(tree.commit_all().is_ok() && tree.checkpoint().is_ok(), "there is nothing to make durable");
}

/// How this process has opened a file.
fn access_modes(path: &Path) -> Vec<i32> {
    let mut modes = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        // Other tests open and close descriptors meanwhile.
        if std::fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
            let info = std::fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            modes.push(i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_ACCMODE);
        }
    }
    assert!(!modes.is_empty());
    modes
}

/// A crashed image on a medium that nobody may write: all that was acknowledged can be read, and the file stays bit for
/// bit what it was.
#[test]
fn a_crashed_image_can_be_read_without_changing_a_byte_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let storage = Arc::new(FileStorage::create(&path, false).unwrap());
    let format = FormatOptions { size: 16 << 20, log_size: Some(2 << 20), ..FormatOptions::default() };
    Tree::format(&*storage, &format).unwrap();
    let tree = Tree::open(storage, &quiet(64)).unwrap();
    work(&tree);
    drop(tree);
    let before = std::fs::read(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();

    let recovered = Arc::new(MemStorage::from_image(Image::from_bytes(&before)));
    let recovered = Tree::open(recovered, &quiet(64)).unwrap();
    assert!(!recovered.recovery().clean && recovered.recovery().redone > 0);
    let expected = contents(&recovered);

    // Two readers at the same time, one of them with hardly any memory: its recovery has to put pages aside.
    for cache_size in [0, 64 << 20] {
        let open = || {
            let storage = Arc::new(FileStorage::open(&path, OpenMode::ReadOnly).unwrap());
            Tree::open(storage, &Options { cache_size, ..read_only() }).unwrap()
        };
        let (tree, other) = (open(), open());
        assert!(access_modes(&path).iter().all(|mode| *mode == libc::O_RDONLY));
        assert!(tree.is_read_only() && !tree.recovery().clean);
        assert_eq!(tree.recovery().redone, recovered.recovery().redone);
        assert!(contents(&tree) == expected && contents(&other) == expected);
        refuses_changes(&tree);
        tree.check().unwrap();
        assert_eq!(tree.free_blocks(), recovered.free_blocks());
        tree.close().unwrap();
        drop(other);
        assert!(std::fs::read(&path).unwrap() == before, "the image was changed");
    }
}

/// An image that was closed in order needs nothing but reads, and no copy in memory.
#[test]
fn a_closed_image_is_only_read() {
    let storage = image(16 << 20, 512 << 10);
    let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
    work(&tree);
    let expected = contents(&tree);
    tree.close().unwrap();
    let storage = Arc::new(FaultStorage::new(MemStorage::from_image(storage.image())));
    let tree = Tree::open(storage.clone(), &read_only()).unwrap();
    assert!(tree.recovery().clean);
    assert!(contents(&tree) == expected);
    refuses_changes(&tree);
    tree.close().unwrap();
    let counts = storage.counts();
    for kind in OpKind::ALL.into_iter().filter(|kind| !matches!(kind, OpKind::Read | OpKind::ReadAhead)) {
        assert_eq!(counts.calls(kind), 0, "{kind:?}");
    }
    let tree = Tree::open(storage, &quiet(64)).unwrap();
    assert!(tree.recovery().clean, "the next opener has nothing to recover");
}

/// A remount: what was acknowledged is there, and whoever takes the image away afterwards has one that was closed in order.
#[test]
fn after_a_remount_read_only_nothing_is_lost_and_nothing_more_is_written() {
    let storage = Arc::new(FaultStorage::new(MemStorage::from_image(image(16 << 20, 512 << 10).image())));
    let options = Options { background: true, ..quiet(64) };
    let tree = Tree::open(storage.clone(), &options).unwrap();
    let applied = [const { AtomicU64::new(0) }; 3];
    for round in 0..10 {
        std::thread::scope(|scope| {
            let threads = [0u8, 1, 2].map(|t| {
                let (tree, applied) = (&tree, &applied[t as usize]);
                scope.spawn(move || {
                    loop {
                        let n = applied.load(Ordering::SeqCst);
                        let mut batch = Batch::new();
                        batch.put(
                            &[&[t][..], &(n % 300).to_be_bytes()].concat(),
                            &n.to_be_bytes().repeat(100),
                        );
                        match tree.apply(&batch) {
                            Ok(_) => applied.store(n + 1, Ordering::SeqCst),
                            Err(Error::ReadOnly) => return,
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            });
            std::thread::sleep(Duration::from_millis(5 * (round % 4)));
            tree.set_read_only(true).unwrap();
            let written = storage.counts().bytes_written();
            let copy = storage.inner().image();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            refuses_changes(&tree);
            tree.set_read_only(true).unwrap();
            assert_eq!(storage.counts().bytes_written(), written, "something was written afterwards");
            let copy = Tree::open(Arc::new(MemStorage::from_image(copy)), &read_only()).unwrap();
            assert!(copy.recovery().clean);
            assert!(contents(&copy) == contents(&tree));
            for (t, applied) in applied.iter().enumerate() {
                let n = applied.load(Ordering::SeqCst);
                if n > 0 {
                    let key = [&[t as u8][..], &((n - 1) % 300).to_be_bytes()].concat();
                    assert_eq!(tree.get(&key).unwrap().unwrap()[..8], (n - 1).to_be_bytes());
                }
            }
        });
        tree.check().unwrap();
        tree.set_read_only(false).unwrap();
        let mut batch = Batch::new();
        batch.put(b"round", &round.to_be_bytes());
        tree.commit(tree.apply(&batch).unwrap()).unwrap();
        // The power goes now: the image must not pass for one that was closed.
        let copy = Arc::new(MemStorage::from_image(storage.inner().image()));
        let copy = Tree::open(copy, &quiet(64)).unwrap();
        assert!(!copy.recovery().clean);
        assert_eq!(copy.get(b"round").unwrap().unwrap(), round.to_be_bytes());
        copy.check().unwrap();
    }
    tree.set_read_only(true).unwrap();
    tree.close().unwrap();
    assert!(Tree::open(storage, &quiet(64)).unwrap().recovery().clean);
}

#[test]
fn an_image_that_was_opened_read_only_stays_so() {
    let tree = Tree::open(image(16 << 20, 512 << 10), &read_only()).unwrap();
    tree.set_read_only(true).unwrap();
    assert!(is_refused(tree.set_read_only(false)));
    refuses_changes(&tree);
}

#[test]
fn a_remount_read_only_that_cannot_write_says_so_and_changes_stay_refused() {
    for nth in 0..8 {
        let storage = Arc::new(FaultStorage::new(MemStorage::from_image(image(16 << 20, 512 << 10).image())));
        let tree = Tree::open(storage.clone(), &quiet(64)).unwrap();
        let mut batch = Batch::new();
        batch.put(b"key", b"value");
        tree.apply(&batch).unwrap();
        storage.arm(Fault::nth(&[OpKind::Write, OpKind::WriteDurable, OpKind::Sync], nth));
        let result = tree.set_read_only(true);
        if storage.disarm() == 0 {
            assert!(nth > 3 && result.is_ok());
            return;
        }
        assert!(matches!(result, Err(Error::Io { .. })));
        assert!(tree.set_read_only(true).is_err() && tree.set_read_only(false).is_err());
        assert!(tree.apply(&batch).is_err());
        assert_eq!(tree.get(b"key").unwrap().unwrap(), b"value", "reading goes on");
    }
    panic!("every write failed, and there is no end of them");
}
