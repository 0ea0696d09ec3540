//! A machine that runs straight from a repository, in seconds; its data follow.
//!
//! ```text
//!   guest ── layer (qcow2, written to) ── NBD ── server ── images of the point ── repository
//!        └── memory ── page server ────── NBD ──┘   └── pulls, until the layer stands on nothing
//! ```
//! | module | what |
//! |---|---|
//! | [`care`] | what other commands see to |
//! | [`document`] | what the machine still stands on: `boot.json`, and the layers' headers |
//! | [`shelf`] | images of a repository that may go away and come back |
//! | [`server`] | the process that shows them |
//! | [`pull`] | bringing them here |
//! | [`status`] | how far that is; waiting for it |
//!
//! The guest writes to its own layers alone, so what it wrote does not depend on the repository. What it reads and is not here it
//! waits for: while the server is replaced, while the repository is away, after a restart of the host. Only what a repository
//! that answers cannot give is an error, and the guest is told so.
//!
//! Made as a fork is: aside, with a journal. **The head that names the process: the commit.** Whoever finds the journal before
//! that removes the machine; behind it, lets it run.

mod ahead;
mod care;
mod document;
mod pace;
mod pull;
pub mod server;
pub mod shelf;
pub mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use keyframe_hypervisor::host::choose_accelerator;
use keyframe_hypervisor::instance::Started;
use keyframe_hypervisor::launch::{RamBacking, Start};
use keyframe_hypervisor::{Accelerator, LayerFormat, Qemu, load};
use keyframe_qcow2::CreateOptions;
use keyframe_qcow2::units::VirtualSize;
use keyframe_qmp::commands::device::AnnounceSelf;
use keyframe_repo::{Point, Repository, StoredImage};
use keyframe_types::{ByteLen, LayerId, VmName};
use serde::Serialize;

use crate::backup::{MEMORY, MEMORY_HOT, MEMORY_SUMS, MachinePoint};
use crate::bringup::{accelerator_for, check_version};
use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::guard::Guard;
use crate::machine::{Launch, Machine, State, write_definition};
use crate::restore::machine::{Restoring, check_host, make_place};
use crate::state::head::{Chain, FileOrigin, Head, Layer, Process};
use crate::state::home::VmDir;
use crate::state::journal::Journal;
use crate::state::lock::Lock;
use crate::state::manifest::{Manifest, StateAtCut};
use crate::state::tree::FrozenTop;
use crate::state::{durable, sealed, tree};
use crate::{guest, pages};

pub use care::resume;
pub(crate) use care::{before_start, finish, is_orphaned, must_be_local, see_to, stop_serving, undo};
pub use document::{Place, Standing};
pub(crate) use document::{base_of, may_stand_on};
pub use shelf::Opener;
pub use status::{BootStatus, status};

use document::{StandingDisk, StandingMemory};

/// What to boot, and how.
#[derive(Debug)]
pub struct BootRequest {
    /// The new machine's name.
    pub name: VmName,
    /// Where the repository is, for those who go on reading it.
    pub place: Place,
    /// The passphrase that opens it, where one was typed in.
    pub passphrase: Option<String>,
    /// Leave memory out: from the firmware.
    pub cold: bool,
    /// Do not let it run yet.
    pub paused: bool,
}

/// What booting a point came to.
#[derive(Debug, Serialize)]
pub struct BootReport {
    /// The machine.
    pub name: VmName,
    /// The point.
    pub point: String,
    /// Its process.
    pub pid: u32,
    /// What runs it.
    pub accelerator: Accelerator,
    /// Whether its running state goes on; it starts from its firmware otherwise.
    pub memory: bool,
    /// What it is doing.
    pub state: State,
    /// From the command's start until vCPUs ran, in milliseconds; until they could, for one that is paused.
    pub running_ms: f64,
    /// How far the guest's clock was behind, in milliseconds, before it was set; `None` where no agent tells.
    pub clock_skew_ms: Option<f64>,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Makes a machine from a point and lets it run, while its data are still in the repository.
///
/// # Errors
/// [`Error::MachineExists`], [`Error::NoMachineInPoint`], [`Error::OtherHost`], [`Error::OtherQemu`] before it runs; what starting
/// and loading may meet. No machine is left then.
pub fn boot(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    request: &BootRequest,
    begun: Instant,
) -> Result<BootReport, Error> {
    let name = &request.name;
    let machine = MachinePoint::of(point)?;
    let unreadable = machine.unreadable_bytes();
    let snapshot = if request.cold { Manifest { memory: None, ..machine.snapshot } } else { machine.snapshot };
    check_host(&snapshot)?;
    let operation = format!("boot --as {name}");
    let (_creation, dir) = make_place(ctx, name, &operation)?;
    let booting = Booting { ctx, repository, point, request, snapshot, unreadable, dir: &dir, begun };
    booting.carry_out(&operation).inspect_err(|_| {
        // The first error is the one to tell; what stays is no machine, and goes with the next attempt.
        let _ = undo(&dir);
    })
}

struct Booting<'a> {
    ctx: &'a Context<'a>,
    repository: &'a Repository,
    point: &'a Point,
    request: &'a BootRequest,
    snapshot: Manifest<FrozenTop>,
    /// Bytes of disks that could not be read when the point was made.
    unreadable: ByteLen,
    dir: &'a VmDir,
    begun: Instant,
}

