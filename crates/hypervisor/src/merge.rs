//! Merging layers into one another by QEMU's block jobs, in a machine that runs or in a storage daemon.
//!
//! A merge copies data, then changes the chain. The copy changes nothing that anybody reads: what is written below is
//! covered by what is above, and what is written above is what was read there before. It may end anywhere. Only when all
//! is copied *and flushed* the chain is changed: the job waits to be finalized until then, since QEMU itself would write
//! the new header before the data that it relies on are safe. In a storage daemon the chain is not changed at all: when
//! the daemon has closed its files, whoever asked for the merge changes headers himself.
//!
//! | job | data move | the chain afterwards |
//! |---|---|---|
//! | pull (`block-stream`) | up, into a layer | it stands on what the merged ones stood on |
//! | push (`block-commit`) | down, into a layer | whoever stood on the topmost merged one stands on it |
//! | push of the active layer | down | the guest writes to the lower one: only while it is stopped, so that the two are never apart |

use std::path::PathBuf;
use std::time::{Duration, Instant};

use keyframe_qmp::Client;
use keyframe_qmp::commands::block::{BlockCommit, BlockStream, BlockdevDel, QueryNamedBlockNodes};
use keyframe_qmp::commands::job::{BlockJobComplete, Job, JobCancel, JobDismiss, JobFinalize, JobStatus, QueryJobs};
use keyframe_qmp::ids::{JobId, NodeName};
use serde_json::{Value, json};

use crate::error::Error;

/// How often a job is looked at: the longer it takes, the less often, since a short one would mostly be waited for.
const TICKS: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(20);
/// How long a job may take for its last step while the guest stands still.
const STOPPED_PATIENCE: Duration = Duration::from_secs(5);
/// How long a job may take for a step that moves no data.
const STEP_PATIENCE: Duration = Duration::from_secs(120);

/// Which way data move, between nodes by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Direction {
    /// Into the layer from those below it, down to `base`, which it stands on afterwards.
    Pull {
        /// What takes the data.
        into: String,
        /// What it stands on afterwards.
        base: Option<String>,
    },
    /// From `top` and those below it down into `into`.
    Push {
        /// The root of the chain: the active layer.
        root: String,
        /// The topmost that is merged away.
        top: String,
        /// What takes the data.
        into: String,
    },
}

impl Direction {
    /// Whether the active layer is merged away.
    fn is_of_active(&self) -> bool {
        matches!(self, Self::Push { root, top, .. } if root == top)
    }
}

/// A merge to be made.
#[derive(Debug, Clone)]
pub struct MergeOrder {
    /// Which way.
    pub direction: Direction,
    /// Name of the new backing file, for the header that changes with the chain.
    pub backing_file: Option<String>,
    /// Bytes per second; no limit if `None`.
    pub speed_bytes_per_s: Option<u64>,
}

/// How far a merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeProgress {
    /// In the job's own units, roughly bytes of the guest's disk.
    pub done: u64,
    /// In the same; 0 while QEMU is still looking at what there is to do.
    pub total: u64,
    /// Whether all was copied once, and only what the guest has written since is to come.
    pub ready: bool,
}

/// What whoever watches over a merge wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    GoOn,
    /// Take it back: the chain stays as it was.
    GiveUp,
}

/// How copying ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// Everything is copied; the chain is as it was until [`flush`] and [`settle`].
    All,
    /// It was given up; the chain is as it was, and the job is gone.
    GivenUp,
}

fn job_id(name: &str) -> Result<JobId, Error> {
    Ok(JobId::new(name)?)
}

fn node(name: &str) -> Result<NodeName, Error> {
    Ok(NodeName::new(name)?)
}

fn find(monitor: &mut Client, id: &JobId) -> Result<Option<Job>, Error> {
    Ok(monitor.call(&QueryJobs {})?.into_iter().find(|job| job.id == *id))
}

