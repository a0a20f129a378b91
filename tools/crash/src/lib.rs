//! Crash exploration of the storage engine, and in [`fs`] of the whole filesystem.
//!
//! A *seed* stands for a geometry, a pool size, an image (fresh, full of garbage, or made over an older one) and a
//! random workload. The workload runs once on the crash simulator and is recorded. Then, for many operations of the
//! recording and many policies of what a power cut leaves, the image after the cut is recovered and compared with
//! the model. Some of the recovered trees are worked on, or only their recovery is recorded, and cut again. At some
//! cuts it is not the power that fails but the process: all that it wrote is seen, and still not durable.
//!
//! Each image that is recovered counts as one *state*. It is right when
//!
//! 1. opening succeeds, and the structure checker finds nothing;
//! 2. the records are exactly those after some prefix of the batches, and that prefix contains every batch that was
//!    acknowledged before the cut;
//! 3. the blocks in use are exactly those that these records name, and hold what was written there;
//! 4. all other blocks can be allocated;
//! 5. after a power cut *during* a recovery, the prefix is the one that the first recovery had found.
//!
//! Everything follows from the seed and the *path*: the cuts on the way to a state (`path.rs`). So a failure is
//! replayed from what is printed with it.
//!
//! | file | |
//! |---|---|
//! | `plan` | what a seed stands for |
//! | `keys` | keys and values that make pages split and merge soon |
//! | `contents` | the model: records, data blocks, and the hash of a state |
//! | `workload` | batches, commits, checkpoints, reopening |
//! | `concurrent` | a first run by several threads |
//! | `verify` | opening a state and comparing it with the model |
//! | `path`, `cuts`, `walk`, `explore` | which states are looked at |
//! | `log_tail`, `coverage` | where the cuts were |
//! | `runner` | threads, limits, progress |
//! | `fs` | the same for the whole filesystem |

pub mod concurrent;
pub mod contents;
pub mod coverage;
pub mod cuts;
pub mod explore;
pub mod fs;
pub mod keys;
pub mod log_tail;
pub mod path;
pub mod plan;
pub mod runner;
pub mod verify;
pub mod walk;
pub mod workload;
