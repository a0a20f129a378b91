//! Tests of the checker. Each is named after what a user would lose if it failed.

mod clean;
mod cut_off;
mod faults;
mod flip_repairs;
mod flips;
mod forged_log;
mod groups;
mod logged;
mod lost;
mod pages;
mod records;
mod remade;
mod repair;
mod rot;
mod salvage;
mod size;
mod snapshot;
mod spent;
mod support;
mod toll;
mod unreadable;
mod words;

use super::*;
