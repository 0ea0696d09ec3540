//! A backup of a machine that runs, without a snapshot and without a layer for it.
//!
//! ```text
//!   journal ─▶ scratch files ─▶ filters in place: the instant ─▶ shown ─▶ disks stored ─▶ filters gone ─▶ point (the commit)
//!   └──────────────── whatever happens here: the filters go, and so do the files ──────────────────┘
//! ```
//! Before the guest overwrites something, QEMU copies what was there into a scratch file; the disks as they were are read over
//! NBD ([`keyframe_hypervisor::fleecing`]). The machine's lock is held until the filters are gone: nothing else changes its
//! disks meanwhile. The guest comes first: what cannot be kept in time is lost to the backup, and reading gives way
//! ([`watch`]). What was written since the live backup before, QEMU has noted in a bitmap, which it keeps in the layer's file when it
//! ends ([`crate::bitmaps`]).

mod filters;
mod scratch;
mod view;
mod watch;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyframe_hypervisor::fleecing::{self, Fleece};
use keyframe_hypervisor::tracking;
use keyframe_qmp::Client;
use keyframe_repo::source;
use keyframe_repo::{Repository, Run};
use keyframe_types::{ByteLen, SnapshotId, SnapshotName};
use serde::Serialize;

use crate::boot;
use crate::context::Context;
use crate::courtesy::aside;
use crate::error::{Error, IoContext as _};
use crate::failpoint::{Failpoint, pass};
use crate::guard::Guard;
use crate::layers;
use crate::machine::{Machine, State};
use crate::snapshot::{self, Freeze, ms, qemu_used};
use crate::state::head::{Chain, Process};
use crate::state::journal::Journal;
use crate::state::manifest::{Consistency, Cost, Cut, Manifest, StateAtCut};
use crate::state::sealed;
use crate::state::tree::FrozenTop;

use super::changes::{self, Basis, Changes, Running};
use super::point::{ChangedBy, MachinePoint, Way};
use super::storing::{KnownAs, Making, Previous, Stored, Storing};
use super::{BackupRequest, Outcome};

pub(crate) use filters::tidy_up;
use filters::{Filters, Instants};
use view::View;
use watch::Watch;

/// How a live backup treats the guest.
#[derive(Debug, Clone)]
pub struct LiveOptions {
    /// Where what the guest overwrites meanwhile is kept; the machine's own directory if `None`.
    pub scratch: Option<PathBuf>,
    /// How much of it is kept at most; half of what is free there if `None`.
    pub scratch_bytes: Option<ByteLen>,
    /// How long the guest's requests to its disks may take, all those that a disk completes within half a second taken
    /// together.
    pub max_latency: Duration,
}

/// What a live backup asked of the guest.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LiveReport {
    /// The longest that its requests took, all those that a disk completed within half a second taken together, in milliseconds;
    /// `None` where it made none.
    pub request_ms_max: Option<f64>,
    /// How long reads were held back for it, all readers taken together, in milliseconds.
    pub slowed_ms: f64,
    /// Space that was taken by what it overwrote meanwhile.
    pub scratch_bytes: ByteLen,
}

/// What is read of the machine, and what of it is known already.
struct Reading<'a> {
    ctx: &'a Context<'a>,
    machine: &'a Machine,
    process: &'a Process,
    request: &'a BackupRequest,
    filters: &'a Filters,
    guard: &'a Guard,
    watch: &'a Watch,
}

/// Everything is stored but the point.
struct Read<'a> {
    storing: Storing<'a>,
    instant: Instants,
    live: LiveReport,
    notes: Vec<String>,
}

/// Stores the disks of a machine that has a process, as they are at one instant.
pub(super) fn backup(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    request: &BackupRequest,
    options: &LiveOptions,
    previous: Option<&Previous>,
) -> Result<Outcome, Error> {
    let begun = Instant::now();
    let (_lock, machine) = Machine::lock(ctx, &request.vm, &format!("backup {} --live", request.vm))?;
    boot::must_be_local(&machine)?;
    let state = state_of(&machine)?;
    if request.freeze == Freeze::Must && state != StateAtCut::Running {
        return Err(Error::FreezeFailed { reason: "the machine is paused".to_owned() });
    }
    let process = machine.process().cloned().ok_or(keyframe_hypervisor::Error::NoProcess)?;
    Machine::check_layers(ctx.home, machine.head.chains())?;
    let dir = scratch_dir(&machine, options)?;
    let budget = match options.scratch_bytes {
        Some(bytes) => bytes,
        None => scratch::budget(&dir)?,
    };
    let since = tracking::name_of_now();
    let how_long = (options.max_latency, since.as_str());
    let filters = Filters::plan(&machine, &dir, budget, how_long, (state, request.freeze))?;
    let journal = filters.journal();
    let watch = Watch::new(options.max_latency, vec![dir, machine.dir.root().to_owned()]);

    let guard = Guard::post(ctx.home, machine.name())?;
    sealed::write(&machine.dir.journal(), &Journal::Live(journal.clone()))?;
    let reading =
        Reading { ctx, machine: &machine, process: &process, request, filters: &filters, guard: &guard, watch: &watch };
    let read = reading.carry_out(repository, previous);
    let removed = filters::remove(&machine, &journal);
    if removed.is_ok() {
        guard.dismiss();
    }
    // Not dismissed, the guard tries again when this command has ended.
    let stays = removed.as_ref().err().map(Error::told);
    let stored = match (read, removed) {
        (Err(error), Err(undo)) => Err(Error::UndoFailed { source: Box::new(error), undo: Box::new(undo) }),
        (Err(error), Ok(())) => Err(error),
        (Ok(read), _) => reading.commit(read, begun),
    };
    let (stored, pause, live, mut notes) = stored.inspect_err(|_| reading.forget())?;
    if let Some(stays) = &stays {
        notes.push(format!("filters on its disks stay until the next command on the machine: {stays}"));
    }
    Ok(Outcome {
        stored,
        snapshot: None,
        snapshot_kept: false,
        pause_ms: Some(ms(pause)),
        live: Some(live),
        notes,
        incomplete: stays.is_some(),
    })
}

