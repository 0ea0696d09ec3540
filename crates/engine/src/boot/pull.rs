//! Bringing here what a running machine stands on in a repository.
//!
//! Memory comes by itself: the page server sends all of it. Then each disk in turn, by QEMU's `block-stream`: it copies into the
//! layer what only the repository has, leaves out what never was, and when all is there and flushed it takes the export out of
//! the chain and out of the layer's header, while the guest runs. The header is the commit; `boot.json` follows.
//!
//! What cannot be read is passed over, so that everything else is here; the disk goes on standing on the repository then, and
//! it is tried again from time to time.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use keyframe_hypervisor::launch::node_name;
use keyframe_hypervisor::{InstanceRecord, Monitor};
use keyframe_qmp::Client;
use keyframe_qmp::commands::block::BlockdevDel;
use keyframe_qmp::commands::job::{Job, JobCancel, JobDismiss, JobFinalize, JobStatus, QueryJobs};
use keyframe_qmp::commands::machine::{QueryStatus, RunState};
use keyframe_qmp::ids::{JobId, NodeName};
use keyframe_types::{ByteLen, DiskId};
use serde_json::json;

use super::document::{Standing, StandingDisk, base_node, stands_on_export};
use super::pace::Pace;
use super::server::DiskProgress;
use super::shelf::Shelf;
use crate::error::{Error, IoContext as _};
use crate::failpoint::{Failpoint, pass};
use crate::machine::Machine;
use crate::merge::plan::Held;
use crate::pages::{self, HydrationState};
use crate::space;
use crate::state::durable;
use crate::state::home::{Home, VmDir};
use crate::state::lock::Lock;

/// How long a machine is off before nobody serves it any more.
const OFF_FOR: Duration = Duration::from_secs(3);
/// How long after a failure a disk is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// How often a copied layer is looked at until the copy is given up: the guest may change its tables under our eyes.
const LOOKS_MOST: u32 = 50;
/// What others are told while a document is changed.
const NOTING: &str = "noting what of it is local";

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// There is.
    GoOn,
    /// The machine is wholly local.
    AllHere,
    /// It is off, or gone.
    NobodyWaits,
}

/// One disk on its way.
struct Pulled {
    standing: StandingDisk,
    /// Where its image has pages, once that is known.
    data: Option<Vec<Range<u64>>>,
    done: u64,
    again_at: Option<Instant>,
    /// The limit that its job was given.
    limit: Option<u64>,
    /// How often the copied layer was found not to hold all, on the disk.
    incomplete: u32,
}

/// What brings a machine's disks here.
pub(super) struct Pull {
    home: Home,
    dir: VmDir,
    shelf: Arc<Shelf>,
    disks: Vec<Pulled>,
    pace: Pace,
    instance: Option<InstanceRecord>,
    off_since: Option<Instant>,
    told: Arc<Mutex<Told>>,
}

/// How it goes, for whoever tells others.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// How far disks are that are not all here.
    pub(super) disks: Vec<DiskProgress>,
    /// Why it does not go on.
    pub(super) trouble: Option<String>,
}

impl Pull {
    pub(super) fn of(home: &Home, dir: &VmDir, standing: &Standing, shelf: Arc<Shelf>) -> Self {
        let pulled = |standing: &StandingDisk| Pulled {
            standing: standing.clone(),
            data: None,
            done: 0,
            again_at: None,
            limit: None,
            incomplete: 0,
        };
        let pull = Self {
            home: home.clone(),
            dir: dir.clone(),
            shelf,
            disks: standing.disks.iter().map(pulled).collect(),
            pace: Pace::default(),
            instance: None,
            off_since: None,
            told: Arc::default(),
        };
        pull.tell(None);
        pull
    }

    /// How it goes: what is read of it changes with every step.
    pub(super) fn told(&self) -> Arc<Mutex<Told>> {
        Arc::clone(&self.told)
    }

    /// Does what can be done now. Only for a repository that is away it waits.
    pub(super) fn step(&mut self) -> Step {
        let (step, trouble) = match self.try_step() {
            Ok(step) => (step, None),
            // QEMU may be busy, or on its way out: the next step sees.
            Err(error) => (Step::GoOn, Some(error.told())),
        };
        self.tell(trouble);
        step
    }

    fn tell(&self, trouble: Option<String>) {
        let progress = |disk: &Pulled| DiskProgress {
            disk: disk.standing.disk.clone(),
            done_bytes: disk.done,
            total_bytes: disk.standing.image.bytes,
        };
        let disks = self.disks.iter().map(progress).collect();
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Told { disks, trouble };
    }

