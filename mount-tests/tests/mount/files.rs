//! Files as such: names, kinds, owners, permissions, links, attributes, handles.

use btfs_mount_tests::cases;
use btfs_mount_tests::manifest::Manifest;
use btfs_mount_tests::mount::{Mount, Peer};
use btfs_mount_tests::runner::{Case, not_run};
use btfs_mount_tests::sys;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, SystemTime};

pub fn cases() -> Vec<Case> {
    cases![
        a_name_of_256_bytes_is_refused_by_every_call,
        names_of_any_bytes_are_kept,
        a_symbolic_link_of_4095_bytes_is_kept,
        changed_programs_lose_their_privileges,
        a_changed_program_does_not_run_with_its_owners_rights,
        devices_pipes_and_sockets_work,
        handles_open_what_they_were_taken_of,
        hard_links_are_one_file,
        renames_exchange_and_refuse_as_asked,
        renames_leave_whiteouts_as_asked,
        extended_attributes_have_their_limits,
        new_files_get_group_and_access_list_of_their_directory,
        who_reads_a_directory_or_a_link_accesses_it,
        who_asks_not_to_leave_an_access_time_leaves_none,
        programs_can_be_run_and_are_not_changed_while_they_run,
        with_writeback_times_are_those_of_the_writes.options("writeback=on"),
        free_space_is_told,
    ]
}

fn a_name_of_256_bytes_is_refused_by_every_call(mount: &mut Mount) {
    for (length, error) in [(255, 0), (256, libc::ENAMETOOLONG), (1000, libc::ENAMETOOLONG)] {
        let name = "n".repeat(length);
        let long = mount.path(&name);
        let inside = long.join("inside");
        let other = mount.path("other");
        fs::write(&other, "other").expect("write");
        // What a call says of a name that fits, but is not there.
        let missing = if error == 0 { libc::ENOENT } else { error };
        let check = |call: &str, found: i32, expected: i32| {
            assert_eq!(found, expected, "{call} with a name of {length} bytes");
        };
        check("stat", sys::errno(fs::metadata(&long)), missing);
        check("open", sys::errno(File::open(&long)), missing);
        check("open below", sys::errno(File::open(&inside)), missing);
        check("access", sys::errno(sys::access(&long)), missing);
        check("readlink", sys::errno(fs::read_link(&long)), missing);
        check("unlink", sys::errno(fs::remove_file(&long)), missing);
        check("rmdir", sys::errno(fs::remove_dir(&long)), missing);
        check("opendir", sys::errno(fs::read_dir(&long)), missing);
        check("chmod", sys::errno(sys::chmod(&long, 0o600)), missing);
        check("chown", sys::errno(std::os::unix::fs::lchown(&long, Some(0), Some(0))), missing);
        check("truncate", sys::errno(sys::truncate(&long, 0)), missing);
        check("utimensat", sys::errno(sys::set_times(&long, (1, 1), (1, 1))), missing);
        check("statfs", sys::errno(sys::statvfs(&long)), missing);
        check("setxattr", sys::errno(sys::set_xattr(&long, "user.a", b"b")), missing);
        check("getxattr", sys::errno(sys::get_xattr(&long, OsStr::new("user.a"))), missing);
        check("listxattr", sys::errno(sys::list_xattrs(&long)), missing);
        check("removexattr", sys::errno(sys::remove_xattr(&long, "user.a")), missing);
        check("rename from", sys::errno(fs::rename(&long, mount.path("x"))), missing);
        check("link from", sys::errno(fs::hard_link(&long, mount.path("x"))), missing);
        check("handle", sys::errno(sys::handle_of(&long).map(|_| ())), missing);
        let clean = || drop((fs::remove_file(&long), fs::remove_dir(&long)));
        check("rename to", sys::errno(fs::rename(&other, &long)), error);
        clean();
        fs::write(&other, "other").expect("write");
        check("link to", sys::errno(fs::hard_link(&other, &long)), error);
        clean();
        check("create", sys::errno(File::create(&long)), error);
        clean();
        check("mkdir", sys::errno(fs::create_dir(&long)), error);
        clean();
        check("symlink", sys::errno(symlink("to", &long)), error);
        clean();
        check("mkfifo", sys::errno(sys::mknod(&long, libc::S_IFIFO | 0o600, 0, 0)), error);
        clean();
        assert_eq!(fs::read(&other).expect("read"), b"other");
    }
    // In bytes, not in characters.
    assert_eq!(sys::errno(File::create(mount.path("文".repeat(86)))), libc::ENAMETOOLONG);
    File::create(mount.path("文".repeat(85))).expect("255 bytes");
}

