//! A directory as a store.
//!
//! An object is a file under its name. It is written beside (`tmp/`), synced, and renamed or linked into its place; then its
//! directory is synced. What a crash leaves in `tmp/` is never read, and removed by [`LocalStore::tidy`].
//!
//! The directory is held open: one that was renamed or unmounted, or has another in its place, is written to no more, and nothing is
//! made anew where it was.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags, chmodat, fsync, mkdirat, openat};
use rustix::io::Errno;

use crate::error::{Error, Result, io_error, read_error};
use crate::{Entry, ObjectName, Put, Store};

const TEMPORARY: &str = "tmp";

/// A directory.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    /// The directory, whatever its path leads to by now.
    opened: File,
    counter: AtomicU64,
}

impl LocalStore {
    /// Uses a directory that is there.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none.
    pub fn open(root: &Path) -> Result<Self> {
        let metadata = fs::metadata(root).map_err(io_error("open", root))?;
        if !metadata.is_dir() {
            return Err(io_error("open", root)(io::ErrorKind::NotADirectory.into()));
        }
        let opened = File::open(root).map_err(io_error("open", root))?;
        Ok(Self { root: root.to_owned(), opened, counter: AtomicU64::new(0) })
    }

    /// Makes the directory, for its owner alone, where it is not there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(root: &Path) -> Result<Self> {
        make_dir(root)?;
        Self::open(root)
    }

    /// Removes what crashed writers left half-written and `age` ago.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn tidy(&self, age: Duration) -> Result<u64> {
        let dir = self.root.join(TEMPORARY);
        // Whoever can write to the storage may have made it a way to somewhere else.
        if !fs::symlink_metadata(&dir).is_ok_and(|metadata| metadata.is_dir()) {
            return Ok(0);
        }
        let mut removed = 0;
        for entry in read_dir(&dir)? {
            let entry = entry.map_err(io_error("list", &dir))?;
            let metadata = entry.metadata().map_err(io_error("look at", &entry.path()))?;
            let old = metadata.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|passed| passed >= age);
            let ours = entry.file_name().to_str().is_some_and(is_temporary);
            if old && ours && metadata.is_file() {
                fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// That the path leads to the directory that was opened.
    fn is_there(&self) -> Result<()> {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let opened = self.opened.metadata().map(identity).map_err(io_error("look at", &self.root))?;
        let found = fs::metadata(&self.root).map(identity).map_err(io_error("write below", &self.root))?;
        if found == opened {
            return Ok(());
        }
        let another = io::Error::new(io::ErrorKind::NotFound, "another directory has taken its place");
        Err(io_error("write below", &self.root)(another))
    }

    /// Makes a directory and those above it, each durable in the one above it; never the root, and never elsewhere.
    fn make_below(&self, dir: &Path) -> Result<()> {
        self.is_there()?;
        if self.root.join(dir).is_dir() {
            return Ok(());
        }
        if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
            self.make_below(above)?;
        }
        let made = match mkdirat(&self.opened, dir, Mode::RWXU) {
            Err(Errno::EXIST) => return Ok(()),
            made => made.and_then(|()| chmodat(&self.opened, dir, Mode::RWXU, AtFlags::empty())),
        };
        let above = dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        made.and_then(|()| {
            openat(&self.opened, above, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        })
        .and_then(|above| fsync(&above))
        .map_err(|errno| io_error("create", &self.root.join(dir))(errno.into()))
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    fn temporary(&self) -> Result<(PathBuf, File)> {
        let dir = self.root.join(TEMPORARY);
        self.make_below(Path::new(TEMPORARY))?;
        loop {
            let number = self.counter.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{}-{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error("create", &path)(error)),
            }
        }
    }

    fn open_object(&self, name: &ObjectName) -> Result<(PathBuf, File)> {
        let path = self.path(name);
        // Without waiting for whoever may be at the other end of what is no file.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) if file.metadata().is_ok_and(|metadata| metadata.is_file()) => Ok((path, file)),
            Ok(_) => Err(io_error("open", &path)(io::ErrorKind::InvalidInput.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_found(name)),
            Err(error) => Err(io_error("open", &path)(error)),
        }
    }
}

