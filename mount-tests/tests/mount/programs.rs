//! Programs that demand much of a filesystem.

use btfs_mount_tests::cases;
use btfs_mount_tests::manifest::Manifest;
use btfs_mount_tests::mount::Mount;
use btfs_mount_tests::runner::{Case, not_run};
use btfs_mount_tests::sys;
use std::path::Path;

pub fn cases() -> Vec<Case> {
    cases![
        a_git_clone_is_sound_after_gc_and_remount,
        sqlite_keeps_its_transactions_with_a_rollback_journal,
        sqlite_keeps_its_transactions_with_a_write_ahead_log,
        cargo_builds_a_crate_and_rebuilds_only_what_changed,
        many_processes_at_once_lose_nothing,
        containers_keep_their_changes_in_an_overlay,
    ]
}

fn a_git_clone_is_sound_after_gc_and_remount(mount: &mut Mount) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    if !project.join(".git").exists() {
        not_run("the project is not in a git repository");
    }
    let shell = mount.shell().set("PROJECT", project);
    shell.run(
        "git clone -q --no-local \"$PROJECT\" clone; cd clone
         git fsck --full --strict 2>&1
         git config user.name t; git config user.email t@example.org
         for i in $(seq 20); do echo $i >> new-$((i % 3)); git add -A; git commit -qm \"$i\"; done
         git checkout -q -b other HEAD~5; git merge -q - >/dev/null; git checkout -q -; git rebase -q other
         git gc -q --prune=now; git fsck --full --strict 2>&1; [ -z \"$(git status --porcelain)\" ]",
    );
    let head = shell.output("git -C clone rev-parse HEAD");
    let before = Manifest::of(mount.path("clone"));
    mount.remount();
    before.must_equal(&Manifest::of(mount.path("clone")), "after a remount");
    assert_eq!(shell.output("git -C clone rev-parse HEAD"), head);
    shell.run("cd clone; git fsck --full --strict 2>&1; [ -z \"$(git status --porcelain)\" ]; git clone -q . ../again");
}

fn sqlite(mount: &mut Mount, journal: &str) {
    let shell = mount.shell();
    shell.run(&format!(
        "sqlite3 data.sqlite 'PRAGMA journal_mode={journal};
            CREATE TABLE items(id INTEGER PRIMARY KEY, owner INT, payload BLOB, UNIQUE(owner, id));'
         writer() {{
            for i in $(seq 40); do
                echo '.timeout 30000'
                echo 'BEGIN IMMEDIATE;'
                echo \"INSERT INTO items(owner, payload) SELECT $1, randomblob(abs(random()) % 3000) FROM generate_series(1, 20);\"
                echo \"UPDATE items SET payload = randomblob(500) WHERE owner = $1 AND id % 7 = 0;\"
                echo 'COMMIT;'
            done | sqlite3 -bail data.sqlite
         }}
         writer 1 & one=$!; writer 2 & two=$!; writer 3 & three=$!
         wait $one; wait $two; wait $three
         [ $(sqlite3 data.sqlite 'PRAGMA journal_mode') = {journal} ]
         sqlite3 data.sqlite 'DELETE FROM items WHERE id % 10 = 3; VACUUM;'"
    ));
    for _ in 0..2 {
        assert_eq!(shell.output("sqlite3 data.sqlite 'PRAGMA integrity_check'"), "ok");
        assert_eq!(shell.output("sqlite3 data.sqlite 'SELECT count(*) FROM items'"), "2160");
        assert_eq!(shell.output("sqlite3 data.sqlite 'SELECT count(DISTINCT owner) FROM items'"), "3");
        mount.remount();
    }
}

fn sqlite_keeps_its_transactions_with_a_rollback_journal(mount: &mut Mount) {
    sqlite(mount, "delete");
}

fn sqlite_keeps_its_transactions_with_a_write_ahead_log(mount: &mut Mount) {
    sqlite(mount, "wal");
}

