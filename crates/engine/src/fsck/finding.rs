//! What was found: what, where, how bad, what to do.

use std::fmt;
use std::path::{Path, PathBuf};

use keyframe_types::{SnapshotId, VmName};
use serde::Serialize;

use crate::state::tree::LayerRef;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It takes room or is untidy; nothing depends on it.
    Harmless,
    /// Something is not as it should be, and can be put right without a loss.
    Repairable,
    /// Something is lost, or nobody can tell which of two things is right.
    Serious,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Harmless => "harmless",
            Self::Repairable => "repairable",
            Self::Serious => "serious",
        })
    }
}

/// What kind of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A document cannot be read, or is not there.
    DamagedDocument,
    /// A journal is there and nobody is at work.
    UnfinishedOperation,
    /// A temporary file of a write that did not end.
    TemporaryFile,
    /// A file below `layers/` or in a snapshot's directory that nothing stands on.
    OrphanFile,
    /// A snapshot's directory without a manifest.
    UncommittedSnapshot,
    /// A directory among the machines that has no definition.
    NoMachine,
    /// `tree.json` tells of a layer that nobody needs.
    UnneededEntry,
    /// A document names a layer that `tree.json` does not tell of, or layers stand on each other in a circle.
    BrokenChain,
    /// A layer's file is not there.
    MissingLayer,
    /// A frozen layer's file was written to from outside.
    TouchedLayer,
    /// A layer's header names another file than the one that it stands on.
    WrongBacking,
    /// A header was being put right when that was interrupted.
    UnfinishedMending,
    /// Two layers share a file, an id, or two machines write to one.
    SharedFile,
    /// Two snapshots have one name.
    SameName,
    /// A snapshot's memory image cannot be used.
    MemoryImage,
    /// The process on record is gone.
    ProcessGone,
    /// A QEMU that no document knows runs in the machine's directory.
    StrayProcess,
    /// `qemu-img check` found an image's tables to be wrong.
    CorruptImage,
    /// `qemu-img check` found clusters that nothing refers to.
    LeakedClusters,
    /// Something could not be looked at.
    NotChecked,
}

/// A repair that loses nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Repair {
    /// Finish or take back the operation in flight, as the next command would.
    Recover,
    /// Remove one file that a write left.
    RemoveFile(PathBuf),
    /// Remove layers that nothing stands on, and what is noted of them.
    DropUnused,
    /// Remove memory that no image refers to, and what interrupted sharings left.
    ReclaimMemory,
    /// Remove directories of snapshots that were never committed.
    DropUncommitted,
    /// Write the name of what a layer stands on into its header.
    SetBacking(LayerRef),
}

/// Something that is not as it should be.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The machine.
    pub vm: VmName,
    /// What kind of thing.
    pub what: What,
    /// How bad it is.
    pub severity: Severity,
    /// The file or directory that it is about.
    pub path: PathBuf,
    /// The snapshot, if it is about one.
    pub snapshot: Option<SnapshotId>,
    /// What is wrong, in a sentence.
    pub text: String,
    /// What to do.
    pub advice: String,
    /// How it can be put right without a loss.
    #[serde(skip)]
    pub(crate) repair: Option<Repair>,
}

impl Finding {
    /// Something serious, that only a person can decide on.
    pub(crate) fn serious(vm: &VmName, what: What, path: &Path, text: String, advice: impl Into<String>) -> Self {
        Self {
            vm: vm.clone(),
            what,
            severity: Severity::Serious,
            path: path.to_owned(),
            snapshot: None,
            text,
            advice: advice.into(),
            repair: None,
        }
    }

    /// Something that does no harm and that nobody has to see to.
    pub(crate) fn harmless(vm: &VmName, what: What, path: &Path, text: String, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Harmless, ..Self::serious(vm, what, path, text, advice) }
    }

    /// Something that `--repair` puts right.
    pub(crate) fn repairable(vm: &VmName, what: What, path: &Path, text: String, repair: Repair) -> Self {
        let advice = format!("`keyframe fsck {vm} --repair` {}", repair.told());
        let severity = Severity::Repairable;
        Self { severity, repair: Some(repair), ..Self::serious(vm, what, path, text, advice) }
    }

    /// The same, about a snapshot.
    pub(crate) fn of(self, snapshot: &SnapshotId) -> Self {
        Self { snapshot: Some(snapshot.clone()), ..self }
    }
}

impl Repair {
    /// What it does, behind "fsck --repair".
    fn told(&self) -> &'static str {
        match self {
            Self::Recover => "finishes it or takes it back, as the next command on the machine would",
            Self::RemoveFile(_) => "removes it",
            Self::DropUnused => "removes what no present and no snapshot of any machine needs",
            Self::ReclaimMemory => {
                "removes memory that no snapshot refers to, unless a machine is still being served from there"
            }
            Self::DropUncommitted => "removes it: it never became a snapshot",
            Self::SetBacking(_) => "writes the right name into the header; no data change",
        }
    }
}
