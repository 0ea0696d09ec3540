//! Host processes that outlive the command that started them, told apart even when a pid is reused.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// A process of this boot of this host: a pid alone may come back, a pid with its start time does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: u32,
    /// Clock ticks from boot to the process's start (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// The kernel's id of this boot.
    pub boot_id: String,
}

impl ProcessId {
    /// The identity of the process that has `pid` now.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id()? })
    }

    /// Whether that very process still runs. A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let same_boot = boot_id().is_ok_and(|id| id == self.boot_id);
        same_boot
            && Stat::read(self.pid)
                .is_ok_and(|stat| stat.start_ticks == self.start_ticks && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Whether the host has been restarted since the process was started.
    #[must_use]
    pub fn is_of_an_earlier_boot(&self) -> bool {
        boot_id().is_ok_and(|id| id != self.boot_id)
    }

    /// Kills the process and waits until it is gone; nothing happens when it is gone already.
    ///
    /// # Errors
    /// When the signal cannot be sent, or the process is still there after `patience`.
    pub fn kill(&self, patience: Duration) -> io::Result<()> {
        if self.signal(Signal::KILL)? { self.wait_gone(patience) } else { Ok(()) }
    }

    /// Sends a signal to that very process, never to another that has its pid. Returns whether it was there.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        };
        // The pidfd is opened before the identity is checked: from then on the pid cannot be reused unseen.
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            other => other?,
        };
        if !self.is_alive() {
            return Ok(false);
        }
        match rustix::process::pidfd_send_signal(&pidfd, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until the process is gone.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it is still there after `patience`.
    pub fn wait_gone(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("process {} is still there after {} s", self.pid, patience.as_secs()),
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

struct Stat {
    state: char,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Source: proc(5). The second field is a name in parentheses that may itself hold anything.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let start_ticks = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start_ticks })
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Starts `command` in a session of its own, so that no terminal's Ctrl-C reaches it, with `inherited`
/// open in it under the numbers they have here.
///
/// # Errors
/// When the program cannot be executed.
pub fn spawn_detached(command: &mut Command, inherited: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let numbers: Vec<RawFd> = inherited.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    // SAFETY: between fork and exec only fcntl(2) and setsid(2) are called, both async-signal-safe; the
    // vector was allocated before the fork, and the descriptors are borrowed for the whole call.
    unsafe {
        command.pre_exec(move || {
            for &number in &numbers {
                if libc::fcntl(number, libc::F_SETFD, 0) == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            if libc::setsid() == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_more_than_its_pid() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive() && !id.is_of_an_earlier_boot());
        assert!(ProcessId { boot_id: "another".into(), ..id.clone() }.is_of_an_earlier_boot());
        let other = ProcessId { start_ticks: id.start_ticks + 1, ..id.clone() };
        assert!(!other.is_alive());
        other.kill(Duration::from_secs(1)).unwrap();
        assert!(id.is_alive(), "a process that only shares the pid must not be killed");
        id.kill(Duration::from_secs(5)).unwrap();
        assert!(!id.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn a_program_name_with_a_parenthesis_does_not_confuse() {
        let text = "7 (a) R b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.start_ticks), ('S', 4242));
    }

    #[test]
    fn a_detached_process_leads_its_own_session() {
        let mut child = spawn_detached(Command::new("sleep").arg("60"), &[]).unwrap();
        let pid = Pid::from_child(&child);
        assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
