//! A set of extents: one bit each, 2 KiB for a GiB of guest memory.

use std::sync::atomic::{AtomicU64, Ordering};

use keyframe_vmstate::ram::RamLayout;

use super::ExtentAt;

/// Extents of a machine's memory. May be written by one thread and read by others, which then see a bit late,
/// never wrong: bits are only ever set.
#[derive(Debug)]
pub(super) struct ExtentSet {
    /// For each block, the number of its first extent, all blocks' extents counted through.
    starts: Vec<u64>,
    bits: Vec<AtomicU64>,
}

impl ExtentSet {
    pub(super) fn empty(ram: &RamLayout) -> Self {
        let mut next = 0;
        let mut starts = Vec::with_capacity(ram.blocks().len());
        for block in ram.blocks() {
            starts.push(next);
            next += block.pages().extents();
        }
        let bits = (0..next.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { starts, bits }
    }

    pub(super) fn insert(&self, at: ExtentAt) {
        if let Some((word, bit)) = self.place(at) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub(super) fn contains(&self, at: ExtentAt) -> bool {
        self.place(at).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    pub(super) fn len(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    fn place(&self, at: ExtentAt) -> Option<(&AtomicU64, u64)> {
        let number = self.starts.get(at.block.get())?.checked_add(at.extent.get())?;
        Some((self.bits.get((number / 64) as usize)?, 1 << (number % 64)))
    }
}
