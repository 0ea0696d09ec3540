//! The days to come: what would be made, what would go, what would be there.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan as _};
use keyframe_types::{Kept, TimeToLive};
use serde::Serialize;

use crate::due::{Due, Timetable};
use crate::owed::Owed;
use crate::policy::{Keep, PolicyName};
use crate::window::{Windows, Work};

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A snapshot is taken.
    Snapshot,
    /// The snapshot of that time goes.
    SnapshotGoes(Timestamp),
    /// A point is made.
    Point(PolicyName),
    /// The point of that time goes.
    PointGoes(PolicyName, Timestamp),
    /// A drill is held.
    Drill,
}

/// Something that happens at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
}

/// One day of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Day {
    /// Which, in the host's zone.
    pub date: Date,
    /// What happens in it, in order.
    pub events: Vec<Event>,
    /// The snapshots there at its end, by the time they were taken.
    pub snapshots: Vec<Timestamp>,
    /// The points there at its end, for each backup.
    pub points: BTreeMap<PolicyName, Vec<Timestamp>>,
}

/// What would exist when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Its days.
    pub days: Vec<Day>,
    /// A schedule is so dense that not all of its runs were played.
    pub cut_short: bool,
}

/// The most runs of one schedule that are played: enough for one each minute of a quarter of a year.
const MOST_RUNS: usize = 150_000;

impl Plan {
    /// Plays forward what a machine is owed, from nothing: what has never been made is due at once. The days are those of the host's
    /// zone, the first is the one that `from` is in. Every run is taken to succeed and to take no time.
    #[must_use]
    pub fn of(owed: &Owed, from: Timestamp, days: u32) -> Self {
        let zone = &owed.time_zone;
        let dates: Vec<Date> = zone.to_datetime(from).date().series(1.day()).take(days as usize).collect();
        let end_of = |date: Date| {
            let next = date.tomorrow().ok().and_then(|next| next.to_zoned(zone.clone()).ok());
            next.map_or(Timestamp::MAX, |next| next.timestamp())
        };
        let Some(end) = dates.last().map(|date| end_of(*date)) else {
            return Self { days: Vec::new(), cut_short: false };
        };
        let mut cut_short = false;
        let mut played = |timetable: Timetable<'_>, work| {
            let times = runs(timetable, &owed.windows, work, from, end);
            cut_short |= times.len() == MOST_RUNS;
            times
        };
        let mut events = Vec::new();
        if let (Some(policy), Some(timetable)) = (&owed.snapshot, owed.snapshot_times()) {
            let lives = policy.ttl.map(TimeToLive::duration);
            let made = played(timetable, Work::Snapshot);
            events.extend(history(&made, &policy.keep, lives, Duration::ZERO, end).into_iter().map(|(at, change)| {
                let what = match change {
                    Change::Made => What::Snapshot,
                    Change::Gone(of) => What::SnapshotGoes(of),
                };
                Event { at, what }
            }));
        }
        for backup in &owed.backups {
            let locked = Duration::from_secs(u64::from(backup.lock_days) * 86_400);
            let made = played(owed.backup_times(backup), Work::Backup);
            events.extend(history(&made, &backup.keep, None, locked, end).into_iter().map(|(at, change)| {
                let name = backup.name.clone();
                let what = match change {
                    Change::Made => What::Point(name),
                    Change::Gone(of) => What::PointGoes(name, of),
                };
                Event { at, what }
            }));
        }
        if let Some(timetable) = owed.drill_times() {
            events.extend(played(timetable, Work::Drill).into_iter().map(|at| Event { at, what: What::Drill }));
        }
        // Stable: what goes because of something goes behind it.
        events.sort_by_key(|event| event.at);
        Self { days: by_day(owed, &dates, events, end_of), cut_short }
    }
}

/// When a schedule runs: as the daemon asks, [`Due`] is asked again and again.
fn runs(timetable: Timetable<'_>, windows: &Windows, work: Work, from: Timestamp, end: Timestamp) -> Vec<Timestamp> {
    let (mut all, mut last, mut now) = (Vec::new(), None, from);
    while now < end && all.len() < MOST_RUNS {
        let due = Due::decide(timetable, last, now).within(windows, work, now);
        match due {
            Due::Now { .. } => {
                all.push(now);
                last = Some(due.stamp(now));
            }
            Due::At { at, .. } => now = at,
            Due::Forget { .. } | Due::Never => break,
        }
    }
    all
}

enum Change {
    Made,
    /// What was made at this time.
    Gone(Timestamp),
}

/// What becomes of what is made at some times: a rule is applied whenever something was made, a time to live whenever it ends.
fn history(
    made: &[Timestamp],
    keep: &Keep,
    lives: Option<Duration>,
    locked: Duration,
    end: Timestamp,
) -> Vec<(Timestamp, Change)> {
    let (mut events, mut there) = (Vec::new(), Vec::<Timestamp>::new());
    let later = |at: Timestamp, span: Duration| at.checked_add(span).unwrap_or(Timestamp::MAX);
    let expire = |there: &mut Vec<Timestamp>, until: Timestamp, events: &mut Vec<(Timestamp, Change)>| {
        let Some(lives) = lives else { return };
        let over = there.partition_point(|at| later(*at, lives) < until);
        events.extend(there.drain(..over).map(|at| (later(at, lives), Change::Gone(at))));
    };
    for &now in made {
        expire(&mut there, now, &mut events);
        there.push(now);
        events.push((now, Change::Made));
        let Keep::By(rule) = keep else { continue };
        let kept: Vec<Kept<'_>> = there.iter().map(|at| Kept { created: (*at).into(), tags: &[] }).collect();
        let mut reasons = rule.reasons(&kept).into_iter();
        there.retain(|at| {
            let stays = reasons.next().is_some_and(|reasons| !reasons.is_empty()) || later(*at, locked) > now;
            if !stays {
                events.push((now, Change::Gone(*at)));
            }
            stays
        });
    }
    expire(&mut there, end, &mut events);
    events
}

fn by_day(owed: &Owed, dates: &[Date], events: Vec<Event>, end_of: impl Fn(Date) -> Timestamp) -> Vec<Day> {
    let mut snapshots = Vec::new();
    let mut points: BTreeMap<PolicyName, Vec<Timestamp>> =
        owed.backups.iter().map(|backup| (backup.name.clone(), Vec::new())).collect();
    let mut events = events.into_iter().peekable();
    let mut days = Vec::with_capacity(dates.len());
    for &date in dates {
        let end = end_of(date);
        let mut of_day = Vec::new();
        while let Some(event) = events.next_if(|event| event.at < end) {
            match &event.what {
                What::Snapshot => snapshots.push(event.at),
                What::SnapshotGoes(of) => snapshots.retain(|at| at != of),
                What::Point(name) => points.entry(name.clone()).or_default().push(event.at),
                What::PointGoes(name, of) => points.entry(name.clone()).or_default().retain(|at| at != of),
                What::Drill => {}
            }
            of_day.push(event);
        }
        days.push(Day { date, events: of_day, snapshots: snapshots.clone(), points: points.clone() });
    }
    days
}

#[cfg(test)]
mod tests;
