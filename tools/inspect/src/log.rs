//! The log from the checkpoint on.

use btfs::page::op::{self, Op};
use btfs::page::superblock::{LOG_OFFSET, Superblock};
use btfs::wal::format::{Header, Kind, RECORD_HEADER_SIZE};
use btfs::wal::{self, Place, Scan};
use btfs::{Error, Lsn};

use crate::Report;
use crate::fields;
use crate::hex::{Annotated, number, text};
use crate::image::Image;

/// Records that are printed, at the most.
const RECORDS_MAX: usize = 10_000;

struct Record {
    lsn: Lsn,
    kind: Kind,
    bytes: Vec<u8>,
}

fn place(s: &Superblock) -> Place {
    Place::of(s)
}

/// The whole record at `lsn`, if there is one.
fn record(image: &Image, s: &Superblock, lsn: Lsn) -> Option<Record> {
    let mut header = [0; RECORD_HEADER_SIZE];
    place(s).read(image.storage(), lsn, &mut header).ok()?;
    let decoded = Header::decode(&header, s.image())?;
    if !decoded.is_plausible(lsn, s.incarnation) || decoded.len as u64 > s.log_size {
        return None;
    }
    let mut bytes = vec![0; decoded.len];
    place(s).read(image.storage(), lsn, &mut bytes).ok()?;
    let kind = decoded.verify(&bytes, bytes.get(RECORD_HEADER_SIZE..)?, s.image())?;
    Some(Record { lsn, kind, bytes })
}

/// The records from the checkpoint on, until one is not whole.
fn records<'i>(image: &'i Image, s: &'i Superblock) -> impl Iterator<Item = Record> + 'i {
    let end = s.checkpoint.0 + s.log_size;
    let mut at = s.checkpoint;
    std::iter::from_fn(move || {
        let record = record(image, s, at).filter(|r| at.0 + r.bytes.len() as u64 <= end)?;
        at = Lsn(at.0 + record.bytes.len() as u64);
        Some(record)
    })
}

fn describe(op: &Op<'_>) -> String {
    match op {
        Op::Put { key, value } => format!("put {} = {}", text(key), text(value)),
        Op::Delete { key } => format!("delete {}", text(key)),
        Op::Image(image) => format!("page image of {} bytes", image.len()),
        Op::Truncate { high, right } => {
            format!("split off from {} on, right link page {}", text(high), right.0)
        }
        Op::Absorb(image) => format!("absorb the right sibling, {} bytes", image.len()),
        Op::SplitDone => "split complete".into(),
        Op::Kill => "merged away".into(),
        Op::InitBitmap { used, end } => format!("new bitmap: {used} blocks in use, {end} exist"),
        Op::Allocate { start, len, pages } => {
            format!("allocate blocks {start}+{len} for {}", if *pages { "pages" } else { "data" })
        }
        Op::Free { start, len } => format!("free blocks {start}+{len}"),
        Op::Data { start, bytes } => format!("contents of block {}, {} bytes", start.0, bytes.len()),
    }
}

/// A record in one line for each of its operations.
fn print_record(r: &Record, report: &mut Report) {
    let body = &r.bytes[RECORD_HEADER_SIZE..];
    if r.kind == Kind::Mark {
        return report.line(format!("{}  mark: durable up to {}", r.lsn, Lsn(number(body, 0, 8))));
    }
    report.line(format!("{}  transaction of {} bytes", r.lsn, r.bytes.len()));
    for section in op::sections(body) {
        match section {
            Ok((page, ops)) => {
                for op in ops {
                    match op {
                        Ok(op) => report.line(format!("    {page}: {}", describe(&op))),
                        Err(reason) => report.problem(reason),
                    }
                }
            }
            Err(reason) => report.problem(reason),
        }
    }
}

/// What recovery would say of the log.
fn verdict(image: &Image, s: &Superblock, report: &mut Report) -> Option<Scan> {
    let floor = s.floor.max(crate::doublewrite::floor(image, s));
    match wal::scan(image.storage(), place(s), s.checkpoint, s.incarnation, floor, |_, _, _| Ok(())) {
        Ok(scan) => Some(scan),
        Err(Error::Corrupt { place, reason }) => {
            report.problem(format!("{place}: {reason}"));
            None
        }
        Err(error) => {
            report.problem(error.to_string());
            None
        }
    }
}

/// The records from the checkpoint on, and the verdict.
pub fn print(image: &Image, report: &mut Report) {
    let Some(s) = &image.superblock else {
        return report.problem("without a superblock nobody knows where the log begins");
    };
    for (i, r) in records(image, s).enumerate() {
        if i == RECORDS_MAX {
            report.line(format!("(only the first {RECORDS_MAX} records are printed)"));
            break;
        }
        print_record(&r, report);
    }
    summarize(image, report);
}

/// One line.
pub fn summarize(image: &Image, report: &mut Report) {
    let Some(s) = &image.superblock else { return };
    if s.clean {
        return report.line(format!("log           {} bytes, nothing to redo", s.log_size));
    }
    if let Some(scan) = verdict(image, s, report) {
        report.line(format!(
            "log           {} bytes; {} transactions from {} to {}, durable up to {} at least, {} bytes cut off behind",
            s.log_size, scan.records, s.checkpoint, scan.end, scan.floor, scan.discarded
        ));
    }
}

/// The records from the checkpoint on, byte by byte.
pub fn dump(image: &Image, report: &mut Report) {
    let Some(s) = &image.superblock else { return };
    for r in records(image, s).take(RECORDS_MAX) {
        let base = LOG_OFFSET + r.lsn.0 % s.log_size;
        report.line(format!("log record at {}, at {base}", r.lsn));
        let mut to = Annotated::new(report, base, &r.bytes);
        fields::print(&mut to, &r.bytes, &fields::RECORD);
        match r.kind {
            Kind::Mark => to.field(8, format!("mark: durable up to LSN {}", number(&r.bytes, to.at(), 8))),
            Kind::Transaction => dump_sections(&mut to, &r.bytes),
        }
        report.line("");
    }
}

fn dump_sections(to: &mut Annotated<'_>, bytes: &[u8]) {
    for section in op::sections(&bytes[RECORD_HEADER_SIZE..]) {
        let Ok((page, ops)) = section else { return to.problem("section is cut off") };
        to.field(8, format!("section: {page}"));
        let len = number(bytes, to.at(), 4) as usize;
        to.field(4, format!("its operations take {len} bytes"));
        let end = to.at() + len;
        for op in ops {
            let Ok(op) = op else { return to.problem("operation cannot be read") };
            let mut encoded = Vec::new();
            op.encode(&mut encoded);
            to.field(encoded.len(), describe(&op));
        }
        to.skip_to(end, "unknown");
    }
}
