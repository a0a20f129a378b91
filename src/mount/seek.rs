//! `SEEK_DATA` and `SEEK_HOLE`. What has been stored through a mapping is known to the kernel alone until it writes it back, and it
//! asks here without doing so: an answer that tells of a hole is right only once the kernel has been asked for what it holds there.
//! Otherwise a copy of a file that is mapped would have zeros for what others see in it (as copies of ZFS had: openzfs issue 11900).

use fuser::{Errno, INodeNo, ReplyLseek};

use super::flusher::{Kernel, Range};
use super::volume::Volume;
use crate::fs::{Ino, Result};

/// Bytes of a hole for which the kernel is asked at first.
const STEP: u64 = 1 << 20;

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
        let (from, to) = match *found {
            Ok(at) if self.data => (self.offset, at),
            // What has been stored there since makes the answer wrong, and not the hole empty.
            Ok(Some(at)) => (at, volume.seek(n, at, true)?.map(|to| to.max(at + 1))),
            _ => return Ok(None),
        };
        // The end counts as a hole, and there is nothing behind it.
        let to = match to {
            Some(to) => to,
            None => volume.attributes(n)?.size,
        };
        Ok((from < to).then_some((from, to)))
    }

    /// The answer once the kernel has handed over what it holds of the hole that the answer tells of: from its beginning on and in
    /// growing steps, for a page takes a write of its own, and what it stores may be the answer. In the flusher's thread.
    pub fn seek_surely<V: Volume>(self, volume: &V, kernel: &Kernel) -> Found {
        let (mut sure, mut step) = ((0, 0), STEP);
        loop {
            let (found, hole) = self.seek(volume);
            let Some((from, to)) = hole else { return found };
            let begun = (sure.0..sure.1).contains(&from);
            // That a hole begins is all that is asked, or that there are no data before the end of one.
            if begun && (!self.data || to <= sure.1) {
                return found;
            }
            let begin = if begun { sure.1 } else { from };
            let end = to.min(begin.saturating_add(step));
            kernel.give_up(self.n, (begin, end));
            sure = (if begun { sure.0 } else { from }, end);
            step = step.saturating_mul(2);
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
