//! Memory, devices and disks of one instant, while the guest runs.
//!
//! ```text
//!   Prepared ──cut()──▶ Streaming ──finish()──▶ done
//!      │                    │
//!      └─ dropped: nothing  └─ abandon(): cancelled, the guest runs, overlays are in place
//! ```
//! QEMU's `background-snapshot` stops the guest for some milliseconds to stash its devices and to
//! write-protect its RAM, lets it run on, and writes the RAM of that instant into the sink. Disks are cut by
//! one transaction that puts an empty overlay on each. Two ways to make both one instant:
//!
//! * **At QEMU's own stop.** The transaction is sent on the STOP event. The monitor runs out of band, so
//!   QEMU has the command queued when its main loop wakes, and carries it out right behind the resume. Whether
//!   the guest got a request through in between is not a matter of hope: QEMU tells each disk's idle
//!   time, and if it is longer than the time since the resume, nothing was.
//! * **Stop first.** The guest is stopped by us, resumed when RAM is write-protected and the disks are
//!   cut. Always exact, at the price of a longer pause: RAM is populated while the guest stands still.
//!
//! Several machines are cut at one instant when each is stopped first and waits in the [`Company`] of the others: for a
//! moment all of them stand still, so nothing that one sent behind its cut reached another before that one's.
//!
//! Source: `bg_migration_thread` in QEMU's migration/migration.c.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use keyframe_qmp::commands::block::{
    BlockCommit, BlockdevAdd, BlockdevDel, QueryBlockstats, Snapshot, StatsOf, Transaction,
};
use keyframe_qmp::commands::job::{BlockJobComplete, JobDismiss, JobStatus, QueryJobs};
use keyframe_qmp::commands::machine::{Cont, GetFd, QueryStatus, Stop};
use keyframe_qmp::commands::migration::{
    Capability, Migrate, MigrateCancel, MigrateSetCapabilities, MigrationAddress, MigrationStatus, QueryMigrate,
};
use keyframe_qmp::ids::{FdName, JobId, NodeName};
use keyframe_qmp::{Client, EventKind, Incoming, RequestId, TimedEvent};
use serde_json::Value;

use crate::error::Error;
use crate::tracking;

/// How long QEMU may take from the command to its stop: it reads every page of RAM meanwhile.
const ARM_PATIENCE: Duration = Duration::from_secs(300);
/// How often a wait looks whether it was asked to stop.
const TICK: Duration = Duration::from_millis(50);

/// A fresh layer for one disk, to be put on top of its active one.
#[derive(Debug, Clone, PartialEq)]
pub struct Overlay {
    /// Id of the device that the guest sees; `None` for flash, which keeps no statistics and whose content is
    /// saved with RAM.
    pub device: Option<String>,
    /// Node name of the active layer.
    pub active: String,
    /// Node name of the fresh layer.
    pub overlay: String,
    /// The fresh layer as `blockdev-add` takes it, without a backing node.
    pub options: Value,
}

/// How to make memory and disks one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Cut at QEMU's own stop, prove it afterwards.
    AtQemusStop,
    /// Stop the guest, arm, cut, resume.
    StopFirst,
    /// The guest is paused anyway and stays so.
    Still,
}

/// The machines that are cut at one instant. Each of them is told by its own thread where it has come to, and goes on when
/// all have.
pub trait Company: Sync {
    /// This one stands still, and is ready to be cut.
    ///
    /// # Errors
    /// [`Error::Company`]: another was given up, or did not come in time.
    fn all_still(&self) -> Result<(), Error>;

    /// This one's disks are cut; it stands still yet.
    ///
    /// # Errors
    /// As [`Company::all_still`].
    fn all_cut(&self) -> Result<(), Error>;
}

/// The company of a machine that is cut by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Company for Alone {
    fn all_still(&self) -> Result<(), Error> {
        Ok(())
    }

    fn all_cut(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// What a cut was like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CutReport {
    /// From STOP to RESUME by QEMU's clock; zero when the guest was not running.
    pub pause: Duration,
    /// When it happened.
    pub at: SystemTime,
    /// Whether no disk completed a request between the instant of memory and the instant of disks.
    pub exact: bool,
}

