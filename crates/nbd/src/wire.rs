//! Numbers and headers of fixed size, all big-endian.

use crate::error::{Result, protocol};

/// First word of a server's greeting.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of a reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a structured reply's chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Both sides: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Both sides: no 124 zeros behind the answer to `NBD_OPT_EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;

/// The most data of an option; the protocol has names of 4096 bytes.
pub const OPTION_MOST: u32 = 64 << 10;
/// The most bytes of one read or write. Source: "Maximum payload" of the protocol's size constraints.
pub const PAYLOAD_MOST: u32 = 32 << 20;
/// The longest name of an export or meta context, in bytes. Source: "Values", string lengths.
pub const NAME_MOST: usize = 4096;

/// Transmission flags. Source: "Transmission flags".
pub mod flags {
    /// Set in all.
    pub const HAS_FLAGS: u16 = 1;
    /// Nothing can be written.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `NBD_CMD_FLUSH` is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `NBD_CMD_FLAG_DF` is known.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see the same.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `NBD_CMD_CACHE` is known.
    pub const SEND_CACHE: u16 = 1 << 10;
}

/// Options. Source: "Option types".
pub mod option {
    /// Go on without negotiating further.
    pub const EXPORT_NAME: u32 = 1;
    /// Good bye.
    pub const ABORT: u32 = 2;
    /// Which exports there are.
    pub const LIST: u32 = 3;
    /// What an export is.
    pub const INFO: u32 = 6;
    /// The same, and begin.
    pub const GO: u32 = 7;
    /// Replies in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which meta contexts there are.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Which meta contexts block status shall tell of.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options. Source: "Option reply types".
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// Something about an export.
    pub const INFO: u32 = 3;
    /// A meta context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in all errors.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// Not known here.
    pub const ERR_UNSUPPORTED: u32 = ERROR_BIT + 1;
    /// Not understood.
    pub const ERR_INVALID: u32 = ERROR_BIT + 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT + 6;
    /// Too large.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT + 9;
}

/// What `NBD_REP_INFO` tells. Source: "NBD_INFO information types".
pub mod info {
    /// Length and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Sizes of requests.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands. Source: "Request types".
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Good bye.
    pub const DISCONNECT: u16 = 2;
    /// Make durable.
    pub const FLUSH: u16 = 3;
    /// Will soon be read.
    pub const CACHE: u16 = 5;
    /// Allocation or dirtiness.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests. Source: "Command flags".
pub mod command_flag {
    /// The reply is one chunk.
    pub const DF: u16 = 1 << 2;
    /// Block status of one extent.
    pub const REQ_ONE: u16 = 1 << 3;
}

/// Types of chunks. Source: "Structured reply types".
pub mod chunk {
    /// Nothing more to say.
    pub const NONE: u16 = 0;
    /// Offset and bytes.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of zeros.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a meta context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in all errors.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// Errno and words.
    pub const ERROR: u16 = ERROR_BIT + 1;
    /// The same with an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT + 2;
    /// In the flags: the last of a reply.
    pub const DONE: u16 = 1;
}

/// Errors of replies. Source: "Error values".
pub mod errno {
    /// Not permitted.
    pub const EPERM: u32 = 1;
    /// Input or output failed.
    pub const EIO: u32 = 5;
    /// Not understood.
    pub const EINVAL: u32 = 22;
    /// Does not fit into one reply.
    pub const EOVERFLOW: u32 = 75;
}

/// Block status of `base:allocation`. Source: "base:allocation metadata context".
pub mod state {
    /// Not allocated.
    pub const HOLE: u32 = 1;
    /// Reads as zeros.
    pub const ZERO: u32 = 2;
}

/// The meta context that tells what is allocated.
pub const BASE_ALLOCATION: &str = "base:allocation";

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A number in the midst of bytes; `None` where they end before.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// A number in the midst of bytes; `None` where they end before.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// A number in the midst of bytes; `None` where they end before.
#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// The head of an option: 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHead {
    /// Which.
    pub option: u32,
    /// Bytes that follow: at most [`OPTION_MOST`].
    pub len: u32,
}

impl OptionHead {
    /// Length on the wire.
    pub const BYTES: usize = 16;

    /// Takes one apart.
    ///
    /// # Errors
    /// [`crate::Error::Protocol`] for another magic or more data than an option may have.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self> {
        let fields = (u64_at(bytes, 0), u32_at(bytes, 8), u32_at(bytes, 12));
        match fields {
            (Some(OPTION_MAGIC), Some(option), Some(len)) if len <= OPTION_MOST => Ok(Self { option, len }),
            (Some(OPTION_MAGIC), ..) => protocol("an option with too much data"),
            _ => protocol("an option without its magic"),
        }
    }

    /// Puts one together.
    #[must_use]
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

/// A request: 28 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Of [`command_flag`].
    pub flags: u16,
    /// Of [`command`].
    pub command: u16,
    /// The client's name for it.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

impl Request {
    /// Length on the wire.
    pub const BYTES: usize = 28;

    /// Takes one apart.
    ///
    /// # Errors
    /// [`crate::Error::Protocol`] for another magic.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self> {
        let numbers = (u16_at(bytes, 4), u16_at(bytes, 6), u64_at(bytes, 8), u64_at(bytes, 16), u32_at(bytes, 24));
        match (u32_at(bytes, 0), numbers) {
            (Some(REQUEST_MAGIC), (Some(flags), Some(command), Some(cookie), Some(offset), Some(len))) => {
                Ok(Self { flags, command, cookie, offset, len })
            }
            _ => protocol("a request without its magic"),
        }
    }

    /// Puts one together.
    #[must_use]
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_magics_are_the_words_they_are_said_to_be() {
        assert_eq!(&NBD_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    proptest! {
        #[test]
        fn a_request_comes_back(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
            let request = Request { flags, command, cookie, offset, len };
            prop_assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }

        #[test]
        fn a_damaged_magic_is_refused(at in 0_usize..4, bit in 0_u8..8) {
            let mut bytes = Request { flags: 0, command: 0, cookie: 1, offset: 2, len: 3 }.encode();
            bytes[at] ^= 1 << bit;
            prop_assert!(Request::decode(&bytes).is_err());
        }

        #[test]
        fn options_are_bounded(option: u32, len: u32) {
            let head = OptionHead { option, len };
            prop_assert_eq!(OptionHead::decode(&head.encode()).is_ok(), len <= OPTION_MOST);
        }
    }
}
