//! Is this host, or this machine, fit for snapshots, and what will they cost? Every finding says what to do about it.

use keyframe_hypervisor::host::{self, KvmState, Qemu};
use keyframe_hypervisor::{AccelChoice, Firmware, Monitor, extra_args};
use keyframe_qmp::Client;
use keyframe_qmp::commands::migration::{Capability, MigrateSetCapabilities, QueryMigrate};
use keyframe_types::{ByteLen, VmName};
use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::machine::{Machine, State};
use crate::pause;
use crate::space;
use crate::state::head::Process;
use crate::state::lock::Lock;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// Works, but costs something.
    Note,
    /// Stands in the way.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it is.
    pub level: Level,
    /// What was seen.
    pub text: String,
    /// What to do about it.
    pub action: Option<String>,
}

/// All that was looked at.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// The machine, if one was named.
    pub vm: Option<VmName>,
    /// The pause to expect of a snapshot now, in milliseconds; for a machine that runs.
    pub expected_pause_ms: Option<f64>,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    fn good(&mut self, subject: &'static str, text: impl Into<String>) {
        self.findings.push(Finding { subject, level: Level::Good, text: text.into(), action: None });
    }

    fn note(&mut self, subject: &'static str, text: impl Into<String>, action: impl Into<String>) {
        let (text, action) = (text.into(), Some(action.into()));
        self.findings.push(Finding { subject, level: Level::Note, text, action });
    }

    fn bad(&mut self, subject: &'static str, text: impl Into<String>, action: impl Into<String>) {
        let (text, action) = (text.into(), Some(action.into()));
        self.findings.push(Finding { subject, level: Level::Bad, text, action });
    }
}

/// Looks at the host, and at a machine if one is named.
///
/// # Errors
/// [`Error::NoMachine`]; what is wrong is a finding, not an error.
pub fn examine(ctx: &Context<'_>, vm: Option<&VmName>) -> Result<Diagnosis, Error> {
    let mut diagnosis = Diagnosis { vm: vm.cloned(), expected_pause_ms: None, findings: Vec::new() };
    let machine = vm.map(|name| Machine::open(ctx.home, name)).transpose()?;
    qemu(&mut diagnosis);
    kvm(&mut diagnosis, machine.as_ref().map(|machine| machine.definition.accel));
    write_protection(&mut diagnosis);
    memory(&mut diagnosis);
    disk_space(&mut diagnosis, ctx, machine.as_ref());
    if let Some(machine) = &machine {
        definition(&mut diagnosis, machine);
        layers(&mut diagnosis, ctx, machine);
        running(&mut diagnosis, machine);
    }
    Ok(diagnosis)
}

fn qemu(diagnosis: &mut Diagnosis) {
    match Qemu::find().and_then(|qemu| Ok((qemu.version()?, qemu))) {
        Ok((version, qemu)) => diagnosis.good("QEMU", format!("{version} at {}", qemu.path().display())),
        Err(error) => diagnosis.bad("QEMU", error.to_string(), "install it, or name it in KEYFRAME_QEMU"),
    }
    match host::find_ovmf() {
        Ok((code, _)) => diagnosis.good("UEFI firmware", code.0.display().to_string()),
        Err(error) => diagnosis.note("UEFI firmware", error.to_string(), "only machines with --firmware uefi need it"),
    }
}

fn kvm(diagnosis: &mut Diagnosis, choice: Option<AccelChoice>) {
    let state = KvmState::probe();
    match (state, choice) {
        (KvmState::Works, _) => diagnosis.good("KVM", "works"),
        (state, Some(AccelChoice::Kvm)) => {
            diagnosis.bad(
                "KVM",
                state.to_string(),
                "this machine asks for KVM: set accel = \"auto\" in its machine.toml",
            );
        }
        (KvmState::Forbidden, _) => {
            diagnosis.note(
                "KVM",
                state.to_string(),
                "add the user to the group that owns /dev/kvm; machines run on TCG, slowly",
            );
        }
        (state, _) => diagnosis.note("KVM", state.to_string(), "machines run on TCG, which is slow but right"),
    }
}

fn write_protection(diagnosis: &mut Diagnosis) {
    if host::userfaultfd_works() {
        diagnosis.good("userfaultfd", "can be used: memory can be saved while a guest runs");
    } else {
        diagnosis.bad(
            "userfaultfd",
            "may not be used by this user: memory cannot be saved while a guest runs",
            "run as root, give the user access to /dev/userfaultfd, or `sysctl vm.unprivileged_userfaultfd=1`",
        );
    }
}

fn memory(diagnosis: &mut Diagnosis) {
    if host::transparent_huge_pages() {
        diagnosis.good("huge pages", "memory that asks for them gets them: pauses stay short");
    } else {
        diagnosis.note(
            "huge pages",
            "transparent huge pages are off: a pause grows by about 10 ms with each GiB of memory in use",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        );
    }
    diagnosis.good("memory", format!("{} available", host::available_memory()));
}