/// Everything is in place for a cut, and nothing has happened to the guest.
#[derive(Debug)]
pub struct Prepared<'a> {
    monitor: &'a mut Client,
    overlays: &'a [Overlay],
}

/// QEMU writes RAM into the sink; the guest is as it was.
#[derive(Debug)]
pub struct Streaming<'a> {
    monitor: &'a mut Client,
    report: CutReport,
}

fn node(name: &str) -> Result<NodeName, Error> {
    Ok(NodeName::new(name)?)
}

fn transaction(overlays: &[Overlay]) -> Result<Transaction, Error> {
    let snapshots = overlays
        .iter()
        .map(|overlay| Ok(Snapshot { node: node(&overlay.active)?, overlay: node(&overlay.overlay)? }))
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(Transaction::snapshots(snapshots))
}

/// Opens the overlays in QEMU, and lets nothing of ours stay in the files that they are going to freeze.
///
/// # Errors
/// [`Error::Qmp`]; those opened before are closed again.
pub fn open_overlays(monitor: &mut Client, overlays: &[Overlay]) -> Result<(), Error> {
    overlays.iter().try_for_each(|overlay| tracking::leave_file(monitor, &overlay.active))?;
    for (opened, overlay) in overlays.iter().enumerate() {
        let options = overlay.options.as_object().cloned().unwrap_or_default();
        if let Err(error) = monitor.call(&BlockdevAdd::new(options)) {
            close_overlays(monitor, &overlays[..opened]);
            return Err(error.into());
        }
    }
    Ok(())
}

/// Closes overlays that were opened and not used. One that is in use stays open.
pub fn close_overlays(monitor: &mut Client, overlays: &[Overlay]) {
    for overlay in overlays {
        if let Ok(node_name) = node(&overlay.overlay) {
            // QEMU refuses for a node in use, which is what is wanted.
            let _ = monitor.call(&BlockdevDel { node_name });
        }
        if let Ok(id) = merge_job(overlay) {
            // Of a merge that a killed command did not see to its end; usually there is none.
            let _ = monitor.call(&JobDismiss { id });
        }
    }
}

/// Cuts the disks and nothing else.
///
/// # Errors
/// [`Error::Qmp`]; no disk is cut then.
pub fn cut_disks(monitor: &mut Client, overlays: &[Overlay]) -> Result<SystemTime, Error> {
    if !overlays.is_empty() {
        monitor.call(&transaction(overlays)?)?;
    }
    Ok(SystemTime::now())
}

/// Cuts the disks of a machine, and nothing else, while all of its company stand still. One that is paused stays so.
///
/// # Errors
/// [`Error::Qmp`], [`Error::Late`], [`Error::Company`]: the guest then runs again if it ran, and disks may or may not have been
/// cut.
pub fn cut_disks_in(monitor: &mut Client, overlays: &[Overlay], company: &dyn Company) -> Result<CutReport, Error> {
    forget_the_past(monitor)?;
    let runs = monitor.call(&QueryStatus {})?.running;
    if !runs {
        return cut_standing(monitor, overlays, company);
    }
    let result = Standing::stop(monitor).and_then(|standing| standing.cut(monitor, overlays, company));
    if result.is_err() {
        resume_if_paused(monitor);
    }
    result
}

/// Turns on what the cut needs and hands QEMU the sink's end `sink`. Overlays are open already.
///
/// # Errors
/// [`Error::CannotSaveLive`] when QEMU refuses to save this machine while it runs; [`Error::Qmp`].
pub fn prepare<'a>(
    monitor: &'a mut Client,
    overlays: &'a [Overlay],
    sink: BorrowedFd<'_>,
) -> Result<Prepared<'a>, Error> {
    reset_capabilities(monitor)?;
    let wanted = MigrateSetCapabilities::on([Capability::Events, Capability::BackgroundSnapshot]);
    monitor.call(&wanted).map_err(|error| match error {
        keyframe_qmp::Error::Command { error, .. } => Error::CannotSaveLive(error.desc),
        other => other.into(),
    })?;
    monitor.call_with_fd(&GetFd { fdname: sink_name()? }, sink)?;
    Ok(Prepared { monitor, overlays })
}

