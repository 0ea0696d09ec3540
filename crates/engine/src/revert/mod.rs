//! Going back to a snapshot, with its programs still running.
//!
//! The present is not given up before the past has proved that it runs:
//!
//! ```text
//!   present   ── runs ──┐stop                                   ┌ kept as a snapshot, then ends
//!                       └─ parked: stopped, its memory in place ┤
//!   new QEMU     starts ───── loads ─┬ head ─┬ runs ─── hydrated ┘
//!                                    └ commit┘
//! ```
//! Until the commit, any failure lets the present run on. After it, a memory image that turns out to be
//! damaged while a lazy revert still reads it does the same: the parked process continues. Once the parked process
//! has ended there is only the way forward: its memory is on disk and in the journal, and whoever comes next goes on.
//! Where two processes cannot live side by side (a tap interface, arguments that may claim a port, too little
//! memory), everything that can be checked is, and then the present is stopped, snapshotted and ended first.

pub(crate) mod undo;

use std::time::{Duration, Instant};

use keyframe_hypervisor::instance::Started;
use keyframe_hypervisor::{InstanceRecord, MachineDefinition, Network, Nic, cut, host};
use keyframe_qmp::commands::device::AnnounceSelf;
use keyframe_qmp::commands::machine::Stop;
use keyframe_types::{SnapshotId, SnapshotName, SnapshotRef};
use serde::Serialize;

use crate::bringup::{Source, Strategy, Target};
use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::guard::Guard;
use crate::guest;
use crate::layers::{self, UnsyncedTops};
use crate::machine::{Machine, State, state_of};
use crate::pages;
use crate::sharing;
use crate::snapshot::{self, Occasion, SnapshotRequest};
use crate::snapshots;
use crate::state::head::Head;
use crate::state::journal::RevertJournal;
use crate::state::manifest::StateAtCut;
use crate::{pause, space};

/// What to go back to, and how.
#[derive(Debug, Clone)]
pub struct RevertRequest {
    /// The snapshot.
    pub reference: SnapshotRef,
    /// Do not keep the present.
    pub discard: bool,
    /// How memory comes back; chosen by size if `None`.
    pub strategy: Option<Strategy>,
    /// Go on although layers were written to from outside.
    pub accept_touched_layers: bool,
    /// Return as soon as the machine runs; its memory may still be on its way.
    pub no_wait: bool,
}

