//! One page, byte by byte.

use btfs::PageId;
use btfs::page::bitmap::Bitmap;
use btfs::page::format::*;
use btfs::page::node::Node;
use btfs::page::superblock::Superblock;

use crate::Report;
use crate::fields;
use crate::hex::{Annotated, number, text};
use crate::image::Image;

/// Offsets in a tree page's header.
const SLOTS: usize = 40;
const HEAP: usize = 42;
const PREFIX: usize = 46;
const LOW: usize = 48;
const HIGH: usize = 50;
const NO_HIGH_KEY: u64 = 65535;
/// Runs of blocks that are printed, at the most.
const RUNS_MAX: usize = 1000;

/// Why a page of the data area is not what it should be; `None` if it is.
pub fn check(s: &Superblock, id: PageId, page: &PageBytes) -> Option<&'static str> {
    if let Err(reason) = verify_seal(page, id, s.image()) {
        return Some(reason);
    }
    match page_type(page) {
        TYPE_TREE if s.is_data_page(id) => Node(page).validate().err(),
        TYPE_BITMAP if s.is_bitmap_page(id) => Bitmap(page).validate().err(),
        _ => Some("a page of this type does not belong here"),
    }
}

/// A page of the data area.
pub fn print(image: &Image, number: u64, report: &mut Report) {
    let Some(s) = &image.superblock else {
        return report.problem("without a superblock nobody knows where pages lie");
    };
    let id = PageId(number);
    let page = match image.page(id) {
        Ok(page) => page,
        Err(error) => return report.problem(format!("{id} {error}")),
    };
    report.line(format!("page {number}, at {}", id.offset()));
    if !s.is_data_page(id) && !s.is_bitmap_page(id) {
        return report.problem("it does not lie in a group");
    }
    let problem = check(s, id, &page);
    let mut to = Annotated::new(report, id.offset(), &page[..]);
    fields::print(&mut to, &page[..], &fields::PAGE);
    fields::print(&mut to, &page[..], &[fields::IMAGE]);
    match page_type(&page) {
        TYPE_TREE => print_tree(&mut to, &page, problem.is_none()),
        TYPE_BITMAP => print_bits(&mut to, &page),
        _ => to.skip_to(PAGE_SIZE, "of unknown type"),
    }
    match problem {
        Some(reason) => report.problem(format!("{id}: {reason}")),
        None => report.line("  valid"),
    }
    report.line("");
}

fn print_tree(to: &mut Annotated<'_>, page: &PageBytes, valid: bool) {
    fields::print(to, &page[..], &fields::TREE);
    let field = |at| number(&page[..], at, 2);
    let low = field(LOW) as usize;
    let high = match field(HIGH) {
        NO_HIGH_KEY => 0,
        len => len as usize,
    };
    to.field(low, format!("low fence: {}", text(slice(page, HEADER_SIZE, low))));
    to.field(high, format!("high key: {}", text(slice(page, HEADER_SIZE + low, high))));
    let slots = (HEADER_SIZE + low + high).next_multiple_of(SLOT_SIZE);
    to.skip_to(slots, "padding");
    if !valid {
        return to.skip_to(PAGE_SIZE, "slots and records of a page that is not valid");
    }
    let mut records = Vec::new();
    for i in 0..field(SLOTS) as usize {
        let slot = slots + i * SLOT_SIZE;
        let (head, at) = (number(&page[..], slot, 4), number(&page[..], slot + 4, 2) as usize);
        let len = number(&page[..], slot + 6, 2) as usize;
        to.field(SLOT_SIZE, format!("slot {i}: head {head:08x}, record at {at}, {len} bytes of key"));
        records.push((at, i, len));
    }
    to.skip_to(field(HEAP) as usize, "free");
    records.sort_unstable();
    let prefix = field(PREFIX) as usize;
    for (at, i, len) in records {
        to.skip_to(at, "garbage");
        let value = number(&page[..], at, 2) as usize;
        to.field(2, format!("record {i}: its value has {value} bytes"));
        let suffix = slice(page, at + 2, len);
        let rest = if prefix > 0 { " behind the prefix" } else { "" };
        to.field(len, format!("  key{rest}: {}", text(suffix)));
        let bytes = slice(page, at + 2 + len, value);
        match Node(page).level() {
            0 => to.field(value, format!("  value: {}", text(bytes))),
            _ => to.field(value, format!("  child: page {}", number(bytes, 0, 8))),
        }
    }
    to.skip_to(PAGE_SIZE, "garbage");
}

