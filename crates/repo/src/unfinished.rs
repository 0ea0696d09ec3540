//! A file that has its name only once it is complete and on the disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use keyframe_store::local::place_new;

use crate::error::{Error, Result};

/// What becomes of a file that is there under the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and the new one is not made: whether it was there at the beginning or came meanwhile.
    Keep,
    /// The new one takes its place at the end.
    Replace,
}

/// A file on its way to its name. What is not finished goes when this goes.
#[derive(Debug)]
pub struct UnfinishedFile {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    existing: Existing,
}

impl UnfinishedFile {
    /// Begins beside the name, for the owner alone. Only a file is ever replaced.
    ///
    /// # Errors
    /// [`Error::Usage`] where something is there that is to stay; [`Error::Io`].
    pub fn create(path: &Path, existing: Existing) -> Result<Self> {
        let there = fs::symlink_metadata(path);
        // A link stays, and what it leads to is replaced.
        let path = match &there {
            Ok(metadata) if metadata.is_symlink() => fs::canonicalize(path).map_err(trouble("follow", path))?,
            _ => path.to_owned(),
        };
        match fs::metadata(&path) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(usage(&format!("{} is there, and no file: it is not replaced", path.display())));
            }
            Ok(_) if existing == Existing::Keep => {
                return Err(usage(&format!("{} is there already; --force replaces it", path.display())));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(trouble("look at", &path)(error)),
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".partial-{}", std::process::id()));
        let partial = PathBuf::from(partial);
        let file = OpenOptions::new().write(true).read(true).create_new(true).mode(0o600).open(&partial);
        let file = file.map_err(trouble("create", &partial))?;
        Ok(Self { file, partial, path, existing })
    }

    /// What is written to.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies meanwhile.
    #[must_use]
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Gives it its name, once it is on the disk.
    ///
    /// # Errors
    /// [`Error::Usage`] where something has come that is to stay; [`Error::Io`]. There is no file of ours then.
    pub fn done(self) -> Result<()> {
        self.file.sync_all().map_err(trouble("sync", &self.partial))?;
        self.place().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                usage(&format!("{} is there by now; --force replaces it", self.path.display()))
            }
            _ => trouble("rename to", &self.path)(error),
        })?;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(trouble("sync", dir))
    }

    fn place(&self) -> io::Result<()> {
        match self.existing {
            Existing::Replace => fs::rename(&self.partial, &self.path),
            Existing::Keep => place_new(&self.partial, &self.path),
        }
    }
}

impl Drop for UnfinishedFile {
    fn drop(&mut self) {
        // After `done` it is not there any more; before, nobody wants half of it.
        let _ = fs::remove_file(&self.partial);
    }
}

fn usage(what: &str) -> Error {
    Error::Usage { what: what.to_owned() }
}

fn trouble<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn it_has_its_name_when_it_is_finished_and_is_gone_when_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let unfinished = UnfinishedFile::create(&path, Existing::Keep).unwrap();
        unfinished.file().write_all(b"half").unwrap();
        assert!(!path.exists() && unfinished.partial().exists());
        drop(unfinished);
        assert_eq!(files(dir.path()), Vec::<String>::new());
        let unfinished = UnfinishedFile::create(&path, Existing::Keep).unwrap();
        unfinished.file().write_all(b"whole").unwrap();
        unfinished.done().unwrap();
        assert_eq!((files(dir.path()), fs::read(&path).unwrap()), (vec!["disk.raw".to_owned()], b"whole".to_vec()));
    }

    #[test]
    fn what_came_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let unfinished = UnfinishedFile::create(&path, Existing::Keep).unwrap();
        fs::write(&path, b"somebody else's").unwrap();
        let error = unfinished.done().unwrap_err();
        assert!(matches!(error, Error::Usage { .. }), "{error}");
        assert!(matches!(UnfinishedFile::create(&path, Existing::Keep), Err(Error::Usage { .. })));
        assert_eq!((files(dir.path()).len(), fs::read(&path).unwrap()), (1, b"somebody else's".to_vec()));
    }

    #[test]
    fn only_files_are_replaced_and_links_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("disk.raw"), dir.path().join("link"));
        fs::write(&path, b"old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let unfinished = UnfinishedFile::create(&link, Existing::Replace).unwrap();
        unfinished.file().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old", "until it is finished");
        unfinished.done().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && fs::read(&path).unwrap() == b"new");
        assert!(UnfinishedFile::create(dir.path(), Existing::Replace).is_err(), "a directory");
    }
}
