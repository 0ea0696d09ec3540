//! Filters on a machine's disks: put in place at one instant, and taken away again, by whoever comes to that.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use keyframe_hypervisor::cut;
use keyframe_hypervisor::fleecing::{self, Fleece};
use keyframe_hypervisor::tracking::{self, Lasts};
use keyframe_qmp::Client;
use keyframe_qmp::commands::machine::{Cont, Stop};
use keyframe_types::{ByteLen, Timestamp};

use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::guard::Guard;
use crate::guest;
use crate::machine::Machine;
use crate::snapshot::Freeze;
use crate::snapshot::freezing::Freezer;
use crate::state::durable;
use crate::state::head::Chain;
use crate::state::journal::LiveJournal;
use crate::state::manifest::StateAtCut;

use super::scratch::{self, Planned};

/// What is going to be put in place.
pub struct Filters {
    pub fleeces: Vec<Fleece>,
    pub scratch: Vec<Planned>,
    /// How long a write of the guest may wait for what it is going to overwrite.
    pub timeout: Duration,
    /// Under this name QEMU notes what is written from the instant on.
    pub since: String,
    pub state: StateAtCut,
    pub freeze: Freeze,
}

/// An instant that disks are shown of.
pub struct Instants {
    pub created: Timestamp,
    /// How long the guest stood still for it.
    pub pause: Duration,
    pub frozen: Option<Duration>,
    /// The scratch files.
    pub kept: Vec<File>,
}

/// A machine's disks, as filters are put on them: whoever comes later finds the same.
pub fn fleeces(machine: &Machine) -> Result<Vec<Fleece>, Error> {
    let of = |(number, chain): (usize, &Chain)| Ok(Fleece::new(number, &chain.disk, &chain.top()?.file));
    machine.head.chains().enumerate().map(of).collect()
}

impl Filters {
    /// A machine's disks, with scratch files in `dir` that hold `budget` together at most.
    pub fn plan(
        machine: &Machine,
        dir: &std::path::Path,
        budget: ByteLen,
        (timeout, since): (Duration, &str),
        (state, freeze): (StateAtCut, Freeze),
    ) -> Result<Self, Error> {
        let place = |chain: &Chain| -> Result<(PathBuf, ByteLen), Error> {
            let name = format!("keyframe-scratch-{since}-{}.qcow2", chain.disk);
            Ok((dir.join(name), chain.top()?.virtual_bytes))
        };
        let places = machine.head.chains().map(place).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            fleeces: fleeces(machine)?,
            scratch: scratch::plan(&places, budget),
            timeout,
            since: since.to_owned(),
            state,
            freeze,
        })
    }

    /// What whoever tidies up has to know.
    pub fn journal(&self) -> LiveJournal {
        LiveJournal {
            scratch: self.scratch.iter().map(|planned| planned.scratch.path.clone()).collect(),
            was_running: self.state == StateAtCut::Running,
            freezes: self.freezes(),
        }
    }

    fn freezes(&self) -> bool {
        self.freeze != Freeze::No && self.state == StateAtCut::Running
    }

    /// Puts them in place, all at one instant. A guest that was running runs again whatever happens.
    ///
    /// # Errors
    /// Whatever fails; some of it may be there then.
    pub fn put(
        &self,
        monitor: &mut Client,
        machine: &Machine,
        guard: &Guard,
        notes: &mut Vec<String>,
    ) -> Result<Instants, Error> {
        let process = machine.process().ok_or(keyframe_hypervisor::Error::NoProcess)?;
        let kept = self.scratch.iter().map(scratch::make).collect::<Result<Vec<_>, _>>()?;
        pass(Failpoint::LiveScratchMade)?;
        let disks = self.fleeces.iter().cloned().zip(self.scratch.iter().map(|planned| planned.scratch.clone()));
        fleecing::prepare(monitor, &disks.collect::<Vec<_>>(), self.timeout)?;
        for planned in &self.scratch {
            // From here on they go with whoever has them open.
            durable::remove_file_unsynced(&planned.scratch.path)?;
        }
        pass(Failpoint::LivePrepared)?;
        // What is written before the instant may be noted, too: it is read once more, and found to be known.
        for fleece in &self.fleeces {
            tracking::begin(monitor, fleece.active(), &self.since, Lasts::Layer)?;
        }
        let freeze = if self.freezes() { self.freeze } else { Freeze::No };
        let freezer = Freezer { freeze, instance: &process.instance, guard };
        let frozen = freezer.freeze(notes)?;
        let attached = self.attach(monitor, guard);
        let created = Timestamp::now();
        let frozen = freezer.thaw(frozen, notes);
        let pause = attached?;
        pass(Failpoint::LiveAttached)?;
        Ok(Instants { created, pause, frozen: frozen?, kept })
    }

    /// Disks that are to be of one instant are so because the guest stands still meanwhile: QEMU puts one filter after the
    /// other in place.
    fn attach(&self, monitor: &mut Client, guard: &Guard) -> Result<Duration, Error> {
        if self.state != StateAtCut::Running || self.fleeces.len() < 2 {
            fleecing::attach(monitor, &self.fleeces)?;
            return Ok(Duration::ZERO);
        }
        guard.expect_resume(guest::FREEZE_WINDOW);
        let begun = Instant::now();
        let attached = self.attach_stopped(monitor);
        let resumed = monitor.call(&Cont {});
        let pause = begun.elapsed();
        guard.resumed();
        attached?;
        resumed?;
        Ok(pause)
    }

    fn attach_stopped(&self, monitor: &mut Client) -> Result<(), Error> {
        monitor.call(&Stop {})?;
        pass(Failpoint::LiveStopped)?;
        for (number, fleece) in self.fleeces.iter().enumerate() {
            fleecing::attach(monitor, [fleece])?;
            if number == 0 {
                pass(Failpoint::LiveAttaching)?;
            }
        }
        Ok(())
    }
}

/// Takes away filters and scratch files, and the journal that tells of them.
///
/// # Errors
/// When something stays; so does the journal then, and the next command tries again.
pub fn remove(machine: &Machine, journal: &LiveJournal) -> Result<(), Error> {
    match machine.monitor() {
        Ok(mut monitor) => {
            let process = machine.process().ok_or(keyframe_hypervisor::Error::NoProcess)?;
            fleecing::remove(&mut monitor, &process.instance.dir, &fleeces(machine)?)?;
        }
        // With its process all of it is gone.
        Err(_) if machine.process().is_none() => {}
        Err(error) => return Err(error),
    }
    journal.scratch.iter().try_for_each(|path| durable::remove_file(path))?;
    durable::remove_file(&machine.dir.journal())
}

/// Tidies up behind a live backup that was killed.
///
/// # Errors
/// As [`remove`].
pub fn tidy_up(machine: &Machine, journal: &LiveJournal) -> Result<(), Error> {
    // The guest first: it may stand still.
    if let Ok(mut monitor) = machine.monitor()
        && journal.was_running
    {
        cut::resume_if_paused(&mut monitor);
    }
    if let (true, Some(process)) = (journal.freezes, machine.process()) {
        // A guest that is not frozen refuses; one whose agent is gone cannot be helped from here.
        let _ = guest::thaw(&process.instance);
    }
    remove(machine, journal)
}
