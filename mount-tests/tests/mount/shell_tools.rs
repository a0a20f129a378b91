//! The tools of every day. After each the filesystem is mounted again, and must hold what it held.

use btfs_mount_tests::cases;
use btfs_mount_tests::manifest::Manifest;
use btfs_mount_tests::mount::Mount;
use btfs_mount_tests::runner::Case;
use btfs_mount_tests::shell::Shell;
use btfs_mount_tests::sys;

pub fn cases() -> Vec<Case> {
    let as_root = cases![
        a_tree_with_everything_in_it_survives_a_remount,
        a_copy_by_cp_is_the_same,
        a_copy_by_tar_is_the_same,
        a_copy_by_rsync_is_the_same_and_a_second_one_does_nothing,
        files_moved_about_are_the_same,
        find_and_du_tell_the_truth,
        changes_of_mode_owner_and_acl_survive_a_remount,
        truncate_and_fallocate_do_what_they_say,
        a_sparse_archive_has_small_files_as_well,
        times_are_kept_to_the_nanosecond,
        an_ordinary_user_can_work_on_roots_mount,
    ];
    let by_user: Vec<Case> = as_root
        .iter()
        .filter(|case| !case.name.contains("roots_mount"))
        .map(|case| {
            let name = format!("{}_mounted_by_a_user", case.name);
            case.clone().by_user(Box::leak(name.into_boxed_str()))
        })
        .collect();
    [as_root, by_user].concat()
}

/// What lies in no block of its own is no hole.
fn a_sparse_archive_has_small_files_as_well(mount: &mut Mount) {
    let shell = shell(mount);
    shell.run(
        "printf important > small; head -c 1500 /dev/urandom > larger; cp small up; truncate -s 100000 up
         truncate -s 1M hole; : > empty; mkdir out
         tar -S -cf x.tar small larger up hole empty; tar -xf x.tar -C out
         for f in small larger up hole empty; do cmp $f out/$f; done",
    );
}

/// A shell as whoever has mounted.
fn shell(mount: &Mount) -> Shell {
    if mount.by_user() { mount.shell().as_user() } else { mount.shell() }
}

/// A tree with one of everything. What only root can make is there only if root does it.
fn build(shell: &Shell, directory: &str) {
    shell.run(&format!(
        r#"
        mkdir '{directory}'; cd '{directory}'
        mkdir -p sub/deeper/deepest empty
        : > zero
        printf x > one
        for size in 100 3000 4095 4096 4097 65536 1000001; do head -c $size /dev/urandom > size-$size; done
        truncate -s 50M sparse
        printf begin | dd of=sparse conv=notrunc status=none
        printf middle | dd of=sparse bs=1 seek=30000000 conv=notrunc status=none
        ln size-3000 sub/hard-link
        ln size-3000 sub/deeper/another
        ln -s ../size-100 sub/link
        ln -s /does/not/exist dangling
        mkfifo pipe
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
        : > $'name with \n newline'; : > 'ü and 文'; : > $'not \xff utf-8'; : > -; : > '*'
        : > "$(printf 'n%.0s' $(seq 255))"
        for i in $(seq 200); do echo $i > sub/deeper/file-$i; done
        chmod 4755 one; chmod 2750 sub; chmod 1777 empty; chmod 0 zero
        touch -d '1960-02-03 04:05:06.123456789 UTC' size-100
        touch -d '2100-02-03 04:05:06.999999999 UTC' size-4095
        touch -h -d '2001-01-01 00:00:00.5 UTC' dangling
        setfattr -n user.short -v 1 size-3000
        setfattr -n user.empty size-3000
        setfattr -n user.long -v "$(head -c 3000 /dev/zero | tr '\0' v)" size-4096
        setfattr -n user.binary -v 0x00ff00ff10 sub
        setfacl -m u:12345:rw,g:54321:r,m::rw size-4097
        setfacl -d -m u:12345:rwx,o::r sub/deeper/deepest
        mkdir sub/deeper/deepest/heir; : > sub/deeper/deepest/heir/file
        if [ "$(id -u)" = 0 ]; then
            chown 1234:5678 size-65536; chown -h 11:22 dangling
            setfattr -n trusted.only -v root size-4096
            mknod null c 1 3; mknod disk b 259 1048575
        else
            chmod 200 zero  # as others than root, files without read permission cannot be copied
            chmod 600 zero
        fi
        "#
    ));
}

