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

impl Error {
    /// What happened, with what caused it.
    #[must_use]
    pub fn told(&self) -> String {
        self.causes().map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    /// Whether there may be no room for what was tried: it may succeed when there is some.
    pub(crate) fn may_want_room(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, DiskFull, SystemIoFailure};
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let of_files = |cause: &(dyn std::error::Error + 'static)| {
            let error = cause.downcast_ref::<std::io::Error>();
            error.is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded))
        };
        // SQLite does not say why it could not make a file, or make one longer.
        let of_sqlite = |cause: &(dyn std::error::Error + 'static)| {
            let code = cause.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
            matches!(code, Some(CannotOpen | DiskFull | SystemIoFailure))
        };
        self.causes().any(|cause| of_files(cause) || of_sqlite(cause))
    }

    fn causes(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        std::iter::successors(Some(self as &(dyn std::error::Error + 'static)), |cause| cause.source())
    }
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
