//! POSIX ACLs: the kernel's encoding, and what `fs/posix_acl.c` does with them.
//!
//! An access ACL that says no more than the mode is not stored. Where one is stored, the mode's three classes are its owner, its
//! mask (or its group, without a mask) and its others; [`Fs::set_attributes`] keeps both in step.

use super::dir::Slot;
use super::error::{FsError, Result};
use super::format::*;
use super::{Caller, Fs};
use crate::tree::Batch;

/// The attribute that holds an access ACL.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds a directory's default ACL, which what is created in it inherits.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
/// The attribute that holds a file's capabilities.
pub const CAPABILITY: &[u8] = b"security.capability";
/// The most entries of an ACL: it lies in the tree.
pub const ACL_ENTRIES_MAX: usize = (XATTR_INLINE_MAX - HEAD) / ENTRY;

const VERSION: u32 = 2;
const HEAD: usize = 4;
const ENTRY: usize = 8;
/// The id of entries that name nobody.
const NOBODY: u32 = u32::MAX;

/// Whom an entry of an ACL is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u16)]
pub enum Tag {
    /// The owner.
    Owner = 0x01,
    /// A named user.
    User = 0x02,
    /// The file's group.
    Group = 0x04,
    /// A named group.
    NamedGroup = 0x08,
    /// The most that the file's group and those named can have.
    Mask = 0x10,
    /// All others.
    Other = 0x20,
}

/// An entry of an ACL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AclEntry {
    /// Whom it is about.
    pub tag: Tag,
    /// Read 4, write 2, execute 1.
    pub permissions: u16,
    /// The user or group, if it names one.
    pub id: u32,
}

impl AclEntry {
    fn is_named(&self) -> bool {
        matches!(self.tag, Tag::User | Tag::NamedGroup)
    }
}

/// An ACL: sorted by tag, with one owner, group and others, and a mask if anybody is named. Or it is empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Acl(Vec<AclEntry>);

impl Acl {
    /// Reads the kernel's encoding: version 2, then tag, permissions and id of each entry; little-endian.
    ///
    /// # Errors
    /// [`FsError::Invalid`] if it is not a valid ACL; [`FsError::AttributeTooLarge`] if it has too many entries.
    pub fn decode(b: &[u8]) -> Result<Acl> {
        let (head, rest) = b.split_first_chunk::<HEAD>().ok_or(FsError::Invalid)?;
        let (chunks, odd) = rest.as_chunks::<ENTRY>();
        if u32::from_le_bytes(*head) != VERSION || !odd.is_empty() {
            return Err(FsError::Invalid);
        }
        if chunks.len() > ACL_ENTRIES_MAX {
            return Err(FsError::AttributeTooLarge);
        }
        let entries: Option<Vec<_>> = chunks.iter().map(Self::decode_entry).collect();
        let acl = Acl(entries.ok_or(FsError::Invalid)?);
        if acl.is_valid() { Ok(acl) } else { Err(FsError::Invalid) }
    }

    fn decode_entry(b: &[u8; ENTRY]) -> Option<AclEntry> {
        let [t0, t1, p0, p1, id @ ..] = *b;
        let tags = [Tag::Owner, Tag::User, Tag::Group, Tag::NamedGroup, Tag::Mask, Tag::Other];
        let tag = tags.into_iter().find(|t| *t as u16 == u16::from_le_bytes([t0, t1]))?;
        let permissions = u16::from_le_bytes([p0, p1]);
        let mut entry = AclEntry { tag, permissions, id: u32::from_le_bytes(id) };
        if !entry.is_named() {
            entry.id = NOBODY;
        }
        (permissions <= 7 && entry.is_named() == (entry.id != NOBODY)).then_some(entry)
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|e| e.tag == tag).count();
        let named = self.0.iter().any(AclEntry::is_named);
        self.0.is_empty()
            || self.0.is_sorted_by_key(|e| e.tag)
                && [Tag::Owner, Tag::Group, Tag::Other].iter().all(|t| count(*t) == 1)
                && (named as usize..=1).contains(&count(Tag::Mask))
    }

    /// The kernel's encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            b.extend_from_slice(&(entry.tag as u16).to_le_bytes());
            b.extend_from_slice(&entry.permissions.to_le_bytes());
            b.extend_from_slice(&entry.id.to_le_bytes());
        }
        b
    }

    /// Whether it has no entries, which means that there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it says no more than a mode can.
    pub fn is_minimal(&self) -> bool {
        self.0.iter().all(|e| matches!(e.tag, Tag::Owner | Tag::Group | Tag::Other))
    }

    /// The tag whose entry is the mode's group class.
    fn group_class(&self) -> Tag {
        if self.0.iter().any(|e| e.tag == Tag::Mask) { Tag::Mask } else { Tag::Group }
    }

    /// The entries that are the mode's classes, each with its place in the mode.
    fn classes(&mut self) -> impl Iterator<Item = (&mut u16, u32)> {
        let group = self.group_class();
        self.0.iter_mut().filter_map(move |e| match e.tag {
            Tag::Owner => Some((&mut e.permissions, 6)),
            tag if tag == group => Some((&mut e.permissions, 3)),
            Tag::Other => Some((&mut e.permissions, 0)),
            _ => None,
        })
    }

    /// The mode of an inode that gets this access ACL.
    pub fn mode(&self, old: u16) -> u16 {
        self.clone().classes().fold(old & !0o777, |mode, (permissions, shift)| mode | *permissions << shift)
    }

    /// `chmod` changes the entries that are the mode's classes.
    pub fn set_mode(&mut self, mode: u16) {
        for (permissions, shift) in self.classes() {
            *permissions = mode >> shift & 7;
        }
    }

    /// A default ACL becomes the access ACL of something created with `mode`: neither allows more than the other does. Returns
    /// it and the mode that goes with it.
    pub fn inherited(&self, mode: u16) -> (Acl, u16) {
        let mut acl = self.clone();
        for (permissions, shift) in acl.classes() {
            *permissions &= mode >> shift & 7;
        }
        let mode = acl.mode(mode);
        (acl, mode)
    }
}

