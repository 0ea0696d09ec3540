//! One machine: what it was owed, what was made, what went wrong, and what became of that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use keyframe_policy::Owed;
use keyframe_types::text::span;
use serde::Serialize;

use super::sources::Proof;
use crate::job::{Job, State};

/// How far back of a period its jobs are looked at, for what was saved when it began.
const BACK: Duration = Duration::from_secs(40 * 86_400);

/// Where points go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Destination {
    /// The backup's name.
    pub backup: String,
    /// The repository.
    pub repository: String,
    /// Whether a key file is named.
    pub key_file: bool,
    /// For how many days a point cannot be forgotten.
    pub lock_days: u32,
}

/// Things that were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Made {
    /// How many.
    pub count: usize,
    /// The instant that the first holds.
    pub first: Option<Timestamp>,
    /// The instant that the last holds.
    pub last: Option<Timestamp>,
}

impl Made {
    fn of<'a>(jobs: impl Iterator<Item = &'a Job>) -> Self {
        let times: Vec<Timestamp> = jobs.filter_map(|job| Some(job.made.as_ref()?.state_of)).collect();
        Self { count: times.len(), first: times.iter().min().copied(), last: times.iter().max().copied() }
    }
}

/// Points that were made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Points {
    /// Those in which nothing is missing.
    #[serde(flatten)]
    pub made: Made,
    /// Besides them, those in which something is missing: they count as nothing that was saved.
    pub incomplete: usize,
    /// Of all which a drill passed, within the period or later.
    pub drilled: usize,
    /// Those in which nothing is missing, by backup.
    pub by_backup: BTreeMap<String, usize>,
}

/// How jobs ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Jobs {
    /// Well.
    pub done: usize,
    /// Well, or with something missing, but not at the first attempt: counted there, too.
    pub retried: usize,
    /// With something missing.
    pub incomplete: usize,
    /// Given up, or a drill that failed.
    pub failed: usize,
    /// Ended by somebody.
    pub cancelled: usize,
}

impl Jobs {
    fn of(jobs: &[&Job]) -> Self {
        let count = |state: State| jobs.iter().filter(|job| job.state == state).count();
        Self {
            done: count(State::Done),
            retried: jobs.iter().filter(|job| was_retried(job)).count(),
            incomplete: count(State::Incomplete),
            failed: count(State::Failed),
            cancelled: count(State::Cancelled),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.retried += other.retried;
        self.incomplete += other.incomplete;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
    }
}

/// A time in which nothing newer was saved: from the instant that the latest complete point holds until the next one was complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The instant that was saved; where nothing was, when the machine is first known.
    pub from: Timestamp,
    /// When something newer was; or the end of what is told.
    pub until: Timestamp,
    /// How long that is: the work that would have been lost at its end.
    pub seconds: u64,
    /// Whether something newer ended it.
    pub ended: bool,
}

impl Gap {
    fn between(from: Timestamp, until: Timestamp, ended: bool) -> Self {
        let seconds = u64::try_from(until.duration_since(from).as_secs()).unwrap_or(0);
        Self { from, until, seconds, ended }
    }
}

/// What is promised of one repository, or of snapshots, and the longest time in which that saved nothing newer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Promise {
    /// The backup; nothing for snapshots, where there are no backups.
    pub backup: Option<String>,
    /// The most work that may be lost, in seconds.
    pub rpo_s: Option<u64>,
    /// The longest time.
    pub longest_gap: Option<Gap>,
}

impl Promise {
    /// Whether it was kept; nothing where nothing is promised, or measured.
    #[must_use]
    pub fn kept(&self) -> Option<bool> {
        Some(self.longest_gap?.seconds <= self.rpo_s?)
    }

    /// What was missed first, then what was nearest to it.
    fn weight(&self) -> (bool, u64, u64) {
        let seconds = self.longest_gap.map_or(0, |gap| gap.seconds);
        let part = self.rpo_s.map_or(0, |rpo| seconds.saturating_mul(1000) / rpo.max(1));
        (self.kept() == Some(false), part, seconds)
    }
}

/// A drill that came to a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drill {
    /// When it ended.
    pub at: Timestamp,
    /// What was brought back.
    pub of: String,
    /// Whether it came back.
    pub passed: bool,
    /// How long that took, in milliseconds.
    pub took_ms: Option<u64>,
    /// Whether that is within the objective; nothing where it did not come back, or nothing is promised.
    pub within_rto: Option<bool>,
    /// Whether it is in the signed log.
    pub signed: bool,
    /// The name of its evidence.
    pub evidence: String,
    /// What was seen.
    pub what: String,
}

