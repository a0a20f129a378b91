//! Superblocks and doublewrite headers: what was written comes back, and nothing else does.

use super::super::format::*;
use super::super::ids::{Lsn, PageId};
use super::super::superblock::*;
use super::support::*;

fn random_superblock(rng: &mut Rng) -> (Superblock, u64) {
    let log_size = rng.range(LOG_SIZE_MIN as usize / PAGE_SIZE, 40_000) as u64 * PAGE_SIZE as u64;
    let doublewrite_pages = rng.range(DOUBLEWRITE_PAGES_MIN as usize, DOUBLEWRITE_PAGES_MAX as usize) as u32;
    let label_len = rng.below(17);
    let label: String = (0..label_len).map(|_| rng.pick(&['a', 'ü', '€', '𝄞', ' '])).collect();
    let mut superblock = Superblock {
        compat: rng.next(),
        ro_compat: rng.next(),
        incompat: 0,
        uuid: rng.bytes(16).try_into().unwrap(),
        hash_seed: rng.bytes(16).try_into().unwrap(),
        label,
        sequence: rng.next() >> 8,
        size: 0,
        log_size,
        doublewrite_pages,
        groups: 1,
        root: PageId(0),
        checkpoint: Lsn(log_size + (rng.next() >> rng.range(8, 60))),
        floor: Lsn(0),
        incarnation: rng.next() as u32 >> 1,
        clean: rng.once_in(2),
    };
    superblock.floor = Lsn(superblock.checkpoint.0 + rng.next() % (log_size + 1));
    let space = match rng.below(4) {
        0 => rng.range(CHUNK_SIZE, 3 * CHUNK_SIZE) as u64,
        // Around the end of a group.
        1 => rng.range(1, 3) as u64 * GROUP_SIZE + rng.below(5 * CHUNK_SIZE) as u64 - CHUNK_SIZE as u64,
        2 => rng.range(1, 3) as u64 * GROUP_SIZE + rng.below(40_000) as u64,
        _ => (rng.next() >> rng.range(5, 40)).max(CHUNK_SIZE as u64),
    };
    superblock.size =
        (superblock.data_offset() + space / PAGE_SIZE as u64 * PAGE_SIZE as u64).min(IMAGE_SIZE_MAX);
    superblock.groups = rng.range(1, superblock.group_count().min(9) as usize) as u32;
    superblock.root = PageId(superblock.data_offset() / PAGE_SIZE as u64 + 1);
    let len = superblock.size + rng.below(2) as u64 * rng.below(100_000) as u64;
    (superblock, len)
}

