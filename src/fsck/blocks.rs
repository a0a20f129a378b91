//! Which blocks are in use, as the checks find out, and the comparison with the bitmaps.
//!
//! One bit a block, and as much again for each chunk with a block in use: some 60 MiB for each TiB in use.

use std::collections::BTreeMap;

use super::fix::Fix;
use super::image::{Image, PageError};
use super::report::{Findings, Place, ProblemKind, counted};
use crate::page::bitmap::{Bitmap, words_of};
use crate::page::format::*;
use crate::page::superblock::Superblock;
use crate::page::{BlockNo, PAGE_SIZE, PageBytes, Run};

const WORDS_PER_CHUNK: usize = BLOCKS_PER_CHUNK as usize / 64;
/// Bitmap pages that are damaged one behind the other, after which the rest is not looked at.
const DAMAGED_MAX: u32 = 1000;

/// The blocks of a chunk, one bit a block.
pub(super) type ChunkBits = [u64; WORDS_PER_CHUNK];

/// The blocks that something uses.
#[derive(Clone)]
pub(super) struct Claims {
    geometry: Superblock,
    /// By group and chunk, those with a claimed block: records of a forged image may lie a billion groups apart, and are not to cost
    /// much more memory than space on the disk.
    chunks: BTreeMap<(u32, u32), ChunkBits>,
}

impl Claims {
    /// No block is claimed yet. Bitmap pages are never claimed: no valid run covers them.
    pub fn new(image: &Image) -> Claims {
        Claims { geometry: image.superblock.clone(), chunks: BTreeMap::new() }
    }

    /// Claims a run, which [`Image::is_valid_run`] has found valid; how many of its blocks were claimed already.
    pub fn claim(&mut self, run: Run) -> u32 {
        let mut twice = 0;
        let (group, within) = self.geometry.locate(run.start);
        for (word, mask) in words_of(within, run.len) {
            let (chunk, word) = (word / WORDS_PER_CHUNK, word % WORDS_PER_CHUNK);
            let bits = &mut self.chunks.entry((group, chunk as u32)).or_default()[word];
            twice += (*bits & mask).count_ones();
            *bits |= mask;
        }
        twice
    }

    /// Claims what the bitmaps have marked as in use, and all of a group whose bitmap cannot be read.
    pub fn keep(&mut self, image: &Image) {
        let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
        for group in image.written_groups() {
            let id = image.superblock.bitmap_page(group);
            let whole = !matches!(image.read_page(id, &mut page), Err(PageError::Damaged(_)));
            let blocks = BLOCKS_PER_PAGE..image.superblock.group_blocks(group);
            if !whole {
                self.claim(Run {
                    start: BlockNo(id.block().0 + blocks.start as u64),
                    len: blocks.len() as u32,
                });
                continue;
            }
            for at in blocks {
                if Bitmap(&page).state(at, 1) == Some(true) {
                    self.claim(Run { start: BlockNo(id.block().0 + at as u64), len: 1 });
                }
            }
        }
    }

    /// The claimed blocks of a chunk of a group.
    pub fn chunk(&self, group: u32, chunk: u32) -> ChunkBits {
        self.chunks.get(&(group, chunk)).copied().unwrap_or_default()
    }

    /// The claimed blocks of a group, by the number of the chunk within it.
    pub fn group(&self, group: u32) -> impl Iterator<Item = (u32, &ChunkBits)> {
        self.chunks.range((group, 0)..=(group, u32::MAX)).map(|((_, chunk), bits)| (*chunk, bits))
    }

    /// One more than the last group with a claimed block, at least one.
    pub fn groups(&self) -> u32 {
        self.chunks.last_key_value().map_or(1, |((group, _), _)| group + 1)
    }

