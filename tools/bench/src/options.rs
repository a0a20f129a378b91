//! The command line.

use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};

use crate::engines::{EngineId, Latch};
use crate::rows::Row;

const MIB: u64 = 1 << 20;
/// Fewer records would not be enough for the rows that insert between them.
const RECORDS_MIN: u64 = 20_000;

/// Compares the btfs storage engine with redb, LMDB, SQLite and fjall.
///
/// Every engine runs in a process of its own. The engines take turns row by row, in an order that rotates, and
/// each round starts with new databases. The table shows the medians of all rounds. The data are deleted at
/// the end.
#[derive(Parser, Debug)]
#[command(name = "engine-bench", version, after_help = after_help())]
pub struct Options {
    /// Records in the base set: 24-byte keys, 150-byte values [default: 1000000; 10000000 with --large]
    #[arg(long, value_name = "N")]
    records: Option<u64>,

    /// Rounds; the table shows medians [default: 3; 1 with --large or --quick]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,

    /// A short run to see that everything works: 100000 records, 1 round
    #[arg(long, conflicts_with = "large")]
    quick: bool,

    /// 10 million records, every engine under the same memory limit (see --memory-limit). Takes a quarter of an hour
    #[arg(long)]
    large: bool,

    /// The memory that each engine's process may use, page cache included, in MiB. Needs the right to make
    /// control groups (v1 or v2) [default: none; 1024 with --large]
    #[arg(long, value_name = "MIB")]
    memory_limit: Option<u64>,

    /// The cache of each engine that has one, in MiB; the default holds what any row leaves of a million records, changed but
    /// not written home [default: 1024; with --memory-limit three quarters of that for btfs, which reads past the page cache,
    /// and a quarter for the others]
    #[arg(long, value_name = "MIB")]
    cache: Option<u64>,

    /// The log of btfs, in MiB [default: that of an image of the default size]
    #[arg(long, value_name = "MIB")]
    log: Option<u64>,

    /// Only these engines, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "ENGINE,…")]
    engines: Vec<String>,

    /// Only these rows, by name or by the words that their names begin with, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    rows: Vec<String>,

    /// The latch protocol of btfs; "all" compares the three in the rows with several threads
    #[arg(long, value_enum, default_value_t = LatchChoice::Blink)]
    latch: LatchChoice,

    /// Where the databases are made; should lie on the disk that is to be measured
    #[arg(long, value_name = "DIR", default_value = "target/engine-bench-data")]
    pub dir: PathBuf,

    /// Rows of reads and overwrites end after this many seconds even if they have not done everything
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub row_seconds: f64,

    /// Print one JSON document with all raw figures instead of the table
    #[arg(long, action = ArgAction::SetTrue)]
    pub json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum LatchChoice {
    /// The B-link protocol
    Blink,
    /// Latch crabbing instead
    Crabbing,
    /// One lock around the whole tree instead
    OneLock,
    /// B-link as usual, and the other two beside it in the rows with several threads
    All,
}

/// What the options amount to.
#[derive(Clone, Debug)]
pub struct Plan {
    pub records: u64,
    pub rounds: u32,
    /// Unless it follows from the memory limit.
    cache_size: Option<u64>,
    pub log_size: Option<u64>,
    pub memory_limit: Option<u64>,
    pub engines: Vec<EngineId>,
    pub rows: Vec<Row>,
}

impl Plan {
    /// The cache that an engine gets, in bytes.
    pub fn cache_of(&self, engine: EngineId) -> u64 {
        self.cache_size.unwrap_or(match self.memory_limit {
            None => 1024 * MIB,
            Some(limit) if engine.is_btfs() => limit / 4 * 3,
            Some(limit) => limit / 4,
        })
    }
}

impl Options {
    /// Fills in the defaults, and refuses what makes no sense.
    pub fn plan(&self) -> Result<Plan, String> {
        let records = self.records.unwrap_or(match (self.large, self.quick) {
            (true, _) => 10_000_000,
            (_, true) => 100_000,
            _ => 1_000_000,
        });
        if !(RECORDS_MIN..=u64::from(u32::MAX)).contains(&records) {
            return Err(format!("--records must lie between {RECORDS_MIN} and {}", u32::MAX));
        }
        let rounds = self.rounds.unwrap_or(if self.large || self.quick { 1 } else { 3 });
        if rounds == 0 {
            return Err("--rounds must be at least 1".to_owned());
        }
        if self.row_seconds.is_nan() || self.row_seconds <= 0.0 {
            return Err("--row-seconds must be positive".to_owned());
        }
        let memory_limit = self.memory_limit.or(self.large.then_some(1024)).map(|mib| mib * MIB);
        let cache_size = self.cache.map(|mib| mib * MIB);
        if cache_size == Some(0) {
            return Err("--cache must be at least 1".to_owned());
        }
        if memory_limit.zip(cache_size).is_some_and(|(limit, cache)| limit <= cache) {
            return Err("--cache must be smaller than --memory-limit".to_owned());
        }
        let (engines, rows) = (self.chosen_engines()?, self.chosen_rows()?);
        let log_size = self.log.map(|mib| mib * MIB);
        Ok(Plan { records, rounds, cache_size, log_size, memory_limit, engines, rows })
    }

    fn chosen_engines(&self) -> Result<Vec<EngineId>, String> {
        let names: Vec<&str> = match self.engines.as_slice() {
            [] => EngineId::NAMES.to_vec(),
            chosen => chosen.iter().map(String::as_str).collect(),
        };
        let mut engines = Vec::new();
        for name in names {
            match name.parse()? {
                EngineId::BTFS => engines.extend(self.latch.engines()),
                engine => engines.push(engine),
            }
        }
        engines.dedup();
        Ok(engines)
    }

    fn chosen_rows(&self) -> Result<Vec<Row>, String> {
        for filter in &self.rows {
            if !Row::ALL.iter().any(|row| row.is_chosen_by(filter)) {
                let names: Vec<_> = Row::ALL.iter().map(|row| row.name()).collect();
                return Err(format!("no row {filter:?}; there are {}", names.join(", ")));
            }
        }
        let is_chosen =
            |row: &Row| self.rows.is_empty() || self.rows.iter().any(|filter| row.is_chosen_by(filter));
        Ok(Row::ALL.into_iter().filter(is_chosen).collect())
    }
}

impl LatchChoice {
    fn engines(self) -> Vec<EngineId> {
        let latches: &[Latch] = match self {
            LatchChoice::Blink => &[Latch::Blink],
            LatchChoice::Crabbing => &[Latch::Crabbing],
            LatchChoice::OneLock => &[Latch::OneLock],
            LatchChoice::All => &[Latch::Blink, Latch::Crabbing, Latch::OneLock],
        };
        latches.iter().copied().map(EngineId::Btfs).collect()
    }
}

fn after_help() -> String {
    let mut help = format!("Engines: {}\n\nRows:\n", EngineId::NAMES.join(", "));
    for row in Row::ALL {
        help += &format!("  {row:20} {}\n", row.title());
    }
    help + "\nRows after insert.random work on the tree that it leaves, so it runs for them in any case."
}
