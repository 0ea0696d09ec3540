//! Who runs a job's commands: a process for each, `keyframe internal-hand`, that outlives the daemon and writes down how it ended.
//!
//! The lock of a job's directory is taken here and handed to that process as its standard input: at no time is there a command
//! at work and the lock free. So a daemon that was killed and started again knows what is at work, what has ended, and what
//! vanished without a word. A hand that is killed takes its command with it, for the same reason.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use keyframe_engine::state::durable;
use keyframe_hypervisor::process::ProcessId;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
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

    /// Asks it to end, as Ctrl-C does. Returns whether it was there to be asked.
    fn cancel(&mut self, job: &Job) -> bool;

    /// Ends it, whatever it is in the middle of.
    fn kill(&mut self, job: &Job);

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

    /// Sends a signal to a job's command, if it is there: never to another that has its pid by now.
    fn signal(&self, job: &Job, signal: Signal) -> bool {
        let path = self.records.place(&job.id).join("hand.pid");
        let command = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<ProcessId>(&bytes).ok());
        let sent = command.map(|command| command.signal(signal));
        if let Some(Err(error)) = &sent {
            tracing::warn!("the command of job {} cannot be sent a signal: {error}", job.id);
        }
        matches!(sent, Some(Ok(true)))
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
        // Nor does it hold what the daemon writes to.
        let told = place.join("hand.err");
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&told).or_io("write", &told)?;
        hand.stderr(file);
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

    fn cancel(&mut self, job: &Job) -> bool {
        self.signal(job, Signal::TERM)
    }

    fn kill(&mut self, job: &Job) {
        self.signal(job, Signal::KILL);
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
    let program = std::env::current_exe().or_io("find", Path::new("/proc/self/exe"))?;
    let mut command = Command::new(&program);
    command.args(arguments);
    wait_for(command, place, number)
}

