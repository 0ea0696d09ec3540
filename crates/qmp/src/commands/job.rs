//! Background jobs.

use serde::{Deserialize, Serialize};

use super::{Empty, command};
use crate::ids::JobId;

open_enum! {
    /// Source: `qapi/job.json`, `JobStatus`.
    pub enum JobStatus {
        /// Not yet valid.
        Undefined = "undefined",
        /// Exists, did not start.
        Created = "created",
        /// Runs.
        Running = "running",
        /// Paused by the user or by QEMU.
        Paused = "paused",
        /// Done but for its completion (`block-job-complete`).
        Ready = "ready",
        /// Ready, and paused.
        Standby = "standby",
        /// Waits for the other jobs of its transaction.
        Waiting = "waiting",
        /// Waits to be finalized.
        Pending = "pending",
        /// Failed or was cancelled, cleans up.
        Aborting = "aborting",
        /// Ended, waits to be dismissed; its error can be read.
        Concluded = "concluded",
        /// Is about to vanish.
        Null = "null",
    }
}

/// Source: `qapi/job.json`, `query-jobs`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryJobs {}
command!(QueryJobs, "query-jobs" -> Vec<Job>);

/// Source: `qapi/job.json`, `JobInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// `commit`, `mirror` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it stands.
    pub status: JobStatus,
    /// In units of the job's own.
    pub current_progress: i64,
    /// In the same units; may grow.
    pub total_progress: i64,
    /// Why it failed.
    pub error: Option<String>,
}

/// Source: `qapi/block-core.json`, `query-block-jobs`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryBlockJobs {}
command!(QueryBlockJobs, "query-block-jobs" -> Vec<BlockJob>);

/// Source: `qapi/block-core.json`, `BlockJobInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJob {
    /// Its name.
    pub device: JobId,
    /// `commit`, `mirror` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes to do.
    #[serde(rename = "len")]
    pub len_bytes: u64,
    /// Bytes done.
    #[serde(rename = "offset")]
    pub offset_bytes: u64,
    /// Whether it can be completed.
    pub ready: bool,
    /// Where it stands.
    pub status: JobStatus,
    /// Why it failed.
    pub error: Option<String>,
}

/// Completes a job that is ready. Source: `qapi/block-core.json`, `block-job-complete`.
#[derive(Debug, Clone, Serialize)]
pub struct BlockJobComplete {
    /// Which.
    pub device: JobId,
}
command!(BlockJobComplete, "block-job-complete" -> Empty);

/// Cancels a job; its end is still to be waited for. Source: `qapi/block-core.json`, `block-job-cancel`.
#[derive(Debug, Clone, Serialize)]
pub struct BlockJobCancel {
    /// Which.
    pub device: JobId,
    /// Also when it is ready: a mirror would otherwise complete.
    pub force: bool,
}
command!(BlockJobCancel, "block-job-cancel" -> Empty);

/// Lets a job that waits for it do its last step. Source: `qapi/job.json`, `job-finalize`.
#[derive(Debug, Clone, Serialize)]
pub struct JobFinalize {
    /// Which.
    pub id: JobId,
}
command!(JobFinalize, "job-finalize" -> Empty);

/// Cancels a job of any kind, whatever it waits for. Source: `qapi/job.json`, `job-cancel`.
#[derive(Debug, Clone, Serialize)]
pub struct JobCancel {
    /// Which.
    pub id: JobId,
}
command!(JobCancel, "job-cancel" -> Empty);

/// Lets go of a job that ended. Source: `qapi/job.json`, `job-dismiss`.
#[derive(Debug, Clone, Serialize)]
pub struct JobDismiss {
    /// Which.
    pub id: JobId,
}
command!(JobDismiss, "job-dismiss" -> Empty);
