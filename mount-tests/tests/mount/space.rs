//! Filesystems that are full, and the daemon's memory.

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
        close_and_fsync_tell_what_writeback_had_no_room_for.options("writeback=on"),
        the_daemon_keeps_to_its_memory.options("cache_size=16M"),
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
    // ext4 gives what was cut off back when its journal is committed, and stops short of the last block.
    mount.only_btfs();
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

fn close_and_fsync_tell_what_writeback_had_no_room_for(mount: &mut Mount) {
    mount.only_btfs();
    mount.replace_image("64M");
    mount.mount();
    let piece = Random::new(3).bytes(1 << 20);
    // The kernel takes them all before it knows that they do not fit; where it hands some on early, write(2) may tell as well.
    let write = |name: &str, pieces: usize| {
        let mut file = File::create(mount.path(name)).expect("create");
        let refused = (0..pieces).find_map(|_| file.write_all(&piece).err());
        assert!(
            refused.as_ref().is_none_or(|e| e.raw_os_error() == Some(libc::ENOSPC)),
            "{name}: {refused:?}"
        );
        file
    };
    let synced = write("synced", 100).sync_all();
    assert_eq!(synced.expect_err("100 MiB fit into 64").raw_os_error(), Some(libc::ENOSPC));
    let closed = sys::close(write("closed", 8));
    assert_eq!(closed.expect_err("8 MiB fit where there is no room").raw_os_error(), Some(libc::ENOSPC));
    // What has room is stored without an error.
    fs::remove_file(mount.path("synced")).expect("unlink");
    let mut file = File::create(mount.path("fits")).expect("create");
    file.write_all(&piece).expect("write");
    sys::close(file).expect("close");
    mount.remount();
    assert!(fs::read(mount.path("fits")).expect("read") == piece);
}

/// The greatest amount of memory, in bytes, that the daemon had so far.
fn peak_memory(mount: &Mount) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon())).expect("the daemon's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

fn the_daemon_keeps_to_its_memory(mount: &mut Mount) {
    mount.only_btfs();
    let before = peak_memory(mount);
    let mut random = Random::new(11);
    // Many inodes, with contents in blocks, and in a tree that is several times as large as the cache.
    let contents = random.bytes(5000);
    const FILES: usize = 24_000;
    for number in 0..FILES {
        let directory = mount.path(format!("d{}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir(&directory).expect("mkdir");
            // However slow the disk is: what it has not taken yet of the log is in memory as well.
            File::open(&directory).and_then(|directory| directory.sync_all()).expect("fsync");
        }
        let length = if number % 4 == 0 { contents.len() } else { 2000 };
        fs::write(directory.join(format!("f{number}")), &contents[..length]).expect("write");
    }
    // A file of many pieces; large writes and reads side by side.
    let large = mount.path("large");
    let mebibyte = random.bytes(1 << 20);
    let mut file = File::create(&large).expect("create");
    (0..128).for_each(|_| file.write_all(&mebibyte).expect("write"));
    for _ in 0..5000 {
        file.write_all_at(&mebibyte[..4096], random.below(128 << 8) * 4096).expect("overwrite");
    }
    mount.shell().run(
        "for n in 1 2 3 4 5 6 7 8; do dd if=large of=copy-$n bs=4M count=8 status=none & done; wait
         tar -cf - . | cat > /dev/null
         rm -rf d*",
    );
    // As the README says: the cache, writes under way, each thread that serves, and the inodes; and some for the log and the
    // allocator.
    let threads = std::thread::available_parallelism().expect("processors").get().clamp(2, 16) as u64;
    let inodes = FILES as u64 * 307;
    let bound = (16 << 20) + (4 << 20) + threads * (8 << 20) + inodes + (16 << 20);
    let used = peak_memory(mount) - before;
    assert!(used <= bound, "{} MiB used where {} are stated", used >> 20, bound >> 20);
}