fn names_of_any_bytes_are_kept(mount: &mut Mount) {
    let mut all: Vec<OsString> = (1..=255u8)
        .filter(|byte| *byte != b'/' && *byte != b'.')
        .map(|byte| OsString::from_vec(vec![byte]))
        .collect();
    all.extend((1..=255u8).filter(|byte| *byte != b'/').map(|byte| OsString::from_vec(vec![byte; 255])));
    all.extend(
        ["...", " ", ".hidden", "a ", "A", "a", "e\u{301}", "é", "\u{202e}x", "con", "~"].map(OsString::from),
    );
    // 'a' and the like are there twice.
    let unique: std::collections::BTreeSet<OsString> = all.into_iter().collect();
    let place = mount.path("names");
    fs::create_dir(&place).expect("mkdir");
    for (number, name) in unique.iter().enumerate() {
        fs::write(place.join(name), number.to_string()).unwrap_or_else(|e| panic!("{name:?}: {e}"));
    }
    for _ in 0..2 {
        let found: std::collections::BTreeSet<OsString> =
            fs::read_dir(&place).expect("opendir").map(|entry| entry.expect("readdir").file_name()).collect();
        assert!(found == unique, "{} names of {}", found.len(), unique.len());
        for (number, name) in unique.iter().enumerate() {
            assert_eq!(fs::read(place.join(name)).expect("read"), number.to_string().as_bytes(), "{name:?}");
        }
        mount.remount();
    }
    for name in &unique {
        fs::remove_file(place.join(name)).unwrap_or_else(|e| panic!("{name:?}: {e}"));
    }
    fs::remove_dir(&place).expect("rmdir");
}

fn a_symbolic_link_of_4095_bytes_is_kept(mount: &mut Mount) {
    let lengths = [1, 59, 60, 100, 1000, 2000, 3000, 4000, 4094, 4095];
    for length in lengths {
        symlink("t".repeat(length), mount.path(format!("link-{length}")))
            .unwrap_or_else(|e| panic!("{length}: {e}"));
    }
    assert_eq!(sys::errno(symlink("t".repeat(4096), mount.path("too-long"))), libc::ENAMETOOLONG);
    // One that can be followed, of many short steps.
    fs::write(mount.path("target"), "found").expect("write");
    symlink(format!("{}target", "./".repeat(2040)), mount.path("follow")).expect("symlink");
    for _ in 0..2 {
        for length in lengths {
            let to = fs::read_link(mount.path(format!("link-{length}"))).expect("readlink");
            assert!(to == Path::new(&"t".repeat(length)), "link of {length} bytes");
            let facts = fs::symlink_metadata(mount.path(format!("link-{length}"))).expect("lstat");
            assert_eq!(facts.len(), length as u64);
        }
        assert_eq!(fs::read(mount.path("follow")).expect("read"), b"found");
        mount.remount();
    }
}

