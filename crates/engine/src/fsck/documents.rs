//! Documents: readable, and of things that are there.

use keyframe_types::VmName;

use crate::boot::Standing;
use crate::drill::record;
use crate::error::Error;
use crate::fsck::finding::{Finding, Repair, What};
use crate::fsck::mending::Mending;
use crate::fsck::survey::{Survey, Surveyed};
use crate::memory;
use crate::state::head::Chain;
use crate::state::label::Label;
use crate::state::manifest::Manifest;
use crate::state::sealed;
use crate::state::tree::FrozenTop;

/// Looks at the documents of one machine.
pub(super) fn look(survey: &Survey, machine: &Surveyed) -> Vec<Finding> {
    let vm = machine.dir.name();
    let mut found: Vec<Finding> = machine.unreadable.iter().map(|one| unreadable(vm, machine, one)).collect();
    found.extend(journal(machine));
    found.extend(mending(machine));
    found.extend(standing(machine));
    let manifests = machine.manifests.iter();
    found.extend(manifests.flat_map(|manifest| beside(machine, manifest)));
    found.extend(origin(survey, machine));
    found
}

fn unreadable(vm: &VmName, machine: &Surveyed, one: &super::survey::Unreadable) -> Finding {
    let advice = if one.path == machine.dir.definition() {
        "write it right again; every snapshot's manifest holds the definition of its time".to_owned()
    } else if one.snapshot.is_some() {
        "restore it from a backup, or remove its directory if the snapshot is not wanted; until then no layer of any \
         machine is removed or merged"
            .to_owned()
    } else {
        "restore it from a backup of the home; nothing of this machine is removed or merged until then".to_owned()
    };
    let text = format!("it cannot be used: {}", one.reason);
    let finding = Finding::serious(vm, What::DamagedDocument, &one.path, text, advice);
    match &one.snapshot {
        Some(snapshot) => finding.of(snapshot),
        None => finding,
    }
}

fn journal(machine: &Surveyed) -> Option<Finding> {
    let path = machine.dir.journal();
    let readable = !machine.unreadable.iter().any(|one| one.path == path);
    let text = || "an operation was interrupted, and nobody is at work on it".to_owned();
    (machine.has_journal && readable)
        .then(|| Finding::repairable(machine.dir.name(), What::UnfinishedOperation, &path, text(), Repair::Recover))
}

/// What tells of the repository that a machine stands on.
fn standing(machine: &Surveyed) -> Option<Finding> {
    let error = Standing::read(&machine.dir).err()?;
    let text = format!("it cannot be used: {}", error.told());
    let advice = "restore it from a backup of the home; without it no layer is opened that stands on a repository, and nothing reads \
                  wrong. What the guest wrote is in its layers";
    Some(Finding::serious(machine.dir.name(), What::DamagedDocument, &machine.dir.boot(), text, advice))
}

fn mending(machine: &Surveyed) -> Option<Finding> {
    let (vm, path) = (machine.dir.name(), Mending::path(&machine.dir));
    match Mending::read(&machine.dir) {
        Ok(None) => None,
        Ok(Some(mending)) => {
            let text =
                format!("the header of layer {} was being put right when that was interrupted", mending.layer.layer);
            let repair = Repair::SetBacking(mending.layer);
            Some(Finding::repairable(vm, What::UnfinishedMending, &path, text, repair))
        }
        Err(error) => {
            let advice = "remove it; a layer that it was about is then told as touched";
            Some(Finding::serious(vm, What::DamagedDocument, &path, error.told(), advice))
        }
    }
}

/// What lies beside a manifest.
fn beside(machine: &Surveyed, manifest: &Manifest<FrozenTop>) -> Vec<Finding> {
    let (vm, dir) = (machine.dir.name(), machine.dir.snapshot(&manifest.id));
    let mut found = Vec::new();
    if let Err(error) = sealed::read::<Label>(&dir.label()) {
        let text = format!("what was said about the snapshot cannot be read: {}", error.told());
        let advice = format!("it counts as pinned until `keyframe snapshot-set {vm}@{} …` says it anew", manifest.id);
        found.push(Finding::serious(vm, What::DamagedDocument, &dir.label(), text, advice));
    }
    if let Err(error) = record::read(&dir) {
        let text = format!("how the snapshot's tests ended cannot be read: {}", error.told());
        let advice = format!("`keyframe test {vm}@{}` writes it anew", manifest.id);
        found.push(Finding::harmless(vm, What::DamagedDocument, &dir.tests(), text, advice));
    }
    if let (true, Err(error)) = (manifest.memory.is_some(), open_memory(machine, manifest)) {
        let text = format!("the memory image cannot be used: {}", error.told());
        let advice = format!(
            "`keyframe revert {vm}@{} --disk-only` boots from its disks, which do not depend on it",
            manifest.id
        );
        found.push(Finding::serious(vm, What::MemoryImage, &dir.memory(), text, advice));
    }
    found.into_iter().map(|finding| finding.of(&manifest.id)).collect()
}

fn open_memory(machine: &Surveyed, manifest: &Manifest<FrozenTop>) -> Result<(), Error> {
    // The image depends on no layer.
    let bare = |top: &FrozenTop| Ok::<_, Error>(Chain { disk: top.disk.clone(), layers: Vec::new() });
    let manifest: Manifest = manifest.clone().with_chains(bare)?;
    memory::open(&machine.dir, &manifest).map(drop)
}

/// A fork's original may be gone: that is no fault, as long as its layers are there.
fn origin(survey: &Survey, machine: &Surveyed) -> Option<Finding> {
    let origin = machine.head.as_ref()?.origin.as_ref()?;
    if survey.machines.contains_key(&origin.vm) {
        return None;
    }
    let text = format!("it was forked from {}, which is no machine any more", origin.vm);
    let advice = "nothing has to be done; layers that it needs are looked at on their own";
    Some(Finding::harmless(machine.dir.name(), What::NoMachine, &machine.dir.head(), text, advice))
}
