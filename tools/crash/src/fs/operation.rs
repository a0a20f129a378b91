//! Operations: what a workload may do to the filesystem, the small set that is enumerated, and random ones.

use btfs::fs::{Fallocate, RenameMode};
use btfs::storage::Rng;

use super::model::Model;

/// A path from the root.
pub type Path = &'static str;

/// An operation. Files and directories are named by paths; what a path does not lead to makes no operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// A new file.
    Create(Path),
    /// A new directory.
    Mkdir(Path),
    /// A new symbolic link with a target of so many bytes.
    Symlink(Path, u64),
    /// Another name.
    Link(Path, Path),
    /// A name goes.
    Unlink(Path),
    /// A directory goes.
    Rmdir(Path),
    /// A name moves.
    Rename(Path, Path, RenameMode),
    /// Bytes are written: where, and how many.
    Write(Path, u64, u64),
    /// Bytes are written behind the end.
    Append(Path, u64),
    /// The size is set.
    Truncate(Path, u64),
    /// A range is allocated, punched or zeroed.
    Fallocate(Path, u64, u64, Fallocate),
    /// Bytes of one file are copied to another: from where, to where, how many.
    Copy(Path, u64, Path, u64, u64),
    /// The contents of a file are replaced by a new file that is renamed over it, without a sync between.
    Replace(Path, u64),
    /// A file with a few blocks, which may ride in the log, is written and goes; each time there is a sync. Then a long write, which does
    /// not ride in the log, takes the blocks for another file, and there is a sync.
    Reuse(Path, Path, u64),
    /// An extended attribute is set: which one, and how many bytes.
    SetXattr(Path, u8, u64),
    /// An extended attribute goes.
    RemoveXattr(Path, u8),
    /// The mode is set.
    Chmod(Path, u16),
    /// The modification time is set.
    SetTime(Path),
    /// A file is opened: from now on it is kept although its last name goes.
    Open(Path),
    /// A file that is open and has no name any more is written to.
    WriteUnnamed,
    /// All open files are closed.
    CloseFiles,
    /// Everything so far is made durable, and counts as acknowledged.
    Sync,
    /// The timer commits: everything so far becomes durable, and nobody has been told.
    Commit,
    /// All pages are written home.
    Checkpoint,
    /// Free space is given back to the host.
    Trim,
    /// The image grows by so many bytes.
    Grow(u64),
    /// The filesystem is closed in order and opened again.
    Reopen,
    /// The process dies, and the filesystem is opened again.
    Kill,
}

use Operation::*;

impl Operation {
    /// Its kind: a site of the coverage.
    pub fn kind(&self) -> &'static str {
        match self {
            Create(..) => "create",
            Mkdir(..) => "mkdir",
            Symlink(..) => "symlink",
            Link(..) => "link",
            Unlink(..) => "unlink",
            Rmdir(..) => "rmdir",
            Rename(_, _, RenameMode::Exchange) => "exchange",
            Rename(_, _, RenameMode::Whiteout { .. }) => "rename with a whiteout",
            Rename(..) => "rename",
            Write(..) => "write",
            Append(..) => "append",
            Truncate(..) => "truncate",
            Fallocate(_, _, _, Fallocate::PunchHole) => "punch a hole",
            Fallocate(_, _, _, Fallocate::Allocate | Fallocate::KeepSize) => "allocate",
            Fallocate(..) => "zero a range",
            Copy(..) => "copy",
            Replace(..) => "replace",
            Reuse(..) => "reuse of blocks",
            SetXattr(..) => "set attribute",
            RemoveXattr(..) => "remove attribute",
            Chmod(..) => "chmod",
            SetTime(..) => "set times",
            Open(..) => "open",
            WriteUnnamed => "write to an unnamed file",
            CloseFiles => "close files",
            Sync => "sync",
            Commit => "timer commit",
            Checkpoint => "checkpoint",
            Trim => "trim",
            Grow(..) => "grow",
            Reopen => "close and open",
            Kill => "process dies",
        }
    }
}