/// What is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExceptionKind {
    /// No policy chooses the machine.
    NoPolicy,
    /// More would have been lost than was promised.
    RpoMissed,
    /// It took longer to come back than was promised.
    RtoMissed,
    /// A drill did not bring it back.
    DrillFailed,
    /// A job was given up.
    JobFailed,
    /// A job left something out.
    JobIncomplete,
    /// A job was not done at its first attempt.
    JobRetried,
}

impl ExceptionKind {
    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPolicy => "no policy",
            Self::RpoMissed => "RPO missed",
            Self::RtoMissed => "RTO missed",
            Self::DrillFailed => "drill failed",
            Self::JobFailed => "job failed",
            Self::JobIncomplete => "job incomplete",
            Self::JobRetried => "job retried",
        }
    }
}

/// What put an end to an exception.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// When; perhaps after the period.
    pub at: Timestamp,
    /// By what: a job's or a drill's name.
    pub by: String,
}

/// What is not as it should be, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exception {
    /// Of what kind.
    pub kind: ExceptionKind,
    /// Since when.
    pub at: Timestamp,
    /// What is so.
    pub what: String,
    /// The next success; nothing as long as it is open.
    pub settled: Option<Settled>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineReport {
    /// Its name.
    pub name: String,
    /// Whether it is there when the report is made.
    pub present: bool,
    /// Its policy.
    pub policy: Option<String>,
    /// Promised: the most work that may be lost, in seconds; of several backups, by the one furthest from its promise.
    pub rpo_s: Option<u64>,
    /// Promised: the longest until it runs again, in seconds.
    pub rto_s: Option<u64>,
    /// Where its points go.
    pub destinations: Vec<Destination>,
    /// Snapshots that were made.
    pub snapshots: Made,
    /// Points that were made.
    pub points: Points,
    /// What gaps are measured on: `points`, or `snapshots` where there are no backups.
    pub saved_by: &'static str,
    /// The longest time in which nothing newer was saved, by the same.
    pub longest_gap: Option<Gap>,
    /// Each backup, or snapshots where there are none.
    pub promises: Vec<Promise>,
    /// How jobs ended.
    pub jobs: Jobs,
    /// Drills, by time.
    pub drills: Vec<Drill>,
    /// What was not as it should be, by time.
    pub exceptions: Vec<Exception>,
}

/// What a machine's part is made from.
pub(super) struct Of<'a> {
    pub name: &'a str,
    pub present: bool,
    pub owed: Option<&'a Owed>,
    /// By age; from [`back_to`] on, until now.
    pub jobs: &'a [Job],
    pub proofs: Vec<&'a Proof>,
}

/// From when on a machine's jobs are looked at.
pub(super) fn back_to(owed: Option<&Option<Owed>>, from: Timestamp) -> Timestamp {
    let owed = owed.and_then(Option::as_ref);
    let of_backups = owed.into_iter().flat_map(|owed| &owed.backups).filter_map(|backup| backup.rpo);
    let rpo = owed.and_then(|owed| owed.objectives.rpo).into_iter().chain(of_backups).map(|rpo| rpo.duration()).max();
    let back = rpo.map_or(BACK, |rpo| BACK.max(rpo.saturating_mul(2)));
    from.checked_sub(back).unwrap_or(Timestamp::MIN)
}

fn was_retried(job: &Job) -> bool {
    matches!(job.state, State::Done | State::Incomplete) && job.attempt > 1
}

/// What a job is for: the same for one that is owed and one that somebody asked for.
fn aim(job: &Job) -> (&str, Option<&str>) {
    match job.kind() {
        "test" => ("drill", None),
        kind => (kind, job.backup()),
    }
}

fn named(job: &Job) -> String {
    job.backup().map_or_else(|| job.kind().to_owned(), |backup| format!("{} {backup}", job.kind()))
}

fn is_drill(job: &Job) -> bool {
    aim(job).0 == "drill" && job.made.is_some()
}

