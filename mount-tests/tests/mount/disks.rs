//! The disk on which the image lies: it is full, cut short, cannot do what others can, or cannot be written.

use btfs_mount_tests::cases;
use btfs_mount_tests::manifest::Manifest;
use btfs_mount_tests::mount::{Mount, wait_until};
use btfs_mount_tests::random::Random;
use btfs_mount_tests::runner::{Case, not_run};
use btfs_mount_tests::shell::{must, outcome};
use btfs_mount_tests::sys;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn cases() -> Vec<Case> {
    let mut all = cases![
        a_full_disk_of_ext4_costs_only_what_needs_space,
        a_full_disk_of_tmpfs_costs_only_what_needs_space,
        a_full_disk_costs_a_sparse_copy_of_an_image_no_more,
        an_image_cut_short_is_named_and_gives_no_wrong_data,
        a_disk_that_fails_ends_writing_and_not_reading,
        a_disk_that_fails_ends_the_daemon_where_that_is_asked_for,
        an_image_on_ext2_without_allocation_in_advance_keeps_its_files,
        an_image_on_vfat_without_holes_keeps_its_files,
        an_image_on_btrfs_keeps_its_files_and_whoever_has_it_is_named,
        an_image_on_tmpfs_keeps_its_files,
        an_image_on_ramfs_without_direct_io_keeps_its_files,
        an_image_on_a_read_only_disk_can_be_read,
    ];
    all.push(
        Case::new("", an_image_that_cannot_be_written_can_be_read)
            .by_user("mount::disks::an_image_that_cannot_be_written_can_be_read"),
    );
    all
}

const MIB: u64 = 1 << 20;

/// A disk of its own for the image, of which nothing is left when the case ends.
struct Disk {
    point: PathBuf,
}

impl Disk {
    /// Of this kind, so large, with an empty image on it, which is mounted.
    fn begin(mount: &mut Mount, kind: &str, size: u64, image: &str) -> Disk {
        mount.only_btfs();
        if !sys::is_root() {
            not_run("only root can mount a disk for the image");
        }
        mount.unmount();
        let point = mount.base.join("disk");
        fs::create_dir(&point).expect("mkdir");
        let mut command = Command::new("mount");
        if matches!(kind, "tmpfs" | "ramfs") {
            command.args(["-t", kind, "-o", &format!("size={size}"), kind]).arg(&point);
        } else {
            let device = mount.base.join("disk.device");
            File::create(&device).and_then(|file| file.set_len(size)).expect("a device");
            let mkfs = format!("mkfs.{kind}");
            if !outcome(Command::new("sh").args(["-c", "command -v \"$0\"", &mkfs])).status.success() {
                not_run(&format!("there is no {mkfs}"));
            }
            let silent: &[&str] = match kind {
                "vfat" => &[],
                "btrfs" => &["-q"],
                _ => &["-q", "-m", "0"],
            };
            must(Command::new(mkfs).args(silent).arg(&device));
            command.args(["-t", kind, "-o", "loop"]).arg(&device).arg(&point);
        }
        let mounted = outcome(&mut command);
        if !mounted.status.success() {
            not_run(&format!(
                "{kind} cannot be mounted: {}",
                String::from_utf8_lossy(&mounted.stderr).trim()
            ));
        }
        mount.image = point.join("image.db");
        mount.format_with_size(image);
        mount.mount();
        Disk { point }
    }

    fn free(&self) -> u64 {
        let space = sys::statvfs(&self.point).expect("statvfs");
        space.f_bavail * space.f_frsize
    }

    /// Takes up what is free, with `ballast`.
    fn fill(&self) {
        let ballast = OpenOptions::new().append(true).create(true).open(self.point.join("ballast"));
        let Ok(mut ballast) = ballast else { return };
        while self.free() >= 256 << 10 && ballast.write_all(&[1; 64 << 10]).is_ok() {}
    }
}

/// Writes pieces of 256 KiB, each with bytes of its own, until there is no space; how many were accepted.
fn fill(path: &Path, seed: u64) -> u64 {
    let mut file = File::create(path).expect("create");
    for piece in 0..8 * 1024 {
        match file.write_all(&piece_of(seed, piece)) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                file.sync_all().expect("fsync of what was accepted");
                return piece;
            }
        }
    }
    panic!("2 GiB fit onto a small disk");
}

