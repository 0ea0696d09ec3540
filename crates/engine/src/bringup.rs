//! A fresh QEMU process that continues from a snapshot, up to the moment before its first instruction.
//!
//! | strategy | where RAM comes from | good for |
//! |---|---|---|
//! | eager | QEMU reads the whole image first | small machines |
//! | lazy | a page server answers faults and pushes the rest | any size, at the same speed |
//! | mapped | the image itself, mapped privately | many forks of one snapshot: they share the page cache |
//! | cold | nowhere: the machine boots from the snapshot's disks | disk-only snapshots |

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use keyframe_hypervisor::host::choose_accelerator;
use keyframe_hypervisor::instance::{Started, Starting};
use keyframe_hypervisor::launch::{RAM_BLOCK, RamBacking, Start};
use keyframe_hypervisor::{AccelChoice, Accelerator, MachineDefinition, Qemu, QemuVersion, load};
use keyframe_memory::{Keeping, MemoryImage};
use keyframe_types::ByteLen;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::Error;
use crate::machine::Launch;
use crate::memory;
use crate::pages;
use crate::sharing;
use crate::snapshot::host_cpu;
use crate::state::head::{Chain, Process};
use crate::state::home::{SnapshotDir, VmDir};
use crate::state::manifest::Manifest;

/// How a machine comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// All memory first.
    Eager,
    /// Memory on demand.
    Lazy,
    /// Memory mapped from the image.
    Mapped,
    /// No memory: a boot from the snapshot's disks.
    Cold,
}

/// Images up to this size are read at once: that is as fast as starting a page server.
const EAGER_UP_TO: ByteLen = ByteLen::from_mib(96);
/// QEMU reads a warm image at several times this speed.
const EAGER_BYTES_PER_S: u64 = 100 << 20;

/// What is needed to bring a snapshot back, checked before anything happens.
#[derive(Debug)]
pub struct Source {
    /// The snapshot.
    pub manifest: Manifest,
    /// The machine that it is of.
    pub vm: VmDir,
    /// Its directory.
    pub dir: SnapshotDir,
    /// Its memory image, opened and its head checked; `None` for a cold start.
    pub image: Option<MemoryImage>,
    /// How it comes back.
    pub strategy: Strategy,
    /// What runs it.
    pub accelerator: Accelerator,
}

impl Source {
    /// Checks that `manifest` can come back on this host, and chooses how. `asked` overrides the choice. A shared image is
    /// made whole where the strategy needs one file.
    ///
    /// # Errors
    /// [`Error::OtherHost`], [`Error::Memory`], [`Error::NoMemory`], [`Error::NoSpace`] for making an image whole.
    pub fn prepare(ctx: &Context<'_>, vm: &VmDir, manifest: Manifest, asked: Option<Strategy>) -> Result<Self, Error> {
        let dir = vm.snapshot(&manifest.id);
        let shared = || Ok::<_, Error>(sharing::keeping(vm, &manifest.id)? == Some(Keeping::Shared));
        let strategy = match (&manifest.memory, asked) {
            (_, Some(Strategy::Cold)) | (None, None) => Strategy::Cold,
            (None, Some(_)) => return Err(Error::NoMemory { id: manifest.id }),
            (Some(_), Some(asked)) => asked,
            (Some(memory), None) if memory.bytes_on_disk <= EAGER_UP_TO && !shared()? => Strategy::Eager,
            (Some(_), None) => Strategy::Lazy,
        };
        if strategy == Strategy::Cold {
            let accelerator = choose_accelerator(manifest.definition.accel)?;
            return Ok(Self { manifest, vm: vm.clone(), dir, image: None, strategy, accelerator });
        }
        let accelerator = accelerator_for(&manifest)?;
        if strategy != Strategy::Lazy {
            // QEMU itself reads or maps it.
            sharing::make_whole(ctx, vm, &manifest)?;
        }
        let image = memory::open(vm, &manifest)?;
        Ok(Self { manifest, vm: vm.clone(), dir, image: Some(image), strategy, accelerator })
    }

    /// Checks the version of the QEMU that is to run it. Device state goes forward between versions of one
    /// machine type, not back, and not at all where the CPU model is whatever the version knows.
    ///
    /// # Errors
    /// [`Error::OtherQemu`].
    pub fn check_version(&self, here: QemuVersion) -> Result<(), Error> {
        if self.strategy == Strategy::Cold { Ok(()) } else { check_version(&self.manifest, self.accelerator, here) }
    }

    fn launch<'a>(&'a self, target: &Target<'a>) -> Result<Launch<'a>, Error> {
        let ram = match (self.strategy, &self.image) {
            (Strategy::Mapped, Some(image)) => RamBacking::Mapped {
                image: self.dir.memory(),
                pages_offset: memory::pages_offset(image, RAM_BLOCK).map_err(|source| self.unusable(source))?,
            },
            _ => RamBacking::Anonymous,
        };
        let start = if self.strategy == Strategy::Cold { Start::Cold } else { Start::Incoming };
        Ok(Launch {
            definition: target.definition,
            accelerator: self.accelerator,
            disks: target.disks,
            nvram: target.nvram,
            ram,
            start,
        })
    }

    fn unusable(&self, source: keyframe_memory::Error) -> Error {
        Error::Memory { id: self.manifest.id.clone(), source }
    }

