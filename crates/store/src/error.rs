//! What can go wrong with a store.

use std::io;

/// Result of a store.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that fails in a store.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text is its documentation; fields are what the text shows
pub enum Error {
    #[error("{name:?} cannot be the name of an object")]
    BadName { name: String },
    #[error("there is no object {name}")]
    NotFound { name: String },
    #[error("there is an object {name} already")]
    Exists { name: String },
    #[error("object {name} has {len} bytes, more than the {limit} that it may have")]
    TooLarge { name: String, len: u64, limit: u64 },
    #[error("object {name} ends before byte {end}")]
    Short { name: String, end: u64 },
    #[error("object {name} cannot be read: its place in the storage is bad")]
    Unreadable { name: String, source: io::Error },
    #[error("the store is full")]
    Full { source: io::Error },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: String, source: io::Error },
    #[error("the store does not answer: {reason}")]
    Unavailable { reason: String },
    #[error("the store refuses: {reason}")]
    Refused { reason: String },
    #[error("{text:?} does not name a repository: {why}")]
    BadAddress { text: String, why: &'static str },
}

impl Error {
    /// Whether the same call may succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::Interrupted
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
            ),
            _ => false,
        }
    }

    /// Whether the object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// An error in reading an object: a bad sector, or a file system that finds its own checksum wrong, is told apart.
pub(crate) fn read_error(name: &crate::ObjectName, path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
    use rustix::io::Errno;
    let (name, other) = (name.to_string(), io_error("read", path));
    move |source| match Errno::from_io_error(&source) {
        Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG) => Error::Unreadable { name, source },
        _ => other(source),
    }
}

/// An I/O error on a path; a full disk is told apart.
pub(crate) fn io_error(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full { source },
        _ => Error::Io { action, path, source },
    }
}