impl MachineReport {
    /// `until` is the end of the period, or now; snapshots are remembered from `snapshots_from` on.
    pub(super) fn of(of: Of<'_>, from: Timestamp, until: Timestamp, snapshots_from: Timestamp) -> Self {
        let within = |at: Timestamp| (from..until).contains(&at);
        let jobs: Vec<&Job> = of.jobs.iter().filter(|job| job.ended.is_some_and(within)).collect();
        let made = |kind: &'static str| {
            let is = move |job: &&&Job| job.kind() == kind && job.made.is_some();
            jobs.iter().filter(is).copied().collect::<Vec<&Job>>()
        };
        let (snapshots, points) = (made("snapshot"), made("backup"));
        let has_backups = of.owed.is_some_and(|owed| !owed.backups.is_empty()) || !points.is_empty();
        let saved_by = if has_backups { "points" } else { "snapshots" };
        let objectives = of.owed.map(|owed| owed.objectives).unwrap_or_default();
        let rto_s = objectives.rto.map(|it| it.duration().as_secs());
        let mut exceptions = failures(&of, &jobs, within);
        let mut promises = Vec::new();
        for savings in Savings::of(&of, &points, has_backups) {
            let from = if has_backups { from } else { from.max(snapshots_from) };
            let gaps = savings.gaps(from, until);
            exceptions.extend(savings.missed(&gaps));
            promises.push(savings.promise(gaps));
        }
        let worst = promises.iter().max_by_key(|promise| promise.weight()).cloned();
        let (rpo_s, longest_gap) = worst.map_or((None, None), |worst| (worst.rpo_s, worst.longest_gap));
        let drills = drills(&of, rto_s);
        exceptions.extend(failed_drills(&drills, within));
        if of.present && of.owed.is_none() {
            let what = "no policy chooses it: nothing is done for it".to_owned();
            exceptions.push(Exception { kind: ExceptionKind::NoPolicy, at: until, what, settled: None });
        }
        exceptions.sort_by_key(|exception| (exception.at, exception.kind));
        Self {
            name: of.name.to_owned(),
            present: of.present,
            policy: of.owed.map(|owed| owed.policy.to_string()),
            rpo_s,
            rto_s,
            destinations: of.owed.into_iter().flat_map(destinations).collect(),
            snapshots: Made::of(snapshots.iter().copied()),
            points: points_of(&points, &of.proofs),
            saved_by,
            longest_gap,
            promises,
            jobs: Jobs::of(&jobs),
            drills: drills.into_iter().filter(|drill| within(drill.at)).collect(),
            exceptions,
        }
    }

    /// Whether no gap of any backup was longer than is promised; nothing where one that is promised was not measured.
    #[must_use]
    pub fn rpo_kept(&self) -> Option<bool> {
        let promised = || self.promises.iter().filter(|promise| promise.rpo_s.is_some()).map(Promise::kept);
        match (promised().any(|kept| kept == Some(false)), promised().any(|kept| kept.is_none())) {
            (true, _) => Some(false),
            (false, true) => None,
            (false, false) => promised().next().flatten(),
        }
    }

    /// Whether each drill brought it back as soon as is promised.
    #[must_use]
    pub fn rto_kept(&self) -> Option<bool> {
        self.rto_s?;
        let kept = |drill: &Drill| drill.passed && drill.within_rto != Some(false);
        (!self.drills.is_empty()).then(|| self.drills.iter().all(kept))
    }
}

fn destinations(owed: &Owed) -> Vec<Destination> {
    let destination = |backup: &keyframe_policy::BackupPolicy| Destination {
        backup: backup.name.to_string(),
        repository: backup.repository.clone(),
        key_file: backup.key_file.is_some(),
        lock_days: backup.lock_days,
    };
    owed.backups.iter().map(destination).collect()
}

fn points_of(points: &[&Job], proofs: &[&Proof]) -> Points {
    let proved: BTreeSet<&str> =
        proofs.iter().filter(|proof| proof.passed).filter_map(|proof| Some(proof.point.rsplit_once('@')?.1)).collect();
    let mut by_backup = BTreeMap::new();
    let whole = || points.iter().copied().filter(|job| job.state == State::Done);
    for job in whole() {
        *by_backup.entry(job.backup().unwrap_or("by hand").to_owned()).or_default() += 1;
    }
    let is_proved = |job: &&&Job| job.made.as_ref().is_some_and(|made| proved.contains(made.id.as_str()));
    Points {
        made: Made::of(whole()),
        incomplete: points.iter().filter(|job| job.state == State::Incomplete).count(),
        drilled: points.iter().filter(is_proved).count(),
        by_backup,
    }
}

/// What one backup saved, or snapshots did, and what is promised of that.
struct Savings<'a> {
    backup: Option<String>,
    rpo_s: Option<u64>,
    jobs: Vec<&'a Job>,
}

