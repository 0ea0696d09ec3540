//! Directories here, held open, and what is made in them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags};

use crate::fs::{Kind, Metadata, Time, Xattr};

/// Runs of zeros of this length are left out of files.
const HOLE: usize = 4096;

/// Whether a guest's name can be a name here.
pub(super) fn is_name(name: &[u8]) -> bool {
    let special = matches!(name, b"" | b"." | b"..");
    !special && name.len() <= 255 && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// A directory.
pub(super) struct Dir(OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

impl Dir {
    /// Opens what a person named: links on the way are theirs.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(fs::openat(CWD, path, DIRECTORY, Mode::empty())?))
    }

    pub(super) fn again(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// A directory in it, made if it is not there; and whether it was.
    pub(super) fn directory(&self, name: &[u8]) -> io::Result<(Self, bool)> {
        let name = OsStr::from_bytes(name);
        let fresh = match fs::mkdirat(&self.0, name, Mode::RWXU) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        Ok((Self(fs::openat(&self.0, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?), fresh))
    }

    /// A new file, which replaces one of that name only if `force`.
    pub(super) fn create(&self, name: &[u8], force: bool) -> io::Result<Fresh<'_>> {
        if !force && fs::statat(&self.0, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(there());
        }
        let partial = partial_name(name);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&self.0, OsStr::from_bytes(&partial), flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Fresh { dir: self, partial, name: name.to_vec(), force, file: File::from(file), placed: false })
    }

    pub(super) fn symlink(&self, target: &[u8], name: &[u8], force: bool) -> io::Result<()> {
        self.make(name, force, |partial| Ok(fs::symlinkat(OsStr::from_bytes(target), &self.0, partial)?))
    }

    /// Another name, in `dir`, for a file that was copied to this path below this directory.
    pub(super) fn link(&self, path: &[Vec<u8>], dir: &Self, name: &[u8], force: bool) -> io::Result<()> {
        let (last, dirs) = path.split_last().ok_or(io::ErrorKind::NotFound)?;
        let mut holder = self.again()?;
        for step in dirs {
            let next = fs::openat(&holder.0, OsStr::from_bytes(step), DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
            holder = Self(next);
        }
        dir.make(name, force, |partial| {
            Ok(fs::linkat(&holder.0, OsStr::from_bytes(last), &dir.0, partial, AtFlags::empty())?)
        })
    }

    /// Makes something under a name of its own, then gives it the one that is wanted.
    fn make(&self, name: &[u8], force: bool, make: impl FnOnce(&OsStr) -> io::Result<()>) -> io::Result<()> {
        if !force {
            return make(OsStr::from_bytes(name)).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => there(),
                _ => error,
            });
        }
        let partial = partial_name(name);
        make(OsStr::from_bytes(&partial))?;
        self.rename(&partial, name, true).inspect_err(|_| self.remove(&partial))
    }

    fn rename(&self, from: &[u8], to: &[u8], force: bool) -> io::Result<()> {
        let (from, to) = (OsStr::from_bytes(from), OsStr::from_bytes(to));
        let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match fs::renameat_with(&self.0, from, &self.0, to, flags) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) if !force => Err(there()),
            // A file system that knows no such renaming: a second name is refused where one is.
            Err(rustix::io::Errno::INVAL) if !force => {
                fs::linkat(&self.0, from, &self.0, to, AtFlags::empty())?;
                Ok(fs::unlinkat(&self.0, from, AtFlags::empty())?)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn remove(&self, name: &[u8]) {
        // What failed before is told; this one would only hide it.
        let _ = fs::unlinkat(&self.0, OsStr::from_bytes(name), AtFlags::empty());
    }
}

fn there() -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, "it is there already; --force replaces it")
}

/// A name that says whose it is, should one ever be left.
fn partial_name(name: &[u8]) -> Vec<u8> {
    let mut partial = name.get(..name.len().min(200)).unwrap_or_default().to_vec();
    partial.extend(format!(".partial-{}", std::process::id()).bytes());
    partial
}

/// A file that has its name only once it is whole.
pub(super) struct Fresh<'a> {
    dir: &'a Dir,
    partial: Vec<u8>,
    name: Vec<u8>,
    force: bool,
    file: File,
    placed: bool,
}

