//! Packs: objects full of frames, with a directory at their end.
//!
//! ```text
//! sealed key   80    the pack's data key, sealed to the repository's public key; zeros in a pack of nodes
//! frames             sealed, one behind the other; position n has nonce n (nodes: n + 16)
//! frame table        sealed with the metadata key, number 0: 28 bytes for each frame
//! fingerprints       sealed with the metadata key, number 1: 16 bytes for each page, in the frames' order
//! tail         16    length of the sealed table, of the sealed fingerprints, number of frames, content
//! ```

use crate::crypto::{Keys, SectionKey};
use crate::error::{Error, Result};
use crate::frame::{FRAME_PAGES, FrameName};
use crate::ids::{Fields, Fingerprint, ObjectId, ObjectKind};
use crate::object::{self, Builder, HEADER_BYTES};

/// Bytes of a sealed data key.
pub const SEALED_KEY_BYTES: usize = 80;
const TAIL_BYTES: usize = 16;
const ENTRY_BYTES: usize = 28;
/// Node frames are numbered behind the sections of the directory, which share their key.
const NODE_NONCES_FROM: u32 = 16;
/// Most frames of a pack.
pub const PACK_FRAMES_MOST: usize = 4096;
/// Where the first frame lies in the object.
pub const FIRST_FRAME_AT: u32 = (HEADER_BYTES + SEALED_KEY_BYTES) as u32;

/// What the frames of a pack hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Pages of images.
    Pages,
    /// Nodes of trees.
    Nodes,
}

impl Content {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Pages => 1,
            Self::Nodes => 2,
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Pages),
            2 => Some(Self::Nodes),
            _ => None,
        }
    }

    /// The nonce of the frame at a position.
    pub(crate) const fn nonce(self, position: u32) -> u32 {
        match self {
            Self::Pages => position,
            Self::Nodes => position + NODE_NONCES_FROM,
        }
    }
}

/// A frame in a pack's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableEntry {
    /// Its name.
    pub name: FrameName,
    /// Bytes in the pack.
    pub stored: u32,
    /// Its pages; 0 for nodes.
    pub pages: u16,
}

/// The directory of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// What its frames hold.
    pub content: Content,
    /// Its frames in the order of their positions.
    pub frames: Vec<TableEntry>,
    /// Of all pages of all frames, one frame behind the other; [`Fingerprint::ABSENT`] where a page was given up.
    pub fingerprints: Vec<Fingerprint>,
}

/// A pack that was built.
#[derive(Debug)]
pub struct BuiltPack {
    /// Its id.
    pub id: ObjectId,
    /// The object, as it is stored.
    pub bytes: Vec<u8>,
    /// Its directory.
    pub directory: Directory,
    /// Where the directory's parts lie.
    pub layout: Layout,
}

/// Lengths that tell where the parts of a pack lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the whole object.
    pub object_len: u64,
    /// Bytes of the body.
    pub body_len: u64,
    /// Bytes of the sealed frame table.
    pub table_len: u32,
    /// Bytes of the sealed fingerprints.
    pub fingerprints_len: u32,
}

impl Layout {
    /// Where table and fingerprints lie in the object, and how long they are together.
    ///
    /// # Errors
    /// [`Error::Damaged`] when that is not possible.
    pub fn directory(&self) -> Result<(u64, usize)> {
        let len = u64::from(self.table_len) + u64::from(self.fingerprints_len);
        // The length comes from an index that a hostile client may have written.
        let possible = Some(self.body_len).filter(|body| *body <= object::OBJECT_MOST);
        let start = possible.and_then(|body| (HEADER_BYTES as u64 + body).checked_sub(TAIL_BYTES as u64 + len));
        let impossible = || Error::damaged("a pack", "its directory lies nowhere");
        Ok((start.ok_or_else(impossible)?, usize::try_from(len).map_err(|_| impossible())?))
    }
}

/// The key of a new pack.
#[derive(Debug)]
pub struct PackKey {
    /// The pack.
    pub id: ObjectId,
    /// What its frames hold.
    pub content: Content,
    /// Seals its frames.
    pub key: SectionKey,
    sealed: [u8; SEALED_KEY_BYTES],
}

impl PackKey {
    /// Draws id and key.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] without the right to write; [`Error::Crypto`].
    pub fn new(keys: &Keys, content: Content) -> Result<Self> {
        let id = ObjectId::random()?;
        let (key, sealed) = match content {
            Content::Pages => keys.new_data_key(id)?,
            Content::Nodes => (keys.metadata_key(ObjectKind::Pack, id)?, [0; SEALED_KEY_BYTES]),
        };
        Ok(Self { id, content, key, sealed })
    }

    /// The nonce of the frame at a position.
    #[must_use]
    pub fn nonce(&self, position: u32) -> u32 {
        self.content.nonce(position)
    }

