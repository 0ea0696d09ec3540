//! Taking back a revert that was not committed, finishing one that was, and ending the present.
//!
//! A revert is committed by the head that names the new process. Yet as long as the present is parked, even
//! a committed revert can be taken back: that is what happens when its memory image turns out to be damaged.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use keyframe_hypervisor::cut::{self, Strategy as CutStrategy};
use keyframe_hypervisor::load;
use keyframe_qmp::commands::machine::Quit;
use keyframe_types::Timestamp;

use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::{Machine, State, kill_strays, state_of};
use crate::memory;
use crate::pages;
use crate::pause;
use crate::recover::{Patience, Recovered};
use crate::snapshot::{self, Plan, SnapshotReport, SnapshotRequest, Taken, host_cpu};
use crate::snapshots;
use crate::space;
use crate::state::durable;
use crate::state::head::{Head, Process};
use crate::state::journal::RevertJournal;
use crate::state::manifest::{Consistency, Cut, QemuUsed, StateAtCut};

use super::{QUIT_PATIENCE, unpark};

/// Finishes or takes back the revert that `journal` tells of, and removes the journal.
pub(crate) fn recover(
    ctx: &Context<'_>,
    machine: &mut Machine,
    journal: RevertJournal,
    patience: Patience,
) -> Result<Recovered, Error> {
    if !committed(machine, &journal) {
        return back_to_present(ctx, machine, &journal).map(|()| Recovered::Done);
    }
    if let Some(process) = machine.process().cloned() {
        pages::ensure(ctx, &process.instance)?;
        let mut monitor = machine.monitor()?;
        if state_of(&mut monitor) == State::Paused {
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
    keep_present(ctx, machine, &journal)?;
    finish(ctx, machine, &journal).map(|()| Recovered::Done)
}

/// Ends the parked present and removes what only it needed.
pub(crate) fn finish(ctx: &Context<'_>, machine: &Machine, journal: &RevertJournal) -> Result<(), Error> {
    end_present(machine, journal)?;
    pass(Failpoint::RevertOldGone);
    layers::drop_unused(ctx.home, &machine.dir)?;
    durable::remove_file(&machine.dir.journal())
}

fn committed(machine: &Machine, journal: &RevertJournal) -> bool {
    Head { process: None, ..machine.head.clone() } == journal.after
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
    machine.write_head()?;
    if journal.was_running {
        unpark(machine);
    }
    if let Some(keep) = &journal.keep {
        durable::remove_dir(machine.dir.snapshot(keep).root())?;
    }
    let chains: Vec<_> = journal.after.chains().cloned().collect();
    layers::remove_tops(ctx.home, &chains)?;
    durable::remove_file(&machine.dir.journal())
}

/// Keeps the parked present as a snapshot, if that was planned. One whose process is gone is kept without memory.
pub(crate) fn keep_present(
    ctx: &Context<'_>,
    machine: &mut Machine,
    journal: &RevertJournal,
) -> Result<Option<SnapshotReport>, Error> {
    let Some(id) = &journal.keep else { return Ok(None) };
    if snapshots::read(&machine.dir, id)?.is_some() {
        return Ok(None);
    }
    ctx.progress.step("keeping the present");
    let request = SnapshotRequest { note: journal.keep_note.clone(), ..SnapshotRequest::of(machine.name().clone()) };
    let plan = Plan { id: id.clone(), ..Plan::new(machine, &request, Instant::now())? };
    let taken = match present(journal) {
        Some(process) if process.instance.is_alive() => parked(ctx, machine, journal, process, &plan)?,
        Some(process) => without_memory(process),
        None => return Ok(None),
    };
    let mut frozen = Head { process: None, ..journal.before.clone() };
    end_present(machine, journal)?;
    layers::freeze_tops(ctx.home, frozen.chains_mut())?;
    snapshot::commit(machine, &request, &plan, &frozen, &taken).map(Some)
}

/// Saves the memory of the parked process, which stands still and stays so.
fn parked(
    ctx: &Context<'_>,
    machine: &Machine,
    journal: &RevertJournal,
    process: &Process,
    plan: &Plan,
) -> Result<Taken, Error> {
    space::check(machine.dir.root(), pause::resident(process))?;
    let dir = machine.dir.snapshot(&plan.id);
    durable::remove_dir(dir.root())?;
    durable::create_private_dir(dir.root())?;
    let pair = UnixStream::pair();
    let (ours, qemus) =
        pair.map_err(|source| Error::Io { action: "make a pair of", path: "sockets".into(), source })?;
    let mut monitor = process.instance.monitor(keyframe_hypervisor::Monitor::Engine)?;
    let prepared = cut::prepare(&mut monitor, &[], qemus.as_fd())?;
    drop(qemus);
    let never = AtomicBool::new(false);
    let memory = std::thread::scope(|threads| {
        let capture = threads.spawn(|| memory::capture(ctx, ours.into(), &dir, &never));
        let saved = prepared.cut(CutStrategy::Still, &never).and_then(|streaming| streaming.finish(&never));
        let captured = capture.join().unwrap_or(Err(Error::Interrupted));
        saved?;
        captured.map(|captured| captured.memory)
    })?;
    // The present was running when it was called back; that it stands still is our doing.
    let state = if journal.was_running { StateAtCut::Running } else { StateAtCut::Paused };
    let memory = Some(memory);
    Ok(Taken { consistency: Consistency::RunningState, state, memory, ..without_memory(process) })
}

fn without_memory(process: &Process) -> Taken {
    let accelerator = process.accelerator;
    Taken {
        consistency: Consistency::Crash,
        cut: Cut::Still,
        state: StateAtCut::Stopped,
        created: Timestamp::now(),
        pause: Duration::ZERO,
        stall: None,
        frozen: None,
        memory: None,
        qemu: QemuUsed { version: process.instance.version, accelerator, host_cpu: host_cpu(accelerator) },
        notes: Vec::new(),
    }
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
