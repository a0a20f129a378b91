//! The commands where something is in their way: other mounts, names that are no text, full disks for their output, sizes that
//! cannot be.

use btfs_mount_tests::cases;
use btfs_mount_tests::mount::{Mount, binary, need_helpers, wait_until};
use btfs_mount_tests::runner::{Case, not_run};
use btfs_mount_tests::shell::{describe, must, outcome};
use btfs_mount_tests::sys;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

pub fn cases() -> Vec<Case> {
    let mut all = cases![
        a_bind_mount_does_not_keep_umount_waiting,
        a_mount_in_another_namespace_does_not_keep_umount_waiting,
        a_dead_mount_goes_although_the_image_is_mounted_elsewhere,
        a_dead_mount_stays_until_the_next_one_is_ready,
        one_signal_ends_a_scrub_of_a_daemon_that_does_not_answer,
        an_image_below_its_own_mount_is_waited_for,
        limits_that_end_a_mount_later_are_refused,
        an_image_that_went_or_was_cut_while_it_was_mounted_is_told_of,
        names_that_are_no_text_are_mounted_and_unmounted,
        an_impossible_growth_leaves_the_mount_as_it_is,
        a_remount_refuses_what_it_does_not_know,
        a_remount_changes_what_becomes_of_access_times,
        output_that_cannot_be_written_is_an_error_and_no_panic,
        what_could_not_be_made_is_not_in_the_way_of_the_next_try,
        a_mount_that_cannot_start_its_threads_says_so,
        an_image_under_another_name_is_unmounted,
    ];
    all.push(
        Case::new("", a_user_who_may_have_no_more_threads_is_told_so)
            .by_user("mount::commands::a_user_who_may_have_no_more_threads_is_told_so"),
    );
    all
}

fn only_root(mount: &Mount) {
    mount.only_btfs();
    if !sys::is_root() || mount.by_user() {
        not_run("only root can mount so");
    }
}

fn a_bind_mount_does_not_keep_umount_waiting(mount: &mut Mount) {
    only_root(mount);
    let second = mount.base.join("second");
    fs::create_dir(&second).expect("mkdir");
    fs::create_dir(mount.path("dir")).expect("mkdir");
    must(Command::new("mount").arg("--bind").arg(mount.path("dir")).arg(&second));
    fs::write(second.join("file"), "text").expect("write");
    let (status, said) = mount.said_by(mount.btfs(["umount"]).arg(&mount.point));
    assert!(status.success() && said.contains("still mounted at"), "{status}: {said}");
    assert_eq!(fs::read(second.join("file")).expect("read"), b"text");
    must(Command::new("umount").arg(&second));
    mount.set_mounted(false);
    mount.mount();
    assert_eq!(fs::read(mount.path("dir/file")).expect("read"), b"text");
}