/// What the base of all workloads contains (see `plan.rs`): `a` is small and has two names, `b` has blocks and an attribute, `s` has many
/// small extents, `f` is partly allocated and not written, `d` has files, `e` is empty.
pub const ALPHABET: &[Operation] = &[
    Create("n"),
    Create("d/n"),
    Mkdir("n"),
    Mkdir("e/n"),
    Symlink("n", 20),
    Symlink("e/n", 3900),
    Link("a", "n"),
    Link("b", "d/n"),
    Unlink("a"),
    Unlink("b"),
    Unlink("s"),
    Unlink("d/a"),
    Open("d/a"),
    Rmdir("e"),
    Rename("a", "n", RenameMode::Replace),
    Rename("a", "b", RenameMode::Replace),
    Rename("b", "d/a", RenameMode::Replace),
    Rename("d/b", "s", RenameMode::Replace),
    Rename("d", "e", RenameMode::NoReplace),
    Rename("d", "e/n", RenameMode::Replace),
    Rename("e", "d/n", RenameMode::NoReplace),
    Rename("d/g", "e", RenameMode::Replace),
    Rename("a", "d/a", RenameMode::Exchange),
    Rename("b", "d/a", RenameMode::Whiteout { replace: true }),
    Rename("d", "e/n", RenameMode::Whiteout { replace: true }),
    Rename("e", "b", RenameMode::Exchange),
    Write("n", 0, 300),
    Write("n", 0, 9000),
    Write("a", 0, 200),
    Write("a", 100, 900),
    Write("a", 0, 6000),
    Write("b", 0, 13_000),
    Write("b", 5000, 100),
    Write("d/a", 20_000, 4096),
    Write("d/n", 0, 40_000),
    Write("s", 0, 500_000),
    Write("f", 1000, 20_000),
    Write("f", 60_000, 20_000),
    Append("a", 500),
    Append("b", 3000),
    Append("b", 70_000),
    Truncate("a", 50),
    Truncate("b", 0),
    Truncate("b", 5000),
    Truncate("b", 50_000),
    Truncate("s", 5),
    Truncate("f", 30_000),
    Fallocate("a", 0, 40_000, Fallocate::Allocate),
    Fallocate("b", 8192, 65_536, Fallocate::KeepSize),
    Fallocate("b", 2000, 8000, Fallocate::PunchHole),
    Fallocate("s", 0, 600_000, Fallocate::PunchHole),
    Fallocate("b", 100, 20_000, Fallocate::ZeroRange),
    Copy("b", 0, "a", 0, 13_000),
    Copy("b", 100, "d/a", 0, 6000),
    Copy("s", 0, "d/a", 0, 600_000),
    Copy("b", 0, "b", 16_384, 8192),
    Replace("a", 700),
    Replace("b", 30_000),
    SetXattr("a", 0, 100),
    SetXattr("b", 1, 9000),
    RemoveXattr("b", 0),
    RemoveXattr("d/a", 1),
    Chmod("a", 0o600),
    SetTime("d"),
    Open("b"),
    Open("s"),
    WriteUnnamed,
    CloseFiles,
    Checkpoint,
    Grow(1 << 20),
];

/// What stands between the two operations of a sequence.
pub const BETWEEN: &[Option<Operation>] = &[None, Some(Sync), Some(Commit), Some(Checkpoint)];

/// How many sequences of one and two operations there are.
pub const fn sequences() -> u64 {
    let n = ALPHABET.len() as u64;
    n + n * n * BETWEEN.len() as u64
}

/// A sequence by its number, which is less than [`sequences`]. It ends with a sync.
pub fn sequence(number: u64) -> Vec<Operation> {
    let n = ALPHABET.len() as u64;
    let mut sequence = Vec::with_capacity(4);
    match number.checked_sub(n) {
        None => sequence.push(ALPHABET[number as usize]),
        Some(pair) => {
            let (between, pair) = ((pair / (n * n)) as usize, pair % (n * n));
            sequence.push(ALPHABET[(pair / n) as usize]);
            sequence.extend(BETWEEN[between]);
            sequence.push(ALPHABET[(pair % n) as usize]);
        }
    }
    sequence.push(Sync);
    sequence
}

const FILES: &[Path] = &["a", "b", "c", "s", "f", "n", "d/a", "d/b", "d/n", "e/a", "e/n", "d/g/a", "d/g/b"];
const DIRECTORIES: &[Path] = &["d", "e", "g", "d/g", "e/g", "d/n", "n"];
const LENGTHS: &[u64] = &[1, 100, 700, 2048, 2049, 4096, 5000, 8192, 12_288, 16_384, 20_000, 70_000];
const PLACES: &[u64] = &[0, 0, 0, 1, 2000, 4096, 5000, 8192, 16_384, 30_000, 65_536];

fn one_of<T: core::marker::Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.index(choices.len())]
}

