//! A backup of several machines: one instant, one point.
//!
//! ```text
//!   snapshots of one instant ─▶ each held, stored under its name ─▶ point (the commit) ─▶ each let go, layers merged
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_repo::{Point, Repository, Run, Totals};
use keyframe_types::{ByteLen, GroupCutId, SnapshotSelector, Timestamp, VmName};
use serde::Serialize;

use super::frozen::{self, Held};
use super::members::{GroupPoint, prefix};
use super::point::{ChangedBy, MachinePoint};
use super::storing::{Making, Stored, Storing};
use crate::context::Context;
use crate::courtesy::aside;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::machine::Machine;
use crate::snapshot::Freeze;
use crate::snapshot::group::{self, GroupReport, GroupRequest};
use crate::state::manifest::Consistency;

/// What to store.
#[derive(Debug, Clone)]
pub struct GroupBackupRequest {
    /// What the group is called: the history of its points.
    pub name: VmName,
    /// Its machines; at least two.
    pub machines: Vec<VmName>,
    /// With their running states.
    pub memory: bool,
    /// Whether to freeze file systems around the instant.
    pub freeze: Freeze,
    /// So many percent of what change tracking calls unchanged is read and compared; 0 for none.
    pub audit_percent: u8,
    /// The longest from before the first guest is stopped until the last one's disks are cut.
    pub within: Duration,
    /// Words to find the point by.
    pub tags: Vec<String>,
    /// Why it is made.
    pub note: Option<String>,
}

/// What a backup of a group came to.
#[derive(Debug, Serialize)]
pub struct GroupBackupReport {
    /// The point's id.
    pub id: String,
    /// Its history: the group's name.
    pub name: VmName,
    /// What tells its instant from others.
    pub group: GroupCutId,
    /// From before the first guest was stopped until the last one ran again, in milliseconds; `None` where none was stopped.
    pub window_ms: Option<f64>,
    /// The instant that it holds.
    pub state_of: Timestamp,
    /// Its machines.
    pub machines: Vec<StoredMember>,
    /// What storing took.
    pub totals: Totals,
    /// What was read again of what change tracking called unchanged; `None` without an audit.
    pub audited_bytes: Option<ByteLen>,
    /// What could not be read of disks, and is zeros in the point.
    pub unreadable_bytes: ByteLen,
    /// Nothing is missing in the point, as far as was looked.
    pub whole: bool,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
    /// What a person should know.
    pub notes: Vec<String>,
    /// The point is there, and something is missing in it, or behind it did not work.
    pub incomplete: bool,
}

/// One machine in the point.
#[derive(Debug, Serialize)]
pub struct StoredMember {
    /// The machine.
    pub vm: VmName,
    /// What was achieved.
    pub consistency: Consistency,
    /// Whether its running state is in it.
    pub memory: bool,
    /// Its pause, in milliseconds.
    pub pause_ms: f64,
    /// How it was known what had changed, for each disk.
    pub changed_by: BTreeMap<String, ChangedBy>,
}

/// Stores machines as they are at one instant, as one point.
///
/// # Errors
/// [`Error::BadRequest`] for a group that is called as a machine is; whatever fails before the point is there: there is none
/// then, and the machines are as they were.
pub fn backup(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    request: &GroupBackupRequest,
) -> Result<GroupBackupReport, Error> {
    let begun = Instant::now();
    if request.machines.contains(&request.name) || ctx.home.vm(&request.name).exists()? {
        let what =
            format!("{} is a machine's name: points of the group could not be told from the machine's", request.name);
        return Err(Error::BadRequest { what });
    }
    let previous = aside(|| previous(repository, request))?;
    ctx.progress.step("taking snapshots");
    let each = frozen::snapshot_for(&request.name, request.freeze, request.memory)?;
    let taken = group::take(ctx, &GroupRequest { machines: request.machines.clone(), each, within: request.within })?;
    let stored = pass(Failpoint::BackupSnapshotTaken)
        .and_then(|()| store(ctx, repository, (request, &taken), previous.as_ref()))
        .and_then(|stored| pass(Failpoint::BackupPointMade).map(|()| stored));
    let (mut notes, all_gone) = let_go(ctx, &taken);
    let Stored { point, document, audited, found } = match stored {
        Ok(stored) => stored,
        Err(error) => {
            // There is no report for them.
            notes.iter().for_each(|note| ctx.progress.note(note));
            return Err(error);
        }
    };
    let unreadable: u64 = document.machines.values().map(|machine| machine.unreadable_bytes().bytes()).sum();
    let whole = found.is_empty() && unreadable == 0;
    notes.extend(found);
    if unreadable > 0 {
        let unreadable = ByteLen::from_bytes(unreadable);
        notes.push(format!("{unreadable} of their disks could not be read, and are zeros in the point"));
    }
    Ok(GroupBackupReport {
        id: point.id.to_string(),
        name: request.name.clone(),
        state_of: document.machines.values().map(|machine| machine.snapshot.created).min().unwrap_or(point.created),
        group: document.cut,
        window_ms: taken.window_ms,
        machines: document.machines.iter().map(|(vm, machine)| StoredMember::of(vm, machine)).collect(),
        totals: point.totals,
        audited_bytes: audited,
        unreadable_bytes: ByteLen::from_bytes(unreadable),
        whole,
        total_ms: crate::snapshot::ms(begun.elapsed()),
        notes,
        incomplete: !all_gone || !whole,
    })
}

