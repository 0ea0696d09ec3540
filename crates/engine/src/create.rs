//! `vm create` and `vm remove`: a machine over disks that exist, used in place.
//!
//! Nothing is copied: the given image becomes the machine's active layer as it is, and a frozen base at the
//! first snapshot. Only the firmware's variables get a file of their own.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use keyframe_hypervisor::extra_args;
use keyframe_hypervisor::host::{choose_accelerator, find_ovmf};
use keyframe_hypervisor::launch::{MAX_DISKS, NVRAM_DISK};
use keyframe_hypervisor::{
    AccelChoice, DirectKernel, DiskDefinition, Firmware, LayerFormat, MacAddress, MachineDefinition, Network, Nic, Qemu,
};
use keyframe_qcow2::Format;
use keyframe_types::{ByteLen, DiskId, InstanceId, LayerId, VmName};

use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::layers;
use crate::machine::{Machine, write_definition};
use crate::state::head::{Chain, Head, Layer};
use crate::state::home::{Home, VmDir};
use crate::state::lock::{CREATION_PATIENCE, Lock};
use crate::state::{durable, sealed};

/// What a new machine shall be.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Its name.
    pub name: VmName,
    /// Its RAM; whole MiB.
    pub memory: ByteLen,
    /// Its CPUs.
    pub cpus: u32,
    /// Its disks, used in place.
    pub disks: Vec<PathBuf>,
    /// A kernel to boot directly.
    pub kernel: Option<DirectKernel>,
    /// Its firmware.
    pub firmware: Firmware,
    /// Its network; `None` for no network card.
    pub network: Option<Network>,
    /// What runs it.
    pub accel: AccelChoice,
    /// Further QEMU arguments.
    pub extra_args: Vec<String>,
}

/// Least and most RAM of a machine.
const MEMORY_RANGE_MIB: std::ops::RangeInclusive<u64> = 8..=(1 << 24);
/// Most CPUs of a machine: what q35 without an IOMMU offers.
const MAX_CPUS: u32 = 255;

/// Creates a machine, stopped.
///
/// # Errors
/// [`Error::MachineExists`], [`Error::DiskInUse`], [`Error::UnusableDisk`], [`Error::BadRequest`]; nothing is
/// left behind then.
pub fn create(ctx: &Context<'_>, request: CreateRequest) -> Result<Machine, Error> {
    check(&request)?;
    let dir = ctx.home.vm(&request.name);
    let _lock = Lock::wait(&ctx.home.root().join("lock"), &format!("vm create {}", request.name), CREATION_PATIENCE)?;
    if dir.definition().exists() {
        return Err(Error::MachineExists(request.name));
    }
    let bases = bases(ctx.home, &request.name, &request.disks)?;
    choose_accelerator(request.accel)?;
    let machine_type = Qemu::find()?.newest_q35()?;
    // What an interrupted creation left is no machine; it is made anew.
    durable::remove_dir(dir.root())?;
    durable::create_private_dir(dir.root())?;
    let created = build(ctx.home, &dir, request, machine_type, bases);
    if created.is_err() {
        // The first error is the one to tell.
        let _ = durable::remove_dir(dir.root());
    }
    created
}

fn check(request: &CreateRequest) -> Result<(), Error> {
    let bad = |what: String| Err(Error::BadRequest { what });
    if !request.memory.bytes().is_multiple_of(1 << 20) || !MEMORY_RANGE_MIB.contains(&request.memory.mib()) {
        return bad(format!("a machine has between 8 MiB and 16 TiB of memory, in whole MiB; not {}", request.memory));
    }
    if !(1..=MAX_CPUS).contains(&request.cpus) {
        return bad(format!("a machine has 1 to {MAX_CPUS} CPUs; not {}", request.cpus));
    }
    if request.disks.len() > MAX_DISKS {
        return Err(Error::TooManyDisks { found: request.disks.len(), limit: MAX_DISKS });
    }
    if let Some(kernel) = &request.kernel {
        for path in std::iter::once(&kernel.kernel).chain(&kernel.initrd) {
            std::fs::File::open(path).or_io("open", path)?;
        }
    }
    extra_args::check(&request.extra_args)?;
    Ok(())
}

