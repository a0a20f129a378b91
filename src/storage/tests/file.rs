//! Files and devices.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::{Aligned, in_every_folder, read};
use crate::storage::file::direct_len;
use crate::storage::{
    FileStorage, Image, MemStorage, OpenError, OpenMode, OverlayStorage, Rng, SimStorage, Storage,
};

fn open_fails(path: &Path, mode: OpenMode) -> OpenError {
    FileStorage::open(path, mode).expect_err("it must not open")
}

#[test]
fn what_was_written_is_read_back_after_reopening() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        let storage = FileStorage::create(&path, false).unwrap();
        storage.write_at(10, b"buffered").unwrap();
        storage.write_durable_at(100_000, b"durable").unwrap();
        storage.write_vectored_at(200_000, &[b"one", b"", b"two"]).unwrap();
        storage.sync().unwrap();
        drop(storage);
        for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite] {
            let storage = FileStorage::open(&path, mode).unwrap();
            assert_eq!(storage.len().unwrap(), 200_006);
            assert_eq!(read(&storage, 9, 10), b"\0buffered\0");
            assert_eq!(read(&storage, 100_000, 7), b"durable");
            assert_eq!(read(&storage, 200_000, 6), b"onetwo");
        }
    });
}

/// Every storage must give what memory gives, whichever mixture of direct and buffered calls did it.
#[test]
fn direct_and_buffered_calls_see_each_others_bytes() {
    in_every_folder(|folder| {
        let file = FileStorage::create(folder.join("image.db"), false).unwrap();
        let sim = SimStorage::new(0, None);
        let model = MemStorage::new(0);
        let storages: [&dyn Storage; 3] = [&file, &sim, &model];
        let len = 1 << 20;
        storages.iter().for_each(|storage| storage.set_len(len).unwrap());
        let mut rng = Rng::new(7);
        for step in 0..600 {
            let unit = [1, 512, 4096, 4096, 4096][rng.index(5)];
            let size = unit * (1 + rng.below(65536 / unit));
            let offset = rng.below((len - size) / unit + 1) * unit;
            let shift = if rng.chance(1, 4) { 512 } else { 0 };
            let mut bytes = Aligned::new(size as usize, shift);
            rng.fill(bytes.bytes_mut());
            let action = rng.below(6);
            for storage in storages {
                let bytes = bytes.bytes();
                match action {
                    0 | 1 => storage.write_at(offset, bytes).unwrap(),
                    2 => storage.write_durable_at(offset, bytes).unwrap(),
                    3 => {
                        let half = bytes.len() / unit as usize / 2 * unit as usize;
                        storage.write_vectored_at(offset, &[&bytes[..half], &bytes[half..]]).unwrap();
                    }
                    4 => assert!(storage.punch(offset, size).unwrap()),
                    _ => assert!(storage.allocate(offset, size).unwrap()),
                }
            }
            let mut found = Aligned::new(size as usize, shift);
            file.read_at(offset, found.bytes_mut()).unwrap();
            assert!(found.bytes() == read(&model, offset, size as usize), "step {step}, {size} at {offset}");
        }
        let mut whole = Aligned::new(len as usize, 0);
        file.read_at(0, whole.bytes_mut()).unwrap();
        assert!(Image::from_bytes(whole.bytes()) == model.image());
        assert!(sim.image() == model.image());
    });
}

/// Otherwise what somebody writes beside a direct call, through the cache, would bring back what that has replaced.
#[test]
fn a_direct_call_shares_no_page_of_the_cache_with_a_buffered_one() {
    let memory = Aligned::new(1 << 17, 0);
    let bytes = memory.bytes();
    let len = |offset, buf: &[u8], page| direct_len(offset, [buf].into_iter(), page);
    for (page, unit) in [(512, 4096), (4096, 4096), (16384, 16384), (65536, 65536)] {
        assert_eq!(len(3 * unit as u64, &bytes[..unit], page), Some(unit as u64), "{page}");
        assert_eq!(len(unit as u64 / 2, &bytes[..unit], page), None, "{page}");
        assert_eq!(len(0, &bytes[..unit / 2], page), None, "{page}");
        assert_eq!(len(0, &bytes[512..unit + 512], page), None, "{page}");
    }
    // Only what they have together matters to the cache; each has memory of its own.
    let parts = |at: usize| [&bytes[..at], &bytes[at..65536]].into_iter();
    assert_eq!(direct_len(65536, parts(4096), 65536), Some(65536));
    assert_eq!(direct_len(65536, parts(512), 65536), None);
}

