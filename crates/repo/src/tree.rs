//! Trees: from an image's pages to frames.
//!
//! A leaf tells where each of [`LEAF_PAGES`] pages lies; an inner node has [`FANOUT`] children. All nodes of one level cover the
//! same number of pages, and a node knows its level: so a tree has no cycles and its depth follows from the image's size.
//! Nodes that did not change are shared with the point before.

use crate::error::{Error, Result};
use crate::frame::{FRAME_MOST, FRAME_PAGES, FrameName};
use crate::ids::{Fields, ObjectId, PAGE_BYTES, put_varint};

/// Pages of a leaf: 16 MiB.
pub const LEAF_PAGES: u64 = 4096;
/// Children of an inner node.
pub const FANOUT: u64 = 256;
/// Most bytes of an image: four levels of nodes above pages, 256 TiB.
pub const IMAGE_MOST: u64 = LEAF_PAGES * FANOUT * FANOUT * FANOUT * PAGE_BYTES as u64;
/// Most bytes of an encoded node: every page in a pack of its own.
const NODE_MOST: usize = 256 << 10;

/// Pages that lie one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub count: u32,
    /// Where the first is; nothing for zeros.
    pub at: Option<PageRef>,
}

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRef {
    /// The frame.
    pub frame: FrameName,
    /// Its place in the frame.
    pub slot: u16,
}

impl PageRef {
    /// The place `pages` further on in the same frame.
    #[must_use]
    pub fn ahead(self, pages: u32) -> Self {
        Self { frame: self.frame, slot: self.slot.saturating_add(pages as u16) }
    }
}

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct NodeRef {
    /// The pack that its frame was first written in.
    pub pack: ObjectId,
    /// The frame's number there.
    pub number: u32,
    /// Where the node begins in the frame.
    pub offset: u32,
    /// Its bytes.
    pub len: u32,
}

impl NodeRef {
    /// The frame that it lies in.
    #[must_use]
    pub fn frame(&self) -> FrameName {
        FrameName { pack: self.pack, number: self.number }
    }

    /// Its bytes in that frame.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the frame is shorter.
    pub fn within(self, frame: &[u8]) -> Result<&[u8]> {
        let start = self.offset as usize;
        let bytes = start.checked_add(self.len as usize).and_then(|end| frame.get(start..end));
        bytes.ok_or_else(|| Error::damaged("a tree node", "it lies behind the end of its frame"))
    }
}

/// A subtree; nothing for zeros.
pub type Child = Option<NodeRef>;

/// Levels above the leaves for so many pages.
///
/// # Errors
/// [`Error::ImageTooLarge`].
pub fn levels(bytes: u64) -> Result<u8> {
    if bytes > IMAGE_MOST {
        return Err(Error::ImageTooLarge { found: bytes, limit: IMAGE_MOST });
    }
    let mut covered = LEAF_PAGES;
    let mut level = 0;
    while covered < bytes.div_ceil(PAGE_BYTES as u64) {
        covered *= FANOUT;
        level += 1;
    }
    Ok(level)
}

/// Pages that a node of a level covers.
#[must_use]
pub fn pages_of(level: u8) -> u64 {
    LEAF_PAGES * FANOUT.pow(u32::from(level))
}

/// Appends a run, joined with the one before where it continues it.
pub fn push_run(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut() {
        let continues = match (last.at, run.at) {
            (None, None) => true,
            (Some(from), Some(to)) => from.frame == to.frame && u32::from(from.slot) + last.count == u32::from(to.slot),
            _ => false,
        };
        if continues {
            last.count += run.count;
            return;
        }
    }
    runs.push(run);
}

/// The packs that a node refers to, numbered.
#[derive(Default)]
struct PackTable(Vec<ObjectId>);

impl PackTable {
    fn number(&mut self, id: ObjectId) -> u64 {
        let known = self.0.iter().rposition(|known| *known == id);
        known.unwrap_or_else(|| {
            self.0.push(id);
            self.0.len() - 1
        }) as u64
    }

    fn in_front_of(self, level: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![level];
        put_varint(&mut bytes, self.0.len() as u64);
        self.0.iter().for_each(|id| bytes.extend_from_slice(id.as_bytes()));
        bytes.extend_from_slice(body);
        bytes
    }
}

/// A leaf, as it is stored. Its runs cover exactly [`LEAF_PAGES`].
#[must_use]
pub fn encode_leaf(runs: &[Run]) -> Vec<u8> {
    let mut packs = PackTable::default();
    let mut body = Vec::with_capacity(runs.len() * 6);
    for run in runs {
        put_varint(&mut body, u64::from(run.count) << 1 | u64::from(run.at.is_some()));
        if let Some(at) = run.at {
            put_varint(&mut body, packs.number(at.frame.pack));
            put_varint(&mut body, u64::from(at.frame.number));
            put_varint(&mut body, u64::from(at.slot));
        }
    }
    packs.in_front_of(0, &body)
}

/// An inner node, as it is stored. It has exactly [`FANOUT`] children.
#[must_use]
pub fn encode_node(level: u8, children: &[Child]) -> Vec<u8> {
    let mut packs = PackTable::default();
    let mut body = Vec::with_capacity(children.len() * 8);
    for child in children {
        match child {
            None => put_varint(&mut body, 0),
            Some(node) => {
                put_varint(&mut body, packs.number(node.pack) + 1);
                for field in [node.number, node.offset, node.len] {
                    put_varint(&mut body, field.into());
                }
            }
        }
    }
    packs.in_front_of(level, &body)
}

