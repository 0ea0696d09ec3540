//! A snapshot of a machine that has a process: running or paused, with memory or without.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyframe_hypervisor::Error as Hypervisor;
use keyframe_hypervisor::cut::{self, CutReport, Overlay, Strategy};
use keyframe_hypervisor::stall::Sampler;
use keyframe_qmp::Client;
use keyframe_qmp::commands::machine::{QueryCpusFast, Stop};
use keyframe_types::Timestamp;

use super::freezing::Freezer;
use super::gate::Stage;
use super::{Freeze, Occasion, Plan, SnapshotReport, SnapshotRequest, Taken, commit, qemu_used, undo};
use crate::context::Context;
use crate::error::{Error, Kind};
use crate::failpoint::{Failpoint, pass};
use crate::guard::Guard;
use crate::guest::{self, Frozen};
use crate::machine::Machine;
use crate::memory::{self, Captured};
use crate::pages;
use crate::pause::{self, Budget};
use crate::state::head::{Head, Process};
use crate::state::journal::{Journal, SnapshotJournal};
use crate::state::manifest::{Consistency, Cut, Memory, QemuUsed, StateAtCut};
use crate::state::{durable, sealed};
use crate::{layers, space};

/// How often a cut at QEMU's own stop is tried before the guest is stopped first, or the snapshot refused.
const ATTEMPTS: u32 = 3;

pub(super) fn take(
    ctx: &Context<'_>,
    machine: &mut Machine,
    request: &SnapshotRequest,
    plan: Plan,
    state: StateAtCut,
    occasion: Occasion<'_>,
) -> Result<SnapshotReport, Error> {
    let process = machine.process().cloned().ok_or(keyframe_hypervisor::Error::NoProcess)?;
    if request.freeze == Freeze::Must && state != StateAtCut::Running {
        return Err(Error::FreezeFailed { reason: "the machine is paused".to_owned() });
    }
    // QEMU cannot save a machine whose memory is still on its way.
    pages::wait(ctx, &process.instance)?;
    let mut scope = Scope::decide(ctx, machine, (request, occasion), &process, state)?;
    Machine::check_layers(ctx.home, machine.head.chains())?;
    let before = machine.head.clone();
    let journal = SnapshotJournal {
        id: plan.id.clone(),
        overlays: layers::planned_overlays(ctx.home, &machine.dir, before.chains())?,
        before,
        was_running: state == StateAtCut::Running,
        freezes: request.freeze != Freeze::No && state == StateAtCut::Running,
    };
    let guard = Guard::post(ctx.home, machine.name())?;
    sealed::write(&machine.dir.journal(), &Journal::Snapshot(Box::new(journal.clone())))?;
    // Stopped only now: from here on someone lets it run again if this fails.
    let stops = matches!(occasion, Occasion::BeforeItsEnd);
    let cut_state = if stops { StateAtCut::Paused } else { state };
    let taking = Taking {
        ctx,
        request,
        plan: &plan,
        journal: &journal,
        process: &process,
        state,
        cut_state,
        guard: &guard,
        occasion,
    };
    match taking.carry_out(machine, &mut scope) {
        Ok(mut report) => {
            guard.dismiss();
            if scope.memory && !stops {
                report.huge_pages_restored = pause::restore_huge_pages(ctx, &process, machine.hardware());
            }
            report.total_ms = super::ms(plan.begun.elapsed());
            Ok(report)
        }
        Err(error) => match undo::recover(ctx, machine, &journal) {
            Ok(()) => {
                guard.dismiss();
                super::after_failure(machine, &plan.id, error)
            }
            // Not dismissed, the guard tries again when this command has ended.
            Err(undo) => {
                let failed = Error::UndoFailed { source: Box::new(error), undo: Box::new(undo) };
                super::after_failure(machine, &plan.id, failed)
            }
        },
    }
}

/// What is going to be part of the snapshot, and how long the guest may stand still for it.
struct Scope {
    memory: bool,
    budget: Budget,
    notes: Vec<String>,
}

