//! An extent's sum from its pages' values.

use std::sync::LazyLock;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use super::Sum;
use crate::units::{EXTENT_SIZE, PAGE_SIZE, PAGES_PER_EXTENT, Page, PageCount, PageIndex};

/// A page's place in its extent: all that its value depends on besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePlace {
    within: usize,
    pages: usize,
}

impl PagePlace {
    /// The place of that page of a block with `pages` pages; `None` beyond the block.
    pub fn new(pages: PageCount, page: PageIndex) -> Option<Self> {
        let within = page.within_extent();
        let pages = pages.pages_in_extent(page.extent());
        (within < pages).then_some(Self { within, pages })
    }

    /// The value of a page with those bytes here.
    pub fn value(self, bytes: &Page) -> PageValue {
        if self.pages == 1 {
            return PageValue(*blake3::hash(bytes).as_bytes());
        }
        let mut hasher = Hasher::new();
        hasher.set_input_offset((self.within * PAGE_SIZE) as u64);
        PageValue(hasher.update(bytes).finalize_non_root())
    }

    /// The value of a page of zeroes here.
    pub fn zero_value(self) -> PageValue {
        static ZERO: LazyLock<[PageValue; PAGES_PER_EXTENT]> = LazyLock::new(|| {
            std::array::from_fn(|within| PagePlace { within, pages: PAGES_PER_EXTENT }.value(&[0; PAGE_SIZE]))
        });
        match ZERO.get(self.within) {
            Some(value) if self.pages > 1 => *value,
            _ => self.value(&[0; PAGE_SIZE]),
        }
    }
}

/// What a page contributes to its extent's sum: BLAKE3's chaining value of a four-chunk subtree,
/// or the sum itself where an extent has one page only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageValue(ChainingValue);

/// An extent of which some pages' values are known. 514 bytes of memory.
#[derive(Clone, Debug)]
pub struct PartialExtent {
    known: u16,
    values: [ChainingValue; PAGES_PER_EXTENT],
}

impl Default for PartialExtent {
    fn default() -> Self {
        Self { known: 0, values: [[0; 32]; PAGES_PER_EXTENT] }
    }
}

impl PartialExtent {
    /// Nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a page's value; a page that was known gets the new one. Returns the extent's sum once
    /// every page is known.
    pub fn insert(&mut self, place: PagePlace, value: PageValue) -> Option<Sum> {
        if let Some(slot) = self.values.get_mut(place.within) {
            *slot = value.0;
            self.known |= 1 << place.within;
        }
        let complete = self.known.count_ones() as usize == place.pages;
        complete.then(|| self.merged(place.pages))
    }

    /// The sum, with pages that are not known taken for zeroes; `pages` is how many the extent has.
    pub fn finish(mut self, pages: usize) -> Sum {
        for within in 0..pages.min(PAGES_PER_EXTENT) {
            if self.known & (1 << within) == 0
                && let Some(slot) = self.values.get_mut(within)
            {
                *slot = PagePlace { within, pages }.zero_value().0;
            }
        }
        self.merged(pages)
    }

    fn merged(&self, pages: usize) -> Sum {
        let values = self.values.get(..pages).unwrap_or(&self.values);
        match values {
            [] => blake3::hash(&[]),
            [only] => Sum::from_bytes(*only),
            _ => {
                let (left, right) = values.split_at(left_pages(values.len()));
                merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash)
            }
        }
    }
}

fn left_pages(pages: usize) -> usize {
    left_subtree_len((pages * PAGE_SIZE) as u64) as usize / PAGE_SIZE
}

fn subtree(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [] => [0; 32],
        [only] => *only,
        _ => {
            let (left, right) = values.split_at(left_pages(values.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// The sum of an extent of that many pages, all zeroes.
pub fn zero_extent_sum(pages: usize) -> Sum {
    static WHOLE: LazyLock<Sum> = LazyLock::new(|| blake3::hash(&[0; EXTENT_SIZE]));
    if pages == PAGES_PER_EXTENT { *WHOLE } else { PartialExtent::new().finish(pages) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(pages: usize, seed: u8, zero: u16) -> Vec<u8> {
        let byte = |n: usize| (n as u8).wrapping_mul(31).wrapping_add((n >> 9) as u8 ^ seed);
        let kept = |n: &usize| zero >> (n / PAGE_SIZE) & 1 == 0;
        (0..pages * PAGE_SIZE).map(|n| if kept(&n) { byte(n) } else { 0 }).collect()
    }

    #[test]
    fn a_missing_page_is_a_page_of_zeroes() {
        for pages in 1..=PAGES_PER_EXTENT {
            let plain = blake3::hash(&vec![0; pages * PAGE_SIZE]);
            assert_eq!(zero_extent_sum(pages), plain, "{pages} pages");
        }
    }

    proptest! {
        #[test]
        fn pages_in_any_order_make_the_plain_hash(
            pages in 1usize..=16,
            order in Just((0usize..16).collect::<Vec<_>>()).prop_shuffle(),
            seed: u8,
            zero: u16,
        ) {
            let bytes = content(pages, seed, zero);
            let (chunks, _) = bytes.as_chunks::<PAGE_SIZE>();
            let block = PageCount::new(160 + pages as u64).expect("small");
            let mut partial = PartialExtent::new();
            let mut sum = None;
            for within in order.into_iter().filter(|n| *n < pages && zero >> n & 1 == 0) {
                prop_assert!(sum.is_none());
                let page = PageIndex::new(160 + within as u64).expect("small");
                let place = PagePlace::new(block, page).expect("in the block");
                sum = partial.insert(place, place.value(&chunks[within]));
            }
            let sum = sum.unwrap_or_else(|| partial.finish(pages));
            prop_assert_eq!(sum, blake3::hash(&bytes));
        }
    }
}
