//! For Prometheus: the text format, version 0.0.4. Each metric has a line that explains it; docs/MONITORING.md lists them.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::Api;
use crate::verdict::{Objective, Row, Severity, Verdict};
use crate::view::Overview;

/// Of each metric its name, its kind and what it is.
pub const METRICS: &[(&str, &str, &str)] = &[
    ("keyframe_up", "gauge", "1 while the daemon decides; the version is a label"),
    (
        "keyframe_decided_timestamp_seconds",
        "gauge",
        "When what is shown was made: older than a minute, and the daemon hangs",
    ),
    (
        "keyframe_looked_timestamp_seconds",
        "gauge",
        "When machines were looked at last: older than a minute, and that hangs",
    ),
    ("keyframe_paused", "gauge", "1 while nothing new is begun, by somebody's wish"),
    ("keyframe_policies_usable", "gauge", "0 while a policy file has a mistake, and what was in force before stays"),
    ("keyframe_machines", "gauge", "Machines, by verdict: protected, at-risk, unprotected"),
    ("keyframe_machine_protected", "gauge", "1 for a machine that has all that it is promised"),
    ("keyframe_machine_running", "gauge", "1 for a machine whose processors run"),
    ("keyframe_machine_snapshots", "gauge", "Snapshots of a machine"),
    ("keyframe_machine_snapshots_bytes", "gauge", "What a machine's snapshots take"),
    ("keyframe_machine_last_snapshot_timestamp_seconds", "gauge", "The instant that a machine's latest snapshot holds"),
    (
        "keyframe_machine_last_point_timestamp_seconds",
        "gauge",
        "The instant that a machine's latest restore point holds",
    ),
    ("keyframe_machine_last_drill_timestamp_seconds", "gauge", "When a machine's latest drill ended"),
    ("keyframe_machine_last_drill_passed", "gauge", "1 if it came back, 0 if not"),
    ("keyframe_machine_last_drill_seconds", "gauge", "How long it took to come back in its latest drill"),
    (
        "keyframe_machine_rpo_objective_seconds",
        "gauge",
        "The most work that is promised to be lost; of several backups, by the one furthest from its promise",
    ),
    ("keyframe_machine_rpo_seconds", "gauge", "How much would be lost now"),
    (
        "keyframe_machine_backup_rpo_objective_seconds",
        "gauge",
        "The most work that is promised to be lost when only this backup's repository is left",
    ),
    ("keyframe_machine_backup_rpo_seconds", "gauge", "How much would be lost now when only that is left"),
    ("keyframe_machine_rto_objective_seconds", "gauge", "The longest that is promised until it runs again"),
    ("keyframe_jobs", "gauge", "Jobs that are not over, by state: running, waiting"),
    ("keyframe_alerts", "gauge", "What is to be seen to, by severity: critical, warning"),
    ("keyframe_home_bytes", "gauge", "The size of the home's file system"),
    ("keyframe_home_free_bytes", "gauge", "What is free of it"),
    (
        "keyframe_home_full_in_seconds",
        "gauge",
        "When it is full at the rate of the last days; absent where it does not fill up",
    ),
];

pub async fn metrics(State(api): State<Api>) -> Response {
    let view = api.shared.view();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], written(&view.overview)).into_response()
}

