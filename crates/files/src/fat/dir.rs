//! Entries of directories, with the long names before them.

use crate::bytes::Fields as _;
use crate::disk::{Disk, read_vec};
use crate::error::Result;
use crate::fs::{DirEntry, Node, Time};

use super::dos_time;

const DELETED: u8 = 0xe5;
const READ_ONLY: u8 = 0x01;
const LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG: u8 = 0x0f;
/// UTF-16 units in one part of a long name.
const PART: usize = 13;

/// An entry's 32 bytes.
pub(super) struct Entry {
    raw: [u8; 32],
}

impl Entry {
    pub(super) fn parse(raw: &[u8]) -> Result<Self> {
        Ok(Self { raw: raw.array(0)? })
    }

    fn field(&self, at: usize) -> u16 {
        self.raw.as_slice().le16(at).unwrap_or_default()
    }

    fn attributes(&self) -> u8 {
        self.raw[11]
    }

    pub(super) fn is_directory(&self) -> bool {
        self.attributes() & DIRECTORY != 0
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.attributes() & READ_ONLY != 0
    }

    pub(super) fn size(&self) -> u64 {
        if self.is_directory() { 0 } else { u64::from(self.raw.as_slice().le32(28).unwrap_or_default()) }
    }

    pub(super) fn cluster(&self, wide: bool) -> u32 {
        let high = if wide { u32::from(self.field(20)) << 16 } else { 0 };
        high | u32::from(self.field(26))
    }

    pub(super) fn modified(&self) -> Option<Time> {
        dos_time(self.field(24), self.field(22))
    }

    pub(super) fn accessed(&self) -> Option<Time> {
        dos_time(self.field(18), 0)
    }

    /// The short name: eight and three characters in the machine's code page, of which ASCII is sure.
    fn short_name(&self) -> Vec<u8> {
        // Windows notes here that all letters are small.
        let flags = self.raw[12];
        let part = |bytes: &[u8], small: bool| -> Vec<u8> {
            let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
            bytes.iter().take(end).map(|byte| if small { byte.to_ascii_lowercase() } else { *byte }).collect()
        };
        let (base, ending) = self.raw.split_at(8);
        let (mut base, ending) =
            (part(base, flags & 8 != 0), part(ending.get(..3).unwrap_or_default(), flags & 16 != 0));
        // The first byte of a name stands for another, since that would mean an entry that is gone.
        if base.first() == Some(&5) {
            base.splice(..1, [DELETED]);
        }
        if !ending.is_empty() {
            base.push(b'.');
            base.extend(ending);
        }
        String::from_utf8_lossy(&base).into_owned().into_bytes()
    }

    /// What each part of a long name says of the short one.
    fn checksum(&self) -> u8 {
        self.raw.iter().take(11).fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
    }
}

/// A long name on its way: parts come from the last to the first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    checksum: u8,
    /// The part that comes next.
    next: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) -> Result<()> {
        let order = raw.u8(0)?;
        if order & 0x40 != 0 {
            *self = Self { units: Vec::new(), checksum: raw.u8(13)?, next: order & 0x3f };
        } else if order != self.next || raw.u8(13)? != self.checksum {
            *self = Self::default();
            return Ok(());
        }
        let mut part = Vec::with_capacity(PART);
        for at in (1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30]) {
            part.push(raw.le16(at)?);
        }
        self.units.splice(..0, part);
        self.next = self.next.saturating_sub(1);
        Ok(())
    }

    /// The name, if it is whole and belongs to this entry.
    fn of(self, entry: &Entry) -> Option<Vec<u8>> {
        if self.next != 0 || self.units.is_empty() || self.checksum != entry.checksum() {
            return None;
        }
        let units = self.units.into_iter().take_while(|unit| *unit != 0);
        let name: String = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        (!name.is_empty()).then(|| name.into_bytes())
    }
}

pub(super) fn list(disk: &dyn Disk, pieces: &[(u64, u64)], each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()> {
    let mut long = LongName::default();
    for (at, len) in pieces {
        let bytes = read_vec(disk, *at, *len as usize)?;
        for (raw, place) in bytes.chunks_exact(32).zip((*at..).step_by(32)) {
            let entry = Entry::parse(raw)?;
            match raw.u8(0)? {
                0 => return Ok(()),
                DELETED => long = LongName::default(),
                _ if entry.attributes() & 0x3f == LONG => long.add(raw)?,
                _ => {
                    let name = std::mem::take(&mut long).of(&entry).unwrap_or_else(|| entry.short_name());
                    let is_label = entry.attributes() & LABEL != 0;
                    if !is_label && name != b"." && name != b".." {
                        each(DirEntry { name, node: Node::new(place) })?;
                    }
                }
            }
        }
    }
    Ok(())
}
