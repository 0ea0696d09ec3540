//! Integers out of bytes that nobody vouches for: each access is checked.

use crate::error::{Result, damaged};

/// Fields of a structure on disk.
pub(crate) trait Fields {
    /// A part of it.
    fn part(&self, at: usize, len: usize) -> Result<&[u8]>;

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        self.part(at, N)?.try_into().map_err(|_| damaged("a structure is cut short"))
    }
    fn u8(&self, at: usize) -> Result<u8> {
        Ok(self.array::<1>(at)?[0])
    }
    fn le16(&self, at: usize) -> Result<u16> {
        self.array(at).map(u16::from_le_bytes)
    }
    fn le32(&self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_le_bytes)
    }
    fn le64(&self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
    fn be16(&self, at: usize) -> Result<u16> {
        self.array(at).map(u16::from_be_bytes)
    }
    fn be32(&self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_be_bytes)
    }
    fn be64(&self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_be_bytes)
    }
    /// From here to the end.
    fn from(&self, at: usize) -> Result<&[u8]>;
}

impl Fields for [u8] {
    fn part(&self, at: usize, len: usize) -> Result<&[u8]> {
        let end = at.checked_add(len).ok_or_else(|| damaged("a structure is cut short"))?;
        self.get(at..end).ok_or_else(|| damaged("a structure is cut short"))
    }

    fn from(&self, at: usize) -> Result<&[u8]> {
        self.get(at..).ok_or_else(|| damaged("a structure is cut short"))
    }
}

/// Text in a field of fixed length that ends at a zero.
pub(crate) fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).trim_end().to_owned()
}

/// UTF-16LE as UTF-8, with whatever is none replaced.
pub(crate) fn utf16(field: &[u8]) -> String {
    let units = field.chunks_exact(2).filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes));
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
