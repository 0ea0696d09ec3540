//! Made-up machines, for tests: their streams in any order, and the file that must come of them,
//! built the slow and obvious way.

use crate::config::Configuration;
use crate::decode::Header;
use crate::encode::{Frames, Part, ram_part, ram_section_end, ram_setup, stream_start};
use crate::mapped::{MappedLayout, PageBitmap};
use crate::ram::{BlockId, RamBlock, RamLayout};
use crate::units::{BlockIndex, PAGE_SIZE, Page, PageCount, PageIndex};
use crate::wire::{COMMAND, EOF, SECTION_FOOTER, SECTION_FULL, VMDESCRIPTION};

/// Number of the memory's section.
pub const SECTION_ID: u32 = 2;

/// Where a page is.
pub type Place = (BlockIndex, PageIndex);

/// A made-up machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its header.
    pub header: Header,
    /// Each block's bytes.
    pub memory: Vec<Vec<u8>>,
    /// Its device state, whole.
    pub devices: Vec<u8>,
}

/// The header that opens a stream.
pub fn stream_header(header: &Header) -> Vec<u8> {
    let mut out = Vec::new();
    stream_start(&mut out, &header.configuration);
    ram_setup(&mut out, header.section_id, &header.ram);
    out
}

/// Two device sections, the end mark and a description.
pub fn device_state(seed: u8) -> Vec<u8> {
    let mut out = Vec::new();
    for (id, name) in [(3u32, "timer"), (4, "cpu")] {
        out.push(SECTION_FULL);
        out.extend(id.to_be_bytes());
        out.push(name.len() as u8);
        out.extend(name.as_bytes());
        out.extend([0; 8]);
        out.extend((0..64).map(|n: u8| n.wrapping_mul(seed)));
        out.push(SECTION_FOOTER);
        out.extend(id.to_be_bytes());
    }
    let description = br#"{"page_size":4096,"devices":[{"name":"timer"},{"name":"cpu"}]}"#;
    out.extend([EOF, VMDESCRIPTION]);
    out.extend((description.len() as u32).to_be_bytes());
    out.extend(description);
    out
}

impl Machine {
    /// A machine with those blocks (name, pages); about a third of its pages are zeroes, in runs.
    pub fn new(blocks: &[(&str, u64)], seed: u64) -> Self {
        let mut ram = RamLayout::default();
        let mut memory = Vec::new();
        let mut random = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
            random >> 33
        };
        for (name, pages) in blocks {
            let id = BlockId::parse(name.as_bytes(), 0).expect("a name");
            let count = PageCount::new(*pages).expect("a small block");
            ram.push(RamBlock::new(id, count), 0).expect("few blocks");
            let mut bytes = vec![0; *pages as usize * PAGE_SIZE];
            let mut zero = false;
            for page in bytes.chunks_exact_mut(PAGE_SIZE) {
                zero = if next() % 8 == 0 { next() % 3 == 0 } else { zero };
                if !zero {
                    page.iter_mut().for_each(|byte| *byte = next() as u8);
                }
            }
            memory.push(bytes);
        }
        let configuration = Configuration::new("pc-q35-10.0").expect("a name");
        let header = Header { configuration, section_id: SECTION_ID, ram };
        Self { header, memory, devices: device_state(seed as u8) }
    }

    /// All pages in the order in which an undisturbed QEMU sends them.
    pub fn places(&self) -> Vec<Place> {
        let blocks = self.header.ram.iter();
        let pages = |(block, described): (BlockIndex, &RamBlock)| {
            let numbers = 0..described.pages().get();
            numbers.filter_map(PageIndex::new).map(move |page| (block, page))
        };
        blocks.flat_map(pages).collect()
    }

    /// A page's bytes.
    pub fn page(&self, (block, page): Place) -> &Page {
        let (pages, _) = self.memory[block.get()].as_chunks::<PAGE_SIZE>();
        &pages[page.get() as usize]
    }

    /// Changes a page.
    pub fn fill_page(&mut self, (block, page): Place, fill: u8) {
        let start = page.byte_offset() as usize;
        self.memory[block.get()][start..start + PAGE_SIZE].fill(fill);
    }

    /// Appends sections of memory with those pages.
    pub fn pages(&self, out: &mut Vec<u8>, order: &[Place], pages_per_section: usize) {
        let mut frames = Frames::new();
        for places in order.chunks(pages_per_section.max(1)) {
            ram_part(out, Part::More, SECTION_ID);
            for place in places {
                let bytes = Some(self.page(*place)).filter(|page| **page != [0; PAGE_SIZE]);
                frames.push(out, &self.header.ram, *place, bytes);
            }
            ram_section_end(out, SECTION_ID);
        }
    }

    /// The stream of a background snapshot that sends pages in that order.
    pub fn stream(&self, order: &[Place], pages_per_section: usize) -> Vec<u8> {
        let mut out = stream_header(&self.header);
        self.pages(&mut out, order, pages_per_section);
        out.extend(&self.devices);
        out
    }

    /// The stream of an ordinary migration: all of `before` first, then those pages again that
    /// differ now, a command and an empty last section.
    pub fn precopy_stream(&self, before: &Self) -> Vec<u8> {
        let mut out = stream_header(&self.header);
        before.pages(&mut out, &before.places(), 100);
        let mut changed = self.places();
        changed.retain(|place| self.page(*place) != before.page(*place));
        self.pages(&mut out, &changed, 100);
        out.extend([COMMAND, 0, 11, 0, 0]);
        ram_part(&mut out, Part::Last, SECTION_ID);
        ram_section_end(&mut out, SECTION_ID);
        out.extend(&self.devices);
        out
    }

    /// The mapped-ram file of the machine, byte for byte.
    pub fn image(&self) -> Vec<u8> {
        let layout = MappedLayout::for_stream(&self.header);
        let mut file = vec![0; layout.devices_offset() as usize];
        let mut put = |offset: u64, bytes: &[u8]| {
            file[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        };
        for (offset, bytes) in layout.pieces() {
            put(offset, &bytes);
        }
        for (placed, memory) in layout.blocks().iter().zip(&self.memory) {
            let mut bitmap = PageBitmap::new(placed.block().pages());
            for (n, page) in memory.chunks_exact(PAGE_SIZE).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    bitmap.insert(PageIndex::new(n as u64).expect("a small block"));
                }
            }
            put(placed.bitmap_offset(), &bitmap.to_bytes());
            put(placed.pages_offset(), memory);
        }
        file.extend(&self.devices);
        file
    }
}