impl<'a> Savings<'a> {
    /// Each backup that is owed, or made points: each repository is held to a promise of its own.
    fn of(of: &Of<'a>, points: &[&Job], has_backups: bool) -> Vec<Self> {
        let objectives = of.owed.map(|owed| owed.objectives).unwrap_or_default();
        let seconds = |rpo: Option<keyframe_types::TimeToLive>| rpo.map(|rpo| rpo.duration().as_secs());
        if !has_backups {
            let jobs = of.jobs.iter().filter(|job| job.kind() == "snapshot" || job.made.is_none()).collect();
            return vec![Self { backup: None, rpo_s: seconds(objectives.rpo), jobs }];
        }
        let owed = || of.owed.into_iter().flat_map(|owed| &owed.backups);
        let mut names: BTreeSet<&str> = owed().map(|backup| backup.name.as_str()).collect();
        if names.is_empty() {
            names.extend(points.iter().filter_map(|job| job.backup()));
        }
        let savings = |name: &str| {
            let own = owed().find(|backup| backup.name.as_str() == name).and_then(|backup| backup.rpo);
            let jobs = of.jobs.iter().filter(|job| job.kind() == "backup" && job.backup() == Some(name)).collect();
            Self { backup: Some(name.to_owned()), rpo_s: seconds(own.or(objectives.rpo)), jobs }
        };
        names.into_iter().map(savings).collect()
    }

    /// Jobs that saved something, with nothing missing in it: when they ended, and the instant that they saved.
    fn saved(&self) -> impl Iterator<Item = (&'a Job, Timestamp, Timestamp)> {
        let saved = |job: &&'a Job| Some((*job, job.ended?, job.made.as_ref()?.state_of));
        self.jobs.iter().filter_map(saved).filter(|(job, ..)| job.state == State::Done)
    }

    /// All times in which nothing newer was saved. A point counts from when it was complete: before, it would have saved nothing.
    fn gaps(&self, from: Timestamp, until: Timestamp) -> Vec<Gap> {
        let mut saved: Vec<(Timestamp, Timestamp)> =
            self.saved().map(|(_, ended, state_of)| (ended, state_of)).filter(|(ended, _)| *ended < until).collect();
        saved.sort_unstable();
        let before = saved.iter().filter(|(ended, _)| *ended < from).map(|(_, state_of)| *state_of).max();
        // What nothing is known of before is measured from its first job on.
        let known = self.jobs.iter().map(|job| job.due.min(job.ended.unwrap_or(job.due))).min();
        let Some(known) = known.filter(|known| *known < until && from < until) else { return Vec::new() };
        let mut newest = before.unwrap_or(known.max(from));
        let mut gaps = Vec::new();
        for (ended, state_of) in saved.into_iter().filter(|(ended, _)| *ended >= from) {
            if state_of > newest || gaps.is_empty() && before.is_none() {
                gaps.push(Gap::between(newest, ended, true));
                newest = newest.max(state_of);
            }
        }
        gaps.push(Gap::between(newest, until, false));
        gaps
    }

    /// Gaps that are longer than is promised.
    fn missed(&self, gaps: &[Gap]) -> Vec<Exception> {
        let Some(rpo) = self.rpo_s else { return Vec::new() };
        let by = self.backup.as_ref().map(|name| format!(" by backup {name}")).unwrap_or_default();
        let exception = |gap: &Gap| {
            let next = self.saved().filter(|(_, ended, state_of)| *ended >= gap.until && *state_of > gap.from);
            let next = next.min_by_key(|(_, ended, _)| *ended);
            let at = gap.from.checked_add(Duration::from_secs(rpo)).unwrap_or(gap.until);
            let what = format!("nothing newer was saved{by} for {}, and {} are promised", span(gap.seconds), span(rpo));
            let settled = next.map(|(job, at, _)| Settled { at, by: format!("job {}", job.id) });
            Exception { kind: ExceptionKind::RpoMissed, at, what, settled }
        };
        gaps.iter().filter(|gap| gap.seconds > rpo).map(exception).collect()
    }

    fn promise(self, gaps: Vec<Gap>) -> Promise {
        let longest_gap = gaps.into_iter().max_by_key(|gap| gap.seconds);
        Promise { backup: self.backup, rpo_s: self.rpo_s, longest_gap }
    }
}

