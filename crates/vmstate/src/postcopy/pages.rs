//! Contents of pages on their way into a section.

use super::frames::{self, Of};
use super::pages_of;
use crate::mapped::{PageBitmap, PageRun};
use crate::ram::RamBlock;
use crate::{PAGE_SIZE, Page, PageIndex};

const ZERO_PAGE: Page = [0; PAGE_SIZE];

/// What a run of pages contains.
#[derive(Debug, Clone, Copy)]
pub struct Pages<'a> {
    run: PageRun,
    /// `None`: zeros throughout.
    bytes: Option<&'a [u8]>,
}

impl<'a> Pages<'a> {
    /// A run of zero pages, as a hole in a memory image is.
    #[must_use]
    pub const fn zero(run: PageRun) -> Self {
        Self { run, bytes: None }
    }

    /// A run with these bytes; `None` unless there are exactly 4096 for each page.
    #[must_use]
    pub fn new(run: PageRun, bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() as u64 == run.count.bytes()).then_some(Self { run, bytes: Some(bytes) })
    }

    /// Which pages these are.
    #[must_use]
    pub const fn run(self) -> PageRun {
        self.run
    }

    /// The bytes of the page; `None` when they are all zero.
    fn content(self, page: PageIndex) -> Option<&'a [u8]> {
        let at = page.get().checked_sub(self.run.first.get())?;
        let at = usize::try_from(at).ok()?.checked_mul(PAGE_SIZE)?;
        self.bytes?.get(at..at.checked_add(PAGE_SIZE)?).filter(|bytes| *bytes != ZERO_PAGE)
    }
}

/// What to do about pages that are all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// Say that they are zero. Needed when somebody waits for them, and for memory that was not discarded.
    Send,
    /// Leave them out: discarded memory that never receives a page is zero once the migration has ended.
    Skip,
}

/// Appends one section with the pages that are not in `sent`, from `from` to the end of the run and then from
/// its start, so that a page somebody waits for goes first. Marks them sent; says how many there were.
/// Appends nothing at all when there are none.
pub(super) fn put_section(
    out: &mut Vec<u8>,
    block: &RamBlock,
    sent: &mut PageBitmap,
    pages: Pages<'_>,
    from: PageIndex,
    zeros: Zeros,
) -> u64 {
    let (behind, ahead): (Vec<_>, Vec<_>) = pages_of(pages.run).partition(|page| *page < from);
    let mut count = 0;
    for page in ahead.into_iter().chain(behind) {
        let bytes = pages.content(page);
        let left_out = bytes.is_none() && zeros == Zeros::Skip;
        if left_out || !block.pages().contains(page) || sent.insert(page) {
            continue;
        }
        if count == 0 {
            frames::put_ram_part(out);
        }
        let of = if count == 0 { Of::Block(block) } else { Of::Same };
        frames::put_page(out, of, page, bytes);
        count += 1;
    }
    if count > 0 {
        frames::put_ram_end_of_section(out);
    }
    count
}
