//! What can go wrong with the daemon itself. What goes wrong with a job is the job's.

use std::path::PathBuf;

/// Why the daemon cannot start, or something asked of it cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something of the operating system.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The catalog.
    #[error("the catalog of jobs")]
    Catalog(#[from] rusqlite::Error),
    /// What is no JSON, or cannot be.
    #[error("a record of a job")]
    Record(#[from] serde_json::Error),
    /// Something of machines.
    #[error(transparent)]
    Engine(#[from] keyframe_engine::Error),
    /// What was asked for cannot be.
    #[error("{0}")]
    Refused(String),
    /// Whoever asks may not.
    #[error("{0}")]
    NotAllowed(String),
}

/// What is given with an I/O error.
pub(crate) trait IoContext<T> {
    /// Says what was tried, on what.
    fn or_io(self, action: &'static str, path: &std::path::Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn or_io(self, action: &'static str, path: &std::path::Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source })
    }
}
