//! Which points are kept: the rule of `keyframe_types::Retention`, for each name on its own.

use std::collections::BTreeMap;

use keyframe_types::{Kept, Retention, Timestamp};
use serde::Serialize;

use crate::crypto::Rights;
use crate::error::{Error, Result};
use crate::ids::{ObjectId, ObjectKind};
use crate::mark::{Standings, Statement, mark, standings};
use crate::point::Point;
use crate::repository::Repository;

/// What is to become of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The point.
    pub id: ObjectId,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Why it is kept; it is forgotten when there is no reason.
    pub reasons: Vec<&'static str>,
}

/// Decides on points that are sorted from the oldest to the latest.
#[must_use]
pub fn decide(retention: &Retention, points: &[Point]) -> Vec<Decision> {
    let mut by_name: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
    points.iter().for_each(|point| by_name.entry(&point.name).or_default().push(point));
    by_name.into_values().flat_map(|history| decide_history(retention, &history)).collect()
}

/// The same where something is missing in some of them: those take no whole one's place. What the rule keeps of all is kept, and what
/// it keeps of the whole ones alone.
#[must_use]
pub fn decide_for_whole(retention: &Retention, points: &[Point], is_whole: impl Fn(&Point) -> bool) -> Vec<Decision> {
    let mut decisions = decide(retention, points);
    let whole: Vec<Point> = points.iter().filter(|point| is_whole(point)).cloned().collect();
    if whole.len() < points.len() {
        let among_whole = decide(retention, &whole);
        for decision in &mut decisions {
            let own = among_whole.iter().find(|other| other.id == decision.id);
            for reason in own.into_iter().flat_map(|own| &own.reasons) {
                if !decision.reasons.contains(reason) {
                    decision.reasons.push(reason);
                }
            }
        }
    }
    decisions
}

fn decide_history(retention: &Retention, history: &[&Point]) -> Vec<Decision> {
    let looked_at: Vec<_> = history.iter().map(|point| Kept { created: point.created, tags: &point.tags }).collect();
    let decided = history.iter().zip(retention.reasons(&looked_at));
    decided
        .map(|(point, reasons)| Decision { id: point.id, name: point.name.clone(), created: point.created, reasons })
        .collect()
}

/// Adds a reason for what is held or locked.
pub fn keep_marked(decisions: &mut [Decision], standings: &Standings, now: Timestamp) {
    for decision in decisions {
        decision.reasons.extend(standings.get(&decision.id).and_then(|standing| standing.kept_as(now)));
    }
}

/// Forgets points: from then on they do not exist. Their space is freed by a prune.
///
/// # Errors
/// [`Error::Usage`] for one that is held or locked: none is forgotten then, nor while a mark cannot be read, which could be a
/// lock. [`Error::NotAllowed`] without all rights; [`Error::Store`].
pub fn forget(repository: &Repository, points: &[ObjectId]) -> Result<()> {
    repository.keys().require(Rights::Full, "forget points")?;
    refuse_kept(repository, points)?;
    let said = points.iter().map(|id| mark(repository, *id, Statement::Forgetting)).collect::<Result<Vec<_>>>()?;
    // Once more: a mark that was put meanwhile is seen here, or sees ours.
    let forgotten = refuse_kept(repository, points).and_then(|()| {
        points.iter().try_for_each(|id| Ok(repository.store().delete(&ObjectKind::Point.name(*id)?)?))
    });
    for mark in said {
        // One that stays goes with a prune, and counts for an hour at most.
        let _ = repository.store().delete(&ObjectKind::Mark.name(mark.id)?);
    }
    forgotten
}

fn refuse_kept(repository: &Repository, points: &[ObjectId]) -> Result<()> {
    let (standings, damaged) = standings(repository)?;
    if let Some((_, error)) = damaged.into_iter().next() {
        return Err(error);
    }
    let now = Timestamp::now();
    let kept = |id: &&ObjectId| standings.get(id).and_then(|standing| standing.kept_as(now)).is_some();
    match points.iter().find(kept) {
        Some(id) => Err(Error::Usage { what: format!("point {id} is held or locked") }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::Totals;

    fn point(name: &str, time: &str, tags: &[&str]) -> Point {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let mut point = Point::new(name, tags, Vec::new(), Totals::default()).unwrap();
        point.created = serde_json::from_value(serde_json::json!(time)).unwrap();
        point
    }

    fn kept(retention: &Retention, points: &[Point]) -> Vec<String> {
        let kept = decide(retention, points).into_iter().filter(|decision| !decision.reasons.is_empty());
        kept.map(|decision| format!("{} {}", decision.name, decision.created.to_string().get(..13).unwrap())).collect()
    }

    #[test]
    fn the_latest_of_each_period_is_kept() {
        let times = [
            "2024-12-31T23:00:00Z",
            "2025-12-28T10:00:00Z",
            "2025-12-29T10:00:00Z",
            "2026-01-01T08:00:00Z",
            "2026-01-01T09:00:00Z",
            "2026-01-01T09:30:00Z",
        ];
        let points: Vec<_> = times.iter().map(|time| point("db", time, &[])).collect();
        let keep = |retention: Retention| kept(&retention, &points).len();
        assert_eq!(keep(Retention { last: 2, ..Default::default() }), 2);
        assert_eq!(keep(Retention { hourly: 9, ..Default::default() }), 5);
        assert_eq!(keep(Retention { daily: 2, ..Default::default() }), 2);
        assert_eq!(keep(Retention { daily: 9, ..Default::default() }), 4);
        // 29 December 2025 is a Monday: with 1 January in one week.
        assert_eq!(keep(Retention { weekly: 9, ..Default::default() }), 3);
        assert_eq!(keep(Retention { monthly: 9, ..Default::default() }), 3);
        assert_eq!(keep(Retention { yearly: 2, ..Default::default() }), 2);
        assert_eq!(
            kept(&Retention { yearly: 2, ..Default::default() }, &points),
            ["db 2025-12-29T10", "db 2026-01-01T09"]
        );
    }

    #[test]
    fn what_lacks_something_takes_no_whole_ones_place() {
        let times = ["2026-01-01T08:00:00Z", "2026-01-01T09:00:00Z", "2026-01-02T08:00:00Z", "2026-01-02T09:00:00Z"];
        let points: Vec<_> = times.iter().map(|time| point("db", time, &[])).collect();
        let retention = Retention { daily: 2, ..Default::default() };
        let kept = |lacking: &[usize]| {
            let is_whole = |point: &Point| lacking.iter().all(|number| points[*number].id != point.id);
            let decisions = decide_for_whole(&retention, &points, is_whole);
            (0..points.len()).filter(|number| !decisions[*number].reasons.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(kept(&[]), [1, 3]);
        assert_eq!(kept(&[1]), [0, 1, 3], "the whole one of that day stays, too");
        assert_eq!(kept(&[2]), [1, 3]);
        assert_eq!(kept(&[2, 3]), [1, 3], "that day has no whole one");
    }

    #[test]
    fn names_have_histories_of_their_own_and_tags_keep() {
        let points = [
            point("a", "2026-01-01T00:00:00Z", &["x"]),
            point("b", "2026-01-02T00:00:00Z", &[]),
            point("a", "2026-01-03T00:00:00Z", &[]),
        ];
        let retention = Retention { last: 1, tags: vec!["x".to_owned()], ..Default::default() };
        assert_eq!(kept(&retention, &points).len(), 3);
        assert_eq!(kept(&Retention { last: 1, ..Default::default() }, &points).len(), 2);
        assert!(Retention::default().is_empty());
    }
}
