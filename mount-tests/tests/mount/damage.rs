//! Damage on the disk below: what it costs, and how it is found.

use btfs_mount_tests::cases;
use btfs_mount_tests::mount::{Mount, binary, wait_until};
use btfs_mount_tests::runner::{Case, not_run};
use btfs_mount_tests::shell::{describe, must};
use btfs_mount_tests::sys;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub fn cases() -> Vec<Case> {
    cases![
        a_damaged_block_costs_its_range_and_is_found,
        a_daemon_without_a_terminal_tells_the_systems_log,
        a_system_log_that_takes_nothing_stops_nobody,
        damage_in_the_tree_is_an_error_and_no_wrong_answer,
        damage_that_keeps_an_image_from_being_mounted_is_noted,
        a_zeroing_that_fails_leaves_nothing_old_in_the_cache,
        a_refused_request_is_no_damage,
        stats_tell_that_changes_are_refused_since_an_error,
        a_scrub_that_is_stopped_says_so,
    ]
}

const LEN: usize = 1 << 20;

/// Contents in which every eight bytes say where they belong.
fn contents(file: u64) -> Vec<u8> {
    (0..LEN as u64 / 8).flat_map(|i| (file << 32 | i).to_le_bytes()).collect()
}

/// Flips a byte of the image where these bytes lie; how often they were found.
fn damage(mount: &Mount, bytes: &[u8]) -> usize {
    let image = fs::read(&mount.image).expect("read the image");
    let found: Vec<usize> =
        image.windows(bytes.len()).enumerate().filter(|(_, w)| *w == bytes).map(|(i, _)| i).collect();
    let file = OpenOptions::new().write(true).open(&mount.image).expect("open the image");
    for at in &found {
        file.write_all_at(&[bytes[0] ^ 0x40], *at as u64).expect("damage the image");
    }
    found.len()
}

/// An image that is small enough to be looked through.
fn begin(mount: &mut Mount) {
    mount.only_btfs();
    mount.replace_image("64M");
    mount.mount();
}

fn a_damaged_block_costs_its_range_and_is_found(mount: &mut Mount) {
    begin(mount);
    fs::create_dir(mount.path("dir")).expect("mkdir");
    for file in 1..=3 {
        fs::write(mount.path(format!("dir/file-{file}")), contents(file)).expect("write");
    }
    mount.unmount();
    let second = contents(2);
    // In three blocks, two of them side by side; the log holds no copy of a write that was this long.
    for block in [20, 21, 200] {
        assert_eq!(damage(mount, &second[block * 4096 + 800..block * 4096 + 864]), 1);
    }
    // Files that nobody has looked up are named, too.
    mount.mount();
    let (status, said) = mount.said_by(mount.btfs(["scrub"]).arg(&mount.point));
    assert_eq!(status.code(), Some(4), "{said}");
    let verified = (3 * LEN / 4096 - 3) * 4096;
    assert!(said.contains("2 damaged"), "{said}");
    for range in ["bytes 81920 to 90112: ", "bytes 819200 to 823296: "] {
        assert!(said.lines().any(|l| l.starts_with("/dir/file-2 (inode ") && l.contains(range)), "{said}");
    }
    let (_, said) = mount.said_by(mount.btfs(["scrub", "--json"]).arg(&mount.point));
    assert!(said.contains(&format!("\"bytes\": {verified},")), "blocks beside the bad ones: {said}");
    assert!(said.contains("\"path\": \"/dir/file-2\"") && said.contains("\"from\": 819200"), "{said}");
    let file = fs::File::open(mount.path("dir/file-2")).expect("open");
    let mut block = vec![0; 4096];
    for i in 0..LEN / 4096 {
        let read = file.read_exact_at(&mut block, i as u64 * 4096);
        if [20, 21, 200].contains(&i) {
            let error = read.expect_err("a damaged block was read");
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        } else {
            read.unwrap_or_else(|e| panic!("block {i}: {e}"));
            assert_eq!(block, second[i * 4096..(i + 1) * 4096], "block {i}");
        }
    }
    drop(file);
    for file in [1, 3] {
        assert_eq!(fs::read(mount.path(format!("dir/file-{file}"))).expect("read"), contents(file));
    }
    // A part of a damaged block cannot be written; that is nobody else's business.
    let file = OpenOptions::new().write(true).open(mount.path("dir/file-2")).expect("open");
    let error = file.write_all_at(b"x", 20 * 4096 + 5).expect_err("damage is made to look right");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(file);
    // The mount goes on, for changes as well.
    fs::write(mount.path("dir/file-4"), "new").expect("write beside damage");
    let (_, stats) = mount.said_by(Command::new(binary()).arg("stats").arg("--json").arg(&mount.point));
    assert!(!stats.contains("\"damage\": 0"), "{stats}");
    let (status, said) = mount.said_by(Command::new(binary()).arg("scrub").arg(&mount.point));
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(said.contains("2 damaged"), "{said}");
    mount.unmount();
    let (status, said) =
        mount.said_by(Command::new(binary()).args(["fsck", "-n", "--scrub"]).arg(&mount.image));
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(said.contains("/dir/file-2"), "{said}");
    // Written anew, it is whole.
    mount.mount();
    fs::write(mount.path("dir/file-2"), &second).expect("write over damage");
    mount.remount();
    assert_eq!(fs::read(mount.path("dir/file-2")).expect("read"), second);
}

