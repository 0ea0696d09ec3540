//! A machine of its own from a point.
//!
//! Its disks become raw files in its directory. A point with a running state also becomes a snapshot of the new machine, and
//! the machine stands on it: reverting to it goes on where the point was taken. Journal first, the definition last but one,
//! then the journal goes: until then it is no machine, and whoever finds it removes it.

use std::path::PathBuf;
use std::sync::Arc;

use keyframe_hypervisor::host::{choose_accelerator, find_ovmf};
use keyframe_hypervisor::{
    DirectKernel, DiskDefinition, Firmware, LayerFormat, MacAddress, MachineDefinition, Network, Nic,
};
use keyframe_repo::{Point, Repository};
use keyframe_types::{ByteLen, DiskId, LayerId, SnapshotId, SnapshotName, VmName};
use serde::Serialize;

use super::file::{DiskFormat, write_image};
use crate::backup::{INITRD, KERNEL, MEMORY, MEMORY_HOT, MEMORY_SUMS, MachinePoint};
use crate::boot;
use crate::bringup::accelerator_for;
use crate::context::Context;
use crate::create::random_uuid;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::fork;
use crate::layers;
use crate::machine::{kill_strays, read_definition, write_definition};
use crate::space;
use crate::state::head::{Chain, FileOrigin, Fingerprint, Head, Layer};
use crate::state::home::{Home, VmDir};
use crate::state::journal::Journal;
use crate::state::lock::{CREATION_PATIENCE, Lock};
use crate::state::manifest::{Manifest, Memory};
use crate::state::tree::FrozenTop;
use crate::state::{durable, sealed, tree};

/// What a restored machine came to.
#[derive(Debug, Serialize)]
pub struct RestoredMachine {
    /// Its name.
    pub name: VmName,
    /// The point.
    pub point: String,
    /// Its snapshot with the running state, if the point has one.
    pub snapshot: Option<SnapshotName>,
    /// Bytes that are not zeros, and were written.
    pub written_bytes: ByteLen,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Makes a machine from a point, stopped.
///
/// # Errors
/// [`Error::MachineExists`], [`Error::NoMachineInPoint`], [`Error::OtherHost`] before anything is written;
/// [`Error::Repository`], [`Error::Io`]. No machine is left then.
pub fn restore(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    name: &VmName,
) -> Result<RestoredMachine, Error> {
    restore_on(ctx, repository, point, name, None)
}

/// [`restore`], with its card plugged into `network`, where one is given.
pub(super) fn restore_on(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    name: &VmName,
    network: Option<&Network>,
) -> Result<RestoredMachine, Error> {
    let mut machine = MachinePoint::of(point)?;
    if let (Some(network), Some(nic)) = (network, &mut machine.snapshot.definition.nic) {
        nic.network = network.clone();
    }
    check_host(&machine.snapshot)?;
    let operation = format!("restore --as {name}");
    let (_creation, dir) = make_place(ctx, name, &operation)?;
    let restoring = Restoring::new(ctx, repository, point, &dir);
    restoring.carry_out(machine, &operation).inspect_err(|_| {
        // The first error is the one to tell; what stays is no machine, and goes with the next attempt.
        let _ = fork::undo(&dir);
    })
}

/// A directory for a new machine, without what an earlier attempt left there, and the right to make machines, until it is dropped.
///
/// # Errors
/// [`Error::MachineExists`], [`Error::Busy`], [`Error::NoSpace`], [`Error::Io`].
pub(crate) fn make_place(ctx: &Context<'_>, name: &VmName, operation: &str) -> Result<(Lock, VmDir), Error> {
    let creation = Lock::wait(&ctx.home.root().join("lock"), operation, CREATION_PATIENCE)?;
    let dir = ctx.home.vm(name);
    if dir.exists()? {
        return Err(Error::MachineExists(name.clone()));
    }
    space::check(ctx.home.root(), ByteLen::ZERO)?;
    kill_strays(&dir, &[])?;
    boot::stop_serving(&dir)?;
    durable::remove_dir(dir.root())?;
    durable::create_private_dir(dir.root())?;
    Ok((creation, dir))
}

/// What the point needs of a host, found out before anything is written.
pub(crate) fn check_host(snapshot: &Manifest<FrozenTop>) -> Result<(), Error> {
    if snapshot.definition.firmware == Firmware::Uefi {
        find_ovmf()?;
    }
    match snapshot.memory {
        Some(_) => accelerator_for(snapshot).map(drop),
        None => Ok(choose_accelerator(snapshot.definition.accel).map(drop)?),
    }
}

/// What is made of a point's machine in a directory of its own.
pub(crate) struct Restoring<'a> {
    ctx: &'a Context<'a>,
    repository: &'a Repository,
    point: &'a Point,
    dir: &'a VmDir,
    written: ByteLen,
    pub(crate) notes: Vec<String>,
}

