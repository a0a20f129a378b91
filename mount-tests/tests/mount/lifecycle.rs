//! Making, mounting, unmounting, growing: the command, and what mount(8) and fstab make of it.

use btfs_mount_tests::cases;
use btfs_mount_tests::manifest::{Manifest, digest};
use btfs_mount_tests::mount::{Mount, Peer, binary, need_helpers, wait_until};
use btfs_mount_tests::random::Random;
use btfs_mount_tests::runner::Case;
use btfs_mount_tests::shell::{describe, must, outcome};
use btfs_mount_tests::sys;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

pub fn cases() -> Vec<Case> {
    let by_user = |case: Case, name| case.by_user(name);
    let mut all = cases![
        a_dead_mount_is_replaced_by_the_next_one,
        a_second_mount_is_refused_and_told_who_has_the_image,
        a_read_only_mount_changes_nothing,
        a_mount_can_be_made_read_only_and_back,
        an_unknown_option_is_refused_by_name,
        mount_8_and_fstab_work,
        mkfs_8_and_fsck_8_work_without_a_terminal,
        umount_8_can_be_followed_at_once_by_a_mount,
        a_daemon_of_mount_8_is_waited_for,
        a_daemon_told_to_end_loses_nothing,
        a_busy_mount_is_not_unmounted,
        a_daemon_that_does_not_answer_can_be_detached,
        a_foreground_daemon_ends_with_the_mount,
        a_daemon_started_by_nohup_outlives_the_terminal,
        an_image_is_made_on_request_and_never_overwritten,
        options_are_what_proc_mounts_shows,
        who_is_not_let_in_sees_nothing,
        what_is_no_image_is_not_mounted,
        an_image_can_grow,
        info_and_stats_tell_about_the_image,
        an_image_can_be_copied_and_is_the_same,
    ];
    let read_only = Case::new("", a_read_only_mount_needs_no_write_permission);
    all.push(by_user(read_only, "mount::lifecycle::a_read_only_mount_needs_no_write_permission"));
    let deaf = Case::new("", a_user_mounts_under_who_ignores_the_end_of_children);
    all.push(by_user(deaf, "mount::lifecycle::a_user_mounts_under_who_ignores_the_end_of_children"));
    all
}

fn a_dead_mount_is_replaced_by_the_next_one(mount: &mut Mount) {
    for round in 0..3 {
        fs::write(mount.path(format!("file-{round}")), "synced").expect("write");
        File::open(mount.path(format!("file-{round}"))).and_then(|f| f.sync_all()).expect("fsync");
        mount.kill();
        if mount.peer == Peer::Btfs {
            wait_until("the mount is dead", || sys::errno(sys::statvfs(&mount.point)) == libc::ENOTCONN);
        }
        mount.recover();
        for earlier in 0..=round {
            assert_eq!(fs::read(mount.path(format!("file-{earlier}"))).expect("read"), b"synced");
        }
    }
    // The dead mount has not stayed below the new one.
    mount.unmount();
    fs::read_dir(&mount.point).expect("the mount point itself");
}

fn a_second_mount_is_refused_and_told_who_has_the_image(mount: &mut Mount) {
    mount.only_btfs();
    let daemon = mount.daemon();
    let other = mount.base.join("other");
    fs::create_dir(&other).expect("mkdir");
    for point in [&other, &mount.point] {
        let (status, said) = mount.said_by(mount.btfs(["mount"]).arg(&mount.image).arg(point));
        assert!(!status.success(), "a second mount of the same image");
        assert!(
            point != &other || said.contains(&daemon.to_string()),
            "does not name the process {daemon}: {said}"
        );
    }
    let output = outcome(mount.btfs(["fsck", "-n"]).arg(&mount.image));
    assert_eq!(output.status.code(), Some(8), "fsck of a mounted image: {}", describe(&output));
    let output = outcome(mount.btfs(["mkfs", "-F"]).arg(&mount.image));
    assert!(!output.status.success(), "mkfs over a mounted image");
    // And the first one has not suffered.
    fs::write(mount.path("file"), "works").expect("write");
    mount.remount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"works");
}

