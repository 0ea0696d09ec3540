//! What a job's steps are on the command line. The daemon does nothing that a person could not type.

use std::time::Duration;

use jiff::Timestamp;
use keyframe_policy::{BackupPolicy, Consistency, DrillPolicy, DrillTarget, Keep, Owed, SnapshotPolicy};
use keyframe_types::{Kept, Retention};

use crate::fleet::{SeenSnapshot, Snapshots};
use crate::job::{Duty, Job, Request, Step};

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// What stands behind `keyframe`.
    pub arguments: Vec<String>,
    /// What is in its environment besides the daemon's own.
    pub environment: Vec<(String, String)>,
}

/// What a step comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Todo {
    /// This is to be run.
    Run(Line),
    /// There is nothing to do.
    Nothing,
    /// It cannot be: the policy does not say so any more.
    Withdrawn(String),
}

/// What steps are made from.
#[derive(Debug, Clone, Copy)]
pub struct Means<'a> {
    /// What the machine is owed now, of several the first; nothing when no policy chooses it.
    pub owed: Option<&'a Owed>,
    /// The machines' snapshots.
    pub snapshots: &'a Snapshots,
    /// The time.
    pub now: Timestamp,
    /// Bytes per second that this job may send, by the host's limit.
    pub share: Option<u64>,
    /// Whether the repository was not pruned for a day.
    pub prune_due: bool,
    /// The head of the log of who did what: what it is told in a point cannot be changed afterwards.
    pub anchor: Option<&'a str>,
}

/// Whose snapshots a policy takes: only those it lets go again.
#[must_use]
pub fn owner(policy: &str) -> String {
    format!("policy/{policy}")
}

/// What the present step of a job is.
#[must_use]
pub fn todo(job: &Job, means: Means<'_>) -> Todo {
    let Some(step) = job.steps.first() else { return Todo::Nothing };
    let (policy, duty) = match &job.request {
        Request::Asked(action) => return asked(action.arguments.clone(), action.backup.as_deref(), means),
        Request::Owed { policy, duty } => (policy, duty),
    };
    let Some(owed) = means.owed.filter(|owed| owed.policy.as_str() == policy) else {
        return Todo::Withdrawn(format!("policy {policy} does not choose {} any more", job.subject()));
    };
    match duty {
        Duty::Snapshot => match &owed.snapshot {
            Some(snapshot) => of_snapshot(job, *step, policy, snapshot, means),
            None => Todo::Withdrawn(format!("policy {policy} asks for no snapshots any more")),
        },
        Duty::Backup(name) => match owed.backups.iter().find(|backup| backup.name.as_str() == name) {
            Some(backup) => of_backup(job, *step, policy, backup, means),
            None => Todo::Withdrawn(format!("policy {policy} has no backup {name} any more")),
        },
        Duty::Drill => match (&owed.drill, step) {
            (Some(drill), Step::Drill(place)) => of_drill(job, *place, owed, drill, means),
            _ => Todo::Withdrawn(format!("policy {policy} asks for no drills any more")),
        },
    }
}

fn run(arguments: impl IntoIterator<Item = impl Into<String>>) -> Todo {
    Todo::Run(Line { arguments: arguments.into_iter().map(Into::into).collect(), environment: Vec::new() })
}

fn asked(mut arguments: Vec<String>, backup: Option<&str>, means: Means<'_>) -> Todo {
    if let Some(name) = backup {
        let found = means.owed.and_then(|owed| owed.backups.iter().find(|backup| backup.name.as_str() == name));
        let Some(found) = found else { return Todo::Withdrawn(format!("there is no backup {name} in its policy")) };
        // The latest of that backup, as of what is owed.
        if let ("drill", Some(owed)) = (arguments[0].as_str(), means.owed) {
            arguments[1] = format!("{}@{}", arguments[1], tag(owed.policy.as_str(), found));
        }
        arguments.extend(place(found, means.share));
    }
    run(arguments)
}

