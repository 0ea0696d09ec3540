//! What can be wrong with a stream or a file. Every variant carries the byte offset in its input.

/// Why an input was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first bytes are not those of the format.
    #[error("not {format}: the magic number at offset {offset} is missing")]
    BadMagic {
        /// Where.
        offset: u64,
        /// What it was taken for.
        format: &'static str,
    },
    /// A version this build does not know.
    #[error("{format} version {version} at offset {offset} is not supported")]
    UnsupportedVersion {
        /// Where.
        offset: u64,
        /// Of what.
        format: &'static str,
        /// The version found.
        version: u32,
    },
    /// A name that is empty, too long or not printable ASCII.
    #[error("name at offset {offset} is empty, too long or not printable")]
    BadName {
        /// Where.
        offset: u64,
    },
    /// A byte or field that cannot stand there.
    #[error("unexpected {what} ({value:#x}) at offset {offset}")]
    Unexpected {
        /// Where.
        offset: u64,
        /// What kind of field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Something QEMU can write and Keyframe does not accept.
    #[error("{what} at offset {offset} is not supported: {why}")]
    Unsupported {
        /// Where.
        offset: u64,
        /// What it is.
        what: String,
        /// Why not, and what to do instead.
        why: &'static str,
    },
    /// More blocks than the limit.
    #[error("more than {limit} RAM blocks at offset {offset}")]
    TooManyBlocks {
        /// Where.
        offset: u64,
        /// The limit.
        limit: usize,
    },
    /// More memory than the limit.
    #[error("more than {limit_bytes} bytes of guest memory claimed at offset {offset}")]
    TooMuchRam {
        /// Where.
        offset: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A block described twice.
    #[error("RAM block {block} is described twice, again at offset {offset}")]
    DuplicateBlock {
        /// Where, the second time.
        offset: u64,
        /// Its name.
        block: String,
    },
    /// A page of a block nobody announced, or beyond its end.
    #[error("page at {page_offset:#x} of RAM block {block:?} at offset {offset} does not exist")]
    NoSuchPage {
        /// Where in the input.
        offset: u64,
        /// The block's name.
        block: String,
        /// Bytes from the block's start.
        page_offset: u64,
    },
    /// A length or count over its limit.
    #[error("{what} of {value} at offset {offset} is over the limit of {limit}")]
    OverLimit {
        /// Where.
        offset: u64,
        /// What.
        what: &'static str,
        /// What the input says.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// The input ended too early: QEMU died, the migration was cancelled, or a file was cut.
    #[error("{what} is cut short: it ends at offset {offset}")]
    Truncated {
        /// Where it ends.
        offset: u64,
        /// Inside what.
        what: &'static str,
    },
    /// Parts of a file that lie over each other or in the wrong order.
    #[error("{what} at offset {offset} overlaps or is out of order")]
    Overlap {
        /// Where.
        offset: u64,
        /// What.
        what: &'static str,
    },
    /// A checksum that does not fit what it covers.
    #[error("{what} at offset {offset} does not match its checksum")]
    Checksum {
        /// Where the covered bytes start.
        offset: u64,
        /// What is damaged.
        what: &'static str,
    },
    /// Two files that do not belong together.
    #[error("{what} do not describe the same memory")]
    Mismatch {
        /// Which two.
        what: &'static str,
    },
}
