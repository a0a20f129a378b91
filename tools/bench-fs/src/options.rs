//! The command line.

use std::path::PathBuf;

use clap::{ArgAction, Parser};
use serde::Serialize;

use crate::rows::{Group, ROWS, Row};
use crate::systems::SystemId;

/// Compares mounted btfs images with other filesystems on this machine. Needs root.
///
/// Each round makes new images in one folder of the host, mounts them all, and lets them take turns row by row, in an order
/// that rotates. The table shows medians of all rounds. Everything is unmounted and deleted at the end.
#[derive(Parser, Debug)]
#[command(name = "fs-bench", version, after_help = after_help())]
pub struct Options {
    /// Rounds; the table shows medians
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u32,

    /// Only these rows, by name or by the words that their names begin with, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    rows: Vec<String>,

    /// Only these systems, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "SYSTEM,…")]
    systems: Vec<String>,

    /// Also the rows called grow, with a million files in one directory
    #[arg(long)]
    large: bool,

    /// Multiplies all numbers of files, calls and bytes; small values show that everything works
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,

    /// Where images and mount points are made; should lie on the disk that is to be measured
    #[arg(long, value_name = "DIR", default_value = "target/fs-bench-data")]
    pub dir: PathBuf,

    /// Where the peer that has to be compiled is kept
    #[arg(long, value_name = "DIR", default_value = "target/fs-bench-cache")]
    pub cache: PathBuf,

    /// Size of the images (sparse files) in GiB
    #[arg(long, value_name = "GIB", default_value_t = 32)]
    image_size: u64,

    /// The btfs command [default: beside this program]
    #[arg(long, value_name = "PATH")]
    pub btfs: Option<PathBuf>,

    /// Options of the btfs mount, as for `btfs mount -o`; the floor keeps the defaults
    #[arg(long, value_name = "OPTIONS", default_value = "")]
    pub mount_options: String,

    /// A row that takes longer on a system is ended by killing its daemon, and counts as failed
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub row_limit: u64,

    /// Print one JSON document with the figures of each round instead of the table
    #[arg(long, action = ArgAction::SetTrue)]
    pub json: bool,
}

/// What the options amount to.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub rounds: u32,
    pub scale: f64,
    pub image_bytes: u64,
    pub systems: Vec<SystemId>,
    #[serde(skip)]
    pub rows: Vec<&'static Row>,
    pub tree_files: u64,
    pub dir_files: u64,
    /// Of each process.
    pub parallel_files: u64,
    pub stream_bytes: u64,
    pub random_reads: u64,
    pub random_writes: u64,
    pub round_trips: u64,
    pub fsyncs: u64,
    pub sqlite_inserts: u64,
    pub growth_small: u64,
    pub growth_large: u64,
}

impl Options {
    /// Fills in the numbers, and refuses what makes no sense.
    pub fn plan(&self) -> Result<Plan, String> {
        if self.rounds == 0 {
            return Err("--rounds must be at least 1".to_owned());
        }
        if self.scale.is_nan() || self.scale <= 0.0 || self.scale > 100.0 {
            return Err("--scale must lie above 0 and be at most 100".to_owned());
        }
        let scaled = |n: u64, min: u64| ((n as f64 * self.scale) as u64).max(min);
        let mebibytes = scaled(1024, 1);
        Ok(Plan {
            rounds: self.rounds,
            scale: self.scale,
            image_bytes: self.image_size << 30,
            systems: self.chosen_systems()?,
            rows: self.chosen_rows()?,
            tree_files: scaled(2500, 20),
            dir_files: scaled(100_000, 100),
            parallel_files: scaled(10_000, 20),
            stream_bytes: mebibytes << 20,
            random_reads: scaled(10_000, 100),
            random_writes: scaled(20_000, 100),
            round_trips: scaled(20_000, 100),
            fsyncs: scaled(1000, 20),
            sqlite_inserts: scaled(1000, 20),
            growth_small: scaled(10_000, 20),
            growth_large: scaled(1_000_000, 2000),
        })
    }

    fn chosen_systems(&self) -> Result<Vec<SystemId>, String> {
        let names: Vec<_> = SystemId::ALL.iter().map(|id| id.name()).collect();
        if let Some(unknown) = self.systems.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(format!("no system {unknown:?}; there are {}", names.join(", ")));
        }
        let is_chosen =
            |id: &SystemId| self.systems.is_empty() || self.systems.iter().any(|name| name == id.name());
        Ok(SystemId::ALL.into_iter().filter(is_chosen).collect())
    }

    fn chosen_rows(&self) -> Result<Vec<&'static Row>, String> {
        for filter in &self.rows {
            if !ROWS.iter().any(|row| row.is_chosen_by(filter)) {
                let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
                return Err(format!("no row {filter:?}; there are {}", names.join(", ")));
            }
        }
        let is_chosen = |row: &&Row| match self.rows.as_slice() {
            [] => self.large || row.group != Group::Growth,
            filters => {
                filters.iter().any(|filter| row.is_chosen_by(filter))
                    || (self.large && row.group == Group::Growth)
            }
        };
        Ok(ROWS.iter().filter(is_chosen).collect())
    }
}

fn after_help() -> String {
    let mut help = String::from("Systems:\n");
    for id in SystemId::ALL {
        help += &format!("  {:20} {}\n", id.name(), id.title());
    }
    help += "\nRows:\n";
    for row in &ROWS {
        help += &format!("  {:20} {}\n", row.name, row.title);
    }
    help + "
Rows of the same first word work on the same images, one after another: choosing one runs those before it, too. What is
left behind by a row is made durable before the next begins, outside of the times. Cold means: mounted anew, with nothing
in the page cache, neither of the files nor of the images. Rows are loops of system calls in this program, but for
those that name a tool.

Beside the times the table shows, for systems served by a daemon, its processor time, and for btfs and the floor the number of
requests that the kernel sent. A ratio above 1 says that btfs takes longer.

fuse2fs comes with e2fsprogs (Debian: fuse2fs). passthrough_ll is compiled from libfuse's example, as in Debian's libfuse3-dev;
where that is not installed, it is downloaded with apt-get and unpacked into --cache. What cannot be had is shown as missing."
}
