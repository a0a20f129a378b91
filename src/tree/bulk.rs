//! Bulk load: packed leaves are written bottom-up beside the log, synced, and installed as the tree by one record.

use super::Tree;
use crate::error::{Error, Result};
use crate::page::format::*;
use crate::page::node::Node;
use crate::page::op::{self, OP_HEAD, Op, SECTION_HEAD};
use crate::page::pack::{PackedPage, Packer, PageSink};
use crate::page::{Lsn, PAGE_SIZE, PageBytes, PageId, Run};
use crate::pool::frames::PageMemory;
use crate::pool::{Need, PageWrite};
use crate::storage::sim::site_scope;
use crate::wal::Log;

/// Pages that are written in one call.
const WINDOW: usize = 64;

/// Takes pages from the pool, and knows all that it took.
struct Loader<'t> {
    tree: &'t Tree,
    memory: PageMemory,
    filled: Vec<PageId>,
    free: Vec<PageId>,
    used: Vec<PageId>,
    lsn: Lsn,
}

impl Tree {
    /// Loads records that come in ascending key order, each key once, into an empty tree. Durable when it returns; after a
    /// crash before that the tree is empty.
    ///
    /// # Errors
    /// [`Error::Unusable`] if the tree is not empty or the order is violated; nothing is loaded then. A tree from which everything was
    /// deleted may keep a few empty pages, and counts as not empty then.
    pub fn bulk_load<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        records: impl IntoIterator<Item = (K, V)>,
    ) -> Result<()> {
        let memory = PageMemory::new(WINDOW).map_err(|e| Error::io("allocating memory", e))?;
        let lsn = self.pool.log.end();
        let mut loader =
            Loader { tree: self, memory, filled: Vec::new(), free: Vec::new(), used: Vec::new(), lsn };
        let result = loader.load(records);
        let mut unused = std::mem::take(&mut loader.free);
        if result.is_err() {
            unused.append(&mut loader.used);
        }
        self.pool.give_pages(&unused);
        result
    }
}

impl PageSink for Loader<'_> {
    type Error = Error;

    fn place(&mut self) -> Result<PageId> {
        if self.free.is_empty() {
            self.free = self.tree.pool.take_pages(WINDOW)?;
        }
        let id = self.free.pop().ok_or(Error::NoSpace)?;
        self.used.push(id);
        Ok(id)
    }

    fn put(&mut self, packed: &PackedPage) -> Result<()> {
        if self.filled.len() == WINDOW {
            self.write()?;
        }
        let page = &mut self.memory.pages_mut()[self.filled.len()];
        build(self.tree, packed, page)?;
        set_page_lsn(page, self.lsn);
        seal(page);
        self.filled.push(packed.id);
        Ok(())
    }
}

impl Loader<'_> {
    fn load<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        records: impl IntoIterator<Item = (K, V)>,
    ) -> Result<()> {
        let mut packer = Packer::default();
        let mut last: Option<Vec<u8>> = None;
        for (key, value) in records {
            let (key, value) = (key.as_ref(), value.as_ref());
            if key.len() > KEY_MAX || key.len() + value.len() > RECORD_MAX {
                let size = key.len() + value.len();
                return Err(Error::TooLarge { what: "record", size, limit: RECORD_MAX });
            }
            if last.as_ref().is_some_and(|l| l.as_slice() >= key) {
                return Err(Error::Unusable("bulk load: keys do not ascend".into()));
            }
            packer.add(self, key, value)?;
            let last = last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
        }
        let root = packer.finish(self)?;
        let root = self.root(root)?;
        self.write()?;
        let tree = self.tree;
        tree.pool.storage().sync().map_err(|e| tree.pool.log.fail(Error::io("syncing loaded pages", e)))?;
        self.install(root)
    }

    /// The image of the root, whose place stays free: its contents go to the root that is there.
    fn root(&mut self, mut root: PackedPage) -> Result<Box<PageBytes>> {
        self.used.retain(|id| *id != root.id);
        self.free.push(root.id);
        root.id = self.tree.root();
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        build(self.tree, &root, &mut page)?;
        Ok(page)
    }

    /// Writes the pages that are filled, neighbours in one call.
    fn write(&mut self) -> Result<()> {
        let _site = site_scope("bulk load");
        let storage = self.tree.pool.storage();
        let pages = self.memory.pages_mut();
        let mut i = 0;
        while i < self.filled.len() {
            let mut n = 1;
            while i + n < self.filled.len() && self.filled[i + n].0 == self.filled[i].0 + n as u64 {
                n += 1;
            }
            let bufs: Vec<&[u8]> = pages[i..i + n].iter().map(|p| p.as_slice()).collect();
            storage
                .write_vectored_at(self.filled[i].offset(), &bufs)
                .map_err(|e| self.tree.pool.log.fail(Error::io("writing loaded pages", e)))?;
            i += n;
        }
        self.filled.clear();
        Ok(())
    }

    /// One record: the root's contents, and the allocation of all pages below it.
    fn install(&mut self, root: Box<PageBytes>) -> Result<()> {
        let pool = &self.tree.pool;
        self.used.sort_unstable();
        let mut runs: Vec<Run> = Vec::new();
        let marks = |run: Run| run.start.page().is_some_and(|page| pool.marks_chunk(page));
        let like = |run: Run| (pool.bitmap_of(run), marks(run));
        for id in &self.used {
            let run = id.run();
            match runs.last_mut() {
                Some(last) if last.end() == run.start && like(*last) == like(run) => {
                    last.len += run.len;
                }
                _ => runs.push(run),
            }
        }
        let bitmaps = pool.pin_bitmaps(runs.iter().copied())?;
        let need = Need {
            frames: 1 + bitmaps.len(),
            pages: 0,
            log: Log::record_size(PAGE_SIZE + (runs.len() + bitmaps.len() + 1) * (SECTION_HEAD + OP_HEAD)),
        };
        let mut reservation = pool.reserve(need)?;
        let pin = pool.read(self.tree.root())?.pin();
        let mut page = pool.latch(&pin);
        let node = Node(&page);
        if node.level() != 0 || node.count() != 0 {
            return Err(Error::Unusable("bulk load: the tree is not empty".into()));
        }
        let mut packed = Vec::with_capacity(PAGE_SIZE);
        Node(&root).pack(&mut packed);
        let mut body = Vec::new();
        let begun = op::begin_section(&mut body, self.tree.root());
        Op::Image(&packed).encode(&mut body);
        op::end_section(&mut body, begun);
        let mut maps = reservation.latch_bitmaps(&bitmaps);
        for map in &maps {
            let id = map.header().page();
            let begun = op::begin_section(&mut body, id);
            for run in runs.iter().filter(|r| pool.bitmap_of(**r) == id) {
                let start = pool.within_group(*run);
                Op::Allocate { start, len: run.len, pages: marks(*run) }.encode(&mut body);
            }
            op::end_section(&mut body, begun);
        }
        let mut guards: Vec<&mut PageWrite<'_>> = vec![&mut page];
        guards.extend(maps.iter_mut());
        let lsn = reservation.commit(&mut guards, &body);
        drop(guards);
        drop((maps, page));
        drop(reservation);
        pool.log.commit(lsn)
    }
}

fn build(tree: &Tree, packed: &PackedPage, page: &mut PageBytes) -> Result<()> {
    let built = packed.build(page, tree.pool.geometry().image());
    built.map_err(|reason| Error::corrupt(packed.id, reason))
}
