//! `keyframe vm …`

use std::fmt::Write as _;

use keyframe_daemon::service;
use keyframe_engine::create::{self, CreateRequest};
use keyframe_engine::lifecycle::{self, Listed, MachineReport, MachineSummary, StopHow};
use keyframe_engine::machine::{Ending, State};
use keyframe_engine::remove::{self, Execution, Pinned, Removal};
use keyframe_engine::state::durable;
use keyframe_engine::{Context, Error};
use keyframe_hypervisor::DirectKernel;
use keyframe_types::ByteLen;
use serde_json::json;

use super::console;
use crate::args::{CreateArgs, VmCommand};
use crate::output::{Output, ms, table};
use crate::record::who_types;

/// Runs one of them.
pub fn run(ctx: &Context<'_>, command: VmCommand, output: &Output) -> Result<u8, Error> {
    match command {
        VmCommand::Create(args) => create(ctx, *args, output)?,
        VmCommand::Start { name } => {
            let report = lifecycle::start(ctx, &name)?;
            let text = format!(
                "{name} runs on {} (pid {}), after {}\n",
                report.accelerator,
                report.pid,
                ms(report.running_ms)
            );
            output.result("vm-start", &report, text);
        }
        VmCommand::Stop { name, force, timeout } => {
            let how = if force { StopHow::Force } else { StopHow::Acpi { patience: timeout } };
            ctx.progress.step("waiting for the guest to shut down");
            lifecycle::stop(ctx, &name, how)?;
            output.result("vm-stop", &json!({"name": name, "state": "stopped"}), format!("{name} is stopped\n"));
        }
        VmCommand::List => return list(ctx, output),
        VmCommand::Show { name } => {
            let report = lifecycle::show(ctx, &name)?;
            output.result("vm", &report, described(&report));
        }
        VmCommand::Console { name } => {
            let report = lifecycle::show(ctx, &name)?;
            let path = report.console.ok_or_else(|| Error::WrongState {
                vm: name.clone(),
                state: report.state.as_str().to_owned(),
                advice: "start it with `keyframe vm start`; what it wrote before is in its serial log",
            })?;
            console::run(&path)?;
        }
        VmCommand::Remove { name, force, dry_run } => {
            let pinned = if force { Pinned::GoToo } else { Pinned::Hold };
            let execution = if dry_run { Execution::DryRun } else { Execution::CarryOut };
            let removal = remove::remove(ctx, &name, pinned, execution)?;
            if execution != Execution::DryRun {
                leave_word(ctx, &removal);
            }
            removed(execution, &removal, output);
        }
    }
    Ok(0)
}

fn create(ctx: &Context<'_>, args: CreateArgs, output: &Output) -> Result<(), Error> {
    let kernel = args.kernel.map(|kernel| DirectKernel { kernel, initrd: args.initrd, append: args.append });
    let request = CreateRequest {
        name: args.name,
        memory: args.memory,
        cpus: args.cpus,
        disks: args.disks,
        kernel,
        firmware: args.firmware.into(),
        network: args.net.0,
        accel: args.accel.into(),
        tags: args.tags.iter().map(ToString::to_string).collect(),
        extra_args: args.extra_args,
    };
    let machine = create::create(ctx, request)?;
    let name = machine.name();
    let document = json!({"name": name, "directory": machine.dir.root(), "definition": machine.definition});
    let disks = machine.definition.disks.len();
    let text = format!(
        "created {name}: {} of memory, {} CPU(s), {disks} disk(s) used in place\nstart it with `keyframe vm start {name}`\n",
        machine.definition.memory(),
        machine.definition.cpus,
    );
    output.result("vm-create", &document, text);
    Ok(())
}

/// Tells a daemon that a machine is not missed; where none ever served this home, nobody.
fn leave_word(ctx: &Context<'_>, removal: &Removal) {
    let serve = service::directory(ctx.home);
    let dir = service::removed_dir(&serve);
    if !serve.is_dir() {
        return;
    }
    let by = who_types();
    let told = durable::create_private_dir(&dir)
        .and_then(|()| durable::replace(&dir.join(removal.name.as_str()), by.as_bytes()));
    if let Err(error) = told {
        // It is gone all the same. The daemon misses it for a week.
        ctx.progress.note(&format!("the daemon cannot be told: {error}"));
    }
}