/// What clears the set-user-id and set-group-id bits, by whom, as the kernel's own filesystems do it.
fn changed_programs_lose_their_privileges(mount: &mut Mount) {
    sys::chmod(&mount.point, 0o1777).expect("chmod");
    let (uid, gid) = sys::ordinary_user();
    let path = mount.path("program");
    type Change = fn(&Path);
    let changes: [(&str, Change); 10] = [
        ("write", |path| {
            OpenOptions::new().write(true).open(path).expect("open").write_all(b"x").expect("write")
        }),
        ("append", |path| {
            OpenOptions::new().append(true).open(path).expect("open").write_all(b"x").expect("write")
        }),
        ("truncate", |path| sys::truncate(path, 3).expect("truncate")),
        ("ftruncate", |path| {
            OpenOptions::new().write(true).open(path).expect("open").set_len(20_000).expect("ftruncate")
        }),
        ("open with O_TRUNC", |path| drop(File::create(path).expect("open"))),
        ("fallocate", |path| {
            sys::fallocate(&OpenOptions::new().write(true).open(path).expect("open"), 0, 0, 50_000)
                .expect("fallocate");
        }),
        ("punch", |path| {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            sys::fallocate(&OpenOptions::new().write(true).open(path).expect("open"), mode, 0, 5000)
                .expect("punch");
        }),
        ("chown", |path| std::os::unix::fs::chown(path, Some(sys::ordinary_user().0), None).expect("chown")),
        ("chgrp", |path| std::os::unix::fs::chown(path, None, Some(sys::ordinary_user().1)).expect("chgrp")),
        ("chown to nobody", |path| std::os::unix::fs::chown(path, None, None).expect("chown")),
    ];
    let fresh = |mode: u32| {
        fs::remove_file(&path).ok();
        fs::write(&path, [1; 10_000]).expect("write");
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("chown");
        sys::chmod(&path, mode).expect("chmod");
        // The attributes are in the kernel's cache, as they mostly are.
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, mode);
    };
    for (what, change) in changes {
        for mode in [0o6777, 0o4755, 0o2775] {
            fresh(mode);
            sys::as_user(|| change(&path));
            // Setting the owner to what it is clears as well.
            assert_eq!(
                fs::metadata(&path).expect("stat").mode() & 0o7777,
                mode & 0o777,
                "{what} by a user, mode was {mode:o}"
            );
            fresh(mode);
            change(&path);
            // Root may keep them, except with a change of owner.
            let kept = if what.starts_with("ch") { mode & 0o777 } else { mode };
            assert_eq!(
                fs::metadata(&path).expect("stat").mode() & 0o7777,
                kept,
                "{what} by root, mode was {mode:o}"
            );
        }
        // Capabilities go whoever does it.
        fresh(0o755);
        let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
        sys::set_xattr(&path, "security.capability", capability).expect("setxattr");
        assert!(sys::get_xattr(&path, OsStr::new("security.capability")).is_ok());
        change(&path);
        let left = sys::errno(sys::get_xattr(&path, OsStr::new("security.capability")));
        assert_eq!(left, libc::ENODATA, "{what}: the capability is still there");
    }
    // The kernel asks for a chown to nobody whoever wants it: it counts from the owner and root.
    fresh(0o755);
    std::os::unix::fs::chown(&path, Some(0), Some(0)).expect("chown");
    sys::chmod(&path, 0o6755).expect("chmod");
    sys::as_user(|| drop(std::os::unix::fs::chown(&path, None, None)));
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o6755, "a stranger's chown to nobody");
    // A directory keeps its set-group-id bit when its owner changes.
    fs::create_dir(mount.path("directory")).expect("mkdir");
    sys::chmod(&mount.path("directory"), 0o2775).expect("chmod");
    std::os::unix::fs::chown(mount.path("directory"), Some(uid), Some(gid)).expect("chown");
    assert_eq!(fs::metadata(mount.path("directory")).expect("stat").mode() & 0o7777, 0o2775);
    // Whoever is not in the group of a file cannot set its set-group-id bit.
    fresh(0o755);
    std::os::unix::fs::chown(&path, Some(uid), Some(0)).expect("chown");
    sys::as_user(|| sys::chmod(&path, 0o2755).expect("chmod"));
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o755, "set-group-id of a foreign group");
    // And what the daemon has stored is the same.
    let before = Manifest::of(&mount.point);
    mount.remount();
    before.must_equal(&Manifest::of(&mount.point), "after a remount");
}

/// The kernel has the mode in its cache from the run before.
fn a_changed_program_does_not_run_with_its_owners_rights(mount: &mut Mount) {
    let (uid, _) = sys::ordinary_user();
    mount.shell().run("chmod 755 .; cp \"$(command -v id)\" program; chmod 4777 program");
    let shell = mount.shell().as_user();
    assert_eq!(shell.output("./program -u").trim(), "0", "suid has no effect here, so this shows nothing");
    for change in ["printf x >> program", "fallocate -o 200000 -l 4096 program"] {
        mount.shell().run("chmod 4777 program; stat -c %a program > /dev/null");
        let after = shell.output(&format!("./program -u > /dev/null; {change}; ./program -u"));
        assert_eq!(after.trim(), uid.to_string(), "after {change}");
    }
}

