//! Requests: what an operation becomes when its paths have been looked up. What the filesystem does, and what the model expects.
//!
//! Most requests are one batch of the tree, so a crash shows the state before or the state after. These are rows of batches, and may be
//! cut between them:
//!
//! - a write of more than 1 MiB, one into space that is allocated and not written, one over many small extents, and one for which
//!   the image has hardly any space left: what is written is a prefix that ends at a multiple of the block size;
//! - a punched hole or a zeroed range: first the parts of blocks at its edges, each as a write, then the whole blocks, then times and size;
//! - a copy: the part of a block at its beginning, whole blocks (8 extents at a time), the part at its end.
//!
//! A truncate and a deletion are rows, too, but what they do first is all that can be seen.

use btfs::fs::{Caller, Fallocate, Fs, FsError, Ino, Kind, New, RenameMode, SetAttributes, SetXattr, Time};
use btfs::page::BLOCK_SIZE;

use super::content::{Content, stamped};
use super::model::{Body, Item, Model};
use super::operation::Operation;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// A longer write is a row of writes.
const WRITE_MAX: u64 = 1 << 20;
/// A file with fewer blocks in a range has not so many extents there that a write is cut at one.
const EXTENTS_MIN: u64 = 60;
/// The same for a copy.
const SHARED_MIN: u64 = 8;

/// An operation whose paths have been looked up.
#[derive(Clone, Debug)]
pub enum Request {
    /// A new inode.
    Create(Ino, Vec<u8>, Body),
    /// Another name.
    Link(Ino, Ino, Vec<u8>),
    /// A name goes: that of a directory, or of something else.
    Remove(Ino, Vec<u8>, bool),
    /// A name moves.
    Rename(Ino, Vec<u8>, Ino, Vec<u8>, RenameMode),
    /// Bytes are written.
    Write(Ino, u64, u64),
    /// The size is set.
    Truncate(Ino, u64),
    /// A range is allocated, punched or zeroed.
    Fallocate(Ino, u64, u64, Fallocate),
    /// Bytes are copied.
    Copy(Ino, u64, Ino, u64, u64),
    /// An attribute is set to so many bytes.
    SetXattr(Ino, Vec<u8>, u64),
    /// An attribute goes.
    RemoveXattr(Ino, Vec<u8>),
    /// The mode is set.
    Chmod(Ino, u16),
    /// The modification time is set.
    SetTime(Ino),
}

/// When something is done, and the number that its bytes carry.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time.
    pub now: Time,
    /// The number of the write.
    pub write: u64,
}

impl Moment {
    /// Who calls then.
    pub fn caller(self) -> Caller {
        Caller::new(1000, 1000, self.now)
    }
}

/// What a call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// An inode was made.
    Made(Ino),
    /// So many bytes were copied.
    Copied(u64),
}

fn xattr_name(n: u8) -> Vec<u8> {
    format!("user.{n}").into_bytes()
}

fn target(len: u64) -> Vec<u8> {
    (0..len).map(|i| b"target/"[i as usize % 7]).collect()
}

