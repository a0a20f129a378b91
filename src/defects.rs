//! Defects that can be planted, so that tests can show that they would find them.
//!
//! Without the feature `defects` the set is always empty and the compiler removes every question about it.
//!
//! There is also a timer that commits between the batches of one request, as the real one may, but at places that can be chosen.

/// A mistake that loses data in a storage engine or a filesystem of this kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Defect {
    /// Commit returns before the log is durable.
    AcknowledgeBeforeSync,
    /// Pages go home without a copy in the doublewrite area.
    SkipDoublewrite,
    /// A doublewrite half is reused before a sync has covered its pages' writes.
    ReuseDoublewriteEarly,
    /// A freed page can be allocated at once.
    ReusePageAtOnce,
    /// Freed blocks can be allocated at once.
    ReuseBlockAtOnce,
    /// Freed space is punched before the free is durable.
    PunchEarly,
    /// Recovery builds on what it reads without making it durable first: after the death of the process alone, not all
    /// of it is.
    RecoverUnsynced,
    /// Recovery does not begin a new incarnation of the log, whose groups are not filled up with zeros.
    SameIncarnation,
    /// A page enters the dirty table after its record was appended.
    DirtyAfterAppend,
    /// Log space is freed before the superblock is durable: it is written, and left to the next sync.
    FreeLogEarly,
    /// Recovery restores torn pages from doublewrite copies whatever the copies' LSN.
    RestoreAnyCopy,
    /// Pages are stamped with the start of a record instead of its end.
    StampStartLsn,
    /// A separator is posted although the split's record lacks the new page, which is only marked dirty.
    PostWithoutSplit,
    /// Recovery writes logged contents also over blocks that were freed since.
    ReplayFreedData,
    /// A batch that names data blocks becomes durable without them.
    MetadataBeforeData,
    /// The log is written while contents that its records refer to are still under way.
    GroupBeforeContents,
    /// A rename takes the old name away in a batch of its own.
    RenameInTwoBatches,
    /// A truncate that takes several batches leaves no mark.
    CutWithoutMark,
    /// An inode that loses its last name while it is in use leaves no mark.
    UnlinkWithoutMark,
    /// Numbers of groups are given without being reserved in the tree.
    GroupsUnreserved,
    /// A new name and the count of its inode's links are two batches.
    LinkCountLater,
    /// A file grows in a batch before the one with its contents.
    SizeBeforeContents,
    /// Extents share blocks in a batch before the one that counts them.
    CountSharedLater,
}

impl Defect {
    /// Those of the storage engine.
    pub const ENGINE: [Defect; 14] = [
        Defect::AcknowledgeBeforeSync,
        Defect::SkipDoublewrite,
        Defect::ReuseDoublewriteEarly,
        Defect::ReusePageAtOnce,
        Defect::ReuseBlockAtOnce,
        Defect::PunchEarly,
        Defect::RecoverUnsynced,
        Defect::SameIncarnation,
        Defect::DirtyAfterAppend,
        Defect::FreeLogEarly,
        Defect::RestoreAnyCopy,
        Defect::StampStartLsn,
        Defect::PostWithoutSplit,
        Defect::ReplayFreedData,
    ];

    /// Those of the filesystem, and of what the engine does for it only.
    pub const FILESYSTEM: [Defect; 9] = [
        Defect::MetadataBeforeData,
        Defect::GroupBeforeContents,
        Defect::RenameInTwoBatches,
        Defect::CutWithoutMark,
        Defect::UnlinkWithoutMark,
        Defect::GroupsUnreserved,
        Defect::LinkCountLater,
        Defect::SizeBeforeContents,
        Defect::CountSharedLater,
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Defect> {
        Defect::ENGINE.into_iter().chain(Defect::FILESYSTEM)
    }
}

/// The defects that are planted in an engine.
#[derive(Clone, Copy, Default, Debug)]
pub struct Defects {
    #[cfg(feature = "defects")]
    set: u32,
}

impl Defects {
    /// One defect.
    #[cfg(feature = "defects")]
    pub fn only(defect: Defect) -> Self {
        Defects { set: 1 << defect as u32 }
    }

    /// Whether this defect is planted.
    #[inline]
    pub fn has(self, defect: Defect) -> bool {
        #[cfg(feature = "defects")]
        return self.set & 1 << defect as u32 != 0;
        #[cfg(not(feature = "defects"))]
        {
            let _ = defect;
            false
        }
    }
}

#[cfg(feature = "defects")]
mod timer {
    use std::cell::Cell;

    thread_local! {
        /// After how many batches it commits, and how many there were since.
        static TIMER: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    }

    /// From now on, a commit follows every so many batches that this thread applies; 0: none.
    pub fn set_timer(batches: u64) {
        TIMER.set((batches, 0));
    }

    /// A batch was applied. Whether a commit follows.
    pub fn timer_fires() -> bool {
        let (every, since) = TIMER.get();
        let fires = every > 0 && since + 1 >= every;
        TIMER.set((every, if fires { 0 } else { since + 1 }));
        fires
    }
}

#[cfg(feature = "defects")]
pub use timer::{set_timer, timer_fires};
