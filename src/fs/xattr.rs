//! Extended attributes: small values in the tree, large ones in blocks of their own.

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

/// An attribute's place, or a free one.
enum Place {
    Taken(u64, Xattr),
    Free(Option<u64>),
}

impl Fs {
    fn find_xattr(&self, ino: Ino, name: &[u8]) -> Result<Place> {
        let hash = self.hash(name);
        let (mut free, mut expected) = (None, hash << 8);
        let mut cursor = self.tree.cursor();
        cursor.seek(&xattr_key(ino, hash << 8))?;
        while cursor.next()? {
            let Some(place) = xattr_place(ino, cursor.key()).filter(|p| p >> 8 == hash) else { break };
            let xattr = Xattr::decode(ino, cursor.value())?;
            if xattr.name == name {
                return Ok(Place::Taken(place, xattr));
            }
            if place > expected {
                free = free.or(Some(expected));
            }
            expected = place + 1;
        }
        if expected >> 8 == hash {
            free = free.or(Some(expected));
        }
        Ok(Place::Free(free))
    }

    /// The value of an attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.node(ino);
        let state = self.lock_shared(&node)?;
        if state.get().is_none_or(|inode| inode.xattrs == 0) {
            return Err(FsError::NoAttribute);
        }
        match self.find_xattr(ino, name)? {
            Place::Taken(_, xattr) => self.xattr_value(ino, &xattr),
            Place::Free(_) => Err(FsError::NoAttribute),
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
        let node = self.node(ino);
        let mut state = self.lock(&node)?;
        let mut inode = state.get().ok_or(FsError::NotFound)?.clone();
        let mut batch = Batch::new();
        let place = match (self.find_xattr(ino, name)?, how) {
            (Place::Taken(..), SetXattr::Create) => return Err(FsError::Exists),
            (Place::Free(_), SetXattr::Replace) => return Err(FsError::NoAttribute),
            (Place::Taken(place, old), _) => {
                if let Some(run) = old.run() {
                    batch.free(run);
                    inode.blocks = inode.blocks.saturating_sub(run.len as u64);
                }
                place
            }
            (Place::Free(place), _) => {
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
        let Place::Taken(place, old) = self.find_xattr(ino, name)? else { return Err(FsError::NoAttribute) };
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