/// Turns off whatever an earlier load or save left on.
fn reset_capabilities(monitor: &mut Client) -> Result<(), Error> {
    let off = [
        Capability::BackgroundSnapshot,
        Capability::MappedRam,
        Capability::PostcopyRam,
        Capability::Multifd,
        Capability::ReturnPath,
    ];
    monitor.call(&MigrateSetCapabilities::off(off))?;
    Ok(())
}

fn sink_name() -> Result<FdName, Error> {
    Ok(FdName::new("keyframe-sink")?)
}

/// What arrives while QEMU stops and resumes.
#[derive(Debug, Default)]
struct Seen {
    stop: Option<SystemTime>,
    resume: Option<Moment>,
    cut: bool,
}

/// A moment by the wall clock, and by the clock that nobody can set.
#[derive(Debug, Clone, Copy)]
struct Moment {
    wall: SystemTime,
    steady: Instant,
}

impl Moment {
    fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }

    /// The longest that may have passed from `self` to `now`, by either clock, plus as much as they disagree about the
    /// time since `before`: by that much the wall clock was set meanwhile.
    fn longest_until(self, now: Self, before: Self) -> Duration {
        let by_wall = since(self.wall, now.wall);
        let by_steady = now.steady.saturating_duration_since(self.steady);
        let (wall, steady) =
            (now.wall.duration_since(before.wall), now.steady.saturating_duration_since(before.steady));
        let disagreement = match wall {
            Ok(wall) => wall.abs_diff(steady),
            Err(backwards) => backwards.duration().saturating_add(steady),
        };
        by_wall.max(by_steady).saturating_add(disagreement)
    }
}

impl<'a> Prepared<'a> {
    /// Cuts, in company unless at QEMU's own stop, which waits for nobody. When it fails the guest has been resumed if it ran,
    /// and disks may or may not have been cut: look at the nodes.
    ///
    /// # Errors
    /// [`Error::Migration`], [`Error::Qmp`], [`Error::Late`], [`Error::Company`], [`Error::Cancelled`].
    pub fn cut(self, strategy: Strategy, company: &dyn Company, cancel: &AtomicBool) -> Result<Streaming<'a>, Error> {
        let Self { monitor, overlays } = self;
        let result = forget_the_past(monitor).and_then(|()| match strategy {
            Strategy::AtQemusStop => at_qemus_stop(monitor, overlays, cancel),
            Strategy::StopFirst => stop_first(monitor, overlays, company, cancel),
            Strategy::Still => still(monitor, overlays, company),
        });
        match result {
            Ok(report) => Ok(Streaming { monitor, report }),
            Err(error) => {
                cancel_migration(monitor);
                if strategy != Strategy::Still {
                    resume_if_paused(monitor);
                }
                Err(error)
            }
        }
    }
}

/// Forgets events of before: the STOP of an attempt that failed must not be taken for the one that is coming, or disks
/// would be cut at one instant and memory at a later one.
fn forget_the_past(monitor: &mut Client) -> Result<(), Error> {
    // Events and replies come in order: behind this reply nothing older is on its way.
    monitor.call(&QueryStatus {})?;
    while monitor.next_event(Instant::now())?.is_some() {}
    Ok(())
}

/// Sends `migrate`.
fn begin(monitor: &mut Client) -> Result<RequestId, Error> {
    Ok(monitor.start(&Migrate::to(MigrationAddress::Fd { name: sink_name()? }))?)
}

