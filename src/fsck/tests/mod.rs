//! Tests of the checker. Each is named after what a user would lose if it failed.

mod clean;
mod pages;
mod records;
mod support;

use super::*;
