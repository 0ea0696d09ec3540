//! A job: one thing that is done for one machine, from the time it is due until it has ended, over restarts and retries.

use std::fmt;

use jiff::Timestamp;
use keyframe_policy::PolicyName;
use keyframe_types::InstanceId;
use serde::{Deserialize, Serialize};

/// A job's name: the time at which it was queued, and something random. Sorts by age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// A fresh one.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self(format!("{}-{}", digits(now), InstanceId::random().short()))
    }

    /// As text: digits, letters and `-`, so that it is a file's name, too.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A time to the second in 14 digits, for names of files.
pub(crate) fn digits(at: Timestamp) -> String {
    at.to_string().chars().filter(char::is_ascii_digit).take(14).collect()
}

/// What is no job's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no job's name")]
pub struct JobIdError(String);

impl TryFrom<String> for JobId {
    type Error = JobIdError;

    fn try_from(text: String) -> Result<Self, JobIdError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if plain && (1..=64).contains(&text.len()) { Ok(Self(text)) } else { Err(JobIdError(text)) }
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a policy owes a machine again and again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duty {
    /// A snapshot, then those that are not kept go.
    Snapshot,
    /// A point in the repository of this backup, then those that are not kept go.
    Backup(String),
    /// Proofs that it comes back.
    Drill,
}

impl Duty {
    /// What it is, in a word.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Backup(_) => "backup",
            Self::Drill => "drill",
        }
    }

    /// Which backup.
    #[must_use]
    pub fn backup(&self) -> Option<&str> {
        match self {
            Self::Backup(name) => Some(name),
            Self::Snapshot | Self::Drill => None,
        }
    }

    /// Its name in the catalog.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Snapshot => "snapshot".to_owned(),
            Self::Backup(name) => format!("backup:{name}"),
            Self::Drill => "drill".to_owned(),
        }
    }
}

/// What somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// What is done, in a word: `snapshot`, `revert`, …
    pub kind: String,
    /// The command, without `keyframe` and without options that every command takes.
    pub arguments: Vec<String>,
    /// The backup whose repository it needs.
    pub backup: Option<String>,
}

/// Why a job is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// A policy owes it.
    Owed {
        /// Which policy.
        policy: String,
        /// What.
        duty: Duty,
    },
    /// Somebody asked for it.
    Asked(Action),
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// For its turn, or for its next attempt.
    Waiting,
    /// A command is at work.
    Running,
    /// All of it was done.
    Done,
    /// It was done, and something is missing.
    Incomplete,
    /// It was given up.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

impl State {
    /// As the catalog has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens to it.
    #[must_use]
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

/// One command of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Look whether an earlier attempt that nobody saw the end of has done it.
    Look,
    /// The thing itself.
    Main,
    /// Lock the point that was made.
    Lock,
    /// Let go what is not kept any more.
    Thin,
    /// Let go what is past its time.
    Expire,
    /// Free what nothing refers to.
    Prune,
    /// A further proof, by its place in the policy's list.
    Drill(u8),
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// The machine it is for.
    pub machine: String,
    /// Why it is there.
    pub request: Request,
    /// Who asked: `policy NAME`, `uid 0`, a token's name.
    pub by: String,
    /// How far it is.
    pub state: State,
    /// When it was due.
    pub due: Timestamp,
    /// How many earlier times it stands for, too.
    pub missed: u32,
    /// When its first command began.
    pub began: Option<Timestamp>,
    /// When it was over.
    pub ended: Option<Timestamp>,
    /// When its present command, or the last one, was started.
    #[serde(default)]
    pub command_began: Option<Timestamp>,
    /// When that command was asked to end.
    #[serde(default)]
    pub asked_to_end: Option<Timestamp>,
    /// Counted from 1.
    pub attempt: u32,
    /// How often it failed, over all times that it stands for.
    #[serde(default)]
    pub failures: u32,
    /// When it is tried again.
    pub retry_at: Option<Timestamp>,
    /// Commands still to be run, the present one first.
    pub steps: Vec<Step>,
    /// How many commands were started: the next one's files have this number.
    pub commands: u32,
    /// The exit status of the last command.
    pub exit: Option<i32>,
    /// What came of it, or why it failed, in a line.
    pub what: Option<String>,
    /// The point or snapshot that it made.
    pub made: Option<Made>,
    /// Something is missing.
    pub incomplete: bool,
    /// A proof did not succeed. That is an answer, and not tried again.
    pub refuted: bool,
    /// Somebody wants it to end.
    pub cancelling: bool,
}

