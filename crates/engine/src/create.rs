//! `vm create`: a machine over disks that exist, used in place.
//!
//! Nothing is copied: the given image becomes the machine's active layer as it is, and a frozen base at the
//! first snapshot. Only the firmware's variables get a file of their own.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
use crate::machine::{Machine, write_definition};
use crate::snapshots;
use crate::state::head::{Chain, FileOrigin, Fingerprint, Head, Layer};
use crate::state::home::{Home, VmDir};
use crate::state::lock::{CREATION_PATIENCE, Lock};
use crate::state::manifest::Manifest;
use crate::state::tree::Trees;
use crate::state::{durable, tree};

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
    /// Words that policies choose it by.
    pub tags: Vec<String>,
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
    if dir.exists()? {
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
    bases: Vec<Vec<Arc<Layer>>>,
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
        probes: Vec::new(),
        cost: None,
        tags: request.tags,
        extra_args: request.extra_args,
    };
    let head = Head { parent: None, disks: chains, nvram, process: None, clean_shutdown: false, origin: None };
    tree::write_head(dir, &head)?;
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

/// The layers of the given images, the active one first: each image checked to be nobody else's, and what it stands on
/// to be nobody's to write.
fn bases(home: &Home, name: &VmName, disks: &[PathBuf]) -> Result<Vec<Vec<Arc<Layer>>>, Error> {
    let mut owners = Owners::of(home)?;
    let mut bases = Vec::new();
    for disk in disks {
        let unusable = |source| Error::UnusableDisk { path: disk.clone(), source };
        let path = absolute(disk)?;
        let metadata = std::fs::metadata(&path).or_io("look at", &path)?;
        let file = (metadata.dev(), metadata.ino());
        owners.refuse_used(&path, file)?;
        // The same file twice in one machine is as bad as in two.
        owners.claim(file, name);
        std::fs::OpenOptions::new().read(true).write(true).open(&path).or_io("open for writing", &path)?;
        let format = keyframe_qcow2::probe(&path).map_err(unusable)?;
        let chain = keyframe_qcow2::chain(&path, format).map_err(unusable)?;
        // QEMU shows the guest the size of the topmost layer, in whole sectors.
        let layers = chain
            .into_iter()
            .enumerate()
            .map(|(depth, layer)| {
                let path = absolute(&layer.path)?;
                if depth > 0 {
                    owners.refuse_written(&path)?;
                    owners.stand_on(&path, name);
                }
                let id = LayerId::random();
                Ok(Arc::new(Layer {
                    vm: name.clone(),
                    file: id.clone(),
                    id,
                    origin: if depth == 0 { FileOrigin::Given } else { FileOrigin::Foreign },
                    path: home.relative(&path),
                    format: match layer.format() {
                        Format::Qcow2 => LayerFormat::Qcow2,
                        Format::Raw => LayerFormat::Raw,
                    },
                    virtual_bytes: ByteLen::from_bytes(layer.virtual_size.bytes()),
                    // What a disk stands on is frozen from the beginning: a write from outside shall be noticed.
                    frozen: (depth > 0).then(|| Fingerprint::of(&path)).transpose()?,
                }))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        bases.push(layers);
    }
    Ok(bases)
}

/// A file, by device and inode.
type FileId = (u64, u64);

/// Which machine has which file.
#[derive(Debug, Default)]
struct Owners {
    /// Files that a machine's present or one of its snapshots stands on.
    used: BTreeMap<FileId, VmName>,
    /// Those that a machine writes to.
    written: BTreeMap<FileId, VmName>,
    /// Directories of machines: what lies there is theirs, whatever their documents say.
    dirs: Vec<(PathBuf, VmName)>,
}

fn file_id(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Owners {
    fn of(home: &Home) -> Result<Self, Error> {
        let mut owners = Self::default();
        let trees = Trees::of(home);
        for name in home.machine_names()? {
            let dir = home.vm(&name);
            let head = trees.head(&dir)?;
            for chain in head.iter().flat_map(Head::chains) {
                let active = chain.layers.first().and_then(|layer| file_id(&home.absolute(&layer.path)));
                owners.written.extend(active.map(|file| (file, name.clone())));
            }
            // A manifest that cannot be read hides nothing but layers in the machine's own directory.
            let (manifests, _damaged) = snapshots::scan_with(&trees, &dir)?;
            let chains = head.iter().flat_map(Head::chains).chain(manifests.iter().flat_map(Manifest::chains));
            let files = chains.flat_map(|chain| &chain.layers).filter_map(|layer| file_id(&home.absolute(&layer.path)));
            owners.used.extend(files.map(|file| (file, name.clone())));
            owners.dirs.push((dir.root().to_owned(), name));
        }
        Ok(owners)
    }

    fn claim(&mut self, file: FileId, name: &VmName) {
        self.used.insert(file, name.clone());
        self.written.insert(file, name.clone());
    }

    fn stand_on(&mut self, path: &Path, name: &VmName) {
        self.used.extend(file_id(path).map(|file| (file, name.clone())));
    }

    /// A disk that is given must not be part of another.
    fn refuse_used(&self, path: &Path, file: FileId) -> Result<(), Error> {
        let in_dir = || self.dirs.iter().find(|(dir, _)| path.starts_with(dir)).map(|(_, name)| name);
        match self.used.get(&file).or_else(in_dir) {
            Some(owner) => Err(Error::DiskInUse { path: path.to_owned(), vm: owner.clone() }),
            None => Ok(()),
        }
    }

    /// What a disk stands on must not be written to.
    fn refuse_written(&self, path: &Path) -> Result<(), Error> {
        match file_id(path).and_then(|file| self.written.get(&file)) {
            Some(owner) => Err(Error::BackingInUse { path: path.to_owned(), vm: owner.clone() }),
            None => Ok(()),
        }
    }
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
    let layer = Layer {
        vm: dir.name().clone(),
        file: id.clone(),
        id,
        path: home.relative(&path),
        format: LayerFormat::Raw,
        origin: FileOrigin::Made,
        virtual_bytes,
        frozen: None,
    };
    Ok(Chain { disk, layers: vec![Arc::new(layer)] })
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

    fn machine_on(home: &Home, name: &VmName, disk: &Path) -> Vec<Vec<Arc<Layer>>> {
        let layers = bases(home, name, &[disk.to_owned()]).unwrap();
        let dir = home.vm(name);
        std::fs::create_dir_all(dir.root()).unwrap();
        std::fs::write(dir.definition(), "").unwrap();
        let disks = vec![Chain { disk: DiskId::new("disk0").unwrap(), layers: layers[0].clone() }];
        let head = Head { parent: None, disks, nvram: None, process: None, clean_shutdown: false, origin: None };
        tree::write_head(&dir, &head).unwrap();
        layers
    }

    #[test]
    fn a_disk_is_refused_that_another_machine_has_or_writes_below() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let (one, two) = (VmName::new("one").unwrap(), VmName::new("two").unwrap());
        let (base, above) = (root.path().join("base.raw"), root.path().join("above.qcow2"));
        std::fs::write(&base, [0; 1 << 16]).unwrap();
        let backing = keyframe_qcow2::Backing::new(base.clone(), Format::Raw).unwrap();
        let size = keyframe_qcow2::units::VirtualSize::new(ByteLen::from_bytes(1 << 16)).unwrap();
        keyframe_qcow2::create_overlay(&above, &backing, size, &Default::default()).unwrap();

        let both = bases(&home, &one, &[base.clone(), above.clone()]);
        assert!(matches!(both, Err(Error::BackingInUse { .. })), "written as one disk, stood on by another: {both:?}");

        let both = bases(&home, &one, &[above.clone(), base.clone()]);
        assert!(matches!(both, Err(Error::DiskInUse { .. })), "the other way round: {both:?}");

        let layers = machine_on(&home, &one, &above);
        let frozen: Vec<bool> = layers[0].iter().map(|layer| layer.frozen.is_some()).collect();
        assert_eq!(frozen, [false, true], "what the disk stands on is watched from the beginning");
        assert!(matches!(bases(&home, &two, std::slice::from_ref(&base)), Err(Error::DiskInUse { .. })));
        let higher = root.path().join("higher.qcow2");
        let backing = keyframe_qcow2::Backing::new(above, Format::Qcow2).unwrap();
        keyframe_qcow2::create_overlay(&higher, &backing, size, &Default::default()).unwrap();
        assert!(matches!(bases(&home, &two, &[higher]), Err(Error::BackingInUse { .. })));

        // A layer that only a snapshot has, or that only a damaged document tells of, lies in the machine's directory.
        let stray = home.vm(&one).layers(&DiskId::new("disk0").unwrap()).join("a.raw");
        std::fs::create_dir_all(stray.parent().unwrap()).unwrap();
        std::fs::write(&stray, [0; 512]).unwrap();
        assert!(matches!(bases(&home, &two, &[stray]), Err(Error::DiskInUse { .. })));
    }
}
