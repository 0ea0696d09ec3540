//! `head.json`: a machine's present.
//!
//! The layers it writes to, the snapshot it descends from and the QEMU process that carries it are one
//! document, so that a revert replaces all three in one rename. What is below the active layers stands in `tree.json`
//! (see [`crate::state::tree`]).

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyframe_hypervisor::{Accelerator, InstanceRecord, LayerFormat, MachineDefinition};
use keyframe_types::{ByteLen, DiskId, LayerId, SnapshotId, VmName};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext as _};
use crate::state::home::Home;
use crate::state::sealed::Document;
use crate::state::tree::ActiveTop;

/// A machine's present: with whole chains, or with what its document says of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head<C = Chain> {
    /// The snapshot it descends from.
    pub parent: Option<SnapshotId>,
    /// The chains of its disks, in the order of the definition.
    pub disks: Vec<C>,
    /// The chain of the firmware's variables.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub nvram: Option<C>,
    /// The QEMU process, if one was started and not seen to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Whether the guest shut itself down the last time it ran.
    #[serde(default)]
    pub clean_shutdown: bool,
    /// The snapshot of another machine that it was forked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// A snapshot of another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The machine.
    pub vm: VmName,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// For chains of any kind: a derived default would ask them for one.
const fn none<C>() -> Option<C> {
    None
}

impl Document for Head<ActiveTop> {
    const SCHEMA: &'static str = "keyframe.head/2";
}

impl<C> Head<C> {
    /// The chains of disks and variables.
    pub fn chains(&self) -> impl Iterator<Item = &C> {
        self.disks.iter().chain(&self.nvram)
    }

    /// The same, to be changed.
    pub fn chains_mut(&mut self) -> impl Iterator<Item = &mut C> {
        self.disks.iter_mut().chain(&mut self.nvram)
    }

    /// The same head with other chains.
    ///
    /// # Errors
    /// The first that `other` fails with.
    pub fn with_chains<D, E>(&self, mut other: impl FnMut(&C) -> Result<D, E>) -> Result<Head<D>, E> {
        Ok(Head {
            parent: self.parent.clone(),
            disks: self.disks.iter().map(&mut other).collect::<Result<_, E>>()?,
            nvram: self.nvram.as_ref().map(other).transpose()?,
            process: self.process.clone(),
            clean_shutdown: self.clean_shutdown,
            origin: self.origin.clone(),
        })
    }
}

/// The QEMU process that carries the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// How to find and reach it.
    pub instance: InstanceRecord,
    /// What runs its instructions.
    pub accelerator: Accelerator,
    /// What it was started as: machine.toml may have been edited since. `None` if an older Keyframe started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<MachineDefinition>,
    /// The snapshot whose memory image is its RAM, for a fork that maps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped: Option<PathBuf>,
    /// The memory image that its RAM is served from, until all of it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<PathBuf>,
}

/// A disk's layers, the active one first. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Which disk.
    pub disk: DiskId,
    /// Its layers, the active one first; chains share those that they have in common.
    pub layers: Vec<Arc<Layer>>,
}

impl Chain {
    /// The topmost layer.
    ///
    /// # Errors
    /// [`Error::EmptyChain`] when a document says that there is none.
    pub fn top(&self) -> Result<&Arc<Layer>, Error> {
        self.layers.first().ok_or_else(|| Error::EmptyChain { disk: self.disk.clone() })
    }
}

/// How a layer's file came to be, and so what may become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileOrigin {
    /// Keyframe made it, and removes it.
    Made,
    /// It was given when the machine was created: written to, never removed.
    Given,
    /// A given disk stands on it: only read.
    Foreign,
}

/// One layer of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its id: whoever stands on it names it so, whatever file its bytes are in.
    pub id: LayerId,
    /// The machine that it belongs to.
    pub vm: VmName,
    /// The id of its file, which QEMU's node is named after: a layer whose bytes were merged into another's file has
    /// that one's.
    pub file: LayerId,
    /// Its file, relative to the home where it lies in it.
    pub path: PathBuf,
    /// Its format.
    pub format: LayerFormat,
    /// How the file came to be.
    pub origin: FileOrigin,
    /// Size of the disk that the guest sees.
    pub virtual_bytes: ByteLen,
    /// What the file looked like when it was frozen; `None` while it is active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Fingerprint>,
}

/// What tells a file that nobody touched from one that somebody did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Length of the file.
    pub bytes: ByteLen,
    /// Time of its last write, in nanoseconds since 1970.
    pub modified_ns: i64,
}

impl Fingerprint {
    /// The same in a word, as a name for what is known since a file looked like this.
    #[must_use]
    pub fn as_name(&self) -> String {
        format!("{}-{}", self.bytes.bytes(), self.modified_ns)
    }

    /// Looks at a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of(path: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).or_io("look at", path)?;
        let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        Ok(Self { bytes: ByteLen::from_bytes(metadata.len()), modified_ns })
    }
}

impl Layer {
    /// Checks that a frozen layer is there and was not touched since it was frozen.
    ///
    /// # Errors
    /// [`Error::LayerMissing`], [`Error::LayerTouched`].
    pub fn check_untouched(&self, home: &Home) -> Result<(), Error> {
        let path = home.absolute(&self.path);
        let Some(expected) = &self.frozen else { return Ok(()) };
        match Fingerprint::of(&path) {
            Ok(found) if found == *expected => Ok(()),
            Ok(_) => Err(Error::LayerTouched { path }),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::LayerMissing { path })
            }
            Err(other) => Err(other),
        }
    }
}
