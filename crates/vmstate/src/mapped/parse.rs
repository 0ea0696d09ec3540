//! Reading a mapped-ram file's structure: QEMU's own or ours, without reading its pages.

use crate::Error;
use crate::config::Configuration;
use crate::decode::{command, described_block, footer, ram_section};
use crate::limits::{MAX_BLOCKS, MAX_EMPTY_SECTIONS};
use crate::ram::RamLayout;
use crate::tail::{TailEnd, TailScanner};
use crate::units::{BlockIndex, PAGE_SIZE};
use crate::wire::{
    COMMAND, Cursor, EOF, MAGIC, NeedBytes, RAM_EOS, RAM_FLAGS, RAM_MEM_SIZE, SECTION_END, SECTION_FULL, SECTION_PART,
    SUBSECTION, Stop, VERSION,
};

use super::bitmap::PageBitmap;
use super::layout::{HEADER_VERSION, MappedBlock, MappedLayout};

/// Random access to a file's bytes.
pub trait ReadAt {
    /// What can go wrong; format errors are turned into it.
    type Error: From<Error>;

    /// Length in bytes.
    fn byte_len(&self) -> u64;

    /// Fills `buf` from `offset`. Never called beyond [`ReadAt::byte_len`].
    ///
    /// # Errors
    /// The source's own, when not all bytes can be read.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Self::Error>;
}

impl ReadAt for &[u8] {
    type Error = Error;

    fn byte_len(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = self.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(found.ok_or(Error::Truncated { offset, what: "file" })?);
        Ok(())
    }
}

/// A parsed file: where everything lies, up to its last byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedFile {
    layout: MappedLayout,
    devices: TailEnd,
    file_bytes: u64,
}

impl MappedFile {
    /// Where blocks and pages lie.
    pub fn layout(&self) -> &MappedLayout {
        &self.layout
    }

    /// The parts of the device state, counted from [`MappedLayout::devices_offset`].
    pub fn devices(&self) -> TailEnd {
        self.devices
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Reads a block's bitmap: one byte of memory for each eight pages. All clear for a block that
    /// does not exist.
    ///
    /// # Errors
    /// [`Error`] for bits beyond the block, or the source's own.
    pub fn read_bitmap<R: ReadAt>(&self, source: &R, block: BlockIndex) -> Result<PageBitmap, R::Error> {
        let Some(placed) = self.layout.get(block) else {
            return Err(Error::Truncated { offset: 0, what: "list of blocks" }.into());
        };
        let mut bytes = vec![0; placed.bitmap_bytes() as usize];
        source.read_exact_at(&mut bytes, placed.bitmap_offset())?;
        Ok(PageBitmap::from_bytes(placed.block().pages(), &bytes, placed.bitmap_offset())?)
    }
}

/// Parses a file: everything but bitmaps and pages is read and checked, the device state for being
/// complete (see [`crate::tail`]).
///
/// # Errors
/// [`Error`] for a file that is not a whole mapped-ram file with 4 KiB pages, or the source's own.
pub fn parse<R: ReadAt>(source: &R) -> Result<MappedFile, R::Error> {
    let mut reader = Reader { source, at: 0 };
    let (configuration, section_id, total_bytes) = head(&mut reader)?;
    let (ram, blocks) = blocks(&mut reader, total_bytes)?;
    reader.unit(|cursor| section_end(cursor, section_id))?;
    skip_empty_sections(&mut reader, section_id)?;
    let devices_offset = reader.at;
    let devices = scan_devices(source, devices_offset)?;
    let layout = MappedLayout { configuration, section_id, ram, blocks, devices_offset };
    Ok(MappedFile { layout, devices, file_bytes: source.byte_len() })
}

/// Reads the file forward, one small unit at a time.
struct Reader<'a, R> {
    source: &'a R,
    at: u64,
}

impl<R: ReadAt> Reader<'_, R> {
    /// Bytes that are looked at for one unit at first, and at most: the largest unit is the
    /// configuration's subsection of capabilities.
    const FIRST_LOOK: usize = 512;
    const LARGEST_UNIT: usize = 16 << 10;

    fn unit<T>(&mut self, read: impl Fn(&mut Cursor<'_>) -> Result<T, Stop>) -> Result<T, R::Error> {
        let left = self.source.byte_len().saturating_sub(self.at);
        let mut wanted = Self::FIRST_LOOK;
        loop {
            let mut bytes = vec![0; wanted.min(usize::try_from(left).unwrap_or(usize::MAX))];
            self.source.read_exact_at(&mut bytes, self.at)?;
            let mut cursor = Cursor::new(&bytes, self.at);
            match read(&mut cursor) {
                Ok(value) => {
                    self.at += cursor.position() as u64;
                    return Ok(value);
                }
                Err(Stop::Wrong(error)) => return Err(error.into()),
                Err(Stop::Need(NeedBytes(count))) => {
                    if count as u64 > left || count > Self::LARGEST_UNIT {
                        let offset = self.source.byte_len();
                        return Err(Error::Truncated { offset, what: "mapped-ram file" }.into());
                    }
                    wanted = count.max(wanted);
                }
            }
        }
    }
}