fn cargo_builds_a_crate_and_rebuilds_only_what_changed(mount: &mut Mount) {
    let home = std::env::var("HOME").unwrap_or_default();
    let (cargo_home, rustup_home) = (
        std::env::var("CARGO_HOME").unwrap_or_else(|_| format!("{home}/.cargo")),
        std::env::var("RUSTUP_HOME").unwrap_or_else(|_| format!("{home}/.rustup")),
    );
    let mut shell =
        mount.shell().set("CARGO_HOME", cargo_home).set("CARGO_TARGET_DIR", mount.path("sample/target"));
    if Path::new(&rustup_home).exists() {
        shell = shell.set("RUSTUP_HOME", rustup_home);
    }
    shell.run(
        "cargo new --quiet --vcs none sample; cd sample
         for i in $(seq 20); do echo \"pub fn f$i() -> u32 { $i }\" > src/m$i.rs; echo \"mod m$i;\" >> src/main.rs; done
         sum=0; for i in $(seq 20); do sum=\"$sum + m$i::f$i()\"; done
         (grep '^mod' src/main.rs; echo \"fn main() { println!(\\\"{}\\\", $sum) }\") > main; mv main src/main.rs
         cargo build --offline --quiet; [ \"$(target/debug/sample)\" = 210 ]",
    );
    let fresh =
        |shell: &btfs_mount_tests::shell::Shell| shell.output("cd sample; cargo build --offline -v 2>&1");
    assert!(fresh(&shell).contains("Fresh sample"), "it is built again though nothing has changed");
    shell.run("cd sample; sed -i 's/{ 20 }/{ 41 }/' src/m20.rs; cargo build --offline --quiet; [ \"$(target/debug/sample)\" = 231 ]");
    mount.remount();
    assert!(fresh(&shell).contains("Fresh sample"), "it is built again after a remount");
    shell.run("cd sample; [ \"$(target/debug/sample)\" = 231 ]; cargo clean --quiet; [ ! -e target ]");
}

fn many_processes_at_once_lose_nothing(mount: &mut Mount) {
    let shell = mount.shell();
    shell.run(
        "mkdir shared
         work() {
            mkdir own-$1
            for i in $(seq 150); do
                echo \"$1 $i\" > shared/$1-$i
                ln shared/$1-$i own-$1/link-$i
                mv shared/$1-$i shared/$1-moved-$i
                mkdir own-$1/dir-$i; echo x > own-$1/dir-$i/f; mv own-$1/dir-$i shared/dir-$1-$i
                if [ $((i % 3)) = 0 ]; then rm own-$1/link-$i; rm -r shared/dir-$1-$i; fi
                # All fight for one name; nobody may ever see it missing once it is there.
                echo $1 > own-$1/new; mv own-$1/new shared/contended
                read -r winner < shared/contended; [[ $winner = [1-8] ]]
            done
         }
         children=()
         for p in $(seq 8); do work $p & children+=($!); done
         for child in ${children[@]}; do wait $child; done",
    );
    for _ in 0..2 {
        assert_eq!(shell.output("ls shared | grep -c moved"), "1200");
        assert_eq!(shell.output("ls -d shared/dir-* | wc -l"), "800");
        assert_eq!(shell.output("ls own-*/ | grep -c link"), "800");
        assert_eq!(shell.output("cat shared/*-moved-* | sort -u | wc -l"), "1200");
        assert_eq!(shell.output("find shared -name '*-moved-*' -links 2 | wc -l"), "800");
        assert_eq!(shell.output("ls shared | wc -l"), "2001");
        mount.remount();
    }
    shell.run("rm -r shared own-*; [ -z \"$(ls | grep -v lost+found)\" ]");
}

/// What container engines do: an image of files below, changes in a directory of the mount.
fn containers_keep_their_changes_in_an_overlay(mount: &mut Mount) {
    let overlays = std::fs::read_to_string("/proc/filesystems").expect("/proc/filesystems");
    if !sys::is_root() || !overlays.lines().any(|line| line.ends_with("\toverlay")) {
        not_run("overlayfs needs root, and a kernel that has it");
    }
    let lower = mount.base.join("lower");
    let shell = mount.shell().set("LOWER", &lower).set("MERGED", mount.base.join("merged"));
    shell.run(
        "mkdir -p $LOWER/etc/deep \"$MERGED\" upper work; cd $LOWER
         for i in $(seq 100); do echo lower $i > etc/f$i; done; echo deep > etc/deep/er; ln -s etc/f1 link",
    );
    let overlay = |script: &str| {
        shell.run(&format!(
            "mount -t overlay overlay -o lowerdir=$LOWER,upperdir=upper,workdir=work \"$MERGED\"
             trap 'cd /; umount \"$MERGED\"' EXIT; cd \"$MERGED\"
             {script}"
        ));
    };
    overlay(
        "echo more >> etc/f1; rm etc/f2; mv etc/f3 etc/f4; mv etc/f5 new; chmod 600 etc/f6; ln etc/f7 hard
         rm -r etc/deep; mkdir etc/deep; echo other > etc/deep/other; rm link; mkdir made; cp -a etc made",
    );
    let seen = "[ \"$(cat etc/f1)\" = \"$(printf 'lower 1\\nmore')\" ]; [ ! -e etc/f2 ]; [ ! -e etc/f3 ]
        [ \"$(cat etc/f4)\" = 'lower 3' ]; [ \"$(cat new)\" = 'lower 5' ]; [ ! -e etc/f5 ]
        [ $(stat -c %a etc/f6) = 600 ]; [ $(stat -c %h hard) = 2 ]; [ \"$(ls etc/deep)\" = other ]; [ ! -e link ]
        [ $(ls etc | wc -l) = 98 ]; diff -r etc made/etc";
    overlay(seen);
    mount.remount();
    overlay(seen);
    shell.run("[ -c upper/etc/f2 ]; [ -c upper/etc/f3 ]; [ -c upper/link ]");
}