fn removed(execution: Execution, removal: &Removal, output: &Output) {
    let dry_run = execution == Execution::DryRun;
    let (verb, left) = if dry_run { ("would remove", "would stay") } else { ("removed", "left as it is") };
    let (name, count) = (&removal.name, removal.snapshots.len());
    let mut text = format!("{verb} {name} with {count} snapshot(s), {} freed\n", removal.bytes_freed);
    for snapshot in removal.snapshots.iter().filter(|_| dry_run) {
        let _ = writeln!(text, "{verb}: {name}@{snapshot}");
    }
    for path in &removal.left {
        let _ = writeln!(text, "{left}: {}", path.display());
    }
    output.result(
        "vm-remove",
        &json!({"dry_run": dry_run, "name": name, "removal": removal, "left": removal.left}),
        text,
    );
}

fn list(ctx: &Context<'_>, output: &Output) -> Result<u8, Error> {
    let entries = lifecycle::list(ctx)?;
    let mut rows = vec![["NAME", "STATE", "PID", "MEMORY", "CPUS", "DISKS", "SNAPSHOTS"].map(str::to_owned).to_vec()];
    let mut documents = Vec::new();
    let mut unreadable = false;
    for entry in &entries {
        match entry {
            Listed::Machine(machine) => {
                rows.push(row(machine));
                documents.push(json!(machine));
            }
            Listed::Unreadable { name, reason } => {
                unreadable = true;
                rows.push(vec![name.to_string(), format!("unreadable: {reason}")]);
                documents.push(json!({"name": name, "state": "unreadable", "error": reason}));
            }
        }
    }
    let warning = |entry: &Listed| match entry {
        Listed::Machine(machine) => machine.warning.as_ref().map(|text| format!("{}: {text}\n", machine.name)),
        Listed::Unreadable { .. } => None,
    };
    let warnings: String = entries.iter().filter_map(warning).collect();
    let text = if entries.is_empty() {
        "no machines yet; `keyframe vm create NAME --disk IMAGE` makes one\n".to_owned()
    } else {
        table(&rows) + &warnings
    };
    output.result("vm-list", &json!({"machines": documents}), text);
    Ok(if unreadable { 3 } else { 0 })
}

fn row(machine: &MachineSummary) -> Vec<String> {
    vec![
        machine.name.to_string(),
        match (&machine.boot, &machine.hydration, &machine.busy) {
            (Some(boot), ..) => format!("{} ({})", machine.state.as_str(), boot.brief()),
            (None, Some(hydration), _) => format!("{} ({})", machine.state.as_str(), hydration.brief()),
            (None, None, Some(_)) => format!("{} (busy)", machine.state.as_str()),
            (None, None, None) => machine.state.as_str().to_owned(),
        },
        machine.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        ByteLen::from_bytes(machine.memory_bytes).to_string(),
        machine.cpus.to_string(),
        machine.disks.to_string(),
        machine.snapshots.to_string(),
    ]
}

fn described(report: &MachineReport) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut add = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    let definition = &report.definition;
    add("machine", report.name.to_string());
    add("state", report.state.as_str().to_owned());
    match report.ended {
        Some(Ending::GuestShutdown) => add("", "the guest has shut down".to_owned()),
        Some(Ending::HostRestart) => add("", "the host was restarted while it ran".to_owned()),
        Some(Ending::Crash) | None => {}
    }
    if let Some(holder) = &report.busy {
        add("busy", format!("{holder} is at work on it"));
    }
    if let Some(boot) = &report.boot {
        add("stands on", boot.sentence());
    }
    if let Some(hydration) = &report.hydration {
        add("memory", hydration.sentence());
    }
    if report.state == State::Crashed {
        let words = report.last_words.as_deref().filter(|words| !words.is_empty());
        add("", format!("QEMU ended without being told to; it said: {}", words.unwrap_or("nothing")));
    }
    if let (Some(pid), Some(accelerator), Some(version)) = (report.pid, report.accelerator, report.qemu_version) {
        add("process", format!("pid {pid}, QEMU {version} on {accelerator}"));
    }
    add("memory", definition.memory().to_string());
    add("CPUs", definition.cpus.to_string());
    add("machine type", definition.machine_type.clone());
    if let Some(nic) = &definition.nic {
        add("network", format!("{} on {}", nic.mac, nic.network));
    }
    for disk in &report.disks {
        let layers: Vec<String> = disk.layers.iter().map(|path| path.display().to_string()).collect();
        add(
            &disk.id,
            format!("{}, {} layer(s): {}", ByteLen::from_bytes(disk.virtual_bytes), layers.len(), layers.join(" on ")),
        );
    }
    add("descends from", report.head.as_ref().map_or_else(|| "no snapshot".to_owned(), ToString::to_string));
    add("serial log", report.serial_log.display().to_string());
    if let Some(qmp) = &report.qmp {
        add("QMP", qmp.display().to_string());
    }
    table(&rows)
}
