//! The lock on an open image.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::in_every_folder;
use crate::storage::lock::{device_of_mount, flock_taker};
use crate::storage::{FileStorage, OpenError, OpenMode};

/// What the other process is to do with the image named in `BTFS_LOCK_IMAGE`.
const ROLE: &str = "BTFS_LOCK_ROLE";

fn start_other(what: &str, image: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "storage::tests::lock::other_process", "--quiet"]);
    command.env(ROLE, what).env("BTFS_LOCK_IMAGE", image);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// Not a test: what the other tests run in another process.
#[test]
fn other_process() {
    let Ok(what) = std::env::var(ROLE) else { return };
    let image = std::env::var_os("BTFS_LOCK_IMAGE").unwrap();
    if what == "hold" {
        // Whoever waits for the lock to be taken holds it for moments.
        let _storage = wait_for(|| FileStorage::open(&image, OpenMode::ReadWrite).ok());
        // Until killed, or orphaned.
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
    } else {
        // Like a daemon: take the lock, give it to a child, end.
        let file = fs::File::open(&image).unwrap();
        wait_for(|| file.try_lock().ok());
        #[allow(clippy::zombie_processes, reason = "it shall outlive this process")]
        let child = Command::new("sleep").arg("60").stdin(Stdio::from(file)).spawn().unwrap();
        fs::write(Path::new(&image).with_extension("heir"), child.id().to_string()).unwrap();
    }
}

fn wait_for<T>(mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(result) = check() {
            return result;
        }
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn refusal(image: &Path) -> Option<String> {
    match FileStorage::open(image, OpenMode::ReadOnly) {
        Ok(_) => None,
        Err(error @ OpenError::InUse { .. }) => Some(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_second_opener_is_refused_and_told_the_holders_pid() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        drop(FileStorage::create(&path, false).unwrap());
        let mut other = start_other("hold", &path);
        let message = wait_for(|| refusal(&path));
        let name = fs::read_to_string(format!("/proc/{}/comm", other.id())).unwrap();
        let expected = format!("image is in use by process {} ({})", other.id(), name.trim_end());
        assert_eq!(message, format!("{}: {expected}", path.display()));
        // Killed without a chance to clean up, it must leave no lock behind.
        other.kill().unwrap();
        other.wait().unwrap();
        FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
    });
}

#[test]
fn a_daemon_that_inherited_the_lock_is_named_and_not_its_dead_parent() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        drop(FileStorage::create(&path, false).unwrap());
        assert!(start_other("daemonise", &path).wait().unwrap().success());
        let heir = fs::read_to_string(path.with_extension("heir")).unwrap();
        let message = refusal(&path);
        let killed = Command::new("kill").arg(&heir).status().unwrap();
        assert!(killed.success());
        let message = message.expect("the child still holds the lock");
        assert!(message.ends_with(&format!("in use by process {heir} (sleep)")), "{message}");
    });
}

#[test]
fn readers_share_an_image_and_keep_writers_out() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        let writer = FileStorage::create(&path, false).unwrap();
        assert!(matches!(FileStorage::open(&path, OpenMode::ReadOnly), Err(OpenError::InUse { .. })));
        assert!(matches!(FileStorage::open(&path, OpenMode::ReadWrite), Err(OpenError::InUse { .. })));
        drop(writer);
        let readers = [(); 2].map(|()| FileStorage::open(&path, OpenMode::ReadOnly).unwrap());
        assert!(matches!(FileStorage::open(&path, OpenMode::ReadWrite), Err(OpenError::InUse { .. })));
        drop(readers);
        FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
    });
}

#[test]
fn only_the_taker_of_a_flock_on_this_very_file_is_named() {
    let taker = |line| flock_taker(line, "fe:00:5678");
    assert_eq!(taker("1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"), Some(1234));
    assert_eq!(taker("12: FLOCK  ADVISORY  READ  7 fe:00:5678 0 EOF"), Some(7));
    assert_eq!(taker("\t1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"), Some(1234));
    for other in [
        "1: -> FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF",
        "1: POSIX  ADVISORY  WRITE 1234 fe:00:5678 0 EOF",
        "1: FLOCK  ADVISORY  WRITE 1234 fe:00:56789 0 EOF",
        "1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF",
        "1: FLOCK  ADVISORY  WRITE -1 fe:00:5678 0 EOF",
        "1: FLOCK  ADVISORY  WRITE",
        "1:",
        "",
    ] {
        assert_eq!(taker(other), None, "{other}");
    }
}

#[test]
fn a_lock_is_sought_on_the_device_of_the_mount_and_not_of_the_subvolume() {
    let mounts = "29 1 254:0 / / rw - ext4 /dev/root rw\n\
        142 29 0:25 /@home /home rw,relatime shared:1 - btrfs /dev/sda2 rw,subvol=/@home\n\
        14 29 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
    let device = |fdinfo| device_of_mount(fdinfo, mounts);
    assert_eq!(device("pos:\t0\nflags:\t012000000\nmnt_id:\t142\nino:\t257\n"), Some((0, 25)));
    assert_eq!(device("mnt_id:\t14\n"), Some((0, 5)));
    for strange in ["", "pos:\t142\n", "mnt_id:\t1\n", "mnt_id:\n"] {
        assert_eq!(device(strange), None, "{strange}");
    }
    assert_eq!(device_of_mount("mnt_id:\t9\n", "9\n9 1\n9 1 0\n9 1 0:x\n"), None);
}