fn devices_pipes_and_sockets_work(mount: &mut Mount) {
    let null = mount.path("null");
    sys::mknod(&null, libc::S_IFCHR | 0o666, 1, 3).expect("mknod");
    sys::mknod(&mount.path("zero"), libc::S_IFCHR | 0o666, 1, 5).expect("mknod");
    sys::mknod(&mount.path("block"), libc::S_IFBLK | 0o600, 259, 1_048_575).expect("mknod");
    sys::mknod(&mount.path("plain"), libc::S_IFREG | 0o640, 0, 0).expect("mknod of a plain file");
    fs::write(mount.path("plain"), "plain").expect("write");
    for _ in 0..2 {
        OpenOptions::new().write(true).open(&null).expect("open a device").write_all(b"gone").expect("write");
        assert_eq!(fs::read(&null).expect("read"), b"");
        let mut bytes = [1; 8];
        File::open(mount.path("zero")).expect("open").read_exact(&mut bytes).expect("read");
        assert_eq!(bytes, [0; 8]);
        let block = fs::metadata(mount.path("block")).expect("stat");
        assert!(block.file_type().is_block_device());
        assert_eq!(block.rdev(), libc::makedev(259, 1_048_575));
        mount.remount();
    }
    sys::mknod(&mount.path("pipe"), libc::S_IFIFO | 0o600, 0, 0).expect("mkfifo");
    let pipe = mount.path("pipe");
    let writer = sys::fork(|| fs::write(&pipe, "through the pipe").expect("write"));
    assert_eq!(fs::read(&pipe).expect("read"), b"through the pipe");
    assert_eq!(sys::wait(writer), 0);
    let address = mount.path("socket");
    let listener = UnixListener::bind(&address).expect("bind");
    let client = sys::fork(|| {
        UnixStream::connect(&address).expect("connect").write_all(b"hello").expect("write");
    });
    let mut text = String::new();
    listener.accept().expect("accept").0.read_to_string(&mut text).expect("read");
    assert_eq!((text.as_str(), sys::wait(client)), ("hello", 0));
    drop(listener);
    mount.remount();
    assert!(fs::metadata(mount.path("pipe")).expect("stat").file_type().is_fifo());
    assert!(fs::metadata(mount.path("socket")).expect("stat").file_type().is_socket());
}

fn handles_open_what_they_were_taken_of(mount: &mut Mount) {
    if !sys::is_root() {
        not_run("open_by_handle_at is for root");
    }
    fs::create_dir_all(mount.path("a/b")).expect("mkdir");
    fs::write(mount.path("a/b/file"), "by handle").expect("write");
    let file = sys::handle_of(&mount.path("a/b/file")).expect("a handle of a file");
    let directory = sys::handle_of(&mount.path("a/b")).expect("a handle of a directory");
    let open = |mount: &Mount, handle: &sys::Handle| {
        sys::open_by_handle(&File::open(&mount.point).expect("the root"), handle, libc::O_RDONLY)
    };
    let content = |mount: &Mount, when: &str| {
        let mut text = String::new();
        let mut opened = open(mount, &file).unwrap_or_else(|e| panic!("{when}: {e}"));
        opened.read_to_string(&mut text).expect("read");
        assert_eq!(text, "by handle", "{when}");
        let number = open(mount, &directory)
            .unwrap_or_else(|e| panic!("{when}: {e}"))
            .metadata()
            .expect("fstat")
            .ino();
        assert_eq!(number, fs::metadata(mount.path("a/b")).expect("stat").ino(), "{when}");
    };
    content(mount, "at once");
    // The kernel forgets what it knew; the handle still holds.
    fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
    content(mount, "after caches were dropped");
    fs::rename(mount.path("a/b/file"), mount.path("a/b/renamed")).expect("rename");
    content(mount, "after a rename");
    mount.remount();
    content(mount, "after a remount");
    // What is gone is stale, also when its inode is used again.
    fs::remove_file(mount.path("a/b/renamed")).expect("unlink");
    for number in 0..50 {
        fs::write(mount.path(format!("new-{number}")), "another file").expect("write");
    }
    for _ in 0..2 {
        assert_eq!(sys::errno(open(mount, &file)), libc::ESTALE, "a handle of a file that is gone");
        mount.remount();
    }
}

