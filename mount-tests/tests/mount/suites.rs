//! Suites that others have written.

use btfs_mount_tests::mount::{Mount, Peer, need_helpers};
use btfs_mount_tests::random::from_environment;
use btfs_mount_tests::runner::{Case, not_run};
use btfs_mount_tests::shell::{describe, must, outcome};
use btfs_mount_tests::{cases, sys};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

pub fn cases() -> Vec<Case> {
    cases![
        fsx_finds_nothing_wrong.limit(1800),
        fsx_finds_nothing_wrong_with_writeback.options("writeback=on").limit(1800),
        stress_ng_finds_nothing_wrong.limit(1800),
        pjdfstest_finds_nothing_wrong,
        pjdfstest_finds_a_read_only_mount_read_only,
    ]
}

/// A program that `mount-tests/setup` has put into the build directory.
fn suite(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("the path of this program");
    let path = here.ancestors().nth(3).expect("target/PROFILE/deps/program").join("suites/bin").join(name);
    if !path.is_file() {
        not_run(&format!("no {}: run mount-tests/setup", path.display()));
    }
    path
}

/// Runs pjdfstest on some of its tests and gives how many passed; none may have failed.
fn pjdfstest(mount: &Mount, settings: &str, pattern: &[&str]) -> usize {
    if !sys::is_root() {
        not_run("pjdfstest changes users, which only root can");
    }
    let configuration = mount.scratch.join("pjdfstest.toml");
    let text = format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\nutimensat = {{}}\n\
         [settings]\nnaptime = 0.02\n{settings}\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"tests\", \"tests\"]]\n"
    );
    fs::write(&configuration, text).expect("write");
    sys::chmod(&mount.point, 0o755).expect("chmod");
    let mut command = Command::new(suite("pjdfstest"));
    command
        .arg("-c")
        .arg(&configuration)
        .arg("-p")
        .arg(&mount.point)
        .arg("-s")
        .arg(&mount.scratch)
        .args(pattern);
    let output = outcome(command.current_dir(&mount.scratch));
    let text = String::from_utf8_lossy(&output.stdout);
    let interesting = text.lines().filter(|line| !line.ends_with("ok") && !line.is_empty());
    eprintln!("{}", interesting.collect::<Vec<_>>().join("\n"));
    let summary = text.lines().find(|line| line.starts_with("Summary: ")).expect("a summary");
    let count = |what: &str| -> usize {
        let part = summary.trim_start_matches("Summary: ").split(", ").find(|part| part.ends_with(what));
        part.and_then(|part| part.split(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {what}: {summary}"))
    };
    assert_eq!(count(" failed"), 0, "{summary}");
    assert!(output.status.success(), "{}", describe(&output));
    count(" passed")
}

fn pjdfstest_finds_nothing_wrong(mount: &mut Mount) {
    let passed = pjdfstest(mount, "", &[]);
    // Of 398, thirteen are those of the next case, and one asks for a limit of links that FUSE cannot tell.
    assert!(passed >= 384, "only {passed} tests have run and passed");
}

fn pjdfstest_finds_a_read_only_mount_read_only(mount: &mut Mount) {
    // `mount -o remount,ro` runs the helper.
    need_helpers(mount);
    let passed = pjdfstest(mount, "allow_remount = true", &["erofs"]);
    assert_eq!(passed, 13);
}

const FSX: &str = "
[weights]
close_open = 1
invalidate = 1
mapread = 1
mapwrite = 1
read = 1
write = 2
truncate = 1
fsync = 0.3
fdatasync = 0.3
posix_fallocate = 1
punch_hole = 1
sendfile = 1
posix_fadvise = 1
copy_file_range = 1
";

/// fsx never gives up a mapping that it has written through, and every operation on the file goes through them all: with more
/// operations it takes most of the time itself, and in the end meets the kernel's limit of mappings.
const FSX_ROUND: u64 = 25_000;

fn fsx_finds_nothing_wrong(mount: &mut Mount) {
    let program = suite("fsx");
    let operations = from_environment("FSX_OPS", 100_000);
    let seed = from_environment("FSX_SEED", 20_240_229);
    eprintln!("FSX_OPS={operations} FSX_SEED={seed}");
    let mount = &*mount;
    // Two files at once, one small, one large with large operations: all blocks of one page, and many extents.
    let files = [("small", "flen = 262144\n", 65_536), ("large", "flen = 16777216\n", 1_048_576)];
    std::thread::scope(|scope| {
        for (number, (name, length, most)) in files.into_iter().enumerate() {
            let configuration = mount.scratch.join("fsx.toml").with_extension(name);
            fs::write(&configuration, format!("{length}[opsize]\nmin = 1\nmax = {most}\n{FSX}"))
                .expect("write");
            // The large file costs about twenty times as much for each operation.
            let share = if name == "small" { operations } else { operations / 20 };
            let program = &program;
            scope.spawn(move || {
                for round in 0..share.div_ceil(FSX_ROUND) {
                    let count = FSX_ROUND.min(share - round * FSX_ROUND);
                    let seed = seed + 2 * round + number as u64;
                    let mut command = Command::new(program);
                    command.arg("-f").arg(&configuration).args(["-S", &seed.to_string()]);
                    command.args(["-N", &count.to_string()]).arg("-P").arg(&mount.scratch).arg("-q");
                    let status = command.arg(mount.path(name)).status().expect("fsx starts");
                    assert!(status.success(), "fsx on the {name} file, seed {seed}: {status}");
                }
            });
        }
    });
}

fn fsx_finds_nothing_wrong_with_writeback(mount: &mut Mount) {
    fsx_finds_nothing_wrong(mount);
}

fn stress_ng_finds_nothing_wrong(mount: &mut Mount) {
    let seconds = from_environment("STRESS_SECONDS", 1);
    let output = match Command::new("stress-ng").args(["--class", "filesystem?"]).output() {
        Ok(output) => describe(&output),
        Err(_) => not_run("no stress-ng: run mount-tests/setup"),
    };
    // They mount things of their own.
    let excluded = ["bind-mount", "binderfs"];
    let list = output.lines().find_map(|line| line.split("stressors: ").nth(1)).expect("a list of stressors");
    let stressors: Vec<&str> = list.split_whitespace().filter(|name| !excluded.contains(name)).collect();
    assert!(stressors.len() >= 42, "only {} stressors", stressors.len());
    let mut wrong = vec![];
    for name in stressors {
        let place = mount.path("stress");
        fs::create_dir(&place).expect("mkdir");
        let mut command = Command::new("stress-ng");
        command.args([&format!("--{name}"), "1", "-t", &format!("{seconds}s"), "--verify", "--temp-path"]);
        let output = outcome(command.arg(&place).current_dir(&place));
        let said = describe(&output);
        eprintln!("{name}: {}", output.status);
        // It says 0 in spite of failures, and 4 for what this kernel or filesystem does not have.
        if said.contains("fail:") || !matches!(output.status.code(), Some(0 | 4)) {
            wrong.push(format!("{name}: {said}"));
        }
        must(Command::new("rm").arg("-rf").arg(&place));
        assert!(mount.peer != Peer::Btfs || mount.is_alive(), "the daemon has died in {name}");
    }
    assert!(wrong.is_empty(), "{} stressors failed:\n{}", wrong.len(), wrong.join("\n"));
}
