//! What can go wrong between two sides.

use std::io;

/// A failure of a connection or of one request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke, or the other side is silent.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The other side does not follow the protocol: nothing more is read from it.
    #[error("the other side does not speak NBD as it should: {what}")]
    Protocol {
        /// What it did.
        what: &'static str,
    },
    /// The server refuses an option.
    #[error("the server refuses {option}: {why}")]
    Refused {
        /// Which option.
        option: &'static str,
        /// Its words, or the name of its reply.
        why: String,
    },
    /// The server answers a request with an error; the connection can be used on.
    #[error("the server answers error {errno} at byte {offset}: {message}")]
    Request {
        /// An errno of Linux.
        errno: u32,
        /// Where in the export.
        offset: u64,
        /// What the server says of it; may be empty.
        message: String,
    },
    /// A request reaches behind the end of the export, or is longer than one may be.
    #[error("{len} bytes at {offset} are not within the export's {bytes}, or more than one request may ask for")]
    Range {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The export's length in bytes.
        bytes: u64,
    },
}

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn protocol<T>(what: &'static str) -> Result<T> {
    Err(Error::Protocol { what })
}
