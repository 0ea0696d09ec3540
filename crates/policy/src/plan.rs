//! The days to come: what would be made, what would go, what would be there.

use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;

use crate::owed::Owed;
use crate::policy::PolicyName;

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A snapshot is taken.
    Snapshot,
    /// The snapshot of that time goes.
    SnapshotGoes(Timestamp),
    /// A point is made.
    Point(PolicyName),
    /// The point of that time goes.
    PointGoes(PolicyName, Timestamp),
    /// A drill is held.
    Drill,
}

/// Something that happens at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
}

/// One day of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Day {
    /// Which, in the host's zone.
    pub date: Date,
    /// What happens in it, in order.
    pub events: Vec<Event>,
    /// The snapshots there at its end, by the time they were taken.
    pub snapshots: Vec<Timestamp>,
    /// The points there at its end, for each backup.
    pub points: Vec<(PolicyName, Vec<Timestamp>)>,
}

/// What would exist when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Its days.
    pub days: Vec<Day>,
}

impl Plan {
    /// Plays forward, from nothing, what a machine is owed.
    #[must_use]
    pub fn of(_owed: &Owed, _from: Timestamp, _days: u32) -> Self {
        todo!()
    }
}