/// Copies. `watch` is asked every few milliseconds; a job of the active layer is ready at
/// any time after its first pass, and `watch` sees it as done with what the guest has written since still to come.
///
/// # Errors
/// [`Error::Merge`] when the job failed: the chain is as it was, and the job is gone. [`Error::Qmp`].
pub fn copy(
    monitor: &mut Client,
    name: &str,
    order: &MergeOrder,
    mut watch: impl FnMut(MergeProgress) -> Verdict,
) -> Result<Copied, Error> {
    let id = job_id(name)?;
    begin(monitor, &id, order)?;
    let begun = Instant::now();
    let mut limited = order.speed_bytes_per_s.is_some();
    loop {
        let Some(job) = find(monitor, &id)? else {
            return Err(Error::Merge { reason: "the job vanished".to_owned() });
        };
        let progress = MergeProgress {
            done: u64::try_from(job.current_progress).unwrap_or(0),
            total: u64::try_from(job.total_progress).unwrap_or(0),
            ready: job.status == JobStatus::Ready,
        };
        match job.status {
            JobStatus::Concluded => return ended(monitor, &id, job.error, STEP_PATIENCE),
            JobStatus::Pending => return Ok(Copied::All),
            // The guest may be faster than the disk below: that is for the watcher to say.
            JobStatus::Ready if progress.total.saturating_sub(progress.done) <= CLOSE_BYTES => {
                if !limited {
                    return Ok(Copied::All);
                }
                // What is left is copied while the guest stands still, and no limit may make that longer.
                monitor.execute("block-job-set-speed", &json!({ "device": id.as_str(), "speed": 0 }))?;
                limited = false;
            }
            _ => {}
        }
        if watch(progress) == Verdict::GiveUp {
            give_up(monitor, name)?;
            return Ok(Copied::GivenUp);
        }
        std::thread::sleep((begun.elapsed() / 16).clamp(*TICKS.start(), *TICKS.end()));
    }
}

/// What may still be to copy of an active layer when its guest is stopped: a disk does it in some milliseconds.
const CLOSE_BYTES: u64 = 1 << 20;

fn begin(monitor: &mut Client, id: &JobId, order: &MergeOrder) -> Result<(), Error> {
    let (job_id, speed_bytes_per_s) = (id.clone(), order.speed_bytes_per_s);
    let backing_file = order.backing_file.clone();
    match &order.direction {
        Direction::Pull { into, base } => {
            monitor.call(&BlockStream {
                job_id,
                device: into.clone(),
                base_node: base.as_deref().map(node).transpose()?,
                backing_file: backing_file.filter(|_| base.is_some()),
                speed_bytes_per_s,
                auto_dismiss: false,
                auto_finalize: false,
            })?;
        }
        Direction::Push { root, top, into } => {
            let active = order.direction.is_of_active();
            monitor.call(&BlockCommit {
                job_id,
                device: root.clone(),
                top_node: (!active).then(|| node(top)).transpose()?,
                base_node: Some(node(into)?),
                backing_file: backing_file.filter(|_| !active),
                speed_bytes_per_s,
                auto_dismiss: false,
                // A job of the active layer flushes by itself, and is completed while the guest is stopped.
                auto_finalize: active,
            })?;
        }
    }
    Ok(())
}

/// Has QEMU write out what it holds in memory of the layer that took the data, in a machine that runs. QEMU does not tell
/// whether that worked: the caller looks into the file.
///
/// # Errors
/// [`Error::Merge`] when it cannot be flushed, [`Error::Qmp`].
pub fn flush(monitor: &mut Client, order: &MergeOrder) -> Result<(), Error> {
    let (Direction::Pull { into, .. } | Direction::Push { into, .. }) = &order.direction;
    // There is no other way to flush a node in the middle of a chain. Source: hmp-commands.hx, `qemu-io`.
    let line = format!("qemu-io {into} flush");
    let said: String = monitor.execute_as("human-monitor-command", &json!({ "command-line": line }))?;
    match said.trim() {
        "" => Ok(()),
        said => Err(Error::Merge { reason: format!("flushing the merged layer: {said}") }),
    }
}

/// Changes the chain after [`copy`] and [`flush`]. For an active layer the caller has stopped the guest.
///
/// # Errors
/// [`Error::Merge`]: the caller looks what the chain is like.
pub fn settle(monitor: &mut Client, name: &str, order: &MergeOrder) -> Result<(), Error> {
    let id = job_id(name)?;
    let patience = if order.direction.is_of_active() {
        monitor.call(&BlockJobComplete { device: id.clone() })?;
        STOPPED_PATIENCE
    } else {
        monitor.call(&JobFinalize { id: id.clone() })?;
        STEP_PATIENCE
    };
    ended(monitor, &id, None, patience).map(drop)
}

