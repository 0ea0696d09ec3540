//! A snapshot of a machine that is off: its layers are frozen as they lie, and it gets fresh ones.

use keyframe_hypervisor::Qemu;
use keyframe_hypervisor::host::choose_accelerator;

use super::{Freeze, Occasion, Plan, SnapshotReport, SnapshotRequest, Taken, commit, qemu_used};
use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::Machine;
use crate::state::head::Head;
use crate::state::journal::{Journal, SnapshotJournal};
use crate::state::manifest::{Consistency, Cut, StateAtCut};
use crate::state::{durable, sealed};

pub(super) fn take(
    ctx: &Context<'_>,
    machine: &mut Machine,
    request: &SnapshotRequest,
    plan: Plan,
    occasion: Occasion<'_>,
) -> Result<SnapshotReport, Error> {
    if request.freeze == Freeze::Must {
        return Err(Error::FreezeFailed { reason: "the machine is off".to_owned() });
    }
    let before = Head { process: None, ..machine.head.clone() };
    Machine::check_layers(ctx.home, before.chains())?;
    let overlays = layers::planned_overlays(ctx.home, &machine.dir, before.chains())?;
    let journal = SnapshotJournal {
        id: plan.id.clone(),
        before: before.clone(),
        overlays: overlays.clone(),
        was_running: false,
        freezes: false,
    };
    sealed::write(&machine.dir.journal(), &Journal::Snapshot(Box::new(journal.clone())))?;
    pass(Failpoint::SnapshotJournaled)?;
    let report = carry_out(ctx, machine, (request, &plan, occasion), before, &journal);
    report.or_else(|error| {
        super::undo::recover(ctx, machine, &journal)?;
        super::after_failure(machine, &plan.id, error)
    })
}

fn carry_out(
    ctx: &Context<'_>,
    machine: &mut Machine,
    (request, plan, occasion): (&SnapshotRequest, &Plan, Occasion<'_>),
    mut before: Head,
    journal: &SnapshotJournal,
) -> Result<SnapshotReport, Error> {
    layers::create_tops(ctx.home, &journal.overlays)?;
    pass(Failpoint::SnapshotOverlaysCreated)?;
    layers::freeze_tops(ctx.home, before.chains_mut())?;
    let accelerator = choose_accelerator(machine.definition.accel)?;
    let mut notes = Vec::new();
    if !request.disk_only {
        notes.push("the machine is off: there is no memory to keep".to_owned());
    }
    let consistency = if before.clean_shutdown { Consistency::Filesystem } else { Consistency::Crash };
    let qemu = qemu_used(Qemu::find()?.version()?, accelerator);
    let taken = Taken { notes, ..Taken::disks(Cut::Still, StateAtCut::Stopped, consistency, qemu) };
    if let Occasion::InGroup(turn) = occasion {
        turn.reach_all()?;
    }
    let report = commit(machine, request, plan, &machine.definition, &before, &taken)?;
    pass(Failpoint::SnapshotCommitted)?;
    super::undo::finish(ctx, machine, journal, &before)?;
    durable::remove_file(&machine.dir.journal())?;
    Ok(report)
}