fn slice(page: &PageBytes, at: usize, len: usize) -> &[u8] {
    page.get(at..at.saturating_add(len)).unwrap_or(&[])
}

fn print_bits(to: &mut Annotated<'_>, page: &PageBytes) {
    fields::print(to, &page[..], &[(32, "zero", fields::Kind::Zero)]);
    let bitmap = Bitmap(page);
    let chunks = runs(CHUNKS_PER_GROUP, |c| bitmap.holds_pages(c));
    to.field(CHUNKS_PER_GROUP.div_ceil(8) as usize, format!("chunks of tree pages: {}", join(&chunks)));
    to.skip_to(BITMAP_BACKUP, "zero");
    // The superblock's fields in front of the checkpoint.
    fields::print(to, &page[..], &fields::SUPERBLOCK[..18]);
    to.skip_to(BITMAP_BITS, "zero");
    let used = runs(BLOCKS_PER_GROUP, |b| bitmap.in_use(b));
    let rest = PAGE_SIZE - BITMAP_BITS;
    // In a fresh group nearly all is zero; a row of each kind says enough.
    let shown = page[BITMAP_BITS..].iter().rposition(|b| *b != 0 && *b != 0xff).map_or(0, |i| i + 1);
    let shown = shown.next_multiple_of(8).min(64);
    to.field(shown, format!("blocks in use: {}", join(&used)));
    to.field(rest - shown, "the other bits");
}

/// The runs of numbers below `end` that are in a set.
fn runs(end: u32, contains: impl Fn(u32) -> bool) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for i in (0..end).filter(|i| contains(*i)) {
        match runs.last_mut() {
            Some((start, len)) if *start + *len == i => *len += 1,
            _ => runs.push((i, 1)),
        }
    }
    runs
}

fn join(runs: &[(u32, u32)]) -> String {
    const SHOWN: usize = 6;
    if runs.is_empty() {
        return "none".into();
    }
    let mut all: Vec<String> = runs.iter().take(SHOWN).map(|(start, len)| format!("{start}+{len}")).collect();
    if runs.len() > SHOWN {
        all.push(format!("… {} runs in all", runs.len()));
    }
    all.join(", ")
}

/// A group's bitmap as runs of blocks.
pub fn print_bitmap(image: &Image, group: u32, report: &mut Report) {
    let Some(s) = &image.superblock else {
        return report.problem("without a superblock nobody knows where bitmaps lie");
    };
    if group >= s.group_count() {
        return report.problem(format!("the image has {} groups", s.group_count()));
    }
    let id = s.bitmap_page(group);
    report.line(format!("group {group}: bitmap on page {}, {} blocks", id.0, s.group_blocks(group)));
    if group >= s.groups {
        report.line("  at the checkpoint the group had no bitmap page yet");
    }
    let page = match image.page(id) {
        Ok(page) => page,
        Err(error) => return report.problem(format!("{id} {error}")),
    };
    if let Some(reason) = check(s, id, &page) {
        return report.problem(format!("{id}: {reason}"));
    }
    let bitmap = Bitmap(&page);
    let used = (0..s.group_blocks(group)).filter(|b| bitmap.in_use(*b)).count();
    report.line(format!("  {used} blocks in use, LSN {}", page_lsn(&page).0));
    let chunks = runs(CHUNKS_PER_GROUP, |c| bitmap.holds_pages(c));
    report.line(format!("  chunks of tree pages: {}", join(&chunks)));
    let blocks = runs(s.group_blocks(group), |b| bitmap.in_use(b));
    for (start, len) in blocks.iter().take(RUNS_MAX) {
        let first = id.block().0 + *start as u64;
        report.line(format!("  in use: blocks {start}+{len} of the group, {first}+{len} of the image"));
    }
    if blocks.len() > RUNS_MAX {
        report.line(format!("  … {} runs in all", blocks.len()));
    }
}
