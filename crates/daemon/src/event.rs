//! What happens, for whoever is to be told.

use jiff::Timestamp;
use serde::Serialize;

use crate::verdict::Severity;

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
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

impl What {
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

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// What kind of thing.
    pub what: What,
    /// When.
    pub at: Timestamp,
    /// On which host.
    pub host: String,
    /// The machine it is about.
    pub machine: Option<String>,
    /// The policy that owes it.
    pub policy: Option<String>,
    /// The job's name, or the alert's.
    pub id: String,
    /// `snapshot`, `backup`, `drill`, … of a job.
    pub kind: Option<String>,
    /// How much it weighs, of an alert.
    pub severity: Option<Severity>,
    /// What is so, in a sentence.
    pub text: String,
    /// What to do about it.
    pub advice: Option<String>,
}