fn disk_space(diagnosis: &mut Diagnosis, ctx: &Context<'_>, machine: Option<&Machine>) {
    let wanted = machine.and_then(Machine::process).map_or(ByteLen::ZERO, pause::resident);
    match space::free(ctx.home.root()) {
        Ok(free) if free > wanted + wanted => {
            diagnosis.good("disk space", format!("{free} free in {}", ctx.home.root().display()))
        }
        Ok(free) => diagnosis.note(
            "disk space",
            format!("{free} free in {}; a snapshot now takes up to {wanted}", ctx.home.root().display()),
            "delete snapshots, or move the home to a larger file system",
        ),
        Err(error) => diagnosis.bad("disk space", error.to_string(), "see whether the home can be read"),
    }
}

fn definition(diagnosis: &mut Diagnosis, machine: &Machine) {
    match extra_args::check(&machine.definition.extra_args) {
        Ok(()) => diagnosis.good("QEMU arguments", "nothing that would escape a snapshot"),
        Err(refused) => {
            diagnosis.bad("QEMU arguments", refused.to_string(), "take it out of the machine's machine.toml")
        }
    }
    if machine.definition.firmware == Firmware::Uefi && machine.head.nvram.is_none() {
        diagnosis.bad(
            "firmware",
            "UEFI without a file for its variables",
            "create the machine again with --firmware uefi",
        );
    }
}

fn layers(diagnosis: &mut Diagnosis, ctx: &Context<'_>, machine: &Machine) {
    let depth = machine.head.chains().map(|chain| chain.layers.len()).max().unwrap_or(0);
    match Machine::check_layers(ctx.home, machine.head.chains()) {
        Ok(()) => diagnosis.good("layers", format!("all there and untouched; the longest chain has {depth}")),
        Err(error) => {
            let action = error.advice().unwrap_or_default();
            diagnosis.bad("layers", error.to_string(), action);
        }
    }
}

fn running(diagnosis: &mut Diagnosis, machine: &Machine) {
    let state = machine.look();
    let Some(process) = machine.process().filter(|_| matches!(state, State::Running | State::Paused)) else {
        return match state {
            State::Stopped => diagnosis.good("machine", "stopped: a snapshot freezes its disks, without a pause"),
            state => diagnosis.bad("machine", state.as_str(), "`keyframe vm show` tells what QEMU said last"),
        };
    };
    let expected = pause::expected(process);
    diagnosis.expected_pause_ms = Some(expected.as_secs_f64() * 1e3);
    if process.mapped.is_some() {
        diagnosis.note(
            "machine",
            "its memory is mapped from a snapshot's image: it cannot be snapshotted with memory while it runs",
            "fork with --strategy lazy or eager where that is wanted",
        );
    } else {
        live(diagnosis, machine, process);
    }
    let resident = pause::resident(process);
    diagnosis.good(
        "expected pause",
        format!(
            "{:.1} ms, {:.0} ms if the guest has to be stopped first; {resident} of memory to write at most",
            expected.as_secs_f64() * 1e3,
            pause::expected_stop_first(process).as_secs_f64() * 1e3,
        ),
    );
}

/// Asks QEMU itself whether it could save the machine while it runs, and takes the question back.
fn live(diagnosis: &mut Diagnosis, machine: &Machine, process: &Process) {
    // The question changes QEMU's settings for a moment: nobody may be at work meanwhile.
    let _lock = match Lock::attempt(&machine.dir.lock(), &format!("doctor {}", machine.name())) {
        Ok(Some(lock)) => lock,
        _ => {
            let holder = Lock::holder(&machine.dir.lock()).unwrap_or_else(|| "another command".to_owned());
            let text = format!("{holder} is at work on it: QEMU was not asked whether it can save it while it runs");
            return diagnosis.note("machine", text, "try again when it has ended");
        }
    };
    match process.instance.monitor(Monitor::Engine).map_err(Error::from).and_then(|mut monitor| ask(&mut monitor)) {
        Ok(reasons) if reasons.is_empty() => diagnosis.good("machine", "QEMU can save it while it runs"),
        Ok(reasons) => diagnosis.bad(
            "machine",
            format!("QEMU cannot save it while it runs: {}", reasons.join("; ")),
            "take such a device out of the machine; --disk-only works meanwhile",
        ),
        Err(error) => diagnosis.bad("machine", error.to_string(), "try again; another command may be at work"),
    }
}

fn ask(monitor: &mut Client) -> Result<Vec<String>, Error> {
    let blocked = monitor.call(&QueryMigrate {})?.blocked_reasons;
    let background = [Capability::BackgroundSnapshot];
    match monitor.call(&MigrateSetCapabilities::on(background.clone())) {
        Ok(_) => {
            monitor.call(&MigrateSetCapabilities::off(background))?;
            Ok(blocked)
        }
        Err(keyframe_qmp::Error::Command { error, .. }) => Ok(blocked.into_iter().chain([error.desc]).collect()),
        Err(error) => Err(error.into()),
    }
}
