//! `keyframe snapshot`, `show`, `snapshot-set`, `revert`, `fork`

use std::fmt::Write as _;
use std::path::Path;

use keyframe_engine::bringup::Strategy;
use keyframe_engine::fork::{self, ForkRequest};
use keyframe_engine::label::{self, LabelRequest, Wanted};
use keyframe_engine::outcome::Outcome;
use keyframe_engine::revert::{self, RevertReport, RevertRequest};
use keyframe_engine::snapshot::group::{self, GroupRequest, MemberReport};
use keyframe_engine::snapshot::{self, SnapshotReport, SnapshotRequest};
use keyframe_engine::state::manifest::{Manifest, Memory};
use keyframe_engine::tree;
use keyframe_engine::{Context, Error, sharing};
use keyframe_types::{SnapshotRef, VmName};

use super::test;
use crate::args::{ForkArgs, ForkStrategy, RevertArgs, SnapshotArgs, SnapshotSetArgs};
use crate::output::{Output, ms, table};

fn exit_status(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Complete => 0,
        Outcome::Incomplete => 3,
    }
}

/// `keyframe snapshot`
pub fn take(ctx: &Context<'_>, args: SnapshotArgs, output: &Output) -> Result<u8, Error> {
    let [vm, others @ ..] = args.machines.as_slice() else {
        return Err(Error::BadRequest { what: "say which machine".to_owned() });
    };
    let request = SnapshotRequest {
        name: args.name,
        note: args.note,
        owner: args.owner,
        disk_only: args.disk_only,
        ttl: args.ttl,
        pin: args.pin,
        max_pause: args.max_pause,
        or_disk_only: args.or_disk_only,
        freeze: args.freeze.into(),
        ..SnapshotRequest::of(vm.clone())
    };
    if !others.is_empty() {
        let within = args.within.unwrap_or(group::WITHIN);
        return take_together(ctx, GroupRequest { machines: args.machines, each: request, within }, output);
    }
    let report = snapshot::take(ctx, &request)?;
    output.result("snapshot-taken", &report, taken(&request.vm, &report));
    Ok(exit_status(Outcome::of_snapshot(&request, &report)))
}

fn take_together(ctx: &Context<'_>, request: GroupRequest, output: &Output) -> Result<u8, Error> {
    let report = group::take(ctx, &request)?;
    let mut text = String::new();
    for member in &report.machines {
        text.push_str(&taken(&member.vm, &member.snapshot));
    }
    let window =
        report.window_ms.map_or_else(|| "none of them ran".to_owned(), |window_ms| format!("within {}", ms(window_ms)));
    let _ = writeln!(text, "{} machines of one instant ({}): {window}", report.machines.len(), report.group.short());
    output.result("group-taken", &report, text);
    let of = |member: &MemberReport| exit_status(Outcome::of_snapshot(&request.each, &member.snapshot));
    Ok(report.machines.iter().map(of).max().unwrap_or_default())
}

fn taken(vm: &VmName, report: &SnapshotReport) -> String {
    let mut text = format!("{vm}@{} ({}): {}\n", report.name, report.id.short(), report.consistency.as_str());
    let stall = report.guest_stall_ms_max.map_or_else(|| "not measured".to_owned(), ms);
    let rows = vec![
        vec!["  pause".to_owned(), ms(report.pause_ms)],
        vec!["  worst stall while saving".to_owned(), stall],
        vec!["  size on disk".to_owned(), size_on_disk(report)],
        vec!["  whole command".to_owned(), ms(report.total_ms)],
    ];
    text.push_str(&table(&rows));
    notes(&mut text, &report.notes);
    text
}

fn size_on_disk(report: &SnapshotReport) -> String {
    let size = format!("{} for {} of memory", report.bytes_on_disk, report.ram_bytes);
    if report.shared_bytes.bytes() == 0 {
        return size;
    }
    format!("{size}; {} of it shared with older snapshots", report.shared_bytes)
}

