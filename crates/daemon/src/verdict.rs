//! Whether a machine has what it is owed: a word, and why.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use keyframe_policy::Owed;
use keyframe_types::text::span;
use serde::{Deserialize, Serialize};

use crate::fleet::{Fleet, Seen};
use crate::hands::Hands;
use crate::job::{Duty, Job, JobId, State};
use crate::scheduler::{self, Scheduler};

/// How long nobody may have looked at machines until what is known of them is told as old.
pub const STALE_AFTER: Duration = Duration::from_secs(60);
/// How much later than its next time something must be before it is overdue: as long as from one time to the next, within these.
const OVERDUE_AFTER: std::ops::RangeInclusive<Duration> = Duration::from_secs(600)..=Duration::from_secs(86_400);
/// How old the latest drill may be where no schedule says so, and a time to come back is promised.
const DRILL_GOOD_FOR: Duration = Duration::from_secs(100 * 86_400);

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    pub id: String,
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
    /// How far it is from being kept: what is missed first, then what is nearest to it.
    fn weight(&self) -> (bool, u64, u64) {
        let actual = self.actual_s.unwrap_or(0);
        let part = self.objective_s.map_or(0, |objective| actual.saturating_mul(1000) / objective.max(1));
        (self.met == Some(false), part, actual)
    }

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
    /// The most work that may be lost; of several backups the one that is furthest from its promise.
    pub rpo: Objective,
    /// The same of each backup: when only its repository is left.
    pub rpo_by_backup: BTreeMap<String, Objective>,
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
    let age = |at: Timestamp| age(at, now);
    let objectives = owed.map(|owed| owed.objectives).unwrap_or_default();
    let of_backup = |backup: &keyframe_policy::BackupPolicy| {
        let made = achieved(&Duty::Backup(backup.name.to_string()).key()).and_then(|job| job.made.as_ref());
        let promised = backup.rpo.or(objectives.rpo);
        // What a wrong clock made says nothing of how old what is saved is.
        let made = made.filter(|made| made.state_of <= now);
        (backup.name.to_string(), Objective::of(promised, made.map(|made| age(made.state_of))))
    };
    let rpo_by_backup: BTreeMap<String, Objective> =
        owed.into_iter().flat_map(|owed| &owed.backups).map(of_backup).collect();
    let worst = rpo_by_backup.values().copied().max_by_key(Objective::weight);
    let rpo = worst.unwrap_or_else(|| Objective::of(objectives.rpo, seen.last_snapshot.map(age)));
    let back_after = last_drill.as_ref().filter(|drill| drill.passed).and_then(|drill| drill.took_ms);
    let rto = Objective::of(objectives.rto, back_after.map(|ms| ms.div_ceil(1000)));
    let troubles: Vec<&Job> =
        scheduler.troubles().iter().filter(|(key, _)| key.0 == name).map(|(_, job)| job).collect();
    let backups = || owed.into_iter().flat_map(|owed| &owed.backups).map(|backup| backup.name.to_string());
    let without_point: Vec<String> =
        backups().filter(|name| achieved(&Duty::Backup(name.clone()).key()).is_none()).collect();
    let incomplete = backups().filter_map(|name| achieved(&Duty::Backup(name).key())).find(|job| job.incomplete);
    let duties = owed.map(scheduler::duties).unwrap_or_default();
    let latest: Vec<&Job> = duties.iter().filter_map(|duty| achieved(&duty.key())).collect();
    let untidy: Vec<&Job> = latest.iter().copied().filter(|job| job.untidy.is_some()).collect();
    let of_future: Vec<&Job> =
        latest.into_iter().filter(|job| job.made.as_ref().is_some_and(|made| made.state_of > now)).collect();
    let overdue = owed.map(|owed| overdue(scheduler, name, owed, seen, now)).unwrap_or_default();
    let look = scheduler.last_look();
    let facts = Facts {
        name,
        now,
        not_looked_at_since: (look.ago > STALE_AFTER).then_some(look.at),
        overdue: &overdue,
        seen,
        owed,
        without_point: &without_point,
        incomplete,
        untidy: &untidy,
        of_future: &of_future,
        last_point: last_point.as_ref(),
        last_drill: last_drill.as_ref(),
        rpo,
        rpo_by_backup: &rpo_by_backup,
        rto,
        troubles: &troubles,
    };
    let why = facts.reasons();
    let next = |duty: &Duty| scheduler.next_of(name, duty);
    let backups = owed.into_iter().flat_map(|owed| &owed.backups);
    let job = scheduler.jobs().find(|job| job.is_for(name) && job.state == State::Running);
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
        rpo_by_backup,
        rto,
        next: NextTimes {
            snapshot: next(&Duty::Snapshot),
            backup: backups.filter_map(|backup| next(&Duty::Backup(backup.name.to_string()))).min(),
            drill: next(&Duty::Drill),
        },
        running_job: job.map(|job| job.id.clone()),
    }
}