impl Request {
    /// Looks up the paths of an operation; `None`: they lead nowhere, or it is none of these.
    pub fn new(operation: &Operation, model: &Model) -> Option<Request> {
        let place = |path: &'static str| {
            let (parent, name, _) = model.resolve(path)?;
            Some((parent, name.to_vec()))
        };
        let inode = |path: &'static str| model.resolve(path)?.2;
        let file = |path: &'static str| {
            let ino = inode(path)?;
            model.get(ino)?.content()?;
            Some(ino)
        };
        let new = |path, body: Body| place(path).map(|(parent, name)| Request::Create(parent, name, body));
        match *operation {
            Operation::Create(path) => new(path, Body::File(Content::default())),
            Operation::Mkdir(path) => {
                let parent = place(path)?.0;
                new(path, Body::Directory(Default::default(), parent))
            }
            Operation::Symlink(path, len) => new(path, Body::Symlink(target(len))),
            Operation::Link(path, to) => {
                let (parent, name) = place(to)?;
                Some(Request::Link(inode(path)?, parent, name))
            }
            Operation::Unlink(path) => place(path).map(|(parent, name)| Request::Remove(parent, name, false)),
            Operation::Rmdir(path) => place(path).map(|(parent, name)| Request::Remove(parent, name, true)),
            Operation::Rename(path, to, mode) => {
                let ((parent, name), (new_parent, new_name)) = (place(path)?, place(to)?);
                Some(Request::Rename(parent, name, new_parent, new_name, mode))
            }
            Operation::Write(path, offset, len) => Some(Request::Write(file(path)?, offset, len)),
            Operation::Append(path, len) => {
                let ino = file(path)?;
                Some(Request::Write(ino, model.get(ino)?.size(), len))
            }
            Operation::Truncate(path, size) => Some(Request::Truncate(file(path)?, size)),
            Operation::Fallocate(path, offset, len, mode) => {
                Some(Request::Fallocate(file(path)?, offset, len, mode))
            }
            Operation::Copy(path, offset, to, to_offset, len) => {
                Some(Request::Copy(file(path)?, offset, file(to)?, to_offset, len))
            }
            Operation::SetXattr(path, n, len) => Some(Request::SetXattr(inode(path)?, xattr_name(n), len)),
            Operation::RemoveXattr(path, n) => Some(Request::RemoveXattr(inode(path)?, xattr_name(n))),
            Operation::Chmod(path, mode) => Some(Request::Chmod(inode(path)?, mode)),
            Operation::SetTime(path) => Some(Request::SetTime(inode(path)?)),
            _ => None,
        }
    }

    /// The most blocks that it takes.
    pub fn blocks(&self) -> u64 {
        match self {
            Request::Write(_, _, len) | Request::Fallocate(_, _, len, _) | Request::Copy(_, _, _, _, len) => {
                len / BLOCK + 2
            }
            _ => 0,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// What the filesystem said.
    pub fn call(&self, fs: &Fs, moment: Moment) -> Result<Answer, FsError> {
        let caller = &moment.caller();
        let set = |ino: Ino, change: SetAttributes| fs.set_attributes(ino, &change, caller).map(drop);
        match self {
            Request::Create(parent, name, body) => {
                let (new, mode) = match body {
                    Body::File(_) => (New::File, 0o666),
                    Body::Directory(..) => (New::Directory, 0o777),
                    Body::Symlink(target) => (New::Symlink(target), 0o777),
                    Body::Whiteout => (New::Special(Kind::CharDevice, 0), 0o666),
                };
                let made = fs.create(*parent, name, new, mode, 0o022, caller)?;
                return Ok(Answer::Made(made.ino));
            }
            Request::Link(ino, parent, name) => {
                fs.link(*ino, *parent, name, caller)?;
                fs.release(*ino, 1)
            }
            Request::Remove(parent, name, true) => fs.rmdir(*parent, name, caller),
            Request::Remove(parent, name, false) => fs.unlink(*parent, name, caller),
            Request::Rename(parent, name, new_parent, new_name, mode) => {
                // Two names of the same inode stay as they are.
                let two =
                    [(parent, name), (new_parent, new_name)].map(|(dir, name)| fs.lookup(*dir, name).ok());
                fs.rename(*parent, name, *new_parent, new_name, *mode, caller)?;
                if matches!(mode, RenameMode::Whiteout { .. }) && two[0] != two[1] {
                    return Ok(Answer::Made(fs.lookup_attributes(*parent, name)?.ino));
                }
                Ok(())
            }
            Request::Write(ino, offset, len) => {
                let written = fs.write(*ino, *offset, &stamped(*ino, moment.write, *offset, *len), caller);
                written.and_then(|done| if (done as u64) < *len { Err(FsError::NoSpace) } else { Ok(()) })
            }
            Request::Truncate(ino, size) => {
                set(*ino, SetAttributes { size: Some(*size), ..SetAttributes::default() })
            }
            Request::Fallocate(ino, offset, len, mode) => fs.fallocate(*ino, *offset, *len, *mode, caller),
            Request::Copy(from, offset, to, to_offset, len) => {
                return fs.copy_range(*from, *offset, *to, *to_offset, *len, caller).map(Answer::Copied);
            }
            Request::SetXattr(ino, name, len) => {
                fs.set_xattr(*ino, name, &stamped(*ino, moment.write, 0, *len), SetXattr::Any, caller)
            }
            Request::RemoveXattr(ino, name) => fs.remove_xattr(*ino, name, caller),
            Request::Chmod(ino, mode) => {
                set(*ino, SetAttributes { mode: Some(*mode), ..SetAttributes::default() })
            }
            Request::SetTime(ino) => {
                let mtime = Some(Time { seconds: 1_000_000_000, nanos: moment.now.nanos });
                set(*ino, SetAttributes { mtime, ..SetAttributes::default() })
            }
        }
        .map(|()| Answer::Done)
    }

    /// The states that it goes through, the last one is the one when it is done; `None`: it must be refused. `tight`: there is hardly any
    /// space. What it makes gets the number `made`.
    pub fn states(&self, model: &Model, moment: Moment, tight: bool, made: Ino) -> Option<Vec<Model>> {
        let now = moment.now;
        let changed = |ino: Ino, change: &dyn Fn(&mut Item)| {
            let mut after = model.clone();
            after.change(ino, |item| {
                change(item);
                item.times.inode = now;
            });
            Some(after)
        };
        let one = match self {
            Request::Create(parent, name, body) => {
                if model.entry(*parent, name).is_some() {
                    return None;
                }
                let mode = match body {
                    Body::File(_) => 0o644,
                    Body::Directory(..) => 0o755,
                    Body::Symlink(_) => 0o777,
                    Body::Whiteout => 0o644,
                };
                let mut after = model.clone();
                after.create(*parent, name, made, Item::new(body.clone(), mode, now), now);
                Some(after)
            }
            Request::Link(ino, parent, name) => model.link(*ino, *parent, name, now),
            Request::Remove(parent, name, directory) => model.remove(*parent, name, *directory, now),
            Request::Rename(parent, name, new_parent, new_name, mode) => {
                let taken = model.entry(*new_parent, new_name).is_some();
                if *mode == RenameMode::NoReplace && taken {
                    return None;
                }
                let exchange = *mode == RenameMode::Exchange;
                let mut after = model.rename((*parent, name), (*new_parent, new_name), exchange, now);
                if let (RenameMode::Whiteout { .. }, Some(after)) = (mode, &mut after)
                    && after.entry(*parent, name).is_none()
                {
                    after.create(*parent, name, made, Item::new(Body::Whiteout, 0, now), now);
                }
                after
            }
            Request::Write(ino, offset, len) => {
                let data = stamped(*ino, moment.write, *offset, *len);
                return writes(model, *ino, *offset, &data, now, WRITE_MAX, tight);
            }
            Request::Truncate(ino, size) => changed(*ino, &|item| {
                item.times.contents = now;
                if let Body::File(content) = &mut item.body {
                    content.resize(*size);
                }
            }),
            Request::Fallocate(ino, offset, len, mode) => {
                return fallocates(model, *ino, (*offset, offset + len), *mode, now);
            }
            Request::Copy(from, offset, to, to_offset, len) => {
                return copies(model, (*from, *offset), (*to, *to_offset), *len, now, tight);
            }
            Request::SetXattr(ino, name, len) => {
                let value = stamped(*ino, moment.write, 0, *len);
                changed(*ino, &|item| drop(item.xattrs.insert(name.clone(), value.clone())))
            }
            Request::RemoveXattr(ino, name) => {
                model.get(*ino)?.xattrs.get(name)?;
                changed(*ino, &|item| drop(item.xattrs.remove(name)))
            }
            Request::Chmod(ino, mode) => changed(*ino, &|item| item.mode = *mode),
            Request::SetTime(ino) => changed(*ino, &|item| {
                item.times.contents = Time { seconds: 1_000_000_000, nanos: now.nanos };
            }),
        };
        one.map(|after| vec![after])
    }
}

/// The states of a write, or of a copy of bytes.
fn writes(
    model: &Model,
    ino: Ino,
    offset: u64,
    data: &[u8],
    now: Time,
    step: u64,
    tight: bool,
) -> Option<Vec<Model>> {
    let item = model.get(ino)?;
    let (begin, end) = (offset / BLOCK * BLOCK, offset + data.len() as u64);
    let over = item.size().min(end).saturating_sub(begin) / BLOCK;
    let step = if tight || item.fallocated || over >= EXTENTS_MIN { BLOCK } else { step };
    let borders = (1..).map(|n| begin + n * step).take_while(|at| *at < end);
    let mut at = model.clone();
    let mut done = offset;
    let mut states = Vec::new();
    for border in borders.chain([end]) {
        at.change(ino, |item| {
            if let Body::File(content) = &mut item.body {
                content.write(done, &data[(done - offset) as usize..(border - offset) as usize]);
            }
            item.touch(now);
        });
        done = border;
        states.push(at.clone());
    }
    Some(states)
}

/// The states of a fallocate.
fn fallocates(
    model: &Model,
    ino: Ino,
    (offset, end): (u64, u64),
    mode: Fallocate,
    now: Time,
) -> Option<Vec<Model>> {
    let zero = matches!(mode, Fallocate::PunchHole | Fallocate::ZeroRange | Fallocate::ZeroKeepSize);
    let grows = matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange);
    let mut at = model.clone();
    if mode != Fallocate::PunchHole {
        at.change(ino, |item| item.fallocated = true);
    }
    let mut states = Vec::new();
    if zero {
        let (first, last) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        let mut parts = if first > last { vec![(offset, end)] } else { vec![(offset, first), (last, end)] };
        if first < last {
            let in_file = last.min(at.get(ino)?.size().next_multiple_of(BLOCK)).max(first);
            let many = (in_file - first) / BLOCK >= EXTENTS_MIN;
            let step = if many { BLOCK } else { last - first };
            parts.extend(
                (0..)
                    .map(|n| first + n * step)
                    .take_while(|from| *from < in_file)
                    .map(|from| (from, from + step)),
            );
        }
        for (from, to) in parts {
            at.change(ino, |item| {
                if let Body::File(content) = &mut item.body {
                    content.zero(from, to);
                }
            });
            // The edges are written, which sets the times, unless they are holes.
            states.push(at.clone());
            let mut touched = at.clone();
            touched.change(ino, |item| item.touch(now));
            states.push(touched);
        }
    }
    at.change(ino, |item| {
        if let (Body::File(content), true) = (&mut item.body, grows)
            && content.size() < end
        {
            content.resize(end);
        }
        item.touch(now);
    });
    states.push(at);
    Some(states)
}