fn at_qemus_stop(monitor: &mut Client, overlays: &[Overlay], cancel: &AtomicBool) -> Result<CutReport, Error> {
    let cut = transaction(overlays)?;
    let before = Moment::now();
    let migrate = begin(monitor)?;
    let (mut seen, mut cut_request) = (Seen::default(), None);
    let deadline = Instant::now() + ARM_PATIENCE;
    loop {
        if cancel.load(Ordering::Relaxed) && seen.stop.is_none() {
            return Err(Error::Cancelled);
        }
        match next(monitor, deadline)? {
            None => {}
            Some(Incoming::Event(event)) if event.event.kind == EventKind::Stop && seen.stop.is_none() => {
                if overlays.is_empty() {
                    seen.cut = true;
                } else {
                    cut_request = Some(monitor.start(&cut)?);
                }
                seen.stop = Some(time_of(&event));
            }
            Some(Incoming::Event(event)) if event.event.kind == EventKind::Resume => {
                seen.resume = Some(Moment { wall: time_of(&event), steady: event.at });
            }
            Some(Incoming::Event(event)) => fail_if_failed(monitor, &event)?,
            Some(Incoming::Reply(reply)) if reply.id == migrate => drop(reply.body()?),
            Some(Incoming::Reply(reply)) if Some(reply.id) == cut_request => {
                reply.body()?;
                seen.cut = true;
            }
            Some(Incoming::Reply(_)) => {}
        }
        if let Seen { stop: Some(stop), resume: Some(resume), cut: true } = seen {
            let exact = idle_since(monitor, overlays, resume, before)?;
            return Ok(CutReport { pause: since(stop, resume.wall), at: stop, exact });
        }
    }
}