/// What is told of each machine that was not looked at; as an alert it is told once.
pub const NOT_LOOKED_AT: &str = "not-looked-at";

fn age(at: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0)
}

/// A duty that should have been done, and was not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Overdue {
    duty: Duty,
    /// When it was due: the first time behind the latest success.
    due: Timestamp,
}

/// What a machine is owed and has had no success with for longer than from one time to the next.
fn overdue<F: Fleet, H: Hands>(
    scheduler: &Scheduler<F, H>,
    name: &str,
    owed: &Owed,
    seen: &Seen,
    now: Timestamp,
) -> Vec<Overdue> {
    let late = |duty: Duty| {
        let job = scheduler.achieved().get(&(name.to_owned(), duty.key()));
        let last = match (&duty, job) {
            (Duty::Drill, Some(job)) => job.ended,
            (_, Some(job)) => job.made.as_ref().map(|made| made.state_of),
            // Of snapshots their records are forgotten soon.
            (Duty::Snapshot, None) => seen.last_snapshot.or_else(|| scheduler.begun(name, &duty)),
            // What never was is told as that.
            (_, None) => None,
        };
        let due = due_after(owed, &duty, last.filter(|last| *last <= now)?, now)?;
        Some(Overdue { duty, due })
    };
    scheduler::duties(owed).into_iter().filter_map(late).collect()
}