fn a_tree_with_everything_in_it_survives_a_remount(mount: &mut Mount) {
    build(&shell(mount), "tree");
    let before = Manifest::of(mount.path("tree"));
    // So that a tree of nothing is not equal to a tree of nothing.
    assert!(before.len() > 225, "{} files", before.len());
    for (file, facts) in [
        ("size-3000", "links=3"),
        ("size-3000", "user.empty="),
        ("size-3000", "user.short=1"),
        ("sub", r"user.binary=\x00\xff\x00\xff\x10"),
        ("sub", "42750 "),
        ("one", "104755 "),
        ("size-100", "mtime=-312753294.123456789"),
        ("size-4095", "mtime=4105310706.999999999"),
        ("size-4097", "system.posix_acl_access="),
        ("sub/deeper/deepest/heir", "system.posix_acl_default="),
        ("sub/deeper/deepest/heir/file", "system.posix_acl_access="),
        ("dangling", "mtime=978307200.500000000"),
        ("sparse", "size=52428800"),
    ] {
        assert!(before.line(file).contains(facts), "{file}: no {facts} in {}", before.line(file));
    }
    if !mount.by_user() {
        assert!(before.line("disk").contains("device="), "{}", before.line("disk"));
        assert!(before.line("dangling").contains(" 11:22 "), "{}", before.line("dangling"));
        assert!(before.line("size-4096").contains("trusted.only=root"), "{}", before.line("size-4096"));
    }
    mount.remount();
    before.must_equal(&Manifest::of(mount.path("tree")), "after a remount");
}

/// Builds and prepares a tree, lets a script copy it to `copy`, compares, remounts, compares both.
fn copied_by(mount: &mut Mount, prepare: &str, script: &str) {
    let shell = shell(mount);
    build(&shell, "tree");
    shell.run(prepare);
    let original = Manifest::of_copy(mount.path("tree"));
    shell.run(script);
    original.must_equal(&Manifest::of_copy(mount.path("tree")), "the original has changed");
    original.must_equal(&Manifest::of_copy(mount.path("copy")), "the copy differs");
    mount.remount();
    original.must_equal(&Manifest::of_copy(mount.path("tree")), "the original after a remount");
    original.must_equal(&Manifest::of_copy(mount.path("copy")), "the copy after a remount");
    let blocks: u64 = shell.output("stat -c %b copy/sparse").parse().expect("a number");
    assert!(blocks < 2000, "the copy of the sparse file has {blocks} blocks: its holes are lost");
}

fn a_copy_by_cp_is_the_same(mount: &mut Mount) {
    copied_by(mount, "", "cp -a tree copy");
}

fn a_copy_by_tar_is_the_same(mount: &mut Mount) {
    // tar keeps no sockets, and no fractions of seconds before 1970.
    copied_by(
        mount,
        "rm tree/socket; touch -d @1000000000.5 tree; touch -d @-1000 tree/size-100",
        "tar --xattrs --xattrs-include='*' --acls -S --format=posix -cf $SCRATCH/tree.tar tree
         mkdir new; tar --xattrs --xattrs-include='*' --acls -S -xpf $SCRATCH/tree.tar -C new
         mv new/tree copy; rm -r new",
    );
}

