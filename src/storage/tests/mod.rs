//! Tests of the storage layer, each named after what a user would lose if it failed.

mod buffer;
mod fault;
mod file;
mod fuse;
mod image;
mod lock;
mod overlay;
mod recording;
mod sim;

use std::path::{Path, PathBuf};

use super::Storage;

/// Runs a test in a folder on a real disk (that of the test program, or `BTFS_TEST_DIR`) and in one in memory,
/// where there is one: they differ in what direct I/O, holes and locks do.
fn in_every_folder(test: impl Fn(&Path)) {
    let disk = std::env::var_os("BTFS_TEST_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let program = std::env::current_exe().unwrap();
        program.parent().unwrap().to_owned()
    });
    for parent in [disk.as_path(), Path::new("/dev/shm")] {
        if parent.is_dir() {
            let folder = tempfile::tempdir_in(parent).unwrap();
            test(folder.path());
        }
    }
}

/// Memory whose address is a multiple of 4096 plus `shift`.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize, shift: usize) -> Self {
        let memory = vec![0; len + 4096 + shift];
        let start = memory.as_ptr().align_offset(4096) + shift;
        Aligned { memory, start, len }
    }

    fn filled(len: usize, shift: usize, byte: u8) -> Self {
        let mut aligned = Self::new(len, shift);
        aligned.bytes_mut().fill(byte);
        aligned
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Reads a range.
fn read(storage: &impl Storage, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    storage.read_at(offset, &mut bytes).unwrap();
    bytes
}
