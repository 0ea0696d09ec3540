//! `keyframe backup`, `points`, `restore`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use keyframe_engine::backup::group::{self, GroupBackupReport, GroupBackupRequest};
use keyframe_engine::backup::members::{self, GroupPoint};
use keyframe_engine::backup::{self, BackupReport, BackupRequest, ChangedBy, LiveOptions, MachinePoint, StateOf, Way};
use keyframe_engine::courtesy::aside;
use keyframe_engine::restore::{file, group as groups, in_place, machine};
use keyframe_engine::revert::{self, RevertRequest};
use keyframe_engine::snapshot::group::WITHIN;
use keyframe_engine::state::manifest::Consistency;
use keyframe_engine::{Context, Error, lifecycle};
use keyframe_repo::ids::ObjectId;
use keyframe_repo::mark::{self, Standing, Statement};
use keyframe_repo::{Point, Repository, Totals};
use keyframe_types::{ByteLen, SnapshotRef, Timestamp, VmName};
use serde_json::{Value, json};

use super::repository;
use crate::backup_args::{BackupArgs, BackupTarget, HoldArgs, LockArgs, PointsArgs, RestoreArgs};
use crate::output::{Output, ms, table};

/// `keyframe backup`
pub fn backup(ctx: &Context<'_>, args: BackupArgs, output: &Output) -> Result<u8, Error> {
    if args.group.is_some() || args.targets.len() > 1 {
        return together(ctx, args, output);
    }
    let target = args.targets.first().ok_or_else(|| Error::BadRequest { what: "say which machine".to_owned() })?;
    let of = state_of(&args, target)?;
    repository::keep_memory();
    let repository = Arc::new(aside(|| repository::open(&args.place))?);
    let request = BackupRequest {
        vm: target.vm.clone(),
        of,
        freeze: args.freeze.into(),
        audit_percent: args.audit.unwrap_or(0),
        tags: args.tags,
        note: args.note,
    };
    let report = backup::backup(ctx, &repository, &request)?;
    output.result("backup", &report, stored(&report));
    Ok(if report.incomplete { 3 } else { 0 })
}

/// Several machines as one point.
fn together(ctx: &Context<'_>, args: BackupArgs, output: &Output) -> Result<u8, Error> {
    let refused = |what: &str| Err(Error::BadRequest { what: what.to_owned() });
    let Some(name) = args.group else {
        return refused("several machines are backed up as a group: say what it is called with --group NAME");
    };
    if args.targets.iter().any(|target| target.snapshot.is_some()) {
        return refused("a group is cut when it is backed up: name its machines, without @SNAP");
    }
    repository::keep_memory();
    let repository = Arc::new(aside(|| repository::open(&args.place))?);
    let request = GroupBackupRequest {
        name,
        machines: args.targets.into_iter().map(|target| target.vm).collect(),
        memory: args.memory,
        freeze: args.freeze.into(),
        audit_percent: args.audit.unwrap_or(0),
        within: args.within.unwrap_or(WITHIN),
        tags: args.tags,
        note: args.note,
    };
    let report = group::backup(ctx, &repository, &request)?;
    output.result("backup", &report, stored_together(&report));
    Ok(if report.incomplete { 3 } else { 0 })
}

fn stored_together(report: &GroupBackupReport) -> String {
    let id = report.id.get(..8).unwrap_or(&report.id);
    let mut text = format!("{}@{id}: {} machines of one instant\n", report.name, report.machines.len());
    let mut rows: Vec<Vec<String>> = report
        .machines
        .iter()
        .map(|member| {
            let changed = changed_by(&member.changed_by);
            vec![format!("  {}", member.vm), achieved(member.consistency, member.memory), ms(member.pause_ms), changed]
        })
        .collect();
    rows.insert(0, ["  MACHINE", "CONSISTENCY", "PAUSE", "CHANGED BY"].map(str::to_owned).to_vec());
    text.push_str(&table(&rows));
    let mut rows = what_it_took(&report.totals, report.total_ms);
    rows.extend(report.window_ms.map(|window_ms| ("  stood still within", ms(window_ms))));
    rows.extend(report.audited_bytes.map(|audited| ("  audited", audited.to_string())));
    text.push_str(&rows_and_notes(rows, &report.notes));
    text
}

/// Rows that every backup's report has.
fn what_it_took(totals: &Totals, total_ms: f64) -> Vec<(&'static str, String)> {
    vec![
        ("  read", size(totals.scanned_bytes)),
        ("  new", size(totals.new_bytes)),
        ("  stored", size(totals.stored_bytes)),
        ("  whole command", ms(total_ms)),
    ]
}