fn stop_first(
    monitor: &mut Client,
    overlays: &[Overlay],
    company: &dyn Company,
    cancel: &AtomicBool,
) -> Result<CutReport, Error> {
    let standing = Standing::stop(monitor)?;
    let migrate = begin(monitor)?;
    let deadline = Instant::now() + ARM_PATIENCE;
    monitor.wait_reply(migrate, deadline)?.ok_or(late("the start of saving", ARM_PATIENCE))?.body()?;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let migration = monitor.call(&QueryMigrate {})?;
        if migration.status == Some(MigrationStatus::Failed) {
            return Err(failed(migration.error_desc));
        }
        // Never resume before RAM is protected: pages written from then on would be lost.
        if migration.is_armed() || migration.status == Some(MigrationStatus::Completed) {
            break;
        }
        if Instant::now() >= deadline {
            return Err(late("write-protecting the machine's memory", ARM_PATIENCE));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    standing.cut(monitor, overlays, company)
}

/// A guest that we stopped.
struct Standing {
    begun: Instant,
    stop: SystemTime,
}

impl Standing {
    fn stop(monitor: &mut Client) -> Result<Self, Error> {
        let begun = Instant::now();
        monitor.call(&Stop {})?;
        Ok(Self { begun, stop: wait_for(monitor, EventKind::Stop)? })
    }

    /// Cuts the disks while all of the company stand still, and lets the guest run on.
    fn cut(self, monitor: &mut Client, overlays: &[Overlay], company: &dyn Company) -> Result<CutReport, Error> {
        company.all_still()?;
        cut_disks(monitor, overlays)?;
        company.all_cut()?;
        // Someone else may have resumed the guest meanwhile (a guard that lost patience): then the cut proves nothing.
        let early = monitor.wait_event(|event| event.kind == EventKind::Resume, Instant::now())?;
        if early.is_some() {
            return Ok(CutReport { pause: self.begun.elapsed(), at: self.stop, exact: false });
        }
        monitor.call(&Cont {})?;
        let resume = wait_for(monitor, EventKind::Resume).unwrap_or(self.stop + self.begun.elapsed());
        Ok(CutReport { pause: since(self.stop, resume), at: self.stop, exact: true })
    }
}

/// Cuts the disks of a machine that stands still by itself.
fn cut_standing(monitor: &mut Client, overlays: &[Overlay], company: &dyn Company) -> Result<CutReport, Error> {
    company.all_still()?;
    let at = cut_disks(monitor, overlays)?;
    company.all_cut()?;
    Ok(CutReport { pause: Duration::ZERO, at, exact: true })
}

fn still(monitor: &mut Client, overlays: &[Overlay], company: &dyn Company) -> Result<CutReport, Error> {
    let report = cut_standing(monitor, overlays, company)?;
    let migrate = begin(monitor)?;
    let deadline = Instant::now() + ARM_PATIENCE;
    monitor.wait_reply(migrate, deadline)?.ok_or(late("the start of saving", ARM_PATIENCE))?.body()?;
    Ok(report)
}

fn next(monitor: &mut Client, deadline: Instant) -> Result<Option<Incoming>, Error> {
    let now = Instant::now();
    if now >= deadline {
        return Err(late("QEMU's stop", ARM_PATIENCE));
    }
    Ok(monitor.next_incoming(now + TICK)?)
}

fn wait_for(monitor: &mut Client, kind: EventKind) -> Result<SystemTime, Error> {
    let patience = Duration::from_secs(20);
    let event = monitor.wait_event(|event| event.kind == kind, Instant::now() + patience)?;
    event.map(|event| time_of(&event)).ok_or(late("stopping or resuming the machine", patience))
}

fn time_of(event: &TimedEvent) -> SystemTime {
    event.event.timestamp.unwrap_or_else(SystemTime::now)
}

fn since(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_default()
}

fn late(what: &'static str, waited: Duration) -> Error {
    Error::Late { what, waited }
}

fn failed(reason: Option<String>) -> Error {
    Error::Migration { what: "save", reason: reason.unwrap_or_else(|| "QEMU gives no reason".to_owned()) }
}

/// Turns a MIGRATION event that tells of a failure into that failure.
fn fail_if_failed(monitor: &mut Client, event: &TimedEvent) -> Result<(), Error> {
    if event.event.kind == EventKind::Migration && event.event.text("status").as_deref() == Some("failed") {
        return Err(failed(monitor.call(&QueryMigrate {})?.error_desc));
    }
    Ok(())
}

/// Whether no disk has completed a request since `resume`: the proof that the cut is exact.
///
/// QEMU stamps the RESUME event by the wall clock, and our time is taken *after* the reply, which makes the span too long
/// rather than too short. Should the wall clock have been set since `before`, the span is longer by as much.
fn idle_since(monitor: &mut Client, overlays: &[Overlay], resume: Moment, before: Moment) -> Result<bool, Error> {
    let stats = monitor.call(&QueryBlockstats::of(StatsOf::Devices))?;
    let span = resume.longest_until(Moment::now(), before);
    let idle_of = |device: &str| {
        let of_device = stats
            .iter()
            .filter(|entry| entry.qdev.as_deref().is_some_and(|path| path.split('/').any(|part| part == device)));
        of_device.map(|entry| entry.stats.idle_time_ns).collect::<Vec<_>>()
    };
    let idle_for_long = |idle: &Option<u64>| idle.is_none_or(|ns| Duration::from_nanos(ns) > span);
    Ok(overlays.iter().filter_map(|overlay| overlay.device.as_deref()).all(|device| {
        let idle = idle_of(device);
        !idle.is_empty() && idle.iter().all(idle_for_long)
    }))
}

impl Streaming<'_> {
    /// What the cut was like.
    #[must_use]
    pub fn report(&self) -> CutReport {
        self.report
    }

    /// Waits until QEMU has written everything.
    ///
    /// # Errors
    /// [`Error::Migration`] when saving failed, [`Error::Cancelled`] when `cancel` was set; the guest is then
    /// as it was.
    pub fn finish(self, cancel: &AtomicBool) -> Result<(), Error> {
        loop {
            if cancel.load(Ordering::Relaxed) {
                self.abandon();
                return Err(Error::Cancelled);
            }
            let kind = |event: &keyframe_qmp::Event| event.kind == EventKind::Migration;
            // The event wakes us; the status is asked for, in case the event was before our time.
            self.monitor.wait_event(kind, Instant::now() + TICK)?;
            let migration = self.monitor.call(&QueryMigrate {})?;
            match migration.status {
                Some(MigrationStatus::Completed) => return Ok(()),
                Some(MigrationStatus::Failed | MigrationStatus::Cancelled) => {
                    return Err(failed(migration.error_desc));
                }
                _ => {}
            }
        }
    }

    /// Gives up: QEMU stops writing, the guest goes on.
    pub fn abandon(self) {
        cancel_migration(self.monitor);
    }
}

