//! What the disk is told, recorded below the daemon: the image as a power cut at any moment could leave it. After each such moment
//! `btfs fsck -n` finds nothing, the image can be mounted, and what a program had made durable by then is there.

use btfs_mount_tests::cases;
use btfs_mount_tests::manifest::Manifest;
use btfs_mount_tests::mount::Mount;
use btfs_mount_tests::random::{Random, from_environment};
use btfs_mount_tests::runner::{Case, not_run};
use btfs_mount_tests::shell::{Shell, must};
use btfs_mount_tests::sys;
use btfs_mount_tests::writes::{Recorder, Recording, Replay};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;

pub fn cases() -> Vec<Case> {
    cases![
        what_was_synced_is_there_after_a_power_cut_at_any_moment.limit(3600),
        a_disk_that_forgets_what_was_flushed_does_not_pass.limit(3600),
    ]
}

/// What a program knows to be durable.
enum Fact {
    /// A tree that was unpacked and synced.
    Tree(u64),
    /// A commit.
    Commit(String),
    /// Transactions of SQLite.
    Rows(u64),
}

/// A fact, and how long the recording was when it was acknowledged, and when it began to be undone.
struct Known {
    fact: Fact,
    from: u64,
    until: u64,
}

/// Works, and notes what is durable when.
fn work(mount: &Mount, recorder: &Recorder, rounds: u64) -> Vec<Known> {
    let shell = mount.shell();
    let mut known: Vec<Known> = vec![];
    shell.run(
        "git init -q repository; cd repository; git config core.fsync all; git config core.fsyncMethod fsync
         git config user.name t; git config user.email t@example.org; git config gc.auto 0",
    );
    for round in 0..rounds {
        let shell = mount.shell().set("ROUND", round.to_string());
        let mut note = |fact| known.push(Known { fact, from: recorder.position(), until: u64::MAX });
        shell.run(
            "mkdir work; tar -xpf $SCRATCH/tree.tar -C work; find work ! -type l -print0 | xargs -0 sync
             mv work tree-$ROUND; sync .",
        );
        note(Fact::Tree(round));
        let head = shell.output(
            "cd repository; mkdir -p d-$((ROUND % 3)); echo $ROUND > file; echo $ROUND > d-$((ROUND % 3))/f-$ROUND
             git add -A; git commit -qm \"$ROUND\"; sync .git/refs/heads .git/refs .git; git rev-parse HEAD",
        );
        note(Fact::Commit(head));
        // Three transactions, with a rollback journal or a log.
        shell.run(
            "python3 - <<'PYTHON'
import os, sqlite3
round = int(os.environ['ROUND'])
base = sqlite3.connect('data.sqlite', isolation_level=None)
base.execute('PRAGMA journal_mode=' + ('WAL' if round // 2 % 2 else 'DELETE'))
base.execute('PRAGMA synchronous=EXTRA')
base.execute('CREATE TABLE IF NOT EXISTS items(id INTEGER PRIMARY KEY, payload BLOB)')
for number in range(round * 3 + 1, round * 3 + 4):
    base.execute('BEGIN')
    base.execute('INSERT INTO items VALUES(?, ?)', (number, os.urandom(number * 997 % 20000)))
    base.execute('UPDATE items SET payload = zeroblob(length(payload)) WHERE id = ?', (number // 2,))
    base.execute('COMMIT')
PYTHON",
        );
        note(Fact::Rows(round * 3 + 3));
        if let Some(old) = round.checked_sub(2) {
            // Undone from here on, which nobody syncs.
            for one in known.iter_mut().filter(|one| matches!(one.fact, Fact::Tree(tree) if tree == old)) {
                // Not later than it really began: a position is rounded up.
                one.until = recorder.position().saturating_sub(1 << 20);
            }
            mount.shell().run(&format!("rm -r tree-{old}"));
        }
        if round % 3 == 2 {
            shell.run(
                "cd repository; git repack -qd; dd if=/dev/urandom of=../noise bs=1M count=3 status=none",
            );
        }
    }
    known
}

/// What was acknowledged up to here, and not yet undone, must be there.
/// `last`: something that was recorded up to there may be done as well.
fn look(mount: &Mount, known: &[Known], position: u64, last: u64, tree: &Manifest) -> u64 {
    let (mut commit, mut rows, mut checked) = (None, 0, 0);
    for one in known.iter().filter(|one| one.from <= position) {
        match &one.fact {
            Fact::Tree(number) if last < one.until => {
                let found = Manifest::of_copy(mount.path(format!("tree-{number}/tree")));
                tree.must_equal(&found, &format!("tree {number} was synced"));
                checked += 1;
            }
            Fact::Tree(_) => {}
            Fact::Commit(head) => commit = Some(head),
            Fact::Rows(last) => rows = *last,
        }
    }
    if let Some(commit) = commit {
        // Locks of a git that a power cut has ended stay, on any filesystem.
        mount.shell().set("LAST", commit).run(
            "cd repository; find .git -name '*.lock' -delete; git fsck --full --strict --no-dangling >&2
             git merge-base --is-ancestor $LAST HEAD; git rev-list --objects HEAD >/dev/null",
        );
        checked += 1;
    }
    if rows > 0 {
        let shell = mount.shell();
        assert_eq!(shell.output("sqlite3 data.sqlite 'PRAGMA integrity_check'"), "ok");
        let found = shell.output("sqlite3 data.sqlite 'SELECT max(id) || \" \" || count(*) FROM items'");
        let numbers: Vec<u64> = found.split(' ').map(|n| n.parse().expect("a number")).collect();
        assert!(numbers[0] >= rows && numbers[1] == numbers[0], "{rows} rows were committed, found {found}");
        checked += 1;
    }
    checked
}

/// The moments to be looked at: with which entries done for sure, and until which any may be.
fn moments(recording: &Recording, wanted: usize, random: &mut Random) -> Vec<(usize, Option<usize>)> {
    let flushes = recording.flushes();
    let mut all: Vec<(usize, Option<usize>)> = flushes.iter().map(|at| (*at, None)).collect();
    for pair in flushes.windows(2).filter(|pair| pair[1] - pair[0] > 1) {
        let writes = (pair[1] - pair[0]) as u64;
        all.push((pair[0], Some(pair[0] + 1 + random.below(writes) as usize)));
    }
    if wanted > 0 {
        // As many of either kind.
        let (whole, mut cut): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, until)| until.is_none());
        let mut some = |mut from: Vec<_>| {
            while from.len() > wanted / 2 {
                from.swap_remove(random.below(from.len() as u64) as usize);
            }
            from
        };
        cut = some(cut);
        all = some(whole);
        all.append(&mut cut);
    }
    all.sort();
    all
}

/// What was recorded, and what is known of it.
struct Recorded {
    recording: Recording,
    /// The image as it was before.
    base: PathBuf,
    known: Vec<Known>,
    tree: Manifest,
}

/// Works on an image of its own below which everything is recorded. Nothing is mounted then.
fn record(mount: &mut Mount, rounds: u64) -> Recorded {
    mount.only_btfs();
    if !sys::is_root() {
        not_run("only root has a recording below its mount");
    }
    Shell::new(&mount.scratch).run(
        "mkdir tree; cd tree
         for i in $(seq 3); do mkdir d$i; for j in $(seq 12); do head -c $((i * j * 900)) /dev/urandom > d$i/f$j; done; done
         ln d1/f1 d2/link; ln -s ../d1/f1 d3/link; truncate -s 2M d3/sparse; chmod 640 d2/f*
         touch -d @1000000000.123456789 d1/f* d*; cd ..; touch -d @1000000001 tree; tar --format=posix -cf tree.tar tree",
    );
    let tree = Manifest::of_copy(mount.scratch.join("tree"));
    // An image of its full length, since growth is not recorded, with a small log, so that it goes round.
    mount.replace_image("256M");
    let (data, base) = (mount.image.clone(), mount.base.join("replayed.db"));
    must(Command::new("cp").arg("--sparse=always").arg(&data).arg(&base));
    let recorder = Recorder::begin(&data, &mount.base);
    mount.image = recorder.image.clone();
    mount.mount();
    let known = work(mount, &recorder, rounds);
    mount.unmount();
    Recorded { recording: recorder.end(), base, known, tree }
}

/// A disk that says that it has flushed, and loses some of it all the same, is what a daemon that flushes too late would look like:
/// it must be noticed, or this test would notice nothing.
fn a_disk_that_forgets_what_was_flushed_does_not_pass(mount: &mut Mount) {
    /// Moments that are tried, and flushes before each that are forgotten.
    const TRIES: usize = 12;
    const FORGOTTEN: usize = 12;
    let Recorded { recording, base, known, tree } = record(mount, 2);
    let mut random = Random::new(from_environment("BTFS_TEST_SEED", 20_240_229));
    mount.image = mount.base.join("cut.db");
    let flushes = recording.flushes();
    let mut replay = Replay::new(&recording, &base);
    let mut noticed = 0;
    for pair in (0..TRIES).map(|n| (n + 1) * (flushes.len() - FORGOTTEN - 1) / TRIES) {
        let (kept, done) = (flushes[pair], flushes[pair + FORGOTTEN]);
        replay.to(kept);
        replay.copy_cut(&mount.image, done, &mut random);
        let looked = catch_unwind(AssertUnwindSafe(|| {
            mount.check();
            mount.mount();
            let position = recording.position(done);
            look(mount, &known, position, position, &tree);
        }));
        noticed += u64::from(looked.is_err());
        if mount.is_mounted() {
            mount.unmount();
        }
    }
    // What is left of the last one is nothing to be looked at.
    fs::remove_file(&mount.image).expect("unlink");
    eprintln!("{noticed} of {TRIES} disks that forget were noticed");
    assert!(noticed > 0, "nothing was noticed");
}

fn what_was_synced_is_there_after_a_power_cut_at_any_moment(mount: &mut Mount) {
    let seed = from_environment("BTFS_TEST_SEED", 20_240_229);
    let wanted = from_environment("BTFS_TEST_CUTS", 24) as usize;
    eprintln!("BTFS_TEST_SEED={seed} BTFS_TEST_CUTS={wanted}");
    let mut random = Random::new(seed);
    let Recorded { recording, base, known, tree } = record(mount, 6);
    let moments = moments(&recording, wanted, &mut random);
    let (flushes, entries) = (recording.flushes().len(), recording.len());
    assert!(flushes > 100 && entries > 1000, "only {flushes} flushes, {entries} entries");
    eprintln!("{entries} writes and flushes, {flushes} of them flushes; {} moments", moments.len());
    mount.image = mount.base.join("cut.db");
    let mut replay = Replay::new(&recording, &base);
    let (mut checked, wanted) = (0, moments.len() as u64);
    for (done, until) in moments {
        eprintln!("{done} entries are done, any until {until:?}");
        replay.to(done);
        match until {
            None => replay.copy(&mount.image),
            Some(until) => replay.copy_cut(&mount.image, until, &mut random),
        }
        mount.check();
        mount.mount();
        let last = recording.position(until.unwrap_or(done));
        checked += look(mount, &known, recording.position(done), last, &tree);
        mount.unmount();
        mount.check();
    }
    // What was recorded is all that there is: replayed to its end, the image is the one that was unmounted.
    replay.to(entries);
    replay.copy(&mount.image);
    mount.check();
    mount.mount();
    checked += look(mount, &known, u64::MAX - 1, u64::MAX - 1, &tree);
    assert!(checked > wanted / 2, "only {checked} facts were looked at");
    eprintln!("{checked} facts looked at");
}
