//! Runs of pages, checked against the machine's layout.

use crate::mapped::PageRun;
use crate::ram::RamLayout;
use crate::{BlockIndex, ExtentIndex, PageCount, PageIndex};

/// So many pages from `first`; `None` when that is no page at all, or not within the block.
#[must_use]
pub fn run_within(ram: &RamLayout, block: BlockIndex, first: PageIndex, count: PageCount) -> Option<PageRun> {
    let last = first.checked_add(count.get().checked_sub(1)?)?;
    ram.contains(block, last).then_some(PageRun { block, first, count })
}

/// The pages of an extent: 16, fewer at a block's end; `None` when the block has no such extent.
#[must_use]
pub fn extent_run(ram: &RamLayout, block: BlockIndex, extent: ExtentIndex) -> Option<PageRun> {
    let pages = ram.get(block)?.pages().pages_in_extent(extent);
    run_within(ram, block, extent.first_page(), PageCount::new(pages as u64)?)
}

/// Every page of a run, in order.
pub fn pages_of(run: PageRun) -> impl DoubleEndedIterator<Item = PageIndex> {
    (0..run.count.get()).filter_map(move |n| run.first.checked_add(n))
}
