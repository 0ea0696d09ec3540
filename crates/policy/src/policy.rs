//! The types of what a policy file says, after it was checked: every default is filled in, every text is parsed.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use keyframe_types::{ByteLen, Retention, SecretFile, TimeToLive};
use serde::{Deserialize, Serialize, Serializer};

use crate::calendar::Schedule;
use crate::load::Place;
use crate::select::Selector;
use crate::window::Windows;

/// Why a text does not name a policy, a group or a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit")]
pub struct PolicyNameError(String);

/// The name of a policy, of a group, or of a backup within its policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PolicyName(String);

impl PolicyName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PolicyName {
    type Err = PolicyNameError;

    fn from_str(text: &str) -> Result<Self, PolicyNameError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if plain && begins && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(PolicyNameError(text.to_owned()))
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What the machines that it chooses are owed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Policy {
    /// Its name; unique among all files.
    pub name: PolicyName,
    /// Where it stands.
    pub place: Place,
    /// Which machines it is for.
    pub machines: Selector,
    /// Of several policies that choose a machine, the one with the highest counts.
    pub priority: i64,
    /// Snapshots on the machine's own host.
    pub snapshot: Option<SnapshotPolicy>,
    /// Points in repositories; names are unique within the policy.
    pub backups: Vec<BackupPolicy>,
    /// Proofs that it all comes back.
    pub drill: Option<DrillPolicy>,
    /// What is promised.
    pub objectives: Objectives,
    /// When work may be done.
    pub windows: Windows,
    /// How much at once.
    pub limits: Limits,
}

/// What is asked of a cut; what was achieved is told by each snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As a power cut would leave the disks; no agent is asked. With memory, programs go on from it all the same.
    #[default]
    Crash,
    /// File systems are frozen where the agent answers; otherwise as `Crash`, and said.
    FreezeIfPossible,
    /// Frozen, or not at all.
    Freeze,
}

/// Snapshots: when, what, and for how long.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SnapshotPolicy {
    /// When they are due.
    pub schedule: Schedule,
    /// Each machine's are later by its own constant part of this.
    #[serde(serialize_with = "as_seconds")]
    pub jitter: Duration,
    /// With the running state.
    pub memory: bool,
    /// How disks are cut.
    pub consistency: Consistency,
    /// The longest pause that may be expected; none for any.
    #[serde(serialize_with = "as_ms")]
    pub max_pause: Option<Duration>,
    /// Rather a snapshot without memory than none, where the pause would be longer.
    pub or_disk_only: bool,
    /// Which of them stay. With a time to live, what it keeps goes all the same when that is over.
    pub keep: Keep,
    /// The longest that any lives.
    #[serde(serialize_with = "as_ttl")]
    pub ttl: Option<TimeToLive>,
}

/// Which of a history stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// All of them: `keep = "all"`.
    All,
    /// What a rule keeps.
    By(Retention),
}

/// Points in one repository.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupPolicy {
    /// Tells it from others of its policy.
    pub name: PolicyName,
    /// The repository, as `--repo` takes it.
    pub repository: String,
    /// Its key file; without one the repository is not encrypted, or whoever runs the backup knows a passphrase.
    pub key_file: Option<SecretFile>,
    /// When they are due.
    pub schedule: Schedule,
    /// Each machine's are later by its own constant part of this.
    #[serde(serialize_with = "as_seconds")]
    pub jitter: Duration,
    /// With the running state.
    pub memory: bool,
    /// How disks are cut.
    pub consistency: Consistency,
    /// Which of them stay.
    pub keep: Keep,
    /// For how many days a point cannot be forgotten, whatever `keep` says; 0 for none.
    pub lock_days: u32,
    /// The most bytes per second that go to the repository.
    pub bandwidth: Option<ByteLen>,
    /// How much of what is called unchanged is read again, in percent; 0 for none.
    pub audit_percent: u8,
    /// The most work that may be lost when only this repository is left; the policy's promise where there is none.
    #[serde(serialize_with = "as_ttl")]
    pub rpo: Option<TimeToLive>,
    /// Words that every point gets.
    pub tags: Vec<String>,
}

/// What a drill brings back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DrillTarget {
    /// The latest snapshot.
    Snapshot,
    /// The latest point of this backup of the policy.
    Point(PolicyName),
}

