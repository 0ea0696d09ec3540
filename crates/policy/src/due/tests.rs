use jiff::tz::TimeZone;
use jiff::{SignedDuration, ToSpan as _};
use proptest::prelude::*;

use super::*;
use crate::window::Window;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn schedule(text: &str) -> Schedule {
    Schedule::parse(text, &TimeZone::get("Europe/Berlin").unwrap()).unwrap()
}

fn decided(text: &str, last: &str, now: &str) -> Due {
    Due::decide(Timetable::new(&schedule(text), Duration::ZERO, ""), Some(at(last)), at(now))
}

#[test]
fn what_was_never_done_is_due_at_once() {
    let now = at("2026-01-15T12:10:00Z");
    let due = Due::decide(Timetable::new(&schedule("daily"), Duration::ZERO, ""), None, now);
    assert_eq!(due, Due::Now { since: now, missed: 0 });
}

#[test]
fn it_is_due_once_and_then_at_the_next_time() {
    let due = decided("hourly", "2026-01-15T11:00:00Z", "2026-01-15T11:59:59Z");
    assert_eq!(due, Due::At { at: at("2026-01-15T12:00:00Z"), waits: None });
    let now = at("2026-01-15T12:00:00Z");
    let due = decided("hourly", "2026-01-15T11:00:00Z", "2026-01-15T12:00:00Z");
    assert_eq!((due, due.stamp(now)), (Due::Now { since: now, missed: 0 }, now));
    // A timer that fires a little early is stamped as if it had been in time.
    assert_eq!(due.stamp(at("2026-01-15T11:59:59.9Z")), now);
    assert_eq!(decided("2020-01-01", "2026-01-15T11:00:00Z", "2026-01-16T12:00:00Z"), Due::Never);
}

#[test]
fn a_months_sleep_is_caught_up_once() {
    let due = decided("hourly", "2026-01-01T00:00:00Z", "2026-02-01T00:10:00Z");
    assert_eq!(due, Due::Now { since: at("2026-02-01T00:00:00Z"), missed: 31 * 24 - 1 });
    // So many are not counted, and the latest is known all the same.
    let due = decided("minutely", "2026-01-01T00:00:00Z", "2026-02-01T00:10:30Z");
    assert_eq!(due, Due::Now { since: at("2026-02-01T00:10:00Z"), missed: Due::COUNTED });
    let due = decided("*:*:*", "2020-01-01T00:00:00Z", "2026-02-01T00:10:30.5Z");
    assert_eq!(due, Due::Now { since: at("2026-02-01T00:10:30Z"), missed: Due::COUNTED });
    let due = decided("yearly UTC", "2020-06-01T00:00:00Z", "2026-02-01T00:10:30Z");
    assert_eq!(due, Due::Now { since: at("2026-01-01T00:00:00Z"), missed: 5 });
}

#[test]
fn a_clock_that_was_put_back_does_nothing_again() {
    // Done at 02:30 by a clock that was then put back by an hour: not again, but tomorrow.
    let due = decided("02:30 UTC", "2026-01-15T02:30:00Z", "2026-01-15T01:40:00Z");
    assert_eq!(due, Due::At { at: at("2026-01-16T02:30:00Z"), waits: Some(Waits::ClockWentBack) });
    // Done by a clock that was years ahead: that is forgotten, nothing is run for it, and the schedule goes on.
    let due = decided("02:30 UTC", "2031-01-15T02:30:00Z", "2026-01-15T01:40:00Z");
    assert_eq!(due, Due::Forget { at: at("2026-01-15T02:30:00Z") });
    // A host whose clock begins in 1970 until it is set: its one run then is caught up by one.
    let due = decided("hourly", "2026-01-15T02:00:00Z", "1970-01-01T00:10:00Z");
    assert_eq!(due, Due::Forget { at: at("1970-01-01T01:00:00Z") });
    assert!(matches!(decided("hourly", "1970-01-01T01:00:00Z", "2026-01-15T02:10:00Z"), Due::Now { .. }));
}

#[test]
fn both_nights_on_which_clocks_are_changed_have_one_run_each() {
    for (from, to) in
        [("2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z"), ("2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z")]
    {
        let (runs, _) = simulated("02:30", at(from), at(to), &[]);
        assert_eq!(runs.len(), 1, "{runs:?}");
    }
}

#[test]
fn windows_put_off_what_is_due_and_what_is_to_come() {
    let windows =
        Windows { allowed: vec![Window::parse("22:00-06:00", &TimeZone::UTC).unwrap()], ..Windows::default() };
    let now = at("2026-01-15T12:00:00Z");
    let night = Due::At { at: at("2026-01-15T22:00:00Z"), waits: Some(Waits::Window) };
    assert_eq!(
        decided("hourly", "2026-01-15T05:00:00Z", "2026-01-15T12:00:00Z").within(&windows, Work::Backup, now),
        night
    );
    assert_eq!(
        decided("hourly", "2026-01-15T12:00:00Z", "2026-01-15T12:00:00Z").within(&windows, Work::Backup, now),
        night
    );
    let due = decided("hourly", "2026-01-15T05:00:00Z", "2026-01-15T12:00:00Z");
    assert_eq!(due.within(&windows, Work::Snapshot, now), due);
}

