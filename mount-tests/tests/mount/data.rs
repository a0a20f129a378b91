//! What is in files: every way to write, read, shorten and lengthen them, alone and at once.

use btfs_mount_tests::cases;
use btfs_mount_tests::mount::{Mount, Peer, wait_until};
use btfs_mount_tests::random::Random;
use btfs_mount_tests::runner::Case;
use btfs_mount_tests::sys::{self, Map};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub fn cases() -> Vec<Case> {
    cases![
        a_copy_of_a_file_that_is_still_being_written_has_its_data,
        an_archive_of_a_file_that_is_still_being_written_has_its_data,
        with_writeback_an_archive_of_a_file_that_is_still_being_written_has_its_data.options("writeback=on"),
        a_copy_of_a_file_that_is_still_mapped_has_what_was_stored,
        a_file_written_later_is_never_older,
        a_file_renamed_over_another_before_its_close_is_whole,
        cutting_inside_a_block_leaves_no_old_bytes,
        a_huge_sparse_file_cut_by_a_daemon_that_dies_reads_zeros,
        a_huge_dense_file_cut_by_a_daemon_that_dies_reads_zeros,
        a_reader_never_sees_bytes_of_another_file,
        what_was_written_through_any_descriptor_is_durable_after_fsync,
        an_unlinked_open_file_stays_readable_and_writable,
        a_shared_mapping_writes_to_the_file_and_a_private_one_does_not,
        direct_reads_and_writes_agree_with_cached_ones,
        seek_finds_data_and_holes,
        copy_file_range_copies_what_it_says,
        a_file_of_16_tib_works_at_its_end,
        appending_processes_never_overwrite_each_other,
        locks_hold_between_processes,
        random_writes_cuts_and_punches_match_a_model,
    ]
}

/// For reading and writing, made if need be.
pub fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

pub fn read_at(file: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    file.read_exact_at(&mut bytes, offset).unwrap_or_else(|e| panic!("{length} bytes at {offset}: {e}"));
    bytes
}

fn must_be_zero(file: &File, range: std::ops::Range<u64>, what: &str) {
    let mut at = range.start;
    while at < range.end {
        let bytes = read_at(file, at, (range.end - at).min(1 << 20) as usize);
        if let Some(wrong) = bytes.iter().position(|byte| *byte != 0) {
            panic!("{what}: at {} there is {:#x}, not zero", at + wrong as u64, bytes[wrong]);
        }
        at += bytes.len() as u64;
    }
}

fn a_copy_of_a_file_that_is_still_being_written_has_its_data(mount: &mut Mount) {
    let bytes = Random::new(1).bytes(300_000);
    for (number, length) in [1, 4096, 5000, 300_000].into_iter().enumerate() {
        let mut file = File::create(mount.path(format!("open-{number}"))).expect("create");
        file.write_all(&bytes[..length]).expect("write");
        // By another process, while the descriptor is open: `cp` looks for holes first.
        mount.shell().run(&format!(
            "cp open-{number} copy-{number}; cp --reflink=never --sparse=always open-{number} $SCRATCH/"
        ));
        assert!(
            fs::read(mount.path(format!("copy-{number}"))).expect("read") == bytes[..length],
            "{length} bytes"
        );
        let outside = fs::read(mount.scratch.join(format!("open-{number}"))).expect("read");
        assert!(outside == bytes[..length], "{length} bytes, to another filesystem");
        drop(file);
    }
    mount.remount();
    assert!(fs::read(mount.path("copy-3")).expect("read") == bytes, "after a remount");
}

/// tar(1) does not read a file that has contents and no blocks. What writes is a process that neither closes its descriptor nor starts
/// others, which would close it: then the kernel would hand the contents over.
fn an_archive_of_a_file_that_is_still_being_written_has_its_data(mount: &mut Mount) {
    mount.shell().run(
        r#"
        mkfifo $SCRATCH/pipe
        for length in 1 600 5000 300000; do
            dd if=$SCRATCH/pipe of=log oflag=append bs=64k status=none & exec 5>$SCRATCH/pipe
            for round in 1 2; do
                head -c $length /dev/urandom > $SCRATCH/part; cat $SCRATCH/part >&5
                until [ $(stat -c %s log) = $length ]; do sleep 0.01; done
                tar -S -cf $SCRATCH/log.tar log; tar -xf $SCRATCH/log.tar -C $SCRATCH
                cmp $SCRATCH/part $SCRATCH/log
                truncate -s 0 log
            done
            exec 5>&-; wait; rm log
        done
        "#,
    );
}

