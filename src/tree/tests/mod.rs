//! Tests of the tree. Each is named after what a user would lose if it failed.

#[cfg(not(shuttle))]
mod bulk;
#[cfg(not(shuttle))]
mod faults;
#[cfg(not(shuttle))]
mod grow;
#[cfg(not(shuttle))]
mod hostile;
mod model;
#[cfg(not(shuttle))]
mod prefetch;
#[cfg(not(shuttle))]
mod read_only;
#[cfg(not(shuttle))]
mod scan;
#[cfg(shuttle)]
mod shuttle;
#[cfg(not(shuttle))]
mod space;
#[cfg(not(shuttle))]
mod stress;
mod superblocks;

use std::sync::Arc;

use super::*;
use crate::storage::{MemStorage, Rng};

/// A small image in memory.
pub(super) fn image(size: u64, log: u64) -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(size));
    let options = FormatOptions {
        size,
        log_size: Some(log),
        doublewrite_pages: Some(8),
        uuid: *b"0123456789abcdef",
        ..FormatOptions::default()
    };
    Tree::format(&*storage, &options).unwrap();
    storage
}

/// Options for a pool of so many pages and no threads.
pub(super) fn quiet(pages: usize) -> Options {
    Options { cache_size: pages * 16600, background: false, ..Options::default() }
}

/// Keys of several kinds, so that prefixes, splits and merges of all shapes occur.
pub(super) struct Keys {
    kind: u64,
    next: u64,
    space: u64,
}

impl Keys {
    pub fn new(kind: u64, space: u64) -> Self {
        Keys { kind: kind % 7, next: 0, space }
    }

    pub fn next(&mut self, rng: &mut Rng) -> Vec<u8> {
        let n = rng.below(self.space);
        self.next += 1;
        match self.kind {
            // Short and random.
            0 => n.to_be_bytes()[5..].to_vec(),
            // Ascending.
            1 => self.next.to_be_bytes().to_vec(),
            // Descending.
            2 => (u64::MAX - self.next).to_be_bytes().to_vec(),
            // Long, with long shared prefixes.
            3 => {
                let mut key = vec![b'a' + (n % 3) as u8; 100 + (n % 5) as usize * 150];
                key.extend_from_slice(&n.to_be_bytes());
                key
            }
            // A hot spot.
            4 if rng.chance(9, 10) => ((1u64 << 40) | (n % 64)).to_be_bytes().to_vec(),
            // Of every length, the empty key among them.
            5 => n.to_be_bytes().repeat(40)[..(n % 300) as usize].to_vec(),
            // Ascending in several places at once.
            6 => [(self.next % 5).to_be_bytes(), self.next.to_be_bytes()].concat(),
            _ => n.to_be_bytes().to_vec(),
        }
    }
}

/// A value whose length depends on a random choice of sizes.
pub(super) fn value(rng: &mut Rng, key: &[u8]) -> Vec<u8> {
    let len = match rng.below(20) {
        0 => 0,
        1 => 1500,
        2 => 4096 - key.len(),
        n => n as usize * 15,
    };
    let byte = rng.below(256) as u8;
    vec![byte; len.min(4096 - key.len())]
}