/// What a revert came to.
#[derive(Debug, Serialize)]
pub struct RevertReport {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// How it came back.
    pub strategy: Strategy,
    /// From the command's start until vCPUs ran, in milliseconds.
    pub running_ms: f64,
    /// How long the machine stood still between present and past, in milliseconds; `None` if it was off.
    pub down_ms: Option<f64>,
    /// From the command's start until all memory was there, in milliseconds; `None` if nobody waited for it.
    pub hydrated_ms: Option<f64>,
    /// The snapshot that keeps what was the present.
    pub kept: Option<SnapshotId>,
    /// The name of that snapshot.
    pub kept_name: Option<SnapshotName>,
    /// How far the guest's clock was behind, in milliseconds, before it was set, negative when it was ahead; `None`
    /// where no agent tells.
    pub clock_skew_ms: Option<f64>,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Goes back to a snapshot.
///
/// # Errors
/// Whatever fails; the machine is then as it was.
pub fn revert(ctx: &Context<'_>, request: &RevertRequest) -> Result<RevertReport, Error> {
    let begun = Instant::now();
    let vm = &request.reference.vm;
    let (_lock, mut machine) = Machine::lock(ctx, vm, &format!("revert {}", request.reference))?;
    let manifest = snapshots::find(&machine.dir, vm, &request.reference.snapshot)?;
    if !request.accept_touched_layers {
        Machine::check_layers(ctx.home, manifest.chains())?;
    }
    let source = Source::prepare(ctx, &machine.dir, manifest, request.strategy)?;
    source.verify(ctx)?;
    let present = Present::of(&machine, request, &source);
    if let (false, Some(instance)) = (request.discard, present.instance()) {
        // What is still on its way belongs to the present that is kept.
        pages::wait(ctx, instance)?;
    }
    present.check_room(&machine, request)?;
    if let Present::Exclusive(_) = present {
        source.verify_ahead(ctx)?;
    }
    let was_running = present.instance().is_some() && machine.state() == State::Running;
    let guard = Guard::post(ctx.home, vm)?;
    if was_running && present.needs_keeping_first(request) {
        guard.expect_resume(KEEPING_PATIENCE);
    }
    let early = if present.needs_keeping_first(request) { Some(keep_first(ctx, &mut machine, &source)?) } else { None };
    let mut reverting = Reverting::plan(ctx, &machine, request, source, present, was_running, begun)?;
    let mut report = reverting.carry_out(&mut machine, &guard)?;
    if let Some(kept) = early {
        (report.kept, report.kept_name) = (Some(kept.id), Some(kept.name));
        report.notes.extend(kept.notes);
    }
    if let Some(kept) = &report.kept {
        sharing::share_if_possible(ctx, &machine, kept);
    }
    report.total_ms = ms_since(begun);
    Ok(report)
}

fn ms_since(begun: Instant) -> f64 {
    (begun.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

/// What the machine is doing when it is called back.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Present {
    /// It is off.
    Off,
    /// Its process can stand still beside the new one.
    Parkable(InstanceRecord),
    /// Its process has to end before the new one starts.
    Exclusive(InstanceRecord),
}

impl Present {
    fn of(machine: &Machine, request: &RevertRequest, source: &Source) -> Self {
        let Some(process) = machine.process() else { return Self::Off };
        let instance = process.instance.clone();
        let network = machine.definition.nic.as_ref().map(|nic| &nic.network);
        let alone = !machine.definition.extra_args.is_empty()
            || matches!(network, Some(Network::Tap(_)))
            || !fits_beside(source);
        let unmappable = process.mapped.is_some() && !request.discard;
        if alone || unmappable { Self::Exclusive(instance) } else { Self::Parkable(instance) }
    }

    /// Checks that what is going to be kept fits on the disk, before anything stands still.
    fn check_room(&self, machine: &Machine, request: &RevertRequest) -> Result<(), Error> {
        match machine.process() {
            Some(process) if matches!(self, Self::Parkable(_)) && !request.discard => {
                space::check(machine.dir.root(), pause::resident(process))
            }
            _ => Ok(()),
        }
    }

    /// Whether the present is snapshotted before anything else.
    fn needs_keeping_first(&self, request: &RevertRequest) -> bool {
        !request.discard && !matches!(self, Self::Parkable(_))
    }

    fn instance(&self) -> Option<&InstanceRecord> {
        match self {
            Self::Off => None,
            Self::Parkable(instance) | Self::Exclusive(instance) => Some(instance),
        }
    }
}

/// Whether the snapshot's memory fits into the host's beside the present's.
fn fits_beside(source: &Source) -> bool {
    let image = source.manifest.memory.as_ref().map_or(keyframe_types::ByteLen::ZERO, |memory| memory.bytes_on_disk);
    let room = keyframe_types::ByteLen::from_mib(256);
    host::available_memory() > image + room
}

/// Snapshots the present as an operation of its own; the guest stands still from then on.
fn keep_first(ctx: &Context<'_>, machine: &mut Machine, source: &Source) -> Result<snapshot::SnapshotReport, Error> {
    let mapped = machine.process().is_some_and(|process| process.mapped.is_some());
    let request = SnapshotRequest { disk_only: mapped, ..kept_request(machine, source) };
    ctx.progress.step("keeping the present");
    let mut kept = snapshot::take_locked(ctx, machine, &request, Occasion::BeforeItsEnd, Instant::now())?;
    if mapped {
        kept.notes.push("the present is kept without its memory, which is mapped from a snapshot's image".to_owned());
    }
    Ok(kept)
}

fn kept_request(machine: &Machine, source: &Source) -> SnapshotRequest {
    let note = format!("the present before the revert to {}", source.manifest.name);
    SnapshotRequest { note: Some(note), ..SnapshotRequest::of(machine.name().clone()) }
}

struct Reverting<'a> {
    ctx: &'a Context<'a>,
    request: &'a RevertRequest,
    source: Source,
    present: Present,
    journal: RevertJournal,
    begun: Instant,
}

impl<'a> Reverting<'a> {
    fn plan(
        ctx: &'a Context<'a>,
        machine: &Machine,
        request: &'a RevertRequest,
        source: Source,
        present: Present,
        was_running: bool,
        begun: Instant,
    ) -> Result<Self, Error> {
        let manifest = &source.manifest;
        let after = Head {
            parent: Some(manifest.id.clone()),
            disks: layers::planned_overlays(ctx.home, &machine.dir, manifest.disks.iter())?,
            nvram: layers::planned_overlays(ctx.home, &machine.dir, manifest.nvram.iter())?.pop(),
            process: None,
            clean_shutdown: false,
            origin: machine.head.origin.clone(),
        };
        let keeps = matches!(present, Present::Parkable(_)) && !request.discard;
        let journal = RevertJournal {
            target: manifest.id.clone(),
            before: machine.head.clone(),
            after,
            keep: keeps.then(SnapshotId::random),
            keep_note: kept_request(machine, &source).note,
            kept_memory: None,
            had_process: present.instance().is_some(),
            was_running,
            runs: manifest.state == StateAtCut::Running || source.strategy == Strategy::Cold,
        };
        Ok(Self { ctx, request, source, present, journal, begun })
    }