impl Scope {
    fn decide(
        ctx: &Context<'_>,
        machine: &Machine,
        (request, occasion): (&SnapshotRequest, Occasion<'_>),
        process: &Process,
        state: StateAtCut,
    ) -> Result<Self, Error> {
        let budget = Budget::new(request.max_pause);
        let mut scope = Self { memory: !request.disk_only, budget, notes: Vec::new() };
        if !scope.memory {
            return Ok(scope);
        }
        if process.mapped.is_some() {
            return Err(Error::MappedMachine { vm: machine.name().clone() });
        }
        let resident = pause::resident(process);
        space::check(machine.dir.root(), resident)?;
        if state == StateAtCut::Running
            && let Err(error) = match occasion {
                Occasion::InGroup(_) => budget.admit_stop_first(ctx, process, machine.hardware()),
                Occasion::ByItself | Occasion::BeforeItsEnd => budget.admit(ctx, process, machine.hardware()),
            }
        {
            if !request.or_disk_only {
                return Err(error);
            }
            scope.memory = false;
            scope.notes.push(format!("without memory: {error}"));
        }
        Ok(scope)
    }
}

struct Taking<'a> {
    ctx: &'a Context<'a>,
    request: &'a SnapshotRequest,
    plan: &'a Plan,
    journal: &'a SnapshotJournal,
    process: &'a Process,
    /// What the machine did when it was asked for, which the snapshot says.
    state: StateAtCut,
    /// What it does at the cut.
    cut_state: StateAtCut,
    guard: &'a Guard,
    occasion: Occasion<'a>,
}

