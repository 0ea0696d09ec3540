//! What two images of one machine have in common.
//!
//! The tables of sums tell most of it without reading memory: extents with equal sums are equal. Of the others both
//! are read, each checked against its own sum, and compared page by page.

use std::sync::atomic::{AtomicBool, Ordering};

use keyframe_vmstate::shared::{MAX_RUNS, MAX_SEGMENTS, SegmentId, SharedRun};
use keyframe_vmstate::sums::SUM_BYTES;
use keyframe_vmstate::{BlockIndex, ExtentIndex, PAGE_SIZE};

use crate::{Error, ExtentBuf, MemoryImage};

/// Sums read at once of each image: 32 KiB.
const SUMS_AT_ONCE: u64 = 1024;
/// Extents with different sums that are looked into for an estimate.
const SAMPLES: u64 = 64;
/// A sharing is worth its while when it saves this part of the image: one fifth.
const WORTHWHILE: u64 = 5;

/// An extent of both images.
#[derive(Clone, Copy)]
struct Both {
    block: BlockIndex,
    extent: ExtentIndex,
    /// Pages that both hold.
    held: u16,
    /// Whether their sums are equal.
    equal: bool,
}

/// An estimate of what two images have in common, in pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Survey {
    held: u64,
    equal: u64,
}

impl Survey {
    pub fn is_worthwhile(self) -> bool {
        self.held > 0 && self.equal.saturating_mul(WORTHWHILE) >= self.held
    }
}

/// Pages of an image, as many as its bitmaps say.
fn held(image: &MemoryImage) -> u64 {
    image.ram().iter().filter_map(|(block, _)| image.bitmap(block)).map(|bitmap| bitmap.count()).sum()
}

/// Estimates from the sums, and from a sample of the extents whose sums differ.
pub(super) fn survey(new: &MemoryImage, old: &MemoryImage, cancel: &AtomicBool) -> Result<Survey, Error> {
    let (mut equal, mut different, mut different_pages) = (0, 0, 0);
    each_extent(new, old, cancel, |both| {
        let pages = u64::from(both.held.count_ones());
        if both.equal {
            equal += pages;
        } else {
            different += 1;
            different_pages += pages;
        }
        Ok(())
    })?;
    let survey = Survey { held: held(new), equal };
    if survey.is_worthwhile() || different == 0 {
        return Ok(survey);
    }
    let every = different / SAMPLES + 1;
    let (mut pair, mut number, mut looked_at, mut found) = (Pair::new(new, old), 0, 0, 0);
    each_extent(new, old, cancel, |both| {
        if !both.equal {
            if number % every == 0 {
                looked_at += u64::from(both.held.count_ones());
                found += u64::from(pair.equal_pages(both)?.count_ones());
            }
            number += 1;
        }
        Ok(())
    })?;
    let likely = different_pages.saturating_mul(found) / looked_at.max(1);
    Ok(Survey { equal: equal + likely, ..survey })
}

/// What two images have in common.
#[derive(Debug)]
pub(super) struct Common {
    /// Pages that the newer one holds.
    pub held: u64,
    /// The snapshots in whose files common pages lie.
    pub segments: Vec<SegmentId>,
    /// Where, in file order.
    pub runs: Vec<SharedRun>,
}

impl Common {
    /// Pages in common.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }
}

/// Finds the pages that `new` has in common with `old`, the image of the snapshot `old_id`, and the files in which
/// they really lie.
pub(super) fn compare(
    new: &MemoryImage,
    old: &MemoryImage,
    old_id: SegmentId,
    cancel: &AtomicBool,
) -> Result<Common, Error> {
    let (mut pair, mut places) = (Pair::new(new, old), Places { old, runs: Vec::new() });
    each_extent(new, old, cancel, |both| {
        let mut equal = if both.equal { both.held } else { pair.equal_pages(both)? };
        let Some((start, _)) = new.layout().get(both.block).and_then(|block| block.extent(both.extent)) else {
            return Ok(());
        };
        while equal != 0 {
            let skipped = equal.trailing_zeros();
            let count = (equal >> skipped).trailing_ones();
            places.push(start / PAGE_SIZE as u64 + u64::from(skipped), count);
            equal &= !(((1_u32 << count) - 1) << skipped) as u16;
        }
        Ok(())
    })?;
    Ok(places.finish(held(new), old_id))
}

