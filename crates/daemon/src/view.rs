//! What is shown: made by the service's thread, read by everybody who asks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::Timestamp;
use keyframe_policy::{ApprovalRule, AskedFor, Mistake, Owed};
use serde::Serialize;
use serde_json::Value;

use crate::alerts::Alert;
use crate::approvals::Approval;
use crate::fleet::Machines;
use crate::job::{Job, JobId, State};
use crate::space::Space;
use crate::verdict::{Row, Verdict};

/// A job, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobShown {
    /// Its name.
    pub id: JobId,
    /// The machine it is for; of a group's the first by name.
    pub machine: String,
    /// The group for whose machines it is done together.
    pub group: Option<String>,
    /// All machines it is for, by name.
    pub machines: Vec<String>,
    /// What it does, in a word.
    pub kind: String,
    /// The backup of its policy that it is about.
    pub backup: Option<String>,
    /// Who asked.
    pub by: String,
    /// How far it is.
    pub state: State,
    /// When it was due.
    pub due: Timestamp,
    /// When it began.
    pub began: Option<Timestamp>,
    /// When it was over.
    pub ended: Option<Timestamp>,
    /// Counted from 1.
    pub attempt: u32,
    /// When it is tried again.
    pub retry_at: Option<Timestamp>,
    /// The exit status of its last command.
    pub exit: Option<i32>,
    /// What came of it, or why it failed.
    pub what: Option<String>,
    /// How far its command is.
    pub progress: Option<Value>,
}

impl JobShown {
    /// A job with what its command says of how far it is.
    #[must_use]
    pub fn of(job: &Job, progress: Option<Value>) -> Self {
        Self {
            id: job.id.clone(),
            machine: job.machine.clone(),
            group: job.together.as_ref().map(|together| together.group.clone()),
            machines: job.machines().map(str::to_owned).collect(),
            kind: job.kind().to_owned(),
            backup: job.backup().map(str::to_owned),
            by: job.by.clone(),
            state: job.state,
            due: job.due,
            began: job.began,
            ended: job.ended,
            attempt: job.attempt,
            retry_at: job.retry_at,
            exit: job.exit,
            what: job.told(),
            progress,
        }
    }
}

/// The policies.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PoliciesShown {
    /// Whether those that count are what the files say.
    pub usable: bool,
    /// The files.
    pub files: Vec<PathBuf>,
    /// Since when they count.
    pub loaded: Timestamp,
    /// What is wrong with them.
    pub mistakes: Vec<MistakeShown>,
}

/// A mistake.
#[derive(Debug, Clone, Serialize)]
pub struct MistakeShown {
    /// `FILE:LINE:COLUMN`
    pub place: String,
    /// `error` or `warning`.
    pub severity: keyframe_policy::Severity,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl From<&Mistake> for MistakeShown {
    fn from(mistake: &Mistake) -> Self {
        Self {
            place: mistake.place.to_string(),
            severity: mistake.severity,
            what: mistake.what.clone(),
            remedy: mistake.remedy.clone(),
        }
    }
}

/// How many there are of everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Machines.
    pub machines: usize,
    /// Of those with all that is promised.
    pub protected: usize,
    /// Of those with a reason to see to something.
    pub at_risk: usize,
    /// Of those that nothing would bring back.
    pub unprotected: usize,
    /// Jobs at work.
    pub jobs_running: usize,
    /// Jobs that wait.
    pub jobs_waiting: usize,
    /// Alerts.
    pub alerts: usize,
    /// Requests that wait for a second person's approval.
    pub approvals: usize,
}

/// What is done only after a second person approved it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ApprovalShown {
    /// What that is, as policies name it.
    pub asked_for: BTreeSet<AskedFor>,
    /// How long a request waits, in seconds.
    pub valid_s: u64,
}

impl From<&ApprovalRule> for ApprovalShown {
    fn from(rule: &ApprovalRule) -> Self {
        Self { asked_for: rule.asked_for.clone(), valid_s: rule.valid.as_secs() }
    }
}

/// Everything at a glance.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Overview {
    /// `keyframe.overview/1`
    pub schema: &'static str,
    /// When it was made.
    pub now: Timestamp,
    /// Of Keyframe.
    pub version: String,
    /// The host's name.
    pub host: String,
    /// The home.
    pub home: PathBuf,
    /// When machines were looked at last.
    pub looked: Timestamp,
    /// Whether nothing new is begun, by somebody's wish.
    pub paused: bool,
    /// Whether the daemon is about to end.
    pub draining: bool,
    /// The home's file system.
    pub disk: Space,
    /// The policies.
    pub policies: PoliciesShown,
    /// What needs a second person's approval.
    pub approval: ApprovalShown,
    /// How many there are of everything.
    pub counts: Counts,
    /// What is to be seen to.
    pub alerts: Vec<Alert>,
    /// The machines.
    pub machines: Vec<Row>,
    /// Jobs at work, then those that wait, then the latest that are over.
    pub jobs: Vec<JobShown>,
}

/// What answers are made from.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Everything at a glance.
    pub overview: Overview,
    /// The machines, as they were looked at.
    pub seen: std::sync::Arc<Machines>,
    /// What each machine is owed.
    pub owed: std::sync::Arc<BTreeMap<String, Owed>>,
    /// What waits for a second person's approval, then what was decided.
    pub approvals: Vec<Approval>,
}

impl Counts {
    /// Counts.
    #[must_use]
    pub fn of(rows: &[Row], jobs: &[JobShown], alerts: &[Alert]) -> Self {
        let verdict = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
        let state = |state| jobs.iter().filter(|job| job.state == state).count();
        Self {
            machines: rows.len(),
            protected: verdict(Verdict::Protected),
            at_risk: verdict(Verdict::AtRisk),
            unprotected: verdict(Verdict::Unprotected),
            jobs_running: state(State::Running),
            jobs_waiting: state(State::Waiting),
            alerts: alerts.len(),
            approvals: 0,
        }
    }
}
