//! Starting and stopping machines, and saying what they are.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use keyframe_hypervisor::host::choose_accelerator;
use keyframe_hypervisor::launch::{RamBacking, Start};
use keyframe_hypervisor::{Accelerator, Qemu, QemuVersion, load};
use keyframe_qmp::EventKind;
use keyframe_qmp::commands::machine::{Quit, SystemPowerdown};
use keyframe_types::{SnapshotId, Timestamp, VmName};
use serde::Serialize;

use crate::bitmaps;
use crate::boot::{self, BootStatus};
use crate::context::Context;
use crate::cost;
use crate::error::Error;
use crate::machine::{Ending, Launch, Machine, State, kill_strays};
use crate::pages::HydrationReport;
use crate::settle;
use crate::snapshots;
use crate::state::head::Process;
use crate::state::lock::Lock;

/// What starting a machine came to.
#[derive(Debug, Serialize)]
pub struct StartReport {
    /// The machine.
    pub name: VmName,
    /// What runs it.
    pub accelerator: Accelerator,
    /// The process.
    pub pid: u32,
    /// From the command until vCPUs ran, in milliseconds.
    pub running_ms: f64,
}

/// Starts a machine from its firmware, or lets a paused one run on.
///
/// # Errors
/// [`Error::WrongState`] when it runs already; [`Error::LayerMissing`], [`Error::LayerTouched`]; what QEMU says.
pub fn start(ctx: &Context<'_>, name: &VmName) -> Result<StartReport, Error> {
    let begun = Instant::now();
    let (_lock, mut machine) = Machine::lock(ctx, name, &format!("vm start {name}"))?;
    if let Some(process) = machine.process().cloned() {
        return resume(ctx, &machine, &process, begun);
    }
    Machine::check_layers(ctx.home, machine.head.chains())?;
    let accelerator = choose_accelerator(machine.definition.accel)?;
    let process = cold_start(ctx, &mut machine, accelerator)?;
    Ok(StartReport {
        name: name.clone(),
        accelerator,
        pid: process.instance.process.pid,
        running_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

fn resume(ctx: &Context<'_>, machine: &Machine, process: &Process, begun: Instant) -> Result<StartReport, Error> {
    let mut monitor = machine.monitor()?;
    if crate::machine::state_of(&mut monitor) == State::Running {
        return Err(Error::WrongState {
            vm: machine.name().clone(),
            state: State::Running.as_str().to_owned(),
            advice: "nothing needs to be done",
        });
    }
    load::run(&mut monitor)?;
    if let Some(note) = settle::after_resume(machine, &mut monitor) {
        ctx.progress.note(&note);
    }
    Ok(StartReport {
        name: machine.name().clone(),
        accelerator: process.accelerator,
        pid: process.instance.process.pid,
        running_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

/// Starts a stopped machine's head from its firmware.
pub(crate) fn cold_start(ctx: &Context<'_>, machine: &mut Machine, accelerator: Accelerator) -> Result<Process, Error> {
    kill_strays(&machine.dir, &[])?;
    if let Some(ended) = &machine.head.process {
        ended.instance.clean_up();
    }
    bitmaps::drop_doubtful(ctx.home, machine)?;
    let qemu = Qemu::find()?;
    let launch = Launch {
        definition: &machine.definition,
        accelerator,
        disks: &machine.head.disks,
        nvram: machine.head.nvram.as_ref(),
        ram: RamBacking::Anonymous,
        start: Start::Cold,
    };
    boot::before_start(ctx, machine)?;
    let mut started = launch.run(ctx.home, &machine.dir, &qemu)?;
    let definition = Some(machine.definition.clone());
    let process = Process { instance: started.record, accelerator, definition, mapped: None, served: None };
    machine.head.process = Some(process.clone());
    machine.head.clean_shutdown = false;
    // Before its first instruction the process is on record: whoever comes next finds it.
    machine.write_head()?;
    load::run(&mut started.monitor)?;
    Ok(process)
}

/// How to stop a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopHow {
    /// Press the power button and wait for the guest.
    Acpi {
        /// How long the guest may take.
        patience: Duration,
    },
    /// Switch it off, as a power cut would.
    Force,
}

/// Stops a machine.
///
/// # Errors
/// [`Error::WrongState`] when it does not run; [`Error::NoShutdown`] when the guest does not shut down: it then
/// goes on.
pub fn stop(ctx: &Context<'_>, name: &VmName, how: StopHow) -> Result<(), Error> {
    let (_lock, mut machine) = Machine::lock(ctx, name, &format!("vm stop {name}"))?;
    let Some(process) = machine.process().cloned() else {
        if machine.head.process.take().is_some() {
            return machine.write_head();
        }
        return Err(Error::WrongState {
            vm: name.clone(),
            state: State::Stopped.as_str().to_owned(),
            advice: "nothing needs to be done",
        });
    };
    let clean = match how {
        StopHow::Acpi { patience } => shut_down(ctx, &machine, &process, patience)?,
        StopHow::Force => {
            switch_off(&machine, &process)?;
            false
        }
    };
    machine.head.process = None;
    machine.head.clean_shutdown = clean;
    machine.write_head()?;
    process.instance.clean_up();
    Ok(())
}

/// Lets QEMU close the disks and end; kills it when it does not.
fn switch_off(machine: &Machine, process: &Process) -> Result<(), Error> {
    if let Ok(mut monitor) = machine.monitor() {
        // A process that hangs does not answer; it is killed below.
        let _ = monitor.call(&Quit {});
    }
    if process.instance.process.wait_gone(Duration::from_secs(10)).is_err() {
        process.instance.kill()?;
    }
    Ok(())
}

fn shut_down(ctx: &Context<'_>, machine: &Machine, process: &Process, patience: Duration) -> Result<bool, Error> {
    let mut monitor = machine.monitor()?;
    if crate::machine::state_of(&mut monitor) != State::Running {
        return Err(Error::WrongState {
            vm: machine.name().clone(),
            state: State::Paused.as_str().to_owned(),
            advice: "start it first, so that the guest can shut down, or say --force",
        });
    }
    monitor.call(&SystemPowerdown {})?;
    let deadline = Instant::now() + patience;
    let mut clean = false;
    while process.instance.is_alive() {
        ctx.check()?;
        if Instant::now() >= deadline {
            return Err(Error::NoShutdown { vm: machine.name().clone(), seconds: patience.as_secs() });
        }
        let tick = Instant::now() + Duration::from_millis(50);
        match monitor.wait_event(|event| event.kind == EventKind::Shutdown, tick) {
            Ok(Some(event)) => clean = event.event.text("reason").as_deref() == Some("guest-shutdown"),
            Ok(None) => {}
            // The connection ends with the process.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(clean)
}

/// A machine in one line.
#[derive(Debug, Serialize)]
pub struct MachineSummary {
    /// Its name.
    pub name: VmName,
    /// What it is doing.
    pub state: State,
    /// The command that is at work on it.
    pub busy: Option<String>,
    /// How far its memory has come, while it is not all there.
    pub hydration: Option<HydrationReport>,
    /// What it stands on in a repository, while it is not wholly local.
    pub boot: Option<BootStatus>,
    /// Its process.
    pub pid: Option<u32>,
    /// Its RAM.
    pub memory_bytes: u64,
    /// Its CPUs.
    pub cpus: u32,
    /// Number of its disks.
    pub disks: usize,
    /// Number of its snapshots.
    pub snapshots: usize,
    /// What should be seen to about them, in a line.
    pub warning: Option<String>,
}

/// A machine in a list.
#[derive(Debug)]
pub enum Listed {
    /// It can be read.
    Machine(Box<MachineSummary>),
    /// It cannot.
    Unreadable {
        /// Its name.
        name: VmName,
        /// Why not.
        reason: String,
    },
}

/// All machines. One that cannot be read is told with the reason.
///
/// # Errors
/// [`Error::Io`] when the home cannot be listed.
pub fn list(ctx: &Context<'_>) -> Result<Vec<Listed>, Error> {
    let listed = |name: VmName| match summary(ctx, &name) {
        Ok(summary) => Some(Listed::Machine(Box::new(summary))),
        // A fork that was never finished has just been tidied away.
        Err(Error::NoMachine(_)) => None,
        Err(error) => Some(Listed::Unreadable { name, reason: error.to_string() }),
    };
    Ok(ctx.home.machine_names()?.into_iter().filter_map(listed).collect())
}

fn summary(ctx: &Context<'_>, name: &VmName) -> Result<MachineSummary, Error> {
    crate::recover::recover_if_idle(ctx, name);
    let machine = Machine::open(ctx.home, name)?;
    let (manifests, damaged) = snapshots::scan(&machine.dir)?;
    Ok(MachineSummary {
        name: name.clone(),
        state: machine.look(),
        busy: Lock::holder(&machine.dir.lock()),
        hydration: machine.hydration(),
        boot: boot::status(&machine)?,
        pid: machine.process().map(|process| process.instance.process.pid),
        memory_bytes: machine.definition.memory().bytes(),
        cpus: machine.definition.cpus,
        disks: machine.definition.disks.len(),
        snapshots: manifests.len() + damaged.len(),
        warning: cost::brief(ctx, &machine, &manifests),
    })
}

/// A machine in full.
#[derive(Debug, Serialize)]
pub struct MachineReport {
    /// Its name.
    pub name: VmName,
    /// What it is doing.
    pub state: State,
    /// Why it is off, where no command ended it.
    pub ended: Option<Ending>,
    /// The command that is at work on it.
    pub busy: Option<String>,
    /// How far its memory has come, while it is not all there.
    pub hydration: Option<HydrationReport>,
    /// What it stands on in a repository, while it is not wholly local.
    pub boot: Option<BootStatus>,
    /// What QEMU said last, for a machine that crashed.
    pub last_words: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Socket on which QMP can be spoken with it.
    pub qmp: Option<PathBuf>,
    /// Socket of its guest agent.
    pub agent: Option<PathBuf>,
    /// Socket of its serial console.
    pub console: Option<PathBuf>,
    /// What it wrote to its serial console.
    pub serial_log: PathBuf,
    /// What QEMU itself said.
    pub qemu_log: Option<PathBuf>,
    /// What runs it.
    pub accelerator: Option<Accelerator>,
    /// The QEMU that runs it.
    pub qemu_version: Option<QemuVersion>,
    /// Since when.
    pub started: Option<Timestamp>,
    /// The snapshot that it descends from.
    pub head: Option<SnapshotId>,
    /// Its directory.
    pub directory: PathBuf,
    /// What it is made of.
    pub definition: keyframe_hypervisor::MachineDefinition,
    /// Its disks' layers, the active one first.
    pub disks: Vec<DiskReport>,
}

/// A disk and the files that it consists of.
#[derive(Debug, Serialize)]
pub struct DiskReport {
    /// Its id.
    pub id: String,
    /// Its size, as the guest sees it.
    pub virtual_bytes: u64,
    /// Its layers, the active one first.
    pub layers: Vec<PathBuf>,
}

/// Says everything about a machine.
///
/// # Errors
/// [`Error::NoMachine`], [`Error::Damaged`].
pub fn show(ctx: &Context<'_>, name: &VmName) -> Result<MachineReport, Error> {
    crate::recover::recover_if_idle(ctx, name);
    let machine = Machine::open(ctx.home, name)?;
    let state = machine.look();
    let running = machine.process();
    let known = machine.head.process.as_ref();
    let last_words = (state == State::Crashed)
        .then(|| known.map(|process| keyframe_hypervisor::instance::log_tail(&process.instance.log())))
        .flatten();
    let disks = machine.head.disks.iter().map(|chain| DiskReport {
        id: chain.disk.to_string(),
        virtual_bytes: chain.layers.first().map_or(0, |layer| layer.virtual_bytes.bytes()),
        layers: chain.layers.iter().map(|layer| ctx.home.absolute(&layer.path)).collect(),
    });
    Ok(MachineReport {
        name: name.clone(),
        state,
        ended: machine.ending(),
        busy: Lock::holder(&machine.dir.lock()),
        hydration: machine.hydration(),
        boot: boot::status(&machine)?,
        last_words,
        pid: running.map(|process| process.instance.process.pid),
        qmp: running.map(|process| process.instance.qmp_socket()),
        agent: running.map(|process| process.instance.agent_socket()),
        console: running.map(|process| process.instance.console_socket()),
        serial_log: machine.dir.serial_log(),
        qemu_log: known.map(|process| process.instance.log()),
        accelerator: running.map(|process| process.accelerator),
        qemu_version: running.map(|process| process.instance.version),
        started: running.map(|process| process.instance.started),
        head: machine.head.parent.clone(),
        directory: machine.dir.root().to_owned(),
        disks: disks.collect(),
        definition: machine.definition,
    })
}
