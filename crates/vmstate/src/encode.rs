//! The migration stream, written: what [`crate::decode`] reads, piece by piece.
//!
//! Used to start a QEMU from parts of a snapshot, and by tests to make streams of any shape.

use crate::config::Configuration;
use crate::ram::RamLayout;
use crate::units::{BlockIndex, Page, PageIndex};
use crate::wire::{
    MAGIC, RAM_CONTINUE, RAM_EOS, RAM_MEM_SIZE, RAM_PAGE, RAM_SECTION_NAME, RAM_SECTION_VERSION, RAM_ZERO, SECTION_END,
    SECTION_FOOTER, SECTION_PART, SECTION_START, VERSION,
};

/// Appends magic, version and configuration.
pub fn stream_start(out: &mut Vec<u8>, configuration: &Configuration) {
    out.extend(MAGIC);
    out.extend(VERSION.to_be_bytes());
    configuration.encode(out);
}

/// Appends the head of the memory's first section, up to the first block's description.
pub fn ram_start(out: &mut Vec<u8>, section_id: u32, ram: &RamLayout) {
    out.push(SECTION_START);
    out.extend(section_id.to_be_bytes());
    out.push(RAM_SECTION_NAME.len() as u8);
    out.extend(RAM_SECTION_NAME);
    out.extend(0u32.to_be_bytes());
    out.extend(RAM_SECTION_VERSION.to_be_bytes());
    out.extend((ram.total_bytes() | RAM_MEM_SIZE).to_be_bytes());
}

/// Appends one block's name and length.
pub fn block_description(out: &mut Vec<u8>, name: &str, bytes: u64) {
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
    out.extend(bytes.to_be_bytes());
}

/// Appends the end of a section of memory: end mark and footer.
pub fn ram_section_end(out: &mut Vec<u8>, section_id: u32) {
    out.extend(RAM_EOS.to_be_bytes());
    out.push(SECTION_FOOTER);
    out.extend(section_id.to_be_bytes());
}

/// Appends the whole first section of memory of a plain stream.
pub fn ram_setup(out: &mut Vec<u8>, section_id: u32, ram: &RamLayout) {
    ram_start(out, section_id, ram);
    for block in ram.blocks() {
        block_description(out, block.id().as_str(), block.pages().bytes());
    }
    ram_section_end(out, section_id);
}

/// Which further section of memory begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// One of many.
    More,
    /// The last, as ordinary precopy sends it.
    Last,
}

/// Appends the head of a further section of memory.
pub fn ram_part(out: &mut Vec<u8>, part: Part, section_id: u32) {
    out.push(match part {
        Part::More => SECTION_PART,
        Part::Last => SECTION_END,
    });
    out.extend(section_id.to_be_bytes());
}

/// Writes page frames; remembers the block so that its name is sent only when it changes.
#[derive(Debug, Default)]
pub struct Frames {
    block: Option<BlockIndex>,
}

impl Frames {
    /// No block yet: the next frame carries its block's name.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a page; `None` for a page of zeroes. Does nothing for a block that `ram` lacks.
    pub fn push(
        &mut self,
        out: &mut Vec<u8>,
        ram: &RamLayout,
        (block, page): (BlockIndex, PageIndex),
        bytes: Option<&Page>,
    ) {
        let Some(described) = ram.get(block) else {
            return;
        };
        let kind = if bytes.is_some() { RAM_PAGE } else { RAM_ZERO };
        if self.block == Some(block) {
            out.extend((page.byte_offset() | kind | RAM_CONTINUE).to_be_bytes());
        } else {
            out.extend((page.byte_offset() | kind).to_be_bytes());
            out.push(described.id().as_str().len() as u8);
            out.extend(described.id().as_str().as_bytes());
            self.block = Some(block);
        }
        match bytes {
            Some(bytes) => out.extend(bytes),
            None => out.push(0),
        }
    }
}
