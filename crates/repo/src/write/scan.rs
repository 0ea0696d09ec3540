//! Readers: from the image to pages with fingerprints, in pieces that come back in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::Duration;

use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::ids::{Fingerprint, PAGE_BYTES};
use crate::source::Source;
use crate::tree::LEAF_PAGES;

/// Pages that are read as one: 1 MiB.
pub const PIECE_PAGES: u64 = 256;
const PIECES_OF_LEAF: u64 = LEAF_PAGES / PIECE_PAGES;

/// What is to be read: which pages of which leaves.
#[derive(Debug)]
pub struct Plan {
    /// Pages to be read, in order, not overlapping.
    wanted: Vec<Range<u64>>,
    /// Leaves with pages to be read.
    leaves: Vec<u64>,
    image_bytes: u64,
}

impl Plan {
    /// Of extents in bytes; pages that they touch are read whole.
    pub fn new(extents: &[Range<u64>], image_bytes: u64) -> Self {
        let page = PAGE_BYTES as u64;
        let pages = extents.iter().map(|extent| extent.start / page..extent.end.div_ceil(page)).collect();
        let wanted = crate::source::union(pages, image_bytes.div_ceil(page));
        let mut leaves: Vec<u64> =
            wanted.iter().flat_map(|range| range.start / LEAF_PAGES..range.end.div_ceil(LEAF_PAGES)).collect();
        leaves.dedup();
        Self { wanted, leaves, image_bytes }
    }

    /// Whether leaves from the first up to the last have pages to be read.
    pub fn touches(&self, leaves: Range<u64>) -> bool {
        let from = self.leaves.partition_point(|leaf| *leaf < leaves.start);
        self.leaves.get(from).is_some_and(|leaf| *leaf < leaves.end)
    }

    /// Bytes to be read.
    pub fn bytes(&self) -> u64 {
        let end = |range: &Range<u64>| (range.end * PAGE_BYTES as u64).min(self.image_bytes);
        self.wanted.iter().map(|range| end(range).saturating_sub(range.start * PAGE_BYTES as u64)).sum()
    }

    /// The pages to be read of a range.
    fn wanted_in(&self, pages: &Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let (start, end) = (pages.start, pages.end);
        let from = self.wanted.partition_point(|range| range.end <= start);
        let candidates = self.wanted.get(from..).unwrap_or_default().iter();
        candidates
            .take_while(move |range| range.start < end)
            .map(move |range| range.start.max(start)..range.end.min(end))
    }

    /// Number of pieces: all of every leaf that is touched.
    fn pieces(&self) -> u64 {
        self.leaves.len() as u64 * PIECES_OF_LEAF
    }

    fn piece(&self, number: u64) -> Range<u64> {
        let leaf = usize::try_from(number / PIECES_OF_LEAF).ok().and_then(|at| self.leaves.get(at)).copied();
        let start = leaf.unwrap_or(0) * LEAF_PAGES + number % PIECES_OF_LEAF * PIECE_PAGES;
        start..start + PIECE_PAGES
    }
}

/// A page as a reader leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// It was not to be read.
    Unread,
    /// It is all zeros.
    Zero,
    /// It has this fingerprint.
    Data(Fingerprint),
}

/// A piece that was read.
#[derive(Debug)]
pub struct Piece {
    number: u64,
    /// What each page is.
    pub pages: Vec<Page>,
    /// Their bytes, each at its place; undefined where a page was not read.
    pub bytes: Vec<u8>,
}

impl Piece {
    /// A buffer for a piece.
    pub fn buffer() -> Self {
        Self { number: 0, pages: Vec::new(), bytes: vec![0; PIECE_PAGES as usize * PAGE_BYTES] }
    }

    /// The bytes of a page.
    pub fn page(&self, number: usize) -> &[u8] {
        self.bytes.get(number * PAGE_BYTES..(number + 1) * PAGE_BYTES).unwrap_or_default()
    }
}

/// What readers share.
pub struct Readers<'a> {
    pub source: &'a dyn Source,
    pub plan: &'a Plan,
    pub keys: &'a Keys,
    pub next: AtomicU64,
    /// Empty buffers. Who holds none waits here, before taking a number: so the lowest number is always being read.
    pub empty: Mutex<Receiver<Piece>>,
    pub failure: &'a Failure,
}

