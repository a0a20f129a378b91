//! Directories: large ones, changing ones, and positions in them.

use btfs_mount_tests::cases;
use btfs_mount_tests::mount::Mount;
use btfs_mount_tests::random::{Random, from_environment};
use btfs_mount_tests::runner::Case;
use btfs_mount_tests::sys::{self, Directory};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub fn cases() -> Vec<Case> {
    cases![
        listing_a_directory_that_changes_misses_and_repeats_nothing,
        a_position_in_a_directory_stays_valid,
        many_births_in_one_directory_are_all_there,
        a_directory_can_be_emptied_while_it_is_listed,
        deep_and_wide_trees_work,
    ]
}

fn names(path: &Path) -> Vec<OsString> {
    let mut directory = Directory::open(path).expect("opendir");
    std::iter::from_fn(|| directory.next_name().expect("readdir")).collect()
}

/// Every entry that is there throughout is seen exactly once by each listing, while others come, go and are renamed.
fn listing_a_directory_that_changes_misses_and_repeats_nothing(mount: &mut Mount) {
    let entries = from_environment("BTFS_TEST_ENTRIES", 100_000);
    let place = mount.path("large");
    fs::create_dir(&place).expect("mkdir");
    for number in 0..entries {
        // Every tenth one will change.
        let kind = if number % 10 == 0 { "moving" } else { "staying" };
        File::create(place.join(format!("{kind}-{number}"))).expect("create");
    }
    let (stop, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|threads| {
        let changers: Vec<_> = (0..3u64)
            .map(|thread| {
                let (place, stop, changes) = (&place, &stop, &changes);
                threads.spawn(move || change_directory(place, thread, entries, stop, changes))
            })
            .collect();
        let listers: Vec<_> = (0..2)
            .map(|_| {
                let (place, changes) = (&place, &changes);
                threads.spawn(move || {
                    let enough = |listing| listing >= 4 && changes.load(Ordering::Relaxed) > 1000;
                    for listing in (0..).take_while(|listing| !enough(*listing)) {
                        let mut seen = HashMap::new();
                        names(place).into_iter().for_each(|name| *seen.entry(name).or_insert(0) += 1);
                        for number in (0..entries).filter(|number| number % 10 != 0) {
                            let times =
                                seen.get(&OsString::from(format!("staying-{number}"))).copied().unwrap_or(0);
                            assert_eq!(
                                times, 1,
                                "listing {listing}: staying-{number} was seen {times} times"
                            );
                        }
                    }
                })
            })
            .collect();
        let failed = listers.into_iter().filter_map(|lister| lister.join().err()).count();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0, "listings that were wrong");
        changers.into_iter().for_each(|changer| changer.join().expect("changer"));
    });
    let before: BTreeSet<_> = names(&place).into_iter().collect();
    mount.remount();
    let after = names(&place);
    assert_eq!(after.len(), before.len(), "entries after a remount");
    assert!(after.into_iter().collect::<BTreeSet<_>>() == before, "after a remount");
}

fn change_directory(place: &Path, thread: u64, entries: u64, stop: &AtomicBool, changes: &AtomicU64) {
    let mut random = Random::new(thread);
    while !stop.load(Ordering::Relaxed) {
        // Each thread has numbers of its own.
        let number = random.below(entries / 30) * 30 + thread * 10;
        let (here, there) = (place.join(format!("moving-{number}")), place.join(format!("moved-{number}")));
        match random.below(3) {
            0 => drop(fs::rename(&here, &there)),
            1 => drop(fs::rename(&there, &here)),
            _ => {
                let name = place.join(format!("new-{thread}-{number}"));
                File::create(&name).expect("create");
                fs::remove_file(&name).expect("unlink");
            }
        }
        changes.fetch_add(1, Ordering::Relaxed);
    }
}

