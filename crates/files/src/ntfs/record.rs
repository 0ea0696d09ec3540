//! Records of the master file table, and the attributes in them. Source: Linux-NTFS project, NTFS documentation.

use super::runs::Runs;
use crate::bytes::{Fields as _, utf16};
use crate::error::{Result, damaged, unsupported};

pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
const END: u32 = 0xffff_ffff;
const COMPRESSED: u16 = 0x00ff;
const ENCRYPTED: u16 = 0x4000;
const IN_USE: u16 = 1;

/// A file's number, out of a reference that has how often it was used, too.
pub(super) fn number(reference: u64) -> u64 {
    reference & 0xffff_ffff_ffff
}

/// Puts the last bytes of each sector back, which were replaced by a number that shows torn writes.
pub(super) fn mend(raw: &mut [u8], magic: &[u8; 4]) -> Result<()> {
    if raw.part(0, 4)? != magic {
        return Err(damaged("an NTFS record is none"));
    }
    let (at, count) = (usize::from(raw.le16(4)?), usize::from(raw.le16(6)?));
    let words = raw.part(at, count * 2)?.to_vec();
    let mark = words.part(0, 2)?.to_vec();
    for (word, sector) in words.chunks_exact(2).skip(1).zip(raw.chunks_exact_mut(512)) {
        let last = sector.get_mut(510..).unwrap_or_default();
        if last != mark {
            return Err(damaged("an NTFS record was written by halves"));
        }
        last.copy_from_slice(word);
    }
    Ok(())
}

/// A record.
pub(super) struct Record(Vec<u8>);

impl Record {
    pub(super) fn parse(mut raw: Vec<u8>) -> Result<Self> {
        mend(&mut raw, b"FILE")?;
        if raw.le16(22)? & IN_USE == 0 {
            return Err(damaged("an NTFS record is not in use"));
        }
        Ok(Self(raw))
    }

    pub(super) fn links(&self) -> Result<u32> {
        self.0.le16(18).map(u32::from)
    }

    pub(super) fn is_directory(&self) -> Result<bool> {
        Ok(self.0.le16(22)? & 2 != 0)
    }

    /// Its attributes, in order.
    pub(super) fn attributes(&self) -> Result<Vec<Attribute>> {
        let (mut at, mut all) = (usize::from(self.0.le16(20)?), Vec::new());
        loop {
            let kind = self.0.le32(at)?;
            if kind == END {
                return Ok(all);
            }
            let len = self.0.le32(at + 4)? as usize;
            if len < 24 {
                return Err(damaged("an NTFS attribute is too short"));
            }
            all.push(Attribute::parse(kind, self.0.part(at, len)?)?);
            at += len;
        }
    }
}

/// An attribute, or a part of one.
pub(super) struct Attribute {
    pub kind: u32,
    pub name: String,
    flags: u16,
    pub value: Value,
}

/// Where an attribute's bytes are.
pub(super) enum Value {
    Here(Vec<u8>),
    Runs {
        /// The first cluster of the attribute that this part is about.
        first: u64,
        runs: Runs,
        /// Bytes of the whole; only in its first part.
        size: u64,
        /// Bytes that were written; what is behind them is zero.
        written: u64,
    },
}

impl Attribute {
    fn parse(kind: u32, raw: &[u8]) -> Result<Self> {
        let name_at = usize::from(raw.le16(10)?);
        let name = utf16(raw.part(name_at, usize::from(raw.u8(9)?) * 2)?);
        let value = if raw.u8(8)? == 0 {
            Value::Here(raw.part(usize::from(raw.le16(20)?), raw.le32(16)? as usize)?.to_vec())
        } else {
            let first = raw.le64(16)?;
            let runs = Runs::parse(raw.from(usize::from(raw.le16(32)?))?)?;
            let (size, written) = if first == 0 { (raw.le64(48)?, raw.le64(56)?) } else { (0, 0) };
            Value::Runs { first, runs, size, written }
        };
        Ok(Self { kind, name, flags: raw.le16(12)?, value })
    }

    /// Bytes that NTFS changed before it wrote them are not read.
    pub(super) fn refuse_changed(&self) -> Result<()> {
        if self.flags & ENCRYPTED != 0 {
            return Err(unsupported("encrypted by the guest (EFS)"));
        }
        if self.flags & COMPRESSED != 0 && matches!(self.value, Value::Runs { .. }) {
            return Err(unsupported("compressed by NTFS"));
        }
        Ok(())
    }
}
