//! A job: one thing that is done for one machine, or for those of a group together, from the time it is due until it has ended, over restarts and retries.

use std::collections::BTreeMap;
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
    /// The one with this name, as [`Duty::key`] gives it.
    #[must_use]
    pub fn of_key(key: &str) -> Option<Self> {
        match (key, key.strip_prefix("backup:")) {
            ("snapshot", _) => Some(Self::Snapshot),
            ("drill", _) => Some(Self::Drill),
            (_, Some(name)) => Some(Self::Backup(name.to_owned())),
            _ => None,
        }
    }

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

impl Step {
    /// What it does, as a person is told.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Look => "looking for what was made",
            Self::Main => "the command itself",
            Self::Lock => "locking what was made",
            Self::Thin => "letting go what is not kept",
            Self::Expire => "letting go what is past its time",
            Self::Prune => "freeing what nothing refers to",
            Self::Drill(_) => "a further proof",
        }
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// The machine it is for; of several the first by name.
    pub machine: String,
    /// The machines that it is for, where it is done for several together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<Together>,
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
    /// The point or snapshot that it made; of a group what it made of [`Job::machine`].
    pub made: Option<Made>,
    /// Something is missing.
    pub incomplete: bool,
    /// A proof did not succeed. That is an answer, and not tried again.
    pub refuted: bool,
    /// Somebody wants it to end.
    pub cancelling: bool,
    /// It failed before all of it was done: no verdict.
    #[serde(default)]
    pub given_up: bool,
    /// What it made counts already, although it is not over.
    #[serde(default)]
    pub counted: bool,
    /// Which machines it is for, by their UUID, and in which repository it makes something: as it was when that was begun.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub whose: BTreeMap<String, Whose>,
    /// What was to be done behind what it made, and was not, in a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untidy: Option<String>,
}

/// Machines of a group for which a job is done together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Together {
    /// The group's name, which its points have.
    pub group: String,
    /// All of them, by name, with what the job came to for each; at least two.
    pub machines: BTreeMap<String, Share>,
}

/// What a job came to for one of a group's machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The point or snapshot that it made of it, or the proof.
    pub made: Option<Made>,
    /// A proof did not succeed on it.
    pub refuted: bool,
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
    /// The machine's UUID, and the repository that it is in: another machine by that name has none of it, and neither has another
    /// repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Whose>,
}

/// What something was made of, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whose {
    /// The machine's UUID.
    pub uuid: String,
    /// The repository of a backup.
    pub repository: Option<String>,
}

impl Made {
    /// What has this id, and holds that instant.
    #[must_use]
    pub const fn new(id: String, state_of: Timestamp) -> Self {
        Self { id, state_of, took_ms: None, of: None }
    }
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

    /// The same for machines of a group together: `machines` has at least two.
    #[must_use]
    pub fn for_group(mut self, group: &str, machines: impl IntoIterator<Item = String>) -> Self {
        let machines: BTreeMap<String, Share> =
            machines.into_iter().map(|machine| (machine, Share::default())).collect();
        self.together = Some(Together { group: group.to_owned(), machines });
        self.retain(|_| true);
        self
    }

