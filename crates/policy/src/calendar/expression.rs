//! What an expression is once read: sets of years, months, days, hours, minutes and seconds.

use jiff::civil::{Date, Time, Weekday};

/// The first and last year that an expression can name.
pub(super) const YEARS: std::ops::RangeInclusive<u32> = 1970..=2199;

/// `start`, `start..stop`, either with `/step`. With a step and no stop it goes on to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub start: u32,
    pub stop: Option<u32>,
    pub step: Option<u32>,
}

impl Part {
    pub(super) fn contains(self, value: u32, most: u32) -> bool {
        let stop = match (self.stop, self.step) {
            (Some(stop), _) => stop.min(most),
            (None, Some(_)) => most,
            (None, None) => self.start,
        };
        value >= self.start && value <= stop && (value - self.start).is_multiple_of(self.step.unwrap_or(1))
    }
}

/// One field: any value when it has no parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Field(pub Vec<Part>);

impl Field {
    pub(super) fn contains(&self, value: u32, most: u32) -> bool {
        self.0.is_empty() || self.0.iter().any(|part| part.contains(value, most))
    }

    /// The values from `least` to `most`, which is at most 63, as bits.
    pub(super) fn bits(&self, least: u32, most: u32) -> u64 {
        (least..=most).filter(|&value| self.contains(value, most)).fold(0, |bits, value| bits | 1 << value)
    }
}

/// How the days of a month are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Days {
    /// From its first.
    FromStart(Field),
    /// From its last, which is 1: `~`.
    FromEnd(Field),
}

/// What must hold for a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DayRule {
    /// Day of the month and day of the week.
    Both,
    /// One of them: cron's, when both are given.
    Either,
}

/// An expression without its zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expression {
    pub(super) years: Field,
    /// Bits 1 to 12.
    pub(super) months: u64,
    pub(super) days: Days,
    /// Bits 0, Monday, to 6.
    pub(super) weekdays: u8,
    pub(super) day_rule: DayRule,
    pub(super) hours: u64,
    pub(super) minutes: u64,
    pub(super) seconds: u64,
}

/// All 24 hours.
const EVERY_HOUR: u64 = (1 << 24) - 1;

impl Expression {
    pub(super) fn names_every_hour(&self) -> bool {
        self.hours == EVERY_HOUR
    }

    /// Whether the day is one of those named; the time of day does not count.
    pub(crate) fn has_day(&self, date: Date) -> bool {
        let (year, month) = (u32::try_from(date.year()).unwrap_or(0), date.month().unsigned_abs());
        self.has_year(year)
            && self.months & 1 << month != 0
            && self.days_in(date.first_of_month()) & 1 << date.day().unsigned_abs() != 0
    }

    pub(super) fn has_year(&self, year: u32) -> bool {
        YEARS.contains(&year) && self.years.contains(year, *YEARS.end())
    }

    /// The days of a month that are named, as bits 1 to 31.
    pub(super) fn days_in(&self, first: Date) -> u64 {
        let length = u32::from(first.days_in_month().unsigned_abs());
        let by_month = match &self.days {
            Days::FromStart(field) => field.bits(1, length),
            Days::FromEnd(field) => from_end(field, length),
        };
        let monday_based = |day: u32| (weekday_bit(first.weekday()) + day - 1) % 7;
        let by_week = (1..=length).filter(|&day| self.weekdays & 1 << monday_based(day) != 0);
        let by_week = by_week.fold(0, |bits, day| bits | 1 << day);
        match self.day_rule {
            DayRule::Both => by_month & by_week,
            DayRule::Either => by_month | by_week,
        }
    }

    /// The first time of day that is named, at `from` or later.
    pub(super) fn time_from(&self, from: Time) -> Option<Time> {
        let [hour, minute, second] =
            [from.hour(), from.minute(), from.second()].map(|value| u32::from(value.unsigned_abs()));
        let at_least = |bits: u64, least: u32| -> Option<u32> {
            let left = bits.checked_shr(least).unwrap_or(0);
            (left != 0).then(|| least + left.trailing_zeros())
        };
        let first_in = |hour: u32, minute: u32, second: u32| -> Option<(u32, u32, u32)> {
            if let Some(second) = at_least(self.seconds, second)
                && self.minutes & 1 << minute != 0
            {
                return Some((hour, minute, second));
            }
            let minute = at_least(self.minutes, minute + 1)?;
            Some((hour, minute, at_least(self.seconds, 0)?))
        };
        let in_this_hour = if self.hours & 1 << hour != 0 { first_in(hour, minute, second) } else { None };
        let found = in_this_hour.or_else(|| {
            let hour = at_least(self.hours, hour + 1)?;
            Some((hour, at_least(self.minutes, 0)?, at_least(self.seconds, 0)?))
        });
        let (hour, minute, second) = found?;
        let small = |value: u32| i8::try_from(value).unwrap_or(0);
        Time::new(small(hour), small(minute), small(second), 0).ok()
    }
}

/// systemd counts `~A..B` from A days before the end back to B, and `~A/STEP` from there forward to the end.
fn from_end(field: &Field, length: u32) -> u64 {
    if field.0.is_empty() {
        return Field::default().bits(1, length);
    }
    let day = |back: u32| (back <= length).then(|| length + 1 - back);
    let forward = field.0.iter().filter_map(|part| match part.stop {
        // A range that is longer than the month is all of it.
        Some(stop) => Some(Part { start: day(stop.min(length))?, stop: Some(day(part.start)?), step: part.step }),
        None => Some(Part { start: day(part.start)?, ..*part }),
    });
    forward.fold(0, |bits, part| bits | Field(vec![part]).bits(1, length))
}

/// The bit of a day of the week: Monday is 0.
fn weekday_bit(weekday: Weekday) -> u32 {
    weekday.to_monday_zero_offset().unsigned_abs().into()
}
