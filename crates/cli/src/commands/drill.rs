//! `keyframe drill`, `drills`

use std::fmt::Write as _;
use std::sync::Arc;

use keyframe_engine::backup::members::{self, GroupPoint};
use keyframe_engine::drill::group;
use keyframe_engine::drill::point::{self, DrillReport, DrillRequest};
use keyframe_engine::drill::record::{TestRecord, Verdict};
use keyframe_engine::evidence::Ledger;
use keyframe_engine::{Context, Error};
use keyframe_repo::mark::{self, Statement};
use keyframe_repo::{Point, Repository};
use serde_json::json;

use super::{repository, test};
use crate::backup_args::{DrillArgs, DrillsArgs};
use crate::output::{Output, ms, table};

/// How many of a console's last lines are shown when a drill fails.
const LINES_SHOWN: usize = 12;

/// `keyframe drill`. Status 1 when the point did not come back as it should.
pub fn drill(ctx: &Context<'_>, args: DrillArgs, output: &Output) -> Result<u8, Error> {
    repository::keep_memory();
    let repository = Arc::new(repository::open(&args.place)?);
    let point = members::find(&repository, &args.point)?;
    let request = DrillRequest { ways: args.ways.into(), within: args.within, probes: args.probes };
    if GroupPoint::of(&point).is_some() {
        return together(ctx, &repository, &point, &request, output);
    }
    let report = point::drill(ctx, &repository, &point, &request)?;
    let mut text = told(&report);
    let passed = report.record.verdict == Verdict::Passed;
    let document = report.entry.blake3.clone();
    if let Err(error) = mark::mark(&repository, point.id, Statement::Drilled { passed, document }) {
        // The evidence is here; the repository's list is only a convenience.
        let _ = writeln!(text, "note: the repository does not know of it: {error}");
    }
    output.result("drilled", &report, text);
    Ok(if report.record.verdict == Verdict::Passed { 0 } else { 1 })
}

/// All machines of a group's point.
fn together(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    point: &Point,
    request: &DrillRequest,
    output: &Output,
) -> Result<u8, Error> {
    let report = group::drill(ctx, repository, point, request)?;
    let passed = report.verdict == Verdict::Passed;
    let mut text: String = report.machines.iter().map(told).collect();
    let _ = writeln!(
        text,
        "drill of {} {}: {} machines, up together",
        report.point,
        if passed { "passed" } else { "FAILED" },
        report.machines.len()
    );
    // One word on the whole point: of a machine that did not come back, where there is one.
    let failed = report.machines.iter().find(|machine| machine.record.verdict != Verdict::Passed);
    if let Some(telling) = failed.or(report.machines.last()) {
        let document = telling.entry.blake3.clone();
        if let Err(error) = mark::mark(repository, point.id, Statement::Drilled { passed, document }) {
            let _ = writeln!(text, "note: the repository does not know of it: {error}");
        }
    }
    output.result("drilled", &report, text);
    Ok(u8::from(!passed))
}

fn told(report: &DrillReport) -> String {
    let record = &report.record;
    let verdict = match record.verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "FAILED",
    };
    let mut text = format!("drill of {} {verdict}, after {}\n", record.point, ms(record.total_ms));
    if let Some(trouble) = &record.trouble {
        let _ = writeln!(text, "it could not be restored: {trouble}");
    }
    if let Some(restored) = record.restored_ms {
        let same = record.disks.iter().filter(|disk| disk.blake3.is_some()).count();
        let all = record.disks.len();
        let _ = writeln!(text, "restored after {}; {same} of {all} disks are what the repository has", ms(restored));
    }
    for (how, way) in [("running state", &record.resume), ("from its disks", &record.cold)] {
        if let Some(way) = way {
            let _ = write!(text, "{how}: {}", test::tested(way));
            text.push_str(&last_lines(report, way));
        }
    }
    for note in &record.notes {
        let _ = writeln!(text, "note: {note}");
    }
    let _ = writeln!(text, "evidence: {}", report.evidence.join("drill.html").display());
    text
}

/// The end of the console of one that failed.
fn last_lines(report: &DrillReport, way: &TestRecord) -> String {
    let Some(name) = way.serial.as_ref().filter(|_| way.verdict == Verdict::Failed) else { return String::new() };
    let said = std::fs::read(report.evidence.join(name)).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().rev().take(LINES_SHOWN).collect();
    let mut text = String::from("  the last on its console:\n");
    for line in lines.iter().rev() {
        // What a guest wrote must not steer a terminal.
        let plain: String = line.chars().filter(|c| !c.is_control()).collect();
        let _ = writeln!(text, "  | {plain}");
    }
    text
}

/// `keyframe drills`. With `--verify`, status 1 when something in the log is not as it was written.
pub fn list(ctx: &Context<'_>, args: &DrillsArgs, output: &Output) -> Result<u8, Error> {
    let ledger = Ledger::of(ctx.home);
    let lines = ledger.lines()?;
    let of_vm = |point: &str| args.vm.as_ref().is_none_or(|vm| point.split('@').next() == Some(vm.as_str()));
    let entries: Vec<_> = lines.iter().map(|line| &line.entry).filter(|entry| of_vm(&entry.point)).collect();
    let mut rows = vec![["DRILLED", "POINT", "VERDICT", "EVIDENCE"].map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        let place = ledger.dir().join(&entry.document).with_extension("html");
        let short = entry.point.chars().take(entry.point.find('@').unwrap_or(0) + 9).collect();
        vec![entry.at.to_string(), short, entry.verdict.as_str().to_owned(), place.display().to_string()]
    }));
    let mut text = if entries.is_empty() { "no drill is on record here\n".to_owned() } else { table(&rows) };
    let flaws = if args.verify { Some(ledger.verify(args.public_key.as_deref(), args.head.as_deref())?) } else { None };
    if let Some(flaws) = &flaws {
        for flaw in flaws {
            let _ = writeln!(text, "line {}: {}", flaw.line, flaw.what);
        }
        if flaws.is_empty() {
            let _ = writeln!(text, "all {} entries are as they were written", lines.len());
        }
    }
    let head = lines.last().map(|line| line.hash.clone());
    output.result("drills", &json!({"drills": entries, "flaws": flaws, "head": head}), text);
    Ok(u8::from(flaws.is_some_and(|flaws| !flaws.is_empty())))
}
