//! The reading thread: hot extents first, then everything that the snapshot holds, and wishes in between.

use keyframe_vmstate::hot::HotList;
use keyframe_vmstate::mapped::PageRun;
use keyframe_vmstate::ram::RamLayout;
use keyframe_vmstate::{BlockIndex, ExtentIndex, PAGES_PER_EXTENT};

use super::extent_set::ExtentSet;
use super::ring::{Filled, Job, Ring};
use super::{ExtentAt, PageSource};

/// Extents by which reading ahead goes forward: 4 MiB keep a disk's queue filled.
const ANNOUNCED: u64 = 64;

/// So many hot extents come alone, 8 MiB, whatever they cost: the guest wakes with them. Behind them, those beside each come with it.
const ALONE: usize = 128;

/// The extents that have a page of a run, in order.
pub(super) fn extents_of(run: PageRun) -> impl Iterator<Item = ExtentAt> {
    let last = run.first.get().saturating_add(run.count.get().saturating_sub(1)) / PAGES_PER_EXTENT as u64;
    let extents = (run.first.extent().get()..=last).filter_map(ExtentIndex::new);
    extents.map(move |extent| ExtentAt { block: run.block, extent })
}

/// Reads until told to stop. A failure is left in the ring.
pub(super) fn run(pages: &dyn PageSource, ring: &Ring, finished: &ExtentSet, hot: &HotList) {
    let mut plan = Plan::new(pages, finished, hot);
    loop {
        let (at, mut buffer, wished) = match ring.next_job() {
            Job::Stop => return,
            Job::Wish(at, buffer) if finished.contains(at) || pages.held(at).is_none() => {
                ring.give_back(buffer);
                continue;
            }
            Job::Wish(at, buffer) => (at, buffer, true),
            Job::Plan(buffer) => match plan.next() {
                Some(at) => (at, buffer, false),
                None => {
                    ring.plan_is_over(buffer);
                    continue;
                }
            },
        };
        match pages.read(at, &mut buffer) {
            Ok(()) if wished => ring.put_wished(Filled { at, buffer }),
            Ok(()) => ring.put_planned(Filled { at, buffer }),
            Err(failure) => {
                ring.fail(failure);
                return;
            }
        }
    }
}

/// The order of background reading.
struct Plan<'a> {
    pages: &'a dyn PageSource,
    /// Extents that need not be read any more. Only a hint: one that is read in vain is not sent twice.
    finished: &'a ExtentSet,
    hot: Box<dyn Iterator<Item = ExtentAt> + 'a>,
    sweep: Option<ExtentAt>,
    /// Where the stretch ends that the source was told of.
    announced_to: Option<ExtentAt>,
}

impl<'a> Plan<'a> {
    fn new(pages: &'a dyn PageSource, finished: &'a ExtentSet, hot: &'a HotList) -> Self {
        let sweep = BlockIndex::new(0).zip(ExtentIndex::new(0));
        let sweep = sweep.map(|(block, extent)| ExtentAt { block, extent });
        let grain = pages.grain();
        let hot = hot.runs().iter().flat_map(|run| extents_of(*run)).enumerate();
        let hot = Box::new(hot.flat_map(move |(n, at)| together(at, if n < ALONE { 1 } else { grain })));
        Self { pages, finished, hot, sweep, announced_to: None }
    }

    fn next(&mut self) -> Option<ExtentAt> {
        let needed = |at: &ExtentAt| !self.pages.held(*at).is_none() && !self.finished.contains(*at);
        if let Some(at) = self.hot.find(needed) {
            return Some(at);
        }
        while let Some(at) = self.sweep {
            self.sweep = following(self.pages.ram(), at);
            if needed(&at) {
                self.announce(at);
                return Some(at);
            }
        }
        None
    }

    /// Tells the source of the stretch from here on, half a stretch before the last one ends.
    fn announce(&mut self, at: ExtentAt) {
        if self.announced_to.is_none_or(|end| at >= end) {
            self.pages.will_read(at, 2 * ANNOUNCED);
            let end = ExtentIndex::new(at.extent.get().saturating_add(ANNOUNCED));
            self.announced_to = end.map(|extent| ExtentAt { block: at.block, extent });
        }
    }
}

/// The extents that come with this one, and it; some of them may be behind the block's end.
fn together(at: ExtentAt, grain: u64) -> impl Iterator<Item = ExtentAt> {
    let first = at.extent.get() - at.extent.get() % grain.max(1);
    let extents = (first..first.saturating_add(grain.max(1))).filter_map(ExtentIndex::new);
    extents.map(move |extent| ExtentAt { block: at.block, extent })
}

/// The extent after this one: the block's next, or the first of the next block that has any.
fn following(ram: &RamLayout, at: ExtentAt) -> Option<ExtentAt> {
    let next = ExtentIndex::new(at.extent.get().checked_add(1)?)?;
    if next.get() < ram.get(at.block)?.pages().extents() {
        return Some(ExtentAt { block: at.block, extent: next });
    }
    let (block, _) = ram.iter().skip(at.block.get() + 1).find(|(_, block)| block.pages().extents() > 0)?;
    Some(ExtentAt { block, extent: ExtentIndex::new(0)? })
}