fn header<'a>(bytes: &'a [u8], level: u8) -> Result<(Vec<ObjectId>, Fields<'a>)> {
    let damaged = |why| Error::damaged("a tree node", why);
    let mut fields = Fields::new(bytes);
    if fields.u8() != Some(level) {
        return Err(damaged("it is not of the level that it stands at"));
    }
    let count = fields.varint().filter(|count| *count <= LEAF_PAGES).ok_or_else(|| damaged("it is cut short"))?;
    let packs: Option<Vec<_>> = (0..count).map(|_| fields.id()).collect();
    Ok((packs.ok_or_else(|| damaged("it is cut short"))?, fields))
}

/// Reads a leaf.
///
/// # Errors
/// [`Error::Damaged`] unless its runs cover exactly [`LEAF_PAGES`] and lie in frames.
pub fn decode_leaf(bytes: &[u8]) -> Result<Vec<Run>> {
    let damaged = |why| Error::damaged("a tree node", why);
    let (packs, mut fields) = header(bytes, 0)?;
    let mut runs = Vec::new();
    let mut pages = 0_u64;
    while pages < LEAF_PAGES {
        let run = read_run(&mut fields, &packs).ok_or_else(|| damaged("a run in it is not possible"))?;
        pages += u64::from(run.count);
        runs.push(run);
    }
    if pages == LEAF_PAGES && fields.is_empty() { Ok(runs) } else { Err(damaged("its runs do not cover a leaf")) }
}

fn read_run(fields: &mut Fields<'_>, packs: &[ObjectId]) -> Option<Run> {
    let head = fields.varint()?;
    let count = u32::try_from(head >> 1).ok().filter(|count| *count > 0 && u64::from(*count) <= LEAF_PAGES)?;
    if head & 1 == 0 {
        return Some(Run { count, at: None });
    }
    let pack = *packs.get(usize::try_from(fields.varint()?).ok()?)?;
    let number = u32::try_from(fields.varint()?).ok()?;
    let slot = u16::try_from(fields.varint()?).ok()?;
    let inside = usize::from(slot) + count as usize <= FRAME_PAGES;
    inside.then_some(Run { count, at: Some(PageRef { frame: FrameName { pack, number }, slot }) })
}

/// Reads an inner node.
///
/// # Errors
/// [`Error::Damaged`] unless it has exactly [`FANOUT`] children that lie in frames.
pub fn decode_node(bytes: &[u8], level: u8) -> Result<Vec<Child>> {
    let damaged = |why| Error::damaged("a tree node", why);
    let (packs, mut fields) = header(bytes, level)?;
    let mut children = Vec::with_capacity(FANOUT as usize);
    for _ in 0..FANOUT {
        children.push(read_child(&mut fields, &packs).ok_or_else(|| damaged("a child of it is not possible"))?);
    }
    if fields.is_empty() { Ok(children) } else { Err(damaged("it is too long")) }
}

fn read_child(fields: &mut Fields<'_>, packs: &[ObjectId]) -> Option<Child> {
    let Some(pack) = fields.varint()?.checked_sub(1) else { return Some(None) };
    let pack = *packs.get(usize::try_from(pack).ok()?)?;
    let mut small = || fields.varint().and_then(|value| u32::try_from(value).ok());
    let node = NodeRef { pack, number: small()?, offset: small()?, len: small()? };
    node.is_possible().then_some(Some(node))
}

impl NodeRef {
    /// Whether it lies in a frame and is no longer than a node can be.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let (offset, len) = (self.offset as usize, self.len as usize);
        len <= NODE_MOST && offset.checked_add(len).is_some_and(|end| end <= FRAME_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u32, slot: u16) -> PageRef {
        PageRef { frame: FrameName { pack: ObjectId::from_bytes([number as u8 % 3; 16]), number }, slot }
    }

    #[test]
    fn leaves_read_back() {
        let mut runs = Vec::new();
        for n in 0..50 {
            push_run(&mut runs, Run { count: 3, at: Some(at(n, 5)) });
            push_run(&mut runs, Run { count: 2, at: Some(at(n, 8)) });
            push_run(&mut runs, Run { count: 1, at: None });
        }
        push_run(&mut runs, Run { count: 4096 - 300, at: None });
        assert_eq!(runs.len(), 100);
        assert_eq!(decode_leaf(&encode_leaf(&runs)).unwrap(), runs);
    }

    #[test]
    fn nodes_read_back_at_their_level_only() {
        let mut children: Vec<Child> = vec![None; 256];
        children[7] = Some(NodeRef { pack: ObjectId::from_bytes([1; 16]), number: 2, offset: 3, len: 4 });
        let bytes = encode_node(2, &children);
        assert_eq!(decode_node(&bytes, 2).unwrap(), children);
        assert!(decode_node(&bytes, 1).is_err() && decode_leaf(&bytes).is_err());
        assert!(decode_node(&bytes[..bytes.len() - 1], 2).is_err());
    }

    #[test]
    fn leaves_that_cover_too_little_or_too_much_are_refused() {
        for count in [4095, 4097] {
            assert!(decode_leaf(&encode_leaf(&[Run { count, at: None }])).is_err());
        }
        let beyond = [Run { count: 2, at: Some(at(1, 127)) }, Run { count: 4094, at: None }];
        assert!(decode_leaf(&encode_leaf(&beyond)).is_err());
    }

    #[test]
    fn depth_follows_size() {
        for (bytes, level) in [(0, 0), (16 << 20, 0), ((16 << 20) + 1, 1), (4 << 30, 1), (8 << 30, 2), (IMAGE_MOST, 3)]
        {
            assert_eq!(levels(bytes).unwrap(), level, "{bytes}");
        }
        assert!(levels(IMAGE_MOST + 1).is_err());
    }
}
