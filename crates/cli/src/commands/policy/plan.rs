//! `keyframe policy plan`

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keyframe_policy::{Day, Owed, Plan, PolicyName, What};
use serde_json::json;

use crate::output::{Output, table};

pub fn run(owed: &Owed, from: Timestamp, days: u32, events: bool, output: &Output) {
    let plan = Plan::of(owed, from, days);
    let zone = keyframe_policy::zone_name(&owed.time_zone);
    let mut text =
        format!("{} by policy {}, as if it began now with nothing; days of {zone}\n", owed.machine, owed.policy);
    if events {
        let rows = plan
            .days
            .iter()
            .flat_map(|day| &day.events)
            .map(|event| vec![local(&owed.time_zone, event.at), happened(&owed.time_zone, &event.what)]);
        text.push_str(&table(&rows.collect::<Vec<_>>()));
    } else {
        text.push_str(&by_day(owed, &plan.days));
    }
    if plan.cut_short {
        let _ = writeln!(text, "a schedule is too dense to be played to the end: see fewer --days");
    }
    let document = json!({"machine": owed.machine, "policy": owed.policy, "zone": zone, "from": from, "plan": plan});
    output.result("policy-plan", &document, text);
}

fn local(zone: &TimeZone, at: Timestamp) -> String {
    zone.to_datetime(at).strftime("%a %Y-%m-%d %H:%M:%S").to_string()
}

fn happened(zone: &TimeZone, what: &What) -> String {
    match what {
        What::Snapshot => "a snapshot is taken".to_owned(),
        What::SnapshotGoes(of) => format!("the snapshot of {} goes", local(zone, *of)),
        What::Point(backup) => format!("{backup}: a point is made"),
        What::PointGoes(backup, of) => format!("{backup}: the point of {} goes", local(zone, *of)),
        What::Drill => "a drill is held".to_owned(),
    }
}

/// What was made and went on a day, how many are there at its end, and from when the oldest is.
fn counted(made: usize, gone: usize, there: &[Timestamp], zone: &TimeZone) -> [String; 3] {
    let changed = match (made, gone) {
        (0, 0) => "-".to_owned(),
        (made, 0) => format!("+{made}"),
        (made, gone) => format!("+{made} -{gone}"),
    };
    let oldest =
        there.iter().min().map_or("-".to_owned(), |at| zone.to_datetime(*at).strftime("%m-%d %H:%M").to_string());
    [changed, there.len().to_string(), oldest]
}

fn by_day(owed: &Owed, days: &[Day]) -> String {
    let zone = &owed.time_zone;
    let mut head = vec!["DAY".to_owned()];
    let mut column = |name: &str| head.extend([name.to_uppercase(), "THERE".to_owned(), "OLDEST".to_owned()]);
    if owed.snapshot.is_some() {
        column("snapshots");
    }
    owed.backups.iter().for_each(|backup| column(backup.name.as_str()));
    if owed.drill.is_some() {
        head.push("DRILLS".to_owned());
    }
    let mut rows = vec![head];
    for day in days {
        let count = |wanted: &dyn Fn(&What) -> bool| day.events.iter().filter(|event| wanted(&event.what)).count();
        let mut row = vec![day.date.strftime("%a %Y-%m-%d").to_string()];
        if owed.snapshot.is_some() {
            let made = count(&|what| *what == What::Snapshot);
            let gone = count(&|what| matches!(what, What::SnapshotGoes(_)));
            row.extend(counted(made, gone, &day.snapshots, zone));
        }
        for backup in &owed.backups {
            let of = |name: &PolicyName| *name == backup.name;
            let made = count(&|what| matches!(what, What::Point(name) if of(name)));
            let gone = count(&|what| matches!(what, What::PointGoes(name, _) if of(name)));
            let none = Vec::new();
            row.extend(counted(made, gone, day.points.get(&backup.name).unwrap_or(&none), zone));
        }
        if owed.drill.is_some() {
            let held = count(&|what| *what == What::Drill);
            row.push(if held == 0 { "-".to_owned() } else { held.to_string() });
        }
        rows.push(row);
    }
    table(&rows)
}
