//! Room on file systems, looked at before anything is begun.

use std::path::Path;

use keyframe_types::ByteLen;

use crate::error::{Error, IoContext as _};

/// Room that operations leave for everything else.
const HEADROOM: ByteLen = ByteLen::from_mib(64);

/// Bytes that can be written to the file system of `path`.
///
/// # Errors
/// [`Error::Io`].
pub fn free(path: &Path) -> Result<ByteLen, Error> {
    let status = rustix::fs::statvfs(path).map_err(std::io::Error::from).or_io("look at the file system of", path)?;
    Ok(ByteLen::from_bytes(status.f_bavail.saturating_mul(status.f_frsize)))
}

/// Checks that `needed` bytes fit on the file system of `path`, with some to spare.
///
/// # Errors
/// [`Error::NoSpace`].
pub fn check(path: &Path, needed: ByteLen) -> Result<(), Error> {
    let free = free(path)?;
    let needed = needed + HEADROOM;
    if free < needed {
        return Err(Error::NoSpace { path: path.to_owned(), needed, free });
    }
    Ok(())
}