impl Booting<'_> {
    fn carry_out(self, operation: &str) -> Result<BootReport, Error> {
        let _lock = Lock::take(&self.dir.lock(), operation)?;
        sealed::write(&self.dir.journal(), &Journal::Boot { runs: self.runs() })?;
        let (mut machine, mut notes) = self.prepare()?;
        if self.unreadable > ByteLen::ZERO {
            let bytes = self.unreadable;
            notes.push(format!("{bytes} of its disks could not be read when the point was made, and are zeros"));
        }
        let guard = Guard::post(self.ctx.home, self.dir.name())?;
        let report = self.start(&mut machine, &mut notes);
        // Without a journal, or with one that `boot` undoes, there is nothing to watch over.
        guard.dismiss();
        let (started, accelerator, running_ms, clock_skew_ms) = report?;
        if let Err(error) = durable::remove_file(&self.dir.journal()) {
            notes.push(format!("the next command on it tidies up: {error}"));
        }
        Ok(BootReport {
            name: self.dir.name().clone(),
            point: self.point_name(),
            pid: started.record.process.pid,
            accelerator,
            memory: self.snapshot.memory.is_some(),
            state: if self.runs() { State::Running } else { State::Paused },
            running_ms,
            clock_skew_ms,
            total_ms: ms_since(self.begun),
            notes,
        })
    }

    fn runs(&self) -> bool {
        let paused_then = self.snapshot.memory.is_some() && self.snapshot.state != StateAtCut::Running;
        !self.request.paused && !paused_then
    }

    fn point_name(&self) -> String {
        format!("{}@{}", self.point.name, self.point.id.short())
    }

    /// What is wanted first of memory: as the last guest from a point of this machine wanted it here, or as the snapshot was taken. The
    /// page server notes anew what this one wants.
    fn hot(&self) -> PathBuf {
        self.ctx.home.wanted_first(&self.snapshot.definition.name)
    }

    fn image(&self, label: &str) -> Result<StoredImage, Error> {
        crate::restore::image(self.point, label).cloned()
    }

    /// Everything but the process: layers without data of their own, and what says what they stand on.
    fn prepare(&self) -> Result<(Machine, Vec<String>), Error> {
        let mut restoring = Restoring::new(self.ctx, self.repository, self.point, self.dir);
        let mut disks = Vec::new();
        let mut standing = Standing {
            place: self.request.place.clone(),
            repository: self.repository.config().repository,
            point: self.point_name(),
            disks: Vec::new(),
            memory: None,
        };
        for top in &self.snapshot.disks {
            let image = self.image(top.disk.as_str())?;
            let (chain, layer) = self.layer(top, &image)?;
            standing.disks.push(StandingDisk { disk: top.disk.clone(), layer, image });
            disks.push(chain);
        }
        // Variables of the firmware are small, and pflash reads them all at once.
        let nvram = self.snapshot.nvram.as_ref().map(|top| restoring.disk(&top.disk)).transpose()?;
        if self.snapshot.memory.is_some() {
            standing.memory = Some(StandingMemory { image: self.image(MEMORY)?, sums: self.image(MEMORY_SUMS)? });
            let hot = self.hot();
            durable::create_private_dir(hot.parent().unwrap_or(self.ctx.home.root()))?;
            if !hot.exists() && self.image(MEMORY_HOT).is_ok() {
                restoring.image(MEMORY_HOT, &hot)?;
            }
        }
        let has_memory = self.snapshot.memory.is_some();
        let definition = restoring.definition(&self.snapshot.definition, &disks, has_memory)?;
        let head = Head { parent: None, disks, nvram, process: None, clean_shutdown: false, origin: None };
        standing.write(self.dir)?;
        tree::write_head(self.dir, &head)?;
        pass(Failpoint::BootPrepared)?;
        write_definition(&self.dir.definition(), &definition)?;
        pass(Failpoint::BootDefined)?;
        Ok((Machine { dir: self.dir.clone(), definition, head }, restoring.notes))
    }

    /// An empty layer whose header names the export that it is going to stand on.
    fn layer(&self, top: &FrozenTop, image: &StoredImage) -> Result<(Chain, LayerId), Error> {
        let id = LayerId::random();
        let dir = self.dir.layers(&top.disk);
        durable::create_private_dir(&dir)?;
        let path = self.dir.layer(&top.disk, &id);
        let layer_error = |source| Error::Layer { path: path.clone(), source };
        let backing = document::backing(self.dir, &top.disk)?;
        let bytes = ByteLen::from_bytes(image.bytes);
        let size = VirtualSize::new(bytes).map_err(layer_error)?;
        keyframe_qcow2::create_overlay(&path, &backing, size, &CreateOptions::default()).map_err(layer_error)?;
        durable::sync_dir(&dir)?;
        let layer = Layer {
            vm: self.dir.name().clone(),
            file: id.clone(),
            id: id.clone(),
            path: self.ctx.home.relative(&path),
            format: LayerFormat::Qcow2,
            origin: FileOrigin::Made,
            virtual_bytes: bytes,
            frozen: None,
        };
        Ok((Chain { disk: top.disk.clone(), layers: vec![Arc::new(layer)] }, id))
    }

    fn start(
        &self,
        machine: &mut Machine,
        notes: &mut Vec<String>,
    ) -> Result<(Started, Accelerator, f64, Option<f64>), Error> {
        let ctx = self.ctx;
        let with_memory = self.snapshot.memory.is_some();
        let accelerator =
            if with_memory { accelerator_for(&self.snapshot)? } else { choose_accelerator(machine.definition.accel)? };
        server::ensure(ctx, self.dir, self.request.passphrase.as_deref())?;
        pass(Failpoint::BootServed)?;
        ctx.progress.step("starting");
        let launch = Launch {
            definition: &machine.definition,
            accelerator,
            disks: &machine.head.disks,
            nvram: machine.head.nvram.as_ref(),
            ram: RamBacking::Anonymous,
            start: if with_memory { Start::Incoming } else { Start::Cold },
        };
        let starting = launch.begin(ctx.home, self.dir, &Qemu::find()?)?;
        if with_memory {
            // It has read what is needed first by the time QEMU asks.
            pages::serve_image(ctx, document::memory_exports(self.dir), self.hot(), &starting.record()?)?;
        }
        let mut started = starting.ready()?;
        if with_memory {
            check_version(&self.snapshot, accelerator, started.record.version)?;
            load(&mut started).map_err(|error| match error {
                Error::Hypervisor(error) => Error::Hypervisor(started.record.explain(error)),
                other => other,
            })?;
        }
        pass(Failpoint::BootLoaded)?;
        ctx.check()?;
        machine.head.process = Some(Process {
            instance: started.record.clone(),
            accelerator,
            definition: Some(machine.definition.clone()),
            mapped: None,
            served: None,
        });
        machine.write_head()?;
        pass(Failpoint::BootHeadWritten)?;
        if self.runs() {
            pages::let_run(&started.record, &mut started.monitor)?;
        }
        let running_ms = ms_since(self.begun);
        pass(Failpoint::BootRunning)?;
        // Without a network card QEMU has nobody to announce and says so.
        let _ = started.monitor.call(&AnnounceSelf::default());
        let greets = self.runs() && with_memory;
        let clock_skew_ms = if greets { guest::greet(&mut started, self.snapshot.frozen, notes) } else { None };
        Ok((started, accelerator, running_ms, clock_skew_ms))
    }
}

/// Loads what the page server gives.
fn load(started: &mut Started) -> Result<(), Error> {
    load::listen_lazily(&mut started.monitor)?;
    pages::wait_loaded(&started.record, &mut started.monitor)
}

fn ms_since(begun: Instant) -> f64 {
    (begun.elapsed().as_secs_f64() * 1e6).round() / 1e3
}