fn a_read_only_mount_changes_nothing(mount: &mut Mount) {
    mount.shell().run("mkdir d; echo text > d/file; ln -s file d/link; setfattr -n user.a -v b d/file");
    let before = Manifest::of(&mount.point);
    mount.unmount();
    let image = digest(&mount.image);
    let (status, said) = mount.try_mount("ro");
    assert!(status.success(), "{said}");
    mount.set_mounted(true);
    before.must_equal(&Manifest::of(&mount.point), "mounted read-only");
    for (what, error) in [
        ("write", sys::errno(fs::write(mount.path("d/file"), "x"))),
        ("create", sys::errno(File::create(mount.path("new")))),
        ("mkdir", sys::errno(fs::create_dir(mount.path("new")))),
        ("unlink", sys::errno(fs::remove_file(mount.path("d/file")))),
        ("rename", sys::errno(fs::rename(mount.path("d"), mount.path("e")))),
        ("chmod", sys::errno(sys::chmod(&mount.path("d"), 0o700))),
        ("setxattr", sys::errno(sys::set_xattr(&mount.path("d"), "user.x", b"y"))),
        ("utimensat", sys::errno(sys::set_times(&mount.path("d"), (1, 1), (1, 1)))),
    ] {
        assert_eq!(error, libc::EROFS, "{what}");
    }
    mount.unmount();
    if mount.peer == Peer::Btfs {
        assert_eq!(digest(&mount.image), image, "the image has changed");
    }
}

fn a_read_only_mount_needs_no_write_permission(mount: &mut Mount) {
    mount.only_btfs();
    fs::write(mount.path("file"), "readable").expect("write");
    mount.unmount();
    sys::chmod(&mount.image, 0o444).expect("chmod");
    let (status, said) = mount.try_mount("");
    assert!(!status.success() && !mount.is_mounted(), "mounted for writing without permission");
    assert!(!said.is_empty(), "no word about why");
    let (status, said) = mount.try_mount("ro");
    assert!(status.success(), "{said}");
    mount.set_mounted(true);
    mount.shell().run("[ \"$(cat file)\" = readable ]; refused touch file");
}

/// Some supervisors, and programs in containers, ignore SIGCHLD, and what they start does as well.
fn a_user_mounts_under_who_ignores_the_end_of_children(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let mut command = mount.btfs(["mount"]);
    sys::ignore(&mut command, libc::SIGCHLD);
    let (status, said) = mount.said_by(command.arg(&mount.image).arg(&mount.point));
    assert!(status.success(), "{said}");
    mount.set_mounted(true);
    fs::write(mount.path("file"), "text").expect("write");
    let mut command = mount.btfs(["umount"]);
    sys::ignore(&mut command, libc::SIGCHLD);
    let (status, said) = mount.said_by(command.arg(&mount.point));
    assert!(status.success(), "{said}");
    mount.set_mounted(false);
}

fn a_mount_can_be_made_read_only_and_back(mount: &mut Mount) {
    need_helpers(mount);
    fs::write(mount.path("file"), "before").expect("write");
    mount.shell().run("mount -o remount,ro \"$MNT\"");
    assert_eq!(sys::errno(fs::write(mount.path("file"), "x")), libc::EROFS);
    assert_eq!(sys::errno(File::create(mount.path("new"))), libc::EROFS);
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"before");
    mount.shell().run("mount -o remount,rw \"$MNT\"");
    fs::write(mount.path("file"), "after").expect("write");
    mount.remount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"after");
}

fn an_unknown_option_is_refused_by_name(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    for options in ["frobnicate", "noatime,frobnicate=7,rw", "writeback=frobnicate", "commit=frobnicate"] {
        let (status, said) = mount.try_mount(options);
        assert!(!status.success() && !mount.is_mounted(), "{options} was accepted");
        assert!(said.contains("frobnicate"), "{options}: {said}");
    }
    let (status, said) = mount.try_mount("allow_root,allow_other");
    assert!(status.code() == Some(1) && said.contains("allow_root"), "{said}");
    let output = outcome(mount.btfs(["frobnicate"]).arg(&mount.image));
    assert_eq!(output.status.code(), Some(1), "an unknown command: {}", describe(&output));
}