/// A system log of this case's own.
fn own_log(mount: &Mount) -> UnixDatagram {
    if !sys::is_root() {
        not_run("needs a /dev of its own");
    }
    let [upper, work] = ["upper", "work"].map(|name| mount.base.join(name));
    [&upper, &work].into_iter().for_each(|directory| fs::create_dir(directory).expect("mkdir"));
    let options = format!("lowerdir=/dev,upperdir={},workdir={}", upper.display(), work.display());
    let overlaid = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options, "/dev"]).status();
    if !overlaid.expect("mount(8)").success() {
        not_run("overlayfs cannot be mounted here");
    }
    let _ = fs::remove_file("/dev/log");
    let log = UnixDatagram::bind("/dev/log").expect("/dev/log");
    log.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
    log
}

/// Whoever reads it may be stopped, or wait for this very mount.
fn a_system_log_that_takes_nothing_stops_nobody(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let log = own_log(mount);
    mount.mount();
    // Each is a message of its own.
    for size in 1..1000 {
        let size = (size * 16384).to_string();
        let (status, said) = mount.said_by(mount.btfs(["resize"]).arg(&mount.point).arg(&size));
        assert_eq!(status.code(), Some(2), "{said}");
    }
    fs::write(mount.path("file"), "text").expect("write");
    // They are not lost, either.
    let mut messages = 0;
    while messages < 999 {
        let mut message = [0; 4096];
        let length = log.recv(&mut message).expect("a message");
        messages += String::from_utf8_lossy(&message[..length]).contains("cannot shrink") as u32;
    }
    mount.unmount();
}

