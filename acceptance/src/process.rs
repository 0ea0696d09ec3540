//! Killing processes: by number, and only those that belong to a test's home.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Error, Result};

const DEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long one may take to be gone that let go of its memory already.
const ENDS_WITHIN: Duration = Duration::from_millis(500);

/// Number of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId(pub u32);

impl ProcessId {
    /// Whether it runs. A zombie does not.
    pub fn is_running(self) -> bool {
        !matches!(self.state(), None | Some('Z' | 'X'))
    }

    /// Whether a signal has stopped it.
    pub fn is_stopped(self) -> bool {
        self.state() == Some('T')
    }

    /// The letter of its state in `/proc/PID/stat`.
    fn state(self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next())
    }

    /// Whether its command line or environment names `home`.
    pub fn belongs_to(self, home: &Path) -> bool {
        let names_home = |file: &str| {
            let bytes = fs::read(format!("/proc/{}/{file}", self.0)).unwrap_or_default();
            let wanted = home.as_os_str().as_bytes();
            !wanted.is_empty() && bytes.windows(wanted.len()).any(|window| window == wanted)
        };
        names_home("cmdline") || names_home("environ")
    }

    /// Sends SIGKILL if it belongs to `home`, and waits until it is gone. One that is gone already is well.
    ///
    /// # Errors
    /// [`Error::NotOurs`] when it belongs to somebody else; [`Error::Run`] when it cannot be killed.
    pub fn kill(self, home: &Path) -> Result<()> {
        let trouble = |source: std::io::Error| Error::Run { program: format!("kill -9 {}", self.0), source };
        let raw = i32::try_from(self.0).ok().and_then(Pid::from_raw);
        let pid = raw.ok_or_else(|| trouble(std::io::ErrorKind::InvalidInput.into()))?;
        // The descriptor keeps meaning this process even if its number is given to another one meanwhile.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if !self.is_running() {
            return Ok(());
        }
        if !self.belongs_to(home) {
            // One that is about to end names nothing any more, a moment before it is gone.
            let begun = Instant::now();
            while self.is_running() {
                if begun.elapsed() > ENDS_WITHIN {
                    return Err(Error::NotOurs { pid: self.0, home: home.to_owned() });
                }
                thread::sleep(Duration::from_millis(2));
            }
            return Ok(());
        }
        match pidfd_send_signal(process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(trouble(errno.into())),
        }
        let deadline = Instant::now() + DEAD_WITHIN;
        while self.is_running() {
            if Instant::now() > deadline {
                return Err(trouble(std::io::ErrorKind::TimedOut.into()));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// Every running process but this one that belongs to `home`.
pub fn of_home(home: &Path) -> Vec<ProcessId> {
    let Ok(list) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = list.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let others = numbers.filter(|number| *number != std::process::id()).map(ProcessId);
    others.filter(|process| process.is_running() && process.belongs_to(home)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn only_what_names_the_home_is_killed() {
        let home = tempfile::tempdir().unwrap();
        let mut ours = Command::new("sleep").arg("60").env("KEYFRAME_HOME", home.path()).spawn().unwrap();
        let mut theirs = Command::new("sleep").arg("60").spawn().unwrap();
        let (our_id, their_id) = (ProcessId(ours.id()), ProcessId(theirs.id()));

        // Its environment is there a moment after it was started.
        let begun = Instant::now();
        while of_home(home.path()) != [our_id] {
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?} and not {our_id:?}", of_home(home.path()));
            thread::sleep(Duration::from_millis(2));
        }
        our_id.kill(home.path()).unwrap();
        assert!(!our_id.is_running());
        assert!(matches!(their_id.kill(home.path()), Err(Error::NotOurs { .. })));
        assert!(their_id.is_running());

        ours.wait().unwrap();
        our_id.kill(home.path()).unwrap();
        theirs.kill().unwrap();
        theirs.wait().unwrap();
    }
}
