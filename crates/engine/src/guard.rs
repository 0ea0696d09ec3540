//! Someone who watches over a command that stops or freezes a guest.
//!
//! A process of its own, with nothing to do but to wait: when the command that posted it dies, it takes the
//! machine's lock and tidies up behind it, so that a guest does not stay stopped or frozen until a person comes
//! by. When the command lives but does not let go in time, it thaws or resumes the guest itself.
//!
//! The two talk over a pipe, one line each: `thaw-by MS`, `thawed`, `resume-by MS`, `resumed`, `done`. The
//! pipe's end means that the command is gone; without `done` before, it was killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use keyframe_hypervisor::process::spawn_detached;
use keyframe_hypervisor::{Monitor, cut};
use keyframe_types::VmName;
use rustix::process::{Pid, getppid};

use crate::context::{Context, Silent};
use crate::error::{Error, IoContext as _};
use crate::failpoint;
use crate::machine::Machine;
use crate::state::home::{Home, VmDir};
use crate::state::lock::{Lock, TIDYING_UP};
use crate::{guest, recover};

/// The hidden subcommand that runs a guard.
pub const SUBCOMMAND: &str = "internal-guard";

/// How long after a failed thaw it is tried again.
const THAW_AGAIN: Duration = Duration::from_secs(2);
/// How long after a failed tidying up it is tried once more.
const TIDY_AGAIN: Duration = Duration::from_secs(3);
/// How long a process that was killed may take to close what it had open.
const GOING_PATIENCE: Duration = Duration::from_secs(2);
/// How long thawing is tried after the command has ended.
const THAW_FOR: Duration = Duration::from_secs(120);

/// A guard on its post.
#[derive(Debug)]
pub struct Guard {
    pipe: Mutex<Option<ChildStdin>>,
}

impl Guard {
    /// Posts a guard over a machine.
    ///
    /// # Errors
    /// When this program cannot be started again.
    pub fn post(home: &Home, vm: &VmName) -> Result<Self, Error> {
        let program = Path::new("/proc/self/exe");
        let mut command = Command::new(program);
        command
            .args([SUBCOMMAND, "--guard-home"])
            .arg(home.root())
            .arg(vm.as_str())
            .env_remove(failpoint::VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = spawn_detached(&mut command, &[]).or_io("run", program)?;
        Ok(Self { pipe: Mutex::new(child.stdin.take()) })
    }

    /// Posts a guard over a machine that runs; one that is off has no guest to watch over.
    ///
    /// # Errors
    /// As [`Guard::post`].
    pub fn post_if_running(machine: &Machine) -> Result<Option<Self>, Error> {
        let post = || Self::post(machine.dir.home(), machine.name());
        machine.process().is_some().then(post).transpose()
    }

    /// The guest's file systems will be thawed within `window`.
    pub fn expect_thaw(&self, window: Duration) {
        self.say(&format!("thaw-by {}", window.as_millis()));
    }

    /// They are thawed.
    pub fn thawed(&self) {
        self.say("thawed");
    }

    /// The guest will be resumed within `window`.
    pub fn expect_resume(&self, window: Duration) {
        self.say(&format!("resume-by {}", window.as_millis()));
    }

    /// It is resumed.
    pub fn resumed(&self) {
        self.say("resumed");
    }

    /// The command is done: the guard may go.
    pub fn dismiss(&self) {
        self.say("done");
        if let Ok(mut pipe) = self.pipe.lock() {
            *pipe = None;
        }
    }

    /// [`Guard::dismiss`], unless an operation is left that it shall finish.
    pub fn dismiss_if_tidy(guard: Option<Self>, dir: &VmDir) {
        if let Some(guard) = guard.filter(|_| !dir.journal().exists()) {
            guard.dismiss();
        }
    }

    fn say(&self, line: &str) {
        if let Ok(mut pipe) = self.pipe.lock()
            && let Some(pipe) = pipe.as_mut()
        {
            // A guard that was killed hears nothing; the next command tidies up instead.
            let _ = writeln!(pipe, "{line}");
        }
    }
}

/// What a guard has been told to see to, and by when.
#[derive(Debug, Default)]
struct Duties {
    thaw_by: Option<Instant>,
    resume_by: Option<Instant>,
    done: bool,
}

impl Duties {
    fn hear(&mut self, line: &str, now: Instant) {
        let by = |ms: &str| ms.parse().ok().map(|ms| now + Duration::from_millis(ms));
        match line.split_once(' ') {
            Some(("thaw-by", ms)) => self.thaw_by = by(ms),
            Some(("resume-by", ms)) => self.resume_by = by(ms),
            None if line == "thawed" => self.thaw_by = None,
            None if line == "resumed" => self.resume_by = None,
            None if line == "done" => self.done = true,
            _ => {}
        }
    }

