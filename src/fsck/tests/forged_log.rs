//! Logs that somebody has forged: recovery refuses them, and a check goes on without what does not apply.

use super::ProblemKind as P;
use super::pages::superblock;
use super::support::*;
use super::*;
use crate::fs::{Fs, FsError, New, ROOT};
use crate::page::bitmap::Bitmap;
use crate::page::format::*;
use crate::page::node::{Node, NodeBuilder, NodeSpec};
use crate::page::op::{self, Op};
use crate::page::superblock::LOG_OFFSET;
use crate::page::{PAGE_SIZE, PageBytes, PageId};
use crate::storage::overlay::SPARE;
use crate::storage::{MemStorage, OverlayStorage};
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

/// One section with these operations.
fn section(page: PageId, ops: &[Op<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    let begun = op::begin_section(&mut body, page);
    ops.iter().for_each(|op| op.encode(&mut body));
    op::end_section(&mut body, begun);
    body
}

/// Appends a record to the log.
fn append(storage: &Arc<MemStorage>, body: &[u8]) {
    let superblock = superblock(storage);
    let place = LogPlace::of(&superblock);
    let (from, incarnation) = (superblock.checkpoint, superblock.incarnation);
    let end =
        wal::scan(&**storage, place, from, incarnation, superblock.floor, |_, _, _| Ok(())).unwrap().end;
    let header =
        encode_header(hash_body(body), body.len(), end, (place.image, incarnation), Kind::Transaction);
    let at = end.0 % superblock.log_size;
    assert!(at + (RECORD_HEADER_SIZE + body.len()) as u64 <= superblock.log_size);
    storage.write_at(LOG_OFFSET + at, &[&header[..], body].concat()).unwrap();
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
        append(&storage, &section(id, &ops));
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

/// Each birth takes 16 KiB of memory, and less than 100 bytes of the log. It must not be taken for damage that memory is short.
#[test]
fn a_log_that_makes_more_pages_than_fit_into_memory_is_no_damage() {
    const MEMORY: u64 = 6 << 20;
    let healthy = crashed();
    let superblock = superblock(&healthy);
    let mut births = Vec::new();
    for n in 0..600 {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let id = PageId((SIZE / PAGE_SIZE as u64) - 1 - n);
        let image = superblock.image();
        let spec = NodeSpec { id, image, level: 0, flags: 0, low: &[], high: None, right: PageId::NONE };
        NodeBuilder::new(&mut page, spec).finish();
        let mut packed = Vec::new();
        Node(&page).pack(&mut packed);
        births.extend(section(id, &[Op::Image(&packed)]));
    }
    assert!(births.len() < 600 * 100);
    let whole = Arc::new(MemStorage::from_image(healthy.image()));
    append(&whole, &births);
    // Recovery refuses this one, so that it is replayed as far as it goes.
    let refused = Arc::new(MemStorage::from_image(healthy.image()));
    append(&refused, &section(superblock.root, &[Op::InitBitmap { used: 100, end: 1000 }]));
    append(&refused, &births);
    let lost = Arc::new(MemStorage::from_image(whole.image()));
    lost.write_at(0, &[0; LOG_OFFSET as usize]).unwrap();
    for (about, storage, found) in [
        ("whole", whole.clone(), None),
        ("refused", refused, Some(P::Log)),
        ("lost", lost, Some(P::SuperblocksLost)),
    ] {
        let below: Arc<dyn Storage> = storage.clone();
        let open = |memory| {
            SPARE.set(Some(memory));
            let mut findings = Findings::default();
            let opened = Image::open(&below, None, &mut findings, &Options::default()).map(drop);
            (opened, findings.counts.into_keys().collect::<Vec<P>>())
        };
        let FsckError::Engine(error) = open(MEMORY).0.expect_err(about) else { panic!("{about}") };
        assert!(error.is_out_of_memory(), "{about}: {error}");
        let said = error.to_string();
        assert!(
            said.contains("needs more than 6 MiB of memory; opening the image for writing needs none"),
            "{said}"
        );
        let (opened, problems) = open(MEMORY * 3);
        opened.expect(about);
        assert_eq!(problems, Vec::from_iter(found), "{about}");
    }
    // What repairs may write, and looks again then.
    SPARE.set(Some(MEMORY));
    let copy = Arc::new(MemStorage::from_image(whole.image()));
    let looking = check(copy.clone(), &Options::default()).map(drop);
    let FsckError::Engine(error) = looking.unwrap_err() else { panic!() };
    assert!(error.is_out_of_memory(), "{error}");
    for repair in [Repair::Safe, Repair::All] {
        let copy = Arc::new(MemStorage::from_image(whole.image()));
        let report = check(copy.clone(), &Options { repair, ..Options::default() }).unwrap();
        assert!(report.is_clean() && report.checked && report.replay_written, "{report}");
        assert!(report.replay.is_some_and(|replay| replay.records > 0));
        assert!(check(copy, &Options::default()).unwrap().is_clean(), "nothing is left to replay");
    }
    SPARE.set(None);
    // Opening for reading only.
    let overlay = OverlayStorage::new(whole.clone(), MEMORY).unwrap();
    let refused = Fs::open(Arc::new(overlay), &options()).map(drop).unwrap_err();
    assert!(matches!(&refused, FsError::Engine(e) if e.is_out_of_memory()), "{refused}");
    let overlay = OverlayStorage::new(whole.clone(), MEMORY * 3).unwrap();
    Fs::open(Arc::new(overlay), &options()).unwrap();
    Fs::open(whole, &options()).unwrap();
}
