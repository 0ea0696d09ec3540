//! QEMU's migration stream in, pages and device state out: incremental and without I/O.
//!
//! Accepted are the stream of a background snapshot and that of an ordinary precopy migration
//! (pages may come again: the later one holds). The order, with what [`Decoder`] expects where:
//!
//! ```text
//! QEVM 3 | configuration                        Start, Configuration
//! START ram: total, blocks, end | footer        Section, Blocks, Pages, Footer
//! PART ram: pages, end | footer      repeated   Section, Pages, Footer
//! END ram: pages, end | footer       precopy    Section, Pages, Footer
//! FULL … | end mark | description               Devices (opaque, see crate::tail)
//! ```
//!
//! Bytes are fed in any cut. A unit (a frame, a block's description) that lies whole in the slice
//! is read in place: pages are handed to the [`Sink`] without a copy. One that is cut is gathered
//! in a carry buffer of one frame's size. Nothing else is buffered and nothing is allocated by a
//! length that the input names.
//!
//! Source: QEMU 10.0 `migration/ram.c` (`ram_save_setup`, `ram_load_precopy`),
//! `migration/savevm.c` (`qemu_loadvm_state_main`).

use crate::Error;
use crate::config::Configuration;
use crate::ram::{BlockId, RamBlock, RamLayout};
use crate::tail::{TailEnd, TailScanner};
use crate::units::{BlockIndex, PAGE_SIZE, Page, PageCount, PageIndex};
use crate::wire::{
    CMD_SWITCHOVER_START, COMMAND, Cursor, EOF, MAGIC, NeedBytes, RAM_CONTINUE, RAM_EOS, RAM_FLAGS, RAM_MEM_SIZE,
    RAM_PAGE, RAM_SECTION_NAME, RAM_SECTION_VERSION, RAM_ZERO, SECTION_END, SECTION_FOOTER, SECTION_FULL, SECTION_PART,
    SECTION_START, SUBSECTION, Stop, VERSION, command_name,
};

/// Everything the stream says before its first page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Machine type and what else the configuration section holds.
    pub configuration: Configuration,
    /// Number of the memory's section.
    pub section_id: u32,
    /// The RAM blocks.
    pub ram: RamLayout,
}

/// Receives what a [`Decoder`] finds, in stream order. The first error ends the decoding.
pub trait Sink {
    /// What can go wrong here; stream errors are turned into it.
    type Error: From<Error>;

    /// Called once, before anything else.
    ///
    /// # Errors
    /// The sink's own.
    fn header(&mut self, header: &Header) -> Result<(), Self::Error>;

    /// A page's bytes. The page exists; it may have come before, then this one holds.
    ///
    /// # Errors
    /// The sink's own.
    fn page(&mut self, block: BlockIndex, page: PageIndex, bytes: &Page) -> Result<(), Self::Error>;

    /// A page of zeroes, under the same rules.
    ///
    /// # Errors
    /// The sink's own.
    fn zero_page(&mut self, block: BlockIndex, page: PageIndex) -> Result<(), Self::Error>;

