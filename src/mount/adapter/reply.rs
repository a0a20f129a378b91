//! Results become replies.

use std::time::Duration;

use fuser::{Errno, FileAttr, Generation, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::super::convert::{file_attr, no_inode};
use super::super::counters::{Request, Running};
use super::super::volume::Volume;
use super::{Adapter, AdapterOptions};
use crate::fs::{Attributes, FsError, Ino, Kind, Result};

/// How long the kernel may trust entries and attributes: nobody else changes them.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// How long the kernel may keep attributes. A write takes suid and sgid away, and the kernel, which has asked for that, does not look at
/// the mode again afterwards: so it has to ask each time it uses such a file. Where only some users are let in, they are told apart when
/// the kernel asks.
pub(super) fn validity(a: &Attributes, options: &AdapterOptions) -> Duration {
    let loses_bits = a.kind == Kind::File && a.mode & 0o6000 != 0;
    if loses_bits || options.only_some { Duration::ZERO } else { FOREVER }
}

impl<V: Volume> Adapter<V> {
    /// What the kernel is told of an inode. Where it collects writes, it keeps the number of blocks that it was told when the file was
    /// empty until it hands the contents over, and programs do not read a file that has contents and no blocks: see `fs::attributes`.
    pub(super) fn file_attr(&self, a: &Attributes) -> FileAttr {
        let attributes = file_attr(a);
        let may_have_contents = self.options.writeback && a.kind == Kind::File;
        FileAttr { blocks: attributes.blocks.max(may_have_contents as u64), ..attributes }
    }

    /// What is told of a request's result, which is counted: of an error its errno, after the policy for errors has been followed.
    pub(super) fn told<T>(
        &self,
        run: &mut Running<'_>,
        n: Ino,
        result: Result<T>,
    ) -> std::result::Result<T, Errno> {
        run.set_failed(result.is_err());
        result.map_err(|e| self.damage.refuse(&*self.volume, &e, run.request(), n))
    }

    pub(super) fn reply_entry(
        &self,
        mut run: Running<'_>,
        n: Ino,
        result: Result<Attributes>,
        reply: ReplyEntry,
    ) {
        if run.request() == Request::Lookup && matches!(result, Err(FsError::NotFound)) {
            return reply.entry(&FOREVER, &no_inode(), Generation(0));
        }
        match self.told(&mut run, n, result) {
            Ok(a) => reply.entry(&validity(&a, &self.options), &self.file_attr(&a), Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    pub(super) fn reply_attr(
        &self,
        mut run: Running<'_>,
        n: Ino,
        result: Result<Attributes>,
        reply: ReplyAttr,
    ) {
        match self.told(&mut run, n, result) {
            Ok(a) => reply.attr(&validity(&a, &self.options), &self.file_attr(&a)),
            Err(e) => reply.error(e),
        }
    }

    pub(super) fn reply_empty(&self, mut run: Running<'_>, n: Ino, result: Result<()>, reply: ReplyEmpty) {
        match self.told(&mut run, n, result) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    pub(super) fn reply_xattr(
        &self,
        mut run: Running<'_>,
        n: Ino,
        result: Result<Vec<u8>>,
        size: u32,
        reply: ReplyXattr,
    ) {
        match self.told(&mut run, n, result) {
            Ok(value) if size == 0 => reply.size(value.len() as u32),
            Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(value) => reply.data(&value),
            Err(e) => reply.error(e),
        }
    }
}