/// Cancels what QEMU is saving and waits until it has let go, so that the next one can begin.
pub fn cancel_migration(monitor: &mut Client) {
    // A machine that saves nothing refuses, which is as good.
    let _ = monitor.call(&MigrateCancel {});
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        match monitor.call(&QueryMigrate {}) {
            Ok(migration) if migration.status.as_ref().is_none_or(MigrationStatus::is_final) => return,
            Ok(_) => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => return,
        }
    }
}

/// Lets a machine run on that a failure left standing.
pub fn resume_if_paused(monitor: &mut Client) {
    let paused = monitor.call(&QueryStatus {}).is_ok_and(|status| !status.running);
    if paused {
        // A machine that cannot run (an internal error) refuses; nothing more can be done for it here.
        let _ = monitor.call(&Cont {});
    }
}

/// Takes a cut back: merges each overlay into what is below it, live, and closes it.
///
/// # Errors
/// [`Error::Qmp`], [`Error::Migration`] when a merge failed: the chain is then longer than before, and
/// nothing is lost.
pub fn uncut(monitor: &mut Client, overlays: &[Overlay]) -> Result<(), Error> {
    for overlay in overlays {
        let job_id = merge_job(overlay)?;
        // A command that was killed may have begun; its merge is as good as ours.
        if !monitor.call(&QueryJobs {})?.iter().any(|job| job.id == job_id) {
            begin_merge(monitor, overlay, &job_id)?;
        }
        complete_job(monitor, &job_id)?;
        monitor.call(&BlockdevDel { node_name: node(&overlay.overlay)? })?;
    }
    Ok(())
}

fn merge_job(overlay: &Overlay) -> Result<JobId, Error> {
    Ok(JobId::new(format!("uncut-{}", overlay.overlay))?)
}

fn begin_merge(monitor: &mut Client, overlay: &Overlay, job_id: &JobId) -> Result<(), Error> {
    monitor.call(&BlockCommit {
        job_id: job_id.clone(),
        device: overlay.overlay.clone(),
        top_node: None,
        base_node: Some(node(&overlay.active)?),
        backing_file: None,
        speed_bytes_per_s: None,
        // Only a job that stays until it is dismissed tells that it failed.
        auto_dismiss: false,
        auto_finalize: true,
    })?;
    Ok(())
}

/// Waits for a merge, completes it, reads how it ended and lets go of it.
fn complete_job(monitor: &mut Client, id: &JobId) -> Result<(), Error> {
    let mut asked = false;
    let patience = Duration::from_secs(600);
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let jobs = monitor.call(&QueryJobs {})?;
        let Some(job) = jobs.into_iter().find(|job| job.id == *id) else { return Ok(()) };
        if job.status == JobStatus::Concluded {
            monitor.call(&JobDismiss { id: id.clone() })?;
            return match job.error {
                Some(reason) => Err(Error::Migration { what: "merge", reason }),
                None => Ok(()),
            };
        }
        if job.status == JobStatus::Ready && !asked {
            monitor.call(&BlockJobComplete { device: id.clone() })?;
            asked = true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(late("merging a layer", patience))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_never_makes_a_span_shorter() {
        let ms = Duration::from_millis;
        let before = Moment::now();
        let at = |steady_ms, wall_ms| Moment { steady: before.steady + ms(steady_ms), wall: before.wall + ms(wall_ms) };
        let resume = at(100, 100);
        assert_eq!(resume.longest_until(at(105, 105), before), ms(5), "nobody touched it");
        // Heard late: the event's own stamp counts.
        assert_eq!(at(103, 100).longest_until(at(105, 105), before), ms(5));
        assert!(resume.longest_until(at(105, 95), before) >= ms(5), "set back after the resume");
        assert!(at(100, 90).longest_until(at(105, 95), before) >= ms(5), "set back before");
        assert!(resume.longest_until(at(105, 1105), before) >= ms(1005), "set forward");
        let back = Moment { wall: before.wall - ms(3000), ..at(105, 0) };
        assert!(resume.longest_until(back, before) >= ms(3000), "set back by more than all of it took");
    }
}