    /// The next bytes of the device state, from the first device section to the end of the
    /// description. Only [`Decoder::finish`] tells whether they were all.
    ///
    /// # Errors
    /// The sink's own.
    fn device_state(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// What a complete stream held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Frames with a page's bytes, repeats counted again.
    pub page_frames: u64,
    /// Frames that say a page is zero.
    pub zero_frames: u64,
    /// Bytes of the whole stream.
    pub stream_bytes: u64,
    /// The parts of the device state.
    pub devices: TailEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Configuration,
    Blocks { left_bytes: u64 },
    Pages,
    Footer,
    Section,
    Devices,
}

/// Incremental decoder; see the module's text for the states.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    offset: u64,
    carry: Vec<u8>,
    /// Bytes the unit in `carry` needs before it is worth looking at again.
    wanted: usize,
    configuration: Option<Configuration>,
    section_id: u32,
    ram: RamLayout,
    block: Option<BlockIndex>,
    tail: TailScanner,
    page_frames: u64,
    zero_frames: u64,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Start,
            offset: 0,
            carry: Vec::new(),
            wanted: 0,
            configuration: None,
            section_id: 0,
            ram: RamLayout::default(),
            block: None,
            tail: TailScanner::new(),
            page_frames: 0,
            zero_frames: 0,
        }
    }

    /// Bytes fed so far.
    pub fn stream_bytes(&self) -> u64 {
        self.offset + self.carry.len() as u64
    }

    /// Takes the next bytes of the stream. After an error the decoder must not be fed again.
    ///
    /// # Errors
    /// [`Error`] for a stream that is not as described above, or the sink's own.
    pub fn feed<S: Sink>(&mut self, mut input: &[u8], sink: &mut S) -> Result<(), S::Error> {
        while !self.carry.is_empty() && !input.is_empty() {
            let missing = self.wanted.saturating_sub(self.carry.len()).min(input.len());
            let (taken, rest) = input.split_at(missing);
            self.carry.extend_from_slice(taken);
            input = rest;
            if self.carry.len() < self.wanted {
                return Ok(());
            }
            let carried = std::mem::take(&mut self.carry);
            let used = self.consume(&carried, sink)?;
            self.carry = carried;
            self.carry.drain(..used);
        }
        if !input.is_empty() {
            let used = self.consume(input, sink)?;
            self.carry.extend_from_slice(input.get(used..).unwrap_or_default());
        }
        Ok(())
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`Error::Truncated`] unless the stream was whole, to the last byte of its description.
    pub fn finish(self) -> Result<Summary, Error> {
        let stream_bytes = self.stream_bytes();
        if self.state != State::Devices {
            let what = match self.state {
                State::Start | State::Configuration | State::Blocks { .. } => "stream header",
                _ => "guest memory",
            };
            return Err(Error::Truncated { offset: stream_bytes, what });
        }
        Ok(Summary {
            page_frames: self.page_frames,
            zero_frames: self.zero_frames,
            stream_bytes,
            devices: self.tail.finish(stream_bytes)?,
        })
    }

    /// Reads whole units from the front of `bytes`; returns how many bytes they had. What is left
    /// is the start of a unit of which `self.wanted` bytes are needed.
    fn consume<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, S::Error> {
        let mut used = 0;
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(used);
            }
            match self.unit(rest, sink) {
                Ok(count) => {
                    used += count;
                    self.offset += count as u64;
                }
                Err(Halt::Stop(Stop::Need(NeedBytes(count)))) => {
                    self.wanted = count;
                    return Ok(used);
                }
                Err(Halt::Stop(Stop::Wrong(error))) => return Err(error.into()),
                Err(Halt::Sink(error)) => return Err(error),
            }
        }
    }

    /// Reads one unit; returns its length.
    fn unit<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, Halt<S::Error>> {
        let mut cursor = Cursor::new(bytes, self.offset);
        match self.state {
            State::Pages => return self.frames(bytes, sink),
            State::Devices => {
                self.tail.feed(bytes, self.offset)?;
                sink.device_state(bytes).map_err(Halt::Sink)?;
                return Ok(bytes.len());
            }
            State::Start => self.start(&mut cursor)?,
            State::Configuration => self.after_configuration(&mut cursor)?,
            State::Blocks { left_bytes } => {
                self.block(&mut cursor, left_bytes)?;
                if self.state == State::Pages {
                    self.announce(sink)?;
                }
            }
            State::Footer => self.footer(&mut cursor)?,
            State::Section => self.section(&mut cursor)?,
        }
        Ok(cursor.position())
    }

    fn start(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let offset = cursor.offset();
        let format = "a migration stream";
        if *cursor.array()? != MAGIC {
            return Err(Error::BadMagic { offset, format }.into());
        }
        let version = cursor.be32()?;
        if version != VERSION {
            return Err(Error::UnsupportedVersion { offset, format, version }.into());
        }
        self.configuration = Some(Configuration::decode_start(cursor)?);
        self.state = State::Configuration;
        Ok(())
    }

    /// A subsection of the configuration, a command, or the memory's first section.
    fn after_configuration(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let mut ahead = Cursor::new(cursor.rest(), cursor.offset());
        let (offset, mark) = (ahead.offset(), ahead.u8()?);
        match (mark, &mut self.configuration) {
            (SUBSECTION, Some(configuration)) => configuration.decode_subsection(cursor),
            (COMMAND, _) => command(cursor),
            _ => {
                if self.configuration.as_ref().is_some_and(Configuration::mapped_ram) {
                    return Err(Error::Unsupported {
                        offset,
                        what: "a mapped-ram file as a stream".into(),
                        why: "its pages are not in stream order; switch mapped-ram off",
                    }
                    .into());
                }
                self.section_id = ram_section(cursor)?;
                let (offset, word) = (cursor.offset(), cursor.be64()?);
                if word & RAM_FLAGS != RAM_MEM_SIZE {
                    let what = "flags of the first memory frame";
                    return Err(Error::Unexpected { offset, what, value: word }.into());
                }
                self.state = State::Blocks { left_bytes: word & !RAM_FLAGS };
                Ok(())
            }
        }
    }

    fn block(&mut self, cursor: &mut Cursor<'_>, left_bytes: u64) -> Result<(), Stop> {
        if left_bytes == 0 {
            self.state = State::Pages;
            return Ok(());
        }
        let (block, left_bytes) = described_block(cursor, left_bytes)?;
        self.ram.push(block, cursor.offset())?;
        self.state = if left_bytes == 0 { State::Pages } else { State::Blocks { left_bytes } };
        Ok(())
    }

    fn announce<S: Sink>(&mut self, sink: &mut S) -> Result<(), Halt<S::Error>> {
        let Some(configuration) = self.configuration.clone() else {
            let error = Error::Truncated { offset: self.offset, what: "stream header" };
            return Err(Halt::Stop(Stop::Wrong(error)));
        };
        let header = Header { configuration, section_id: self.section_id, ram: self.ram.clone() };
        sink.header(&header).map_err(Halt::Sink)
    }

    /// Reads frames until the section ends or the bytes do: the hot loop.
    fn frames<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, Halt<S::Error>> {
        let mut used = 0;
        while let Some((word, rest)) = bytes.get(used..).and_then(<[u8]>::split_first_chunk) {
            let word = u64::from_be_bytes(*word);
            let Some(block) = self.block.filter(|_| word & RAM_CONTINUE != 0) else {
                break;
            };
            let page = self.page_of(block, word, used)?;
            match (word & RAM_FLAGS) ^ RAM_CONTINUE {
                RAM_PAGE => {
                    let Some(page_bytes) = rest.first_chunk::<PAGE_SIZE>() else {
                        break;
                    };
                    self.page_frames += 1;
                    sink.page(block, page, page_bytes).map_err(Halt::Sink)?;
                    used += size_of_val(&word) + PAGE_SIZE;
                }
                RAM_ZERO if rest.first() == Some(&0) => {
                    self.zero_frames += 1;
                    sink.zero_page(block, page).map_err(Halt::Sink)?;
                    used += size_of_val(&word) + 1;
                }
                _ => break,
            }
        }
        if used > 0 { Ok(used) } else { self.frame(bytes, sink) }
    }

    /// Reads one frame of any kind, with a block's name or without.
    fn frame<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, Halt<S::Error>> {
        let mut cursor = Cursor::new(bytes, self.offset);
        let word = cursor.be64()?;
        let (address, flags) = (word & !RAM_FLAGS, word & RAM_FLAGS & !RAM_CONTINUE);
        if flags == RAM_EOS && address == 0 {
            self.state = State::Footer;
            return Ok(cursor.position());
        }
        if flags != RAM_PAGE && flags != RAM_ZERO {
            let (offset, what) = (self.offset, "flags of a memory frame");
            return Err(Error::Unexpected { offset, what, value: word }.into());
        }
        let block = self.block_of(&mut cursor, word)?;
        let page = self.page_of(block, word, 0)?;
        if flags == RAM_PAGE {
            let page_bytes = cursor.array()?;
            self.page_frames += 1;
            sink.page(block, page, page_bytes).map_err(Halt::Sink)?;
        } else {
            let (offset, value) = (cursor.offset(), cursor.u8()?);
            if value != 0 {
                let what = "fill of a zero page";
                return Err(Error::Unexpected { offset, what, value: value.into() }.into());
            }
            self.zero_frames += 1;
            sink.zero_page(block, page).map_err(Halt::Sink)?;
        }
        self.block = Some(block);
        Ok(cursor.position())
    }

    fn block_of(&self, cursor: &mut Cursor<'_>, word: u64) -> Result<BlockIndex, Stop> {
        let (offset, page_offset) = (cursor.offset(), word & !RAM_FLAGS);
        if word & RAM_CONTINUE != 0 {
            let block = String::new();
            return self.block.ok_or(Error::NoSuchPage { offset, block, page_offset }.into());
        }
        let name = cursor.counted()?;
        let found = std::str::from_utf8(name).ok().and_then(|name| self.ram.find(name));
        let block = name.escape_ascii().to_string();
        found.ok_or(Error::NoSuchPage { offset, block, page_offset }.into())
    }

    /// The page a frame's first word names; `ahead` is how far past `self.offset` the frame is.
    fn page_of(&self, block: BlockIndex, word: u64, ahead: usize) -> Result<PageIndex, Error> {
        let page_offset = word & !RAM_FLAGS;
        let page = PageIndex::from_byte_offset(page_offset);
        page.filter(|page| self.ram.contains(block, *page)).ok_or_else(|| Error::NoSuchPage {
            offset: self.offset + ahead as u64,
            block: self.ram.get(block).map(|b| b.id().to_string()).unwrap_or_default(),
            page_offset,
        })
    }

    fn footer(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        footer(cursor, self.section_id)?;
        self.state = State::Section;
        Ok(())
    }

    /// What follows a section of memory: more of it, a command, or the devices.
    fn section(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let mut ahead = Cursor::new(cursor.rest(), cursor.offset());
        let (offset, mark) = (ahead.offset(), ahead.u8()?);
        match mark {
            SECTION_PART | SECTION_END => {
                let (offset, id) = (ahead.offset(), ahead.be32()?);
                if id != self.section_id {
                    return Err(Error::Unsupported {
                        offset,
                        what: format!("a part of section {id}, which is not the memory's"),
                        why: "another device is saved while the machine runs",
                    }
                    .into());
                }
                cursor.take(ahead.position())?;
                self.state = State::Pages;
                Ok(())
            }
            COMMAND => command(cursor),
            SECTION_FULL | EOF => {
                self.state = State::Devices;
                Ok(())
            }
            SECTION_START => Err(Error::Unsupported {
                offset,
                what: "a second section saved in parts".into(),
                why: "a device is saved while the machine runs (VFIO, dirty bitmaps)",
            }
            .into()),
            _ => {
                let what = "section type";
                Err(Error::Unexpected { offset, what, value: mark.into() }.into())
            }
        }
    }
}

