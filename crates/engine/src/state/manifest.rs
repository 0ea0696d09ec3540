//! `manifest.json`: what a snapshot is. Written last and never changed: no manifest, no snapshot.
//!
//! It names the layer that it froze of each disk; what that stands on is in `tree.json` (see [`crate::state::tree`]).

use std::path::PathBuf;

use keyframe_hypervisor::{Accelerator, MachineDefinition, QemuVersion};
use keyframe_types::{ByteLen, GroupCutId, SnapshotId, SnapshotName, Timestamp, VmName};
use serde::{Deserialize, Serialize};

use crate::state::head::Chain;
use crate::state::sealed::Document;
use crate::state::tree::FrozenTop;

/// A snapshot: with whole chains, or with what its document says of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest<C = Chain> {
    /// Its id.
    pub id: SnapshotId,
    /// The name it was given, or one made from the time.
    pub name: SnapshotName,
    /// Why it was taken, in the words of whoever took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Who took it.
    pub owner: String,
    /// The instant that it holds.
    pub created: Timestamp,
    /// When it may be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Kept whatever else is said.
    #[serde(default)]
    pub pinned: bool,
    /// The snapshot that it follows.
    pub parent: Option<SnapshotId>,
    /// The machines that were cut with it, at the same instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupCut>,
    /// What was achieved.
    pub consistency: Consistency,
    /// How the instant was made.
    pub cut: Cut,
    /// What the machine was doing at that instant.
    pub state: StateAtCut,
    /// Whether the guest's file systems were frozen at that instant, and have to be thawed after a revert.
    #[serde(default)]
    pub frozen: bool,
    /// The machine that was snapshotted.
    pub definition: MachineDefinition,
    /// What QEMU it ran on; for a machine that was off, what would have run it.
    pub qemu: QemuUsed,
    /// Memory and devices; `None` for a disk-only snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Chains of frozen layers, the one that the snapshot froze first.
    pub disks: Vec<C>,
    /// The same for the firmware's variables.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub nvram: Option<C>,
    /// What it cost.
    pub cost: Cost,
}

/// For chains of any kind: a derived default would ask them for one.
const fn none<C>() -> Option<C> {
    None
}

impl Document for Manifest<FrozenTop> {
    const SCHEMA: &'static str = "keyframe.snapshot/2";
}

impl<C> Manifest<C> {
    /// The chains of disks and variables.
    pub fn chains(&self) -> impl Iterator<Item = &C> {
        self.disks.iter().chain(&self.nvram)
    }

    /// The same snapshot with other chains.
    ///
    /// # Errors
    /// The first that `other` fails with.
    pub fn with_chains<D, E>(self, mut other: impl FnMut(&C) -> Result<D, E>) -> Result<Manifest<D>, E> {
        Ok(Manifest {
            disks: self.disks.iter().map(&mut other).collect::<Result<_, E>>()?,
            nvram: self.nvram.as_ref().map(other).transpose()?,
            id: self.id,
            name: self.name,
            note: self.note,
            owner: self.owner,
            created: self.created,
            expires: self.expires,
            pinned: self.pinned,
            parent: self.parent,
            group: self.group,
            consistency: self.consistency,
            cut: self.cut,
            state: self.state,
            frozen: self.frozen,
            definition: self.definition,
            qemu: self.qemu,
            memory: self.memory,
            cost: self.cost,
        })
    }
}

/// One of a group's snapshots, taken while all of its machines stood still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCut {
    /// What tells this instant from others of the same machines.
    pub id: GroupCutId,
    /// The machines, this one among them, by name.
    pub machines: Vec<VmName>,
}

/// What a snapshot is worth: what was achieved, not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Memory, devices and disks of one proved instant.
    RunningState,
    /// Frozen with the guest's own hooks.
    Application,
    /// File systems frozen, or the guest had shut itself down.
    Filesystem,
    /// What a power cut would have left.
    Crash,
}

impl Consistency {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunningState => "running-state",
            Self::Application => "application",
            Self::Filesystem => "filesystem",
            Self::Crash => "crash",
        }
    }
}

/// How memory and disks were made to be of one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// Disks cut within QEMU's own stop; proved by the disks' idle time.
    AtQemusStop,
    /// The machine was stopped before, until both were cut.
    StopFirst,
    /// The machine was not running: nothing could move.
    Still,
    /// Disks only, in one transaction.
    DisksOnly,
}

/// What the machine was doing when it was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateAtCut {
    /// vCPUs ran.
    Running,
    /// vCPUs were paused.
    Paused,
    /// There was no process.
    Stopped,
}

/// The QEMU that a snapshot belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuUsed {
    /// Its version.
    pub version: QemuVersion,
    /// What ran the guest's instructions.
    pub accelerator: Accelerator,
    /// Fingerprint of the host's processor, where the guest sees it (KVM with the host's CPU model).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_cpu: Option<String>,
}

/// The memory image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Name of the image in the snapshot's directory.
    pub file: PathBuf,
    /// Name of its checksums in the snapshot's directory.
    pub sums_file: PathBuf,
    /// BLAKE3 of the checksums file.
    pub sums_blake3: String,
    /// RAM of the machine.
    pub ram_bytes: ByteLen,
    /// Space that the image takes.
    pub bytes_on_disk: ByteLen,
}

/// What a snapshot cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// From STOP to RESUME as QEMU tells it, in milliseconds; 0 for a machine that was not running.
    pub pause_ms: f64,
    /// The longest that a vCPU was seen to wait for a page to be saved, in milliseconds.
    pub guest_stall_ms_max: Option<f64>,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
}
