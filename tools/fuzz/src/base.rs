//! The images that are damaged: small, always the same, and with something of every kind in them.

use std::sync::{Arc, LazyLock};

use btfs::page::format::{PAGE_SIZE, PageBytes, TYPE_BITMAP, TYPE_TREE, page_type, verify_seal};
use btfs::page::node::Node;
use btfs::page::superblock::{LOG_OFFSET, SUPERBLOCK_OFFSETS, Superblock};
use btfs::storage::{Image, MemStorage};
use btfs::wal::format::{Header, RECORD_HEADER_SIZE};
use btfs::{Lsn, PageId};

use crate::make;

/// An image to damage, and where what lies in it.
pub struct Base {
    /// What it is.
    pub name: &'static str,
    /// Its bytes.
    pub image: Image,
    /// The superblock that counts.
    pub superblock: Superblock,
    /// Byte offsets of all pages with a checksum: tree, bitmaps, headers and copies of the doublewrite area.
    pub sealed: Vec<u64>,
    /// The leaves: low fence, high key, page.
    pub leaves: Vec<(Vec<u8>, Option<Vec<u8>>, PageId)>,
    /// Keys of all records in the leaves.
    pub keys: Vec<Vec<u8>>,
    /// The log's records: position and length.
    pub log: Vec<(Lsn, usize)>,
    /// Where the log ends.
    pub log_end: Lsn,
    /// Numbers that mean something here: of inodes, blocks, pages, positions, and limits.
    pub numbers: Vec<u64>,
}

/// All of them.
pub fn bases() -> &'static [Base] {
    static BASES: LazyLock<Vec<Base>> =
        LazyLock::new(|| make::images().into_iter().map(|(name, image)| Base::new(name, image)).collect());
    &BASES
}

impl Base {
    fn new(name: &'static str, image: Image) -> Base {
        let storage = MemStorage::from_image(image.clone());
        let superblock = btfs::pool::read_superblock(&storage).expect("the image was just made");
        let mut base = Base {
            name,
            image,
            superblock,
            sealed: Vec::new(),
            leaves: Vec::new(),
            keys: Vec::new(),
            log: Vec::new(),
            log_end: Lsn(0),
            numbers: Vec::new(),
        };
        base.find_pages();
        base.find_log();
        base.find_numbers();
        base
    }

    /// A storage with this image, to be damaged.
    pub fn storage(&self) -> Arc<MemStorage> {
        Arc::new(MemStorage::from_image(self.image.clone()))
    }

    fn page_at(&self, offset: u64) -> Box<PageBytes> {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        self.image.read(offset, &mut page[..]).expect("a page of the image");
        page
    }

    fn find_pages(&mut self) {
        let s = self.superblock.clone();
        let page = PAGE_SIZE as u64;
        for half in 0..2 {
            let at = s.doublewrite_offset(half);
            let header = self.page_at(at);
            if verify_seal(&header, PageId(at / page), s.image()).is_ok() {
                let copies = crate::input::get(&header[..], 48, 4);
                self.sealed.extend((0..=copies).map(|i| at + i * page));
            }
        }
        for n in s.data_offset() / page..s.size / page {
            // A group's pages lie at its beginning in images as small as these.
            let bytes = self.page_at(n * page);
            if verify_seal(&bytes, PageId(n), s.image()).is_err() {
                continue;
            }
            match page_type(&bytes) {
                TYPE_BITMAP => self.sealed.push(n * page),
                TYPE_TREE if Node(&bytes).validate().is_ok() && !Node(&bytes).is_dead() => {
                    self.sealed.push(n * page);
                    self.note_leaf(PageId(n), Node(&bytes));
                }
                _ => {}
            }
        }
    }

    fn note_leaf(&mut self, id: PageId, node: Node<'_>) {
        if node.level() == 0 {
            self.leaves.push((node.low().to_vec(), node.high().map(<[u8]>::to_vec), id));
            self.keys.extend((0..node.count()).map(|i| node.key(i)));
        }
    }

