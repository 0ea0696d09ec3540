//! The figures at the end, aligned.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::say;

/// What was measured, in the order in which it is shown.
#[derive(Debug, Default)]
pub struct Figures(Vec<(String, Duration)>);

impl Figures {
    /// Adds a figure that was measured here.
    pub fn add_time(&mut self, what: &str, time: Duration) {
        self.0.push((what.to_owned(), time));
    }

    /// Adds a figure that Keyframe recorded, in milliseconds.
    ///
    /// # Errors
    /// When there is no such number.
    pub fn add(&mut self, what: &str, recorded_ms: Option<&Value>) -> Result<()> {
        let ms = recorded_ms.and_then(Value::as_f64).with_context(|| format!("no record of {what}"))?;
        let time = Duration::try_from_secs_f64(ms / 1e3).with_context(|| format!("{ms} ms is no time"))?;
        self.add_time(what, time);
        Ok(())
    }

    /// Shows them.
    pub fn show(&self) {
        self.lines().iter().for_each(say::note);
    }

    fn lines(&self) -> Vec<String> {
        let widest = self.0.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
        let line = |(what, time): &(String, Duration)| format!("{what:<widest$}  {:>10}", milliseconds(*time));
        self.0.iter().map(line).collect()
    }
}

/// A short time: milliseconds, with one digit after the point below ten.
pub fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// A longer time, in seconds.
pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_aligned() {
        let mut figures = Figures::default();
        figures.add("pause", Some(&Value::from(4.25))).unwrap();
        figures.add_time("a longer name", Duration::from_millis(1234));
        assert_eq!(figures.lines(), ["pause              4.2 ms", "a longer name     1234 ms"]);
    }

    #[test]
    fn what_is_not_recorded_is_not_made_up() {
        for missing in [None, Some(&Value::Null), Some(&Value::from(-1.0))] {
            assert!(Figures::default().add("pause", missing).is_err(), "{missing:?}");
        }
    }
}
