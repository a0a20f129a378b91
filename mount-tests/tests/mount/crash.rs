//! The daemon is killed at random moments of real work, again and again on the same filesystem. What a program was told to be
//! durable is there afterwards, and the image is sound without any repair.

use btfs_mount_tests::cases;
use btfs_mount_tests::manifest::Manifest;
use btfs_mount_tests::mount::{Mount, Peer, wait_until};
use btfs_mount_tests::random::{Random, from_environment};
use btfs_mount_tests::runner::Case;
use btfs_mount_tests::shell;
use btfs_mount_tests::sys;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

pub fn cases() -> Vec<Case> {
    cases![
        sqlite_with_a_rollback_journal_survives_kills.limit(1200),
        sqlite_with_a_write_ahead_log_survives_kills.limit(1200),
        git_commits_survive_kills.limit(1200),
        unpacked_and_synced_trees_survive_kills.limit(1200),
        writes_and_cuts_survive_kills.limit(1200),
        writes_and_cuts_survive_kills_with_writeback.options("writeback=on").limit(1200),
        what_nobody_syncs_is_durable_after_the_commit_interval.options("commit=1"),
    ]
}

/// How often, and from which seed.
fn rounds() -> (u64, Random) {
    let seed = from_environment("BTFS_TEST_SEED", 20_240_229);
    let rounds = from_environment("BTFS_TEST_KILLS", 20);
    eprintln!("BTFS_TEST_SEED={seed} BTFS_TEST_KILLS={rounds}");
    (rounds, Random::new(seed))
}

/// Lets a script work for a random time, kills the daemon, recovers. In every second round the time begins when three things have
/// been acknowledged: more than one a round, however slow the machine is.
fn interrupt(mount: &mut Mount, random: &mut Random, script: &str, round: u64, longest: u64) {
    let known = acknowledged(mount).len();
    let work = mount.shell().start(script);
    if round % 2 == 1 {
        wait_until("three things are acknowledged", || acknowledged(mount).len() >= known + 3);
    }
    std::thread::sleep(Duration::from_millis(20 + random.below(longest)));
    kill_and_recover(mount, || shell::end(work));
}

/// Kills the daemon, ends what has worked on the mount, checks the image as the kill has left it, and mounts again.
fn kill_and_recover(mount: &mut Mount, end_work: impl FnOnce()) {
    mount.kill();
    end_work();
    if mount.peer == Peer::Btfs {
        // An image with a log to be replayed is sound; ext4's check without writing cannot see that.
        mount.check();
    }
    mount.recover();
}

