//! Snapshots of several machines at one instant: all frozen and stopped, all cut, all resumed.
//!
//! Each machine's is a snapshot as any other, taken by a thread of its own, that names the group; the [`gate`](super::gate)
//! keeps them together. For a moment all guests stand still at once, so nothing that one of them sent behind its cut can have
//! reached another before that one's: what they said to each other fits together in whatever is brought back.
//!
//! Either every machine has its snapshot in the end, or none has.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use keyframe_hypervisor::Error as Hypervisor;
use keyframe_types::{GroupCutId, SnapshotId, SnapshotName, VmName};
use serde::Serialize;

use super::gate::Gate;
use super::{Occasion, SnapshotReport, SnapshotRequest, free_name, ms, take_locked};
use crate::context::Context;
use crate::delete::{self, DeleteOptions};
use crate::error::Error;
use crate::machine::Machine;
use crate::sharing;
use crate::snapshots;
use crate::state::lock::Lock;
use crate::state::manifest::GroupCut;

/// What snapshots of several machines shall be.
#[derive(Debug, Clone)]
pub struct GroupRequest {
    /// Which machines; at least two.
    pub machines: Vec<VmName>,
    /// What each machine's snapshot shall be. Its machine is of no account.
    pub each: SnapshotRequest,
    /// The longest from before the first guest is stopped until the last one's disks are cut.
    pub within: Duration,
}

/// What [`GroupRequest::within`] is where nobody says anything else.
pub const WITHIN: Duration = Duration::from_secs(10);

/// What the snapshots came to.
#[derive(Debug, Clone, Serialize)]
pub struct GroupReport {
    /// What tells this instant from others.
    pub group: GroupCutId,
    /// The name that all of them have.
    pub name: SnapshotName,
    /// From before the first guest was stopped until the last one ran again, in milliseconds; `None` where none was stopped.
    pub window_ms: Option<f64>,
    /// Each machine's, by name.
    pub machines: Vec<MemberReport>,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
}

/// What one machine's came to.
#[derive(Debug, Clone, Serialize)]
pub struct MemberReport {
    /// The machine.
    pub vm: VmName,
    /// Its snapshot.
    #[serde(flatten)]
    pub snapshot: SnapshotReport,
}

/// Takes snapshots of several machines at one instant.
///
/// # Errors
/// [`Error::InGroup`] with what kept one of them from it; [`Error::BadRequest`] for fewer than two. No machine has a snapshot
/// then.
pub fn take(ctx: &Context<'_>, request: &GroupRequest) -> Result<GroupReport, Error> {
    let begun = Instant::now();
    let names: BTreeSet<&VmName> = request.machines.iter().collect();
    if names.len() < 2 || names.len() != request.machines.len() {
        return Err(Error::BadRequest { what: "a group is of two or more different machines".to_owned() });
    }
    let group = GroupCut { id: GroupCutId::random(), machines: names.into_iter().cloned().collect() };
    // In the order of their names: two groups that share machines do not wait for each other in turn.
    let mut members = Vec::new();
    for vm in &group.machines {
        members.push(Machine::lock(ctx, vm, &format!("snapshot {vm} in a group")).map_err(in_group(vm))?);
    }
    let name = match &request.each.name {
        Some(name) => name.clone(),
        None => free_in_all(&members)?,
    };
    let gate = Gate::new(members.len(), request.within);
    let taken: Vec<Result<SnapshotReport, Error>> = std::thread::scope(|threads| {
        let ways = members.iter_mut().enumerate().map(|(number, (_, machine))| {
            let each = SnapshotRequest {
                vm: machine.name().clone(),
                name: Some(name.clone()),
                group: Some(group.clone()),
                ..request.each.clone()
            };
            let turn = gate.turn(number, ctx.cancel);
            threads.spawn(move || take_locked(ctx, machine, &each, Occasion::InGroup(&turn), begun))
        });
        let ways: Vec<_> = ways.collect();
        ways.into_iter().map(|way| way.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let mut reports = all_or_none(ctx, members, taken, &gate)?;
    for member in &mut reports {
        member.snapshot.total_ms = ms(begun.elapsed());
    }
    Ok(GroupReport {
        group: group.id,
        name,
        window_ms: gate.window().map(ms),
        machines: reports,
        total_ms: ms(begun.elapsed()),
    })
}

fn in_group(vm: &VmName) -> impl FnOnce(Error) -> Error {
    let vm = vm.clone();
    |source| Error::InGroup { vm, source: Box::new(source) }
}

/// A name made from the time that none of them has.
fn free_in_all(members: &[(Lock, Machine)]) -> Result<SnapshotName, Error> {
    let mut taken = BTreeSet::new();
    for (_, machine) in members {
        taken.extend(snapshots::scan(&machine.dir)?.0.into_iter().map(|manifest| manifest.name.to_string()));
    }
    free_name(|name| taken.contains(name))
}

/// Every machine's report, or, where a snapshot could not be committed when others were, those deleted again and the reason.
fn all_or_none(
    ctx: &Context<'_>,
    members: Vec<(Lock, Machine)>,
    taken: Vec<Result<SnapshotReport, Error>>,
    gate: &Gate,
) -> Result<Vec<MemberReport>, Error> {
    if taken.iter().all(Result::is_ok) {
        let reports = members.iter().zip(taken).map(|((_, machine), report)| {
            let mut snapshot = report?;
            snapshot.shares(sharing::share_if_possible(ctx, machine, &snapshot.id));
            Ok(MemberReport { vm: machine.name().clone(), snapshot })
        });
        return reports.collect();
    }
    let (mut committed, mut why) = (Vec::new(), None);
    for ((lock, machine), result) in members.into_iter().zip(taken) {
        let vm = machine.name().clone();
        drop(lock);
        match result {
            Ok(report) => committed.push((vm, report.id)),
            // Of the many that failed, the one that others failed for.
            Err(error) if why.is_none() || is_of_others(&why) => why = Some((vm, error)),
            Err(_) => {}
        }
    }
    let Some((vm, source)) = why else { return Err(Error::Interrupted) };
    for (vm, id) in committed {
        if let Err(error) = delete_again(ctx, &vm, &id) {
            ctx.progress.note(&format!("its snapshot {vm}@{} stays without its group: {}", id.short(), error.told()));
        }
    }
    let told_by_others = matches!(&source, Error::GroupGivenUp | Error::Hypervisor(Hypervisor::Company));
    let source = gate.reason().filter(|_| told_by_others).unwrap_or(source);
    match source {
        Error::Interrupted => Err(Error::Interrupted),
        source => Err(in_group(&vm)(source)),
    }
}

fn is_of_others(why: &Option<(VmName, Error)>) -> bool {
    matches!(why, Some((_, Error::GroupGivenUp | Error::Hypervisor(Hypervisor::Company))))
}

fn delete_again(ctx: &Context<'_>, vm: &VmName, id: &SnapshotId) -> Result<(), Error> {
    let selector = id
        .to_string()
        .parse()
        .map_err(|error: keyframe_types::RefError| Error::BadRequest { what: error.to_string() })?;
    delete::delete(ctx, vm, std::slice::from_ref(&selector), DeleteOptions::default()).map(drop)
}
