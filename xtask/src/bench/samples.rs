//! Several measurements of one thing.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// Measurements in the order they were made, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one in milliseconds.
    pub fn push_ms(&mut self, ms: f64) {
        self.0.push(ms);
    }

    /// Adds one.
    pub fn push(&mut self, span: Duration) {
        self.push_ms(span.as_secs_f64() * 1e3);
    }

    /// The middle one; of an even number the mean of the middle two. Nothing when nothing was measured.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get(sorted.len().checked_sub(1)? / 2)?;
        Some(f64::midpoint(*lower, *upper))
    }

    /// The largest.
    pub fn worst(&self) -> Option<f64> {
        self.0.iter().copied().max_by(f64::total_cmp)
    }

    fn best(&self) -> Option<f64> {
        self.0.iter().copied().min_by(f64::total_cmp)
    }

    /// All of them in order, such as `2.1 3.0 2.8 ms`.
    pub fn in_order(&self) -> String {
        let all: Vec<_> = self.0.iter().map(|ms| rounded(*ms)).collect();
        if all.is_empty() { "not measured".to_owned() } else { format!("{} ms", all.join(" ")) }
    }

    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({ "median_ms": self.median(), "all_ms": self.0 })
    }
}

/// The median, and in brackets the best and the worst when there are several.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.median(), self.best(), self.worst()) {
            (Some(median), Some(best), Some(worst)) if self.0.len() > 1 => {
                write!(f, "{} ms ({}-{}, n={})", rounded(median), rounded(best), rounded(worst), self.0.len())
            }
            (Some(median), ..) => write!(f, "{} ms", rounded(median)),
            _ => write!(f, "not measured"),
        }
    }
}

/// As many digits as mean something.
pub fn rounded(ms: f64) -> String {
    if ms.abs() < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(all: &[f64]) -> Samples {
        Samples(all.to_vec())
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(samples(&[9.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(samples(&[4.0, 1.0, 2.0, 9.0]).median(), Some(3.0));
        assert_eq!(samples(&[]).median(), None);
    }

    #[test]
    fn the_spread_is_told_and_the_order_kept() {
        let three = samples(&[31.2, 2.04, 3.0]);
        assert_eq!(three.to_string(), "3.0 ms (2.0-31, n=3)");
        assert_eq!(three.in_order(), "31 2.0 3.0 ms");
        assert_eq!(samples(&[5.0]).to_string(), "5.0 ms");
        assert_eq!(samples(&[]).to_string(), "not measured");
    }
}
