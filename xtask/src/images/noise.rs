//! Bytes drawn from a number: noise, rows of a database, lines of a log.

use std::fmt::Write as _;

/// A small generator (splitmix64): the same number gives the same bytes everywhere.
#[derive(Debug, Clone)]
pub struct Noise(u64);

const WORDS: [&str; 24] = [
    "order",
    "customer",
    "invoice",
    "pending",
    "shipped",
    "returned",
    "north",
    "south",
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "payment",
    "refund",
    "priority",
    "standard",
    "express",
    "warehouse",
    "berlin",
    "lyon",
    "porto",
    "gdansk",
    "active",
    "closed",
];

impl Noise {
    /// Drawn from this number and this purpose.
    pub fn new(seed: u64, purpose: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Bytes that nothing compresses.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// A page of a database: a header, and rows of words and numbers.
    pub fn database_page(&mut self, len: usize) -> Vec<u8> {
        let mut page = Vec::with_capacity(len + 128);
        page.extend_from_slice(&self.next().to_le_bytes());
        while page.len() < len {
            page.extend_from_slice(&self.next().to_le_bytes()[..5]);
            for _ in 0..4 {
                page.extend_from_slice(self.word().as_bytes());
                page.push(0);
            }
            page.extend_from_slice(&u32::try_from(self.below(90_000)).unwrap_or(0).to_le_bytes());
        }
        page.truncate(len);
        page
    }

    /// Lines of a log, about `len` bytes.
    pub fn log(&mut self, len: usize) -> String {
        let mut text = String::with_capacity(len + 200);
        let mut clock = 1_700_000_000 + self.below(10_000_000);
        while text.len() < len {
            clock += self.below(3);
            let (number, size) = (self.below(1 << 32), self.below(20_000));
            let (a, b) = (self.word(), self.word());
            let address = self.below(250);
            let _ = writeln!(
                text,
                "{clock} web1 app[{}]: 10.0.3.{address} GET /{a}/{b}?id={number:x} 200 {size}",
                number % 977
            );
        }
        text
    }

    fn word(&mut self) -> &'static str {
        let at = usize::try_from(self.below(WORDS.len() as u64)).unwrap_or(0);
        WORDS.get(at).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_numbers_give_the_same_bytes() {
        let make = |seed, purpose| Noise::new(seed, purpose).bytes(100);
        assert_eq!(make(1, 2), make(1, 2));
        assert_ne!(make(1, 2), make(2, 2));
        assert_ne!(make(1, 2), make(1, 3));
        assert_eq!(Noise::new(1, 1).database_page(8192).len(), 8192);
    }
}