    fn try_step(&mut self) -> Result<Step, Error> {
        let Some(standing) = Standing::read(&self.dir)? else { return Ok(Step::AllHere) };
        let Some(instance) = self.instance()? else { return Ok(self.is_off()) };
        self.off_since = None;
        if standing.memory.is_some() {
            match pages::status(&instance)?.map(|memory| memory.state) {
                // The guest waits for memory more often than for disks, and both come through the same process.
                Some(HydrationState::Serving) => return Ok(Step::GoOn),
                Some(HydrationState::Failed { .. }) => {}
                // A process that never had a page server has all of its memory.
                Some(HydrationState::Done) | None => {
                    self.note(|standing| standing.memory = None)?;
                }
            }
        }
        // This may wait for the repository: nobody shall wait for the monitor meanwhile.
        self.survey()?;
        let mut monitor = instance.monitor(Monitor::Guard)?;
        let status = monitor.call(&QueryStatus {})?;
        if status.status == RunState::InMigrate {
            return Ok(Step::GoOn);
        }
        if !status.running {
            // A machine that was loaded and has not run yet would open its disks with its first instruction. QEMU before 10.0
            // cannot be told to; then the disks follow when it runs, and are said to wait until then.
            let _ = monitor.execute("blockdev-set-active", &json!({ "active": true }));
        }
        self.pull(&mut monitor)?;
        if Standing::read(&self.dir)?.is_none() { Ok(Step::AllHere) } else { Ok(Step::GoOn) }
    }

    /// Learns where images have pages.
    fn survey(&mut self) -> Result<(), Error> {
        for disk in self.disks.iter_mut().filter(|disk| disk.data.is_none()) {
            if disk.again_at.is_none_or(|at| Instant::now() >= at) {
                let label = disk.standing.disk.as_str();
                disk.again_at = Some(Instant::now() + AGAIN);
                disk.data = Some(self.shelf.data_of(label).or_io("read the tree of the stored", Path::new(label))?);
                disk.again_at = None;
            }
        }
        Ok(())
    }

    /// The machine's process, if it runs.
    fn instance(&mut self) -> Result<Option<InstanceRecord>, Error> {
        if !self.instance.as_ref().is_some_and(InstanceRecord::is_alive) {
            self.instance = match Machine::open(&self.home, self.dir.name()) {
                Ok(machine) => machine.process().map(|process| process.instance.clone()),
                // It is being made, or removed.
                Err(Error::NoMachine(_)) => None,
                Err(error) => return Err(error),
            };
        }
        Ok(self.instance.clone())
    }

    fn is_off(&mut self) -> Step {
        // Whoever holds the lock may be about to start it.
        if Lock::holder(&self.dir.lock()).is_some() {
            self.off_since = None;
            return Step::GoOn;
        }
        let since = *self.off_since.get_or_insert_with(Instant::now);
        if since.elapsed() < OFF_FOR { Step::GoOn } else { Step::NobodyWaits }
    }

    /// One step of whichever disk is on its way.
    fn pull(&mut self, monitor: &mut Client) -> Result<(), Error> {
        let jobs = monitor.call(&QueryJobs {})?;
        self.pace.look(monitor)?;
        for disk in &mut self.disks {
            let id = job_id(&disk.standing.disk)?;
            match jobs.iter().find(|job| job.id == id) {
                Some(job) => {
                    disk.done = u64::try_from(job.current_progress).unwrap_or(0).min(disk.standing.image.bytes);
                    see_to(&self.dir, monitor, disk, job, &self.pace)?;
                    // One at a time: what is read in order is read fastest.
                    break;
                }
                // Where its image has pages is not known.
                None if disk.data.is_none() => {}
                None if disk.again_at.is_some_and(|at| Instant::now() < at) => {}
                // Somebody was at work on the machine when it came to be noted.
                None if !stands_on(&self.dir, &disk.standing)? => {}
                None => {
                    if disk.again_at.take().is_some() {
                        self.shelf.forget_lost();
                    }
                    let missing = missing(&self.dir, disk);
                    space::check(self.dir.root(), ByteLen::from_bytes(missing))?;
                    begin(monitor, &id, disk, &self.pace)?;
                    break;
                }
            }
        }
        self.note_what_headers_tell(&jobs)
    }

    /// Disks whose headers name nothing any more are here, whoever was killed before that was noted; but for those with a job that
    /// is not let go of yet: it would be in the way of a snapshot.
    fn note_what_headers_tell(&mut self, jobs: &[Job]) -> Result<(), Error> {
        let mut here = Vec::new();
        for disk in &self.disks {
            let id = job_id(&disk.standing.disk)?;
            if jobs.iter().all(|job| job.id != id) && !stands_on(&self.dir, &disk.standing)? {
                here.push(disk.standing.disk.clone());
            }
        }
        if !here.is_empty() && self.note(|standing| standing.disks.retain(|disk| !here.contains(&disk.disk)))? {
            self.disks.retain(|disk| !here.contains(&disk.standing.disk));
        }
        Ok(())
    }

