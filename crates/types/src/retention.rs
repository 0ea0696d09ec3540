//! Which of a history are kept: by number, hour, day, week, month, year and tag. One rule for snapshots and for points.

use std::collections::HashSet;

use jiff::civil::Date;

use crate::time::Timestamp;

/// How many to keep of each kind. Days begin at midnight UTC, weeks on Monday.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Retention {
    /// The latest ones.
    pub last: usize,
    /// The latest of each of so many hours that have any.
    pub hourly: usize,
    /// Of so many days.
    pub daily: usize,
    /// Of so many weeks.
    pub weekly: usize,
    /// Of so many months.
    pub monthly: usize,
    /// Of so many years.
    pub yearly: usize,
    /// All with one of these tags.
    pub tags: Vec<String>,
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// When it was made.
    pub created: Timestamp,
    /// The words to find it by.
    pub tags: &'a [String],
}

/// The part of a time that makes two of one hour, day, week, month or year.
fn periods(created: Timestamp) -> [(&'static str, i64); 5] {
    let time = jiff::tz::TimeZone::UTC.to_datetime(created.into());
    let date = time.date();
    let day = date.since(Date::constant(1970, 1, 5)).map_or(0, |span| i64::from(span.get_days()));
    let month = i64::from(date.year()) * 12 + i64::from(date.month());
    [
        ("hourly", day * 24 + i64::from(time.hour())),
        ("daily", day),
        ("weekly", day.div_euclid(7)),
        ("monthly", month),
        ("yearly", date.year().into()),
    ]
}

impl Retention {
    /// Whether it keeps nothing at all: that is more likely a slip than a wish.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Why each of one history, sorted from the oldest to the latest, is kept: it goes when there is no reason.
    #[must_use]
    pub fn reasons(&self, history: &[Kept<'_>]) -> Vec<Vec<&'static str>> {
        let mut left = [self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        let mut seen: [HashSet<i64>; 5] = Default::default();
        let mut all = Vec::with_capacity(history.len());
        for (age, entry) in history.iter().rev().enumerate() {
            let mut reasons = Vec::new();
            if age < self.last {
                reasons.push("last");
            }
            for (((word, period), left), seen) in periods(entry.created).into_iter().zip(&mut left).zip(&mut seen) {
                if *left > 0 && seen.insert(period) {
                    *left -= 1;
                    reasons.push(word);
                }
            }
            if entry.tags.iter().any(|tag| self.tags.contains(tag)) {
                reasons.push("tag");
            }
            all.push(reasons);
        }
        all.reverse();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse::<jiff::Timestamp>().unwrap().into()
    }

    #[test]
    fn the_latest_of_each_period_is_kept_and_says_why() {
        let times = ["2024-12-31T23:00:00Z", "2025-12-29T10:00:00Z", "2026-01-01T08:00:00Z", "2026-01-01T09:30:00Z"];
        let history: Vec<_> = times.iter().map(|time| Kept { created: at(time), tags: &[] }).collect();
        let rule = Retention { last: 1, daily: 2, yearly: 2, ..Default::default() };
        assert_eq!(rule.reasons(&history), [vec![], vec!["daily", "yearly"], vec![], vec!["last", "daily", "yearly"]]);
        // 29 December 2025 is a Monday: with 1 January in one week.
        let rule = Retention { weekly: 9, ..Default::default() };
        assert_eq!(rule.reasons(&history), [vec!["weekly"], vec![], vec![], vec!["weekly"]]);
    }

    #[test]
    fn a_tag_keeps() {
        let tags = ["x".to_owned()];
        let history = [Kept { created: at("2026-01-01T00:00:00Z"), tags: &tags }];
        assert_eq!(Retention { tags: tags.to_vec(), ..Default::default() }.reasons(&history), [vec!["tag"]]);
        assert_eq!(Retention::default().reasons(&history), [Vec::<&str>::new()]);
        assert!(Retention::default().is_empty());
    }
}
