//! Damaging an image as a case says, and setting its checksums right again.

use std::collections::BTreeMap;
use std::sync::Arc;

use btfs::Lsn;
use btfs::page::bitmap::BitmapMut;
use btfs::page::format::{PAGE_SIZE, PageBytes, seal};
use btfs::page::superblock::{LOG_OFFSET, SUPERBLOCK_SIZE};
use btfs::storage::{MemStorage, Storage};
use btfs::wal::format::{Kind, RECORD_HEADER_SIZE, hash_body, header_check};

use crate::base::Base;
use crate::forge;
use crate::input::{Input, get, put};

/// The most changes of one case.
const CHANGES_MAX: usize = 40;
/// Offset and width of the fields of a superblock.
const SUPERBLOCK_FIELDS: [(usize, usize); 23] = [
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 8),
    (56, 8),
    (72, 8),
    (136, 8),
    (144, 8),
    (152, 8),
    (160, 8),
    (168, 8),
    (176, 4),
    (180, 4),
    (184, 8),
    (192, 8),
    (200, 8),
    (208, 8),
    (216, 4),
    (220, 1),
    (39, 1),
];
/// Of a tree page's header, and of a doublewrite half's.
const PAGE_FIELDS: [(usize, usize); 20] = [
    (4, 1),
    (5, 1),
    (6, 2),
    (8, 8),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 2),
    (42, 2),
    (44, 2),
    (46, 2),
    (48, 2),
    (50, 2),
    (52, 2),
    (32, 8),
    (40, 8),
    (48, 4),
    (64, 8),
    (72, 8),
    (80, 8),
];

/// An image that is being damaged.
pub struct Work<'a> {
    /// What it was.
    pub base: &'a Base,
    storage: Arc<MemStorage>,
    /// Pages that were changed, by their offset.
    pages: BTreeMap<u64, Box<PageBytes>>,
    superblocks: BTreeMap<u64, [u8; SUPERBLOCK_SIZE]>,
    /// Records of the log that were changed or are new, by their position.
    log: BTreeMap<u64, Vec<u8>>,
    /// Pages whose checksum is not set right.
    torn: Vec<u64>,
    log_end: Lsn,
    /// What was done, for people.
    pub story: Vec<String>,
}

/// Makes the image of a case: damaged as the bytes say, with right checksums.
pub fn damaged(base: &Base, input: &mut Input<'_>) -> (Arc<MemStorage>, Vec<String>) {
    let mut work = Work {
        base,
        storage: base.storage(),
        pages: BTreeMap::new(),
        superblocks: BTreeMap::new(),
        log: BTreeMap::new(),
        torn: Vec::new(),
        log_end: base.log_end,
        story: Vec::new(),
    };
    for _ in 0..CHANGES_MAX {
        if input.is_empty() {
            break;
        }
        work.change(input);
    }
    work.finish()
}

