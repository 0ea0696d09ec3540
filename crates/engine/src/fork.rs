//! Machines that continue from the instant of a snapshot, beside the one it was taken of.
//!
//! A fork shares the snapshot's layers and, unless told otherwise, its memory image through the page cache. It has
//! its own identity where the guest can learn of it: a generation id that tells the guest that it was cloned,
//! a network card with an address of its own that is swapped in under the running guest, and no
//! network path to the original unless one is asked for.

use std::time::Instant;

use keyframe_hypervisor::instance::{Started, Starting};
use keyframe_hypervisor::{MacAddress, MachineDefinition, Network, Nic};
use keyframe_types::{SnapshotRef, VmName};
use serde::Serialize;

use crate::bringup::{Source, Strategy, Target};
use crate::context::Context;
use crate::create::random_uuid;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::{Machine, kill_strays, write_definition};
use crate::pages;
use crate::settle;
use crate::snapshots;
use crate::state::head::{Head, Origin};
use crate::state::home::VmDir;
use crate::state::journal::Journal;
use crate::state::lock::{CREATION_PATIENCE, Lock};
use crate::state::manifest::StateAtCut;
use crate::state::{durable, sealed, tree};

/// What to fork, and how.
#[derive(Debug, Clone)]
pub struct ForkRequest {
    /// The snapshot.
    pub reference: SnapshotRef,
    /// The new machine's name; with a count above one, the beginning of their names.
    pub name: VmName,
    /// How many.
    pub count: u32,
    /// How memory comes; mapped if `None`.
    pub strategy: Option<Strategy>,
    /// What its network card is plugged into: nothing that leads anywhere if `None`.
    pub network: Option<Network>,
}

/// The most machines that one command makes.
const MOST: u32 = 1000;

