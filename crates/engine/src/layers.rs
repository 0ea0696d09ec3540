//! Fresh overlays on the layers of a chain, and what refers to a layer.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use keyframe_hypervisor::LayerFormat;
use keyframe_hypervisor::cut::Overlay;
use keyframe_hypervisor::host::takes_direct_io;
use keyframe_hypervisor::launch::{LayerAccess, LayerFile, NVRAM_DISK, disk_device, layer_node, node_name};
use keyframe_qcow2::units::VirtualSize;
use keyframe_qcow2::{Backing, CreateOptions, Durability, Format};
use keyframe_types::{LayerId, VmName};

use crate::bitmaps;
use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::pages;
use crate::release;
use crate::snapshots;
use crate::state::head::{Chain, FileOrigin, Fingerprint, Head, Layer, Process};
use crate::state::home::{Home, VmDir};
use crate::state::journal::Journal;
use crate::state::manifest::Manifest;
use crate::state::tree::{ActiveTop, LayerRef, Trees};
use crate::state::{durable, sealed, tree};

/// The chains with a fresh layer, not yet made, on top of each.
///
/// # Errors
/// [`Error::EmptyChain`].
pub fn planned_overlays<'a>(
    home: &Home,
    dir: &VmDir,
    chains: impl Iterator<Item = &'a Chain>,
) -> Result<Vec<Chain>, Error> {
    chains
        .map(|chain| {
            let id = LayerId::random();
            let path = home.relative(&dir.layer(&chain.disk, &id));
            let virtual_bytes = chain.top()?.virtual_bytes;
            let fresh = Layer {
                vm: dir.name().clone(),
                file: id.clone(),
                id,
                path,
                format: LayerFormat::Qcow2,
                origin: FileOrigin::Made,
                virtual_bytes,
                frozen: None,
            };
            let layers = std::iter::once(Arc::new(fresh)).chain(chain.layers.iter().cloned()).collect();
            Ok(Chain { disk: chain.disk.clone(), layers })
        })
        .collect()
}

/// Makes the files of the topmost layers of `chains`, durably.
///
/// # Errors
/// [`Error::Layer`], [`Error::Io`]; those made before are removed.
pub fn create_tops(home: &Home, chains: &[Chain]) -> Result<(), Error> {
    chains.iter().try_for_each(|chain| create_top(home, chain)).inspect_err(|_| {
        // The first error is the one to tell; a file that stays is found by the next command's tidying up.
        let _ = remove_tops(home, chains);
    })
}

fn create_top(home: &Home, chain: &Chain) -> Result<(), Error> {
    let path = home.absolute(&chain.top()?.path);
    // Under a name of its own until it is whole: a layer that cannot be read is then never one that was being made.
    let unfinished = path.with_extension("tmp");
    durable::remove_file(&unfinished)?;
    write_top(home, chain, &unfinished, Durability::Synced)?;
    std::fs::rename(&unfinished, &path).or_io("rename", &unfinished)?;
    durable::sync_parent(&path)
}

/// Writes the topmost layer of `chain` to `path`, in the directory that it belongs to.
fn write_top(home: &Home, chain: &Chain, path: &Path, durability: Durability) -> Result<(), Error> {
    let Some(below) = chain.layers.get(1) else {
        return Err(Error::EmptyChain { disk: chain.disk.clone() });
    };
    let dir = path.parent().unwrap_or(home.root());
    if !dir.is_dir() {
        durable::create_private_dir(dir)?;
    }
    let layer_error = |source| Error::Layer { path: path.to_owned(), source };
    let backing = backing(home, path, below)?;
    let size = VirtualSize::new(chain.top()?.virtual_bytes).map_err(layer_error)?;
    let options = CreateOptions { durability, ..CreateOptions::default() };
    keyframe_qcow2::create_overlay(path, &backing, size, &options).map_err(layer_error)
}

/// Topmost layers that QEMU can open and a power cut can still undo.
///
/// For operations whose journal is durable already, and removes these files when it is undone: a power cut can leave a
/// file here that has its name and not its bytes.
#[derive(Debug)]
#[must_use = "nothing may refer to these files before they are durable"]
pub(crate) struct UnsyncedTops {
    files: Vec<PathBuf>,
}

impl UnsyncedTops {
    /// Makes the files of the topmost layers of `chains`.
    ///
    /// # Errors
    /// As [`create_tops`].
    pub fn create(home: &Home, chains: &[Chain]) -> Result<Self, Error> {
        let make = |chain: &Chain| {
            let path = home.absolute(&chain.top()?.path);
            write_top(home, chain, &path, Durability::CallerSyncs).map(|()| path)
        };
        let files = chains.iter().map(make).collect::<Result<_, _>>().inspect_err(|_| {
            // As above.
            let _ = remove_tops(home, chains);
        })?;
        Ok(Self { files })
    }

