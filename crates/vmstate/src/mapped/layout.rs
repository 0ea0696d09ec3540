//! Where everything of a mapped-ram file lies.

use crate::Error;
use crate::config::Configuration;
use crate::decode::Header;
use crate::encode::{block_description, ram_section_end, ram_start, stream_start};
use crate::ram::{RamBlock, RamLayout};
use crate::units::{BlockIndex, ExtentIndex, PAGE_SIZE, PageIndex};

/// Version of the block header.
pub(super) const HEADER_VERSION: u32 = 1;
/// Bytes of the block header: version, page size, bitmap offset, pages offset.
pub(super) const HEADER_BYTES: u64 = 4 + 8 + 8 + 8;
/// Pages start at multiples of this.
const PAGES_ALIGNMENT: u64 = 1 << 20;

/// Where one block's parts lie, in bytes from the start of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedBlock {
    pub(super) block: RamBlock,
    /// Where the block's name stands.
    pub(super) description_offset: u64,
    pub(super) bitmap_offset: u64,
    pub(super) pages_offset: u64,
}

impl MappedBlock {
    /// Name and length.
    pub fn block(&self) -> &RamBlock {
        &self.block
    }

    /// Where the bitmap lies.
    pub fn bitmap_offset(&self) -> u64 {
        self.bitmap_offset
    }

    /// Bytes of the bitmap: whole 64-bit words.
    pub fn bitmap_bytes(&self) -> u64 {
        self.block.pages().get().div_ceil(64) * 8
    }

    /// Where the pages lie.
    pub fn pages_offset(&self) -> u64 {
        self.pages_offset
    }

    /// Where the pages end.
    pub fn pages_end(&self) -> u64 {
        self.pages_offset + self.block.pages().bytes()
    }

    /// Where that page lies, if the block has it.
    pub fn page_offset(&self, page: PageIndex) -> Option<u64> {
        let has = self.block.pages().contains(page);
        has.then(|| self.pages_offset + page.byte_offset())
    }

    /// Where that extent lies and how many bytes it has; `None` beyond the block.
    pub fn extent(&self, extent: ExtentIndex) -> Option<(u64, usize)> {
        let pages = self.block.pages().pages_in_extent(extent);
        (pages > 0).then(|| (self.pages_offset + extent.byte_offset(), pages * PAGE_SIZE))
    }
}

/// Layout of a whole file up to its device state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedLayout {
    pub(super) configuration: Configuration,
    pub(super) section_id: u32,
    pub(super) ram: RamLayout,
    pub(super) blocks: Vec<MappedBlock>,
    pub(super) devices_offset: u64,
}

impl MappedLayout {
    /// The layout QEMU itself would choose for the machine of that stream header.
    pub fn for_stream(header: &Header) -> Self {
        let configuration = header.configuration.for_mapped_ram();
        let mut head = Vec::new();
        stream_start(&mut head, &configuration);
        ram_start(&mut head, header.section_id, &header.ram);
        let mut at = head.len() as u64;
        let mut blocks = Vec::with_capacity(header.ram.blocks().len());
        for block in header.ram.blocks() {
            let name_and_length = 1 + block.id().as_str().len() as u64 + 8;
            let mut placed = MappedBlock {
                block: block.clone(),
                description_offset: at,
                bitmap_offset: at + name_and_length + HEADER_BYTES,
                pages_offset: 0,
            };
            let bitmap_end = placed.bitmap_offset + placed.bitmap_bytes();
            placed.pages_offset = bitmap_end.next_multiple_of(PAGES_ALIGNMENT);
            at = placed.pages_end();
            blocks.push(placed);
        }
        let mut layout =
            Self { configuration, section_id: header.section_id, ram: header.ram.clone(), blocks, devices_offset: 0 };
        layout.devices_offset = at + layout.ram_end_bytes().len() as u64;
        layout
    }

    /// Machine type and capabilities.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Number of the memory's section.
    pub fn section_id(&self) -> u32 {
        self.section_id
    }

    /// The RAM blocks.
    pub fn ram(&self) -> &RamLayout {
        &self.ram
    }

    /// The RAM blocks with their places.
    pub fn blocks(&self) -> &[MappedBlock] {
        &self.blocks
    }

    /// One block with its places.
    pub fn get(&self, block: BlockIndex) -> Option<&MappedBlock> {
        self.blocks.get(block.get())
    }

    /// Where the first device section starts.
    pub fn devices_offset(&self) -> u64 {
        self.devices_offset
    }

    /// Where the last block's pages end, and the end of the memory's section is written.
    pub fn ram_end(&self) -> u64 {
        self.blocks.last().map_or_else(|| self.head_bytes().len() as u64, MappedBlock::pages_end)
    }

    /// Everything but bitmaps, pages and devices: (offset, bytes) in file order.
    pub fn pieces(&self) -> Vec<(u64, Vec<u8>)> {
        let mut pieces = vec![(0, self.head_bytes())];
        for block in &self.blocks {
            pieces.push((block.description_offset, described(block)));
        }
        pieces.push((self.ram_end(), self.ram_end_bytes()));
        pieces
    }

    /// The parts of the file that are no guest pages, as (offset, end) in file order; the last
    /// ends at `file_bytes`. What [`crate::sums`] calls the non-page digest covers just these.
    ///
    /// # Errors
    /// [`Error::Truncated`] when the file ends before its device state begins.
    pub fn non_page_ranges(&self, file_bytes: u64) -> Result<Vec<(u64, u64)>, Error> {
        if file_bytes < self.devices_offset {
            return Err(Error::Truncated { offset: file_bytes, what: "mapped-ram file" });
        }
        let mut ranges = Vec::with_capacity(self.blocks.len() + 1);
        let mut at = 0;
        for block in &self.blocks {
            ranges.push((at, block.pages_offset));
            at = block.pages_end();
        }
        ranges.push((at, file_bytes));
        Ok(ranges)
    }

    fn head_bytes(&self) -> Vec<u8> {
        let mut head = Vec::new();
        stream_start(&mut head, &self.configuration);
        ram_start(&mut head, self.section_id, &self.ram);
        head
    }

    fn ram_end_bytes(&self) -> Vec<u8> {
        let mut end = Vec::new();
        ram_section_end(&mut end, self.section_id);
        end
    }
}

/// A block's name, length and mapped-ram header.
fn described(placed: &MappedBlock) -> Vec<u8> {
    let mut out = Vec::new();
    block_description(&mut out, placed.block.id().as_str(), placed.block.pages().bytes());
    out.extend(HEADER_VERSION.to_be_bytes());
    out.extend((PAGE_SIZE as u64).to_be_bytes());
    out.extend(placed.bitmap_offset.to_be_bytes());
    out.extend(placed.pages_offset.to_be_bytes());
    out
}