fn a_mount_in_another_namespace_does_not_keep_umount_waiting(mount: &mut Mount) {
    only_root(mount);
    fs::write(mount.path("file"), "text").expect("write");
    let mut unshare = Command::new("unshare");
    let mut other = unshare
        .args(["-m", "--propagation", "private", "sh", "-c", "echo there; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare starts");
    let mut line = [0; 6];
    std::io::Read::read_exact(other.stdout.as_mut().expect("its output"), &mut line).expect("it is there");
    let (status, said) = mount.said_by(mount.btfs(["umount"]).arg(&mount.point));
    other.kill().and_then(|()| other.wait()).expect("it ends");
    assert!(status.success() && said.contains("mount namespace of process"), "{status}: {said}");
    mount.set_mounted(false);
    mount.mount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
}

fn a_dead_mount_goes_although_the_image_is_mounted_elsewhere(mount: &mut Mount) {
    only_root(mount);
    mount.kill();
    wait_until("the mount is dead", || sys::errno(sys::statvfs(&mount.point)) == libc::ENOTCONN);
    let second = mount.base.join("second");
    fs::create_dir(&second).expect("mkdir");
    must(mount.btfs(["mount"]).arg(&mount.image).arg(&second));
    must(mount.btfs(["umount"]).arg(&mount.point));
    fs::write(second.join("file"), "text").expect("write");
    must(mount.btfs(["umount"]).arg(&second));
    mount.set_mounted(false);
    mount.mount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
}

/// Programs would write to the directory below it.
fn a_dead_mount_stays_until_the_next_one_is_ready(mount: &mut Mount) {
    mount.only_btfs();
    for n in 0..3000 {
        fs::write(mount.path(format!("file-{n}")), [7; 1900]).expect("write");
    }
    must(mount.btfs(["sync"]).arg(&mount.point));
    mount.kill();
    let errno = || sys::errno(sys::statvfs(&mount.point));
    wait_until("the mount is dead", || errno() == libc::ENOTCONN);
    // Somebody else has the image; and what is given as one is none.
    let lock = File::open(&mount.image).expect("open");
    lock.lock().expect("lock");
    let (status, said) = mount.try_mount("");
    assert!(!status.success() && said.contains("in use"), "{said}");
    let (status, said) = mount.said_by(mount.btfs(["mount", "/etc/passwd"]).arg(&mount.point));
    assert!(!status.success() && said.contains("not a btfs image"), "{said}");
    assert_eq!(errno(), libc::ENOTCONN);
    lock.unlock().expect("unlock");
    // Somebody looks all the time while the log is replayed.
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let (mut dead, mut bare) = (0, 0);
            while !ended.load(Ordering::SeqCst) {
                match fs::metadata(mount.path("file-0")).map_err(|e| e.kind()) {
                    Ok(_) => {}
                    Err(io::ErrorKind::NotFound) => bare += 1,
                    Err(_) => dead += 1,
                }
            }
            (dead, bare)
        });
        let (status, said) = mount.try_mount("");
        ended.store(true, Ordering::SeqCst);
        assert!(status.success(), "{said}");
        // One system call takes the old mount away, and another one brings the new one: seldom does a look fall in between.
        let (dead, bare) = looks.join().expect("looks");
        assert!(bare < dead, "the directory below showed at {bare} looks, the dead mount at {dead}");
    });
    assert_eq!(fs::read_dir(&mount.point).expect("listing").count(), 3000);
}

fn one_signal_ends_a_scrub_of_a_daemon_that_does_not_answer(mount: &mut Mount) {
    mount.only_btfs();
    let daemon = mount.daemon();
    sys::kill(daemon, libc::SIGSTOP).expect("stop");
    let scrub = mount.btfs(["scrub"]).arg(&mount.point).stderr(Stdio::piped()).spawn().expect("scrub");
    // A signal that comes before it is caught ends it as well.
    std::thread::sleep(std::time::Duration::from_millis(100));
    sys::kill(scrub.id() as i32, libc::SIGTERM).expect("a signal");
    let ended = std::thread::spawn(move || scrub.wait_with_output());
    wait_until("the scrub has ended", || ended.is_finished());
    sys::kill(daemon, libc::SIGCONT).expect("go on");
    let output = ended.join().expect("a thread").expect("an end");
    assert!(output.status.code() == Some(143) || output.status.signal() == Some(15), "{}", describe(&output));
}

fn an_image_below_its_own_mount_is_waited_for(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let image = mount.point.join("image.db");
    must(mount.btfs(["mkfs", "--size", "64M"]).arg(&image));
    for options in ["rw", "ro"] {
        let (status, said) = mount.said_by(mount.btfs(["mount", "-o", options]).args([&image, &mount.point]));
        assert!(status.success(), "{said}");
        if options == "rw" {
            // What is found by the image's name while it is mounted.
            fs::write(&image, "text").expect("write");
        }
        let (status, said) = mount.said_by(mount.btfs(["umount"]).arg(&mount.point));
        assert!(status.success() && said.is_empty(), "{options}: {said}");
        // Of what is only read there is nothing to wait for.
        let free = File::open(&image).expect("open");
        free.try_lock_shared().expect("the daemon is done");
    }
    fs::remove_file(&image).expect("remove");
    // Another image has the name of one that is unmounted, and is mounted itself.
    mount.mount();
    let (away, second) = (mount.base.join("away.db"), mount.base.join("second"));
    fs::rename(&mount.image, &away).expect("rename");
    fs::create_dir(&second).expect("mkdir");
    must(mount.btfs(["mkfs", "--size", "64M"]).arg(&mount.image));
    let (status, said) = mount.said_by(mount.btfs(["mount"]).args([&mount.image, &second]));
    assert!(status.success(), "{said}");
    let (status, said) = mount.said_by(mount.btfs(["umount"]).arg(&mount.point));
    assert!(status.success() && said.contains("is another image by now"), "{said}");
    must(mount.btfs(["umount"]).arg(&second));
    wait_until("the daemon is done", || File::open(&away).and_then(|f| Ok(f.try_lock()?)).is_ok());
    fs::rename(&away, &mount.image).expect("rename");
    mount.set_mounted(false);
    mount.mount();
}