impl Fs {
    /// The ACL that is stored in an inode whose flags say so.
    fn stored_acl(&self, ino: Ino, name: &[u8]) -> Result<(u64, Acl)> {
        let damaged = || FsError::damaged(ino, "its ACL is missing or impossible");
        match self.find_xattr(ino, name)? {
            Slot::Taken(place, Xattr { value: XattrValue::Inline(value), .. }) => {
                let acl = Acl::decode(&value).map_err(|_| damaged())?;
                if acl.is_empty() { Err(damaged()) } else { Ok((place, acl)) }
            }
            _ => Err(damaged()),
        }
    }

    /// Sets an ACL. An access ACL sets the mode, and is not stored if that says it all.
    pub(super) fn set_acl(&self, ino: Ino, name: &[u8], value: &[u8], caller: &Caller) -> Result<()> {
        let acl = Acl::decode(value)?;
        if acl.is_empty() {
            return self.remove_xattr(ino, name, caller);
        }
        let node = self.node(ino);
        let mut state = self.lock(&node)?;
        let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
        let mut batch = Batch::new();
        match inode.kind {
            Kind::Symlink => return Err(FsError::NotPermitted),
            Kind::Directory => {}
            _ if name == ACL_DEFAULT => return Err(FsError::NotPermitted),
            _ => {}
        }
        if name == ACL_ACCESS {
            inode.mode = acl.mode(inode.mode);
            if !caller.privileged {
                inode.mode &= !0o2000;
            }
        }
        let mut taken = None;
        if name == ACL_ACCESS && acl.is_minimal() {
            self.delete_xattr(ino, name, &mut inode, &mut batch)?;
        } else {
            let slot = self.find_xattr(ino, name)?;
            self.put_xattr(ino, name, &acl.encode(), slot, &mut inode, &mut taken, &mut batch)?;
        }
        debug_assert!(taken.is_none(), "an ACL lies in the tree");
        inode.ctime = caller.now;
        self.update(&mut batch, &node, &mut state, inode)
    }

    /// Adds to `batch` what becomes of the stored access ACL when the mode has changed.
    pub(super) fn chmod_acl(&self, ino: Ino, inode: &Inode, batch: &mut Batch) -> Result<()> {
        if inode.flags & INODE_ACCESS_ACL != 0 {
            let (place, mut acl) = self.stored_acl(ino, ACL_ACCESS)?;
            acl.set_mode(inode.mode);
            batch.put(&xattr_key(ino, place), &acl_record(ACL_ACCESS, &acl));
        }
        Ok(())
    }

    /// A newborn inherits its parent's default ACL: as its access ACL, and if it is a directory as its default ACL as well.
    pub(super) fn inherit_acl(
        &self,
        parent: Ino,
        ino: Ino,
        inode: &mut Inode,
        batch: &mut Batch,
    ) -> Result<()> {
        let (_, default) = self.stored_acl(parent, ACL_DEFAULT)?;
        let (access, mode) = default.inherited(inode.mode);
        inode.mode = mode;
        let mut place = name_place(self.hash(ACL_ACCESS), 0);
        if !access.is_minimal() {
            inode.flags |= INODE_ACCESS_ACL;
            inode.xattrs += 1;
            batch.put(&xattr_key(ino, place), &acl_record(ACL_ACCESS, &access));
        }
        if inode.kind == Kind::Directory {
            inode.flags |= INODE_DEFAULT_ACL;
            inode.xattrs += 1;
            let of_default = name_place(self.hash(ACL_DEFAULT), 0);
            // Should both have one hash, this is the next slot.
            place = if of_default == place { place + 1 } else { of_default };
            batch.put(&xattr_key(ino, place), &acl_record(ACL_DEFAULT, &default));
        }
        Ok(())
    }
}

fn acl_record(name: &[u8], acl: &Acl) -> Vec<u8> {
    Xattr { name: name.to_vec(), value: XattrValue::Inline(acl.encode()) }.encode()
}