fn mount_8_and_fstab_work(mount: &mut Mount) {
    mount.only_btfs();
    need_helpers(mount);
    fs::write(mount.path("file"), "text").expect("write");
    mount.unmount();
    let run = |mount: &mut Mount, command: &mut Command| {
        let (status, said) = mount.said_by(command);
        assert!(status.success(), "{command:?}: {said}");
        mount.set_mounted(true);
        assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
        let kind = mount.shell().output("findmnt -n -o FSTYPE \"$MNT\"");
        assert_eq!(kind, "fuse.btfs");
        let source = mount.shell().output("findmnt -n -o SOURCE \"$MNT\"");
        assert_eq!(source, mount.image.to_str().expect("UTF-8"));
        mount.unmount();
    };
    let (image, point) = (mount.image.clone(), mount.point.clone());
    run(mount, Command::new("mount").args(["-t", "fuse.btfs"]).arg(&image).arg(&point));
    run(
        mount,
        Command::new("mount")
            .args(["-t", "fuse.btfs", "-o", "ro,noatime,allow_other"])
            .arg(&image)
            .arg(&point),
    );
    let table = mount.scratch.join("fstab");
    for options in [
        "defaults,nofail",
        "noauto,user,rw,nosuid,nodev",
        "defaults,nofail,_netdev,x-systemd.automount,commit=2",
    ] {
        fs::write(&table, format!("{} {} fuse.btfs {options} 0 0\n", image.display(), point.display()))
            .expect("write");
        run(mount, Command::new("mount").arg("-T").arg(&table).arg(&point));
    }
    // A failure of the helper is a failure of mount(8).
    let (status, said) =
        mount.said_by(Command::new("mount").args(["-t", "fuse.btfs", "/nowhere/image.db"]).arg(&point));
    assert!(!status.success() && said.contains("/nowhere/image.db"), "{status} {said}");
}

fn mkfs_8_and_fsck_8_work_without_a_terminal(mount: &mut Mount) {
    mount.only_btfs();
    need_helpers(mount);
    mount.unmount();
    mount.shell().run(
        "cd $SCRATCH; mkfs -t btfs -L label new.db < /dev/null; fsck.btfs -n new.db; fsck -t btfs -n new.db < /dev/null
         refused mkfs.btfs new.db; mkfs.btfs -F new.db < /dev/null; fsck.btfs -p new.db; fsck.btfs -a new.db; fsck.btfs -f -y new.db",
    );
    // Damage is found, and found again where nothing may be repaired.
    let image = mount.scratch.join("new.db");
    let file = OpenOptions::new().write(true).open(&image).expect("open");
    let length = file.metadata().expect("stat").len().min(1 << 20);
    file.write_all_at(&vec![0x55; length as usize], 0).expect("write");
    for _ in 0..2 {
        let output = outcome(Command::new("fsck.btfs").arg("-n").arg(&image));
        let code = output.status.code().expect("no signal");
        assert!(code & (4 | 8) != 0 && code & 1 == 0, "fsck of rubbish: {}", describe(&output));
    }
}

fn umount_8_can_be_followed_at_once_by_a_mount(mount: &mut Mount) {
    for round in 0..8u64 {
        let bytes = Random::new(round).bytes(10 << 20);
        fs::write(mount.path("file"), &bytes).expect("write");
        must(Command::new("umount").arg(&mount.point));
        mount.set_mounted(false);
        // umount(8) comes back before the daemon has written everything; whoever mounts next must wait for it.
        mount.mount();
        assert!(fs::read(mount.path("file")).expect("read") == bytes, "round {round}");
    }
}

fn a_daemon_of_mount_8_is_waited_for(mount: &mut Mount) {
    mount.only_btfs();
    need_helpers(mount);
    mount.unmount();
    let by_mount_8 = |mount: &Mount| {
        let mut command = Command::new("mount");
        command.args(["-t", "fuse.btfs"]).arg(&mount.image).arg(&mount.point);
        command
    };
    must(&mut by_mount_8(mount));
    fs::write(mount.path("file"), "text").expect("write");
    let daemon = mount.daemon();
    sys::kill(daemon, libc::SIGSTOP).expect("stop");
    sys::detach(&mount.point).expect("umount");
    let mut next = by_mount_8(mount).spawn().expect("mount starts");
    std::thread::sleep(Duration::from_secs(1));
    let early = next.try_wait().expect("wait");
    sys::kill(daemon, libc::SIGCONT).expect("continue");
    assert_eq!(early, None, "the mount does not wait for a daemon that has not finished");
    assert!(next.wait().expect("wait").success(), "no mount when the daemon has finished");
    mount.set_mounted(true);
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
}

