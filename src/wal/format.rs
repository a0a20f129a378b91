//! The bytes of a log record.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the whole record |
//! | 4 | 4 | CRC-32 over the body, then bytes 0 to 3 and 8 to 23 of the header, then the image's identity |
//! | 8 | 8 | LSN of the record's first byte |
//! | 16 | 4 | incarnation |
//! | 20 | 1 | kind |
//! | 21 | 3 | the lower 24 bits of a CRC-32 over bytes 0 to 3 and 8 to 20 of the header, then the image's identity |
//! | 24 | … | body |
//!
//! The identity stands in the superblock and in every page, but not here. Who writes to a mounted filesystem chooses bytes that come to
//! lie in the log, and does not know it: what looks like a record, or like a header that makes recovery read on, is one by the engine, or
//! one right guess in billions.

use crate::page::Lsn;
use crate::page::format::{get_u32, get_u64};

/// Bytes of a record's header.
pub const RECORD_HEADER_SIZE: usize = 24;
/// The longest record, header included.
pub const RECORD_SIZE_MAX: usize = 4 << 20;
/// Bytes of a mark.
pub const MARK_SIZE: usize = RECORD_HEADER_SIZE + 8;

const _: () = assert!(RECORD_HEADER_SIZE == 24 && MARK_SIZE == 32);

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Changes of pages that take effect together (`page::op`).
    Transaction = 1,
    /// The log was durable up to the LSN in the body when this was appended.
    Mark = 2,
}

/// A record's header, as read.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Length of the whole record.
    pub len: usize,
    crc: u32,
    /// Where the record says it begins.
    pub lsn: Lsn,
    /// Which incarnation it says it belongs to.
    pub incarnation: u32,
    kind: u8,
}

/// The CRC of a body, to be finished by [`encode_header`]: computed before the log's mutex is taken.
pub fn hash_body(body: &[u8]) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(body);
    hasher
}

/// The header of a record whose body has been hashed and is `body_len` bytes long, of an image with this identity and incarnation.
pub fn encode_header(
    mut hasher: crc32fast::Hasher,
    body_len: usize,
    lsn: Lsn,
    (image, incarnation): (u64, u32),
    kind: Kind,
) -> [u8; RECORD_HEADER_SIZE] {
    let mut h = [0; RECORD_HEADER_SIZE];
    h[0..4].copy_from_slice(&((RECORD_HEADER_SIZE + body_len) as u32).to_be_bytes());
    h[8..16].copy_from_slice(&lsn.0.to_be_bytes());
    h[16..20].copy_from_slice(&incarnation.to_be_bytes());
    h[20] = kind as u8;
    let check = header_check(&h, image);
    h[21..24].copy_from_slice(&check);
    hasher.update(&h[0..4]);
    hasher.update(&h[8..]);
    hasher.update(&image.to_be_bytes());
    h[4..8].copy_from_slice(&hasher.finalize().to_be_bytes());
    h
}

/// The check of a header itself.
pub fn header_check(h: &[u8; RECORD_HEADER_SIZE], image: u64) -> [u8; 3] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&h[0..4]);
    hasher.update(&h[8..21]);
    hasher.update(&image.to_be_bytes());
    let [_, check @ ..] = hasher.finalize().to_be_bytes();
    check
}

impl Header {
    /// Reads the header of a record of the image with this identity; `None` if it is none.
    pub fn decode(b: &[u8; RECORD_HEADER_SIZE], image: u64) -> Option<Header> {
        let header = Header {
            len: get_u32(b, 0) as usize,
            crc: get_u32(b, 4),
            lsn: Lsn(get_u64(b, 8)),
            incarnation: get_u32(b, 16),
            kind: b[20],
        };
        (b[21..24] == header_check(b, image)).then_some(header)
    }

    /// Whether a record of this incarnation can begin here with this header.
    pub fn is_plausible(&self, at: Lsn, incarnation: u32) -> bool {
        self.lsn == at
            && self.incarnation == incarnation
            && (RECORD_HEADER_SIZE..=RECORD_SIZE_MAX).contains(&self.len)
    }

    /// The record's kind, if it is one of the image with this identity: if checksum and kind are right.
    pub fn verify(&self, header: &[u8], body: &[u8], image: u64) -> Option<Kind> {
        let mut hasher = hash_body(body);
        hasher.update(&header[0..4]);
        hasher.update(&header[8..RECORD_HEADER_SIZE]);
        hasher.update(&image.to_be_bytes());
        if hasher.finalize() != self.crc {
            return None;
        }
        match self.kind {
            1 => Some(Kind::Transaction),
            // What was durable when it was appended lies before it.
            2 if body.len() == 8 && get_u64(body, 0) <= self.lsn.0 => Some(Kind::Mark),
            _ => None,
        }
    }
}
