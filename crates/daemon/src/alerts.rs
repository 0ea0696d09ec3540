//! What is to be seen to, since when, and what to do about it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::rules::Rules;
use crate::space::Space;
use crate::verdict::{Row, Severity};

/// An alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// Tells it from others, over time.
    pub id: String,
    /// How much it weighs.
    pub severity: Severity,
    /// The machine it is about.
    pub machine: Option<String>,
    /// What is so.
    pub what: String,
    /// What to do.
    pub advice: String,
    /// Since when.
    pub since: Timestamp,
}

/// All alerts, and what became of them.
#[derive(Debug, Default)]
pub struct Alerts {
    now: BTreeMap<String, Alert>,
}

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New ones.
    pub raised: Vec<Alert>,
    /// Those that are no more.
    pub cleared: Vec<Alert>,
}

/// How many days of room are left when somebody should hear of it.
const DAYS_LEFT: f64 = 7.0;
/// Of how much room a hundredth is left when somebody should hear of it at once.
const HUNDREDTHS_LEFT: u64 = 5;

impl Alerts {
    /// All of them, the weightiest first, then by age.
    #[must_use]
    pub fn all(&self) -> Vec<Alert> {
        let mut all: Vec<Alert> = self.now.values().cloned().collect();
        all.sort_by(|one, other| (other.severity, one.since).cmp(&(one.severity, other.since)));
        all
    }

    /// Looks at everything again.
    pub fn look(&mut self, rows: &[Row], rules: &Rules, space: &Space, further: &[String], now: Timestamp) -> Changes {
        let mut fresh = BTreeMap::new();
        let mut put = |id: String, severity, machine: Option<&str>, what: String, advice: String| {
            let since = self.now.get(&id).map_or(now, |known| known.since);
            let machine = machine.map(str::to_owned);
            fresh.insert(id.clone(), Alert { id, severity, machine, what, advice, since });
        };
        for row in rows {
            for reason in &row.why {
                let id = format!("{}/{}", row.name, reason.id);
                put(id, reason.severity, Some(&row.name), reason.what.clone(), reason.advice.clone());
            }
        }
        if !rules.usable {
            let first = rules.mistakes.iter().find(|mistake| mistake.severity == keyframe_policy::Severity::Error);
            let first = first.map(|mistake| format!(": {}: {}", mistake.place, mistake.what)).unwrap_or_default();
            let what = format!("a policy file has a mistake, and what was in force before stays{first}");
            put(
                "policies".to_owned(),
                Severity::Critical,
                None,
                what,
                "`keyframe policy check` tells all of them".to_owned(),
            );
        }
        if space.total_bytes > 0 && space.free_bytes / HUNDREDTHS_LEFT < space.total_bytes / 100 {
            let advice = "`keyframe cost` says what takes the room, and what would give it back".to_owned();
            put(
                "space".to_owned(),
                Severity::Critical,
                None,
                "the home's file system is nearly full".to_owned(),
                advice,
            );
        } else if let Some(days) = space.full_in_days.filter(|days| *days < DAYS_LEFT) {
            let what = format!("the home's file system will be full in {days:.1} days, if it goes on like this");
            let advice = "`keyframe cost` says what takes the room, and what would give it back".to_owned();
            put("space".to_owned(), Severity::Warning, None, what, advice);
        }
        for trouble in further {
            let advice = "look at the daemon's own log".to_owned();
            put(format!("daemon/{trouble}"), Severity::Warning, None, trouble.clone(), advice);
        }
        let raised = fresh.iter().filter(|(id, _)| !self.now.contains_key(*id)).map(|(_, alert)| alert.clone());
        let raised = raised.collect();
        let cleared = self.now.iter().filter(|(id, _)| !fresh.contains_key(*id)).map(|(_, alert)| alert.clone());
        let changes = Changes { raised, cleared: cleared.collect() };
        self.now = fresh;
        changes
    }
}
