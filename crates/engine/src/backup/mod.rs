//! A machine's state in a repository: complete in itself, away from the machine.
//!
//! ```text
//!   snapshot ─▶ held ─▶ disks, memory stored ─▶ point (the commit) ─▶ let go ─▶ snapshot deleted, layers merged
//!   filters ─▶ disks as they were stored ─▶ point (the commit) ─▶ filters removed             (`--live`)
//! ```
//! Frozen layers are read directly: neither QEMU nor the guest is in the way, and neither waits for the repository. The
//! machine's lock is held while the snapshot is taken and while it is let go, not while it is read. What is read is held as
//! what a test stands on is ([`crate::drill`]): nobody deletes or merges it, and a backup that is killed holds nothing. See
//! [`live`] for the other way.
//!
//! A backup that fails, or is killed, leaves no point, and of a snapshot taken for it, one that expires within a day.

mod audit;
mod changes;
mod frozen;
pub mod group;
pub(crate) mod live;
pub mod members;
mod memory;
mod point;
mod storing;
mod unreadable;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use keyframe_repo::{Repository, Totals};
use keyframe_types::{ByteLen, SnapshotId, SnapshotSelector, Timestamp, VmName};
use serde::Serialize;

use crate::context::Context;
use crate::courtesy::aside;
use crate::error::Error;
use crate::machine::Machine;
use crate::snapshot::Freeze;
use crate::state::manifest::Consistency;

pub use live::{LiveOptions, LiveReport};
pub use point::{ChangedBy, DiskInPoint, INITRD, KERNEL, MEMORY, MEMORY_HOT, MEMORY_SUMS, MachinePoint, Way};
use storing::{Previous, Stored};

/// The state that is stored.
#[derive(Debug, Clone)]
pub enum StateOf {
    /// A snapshot's.
    Snapshot {
        /// One that exists; one is taken, and let go afterwards, if `None`.
        existing: Option<SnapshotSelector>,
        /// The running state, too: of a snapshot that exists, its memory.
        memory: bool,
    },
    /// The disks' at an instant, while the guest writes on.
    Live(LiveOptions),
}

/// What to store.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// The machine.
    pub vm: VmName,
    /// Which state of it.
    pub of: StateOf,
    /// Whether to freeze file systems around the snapshot that is taken, or the instant.
    pub freeze: Freeze,
    /// So many percent of what change tracking calls unchanged is read and compared; 0 for none.
    pub audit_percent: u8,
    /// Words to find the point by.
    pub tags: Vec<String>,
    /// Why it is made.
    pub note: Option<String>,
}

/// What a backup came to.
#[derive(Debug, Serialize)]
pub struct BackupReport {
    /// The point's id.
    pub id: String,
    /// Its history: the machine's name.
    pub name: String,
    /// When the state in it was.
    pub state_of: Timestamp,
    /// What was achieved.
    pub consistency: Consistency,
    /// Whether the running state is in it.
    pub memory: bool,
    /// How it was known what had changed, for each disk.
    pub changed_by: BTreeMap<String, ChangedBy>,
    /// How the state was got hold of.
    pub taken: Way,
    /// The snapshot that was stored; `None` for a live backup.
    pub snapshot: Option<SnapshotId>,
    /// Whether that snapshot is still there.
    pub snapshot_kept: bool,
    /// The guest's pause, in milliseconds; `None` for a snapshot that existed.
    pub pause_ms: Option<f64>,
    /// What a live backup asked of the guest; `None` for any other.
    pub live: Option<LiveReport>,
    /// What storing took.
    pub totals: Totals,
    /// What was read again of what change tracking called unchanged; `None` without an audit.
    pub audited_bytes: Option<ByteLen>,
    /// What could not be read of its disks, and is zeros in the point.
    pub unreadable_bytes: ByteLen,
    /// Nothing is missing in the point, as far as was looked.
    pub whole: bool,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
    /// What a person should know.
    pub notes: Vec<String>,
    /// The point is there, and something is missing in it, or behind it did not work.
    pub incomplete: bool,
}

/// What came of a way to back up.
struct Outcome {
    stored: Stored,
    snapshot: Option<SnapshotId>,
    snapshot_kept: bool,
    pause_ms: Option<f64>,
    live: Option<LiveReport>,
    notes: Vec<String>,
    /// Something behind the point did not work.
    incomplete: bool,
}

/// Stores a machine's state as a point. Whether the repository can be read is known before the machine is touched.
///
/// # Errors
/// Whatever fails before the point is there: there is none then, and the machine is as it was.
pub fn backup(ctx: &Context<'_>, repository: &Arc<Repository>, request: &BackupRequest) -> Result<BackupReport, Error> {
    let begun = Instant::now();
    let uuid = Machine::open(ctx.home, &request.vm)?.definition.uuid;
    // There may be thousands of points to look through.
    let previous = aside(|| previous(repository, &request.vm, &uuid))?;
    let outcome = match &request.of {
        StateOf::Snapshot { existing, memory } => {
            frozen::backup(ctx, repository, request, (existing.as_ref(), *memory), previous.as_ref())?
        }
        StateOf::Live(options) => live::backup(ctx, repository, request, options, previous.as_ref())?,
    };
    let Outcome { stored, snapshot, snapshot_kept, pause_ms, live, mut notes, incomplete } = outcome;
    let Stored { point, document: machine, audited, found } = stored;
    let unreadable = machine.unreadable_bytes();
    let whole = found.is_empty() && unreadable == ByteLen::ZERO;
    notes.extend(found);
    if unreadable > ByteLen::ZERO {
        notes.push(format!(
            "{unreadable} of its disks could not be read, and are zeros in the point: look at the host's disks, and at \
             `keyframe check {} --data`",
            request.vm
        ));
    }
    Ok(BackupReport {
        id: point.id.to_string(),
        name: point.name,
        state_of: machine.snapshot.created,
        consistency: machine.snapshot.consistency,
        memory: machine.snapshot.memory.is_some(),
        changed_by: machine.disks.iter().map(|disk| (disk.disk.to_string(), disk.changed_by)).collect(),
        taken: machine.taken,
        snapshot,
        snapshot_kept,
        pause_ms,
        live,
        totals: point.totals,
        audited_bytes: audited,
        unreadable_bytes: unreadable,
        whole,
        total_ms: (begun.elapsed().as_secs_f64() * 1e6).round() / 1e3,
        notes,
        incomplete: incomplete || !whole,
    })
}

/// The latest point of the machine with this UUID: another machine that once had its name shares nothing by place.
fn previous(repository: &Repository, vm: &VmName, uuid: &str) -> Result<Option<Previous>, Error> {
    let (points, _damaged) = repository.points()?;
    let of_machine = members::apart(points).rev().filter(|point| point.name == vm.as_str());
    let decoded = of_machine.filter_map(|point| MachinePoint::of(&point).ok().map(|machine| (point, machine)));
    let mut same = decoded.filter(|(_, machine)| machine.snapshot.definition.uuid == uuid);
    Ok(same.next())
}