/// Magic, version, configuration and the head of the memory's section.
fn head<R: ReadAt>(reader: &mut Reader<'_, R>) -> Result<(Configuration, u32, u64), R::Error> {
    let mut configuration = reader.unit(|cursor| {
        let (offset, format) = (cursor.offset(), "a mapped-ram file");
        if *cursor.array()? != MAGIC {
            return Err(Error::BadMagic { offset, format }.into());
        }
        let version = cursor.be32()?;
        if version != VERSION {
            return Err(Error::UnsupportedVersion { offset, format, version }.into());
        }
        Configuration::decode_start(cursor)
    })?;
    while peek(reader)? == SUBSECTION {
        configuration = reader.unit(|cursor| {
            let mut next = configuration.clone();
            next.decode_subsection(cursor)?;
            Ok(next)
        })?;
    }
    if !configuration.mapped_ram() {
        let what = "a stream as a mapped-ram file".to_owned();
        let why = "its configuration lacks the capability mapped-ram";
        return Err(Error::Unsupported { offset: reader.at, what, why }.into());
    }
    let (section_id, total_bytes) = reader.unit(|cursor| {
        let section_id = ram_section(cursor)?;
        let (offset, word) = (cursor.offset(), cursor.be64()?);
        if word & RAM_FLAGS != RAM_MEM_SIZE {
            let what = "flags of the first memory frame";
            return Err(Error::Unexpected { offset, what, value: word }.into());
        }
        Ok((section_id, word & !RAM_FLAGS))
    })?;
    Ok((configuration, section_id, total_bytes))
}

fn peek<R: ReadAt>(reader: &mut Reader<'_, R>) -> Result<u8, R::Error> {
    let at = reader.at;
    let mark = reader.unit(|cursor| cursor.u8())?;
    reader.at = at;
    Ok(mark)
}

fn blocks<R: ReadAt>(reader: &mut Reader<'_, R>, total_bytes: u64) -> Result<(RamLayout, Vec<MappedBlock>), R::Error> {
    let (mut ram, mut placed, mut left_bytes) = (RamLayout::default(), Vec::new(), total_bytes);
    while left_bytes > 0 && placed.len() <= MAX_BLOCKS {
        let description_offset = reader.at;
        let (block, left) = reader.unit(|cursor| {
            let (block, left) = described_block(cursor, left_bytes)?;
            block_header(cursor, block, description_offset).map(|block| (block, left))
        })?;
        ram.push(block.block().clone(), description_offset)?;
        let file_bytes = reader.source.byte_len();
        let bitmap_end = block.bitmap_offset().checked_add(block.bitmap_bytes());
        let pages_end = block.pages_offset().checked_add(block.block().pages().bytes());
        let ordered = block.bitmap_offset() >= reader.at && bitmap_end.is_some_and(|end| end <= block.pages_offset());
        if !ordered {
            return Err(Error::Overlap { offset: reader.at, what: "bitmap or pages" }.into());
        }
        let Some(end) = pages_end.filter(|end| *end <= file_bytes) else {
            return Err(Error::Truncated { offset: file_bytes, what: "mapped-ram file" }.into());
        };
        reader.at = end;
        left_bytes = left;
        placed.push(block);
    }
    Ok((ram, placed))
}

fn block_header(
    cursor: &mut Cursor<'_>,
    block: crate::ram::RamBlock,
    description_offset: u64,
) -> Result<MappedBlock, Stop> {
    let (offset, version) = (cursor.offset(), cursor.be32()?);
    if version != HEADER_VERSION {
        return Err(Error::UnsupportedVersion { offset, format: "mapped-ram", version }.into());
    }
    let (offset, value) = (cursor.offset(), cursor.be64()?);
    if value != PAGE_SIZE as u64 {
        return Err(Error::Unexpected { offset, what: "page size", value }.into());
    }
    let bitmap_offset = cursor.be64()?;
    let (offset, pages_offset) = (cursor.offset(), cursor.be64()?);
    if !pages_offset.is_multiple_of(PAGE_SIZE as u64) {
        let what = "unaligned offset of pages";
        return Err(Error::Unexpected { offset, what, value: pages_offset }.into());
    }
    Ok(MappedBlock { block, description_offset, bitmap_offset, pages_offset })
}

/// A section of memory without pages: end mark and footer.
fn section_end(cursor: &mut Cursor<'_>, section_id: u32) -> Result<(), Stop> {
    let (offset, value) = (cursor.offset(), cursor.be64()?);
    if value != RAM_EOS {
        return Err(Error::Unexpected { offset, what: "memory frame", value }.into());
    }
    footer(cursor, section_id)
}

/// QEMU writes its PART and END sections, and a command, between memory and devices.
fn skip_empty_sections<R: ReadAt>(reader: &mut Reader<'_, R>, section_id: u32) -> Result<(), R::Error> {
    for _ in 0..MAX_EMPTY_SECTIONS {
        let (offset, mark) = (reader.at, peek(reader)?);
        match mark {
            SECTION_PART | SECTION_END => reader.unit(|cursor| {
                cursor.u8()?;
                let (offset, value) = (cursor.offset(), cursor.be32()?);
                if value != section_id {
                    let (what, value) = ("section number", value.into());
                    return Err(Error::Unexpected { offset, what, value }.into());
                }
                section_end(cursor, section_id)
            })?,
            COMMAND => reader.unit(command)?,
            SECTION_FULL | EOF => return Ok(()),
            _ => {
                let (what, value) = ("section type", mark.into());
                return Err(Error::Unexpected { offset, what, value }.into());
            }
        }
    }
    let (what, limit) = ("empty sections", MAX_EMPTY_SECTIONS.into());
    Err(Error::OverLimit { offset: reader.at, what, value: limit + 1, limit }.into())
}

fn scan_devices<R: ReadAt>(source: &R, from: u64) -> Result<TailEnd, R::Error> {
    let mut scanner = TailScanner::new();
    let mut buf = vec![0; 64 << 10];
    let (mut at, end) = (from, source.byte_len());
    while at < end {
        let count = (end - at).min(buf.len() as u64) as usize;
        let chunk = buf.get_mut(..count).unwrap_or_default();
        source.read_exact_at(chunk, at)?;
        scanner.feed(chunk, at)?;
        at += count as u64;
    }
    Ok(scanner.finish(end)?)
}
