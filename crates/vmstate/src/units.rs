//! Indexes and counts of pages, extents and blocks, as types that cannot be mixed up.
//!
//! Every value is bounded by [`crate::limits::MAX_RAM_BYTES`] when it is made, so turning one into
//! bytes cannot wrap and needs no check later.

use std::fmt;

use crate::limits::{MAX_BLOCKS, MAX_RAM_BYTES};

/// Bytes of a guest page: x86-64's, and the unit of QEMU's stream and bitmaps there.
pub const PAGE_SIZE: usize = 4096;
/// Bytes of an extent: what one checksum of `memory.b3` covers.
pub const EXTENT_SIZE: usize = 64 << 10;
/// Pages in a whole extent; a block's last extent may have fewer.
pub const PAGES_PER_EXTENT: usize = EXTENT_SIZE / PAGE_SIZE;

/// One guest page's bytes.
pub type Page = [u8; PAGE_SIZE];

const MAX_PAGES: u64 = MAX_RAM_BYTES / PAGE_SIZE as u64;

/// Position of a RAM block in the stream's list of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(u16);

impl BlockIndex {
    /// `None` beyond [`MAX_BLOCKS`].
    pub fn new(index: usize) -> Option<Self> {
        (index < MAX_BLOCKS).then_some(Self(index as u16))
    }

    /// As an index of the list of blocks.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A page's number within its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(u64);

impl PageIndex {
    /// The first page of any block.
    pub const FIRST: Self = Self(0);

    /// `None` beyond the largest memory ([`MAX_RAM_BYTES`]).
    pub const fn new(index: u64) -> Option<Self> {
        if index < MAX_PAGES { Some(Self(index)) } else { None }
    }

    /// The page that starts at this offset of its block; `None` unless aligned and in bounds.
    pub const fn from_byte_offset(offset: u64) -> Option<Self> {
        if offset.is_multiple_of(PAGE_SIZE as u64) { Self::new(offset / PAGE_SIZE as u64) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes from the block's start.
    pub const fn byte_offset(self) -> u64 {
        self.0 * PAGE_SIZE as u64
    }

    /// The extent this page lies in.
    pub const fn extent(self) -> ExtentIndex {
        ExtentIndex(self.0 / PAGES_PER_EXTENT as u64)
    }

    /// Which page of its extent this is: 0 to 15.
    pub const fn within_extent(self) -> usize {
        (self.0 % PAGES_PER_EXTENT as u64) as usize
    }

    /// The page `count` further on; `None` beyond the largest memory.
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(sum) => Self::new(sum),
            None => None,
        }
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageCount(u64);

impl PageCount {
    /// None.
    pub const ZERO: Self = Self(0);

    /// This many and one for each extent of a block of `pages`. The blocks of a machine have no more
    /// extents together than pages, so the sum is in bounds like theirs.
    pub(crate) const fn plus_extents_of(self, pages: Self) -> Self {
        Self(self.0 + pages.extents())
    }

    /// `None` beyond the largest memory.
    pub const fn new(count: u64) -> Option<Self> {
        if count <= MAX_PAGES { Some(Self(count)) } else { None }
    }

    /// Pages of that many bytes; `None` unless it is a multiple of the page size and in bounds.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        if bytes.is_multiple_of(PAGE_SIZE as u64) { Self::new(bytes / PAGE_SIZE as u64) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0 * PAGE_SIZE as u64
    }

    /// Extents that hold this many pages, the last perhaps not whole.
    pub const fn extents(self) -> u64 {
        self.0.div_ceil(PAGES_PER_EXTENT as u64)
    }

    /// Whether a block of this many pages has that page.
    pub const fn contains(self, page: PageIndex) -> bool {
        page.0 < self.0
    }

    /// Pages in that extent of a block of this many pages: 16, fewer in the last, 0 beyond.
    pub const fn pages_in_extent(self, extent: ExtentIndex) -> usize {
        let left = self.0.saturating_sub(extent.first_page().0);
        if left < PAGES_PER_EXTENT as u64 { left as usize } else { PAGES_PER_EXTENT }
    }
}

/// An extent's number within its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentIndex(u64);

impl ExtentIndex {
    /// `None` beyond the largest memory.
    pub const fn new(index: u64) -> Option<Self> {
        if index < MAX_PAGES / PAGES_PER_EXTENT as u64 { Some(Self(index)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes from the block's start.
    pub const fn byte_offset(self) -> u64 {
        self.0 * EXTENT_SIZE as u64
    }

    /// Its first page.
    pub const fn first_page(self) -> PageIndex {
        PageIndex(self.0 * PAGES_PER_EXTENT as u64)
    }
}

impl fmt::Display for ExtentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_where_bytes_would_stop_fitting() {
        assert!(PageIndex::new(MAX_PAGES - 1).is_some());
        assert!(PageIndex::new(MAX_PAGES).is_none());
        assert!(PageIndex::from_byte_offset(4097).is_none());
        assert!(PageCount::from_bytes(MAX_RAM_BYTES).is_some());
        assert!(PageCount::from_bytes(MAX_RAM_BYTES + 4096).is_none());
        assert!(BlockIndex::new(MAX_BLOCKS).is_none());
        assert!(PageIndex::FIRST.checked_add(u64::MAX).is_none());
    }

    #[test]
    fn a_short_last_extent_has_its_own_length() {
        let pages = PageCount::new(35).expect("small");
        let extent = |n| ExtentIndex::new(n).expect("small");
        assert_eq!(pages.extents(), 3);
        assert_eq!(pages.pages_in_extent(extent(0)), 16);
        assert_eq!(pages.pages_in_extent(extent(2)), 3);
        assert_eq!(pages.pages_in_extent(extent(3)), 0);
    }
}
