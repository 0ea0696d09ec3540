//! One command at a time on one machine.
//!
//! An advisory lock that the kernel drops with the process that holds it: a killed command blocks nobody.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::error::{Error, IoContext as _};

/// The right to change one machine, until dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Lets go of the lock itself: closing our descriptor would not, while a child between its `fork` and its `exec` has a copy.
    fn drop(&mut self) {
        // Where it fails, closing the last copy does the same.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// How long a command waits for another that is about to end.
const PATIENCE: Duration = Duration::from_millis(300);
/// The operation of whoever tidies up behind a killed command.
pub const TIDYING_UP: &str = "tidying up behind a killed command";
/// How long a command waits for that: it would have to do the same before its own work.
const TIDYING_PATIENCE: Duration = Duration::from_secs(60);
/// How long a command waits for others that make or remove machines.
pub const CREATION_PATIENCE: Duration = Duration::from_secs(60);

impl Lock {
    /// Takes the lock at `path` for `operation`, which others are told when they find it taken.
    ///
    /// # Errors
    /// [`Error::Busy`] when another command holds it and does not let go within a moment, or, while it tidies up behind a
    /// killed one, within a minute.
    pub fn take(path: &Path, operation: &str) -> Result<Self, Error> {
        Self::wait(path, operation, PATIENCE)
    }

    /// [`Lock::take`] for something that others hold for seconds at most and that is worth waiting for.
    ///
    /// # Errors
    /// [`Error::Busy`] when it is still held after `patience`.
    pub fn wait(path: &Path, operation: &str, patience: Duration) -> Result<Self, Error> {
        let begun = Instant::now();
        let deadline = begun + patience;
        loop {
            match Self::attempt(path, operation)? {
                Some(lock) => return Ok(lock),
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                None => {
                    let holder = named_in(path);
                    if !holder.contains(TIDYING_UP) || begun.elapsed() > TIDYING_PATIENCE.max(patience) {
                        return Err(Error::Busy { holder });
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    /// Who holds the lock at `path`, for someone who only looks.
    #[must_use]
    pub fn holder(path: &Path) -> Option<String> {
        let file = File::open(path).ok()?;
        let held =
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK);
        held.then(|| named_in(path))
    }

    /// Takes the lock if nobody holds it.
    ///
    /// # Errors
    /// [`Error::Io`] when the lock file cannot be opened.
    pub fn attempt(path: &Path, operation: &str) -> Result<Option<Self>, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .or_io("open", path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            other => other.map_err(std::io::Error::from).or_io("lock", path)?,
        }
        // The machine may have been removed, and made anew, between the open and the lock.
        let ours = file.metadata().or_io("look at", path)?;
        if !std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
            return Ok(None);
        }
        let holder = format!("`keyframe {operation}` (pid {})\n", std::process::id());
        // Over the name before, which takes no room. Where there is none, the lock is held all the same, by "another command":
        // otherwise nothing could be deleted on a file system that is full.
        let named = file.write_all_at(holder.as_bytes(), 0).and_then(|()| file.set_len(holder.len() as u64));
        if named.is_err() {
            file.set_len(0).or_io("write", path)?;
        }
        Ok(Some(Self { file }))
    }
}

/// The command that a lock's file names.
fn named_in(path: &Path) -> String {
    let mut holder = String::new();
    let read = File::open(path).and_then(|file| file.take(200).read_to_string(&mut holder));
    // What stands behind the first line is of whoever held it before.
    let name = holder.lines().next().unwrap_or_default().trim();
    if read.is_ok() && !name.is_empty() { name.to_owned() } else { "another command".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path, "snapshot db").unwrap();
        match Lock::take(&path, "revert db@x") {
            Err(Error::Busy { holder }) => assert!(holder.contains("snapshot db"), "{holder}"),
            other => panic!("{other:?}"),
        }
        assert!(Lock::holder(&path).is_some_and(|holder| holder.contains("snapshot db")));
        drop(first);
        assert_eq!(Lock::holder(&path), None);
        Lock::take(&path, "revert db@x").unwrap();
    }

    #[test]
    fn a_copy_of_the_descriptor_in_a_child_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path, "snapshot db").unwrap();
        let copy = first.file.try_clone().unwrap();
        drop(first);
        assert_eq!(Lock::holder(&path), None);
        drop(copy);
    }

    #[test]
    fn who_tidies_up_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let tidying = Lock::take(&path, TIDYING_UP).unwrap();
        let longer = PATIENCE * 3;
        let done = std::thread::spawn(move || {
            std::thread::sleep(longer);
            drop(tidying);
        });
        Lock::take(&path, "snapshot db").unwrap();
        done.join().unwrap();
    }
}