#[test]
fn a_read_past_the_end_is_an_error_and_not_zeros() {
    in_every_folder(|folder| {
        let file = FileStorage::create(folder.join("image.db"), false).unwrap();
        let storages: [Arc<dyn Storage>; 3] =
            [Arc::new(file), Arc::new(MemStorage::new(0)), Arc::new(SimStorage::new(0, Some(1)))];
        for storage in storages {
            // An odd length, so that a large aligned read ends within a block.
            storage.write_at(0, &[1; 40_000]).unwrap();
            let mut pages = Aligned::new(65536, 0);
            for (offset, len) in
                [(0, 40_001), (0, 65536), (39_999, 2), (40_000, 1), (1 << 40, 1), (1 << 62, 9)]
            {
                let error = storage.read_at(offset, &mut pages.bytes_mut()[..len]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len} at {offset}");
            }
            storage.read_at(0, &mut pages.bytes_mut()[..40_000]).unwrap();
            assert_eq!(pages.bytes()[..40_000], [1; 40_000]);
            storage.read_at(32768, &mut pages.bytes_mut()[..7232]).unwrap();
            storage.read_at(40_000, &mut []).unwrap();
        }
    });
}

#[test]
fn more_buffers_than_one_system_call_takes_are_all_written() {
    in_every_folder(|folder| {
        let storage = FileStorage::create(folder.join("image.db"), false).unwrap();
        for (size, count) in [(7, 5000), (4096, 1500)] {
            let mut memory = Aligned::new(size * count, 0);
            Rng::new(3).fill(memory.bytes_mut());
            let bufs: Vec<_> = memory.bytes().chunks(size).collect();
            storage.write_vectored_at(8192, &bufs).unwrap();
            assert!(read(&storage, 8192, size * count) == memory.bytes());
        }
    });
}

#[test]
fn punched_space_reads_as_zeros_and_returns_to_the_host() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        let storage = FileStorage::create(&path, false).unwrap();
        let pages = Aligned::filled(1 << 20, 0, 9);
        storage.write_at(0, pages.bytes()).unwrap();
        storage.sync().unwrap();
        let before = fs::metadata(&path).unwrap().blocks();
        if !storage.punch(65536, 1 << 19).unwrap() {
            return;
        }
        storage.sync().unwrap();
        assert_eq!(read(&storage, 65536, 1 << 19), vec![0; 1 << 19]);
        assert_eq!(read(&storage, 65535, 1), [9]);
        assert_eq!(read(&storage, 65536 + (1 << 19), 1), [9]);
        assert_eq!(storage.len().unwrap(), 1 << 20);
        assert_eq!(before - fs::metadata(&path).unwrap().blocks(), (1 << 19) / 512);
        assert!(storage.punch(0, 0).unwrap());
    });
}

#[test]
fn allocated_space_is_there_and_changes_neither_content_nor_length() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        let storage = FileStorage::create(&path, false).unwrap();
        storage.set_len(4 << 20).unwrap();
        storage.write_at(0, b"content").unwrap();
        storage.allocate(0, 1 << 20).unwrap();
        storage.allocate(5 << 20, 0).unwrap();
        assert_eq!(storage.len().unwrap(), 4 << 20);
        assert_eq!(read(&storage, 0, 8), b"content\0");
        assert!(fs::metadata(&path).unwrap().blocks() >= (1 << 20) / 512);
    });
}

#[test]
fn a_shortened_image_has_zeros_where_it_grows_again() {
    in_every_folder(|folder| {
        let file = FileStorage::create(folder.join("image.db"), false).unwrap();
        let storages: [&dyn Storage; 3] = [&file, &MemStorage::new(0), &SimStorage::new(0, None)];
        for storage in storages {
            storage.write_at(0, &[1; 300_000]).unwrap();
            storage.set_len(5000).unwrap();
            storage.set_len(300_000).unwrap();
            let mut bytes = vec![2; 300_000];
            storage.read_at(0, &mut bytes).unwrap();
            assert_eq!(bytes[..5000], [1; 5000]);
            assert_eq!(bytes[5000..], [0; 295_000]);
        }
    });
}

