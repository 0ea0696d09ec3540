//! The place of a snapshot that is being tested: a directory of its own, below the machine's.
//!
//! `drill/ID` exists while snapshot ID is tested, and the command that does it holds a lock on that directory, which the
//! kernel drops with it. So the directory is all there is to say: its name tells which snapshot, its lock whether
//! anybody is at work. There is no journal, as nothing in it is ever needed again: whoever finds one that nobody holds kills
//! what runs there and removes it.
//!
//! A test takes the machine's lock only to begin: it can last for minutes, and snapshots of the machine are to be taken
//! meanwhile. What it stands on is kept by [`being_tested`], which whoever removes or merges layers has to ask, under the
//! machine's lock.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use keyframe_types::SnapshotId;
use rustix::fs::FlockOperation;

use crate::error::{Error, IoContext as _};
use crate::machine::kill_strays;
use crate::state::durable;
use crate::state::home::VmDir;

/// How long someone may look at a claim that nobody has: no longer than a system call.
const LOOKED_AT_FOR: Duration = Duration::from_millis(300);

/// The right to test a snapshot. When it goes out of scope, all that was made for the test goes.
#[derive(Debug)]
pub(crate) struct Claim {
    dir: VmDir,
    /// Holds the lock.
    _held: File,
}

impl Claim {
    /// Takes the snapshot's place and empties it. The caller holds the machine's lock.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody tests it; [`Error::Io`].
    pub(crate) fn take(machine: &VmDir, id: &SnapshotId) -> Result<Self, Error> {
        let dir = machine.drill(id);
        let deadline = Instant::now() + LOOKED_AT_FOR;
        let held = loop {
            if let Some(held) = attempt(dir.root())? {
                break held;
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy { holder: format!("a test or a backup of snapshot {id}") });
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let claim = Self { dir, _held: held };
        // Left behind by a test that was killed; recovery may not have come by.
        claim.throw_away_machine()?;
        Ok(claim)
    }

    /// Where the throw-away machine lies.
    pub(crate) fn dir(&self) -> &VmDir {
        &self.dir
    }

    /// Kills what runs there and removes its files. The snapshot stays claimed.
    ///
    /// # Errors
    /// When something cannot be killed or removed: the next command on the machine tries again.
    pub(crate) fn throw_away_machine(&self) -> Result<(), Error> {
        kill_strays(&self.dir, &[])?;
        for entry in std::fs::read_dir(self.dir.root()).or_io("list", self.dir.root())? {
            let path = entry.or_io("list", self.dir.root())?.path();
            if path.is_dir() { durable::remove_dir(&path)? } else { durable::remove_file(&path)? }
        }
        Ok(())
    }
}

/// Makes a directory and locks it, if nobody has it. One that its last holder removes meanwhile is nobody's, and not there: `None`.
fn attempt(dir: &Path) -> Result<Option<File>, Error> {
    let gone = |error: &Error| matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound);
    match durable::create_private_dir(dir).and_then(|()| File::open(dir).or_io("open", dir)) {
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
        Ok(held) => {
            let locked = locks(&held, FlockOperation::NonBlockingLockExclusive).or_io("lock", dir)?;
            let ours = held.metadata().or_io("look at", dir)?;
            let there = std::fs::metadata(dir).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino()));
            Ok((locked && there).then_some(held))
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What cannot be removed now is found by the next command.
        let _ = clear(&self.dir);
    }
}

fn clear(dir: &VmDir) -> Result<(), Error> {
    kill_strays(dir, &[])?;
    durable::remove_dir(dir.root())?;
    // The last one switches off the light.
    if let Some(all) = dir.root().parent() {
        let _ = std::fs::remove_dir(all);
    }
    Ok(())
}

/// Whether the lock could be had; it is held then.
fn locks(dir: &File, how: FlockOperation) -> std::io::Result<bool> {
    match rustix::fs::flock(dir, how) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        other => other.map(|()| true).map_err(std::io::Error::from),
    }
}

/// The snapshots that are being tested now. A caller that relies on the answer holds the machine's lock.
///
/// # Errors
/// [`Error::Io`] when that cannot be told.
pub(crate) fn being_tested(machine: &VmDir) -> Result<Vec<SnapshotId>, Error> {
    Ok(places(machine)?.into_iter().filter(|(_, held)| *held).map(|(id, _)| id).collect())
}

/// Whether a test that was killed left something behind.
pub(crate) fn has_leftovers(machine: &VmDir) -> bool {
    places(machine).is_ok_and(|places| places.iter().any(|(_, held)| !held))
}

/// Removes what tests that were killed left behind. The caller holds the machine's lock.
///
/// # Errors
/// When something cannot be killed or removed.
pub(crate) fn tidy(machine: &VmDir) -> Result<(), Error> {
    for (id, held) in places(machine)? {
        if !held {
            clear(&machine.drill(&id))?;
        }
    }
    Ok(())
}

/// All places of tests, and whether somebody is at work there.
fn places(machine: &VmDir) -> Result<Vec<(SnapshotId, bool)>, Error> {
    let all = machine.drills();
    let entries = match std::fs::read_dir(&all) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.or_io("list", &all)?,
    };
    let mut places = Vec::new();
    for entry in entries {
        let entry = entry.or_io("list", &all)?;
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some(id), Some(held)) = (id, is_held(&entry.path())?) {
            places.push((id, held));
        }
    }
    Ok(places)
}

/// Whether somebody holds the lock on a directory; `None` when it has gone meanwhile.
fn is_held(dir: &Path) -> Result<Option<bool>, Error> {
    let opened = match File::open(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.or_io("open", dir)?,
    };
    let free = locks(&opened, FlockOperation::NonBlockingLockShared).or_io("lock", dir)?;
    Ok(Some(!free))
}

#[cfg(test)]
mod tests {
    use keyframe_types::VmName;

    use super::*;
    use crate::state::home::Home;

    #[test]
    fn a_claim_keeps_others_out_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let machine = Home::open(root.path()).unwrap().vm(&VmName::new("db").unwrap());
        let (one, two) = (SnapshotId::random(), SnapshotId::random());
        assert!(being_tested(&machine).unwrap().is_empty() && !has_leftovers(&machine));
        let claim = Claim::take(&machine, &one).unwrap();
        assert!(matches!(Claim::take(&machine, &one), Err(Error::Busy { .. })));
        let other = Claim::take(&machine, &two).unwrap();
        assert_eq!(being_tested(&machine).unwrap().len(), 2);
        std::fs::create_dir(other.dir().root().join("run")).unwrap();
        drop(other);
        assert_eq!(being_tested(&machine).unwrap(), [one]);
        tidy(&machine).unwrap();
        assert!(claim.dir().root().exists(), "nobody takes away what is in use");
        drop(claim);
        assert!(!machine.drills().exists());
    }

    #[test]
    fn what_a_killed_test_left_is_found_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let machine = Home::open(root.path()).unwrap().vm(&VmName::new("db").unwrap());
        let id = SnapshotId::random();
        let left = machine.drill(&id).root().join("layers/disk0");
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("x.qcow2"), "x").unwrap();
        assert!(has_leftovers(&machine) && being_tested(&machine).unwrap().is_empty());
        let claim = Claim::take(&machine, &id).unwrap();
        assert!(!left.exists(), "a new test begins with an empty place");
        drop(claim);
        std::fs::create_dir_all(&left).unwrap();
        tidy(&machine).unwrap();
        assert!(!machine.drills().exists());
    }
}
