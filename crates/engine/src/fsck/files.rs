//! Files and directories that no document knows: temporary ones, orphans, snapshots that were never committed, processes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use keyframe_hypervisor::instance;
use keyframe_types::{SnapshotName, VmName};

use crate::drill;
use crate::error::Error;
use crate::fsck::finding::{Finding, Repair, What};
use crate::fsck::memory;
use crate::fsck::survey::{Needed, Survey, Surveyed, entries, snapshot_ids};
use crate::layers;
use crate::space;
use crate::state::home::{Home, SnapshotDir};
use crate::state::label::Label;
use crate::state::sealed;
use crate::state::tree::LayerRef;

/// Temporary files of a machine's directory and its snapshots' that Keyframe writes, by their names.
const TEMPORARY: [&str; 9] = [
    "machine.tmp",
    "head.tmp",
    "tree.tmp",
    "journal.tmp",
    "manifest.tmp",
    "label.tmp",
    "tests.tmp",
    "sums.tmp",
    "mending.tmp",
];

/// Looks at the files of one machine. While an operation is unfinished, what it made is not judged.
///
/// # Errors
/// [`Error::Io`] when a directory cannot be listed.
pub(super) fn look(home: &Home, survey: &Survey, needed: &Needed, machine: &Surveyed) -> Result<Vec<Finding>, Error> {
    let vm = machine.dir.name();
    let mut found = temporary(machine)?;
    found.extend(names(machine));
    found.extend(processes(machine));
    if machine.has_journal {
        return Ok(found);
    }
    found.extend(uncommitted(machine)?);
    found.extend(memory::look(&machine.dir));
    if survey.is_whole() && needed.dangling.is_empty() && needed.circles.is_empty() {
        found.extend(orphans(home, survey, needed, machine)?);
        found.extend(unneeded(home, needed, machine));
    } else if survey.machines.len() > 1 && machine.unreadable.is_empty() {
        let text = "unneeded files were not looked for: a document of some machine cannot be read".to_owned();
        let advice = "see to that document first";
        found.push(Finding::harmless(vm, What::NotChecked, &machine.dir.root().join("layers"), text, advice));
    }
    Ok(found)
}

fn temporary(machine: &Surveyed) -> Result<Vec<Finding>, Error> {
    let dir = &machine.dir;
    let is_ours =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| TEMPORARY.contains(&name));
    let mut files: Vec<PathBuf> = entries(dir.root())?.into_iter().filter(is_ours).collect();
    let tested = drill::being_tested(dir)?;
    for id in snapshot_ids(dir)?.iter().filter(|id| !tested.contains(id)) {
        files.extend(entries(dir.snapshot(id).root())?.into_iter().filter(is_ours));
    }
    let in_layers = layers::files_below(dir)?.into_iter();
    files.extend(in_layers.filter(|path| path.extension().is_some_and(|extension| extension == "tmp")));
    Ok(files
        .into_iter()
        .filter(|path| path.is_file())
        .map(|path| {
            let text = "a write that did not end left it; the file that it was to become is whole".to_owned();
            Finding::repairable(dir.name(), What::TemporaryFile, &path, text, Repair::RemoveFile(path.clone()))
        })
        .collect())
}

fn uncommitted(machine: &Surveyed) -> Result<Vec<Finding>, Error> {
    let dir = &machine.dir;
    let mut found = Vec::new();
    for id in snapshot_ids(dir)? {
        let snapshot = dir.snapshot(&id);
        if !snapshot.manifest().exists() {
            let text = format!("it has no manifest, so it is no snapshot ({})", space::used_below(snapshot.root()));
            let what = What::UncommittedSnapshot;
            found.push(Finding::repairable(dir.name(), what, snapshot.root(), text, Repair::DropUncommitted).of(&id));
        } else {
            found.extend(unknown_in(machine, &snapshot)?.into_iter().map(|finding| finding.of(&id)));
        }
    }
    Ok(found)
}

/// Files beside a manifest that Keyframe does not know.
fn unknown_in(machine: &Surveyed, snapshot: &SnapshotDir) -> Result<Vec<Finding>, Error> {
    let strange = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let known = ["manifest.json", "label.json", "tests.json", "tests"].contains(&name);
        !known && !name.starts_with("memory.") && !TEMPORARY.contains(&name)
    };
    let files = entries(snapshot.root())?.into_iter().filter(strange);
    Ok(files.map(|path| unknown(machine.dir.name(), &path)).collect())
}

