//! Expressions made of known sets, against walking through time minute by minute.

use std::collections::{BTreeSet, HashSet};

use jiff::civil::{Date, DateTime};
use jiff::{Timestamp, ToSpan as _};
use proptest::prelude::*;

use super::*;

/// A field as text, and the values that are meant.
#[derive(Debug, Clone)]
struct Made {
    text: String,
    values: BTreeSet<u32>,
}

fn one(least: u32, most: u32) -> impl Strategy<Value = Made> {
    let single = (least..=most).prop_map(|value| (format!("{value}"), vec![value]));
    let range = (least..=most, 0..=most).prop_map(move |(from, length)| {
        let to = (from + length).min(most);
        (format!("{from}..{to}"), (from..=to).collect())
    });
    let step = (least..=most, 1..=most + 3)
        .prop_map(move |(from, step)| (format!("{from}/{step}"), (from..=most).step_by(step as usize).collect()));
    let both = (least..=most, 0..=most, 1..=most + 3).prop_map(move |(from, length, step)| {
        let to = (from + length).min(most);
        (format!("{from}..{to}/{step}"), (from..=to).step_by(step as usize).collect::<Vec<_>>())
    });
    prop_oneof![single, range, step, both]
        .prop_map(|(text, values)| Made { text, values: values.into_iter().collect() })
}

fn field(least: u32, most: u32) -> impl Strategy<Value = Made> {
    let all = Just(Made { text: "*".to_owned(), values: (least..=most).collect() });
    let list = prop::collection::vec(one(least, most), 1..4).prop_map(|parts| Made {
        text: parts.iter().map(|part| part.text.clone()).collect::<Vec<_>>().join(","),
        values: parts.into_iter().flat_map(|part| part.values).collect(),
    });
    prop_oneof![1 => all, 2 => list]
}

#[derive(Debug, Clone)]
struct Meant {
    text: String,
    weekdays: BTreeSet<u32>,
    months: BTreeSet<u32>,
    days: BTreeSet<u32>,
    from_end: bool,
    hours: BTreeSet<u32>,
    minutes: BTreeSet<u32>,
}

const NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

fn meant() -> impl Strategy<Value = Meant> {
    let weekdays = prop::collection::btree_set(0_u32..7, 1..=7);
    // Counted from the end only plain lists mean the same in either direction.
    let back = prop::collection::btree_set(1_u32..=31, 1..5)
        .prop_map(|values| Made { text: values.iter().map(u32::to_string).collect::<Vec<_>>().join(","), values });
    let days = prop_oneof![3 => field(1, 31).prop_map(|made| (made, false)), 1 => back.prop_map(|made| (made, true))];
    (weekdays, field(1, 12), days, field(0, 23), field(0, 59)).prop_map(
        |(weekdays, month, (day, from_end), hour, minute)| {
            let names: Vec<&str> = weekdays.iter().map(|&at| NAMES[at as usize]).collect();
            let (names, separator) = (names.join(","), if from_end { "~" } else { "-" });
            Meant {
                text: format!("{names} *-{}{separator}{} {}:{}", month.text, day.text, hour.text, minute.text),
                weekdays,
                months: month.values,
                days: day.values,
                from_end,
                hours: hour.values,
                minutes: minute.values,
            }
        },
    )
}

impl Meant {
    fn has_date(&self, date: Date) -> bool {
        let small = |value: i8| u32::try_from(value).unwrap();
        let day = if self.from_end { date.days_in_month() - date.day() + 1 } else { date.day() };
        self.weekdays.contains(&small(date.weekday().to_monday_zero_offset()))
            && self.months.contains(&small(date.month()))
            && self.days.contains(&small(day))
    }

    fn has(&self, local: DateTime) -> bool {
        let small = |value: i8| u32::try_from(value).unwrap();
        self.hours.contains(&small(local.hour()))
            && self.minutes.contains(&small(local.minute()))
            && self.has_date(local.date())
    }