/// Waits for a job's end and lets go of it.
fn ended(monitor: &mut Client, id: &JobId, mut reason: Option<String>, patience: Duration) -> Result<Copied, Error> {
    let deadline = Instant::now() + patience;
    while let Some(job) = find(monitor, id)? {
        if job.status == JobStatus::Concluded {
            reason = reason.or(job.error);
            monitor.call(&JobDismiss { id: id.clone() })?;
            break;
        }
        if Instant::now() >= deadline {
            return Err(Error::Late { what: "merging layers", waited: patience });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    match reason {
        None => Ok(Copied::All),
        Some(reason) => Err(Error::Merge { reason }),
    }
}

/// Ends a job, if there is one, and leaves the chain as it was.
///
/// # Errors
/// [`Error::Late`], [`Error::Qmp`].
pub fn give_up(monitor: &mut Client, name: &str) -> Result<(), Error> {
    let id = job_id(name)?;
    if find(monitor, &id)?.is_none() {
        return Ok(());
    }
    // One that has ended in this moment refuses; how it ended shows in the chain.
    let _ = monitor.call(&JobCancel { id: id.clone() });
    match ended(monitor, &id, None, STEP_PATIENCE) {
        Ok(_) | Err(Error::Merge { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Names of all jobs that begin with `prefix`.
///
/// # Errors
/// [`Error::Qmp`].
pub fn jobs(monitor: &mut Client, prefix: &str) -> Result<Vec<String>, Error> {
    let jobs = monitor.call(&QueryJobs {})?;
    Ok(jobs.into_iter().map(|job| job.id.as_str().to_owned()).filter(|id| id.starts_with(prefix)).collect())
}

/// The file of what a node stands on, in the chain as QEMU reads it now, whatever headers say; `None` when it stands on nothing.
///
/// # Errors
/// [`Error::Qmp`].
pub fn stands_on(monitor: &mut Client, name: &str) -> Result<Option<PathBuf>, Error> {
    let nodes = monitor.call(&QueryNamedBlockNodes::flat())?;
    let found = nodes.into_iter().find(|node| node.node_name.as_ref().is_some_and(|node| node.as_str() == name));
    Ok(found.and_then(|node| node.backing_file).as_deref().and_then(file_of))
}

/// The path in a file name as QEMU writes it: the path itself, or `json:` and options.
fn file_of(told: &str) -> Option<PathBuf> {
    let Some(options) = told.strip_prefix("json:") else { return Some(PathBuf::from(told)) };
    let options: Value = serde_json::from_str(options).ok()?;
    let name = options.pointer("/file/filename").or_else(|| options.get("filename"))?;
    name.as_str().map(PathBuf::from)
}

/// Has QEMU write the header of `name` again, which says that it stands on `base`, as it does in the chain already. It is a pull
/// of what lies between the two: nothing. (`change-backing-file` would note a wrong format.)
///
/// # Errors
/// [`Error::Merge`] when it cannot be written; [`Error::Qmp`].
pub fn write_header(
    monitor: &mut Client,
    job: &str,
    name: &str,
    base: &str,
    backing_file: String,
) -> Result<(), Error> {
    let id = job_id(job)?;
    monitor.call(&BlockStream {
        job_id: id.clone(),
        device: name.to_owned(),
        base_node: Some(node(base)?),
        backing_file: Some(backing_file),
        speed_bytes_per_s: None,
        auto_dismiss: false,
        auto_finalize: true,
    })?;
    ended(monitor, &id, None, STEP_PATIENCE).map(drop)
}

/// Closes nodes that a merge took out of the chain, and the files below them; those that are closed already are passed
/// over.
pub fn close(monitor: &mut Client, nodes: &[String]) {
    for name in nodes {
        if let Ok(name) = node(name) {
            // A node that is not there is as good as one that is closed.
            let _ = monitor.call(&BlockdevDel { node_name: name });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_in_what_qemu_calls_them() {
        let plain = Some(PathBuf::from("/d/a.qcow2"));
        assert_eq!(file_of("/d/a.qcow2"), plain);
        let told = r#"json:{"backing": {"driver": "qcow2", "file": {"driver": "file", "filename": "/d/b"}}, "driver": "qcow2",
            "file": {"driver": "file", "filename": "/d/a.qcow2"}}"#;
        assert_eq!(file_of(told), plain);
        assert_eq!(file_of(r#"json:{"driver": "file", "filename": "/d/a.qcow2"}"#), plain);
        assert_eq!(file_of("json:{"), None);
    }
}
