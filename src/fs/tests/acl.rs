//! ACLs and capabilities: who may do what must be what `fs/posix_acl.c` makes of it.

use super::*;
use crate::fs::acl::{ACL_ACCESS, ACL_DEFAULT, ACL_ENTRIES_MAX, Acl, CAPABILITY};

/// An ACL in the kernel's encoding, of tags, permissions and ids.
pub(super) fn encoded(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut b = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        b.extend_from_slice(&tag.to_le_bytes());
        b.extend_from_slice(&permissions.to_le_bytes());
        b.extend_from_slice(&id.to_le_bytes());
    }
    b
}

const NONE: u32 = u32::MAX;

fn minimal(owner: u16, group: u16, other: u16) -> Vec<u8> {
    encoded(&[(1, owner, NONE), (4, group, NONE), (0x20, other, NONE)])
}

/// `u::rwx,u:7:rw-,g::r-x,m::mask,o::r--`
fn named(mask: u16) -> Vec<u8> {
    encoded(&[(1, 7, NONE), (2, 6, 7), (4, 5, NONE), (0x10, mask, NONE), (0x20, 4, NONE)])
}

fn chmod(fs: &Fs, ino: Ino, mode: u16, caller: &Caller) -> u16 {
    fs.set_attributes(ino, &SetAttributes { mode: Some(mode), ..SetAttributes::default() }, caller)
        .unwrap()
        .mode
}

fn set(fs: &Fs, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
    fs.set_xattr(ino, name, value, SetXattr::Any, &ME)
}

#[test]
fn only_valid_acls_are_taken() {
    for good in [minimal(7, 5, 0), named(6), encoded(&[])] {
        assert_eq!(Acl::decode(&good).unwrap().encode(), good);
    }
    let bad: &[&[(u16, u16, u32)]] = &[
        &[(1, 7, NONE), (4, 5, NONE)],
        &[(4, 5, NONE), (1, 7, NONE), (0x20, 0, NONE)],
        &[(1, 7, NONE), (1, 7, NONE), (4, 5, NONE), (0x20, 0, NONE)],
        &[(1, 8, NONE), (4, 5, NONE), (0x20, 0, NONE)],
        &[(1, 7, NONE), (2, 7, 5), (4, 5, NONE), (0x20, 0, NONE)],
        &[(1, 7, NONE), (2, 7, NONE), (4, 5, NONE), (0x10, 7, NONE), (0x20, 0, NONE)],
        &[(1, 7, NONE), (3, 7, 1), (4, 5, NONE), (0x10, 7, NONE), (0x20, 0, NONE)],
        &[(1, 7, NONE), (4, 5, NONE), (0x10, 7, NONE), (0x10, 7, NONE), (0x20, 0, NONE)],
    ];
    for entries in bad {
        assert!(matches!(Acl::decode(&encoded(entries)), Err(FsError::Invalid)), "{entries:?}");
    }
    for bytes in [&b""[..], &[2, 0, 0], &[1, 0, 0, 0], &minimal(7, 5, 0)[..27]] {
        assert!(matches!(Acl::decode(bytes), Err(FsError::Invalid)), "{bytes:?}");
    }
    let mut many = vec![(1, 7, NONE)];
    many.extend((0..ACL_ENTRIES_MAX as u32).map(|id| (2, 6, id)));
    many.extend([(4, 5, NONE), (0x10, 7, NONE), (0x20, 0, NONE)]);
    assert!(matches!(Acl::decode(&encoded(&many)), Err(FsError::AttributeTooLarge)));
}

#[test]
fn an_access_acl_and_the_mode_say_the_same() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let ino = create(&fs, ROOT, b"f", New::File, 0o2640, &Caller { privileged: true, ..ME }).unwrap();
    set(&fs, ino, ACL_ACCESS, &named(3)).unwrap();
    assert_eq!(fs.attributes(ino).unwrap().mode, 0o734, "the mask is the group class, and sgid is gone");
    assert_eq!(fs.get_xattr(ino, ACL_ACCESS).unwrap(), named(3));
    assert_eq!(chmod(&fs, ino, 0o640, &ME), 0o640);
    let expected = encoded(&[(1, 6, NONE), (2, 6, 7), (4, 5, NONE), (0x10, 4, NONE), (0x20, 0, NONE)]);
    assert_eq!(fs.get_xattr(ino, ACL_ACCESS).unwrap(), expected, "chmod changes owner, mask and others");
    fs.close().unwrap();
    let fs = open(&storage);
    set(&fs, ino, ACL_ACCESS, &minimal(7, 5, 1)).unwrap();
    assert_eq!(fs.attributes(ino).unwrap().mode, 0o751);
    assert!(!fs.attributes(ino).unwrap().has_xattrs, "the mode says it all");
    assert!(matches!(fs.get_xattr(ino, ACL_ACCESS), Err(FsError::NoAttribute)));
    set(&fs, ino, ACL_ACCESS, &named(7)).unwrap();
    set(&fs, ino, ACL_ACCESS, &encoded(&[])).unwrap();
    assert!(matches!(fs.get_xattr(ino, ACL_ACCESS), Err(FsError::NoAttribute)));
    assert_eq!(fs.attributes(ino).unwrap().mode, 0o774);
    assert!(matches!(set(&fs, ino, ACL_DEFAULT, &named(7)), Err(FsError::NotPermitted)));
    fs.remove_xattr(ino, ACL_DEFAULT, &ME).unwrap();
}

