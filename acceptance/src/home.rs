//! A `KEYFRAME_HOME` for one test, and the command line run in it.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::guests;
use crate::process;

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

/// A home under cargo's target directory: on a real disk, as snapshots need one. When it goes out of scope,
/// every process that belongs to it is killed; the files are removed, or kept to be looked at when the test
/// panicked.
///
/// There is one at a time, in all processes together: guests that run side by side on a small machine tell nothing
/// about time. A second one waits, so a test that holds two waits for ever.
pub struct Home {
    dir: PathBuf,
    _only: File,
}

impl Home {
    /// A fresh one, named after the test.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be made.
    pub fn new(test: &str) -> Result<Self> {
        let parent = guests::target().join("acceptance");
        fs::create_dir_all(&parent).map_err(Error::file("create", &parent))?;
        let lock = parent.join(".lock");
        let only = File::create(&lock).map_err(Error::file("create", &lock))?;
        only.lock().map_err(Error::file("lock", &lock))?;
        let made = tempfile::Builder::new().prefix(&format!("{test}-")).tempdir_in(&parent);
        let dir = made.map_err(Error::file("create a directory in", &parent))?.keep();
        Ok(Self { dir, _only: only })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A path for a file of the test's own, outside what `keyframe` looks after.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A new qcow2 image: empty with a size such as `1G`.
    ///
    /// # Errors
    /// When `qemu-img` fails.
    pub fn empty_disk(&self, name: &str, size: &str) -> Result<PathBuf> {
        let path = self.file(name);
        qemu_img([OsStr::new("create"), "-f".as_ref(), "qcow2".as_ref(), path.as_ref(), size.as_ref()])?;
        Ok(path)
    }

    /// A new qcow2 image over an existing qcow2 image that stays as it is.
    ///
    /// # Errors
    /// When `qemu-img` fails.
    pub fn overlay(&self, name: &str, base: &Path) -> Result<PathBuf> {
        let path = self.file(name);
        let words = ["create", "-f", "qcow2", "-F", "qcow2", "-b"].map(OsStr::new);
        qemu_img(words.into_iter().chain([base.as_os_str(), path.as_os_str()]))?;
        Ok(path)
    }

    /// Runs `keyframe` with these arguments in this home, to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Outcome> {
        self.start(arguments)?.wait()
    }

    /// Starts `keyframe` and does not wait: for killing it, or for two at once.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn start<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Running> {
        let arguments: Vec<_> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let shown: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        let shown = format!("keyframe {}", shown.join(" "));
        let mut command = self.keyframe()?;
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|source| Error::Run { program: shown.clone(), source })?;
        Ok(Running { child, shown })
    }

    /// `keyframe` in this home, with no arguments yet.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn keyframe(&self) -> Result<Command> {
        let mut command = Command::new(keyframe()?);
        command.env("KEYFRAME_HOME", &self.dir).env_remove("KEYFRAME_REPO");
        Ok(command)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for process in process::of_home(&self.dir) {
            if let Err(trouble) = process.kill(&self.dir) {
                eprintln!("cannot clean up: {trouble:?}");
            }
        }
        if thread::panicking() || env::var_os("KEYFRAME_KEEP").is_some() {
            eprintln!("kept for a look: {}", self.dir.display());
        } else if let Err(trouble) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {trouble}", self.dir.display());
        }
    }
}

/// A `keyframe` that is at work.
pub struct Running {
    child: Child,
    shown: String,
}

impl Running {
    /// Its process.
    pub fn process(&self) -> process::ProcessId {
        process::ProcessId(self.child.id())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Run`] when that fails.
    pub fn wait(self) -> Result<Outcome> {
        let Self { child, shown } = self;
        let output = child.wait_with_output().map_err(|source| Error::Run { program: shown.clone(), source })?;
        Ok(outcome(shown, &output))
    }
}

fn outcome(command: String, output: &Output) -> Outcome {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Outcome {
        command,
        status: output.status.code(),
        json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
        stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The executable: `KEYFRAME_BIN`, or the workspace's own, built in the profile of this very program.
fn keyframe() -> Result<&'static Path> {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = PATH.get() {
        return Ok(path);
    }
    let path = if let Some(path) = env::var_os("KEYFRAME_BIN") {
        PathBuf::from(path)
    } else if cfg!(debug_assertions) {
        guests::cargo(&["build", "--quiet", "--package", "keyframe-cli"])?;
        guests::target().join("debug/keyframe")
    } else {
        guests::cargo(&["build", "--quiet", "--release", "--package", "keyframe-cli"])?;
        guests::target().join("release/keyframe")
    };
    Ok(PATH.get_or_init(|| path))
}

fn qemu_img<'a>(arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(|source| Error::Run { program: "qemu-img".to_owned(), source })?;
    let outcome = outcome(format!("{command:?}"), &output);
    outcome.succeeded().map(drop)
}