fn a_daemon_without_a_terminal_tells_the_systems_log(mount: &mut Mount) {
    begin(mount);
    if !sys::is_root() {
        not_run("needs a /dev of its own");
    }
    fs::write(mount.path("file"), contents(1)).expect("write");
    mount.unmount();
    assert_eq!(damage(mount, &contents(1)[20 * 4096..20 * 4096 + 64]), 1);
    let log = own_log(mount);
    let next = || {
        let mut message = [0; 4096];
        let length = log.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    mount.mount();
    fs::write(mount.path("other"), "text").expect("write");
    mount.kill();
    mount.recover();
    // <28>: a warning of a daemon; <27>: an error.
    let recovered = next();
    assert!(recovered.starts_with("<28>") && recovered.contains(": recovered in "), "{recovered}");
    assert!(
        recovered.contains(&format!(" btfs[{}]: {}", mount.daemon(), mount.image.display())),
        "{recovered}"
    );
    for _ in 0..3 {
        fs::read(mount.path("file")).expect_err("a damaged block was read");
    }
    let damaged = next();
    assert!(damaged.starts_with("<27>") && damaged.contains("/file"), "{damaged}");
    // Nothing is on its way any more once the daemon is gone.
    let daemon = mount.daemon();
    mount.unmount();
    wait_until("the daemon has ended", || sys::kill(daemon, 0).is_err());
    log.set_nonblocking(true).expect("no waiting");
    let again = log.recv(&mut [0; 4096]).expect_err("the same damage is told again");
    assert_eq!(again.kind(), ErrorKind::WouldBlock);
    drop(log);
    must(Command::new("umount").args(["-l", "/dev"]));
}

fn damage_in_the_tree_is_an_error_and_no_wrong_answer(mount: &mut Mount) {
    begin(mount);
    fs::write(mount.path("a file whose name is to be damaged"), "contents").expect("write");
    mount.unmount();
    let before = fs::read(&mount.image).expect("read the image");
    assert!(damage(mount, b"whose name is to be damaged") > 0);
    // The only leaf cannot be read: nothing can be, and nothing may look as if there were nothing.
    let (status, said) = mount.try_mount("");
    if status.success() {
        mount.set_mounted(true);
        let listed = fs::read_dir(&mount.point).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        listed.expect_err("a damaged directory was listed");
        mount.unmount();
    } else {
        assert!(said.contains("damaged"), "{said}");
    }
    fs::write(&mount.image, before).expect("restore the image");
}

fn damage_that_keeps_an_image_from_being_mounted_is_noted(mount: &mut Mount) {
    begin(mount);
    // In the same page as the root directory.
    fs::write(mount.path("small"), &contents(1)[..100]).expect("write");
    mount.unmount();
    assert!(damage(mount, &contents(1)[..64]) > 0);
    let (status, said) = mount.said_by(mount.btfs(["mount"]).arg(&mount.image).arg(&mount.point));
    assert_eq!(status.code(), Some(32), "{said}");
    assert!(said.contains("btfs fsck -n"), "{said}");
    // It was closed in order, and the check at boot looks all the same.
    let (status, said) = mount.said_by(mount.btfs(["fsck", "-p"]).arg(&mount.image));
    assert_eq!(status.code(), Some(4), "{said}");
    let (status, said) = mount.said_by(mount.btfs(["fsck", "-y"]).arg(&mount.image));
    assert_eq!(status.code(), Some(1), "{said}");
    mount.mount();
}

fn a_zeroing_that_fails_leaves_nothing_old_in_the_cache(mount: &mut Mount) {
    begin(mount);
    fs::write(mount.path("file"), contents(1)).expect("write");
    mount.unmount();
    assert_eq!(damage(mount, &contents(1)[40 * 4096 + 800..40 * 4096 + 864]), 1);
    mount.mount();
    let first = |mount: &Mount| {
        let mut block = [0; 4096];
        File::open(mount.path("file")).expect("open").read_exact_at(&mut block, 0).expect("read");
        block
    };
    let cached = first(mount);
    let file = OpenOptions::new().write(true).open(mount.path("file")).expect("open");
    // A part of the first block is zeroed, and then one of the damaged block, whose rest is not known.
    let error = sys::fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, 100, 40 * 4096).expect_err("damage");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(file);
    let seen = first(mount);
    assert!(seen != cached, "nothing was done before the error");
    mount.remount();
    assert!(first(mount) == seen, "the kernel kept what was there before");
    fs::remove_file(mount.path("file")).expect("unlink");
}

fn a_refused_request_is_no_damage(mount: &mut Mount) {
    begin(mount);
    let (status, said) = mount.said_by(mount.btfs(["resize"]).arg(&mount.point).arg("32M"));
    assert!(!status.success(), "{said}");
    let (_, stats) = mount.said_by(mount.btfs(["stats", "--json"]).arg(&mount.point));
    assert!(stats.contains("\"damage\": 0") && stats.contains("\"state\": \"rw\""), "{stats}");
    fs::write(mount.path("file"), "contents").expect("write");
}

