//! Large files that go without anybody waiting for it.
//!
//! Removing a file of some GiB takes a file system up to a second, in which a command would wait, and its guest with it. So a
//! process of its own holds the file open while its name goes; when that process ends, the kernel gives the space back. If
//! it is killed, it does so then. Whoever else has the file open keeps reading it, as always.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keyframe_hypervisor::process::spawn_detached;

use crate::error::Error;
use crate::failpoint;
use crate::state::durable;

/// The hidden subcommand that holds a file, its standard input, until that has no name.
pub const SUBCOMMAND: &str = "internal-release";

/// Files that hold less are gone soon enough.
const LARGE_BYTES: u64 = 256 << 20;
/// How long the name may take to go.
const NAME_GOES_WITHIN: Duration = Duration::from_secs(10);

/// Removes a file; of a large one the space may come back a moment later. The name may come back after a power cut, as
/// [`durable::remove_file_unsynced`] says.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_file_unsynced(path: &Path) -> Result<(), Error> {
    // Without a holder it takes longer, and that is all.
    let _ = hold_if_large(path);
    durable::remove_file_unsynced(path)
}

fn hold_if_large(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.blocks() * 512 < LARGE_BYTES {
        return Ok(());
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg(SUBCOMMAND).env_remove(failpoint::VARIABLE);
    command.stdin(file).stdout(Stdio::null()).stderr(Stdio::null());
    spawn_detached(&mut command, &[]).map(drop)
}

/// The holder's process.
///
/// # Errors
/// When standard input cannot be looked at.
pub fn hold() -> Result<(), Error> {
    let trouble = |source| Error::Io { action: "look at", path: "stdin".into(), source };
    let file = rustix::io::dup(std::io::stdin()).map(File::from).map_err(|errno| trouble(errno.into()))?;
    let deadline = Instant::now() + NAME_GOES_WITHIN;
    while file.metadata().map_err(trouble)?.nlink() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
