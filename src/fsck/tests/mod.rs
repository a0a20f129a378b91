//! Tests of the checker. Each is named after what a user would lose if it failed.

mod clean;
mod faults;
mod flips;
mod pages;
mod records;
mod snapshot;
mod support;

use super::*;