#[test]
fn a_read_only_image_is_not_changed() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        FileStorage::create(&path, false).unwrap().write_at(0, b"content").unwrap();
        let storage = FileStorage::open(&path, OpenMode::ReadOnly).unwrap();
        let results = [
            storage.write_at(0, b"x"),
            storage.write_vectored_at(0, &[b"x"]),
            storage.write_durable_at(0, b"x"),
            storage.set_len(0),
            storage.allocate(0, 4096).map(drop),
            storage.punch(0, 4096).map(drop),
        ];
        for result in results {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        assert_eq!(read(&storage, 0, 7), b"content");
    });
}

#[test]
fn creating_does_not_overwrite_an_image_unless_told_to() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        let storage = FileStorage::create(&path, true).unwrap();
        storage.write_at(0, b"content").unwrap();
        assert!(matches!(FileStorage::create(&path, false), Err(OpenError::Exists { .. })));
        // Nor one that somebody has open, even if told to.
        assert!(matches!(FileStorage::create(&path, true), Err(OpenError::InUse { .. })));
        assert_eq!(read(&storage, 0, 7), b"content");
        drop(storage);
        assert_eq!(FileStorage::create(&path, true).unwrap().len().unwrap(), 0);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    });
}

#[test]
fn a_size_that_the_host_cannot_have_costs_nothing() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        let impossible = u64::MAX;
        assert!(FileStorage::create_sized(&path, false, impossible).is_err());
        assert!(!path.exists(), "an empty file is left");
        fs::write(&path, b"content").unwrap();
        assert!(FileStorage::create_sized(&path, true, impossible).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"content");
        drop(FileStorage::create_sized(&path, true, 1 << 20).unwrap());
        assert_eq!(fs::read(&path).unwrap(), vec![0; 1 << 20]);
    });
}

#[test]
fn what_cannot_be_opened_is_named_with_the_reason() {
    in_every_folder(|folder| {
        let missing = folder.join("missing");
        let error = open_fails(&missing, OpenMode::ReadWrite);
        assert!(matches!(error, OpenError::NotFound { .. }));
        assert_eq!(error.to_string(), format!("{}: no such file or directory", missing.display()));
        let error = FileStorage::create(folder.join("no/folder"), false).unwrap_err();
        assert!(matches!(error, OpenError::NotFound { .. }), "{error}");
        for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite] {
            assert!(matches!(open_fails(folder, mode), OpenError::IsDirectory { .. }));
            assert!(matches!(open_fails(Path::new("/dev/null"), mode), OpenError::NotAFile { .. }));
            assert!(matches!(open_fails(&folder.join("missing"), mode), OpenError::NotFound { .. }));
        }
        let error = FileStorage::create(folder, true).unwrap_err();
        assert!(matches!(error, OpenError::IsDirectory { .. }), "{error}");
    });
}

#[test]
fn a_file_of_another_user_is_refused_as_not_permitted() {
    in_every_folder(|folder| {
        let path = folder.join("image.db");
        drop(FileStorage::create(&path, false).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        // The superuser may read it all the same.
        if fs::File::open(&path).is_err() {
            assert!(matches!(open_fails(&path, OpenMode::ReadOnly), OpenError::PermissionDenied { .. }));
        }
    });
}

#[test]
fn writes_by_many_threads_all_arrive() {
    in_every_folder(|folder| {
        let storage = FileStorage::create(folder.join("image.db"), false).unwrap();
        storage.set_len(8 << 20).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let storage = &storage;
                scope.spawn(move || {
                    let pages = Aligned::filled(16384, 0, thread + 1);
                    for round in 0..64 {
                        let offset = (round * 8 + u64::from(thread)) * 16384;
                        match round % 3 {
                            0 => storage.write_at(offset, pages.bytes()).unwrap(),
                            1 => storage.write_at(offset, &[thread + 1; 16384]).unwrap(),
                            _ => storage.write_durable_at(offset, pages.bytes()).unwrap(),
                        }
                    }
                    storage.sync().unwrap();
                });
            }
        });
        for (index, page) in read(&storage, 0, 8 << 20).chunks(16384).enumerate() {
            assert!(page.iter().all(|&byte| byte as usize == index % 8 + 1));
        }
    });
}

