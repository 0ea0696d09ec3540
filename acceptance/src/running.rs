//! A program at work, and how it went. None may take for ever: one that hangs fails its test, with what it said.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::process::ProcessId;

/// No command of a test's takes longer, on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(300);

/// Processes that a command leaves behind must not hold on to its outputs: whoever reads them to their end would wait.
const LINGER: Duration = Duration::from_secs(5);

/// How one run of `keyframe` went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was run, for messages.
    pub command: String,
    /// Exit status; nothing when a signal ended it.
    pub status: Option<i32>,
    /// The document on standard output; [`Value::Null`] when there was none.
    pub json: Value,
    /// Standard output as it was.
    pub stdout: String,
    /// Standard error as it was.
    pub stderr: String,
}

impl Outcome {
    /// This, if it succeeded.
    ///
    /// # Errors
    /// [`Error::Failed`] when the exit status is not 0.
    pub fn succeeded(self) -> Result<Self> {
        if self.status == Some(0) { Ok(self) } else { Err(self.into_failure()) }
    }

    /// A text that the contract promises.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn text(&self, field: &'static str) -> Result<&str> {
        self.json.get(field).and_then(Value::as_str).ok_or_else(|| self.lacks(field))
    }

    /// A number that the contract promises.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn number(&self, field: &'static str) -> Result<f64> {
        self.json.get(field).and_then(Value::as_f64).ok_or_else(|| self.lacks(field))
    }

    /// A list that the contract promises.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn list(&self, field: &'static str) -> Result<&[Value]> {
        self.json.get(field).and_then(Value::as_array).map(Vec::as_slice).ok_or_else(|| self.lacks(field))
    }

    fn lacks(&self, field: &'static str) -> Error {
        Error::Json { command: self.command.clone(), field, json: self.json.to_string() }
    }

    fn into_failure(self) -> Error {
        let status = self.status.map_or_else(|| "a signal".to_owned(), |status| format!("exit status {status}"));
        Error::Failed { command: self.command, status, stderr: self.stderr }
    }
}

/// A program that is at work. Its outputs are read meanwhile.
pub struct Running {
    child: Child,
    shown: String,
    stdout: Reader,
    stderr: Reader,
}

impl Running {
    /// Starts it, with no input.
    ///
    /// # Errors
    /// [`Error::Run`].
    pub fn start(mut command: Command, shown: String) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| Error::Run { program: shown.clone(), source })?;
        let (stdout, stderr) = (Reader::start(child.stdout.take()), Reader::start(child.stderr.take()));
        Ok(Self { child, shown, stdout, stderr })
    }

    /// Its process.
    pub fn process(&self) -> ProcessId {
        ProcessId(self.child.id())
    }

    /// Waits until it has stopped itself, at a failpoint.
    ///
    /// # Errors
    /// [`Error::Hung`] when it does not, which includes that it has ended.
    pub fn wait_until_stopped(&self) -> Result<()> {
        let begun = Instant::now();
        while !self.process().is_stopped() {
            if begun.elapsed() > PATIENCE || !self.process().is_running() {
                let (command, stderr) = (self.shown.clone(), self.stderr.text());
                return Err(Error::Hung { command, after: begun.elapsed(), stderr });
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it go on after [`Running::wait_until_stopped`].
    ///
    /// # Errors
    /// [`Error::Run`].
    pub fn resume(&self) -> Result<()> {
        let sent = Pid::from_child(&self.child);
        kill_process(sent, Signal::CONT)
            .map_err(|errno| Error::Run { program: self.shown.clone(), source: errno.into() })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Hung`] when it does not come to one: it is killed then. [`Error::HeldOpen`] when its outputs do not end
    /// with it. [`Error::Run`] when it cannot be waited for.
    pub fn wait(self) -> Result<Outcome> {
        self.wait_within(PATIENCE)
    }

    fn wait_within(mut self, patience: Duration) -> Result<Outcome> {
        let deadline = Instant::now() + patience;
        let trouble = |source| Error::Run { program: self.shown.clone(), source };
        let status = loop {
            match self.child.try_wait().map_err(trouble)? {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        if status.is_none() {
            self.child.kill().map_err(trouble)?;
            self.child.wait().map_err(trouble)?;
        }
        let deadline = Instant::now() + LINGER;
        while !(self.stdout.thread.is_finished() && self.stderr.thread.is_finished()) {
            if Instant::now() > deadline {
                return Err(Error::HeldOpen { command: self.shown, stderr: self.stderr.text() });
            }
            thread::sleep(Duration::from_millis(1));
        }
        match status {
            Some(status) => Ok(outcome(self.shown, status, self.stdout.text(), self.stderr.text())),
            None => Err(Error::Hung { command: self.shown, after: patience, stderr: self.stderr.text() }),
        }
    }
}

fn outcome(command: String, status: ExitStatus, stdout: String, stderr: String) -> Outcome {
    let json = serde_json::from_str(&stdout).unwrap_or(Value::Null);
    Outcome { command, status: status.code(), json, stdout, stderr }
}

/// What comes out of a pipe, read as it comes.
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let Some(mut pipe) = pipe else { return };
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, thread }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::start(command, script.to_owned()).unwrap()
    }

    #[test]
    fn an_outcome_has_everything_that_was_said() {
        let outcome = shell("echo '{\"a\": 1.5, \"b\": \"x\"}'; echo why >&2; exit 3").wait().unwrap();
        assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(3), "why\n"));
        assert_eq!((outcome.number("a").unwrap(), outcome.text("b").unwrap()), (1.5, "x"));
        assert!(matches!(outcome.list("a"), Err(Error::Json { field: "a", .. })));
        assert!(outcome.succeeded().unwrap_err().to_string().contains("why"));
    }

    #[test]
    fn one_that_hangs_is_killed_and_told_of() {
        let error = shell("echo stuck >&2; exec sleep 60").wait_within(Duration::from_millis(300)).unwrap_err();
        assert!(matches!(&error, Error::Hung { stderr, .. } if stderr == "stuck\n"), "{error:?}");
    }
    #[test]
    fn one_that_leaves_its_output_to_a_child_is_found_out() {
        let error = shell("echo gone >&2; sleep 7 &").wait().unwrap_err();
        assert!(matches!(&error, Error::HeldOpen { stderr, .. } if stderr == "gone\n"), "{error:?}");
    }
}
