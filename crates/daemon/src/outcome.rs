//! What follows from how a command ended.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::commands::backoff;
use crate::fleet::SeenSnapshot;
use crate::hands::{Look, Outcome};
use crate::job::{Job, Made, State, Step};
use crate::scheduler::Key;

/// How often a job is tried.
const ATTEMPTS: u32 = 8;
/// How long until a job that found its machine at work is tried again.
const WHEN_BUSY: Duration = Duration::from_secs(20);
/// How long somebody who asked for something waits for a machine that is at work.
const BUSY_FOR: Duration = Duration::from_secs(600);

/// Exit statuses of the command line.
mod exit {
    pub const DONE: i32 = 0;
    pub const FAILED: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const INCOMPLETE: i32 = 3;
    pub const BUSY: i32 = 11;
    pub const KILLED: i32 = 137;
}

/// What happens next to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Its next step.
    GoOn,
    /// The same step, after a while.
    Again(Duration),
    /// Nothing any more.
    Over(State),
}

/// Takes down how a command ended, and says what follows.
pub fn settle(job: &mut Job, look: Look, now: Timestamp) -> Next {
    let outcome = match look {
        Look::AtWork => return Next::GoOn,
        Look::Vanished if job.cancelling => {
            job.what = Some("cancelled".to_owned());
            return Next::Over(State::Cancelled);
        }
        Look::Vanished => return vanished(job),
        Look::Ended(outcome) => outcome,
    };
    let next = ended(job, &outcome, now);
    if job.cancelling && next != Next::Over(State::Cancelled) && !matches!(next, Next::Over(_)) {
        job.what = Some("cancelled".to_owned());
        return Next::Over(State::Cancelled);
    }
    next
}

fn ended(job: &mut Job, outcome: &Outcome, now: Timestamp) -> Next {
    job.exit = Some(outcome.exit);
    let Some(step) = job.steps.first().copied() else { return Next::Over(verdict(job)) };
    match (outcome.exit, step) {
        (exit::DONE | exit::INCOMPLETE, Step::Look) => looked(job, outcome.document.as_ref()),
        (exit::DONE | exit::INCOMPLETE, _) => {
            job.incomplete |= outcome.exit == exit::INCOMPLETE;
            note(job, step, outcome);
            step_done(job, step)
        }
        (exit::FAILED, _) if is_proof(job, step) && outcome.document.as_ref().is_some_and(is_verdict) => {
            job.refuted = true;
            note(job, step, outcome);
            job.what = Some(why_refuted(outcome.document.as_ref()));
            step_done(job, step)
        }
        _ if job.cancelling => {
            let killed = outcome.exit == exit::KILLED;
            job.what = Some(if killed { "cancelled: it was killed" } else { "cancelled" }.to_owned());
            Next::Over(State::Cancelled)
        }
        (exit::BUSY, _) => busy(job, outcome, now),
        _ => failed(job, outcome),
    }
}

/// How a job that has no step left ended.
#[must_use]
pub fn verdict(job: &Job) -> State {
    if job.refuted {
        State::Failed
    } else if job.incomplete {
        State::Incomplete
    } else {
        State::Done
    }
}

/// Goes on behind a step for which there was nothing to do.
pub fn passed_over(job: &mut Job, snapshots: &[SeenSnapshot]) {
    if job.steps.first() == Some(&Step::Main) && job.kind() == "snapshot" {
        // An attempt that nobody saw the end of took it.
        let name = job.snapshot_name();
        if let Some(taken) = snapshots.iter().find(|one| one.name == name) {
            job.made = Some(Made { id: taken.id.clone(), state_of: taken.created, took_ms: None });
        }
    }
    job.steps.remove(0);
}

/// The duty of which a job that is over is the latest success; of drills, the latest that came to a verdict.
#[must_use]
pub fn achieves(job: &Job) -> Option<Key> {
    let key = match (job.kind(), job.backup(), job.state) {
        ("backup", Some(name), State::Done | State::Incomplete) if job.made.is_some() => format!("backup:{name}"),
        // What somebody asks for is the policy's drill, or the test of any old snapshot.
        ("test", ..) if job.duty().is_none() => return None,
        ("drill" | "test", _, State::Done | State::Incomplete | State::Failed) if job.made.is_some() => {
            "drill".to_owned()
        }
        ("snapshot", _, State::Done | State::Incomplete) if job.made.is_some() => "snapshot".to_owned(),
        _ => return None,
    };
    Some((job.machine.clone(), key))
}

fn is_proof(job: &Job, step: Step) -> bool {
    matches!(step, Step::Drill(_)) || matches!(job.kind(), "drill" | "test")
}

/// Whether a document tells how a proof ended, rather than why there was none.
fn is_verdict(document: &Value) -> bool {
    document.get("error").is_none()
}

fn step_done(job: &mut Job, step: Step) -> Next {
    job.steps.remove(0);
    if let Step::Drill(number) = step {
        // As many as the policy has: the one behind the last is nothing to do.
        job.steps.insert(0, Step::Drill(number.saturating_add(1)));
    }
    if job.steps.is_empty() { Next::Over(verdict(job)) } else { Next::GoOn }
}

