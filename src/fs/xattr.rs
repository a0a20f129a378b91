//! Extended attributes: small values in the tree, large ones in blocks of their own.

use super::acl::{ACL_ACCESS, ACL_DEFAULT, CAPABILITY};
use super::dir::Slot;
use super::error::{FsError, Result};
use super::format::*;
use super::table::{Node, State};
use super::{Caller, Fs, Inner};
use crate::page::{BLOCK_SIZE, Run};
use crate::tree::Batch;

/// How an attribute may be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetXattr {
    /// Whether it exists or not.
    Any,
    /// Only if it does not exist.
    Create,
    /// Only if it exists.
    Replace,
}

impl Fs {
    /// The value of an attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        let inode = state.get().ok_or(FsError::NotFound)?;
        if inode.xattrs == 0 || inode.flags & flag(name) != flag(name) {
            return Err(FsError::NoAttribute);
        }
        match self.find_xattr(ino, name)? {
            Slot::Taken(_, xattr) => self.xattr_value(ino, &xattr),
            Slot::Free(_) => Err(FsError::NoAttribute),
        }
    }

    /// The names of all attributes.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        let mut names = Vec::new();
        if state.get().is_some_and(|inode| inode.xattrs > 0) {
            let mut cursor = self.tree.cursor();
            cursor.seek(&xattr_key(ino, 0))?;
            while cursor.next()? && xattr_place(ino, cursor.key()).is_some() {
                if names.len() == XATTRS_MAX as usize {
                    return Err(FsError::damaged(ino, "it has more attributes than an inode can have"));
                }
                names.push(Xattr::decode(ino, cursor.value())?.name);
            }
        }
        Ok(names)
    }

    /// Sets an attribute. An ACL must be a valid one, and sets the mode.
    ///
    /// # Errors
    /// [`FsError::NotPermitted`]: this inode cannot have such an ACL.
    pub fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
        caller: &Caller,
    ) -> Result<()> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(FsError::Invalid);
        }
        if value.len() > XATTR_SIZE_MAX {
            return Err(FsError::AttributeTooLarge);
        }
        self.admit()?;
        if matches!(name, ACL_ACCESS | ACL_DEFAULT) {
            return self.set_acl(ino, name, value, caller);
        }
        let node = self.node(ino);
        let mut state = self.lock(&node)?;
        let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
        let slot = self.find_xattr(ino, name)?;
        match (&slot, how) {
            (Slot::Taken(..), SetXattr::Create) => return Err(FsError::Exists),
            (Slot::Free(_), SetXattr::Replace) => return Err(FsError::NoAttribute),
            (Slot::Free(_), _) if inode.xattrs >= XATTRS_MAX => return Err(FsError::NoSpace),
            _ => {}
        }
        let (mut batch, mut taken) = (Batch::new(), None);
        let put = self.put_xattr(ino, name, value, slot, &mut inode, &mut taken, &mut batch);
        let result = put.and_then(|()| {
            inode.ctime = caller.now;
            self.update(&mut batch, &node, &mut state, inode)
        });
        if let (Err(_), Some(run)) = (&result, taken) {
            self.tree.unreserve_blocks(run);
        }
        result
    }

    /// Removes an attribute. An ACL that is not there is removed already.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8], caller: &Caller) -> Result<()> {
        let node = self.node(ino);
        // What is detached has no attributes.
        let mut state = self.lock_in_memory(&node)?;
        let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
        let mut batch = Batch::new();
        if !self.delete_xattr(ino, name, &mut inode, &mut batch)? {
            let is_acl = matches!(name, ACL_ACCESS | ACL_DEFAULT);
            return if is_acl { Ok(()) } else { Err(FsError::NoAttribute) };
        }
        inode.ctime = caller.now;
        self.update(&mut batch, &node, &mut state, inode)
    }
}

impl Inner {
    pub(super) fn find_xattr(&self, ino: Ino, name: &[u8]) -> Result<Slot<Xattr>> {
        let key = |place| xattr_key(ino, place);
        let place = |key: &[u8]| xattr_place(ino, key);
        let matches = |record: &[u8]| Ok(Some(Xattr::decode(ino, record)?).filter(|x| x.name == name));
        self.find_slot(self.hash(name), key, place, matches)
    }

