//! What happens, for whoever is to be told.

use jiff::Timestamp;
use serde::Serialize;

pub use keyframe_policy::EventKind as What;

use crate::verdict::Severity;

/// The form of documents that tell one.
pub const SCHEMA: &str = "keyframe.event/1";

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
