use crate::storage::buffer::DIRECT_ALIGN;
use crate::storage::{AlignedBuf, FileStorage, Storage};

#[test]
fn a_buffer_stays_aligned_and_keeps_its_bytes_as_it_grows() {
    let mut buf = AlignedBuf::new();
    assert_eq!((buf.len(), buf.capacity()), (0, 0));
    let mut expected = Vec::new();
    for i in 0..200 {
        let piece = vec![i as u8; i * 37];
        buf.extend_from_slice(&piece);
        expected.extend_from_slice(&piece);
        assert!(buf.as_ptr().addr().is_multiple_of(DIRECT_ALIGN));
    }
    assert_eq!(*buf, *expected);
    buf.resize(10);
    buf.resize(5000);
    expected.truncate(10);
    expected.resize(5000, 0);
    assert_eq!(*buf, *expected, "what was cut off reads as zeros when it comes back");
}

#[test]
fn a_buffer_that_is_used_again_takes_no_new_memory() {
    let mut buf = AlignedBuf::zeroed(100_000);
    assert!(buf.iter().all(|b| *b == 0));
    let (at, capacity) = (buf.as_ptr(), buf.capacity());
    for len in [0, 1, 4096, 99_999, capacity] {
        buf.reset(len);
        assert_eq!((buf.len(), buf.as_ptr()), (len, at));
    }
    buf.clear();
    buf.resize(capacity);
    assert_eq!((buf.as_ptr(), buf.capacity()), (at, capacity));
}

#[test]
fn an_empty_buffer_is_an_empty_slice() {
    let mut buf = AlignedBuf::default();
    assert!(buf.is_empty() && buf.as_mut().is_empty());
    assert_eq!(format!("{buf:?}"), "AlignedBuf(0 of 0 bytes)");
}

#[test]
fn an_aligned_buffer_reads_what_was_written_at_any_length() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FileStorage::create(dir.path().join("image"), false).unwrap();
    storage.set_len(1 << 20).unwrap();
    for len in [1, 4095, 4096, 16384, 65536, 65537, 131072] {
        let mut written = AlignedBuf::zeroed(len);
        written.iter_mut().enumerate().for_each(|(i, b)| *b = (i ^ len) as u8);
        storage.write_at(8192, &written).unwrap();
        let mut read = AlignedBuf::new();
        read.reset(len);
        storage.read_at(8192, &mut read).unwrap();
        assert_eq!(*read, *written);
    }
}
