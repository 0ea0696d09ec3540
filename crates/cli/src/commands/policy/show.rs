//! `keyframe policy show`

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keyframe_policy::{DrillTarget, Keep, Owed, Schedule, Timetable, Window};
use keyframe_types::{Retention, TimeToLive};
use serde_json::json;

use crate::output::{Output, table};

/// How many times of a schedule are told.
const NEXT: usize = 3;

pub fn run(owed: &Owed, now: Timestamp, output: &Output) {
    let next = |timetable: Timetable<'_>| timetable.after(now).take(NEXT).collect::<Vec<_>>();
    let backups: serde_json::Map<String, serde_json::Value> =
        owed.backups.iter().map(|backup| (backup.name.to_string(), json!(next(owed.backup_times(backup))))).collect();
    let times = json!({
        "snapshot": owed.snapshot_times().map(next),
        "backup": backups,
        "drill": owed.drill_times().map(next),
    });
    output.result("policy-show", &json!({"owed": owed, "next": times}), described(owed, now));
}

fn described(owed: &Owed, now: Timestamp) -> String {
    let mut text = format!("{} is owed what policy {} says, at {}\n", owed.machine, owed.policy, owed.place);
    for other in &owed.overrules {
        let _ = writeln!(text, "  policy {other} chooses it too, with a lower priority");
    }
    if let Some(group) = &owed.group {
        let _ = writeln!(text, "  cut together with the machines of group {group}");
    }
    let mut rows = Vec::new();
    let mut row = |what: &str, value: String| rows.push(vec![format!("  {what}"), value]);
    let zone = &owed.time_zone;
    match (&owed.snapshot, owed.snapshot_times()) {
        (Some(snapshot), Some(times)) => {
            row("snapshots", scheduled(&snapshot.schedule, times, zone, now));
            row("", kept(&snapshot.keep, snapshot.ttl));
            row("", if snapshot.memory { "with the running state" } else { "disks only" }.to_owned());
        }
        _ => row("snapshots", "none".to_owned()),
    }
    for backup in &owed.backups {
        row(&format!("backup {}", backup.name), scheduled(&backup.schedule, owed.backup_times(backup), zone, now));
        row("", format!("to {}, {}", backup.repository, kept(&backup.keep, None)));
        let memory = if backup.memory { "with the running state" } else { "disks only" };
        let locked = if backup.lock_days == 0 { String::new() } else { format!(", locked {} days", backup.lock_days) };
        row("", format!("{memory}{locked}"));
    }
    if owed.backups.is_empty() {
        row("backups", "none: what is on this host only is lost with it".to_owned());
    }
    match (&owed.drill, owed.drill_times()) {
        (Some(drill), Some(times)) => {
            row("drills", scheduled(&drill.schedule, times, zone, now));
            row("", format!("of {}", drill.what.iter().map(target).collect::<Vec<_>>().join(", ")));
        }
        _ => row("drills", "none: nothing proves that it comes back".to_owned()),
    }
    let span = |span: Option<TimeToLive>| span.map_or("none".to_owned(), |span| seconds(span.duration().as_secs()));
    row("objectives", format!("RPO {}, RTO {}", span(owed.objectives.rpo), span(owed.objectives.rto)));
    let windows = |list: &[Window]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if !owed.windows.allowed.is_empty() {
        row("only within", windows(&owed.windows.allowed));
    }
    if !owed.windows.forbidden.is_empty() {
        row("never within", windows(&owed.windows.forbidden));
    }
    text.push_str(&table(&rows));
    text
}

fn scheduled(schedule: &Schedule, times: Timetable<'_>, zone: &TimeZone, now: Timestamp) -> String {
    let later = match times.offset().as_secs() {
        0 => String::new(),
        offset => format!(", {} later", seconds(offset)),
    };
    let next = times.next_after(now).map_or("never again".to_owned(), |next| {
        format!("next {}", zone.to_datetime(next).strftime("%a %Y-%m-%d %H:%M:%S"))
    });
    format!("{schedule}{later}: {next}")
}

fn kept(keep: &Keep, ttl: Option<TimeToLive>) -> String {
    let rule = match keep {
        Keep::All => "all kept".to_owned(),
        Keep::By(rule) => format!("kept: {}", counted(rule)),
    };
    ttl.map_or(rule.clone(), |ttl| format!("{rule}; none longer than {}", seconds(ttl.duration().as_secs())))
}

fn counted(rule: &Retention) -> String {
    let kinds = [
        ("last", rule.last),
        ("hourly", rule.hourly),
        ("daily", rule.daily),
        ("weekly", rule.weekly),
        ("monthly", rule.monthly),
        ("yearly", rule.yearly),
    ];
    kinds.iter().filter(|(_, n)| *n > 0).map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ")
}

fn target(target: &DrillTarget) -> String {
    match target {
        DrillTarget::Snapshot => "the latest snapshot".to_owned(),
        DrillTarget::Point(backup) => format!("the latest point of {backup}"),
    }
}

/// A span in the largest unit that it is whole in, as policies are written.
fn seconds(seconds: u64) -> String {
    let (each, unit) = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")]
        .into_iter()
        .find(|(each, _)| seconds.is_multiple_of(*each))
        .unwrap_or((1, "s"));
    format!("{}{unit}", seconds / each)
}