/// Everything that the engine reads or writes by the superblock's figures lies inside the image.
fn check_geometry(superblock: &Superblock, len: u64, rng: &mut Rng) {
    let (s, page) = (superblock, PAGE_SIZE as u64);
    assert!(s.size <= len && s.size <= IMAGE_SIZE_MAX);
    let log_end = LOG_OFFSET + s.log_size;
    assert!(s.doublewrite_offset(0) >= log_end);
    assert!(s.doublewrite_offset(1) >= s.doublewrite_offset(0) + s.doublewrite_half_size());
    assert!(s.data_offset() >= s.doublewrite_offset(1) + s.doublewrite_half_size());
    assert!(s.data_offset() < s.size && s.data_offset().is_multiple_of(page));
    assert!(s.groups >= 1 && s.groups <= s.group_count());
    let last = s.group_count() - 1;
    for group in [0, s.groups - 1, last, rng.range(0, last as usize) as u32] {
        let (bitmap, blocks) = (s.bitmap_page(group), s.group_blocks(group));
        assert!(blocks > BLOCKS_PER_PAGE && blocks <= BLOCKS_PER_GROUP, "group {group} of {blocks} blocks");
        assert!(
            bitmap.offset() + blocks as u64 * BLOCK_SIZE as u64 <= s.size,
            "group {group} ends past the image"
        );
        assert_eq!(group > 0, bitmap.offset() >= s.data_offset() + GROUP_SIZE);
        assert!(!s.is_data_page(bitmap) && s.is_data_page(PageId(bitmap.0 + 1)));
        assert!(s.is_bitmap_page(bitmap) && !s.is_bitmap_page(PageId(bitmap.0 + 1)));
        let end = PageId(bitmap.0 + (blocks / BLOCKS_PER_PAGE) as u64);
        assert!(s.is_data_page(PageId(end.0 - 1)) && !s.is_data_page(end), "a page beyond the group's end");
        assert!(group == last || blocks == BLOCKS_PER_GROUP);
    }
    assert_eq!(s.group_blocks(last + 1), 0, "a group that does not exist has blocks");
    for _ in 0..20 {
        let id = PageId(rng.next() >> rng.below(64));
        if s.is_bitmap_page(id) {
            let group = ((id.offset() - s.data_offset()) / GROUP_SIZE) as u32;
            assert!(group <= last && s.bitmap_page(group) == id && !s.is_data_page(id));
        }
        if s.is_data_page(id) {
            assert!(id.offset() >= s.data_offset() + page && id.offset() + page <= s.size);
            let group = ((id.offset() - s.data_offset()) / GROUP_SIZE) as u32;
            assert!(group <= last && s.bitmap_page(group) != id);
        }
    }
    for id in [0, 1, s.data_offset() / page, s.size / page, s.size / page + 1, u64::MAX, u64::MAX / page] {
        assert!(!s.is_data_page(PageId(id)) || id == s.size / page - 1);
    }
    assert!(
        !s.is_bitmap_page(PageId(s.bitmap_page(last).0 + GROUP_SIZE / page)),
        "a bitmap past the last group"
    );
    assert!(s.is_data_page(s.root));
    // Counters leave room for sums; 2^61 bytes of log are more than an image lives to see.
    assert!(s.checkpoint <= s.floor && s.floor.0 - s.checkpoint.0 <= s.log_size);
    assert!(s.floor.0.checked_add(1 << 61).is_some() && s.sequence.checked_add(1 << 61).is_some());
    assert!(s.incarnation.checked_add(1).is_some());
    s.encode();
}

fn refix(bytes: &mut [u8; SUPERBLOCK_SIZE]) {
    let crc = crc32fast::hash(&bytes[..508]);
    put_u32(bytes, 508, crc);
}

#[test]
fn superblock_comes_back_as_it_was_written() {
    seeds(500, |rng| {
        let (superblock, len) = random_superblock(rng);
        let read = Superblock::decode(&superblock.encode()).unwrap();
        assert_eq!(read, superblock);
        assert_eq!(read.image(), u64::from_be_bytes(superblock.uuid[..8].try_into().unwrap()));
        check_geometry(&read, len, rng);
    });
}

#[test]
fn every_flipped_bit_of_a_superblock_is_noticed() {
    seeds(3, |rng| {
        let (superblock, _) = random_superblock(rng);
        let bytes = superblock.encode();
        for bit in 0..512 * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let result = Superblock::decode(&flipped);
            if bit < 64 {
                assert_eq!(result, Err(SuperblockError::NotAnImage), "bit {bit}");
            } else {
                assert!(matches!(result, Err(SuperblockError::Damaged(_))), "bit {bit}");
            }
        }
        let mut beyond = bytes;
        beyond[512..].fill(0xff);
        assert_eq!(Superblock::decode(&beyond), Ok(superblock), "bytes behind the first sector count");
    });
}

