//! Deleting snapshots, whatever hangs on them.
//!
//! The manifest goes first: from then on there is no snapshot, and what followed it follows what it followed. Its memory
//! goes; layers that nothing stands on any more go; and layers that are left without a reason to be their own become one
//! with their neighbours ([`crate::merge`]). Should merging be interrupted, the snapshots are deleted nonetheless, every
//! chain reads as before, and `consolidate` goes on.

use std::collections::BTreeSet;
use std::path::PathBuf;

use keyframe_types::{ByteLen, SnapshotId, SnapshotSelector, VmName};
use serde::Serialize;

use crate::context::Context;
use crate::drill;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::guard::Guard;
use crate::layers;
use crate::machine::Machine;
use crate::merge;
use crate::merge::forecast::{Forecast, forecast};
use crate::merge::graph::Graph;
use crate::merge::plan::{self, Run, RunSummary};
use crate::sharing;
use crate::snapshots;
use crate::space;
use crate::state::head::{FileOrigin, Head};
use crate::state::home::Home;
use crate::state::journal::Journal;
use crate::state::manifest::Manifest;
use crate::state::tree::{ActiveTop, LayerRef, TreeDocument};
use crate::state::{durable, sealed};

/// How to delete.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeleteOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Machines that stand on a snapshot's layers get a copy of their own first.
    pub detach: bool,
    /// Bytes per second that merges move at most.
    pub speed: Option<u64>,
}

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

/// What a deletion came to, or would come to.
#[derive(Debug)]
pub struct Deletion {
    /// Snapshots that are gone, or would be.
    pub gone: Vec<DeletePlan>,
    /// Layers that became one, or would.
    pub merged: Vec<RunSummary>,
    /// What merging is going to be like; only of a plan.
    pub forecast: Option<Forecast>,
    /// Machines that were given layers of their own, or would be.
    pub detached: Vec<VmName>,
    /// What kept the rest from being done.
    pub failure: Option<Error>,
}

/// Deletes snapshots of one machine, all of them planned before the first goes. With `dry_run` nothing goes.
///
/// # Errors
/// [`Error::Held`] when one is pinned, or another machine stands on it; [`Error::NoSnapshot`]; whatever fails before the
/// first is gone.
pub fn delete(
    ctx: &Context<'_>,
    vm: &VmName,
    selectors: &[SnapshotSelector],
    options: DeleteOptions,
) -> Result<Deletion, Error> {
    let (_lock, mut machine) = Machine::lock(ctx, vm, &format!("delete {vm}@…"))?;
    let mut chosen: Vec<Manifest> = Vec::new();
    for selector in selectors {
        let manifest = snapshots::find(&machine.dir, vm, selector)?;
        if !chosen.iter().any(|other| other.id == manifest.id) {
            chosen.push(manifest);
        }
    }
    delete_locked(ctx, &mut machine, &chosen, options)
}

/// [`delete`] for who has the machine's lock.
pub(crate) fn delete_locked(
    ctx: &Context<'_>,
    machine: &mut Machine,
    chosen: &[Manifest],
    options: DeleteOptions,
) -> Result<Deletion, Error> {
    let vm = machine.name().clone();
    let gone: BTreeSet<SnapshotId> = chosen.iter().map(|manifest| manifest.id.clone()).collect();
    let before = Graph::without(ctx.home, &vm, &BTreeSet::new())?;
    let mut standing = BTreeSet::new();
    for manifest in chosen {
        refuse_held(ctx, manifest, &before, options.detach)?;
        standing.extend(standing_on(ctx.home, manifest, &before)?);
    }
    let after = Graph::without(ctx.home, &vm, &gone)?;
    let plans = plans(ctx, chosen, &before, &after);
    let runs = plan::runs(ctx.home, &after, &vm);
    let detached: Vec<VmName> = standing.into_iter().collect();
    let mut deletion = Deletion { gone: Vec::new(), merged: Vec::new(), forecast: None, detached, failure: None };
    if options.dry_run {
        deletion.forecast = (!runs.is_empty()).then(|| forecast(ctx, machine, &runs, options.speed));
        return Ok(Deletion { gone: plans, merged: runs.iter().map(Run::summary).collect(), ..deletion });
    }
    let guard = Guard::post_if_running(machine)?;
    for name in &deletion.detached {
        detach(ctx, name, options.speed)?;
    }
    if !deletion.detached.is_empty() {
        // Whoever stands on them still keeps them.
        let now = Graph::without(ctx.home, &vm, &BTreeSet::new())?;
        chosen.iter().try_for_each(|manifest| refuse_held(ctx, manifest, &now, false))?;
    }
    for (manifest, plan) in chosen.iter().zip(plans) {
        if let Err(error) = ctx.check().and_then(|()| carry_out(ctx, machine, manifest)) {
            // The manifest goes first: without it there is no snapshot, whatever is left of it.
            if !machine.dir.snapshot(&manifest.id).manifest().exists() {
                deletion.gone.push(plan);
            }
            if deletion.gone.is_empty() {
                return Err(error);
            }
            deletion.failure = Some(error);
            return Ok(deletion);
        }
        deletion.gone.push(plan);
    }
    (deletion.merged, deletion.failure) = merge_all(ctx, machine, options.speed);
    Guard::dismiss_if_tidy(guard, &machine.dir);
    Ok(deletion)
}

