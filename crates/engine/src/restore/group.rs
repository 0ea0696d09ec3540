//! All machines of a group's point, as machines of their own on a network of their own: what they say to each other reaches
//! neither the originals nor anybody else.

use keyframe_hypervisor::Network;
use keyframe_hypervisor::definition::SegmentName;
use keyframe_repo::{Point, Repository};
use keyframe_types::{InstanceId, VmName};
use serde::Serialize;

use super::machine::{self, RestoredMachine};
use crate::backup::members::{self, GroupPoint};
use crate::context::Context;
use crate::error::Error;
use crate::remove::{self, Execution, Pinned};

/// What restored machines came to.
#[derive(Debug, Serialize)]
pub struct RestoredGroup {
    /// The point.
    pub point: String,
    /// What all of their cards are plugged into.
    pub network: String,
    /// Each of them.
    pub machines: Vec<RestoredMachine>,
}

/// Makes a machine `PREFIX-VM` of each in a group's point, stopped.
///
/// # Errors
/// As [`machine::restore`], and [`Error::NoMachineInPoint`] for a point of something else. No machine is left then.
pub fn restore(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    prefix: &VmName,
) -> Result<RestoredGroup, Error> {
    let told = format!("{}@{}", point.name, point.id.short());
    if GroupPoint::of(point).is_none() {
        return Err(Error::NoMachineInPoint { point: told, reason: "it is not of a group".to_owned() });
    }
    let members: Vec<(Point, VmName)> = members::of_machines(point.clone())
        .into_iter()
        .map(|member| {
            let name = VmName::new(format!("{prefix}-{}", member.name));
            Ok((member, name.map_err(|error| Error::BadRequest { what: error.to_string() })?))
        })
        .collect::<Result<_, Error>>()?;
    for (_, name) in &members {
        if ctx.home.vm(name).exists()? {
            return Err(Error::MachineExists(name.clone()));
        }
    }
    let network =
        Network::Private(SegmentName::new(&format!("{}-{}", point.id.short(), InstanceId::random().short()))?);
    let mut machines: Vec<RestoredMachine> = Vec::new();
    for (member, name) in &members {
        match machine::restore_on(ctx, repository, member, name, Some(&network)) {
            Ok(restored) => machines.push(restored),
            Err(error) => {
                for made in &machines {
                    // What stays is a machine that can be removed.
                    let _ = remove::remove(ctx, &made.name, Pinned::GoToo, Execution::CarryOut);
                }
                return Err(error);
            }
        }
    }
    Ok(RestoredGroup { point: told, network: network.to_string(), machines })
}
