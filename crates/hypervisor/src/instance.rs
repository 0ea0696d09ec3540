//! One QEMU process: starting it, finding it again, reaching it.
//!
//! The process belongs to nobody: it runs in a session of its own and outlives the command that started
//! it. Whoever comes next finds it by its [`InstanceRecord`]. Sockets are bound here and inherited, so the
//! first connection needs no waiting for a file to appear, and they lie in a directory only the owner enters.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keyframe_qmp::Client;
use keyframe_types::{InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext as _};
use crate::host::{Qemu, QemuVersion};
use crate::launch::{LaunchPlan, PID_FILE, SHUTDOWN_LOG, SHUTDOWN_TRACE, SocketNumbers, arguments};
use crate::process::{ProcessId, spawn_detached};
use crate::{network, socket};

/// Where QEMU's own words go, in an instance's directory.
const QEMU_LOG: &str = "qemu.log";

/// Where, beside the directories of a machine's processes, is noted when the last one that ended had closed its disks.
const CLOSED: &str = "closed";

/// How long a fresh QEMU may take to greet.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a running QEMU may take to answer.
pub const MONITOR_PATIENCE: Duration = Duration::from_secs(20);
/// How long a running QEMU may take to answer someone who only looks.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// How long a killed process may take to go.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// A QEMU process, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its id.
    pub id: InstanceId,
    /// The process.
    pub process: ProcessId,
    /// The directory of its sockets and its log.
    pub dir: PathBuf,
    /// Its version.
    pub version: QemuVersion,
    /// When it was started.
    pub started: Timestamp,
}

/// Which of a process's monitors to talk to. Each serves one client at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    /// For the command at work.
    Engine,
    /// For whoever watches over a command.
    Guard,
    /// For whoever only looks, while a command may be at work; does not wait for long.
    Look,
}

impl InstanceRecord {
    /// QMP for people and other programs.
    #[must_use]
    pub fn qmp_socket(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// The guest agent's channel.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// The serial console.
    #[must_use]
    pub fn console_socket(&self) -> PathBuf {
        self.dir.join("console.sock")
    }

    /// What QEMU itself said.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join(QEMU_LOG)
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    /// Connects to one of its monitors.
    ///
    /// # Errors
    /// [`Error::Gone`] when the process has ended, [`Error::Qmp`] when it does not answer.
    pub fn monitor(&self, which: Monitor) -> Result<Client, Error> {
        let (name, patience) = match which {
            Monitor::Engine => ("engine.sock", MONITOR_PATIENCE),
            Monitor::Guard => ("guard.sock", MONITOR_PATIENCE),
            Monitor::Look if self.dir.join("look.sock").exists() => ("look.sock", LOOK_PATIENCE),
            // A machine that an earlier version started has none; its guard has little to say.
            Monitor::Look => ("guard.sock", LOOK_PATIENCE),
        };
        connect(&self.dir.join(name), patience).map_err(|error| self.explain(error))
    }

    /// Whether the process ended because its guest had shut down: by its own doing, or asked by the power button.
    #[must_use]
    pub fn was_shut_down_by_guest(&self) -> bool {
        // Source: ShutdownCause in qapi/run-state.json; `guest-shutdown` is its seventh.
        const GUEST_SHUTDOWN: &str = "reason=6";
        let asked = log_tail(&self.dir.join(SHUTDOWN_LOG));
        !self.is_alive()
            && asked
                .lines()
                .next_back()
                .and_then(|line| line.strip_prefix(SHUTDOWN_TRACE))
                .is_some_and(|reason| reason.trim() == GUEST_SHUTDOWN)
    }

    /// Says that the process has ended, if that is why something failed.
    #[must_use]
    pub fn explain(&self, error: Error) -> Error {
        if self.is_alive() { error } else { Error::Gone { log: self.log(), said: log_tail(&self.log()) } }
    }

    /// Kills the process, waits until it is gone and removes its sockets. Its log stays when it says something.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be killed.
    pub fn kill(&self) -> Result<(), Error> {
        self.process.kill(KILL_PATIENCE).or_io("kill QEMU of", &self.dir)?;
        self.clean_up();
        Ok(())
    }

    /// Removes what a process that has ended left behind. When it had closed its disks is noted: see [`closed_disks`].
    pub fn clean_up(&self) {
        if let (Some(at_ns), Some(run_dir)) = (self.closed_disks(), self.dir.parent()) {
            // Without it nobody knows, which costs a comparison.
            let _ = fs::write(run_dir.join(CLOSED), at_ns.to_string());
        }
        remove_if_silent(&self.dir);
    }

    /// Until when the process may have written to its disks, if it has ended by itself. QEMU removes the file with its number
    /// behind everything else, which is the last that changes the directory.
    fn closed_disks(&self) -> Option<i64> {
        let has_ended = !self.is_alive() && !self.dir.join(PID_FILE).exists();
        let directory = fs::metadata(&self.dir).ok().filter(|_| has_ended)?;
        Some(directory.mtime().saturating_mul(1_000_000_000).saturating_add(directory.mtime_nsec()))
    }
}

/// When the last process in `run_dir` that was cleaned up behind had closed its disks, in nanoseconds since 1970: a file that was
/// written to later was so by somebody else. `None` where nobody knows. What it tells may be too early, never too late.
#[must_use]
pub fn closed_disks(run_dir: &Path) -> Option<i64> {
    fs::read_to_string(run_dir.join(CLOSED)).ok()?.trim().parse().ok()
}

/// Removes the directory of a process that has ended, unless its log says something.
fn remove_if_silent(dir: &Path) {
    if log_tail(&dir.join(QEMU_LOG)).is_empty() {
        // Nothing in it is needed any more; what cannot be removed is in nobody's way.
        let _ = fs::remove_dir_all(dir);
    }
}

fn connect(path: &Path, patience: Duration) -> Result<Client, Error> {
    let stream = socket::connect(path).or_io("connect to", path)?;
    Ok(Client::from_stream(stream, patience)?)
}

/// The last lines of a log, for a message.
#[must_use]
pub fn log_tail(path: &Path) -> String {
    const BYTES: u64 = 2000;
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}

/// A process that was just started, stopped before its first instruction, with its monitor.
#[derive(Debug)]
pub struct Started {
    /// How to find it again.
    pub record: InstanceRecord,
    /// The connection to its engine monitor.
    pub monitor: Client,
}

/// A process that is on its way up: [`Starting::ready`] waits for it. Dropped before that, it is killed.
#[derive(Debug)]
pub struct Starting {
    id: InstanceId,
    dir: PathBuf,
    child: Option<Child>,
}

struct Listeners {
    qmp: UnixListener,
    engine: UnixListener,
    guard: UnixListener,
    look: UnixListener,
    agent: UnixListener,
    console: UnixListener,
    tap: Option<OwnedFd>,
}

impl Listeners {
    fn bind(dir: &Path, tap: Option<OwnedFd>) -> Result<Self, Error> {
        let listen = |name: &str| {
            let path = dir.join(name);
            socket::listen(&path).or_io("listen on", &path)
        };
        Ok(Self {
            qmp: listen("qmp.sock")?,
            engine: listen("engine.sock")?,
            guard: listen("guard.sock")?,
            look: listen("look.sock")?,
            agent: listen("agent.sock")?,
            console: listen("console.sock")?,
            tap,
        })
    }