    /// Changes the document, if nobody is at work on the machine; says whether it did.
    fn note(&self, change: impl FnOnce(&mut Standing)) -> Result<bool, Error> {
        let Some(_lock) = Lock::attempt(&self.dir.lock(), NOTING)? else { return Ok(false) };
        if let Some(mut standing) = Standing::read(&self.dir)? {
            change(&mut standing);
            standing.write(&self.dir)?;
            pass(Failpoint::PullNoted)?;
        }
        Ok(true)
    }
}

/// Whether a disk's layer names an export.
fn stands_on(dir: &VmDir, disk: &StandingDisk) -> Result<bool, Error> {
    stands_on_export(&dir.layer(&disk.disk, &disk.layer))
}

/// Bytes of a disk's image that its layer leaves to it, by the layer's tables on the disk.
fn missing(dir: &VmDir, disk: &Pulled) -> u64 {
    let Some(data) = &disk.data else { return disk.standing.image.bytes };
    let all = data.iter().map(|range| range.end - range.start).sum();
    // One that is written to in this moment may not be readable: then nothing is known to be here.
    let held = Held::by_qcow2(&dir.layer(&disk.standing.disk, &disk.standing.layer));
    held.map_or(all, |held| held.leaves_of(data.clone()))
}

/// Sees to a job, wherever it stands.
fn see_to(dir: &VmDir, monitor: &mut Client, disk: &mut Pulled, job: &Job, pace: &Pace) -> Result<(), Error> {
    match job.status {
        JobStatus::Pending => {
            pass(Failpoint::PullCopied)?;
            flush(monitor, disk)?;
            // QEMU's flush does not tell when tables could not be written: they are looked at before anything relies on them.
            durable::sync_file(&dir.layer(&disk.standing.disk, &disk.standing.layer))?;
            if missing(dir, disk) > 0 {
                return look_again(monitor, disk, job);
            }
            disk.incomplete = 0;
            monitor.call(&JobFinalize { id: job.id.clone() })?;
            pass(Failpoint::PullFinalized)
        }
        JobStatus::Concluded => {
            monitor.call(&JobDismiss { id: job.id.clone() })?;
            pass(Failpoint::PullDismissed)?;
            if stands_on(dir, &disk.standing)? {
                disk.again_at = Some(Instant::now() + AGAIN);
                return Ok(());
            }
            let node_name = NodeName::new(base_node(&disk.standing.disk))?;
            // A node that is gone already is as good.
            let _ = monitor.call(&BlockdevDel { node_name });
            Ok(())
        }
        _ => keep_pace(monitor, disk, &job.id, pace),
    }
}

/// Looks again a moment later whether all is on the disk; gives the copy up when it does not come to that.
fn look_again(monitor: &mut Client, disk: &mut Pulled, job: &Job) -> Result<(), Error> {
    disk.incomplete += 1;
    if disk.incomplete >= LOOKS_MOST {
        disk.incomplete = 0;
        monitor.call(&JobCancel { id: job.id.clone() })?;
    }
    let reason = format!("the layer of {} does not hold all that was copied to it", disk.standing.disk);
    Err(keyframe_hypervisor::Error::Merge { reason }.into())
}

fn job_id(disk: &DiskId) -> Result<JobId, Error> {
    Ok(JobId::new(format!("boot-{disk}"))?)
}

/// Begins to copy. Source: `block-stream` of qapi/block-core.json; an error that is ignored is passed over, and told at the end.
fn begin(monitor: &mut Client, id: &JobId, disk: &mut Pulled, pace: &Pace) -> Result<(), Error> {
    disk.limit = Some(pace.limit());
    let arguments = json!({
        "job-id": id.as_str(),
        "device": node_name(&disk.standing.layer),
        "on-error": "ignore",
        "speed": pace.limit(),
        "auto-finalize": false,
        "auto-dismiss": false,
    });
    monitor.execute("block-stream", &arguments)?;
    Ok(())
}

/// Has QEMU write out what it holds of the layer, before its header says that it has all.
fn flush(monitor: &mut Client, disk: &Pulled) -> Result<(), Error> {
    let line = format!("qemu-io {} flush", node_name(&disk.standing.layer));
    let said: String = monitor.execute_as("human-monitor-command", &json!({ "command-line": line }))?;
    match said.trim() {
        "" => Ok(()),
        said => Err(keyframe_hypervisor::Error::Merge { reason: format!("flushing the copied layer: {said}") }.into()),
    }
}

/// Has a job go as fast as the guest allows.
fn keep_pace(monitor: &mut Client, disk: &mut Pulled, id: &JobId, pace: &Pace) -> Result<(), Error> {
    let limit = pace.limit();
    if disk.limit != Some(limit) {
        monitor.execute("block-job-set-speed", &json!({ "device": id.as_str(), "speed": limit }))?;
        disk.limit = Some(limit);
    }
    Ok(())
}