fn wait_for(mut command: Command, place: &Path, number: u32) -> Result<(), Error> {
    let file = |ending: &str| place.join(format!("{number}.{ending}"));
    let create = |path: PathBuf| {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).or_io("write", &path)
    };
    command.env(PROGRESS, file("progress")).stdin(Stdio::null());
    command.stdout(create(file("out"))?).stderr(create(file("err"))?);
    let hand = getpid();
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, both async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // A hand that was killed before that is nobody's parent any more.
            if getppid() == Some(hand) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
        });
    }
    let mut child = command.spawn().or_io("start", Path::new(command.get_program()))?;
    // Without it the command cannot be cancelled; it is waited for all the same.
    let named = ProcessId::of(child.id()).and_then(|id| Ok(serde_json::to_vec(&id)?));
    let named = named.or_io("look at", Path::new("/proc"));
    let named = named.and_then(|id| Ok(durable::replace(&place.join("hand.pid"), &id)?));
    let status = child.wait().or_io("wait for", Path::new(command.get_program()))?;
    let exit = status.code().unwrap_or_else(|| BY_SIGNAL + status.signal().unwrap_or(0));
    let synced = durable::sync_file(&file("out"));
    durable::replace(&file("exit"), exit.to_string().as_bytes())?;
    named.and(synced.map_err(Error::from))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use jiff::Timestamp;
    use keyframe_policy::PolicyName;

    use super::*;
    use crate::job::Duty;

    /// What tells the test below to be a hand: the directory, and what its command is for a shell.
    const PLACE: &str = "KEYFRAME_TEST_HAND";
    const SCRIPT: &str = "KEYFRAME_TEST_SCRIPT";

    /// Not a test by itself: this program, started anew, is a hand.
    #[test]
    #[ignore = "the other tests run it"]
    fn is_a_hand() {
        let (Ok(place), Ok(script)) = (std::env::var(PLACE), std::env::var(SCRIPT)) else { return };
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        wait_for(command, Path::new(&place), 1).unwrap();
    }

    fn job() -> Job {
        let (policy, now): (PolicyName, _) = ("a".parse().unwrap(), Timestamp::now());
        let mut job = Job::owed("db", &policy, Duty::Drill, now, 0, now);
        job.commands = 1;
        job
    }

    struct Hand {
        child: Child,
        job: Job,
        hands: Processes,
        _dir: tempfile::TempDir,
    }

    impl Hand {
        fn of(script: &str) -> Self {
            let (dir, job) = (tempfile::tempdir().unwrap(), job());
            let records = Records::of(dir.path());
            records.keep(&job).unwrap();
            let mut hand = Command::new(std::env::current_exe().unwrap());
            hand.args(["--ignored", "--exact", "hands::tests::is_a_hand"]).stdout(Stdio::null()).stderr(Stdio::null());
            hand.env(PLACE, records.place(&job.id)).env(SCRIPT, script);
            let hands = Processes::new("false".into(), dir.path().to_owned(), records);
            Self { child: hand.spawn().unwrap(), job, hands, _dir: dir }
        }

        /// The command, once it has said that it is there.
        fn command(&self) -> ProcessId {
            let said = self.hands.records.file(&self.job.id, 1, "out");
            assert!(within(|| fs::read_to_string(&said).is_ok_and(|said| !said.is_empty())), "it never began");
            let path = self.hands.records.place(&self.job.id).join("hand.pid");
            assert!(within(|| path.exists()));
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        }

        fn exit(&mut self) -> String {
            self.child.wait().unwrap();
            fs::read_to_string(self.hands.records.file(&self.job.id, 1, "exit")).unwrap()
        }
    }

    fn within(is: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            if is() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    #[test]
    fn a_hand_that_is_killed_takes_its_command_with_it() {
        let mut hand = Hand::of("echo there; exec sleep 600");
        let command = hand.command();
        assert!(command.is_alive());
        hand.child.kill().unwrap();
        hand.child.wait().unwrap();
        assert!(within(|| !command.is_alive()), "nobody knows that it is at work");
    }

    #[test]
    fn a_command_that_does_not_end_when_asked_is_killed() {
        let mut hand = Hand::of("trap '' TERM; echo there; while :; do sleep 1; done");
        let command = hand.command();
        assert!(hand.hands.cancel(&hand.job));
        std::thread::sleep(Duration::from_millis(300));
        assert!(command.is_alive(), "it was only asked");
        hand.hands.kill(&hand.job);
        assert_eq!(hand.exit(), "137");
        assert!(!hand.hands.cancel(&hand.job), "it is not there any more");
    }

    #[test]
    fn a_pid_that_is_somebody_elses_by_now_is_let_alone() {
        let mut hand = Hand::of("echo there; exec sleep 600");
        let command = hand.command();
        let earlier = ProcessId { start_ticks: command.start_ticks - 1, ..command.clone() };
        let path = hand.hands.records.place(&hand.job.id).join("hand.pid");
        fs::write(&path, serde_json::to_vec(&earlier).unwrap()).unwrap();
        assert!(!hand.hands.cancel(&hand.job));
        hand.hands.kill(&hand.job);
        std::thread::sleep(Duration::from_millis(200));
        assert!(command.is_alive());
        fs::write(&path, serde_json::to_vec(&command).unwrap()).unwrap();
        hand.hands.kill(&hand.job);
        assert_eq!(hand.exit(), "137");
    }

    #[test]
    fn what_a_hand_says_is_in_a_file_of_its_job() {
        use std::os::unix::fs::PermissionsExt as _;
        let (dir, job) = (tempfile::tempdir().unwrap(), job());
        let program = dir.path().join("hand");
        fs::write(&program, "#!/bin/sh\necho it cannot >&2\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let records = Records::of(dir.path());
        let mut hands = Processes::new(program, dir.path().to_owned(), records.clone());
        hands.start(&job, &Line::default()).unwrap();
        let begun = Instant::now();
        while hands.look(&job) == Look::AtWork && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let said = fs::read_to_string(records.place(&job.id).join("hand.err")).unwrap();
        assert_eq!(said, "it cannot\n");
    }
}