fn rows_and_notes(rows: Vec<(&str, String)>, notes: &[String]) -> String {
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let mut text = table(&rows);
    for note in notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

fn changed_by(of_disks: &BTreeMap<String, ChangedBy>) -> String {
    of_disks.iter().map(|(disk, by)| format!("{disk} {}", by.as_str())).collect::<Vec<_>>().join(", ")
}

fn state_of(args: &BackupArgs, target: &BackupTarget) -> Result<StateOf, Error> {
    let refused = |what: &str| Err(Error::BadRequest { what: what.to_owned() });
    match (&target.snapshot, args.live) {
        (existing, false) => Ok(StateOf::Snapshot { existing: existing.clone(), memory: args.memory }),
        (Some(_), true) => refused("--live is of the machine as it is now; a snapshot is backed up without it"),
        (None, true) if args.memory => refused(
            "--live reads disks only: memory of the same instant takes a snapshot, which --memory without --live takes and \
             lets go again",
        ),
        (None, true) => Ok(StateOf::Live(LiveOptions {
            scratch: args.scratch.clone(),
            scratch_bytes: args.scratch_size,
            max_latency: args.max_latency,
        })),
    }
}

fn size(bytes: u64) -> String {
    ByteLen::from_bytes(bytes).to_string()
}

fn stored(report: &BackupReport) -> String {
    let id = report.id.get(..8).unwrap_or(&report.id);
    let mut text = format!("{}@{id}: {}\n", report.name, achieved(report.consistency, report.memory));
    let mut rows = vec![("  changed by", changed_by(&report.changed_by))];
    rows.extend(what_it_took(&report.totals, report.total_ms));
    if let Some(audited) = report.audited_bytes {
        rows.push(("  audited", audited.to_string()));
    }
    if let Some(pause_ms) = report.pause_ms {
        rows.insert(0, ("  pause", ms(pause_ms)));
    }
    if let Some(live) = &report.live {
        if let Some(took) = live.request_ms_max {
            rows.push(("  guest's requests took", format!("at most {}", ms(took))));
        }
        rows.push(("  kept for it meanwhile", live.scratch_bytes.to_string()));
        if live.slowed_ms > 0.0 {
            rows.push(("  slowed for the guest", ms(live.slowed_ms)));
        }
    }
    text.push_str(&rows_and_notes(rows, &report.notes));
    text
}

fn achieved(consistency: Consistency, memory: bool) -> String {
    let memory = if memory { " with memory" } else { "" };
    format!("{}{memory}", consistency.as_str())
}

/// `keyframe points`
pub fn points(args: &PointsArgs, output: &Output) -> Result<u8, Error> {
    let repository = repository::open(&args.place)?;
    let (all, damaged) = repository.points()?;
    let groups: BTreeMap<ObjectId, String> = all
        .iter()
        .filter(|point| GroupPoint::of(point).is_some())
        .map(|point| (point.id, point.name.clone()))
        .collect();
    let mut all: Vec<Point> = members::apart(all).collect();
    all.retain(|point| args.vm.as_ref().is_none_or(|vm| point.name == vm.as_str()));
    let machines: Vec<(Point, MachinePoint)> =
        all.into_iter().filter_map(|point| MachinePoint::of(&point).ok().map(|machine| (point, machine))).collect();
    let heads = [
        "POINT",
        "STATE OF",
        "CONSISTENCY",
        "SIZE",
        "NEW",
        "STORED",
        "CHANGED BY",
        "KEPT",
        "DRILLED",
        "GROUP",
        "TAGS",
        "NOTE",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let (standings, damaged_marks) = mark::standings(&repository)?;
    let standing = |point: &Point| standings.get(&point.id).cloned().unwrap_or_default();
    rows.extend(machines.iter().map(|(point, machine)| row(point, machine, &standing(point), groups.get(&point.id))));
    let mut text = if machines.is_empty() { "no machine is stored here\n".to_owned() } else { table(&rows) };
    for (id, error) in damaged.iter().chain(&damaged_marks) {
        let _ = writeln!(text, "damaged: {id}: {error}");
    }
    let document = json!({
        "points": machines.iter().map(|(point, machine)| document(point, machine, &standing(point), groups.get(&point.id))).collect::<Vec<_>>(),
        "damaged": damaged.iter().map(|(id, error)| json!({"id": id, "reason": error.to_string()})).collect::<Vec<_>>(),
    });
    output.result("points", &document, text);
    Ok(if damaged.is_empty() && damaged_marks.is_empty() { 0 } else { 3 })
}

/// `keyframe hold`
pub fn hold(args: &HoldArgs, output: &Output) -> Result<u8, Error> {
    let repository = repository::open(&args.place)?;
    let point = members::find(&repository, &args.point)?;
    let name = format!("{}@{}", point.name, point.id.short());
    let (mark, text) = if args.release {
        (mark::release(&repository, point.id)?, format!("{name} is held no more\n"))
    } else {
        let hold = Statement::Hold { reason: args.reason.clone() };
        (mark::mark(&repository, point.id, hold)?, format!("{name} is held until `keyframe hold --release`\n"))
    };
    output.result("point-marked", &mark, text);
    Ok(0)
}

/// `keyframe lock`
pub fn lock(args: &LockArgs, output: &Output) -> Result<u8, Error> {
    let repository = repository::open(&args.place)?;
    let point = members::find(&repository, &args.point)?;
    let until = args.until.or_else(|| args.span.map(|span| Timestamp::now().after(span)));
    let until = until.ok_or_else(|| Error::BadRequest { what: "say --until or --for".to_owned() })?;
    if until <= Timestamp::now() {
        return Err(Error::BadRequest { what: format!("{until} has passed: nothing would be locked") });
    }
    let mark = mark::mark(&repository, point.id, Statement::Lock { until })?;
    let text = format!(
        "{}@{} is locked until {until}: no rule forgets it, and no command takes that back\n",
        point.name,
        point.id.short()
    );
    output.result("point-marked", &mark, text);
    Ok(0)
}

fn row(point: &Point, machine: &MachinePoint, standing: &Standing, group: Option<&String>) -> Vec<String> {
    let snapshot = &machine.snapshot;
    let mut changed: Vec<&str> = machine.disks.iter().map(|disk| disk.changed_by.as_str()).collect();
    changed.dedup();
    vec![
        format!("{}@{}", point.name, point.id.short()),
        snapshot.created.to_string(),
        {
            let mut worth = achieved(snapshot.consistency, snapshot.memory.is_some());
            if machine.taken == Way::Live {
                worth.push_str(", live");
            }
            match machine.unreadable_bytes() {
                ByteLen::ZERO => worth,
                missing => format!("{worth}, {missing} missing"),
            }
        },
        size(point.totals.logical_bytes),
        size(point.totals.new_bytes),
        size(point.totals.stored_bytes),
        changed.join(", "),
        kept(standing),
        standing
            .drilled
            .map_or_else(String::new, |(at, passed)| format!("{} {at}", if passed { "passed" } else { "FAILED" })),
        group.map_or_else(String::new, |group| format!("{group}@{}", point.id.short())),
        point.tags.join(","),
        snapshot.note.clone().unwrap_or_default(),
    ]
}

/// Why it is not forgotten by rule.
fn kept(standing: &Standing) -> String {
    match (standing.kept_as(Timestamp::now()), standing.locked_until, &standing.held) {
        (Some("locked"), Some(until), _) => format!("until {until}"),
        (Some(word), _, Some(reason)) if !reason.is_empty() => format!("{word}: {reason}"),
        (word, ..) => word.unwrap_or_default().to_owned(),
    }
}

fn document(point: &Point, machine: &MachinePoint, standing: &Standing, group: Option<&String>) -> Value {
    let snapshot = &machine.snapshot;
    let disk = |disk: &backup::DiskInPoint| {
        let by: ChangedBy = disk.changed_by;
        json!({"disk": disk.disk, "bytes": disk.bytes, "changed_by": by})
    };
    json!({
        "id": point.id,
        "name": point.name,
        "group": group,
        "tags": point.tags,
        "created": point.created,
        "state_of": snapshot.created,
        "host": point.host,
        "consistency": snapshot.consistency,
        "memory": snapshot.memory.is_some(),
        "taken": machine.taken,
        "unreadable_bytes": machine.unreadable_bytes(),
        "pause_ms": snapshot.cost.pause_ms,
        "note": snapshot.note,
        "qemu": snapshot.qemu.version.to_string(),
        "disks": machine.disks.iter().map(disk).collect::<Vec<_>>(),
        "totals": point.totals,
        "held": standing.held,
        "locked_until": standing.locked_until,
        "drilled": standing.drilled.map(|(at, passed)| json!({"at": at, "passed": passed})),
    })
}

/// `keyframe restore`
pub fn restore(ctx: &Context<'_>, args: &RestoreArgs, output: &Output) -> Result<u8, Error> {
    let begun = Instant::now();
    repository::keep_memory();
    let repository = repository::open(&args.place)?;
    let point = members::find(&repository, &args.point)?;
    if args.in_place {
        return in_place(ctx, &Arc::new(repository), &point, args, begun, output);
    }
    if let (Some(prefix), true) = (&args.new, GroupPoint::of(&point).is_some()) {
        return as_machines(ctx, &repository, &point, (prefix, args.run), begun, output);
    }
    match (&args.new, &args.to) {
        (Some(name), _) => as_machine(ctx, &repository, &point, name, args.run, begun, output),
        (None, Some(path)) => to_file(ctx, &repository, &point, args, path, begun, output),
        (None, None) => Err(Error::BadRequest { what: "say --as NEW or --to FILE".to_owned() }),
    }
}

fn as_machine(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    name: &VmName,
    run: bool,
    begun: Instant,
    output: &Output,
) -> Result<u8, Error> {
    let restored = machine::restore(ctx, repository, point, name)?;
    if run {
        go_on(ctx, &restored)?;
    }
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let mut text =
        format!("{name} is back from {}: {} written, after {}\n", restored.point, restored.written_bytes, ms(took));
    text.push_str(&match (&restored.snapshot, run) {
        (_, true) => "it runs\n".to_owned(),
        (Some(snapshot), false) => format!("`keyframe revert {name}@{snapshot}` goes on with its running state\n"),
        (None, false) => format!("start it with `keyframe vm start {name}`\n"),
    });
    for note in &restored.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    let document = json!({"machine": restored, "running": run, "total_ms": took});
    output.result("restored", &document, text);
    Ok(0)
}

/// All machines of a group's point.
fn as_machines(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    (prefix, run): (&VmName, bool),
    begun: Instant,
    output: &Output,
) -> Result<u8, Error> {
    let restored = groups::restore(ctx, repository, point, prefix)?;
    if run {
        // At the same time: they are used to each other.
        std::thread::scope(|threads| {
            let ways: Vec<_> =
                restored.machines.iter().map(|machine| threads.spawn(move || go_on(ctx, machine))).collect();
            let ended = ways.into_iter().map(|way| way.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.collect::<Vec<_>>().into_iter().collect::<Result<(), Error>>()
        })?;
    }
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let mut text =
        format!("{} machines are back from {}, after {}\n", restored.machines.len(), restored.point, ms(took));
    let rows: Vec<Vec<String>> = restored
        .machines
        .iter()
        .map(|machine| vec![format!("  {}", machine.name), format!("{} written", machine.written_bytes)])
        .collect();
    text.push_str(&table(&rows));
    let _ = writeln!(text, "they share the network {}, and reach nobody else", restored.network);
    text.push_str(if run {
        "they run\n"
    } else {
        "start them with `keyframe vm start`, or `revert` to their running states\n"
    });
    for machine in &restored.machines {
        for note in &machine.notes {
            let _ = writeln!(text, "  note: {}: {note}", machine.name);
        }
    }
    let document = json!({"group": restored, "running": run, "total_ms": took});
    output.result("restored", &document, text);
    Ok(0)
}

fn go_on(ctx: &Context<'_>, restored: &machine::RestoredMachine) -> Result<(), Error> {
    let Some(snapshot) = &restored.snapshot else { return lifecycle::start(ctx, &restored.name).map(drop) };
    let reference = format!("{}@{snapshot}", restored.name).parse::<SnapshotRef>();
    let reference = reference.map_err(|error| Error::BadRequest { what: error.to_string() })?;
    let request =
        RevertRequest { reference, discard: true, strategy: None, accept_touched_layers: false, no_wait: false };
    revert::revert(ctx, &request).map(drop)
}

fn in_place(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    point: &Point,
    args: &RestoreArgs,
    begun: Instant,
    output: &Output,
) -> Result<u8, Error> {
    let report = in_place::restore(ctx, repository, point, args.disk.as_ref())?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let mut text = format!("{} is as in {}, after {}\n", point.name, report.point, ms(took));
    let rows = report.disks.iter().map(|disk| vec![format!("  {}", disk.disk), format!("{} differed", disk.written)]);
    text.push_str(&table(&rows.collect::<Vec<_>>()));
    let _ = writeln!(text, "what was the present is kept as {}@{}", point.name, report.kept);
    for note in &report.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    let document = json!({"machine": point.name, "in_place": report, "total_ms": took});
    output.result("restored", &document, text);
    Ok(0)
}

fn to_file(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    args: &RestoreArgs,
    path: &Path,
    begun: Instant,
    output: &Output,
) -> Result<u8, Error> {
    let format = args.format.map_or_else(|| file::DiskFormat::of_ending(path), Into::into);
    let (disk, report) = file::restore(ctx, repository, point, args.disk.as_ref(), path, format)?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let text = format!(
        "{disk} of {}@{} is in {} ({}): {}, of which {} are not zero, after {}\n",
        point.name,
        point.id.short(),
        path.display(),
        format.as_str(),
        size(report.logical_bytes),
        size(report.written_bytes),
        ms(took)
    );
    let document = json!({"point": point.id, "disk": disk, "file": path, "format": format.as_str(), "report": report, "total_ms": took});
    output.result("restored", &document, text);
    Ok(0)
}
