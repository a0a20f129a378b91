//! What repairs a problem, as the checks note it down.

use std::fmt;

use crate::fs::format::{Ino, Kind};
use crate::page::Run;

/// One step of a repair. Steps that change a record say which field becomes what, so that several can apply to one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fix {
    /// Write a superblock again from its twin.
    Superblock(usize),
    /// Write both superblocks again from what was found out without them.
    Superblocks,
    /// Make the file so many bytes long.
    Extend(u64),
    /// Write both superblocks again with this size of the image.
    ImageSize(u64),
    /// Give all names the places that the superblock's hash seed says.
    Rehash,
    /// Empty a doublewrite half.
    Doublewrite(usize),
    /// Write all bitmap pages again from what is in use.
    Bitmaps,
    /// Build the tree again from its leaves.
    Tree,
    /// Do what else there is to do, and take the mark away that keeps the image from being used.
    Finish,
    /// Delete a record.
    Delete(Vec<u8>),
    /// Delete a name; it is counted as lost.
    DeleteName(Vec<u8>),
    /// Move an entry to the place of its name's hash.
    MoveEntry(Vec<u8>),
    /// Set the kind in an entry.
    EntryKind(Vec<u8>, Kind),
    /// Write the record of the filesystem's state.
    State(u64),
    /// Make an empty root directory.
    Root,
    /// Set a directory's next number.
    Next(Ino, u32),
    /// Give a directory a new birth group.
    NewBirths(Ino),
    /// Give a directory a new group for its entries; those in the old one are another's.
    NewEntries(Ino),
    /// Set a directory's number of entries.
    Count(Ino, u64),
    /// Set a directory's parent.
    Parent(Ino, Ino),
    /// Set an inode's number of links.
    Links(Ino, u32),
    /// Set an inode's size.
    Size(Ino, u64),
    /// Set an inode's number of blocks.
    Blocks(Ino, u64),
    /// Set an inode's number of extended attributes.
    Xattrs(Ino, u32),
    /// Set an inode's flags.
    Flags(Ino, u8),
    /// Make the record of a file again.
    Remake(Ino, Remade),
    /// Mark an inode as an orphan: it is deleted.
    Orphan(Ino),
    /// Name an inode in `lost+found`; it then has so many links.
    Reconnect(Ino, u32),
    /// Make a directory in `lost+found` that has the entries of a group.
    Adopt(u64),
    /// What is left stays as it is.
    Accept,
    /// The contents of a file from a byte on, which lie in these blocks of one extent, are given up: reading them is an error.
    Lose(Ino, u64, Run),
    /// What is not mapped of a range of a file is given up.
    LoseRange(Ino, u64, u64),
    /// Give the blocks of an extent or attribute, by its key, new places of their own.
    Unshare(Vec<u8>),
    /// Do the same for all contents that lie in shared blocks and are not marked as shared.
    Contested,
    /// Write the counts of shared blocks again.
    SharedCounts,
}

/// A file whose record is lost, as its extents and attributes tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Remade {
    pub size: u64,
    /// From here to the end it is marked as lost.
    pub lost: u64,
    pub blocks: u64,
    /// Number of attributes.
    pub xattrs: u32,
    pub flags: u8,
}

impl Fix {
    /// Whether this is for the image as a whole. There are few of these that differ.
    pub fn is_for_all(&self) -> bool {
        use Fix::*;
        self.is_past_the_log() || matches!(self, State(_) | Root | Contested | SharedCounts)
    }

    /// Whether this is done to the image itself: it is no step of the batches that repair records.
    pub fn is_past_the_log(&self) -> bool {
        use Fix::*;
        matches!(
            self,
            Superblock(_)
                | Superblocks
                | Extend(_)
                | ImageSize(_)
                | Rehash
                | Doublewrite(_)
                | Bitmaps
                | Tree
                | Finish
        )
    }

    /// Whether `-p` does this: nothing that a user could miss goes.
    pub fn is_safe(&self) -> bool {
        use Fix::*;
        matches!(
            self,
            Superblock(_)
                | Doublewrite(_)
                | Bitmaps
                | Finish
                | State(_)
                | Next(..)
                | Count(..)
                | Links(..)
                | Blocks(..)
                | Xattrs(..)
                | Flags(..)
                | SharedCounts
        )
    }
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fix::Superblock(_) => write!(f, "write it again from the other one"),
            Fix::Superblocks => write!(f, "write both again from what is left"),
            Fix::Extend(len) => write!(f, "make the file {len} bytes long"),
            Fix::ImageSize(size) => write!(f, "set the image's size to {size} bytes"),
            Fix::Rehash => write!(f, "give all names new places"),
            Fix::Doublewrite(_) => write!(f, "empty the doublewrite half"),
            Fix::Bitmaps => write!(f, "write the bitmaps again from what is in use"),
            Fix::Tree => write!(f, "build the tree again from the leaves that are whole"),
            Fix::Finish => write!(f, "finish it"),
            Fix::Delete(_) => write!(f, "delete the record"),
            Fix::DeleteName(_) => write!(f, "delete the name"),
            Fix::MoveEntry(_) => write!(f, "move it to the right place"),
            Fix::EntryKind(_, kind) => write!(f, "set the entry's kind to {kind:?}"),
            Fix::State(next) => write!(f, "set the group counter to {next}"),
            Fix::Root => write!(f, "make an empty root directory"),
            Fix::Next(_, next) => write!(f, "set the next number to {next}"),
            Fix::NewBirths(_) => write!(f, "give it a new birth group"),
            Fix::NewEntries(_) => write!(f, "give it a new group for its entries"),
            Fix::Count(_, n) => write!(f, "set the number of entries to {n}"),
            Fix::Parent(_, parent) => write!(f, "set the parent to inode {}", parent.0),
            Fix::Links(_, n) => write!(f, "set the number of links to {n}"),
            Fix::Size(_, n) => write!(f, "set the size to {n}"),
            Fix::Blocks(_, n) => write!(f, "set the number of blocks to {n}"),
            Fix::Xattrs(_, n) => write!(f, "set the number of attributes to {n}"),
            Fix::Flags(_, n) => write!(f, "set the flags to {n:#x}"),
            Fix::Remake(..) => write!(f, "make the inode again from its contents"),
            Fix::Orphan(ino) => write!(f, "delete inode {}", ino.0),
            Fix::Reconnect(ino, _) => write!(f, "name it lost+found/#{}", ino.0),
            Fix::Adopt(group) => write!(f, "make the directory lost+found/#group-{group} of it"),
            Fix::Accept => write!(f, "what is left is kept"),
            Fix::Lose(..) | Fix::LoseRange(..) => {
                write!(f, "mark it as lost: reading it is an error until it is written again")
            }
            Fix::Unshare(_) | Fix::Contested => {
                write!(f, "copy it to blocks of its own if its checksum is right, else give it up")
            }
            Fix::SharedCounts => write!(f, "write the counts of shared blocks again"),
        }
    }
}
