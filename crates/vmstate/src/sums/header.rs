//! The header of `memory.b3`.

use super::{SUM_BYTES, Sum};
use crate::Error;
use crate::limits::MAX_BLOCKS;
use crate::ram::{BlockId, RamBlock, RamLayout};
use crate::units::{EXTENT_SIZE, PageCount};

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"KFMEMSUM";
/// Version written and read.
pub const VERSION: u32 = 1;

const FORMAT: &str = "a file of memory sums";
/// Everything up to the first block's entry.
const FIXED_BYTES: usize = 8 + 4 * 4 + 8 * 2 + 2 * SUM_BYTES;
/// The largest header: every block with the longest name.
const MAX_BYTES: usize = FIXED_BYTES + MAX_BLOCKS * (1 + 255 + 8) + SUM_BYTES;

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SumsHeader {
    /// The memory whose sums these are; must be the mapped-ram file's.
    pub ram: RamLayout,
    /// Length of the mapped-ram file.
    pub image_bytes: u64,
    /// BLAKE3 of all bytes of the mapped-ram file that are no guest pages, in file order
    /// ([`crate::mapped::MappedLayout::non_page_ranges`]).
    pub non_page: Sum,
    /// BLAKE3 of the table of sums.
    pub table: Sum,
}

impl SumsHeader {
    /// Bytes of the header for that memory; the table begins there.
    pub fn header_bytes(ram: &RamLayout) -> u64 {
        let names: usize = ram.blocks().iter().map(|b| 1 + b.id().as_str().len() + 8).sum();
        (FIXED_BYTES + names + SUM_BYTES) as u64
    }

    /// Where in the file the sum of the extent with that ordinal
    /// ([`RamLayout::extent_ordinal`]) lies.
    pub fn sum_offset(ram: &RamLayout, ordinal: u64) -> u64 {
        Self::header_bytes(ram) + ordinal * SUM_BYTES as u64
    }

    /// Length of the whole file.
    pub fn file_bytes(ram: &RamLayout) -> u64 {
        Self::sum_offset(ram, ram.total_extents())
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((EXTENT_SIZE as u32).to_le_bytes());
        out.extend((Self::header_bytes(&self.ram) as u32).to_le_bytes());
        out.extend((self.ram.blocks().len() as u32).to_le_bytes());
        out.extend(self.ram.total_extents().to_le_bytes());
        out.extend(self.image_bytes.to_le_bytes());
        out.extend(self.non_page.as_bytes());
        out.extend(self.table.as_bytes());
        for block in self.ram.blocks() {
            out.push(block.id().as_str().len() as u8);
            out.extend(block.id().as_str().as_bytes());
            out.extend(block.pages().bytes().to_le_bytes());
        }
        let digest = blake3::hash(&out);
        out.extend(digest.as_bytes());
        out
    }

    /// What ends the header: the BLAKE3 of the header before it. It stands for the whole image.
    pub fn digest(&self) -> Sum {
        let bytes = self.to_bytes();
        blake3::hash(bytes.get(..bytes.len().saturating_sub(SUM_BYTES)).unwrap_or_default())
    }

    /// How many bytes of the file [`SumsHeader::parse`] wants, at most.
    pub fn max_bytes() -> usize {
        MAX_BYTES
    }

    /// Reads the header from the start of a file; `bytes` may run on into the table. Magic, version
    /// and checksum are looked at before anything else.
    ///
    /// # Errors
    /// [`Error::BadMagic`] (also for a file whose writer did not get to the end),
    /// [`Error::UnsupportedVersion`], [`Error::Truncated`], [`Error::Checksum`], or what is wrong
    /// with the list of blocks.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields { bytes, at: 0 };
        if *fields.array::<8>()? != MAGIC {
            return Err(Error::BadMagic { offset: 0, format: FORMAT });
        }
        let version = fields.le32()?;
        if version != VERSION {
            return Err(Error::UnsupportedVersion { offset: 8, format: FORMAT, version });
        }
        let (extent_bytes, header_bytes) = (fields.le32()?, fields.le32()?);
        check_digest(bytes, header_bytes as usize)?;
        if extent_bytes as usize != EXTENT_SIZE {
            let (what, value) = ("extent size", extent_bytes.into());
            return Err(Error::Unexpected { offset: 12, what, value });
        }
        let count = fields.le32()?;
        let (extents, image_bytes) = (fields.le64()?, fields.le64()?);
        let (non_page, table) = (fields.sum()?, fields.sum()?);
        let mut ram = RamLayout::default();
        for _ in 0..count {
            let offset = fields.at as u64;
            ram.push(fields.block()?, offset)?;
        }
        let header = Self { ram, image_bytes, non_page, table };
        if header.ram.total_extents() != extents || Self::header_bytes(&header.ram) != u64::from(header_bytes) {
            return Err(Error::Mismatch { what: "header and list of blocks of the memory sums" });
        }
        Ok(header)
    }
}