fn hard_links_are_one_file(mount: &mut Mount) {
    fs::write(mount.path("first"), "one").expect("write");
    for number in 0..500 {
        fs::hard_link(mount.path("first"), mount.path(format!("link-{number}"))).expect("link");
    }
    fs::write(mount.path("link-7"), "changed through a link").expect("write");
    sys::chmod(&mount.path("link-8"), 0o600).expect("chmod");
    fs::remove_file(mount.path("first")).expect("unlink");
    for _ in 0..2 {
        let number = fs::metadata(mount.path("link-0")).expect("stat").ino();
        for link in 0..500 {
            let facts = fs::metadata(mount.path(format!("link-{link}"))).expect("stat");
            assert_eq!(
                (facts.nlink(), facts.ino(), facts.mode() & 0o777),
                (500, number, 0o600),
                "link {link}"
            );
        }
        assert_eq!(fs::read(mount.path("link-499")).expect("read"), b"changed through a link");
        mount.remount();
    }
    fs::create_dir(mount.path("directory")).expect("mkdir");
    assert_eq!(sys::errno(fs::hard_link(mount.path("directory"), mount.path("x"))), libc::EPERM);
    (0..499).for_each(|link| fs::remove_file(mount.path(format!("link-{link}"))).expect("unlink"));
    assert_eq!(fs::metadata(mount.path("link-499")).expect("stat").nlink(), 1);
}

fn renames_exchange_and_refuse_as_asked(mount: &mut Mount) {
    let (a, b) = (mount.path("a"), mount.path("b"));
    fs::write(&a, "was a").expect("write");
    fs::create_dir_all(b.join("sub")).expect("mkdir");
    fs::write(b.join("file"), "in b").expect("write");
    sys::rename(&a, &b, libc::RENAME_EXCHANGE).expect("exchange of a file and a directory");
    assert_eq!(
        (fs::read(&b).expect("read"), fs::read(a.join("file")).expect("read")),
        (b"was a".to_vec(), b"in b".to_vec())
    );
    // Between directories: the links of both parents change.
    fs::create_dir(mount.path("other")).expect("mkdir");
    fs::write(mount.path("other/leaf"), "leaf").expect("write");
    sys::rename(&a.join("sub"), &mount.path("other/leaf"), libc::RENAME_EXCHANGE).expect("exchange");
    let links = |path: &Path| fs::metadata(path).expect("stat").nlink();
    assert_eq!((links(&a), links(&mount.path("other"))), (2, 3), "links of the parents");
    assert_eq!(sys::errno(sys::rename(&a, &b, libc::RENAME_NOREPLACE)), libc::EEXIST);
    sys::rename(&b, &mount.path("c"), libc::RENAME_NOREPLACE).expect("to a new name");
    assert_eq!(sys::errno(sys::rename(&a, &mount.path("missing"), libc::RENAME_EXCHANGE)), libc::ENOENT);
    assert_eq!(sys::errno(fs::rename(mount.path("other"), mount.path("other/leaf/x"))), libc::EINVAL);
    assert_eq!(sys::errno(fs::rename(mount.path("other"), &a)), libc::ENOTEMPTY);
    assert_eq!(sys::errno(fs::rename(mount.path("c"), &a)), libc::EISDIR);
    assert_eq!(sys::errno(fs::rename(&a, mount.path("c"))), libc::ENOTDIR);
    let before = Manifest::of(&mount.point);
    mount.remount();
    before.must_equal(&Manifest::of(&mount.point), "after a remount");
}