    /// Reads all of the image and compares it with its checksums. For strategies that do not check as they go.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn verify(&self, ctx: &Context<'_>) -> Result<(), Error> {
        match (&self.image, self.strategy) {
            (Some(image), Strategy::Eager | Strategy::Mapped) => {
                memory::verify(ctx, image).map_err(|source| self.unusable(source))
            }
            _ => Ok(()),
        }
    }

    /// Everything that can be found out without giving up the present: the version of QEMU, and every page.
    ///
    /// # Errors
    /// [`Error::OtherQemu`], [`Error::Memory`].
    pub fn verify_ahead(&self, ctx: &Context<'_>) -> Result<(), Error> {
        self.check_version(Qemu::find()?.version()?)?;
        match (&self.image, self.strategy) {
            (Some(image), Strategy::Lazy) => memory::verify(ctx, image).map_err(|source| self.unusable(source)),
            // The others are verified in any case.
            _ => Ok(()),
        }
    }

    /// Starts a process for it without waiting, and the page server beside it where memory comes lazily: it has read
    /// what is needed first by the time QEMU asks.
    ///
    /// # Errors
    /// What starting may meet.
    pub fn begin(&self, ctx: &Context<'_>, vm: &VmDir, target: &Target<'_>) -> Result<Starting, Error> {
        let starting = self.launch(target)?.begin(ctx.home, vm, &Qemu::find()?)?;
        if let (Strategy::Lazy, Some(_)) = (self.strategy, &self.image) {
            pages::serve(ctx, &self.vm, &self.manifest.id, &starting.record()?)?;
        }
        Ok(starting)
    }

    /// Loads the snapshot into a process that was started for it: it could run then.
    ///
    /// # Errors
    /// [`keyframe_hypervisor::Error::Migration`] with QEMU's reason.
    pub fn load(&self, started: &mut Started) -> Result<(), Error> {
        self.check_version(started.record.version)?;
        let explain = |error: Error, started: &Started| match error {
            Error::Hypervisor(error) => Error::Hypervisor(started.record.explain(error)),
            other => other,
        };
        self.load_by_strategy(started).map_err(|error| explain(error, started))
    }

    fn load_by_strategy(&self, started: &mut Started) -> Result<(), Error> {
        match (self.strategy, &self.image) {
            (Strategy::Cold, _) | (_, None) => Ok(()),
            (Strategy::Eager, Some(image)) => {
                let patience = Duration::from_secs(image.ram().total_bytes() / EAGER_BYTES_PER_S);
                Ok(load::eager(&mut started.monitor, &self.dir.memory(), patience)?)
            }
            (Strategy::Mapped, Some(image)) => {
                let devices = self.devices_only(image, started)?;
                Ok(load::mapped(&mut started.monitor, devices.as_fd())?)
            }
            (Strategy::Lazy, Some(_)) => {
                load::listen_lazily(&mut started.monitor)?;
                pages::wait_loaded(&started.record, &mut started.monitor)
            }
        }
    }

    /// Everything of the image but RAM, as a file that QEMU reads once.
    fn devices_only(&self, image: &MemoryImage, started: &Started) -> Result<File, Error> {
        let path: PathBuf = started.record.dir.join("devices.mapped");
        memory::write_devices_only(image, RAM_BLOCK, &path).map_err(|source| self.unusable(source))
    }
}

/// The machine that a snapshot is brought back into.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// What it is made of.
    pub definition: &'a MachineDefinition,
    /// Its disks, with fresh layers on top.
    pub disks: &'a [Chain],
    /// Its firmware's variables.
    pub nvram: Option<&'a Chain>,
}

impl Source {
    /// The process as the head remembers it.
    #[must_use]
    pub fn process(&self, ctx: &Context<'_>, started: &Started, definition: &MachineDefinition) -> Process {
        let image_for = |strategy| (self.strategy == strategy).then(|| ctx.home.relative(&self.dir.memory()));
        Process {
            instance: started.record.clone(),
            accelerator: self.accelerator,
            definition: Some(definition.clone()),
            mapped: image_for(Strategy::Mapped),
            served: image_for(Strategy::Lazy),
        }
    }
}

/// Whether this QEMU takes the device state of that snapshot.
///
/// # Errors
/// [`Error::OtherQemu`].
pub(crate) fn check_version<C>(
    manifest: &Manifest<C>,
    accelerator: Accelerator,
    here: QemuVersion,
) -> Result<(), Error> {
    let taken = manifest.qemu.version;
    let same_series = (taken.major, taken.minor) == (here.major, here.minor);
    let newer = here > taken && accelerator == Accelerator::Kvm;
    if same_series || newer { Ok(()) } else { Err(Error::OtherQemu { id: manifest.id.clone(), taken, here }) }
}

/// The accelerator that a snapshot with memory was taken on, if this host has it.
///
/// # Errors
/// [`Error::OtherHost`].
pub(crate) fn accelerator_for<C>(manifest: &Manifest<C>) -> Result<Accelerator, Error> {
    let taken = &manifest.qemu;
    let choice = match taken.accelerator {
        Accelerator::Kvm => AccelChoice::Kvm,
        Accelerator::Tcg => AccelChoice::Tcg,
    };
    let other = |taken: String, here: String| Error::OtherHost { id: manifest.id.clone(), taken, here };
    let accelerator =
        choose_accelerator(choice).map_err(|error| other(taken.accelerator.to_string(), error.to_string()))?;
    match (&taken.host_cpu, host_cpu(accelerator)) {
        (Some(theirs), Some(ours)) if *theirs != ours => Err(other(theirs.clone(), format!("it has {ours}"))),
        _ => Ok(accelerator),
    }
}