fn stats_tell_that_changes_are_refused_since_an_error(mount: &mut Mount) {
    begin(mount);
    // So many small contents that they have leaves of the tree for themselves.
    for file in 0..400 {
        fs::write(mount.path(format!("file-{file}")), &contents(file)[..1500]).expect("write");
    }
    mount.unmount();
    let before = fs::read(&mount.image).expect("read the image");
    assert!(damage(mount, &contents(200)[800..864]) > 0);
    mount.mount();
    // What stands beside the one byte would be lost.
    let file = OpenOptions::new().write(true).open(mount.path("file-200")).expect("open");
    let error = file.write_all_at(b"x", 10).expect_err("a damaged page was changed");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(file);
    fs::write(mount.path("other"), "x").expect_err("changes go on after an error");
    let (_, stats) = mount.said_by(mount.btfs(["stats", "--json"]).arg(&mount.point));
    assert!(stats.contains("\"state\": \"failed: image is damaged"), "{stats}");
    let (_, stats) = mount.said_by(mount.btfs(["stats"]).arg(&mount.point));
    assert!(stats.contains("changes are refused since an error: image is damaged"), "{stats}");
    // Everything else is on disk, and whoever has to do with the image is told.
    let (status, said) = mount.said_by(mount.btfs(["umount"]).arg(&mount.point));
    assert!(status.success() && said.contains("marked as damaged"), "{status}: {said}");
    mount.set_mounted(false);
    let (_, said) = mount.said_by(mount.btfs(["info"]).arg(&mount.image));
    assert!(said.contains("marked as damaged"), "{said}");
    // Nobody meets it this time.
    mount.mount();
    mount.unmount();
    let (status, said) = mount.said_by(mount.btfs(["fsck", "-p"]).arg(&mount.image));
    assert_eq!(status.code(), Some(4), "damage is forgotten: {said}");
    let (_, said) = mount.said_by(mount.btfs(["fsck", "-y"]).arg(&mount.image));
    let (status, again) = mount.said_by(mount.btfs(["fsck", "-p"]).arg(&mount.image));
    assert!(status.success() && again.contains("closed in order"), "{said}{again}");
    fs::write(&mount.image, before).expect("restore the image");
}

fn a_scrub_that_is_stopped_says_so(mount: &mut Mount) {
    begin(mount);
    fs::write(mount.path("file"), contents(1)).expect("write");
    let state = |mount: &Mount, state: &str| {
        let said = must(mount.btfs(["stats", "--json"]).arg(&mount.point));
        String::from_utf8_lossy(&said.stdout).contains(&format!("\"state\": \"{state}\""))
    };
    // So slow that it takes 16 seconds.
    let start = |mount: &Mount| -> Child {
        // Where the tests run in the background, their children would ignore SIGINT.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(binary()).args(["scrub", "--rate", "64K"]).arg(&mount.point);
        let child = command.stdout(Stdio::piped()).spawn().expect("scrub starts");
        wait_until("a scrub is under way", || state(mount, "running"));
        child
    };
    let child = start(mount);
    must(mount.btfs(["scrub", "--stop"]).arg(&mount.point));
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(32), "{}", describe(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("stopped before the end"), "{output:?}");
    for (signal, status) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let child = start(mount);
        sys::kill(child.id() as i32, signal).expect("kill");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(status), "{}", describe(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("stopped before the end"), "{output:?}");
        assert!(state(mount, "stopped"), "the scrub goes on in the daemon");
    }
    let output = must(mount.btfs(["stats"]).arg(&mount.point));
    assert!(String::from_utf8_lossy(&output.stdout).contains("stopped before the end"), "{output:?}");
    let output = must(mount.btfs(["scrub"]).arg(&mount.point));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("stopped"), "{output:?}");
    must(mount.btfs(["scrub", "--background", "--rate", "64K"]).arg(&mount.point));
    assert!(state(mount, "running"), "a scrub in the background");
}
