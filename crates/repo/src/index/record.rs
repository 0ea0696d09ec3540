//! A pack in the index, and how it is written there.

use crate::error::{Error, Result};
use crate::frame::FrameName;
use crate::ids::{Fields, ObjectId};
use crate::pack::{Content, Directory, FIRST_FRAME_AT, Layout, PACK_FRAMES_MOST};

/// Frames of one origin that lie one behind the other in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Name of the first.
    pub first: FrameName,
    /// How many.
    pub count: u32,
}

/// A pack in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRecord {
    /// Its id.
    pub id: ObjectId,
    /// What its frames hold.
    pub content: Content,
    /// Where its parts lie.
    pub layout: Layout,
    /// Pages that are there: those that were given up do not count.
    pub pages: u32,
    /// Its frames.
    pub segments: Vec<Segment>,
    /// Where each frame begins in the object, and where the last one ends.
    pub offsets: Vec<u32>,
}

impl PackRecord {
    /// Of a pack with this directory.
    ///
    /// # Errors
    /// [`Error::Damaged`] when its frames do not fit into it.
    pub fn new(id: ObjectId, layout: Layout, directory: &Directory) -> Result<Self> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut lengths = Vec::with_capacity(directory.frames.len());
        for frame in &directory.frames {
            lengths.push(frame.stored);
            match segments.last_mut() {
                Some(last)
                    if last.first.pack == frame.name.pack
                        && last.first.number.checked_add(last.count) == Some(frame.name.number) =>
                {
                    last.count += 1;
                }
                _ => segments.push(Segment { first: frame.name, count: 1 }),
            }
        }
        let offsets = offsets(&lengths, &layout)
            .ok_or_else(|| Error::damaged(format_args!("pack {id}"), "its frames do not fit into it"))?;
        let pages = directory.fingerprints.iter().filter(|page| !page.is_absent()).count() as u32;
        Ok(Self { id, content: directory.content, layout, pages, segments, offsets })
    }

    /// The names of its frames in the order of their positions.
    pub fn names(&self) -> impl Iterator<Item = FrameName> + '_ {
        self.segments.iter().flat_map(|segment| {
            let FrameName { pack, number } = segment.first;
            (0..segment.count).map(move |n| FrameName { pack, number: number.saturating_add(n) })
        })
    }

    /// Number of its frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether no page of it was given up.
    #[must_use]
    pub fn has_all_pages(&self) -> bool {
        const BYTES_OF_PAGE: u32 = 16;
        let sealed = self.layout.fingerprints_len.saturating_sub(crate::crypto::TAG_BYTES as u32);
        self.pages == sealed / BYTES_OF_PAGE
    }

    /// Appends it, as it is written in an index object.
    pub(super) fn put(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self.id.as_bytes());
        into.extend_from_slice(&self.layout.object_len.to_le_bytes());
        into.extend_from_slice(&self.layout.body_len.to_le_bytes());
        into.extend_from_slice(&self.layout.table_len.to_le_bytes());
        into.extend_from_slice(&self.layout.fingerprints_len.to_le_bytes());
        into.extend_from_slice(&self.pages.to_le_bytes());
        into.extend_from_slice(&u32::from(self.content.code()).to_le_bytes());
        into.extend_from_slice(&(self.segments.len() as u32).to_le_bytes());
        for segment in &self.segments {
            into.extend_from_slice(segment.first.pack.as_bytes());
            into.extend_from_slice(&segment.first.number.to_le_bytes());
            into.extend_from_slice(&segment.count.to_le_bytes());
        }
        for pair in self.offsets.windows(2) {
            into.extend_from_slice(&(pair[1] - pair[0]).to_le_bytes());
        }
    }

    /// The next one of an index object; nothing when it is not possible.
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let id = fields.id()?;
        let (object_len, body_len) = (fields.u64()?, fields.u64()?);
        let (table_len, fingerprints_len, pages) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let layout = Layout { object_len, body_len, table_len, fingerprints_len };
        let content = u8::try_from(fields.u32()?).ok().and_then(Content::from_code)?;
        let mut segments = Vec::new();
        let mut count = 0_usize;
        for _ in 0..fields.u32()? {
            let segment =
                Segment { first: FrameName { pack: fields.id()?, number: fields.u32()? }, count: fields.u32()? };
            count = count.checked_add(segment.count as usize).filter(|count| *count <= PACK_FRAMES_MOST)?;
            segments.push(segment);
        }
        let (lengths, _) = fields.bytes(count * 4)?.as_chunks::<4>();
        let lengths: Vec<u32> = lengths.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let offsets = offsets(&lengths, &layout)?;
        Some(Self { id, content, layout, pages, segments, offsets })
    }
}

/// Where frames of these lengths begin; nothing when they do not fit into the pack.
fn offsets(lengths: &[u32], layout: &Layout) -> Option<Vec<u32>> {
    let end = layout.directory().ok()?.0;
    let mut offsets = Vec::with_capacity(lengths.len() + 1);
    let mut at = FIRST_FRAME_AT;
    offsets.push(at);
    for len in lengths {
        at = at.checked_add(*len)?;
        offsets.push(at);
    }
    (u64::from(at) <= end).then_some(offsets)
}