fn renames_leave_whiteouts_as_asked(mount: &mut Mount) {
    let (a, b, dir) = (mount.path("a"), mount.path("b"), mount.path("dir"));
    fs::write(&a, "was a").expect("write");
    fs::create_dir_all(dir.join("sub")).expect("mkdir");
    assert!(fs::metadata(&b).is_err(), "the kernel knows that there is no b");
    sys::rename(&a, &b, libc::RENAME_WHITEOUT).expect("to a new name");
    sys::rename(&dir.join("sub"), &mount.path("moved"), libc::RENAME_WHITEOUT).expect("of a directory");
    let refused = sys::rename(&b, &mount.path("moved"), libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE);
    assert_eq!(sys::errno(refused), libc::EEXIST);
    fs::write(dir.join("old"), "old").expect("write");
    sys::rename(&b, &dir.join("old"), libc::RENAME_WHITEOUT).expect("over another file");
    for _ in 0..2 {
        assert_eq!(fs::read(dir.join("old")).expect("read"), b"was a");
        for whiteout in [&a, &b, &dir.join("sub")] {
            let facts = fs::metadata(whiteout).expect("stat");
            assert!(facts.file_type().is_char_device() && facts.rdev() == 0, "{}", whiteout.display());
        }
        let links = |path: &Path| fs::metadata(path).expect("stat").nlink();
        assert_eq!((links(&dir), links(&mount.path("moved"))), (2, 2));
        mount.remount();
    }
    fs::write(mount.path("c"), "c").expect("write");
    fs::rename(mount.path("c"), &a).expect("over a whiteout");
    assert_eq!(fs::read(&a).expect("read"), b"c");
    fs::remove_file(&b).expect("unlink of a whiteout");
}

fn extended_attributes_have_their_limits(mount: &mut Mount) {
    let path = mount.path("file");
    fs::write(&path, "x").expect("write");
    // ext4 has room for a block of them.
    let (most, number) = if mount.peer == Peer::Ext4 { (3000, 20) } else { (65_536, 300) };
    sys::set_xattr(&path, "user.large", &vec![7; most]).expect("a large value");
    let name = format!("user.{}", "n".repeat(250));
    sys::set_xattr(&path, &name, b"long name").expect("a name of 255 bytes");
    assert_eq!(sys::errno(sys::set_xattr(&path, &format!("{name}n"), b"")), libc::ERANGE);
    assert_eq!(sys::errno(sys::set_xattr(&path, "user.huge", &vec![7; 65_537])), libc::E2BIG);
    assert_eq!(sys::errno(sys::get_xattr(&path, OsStr::new("user.missing"))), libc::ENODATA);
    assert_eq!(sys::errno(sys::remove_xattr(&path, "user.missing")), libc::ENODATA);
    assert_eq!(sys::errno(sys::set_xattr(&path, "unknown.space", b"x")), libc::EOPNOTSUPP);
    assert_eq!(sys::errno(sys::set_xattr(&path, "user.", b"x")), libc::EINVAL, "no name");
    assert_eq!(sys::errno(sys::get_xattr(&path, OsStr::new("user."))), libc::EINVAL, "no name");
    assert_eq!(sys::errno(sys::remove_xattr(&path, "user.")), libc::EINVAL, "no name");
    if sys::is_root() {
        assert_eq!(sys::errno(sys::set_xattr(&path, "trusted.", b"x")), libc::EINVAL, "no name");
        assert_eq!(sys::errno(sys::set_xattr(&path, "security.", b"x")), libc::EINVAL, "no name");
    }
    symlink("file", mount.path("link")).expect("symlink");
    assert_eq!(sys::errno(sys::set_xattr(&mount.path("link"), "user.x", b"x")), libc::EPERM, "of a link");
    for attribute in 0..number {
        sys::set_xattr(&path, &format!("user.number-{attribute}"), attribute.to_string().as_bytes())
            .expect("setxattr");
    }
    for attribute in (0..number).step_by(2) {
        sys::remove_xattr(&path, &format!("user.number-{attribute}")).expect("removexattr");
    }
    for _ in 0..2 {
        assert_eq!(sys::get_xattr(&path, OsStr::new("user.large")).expect("getxattr"), vec![7; most]);
        assert_eq!(sys::get_xattr(&path, OsStr::new(&name)).expect("getxattr"), b"long name");
        assert_eq!(sys::list_xattrs(&path).expect("listxattr").len(), number / 2 + 2);
        for attribute in 0..number {
            let value = sys::get_xattr(&path, OsStr::new(&format!("user.number-{attribute}"))).ok();
            assert_eq!(
                value,
                (attribute % 2 == 1).then(|| attribute.to_string().into_bytes()),
                "{attribute}"
            );
        }
        mount.remount();
    }
}

