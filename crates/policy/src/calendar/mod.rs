//! Calendars: systemd's expressions and cron's five fields, in a time zone.
//!
//! | written | means |
//! |---|---|
//! | `hourly`, `daily`, `weekly`, `monthly`, `quarterly`, `semiannually`, `yearly`, `minutely` | the first second of each |
//! | `Mon..Fri *-*-* 02:30` | on these days at that time; each of the three parts may be left out |
//! | `*-*-01 04:00:00`, `*-01,07-01` | lists with `,`, ranges with `..`, steps with `/` |
//! | `*-*~01`, `Mon *-05~07/1` | counted from a month's end: its last day; May's last Monday |
//! | `03:00 Europe/Berlin`, `03:00 UTC` | in that zone, whatever the host's is |
//! | `cron: 0 2 * * 1-5` | minute, hour, day of the month, month, day of the week |
//!
//! Source: systemd.time(7), and `calendarspec.c` where that is silent; crontab(5). It differs in these:
//!
//! * **A time that a change of clocks skips** is made up for at the first instant after it, once. systemd lets it pass, and a
//!   machine would have no backup that night.
//! * **A time that comes twice** counts the first time, as with systemd; but where an expression names every hour, both of the
//!   hours count: they are two, and a snapshot an hour is owed in each.
//! * Fractions of a second and `@SECONDS` are refused.
//!
//! Expressions end in 2199; one for a day that does not come (`*-02-30`) is never due, and [`Schedule::next_after`] says so.

mod cron;
mod expression;
mod next;
mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Serialize, Serializer};

pub(crate) use expression::Expression;
pub(crate) use parse::{days, words};

/// Why a text is no schedule: what is wrong, and which part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct CalendarError {
    /// Which bytes of the text are wrong.
    pub at: Range<usize>,
    /// What is wrong with them, and what could stand there.
    pub what: String,
}

impl CalendarError {
    fn new(at: Range<usize>, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }

    /// The text with the wrong part underlined, in two lines.
    #[must_use]
    pub fn pointed_at(&self, text: &str) -> String {
        let before = text.get(..self.at.start).map_or(0, |part| part.chars().count());
        let wrong = text.get(self.at.clone()).map_or(1, |part| part.chars().count().max(1));
        format!("{text}\n{}{}", " ".repeat(before), "^".repeat(wrong))
    }
}

/// When something is due, again and again, in a time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    expression: Expression,
    /// Its form without the zone.
    shown: String,
    zone: TimeZone,
    names_zone: bool,
}

impl Schedule {
    /// Reads an expression; it is in `zone` unless it names one.
    ///
    /// # Errors
    /// [`CalendarError`] with the part that is wrong.
    pub fn parse(text: &str, zone: &TimeZone) -> Result<Self, CalendarError> {
        let parsed = match text.trim_start().strip_prefix("cron:") {
            Some(fields) => cron::parse(fields, text.len() - fields.len())?,
            None => parse::parse(text)?,
        };
        let names_zone = parsed.zone.is_some();
        let zone = parsed.zone.unwrap_or_else(|| zone.clone());
        Ok(Self { expression: parsed.expression, shown: parsed.shown, zone, names_zone })
    }

    /// When it is due next, strictly later than `after`; never for days that do not come, or not before 2200.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        next::next_after(&self.expression, &self.zone, after)
    }

    /// All times it is due after `after`, in order.
    pub fn after(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.next_after(after), |at| self.next_after(*at))
    }

    /// The longest that passes between two of them, of the next 1000 and within two years after `after`; nothing when it is due
    /// less than twice.
    #[must_use]
    pub fn longest_gap(&self, after: Timestamp) -> Option<Duration> {
        self.sample(after).windows(2).filter_map(|pair| Duration::try_from(pair[1].duration_since(pair[0])).ok()).max()
    }

    /// How much passes between two of them on average, of the next 1000 and within two years after `after`.
    #[must_use]
    pub fn mean_gap(&self, after: Timestamp) -> Option<Duration> {
        let times = self.sample(after);
        let (first, last) = (times.first()?, times.last()?);
        let gaps = u32::try_from(times.len() - 1).ok().filter(|gaps| *gaps > 0)?;
        Duration::try_from(last.duration_since(*first)).ok().map(|span| span / gaps)
    }

    fn sample(&self, after: Timestamp) -> Vec<Timestamp> {
        let end = after.checked_add(Duration::from_secs(731 * 86_400)).unwrap_or(Timestamp::MAX);
        self.after(after).take(1000).take_while(|at| *at <= end).collect()
    }

    /// The zone it is in.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }
}

/// The form that systemd calls normalized; with a zone where the expression names it.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names_zone { f.pad(&format!("{} {}", self.shown, zone_name(&self.zone))) } else { f.pad(&self.shown) }
    }
}

/// Always with its zone.
impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{} {}", self.shown, zone_name(&self.zone)))
    }
}

/// What a zone is called.
#[must_use]
pub fn zone_name(zone: &TimeZone) -> String {
    match zone.iana_name() {
        Some(name) => name.to_owned(),
        None if *zone == TimeZone::UTC => "UTC".to_owned(),
        None => "the host's own".to_owned(),
    }
}
