//! Documents for processes of this boot only: renamed into place, so that nobody reads half of one, and not synced.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, IoContext as _};

/// A file's content; `None` when there is no such file.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Io`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.or_io("read", path)?,
    };
    let damaged = |error: serde_json::Error| Error::Damaged { path: path.to_owned(), reason: error.to_string() };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// A file's content, which must be there.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Io`].
pub fn needed<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let missing = || Error::Damaged { path: path.to_owned(), reason: "it is missing".to_owned() };
    read(path)?.ok_or_else(missing)
}

/// Writes a file. The temporary name is the writer's own.
///
/// # Errors
/// [`Error::Io`]; the old content is then still there.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).map_err(|source| Error::Encode { source })?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        std::fs::rename(&temporary, path)
    };
    write().or_io("write", path).inspect_err(|_| {
        // It may be what fills the disk.
        let _ = std::fs::remove_file(&temporary);
    })
}
