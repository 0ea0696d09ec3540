//! Quantities the checker is configured with, and the identities it stamps on what it writes.
//!
//! Each is its own type so that a page count cannot be taken for a rate, nor a disk for a slot.

use std::fmt;
use std::time::Duration;

/// Size of one memory page and of one disk slot, in bytes.
pub const PAGE_BYTES: usize = 4096;
/// Pages in one MiB.
const PAGES_PER_MIB: usize = 256;
/// Upper limit of a [`MemorySize`]: 1 TiB in MiB. More is a typing error on the command line.
const MEMORY_LIMIT_MIB: usize = 1 << 20;

/// An amount of memory, whole MiB, at most 1 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize(usize);

impl MemorySize {
    /// So many MiB, or nothing when it is more than a TiB.
    pub const fn from_mib(mib: usize) -> Option<Self> {
        if mib <= MEMORY_LIMIT_MIB { Some(Self(mib)) } else { None }
    }

    /// The same in pages of 4 KiB.
    pub const fn pages(self) -> usize {
        self.0 * PAGES_PER_MIB
    }
}

/// A memory rate in MiB per second, at most 1 TiB per second; zero means not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRate(MemorySize);

impl MemoryRate {
    /// So many MiB each second, or nothing when that is absurd.
    pub const fn from_mib_per_second(mib: usize) -> Option<Self> {
        match MemorySize::from_mib(mib) {
            Some(size) => Some(Self(size)),
            None => None,
        }
    }

    /// Pages due in `slice`, rounded down.
    pub fn pages_in(self, slice: Duration) -> usize {
        let micros = usize::try_from(slice.as_micros()).unwrap_or(usize::MAX);
        self.0.pages().saturating_mul(micros) / 1_000_000
    }
}

/// Writes to each disk per second, at most 100 000; zero means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteRate(u32);

impl WriteRate {
    /// So many each second, or nothing when that is absurd.
    pub const fn from_per_second(writes: u32) -> Option<Self> {
        if writes <= 100_000 { Some(Self(writes)) } else { None }
    }

    /// Time from one write to the next; none when there are no writes.
    pub fn period(self) -> Option<Duration> {
        (self.0 > 0).then(|| Duration::from_secs(1) / self.0)
    }
}

/// One run of this program: drawn at random at its start and held in memory only, so whoever reads
/// it later knows that the *same* program is running and not one that was booted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(u64);

impl Token {
    /// Draws a fresh one from the kernel.
    ///
    /// # Errors
    /// When the kernel's random source fails.
    pub fn random() -> rustix::io::Result<Self> {
        let mut bytes = [0_u8; 8];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Self::from_raw(u64::from_le_bytes(bytes)))
    }

    /// The token with these bits: for stamps read back from a disk, and for tests.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// Its bits.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A quick generator for which page or slot comes next (SplitMix64). Not for secrets.
///
/// Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// A generator whose sequence follows from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit` (zero when `limit` is zero).
    pub const fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.roll() % limit as u64) as usize }
    }

    /// Folds in bits from outside, so that two copies of this program go different ways.
    pub const fn stir(&mut self, bits: u64) {
        self.0 = mix(self.0 ^ bits);
    }
}

/// Spreads every input bit over all output bits (the finalizer of SplitMix64).
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_divides_into_slices_without_drift_upwards() {
        let rate = MemoryRate::from_mib_per_second(40).unwrap();
        assert_eq!(rate.pages_in(Duration::from_millis(10)), 102);
        assert_eq!(rate.pages_in(Duration::from_secs(1)), 40 * 256);
    }

    #[test]
    fn absurd_quantities_are_refused() {
        assert!(MemorySize::from_mib(usize::MAX).is_none());
        assert!(MemoryRate::from_mib_per_second(usize::MAX).is_none());
        assert!(WriteRate::from_per_second(u32::MAX).is_none());
    }

    #[test]
    fn no_writes_means_no_period() {
        assert_eq!(WriteRate::from_per_second(0).unwrap().period(), None);
        assert_eq!(WriteRate::from_per_second(50).unwrap().period(), Some(Duration::from_millis(20)));
    }
}
