//! Random cases from fixed seeds. `BTFS_FUZZ_CASES` of each target (700), from `BTFS_FUZZ_SEED`.

use btfs::storage::Rng;
use btfs_fuzz::{Target, Verdict, memory, random_case, run_caught, story};

#[global_allocator]
static HEAP: memory::Counting = memory::Counting;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// One after the other, in one test: the limit of time is the process's.
#[test]
fn random_damage_does_no_harm() {
    memory::watch();
    let (cases, seed) = (number("BTFS_FUZZ_CASES", 700), number("BTFS_FUZZ_SEED", 1));
    let mut wrong = 0;
    for target in [Target::Mount, Target::Fsck] {
        let (mut rng, mut damaged, mut sound) = (Rng::new(seed), 0, 0);
        for n in 0..cases {
            let bytes = random_case(&mut rng);
            memory::case_begins();
            match run_caught(target, &bytes) {
                Ok(Verdict::Damaged) => damaged += 1,
                Ok(Verdict::Sound) => sound += 1,
                Ok(Verdict::Refused(_)) => {}
                Err(e) => {
                    println!("{target:?}, case {n} of seed {seed}, {bytes:02x?}: {e}\n{}", story(&bytes));
                    wrong += 1;
                }
            }
            memory::case_ends();
        }
        println!("{target:?}: of {cases} images {damaged} are damaged, {sound} pass for sound ones");
        assert!(damaged > cases / 10 && sound > cases / 100, "{damaged} {sound}: the changes miss their aim");
    }
    assert_eq!(wrong, 0);
}
