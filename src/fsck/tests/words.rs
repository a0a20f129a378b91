//! What a report says to people: neither more nor less than what was found.

use super::support::*;
use super::*;
use crate::fs::Fs;
use crate::storage::MemStorage;

fn empty() -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(SIZE));
    Fs::format(storage.clone(), &format_options(SIZE), &ME).unwrap();
    storage
}

#[test]
fn numbers_and_sizes_are_those_of_people() {
    let said = look_at(&empty()).to_string();
    let expected =
        "1 inode (1 directory), 0 names, 0 extents, 0 attributes; 0 B of data, 16.0 KiB of tree in 1 level";
    assert!(said.contains(expected), "{said}");
    let known = known();
    let said = look_at(&known.storage).to_string();
    for part in [
        "6 inodes (3 directories), 6 names, 3 extents, 2 attributes; 28.0 KiB of data",
        "28.0 KiB of contents",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    forge_inode(&known.storage, known.dir, |inode| inode.links += 1);
    let said = look_at(&known.storage).to_string();
    assert!(said.contains("1 problem found"), "{said}");
}
