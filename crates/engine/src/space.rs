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

/// Space that a file takes, in whole blocks; nothing for one that cannot be looked at.
#[must_use]
pub fn used(path: &Path) -> ByteLen {
    use std::os::unix::fs::MetadataExt as _;
    let blocks = std::fs::symlink_metadata(path).map_or(0, |found| found.blocks());
    ByteLen::from_bytes(blocks.saturating_mul(512))
}

/// Space that all files below a directory take.
#[must_use]
pub fn used_below(dir: &Path) -> ByteLen {
    let (mut total, mut waiting) = (ByteLen::ZERO, vec![dir.to_owned()]);
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(path);
            } else {
                total = total + used(&path);
            }
        }
    }
    total
}
