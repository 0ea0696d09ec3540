//! What can go wrong, what was kept safe, and what a person can do.
//!
//! Rules: a variant's text says what happened, with names and paths; causes are chained, not repeated;
//! [`Error::kept`] says what is as it was; [`Error::advice`] names a command or a decision. [`Error::kind`]
//! is what scripts go by.

use std::io;
use std::path::{Path, PathBuf};

use keyframe_hypervisor::QemuVersion;
use keyframe_hypervisor::definition::DefinitionError;
use keyframe_hypervisor::extra_args::RefusedArgument;
use keyframe_hypervisor::host::HostError;
use keyframe_types::{ByteLen, DiskId, SnapshotId, VmName};

use crate::snapshot::gate::Stage;

/// What a failure means for a script: the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It failed.
    Failed,
    /// It was asked for in a way that cannot be right.
    Usage,
    /// It was done, but not all of it.
    Incomplete,
    /// There is no such thing.
    NotFound,
    /// Someone else is at it.
    Busy,
    /// The repository's key does not fit.
    WrongKey,
    /// It was given up for the guest's sake.
    GaveWay,
    /// A person interrupted it.
    Interrupted,
}

/// Everything that fails in the engine.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text is its documentation; fields are what the text shows
pub enum Error {
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot encode a document")]
    Encode { source: serde_json::Error },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path} is of the form {found:?}; this version knows {expected:?}")]
    Schema { path: PathBuf, found: String, expected: &'static str },
    #[error("the machine's definition {path} cannot be read")]
    Definition { path: PathBuf, source: toml::de::Error },
    #[error("the machine's definition cannot be written")]
    EncodeDefinition { source: toml::ser::Error },
    #[error("there is no machine {0}")]
    NoMachine(VmName),
    #[error("there is no snapshot {selector} of {vm}")]
    NoSnapshot { vm: VmName, selector: String },
    #[error("{selector} could be any of several snapshots of {vm}: {candidates}")]
    AmbiguousSnapshot { vm: VmName, selector: String, candidates: String },
    #[error("there is a machine {0} already")]
    MachineExists(VmName),
    #[error("{vm} has a snapshot called {name} already")]
    SnapshotExists { vm: VmName, name: String },
    #[error("{holder} is at work on this machine")]
    Busy { holder: String },
    #[error("{vm} is {state}")]
    WrongState { vm: VmName, state: String, advice: &'static str },
    #[error("disk {disk} has no layers")]
    EmptyChain { disk: DiskId },
    #[error("{path} does not exist")]
    LayerMissing { path: PathBuf },
    #[error("{path} was written to from outside after it was frozen")]
    LayerTouched { path: PathBuf },
    #[error("{path} is a disk of machine {vm} already")]
    DiskInUse { path: PathBuf, vm: VmName },
    #[error("{path} would be stood on, and machine {vm} writes to it")]
    BackingInUse { path: PathBuf, vm: VmName },
    #[error("{path} is not usable as a disk")]
    UnusableDisk { path: PathBuf, source: keyframe_qcow2::Error },
    #[error("cannot write layer {path}")]
    Layer { path: PathBuf, source: keyframe_qcow2::Error },
    #[error("a machine has at most {limit} disks; {found} were given")]
    TooManyDisks { found: usize, limit: usize },
    #[error("{what}")]
    BadRequest { what: String },
    #[error("{what}")]
    Failed { what: String },
    #[error(transparent)]
    RefusedArgument(#[from] RefusedArgument),
    #[error("the machine's definition is not usable: {0}")]
    UnusableDefinition(#[from] DefinitionError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Hypervisor(#[from] keyframe_hypervisor::Error),
    #[error(transparent)]
    Monitor(#[from] keyframe_qmp::Error),
    #[error("the memory image could not be written")]
    Capture(#[source] keyframe_memory::Error),
    #[error("the memory image of snapshot {id} is not usable")]
    Memory { id: SnapshotId, source: keyframe_memory::Error },
    #[error("shared memory images in {dir} cannot be told apart")]
    SharedMemory { dir: PathBuf, source: keyframe_memory::Error },
    #[error("{needed} are needed on the file system of {path}, {free} are free")]
    NoSpace { path: PathBuf, needed: ByteLen, free: ByteLen },
    #[error("the pause would be about {expected_ms:.0} ms, more than the {allowed_ms:.0} ms allowed")]
    PauseTooLong { expected_ms: f64, allowed_ms: f64 },
    #[error("another machine of the group was given up")]
    GroupGivenUp,
    #[error("the other machines of the group did not get to the stage \"{stage:?}\" in time")]
    GroupTooSlow { stage: Stage },
    #[error("the machines were not snapshotted together: {vm} could not be")]
    InGroup { vm: VmName, source: Box<Error> },
    #[error("the disks completed requests between the instant of memory and that of disks, {attempts} times in a row")]
    NotExact { attempts: u32 },
    #[error("the guest's file systems could not be frozen: {reason}")]
    FreezeFailed { reason: String },
    #[error("snapshot {id} was taken with QEMU {taken}, and this is QEMU {here}")]
    OtherQemu { id: SnapshotId, taken: QemuVersion, here: QemuVersion },
    #[error("snapshot {id} was taken on {taken}, which this host does not offer: {here}")]
    OtherHost { id: SnapshotId, taken: String, here: String },
    #[error("snapshot {id} has no memory")]
    NoMemory { id: SnapshotId },
    #[error("a test of {vm} could not be kept inside")]
    MayLeadOutside { vm: VmName, source: keyframe_hypervisor::isolation::MayLeadOutside },
    #[error("probe {probe:?} is not usable: {reason}")]
    BadProbe { probe: String, reason: String },
    #[error("snapshot {name} cannot be deleted: {reason}")]
    Held { name: String, reason: String },
    #[error("{vm} cannot be removed: {reason}")]
    MachineHeld { vm: VmName, reason: String },
    #[error("{vm} cannot be snapshotted while it runs: its memory is mapped from a snapshot's image")]
    MappedMachine { vm: VmName },
    #[error("{vm} still stands on a repository: {how_far}")]
    StandsOnRepository { vm: VmName, how_far: String },
    #[error("{vm} is not wholly local: {reason}")]
    NotLocal { vm: VmName, reason: String },
    #[error("the process that shows {vm} its repository did not start: {reason}")]
    NotServed { vm: VmName, reason: String },
    #[error("the page server stopped before all of the machine's memory was there: {reason}")]
    Hydration { reason: String },
    #[error("it is paused, and a guest lets go of its card only while it runs: `keyframe vm start` swaps it")]
    CardOfPaused,
    #[error("{vm} did not shut down within {seconds} s")]
    NoShutdown { vm: VmName, seconds: u64 },
    #[error("the guest writes to {disk} faster than its layers can be merged")]
    NotConverging { disk: DiskId },
    #[error("the host's clock seems to have been set: {reason}")]
    ClockWasSet { reason: String },
    #[error(transparent)]
    Repository(#[from] keyframe_repo::Error),
    #[error(transparent)]
    Files(#[from] keyframe_files::Error),
    #[error("{volume}")]
    InVolume { volume: String, source: keyframe_files::Error },
    #[error("{file}")]
    InFile { file: String, source: keyframe_files::Error },
    #[error(transparent)]
    Copy(#[from] keyframe_files::copy::Error),
    #[error("point {point} holds no machine that can be brought back: {reason}")]
    NoMachineInPoint { point: String, reason: String },
    #[error("{disk} cannot be read any more as it was when the backup began: {reason}")]
    ViewBroken { disk: DiskId, reason: String },
    #[error(
        "the guest's requests took {found_ms:.0} ms, and no more than {allowed_ms:.0} ms are allowed, though the backup had nearly stopped reading"
    )]
    GuestTooSlow { found_ms: f64, allowed_ms: f64 },
    #[error("{free} are left on the file system of {path}, and the guest writes to it")]
    GuestNeedsRoom { path: PathBuf, free: ByteLen },
    #[error("interrupted")]
    Interrupted,
    #[error("failed on purpose at {name}")]
    Failpoint { name: &'static str },
    #[error("{vm} is back at the snapshot and runs, but the revert is not finished")]
    Unfinished { vm: VmName, source: Box<Error> },
    #[error("{source}")]
    UndoFailed { source: Box<Error>, undo: Box<Error> },
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Error {
    /// What it means for a script.
    #[must_use]
    pub fn kind(&self) -> Kind {
        use keyframe_hypervisor::Error as Hypervisor;
        match self {
            Self::NoMachine(_) | Self::NoSnapshot { .. } => Kind::NotFound,
            Self::Busy { .. } => Kind::Busy,
            Self::AmbiguousSnapshot { .. }
            | Self::TooManyDisks { .. }
            | Self::BadRequest { .. }
            | Self::BadProbe { .. }
            | Self::RefusedArgument(_) => Kind::Usage,
            Self::Interrupted | Self::Hypervisor(Hypervisor::Cancelled) => Kind::Interrupted,
            Self::Capture(keyframe_memory::Error::Cancelled) => Kind::Interrupted,
            Self::UndoFailed { source, .. } => source.kind(),
            Self::Repository(error) => match error.kind() {
                keyframe_repo::Kind::Failed => Kind::Failed,
                keyframe_repo::Kind::Usage => Kind::Usage,
                keyframe_repo::Kind::NotFound => Kind::NotFound,
                keyframe_repo::Kind::WrongKey => Kind::WrongKey,
                keyframe_repo::Kind::Interrupted => Kind::Interrupted,
            },
            Self::Unfinished { .. } | Self::NotLocal { .. } => Kind::Incomplete,
            Self::ViewBroken { .. } | Self::GuestTooSlow { .. } | Self::GuestNeedsRoom { .. } => Kind::GaveWay,
            Self::Files(error) | Self::InVolume { source: error, .. } | Self::InFile { source: error, .. } => {
                match error {
                    keyframe_files::Error::NotFound => Kind::NotFound,
                    _ => Kind::Failed,
                }
            }
            Self::Copy(keyframe_files::copy::Error::BadRequest { .. }) => Kind::Usage,
            _ => Kind::Failed,
        }
    }

    /// What is as it was.
    #[must_use]
    pub fn kept(&self) -> Option<String> {
        let text = match self {
            Self::Repository(error) => return error.kept(),
            Self::LayerMissing { .. } | Self::LayerTouched { .. } | Self::Memory { .. } => {
                "the machine is as it was; other snapshots are not affected"
            }
            Self::Capture(_) | Self::NotExact { .. } | Self::Interrupted | Self::PauseTooLong { .. } => {
                "the machine is as it was, and so is every earlier snapshot; no snapshot was made"
            }
            Self::GroupGivenUp | Self::GroupTooSlow { .. } | Self::InGroup { .. } => {
                "every machine of the group is as it was, and so is every earlier snapshot; no snapshot was made"
            }
            Self::StandsOnRepository { .. } => "nothing was begun; the machine is as it was",
            Self::ViewBroken { .. } | Self::GuestTooSlow { .. } | Self::GuestNeedsRoom { .. } => {
                "the guest goes on and nothing that it wrote was refused; no point was made"
            }
            Self::NotLocal { .. } => {
                "what the guest wrote is in the machine's own layers; what it reads and is not here yet it waits for"
            }
            Self::NotServed { .. } => "what the guest wrote is in the machine's own layers",
            Self::ClockWasSet { .. } => "no snapshot was deleted",
            Self::NotConverging { .. } => "the layers are as they were, and so is every snapshot",
            Self::NoSpace { .. } | Self::FreezeFailed { .. } | Self::MappedMachine { .. } => {
                "nothing was begun; the machine is as it was"
            }
            Self::OtherQemu { .. }
            | Self::OtherHost { .. }
            | Self::Held { .. }
            | Self::MachineHeld { .. }
            | Self::BadProbe { .. }
            | Self::MayLeadOutside { .. }
            | Self::NoMemory { .. } => "nothing was changed",
            Self::Damaged { .. } => "nothing was changed; other snapshots are not affected",
            Self::Unfinished { .. } => {
                "the machine runs; what was the present is safe: its memory as far as it was written, and its disks"
            }
            Self::UndoFailed { .. } => "every committed snapshot is intact; the machine's disks are complete",
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// What happened, with what caused it, in one sentence.
    pub(crate) fn told(&self) -> String {
        with_causes(self)
    }

    /// What a person can do.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        let text = match self {
            Self::Repository(error) => return error.advice(),
            Self::InFile { source: keyframe_files::Error::NotFound, .. } => {
                "`keyframe files POINT ls` shows disks and file systems, and with a path what is there".to_owned()
            }
            Self::Files(keyframe_files::Error::Reader { .. })
            | Self::InVolume { source: keyframe_files::Error::Reader { .. }, .. }
            | Self::InFile { source: keyframe_files::Error::Reader { .. }, .. } => {
                "the file system may be damaged, or made to do harm: `keyframe restore POINT --to FILE` gives the whole \
                 disk, for a throw-away machine to look at"
                    .to_owned()
            }
            Self::InVolume { source: keyframe_files::Error::Unsupported { .. }, .. } => {
                "`keyframe restore POINT --to FILE` gives the whole disk, for a machine that knows it".to_owned()
            }
            Self::NoMachineInPoint { .. } => "`keyframe points` shows machines that were backed up".to_owned(),
            Self::NoMachine(_) => "`keyframe vm list` shows the machines".to_owned(),
            Self::NoSnapshot { vm, .. } | Self::AmbiguousSnapshot { vm, .. } => {
                format!("`keyframe snapshots {vm}` shows its snapshots with their ids")
            }
            Self::Busy { .. } => "try again when it has ended; a command that was killed holds nothing".to_owned(),
            Self::WrongState { advice, .. } => (*advice).to_owned(),
            Self::LayerTouched { .. } => {
                "if you know that its content is the same (a copy, a restored backup), say --accept-touched-layers; \
                 otherwise revert to a snapshot that does not need it"
                    .to_owned()
            }
            Self::LayerMissing { path } => {
                format!("put {} back, or revert to a snapshot that does not need it", path.display())
            }
            Self::Memory { .. } => {
                "say --disk-only to start the machine from the snapshot's disks, which do not depend on the image, \
                 or use another snapshot"
                    .to_owned()
            }
            Self::NoSpace { .. } => "delete snapshots (`keyframe delete VM@SNAP`), or say --disk-only".to_owned(),
            Self::StandsOnRepository { vm, .. } => {
                format!(
                    "`keyframe boot --wait {vm}` waits until it is wholly local, `keyframe boot --status {vm}` says how far it is"
                )
            }
            Self::NotLocal { vm, .. } | Self::NotServed { vm, .. } => {
                format!(
                    "`keyframe boot --status {vm}` says more; `keyframe boot --resume {vm}` goes on, with --repo and --key-file \
                     from another place or with another key"
                )
            }
            Self::ViewBroken { .. } => {
                "give what the guest writes meanwhile more room, with --scratch on another file system or a larger \
                 --scratch-size; without --live the backup keeps it in a layer"
                    .to_owned()
            }
            Self::GuestNeedsRoom { .. } => {
                "make room there, or have what the guest overwrites meanwhile kept elsewhere with --scratch".to_owned()
            }
            Self::GuestTooSlow { .. } => {
                "try again when the host's disks have less to do, or allow more with --max-latency".to_owned()
            }
            Self::ClockWasSet { .. } => "look at `date`; if it is right, say --accept-clock once".to_owned(),
            Self::NotConverging { .. } => {
                "try again when the guest is calmer, or while it is stopped; `keyframe consolidate VM` goes on"
                    .to_owned()
            }
            Self::PauseTooLong { .. } => {
                "allow more with --max-pause, or say --or-disk-only to take a snapshot without memory instead"
                    .to_owned()
            }
            Self::NotExact { .. } => {
                "say a longer --max-pause: then the guest is stopped first, which is always exact".to_owned()
            }
            Self::FreezeFailed { .. } => "say `--freeze try` to go on without, or look at the guest's agent".to_owned(),
            Self::OtherQemu { .. } => {
                "install that QEMU and name it in KEYFRAME_QEMU, or say --disk-only to boot its disks (`keyframe boot`: --cold)".to_owned()
            }
            Self::OtherHost { .. } => {
                "bring it back on such a host, or say --disk-only to boot its disks (`keyframe boot`: --cold)".to_owned()
            }
            Self::MayLeadOutside { .. } => {
                "fork it with a network of your choice (`keyframe fork`), look, and remove the fork again".to_owned()
            }
            Self::BadProbe { .. } => "write it right, in the machine's machine.toml or behind --probe".to_owned(),
            Self::NoMemory { .. } => {
                "`keyframe revert` starts a disk-only snapshot from its disks; a fork needs memory".to_owned()
            }
            Self::MappedMachine { .. } => {
                "say --disk-only, or fork again with `--strategy lazy` or `eager`: such a machine can be snapshotted"
                    .to_owned()
            }
            Self::UnusableDefinition(_) => "take it out of the machine's machine.toml".to_owned(),
            Self::NoShutdown { vm, .. } => {
                format!("`keyframe vm stop {vm} --force` switches it off as a power cut would")
            }
            Self::BackingInUse { vm, .. } => {
                format!("a disk can stand on what nobody writes to: copy it, or fork {vm} from a snapshot")
            }
            Self::DiskInUse { .. } => "a disk belongs to one machine; copy it, or put an overlay on it".to_owned(),
            Self::Unfinished { .. } => "see to the cause; the next command on this machine finishes it".to_owned(),
            Self::UndoFailed { undo, .. } => {
                format!("the next command on this machine tries again to tidy up ({undo})")
            }
            Self::Damaged { .. } => {
                "the machine's other snapshots can be used; see docs/formats/snapshot.md".to_owned()
            }
            Self::Hypervisor(keyframe_hypervisor::Error::CannotSaveLive(_)) => {
                "`keyframe doctor VM` tells why; --disk-only works".to_owned()
            }
            _ => return None,
        };
        Some(text)
    }
}

/// Puts what was tried, and on what, beside a system call's error.
pub(crate) trait IoContext<T> {
    fn or_io(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn or_io(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source })
    }
}
