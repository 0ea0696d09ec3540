//! Whether a machine has what it is owed: a word, and why.

use jiff::Timestamp;
use keyframe_policy::Owed;
use serde::Serialize;

use crate::fleet::{Fleet, Seen};
use crate::hands::Hands;
use crate::job::{Duty, Job, JobId, State};
use crate::scheduler::Scheduler;

/// The word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It has all that is promised, as far as was measured.
    Protected,
    /// Something would be lost, or is not proved.
    AtRisk,
    /// Nothing would bring it back.
    Unprotected,
}

/// How much the reason for a verdict weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// To be seen to.
    Warning,
    /// To be seen to now.
    Critical,
}

/// Why a machine is not protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Tells it from others of the same machine, over time.
    pub id: &'static str,
    /// How much it weighs.
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// An objective, and what was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Objective {
    /// Promised, in seconds.
    pub objective_s: Option<u64>,
    /// Measured, in seconds.
    pub actual_s: Option<u64>,
    /// Whether that is kept; nothing where nothing is promised or measured.
    pub met: Option<bool>,
}

impl Objective {
    fn of(objective: Option<keyframe_types::TimeToLive>, actual_s: Option<u64>) -> Self {
        let objective_s = objective.map(|span| span.duration().as_secs());
        Self { objective_s, actual_s, met: objective_s.zip(actual_s).map(|(objective, actual)| actual <= objective) }
    }
}

/// The latest point of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastPoint {
    /// The instant that it holds.
    pub at: Timestamp,
    /// Of which backup.
    pub backup: String,
    /// Where.
    pub repository: String,
    /// Its id.
    pub id: String,
}

/// The latest drill of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastDrill {
    /// When.
    pub at: Timestamp,
    /// Whether it came back.
    pub passed: bool,
    /// The name of its evidence.
    pub id: String,
    /// How long it took to come back, in milliseconds.
    pub took_ms: Option<u64>,
}

/// When each duty is due next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct NextTimes {
    /// A snapshot.
    pub snapshot: Option<Timestamp>,
    /// The first of its backups.
    pub backup: Option<Timestamp>,
    /// A drill.
    pub drill: Option<Timestamp>,
}

/// A machine in a line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// The policy that counts.
    pub policy: Option<String>,
    /// The group it belongs to.
    pub group: Option<String>,
    /// The verdict.
    pub verdict: Verdict,
    /// Why, in plain sentences.
    pub reasons: Vec<String>,
    /// The same, with what to do.
    #[serde(skip)]
    pub why: Vec<Reason>,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// What they take.
    pub snapshots_bytes: u64,
    /// The instant of the latest.
    pub last_snapshot: Option<Timestamp>,
    /// Its latest point.
    pub last_point: Option<LastPoint>,
    /// Its latest drill.
    pub last_drill: Option<LastDrill>,
    /// The most work that may be lost.
    pub rpo: Objective,
    /// The longest until it runs again.
    pub rto: Objective,
    /// What comes next.
    pub next: NextTimes,
    /// What is at work on it.
    pub running_job: Option<JobId>,
}

/// All machines, by name.
pub fn rows<F: Fleet, H: Hands>(scheduler: &Scheduler<F, H>, now: Timestamp) -> Vec<Row> {
    let machines = scheduler.machines().clone();
    machines.iter().map(|(name, seen)| row(scheduler, name, seen, now)).collect()
}