/// Chooses operations at random, most of them such that can be done.
pub struct Chooser {
    /// How often, in hundreds, a name goes instead of being made.
    pub shrinking: u64,
    /// How often an operation is followed by a sync: once in so many.
    pub sync: u64,
    /// The longest write, in bytes.
    pub write_max: u64,
}

impl Chooser {
    /// A chooser with habits of its own.
    pub fn new(rng: &mut Rng, write_max: u64) -> Self {
        Chooser { shrinking: one_of(rng, &[10, 30, 50, 70]), sync: one_of(rng, &[2, 4, 8, 20]), write_max }
    }

    /// The next operation.
    pub fn choose(&self, rng: &mut Rng, model: &Model) -> Operation {
        if rng.chance(1, self.sync) {
            return one_of(rng, &[Sync, Sync, Sync, Sync, Commit, Commit, Checkpoint, Trim]);
        }
        let file = Self::path(rng, model, FILES, true);
        let new = Self::path(rng, model, FILES, false);
        match rng.below(100) {
            0..15 if rng.chance(self.shrinking, 100) => Unlink(file),
            0..8 => Create(new),
            8..10 => Mkdir(Self::path(rng, model, DIRECTORIES, false)),
            10..12 => Symlink(new, one_of(rng, &[1, 60, 1100, 3900])),
            12..15 => Link(file, new),
            15..17 => Rmdir(Self::path(rng, model, DIRECTORIES, true)),
            17..24 => self.rename(rng, model),
            24..44 => Write(file, one_of(rng, PLACES), self.length(rng)),
            44..52 => Append(file, self.length(rng)),
            52..60 => Truncate(file, one_of(rng, PLACES) + rng.below(3)),
            60..68 => {
                let modes = [
                    Fallocate::Allocate,
                    Fallocate::KeepSize,
                    Fallocate::PunchHole,
                    Fallocate::PunchHole,
                    Fallocate::ZeroRange,
                    Fallocate::ZeroKeepSize,
                ];
                let (place, length) = (one_of(rng, PLACES), one_of(rng, LENGTHS));
                Fallocate(file, place, length * (1 + rng.below(3)), one_of(rng, &modes))
            }
            68..75 => {
                let to = Self::path(rng, model, FILES, true);
                let (place, to_place) = (one_of(rng, PLACES), one_of(rng, PLACES));
                let to_place = if rng.chance(1, 2) { place } else { to_place };
                Copy(file, place, to, to_place, one_of(rng, &[5000, 30_000, 600_000]))
            }
            75..78 => Reuse(new, file, one_of(rng, &[20_000, 100_000, 200_000, 250_000])),
            78..82 => Replace(file, self.length(rng)),
            82..86 => SetXattr(file, rng.below(2) as u8, one_of(rng, &[10, 300, 3000, 5000, 20_000])),
            86..88 => RemoveXattr(file, rng.below(2) as u8),
            88..90 => Chmod(file, one_of(rng, &[0o600, 0o640, 0o755])),
            90..91 => SetTime(file),
            91..94 => Open(file),
            94..96 => WriteUnnamed,
            96..98 => CloseFiles,
            98 if rng.chance(1, 4) => Grow(one_of(rng, &[16_384, 1 << 20, 3 << 20])),
            98 => Reopen,
            _ => Kill,
        }
    }

    fn length(&self, rng: &mut Rng) -> u64 {
        match rng.below(12) {
            0 => self.write_max,
            1 => 1 + rng.below(self.write_max),
            _ => one_of(rng, LENGTHS).min(self.write_max),
        }
    }

    fn rename(&self, rng: &mut Rng, model: &Model) -> Operation {
        let whiteout = RenameMode::Whiteout { replace: true };
        let mode = one_of(rng, &[RenameMode::Replace, RenameMode::Replace, RenameMode::Exchange, whiteout]);
        let paths = if rng.chance(1, 4) { DIRECTORIES } else { FILES };
        let target_exists = mode == RenameMode::Exchange || rng.chance(1, 2);
        Rename(Self::path(rng, model, paths, true), Self::path(rng, model, paths, target_exists), mode)
    }

    /// A path that leads somewhere, or to a free name: if a few tries find one.
    fn path(rng: &mut Rng, model: &Model, paths: &[Path], exists: bool) -> Path {
        let mut path = one_of(rng, paths);
        for _ in 0..8 {
            match model.resolve(path) {
                Some((_, _, found)) if found.is_some() == exists => break,
                _ => path = one_of(rng, paths),
            }
        }
        path
    }
}
