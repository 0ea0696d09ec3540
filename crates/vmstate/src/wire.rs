//! Numbers of the migration stream, and a reader that cannot overrun.
//!
//! Source: QEMU 10.0 `migration/savevm.h:17-30`, `migration/ram.h:55-62`,
//! `migration/savevm.c:77-117`.

use crate::Error;

/// First four bytes of a stream.
pub const MAGIC: [u8; 4] = *b"QEVM";
/// Stream version.
pub const VERSION: u32 = 3;

/// End of the sections.
pub const EOF: u8 = 0x00;
/// First part of an iterated section.
pub const SECTION_START: u8 = 0x01;
/// A further part of an iterated section.
pub const SECTION_PART: u8 = 0x02;
/// Last part of an iterated section.
pub const SECTION_END: u8 = 0x03;
/// A section in one piece: a device.
pub const SECTION_FULL: u8 = 0x04;
/// Optional part of a section.
pub const SUBSECTION: u8 = 0x05;
/// JSON description of all device sections, after the end.
pub const VMDESCRIPTION: u8 = 0x06;
/// Machine type and capabilities.
pub const CONFIGURATION: u8 = 0x07;
/// A command to the receiving side.
pub const COMMAND: u8 = 0x08;
/// Ends every section, followed by its number.
pub const SECTION_FOOTER: u8 = 0x7e;

/// A page of zeroes; one byte (0) follows.
pub const RAM_ZERO: u64 = 0x02;
/// The list of blocks follows; the address is their total length.
pub const RAM_MEM_SIZE: u64 = 0x04;
/// A page; 4096 bytes follow.
pub const RAM_PAGE: u64 = 0x08;
/// End of this section's pages.
pub const RAM_EOS: u64 = 0x10;
/// Same block as the page before: no name follows.
pub const RAM_CONTINUE: u64 = 0x20;
/// Bits of a frame's first word that are flags.
pub const RAM_FLAGS: u64 = 0xfff;

/// Name of the memory's section.
pub const RAM_SECTION_NAME: &[u8] = b"ram";
/// Version of the memory's section.
pub const RAM_SECTION_VERSION: u32 = 4;

/// Command "the source starts to switch over": no reply, no effect on memory.
pub const CMD_SWITCHOVER_START: u16 = 11;

/// Names of the commands, by number, for error messages.
pub fn command_name(command: u16) -> &'static str {
    const NAMES: [&str; 12] = [
        "INVALID",
        "OPEN_RETURN_PATH",
        "PING",
        "POSTCOPY_ADVISE",
        "POSTCOPY_LISTEN",
        "POSTCOPY_RUN",
        "POSTCOPY_RAM_DISCARD",
        "PACKAGED",
        "ENABLE_COLO",
        "POSTCOPY_RESUME",
        "RECV_BITMAP",
        "SWITCHOVER_START",
    ];
    NAMES.get(usize::from(command)).copied().unwrap_or("unknown")
}

/// The input so far does not hold the whole unit; this many bytes, counted from the unit's start,
/// are needed to get further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeedBytes(pub usize);

/// Why a unit could not be read: more bytes are needed, or it is wrong.
#[derive(Debug)]
pub(crate) enum Stop {
    Need(NeedBytes),
    Wrong(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Wrong(error)
    }
}

/// Reads big-endian fields from the front of a slice.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    base: u64,
}

impl<'a> Cursor<'a> {
    /// `base` is the offset of `bytes[0]` in the whole input, for error messages.
    pub fn new(bytes: &'a [u8], base: u64) -> Self {
        Self { bytes, at: 0, base }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Offset in the whole input of the next byte.
    pub fn offset(&self) -> u64 {
        self.base.saturating_add(self.at as u64)
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let end = self.at.saturating_add(count);
        let found = self.bytes.get(self.at..end).ok_or(Stop::Need(NeedBytes(end)))?;
        self.at = end;
        Ok(found)
    }

    pub fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Stop> {
        let end = self.at.saturating_add(N);
        let found = self.rest().first_chunk().ok_or(Stop::Need(NeedBytes(end)))?;
        self.at = end;
        Ok(found)
    }

    pub fn u8(&mut self) -> Result<u8, Stop> {
        self.array::<1>().map(|b| b[0])
    }

    pub fn be16(&mut self) -> Result<u16, Stop> {
        self.array().map(|b| u16::from_be_bytes(*b))
    }

    pub fn be32(&mut self) -> Result<u32, Stop> {
        self.array().map(|b| u32::from_be_bytes(*b))
    }

    pub fn be64(&mut self) -> Result<u64, Stop> {
        self.array().map(|b| u64::from_be_bytes(*b))
    }

    /// A byte count and that many bytes.
    pub fn counted(&mut self) -> Result<&'a [u8], Stop> {
        let count = self.u8()?;
        self.take(usize::from(count))
    }
}
