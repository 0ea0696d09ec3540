//! Deleting snapshots that nothing hangs on.
//!
//! The manifest goes first: from then on there is no snapshot, and the rest is tidying up, which anyone may
//! finish. Layers go when no head and no snapshot of any machine stands on them.

use keyframe_types::{ByteLen, SnapshotId, SnapshotSelector, VmName};
use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::Machine;
use crate::snapshots;
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
    /// Space that its memory image gives back.
    pub bytes_freed: ByteLen,
}

/// Deletes snapshots of one machine, all or none of them planned before the first goes. With `dry_run` nothing goes.
///
/// # Errors
/// [`Error::Held`] when one is pinned or has children, [`Error::NoSnapshot`].
pub fn delete(
    ctx: &Context<'_>,
    vm: &VmName,
    selectors: &[SnapshotSelector],
    dry_run: bool,
) -> Result<Vec<DeletePlan>, Error> {
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
    let plans = chosen.iter().map(|manifest| plan(ctx, &machine, manifest, &chosen)).collect::<Result<Vec<_>, _>>()?;
    if !dry_run {
        chosen.iter().try_for_each(|manifest| carry_out(ctx, &mut machine, manifest))?;
    }
    Ok(plans)
}

fn plan(ctx: &Context<'_>, machine: &Machine, manifest: &Manifest, also: &[Manifest]) -> Result<DeletePlan, Error> {
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
    let bytes_freed = manifest.memory.as_ref().map_or(ByteLen::ZERO, |memory| memory.bytes_on_disk);
    Ok(DeletePlan { id: manifest.id.clone(), name: manifest.name.to_string(), bytes_freed })
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
    durable::remove_file(&dir.manifest())?;
    pass(Failpoint::DeleteManifestGone)?;
    if machine.head.parent.as_ref() == Some(id) {
        machine.head.parent = parent;
        machine.write_head()?;
    }
    pass(Failpoint::DeleteReparented)?;
    durable::remove_dir(dir.root())?;
    layers::drop_unused(ctx.home, &machine.dir)?;
    pass(Failpoint::DeleteFilesGone)?;
    durable::remove_file(&machine.dir.journal())
}
