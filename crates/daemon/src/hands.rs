//! Who runs a job's commands: a process for each, `keyframe internal-hand`, that outlives the daemon and writes down how it ended.
//!
//! The lock of a job's directory is taken here and handed to that process as its standard input: at no time is there a command
//! at work and the lock free. So a daemon that was killed and started again knows what is at work, what has ended, and what
//! vanished without a word.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use keyframe_engine::state::durable;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::commands::Line;
use crate::error::{Error, IoContext as _};
use crate::job::{Job, JobId};
use crate::records::Records;

/// The name of the subcommand of `keyframe` that is one.
pub const SUBCOMMAND: &str = "internal-hand";
/// What tells a command where to write how far it is.
pub const PROGRESS: &str = "KEYFRAME_PROGRESS_FILE";
/// The exit status of a command that was ended by a signal, as shells have it: this and the signal's number.
const BY_SIGNAL: i32 = 128;

/// How a command is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum Look {
    /// It is at work.
    AtWork,
    /// It has ended.
    Ended(Outcome),
    /// It is not at work, and nobody wrote how it ended: killed, or the host went down.
    Vanished,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its exit status.
    pub exit: i32,
    /// What it wrote for scripts.
    pub document: Option<Value>,
    /// What it told a person last that begins with `error:`.
    pub error: Option<String>,
}

/// What runs commands.
pub trait Hands {
    /// Starts the command number `job.commands` of a job, after its record was kept.
    ///
    /// # Errors
    /// When it cannot be started: nothing was done.
    fn start(&mut self, job: &Job, line: &Line) -> Result<(), Error>;

    /// How that command is doing.
    fn look(&mut self, job: &Job) -> Look;

    /// Asks it to end, as Ctrl-C does.
    fn cancel(&mut self, job: &Job);

    /// A job is over: its record is kept as it ended.
    fn over(&mut self, job: &Job);
}

/// Processes.
#[derive(Debug)]
pub struct Processes {
    program: PathBuf,
    home: PathBuf,
    records: Records,
    children: HashMap<JobId, Child>,
}

impl Processes {
    /// Those that run `program`, a `keyframe`, on `home`.
    #[must_use]
    pub fn new(program: PathBuf, home: PathBuf, records: Records) -> Self {
        Self { program, home, records, children: HashMap::new() }
    }

    fn lock(&self, id: &JobId) -> std::io::Result<File> {
        let path = self.records.place(id).join("hand.lock");
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn is_held(&self, id: &JobId) -> bool {
        let file = match self.lock(id) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
            // Nobody knows: taken for held, it is looked at again.
            Err(_) => return true,
        };
        let held = flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK);
        if !held {
            let _ = flock(&file, FlockOperation::Unlock);
        }
        held
    }

    fn outcome(&self, job: &Job) -> Option<Outcome> {
        let exit = fs::read_to_string(self.records.file(&job.id, job.commands, "exit")).ok()?;
        let said = self.records.log(&job.id, job.commands, 64 << 10);
        let error = said.lines().rev().find_map(|line| line.strip_prefix("error: ")).map(str::to_owned);
        let document = self.records.document(&job.id, job.commands);
        Some(Outcome { exit: exit.trim().parse().ok()?, document, error })
    }
}

impl Hands for Processes {
    fn start(&mut self, job: &Job, line: &Line) -> Result<(), Error> {
        self.records.keep(job)?;
        let place = self.records.place(&job.id);
        let lock = self.lock(&job.id).or_io("open", &place)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(std::io::Error::from).or_io("lock", &place)?;
        // Of the command before: it must not be asked to end in place of this one.
        durable::remove_file_unsynced(&place.join("hand.pid"))?;
        let mut hand = Command::new(&self.program);
        hand.arg(SUBCOMMAND).arg(&place).arg(job.commands.to_string()).arg("--");
        hand.arg("--home").arg(&self.home).arg("--json").args(&line.arguments);
        // A group of its own: Ctrl-C on the daemon's terminal is not for it.
        hand.envs(line.environment.iter().cloned()).stdin(lock).stdout(Stdio::null()).process_group(0);
        self.children.insert(job.id.clone(), hand.spawn().or_io("start", &self.program)?);
        Ok(())
    }

    fn look(&mut self, job: &Job) -> Look {
        if let Some(child) = self.children.get_mut(&job.id) {
            match child.try_wait() {
                Ok(None) => return Look::AtWork,
                Ok(Some(_)) | Err(_) => drop(self.children.remove(&job.id)),
            }
        } else if self.is_held(&job.id) {
            return Look::AtWork;
        }
        self.outcome(job).map_or(Look::Vanished, Look::Ended)
    }

    fn cancel(&mut self, job: &Job) {
        let path = self.records.place(&job.id).join("hand.pid");
        // While the lock is held, the command is the hand's child and its number nobody else's.
        if !self.is_held(&job.id) {
            return;
        }
        let pid = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn over(&mut self, job: &Job) {
        self.children.remove(&job.id);
        // The catalog has it; without this record, only a catalog made anew would not.
        if let Err(error) = self.records.keep(job) {
            tracing::warn!("the record of job {} cannot be kept: {error}", job.id);
        }
    }
}

/// Is the process that runs one command: waits for it, and writes down durably how it ended. Its standard input is the lock.
///
/// # Errors
/// [`Error::Io`] when the command cannot be started, or nothing can be written.
pub fn hand(place: &Path, number: u32, arguments: &[String]) -> Result<(), Error> {
    let file = |ending: &str| place.join(format!("{number}.{ending}"));
    let create = |path: PathBuf| {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).or_io("write", &path)
    };
    let program = std::env::current_exe().or_io("find", Path::new("/proc/self/exe"))?;
    let mut command = Command::new(&program);
    command.args(arguments).env(PROGRESS, file("progress")).stdin(Stdio::null());
    command.stdout(create(file("out"))?).stderr(create(file("err"))?);
    let mut child = command.spawn().or_io("start", &program)?;
    // Without it the command cannot be cancelled; it is waited for all the same.
    let named = durable::replace(&place.join("hand.pid"), child.id().to_string().as_bytes());
    let status = child.wait().or_io("wait for", &program)?;
    let exit = status.code().unwrap_or_else(|| BY_SIGNAL + status.signal().unwrap_or(0));
    let synced = durable::sync_file(&file("out"));
    durable::replace(&file("exit"), exit.to_string().as_bytes())?;
    Ok(named.and(synced)?)
}
