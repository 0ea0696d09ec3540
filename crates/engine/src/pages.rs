//! The page server's process, and its supervisor.
//!
//! A lazy revert needs someone who answers the guest's page faults long after the command has returned. That is
//! a *worker*: a process that does nothing else. A *supervisor* starts it, and when it dies starts another that
//! resumes where it stopped; the guest waits for a page meanwhile and notices nothing else. The worker
//! dies with its supervisor; then the next command on the machine posts a new one ([`ensure`]).
//!
//! `hydration.json` in the instance's directory says whether all memory is there yet. It has one writer at a time: the
//! command that posts a supervisor writes it before it starts one, and from the supervisor's first word on, only the
//! supervisor does. It is written before `pages.json`: where that is, a missing or unreadable `hydration.json` is an
//! error and never "all memory is there". A supervisor holds a lock, so there are never two at work on one machine.
//!
//! Serving goes before telling: a progress that cannot be written (a full disk) ends neither supervisor nor worker.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keyframe_hypervisor::process::{ProcessId, spawn_detached};
use keyframe_hypervisor::{InstanceRecord, Monitor, load};
use keyframe_memory::pageserver::{self, Errand, ImageAt, Notice, Observer, PageServerError, ServerConfig, Stage};
use keyframe_qmp::Client;
use keyframe_qmp::commands::migration::{MigrationStatus, QueryMigrate};
use keyframe_types::SnapshotId;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, IoContext as _, with_causes};
use crate::failpoint;
use crate::sharing;
use crate::state::home::VmDir;
use crate::state::scratch;

/// The hidden subcommand that runs a supervisor.
pub const SUPERVISOR: &str = "internal-pages";
/// The hidden subcommand that runs a worker.
pub const WORKER: &str = "internal-page-worker";

/// How often a worker that dies is replaced before the supervisor gives up.
const MOST_RESTARTS: u32 = 100;
/// How long a page server that gave up may take to say why.
const WORD_PATIENCE: Duration = Duration::from_secs(2);
/// How long QEMU may take to notice that a worker has died.
const PAUSE_PATIENCE: Duration = Duration::from_secs(20);

/// How long a supervisor may take to say its first word.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(10);
/// How often the last word is tried again when it cannot be written.
const LAST_WORD_AGAIN: Duration = Duration::from_secs(1);

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

impl Hydration {
    fn begun_by(supervisor: ProcessId) -> Self {
        Self { supervisor, state: HydrationState::Serving, pages_sent: 0, pages_held: 0, restarts: 0 }
    }
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

/// How far memory has come that is not all there, for whoever looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HydrationReport {
    /// How it stands.
    #[serde(flatten)]
    pub state: HydrationState,
    /// Pages sent.
    pub pages_sent: u64,
    /// Pages that the snapshot holds.
    pub pages_held: u64,
    /// How often a page server died and was replaced.
    pub restarts: u32,
}

impl HydrationReport {
    /// `None` for a machine that has all of its memory.
    pub(crate) fn of(instance: &InstanceRecord) -> Option<Self> {
        match status(instance) {
            Ok(None) => None,
            Ok(Some(status)) if status.state == HydrationState::Done => None,
            Ok(Some(status)) => Some(Self {
                state: status.state,
                pages_sent: status.pages_sent,
                pages_held: status.pages_held,
                restarts: status.restarts,
            }),
            Err(error) => {
                let state = HydrationState::Failed { reason: error.to_string() };
                Some(Self { state, pages_sent: 0, pages_held: 0, restarts: 0 })
            }
        }
    }

    /// In a few words, for a list.
    #[must_use]
    pub fn brief(&self) -> String {
        match &self.state {
            HydrationState::Failed { .. } => "memory incomplete".to_owned(),
            _ if self.pages_held == 0 => "memory on its way".to_owned(),
            _ => format!("{} % of memory there", self.pages_sent.saturating_mul(100) / self.pages_held),
        }
    }

    /// In a sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        match &self.state {
            HydrationState::Failed { reason } => {
                format!(
                    "not all of it is there, and the rest will not come: {reason}; revert again, or stop it by force"
                )
            }
            _ => format!("{} of {} pages are there, the rest is on its way", self.pages_sent, self.pages_held),
        }
    }
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

    fn lock(&self) -> PathBuf {
        self.dir.join("pages.lock")
    }

    /// How far memory has come; `None` where there never was a page server.
    fn progress(&self) -> Result<Option<Hydration>, Error> {
        match scratch::read(&self.status())? {
            None if self.config().try_exists().or_io("look at", &self.config())? => {
                scratch::needed(&self.status()).map(Some)
            }
            other => Ok(other),
        }
    }

    /// The right to serve, until dropped; `None` when another supervisor has it.
    fn take_over(&self) -> Result<Option<File>, Error> {
        let path = self.lock();
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.or_io("open", &path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            other => other.map(|()| Some(file)).map_err(std::io::Error::from).or_io("lock", &path),
        }
    }
}

