//! The next instant of an expression, in a zone whose clocks change.
//!
//! Local times are gone through in order, and each is turned into the one instant at which it is due. That never goes back: of
//! a time that comes twice it is the first instant, of one that is skipped the instant at which clocks have skipped it.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};

use super::expression::{Expression, YEARS};

/// The next one, strictly later than `after`.
pub(super) fn next_after(expression: &Expression, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let first = next_first(expression, zone, after);
    if !expression.names_every_hour() {
        return first;
    }
    // Hours that come twice are two hours to somebody who wants each.
    let again = [zone.preceding(next_instant(after)?).next(), zone.following(after).next()];
    let again = again.into_iter().flatten().filter_map(|change| {
        let begins = change.timestamp();
        let skipped_back = zone.to_offset(begins.checked_sub(SECOND).ok()?).seconds() - change.offset().seconds();
        let ends = begins.checked_add(SECOND * u32::try_from(skipped_back).ok()?).ok()?;
        let from = begins.max(next_second(after)?);
        let local = next_local(expression, change.offset().to_datetime(from))?;
        change.offset().to_timestamp(local).ok().filter(|at| *at > after && *at < ends)
    });
    again.chain(first).min()
}

const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

fn next_instant(after: Timestamp) -> Option<Timestamp> {
    after.checked_add(std::time::Duration::from_nanos(1)).ok()
}

/// The first whole second after an instant.
fn next_second(after: Timestamp) -> Option<Timestamp> {
    let floor = if after.subsec_nanosecond() < 0 { after.as_second() - 1 } else { after.as_second() };
    Timestamp::from_second(floor + 1).ok()
}

/// The next one, where of a time that comes twice only the first counts.
fn next_first(expression: &Expression, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let mut local = zone.to_datetime(after);
    loop {
        local = next_local(expression, local)?;
        let at = instant(zone, local)?;
        if at > after {
            return Some(at);
        }
        // The second pass of an hour that comes twice, or the second that `after` is in.
        local = local.checked_add(SECOND).ok()?;
    }
}

/// When a local time is due.
fn instant(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(local).ok(),
        AmbiguousOffset::Gap { before, .. } => {
            // By the clock that was not changed it is at or after the change.
            let unchanged = before.to_timestamp(local).ok()?;
            zone.preceding(next_instant(unchanged)?).next().map(|change| change.timestamp())
        }
    }
}

/// The first local time that is named, at `from`'s second or later.
fn next_local(expression: &Expression, from: DateTime) -> Option<DateTime> {
    let mut date = from.date();
    if let Some(time) = expression.time_from(from.time()).filter(|_| expression.has_day(date)) {
        return Some(date.to_datetime(time));
    }
    let time = expression.time_from(jiff::civil::Time::midnight())?;
    date = date.tomorrow().ok()?.max(Date::new(i16::try_from(*YEARS.start()).ok()?, 1, 1).ok()?);
    loop {
        let year = u32::try_from(date.year()).ok()?;
        if year > *YEARS.end() {
            return None;
        }
        if !expression.has_year(year) {
            date = Date::new(date.year() + 1, 1, 1).ok()?;
            continue;
        }
        let days = match expression.months & 1 << date.month() {
            0 => 0,
            _ => expression.days_in(date.first_of_month()) >> date.day() << date.day(),
        };
        if days != 0 {
            return Some(
                Date::new(date.year(), date.month(), i8::try_from(days.trailing_zeros()).ok()?).ok()?.to_datetime(time),
            );
        }
        date = date.last_of_month().tomorrow().ok()?;
    }
}
