//! Where the demo plays: a directory of its own under cargo's target directory, with a home, a repository and disks in it, and
//! commands typed there.
//!
//! Whatever way it ends, nothing is left: [`Stage::close`] kills the processes that belong to the home and removes it. On
//! Ctrl-C a thread of its own does that, between two commands: the command at work has had the same signal and
//! takes back what it had begun. One lock keeps a command from starting once closing has begun.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use keyframe_acceptance::process;
use keyframe_acceptance::serial::SerialLog;
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::guest::Watched;
use crate::{paths, run, say};

/// The home, in the stage's directory.
pub const HOME: &str = "home";
/// What names the repository and its key, relative to the stage's directory.
pub const REPOSITORY: [(&str, &str); 2] = [("KEYFRAME_REPO", "repo"), ("KEYFRAME_KEY_FILE", "key")];
/// QEMU hands a line to the guest a few bytes at a time, and drops the rest when the typist leaves earlier.
const TYPING: Duration = Duration::from_millis(300);
const LOOK_FOR_SIGNALS_EVERY: Duration = Duration::from_millis(50);
const INTERRUPTED: i32 = 130;

/// The stage. Dropping it closes it.
pub struct Stage {
    place: Arc<Place>,
    keyframe: PathBuf,
    interrupted: Arc<AtomicBool>,
}

