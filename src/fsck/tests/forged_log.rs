//! Logs that somebody has forged: recovery refuses them, and a check goes on without what does not apply.

use super::ProblemKind as P;
use super::pages::superblock;
use super::support::*;
use super::*;
use crate::fs::{Fs, New, ROOT};
use crate::page::bitmap::Bitmap;
use crate::page::format::*;
use crate::page::node::Node;
use crate::page::op::{self, Op};
use crate::page::superblock::LOG_OFFSET;
use crate::page::{PAGE_SIZE, PageBytes, PageId};
use crate::storage::MemStorage;
use crate::wal::format::{Kind, RECORD_HEADER_SIZE, encode_header, hash_body};
use crate::wal::{self, Place as LogPlace};

const SIZE: u64 = 24 << 20;

/// An image with one file that was not closed; its checkpoint is behind everything.
fn crashed() -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(SIZE));
    Fs::format(storage.clone(), &format_options(SIZE), &ME).unwrap();
    let fs = Fs::open(storage.clone(), &options()).unwrap();
    let file = fs.create(ROOT, b"file", New::File, 0o644, 0, &ME).unwrap().ino;
    fs.write(file, 0, &[7; 30_000], &ME).unwrap();
    fs.tree().checkpoint().unwrap();
    drop(fs);
    storage
}

/// Appends a record to the log: one section with these operations.
fn append(storage: &Arc<MemStorage>, page: PageId, ops: &[Op<'_>]) {
    let superblock = superblock(storage);
    let place = LogPlace { offset: LOG_OFFSET, size: superblock.log_size };
    let (from, incarnation) = (superblock.checkpoint, superblock.incarnation);
    let end =
        wal::scan(&**storage, place, from, incarnation, superblock.floor, |_, _, _| Ok(())).unwrap().end;
    let mut body = Vec::new();
    let begun = op::begin_section(&mut body, page);
    ops.iter().for_each(|op| op.encode(&mut body));
    op::end_section(&mut body, begun);
    let header = encode_header(hash_body(&body), body.len(), end, incarnation, Kind::Transaction);
    let at = end.0 % superblock.log_size;
    assert!(at + (RECORD_HEADER_SIZE + body.len()) as u64 <= superblock.log_size);
    storage.write_at(LOG_OFFSET + at, &[&header[..], &body].concat()).unwrap();
}

fn page(storage: &MemStorage, id: PageId) -> Box<PageBytes> {
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    storage.read_at(id.offset(), &mut page[..]).unwrap();
    page
}

/// The page would be taken for a bitmap, although it is none, or for a page of the tree.
#[test]
fn a_record_does_not_make_a_page_of_another_type_wherever_it_says_so() {
    let storage = crashed();
    let superblock = superblock(&storage);
    let (bitmap, root) = (superblock.bitmap_page(0), superblock.root);
    let mut image = Vec::new();
    let mut forged = page(&storage, root);
    put_u64(&mut forged[..], OFF_PAGE, bitmap.0);
    Node(&forged).pack(&mut image);
    let held = page(&storage, bitmap);
    let find = |used| (BLOCKS_PER_PAGE * 2..).find(|i| Bitmap(&held).in_use(*i) == used).unwrap();
    let (used, free) = (find(true), find(false));
    let init = Op::InitBitmap { used: 100, end: 1000 };
    for (id, ops) in [
        (bitmap, vec![Op::Image(&image)]),
        (bitmap, vec![Op::Free { start: used, len: 1 }, Op::Image(&image)]),
        (bitmap, vec![Op::Allocate { start: free, len: 1, pages: false }, Op::Image(&image)]),
        (bitmap, vec![init, Op::Image(&image)]),
        (root, vec![init]),
        (root, vec![Op::SplitDone, init]),
    ] {
        let storage = Arc::new(MemStorage::from_image(storage.image()));
        append(&storage, id, &ops);
        let opened = Fs::open(storage.clone(), &options()).map(drop);
        assert!(
            opened.as_ref().is_err_and(|e| e.to_string().contains("does not belong there")),
            "{opened:?}"
        );
        let report = look_at(&storage);
        let found: Vec<P> = report.counts.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(found, [P::Log], "{id}: {report}");
    }
}
