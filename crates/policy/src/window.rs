//! Times of the week in which work may be done, or may not.

use std::fmt;

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::{Serialize, Serializer};

use crate::calendar::{CalendarError, Expression, days, words};

/// A part of some days, `Mon..Fri 22:00-06:00`: from a time of day to another, that of the next day where it is not later.
///
/// The days are those of a calendar expression, on which it begins; the end is not part of it. Local clocks count: where they are
/// changed within it, it is as much longer or shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    days: Expression,
    from: Time,
    /// Midnight is the end of the day.
    to: Time,
    zone: TimeZone,
    shown: String,
}

impl Window {
    /// Reads one; it is in `zone`.
    ///
    /// # Errors
    /// [`CalendarError`] with the part that is wrong.
    pub fn parse(text: &str, zone: &TimeZone) -> Result<Self, CalendarError> {
        let mut words = words(text, 0)?;
        let what = "a window is some days and a span, such as \"Mon..Fri 22:00-06:00\" or \"00:00-24:00\"";
        let wrong = |at: std::ops::Range<usize>| CalendarError { at, what: what.to_owned() };
        let last = words.pop().ok_or_else(|| wrong(0..text.len()))?;
        let span = last.at..last.at + last.text.len();
        let (from, to) = last.text.split_once('-').ok_or_else(|| wrong(span.clone()))?;
        let (from, to) = (clock(from), clock(to));
        let (Some(from), Some(to)) = (from, to) else {
            return Err(wrong(span));
        };
        if from == MINUTES_OF_DAY {
            return Err(CalendarError { at: span, what: "a window begins at 23:59 at the latest".to_owned() });
        }
        let (days, shown) = days(&words, last)?;
        let shown = format!("{shown} {:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60);
        let time = |minutes: i16| {
            let small = |value: i16| i8::try_from(value).unwrap_or(0);
            Time::new(small(minutes / 60 % 24), small(minutes % 60), 0, 0).unwrap_or(Time::midnight())
        };
        Ok(Self { days, from: time(from), to: time(to), zone: zone.clone(), shown })
    }

    /// Whether an instant is within it.
    #[must_use]
    pub fn contains(&self, at: Timestamp) -> bool {
        let local = self.zone.to_datetime(at);
        let (date, time) = (local.date(), local.time());
        let wraps = self.to <= self.from;
        let today = time >= self.from && (wraps || time < self.to) && self.days.has_day(date);
        let since_yesterday =
            wraps && time < self.to && date.yesterday().is_ok_and(|yesterday| self.days.has_day(yesterday));
        today || since_yesterday
    }

    /// The first instants after `at` at which it begins and ends, on the days around a date.
    fn edges(&self, around: DateTime) -> impl Iterator<Item = Timestamp> + '_ {
        let date = around.date();
        let edges = [self.from, self.to].map(|time| date.to_datetime(time));
        edges.into_iter().filter_map(|local| self.zone.to_ambiguous_timestamp(local).compatible().ok())
    }
}

const MINUTES_OF_DAY: i16 = 24 * 60;

/// `HH:MM` in minutes; 24:00 is the end of the day.
fn clock(text: &str) -> Option<i16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| -> Option<i16> {
        let plain = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        if plain { text.parse().ok() } else { None }
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let all = hours * 60 + minutes;
    (minutes < 60 && all <= MINUTES_OF_DAY).then_some(all)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.shown)
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown)
    }
}

/// Kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Taking snapshots.
    Snapshot,
    /// Backing up.
    Backup,
    /// Drills.
    Drill,
}

impl std::str::FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "snapshot" => Ok(Self::Snapshot),
            "backup" => Ok(Self::Backup),
            "drill" => Ok(Self::Drill),
            _ => Err(format!("{text:?} is not known: write snapshot, backup or drill")),
        }
    }
}