impl Readers<'_> {
    /// One reader's work, until all pieces are read or something fails.
    pub fn read(&self, full: &SyncSender<Piece>) {
        if let Err(error) = self.read_all(full) {
            self.failure.report(error);
        }
    }

    fn read_all(&self, full: &SyncSender<Piece>) -> Result<()> {
        let mut reader = self.source.reader()?;
        while !self.failure.happened() {
            let Ok(mut piece) = self.empty.lock().unwrap_or_else(PoisonError::into_inner).recv() else { break };
            piece.number = self.next.fetch_add(1, Ordering::Relaxed);
            if piece.number >= self.plan.pieces() {
                break;
            }
            let pages = self.plan.piece(piece.number);
            piece.pages.clear();
            piece.pages.resize(PIECE_PAGES as usize, Page::Unread);
            for wanted in self.plan.wanted_in(&pages) {
                let part = wanted.start - pages.start..wanted.end - pages.start;
                let part = part.start as usize..part.end as usize;
                let bytes = piece.bytes.get_mut(part.start * PAGE_BYTES..part.end * PAGE_BYTES);
                let bytes = bytes.ok_or(Error::Pipeline)?;
                // The last page may be cut short: zeros are behind it.
                let at = wanted.start * PAGE_BYTES as u64;
                let inside = usize::try_from(self.plan.image_bytes.saturating_sub(at)).unwrap_or(usize::MAX);
                let (inside, behind) = bytes.split_at_mut(inside.min(bytes.len()));
                behind.fill(0);
                reader.read(at, inside)?;
                let places = piece.pages.get_mut(part).unwrap_or_default();
                for (place, page) in places.iter_mut().zip(bytes.chunks_exact(PAGE_BYTES)) {
                    *place = if is_zero(page) { Page::Zero } else { Page::Data(self.keys.fingerprint(page)) };
                }
            }
            if full.send(piece).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Whether all bytes are zero: the compiler makes wide instructions of this.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (wide, rest) = bytes.as_chunks::<64>();
    wide.iter().all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Gives pieces in their order.
pub struct InOrder<'a> {
    failure: &'a Failure,
    full: Receiver<Piece>,
    empty: Sender<Piece>,
    early: BTreeMap<u64, Piece>,
    next: u64,
}

impl<'a> InOrder<'a> {
    pub fn new(full: Receiver<Piece>, empty: Sender<Piece>, failure: &'a Failure) -> Self {
        Self { failure, full, empty, early: BTreeMap::new(), next: 0 }
    }

    /// The next piece.
    ///
    /// # Errors
    /// [`Error::Pipeline`] when readers ended before: they have said why.
    pub fn next(&mut self) -> Result<Piece> {
        loop {
            if let Some(piece) = self.early.remove(&self.next) {
                self.next += 1;
                return Ok(piece);
            }
            match self.full.recv_timeout(Duration::from_millis(50)) {
                Ok(piece) => drop(self.early.insert(piece.number, piece)),
                // After a failure the missing piece may never come, while other readers wait for buffers.
                Err(RecvTimeoutError::Timeout) if !self.failure.happened() => {}
                Err(_) => return Err(Error::Pipeline),
            }
        }
    }

    /// Gives a buffer back.
    pub fn give_back(&self, piece: Piece) {
        // Readers that ended need no more buffers.
        let _ = self.empty.send(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_covers_what_is_wanted() {
        let plan = Plan::new(&[5000..5001, 100 << 20..(100 << 20) + 8192], 1 << 30);
        assert_eq!(plan.leaves, [0, 6]);
        assert_eq!(plan.bytes(), 4096 + 8192);
        assert!(plan.touches(0..1) && !plan.touches(1..6) && plan.touches(1..7) && !plan.touches(7..1000));
        let all: Vec<_> = (0..plan.pieces()).flat_map(|n| plan.wanted_in(&plan.piece(n)).collect::<Vec<_>>()).collect();
        assert_eq!(all, [1..2, 25600..25602]);
    }

    #[test]
    fn zeros_are_told_from_anything_else() {
        let mut page = vec![0; PAGE_BYTES];
        assert!(is_zero(&page));
        for at in [0, 63, 64, 2000, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }
}
