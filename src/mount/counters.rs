//! Counts of requests by kind, with latencies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

/// The kinds of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each is named like the request of the kernel that it counts")]
pub enum Request {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Symlink,
    Rename,
    Link,
    Open,
    Read,
    Write,
    Statfs,
    Fsync,
    Setxattr,
    Getxattr,
    Listxattr,
    Removexattr,
    Readdir,
    Readdirplus,
    Fallocate,
    Lseek,
    CopyFileRange,
    Ioctl,
    Other,
}

const NAMES: [&str; 28] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "symlink",
    "rename",
    "link",
    "open",
    "read",
    "write",
    "statfs",
    "fsync",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "readdir",
    "readdirplus",
    "fallocate",
    "lseek",
    "copy_file_range",
    "ioctl",
    "other",
];

const _: () = assert!(NAMES.len() == Request::Other as usize + 1);

/// Bucket `i` counts latencies from 2^i up to 2^(i+1) ns; 2^40 ns are 18 minutes.
const BUCKETS: usize = 40;

/// The counters of one kind, on cache lines of their own.
#[repr(align(128))]
struct Counter {
    errors: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// All counters.
pub struct Counters([Counter; NAMES.len()]);

impl Default for Counters {
    fn default() -> Self {
        let new = |_| Counter {
            errors: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        };
        Counters(std::array::from_fn(new))
    }
}

/// A request that is under way. It is counted when this is dropped, as one that failed if nothing else was said.
pub struct Running<'a> {
    counters: &'a Counters,
    request: Request,
    started: Instant,
    failed: bool,
}

impl Running<'_> {
    /// Its kind.
    pub fn request(&self) -> Request {
        self.request
    }

    /// Whether it has failed.
    pub fn set_failed(&mut self, failed: bool) {
        self.failed = failed;
    }

    /// It has not.
    pub fn ok(mut self) {
        self.failed = false;
    }

    /// Another thread will count it; when it began.
    pub fn hand_over(self) -> Instant {
        let started = self.started;
        std::mem::forget(self);
        started
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.counters.add(self.request, self.started, self.failed);
    }
}

/// Rounded to a tenth.
fn tenths(n: f64) -> f64 {
    (n * 10.0).round() / 10.0
}

impl Counters {
    /// A request begins.
    pub fn begin(&self, request: Request) -> Running<'_> {
        Running { counters: self, request, started: Instant::now(), failed: true }
    }

    /// Counts a request that began at `started` and has just been answered.
    pub fn add(&self, request: Request, started: Instant, failed: bool) {
        let counter = &self.0[request as usize];
        let nanos = started.elapsed().as_nanos() as u64;
        let bucket = (nanos.max(1).ilog2() as usize).min(BUCKETS - 1);
        counter.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        counter.nanos.fetch_add(nanos, Ordering::Relaxed);
        if failed {
            counter.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A JSON object with an object for each kind that has occurred: count, errors, and microseconds: mean, and the upper ends
    /// of the buckets in which the median, the 99th percentile and the maximum lie.
    pub fn to_json(&self) -> Value {
        let told = |(name, counter): (&&str, &Counter)| {
            let buckets: Vec<u64> = counter.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
            let count: u64 = buckets.iter().sum();
            if count == 0 {
                return None;
            }
            let quantile = |part: f64| {
                let rank = (count as f64 * part).ceil() as u64;
                let mut seen = 0;
                let bucket = buckets.iter().position(|n| {
                    seen += n;
                    seen >= rank
                });
                tenths((1u64 << (bucket.unwrap_or(BUCKETS - 1) + 1)) as f64 / 1e3)
            };
            let of_one = json!({
                "count": count,
                "errors": counter.errors.load(Ordering::Relaxed),
                "mean_us": tenths(counter.nanos.load(Ordering::Relaxed) as f64 / count as f64 / 1e3),
                "p50_us": quantile(0.5),
                "p99_us": quantile(0.99),
                "max_us": quantile(1.0),
            });
            Some(((*name).to_owned(), of_one))
        };
        Value::Object(NAMES.iter().zip(&self.0).filter_map(told).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::control::REPORT_SIZE;

    /// The rest of a report is the volume's own counters, a scrub, and a message.
    #[test]
    fn all_that_is_counted_leaves_a_third_of_a_report_to_the_rest() {
        let counters = Counters::default();
        for counter in &counters.0 {
            counter.errors.store(u64::from(u32::MAX), Ordering::Relaxed);
            counter.nanos.store(u64::MAX, Ordering::Relaxed);
            counter.buckets[BUCKETS - 1].store(u64::from(u32::MAX), Ordering::Relaxed);
        }
        let told = counters.to_json().to_string();
        assert!(told.len() <= REPORT_SIZE.min(8_000) / 3 * 2, "{} bytes: {told}", told.len());
    }
}
