//! `keyframe test`

use std::fmt::Write as _;

use keyframe_engine::drill::record::{TestRecord, Verdict};
use keyframe_engine::drill::{self, TestReport, TestRequest};
use keyframe_engine::{Context, Error, Kind};
use keyframe_types::SnapshotRef;
use serde_json::json;

use crate::args::{TestArgs, TestTarget};
use crate::output::{Output, ms, table};

/// Tests snapshots, or all of machines. Status 1 when one did not pass, 3 when only some could be tested.
pub fn run(ctx: &Context<'_>, args: TestArgs, output: &Output) -> Result<u8, Error> {
    if let ([TestTarget::Snapshot(snapshot)], false) = (args.targets.as_slice(), args.all) {
        let report = drill::test(ctx, &request(snapshot.clone(), args.within, &args.probes))?;
        return Ok(told(&[report], &[], output));
    }
    let mut snapshots = Vec::new();
    for target in args.targets {
        match (target, args.all) {
            (TestTarget::Snapshot(snapshot), false) => snapshots.push(snapshot),
            (TestTarget::Machine(vm), true) => snapshots.extend(drill::all_of(ctx, &vm)?),
            (TestTarget::Snapshot(snapshot), true) => {
                let what = format!("--all tests every snapshot of a machine: write {} --all", snapshot.vm);
                return Err(Error::BadRequest { what });
            }
            (TestTarget::Machine(vm), false) => {
                let what = format!("{vm} is a machine: write {vm}@SNAP, or {vm} --all for all of its snapshots");
                return Err(Error::BadRequest { what });
            }
        }
    }
    let (mut reports, mut untested) = (Vec::new(), Vec::new());
    for snapshot in snapshots {
        ctx.progress.note(&format!("testing {snapshot}"));
        match drill::test(ctx, &request(snapshot.clone(), args.within, &args.probes)) {
            Ok(report) => reports.push(report),
            Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::Usage) => return Err(error),
            Err(error) => {
                output.trouble(&error);
                untested.push((snapshot, error));
            }
        }
    }
    Ok(told(&reports, &untested, output))
}

fn request(
    snapshot: SnapshotRef,
    within: std::time::Duration,
    probes: &[keyframe_hypervisor::ProbeDefinition],
) -> TestRequest {
    TestRequest { vm: snapshot.vm, snapshot: snapshot.snapshot, within, probes: probes.to_vec() }
}

fn told(reports: &[TestReport], untested: &[(SnapshotRef, Error)], output: &Output) -> u8 {
    let failed = reports.iter().any(|report| report.record.verdict == Verdict::Failed);
    let mut text = String::new();
    for report in reports {
        let _ = write!(text, "{}@{}: {}", report.vm, report.name, tested(&report.record));
        if let (Verdict::Failed, Some(evidence)) = (report.record.verdict, &report.evidence) {
            for name in report.record.screenshot.iter().chain(&report.record.serial) {
                let _ = writeln!(text, "  evidence: {}", evidence.join(name).display());
            }
        }
    }
    for (snapshot, error) in untested {
        let _ = writeln!(text, "{snapshot}: not tested: {error}");
    }
    let documents: Vec<_> = untested
        .iter()
        .map(|(snapshot, error)| json!({"snapshot": snapshot.to_string(), "error": error.to_string()}))
        .collect();
    output.result("tested", &json!({"passed": !failed, "tests": reports, "not_tested": documents}), text);
    match (failed, untested.is_empty()) {
        (true, _) => 1,
        (false, false) => 3,
        (false, true) => 0,
    }
}

/// A test in a few lines.
pub fn tested(record: &TestRecord) -> String {
    let mut text = format!("test of {} {}, after {}\n", record.started, record.verdict.as_str(), ms(record.total_ms));
    let rows: Vec<Vec<String>> = record
        .checks
        .iter()
        .map(|check| {
            let verdict = if check.passed { "passed" } else { "FAILED" };
            let after = check.after_ms.map_or_else(String::new, ms);
            vec![format!("  {}", check.name), verdict.to_owned(), after, check.seen.clone()]
        })
        .collect();
    text.push_str(&table(&rows));
    for note in &record.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}