    /// The one who took them on is gone.
    fn fall_due(&mut self) {
        let now = Instant::now();
        for by in [&mut self.thaw_by, &mut self.resume_by] {
            *by = by.map(|_| now);
        }
    }

    fn next(&self) -> Option<Instant> {
        self.thaw_by.into_iter().chain(self.resume_by).min()
    }
}

/// Stands guard over `vm` until the command at the other end of standard input is done or gone.
///
/// # Errors
/// When tidying up behind a killed command fails; the next command tries again.
pub fn stand(home: &Home, vm: &VmName) -> Result<(), Error> {
    let command = getppid();
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(std::io::stdin()).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut duties = Duties::default();
    loop {
        let wait = duties.next().map_or(Duration::from_secs(3600), |by| by.saturating_duration_since(Instant::now()));
        match lines.recv_timeout(wait) {
            Ok(line) => duties.hear(&line, Instant::now()),
            Err(mpsc::RecvTimeoutError::Timeout) => relieve(home, vm, &mut duties),
            Err(mpsc::RecvTimeoutError::Disconnected) if duties.done => return thaw_at_last(home, vm, &duties),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                wait_until_gone(command);
                let tidied = tidy_up(home, vm);
                duties.fall_due();
                relieve(home, vm, &mut duties);
                // What is in the way may be gone in a moment; the next command would try again as well, whenever it comes.
                return tidied.or_else(|_| {
                    std::thread::sleep(TIDY_AGAIN);
                    tidy_up(home, vm)
                });
            }
        }
    }
}

/// Waits until nothing is open any more in the process that posted this guard. The kernel closes the descriptors of one that was killed
/// in turn, the pipe among the first: locks further on would be taken for held. A process has no children once all are closed.
fn wait_until_gone(command: Option<Pid>) {
    let deadline = Instant::now() + GOING_PATIENCE;
    while command.is_some_and(|command| !command.is_init()) && getppid() == command && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The command lives but is late: does what it should have done.
fn relieve(home: &Home, vm: &VmName, duties: &mut Duties) {
    let now = Instant::now();
    let Ok(machine) = Machine::open(home, vm) else { return };
    let Some(process) = machine.process() else { return };
    if duties.thaw_by.take_if(|by| *by <= now).is_some() && guest::thaw(&process.instance).is_err() {
        // A slow agent, or one that talks to the command just now.
        duties.thaw_by = Some(Instant::now() + THAW_AGAIN);
    }
    if duties.resume_by.take_if(|by| *by <= now).is_some()
        && let Ok(mut monitor) = process.instance.monitor(Monitor::Guard)
    {
        cut::resume_if_paused(&mut monitor);
    }
}

/// The command is done, and could not make sure that the guest was thawed: goes on trying for a while.
fn thaw_at_last(home: &Home, vm: &VmName, duties: &Duties) -> Result<(), Error> {
    if duties.thaw_by.is_none() {
        return Ok(());
    }
    let deadline = Instant::now() + THAW_FOR;
    while Instant::now() < deadline {
        match Machine::open(home, vm)?.process() {
            Some(process) if guest::thaw(&process.instance).is_err() => std::thread::sleep(THAW_AGAIN),
            _ => break,
        }
    }
    Ok(())
}

fn tidy_up(home: &Home, vm: &VmName) -> Result<(), Error> {
    let never = std::sync::atomic::AtomicBool::new(false);
    let ctx = Context { home, progress: &Silent, cancel: &never };
    let _lock = Lock::take(&home.vm(vm).lock(), TIDYING_UP)?;
    recover::recover(&ctx, vm, recover::Patience::Thorough)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duties_are_taken_on_and_laid_down() {
        let now = Instant::now();
        let mut duties = Duties::default();
        duties.hear("thaw-by 5000", now);
        duties.hear("resume-by 100", now);
        assert_eq!(duties.next(), Some(now + Duration::from_millis(100)));
        duties.hear("resumed", now);
        assert_eq!(duties.next(), Some(now + Duration::from_secs(5)));
        duties.fall_due();
        assert!(duties.next().is_some_and(|by| by <= Instant::now()) && duties.resume_by.is_none());
        duties.hear("thawed", now);
        duties.hear("nonsense 7", now);
        assert_eq!((duties.next(), duties.done), (None, false));
        duties.hear("done", now);
        assert!(duties.done);
    }
}