fn piece_of(seed: u64, piece: u64) -> Vec<u8> {
    Random::new(seed << 32 | piece).bytes(256 << 10)
}

fn must_hold(path: &Path, seed: u64, pieces: u64) {
    let file = File::open(path).expect("open");
    let mut bytes = vec![0; 256 << 10];
    for piece in 0..pieces {
        file.read_exact_at(&mut bytes, piece * (256 << 10)).unwrap_or_else(|e| panic!("piece {piece}: {e}"));
        assert!(bytes == piece_of(seed, piece), "{path:?}: piece {piece} is another one");
    }
}

fn full_disk(mount: &mut Mount, kind: &str) {
    let disk = Disk::begin(mount, kind, 64 * MIB, "1G");
    // Something else takes up space on the disk, and will go.
    fs::write(disk.point.join("ballast"), vec![1; 16 << 20]).expect("ballast");
    let kept = Random::new(1).bytes(3 << 20);
    fs::write(mount.path("kept"), &kept).expect("write");
    fs::create_dir(mount.path("dir")).expect("mkdir");
    for number in 0..200 {
        fs::write(mount.path(format!("dir/{number}")), format!("small {number}")).expect("write");
    }
    File::open(&mount.point).and_then(|root| root.sync_all()).expect("fsync");
    let first = fill(&mount.path("first"), 1);
    assert!(first > 40, "only {first} pieces fit");
    assert!(disk.free() < 4 * MIB, "ENOSPC with {} bytes free on the disk", disk.free());
    // The image itself has space.
    let space = sys::statvfs(&mount.point).expect("statvfs");
    assert!(space.f_bavail * space.f_frsize > 500 * MIB, "the image is full, not the disk");
    let whole = |mount: &Mount| {
        assert!(fs::read(mount.path("kept")).expect("read") == kept);
        for number in 0..200 {
            let found = fs::read_to_string(mount.path(format!("dir/{number}"))).expect("read");
            assert_eq!(found, format!("small {number}"));
        }
        must_hold(&mount.path("first"), 1, first);
    };
    whole(mount);
    mount.remount();
    whole(mount);
    // What needs no new space on the disk goes on: names, attributes, deleting.
    sys::chmod(&mount.path("kept"), 0o600).expect("chmod");
    fs::rename(mount.path("dir/7"), mount.path("dir/seven")).expect("rename");
    fs::rename(mount.path("dir/seven"), mount.path("dir/7")).expect("rename");
    // Space on the disk: all goes on, without a remount.
    fs::remove_file(disk.point.join("ballast")).expect("remove the ballast");
    let second = fill(&mount.path("second"), 2);
    assert!(second >= 40, "the disk has got 16 MiB back, but only {second} pieces of 256 KiB can be written");
    assert!(disk.free() < 4 * MIB, "ENOSPC with {} bytes free on the disk", disk.free());
    must_hold(&mount.path("second"), 2, second);
    whole(mount);
    // Deleting in the image gives space for writing in the image.
    fs::remove_file(mount.path("second")).expect("unlink on a full disk");
    let third = second / 10 * 9;
    let mut file = File::create(mount.path("third")).expect("create on a full disk");
    for piece in 0..third {
        file.write_all(&piece_of(3, piece)).expect("what was deleted can be written again at once");
    }
    file.sync_all().expect("fsync");
    drop(file);
    must_hold(&mount.path("third"), 3, third);
    whole(mount);
    mount.remount();
    must_hold(&mount.path("third"), 3, third);
    whole(mount);
    // Killed with the disk as full as it gets.
    disk.fill();
    fill(&mount.path("fourth"), 4);
    mount.kill();
    mount.check();
    mount.recover();
    must_hold(&mount.path("third"), 3, third);
    whole(mount);
    fs::remove_file(disk.point.join("ballast")).expect("remove the ballast");
}

fn a_full_disk_of_ext4_costs_only_what_needs_space(mount: &mut Mount) {
    full_disk(mount, "ext4");
}

fn a_full_disk_of_tmpfs_costs_only_what_needs_space(mount: &mut Mount) {
    full_disk(mount, "tmpfs");
}