fn limits_that_end_a_mount_later_are_refused(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let (status, said) = mount.try_mount("cache_size=1P");
    assert!(status.code() == Some(2) && said.contains("of memory"), "{said}");
    // In blocks of 512 or 1024 bytes; the image is larger.
    let limited = |limit: &str| {
        let script = format!("ulimit {limit} -f 1000; exec \"$0\" mount \"$1\" \"$2\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(binary()).args([&mount.image, &mount.point]);
        mount.said_by(&mut command)
    };
    let (status, said) = limited("");
    assert!(status.code() == Some(2) && said.contains("ulimit -f"), "{said}");
    // What may be raised is.
    let (status, said) = limited("-S");
    assert!(status.success(), "{said}");
    fs::write(mount.path("file"), vec![7; 5 << 20]).expect("write");
    must(mount.btfs(["umount"]).arg(&mount.point));
    mount.mount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), vec![7; 5 << 20]);
}

fn an_image_that_went_or_was_cut_while_it_was_mounted_is_told_of(mount: &mut Mount) {
    mount.only_btfs();
    fs::write(mount.path("file"), "text").expect("write");
    // Another image has its name.
    let away = mount.base.join("away.db");
    fs::rename(&mount.image, &away).expect("rename");
    must(mount.btfs(["mkfs", "--size", "64M"]).arg(&mount.image));
    let told = describe(&must(mount.btfs(["info"]).arg(&mount.image)));
    assert!(!told.contains("mounted at"), "{told}");
    fs::remove_file(&mount.image).expect("remove");
    let (status, said) = mount.said_by(mount.btfs(["umount"]).arg(&mount.point));
    assert!(status.success() && said.contains("not waited for"), "{said}");
    wait_until("the daemon is done", || File::open(&away).and_then(|f| Ok(f.try_lock()?)).is_ok());
    fs::rename(&away, &mount.image).expect("rename");
    mount.set_mounted(false);
    mount.mount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
    // Cut, and nobody reads what was lost.
    let length = fs::metadata(&mount.image).expect("the image").len();
    let image = OpenOptions::new().write(true).open(&mount.image).expect("open");
    image.set_len(length - 4096).expect("cut");
    let (status, said) = mount.said_by(mount.btfs(["umount"]).arg(&mount.point));
    assert!(status.code() == Some(2) && said.contains("not closed in order"), "{said}");
    mount.set_mounted(false);
    // Nothing was there.
    image.set_len(length).expect("as long as before");
    drop(image);
    must(mount.btfs(["fsck", "-p"]).arg(&mount.image));
    mount.mount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
}

fn names_that_are_no_text_are_mounted_and_unmounted(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let image = mount.base.join(OsStr::from_bytes(b"image-\xff.db"));
    let point = mount.base.join(OsStr::from_bytes(b"mnt-\xfe"));
    must(mount.btfs(["mkfs", "--size", "1G"]).arg(&image));
    fs::create_dir(&point).expect("mkdir");
    must(mount.btfs(["mount"]).arg(&image).arg(&point));
    fs::write(point.join("file"), "text").expect("write");
    // Others see theirs beside it.
    mount.mount();
    let (status, said) = mount.said_by(mount.btfs(["mount"]).arg(&image).arg(&mount.point));
    assert!(!status.success() && said.contains("busy"), "{said}");
    mount.unmount();
    must(mount.btfs(["resize"]).arg(&image).arg("100G"));
    must(mount.btfs(["umount"]).arg(&point));
    must(mount.btfs(["fsck", "-n"]).arg(&image));
    mount.mount();
}