fn build(
    home: &Home,
    dir: &VmDir,
    request: CreateRequest,
    machine_type: String,
    bases: Vec<Vec<Layer>>,
) -> Result<Machine, Error> {
    let mut disks = Vec::new();
    let mut chains = Vec::new();
    for (index, (source, layers)) in request.disks.into_iter().zip(bases).enumerate() {
        let id = DiskId::new(format!("disk{index}")).map_err(|error| Error::BadRequest { what: error.to_string() })?;
        disks.push(DiskDefinition { id: id.clone(), source: absolute(&source)? });
        chains.push(Chain { disk: id, layers });
    }
    let nvram = (request.firmware == Firmware::Uefi).then(|| fresh_nvram(home, dir)).transpose()?;
    let kernel = request.kernel.map(absolute_kernel).transpose()?;
    let definition = MachineDefinition {
        schema: MachineDefinition::SCHEMA.to_owned(),
        name: request.name,
        uuid: random_uuid(),
        memory_mib: request.memory.mib(),
        cpus: request.cpus,
        machine_type,
        accel: request.accel,
        firmware: request.firmware,
        nic: request.network.map(|network| Nic { mac: MacAddress::random(), network }),
        kernel,
        disks,
        extra_args: request.extra_args,
    };
    let head = Head { parent: None, disks: chains, nvram, process: None, clean_shutdown: false, origin: None };
    sealed::write(&dir.head(), &head)?;
    // Written last: a directory without a definition is no machine.
    write_definition(&dir.definition(), &definition)?;
    Ok(Machine { dir: dir.clone(), definition, head })
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().or_io("open", path)
}

fn absolute_kernel(kernel: DirectKernel) -> Result<DirectKernel, Error> {
    let initrd = kernel.initrd.as_deref().map(absolute).transpose()?;
    Ok(DirectKernel { kernel: absolute(&kernel.kernel)?, initrd, append: kernel.append })
}

/// A UUID of version 4.
pub(crate) fn random_uuid() -> String {
    let (a, b) = (InstanceId::random(), InstanceId::random());
    let (a, b) = (a.as_str(), b.as_str());
    format!("{}-{}-4{}-8{}-{}", &a[..8], &a[8..12], &a[13..16], &b[1..4], &b[4..16])
}

