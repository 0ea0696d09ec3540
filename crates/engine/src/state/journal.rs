//! `journal.json`: the operation in flight, for whoever comes after a crash.
//!
//! An operation writes what it is about to do before it does it, and removes the journal when it is done.
//! Whoever finds one (`recover`) finishes what was committed and undoes what was not.

use std::path::PathBuf;
use std::sync::Arc;

use keyframe_types::{DiskId, SnapshotId};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::state::head::{Chain, Head, Layer};
use crate::state::home::VmDir;
use crate::state::manifest::Memory;
use crate::state::sealed::{self, Document};
use crate::state::tree::LayerRef;

/// The operation in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "kebab-case")]
pub enum Journal {
    /// A snapshot. Committed by its manifest.
    Snapshot(Box<SnapshotJournal>),
    /// A revert. Committed by the head that names the new process.
    Revert(Box<RevertJournal>),
    /// A fork. Committed by the head that names its process; undone by removing the machine. Kept until the guest has
    /// a network card of its own, runs and is thawed.
    Fork,
    /// A machine that boots from a point. Committed by the head that names its process; undone by removing the machine.
    Boot {
        /// Whether it is let run.
        runs: bool,
    },
    /// Layers of one disk that become one. Committed by `tree.json`, or by the head for an active layer; every chain
    /// reads the same before and after.
    Merge(Box<MergeJournal>),
    /// A live backup: nothing of it is to stay in the machine, whatever becomes of its point.
    Live(LiveJournal),
    /// A snapshot on its way out. Its manifest is gone first, so it is always finished.
    Delete {
        /// Which one.
        id: SnapshotId,
        /// The head takes this parent instead, if it descends from it.
        parent: Option<SnapshotId>,
    },
}

impl Journal {
    /// The present that a revert in flight leaves: it may be kept as a snapshot yet, or gone back to, and no other document
    /// names its layers meanwhile.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Schema`], [`Error::Io`].
    pub fn present_left(dir: &VmDir) -> Result<Option<Head>, Error> {
        Ok(match sealed::read(&dir.journal())? {
            Some(Self::Revert(journal)) => Some(journal.before),
            _ => None,
        })
    }
}

impl Document for Journal {
    const SCHEMA: &'static str = "keyframe.journal/2";
}

/// A snapshot in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotJournal {
    /// The snapshot's id.
    pub id: SnapshotId,
    /// The head before.
    pub before: Head,
    /// The new active layers, one above each chain.
    pub overlays: Vec<Chain>,
    /// Whether the machine ran.
    pub was_running: bool,
    /// Whether a freeze of the guest's file systems was or will be asked for.
    pub freezes: bool,
}

/// A revert in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevertJournal {
    /// The snapshot that is reverted to.
    pub target: SnapshotId,
    /// The head before.
    pub before: Head,
    /// The head after.
    pub after: Head,
    /// The snapshot that keeps the present, if it is kept.
    pub keep: Option<SnapshotId>,
    /// What that snapshot's note says.
    pub keep_note: Option<String>,
    /// The present's memory, once it is written in that snapshot's directory: from then on its process may end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_memory: Option<Memory>,
    /// Whether there was a process, whatever has become of it.
    #[serde(default = "yes")]
    pub had_process: bool,
    /// Whether the machine ran.
    pub was_running: bool,
    /// Whether it runs afterwards: a snapshot of a paused machine stays paused.
    #[serde(default = "yes")]
    pub runs: bool,
}

/// A live backup in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveJournal {
    /// Its scratch files; they have no names any more once QEMU has opened them.
    pub scratch: Vec<PathBuf>,
    /// Whether the machine ran.
    pub was_running: bool,
    /// Whether a freeze of the guest's file systems was or will be asked for.
    pub freezes: bool,
}

/// Which way data move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From the lower layers up into the topmost.
    Pull,
    /// From the upper layers down into the lowest.
    Push,
}

/// A merge in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeJournal {
    /// The disk.
    pub disk: DiskId,
    /// The layers that become one, the lowest first. The one that stays has the id of the topmost and the file of the
    /// one that takes the data.
    pub layers: Vec<Arc<Layer>>,
    /// What the lowest stands on.
    pub base: Option<LayerRef>,
    /// Which way.
    pub way: Way,
    /// Whether the topmost is written to by the machine's present.
    pub active: bool,
    /// Whether the machine's process has the layers open.
    pub live: bool,
    /// Whether the machine ran.
    pub was_running: bool,
}

impl MergeJournal {
    /// Whether the guest stands still while the chain is changed.
    #[must_use]
    pub fn stops_guest(&self) -> bool {
        self.active && self.way == Way::Push && self.live
    }
}

/// What earlier versions did.
const fn yes() -> bool {
    true
}
