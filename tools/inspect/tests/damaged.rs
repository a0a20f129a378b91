//! The tool is for damaged images: whatever the bytes, it says what is wrong and neither panics nor runs for ever.

use btfs::page::PAGE_SIZE;
use btfs::storage::{Image as Bytes, MemStorage, Rng};
use btfs_inspect::image::Image;
use btfs_inspect::{Command, Report, run, sample};

const COMMANDS: [Command; 9] = [
    Command::Summary,
    Command::Superblock,
    Command::Log,
    Command::Doublewrite,
    Command::Page(31),
    Command::Page(30),
    Command::Tree,
    Command::Bitmap(0),
    Command::Dump,
];

fn inspect(bytes: &[u8], command: Command) -> Report {
    run(&Image::new(Box::new(MemStorage::from_image(Bytes::from_bytes(bytes)))).unwrap(), command)
}

fn sample_bytes() -> Vec<u8> {
    sample::make().unwrap().to_vec().unwrap()
}

/// Where the sample image has structures: superblocks, log, doublewrite half B, bitmap and root.
const PLACES: [(usize, usize); 6] =
    [(0, 512), (0x4000, 512), (0x100bd, 200), (0x64000, 128), (0x78000, 600), (0x7c000, PAGE_SIZE)];

/// Makes the checksum of the page at `at` right again, so that what lies behind it is looked at.
fn reseal(bytes: &mut [u8], at: usize) {
    let Some(page) = bytes.get_mut(at..at + PAGE_SIZE) else { return };
    let page: &mut [u8; PAGE_SIZE] = page.try_into().unwrap();
    btfs::page::format::seal(page);
}

#[test]
fn a_healthy_image_has_no_problems() {
    for command in COMMANDS {
        assert_eq!(inspect(&sample_bytes(), command).problems, Vec::<String>::new(), "{command:?}");
    }
}

#[test]
fn every_damaged_byte_of_the_pages_and_superblocks_is_reported() {
    let healthy = sample_bytes();
    for (at, len) in [PLACES[0], PLACES[1], PLACES[5]] {
        for i in (at..at + len).step_by(7) {
            let mut bytes = healthy.clone();
            bytes[i] ^= 0x10;
            let command = if at < 0x7c000 { Command::Superblock } else { Command::Tree };
            assert_ne!(inspect(&bytes, command).problems, Vec::<String>::new(), "byte {i:#x}");
        }
    }
}

#[test]
fn no_damage_makes_the_tool_panic() {
    let mut rng = Rng::new(0x5eed);
    let healthy = sample_bytes();
    for round in 0..400 {
        let mut bytes = healthy.clone();
        for _ in 0..1 + rng.index(4) {
            let (at, len) = PLACES[rng.index(PLACES.len())];
            let len = if rng.chance(1, 2) { len.min(64) } else { len };
            bytes[at + rng.index(len)] = [0, 0xff, 0x80, rng.below(256) as u8][rng.index(4)];
        }
        if rng.chance(3, 4) {
            [0x64000, 0x78000, 0x7c000].into_iter().for_each(|at| reseal(&mut bytes, at));
        }
        if rng.chance(1, 8) {
            bytes.truncate(rng.index(bytes.len()));
        }
        inspect(&bytes, COMMANDS[round % COMMANDS.len()]);
    }
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    for bytes in [vec![], vec![7; 100], vec![0; 1 << 20]] {
        for command in COMMANDS {
            assert_ne!(inspect(&bytes, command).problems, Vec::<String>::new());
        }
    }
}
