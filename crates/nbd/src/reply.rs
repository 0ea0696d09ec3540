//! Replies to requests: made by the server, taken apart by the client. No I/O.

use crate::error::{Result, protocol};
use crate::wire::{CHUNK_MAGIC, PAYLOAD_MOST, SIMPLE_REPLY_MAGIC, chunk, u16_at, u32_at, u64_at};

/// A simple reply, without data that may follow.
#[must_use]
pub fn simple(cookie: u64, errno: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&errno.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The head of a chunk, 20 bytes.
#[must_use]
pub fn chunk_head(done: bool, kind: u16, cookie: u64, len: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&(if done { chunk::DONE } else { 0 }).to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// A whole chunk that tells of an error, the last of its reply.
#[must_use]
pub fn error_chunk(cookie: u64, errno: u32, message: &str) -> Vec<u8> {
    const MESSAGE_MOST: usize = 1024;
    let mut end = message.len().min(MESSAGE_MOST);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let message = message.get(..end).unwrap_or_default().as_bytes();
    let mut bytes = chunk_head(true, chunk::ERROR, cookie, 6 + message.len() as u32).to_vec();
    bytes.extend_from_slice(&errno.to_be_bytes());
    bytes.extend_from_slice(&(message.len() as u16).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

/// The head of a reply of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A simple one; data follow when there is no error and the request was a read.
    Simple {
        /// 0, or what went wrong.
        errno: u32,
        /// Of which request.
        cookie: u64,
    },
    /// A chunk.
    Chunk {
        /// Whether it is the last of its reply.
        done: bool,
        /// Of [`chunk`].
        kind: u16,
        /// Of which request.
        cookie: u64,
        /// Bytes that follow.
        len: u32,
    },
}

impl Head {
    /// Length of the part that both kinds have.
    pub const SIMPLE_BYTES: usize = 16;
    /// Length of a chunk's head.
    pub const CHUNK_BYTES: usize = 20;

    /// Whether a head that begins so has [`Head::CHUNK_BYTES`].
    ///
    /// # Errors
    /// [`crate::Error::Protocol`] for a magic that is neither.
    pub fn is_chunk(bytes: &[u8; Self::SIMPLE_BYTES]) -> Result<bool> {
        match u32_at(bytes, 0) {
            Some(SIMPLE_REPLY_MAGIC) => Ok(false),
            Some(CHUNK_MAGIC) => Ok(true),
            _ => protocol("a reply without its magic"),
        }
    }

    /// Takes a head apart, of 16 or 20 bytes.
    ///
    /// # Errors
    /// [`crate::Error::Protocol`] for another magic, missing bytes, or more data than a request may ask for.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        match u32_at(bytes, 0) {
            Some(SIMPLE_REPLY_MAGIC) => match (u32_at(bytes, 4), u64_at(bytes, 8)) {
                (Some(errno), Some(cookie)) => Ok(Self::Simple { errno, cookie }),
                _ => protocol("half a reply"),
            },
            Some(CHUNK_MAGIC) => {
                let fields = (u16_at(bytes, 4), u16_at(bytes, 6), u64_at(bytes, 8), u32_at(bytes, 16));
                let (Some(flags), Some(kind), Some(cookie), Some(len)) = fields else {
                    return protocol("half a chunk");
                };
                if len > PAYLOAD_MOST + 64 {
                    return protocol("a chunk that is longer than anything asked for");
                }
                Ok(Self::Chunk { done: flags & chunk::DONE != 0, kind, cookie, len })
            }
            _ => protocol("a reply without its magic"),
        }
    }
}

/// Errno and words of an error chunk's data.
///
/// # Errors
/// [`crate::Error::Protocol`] where lengths do not fit.
pub fn error_of(data: &[u8]) -> Result<(u32, String)> {
    let (Some(errno), Some(len)) = (u32_at(data, 0), u16_at(data, 4)) else { return protocol("half an error") };
    let Some(message) = data.get(6..6 + usize::from(len)) else { return protocol("an error with half a message") };
    Ok((errno, String::from_utf8_lossy(message).into_owned()))
}

/// Extents of a block status chunk's data: the context's id, then length and state of each.
///
/// # Errors
/// [`crate::Error::Protocol`] where lengths do not fit, or an extent is empty.
pub fn statuses_of(data: &[u8]) -> Result<(u32, Vec<(u32, u32)>)> {
    let Some(context) = u32_at(data, 0) else { return protocol("block status without a context") };
    let (extents, rest) = data.get(4..).unwrap_or_default().as_chunks::<8>();
    if !rest.is_empty() || extents.is_empty() {
        return protocol("block status with half an extent, or none");
    }
    let extents: Option<Vec<_>> =
        extents.iter().map(|extent| Some((u32_at(extent, 0).filter(|len| *len > 0)?, u32_at(extent, 4)?))).collect();
    match extents {
        Some(extents) => Ok((context, extents)),
        None => protocol("block status with an empty extent"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_and_errors_come_back() {
        let head = chunk_head(true, chunk::OFFSET_DATA, 7, 4104);
        let expected = Head::Chunk { done: true, kind: chunk::OFFSET_DATA, cookie: 7, len: 4104 };
        assert_eq!(Head::decode(&head).unwrap(), expected);
        assert_eq!(Head::decode(&simple(9, 5)).unwrap(), Head::Simple { errno: 5, cookie: 9 });
        let long = "ü".repeat(600);
        let error = error_chunk(3, 5, &long);
        let (errno, message) = error_of(&error[20..]).unwrap();
        assert_eq!(errno, 5);
        assert!(long.starts_with(&message) && message.len() == 1024, "{}", message.len());
    }

    proptest! {
        #[test]
        fn nothing_brings_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Head::decode(&bytes);
            let _ = error_of(&bytes);
            if let Ok((_, extents)) = statuses_of(&bytes) {
                prop_assert!(extents.iter().all(|(len, _)| *len > 0));
            }
        }
    }
}