    /// Leaves out machines that are to be left out. Whatever is left of a group, a job is for one machine at least.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        let Some(together) = &mut self.together else { return };
        together.machines.retain(|machine, _| stays(machine));
        if let Some(first) = together.machines.keys().next() {
            self.machine.clone_from(first);
        }
        if together.machines.len() < 2 {
            self.together = None;
        }
    }

    /// The machines that it is for, by name.
    pub fn machines(&self) -> impl Iterator<Item = &str> {
        let alone = self.together.is_none().then_some(self.machine.as_str());
        let together = self.together.iter().flat_map(|together| together.machines.keys().map(String::as_str));
        alone.into_iter().chain(together)
    }

    /// Whether it is for a machine.
    #[must_use]
    pub fn is_for(&self, machine: &str) -> bool {
        self.machines().any(|one| one == machine)
    }

    /// The name that its points have: the group's, or the machine's.
    #[must_use]
    pub fn point_name(&self) -> &str {
        self.together.as_ref().map_or(&self.machine, |together| &together.group)
    }

    /// What it is for, as a person is told.
    #[must_use]
    pub fn subject(&self) -> String {
        match &self.together {
            None => self.machine.clone(),
            Some(together) => {
                let names: Vec<&str> = together.machines.keys().map(String::as_str).collect();
                format!("{} ({})", together.group, names.join(", "))
            }
        }
    }

    /// The job as one of its machines has it: with what it came to for that one.
    #[must_use]
    pub fn seen_from(&self, machine: &str) -> Self {
        let mut seen = self.clone();
        let Some(share) = self.together.as_ref().and_then(|together| together.machines.get(machine)) else {
            return seen;
        };
        machine.clone_into(&mut seen.machine);
        seen.made.clone_from(&share.made);
        seen.refuted = share.refuted;
        let proves = matches!(self.kind(), "drill" | "test") && self.state.is_over() && !self.given_up;
        match &share.made {
            None if proves && self.state != State::Cancelled => {
                // It had no snapshot, or is not in the point.
                seen.state = State::Cancelled;
                seen.what = Some(format!("{machine} was not among what was drilled"));
            }
            // Another one did not come back: that is not this one's fault.
            Some(made) if proves && self.refuted && !share.refuted => {
                seen.state = if self.incomplete { State::Incomplete } else { State::Done };
                seen.what = made.took_ms.map(came_back);
            }
            _ => {}
        }
        seen
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
            together: None,
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
            given_up: false,
            counted: false,
            whose: BTreeMap::new(),
            untidy: None,
        }
    }

    /// What came of it, and what was not done behind that.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        match (&self.what, &self.untidy) {
            (what, None) => what.clone(),
            (None, Some(untidy)) => Some(format!("not all was done behind it: {untidy}")),
            (Some(what), Some(untidy)) => Some(format!("{what}; not all was done behind it: {untidy}")),
        }
    }

    /// Takes down that something behind what it made did not work, and why.
    pub fn leave_untidy(&mut self, step: &str, why: Option<&str>) {
        let said = format!("{step}: {}", why.unwrap_or("something did not work"));
        self.untidy = Some(match self.untidy.take() {
            Some(before) => format!("{before}; {said}"),
            None => said,
        });
    }

    /// Whether it waits, and has made nothing yet: it may as well be for what is due later.
    #[must_use]
    pub fn waits_to_begin(&self) -> bool {
        self.state == State::Waiting && matches!(self.steps.first(), Some(Step::Look | Step::Main | Step::Drill(0)))
    }

    /// Whether its present command is at work on its machines, rather than in a repository alone.
    #[must_use]
    pub fn is_at_machines(&self) -> bool {
        self.kind() != "backup" || !matches!(self.steps.first(), Some(Step::Lock | Step::Thin | Step::Prune))
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

    /// Whether it is there because of a policy.
    #[must_use]
    pub fn is_owed_by(&self, name: &PolicyName) -> bool {
        matches!(&self.request, Request::Owed { policy, .. } if policy == name.as_str())
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

    /// The names that the snapshots of an owed job may have. The first one, at every attempt, so that none is taken twice; one more
    /// for each time that a group's may have been taken of some machines and, by a power cut, not of the others.
    pub fn snapshot_names(&self) -> impl Iterator<Item = String> {
        let further = |number: u32| format!("auto-{}-{number}", self.id);
        std::iter::once(format!("auto-{}", self.id)).chain((2..=self.attempt.saturating_add(1)).map(further))
    }

    /// The tag of the point that it makes, for the same reason.
    #[must_use]
    pub fn point_tag(&self) -> String {
        format!("job-{}", self.id)
    }
}

/// What is told of a machine that came back.
pub(crate) fn came_back(took_ms: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a drill, shown with one digit of a second")]
    let seconds = took_ms as f64 / 1e3;
    format!("it came back within {seconds:.1} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Job {
        let (policy, now) = ("standard".parse().unwrap(), "2026-11-29T10:20:30Z".parse().unwrap());
        let job = Job::owed("web", &policy, Duty::Drill, now, 0, now);
        job.for_group("shop", ["web", "db", "mail"].map(str::to_owned))
    }

    #[test]
    fn a_job_of_a_group_is_for_those_that_are_left_of_it() {
        let mut job = shop();
        assert_eq!((job.machine.as_str(), job.point_name()), ("db", "shop"));
        assert_eq!(job.subject(), "shop (db, mail, web)");
        job.retain(|machine| machine != "db");
        assert_eq!((job.machine.as_str(), job.machines().count()), ("mail", 2));
        job.retain(|machine| machine == "web");
        assert_eq!((job.machine.as_str(), job.point_name(), job.together.as_ref()), ("web", "web", None));
        assert!(job.is_for("web") && !job.is_for("mail"));
        let mut job = shop();
        job.retain(|_| false);
        assert_eq!((job.machine.as_str(), job.machines().count()), ("db", 1), "it is withdrawn for somebody");
    }

    #[test]
    fn a_machine_that_came_back_is_not_told_as_one_that_did_not() {
        let mut job = shop();
        let at = job.due;
        let made = |id: &str, took_ms| Some(Made { took_ms, ..Made::new(id.to_owned(), at) });
        let shares = &mut job.together.as_mut().unwrap().machines;
        *shares.get_mut("db").unwrap() = Share { made: made("1", None), refuted: true };
        *shares.get_mut("web").unwrap() = Share { made: made("2", Some(1500)), refuted: false };
        (job.state, job.refuted, job.what) = (State::Failed, true, Some("probe agent failed".to_owned()));
        let seen = |machine| job.clone().seen_from(machine);
        assert_eq!((seen("db").state, seen("db").refuted, seen("db").what), (State::Failed, true, job.what.clone()));
        let web = job.seen_from("web");
        assert_eq!((web.machine.as_str(), web.state, web.refuted), ("web", State::Done, false));
        assert_eq!(web.what.as_deref(), Some("it came back within 1.5 s"));
        assert_eq!(seen("mail").state, State::Cancelled, "nothing is known of it");
        assert_eq!(seen("mail").what.as_deref(), Some("mail was not among what was drilled"));
        // A further proof of the same job was given up: that is so for all.
        job.given_up = true;
        assert_eq!(["db", "web", "mail"].map(|machine| job.seen_from(machine).state), [State::Failed; 3]);
    }

    #[test]
    fn names_of_jobs_are_names_of_files() {
        let id = JobId::at("2026-11-29T10:20:30.5Z".parse().unwrap());
        assert!(id.as_str().starts_with("20261129102030-"), "{id}");
        for text in ["", "..", "a/b", "a b", &"x".repeat(65)] {
            assert!(JobId::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
