//! A file that has its name only once it is complete and on the disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use keyframe_repo::Error;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::repository::usage;

/// A file on its way to its name.
pub struct Target {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    replace: bool,
}

impl Target {
    /// Begins beside the name. What is there already is replaced at the end, if that is wanted and it is a file.
    pub fn create(path: &Path, replace: bool) -> Result<Self, Error> {
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
            Ok(_) if !replace => {
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
        Ok(Self { file, partial, path, replace })
    }

    /// What is written to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, once it is on the disk.
    pub fn done(self) -> Result<(), Error> {
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
        if self.replace {
            return fs::rename(&self.partial, &self.path);
        }
        match renameat_with(CWD, &self.partial, CWD, &self.path, RenameFlags::NOREPLACE) {
            // A file system that cannot promise it: a link promises the same.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::hard_link(&self.partial, &self.path),
            renamed => Ok(renamed?),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After `done` it is not there, or it is a second name; before, nobody wants half an image.
        let _ = fs::remove_file(&self.partial);
    }
}

fn trouble<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_owned(), source }
}
