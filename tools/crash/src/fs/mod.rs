//! Crash exploration of the whole filesystem, in the manner of ACE (*Finding Crash-Consistency Bugs with Bounded Black-Box Crash
//! Testing*, OSDI 2018).
//!
//! A *seed* stands for a sequence of one or two operations on a small set of names, with nothing, a sync, a commit or a
//! checkpoint between them; or, one seed of four, for 10 to 60 operations at random, with a tiny pool, in an image that may be nearly full. Of
//! a sequence every write and every sync is cut, of a long run some. What is left is checked by fsck, opened, read as a whole and
//! compared with the model; then perhaps worked on, and cut again.
//!
//! A state is right when
//!
//! 1. fsck finds nothing, with the log that is there replayed in memory;
//! 2. opening succeeds, and everything can be read: names, kinds, modes, links, times, contents, attributes, targets;
//! 3. all this is exactly as after some prefix of the requests, and that prefix contains every request that was synced. A request
//!    that is a row of batches may also be cut between two of them (`request.rs` says which);
//! 4. inode numbers in use are not given again, and all blocks that are not in use can be allocated.
//!
//! Contents carry stamps: whose they are, of which write, and for which place. So a failure says whose block shows up where.
//!
//! | file | |
//! |---|---|
//! | `operation` | operations, the sequences, random choice |
//! | `request` | what an operation does to the filesystem, and to the model |
//! | `model`, `content` | the model |
//! | `driver` | runs a workload on both |
//! | `verify` | opening a state and comparing it with the model |
//! | `plan` | what a seed stands for |
//! | `explore` | which states are looked at |

pub mod content;
pub mod driver;
pub mod explore;
pub mod model;
pub mod operation;
pub mod plan;
pub mod request;
pub mod verify;