fn a_position_in_a_directory_stays_valid(mount: &mut Mount) {
    let place = mount.path("positions");
    fs::create_dir(&place).expect("mkdir");
    for number in 0..5000 {
        File::create(place.join(format!("entry-{number}"))).expect("create");
    }
    let mut directory = Directory::open(&place).expect("opendir");
    let mut steps = vec![(directory.position(), None)];
    while let Some(name) = directory.next_name().expect("readdir") {
        steps.last_mut().expect("the first").1 = Some(name);
        steps.push((directory.position(), None));
    }
    assert_eq!(steps.len(), 5001);
    let positions: BTreeSet<i64> = steps.iter().map(|step| step.0).collect();
    assert_eq!(positions.len(), 5001, "positions are not unique");
    let check = |directory: &mut Directory, when: &str| {
        let mut random = Random::new(8);
        for _ in 0..500 {
            let (position, name) = &steps[random.below(5001) as usize];
            directory.seek(*position);
            assert_eq!(&directory.next_name().expect("readdir"), name, "{when}: at position {position}");
        }
    };
    check(&mut directory, "in the same stream");
    let mut other = Directory::open(&place).expect("opendir");
    check(&mut other, "in another stream");
    drop((directory, other));
    mount.remount();
    let mut directory = Directory::open(&place).expect("opendir");
    check(&mut directory, "after a remount");
    // A position whose entry is gone goes on with the next one.
    let (position, name) = steps[2500].clone();
    fs::remove_file(place.join(name.expect("an entry"))).expect("unlink");
    drop(directory);
    let mut directory = Directory::open(&place).expect("opendir");
    directory.seek(position);
    let rest: Vec<_> = std::iter::from_fn(|| directory.next_name().expect("readdir")).collect();
    let expected: Vec<_> = steps[2501..5000].iter().map(|step| step.1.clone().expect("an entry")).collect();
    assert!(rest == expected, "{} entries after a removed one, expected {}", rest.len(), expected.len());
}

fn many_births_in_one_directory_are_all_there(mount: &mut Mount) {
    const EACH: u32 = 8000;
    let place = mount.path("births");
    fs::create_dir(&place).expect("mkdir");
    let children: Vec<i32> = (0..4)
        .map(|process| {
            sys::fork(|| {
                for number in 0..EACH {
                    match number % 4 {
                        0 => fs::create_dir(place.join(format!("{process}-{number}"))).expect("mkdir"),
                        1 => std::os::unix::fs::symlink("to", place.join(format!("{process}-{number}")))
                            .expect("symlink"),
                        _ => drop(File::create(place.join(format!("{process}-{number}"))).expect("create")),
                    }
                }
            })
        })
        .collect();
    for child in children {
        assert_eq!(sys::wait(child), 0);
    }
    let check = || {
        let found: BTreeSet<_> = names(&place).into_iter().collect();
        assert_eq!(found.len() as u32, 4 * EACH);
        for process in 0..4 {
            for number in 0..EACH {
                assert!(
                    found.contains(&OsString::from(format!("{process}-{number}"))),
                    "{process}-{number} is missing"
                );
            }
        }
        use std::os::unix::fs::MetadataExt;
        let links = fs::metadata(&place).expect("stat").nlink();
        assert_eq!(links, 2 + u64::from(EACH), "links of the directory: two, and one for each subdirectory");
    };
    check();
    File::open(&place).expect("open").sync_all().expect("fsync");
    mount.kill();
    mount.recover();
    check();
    fs::remove_dir_all(&place).expect("remove all");
}

fn a_directory_can_be_emptied_while_it_is_listed(mount: &mut Mount) {
    let place = mount.path("emptied");
    for round in 0..3 {
        fs::create_dir(&place).expect("mkdir");
        for number in 0..10_000 {
            File::create(place.join(format!("{round}-{number}"))).expect("create");
        }
        // As `rm -r` does: unlink each name when it is read.
        let mut directory = Directory::open(&place).expect("opendir");
        let mut removed = 0;
        while let Some(name) = directory.next_name().expect("readdir") {
            fs::remove_file(place.join(name)).expect("unlink of a name just read");
            removed += 1;
        }
        assert_eq!(removed, 10_000, "round {round}");
        drop(directory);
        fs::remove_dir(&place).expect("rmdir of a directory that was emptied");
    }
}

fn deep_and_wide_trees_work(mount: &mut Mount) {
    mount.shell().run(
        "deep=$(printf 'd/%.0s' $(seq 600)); mkdir -p $deep; echo bottom > $deep/file
         wide=(); for i in $(seq 500); do wide+=(wide/$((i % 10))/$i/x/y); done; mkdir -p ${wide[@]}",
    );
    mount.remount();
    mount.shell().run(
        "[ $(find d -type d | wc -l) = 600 ]; [ \"$(find d -name file -exec cat {} +)\" = bottom ]
         [ $(find wide -type d | wc -l) = 1511 ]
         top=d; for i in $(seq 1 50); do cd d; done; [ \"$(pwd -P | tr -cd / | wc -c)\" -gt 50 ]
         cd \"$MNT\"; refused mv d d/d/d/inside; mv d wide/3/; rm -r wide; [ ! -e wide ]",
    );
}
