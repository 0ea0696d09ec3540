//! What can be wrong with an image.
//!
//! Rules: parsing code names offsets; code that knows the file adds its path once, with
//! [`Error::Image`]; a cause is chained, not repeated.

use std::path::PathBuf;

use crate::units::{GuestOffset, HostOffset};

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that fails in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is wrong with this image.
    #[error("image {}", path.display())]
    Image {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: Box<Error>,
    },
    /// Reading, writing or opening failed.
    #[error("cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file ends before what is needed.
    #[error("{what} needs {need_bytes} bytes at {at}, the file has {file_bytes} bytes")]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Where.
        at: HostOffset,
        /// How many bytes.
        need_bytes: u64,
        /// The file's length.
        file_bytes: u64,
    },
    /// Another format than qcow2 and raw.
    #[error(
        "this is {format}, which is not used directly: convert it to qcow2 or raw first (qemu-img convert), or name its format if it really is a raw disk"
    )]
    ForeignFormat {
        /// The format.
        format: &'static str,
    },
    /// A header says that its backing file has a format other than qcow2 and raw.
    #[error("backing file {name:?} has format {format:?}: convert it to qcow2 or raw first (qemu-img convert)")]
    BackingFormat {
        /// The backing file.
        name: String,
        /// The format, by QEMU's name.
        format: String,
    },
    /// Neither a plain file nor a block device.
    #[error("neither a plain file nor a block device")]
    NotAFile,
    /// No qcow2 image.
    #[error("not a qcow2 image (no QFI magic)")]
    NotQcow2,
    /// A version that nobody knows.
    #[error("qcow2 version {version} is not supported, 2 and 3 are")]
    Version {
        /// The version.
        version: u32,
    },
    /// A header field has a value that the format does not allow.
    #[error("header field {field} at byte {at} is {value}: {rule}")]
    Field {
        /// Its name in the specification.
        field: &'static str,
        /// Where it is.
        at: u64,
        /// Its value.
        value: u64,
        /// What it should be.
        rule: &'static str,
    },
    /// A feature that has to be understood to read the image, and is not.
    #[error("image needs features that are not known: {names}")]
    UnknownFeatures {
        /// Their names, or their bit numbers where the image does not name them.
        names: String,
    },
    /// A header extension does not fit or is malformed.
    #[error("header extension {magic:#010x} at byte {at}: {rule}")]
    Extension {
        /// Its type.
        magic: u32,
        /// Where it starts.
        at: u64,
        /// What is wrong.
        rule: &'static str,
    },
    /// A table's place is impossible.
    #[error("{table} at {at} with {len_bytes} bytes: {rule}")]
    Table {
        /// Which table.
        table: &'static str,
        /// Where it should be.
        at: HostOffset,
        /// Its length.
        len_bytes: u64,
        /// What is wrong.
        rule: &'static str,
    },
    /// A backing file name that cannot be stored or followed.
    #[error("backing file name {name:?}: {rule}")]
    BackingName {
        /// The name.
        name: String,
        /// What is wrong.
        rule: &'static str,
    },
    /// The chain never ends.
    #[error("backing chain comes back to {}", path.display())]
    ChainCycle {
        /// The file met twice.
        path: PathBuf,
    },
    /// The chain is too long.
    #[error("backing chain is longer than {limit} files")]
    ChainTooLong {
        /// The limit.
        limit: usize,
    },
    /// A size that an image cannot have.
    #[error("virtual size {bytes} bytes: {rule}")]
    VirtualSize {
        /// The size.
        bytes: u64,
        /// What is wrong.
        rule: &'static str,
    },
    /// A cluster size that an image cannot have.
    #[error("cluster size {bytes} bytes: {rule}")]
    ClusterSize {
        /// The size.
        bytes: u64,
        /// What is wrong.
        rule: &'static str,
    },
    /// The header does not fit into its cluster.
    #[error("header with its backing file name needs {need_bytes} bytes, a cluster has {cluster_bytes}")]
    HeaderFull {
        /// What it needs.
        need_bytes: u64,
        /// What there is.
        cluster_bytes: u64,
    },
    /// An L1 or L2 entry is impossible.
    #[error("{table} entry {entry:#018x} at {at} (guest offset {guest}): {rule}")]
    Entry {
        /// Which table.
        table: &'static str,
        /// The entry.
        entry: u64,
        /// Where it stands.
        at: HostOffset,
        /// What it maps.
        guest: GuestOffset,
        /// What is wrong.
        rule: &'static str,
    },
    /// Somebody else has the image open: a running QEMU, or another tool.
    #[error("in use by another process")]
    InUse,
    /// The header cannot be changed in place.
    #[error("the header cannot be changed in place: {why}; qemu-img rebase -u writes it anew")]
    NotInPlace {
        /// Why.
        why: &'static str,
    },
    /// The guest's bytes cannot be read by this crate.
    #[error("the guest's bytes cannot be read: {why}")]
    Unreadable {
        /// Why.
        why: &'static str,
    },
    /// Reading beyond the end of the guest's disk.
    #[error("{len_bytes} bytes at {at} reach beyond the end of the disk ({disk_bytes} bytes)")]
    OutOfRange {
        /// Where reading was to start.
        at: GuestOffset,
        /// How much was to be read.
        len_bytes: u64,
        /// The disk's size.
        disk_bytes: u64,
    },
    /// A compressed cluster does not decompress to a whole cluster.
    #[error("compressed cluster at {at} (guest offset {guest}) is damaged")]
    Compressed {
        /// Where it is stored.
        at: HostOffset,
        /// What it maps.
        guest: GuestOffset,
        /// What the decompressor said.
        source: std::io::Error,
    },
}

impl Error {
    /// Names the image that the error is about.
    #[must_use]
    pub fn of_image(self, path: impl Into<PathBuf>) -> Self {
        match self {
            named @ Self::Image { .. } => named,
            bare => Self::Image { path: path.into(), source: Box::new(bare) },
        }
    }

    /// The error itself, without the image's name.
    #[must_use]
    pub fn bare(&self) -> &Self {
        match self {
            Self::Image { source, .. } => source,
            bare => bare,
        }
    }
}

/// For `map_err` on I/O.
pub(crate) fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { action, source }
}
