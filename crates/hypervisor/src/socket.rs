//! Unix sockets at paths of any length.
//!
//! An address holds 107 bytes; a home directory may lie deeper. Binding and connecting through
//! `/proc/self/fd/DIRECTORY/NAME` is short wherever the directory lies.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

fn short(path: &Path) -> io::Result<(File, PathBuf)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "a socket needs a directory and a name");
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid());
    };
    let dir = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((dir, through))
}

/// Listens on `path`.
///
/// # Errors
/// When the directory does not exist or the name is taken.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (_dir, through) = short(path)?;
    UnixListener::bind(through)
}

/// Connects to `path`.
///
/// # Errors
/// When nobody listens there.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_dir, through) = short(path)?;
    UnixStream::connect(through)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_directory_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let deep = (0..30).fold(root.path().to_owned(), |dir, _| dir.join("directory"));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("engine.sock");
        let _listener = listen(&path).unwrap();
        connect(&path).unwrap();
        assert!(connect(&deep.join("none.sock")).is_err());
    }
}