/// Needs root, `losetup`, and a free loop device: `cargo test -- --ignored block_device`.
#[test]
#[ignore = "needs root and a loop device"]
fn a_block_device_is_as_good_as_a_file() {
    let folder = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let backing = folder.path().join("backing");
    fs::File::create(&backing).unwrap().set_len(8 << 20).unwrap();
    let losetup = |arguments: &[&str]| {
        let output = std::process::Command::new("losetup").args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let device = losetup(&["--find", "--show", backing.to_str().unwrap()]);
    let result = std::panic::catch_unwind(|| use_device(Path::new(&device)));
    losetup(&["--detach", &device]);
    result.unwrap();
}

fn use_device(device: &Path) {
    assert!(matches!(FileStorage::create(device, false), Err(OpenError::Exists { .. })));
    let storage = FileStorage::create(device, true).unwrap();
    assert!(storage.is_device() && storage.is_direct());
    assert_eq!(storage.len().unwrap(), 8 << 20);
    storage.set_len(8 << 20).unwrap();
    assert_eq!(storage.set_len(4 << 20).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let pages = Aligned::filled(65536, 0, 3);
    storage.write_at(65536, pages.bytes()).unwrap();
    storage.write_durable_at(10, b"durable").unwrap();
    storage.allocate(0, 1 << 20).unwrap();
    assert_eq!(read(&storage, 65536, 65536), pages.bytes());
    let punched = storage.punch(65536, 4096).unwrap();
    assert_eq!(read(&storage, 65536, 1), [if punched { 0 } else { 3 }]);
    assert!(storage.write_at(8 << 20, b"past the end").is_err());
    assert!(storage.write_at((8 << 20) - 4, b"past the end").is_err());
    for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite] {
        let message = open_fails(device, mode).to_string();
        assert!(message.contains(&format!("in use by process {} (", std::process::id())), "{message}");
    }
    drop(storage);
    let storage = FileStorage::open(device, OpenMode::ReadOnly).unwrap();
    assert_eq!(read(&storage, 10, 7), b"durable");
}

#[test]
fn holes_are_skipped_and_data_are_not() {
    const MIB: u64 = 1 << 20;
    let look = |storage: &dyn Storage| {
        let next = storage.skip_hole(0).unwrap();
        assert!((9 * MIB..=10 * MIB + 5).contains(&next), "{next}");
        assert_eq!(storage.skip_hole(10 * MIB + 5), Some(10 * MIB + 5));
        let next = storage.skip_hole(12 * MIB).unwrap();
        assert!((29 * MIB..=30 * MIB).contains(&next), "{next}");
        assert_eq!(storage.skip_hole(32 * MIB), Some(64 * MIB), "nothing follows");
        assert_eq!(storage.skip_hole(70 * MIB), Some(70 * MIB), "behind the end");
    };
    let fill = |storage: &dyn Storage| {
        storage.set_len(64 * MIB).unwrap();
        storage.write_at(10 * MIB + 5, &[1]).unwrap();
        storage.write_at(30 * MIB, &[2; 100]).unwrap();
    };
    in_every_folder(|folder| {
        let storage = FileStorage::create(folder.join("image"), false).unwrap();
        fill(&storage);
        look(&storage);
        let overlay = OverlayStorage::new(storage, u64::MAX).unwrap();
        look(&overlay);
        overlay.write_at(20 * MIB, &[3]).unwrap();
        assert_eq!(overlay.skip_hole(12 * MIB), Some(20 * MIB));
        assert_eq!(overlay.skip_hole(20 * MIB + 1), Some(20 * MIB + 1));
    });
    let memory = MemStorage::new(0);
    fill(&memory);
    look(&memory);
    // Stale bytes are no zeros.
    let device = MemStorage::from_image(Image::new(MIB, Some(7)));
    assert_eq!(device.skip_hole(5), None);
}
