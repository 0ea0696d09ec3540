//! What somebody may ask to be done to a machine: by whom it may be asked, what it is on the command line, and what that means.

use keyframe_policy::AskedFor;
use keyframe_types::{SnapshotName, TimeToLive, VmName};
use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::job::Action;

/// What somebody wants done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum Wanted {
    /// A snapshot.
    Snapshot {
        /// Why it is taken.
        note: Option<String>,
        /// Without memory.
        #[serde(default)]
        disk_only: bool,
        /// How long it lives.
        ttl: Option<String>,
        /// Kept whatever else is said.
        #[serde(default)]
        pin: bool,
    },
    /// A point in a repository.
    Backup {
        /// Which of its policy's.
        backup: String,
    },
    /// A proof that the latest point comes back.
    Drill {
        /// Of which backup of its policy.
        backup: String,
    },
    /// Back at a snapshot.
    Revert {
        /// Its name or id.
        snapshot: String,
        /// The present is not kept.
        #[serde(default)]
        discard: bool,
    },
    /// Further machines from a snapshot.
    Fork {
        /// Its name or id.
        snapshot: String,
        /// What they are called.
        name: String,
        /// How many.
        #[serde(default = "one")]
        count: u32,
    },
    /// Snapshots gone.
    Delete {
        /// Their names or ids.
        snapshots: Vec<String>,
    },
    /// A proof that a snapshot comes back.
    Test {
        /// Its name or id.
        snapshot: String,
    },
    /// The machine started.
    Start {},
    /// The machine stopped.
    Stop {
        /// As if its power were cut.
        #[serde(default)]
        force: bool,
    },
}

/// How many snapshots one request deletes: all of them are in the log.
const DELETED_MOST: usize = 20;

fn one() -> u32 {
    1
}

impl Wanted {
    /// Under which names a policy asks for a second person's approval of it.
    #[must_use]
    pub const fn needs(&self) -> &'static [AskedFor] {
        match self {
            Self::Revert { discard: true, .. } => &[AskedFor::Revert, AskedFor::Discard],
            Self::Revert { discard: false, .. } => &[AskedFor::Revert],
            Self::Fork { .. } => &[AskedFor::Fork],
            Self::Stop { .. } => &[AskedFor::Stop],
            Self::Delete { .. } => &[AskedFor::Delete],
            Self::Snapshot { .. } | Self::Backup { .. } | Self::Drill { .. } | Self::Test { .. } | Self::Start {} => {
                &[]
            }
        }
    }

    /// The snapshots that it names.
    pub fn snapshots(&mut self) -> &mut [String] {
        match self {
            Self::Revert { snapshot, .. } | Self::Fork { snapshot, .. } | Self::Test { snapshot } => {
                std::slice::from_mut(snapshot)
            }
            Self::Delete { snapshots } => snapshots,
            Self::Snapshot { .. } | Self::Backup { .. } | Self::Drill { .. } | Self::Start {} | Self::Stop { .. } => {
                &mut []
            }
        }
    }
}

/// What is to be run, by whom it may be, and what that means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// The machine that it is done to.
    pub machine: VmName,
    /// What is wanted.
    pub wanted: Wanted,
    /// Who may.
    pub role: Role,
    /// The command.
    pub action: Action,
    /// What it means; of a deletion, only the command itself can say.
    pub plan: Vec<String>,
}

/// A snapshot, by its name or id; nothing else gets onto a command line.
fn reference(vm: &VmName, snapshot: &str) -> Result<String, String> {
    let name = SnapshotName::new(snapshot).map_err(|error| error.to_string())?;
    Ok(format!("{vm}@{name}"))
}

impl Deed {
    /// What is wanted of a machine, as a command.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn of(vm: &VmName, wanted: Wanted) -> Result<Self, String> {
        let (role, kind, arguments, plan) = command(vm, &wanted)?;
        let backup = match &wanted {
            Wanted::Backup { backup } | Wanted::Drill { backup } => Some(backup.clone()),
            _ => None,
        };
        let action = Action { kind: kind.to_owned(), arguments, backup };
        Ok(Self { machine: vm.clone(), wanted, role, action, plan })
    }
}

