//! What is to be seen to, since when, and what to do about it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use keyframe_types::text::span;
use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;
use crate::hands::Hands;
use crate::rules::Rules;
use crate::scheduler::Scheduler;
use crate::space::Space;
use crate::verdict::{NOT_LOOKED_AT, Row, STALE_AFTER, Severity};

/// An alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Something of the daemon itself that is to be seen to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
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
}

impl Trouble {
    /// One of which the daemon's log tells more.
    #[must_use]
    pub fn in_log(what: String) -> Self {
        let advice = "look at the daemon's own log".to_owned();
        Self { id: format!("daemon/{what}"), severity: Severity::Warning, machine: None, what, advice }
    }

    /// What is at work for longer than it should be: looking at machines, and commands.
    #[must_use]
    pub fn at_work<F: Fleet, H: Hands>(scheduler: &Scheduler<F, H>, now: Timestamp) -> Vec<Self> {
        let look = scheduler.last_look();
        let blind = (look.ago > STALE_AFTER).then(|| Self {
            id: "not-looked".to_owned(),
            severity: Severity::Critical,
            machine: None,
            what: format!("machines were not looked at since {}: what is told of them is as old", look.at),
            advice: "see the daemon's log for why, and restart it: what is at work goes on".to_owned(),
        });
        let killed_after = span(scheduler.policies().host.deadlines.cancel.as_secs());
        let hangs = scheduler.hanging(now).map(|(job, at_work, deadline)| {
            let of = job.backup().map(|backup| format!(" {backup}")).unwrap_or_default();
            let with = job.together.as_ref().map(|_| format!(" with {}", job.subject())).unwrap_or_default();
            let (kind, at_work, deadline) = (job.kind(), span(at_work.as_secs()), span(deadline.as_secs()));
            Self {
                id: format!("hangs/{}", job.id),
                severity: Severity::Critical,
                machine: Some(job.machine.clone()),
                what: format!("its {kind}{of}{with} is at work for {at_work}, {deadline} are its deadline: it may hang"),
                advice: format!(
                    "see HOME/serve/jobs/{} for what it says; cancel it: it is asked to end, and killed after {killed_after}",
                    job.id
                ),
            }
        });
        blind.into_iter().chain(hangs).collect()
    }
}

/// All alerts, and what became of them.
#[derive(Debug, Default)]
pub struct Alerts {
    now: BTreeMap<String, Alert>,
    /// Those of the daemon before, which this one has not found yet.
    before: BTreeMap<String, Alert>,
    /// Until when it looks for them.
    settled: Option<Timestamp>,
}

/// How long after its start a daemon does not say of what the one before told that it is no more: it may not have got there yet.
const SETTLING: Duration = Duration::from_secs(60);

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New ones.
    pub raised: Vec<Alert>,
    /// Those that are no more.
    pub cleared: Vec<Alert>,
}

impl Alerts {
    /// Since when one is so.
    #[must_use]
    pub fn since(&self, id: &str) -> Option<Timestamp> {
        self.now.get(id).map(|alert| alert.since)
    }

    /// Goes on from those that the daemon before told: what is still so is told again, and since then.
    #[must_use]
    pub fn after(before: Vec<Alert>) -> Self {
        let before = before.into_iter().map(|alert| (alert.id.clone(), alert)).collect();
        Self { before, ..Self::default() }
    }

    /// All of them, the weightiest first, then by age.
    #[must_use]
    pub fn all(&self) -> Vec<Alert> {
        let mut all: Vec<Alert> = self.now.values().cloned().collect();
        all.sort_by(|one, other| (other.severity, one.since).cmp(&(one.severity, other.since)));
        all
    }

    /// Looks at everything again.
    pub fn look(&mut self, rows: &[Row], rules: &Rules, space: &Space, further: &[Trouble], now: Timestamp) -> Changes {
        let mut fresh = BTreeMap::new();
        let mut put = |id: String, severity, machine: Option<&str>, what: String, advice: String| {
            let known = self.now.get(&id).or_else(|| self.before.get(&id));
            let since = known.map_or(now, |known| known.since);
            let machine = machine.map(str::to_owned);
            fresh.insert(id.clone(), Alert { id, severity, machine, what, advice, since });
        };
        for row in rows {
            for reason in row.why.iter().filter(|reason| reason.id != NOT_LOOKED_AT) {
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
        let advice = "`keyframe cost` says what takes the room, and what would give it back";
        for trouble in further.iter().chain(&space.trouble("space", "the home's file system", advice)) {
            let (machine, what) = (trouble.machine.as_deref(), trouble.what.clone());
            put(trouble.id.clone(), trouble.severity, machine, what, trouble.advice.clone());
        }
        let raised = fresh.iter().filter(|(id, _)| !self.now.contains_key(*id)).map(|(_, alert)| alert.clone());
        let raised = raised.collect();
        self.before.retain(|id, _| !fresh.contains_key(id));
        let settled = *self.settled.get_or_insert(now.checked_add(SETTLING).unwrap_or(now));
        let gone = if now >= settled { std::mem::take(&mut self.before) } else { BTreeMap::new() };
        let cleared = self.now.iter().filter(|(id, _)| !fresh.contains_key(*id)).map(|(_, alert)| alert.clone());
        let changes = Changes { raised, cleared: cleared.chain(gone.into_values()).collect() };
        self.now = fresh;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> (tempfile::TempDir, Rules) {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("policies")).unwrap();
        let rules = Rules::read(home.path(), &home.path().join("serve"), Vec::new(), Timestamp::now());
        (home, rules)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn what_is_still_so_after_a_restart_is_so_since_it_was_and_what_is_not_is_cleared() {
        let (_home, rules) = rules();
        let [still, over] = ["still", "over"].map(|what| Trouble::in_log(what.to_owned()));
        let ids = |alerts: &[Alert]| alerts.iter().map(|alert| alert.what.clone()).collect::<Vec<_>>();
        let mut first = Alerts::default();
        first.look(&[], &rules, &Space::default(), &[still.clone(), over], at(0));
        let mut next = Alerts::after(first.all());
        // It does not know everything at once.
        let changes = next.look(&[], &rules, &Space::default(), &[], at(100));
        assert_eq!(changes, Changes::default());
        let changes = next.look(&[], &rules, &Space::default(), std::slice::from_ref(&still), at(110));
        assert_eq!((ids(&changes.raised), ids(&changes.cleared)), (vec!["still".to_owned()], vec![]));
        assert_eq!(next.all()[0].since, at(0));
        let changes = next.look(&[], &rules, &Space::default(), &[still], at(161));
        assert_eq!((ids(&changes.raised), ids(&changes.cleared)), (vec![], vec!["over".to_owned()]));
        assert_eq!(next.look(&[], &rules, &Space::default(), &[], at(170)).cleared.len(), 1);
    }
}
