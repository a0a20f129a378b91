//! The latch protocol's alternatives, for measuring what the B-link protocol gains.

use crate::sync::RawLatch;

/// Which latch protocol a tree uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LatchMode {
    /// B-link: page latches only.
    #[default]
    BLink,
    /// One reader-writer latch over the whole tree, on top of the page latches.
    OneLock,
}

/// The latch over the whole tree, if the mode has one.
pub(super) struct Index(Option<RawLatch>);

/// Holds the tree's latch.
pub(super) struct IndexGuard<'i> {
    latch: Option<&'i RawLatch>,
    exclusive: bool,
}

impl Index {
    pub fn new(mode: LatchMode) -> Self {
        Index((mode == LatchMode::OneLock).then(RawLatch::new))
    }

    #[inline]
    pub fn reader(&self) -> IndexGuard<'_> {
        if let Some(latch) = &self.0 {
            latch.lock_shared();
        }
        IndexGuard { latch: self.0.as_ref(), exclusive: false }
    }

    #[inline]
    pub fn writer(&self) -> IndexGuard<'_> {
        if let Some(latch) = &self.0 {
            latch.lock_exclusive();
        }
        IndexGuard { latch: self.0.as_ref(), exclusive: true }
    }
}

impl Drop for IndexGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        match self.latch {
            None => {}
            // SAFETY: the guard was made by taking the latch in this mode, and is dropped once.
            Some(latch) if self.exclusive => unsafe { latch.unlock_exclusive() },
            // SAFETY: as above.
            Some(latch) => unsafe { latch.unlock_shared() },
        }
    }
}
