//! What can go wrong with a memory image. Paths and offsets are part of every message.

use std::io;
use std::path::{Path, PathBuf};

use keyframe_vmstate as vmstate;
use keyframe_vmstate::shared::SegmentId;

/// Why an operation on a memory image failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that is not what it should be.
    #[error("{path} is not usable")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        source: vmstate::Error,
    },
    /// Guest memory whose bytes are not those that were written.
    #[error(
        "{path} is damaged: {extent_bytes} bytes at {block_offset:#x} of RAM block {block} \
         (file offset {file_offset:#x}) do not match their checksum"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The RAM block's name.
        block: String,
        /// Bytes from the block's start.
        block_offset: u64,
        /// Bytes from the file's start.
        file_offset: u64,
        /// How many bytes the checksum covers.
        extent_bytes: usize,
    },
    /// Everything else in the image (headers, bitmaps, device state) does not match its checksum.
    #[error("{path} is damaged: its headers, bitmaps or device state do not match their checksum")]
    DamagedRest {
        /// Which file.
        path: PathBuf,
    },
    /// The checksums themselves are damaged, so nothing can be said about the image.
    #[error("{path} is damaged: its table does not match its checksum; the image may be intact")]
    DamagedSums {
        /// The file of sums.
        path: PathBuf,
    },
    /// Image and sums are not of one snapshot.
    #[error("{sums} does not belong to {path}")]
    NotACouple {
        /// The image.
        path: PathBuf,
        /// The file of sums.
        sums: PathBuf,
    },
    /// A block or extent that the image does not have: a caller's mistake.
    #[error("{path} has no extent {extent} in RAM block number {block}")]
    NoSuchExtent {
        /// Which file.
        path: PathBuf,
        /// The block's index.
        block: usize,
        /// The extent's index.
        extent: u64,
    },
    /// The migration stream is wrong, was cut short, or could not be read.
    #[error("the migration stream cannot be captured")]
    Stream(#[from] vmstate::Error),
    /// Reading the stream failed.
    #[error("cannot read the migration stream")]
    StreamIo(#[source] io::Error),
    /// The disk is full. The guest is not affected; the incomplete files can be deleted.
    #[error(
        "no space left for {path}: {written_bytes} bytes written, {free_bytes} bytes free, \
         up to {missing_bytes} more to come"
    )]
    NoSpace {
        /// The image.
        path: PathBuf,
        /// Bytes of guest memory written so far.
        written_bytes: u64,
        /// Bytes of guest memory that had not arrived yet.
        missing_bytes: u64,
        /// Bytes free on the file system when it happened.
        free_bytes: u64,
        /// As the operating system said it.
        source: io::Error,
    },
    /// No mapping of that process can be its guest's memory.
    #[error("process {pid} has no anonymous mapping of {ram_bytes} bytes or more")]
    NoGuestMemory {
        /// The process.
        pid: i32,
        /// The size looked for.
        ram_bytes: u64,
    },
    /// Pages lie in the file of another snapshot, which is not there.
    #[error("{map} refers to the memory of snapshot {id}, which is missing")]
    NoSegment {
        /// The map that refers to it.
        map: PathBuf,
        /// The snapshot.
        id: SegmentId,
    },
    /// A step that was made to fail, by a test that looks what is left then.
    #[error("stopped behind a step on purpose: {step}")]
    Stopped {
        /// The step.
        step: &'static str,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
}

impl Error {
    /// Whether that file does not exist.
    pub(crate) fn is_missing(&self, file: &Path) -> bool {
        matches!(self, Self::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound && path == file)
    }

    pub(crate) fn stream(errno: rustix::io::Errno) -> Self {
        Self::StreamIo(errno.into())
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
