//! Durable writes: temporary file, fsync, rename, fsync of the directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::{Error, IoContext as _};

/// Replaces `path` by `bytes`: after a crash it holds the old bytes or the new, never a part.
///
/// # Errors
/// [`Error::Io`]; `path` is then unchanged.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().or_io("write", path)?;
    sync_parent(path)
}

/// Makes names created in, renamed within or removed from the directory of `path` durable.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_parent(path: &Path) -> Result<(), Error> {
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Makes the bytes of a file that somebody else wrote durable, and its times.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_file(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).or_io("make durable", path)
}

/// Makes the names in the directory `dir` durable.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    sync_file(dir)
}

/// Creates a directory that only its owner can enter, and its parents.
///
/// # Errors
/// [`Error::Io`].
pub fn create_private_dir(dir: &Path) -> Result<(), Error> {
    // Each new name is in a directory of its own. The last may be one that was made before and never synced.
    let missing = dir.ancestors().skip(1).take_while(|above| !above.as_os_str().is_empty() && !above.exists());
    let fresh: Vec<&Path> = std::iter::once(dir).chain(missing).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).or_io("create", dir)?;
    fresh.into_iter().try_for_each(sync_parent)
}

/// Removes a file durably; nothing happens when there is none.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_file(path: &Path) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    remove_file_unsynced(path)?;
    sync_parent(path)
}

/// Removes a file that may come back after a power cut, until something else is written durably in its directory; nothing
/// happens when there is none.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_file_unsynced(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.or_io("remove", path),
    }
}

/// Removes a directory with all that is in it; nothing happens when there is none. Should a process that is about to end
/// leave its last word there meanwhile, that goes, too.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_dir(path: &Path) -> Result<(), Error> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && attempts < 50 => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => {
                other.or_io("remove", path)?;
                return sync_parent(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_replacement_leaves_the_old_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("head.json");
        replace(&path, b"old").unwrap();
        // The temporary file cannot be opened: a directory has its name.
        fs::create_dir(path.with_extension("tmp")).unwrap();
        assert!(replace(&path, b"new").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        fs::remove_dir(path.with_extension("tmp")).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        remove_file(&dir.path().join("none")).unwrap();
        remove_dir(&dir.path().join("none")).unwrap();
    }
}