fn with_writeback_an_archive_of_a_file_that_is_still_being_written_has_its_data(mount: &mut Mount) {
    an_archive_of_a_file_that_is_still_being_written_has_its_data(mount);
}

fn a_copy_of_a_file_that_is_still_mapped_has_what_was_stored(mount: &mut Mount) {
    const LENGTH: usize = 1 << 20;
    let bytes = Random::new(2).bytes(LENGTH);
    for (name, allocated) in [("sparse", false), ("allocated", true)] {
        let file = open(&mount.path(name));
        if allocated {
            sys::fallocate(&file, 0, 0, LENGTH as u64).expect("fallocate");
        } else {
            file.set_len(LENGTH as u64).expect("size");
        }
        let mut map = sys::Map::shared(&file, LENGTH).expect("mmap");
        // Every other stretch: `cp` looks for data and holes, and neither may be missed.
        let mut wanted = vec![0; LENGTH];
        for at in (0..LENGTH).step_by(128 << 10) {
            let stored = at..at + (64 << 10);
            map.bytes_mut()[stored.clone()].copy_from_slice(&bytes[stored.clone()]);
            wanted[stored.clone()].copy_from_slice(&bytes[stored]);
        }
        assert_eq!(sys::seek(&file, 0, libc::SEEK_DATA).expect("data"), 0);
        mount.shell().run(&format!("cp {name} {name}.copy; cp --reflink=never {name} $SCRATCH/"));
        for copy in [mount.path(format!("{name}.copy")), mount.scratch.join(name)] {
            assert!(fs::read(&copy).expect("read") == wanted, "{}", copy.display());
        }
        if allocated {
            // ext4 takes all that is allocated for data once some of it is in its cache.
            mount.only_btfs();
        }
        // A hole begins behind what has been stored, also between two pieces that are known already.
        let seek = |at, whence| sys::seek(&file, at, whence).expect("seek");
        map.bytes_mut()[100_000] = 1;
        assert_eq!(seek(98_304, libc::SEEK_HOLE), 102_400);
        map.bytes_mut()[64 << 10..128 << 10].fill(2);
        assert_eq!(seek(0, libc::SEEK_HOLE), 192 << 10);
        map.bytes_mut()[900_000] = 3;
        assert_eq!(seek(860_000, libc::SEEK_DATA), 900_000 / 4096 * 4096);
        map.bytes_mut()[200_000] = 4;
        wanted[64 << 10..128 << 10].fill(2);
        [(900_000, 3), (200_000, 4)].into_iter().for_each(|(at, byte)| wanted[at] = byte);
        mount.shell().run(&format!("cp {name} {name}.again"));
        assert!(fs::read(mount.path(format!("{name}.again"))).expect("read") == wanted);
    }
}

fn a_file_written_later_is_never_older(mount: &mut Mount) {
    let time = |name: &str| {
        let facts = fs::metadata(mount.path(name)).expect("stat");
        (facts.mtime(), facts.mtime_nsec())
    };
    let mut before = (0, 0);
    for round in 0..300 {
        let name = format!("target-{round}");
        match round % 3 {
            0 => fs::write(mount.path(&name), "made").expect("write"),
            1 => drop(File::create(mount.path(&name)).expect("create")),
            _ => fs::create_dir(mount.path(&name)).expect("mkdir"),
        }
        assert!(time(&name) >= before, "{name} is older than the one before: make would not rebuild");
        before = time(&name);
    }
    mount.shell().run(
        "printf 'out: in\\n\\tcat in > out; echo built >> log\\n' > Makefile
         for i in 1 2 3 4 5; do sleep 0.02; echo $i > in; sleep 0.02; make -s; make -s; cmp in out; done; [ $(wc -l < log) = 5 ]",
    );
}

fn a_file_renamed_over_another_before_its_close_is_whole(mount: &mut Mount) {
    for round in 0..50u8 {
        let content = vec![round + 1; 10_000];
        let mut file = File::create(mount.path("new")).expect("create");
        file.write_all(&content[..9_000]).expect("write");
        fs::rename(mount.path("new"), mount.path("settings")).expect("rename");
        assert!(fs::read(mount.path("settings")).expect("read") == content[..9_000], "round {round}");
        file.write_all(&content[9_000..]).expect("write after the rename");
        drop(file);
        assert!(fs::read(mount.path("settings")).expect("read") == content, "round {round}, after the close");
    }
    mount.remount();
    assert!(fs::read(mount.path("settings")).expect("read") == [50; 10_000], "after a remount");
}