fn notes(text: &mut String, notes: &[String]) {
    for note in notes {
        let _ = writeln!(text, "  note: {note}");
    }
}

/// `keyframe show`
pub fn show(ctx: &Context<'_>, reference: &SnapshotRef, output: &Output) -> Result<u8, Error> {
    let report = tree::show(ctx, reference)?;
    let manifest = &report.manifest;
    let mut rows = vec![
        vec!["snapshot".to_owned(), format!("{}@{}", reference.vm, manifest.name)],
        vec!["id".to_owned(), manifest.id.to_string()],
        vec!["taken".to_owned(), format!("{} by {}", manifest.created, manifest.owner)],
        vec!["consistency".to_owned(), manifest.consistency.as_str().to_owned()],
        vec!["QEMU".to_owned(), format!("{} on {}", manifest.qemu.version, manifest.qemu.accelerator)],
        vec!["pause".to_owned(), ms(manifest.cost.pause_ms)],
        vec!["command".to_owned(), ms(manifest.cost.total_ms)],
    ];
    let mut add = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if let Some(note) = &manifest.note {
        add("note", note.clone());
    }
    if let Some(group) = &manifest.group {
        let names: Vec<&str> = group.machines.iter().map(VmName::as_str).collect();
        add("cut with", format!("{} ({})", names.join(", "), group.id.short()));
    }
    if let Some(parent) = &manifest.parent {
        add("follows", parent.to_string());
    }
    if let Some(expires) = &manifest.expires {
        add("expires", expires.to_string());
    }
    match &manifest.memory {
        Some(memory) => add("memory", memory_row(ctx, reference, manifest, memory)),
        None => add("memory", "none".to_owned()),
    }
    for chain in manifest.chains() {
        let layers: Vec<String> =
            chain.layers.iter().map(|layer| ctx.home.absolute(&layer.path).display().to_string()).collect();
        add(chain.disk.as_str(), layers.join(" on "));
    }
    let mut text = table(&rows);
    for test in &report.tests {
        text.push_str(&test::tested(test));
    }
    if let Some(reason) = &report.tests_unreadable {
        let _ = writeln!(text, "its tests cannot be read: {reason}");
    }
    output.result("snapshot", &report, text);
    Ok(0)
}

/// `keyframe snapshot-set`
pub fn set(ctx: &Context<'_>, args: SnapshotSetArgs, output: &Output) -> Result<u8, Error> {
    let vm = args.snapshot.vm.clone();
    let request = LabelRequest {
        reference: args.snapshot,
        name: args.name,
        note: args.note,
        wanted: args.ttl.map(Wanted::For).or(args.no_ttl.then_some(Wanted::Always)),
        pinned: args.pin.then_some(true).or(args.unpin.then_some(false)),
        owner: args.owner,
    };
    let manifest = label::set(ctx, &request)?;
    let mut rows = vec![vec!["  owner".to_owned(), manifest.owner.clone()]];
    let expires = manifest.expires.map_or_else(|| "never".to_owned(), |expires| expires.to_string());
    rows.push(vec!["  expires".to_owned(), expires]);
    rows.push(vec!["  pinned".to_owned(), if manifest.pinned { "yes" } else { "no" }.to_owned()]);
    rows.extend(manifest.note.as_ref().map(|note| vec!["  note".to_owned(), note.clone()]));
    let text = format!("{vm}@{} ({})\n{}", manifest.name, manifest.id.short(), table(&rows));
    output.result("snapshot-set", &manifest, text);
    Ok(0)
}

/// What a snapshot's memory takes, and where it lies.
fn memory_row(ctx: &Context<'_>, reference: &SnapshotRef, manifest: &Manifest, memory: &Memory) -> String {
    let spaces = sharing::memory_space(&ctx.home.vm(&reference.vm), std::iter::once(manifest.id.clone()));
    // What cannot be told is as it was written.
    let space = spaces.ok().and_then(|mut spaces| spaces.remove(&manifest.id));
    match space.filter(|space| space.elsewhere_bytes.bytes() > 0) {
        Some(space) => format!(
            "{} on disk for {}, and {} in older snapshots' files",
            space.own_bytes, memory.ram_bytes, space.elsewhere_bytes
        ),
        None => format!("{} on disk for {}", memory.bytes_on_disk, memory.ram_bytes),
    }
}

