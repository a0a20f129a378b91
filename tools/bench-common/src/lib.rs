//! What the benchmarks share: random numbers, and a description of the machine.

pub mod machine;
pub mod random;
