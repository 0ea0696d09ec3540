//! `keyframe doctor`

use keyframe_engine::doctor::{self, Level};
use keyframe_engine::{Context, Error};
use keyframe_types::VmName;

use crate::output::Output;

/// Examines the host, and a machine if one is named. Status 1 when something stands in the way of snapshots.
pub fn run(ctx: &Context<'_>, vm: Option<&VmName>, output: &Output) -> Result<u8, Error> {
    let report = doctor::examine(ctx, vm)?;
    let mut text = String::new();
    for finding in &report.findings {
        let mark = match finding.level {
            Level::Good => "ok  ",
            Level::Note => "note",
            Level::Bad => "BAD ",
        };
        text.push_str(&format!("{mark}  {}: {}\n", finding.subject, finding.text));
        if let Some(action) = &finding.action {
            text.push_str(&format!("      -> {action}\n"));
        }
    }
    let bad = report.findings.iter().any(|finding| finding.level == Level::Bad);
    output.result("doctor", &report, text);
    Ok(u8::from(bad))
}