/// `keyframe revert`
pub fn revert(ctx: &Context<'_>, args: RevertArgs, output: &Output) -> Result<u8, Error> {
    let request = RevertRequest {
        strategy: args.strategy.map(Strategy::from).or(args.disk_only.then_some(Strategy::Cold)),
        reference: args.snapshot,
        discard: args.discard,
        accept_touched_layers: args.accept_touched_layers,
        no_wait: args.no_wait,
    };
    let report = revert::revert(ctx, &request)?;
    output.result("reverted", &report, reverted(&request.reference, &report));
    Ok(exit_status(Outcome::of_revert(&report)))
}

fn reverted(reference: &SnapshotRef, report: &RevertReport) -> String {
    let vm = &reference.vm;
    let mut text = format!("{vm} is back at {} after {}\n", report.name, ms(report.running_ms));
    let mut rows = Vec::new();
    let mut add = |name: &str, value: String| rows.push(vec![format!("  {name}"), value]);
    add("strategy", format!("{:?}", report.strategy).to_lowercase());
    if let Some(down) = report.down_ms {
        add("stood still for", ms(down));
    }
    match report.hydrated_ms {
        Some(hydrated) => add("all memory there", format!("after {}", ms(hydrated))),
        None => add("memory", "still on its way in the background".to_owned()),
    }
    if let Some(skew) = report.clock_skew_ms {
        add("guest's clock", format!("was {} behind, and is set", ms(skew)));
    }
    if let Some(kept) = &report.kept_name {
        add("the present is kept", format!("{vm}@{kept}"));
    }
    text.push_str(&table(&rows));
    notes(&mut text, &report.notes);
    text
}

/// `keyframe fork`
pub fn fork(ctx: &Context<'_>, args: ForkArgs, output: &Output) -> Result<u8, Error> {
    let request = ForkRequest {
        reference: args.snapshot,
        name: args.name,
        count: args.count,
        strategy: match args.strategy {
            ForkStrategy::Mapped => None,
            ForkStrategy::Lazy => Some(Strategy::Lazy),
            ForkStrategy::Eager => Some(Strategy::Eager),
        },
        network: args.net.and_then(|net| net.0),
    };
    let report = fork::fork(ctx, &request)?;
    let mut text =
        format!("{} machine(s) continue from {}, after {}\n", report.machines.len(), report.from, ms(report.total_ms));
    for machine in &report.machines {
        let mac = machine.mac.as_ref().map_or_else(String::new, |mac| format!(", {mac}"));
        let _ = writeln!(text, "  {} (pid {}{mac}): runs after {}", machine.name, machine.pid, ms(machine.running_ms));
        notes(&mut text, &machine.notes);
    }
    if let Some(not_made) = &report.not_made {
        let names: Vec<&str> = not_made.names.iter().map(VmName::as_str).collect();
        let _ = writeln!(text, "not made: {}: {}", names.join(", "), not_made.reason);
    }
    output.result("forked", &report, text);
    Ok(exit_status(Outcome::of_fork(&report)))
}

/// `keyframe memory export`
pub fn export_memory(ctx: &Context<'_>, reference: &SnapshotRef, file: &Path, output: &Output) -> Result<u8, Error> {
    let export = sharing::export(ctx, reference, file)?;
    let text = format!(
        "the memory of {reference} is in {}, {}; QEMU loads it with `-global migration.mapped-ram=on -incoming file:…`\n",
        export.file.display(),
        export.bytes_on_disk
    );
    output.result("memory-exported", &export, text);
    Ok(0)
}