/// Calls `each` for every extent of which both images hold pages.
fn each_extent(
    new: &MemoryImage,
    old: &MemoryImage,
    cancel: &AtomicBool,
    mut each: impl FnMut(Both) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut sums = [vec![0; SUMS_AT_ONCE as usize * SUM_BYTES], vec![0; SUMS_AT_ONCE as usize * SUM_BYTES]];
    for (block, described) in new.ram().iter() {
        let (Some(new_pages), Some(old_pages)) = (new.bitmap(block), old.bitmap(block)) else { continue };
        let extents = described.pages().extents();
        for first in (0..extents).step_by(SUMS_AT_ONCE as usize) {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let count = SUMS_AT_ONCE.min(extents - first);
            let ordinal = ExtentIndex::new(first).and_then(|extent| new.ram().extent_ordinal(block, extent));
            let Some(ordinal) = ordinal else { break };
            for (image, sums) in [new, old].into_iter().zip(&mut sums) {
                image.read_sums(ordinal, sums.get_mut(..count as usize * SUM_BYTES).unwrap_or_default())?;
            }
            let [new_sums, old_sums] = sums.each_ref().map(|sums| sums.as_chunks::<SUM_BYTES>().0);
            for ((extent, new_sum), old_sum) in (first..first + count).zip(new_sums).zip(old_sums) {
                let Some(extent) = ExtentIndex::new(extent) else { break };
                let held = new_pages.extent(extent) & old_pages.extent(extent);
                if held != 0 {
                    each(Both { block, extent, held, equal: new_sum == old_sum })?;
                }
            }
        }
    }
    Ok(())
}

/// Two images being compared page by page.
struct Pair<'a> {
    new: &'a MemoryImage,
    old: &'a MemoryImage,
    new_buf: Box<ExtentBuf>,
    old_buf: Box<ExtentBuf>,
}

impl<'a> Pair<'a> {
    fn new(new: &'a MemoryImage, old: &'a MemoryImage) -> Self {
        Self { new, old, new_buf: ExtentBuf::new(), old_buf: ExtentBuf::new() }
    }

    /// The pages that both hold and that are equal. An extent of the older image that is damaged has none.
    fn equal_pages(&mut self, both: Both) -> Result<u16, Error> {
        let new = self.new.read_extent(both.block, both.extent, &mut self.new_buf)?;
        let old = match self.old.read_extent(both.block, both.extent, &mut self.old_buf) {
            Err(Error::Damaged { .. }) => return Ok(0),
            other => other?,
        };
        let pages = new.chunks(PAGE_SIZE).zip(old.chunks(PAGE_SIZE)).enumerate();
        let equal = pages.filter(|(_, (new, old))| new == old).fold(0, |equal, (n, _)| equal | 1_u16 << n);
        Ok(equal & both.held)
    }
}

/// Common pages with the files of the older image in which they lie: number 0 is the image's own, the others are
/// those of its map.
struct Places<'a> {
    old: &'a MemoryImage,
    runs: Vec<SharedRun>,
}

impl Places<'_> {
    /// Adds pages of the file. What does not fit into a map any more is left out: the image keeps it itself.
    fn push(&mut self, first: u64, count: u32) {
        const PAGE: u64 = PAGE_SIZE as u64;
        let Some(elsewhere) = self.old.elsewhere() else { return self.add(first, count, 0) };
        for piece in elsewhere.map().pieces(first * PAGE, u64::from(count) * PAGE) {
            let segment = piece.segment.map_or(0, |segment| segment as u32 + 1);
            self.add(piece.offset / PAGE, (piece.bytes / PAGE) as u32, segment);
        }
    }

    fn add(&mut self, first: u64, count: u32, segment: u32) {
        if let Some(last) = self.runs.last_mut().filter(|last| last.end() == first && last.segment == segment)
            && let Some(longer) = last.count.checked_add(count)
        {
            last.count = longer;
        } else if self.runs.len() < MAX_RUNS {
            self.runs.push(SharedRun { first, count, segment });
        }
    }

    /// Keeps the segments with the most pages, as many as a map may have.
    fn finish(mut self, held: u64, old_id: SegmentId) -> Common {
        let theirs = self.old.elsewhere().into_iter().flat_map(|elsewhere| elsewhere.segments().map(|(id, _)| id));
        let ids: Vec<_> = std::iter::once(old_id).chain(theirs).collect();
        let mut used: Vec<_> = ids.iter().map(|id| (0_u64, *id)).collect();
        for run in &self.runs {
            if let Some((pages, _)) = used.get_mut(run.segment as usize) {
                *pages += u64::from(run.count);
            }
        }
        used.retain(|(pages, _)| *pages > 0);
        used.sort_unstable_by_key(|(pages, _)| std::cmp::Reverse(*pages));
        used.truncate(MAX_SEGMENTS);
        let segments: Vec<_> = used.into_iter().map(|(_, id)| id).collect();
        let new_number = |id: &SegmentId| segments.iter().position(|kept| kept == id).map(|number| number as u32);
        let numbers: Vec<_> = ids.iter().map(new_number).collect();
        self.runs.retain_mut(|run| match numbers.get(run.segment as usize) {
            Some(Some(number)) => {
                run.segment = *number;
                true
            }
            _ => false,
        });
        Common { held, segments, runs: self.runs }
    }
}
