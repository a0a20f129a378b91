//! The engines that are compared, behind one trait.
//!
//! Every engine is set up as its users would for speed, with the same promises: a batch is atomic and seen at
//! once; [`Durability::Durable`] means that a power cut after the return loses nothing. Each engine says in
//! [`Engine::settings`] how it is configured.

mod btfs;
mod fjall;
mod lmdb;
mod redb;
mod sqlite;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::data::{Change, Key, Value};

/// Counters of an engine, by name. All of them only grow.
pub type Counters = BTreeMap<String, u64>;
/// Figures about the state of an engine, by name.
pub type Figures = BTreeMap<String, f64>;

/// Names of the counters that the report uses.
pub mod counter {
    /// Pages latched on the way to a record, and leaves that a scan copied.
    pub const PAGES_VISITED: &str = "pages_visited";
    /// Gets and scans, those before the timing began included, as in the pages that they visited.
    pub const READ_CALLS: &str = "read_calls";
    /// Pages read from the file.
    pub const PAGES_READ: &str = "pages_read";
    /// Pages written to their places in the file.
    pub const PAGES_WRITTEN: &str = "pages_written";
    /// Bytes written to the log.
    pub const LOG_BYTES: &str = "log_bytes";
    /// Durable writes to the log; each serves one or more commits.
    pub const LOG_SYNCS: &str = "log_syncs";
    pub const SPLITS: &str = "splits";
    pub const MERGES: &str = "merges";
    /// Latches that were not free at the first attempt.
    pub const LATCH_WAITS: &str = "latch_waits";
    pub const CHECKPOINTS: &str = "checkpoints";
}

/// Names of the figures that the report uses.
pub mod figure {
    pub const HEIGHT: &str = "height";
    pub const LEAVES: &str = "leaves";
    /// Mean share of a leaf's bytes that is in use.
    pub const FILL: &str = "leaf_fill";
    /// Share of the leaves whose right neighbour lies right behind them in the file.
    pub const ADJACENCY: &str = "adjacency";
}

/// What a write promises when it returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Atomic, and seen by later reads.
    Visible,
    /// Survives a power cut, too.
    Durable,
}

/// How a checkpoint can run beside durable writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckpointStyle {
    /// The engine has none.
    None,
    /// The durable writes themselves are what is checkpointed, since there is only one writer at a time.
    OfTheWriter,
    /// Another thread may write batches that are not durable, and give the checkpoint its work.
    OfOtherWriters,
}

/// Bytes that the files of an engine take on the disk (`st_blocks`).
#[derive(Clone, Copy, Default, Debug)]
pub struct FileSizes {
    pub data: u64,
    pub log: u64,
    pub doublewrite: u64,
}

/// What every engine can do. Calls may come from any number of threads.
pub trait Engine: Send + Sync {
    /// The configuration, in one line.
    fn settings(&self) -> String;

    /// Applies a batch atomically.
    fn write(&self, batch: &[Change], durability: Durability) -> Result<()>;

    /// Loads records that come sorted into the empty engine, in its best way.
    fn bulk_load(&self, records: &mut dyn Iterator<Item = (Key, Value)>) -> Result<()>;

    /// Runs `work` with a reader of the calling thread.
    fn with_reader(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()>;

    /// Makes all earlier writes durable.
    fn make_durable(&self) -> Result<()>;

    /// Writes home and makes durable what the engine has put off, so that the bytes written so far are all
    /// that the earlier writes cost.
    fn settle(&self) -> Result<()>;

    fn checkpoint_style(&self) -> CheckpointStyle {
        CheckpointStyle::None
    }

    /// One checkpoint, while other threads write.
    fn checkpoint(&self) -> Result<()> {
        bail!("this engine has no checkpoints")
    }

    /// Bytes of log after which the engine makes a checkpoint, if it puts off writing pages until then.
    fn log_between_checkpoints(&self) -> Option<u64> {
        None
    }

    fn file_sizes(&self) -> Result<FileSizes>;

    /// Counters of the engine's work. Only btfs has any.
    fn counters(&self) -> Counters {
        Counters::new()
    }

    /// The tree's shape. Only btfs tells it.
    fn shape(&self) -> Result<Figures> {
        Ok(Figures::new())
    }
}

/// Reads of one thread. Where an engine reads in transactions, one lasts from one refresh to the next.
pub trait Reader {
    /// Sees the latest writes from now on, and lets go of old ones.
    fn refresh(&mut self) -> Result<()>;

