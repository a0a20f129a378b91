//! Growth of the image while it is open.
//!
//! - **G1** The order is: file, then the record that frees what the last group gains, then the superblock, each durable before the
//!   next; only then is anything allocated there. A crash in between leaves an image of the old size, to which neither a longer
//!   file nor the bits of blocks that do not exist mean anything; behind the superblock it has the new size.
//! - **G2** A geometry is never changed: a longer chain of them is, so that whoever reads one needs no lock.

use std::sync::OnceLock;

use super::{Need, Pool};
use crate::error::{Error, Result};
use crate::page::bitmap::Bitmap;
use crate::page::format::whole_pages;
use crate::page::op::{self, OP_HEAD, Op, SECTION_HEAD};
use crate::page::superblock::Superblock;
use crate::storage::sim::site_scope;
use crate::wal::Log;

/// What an image is, and what it became by growth (G2).
pub struct Geometry {
    superblock: Superblock,
    grown: OnceLock<Box<Geometry>>,
}

impl Geometry {
    /// The geometry of an image with this superblock.
    pub fn new(superblock: Superblock) -> Self {
        Geometry { superblock, grown: OnceLock::new() }
    }

    /// What the image is now. Only sizes change.
    #[inline]
    pub fn current(&self) -> &Superblock {
        let mut newest = self;
        while let Some(grown) = newest.grown.get() {
            newest = grown;
        }
        &newest.superblock
    }

    /// Adds a size. Callers take turns.
    fn push(&self, superblock: Superblock) {
        let mut newest = self;
        while let Some(grown) = newest.grown.get() {
            newest = grown;
        }
        let first = newest.grown.set(Box::new(Geometry::new(superblock)));
        assert!(first.is_ok(), "two growths at the same time");
    }
}

impl Pool {
    /// Makes the image `size` bytes large, rounded down to pages, and the file, if it is shorter. Durable when it returns; a crash
    /// before that leaves the old size or the new one. Others go on meanwhile. Holds no latch and no epoch.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a smaller size, one that is too large for an image, or one that its file or device cannot have; what kept
    /// the bitmap of the last group from being read, or a record from being appended. In these cases nothing has changed but the
    /// file's length, perhaps. Otherwise the error is latched.
    pub fn grow(&self, size: u64) -> Result<()> {
        let _switching = self.switching.lock();
        let _growing = self.growing.lock();
        self.writable()?;
        let old = self.geometry();
        let size = whole_pages(size);
        if size == old.size {
            return Ok(());
        }
        if size < old.size {
            let message = format!("an image of {} bytes cannot shrink to {size}", old.size);
            return Err(Error::Unusable(message));
        }
        let grown = Superblock { size, ..old.clone() };
        Superblock::decode(&grown.encode())
            .map_err(|error| Error::Unusable(format!("cannot grow so far: {error}")))?;
        let _site = site_scope("grow");
        let failed = |e| Error::Unusable(format!("making the image's file longer: {e}"));
        if self.storage.len().map_err(failed)? < size {
            self.storage.set_len(size).map_err(failed)?;
        }
        self.storage.sync().map_err(|e| self.log.fail(Error::io("syncing the image", e)))?;
        self.free_gained(old, &grown)?;
        {
            let mut flusher = self.flusher.lock();
            flusher.superblock.size = size;
            // Without the record that has just made them free, blocks of the last group would be in use for ever.
            flusher.superblock.floor = self.log.durable().max(flusher.superblock.floor);
            self.write_superblocks(&mut flusher)?;
        }
        self.geometry.push(grown.clone());
        self.space.lock().grow(grown);
        Ok(())
    }

    /// Clears the bits of the blocks that the last group gains, durably. If the group has no bitmap page yet, it will be born with
    /// the right size.
    fn free_gained(&self, old: &Superblock, grown: &Superblock) -> Result<()> {
        let last = old.group_count() - 1;
        let (from, to) = (old.group_blocks(last), grown.group_blocks(last));
        if from == to || last >= self.groups() {
            return Ok(());
        }
        let id = old.bitmap_page(last);
        // After a growth that a crash cut off, some of the bits may be clear already.
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let pin = {
            let page = self.read(id)?;
            for block in (from..to).filter(|block| Bitmap(&page).in_use(*block)) {
                match runs.last_mut() {
                    Some((start, len)) if *start + *len == block => *len += 1,
                    _ => runs.push((block, 1)),
                }
            }
            page.pin()
        };
        if runs.is_empty() {
            return Ok(());
        }
        let log = Log::record_size(SECTION_HEAD + runs.len() * OP_HEAD);
        let mut reservation = self.reserve(Need { frames: 1, pages: 0, log })?;
        let mut body = Vec::new();
        let section = op::begin_section(&mut body, id);
        for (start, len) in runs {
            Op::Free { start, len }.encode(&mut body);
        }
        op::end_section(&mut body, section);
        // The bits of blocks that do not exist have not changed since they were read: nobody allocates there (G1).
        let mut page = self.latch(&pin);
        let lsn = reservation.commit(&mut [&mut page], &body);
        drop((page, reservation));
        self.log.commit(lsn)
    }
}
