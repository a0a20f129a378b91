//! What the last whole record of an image's log is: between which two records the cut fell.

use btfs::Lsn;
use btfs::page::op::{self, Op};
use btfs::page::superblock::{LOG_OFFSET, Superblock, choose, read_copies};
use btfs::storage::Image;
use btfs::wal::format::{Header, Kind, RECORD_HEADER_SIZE};

/// The end of a log that is to be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTail {
    /// What the last transaction does: a name of a site.
    pub last: &'static str,
    /// What the transaction does that is torn behind it, as far as its beginning is there.
    pub torn: Option<&'static str>,
    /// Whether the log has been around.
    pub wrapped: bool,
    /// Whether a group is born in the part that recovery reads.
    pub group_birth: bool,
}

/// Finds the end of an image's log. `None`: there is nothing to recover.
pub fn log_tail(image: &Image) -> Option<LogTail> {
    let superblock = superblock(image).filter(|s| !s.clean)?;
    let size = superblock.log_size;
    let start = superblock.checkpoint.0;
    let mut log = LogBytes { image, start, size, bytes: Vec::new() };
    let mut at = 0;
    let mut last = "no record";
    let mut torn = None;
    let mut group_birth = false;
    while let Some(header_bytes) = log.get(at, RECORD_HEADER_SIZE).and_then(|b| b.first_chunk()) {
        let header_bytes: [u8; RECORD_HEADER_SIZE] = *header_bytes;
        let header = Header::decode(&header_bytes, superblock.image());
        let plausible = |h: &Header| h.is_plausible(Lsn(start + at as u64), superblock.incarnation);
        let Some(header) = header.filter(plausible) else { break };
        let Some(record) = log.get(at, header.len) else { break };
        let body = &record[RECORD_HEADER_SIZE..];
        match header.verify(&header_bytes, body, superblock.image()) {
            Some(Kind::Transaction) => {
                last = kind(body);
                group_birth |= last == "group birth";
            }
            Some(Kind::Mark) => {}
            None => {
                torn = torn_kind(body);
                break;
            }
        }
        at += header.len;
    }
    Some(LogTail { last, torn, wrapped: start + at as u64 > 2 * size, group_birth })
}

/// The log from the checkpoint on, read as far as is asked for.
struct LogBytes<'i> {
    image: &'i Image,
    start: u64,
    size: u64,
    bytes: Vec<u8>,
}

impl LogBytes<'_> {
    fn get(&mut self, at: usize, len: usize) -> Option<&[u8]> {
        const STEP: u64 = 4096;
        if (at + len) as u64 > self.size {
            return None;
        }
        while self.bytes.len() < at + len {
            let from = (self.start + self.bytes.len() as u64) % self.size;
            let count = (STEP - from % STEP).min(self.size - self.bytes.len() as u64) as usize;
            let end = self.bytes.len();
            self.bytes.resize(end + count, 0);
            self.image.read(LOG_OFFSET + from, &mut self.bytes[end..]).ok()?;
        }
        Some(&self.bytes[at..at + len])
    }
}

/// The superblock that counts.
pub fn superblock(image: &Image) -> Option<Superblock> {
    let len = image.len();
    choose(read_copies(len, |at, bytes| image.read(at, bytes)), len).ok()
}

/// What a transaction does, by the operations that only one kind has.
fn kind(body: &[u8]) -> &'static str {
    let (mut births, mut kills) = (0, 0);
    for (_, ops) in op::sections(body).flatten() {
        for op in ops.flatten() {
            match op {
                Op::Truncate { .. } => return "split",
                Op::SplitDone => return "post",
                Op::Absorb(_) => return "merge",
                Op::InitBitmap { .. } => return "group birth",
                Op::Image(_) => births += 1,
                Op::Kill => kills += 1,
                _ => {}
            }
        }
    }
    match (births, kills) {
        (0, _) => "batch",
        (_, 1) => "root shrink",
        (1, _) => "load",
        _ => "root growth",
    }
}

/// What a transaction that is not whole does, by its first operation.
fn torn_kind(body: &[u8]) -> Option<&'static str> {
    let (_, mut ops) = op::sections(body).next()?.ok()?;
    Some(match ops.next()?.ok()? {
        Op::Truncate { .. } => "split, torn",
        Op::SplitDone => "post, torn",
        Op::Absorb(_) => "merge, torn",
        Op::Kill => "root shrink, torn",
        Op::Image(_) => "root growth, torn",
        Op::Put { .. } | Op::Delete { .. } => "batch, torn",
        _ => return None,
    })
}
