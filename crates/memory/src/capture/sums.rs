//! Sums of extents whose pages come in pieces.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use keyframe_vmstate::PageIndex;
use keyframe_vmstate::mapped::PageBitmap;
use keyframe_vmstate::ram::RamLayout;
use keyframe_vmstate::sums::{PagePlace, PageValue, PartialExtent, Sum};

/// Half-known extents kept at once: 9 MiB. One more is read back at the end instead.
const MAX_OPEN: usize = 16 << 10;

/// Half-known extents by ordinal, and those that must be read back. Shared by the writers.
#[derive(Debug)]
pub(super) struct SumTable {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: HashMap<u64, PartialExtent>,
    /// One bit for each extent (not page) of the machine.
    reread: PageBitmap,
}

/// What is left to do when all pages have come.
#[derive(Debug)]
pub(super) struct Leftover {
    /// Extents of which some pages never came: those are zeroes.
    pub open: HashMap<u64, PartialExtent>,
    /// One bit for each extent that must be read back.
    pub reread: PageBitmap,
}

impl SumTable {
    pub fn new(ram: &RamLayout) -> Self {
        let reread = PageBitmap::one_for_each_extent(ram);
        Self { state: Mutex::new(State { open: HashMap::new(), reread }) }
    }

    /// Takes values of pages of one extent; returns its sum when that completes it.
    pub fn insert(&self, ordinal: u64, values: &[(PagePlace, PageValue)]) -> Option<Sum> {
        let bit = PageIndex::new(ordinal)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { open, reread } = &mut *state;
        if reread.get(bit) {
            return None;
        }
        if open.len() >= MAX_OPEN && !open.contains_key(&ordinal) {
            reread.insert(bit);
            return None;
        }
        let partial = open.entry(ordinal).or_default();
        let inserted = values.iter().map(|(place, value)| partial.insert(*place, *value));
        let sum = inserted.last().flatten()?;
        open.remove(&ordinal);
        Some(sum)
    }

    /// The extent's pages came again: only the disk knows what they are in the end.
    pub fn reread(&self, ordinal: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bit) = PageIndex::new(ordinal) {
            state.reread.insert(bit);
            state.open.remove(&ordinal);
        }
    }

    /// Ends it.
    pub fn finish(self) -> Leftover {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        Leftover { open: state.open, reread: state.reread }
    }
}
