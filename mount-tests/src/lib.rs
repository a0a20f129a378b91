//! What the tests on real mounts stand on: mounting and unmounting, a runner that survives a hanging filesystem,
//! manifests of directory trees, and the system calls that the standard library does not offer.

pub mod manifest;
pub mod mount;
pub mod random;
pub mod runner;
pub mod shell;
pub mod sys;
pub mod writes;
