//! `keyframe cost`

use std::fmt::Write as _;

use keyframe_engine::cost::{self, Cost};
use keyframe_engine::{Context, Error};
use keyframe_types::VmName;
use serde_json::json;

use crate::output::{Output, ms, table};

/// Says what the snapshots of one machine, or of all, cost. Status 1 with `check` where there is something to see to, 3 when a
/// machine cannot be read.
pub fn run(ctx: &Context<'_>, vm: Option<VmName>, check: bool, output: &Output) -> Result<u8, Error> {
    let (mut costs, mut unreadable) = (Vec::new(), false);
    match vm {
        Some(vm) => costs.push(cost::cost(ctx, &vm)?),
        None => {
            for vm in ctx.home.machine_names()? {
                match cost::cost(ctx, &vm) {
                    Ok(cost) => costs.push(cost),
                    Err(error) => {
                        output.trouble(&error);
                        unreadable = true;
                    }
                }
            }
        }
    }
    let text: String = costs.iter().map(described).collect();
    output.result("cost", &json!({ "machines": costs }), text);
    let warned = costs.iter().any(|cost| !cost.warnings.is_empty());
    Ok(if check && warned { 1 } else { u8::from(unreadable) * 3 })
}

fn described(cost: &Cost) -> String {
    let mut text = format!("{}: {} snapshot(s), {}", cost.vm, cost.snapshots, cost.bytes);
    match (cost.bytes_per_day, cost.days_until_full) {
        (Some(grows), Some(days)) => {
            let _ = write!(text, ", {grows} more each day: {} free, full in {days} days", cost.bytes_free);
        }
        _ => {
            let _ = write!(text, "; {} free", cost.bytes_free);
        }
    }
    text.push('\n');
    let mut rows = Vec::new();
    for disk in &cost.disks {
        let bytes: Vec<String> = disk.layers.iter().map(|layer| layer.bytes.to_string()).collect();
        let reads = disk.reads.map_or_else(String::new, |reads| {
            let p99 = reads.p99_ms.map_or_else(String::new, |p99_ms| format!(", 99 of 100 up to {}", ms(p99_ms)));
            format!("{} reads, {} on average{p99}", reads.requests, ms(reads.mean_ms))
        });
        let layers = format!("{} layer(s): {}", disk.layers.len(), bytes.join(" on "));
        rows.push(vec![format!("  {}", disk.disk), layers, reads]);
    }
    text.push_str(&table(&rows));
    for warning in &cost.warnings {
        let _ = writeln!(text, "  {}\n    try: {}", warning.text, warning.fix);
    }
    text
}
