//! Does a group really come back? Its machines are drilled at the same time, as [`point`](super::point) drills one: each is restored,
//! and on each way all of them are up together, on a network of their own, until the last has been asked.

use std::panic::resume_unwind;
use std::sync::Arc;

use keyframe_hypervisor::Network;
use keyframe_hypervisor::definition::SegmentName;
use keyframe_repo::{Point, Repository};
use keyframe_types::{InstanceId, VmName};
use serde::Serialize;

use super::point::{Company, DrillReport, DrillRequest, Ways, drill_in};
use super::record::Verdict;
use super::together::Together;
use crate::backup::members::{self, GroupPoint};
use crate::context::Context;
use crate::error::Error;

/// A group's drill.
#[derive(Debug, Serialize)]
pub struct GroupDrillReport {
    /// The point: the group's name, `@` and its id.
    pub point: String,
    /// Passed, when every machine's has.
    pub verdict: Verdict,
    /// Each machine's, with its own evidence.
    pub machines: Vec<DrillReport>,
}

/// Drills all machines of a group's point together.
///
/// # Errors
/// [`Error::NoMachineInPoint`] for a point of something else; whatever keeps one of them from being drilled.
pub fn drill(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    point: &Point,
    request: &DrillRequest,
) -> Result<GroupDrillReport, Error> {
    let told = format!("{}@{}", point.name, point.id.short());
    let Some(group) = GroupPoint::of(point) else {
        return Err(Error::NoMachineInPoint { point: told, reason: "it is not of a group".to_owned() });
    };
    let has_memory = |(_, machine): (_, &crate::backup::MachinePoint)| machine.snapshot.memory.is_some();
    if request.ways == Ways::Resume && !group.machines.iter().any(has_memory) {
        return Err(Error::BadRequest { what: format!("{told} has no running state to go on with") });
    }
    let network = Network::Private(SegmentName::new(&format!("drill-{}", InstanceId::random()))?);
    let names: Vec<VmName> = group.machines.into_keys().collect();
    let meetings = Together::of(names.len(), &network).into_iter().zip(Together::of(names.len(), &network));
    let reports: Vec<Result<DrillReport, Error>> = std::thread::scope(|threads| {
        let ways = members::of_machines(point.clone()).into_iter().zip(meetings).map(|(member, (resume, cold))| {
            let with = names.iter().filter(|name| name.as_str() != member.name).cloned().collect();
            let company = Company { resume: Some(resume), cold: Some(cold), with };
            threads.spawn(move || drill_in(ctx, repository, &member, request, company))
        });
        let ways: Vec<_> = ways.collect();
        ways.into_iter().map(|way| way.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let machines = reports.into_iter().collect::<Result<Vec<_>, _>>()?;
    let passed = machines.iter().all(|report| report.record.verdict == Verdict::Passed);
    Ok(GroupDrillReport {
        point: format!("{}@{}", point.name, point.id),
        verdict: if passed { Verdict::Passed } else { Verdict::Failed },
        machines,
    })
}