#[test]
fn hostile_superblock_never_leads_out_of_the_image() {
    let mut accepted = 0;
    seeds(6000, |rng| {
        let (superblock, mut len) = random_superblock(rng);
        let mut bytes = superblock.encode();
        for _ in 0..rng.range(1, 3) {
            match rng.below(4) {
                0 => bytes[rng.range(8, 230)] = rng.next() as u8,
                1 => bytes[rng.range(8, 230)] ^= 1 << rng.below(8),
                // A whole field.
                2 => {
                    let field = rng.pick(&[16, 24, 136, 144, 152, 160, 168, 184, 192, 200, 208]);
                    let old = get_u64(&bytes, field);
                    let near = old.wrapping_add(rng.range(0, 8) as u64).wrapping_sub(4);
                    let page = old.wrapping_sub(rng.below(1 << 10) as u64 * PAGE_SIZE as u64);
                    let any = u64::MAX >> rng.below(64);
                    let value = rng.pick(&[0, 1, near, page, u64::MAX, 1 << 63, 1 << 60, any]);
                    put_u64(&mut bytes, field, value);
                }
                _ => {
                    let field = rng.pick(&[176, 180, 216]);
                    let any = 1 << rng.below(32);
                    let value = rng.pick(&[0, 1, 3, 4, 512, 513, u32::MAX, u32::MAX - 1, any]);
                    put_u32(&mut bytes, field, value);
                }
            }
        }
        // Parts that move together, so that the other checks are reached, too.
        if rng.once_in(2) {
            let dw = LOG_OFFSET.wrapping_add(get_u64(&bytes, 160));
            put_u64(&mut bytes, 168, dw);
            let halves = (get_u32(&bytes, 176) as u64 + 1) * 2 * PAGE_SIZE as u64;
            put_u64(&mut bytes, 184, dw.wrapping_add(halves));
        }
        if rng.once_in(3) {
            len = rng.pick(&[u64::MAX, get_u64(&bytes, 144), len]);
        }
        refix(&mut bytes);
        if let Ok(superblock) = Superblock::decode(&bytes)
            && superblock.size <= len
        {
            check_geometry(&superblock, len, rng);
            accepted += 1;
        }
    });
    assert!(accepted > 500 || one_seed_only(), "only {accepted} were looked at");
}

#[test]
fn superblock_that_contradicts_itself_or_the_limits_is_refused() {
    seeds(30, |rng| {
        let (good, _) = random_superblock(rng);
        let refused = |change: fn(&mut Superblock), why: &str| {
            let mut superblock = good.clone();
            change(&mut superblock);
            let result = Superblock::decode(&superblock.encode());
            assert!(matches!(result, Err(SuperblockError::Damaged(_))), "{why}");
        };
        refused(|s| s.log_size = LOG_SIZE_MIN - PAGE_SIZE as u64, "log too small");
        refused(|s| s.log_size = LOG_SIZE_MAX + PAGE_SIZE as u64, "log too large");
        refused(|s| s.log_size += 4096, "log not of whole pages");
        refused(|s| s.doublewrite_pages = DOUBLEWRITE_PAGES_MIN - 1, "doublewrite area too small");
        refused(|s| s.doublewrite_pages = DOUBLEWRITE_PAGES_MAX + 1, "doublewrite area too large");
        refused(|s| s.size = s.data_offset() + (CHUNK_SIZE - PAGE_SIZE) as u64, "no room for a chunk");
        refused(|s| s.size -= 4096, "size not of whole pages");
        refused(|s| s.size = IMAGE_SIZE_MAX + 1, "image too large");
        refused(|s| s.groups = 0, "no group");
        refused(|s| s.groups = s.group_count() + 1, "too many groups");
        refused(|s| s.root = PageId(0), "no root");
        refused(|s| s.root = s.bitmap_page(0), "root is a bitmap");
        refused(|s| s.floor.0 = s.checkpoint.0 + s.log_size + 1, "more redo than log");
        refused(|s| s.checkpoint = Lsn(s.floor.0 + 1), "checkpoint past the durable log");
        refused(|s| (s.checkpoint, s.floor) = (Lsn(1), Lsn(s.log_size)), "checkpoint before the log");
        for field in [152, 168, 184] {
            let mut bytes = good.encode();
            let value = get_u64(&bytes, field);
            put_u64(&mut bytes, field, value + PAGE_SIZE as u64);
            refix(&mut bytes);
            assert!(Superblock::decode(&bytes).is_err(), "field {field}");
        }
    });
}

