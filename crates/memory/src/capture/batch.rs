//! A buffer of pages on their way to the disk: up to 1 MiB in one aligned piece of memory, and what
//! lies in it.

use keyframe_vmstate::{BlockIndex, PAGE_SIZE, Page, PageIndex};

/// Bytes of pages in one batch.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Runs in one batch; keeps a stream of scattered zero pages from growing the list without end.
const MAX_RUNS: usize = 4096;
/// Alignment for direct I/O.
const ALIGNMENT: usize = 4096;

/// What a run of pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pages with bytes.
    Data,
    /// Pages of zeroes, which take no room.
    Zero,
}

/// Consecutive pages of one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub kind: Kind,
    pub block: BlockIndex,
    pub first: PageIndex,
    pub count: u64,
}

impl Run {
    /// Whether that page continues this run.
    fn precedes(&self, kind: Kind, block: BlockIndex, page: PageIndex) -> bool {
        self.kind == kind && self.block == block && self.first.checked_add(self.count) == Some(page)
    }
}

/// Pages gathered for writing, in the order they came.
#[derive(Debug)]
pub(super) struct Batch {
    room: Box<[u8]>,
    /// Where in `room` the first aligned byte is.
    start: usize,
    used: usize,
    runs: Vec<Run>,
}

impl Batch {
    pub fn new() -> Self {
        let room = vec![0; BATCH_BYTES + ALIGNMENT].into_boxed_slice();
        let start = room.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { room, start, used: 0, runs: Vec::new() }
    }

    pub fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }

    /// Whether the next page might not fit.
    pub fn is_full(&self) -> bool {
        self.used >= BATCH_BYTES || self.runs.len() >= MAX_RUNS
    }

    /// Appends a page; the caller has asked [`Batch::is_full`].
    pub fn push(&mut self, block: BlockIndex, page: PageIndex, bytes: &Page) {
        let at = self.start + self.used;
        if let Some(place) = self.room.get_mut(at..at + PAGE_SIZE) {
            place.copy_from_slice(bytes);
            self.used += PAGE_SIZE;
            self.extend(Kind::Data, block, page);
        }
    }

    /// Appends a page of zeroes.
    pub fn push_zero(&mut self, block: BlockIndex, page: PageIndex) {
        self.extend(Kind::Zero, block, page);
    }

    fn extend(&mut self, kind: Kind, block: BlockIndex, page: PageIndex) {
        match self.runs.last_mut() {
            Some(run) if run.precedes(kind, block, page) => run.count += 1,
            _ => self.runs.push(Run { kind, block, first: page, count: 1 }),
        }
    }

    /// The runs with their bytes; none for zeroes.
    pub fn runs(&self) -> impl Iterator<Item = (Run, &[u8])> {
        let mut at = self.start;
        self.runs.iter().map(move |run| {
            let bytes = match run.kind {
                Kind::Data => run.count as usize * PAGE_SIZE,
                Kind::Zero => 0,
            };
            let found = self.room.get(at..at + bytes).unwrap_or_default();
            at += bytes;
            (*run, found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join_and_memory_is_aligned() {
        let block = |n| BlockIndex::new(n).expect("small");
        let page = |n| PageIndex::new(n).expect("small");
        let mut batch = Batch::new();
        for (b, p, fill) in [(0, 5, 1), (0, 6, 2), (0, 8, 3), (1, 9, 4)] {
            batch.push(block(b), page(p), &[fill; PAGE_SIZE]);
        }
        batch.push_zero(block(1), page(10));
        batch.push_zero(block(1), page(11));
        batch.push(block(1), page(12), &[5; PAGE_SIZE]);
        let runs: Vec<_> =
            batch.runs().map(|(run, bytes)| (run.kind, run.first.get(), run.count, bytes.first().copied())).collect();
        let expected = [
            (Kind::Data, 5, 2, Some(1)),
            (Kind::Data, 8, 1, Some(3)),
            (Kind::Data, 9, 1, Some(4)),
            (Kind::Zero, 10, 2, None),
            (Kind::Data, 12, 1, Some(5)),
        ];
        assert_eq!(runs, expected);
        for (_, bytes) in batch.runs().filter(|(run, _)| run.kind == Kind::Data) {
            assert!(bytes.as_ptr().addr().is_multiple_of(ALIGNMENT));
        }
    }

    #[test]
    fn is_full_after_a_mebibyte() {
        let mut batch = Batch::new();
        let mut pages = 0;
        while !batch.is_full() {
            let page = PageIndex::new(pages).expect("small");
            batch.push(BlockIndex::new(0).expect("small"), page, &[7; PAGE_SIZE]);
            pages += 1;
        }
        assert_eq!(pages, 256);
        batch.clear();
        assert!(batch.runs().next().is_none() && !batch.is_full());
    }
}