fn cutting_inside_a_block_leaves_no_old_bytes(mount: &mut Mount) {
    let bytes = vec![0xabu8; 20_000];
    for (cut, grown) in
        [(1u64, 20_000u64), (100, 4096), (4095, 4097), (4096, 9000), (5000, 300_000), (19_999, 20_001)]
    {
        let path = mount.path(format!("{cut}-{grown}"));
        for reopened in [false, true] {
            fs::write(&path, &bytes).expect("write");
            let mut file = open(&path);
            file.set_len(cut).expect("cut");
            if reopened {
                file.sync_all().expect("fsync");
                drop(file);
                file = open(&path);
            }
            file.set_len(grown).expect("grow");
            must_be_zero(&file, cut..grown, "grown by ftruncate");
            // And grown by a write further on.
            fs::write(&path, &bytes).expect("write");
            file.set_len(cut).expect("cut");
            file.write_at(b"x", grown).expect("write");
            must_be_zero(&file, cut..grown, "grown by a write");
        }
    }
    mount.remount();
    for (cut, grown) in [(1u64, 20_000u64), (5000, 300_000), (19_999, 20_001)] {
        let file = open(&mount.path(format!("{cut}-{grown}")));
        assert!(read_at(&file, 0, cut as usize) == bytes[..cut as usize], "what was not cut");
        must_be_zero(&file, cut..grown, "after a remount");
    }
}

/// Cuts `victim` to `cut` while the daemon is killed; afterwards it must be as long as before or as after the cut,
/// and what was cut must not come back.
fn cut_and_die(mount: &mut Mount, full: u64, cut: u64, pause: Duration) {
    let path = mount.path("victim");
    let cutter = sys::fork(|| {
        sys::truncate(&path, cut).ok();
    });
    std::thread::sleep(pause);
    mount.kill();
    sys::wait(cutter);
    mount.recover();
    let file = open(&mount.path("victim"));
    let length = file.metadata().expect("stat").len();
    assert!(length == full || length == cut, "{length} is neither {full} nor {cut}");
    file.set_len(cut).expect("cut to the end");
    file.set_len(full).expect("extend");
}

fn a_huge_sparse_file_cut_by_a_daemon_that_dies_reads_zeros(mount: &mut Mount) {
    const FULL: u64 = 1 << 40;
    for milliseconds in [0, 1, 5, 30] {
        let file = open(&mount.path("victim"));
        file.set_len(FULL).expect("a sparse file of 1 TiB");
        for island in 0..3000u64 {
            file.write_at(&[0xcd; 5000], island * (FULL / 3000)).expect("an island");
        }
        file.sync_all().expect("fsync");
        drop(file);
        cut_and_die(mount, FULL, 123, Duration::from_millis(milliseconds));
        let file = open(&mount.path("victim"));
        assert_eq!(
            sys::seek(&file, 4096, libc::SEEK_DATA).err().and_then(|e| e.raw_os_error()),
            Some(libc::ENXIO)
        );
        for island in 1..3000u64 {
            must_be_zero(
                &file,
                island * (FULL / 3000)..island * (FULL / 3000) + 5000,
                "an island that was cut",
            );
        }
        must_be_zero(&file, 123..5000, "the rest of the first island");
        assert_eq!(read_at(&file, 0, 123), [0xcd; 123]);
    }
}

fn a_huge_dense_file_cut_by_a_daemon_that_dies_reads_zeros(mount: &mut Mount) {
    const FULL: u64 = 512 << 20;
    let bytes = Random::new(2).bytes(1 << 20);
    for milliseconds in [1, 20] {
        let mut file = File::create(mount.path("victim")).expect("create");
        for _ in 0..FULL >> 20 {
            file.write_all(&bytes).expect("write");
        }
        file.sync_all().expect("fsync");
        drop(file);
        cut_and_die(mount, FULL, 5001, Duration::from_millis(milliseconds));
        let file = open(&mount.path("victim"));
        must_be_zero(&file, 5001..FULL, "what was cut");
        assert_eq!(read_at(&file, 0, 5001), bytes[..5001]);
    }
}

