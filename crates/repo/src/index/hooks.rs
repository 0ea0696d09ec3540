//! Hooks by how rare they are.

use crate::ids::Fingerprint;

/// Zero bits that make a fingerprint a hook.
const HOOK_BITS: u32 = 5;
/// Hooks with so many zero bits or more are in one tier.
const HOOK_BITS_MOST: u32 = 12;
/// Numbers of zero bits that are told apart.
pub(super) const TIERS: usize = (HOOK_BITS_MOST - HOOK_BITS + 1) as usize;
/// Hooks that are kept in memory, and that one writer writes.
pub const HOOKS_MOST: usize = 8 << 20;

/// The tier of a fingerprint that is a hook; the rarest are in the first.
pub(super) fn tier(fingerprint: Fingerprint) -> Option<usize> {
    let bits = fingerprint.low().trailing_zeros().min(HOOK_BITS_MOST);
    (bits >= HOOK_BITS && !fingerprint.is_absent()).then(|| (HOOK_BITS_MOST - bits) as usize)
}

/// Hooks, at most so many. Where there are more, the most frequent tier is left out, then the next: so those that stay are a
/// sample of all packs alike, and not of those that came first.
#[derive(Debug)]
pub(super) struct Tiers<T> {
    tiers: [Vec<T>; TIERS],
    /// Tiers from here on are left out.
    taken: usize,
    count: usize,
    most: usize,
}

impl<T> Tiers<T> {
    pub fn new(most: usize) -> Self {
        Self { tiers: Default::default(), taken: TIERS, count: 0, most }
    }

    /// Leaves tiers out from the beginning, so that those of so many pages have room, going by what is likely.
    pub fn expect(&mut self, pages: u64) {
        let likely = |taken: usize| pages >> (HOOK_BITS + (TIERS - taken) as u32);
        while self.taken > 1 && likely(self.taken) > self.most as u64 {
            self.leave_out();
        }
    }

    pub fn push(&mut self, tier: usize, value: T) {
        while self.count >= self.most && self.taken > 1 && tier < self.taken {
            self.leave_out();
        }
        if tier < self.taken && self.count < self.most {
            self.count += 1;
            self.tiers[tier].push(value);
        }
    }

    fn leave_out(&mut self) {
        self.taken -= 1;
        self.count -= std::mem::take(&mut self.tiers[self.taken]).len();
    }

    pub fn of(&self, tier: usize) -> &[T] {
        self.tiers.get(tier).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn each_mut(&mut self) -> impl Iterator<Item = &mut Vec<T>> {
        self.tiers.iter_mut()
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Empties it; what was left out stays left out.
    pub fn clear(&mut self) {
        self.tiers = Default::default();
        self.count = 0;
    }

    /// To be called after hooks were removed from tiers.
    pub fn recount(&mut self) {
        self.count = self.tiers.iter().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_tiers_leave_first_and_stay_out() {
        let mut tiers = Tiers::new(10);
        for n in 0..6 {
            tiers.push(TIERS - 1, n);
            tiers.push(0, n);
        }
        assert_eq!((tiers.of(TIERS - 1).len(), tiers.of(0)), (0, &[0, 1, 2, 3, 4, 5][..]));
        tiers.push(TIERS - 1, 9);
        assert_eq!(tiers.count(), 6, "what came later is not better off");
        (0..100).for_each(|n| tiers.push(0, n));
        assert_eq!(tiers.count(), 10, "whatever somebody made of them");
        tiers.clear();
        tiers.push(TIERS - 1, 9);
        assert_eq!(tiers.count(), 0);
    }

    #[test]
    fn room_is_made_beforehand() {
        for (pages, taken) in [(0, TIERS), (320, TIERS), (352, TIERS - 1), (1 << 40, 1)] {
            let mut tiers = Tiers::<u8>::new(10);
            tiers.expect(pages);
            assert_eq!(tiers.taken, taken, "{pages} pages");
        }
    }
}
