//! Pages and every other on-disk structure: layout, checksums, and the changes that log records carry.
//!
//! This layer computes on bytes and does no I/O. It promises that whatever passed a `validate`, `decode` or
//! `verify` function can be used without a panic, an endless loop or an access out of bounds, however hostile the image;
//! what does not pass is refused with the reason.

pub mod bitmap;
pub mod format;
pub mod ids;
pub mod node;
pub mod op;
pub mod pack;
pub mod superblock;

pub use format::{BLOCK_SIZE, BLOCKS_PER_PAGE, PAGE_SIZE, PageBytes};
pub use ids::{BlockNo, Lsn, PageId, Run};

#[cfg(test)]
mod tests;
