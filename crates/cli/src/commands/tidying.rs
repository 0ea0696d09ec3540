//! `keyframe delete`, `consolidate`, `expire`

use std::collections::BTreeMap;
use std::fmt::Write as _;

use keyframe_engine::consolidate::{self, ConsolidateRequest, Consolidation};
use keyframe_engine::delete::{self, DeleteOptions, Deletion};
use keyframe_engine::expire::{self, ExpireRequest, Expiry};
use keyframe_engine::merge::forecast::Forecast;
use keyframe_engine::merge::plan::RunSummary;
use keyframe_engine::{Context, Error};
use keyframe_types::{ByteLen, SnapshotSelector, VmName};
use serde_json::{Value, json};

use crate::args::{ConsolidateArgs, DeleteArgs, ExpireArgs};
use crate::output::Output;

/// Done, but not all of it.
const INCOMPLETE: u8 = 3;

fn bytes_per_s(speed: Option<ByteLen>) -> Option<u64> {
    speed.map(ByteLen::bytes).filter(|speed| *speed > 0)
}

/// `keyframe delete`
pub fn delete(ctx: &Context<'_>, args: &DeleteArgs, output: &Output) -> Result<u8, Error> {
    let mut by_machine: BTreeMap<&VmName, Vec<SnapshotSelector>> = BTreeMap::new();
    for reference in &args.snapshots {
        by_machine.entry(&reference.vm).or_default().push(reference.snapshot.clone());
    }
    let options = DeleteOptions { dry_run: args.dry_run, detach: args.detach, speed: bytes_per_s(args.speed) };
    if by_machine.len() > 1 {
        // All are planned before the first goes.
        for (vm, selectors) in &by_machine {
            delete::delete(ctx, vm, selectors, DeleteOptions { dry_run: true, ..options })?;
        }
    }
    let mut done: Vec<(&VmName, Deletion)> = Vec::new();
    let mut failure = None;
    for (vm, selectors) in by_machine {
        match delete::delete(ctx, vm, &selectors, options) {
            Ok(mut deletion) => {
                failure = deletion.failure.take();
                done.push((vm, deletion));
            }
            Err(error) if done.is_empty() => return Err(error),
            Err(error) => failure = Some(error),
        }
        if failure.is_some() {
            break;
        }
    }
    let text: String = done.iter().map(|(vm, deletion)| told(vm, deletion, args.dry_run)).collect();
    let snapshots: Vec<Value> = done
        .iter()
        .flat_map(|(vm, deletion)| deletion.gone.iter().map(move |plan| json!({"vm": vm, "snapshot": plan})))
        .collect();
    let merges: Vec<Value> = done.iter().map(|(vm, deletion)| merges(vm, deletion)).collect();
    let failed = failure.as_ref().map(ToString::to_string);
    let document = json!({"dry_run": args.dry_run, "snapshots": snapshots, "machines": merges, "failed": failed});
    output.result("deleted", &document, text);
    Ok(status(failure.as_ref(), output))
}

fn status(failure: Option<&Error>, output: &Output) -> u8 {
    match failure {
        Some(error) => {
            output.trouble(error);
            INCOMPLETE
        }
        None => 0,
    }
}

fn merges(vm: &VmName, deletion: &Deletion) -> Value {
    let freed: ByteLen = deletion.gone.iter().map(|plan| plan.bytes_freed).sum();
    json!({
        "vm": vm,
        "merged": deletion.merged,
        "forecast": deletion.forecast,
        "detached": deletion.detached,
        "bytes_moved": deletion.merged.iter().map(|run| run.cost.bytes_moved).sum::<ByteLen>(),
        "bytes_freed": freed + deletion.merged.iter().map(|run| run.cost.bytes_freed).sum::<ByteLen>(),
    })
}

fn told(vm: &VmName, deletion: &Deletion, dry_run: bool) -> String {
    let verb = if dry_run { "would delete" } else { "deleted" };
    let mut text = String::new();
    for name in &deletion.detached {
        let verb = if dry_run { "would copy" } else { "copied" };
        let _ = writeln!(text, "{verb} what {name} reads from {vm}: it stands on its own layers then");
    }
    for plan in &deletion.gone {
        let _ = writeln!(text, "{verb} {vm}@{} ({}), {} freed", plan.name, plan.id.short(), plan.bytes_freed);
    }
    text.push_str(&told_merges(&deletion.merged, deletion.forecast.as_ref(), dry_run));
    text
}

