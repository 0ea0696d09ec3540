//! Taking back a revert that was not committed, finishing one that was, and ending the present.
//!
//! A revert is committed by the head that names the new process. Yet as long as the present is parked, even
//! a committed revert can be taken back: that is what happens when its memory image turns out to be damaged.
//!
//! Keeping the parked present, in the order that survives a crash at every step:
//!
//! ```text
//!   memory written, synced ─▶ journal says so ─▶ process ends ─▶ layers fingerprinted ─▶ manifest ─▶ journal gone
//!   └── taken back ────────────────────────────┘└── only forward: manifest made from journal and files ──────┘
//! ```
//! The process ends before the manifest because what it writes last, on closing its disks, is part of them.

use std::os::fd::AsFd as _;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use keyframe_hypervisor::cut::{self, Alone, Strategy as CutStrategy};
use keyframe_hypervisor::load;
use keyframe_qmp::commands::machine::Quit;

use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::{Machine, State, kill_strays, state_of};
use crate::memory;
use crate::pages;
use crate::pause;
use crate::recover::{Patience, Recovered};
use crate::snapshot::{self, Plan, SnapshotReport, SnapshotRequest, Taken, qemu_used};
use crate::snapshots;
use crate::space;
use crate::state::head::{Head, Process};
use crate::state::journal::{Journal, RevertJournal};
use crate::state::manifest::{Consistency, Cut, Memory, StateAtCut};
use crate::state::tree::Trees;
use crate::state::{durable, sealed};

use super::{QUIT_PATIENCE, unpark};

/// Finishes or takes back the revert that `journal` tells of, and removes the journal.
pub(crate) fn recover(
    ctx: &Context<'_>,
    machine: &mut Machine,
    journal: RevertJournal,
    patience: Patience,
) -> Result<Recovered, Error> {
    let mut journal = journal;
    // A living present beside a new process that has died goes on.
    if !committed(machine, &journal) || (machine.process().is_none() && present_alive(&journal)) {
        return back_to_present(ctx, machine, &journal).map(|()| Recovered::Done);
    }
    if let Some(process) = machine.process().cloned() {
        pages::ensure(ctx, &process.instance)?;
        let mut monitor = machine.monitor()?;
        if journal.runs && state_of(&mut monitor) == State::Paused {
            load::run(&mut monitor)?;
        }
        drop(monitor);
        if patience == Patience::Moment {
            return Ok(Recovered::Later);
        }
        if let Err(error) = pages::wait(ctx, &process.instance) {
            if present_alive(&journal) {
                return back_to_present(ctx, machine, &journal).map(|()| Recovered::Done);
            }
            ctx.progress.note(&error.to_string());
        }
    }
    match keep_present(ctx, machine, &mut journal) {
        // The present would block every command on the machine; it goes on instead.
        Err(error @ Error::NoSpace { .. }) if present_alive(&journal) => {
            ctx.progress.note(&format!("the interrupted revert is taken back, its present cannot be kept: {error}"));
            back_to_present(ctx, machine, &journal).map(|()| Recovered::Done)
        }
        Err(error) => Err(error),
        Ok(_) => finish(ctx, machine, &journal).map(|()| Recovered::Done),
    }
}

/// Ends the parked present and removes what only it needed.
pub(crate) fn finish(ctx: &Context<'_>, machine: &Machine, journal: &RevertJournal) -> Result<(), Error> {
    end_present(machine, journal)?;
    pass(Failpoint::RevertOldGone)?;
    layers::drop_unused_if_possible(ctx, &machine.dir);
    durable::remove_file(&machine.dir.journal())
}

/// Writes the journal durably.
pub(crate) fn write_journal(machine: &Machine, journal: &RevertJournal) -> Result<(), Error> {
    sealed::write(&machine.dir.journal(), &Journal::Revert(Box::new(journal.clone())))
}

fn committed(machine: &Machine, journal: &RevertJournal) -> bool {
    is_after(&machine.head, journal)
}

fn is_after(head: &Head, journal: &RevertJournal) -> bool {
    Head { process: None, ..head.clone() } == journal.after
}

/// Whether the past is all that runs: it is on record, and the process of the present has ended. A machine that was off can
/// be off again.
pub(crate) fn only_forward(machine: &Machine, journal: &RevertJournal) -> bool {
    let on_record = Trees::of(machine.dir.home()).head(&machine.dir);
    let committed =
        on_record.is_ok_and(|head| head.is_some_and(|head| head.process.is_some() && is_after(&head, journal)));
    journal.had_process && committed && !present_alive(journal)
}

fn present(journal: &RevertJournal) -> Option<&Process> {
    journal.before.process.as_ref()
}

fn present_alive(journal: &RevertJournal) -> bool {
    present(journal).is_some_and(|process| process.instance.is_alive())
}

