//! What the adapter needs of a filesystem. [`crate::fs::Fs`] is one; so is whatever a benchmark wants to mount in its place.

use std::cell::RefCell;

use serde_json::{Value, json};

use crate::fs::{
    Atime, Attributes, Caller, Cookie, Fallocate, Fs, FsError, Ino, Kind, New, RenameMode, Result, Scrub,
    SetAttributes, SetXattr, Time, Usage,
};
use crate::storage::AlignedBuf;

thread_local! {
    /// What a worker reads into: aligned, so that long reads bypass the page cache.
    static BUFFER: RefCell<AlignedBuf> = const { RefCell::new(AlignedBuf::new()) };
}

/// Receives a result from another thread, once.
pub type Callback = Box<dyn FnOnce(Result<()>) + Send>;

/// Receives an entry of a directory: its cookie, attributes and name; whether it was taken. After one that was not, no more come.
pub type EachEntry<'a> = dyn FnMut(Cookie, &Attributes, &[u8]) -> bool + 'a;

/// Receives an entry of a directory without attributes: cookie, inode, kind, name; whether to go on.
pub type EachName<'a> = dyn FnMut(Cookie, Ino, Kind, &[u8]) -> bool + 'a;

/// Whether a volume takes changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// It does.
    ReadWrite,
    /// It was opened for reading.
    ReadOnly,
    /// It refuses them since this error.
    Failed(String),
}

/// A filesystem that can be mounted. Calls run in parallel; each is whole or not done.
///
/// `lookup`, `create`, `link` and each entry that `read_dir_plus` reports (but `.` and `..`) add one reference to the inode,
/// which `release` gives back. An inode without a name lives as long as there are references.
pub trait Volume: Send + Sync + 'static {
    /// The inode under a name, with a reference.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes>;
    /// The inode itself, with a reference.
    fn retain(&self, ino: Ino) -> Result<Attributes>;
    /// The directory that a directory lies in.
    fn parent(&self, ino: Ino) -> Result<Ino>;
    /// Gives back `n` references.
    fn release(&self, ino: Ino, n: u64) -> Result<()>;
    /// The inode's attributes.
    fn attributes(&self, ino: Ino) -> Result<Attributes>;
    /// Changes attributes and returns them.
    fn set_attributes(&self, ino: Ino, change: &SetAttributes, caller: &Caller) -> Result<Attributes>;
    /// The target of a symbolic link.
    fn read_link(&self, ino: Ino) -> Result<Vec<u8>>;
    /// Creates an inode, with a reference.
    fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: New<'_>,
        mode: u16,
        umask: u16,
        caller: &Caller,
    ) -> Result<Attributes>;
    /// Gives an inode another name, and returns it with a reference.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8], caller: &Caller) -> Result<Attributes>;
    /// Takes a name away.
    fn unlink(&self, parent: Ino, name: &[u8], caller: &Caller) -> Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, parent: Ino, name: &[u8], caller: &Caller) -> Result<()>;
    /// Moves or exchanges names.
    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
        caller: &Caller,
    ) -> Result<()>;
    /// Calls `each` with the entries behind `after`, until it returns `false`.
    fn read_dir(&self, ino: Ino, after: Cookie, each: &mut EachName<'_>) -> Result<()>;
    /// Calls `each` with the entries behind `after`, at most `limit`, each with a reference if it was taken.
    fn read_dir_plus(&self, ino: Ino, after: Cookie, limit: usize, each: &mut EachEntry<'_>) -> Result<()>;
    /// Somebody reads a file, a directory or a link. What that does to the access time is up to the volume.
    fn accessed(&self, ino: Ino, now: Time) -> Result<()> {
        let _ = (ino, now);
        Ok(())
    }
    /// Which accesses are to do anything, from now on.
    fn set_atime_mode(&self, mode: Atime) {
        let _ = mode;
    }
    /// Reads; fewer bytes than asked for only at the file's end. `reply` gets the bytes, once, unless there was an error.
    fn read<R>(&self, ino: Ino, offset: u64, len: usize, reply: impl FnOnce(&[u8]) -> R) -> Result<R>;
    /// Writes; how many bytes. Fewer than there are only if an error came behind them.
    fn write(&self, ino: Ino, offset: u64, data: &[u8], caller: &Caller) -> Result<usize>;
    /// Allocates, punches or zeroes.
    fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate, caller: &Caller) -> Result<()>;
    /// Finds data or a hole.
    fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<Option<u64>>;
    /// Copies from file to file; how many bytes.
    fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        caller: &Caller,
    ) -> Result<u64>;
    /// The value of an extended attribute.
    fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    /// The names of all extended attributes.
    fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>>;
    /// Sets an extended attribute.
    fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr, caller: &Caller) -> Result<()>;
    /// Removes an extended attribute.
    fn remove_xattr(&self, ino: Ino, name: &[u8], caller: &Caller) -> Result<()>;
    /// How much space there is.
    fn usage(&self) -> Usage;
    /// Makes everything done so far durable, and calls back then; waits for nothing, unless nobody else does and it `may_wait`.
    fn sync_then(&self, may_wait: bool, callback: Callback);
    /// What the volume counts, as a JSON object, for people who watch it.
    fn report(&self) -> Value;
    /// Whether changes are taken.
    fn access(&self) -> Access {
        Access::ReadWrite
    }
    /// A path of the inode, for messages.
    fn path_of(&self, ino: Ino) -> String {
        format!("inode {}", ino.0)
    }
    /// Reads and verifies everything, contents at `rate` bytes a second at the most.
    fn scrub(&self, rate: u64, progress: &Scrub) {
        let _ = (rate, progress);
    }
    /// Makes the volume larger, to `size` bytes.
    fn grow(&self, size: u64) -> Result<()>;
    /// Damage of what the volume consists of was met: whoever checks it next is to look at everything.
    fn note_damage(&self);
    /// Damage was found while something was being changed: nothing may be changed any more.
    fn fail(&self, error: &FsError);
    /// Finishes everything. Nothing is called afterwards.
    fn close(self) -> Result<()>;
}

