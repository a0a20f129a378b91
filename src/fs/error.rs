//! Why a call of the filesystem failed. No errno here: the FUSE adapter has the table.

use super::format::Ino;

/// The result of a filesystem call.
pub type Result<T> = std::result::Result<T, FsError>;

/// Why a filesystem call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// No such name, inode or attribute.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// A directory is needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory cannot be used here.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// Longer than [`super::format::NAME_MAX`], or a link's target longer than [`super::format::SYMLINK_MAX`].
    #[error("name too long")]
    NameTooLong,
    /// The arguments contradict each other.
    #[error("invalid argument")]
    Invalid,
    /// Not for this inode, or not for this caller: EACCES.
    #[error("permission denied")]
    NotPermitted,
    /// Beyond the largest file.
    #[error("file too large")]
    FileTooLarge,
    /// More links than an inode can have.
    #[error("too many links")]
    TooManyLinks,
    /// No space in the image or on the host, or more entries of one hash than a directory can hold.
    #[error("no space left")]
    NoSpace,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The extended attribute is too large.
    #[error("attribute too large")]
    AttributeTooLarge,
    /// The filesystem is mounted read-only, or became so after an error.
    #[error("read-only filesystem")]
    ReadOnly,
    /// Contents of a file, or the value of an attribute, are damaged or were given up by a repair. Nothing else is concerned.
    #[error("{0}")]
    Contents(crate::Error),
    /// Metadata on the image are damaged, or reading or writing failed.
    #[error("{0}")]
    Engine(crate::Error),
}

impl FsError {
    /// Damage found in what belongs to an inode.
    pub fn damaged(ino: Ino, reason: impl ToString) -> Self {
        FsError::Engine(crate::Error::corrupt(format_args!("inode {}", ino.0), reason))
    }

    /// The same, with what was being done.
    pub(super) fn during(self, what: impl std::fmt::Display) -> Self {
        use crate::Error::{Corrupt, Io};
        match self {
            FsError::Engine(Corrupt { place, reason }) => {
                FsError::Engine(Corrupt { place: format!("{what}: {place}"), reason })
            }
            FsError::Engine(Io { context, source }) => {
                FsError::Engine(Io { context: format!("{what}: {context}").into(), source })
            }
            error => error,
        }
    }

    /// Damage found in a file's contents or in an attribute's value.
    pub fn unreadable(ino: Ino, reason: impl ToString) -> Self {
        FsError::Contents(crate::Error::corrupt(format_args!("inode {}", ino.0), reason))
    }
}

impl From<crate::Error> for FsError {
    fn from(error: crate::Error) -> Self {
        match error {
            crate::Error::NoSpace => FsError::NoSpace,
            crate::Error::ReadOnly => FsError::ReadOnly,
            error => FsError::Engine(error),
        }
    }
}