    fn find_log(&mut self) {
        let s = &self.superblock;
        self.log_end = s.checkpoint;
        if s.clean {
            return;
        }
        loop {
            let at = LOG_OFFSET + self.log_end.0 % s.log_size;
            let mut bytes = [0; RECORD_HEADER_SIZE];
            // The bases' logs do not reach around the area.
            if at + RECORD_HEADER_SIZE as u64 > LOG_OFFSET + s.log_size {
                break;
            }
            self.image.read(at, &mut bytes).expect("the log lies in the image");
            let plausible = |h: &Header| h.is_plausible(self.log_end, s.incarnation);
            let Some(header) = Header::decode(&bytes, s.image()).filter(plausible) else { break };
            self.log.push((self.log_end, header.len));
            self.log_end.0 += header.len as u64;
        }
    }

    fn find_numbers(&mut self) {
        let s = &self.superblock;
        let mut numbers: Vec<u64> = (0..=8).collect();
        numbers.extend([40, 255, 256, 4095, 4096, 4097, 16384, 65535, 65536, 126_975, 126_976]);
        numbers.extend([11, 15, 20, 31, 32, 42, 48, 50, 52, 60, 62, 63].map(|bit| 1 << bit));
        numbers.extend([1 << 24 | 1, (1 << 24) - 1, (1 << 40) - 1, u32::MAX as u64 - 1, u32::MAX as u64]);
        numbers.extend([i64::MAX as u64, i64::MAX as u64 & !4095, u64::MAX - 1, u64::MAX]);
        numbers.extend([s.size, s.log_size, s.data_offset(), s.checkpoint.0, s.floor.0, self.log_end.0]);
        numbers.extend([
            s.root.0,
            s.root.block().0,
            s.bitmap_page(0).block().0,
            s.size / 4096,
            s.size / 16384,
        ]);
        numbers.extend(self.leaves.iter().take(12).flat_map(|leaf| [leaf.2.0, leaf.2.block().0]));
        let spread = |step: usize, n: usize| (0..n).map(move |i| i * step);
        let step = (self.keys.len() / 96).max(1);
        for key in spread(step, 96).filter_map(|i| self.keys.get(i)) {
            // Inodes, ends of extents, ends of shared runs.
            numbers.push(match key[0] {
                0x10 => crate::input::get(key, 1, 5) << 24 | crate::input::get(key, 7, 3),
                0x30 => crate::input::get(key, 9, 8),
                _ => crate::input::get(key, 1, 8),
            });
        }
        numbers.extend(self.log.iter().take(10).map(|(lsn, _)| lsn.0));
        self.numbers = numbers;
        let blocks = self.extent_blocks();
        self.numbers.extend(blocks);
    }

    /// The first blocks of some extents.
    fn extent_blocks(&self) -> Vec<u64> {
        let mut blocks = Vec::new();
        for (_, _, id) in &self.leaves {
            let page = self.page_at(id.offset());
            let node = Node(&page);
            let extents = (0..node.count()).filter(|i| node.key(*i).first() == Some(&0x30));
            blocks.extend(extents.map(|i| crate::input::get(node.value(i), 8, 8)).filter(|n| *n > 0));
        }
        blocks.truncate(40);
        blocks
    }

    /// The leaf that a key belongs to, as the image has it.
    pub fn leaf_of(&self, key: &[u8]) -> Option<PageId> {
        let covers = |(low, high, _): &&(Vec<u8>, Option<Vec<u8>>, PageId)| {
            low.as_slice() <= key && high.as_ref().is_none_or(|high| key < high.as_slice())
        };
        self.leaves.iter().find(covers).map(|leaf| leaf.2)
    }

    /// Where a superblock lies.
    pub fn superblock_at(which: usize) -> u64 {
        SUPERBLOCK_OFFSETS[which % 2]
    }
}