    fn numbers(&self) -> SocketNumbers {
        SocketNumbers {
            qmp: self.qmp.as_raw_fd(),
            engine: self.engine.as_raw_fd(),
            guard: self.guard.as_raw_fd(),
            look: self.look.as_raw_fd(),
            agent: self.agent.as_raw_fd(),
            console: self.console.as_raw_fd(),
            tap: self.tap.as_ref().map(|fd| fd.as_raw_fd()),
        }
    }
}

/// Starts QEMU in `dir`, a fresh directory that is made here, and returns without waiting for it.
///
/// # Errors
/// [`Error::Io`] when sockets, log or process cannot be made; [`Error::Network`] when its network cannot.
pub fn start(qemu: &Qemu, id: InstanceId, dir: &Path, plan: &LaunchPlan<'_>) -> Result<Starting, Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).or_io("create", dir)?;
    let wanted = plan.definition.nic.as_ref().map(|nic| &nic.network);
    let listeners = Listeners::bind(dir, wanted.map(network::open).transpose()?.flatten())?;
    let log_path = dir.join(QEMU_LOG);
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&log_path).or_io("open", &log_path)?;
    let mut command = Command::new(qemu.path());
    command
        .args(arguments(plan, &listeners.numbers()))
        // Relative socket names stay short wherever the home lies.
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().or_io("open", &log_path)?)
        .stderr(log);
    let mut inherited = vec![
        listeners.qmp.as_fd(),
        listeners.engine.as_fd(),
        listeners.guard.as_fd(),
        listeners.look.as_fd(),
        listeners.agent.as_fd(),
        listeners.console.as_fd(),
    ];
    inherited.extend(listeners.tap.as_ref().map(|fd| fd.as_fd()));
    let child = spawn_detached(&mut command, &inherited).or_io("run", qemu.path())?;
    Ok(Starting { id, dir: dir.to_owned(), child: Some(child) })
}

impl Starting {
    /// Waits until the process greets.
    ///
    /// # Errors
    /// [`Error::DidNotStart`] with what QEMU said; it is then gone.
    pub fn ready(mut self) -> Result<Started, Error> {
        let connected = self.greet();
        match (connected, self.child.take()) {
            (Ok(started), Some(_running)) => Ok(started),
            (Err(error), child) => {
                self.child = child;
                let said = self.last_words();
                Err(Error::DidNotStart { said, source: Box::new(error) })
            }
            (Ok(_), None) => Err(Error::DidNotStart { said: String::new(), source: Box::new(Error::NoProcess) }),
        }
    }

