//! Making the images that are damaged.

use std::sync::{Arc, Mutex};

use btfs::PageId;
use btfs::fs::format::{Orphan, orphan_key};
use btfs::fs::{Caller, Fallocate, Fs, Ino, Kind, New, ROOT, SetAttributes, SetXattr, Time};
use btfs::page::bitmap::BitmapMut;
use btfs::page::format::{PAGE_SIZE, PageBytes, page_lsn, seal, set_page_lsn};
use btfs::page::node::{Node, NodeBuilder, NodeSpec};
use btfs::page::superblock::{DOUBLEWRITE_PAGES_MIN, LOG_OFFSET, LOG_SIZE_MIN};
use btfs::storage::{FaultStorage, Image, MemStorage, OpKind, Rng, Storage};
use btfs::tree::{Batch, FormatOptions, Options, Tree};

/// Who does everything here.
pub const ME: Caller = Caller::new(1000, 1000, Time { seconds: 1_700_000_000, nanos: 5 });

/// How images are opened: without threads, so that a case always does the same, and with a cache that is small enough not to come in
/// huge pages, which take long to be cleared.
pub fn options() -> Options {
    Options { cache_size: 4000 << 10, background: false, ..Options::default() }
}

/// The images with their names. What they hold follows from this file alone.
pub fn images() -> Vec<(&'static str, Image)> {
    vec![
        ("closed", closed()),
        ("crashed", crashed()),
        ("flushing", flushing()),
        ("tall", tall()),
        ("full", full()),
        ("groups", groups()),
    ]
}

/// An ACL that names a user, as the kernel encodes it.
pub fn acl() -> Vec<u8> {
    let none = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, none), (2, 6, 77), (4, 5, none), (16, 7, none), (32, 4, none)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// Bytes that do not repeat.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

fn begin(size: u64) -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(size));
    let options = FormatOptions {
        size,
        log_size: Some(LOG_SIZE_MIN),
        doublewrite_pages: Some(DOUBLEWRITE_PAGES_MIN),
        label: "fuzz".into(),
        uuid: *b"0123456789abcdef",
        hash_seed: *b"fedcba9876543210",
    };
    Fs::format(storage.clone(), &options, &ME).expect("an image in memory");
    storage
}

fn open(storage: Arc<dyn Storage>) -> Fs {
    Fs::open(storage, &options()).expect("an image just made")
}

fn create(fs: &Fs, parent: Ino, name: &str, new: New<'_>) -> Ino {
    let ino = fs.create(parent, name.as_bytes(), new, 0o755, 0, &ME).expect("a new name").ino;
    fs.release(ino, 1).expect("a reference");
    ino
}

fn write(fs: &Fs, ino: Ino, offset: u64, seed: u64, len: usize) {
    fs.write(ino, offset, &noise(seed, len), &ME).expect("there is space");
}

/// Something of every kind.
fn contents(fs: &Fs) {
    let dir = create(fs, ROOT, "dir", New::Directory);
    let inner = create(fs, dir, "inner", New::Directory);
    create(fs, inner, "empty", New::Directory);
    create(fs, inner, "link", New::Symlink(b"../to somewhere"));
    create(fs, inner, "long link", New::Symlink(&[b't'; 2500]));
    create(fs, inner, "pipe", New::Special(Kind::Fifo, 0));
    create(fs, dir, "null", New::Special(Kind::CharDevice, 0x103));
    let small = create(fs, dir, "small", New::File);
    write(fs, small, 0, 1, 700);
    let large = create(fs, dir, "large", New::File);
    write(fs, large, 0, 2, 21_000);
    let set = |ino, name: &[u8], value: &[u8]| {
        fs.set_xattr(ino, name, value, SetXattr::Any, &ME).expect("an attribute");
    };
    set(large, b"user.small", b"value");
    set(large, b"user.large", &noise(3, 5000));
    set(small, b"system.posix_acl_access", &acl());
    set(small, b"security.capability", &[1; 20]);
    set(dir, b"system.posix_acl_default", &acl());
    create(fs, dir, "heir", New::Directory);
    fs.link(large, ROOT, b"second name", &ME).expect("a link");
    fs.release(large, 1).expect("a reference");
    let copy = create(fs, ROOT, "copy", New::File);
    fs.copy_range(large, 0, copy, 0, 16_384, &ME).expect("a copy");
    fs.copy_range(large, 4096, copy, 40_960, 8192, &ME).expect("a copy");
    let sparse = create(fs, ROOT, "sparse", New::File);
    write(fs, sparse, 500_000, 4, 5000);
    write(fs, sparse, 1 << 40, 5, 100);
    let allocated = create(fs, ROOT, "allocated", New::File);
    fs.fallocate(allocated, 0, 100_000, Fallocate::Allocate, &ME).expect("space");
    write(fs, allocated, 20_480, 6, 4096);
    let pieces = create(fs, ROOT, "pieces", New::File);
    (0..30).for_each(|i| write(fs, pieces, i * 8192, 100 + i, 4096));
    fs.sync().expect("a sync");
}

