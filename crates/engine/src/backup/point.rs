//! What a point says of the machine in it: all that is needed to bring it back elsewhere.
//!
//! It is the `extra` of a [`keyframe_repo::Point`], a document of its own with its own version. Images of the point:
//! `disk0` and so on as the guest sees them, `nvram`, and with memory `memory` (QEMU's mapped-ram file), `memory-sums` and
//! `memory-hot` (docs/formats/snapshot.md); `kernel` and `initrd` where QEMU loads them itself.

use std::ops::Range;

use keyframe_repo::Point;
use keyframe_types::{ByteLen, DiskId, LayerId};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::state::head::Fingerprint;
use crate::state::manifest::Manifest;
use crate::state::tree::FrozenTop;

/// The kernel that QEMU loads itself, where the machine has one.
pub const KERNEL: &str = "kernel";
/// Its initial RAM disk.
pub const INITRD: &str = "initrd";
/// The document's form.
pub const SCHEMA: &str = "keyframe.machine-point/1";
/// The memory image in a point.
pub const MEMORY: &str = "memory";
/// Its checksums.
pub const MEMORY_SUMS: &str = "memory-sums";
/// The pages that the guest touched first.
pub const MEMORY_HOT: &str = "memory-hot";

/// The machine in a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachinePoint {
    schema: String,
    /// The Keyframe that made it.
    pub keyframe: String,
    /// How the state was got hold of.
    #[serde(default, skip_serializing_if = "Way::is_snapshot")]
    pub taken: Way,
    /// The snapshot that was stored, or what one would say of a state that none was taken of: definition, consistency,
    /// QEMU, and what it cost.
    pub snapshot: Manifest<FrozenTop>,
    /// Its disks, the firmware's variables among them.
    pub disks: Vec<DiskInPoint>,
}

/// How the state in a point was got hold of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// By a snapshot.
    #[default]
    Snapshot,
    /// Without one, while the guest wrote on.
    Live,
}

impl Way {
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for it
    fn is_snapshot(&self) -> bool {
        *self == Self::Snapshot
    }
}

/// A disk in a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInPoint {
    /// Which disk; its image in the point has this name, too.
    pub disk: DiskId,
    /// Its size, as the guest sees it.
    pub bytes: ByteLen,
    /// How it was known what had changed.
    pub changed_by: ChangedBy,
    /// The file of the layer that held it, the topmost: a later backup that stands on it need not read what is below, if it
    /// is known what became of the file.
    pub file: LayerId,
    /// What the file looked like, of a frozen layer.
    pub fingerprint: Option<Fingerprint>,
    /// The name under which QEMU notes what is written to it since, where it was not frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noted_since: Option<String>,
    /// Ranges, in bytes, that could not be read, and are zeros in the point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Range<u64>>,
}

/// How it was known what had changed since the point before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangedBy {
    /// Nothing was known: all of it was read.
    Full,
    /// The layers above the one that the point before held.
    Layers,
    /// What QEMU noted of writes to that layer, and the layers above it.
    Bitmap,
    /// All of it was read and compared with what the point before has.
    Compare,
}

impl ChangedBy {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Layers => "layers",
            Self::Bitmap => "bitmap",
            Self::Compare => "compare",
        }
    }
}

impl MachinePoint {
    pub(super) fn new(taken: Way, snapshot: Manifest<FrozenTop>, disks: Vec<DiskInPoint>) -> Self {
        let keyframe = env!("CARGO_PKG_VERSION").to_owned();
        Self { schema: SCHEMA.to_owned(), keyframe, taken, snapshot, disks }
    }

    /// Bytes of its disks that could not be read.
    #[must_use]
    pub fn unreadable_bytes(&self) -> ByteLen {
        let ranges = self.disks.iter().flat_map(|disk| &disk.unreadable);
        ByteLen::from_bytes(ranges.map(|range| range.end.saturating_sub(range.start)).sum())
    }

    /// One of its disks.
    #[must_use]
    pub fn disk(&self, disk: &DiskId) -> Option<&DiskInPoint> {
        self.disks.iter().find(|known| known.disk == *disk)
    }

    /// The machine in a point.
    ///
    /// # Errors
    /// [`Error::NoMachineInPoint`] for a point that holds something else, or a machine in a form that is not known.
    pub fn of(point: &Point) -> Result<Self, Error> {
        let other =
            |reason: String| Error::NoMachineInPoint { point: format!("{}@{}", point.name, point.id.short()), reason };
        let schema = point.extra.get("schema").and_then(serde_json::Value::as_str);
        match schema {
            Some(SCHEMA) => {}
            Some(schema) => {
                return Err(other(format!("it is of the form {schema:?}, and this version knows {SCHEMA:?}")));
            }
            None => return Err(other("it is an image: `keyframe image get` brings it back".to_owned())),
        }
        let machine: Self = serde_json::from_value(point.extra.clone()).map_err(|error| other(error.to_string()))?;
        let has = |label: &str| point.images.iter().any(|image| image.label == label);
        let missing = machine.disks.iter().map(|disk| disk.disk.as_str()).find(|label| !has(label));
        let memory = machine.snapshot.memory.is_some() && !(has(MEMORY) && has(MEMORY_SUMS));
        match missing.or(memory.then_some(MEMORY)) {
            Some(label) => Err(other(format!("its image {label} is missing"))),
            None => Ok(machine),
        }
    }
}