impl Taking<'_> {
    fn carry_out(&self, machine: &mut Machine, scope: &mut Scope) -> Result<SnapshotReport, Error> {
        pass(Failpoint::SnapshotJournaled)?;
        if self.cut_state != self.state {
            machine.monitor()?.call(&Stop {})?;
        }
        let home = self.ctx.home;
        layers::create_tops(home, &self.journal.overlays)?;
        pass(Failpoint::SnapshotOverlaysCreated)?;
        let overlays = layers::cut_overlays(home, &self.journal.overlays)?;
        let mut monitor = machine.monitor()?;
        cut::open_overlays(&mut monitor, &overlays)?;
        pass(Failpoint::SnapshotOverlaysOpened)?;
        let taken = if scope.memory {
            self.with_memory(machine, &mut monitor, &overlays, scope)?
        } else {
            self.disks_only(machine, &mut monitor, &overlays, scope)?
        };
        self.commit(machine, &taken)
    }

    fn commit(&self, machine: &mut Machine, taken: &Taken) -> Result<SnapshotReport, Error> {
        match self.occasion {
            // From here on nothing but a failure keeps one of them from being committed.
            Occasion::InGroup(turn) => turn.reach(Stage::Saved)?,
            Occasion::ByItself | Occasion::BeforeItsEnd => self.ctx.check()?,
        }
        let mut frozen = Head { process: None, ..self.journal.before.clone() };
        layers::freeze_tops(self.ctx.home, frozen.chains_mut())?;
        let report = commit(machine, self.request, self.plan, machine.hardware(), &frozen, taken)?;
        pass(Failpoint::SnapshotCommitted)?;
        undo::finish(self.ctx, machine, self.journal, &frozen)?;
        durable::remove_file(&machine.dir.journal())?;
        Ok(report)
    }

    fn in_group(&self) -> bool {
        matches!(self.occasion, Occasion::InGroup(_))
    }

    fn freezes(&self) -> bool {
        self.request.freeze != Freeze::No && self.cut_state == StateAtCut::Running
    }

    fn freezer(&self) -> Freezer<'_> {
        let freeze = if self.freezes() { self.request.freeze } else { Freeze::No };
        Freezer { freeze, instance: &self.process.instance, guard: self.guard }
    }

    /// Waits for the group, freezes, and waits until all are frozen: from then on it goes quickly.
    fn freeze(&self, scope: &mut Scope) -> Result<Option<Frozen>, Error> {
        self.occasion.reach(Stage::Ready)?;
        let frozen = self.freezer().freeze(&mut scope.notes)?;
        layers::flush_ahead(self.ctx.home, &self.journal.before);
        // Whoever gives up here has the undo thaw it.
        self.occasion.reach(Stage::Frozen)?;
        Ok(frozen)
    }

    fn disks_only(
        &self,
        machine: &mut Machine,
        monitor: &mut Client,
        overlays: &[Overlay],
        scope: &mut Scope,
    ) -> Result<Taken, Error> {
        let frozen = self.freeze(scope)?;
        let (created, pause) = match self.occasion {
            Occasion::InGroup(turn) => {
                if self.cut_state == StateAtCut::Running {
                    self.guard.expect_resume(guest::FREEZE_WINDOW);
                }
                let report = cut::cut_disks_in(monitor, overlays, turn);
                self.guard.resumed();
                let report = report?;
                turn.resumed();
                if !report.exact {
                    return Err(Error::NotExact { attempts: 1 });
                }
                (Timestamp::from_system_time(report.at), report.pause)
            }
            Occasion::ByItself | Occasion::BeforeItsEnd => {
                cut::cut_disks(monitor, overlays)?;
                (Timestamp::now(), Duration::ZERO)
            }
        };
        let frozen = self.freezer().thaw(frozen, &mut scope.notes)?;
        self.head_is_cut(machine)?;
        let consistency = if frozen.is_some() { Consistency::Filesystem } else { Consistency::Crash };
        Ok(Taken {
            created,
            pause,
            frozen,
            may_be_frozen: self.freezes(),
            notes: std::mem::take(&mut scope.notes),
            ..Taken::disks(Cut::DisksOnly, self.state, consistency, self.qemu())
        })
    }

    fn with_memory(
        &self,
        machine: &mut Machine,
        monitor: &mut Client,
        overlays: &[Overlay],
        scope: &mut Scope,
    ) -> Result<Taken, Error> {
        let tids =
            monitor.call(&QueryCpusFast {})?.iter().filter_map(|cpu| u32::try_from(cpu.thread_id).ok()).collect();
        let sampler = Sampler::start(self.process.instance.process.pid, tids);
        let result = self.attempts(machine, monitor, overlays, scope);
        let stall = sampler.finish();
        let (report, cut, memory, frozen) = result?;
        Ok(Taken {
            consistency: Consistency::RunningState,
            cut,
            state: self.state,
            created: Timestamp::from_system_time(report.at),
            pause: report.pause,
            stall,
            frozen,
            may_be_frozen: self.freezes(),
            memory: Some(memory),
            qemu: self.qemu(),
            notes: std::mem::take(&mut scope.notes),
        })
    }

    /// Tries the ways to cut until one is proved exact.
    fn attempts(
        &self,
        machine: &mut Machine,
        monitor: &mut Client,
        overlays: &[Overlay],
        scope: &mut Scope,
    ) -> Result<(CutReport, Cut, Memory, Option<Duration>), Error> {
        let mut attempt = 1;
        loop {
            let (strategy, cut) = match self.cut_state {
                // The others do not wait for another attempt.
                _ if self.in_group() && attempt > 1 => return Err(Error::NotExact { attempts: 1 }),
                StateAtCut::Running if self.in_group() => (Strategy::StopFirst, Cut::StopFirst),
                StateAtCut::Running if attempt <= ATTEMPTS => (Strategy::AtQemusStop, Cut::AtQemusStop),
                StateAtCut::Running if attempt == ATTEMPTS + 1 && scope.budget.admits_stop_first(self.process) => {
                    (Strategy::StopFirst, Cut::StopFirst)
                }
                StateAtCut::Running => return Err(Error::NotExact { attempts: attempt - 1 }),
                StateAtCut::Paused | StateAtCut::Stopped => (Strategy::Still, Cut::Still),
            };
            match self.attempt(machine, monitor, overlays, strategy, scope) {
                Ok(Some((report, memory, frozen))) => return Ok((report, cut, memory, frozen)),
                Ok(None) => {}
                // The kernel may refuse to write-protect memory at a bad moment, and QEMU then gives up without a word.
                Err(Error::Hypervisor(Hypervisor::Migration { .. })) if attempt < ATTEMPTS && !self.in_group() => {}
                Err(error) => return Err(error),
            }
            attempt += 1;
            // The cut is taken back and the layers are made anew: the next one starts from where this one did.
            undo::uncut_live(monitor, overlays)?;
            layers::remove_tops(self.ctx.home, &self.journal.overlays)?;
            layers::create_tops(self.ctx.home, &self.journal.overlays)?;
            cut::open_overlays(monitor, overlays)?;
        }
    }

    /// One cut; `None` when it could not be proved exact, and saving was given up.
    fn attempt(
        &self,
        machine: &mut Machine,
        monitor: &mut Client,
        overlays: &[Overlay],
        strategy: Strategy,
        scope: &mut Scope,
    ) -> Result<Option<(CutReport, Memory, Option<Duration>)>, Error> {
        let dir = machine.dir.snapshot(&self.plan.id);
        durable::remove_dir(dir.root())?;
        durable::create_private_dir(dir.root())?;
        let (ours, qemus) = memory::channel()?;
        let prepared = cut::prepare(monitor, overlays, qemus.as_fd())?;
        drop(qemus);
        let give_up = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let capture = threads.spawn(|| memory::capture(self.ctx, ours, &dir, &give_up));
            let frozen = self.freeze(scope);
            if strategy == Strategy::StopFirst {
                self.guard.expect_resume(guest::FREEZE_WINDOW);
            }
            let cut = frozen.and_then(|frozen| {
                let streaming = prepared.cut(strategy, self.occasion.company(), self.ctx.cancel);
                let frozen = self.freezer().thaw(frozen, &mut scope.notes);
                let streaming = streaming?;
                if let Occasion::InGroup(turn) = self.occasion {
                    turn.resumed();
                }
                match frozen {
                    Ok(frozen) => Ok((streaming, frozen)),
                    Err(error) => {
                        streaming.abandon();
                        Err(error)
                    }
                }
            });
            self.guard.resumed();
            let (streaming, frozen) = cut.inspect_err(|_| give_up.store(true, Ordering::Relaxed))?;
            pass(Failpoint::SnapshotCut)?;
            let report = streaming.report();
            let proved = strategy != Strategy::AtQemusStop || pass(Failpoint::SnapshotProved).is_ok();
            if !(report.exact && proved) {
                give_up.store(true, Ordering::Relaxed);
                streaming.abandon();
                // What it captured is thrown away; how it ended does not matter.
                drop(capture.join());
                return Ok(None);
            }
            self.head_is_cut(machine).inspect_err(|_| give_up.store(true, Ordering::Relaxed))?;
            self.ctx.progress.step("writing memory");
            let saved = streaming.finish(self.ctx.cancel);
            if saved.is_err() {
                give_up.store(true, Ordering::Relaxed);
            }
            let captured: Result<Captured, Error> = capture.join().unwrap_or(Err(Error::Interrupted));
            let captured = outcome(saved, captured)?;
            pass(Failpoint::SnapshotCaptured)?;
            Ok(Some((report, captured.memory, frozen)))
        })
    }

    /// The disks are cut: the head names the fresh layers.
    fn head_is_cut(&self, machine: &mut Machine) -> Result<(), Error> {
        machine.head = undo::head_above(&machine.head, self.journal, &self.journal.before);
        machine.write_head()?;
        pass(Failpoint::SnapshotHeadWritten)?;
        Ok(())
    }

    fn qemu(&self) -> QemuUsed {
        qemu_used(self.process.instance.version, self.process.accelerator)
    }
}

/// Which of two failures is the cause: a sink that fails makes QEMU fail, and QEMU that fails, or is told to stop,
/// leaves the sink with half a stream.
fn outcome(saved: Result<(), Hypervisor>, captured: Result<Captured, Error>) -> Result<Captured, Error> {
    let consequence = |error: &Error| {
        error.kind() == Kind::Interrupted || matches!(error, Error::Capture(keyframe_memory::Error::Stream(_)))
    };
    match (saved, captured) {
        (Err(saved), Ok(_)) => Err(saved.into()),
        (Err(saved), Err(captured)) if consequence(&captured) => Err(saved.into()),
        (_, captured) => captured,
    }
}
