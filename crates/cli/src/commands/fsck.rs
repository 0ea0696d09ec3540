//! `keyframe fsck`

use std::fmt::Write as _;

use keyframe_engine::fsck::{self, Finding, FsckOptions, FsckReport, Severity};
use keyframe_engine::{Context, Error};

use crate::args::FsckArgs;
use crate::output::Output;

/// Something is left to be seen to.
const INCOMPLETE: u8 = 3;

/// Looks at one machine or at all, and puts right what it may.
pub fn run(ctx: &Context<'_>, args: &FsckArgs, output: &Output) -> Result<u8, Error> {
    let report = fsck::fsck(ctx, args.vm.as_ref(), FsckOptions { repair: args.repair })?;
    output.result("fsck", &report, told(&report));
    Ok(if report.is_clean() { 0 } else { INCOMPLETE })
}

fn told(report: &FsckReport) -> String {
    let mut text = String::new();
    for finding in &report.repaired {
        let _ = writeln!(text, "repaired: {}: {}", finding.path.display(), finding.text);
    }
    for finding in &report.findings {
        describe(&mut text, finding);
    }
    for busy in &report.busy {
        let _ = writeln!(text, "busy: {} was not looked at: {} is at work on it", busy.vm, busy.holder);
    }
    let _ = writeln!(text, "{}", summary(report));
    text
}

fn describe(text: &mut String, finding: &Finding) {
    let about =
        finding.snapshot.as_ref().map_or_else(|| finding.vm.to_string(), |id| format!("{}@{}", finding.vm, id.short()));
    let _ = writeln!(text, "{}: {about}: {}", finding.severity, finding.path.display());
    let _ = writeln!(text, "  {}", finding.text);
    let _ = writeln!(text, "  try: {}", finding.advice);
}

fn summary(report: &FsckReport) -> String {
    let machines = report.machines.len();
    if report.findings.is_empty() {
        return format!("{machines} machine(s) looked at: nothing is wrong");
    }
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    format!(
        "{machines} machine(s) looked at: {} serious, {} repairable, {} harmless",
        count(Severity::Serious),
        count(Severity::Repairable),
        count(Severity::Harmless)
    )
}
