//! A host that takes a write with `RWF_DSYNC` and does not sync, or cannot: FUSE with direct I/O.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use super::Aligned;
use crate::storage::{FileStorage, OpenMode, Storage};

/// A folder with one file, which forgets what is written.
#[derive(Clone, Default)]
struct OneFile {
    /// How often it was to be synced.
    syncs: Arc<AtomicU64>,
    /// Whether the next sync is to fail.
    fails: Arc<AtomicBool>,
}

fn attributes(ino: INodeNo) -> FileAttr {
    let is_root = ino == INodeNo::ROOT;
    FileAttr {
        ino,
        size: 1 << 20,
        blocks: 2048,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_root { FileType::Directory } else { FileType::RegularFile },
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&Duration::MAX, &attributes(INodeNo(2)), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::MAX, &attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        match self.fails.swap(false, Ordering::SeqCst) {
            true => reply.error(Errno::EIO),
            false => reply.ok(),
        }
    }
}

/// Mounts such a folder and opens its file. Needs root, and FUSE.
fn with_one_file(test: impl FnOnce(&OneFile, &FileStorage)) {
    let folder = tempfile::tempdir().unwrap();
    let host = OneFile::default();
    let session = fuser::spawn_mount(host.clone(), folder.path(), &fuser::Config::default()).unwrap();
    let storage = FileStorage::open(folder.path().join("image.db"), OpenMode::ReadWrite).unwrap();
    test(&host, &storage);
    drop(storage);
    // A worker that was asking for more when the mount went ends with an error.
    let _ = session.umount_and_join();
}

/// What was committed would be in the memory of a server, of a hypervisor, or of another daemon:
/// `cargo test -- --ignored durable_write`.
#[test]
#[ignore = "needs root and FUSE"]
fn a_durable_write_to_a_host_that_is_not_known_to_keep_it_is_synced() {
    with_one_file(|host, storage| {
        let pages = Aligned::filled(4096, 0, 1);
        for (expected, bytes) in [pages.bytes(), b"short", pages.bytes()].into_iter().enumerate() {
            storage.write_durable_at(65536, bytes).unwrap();
            assert_eq!(host.syncs.load(Ordering::SeqCst), expected as u64 + 1);
        }
    });
}

/// The host has told its error, drops what it could not write, and would call the next sync a success.
#[test]
#[ignore = "needs root and FUSE"]
fn a_sync_or_durable_write_that_fails_is_the_last() {
    for durable in [false, true] {
        with_one_file(|host, storage| {
            let write = |bytes: &[u8]| storage.write_durable_at(65536, bytes);
            storage.sync().unwrap();
            write(b"good").unwrap();
            host.fails.store(true, Ordering::SeqCst);
            let failed = if durable { write(b"lost") } else { storage.sync() };
            assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
            let syncs = host.syncs.load(Ordering::SeqCst);
            assert!(storage.sync().is_err() && write(b"later").is_err() && storage.sync().is_err());
            assert_eq!(host.syncs.load(Ordering::SeqCst), syncs);
        });
    }
}
