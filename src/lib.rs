//! btfs: a filesystem in one file, on a crash-safe, concurrent B-link tree.
//!
//! The crate is layered, and each layer imports only those below it:
//!
//! ```text
//! cli ──► mount ──► fs ──► tree ──► pool ──► wal ──► page ──► storage
//!   └───► fsck ─────┴───────┴───────┴────────┴───────┴─────────┘
//! ```
//!
//! [`fs::Fs`] is the filesystem, which works without FUSE. [`tree::Tree`] is the storage engine below it: an ordered map of
//! byte strings in one image, with atomic batches, a redo log, and recovery. `docs/design.md` says how it works and why,
//! `docs/format.md` is the image format byte by byte, and `docs/concurrency.md` the latch protocol.
#![deny(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

#[cfg(not(shuttle))]
pub mod cli;
pub mod defects;
pub mod error;
mod escape;
// The filesystem's locks are not modelled under shuttle; it stands on the engine's, which are.
#[cfg(not(shuttle))]
pub mod fs;
#[cfg(not(shuttle))]
pub mod fsck;
#[cfg(not(shuttle))]
pub mod mount;
pub mod page;
pub mod pool;
pub mod storage;
mod sync;
pub mod tree;
pub mod wal;

pub use error::{Error, Result};
pub use page::{BlockNo, Lsn, PageId, Run};
