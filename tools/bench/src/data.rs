//! The records that all engines store: 24-byte keys and 150-byte values, made from their number alone.
//!
//! Record `i` of the base set is the i-th in key order, so a row can ask for neighbours without remembering any
//! key. Between two base records there is room for further ones: each row that inserts new records has a
//! [`Lane`] of its own, so that the rows do not depend on one another. Values are incompressible.

use std::sync::OnceLock;

use btfs_bench_common::random::{Permutation, Random, Zipf, mix};

pub const KEY_LEN: usize = 24;
pub const VALUE_LEN: usize = 150;
/// Bytes of key and value in one record.
pub const RECORD_LEN: u64 = (KEY_LEN + VALUE_LEN) as u64;

/// At most this many records of the base set are all inserted in random order.
pub const RANDOM_INSERTS_MAX: u64 = 1_000_000;
/// If there are more, this many are; the others are loaded sorted before. Each of them may cost several reads and writes of the disk.
pub const RANDOM_INSERTS_AMONG_MORE: u64 = 200_000;

const LANE_BITS: u32 = 4;
const PERMUTATION_SEED: u64 = 0x6274_6673_2d62_656e;

pub type Key = [u8; KEY_LEN];
pub type Value = [u8; VALUE_LEN];

/// One change of a batch.
#[derive(Clone, Copy)]
pub enum Change {
    Put(Key, Value),
    Delete(Key),
}

/// Which of the records that share a place in the key order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Lane {
    Base = 0,
    BatchOfTen = 1,
    BatchOfTenDurable = 2,
    Single = 3,
    SingleByEight = 4,
    SingleWhileCheckpoint = 5,
}

/// Where the gets of a row go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distribution {
    Uniform,
    /// Zipf with exponent 0.99, the ranks scattered over the keys.
    Skewed,
    /// Uniform in one percent of the records, adjacent in key order.
    HotSpot,
}

/// The base set of a run.
pub struct DataSet {
    records: u64,
    stride_bits: u32,
    order: Permutation,
    zipf: OnceLock<Zipf>,
}

impl DataSet {
    pub fn new(records: u64) -> Self {
        let index_bits = records.next_power_of_two().trailing_zeros();
        DataSet {
            records,
            stride_bits: 64 - index_bits,
            order: Permutation::new(records, PERMUTATION_SEED),
            zipf: OnceLock::new(),
        }
    }

    pub fn records(&self) -> u64 {
        self.records
    }

    /// How many records are loaded in key order before the others are inserted in random order.
    pub fn preloaded(&self) -> u64 {
        match self.records > RANDOM_INSERTS_MAX {
            true => self.records - RANDOM_INSERTS_AMONG_MORE,
            false => 0,
        }
    }

    /// Whether record `index` is one of those.
    pub fn is_preloaded(&self, index: u64) -> bool {
        self.order.backward(index) < self.preloaded()
    }

    /// The `n`-th record in a fixed random order of all.
    pub fn shuffled(&self, n: u64) -> u64 {
        self.order.forward(n % self.records)
    }

    pub fn key(&self, index: u64, lane: Lane) -> Key {
        let lane_shift = self.stride_bits - LANE_BITS;
        let base = (index << self.stride_bits) | (u64::from(lane as u8) << lane_shift);
        let position = base | (mix(base) >> (64 - lane_shift));
        let mut key = [0; KEY_LEN];
        key[..8].copy_from_slice(&position.to_be_bytes());
        key[8..16].copy_from_slice(&mix(position).to_be_bytes());
        key[16..].copy_from_slice(&mix(!position).to_be_bytes());
        key
    }

    /// A value for `key`; it differs for each `version`.
    pub fn value(&self, key: &Key, version: u64) -> Value {
        let mut value = [0; VALUE_LEN];
        value[..8].copy_from_slice(&key[..8]);
        let mut random = Random::new(version ^ word(&key[8..16]));
        for chunk in value[8..].chunks_mut(8) {
            chunk.copy_from_slice(&random.draw().to_le_bytes()[..chunk.len()]);
        }
        value
    }

    pub fn put(&self, index: u64, lane: Lane, version: u64) -> Change {
        let key = self.key(index, lane);
        Change::Put(key, self.value(&key, version))
    }

    /// `count` record numbers in this distribution.
    pub fn choose(&self, distribution: Distribution, count: usize, random: &mut Random) -> Vec<u32> {
        let spot_len = (self.records / 100).max(1);
        let spot_start = self.records / 3;
        let mut one = || match distribution {
            Distribution::Uniform => random.below(self.records),
            Distribution::Skewed => {
                let zipf = self.zipf.get_or_init(|| Zipf::new(self.records, 0.99));
                self.order.forward(zipf.rank(random))
            }
            Distribution::HotSpot => spot_start + random.below(spot_len),
        };
        (0..count).map(|_| u32::try_from(one()).unwrap_or(u32::MAX)).collect()
    }
}

/// Reads every byte of a record, as a caller would that uses them, and returns their sum.
pub fn consume(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let sum = words.by_ref().map(word).fold(0, u64::wrapping_add);
    words.remainder().iter().fold(sum, |sum, &byte| sum.wrapping_add(u64::from(byte)))
}

/// Whether `value` is one of `key`'s.
pub fn belongs(key: &[u8], value: &[u8]) -> bool {
    value.len() == VALUE_LEN && key.len() == KEY_LEN && value[..8] == key[..8]
}

fn word(bytes: &[u8]) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_order_and_lanes_lie_between_neighbours() {
        let data = DataSet::new(1000);
        for index in 0..999 {
            assert!(data.key(index, Lane::Base) < data.key(index, Lane::BatchOfTen));
            assert!(data.key(index, Lane::SingleWhileCheckpoint) < data.key(index + 1, Lane::Base));
        }
    }

    #[test]
    fn every_record_comes_once_in_the_shuffled_order() {
        let data = DataSet::new(1000);
        let mut seen: Vec<u64> = (0..1000).map(|n| data.shuffled(n)).collect();
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..1000));
    }

    #[test]
    fn the_last_records_of_the_order_are_those_that_are_not_preloaded() {
        assert_eq!(DataSet::new(RANDOM_INSERTS_MAX).preloaded(), 0);
        let data = DataSet::new(RANDOM_INSERTS_MAX + 1);
        let first = RANDOM_INSERTS_MAX + 1 - RANDOM_INSERTS_AMONG_MORE;
        assert_eq!(data.preloaded(), first);
        assert!((0..first).all(|n| data.is_preloaded(data.shuffled(n))));
        assert!((first..first + 1500).all(|n| !data.is_preloaded(data.shuffled(n))));
    }
}
