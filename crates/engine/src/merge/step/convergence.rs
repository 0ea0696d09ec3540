//! Whether a copy closes in on a guest that writes meanwhile.

use std::time::{Duration, Instant};

/// How many spans in a row may bring a copy hardly closer to its end.
const FRUITLESS_MOST: u32 = 3;
/// Of what is copied in a span, at least such a part has to be gain: the guest has written the rest anew.
const GAIN_PART: u64 = 8;

/// How far a copy has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copied {
    /// Bytes copied, all of them counted.
    pub(super) done: u64,
    /// Bytes that are left.
    pub(super) left: u64,
}

/// Looks at a copy span by span: a burst of the guest makes one of them fruitless, a guest that writes as fast as is copied
/// makes all of them so.
#[derive(Debug)]
pub(super) struct Convergence {
    span: Duration,
    /// When the span began, and with what; `None` before anything is known.
    began: Option<(Instant, Copied)>,
    fruitless: u32,
}

impl Convergence {
    /// With spans of that length.
    pub(super) fn of(span: Duration) -> Self {
        Self { span, began: None, fruitless: 0 }
    }

    /// Whether the copy will not end while the guest goes on like this. `copied` is `None` while it is not known.
    pub(super) fn is_lost(&mut self, now: Instant, copied: Option<Copied>) -> bool {
        let Some(copied) = copied else { return false };
        let (since, before) = *self.began.get_or_insert((now, copied));
        if now.duration_since(since) >= self.span {
            let gain = before.left.saturating_sub(copied.left);
            let work = copied.done.saturating_sub(before.done);
            let fruitful = gain > 0 && gain.saturating_mul(GAIN_PART) >= work;
            self.fruitless = if fruitful { 0 } else { self.fruitless + 1 };
            self.began = Some((now, copied));
        }
        self.fruitless >= FRUITLESS_MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(20);

    /// After which second a copy of 20 bytes a second is given up whose bytes left are told each second.
    fn given_up(left: impl Fn(u64) -> u64) -> Option<u64> {
        let begun = Instant::now();
        let mut race = Convergence::of(SPAN);
        let copied = |second| Some(Copied { done: 20 * second, left: left(second) });
        (0..600).find(|&second| race.is_lost(begun + Duration::from_secs(second), copied(second)))
    }

    #[test]
    fn a_guest_that_writes_as_fast_as_is_copied_wins() {
        assert_eq!(given_up(|second| 1000 + second), Some(60));
        assert_eq!(given_up(|_| 1000), Some(60));
        // QEMU tells of what it has not looked at yet as if it were not there.
        assert_eq!(given_up(|_| 0), Some(60), "nothing is left, and still it does not end");
        assert_eq!(given_up(|second| 1000 - second / 10 - second % 3), Some(60), "what it gains by chance is no gain");
    }

    #[test]
    fn a_burst_is_no_reason_to_give_up() {
        let burst = |second: u64| if second < 6 { 20_000 + 500 * second } else { 23_120_u64 - 20 * second };
        assert_eq!(given_up(burst), None, "the least of before is reached only much later");
        assert_eq!(given_up(|second| (1 << 40) - 20 * second), None, "much is left, and all work is gain");
    }

    #[test]
    fn nothing_is_known_at_first() {
        let begun = Instant::now();
        let mut race = Convergence::of(SPAN);
        assert!(!race.is_lost(begun + 10 * SPAN, None));
        assert!(
            !race.is_lost(begun + 11 * SPAN, Some(Copied { done: 0, left: 5 })),
            "the first span begins when it is known"
        );
    }
}
