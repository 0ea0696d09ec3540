//! Making chains shorter: layers that nobody needs any more for themselves become one with their neighbours, while the
//! guest works.
//!
//! | module | what |
//! |---|---|
//! | [`graph`] | who stands on what, across all machines |
//! | [`plan`] | which layers become one, which way, what that costs; pure |
//! | [`forecast`] | how long that takes, and whether it ends at all |
//! | [`step`] | one merge: journal, copy, change the chain, commit, tidy up |

pub mod forecast;
pub mod graph;
#[cfg(test)]
mod model;
pub mod plan;
pub(crate) mod step;

use std::collections::BTreeSet;
use std::sync::Arc;

use keyframe_types::{DiskId, LayerId, VmName};

use crate::context::Context;
use crate::error::Error;
use crate::machine::{Machine, State};
use crate::merge::graph::Graph;
use crate::merge::plan::Run;
use crate::merge::step::Step;
use crate::snapshots;
use crate::space;
use crate::state::head::{FileOrigin, Layer};
use crate::state::journal::{MergeJournal, Way};
use crate::state::manifest::Manifest;
use crate::state::tree::{LayerRef, TreeDocument, Trees};

/// The runs of a machine's layers as they are now.
///
/// # Errors
/// [`Error::Damaged`] when a document cannot be read: then nothing is merged, for want of knowledge.
pub fn runs(ctx: &Context<'_>, vm: &VmName) -> Result<Vec<Run>, Error> {
    Ok(plan::runs(ctx.home, &Graph::without(ctx.home, vm, &BTreeSet::new())?, vm))
}

/// Merges a run, at `speed` bytes per second at most.
///
/// # Errors
/// [`Error::NoSpace`], [`Error::LayerTouched`] before anything is begun; what a merge fails with: every chain reads as
/// before then, and some of the run may be merged.
pub fn carry_out(ctx: &Context<'_>, machine: &mut Machine, run: &Run, speed: Option<u64>) -> Result<(), Error> {
    let target = ctx.home.absolute(&run.target().path);
    space::check(target.parent().unwrap_or(ctx.home.root()), run.cost.bytes_needed)?;
    let ids: Vec<LayerId> = run.layers.iter().map(|layer| layer.id.clone()).collect();
    let (lower, upper) = (ids.get(..=run.into).unwrap_or_default(), ids.get(run.into..).unwrap_or_default());
    for (way, ids) in [(Way::Pull, lower), (Way::Push, upper)] {
        if ids.len() > 1 {
            ctx.check()?;
            let top_is_active = run.active && ids.last() == run.layers.last().map(|layer| &layer.id);
            let journal = journal(machine, &run.disk, way, ids, top_is_active)?;
            Step::new(ctx, journal).make(machine, speed)?;
        }
    }
    Ok(())
}

/// The journal of a merge of layers of `machine`, the lowest first, as they are noted now.
fn journal(machine: &Machine, disk: &DiskId, way: Way, ids: &[LayerId], active: bool) -> Result<MergeJournal, Error> {
    let tree = TreeDocument::read(&machine.dir)?;
    let noted = |id: &LayerId| tree.find(id).map(|entry| entry.layer.clone());
    let in_use = |id: &LayerId| {
        let mut tops = machine.head.chains().filter_map(|chain| chain.layers.first());
        tops.find(|top| top.id == *id).cloned()
    };
    let layers: Vec<Arc<Layer>> = ids.iter().filter_map(|id| in_use(id).or_else(|| noted(id))).collect();
    let lowest = ids.first().and_then(|id| tree.find(id));
    if layers.len() != ids.len() {
        return Err(Error::Damaged { path: machine.dir.tree(), reason: format!("layers of {disk} are not in it") });
    }
    Ok(of(machine, disk, way, layers, lowest.and_then(|entry| entry.below.clone()), active))
}

fn of(
    machine: &Machine,
    disk: &DiskId,
    way: Way,
    layers: Vec<Arc<Layer>>,
    base: Option<LayerRef>,
    active: bool,
) -> MergeJournal {
    let top = layers.last().map(|layer| layer.id.clone());
    let open = |chain: &crate::state::head::Chain| chain.layers.iter().any(|layer| Some(&layer.id) == top.as_ref());
    MergeJournal {
        disk: disk.clone(),
        base,
        way,
        active,
        live: machine.process().is_some() && machine.head.chains().any(open),
        was_running: machine.process().is_some() && machine.state() == State::Running,
        layers,
    }
}

/// Layers of `machine` that stand on what is not its own, and a copy of all that they read from there: the machine then
/// stands on nobody else's layers but on templates that nobody writes to. With `flatten` its active layers stand
/// on nothing at all that a snapshot might hold.
///
/// # Errors
/// As [`carry_out`].
pub fn own_copies(machine: &Machine, flatten: bool) -> Result<Vec<MergeJournal>, Error> {
    let mut copies = Vec::new();
    let mut seen = BTreeSet::new();
    let tree = TreeDocument::read(&machine.dir)?;
    // A flat present leaves its snapshots where they are; whoever is to stand on nothing else takes them along.
    let manifests =
        if flatten { Vec::new() } else { snapshots::read_all_with(&Trees::of(machine.dir.home()), &machine.dir)? };
    for chain in machine.head.chains().chain(manifests.iter().flat_map(Manifest::chains)) {
        let stays = |layer: &Arc<Layer>| layer.origin == FileOrigin::Foreign;
        let end = chain.layers.iter().position(stays).unwrap_or(chain.layers.len());
        let own = |layer: &&Arc<Layer>| layer.vm == *machine.name();
        // The lowest of its own takes what is below it; for a flat chain that is the active one.
        let own_count = if flatten { 1 } else { chain.layers.iter().take(end).take_while(own).count() };
        if own_count == 0 || own_count >= end {
            continue;
        }
        let taker = own_count - 1;
        let mut layers: Vec<Arc<Layer>> = chain.layers.get(taker..end).unwrap_or_default().to_vec();
        layers.reverse();
        let top = layers.last().map(|layer| layer.id.clone());
        let known = |id: &LayerId| {
            tree.find(id).is_some()
                || machine.head.chains().any(|it| it.layers.first().is_some_and(|top| top.id == *id))
        };
        if !top.as_ref().is_some_and(known) || !seen.insert(top.clone()) {
            continue;
        }
        let base = chain.layers.get(end).map(|layer| LayerRef::to(layer));
        let active =
            machine.head.chains().filter_map(|chain| chain.layers.first()).any(|it| Some(&it.id) == top.as_ref());
        copies.push(of(machine, &chain.disk, Way::Pull, layers, base, active));
    }
    Ok(copies)
}

/// Makes one of [`own_copies`].
///
/// # Errors
/// As [`carry_out`].
pub fn copy(ctx: &Context<'_>, machine: &mut Machine, copy: MergeJournal, speed: Option<u64>) -> Result<(), Error> {
    let needed = copied_bytes(ctx, &copy);
    if let Some(top) = copy.layers.last() {
        let path = ctx.home.absolute(&top.path);
        space::check(path.parent().unwrap_or(ctx.home.root()), needed)?;
    }
    Step::new(ctx, copy).make(machine, speed)
}

/// Bytes that a copy moves, at most.
#[must_use]
pub fn copied_bytes(ctx: &Context<'_>, copy: &MergeJournal) -> keyframe_types::ByteLen {
    let below = copy.layers.split_last().map(|(_, below)| below).unwrap_or_default();
    below.iter().map(|layer| space::used(&ctx.home.absolute(&layer.path))).sum()
}