fn an_impossible_growth_leaves_the_mount_as_it_is(mount: &mut Mount) {
    mount.only_btfs();
    for (size, reason) in [("1M", "cannot shrink"), ("7E", "cannot have"), ("+1G", "a size is")] {
        let (status, said) = mount.said_by(mount.btfs(["resize"]).arg(&mount.point).arg(size));
        assert!(!status.success() && said.contains(reason), "{size}: {said}");
        fs::write(mount.path("file"), "still works").expect("write");
    }
    must(mount.btfs(["resize"]).arg(&mount.point).arg("1T"));
    mount.remount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"still works");
}

fn a_remount_refuses_what_it_does_not_know(mount: &mut Mount) {
    only_root(mount);
    need_helpers(mount);
    let remount = |options: &str| {
        mount.said_by(Command::new("mount").arg("-o").arg(format!("remount,{options}")).arg(&mount.point))
    };
    let said = remount_says(mount, "bogus");
    assert!(said.contains("unknown mount option `bogus`"), "{said}");
    let (status, said) = remount("commit=1,noatime");
    assert!(status.success() && said.contains("commit=1 can change only when"), "{status}: {said}");
    let (status, said) = remount("ro");
    assert!(status.success(), "{said}");
    assert_eq!(sys::errno(File::create(mount.path("file"))), libc::EROFS);
    let (status, said) = remount("rw");
    assert!(status.success(), "{said}");
    fs::write(mount.path("file"), "text").expect("write");
    // An image that was opened for reading only would stay so under a mount that is called writable.
    mount.unmount();
    let (status, said) = mount.try_mount("ro");
    assert!(status.success(), "{said}");
    mount.set_mounted(true);
    let said = remount_says(mount, "rw");
    assert!(said.contains("opened for reading only"), "{said}");
    let line = fs::read_to_string("/proc/mounts").expect("the table of mounts");
    let line = line.lines().find(|line| line.contains(&*mount.point.to_string_lossy())).expect("the mount");
    assert!(line.contains(" ro,"), "{line}");
}

fn a_remount_changes_what_becomes_of_access_times(mount: &mut Mount) {
    only_root(mount);
    need_helpers(mount);
    let modes = [("noatime", false), ("relatime", true), ("ro", false), ("rw", true), ("strictatime", true)];
    for first in ["", "noatime"] {
        let name = |mode: &str| format!("{first}, then {mode}");
        for (mode, _) in modes {
            fs::create_dir_all(mount.path(name(mode)).join("entry")).expect("mkdir");
            sys::set_times(&mount.path(name(mode)), (1000, 0), (2000, 0)).expect("utimensat");
        }
        mount.unmount();
        let (status, said) = mount.try_mount(first);
        assert!(status.success(), "{said}");
        mount.set_mounted(true);
        for (mode, changes) in modes {
            let mut remount = Command::new("mount");
            must(remount.arg("-o").arg(format!("remount,{mode}")).arg(&mount.point));
            assert_eq!(fs::read_dir(mount.path(name(mode))).expect("readdir").count(), 1);
            let atime = fs::metadata(mount.path(name(mode))).expect("stat").atime();
            assert_eq!(atime > 2000, changes, "{}: {atime}", name(mode));
        }
        // What the kernel keeps of attributes it has not been told of is gone then.
        mount.remount();
        for (mode, changes) in modes {
            let atime = fs::metadata(mount.path(name(mode))).expect("stat").atime();
            assert_eq!(atime > 2000, changes, "{} in the image: {atime}", name(mode));
        }
    }
}

/// What a remount that fails has to say.
fn remount_says(mount: &Mount, options: &str) -> String {
    let mut command = Command::new("mount");
    command.arg("-o").arg(format!("remount,{options}")).arg(&mount.point);
    let (status, said) = mount.said_by(&mut command);
    assert!(!status.success(), "remount,{options}: {said}");
    said
}

