//! The floor of durable writes: bare writes that are durable on return, into a file that was written before.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::protocol::Measurement;
use btfs_bench_common::random::{Random, mix};

pub const SETTINGS: &str = "pwritev2 with RWF_DSYNC, buffered, one write behind the other in a file of 64 MiB written and synced before";

const FILE_LEN: u64 = 64 << 20;

pub struct Floor {
    file: File,
    offset: u64,
}

impl Floor {
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join("floor");
        let mut file = File::create_new(&path)?;
        let mut random = Random::new(mix(1));
        let chunk: Vec<u8> = std::iter::repeat_with(|| random.draw() as u8).take(1 << 20).collect();
        for _ in 0..FILE_LEN / chunk.len() as u64 {
            file.write_all(&chunk)?;
        }
        file.sync_all()?;
        Ok(Floor { file, offset: 0 })
    }

    /// Writes `len` bytes `count` times. The samples are kept, so that slices can be put together.
    pub fn measure(&mut self, len: u64, count: u64) -> Result<Measurement> {
        ensure!((1..=FILE_LEN).contains(&len), "cannot write {len} bytes at a time");
        let bytes = vec![0x5a; len as usize];
        let mut samples_ns = Vec::with_capacity(count as usize);
        let device_before = super::written::device_bytes();
        for _ in 0..count {
            if self.offset + len > FILE_LEN {
                self.offset = 0;
            }
            let began = Instant::now();
            write_durable(&self.file, &bytes, self.offset)?;
            samples_ns.push(began.elapsed().as_nanos() as u64);
            self.offset += len;
        }
        let elapsed = Duration::from_nanos(samples_ns.iter().sum());
        Ok(Measurement {
            operations: count,
            records: count,
            seconds: elapsed.as_secs_f64(),
            samples_ns,
            payload: len * count,
            device_bytes: Some(super::written::device_bytes() - device_before),
            ..Measurement::default()
        })
    }
}

fn write_durable(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let offset = libc::off_t::try_from(offset)?;
    // SAFETY: the vector points to `bytes`, which the call only reads.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const vector, 1, offset, libc::RWF_DSYNC) };
    if written < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    ensure!(written.unsigned_abs() == bytes.len(), "a short write of {written} bytes");
    Ok(())
}
