//! The model: what a tree contains, and a number that stands for it.
//!
//! A state's hash is the sum of its records' hashes, so it is maintained in constant time from batch to batch, and
//! a recovered tree is compared with all prefixes at once by one pass over its records.

use std::collections::BTreeMap;

use btfs::page::BLOCK_SIZE;
use btfs::{BlockNo, Run};

use crate::keys::DATA_PREFIX;
use crate::path::mix;

/// A record.
#[derive(Clone, Debug)]
pub struct Entry {
    hash: u64,
    /// Bytes of key and value.
    pub size: usize,
    /// The blocks that it names, if it is a data record.
    pub data: Option<DataRecord>,
}

/// A record that says where blocks of data lie and what they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataRecord {
    /// The blocks.
    pub run: Run,
    /// Hashes of the first of them; the others were never written.
    pub sums: Vec<u64>,
}

/// The records of a tree.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    map: BTreeMap<Vec<u8>, Entry>,
    hash: u64,
    size: usize,
}

impl Contents {
    /// Puts a record.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        let hash = mix(hash_bytes(key, 1) ^ hash_bytes(value, 2).rotate_left(32));
        let data = if key.first() == Some(&DATA_PREFIX) { DataRecord::decode(value) } else { None };
        let entry = Entry { hash, size: key.len() + value.len(), data };
        self.hash = self.hash.wrapping_add(hash);
        self.size += entry.size;
        if let Some(old) = self.map.insert(key.to_vec(), entry) {
            self.forget(&old);
        }
    }

    /// Deletes a record, if it is there.
    pub fn delete(&mut self, key: &[u8]) {
        if let Some(old) = self.map.remove(key) {
            self.forget(&old);
        }
    }

    fn forget(&mut self, old: &Entry) {
        self.hash = self.hash.wrapping_sub(old.hash);
        self.size -= old.size;
    }

    /// The number that stands for these records.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Bytes of keys and values.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The records from a key on.
    pub fn from(&self, key: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &Entry)> {
        self.map.range(key.to_vec()..)
    }

    /// The data record under a key.
    pub fn data(&self, key: &[u8]) -> Option<&DataRecord> {
        self.map.get(key)?.data.as_ref()
    }

    /// All data records.
    pub fn data_records(&self) -> impl Iterator<Item = &DataRecord> {
        self.from(&[DATA_PREFIX]).map_while(|(_, e)| e.data.as_ref())
    }

    /// The blocks that data records name, ascending, neighbours joined; `None` if two records share blocks.
    pub fn runs(&self) -> Option<Vec<Run>> {
        let mut runs: Vec<Run> = self.data_records().map(|d| d.run).collect();
        runs.sort_unstable();
        let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
        for run in runs {
            match joined.last_mut() {
                Some(last) if last.end() > run.start => return None,
                Some(last) if last.end() == run.start => last.len += run.len,
                _ => joined.push(run),
            }
        }
        Some(joined)
    }
}

impl DataRecord {
    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(12 + 8 * self.sums.len());
        value.extend_from_slice(&self.run.start.0.to_be_bytes());
        value.extend_from_slice(&self.run.len.to_be_bytes());
        for sum in &self.sums {
            value.extend_from_slice(&sum.to_be_bytes());
        }
        value
    }

    fn decode(value: &[u8]) -> Option<DataRecord> {
        let (start, rest) = value.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (sums, odd) = rest.as_chunks();
        let run = Run { start: BlockNo(u64::from_be_bytes(*start)), len: u32::from_be_bytes(*len) };
        let sums = sums.iter().map(|s| u64::from_be_bytes(*s)).collect();
        odd.is_empty().then_some(DataRecord { run, sums })
    }

    /// The hashes of whole blocks.
    pub fn sums(data: &[u8]) -> Vec<u64> {
        data.chunks_exact(BLOCK_SIZE).map(|block| hash_bytes(block, 3)).collect()
    }
}

/// A fast hash of bytes; `kind` keeps different uses apart.
pub(crate) fn hash_bytes(bytes: &[u8], kind: u64) -> u64 {
    let multiply = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        (product as u64) ^ ((product >> 64) as u64)
    };
    // Four lanes, so that the multiplications do not wait for each other.
    let mut lanes = [mix(kind), mix(kind ^ 1 << 32), mix(kind ^ 2 << 32), mix(kind ^ 3 << 32)];
    let (rows, rest) = bytes.as_chunks::<32>();
    for row in rows {
        for (lane, word) in lanes.iter_mut().zip(row.as_chunks().0) {
            *lane = multiply(*lane ^ u64::from_le_bytes(*word), 0x9e37_79b9_7f4a_7c15) ^ kind;
        }
    }
    let mut hash = lanes.into_iter().fold(bytes.len() as u64, |hash, lane| mix(hash ^ lane));
    let (words, rest) = rest.as_chunks();
    for word in words {
        hash = mix(hash ^ u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash ^ u64::from_le_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_the_records_alone() {
        let (mut a, mut b) = (Contents::default(), Contents::default());
        a.put(b"x", b"1");
        a.put(b"y", b"2");
        b.put(b"y", b"old");
        b.put(b"z", b"3");
        b.put(b"x", b"1");
        b.put(b"y", b"2");
        assert_ne!(a.hash(), b.hash());
        b.delete(b"z");
        assert_eq!((a.hash(), a.size(), a.len()), (b.hash(), b.size(), b.len()));
        b.put(b"x", b"2");
        b.put(b"y", b"1");
        assert_ne!(a.hash(), b.hash(), "values are exchanged");
    }

    #[test]
    fn a_data_record_is_read_back() {
        let record = DataRecord { run: Run { start: BlockNo(77), len: 3 }, sums: vec![1, 2] };
        assert_eq!(DataRecord::decode(&record.encode()), Some(record));
    }
}