/// The layers of the given images, the active one first, each checked to be nobody else's.
fn bases(home: &Home, name: &VmName, disks: &[PathBuf]) -> Result<Vec<Vec<Layer>>, Error> {
    let mut owners = owners(home)?;
    let mut bases = Vec::new();
    for disk in disks {
        let unusable = |source| Error::UnusableDisk { path: disk.clone(), source };
        let path = absolute(disk)?;
        let metadata = std::fs::metadata(&path).or_io("look at", &path)?;
        let file = (metadata.dev(), metadata.ino());
        if let Some(owner) = owners.get(&file) {
            return Err(Error::DiskInUse { path, vm: owner.clone() });
        }
        // The same file twice in one machine is as bad as in two.
        owners.insert(file, name.clone());
        std::fs::OpenOptions::new().read(true).write(true).open(&path).or_io("open for writing", &path)?;
        let format = keyframe_qcow2::probe(&path).map_err(unusable)?;
        let chain = keyframe_qcow2::chain(&path, format).map_err(unusable)?;
        // QEMU shows the guest the size of the topmost layer, in whole sectors.
        let layers = chain
            .into_iter()
            .map(|layer| {
                Ok(Layer {
                    id: LayerId::random(),
                    path: home.relative(&absolute(&layer.path)?),
                    format: match layer.format() {
                        Format::Qcow2 => LayerFormat::Qcow2,
                        Format::Raw => LayerFormat::Raw,
                    },
                    virtual_bytes: ByteLen::from_bytes(layer.virtual_size.bytes()),
                    frozen: None,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        bases.push(layers);
    }
    Ok(bases)
}

/// Which machine writes or wrote to which file, by device and inode.
fn owners(home: &Home) -> Result<BTreeMap<(u64, u64), VmName>, Error> {
    let mut owners = BTreeMap::new();
    for name in home.machine_names()? {
        let head: Option<Head> = sealed::read(&home.vm(&name).head())?;
        let paths: Vec<PathBuf> = head
            .iter()
            .flat_map(Head::chains)
            .flat_map(|chain| &chain.layers)
            .map(|layer| home.absolute(&layer.path))
            .collect();
        for path in paths {
            if let Ok(metadata) = std::fs::metadata(&path) {
                owners.insert((metadata.dev(), metadata.ino()), name.clone());
            }
        }
    }
    Ok(owners)
}

/// Variables of UEFI firmware, copied from the distribution's template.
fn fresh_nvram(home: &Home, dir: &VmDir) -> Result<Chain, Error> {
    let (_, template) = find_ovmf()?;
    let disk = DiskId::new(NVRAM_DISK).map_err(|error| Error::BadRequest { what: error.to_string() })?;
    let id = LayerId::random();
    let path = dir.layers(&disk).join(format!("{id}.raw"));
    durable::create_private_dir(&dir.layers(&disk))?;
    let bytes = std::fs::read(&template).or_io("read", &template)?;
    durable::replace(&path, &bytes)?;
    let virtual_bytes = ByteLen::from_bytes(bytes.len() as u64);
    let layer = Layer { id, path: home.relative(&path), format: LayerFormat::Raw, virtual_bytes, frozen: None };
    Ok(Chain { disk, layers: vec![layer] })
}

/// What removing a machine removes, and what it leaves.
#[derive(Debug)]
pub struct Removal {
    /// Files outside of the machine's directory that it stood on.
    pub left: Vec<PathBuf>,
}

/// Removes a stopped machine with its snapshots and layers. Disks that were given at creation stay, with what
/// was written to them before the first snapshot.
///
/// # Errors
/// [`Error::WrongState`] when it runs, [`Error::Held`] when another machine stands on its layers.
pub fn remove(ctx: &Context<'_>, name: &VmName) -> Result<Removal, Error> {
    let _creation = Lock::wait(&ctx.home.root().join("lock"), &format!("vm remove {name}"), CREATION_PATIENCE)?;
    let (_lock, machine) = Machine::lock(ctx, name, &format!("vm remove {name}"))?;
    if machine.process().is_some() {
        return Err(Error::WrongState {
            vm: name.clone(),
            state: "running".to_owned(),
            advice: "stop it first with `keyframe vm stop`",
        });
    }
    let dependent = dependents(ctx.home, &machine)?;
    if let Some(other) = dependent.first() {
        let reason = format!("machine {other} was forked from it and stands on its layers");
        return Err(Error::Held { name: name.to_string(), reason });
    }
    let own = machine.dir.root().to_owned();
    let all = machine.head.chains().flat_map(|chain| &chain.layers).map(|layer| ctx.home.absolute(&layer.path));
    let left = all.filter(|path| !path.starts_with(&own)).collect();
    // Without its definition it is no machine: from here on it is gone, whatever happens.
    durable::remove_file(&machine.dir.definition())?;
    durable::remove_dir(&own)?;
    Ok(Removal { left })
}

/// Other machines that stand on layers, or run from a memory image, in this machine's directory.
fn dependents(home: &Home, machine: &Machine) -> Result<Vec<VmName>, Error> {
    let own = machine.dir.root();
    let mut names = Vec::new();
    for name in home.machine_names()?.into_iter().filter(|name| name != machine.name()) {
        let other = layers::of_machine(home, &name)?;
        if other.iter().any(|path| path.starts_with(own)) {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_have_their_form() {
        let uuid = random_uuid();
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
        assert!(uuid.split('-').nth(2).unwrap().starts_with('4'));
    }
}