/// Posts a supervisor that serves `instance`, which will listen, from the snapshot `id` of the machine in `vm`.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn serve(ctx: &Context<'_>, vm: &VmDir, id: &SnapshotId, instance: &InstanceRecord) -> Result<(), Error> {
    let image = ImageAt::Store { store: sharing::store(vm), snapshot: id.to_string() };
    serve_image(ctx, image, vm.snapshot(id).hot(), instance)
}

/// The same from any image; `hot` names what is wanted first, and takes what this machine turns out to want first.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn serve_image(
    ctx: &Context<'_>,
    image: ImageAt,
    hot: PathBuf,
    instance: &InstanceRecord,
) -> Result<(), Error> {
    let socket = instance.dir.join(load::PAGES_SOCKET);
    post(ctx, &ServerConfig { errand: Errand::Serve, image, hot: Some(hot), socket }, instance)
}

fn post(ctx: &Context<'_>, config: &ServerConfig, instance: &InstanceRecord) -> Result<(), Error> {
    let post = Post::of(instance);
    let us = ProcessId::of(std::process::id()).or_io("look at", &post.dir)?;
    let earlier = post.progress()?;
    let fresh = Hydration::begun_by(us.clone());
    let status = earlier.map_or(fresh, |earlier| Hydration { supervisor: us.clone(), ..earlier });
    scratch::write(&post.status(), &status)?;
    scratch::write(&post.instance(), instance)?;
    scratch::write(&post.config(), config)?;
    let log_path = post.dir.join("pages.log");
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path).or_io("open", &log_path)?;
    let mut command = own_program();
    command.arg(SUPERVISOR).arg(&post.dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut child = spawn_detached(&mut command, &[]).or_io("run", Path::new("/proc/self/exe"))?;
    // Once it has spoken, the file is its own.
    let deadline = Instant::now() + TAKEOVER_PATIENCE;
    while post.progress()?.is_some_and(|now| now.supervisor == us) && Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) && post.progress()?.is_some_and(|now| now.supervisor == us) {
            return Err(Error::Hydration { reason: "its page server ended before it began".to_owned() });
        }
        ctx.check()?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn own_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env_remove(failpoint::VARIABLE);
    command
}

/// How far the memory of a lazily reverted machine has come; `None` for a machine that has none to wait for.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Io`] when that cannot be told: then it must not be taken for complete.
pub fn status(instance: &InstanceRecord) -> Result<Option<Hydration>, Error> {
    Post::of(instance).progress()
}

/// Whether memory is on its way and nobody serves it.
pub(crate) fn is_orphaned(instance: &InstanceRecord) -> bool {
    let serving = |now: &Hydration| now.state == HydrationState::Serving && !now.supervisor.is_alive();
    status(instance).is_ok_and(|status| status.as_ref().is_some_and(serving))
}

/// Whether memory is still on its way into a process that lives: its snapshot's image is needed then.
pub(crate) fn needs_image(instance: &InstanceRecord) -> bool {
    let done = || status(instance).is_ok_and(|status| status.is_none_or(|now| now.state == HydrationState::Done));
    instance.is_alive() && !done()
}

/// Lets a machine run whose memory may still be on its way.
///
/// # Errors
/// [`Error::Hydration`] when what QEMU needs to begin will never come; what QEMU says.
pub(crate) fn let_run(instance: &InstanceRecord, monitor: &mut Client) -> Result<(), Error> {
    let run = load::run_while(monitor, || failure(instance).is_none());
    match run.map_err(|error| explained(instance, error.into()))? {
        Some(_) => Ok(()),
        None => Err(never(instance)),
    }
}

/// Waits until a machine whose memory is on its way has its devices.
///
/// # Errors
/// As [`let_run`]; when nobody serves it any more, too: only who has its devices can be taken up again.
pub(crate) fn wait_loaded(instance: &InstanceRecord, monitor: &mut Client) -> Result<(), Error> {
    let served = || failure(instance).is_none() && !is_orphaned(instance);
    let loaded = load::wait_lazy(monitor, served).map_err(|error| explained(instance, error.into()))?;
    if loaded { Ok(()) } else { Err(never(instance)) }
}

/// What an error on QEMU's monitor comes from, where its page server knows: QEMU ends as soon as that gives up, and why it did is
/// written a moment later.
fn explained(instance: &InstanceRecord, error: Error) -> Error {
    let serving = || matches!(status(instance), Ok(Some(now)) if now.state == HydrationState::Serving);
    let deadline = Instant::now() + WORD_PATIENCE;
    while serving() && !is_orphaned(instance) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    if failure(instance).is_some() { never(instance) } else { error }
}

