//! Errors of readers. They cross from the reader's process to whoever asked, so they are plain data.

use serde::{Deserialize, Serialize};

/// What can go wrong while a file system is read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// There is no such file.
    #[error("there is no such file")]
    NotFound,
    /// Something on the way, or at its end, is no directory.
    #[error("not a directory")]
    NotADirectory,
    /// A directory has no bytes to read.
    #[error("is a directory")]
    IsADirectory,
    /// Only symbolic links have a target.
    #[error("not a symbolic link")]
    NotALink,
    /// Symbolic links that lead to each other.
    #[error("too many symbolic links on the way")]
    TooManyLinks,
    /// What is on the disk contradicts its own format.
    #[error("the disk's content is damaged: {what}")]
    Damaged {
        /// What, and what is wrong with it.
        what: String,
    },
    /// What is on the disk is sound for all that is known, but not read here.
    #[error("{what}: this is not supported")]
    Unsupported {
        /// What it needs.
        what: String,
    },
    /// The disk's bytes could not be had.
    #[error("bytes {at} to {end} of {disk} cannot be read: {reason}")]
    Disk {
        /// Which disk.
        disk: String,
        /// The first byte.
        at: u64,
        /// Behind the last.
        end: u64,
        /// Why.
        reason: String,
    },
    /// The process that reads the file system ended, or does not answer.
    #[error("the process that reads the file system {reason}")]
    Reader {
        /// What it did.
        reason: String,
    },
}

/// The outcome of reading.
pub type Result<T> = std::result::Result<T, Error>;

/// Damage, in words.
pub(crate) fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { what: what.into() }
}

/// A feature that is not read.
pub(crate) fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { what: what.into() }
}