fn row<F: Fleet, H: Hands>(scheduler: &Scheduler<F, H>, name: &str, seen: &Seen, now: Timestamp) -> Row {
    let owed = scheduler.owed().get(name);
    let achieved = |key: &str| scheduler.achieved().get(&(name.to_owned(), key.to_owned()));
    let last_point = owed.into_iter().flat_map(|owed| &owed.backups).filter_map(|backup| {
        let made = achieved(&Duty::Backup(backup.name.to_string()).key())?.made.as_ref()?;
        let (backup, repository) = (backup.name.to_string(), backup.repository.clone());
        Some(LastPoint { at: made.state_of, backup, repository, id: made.id.clone() })
    });
    let last_point = last_point.max_by_key(|point| point.at);
    let last_drill = achieved("drill").and_then(drilled);
    let age = |at: Timestamp| u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0);
    let saved = match owed {
        Some(owed) if !owed.backups.is_empty() => last_point.as_ref().map(|point| point.at),
        _ => seen.last_snapshot,
    };
    let objectives = owed.map(|owed| owed.objectives).unwrap_or_default();
    let rpo = Objective::of(objectives.rpo, saved.map(age));
    let back_after = last_drill.as_ref().filter(|drill| drill.passed).and_then(|drill| drill.took_ms);
    let rto = Objective::of(objectives.rto, back_after.map(|ms| ms.div_ceil(1000)));
    let troubles: Vec<&Job> =
        scheduler.troubles().iter().filter(|(key, _)| key.0 == name).map(|(_, job)| job).collect();
    let backups = || owed.into_iter().flat_map(|owed| &owed.backups).map(|backup| backup.name.to_string());
    let without_point: Vec<String> =
        backups().filter(|name| achieved(&Duty::Backup(name.clone()).key()).is_none()).collect();
    let incomplete =
        backups().filter_map(|name| achieved(&Duty::Backup(name).key())).find(|job| job.state == State::Incomplete);
    let facts = Facts {
        name,
        now,
        seen,
        owed,
        without_point: &without_point,
        incomplete,
        last_point: last_point.as_ref(),
        last_drill: last_drill.as_ref(),
        rpo,
        rto,
        troubles: &troubles,
    };
    let why = facts.reasons();
    let next = |duty: &Duty| scheduler.next_of(name, duty);
    let backups = owed.into_iter().flat_map(|owed| &owed.backups);
    let job = scheduler.jobs().find(|job| job.machine == name && job.state == State::Running);
    Row {
        name: name.to_owned(),
        state: seen.state.clone(),
        tags: seen.tags.clone(),
        policy: owed.map(|owed| owed.policy.to_string()),
        group: owed.and_then(|owed| owed.group.as_ref()).map(ToString::to_string),
        verdict: facts.verdict(&why),
        reasons: why.iter().map(|reason| reason.what.clone()).collect(),
        why,
        snapshots: seen.snapshots,
        snapshots_bytes: seen.snapshots_bytes,
        last_snapshot: seen.last_snapshot,
        last_point,
        last_drill,
        rpo,
        rto,
        next: NextTimes {
            snapshot: next(&Duty::Snapshot),
            backup: backups.filter_map(|backup| next(&Duty::Backup(backup.name.to_string()))).min(),
            drill: next(&Duty::Drill),
        },
        running_job: job.map(|job| job.id.clone()),
    }
}

fn drilled(job: &Job) -> Option<LastDrill> {
    let made = job.made.as_ref()?;
    Some(LastDrill { at: job.ended?, passed: !job.refuted, id: made.id.clone(), took_ms: made.took_ms })
}

/// What a verdict is made from.
struct Facts<'a> {
    name: &'a str,
    now: Timestamp,
    seen: &'a Seen,
    owed: Option<&'a Owed>,
    last_point: Option<&'a LastPoint>,
    /// Backups of which there is no point.
    without_point: &'a [String],
    /// The job of a latest point in which something is missing.
    incomplete: Option<&'a Job>,
    last_drill: Option<&'a LastDrill>,
    rpo: Objective,
    rto: Objective,
    troubles: &'a [&'a Job],
}

