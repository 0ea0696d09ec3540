//! What follows from how a command ended.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::commands::{backoff, taken};
use crate::fleet::{SeenSnapshot, Snapshots};
use crate::hands::{Look, Outcome};
use crate::job::{Job, Made, Share, State, Step, came_back};
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
        Look::Vanished if job.cancelling => return cancelled(job, "cancelled"),
        Look::Vanished => return vanished(job),
        Look::Ended(outcome) => outcome,
    };
    let next = ended(job, &outcome, now);
    if job.cancelling && !matches!(next, Next::Over(_)) {
        return cancelled(job, "cancelled");
    }
    next
}

/// Ends by somebody's wish. That something did not come back stays said, whoever wants what after that.
fn cancelled(job: &mut Job, what: &str) -> Next {
    if job.refuted {
        job.steps.clear();
        return Next::Over(State::Failed);
    }
    job.what = Some(what.to_owned());
    Next::Over(State::Cancelled)
}

fn ended(job: &mut Job, outcome: &Outcome, now: Timestamp) -> Next {
    job.exit = Some(outcome.exit);
    let Some(step) = job.steps.first().copied() else { return Next::Over(verdict(job)) };
    match (outcome.exit, step) {
        (exit::DONE | exit::INCOMPLETE, Step::Look) => looked(job, outcome.document.as_ref()),
        (exit::INCOMPLETE, Step::Drill(_)) if untested(outcome).is_some() => {
            job.what = untested(outcome);
            again(job)
        }
        (exit::DONE | exit::INCOMPLETE, _) => {
            if outcome.exit == exit::INCOMPLETE {
                note_incomplete(job, step, outcome);
            }
            note(job, step, outcome);
            step_done(job, step)
        }
        (exit::FAILED, _) if is_proof(job, step) && outcome.document.as_ref().is_some_and(is_verdict) => {
            job.refuted = true;
            note(job, step, outcome);
            job.what = Some(why_refuted(job, outcome.document.as_ref()));
            step_done(job, step)
        }
        _ if job.cancelling => {
            cancelled(job, if outcome.exit == exit::KILLED { "cancelled: it was killed" } else { "cancelled" })
        }
        (exit::BUSY, _) => busy(job, outcome, now),
        _ => failed(job, outcome),
    }
}

