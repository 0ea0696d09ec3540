//! Watching over the guest while its disks are read: how long its requests take, and whether there is room.
//!
//! ```text
//!   reading ── requests take too long ──▶ slower, and slower ── still too long ──▶ given up
//!      ▲                                    │
//!      └──────── requests are fast ─────────┘
//! ```

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyframe_hypervisor::latency::Served;
use keyframe_qmp::Client;
use keyframe_types::ByteLen;

use crate::context::Context;
use crate::error::Error;
use crate::snapshot::ms;
use crate::space;

/// How often is looked whether a person wants it to end.
const TICK: Duration = Duration::from_millis(50);
/// How often the guest's disks are looked at.
const SPAN: Duration = Duration::from_millis(500);
/// How long every read is held back at first, and at most.
const DELAYS: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(2560);
/// So many spans in a row with requests that take too long, all of them with reads held back as far as can be, are enough.
const SPANS_MOST: u32 = 8;
/// Room that is left: a guest that finds none stops.
const ROOM_LEFT: ByteLen = ByteLen::from_mib(64);

/// How fast may be read, as the guest's requests tell.
#[derive(Debug)]
struct Pacer {
    limit: Duration,
    delay: Duration,
    in_vain: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Every read is held back so long.
    Delayed(Duration),
    GiveUp,
}

impl Pacer {
    fn new(limit: Duration) -> Self {
        Self { limit, delay: Duration::ZERO, in_vain: 0 }
    }

    /// What follows from a span in which requests took so long; `None` when the guest asked nothing of its disks.
    fn hear(&mut self, took: Option<Duration>) -> Pace {
        let slow = took.is_some_and(|took| took > self.limit);
        if slow {
            self.in_vain = if self.delay == *DELAYS.end() { self.in_vain + 1 } else { 0 };
            self.delay = (self.delay * 2).clamp(*DELAYS.start(), *DELAYS.end());
        } else {
            self.in_vain = 0;
            let half = self.delay / 2;
            self.delay = if half < *DELAYS.start() { Duration::ZERO } else { half };
        }
        if self.in_vain >= SPANS_MOST { Pace::GiveUp } else { Pace::Delayed(self.delay) }
    }
}

/// What readers and whoever watches have in common.
#[derive(Debug)]
pub struct Watch {
    limit: Duration,
    /// Where room must be left.
    places: Vec<PathBuf>,
    delay_ns: AtomicU64,
    slowed_ns: AtomicU64,
    slowest_ns: AtomicU64,
    /// Set when reading has to end.
    pub ended: AtomicBool,
    /// The first reason for it.
    why: Mutex<Option<Error>>,
}

impl Watch {
    /// Over a guest whose requests may take as long as `limit`.
    pub fn new(limit: Duration, places: Vec<PathBuf>) -> Self {
        Self {
            limit,
            places,
            delay_ns: AtomicU64::new(0),
            slowed_ns: AtomicU64::new(0),
            slowest_ns: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            why: Mutex::new(None),
        }
    }