/// A copy has holes where log and pages had zeros.
fn a_full_disk_costs_a_sparse_copy_of_an_image_no_more(mount: &mut Mount) {
    let disk = Disk::begin(mount, "ext4", 64 * MIB, "1G");
    fs::create_dir(mount.path("dir")).expect("mkdir");
    fs::write(mount.path("dir/kept"), "kept").expect("write");
    mount.unmount();
    let copy = disk.point.join("copy");
    must(Command::new("cp").arg("--sparse=always").args([&mount.image, &copy]));
    fs::rename(&copy, &mount.image).expect("rename");
    mount.mount();
    disk.fill();
    let rest = OpenOptions::new().append(true).create(true).open(disk.point.join("rest"));
    let mut rest = rest.expect("a file on the disk");
    while rest.write_all(&[1; 4096]).is_ok() {}
    let mut made = 0;
    let full = loop {
        match fs::write(mount.path(format!("dir/{made}")), format!("small {made}")) {
            Ok(()) => made += 1,
            Err(e) => break e,
        }
        if made % 100 == 0 {
            File::open(&mount.point).and_then(|root| root.sync_all()).expect("fsync on a full disk");
        }
        assert!(made < 100_000, "no end of space on a full disk");
    };
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    assert!(made > 100, "only {made} small files");
    File::open(&mount.point).and_then(|root| root.sync_all()).expect("fsync on a full disk");
    // All pages go home; and again after a recovery.
    mount.remount();
    fs::rename(mount.path("dir"), mount.path("renamed")).expect("rename on a full disk");
    fs::rename(mount.path("renamed"), mount.path("dir")).expect("rename on a full disk");
    File::open(&mount.point).and_then(|root| root.sync_all()).expect("fsync on a full disk");
    mount.kill();
    mount.recover();
    mount.remount();
    for number in 0..made {
        let found = fs::read_to_string(mount.path(format!("dir/{number}"))).unwrap_or_default();
        assert_eq!(found, format!("small {number}"));
    }
    fs::remove_file(disk.point.join("ballast")).expect("remove the ballast");
    fs::write(mount.path("dir/more"), [1; 100_000]).expect("write, with space on the disk");
}

/// Mounts an image of 200 MiB so that every write behind its first half fails, as on a disk that is broken there, and meets that: what was
/// synced before is in the file `kept`.
fn write_until_the_disk_fails(mount: &mut Mount, options: &str) {
    mount.only_btfs();
    mount.replace_image("200M");
    let (status, said) = mount.try_mount(options);
    assert!(status.success(), "{said}");
    mount.set_mounted(true);
    // A mount would refuse to begin with such a limit.
    let daemon = mount.daemon().to_string();
    must(Command::new("prlimit").args(["--pid", &daemon, "--fsize=104857600"]));
    fs::write(mount.path("kept"), Random::new(1).bytes(5 << 20)).expect("write");
    File::open(mount.path("kept")).and_then(|file| file.sync_all()).expect("fsync");
    let large = File::create(mount.path("large")).expect("create");
    let piece = Random::new(2).bytes(1 << 20);
    // Behind the write that fails, or at it.
    let written = (0..200u64).map_while(|n| large.write_all_at(&piece, n << 20).ok()).count();
    assert!((50..150).contains(&written), "{written} MiB were taken");
    large.sync_all().expect_err("what could not be written is called durable");
}

fn kept_is_whole(mount: &Mount) {
    assert!(fs::read(mount.path("kept")).expect("read") == Random::new(1).bytes(5 << 20));
}

fn a_disk_that_fails_ends_writing_and_not_reading(mount: &mut Mount) {
    write_until_the_disk_fails(mount, "errors=remount-ro");
    for n in 0..3 {
        fs::write(mount.path(format!("later-{n}")), "text").expect_err("a change is taken");
        fs::rename(mount.path("kept"), mount.path("moved")).expect_err("a change is taken");
        let root = File::open(&mount.point).expect("open");
        assert_eq!(sys::errno(root.sync_all()), libc::EIO, "a later fsync succeeds");
        kept_is_whole(mount);
    }
    let (status, said) = mount.said_by(mount.btfs(["stats", "--json"]).arg(&mount.point));
    assert!(status.success() && said.contains("failed: writing data"), "{said}");
    let (status, said) = mount.said_by(mount.btfs(["umount"]).arg(&mount.point));
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("not closed in order"), "{said}");
    mount.set_mounted(false);
    mount.check();
    mount.mount();
    kept_is_whole(mount);
}