    /// Puts a pack together from sealed frames, their table and their fingerprints, in memory that was used before.
    ///
    /// # Errors
    /// [`Error::Pipeline`] when they do not fit each other; [`Error::Crypto`].
    pub fn build(
        &self,
        keys: &Keys,
        sealed: Vec<Vec<u8>>,
        directory: Directory,
        parity_percent: u8,
        memory: Vec<u8>,
    ) -> Result<BuiltPack> {
        let pages: usize = directory.frames.iter().map(|frame| usize::from(frame.pages)).sum();
        if sealed.len() != directory.frames.len() || pages != directory.fingerprints.len() {
            return Err(Error::Pipeline);
        }
        let stored: usize = sealed.iter().map(Vec::len).sum();
        let extra = directory.frames.len() * ENTRY_BYTES + pages * 16 + 4096;
        let with_parity = (stored + extra) * (100 + usize::from(parity_percent)) / 100 + 200_000;
        let mut builder = Builder::reusing(memory, with_parity);
        let buffer = builder.buffer();
        buffer.extend_from_slice(&self.sealed);
        for frame in sealed {
            buffer.extend_from_slice(&frame);
        }
        let metadata = keys.metadata_key(ObjectKind::Pack, self.id)?;
        let table_at = buffer.len();
        for frame in &directory.frames {
            buffer.extend_from_slice(frame.name.pack.as_bytes());
            buffer.extend_from_slice(&frame.name.number.to_le_bytes());
            buffer.extend_from_slice(&frame.stored.to_le_bytes());
            buffer.extend_from_slice(&u32::from(frame.pages).to_le_bytes());
        }
        metadata.seal(0, buffer, table_at)?;
        let fingerprints_at = buffer.len();
        directory.fingerprints.iter().for_each(|fingerprint| buffer.extend_from_slice(fingerprint.as_bytes()));
        metadata.seal(1, buffer, fingerprints_at)?;
        let small = |len: usize| u32::try_from(len).map_err(|_| Error::Pipeline);
        let (table_len, fingerprints_len) =
            (small(fingerprints_at - table_at)?, small(buffer.len() - fingerprints_at)?);
        for field in [table_len, fingerprints_len, small(directory.frames.len())?, self.content.code().into()] {
            buffer.extend_from_slice(&field.to_le_bytes());
        }
        let body_len = (buffer.len() - HEADER_BYTES) as u64;
        let bytes = builder.finish(ObjectKind::Pack, self.id, keys.repository(), keys.auth(), parity_percent)?;
        let layout = Layout { object_len: bytes.len() as u64, body_len, table_len, fingerprints_len };
        Ok(BuiltPack { id: self.id, bytes, directory, layout })
    }
}

/// Reads a directory from the bytes of table and fingerprints.
///
/// # Errors
/// [`Error::Damaged`]; [`Error::NotAllowed`] without the right to write.
pub fn read_directory(
    keys: &Keys,
    id: ObjectId,
    content: Content,
    table_len: u32,
    mut bytes: Vec<u8>,
) -> Result<Directory> {
    let damaged = |why| Error::damaged(format_args!("pack {id}"), why);
    let key = keys.metadata_key(ObjectKind::Pack, id)?;
    let parts = bytes.split_at_mut_checked(table_len as usize);
    let (table, fingerprints) = parts.ok_or_else(|| damaged("its directory is cut short"))?;
    let table = key.open(0, table).ok_or_else(|| damaged("its frame table is not what was sealed"))?;
    let fingerprints = key.open(1, fingerprints).ok_or_else(|| damaged("its fingerprints are not what was sealed"))?;
    let mut frames = Vec::with_capacity(table.len() / ENTRY_BYTES);
    let mut fields = Fields::new(table);
    let mut pages_sum = 0;
    while !fields.is_empty() {
        let frame = read_entry(&mut fields).ok_or_else(|| damaged("its frame table is cut short"))?;
        pages_sum += usize::from(frame.pages);
        let fits = usize::from(frame.pages) <= FRAME_PAGES && (frame.pages == 0) == (content == Content::Nodes);
        if !fits || frames.len() >= PACK_FRAMES_MOST {
            return Err(damaged("a frame in its table is not possible"));
        }
        frames.push(frame);
    }
    let (fingerprints, rest) = fingerprints.as_chunks::<16>();
    if !rest.is_empty() || fingerprints.len() != pages_sum {
        return Err(damaged("it has not as many fingerprints as pages"));
    }
    let fingerprints = fingerprints.iter().map(|bytes| Fingerprint::from_bytes(*bytes)).collect();
    Ok(Directory { content, frames, fingerprints })
}

fn read_entry(fields: &mut Fields<'_>) -> Option<TableEntry> {
    let name = FrameName { pack: fields.id()?, number: fields.u32()? };
    let stored = fields.u32()?;
    let pages = u16::try_from(fields.u32()?).ok()?;
    Some(TableEntry { name, stored, pages })
}

/// What the tail of a pack's body says: layout and content.
///
/// # Errors
/// [`Error::Damaged`].
pub fn read_tail(id: ObjectId, header: &object::Header, body_tail: &[u8]) -> Result<(Layout, Content)> {
    let damaged = |why| Error::damaged(format_args!("pack {id}"), why);
    let tail = body_tail.last_chunk::<TAIL_BYTES>().ok_or_else(|| damaged("it is cut short"))?;
    let mut fields = Fields::new(tail);
    let mut next = || fields.u32().ok_or_else(|| damaged("it is cut short"));
    let (table_len, fingerprints_len, _frames, content) = (next()?, next()?, next()?, next()?);
    let content =
        u8::try_from(content).ok().and_then(Content::from_code).ok_or_else(|| damaged("its content is unknown"))?;
    let layout = Layout { object_len: header.object_len(), body_len: header.body_len, table_len, fingerprints_len };
    layout.directory()?;
    Ok((layout, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_impossible_lengths_lies_nowhere() {
        for (body_len, table_len) in [(u64::MAX, 0), (u64::MAX - 60, 0), (object::OBJECT_MOST + 1, 0), (0, u32::MAX)] {
            let layout = Layout { object_len: 0, body_len, table_len, fingerprints_len: u32::MAX };
            assert!(layout.directory().is_err(), "{layout:?}");
        }
    }
}
