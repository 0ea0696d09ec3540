//! Whether something is to be done now, given when it was last done.
//!
//! What was missed while the host slept or was off is made up for once. Clocks are not trusted: one that was set forward makes
//! one run, one that was set back makes none twice, and a last run in the far future does not silence a schedule.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::calendar::Schedule;
use crate::window::{Windows, Work};

/// A schedule as one machine has it: later by its own part of the jitter.
#[derive(Debug, Clone, Copy)]
pub struct Timetable<'a> {
    schedule: &'a Schedule,
    offset: Duration,
}

impl<'a> Timetable<'a> {
    /// The timetable of whoever `seed` names: the same at every start, on every host. Machines that are cut together share a seed,
    /// their group's name.
    #[must_use]
    pub fn new(schedule: &'a Schedule, jitter: Duration, seed: &str) -> Self {
        Self { schedule, offset: offset(jitter, seed) }
    }

    /// How much later than its schedule says, in whole seconds.
    #[must_use]
    pub fn offset(&self) -> Duration {
        self.offset
    }

    /// The next time, strictly later than `after`.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let unmoved = after.checked_sub(self.offset).unwrap_or(Timestamp::MIN);
        self.schedule.next_after(unmoved)?.checked_add(self.offset).ok()
    }

    /// The latest time up to `now`, of which `known` is one.
    fn latest(&self, known: Timestamp, now: Timestamp) -> Timestamp {
        // Further back each time: a dense one is found near, and few times lie before a sparse one.
        let mut back = Duration::from_secs(60);
        loop {
            let from = now.checked_sub(back).unwrap_or(Timestamp::MIN);
            if from <= known {
                return self.after(known).take_while(|time| *time <= now).last().unwrap_or(known);
            }
            if let Some(time) = self.after(from).take_while(|time| *time <= now).last() {
                return time;
            }
            back = back.saturating_mul(4);
        }
    }

    /// All times after `after`, in order.
    pub fn after(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.next_after(after), |at| self.next_after(*at))
    }
}

/// A part of the jitter from nothing to all of it, by a name: FNV-1a, then mixed as `SplitMix64` does.
fn offset(jitter: Duration, seed: &str) -> Duration {
    let hash = seed
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Duration::from_secs((mixed ^ (mixed >> 31)) % (jitter.as_secs() + 1))
}

/// What is to be done about a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "do")]
pub enum Due {
    /// Run, once. Remember [`Due::stamp`] of the time at which it began as the last run.
    Now {
        /// The time it was due: the latest one that has come. The time of asking when it has never run.
        since: Timestamp,
        /// How many earlier ones have passed without a run; [`Due::COUNTED`] for that many and more.
        missed: u32,
    },
    /// Nothing before this.
    At {
        /// When.
        at: Timestamp,
        /// Why not now, although it is due.
        waits: Option<Waits>,
    },
    /// The last run lies so far in the future that the clock was wrong then, or is now. Remember the time of asking as the last run
    /// instead: nothing is run for it, and the schedule goes on from here.
    Forget {
        /// When it is due then.
        at: Timestamp,
    },
    /// The schedule names no further time, or no window will ever permit it.
    Never,
}

/// Why what is due waits, or what was to wait does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waits {
    /// No window permits it now.
    Window,
    /// The last run lies in the future: the clock was set back since, or was wrong then.
    ClockWentBack,
}

impl Due {
    /// How many missed times are counted.
    pub const COUNTED: u32 = 10_000;

    /// Decides. `last` is when it last began, by any outcome that is not to be tried again; nothing when it never has: then it is due
    /// at once. (For what is to begin with its schedule only, give the time at which the policy was first seen.)
    #[must_use]
    pub fn decide(timetable: Timetable<'_>, last: Option<Timestamp>, now: Timestamp) -> Self {
        let at = |at: Option<Timestamp>, waits| at.map_or(Self::Never, |at| Self::At { at, waits });
        let Some(last) = last else {
            return Self::Now { since: now, missed: 0 };
        };
        if last > now {
            // A little back, as a clock is put right: what was done is not done again. Further, and the last run says nothing.
            let next = timetable.next_after(now);
            let interval = next.and_then(|next| Some(timetable.next_after(next)?.duration_since(next)));
            return match (next, interval) {
                (Some(at), Some(interval)) if last.duration_since(now) > interval => Self::Forget { at },
                _ => at(timetable.next_after(last), Some(Waits::ClockWentBack)),
            };
        }
        let Some(first) = timetable.next_after(last) else {
            return Self::Never;
        };
        if first > now {
            return at(Some(first), None);
        }
        let later = timetable.after(first).take_while(|time| *time <= now).take(Self::COUNTED as usize);
        let missed = u32::try_from(later.count()).unwrap_or(Self::COUNTED);
        Self::Now { since: timetable.latest(first, now), missed }
    }

    /// The same where it is begun within windows only.
    #[must_use]
    pub fn within(self, windows: &Windows, work: Work, now: Timestamp) -> Self {
        let (wished, waits) = match self {
            Self::Now { .. } => (now, Some(Waits::Window)),
            Self::At { at, waits } => (at, waits),
            Self::Forget { .. } | Self::Never => return self,
        };
        match windows.next_permitted(work, wished) {
            Some(permitted) if permitted == wished => self,
            Some(at) => Self::At { at, waits: waits.or(Some(Waits::Window)) },
            None => Self::Never,
        }
    }

    /// What to remember as the last run when it begins at `began`: never earlier than the time it was due, so that a timer that fires
    /// a little early does not make two.
    #[must_use]
    pub fn stamp(self, began: Timestamp) -> Timestamp {
        match self {
            Self::Now { since, .. } => since.max(began),
            Self::At { at, .. } => at.max(began),
            Self::Forget { .. } | Self::Never => began,
        }
    }
}

#[cfg(test)]
mod tests;
