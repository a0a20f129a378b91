//! Reading all contents, and comparing them with their checksums.
//!
//! Extents are taken in key order, a window at a time, and read in the order in which they lie on the disk, neighbours in one read.

use super::fix::Fix;
use super::image::Image;
use super::report::{Findings, Place, ProblemKind, Report};
use super::structure::Structure;
use super::{Options, Result, Stage};
use crate::fs::format::*;
use crate::page::{BLOCK_SIZE, BlockNo, Run};

/// Bytes of contents in a window.
const WINDOW: usize = 16 << 20;
/// Bytes that one read fetches at the most.
const READ_MAX: usize = 4 << 20;

/// A written extent that is to be verified.
struct Piece {
    run: Run,
    ino: Ino,
    begin: u64,
    crcs: Vec<u32>,
}

/// Verifies the contents of all files.
pub(super) fn scrub(
    image: &Image,
    structure: &Structure,
    findings: &mut Findings,
    report: &mut Report,
    options: &Options<'_>,
) -> Result<()> {
    let total = report.data_bytes;
    let mut records = structure.records(image, TAG_EXTENT)?;
    let mut buffer = Vec::new();
    loop {
        let (mut window, mut bytes, mut more) = (Vec::new(), 0, true);
        while bytes < WINDOW {
            more = records.next()?;
            if !more {
                break;
            }
            let Some(AnyKey::Extent(ino, end)) = AnyKey::parse(records.key()) else { continue };
            let Ok(Extent::Blocks { start, crcs, len, .. }) = Extent::decode(ino, end, records.value())
            else {
                continue;
            };
            let run = Run { start, len: crcs.len() as u32 };
            if image.is_valid_run(run) {
                bytes += crcs.len() * BLOCK_SIZE;
                window.push(Piece { run, ino, begin: end - len as u64, crcs });
            }
        }
        window.sort_unstable_by_key(|p| p.run.start);
        report.scrubbed_bytes += bytes as u64;
        verify(image, &window, &mut buffer, findings);
        options.tell(Stage::Scrub, report.scrubbed_bytes, total);
        if !more {
            return Ok(());
        }
    }
}

/// Verifies extents in the order of their places.
fn verify(image: &Image, window: &[Piece], buffer: &mut Vec<u8>, findings: &mut Findings) {
    let mut i = 0;
    while i < window.len() {
        let (start, mut end, mut n) = (window[i].run.start, window[i].run.end(), 1);
        while let Some(next) = window.get(i + n)
            && next.run.start == end
            && (next.run.end().0 - start.0) as usize * BLOCK_SIZE <= READ_MAX
        {
            (end, n) = (next.run.end(), n + 1);
        }
        let len = (end.0 - start.0) as usize * BLOCK_SIZE;
        buffer.resize(buffer.len().max(len), 0);
        let bytes = &mut buffer[..len];
        let run = Run { start, len: (end.0 - start.0) as u32 };
        let read = image.read_blocks(run, bytes).is_ok();
        for piece in &window[i..i + n] {
            let from = (piece.run.start.0 - start.0) as usize * BLOCK_SIZE;
            let held = read.then(|| &bytes[from..from + piece.crcs.len() * BLOCK_SIZE]);
            verify_piece(image, piece, held, findings);
        }
        i += n;
    }
}

/// What became of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Right,
    /// It was read, and its checksum is another.
    Wrong,
    /// The host could not read it.
    Unread,
}

/// Verifies one extent; what a larger read could not get is read block by block.
fn verify_piece(image: &Image, piece: &Piece, held: Option<&[u8]>, findings: &mut Findings) {
    let mut block = [0; BLOCK_SIZE];
    let compare = |bytes: &[u8], crc| if crc32fast::hash(bytes) == crc { Found::Right } else { Found::Wrong };
    let mut look = |i: usize, crc| {
        let at = BlockNo(piece.run.start.0 + i as u64);
        match held {
            // Reported with the inode.
            _ if image.short.is_some_and(|held| at.offset() + BLOCK_SIZE as u64 > held) => Found::Right,
            Some(bytes) => compare(&bytes[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE], crc),
            None if image.read_blocks(Run { start: at, len: 1 }, &mut block).is_ok() => compare(&block, crc),
            None => Found::Unread,
        }
    };
    // Neighbours to which the same happened.
    let (mut from, mut same) = (0, Found::Right);
    for (i, crc) in piece.crcs.iter().enumerate() {
        let found = look(i, *crc);
        if found != same {
            note(piece, from, i, same, findings);
            (from, same) = (i, found);
        }
    }
    note(piece, from, piece.crcs.len(), same, findings);
}

/// Reports blocks of an extent.
fn note(piece: &Piece, from: usize, to: usize, found: Found, findings: &mut Findings) {
    let (begin, size) = (piece.begin, BLOCK_SIZE as u64);
    let run = Run { start: BlockNo(piece.run.start.0 + from as u64), len: (to - from) as u32 };
    let mut place = Place::range(piece.ino.0, begin + from as u64 * size, begin + to as u64 * size);
    place.blocks = Some(run);
    match found {
        Found::Right => {}
        Found::Wrong => findings.add_rotten(place, Fix::Lose(piece.ino, begin + from as u64 * size, run)),
        Found::Unread => findings.add(ProblemKind::Unreadable, place, "contents cannot be read", Vec::new()),
    }
}