/// Changes to what [`contents`] made.
fn changes(fs: &Fs) {
    let dir = fs.lookup(ROOT, b"dir").expect("a name");
    let (small, large) = (fs.lookup(dir, b"small"), fs.lookup(dir, b"large"));
    write(fs, small.expect("a name"), 100, 7, 300);
    write(fs, large.expect("a name"), 9000, 8, 3000);
    fs.rename(ROOT, b"copy", dir, b"moved", btfs::fs::RenameMode::Replace, &ME).expect("a rename");
    for n in 0..6 {
        let file = create(fs, dir, &format!("logged {n}"), New::File);
        write(fs, file, 0, 10 + n, 900 * n as usize);
        if n % 2 == 1 {
            fs.sync().expect("a sync");
        }
    }
    fs.unlink(ROOT, b"sparse", &ME).expect("an unlink");
    fs.sync().expect("a sync");
}

/// Closed in order.
fn closed() -> Image {
    let storage = begin(8 << 20);
    let fs = open(storage.clone());
    contents(&fs);
    changes(&fs);
    fs.close().expect("closing");
    storage.image()
}

/// Left with a log, an inode without a name, and a cut that is not finished.
fn crashed() -> Image {
    let storage = begin(8 << 20);
    let fs = open(storage.clone());
    contents(&fs);
    let pieces = fs.lookup_attributes(ROOT, b"pieces").expect("a name").ino;
    fs.unlink(ROOT, b"pieces", &ME).expect("an unlink");
    fs.tree().checkpoint().expect("a checkpoint");
    changes(&fs);
    let cut = fs.lookup_attributes(ROOT, b"allocated").expect("a name").ino;
    let size = SetAttributes { size: Some(50_000), ..SetAttributes::default() };
    fs.set_attributes(cut, &size, &ME).expect("a cut");
    let mut batch = Batch::new();
    batch.put(&orphan_key(cut), &Orphan::Truncated { size: 50_000 }.encode());
    fs.tree().apply(&batch).expect("a record");
    fs.sync().expect("a sync");
    let image = storage.image();
    drop(fs);
    assert!(pieces.0 > 1);
    image
}

/// Left in the middle of a checkpoint: pages are home, one of them is torn, and their copies count.
fn flushing() -> Image {
    let below = begin(8 << 20);
    let fs = open(below.clone());
    contents(&fs);
    fs.close().expect("closing");
    // The image as it was before the last write of a superblock.
    let before = Arc::new(Mutex::new(None));
    let (noted, watched) = (before.clone(), below.clone());
    let observer = move |kind, offset, _| {
        if matches!(kind, OpKind::Write | OpKind::WriteDurable) && offset < LOG_OFFSET {
            *noted.lock().expect("no other thread") = Some(watched.image());
        }
    };
    let fs = open(Arc::new(FaultStorage::observed(below, observer)));
    changes(&fs);
    fs.tree().checkpoint().expect("a checkpoint");
    let image = before.lock().expect("no other thread").take().expect("a checkpoint writes one");
    drop(fs);
    let storage = MemStorage::from_image(image);
    let s = btfs::pool::read_superblock(&storage).expect("a superblock");
    for half in 0..2 {
        let mut header = [0; PAGE_SIZE];
        let at = s.doublewrite_offset(half);
        storage.read_at(at, &mut header).expect("a page");
        let first = PageId(crate::input::get(&header, 64, 8));
        if s.is_data_page(first) && crate::input::get(&header, 72, 8) > s.checkpoint.0 {
            storage.write_at(first.offset() + 8192, &[0xaa; 8192]).expect("a page");
            break;
        }
    }
    storage.image()
}