fn a_disk_that_fails_ends_the_daemon_where_that_is_asked_for(mount: &mut Mount) {
    write_until_the_disk_fails(mount, "errors=abort");
    wait_until("the mount is dead", || sys::errno(sys::statvfs(&mount.point)) == libc::ENOTCONN);
    mount.recover();
    kept_is_whole(mount);
}

/// What was read must be right, whatever else is the case. How many files gave an error.
fn read_what_can_be_read(mount: &Mount, files: u64) -> u64 {
    let mut errors = 0;
    for number in 0..files {
        match fs::read(mount.path(format!("file-{number}"))) {
            Ok(found) => assert!(found == Random::new(number).bytes(3 << 20), "file {number} has wrong data"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "file {number}: {error}");
                errors += 1;
            }
        }
    }
    errors
}

fn an_image_cut_short_is_named_and_gives_no_wrong_data(mount: &mut Mount) {
    mount.only_btfs();
    for cut_off in ["half of the file", "half of the data", "a page", "a byte"] {
        for crashed in [false, true] {
            eprintln!("{cut_off}, crashed: {crashed}");
            if mount.is_mounted() {
                mount.unmount();
            }
            fs::remove_file(&mount.image).expect("unlink");
            mount.format_with_size("256M");
            mount.mount();
            for number in 0..8 {
                fs::write(mount.path(format!("file-{number}")), Random::new(number).bytes(3 << 20))
                    .expect("write");
            }
            File::open(&mount.point).and_then(|root| root.sync_all()).expect("fsync");
            must(Command::new("sync").arg(mount.path("file-7")));
            if crashed {
                mount.kill();
                must(Command::new("umount").arg(&mount.point));
                mount.set_mounted(false);
            } else {
                mount.unmount();
            }
            let facts = fs::metadata(&mount.image).expect("stat");
            let length = match cut_off {
                "half of the file" => facts.len() / 2,
                "half of the data" => facts.blocks() * 512 / 2,
                "a page" => facts.len() - 16_384,
                _ => facts.len() - 1,
            };
            sys::truncate(&mount.image, length).expect("cut the image");
            let (status, said) = mount.said_by(mount.btfs(["fsck", "-n"]).arg(&mount.image));
            assert!(!said.contains("panicked"), "{said}");
            assert!(status.code().is_some_and(|code| code & 12 != 0), "fsck -n: {status}\n{said}");
            assert!(said.contains("the file has"), "fsck does not name it: {said}");
            for options in ["ro", ""] {
                let (status, said) = mount.try_mount(options);
                assert!(!said.contains("panicked"), "{said}");
                assert_eq!(status.code(), Some(32), "{cut_off} is gone: {said}");
                assert!(said.contains("cut short"), "mount does not name it: {said}");
            }
            let (status, said) = mount.said_by(mount.btfs(["fsck", "-y"]).arg(&mount.image));
            assert_eq!(status.code(), Some(1), "fsck -y: {said}");
            mount.mount();
            let errors = read_what_can_be_read(mount, 8);
            assert!(
                errors > 0 || cut_off != "half of the data",
                "half of it is gone, and nothing is missing"
            );
        }
    }
    fs::remove_file(&mount.image).expect("unlink");
}

/// Ordinary work, a kill, and a look at everything.
fn use_disk(mount: &mut Mount, kind: &str, size: u64, image: &str) {
    let _disk = Disk::begin(mount, kind, size, image);
    let shell = mount.shell();
    shell.run(
        "mkdir -p tree/a tree/b
         for i in $(seq 300); do head -c $((i * 67)) /dev/urandom > tree/a/$i; done
         head -c 20000000 /dev/urandom > tree/large; cp tree/large tree/copy
         ln -s ../a/1 tree/b/link; ln tree/a/2 tree/b/hard
         truncate -s 40M tree/sparse; printf end >> tree/sparse
         rm tree/a/1*; fallocate -p -o 1M -l 4M tree/large
         dd if=/dev/urandom of=tree/copy bs=100000 count=20 seek=3 conv=notrunc status=none
         head -c 8000000 /dev/urandom > gone; sync .; rm gone",
    );
    let tree = Manifest::of(mount.path("tree"));
    mount.remount();
    tree.must_equal(&Manifest::of(mount.path("tree")), &format!("on {kind}, after a remount"));
    mount
        .shell()
        .run("for i in $(seq 5); do cp -r tree again-$i; rm -r again-$i; done; mkdir later; sync . later");
    mount.kill();
    mount.check();
    mount.recover();
    tree.must_equal(&Manifest::of(mount.path("tree")), &format!("on {kind}, after a kill"));
    assert!(mount.path("later").is_dir());
    mount.unmount();
    must(mount.btfs(["fsck", "-n", "--scrub"]).arg(&mount.image));
    mount.mount();
}

