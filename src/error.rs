//! The errors of the storage engine, as every layer above `storage` returns them.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

/// The result of an engine call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an engine call failed. No variant carries an errno: that is the business of the FUSE adapter.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The image is damaged: what was read there cannot be right. Nothing of it was used.
    #[error("image is damaged: {place}: {reason}")]
    Corrupt {
        /// What was read: a page, a log position, a superblock.
        place: String,
        /// Which check it failed.
        reason: String,
    },
    /// The file is not a btfs image, or one that this version cannot use.
    #[error("{0}")]
    Unusable(String),
    /// Reading or writing the image failed. After a failed write or sync the image is read-only, and every
    /// later commit returns this same error.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, and to what.
        context: Cow<'static, str>,
        /// The operating system's error.
        source: Arc<io::Error>,
    },
    /// There is no room left in the image, or none for its growth on the host's disk.
    #[error("no space left in the image")]
    NoSpace,
    /// The image was opened read-only.
    #[error("the image is open read-only")]
    ReadOnly,
    /// A key, a value or a batch exceeds a limit of the tree.
    #[error("{what} of {size} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size (bytes, or the number of leaves).
        size: usize,
        /// The largest size allowed.
        limit: usize,
    },
}

impl Error {
    /// An [`Error::Io`] with what was being done.
    pub fn io(context: impl Into<Cow<'static, str>>, source: io::Error) -> Self {
        Error::Io { context: context.into(), source: Arc::new(source) }
    }

    /// An [`Error::Corrupt`] for the thing that was read and the check that it failed.
    pub fn corrupt(place: impl ToString, reason: impl ToString) -> Self {
        Error::Corrupt { place: place.to_string(), reason: reason.to_string() }
    }

    /// The [`Error::Unusable`] of an image that was being repaired.
    pub fn half_repaired() -> Self {
        Error::Unusable("a repair of the image was interrupted: let btfs fsck -y finish it".into())
    }

    /// Whether memory was short, which says nothing of the image.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::OutOfMemory)
    }

    /// Whether the image or the disk below is to blame.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Corrupt { .. } | Error::Io { .. }) && !self.is_out_of_memory()
    }

    /// Whether this says that the image is damaged.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Error::Corrupt { .. })
    }
}
