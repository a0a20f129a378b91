//! Reading around: contents of small files that lie side by side, and small pieces of files, are fetched together.
//!
//! Files that were written one after the other lie next to each other in the image, and whoever reads one of them mostly reads its
//! neighbours as well, in the order of a listing, with a read for each. So the second small file that is read in a stretch of the
//! image has the whole stretch fetched into the host's page cache: one long read instead of many short ones, and the disk works
//! while the caller does. (Ganger & Kaashoek, *Embedded Inodes and Explicit Grouping*, USENIX 1997, read such groups as a unit;
//! here the reads themselves show where there are some.)
//!
//! The same for small pieces that overwrites have moved: they lie in the order of the overwrites, and a file that is read from end to
//! end has use for its neighbours sooner or later.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Inner;
use super::extents::Mapped;
use crate::page::{BLOCK_SIZE, BlockNo, Run};
use crate::storage::DIRECT_LEN_MIN;

/// Contents of fewer bytes are read through the host's page cache, in one read.
pub(super) const SMALL: u64 = DIRECT_LEN_MIN;
/// Blocks of a stretch: 512 KiB. Longer ones are little faster, and cost more where files are read here and there.
pub(super) const STRETCH: u32 = (512 << 10) / BLOCK_SIZE as u32;
/// Stretches that are remembered, each in the place that its number gives. Of a large image read at random few are met twice.
const REMEMBERED: usize = 64;
/// A read of so many bytes is taken for one of a file from end to end.
const LONG_READ: usize = 64 << 10;

/// In which stretches small files or pieces have been read lately.
pub(super) struct ReadAround {
    /// The number of a stretch plus 1, shifted by one bit, which says whether it has been fetched; or 0. What two threads do to one
    /// of them at the same time costs a fetch at the most.
    met: [AtomicU64; REMEMBERED],
}

impl Default for ReadAround {
    fn default() -> Self {
        ReadAround { met: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl ReadAround {
    /// A small file or piece that begins at this block is read; the stretch of which all should be fetched now, if any.
    fn note(&self, first: BlockNo) -> Option<BlockNo> {
        let number = first.0 / u64::from(STRETCH);
        let place = &self.met[(number % REMEMBERED as u64) as usize];
        let met = (number + 1) << 1;
        match place.load(Ordering::Relaxed) {
            before if before == met => {
                place.store(met | 1, Ordering::Relaxed);
                Some(BlockNo(number * u64::from(STRETCH)))
            }
            before if before == met | 1 => None,
            _ => {
                place.store(met, Ordering::Relaxed);
                None
            }
        }
    }
}

impl Inner {
    /// The contents of a file that is smaller than [`SMALL`] are about to be read from these extents.
    pub(super) fn read_around(&self, found: &[Mapped]) {
        let first = found.iter().find_map(|m| m.extent.run());
        if let Some(stretch) = first.and_then(|run| self.read_around.note(run.start)) {
            self.tree.will_read_blocks(stretch, STRETCH);
        }
    }

    /// A small piece of what is read in a call of `len` bytes will be read soon.
    pub(super) fn announce_piece(&self, piece: Run, len: usize) {
        let stretch = if len >= LONG_READ { self.read_around.note(piece.start) } else { None };
        match stretch {
            Some(stretch) => self.tree.will_read_blocks(stretch, STRETCH),
            None => self.tree.will_read_blocks(piece.start, piece.len),
        }
    }
}
