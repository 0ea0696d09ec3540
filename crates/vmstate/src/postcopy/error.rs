//! What can be wrong with a postcopy conversation.

/// Why a postcopy stream cannot be made or the destination's words cannot be followed.
///
/// Offsets count bytes of the return path from the start of the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostcopyError {
    /// No block is lazy: such a snapshot has to be loaded eagerly.
    #[error("no RAM block is lazy, so there is nothing to postcopy")]
    NothingLazy,
    /// The package was asked for before all pages of the eager blocks were written.
    #[error("{missing} pages of the eager RAM blocks are missing from the stream")]
    EagerPagesMissing {
        /// How many.
        missing: u64,
    },
    /// More device state than a package may hold here.
    #[error("device state of {bytes} bytes is more than {limit}")]
    DeviceState {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        limit: u64,
    },
    /// The end was asked for before the destination had loaded its devices.
    #[error("the stream must not end before the destination has loaded its devices")]
    EndTooEarly,
    /// A message type that QEMU 10 does not know.
    #[error("return path offset {offset}: unknown message type {kind}")]
    UnknownMessage {
        /// Where the message starts.
        offset: u64,
        /// Its type.
        kind: u16,
    },
    /// A message whose length does not fit its type.
    #[error("return path offset {offset}: message type {kind} with {length} bytes")]
    MessageLength {
        /// Where the message starts.
        offset: u64,
        /// Its type.
        kind: u16,
        /// Its announced length.
        length: u16,
    },
    /// A name that is no RAM block of this machine.
    #[error("return path offset {offset}: no RAM block is called {name:?}")]
    UnknownBlock {
        /// Where the message starts.
        offset: u64,
        /// The name, made printable.
        name: String,
    },
    /// A request that relies on an earlier one's block, and there is none.
    #[error("return path offset {offset}: a page request before any RAM block was named")]
    NoBlockYet {
        /// Where the message starts.
        offset: u64,
    },
    /// A request for something that is not a run of whole pages within its block.
    #[error("return path offset {offset}: request for {bytes} bytes at {start:#x} is not within RAM block {block:?}")]
    BadRequest {
        /// Where the message starts.
        offset: u64,
        /// The block.
        block: String,
        /// First byte asked for.
        start: u64,
        /// Length asked for.
        bytes: u32,
    },
    /// A message that does not belong where it arrived.
    #[error("return path offset {offset}: {what} was not expected here")]
    OutOfPlace {
        /// Where the message starts.
        offset: u64,
        /// Which message.
        what: &'static str,
    },
    /// A received-bitmap that is not as long as its block.
    #[error(
        "return path offset {offset}: received-bitmap of {bytes} bytes for RAM block {block:?}, should be {expected}"
    )]
    BitmapLength {
        /// Where the length was read.
        offset: u64,
        /// The block.
        block: String,
        /// Announced length.
        bytes: u64,
        /// The block's.
        expected: u64,
    },
    /// A received-bitmap with a page behind its block's end.
    #[error("the received-bitmap of RAM block {block:?} is wrong")]
    Bitmap {
        /// The block.
        block: String,
        /// What is wrong, with its offset.
        source: crate::Error,
    },
    /// A received-bitmap without its end mark.
    #[error("return path offset {offset}: the received-bitmap of RAM block {block:?} ends with {mark:#018x}")]
    BitmapMark {
        /// Where the mark was read.
        offset: u64,
        /// The block.
        block: String,
        /// What was there.
        mark: u64,
    },
    /// The destination refused to resume.
    #[error("return path offset {offset}: the destination answered the resume with {value}")]
    ResumeRefused {
        /// Where the message starts.
        offset: u64,
        /// The value; 1 would be consent.
        value: u32,
    },
}