/// Why the hot loop stopped.
enum Halt<E> {
    Stop(Stop),
    Sink(E),
}

impl<E> From<Stop> for Halt<E> {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl<E> From<Error> for Halt<E> {
    fn from(error: Error) -> Self {
        Self::Stop(Stop::Wrong(error))
    }
}

/// One block's name and length, and the bytes left to describe after it.
pub(crate) fn described_block(cursor: &mut Cursor<'_>, left_bytes: u64) -> Result<(RamBlock, u64), Stop> {
    let offset = cursor.offset();
    let id = BlockId::parse(cursor.counted()?, offset)?;
    let (offset, length) = (cursor.offset(), cursor.be64()?);
    let what = "RAM block length";
    let wrong = Error::Unexpected { offset, what, value: length };
    let left = left_bytes.checked_sub(length).ok_or_else(|| wrong.clone())?;
    let pages = PageCount::from_bytes(length).filter(|p| p.get() > 0).ok_or(wrong)?;
    Ok((RamBlock::new(id, pages), left))
}

/// Header of the memory's first section; returns its number.
pub(crate) fn ram_section(cursor: &mut Cursor<'_>) -> Result<u32, Stop> {
    let (offset, mark) = (cursor.offset(), cursor.u8()?);
    if mark != SECTION_START && mark != SECTION_FULL {
        return Err(Error::Unexpected { offset, what: "section type", value: mark.into() }.into());
    }
    let id = cursor.be32()?;
    let name = cursor.counted()?;
    let (_instance, version) = (cursor.be32()?, cursor.be32()?);
    if mark == SECTION_FULL || name != RAM_SECTION_NAME {
        return Err(Error::Unsupported {
            offset,
            what: format!("section {:?} before the memory", name.escape_ascii().to_string()),
            why: "its length is unknown (virtio-mem and the like save early)",
        }
        .into());
    }
    if version != RAM_SECTION_VERSION {
        return Err(Error::UnsupportedVersion { offset, format: "memory section", version }.into());
    }
    Ok(id)
}

/// A section's footer.
pub(crate) fn footer(cursor: &mut Cursor<'_>, section_id: u32) -> Result<(), Stop> {
    let (offset, mark, id) = (cursor.offset(), cursor.u8()?, cursor.be32()?);
    if mark != SECTION_FOOTER || id != section_id {
        let value = u64::from(mark) << 32 | u64::from(id);
        return Err(Error::Unexpected { offset, what: "section footer", value }.into());
    }
    Ok(())
}

/// A command: only the one that asks for nothing is accepted.
pub(crate) fn command(cursor: &mut Cursor<'_>) -> Result<(), Stop> {
    let offset = cursor.offset();
    cursor.u8()?;
    let (number, length) = (cursor.be16()?, cursor.be16()?);
    if number == CMD_SWITCHOVER_START && length == 0 {
        return Ok(());
    }
    Err(Error::Unsupported {
        offset,
        what: format!("migration command {}", command_name(number)),
        why: "it expects answers or another kind of migration; switch off return-path, \
              postcopy and colo",
    }
    .into())
}

#[cfg(test)]
mod tests;
