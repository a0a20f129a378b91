//! What a repair would give up, told by a check that repairs nothing.

use std::fmt;

use serde_json::{Value, json};

use super::Looked;
use super::fix::Fix;
use super::report::{ProblemKind, counted};
use crate::fs::format::AnyKey;

/// What a repair of everything would take away, as far as a look at the image can tell. All of it is listed among the problems;
/// consequences are counted as far as they can be known without repairing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Toll {
    /// No record of the tree is left.
    pub everything: bool,
    /// Ranges of keys whose records are lost.
    pub key_ranges: u64,
    /// What the log holds behind a damaged record, though it was durable.
    pub log: bool,
    /// Records that would be deleted, names excepted. Names that lead to an inode among them go as well, and are not counted.
    pub records: u64,
    /// Names that would be deleted.
    pub names: u64,
    /// Ranges of files whose contents are lost, or may be.
    pub contents: u64,
    /// Extents and attributes whose blocks are not theirs alone, or lie outside: they would be copied if their checksums are right, and
    /// are lost otherwise.
    pub contested: u64,
    /// Inodes and directories that would get a name in `lost+found`.
    pub reconnected: u64,
    /// Leaves that are reached from nowhere, and that would be found again.
    pub leaves_found: u64,
    /// There is more than is counted here.
    pub more: bool,
}

impl Toll {
    /// `None` if nothing is to be repaired.
    pub(super) fn of(looked: &Looked) -> Option<Toll> {
        let (findings, structure) = (&looked.findings, &looked.structure);
        if findings.fixes.is_empty() && findings.rotten.is_empty() && !findings.more {
            return None;
        }
        let mut toll = Toll {
            everything: structure.leaves.len() == 0 && !structure.gaps.is_empty(),
            key_ranges: findings.counts.get(&ProblemKind::KeysLost).copied().unwrap_or(0),
            log: looked.image.log_cut,
            names: findings.names_later,
            leaves_found: looked.found,
            more: findings.more || findings.more_rotten,
            ..Toll::default()
        };
        for fix in findings.fixes.iter().chain(&findings.rotten) {
            match fix {
                Fix::DeleteName(_) => toll.names += 1,
                // The names of a root directory that is lost are those of the new one.
                Fix::Adopt(0) if findings.fixes.contains(&Fix::Root) => {}
                Fix::Reconnect(..) | Fix::Adopt(_) => toll.reconnected += 1,
                Fix::Lose(..) | Fix::LoseRange(..) => toll.contents += 1,
                Fix::Unshare(_) | Fix::Contested => toll.contested += 1,
                // A mark of an orphan is nobody's loss, and a name that leaves a circle comes back in `lost+found`.
                Fix::Delete(key) => match AnyKey::parse(key) {
                    Some(AnyKey::Orphan(_) | AnyKey::Entry(..)) => {}
                    _ => toll.records += 1,
                },
                _ => {}
            }
        }
        Some(toll)
    }

    /// The same as a JSON object.
    pub(super) fn to_json(self) -> Value {
        json!({
            "everything": self.everything,
            "key_ranges": self.key_ranges,
            "log": self.log,
            "records": self.records,
            "names": self.names,
            "contents": self.contents,
            "contested": self.contested,
            "reconnected": self.reconnected,
            "leaves_found": self.leaves_found,
            "more": self.more,
        })
    }
}

impl fmt::Display for Toll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lost = Vec::new();
        let mut add = |n: u64, what: String| {
            if n > 0 {
                lost.push(what);
            }
        };
        let count = |n, one, many| counted(n, one, many);
        if self.everything {
            add(1, "everything that the tree held: all files and names".into());
        } else {
            add(self.key_ranges, count(self.key_ranges, "range of records", "ranges of records"));
        }
        add(self.log.into(), "what the log holds behind its damage".into());
        add(
            self.records,
            count(self.records, "record with what leads to it", "records with what leads to them"),
        );
        add(self.names, count(self.names, "name", "names"));
        add(self.contents, count(self.contents, "range of contents", "ranges of contents"));
        let lost = if lost.is_empty() { "nothing that is known of".to_string() } else { lost.join(", ") };
        write!(f, "a repair with -y would give up {lost}{}", if self.more { ", and more" } else { "" })?;
        if self.contested > 0 {
            let ranges = count(self.contested, "extent or attribute", "extents or attributes");
            write!(
                f,
                "; it would copy {ranges} to other blocks if the checksums are right, else give them up"
            )?;
        }
        if self.leaves_found > 0 {
            let leaves = count(self.leaves_found, "page", "pages");
            write!(f, "; it would find {leaves} of the tree that nothing leads to any more")?;
        }
        if self.reconnected > 0 {
            write!(f, "; {} would be named in lost+found", count(self.reconnected, "inode", "inodes"))?;
        }
        Ok(())
    }
}
