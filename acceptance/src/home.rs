//! A `KEYFRAME_HOME` for one test, and the command line run in it.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use crate::error::{Error, Result};
use crate::guests;
use crate::process;
use crate::running::{Outcome, Running};

/// A home under cargo's target directory: on a real disk, as snapshots need one. When it goes out of scope,
/// every process that belongs to it is killed; the files are removed, or kept to be looked at when the test
/// panicked.
///
/// There is one at a time, in all processes together: guests that run side by side on a small machine tell nothing
/// about time. A second one waits, so a test that holds two waits for ever.
pub struct Home {
    dir: PathBuf,
    executable: Option<PathBuf>,
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
        Ok(Self { dir, executable: None, _only: only })
    }

    /// The same with this `keyframe` instead of the workspace's own in the profile of this program.
    #[must_use]
    pub fn with_executable(mut self, keyframe: &Path) -> Self {
        self.executable = Some(keyframe.to_owned());
        self
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A path for a file of the test's own, outside what `keyframe` looks after.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file of policies, `policies/NAME`.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be written.
    pub fn write_policies(&self, name: &str, text: &str) -> Result<()> {
        let dir = self.dir.join("policies");
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        let path = dir.join(name);
        fs::write(&path, text).map_err(Error::file("write", &path))
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
        self.start_with(arguments, &[])
    }

    /// [`Home::run`] of a `keyframe` that kills itself at one of its failpoints, if it comes by.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn run_until<S: AsRef<OsStr>>(
        &self,
        failpoint: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Outcome> {
        self.start_with(arguments, &[("KEYFRAME_FAILPOINT", failpoint)])?.wait()
    }

    /// Starts a `keyframe` that stops itself at one of its failpoints, and waits until it has: [`Running::resume`] lets it
    /// go on.
    ///
    /// # Errors
    /// When it cannot be built or started, or does not come by.
    pub fn start_until<S: AsRef<OsStr>>(
        &self,
        failpoint: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Running> {
        let running = self.start_with(arguments, &[("KEYFRAME_FAILPOINT", &format!("{failpoint}@"))])?;
        running.wait_until_stopped()?;
        Ok(running)
    }

    /// Runs `keyframe` with further variables in its environment, and waits until it has ended.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn run_with<S: AsRef<OsStr>>(
        &self,
        environment: &[(&str, &str)],
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Outcome> {
        self.start_with(arguments, environment)?.wait()
    }

    fn start_with<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        environment: &[(&str, &str)],
    ) -> Result<Running> {
        let arguments: Vec<_> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let shown: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        let shown = format!("keyframe {}", shown.join(" "));
        let mut command = self.keyframe()?;
        command.args(arguments).envs(environment.iter().copied());
        Running::start(command, shown)
    }

    /// `keyframe` in this home, with no arguments yet.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn keyframe(&self) -> Result<Command> {
        let program = match &self.executable {
            Some(given) => given,
            None => keyframe()?,
        };
        let mut command = Command::new(program);
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
    command.args(arguments);
    let shown = format!("{command:?}");
    Running::start(command, shown)?.wait()?.succeeded().map(drop)
}