    /// Whether a block from `from` on is claimed.
    pub fn reaches(&self, from: u64) -> bool {
        self.chunks.last_key_value().is_some_and(|((group, chunk), bits)| {
            let last =
                bits.iter().rposition(|word| *word != 0).map_or(0, |i| i as u32 * 64 + bits[i].ilog2());
            let first = self.geometry.bitmap_page(*group).block().0;
            first + (chunk * BLOCKS_PER_CHUNK + last) as u64 >= from
        })
    }

    /// Whether none of a run's blocks is claimed.
    pub fn is_free(&self, run: Run) -> bool {
        let (group, within) = self.geometry.locate(run.start);
        words_of(within, run.len).all(|(word, mask)| {
            let (chunk, word) = (word / WORDS_PER_CHUNK, word % WORDS_PER_CHUNK);
            self.chunk(group, chunk as u32)[word] & mask == 0
        })
    }
}

/// Compares the bitmaps with what is in use. `sound`: everything that is in use is known.
pub(super) fn check_bitmaps(image: &Image, claims: &Claims, sound: bool, findings: &mut Findings) {
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let mut damaged = 0;
    for group in 0..image.superblock.groups {
        let id = image.superblock.bitmap_page(group);
        match image.read_page(id, &mut page) {
            Ok(()) => damaged = 0,
            Err(error) => {
                let (kind, what) = error.problem(ProblemKind::Bitmap, &format!("bitmap of group {group}: "));
                findings.add(kind, Place::page(id), what, vec![Fix::Bitmaps]);
                damaged += 1;
                if damaged > DAMAGED_MAX {
                    return;
                }
                continue;
            }
        }
        compare(image, group, Bitmap(&page), claims, sound, findings);
    }
}

fn compare(
    image: &Image,
    group: u32,
    bitmap: Bitmap<'_>,
    claims: &Claims,
    sound: bool,
    findings: &mut Findings,
) {
    let id = image.superblock.bitmap_page(group);
    let exist = image.superblock.group_blocks(group);
    let mut wrong: [Option<(u32, u32, u32)>; 2] = [None; 2];
    let mut claimed = ChunkBits::default();
    for (i, bytes) in bitmap.bits().as_chunks::<8>().0.iter().enumerate() {
        let first = i as u32 * 64;
        let used = u64::from_le_bytes(*bytes);
        if i % WORDS_PER_CHUNK == 0 {
            claimed = claims.chunk(group, (i / WORDS_PER_CHUNK) as u32);
        }
        let claimed = claimed[i % WORDS_PER_CHUNK];
        let mut differ = used ^ claimed;
        if first == 0 {
            differ &= !((1 << BLOCKS_PER_PAGE) - 1);
        }
        match exist.saturating_sub(first) {
            0 => continue,
            n @ 1..64 => differ &= (1 << n) - 1,
            _ => {}
        }
        while differ != 0 {
            let bit = differ.trailing_zeros();
            differ &= differ - 1;
            let leaked = used & 1 << bit != 0;
            let (begin, end, count) = wrong[leaked as usize].get_or_insert((first + bit, first + bit, 0));
            (*end, *count) = (first + bit + 1, *count + 1);
            debug_assert!(*begin < *end);
        }
    }
    for (leaked, found) in wrong.into_iter().enumerate() {
        let Some((begin, end, count)) = found else { continue };
        let run = Run { start: BlockNo(id.block().0 + begin as u64), len: end - begin };
        if leaked == 0 {
            let are = counted(count.into(), "block is", "blocks are");
            let what = format!("{are} in use, and marked as free");
            findings.add(ProblemKind::BlocksFree, Place::blocks(run), what, vec![Fix::Bitmaps]);
        } else if sound {
            let what = match count {
                1 => "1 block is marked as in use, and nothing uses it".to_string(),
                n => format!("{n} blocks are marked as in use, and nothing uses them"),
            };
            findings.add(ProblemKind::BlocksLeaked, Place::blocks(run), what, vec![Fix::Bitmaps]);
        }
    }
}
