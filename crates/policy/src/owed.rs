//! What one machine is owed, of all policies.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Serialize;

use crate::due::Timetable;
use crate::load::Place;
use crate::policy::{
    BackupPolicy, DrillPolicy, Group, Host, Limits, Notify, Objectives, Policy, PolicyName, SnapshotPolicy,
};
use crate::window::Windows;

/// All that the files of a host say.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Policies {
    /// By name.
    pub policies: BTreeMap<PolicyName, Policy>,
    /// By name.
    pub groups: BTreeMap<PolicyName, Group>,
    /// The host's settings.
    pub host: Host,
    /// Who is told.
    pub notify: Notify,
    /// The files they came from, in the order in which they were read.
    pub files: Vec<PathBuf>,
}

/// What one machine is owed: one policy, resolved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Owed {
    /// The machine.
    pub machine: String,
    /// By which policy.
    pub policy: PolicyName,
    /// Where that stands.
    pub place: Place,
    /// Others that choose the machine too, with the same priority: a mistake that somebody must hear of. The first by name counts
    /// meanwhile, because a machine with two policies is not to be without any.
    pub contradicted_by: Vec<PolicyName>,
    /// Others that choose it, with a lower priority.
    pub overrules: Vec<PolicyName>,
    /// The group that it is cut with.
    pub group: Option<PolicyName>,
    /// The longest from the first cut of its group's machines until the last one's.
    #[serde(skip)]
    pub cut_within: Option<Duration>,
    /// Snapshots.
    pub snapshot: Option<SnapshotPolicy>,
    /// Points in repositories.
    pub backups: Vec<BackupPolicy>,
    /// Proofs.
    pub drill: Option<DrillPolicy>,
    /// What is promised.
    pub objectives: Objectives,
    /// When work may be done.
    pub windows: Windows,
    /// How much at once.
    pub limits: Limits,
    /// The host's zone, whose days are told.
    #[serde(serialize_with = "crate::policy::as_zone")]
    pub time_zone: TimeZone,
}

impl Policies {
    /// The policies that choose a machine, the one that counts first.
    pub(crate) fn choosing(&self, name: &str, tags: &[String]) -> Vec<&Policy> {
        let mut choosing: Vec<&Policy> =
            self.policies.values().filter(|policy| policy.machines.chooses(name, tags)).collect();
        // Stable: by name within a priority.
        choosing.sort_by_key(|policy| std::cmp::Reverse(policy.priority));
        choosing
    }

    /// What a machine is owed; nothing when no policy chooses it.
    #[must_use]
    pub fn for_machine(&self, name: &str, tags: &[String]) -> Option<Owed> {
        let choosing = self.choosing(name, tags);
        let (policy, others) = choosing.split_first()?;
        let named = |equal: bool| {
            let others = others.iter().filter(|other| (other.priority == policy.priority) == equal);
            others.map(|other| other.name.clone()).collect()
        };
        let group = self.groups.values().find(|group| group.machines.chooses(name, tags));
        Some(Owed {
            machine: name.to_owned(),
            policy: policy.name.clone(),
            place: policy.place.clone(),
            contradicted_by: named(true),
            overrules: named(false),
            group: group.map(|group| group.name.clone()),
            cut_within: group.map(|group| group.within),
            snapshot: policy.snapshot.clone(),
            backups: policy.backups.clone(),
            drill: policy.drill.clone(),
            objectives: policy.objectives,
            windows: policy.windows.clone(),
            limits: policy.limits,
            time_zone: self.host.time_zone.clone(),
        })
    }
}

impl Owed {
    /// What its jitter is drawn by: its group's name, so that the group's machines are due at the same instant.
    #[must_use]
    pub fn seed(&self) -> &str {
        self.group.as_ref().map_or(&self.machine, PolicyName::as_str)
    }

    /// When its snapshots are due.
    #[must_use]
    pub fn snapshot_times(&self) -> Option<Timetable<'_>> {
        self.snapshot.as_ref().map(|snapshot| Timetable::new(&snapshot.schedule, snapshot.jitter, self.seed()))
    }

    /// When points of one of its backups are due.
    #[must_use]
    pub fn backup_times<'a>(&self, backup: &'a BackupPolicy) -> Timetable<'a> {
        Timetable::new(&backup.schedule, backup.jitter, &format!("{}/{}", self.seed(), backup.name))
    }

    /// When its drills are due.
    #[must_use]
    pub fn drill_times(&self) -> Option<Timetable<'_>> {
        self.drill
            .as_ref()
            .map(|drill| Timetable::new(&drill.schedule, drill.jitter, &format!("{}/drill", self.seed())))
    }
}