impl Volume for Fs {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes> {
        self.lookup_attributes(parent, name)
    }
    fn retain(&self, ino: Ino) -> Result<Attributes> {
        Fs::retain(self, ino);
        let found = Fs::attributes(self, ino);
        if found.is_err() {
            self.release_aside(ino);
        }
        found
    }
    fn parent(&self, ino: Ino) -> Result<Ino> {
        Fs::parent(self, ino)
    }
    fn release(&self, ino: Ino, n: u64) -> Result<()> {
        Fs::release(self, ino, n)
    }
    fn attributes(&self, ino: Ino) -> Result<Attributes> {
        Fs::attributes(self, ino)
    }
    fn set_attributes(&self, ino: Ino, change: &SetAttributes, caller: &Caller) -> Result<Attributes> {
        Fs::set_attributes(self, ino, change, caller)
    }
    fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        Fs::read_link(self, ino)
    }
    fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: New<'_>,
        mode: u16,
        umask: u16,
        caller: &Caller,
    ) -> Result<Attributes> {
        Fs::create(self, parent, name, new, mode, umask, caller)
    }
    fn link(&self, ino: Ino, parent: Ino, name: &[u8], caller: &Caller) -> Result<Attributes> {
        Fs::link(self, ino, parent, name, caller)
    }
    fn unlink(&self, parent: Ino, name: &[u8], caller: &Caller) -> Result<()> {
        Fs::unlink(self, parent, name, caller)
    }
    fn rmdir(&self, parent: Ino, name: &[u8], caller: &Caller) -> Result<()> {
        Fs::rmdir(self, parent, name, caller)
    }
    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
        caller: &Caller,
    ) -> Result<()> {
        Fs::rename(self, parent, name, new_parent, new_name, mode, caller)
    }
    fn read_dir(&self, ino: Ino, after: Cookie, each: &mut EachName<'_>) -> Result<()> {
        Fs::read_dir(self, ino, after, each)
    }
    fn read_dir_plus(&self, ino: Ino, after: Cookie, limit: usize, each: &mut EachEntry<'_>) -> Result<()> {
        Fs::read_dir_plus(self, ino, after, limit, each)
    }
    fn accessed(&self, ino: Ino, now: Time) -> Result<()> {
        self.touch_atime(ino, now)
    }
    fn set_atime_mode(&self, mode: Atime) {
        Fs::set_atime_mode(self, mode);
    }
    fn read<R>(&self, ino: Ino, offset: u64, len: usize, reply: impl FnOnce(&[u8]) -> R) -> Result<R> {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.reset(len);
            let n = self.read_into(ino, offset, buffer)?;
            Ok(reply(&buffer[..n]))
        })
    }
    fn write(&self, ino: Ino, offset: u64, data: &[u8], caller: &Caller) -> Result<usize> {
        Fs::write(self, ino, offset, data, caller)
    }
    fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: Fallocate, caller: &Caller) -> Result<()> {
        Fs::fallocate(self, ino, offset, len, mode, caller)
    }
    fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<Option<u64>> {
        Fs::seek(self, ino, offset, data)
    }
    fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        caller: &Caller,
    ) -> Result<u64> {
        Fs::copy_range(self, from, from_offset, to, to_offset, len, caller)
    }
    fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        Fs::get_xattr(self, ino, name)
    }
    fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        Fs::list_xattrs(self, ino)
    }
    fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr, caller: &Caller) -> Result<()> {
        Fs::set_xattr(self, ino, name, value, how, caller)
    }
    fn remove_xattr(&self, ino: Ino, name: &[u8], caller: &Caller) -> Result<()> {
        Fs::remove_xattr(self, ino, name, caller)
    }
    fn usage(&self) -> Usage {
        Fs::usage(self)
    }
    fn sync_then(&self, may_wait: bool, callback: Callback) {
        self.tree().commit_then(may_wait, Box::new(|result| callback(result.map_err(FsError::from))));
    }
    fn report(&self) -> Value {
        report(self)
    }
    fn access(&self) -> Access {
        match self.tree().failure() {
            Some(error) => Access::Failed(error.to_string()),
            None if self.tree().is_read_only() => Access::ReadOnly,
            None => Access::ReadWrite,
        }
    }
    fn path_of(&self, ino: Ino) -> String {
        Fs::path_of(self, ino)
    }
    fn scrub(&self, rate: u64, progress: &Scrub) {
        Fs::scrub(self, rate, progress);
    }
    fn grow(&self, size: u64) -> Result<()> {
        Ok(self.tree().grow(size)?)
    }
    fn note_damage(&self) {
        self.tree().note_damage();
    }
    fn fail(&self, error: &FsError) {
        if self.tree().is_read_only() {
            return;
        }
        log::error!("the filesystem is read-only from now on; unmount it and run `btfs fsck`: {error}");
        if let Err(e) = self.tree().set_read_only(true) {
            log::error!("making durable what was changed before: {e}");
        }
    }
    fn close(self) -> Result<()> {
        Fs::close(self)
    }
}

/// The engine's counters, as a JSON object.
fn report(fs: &Fs) -> Value {
    let s = fs.tree().stats();
    let usage = Fs::usage(fs);
    let lookups = s.get_pages + s.scan_pages;
    let hits = 1.0 - s.pages_read as f64 / lookups.max(1) as f64;
    json!({
        "blocks": usage.blocks,
        "free_blocks": usage.free,
        "cache_size": s.cache_size,
        "page_lookups": lookups,
        "pages_read": s.pages_read,
        "cache_hit_ratio": (hits * 1e4).round() / 1e4,
        "pages_written": s.pages_written,
        "log_size": s.log_size,
        "log_end": s.log_end,
        "log_records": s.log_records,
        "log_syncs": s.log_groups,
        "commits_waited": s.log_commits,
        "checkpoints": s.checkpoints,
        "checkpoint_us": s.checkpoint_micros,
        "splits": s.splits,
        "merges": s.merges,
        "latch_waits": s.latch_waits,
        "chunks_punched": s.punches,
    })
}
