//! The order in which a guest wants its memory after a revert, for the next time.

use keyframe_vmstate::hot::{HotList, HotRecorder};
use keyframe_vmstate::ram::RamLayout;

use super::ExtentAt;
use super::extent_set::ExtentSet;
use super::reader::extents_of;

/// Records extents once each: those that were asked for when they were asked for, and those of the hot list
/// when they were sent, since a page that comes in time is never asked for. What the guest never touched stays
/// in the list for good; that costs the time to send it early and no more.
#[derive(Debug)]
pub(super) struct Learned {
    hot: ExtentSet,
    recorder: HotRecorder,
}

impl Learned {
    pub(super) fn new(ram: &RamLayout, hot: &HotList) -> Self {
        let set = ExtentSet::empty(ram);
        hot.runs().iter().flat_map(|run| extents_of(*run)).for_each(|at| set.insert(at));
        Self { hot: set, recorder: HotRecorder::new(ram) }
    }

    /// The guest asked for it. Says whether it was not known before that it wants it.
    pub(super) fn asked(&mut self, at: ExtentAt) -> bool {
        self.recorder.record(at.block, at.extent.first_page())
    }

    /// It was sent without being asked for. Says whether it is of the hot list, and came before anybody asked.
    pub(super) fn pushed(&mut self, at: ExtentAt) -> bool {
        self.hot.contains(at) && self.asked(at)
    }

    /// How many extents the hot list has.
    pub(super) fn hot(&self) -> u64 {
        self.hot.len()
    }

    pub(super) fn finish(self) -> HotList {
        self.recorder.finish()
    }
}

#[cfg(test)]
mod tests {
    use keyframe_vmstate::ram::{BlockId, RamBlock};
    use keyframe_vmstate::{BlockIndex, ExtentIndex, PageCount};

    use super::*;

    fn extent(number: u64) -> ExtentAt {
        ExtentAt { block: BlockIndex::new(0).unwrap(), extent: ExtentIndex::new(number).unwrap() }
    }

    fn order(list: &HotList) -> Vec<u64> {
        list.runs().iter().flat_map(|run| extents_of(*run)).map(|at| at.extent.get()).collect()
    }

    #[test]
    fn hot_extents_keep_their_place_and_asked_ones_get_theirs() {
        let mut ram = RamLayout::default();
        let block = RamBlock::new(BlockId::parse(b"ram0", 0).unwrap(), PageCount::new(1000).unwrap());
        ram.push(block, 0).unwrap();
        let mut first = Learned::new(&ram, &HotList::default());
        for asked in [8, 7] {
            first.asked(extent(asked));
        }
        first.pushed(extent(1));
        let hot = first.finish();
        assert_eq!(order(&hot), [8, 7], "what was only pushed is not hot");
        let mut second = Learned::new(&ram, &hot);
        let in_time = [8, 3, 4].map(|pushed| second.pushed(extent(pushed)));
        assert_eq!(in_time, [true, false, false]);
        second.asked(extent(3));
        second.asked(extent(8));
        second.asked(extent(7));
        assert!(!second.pushed(extent(7)), "it came too late");
        assert_eq!(second.hot(), 2);
        assert_eq!(order(&second.finish()), [8, 3, 7]);
    }
}
