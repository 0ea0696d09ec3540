//! A machine as it is found on disk and on the host: its definition, its head, its process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyframe_hypervisor::host::{find_ovmf, takes_direct_io};
use keyframe_hypervisor::instance::{self, Started, Starting};
use keyframe_hypervisor::launch::{FirmwareCode, LaunchPlan, RamBacking, Start};
use keyframe_hypervisor::{
    Accelerator, DiskChain, Firmware, InstanceRecord, LayerFile, MachineDefinition, Monitor, Qemu,
};
use keyframe_qmp::Client;
use keyframe_qmp::commands::machine::{QueryStatus, RunState};
use keyframe_types::{InstanceId, VmName};
use serde::Serialize;

use crate::boot;
use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::pages::{self, HydrationReport};
use crate::recover::Patience;
use crate::serial;
use crate::state::head::{Chain, Head, Layer, Process};
use crate::state::home::{Home, VmDir};
use crate::state::lock::Lock;
use crate::state::tree::Trees;
use crate::state::{durable, tree};

/// What a machine is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// vCPUs run.
    Running,
    /// There is a process, and its vCPUs stand still.
    Paused,
    /// There is no process: a command ended it, the guest shut down, or the host was restarted.
    Stopped,
    /// There is no process, and nobody knows why.
    Crashed,
    /// There is a process that does not answer.
    Unresponsive,
}

impl State {
    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::Unresponsive => "unresponsive",
        }
    }
}

/// Why a process that is on record is not there, and no command has ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The guest shut down.
    GuestShutdown,
    /// The host was restarted.
    HostRestart,
    /// QEMU ended, or was killed.
    Crash,
}

impl Ending {
    fn of(process: &Process) -> Self {
        if process.instance.was_shut_down_by_guest() {
            Self::GuestShutdown
        } else if process.instance.process.is_of_an_earlier_boot() {
            Self::HostRestart
        } else {
            Self::Crash
        }
    }

    fn state(self) -> State {
        match self {
            Self::GuestShutdown | Self::HostRestart => State::Stopped,
            Self::Crash => State::Crashed,
        }
    }
}

/// A machine that exists.
#[derive(Debug)]
pub struct Machine {
    /// Where it lies.
    pub dir: VmDir,
    /// What it is made of.
    pub definition: MachineDefinition,
    /// Its present.
    pub head: Head,
}

impl Machine {
    /// Reads a machine.
    ///
    /// # Errors
    /// [`Error::NoMachine`], [`Error::Definition`], [`Error::Damaged`].
    pub fn open(home: &Home, name: &VmName) -> Result<Self, Error> {
        let dir = home.vm(name);
        let definition = read_definition(&dir.definition())?.ok_or_else(|| Error::NoMachine(name.clone()))?;
        if definition.name != *name {
            let reason = format!("it names the machine {}", definition.name);
            return Err(Error::Damaged { path: dir.definition(), reason });
        }
        let head = Trees::of(home).head(&dir)?.ok_or_else(|| Error::NoMachine(name.clone()))?;
        Ok(Self { dir, definition, head })
    }

    /// Takes the machine's lock, tidies up behind a command that was killed, and reads the machine.
    ///
    /// # Errors
    /// [`Error::NoMachine`], [`Error::Busy`], and what tidying up may meet.
    pub fn lock(ctx: &Context<'_>, name: &VmName, operation: &str) -> Result<(Lock, Self), Error> {
        let dir = ctx.home.vm(name);
        if !dir.exists()? {
            return Err(Error::NoMachine(name.clone()));
        }
        let lock = Lock::take(&dir.lock(), operation)?;
        crate::recover::recover(ctx, name, Patience::Thorough)?;
        let mut machine = Self::open(ctx.home, name)?;
        machine.see_to_memory(ctx);
        boot::see_to(ctx, &machine);
        machine.note_shutdown()?;
        serial::bound(&machine.dir.serial_log());
        Ok((lock, machine))
    }

    /// Sees to it that a machine whose memory is still on its way has someone who serves it. The caller holds its lock.
    pub(crate) fn see_to_memory(&self, ctx: &Context<'_>) {
        if let Some(process) = self.process()
            && let Err(error) = pages::ensure(ctx, &process.instance)
        {
            ctx.progress.note(&format!("nobody may be serving the memory of {}: {error}", self.name()));
        }
    }