    /// Makes them durable, each directory once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(self) -> Result<(), Error> {
        self.files.iter().try_for_each(|file| durable::sync_file(file))?;
        let dirs: BTreeSet<&Path> = self.files.iter().filter_map(|file| file.parent()).collect();
        dirs.into_iter().try_for_each(durable::sync_dir)
    }
}

/// How the header of the layer at `path` names the one `below` it: relative to its directory, or absolute for a disk
/// that was given.
///
/// # Errors
/// [`Error::Layer`] for a name that no header can hold.
pub fn backing(home: &Home, path: &Path, below: &Layer) -> Result<Backing, Error> {
    let below_path = home.absolute(&below.path);
    let dir = path.parent().unwrap_or(home.root());
    let stored = if below.path.is_absolute() { below_path } else { relative_to(dir, &below_path) };
    Backing::new(stored, qcow2_format(below.format)).map_err(|source| Error::Layer { path: path.to_owned(), source })
}

/// Removes the files of the topmost layers of `chains`.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_tops(home: &Home, chains: &[Chain]) -> Result<(), Error> {
    chains
        .iter()
        .filter_map(|chain| chain.layers.first())
        .try_for_each(|top| durable::remove_file(&home.absolute(&top.path)))
}

/// A layer's format, as qcow2 readers and writers name it.
pub(crate) fn qcow2_format(format: LayerFormat) -> Format {
    match format {
        LayerFormat::Qcow2 => Format::Qcow2,
        LayerFormat::Raw => Format::Raw,
    }
}

/// The way from the directory `from` to `to`, both absolute.
fn relative_to(from: &Path, to: &Path) -> PathBuf {
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) = (from.components().collect(), to.components().collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(Component::ParentDir, from.len() - shared);
    up.chain(to.into_iter().skip(shared)).collect()
}

/// The overlays as QEMU is told about them: the first layer of each chain on its second.
///
/// # Errors
/// [`Error::EmptyChain`].
pub fn cut_overlays(home: &Home, chains: &[Chain]) -> Result<Vec<Overlay>, Error> {
    chains
        .iter()
        .map(|chain| {
            let (Some(top), Some(below)) = (chain.layers.first(), chain.layers.get(1)) else {
                return Err(Error::EmptyChain { disk: chain.disk.clone() });
            };
            let path = home.absolute(&top.path);
            let file = LayerFile { id: top.file.clone(), direct: takes_direct_io(&path), path, format: top.format };
            Ok(Overlay {
                device: (chain.disk.as_str() != NVRAM_DISK).then(|| disk_device(&chain.disk)),
                active: node_name(&below.file),
                overlay: node_name(&top.file),
                options: layer_node(&file, LayerAccess::Active, None),
            })
        })
        .collect()
}

/// Makes the topmost layers of `chains` durable and notes what their files look like: they are frozen from now on. Nothing in
/// them is kept that QEMU would write to once more.
///
/// # Errors
/// [`Error::Io`]; [`Error::Layer`] for one that cannot be read.
pub fn freeze_tops<'a>(home: &Home, chains: impl Iterator<Item = &'a mut Chain>) -> Result<(), Error> {
    for chain in chains {
        if let Some(top) = chain.layers.first_mut() {
            let path = home.absolute(&top.path);
            bitmaps::drop_ours(home, top)?;
            durable::sync_file(&path)?;
            Arc::make_mut(top).frozen = Some(Fingerprint::of(&path)?);
        }
    }
    Ok(())
}

/// Writes out what the host's page cache holds of the active layers, so that QEMU's own flush, which the guest
/// waits for, finds little to do.
pub fn flush_ahead(home: &Home, head: &Head) {
    for layer in head.chains().filter_map(|chain| chain.layers.first()) {
        // Only for speed: QEMU flushes again and reports what fails.
        let _ = std::fs::File::open(home.absolute(&layer.path)).and_then(|file| file.sync_data());
    }
}

/// What machines' presents and snapshots stand on.
#[derive(Debug, Default)]
struct Used {
    /// Files, absolute: layers, and memory images that machines run from.
    files: BTreeSet<PathBuf>,
    /// The same layers by their names.
    layers: BTreeSet<LayerRef>,
}

impl Used {
    fn add(&mut self, home: &Home, trees: &Trees<'_>, name: &VmName) -> Result<(), Error> {
        let dir = home.vm(name);
        let head = trees.head(&dir)?;
        let manifests = snapshots::read_all_with(trees, &dir)?;
        self.add_chains(home, head.iter().flat_map(Head::chains).chain(manifests.iter().flat_map(Manifest::chains)));
        let image = head.as_ref().and_then(|head| image_in_use(head.process.as_ref()?));
        self.files.extend(image.map(|path| home.absolute(path)));
        Ok(())
    }