fn check_digest(bytes: &[u8], header_bytes: usize) -> Result<(), Error> {
    if !(FIXED_BYTES + SUM_BYTES..=MAX_BYTES).contains(&header_bytes) {
        let (what, value) = ("header length", header_bytes as u64);
        return Err(Error::Unexpected { offset: 16, what, value });
    }
    let short = Error::Truncated { offset: bytes.len() as u64, what: FORMAT };
    let header = bytes.get(..header_bytes).ok_or(short)?;
    let (covered, digest) = header.split_at(header_bytes - SUM_BYTES);
    if blake3::hash(covered).as_bytes() != digest {
        return Err(Error::Checksum { offset: 0, what: FORMAT });
    }
    Ok(())
}

struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let short = Error::Truncated { offset: self.bytes.len() as u64, what: FORMAT };
        let found = rest.get(..count).ok_or(short)?;
        self.at += count;
        Ok(found)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Error> {
        let short = Error::Truncated { offset: self.bytes.len() as u64, what: FORMAT };
        self.take(N)?.first_chunk().ok_or(short)
    }

    fn le32(&mut self) -> Result<u32, Error> {
        self.array().map(|b| u32::from_le_bytes(*b))
    }

    fn le64(&mut self) -> Result<u64, Error> {
        self.array().map(|b| u64::from_le_bytes(*b))
    }

    fn sum(&mut self) -> Result<Sum, Error> {
        self.array().map(|b| Sum::from_bytes(*b))
    }

    fn block(&mut self) -> Result<RamBlock, Error> {
        let (offset, count) = (self.at as u64, self.array::<1>()?[0]);
        let id = BlockId::parse(self.take(usize::from(count))?, offset)?;
        let (offset, value) = (self.at as u64, self.le64()?);
        let wrong = Error::Unexpected { offset, what: "RAM block length", value };
        let pages = PageCount::from_bytes(value).filter(|p| p.get() > 0).ok_or(wrong)?;
        Ok(RamBlock::new(id, pages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SumsHeader {
        let mut ram = RamLayout::default();
        for (name, pages) in [("pc.ram", 1000), ("/rom@etc/acpi/tables", 3)] {
            let id = BlockId::parse(name.as_bytes(), 0).expect("name");
            ram.push(RamBlock::new(id, PageCount::new(pages).expect("small")), 0).expect("fits");
        }
        let (non_page, table) = (blake3::hash(b"head and tail"), blake3::hash(b"table"));
        SumsHeader { ram, image_bytes: 5 << 20, non_page, table }
    }

    #[test]
    fn comes_back_from_its_bytes_and_no_byte_may_change() {
        let bytes = header().to_bytes();
        assert_eq!(bytes.len() as u64, SumsHeader::header_bytes(&header().ram));
        assert_eq!(SumsHeader::parse(&bytes), Ok(header()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x04;
            assert!(SumsHeader::parse(&damaged).is_err(), "byte {at}");
            assert!(SumsHeader::parse(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_file_never_finished_has_no_magic() {
        let unfinished = vec![0; bytes_of(&header())];
        assert!(matches!(SumsHeader::parse(&unfinished), Err(Error::BadMagic { .. })));
    }

    fn bytes_of(header: &SumsHeader) -> usize {
        SumsHeader::file_bytes(&header.ram) as usize
    }
}