fn a_daemon_told_to_end_loses_nothing(mount: &mut Mount) {
    mount.only_btfs();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let bytes = Random::new(signal as u64).bytes(5 << 20);
        fs::write(mount.path("file"), &bytes).expect("write");
        let daemon = mount.daemon();
        sys::kill(daemon, signal).expect("kill");
        wait_until("the mount is gone", || !mount.is_mounted());
        mount.set_mounted(false);
        wait_until("the daemon has ended", || sys::kill(daemon, 0).is_err() || zombie(daemon));
        mount.check();
        mount.mount();
        assert!(fs::read(mount.path("file")).expect("read") == bytes, "after signal {signal}");
    }
}

fn zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| text.contains(") Z "))
}

fn a_busy_mount_is_not_unmounted(mount: &mut Mount) {
    let file = File::create(mount.path("open")).expect("create");
    let output = match mount.peer {
        Peer::Btfs => outcome(mount.btfs(["umount"]).arg(&mount.point)),
        Peer::Ext4 => outcome(Command::new("umount").arg(&mount.point)),
    };
    assert!(!output.status.success(), "unmounted with an open file");
    assert!(describe(&output).contains("busy"), "{}", describe(&output));
    fs::write(mount.path("other"), "still works").expect("write");
    drop(file);
    mount.remount();
    assert_eq!(fs::read(mount.path("other")).expect("read"), b"still works");
}

fn a_daemon_that_does_not_answer_can_be_detached(mount: &mut Mount) {
    mount.only_btfs();
    fs::write(mount.path("file"), "text").expect("write");
    let daemon = mount.daemon();
    sys::kill(daemon, libc::SIGSTOP).expect("stop");
    // What the kernel has in its caches has expired by then.
    std::thread::sleep(Duration::from_secs(2));
    let mut umount = mount.btfs(["umount", "-l"]).arg(&mount.point).spawn().expect("btfs starts");
    let begun = Instant::now();
    let ended = loop {
        match umount.try_wait().expect("wait") {
            None if begun.elapsed() < Duration::from_secs(20) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            ended => break ended,
        }
    };
    sys::kill(daemon, libc::SIGCONT).expect("continue");
    let status = umount.wait().expect("wait");
    assert!(ended.is_some_and(|status| status.success()), "it waits for the daemon: {status}");
    wait_until("the daemon has ended", || sys::kill(daemon, 0).is_err() || zombie(daemon));
    mount.set_mounted(false);
    mount.mount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
}

fn a_foreground_daemon_ends_with_the_mount(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let mut child =
        mount.btfs(["mount", "-f"]).arg(&mount.image).arg(&mount.point).spawn().expect("btfs starts");
    wait_until("it is mounted", || mount.is_mounted());
    mount.set_mounted(true);
    fs::write(mount.path("file"), "text").expect("write");
    assert!(child.try_wait().expect("wait").is_none(), "it went to the background");
    mount.unmount();
    let status = child.wait().expect("wait");
    assert!(status.success(), "{status}, signal {:?}", status.signal());
    mount.mount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
}

fn a_daemon_started_by_nohup_outlives_the_terminal(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let mut command = mount.btfs(["mount", "-f"]);
    sys::ignore(&mut command, libc::SIGHUP);
    let mut child = command.arg(&mount.image).arg(&mount.point).spawn().expect("btfs starts");
    wait_until("it is mounted", || mount.is_mounted());
    mount.set_mounted(true);
    let daemon = child.id() as i32;
    for _ in 0..3 {
        sys::kill(daemon, libc::SIGHUP).expect("kill");
        std::thread::sleep(Duration::from_millis(200));
        fs::write(mount.path("file"), "text").expect("write");
    }
    assert!(mount.is_mounted(), "a signal that it was told to ignore ends it");
    sys::kill(daemon, libc::SIGTERM).expect("kill");
    let status = child.wait().expect("wait");
    assert!(status.success(), "{status}, signal {:?}", status.signal());
    mount.set_mounted(false);
    mount.mount();
    assert_eq!(fs::read(mount.path("file")).expect("read"), b"text");
}

