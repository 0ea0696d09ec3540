//! The process that shows a machine what it stands on in a repository, and brings it here.
//!
//! A *supervisor* starts a *worker*, and another when it dies; QEMU and the page server connect again to the same sockets, and
//! the guest waits meanwhile. The worker dies with its supervisor; then the next command on the machine posts a new one
//! ([`ensure`]). The worker serves, pulls ([`super::pull`]), and says in `run/boot/state.json` how it goes. Both end when the
//! machine is wholly local, when it is gone, and some seconds after it is off: starting it posts them again.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError, mpsc};
use std::time::{Duration, Instant};

use keyframe_hypervisor::process::{ProcessId, spawn_detached};
use keyframe_hypervisor::socket as sockets;
use keyframe_nbd::{Export, serve_connection};
use keyframe_types::{DiskId, VmName};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::document::{Standing, socket};
use super::pull::{Pull, Step, Told};
use super::shelf::{Lost, Opener, Reach, Shelf, Shown};
use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::failpoint;
use crate::state::home::{Home, VmDir};
use crate::state::lock::Lock;
use crate::state::{durable, scratch};

/// The hidden subcommand that runs a supervisor.
pub const SUPERVISOR: &str = "internal-boot";
/// The hidden subcommand that runs a worker.
pub const WORKER: &str = "internal-boot-worker";
/// The variable with a passphrase that was typed in, for these processes alone.
pub const PASSPHRASE: &str = "KEYFRAME_PASSPHRASE";

/// How long a supervisor may take until its worker listens.
const READY_PATIENCE: Duration = Duration::from_secs(20);
/// How long a supervisor waits for another that is on its way out.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(2);
/// What others are told meanwhile.
const LEAVING: &str = "no longer serving a machine that is off";
/// How often the worker tells how it goes.
const TICK: Duration = Duration::from_millis(200);
/// How often it looks at its jobs: each step of each disk waits for the next look.
const PULL_TICK: Duration = Duration::from_millis(50);
/// The longest pause before a worker that died is replaced.
const RESTART_MOST: Duration = Duration::from_secs(5);

/// How it goes, in `run/boot/state.json`: written by the worker alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Who sees to it that somebody serves.
    pub(super) supervisor: ProcessId,
    /// Whether the repository can be read.
    pub(super) reach: Reach,
    /// How far disks are.
    pub(super) disks: Vec<DiskProgress>,
    /// Places that cannot be read.
    pub(super) lost: Vec<Lost>,
    /// Reads that failed.
    pub(super) failures: u64,
    /// Why pulling does not go on, where it does not.
    pub(super) trouble: Option<String>,
    /// How often a worker died and was replaced.
    pub(super) restarts: u32,
}

/// How far a disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskProgress {
    /// The disk.
    pub disk: DiskId,
    /// How far into the disk it was copied, in bytes.
    pub done_bytes: u64,
    /// Its size.
    pub total_bytes: u64,
}

fn state_path(dir: &VmDir) -> PathBuf {
    dir.boot_run().join("state.json")
}

/// How it goes; `None` where nobody has served since the host was started.
pub(super) fn state(dir: &VmDir) -> Option<State> {
    scratch::read(&state_path(dir)).ok().flatten()
}

/// Whether somebody serves.
pub(super) fn is_served(dir: &VmDir) -> bool {
    state(dir).is_some_and(|state| state.supervisor.is_alive())
}

/// Posts a supervisor where none is, and waits until its worker listens. `passphrase` opens the repository where no key file does
/// and it is not in the environment.
///
/// # Errors
/// When it cannot be started, or does not come to listen.
pub(super) fn ensure(ctx: &Context<'_>, dir: &VmDir, passphrase: Option<&str>) -> Result<(), Error> {
    if is_served(dir) {
        return Ok(());
    }
    durable::create_private_dir(&dir.run())?;
    durable::create_private_dir(&dir.boot_run())?;
    let log_path = dir.boot_run().join("boot.log");
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path).or_io("open", &log_path)?;
    let mut command = own_program(SUPERVISOR, dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    if let Some(passphrase) = passphrase {
        command.env(PASSPHRASE, passphrase);
    }
    let mut child = spawn_detached(&mut command, &[]).or_io("run", Path::new("/proc/self/exe"))?;
    let deadline = Instant::now() + READY_PATIENCE;
    while !is_served(dir) {
        ctx.check()?;
        let ended = matches!(child.try_wait(), Ok(Some(_)));
        if ended || Instant::now() >= deadline {
            let reason = std::fs::read_to_string(&log_path).unwrap_or_default();
            return Err(Error::NotServed { vm: dir.name().clone(), reason: reason.trim().to_owned() });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Ends whoever serves, and removes what they left: the machine needs nobody any more, or is about to be served by others.
///
/// # Errors
/// When it cannot be ended.
pub(super) fn stop(dir: &VmDir) -> Result<(), Error> {
    if let Some(state) = state(dir) {
        // Its worker dies with it.
        state.supervisor.kill(READY_PATIENCE).or_io("end the server of", dir.root())?;
    }
    durable::remove_dir(&dir.boot_run())
}

fn own_program(subcommand: &str, dir: &VmDir) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args([subcommand, "--server-home"]).arg(dir.home().root()).arg(dir.name().as_str());
    // Only what is meant for these processes: they would die with every command's failpoint otherwise.
    if std::env::var(failpoint::VARIABLE).is_ok_and(|name| !name.starts_with("pull-")) {
        command.env_remove(failpoint::VARIABLE);
    }
    command
}

/// The supervisor's process.
///
/// # Errors
/// When a worker cannot be started.
pub fn supervise(home: &Home, vm: &VmName) -> Result<(), Error> {
    let dir = home.vm(vm);
    let Some(_right) = take_over(&dir)? else { return Ok(()) };
    let mut restarts: u32 = 0;
    loop {
        let mut command = own_program(WORKER, &dir);
        command.args(["--restarts", &restarts.to_string()]).stdin(Stdio::null());
        if restarts > 0 {
            // A worker that a test had killed is replaced by one that lives.
            command.env_remove(failpoint::VARIABLE);
        }
        // SAFETY: prctl(2) is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let status = command.status().or_io("run", Path::new("/proc/self/exe"))?;
        if status.success() || Standing::read(&dir).is_ok_and(|standing| standing.is_none()) {
            return Ok(());
        }
        restarts = restarts.saturating_add(1);
        std::thread::sleep(RESTART_MOST.min(Duration::from_millis(20) * restarts));
    }
}

/// The right to serve a machine, until dropped; `None` when another supervisor has it.
fn take_over(dir: &VmDir) -> Result<Option<File>, Error> {
    let path = dir.boot_run().join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.or_io("open", &path)?;
    let deadline = Instant::now() + TAKEOVER_PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            other => return other.map(|()| Some(file)).map_err(std::io::Error::from).or_io("lock", &path),
        }
    }
}

