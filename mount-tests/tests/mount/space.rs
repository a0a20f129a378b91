//! Filesystems that are full.

use crate::data::{open, read_at};
use btfs_mount_tests::cases;
use btfs_mount_tests::mount::Mount;
use btfs_mount_tests::random::Random;
use btfs_mount_tests::runner::Case;
use btfs_mount_tests::sys;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

pub fn cases() -> Vec<Case> {
    cases![
        writes_beyond_the_space_fail_and_keep_what_was_there,
        a_write_with_room_for_its_beginning_is_a_short_one,
    ]
}

/// What statfs says that an ordinary user may still write.
fn free_bytes(mount: &Mount) -> u64 {
    let space = sys::statvfs(&mount.point).expect("statvfs");
    space.f_bavail * space.f_frsize
}

fn writes_beyond_the_space_fail_and_keep_what_was_there(mount: &mut Mount) {
    // Small, so that it is soon full.
    mount.replace_image("64M");
    mount.mount();
    let kept = Random::new(7).bytes(1 << 20);
    fs::write(mount.path("kept"), &kept).expect("write");
    let free = free_bytes(mount);
    let mut fill = File::create(mount.path("fill")).expect("create");
    let mut written = 0u64;
    let error = loop {
        match fill.write(&kept) {
            Ok(more) => written += more as u64,
            Err(error) => break error,
        }
        assert!(written < 200 << 20, "200 MiB fit into 64");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(written >= free / 100 * 98, "only {written} of {free} bytes could be written");
    assert_eq!(fill.metadata().expect("stat").len(), written, "size and what write said");
    fill.sync_all().expect("fsync when full: what was accepted has its place");
    drop(fill);
    for number in 0..100_000 {
        match File::create(mount.path(format!("small-{number}"))) {
            Ok(_) => assert!(number < 99_999, "no end of inodes"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                break;
            }
        }
    }
    assert!(fs::read(mount.path("kept")).expect("read") == kept);
    mount.remount();
    assert!(fs::read(mount.path("kept")).expect("read") == kept, "after a remount of the full filesystem");
    let filled = open(&mount.path("fill"));
    assert_eq!(filled.metadata().expect("stat").len(), written);
    for piece in 0..written >> 20 {
        assert!(read_at(&filled, piece << 20, 1 << 20) == kept, "MiB {piece} of what was accepted");
    }
    // On a full filesystem: overwriting, rename, truncate, and what is deleted can be used at once.
    for n in 0..50 {
        filled
            .write_all_at(&kept[..4096], (n * 1_234_567) % written / 4096 * 4096)
            .expect("overwriting on a full filesystem");
    }
    filled.write_all_at(&kept, 1 << 20).expect("overwriting a MiB on a full filesystem");
    filled.sync_all().expect("fsync on a full filesystem");
    fs::rename(mount.path("fill"), mount.path("renamed")).expect("rename on a full filesystem");
    filled.set_len(written - 10_000).expect("truncate on a full filesystem");
    drop(filled);
    fs::remove_file(mount.path("renamed")).expect("unlink on a full filesystem");
    let again = File::create(mount.path("again")).expect("create");
    for piece in 0..(written / 100 * 95) >> 20 {
        again
            .write_all_at(&kept, piece << 20)
            .unwrap_or_else(|e| panic!("MiB {piece} of {written} deleted bytes: {e}"));
    }
    again.sync_all().expect("fsync");
}

fn a_write_with_room_for_its_beginning_is_a_short_one(mount: &mut Mount) {
    mount.replace_image("64M");
    mount.mount();
    let piece = sys::Map::memory(1 << 20).expect("aligned memory");
    let path = mount.path("fill");
    let fill = |flags: i32| {
        let mut file =
            OpenOptions::new().append(true).create(true).custom_flags(flags).open(&path).expect("open");
        let mut short = 0;
        loop {
            match file.write(piece.bytes()) {
                Ok(n) if n < piece.bytes().len() => short += n,
                Ok(_) => {}
                Err(e) => return (e.raw_os_error(), short),
            }
        }
    };
    assert_eq!(fill(0).0, Some(libc::ENOSPC));
    let full = fs::metadata(&path).expect("stat").len();
    let room = 600 << 10;
    let make_room = || File::options().write(true).open(&path).expect("open").set_len(full - room);
    make_room().expect("truncate");
    let (error, short) = fill(0);
    assert_eq!(error, Some(libc::ENOSPC));
    assert!(short >= 256 << 10, "only {short} bytes where there is room for {room}");
    // Past the cache the kernel takes a short write for an I/O error.
    make_room().expect("truncate");
    assert_eq!(fill(libc::O_DIRECT).0, Some(libc::ENOSPC));
}