fn an_image_is_made_on_request_and_never_overwritten(mount: &mut Mount) {
    mount.only_btfs();
    fs::write(mount.path("precious"), "data").expect("write");
    mount.unmount();
    let output = outcome(mount.btfs(["mkfs"]).arg(&mount.image));
    assert!(!output.status.success(), "mkfs has overwritten a filesystem");
    let other = mount.scratch.join("other-file");
    fs::write(&other, "no image, but somebody's").expect("write");
    let output = outcome(mount.btfs(["mkfs"]).arg(&other));
    assert!(!output.status.success(), "mkfs has overwritten a file");
    assert_eq!(fs::read(&other).expect("read"), b"no image, but somebody's");
    // --create takes what is there, and makes what is not.
    let (status, said) = mount.said_by(mount.btfs(["mount", "--create"]).arg(&mount.image).arg(&mount.point));
    assert!(status.success(), "{said}");
    mount.set_mounted(true);
    assert_eq!(fs::read(mount.path("precious")).expect("read"), b"data");
    mount.unmount();
    let new = mount.base.join("new.db");
    let (status, _) = mount.said_by(mount.btfs(["mount"]).arg(&new).arg(&mount.point));
    assert!(!status.success() && !new.exists(), "made an image without being asked to");
    let (status, said) = mount.said_by(mount.btfs(["mount", "--create"]).arg(&new).arg(&mount.point));
    assert!(status.success(), "{said}");
    mount.set_mounted(true);
    fs::write(mount.path("file"), "in the new one").expect("write");
    mount.unmount();
    must(mount.btfs(["fsck", "-n"]).arg(&new));
}

fn options_are_what_proc_mounts_shows(mount: &mut Mount) {
    mount.only_btfs();
    let shown = |mount: &Mount| format!(",{},", mount.shell().output("findmnt -n -o OPTIONS \"$MNT\""));
    assert!(!shown(mount).contains(",nosuid,") && !shown(mount).contains(",nodev,"), "{}", shown(mount));
    for (asked, expected) in [
        ("ro", ",ro,"),
        ("nosuid", ",nosuid,"),
        ("nodev", ",nodev,"),
        ("noexec", ",noexec,"),
        ("noatime", ",noatime,"),
        ("allow_other", ",allow_other,"),
        ("rw,commit=1,threads=3,cache_size=64M,writeback=on", ",rw,"),
        ("defaults,nofail,auto,suid,dev,exec,x-something=else", ",rw,"),
    ] {
        mount.unmount();
        let (status, said) = mount.try_mount(asked);
        assert!(status.success(), "{asked}: {said}");
        mount.set_mounted(true);
        assert!(shown(mount).contains(expected), "{asked}: {}", shown(mount));
        assert!(shown(mount).contains(",default_permissions,"), "{asked}: {}", shown(mount));
    }
}

/// What the kernel has in its caches is no way in.
fn who_is_not_let_in_sees_nothing(mount: &mut Mount) {
    mount.only_btfs();
    let (uid, gid) = sys::ordinary_user();
    mount.unmount();
    let (status, said) = mount.try_mount("allow_root");
    assert!(status.success(), "{said}");
    mount.set_mounted(true);
    std::os::unix::fs::chown(&mount.point, Some(uid), Some(gid)).expect("chown");
    mount.shell().run("mkdir d; echo secret > d/f; chmod 666 d/f; ls -lR > /dev/null; cat d/f > /dev/null");
    for attempt in ["cat d/f", "sh -c 'echo more >> d/f'", "ls d", "stat d/f", "ls ."] {
        mount.shell().run(&format!("refused setpriv --reuid={uid} --regid={gid} --clear-groups {attempt}"));
    }
    assert_eq!(fs::read(mount.path("d/f")).expect("read"), b"secret\n");
}