impl Work<'_> {
    fn change(&mut self, input: &mut Input<'_>) {
        let op = input.u8() % 24;
        match op {
            0 => self.superblock_bytes(input),
            1 => self.superblock_field(input),
            2 => self.page_bytes(input),
            3 => self.page_field(input),
            4 => self.page_body(input),
            5 => self.slot(input),
            6 => self.page_copy(input),
            7 => self.page_torn(input),
            8 => self.bitmap(input),
            9 => self.log_bytes(input),
            10 => self.log_field(input),
            11 | 12 => self.log_append(input),
            13 => self.data(input),
            14 => self.length(input),
            _ => forge::change(self, op - 15, input),
        }
    }

    /// Notes what is done.
    pub fn say(&mut self, what: impl FnOnce() -> String) {
        self.story.push(what());
    }

    // -- superblocks ------------------------------------------------------------------------------------------------

    fn superblocks(&mut self, input: &mut Input<'_>, mut change: impl FnMut(&mut [u8; SUPERBLOCK_SIZE])) {
        let which = input.u8() % 4;
        for i in (0..2).filter(|i| which >= 2 || which == *i) {
            let at = Base::superblock_at(i as usize);
            let storage = &self.storage;
            let bytes = self.superblocks.entry(at).or_insert_with(|| {
                let mut bytes = [0; SUPERBLOCK_SIZE];
                // Behind the end of a file that was cut there are zeros.
                let _ = storage.read_at(at, &mut bytes);
                bytes
            });
            change(bytes);
        }
    }

    fn superblock_bytes(&mut self, input: &mut Input<'_>) {
        let at = input.below(512);
        let n = input.u8() as usize % 9;
        let bytes = input.bytes(n);
        self.say(|| format!("superblock, at {at}: {bytes:02x?}"));
        self.superblocks(input, |s| {
            let n = bytes.len().min(512 - at);
            s[at..at + n].copy_from_slice(&bytes[..n]);
        });
    }

    fn superblock_field(&mut self, input: &mut Input<'_>) {
        let (at, width) = SUPERBLOCK_FIELDS[input.below(SUPERBLOCK_FIELDS.len())];
        let old = {
            let mut bytes = [0; SUPERBLOCK_SIZE];
            let _ = self.storage.read_at(Base::superblock_at(0), &mut bytes);
            get(&bytes, at, width)
        };
        let value = input.value(self.base, old);
        self.say(|| format!("superblock, field at {at}: {old:#x} -> {value:#x}"));
        self.superblocks(input, |s| put(s, at, width, value));
    }

    // -- pages ------------------------------------------------------------------------------------------------------

    /// A page, to be changed.
    pub fn page(&mut self, offset: u64) -> &mut PageBytes {
        let storage = &self.storage;
        self.pages.entry(offset).or_insert_with(|| {
            let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
            // Behind the end there are zeros.
            let _ = storage.read_at(offset, &mut page[..]);
            page
        })
    }

    fn some_page(&self, input: &mut Input<'_>) -> u64 {
        self.base.sealed[input.below(self.base.sealed.len())]
    }

    fn page_bytes(&mut self, input: &mut Input<'_>) {
        let offset = self.some_page(input);
        let at = 4 + input.u16() as usize % (PAGE_SIZE - 4);
        let n = input.u8() as usize % 17;
        let bytes = input.bytes(n);
        let n = bytes.len().min(PAGE_SIZE - at);
        self.page(offset)[at..at + n].copy_from_slice(&bytes[..n]);
        self.say(|| format!("page {}, at {at}: {bytes:02x?}", offset >> 14));
    }

    fn page_field(&mut self, input: &mut Input<'_>) {
        let offset = self.some_page(input);
        let (at, width) = PAGE_FIELDS[input.below(PAGE_FIELDS.len())];
        let old = get(self.page(offset), at, width);
        let value = input.value(self.base, old);
        put(self.page(offset), at, width, value);
        self.say(|| format!("page {}, field at {at}: {old:#x} -> {value:#x}", offset >> 14));
    }

    /// The bytes of a page as they come.
    fn page_body(&mut self, input: &mut Input<'_>) {
        let offset = self.some_page(input);
        let at = 4 + input.u16() as usize % (PAGE_SIZE - 4);
        let n = (input.u16() as usize).min(PAGE_SIZE - at);
        let bytes = input.bytes(n);
        self.page(offset)[at..at + bytes.len()].copy_from_slice(bytes);
        self.say(|| format!("page {}, at {at}: {} bytes", offset >> 14, bytes.len()));
    }

    /// A slot of a tree page: head, offset or length of the key; or the length of the value.
    fn slot(&mut self, input: &mut Input<'_>) {
        let offset = self.some_page(input);
        let (i, field) = (input.u8() as usize, input.u8() % 4);
        let page = self.page(offset);
        let fences = get(page, 48, 2) as usize + get(page, 50, 2) as usize % 65535;
        let count = (get(page, 40, 2) as usize).max(1);
        let slot = (64 + fences).next_multiple_of(8) + i % count * 8;
        let (at, width) = match field {
            0 => (slot, 4),
            1 => (slot + 4, 2),
            2 => (slot + 6, 2),
            _ => (get(page, slot + 4, 2) as usize, 2),
        };
        let old = get(page, at, width);
        let value = input.value(self.base, old);
        put(self.page(offset), at, width, value);
        self.say(|| format!("page {}, slot {i}, field {field}: {old:#x} -> {value:#x}", offset >> 14));
    }

    /// One page over another, with its number or that of the place.
    fn page_copy(&mut self, input: &mut Input<'_>) {
        let (from, to) = (self.some_page(input), self.some_page(input));
        let own = input.u8().is_multiple_of(2);
        let bytes = *self.page(from);
        let page = self.page(to);
        *page = bytes;
        if own {
            put(page, 8, 8, to / PAGE_SIZE as u64);
        }
        self.say(|| format!("page {} over page {}, its number set right: {own}", from >> 14, to >> 14));
    }

    fn page_torn(&mut self, input: &mut Input<'_>) {
        let offset = self.some_page(input);
        let at = input.u16() as usize % PAGE_SIZE;
        let byte = input.u8();
        self.page(offset)[at] ^= byte | 1;
        self.torn.push(offset);
        self.say(|| format!("page {} without a right checksum", offset >> 14));
    }

    fn bitmap(&mut self, input: &mut Input<'_>) {
        let group = input.below(self.base.superblock.groups as usize) as u32;
        let offset = self.base.superblock.bitmap_page(group).offset();
        let used = input.u8().is_multiple_of(2);
        // Most of what is in use lies at the beginning.
        let first = input.u16() as u32;
        let len = 1 + input.u8() as u32;
        let mut map = BitmapMut(self.page(offset));
        map.set(first, len, used);
        self.say(|| format!("bitmap {group}: blocks {first}+{len} in use: {used}"));
    }

    // -- the log ----------------------------------------------------------------------------------------------------

    /// A record of the log, to be changed.
    fn record(&mut self, input: &mut Input<'_>) -> Option<(u64, &mut Vec<u8>)> {
        let n = input.below(self.base.log.len());
        let (lsn, len) = *self.base.log.get(n)?;
        let storage = &self.storage;
        let bytes = self.log.entry(lsn.0).or_insert_with(|| {
            let mut bytes = vec![0; len];
            let at = LOG_OFFSET + lsn.0 % self.base.superblock.log_size;
            let _ = storage.read_at(at, &mut bytes);
            bytes
        });
        Some((lsn.0, bytes))
    }

    fn log_bytes(&mut self, input: &mut Input<'_>) {
        let Some((lsn, record)) = self.record(input) else { return };
        let at = input.u16() as usize % record.len().max(1);
        let n = input.u8() as usize % 17;
        let bytes = input.bytes(n);
        let n = bytes.len().min(record.len() - at);
        record[at..at + n].copy_from_slice(&bytes[..n]);
        self.say(|| format!("log record at {lsn}, at {at}: {bytes:02x?}"));
    }

    /// A field of a record's header, of a section's head, or of its first operation.
    fn log_field(&mut self, input: &mut Input<'_>) {
        let base = self.base;
        let Some((lsn, record)) = self.record(input) else { return };
        let fields =
            [(0, 4), (8, 8), (16, 4), (20, 1), (24, 8), (32, 4), (36, 1), (37, 2), (39, 2), (37, 4), (41, 4)];
        let (at, width) = fields[input.below(fields.len())];
        let old = get(record, at, width);
        let value = input.value(base, old);
        put(record, at, width, value);
        self.say(|| format!("log record at {lsn}, field at {at}: {old:#x} -> {value:#x}"));
    }

    /// A record behind the log's end.
    fn log_append(&mut self, input: &mut Input<'_>) {
        if self.base.superblock.clean {
            return;
        }
        let mut body = Vec::new();
        let kind = if input.u8().is_multiple_of(8) { Kind::Mark } else { Kind::Transaction };
        if kind == Kind::Mark {
            body.extend_from_slice(&input.value(self.base, self.log_end.0).to_be_bytes());
        } else {
            for _ in 0..1 + input.u8() % 3 {
                self.section(input, &mut body);
            }
        }
        let lsn = self.log_end.0;
        let mut record = vec![0; RECORD_HEADER_SIZE];
        put(&mut record, 0, 4, (RECORD_HEADER_SIZE + body.len()) as u64);
        put(&mut record, 8, 8, lsn);
        put(&mut record, 16, 4, self.base.superblock.incarnation as u64);
        record[20] = kind as u8;
        record.extend_from_slice(&body);
        self.say(|| format!("log record at {lsn} is new: {kind:?} {:02x?}", &body[..body.len().min(80)]));
        self.log_end.0 += record.len() as u64;
        self.log.insert(lsn, record);
    }

    fn section(&mut self, input: &mut Input<'_>, body: &mut Vec<u8>) {
        let page = match input.u8() % 8 {
            0 => 0,
            1 => input.value(self.base, self.base.superblock.root.0),
            _ => self.some_page(input) >> 14,
        };
        let mut ops = Vec::new();
        for _ in 0..1 + input.u8() % 3 {
            self.operation(input, page, &mut ops);
        }
        body.extend_from_slice(&page.to_be_bytes());
        body.extend_from_slice(&(ops.len() as u32).to_be_bytes());
        body.extend_from_slice(&ops);
    }

    fn operation(&mut self, input: &mut Input<'_>, id: u64, ops: &mut Vec<u8>) {
        let code = input.u8() % 14;
        ops.push(code);
        let with_length = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
        match code {
            1 => {
                let (key, value) = (forge::key(self, input), forge::value(self, input));
                ops.extend_from_slice(&(key.len() as u16).to_be_bytes());
                ops.extend_from_slice(&(value.len() as u16).to_be_bytes());
                ops.extend_from_slice(&key);
                ops.extend_from_slice(&value);
            }
            2 => ops.extend(with_length(&forge::key(self, input))),
            3 | 5 => {
                let from = self.some_page(input);
                let mut packed = Vec::new();
                let page = *self.page(from);
                let node = btfs::page::node::Node(&page);
                if node.validate().is_ok() {
                    node.pack(&mut packed);
                }
                let how = input.u8();
                // Or no other page than the one that it was could have it.
                if how & 2 != 0 {
                    put(&mut packed, 8, 8, id);
                }
                if how & 1 != 0 {
                    let at = 4 + input.u8() as usize;
                    let value = input.value(self.base, get(&packed, at, 2));
                    put(&mut packed, at, 2, value);
                }
                ops.extend(with_length(&packed));
            }
            4 => {
                ops.extend(with_length(&forge::key(self, input)));
                ops.extend_from_slice(&input.value(self.base, 0).to_be_bytes());
            }
            8..=11 => {
                for _ in 0..2 {
                    let n = input.value(self.base, 0) as u32;
                    ops.extend_from_slice(&n.to_be_bytes());
                }
            }
            12 => {
                let start = input.value(self.base, 0);
                let len = 4096 * (input.u8() as usize % 3) + input.u8() as usize / 128;
                ops.extend_from_slice(&start.to_be_bytes());
                ops.extend_from_slice(&(len as u32).to_be_bytes());
                ops.resize(ops.len() + len, 0x77);
            }
            _ => {}
        }
    }

    // -- the rest ---------------------------------------------------------------------------------------------------

    /// Bytes anywhere behind the log: contents, whose checksums stay as they are.
    fn data(&mut self, input: &mut Input<'_>) {
        let block = input.value(self.base, 0) % (self.base.superblock.size / 4096);
        let at = (block * 4096).max(self.base.superblock.data_offset());
        let bytes = input.bytes(4);
        if !self.base.sealed.contains(&(at & !(PAGE_SIZE as u64 - 1))) {
            let _ = self.storage.write_at(at, bytes);
            self.say(|| format!("contents at {at:#x}: {bytes:02x?}"));
        }
    }

    /// Another length of the file.
    fn length(&mut self, input: &mut Input<'_>) {
        let size = self.base.superblock.size;
        let len = match input.u8() % 4 {
            0 => size + (input.u16() as u64) * 4096,
            1 => size - (input.u16() as u64).min(size),
            2 => size.saturating_sub(input.u8() as u64 * 16384),
            _ => size.saturating_sub(input.value(self.base, 0)),
        };
        let _ = self.storage.set_len(len);
        self.say(|| format!("the file is {len} bytes long"));
    }

    /// Sets the checksums right, and writes everything.
    fn finish(self) -> (Arc<MemStorage>, Vec<String>) {
        let storage = self.storage;
        // What lies behind the file's end stays away.
        let len = storage.len().expect("memory has a length");
        let write = |at: u64, bytes: &[u8]| {
            let n = bytes.len().min(len.saturating_sub(at) as usize);
            storage.write_at(at, &bytes[..n]).expect("memory can be written");
        };
        for (at, mut page) in self.pages {
            if !self.torn.contains(&at) {
                seal(&mut page);
            }
            write(at, &page[..]);
        }
        for (at, mut bytes) in self.superblocks {
            let crc = crc32fast::hash(&bytes[..508]);
            put(&mut bytes, 508, 4, crc as u64);
            write(at, &bytes);
        }
        let size = self.base.superblock.log_size;
        for (lsn, mut record) in self.log {
            seal_record(&mut record, self.base.superblock.image());
            for (i, byte) in record.iter().enumerate() {
                write(LOG_OFFSET + (lsn + i as u64) % size, &[*byte]);
            }
        }
        (storage, self.story)
    }
}

/// The checksums of a log record, if its length is possible: over what its header says.
fn seal_record(record: &mut [u8], image: u64) {
    let len = get(record, 0, 4) as usize;
    if let Some(header) = record.first_chunk() {
        let check = header_check(header, image);
        record[21..24].copy_from_slice(&check);
    }
    if let Some(body) = record.get(RECORD_HEADER_SIZE..len) {
        let mut hasher = hash_body(body);
        hasher.update(&record[0..4]);
        hasher.update(&record[8..RECORD_HEADER_SIZE]);
        hasher.update(&image.to_be_bytes());
        put(record, 4, 4, hasher.finalize() as u64);
    }
}