/// A value, with its labels.
type Sample = (Vec<(&'static str, String)>, f64);

fn written(overview: &Overview) -> String {
    let mut text = String::new();
    for (name, kind, help) in METRICS {
        let samples = samples(name, overview);
        if samples.is_empty() {
            continue;
        }
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[expect(clippy::cast_precision_loss, reason = "bytes and seconds as Prometheus has them: floating point")]
fn number(value: u64) -> f64 {
    value as f64
}

fn samples(name: &str, overview: &Overview) -> Vec<Sample> {
    let one = |value: f64| vec![(Vec::new(), value)];
    let flag = |is: bool| f64::from(u8::from(is));
    let by = |value: fn(&Row) -> Option<f64>| {
        let rows = overview.machines.iter().filter_map(|row| Some((row, value(row)?)));
        rows.map(|(row, value)| (vec![("machine", row.name.clone())], value)).collect::<Vec<Sample>>()
    };
    let of_backups = |value: fn(&Objective) -> Option<u64>| {
        let all = overview.machines.iter().flat_map(|row| row.rpo_by_backup.iter().map(move |of| (row, of)));
        let valued = all.filter_map(|(row, (backup, objective))| Some((row, backup, number(value(objective)?))));
        let labels = |row: &Row, backup: &String| vec![("machine", row.name.clone()), ("backup", backup.clone())];
        valued.map(|(row, backup, value)| (labels(row, backup), value)).collect::<Vec<Sample>>()
    };
    let counted = |label: &'static str, counts: &[(&str, usize)]| {
        counts.iter().map(|(name, count)| (vec![(label, (*name).to_owned())], number(*count as u64))).collect()
    };
    let counts = &overview.counts;
    match name {
        "keyframe_up" => vec![(vec![("version", overview.version.clone())], 1.0)],
        "keyframe_decided_timestamp_seconds" => one(seconds(overview.now)),
        "keyframe_looked_timestamp_seconds" => one(seconds(overview.looked)),
        "keyframe_paused" => one(flag(overview.paused)),
        "keyframe_policies_usable" => one(flag(overview.policies.usable)),
        "keyframe_machines" => counted(
            "verdict",
            &[("protected", counts.protected), ("at-risk", counts.at_risk), ("unprotected", counts.unprotected)],
        ),
        "keyframe_machine_protected" => by(|row| Some(f64::from(u8::from(row.verdict == Verdict::Protected)))),
        "keyframe_machine_running" => by(|row| Some(f64::from(u8::from(row.state == "running")))),
        "keyframe_machine_snapshots" => by(|row| Some(number(row.snapshots as u64))),
        "keyframe_machine_snapshots_bytes" => by(|row| Some(number(row.snapshots_bytes))),
        "keyframe_machine_last_snapshot_timestamp_seconds" => by(|row| row.last_snapshot.map(seconds)),
        "keyframe_machine_last_point_timestamp_seconds" => {
            by(|row| row.last_point.as_ref().map(|point| seconds(point.at)))
        }
        "keyframe_machine_last_drill_timestamp_seconds" => {
            by(|row| row.last_drill.as_ref().map(|drill| seconds(drill.at)))
        }
        "keyframe_machine_last_drill_passed" => {
            by(|row| row.last_drill.as_ref().map(|drill| f64::from(u8::from(drill.passed))))
        }
        "keyframe_machine_last_drill_seconds" => by(|row| row.last_drill.as_ref()?.took_ms.map(|ms| number(ms) / 1e3)),
        "keyframe_machine_rpo_objective_seconds" => by(|row| row.rpo.objective_s.map(number)),
        "keyframe_machine_rpo_seconds" => by(|row| row.rpo.actual_s.map(number)),
        "keyframe_machine_backup_rpo_objective_seconds" => of_backups(|objective| objective.objective_s),
        "keyframe_machine_backup_rpo_seconds" => of_backups(|objective| objective.actual_s),
        "keyframe_machine_rto_objective_seconds" => by(|row| row.rto.objective_s.map(number)),
        "keyframe_jobs" => counted("state", &[("running", counts.jobs_running), ("waiting", counts.jobs_waiting)]),
        "keyframe_alerts" => {
            let weighing = |severity| overview.alerts.iter().filter(|alert| alert.severity == severity).count();
            counted("severity", &[("critical", weighing(Severity::Critical)), ("warning", weighing(Severity::Warning))])
        }
        "keyframe_home_bytes" => one(number(overview.disk.total_bytes)),
        "keyframe_home_free_bytes" => one(number(overview.disk.free_bytes)),
        "keyframe_home_full_in_seconds" => {
            overview.disk.full_in_days.map(|days| one(days * 86_400.0)).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of this century are exact")]
fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_explained_and_has_a_value_somewhere() {
        let row = Row {
            name: "a\"b".into(),
            state: "running".into(),
            tags: vec![],
            policy: None,
            group: None,
            verdict: Verdict::Protected,
            reasons: vec![],
            why: vec![],
            snapshots: 2,
            snapshots_bytes: 3,
            last_snapshot: Some(Timestamp::UNIX_EPOCH),
            last_point: Some(crate::verdict::LastPoint {
                at: Timestamp::UNIX_EPOCH,
                backup: "b".into(),
                repository: "r".into(),
                id: "i".into(),
            }),
            last_drill: Some(crate::verdict::LastDrill {
                at: Timestamp::UNIX_EPOCH,
                passed: true,
                id: "i".into(),
                took_ms: Some(1500),
            }),
            rpo: Objective { objective_s: Some(1), actual_s: Some(2), met: Some(false) },
            rpo_by_backup: [(
                "away".to_owned(),
                Objective { objective_s: Some(3), actual_s: Some(4), met: Some(false) },
            )]
            .into(),
            rto: Objective { objective_s: Some(1), actual_s: None, met: None },
            next: crate::verdict::NextTimes::default(),
            running_job: None,
        };
        let disk = crate::space::Space { full_in_days: Some(2.0), ..Default::default() };
        let text = written(&Overview { machines: vec![row], disk, ..Overview::default() });
        for (name, kind, _) in METRICS {
            assert!(text.contains(&format!("# TYPE {name} {kind}\n{name}")), "{name} has no value in\n{text}");
        }
        assert!(text.contains("keyframe_machine_snapshots{machine=\"a\\\"b\"} 2\n"), "{text}");
        let backup = "keyframe_machine_backup_rpo_seconds{machine=\"a\\\"b\",backup=\"away\"} 4\n";
        assert!(text.contains(backup), "{text}");
        assert!(text.contains("keyframe_machine_last_drill_seconds{machine=\"a\\\"b\"} 1.5\n"), "{text}");
    }

    /// Words of a text that are names of metrics.
    fn named(text: &str) -> std::collections::BTreeSet<&str> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("keyframe_")).collect()
    }

    #[test]
    fn alerts_dashboards_and_the_manual_know_these_metrics_and_no_others() {
        let all: std::collections::BTreeSet<&str> = METRICS.iter().map(|(name, ..)| *name).collect();
        let rules = include_str!("../../../../packaging/prometheus/keyframe.rules.yml");
        let board = include_str!("../../../../packaging/grafana/keyframe.json");
        let manual = include_str!("../../../../docs/MONITORING.md");
        for (name, text) in [("rules", rules), ("board", board), ("manual", manual)] {
            let unknown: Vec<&str> = named(text).difference(&all).copied().collect();
            assert_eq!(unknown, Vec::<&str>::new(), "{name}");
        }
        assert_eq!(named(manual), all);
    }
}
