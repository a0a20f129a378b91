//! The rows of the table: what there is to measure, and in which order.

use anyhow::Result;

use crate::systems::SystemId;
use crate::work::{Bench, Measurement, directory, durable, growth, parallel, stream, tree};

/// Rows of a group work on the same images one after another; each group starts with new ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    Tree,
    Directory,
    Parallel,
    Stream,
    Durable,
    Growth,
}

impl Group {
    pub const ALL: [Group; 6] =
        [Group::Tree, Group::Directory, Group::Parallel, Group::Stream, Group::Durable, Group::Growth];

    pub fn name(self) -> &'static str {
        match self {
            Group::Tree => "tree",
            Group::Directory => "dir",
            Group::Parallel => "par",
            Group::Stream => "stream",
            Group::Durable => "durable",
            Group::Growth => "grow",
        }
    }
}

/// What the table shows of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Microseconds for one of these.
    Microseconds(&'static str),
    /// The median of microseconds for one of these, each of which is timed.
    Median(&'static str),
    /// Milliseconds for one of these.
    Milliseconds(&'static str),
    /// MiB in a second.
    Rate,
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub group: Group,
    pub unit: Unit,
    /// What it measures, for readers of the table.
    pub title: &'static str,
    pub run: fn(&mut Bench<'_>) -> Result<Measurement>,
}

type Run = fn(&mut Bench<'_>) -> Result<Measurement>;

const fn row(name: &'static str, group: Group, unit: Unit, title: &'static str, run: Run) -> Row {
    Row { name, group, unit, title, run }
}

const FILE: Unit = Unit::Microseconds("file");
const CALL: Unit = Unit::Median("call");

/// All rows, in the order in which they run.
#[rustfmt::skip]
pub const ROWS: [Row; 38] = [
    row("tree.untar", Group::Tree, FILE, "tar x of a source tree (2,500 files, median 4 KiB)", tree::untar),
    row("tree.stat.warm", Group::Tree, FILE, "list and stat all of it again", tree::stat_warm),
    row("tree.read.warm", Group::Tree, FILE, "list and read all of it again", tree::read_warm),
    row("tree.stat.cold", Group::Tree, FILE, "list and stat all of it, cold", tree::stat_cold),
    row("tree.read.cold", Group::Tree, FILE, "list and read all of it, cold", tree::read_cold),
    row("tree.cp", Group::Tree, FILE, "cp -a of it, warm", tree::copy),
    row("tree.rm", Group::Tree, FILE, "rm -rf of the copy", tree::remove),
    row("tree.git.add", Group::Tree, FILE, "git add and git commit of it", tree::git_add),
    row("tree.git.status", Group::Tree, FILE, "git status, warm", tree::git_status),
    row("dir.create", Group::Directory, FILE, "create 100,000 files in one directory", directory::create),
    row("dir.stat.warm", Group::Directory, FILE, "stat them in random order, names known to the kernel", directory::stat_warm),
    row("dir.write", Group::Directory, FILE, "open each, write 100 bytes, close", directory::write),
    row("dir.list.cold", Group::Directory, FILE, "list their names, cold", directory::list_cold),
    row("dir.stat.cold", Group::Directory, FILE, "stat them in random order, cold", directory::stat_cold),
    row("dir.tar.cold", Group::Directory, FILE, "tar c of them into a pipe, cold", directory::tar_cold),
    row("dir.unlink", Group::Directory, FILE, "unlink them, names known to the kernel", directory::unlink),
    row("par.own", Group::Parallel, FILE, "4 processes create files, each in a directory of its own", parallel::own),
    row("par.shared", Group::Parallel, FILE, "4 processes create files in one directory", parallel::shared),
    row("stream.write", Group::Stream, Unit::Rate, "write 1 GiB and fsync", stream::write),
    row("stream.read", Group::Stream, Unit::Rate, "read 1 GiB, cold", stream::read_cold),
    row("stream.rand.read", Group::Stream, Unit::Microseconds("read"), "4 KiB reads at random places, cold", stream::read_random_cold),
    row("stream.rand.write", Group::Stream, Unit::Microseconds("write"), "4 KiB overwrites at random places, cold, and one fsync", stream::write_random),
    row("stream.read.again", Group::Stream, Unit::Rate, "read 1 GiB after the random overwrites, cold", stream::read_cold),
    row("durable.trip", Group::Durable, CALL, "statfs: through FUSE one round trip, nothing else", durable::round_trip),
    row("durable.fsync", Group::Durable, CALL, "overwrite 4 KiB and fsync", durable::fsync),
    row("durable.sqlite.wal", Group::Durable, CALL, "SQLite insert of 100 bytes, durable, WAL", durable::sqlite_wal),
    row("durable.sqlite.rb", Group::Durable, CALL, "SQLite insert of 100 bytes, durable, rollback journal", durable::sqlite_rollback),
    row("grow.mount.empty", Group::Growth, Unit::Milliseconds("cycle"), "unmount and mount a clean image that is empty", growth::mount),
    row("grow.create.small", Group::Growth, FILE, "create 10,000 files beside 10,000", growth::create_small),
    row("grow.stat.small", Group::Growth, FILE, "stat 10,000 of 10,000 files, cold", growth::stat_small),
    row("grow.lookup.small", Group::Growth, FILE, "stat the same 10,000 of 10,000 files, which only the kernel has forgotten", growth::lookup_small),
    row("grow.unlink.small", Group::Growth, FILE, "unlink 10,000 of 20,000 files in random order", growth::unlink_small),
    row("grow.create.large", Group::Growth, FILE, "create 10,000 files beside 1,000,000", growth::create_large),
    row("grow.stat.large", Group::Growth, FILE, "stat 10,000 of 1,000,000 files, cold", growth::stat_large),
    row("grow.lookup.large", Group::Growth, FILE, "stat the same 10,000 of 1,000,000 files, which only the kernel has forgotten", growth::lookup_large),
    row("grow.unlink.large", Group::Growth, FILE, "unlink 10,000 of 1,010,000 files in random order", growth::unlink_large),
    row("grow.mount.full", Group::Growth, Unit::Milliseconds("cycle"), "unmount and mount a clean image of 1,000,000 files", growth::mount),
    row("grow.list.large", Group::Growth, FILE, "list the names of 1,000,000 files, cold", growth::list_large),
];

/// Rows whose ratio says how costs grow.
pub const GROWTHS: [(&str, &str); 5] = [
    ("grow.create.small", "grow.create.large"),
    ("grow.stat.small", "grow.stat.large"),
    ("grow.lookup.small", "grow.lookup.large"),
    ("grow.unlink.small", "grow.unlink.large"),
    ("grow.mount.empty", "grow.mount.full"),
];

impl Row {
    /// Whether a filter of the command line means this row: its name, or the words that it begins with.
    pub fn is_chosen_by(&self, filter: &str) -> bool {
        self.name.strip_prefix(filter).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Why the row is not measured on a system, if it is not.
    pub fn skipped_on(&self, id: SystemId) -> Option<&'static str> {
        let is_mount = self.name.starts_with("grow.mount");
        match id {
            SystemId::Fuse2fs if self.group == Group::Growth => {
                Some("searches its directories linearly: a million files would take hours")
            }
            SystemId::Passthrough if self.group == Group::Growth => {
                Some("keeps its inodes in a linear list: a million files would take hours")
            }
            SystemId::Host if is_mount => Some("is not mounted"),
            SystemId::Floor if is_mount => Some("has no image"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_group_stand_together_under_its_name() {
        let groups: Vec<Group> = ROWS.iter().map(|row| row.group).collect();
        let mut in_order = groups.clone();
        in_order.dedup();
        assert_eq!(in_order, Group::ALL);
        assert!(ROWS.iter().all(|row| row.is_chosen_by(row.group.name())));
    }
}
