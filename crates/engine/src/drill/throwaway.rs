//! The machine that a test brings up, looks at and throws away.
//!
//! It is no machine in the home: it has no name of its own, no definition, no head. Its disks are fresh layers on the
//! snapshot's, its RAM is a private mapping of the memory image, its network cards lead nowhere. All of it lies in the
//! test's claim, and goes with it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant};

use keyframe_hypervisor::instance::{Started, log_tail};
use keyframe_hypervisor::{InstanceRecord, MachineDefinition, Network, isolation, load, socket};
use keyframe_qmp::agent::{Agent, AgentCommand};
use keyframe_qmp::{Client, Error as QmpError};
use serde_json::json;

use crate::bringup::{Source, Strategy, Target};
use crate::context::Context;
use crate::create::random_uuid;
use crate::drill::claim::Claim;
use crate::drill::picture::{LARGEST_BYTES, Picture};
use crate::error::Error;
use crate::guest;
use crate::layers;
use crate::machine::{State, state_of};
use crate::state::head::Chain;
use crate::state::home::VmDir;
use crate::state::manifest::Manifest;

/// How much of the end of the serial log is looked at.
const SERIAL_BYTES: u64 = 1 << 20;
/// How long QEMU may take to answer while it is looked at: less than a test may last.
const MONITOR_PATIENCE: Duration = Duration::from_secs(5);
/// How long a process that has closed its monitor may take to end.
const ENDING_PATIENCE: Duration = Duration::from_secs(2);

/// What a throw-away machine is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    definition: MachineDefinition,
    disks: Vec<Chain>,
    nvram: Option<Chain>,
}

impl Parts {
    /// Makes the layers in the place that was claimed. `network` is what its card is plugged into.
    ///
    /// # Errors
    /// [`Error::MayLeadOutside`]; what making layers may meet.
    pub(crate) fn make(ctx: &Context<'_>, claim: &Claim, manifest: &Manifest, network: Network) -> Result<Self, Error> {
        let outside = |source| Error::MayLeadOutside { vm: manifest.definition.name.clone(), source };
        let inside = isolation::isolated(&manifest.definition, network).map_err(outside)?;
        let parts = Self {
            definition: MachineDefinition { uuid: random_uuid(), ..inside },
            disks: layers::planned_overlays(ctx.home, claim.dir(), manifest.disks.iter())?,
            nvram: layers::planned_overlays(ctx.home, claim.dir(), manifest.nvram.iter())?.pop(),
        };
        let chains: Vec<Chain> = parts.disks.iter().chain(&parts.nvram).cloned().collect();
        layers::create_tops(ctx.home, &chains)?;
        Ok(parts)
    }

    /// Starts its process, stopped before its first instruction.
    ///
    /// # Errors
    /// What starting may meet, with what QEMU said.
    pub(crate) fn start(&self, ctx: &Context<'_>, claim: &Claim, source: &Source) -> Result<Throwaway, Error> {
        let begun = Instant::now();
        let target = Target { definition: &self.definition, disks: &self.disks, nvram: self.nvram.as_ref() };
        let started = source.begin(ctx, claim.dir(), &target)?.ready()?;
        let booted = source.strategy == Strategy::Cold;
        Ok(Throwaway { dir: claim.dir().clone(), started, begun, booted, agent: None })
    }
}

/// A throw-away machine that has a process.
#[derive(Debug)]
pub(crate) struct Throwaway {
    dir: VmDir,
    pub(crate) started: Started,
    /// When its process was started.
    pub(crate) begun: Instant,
    /// It boots; otherwise it goes on from the snapshot's memory.
    pub(crate) booted: bool,
    agent: Option<Agent>,
}

impl Throwaway {
    /// Its process.
    pub(crate) fn instance(&self) -> &InstanceRecord {
        &self.started.record
    }

    /// Its monitor.
    pub(crate) fn monitor(&mut self) -> &mut Client {
        &mut self.started.monitor
    }

    /// Lets it run; says when that was, from the start of its process, and what did not work besides.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub(crate) fn run(&mut self, manifest: &Manifest) -> Result<(Duration, Vec<String>), Error> {
        load::run(&mut self.started.monitor).map_err(|error| self.instance().explain(error))?;
        let running = self.begun.elapsed();
        // Loading has times of its own.
        self.monitor().set_timeout(MONITOR_PATIENCE);
        let mut notes = Vec::new();
        if manifest.frozen
            && !self.booted
            && let Err(error) = guest::thaw(self.instance())
        {
            notes.push(format!("the guest's file systems were frozen in the snapshot and are still: {error}"));
        }
        Ok((running, notes))
    }

    /// Why it does not run any more; `None` while it does.
    pub(crate) fn ending(&mut self) -> Option<String> {
        let state = if self.instance().is_alive() { state_of(self.monitor()) } else { State::Stopped };
        // One that is killed closes its monitor a moment before it is gone.
        let ends = state == State::Unresponsive && self.instance().process.wait_gone(ENDING_PATIENCE).is_ok();
        match state {
            State::Running => None,
            State::Stopped => Some(self.last_words()),
            _ if ends => Some(self.last_words()),
            other => Some(format!("it is {}", other.as_str())),
        }
    }

    /// How its process ended.
    fn last_words(&self) -> String {
        if self.instance().was_shut_down_by_guest() {
            return "the guest shut itself down".to_owned();
        }
        let said = log_tail(&self.instance().log());
        if said.is_empty() {
            return "its QEMU ended without a word".to_owned();
        }
        format!("its QEMU ended and said: {said}")
    }

    /// A command of QEMU's human monitor; gives what it says.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub(crate) fn human(&mut self, line: &str) -> Result<String, QmpError> {
        self.monitor().execute_as("human-monitor-command", &json!({ "command-line": line }))
    }

    /// Whether a program in the guest listens to what is said to an agent.
    pub(crate) fn has_agent(&mut self) -> bool {
        guest::has_agent(self.monitor())
    }

    /// Asks the guest's agent, over one connection as long as that holds.
    ///
    /// # Errors
    /// As [`Agent::call`].
    pub(crate) fn ask<C: AgentCommand>(&mut self, command: &C, patience: Duration) -> Result<C::Reply, QmpError> {
        let mut agent = match self.agent.take() {
            Some(agent) => agent,
            None => {
                let path = self.instance().agent_socket();
                let stream = socket::connect(&path).map_err(|source| QmpError::Connect { path, source })?;
                Agent::from_stream(stream)?
            }
        };
        let reply = agent.call(command, patience);
        // After anything but an answer it is simpler to begin anew.
        if matches!(reply, Ok(_) | Err(QmpError::Command { .. })) {
            self.agent = Some(agent);
        }
        reply
    }

    /// The end of what it has written to its serial console since it was started.
    pub(crate) fn serial(&self) -> Vec<u8> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(self.dir.serial_log())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(SERIAL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(SERIAL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        // It has written nothing as long as there is no log.
        read().unwrap_or_default()
    }

    /// What its screen shows.
    ///
    /// # Errors
    /// What QEMU says, or what is wrong with the picture.
    pub(crate) fn screen(&mut self) -> Result<Picture, String> {
        let path = self.instance().dir.join("screen.ppm");
        let asked = self.monitor().execute("screendump", &json!({ "filename": path.to_string_lossy() }));
        asked.map_err(|error| error.to_string())?;
        let read = || -> std::io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(&path)?.take(LARGEST_BYTES).read_to_end(&mut bytes)?;
            std::fs::remove_file(&path)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Picture::from_ppm(&bytes).ok_or_else(|| "QEMU wrote a picture that cannot be read".to_owned())
    }
}
