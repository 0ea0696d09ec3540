//! The page server's process, and its supervisor.
//!
//! A lazy revert needs someone who answers the guest's page faults long after the command has returned. That is
//! a *worker*: a process that does nothing else. A *supervisor* starts it, and when it dies starts another that
//! resumes where it stopped; the guest waits for a page meanwhile and notices nothing else. The worker
//! dies with its supervisor; then the next command on the machine posts a new one ([`ensure`]).
//!
//! Supervisor and commands share `hydration.json` in the instance's directory: whether all memory is there yet.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keyframe_hypervisor::process::{ProcessId, spawn_detached};
use keyframe_hypervisor::{InstanceRecord, Monitor, load};
use keyframe_memory::pageserver::{self, Errand, Notice, Observer, PageServerError, ServerConfig, Stage};
use keyframe_qmp::commands::migration::{MigrationStatus, QueryMigrate};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::failpoint;
use crate::state::home::SnapshotDir;

/// The hidden subcommand that runs a supervisor.
pub const SUPERVISOR: &str = "internal-pages";
/// The hidden subcommand that runs a worker.
pub const WORKER: &str = "internal-page-worker";

/// How often a worker that dies is replaced before the supervisor gives up.
const MOST_RESTARTS: u32 = 100;
/// How long QEMU may take to notice that a worker has died.
const PAUSE_PATIENCE: Duration = Duration::from_secs(20);

/// How far a lazy revert's memory has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hydration {
    /// Who serves.
    supervisor: ProcessId,
    /// How it stands.
    pub state: HydrationState,
    /// Pages sent.
    pub pages_sent: u64,
    /// Pages that the snapshot holds.
    pub pages_held: u64,
    /// How often a worker died and was replaced.
    pub restarts: u32,
}

/// How a lazy revert's memory stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum HydrationState {
    /// Pages are being served.
    Serving,
    /// All memory is there.
    Done,
    /// It cannot be completed.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The files of a page server in its instance's directory.
#[derive(Debug, Clone)]
struct Post {
    dir: PathBuf,
}

impl Post {
    fn of(instance: &InstanceRecord) -> Self {
        Self { dir: instance.dir.clone() }
    }

    fn config(&self) -> PathBuf {
        self.dir.join("pages.json")
    }

    fn status(&self) -> PathBuf {
        self.dir.join("hydration.json")
    }

    fn instance(&self) -> PathBuf {
        self.dir.join("instance.json")
    }

    fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Written for processes of this boot only: renamed, not synced.
    fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
        let bytes = serde_json::to_vec(value).map_err(|source| Error::Encode { source })?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, bytes).or_io("write", &temporary)?;
        std::fs::rename(&temporary, path).or_io("write", path)
    }
}

/// Posts a supervisor that serves `instance`, which listens, from the snapshot in `snapshot`.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn serve(ctx: &Context<'_>, snapshot: &SnapshotDir, instance: &InstanceRecord) -> Result<(), Error> {
    let config = ServerConfig {
        errand: Errand::Serve,
        image: snapshot.memory(),
        sums: snapshot.sums(),
        hot: Some(snapshot.hot()),
        socket: instance.dir.join(load::PAGES_SOCKET),
    };
    post(ctx, &config, instance)
}