/// What was acknowledged: the lines of a file outside of the mount; the last one may be incomplete.
fn acknowledged(mount: &Mount) -> Vec<String> {
    let text = fs::read_to_string(mount.scratch.join("acknowledged")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(str::to_owned).collect()
}

const SQLITE: &str = r#"exec python3 - 2>/dev/null <<'PYTHON'
import os, sqlite3
base = sqlite3.connect("data.sqlite", isolation_level=None)
base.execute("PRAGMA journal_mode=JOURNAL")
base.execute("PRAGMA synchronous=EXTRA")
base.execute("CREATE TABLE IF NOT EXISTS items(id INTEGER PRIMARY KEY, payload BLOB)")
base.execute("CREATE TABLE IF NOT EXISTS sums(id INTEGER PRIMARY KEY, length INTEGER)")
log = os.open(os.environ["SCRATCH"] + "/acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    base.execute("BEGIN")
    number = base.execute("SELECT coalesce(max(id), 0) + 1 FROM items").fetchone()[0]
    payload = os.urandom(number * 97 % 9000)
    base.execute("INSERT INTO items VALUES(?, ?)", (number, payload))
    base.execute("INSERT INTO sums VALUES(?, ?)", (number, len(payload)))
    base.execute("UPDATE items SET payload = zeroblob(length(payload)) WHERE id = ?", (number // 2,))
    base.execute("COMMIT")
    # SQLite syncs the directory from which it has deleted its journal, but takes that for done if it cannot open it: as when
    # the daemon is killed right between the two. A daemon that still answers was there for the sync.
    os.statvfs(".")
    os.write(log, b"%d\n" % number)
PYTHON"#;

fn sqlite(mount: &mut Mount, journal: &str) {
    let (rounds, mut random) = rounds();
    let script = SQLITE.replace("JOURNAL", journal);
    for round in 0..rounds {
        interrupt(mount, &mut random, &script, round, 700);
        let shell = mount.shell();
        let last = acknowledged(mount).last().cloned();
        assert!(last.is_some() || round == 0, "no transaction was ever committed");
        let Some(last) = last else { continue };
        assert_eq!(shell.output("sqlite3 data.sqlite 'PRAGMA integrity_check'"), "ok", "round {round}");
        let found = shell.output(
            "sqlite3 data.sqlite 'SELECT max(i.id) || \" \" || count(*) || \" \" || sum(length(payload) <> length)
             FROM items i JOIN sums s ON i.id = s.id'",
        );
        let numbers: Vec<u64> = found.split(' ').map(|n| n.parse().expect("a number")).collect();
        let last: u64 = last.parse().expect("a number");
        // One more may be in: committed, but killed before it was acknowledged.
        assert!(
            numbers[0] == last || numbers[0] == last + 1,
            "round {round}: {last} acknowledged, found {found}"
        );
        assert!(
            numbers[1] == numbers[0] && numbers[2] == 0,
            "round {round}: the tables do not agree: {found}"
        );
        if numbers[0] == last + 1 {
            shell.run(&format!("echo {} >> $SCRATCH/acknowledged", numbers[0]));
        }
    }
}

fn sqlite_with_a_rollback_journal_survives_kills(mount: &mut Mount) {
    sqlite(mount, "DELETE");
}

fn sqlite_with_a_write_ahead_log_survives_kills(mount: &mut Mount) {
    sqlite(mount, "WAL");
}

fn git_commits_survive_kills(mount: &mut Mount) {
    let (rounds, mut random) = rounds();
    mount.shell().run(
        "git init -q repository; cd repository; git config core.fsync all; git config core.fsyncMethod fsync
         git config user.name t; git config user.email t@example.org; git config gc.auto 0
         echo 0 > file; git add file; git commit -qm first; git rev-parse HEAD >> $SCRATCH/acknowledged
         find . -type f -o -type d | xargs sync",
    );
    for round in 0..rounds {
        interrupt(
            mount,
            &mut random,
            "exec 2>/dev/null; cd repository
             while true; do
                 mkdir -p dir-$((RANDOM % 9)); echo $RANDOM > dir-$((RANDOM % 9))/f-$RANDOM || true; echo $RANDOM > file
                 git add -A; git commit -qm more
                 head=$(git rev-parse HEAD)
                 # git syncs what it writes, but not the directory in which it then renames the branch.
                 sync .git/refs/heads
                 echo $head >> $SCRATCH/acknowledged
                 if [ $((RANDOM % 8)) = 0 ]; then git repack -qd; fi
             done",
            round,
            900,
        );
        let last = acknowledged(mount).last().cloned().expect("a commit");
        // Locks of the git that was killed stay, on any filesystem.
        mount.shell().set("LAST", &last).run(
            "cd repository; find .git -name '*.lock' -delete
             git fsck --full --strict --no-dangling 2>&1
             git merge-base --is-ancestor $LAST HEAD || { echo \"$LAST was acknowledged, HEAD is $(git rev-parse HEAD)\"; exit 1; }
             git rev-list --objects HEAD > /dev/null
             git reset -q --hard; git clean -qfd; [ -z \"$(git status --porcelain)\" ]",
        );
        eprintln!("round {round}: {} commits", acknowledged(mount).len());
    }
    let commits = acknowledged(mount).len() as u64;
    assert!(commits > rounds, "only {commits} commits in {rounds} rounds");
}

fn unpacked_and_synced_trees_survive_kills(mount: &mut Mount) {
    let (rounds, mut random) = rounds();
    let outside = btfs_mount_tests::shell::Shell::new(&mount.scratch);
    outside.run(
        "mkdir tree; cd tree
         for i in $(seq 6); do mkdir d$i; for j in $(seq 10); do head -c $((RANDOM * 2)) /dev/urandom > d$i/f$j; done; done
         ln d1/f1 d2/link; ln -s ../d1/f1 d3/link; truncate -s 5M d4/sparse; chmod 640 d5/*
         touch -d @1000000000.123456789 d6/* d*; cd ..; touch -d @1000000001 tree; tar --format=posix -cf tree.tar tree",
    );
    let tree = Manifest::of_copy(mount.scratch.join("tree"));
    let mut checked = 0;
    for round in 0..rounds {
        interrupt(
            mount,
            &mut random,
            "exec 2>/dev/null
             while true; do
                 name=$(date +%s%N); mkdir work-$name
                 tar -xpf $SCRATCH/tree.tar -C work-$name
                 find work-$name ! -type l -print0 | xargs -0 sync
                 mv work-$name done-$name; sync .; echo done-$name >> $SCRATCH/acknowledged
                 # And removes an old one.
                 old=$(ls | grep done- | head -n -2 | head -n 1)
                 if [ -n \"$old\" ]; then echo \"gone $old\" >> $SCRATCH/acknowledged; rm -r $old; fi
             done",
            round,
            1500,
        );
        let lines = acknowledged(mount);
        let gone: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("gone ")).collect();
        for name in lines.iter().filter(|line| line.starts_with("done-") && !gone.contains(&line.as_str())) {
            let found = Manifest::of_copy(mount.path(name).join("tree"));
            tree.must_equal(&found, &format!("round {round}: {name} was synced"));
            checked += 1;
        }
        // What was cut off half-way can be removed.
        mount.shell().run("rm -rf work-*; for old in $(ls | grep done- | head -n -2); do echo \"gone $old\" >> $SCRATCH/acknowledged; rm -r $old; done");
    }
    assert!(checked > 0, "no tree was ever finished");
}

const SPACE: u64 = 200_000;

/// One change to a file, from a number: the same on the file and in memory.
fn change(number: u64, state: &mut Vec<u8>) -> Change {
    let mut random = Random::new(number);
    let at = random.below(SPACE) as usize;
    match random.below(8) {
        0 => {
            state.resize(at, 0);
            Change::Cut(at as u64)
        }
        1 => {
            let length = random.below(50_000) as usize + 1;
            let (start, end) = (at.min(state.len()), (at + length).min(state.len()));
            state[start..end].fill(0);
            Change::Punch(at as u64, length as u64)
        }
        _ => {
            let length = random.below(20_000) as usize + 1;
            let bytes = random.bytes(length);
            state.resize(state.len().max(at + bytes.len()), 0);
            state[at..at + bytes.len()].copy_from_slice(&bytes);
            Change::Write(at as u64, bytes)
        }
    }
}

enum Change {
    Cut(u64),
    Punch(u64, u64),
    Write(u64, Vec<u8>),
}

impl Change {
    fn apply(&self, file: &File) -> std::io::Result<()> {
        match self {
            Change::Cut(size) => file.set_len(*size),
            Change::Punch(at, length) => {
                sys::fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, *at, *length)
            }
            Change::Write(at, bytes) => file.write_all_at(bytes, *at),
        }
    }
}

/// Changes the file until the filesystem fails. Writes each number down before, and `synced` after each fsync.
fn change_until_the_end(path: &Path, log: &Path, first: u64) {
    let mut log = OpenOptions::new().append(true).create(true).open(log).expect("a log");
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return };
    for number in first.. {
        log.write_all(format!("{number}\n").as_bytes()).expect("write to the log");
        if change(number, &mut vec![]).apply(&file).is_err() {
            return;
        }
        if number % 7 == 0 {
            if file.sync_data().is_err() {
                return;
            }
            log.write_all(b"synced\n").expect("write to the log");
        }
    }
}

/// After a kill the contents are those of some moment since the last fsync.
fn writes_and_cuts_survive_kills(mount: &mut Mount) {
    kill_who_writes_and_cuts(mount, true);
}

/// With `whole` the contents after a kill must be those of one moment since the last fsync. Otherwise, where the kernel collects writes
/// and sends them in pieces, each byte and the length may be of another one.
fn kill_who_writes_and_cuts(mount: &mut Mount, whole: bool) {
    let (rounds, mut random) = rounds();
    let (path, log) = (mount.path("file"), mount.scratch.join("acknowledged"));
    File::create(&path).and_then(|file| file.sync_all()).expect("create");
    File::open(&mount.point).expect("open").sync_all().expect("fsync");
    let mut state: Vec<u8> = vec![];
    let mut changes = 0;
    for round in 0..rounds {
        fs::write(&log, "").expect("write");
        let first = (round + 1) * 1_000_000 + random.below(1000);
        let worker = sys::fork(|| change_until_the_end(&path, &log, first));
        if round % 2 == 1 {
            wait_until("something is synced", || acknowledged(mount).len() > 20);
        }
        std::thread::sleep(Duration::from_millis(5 + random.below(300)));
        kill_and_recover(mount, || {
            sys::kill(worker, libc::SIGKILL).ok();
            sys::wait(worker);
        });
        let lines = acknowledged(mount);
        changes += lines.len();
        let synced = lines.iter().rposition(|line| line == "synced").map_or(0, |at| at + 1);
        let number = |line: &String| line.parse().expect("a number");
        for line in lines[..synced].iter().filter(|line| *line != "synced") {
            change(number(line), &mut state);
        }
        let mut states = vec![state.clone()];
        for line in &lines[synced..] {
            change(number(line), &mut state);
            states.push(state.clone());
        }
        let found = fs::read(&path).expect("read");
        let lengths: Vec<usize> = states.iter().map(Vec::len).collect();
        assert!(
            lengths.contains(&found.len()),
            "round {round}: length {}, not one of {lengths:?}",
            found.len()
        );
        if whole && mount.peer == Peer::Btfs {
            assert!(states.contains(&found), "round {round}: a request is there in part");
        }
        for (at, byte) in found.iter().enumerate() {
            let possible = |state: &Vec<u8>| state.get(at).copied().unwrap_or(0) == *byte;
            assert!(
                states.iter().any(possible),
                "round {round}: at {at} there is {byte:#x}, which never was there"
            );
        }
        state = found;
        // What was found is what the next round begins with, come what may.
        File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
    }
    eprintln!("{changes} changes");
    assert!(changes as u64 > rounds * 5, "only {changes} changes in {rounds} rounds");
}

fn what_nobody_syncs_is_durable_after_the_commit_interval(mount: &mut Mount) {
    mount.only_btfs();
    for round in 0..3 {
        let contents = Random::new(round).bytes(100_000);
        fs::create_dir(mount.path(format!("dir-{round}"))).expect("mkdir");
        fs::write(mount.path(format!("dir-{round}/file")), &contents).expect("write");
        std::thread::sleep(Duration::from_secs(4));
        mount.kill();
        mount.recover();
        for before in 0..=round {
            let found = fs::read(mount.path(format!("dir-{before}/file"))).expect("read");
            assert!(found == Random::new(before).bytes(100_000), "the file of round {before}");
        }
    }
}

fn writes_and_cuts_survive_kills_with_writeback(mount: &mut Mount) {
    kill_who_writes_and_cuts(mount, false);
}
