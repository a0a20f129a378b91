//! Reading pages from the image, and what is checked before anybody sees them.

use std::sync::atomic::Ordering;

use super::Pool;
use crate::error::{Error, Result};
use crate::page::format::page_lsn;
use crate::page::{PAGE_SIZE, PageBytes, PageId};

impl Pool {
    /// Reads a page from the image. If that fails, or gives what cannot be right, the image is marked as damaged.
    pub(super) fn fetch(&self, id: PageId, page: &mut PageBytes) -> Result<()> {
        self.fetch_unmarked(id, page).inspect_err(|error| {
            if error.is_damage() {
                self.note_damage();
            }
        })
    }

    fn fetch_unmarked(&self, id: PageId, page: &mut PageBytes) -> Result<()> {
        if id.0 >= self.geometry().size / PAGE_SIZE as u64 {
            return Err(Error::corrupt(id, "it lies outside the image"));
        }
        self.stats.pages_read.fetch_add(1, Ordering::Relaxed);
        self.storage.read_at(id.offset(), page).map_err(|e| Error::io(format!("reading {id}"), e))?;
        self.check_read(id, page)
    }

    /// Checks a page as it was read from the image, and that it is the version that was written last (D6).
    pub(super) fn check_read(&self, id: PageId, page: &PageBytes) -> Result<()> {
        self.verify(id, page).map_err(|reason| Error::corrupt(id, reason))?;
        match self.unsynced.lock().get(&id) {
            Some(written) if page_lsn(page) < *written => Err(Error::corrupt(id, "its last write is lost")),
            _ => Ok(()),
        }
    }

    /// Checks a page as it was read from the image.
    pub fn verify(&self, id: PageId, page: &PageBytes) -> std::result::Result<(), &'static str> {
        self.geometry().verify_page(id, page)?;
        if page_lsn(page) > self.log.end() {
            return Err("page was changed by a record beyond the log's end");
        }
        Ok(())
    }
}