    fn carry_out(&mut self, machine: &mut Machine, guard: &Guard) -> Result<RevertReport, Error> {
        undo::write_journal(machine, &self.journal)?;
        // From here on the journal tells that the guest is to run again if this fails.
        guard.resumed();
        match self.through(machine) {
            Ok(report) => {
                guard.dismiss();
                Ok(report)
            }
            // The guard stays on its post: it tries once more when this command has ended.
            Err(error) if undo::only_forward(machine, &self.journal) => {
                Err(Error::Unfinished { vm: machine.name().clone(), source: Box::new(error) })
            }
            Err(error) => match undo::back_to_present(self.ctx, machine, &self.journal) {
                Ok(()) => {
                    guard.dismiss();
                    Err(error)
                }
                Err(undo) => Err(Error::UndoFailed { source: Box::new(error), undo: Box::new(undo) }),
            },
        }
    }

    fn through(&mut self, machine: &mut Machine) -> Result<RevertReport, Error> {
        pass(Failpoint::RevertJournaled)?;
        if self.stays_off() {
            return self.without_process(machine);
        }
        let definition = at_snapshot(&machine.definition, &self.source.manifest.definition);
        let (mut started, stopped) = self.loaded(machine, &definition)?;
        self.ctx.check()?;
        machine.head = self.journal.after.clone();
        machine.head.process = Some(self.source.process(self.ctx, &started, &definition));
        machine.write_head()?;
        pass(Failpoint::RevertHeadWritten)?;
        if self.journal.runs {
            pages::let_run(&started.record, &mut started.monitor)?;
        }
        let running_ms = ms_since(self.begun);
        let down_ms = stopped.map(ms_since);
        pass(Failpoint::RevertRunning)?;
        let mut notes = Vec::new();
        let clock_skew_ms = self.greet_guest(&mut started, &mut notes);
        let hydrated_ms = self.hydrate(&started.record)?;
        let kept = undo::keep_present(self.ctx, machine, &mut self.journal)?;
        pass(Failpoint::RevertPresentKept)?;
        undo::finish(self.ctx, machine, &self.journal)?;
        Ok(RevertReport {
            down_ms,
            hydrated_ms,
            kept: kept.as_ref().map(|kept| kept.id.clone()),
            kept_name: kept.map(|kept| kept.name),
            clock_skew_ms,
            notes,
            ..self.report(running_ms)
        })
    }

    /// A machine that is off now and was off then has no reason to start.
    fn stays_off(&self) -> bool {
        self.present == Present::Off
            && self.source.strategy == Strategy::Cold
            && self.source.manifest.state == StateAtCut::Stopped
    }

    /// Only the disks go back.
    fn without_process(&self, machine: &mut Machine) -> Result<RevertReport, Error> {
        let after = &self.journal.after;
        let chains: Vec<_> = after.chains().cloned().collect();
        layers::create_tops(self.ctx.home, &chains)?;
        machine.head = after.clone();
        machine.write_head()?;
        undo::finish(self.ctx, machine, &self.journal)?;
        let ms = ms_since(self.begun);
        Ok(RevertReport { notes: vec!["the machine was off then and stays off".to_owned()], ..self.report(ms) })
    }

    fn report(&self, running_ms: f64) -> RevertReport {
        RevertReport {
            id: self.source.manifest.id.clone(),
            name: self.source.manifest.name.clone(),
            strategy: self.source.strategy,
            running_ms,
            down_ms: None,
            hydrated_ms: Some(running_ms),
            kept: None,
            kept_name: None,
            clock_skew_ms: None,
            total_ms: 0.0,
            notes: Vec::new(),
        }
    }