impl Facts<'_> {
    fn verdict(&self, why: &[Reason]) -> Verdict {
        let nothing = self.last_point.is_none() && self.seen.last_snapshot.is_none();
        match why.iter().map(|reason| reason.severity).max() {
            None => Verdict::Protected,
            Some(_) if self.owed.is_none() || self.seen.state == "unknown" || nothing => Verdict::Unprotected,
            Some(_) => Verdict::AtRisk,
        }
    }

    fn reasons(&self) -> Vec<Reason> {
        let name = self.name;
        let mut all = Vec::new();
        let mut say = |id, severity, what: String, advice: String| all.push(Reason { id, severity, what, advice });
        if let Some(trouble) = &self.seen.trouble {
            say("unreadable", Severity::Critical, format!("it cannot be read: {trouble}"), "keyframe fsck".to_owned());
        }
        if self.seen.state == "crashed" {
            let advice = format!("see what QEMU said with `keyframe vm show {name}`, then `keyframe vm start {name}`");
            say("crashed", Severity::Critical, "its QEMU ended, and nobody asked it to".to_owned(), advice);
        }
        let Some(owed) = self.owed else {
            let advice = "name it, or one of its tags, in a policy".to_owned();
            say("no-policy", Severity::Critical, "no policy chooses it: nothing is done for it".to_owned(), advice);
            return all;
        };
        for other in &owed.contradicted_by {
            let what = format!("policy {other} chooses it with the same priority as {}", owed.policy);
            say("contradicted", Severity::Warning, what, "give one of the two a higher priority".to_owned());
        }
        match (owed.backups.is_empty(), self.without_point.first()) {
            (true, _) => {
                let advice = format!("add a [[policy.{}.backup]]", owed.policy);
                say("no-backup", Severity::Warning, "all that would bring it back is on this host".to_owned(), advice);
            }
            (false, Some(name)) => {
                let what = format!("backup {name} has no point of it yet");
                say("no-point", Severity::Warning, what, "wait for the first one, or see `keyframe status`".to_owned());
            }
            (false, None) => {}
        }
        if let Some(at) = self.seen.last_snapshot.filter(|at| *at > self.now) {
            let what = format!("its latest snapshot is of the future ({at}): the clock was wrong then, or is now");
            say("clock", Severity::Warning, what, "set the clock; delete what was made meanwhile by hand".to_owned());
        }
        if let Some(job) = self.incomplete {
            let why = job.what.as_deref().unwrap_or("nobody knows what");
            let what = format!("something is missing in its latest point: {why}");
            say("incomplete", Severity::Warning, what, format!("see HOME/serve/jobs/{} for all that it said", job.id));
        }
        if let Objective { met: Some(false), objective_s: Some(objective), actual_s: Some(actual) } = self.rpo {
            let what = format!("what is saved is {} old, and {} are promised", span(actual), span(objective));
            say("rpo", Severity::Critical, what, "see why its backups are late, or promise less".to_owned());
        }
        if let Objective { met: Some(false), objective_s: Some(objective), actual_s: Some(actual) } = self.rto {
            let what = format!("it took {} to come back, and {} are promised", span(actual), span(objective));
            say("rto", Severity::Warning, what, "see the drill's evidence for where the time goes".to_owned());
        }
        match (&owed.drill, self.last_drill) {
            (Some(_), Some(drill)) if !drill.passed => {
                let advice = "look at its evidence: the console's last lines are in it".to_owned();
                say("drill", Severity::Critical, "the last drill failed: it may not come back".to_owned(), advice);
            }
            (Some(_), None) => {
                say(
                    "no-drill",
                    Severity::Warning,
                    "nothing has proved yet that it comes back".to_owned(),
                    format!("`keyframe drill {name}`"),
                );
            }
            _ => {}
        }
        for job in self.troubles.iter().filter(|job| !job.refuted) {
            let id = match job.kind() {
                "snapshot" => "snapshot-failed",
                "backup" => "backup-failed",
                _ => "drill-failed",
            };
            let of = job.backup().map(|backup| format!(" {backup}")).unwrap_or_default();
            let why = job.what.as_deref().unwrap_or("nobody knows why");
            let advice = format!("see HOME/serve/jobs/{} for all that it said", job.id);
            say(id, Severity::Critical, format!("its {}{of} was given up: {why}", job.kind()), advice);
        }
        all
    }
}

/// A span as people read it.
#[must_use]
pub fn span(seconds: u64) -> String {
    match seconds {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7200 => format!("{} min", seconds / 60),
        seconds if seconds < 172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}