    /// All instants due in a span, found by looking at each of its minutes. Times skipped before its first minute are not known.
    fn walked(&self, zone: &TimeZone, from: Timestamp, minutes: i64) -> Vec<Timestamp> {
        let (mut found, mut seen, mut before) = (Vec::new(), HashSet::new(), None::<DateTime>);
        for minute in 0..minutes {
            let at = from + minute.minutes();
            let local = zone.to_datetime(at);
            let next = before.map(|before: DateTime| before + 1.minute());
            let skipped = next.filter(|next| *next < local).into_iter().flat_map(|next| next.series(1.minute()));
            let made_up = skipped.take_while(|skipped| *skipped < local).any(|skipped| self.has(skipped));
            let first = seen.insert(local);
            if made_up || (self.has(local) && (first || self.hours.len() == 24)) {
                found.push(at);
            }
            before = Some(local);
        }
        found
    }
}

fn told(schedule: &Schedule, from: Timestamp, minutes: i64) -> Vec<Timestamp> {
    let before = from - 1.nanosecond();
    schedule.after(before).take_while(|at| *at < from + minutes.minutes()).collect()
}

/// An instant some hours before a change of clocks, or any at all.
fn begins() -> impl Strategy<Value = (TimeZone, Timestamp)> {
    let zones = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana", "Asia/Kathmandu", "UTC"];
    (prop::sample::select(zones.to_vec()), 0_i64..40 * 365, 120_i64..1500, any::<bool>()).prop_map(
        |(name, day, minutes, near)| {
            let zone = zone(name);
            let any_day = at("2000-01-01T00:00:00Z") + (day * 24).hours();
            let change = zone.following(any_day).next().map(|change| change.timestamp());
            // jiff tells of a change in the last second of 32 bits, which is none.
            let base = change.filter(|at| near && at.as_second() % 60 == 0).unwrap_or(any_day);
            (zone, base - minutes.minutes())
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn every_minute_of_days_around_changes_of_clocks(meant in meant(), (zone, from) in begins()) {
        // Days and months that match often, so that clocks matter.
        let everyday = Meant {
            text: meant.text.rsplit_once(' ').unwrap().1.to_owned(),
            weekdays: (0..7).collect(),
            months: (1..=12).collect(),
            days: (1..=31).collect(),
            from_end: false,
            ..meant.clone()
        };
        for meant in [meant, everyday] {
            let schedule = Schedule::parse(&meant.text, &zone).unwrap();
            let (told, walked) = (told(&schedule, from, 4000), meant.walked(&zone, from, 4000));
            let differ = told.iter().zip(&walked).find(|(told, walked)| told != walked);
            prop_assert!(told == walked, "{}: {differ:?}, {} and {} times", meant.text, told.len(), walked.len());
        }
    }

    #[test]
    fn every_day_of_years(meant in meant(), day in 0_i64..150 * 365) {
        let first = Date::constant(1999, 12, 1) + day.days();
        let text = meant.text.rsplit_once(' ').unwrap().0;
        let schedule = Schedule::parse(text, &TimeZone::UTC).unwrap();
        let midnight = |date: Date| date.to_zoned(TimeZone::UTC).unwrap().timestamp();
        let days: Vec<_> = first.series(1.day()).take(3000).filter(|date| meant.has_date(*date)).map(midnight).collect();
        let last = midnight(first + 3000.days());
        let told: Vec<_> = schedule.after(midnight(first) - 1.nanosecond()).take_while(|at| *at < last).collect();
        let differ = told.iter().zip(&days).find(|(told, day)| told != day);
        prop_assert!(told == days, "{text}: {differ:?}, {} and {} times", told.len(), days.len());
    }

    #[test]
    fn what_is_shown_is_read_as_the_same(meant in meant()) {
        let schedule = utc(&meant.text);
        prop_assert_eq!(utc(&schedule.to_string()), schedule);
    }

    #[test]
    fn any_text_is_a_schedule_or_an_error_within_it(text in "(cron: ?)?[-0-9*,./~: MonTueSa@UTC/é]{0,40}", after in any::<i32>()) {
        match Schedule::parse(&text, &TimeZone::UTC) {
            Ok(schedule) => {
                let after = Timestamp::from_second(i64::from(after)).unwrap();
                prop_assert!(schedule.next_after(after).is_none_or(|at| at > after));
            }
            Err(error) => {
                prop_assert!(text.get(error.at.clone()).is_some(), "{:?} {:?}", text, error);
                prop_assert!(error.pointed_at(&text).starts_with(&text));
            }
        }
    }
}