/// The states of a copy.
fn copies(
    model: &Model,
    (from, offset): (Ino, u64),
    (to, to_offset): (Ino, u64),
    len: u64,
    now: Time,
    tight: bool,
) -> Option<Vec<Model>> {
    let source = model.get(from)?.content()?;
    let len = len.min(source.size().saturating_sub(offset));
    if from == to && offset.abs_diff(to_offset) < len {
        return None;
    }
    if len == 0 {
        return Some(vec![model.clone()]);
    }
    let data = source.read(offset, len);
    let shares = offset % BLOCK == to_offset % BLOCK && len >= BLOCK;
    let many = len / BLOCK >= SHARED_MIN;
    let step = if shares { BLOCK } else { WRITE_MAX };
    let states = writes(model, to, to_offset, &data, now, step, tight)?;
    if !shares || many || tight {
        return Some(states);
    }
    // The whole blocks in the middle are shared at once. If the source begins with bytes in the tree, they begin with the second.
    let count = states.len();
    let borders = |n: usize| n == 0 || n == 1 || n + 2 >= count;
    Some(states.into_iter().enumerate().filter(|(n, _)| borders(*n)).map(|(_, s)| s).collect())
}

/// The length of a copy that is done.
pub fn copied(model: &Model, from: Ino, offset: u64, len: u64) -> u64 {
    let size = model.get(from).map_or(0, Item::size);
    len.min(size.saturating_sub(offset))
}