    /// Shows the value of `key` to `see`; false if there is none.
    fn get(&mut self, key: &Key, see: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Shows up to `limit` records from the first key ≥ `from` on to `see`, and returns how many there were.
    fn scan(&mut self, from: &Key, limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize>;
}

/// The latch protocol of btfs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Latch {
    /// The B-link protocol: one page latched at a time on the way down.
    Blink,
    /// Latch crabbing: the parent stays latched until the child is.
    Crabbing,
    /// One lock around the whole tree.
    OneLock,
}

/// An engine, and for btfs the latch protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EngineId {
    Btfs(Latch),
    Redb,
    Lmdb,
    Sqlite,
    Fjall,
}

impl EngineId {
    pub const NAMES: [&str; 5] = ["btfs", "redb", "lmdb", "sqlite", "fjall"];
    pub const BTFS: EngineId = EngineId::Btfs(Latch::Blink);

    pub fn name(self) -> &'static str {
        match self {
            EngineId::Btfs(Latch::Blink) => "btfs",
            EngineId::Btfs(Latch::Crabbing) => "btfs:crabbing",
            EngineId::Btfs(Latch::OneLock) => "btfs:one-lock",
            EngineId::Redb => "redb",
            EngineId::Lmdb => "lmdb",
            EngineId::Sqlite => "sqlite",
            EngineId::Fjall => "fjall",
        }
    }

    pub fn is_btfs(self) -> bool {
        matches!(self, EngineId::Btfs(_))
    }
}

impl FromStr for EngineId {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "btfs" => EngineId::BTFS,
            "btfs:crabbing" => EngineId::Btfs(Latch::Crabbing),
            "btfs:one-lock" => EngineId::Btfs(Latch::OneLock),
            "redb" => EngineId::Redb,
            "lmdb" => EngineId::Lmdb,
            "sqlite" => EngineId::Sqlite,
            "fjall" => EngineId::Fjall,
            _ => return Err(format!("no engine {name:?}; there are {}", EngineId::NAMES.join(", "))),
        })
    }
}

impl Serialize for EngineId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for EngineId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a database is made.
pub struct Setup<'a> {
    /// An empty folder.
    pub dir: &'a Path,
    /// In bytes.
    pub cache_size: u64,
    /// Bytes of the keys and values that are to be expected.
    pub payload: u64,
    /// The memory that the process may use, page cache included, in bytes, if that is limited.
    pub memory_limit: Option<u64>,
    /// The size of btfs's log in bytes, if not its default.
    pub log_size: Option<u64>,
}

/// Makes a new, empty database.
pub fn create(id: EngineId, setup: &Setup) -> Result<Box<dyn Engine>> {
    Ok(match id {
        EngineId::Btfs(latch) => Box::new(btfs::Btfs::create(setup, latch)?),
        EngineId::Redb => Box::new(redb::Redb::create(setup)?),
        EngineId::Lmdb => Box::new(lmdb::Lmdb::create(setup)?),
        EngineId::Sqlite => Box::new(sqlite::Sqlite::create(setup)?),
        EngineId::Fjall => Box::new(fjall::Fjall::create(setup)?),
    })
}

/// The bytes on disk of a file, or of all files below a folder.
fn allocated(path: &Path) -> Result<u64> {
    let metadata = std::fs::symlink_metadata(path).with_context(|| format!("{}", path.display()))?;
    if !metadata.is_dir() {
        return Ok(metadata.blocks() * 512);
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        match allocated(&entry?.path()) {
            Ok(bytes) => sum += bytes,
            Err(error) if is_not_found(&error) => (),
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

/// Files may vanish while the folder is read: compactions and checkpoints delete them.
fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
