//! The contents of files in the model: blocks that copies share, and stamps that tell where bytes come from.

use std::collections::BTreeMap;
use std::sync::Arc;

use btfs::fs::Ino;
use btfs::page::BLOCK_SIZE;

use crate::contents::hash_bytes;
use crate::path::mix;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// The bytes of a file. Blocks of zeros are absent.
#[derive(Clone, Debug, Default)]
pub struct Content {
    size: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
}

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    hash: u64,
}

impl Content {
    /// A file with these bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Content::default();
        content.write(0, bytes);
        content
    }

    /// How many bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes; the file grows if need be.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % BLOCK) as usize;
            let n = (BLOCK_SIZE - within).min(data.len() - done);
            self.change(at / BLOCK, |block| block[within..within + n].copy_from_slice(&data[done..done + n]));
            done += n;
        }
        self.size = self.size.max(offset + data.len() as u64);
    }

    /// Makes what lies between two bytes, and inside the file, zeros.
    pub fn zero(&mut self, from: u64, to: u64) {
        let to = to.min(self.size);
        if from < to {
            self.write(from, &vec![0; (to - from) as usize]);
        }
    }

    /// Sets the size.
    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            self.blocks.split_off(&size.div_ceil(BLOCK));
            let within = (size % BLOCK) as usize;
            if within > 0 {
                self.change(size / BLOCK, |block| block[within..].fill(0));
            }
        }
        self.size = size;
    }

    /// A part of the bytes, which must lie inside the file.
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut out = vec![0; len as usize];
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let within = (at % BLOCK) as usize;
            let n = (BLOCK_SIZE - within).min(out.len() - done);
            if let Some(block) = self.blocks.get(&(at / BLOCK)) {
                out[done..done + n].copy_from_slice(&block.bytes[within..within + n]);
            }
            done += n;
        }
        out
    }

    fn change(&mut self, index: u64, change: impl FnOnce(&mut [u8])) {
        let mut bytes = self.blocks.get(&index).map_or_else(|| vec![0; BLOCK_SIZE], |b| b.bytes.clone());
        change(&mut bytes);
        if bytes.iter().all(|b| *b == 0) {
            self.blocks.remove(&index);
        } else {
            let hash = mix(hash_bytes(&bytes, 4) ^ mix(index));
            self.blocks.insert(index, Arc::new(Block { bytes, hash }));
        }
    }

    /// A number that stands for the bytes.
    pub fn hash(&self) -> u64 {
        self.blocks.values().fold(mix(self.size), |hash, block| hash.wrapping_add(block.hash))
    }

    /// How these bytes differ from those that are expected: the first place, and where the bytes there come from.
    pub fn difference(&self, expected: &Content) -> Option<String> {
        if self.size != expected.size {
            return Some(format!("{} bytes instead of {}", self.size, expected.size));
        }
        let block = (0..self.size.div_ceil(BLOCK)).find(|i| {
            let hash = |content: &Content| content.blocks.get(i).map(|b| b.hash);
            hash(self) != hash(expected)
        })?;
        let len = BLOCK.min(self.size - block * BLOCK);
        let (found, wanted) = (self.read(block * BLOCK, len), expected.read(block * BLOCK, len));
        let at = found.iter().zip(&wanted).position(|(a, b)| a != b)?;
        let place = block * BLOCK + at as u64;
        Some(format!("at byte {place}: {} instead of {}", origin(&found, at), origin(&wanted, at)))
    }
}

/// The bytes of a write: every 8 of them say which inode's they are, of which write, and for which place.
///
/// `write` is less than 2^20, and not 0.
pub fn stamped(ino: Ino, write: u64, offset: u64, len: u64) -> Vec<u8> {
    let first = offset / 8;
    let last = (offset + len).div_ceil(8);
    let mut bytes = Vec::with_capacity(((last - first) * 8) as usize);
    for word in first..last {
        let stamp = (write & 0xf_ffff) << 44 | short(ino) << 24 | (word & 0xff_ffff);
        bytes.extend_from_slice(&stamp.to_be_bytes());
    }
    bytes.drain(..(offset % 8) as usize);
    bytes.truncate(len as usize);
    bytes
}

/// 20 bits of an inode's number.
fn short(ino: Ino) -> u64 {
    (ino.0 >> 24 & 0xfff) << 8 | (ino.0 & 0xff)
}

/// Where the bytes at `at` in a block come from.
fn origin(block: &[u8], at: usize) -> String {
    let Some(word) = block.get(at / 8 * 8..).and_then(|b| b.first_chunk()) else {
        return format!("{:?}", &block[at..]);
    };
    match u64::from_be_bytes(*word) {
        0 => "zeros".into(),
        stamp => {
            let (write, ino, place) = (stamp >> 44, stamp >> 24 & 0xf_ffff, (stamp & 0xff_ffff) * 8);
            format!("byte {place} of write {write} to inode {}.{}", ino >> 8, ino & 0xff)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_file_that_grows_again_reads_as_zeros() {
        let mut content = Content::from_bytes(&stamped(Ino(7), 1, 0, 10_000));
        content.resize(5000);
        content.resize(10_000);
        let mut other = Content::from_bytes(&stamped(Ino(7), 1, 0, 5000));
        other.resize(10_000);
        assert_eq!(content.hash(), other.hash());
        assert_eq!(content.difference(&other), None);
        assert!(content.read(5000, 5000).iter().all(|b| *b == 0));
    }

    #[test]
    fn foreign_bytes_are_recognised() {
        let mine = Content::from_bytes(&stamped(Ino(1 << 24 | 7), 12, 0, 9000));
        let mut foreign = mine.clone();
        foreign.write(4096, &stamped(Ino(2 << 24 | 9), 3, 4096, 100));
        let difference = foreign.difference(&mine).unwrap();
        assert!(difference.contains("byte 4096 of write 3 to inode 2.9"), "{difference}");
        let parts = [stamped(Ino(5), 2, 3, 10), stamped(Ino(5), 2, 13, 20)].concat();
        assert_eq!(parts, stamped(Ino(5), 2, 3, 30));
    }
}
