//! Pages that are known to be stored: a bounded table from fingerprints to places.
//!
//! Holds the fingerprints of whole packs, and of what is being written. When it is full, the pack that came first leaves.

use std::collections::VecDeque;

use hashbrown::{HashMap, HashTable};

use crate::frame::{FRAME_PAGES, FrameName};
use crate::ids::Fingerprint;
use crate::tree::PageRef;

/// Most frames kept: 4 Mi pages, of 16 GiB; about 100 MiB of memory.
pub const FRAMES_MOST: usize = (4 << 20) / FRAME_PAGES;

#[derive(Debug)]
struct KnownFrame {
    name: FrameName,
    fingerprints: Vec<Fingerprint>,
}

/// The table.
#[derive(Debug, Default)]
pub struct Known {
    frames: Vec<KnownFrame>,
    free: Vec<u32>,
    by_name: HashMap<FrameName, u32>,
    pages: HashTable<u32>,
    /// Frames in the order in which they came.
    order: VecDeque<u32>,
}

impl Known {
    /// Whether a frame is in it.
    #[must_use]
    pub fn has(&self, name: FrameName) -> bool {
        self.by_name.contains_key(&name)
    }

    /// Room left, in frames.
    #[must_use]
    pub fn room(&self) -> usize {
        FRAMES_MOST.saturating_sub(self.by_name.len())
    }

    /// Adds a frame; one that is in it already is left as it is.
    pub fn add(&mut self, name: FrameName, fingerprints: &[Fingerprint]) {
        if self.has(name) {
            return;
        }
        if self.room() == 0 {
            self.forget_oldest();
        }
        let frame = KnownFrame { name, fingerprints: Vec::with_capacity(fingerprints.len()) };
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(place) = self.frames.get_mut(number as usize) {
                    *place = frame;
                }
                number
            }
            None => {
                self.frames.push(frame);
                (self.frames.len() - 1) as u32
            }
        };
        self.by_name.insert(name, number);
        self.order.push_back(number);
        fingerprints.iter().for_each(|fingerprint| self.push(number, *fingerprint));
    }

    /// Adds a page to a frame that is being written.
    pub fn extend(&mut self, name: FrameName, fingerprint: Fingerprint) {
        self.add(name, &[]);
        if let Some(number) = self.by_name.get(&name).copied() {
            self.push(number, fingerprint);
        }
    }

    fn push(&mut self, number: u32, fingerprint: Fingerprint) {
        let Some(frame) = self.frames.get_mut(number as usize) else { return };
        let page = number * FRAME_PAGES as u32 + frame.fingerprints.len() as u32;
        frame.fingerprints.push(fingerprint);
        if !fingerprint.is_absent() {
            let frames = &self.frames;
            self.pages.insert_unique(fingerprint.low(), page, |page| at(frames, *page).low());
        }
    }

    fn forget_oldest(&mut self) {
        let Some(number) = self.order.pop_front() else { return };
        let Some(frame) = self.frames.get_mut(number as usize) else { return };
        let fingerprints = std::mem::take(&mut frame.fingerprints);
        self.by_name.remove(&frame.name);
        for (slot, fingerprint) in fingerprints.iter().enumerate() {
            let page = number * FRAME_PAGES as u32 + slot as u32;
            if let Ok(entry) = self.pages.find_entry(fingerprint.low(), |known| *known == page) {
                entry.remove();
            }
        }
        self.free.push(number);
    }

    /// Where a page is.
    #[must_use]
    pub fn find(&self, fingerprint: Fingerprint) -> Option<PageRef> {
        let found = self.pages.find(fingerprint.low(), |page| at(&self.frames, *page) == fingerprint)?;
        let frame = self.frames.get(*found as usize / FRAME_PAGES)?;
        Some(PageRef { frame: frame.name, slot: (*found as usize % FRAME_PAGES) as u16 })
    }

    /// The fingerprint of the page at a place; nothing when its frame is not in the table.
    #[must_use]
    pub fn fingerprint_at(&self, place: PageRef) -> Option<Fingerprint> {
        let number = self.by_name.get(&place.frame)?;
        self.frames.get(*number as usize)?.fingerprints.get(usize::from(place.slot)).copied()
    }
}

fn at(frames: &[KnownFrame], page: u32) -> Fingerprint {
    let frame = frames.get(page as usize / FRAME_PAGES);
    frame.and_then(|frame| frame.fingerprints.get(page as usize % FRAME_PAGES)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ObjectId;

    fn print(n: u64) -> Fingerprint {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        bytes[8..].copy_from_slice(&n.to_le_bytes());
        Fingerprint::from_bytes(bytes)
    }

    fn name(number: u32) -> FrameName {
        FrameName { pack: ObjectId::from_bytes([1; 16]), number }
    }

    #[test]
    fn pages_are_found_until_their_frame_leaves() {
        let mut known = Known::default();
        let frames = FRAMES_MOST as u32 + 3;
        for frame in 0..frames {
            let from = u64::from(frame) * 4 + 1;
            known.add(name(frame), &[print(from), Fingerprint::ABSENT, print(from + 1)]);
        }
        assert_eq!(known.find(print(1)), None);
        assert_eq!(known.find(print(3 * 4 + 2)), Some(PageRef { frame: name(3), slot: 2 }));
        assert_eq!(known.find(Fingerprint::ABSENT), None);
        assert_eq!(known.room(), 0);
        known.extend(name(frames), print(7_000_000_000));
        known.extend(name(frames), print(7_000_000_001));
        assert_eq!(known.find(print(7_000_000_001)), Some(PageRef { frame: name(frames), slot: 1 }));
        assert_eq!(known.fingerprint_at(PageRef { frame: name(frames), slot: 0 }), Some(print(7_000_000_000)));
    }
}