    /// Whether its memory is on its way and nobody serves it.
    pub(crate) fn memory_is_orphaned(&self) -> bool {
        self.process().is_some_and(|process| pages::is_orphaned(&process.instance))
    }

    /// How far its memory has come; `None` for one that has all of it.
    #[must_use]
    pub fn hydration(&self) -> Option<HydrationReport> {
        HydrationReport::of(&self.process()?.instance)
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &VmName {
        &self.definition.name
    }

    /// Writes the head durably.
    ///
    /// # Errors
    /// [`Error::Io`]; the old head is then still there.
    pub fn write_head(&self) -> Result<(), Error> {
        tree::write_head(&self.dir, &self.head)
    }

    /// The QEMU process, if it runs.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.head.process.as_ref().filter(|process| process.instance.is_alive())
    }

    /// The hardware that runs, or that would be started.
    #[must_use]
    pub fn hardware(&self) -> &MachineDefinition {
        self.process().and_then(|process| process.definition.as_ref()).unwrap_or(&self.definition)
    }

    /// Connects to the running process's engine monitor.
    ///
    /// # Errors
    /// [`Error::WrongState`] when there is none; what the connection may meet.
    pub fn monitor(&self) -> Result<Client, Error> {
        let process = self.process().ok_or_else(|| self.not_running())?;
        Ok(process.instance.monitor(Monitor::Engine)?)
    }

    fn not_running(&self) -> Error {
        let state = self.ending().map_or(State::Stopped, Ending::state);
        Error::WrongState {
            vm: self.name().clone(),
            state: state.as_str().to_owned(),
            advice: "start it with `keyframe vm start`",
        }
    }

    /// What the machine is doing. Asks QEMU, which takes a millisecond.
    #[must_use]
    pub fn state(&self) -> State {
        self.state_seen_by(Monitor::Engine)
    }

    /// [`Machine::state`] for whoever only looks, without waiting for a command that is at work.
    #[must_use]
    pub fn look(&self) -> State {
        self.state_seen_by(Monitor::Look)
    }

    fn state_seen_by(&self, which: Monitor) -> State {
        let gone = || self.ending().map_or(State::Stopped, Ending::state);
        match self.process().map(|process| (process, process.instance.monitor(which))) {
            None => gone(),
            Some((_, Ok(mut monitor))) => state_of(&mut monitor),
            Some((process, Err(_))) if process.instance.is_alive() => State::Unresponsive,
            Some((_, Err(_))) => gone(),
        }
    }

    /// Why the process that is on record is not there; `None` while it is, or when a command ended it.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.head.process.as_ref().filter(|process| !process.instance.is_alive()).map(Ending::of)
    }

    /// Puts on record that the guest has shut down since. The caller holds the machine's lock.
    fn note_shutdown(&mut self) -> Result<(), Error> {
        if self.ending() != Some(Ending::GuestShutdown) {
            return Ok(());
        }
        let ended = self.head.process.take();
        self.head.clean_shutdown = true;
        self.write_head()?;
        if let Some(process) = ended {
            process.instance.clean_up();
        }
        Ok(())
    }

    /// The disks' chains as QEMU opens them.
    #[must_use]
    pub fn disk_chains(&self, home: &Home, chains: &[Chain]) -> Vec<DiskChain> {
        chains.iter().map(|chain| launch_chain(home, chain)).collect()
    }

    /// Checks every frozen layer that `chains` stand on.
    ///
    /// # Errors
    /// [`Error::LayerMissing`], [`Error::LayerTouched`].
    pub fn check_layers<'a>(home: &Home, chains: impl Iterator<Item = &'a Chain>) -> Result<(), Error> {
        chains.flat_map(|chain| &chain.layers).try_for_each(|layer| layer.check_untouched(home))
    }
}

/// What a connected machine is doing.
#[must_use]
pub fn state_of(monitor: &mut Client) -> State {
    match monitor.call(&QueryStatus {}) {
        Ok(status) if status.running => State::Running,
        Ok(status) if status.status == RunState::InternalError => State::Crashed,
        Ok(_) => State::Paused,
        Err(_) => State::Unresponsive,
    }
}