fn new_files_get_group_and_access_list_of_their_directory(mount: &mut Mount) {
    mount.shell().run(
        "mkdir grouped; chown 0:4321 grouped; chmod 2775 grouped
         umask 027; cd grouped; mkdir sub; : > file; mkfifo pipe; ln -s x link
         [ \"$(stat -c %g:%a sub)\" = 4321:2750 ]; [ \"$(stat -c %g:%a file)\" = 4321:640 ]
         [ \"$(stat -c %g pipe)$(stat -c %g link)\" = 43214321 ]
         cd ..; mkdir listed; setfacl -d -m u::rwx,u:2222:rwx,g::rx,o::- listed
         umask 077; cd listed; mkdir sub; : > file; (umask 0; : > open)
         getfacl -cn file | grep -q 'user:2222:rwx'; getfacl -cn file | grep -q 'mask::rw-'
         [ \"$(stat -c %a file)\" = 660 ]; [ \"$(stat -c %a sub)\" = 770 ]; [ \"$(stat -c %a open)\" = 660 ]
         getfacl -cnd sub | grep -q 'user:2222:rwx'
         chmod 640 file; getfacl -cn file | grep -q 'mask::r--'; [ \"$(stat -c %a file)\" = 640 ]
         setfacl -m m::rwx file; [ \"$(stat -c %a file)\" = 670 ]
         cd ..; umask 077; : > plain; [ \"$(stat -c %a plain)\" = 600 ]
         # A program that runs as the group is made by members only.
         chmod 2777 grouped; cd grouped
         new() { setpriv --reuid=tests --regid=tests \"$1\" perl -MFcntl -e \"umask 0; sysopen F, '$2', O_CREAT, 02775\"; }
         new --groups=4321 member; new --groups=4322 other; chmod 2775 .
         [ \"$(stat -c %g:%a member)\" = 4321:2775 ]; [ \"$(stat -c %g:%a other)\" = 4321:775 ]",
    );
    let before = Manifest::of(&mount.point);
    mount.remount();
    before.must_equal(&Manifest::of(&mount.point), "after a remount");
    let bits = |path: &str| fs::metadata(mount.path(path)).expect("stat").mode() & 0o7777;
    assert_eq!((bits("grouped/sub"), bits("listed/file")), (0o2750, 0o670));
}

fn who_reads_a_directory_or_a_link_accesses_it(mount: &mut Mount) {
    mount.shell().run("mkdir -p directory/sub; ln -s directory link; : > directory/file");
    let accessed = |mount: &Mount| {
        ["directory", "link"].map(|name| fs::symlink_metadata(mount.path(name)).expect("stat").atime())
    };
    for name in ["directory", "link"] {
        sys::set_times(&mount.path(name), (1000, 0), (2000, 0)).expect("utimensat");
    }
    assert_eq!(accessed(mount), [1000, 1000]);
    mount.shell().run("ls -l directory; readlink link");
    let after = accessed(mount);
    assert!(after.iter().all(|time| *time > 2000), "{after:?}");
    mount.remount();
    assert_eq!(accessed(mount), after, "after a remount");
}

fn who_asks_not_to_leave_an_access_time_leaves_none(mount: &mut Mount) {
    let path = mount.path("file");
    fs::write(&path, [1; 100_000]).expect("write");
    sys::set_times(&path, (1000, 0), (2000, 0)).expect("utimensat");
    // The kernel reads nothing from its cache.
    mount.remount();
    let read = |flags: i32| {
        let mut bytes = Vec::new();
        OpenOptions::new().read(true).custom_flags(flags).open(&path)?.read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>((bytes.len(), fs::metadata(&path)?.atime()))
    };
    assert_eq!(read(libc::O_NOATIME).expect("read"), (100_000, 1000));
    mount.remount();
    assert!(read(0).expect("read").1 > 2000, "an ordinary reader leaves one");
}

fn programs_can_be_run_and_are_not_changed_while_they_run(mount: &mut Mount) {
    let shell = mount.shell();
    shell.run(
        "cp $(command -v sleep) program; ./program 0
         printf '#!/bin/sh\\necho ran $1\\n' > script; chmod 755 script; [ \"$(./script it)\" = 'ran it' ]
         chmod 644 script; refused ./script
         cp $(command -v id) who; chown tests who; chmod 4755 who; [ \"$(./who -u)\" = $(id -u tests) ]",
    );
    let running = shell.start("exec ./program 30");
    btfs_mount_tests::mount::wait_until("the program runs", || {
        fs::read_link(format!("/proc/{}/exe", running.id())).is_ok_and(|exe| exe == mount.path("program"))
    });
    assert_eq!(sys::errno(OpenOptions::new().write(true).open(mount.path("program"))), libc::ETXTBSY);
    // But it can be replaced, and what runs goes on.
    shell.run("cp program new; mv new program; ./program 0");
    btfs_mount_tests::shell::end(running);
    mount.remount();
    mount.shell().run("./program 0; [ \"$(./who -u)\" = $(id -u tests) ]");
}

fn free_space_is_told(mount: &mut Mount) {
    let facts = |mount: &Mount| sys::statvfs(&mount.point).expect("statvfs");
    let start = facts(mount);
    assert!(
        start.f_bsize >= 512 && start.f_frsize >= 512 && start.f_namemax == 255,
        "namemax {}",
        start.f_namemax
    );
    assert!(start.f_bavail <= start.f_bfree && start.f_bfree <= start.f_blocks && start.f_bavail > 0);
    assert!(
        start.f_ffree <= start.f_files && start.f_ffree > 0,
        "inodes: {} of {}",
        start.f_ffree,
        start.f_files
    );
    let size = start.f_blocks * start.f_frsize;
    assert!((60 << 30..=64 << 30).contains(&size), "64 GiB were asked for, {size} bytes are there");
    let file = File::create(mount.path("file")).expect("create");
    for piece in 0..32 {
        file.write_all_at(&btfs_mount_tests::random::Random::new(piece).bytes(1 << 20), piece << 20)
            .expect("write");
    }
    file.sync_all().expect("fsync");
    let used = (start.f_bfree - facts(mount).f_bfree) * start.f_frsize;
    assert!((32 << 20..40 << 20).contains(&used), "a file of 32 MiB takes {used} bytes");
    drop(file);
    fs::remove_file(mount.path("file")).expect("unlink");
    btfs_mount_tests::mount::wait_until("the space is free again", || {
        File::open(&mount.point).expect("open").sync_all().expect("fsync");
        (start.f_bfree - facts(mount).f_bfree.min(start.f_bfree)) * start.f_frsize < 4 << 20
    });
    let shown = mount.shell().output("df --output=size,itotal -B1 . | tail -n 1");
    let shown: Vec<u64> = shown.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    assert_eq!(shown, [size, start.f_files], "df shows something else");
}

/// The kernel writes back some seconds later.
fn with_writeback_times_are_those_of_the_writes(mount: &mut Mount) {
    let names: Vec<_> = (0..20).map(|i| format!("f{i}")).collect();
    let mut open = Vec::new();
    for name in &names {
        let mut file = File::create(mount.path(name)).expect("create");
        file.write_all(&[1; 300_000]).expect("write");
        open.push(file);
        std::thread::sleep(Duration::from_millis(50));
    }
    let times = |mount: &Mount| -> Vec<SystemTime> {
        let time = |name| fs::metadata(mount.path(name)).and_then(|m| m.modified()).expect("stat");
        names.iter().map(time).collect()
    };
    let written = times(mount);
    std::thread::sleep(Duration::from_secs(1));
    for file in &open {
        file.sync_all().expect("fsync");
    }
    drop(open);
    mount.remount();
    let stored = times(mount);
    for (i, (written, stored)) in written.iter().zip(&stored).enumerate() {
        let apart = written.duration_since(*stored).unwrap_or_else(|e| e.duration());
        assert!(apart < Duration::from_millis(500), "file {i}: {written:?}, after a remount {stored:?}");
    }
}