/// Merges whatever can be merged, and says how far that came.
pub(crate) fn merge_all(
    ctx: &Context<'_>,
    machine: &mut Machine,
    speed: Option<u64>,
) -> (Vec<RunSummary>, Option<Error>) {
    let mut merged = Vec::new();
    let runs = match merge::runs(ctx, machine.name()) {
        Ok(runs) => runs,
        Err(error) => return (merged, Some(error)),
    };
    for run in runs {
        ctx.progress.step(&format!("merging layers of {}", run.disk));
        match merge::carry_out(ctx, machine, &run, speed) {
            Ok(()) => merged.push(run.summary()),
            Err(error) => return (merged, Some(error)),
        }
    }
    (merged, None)
}

/// Forks of a snapshot that still stand on what it froze. What lies below that they need as well, and it stays when its own
/// snapshots go: only the snapshot that they were made from is held by them.
fn standing_on(home: &Home, manifest: &Manifest, graph: &Graph) -> Result<BTreeSet<VmName>, Error> {
    let tops = manifest.chains().filter_map(|chain| chain.layers.first());
    let nodes = tops.filter_map(|top| graph.get(&LayerRef::to(top)));
    let others = nodes.flat_map(|node| &node.machines).filter(|name| **name != manifest.definition.name);
    let mut forks = BTreeSet::new();
    for name in others {
        let head: Option<Head<ActiveTop>> = sealed::read(&home.vm(name).head())?;
        let origin = head.and_then(|head| head.origin);
        if origin.is_some_and(|from| from.vm == manifest.definition.name && from.snapshot == manifest.id) {
            forks.insert(name.clone());
        }
    }
    Ok(forks)
}

pub(crate) fn refuse_held(ctx: &Context<'_>, manifest: &Manifest, graph: &Graph, detach: bool) -> Result<(), Error> {
    let held = |reason: String| Err(Error::Held { name: manifest.name.to_string(), reason });
    if manifest.pinned {
        return held("it is pinned".to_owned());
    }
    let dir = ctx.home.vm(&manifest.definition.name);
    if drill::being_tested(&dir)?.contains(&manifest.id) {
        return held("it is being tested or backed up; try again when that has ended".to_owned());
    }
    let image = dir.snapshot(&manifest.id).memory();
    for name in ctx.home.machine_names()? {
        if layers::runs_from(ctx.home, &name, &image)? {
            return held(format!(
                "machine {name} runs from its memory image; stop that machine first, or wait \
                 until all of its memory is there where it is on its way (`keyframe vm show`)"
            ));
        }
    }
    match standing_on(ctx.home, manifest, graph)?.into_iter().next() {
        Some(name) if !detach => held(format!(
            "machine {name}, a fork of it, stands on its disks; remove that machine, or say --detach to give it a copy of its own \
             first"
        )),
        _ => Ok(()),
    }
}

/// Gives a machine layers of its own instead of those of the machine it was forked from.
fn detach(ctx: &Context<'_>, name: &VmName, speed: Option<u64>) -> Result<(), Error> {
    ctx.progress.step(&format!("copying disks of {name}"));
    let (_lock, mut machine) = Machine::lock(ctx, name, "detach")?;
    if let Some(tested) = drill::being_tested(&machine.dir)?.first() {
        let reason = format!("machine {name} stands on it, and its snapshot {tested} is being tested or backed up");
        return Err(Error::Held { name: "that a fork stands on".to_owned(), reason });
    }
    let guard = Guard::post_if_running(&machine)?;
    for copy in merge::own_copies(&machine, false)? {
        ctx.check()?;
        merge::copy(ctx, &mut machine, copy, speed)?;
    }
    Guard::dismiss_if_tidy(guard, &machine.dir);
    Ok(())
}

/// What each of them frees by itself: its memory, and layers that nothing needs any more.
fn plans(ctx: &Context<'_>, chosen: &[Manifest], before: &Graph, after: &Graph) -> Vec<DeletePlan> {
    let mut told: BTreeSet<PathBuf> = BTreeSet::new();
    let mut plan = |manifest: &Manifest| {
        let memory = memory_freed(ctx, manifest, chosen);
        let layers = manifest.chains().flat_map(|chain| &chain.layers).filter_map(|layer| {
            let name = LayerRef::to(layer);
            let goes = before.get(&name).is_some() && after.get(&name).is_none();
            let path = ctx.home.absolute(&layer.path);
            // A layer that several of them need goes once.
            (goes && layer.origin == FileOrigin::Made && told.insert(path.clone())).then(|| space::used(&path))
        });
        let layers: ByteLen = layers.sum();
        DeletePlan { id: manifest.id.clone(), name: manifest.name.to_string(), bytes_freed: memory + layers }
    };
    chosen.iter().map(&mut plan).collect()
}

/// Space that a snapshot's memory gives back when those before it in the list are gone; none as far as nobody knows.
fn memory_freed(ctx: &Context<'_>, manifest: &Manifest, all: &[Manifest]) -> ByteLen {
    let dir = ctx.home.vm(&manifest.definition.name);
    let before = all.iter().take_while(|other| other.id != manifest.id).map(|other| &other.id);
    let freed = |gone: &mut dyn Iterator<Item = &SnapshotId>| sharing::memory_freed(&dir, gone);
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
    let mut tree = TreeDocument::read(&machine.dir)?;
    if tree.gone.insert(id.clone(), parent.clone()) != Some(parent.clone()) {
        tree.write(&machine.dir)?;
    }
    durable::remove_file(&dir.manifest())?;
    pass(Failpoint::DeleteManifestGone)?;
    if machine.head.parent.as_ref() == Some(id) {
        machine.head.parent = parent;
    }
    durable::remove_dir(dir.root())?;
    sharing::reclaim_if_possible(ctx, &machine.dir);
    layers::drop_unused(ctx.home, &machine.dir)?;
    pass(Failpoint::DeleteFilesGone)?;
    durable::remove_file(&machine.dir.journal())
}
