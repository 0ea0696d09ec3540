//! Holes in place of pages that lie elsewhere, or that nobody needs.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use keyframe_vmstate::PAGE_SIZE;
use keyframe_vmstate::shared::SharedRun;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::remove;
use crate::{Error, MemoryImage};

const PAGE: u64 = PAGE_SIZE as u64;

/// Whether files beside `scratch`, which is made and removed, can have holes punched into them.
pub(super) fn is_possible(scratch: &Path) -> Result<bool, Error> {
    remove(scratch)?;
    let file = crate::create_private(scratch).map_err(Error::io("create", scratch))?;
    let tried = punch(&file, 0, PAGE);
    remove(scratch)?;
    match tried {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
        Err(errno) => Err(Error::io("punch a hole into", scratch)(errno.into())),
    }
}

fn punch(file: &File, offset: u64, bytes: u64) -> Result<(), Errno> {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes)
}

/// Pages of a file, by number: one bit each.
#[derive(Debug)]
pub(super) struct FilePages {
    words: Vec<u64>,
}

impl FilePages {
    /// None of a file of that many bytes.
    pub fn none(file_bytes: u64) -> Self {
        Self { words: vec![0; file_bytes.div_ceil(PAGE).div_ceil(64) as usize] }
    }

    /// Adds a run; what lies beyond the file is left out.
    pub fn insert(&mut self, first: u64, end: u64) {
        self.change(first, end, |word, bits| *word |= bits);
    }

    /// Adds a run; what was in the set before is added to `again`, too.
    pub fn insert_counting(&mut self, again: &mut Self, first: u64, end: u64) {
        let mut twice = again.words.iter_mut().skip((first / 64) as usize);
        self.change(first, end, |word, bits| {
            if let Some(twice) = twice.next() {
                *twice |= *word & bits;
            }
            *word |= bits;
        });
    }

    /// How many of a run are in the set and not in `other`.
    pub fn count_without(&self, other: &Self, first: u64, end: u64) -> u64 {
        let (mut at, mut count) = (first, 0);
        while at < end {
            let word = |set: &Self| set.words.get((at / 64) as usize).copied().unwrap_or(0);
            let bits = (64 - at % 64).min(end - at);
            let wanted = (u64::MAX >> (64 - bits)) << (at % 64);
            count += u64::from((word(self) & !word(other) & wanted).count_ones());
            at += bits;
        }
        count
    }

    /// Takes a run out.
    pub fn remove(&mut self, first: u64, end: u64) {
        self.change(first, end, |word, bits| *word &= !bits);
    }

    fn change(&mut self, first: u64, end: u64, mut change: impl FnMut(&mut u64, u64)) {
        let mut at = first;
        while at < end {
            let Some(word) = self.words.get_mut((at / 64) as usize) else { return };
            let count = (64 - at % 64).min(end - at);
            change(word, (u64::MAX >> (64 - count)) << (at % 64));
            at += count;
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Sixteen pages from `first` on: the first in bit 0.
    pub fn sixteen_from(&self, first: u64) -> u16 {
        let word = |at: u64| self.words.get(at as usize).copied().unwrap_or(0);
        let both = u128::from(word(first / 64 + 1)) << 64 | u128::from(word(first / 64));
        (both >> (first % 64)) as u16
    }

    /// The first page from `from` on, before `end`, that is in the set, or not; `end` when there is none.
    fn next(&self, from: u64, end: u64, is_in: bool) -> u64 {
        let mut at = from;
        while at < end {
            let word = self.words.get((at / 64) as usize).copied().unwrap_or(0);
            let hits = (if is_in { word } else { !word }) & (u64::MAX << (at % 64));
            if hits != 0 {
                return end.min((at / 64) * 64 + u64::from(hits.trailing_zeros()));
            }
            at = (at / 64 + 1) * 64;
        }
        end
    }

    /// Punches holes for all pages of the file from `first` to `end` that are not in the set.
    pub fn punch_others(&self, path: &Path, first: u64, end: u64, cancel: &AtomicBool) -> Result<(), Error> {
        let file = OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
        let mut at = self.next(first, end, false);
        while at < end {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let behind = self.next(at, end, true);
            let punched = punch(&file, at * PAGE, (behind - at) * PAGE);
            punched.map_err(|errno| Error::io("punch holes into", path)(errno.into()))?;
            at = self.next(behind, end, false);
        }
        Ok(())
    }
}

/// Gives up the pages of a shared image's own file that lie elsewhere, but for those in `needed`, which others refer to.
pub(super) fn own_file(image: &MemoryImage, needed: &[SharedRun], cancel: &AtomicBool) -> Result<(), Error> {
    let Some(elsewhere) = image.elsewhere() else { return Ok(()) };
    let mut keep = FilePages::none(image.mapped().file_bytes());
    for (block, placed) in image.ram().iter().map(|(index, _)| index).zip(image.layout().blocks()) {
        let base = placed.pages_offset() / PAGE;
        for (first, count) in image.bitmap(block).into_iter().flat_map(|bitmap| bitmap.runs()) {
            keep.insert(base + first.get(), base + first.get() + count.get());
        }
    }
    for run in elsewhere.map().runs() {
        keep.remove(run.first, run.end());
    }
    for run in needed {
        keep.insert(run.first, run.end());
    }
    image.layout().blocks().iter().try_for_each(|placed| {
        keep.punch_others(image.path(), placed.pages_offset() / PAGE, placed.pages_end() / PAGE, cancel)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_pages_are_cut_at_any_place() {
        let mut pages = FilePages::none(200 * PAGE - 5);
        pages.insert(60, 130);
        pages.remove(64, 66);
        pages.insert(199, 400);
        assert_eq!(pages.count(), 70 - 2 + 57, "the last word is a whole one");
        assert_eq!((pages.next(0, 200, true), pages.next(60, 200, false), pages.next(64, 200, true)), (60, 64, 66));
        assert_eq!((pages.next(130, 150, true), pages.next(131, 150, false)), (150, 131));
        assert_eq!(pages.next(0, 0, true), 0);
        assert_eq!((pages.sixteen_from(52), pages.sixteen_from(190)), (0xcf00, 0xfe00));
    }

    #[test]
    fn holes_are_where_the_set_has_no_pages() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let path = dir.path().join("pages");
        std::fs::write(&path, vec![1; 10 * PAGE_SIZE]).expect("written");
        let mut pages = FilePages::none(10 * PAGE);
        pages.insert(1, 3);
        pages.insert(5, 6);
        assert!(is_possible(&dir.path().join("scratch")).expect("tried"));
        pages.punch_others(&path, 2, 9, &AtomicBool::new(false)).expect("punched");
        let bytes = std::fs::read(&path).expect("read");
        let there: Vec<_> = bytes.chunks(PAGE_SIZE).map(|page| page == [1; PAGE_SIZE]).collect();
        assert_eq!(there, [true, true, true, false, false, true, false, false, false, true]);
    }
}