/// What the machine does, where it can be backed up so.
fn state_of(machine: &Machine) -> Result<StateAtCut, Error> {
    match machine.state() {
        State::Running => Ok(StateAtCut::Running),
        State::Paused => Ok(StateAtCut::Paused),
        other => Err(Error::WrongState {
            vm: machine.name().clone(),
            state: other.as_str().to_owned(),
            advice: "--live reads the disks of a QEMU that runs; without --live any machine is backed up",
        }),
    }
}

/// Where scratch files are made, as QEMU names it, too.
fn scratch_dir(machine: &Machine, options: &LiveOptions) -> Result<PathBuf, Error> {
    match &options.scratch {
        None => Ok(machine.dir.root().to_owned()),
        Some(dir) => {
            let dir = dir.canonicalize().or_io("find", dir)?;
            if dir.is_dir() {
                return Ok(dir);
            }
            Err(Error::BadRequest { what: format!("--scratch {} is not a directory", dir.display()) })
        }
    }
}

impl<'a> Reading<'a> {
    /// From the filters to the last byte that is read; whoever called this takes away what is there then.
    fn carry_out(&self, repository: &'a Arc<Repository>, previous: Option<&'a Previous>) -> Result<Read<'a>, Error> {
        pass(Failpoint::LiveJournaled)?;
        let mut notes = Vec::new();
        let before = previous.map(|(_, machine)| machine);
        let bases = self.bases(before)?;
        let mut monitor = self.machine.monitor()?;
        self.ctx.progress.step("keeping disks as they are");
        let instant = self.filters.put(&mut monitor, self.machine, self.guard, &mut notes)?;
        self.show(&mut monitor, &bases)?;
        pass(Failpoint::LiveShown)?;
        let run = Run { progress: self.ctx.progress, cancel: &self.watch.ended };
        let mut storing = Storing::begin(repository, Making::of(self.request), previous.map(|(point, _)| point), run)?;
        storing.machine(String::new(), before);
        let done = AtomicBool::new(false);
        let stored = std::thread::scope(|threads| {
            threads.spawn(|| {
                self.watch.keep(self.ctx, &mut monitor, &done);
                if self.watch.ended.load(Ordering::Relaxed) {
                    // The guest does not wait until a slow repository has let go of its writers. What stays is tried again.
                    let _ = fleecing::remove(&mut monitor, &self.process.instance.dir, &self.filters.fleeces);
                }
            });
            let stored = aside(|| self.disks(&mut storing, bases, before));
            done.store(true, Ordering::Relaxed);
            stored
        });
        match self.watch.why() {
            // With its QEMU every view is gone: that is no trouble of the backup's own.
            Some(Error::ViewBroken { .. }) if !self.process.instance.is_alive() => {
                return Err(keyframe_hypervisor::Error::NoProcess.into());
            }
            Some(why) => return Err(why),
            None => stored?,
        }
        pass(Failpoint::LiveStored)?;
        let live = LiveReport {
            request_ms_max: self.watch.slowest_ms(),
            slowed_ms: self.watch.slowed_ms(),
            scratch_bytes: scratch::kept(&instant.kept),
        };
        Ok(Read { storing, instant, live, notes })
    }

    fn chains(&self) -> impl Iterator<Item = (&'a Chain, &'a Fleece)> {
        self.machine.head.chains().zip(&self.filters.fleeces)
    }

    /// What will tell what changed, for each disk.
    fn bases(&self, before: Option<&MachinePoint>) -> Result<Vec<Basis>, Error> {
        let mut running = Running { monitor: self.machine.monitor()?, dir: &self.process.instance.dir };
        self.chains()
            .map(|(chain, _)| match before.and_then(|point| point.disk(&chain.disk)) {
                Some(known) => changes::basis(self.ctx.home, chain, known, Some(&mut running)),
                None => Ok(Basis::Nothing),
            })
            .collect()
    }

    /// Shows the disks as they were, with what was noted of them until then.
    fn show(&self, monitor: &mut Client, bases: &[Basis]) -> Result<(), Error> {
        let mut shown = Vec::new();
        for (fleece, basis) in self.filters.fleeces.iter().zip(bases) {
            let keeps = match basis {
                Basis::Noted(since) => tracking::keep(monitor, fleece.active(), since)?,
                Basis::Below(_) | Basis::Nothing => false,
            };
            shown.push((fleece, keeps));
        }
        Ok(fleecing::show(monitor, &self.process.instance.dir, shown)?)
    }

    fn disks(&self, storing: &mut Storing<'_>, bases: Vec<Basis>, before: Option<&MachinePoint>) -> Result<(), Error> {
        let dir = &self.process.instance.dir;
        for ((chain, fleece), basis) in self.chains().zip(bases) {
            let mut nbd = fleecing::open(dir, fleece)?;
            let survey = fleecing::survey(&mut nbd).map_err(|error| match self.process.instance.is_alive() {
                true => Error::ViewBroken { disk: chain.disk.clone(), reason: error.to_string() },
                false => keyframe_hypervisor::Error::NoProcess.into(),
            })?;
            drop(nbd);
            let view = View::new((&chain.disk, fleece), dir, &survey, &self.below(chain)?, self.watch);
            let of_top = match basis {
                // A view tells no more of the topmost layer than what is to be looked at anyway.
                Basis::Below(Changes { by, extents }) => {
                    Some(Changes { by, extents: extents.into_iter().chain(survey.of_active).collect() })
                }
                Basis::Noted(_) => survey.kept.map(|kept| {
                    let missing =
                        before.and_then(|point| point.disk(&chain.disk)).map(|known| known.unreadable.clone());
                    let extents = kept.into_iter().chain(missing.unwrap_or_default()).collect();
                    Changes { by: ChangedBy::Bitmap, extents }
                }),
                Basis::Nothing => None,
            };
            let known_as = KnownAs {
                file: chain.top()?.file.clone(),
                fingerprint: None,
                noted_since: Some(self.filters.since.clone()),
            };
            storing.disk(chain, &view, of_top, known_as)?;
        }
        storing.kernel(self.machine.hardware())
    }

    /// Where the frozen layers below the active one have other bytes than zeros.
    fn below(&self, chain: &Chain) -> Result<Vec<Range<u64>>, Error> {
        let Some(layer) = chain.layers.get(1) else { return Ok(Vec::new()) };
        let path = self.ctx.home.absolute(&layer.path);
        Ok(source::open(&path, Some(layers::qcow2_format(layer.format)))?.extents()?)
    }

    /// Makes the point of what was read.
    fn commit(&self, read: Read<'_>, begun: Instant) -> Result<(Stored, Duration, LiveReport, Vec<String>), Error> {
        let Read { mut storing, instant, live, notes } = read;
        let snapshot = self.described(&instant, begun)?;
        let document = MachinePoint::new(Way::Live, snapshot, storing.disks());
        let stored = storing.commit(self.ctx, document, Failpoint::LiveRemoved)?;
        pass(Failpoint::LivePointMade)?;
        Ok((stored, instant.pause, live, notes))
    }

    /// What a snapshot of that instant would say.
    fn described(&self, instant: &Instants, begun: Instant) -> Result<Manifest<FrozenTop>, Error> {
        let id = SnapshotId::random();
        let name = SnapshotName::new(format!("live-{}", &id.as_str()[..8]));
        let head = &self.machine.head;
        let manifest = Manifest {
            name: name.map_err(|error| Error::BadRequest { what: error.to_string() })?,
            id,
            note: self.request.note.clone(),
            owner: snapshot::owner(),
            created: instant.created,
            expires: None,
            pinned: false,
            parent: head.parent.clone(),
            group: None,
            consistency: if instant.frozen.is_some() { Consistency::Filesystem } else { Consistency::Crash },
            cut: Cut::DisksOnly,
            state: self.filters.state,
            frozen: self.filters.journal().freezes,
            definition: self.machine.hardware().clone(),
            qemu: qemu_used(self.process.instance.version, self.process.accelerator),
            memory: None,
            disks: head.disks.clone(),
            nvram: head.nvram.clone(),
            cost: Cost { pause_ms: ms(instant.pause), guest_stall_ms_max: None, total_ms: ms(begun.elapsed()) },
        };
        manifest.with_chains(FrozenTop::of)
    }

    /// Has QEMU note no more for a point that there is not. What stays is only in the way until there are too many.
    fn forget(&self) {
        if let Ok(mut monitor) = self.machine.monitor() {
            for fleece in &self.filters.fleeces {
                let _ = tracking::end(&mut monitor, fleece.active(), &self.filters.since);
            }
        }
    }
}
