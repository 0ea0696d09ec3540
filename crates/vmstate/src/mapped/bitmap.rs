//! Which pages of a block the file holds: one bit a page.

use crate::Error;
use crate::ram::{RamBlock, RamLayout};
use crate::units::{BlockIndex, ExtentIndex, PAGE_SIZE, PAGES_PER_EXTENT, PageCount, PageIndex};

use super::layout::MappedBlock;

/// A run of pages of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The block.
    pub block: BlockIndex,
    /// The run's first page.
    pub first: PageIndex,
    /// Its length, at least 1.
    pub count: PageCount,
}

/// A stretch of a file that has data, as SEEK_DATA and SEEK_HOLE tell it: byte offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataExtent {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

/// One bit for each page of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageBitmap {
    words: Vec<u64>,
    pages: PageCount,
}

impl PageBitmap {
    /// All clear. Takes one byte of memory for each eight pages.
    pub fn new(pages: PageCount) -> Self {
        Self { words: vec![0; pages.get().div_ceil(64) as usize], pages }
    }

    /// All clear, with one bit for each extent of a machine's memory, by ordinal
    /// ([`RamLayout::extent_ordinal`]), in place of one for each page of a block.
    pub fn one_for_each_extent(ram: &RamLayout) -> Self {
        let blocks = ram.blocks().iter().map(RamBlock::pages);
        Self::new(blocks.fold(PageCount::ZERO, PageCount::plus_extents_of))
    }

    /// From a file's bytes: little-endian words, bit 0 first, as QEMU on x86-64 writes them.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are too few bytes, [`Error::Unexpected`] when a bit is set
    /// beyond the last page; `offset` is where the bytes lie in the file.
    pub fn from_bytes(pages: PageCount, bytes: &[u8], offset: u64) -> Result<Self, Error> {
        let (chunks, _) = bytes.as_chunks::<8>();
        let mut bitmap = Self::new(pages);
        if chunks.len() < bitmap.words.len() {
            let offset = offset.saturating_add(bytes.len() as u64);
            return Err(Error::Truncated { offset, what: "page bitmap" });
        }
        for (word, chunk) in bitmap.words.iter_mut().zip(chunks) {
            *word = u64::from_le_bytes(*chunk);
        }
        match bitmap.words.last() {
            Some(&last) if !pages.get().is_multiple_of(64) && last >> (pages.get() % 64) != 0 => {
                Err(Error::Unexpected { offset, what: "last word of a page bitmap", value: last })
            }
            _ => Ok(bitmap),
        }
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The bitmap of a block whose page places hold data in the given stretches of the file: the
    /// repair of a file that QEMU wrote with `background-snapshot` and left the bitmaps empty.
    /// Stretches outside the block are ignored; a page touched in part counts.
    pub fn from_data_extents(block: &MappedBlock, data: &[DataExtent]) -> Self {
        let mut bitmap = Self::new(block.block().pages());
        let (from, to) = (block.pages_offset(), block.pages_end());
        for extent in data {
            let (start, end) = (extent.start.clamp(from, to), extent.end.clamp(from, to));
            let first = (start - from) / PAGE_SIZE as u64;
            let after = (end - from).div_ceil(PAGE_SIZE as u64);
            if start < end {
                bitmap.fill(first, after);
            }
        }
        bitmap
    }

    /// Pages it covers.
    pub fn pages(&self) -> PageCount {
        self.pages
    }

    /// Whether the page's bit is set; `false` beyond the block.
    pub fn get(&self, page: PageIndex) -> bool {
        let word = self.words.get((page.get() / 64) as usize).copied().unwrap_or(0);
        word >> (page.get() % 64) & 1 == 1
    }

    /// Sets the page's bit; says whether it was set before. Beyond the block nothing happens.
    pub fn insert(&mut self, page: PageIndex) -> bool {
        self.word_of(page).is_some_and(|(word, bit)| {
            let before = *word & bit != 0;
            *word |= bit;
            before
        })
    }

    /// Clears the page's bit; says whether it was set before.
    pub fn remove(&mut self, page: PageIndex) -> bool {
        self.word_of(page).is_some_and(|(word, bit)| {
            let before = *word & bit != 0;
            *word &= !bit;
            before
        })
    }

    /// Clears all bits.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Bits set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The bits of an extent's pages, the first in bit 0; 0 beyond the block.
    pub fn extent(&self, extent: ExtentIndex) -> u16 {
        let first = extent.first_page().get();
        let word = self.words.get((first / 64) as usize).copied().unwrap_or(0);
        (word >> (first % 64)) as u16
    }

    /// The first page at or after `from` whose bit is `set`.
    pub fn next(&self, from: PageIndex, set: bool) -> Option<PageIndex> {
        let mut at = (from.get() / 64) as usize;
        let mut mask = u64::MAX << (from.get() % 64);
        while let Some(&word) = self.words.get(at) {
            let hits = if set { word } else { !word } & mask;
            if hits != 0 {
                let page = PageIndex::new(at as u64 * 64 + u64::from(hits.trailing_zeros()))?;
                return self.pages.contains(page).then_some(page);
            }
            mask = u64::MAX;
            at += 1;
        }
        None
    }

    /// Runs of set bits, in order: (first page, pages).
    pub fn runs(&self) -> impl Iterator<Item = (PageIndex, PageCount)> {
        let mut from = Some(PageIndex::FIRST);
        std::iter::from_fn(move || {
            let first = self.next(from?, true)?;
            from = self.next(first, false);
            let after = from.map_or(self.pages.get(), PageIndex::get);
            Some((first, PageCount::new(after - first.get())?))
        })
    }

    fn fill(&mut self, first: u64, after: u64) {
        let mut at = first;
        while at < after.min(self.pages.get()) {
            let count = (64 - at % 64).min(after - at);
            if let Some(word) = self.words.get_mut((at / 64) as usize) {
                *word |= (u64::MAX >> (64 - count)) << (at % 64);
            }
            at += count;
        }
    }

    fn word_of(&mut self, page: PageIndex) -> Option<(&mut u64, u64)> {
        let has = self.pages.contains(page);
        let word = self.words.get_mut((page.get() / 64) as usize).filter(|_| has)?;
        Some((word, 1 << (page.get() % 64)))
    }
}

const _: () = assert!(64 % PAGES_PER_EXTENT == 0, "an extent's bits lie in one word");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::{BlockId, RamBlock};

