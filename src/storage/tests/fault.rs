//! Fault injection.

use std::sync::Arc;

use super::read;
use crate::storage::{Fault, FaultStorage, MemStorage, OpKind, Storage};

fn storage() -> FaultStorage<MemStorage> {
    FaultStorage::new(MemStorage::new(1 << 20))
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn the_nth_operation_fails_and_no_other() {
    let storage = storage();
    storage.write_at(0, b"before arming").unwrap();
    storage.arm(Fault::nth(&[OpKind::Write, OpKind::WriteDurable], 2));
    storage.write_at(0, b"0").unwrap();
    storage.sync().unwrap();
    storage.write_durable_at(1, b"1").unwrap();
    assert_eq!(errno(storage.write_vectored_at(2, &[b"2"])), libc::EIO);
    storage.write_at(3, b"3").unwrap();
    assert_eq!(read(&storage, 0, 4), b"01f3");
    assert_eq!(storage.fired(), 1);
    assert_eq!(storage.disarm(), 1);
    assert_eq!(storage.disarm(), 0);
}

#[test]
fn every_kind_of_operation_can_fail() {
    let storage = storage();
    let tries: [(OpKind, &dyn Fn() -> std::io::Result<()>); 7] = [
        (OpKind::Read, &|| storage.read_at(0, &mut [0])),
        (OpKind::Write, &|| storage.write_at(0, &[0])),
        (OpKind::WriteDurable, &|| storage.write_durable_at(0, &[0])),
        (OpKind::Sync, &|| storage.sync()),
        (OpKind::SetLen, &|| storage.set_len(4096)),
        (OpKind::Allocate, &|| storage.allocate(0, 4096).map(drop)),
        (OpKind::Punch, &|| storage.punch(0, 4096).map(drop)),
    ];
    for (failing, _) in &tries {
        storage.arm(Fault::nth(&[*failing], 0).errno(libc::ENOSPC));
        for (kind, attempt) in &tries {
            let result = attempt();
            if kind == failing {
                assert_eq!(errno(result), libc::ENOSPC);
            } else {
                result.unwrap();
            }
        }
        assert_eq!(storage.disarm(), 1);
    }
}

#[test]
fn a_dead_medium_stays_dead_until_disarmed() {
    let storage = storage();
    storage.arm(Fault::nth(&[OpKind::Sync], 1).forever());
    storage.sync().unwrap();
    for _ in 0..3 {
        assert_eq!(errno(storage.sync()), libc::EIO);
    }
    assert_eq!(storage.disarm(), 3);
    storage.sync().unwrap();
}

#[test]
fn half_a_write_may_have_happened_although_it_failed() {
    let storage = storage();
    let kinds = [OpKind::Write, OpKind::WriteDurable];
    storage.arm(Fault::nth(&kinds, 0).forever().partial());
    assert!(storage.write_at(0, b"abcd").is_err());
    assert!(storage.write_durable_at(4, b"efgh").is_err());
    assert!(storage.write_vectored_at(8, &[b"i", b"j", b"kl"]).is_err());
    assert_eq!(read(&storage, 0, 12), b"ab\0\0ef\0\0ij\0\0");
}

#[test]
fn operations_and_bytes_are_counted_for_write_amplification() {
    let storage = Arc::new(storage());
    storage.write_at(0, &[1; 100]).unwrap();
    let earlier = storage.counts();
    storage.write_vectored_at(0, &[&[1; 10], &[2; 20]]).unwrap();
    storage.write_durable_at(0, &[1; 7]).unwrap();
    storage.read_at(0, &mut [0; 3]).unwrap();
    storage.sync().unwrap();
    storage.punch(0, 4096).unwrap();
    let counts = storage.counts().since(&earlier);
    assert_eq!((counts.calls(OpKind::Write), counts.bytes(OpKind::Write)), (1, 30));
    assert_eq!((counts.calls(OpKind::WriteDurable), counts.bytes(OpKind::WriteDurable)), (1, 7));
    assert_eq!((counts.calls(OpKind::Read), counts.bytes(OpKind::Read)), (1, 3));
    assert_eq!((counts.calls(OpKind::Sync), counts.calls(OpKind::Punch)), (1, 1));
    assert_eq!(counts.bytes_written(), 37);
    assert_eq!(storage.inner().len().unwrap(), 1 << 20);
}