impl<'a> Restoring<'a> {
    pub(crate) fn new(ctx: &'a Context<'a>, repository: &'a Repository, point: &'a Point, dir: &'a VmDir) -> Self {
        Self { ctx, repository, point, dir, written: ByteLen::ZERO, notes: Vec::new() }
    }

    fn carry_out(mut self, machine: MachinePoint, operation: &str) -> Result<RestoredMachine, Error> {
        let _lock = Lock::take(&self.dir.lock(), operation)?;
        sealed::write(&self.dir.journal(), &Journal::Fork)?;
        pass(Failpoint::RestoreJournaled)?;
        let missing = machine.unreadable_bytes();
        if missing > ByteLen::ZERO {
            self.notes.push(format!("{missing} of its disks could not be read when the point was made, and are zeros"));
        }
        let snapshot = machine.snapshot;
        let disks = snapshot.disks.iter().map(|top| self.disk(&top.disk)).collect::<Result<Vec<_>, _>>()?;
        let nvram = snapshot.nvram.as_ref().map(|top| self.disk(&top.disk)).transpose()?;
        pass(Failpoint::RestoreDisksWritten)?;
        let definition = self.definition(&snapshot.definition, &disks, snapshot.memory.is_some())?;
        let mut head = Head { parent: None, disks, nvram, process: None, clean_shutdown: false, origin: None };
        let mut name = None;
        if let Some(memory) = &snapshot.memory {
            layers::freeze_tops(self.ctx.home, head.chains_mut())?;
            let restored = self.memory(&snapshot, memory, &head, &definition)?;
            head = Head {
                parent: Some(restored.id),
                disks: layers::planned_overlays(self.ctx.home, self.dir, head.disks.iter())?,
                nvram: layers::planned_overlays(self.ctx.home, self.dir, head.nvram.iter())?.pop(),
                ..head
            };
            let chains: Vec<_> = head.chains().cloned().collect();
            layers::create_tops(self.ctx.home, &chains)?;
            name = Some(restored.name);
            pass(Failpoint::RestoreMemoryWritten)?;
        }
        tree::write_head(self.dir, &head)?;
        pass(Failpoint::RestoreHeadWritten)?;
        write_definition(&self.dir.definition(), &definition)?;
        pass(Failpoint::RestoreDefined)?;
        durable::remove_file(&self.dir.journal())?;
        Ok(RestoredMachine {
            name: self.dir.name().clone(),
            point: format!("{}@{}", self.point.name, self.point.id.short()),
            snapshot: name,
            written_bytes: self.written,
            notes: self.notes,
        })
    }

    pub(crate) fn image(&mut self, label: &str, path: &std::path::Path) -> Result<(), Error> {
        let report = write_image(self.ctx, self.repository, self.point, label, path, DiskFormat::Raw)?;
        self.written = self.written + ByteLen::from_bytes(report.written_bytes);
        Ok(())
    }

    /// A disk as a raw file, the only layer of its chain.
    pub(crate) fn disk(&mut self, disk: &DiskId) -> Result<Chain, Error> {
        self.ctx.progress.step(&format!("restoring {disk}"));
        let id = LayerId::random();
        let layers = self.dir.layers(disk);
        durable::create_private_dir(&layers)?;
        let path = layers.join(format!("{id}.raw"));
        self.image(disk.as_str(), &path)?;
        durable::sync_dir(&layers)?;
        let layer = Layer {
            vm: self.dir.name().clone(),
            file: id.clone(),
            id,
            virtual_bytes: Fingerprint::of(&path)?.bytes,
            path: self.ctx.home.relative(&path),
            format: LayerFormat::Raw,
            origin: FileOrigin::Made,
            frozen: None,
        };
        Ok(Chain { disk: disk.clone(), layers: vec![Arc::new(layer)] })
    }

