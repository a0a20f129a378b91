//! The log of an image whose superblocks are lost: nobody says where it begins, which incarnation counts, and how far it was durable.
//!
//! Every place of the area is looked at for a whole record. The greatest incarnation counts, since each opening of an image takes a
//! greater one and begins with a checkpoint. Its records are taken from the oldest that has not been overwritten. That is more than recovery
//! would take, and does no harm: changes that a page has are left out by its LSN, and so are those of places that a later record
//! frees, where something else may lie by now.

use super::image::read_pages;
use crate::page::Lsn;
use crate::page::format::get_u64;
use crate::page::superblock::{COUNTER_MAX, INCARNATION_SPENT};
use crate::storage::Storage;
use crate::wal::Place;
use crate::wal::format::{Header, Kind, RECORD_HEADER_SIZE, RECORD_SIZE_MAX};

/// Records that follow one another without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub start: Lsn,
    pub end: Lsn,
    incarnation: u32,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct LostLog {
    /// In the order of the log.
    pub pieces: Vec<Piece>,
    /// The greatest incarnation; 0 if there is no record.
    pub incarnation: u32,
    /// Nothing that was durable ends behind this, as far as it is known.
    pub end: Lsn,
    /// Records between the pieces are missing.
    pub torn: bool,
}

/// Bytes that one read fetches.
const WINDOW: usize = 4 << 20;
/// Bytes that are hashed in vain before the rest is given up: as in recovery, a forger could write a header at every place.
const WASTED_MAX: usize = 64 * RECORD_SIZE_MAX;
/// Greater LSNs are forged: they would leave no room for others.
pub(super) const LSN_MAX: u64 = COUNTER_MAX / 2;
/// Pieces that are kept; a log has one, and a few more where it is damaged.
const PIECES_MAX: usize = 10_000;

/// Looks for records in the whole area. `durable`: what pages and doublewrite headers say of how far the log was durable.
pub(super) fn find(storage: &dyn Storage, place: Place, durable: Lsn) -> LostLog {
    let mut search = Search { storage, place, pieces: Vec::new(), marks: Vec::new(), wasted: 0 };
    search.run();
    let incarnation = search.pieces.iter().map(|p| p.incarnation).max().unwrap_or(0);
    let mut pieces: Vec<Piece> = search.pieces.into_iter().filter(|p| p.incarnation == incarnation).collect();
    pieces.sort_unstable_by_key(|p| p.start);
    join(&mut pieces);
    let marked = search
        .marks
        .iter()
        .filter(|(i, lsn)| *i == incarnation && lsn.0 <= LSN_MAX)
        .map(|(_, lsn)| *lsn)
        .max();
    let floor = durable.max(marked.unwrap_or_default());
    // What begins behind the last byte that is known to have been durable, and does not follow what comes before, is what a crash has left.
    let known = pieces.partition_point(|p| p.start < floor).max(1).min(pieces.len());
    pieces.truncate(known);
    let torn = pieces.len() > 1 || pieces.last().is_some_and(|p| p.end < floor);
    let end = pieces.last().map_or(floor, |p| p.end.max(floor));
    LostLog { pieces, incarnation, end, torn }
}

fn join(pieces: &mut Vec<Piece>) {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces.drain(..) {
        match joined.last_mut() {
            Some(last) if last.end == piece.start => last.end = piece.end,
            _ => joined.push(piece),
        }
    }
    *pieces = joined;
}

struct Search<'a> {
    storage: &'a dyn Storage,
    place: Place,
    pieces: Vec<Piece>,
    /// The greatest mark of each incarnation that has any.
    marks: Vec<(u32, Lsn)>,
    wasted: usize,
}

impl Search<'_> {
    fn run(&mut self) {
        let mut window = vec![0; WINDOW];
        let mut record = Vec::new();
        let (mut at, size) = (0u64, self.place.size);
        // Where a record that runs over the end goes on.
        let mut wrapped = 0;
        while at < size {
            let len = (WINDOW as u64).min(size - at) as usize;
            let bytes = &mut window[..len];
            // In zeros there are no headers.
            read_pages(self.storage, self.place.offset + at, bytes);
            let mut i = 0;
            while i + RECORD_HEADER_SIZE <= len {
                let Some(header) = header(&bytes[i..], at + i as u64, self.place) else {
                    i += 1;
                    continue;
                };
                match self.record(&header, &mut record) {
                    Some(kind) => {
                        self.note(&header, kind, &record);
                        let end = at + i as u64 + header.len as u64;
                        wrapped = wrapped.max(end.saturating_sub(size));
                        i += header.len;
                    }
                    None => i += 1,
                }
                if self.wasted > WASTED_MAX || self.pieces.len() > PIECES_MAX {
                    return;
                }
            }
            // A header at the window's end is found in the next one.
            at += i.max(1) as u64;
        }
        let within = |piece: &Piece| piece.start.0 % size < wrapped;
        self.pieces.retain(|p| !within(p));
    }

    /// Reads the record with this header, and verifies it.
    fn record(&mut self, header: &Header, bytes: &mut Vec<u8>) -> Option<Kind> {
        bytes.resize(header.len, 0);
        let read = self.place.read(self.storage, header.lsn, bytes).is_ok();
        let kind = header.verify(bytes, &bytes[RECORD_HEADER_SIZE..], self.place.image).filter(|_| read);
        if kind.is_none() {
            self.wasted += header.len;
        }
        kind
    }

    fn note(&mut self, header: &Header, kind: Kind, bytes: &[u8]) {
        let (start, incarnation) = (header.lsn, header.incarnation);
        let end = Lsn(start.0 + header.len as u64);
        if kind == Kind::Mark {
            let mark = Lsn(get_u64(bytes, RECORD_HEADER_SIZE));
            let room = self.marks.len() < PIECES_MAX;
            match self.marks.iter_mut().find(|(i, _)| *i == incarnation) {
                Some((_, greatest)) => *greatest = mark.max(*greatest),
                None if room => self.marks.push((incarnation, mark)),
                None => {}
            }
        }
        match self.pieces.last_mut() {
            Some(last) if last.end == start && last.incarnation == incarnation => last.end = end,
            _ => self.pieces.push(Piece { start, end, incarnation }),
        }
    }
}

/// A header that may be that of a record at byte `at` of the area.
fn header(bytes: &[u8], at: u64, Place { image, size, .. }: Place) -> Option<Header> {
    // The first byte of the length, the kind and the place: most fail here.
    if bytes[0] != 0 || !matches!(bytes[20], 1 | 2) || get_u64(bytes, 8) % size != at {
        return None;
    }
    let header = Header::decode(bytes.first_chunk()?, image)?;
    let fits = (RECORD_HEADER_SIZE..=RECORD_SIZE_MAX.min(size as usize)).contains(&header.len);
    let placed = (size..=LSN_MAX).contains(&header.lsn.0);
    // An image that is opened for writing takes the next one.
    let counted = header.incarnation <= INCARNATION_SPENT + 1;
    (fits && placed && counted).then_some(header)
}