fn output_that_cannot_be_written_is_an_error_and_no_panic(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let new = mount.base.join("new.db");
    for (command, arguments, failed) in [
        ("info", vec![mount.image.as_os_str()], 2),
        ("info", vec![OsStr::new("--json"), mount.image.as_os_str()], 2),
        ("fsck", vec![OsStr::new("-n"), mount.image.as_os_str()], 8),
        ("fsck", vec![OsStr::new("--json"), mount.image.as_os_str()], 8),
        ("mkfs", vec![OsStr::new("-F"), new.as_os_str()], 1),
    ] {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let output = outcome(mount.btfs([command]).args(&arguments).stdout(full));
        assert_eq!(output.status.signal(), None, "{}", describe(&output));
        assert_eq!(output.status.code(), Some(failed), "{command}: {}", describe(&output));
        // A reader that has seen enough is no error.
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let output = outcome(mount.btfs([command]).args(&arguments).stdout(writer));
        assert_eq!(output.status.code(), Some(0), "{}", describe(&output));
    }
    mount.mount();
}

fn what_could_not_be_made_is_not_in_the_way_of_the_next_try(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let (image, point) = (mount.base.join("new.db"), mount.base.join("new"));
    let create = |arguments: &[&str]| {
        mount.said_by(mount.btfs(["mount", "--create"]).args(arguments).arg(&image).arg(&point))
    };
    let (status, said) = create(&["--size", "1K"]);
    assert!(!status.success() && said.contains("an image cannot have"), "{said}");
    assert!(!image.exists() && !point.exists(), "something is left");
    // As touch(1) leaves it.
    File::create(&image).expect("create");
    let (status, said) = create(&[]);
    assert!(status.success(), "{said}");
    fs::write(point.join("file"), "text").expect("write");
    must(mount.btfs(["umount"]).arg(&point));
    mount.mount();
}

fn a_mount_that_cannot_start_its_threads_says_so(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    // Few files, or many of which most are taken.
    let taken = "ulimit -n 70; for fd in {10..64}; do eval \"exec $fd</dev/null\"; done";
    for limit in ["ulimit -n 20", taken] {
        let script = format!("{limit}; exec \"$0\" mount -o threads=8 \"$1\" \"$2\"");
        let (status, said) = mount.said_by(&mut by_bash(mount, &script));
        assert!(!status.success() && said.contains("open files"), "{status}: {said}");
    }
    mount.mount();
}

/// A script that gets the binary, the image and the mount point, as the user who mounts.
fn by_bash(mount: &Mount, script: &str) -> Command {
    let mut bash = Command::new("bash");
    if mount.by_user() {
        let (uid, gid) = sys::ordinary_user();
        bash.uid(uid).gid(gid);
    }
    bash.args(["-c", script]).arg(binary()).arg(&mount.image).arg(&mount.point);
    bash
}

/// Each limit that is too small ends at another thread.
fn a_user_who_may_have_no_more_threads_is_told_so(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let mut refused = 0;
    for limit in 1.. {
        let script = format!("ulimit -u {limit}; exec \"$0\" mount -o threads=4 \"$1\" \"$2\"");
        let (status, said) = mount.said_by(&mut by_bash(mount, &script));
        if status.success() {
            // Other processes of this user may have taken a thread meanwhile: then it is taken away again.
            std::thread::sleep(std::time::Duration::from_millis(300));
            if mount.is_mounted() {
                break;
            }
            continue;
        }
        assert!(!said.contains("panicked"), "{limit}: {said}");
        assert!(matches!(status.code(), Some(2 | 32)), "{limit}: {status}: {said}");
        assert!(!mount.is_mounted(), "{limit}: mounted, and {said}");
        refused += u32::from(said.contains("starting a thread"));
    }
    assert!(refused > 10, "only {refused} threads were missed");
    mount.set_mounted(true);
    fs::write(mount.path("file"), "text").expect("write");
    mount.remount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
}

fn an_image_under_another_name_is_unmounted(mount: &mut Mount) {
    mount.only_btfs();
    fs::write(mount.path("file"), "text").expect("write");
    let moved = mount.base.join("moved.db");
    fs::rename(&mount.image, &moved).expect("rename");
    must(mount.btfs(["umount"]).arg(&mount.point));
    mount.set_mounted(false);
    fs::rename(&moved, &mount.image).expect("rename");
    mount.mount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
}
