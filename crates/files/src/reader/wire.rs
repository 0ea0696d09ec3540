//! What passes between a command and its reader. One question at a time; while it answers, the reader asks for blocks.
//!
//! A frame is two lengths of four bytes, little-endian, a message in postcard's encoding, and bytes as they are. Neither side
//! takes more memory for a frame than its bound.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::{Deserialize as De, Serialize as Ser};

use crate::error::Error;
use crate::fs::{About, DirEntry, Metadata, Node, Xattr};
use crate::volume::VolumeInfo;

/// The longest message: names of a directory come in portions, attributes do not.
const MESSAGE_MOST: usize = 4 << 20;
/// The most bytes that are asked for at once, of a file or a disk.
pub(super) const BYTES_MOST: usize = 1 << 20;

/// First of all: which disks there are.
#[derive(Debug, Ser, De)]
pub(super) struct Begin {
    /// Names and lengths.
    pub disks: Vec<(String, u64)>,
}

/// A command's questions.
#[derive(Debug, Ser, De)]
pub(super) enum Ask {
    Volumes,
    Open { volume: u32 },
    Lookup { volume: u32, dir: Node, name: Vec<u8> },
    ReadDir { volume: u32, dir: Node },
    Metadata { volume: u32, node: Node },
    Read { volume: u32, node: Node, at: u64, len: u32 },
    DataFrom { volume: u32, node: Node, at: u64 },
    ReadLink { volume: u32, node: Node },
    Xattrs { volume: u32, node: Node },
}

/// What a reader says.
#[derive(Debug, Ser, De)]
pub(super) enum Say {
    /// Needs these bytes; a [`Give`] follows.
    Need { disk: u32, at: u64, len: u32 },
    /// Names, and more to come.
    Entries(Vec<DirEntry>),
    /// The end of an answer.
    Done(Answer),
    /// There is none.
    Failed(Error),
}

/// Answers.
#[derive(Debug, Ser, De)]
pub(super) enum Answer {
    Volumes(Vec<VolumeInfo>),
    Opened(About, Node),
    Node(Node),
    Metadata(Metadata),
    /// With the bytes behind the message.
    Bytes,
    DataFrom(u64),
    Link(Vec<u8>),
    Xattrs(Vec<Xattr>),
    Listed,
}

/// Bytes of a disk, behind the message; or why not.
#[derive(Debug, Ser, De)]
pub(super) enum Give {
    Bytes,
    Trouble(Error),
}

/// Sends a frame.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize, bytes: &[u8]) -> std::io::Result<()> {
    let head = postcard::to_allocvec(message).map_err(std::io::Error::other)?;
    if head.len() > MESSAGE_MOST || bytes.len() > BYTES_MOST {
        return Err(std::io::Error::other("a message is too long"));
    }
    let mut frame = Vec::with_capacity(8 + head.len() + bytes.len());
    frame.extend((head.len() as u32).to_le_bytes());
    frame.extend((bytes.len() as u32).to_le_bytes());
    frame.extend(head);
    frame.extend(bytes);
    to.write_all(&frame)
}

/// Receives one.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> std::io::Result<(T, Vec<u8>)> {
    let mut lengths = [0; 8];
    from.read_exact(&mut lengths)?;
    let [a, b, c, d, e, f, g, h] = lengths;
    let (head, bytes) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]) as usize);
    if head > MESSAGE_MOST || bytes > BYTES_MOST {
        return Err(std::io::Error::other("a message is too long"));
    }
    let (mut message, mut tail) = (vec![0; head], vec![0; bytes]);
    from.read_exact(&mut message)?;
    from.read_exact(&mut tail)?;
    Ok((postcard::from_bytes(&message).map_err(std::io::Error::other)?, tail))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_come_back() {
        let mut pipe = Vec::new();
        send(&mut pipe, &Say::Done(Answer::Bytes), b"content").unwrap();
        let (message, bytes) = receive::<Say>(&mut pipe.as_slice()).unwrap();
        assert!(matches!(message, Say::Done(Answer::Bytes)) && bytes == b"content");
        assert!(receive::<Say>(&mut &pipe[..pipe.len() - 1]).is_err());
        assert!(receive::<Say>(&mut &[0xffu8; 64][..]).is_err(), "nothing as long as that is taken");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes: Vec<u8>) {
            let mut frame = (bytes.len() as u32).to_le_bytes().to_vec();
            frame.extend(0u32.to_le_bytes());
            frame.extend(&bytes);
            let _ = receive::<Say>(&mut frame.as_slice());
        }
    }
}