    /// Starts the new process while the present stops, and loads the snapshot into it. The new layers become durable
    /// beside that; the head does not name them before.
    fn loaded(&self, machine: &Machine, definition: &MachineDefinition) -> Result<(Started, Option<Instant>), Error> {
        let chains: Vec<_> = self.journal.after.chains().cloned().collect();
        let tops = UnsyncedTops::create(self.ctx.home, &chains)?;
        pass(Failpoint::RevertOverlaysCreated)?;
        std::thread::scope(|threads| {
            let syncing = threads.spawn(|| tops.sync());
            let loaded = self.loaded_on(machine, definition)?;
            // The closure does not panic; if it did, that would go on here.
            syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(loaded)
        })
    }

    /// The same, on layers that are there.
    fn loaded_on(
        &self,
        machine: &Machine,
        definition: &MachineDefinition,
    ) -> Result<(Started, Option<Instant>), Error> {
        let after = &self.journal.after;
        if let Present::Exclusive(_) = self.present {
            undo::quit(machine)?;
        }
        let target = Target { definition, disks: &after.disks, nvram: after.nvram.as_ref() };
        let starting = self.source.begin(self.ctx, &machine.dir, &target)?;
        pass(Failpoint::RevertProcessStarted)?;
        let mut started = starting.ready()?;
        self.source.check_version(started.record.version)?;
        let stopped = match &self.present {
            Present::Parkable(_) => Some(park(machine)?),
            Present::Off | Present::Exclusive(_) => None,
        };
        pass(Failpoint::RevertPresentStopped)?;
        self.source.load(&mut started)?;
        pass(Failpoint::RevertLoaded)?;
        Ok((started, stopped))
    }

    /// What a guest wants to know that just woke up in another time. None of it can fail the revert.
    fn greet_guest(&self, started: &mut Started, notes: &mut Vec<String>) -> Option<f64> {
        // Without a network card QEMU has nobody to announce and says so.
        let _ = started.monitor.call(&AnnounceSelf::default());
        if self.source.strategy == Strategy::Cold {
            return None;
        }
        guest::greet(started, self.source.manifest.frozen, notes)
    }

    /// Waits until all memory is there.
    fn hydrate(&self, instance: &InstanceRecord) -> Result<Option<f64>, Error> {
        if self.source.strategy != Strategy::Lazy {
            return Ok(Some(ms_since(self.begun)));
        }
        if self.request.no_wait && self.journal.keep.is_none() {
            return Ok(None);
        }
        pages::wait(self.ctx, instance)?;
        Ok(Some(ms_since(self.begun)))
    }
}

/// The hardware of the snapshot with the machine's own name, tags, network, probes and limits: only hardware has to match its device state.
fn at_snapshot(now: &MachineDefinition, then: &MachineDefinition) -> MachineDefinition {
    let nic = match (&then.nic, &now.nic) {
        (Some(then), Some(now)) => Some(Nic { mac: then.mac, network: now.network.clone() }),
        (then, _) => then.clone(),
    };
    let (name, tags, probes) = (now.name.clone(), now.tags.clone(), now.probes.clone());
    MachineDefinition { name, tags, nic, probes, cost: now.cost, ..then.clone() }
}

/// Stops the present's vCPUs; says when.
fn park(machine: &Machine) -> Result<Instant, Error> {
    let mut monitor = machine.monitor()?;
    let at = Instant::now();
    if state_of(&mut monitor) == State::Running {
        monitor.call(&Stop {}).map_err(keyframe_hypervisor::Error::from)?;
    }
    Ok(at)
}

/// Lets the present run on.
pub(crate) fn unpark(machine: &Machine) {
    if let Ok(mut monitor) = machine.monitor() {
        cut::resume_if_paused(&mut monitor);
    }
}

/// How long a guest may stand still while it is kept as a snapshot and nobody says how that goes.
const KEEPING_PATIENCE: Duration = Duration::from_secs(3600);

/// How long a process that was told to end may take.
pub(crate) const QUIT_PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use keyframe_types::VmName;

    use super::*;

    #[test]
    fn what_a_machine_is_for_does_not_go_back_with_its_hardware() {
        let then = crate::fsck::tests::definition(&VmName::new("db").unwrap());
        let now = MachineDefinition { tags: vec!["prod".to_owned()], memory_mib: 128, ..then.clone() };
        let reverted = at_snapshot(&now, &then);
        assert_eq!((reverted.tags, reverted.memory_mib), (vec!["prod".to_owned()], 64));
    }
}