/// Why memory will never be complete, as its server says.
fn failure(instance: &InstanceRecord) -> Option<String> {
    match status(instance) {
        Ok(Some(Hydration { state: HydrationState::Failed { reason }, .. })) => Some(reason),
        _ => None,
    }
}

fn never(instance: &InstanceRecord) -> Error {
    Error::Hydration { reason: failure(instance).unwrap_or_else(|| "nobody serves it".to_owned()) }
}

/// Waits until all memory is there.
///
/// # Errors
/// [`Error::Hydration`] when it cannot be completed, [`Error::Interrupted`]: pages are served on then.
pub(crate) fn wait(ctx: &Context<'_>, instance: &InstanceRecord) -> Result<(), Error> {
    ctx.progress.step("bringing memory in");
    while let Some(status) = status(instance)? {
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
    let Some(mut status) = status(instance)? else { return Ok(()) };
    if status.state != HydrationState::Serving || status.supervisor.is_alive() || !instance.is_alive() {
        return Ok(());
    }
    let mut config: ServerConfig = scratch::needed(&post.config())?;
    // It may have died after its work was done.
    let mut monitor = instance.monitor(Monitor::Guard)?;
    if let Ok(migration) = monitor.call_until(&QueryMigrate {}, Instant::now() + Duration::from_secs(1))
        && migration.status == Some(MigrationStatus::Completed)
    {
        status.state = HydrationState::Done;
        return scratch::write(&post.status(), &status);
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
    let Some(_right) = post.take_over()? else { return Ok(()) };
    let mut config: ServerConfig = scratch::needed(&post.config())?;
    let instance: InstanceRecord = scratch::needed(&post.instance())?;
    let supervisor = ProcessId::of(std::process::id()).or_io("look at", dir)?;
    let mut status = Hydration::begun_by(supervisor.clone());
    if let Ok(Some(earlier)) = post.progress() {
        status = Hydration { supervisor, ..earlier };
    }
    let mut deaths = 0;
    status.state = loop {
        tell(&post, &status);
        if config.errand == Errand::Resume
            && let Err(reason) = invite(&instance, &mut config, deaths)
        {
            break HydrationState::Failed { reason };
        }
        match run_worker(&post, &config, &mut status)? {
            Ended::Done => break HydrationState::Done,
            Ended::Failed(reason) => break HydrationState::Failed { reason },
            Ended::Died if deaths < MOST_RESTARTS && instance.is_alive() => {
                deaths += 1;
                status.restarts = status.restarts.saturating_add(1);
                if !still_listens(&instance) {
                    config.errand = Errand::Resume;
                }
            }
            Ended::Died => {
                let reason = "the page server died again and again, or QEMU is gone".to_owned();
                break HydrationState::Failed { reason };
            }
        }
    };
    last_word(&post, &status, &instance)
}

/// Says how it goes on. A full disk must not end what the guest waits for.
fn tell(post: &Post, status: &Hydration) {
    if let Err(error) = scratch::write(&post.status(), status) {
        // Standard error is the log; it may be on the same full disk.
        let _ = writeln!(std::io::stderr(), "cannot say how far memory has come: {error}");
    }
}

/// Says how it ended, as soon as that can be written: someone may wait for it.
fn last_word(post: &Post, status: &Hydration, instance: &InstanceRecord) -> Result<(), Error> {
    loop {
        match scratch::write(&post.status(), status) {
            Err(_) if instance.is_alive() => std::thread::sleep(LAST_WORD_AGAIN),
            other => return other,
        }
    }
}

/// Whether nobody has spoken to QEMU yet, so that another worker can begin where the first did.
fn still_listens(instance: &InstanceRecord) -> bool {
    let migration = instance.monitor(Monitor::Guard).map(|mut monitor| monitor.call(&QueryMigrate {}));
    migration.is_ok_and(|migration| {
        migration.is_ok_and(|migration| {
            matches!(migration.status, None | Some(MigrationStatus::None | MigrationStatus::Setup))
        })
    })
}

/// Makes QEMU listen for another worker, on a socket of its own: the old one may still be bound.
fn invite(instance: &InstanceRecord, config: &mut ServerConfig, number: u32) -> Result<(), String> {
    let name = format!("pages-{}-{number}.sock", std::process::id());
    config.socket = instance.dir.join(&name);
    let mut monitor = instance.monitor(Monitor::Guard).map_err(|error| error.to_string())?;
    // QEMU's working directory is the instance's: the bare name is short enough for a socket wherever that lies.
    pageserver::invite(&mut monitor, Path::new(&name), PAUSE_PATIENCE).map_err(|error| with_causes(&error))
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
    let mut worker = spawn_worker(post)?;
    if let Some(mut pipe) = worker.stdin.take() {
        let described = serde_json::to_vec(config).map_err(|source| Error::Encode { source })?;
        // A worker that is gone already is replaced like any other.
        let _ = pipe.write_all(&described);
    }
    let mut ended = Ended::Died;
    let lines = worker.stdout.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines().map_while(Result::ok));
    for line in lines {
        match serde_json::from_str(&line) {
            Ok(Line::Notice(Notice::Progress { pages_sent, pages_held })) => {
                (status.pages_sent, status.pages_held) = (pages_sent, pages_held);
                tell(post, status);
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
    command.arg(WORKER).arg(&post.dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    // SAFETY: prctl(2) is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().or_io("run", Path::new("/proc/self/exe"))
}

struct ToSupervisor {
    /// The process that is served.
    instance: InstanceRecord,
}

impl ToSupervisor {
    fn say(line: &Line) {
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

    fn is_coming(&self) -> Option<bool> {
        Some(self.instance.is_alive())
    }
}

/// The worker's process: serves what `config` describes, as JSON, to the process of the directory `dir`. Says how it
/// ends on standard output.
///
/// # Errors
/// When the config cannot be read, or who is to be served.
pub fn work(dir: &Path, config: impl std::io::Read) -> Result<(), Error> {
    let unreadable = |error: serde_json::Error| Error::Damaged { path: "stdin".into(), reason: error.to_string() };
    let config: ServerConfig = serde_json::from_reader(config).map_err(unreadable)?;
    let instance: InstanceRecord = scratch::needed(&Post { dir: dir.to_owned() }.instance())?;
    if let ImageAt::Exports { .. } = config.image {
        end_with(instance.clone());
    }
    match pageserver::run(&config, &ToSupervisor { instance }) {
        Ok(report) => {
            if let Some(hot) = &config.hot {
                // Only advice for the next revert.
                let _ = crate::state::durable::replace(hot, &report.learned.to_bytes());
            }
            ToSupervisor::say(&Line::Done);
        }
        Err(error) => {
            let resumable = is_resumable(&error);
            ToSupervisor::say(&Line::Failed { reason: with_causes(&error), resumable });
        }
    }
    Ok(())
}

/// Ends this process when the one that it serves has ended: an export may be waited for as long as it takes, and then nobody needs it any more.
fn end_with(instance: InstanceRecord) {
    std::thread::spawn(move || {
        while instance.is_alive() {
            std::thread::sleep(Duration::from_secs(1));
        }
        std::process::exit(1);
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn post() -> (tempfile::TempDir, Post) {
        let dir = tempfile::tempdir().unwrap();
        let post = Post { dir: dir.path().to_owned() };
        (dir, post)
    }

    fn ours() -> Hydration {
        Hydration::begun_by(ProcessId::of(std::process::id()).unwrap())
    }

    #[test]
    fn what_cannot_be_read_is_not_complete() {
        let (_dir, post) = post();
        assert_eq!(post.progress().unwrap(), None, "a machine that never had a page server");
        std::fs::write(post.config(), "{}").unwrap();
        assert!(matches!(post.progress(), Err(Error::Damaged { .. })), "missing beside pages.json");
        std::fs::write(post.status(), "{\"superv").unwrap();
        assert!(matches!(post.progress(), Err(Error::Damaged { .. })), "torn");
        scratch::write(&post.status(), &ours()).unwrap();
        assert_eq!(post.progress().unwrap(), Some(ours()));
    }

    #[test]
    fn a_progress_that_cannot_be_written_is_no_reason_to_end() {
        let (_dir, post) = post();
        scratch::write(&post.status(), &ours()).unwrap();
        // The temporary file cannot be made: a directory has its name.
        let blocked = post.status().with_extension(format!("{}.tmp", std::process::id()));
        std::fs::create_dir(&blocked).unwrap();
        tell(&post, &Hydration { pages_sent: 7, ..ours() });
        assert_eq!(post.progress().unwrap().unwrap().pages_sent, 0, "the old one is still whole");
        std::fs::remove_dir(&blocked).unwrap();
        tell(&post, &Hydration { pages_sent: 7, ..ours() });
        assert_eq!(post.progress().unwrap().unwrap().pages_sent, 7);
    }

    #[test]
    fn there_is_one_supervisor_at_a_time() {
        let (_dir, post) = post();
        let first = post.take_over().unwrap();
        assert!(first.is_some() && post.take_over().unwrap().is_none());
        drop(first);
        assert!(post.take_over().unwrap().is_some());
    }
}
