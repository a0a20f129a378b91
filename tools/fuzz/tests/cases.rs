//! Cases that found something once, in `cases/`: one directory for each target.

use std::path::Path;

use btfs_fuzz::base::bases;
use btfs_fuzz::{Target, Verdict, memory, run, run_caught, story};

#[global_allocator]
static HEAP: memory::Counting = memory::Counting;

/// One after the other, in one test: the limit of time is the process's.
#[test]
fn nothing_is_wrong_with_what_was_wrong_once() {
    memory::watch();
    // Without damage nothing is found, however one looks.
    for (n, base) in bases().iter().enumerate() {
        for (target, modes) in [(Target::Mount, 16), (Target::Fsck, 4)] {
            for mode in 0..modes {
                let verdict = run(target, &[n as u8, mode]);
                assert_eq!(verdict, Ok(Verdict::Sound), "{target:?} of {}, mode {mode}", base.name);
            }
        }
    }
    let mut wrong = 0;
    for (target, dir) in [(Target::Mount, "mount"), (Target::Fsck, "fsck")] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(dir);
        let mut paths: Vec<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let bytes = std::fs::read(&path).unwrap();
            memory::case_begins();
            // Each is run by both: what one finds may be wrong for the other as well.
            for target in [target, Target::Mount, Target::Fsck] {
                if let Err(e) = run_caught(target, &bytes) {
                    println!("{}, {target:?}: {e}\n{}", path.display(), story(&bytes));
                    wrong += 1;
                }
            }
            memory::case_ends();
        }
    }
    assert_eq!(wrong, 0);
}