/// Two files are rewritten and cut over and over, each with bytes of its own, so that the blocks of one are used by the other
/// soon; whoever reads one must find its bytes, or zeros where it was just cut, and never the other's.
fn a_reader_never_sees_bytes_of_another_file(mount: &mut Mount) {
    const SIZE: u64 = 256 << 10;
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for number in 0..2u8 {
            let path = mount.path(format!("file-{number}"));
            fs::write(&path, vec![number + 1; SIZE as usize]).expect("write");
            let (write_path, stop) = (path.clone(), &stop);
            threads.spawn(move || {
                let mut random = Random::new(number.into());
                while !stop.load(Ordering::Relaxed) {
                    let file = open(&write_path);
                    let at = random.below(SIZE - 70_000);
                    match random.below(4) {
                        0 => file.set_len(at).expect("cut"),
                        1 => sys::fallocate(
                            &file,
                            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                            at,
                            65_536,
                        )
                        .expect("punch"),
                        _ => drop(file.write_at(&vec![number + 1; 65_536], at).expect("write")),
                    }
                }
            });
            threads.spawn(move || {
                let mut cached = vec![0; SIZE as usize];
                // Direct reads go to the daemon each time.
                let mut memory = Map::memory(SIZE as usize).expect("memory");
                let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
                let direct = direct.expect("open O_DIRECT");
                let file = open(&path);
                while !stop.load(Ordering::Relaxed) {
                    let length = file.read_at(&mut cached, 0).expect("read");
                    let direct_length = direct.read_at(memory.bytes_mut(), 0).expect("direct read");
                    for (kind, bytes) in
                        [("cached", &cached[..length]), ("direct", &memory.bytes()[..direct_length])]
                    {
                        let wrong = bytes.iter().position(|byte| *byte != 0 && *byte != number + 1);
                        assert!(wrong.is_none(), "{kind} read of file {number}: foreign byte at {wrong:?}");
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs(5));
        stop.store(true, Ordering::Relaxed);
    });
}

fn what_was_written_through_any_descriptor_is_durable_after_fsync(mount: &mut Mount) {
    fs::create_dir(mount.path("directory")).expect("mkdir");
    fs::write(mount.path("by-its-own"), "own").expect("write");
    File::open(mount.path("by-its-own")).expect("open").sync_all().expect("fsync of a read-only descriptor");
    mount.kill();
    mount.recover();
    assert_eq!(
        fs::read(mount.path("by-its-own")).expect("read"),
        b"own",
        "after fsync of a read-only descriptor"
    );

    fs::write(mount.path("directory/new"), "new").expect("write");
    open(&mount.path("directory/new")).sync_all().expect("fsync of the file");
    File::open(mount.path("directory")).expect("open").sync_all().expect("fsync of a directory");
    mount.kill();
    mount.recover();
    assert_eq!(
        fs::read(mount.path("directory/new")).expect("read"),
        b"new",
        "after fsync of file and directory"
    );

    let mut file = OpenOptions::new().append(true).open(mount.path("directory/new")).expect("open");
    file.write_all(b" data").expect("write");
    file.sync_data().expect("fdatasync");
    let mut synchronous = OpenOptions::new();
    synchronous.write(true).create_new(true).custom_flags(libc::O_SYNC);
    synchronous.open(mount.path("synchronous")).expect("open").write_all(&[7; 5000]).expect("write");
    let mapped = open(&mount.path("mapped"));
    mapped.set_len(8192).expect("size");
    let mut map = Map::shared(&mapped, 8192).expect("mmap");
    map.bytes_mut()[4095..4098].copy_from_slice(b"map");
    map.sync().expect("msync");
    drop(map);
    mount.kill();
    drop((file, mapped));
    mount.recover();
    assert_eq!(fs::read(mount.path("directory/new")).expect("read"), b"new data", "after fdatasync");
    assert_eq!(fs::read(mount.path("synchronous")).expect("read"), [7; 5000], "written with O_SYNC");
    assert_eq!(fs::read(mount.path("mapped")).expect("read")[4095..4098], *b"map", "after msync");

    fs::rename(mount.path("directory/new"), mount.path("renamed")).expect("rename");
    fs::remove_file(mount.path("mapped")).expect("unlink");
    File::open(&mount.point).expect("open").sync_all().expect("fsync of the root");
    if mount.peer == Peer::Btfs {
        // An fsync of anything covers everything before it; `btfs sync` too.
        fs::write(mount.path("last"), "last").expect("write");
        btfs_mount_tests::shell::must(mount.btfs(["sync"]).arg(&mount.point));
    }
    mount.kill();
    mount.recover();
    assert_eq!(
        fs::read(mount.path("renamed")).expect("read"),
        b"new data",
        "renamed, then fsync of the directory"
    );
    assert!(
        !mount.path("directory/new").exists() && !mount.path("mapped").exists(),
        "removed names came back"
    );
    assert!(
        mount.peer == Peer::Ext4 || fs::read(mount.path("last")).expect("read") == b"last",
        "after btfs sync"
    );
}

fn an_unlinked_open_file_stays_readable_and_writable(mount: &mut Mount) {
    let bytes = Random::new(3).bytes(200_000);
    let free = |mount: &Mount| {
        let facts = sys::statvfs(&mount.point).expect("statvfs");
        (facts.f_bfree * facts.f_frsize, facts.f_files - facts.f_ffree)
    };
    fs::write(mount.path("other"), "other").expect("write");
    open(&mount.path("other")).sync_all().expect("fsync");
    let before = free(mount);
    let file = open(&mount.path("gone"));
    file.write_all_at(&bytes, 0).expect("write");
    fs::remove_file(mount.path("gone")).expect("unlink");
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    assert!(!mount.path("gone").exists());
    fs::write(mount.path("gone"), "another file of the same name").expect("write");
    file.write_all_at(&bytes, 300_000).expect("write after unlink");
    file.set_len(450_000).expect("truncate after unlink");
    assert!(read_at(&file, 0, 200_000) == bytes && read_at(&file, 300_000, 150_000) == bytes[..150_000]);
    must_be_zero(&file, 200_000..300_000, "a hole");
    // The same for a file that a rename replaced.
    fs::write(mount.path("winner"), "winner").expect("write");
    let loser = File::open(mount.path("gone")).expect("open");
    fs::rename(mount.path("winner"), mount.path("gone")).expect("rename");
    assert_eq!(read_at(&loser, 0, 7), b"another");
    // A directory that is gone is empty and takes no more names.
    fs::create_dir(mount.path("dir")).expect("mkdir");
    let directory = File::open(mount.path("dir")).expect("open");
    fs::remove_dir(mount.path("dir")).expect("rmdir");
    assert_eq!(directory.metadata().expect("fstat").nlink(), 0, "links of a removed directory");
    drop((directory, loser, file));
    fs::remove_file(mount.path("gone")).expect("unlink");
    // The space of orphans comes back, though not at once.
    let start = Instant::now();
    loop {
        File::open(&mount.point).expect("open").sync_all().expect("fsync");
        let now = free(mount);
        if now.0 + 65_536 >= before.0 && now.1 <= before.1 {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "free bytes and inodes: {before:?} before, now {now:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    // Left over by a daemon that dies.
    let file = open(&mount.path("orphan"));
    file.write_all_at(&bytes, 0).expect("write");
    fs::remove_file(mount.path("orphan")).expect("unlink");
    File::open(&mount.point).expect("open").sync_all().expect("fsync");
    mount.kill();
    drop(file);
    mount.recover();
    assert_eq!(fs::read(mount.path("other")).expect("read"), b"other");
}

fn a_shared_mapping_writes_to_the_file_and_a_private_one_does_not(mount: &mut Mount) {
    let bytes = Random::new(4).bytes(100_000);
    let file = open(&mount.path("mapped"));
    file.write_all_at(&bytes, 0).expect("write");
    let mut private = Map::private(&file, 100_000).expect("mmap");
    let mut shared = Map::shared(&file, 100_000).expect("mmap");
    assert!(shared.bytes() == bytes && private.bytes() == bytes, "what is mapped is what was written");
    private.bytes_mut()[50_000] ^= 1;
    assert!(read_at(&file, 0, 100_000) == bytes, "a private store came through");
    shared.bytes_mut()[5] = 1;
    shared.bytes_mut()[99_999] = 2;
    assert_eq!((read_at(&file, 5, 1)[0], read_at(&file, 99_999, 1)[0]), (1, 2), "stores seen by read");
    file.write_all_at(b"written", 70_000).expect("write");
    assert_eq!(&shared.bytes()[70_000..70_007], b"written", "a write seen by the mapping");
    // Another process sees the same pages.
    let path = mount.path("mapped");
    sys::in_child(|| {
        let file = open(&path);
        let mut map = Map::shared(&file, 100_000).expect("mmap");
        assert_eq!(map.bytes()[5], 1);
        map.bytes_mut()[6] = 3;
    });
    assert_eq!(shared.bytes()[6], 3);
    // Unmapped and closed, with no sync at all; then the mount goes away in order.
    drop((shared, private, file));
    mount.remount();
    let file = open(&mount.path("mapped"));
    let found = read_at(&file, 0, 100_000);
    assert_eq!((&found[5..7], found[99_999], &found[70_000..70_007]), (&[1u8, 3][..], 2, &b"written"[..]));
    assert_eq!(found[50_000], bytes[50_000]);
    drop(file);
    // A hole that is stored into becomes data; and the file does not grow.
    let sparse = open(&mount.path("sparse"));
    sparse.set_len(10_000_001).expect("size");
    let mut map = Map::shared(&sparse, 10_000_001).expect("mmap");
    map.bytes_mut()[5_000_000] = 9;
    map.bytes_mut()[10_000_000] = 8;
    drop((map, sparse));
    mount.remount();
    let sparse = open(&mount.path("sparse"));
    assert_eq!(sparse.metadata().expect("stat").len(), 10_000_001);
    must_be_zero(&sparse, 0..5_000_000, "before the store");
    must_be_zero(&sparse, 5_000_001..10_000_000, "behind the store");
    assert_eq!((read_at(&sparse, 5_000_000, 1)[0], read_at(&sparse, 10_000_000, 1)[0]), (9, 8));
}

fn direct_reads_and_writes_agree_with_cached_ones(mount: &mut Mount) {
    const SIZE: usize = 1 << 20;
    let mut random = Random::new(5);
    let path = mount.path("direct");
    let cached = open(&path);
    let direct =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).expect("O_DIRECT");
    let mut memory = Map::memory(SIZE).expect("memory");
    let mut model = random.bytes(SIZE);
    memory.bytes_mut().copy_from_slice(&model);
    assert_eq!(direct.write_at(memory.bytes(), 0).expect("direct write"), SIZE);
    assert!(read_at(&cached, 0, SIZE) == model, "a cached read after a direct write");
    for round in 0..200 {
        let pages = random.below(16) as usize + 1;
        let at = random.below((SIZE / 4096 - pages) as u64) as usize * 4096;
        let bytes = random.bytes(pages * 4096);
        if random.below(2) == 0 {
            memory.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
            let written = direct.write_at(&memory.bytes()[..bytes.len()], at as u64).expect("direct write");
            assert_eq!(written, bytes.len());
            model[at..at + bytes.len()].copy_from_slice(&bytes);
        } else {
            cached.write_all_at(&bytes[1..], at as u64 + 1).expect("cached write");
            model[at + 1..at + bytes.len()].copy_from_slice(&bytes[1..]);
        }
        assert!(read_at(&cached, 0, SIZE) == model, "round {round}: cached");
        assert_eq!(direct.read_at(memory.bytes_mut(), 0).expect("direct read"), SIZE);
        assert!(memory.bytes() == model, "round {round}: direct");
    }
    // Reading over the end gives what there is.
    cached.set_len(10_000).expect("cut");
    assert_eq!(direct.read_at(memory.bytes_mut(), 8192).expect("direct read"), 10_000 - 8192);
    assert_eq!(direct.read_at(memory.bytes_mut(), 16384).expect("direct read"), 0);
}

fn seek_finds_data_and_holes(mount: &mut Mount) {
    const MIB: u64 = 1 << 20;
    let file = open(&mount.path("sparse"));
    file.set_len(10 * MIB).expect("size");
    file.write_all_at(&vec![1; MIB as usize], 2 * MIB).expect("write");
    file.write_all_at(&vec![1; MIB as usize], 5 * MIB).expect("write");
    let expect = |file: &File| {
        let seek = |at, whence| sys::seek(file, at, whence);
        let (data, hole) = (libc::SEEK_DATA, libc::SEEK_HOLE);
        assert_eq!(seek(0, data).expect("data"), 2 * MIB);
        assert_eq!(seek(0, hole).expect("hole"), 0);
        assert_eq!(seek(2 * MIB + 7, data).expect("data"), 2 * MIB + 7);
        assert_eq!(seek(2 * MIB, hole).expect("hole"), 3 * MIB);
        assert_eq!(seek(3 * MIB, data).expect("data"), 5 * MIB);
        assert_eq!(seek(5 * MIB, hole).expect("hole"), 6 * MIB);
        assert_eq!(seek(9 * MIB, hole).expect("hole"), 9 * MIB);
        assert_eq!(sys::errno(seek(6 * MIB, data)), libc::ENXIO);
        assert_eq!(sys::errno(seek(10 * MIB, data)), libc::ENXIO);
        assert_eq!(sys::errno(seek(10 * MIB, hole)), libc::ENXIO);
    };
    expect(&file);
    drop(file);
    mount.remount();
    let file = open(&mount.path("sparse"));
    expect(&file);
    sys::fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 2 * MIB, MIB)
        .expect("punch");
    assert_eq!(sys::seek(&file, 0, libc::SEEK_DATA).expect("data"), 5 * MIB, "after a punch");
    // The end of a dense file is a hole.
    fs::write(mount.path("dense"), vec![1; 5000]).expect("write");
    assert_eq!(sys::seek(&open(&mount.path("dense")), 0, libc::SEEK_HOLE).expect("hole"), 5000);
    assert_eq!(sys::errno(sys::seek(&open(&mount.path("empty")), 0, libc::SEEK_DATA)), libc::ENXIO);
}

fn copy_file_range_copies_what_it_says(mount: &mut Mount) {
    let mut random = Random::new(6);
    let bytes = random.bytes(3_000_000);
    fs::write(mount.path("from"), &bytes).expect("write");
    let (from, to) = (File::open(mount.path("from")).expect("open"), open(&mount.path("to")));
    let mut model = vec![0; 3_000_000];
    to.set_len(3_000_000).expect("size");
    for round in 0..60 {
        // Whole blocks, which can be shared, and odd ranges, which cannot.
        let unit = if round % 2 == 0 { 4096 } else { 1 };
        let length = (random.below(300_000 / unit) * unit + unit) as usize;
        let at = (random.below(2_600_000 / unit) * unit) as usize;
        let into = (random.below(2_600_000 / unit) * unit) as usize;
        let mut done = 0;
        while done < length {
            let more =
                sys::copy_file_range(&from, (at + done) as u64, &to, (into + done) as u64, length - done);
            let more = more.expect("copy_file_range");
            assert!(more > 0, "round {round}: nothing copied");
            done += more;
        }
        model[into..into + length].copy_from_slice(&bytes[at..at + length]);
        if round % 5 == 0 {
            // What is changed in a copy is not changed in the original.
            to.write_all_at(&[round as u8; 3000], into as u64).expect("write");
            model[into..into + 3000].fill(round as u8);
        }
        assert!(read_at(&to, 0, 3_000_000) == model, "round {round}: {length} bytes from {at} to {into}");
    }
    assert!(read_at(&from, 0, 3_000_000) == bytes, "the original has changed");
    assert_eq!(sys::copy_file_range(&from, 3_000_000, &to, 0, 100).expect("at the end"), 0);
    assert_eq!(sys::copy_file_range(&from, 2_999_990, &to, 3_000_000, 100).expect("over the end"), 10);
    model.extend_from_slice(&bytes[2_999_990..]);
    // Within one file, and overlapping, which is refused.
    assert_eq!(
        sys::errno(sys::copy_file_range(&from, 0, &open(&mount.path("from")), 100, 1000)),
        libc::EINVAL
    );
    drop((from, to));
    fs::remove_file(mount.path("from")).expect("unlink");
    mount.remount();
    assert!(fs::read(mount.path("to")).expect("read") == model, "the copy, after its original is gone");
}

fn a_file_of_16_tib_works_at_its_end(mount: &mut Mount) {
    // One block less than 16 TiB is what ext4 can have.
    const SIZE: u64 = (16 << 40) - 4096;
    let file = open(&mount.path("large"));
    file.set_len(SIZE).expect("16 TiB");
    file.write_all_at(b"start", 0).expect("write");
    file.write_all_at(b"middle", 8 << 40).expect("write");
    file.write_all_at(b"end", SIZE - 3).expect("write");
    drop(file);
    mount.remount();
    let file = open(&mount.path("large"));
    let facts = file.metadata().expect("stat");
    assert_eq!(facts.len(), SIZE);
    assert!(facts.blocks() < 1000, "{} blocks", facts.blocks());
    assert_eq!(read_at(&file, 0, 5), b"start");
    assert_eq!(read_at(&file, 8 << 40, 6), b"middle");
    assert_eq!(read_at(&file, SIZE - 3, 3), b"end");
    must_be_zero(&file, (8 << 40) + 6..(8 << 40) + 10_000, "behind the middle");
    assert_eq!(sys::seek(&file, 1 << 30, libc::SEEK_DATA).expect("data"), 8 << 40);
    file.set_len((8 << 40) + 3).expect("cut");
    file.set_len(SIZE).expect("extend");
    must_be_zero(&file, (8 << 40) + 3..(8 << 40) + 10, "what was cut");
    // More than any file can have is refused, and nothing happens.
    assert_eq!(sys::errno(file.set_len(u64::MAX >> 1)), libc::EFBIG);
    assert_eq!(file.metadata().expect("stat").len(), SIZE);
}

fn appending_processes_never_overwrite_each_other(mount: &mut Mount) {
    let path = mount.path("log");
    let children: Vec<i32> = (0..4u8)
        .map(|number| {
            sys::fork(|| {
                let mut file = OpenOptions::new().append(true).create(true).open(&path).expect("open");
                for line in 0..500 {
                    file.write_all(format!("{number} {line} {}\n", "x".repeat(line % 90)).as_bytes())
                        .expect("append");
                }
            })
        })
        .collect();
    for child in children {
        assert_eq!(sys::wait(child), 0);
    }
    let text = fs::read_to_string(&path).expect("read");
    assert_eq!(text.lines().count(), 2000);
    for number in 0..4 {
        let own: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{number} "))).collect();
        for (line, found) in own.iter().enumerate() {
            assert_eq!(
                *found,
                format!("{number} {line} {}", "x".repeat(line % 90)),
                "lines of process {number}"
            );
        }
    }
}

fn locks_hold_between_processes(mount: &mut Mount) {
    let path = mount.path("locked");
    let file = open(&path);
    sys::flock(&file, libc::LOCK_EX).expect("flock");
    sys::lock_range(&file, libc::F_WRLCK, 0, 100).expect("fcntl lock");
    sys::in_child(|| {
        let other = open(&path);
        assert_eq!(sys::errno(sys::flock(&other, libc::LOCK_EX | libc::LOCK_NB)), libc::EWOULDBLOCK, "flock");
        assert_eq!(sys::errno(sys::flock(&other, libc::LOCK_SH | libc::LOCK_NB)), libc::EWOULDBLOCK, "flock");
        let error = sys::errno(sys::lock_range(&other, libc::F_RDLCK, 99, 1));
        assert!(error == libc::EAGAIN || error == libc::EACCES, "a locked range: {error}");
        sys::lock_range(&other, libc::F_WRLCK, 100, 50).expect("a free range");
    });
    // One who waits gets it once it is free, and the filesystem works meanwhile: more wait than there are threads.
    let waiting: Vec<i32> = (0..12)
        .map(|_| {
            sys::fork(|| {
                let other = open(&path);
                sys::flock(&other, libc::LOCK_EX).expect("flock that waits");
            })
        })
        .collect();
    wait_until("all wait for the lock", || {
        let locks = fs::read_to_string("/proc/locks").expect("/proc/locks");
        locks.lines().filter(|line| line.contains("->") && line.contains("FLOCK")).count() >= waiting.len()
    });
    fs::write(mount.path("meanwhile"), "works").expect("write while others wait");
    assert_eq!(fs::read(mount.path("meanwhile")).expect("read"), b"works");
    assert!(sys::ended(waiting[0]).is_none(), "got a lock that is held");
    sys::flock(&file, libc::LOCK_UN).expect("unlock");
    for child in waiting {
        assert_eq!(sys::wait(child), 0);
    }
}

/// The model is a vector of bytes; after each change they are compared, in the end also after a remount.
fn random_writes_cuts_and_punches_match_a_model(mount: &mut Mount) {
    const LIMIT: u64 = 3 << 20;
    let seed = btfs_mount_tests::random::from_environment("BTFS_TEST_SEED", 20_240_229);
    eprintln!("BTFS_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut model: Vec<u8> = vec![];
    for round in 0..1500 {
        let file = open(&mount.path("model"));
        let at = random.below(LIMIT) as usize;
        let length = random.below(if round % 10 == 0 { 500_000 } else { 9_000 }) as usize + 1;
        let action = random.below(10);
        match action {
            0..=4 => {
                let bytes = random.bytes(length);
                file.write_all_at(&bytes, at as u64).expect("write");
                model.resize(model.len().max(at + length), 0);
                model[at..at + length].copy_from_slice(&bytes);
            }
            5 => {
                file.set_len(at as u64).expect("truncate");
                model.resize(at, 0);
            }
            6 | 7 => {
                let mode = if action == 6 { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
                sys::fallocate(&file, mode | libc::FALLOC_FL_KEEP_SIZE, at as u64, length as u64)
                    .expect("fallocate");
                let (start, end) = (at.min(model.len()), (at + length).min(model.len()));
                model[start..end].fill(0);
            }
            8 => {
                sys::fallocate(&file, 0, at as u64, length as u64).expect("fallocate");
                model.resize(model.len().max(at + length), 0);
            }
            _ => {
                if round % 7 == 0 {
                    drop(file);
                    mount.remount();
                }
            }
        }
        let file = open(&mount.path("model"));
        assert_eq!(
            file.metadata().expect("stat").len(),
            model.len() as u64,
            "round {round}, action {action}"
        );
        let (from, to) = (at.saturating_sub(20_000), (at + length + 20_000).min(model.len()));
        if from < to {
            let found = read_at(&file, from as u64, to - from);
            let wrong = found.iter().zip(&model[from..to]).position(|(a, b)| a != b);
            assert!(
                wrong.is_none(),
                "round {round}, action {action}, {length} at {at}: at {:?}",
                wrong.map(|w| w + from)
            );
        }
    }
    assert!(fs::read(mount.path("model")).expect("read") == model, "in the end");
    mount.remount();
    assert!(fs::read(mount.path("model")).expect("read") == model, "after a remount");
}