/// Ends the new process, if there is one, and lets the present run on.
pub(crate) fn back_to_present(ctx: &Context<'_>, machine: &mut Machine, journal: &RevertJournal) -> Result<(), Error> {
    machine.head = journal.before.clone();
    let known: Vec<_> = present(journal).into_iter().map(|process| &process.instance).collect();
    kill_strays(&machine.dir, &known)?;
    // Nothing that can fail comes before the guest.
    if journal.was_running {
        unpark(machine);
    }
    let on_record = Trees::of(machine.dir.home()).head(&machine.dir)?;
    if on_record.as_ref() != Some(&machine.head) {
        machine.write_head()?;
    }
    if let Some(keep) = &journal.keep
        && snapshots::read(&machine.dir, keep)?.is_none()
    {
        durable::remove_dir(machine.dir.snapshot(keep).root())?;
    }
    let chains: Vec<_> = journal.after.chains().cloned().collect();
    layers::remove_tops(ctx.home, &chains)?;
    durable::remove_file(&machine.dir.journal())
}

/// Keeps the parked present as a snapshot, if that was planned. One whose process died before its memory was written is
/// kept without.
pub(crate) fn keep_present(
    ctx: &Context<'_>,
    machine: &mut Machine,
    journal: &mut RevertJournal,
) -> Result<Option<SnapshotReport>, Error> {
    let Some(id) = journal.keep.clone() else { return Ok(None) };
    if snapshots::read(&machine.dir, &id)?.is_some() {
        return Ok(None);
    }
    let Some(process) = present(journal).cloned() else { return Ok(None) };
    ctx.progress.step("keeping the present");
    let request = SnapshotRequest { note: journal.keep_note.clone(), ..SnapshotRequest::of(machine.name().clone()) };
    let plan = Plan { id, ..Plan::new(machine, &request, Instant::now())? };
    if journal.kept_memory.is_none() && process.instance.is_alive() {
        journal.kept_memory = Some(save_parked(ctx, machine, &process, &plan)?);
        write_journal(machine, journal)?;
        pass(Failpoint::RevertPresentCaptured)?;
    }
    let mut taken = without_memory(&process);
    if let Some(memory) = journal.kept_memory.clone() {
        // The present was running when it was called back; that it stands still is our doing.
        let state = if journal.was_running { StateAtCut::Running } else { StateAtCut::Paused };
        taken = Taken { consistency: Consistency::RunningState, state, memory: Some(memory), ..taken };
    } else {
        taken.notes.push("the present's process died before its memory was saved: only its disks are kept".to_owned());
        durable::remove_dir(machine.dir.snapshot(&plan.id).root())?;
    }
    let mut frozen = Head { process: None, ..journal.before.clone() };
    end_present(machine, journal)?;
    pass(Failpoint::RevertPresentEnded)?;
    layers::freeze_tops(ctx.home, frozen.chains_mut())?;
    let definition = process.definition.as_ref().unwrap_or(&machine.definition);
    snapshot::commit(machine, &request, &plan, definition, &frozen, &taken).map(Some)
}

/// Saves the memory of the parked process, which stands still and stays so.
fn save_parked(ctx: &Context<'_>, machine: &Machine, process: &Process, plan: &Plan) -> Result<Memory, Error> {
    space::check(machine.dir.root(), pause::resident(process))?;
    let dir = machine.dir.snapshot(&plan.id);
    durable::remove_dir(dir.root())?;
    durable::create_private_dir(dir.root())?;
    let (ours, qemus) = memory::channel()?;
    let mut monitor = process.instance.monitor(keyframe_hypervisor::Monitor::Engine)?;
    let prepared = cut::prepare(&mut monitor, &[], qemus.as_fd())?;
    drop(qemus);
    let never = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let capture = threads.spawn(|| memory::capture(ctx, ours, &dir, &never));
        let saved = prepared.cut(CutStrategy::Still, &Alone, &never).and_then(|streaming| streaming.finish(&never));
        let captured = capture.join().unwrap_or(Err(Error::Interrupted));
        saved?;
        captured.map(|captured| captured.memory)
    })
}

fn without_memory(process: &Process) -> Taken {
    let qemu = qemu_used(process.instance.version, process.accelerator);
    Taken::disks(Cut::Still, StateAtCut::Stopped, Consistency::Crash, qemu)
}

/// Ends the parked process: lets it close its disks, kills it when it does not.
fn end_present(machine: &Machine, journal: &RevertJournal) -> Result<(), Error> {
    let Some(process) = present(journal) else { return Ok(()) };
    if machine.head.process.as_ref().is_some_and(|now| now.instance == process.instance) {
        return Ok(());
    }
    end(process)
}

/// Ends the machine's process before another takes its place.
pub(crate) fn quit(machine: &Machine) -> Result<(), Error> {
    machine.process().map_or(Ok(()), end)
}

fn end(process: &Process) -> Result<(), Error> {
    if let Ok(mut monitor) = process.instance.monitor(keyframe_hypervisor::Monitor::Engine) {
        // A process that hangs does not answer; it is killed below.
        let _ = monitor.call(&Quit {});
    }
    if process.instance.process.wait_gone(QUIT_PATIENCE).is_err() {
        process.instance.kill()?;
    }
    process.instance.clean_up();
    Ok(())
}
