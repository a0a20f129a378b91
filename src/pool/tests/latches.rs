//! Latches of frames: nobody reads while somebody writes.

use std::sync::Arc;

use crate::page::PageBytes;
use crate::pool::frames::Frames;
use crate::sync::{spin_wait, thread};

/// Two places of a page that writers change one after the other, and readers find equal.
const PLACES: [usize; 2] = [100, 16_000];

fn check_while_reading(page: &PageBytes) {
    let first = page[PLACES[0]];
    spin_wait();
    assert_eq!(page[PLACES[1]], first, "a page changed under a shared latch");
}

fn change_while_writing(page: &mut PageBytes) {
    let [a, b] = PLACES.map(|place| page[place]);
    assert_eq!(a, b, "two write at the same time");
    page[PLACES[0]] = a.wrapping_add(1);
    spin_wait();
    page[PLACES[1]] = b.wrapping_add(1);
}

/// Readers that find their slot free and others that do not, writers that wait and others that only try.
fn read_and_write(rounds: usize) {
    let frames = Arc::new(Frames::new(2).unwrap());
    let reader = |frames: Arc<Frames>, rounds: usize| {
        for _ in 0..rounds {
            let (page, _) = frames.latch_shared(0);
            let (other, _) = frames.latch_shared(1);
            check_while_reading(&page);
            drop(page);
            check_while_reading(&other);
        }
    };
    let writer = |frames: Arc<Frames>, rounds: usize| {
        for round in 0..rounds {
            change_while_writing(&mut frames.latch_exclusive(round as u32 % 2).0);
            if let Some(mut page) = frames.try_latch_exclusive(0) {
                change_while_writing(&mut page);
                check_while_reading(&page.downgrade());
            }
        }
    };
    let mut threads = Vec::new();
    for _ in 0..2 {
        let (for_reader, for_writer) = (frames.clone(), frames.clone());
        threads.push(thread::spawn(move || reader(for_reader, rounds)));
        threads.push(thread::spawn(move || writer(for_writer, rounds)));
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// On real processors, whose stores wait in buffers.
#[cfg(not(shuttle))]
#[test]
fn nobody_reads_what_somebody_writes() {
    read_and_write(20_000);
}

#[cfg(shuttle)]
mod shuttle {
    use ::shuttle::scheduler::{PctScheduler, RandomScheduler};
    use ::shuttle::{Config, Runner};

    use super::*;

    #[test]
    fn nobody_reads_what_somebody_writes() {
        let scenario = || read_and_write(2);
        Runner::new(RandomScheduler::new_from_seed(42, 2000), Config::default()).run(scenario);
        Runner::new(PctScheduler::new_from_seed(42, 3, 2000), Config::default()).run(scenario);
    }
}