#[test]
fn the_newest_superblock_that_fits_counts_and_only_without_one_another() {
    seeds(50, |rng| {
        let (older, _) = random_superblock(rng);
        let grown = Superblock { size: older.size + PAGE_SIZE as u64, ..older.clone() };
        let newer = Superblock { sequence: older.sequence + 1, ..grown };
        for (a, b) in [(&older, &newer), (&newer, &older)] {
            let copies: Copies = [Ok(a.clone()), Ok(b.clone())];
            assert_eq!(newest(&copies, newer.size), Some(&newer));
            assert_eq!(newest(&copies, newer.size - 1), Some(&older));
            assert_eq!(
                newest(&copies, older.size - 1),
                Some(&newer),
                "who is told that the file was cut hears by how much"
            );
        }
        let twin = Superblock { label: "twin".into(), ..older.clone() };
        assert_eq!(newest(&[Ok(older.clone()), Ok(twin)], u64::MAX), Some(&older));
    });
}

#[test]
fn without_a_superblock_the_reason_is_given_that_says_most() {
    let image = [1; 2 * PAGE_SIZE];
    let reason = |len: u64, broken: Option<u64>| {
        let read = |at: u64, bytes: &mut [u8]| {
            if broken == Some(at) {
                return Err(std::io::Error::other("broken"));
            }
            bytes.copy_from_slice(&image[at as usize..at as usize + bytes.len()]);
            // The second is damaged.
            bytes[..8].copy_from_slice(if at > 0 { b"btfs\r\n\x1a\n" } else { b"no image" });
            Ok(())
        };
        choose(read_copies(len, read), len).unwrap_err().to_string()
    };
    let len = image.len() as u64;
    assert_eq!(reason(len, None), "checksum does not match");
    assert_eq!(reason(PAGE_SIZE as u64, None), "the magic number is missing");
    assert_eq!(reason(0, None), "the magic number is missing");
    assert_eq!(reason(len, Some(0)), "cannot be read: broken");
    assert_eq!(reason(len, Some(PAGE_SIZE as u64)), "cannot be read: broken");
}

#[test]
fn other_versions_and_unknown_features_are_named() {
    let (superblock, _) = random_superblock(&mut Rng::new(1));
    let mut bytes = superblock.encode();
    for other in [VERSION - 1, VERSION + 1] {
        put_u32(&mut bytes, 8, other);
        refix(&mut bytes);
        assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::Version(other)));
    }
    put_u32(&mut bytes, 8, VERSION);
    put_u64(&mut bytes, 32, 1 << 40);
    refix(&mut bytes);
    assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::Features(1 << 40)));
    put_u64(&mut bytes, 32, 0);
    put_u32(&mut bytes, 12, 4096);
    refix(&mut bytes);
    assert!(matches!(Superblock::decode(&bytes), Err(SuperblockError::Damaged(_))));
    for bytes in [[0; SUPERBLOCK_SIZE], [0xff; SUPERBLOCK_SIZE], [b'b'; SUPERBLOCK_SIZE]] {
        assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::NotAnImage));
    }
}

#[test]
fn a_scrap_at_the_end_of_the_image_is_not_taken_for_a_group() {
    let (mut superblock, _) = random_superblock(&mut Rng::new(1));
    for (rest, groups) in [(0, 1), (1, 1), (4096, 1), (16384, 1), (16385, 1), (1 << 20, 2), (GROUP_SIZE, 2)] {
        superblock.size = superblock.data_offset() + GROUP_SIZE + rest;
        superblock.groups = 1;
        assert_eq!(superblock.group_count(), groups, "{rest} bytes behind a group");
        check_geometry(&superblock, superblock.size, &mut Rng::new(rest));
    }
}

fn random_header(rng: &mut Rng) -> DoublewriteHeader {
    let count = rng.pick(&[0, 1, 7, DOUBLEWRITE_PAGES_MAX as usize]);
    DoublewriteHeader {
        sequence: rng.next() >> 8,
        floor: Lsn(rng.next() >> 8),
        pages: (0..count).map(|_| (PageId(rng.next()), Lsn(rng.next()))).collect(),
    }
}