fn a_copy_by_rsync_is_the_same_and_a_second_one_does_nothing(mount: &mut Mount) {
    // The window of -1 makes rsync compare nanoseconds too.
    copied_by(
        mount,
        "",
        "rsync -aHAXS --modify-window=-1 tree/ copy
         again=$(rsync -aHAXSi --modify-window=-1 --checksum tree/ copy)
         [ -z \"$again\" ] || { echo \"the second rsync did: $again\"; exit 1; }",
    );
}

fn files_moved_about_are_the_same(mount: &mut Mount) {
    copied_by(
        mount,
        "",
        "cp -a tree a; mkdir b; mv a b/c; mv b/c d; mkdir -p e/f; mv d/sub e/f/sub; mv e/f/sub d/sub
         touch -r tree d; mv d copy; rmdir e/f e b",
    );
    // Across filesystems, and back.
    let shell = shell(mount);
    let original = Manifest::of_copy(mount.path("tree/sub/deeper/deepest"));
    shell.run("cp -a tree/sub/deeper/deepest $SCRATCH/out; mv $SCRATCH/out back");
    original.must_equal(&Manifest::of_copy(mount.path("back")), "what was moved out and in");
}

fn find_and_du_tell_the_truth(mount: &mut Mount) {
    let shell = shell(mount);
    shell.run(
        "for i in $(seq 30); do mkdir -p d$i/e; for j in $(seq 40); do echo $j > d$i/e/f$j; done; done
         mkdir dense sparse; head -c 20M /dev/urandom > dense/a; truncate -s 1G sparse/a; sync",
    );
    for _ in 0..2 {
        assert_eq!(shell.output("find d* -name 'f*' | wc -l"), "1200");
        assert_eq!(shell.output("find d* -type d | wc -l"), "61", "with dense");
        assert_eq!(shell.output("find d7 -type f -newer d1/e/f1 | wc -l"), "40");
        assert_eq!(
            shell.output("stat -c %h d1"),
            "3",
            "a directory's links: itself, its name, one subdirectory"
        );
        let kibibytes = |what: &str| -> u64 {
            shell.output(&format!("du -sk {what} | cut -f1")).parse().expect("a number")
        };
        assert!((20480..20480 + 512).contains(&kibibytes("dense")), "dense: {} KiB", kibibytes("dense"));
        assert!(kibibytes("sparse") < 512, "sparse: {} KiB", kibibytes("sparse"));
        assert_eq!(kibibytes("--apparent-size sparse/a"), 1 << 20);
        mount.remount();
    }
}

fn changes_of_mode_owner_and_acl_survive_a_remount(mount: &mut Mount) {
    let shell = shell(mount);
    build(&shell, "tree");
    shell.run(
        "cd tree
         chmod -R u+rwX,g=rX,o= sub; chmod +t sub/deeper; chmod a+x size-4096
         setfacl -R -m u:777:rX sub/deeper; setfacl -b size-4097; setfacl -k sub/deeper/deepest
         setfattr -n user.short -v another size-3000; setfattr -x user.empty size-3000
         if [ \"$(id -u)\" = 0 ]; then chown -R 7:8 sub; chown :9 one; chgrp 10 size-100; fi",
    );
    assert_eq!(
        shell.output("getfattr --absolute-names --only-values -n user.short tree/sub/hard-link"),
        "another"
    );
    assert!(shell.output("getfacl -n tree/sub/deeper/file-1").contains("user:777:r--"));
    assert_eq!(shell.output("getfacl -cns tree/size-4097"), "", "no ACL is left");
    if !mount.by_user() {
        assert_eq!(shell.output("stat -c %u:%g:%a tree/sub/deeper"), "7:8:1750");
    }
    let before = Manifest::of(&mount.point);
    mount.remount();
    before.must_equal(&Manifest::of(&mount.point), "after a remount");
}

fn truncate_and_fallocate_do_what_they_say(mount: &mut Mount) {
    let shell = shell(mount);
    shell.run(
        r#"
        size() { stat -c %s "$1"; }; kib() { sync; echo $(($(stat -c %b "$1") / 2)); }
        expect() { [ "$1" "$2" "$3" ] || { echo "$4: $1, not $2 $3"; exit 1; }; }
        head -c 1M /dev/urandom > a; cp a $SCRATCH/a
        truncate -s 500001 a; truncate -s 1M a
        truncate -s 500001 $SCRATCH/a; truncate -s 1M $SCRATCH/a; cmp a $SCRATCH/a
        fallocate -l 8M plain;        expect $(size plain) = 8388608 plain; expect $(kib plain) -ge 8192 plain
        cmp -n 8388608 plain /dev/zero
        : > keep; fallocate -n -l 8M keep;      expect $(size keep) = 0 keep;         expect $(kib keep) -ge 8192 keep
        fallocate -o 1M -l 1M keep;   expect $(size keep) = 2097152 keep
        head -c 8M /dev/urandom > punch; cp punch $SCRATCH/punch; expect $(kib punch) -ge 8192 punch
        fallocate -p -o 1M -l 6M punch; expect $(size punch) = 8388608 punch; expect $(kib punch) -le 2300 punch
        dd if=/dev/zero of=$SCRATCH/punch bs=1M seek=1 count=6 conv=notrunc status=none; cmp punch $SCRATCH/punch
        fallocate -p -o 100 -l 5000 punch
        dd if=/dev/zero of=$SCRATCH/punch bs=1 seek=100 count=5000 conv=notrunc status=none; cmp punch $SCRATCH/punch
        head -c 100000 /dev/urandom > zero; cp zero $SCRATCH/zero
        fallocate -z -o 5000 -l 80001 zero
        dd if=/dev/zero of=$SCRATCH/zero bs=1 seek=5000 count=80001 conv=notrunc status=none; cmp zero $SCRATCH/zero
        fallocate -z -o 90000 -l 20000 zero; expect $(size zero) = 110000 zero
        cmp <(tail -c 20000 zero) <(head -c 20000 /dev/zero)
        "#,
    );
    let before = Manifest::of(&mount.point);
    mount.remount();
    before.must_equal(&Manifest::of(&mount.point), "after a remount");
}

fn times_are_kept_to_the_nanosecond(mount: &mut Mount) {
    let shell = shell(mount);
    // Before 1970 with a fraction is where conversions go wrong; later than 2038 where 32 bits do.
    let times = [
        "0.000000001",
        "-1.000000001",
        "-1000000000.999999999",
        "1234567890.123456789",
        "5000000000.987654321",
    ];
    for (number, time) in times.iter().enumerate() {
        shell.run(&format!(": > t{number}; ln -s t{number} l{number}; mkdir d{number}"));
        let (seconds, nanoseconds) = time.split_once('.').expect("a fraction");
        let time = (seconds.parse().expect("seconds"), nanoseconds.parse().expect("nanoseconds"));
        let earlier = (time.0 - 86400 * 400, 5);
        for kind in ["t", "l", "d"] {
            sys::set_times(&mount.path(format!("{kind}{number}")), earlier, time).expect("utimensat");
        }
    }
    for _ in 0..2 {
        for (number, time) in times.iter().enumerate() {
            use std::os::unix::fs::MetadataExt;
            let earlier: i64 = time.split_once('.').expect("a fraction").0.parse().expect("seconds");
            for kind in ["t", "l", "d"] {
                let facts = std::fs::symlink_metadata(mount.path(format!("{kind}{number}"))).expect("stat");
                assert_eq!(
                    &format!("{}.{:09}", facts.mtime(), facts.mtime_nsec()),
                    time,
                    "mtime of {kind}{number}"
                );
                let atime = (facts.atime(), facts.atime_nsec());
                assert_eq!(atime, (earlier - 86400 * 400, 5), "atime of {kind}{number}, mtime {time}");
            }
        }
        mount.remount();
    }
}

fn an_ordinary_user_can_work_on_roots_mount(mount: &mut Mount) {
    sys::chmod(&mount.point, 0o1777).expect("chmod");
    let user = mount.shell().as_user();
    build(&user, "tree");
    let original = Manifest::of_copy(mount.path("tree"));
    user.run("cp -a tree copy");
    original.must_equal(&Manifest::of_copy(mount.path("copy")), "the copy differs");
    // What a user must not do, and does not.
    user.run(
        "refused chown 0:0 tree/one; refused mknod device c 1 3; refused setfattr -n trusted.x -v y tree/one",
    );
    mount.shell().run(
        "mkdir -m 700 private; echo secret > private/file; echo secret > unreadable; chmod 600 unreadable",
    );
    user.run(
        "refused cat unreadable; refused ls private; refused rm -rf unreadable; refused rm -rf private
         refused touch private/file; refused mv unreadable mine",
    );
    // An access list lets in whom it names.
    mount
        .shell()
        .run("setfacl -m u:tests:r unreadable; setfacl -m u:tests:rx private; chmod o-r private/file");
    user.run("cat unreadable; ls private; refused tee unreadable; refused cat private/file");
    mount.remount();
    original.must_equal(&Manifest::of_copy(mount.path("copy")), "after a remount");
    user.run("cat unreadable; ls private; refused cat private/file; rm -r tree copy");
}
