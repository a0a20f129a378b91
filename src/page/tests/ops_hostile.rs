//! Damaged and forged log records: refused, or the page is valid afterwards.

use super::super::format::*;
use super::super::ids::PageId;
use super::super::node::Node;
use super::super::op::*;
use super::hostile::exercise;
use super::ops::{Owned, body, check_any};
use super::support::*;

const ID: PageId = PageId(77);

fn packed(page: &PageBytes) -> Vec<u8> {
    let mut out = vec![];
    Node(page).pack(&mut out);
    out
}

/// Pages of every type, and operations that are right for them.
struct Stock {
    fences: Fences,
    leaf: Page,
    inner: Page,
    bitmap: Page,
    neighbour: Page,
}

impl Stock {
    fn new(rng: &mut Rng) -> Stock {
        let kinds = Fences::kinds();
        let fences = kinds[rng.below(kinds.len())].clone();
        let fill = rng.pick(&[300, 4000, PAGE_SIZE]);
        let mut bitmap = raw_page();
        apply(&mut bitmap, ID, IMAGE, &Op::InitBitmap { used: 4, end: 9000 }).unwrap();
        let right = Fences { low: fences.high.clone().unwrap_or(b"n".to_vec()), high: None };
        Stock {
            leaf: random_page(&fences, 0, fill, rng),
            inner: random_page(&fences, 1, fill, rng),
            neighbour: random_page(&right, 0, 3000, rng),
            fences,
            bitmap,
        }
    }

    fn page(&self, rng: &mut Rng) -> Page {
        let page = [&self.leaf, &self.leaf, &self.inner, &self.bitmap][rng.below(4)];
        page.clone()
    }

    /// An operation that could come from the engine, for one of the pages.
    fn op(&self, rng: &mut Rng) -> Owned {
        let key = self.fences.key(rng.pick(&ALL_KEYS), rng.below(100), rng);
        let len = rng.pick(&[0, 8, 8, 100, RECORD_MAX - key.len()]);
        let (start, blocks) = (rng.range(4, 9100) as u32, rng.range(1, 300) as u32);
        match rng.below(10) {
            0 | 1 => Owned::Put(key, vec![0xff; len]),
            2 => Owned::Delete(if rng.once_in(4) { self.fences.low.clone() } else { key }),
            3 => Owned::Truncate(key, PageId(rng.pick(&[0, 5]))),
            4 => Owned::Absorb(packed(&self.neighbour)),
            5 => Owned::Image(packed(rng.pick(&[&self.leaf, &self.inner]))),
            6 => {
                if rng.once_in(2) {
                    Owned::SplitDone
                } else {
                    Owned::Kill
                }
            }
            7 => Owned::Allocate(start, blocks, rng.once_in(2)),
            8 => Owned::Free(start, blocks),
            _ => Owned::InitBitmap(start, start + blocks),
        }
    }
}

/// What is left of a page after an operation that was not refused can be used.
fn check_after(page: &PageBytes, rng: &mut Rng) {
    check_any(page);
    if page_type(page) == TYPE_TREE && rng.once_in(4) {
        exercise(page, rng);
    }
}

/// Applies a body as redo does: `Err` at the first thing that is wrong.
fn redo(body: &[u8], page: &mut PageBytes, rng: &mut Rng) -> Result<(), &'static str> {
    for section in sections(body) {
        for op in section?.1 {
            apply(page, ID, IMAGE, &op?)?;
            check_after(page, rng);
        }
    }
    Ok(())
}

#[test]
fn record_that_is_cut_off_anywhere_is_noticed() {
    seeds(12, |rng| {
        let stock = Stock::new(rng);
        let parts: Vec<_> =
            (0..4).map(|_| (ID, (0..rng.below(4)).map(|_| stock.op(rng)).collect())).collect();
        let mut ends = vec![0];
        for n in 1..=parts.len() {
            ends.push(body(&parts[..n]).len());
        }
        let whole = body(&parts);
        for cut in 0..=whole.len() {
            let mut read = sections(&whole[..cut]);
            let complete = read.by_ref().take_while(Result::is_ok).count();
            assert!(read.next().is_none(), "reading goes on behind an error");
            // The frame of the record tells its length; inside, only a cut between two sections goes unnoticed.
            let last = ends.partition_point(|end| *end <= cut) - 1;
            assert_eq!(complete, last);
            assert_eq!(sections(&whole[..cut]).all(|section| section.is_ok()), ends[last] == cut);
        }
        // The same inside of a section.
        for (_, ops) in &parts {
            let whole = body(&[(ID, ops.clone())]);
            for cut in SECTION_HEAD..whole.len() {
                let mut short = whole[..cut].to_vec();
                end_section(&mut short, SECTION_HEAD);
                let (_, read) = sections(&short).next().unwrap().unwrap();
                let read: Vec<_> = read.collect();
                let good = read.iter().take_while(|op| op.is_ok()).count();
                assert!(good + 1 >= read.len(), "reading goes on behind an error");
                assert!(read[..good].iter().zip(ops).all(|(found, op)| *found == Ok(op.op())));
                assert!(good < ops.len());
            }
        }
    });
}

#[test]
fn damaged_record_is_refused_or_leaves_a_valid_page() {
    let (mut done, mut refused) = (0, 0);
    seeds(250, |rng| {
        let stock = Stock::new(rng);
        for _ in 0..40 {
            let mut page = stock.page(rng);
            let mut bytes = body(&[(ID, (0..rng.range(1, 4)).map(|_| stock.op(rng)).collect())]);
            for _ in 0..rng.below(4) {
                let end = if rng.once_in(2) { bytes.len() } else { bytes.len().min(100) };
                let at = rng.below(end);
                bytes[at] = if rng.once_in(2) { rng.next() as u8 } else { bytes[at] ^ 1 << rng.below(8) };
            }
            match redo(&bytes, &mut page, rng) {
                Ok(()) => done += 1,
                Err(_) => refused += 1,
            }
        }
    });
    assert!(one_seed_only() || (done > 500 && refused > 500), "{done} done, {refused} refused");
}

#[test]
fn operations_that_no_engine_would_log_are_refused_or_leave_a_valid_page() {
    let (mut done, mut refused) = (0, 0);
    seeds(250, |rng| {
        let stock = Stock::new(rng);
        for _ in 0..40 {
            let mut page = stock.page(rng);
            for _ in 0..4 {
                let op = if rng.once_in(2) { Owned::random(rng) } else { stock.op(rng) };
                if apply(&mut page, ID, IMAGE, &op.op()).is_err() {
                    refused += 1;
                    break;
                }
                check_after(&page, rng);
                done += 1;
            }
        }
    });
    assert!(one_seed_only() || (done > 500 && refused > 500), "{done} done, {refused} refused");
}

#[test]
fn noise_is_no_record() {
    seeds(3000, |rng| {
        let len = rng.below(60);
        let mut bytes = rng.bytes(len);
        if rng.once_in(2) && len > SECTION_HEAD {
            end_section(&mut bytes, SECTION_HEAD);
            bytes[SECTION_HEAD] = rng.below(13) as u8;
        }
        let mut page = Fences::kinds()[0].empty_leaf();
        let _ = redo(&bytes, &mut page, rng);
    });
}