/// The worker's process: serves and pulls until nothing is left to do.
///
/// # Errors
/// When it cannot listen; another worker tries again.
pub fn work(home: &Home, vm: &VmName, opener: Arc<dyn Opener>, restarts: u32) -> Result<(), Error> {
    let dir = home.vm(vm);
    let Some(standing) = Standing::read(&dir)? else { return Ok(()) };
    let shelf = Arc::new(Shelf::new(opener, &standing));
    for (label, image) in standing.images() {
        show(&dir, label, Arc::new(Shown::new(&shelf, label, image.bytes)))?;
    }
    // Opening takes a moment: while QEMU starts is a good one.
    std::thread::spawn({
        let shelf = Arc::clone(&shelf);
        move || drop(shelf.opened())
    });
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    let supervisor = ProcessId::of(parent).or_io("look at the supervisor of", dir.root())?;
    let pull = Pull::of(home, &dir, &standing, Arc::clone(&shelf));
    let progress = pull.told();
    let over = pull_to_the_end(&dir, pull);
    let mut told = None;
    loop {
        let met = shelf.met();
        let Told { disks, trouble } = progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (reach, lost, failures) = (met.reach, met.lost, met.failures);
        let state = State { supervisor: supervisor.clone(), reach, disks, lost, failures, trouble, restarts };
        // A full disk must not end what the guest waits for; nor must a directory that is just being removed.
        if told.as_ref() != Some(&state) && scratch::write(&state_path(&dir), &state).is_ok() {
            told = Some(state);
        }
        match over.recv_timeout(TICK) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(ended) => return ended,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let reason = "pulling ended without a word".to_owned();
                return Err(Error::NotServed { vm: vm.clone(), reason });
            }
        }
    }
}

/// Pulls, in a thread of its own: it may wait for the repository, and what is told must not. Says when it is over.
fn pull_to_the_end(dir: &VmDir, mut pull: Pull) -> mpsc::Receiver<Result<(), Error>> {
    let (say, over) = mpsc::channel();
    let dir = dir.clone();
    std::thread::spawn(move || {
        let ended = loop {
            match pull.step() {
                Step::GoOn => {}
                Step::AllHere => break durable::remove_dir(&dir.boot_run()),
                // Under the machine's lock: whoever is about to start it must not rely on one who is about to go.
                Step::NobodyWaits => match Lock::attempt(&dir.lock(), LEAVING) {
                    Ok(Some(_lock)) => break durable::remove_file_unsynced(&state_path(&dir)),
                    Ok(None) => {}
                    // The machine is gone, and its directory with it.
                    Err(_) => break Ok(()),
                },
            }
            std::thread::sleep(PULL_TICK);
        };
        // Nobody who listens is no reason to do anything else.
        let _ = say.send(ended);
    });
    over
}

/// Listens where the export is looked for, and serves each connection in a thread of its own, to the process's end.
fn show(dir: &VmDir, label: &str, export: Arc<dyn Export>) -> Result<(), Error> {
    let path = socket(dir, label);
    durable::remove_file_unsynced(&path)?;
    let listener = sockets::listen(&path).or_io("listen on", &path)?;
    let label = label.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let (label, export) = (label.clone(), Arc::clone(&export));
            // A client that does not speak NBD, or breaks off, has seen to itself.
            std::thread::spawn(move || drop(serve_connection(&stream, &label, &*export)));
        }
    });
    Ok(())
}
