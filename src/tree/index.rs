//! The latch protocol's alternatives, for measuring what the B-link protocol gains.

use crate::sync::RawLatch;

/// Which latch protocol a tree uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LatchMode {
    /// B-link: page latches only.
    #[default]
    BLink,
    /// One reader-writer latch over the whole tree: any number of readers, or one writer.
    OneLock,
    /// Latch coupling: a descent gives a page up only when it has the next one; whoever changes the tree's shape excludes
    /// everybody else (Bayer & Schkolnick 1977, as InnoDB did it up to version 5.6).
    Crabbing,
}

/// The latch over the whole tree, if the mode has one.
pub(super) struct Index {
    latch: Option<RawLatch>,
    mode: LatchMode,
}

/// Holds the tree's latch.
pub(super) struct IndexGuard<'i> {
    latch: Option<&'i RawLatch>,
    exclusive: bool,
}

impl Index {
    pub fn new(mode: LatchMode) -> Self {
        Index { latch: (mode != LatchMode::BLink).then(RawLatch::new), mode }
    }

    /// Whether descents hold a page until they have the next.
    #[inline]
    pub fn couples(&self) -> bool {
        self.mode == LatchMode::Crabbing
    }

    /// For a writer that may not change the tree's shape, where that makes a difference.
    pub fn optimistic_writer(&self) -> IndexGuard<'_> {
        if self.couples() { self.reader() } else { self.writer() }
    }

    #[inline]
    pub fn reader(&self) -> IndexGuard<'_> {
        if let Some(latch) = &self.latch {
            latch.lock_shared();
        }
        IndexGuard { latch: self.latch.as_ref(), exclusive: false }
    }

    #[inline]
    pub fn writer(&self) -> IndexGuard<'_> {
        if let Some(latch) = &self.latch {
            latch.lock_exclusive();
        }
        IndexGuard { latch: self.latch.as_ref(), exclusive: true }
    }
}

impl IndexGuard<'_> {
    /// Whether the holder may change the tree's shape.
    pub fn may_restructure(&self) -> bool {
        self.latch.is_none() || self.exclusive
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
