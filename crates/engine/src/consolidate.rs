//! `keyframe consolidate`: chains as short as the snapshots that exist allow, or, asked for that, as short as can be.

use keyframe_types::{ByteLen, DiskId, VmName};
use serde::Serialize;

use crate::context::Context;
use crate::delete::merge_all;
use crate::error::Error;
use crate::guard::Guard;
use crate::layers;
use crate::machine::Machine;
use crate::merge;
use crate::merge::forecast::{Forecast, forecast};
use crate::merge::plan::{Run, RunSummary};

/// What to make shorter, and how.
#[derive(Debug, Clone)]
pub struct ConsolidateRequest {
    /// The machine.
    pub vm: VmName,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Give the present a copy of everything that snapshots hold, so that it stands on no layer of theirs.
    pub flatten: bool,
    /// Bytes per second that are moved at most.
    pub speed: Option<u64>,
}

/// A disk whose present gets, or would get, a copy of what is below it.
#[derive(Debug, Clone, Serialize)]
pub struct Flattened {
    /// The disk.
    pub disk: DiskId,
    /// What is copied, at most.
    pub bytes_moved: ByteLen,
}

/// What it came to, or would come to.
#[derive(Debug)]
pub struct Consolidation {
    /// Layers that became one, or would.
    pub merged: Vec<RunSummary>,
    /// Disks that became flat, or would.
    pub flattened: Vec<Flattened>,
    /// What it is going to be like; only of a plan.
    pub forecast: Option<Forecast>,
    /// Layers below the present before, at most.
    pub depth_before: usize,
    /// And after.
    pub depth_after: usize,
    /// What kept the rest from being done.
    pub failure: Option<Error>,
}

/// Makes a machine's chains shorter.
///
/// # Errors
/// What fails before anything was done.
pub fn consolidate(ctx: &Context<'_>, request: &ConsolidateRequest) -> Result<Consolidation, Error> {
    let (_lock, mut machine) = Machine::lock(ctx, &request.vm, &format!("consolidate {}", request.vm))?;
    let depth_before = depth(&machine);
    let mut consolidation = Consolidation {
        merged: Vec::new(),
        flattened: Vec::new(),
        forecast: None,
        depth_before,
        depth_after: depth_before,
        failure: None,
    };
    if request.dry_run {
        let runs = merge::runs(ctx, &request.vm)?;
        consolidation.forecast = (!runs.is_empty()).then(|| forecast(ctx, &machine, &runs, request.speed));
        consolidation.merged = runs.iter().map(Run::summary).collect();
        if request.flatten {
            let copies = merge::own_copies(&machine, true)?;
            consolidation.flattened = copies.iter().map(|copy| flattened(ctx, copy)).collect();
        }
        return Ok(consolidation);
    }
    layers::drop_unused(ctx.home, &machine.dir)?;
    let guard = Guard::post_if_running(&machine)?;
    (consolidation.merged, consolidation.failure) = merge_all(ctx, &mut machine, request.speed);
    if consolidation.failure.is_none() && request.flatten {
        for copy in merge::own_copies(&machine, true)? {
            ctx.progress.step(&format!("copying {}", copy.disk));
            let told = flattened(ctx, &copy);
            match ctx.check().and_then(|()| merge::copy(ctx, &mut machine, copy, request.speed)) {
                Ok(()) => consolidation.flattened.push(told),
                Err(error) => {
                    consolidation.failure = Some(error);
                    break;
                }
            }
        }
    }
    Guard::dismiss_if_tidy(guard, &machine.dir);
    consolidation.depth_after = depth(&machine);
    let nothing = consolidation.merged.is_empty() && consolidation.flattened.is_empty();
    match consolidation.failure.take() {
        Some(error) if nothing => Err(error),
        failure => Ok(Consolidation { failure, ..consolidation }),
    }
}

fn flattened(ctx: &Context<'_>, copy: &crate::state::journal::MergeJournal) -> Flattened {
    Flattened { disk: copy.disk.clone(), bytes_moved: merge::copied_bytes(ctx, copy) }
}

fn depth(machine: &Machine) -> usize {
    machine.head.chains().map(|chain| chain.layers.len()).max().unwrap_or(0)
}
