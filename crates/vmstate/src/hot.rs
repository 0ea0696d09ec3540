//! `memory.hot`: which pages the guest wanted first, in order, so that a lazy revert can have them
//! ready before it asks.
//!
//! While a background snapshot runs, QEMU saves a page out of order only because the running guest
//! is about to write it. Those jumps are the guest's working set at the very moment it will be
//! brought back to. A lazy revert learns the rest. The list is advice: a damaged or missing one
//! costs time, never correctness.
//!
//! Bytes: docs/formats/snapshot.md, "memory.hot".

use crate::Error;
use crate::mapped::{PageBitmap, PageRun};
use crate::ram::RamLayout;
use crate::units::{BlockIndex, ExtentIndex, PAGES_PER_EXTENT, PageCount, PageIndex};

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"KFMEMHOT";
/// Version written and read.
pub const VERSION: u32 = 1;
/// Runs in a list, at most.
pub const MAX_RUNS: usize = 1 << 16;

const HEADER_BYTES: usize = 8 + 4 + 4;
const RUN_BYTES: usize = 4 + 4 + 8;
const DIGEST_BYTES: usize = 32;

/// Pages in the order in which a guest wanted them. At most [`MAX_RUNS`] runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HotList {
    runs: Vec<PageRun>,
}

impl HotList {
    /// The runs, most urgent first.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.runs.len() * RUN_BYTES + DIGEST_BYTES);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.runs.len() as u32).to_le_bytes());
        for run in &self.runs {
            out.extend((run.block.get() as u32).to_le_bytes());
            out.extend((run.count.get() as u32).to_le_bytes());
            out.extend(run.first.get().to_le_bytes());
        }
        let digest = blake3::hash(&out);
        out.extend(digest.as_bytes());
        out
    }

    /// Reads a file's bytes; every run must lie in `ram`.
    ///
    /// # Errors
    /// [`Error::BadMagic`], [`Error::UnsupportedVersion`], [`Error::OverLimit`],
    /// [`Error::Truncated`], [`Error::Checksum`], [`Error::NoSuchPage`].
    pub fn parse(bytes: &[u8], ram: &RamLayout) -> Result<Self, Error> {
        let format = "a list of hot pages";
        let short = Error::Truncated { offset: bytes.len() as u64, what: format };
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| short.clone())?;
        if *magic != MAGIC {
            return Err(Error::BadMagic { offset: 0, format });
        }
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| short.clone())?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(Error::UnsupportedVersion { offset: 8, format, version });
        }
        let (count, rest) = rest.split_first_chunk::<4>().ok_or_else(|| short.clone())?;
        let count = u32::from_le_bytes(*count) as usize;
        if count > MAX_RUNS {
            let (what, value, limit) = ("hot page count", count as u64, MAX_RUNS as u64);
            return Err(Error::OverLimit { offset: 12, what, value, limit });
        }
        if rest.len() != count * RUN_BYTES + DIGEST_BYTES {
            return Err(short);
        }
        let (covered, digest) = bytes.split_at(bytes.len() - DIGEST_BYTES);
        if blake3::hash(covered).as_bytes() != digest {
            return Err(Error::Checksum { offset: 0, what: format });
        }
        let (runs, _) = rest.as_chunks::<RUN_BYTES>();
        let runs = runs
            .iter()
            .take(count)
            .enumerate()
            .map(|(n, run)| parse_run(run, ram, (HEADER_BYTES + n * RUN_BYTES) as u64));
        Ok(Self { runs: runs.collect::<Result<_, _>>()? })
    }
}

fn parse_run(run: &[u8; RUN_BYTES], ram: &RamLayout, offset: u64) -> Result<PageRun, Error> {
    let field = |at: usize| run.iter().skip(at).take(4).rev().fold(0, |v, b| v << 8 | u64::from(*b));
    let (block, count, first) = (field(0), field(4), field(12) << 32 | field(8));
    let found = || {
        let block = BlockIndex::new(usize::try_from(block).ok()?)?;
        let first = PageIndex::new(first)?;
        let last = first.checked_add(count.checked_sub(1)?)?;
        let count = PageCount::new(count)?;
        ram.contains(block, last).then_some(PageRun { block, first, count })
    };
    let (block, page_offset) = (block.to_string(), first.saturating_mul(4096));
    found().ok_or(Error::NoSuchPage { offset, block, page_offset })
}