/// The directory, and whether commands may still be run in it.
struct Place {
    dir: PathBuf,
    open: Mutex<bool>,
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) -> Result<()> {
        let mut open = self.lock();
        if !std::mem::take(&mut *open) {
            return Ok(());
        }
        for process in process::of_home(&self.dir) {
            process.kill(&self.dir)?;
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}

impl Stage {
    /// Opens one, with the guest's kernel in it.
    ///
    /// # Errors
    /// When files cannot be made.
    pub fn open(keyframe: &Path, guest: &Path) -> Result<Self> {
        let made = tempfile::Builder::new().prefix("demo-").tempdir_in(paths::target())?;
        let place = Arc::new(Place { dir: made.keep(), open: Mutex::new(true) });
        let interrupted = Arc::new(AtomicBool::new(false));
        let stage = Self { place, keyframe: keyframe.to_owned(), interrupted };
        for file in ["vmlinuz", "initrd"] {
            std::os::unix::fs::symlink(guest.join(file), stage.dir().join(file))?;
        }
        stage.listen_for_signals()?;
        Ok(stage)
    }

    fn listen_for_signals(&self) -> Result<()> {
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&self.interrupted)).context("cannot listen for signals")?;
        }
        let (place, interrupted) = (Arc::clone(&self.place), Arc::clone(&self.interrupted));
        thread::spawn(move || {
            while !interrupted.load(Ordering::Relaxed) {
                thread::sleep(LOOK_FOR_SIGNALS_EVERY);
            }
            say::note("");
            say::note("Interrupted: cleaning up.");
            if let Err(error) = place.close() {
                say::failure(format_args!("{error:#}"));
            }
            std::process::exit(INTERRUPTED);
        });
        Ok(())
    }

    fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// The guest of a machine, whether it exists yet or not.
    pub fn watched(&self, vm: &str) -> Watched {
        Watched::new(SerialLog::at(self.dir().join(HOME).join("vms").join(vm).join("run/serial.log")))
    }

    /// Types a `keyframe` command: shows it, runs it, shows what it says.
    ///
    /// # Errors
    /// When it fails.
    pub fn keyframe(&self, words: &[&str]) -> Result<()> {
        let said = self.typed("keyframe", words)?;
        said.lines().for_each(say::note);
        Ok(())
    }

    /// Types a command whose output is of no interest.
    ///
    /// # Errors
    /// When it fails.
    pub fn type_quietly(&self, program: &str, words: &[&str]) -> Result<()> {
        self.typed(program, words).map(drop)
    }

    /// Writes a small file, below the stage's directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &Path, text: &str) -> Result<()> {
        let path = self.dir().join(file);
        fs::create_dir_all(path.parent().unwrap_or(&path)).and_then(|()| fs::write(&path, text))?;
        say::typed(format_args!("cat {}", file.display()));
        text.lines().for_each(say::note);
        Ok(())
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, file: &Path) -> Result<String> {
        fs::read_to_string(self.dir().join(file)).with_context(|| format!("cannot read {}", file.display()))
    }

    /// Where something of the stage's directory is.
    pub fn path(&self, file: &Path) -> PathBuf {
        self.dir().join(file)
    }

    /// Types a `keyframe` command and leaves it at work. It ends with the stage.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn leave(&self, words: &[&str]) -> Result<Child> {
        let open = self.enter();
        let mut shown = Command::new("keyframe");
        say::typed(run::shown(shown.args(words)));
        let mut command = self.command("keyframe", words);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        drop(open);
        child.context("cannot run keyframe")
    }

    /// Looks something up with `keyframe … --json`, without showing it.
    ///
    /// # Errors
    /// When it fails.
    pub fn look(&self, words: &[&str]) -> Result<Value> {
        let said = self.run(self.command("keyframe", words).arg("--json"))?;
        serde_json::from_str(&said).with_context(|| format!("keyframe {} told no JSON", words.join(" ")))
    }

    /// Types a line at a machine's console.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn type_at_console(&self, vm: &str, line: &str) -> Result<()> {
        let mut console = self.command("keyframe", &["vm", "console", vm]);
        say::typed(run::shown(&run::command("keyframe", ["vm", "console", vm])));
        say::typed_at_console(line);
        let open = self.enter();
        console.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = console.spawn().context("cannot run keyframe vm console")?;
        if let Some(mut typist) = child.stdin.take() {
            // When it does not listen, its exit status tells.
            let _unheard = writeln!(typist, "{line}");
            thread::sleep(TYPING);
        }
        let status = child.wait().context("cannot wait for keyframe vm console")?;
        drop(open);
        if !status.success() {
            bail!("keyframe vm console {vm} failed: {status}");
        }
        Ok(())
    }

    /// What ran the machine, in a few words.
    ///
    /// # Errors
    /// When it cannot be looked up.
    pub fn machine_shown(&self) -> Result<String> {
        let shown = self.look(&["vm", "show", super::VM])?;
        let text = |field: &str| shown.get(field).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        Ok(format!("QEMU {} on {}, 512 MiB of memory, three disks", text("qemu_version"), text("accelerator")))
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = if program == "keyframe" { Command::new(&self.keyframe) } else { Command::new(program) };
        command.args(words).current_dir(self.dir()).env("KEYFRAME_HOME", self.dir().join(HOME));
        command.envs(REPOSITORY);
        if let Some(path) = std::env::var_os("PATH") {
            // Where tools for file systems are, which not everybody looks for there.
            let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
            command.envs(std::env::join_paths(places).ok().map(|path| ("PATH", path)));
        }
        command
    }

    fn typed(&self, program: &str, words: &[&str]) -> Result<String> {
        let mut shown = Command::new(program);
        shown.args(words);
        say::typed(run::shown(&shown));
        self.run(&mut self.command(program, words))
    }

    fn run(&self, command: &mut Command) -> Result<String> {
        let open = self.enter();
        let outcome = run::text(command);
        drop(open);
        if self.interrupted.load(Ordering::Relaxed) {
            wait_for_the_end();
        }
        outcome
    }

    /// The right to run a command, until it is dropped. Once the stage is closed nobody gets it any more.
    fn enter(&self) -> MutexGuard<'_, bool> {
        let open = self.place.lock();
        if !*open {
            drop(open);
            wait_for_the_end();
        }
        open
    }

    /// Kills and removes everything.
    ///
    /// # Errors
    /// When something stays.
    pub fn close(&self) -> Result<()> {
        self.place.close()
    }
}

/// The thread that closes the stage after a signal ends this process.
fn wait_for_the_end() -> ! {
    loop {
        thread::park();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            say::failure(format_args!("{error:#}"));
        }
    }
}
