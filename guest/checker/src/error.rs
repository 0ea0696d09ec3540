//! What can keep the checker from starting. Once it runs, trouble is a complaint on the serial line
//! and never an end: see [`crate::board::Board::complain`].

use std::io;
use std::path::PathBuf;

/// Why this boot came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A word of the kernel command line that is ours and does not parse.
    #[error("cannot understand {word:?} on the kernel command line")]
    Parameter {
        /// The word.
        word: String,
    },
    /// A file, device or mount point that cannot be used.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A disk that is named on the command line and did not appear.
    #[error("there is no disk {name}")]
    NoDisk {
        /// Its device name.
        name: String,
    },
    /// A disk too small for a ring of slots.
    #[error("disk {name} has {found_bytes} bytes, and {needed_bytes} are needed")]
    SmallDisk {
        /// Its device name.
        name: String,
        /// Its size.
        found_bytes: u64,
        /// The size of a ring.
        needed_bytes: u64,
    },
    /// No partition has the name that `root=PARTLABEL=` asks for.
    #[error("no partition is named {label:?}")]
    NoPartition {
        /// The name.
        label: String,
    },
    /// The kernel's random source failed.
    #[error("cannot draw a session token")]
    Token(#[source] rustix::io::Errno),
}

impl Error {
    /// For `map_err`: what was tried with which path.
    pub fn file<E: Into<io::Error>>(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source: source.into() }
    }
}
