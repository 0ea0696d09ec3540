//! The judge of memory: pages whose every word follows from who wrote it, where and how many times.
//!
//! A page holds its number, its generation and a sequence of words that starts from both of them and the
//! session's token. The generation each page *should* have is kept apart from the pages, in its own memory: so a
//! page restored from an earlier instant is found out although it is consistent in itself, and so is
//! a table restored from an earlier instant than the pages it speaks of.

use crate::units::{Dice, MemorySize, PAGE_BYTES, Token, mix};

const WORDS: usize = PAGE_BYTES / size_of::<u64>();
const HEADER_WORDS: usize = 2;
/// Multiplier and increment of the word sequence (Knuth's MMIX generator).
const STEP_FACTOR: u64 = 6_364_136_223_846_793_005;
const STEP_ADD: u64 = 1_442_695_040_888_963_407;

/// Number of a page within the checker's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageIndex(usize);

/// How many times a page was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

/// What is wrong with a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    /// It carries another page's number, or none of ours.
    #[error("memory page {} carries the number {found}", page.0)]
    Misplaced {
        /// The page looked at.
        page: PageIndex,
        /// The number in it.
        found: u64,
    },
    /// It was written at another time than the table says.
    #[error("memory page {} is of generation {found}, not {}: {}", page.0, expected.0,
            if *found < expected.0 { "older than the table" } else { "newer than the table" })]
    Untimely {
        /// The page looked at.
        page: PageIndex,
        /// The generation in it.
        found: u64,
        /// The generation the table has.
        expected: Generation,
    },
    /// Its header is right and its content is not.
    #[error("memory page {} of generation {} is garbled from word {word}", page.0, generation.0)]
    Garbled {
        /// The page looked at.
        page: PageIndex,
        /// The generation it claims and should have.
        generation: Generation,
        /// The first wrong word.
        word: usize,
    },
}

#[repr(align(4096))]
struct Page([u64; WORDS]);

impl Page {
    /// Made where it is to lie, word by word: on an emulated processor, clearing and copying 4 KiB with the
    /// string instructions that compilers choose for it takes longer than all the rest.
    #[inline]
    fn written(token: Token, page: PageIndex, generation: Generation) -> Self {
        let mut word = first_word(token, page, generation);
        Self(std::array::from_fn(|at| match at {
            0 => page.0 as u64,
            1 => generation.0,
            _ => {
                let this = word;
                word = next_word(word);
                this
            }
        }))
    }

    fn write(&mut self, token: Token, page: PageIndex, generation: Generation) {
        let [number, time, content @ ..] = &mut self.0;
        *number = page.0 as u64;
        *time = generation.0;
        let mut word = first_word(token, page, generation);
        for place in content {
            *place = word;
            word = next_word(word);
        }
    }

    fn judge(&self, token: Token, page: PageIndex, expected: Generation) -> Result<(), PageFault> {
        let [number, time, content @ ..] = &self.0;
        if *number != page.0 as u64 {
            return Err(PageFault::Misplaced { page, found: *number });
        }
        if *time != expected.0 {
            return Err(PageFault::Untimely { page, found: *time, expected });
        }
        let mut word = first_word(token, page, expected);
        for (at, found) in content.iter().enumerate() {
            if *found != word {
                return Err(PageFault::Garbled { page, generation: expected, word: at + HEADER_WORDS });
            }
            word = next_word(word);
        }
        Ok(())
    }
}

const fn first_word(token: Token, page: PageIndex, generation: Generation) -> u64 {
    mix(token.raw() ^ mix(page.0 as u64) ^ mix(generation.0).rotate_left(17))
}

const fn next_word(word: u64) -> u64 {
    word.wrapping_mul(STEP_FACTOR).wrapping_add(STEP_ADD)
}

/// How the pages divide: the hot ones are rewritten, the cold ones only read.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Rewritten and verified.
    pub hot: MemorySize,
    /// Written once and verified.
    pub cold: MemorySize,
}

/// The memory under test, with the table of what it should hold.
pub struct Memory {
    token: Token,
    pages: Vec<Page>,
    generations: Vec<Generation>,
    hot: usize,
    next_rewrite: usize,
    next_verify: usize,
    coin: bool,
    dice: Dice,
}

impl Memory {
    /// Allocates and fills `extent`, every page at generation 0.
    pub fn filled(token: Token, extent: Extent) -> Self {
        let count = extent.hot.pages() + extent.cold.pages();
        Self {
            token,
            pages: (0..count).map(|n| Page::written(token, PageIndex(n), Generation(0))).collect(),
            generations: vec![Generation(0); count],
            hot: extent.hot.pages(),
            next_rewrite: 0,
            next_verify: 0,
            coin: false,
            dice: Dice::new(token.raw()),
        }
    }

    /// Number of pages, hot and cold.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Verifies one hot page and writes its next generation: in turn the next one in order and one at random.
    /// A wrong page is rewritten too, so the same damage is reported once by whoever meets it first.
    ///
    /// # Errors
    /// The [`PageFault`] found before the rewrite.
    pub fn rewrite_next(&mut self) -> Result<(), PageFault> {
        if self.hot == 0 {
            return Ok(());
        }
        self.coin = !self.coin;
        let at = if self.coin {
            let at = self.next_rewrite;
            self.next_rewrite = (at + 1) % self.hot;
            at
        } else {
            self.dice.below(self.hot)
        };
        let verdict = self.judge(at);
        let generation = Generation(self.generations[at].0 + 1);
        self.generations[at] = generation;
        self.pages[at].write(self.token, PageIndex(at), generation);
        verdict
    }