fn post(_ctx: &Context<'_>, config: &ServerConfig, instance: &InstanceRecord) -> Result<(), Error> {
    let post = Post::of(instance);
    Post::write(&post.config(), config)?;
    Post::write(&post.instance(), instance)?;
    let log_path = post.dir.join("pages.log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path).or_io("open", &log_path)?;
    let mut command = own_program();
    command.arg(SUPERVISOR).arg(&post.dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let child = spawn_detached(&mut command, &[]).or_io("run", Path::new("/proc/self/exe"))?;
    let supervisor = ProcessId::of(child.id()).or_io("look at", &post.dir)?;
    let status = Hydration { supervisor, state: HydrationState::Serving, pages_sent: 0, pages_held: 0, restarts: 0 };
    // The supervisor writes the same file; only the first of the two may count.
    if !post.status().exists() || config.errand == Errand::Resume {
        Post::write(&post.status(), &status)?;
    }
    Ok(())
}

fn own_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env_remove(failpoint::VARIABLE);
    command
}

/// How far the memory of a lazily reverted machine has come; `None` for a machine that has none to wait for.
#[must_use]
pub fn status(instance: &InstanceRecord) -> Option<Hydration> {
    Post::read(&Post::of(instance).status())
}

/// Waits until all memory is there.
///
/// # Errors
/// [`Error::Hydration`] when it cannot be completed, [`Error::Interrupted`]: pages are served on then.
pub(crate) fn wait(ctx: &Context<'_>, instance: &InstanceRecord) -> Result<(), Error> {
    ctx.progress.step("bringing memory in");
    while let Some(status) = status(instance) {
        match status.state {
            HydrationState::Done => return Ok(()),
            HydrationState::Failed { reason } => return Err(Error::Hydration { reason }),
            HydrationState::Serving if !instance.is_alive() => {
                return Err(Error::Hydration { reason: "QEMU ended".to_owned() });
            }
            HydrationState::Serving => {}
        }
        ctx.check()?;
        ensure(ctx, instance)?;
        ctx.progress.bytes(status.pages_sent.saturating_mul(4096), status.pages_held.saturating_mul(4096));
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Posts a new supervisor if a machine's memory is not complete and nobody serves it.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn ensure(ctx: &Context<'_>, instance: &InstanceRecord) -> Result<(), Error> {
    let post = Post::of(instance);
    let Some(mut status) = status(instance) else { return Ok(()) };
    if status.state != HydrationState::Serving || status.supervisor.is_alive() || !instance.is_alive() {
        return Ok(());
    }
    let Some(mut config) = Post::read::<ServerConfig>(&post.config()) else { return Ok(()) };
    // It may have died after its work was done.
    let mut monitor = instance.monitor(Monitor::Guard)?;
    if let Ok(migration) = monitor.call_until(&QueryMigrate {}, Instant::now() + Duration::from_secs(1))
        && migration.status == Some(MigrationStatus::Completed)
    {
        status.state = HydrationState::Done;
        return Post::write(&post.status(), &status);
    }
    drop(monitor);
    config.errand = Errand::Resume;
    post_again(ctx, &config, instance)
}

fn post_again(ctx: &Context<'_>, config: &ServerConfig, instance: &InstanceRecord) -> Result<(), Error> {
    ctx.progress.note("the page server was gone; starting another that goes on where it stopped");
    post(ctx, config, instance)
}

/// The supervisor's process: serves until all memory is there.
///
/// # Errors
/// When its own files cannot be read or written; what goes wrong with serving is in the status.
pub fn supervise(dir: &Path) -> Result<(), Error> {
    let post = Post { dir: dir.to_owned() };
    let missing = |path: PathBuf| Error::Damaged { path, reason: "it does not describe a page server".to_owned() };
    let mut config: ServerConfig = Post::read(&post.config()).ok_or_else(|| missing(post.config()))?;
    let instance: InstanceRecord = Post::read(&post.instance()).ok_or_else(|| missing(post.instance()))?;
    let supervisor = ProcessId::of(std::process::id()).or_io("look at", dir)?;
    let mut status =
        Hydration { supervisor, state: HydrationState::Serving, pages_sent: 0, pages_held: 0, restarts: 0 };
    loop {
        Post::write(&post.status(), &status)?;
        if config.errand == Errand::Resume
            && let Err(reason) = invite(&instance, &mut config, status.restarts)
        {
            status.state = HydrationState::Failed { reason };
            break;
        }
        match run_worker(&post, &config, &mut status)? {
            Ended::Done => {
                status.state = HydrationState::Done;
                break;
            }
            Ended::Failed(reason) => {
                status.state = HydrationState::Failed { reason };
                break;
            }
            Ended::Died if status.restarts < MOST_RESTARTS && instance.is_alive() => {
                status.restarts += 1;
                config.errand = Errand::Resume;
            }
            Ended::Died => {
                let reason = "the page server died again and again, or QEMU is gone".to_owned();
                status.state = HydrationState::Failed { reason };
                break;
            }
        }
    }
    Post::write(&post.status(), &status)
}

/// Makes QEMU listen for another worker, on a socket of its own: the old one may still be bound.
fn invite(instance: &InstanceRecord, config: &mut ServerConfig, number: u32) -> Result<(), String> {
    let name = format!("pages-{}-{number}.sock", std::process::id());
    config.socket = instance.dir.join(&name);
    let mut monitor = instance.monitor(Monitor::Guard).map_err(|error| error.to_string())?;
    // QEMU's working directory is the instance's: the bare name is short enough for a socket wherever that lies.
    pageserver::invite(&mut monitor, Path::new(&name), PAUSE_PATIENCE).map_err(|error| chain(&error))
}

enum Ended {
    Done,
    Failed(String),
    Died,
}

/// What a worker writes, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Notice(Notice),
    Failed { reason: String, resumable: bool },
    Done,
}

fn run_worker(post: &Post, config: &ServerConfig, status: &mut Hydration) -> Result<Ended, Error> {
    Post::write(&post.config(), config)?;
    let mut worker = spawn_worker(post)?;
    let mut ended = Ended::Died;
    let lines = worker.stdout.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines().map_while(Result::ok));
    for line in lines {
        match serde_json::from_str(&line) {
            Ok(Line::Notice(Notice::Progress { pages_sent, pages_held })) => {
                (status.pages_sent, status.pages_held) = (pages_sent, pages_held);
                Post::write(&post.status(), status)?;
            }
            Ok(Line::Done) => ended = Ended::Done,
            Ok(Line::Failed { reason, resumable: false }) => ended = Ended::Failed(reason),
            Ok(Line::Failed { .. } | Line::Notice(_)) | Err(_) => {}
        }
    }
    // Its words were heard; how it exited says nothing more.
    let _ = worker.wait();
    Ok(ended)
}

