//! Deleting snapshots that nothing hangs on.
//!
//! The manifest goes first: from then on there is no snapshot, and the rest is tidying up, which anyone may
//! finish. Layers go when no head and no snapshot of any machine stands on them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use keyframe_types::{ByteLen, SnapshotId, SnapshotSelector, VmName};
use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::Machine;
use crate::sharing;
use crate::snapshots;
use crate::space;
use crate::state::journal::Journal;
use crate::state::manifest::Manifest;
use crate::state::{durable, sealed};

/// What deleting a snapshot does, decided before anything happens.
#[derive(Debug, Clone, Serialize)]
pub struct DeletePlan {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its name.
    pub name: String,
    /// Space that its memory image gives back, and layers that nothing else stands on.
    pub bytes_freed: ByteLen,
}

/// What a deletion came to.
#[derive(Debug)]
pub struct Deletion {
    /// Snapshots that are gone, or would be.
    pub gone: Vec<DeletePlan>,
    /// What kept the others from going.
    pub failure: Option<Error>,
}

/// Deletes snapshots of one machine, all or none of them planned before the first goes. With `dry_run` nothing goes.
///
/// # Errors
/// [`Error::Held`] when one is pinned or has children, [`Error::NoSnapshot`]; whatever fails before the first is gone.
pub fn delete(
    ctx: &Context<'_>,
    vm: &VmName,
    selectors: &[SnapshotSelector],
    dry_run: bool,
) -> Result<Deletion, Error> {
    let (_lock, mut machine) = Machine::lock(ctx, vm, &format!("delete {vm}@…"))?;
    let mut chosen: Vec<Manifest> = Vec::new();
    for selector in selectors {
        let manifest = snapshots::find(&machine.dir, vm, selector)?;
        if !chosen.iter().any(|other| other.id == manifest.id) {
            chosen.push(manifest);
        }
    }
    // Children go before their parents, so that a whole branch can be named in any order.
    chosen.sort_by_key(|manifest| std::cmp::Reverse(manifest.created));
    let mut layers = layers::needed_only_by(ctx.home, &machine, &chosen)?;
    let mut plans = Vec::new();
    for manifest in &chosen {
        plans.push(plan(ctx, &machine, manifest, &chosen, &mut layers)?);
    }
    let mut deletion = Deletion { gone: Vec::new(), failure: None };
    for (manifest, plan) in chosen.iter().zip(plans) {
        if !dry_run && let Err(error) = ctx.check().and_then(|()| carry_out(ctx, &mut machine, manifest)) {
            // The manifest goes first: without it there is no snapshot, whatever is left of it.
            if !machine.dir.snapshot(&manifest.id).manifest().exists() {
                deletion.gone.push(plan);
            }
            deletion.failure = Some(error);
            break;
        }
        deletion.gone.push(plan);
    }
    match deletion.failure.take() {
        Some(error) if deletion.gone.is_empty() => Err(error),
        failure => Ok(Deletion { failure, ..deletion }),
    }
}

fn plan(
    ctx: &Context<'_>,
    machine: &Machine,
    manifest: &Manifest,
    also: &[Manifest],
    layers: &mut BTreeSet<PathBuf>,
) -> Result<DeletePlan, Error> {
    let held = |reason: String| Error::Held { name: manifest.name.to_string(), reason };
    if manifest.pinned {
        return Err(held("it is pinned".to_owned()));
    }
    let others = snapshots::read_all(&machine.dir)?;
    let child = others
        .iter()
        .find(|other| other.parent.as_ref() == Some(&manifest.id) && !also.iter().any(|gone| gone.id == other.id));
    if let Some(child) = child {
        return Err(held(format!("snapshot {} descends from it", child.name)));
    }
    let image = machine.dir.snapshot(&manifest.id).memory();
    for name in ctx.home.machine_names()? {
        if layers::runs_from(ctx.home, &name, &image)? {
            return Err(held(format!(
                "machine {name} runs from its memory image; stop that machine first, or wait \
                 until all of its memory is there where it is on its way (`keyframe vm show`)"
            )));
        }
    }
    let memory = memory_freed(machine, manifest, also);
    let own = manifest.chains().flat_map(|chain| &chain.layers).map(|layer| ctx.home.absolute(&layer.path));
    // A layer that several of them need goes once.
    let own: ByteLen = own.filter(|path| layers.remove(path)).map(|path| space::used(&path)).sum();
    let bytes_freed = memory + own;
    Ok(DeletePlan { id: manifest.id.clone(), name: manifest.name.to_string(), bytes_freed })
}

/// Space that a snapshot's memory gives back when those before it in the list are gone; none as far as nobody knows.
fn memory_freed(machine: &Machine, manifest: &Manifest, all: &[Manifest]) -> ByteLen {
    let before = all.iter().take_while(|other| other.id != manifest.id).map(|other| &other.id);
    let freed = |gone: &mut dyn Iterator<Item = &SnapshotId>| sharing::memory_freed(&machine.dir, gone);
    let with_it = freed(&mut before.clone().chain([&manifest.id]));
    let without = freed(&mut before.clone());
    match (with_it, without) {
        (Ok(with_it), Ok(without)) => with_it.saturating_sub(without),
        _ => ByteLen::ZERO,
    }
}

fn carry_out(ctx: &Context<'_>, machine: &mut Machine, manifest: &Manifest) -> Result<(), Error> {
    let journal = Journal::Delete { id: manifest.id.clone(), parent: manifest.parent.clone() };
    sealed::write(&machine.dir.journal(), &journal)?;
    pass(Failpoint::DeleteJournaled)?;
    finish(ctx, machine, &manifest.id, manifest.parent.clone())
}

/// Carries a deletion through to its end, from wherever it stands.
///
/// # Errors
/// When a file cannot be removed; the next command tries again.
pub(crate) fn finish(
    ctx: &Context<'_>,
    machine: &mut Machine,
    id: &SnapshotId,
    parent: Option<SnapshotId>,
) -> Result<(), Error> {
    let dir = machine.dir.snapshot(id);
    sharing::keep_for_others(&machine.dir, id)?;
    durable::remove_file(&dir.manifest())?;
    pass(Failpoint::DeleteManifestGone)?;
    if machine.head.parent.as_ref() == Some(id) {
        machine.head.parent = parent;
        machine.write_head()?;
    }
    pass(Failpoint::DeleteReparented)?;
    durable::remove_dir(dir.root())?;
    sharing::reclaim_if_possible(ctx, &machine.dir);
    layers::drop_unused(ctx.home, &machine.dir)?;
    pass(Failpoint::DeleteFilesGone)?;
    durable::remove_file(&machine.dir.journal())
}
