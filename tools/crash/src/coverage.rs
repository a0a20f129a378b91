//! How many states were looked at, by where the cut was and by what recovery found.

use std::collections::BTreeMap;
use std::fmt;

use btfs::storage::OpKind;
use btfs::storage::sim::Operation;

/// Counts of states by site. A state counts at several sites.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    counts: BTreeMap<&'static str, u64>,
}

/// Titles and the sites under them, all of which an exploration must have reached.
pub type Required = &'static [(&'static str, &'static [&'static str])];

/// What an exploration of the engine must have reached. (A split is one if it is torn, and one if it is there without its post:
/// a half-split tree.)
pub const ENGINE: Required = &[
    (
        "operation in flight at the cut",
        &[
            "log write",
            "data write",
            "doublewrite half A",
            "doublewrite half B",
            "home write after half A",
            "home write after half B",
            "checkpoint sync",
            "superblock",
            "punch",
            "bulk load",
            "zeros that take space",
        ],
    ),
    (
        "last record in the log, or the one torn behind it",
        &[
            "batch",
            "post",
            "merge",
            "root shrink",
            "load",
            "batch, torn",
            "split, torn",
            "merge, torn",
            "root growth, torn",
        ],
    ),
    (
        "found by recovery",
        &[
            "half-split tree",
            "torn page repaired",
            "log record torn",
            "log wrapped",
            "group birth",
            "tree larger than the pool",
        ],
    ),
    (
        "recovery and work after it",
        &[
            "cut during recovery",
            "cut during recovery: sync",
            "cut during recovery: page repair",
            "cut during recovery: doublewrite",
            "cut during recovery: home write",
            "cut during recovery: superblock",
            "death of the process",
            "second cut",
            "third cut",
            "page reused after recovery",
            "block reused after recovery",
        ],
    ),
];

/// What an exploration of the filesystem must have reached.
pub const FILESYSTEM: Required = &[
    (
        "operation under way at the cut",
        &[
            "create",
            "mkdir",
            "symlink",
            "link",
            "unlink",
            "rmdir",
            "exchange",
            "rename",
            "rename with a whiteout",
            "write",
            "append",
            "truncate",
            "punch a hole",
            "allocate",
            "zero a range",
            "copy",
            "replace",
            "reuse of blocks",
            "set attribute",
            "remove attribute",
            "chmod",
            "set times",
            "write to an unnamed file",
            "close files",
            "sync",
            "timer commit",
            "checkpoint",
            "trim",
            "close and open",
            "process dies",
        ],
    ),
    (
        "write or sync in flight at the cut",
        &[
            "log write",
            "data write",
            "doublewrite half A",
            "doublewrite half B",
            "home write after half A",
            "home write after half B",
            "checkpoint sync",
            "superblock",
        ],
    ),
    (
        "found by recovery",
        &["torn page repaired", "log record torn", "closed in order", "between two batches of a request"],
    ),
    (
        "recovery and work after it",
        &[
            "cut during recovery",
            "death of the process",
            "second cut",
            "third cut",
            "closed after recovery",
            "block reused after recovery",
            "requests there was no room for",
        ],
    ),
];

impl Coverage {
    /// Counts a state at a site.
    pub fn count(&mut self, site: &'static str) {
        self.count_many(site, 1);
    }

    /// Counts several states, or whatever the site's name says.
    pub fn count_many(&mut self, site: &'static str, count: u64) {
        *self.counts.entry(site).or_default() += count;
    }

    /// Counts a state by the operation that was in flight.
    pub fn count_operation(&mut self, operation: &Operation, in_recovery: bool) {
        let site = match (in_recovery, operation.site) {
            (false, "log") => "log write",
            (false, "data") => "data write",
            (false, "doublewrite A") => "doublewrite half A",
            (false, "doublewrite B") => "doublewrite half B",
            (false, "home A") => "home write after half A",
            (false, "home B") => "home write after half B",
            (false, "checkpoint") => "checkpoint sync",
            (false, "superblock") => "superblock",
            (false, "punch") => "punch",
            (false, "bulk load") => "bulk load",
            (false, "space") if operation.kind == OpKind::Write => "zeros that take space",
            (false, _) => "elsewhere",
            (true, "recovery") if operation.kind == OpKind::Sync => "cut during recovery: sync",
            (true, "recovery") => "cut during recovery: page repair",
            (true, "doublewrite A" | "doublewrite B") => "cut during recovery: doublewrite",
            (true, "home A" | "home B") => "cut during recovery: home write",
            (true, "superblock") => "cut during recovery: superblock",
            (true, _) => "cut during recovery: elsewhere",
        };
        self.count(site);
        if in_recovery {
            self.count("cut during recovery");
        }
    }

    /// How many states were counted at a site.
    pub fn at(&self, site: &str) -> u64 {
        self.counts.get(site).copied().unwrap_or(0)
    }

    /// Adds what another exploration has counted.
    pub fn add(&mut self, other: &Coverage) {
        for (site, count) in &other.counts {
            *self.counts.entry(site).or_default() += count;
        }
    }

    /// The required sites that were never reached.
    pub fn missing(&self, required: Required) -> Vec<&'static str> {
        let sites = required.iter().flat_map(|(_, sites)| sites.iter().copied());
        sites.filter(|site| self.at(site) == 0).collect()
    }

    /// The counts as text, those that are required first.
    pub fn table(&self, required: Required) -> impl fmt::Display {
        Table(self, required)
    }
}

struct Table<'c>(&'c Coverage, Required);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Table(coverage, table) = self;
        for (title, sites) in *table {
            writeln!(f, "{title}")?;
            for site in *sites {
                writeln!(f, "  {site:<34} {:>10}", coverage.at(site))?;
            }
        }
        let required: Vec<&str> = table.iter().flat_map(|(_, sites)| sites.iter().copied()).collect();
        writeln!(f, "also counted")?;
        for (site, count) in coverage.counts.iter().filter(|(site, _)| !required.contains(site)) {
            writeln!(f, "  {site:<34} {count:>10}")?;
        }
        Ok(())
    }
}
