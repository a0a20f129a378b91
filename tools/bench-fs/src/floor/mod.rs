//! The floor: a volume in memory behind btfs's own adapter. What it costs is what the kernel, the transport and the adapter cost;
//! what btfs costs beyond it is its own doing.
//!
//! - **F1** Nothing outlives the process, and nothing waits: no log, no pages, no disk.
//! - **F2** The map of inodes is sharded and each inode has a lock of its own, so that the floor is not its own bottleneck.
//! - **F3** A file that grows beyond `CONTENT_MAX` loses its contents: writes to it are discarded and reads return zeros. So
//!   streams cost the floor no memory; everything smaller is kept.

mod process;
mod volume;

pub use process::{CLOSED, MOUNT, run};
