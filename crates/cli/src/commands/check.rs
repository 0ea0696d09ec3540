//! `keyframe check`

use std::fmt::Write as _;

use keyframe_engine::check::{self, CheckReport, Compared};
use keyframe_engine::{Context, Error};
use keyframe_types::VmName;

use crate::output::{Output, ms};

/// Some snapshots are not whole.
const INCOMPLETE: u8 = 3;

/// Checks all snapshots of a machine.
pub fn run(ctx: &Context<'_>, vm: &VmName, data: bool, output: &Output) -> Result<u8, Error> {
    let report = check::check(ctx, vm, data)?;
    output.result("check", &report, told(&report));
    Ok(if report.concerned().next().is_none() { 0 } else { INCOMPLETE })
}

fn told(report: &CheckReport) -> String {
    let mut text = String::new();
    for snapshot in report.concerned() {
        let _ = writeln!(text, "{}@{} ({}):", report.vm, snapshot.name, snapshot.id.short());
        for problem in &snapshot.problems {
            let _ = writeln!(text, "  {}: {}", problem.path.display(), problem.text);
        }
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    let (all, bad) = (report.snapshots.len(), report.concerned().count());
    let verdict = if bad == 0 { "all are whole".to_owned() } else { format!("{bad} are not whole") };
    let _ = write!(text, "{all} snapshot(s) checked in {}: {verdict}", ms(report.total_ms));
    if report.data {
        let count = |what| report.layers.iter().filter(|layer| layer.compared == what).count();
        let (same, fresh) = (count(Compared::AsRecorded), count(Compared::RecordedNow));
        let _ = write!(text, "; {} read, layers: {same} as recorded, {fresh} recorded now", report.bytes_read);
    } else {
        text.push_str("; --data reads every byte");
    }
    text.push('\n');
    text
}
