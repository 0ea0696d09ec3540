//! Points of one machine, and points of a group of them.
//!
//! A group's point has its machines' images under `MACHINE/`, and one document for each machine. Apart, each machine of it is
//! a point as any other: of the machine's name, with the group point's id and tags. Whoever brings a machine back need not know
//! that it was stored with others, and what holds, locks or forgets a group's point does so for all of them.

use std::collections::BTreeMap;

use keyframe_repo::{Point, Repository, StoredImage};
use keyframe_types::{GroupCutId, VmName};
use serde::{Deserialize, Serialize};

use super::point::MachinePoint;
use crate::error::Error;

/// The document's form.
const SCHEMA: &str = "keyframe.group-point/1";

/// What a point says of the machines in it that were cut at one instant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupPoint {
    schema: String,
    /// What tells the instant from others.
    pub cut: GroupCutId,
    /// Its machines. Their disks' images are `MACHINE/disk0` and so on.
    pub machines: BTreeMap<VmName, MachinePoint>,
}

impl GroupPoint {
    pub(super) fn new(cut: GroupCutId, machines: BTreeMap<VmName, MachinePoint>) -> Self {
        Self { schema: SCHEMA.to_owned(), cut, machines }
    }

    /// The group in a point; `None` for a point of something else.
    #[must_use]
    pub fn of(point: &Point) -> Option<Self> {
        let schema = point.extra.get("schema").and_then(serde_json::Value::as_str);
        schema.filter(|schema| *schema == SCHEMA)?;
        serde_json::from_value(point.extra.clone()).ok()
    }
}

/// What a machine's images' labels begin with in a group's point.
pub(super) fn prefix(vm: &VmName) -> String {
    format!("{vm}/")
}

/// A group's point as one for each of its machines; any other as it is.
#[must_use]
pub fn of_machines(point: Point) -> Vec<Point> {
    let Some(group) = GroupPoint::of(&point) else { return vec![point] };
    let members = group.machines.into_iter().map(|(vm, machine)| {
        let own = |image: &StoredImage| {
            let label = image.label.strip_prefix(&prefix(&vm))?.to_owned();
            Some(StoredImage { label, ..image.clone() })
        };
        let mut of_machine = point.clone();
        of_machine.images = point.images.iter().filter_map(own).collect();
        of_machine.name = vm.to_string();
        // It was one a moment ago.
        of_machine.extra = serde_json::to_value(machine).unwrap_or_default();
        of_machine
    });
    members.collect()
}

/// [`of_machines`] of many, in their order.
pub fn apart(points: Vec<Point>) -> impl DoubleEndedIterator<Item = Point> {
    points.into_iter().flat_map(of_machines).collect::<Vec<_>>().into_iter()
}

/// The machine's point that a person means by `VM`, or `VM@T`: its own, or the machine in a group's. Where there is none, what has
/// that name: an image, say, or a group.
///
/// # Errors
/// [`Error::Repository`].
pub fn find(repository: &Repository, text: &str) -> Result<Point, Error> {
    let (points, _damaged) = repository.points()?;
    let groups: Vec<Point> = points.iter().filter(|point| GroupPoint::of(point).is_some()).cloned().collect();
    let machines = keyframe_repo::select_point(apart(points).collect(), text);
    // A group is found by its own name, if no machine is.
    Ok(machines.or_else(|none| keyframe_repo::select_point(groups, text).map_err(|_| none))?)
}