/// When work may be done: within an allowed window, where there are any, and within no forbidden one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Windows {
    /// It may; always if there is none.
    pub allowed: Vec<Window>,
    /// It may not.
    pub forbidden: Vec<Window>,
    /// Which work they hold for; the other may be done at any time.
    pub applies_to: Vec<Work>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { allowed: Vec::new(), forbidden: Vec::new(), applies_to: vec![Work::Backup, Work::Drill] }
    }
}

/// How far ahead a permitted time is looked for.
const DAYS_AHEAD: i64 = 400;

impl Windows {
    /// Whether the work may be begun now.
    #[must_use]
    pub fn permit(&self, work: Work, at: Timestamp) -> bool {
        let within = |windows: &[Window]| windows.iter().any(|window| window.contains(at));
        !self.applies_to.contains(&work)
            || ((self.allowed.is_empty() || within(&self.allowed)) && !within(&self.forbidden))
    }

    /// The first time, `at` or later, at which it may be; nothing if there is none within 400 days.
    #[must_use]
    pub fn next_permitted(&self, work: Work, at: Timestamp) -> Option<Timestamp> {
        if self.permit(work, at) {
            return Some(at);
        }
        let all = || self.allowed.iter().chain(&self.forbidden);
        (-1..DAYS_AHEAD).find_map(|day| {
            let edges = all().flat_map(|window| {
                let around = window.zone.to_datetime(at).checked_add(day.days()).ok();
                around.into_iter().flat_map(|around| window.edges(around))
            });
            let mut edges: Vec<Timestamp> = edges.filter(|edge| *edge > at).collect();
            edges.sort_unstable();
            edges.into_iter().find(|edge| self.permit(work, *edge))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn windows(allowed: &[&str], forbidden: &[&str]) -> Windows {
        let all = |texts: &[&str]| texts.iter().map(|text| Window::parse(text, &berlin()).unwrap()).collect();
        Windows { allowed: all(allowed), forbidden: all(forbidden), ..Windows::default() }
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
        let window = Window::parse("Fri 22:00-06:00", &berlin()).unwrap();
        assert_eq!(window.to_string(), "Fri *-*-* 22:00-06:00");
        for (time, within) in [
            ("2026-07-03T19:59:59Z", false),
            ("2026-07-03T20:00:00Z", true),
            ("2026-07-04T03:59:59Z", true),
            ("2026-07-04T04:00:00Z", false),
            ("2026-07-03T02:00:00Z", false),
        ] {
            assert_eq!(window.contains(at(time)), within, "{time}");
        }
        assert!(Window::parse("00:00-24:00", &berlin()).unwrap().contains(at("2026-07-04T21:59:59Z")));
    }

    #[test]
    fn mistakes_are_pointed_at() {
        for (text, wrong) in [
            ("Mon 22:00", "22:00"),
            ("Mon 22:00-25:00", "22:00-25:00"),
            ("Mon 22:0x-23:00", "22:0x-23:00"),
            ("Mox 22:00-23:00", "Mox"),
            ("24:00-03:00", "24:00-03:00"),
            ("", ""),
        ] {
            let error = Window::parse(text, &berlin()).unwrap_err();
            assert_eq!(&text[error.at.clone()], wrong, "{error}");
        }
    }

    #[test]
    fn the_next_permitted_time_is_where_a_window_begins_or_ends() {
        let nights = windows(&["22:00-06:00"], &["Sat 00:00-24:00"]);
        let next = |time: &str| nights.next_permitted(Work::Backup, at(time)).unwrap().to_string();
        assert_eq!(next("2026-07-01T12:00:00Z"), "2026-07-01T20:00:00Z");
        assert_eq!(next("2026-07-01T21:00:00Z"), "2026-07-01T21:00:00Z");
        // Friday's window ends with the day, Saturday is forbidden, Saturday night goes on on Sunday.
        assert_eq!(next("2026-07-03T22:00:00Z"), "2026-07-04T22:00:00Z");
        assert!(nights.permit(Work::Snapshot, at("2026-07-01T12:00:00Z")));
        assert_eq!(windows(&[], &["00:00-24:00"]).next_permitted(Work::Drill, at("2026-07-01T12:00:00Z")), None);
    }
}