pub(super) fn unknown(vm: &VmName, path: &Path) -> Finding {
    let text = format!("Keyframe did not make it and does not need it ({})", space::used(path));
    Finding::harmless(vm, What::OrphanFile, path, text, "remove it if you do not need it")
}

fn orphans(home: &Home, survey: &Survey, needed: &Needed, machine: &Surveyed) -> Result<Vec<Finding>, Error> {
    let mut used: BTreeSet<PathBuf> = needed.layers.values().map(|entry| home.absolute(&entry.layer.path)).collect();
    used.extend(survey.active().map(|(_, layer, _)| home.absolute(&layer.path)));
    let files = layers::files_below(&machine.dir)?.into_iter();
    let orphan = |path: &PathBuf| !used.contains(path) && path.extension().is_none_or(|extension| extension != "tmp");
    Ok(files
        .filter(orphan)
        .map(|path| {
            let text = format!("no present and no snapshot of any machine stands on it ({})", space::used(&path));
            if path.is_file() {
                Finding::repairable(machine.dir.name(), What::OrphanFile, &path, text, Repair::DropUnused)
            } else {
                unknown(machine.dir.name(), &path)
            }
        })
        .collect())
}

fn unneeded(home: &Home, needed: &Needed, machine: &Surveyed) -> Vec<Finding> {
    let entries = machine.tree.iter().flat_map(|tree| &tree.layers);
    let needless = entries.filter(|entry| !needed.layers.contains_key(&LayerRef::to(&entry.layer)));
    needless
        .map(|entry| {
            let text = format!("it tells of layer {}, which nobody needs", entry.layer.id);
            let path = home.vm(machine.dir.name()).tree();
            Finding::repairable(machine.dir.name(), What::UnneededEntry, &path, text, Repair::DropUnused)
        })
        .collect()
}

/// Snapshots that have one name, as it is told now.
fn names(machine: &Surveyed) -> Vec<Finding> {
    let vm = machine.dir.name();
    let mut by_name: BTreeMap<String, Vec<&keyframe_types::SnapshotId>> = BTreeMap::new();
    for manifest in &machine.manifests {
        // A label that cannot be read is found on its own account.
        let label: Option<Label> = sealed::read(&machine.dir.snapshot(&manifest.id).label()).ok().flatten();
        let name: SnapshotName = label.and_then(|label| label.name).unwrap_or_else(|| manifest.name.clone());
        by_name.entry(name.to_string()).or_default().push(&manifest.id);
    }
    let twice = by_name.into_iter().flat_map(|(name, ids)| ids.into_iter().skip(1).map(move |id| (name.clone(), id)));
    twice
        .map(|(name, id)| {
            let text = format!("{name} is the name of an older snapshot, too: only the id tells them apart");
            let advice = format!("`keyframe snapshot-set {vm}@{id} --name NEW`");
            Finding::serious(vm, What::SameName, machine.dir.snapshot(id).root(), text, advice).of(id)
        })
        .collect()
}

/// The process on record, and those that are on none.
fn processes(machine: &Surveyed) -> Vec<Finding> {
    let vm = machine.dir.name();
    let process = machine.head.as_ref().and_then(|head| head.process.as_ref());
    let gone = process.filter(|process| !process.instance.is_alive()).map(|process| {
        let text = "the QEMU that is on record is gone: the machine is stopped, whatever ended it".to_owned();
        let advice = format!("`keyframe vm start {vm}` starts it again; its log lies here");
        Finding::harmless(vm, What::ProcessGone, &process.instance.dir, text, advice)
    });
    let strays = instance::processes_below(&machine.dir.run())
        .into_iter()
        .filter(|(id, _)| !machine.has_journal && process.is_none_or(|process| process.instance.process != *id));
    let strays = strays.map(|(_, dir)| {
        let text = "a QEMU runs from here that no document knows; it may write to the machine's disks".to_owned();
        Finding::serious(vm, What::StrayProcess, &dir, text, "look at its log here; end it if it is not yours")
    });
    gone.into_iter().chain(strays).collect()
}
