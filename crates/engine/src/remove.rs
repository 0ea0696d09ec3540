//! `vm remove`: a stopped machine with its snapshots and layers goes, planned before anything happens.

use std::path::PathBuf;

use keyframe_types::{ByteLen, VmName};
use serde::Serialize;

use crate::bitmaps;
use crate::boot;
use crate::context::Context;
use crate::drill;
use crate::error::Error;
use crate::layers;
use crate::machine::{Machine, kill_strays};
use crate::snapshots;
use crate::space;
use crate::state::durable;
use crate::state::head::FileOrigin;
use crate::state::home::Home;
use crate::state::lock::{CREATION_PATIENCE, Lock};

/// What to do with snapshots that are pinned, or that cannot be read and may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    /// They hold the machine.
    Hold,
    /// They go with it.
    GoToo,
}

/// Whether to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// Only say what would be done.
    DryRun,
    /// Do it.
    CarryOut,
}

/// What removing a machine removes, and what it leaves.
#[derive(Debug, Serialize)]
pub struct Removal {
    /// The machine.
    pub name: VmName,
    /// Names of its snapshots, ids of those that cannot be read.
    pub snapshots: Vec<String>,
    /// Space that its directory gives back.
    pub bytes_freed: ByteLen,
    /// Files outside of the machine's directory that it stood on.
    pub left: Vec<PathBuf>,
}

/// Removes a stopped machine with its snapshots and layers. Disks that were given at creation stay, with what
/// was written to them before the first snapshot.
///
/// # Errors
/// [`Error::WrongState`] when it runs, [`Error::MachineHeld`] when another machine stands on its layers, or a snapshot of it
/// is pinned.
pub fn remove(ctx: &Context<'_>, name: &VmName, pinned: Pinned, execution: Execution) -> Result<Removal, Error> {
    let _creation = Lock::wait(&ctx.home.root().join("lock"), &format!("vm remove {name}"), CREATION_PATIENCE)?;
    let (_lock, machine) = Machine::lock(ctx, name, &format!("vm remove {name}"))?;
    let removal = plan(ctx, &machine, pinned)?;
    if execution == Execution::CarryOut {
        // A process that no document knows would go on writing to removed files.
        kill_strays(&machine.dir, &[])?;
        boot::stop_serving(&machine.dir)?;
        for top in machine.head.chains().filter_map(|chain| chain.layers.first()) {
            if top.origin == FileOrigin::Given {
                // Its owner can do without our bitmaps, and cannot do much against them: nothing else depends on it.
                let _ = bitmaps::drop_ours(ctx.home, top);
            }
        }
        // Without its definition it is no machine: from here on it is gone, whatever happens.
        durable::remove_file(&machine.dir.definition())?;
        durable::remove_dir(machine.dir.root())?;
    }
    Ok(removal)
}

fn plan(ctx: &Context<'_>, machine: &Machine, pinned: Pinned) -> Result<Removal, Error> {
    let name = machine.name();
    if machine.process().is_some() {
        return Err(Error::WrongState {
            vm: name.clone(),
            state: "running".to_owned(),
            advice: "stop it first with `keyframe vm stop`",
        });
    }
    let held = |reason: String| Err(Error::MachineHeld { vm: name.clone(), reason });
    if let Some(other) = dependents(ctx.home, machine)?.first() {
        return held(format!("machine {other} was forked from it and stands on its layers; remove that one first"));
    }
    if let Some(id) = drill::being_tested(&machine.dir)?.first() {
        return held(format!("its snapshot {id} is being tested or backed up; try again when that has ended"));
    }
    let (manifests, damaged) = snapshots::scan(&machine.dir)?;
    if pinned == Pinned::Hold {
        if let Some(manifest) = manifests.iter().find(|manifest| manifest.pinned) {
            return held(format!("its snapshot {} is pinned; --force removes that too", manifest.name));
        }
        if let Some(broken) = damaged.first() {
            return held(format!(
                "its snapshot {} cannot be read and may be pinned; --force removes it too",
                broken.id
            ));
        }
    }
    let own = machine.dir.root();
    let all = machine.head.chains().flat_map(|chain| &chain.layers).map(|layer| ctx.home.absolute(&layer.path));
    let names = manifests.iter().map(|manifest| manifest.name.to_string());
    Ok(Removal {
        name: name.clone(),
        snapshots: names.chain(damaged.iter().map(|broken| broken.id.to_string())).collect(),
        bytes_freed: space::used_below(own),
        left: all.filter(|path| !path.starts_with(own)).collect(),
    })
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
