//! `SEEK_DATA` and `SEEK_HOLE`. What has been stored through a mapping is known to the kernel alone until it writes it back, and it
//! asks here without doing so: an answer that tells of a hole is right only once the kernel has been asked for what it holds there.
//! Otherwise a copy of a file that is mapped would have zeros for what others see in it (as copies of ZFS had: openzfs issue 11900).

use fuser::{Errno, INodeNo, ReplyLseek};

use super::flusher::{Kernel, Range};
use super::volume::Volume;
use crate::fs::{Ino, Result};

/// What a seek asks for.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// The inode.
    pub n: INodeNo,
    /// From which byte on.
    pub offset: u64,
    /// Data, or a hole.
    pub data: bool,
}

/// Where it is, if anywhere.
pub type Found = Result<Option<u64>>;

impl Wanted {
    /// The answer from what has reached the volume, and the hole that it tells of.
    pub fn seek<V: Volume>(self, volume: &V) -> (Found, Option<Range>) {
        let found = volume.seek(Ino(self.n.0), self.offset, self.data);
        match self.hole(volume, &found) {
            Ok(hole) => (found, hole),
            Err(e) => (Err(e), None),
        }
    }

    fn hole<V: Volume>(self, volume: &V, found: &Found) -> Result<Option<Range>> {
        let n = Ino(self.n.0);
        Ok(match *found {
            Ok(Some(at)) if self.data => (at > self.offset).then_some((self.offset, at)),
            // The end counts as a hole.
            Ok(Some(at)) if at >= volume.attributes(n)?.size => None,
            Ok(Some(at)) => Some((at, volume.seek(n, at, true)?.unwrap_or(u64::MAX))),
            Ok(None) => self.data.then_some((self.offset, u64::MAX)),
            Err(_) => None,
        })
    }

    /// The answer once the kernel has handed over what it holds of `unsure`, and of what turns out to be a hole then. In the
    /// flusher's thread.
    pub fn seek_surely<V: Volume>(self, volume: &V, kernel: &Kernel, mut unsure: Range) -> Found {
        loop {
            kernel.give_up(self.n, unsure);
            match self.seek(volume) {
                (_, Some(hole)) if hole.0 < unsure.0 || hole.1 > unsure.1 => unsure = hole,
                (found, _) => return found,
            }
        }
    }
}

/// Answers a request with what was found.
pub fn reply_offset(told: std::result::Result<Option<u64>, Errno>, reply: ReplyLseek) {
    match told {
        Ok(Some(at)) => reply.offset(at as i64),
        Ok(None) => reply.error(Errno::ENXIO),
        Err(e) => reply.error(e),
    }
}