impl Store for LocalStore {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
        let path = self.path(name);
        let dir = path.parent().unwrap_or(&self.root);
        self.make_below(Path::new(name.as_str()).parent().unwrap_or(Path::new("")))?;
        let (temporary, mut file) = self.temporary()?;
        let written = file.write_all(bytes).and_then(|()| file.sync_data());
        let placed = written.map_err(io_error("write", &temporary)).and_then(|()| match mode {
            Put::Replace => fs::rename(&temporary, &path).map_err(io_error("rename to", &path)),
            Put::Create => match place_new(&temporary, &path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    Err(Error::Exists { name: name.to_string() })
                }
                placed => placed.map_err(io_error("rename to", &path)),
            },
        });
        if placed.is_err() {
            // If it stays, `tidy` removes it; the error says more.
            let _ = fs::remove_file(&temporary);
        }
        placed?;
        sync_dir(dir)
    }

    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        let (path, file) = self.open_object(name)?;
        let len = file.metadata().map_err(io_error("look at", &path))?.len();
        if len > limit {
            return Err(Error::TooLarge { name: name.to_string(), len, limit });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        file.take(limit).read_to_end(&mut bytes).map_err(read_error(name, &path))?;
        Ok(bytes)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        let (path, file) = self.open_object(name)?;
        let end = offset.saturating_add(len as u64);
        // Before memory is taken: the length may come from a hostile repository.
        if file.metadata().map_err(io_error("look at", &path))?.len() < end {
            return Err(Error::Short { name: name.to_string(), end });
        }
        let mut bytes = vec![0; len];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Error::Short { name: name.to_string(), end })
            }
            Err(error) => Err(read_error(name, &path)(error)),
        }
    }

    fn stat(&self, name: &ObjectName) -> Result<Entry> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(metadata) => entry(name.clone(), &metadata, &path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_found(name)),
            Err(error) => Err(io_error("look at", &path)(error)),
        }
    }

    fn list(&self, area: &str) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        let mut pending = vec![area.to_owned()];
        while let Some(area) = pending.pop() {
            let dir = self.root.join(&area);
            for file in read_dir(&dir)? {
                let file = file.map_err(io_error("list", &dir))?;
                // What is no name of ours is not ours.
                let Some(text) = file.file_name().to_str().map(|leaf| format!("{area}/{leaf}")) else { continue };
                let Ok(name) = ObjectName::new(text.as_str()) else { continue };
                // What a link leads to is what would be read.
                match fs::metadata(file.path()) {
                    Ok(metadata) if metadata.is_dir() => pending.push(text),
                    Ok(metadata) if metadata.is_file() => found.push(entry(name, &metadata, &file.path())?),
                    Ok(_) => {}
                    // Deleted by someone else since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io_error("look at", &file.path())(error)),
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(path.parent().unwrap_or(&self.root)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("remove", &path)(error)),
        }
    }

    fn creates_exclusively(&self) -> Result<bool> {
        Ok(true)
    }

    fn describe(&self) -> String {
        self.root.display().to_string()
    }
}

/// Gives a finished file its name, and never replaces what is there.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`]; what the file system says. The file keeps its old name then.
pub fn place_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems that do not know this know links, as NFS does.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

/// Whether a file in `tmp/` has a name that a writer gives: numbers with dashes between.
pub(crate) fn is_temporary(leaf: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    leaf.contains('-') && leaf.split('-').all(number)
}

fn not_found(name: &ObjectName) -> Error {
    Error::NotFound { name: name.to_string() }
}

fn entry(name: ObjectName, metadata: &fs::Metadata, path: &Path) -> Result<Entry> {
    let modified = metadata.modified().map_err(io_error("look at", path))?;
    Ok(Entry { name, len: metadata.len(), modified: SystemTime::min(modified, SystemTime::now()) })
}

/// Entries of a directory; none where there is no directory.
fn read_dir(dir: &Path) -> Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(Some(entries).into_iter().flatten()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(io_error("list", dir)(error)),
    }
}