/// When a duty was due that was done last at `last`, if that is too long ago.
fn due_after(owed: &Owed, duty: &Duty, last: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let (timetable, work) = scheduler::timetable(owed, duty)?;
    let due = timetable.next_after(last).filter(|due| *due <= now)?;
    // No window lets it begin earlier.
    let begins = owed.windows.next_permitted(work, due).unwrap_or(due);
    let interval =
        timetable.next_after(due).map_or(*OVERDUE_AFTER.end(), |next| next.duration_since(due).unsigned_abs());
    let late = interval.clamp(*OVERDUE_AFTER.start(), *OVERDUE_AFTER.end());
    (begins.checked_add(late).ok()? < now).then_some(due)
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
    /// The latest jobs behind which something was not done.
    untidy: &'a [&'a Job],
    /// The latest jobs that hold an instant that is still to come.
    of_future: &'a [&'a Job],
    last_drill: Option<&'a LastDrill>,
    rpo: Objective,
    rpo_by_backup: &'a BTreeMap<String, Objective>,
    rto: Objective,
    troubles: &'a [&'a Job],
    overdue: &'a [Overdue],
    not_looked_at_since: Option<Timestamp>,
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
        let mut say = |id: &str, severity, what: String, advice: String| {
            all.push(Reason { id: id.to_owned(), severity, what, advice });
        };
        if let Some(at) = self.not_looked_at_since {
            let what = format!("not looked at since {at}: what it does now is not known");
            say(NOT_LOOKED_AT, Severity::Warning, what, "restart the daemon: what is at work goes on".to_owned());
        }
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
        if owed.backups.is_empty() {
            let advice = format!("add a [[policy.{}.backup]]", owed.policy);
            say("no-backup", Severity::Warning, "all that would bring it back is on this host".to_owned(), advice);
        }
        for name in self.without_point {
            let what = format!("backup {name} has no point of it yet");
            let advice = "wait for the first one, or see `keyframe status`".to_owned();
            say(&format!("no-point/{name}"), Severity::Warning, what, advice);
        }
        for late in self.overdue {
            let (kind, of) = (late.duty.kind(), late.duty.backup().map(|name| format!(" {name}")).unwrap_or_default());
            let what = format!("its {kind}{of} was due {}, {} ago", late.due, span(age(late.due, self.now)));
            let advice =
                "see `keyframe status` for what is at work, waits or fails; a window may be too short".to_owned();
            say(&format!("overdue/{}", late.duty.key()), Severity::Warning, what, advice);
        }
        if let Some(at) = self.seen.last_snapshot.filter(|at| *at > self.now) {
            let what = format!("its latest snapshot is of the future ({at}): the clock was wrong then, or is now");
            say("clock", Severity::Warning, what, "set the clock; delete what was made meanwhile by hand".to_owned());
        }
        for job in self.of_future.iter().filter(|job| job.kind() != "snapshot") {
            let (kind, of) = (job.kind(), job.backup().map(|name| format!(" {name}")).unwrap_or_default());
            let at = job.made.as_ref().map(|made| made.state_of.to_string()).unwrap_or_default();
            let what = format!("its latest {kind}{of} is of the future ({at}): the clock was wrong then, or is now");
            let id = format!("clock/{}", job.duty().map(Duty::key).unwrap_or_default());
            say(&id, Severity::Warning, what, "set the clock; back it up once more".to_owned());
        }
        if let Some(job) = self.incomplete {
            let why = job.what.as_deref().unwrap_or("nobody knows what");
            let what = format!("something is missing in its latest point: {why}");
            say("incomplete", Severity::Warning, what, format!("see HOME/serve/jobs/{} for all that it said", job.id));
        }
        for job in self.untidy {
            let (kind, of) = (job.kind(), job.backup().map(|name| format!(" {name}")).unwrap_or_default());
            let what =
                format!("what is to be done behind its {kind}{of} was not: {}", job.untidy.as_deref().unwrap_or("?"));
            let id = format!("untidy/{}", job.duty().map(Duty::key).unwrap_or_default());
            say(&id, Severity::Warning, what, format!("see HOME/serve/jobs/{} for all that it said", job.id));
        }
        let of_backups = self.rpo_by_backup.iter().map(|(name, objective)| (Some(name), objective));
        let of_snapshots = self.rpo_by_backup.is_empty().then_some((None, &self.rpo));
        for (backup, objective) in of_backups.chain(of_snapshots) {
            let Objective { met: Some(false), objective_s: Some(objective), actual_s: Some(actual) } = objective else {
                continue;
            };
            let (id, by) = match backup {
                Some(name) => (format!("rpo/{name}"), format!(" by backup {name}")),
                None => ("rpo".to_owned(), String::new()),
            };
            let what = format!("what is saved{by} is {} old, and {} are promised", span(*actual), span(*objective));
            say(&id, Severity::Critical, what, "see why its backups are late, or promise less".to_owned());
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
            (None, Some(drill))
                if owed.objectives.rto.is_some() && age(drill.at, self.now) > DRILL_GOOD_FOR.as_secs() =>
            {
                let what = format!(
                    "its latest drill is {} old: nothing newer proves that it comes back",
                    span(age(drill.at, self.now))
                );
                say(
                    "old-drill",
                    Severity::Warning,
                    what,
                    format!("`keyframe drill {name}`; or add [policy.{}.drill]", owed.policy),
                );
            }
            _ => {}
        }
        for job in self.troubles.iter().filter(|job| !job.refuted) {
            let (id, of) = match (job.kind(), job.backup()) {
                ("snapshot", _) => ("snapshot-failed".to_owned(), String::new()),
                ("backup", Some(backup)) => (format!("backup-failed/{backup}"), format!(" {backup}")),
                _ => ("drill-failed".to_owned(), String::new()),
            };
            let why = job.what.as_deref().unwrap_or("nobody knows why");
            let advice = format!("see HOME/serve/jobs/{} for all that it said", job.id);
            say(&id, Severity::Critical, format!("its {}{of} was given up: {why}", job.kind()), advice);
        }
        all
    }
}
