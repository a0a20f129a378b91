//! The two halves of the doublewrite area.

use btfs::page::format::{page_lsn, verify_seal};
use btfs::page::superblock::{DoublewriteHeader, Superblock};
use btfs::page::{PAGE_SIZE, PageId};
use btfs::{Lsn, page::format::HEADER_SIZE};

use crate::Report;
use crate::fields;
use crate::hex::{Annotated, number};
use crate::image::Image;

/// A half whose header is whole.
struct Half {
    at: u64,
    header: DoublewriteHeader,
}

fn half(image: &Image, s: &Superblock, half: usize) -> Result<Option<Half>, String> {
    let at = s.doublewrite_offset(half);
    let id = PageId(at / PAGE_SIZE as u64);
    let page = image.page(id)?;
    let header = DoublewriteHeader::decode(&page, id, s.image());
    Ok(header.filter(|h| h.pages.len() <= s.doublewrite_pages as usize).map(|header| Half { at, header }))
}

/// The greatest floor that a doublewrite header states.
pub fn floor(image: &Image, s: &Superblock) -> Lsn {
    let halves = (0..2).filter_map(|i| half(image, s, i).ok().flatten());
    halves.map(|h| h.header.floor).max().unwrap_or_default()
}

/// What recovery would make of one copy.
fn verdict(image: &Image, s: &Superblock, at: u64, id: PageId, lsn: Lsn) -> String {
    if !s.is_data_page(id) && !s.is_bitmap_page(id) {
        return "ignored: the image has no such page".into();
    }
    let copy = match image.page(PageId(at / PAGE_SIZE as u64)) {
        Ok(copy) => copy,
        Err(error) => return format!("copy {error}"),
    };
    if let Err(reason) = verify_seal(&copy, id, s.image()) {
        return format!("copy not usable: {reason}");
    }
    if page_lsn(&copy) != lsn {
        return format!("copy not usable: its LSN is {}", page_lsn(&copy).0);
    }
    let home = match image.page(id) {
        Ok(home) => verify_seal(&home, id, s.image()).err(),
        Err(_) => Some("it cannot be read"),
    };
    let bounded = lsn > s.checkpoint;
    match home {
        None => "copy whole, page whole".into(),
        Some(reason) if bounded => format!("copy whole, page damaged ({reason}): recovery restores it"),
        Some(reason) => format!("copy whole but older than the checkpoint, page damaged ({reason})"),
    }
}

fn print_copies(image: &Image, s: &Superblock, h: &Half, report: &mut Report) {
    for (i, &(id, lsn)) in h.header.pages.iter().enumerate() {
        let at = h.at + (i as u64 + 1) * PAGE_SIZE as u64;
        report.line(format!(
            "  {at:08x}  copy of page {} at {lsn}: {}",
            id.0,
            verdict(image, s, at, id, lsn)
        ));
    }
}

/// Both halves: header fields, and what each copy is good for.
pub fn print(image: &Image, report: &mut Report) {
    let Some(s) = &image.superblock else {
        return report.problem("without a superblock nobody knows where the doublewrite area lies");
    };
    for i in 0..2 {
        let at = s.doublewrite_offset(i);
        report.line(format!("doublewrite half {}, at {at}", ["A", "B"][i]));
        let whole = match half(image, s, i) {
            Ok(whole) => whole,
            Err(error) => {
                report.problem(format!("header page {error}"));
                continue;
            }
        };
        let Some(h) = whole else {
            report.line("  no whole header: never written, or torn; recovery ignores the half");
            report.line("");
            continue;
        };
        if let Ok(bytes) = image.read(at, PAGE_SIZE) {
            let mut to = Annotated::new(report, at, &bytes);
            fields::print(&mut to, &bytes, &fields::PAGE);
            fields::print(&mut to, &bytes, &[fields::IMAGE]);
            fields::print(&mut to, &bytes, &fields::DOUBLEWRITE);
            debug_assert_eq!(to.at(), HEADER_SIZE);
            for _ in &h.header.pages {
                let (page, lsn) = (number(&bytes, to.at(), 8), number(&bytes, to.at() + 8, 8));
                to.field(16, format!("page {page}, LSN {lsn}"));
            }
            to.skip_to(PAGE_SIZE, "unused");
        }
        print_copies(image, s, &h, report);
        report.line("");
    }
}

/// One line.
pub fn summarize(image: &Image, report: &mut Report) {
    let Some(s) = &image.superblock else { return };
    let halves: Vec<String> = (0..2)
        .map(|i| match half(image, s, i) {
            Ok(Some(h)) => format!("batch {} of {} pages", h.header.sequence, h.header.pages.len()),
            Ok(None) => "nothing".into(),
            Err(error) => error,
        })
        .collect();
    report.line(format!("doublewrite   A: {}; B: {}", halves[0], halves[1]));
}
