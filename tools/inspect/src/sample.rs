//! A small image that is always the same: the one whose bytes `docs/format.md` shows.

use std::path::Path;
use std::sync::Arc;

use btfs::BlockNo;
use btfs::page::superblock::{DOUBLEWRITE_PAGES_MIN, LOG_SIZE_MIN};
use btfs::storage::{FileStorage, MemStorage, Storage};
use btfs::tree::{Batch, FormatOptions, Options, Tree};

/// Size of the image in bytes.
const SIZE: u64 = 2 << 20;

/// Makes the image in memory: three records and two data blocks that a checkpoint has written home, and a batch behind it that
/// is only in the log, as if the process had died.
pub fn make() -> btfs::Result<btfs::storage::Image> {
    let storage = Arc::new(MemStorage::new(SIZE));
    let format = FormatOptions {
        size: SIZE,
        log_size: Some(LOG_SIZE_MIN),
        doublewrite_pages: Some(DOUBLEWRITE_PAGES_MIN),
        label: "sample".into(),
        uuid: *b"btfs sample uuid",
        hash_seed: *b"sample hash seed",
    };
    Tree::format(&*storage, &format)?;
    let options = Options { cache_size: 1 << 20, background: false, ..Options::default() };
    let tree = Tree::open(storage.clone(), &options)?;
    let mut batch = Batch::new();
    batch.put(b"apple", b"red");
    batch.put(b"banana", b"yellow");
    batch.put(b"cherry", b"dark red");
    tree.commit(tree.apply(&batch)?)?;
    let run = tree.reserve_blocks(2)?;
    for i in 0..run.len as u64 {
        tree.write_blocks(BlockNo(run.start.0 + i), &[b'd'; 4096])?;
    }
    batch.clear();
    batch.put(b"apple", b"green");
    batch.allocate(run);
    tree.apply(&batch)?;
    tree.checkpoint()?;
    batch.clear();
    batch.delete(b"banana");
    batch.put(b"date", b"brown");
    tree.commit(tree.apply(&batch)?)?;
    batch.clear();
    batch.free(run);
    tree.commit(tree.apply(&batch)?)?;
    drop(tree);
    Ok(storage.image())
}

/// Makes the image in a new file.
pub fn write(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const PIECE: usize = 64 << 10;
    let bytes = make()?.to_vec()?;
    let file = FileStorage::create(path, false)?;
    file.set_len(bytes.len() as u64)?;
    for (i, piece) in bytes.chunks(PIECE).enumerate() {
        // Zeros stay holes, as in an image that the engine made.
        if piece.iter().any(|b| *b != 0) {
            file.write_at((i * PIECE) as u64, piece)?;
        }
    }
    Ok(file.sync()?)
}
