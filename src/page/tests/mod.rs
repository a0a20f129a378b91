//! Tests of the page layer. A failing test prints the seed of the run that failed; `BTFS_SEED=n` runs only that
//! seed, and `BTFS_ROUNDS=n` runs n times as many seeds.

mod bitmap;
mod hostile;
mod node_limits;
mod node_model;
mod node_split;
mod ops;
mod ops_hostile;
mod pack;
mod superblock;
mod support;