type Command = (Role, &'static str, Vec<String>, Vec<String>);

fn command(vm: &VmName, wanted: &Wanted) -> Result<Command, String> {
    let name = vm.as_str();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    Ok(match wanted {
        Wanted::Snapshot { note, disk_only, ttl, pin } => {
            let mut arguments = words(&["snapshot", name]);
            if let Some(note) = note.as_ref().filter(|note| !note.is_empty()) {
                arguments.push(format!("--note={}", note.chars().take(500).collect::<String>()));
            }
            arguments.extend(disk_only.then(|| "--disk-only".to_owned()));
            if let Some(ttl) = ttl.as_ref().filter(|ttl| !ttl.is_empty()) {
                ttl.parse::<TimeToLive>().map_err(|error| error.to_string())?;
                arguments.push(format!("--ttl={ttl}"));
            }
            arguments.extend(pin.then(|| "--pin".to_owned()));
            let what = if *disk_only { "its disks" } else { "memory, devices and every disk" };
            let plan = format!("{name} is taken as it is: {what} of one instant; the guest works on");
            (Role::Operate, "snapshot", arguments, vec![plan])
        }
        Wanted::Backup { backup } => {
            let plan = format!("a point of {name} is made in the repository of backup {backup}");
            (Role::Operate, "backup", words(&["backup", name]), vec![plan])
        }
        Wanted::Drill { backup } => {
            let plan = format!(
                "the latest point of {name} in the repository of backup {backup} is restored into isolation, brought up, asked, and thrown away"
            );
            (Role::Operate, "drill", words(&["drill", name]), vec![plan])
        }
        Wanted::Test { snapshot } => {
            let reference = reference(vm, snapshot)?;
            let plan = format!("{reference} is brought up in isolation, asked, and thrown away");
            (Role::Operate, "test", words(&["test", &reference]), vec![plan])
        }
        Wanted::Revert { snapshot, discard } => {
            let reference = reference(vm, snapshot)?;
            let mut arguments = words(&["revert", &reference]);
            arguments.extend(discard.then(|| "--discard".to_owned()));
            let kept = if *discard {
                "its present is NOT kept: it is gone"
            } else {
                "its present is kept as a snapshot first"
            };
            let plan =
                vec![format!("{name} goes back to {reference}, with its programs as they ran then"), kept.to_owned()];
            (if *discard { Role::Admin } else { Role::Restore }, "revert", arguments, plan)
        }
        Wanted::Fork { snapshot, name: fork, count } => {
            let reference = reference(vm, snapshot)?;
            let fork = VmName::new(fork).map_err(|error| error.to_string())?;
            if !(1..=64).contains(count) {
                return Err("from 1 to 64 machines at once".to_owned());
            }
            let arguments = words(&["fork", &reference, fork.as_str(), "--count", &count.to_string()]);
            let plan = format!("{count} machine(s) {fork} continue from {reference}, beside {name}");
            (Role::Restore, "fork", arguments, vec![plan])
        }
        Wanted::Delete { snapshots } => {
            if !(1..=DELETED_MOST).contains(&snapshots.len()) {
                return Err(format!("from 1 to {DELETED_MOST} snapshots at once"));
            }
            let mut arguments = words(&["delete"]);
            for snapshot in snapshots {
                arguments.push(reference(vm, snapshot)?);
            }
            (Role::Admin, "delete", arguments, Vec::new())
        }
        Wanted::Start {} => (Role::Operate, "start", words(&["vm", "start", name]), vec![format!("{name} starts")]),
        Wanted::Stop { force } => {
            let mut arguments = words(&["vm", "stop", name]);
            arguments.extend(force.then(|| "--force".to_owned()));
            let how = if *force { "is switched off as a power cut would" } else { "is shut down by its power button" };
            (Role::Restore, "stop", arguments, vec![format!("{name} {how}")])
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deed(wanted: Value) -> Deed {
        Deed::of(&VmName::new("db").unwrap(), serde_json::from_value(wanted).unwrap()).unwrap()
    }

    /// One of each, and both ways where there are two.
    fn all() -> Vec<Deed> {
        let wanted = [
            json!({"action": "snapshot", "note": "x"}),
            json!({"action": "backup", "backup": "b"}),
            json!({"action": "drill", "backup": "b"}),
            json!({"action": "revert", "snapshot": "s"}),
            json!({"action": "revert", "snapshot": "s", "discard": true}),
            json!({"action": "fork", "snapshot": "s", "name": "f"}),
            json!({"action": "delete", "snapshots": ["s", "t"]}),
            json!({"action": "test", "snapshot": "s"}),
            json!({"action": "start"}),
            json!({"action": "stop"}),
            json!({"action": "stop", "force": true}),
        ];
        wanted.into_iter().map(deed).collect()
    }

    #[test]
    fn whatever_takes_more_than_to_operate_may_need_an_approval_and_nothing_else() {
        for deed in all() {
            assert_eq!(deed.role > Role::Operate, !deed.wanted.needs().is_empty(), "{deed:?}");
        }
        let named: std::collections::BTreeSet<AskedFor> =
            all().iter().flat_map(|deed| deed.wanted.needs().to_vec()).collect();
        assert_eq!(named.len(), AskedFor::ALL.len(), "each name stands for something: {named:?}");
    }

    #[test]
    fn every_snapshot_on_a_command_line_is_among_those_that_it_names() {
        for mut deed in all() {
            let on_it = deed.action.arguments.iter().filter(|word| word.contains('@')).count();
            assert_eq!(on_it, deed.wanted.snapshots().len(), "{deed:?}");
        }
    }
}
