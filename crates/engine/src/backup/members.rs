//! Points of one machine, and points of a group of them.
//!
//! A group's point has its machines' images under `MACHINE/`, and one document for each machine. Apart, each machine of it is
//! a point as any other: of the machine's name, with the group point's id and tags. Whoever brings a machine back need not know
//! that it was stored with others, and what holds, locks or forgets a group's point does so for all of them.

use std::collections::{BTreeMap, BTreeSet};

use keyframe_repo::ids::ObjectId;
use keyframe_repo::{Point, Repository, StoredImage};
use keyframe_types::{ByteLen, GroupCutId, VmName};
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

/// Whether nothing of a machine could not be read for a point. What is no machine's is whole.
#[must_use]
pub fn is_whole(point: &Point) -> bool {
    let lacks = |point: &Point| MachinePoint::of(point).is_ok_and(|machine| machine.unreadable_bytes() > ByteLen::ZERO);
    !of_machines(point.clone()).iter().any(lacks)
}

/// Of groups' points, by age, those that are the last of a machine which none of the group's later ones has.
#[must_use]
pub fn last_of_a_machine(points: &[Point]) -> BTreeSet<ObjectId> {
    let groups = points.iter().filter_map(|point| {
        let machines = GroupPoint::of(point)?.machines.into_keys().collect();
        Some((point.id, point.name.as_str(), machines))
    });
    last_of(groups.collect::<Vec<_>>())
}

fn last_of(points: Vec<(ObjectId, &str, Vec<VmName>)>) -> BTreeSet<ObjectId> {
    let (mut groups, mut machines, mut last) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (id, name, of_point) in points.into_iter().rev() {
        let is_latest = groups.insert(name);
        let fresh = of_point.into_iter().filter(|machine| machines.insert((name, machine.clone()))).count();
        if fresh > 0 && !is_latest {
            last.insert(id);
        }
    }
    last
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_point_of_a_machine_that_left_its_group_is_known() {
        let id = |number: u8| ObjectId::from_bytes([number; 16]);
        let point = |number: u8, name: &'static str, machines: &[&str]| {
            (id(number), name, machines.iter().map(|machine| VmName::new(*machine).unwrap()).collect())
        };
        let points = vec![
            point(1, "shop", &["db", "mail", "web"]),
            point(2, "shop", &["db", "mail", "web"]),
            point(3, "desk", &["mail", "db"]),
            point(4, "shop", &["db", "web"]),
            point(5, "shop", &["db", "web"]),
        ];
        assert_eq!(last_of(points), BTreeSet::from([id(2)]), "mail's; the desk's latest is its latest anyway");
    }
}