/// A machine that was made.
#[derive(Debug, Serialize)]
pub struct ForkedMachine {
    /// Its name.
    pub name: VmName,
    /// Its process.
    pub pid: u32,
    /// From the command's start until its vCPUs ran, in milliseconds.
    pub running_ms: f64,
    /// Its network card's address, if it has one.
    pub mac: Option<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What a fork came to.
#[derive(Debug, Serialize)]
pub struct ForkReport {
    /// The snapshot.
    pub from: String,
    /// How memory came.
    pub strategy: Strategy,
    /// The machines.
    pub machines: Vec<ForkedMachine>,
    /// Machines that did not come to run and were removed again.
    pub not_made: Option<NotMade>,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
}

/// Machines that were asked for and not made.
#[derive(Debug, Serialize)]
pub struct NotMade {
    /// Their names.
    pub names: Vec<VmName>,
    /// Why the first of them did not come to run.
    pub reason: String,
}

/// Makes machines that continue from a snapshot.
///
/// # Errors
/// [`Error::MachineExists`], and whatever fails before a machine runs; no machine is left then. When some run and
/// others do not, those stay and the report names the others.
pub fn fork(ctx: &Context<'_>, request: &ForkRequest) -> Result<ForkReport, Error> {
    let begun = Instant::now();
    let names = names(request)?;
    let operation = format!("fork {}", request.reference);
    let _creation = Lock::wait(&ctx.home.root().join("lock"), &operation, CREATION_PATIENCE)?;
    // Nobody may delete the snapshot meanwhile.
    let (_lock, origin) = Machine::lock(ctx, &request.reference.vm, &operation)?;
    for name in &names {
        if ctx.home.vm(name).exists()? {
            return Err(Error::MachineExists(name.clone()));
        }
    }
    let manifest = snapshots::find(&origin.dir, &request.reference.vm, &request.reference.snapshot)?;
    Machine::check_layers(ctx.home, manifest.chains())?;
    let strategy = request.strategy.or(manifest.memory.is_some().then_some(Strategy::Mapped));
    let source = Source::prepare(ctx, &origin.dir, manifest, strategy)?;
    source.verify(ctx)?;
    let mut forks = Vec::new();
    for name in names {
        ctx.check()?;
        forks.push(Fork::prepare(ctx, &source, request, name)?);
    }
    ctx.progress.step("starting");
    // All start side by side: what one process waits for, another uses.
    for fork in &mut forks {
        ctx.check()?;
        fork.begin(ctx, &source)?;
    }
    let (awake, failure) = wake_all(ctx, &source, forks, begun);
    // Guests take their time to let go of a network card: they do so side by side.
    let machines: Vec<ForkedMachine> = std::thread::scope(|threads| {
        let settling: Vec<_> = awake.into_iter().map(|fork| threads.spawn(move || fork.settle())).collect();
        settling.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let not_made = match failure {
        Some(failure) if machines.is_empty() => return Err(failure.error),
        Some(failure) => Some(NotMade { reason: failure.error.to_string(), names: failure.names }),
        None => None,
    };
    let total_ms = begun.elapsed().as_secs_f64() * 1e3;
    Ok(ForkReport { from: request.reference.to_string(), strategy: source.strategy, machines, not_made, total_ms })
}

/// What kept machines from being made, and which.
struct Failure {
    names: Vec<VmName>,
    error: Error,
}

/// Wakes one after the other, up to the first that does not wake: that one and those behind it are removed again.
fn wake_all(ctx: &Context<'_>, source: &Source, forks: Vec<Fork>, begun: Instant) -> (Vec<Awake>, Option<Failure>) {
    let (mut awake, mut failure) = (Vec::new(), None);
    for fork in forks {
        let name = fork.machine.name().clone();
        match &mut failure {
            None => match ctx.check().and_then(|()| fork.wake(ctx, source, begun)) {
                Ok(woken) => awake.push(woken),
                Err(error) => failure = Some(Failure { names: vec![name], error }),
            },
            Some(Failure { names, .. }) => names.push(name),
        }
    }
    (awake, failure)
}

fn names(request: &ForkRequest) -> Result<Vec<VmName>, Error> {
    match request.count {
        1 => Ok(vec![request.name.clone()]),
        2..=MOST => (1..=request.count)
            .map(|number| VmName::new(format!("{}-{number}", request.name)))
            .collect::<Result<_, _>>()
            .map_err(|error| Error::BadRequest { what: error.to_string() }),
        _ => Err(Error::BadRequest { what: format!("--count is 1 to {MOST}") }),
    }
}

/// A machine on its way. Dropped before it runs, it is removed again.
struct Fork {
    machine: Machine,
    lock: Lock,
    starting: Option<Starting>,
    unfinished: Unfinished,
}

/// Removes a machine that did not come to run.
struct Unfinished(Option<VmDir>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take() {
            // What cannot be removed now is removed by the next command: the journal says that it is unfinished.
            let _ = undo(&dir);
        }
    }
}

/// Removes a machine that was never finished.
///
/// # Errors
/// When a stray process cannot be killed or a file not be removed.
pub(crate) fn undo(dir: &VmDir) -> Result<(), Error> {
    kill_strays(dir, &[])?;
    durable::remove_file(&dir.definition())?;
    durable::remove_dir(dir.root())
}

impl Fork {
    fn prepare(ctx: &Context<'_>, source: &Source, request: &ForkRequest, name: VmName) -> Result<Self, Error> {
        let dir = ctx.home.vm(&name);
        kill_strays(&dir, &[])?;
        durable::remove_dir(dir.root())?;
        durable::create_private_dir(dir.root())?;
        let unfinished = Unfinished(Some(dir.clone()));
        let lock = Lock::take(&dir.lock(), &format!("fork {}", request.reference))?;
        sealed::write(&dir.journal(), &Journal::Fork)?;
        let manifest = &source.manifest;
        let head = Head {
            parent: None,
            origin: Some(Origin { vm: manifest.definition.name.clone(), snapshot: manifest.id.clone() }),
            disks: layers::planned_overlays(ctx.home, &dir, manifest.disks.iter())?,
            nvram: layers::planned_overlays(ctx.home, &dir, manifest.nvram.iter())?.pop(),
            process: None,
            clean_shutdown: false,
        };
        let chains: Vec<_> = head.chains().cloned().collect();
        layers::create_tops(ctx.home, &chains)?;
        tree::write_head(&dir, &head)?;
        pass(Failpoint::ForkPrepared)?;
        let definition = own_definition(&manifest.definition, request.network.as_ref(), name);
        write_definition(&dir.definition(), &definition)?;
        pass(Failpoint::ForkDefined)?;
        Ok(Self { machine: Machine { dir, definition, head }, lock, starting: None, unfinished })
    }

    fn begin(&mut self, ctx: &Context<'_>, source: &Source) -> Result<(), Error> {
        let head = &self.machine.head;
        let target = Target { definition: &self.machine.definition, disks: &head.disks, nvram: head.nvram.as_ref() };
        self.starting = Some(source.begin(ctx, &self.machine.dir, &target)?);
        Ok(())
    }

    fn wake(mut self, ctx: &Context<'_>, source: &Source, begun: Instant) -> Result<Awake, Error> {
        let starting = self.starting.take().ok_or(keyframe_hypervisor::Error::NoProcess)?;
        let mut started = starting.ready()?;
        let cold = source.strategy == Strategy::Cold;
        if !cold && self.machine.definition.nic.is_some() {
            // Not a single packet may leave with the original's address, nor reach a guest that still has it.
            settle::pull_cable(&mut started.monitor)?;
        }
        source.load(&mut started)?;
        pass(Failpoint::ForkLoaded)?;
        self.machine.head.process = Some(source.process(ctx, &started, &self.machine.definition));
        self.machine.write_head()?;
        pass(Failpoint::ForkHeadWritten)?;
        if source.manifest.state == StateAtCut::Running || cold {
            pages::let_run(&started.record, &mut started.monitor)?;
        }
        pass(Failpoint::ForkRunning)?;
        // From here on it is a machine; what its guest has yet to be told, the journal says.
        self.unfinished.0 = None;
        Ok(Awake {
            machine: self.machine,
            lock: self.lock,
            started,
            running_ms: begun.elapsed().as_secs_f64() * 1e3,
            frozen: source.manifest.frozen && !cold,
            cold,
        })
    }
}

/// The snapshot's definition with an identity of its own. It is no production machine because the original is one: it has no tags.
fn own_definition(original: &MachineDefinition, network: Option<&Network>, name: VmName) -> MachineDefinition {
    let network = network.cloned().unwrap_or(Network::Isolated);
    MachineDefinition {
        name,
        uuid: random_uuid(),
        tags: Vec::new(),
        nic: original.nic.as_ref().map(|_| Nic { mac: MacAddress::random(), network }),
        ..original.clone()
    }
}

/// A fork that runs.
struct Awake {
    machine: Machine,
    lock: Lock,
    started: Started,
    running_ms: f64,
    frozen: bool,
    cold: bool,
}

impl Awake {
    /// Gives the guest what it wants to know after waking up as somebody else. Then its command may die.
    fn settle(mut self) -> ForkedMachine {
        let mut notes = Vec::new();
        if !self.cold {
            notes = settle::settle(&self.machine, &self.started.record, &mut self.started.monitor, self.frozen);
        }
        if let Err(error) = durable::remove_file(&self.machine.dir.journal()) {
            notes.push(format!("the next command on it tidies up: {error}"));
        }
        drop(self.lock);
        ForkedMachine {
            name: self.machine.definition.name.clone(),
            pid: self.started.record.process.pid,
            running_ms: (self.running_ms * 1e3).round() / 1e3,
            mac: self.machine.definition.nic.as_ref().map(|nic| nic.mac.to_string()),
            notes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_not_owed_what_its_original_is() {
        let name = VmName::new("db").unwrap();
        let original = MachineDefinition { tags: vec!["prod".to_owned()], ..crate::fsck::tests::definition(&name) };
        let fork = own_definition(&original, Some(&Network::User), VmName::new("try").unwrap());
        assert_eq!((fork.name.as_str(), fork.tags.len(), fork.memory_mib), ("try", 0, original.memory_mib));
        assert_ne!(fork.uuid, original.uuid);
    }
}
