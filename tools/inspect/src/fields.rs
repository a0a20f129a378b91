//! The fields of the fixed structures: length, name, and how to print them. `docs/format.md` has the same tables.

use crate::hex::{Annotated, number, text};

/// How a field is printed.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A number.
    Number,
    /// A number, in hexadecimal.
    Hex,
    /// An LSN.
    Lsn,
    /// A page number.
    Page,
    /// Bytes.
    Bytes,
    /// Text that is padded with zeros.
    Text,
    /// Bytes that mean nothing yet.
    Zero,
}

/// Length in bytes, name, kind.
pub type Field = (usize, &'static str, Kind);

/// The superblock's first sector.
pub const SUPERBLOCK: [Field; 24] = [
    (8, r#"magic "btfs\r\n\x1a\n""#, Kind::Bytes),
    (4, "format version", Kind::Number),
    (4, "page size", Kind::Number),
    (8, "compatible features", Kind::Hex),
    (8, "features without which an image may only be read", Kind::Hex),
    (8, "features without which an image must be refused", Kind::Hex),
    (16, "UUID", Kind::Bytes),
    (16, "hash seed", Kind::Bytes),
    (64, "label", Kind::Text),
    (8, "sequence", Kind::Number),
    (8, "size of the image", Kind::Number),
    (8, "offset of the log", Kind::Number),
    (8, "size of the log", Kind::Number),
    (8, "offset of the doublewrite area", Kind::Number),
    (4, "pages of a doublewrite half", Kind::Number),
    (4, "groups with a bitmap page", Kind::Number),
    (8, "offset of group 0", Kind::Number),
    (8, "root", Kind::Page),
    (8, "checkpoint", Kind::Lsn),
    (8, "durable floor", Kind::Lsn),
    (4, "incarnation", Kind::Number),
    (1, "closed in order", Kind::Number),
    (287, "zero", Kind::Zero),
    (4, "CRC-32 of the bytes before", Kind::Hex),
];

/// What every page begins with.
pub const PAGE: [Field; 6] = [
    (4, "CRC-32 of the rest of the page", Kind::Hex),
    (1, "page type", Kind::Number),
    (1, "level", Kind::Number),
    (2, "flags", Kind::Hex),
    (8, "page number", Kind::Page),
    (8, "LSN", Kind::Number),
];

/// The last field of a page's common header.
pub const IMAGE: Field = (8, "image: the UUID's first half", Kind::Bytes);

/// The rest of a tree page's header.
pub const TREE: [Field; 9] = [
    (8, "right link", Kind::Page),
    (2, "records", Kind::Number),
    (2, "heap begins at", Kind::Number),
    (2, "garbage in the heap", Kind::Number),
    (2, "length of the prefix", Kind::Number),
    (2, "length of the low fence", Kind::Number),
    (2, "length of the high key (65535: none)", Kind::Number),
    (2, "appends in a row", Kind::Number),
    (10, "zero", Kind::Zero),
];

/// The rest of a doublewrite header's head.
pub const DOUBLEWRITE: [Field; 4] = [
    (8, "sequence", Kind::Number),
    (8, "durable floor", Kind::Lsn),
    (4, "pages that follow", Kind::Number),
    (12, "zero", Kind::Zero),
];

/// A log record's header.
pub const RECORD: [Field; 6] = [
    (4, "length of the record", Kind::Number),
    (4, "CRC-32", Kind::Hex),
    (8, "LSN", Kind::Number),
    (4, "incarnation", Kind::Number),
    (1, "kind", Kind::Number),
    (3, "CRC-32 of the header", Kind::Hex),
];

const fn total(fields: &[Field]) -> usize {
    let (mut sum, mut i) = (0, 0);
    while i < fields.len() {
        sum += fields[i].0;
        i += 1;
    }
    sum
}

const _: () = {
    assert!(total(&SUPERBLOCK) == 512);
    assert!(total(&PAGE) + IMAGE.0 == 32);
    assert!(total(&PAGE) + IMAGE.0 + total(&TREE) == btfs::page::format::HEADER_SIZE);
    assert!(total(&PAGE) + IMAGE.0 + total(&DOUBLEWRITE) == btfs::page::format::HEADER_SIZE);
    assert!(total(&RECORD) == btfs::wal::format::RECORD_HEADER_SIZE);
};

/// Prints fields one after the other; `bytes` are those of the structure.
pub fn print(to: &mut Annotated<'_>, bytes: &[u8], fields: &[Field]) {
    for &(len, name, kind) in fields {
        let at = to.at();
        let value = number(bytes, at, len);
        let raw = bytes.get(at..at + len).unwrap_or(&[]);
        let meaning = match kind {
            Kind::Number => format!("{name}: {value}"),
            Kind::Hex => format!("{name}: {value:#x}"),
            Kind::Lsn => format!("{name}: LSN {value}"),
            Kind::Page if value == 0 => format!("{name}: none"),
            Kind::Page => format!("{name}: page {value}"),
            Kind::Text => {
                let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
                format!("{name}: {}", text(&raw[..end]))
            }
            Kind::Bytes | Kind::Zero => name.to_owned(),
        };
        to.field(len, meaning);
    }
}