    fn add_chains<'c>(&mut self, home: &Home, chains: impl Iterator<Item = &'c Chain>) {
        for layer in chains.flat_map(|chain| &chain.layers) {
            // Chains share what is below: nothing is looked at twice.
            if self.layers.insert(LayerRef::to(layer)) {
                self.files.insert(home.absolute(&layer.path));
            }
        }
    }
}

/// Every file, absolute, that one machine's present or snapshots stand on: layers, and the memory image that it
/// runs from.
///
/// # Errors
/// [`Error::Damaged`] when a document cannot be read: then nothing may be removed, for want of knowledge.
pub fn of_machine(home: &Home, name: &VmName) -> Result<BTreeSet<PathBuf>, Error> {
    let mut used = Used::default();
    used.add(home, &Trees::of(home), name)?;
    Ok(used.files)
}

/// The memory image, as it is on record, that a process needs: its RAM is a mapping of it, or is still being
/// served from it. One that is gone needs none.
fn image_in_use(process: &Process) -> Option<&Path> {
    let served = || process.served.as_deref().filter(|_| pages::needs_image(&process.instance));
    process.mapped.as_deref().filter(|_| process.instance.is_alive()).or_else(served)
}

/// Whether a machine runs from the memory image at `image`, or still has some of its memory to come from there.
///
/// # Errors
/// [`Error::Damaged`] when its head cannot be read.
pub fn runs_from(home: &Home, name: &VmName, image: &Path) -> Result<bool, Error> {
    let head: Option<Head<ActiveTop>> = sealed::read(&home.vm(name).head())?;
    let process = head.and_then(|head| head.process);
    Ok(process.as_ref().and_then(image_in_use).is_some_and(|used| home.absolute(used) == image))
}

