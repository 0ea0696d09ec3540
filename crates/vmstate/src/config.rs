//! The configuration section: which machine wrote the stream, and with which capabilities.
//!
//! Source: QEMU 10.0 `migration/savevm.c:264-560` (`vmstate_configuration`).

use crate::Error;
use crate::limits::MAX_CAPABILITIES;
use crate::ram::printable;
use crate::wire::{CONFIGURATION, Cursor, SUBSECTION, Stop};

/// Capability of a mapped-ram file; QEMU refuses to load one whose configuration lacks it.
pub const MAPPED_RAM: &str = "mapped-ram";

const CAPABILITIES: &[u8] = b"configuration/capabilities";
const UUID: &[u8] = b"configuration/uuid";

/// What the configuration section says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    machine: Box<str>,
    mapped_ram: bool,
    uuid: Option<[u8; 16]>,
}

impl Configuration {
    /// A configuration for a machine type, without capabilities or UUID.
    ///
    /// # Errors
    /// [`Error::BadName`] unless the name is 1 to 255 bytes of printable ASCII.
    pub fn new(machine: &str) -> Result<Self, Error> {
        let machine = printable(machine.as_bytes(), 0)?.into();
        Ok(Self { machine, mapped_ram: false, uuid: None })
    }

    /// The versioned machine type, such as `pc-q35-10.0`.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Whether it is the configuration of a mapped-ram file.
    pub fn mapped_ram(&self) -> bool {
        self.mapped_ram
    }

    /// The machine's UUID, present only when QEMU was told to validate it.
    pub fn uuid(&self) -> Option<[u8; 16]> {
        self.uuid
    }

    /// The same machine as a mapped-ram file has it.
    pub fn for_mapped_ram(&self) -> Self {
        Self { mapped_ram: true, ..self.clone() }
    }

    /// The same machine as a plain stream has it.
    pub fn for_stream(&self) -> Self {
        Self { mapped_ram: false, ..self.clone() }
    }

    /// Appends the section's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(CONFIGURATION);
        out.extend((self.machine.len() as u32).to_be_bytes());
        out.extend(self.machine.as_bytes());
        if self.mapped_ram {
            subsection(out, CAPABILITIES);
            out.extend(1u32.to_be_bytes());
            out.push(MAPPED_RAM.len() as u8);
            out.extend(MAPPED_RAM.as_bytes());
        }
        if let Some(uuid) = self.uuid {
            subsection(out, UUID);
            out.extend(uuid);
        }
    }

    /// Reads the section's first part, up to the machine type.
    pub(crate) fn decode_start(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
        let offset = cursor.offset();
        let mark = cursor.u8()?;
        if mark != CONFIGURATION {
            let value = mark.into();
            return Err(Error::Unexpected { offset, what: "section type", value }.into());
        }
        let (offset, length) = (cursor.offset(), cursor.be32()?);
        if !(1..=255).contains(&length) {
            return Err(Error::BadName { offset }.into());
        }
        let machine = printable(cursor.take(length as usize)?, offset)?.into();
        Ok(Self { machine, mapped_ram: false, uuid: None })
    }

    /// Reads one subsection, whose mark ([`SUBSECTION`]) the caller has seen.
    pub(crate) fn decode_subsection(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let offset = cursor.offset();
        cursor.u8()?;
        let name = cursor.counted()?;
        let version = cursor.be32()?;
        if version != 1 {
            let format = "configuration subsection";
            return Err(Error::UnsupportedVersion { offset, format, version }.into());
        }
        match name {
            CAPABILITIES => self.decode_capabilities(cursor),
            UUID => {
                self.uuid = Some(*cursor.array()?);
                Ok(())
            }
            _ => Err(Error::Unsupported {
                offset,
                what: format!("configuration subsection {}", name.escape_ascii()),
                why: "Keyframe knows capabilities and uuid only",
            }
            .into()),
        }
    }

    fn decode_capabilities(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let offset = cursor.offset();
        let count = cursor.be32()?;
        if count > MAX_CAPABILITIES {
            let (what, value, limit) = ("capability count", count.into(), MAX_CAPABILITIES.into());
            return Err(Error::OverLimit { offset, what, value, limit }.into());
        }
        for _ in 0..count {
            let offset = cursor.offset();
            let name = cursor.counted()?;
            if name != MAPPED_RAM.as_bytes() {
                return Err(Error::Unsupported {
                    offset,
                    what: format!("capability {}", name.escape_ascii()),
                    why: "it changes the stream's format; switch it off before the snapshot",
                }
                .into());
            }
            self.mapped_ram = true;
        }
        Ok(())
    }
}

fn subsection(out: &mut Vec<u8>, name: &[u8]) {
    out.push(SUBSECTION);
    out.push(name.len() as u8);
    out.extend(name);
    out.extend(1u32.to_be_bytes());
}
