//! Whether the clock may be believed.

use std::time::Duration;

use jiff::Timestamp;

use super::ROUTINE_FOR;

/// How far the clock may run from the time that passes, and is not taken for one that was set.
const DRIFT: Duration = Duration::from_secs(15 * 60);
/// How long a clock that is far from what is remembered has to go right before anything is forgotten by it.
const TRUSTED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Whether what is old by the clock may be taken for old.
#[derive(Debug)]
pub(super) struct Clock {
    /// When the daemon was started, by the clock, and by the time since the host was.
    started: (Timestamp, Duration),
    /// The latest that is remembered was long ago then: the host was off, or the clock was set.
    doubtful: bool,
}

impl Clock {
    pub(super) fn of(now: Timestamp, latest: Option<Timestamp>) -> Self {
        let gap = latest.map_or(Duration::ZERO, |latest| now.duration_since(latest).unsigned_abs());
        Self { started: (now, since_boot()), doubtful: gap > ROUTINE_FOR }
    }

    pub(super) fn is_right(&mut self, now: Timestamp, since_boot: Duration) -> bool {
        let passed = since_boot.saturating_sub(self.started.1);
        let by_clock = now.duration_since(self.started.0);
        let apart = by_clock.unsigned_abs().abs_diff(passed);
        if by_clock.is_negative() || apart > DRIFT + passed / 1000 {
            // It was set. It is believed again when it has gone right for a while.
            *self = Self { started: (now, since_boot), doubtful: true };
        }
        !self.doubtful || since_boot.saturating_sub(self.started.1) >= TRUSTED_AFTER
    }
}

/// How long the host is up, asleep or not.
pub(super) fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_believed_when_it_has_gone_right_for_a_day() {
        const HOUR: Duration = Duration::from_secs(3600);
        let start: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let at = |ahead: Duration| start.checked_add(ahead).unwrap();
        let new = || Clock { started: (start, HOUR), doubtful: false };
        assert!(new().is_right(at(HOUR * 5), HOUR * 6), "it goes");
        let mut set = new();
        assert!(!set.is_right(at(HOUR * 900), HOUR * 2), "a month in an hour");
        assert!(!set.is_right(at(HOUR * 901), HOUR * 3), "it goes right again, since an hour");
        assert!(set.is_right(at(HOUR * 925), HOUR * 27));
        assert!(!new().is_right(start.checked_sub(HOUR).unwrap(), HOUR * 2), "back");
        // The latest that is remembered is far from now: nobody knows which of the two is right.
        let mut off = Clock { doubtful: true, ..new() };
        assert!(!off.is_right(at(HOUR), HOUR * 2) && off.is_right(at(HOUR * 24), HOUR * 25));
    }
}