fn an_image_on_ext2_without_allocation_in_advance_keeps_its_files(mount: &mut Mount) {
    use_disk(mount, "ext2", 512 * MIB, "300M");
}

fn an_image_on_vfat_without_holes_keeps_its_files(mount: &mut Mount) {
    use_disk(mount, "vfat", 512 * MIB, "300M");
}

/// stat tells another device of files there than the list of locks.
fn an_image_on_btrfs_keeps_its_files_and_whoever_has_it_is_named(mount: &mut Mount) {
    use_disk(mount, "btrfs", 512 * MIB, "300M");
    let daemon = mount.daemon();
    let (status, said) = mount.said_by(mount.btfs(["fsck", "-n"]).arg(&mount.image));
    assert!(!status.success() && said.contains(&format!("process {daemon} (btfs)")), "{said}");
}

fn an_image_on_tmpfs_keeps_its_files(mount: &mut Mount) {
    use_disk(mount, "tmpfs", 512 * MIB, "8G");
}

fn an_image_on_ramfs_without_direct_io_keeps_its_files(mount: &mut Mount) {
    use_disk(mount, "ramfs", 512 * MIB, "8G");
}

/// Reads it all on `-o ro`; the image keeps every byte.
fn read_only(mount: &mut Mount, tree: &Manifest) {
    let before = btfs_mount_tests::manifest::digest(&mount.image);
    let (status, said) = mount.try_mount("ro");
    assert!(status.success(), "mount -o ro: {status}\n{said}");
    mount.set_mounted(true);
    tree.must_equal(&Manifest::of(mount.path("tree")), "read-only");
    let refused = fs::write(mount.path("new"), "new").expect_err("a write to a read-only filesystem");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    mount.unmount();
    assert_eq!(btfs_mount_tests::manifest::digest(&mount.image), before, "the image has changed");
    mount.check();
}

/// Makes files; the image is then not mounted, closed in order or not.
fn leave(mount: &mut Mount, crashed: bool) -> Manifest {
    mount.shell().run(
        "rm -rf tree; mkdir tree; for i in $(seq 100); do head -c $((i * 300)) /dev/urandom > tree/$i; done
         ln -s 1 tree/link; find tree -type f -o -type d | xargs sync; sync .",
    );
    let tree = Manifest::of(mount.path("tree"));
    if crashed {
        mount.kill();
        let dead = if mount.by_user() { ("fusermount3", &["-u"][..]) } else { ("umount", &[][..]) };
        must(Command::new(dead.0).args(dead.1).arg(&mount.point));
        mount.set_mounted(false);
    } else {
        mount.unmount();
    }
    tree
}

fn an_image_on_a_read_only_disk_can_be_read(mount: &mut Mount) {
    let disk = Disk::begin(mount, "ext4", 128 * MIB, "1G");
    for crashed in [false, true] {
        let tree = leave(mount, crashed);
        must(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.point));
        read_only(mount, &tree);
        // For writing it is refused with the reason, and nothing is mounted.
        let (status, said) = mount.try_mount("");
        assert!(!status.success() && !mount.is_mounted(), "{said}");
        assert!(said.to_lowercase().contains("read-only"), "{said}");
        must(Command::new("mount").args(["-o", "remount,rw"]).arg(&disk.point));
        mount.mount();
        tree.must_equal(&Manifest::of(mount.path("tree")), "mounted for writing again");
    }
}

fn an_image_that_cannot_be_written_can_be_read(mount: &mut Mount) {
    mount.only_btfs();
    for crashed in [false, true] {
        let tree = leave(mount, crashed);
        sys::chmod(&mount.image, 0o400).expect("chmod");
        read_only(mount, &tree);
        let (status, said) = mount.try_mount("");
        assert!(!status.success() && !mount.is_mounted(), "{said}");
        assert!(said.to_lowercase().contains("permission"), "{said}");
        sys::chmod(&mount.image, 0o600).expect("chmod");
        mount.mount();
        tree.must_equal(&Manifest::of(mount.path("tree")), "mounted for writing again");
    }
}
