//! FUSE: a volume as a mount of the kernel's.
//!
//! - **M1** The adapter holds no filesystem logic: a request becomes one call of a [`Volume`], and its result a reply.
//! - **M2** The kernel checks permissions (`default_permissions`) and keeps locks; entries and attributes are cached for ever, as
//!   nobody else changes them.
//! - **M3** Workers do not wait for a sync of the disk: the thread that commits the log answers fsync. At most one of several workers
//!   is that thread, while nobody else asks for a sync.
//! - **M4** The image stays locked until everything is on disk, after the kernel has already let go of the mount.

mod adapter;
pub mod control;
mod convert;
mod counters;
mod damage;
mod flusher;
pub mod mounts;
pub mod options;
mod report;
mod seek;
mod session;
mod volume;

pub use adapter::OnError;
pub use convert::now;
pub use mounts::{MountError, MountFlags};
pub use options::{MountOptions, OptionError, parse_size};
pub use session::{Mount, SessionError, block_signals, ending_signals};
pub use volume::{Access, Callback, EachEntry, EachName, Volume};
