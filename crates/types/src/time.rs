//! Instants on the calendar and spans until something expires.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a text is not a time to live.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time to live: write a whole number with s, m, h, d or w, such as 90m, 12h, 7d or 2w")]
pub struct TimeError(String);

/// Why a text is not a short span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: write a whole number with ms, s or m, such as 50ms")]
pub struct SpanError(String);

/// A span such as `50ms`, `2s` or `5m`; a bare number is milliseconds.
///
/// # Errors
/// [`SpanError`].
pub fn parse_span(text: &str) -> Result<Duration, SpanError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let bad = || SpanError(text.to_owned());
    let number: u64 = number.parse().map_err(|_| bad())?;
    let ms = match unit {
        "" | "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err(bad()),
    };
    number.checked_mul(ms).map(Duration::from_millis).ok_or_else(bad)
}

/// An instant in UTC, to the millisecond, written as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The host's wall clock, now.
    #[must_use]
    pub fn now() -> Self {
        let now = jiff::Timestamp::now();
        Self(now.round(jiff::Unit::Millisecond).unwrap_or(now))
    }

    /// An instant of the system's clock.
    #[must_use]
    pub fn from_system_time(at: std::time::SystemTime) -> Self {
        let at = jiff::Timestamp::try_from(at).unwrap_or_else(|_| jiff::Timestamp::now());
        Self(at.round(jiff::Unit::Millisecond).unwrap_or(at))
    }

    /// Time passed from here until `later`; zero when `later` is earlier.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        later.0.duration_since(self.0).try_into().unwrap_or(Duration::ZERO)
    }

    /// The instant `span` later; the end of time when that does not fit.
    #[must_use]
    pub fn after(self, span: TimeToLive) -> Self {
        Self(self.0.checked_add(span.0).unwrap_or(jiff::Timestamp::MAX))
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(at: jiff::Timestamp) -> Self {
        Self(at.round(jiff::Unit::Millisecond).unwrap_or(at))
    }
}

impl From<Timestamp> for jiff::Timestamp {
    fn from(at: Timestamp) -> Self {
        at.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// How long something may live, from one minute to a hundred years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeToLive(Duration);

impl TimeToLive {
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

    /// The span itself.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for TimeToLive {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let bad = || TimeError(text.to_owned());
        let unit = text.chars().last().ok_or_else(bad)?;
        let seconds_each: u64 = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            _ => return Err(bad()),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
        let span = number.checked_mul(seconds_each).map(Duration::from_secs).ok_or_else(bad)?;
        if span.is_zero() || span > Self::LONGEST {
            return Err(bad());
        }
        Ok(Self(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live_read_as_people_write_them() {
        for (text, seconds) in [("1m", 60), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600)] {
            assert_eq!(text.parse::<TimeToLive>().unwrap().duration().as_secs(), seconds);
        }
        for text in ["", "7", "d", "0d", "-1d", "7y", "1.5h", "99999999w", "7é"] {
            assert!(text.parse::<TimeToLive>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_expiry_lies_after_its_creation() {
        let created = Timestamp::now();
        let expires = created.after("7d".parse().unwrap());
        assert_eq!(created.until(expires).as_secs(), 604_800);
        assert_eq!(expires.until(created), Duration::ZERO);
    }
}