/// Proofs: restore, bring up, ask.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrillPolicy {
    /// When they are due.
    pub schedule: Schedule,
    /// Each machine's are later by its own constant part of this.
    #[serde(serialize_with = "as_seconds")]
    pub jitter: Duration,
    /// What is brought back; one drill each.
    pub what: Vec<DrillTarget>,
    /// How long each way of coming back may take until all probes are satisfied.
    #[serde(serialize_with = "as_seconds")]
    pub within: Duration,
    /// What is asked besides what `machine.toml` declares, as `--probe` takes it.
    pub probes: Vec<String>,
}

/// What is promised, and measured against.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Objectives {
    /// Recovery point objective: the most work that may be lost.
    #[serde(serialize_with = "as_ttl")]
    pub rpo: Option<TimeToLive>,
    /// Recovery time objective: the longest until the machine runs again.
    #[serde(serialize_with = "as_ttl")]
    pub rto: Option<TimeToLive>,
}

/// How much of one policy is done at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Jobs of this policy at once.
    pub jobs: Option<u32>,
    /// Jobs of this policy at once whose machines have disks on one disk of the host.
    pub jobs_per_disk: Option<u32>,
}

/// Machines of one application, cut within one short window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its name; unique among all files.
    pub name: PolicyName,
    /// Where it stands.
    pub place: Place,
    /// Which machines belong to it.
    pub machines: Selector,
    /// The longest from the first machine's cut until the last one's.
    #[serde(serialize_with = "as_seconds")]
    pub within: Duration,
}

/// Settings of the host that runs the policies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Host {
    /// Jobs at once.
    pub jobs: u32,
    /// Jobs at once whose machines have disks on one disk of the host.
    pub jobs_per_disk: u32,
    /// The most bytes per second that all backups together send.
    pub bandwidth: Option<ByteLen>,
    /// How long one command of a job may be at work before somebody is told.
    pub deadlines: Deadlines,
    /// What is done only after a second person approved it.
    pub approval: ApprovalRule,
    /// The zone of schedules and windows that name none.
    #[serde(serialize_with = "as_zone")]
    pub time_zone: jiff::tz::TimeZone,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            jobs: 2,
            jobs_per_disk: 1,
            bandwidth: None,
            deadlines: Deadlines::default(),
            approval: ApprovalRule::default(),
            time_zone: jiff::tz::TimeZone::system(),
        }
    }
}

/// How long one command of a job may be at work before somebody is told that it hangs; and how long one that was asked to end may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Deadlines {
    /// Of a snapshot.
    #[serde(serialize_with = "as_seconds")]
    pub snapshot: Duration,
    /// Of a backup.
    #[serde(serialize_with = "as_seconds")]
    pub backup: Duration,
    /// Of a drill.
    #[serde(serialize_with = "as_seconds")]
    pub drill: Duration,
    /// Of anything else.
    #[serde(serialize_with = "as_seconds")]
    pub other: Duration,
    /// From being asked to end until it is killed.
    #[serde(serialize_with = "as_seconds")]
    pub cancel: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        Self { snapshot: hours(2), backup: hours(24), drill: hours(12), other: hours(12), cancel: hours(1) / 12 }
    }
}

/// What takes something away or changes a machine, so that it may need a second person's approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AskedFor {
    /// A machine goes back to a snapshot.
    Revert,
    /// It does, and its present is not kept.
    Discard,
    /// Further machines continue from a snapshot.
    Fork,
    /// A machine is shut down or switched off.
    Stop,
    /// Snapshots are deleted.
    Delete,
}

impl AskedFor {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Revert, Self::Discard, Self::Fork, Self::Stop, Self::Delete];

    /// Its name in policies and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Revert => "revert",
            Self::Discard => "discard",
            Self::Fork => "fork",
            Self::Stop => "stop",
            Self::Delete => "delete",
        }
    }
}

/// Why a text names nothing that may need an approval.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} never needs an approval: write some of {all}", all = AskedFor::ALL.map(AskedFor::as_str).join(", "))]
pub struct AskedForError(String);

impl FromStr for AskedFor {
    type Err = AskedForError;