    fn xattr_value(&self, ino: Ino, xattr: &Xattr) -> Result<Vec<u8>> {
        match &xattr.value {
            XattrValue::Inline(value) => Ok(value.clone()),
            XattrValue::Blocks { len, start, crc } => {
                let mut value = vec![0; (*len as usize).next_multiple_of(BLOCK_SIZE)];
                self.read_contents(ino, *start, &mut value)?;
                value.truncate(*len as usize);
                if crc32fast::hash(&value) != *crc {
                    return Err(FsError::unreadable(ino, "checksum of an extended attribute does not match"));
                }
                Ok(value)
            }
        }
    }

    /// Adds an attribute's new value to a batch and to its inode. `taken` are blocks to give back if the batch is not applied.
    #[expect(
        clippy::too_many_arguments,
        reason = "one value, and the three places that its change is noted in"
    )]
    pub(super) fn put_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        slot: Slot<Xattr>,
        inode: &mut Inode,
        taken: &mut Option<Run>,
        batch: &mut Batch,
    ) -> Result<()> {
        let place = match slot {
            Slot::Taken(place, old) => {
                free_value(&old, inode, batch);
                place
            }
            Slot::Free(place) => {
                inode.xattrs = inode.xattrs.saturating_add(1);
                place.ok_or(FsError::NoSpace)?
            }
        };
        let value = self.store_value(value, taken)?;
        if let Some(run) = *taken {
            batch.allocate(run);
            inode.blocks = inode.blocks.saturating_add(run.len as u64);
        }
        inode.flags |= flag(name);
        batch.put(&xattr_key(ino, place), &Xattr { name: name.to_vec(), value }.encode());
        Ok(())
    }

    /// Adds to a batch that an attribute goes; whether there is one.
    pub(super) fn delete_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        inode: &mut Inode,
        batch: &mut Batch,
    ) -> Result<bool> {
        if inode.xattrs == 0 || inode.flags & flag(name) != flag(name) {
            return Ok(false);
        }
        let Slot::Taken(place, old) = self.find_xattr(ino, name)? else { return Ok(false) };
        free_value(&old, inode, batch);
        batch.delete(&xattr_key(ino, place));
        inode.xattrs = inode.xattrs.saturating_sub(1);
        inode.flags &= !flag(name);
        Ok(true)
    }

    /// A file that is about to be changed loses its capabilities, whoever changes it. On entry and exit it is locked for changes.
    pub(super) fn strip_capability(&self, node: &Node, state: &mut State) -> Result<()> {
        let inode = state.get().ok_or(FsError::NotFound)?;
        if inode.flags & INODE_CAPABILITY == 0 {
            return Ok(());
        }
        let (mut inode, mut batch) = (inode.clone(), Batch::new());
        self.drop_capability(node.ino, &mut inode, &mut batch)?;
        self.update(&mut batch, node, state, inode)
    }

    /// Adds to a batch that an inode loses its capabilities, if it has any.
    pub(super) fn drop_capability(&self, ino: Ino, inode: &mut Inode, batch: &mut Batch) -> Result<()> {
        self.delete_xattr(ino, CAPABILITY, inode, batch).map(|_| ())
    }

    fn store_value(&self, value: &[u8], taken: &mut Option<Run>) -> Result<XattrValue> {
        if value.len() <= XATTR_INLINE_MAX {
            return Ok(XattrValue::Inline(value.to_vec()));
        }
        let blocks = value.len().div_ceil(BLOCK_SIZE) as u32;
        // All of them in a row.
        let run = self.or_after_cleaning(|| {
            let run = self.tree.reserve_blocks(blocks)?;
            if run.len < blocks {
                self.tree.unreserve_blocks(run);
                return Err(FsError::NoSpace);
            }
            Ok(run)
        })?;
        *taken = Some(run);
        let mut padded = value.to_vec();
        padded.resize(blocks as usize * BLOCK_SIZE, 0);
        self.tree.write_blocks(run.start, &padded)?;
        Ok(XattrValue::Blocks { len: value.len() as u32, start: run.start, crc: crc32fast::hash(value) })
    }
}

/// The flag of inodes that have an attribute of this name; zero: there is none for it.
fn flag(name: &[u8]) -> u8 {
    match name {
        ACL_ACCESS => INODE_ACCESS_ACL,
        ACL_DEFAULT => INODE_DEFAULT_ACL,
        CAPABILITY => INODE_CAPABILITY,
        _ => 0,
    }
}

fn free_value(old: &Xattr, inode: &mut Inode, batch: &mut Batch) {
    if let Some(run) = old.run() {
        batch.free(run);
        inode.blocks = inode.blocks.saturating_sub(run.len as u64);
    }
}