impl AsFd for Fresh<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Fresh<'_> {
    /// Writes what is not zero.
    pub(super) fn write_sparse(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let is_zero = |part: &[u8]| part.iter().all(|byte| *byte == 0);
        let mut parts = bytes.chunks(HOLE).zip((at..).step_by(HOLE)).filter(|(part, _)| !is_zero(part));
        parts.try_for_each(|(part, at)| self.file.write_all_at(part, at))
    }

    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    pub(super) fn done(mut self) -> io::Result<()> {
        self.dir.rename(&self.partial, &self.name, self.force)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        if !self.placed {
            self.dir.remove(&self.partial);
        }
    }
}

/// Keeps what files have besides bytes, and remembers what could not be kept.
pub(super) struct Kept {
    owners: bool,
    lost: BTreeSet<String>,
}

impl Kept {
    pub(super) fn new(owners: bool) -> Self {
        Self { owners, lost: BTreeSet::new() }
    }

    pub(super) fn lose(&mut self, what: String) {
        self.lost.insert(what);
    }

    pub(super) fn into_lost(self) -> Vec<String> {
        self.lost.into_iter().collect()
    }

    /// Of a file or directory that is open. The owner comes first, since changing it takes set-id bits away.
    pub(super) fn of(&mut self, fd: BorrowedFd<'_>, metadata: &Metadata, xattrs: &[Xattr]) {
        let owned = self.owner(metadata, |uid, gid| fs::fchown(fd, Some(uid), Some(gid)));
        for (name, value) in xattrs {
            if let Err(error) = fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                let family =
                    String::from_utf8_lossy(name).split('.').next().unwrap_or_default().escape_debug().to_string();
                self.lose(format!("extended attributes of {family}.* are not kept ({error})"));
            }
        }
        // Somebody else's set-id bits would be ours.
        let mode = if owned { metadata.mode } else { metadata.mode & 0o1777 };
        if mode != metadata.mode {
            self.lose("set-user-ID and set-group-ID bits are not kept, since owners are not".to_owned());
        }
        if let Err(error) = fs::fchmod(fd, Mode::from_bits_truncate(mode)) {
            self.lose(format!("permissions are not kept ({error})"));
        }
        if let Some(times) = times(metadata)
            && let Err(error) = fs::futimens(fd, &times)
        {
            self.lose(format!("times are not kept ({error})"));
        }
    }

    /// Of a symbolic link.
    pub(super) fn of_link(&mut self, dir: &Dir, name: &[u8], metadata: &Metadata) {
        let name = OsStr::from_bytes(name);
        self.owner(metadata, |uid, gid| fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW));
        if let Some(times) = times(metadata)
            && let Err(error) = fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        {
            self.lose(format!("times of symbolic links are not kept ({error})"));
        }
    }

    fn owner(&mut self, metadata: &Metadata, change: impl FnOnce(Uid, Gid) -> rustix::io::Result<()>) -> bool {
        let Some(owner) = metadata.owner else { return false };
        if !self.owners {
            self.lose("owners are not kept: only root can".to_owned());
            return false;
        }
        // All ones is no number of anybody.
        if owner.uid == u32::MAX || owner.gid == u32::MAX {
            return false;
        }
        let changed = change(Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        if let Err(error) = &changed {
            self.lose(format!("owners are not kept ({error})"));
        }
        changed.is_ok()
    }
}

fn times(metadata: &Metadata) -> Option<Timestamps> {
    let spec = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
    let modified = metadata.modified?;
    let is_dir = metadata.kind == Kind::Directory;
    let accessed = metadata.accessed.filter(|_| !is_dir).unwrap_or(modified);
    Some(Timestamps { last_access: spec(accessed), last_modification: spec(modified) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_anywhere() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"../x", b"a\0b", &[b'x'; 256]] {
            assert!(!is_name(bad), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b" ", b"\xff\xfe", b"-rf", &[b'x'; 255]] {
            assert!(is_name(good), "{good:?}");
        }
    }

    #[test]
    fn nothing_goes_through_a_link_and_nothing_is_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("way")).unwrap();
        let place = Dir::open(dir.path()).unwrap();
        assert!(place.directory(b"way").is_err(), "a link is no directory");
        std::fs::write(dir.path().join("file"), "mine").unwrap();
        assert!(place.create(b"file", false).is_err());
        assert!(place.symlink(b"/etc", b"file", false).is_err());
        // What is given up leaves nothing, what is done replaces the link itself.
        drop(place.create(b"way", true).unwrap());
        assert!(std::fs::symlink_metadata(dir.path().join("way")).unwrap().is_symlink());
        place.create(b"way", true).unwrap().done().unwrap();
        assert!(std::fs::symlink_metadata(dir.path().join("way")).unwrap().is_file());
        assert_eq!(std::fs::read_to_string(dir.path().join("file")).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}