/// Makes a directory and those above it, each durable in the one above it.
fn make_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_dir(above)?;
    }
    let made = fs::DirBuilder::new().create(dir);
    match made {
        Ok(()) => {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io_error("protect", dir))?;
            sync_dir(dir.parent().unwrap_or(Path::new("/")))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io_error("create", dir)(error)),
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|handle| handle.sync_all()).map_err(io_error("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_conforms() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::create(&dir.path().join("a/b")).unwrap();
        crate::conformance::run(&store).unwrap();
    }

    #[test]
    fn nothing_is_made_anew_where_the_directory_was() {
        let dir = tempfile::tempdir().unwrap();
        let (root, away) = (dir.path().join("repo"), dir.path().join("away"));
        let store = LocalStore::create(&root).unwrap();
        let name = |text: &str| ObjectName::new(text).unwrap();
        store.put(&name("packs/ab/1"), b"x", Put::Create).unwrap();
        fs::rename(&root, &away).unwrap();
        for object in ["packs/ab/2", "packs/cd/3", "config"] {
            assert!(store.put(&name(object), b"x", Put::Create).is_err(), "{object}");
        }
        assert!(!root.exists());
        // Another in its place, such as what a file system was mounted on.
        fs::create_dir(&root).unwrap();
        let refused = store.put(&name("packs/ab/2"), b"x", Put::Replace).unwrap_err();
        assert!(refused.to_string().contains("write below"), "{refused}");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        fs::remove_dir(&root).unwrap();
        fs::rename(&away, &root).unwrap();
        store.put(&name("packs/cd/3"), b"x", Put::Create).unwrap();
        assert_eq!(store.list("packs").unwrap().len(), 2);
    }

    #[test]
    fn what_a_crash_left_is_not_listed_and_is_tidied() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::create(dir.path()).unwrap();
        store.put(&ObjectName::new("index/1").unwrap(), b"x", Put::Replace).unwrap();
        fs::write(dir.path().join("tmp/1-1"), b"half").unwrap();
        assert_eq!(store.list("index").unwrap().len(), 1);
        assert_eq!(store.tidy(Duration::from_secs(3600)).unwrap(), 0);
        assert_eq!(store.tidy(Duration::ZERO).unwrap(), 1);
    }

    #[test]
    fn only_what_is_ours_is_tidied_and_nothing_behind_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::create(&dir.path().join("repo")).unwrap();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        fs::write(precious.join("1-1"), b"no temporary file").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join("repo/tmp")).unwrap();
        assert_eq!(store.tidy(Duration::ZERO).unwrap(), 0);
        assert!(precious.join("1-1").exists());
        fs::remove_file(dir.path().join("repo/tmp")).unwrap();
        fs::create_dir(dir.path().join("repo/tmp")).unwrap();
        for file in ["notes-1", "1", "-", "7-2"] {
            fs::write(dir.path().join("repo/tmp").join(file), b"x").unwrap();
        }
        assert_eq!(store.tidy(Duration::ZERO).unwrap(), 1);
    }

    #[test]
    fn links_are_listed_as_what_they_lead_to_and_what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::create(dir.path()).unwrap();
        let name = |text: &str| ObjectName::new(text).unwrap();
        store.put(&name("packs/ab/1"), b"1234", Put::Create).unwrap();
        fs::rename(dir.path().join("packs/ab"), dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("packs/ab")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("packs/cd")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("packs/ef")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("packs/12"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let listed: Vec<_> = store.list("packs").unwrap().into_iter().map(|entry| (entry.name, entry.len)).collect();
        assert_eq!(listed, [(name("packs/ab/1"), 4)]);
        assert!(store.get(&name("packs/12"), 10).is_err() && store.get_range(&name("packs/12"), 0, 1).is_err());
        assert_eq!(store.get(&name("packs/ab/1"), 10).unwrap(), b"1234");
    }

    #[test]
    fn a_bad_sector_is_told_from_other_failures() {
        let path = Path::new("object");
        let name = ObjectName::new("index/1").unwrap();
        for (errno, unreadable) in
            [(rustix::io::Errno::IO, true), (rustix::io::Errno::BADMSG, true), (rustix::io::Errno::ACCESS, false)]
        {
            let error = read_error(&name, path)(errno.into());
            assert_eq!(matches!(error, Error::Unreadable { .. }), unreadable, "{error}");
        }
    }

    #[test]
    fn objects_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::create(&dir.path().join("repo")).unwrap();
        store.put(&ObjectName::new("keys/1").unwrap(), b"x", Put::Create).unwrap();
        for (path, mode) in [("repo", 0o700), ("repo/keys", 0o700), ("repo/keys/1", 0o600)] {
            let found = fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{path}");
        }
    }
}