fn of_snapshot(job: &Job, step: Step, policy: &str, snapshot: &SnapshotPolicy, means: Means<'_>) -> Todo {
    match step {
        Step::Main => {
            if taken(job, means.snapshots).is_some() {
                return Todo::Nothing;
            }
            let mut arguments = words(["snapshot"]);
            arguments.extend(job.machines().map(str::to_owned));
            arguments.extend(window(job, means));
            arguments.extend(words(["--name", &free_name(job, means.snapshots), "--owner", &owner(policy)]));
            arguments.extend(words(["--note", &format!("owed by policy {policy}")]));
            if !snapshot.memory {
                arguments.push("--disk-only".to_owned());
            }
            if let Some(ttl) = snapshot.ttl {
                arguments.extend(words(["--ttl", &format!("{}s", ttl.duration().as_secs())]));
            }
            if let Some(pause) = snapshot.max_pause {
                arguments.extend(words(["--max-pause", &format!("{}ms", pause.as_millis())]));
                arguments.extend(snapshot.or_disk_only.then(|| "--or-disk-only".to_owned()));
            }
            arguments.extend(freeze(snapshot.consistency));
            run(arguments)
        }
        Step::Thin if job.incomplete => Todo::Nothing,
        Step::Thin => {
            let Keep::By(rule) = &snapshot.keep else { return Todo::Nothing };
            let going = job.machines().flat_map(|vm| {
                let made = job.seen_from(vm).made;
                let going =
                    not_kept(rule, policy, of(vm, means.snapshots), made.as_ref().map(|made| &*made.id), means.now);
                going.into_iter().map(move |id| format!("{vm}@{id}"))
            });
            some("delete", going.collect())
        }
        Step::Expire => {
            let over = |one: &SeenSnapshot| one.expires.is_some_and(|at| at <= means.now) && !one.held;
            let has_some = |vm: &&str| of(vm, means.snapshots).iter().any(over);
            some("expire", job.machines().filter(has_some).map(str::to_owned).collect())
        }
        Step::Look | Step::Lock | Step::Prune | Step::Drill(_) => Todo::Nothing,
    }
}

fn of<'a>(vm: &str, snapshots: &'a Snapshots) -> &'a [SeenSnapshot] {
    snapshots.get(vm).map_or(&[], Vec::as_slice)
}

/// How close the cuts of a group's machines must be.
fn window(job: &Job, means: Means<'_>) -> Vec<String> {
    let within = means.owed.filter(|_| job.together.is_some()).and_then(|owed| owed.cut_within);
    within.map_or_else(Vec::new, |within| words(["--within", &format!("{}ms", within.as_millis())]))
}

/// A command on all of these; nothing to do where there are none.
fn some(command: &str, all: Vec<String>) -> Todo {
    if all.is_empty() { Todo::Nothing } else { run(std::iter::once(command.to_owned()).chain(all)) }
}

/// The snapshots, by machine, that an attempt took of which nobody saw the end: of all machines at one instant.
#[must_use]
pub fn taken<'a>(job: &Job, snapshots: &'a Snapshots) -> Option<Vec<(String, &'a SeenSnapshot)>> {
    job.snapshot_names().find_map(|name| {
        let of_name = |vm: &str| Some((vm.to_owned(), of(vm, snapshots).iter().find(|one| one.name == name)?));
        job.machines().map(of_name).collect()
    })
}

/// A name that none of the machines has a snapshot of.
fn free_name(job: &Job, snapshots: &Snapshots) -> String {
    let is_free = |name: &String| job.machines().all(|vm| of(vm, snapshots).iter().all(|one| one.name != *name));
    job.snapshot_names().find(is_free).or_else(|| job.snapshot_names().last()).unwrap_or_default()
}

/// Of the snapshots that a policy took, those that its rule does not keep; never the one that was just made. Those of other policies
/// are none of its business, whichever chose the machine before. Those of the future, which a wrong clock made, neither go nor count:
/// were they the latest, every further one would go at once.
#[must_use]
pub fn not_kept(
    rule: &Retention,
    policy: &str,
    snapshots: &[SeenSnapshot],
    made: Option<&str>,
    now: Timestamp,
) -> Vec<String> {
    let owner = owner(policy);
    let counts = |one: &&SeenSnapshot| one.owner == owner && one.created <= now;
    let mut history: Vec<&SeenSnapshot> = snapshots.iter().filter(counts).collect();
    history.sort_by_key(|one| one.created);
    let kept: Vec<Kept<'_>> = history.iter().map(|one| Kept { created: one.created.into(), tags: &[] }).collect();
    let reasons = rule.reasons(&kept);
    let goes = |one: &SeenSnapshot| !one.held && made != Some(&one.id);
    let going = history.iter().zip(reasons).filter(|(one, reasons)| reasons.is_empty() && goes(one));
    going.map(|(one, _)| one.id.clone()).collect()
}

