//! Contents that a log held which could not be replayed to its end.
//!
//! Recovery writes them home, for it knows which later records freed their blocks. Where later records are lost, a block may hold
//! something else by now, and what is known of it has been written since. So logged contents count where an extent names them with their
//! checksum. Where its checksum is that of what lay there before, they are taken back.

use std::collections::BTreeSet;

use super::Result;
use super::image::Image;
use super::structure::Structure;
use crate::fs::format::*;
use crate::page::{BLOCK_SIZE, BlockNo, Run};

/// Looks at the contents that a record names, and returns in `home` the blocks whose logged contents count.
pub(super) fn settle(image: &Image, key: &[u8], value: &[u8], home: &mut BTreeSet<BlockNo>) -> Result<()> {
    if image.contents.is_empty() {
        return Ok(());
    }
    let Some(AnyKey::Extent(ino, end)) = AnyKey::parse(key) else { return Ok(()) };
    let Ok(Extent::Blocks { start, crcs, .. }) = Extent::decode(ino, end, value) else { return Ok(()) };
    if !image.is_valid_run(Run { start, len: crcs.len() as u32 }) {
        return Ok(());
    }
    let mut bytes = [0; BLOCK_SIZE];
    for block in image.contents.range(start..BlockNo(start.0 + crcs.len() as u64)) {
        let crc = crcs[(block.0 - start.0) as usize];
        let read = image.read_blocks(Run { start: *block, len: 1 }, &mut bytes);
        if read.is_ok() && crc32fast::hash(&bytes) == crc {
            home.insert(*block);
        } else if image.read_block_below(*block, &mut bytes).is_ok() && crc32fast::hash(&bytes) == crc {
            image.take_back(*block, &bytes)?;
        }
    }
    Ok(())
}

/// The same for all extents in leaves that are reached.
pub(super) fn settle_all(image: &Image, structure: &Structure) -> Result<()> {
    if image.contents.is_empty() || structure.leaves.len() == 0 {
        return Ok(());
    }
    let mut records = structure.records(image, TAG_EXTENT)?;
    let mut home = BTreeSet::new();
    while records.next()? {
        settle(image, records.key(), records.value(), &mut home)?;
    }
    Ok(())
}