    fn from_str(text: &str) -> Result<Self, AskedForError> {
        Self::ALL.into_iter().find(|deed| deed.as_str() == text).ok_or_else(|| AskedForError(text.to_owned()))
    }
}

/// What a caller of the daemon does only after a second person approved it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApprovalRule {
    /// What that is; nothing by default.
    pub asked_for: BTreeSet<AskedFor>,
    /// How long a request waits for it.
    #[serde(serialize_with = "as_seconds")]
    pub valid: Duration,
}

impl ApprovalRule {
    /// The shortest that a request may wait.
    pub const SHORTEST: Duration = Duration::from_secs(60);
    /// The longest.
    pub const LONGEST: Duration = Duration::from_secs(30 * 86_400);
}

impl Default for ApprovalRule {
    fn default() -> Self {
        Self { asked_for: BTreeSet::new(), valid: Duration::from_secs(24 * 3600) }
    }
}

/// What kind of thing happened, of which somebody may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A job's first command begins.
    JobBegan,
    /// A job ended well.
    JobDone,
    /// A job ended, and something is missing.
    JobIncomplete,
    /// A job was given up, or a drill failed.
    JobFailed,
    /// Something is to be seen to.
    AlertRaised,
    /// It is no more.
    AlertCleared,
    /// Nothing happened for a while, and that is as it should be: sent each hour, so that silence is an alarm at who listens.
    Alive,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::JobBegan,
        Self::JobDone,
        Self::JobIncomplete,
        Self::JobFailed,
        Self::AlertRaised,
        Self::AlertCleared,
        Self::Alive,
    ];

    /// Its name in policies and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JobBegan => "job-began",
            Self::JobDone => "job-done",
            Self::JobIncomplete => "job-incomplete",
            Self::JobFailed => "job-failed",
            Self::AlertRaised => "alert-raised",
            Self::AlertCleared => "alert-cleared",
            Self::Alive => "alive",
        }
    }
}

/// Why a text is no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of event: there are {kinds}", kinds = EventKind::ALL.map(EventKind::as_str).join(", "))]
pub struct EventKindError(String);

impl FromStr for EventKind {
    type Err = EventKindError;

    fn from_str(text: &str) -> Result<Self, EventKindError> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| EventKindError(text.to_owned()))
    }
}

/// Who is told what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Notify {
    /// Pings of Healthchecks, or what speaks like it.
    pub healthchecks: Vec<Healthchecks>,
    /// Requests with a JSON body.
    pub webhooks: Vec<Webhook>,
    /// Letters.
    pub mail: Vec<Mail>,
}

/// A check that is pinged when jobs begin, end and fail: `URL/start`, `URL`, `URL/fail`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Healthchecks {
    /// Its address.
    pub url: String,
    /// Of which policies; all if there is none.
    pub policies: Vec<PolicyName>,
}

/// A request for each event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Webhook {
    /// Its address.
    pub url: String,
    /// A file with the secret that signs bodies.
    pub secret_file: Option<SecretFile>,
    /// Kinds of events; all if there is none.
    pub events: Vec<EventKind>,
    /// Of which policies; all if there is none.
    pub policies: Vec<PolicyName>,
}

/// A letter for alerts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mail {
    /// To whom.
    pub to: Vec<String>,
    /// From whom.
    pub from: String,
    /// The server, `HOST:PORT`.
    pub server: String,
    /// The user at the server.
    pub user: Option<String>,
    /// A file with the password.
    pub password_file: Option<SecretFile>,
    /// A file with the certificates, in PEM, that the server's is to be signed by, instead of those that the host trusts. With it nothing is
    /// sent without TLS.
    pub ca_file: Option<PathBuf>,
    /// Kinds of events; alerts that are raised and jobs that failed if there is none.
    pub events: Vec<EventKind>,
}

fn as_seconds<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(span.as_secs_f64())
}

fn as_ms<S: Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    span.map(|span| span.as_millis()).serialize(serializer)
}

fn as_ttl<S: Serializer>(span: &Option<TimeToLive>, serializer: S) -> Result<S::Ok, S::Error> {
    span.map(|span| span.duration().as_secs()).serialize(serializer)
}

pub(crate) fn as_zone<S: Serializer>(zone: &jiff::tz::TimeZone, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::calendar::zone_name(zone))
}