    /// Ends reading; the first reason counts.
    pub fn stop(&self, why: Error) {
        self.why.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(why);
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Why reading was ended, if it was.
    pub fn why(&self) -> Option<Error> {
        self.why.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// Waits until somebody may read.
    ///
    /// # Errors
    /// When nobody may any more.
    pub fn turn(&self) -> std::io::Result<()> {
        let begun = Instant::now();
        loop {
            if self.ended.load(Ordering::Relaxed) {
                return Err(std::io::Error::other("reading was ended"));
            }
            let delay = Duration::from_nanos(self.delay_ns.load(Ordering::Relaxed));
            let left = delay.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(TICK));
        }
        let waited = begun.elapsed();
        if waited >= *DELAYS.start() {
            self.slowed_ns.fetch_add(nanoseconds(waited), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The longest that requests took, all those that a disk completed within half a second taken together, in milliseconds;
    /// `None` where there were none.
    pub fn slowest_ms(&self) -> Option<f64> {
        let slowest_ns = self.slowest_ns.load(Ordering::Relaxed);
        (slowest_ns > 0).then(|| ms(Duration::from_nanos(slowest_ns)))
    }

    /// How long reads were held back, all readers taken together, in milliseconds.
    pub fn slowed_ms(&self) -> f64 {
        ms(Duration::from_nanos(self.slowed_ns.load(Ordering::Relaxed)))
    }

    /// Watches until `done`.
    pub fn keep(&self, ctx: &Context<'_>, monitor: &mut Client, done: &AtomicBool) {
        let mut pacer = Pacer::new(self.limit);
        let mut served = Served::default();
        let mut looked: Option<Instant> = None;
        while !done.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed) {
            if ctx.check().is_err() {
                return self.stop(Error::Interrupted);
            }
            if looked.is_none_or(|at| at.elapsed() >= SPAN) {
                looked = Some(Instant::now());
                if let Err(error) = self.look(monitor, &mut pacer, &mut served) {
                    return self.stop(error);
                }
            }
            std::thread::sleep(TICK);
        }
        // A short one was looked at only once, which tells nothing yet.
        if let Ok(took) = served.since_last(monitor) {
            self.note(took);
        }
    }

    fn note(&self, took: Option<Duration>) {
        self.slowest_ns.fetch_max(took.map_or(0, nanoseconds), Ordering::Relaxed);
    }

    fn look(&self, monitor: &mut Client, pacer: &mut Pacer, served: &mut Served) -> Result<(), Error> {
        let took = served.since_last(monitor)?;
        self.note(took);
        match pacer.hear(took) {
            Pace::Delayed(delay) => self.delay_ns.store(nanoseconds(delay), Ordering::Relaxed),
            Pace::GiveUp => {
                let found_ms = took.map_or(0.0, ms);
                return Err(Error::GuestTooSlow { found_ms, allowed_ms: ms(self.limit) });
            }
        }
        for place in &self.places {
            let free = space::free(place)?;
            if free < ROOM_LEFT {
                return Err(Error::GuestNeedsRoom { path: place.clone(), free });
            }
        }
        Ok(())
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn after(spans: impl IntoIterator<Item = u64>) -> (Pace, usize) {
        let mut pacer = Pacer::new(LIMIT);
        let (mut pace, mut count) = (Pace::Delayed(Duration::ZERO), 0);
        for took in spans {
            pace = pacer.hear((took > 0).then(|| Duration::from_millis(took)));
            count += 1;
            if pace == Pace::GiveUp {
                break;
            }
        }
        (pace, count)
    }

    #[test]
    fn a_guest_that_is_fast_is_not_waited_for() {
        assert_eq!(after([3, 100, 0, 99]).0, Pace::Delayed(Duration::ZERO));
    }

    #[test]
    fn reading_is_slowed_and_goes_on_when_that_helps() {
        assert_eq!(after([101]).0, Pace::Delayed(*DELAYS.start()));
        assert_eq!(after([101, 500, 200]).0, Pace::Delayed(*DELAYS.start() * 4));
        assert_eq!(after([101, 500, 200, 20, 20, 20]).0, Pace::Delayed(Duration::ZERO));
        let now_and_then = (0..10_000).map(|span| if span % 3 == 0 { 5000 } else { 1 });
        assert_ne!(after(now_and_then).0, Pace::GiveUp);
    }

    #[test]
    fn what_does_not_help_is_given_up() {
        let (pace, spans) = after(std::iter::repeat_n(101, 100));
        assert_eq!(pace, Pace::GiveUp);
        let wait = SPAN * u32::try_from(spans).unwrap();
        assert!((Duration::from_secs(5)..Duration::from_secs(15)).contains(&wait), "{wait:?}");
        // Nothing is known of a guest that asks nothing of its disks.
        assert_ne!(after(std::iter::repeat_n(101, 15).chain([0]).chain(std::iter::repeat_n(101, 5))).0, Pace::GiveUp);
    }

    #[test]
    fn the_first_reason_counts_and_ends_whoever_waits() {
        let watch = Watch::new(LIMIT, Vec::new());
        watch.turn().unwrap();
        watch.delay_ns.store(u64::MAX, Ordering::Relaxed);
        std::thread::scope(|threads| {
            let waiting = threads.spawn(|| watch.turn());
            std::thread::sleep(TICK);
            watch.stop(Error::Interrupted);
            assert!(waiting.join().unwrap().is_err());
        });
        watch.stop(Error::GuestTooSlow { found_ms: 1.0, allowed_ms: 1.0 });
        assert!(matches!(watch.why(), Some(Error::Interrupted)));
    }
}