/// A tree of three levels with few pages: what fills more than one leaf, below two pages that a root of one level more names.
fn tall() -> Image {
    let storage = begin(8 << 20);
    let fs = open(storage.clone());
    contents(&fs);
    for d in 0..3 {
        let dir = create(&fs, ROOT, &format!("many {d}"), New::Directory);
        for n in 0..120 {
            create(&fs, dir, &format!("a file with a name of some length {n}"), New::File);
        }
    }
    fs.close().expect("closing");
    raise(&*storage);
    storage.image()
}

fn raise(storage: &dyn Storage) {
    let s = btfs::pool::read_superblock(storage).expect("a superblock");
    let read = |id: PageId| {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        storage.read_at(id.offset(), &mut page[..]).expect("a page");
        page
    };
    let old = read(s.root);
    let node = Node(&old);
    assert!(node.level() == 1 && node.count() >= 4, "{} leaves", node.count());
    let mut map = read(s.bitmap_page(0));
    // The chunk of the tree's pages is the first; its last places are free.
    let ids = [PageId(s.bitmap_page(0).0 + 62), PageId(s.bitmap_page(0).0 + 63)];
    let blocks = [62 * 4, 63 * 4];
    for start in blocks {
        BitmapMut(&mut map).set(start, 4, true);
    }
    let middle = node.count() / 2;
    let key = node.key(middle);
    let save = |mut page: Box<PageBytes>, id: PageId| {
        set_page_lsn(&mut page, page_lsn(&old));
        seal(&mut page);
        storage.write_at(id.offset(), &page[..]).expect("a page");
    };
    let spec =
        |id, level, low, high, right| NodeSpec { id, image: s.image(), level, flags: 0, low, high, right };
    for (id, range, spec) in [
        (ids[0], 0..middle, spec(ids[0], 1, &[], Some(&key), ids[1])),
        (ids[1], middle..node.count(), spec(ids[1], 1, &key, None, PageId::NONE)),
    ] {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        let mut builder = NodeBuilder::new(&mut page, spec);
        range.for_each(|i| assert!(builder.push_from(node, i)));
        builder.finish();
        save(page, id);
    }
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let mut builder = NodeBuilder::new(&mut page, spec(s.root, 2, &[], None, PageId::NONE));
    assert!(builder.push(&[], &ids[0].0.to_be_bytes()) && builder.push(&key, &ids[1].0.to_be_bytes()));
    builder.finish();
    save(page, s.root);
    set_page_lsn(&mut map, page_lsn(&old));
    seal(&mut map);
    storage.write_at(s.bitmap_page(0).offset(), &map[..]).expect("a page");
}

/// The smallest image, with hardly a free block.
fn full() -> Image {
    let storage = begin(2 << 20);
    let fs = open(storage.clone());
    contents(&fs);
    let file = create(&fs, ROOT, "the rest", New::File);
    let mut at = 0;
    while fs.write(file, at, &noise(at, 8192), &ME).is_ok() {
        at += 8192;
    }
    fs.close().expect("closing");
    storage.image()
}

/// Two groups, the first of them full.
fn groups() -> Image {
    let storage = begin(520 << 20);
    let fs = open(storage.clone());
    let file = create(&fs, ROOT, "large", New::File);
    fs.fallocate(file, 0, 500 << 20, Fallocate::Allocate, &ME).expect("space");
    contents(&fs);
    fs.sync().expect("a sync");
    drop(fs);
    let tree = Tree::open(storage.clone(), &options()).expect("an image just made");
    assert_eq!(btfs::pool::read_superblock(&*storage).map(|s| s.groups).ok(), Some(2));
    tree.close().expect("closing");
    storage.image()
}