fn what_is_no_image_is_not_mounted(mount: &mut Mount) {
    mount.only_btfs();
    mount.unmount();
    let bad = mount.scratch.join("bad.db");
    for (what, bytes) in [
        ("nothing", vec![]),
        ("text", b"text".to_vec()),
        ("noise", Random::new(9).bytes(1 << 20)),
        ("zeros", vec![0; 1 << 20]),
    ] {
        fs::write(&bad, bytes).expect("write");
        let (status, said) = mount.said_by(mount.btfs(["mount"]).arg(&bad).arg(&mount.point));
        assert!(!status.success() && !mount.is_mounted(), "{what} was mounted");
        assert!(said.contains("bad.db") && !said.contains("panicked"), "{what}: {said}");
        let output = outcome(mount.btfs(["fsck", "-n"]).arg(&bad));
        assert!(output.status.code().is_some_and(|code| code & 12 != 0), "{what}: {}", describe(&output));
    }
    for (image, point) in [
        ("/nowhere/image.db", mount.point.to_str()),
        (mount.image.to_str().expect("UTF-8"), Some("/nowhere")),
    ] {
        let (status, said) = mount.said_by(mount.btfs(["mount", image]).arg(point.expect("UTF-8")));
        assert!(!status.success() && said.contains("/nowhere"), "{status} {said}");
    }
    let output = outcome(mount.btfs(["umount"]).arg(&mount.point));
    assert!(!output.status.success(), "unmounted what was not mounted");
    // Cut in the middle it may be mounted or not, but must not panic or hang.
    fs::remove_file(&bad).expect("unlink");
    let half = fs::metadata(&mount.image).expect("stat").len() / 2 + 100;
    must(Command::new("cp").arg("--sparse=always").args([&mount.image, &bad]));
    sys::truncate(&bad, half).expect("truncate");
    let (_, said) = mount.said_by(mount.btfs(["mount"]).arg(&bad).arg(&mount.point));
    assert!(!said.contains("panicked"), "{said}");
    if mount.is_mounted() {
        must(mount.btfs(["umount"]).arg(&mount.point));
    }
}

fn an_image_can_grow(mount: &mut Mount) {
    mount.only_btfs();
    mount.replace_image("64M");
    mount.mount();
    let piece = Random::new(10).bytes(10 << 20);
    fs::write(mount.path("first"), &piece).expect("write");
    let fill = |mount: &Mount| {
        (0..12).take_while(|n| fs::write(mount.path(format!("more-{n}")), &piece).is_ok()).count()
    };
    assert!(fill(mount) < 6, "more than 64 MiB fit");
    mount.unmount();
    must(mount.btfs(["resize"]).arg(&mount.image).arg("256M"));
    mount.check();
    mount.mount();
    assert!(fs::read(mount.path("first")).expect("read") == piece, "after growing");
    assert_eq!(fill(mount), 12, "12 files of 10 MiB after growing to 256 MiB");
    mount.remount();
    assert!(fs::read(mount.path("more-11")).expect("read") == piece);
}

fn info_and_stats_tell_about_the_image(mount: &mut Mount) {
    mount.only_btfs();
    mount.shell().run("for i in 1 2 3 4 5; do echo $i > f$i; done");
    let shell = mount.shell().set("BTFS", binary());
    shell.run("\"$BTFS\" sync \"$MNT\"; [ -n \"$(\"$BTFS\" stats \"$MNT\")\" ]; refused \"$BTFS\" stats /; refused \"$BTFS\" sync /");
    mount.unmount();
    let shell = mount.shell().set("BTFS", binary());
    shell.run("[ -n \"$(\"$BTFS\" info \"$IMAGE\")\" ]; \"$BTFS\" info --json \"$IMAGE\" | python3 -c 'import json, sys; assert json.load(sys.stdin)'");
    shell.run("\"$BTFS\" --help | grep -q mkfs; \"$BTFS\" --version | grep -q '[0-9]'; refused \"$BTFS\" info /nowhere");
}

fn an_image_can_be_copied_and_is_the_same(mount: &mut Mount) {
    mount.shell().run("cp -r /usr/include/linux headers 2>/dev/null || cp -r /etc headers 2>/dev/null || true; echo last > last");
    let before = Manifest::of(&mount.point);
    mount.unmount();
    // An image is a sparse file: its limit is 64 GiB, its size is what is in it.
    mount.shell().run(
        "cd $SCRATCH; cp --sparse=always \"$IMAGE\" copy.db; [ $(du -sm copy.db | cut -f1) -lt 300 ]; mv copy.db \"$IMAGE\"",
    );
    mount.mount();
    before.must_equal(&Manifest::of(&mount.point), "in a copy of the image");
}