    /// The running state as a snapshot of the new machine.
    fn memory(
        &mut self,
        snapshot: &Manifest<FrozenTop>,
        memory: &Memory,
        frozen: &Head,
        definition: &MachineDefinition,
    ) -> Result<Restored, Error> {
        self.ctx.progress.step("restoring memory");
        let id = SnapshotId::random();
        let dir = self.dir.snapshot(&id);
        durable::create_private_dir(dir.root())?;
        self.image(MEMORY, &dir.memory())?;
        self.image(MEMORY_SUMS, &dir.sums())?;
        if self.point.images.iter().any(|image| image.label == MEMORY_HOT) {
            self.image(MEMORY_HOT, &dir.hot())?;
        }
        durable::sync_dir(dir.root())?;
        let bytes_on_disk = space::used(&dir.memory()) + space::used(&dir.sums());
        let manifest = Manifest {
            id: id.clone(),
            name: snapshot.name.clone(),
            note: Some(format!("restored from point {}@{}", self.point.name, self.point.id.short())),
            owner: snapshot.owner.clone(),
            created: snapshot.created,
            expires: None,
            pinned: false,
            parent: None,
            group: None,
            consistency: snapshot.consistency,
            cut: snapshot.cut,
            state: snapshot.state,
            frozen: snapshot.frozen,
            definition: definition.clone(),
            qemu: snapshot.qemu.clone(),
            memory: Some(Memory { bytes_on_disk, ..memory.clone() }),
            disks: frozen.disks.clone(),
            nvram: frozen.nvram.clone(),
            cost: snapshot.cost,
        };
        tree::write_manifest(self.dir, &manifest)?;
        Ok(Restored { id, name: manifest.name })
    }

    /// The definition with its name, its files, and an identity of its own where another machine here has that.
    pub(crate) fn definition(
        &mut self,
        original: &MachineDefinition,
        disks: &[Chain],
        running_state: bool,
    ) -> Result<MachineDefinition, Error> {
        let home = self.ctx.home;
        let sources = disks.iter().map(|chain| {
            let source = home.absolute(&chain.top()?.path);
            Ok(DiskDefinition { id: chain.disk.clone(), source })
        });
        let mut definition = MachineDefinition {
            name: self.dir.name().clone(),
            disks: sources.collect::<Result<_, Error>>()?,
            kernel: original.kernel.as_ref().map(|kernel| self.kernel(kernel)).transpose()?,
            ..original.clone()
        };
        let taken = taken_identities(home)?;
        if taken.uuids.contains(&definition.uuid) {
            definition.uuid = random_uuid();
        }
        if let Some(Nic { mac, network }) = &mut definition.nic
            // Where nobody else is, an address may be another machine's elsewhere.
            && !matches!(network, Network::Private(_))
            && taken.macs.contains(mac)
        {
            if running_state {
                // Its guest knows the address by heart.
                *network = Network::Isolated;
                self.notes.push(format!("another machine here has its network address {mac}: its cable leads nowhere"));
            } else {
                *mac = MacAddress::random();
                self.notes.push("another machine here has its network address: it was given one of its own".to_owned());
            }
        }
        Ok(definition)
    }

    /// The kernel that QEMU loads itself, and its initial RAM disk, from the point.
    fn kernel(&mut self, original: &DirectKernel) -> Result<DirectKernel, Error> {
        let boot = self.dir.boot_files();
        durable::create_private_dir(&boot)?;
        let kernel = boot.join("kernel");
        self.image(KERNEL, &kernel)?;
        let initrd = original.initrd.as_ref().map(|_| boot.join("initrd"));
        if let Some(initrd) = &initrd {
            self.image(INITRD, initrd)?;
        }
        durable::sync_dir(&boot)?;
        Ok(DirectKernel { kernel, initrd, append: original.append.clone() })
    }
}

struct Restored {
    id: SnapshotId,
    name: SnapshotName,
}

/// What the machines of a home are known by to others.
struct Identities {
    uuids: Vec<String>,
    macs: Vec<MacAddress>,
}

fn taken_identities(home: &Home) -> Result<Identities, Error> {
    let (mut uuids, mut macs) = (Vec::new(), Vec::new());
    for name in home.machine_names()? {
        let path: PathBuf = home.vm(&name).definition();
        if let Some(definition) = read_definition(&path)? {
            uuids.push(definition.uuid);
            macs.extend(definition.nic.map(|nic| nic.mac));
        }
    }
    Ok(Identities { uuids, macs })
}