/// Whether some of any process's memory is still to come from an image of the machine in `dir`.
///
/// # Errors
/// As [`referenced`].
pub fn serves_anyone(home: &Home, dir: &VmDir) -> Result<bool, Error> {
    for name in home.machine_names()? {
        let head: Option<Head<ActiveTop>> = sealed::read(&home.vm(&name).head())?;
        let process = head.and_then(|head| head.process);
        let needs = |process: &&Process| pages::needs_image(&process.instance);
        let served = process.as_ref().filter(needs).and_then(|process| process.served.as_deref());
        if served.is_some_and(|image| home.absolute(image).starts_with(dir.root())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// [`drop_unused`] at the end of an operation that has succeeded: a file that cannot be removed now is no reason to
/// call it a failure, and the next operation tries again.
pub fn drop_unused_if_possible(ctx: &Context<'_>, dir: &VmDir) {
    if let Err(error) = drop_unused(ctx.home, dir) {
        ctx.progress.note(&format!("layers that nothing needs any more stay for now: {error}"));
    }
}

/// Removes layers in a machine's directory that nothing stands on any more, and what is noted of them. While some
/// document cannot be read, nothing is removed: nobody knows what that document stands on.
///
/// # Errors
/// [`Error::Io`].
pub fn drop_unused(home: &Home, dir: &VmDir) -> Result<(), Error> {
    let trees = Trees::of(home);
    let mut used = Used::default();
    for name in home.machine_names()? {
        match used.add(home, &trees, &name) {
            Err(Error::Damaged { .. } | Error::Schema { .. }) => return Ok(()),
            other => other?,
        }
        // Another machine's revert may still need the present that it leaves; this machine's own is what ends here.
        if name != *dir.name() {
            match Journal::present_left(&home.vm(&name)) {
                Err(Error::Damaged { .. } | Error::Schema { .. }) => return Ok(()),
                present => used.add_chains(home, present?.iter().flat_map(Head::chains)),
            }
        }
    }
    // What nothing stands on is forgotten first: a file that is gone is then never one that a document names.
    tree::prune(dir, &used.layers, &trees.parents_met())?;
    let mut touched: BTreeSet<PathBuf> = BTreeSet::new();
    for file in files_below(dir)? {
        if !used.files.contains(&file) {
            release::remove_file_unsynced(&file)?;
            touched.extend(file.parent().map(Path::to_owned));
        }
    }
    touched.iter().try_for_each(|dir| durable::sync_dir(dir))
}

/// The layers' files in a machine's directory, by their names. What else somebody put there is not ours.
///
/// # Errors
/// [`Error::Io`].
pub fn files_below(dir: &VmDir) -> Result<Vec<PathBuf>, Error> {
    let root = dir.root().join("layers");
    let mut files = Vec::new();
    let Ok(disks) = std::fs::read_dir(&root) else { return Ok(files) };
    for disk in disks {
        let disk = disk.or_io("list", &root)?.path();
        for file in std::fs::read_dir(&disk).or_io("list", &disk)? {
            let file = file.or_io("list", &disk)?.path();
            let named_so = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<LayerId>().is_ok());
            files.extend(file.file_stem().is_some_and(named_so).then_some(file));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use keyframe_hypervisor::process::ProcessId;
    use keyframe_hypervisor::{Accelerator, InstanceRecord, QemuVersion};
    use keyframe_types::{InstanceId, Timestamp};

    use super::*;

    #[test]
    fn ways_are_relative() {
        let way = |from: &str, to: &str| relative_to(Path::new(from), Path::new(to));
        assert_eq!(way("/h/vms/a/layers/d", "/h/vms/a/layers/d/x.qcow2"), Path::new("x.qcow2"));
        assert_eq!(way("/h/vms/b/layers/d", "/h/vms/a/layers/d/x"), Path::new("../../../a/layers/d/x"));
    }

    #[test]
    fn an_image_that_memory_is_still_served_from_is_in_use() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let name = VmName::new("twin").unwrap();
        let dir = home.vm(&name);
        let instance_dir = dir.run().join("i");
        std::fs::create_dir_all(&instance_dir).unwrap();
        let us = ProcessId::of(std::process::id()).unwrap();
        let instance = InstanceRecord {
            id: InstanceId::random(),
            process: us.clone(),
            dir: instance_dir.clone(),
            version: QemuVersion { major: 10, minor: 0, micro: 0 },
            started: Timestamp::now(),
        };
        let image = PathBuf::from("vms/db/snapshots/s/memory.mapped");
        let served = Some(image.clone());
        let process = Process { instance, accelerator: Accelerator::Tcg, definition: None, mapped: None, served };
        let head = Head {
            parent: None,
            disks: vec![],
            nvram: None,
            process: Some(process),
            clean_shutdown: false,
            origin: None,
        };
        tree::write_head(&dir, &head).unwrap();
        std::fs::write(instance_dir.join("pages.json"), "{}").unwrap();
        let says = |state: &str| {
            let text = format!(
                r#"{{"supervisor": {}, "state": {{"state": "{state}"}}, "pages_sent": 1, "pages_held": 2, "restarts": 0}}"#,
                serde_json::to_string(&us).unwrap()
            );
            std::fs::write(instance_dir.join("hydration.json"), text).unwrap();
            runs_from(&home, &name, &home.absolute(&image)).unwrap()
        };
        assert!(says("serving") && !says("done"));
        let serves = |vm: &str| serves_anyone(&home, &home.vm(&VmName::new(vm).unwrap())).unwrap();
        std::fs::write(dir.definition(), "").unwrap();
        assert!(says("serving") && serves("db") && !serves("twin"), "pages of an image of db are on their way");
        assert!(!says("done") && !serves("db"));
        std::fs::remove_file(instance_dir.join("hydration.json")).unwrap();
        assert!(runs_from(&home, &name, &home.absolute(&image)).unwrap(), "nobody knows: it is kept");
    }

    #[test]
    fn what_another_machines_revert_still_needs_stays() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let dir = |name: &str| home.vm(&VmName::new(name).unwrap());
        let disk = keyframe_types::DiskId::new("disk0").unwrap();
        let id = LayerId::random();
        let path = dir("db").layer(&disk, &id);
        let layer = Layer {
            vm: dir("db").name().clone(),
            file: id.clone(),
            id,
            path: home.relative(&path),
            format: LayerFormat::Qcow2,
            origin: FileOrigin::Made,
            virtual_bytes: keyframe_types::ByteLen::from_mib(1),
            frozen: None,
        };
        let nothing =
            Head { parent: None, disks: vec![], nvram: None, process: None, clean_shutdown: false, origin: None };
        let left = Head { disks: vec![Chain { disk, layers: vec![Arc::new(layer)] }], ..nothing.clone() };
        for name in ["db", "twin"] {
            durable::create_private_dir(dir(name).root()).unwrap();
            std::fs::write(dir(name).definition(), "").unwrap();
            tree::write_head(&dir(name), &nothing).unwrap();
        }
        durable::create_private_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        let journal = crate::state::journal::RevertJournal {
            target: keyframe_types::SnapshotId::random(),
            before: left,
            after: nothing,
            keep: None,
            keep_note: None,
            kept_memory: None,
            had_process: true,
            was_running: true,
            runs: true,
        };
        sealed::write(&dir("twin").journal(), &Journal::Revert(Box::new(journal))).unwrap();
        drop_unused(&home, &dir("db")).unwrap();
        assert!(path.exists(), "twin may go back to it");
        durable::remove_file(&dir("twin").journal()).unwrap();
        drop_unused(&home, &dir("db")).unwrap();
        assert!(!path.exists());
    }
}