    fn pages(count: u64) -> PageCount {
        PageCount::new(count).expect("small")
    }

    fn page(index: u64) -> PageIndex {
        PageIndex::new(index).expect("small")
    }

    #[test]
    fn runs_are_those_of_the_set_bits() {
        let mut bitmap = PageBitmap::new(pages(200));
        for n in (3..70).chain(130..131).chain(190..200) {
            assert!(!bitmap.insert(page(n)));
        }
        let runs: Vec<_> = bitmap.runs().map(|(p, n)| (p.get(), n.get())).collect();
        assert_eq!(runs, [(3, 67), (130, 1), (190, 10)]);
        assert_eq!(bitmap.count(), 78);
        assert!(bitmap.remove(page(3)) && !bitmap.get(page(3)) && bitmap.get(page(4)));
        assert_eq!(bitmap.extent(ExtentIndex::new(4).expect("small")), 0b11_1111);
        assert!(!bitmap.insert(page(200)), "beyond the block");
        assert_eq!(bitmap.count(), 77);
    }

    #[test]
    fn a_bit_beyond_the_last_page_is_refused() {
        let fine = [0xff, 0x0f, 0, 0, 0, 0, 0, 0];
        assert!(PageBitmap::from_bytes(pages(12), &fine, 0).is_ok());
        let wrong = [0xff, 0x1f, 0, 0, 0, 0, 0, 0];
        let error = PageBitmap::from_bytes(pages(12), &wrong, 77).expect_err("refused");
        assert!(matches!(error, Error::Unexpected { offset: 77, .. }));
        assert!(PageBitmap::from_bytes(pages(65), &fine, 0).is_err());
    }

    #[test]
    fn data_extents_become_bits() {
        let block = MappedBlock {
            block: RamBlock::new(BlockId::parse(b"pc.ram", 0).expect("name"), pages(300)),
            description_offset: 0,
            bitmap_offset: 100,
            pages_offset: 1 << 20,
        };
        let base = 1 << 20;
        let data = [
            DataExtent { start: 0, end: base + 1 },
            DataExtent { start: base + 4096 * 70 - 1, end: base + 4096 * 199 },
            DataExtent { start: base + 4096 * 299, end: u64::MAX },
        ];
        let bitmap = PageBitmap::from_data_extents(&block, &data);
        let runs: Vec<_> = bitmap.runs().map(|(p, n)| (p.get(), n.get())).collect();
        assert_eq!(runs, [(0, 1), (69, 130), (299, 1)]);
    }
}
