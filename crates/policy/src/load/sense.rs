//! Whether what a policy says makes sense together: promises that its schedules cannot keep, rules that keep something else than
//! they seem to.

use std::time::Duration;

use jiff::Timestamp;
use keyframe_types::{Retention, TimeToLive};

use super::decode::Promises;
use super::table::{Read, Source, Span, Table};
use crate::calendar::Schedule;
use crate::policy::{Keep, Policy};
use crate::window::Work;

const DAY: u64 = 86_400;

/// The kinds of a rule, how many it keeps of each, and how long one of them is.
fn kinds(rule: &Retention) -> [(&'static str, usize, Duration); 5] {
    let days = |days: u64| Duration::from_secs(days * DAY);
    [
        ("hourly", rule.hourly, Duration::from_secs(3600)),
        ("daily", rule.daily, days(1)),
        ("weekly", rule.weekly, days(7)),
        ("monthly", rule.monthly, days(30)),
        ("yearly", rule.yearly, days(365)),
    ]
}

/// Spans as people say them: the largest unit that leaves little of a rest.
pub(super) fn spoken(span: Duration) -> String {
    let seconds = span.as_secs();
    let (unit, each) = match seconds {
        0..120 => ("s", 1),
        120..7200 => ("min", 60),
        7200..172_800 => ("h", 3600),
        _ => ("days", DAY),
    };
    let tenths = (seconds * 10 + each / 2) / each;
    let rest = if tenths.is_multiple_of(10) { String::new() } else { format!(".{}", tenths % 10) };
    format!("{}{rest} {unit}", tenths / 10)
}

/// A time to live that ends before what the rule is to keep is that old.
pub(super) fn keep_within(table: &Table<'_, '_>, rule: &Retention, ttl: &Read<TimeToLive>) {
    let lives = ttl.value.duration();
    let longest = kinds(rule).into_iter().filter(|(_, count, _)| *count > 0);
    // The first of a kind is the present period's: with one monthly nothing is older than a month.
    let mut beyond =
        longest.filter(|(_, count, each)| each.saturating_mul(u32::try_from(count - 1).unwrap_or(u32::MAX)) >= lives);
    if let Some((kind, count, _)) = beyond.next_back() {
        let what = format!(
            "{}.ttl ends what {kind} = {count} would keep: nothing gets older than {}",
            table.path,
            spoken(lives)
        );
        table.source.warning(&ttl.span, what, format!("make ttl longer, or take {kind} out of keep"));
    }
}

/// A rule that counts periods in which the schedule is often not due.
pub(super) fn keep_of(table: &Table<'_, '_>, rule: &Retention, schedule: &Schedule, now: Timestamp) {
    let Some(mean) = schedule.mean_gap(now) else {
        return;
    };
    for (kind, count, each) in kinds(rule).into_iter().filter(|(_, count, _)| *count > 1) {
        if mean > each.mul_f64(1.5) {
            let reach = mean.saturating_mul(u32::try_from(count - 1).unwrap_or(u32::MAX));
            let what = format!(
                "{}.keep.{kind} = {count} reaches back {}: the schedule is due every {} only, and {kind} counts those that have any",
                table.path,
                spoken(reach),
                spoken(mean)
            );
            table.source.warning(&table.span, what, "count in larger periods, or make the schedule denser");
        }
    }
}

/// What a policy promises, against what it does.
pub(super) fn policy(source: &Source<'_>, at: &Span, policy: &Policy, promises: &Promises, now: Timestamp) {
    let name = format!("policy.{}", policy.name);
    if policy.snapshot.is_none() && policy.backups.is_empty() {
        let what = format!("{name} makes neither snapshots nor backups: its machines are not protected");
        source.warning(
            at,
            what,
            format!("add [{name}.snapshot] or [[{name}.backup]]; leave it so for machines that need none"),
        );
    }
    rpo(source, &name, policy, promises, now);
    rpo_of_backups(source, at, &name, policy, now);
    if let Some(span) = &promises.rto
        && policy.drill.is_none()
    {
        let what = format!("{name}.objectives.rto is never measured: the policy holds no drills");
        source.warning(span, what, format!("add [{name}.drill]"));
    }
    unreachable_windows(source, at, &name, policy, now);
    for backup in &policy.backups {
        let (Keep::By(rule), locked) = (&backup.keep, u64::from(backup.lock_days)) else {
            continue;
        };
        let mean = backup.schedule.mean_gap(now).unwrap_or_default();
        let by_last = mean.saturating_mul(u32::try_from(rule.last).unwrap_or(u32::MAX));
        let by_kind = kinds(rule)
            .into_iter()
            .map(|(_, count, each)| each.max(mean).saturating_mul(u32::try_from(count).unwrap_or(u32::MAX)));
        let kept = by_kind.chain([by_last]).max().unwrap_or_default();
        if kept < Duration::from_secs(locked * DAY) {
            let what = format!(
                "{name}: points of backup {} are locked for {locked} days, and its keep reaches back {} only: locks keep the others",
                backup.name,
                spoken(kept)
            );
            source.warning(at, what, "plan for the space, or make lock_days and keep agree");
        }
    }
}

fn rpo(source: &Source<'_>, name: &str, policy: &Policy, promises: &Promises, now: Timestamp) {
    let (Some(rpo), Some(span)) = (promises.map.rpo, &promises.rpo) else {
        return;
    };
    let gap = |schedule: &Schedule| schedule.longest_gap(now);
    let snapshots = policy.snapshot.as_ref().and_then(|snapshot| gap(&snapshot.schedule));
    let points = policy.backups.iter().filter_map(|backup| gap(&backup.schedule)).min();
    let Some(least) = snapshots.into_iter().chain(points).min() else {
        let remedy = format!("add [{name}.snapshot] or [[{name}.backup]] with a schedule that is due again and again");
        source.error(span, format!("{name}.objectives.rpo cannot be kept: nothing is made again and again"), remedy);
        return;
    };
    if least > rpo.duration() {
        let what = format!(
            "{name}.objectives.rpo is {}, and up to {} pass between two times of its schedules",
            spoken(rpo.duration()),
            spoken(least)
        );
        source.error(span, what, "make a schedule denser, or promise less");
    } else if points.is_some_and(|points| points > rpo.duration()) {
        let what = format!(
            "{name}.objectives.rpo is {}: only snapshots keep it; when the host is lost, so is work of up to {}",
            spoken(rpo.duration()),
            spoken(points.unwrap_or_default())
        );
        source.warning(span, what, "make the schedule of a backup denser, if that is to be covered too");
    }
}

/// Each repository is held to a promise of its own: one whose schedule cannot keep it would be told as missed for ever.
fn rpo_of_backups(source: &Source<'_>, at: &Span, name: &str, policy: &Policy, now: Timestamp) {
    let gap = |backup: &crate::policy::BackupPolicy| backup.schedule.longest_gap(now);
    // Where no backup keeps the policy's promise, that is told of the policy.
    let kept = |rpo: TimeToLive| policy.backups.iter().filter_map(gap).min().is_some_and(|gap| gap <= rpo.duration());
    let of_policy = policy.objectives.rpo.filter(|rpo| kept(*rpo));
    for backup in &policy.backups {
        let Some(promised) = backup.rpo.or(of_policy).map(TimeToLive::duration) else { continue };
        let Some(gap) = gap(backup).filter(|gap| *gap > promised) else { continue };
        let what = format!(
            "{name}: up to {} pass between two points of backup {}, and {} are promised for it",
            spoken(gap),
            backup.name,
            spoken(promised)
        );
        source.warning(at, what, format!("give backup {} an rpo of its own, or a denser schedule", backup.name));
    }
}

fn unreachable_windows(source: &Source<'_>, at: &Span, name: &str, policy: &Policy, now: Timestamp) {
    let scheduled = [
        policy.snapshot.as_ref().map(|_| (Work::Snapshot, "snapshots")),
        policy.backups.first().map(|_| (Work::Backup, "backups")),
        policy.drill.as_ref().map(|_| (Work::Drill, "drills")),
    ];
    for (work, word) in scheduled.into_iter().flatten() {
        if policy.windows.next_permitted(work, now).is_none() {
            let what = format!("{name}.windows never permit {word}: no time is left within 400 days");
            source.error(at, what, "allow more, forbid less, or change applies_to");
        }
    }
}