#[test]
fn jitter_is_a_machines_own_and_constant() {
    let (hourly, most) = (schedule("hourly"), Duration::from_secs(1800));
    let offsets: Vec<u64> =
        (0..200).map(|vm| Timetable::new(&hourly, most, &format!("vm{vm}")).offset().as_secs()).collect();
    assert!(offsets.iter().all(|offset| *offset <= 1800));
    // Spread: of ten parts each has some.
    assert!((0..10).all(|part| offsets.iter().filter(|offset| **offset / 181 == part).count() >= 8), "{offsets:?}");
    let one = Timetable::new(&hourly, most, "vm7");
    assert_eq!(one.offset(), Timetable::new(&hourly, most, "vm7").offset());
    let next = one.next_after(at("2026-01-15T12:00:00Z")).unwrap();
    assert_eq!(one.next_after(next).unwrap().duration_since(next), SignedDuration::from_hours(1));
}

/// A host that asks whenever it is told to, and whose clock jumps at times: when it ran, by the clock and by true time.
fn simulated(
    text: &str,
    from: Timestamp,
    to: Timestamp,
    jumps: &[(Timestamp, i64)],
) -> (Vec<Timestamp>, Vec<Timestamp>) {
    let (schedule, mut runs, mut true_runs) = (schedule(text), Vec::new(), Vec::new());
    let timetable = Timetable::new(&schedule, Duration::ZERO, "");
    let (mut last, mut real) = (Some(from), from);
    let wrong_at = |real: Timestamp| -> i64 { jumps.iter().filter(|(at, _)| *at <= real).map(|(_, by)| by).sum() };
    while real < to {
        let clock = real + wrong_at(real).seconds();
        match Due::decide(timetable, last, clock) {
            due @ Due::Now { .. } => {
                runs.push(clock);
                true_runs.push(real);
                last = Some(due.stamp(clock));
            }
            Due::Forget { .. } => last = Some(clock),
            // It sleeps a minute at most, so that it sees a clock that was set.
            Due::At { at, .. } => {
                let until = (at - (clock - real)).min(real + 60.seconds());
                real = until.max(real + 1.second());
            }
            Due::Never => break,
        }
    }
    (runs, true_runs)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn clocks_that_jump_make_no_storm_and_no_silence(
        text in prop::sample::select(vec!["hourly", "*:0/20", "02:30", "Mon..Fri 0/6:15"]),
        jumps in prop::collection::vec((0_i64..12 * 86_400, prop_oneof![-7200_i64..7200, -40 * 86_400_i64..40 * 86_400]), 0..4),
    ) {
        let from = at("2026-03-25T00:00:00Z");
        let to = from + (20 * 24).hours();
        let all: Vec<_> = jumps.iter().map(|(after, by)| (from + after.seconds(), *by)).collect();
        let (_, ran) = simulated(text, from, to, &all);
        // Each jump makes one run more, at most, besides those that are due by the clock as it goes on between jumps.
        let mut edges: Vec<_> = all.iter().map(|(at, _)| *at).chain([from, to]).filter(|at| *at <= to).collect();
        edges.sort();
        let due: usize = edges.windows(2).map(|edge| {
            let wrong: i64 = all.iter().filter(|(at, _)| *at <= edge[0]).map(|(_, by)| by).sum();
            let end = edge[1] + wrong.seconds();
            schedule(text).after(edge[0] + wrong.seconds()).take_while(|at| *at <= end).count()
        }).sum();
        prop_assert!(ran.len() <= due + all.len(), "{} {due}", ran.len());
        // No storm: of two runs within five minutes there is a jump between them, or one that the first makes up for.
        for pair in ran.windows(2) {
            let near = pair[1].duration_since(pair[0]) < SignedDuration::from_mins(5);
            let jumped = all.iter().any(|(at, _)| pair[0] - 61.seconds() <= *at && *at <= pair[1]);
            prop_assert!(!near || jumped, "{pair:?}");
        }
        // No silence: what is due is run, at the latest two of its longest intervals after the last jump.
        let last_jump = all.iter().map(|(at, _)| *at).max().unwrap_or(from);
        let gap = schedule(text).longest_gap(from).unwrap();
        let patience = last_jump + SignedDuration::try_from(gap * 2).unwrap() + 1.hour();
        if patience < to {
            prop_assert!(ran.iter().any(|run| *run > last_jump && *run <= patience), "{ran:?}");
        }
        prop_assert!(ran.windows(2).all(|pair| pair[0] < pair[1]), "{ran:?}");
    }
}