impl StoredMember {
    fn of(vm: &VmName, machine: &MachinePoint) -> Self {
        Self {
            vm: vm.clone(),
            consistency: machine.snapshot.consistency,
            memory: machine.snapshot.memory.is_some(),
            pause_ms: machine.snapshot.cost.pause_ms,
            changed_by: machine.disks.iter().map(|disk| (disk.disk.to_string(), disk.changed_by)).collect(),
        }
    }
}

/// The group's latest point that has one of its machines. Not its machines' own: a point shares trees with one other, and that has to stay meanwhile.
fn previous(repository: &Repository, request: &GroupBackupRequest) -> Result<Option<(Point, GroupPoint)>, Error> {
    let (points, _damaged) = repository.points()?;
    let of_name = points.into_iter().rev().filter(|point| point.name == request.name.as_str());
    let mut groups = of_name.filter_map(|point| GroupPoint::of(&point).map(|group| (point, group)));
    Ok(groups.find(|(_, group)| group.machines.keys().any(|vm| request.machines.contains(vm))))
}

fn selector(taken: &GroupReport, vm: &VmName) -> Result<SnapshotSelector, Error> {
    let member = taken.machines.iter().find(|member| member.vm == *vm);
    frozen::by_id(&member.ok_or_else(|| Error::NoMachine(vm.clone()))?.snapshot.id)
}

/// Stores the snapshots, all of them held meanwhile.
fn store(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    (request, taken): (&GroupBackupRequest, &GroupReport),
    previous: Option<&(Point, GroupPoint)>,
) -> Result<Stored<GroupPoint>, Error> {
    let mut members: Vec<(VmName, Option<&MachinePoint>, Held)> = Vec::new();
    for member in &taken.machines {
        let uuid = Machine::open(ctx.home, &member.vm)?.definition.uuid;
        let before = previous.and_then(|(_, group)| group.machines.get(&member.vm));
        // Another machine that once had its name shares nothing by place.
        let before = before.filter(|before| before.snapshot.definition.uuid == uuid);
        let held = frozen::hold(ctx, &member.vm, &selector(taken, &member.vm)?, before)?;
        members.push((member.vm.clone(), before, held));
    }
    pass(Failpoint::BackupHeld)?;
    aside(|| {
        let making =
            Making { name: request.name.to_string(), audit_percent: request.audit_percent, tags: request.tags.clone() };
        let run = Run { progress: ctx.progress, cancel: ctx.cancel };
        let mut storing = Storing::begin(repository, making, previous.map(|(point, _)| point), run)?;
        let mut machines = BTreeMap::new();
        for (vm, before, held) in members {
            // One that is off has no running state.
            let memory = request.memory && held.manifest.memory.is_some();
            storing.machine(prefix(&vm), before);
            machines.insert(vm, frozen::store_held(ctx, &mut storing, held, memory, request.note.clone())?);
        }
        storing.commit(ctx, GroupPoint::new(taken.group.clone(), machines), Failpoint::BackupStored)
    })
}

/// Deletes the snapshots that were taken. Gives what a person should know, and whether all are gone and merged.
fn let_go(ctx: &Context<'_>, taken: &GroupReport) -> (Vec<String>, bool) {
    let (mut notes, mut all_gone) = (Vec::new(), true);
    for member in &taken.machines {
        notes.extend(member.snapshot.notes.iter().map(|note| format!("{}: {note}", member.vm)));
        let mut of_member = Vec::new();
        let gone =
            selector(taken, &member.vm).and_then(|selector| frozen::let_go(ctx, &member.vm, &selector, &mut of_member));
        notes.extend(of_member.into_iter().map(|note| format!("{}: {note}", member.vm)));
        match gone {
            Ok(merged) => all_gone &= merged,
            Err(error) => {
                all_gone = false;
                notes.push(format!(
                    "the snapshot of {0} that was taken for it stays until `keyframe expire {0}`, within a day: {1}",
                    member.vm,
                    error.told()
                ));
            }
        }
    }
    (notes, all_gone)
}