/// What the exit status of what is incomplete means. A point or a snapshot in which something is missing is so; where something did not
/// work behind it, all of it is there.
fn note_incomplete(job: &mut Job, step: Step, outcome: &Outcome) {
    let document = outcome.document.as_ref();
    match step {
        Step::Main if job.kind() == "backup" && document.is_some_and(|document| document["whole"] == true) => {
            job.leave_untidy(
                "letting its snapshot go again",
                document.and_then(|document| document["notes"][0].as_str()),
            );
        }
        Step::Main | Step::Look | Step::Drill(_) => job.incomplete = true,
        Step::Lock | Step::Thin | Step::Expire | Step::Prune => {
            job.leave_untidy(step.what(), outcome.error.as_deref());
        }
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
pub fn passed_over(job: &mut Job, snapshots: &Snapshots) {
    if job.steps.first() == Some(&Step::Main) && job.kind() == "snapshot" {
        // An attempt that nobody saw the end of took them.
        let made = |taken: &SeenSnapshot| Made::new(taken.id.clone(), taken.created);
        let all: Vec<(String, Made)> =
            taken(job, snapshots).into_iter().flatten().map(|(machine, taken)| (machine, made(taken))).collect();
        for (machine, made) in all {
            take_down(job, &machine, Share { made: Some(made), refuted: false });
        }
    }
    job.steps.remove(0);
}

/// What a job came to for one of its machines.
fn take_down(job: &mut Job, machine: &str, share: Share) {
    if machine == job.machine {
        job.made.clone_from(&share.made);
    }
    if let Some(of_machine) = job.together.as_mut().and_then(|together| together.machines.get_mut(machine)) {
        *of_machine = share;
    }
}

/// For each machine of a job the duty of which it is the latest success, of drills the latest that came to a verdict, and the job
/// as that machine has it.
pub fn achievements(job: &Job) -> impl Iterator<Item = (Key, Job)> {
    let achievement = |machine: &str| {
        let seen = job.seen_from(machine);
        Some((achieves(&seen)?, seen))
    };
    job.machines().filter_map(achievement)
}

fn achieves(job: &Job) -> Option<Key> {
    // What was made is there, whatever becomes of what is done behind it.
    let key = match (job.kind(), job.backup(), job.state) {
        ("backup", Some(name), _) if job.made.is_some() => format!("backup:{name}"),
        // What somebody asks for is the policy's drill, or the test of any old snapshot.
        ("test", ..) if job.duty().is_none() => return None,
        ("drill" | "test", _, State::Done | State::Incomplete | State::Failed) if job.made.is_some() => {
            "drill".to_owned()
        }
        ("snapshot", ..) if job.made.is_some() => "snapshot".to_owned(),
        _ => return None,
    };
    Some((job.machine.clone(), key))
}

/// Why one of the snapshots that were to be tested was not.
fn untested(outcome: &Outcome) -> Option<String> {
    let first = outcome.document.as_ref()?["not_tested"].as_array()?.first()?;
    let (snapshot, why) = (first["snapshot"].as_str().unwrap_or("a snapshot"), first["error"].as_str().unwrap_or("?"));
    Some(format!("{snapshot} was not tested: {why}"))
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
    if let Some(made) = point.and_then(made) {
        of_all(job, &made);
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
        return given_up(job);
    }
    // It may have made its point all the same: killed, or with nobody to tell.
    if job.steps.first() == Some(&Step::Main) && job.kind() == "backup" && job.duty().is_some() {
        job.steps.insert(0, Step::Look);
    }
    let after = backoff(job.attempt);
    job.attempt += 1;
    Next::Again(after)
}

/// Tries no more. What was made stays made: only what was to be done behind it was not.
fn given_up(job: &mut Job) -> Next {
    let behind = job.steps.first().copied().filter(|step| !matches!(step, Step::Look | Step::Main | Step::Drill(_)));
    match behind {
        Some(step) if job.made.is_some() => {
            let why = job.what.take();
            job.leave_untidy(step.what(), why.as_deref());
            job.steps.clear();
            Next::Over(verdict(job))
        }
        _ => Next::Over(State::Failed),
    }
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
        return given_up(job);
    }
    again(job)
}

/// One point of all machines.
fn of_all(job: &mut Job, made: &Made) {
    let machines: Vec<String> = job.machines().map(str::to_owned).collect();
    for machine in machines {
        take_down(job, &machine, Share { made: Some(made.clone()), refuted: false });
    }
}

/// What a command made, and what is told of it.
fn note(job: &mut Job, step: Step, outcome: &Outcome) {
    let Some(document) = &outcome.document else { return };
    match (job.kind(), step) {
        ("snapshot", Step::Main) => note_snapshots(job, document),
        ("backup", Step::Main) => {
            if let Some(made) = made(document) {
                of_all(job, &made);
            }
            let stored = document["totals"]["stored_bytes"].as_u64().map(keyframe_types::ByteLen::from_bytes);
            job.what = stored.map(|stored| format!("{}, {stored} stored", consistency(job, document)));
        }
        ("drill" | "test", Step::Main | Step::Drill(_)) => note_proofs(job, document),
        _ => {}
    }
}

fn note_snapshots(job: &mut Job, document: &Value) {
    let state_of = job.began.unwrap_or(job.due);
    let (mut taken, mut pauses) = (Vec::new(), Vec::new());
    for machine in job.machines() {
        let part = part(job, document, machine);
        let made = part["id"].as_str().map(|id| Made::new(id.to_owned(), state_of));
        taken.push((machine.to_owned(), Share { made, refuted: false }));
        pauses.extend(part["pause_ms"].as_f64());
    }
    let at_most = if taken.len() > 1 { " at most" } else { "" };
    let longest = pauses.into_iter().reduce(f64::max);
    job.what = longest.map(|pause| format!("{}, paused {pause:.1} ms{at_most}", consistency(job, document)));
    taken.into_iter().for_each(|(machine, share)| take_down(job, &machine, share));
}

fn note_proofs(job: &mut Job, document: &Value) {
    let state_of = job.began.unwrap_or(job.due);
    let mut slowest = None;
    let machines: Vec<String> = job.machines().map(str::to_owned).collect();
    for machine in machines {
        let part = part(job, document, &machine);
        // Several proofs of one job: the longest of them counts, and one that failed.
        let before = job.seen_from(&machine);
        let took = took_ms(part).max(before.made.as_ref().and_then(|made| made.took_ms));
        let made = match part {
            // Of snapshots that were tested, it had none.
            Value::Null => before.made,
            part => Some(Made { took_ms: took, ..Made::new(proof_id(part), state_of) }),
        };
        let refuted = job.together.is_some() && (before.refuted || part["verdict"] == "failed");
        slowest = slowest.max(took);
        take_down(job, &machine, Share { made, refuted });
    }
    if !job.refuted {
        job.what = Some(slowest.map_or_else(|| "it came back".to_owned(), came_back));
    }
}

/// What a document says of one of a job's machines.
fn part<'d>(job: &Job, document: &'d Value, machine: &str) -> &'d Value {
    if job.together.is_none() {
        return document.get("tests").map_or(document, |tests| &tests[0]);
    }
    let is_of = |part: &&Value| {
        let of_point = part["point"].as_str().and_then(|point| point.split('@').next());
        part["vm"].as_str().or(of_point) == Some(machine)
    };
    let parts = ["machines", "tests"].into_iter().filter_map(|name| document[name].as_array()).flatten();
    parts.into_iter().find(is_of).unwrap_or(&Value::Null)
}