fn looked(job: &mut Job, document: Option<&Value>) -> Next {
    job.steps.remove(0);
    let tag = job.point_tag();
    let has_tag = |point: &&Value| point["tags"].as_array().is_some_and(|tags| tags.iter().any(|one| *one == tag));
    let point = document.and_then(|document| document["points"].as_array()?.iter().find(has_tag));
    if let Some(point) = point {
        job.made = made(point);
        job.what = Some("the point was there already: its command was not seen to end".to_owned());
        if job.steps.first() == Some(&Step::Main) {
            job.steps.remove(0);
        }
    }
    Next::GoOn
}

fn vanished(job: &mut Job) -> Next {
    job.what = Some("the command was ended from outside, or the host went down".to_owned());
    // What somebody asked for may have been done, and is not done again without them.
    if job.duty().is_none() {
        return Next::Over(State::Failed);
    }
    again(job)
}

fn again(job: &mut Job) -> Next {
    job.failures = job.failures.saturating_add(1);
    if job.attempt >= ATTEMPTS || job.failures >= ATTEMPTS {
        return Next::Over(State::Failed);
    }
    // It may have made its point all the same: killed, or with nobody to tell.
    if job.steps.first() == Some(&Step::Main) && job.kind() == "backup" && job.duty().is_some() {
        job.steps.insert(0, Step::Look);
    }
    let after = backoff(job.attempt);
    job.attempt += 1;
    Next::Again(after)
}

fn busy(job: &mut Job, outcome: &Outcome, now: Timestamp) -> Next {
    job.what = outcome.error.clone();
    let patient = job.began.is_none_or(|began| now.duration_since(began).unsigned_abs() < BUSY_FOR);
    match (job.duty(), patient) {
        (_, true) => Next::Again(WHEN_BUSY),
        (Some(_), false) => again(job),
        (None, false) => Next::Over(State::Failed),
    }
}

fn failed(job: &mut Job, outcome: &Outcome) -> Next {
    let told = outcome.document.as_ref().and_then(|document| document["error"].as_str());
    let what = outcome.error.as_deref().or(told);
    job.what = Some(what.map_or_else(|| format!("it ended with status {}", outcome.exit), str::to_owned));
    if job.duty().is_none() || outcome.exit == exit::USAGE {
        return Next::Over(State::Failed);
    }
    again(job)
}

/// What a command made, and what is told of it.
fn note(job: &mut Job, step: Step, outcome: &Outcome) {
    let Some(document) = &outcome.document else { return };
    let began = job.began;
    match (job.kind(), step) {
        ("snapshot", Step::Main) => {
            let state_of = began.unwrap_or(job.due);
            job.made = document["id"].as_str().map(|id| Made { id: id.to_owned(), state_of, took_ms: None });
            let consistency = document["consistency"].as_str().unwrap_or_default();
            job.what = document["pause_ms"].as_f64().map(|pause| format!("{consistency}, paused {pause:.1} ms"));
        }
        ("backup", Step::Main) => {
            job.made = made(document);
            let consistency = document["consistency"].as_str().unwrap_or_default();
            let stored = document["totals"]["stored_bytes"].as_u64().map(keyframe_types::ByteLen::from_bytes);
            job.what = stored.map(|stored| format!("{consistency}, {stored} stored"));
        }
        ("drill" | "test", Step::Main | Step::Drill(_)) => {
            let fallback = began.unwrap_or(job.due);
            let took = took_ms(document).max(job.made.as_ref().and_then(|made| made.took_ms));
            job.made = Some(Made { id: proof_id(document), state_of: fallback, took_ms: took });
            if !job.refuted {
                job.what = Some(took.map_or_else(
                    || "it came back".to_owned(),
                    |ms| format!("it came back within {:.1} s", seconds(ms)),
                ));
            }
        }
        _ => {}
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a drill, shown with one digit of a second")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

fn made(document: &Value) -> Option<Made> {
    let id = document["id"].as_str()?.to_owned();
    let state_of = document["state_of"].as_str()?.parse().ok()?;
    Some(Made { id, state_of, took_ms: None })
}

/// The directory of a drill's evidence, or a test's snapshot.
fn proof_id(document: &Value) -> String {
    let named = document["entry"]["document"].as_str().and_then(|path| path.split('/').next());
    let snapshot = document["tests"][0]["id"].as_str();
    named.or(snapshot).unwrap_or_default().to_owned()
}

/// How long until the machine was back and all probes satisfied, by the quickest way; with the time that restoring took.
pub(crate) fn took_ms(document: &Value) -> Option<u64> {
    let restored = document["restored_ms"].as_f64().unwrap_or(0.0);
    let ways = [&document["resume"], &document["cold"], &document["tests"][0]];
    let took = ways.iter().filter(|way| way["verdict"] == "passed").filter_map(|way| way["total_ms"].as_f64());
    let quickest = took.fold(f64::INFINITY, f64::min);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "finite milliseconds, not negative")]
    quickest.is_finite().then(|| (restored + quickest).max(0.0) as u64)
}

fn why_refuted(document: Option<&Value>) -> String {
    let Some(document) = document else { return "it did not come back".to_owned() };
    if let Some(trouble) = document["trouble"].as_str() {
        return format!("it could not be restored: {trouble}");
    }
    let ways = [&document["resume"], &document["cold"], &document["tests"][0]];
    let checks = ways.iter().filter_map(|way| way["checks"].as_array()).flatten();
    let mut failed = checks.filter(|check| check["passed"] == false);
    failed.next().map_or_else(
        || "it did not come back".to_owned(),
        |check| {
            format!(
                "probe {} failed: {}",
                check["name"].as_str().unwrap_or("?"),
                check["seen"].as_str().unwrap_or_default()
            )
        },
    )
}