fn told_merges(merged: &[RunSummary], forecast: Option<&Forecast>, dry_run: bool) -> String {
    let mut text = String::new();
    for run in merged {
        let verb = if dry_run { "would merge" } else { "merged" };
        let present = if run.active { ", the present among them" } else { "" };
        let _ = writeln!(
            text,
            "{verb} {} layers of {}{present}: {} moved, {} freed{}",
            run.layers.len(),
            run.disk,
            run.cost.bytes_moved,
            run.cost.bytes_freed,
            if dry_run { format!(", {} needed meanwhile", run.cost.bytes_needed) } else { String::new() },
        );
    }
    if let Some(forecast) = forecast {
        let rate = |bytes: u64| format!("{}/s", ByteLen::from_bytes(bytes));
        let merging = forecast.merges_per_s.map_or_else(|| "an unknown speed".to_owned(), rate);
        let _ = match (forecast.converges, forecast.seconds) {
            (false, _) => writeln!(
                text,
                "the guest writes {}, the disk merges {merging}: it would not come to an end while the guest works so",
                rate(forecast.guest_writes_per_s),
            ),
            (true, Some(seconds)) => writeln!(
                text,
                "it would take about {seconds:.1} s at {merging}; the guest writes {}",
                rate(forecast.guest_writes_per_s),
            ),
            (true, None) => writeln!(text, "nobody can tell how long it would take"),
        };
    }
    text
}

/// `keyframe consolidate`
pub fn consolidate(ctx: &Context<'_>, args: ConsolidateArgs, output: &Output) -> Result<u8, Error> {
    let request = ConsolidateRequest {
        vm: args.vm,
        dry_run: args.dry_run,
        flatten: args.flatten,
        speed: bytes_per_s(args.speed),
    };
    let done = consolidate::consolidate(ctx, &request)?;
    let document = json!({
        "vm": request.vm,
        "dry_run": request.dry_run,
        "merged": done.merged,
        "flattened": done.flattened,
        "forecast": done.forecast,
        "depth_before": done.depth_before,
        "depth_after": done.depth_after,
        "failed": done.failure.as_ref().map(ToString::to_string),
    });
    output.result("consolidated", &document, told_consolidation(&request, &done));
    Ok(status(done.failure.as_ref(), output))
}

fn told_consolidation(request: &ConsolidateRequest, done: &Consolidation) -> String {
    let mut text = told_merges(&done.merged, done.forecast.as_ref(), request.dry_run);
    for flat in &done.flattened {
        let verb = if request.dry_run { "would copy" } else { "copied" };
        let _ = writeln!(text, "{verb} what {} reads from its snapshots, up to {}", flat.disk, flat.bytes_moved);
    }
    let vm = &request.vm;
    if text.is_empty() && done.failure.is_none() {
        let _ = writeln!(text, "{vm} has no layer that could go");
    }
    if !request.dry_run {
        let _ = writeln!(text, "{vm} stands on {} layers; it was {}", done.depth_after, done.depth_before);
    }
    if !request.flatten && done.depth_after > 1 && done.failure.is_none() {
        let _ = writeln!(
            text,
            "snapshots hold the others: `keyframe delete` lets them go, --flatten gives {vm} a copy of its own"
        );
    }
    text
}

/// `keyframe expire`
pub fn expire(ctx: &Context<'_>, args: ExpireArgs, output: &Output) -> Result<u8, Error> {
    let request = ExpireRequest {
        vms: args.vms,
        dry_run: args.dry_run,
        speed: bytes_per_s(args.speed),
        accept_clock: args.accept_clock,
    };
    let expiries = expire::expire(ctx, &request)?;
    let mut status_of_all = 0;
    let (mut text, mut machines) = (String::new(), Vec::new());
    for expiry in &expiries {
        text.push_str(&told_expiry(expiry, request.dry_run));
        machines.push(document(expiry));
        let failures = [expiry.failure.as_ref(), expiry.deletion.as_ref().and_then(|done| done.failure.as_ref())];
        for failure in failures.into_iter().flatten() {
            status_of_all = status(Some(failure), output);
        }
    }
    if text.is_empty() {
        text.push_str("no snapshot is past its time\n");
    }
    output.result("expired", &json!({"dry_run": request.dry_run, "machines": machines}), text);
    Ok(status_of_all)
}

fn document(expiry: &Expiry) -> Value {
    let mut document = match &expiry.deletion {
        Some(deletion) => merges(&expiry.vm, deletion),
        None => json!({"vm": expiry.vm}),
    };
    let failure = expiry.deletion.as_ref().and_then(|deletion| deletion.failure.as_ref());
    document["snapshots"] = json!(expiry.deletion.as_ref().map(|deletion| &deletion.gone).unwrap_or(&Vec::new()));
    document["stays"] = json!(expiry.stays);
    document["failed"] = json!(expiry.failure.as_ref().or(failure).map(ToString::to_string));
    document
}

fn told_expiry(expiry: &Expiry, dry_run: bool) -> String {
    let mut text = expiry.deletion.as_ref().map(|deletion| told(&expiry.vm, deletion, dry_run)).unwrap_or_default();
    for stays in &expiry.stays {
        let _ = writeln!(text, "{}@{} is past its time and stays: {}", expiry.vm, stays.name, stays.reason);
    }
    text
}
