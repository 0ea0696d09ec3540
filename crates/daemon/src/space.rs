//! How much room the home's file system has, and for how long.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::alerts::Trouble;
use crate::verdict::Severity;

/// How much is remembered for a forecast.
const REMEMBERED: Duration = Duration::from_secs(14 * 24 * 3600);
/// A forecast from less than this would be a guess.
const SHORTEST: f64 = 3600.0;
/// Further than this nobody can see, in days.
const FURTHEST: f64 = 3650.0;

/// How many days of room are left when somebody should hear of it.
const DAYS_LEFT: f64 = 7.0;
/// Of how much room a hundredth is left when somebody should hear of it at once.
const HUNDREDTHS_LEFT: u64 = 5;

/// A time and the bytes that were free then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// When.
    pub at: Timestamp,
    /// How much was free.
    pub free_bytes: u64,
}

/// The room of a file system.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
    /// When it is full at the rate of the last days; nothing where it does not fill up, or too little is known.
    pub full_in_days: Option<f64>,
    /// What was free, by time.
    pub history: Vec<Mark>,
}

impl Space {
    /// Looks at the file system of `path`.
    #[must_use]
    pub fn of(path: &Path, history: Vec<Mark>, now: Timestamp) -> Self {
        Self::looked_at(path, history, now, false)
    }

    /// Looks again, and remembers what is free now.
    #[must_use]
    pub fn again(self, path: &Path, now: Timestamp) -> Self {
        Self::looked_at(path, self.history, now, true)
    }

    /// What is to be told of it: there is hardly room, or soon none.
    #[must_use]
    pub fn trouble(&self, id: &str, whose: &str, advice: &str) -> Option<Trouble> {
        let (severity, what) = if self.total_bytes > 0 && self.free_bytes / HUNDREDTHS_LEFT < self.total_bytes / 100 {
            (Severity::Critical, format!("{whose} is nearly full"))
        } else {
            let days = self.full_in_days.filter(|days| *days < DAYS_LEFT)?;
            (Severity::Warning, format!("{whose} will be full in {days:.1} days, if it goes on like this"))
        };
        Some(Trouble { id: id.to_owned(), severity, machine: None, what, advice: advice.to_owned() })
    }

    fn looked_at(path: &Path, mut history: Vec<Mark>, now: Timestamp, noted: bool) -> Self {
        let Ok(found) = rustix::fs::statvfs(path) else { return Self { history, ..Self::default() } };
        let (total_bytes, free_bytes) = (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize);
        history.extend(noted.then_some(Mark { at: now, free_bytes }));
        let recent = now.checked_sub(REMEMBERED).unwrap_or(Timestamp::MIN);
        let history: Vec<Mark> = history.into_iter().filter(|mark| mark.at >= recent).collect();
        let full_in_days = full_in_days(&history, free_bytes);
        Self { total_bytes, free_bytes, full_in_days, history }
    }
}

/// Along the straight line through what was free: least squares.
#[expect(clippy::cast_precision_loss, reason = "bytes and seconds of a forecast in days")]
fn full_in_days(history: &[Mark], free: u64) -> Option<f64> {
    let (first, last) = (history.first()?, history.last()?);
    if last.at.duration_since(first.at).as_secs_f64() < SHORTEST {
        return None;
    }
    let points: Vec<(f64, f64)> =
        history.iter().map(|mark| (mark.at.duration_since(first.at).as_secs_f64(), mark.free_bytes as f64)).collect();
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
    let days = free as f64 / -slope / 86_400.0;
    (slope < 0.0 && days < FURTHEST).then_some(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(free: impl Fn(u64) -> u64) -> Vec<Mark> {
        let at = |hour: u64| Timestamp::from_second(1_800_000_000 + i64::try_from(hour * 3600).unwrap()).unwrap();
        (0..48).map(|hour| Mark { at: at(hour), free_bytes: free(hour) }).collect()
    }

    #[test]
    fn a_straight_line_is_followed_to_its_end() {
        let days = full_in_days(&marks(|hour| 1_000_000 - hour * 1000), 240_000).unwrap();
        assert!((days - 10.0).abs() < 0.01, "{days}");
        assert_eq!(full_in_days(&marks(|hour| 1_000_000 + hour), 1_000_000), None, "it does not fill up");
        assert_eq!(full_in_days(&marks(|hour| 1_000_000 - hour)[..1], 1_000_000), None, "too little is known");
    }
}