fn of_backup(job: &Job, step: Step, policy: &str, backup: &BackupPolicy, means: Means<'_>) -> Todo {
    let name = job.point_name();
    let place = place(backup, means.share);
    let mut arguments = match step {
        Step::Look => words(["points", &job.machine]),
        Step::Main => {
            let mut note = format!("owed by policy {policy}");
            if let Some(anchor) = means.anchor {
                note.push_str(&format!("; audit {anchor}"));
            }
            let mut arguments = words(["backup"]);
            arguments.extend(job.machines().map(str::to_owned));
            if job.together.is_some() {
                arguments.extend(words(["--group", name]));
                arguments.extend(window(job, means));
            }
            arguments.extend(words(["--tag", &job.point_tag(), "--note", &note]));
            arguments.extend(words(["--tag", &tag(policy, backup)]));
            arguments.extend(backup.memory.then(|| "--memory".to_owned()));
            arguments.extend(freeze(backup.consistency));
            if backup.audit_percent > 0 {
                arguments.extend(words(["--audit", &format!("{}%", backup.audit_percent)]));
            }
            for tag in &backup.tags {
                arguments.extend(words(["--tag", tag]));
            }
            arguments
        }
        Step::Lock => match &job.made {
            Some(made) if backup.lock_days > 0 => {
                words(["lock", &format!("{name}@{}", made.id), "--for", &format!("{}d", backup.lock_days)])
            }
            _ => return Todo::Nothing,
        },
        // What is missing in it may be in those that would go.
        Step::Thin if job.incomplete => return Todo::Nothing,
        Step::Thin => match &backup.keep {
            Keep::All => return Todo::Nothing,
            Keep::By(rule) => {
                let mut arguments = words(["repo", "forget", "--name", name, "--tag", &tag(policy, backup)]);
                arguments.extend(keeping(rule));
                arguments
            }
        },
        Step::Prune if means.prune_due => words(["repo", "prune"]),
        Step::Prune | Step::Expire | Step::Drill(_) => return Todo::Nothing,
    };
    arguments.extend(place);
    run(arguments)
}

/// Whose points those of a policy's backup are: only those it lets go again. Another host may have a machine of that name.
fn tag(policy: &str, backup: &BackupPolicy) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // Tags are short and plain words, which these three together may not be.
    let hash = blake3::hash(format!("{policy}\n{}\n{host}", backup.name).as_bytes()).to_hex();
    format!("policy-{}", &hash[..32])
}

fn of_drill(job: &Job, number: u8, owed: &Owed, drill: &DrillPolicy, means: Means<'_>) -> Todo {
    let Some(target) = drill.what.get(usize::from(number)) else { return Todo::Nothing };
    let mut arguments = match target {
        DrillTarget::Snapshot => {
            let latest = |vm: &str| Some(format!("{vm}@{}", of(vm, means.snapshots).last()?.id));
            let all: Vec<String> = job.machines().filter_map(latest).collect();
            if all.is_empty() {
                return Todo::Withdrawn(format!("{} has no snapshot that could be tested", job.subject()));
            }
            std::iter::once("test".to_owned()).chain(all).collect()
        }
        DrillTarget::Point(name) => match owed.backups.iter().find(|backup| backup.name == *name) {
            Some(backup) => {
                // Not the latest of that name: that may be another host's, another backup's, or made by hand.
                let latest = format!("{}@{}", job.point_name(), tag(owed.policy.as_str(), backup));
                let mut arguments = words(["drill", &latest]);
                arguments.extend(place(backup, means.share));
                arguments
            }
            None => return Todo::Withdrawn(format!("there is no backup {name} in the policy any more")),
        },
    };
    arguments.extend(asking(drill));
    run(arguments)
}

/// What a policy's drills ask.
#[must_use]
pub fn asking(drill: &DrillPolicy) -> Vec<String> {
    let mut arguments = words(["--within", &format!("{}ms", drill.within.as_millis())]);
    for probe in &drill.probes {
        arguments.extend(words(["--probe", probe]));
    }
    arguments
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn freeze(consistency: Consistency) -> Option<String> {
    match consistency {
        Consistency::Crash => None,
        Consistency::FreezeIfPossible => Some("--freeze=try".to_owned()),
        Consistency::Freeze => Some("--freeze=must".to_owned()),
    }
}

/// The repository of a backup, and how fast.
#[must_use]
pub fn place(backup: &BackupPolicy, share: Option<u64>) -> Vec<String> {
    let mut arguments = words(["--repo", &backup.repository]);
    if let Some(key) = &backup.key_file {
        arguments.extend(words(["--key-file", &key.to_string()]));
    }
    let own = backup.bandwidth.map(keyframe_types::ByteLen::bytes);
    if let Some(limit) = own.into_iter().chain(share).min() {
        arguments.extend(words(["--bandwidth", &limit.to_string()]));
    }
    arguments
}

fn keeping(rule: &Retention) -> Vec<String> {
    let kinds = [
        ("--keep-last", rule.last),
        ("--keep-hourly", rule.hourly),
        ("--keep-daily", rule.daily),
        ("--keep-weekly", rule.weekly),
        ("--keep-monthly", rule.monthly),
        ("--keep-yearly", rule.yearly),
    ];
    kinds.iter().filter(|(_, n)| *n > 0).flat_map(|(name, n)| words([name, &n.to_string()])).collect()
}

/// How long until a job that failed is tried again, by how often it was.
#[must_use]
pub fn backoff(attempt: u32) -> Duration {
    const MINUTES: [u64; 4] = [1, 5, 15, 60];
    let place = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX).min(MINUTES.len() - 1);
    Duration::from_secs(MINUTES[place] * 60)
}

#[cfg(test)]
mod tests;