/// What a job made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Its id.
    pub id: String,
    /// The instant it holds.
    pub state_of: Timestamp,
    /// How long it took to come back, of a drill, in milliseconds.
    pub took_ms: Option<u64>,
}

impl Job {
    /// One that is owed.
    #[must_use]
    pub fn owed(machine: &str, policy: &PolicyName, duty: Duty, due: Timestamp, missed: u32, now: Timestamp) -> Self {
        let steps = match &duty {
            Duty::Snapshot => vec![Step::Main, Step::Thin, Step::Expire],
            Duty::Backup(_) => vec![Step::Main, Step::Lock, Step::Thin, Step::Prune],
            Duty::Drill => vec![Step::Drill(0)],
        };
        let request = Request::Owed { policy: policy.to_string(), duty };
        Self::new(machine, request, format!("policy {policy}"), steps, due, missed, now)
    }

    /// One that somebody asked for.
    #[must_use]
    pub fn asked(machine: &str, action: Action, by: &str, now: Timestamp) -> Self {
        Self::new(machine, Request::Asked(action), by.to_owned(), vec![Step::Main], now, 0, now)
    }

    fn new(
        machine: &str,
        request: Request,
        by: String,
        steps: Vec<Step>,
        due: Timestamp,
        missed: u32,
        now: Timestamp,
    ) -> Self {
        Self {
            id: JobId::at(now),
            machine: machine.to_owned(),
            request,
            by,
            state: State::Waiting,
            due,
            missed,
            began: None,
            ended: None,
            command_began: None,
            asked_to_end: None,
            attempt: 1,
            failures: 0,
            retry_at: None,
            steps,
            commands: 0,
            exit: None,
            what: None,
            made: None,
            incomplete: false,
            refuted: false,
            cancelling: false,
        }
    }

    /// What it does, in a word.
    #[must_use]
    pub fn kind(&self) -> &str {
        match &self.request {
            Request::Owed { duty, .. } => duty.kind(),
            Request::Asked(action) => &action.kind,
        }
    }

    /// The backup of its policy that it is about.
    #[must_use]
    pub fn backup(&self) -> Option<&str> {
        match &self.request {
            Request::Owed { duty, .. } => duty.backup(),
            Request::Asked(action) => action.backup.as_deref(),
        }
    }

    /// The duty that it does; nothing for one that somebody asked for.
    #[must_use]
    pub fn duty(&self) -> Option<&Duty> {
        match &self.request {
            Request::Owed { duty, .. } => Some(duty),
            Request::Asked(_) => None,
        }
    }

    /// Who goes first: what somebody waits for, then what costs least when it is late.
    #[must_use]
    pub fn priority(&self) -> u8 {
        match &self.request {
            Request::Asked(_) => 3,
            Request::Owed { duty: Duty::Snapshot, .. } => 2,
            Request::Owed { duty: Duty::Backup(_), .. } => 1,
            Request::Owed { duty: Duty::Drill, .. } => 0,
        }
    }

    /// The name of the snapshot that an owed job takes: the same at every attempt, so that none is taken twice.
    #[must_use]
    pub fn snapshot_name(&self) -> String {
        format!("auto-{}", self.id)
    }

    /// The tag of the point that it makes, for the same reason.
    #[must_use]
    pub fn point_tag(&self) -> String {
        format!("job-{}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_jobs_are_names_of_files() {
        let id = JobId::at("2026-11-29T10:20:30.5Z".parse().unwrap());
        assert!(id.as_str().starts_with("20261129102030-"), "{id}");
        for text in ["", "..", "a/b", "a b", &"x".repeat(65)] {
            assert!(JobId::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
