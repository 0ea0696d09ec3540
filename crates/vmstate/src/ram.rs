//! The machine's memory as the stream lists it: blocks with a name and a length.

use std::fmt;

use crate::Error;
use crate::limits::{MAX_BLOCKS, MAX_RAM_BYTES};
use crate::units::{BlockIndex, ExtentIndex, PageCount, PageIndex};

/// A RAM block's name as QEMU writes it: 1 to 255 printable ASCII bytes (`pc.ram`,
/// `0000:00:01.0/vga.vram`, `/rom@etc/acpi/tables`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockId(Box<str>);

impl BlockId {
    /// Checks a name from a stream that began at `offset`.
    ///
    /// # Errors
    /// [`Error::BadName`] when it is empty, longer than 255 bytes or not printable ASCII.
    pub fn parse(bytes: &[u8], offset: u64) -> Result<Self, Error> {
        printable(bytes, offset).map(|text| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// 1 to 255 bytes of printable ASCII: what QEMU's names are made of, and all we care to print.
pub(crate) fn printable(bytes: &[u8], offset: u64) -> Result<&str, Error> {
    let fine = (1..=255).contains(&bytes.len()) && bytes.iter().all(|b| (0x20..0x7f).contains(b));
    match std::str::from_utf8(bytes) {
        Ok(text) if fine => Ok(text),
        _ => Err(Error::BadName { offset }),
    }
}

/// One RAM block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlock {
    id: BlockId,
    pages: PageCount,
}

impl RamBlock {
    /// A block of that name and length.
    pub fn new(id: BlockId, pages: PageCount) -> Self {
        Self { id, pages }
    }

    /// Its name.
    pub fn id(&self) -> &BlockId {
        &self.id
    }

    /// Its length.
    pub fn pages(&self) -> PageCount {
        self.pages
    }
}

/// All RAM blocks in stream order: at most [`MAX_BLOCKS`], at most [`MAX_RAM_BYTES`] together,
/// no name twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RamLayout {
    blocks: Vec<RamBlock>,
    /// For each block, the extents of the blocks before it.
    extents_before: Vec<u64>,
    total_extents: u64,
    total_bytes: u64,
}

impl RamLayout {
    /// Appends a block; `offset` is where in the input it was described.
    ///
    /// # Errors
    /// [`Error::TooManyBlocks`], [`Error::TooMuchRam`], [`Error::DuplicateBlock`].
    pub fn push(&mut self, block: RamBlock, offset: u64) -> Result<BlockIndex, Error> {
        let index = BlockIndex::new(self.blocks.len()).ok_or(Error::TooManyBlocks { offset, limit: MAX_BLOCKS })?;
        let total = self.total_bytes + block.pages.bytes();
        if total > MAX_RAM_BYTES {
            return Err(Error::TooMuchRam { offset, limit_bytes: MAX_RAM_BYTES });
        }
        if self.find(block.id.as_str()).is_some() {
            return Err(Error::DuplicateBlock { offset, block: block.id.to_string() });
        }
        self.extents_before.push(self.total_extents);
        self.total_extents += block.pages.extents();
        self.total_bytes = total;
        self.blocks.push(block);
        Ok(index)
    }

    /// The blocks in stream order.
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// The blocks with their indexes.
    pub fn iter(&self) -> impl Iterator<Item = (BlockIndex, &RamBlock)> {
        self.blocks.iter().enumerate().filter_map(|(n, b)| Some((BlockIndex::new(n)?, b)))
    }

    /// The block at that index, if there is one.
    pub fn get(&self, index: BlockIndex) -> Option<&RamBlock> {
        self.blocks.get(index.get())
    }

    /// The block of that name.
    pub fn find(&self, id: &str) -> Option<BlockIndex> {
        let at = self.blocks.iter().position(|b| b.id.as_str() == id)?;
        BlockIndex::new(at)
    }

    /// The largest block: the guest's main memory, and the one worth loading lazily.
    pub fn largest(&self) -> Option<BlockIndex> {
        self.iter().max_by_key(|(_, b)| b.pages()).map(|(index, _)| index)
    }

    /// Bytes of all blocks.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Extents of all blocks.
    pub fn total_extents(&self) -> u64 {
        self.total_extents
    }

    /// Number of an extent when all blocks' extents are counted through in stream order: its place
    /// in the table of sums. `None` when there is no such block or extent.
    pub fn extent_ordinal(&self, block: BlockIndex, extent: ExtentIndex) -> Option<u64> {
        let pages = self.get(block)?.pages();
        let before: u64 = self.blocks.get(..block.get())?.iter().map(|b| b.pages.extents()).sum();
        (extent.get() < pages.extents()).then_some(before + extent.get())
    }

    /// Whether there is such a page.
    pub fn contains(&self, block: BlockIndex, page: PageIndex) -> bool {
        self.get(block).is_some_and(|b| b.pages.contains(page))
    }
}