/// Jobs that did not end well, and the next one for the same that did.
fn failures(of: &Of<'_>, jobs: &[&Job], within: impl Fn(Timestamp) -> bool) -> Vec<Exception> {
    let mut all = Vec::new();
    for job in jobs {
        let Some(ended) = job.ended.filter(|ended| within(*ended)) else { continue };
        let why = job.what.as_deref().unwrap_or("nobody knows why");
        let settling = |settles: &dyn Fn(&Job) -> bool| {
            let later =
                of.jobs.iter().filter(|other| other.ended.is_some_and(|at| at > ended) && aim(other) == aim(job));
            let next = later.filter(|other| settles(other)).min_by_key(|other| other.ended)?;
            Some(Settled { at: next.ended?, by: format!("job {}", next.id) })
        };
        let (kind, what, settled) = match job.state {
            // Its verdict is told among drills.
            State::Failed if job.refuted => continue,
            State::Failed => {
                let settled =
                    settling(&|other| matches!(other.state, State::Done | State::Incomplete) || other.refuted);
                let attempts = if job.attempt > 1 { format!(" after {} attempts", job.attempt) } else { String::new() };
                (ExceptionKind::JobFailed, format!("{} was given up{attempts}: {why}", named(job)), settled)
            }
            State::Incomplete => {
                let settled = settling(&|other| other.state == State::Done);
                (ExceptionKind::JobIncomplete, format!("{} left something out: {why}", named(job)), settled)
            }
            State::Done if was_retried(job) => {
                let settled = Some(Settled { at: ended, by: format!("job {}", job.id) });
                let late = u64::try_from(ended.duration_since(job.due).as_secs()).unwrap_or(0);
                let what =
                    format!("{} was done at attempt {}, {} after it was due", named(job), job.attempt, span(late));
                (ExceptionKind::JobRetried, what, settled)
            }
            _ => continue,
        };
        let at = if kind == ExceptionKind::JobRetried { job.due } else { ended };
        all.push(Exception { kind, at, what, settled });
    }
    all
}

/// Drills of jobs and of the log, by time; each once.
fn drills(of: &Of<'_>, rto_s: Option<u64>) -> Vec<Drill> {
    let within_rto = |passed: bool, took: Option<u64>| Some(took? <= rto_s?.saturating_mul(1000)).filter(|_| passed);
    let mut drills = Vec::new();
    let mut told = BTreeSet::new();
    for job in of.jobs.iter().filter(|job| is_drill(job)) {
        let (Some(made), Some(at)) = (&job.made, job.ended) else { continue };
        let proof = of.proofs.iter().find(|proof| proof.id == made.id);
        told.insert(made.id.as_str());
        drills.push(Drill {
            at,
            of: proof.map_or_else(|| format!("snapshot {}", made.id), |proof| format!("point {}", proof.point)),
            passed: !job.refuted,
            took_ms: made.took_ms,
            within_rto: within_rto(!job.refuted, made.took_ms),
            signed: proof.is_some(),
            evidence: made.id.clone(),
            what: job.what.clone().unwrap_or_default(),
        });
    }
    // By hand; or one of several of a job, which names the last.
    for proof in of.proofs.iter().filter(|proof| !told.contains(proof.id.as_str())) {
        drills.push(Drill {
            at: proof.at,
            of: format!("point {}", proof.point),
            passed: proof.passed,
            took_ms: proof.took_ms,
            within_rto: within_rto(proof.passed, proof.took_ms),
            signed: true,
            evidence: proof.id.clone(),
            what: proof.what.clone(),
        });
    }
    drills.sort_by_key(|drill| drill.at);
    drills
}

fn failed_drills(drills: &[Drill], within: impl Fn(Timestamp) -> bool) -> Vec<Exception> {
    let mut all = Vec::new();
    for (at, drill) in drills.iter().enumerate().filter(|(_, drill)| within(drill.at)) {
        let next = |good: &dyn Fn(&Drill) -> bool| {
            let next = drills[at + 1..].iter().find(|later| good(later))?;
            Some(Settled { at: next.at, by: format!("drill {}", next.evidence) })
        };
        if !drill.passed {
            let what = format!("{} did not come back: {}", drill.of, drill.what);
            let settled = next(&|later| later.passed);
            all.push(Exception { kind: ExceptionKind::DrillFailed, at: drill.at, what, settled });
        } else if drill.within_rto == Some(false) {
            let took = span(drill.took_ms.unwrap_or(0).div_ceil(1000));
            let what = format!("{} took {took} to come back, and less is promised", drill.of);
            let settled = next(&|later| later.within_rto == Some(true));
            all.push(Exception { kind: ExceptionKind::RtoMissed, at: drill.at, what, settled });
        }
    }
    all
}