    /// Verifies the next page in order; true when it was the last of a pass over all of them.
    ///
    /// # Errors
    /// The [`PageFault`] found; the pass goes on with the next page all the same.
    pub fn verify_next(&mut self) -> (bool, Result<(), PageFault>) {
        if self.pages.is_empty() {
            return (true, Ok(()));
        }
        let at = self.next_verify;
        self.next_verify = (at + 1) % self.pages.len();
        (self.next_verify == 0, self.judge(at))
    }

    /// Starts the pass over from the first page.
    pub const fn restart_pass(&mut self) {
        self.next_verify = 0;
    }

    /// Overwrites every page with noise: what a wrecked machine's memory looks like.
    pub fn scribble(&mut self) {
        for page in &mut self.pages {
            page.0.fill(self.dice.roll());
        }
    }

    fn judge(&self, at: usize) -> Result<(), PageFault> {
        self.pages[at].judge(self.token, PageIndex(at), self.generations[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token::from_raw(0x1234_5678_9abc_def0);

    fn small() -> Memory {
        let mib = |n| MemorySize::from_mib(n).unwrap();
        Memory::filled(TOKEN, Extent { hot: mib(1), cold: mib(1) })
    }

    fn faults_of_a_pass(memory: &mut Memory) -> Vec<PageFault> {
        memory.restart_pass();
        let mut faults = Vec::new();
        loop {
            let (last, verdict) = memory.verify_next();
            faults.extend(verdict.err());
            if last {
                return faults;
            }
        }
    }

    #[test]
    fn untouched_and_rewritten_memory_is_intact() {
        let mut memory = small();
        assert_eq!(faults_of_a_pass(&mut memory), []);
        for _ in 0..1000 {
            memory.rewrite_next().unwrap();
        }
        assert_eq!(faults_of_a_pass(&mut memory), []);
        assert!(
            memory.generations[..256].iter().all(|g| *g > Generation(0)),
            "sequential rewrites reach every hot page"
        );
        assert!(memory.generations[256..].iter().all(|g| *g == Generation(0)), "cold pages are left alone");
    }

    #[test]
    fn one_flipped_bit_anywhere_is_found() {
        for (page, word) in [(0, 0), (3, 1), (255, 2), (256, 300), (511, WORDS - 1)] {
            let mut memory = small();
            memory.pages[page].0[word] ^= 1 << 40;
            assert_eq!(faults_of_a_pass(&mut memory).len(), 1, "page {page} word {word}");
        }
    }

    #[test]
    fn a_zero_page_is_found_even_the_one_numbered_zero() {
        let mut memory = small();
        memory.pages[0].0.fill(0);
        let page = PageIndex(0);
        assert_eq!(
            faults_of_a_pass(&mut memory),
            [PageFault::Garbled { page, generation: Generation(0), word: HEADER_WORDS }]
        );
    }

    #[test]
    fn a_page_of_an_earlier_instant_is_found_although_consistent() {
        let mut memory = small();
        for _ in 0..10 {
            memory.rewrite_next().unwrap();
        }
        let newest = memory.generations[2];
        memory.pages[2] = Page::written(TOKEN, PageIndex(2), Generation(newest.0 - 1));
        let fault = faults_of_a_pass(&mut memory).pop().unwrap();
        assert!(fault.to_string().contains("older than the table"), "{fault}");
    }

    #[test]
    fn a_page_of_a_later_instant_is_found() {
        let mut memory = small();
        memory.pages[7] = Page::written(TOKEN, PageIndex(7), Generation(1));
        let fault = faults_of_a_pass(&mut memory).pop().unwrap();
        assert!(fault.to_string().contains("newer than the table"), "{fault}");
    }

    #[test]
    fn swapped_pages_and_pages_of_another_session_are_found() {
        let mut memory = small();
        memory.pages.swap(4, 5);
        assert_eq!(faults_of_a_pass(&mut memory).len(), 2);
        let mut memory = small();
        memory.pages[9] = Page::written(Token::from_raw(1), PageIndex(9), Generation(0));
        assert_eq!(faults_of_a_pass(&mut memory).len(), 1);
    }

    #[test]
    fn a_rewrite_reports_the_damage_it_covers() {
        let mut memory = small();
        memory.pages[0].0[100] = 0;
        assert!(matches!(memory.rewrite_next(), Err(PageFault::Garbled { word: 100, .. })));
    }

    #[test]
    fn scribbled_memory_is_wrong_on_every_page() {
        let mut memory = small();
        memory.scribble();
        assert_eq!(faults_of_a_pass(&mut memory).len(), memory.len());
    }

    #[test]
    fn no_memory_at_all_is_a_pass_too() {
        let none = MemorySize::from_mib(0).unwrap();
        let mut memory = Memory::filled(TOKEN, Extent { hot: none, cold: none });
        memory.rewrite_next().unwrap();
        assert_eq!(memory.verify_next(), (true, Ok(())));
    }
}
