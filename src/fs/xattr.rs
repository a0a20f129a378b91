//! Extended attributes: small values in the tree, large ones in blocks of their own.

use super::dir::Slot;
use super::error::{FsError, Result};
use super::format::*;
use super::{Caller, Fs};
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
    fn find_xattr(&self, ino: Ino, name: &[u8]) -> Result<Slot<Xattr>> {
        let key = |place| xattr_key(ino, place);
        let place = |key: &[u8]| xattr_place(ino, key);
        let matches = |record: &[u8]| Ok(Some(Xattr::decode(ino, record)?).filter(|x| x.name == name));
        self.find_slot(self.hash(name), key, place, matches)
    }

    /// The value of an attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        if state.get().is_none_or(|inode| inode.xattrs == 0) {
            return Err(FsError::NoAttribute);
        }
        match self.find_xattr(ino, name)? {
            Slot::Taken(_, xattr) => self.xattr_value(ino, &xattr),
            Slot::Free(_) => Err(FsError::NoAttribute),
        }
    }

    fn xattr_value(&self, ino: Ino, xattr: &Xattr) -> Result<Vec<u8>> {
        match &xattr.value {
            XattrValue::Inline(value) => Ok(value.clone()),
            XattrValue::Blocks { len, start, crc } => {
                let mut value = vec![0; (*len as usize).next_multiple_of(BLOCK_SIZE)];
                self.tree.read_blocks(*start, &mut value)?;
                value.truncate(*len as usize);
                if crc32fast::hash(&value) != *crc {
                    return Err(FsError::damaged(ino, "checksum of an extended attribute does not match"));
                }
                Ok(value)
            }
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
                names.push(Xattr::decode(ino, cursor.value())?.name);
            }
        }
        Ok(names)
    }

    /// Sets an attribute.
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
        let node = self.node(ino);
        let mut state = self.lock(&node)?;
        let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
        let mut batch = Batch::new();
        let place = match (self.find_xattr(ino, name)?, how) {
            (Slot::Taken(..), SetXattr::Create) => return Err(FsError::Exists),
            (Slot::Free(_), SetXattr::Replace) => return Err(FsError::NoAttribute),
            (Slot::Taken(place, old), _) => {
                if let Some(run) = old.run() {
                    batch.free(run);
                    inode.blocks = inode.blocks.saturating_sub(run.len as u64);
                }
                place
            }
            (Slot::Free(place), _) => {
                inode.xattrs += 1;
                place.ok_or(FsError::NoSpace)?
            }
        };
        let mut taken = None;
        let stored = self.store_value(value, &mut taken);
        let result = stored.and_then(|value| {
            if let Some(run) = taken {
                batch.allocate(run);
                inode.blocks += run.len as u64;
            }
            batch.put(&xattr_key(ino, place), &Xattr { name: name.to_vec(), value }.encode());
            inode.ctime = caller.now;
            self.update(&mut batch, &node, &mut state, inode)
        });
        if let (Err(_), Some(run)) = (&result, taken) {
            self.tree.unreserve_blocks(run);
        }
        result
    }

    fn store_value(&self, value: &[u8], taken: &mut Option<Run>) -> Result<XattrValue> {
        if value.len() <= XATTR_INLINE_MAX {
            return Ok(XattrValue::Inline(value.to_vec()));
        }
        let blocks = value.len().div_ceil(BLOCK_SIZE) as u32;
        let run = self.tree.reserve_blocks(blocks)?;
        *taken = Some(run);
        if run.len < blocks {
            return Err(FsError::NoSpace);
        }
        let mut padded = value.to_vec();
        padded.resize(blocks as usize * BLOCK_SIZE, 0);
        self.tree.write_blocks(run.start, &padded)?;
        Ok(XattrValue::Blocks { len: value.len() as u32, start: run.start, crc: crc32fast::hash(value) })
    }

    /// Removes an attribute.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8], caller: &Caller) -> Result<()> {
        let node = self.node(ino);
        let mut state = self.lock(&node)?;
        let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
        let Slot::Taken(place, old) = self.find_xattr(ino, name)? else { return Err(FsError::NoAttribute) };
        let mut batch = Batch::new();
        if let Some(run) = old.run() {
            batch.free(run);
            inode.blocks = inode.blocks.saturating_sub(run.len as u64);
        }
        batch.delete(&xattr_key(ino, place));
        inode.xattrs = inode.xattrs.saturating_sub(1);
        inode.ctime = caller.now;
        self.update(&mut batch, &node, &mut state, inode)
    }
}