#[test]
fn doublewrite_header_comes_back_as_it_was_written_and_only_in_its_place() {
    seeds(100, |rng| {
        let (header, id) = (random_header(rng), PageId(rng.next()));
        let mut page = raw_page();
        header.encode(&mut page, id, IMAGE);
        assert_eq!(DoublewriteHeader::decode(&page, id, IMAGE), Some(header));
        assert_eq!(DoublewriteHeader::decode(&page, PageId(id.0 ^ 1), IMAGE), None, "another half's header");
        assert_eq!(DoublewriteHeader::decode(&page, id, IMAGE ^ 1), None, "another image's header");
        page[OFF_TYPE] = TYPE_TREE;
        seal(&mut page);
        assert_eq!(DoublewriteHeader::decode(&page, id, IMAGE), None, "not a header");
    });
}

#[test]
fn every_flipped_bit_and_torn_sector_of_a_doublewrite_header_is_noticed() {
    let rng = &mut Rng::new(5);
    let full = |rng: &mut Rng| DoublewriteHeader {
        pages: (0..DOUBLEWRITE_PAGES_MAX).map(|_| (PageId(rng.next()), Lsn(rng.next()))).collect(),
        ..random_header(rng)
    };
    let (old, new) = (full(rng), full(rng));
    let (mut before, mut page) = (raw_page(), raw_page());
    old.encode(&mut before, PageId(9), IMAGE);
    new.encode(&mut page, PageId(9), IMAGE);
    for bit in (0..4096).chain((4096..PAGE_SIZE * 8).step_by(61)) {
        page[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(DoublewriteHeader::decode(&page, PageId(9), IMAGE), None, "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
    for sector in 0..PAGE_SIZE / 512 {
        let mut torn = page.clone();
        let range = sector * 512..(sector + 1) * 512;
        torn[range.clone()].copy_from_slice(&before[range]);
        assert_eq!(
            DoublewriteHeader::decode(&torn, PageId(9), IMAGE).is_some(),
            torn == page,
            "sector {sector}"
        );
    }
    assert_eq!(DoublewriteHeader::decode(&[0; PAGE_SIZE], PageId(0), 0), None, "zeros");
}

#[test]
fn hostile_doublewrite_header_is_refused_or_in_bounds() {
    seeds(800, |rng| {
        let mut page = raw_page();
        random_header(rng).encode(&mut page, PageId(9), IMAGE);
        match rng.below(3) {
            0 => put_u32(&mut *page, 48, rng.pick(&[512, 513, u32::MAX, 1 << 31])),
            1 => put_u64(&mut *page, rng.pick(&[32, 40]), rng.pick(&[u64::MAX, 1 << 63, 0])),
            _ => (0..9).for_each(|_| page[rng.below(PAGE_SIZE)] = rng.next() as u8),
        }
        seal(&mut page);
        if let Some(header) = DoublewriteHeader::decode(&page, PageId(9), IMAGE) {
            assert!(header.pages.len() <= DOUBLEWRITE_PAGES_MAX as usize);
            assert!(
                header.sequence.checked_add(1 << 61).is_some()
                    && header.floor.0.checked_add(1 << 61).is_some()
            );
        }
    });
}

#[test]
fn page_of_another_place_or_image_is_not_taken_for_this_one() {
    let mut page = Fences::kinds()[0].empty_leaf();
    seal(&mut page);
    verify_seal(&page, PageId(77), IMAGE).unwrap();
    assert!(verify_seal(&page, PageId(78), IMAGE).is_err());
    assert!(verify_seal(&page, PageId(77), IMAGE + 1).is_err());
    for at in 0..PAGE_SIZE {
        page[at] ^= 1 << (at % 8);
        assert!(verify_seal(&page, PageId(77), IMAGE).is_err(), "byte {at}");
        page[at] ^= 1 << (at % 8);
    }
    assert!(verify_seal(&[0; PAGE_SIZE], PageId(0), 0).is_err(), "a page of zeros was never written");
}