/// Collects wanted pages into a [`HotList`], by whole extents, each once.
///
/// Takes one bit of memory for each extent of the guest, and 32 bytes for each run.
#[derive(Debug)]
pub struct HotRecorder {
    /// One bit for each extent (not page) of each block.
    recorded: Vec<PageBitmap>,
    pages: Vec<PageCount>,
    runs: Vec<PageRun>,
}

impl HotRecorder {
    /// A recorder for that machine's memory.
    pub fn new(ram: &RamLayout) -> Self {
        let extents = |count: PageCount| PageCount::new(count.extents()).unwrap_or(count);
        let pages: Vec<_> = ram.blocks().iter().map(|block| block.pages()).collect();
        let recorded = pages.iter().map(|count| PageBitmap::new(extents(*count))).collect();
        Self { recorded, pages, runs: Vec::new() }
    }

    /// Notes that a page was wanted; says whether its extent was not known before. Nothing happens when it was, when
    /// there is no such page, or when the list is full.
    pub fn record(&mut self, block: BlockIndex, page: PageIndex) -> bool {
        let extent = page.extent();
        let (Some(recorded), Some(pages)) = (self.recorded.get_mut(block.get()), self.pages.get(block.get())) else {
            return false;
        };
        let Some(bit) = PageIndex::new(extent.get()).filter(|_| pages.contains(page)) else {
            return false;
        };
        let is_new = !recorded.insert(bit);
        if is_new {
            let count = pages.pages_in_extent(extent);
            self.append(block, extent, count);
        }
        is_new
    }

    fn append(&mut self, block: BlockIndex, extent: ExtentIndex, count: usize) {
        let (first, full) = (extent.first_page(), self.runs.len() >= MAX_RUNS);
        let Some(count) = PageCount::new(count as u64) else {
            return;
        };
        if let Some(last) = self.runs.last_mut().filter(|last| last.block == block)
            && last.first.get() + last.count.get() == first.get()
            && let Some(longer) = PageCount::new(last.count.get() + count.get())
            && longer.get() <= u64::from(u32::MAX) - PAGES_PER_EXTENT as u64
        {
            last.count = longer;
        } else if !full {
            self.runs.push(PageRun { block, first, count });
        }
    }

    /// Ends the recording.
    pub fn finish(self) -> HotList {
        HotList { runs: self.runs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::{BlockId, RamBlock};

    fn ram() -> RamLayout {
        let mut ram = RamLayout::default();
        for (name, pages) in [("pc.ram", 1000), ("vga", 3)] {
            let id = BlockId::parse(name.as_bytes(), 0).expect("name");
            let pages = PageCount::new(pages).expect("small");
            ram.push(RamBlock::new(id, pages), 0).expect("fits");
        }
        ram
    }

    fn recorded(wanted: &[(usize, u64)]) -> HotList {
        let mut recorder = HotRecorder::new(&ram());
        for (block, page) in wanted {
            let block = BlockIndex::new(*block).expect("small");
            recorder.record(block, PageIndex::new(*page).expect("small"));
        }
        recorder.finish()
    }

    #[test]
    fn keeps_the_order_and_no_extent_twice() {
        let list = recorded(&[(0, 500), (0, 7), (0, 16), (0, 501), (1, 2), (0, 999), (1, 3)]);
        let seen = |run: &PageRun| (run.block.get(), run.first.get(), run.count.get());
        let runs: Vec<_> = list.runs().iter().map(seen).collect();
        assert_eq!(runs, [(0, 496, 16), (0, 0, 32), (1, 0, 3), (0, 992, 8)]);
    }

    #[test]
    fn comes_back_from_its_bytes_and_no_byte_may_change() {
        let list = recorded(&[(0, 500), (0, 7), (1, 2)]);
        let bytes = list.to_bytes();
        assert_eq!(HotList::parse(&bytes, &ram()), Ok(list));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(HotList::parse(&damaged, &ram()).is_err(), "byte {at}");
            assert!(HotList::parse(&bytes[..at], &ram()).is_err(), "cut at {at}");
        }
        let smaller = RamLayout::default();
        assert!(matches!(HotList::parse(&bytes, &smaller), Err(Error::NoSuchPage { .. })));
    }
}