fn spawn_worker(post: &Post) -> Result<Child, Error> {
    let mut command = own_program();
    command.arg(WORKER).arg(post.config()).stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: prctl(2) is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().or_io("run", Path::new("/proc/self/exe"))
}

struct ToSupervisor;

impl ToSupervisor {
    fn say(line: &Line) {
        use std::io::Write as _;
        if let Ok(text) = serde_json::to_string(line) {
            // A supervisor that is gone takes us with it.
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }
}

impl Observer for ToSupervisor {
    fn notice(&self, notice: Notice) {
        Self::say(&Line::Notice(notice));
    }
}

/// The worker's process: serves what the config file describes. Says how it ends on standard output.
///
/// # Errors
/// When the config cannot be read.
pub fn work(config: &Path) -> Result<(), Error> {
    let config: ServerConfig = Post::read(config).ok_or_else(|| Error::Damaged {
        path: config.to_owned(),
        reason: "it does not describe a page server".to_owned(),
    })?;
    match pageserver::run(&config, &ToSupervisor) {
        Ok(report) => {
            if let Some(hot) = &config.hot {
                // Only advice for the next revert.
                let _ = crate::state::durable::replace(hot, &report.learned.to_bytes());
            }
            ToSupervisor::say(&Line::Done);
        }
        Err(error) => {
            let resumable = is_resumable(&error);
            ToSupervisor::say(&Line::Failed { reason: chain(&error), resumable });
        }
    }
    Ok(())
}

/// Whether another worker can go on where this one stopped: the destination is there, and it was not the image
/// that failed.
fn is_resumable(error: &PageServerError) -> bool {
    match error {
        PageServerError::Socket { stage, .. }
        | PageServerError::Lost { stage }
        | PageServerError::Silent { stage, .. } => *stage != Stage::Opening,
        _ => false,
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