fn launch_chain(home: &Home, chain: &Chain) -> DiskChain {
    let layer = |layer: &Arc<Layer>| {
        let path = home.absolute(&layer.path);
        LayerFile { id: layer.file.clone(), direct: takes_direct_io(&path), path, format: layer.format }
    };
    DiskChain { disk: chain.disk.clone(), layers: chain.layers.iter().map(layer).collect(), base: None }
}

/// Reads a definition; `None` when there is none.
///
/// # Errors
/// [`Error::Definition`], [`Error::Io`].
pub fn read_definition(path: &Path) -> Result<Option<MachineDefinition>, Error> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.or_io("read", path)?,
    };
    let definition: MachineDefinition =
        toml::from_str(&text).map_err(|source| Error::Definition { path: path.to_owned(), source })?;
    if definition.schema != MachineDefinition::SCHEMA {
        let (path, found) = (path.to_owned(), definition.schema);
        return Err(Error::Schema { path, found, expected: MachineDefinition::SCHEMA });
    }
    Ok(Some(definition))
}

/// Writes a definition durably.
///
/// # Errors
/// [`Error::Io`].
pub fn write_definition(path: &Path, definition: &MachineDefinition) -> Result<(), Error> {
    let text = toml::to_string_pretty(definition).map_err(|source| Error::EncodeDefinition { source })?;
    durable::replace(path, text.as_bytes())
}

/// A QEMU process to be started for a machine.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What the machine is made of.
    pub definition: &'a MachineDefinition,
    /// What runs it.
    pub accelerator: Accelerator,
    /// Its disks.
    pub disks: &'a [Chain],
    /// Its firmware's variables.
    pub nvram: Option<&'a Chain>,
    /// Where its RAM comes from.
    pub ram: RamBacking,
    /// How it begins.
    pub start: Start,
}

impl Launch<'_> {
    /// Starts the process in a fresh directory below `dir`, with a new generation id, and returns without
    /// waiting for it.
    ///
    /// # Errors
    /// What starting may meet.
    pub fn begin(&self, home: &Home, dir: &VmDir, qemu: &Qemu) -> Result<Starting, Error> {
        self.definition.check()?;
        let on_base = |chain: &Chain| {
            Ok::<_, Error>(DiskChain { base: boot::base_of(home, dir, chain)?, ..launch_chain(home, chain) })
        };
        let disks: Vec<DiskChain> = self.disks.iter().map(on_base).collect::<Result<_, _>>()?;
        let nvram = self.nvram.map(|chain| launch_chain(home, chain));
        let code = (self.definition.firmware == Firmware::Uefi).then(find_ovmf).transpose()?;
        let code: Option<FirmwareCode> = code.map(|(code, _)| code);
        durable::create_private_dir(&dir.run())?;
        let id = InstanceId::random();
        let serial_log: PathBuf = dir.serial_log();
        let plan = LaunchPlan {
            definition: self.definition,
            accelerator: self.accelerator,
            disks: &disks,
            uefi: code.as_ref().zip(nvram.as_ref()),
            ram: self.ram.clone(),
            start: self.start,
            generation_id: "auto",
            serial_log: &serial_log,
        };
        Ok(instance::start(qemu, id.clone(), &dir.instance(&id), &plan)?)
    }

    /// [`Launch::begin`], and waits until the process greets.
    ///
    /// # Errors
    /// What starting may meet, with what QEMU said.
    pub fn run(&self, home: &Home, dir: &VmDir, qemu: &Qemu) -> Result<Started, Error> {
        Ok(self.begin(home, dir, qemu)?.ready()?)
    }
}

/// Kills processes below a machine's run directory that no document knows: a command was killed right
/// after it had started one.
///
/// # Errors
/// When one cannot be killed.
pub fn kill_strays(dir: &VmDir, known: &[&InstanceRecord]) -> Result<(), Error> {
    for (process, instance_dir) in instance::processes_below(&dir.run()) {
        if !known.iter().any(|record| record.process == process) {
            process.kill(std::time::Duration::from_secs(20)).or_io("kill a stray QEMU in", &instance_dir)?;
            durable::remove_dir(&instance_dir)?;
        }
    }
    Ok(())
}
