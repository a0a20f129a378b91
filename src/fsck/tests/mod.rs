//! Tests of the checker. Each is named after what a user would lose if it failed.

mod clean;
mod flips;
mod pages;
mod records;
mod repair;
mod support;

use super::*;