/// The consistency that was achieved; of several machines each that there is.
fn consistency(job: &Job, document: &Value) -> String {
    let all = job.machines().filter_map(|machine| part(job, document, machine)["consistency"].as_str());
    all.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" and ")
}

fn made(document: &Value) -> Option<Made> {
    let id = document["id"].as_str()?.to_owned();
    let state_of = document["state_of"].as_str()?.parse().ok()?;
    Some(Made::new(id, state_of))
}

/// The directory of a drill's evidence, or a test's snapshot.
fn proof_id(part: &Value) -> String {
    let named = part["entry"]["document"].as_str().and_then(|path| path.split('/').next());
    named.or(part["id"].as_str()).unwrap_or_default().to_owned()
}

/// How long until the machine was back and all probes satisfied, by the quickest way; with the time that restoring took.
pub(crate) fn took_ms(part: &Value) -> Option<u64> {
    let restored = part["restored_ms"].as_f64().unwrap_or(0.0);
    let took = ways(part).filter(|way| way["verdict"] == "passed").filter_map(|way| way["total_ms"].as_f64());
    let quickest = took.fold(f64::INFINITY, f64::min);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "finite milliseconds, not negative")]
    quickest.is_finite().then(|| (restored + quickest).max(0.0) as u64)
}

/// The ways on which it was brought back: of a drill two, of a test the one that it is.
fn ways(part: &Value) -> impl Iterator<Item = &Value> {
    let of_test = part.get("checks").map(|_| part);
    of_test.into_iter().chain(["resume", "cold"].into_iter().filter_map(|way| part.get(way)))
}

fn why_refuted(job: &Job, document: Option<&Value>) -> String {
    let unknown = || "it did not come back".to_owned();
    let Some(document) = document else { return unknown() };
    let parts = || job.machines().map(|machine| (machine, part(job, document, machine)));
    let why = |part: &Value| {
        if let Some(trouble) = part["trouble"].as_str() {
            return Some(format!("it could not be restored: {trouble}"));
        }
        let checks = ways(part).filter_map(|way| way["checks"].as_array()).flatten();
        let failed = checks.into_iter().find(|check| check["passed"] == false)?;
        let (name, seen) = (failed["name"].as_str().unwrap_or("?"), failed["seen"].as_str().unwrap_or_default());
        Some(format!("probe {name} failed: {seen}"))
    };
    let whose = |machine: &str| if job.together.is_some() { format!("{machine}: ") } else { String::new() };
    let mut all = parts().filter_map(|(machine, part)| Some(format!("{}{}", whose(machine), why(part)?)));
    all.next().unwrap_or_else(unknown)
}