    /// How to find the process before it has greeted: its version is 0.0.0 until then.
    ///
    /// # Errors
    /// [`Error::NoProcess`], [`Error::Io`] when it has ended.
    pub fn record(&self) -> Result<InstanceRecord, Error> {
        let pid = self.child.as_ref().ok_or(Error::NoProcess)?.id();
        let process = ProcessId::of(pid).or_io("look at QEMU of", &self.dir)?;
        let version = QemuVersion { major: 0, minor: 0, micro: 0 };
        Ok(InstanceRecord { id: self.id.clone(), process, dir: self.dir.clone(), version, started: Timestamp::now() })
    }

    fn greet(&self) -> Result<Started, Error> {
        let mut record = self.record()?;
        let monitor = connect(&self.dir.join("engine.sock"), START_PATIENCE)?;
        if let Some(version) = monitor.version() {
            let triple = &version.qemu;
            record.version = QemuVersion { major: triple.major, minor: triple.minor, micro: triple.micro };
        }
        Ok(Started { record, monitor })
    }

    /// What QEMU said before it ended; gives it a moment to end.
    fn last_words(&mut self) -> String {
        self.kill();
        log_tail(&self.dir.join(QEMU_LOG))
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already; either way it is waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
            remove_if_silent(&self.dir);
        }
    }
}

/// Processes of this host that were started in a directory below `run_dir`.
///
/// A command that was killed between starting QEMU and writing that down leaves such a process.
#[must_use]
pub fn processes_below(run_dir: &Path) -> Vec<(ProcessId, PathBuf)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((ProcessId::of(pid).ok()?, instance_dir_of(pid, run_dir)?))).collect()
}

/// The instance directory that a process has its log in. Whatever QEMU's program is called, or a script that starts it:
/// nobody else says what he has to say there (a page server has a log of its own).
fn instance_dir_of(pid: u32, run_dir: &Path) -> Option<PathBuf> {
    let log = fs::read_link(format!("/proc/{pid}/fd/2")).ok()?;
    if log.file_name()? != QEMU_LOG {
        return None;
    }
    let dir = log.parent()?;
    (dir.parent()? == run_dir).then(|| dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_shut_down_is_told_from_a_process_that_ended() {
        let dir = tempfile::tempdir().unwrap();
        let us = ProcessId::of(std::process::id()).unwrap();
        let record = InstanceRecord {
            id: InstanceId::random(),
            process: ProcessId { start_ticks: us.start_ticks + 1, ..us },
            dir: dir.path().to_owned(),
            version: QemuVersion { major: 10, minor: 0, micro: 0 },
            started: Timestamp::now(),
        };
        assert!(!record.was_shut_down_by_guest(), "it said nothing");
        for (said, by_guest) in [
            ("qemu_system_shutdown_request reason=6\n", true),
            ("qemu_system_shutdown_request reason=2\n", false),
            ("qemu_system_shutdown_request reason=6\nqemu_system_shutdown_request reason=4\n", false),
            ("qemu_system_shutdown_request reason=60", false),
            ("\u{fffd}", false),
        ] {
            fs::write(dir.path().join(SHUTDOWN_LOG), said).unwrap();
            assert_eq!(record.was_shut_down_by_guest(), by_guest, "{said:?}");
        }
    }

    #[test]
    fn only_a_process_that_ended_by_itself_tells_when_it_closed_its_disks() {
        let run = tempfile::tempdir().unwrap();
        let us = ProcessId::of(std::process::id()).unwrap();
        let record = |ticks: u64| {
            let dir = run.path().join("0123");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(PID_FILE), "1").unwrap();
            InstanceRecord {
                id: InstanceId::random(),
                process: ProcessId { start_ticks: us.start_ticks + ticks, ..us.clone() },
                dir,
                version: QemuVersion { major: 10, minor: 0, micro: 0 },
                started: Timestamp::now(),
            }
        };
        record(1).clean_up();
        assert_eq!(closed_disks(run.path()), None, "it was killed");
        let disk = run.path().join("disk");
        let written = || {
            let metadata = fs::metadata(&disk).unwrap();
            metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec()
        };
        let ended = record(1);
        fs::write(&disk, "by it").unwrap();
        fs::remove_file(ended.dir.join(PID_FILE)).unwrap();
        let by_it = written();
        std::thread::sleep(Duration::from_millis(20));
        ended.clean_up();
        fs::write(&disk, "by somebody else").unwrap();
        let closed = closed_disks(run.path()).unwrap();
        assert!(by_it <= closed && closed < written(), "{by_it} {closed} {}", written());
        let alive = record(0);
        fs::remove_file(alive.dir.join(PID_FILE)).unwrap();
        alive.clean_up();
        assert_eq!(closed_disks(run.path()), Some(closed), "it still runs");
    }

    #[test]
    fn a_stray_is_known_by_its_log_whatever_it_is_called() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().canonicalize().unwrap().join("0123");
        fs::create_dir(&dir).unwrap();
        let sleeper = |log: &str| {
            let log = File::create(dir.join(log)).unwrap();
            Command::new("sleep").arg("60").stderr(log).spawn().unwrap()
        };
        let mut children = [sleeper("qemu.log"), sleeper("pages.log")];
        let found = processes_below(dir.parent().unwrap());
        let expected = vec![(ProcessId::of(children[0].id()).unwrap(), dir.clone())];
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found, expected);
    }
}