#[test]
fn default_acls_are_inherited_instead_of_the_umask() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let dir = create(&fs, ROOT, b"d", New::Directory, 0o755, &ME).unwrap();
    set(&fs, dir, ACL_DEFAULT, &named(6)).unwrap();
    let file = fs.create(dir, b"f", New::File, 0o666, 0o077, &ME).unwrap();
    assert_eq!(file.mode, 0o664);
    let expected = encoded(&[(1, 6, NONE), (2, 6, 7), (4, 5, NONE), (0x10, 6, NONE), (0x20, 4, NONE)]);
    assert_eq!(fs.get_xattr(file.ino, ACL_ACCESS).unwrap(), expected);
    assert!(matches!(fs.get_xattr(file.ino, ACL_DEFAULT), Err(FsError::NoAttribute)));
    let inner = fs.create(dir, b"inner", New::Directory, 0o750, 0o077, &ME).unwrap();
    assert_eq!(inner.mode, 0o740);
    assert_eq!(fs.get_xattr(inner.ino, ACL_DEFAULT).unwrap(), named(6));
    assert_eq!(fs.list_xattrs(inner.ino).unwrap().len(), 2);
    let link = fs.create(dir, b"link", New::Symlink(b"f"), 0o777, 0o077, &ME).unwrap();
    assert_eq!((link.mode, link.has_xattrs), (0o777, false));
    // A default ACL that names nobody leaves a mode only.
    set(&fs, dir, ACL_DEFAULT, &minimal(7, 5, 0)).unwrap();
    let plain = fs.create(dir, b"plain", New::File, 0o666, 0, &ME).unwrap();
    assert_eq!((plain.mode, plain.has_xattrs), (0o640, false));
    fs.remove_xattr(dir, ACL_DEFAULT, &ME).unwrap();
    assert_eq!(fs.create(dir, b"g", New::File, 0o666, 0o027, &ME).unwrap().mode, 0o640);
}

#[test]
fn changes_take_capabilities_away() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let root = Caller { uid: 0, privileged: true, ..ME };
    let ino = create(&fs, ROOT, b"f", New::File, 0o755, &ME).unwrap();
    let resize = SetAttributes { size: Some(5), ..SetAttributes::default() };
    let chown = SetAttributes { uid: Some(5), ..SetAttributes::default() };
    type Change<'a> = &'a dyn Fn(&Fs) -> Result<()>;
    let changes: [Change<'_>; 4] = [
        &|fs| fs.write(ino, 0, b"x", &root).map(drop),
        &|fs| fs.set_attributes(ino, &resize, &root).map(|_| ()),
        &|fs| fs.set_attributes(ino, &chown, &root).map(|_| ()),
        &|fs| fs.fallocate(ino, 0, 10_000, Fallocate::Allocate, &root),
    ];
    set(&fs, ino, b"user.kept", b"1").unwrap();
    for change in changes {
        set(&fs, ino, CAPABILITY, &[1; 20]).unwrap();
        chmod(&fs, ino, 0o755, &ME);
        assert_eq!(fs.get_xattr(ino, CAPABILITY).unwrap(), [1; 20]);
        change(&fs).unwrap();
        assert!(matches!(fs.get_xattr(ino, CAPABILITY), Err(FsError::NoAttribute)));
        assert_eq!(fs.list_xattrs(ino).unwrap(), [b"user.kept"]);
    }
}

#[test]
fn sgid_is_kept_only_by_the_privileged() {
    let storage = image(64 << 20);
    let fs = open(&storage);
    let root = Caller { privileged: true, ..ME };
    let dir = create(&fs, ROOT, b"d", New::Directory, 0o2775, &ME).unwrap();
    let mode =
        |name: &[u8], mode, caller: &Caller| fs.create(dir, name, New::File, mode, 0, caller).unwrap().mode;
    assert_eq!(mode(b"a", 0o2755, &ME), 0o755);
    assert_eq!(mode(b"b", 0o2745, &ME), 0o2745, "without execution it is a mark for locks");
    assert_eq!(mode(b"c", 0o2755, &root), 0o2755);
    let ino = fs.lookup(dir, b"c").unwrap();
    assert_eq!(chmod(&fs, ino, 0o2755, &ME), 0o755);
    assert_eq!(chmod(&fs, ino, 0o6755, &root), 0o6755);
    let chown = SetAttributes { gid: Some(5), ..SetAttributes::default() };
    assert_eq!(fs.set_attributes(ino, &chown, &root).unwrap().mode, 0o755, "a new owner is never its user");
}
